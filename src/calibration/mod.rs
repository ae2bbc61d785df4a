//! Calibration of conditional models p(θ | c), posteriors above all: whether truths look like draws of what the model says.
//!
//! For pairs (θ, c) of the joint distribution, θ and L draws θ₁ … θ_L ~ q(· | c) are equally distributed given c if q is right.
//! Then the place of θ among them by any number that they can be ordered by,
//!
//! ```text
//! u = (#{l : t(θ_l) < t(θ)} + v (#{l : t(θ_l) = t(θ)} + 1)) / (L + 1) ,   v ~ U(0, 1),
//! ```
//!
//! is uniform on [0, 1], exactly, for every L. Three numbers to order by are in use:
//!
//! | t(θ) | what it is called |
//! |---|---|
//! | θ_j, for each j | rank statistics, simulation-based calibration (Talts et al. 2018, arXiv 1804.06788) |
//! | the distance from a reference point | expected coverage, TARP (Lemos et al. 2023, arXiv 2302.03026) |
//! | log q(θ given c) | expected coverage of highest densities (Hermans et al. 2021, arXiv 2110.06581) |
//!
//! Each is necessary and none is sufficient: the prior, which does not look at c, passes the first, and the others too unless
//! the reference points depend on c. So log p of held-out pairs is to be compared beside them.

mod scores;
mod uniformity;

use resflow_backend::{Key, Noise};

pub use scores::{crps_of_draws, crps_of_quantiles};
pub use uniformity::{Uniformity, kolmogorov_p_value, uniform_band};

use crate::error::Error;

/// What places are ordered by, the test quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TestQuantity {
    /// The parameter of this number, from 0.
    Parameter(usize),
    /// The distance from a reference point.
    Reference,
    /// The model's log density.
    Density,
}

/// One test: the places of the truths and whether they are uniform.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationTest {
    /// What the places are ordered by.
    pub quantity: TestQuantity,
    /// u of each pair, in their order.
    pub places: Vec<f64>,
    /// Whether these are uniform.
    pub uniformity: Uniformity,
}

/// The places of truths, pair by pair: of each pair a few numbers are kept and no draw.
///
/// ```
/// use resflow::backend::Key;
/// use resflow::calibration::Calibration;
///
/// let mut calibration = Calibration::new(1, Key::new(0));
/// // truths that are always in the middle of what is said about them: the model is not sure enough
/// for i in 0..100 {
///     let draws: Vec<f64> = (0..40).map(|l| f64::from(l) - 20.0).collect();
///     calibration.add(&[f64::from(i) / 100.0], &draws)?;
/// }
/// assert!(calibration.p_value()? < 0.001);
/// # Ok::<(), resflow::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Calibration {
    dimension: usize,
    key: Key,
    /// `[pairs, dimension]`.
    ranks: Vec<f64>,
    distances: Vec<f64>,
    densities: Vec<f64>,
    /// The truth before, the next pair's reference point.
    reference: Option<Vec<f64>>,
}

impl Calibration {
    /// Begins with no pair of so many parameters; the key decides between draws that equal the truth.
    #[must_use]
    pub fn new(dimension: usize, key: Key) -> Self {
        Self { dimension, key, ranks: vec![], distances: vec![], densities: vec![], reference: None }
    }

    /// The number of pairs so far.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.ranks.len() / self.dimension.max(1)
    }

    /// Adds a pair: the true θ `[d]` and draws of the model's distribution given the pair's c, `[L, d]`.
    ///
    /// The reference point is the truth of the pair before, which is independent of this pair if pairs are; so the first pair
    /// has no place by distance.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if lengths do not fit or a number is not finite; nothing is added then.
    pub fn add(&mut self, truth: &[f64], draws: &[f64]) -> Result<(), Error> {
        let reference = self.reference.take();
        let added = self.add_beside(truth, draws, reference.as_deref());
        self.reference = if added.is_ok() { Some(truth.to_vec()) } else { reference };
        added
    }

    /// Adds a pair with its reference point `[d]`, any function of c and of numbers that know nothing of θ. One that depends on
    /// c, as a simple estimate of θ does, finds models that do not look at c.
    ///
    /// # Errors
    /// Those of [`Self::add`].
    pub fn add_with_reference(&mut self, truth: &[f64], draws: &[f64], reference: &[f64]) -> Result<(), Error> {
        self.add_beside(truth, draws, Some(reference))
    }

    /// Adds what the model says of a pair's truth and of its draws: log densities in nats, which may be −∞.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there is no draw or a number is NaN.
    pub fn add_log_probs(&mut self, truth: f64, draws: &[f64]) -> Result<(), Error> {
        if draws.is_empty() || draws.iter().chain([&truth]).any(|l| l.is_nan()) {
            return Err(Error::Input(
                "the place of a log density needs draws' log densities, and none may be NaN".into(),
            ));
        }
        let coin = self.coin("densities", self.densities.len(), 1)[0];
        self.densities.push(place(draws.iter().copied(), truth, coin));
        Ok(())
    }

    fn add_beside(&mut self, truth: &[f64], draws: &[f64], reference: Option<&[f64]>) -> Result<(), Error> {
        let d = self.dimension;
        if d == 0
            || truth.len() != d
            || reference.is_some_and(|r| r.len() != d)
            || draws.is_empty()
            || !draws.len().is_multiple_of(d)
        {
            let found = (truth.len(), draws.len(), reference.map(<[f64]>::len));
            return Err(Error::Input(format!(
                "a pair of {d} parameters has a truth of {d} numbers, draws of a multiple of {d} and a reference of {d}, \
                 not {found:?}"
            )));
        }
        let all = || truth.iter().chain(draws).chain(reference.unwrap_or(&[]));
        if let Some(wrong) = all().find(|v| !v.is_finite()) {
            return Err(Error::Input(format!("truths, draws and references are finite, {wrong} is not")));
        }
        let coins = self.coin("ranks", self.pairs(), d);
        for (j, coin) in coins.into_iter().enumerate() {
            self.ranks.push(place(draws.iter().skip(j).step_by(d).copied(), truth[j], coin));
        }
        if let Some(reference) = reference {
            let scale = spreads(truth, draws);
            let distance = |theta: &[f64]| -> f64 {
                theta.iter().zip(reference).zip(&scale).map(|((a, b), s)| ((a - b) / s).powi(2)).sum()
            };
            let coin = self.coin("distances", self.distances.len(), 1)[0];
            self.distances.push(place(draws.chunks_exact(d).map(distance), distance(truth), coin));
        }
        Ok(())
    }

    fn coin(&self, purpose: &str, pair: usize, count: usize) -> Vec<f64> {
        let mut coins = vec![0.0; count];
        Noise::Uniform.fill(self.key.named(purpose), (pair * count) as u64, &mut coins);
        coins
    }

    /// All tests for which there are pairs: each parameter's ranks, the distances, the densities.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if no pair was added.
    pub fn tests(&self) -> Result<Vec<CalibrationTest>, Error> {
        if self.ranks.is_empty() && self.densities.is_empty() {
            return Err(Error::Input("calibration needs pairs of a truth and draws, and there are none".into()));
        }
        let ranks = (0..self.dimension).map(|j| {
            let places = self.ranks.iter().skip(j).step_by(self.dimension).copied().collect::<Vec<_>>();
            (TestQuantity::Parameter(j), places)
        });
        let others =
            [(TestQuantity::Reference, self.distances.clone()), (TestQuantity::Density, self.densities.clone())];
        let all = ranks.chain(others).filter(|(_, places)| !places.is_empty());
        all.map(|(quantity, places)| Ok(CalibrationTest { quantity, uniformity: Uniformity::of(&places)?, places }))
            .collect()
    }

    /// The chance that the least p-value of a right model's tests is as small: at most their number times it (Bonferroni).
    ///
    /// # Errors
    /// Those of [`Self::tests`].
    pub fn p_value(&self) -> Result<f64, Error> {
        let tests = self.tests()?;
        let least = tests.iter().map(|test| test.uniformity.p_value).fold(1.0, f64::min);
        Ok((least * tests.len() as f64).min(1.0))
    }
}

/// u of a truth among draws.
fn place(draws: impl Iterator<Item = f64>, truth: f64, coin: f64) -> f64 {
    let (mut count, mut less, mut equal) = (0_u64, 0_u64, 0_u64);
    for draw in draws {
        count += 1;
        less += u64::from(draw < truth);
        equal += u64::from(draw == truth);
    }
    (less as f64 + coin * (equal + 1) as f64) / (count + 1) as f64
}

/// The standard deviation of each parameter over the draws and the truth, among which none is favoured; 1 where it is 0.
fn spreads(truth: &[f64], draws: &[f64]) -> Vec<f64> {
    let d = truth.len();
    let spread = |j: usize| {
        let values = || draws.iter().skip(j).step_by(d).chain([&truth[j]]);
        let count = (draws.len() / d + 1) as f64;
        let mean = values().map(|v| v / count).sum::<f64>();
        let variance = values().map(|v| (v - mean).powi(2) / count).sum::<f64>();
        if variance > 0.0 && variance.is_finite() { variance.sqrt() } else { 1.0 }
    };
    (0..d).map(spread).collect()
}

#[cfg(test)]
mod tests;
