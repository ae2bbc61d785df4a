//! Russian roulette (Kahn 1955; Chen et al. 2019, eq. 6) and the weights of its terms.
//!
//! c_k = 1 for k ≤ E, else #{i : N_i ≥ k−E} / (S · P(N ≥ k−E)) over S draws of N. Invariant: E\[c_k\] = 1 for every k.

use rand::RngExt as _;
use resflow_backend::Key;
use serde::{Deserialize, Serialize};

use super::{Expansion, Law, Probe, Traces};
use crate::error::ConfigError;

/// The sharing of N among the samples of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// One N for each block and batch (Chen et al.).
    #[default]
    Batch,
    /// An N for every sample.
    Sample,
}

/// The unbiased estimator: a random number of reweighted terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RussianRoulette {
    /// The law of N.
    pub law: Law,
    /// E, the number of terms that are always there.
    pub exact_terms: usize,
    /// S, the number of draws of N that are averaged.
    #[serde(default = "one")]
    pub draws: usize,
    /// The number of trace probes that are averaged.
    #[serde(default = "one")]
    pub probes: usize,
    /// The probes' distribution.
    #[serde(default)]
    pub probe: Probe,
    /// The sharing of N among samples.
    #[serde(default)]
    pub sharing: Sharing,
    /// The way in which the first traces are computed.
    #[serde(default, skip_serializing_if = "Traces::is_probed")]
    pub traces: Traces,
}

fn one() -> usize {
    1
}

impl RussianRoulette {
    /// Builds a roulette with one draw and one Rademacher probe, N per batch.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a parameter of the law out of its range, or more than 1000 exact terms.
    pub fn new(law: Law, exact_terms: usize) -> Result<Self, ConfigError> {
        let it = Self {
            law,
            exact_terms,
            draws: 1,
            probes: 1,
            probe: Probe::default(),
            sharing: Sharing::default(),
            traces: Traces::default(),
        };
        it.check()?;
        Ok(it)
    }

    /// Sets the number of draws of N.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] outside 1 … 1000.
    pub fn with_draws(self, draws: usize) -> Result<Self, ConfigError> {
        let it = Self { draws, ..self };
        it.check()?;
        Ok(it)
    }

    /// Sets the number and the distribution of probes.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] outside 1 … 1000.
    pub fn with_probes(self, probes: usize, probe: Probe) -> Result<Self, ConfigError> {
        let it = Self { probes, probe, ..self };
        it.check()?;
        Ok(it)
    }

    /// Sets the sharing of N.
    pub fn with_sharing(self, sharing: Sharing) -> Self {
        Self { sharing, ..self }
    }

    /// Sets the way in which the first traces are computed.
    pub fn with_traces(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a parameter out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.law.check()?;
        check_count("exact_terms", self.exact_terms, 0, 1000)?;
        check_count("draws", self.draws, 1, 1000)?;
        check_count("probes", self.probes, 1, 1000)
    }

    /// Draws S numbers N; a function of the key alone.
    pub fn draw(&self, key: Key) -> Vec<u64> {
        let mut generator = key.generator();
        (0..self.draws).map(|_| self.law.quantile(generator.random::<f64>())).collect()
    }

    /// Returns c_1, c_2, … up to c_{E + max N}.
    pub fn coefficients(&self, draws: &[u64]) -> Vec<f64> {
        let most = draws.iter().copied().max().unwrap_or(0);
        let random = (1..=most).map(|m| {
            let reached = draws.iter().filter(|&&n| n >= m).count() as f64;
            reached / (draws.len() as f64 * self.law.survival(m))
        });
        std::iter::repeat_n(1.0, self.exact_terms).chain(random).collect()
    }

    /// Returns E + E\[max N\], the expected number of terms.
    pub fn expected_terms(&self) -> f64 {
        let s = self.draws as i32;
        let longest: f64 =
            (1..10_000_u64).map(|m| 1.0 - (1.0 - self.law.survival(m)).powi(s)).take_while(|p| *p > 1e-12).sum();
        self.exact_terms as f64 + longest
    }

    /// Warns if the variance is not finite for every g whose terms fall by c, with a law that would make it so: c is a bound of Lip(g), of
    /// which [`Expansion::ratio`](super::Expansion::ratio) makes that of its terms.
    pub fn variance_warning(&self, c: f64) -> Option<VarianceWarning> {
        // the gradient's second moment: Σ c^{2k} / P(N ≥ k−E) < ∞, strictly
        // rounded down, so that it stays bounded
        let p = ((1.0 - c) * 1e4).floor() / 1e4;
        let better = Some(Law::ShiftedGeometric { p: p.max(super::law::LEAST_STOP) }).filter(|&law| bounded(law, c));
        (!bounded(self.law, c)).then_some(VarianceWarning { law: self.law, bound: c, better })
    }
}

/// Returns `true` if the gradient's variance is bounded for every network of this Lipschitz bound.
fn bounded(law: Law, c: f64) -> bool {
    matches!(law, Law::ShiftedGeometric { p } | Law::Geometric { p, .. } if c * c < 1.0 - p)
}

/// The variance of a roulette estimator is not bounded for the network's Lipschitz bound. In practice tr(Jᵏ) falls
/// faster than its bound, so such settings are allowed, but not without a word.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VarianceWarning {
    /// The law in use.
    pub law: Law,
    /// The most that a term of the worst block's series is of the one before: its Lipschitz bound, or the square of that for odd terms.
    pub bound: f64,
    /// The law with the least work × variance at that bound; `None` for bounds above 0.9994, where no law has a bounded
    /// variance, since their least probability of stopping is 0.001.
    pub better: Option<Law>,
}

impl std::fmt::Display for VarianceWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "unbounded-variance: with {} and terms up to {:.4} of the one before the variance of the gradient has no bound; ",
            self.law, self.bound
        )?;
        match self.better {
            Some(better) => write!(f, "{better} has one"),
            None => write!(f, "a smaller coefficient is needed for one"),
        }
    }
}

/// The biased estimator of i-ResNet: a fixed number of terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truncated {
    /// K, the number of terms.
    pub terms: usize,
    /// The number of trace probes that are averaged.
    #[serde(default = "one")]
    pub probes: usize,
    /// The probes' distribution.
    #[serde(default)]
    pub probe: Probe,
    /// The way in which the first traces are computed.
    #[serde(default, skip_serializing_if = "Traces::is_probed")]
    pub traces: Traces,
}

impl Truncated {
    /// Builds the series of K terms with one Rademacher probe.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] outside 1 … 1000 terms.
    pub fn new(terms: usize) -> Result<Self, ConfigError> {
        let it = Self { terms, probes: 1, probe: Probe::default(), traces: Traces::default() };
        it.check()?;
        Ok(it)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a parameter out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_count("terms", self.terms, 1, 1000)?;
        check_count("probes", self.probes, 1, 1000)
    }

    /// Returns c_k = 1 for k ≤ K.
    pub fn coefficients(&self) -> Vec<f64> {
        vec![1.0; self.terms]
    }

    /// Returns the largest possible bias in absolute value, nats: d·(−ln(1−c) − Σ_{k≤K} cᵏ/k); infinite for c ≥ 1.
    pub fn bias_bound(&self, dimension: usize, c: f64) -> f64 {
        self.bias_bound_of(Expansion::Whole, dimension, c)
    }

    /// Returns [`bias_bound`](Self::bias_bound) of the log det of an expansion: for the odd one, whose terms are the odd ones,
    /// 2d·(artanh c − Σ_{m<K} c^{2m+1}/(2m+1)).
    pub fn bias_bound_of(&self, expansion: Expansion, dimension: usize, c: f64) -> f64 {
        if c.is_nan() || c >= 1.0 {
            return f64::INFINITY;
        }
        if expansion == Expansion::Odd {
            let head: f64 = (0..self.terms).map(|m| c.powi(2 * m as i32 + 1) / (2 * m + 1) as f64).sum();
            return 2.0 * dimension as f64 * (c.atanh() - head).max(0.0);
        }
        let head: f64 = (1..=self.terms).map(|k| c.powi(k as i32) / k as f64).sum();
        dimension as f64 * (-(-c).ln_1p() - head).max(0.0)
    }
}

fn check_count(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        let expected = if least == 0 { "a whole number up to 1000" } else { "a whole number from 1 to 1000" };
        Err(ConfigError::OutOfRange { name, value: value as f64, expected })
    }
}
