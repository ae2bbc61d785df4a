//! The choice of a mixture on rows that were held out: a ladder from the Gaussian upwards, the number of components rising
//! for both kinds of covariances, until more of them are no better.
//!
//! Invariant: the choice is a function of the rows, the settings and the key. What bounds its cost is therefore counted in
//! multiply-adds, of which a core makes some 10⁹ a second, and not in seconds, unless it is given a time.

use std::fmt;
use std::time::{Duration, Instant};

use resflow_backend::Key;
use serde::{Deserialize, Serialize};

use super::allowance::Allowance;
use super::{Covariance, Mixture, MixtureConfig, MixtureFit, Rows};
use crate::error::{ConfigError, Error};

/// Rungs of one kind of covariances, one after the other, that may be worse than the best before it ends.
const PATIENCE: usize = 2;
/// From so many components on a kind ends that is behind the other by [`HOPELESS`] nats and three standard errors.
const MANY: usize = 8;
const HOPELESS: f64 = 1.0;

/// A mixture on the ladder, and what it gives rows that it was not fitted to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// K, the components that were left; 1 is the Gaussian.
    pub components: usize,
    /// Their covariances.
    pub covariance: Covariance,
    /// The mean log p of the held-out rows, nats in the units of the rows.
    pub log_prob: f64,
    /// The standard error of that mean, nats; `None` of a single row.
    pub standard_error: Option<f64>,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.components {
            1 => format!("Gaussian, {}", self.covariance),
            k => format!("mixture of {k}, {}", self.covariance),
        };
        write!(f, "{name:<24}{:>12.4}", self.log_prob)?;
        self.standard_error.map_or(Ok(()), |error| write!(f, " ± {error:.4}"))
    }
}

/// Mixtures in the order in which they were tried; shown as a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// The rungs, at least one.
    pub rungs: Vec<Rung>,
    /// The number of the best, that of the largest mean log p.
    pub best: usize,
    /// The rows that the mixtures were fitted to.
    pub training_rows: usize,
    /// The rows that were held out.
    pub validation_rows: usize,
}

impl Ladder {
    /// The rung that was chosen, if `best` is one of them.
    pub fn chosen(&self) -> Option<&Rung> {
        self.rungs.get(self.best)
    }

    /// The best of the single Gaussians.
    pub fn gaussian(&self) -> Option<&Rung> {
        let gaussians = self.rungs.iter().filter(|rung| rung.components == 1);
        gaussians.max_by(|a, b| a.log_prob.total_cmp(&b.log_prob))
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { training_rows, validation_rows, .. } = self;
        write!(f, "fitted to {training_rows} rows; mean log p of {validation_rows} others, nats")?;
        for (i, rung) in self.rungs.iter().enumerate() {
            write!(f, "\n{rung}{}", if i == self.best { "  chosen" } else { "" })?;
        }
        Ok(())
    }
}

/// The settings of a choice.
#[derive(Debug, Clone, PartialEq)]
pub struct MixtureChoice {
    /// The numbers of components to try, rising. One above half of the rows is left out, unless it is the first.
    pub candidates: Vec<usize>,
    /// The settings of each fit; its components and covariance are those of the rung.
    pub fit: MixtureFit,
    /// Multiply-adds after which nothing more is tried. The first, with diagonal covariances, always is.
    pub work: u64,
    /// The time after which nothing more is tried, as well: the choice is a function of the clock then.
    pub time: Option<Duration>,
}

impl Default for MixtureChoice {
    fn default() -> Self {
        Self {
            candidates: vec![1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128],
            fit: MixtureFit::new(1, Covariance::Full),
            work: 10_000_000_000,
            time: None,
        }
    }
}

/// The search in one kind of covariances.
struct Branch {
    covariance: Covariance,
    best: f64,
    /// The standard error of the best.
    error: f64,
    /// Rungs since the best.
    worse: usize,
}

impl MixtureChoice {
    /// Fits mixtures to training rows and chooses the one with the largest mean log p of the validation rows.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for settings out of range and without candidates, [`Error::Input`] for rows of two
    /// widths, rows that no mixture can be fitted to, and validation rows that have no density to any precision.
    pub fn choose(&self, training: Rows<'_>, validation: Rows<'_>, key: Key) -> Result<(Ladder, Mixture), Error> {
        self.choose_unless(training, validation, key, &|| false)
    }

    /// Chooses like [`choose`](Self::choose), but ends with [`Error::Interrupted`] once it is stopped.
    pub(crate) fn choose_unless(
        &self,
        training: Rows<'_>,
        validation: Rows<'_>,
        key: Key,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(Ladder, Mixture), Error> {
        if training.dimension() != validation.dimension() {
            return Err(Error::Input(format!(
                "training rows of {} columns and validation rows of {}",
                training.dimension(),
                validation.dimension()
            )));
        }
        let Some(&least) = self.candidates.first() else {
            return Err(ConfigError::Inconsistent("a choice among no numbers of components".into()).into());
        };
        let mut allowance = Allowance::new(self.work, is_stopped);
        let start = Instant::now();
        // a rung takes about half as long as all before it
        let late = || self.time.is_some_and(|time| start.elapsed().mul_f64(1.5) > time);
        let mut found: Vec<(Rung, Mixture)> = Vec::new();
        let all = [Covariance::Diagonal, Covariance::Full];
        let mut branches = all.map(|covariance| Branch { covariance, best: f64::NEG_INFINITY, error: 0.0, worse: 0 });
        for &components in self.candidates.iter().filter(|&&k| k == least || k <= training.count() / 2) {
            let leading = branches.iter().map(|branch| branch.best).fold(f64::NEG_INFINITY, f64::max);
            for branch in &mut branches {
                let hopeless = branch.best < leading - HOPELESS - 3.0 * branch.error;
                if components >= MANY && hopeless {
                    continue;
                }
                let fit = MixtureFit { components, covariance: branch.covariance, ..self.fit };
                // a start and two passes are the least that a fit takes
                let rows = training.count().min(fit.most_rows) as u64;
                let size = MixtureConfig { components, covariance: branch.covariance };
                let pass = rows * components as u64 * size.factor_numbers(training.dimension()) as u64;
                let first = found.is_empty();
                if branch.worse >= PATIENCE || !first && (pass.saturating_mul(3) > allowance.work() || late()) {
                    continue;
                }
                let key = key.named(branch.covariance.name()).split(components as u64);
                let fitted = fit.fit_within(training, key, &mut allowance)?;
                let (log_prob, standard_error) = score(&fitted.mixture, &validation);
                branch.worse += 1;
                if log_prob > branch.best {
                    (branch.best, branch.error, branch.worse) = (log_prob, standard_error.unwrap_or(0.0), 0);
                }
                if log_prob.is_finite() {
                    let MixtureConfig { components, covariance } = fitted.mixture.config();
                    found.push((Rung { components, covariance, log_prob, standard_error }, fitted.mixture));
                }
            }
        }
        let best = (0..found.len()).reduce(|a, b| if found[b].0.log_prob > found[a].0.log_prob { b } else { a });
        let best = best.ok_or_else(|| {
            Error::Input(
                "the validation rows are so far from the training rows that no mixture gives them a density: they \
                 are of other data"
                    .into(),
            )
        })?;
        let rungs = found.iter().map(|(rung, _)| *rung).collect();
        let ladder = Ladder { rungs, best, training_rows: training.count(), validation_rows: validation.count() };
        Ok((ladder, found.swap_remove(best).1))
    }
}

/// The weighted mean of log p over rows and its standard error, with Kish's effective number of rows.
fn score(mixture: &Mixture, rows: &Rows<'_>) -> (f64, Option<f64>) {
    let values = mixture.log_densities(rows.values());
    let total = rows.total_weight();
    // a row without weight is not there, whatever its density
    let there = || values.iter().enumerate().map(|(i, v)| (rows.weight(i) / total, v)).filter(|(w, _)| *w > 0.0);
    let mean: f64 = there().map(|(w, v)| w * v).sum();
    let effective = there().map(|(w, _)| w * w).sum::<f64>().recip();
    let variance: f64 = there().map(|(w, v)| w * (v - mean) * (v - mean)).sum();
    let error = (variance / (effective - 1.0)).sqrt();
    (mean, (effective > 1.0 + 1e-9 && error.is_finite()).then_some(error))
}
