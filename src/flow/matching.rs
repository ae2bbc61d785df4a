//! Conditional flow matching (Lipman, Chen, Ben-Hamu, Nickel and Le 2023, arXiv 2210.02747; Tong et al. 2024, arXiv 2302.00482): the
//! velocity of a continuous flow is fitted to straight paths from noise to samples,
//!
//! L = Σ wᵢ ‖f(tᵢ, x_t) − (x₁ − x₀)‖²/d,  x_t = (1 − t) x₀ + t x₁ + σ ε,  t ~ U(0, 1), ε ~ N(0, I),
//!
//! x₁ what the transforms before the ODE make of a sample, x₀ what those behind it are given by noise of the base density. One
//! evaluation of f and one pullback, no solve and no trace. Only f is fitted (and the embedding of contexts); the other
//! transforms and the base stay as they are. log p of the outcome is exact as of any continuous flow, though it is not what was maximised.
//!
//! Pairs (x₀, x₁) are drawn independently, or are those of a batch that are nearest to each other in the sum of squared distances, by which
//! paths cross less. That is optimal transport between two samples, not between the densities: with contexts it would favour noise by
//! context, and weights it does not know, so it is for neither.
//!
//! Invariant: the gradient is a function of the batch, the settings and the key.

use std::fmt;
use std::str::FromStr;

use rand::Rng as _;
use resflow_backend::{Backend, Element as _, Key, Noise};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::gradient::{Gradient, Outcome};
use super::pairing::assign;
use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::bijection::Regression;
use crate::error::{ConfigError, Error};
use crate::invert::Inversion;
use crate::module::accumulate;

/// The most samples that are paired optimally, in O(n³).
pub const MOST_PAIRED: usize = 2048;

/// The pairs of noise and samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pairing {
    /// Each sample has noise of its own.
    #[default]
    Independent,
    /// The noise of a batch goes to its samples so that the sum of squared distances is least.
    Optimal,
}

impl Pairing {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Optimal => "optimal",
        }
    }
}

/// The settings of flow matching.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowMatching {
    /// The pairs of noise and samples.
    pub pairing: Pairing,
    /// σ, the deviation of the noise around the paths, 0 or above: with it the flow is that of samples with as much noise.
    pub noise: f64,
    /// The last part of the run, from 0 to below 1, in which −log p is minimised instead.
    pub fine_tune: f64,
}

impl Default for FlowMatching {
    fn default() -> Self {
        Self { pairing: Pairing::Independent, noise: 0.0, fine_tune: 0.0 }
    }
}

impl FlowMatching {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(self.noise >= 0.0 && self.noise.is_finite()) {
            return Err(ConfigError::OutOfRange { name: "noise", value: self.noise, expected: "0 or above" });
        }
        if !(0.0..1.0).contains(&self.fine_tune) {
            let expected = "0 to below 1, a part of the run";
            return Err(ConfigError::OutOfRange { name: "fine-tune", value: self.fine_tune, expected });
        }
        Ok(())
    }
}

/// What is minimised in training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum TrainingObjective {
    /// −log p, by the training estimator.
    #[default]
    Likelihood,
    /// The velocity's distance from straight paths, of a continuous flow.
    FlowMatching(FlowMatching),
}

impl TrainingObjective {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Likelihood => Ok(()),
            Self::FlowMatching(matching) => matching.check(),
        }
    }

    /// The settings of flow matching, where a run is to match at a progress from 0 to 1.
    pub fn matching(&self, progress: f64) -> Option<&FlowMatching> {
        match self {
            Self::Likelihood => None,
            Self::FlowMatching(matching) => {
                Some(matching).filter(|m| m.fine_tune == 0.0 || progress < 1.0 - m.fine_tune)
            }
        }
    }
}

impl fmt::Display for TrainingObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::FlowMatching(FlowMatching { pairing, noise, fine_tune }) = self else {
            return f.write_str("likelihood");
        };
        f.write_str("flow-matching")?;
        let named = [
            (*pairing != Pairing::Independent).then(|| format!("pairing={}", pairing.name())),
            (*noise != 0.0).then(|| format!("noise={noise}")),
            (*fine_tune != 0.0).then(|| format!("fine-tune={fine_tune}")),
        ];
        let named: Vec<String> = named.into_iter().flatten().collect();
        if named.is_empty() { Ok(()) } else { write!(f, ":{}", named.join(",")) }
    }
}

impl FromStr for TrainingObjective {
    type Err = ConfigError;

    /// ```
    /// use resflow::flow::{FlowMatching, Pairing, TrainingObjective};
    /// let objective: TrainingObjective = "flow-matching:pairing=optimal,fine-tune=0.1".parse()?;
    /// let matching = FlowMatching { pairing: Pairing::Optimal, fine_tune: 0.1, ..FlowMatching::default() };
    /// assert_eq!(objective, TrainingObjective::FlowMatching(matching));
    /// assert!("flow-matching:noise=-1".parse::<TrainingObjective>().is_err());
    /// # Ok::<(), resflow::error::ConfigError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let syntax = |problem: fmt::Arguments<'_>| {
            ConfigError::Syntax(format!(
                "objective `{text}`: {problem} (likelihood, or flow-matching:pairing=independent|optimal,noise=…,fine-tune=…)"
            ))
        };
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let kind = kind.trim();
        let mut matching = FlowMatching::default();
        let mut seen = Vec::new();
        for pair in rest.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| syntax(format_args!("`{pair}` is not of the form key=value")))?;
            let (key, value) = (key.trim(), value.trim());
            let wrong = || syntax(format_args!("`{value}` is no value for `{key}`"));
            match key {
                _ if seen.contains(&key) => return Err(syntax(format_args!("`{key}` is given twice"))),
                "pairing" if kind == "flow-matching" => {
                    let all = [Pairing::Independent, Pairing::Optimal];
                    matching.pairing = all.into_iter().find(|p| p.name() == value).ok_or_else(wrong)?;
                }
                "noise" if kind == "flow-matching" => matching.noise = value.parse().map_err(|_| wrong())?,
                "fine-tune" if kind == "flow-matching" => matching.fine_tune = value.parse().map_err(|_| wrong())?,
                _ => return Err(syntax(format_args!("`{kind}` has no setting `{key}`"))),
            }
            seen.push(key);
        }
        let objective = match kind {
            "likelihood" => Self::Likelihood,
            "flow-matching" => Self::FlowMatching(matching),
            other => return Err(syntax(format_args!("there is no objective `{other}`"))),
        };
        objective.check()?;
        Ok(objective)
    }
}

impl Serialize for TrainingObjective {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TrainingObjective {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A number from 0 to below 1, a function of the key.
fn uniform(key: Key) -> f64 {
    (key.generator().next_u64() >> 11) as f64 * (0.5_f64).powi(53)
}

impl<B: Backend> PreparedFlow<B> {
    /// Computes flow matching's L over a batch and its gradient: the gradient's `loss` is L, a mean square per number, no −log p. The batch and its weights are those of an
    /// [`Objective`](super::Objective).
    ///
    /// # Errors
    /// Returns [`Error::Config`] for a flow without exactly one ODE and for more samples than are paired, [`Error::Input`] for samples without
    /// their context, [`Error::Backend`] if the device failed.
    pub fn matching_gradient(
        &self,
        matching: &FlowMatching,
        batch: &Batch<B>,
        weights: &B::Tensor,
        key: Key,
    ) -> Result<Gradient<B>, Error> {
        let Some((l, velocity, place)) = self.chain.velocity() else { return Err(not_one().into()) };
        let backend = &self.backend;
        let (n, first) = (batch.len(backend), batch.first);
        let whole = self.embedded(backend, batch.clone());
        let noise = self.base.sample(backend, key.named("noise"), first, n, whole.context.as_ref());
        let [ends, mut begins] = self.chain.both_ends(backend, l, &whole, noise, &Inversion::for_training::<B>())?;
        if matching.pairing == Pairing::Optimal {
            begins = self.paired(&begins, &ends)?;
        }
        let key = key.named("matching");
        let d = backend.shape(&ends).row_elements();
        // addresses wrap around beyond any honest number
        let times: Vec<f64> = (0..n as u64).map(|i| uniform(key.named("time").split(first.wrapping_add(i)))).collect();
        let targets = backend.axpy(-1.0, &begins, ends);
        let along: Vec<_> = times.iter().map(|&t| B::Elem::from_f64(t)).collect();
        let along = crate::batch::per_sample(backend, &backend.upload(&along, [n, 1].into()), backend.shape(&targets));
        let mut x = backend.axpy(1.0, &begins, backend.binary(resflow_backend::Binary::Mul, targets.clone(), &along));
        if matching.noise > 0.0 {
            let around =
                backend.noise(key.named("path"), Noise::Normal, first.wrapping_mul(d as u64), backend.shape(&x));
            x = backend.axpy(matching.noise, &around, x);
        }
        let weights = backend.affine(weights.clone(), 1.0 / d.max(1) as f64, 0.0);
        self.add_shards(batch, false, &|shard, lane, _| {
            let backend = &self.steps;
            let (start, count) = (shard.start, shard.len());
            let mut own = batch.narrow(backend, start, count).with_x(backend.narrow(&x, 0, start, count));
            let mut embedded = None;
            if let (Some(context), Some(given)) = (&self.context, &own.context) {
                let (embedding, kept) = context.embedding.forward(backend, given);
                own = own.with_context(Some(embedding));
                embedded = Some((&context.embedding, kept));
            }
            let regression = Regression {
                batch: &own,
                times: &times[shard],
                targets: &backend.narrow(&targets, 0, start, count),
                weights: &backend.narrow(&weights, 0, start, count),
            };
            let mut of_context = None;
            let loss = velocity.regress(backend, &regression, &mut lane.chain[place.clone()], &mut of_context);
            accumulate(backend, &mut lane.loss, &loss);
            if let (Some((embedding, kept)), Some(gradient)) = (embedded, of_context) {
                embedding.pull_back(backend, kept, gradient, &mut lane.embedding);
            }
            Ok(Outcome::Added)
        })
    }

    /// The noise in the order of the samples that it is nearest to.
    fn paired(&self, noise: &B::Tensor, samples: &B::Tensor) -> Result<B::Tensor, Error> {
        let backend = &self.backend;
        let n = backend.shape(samples).rows();
        if n > MOST_PAIRED {
            return Err(too_many(n).into());
        }
        let rows = |x: &B::Tensor| -> Result<Vec<f64>, Error> {
            Ok(backend.download(x)?.into_iter().map(resflow_backend::Element::to_f64).collect())
        };
        let (noise_rows, sample_rows) = (rows(noise)?, rows(samples)?);
        let d = (sample_rows.len() / n.max(1)).max(1);
        let square = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        let costs: Vec<f64> = noise_rows
            .chunks_exact(d)
            .flat_map(|noise| sample_rows.chunks_exact(d).map(move |sample| square(noise, sample)))
            .collect();
        let order: Vec<u32> = assign(&costs, n).into_iter().map(|i| i as u32).collect();
        Ok(backend.take_rows(noise, &order))
    }
}

/// The error of a flow without exactly one ODE.
pub(crate) fn not_one() -> ConfigError {
    ConfigError::Inconsistent(
        "flow matching fits the velocity of a flow of one ordinary differential equation: set model = \"ffjord\" and blocks = 1, \
         or objective = \"likelihood\""
            .into(),
    )
}

/// The error of more samples than are paired.
pub(crate) fn too_many(samples: usize) -> ConfigError {
    ConfigError::Inconsistent(format!(
        "pairing = optimal is for batches of at most {MOST_PAIRED} samples, this one has {samples}: set a smaller batch (and \
         accumulate), or pairing=independent"
    ))
}
