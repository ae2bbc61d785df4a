//! What a conditional flow of one column predicts: the distribution of x at each context, by its quantiles.
//!
//! A flow of one column is a rising function x ↦ z, or a falling one, and z made standard normal is Φ⁻¹ of the distribution
//! function. So the quantile at level u is the inverse at Φ⁻¹(u), without a sample drawn:
//!
//! ```text
//! Q(u) = F⁻¹(Φ⁻¹(u)) ,   E x = ∫₀¹ Q(u) du ,   CRPS(y) = 2 ∫₀¹ (1{y ≤ Q(u)} − u)(Q(u) − y) du ,
//! ```
//!
//! the integrals by the midpoint rule over [`LEVELS`] levels.

use resflow_backend::{Backend, Key};
use statrs::distribution::{ContinuousCDF as _, Normal};

use super::conditioned::Conditioned;
use crate::calibration::crps_of_quantiles;
use crate::data::{Samples, Table};
use crate::error::Error;
use crate::invert::{Inversion, Status};

/// Levels of the integrals.
const LEVELS: usize = 64;

/// The distribution of one column at m contexts.
#[derive(Debug, Clone)]
pub struct Prediction {
    levels: Vec<f64>,
    /// At the levels, `[m, levels]`.
    quantiles: Vec<f64>,
    /// At the levels (k − ½)/[`LEVELS`], `[m, LEVELS]`.
    evenly: Vec<f64>,
    unsolved: usize,
}

impl Prediction {
    /// m, the number of contexts.
    pub fn contexts(&self) -> usize {
        self.evenly.len() / LEVELS
    }

    /// The levels that were asked for.
    pub fn levels(&self) -> &[f64] {
        &self.levels
    }

    /// The quantiles at the levels at context i, in the data's units.
    ///
    /// # Panics
    /// Panics if there is no such context.
    pub fn quantiles(&self, i: usize) -> &[f64] {
        &self.quantiles[i * self.levels.len()..(i + 1) * self.levels.len()]
    }

    /// The mean at context i, in the data's units, but for what tails beyond 1 in 128 bend: the midpoint rule takes them at
    /// one point.
    ///
    /// # Panics
    /// Panics if there is no such context.
    pub fn mean(&self, i: usize) -> f64 {
        self.evenly(i).iter().map(|q| q / LEVELS as f64).sum()
    }

    /// The continuous ranked probability score of what came true at context i, in the data's units, less is better
    /// ([`crps_of_quantiles`]).
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the truth or a quantile is not finite.
    ///
    /// # Panics
    /// Panics if there is no such context.
    pub fn crps(&self, i: usize, truth: f64) -> Result<f64, Error> {
        crps_of_quantiles(self.evenly(i), truth)
    }

    /// The quantiles whose solve did not come to the accuracy asked for.
    pub fn unsolved(&self) -> usize {
        self.unsolved
    }

    fn evenly(&self, i: usize) -> &[f64] {
        &self.evenly[i * LEVELS..(i + 1) * LEVELS]
    }
}

impl<B: Backend> Conditioned<'_, B> {
    /// Finds the distribution of the only column at each context: its quantiles at some levels, its mean, and what its CRPS is
    /// computed of.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a flow of more columns than one or levels that are not between 0 and 1, and the errors of
    /// [`decode`](Self::decode).
    pub fn predict(&self, levels: &[f64], how: &Inversion) -> Result<Prediction, Error> {
        self.check_single()?;
        if let Some(wrong) = levels.iter().find(|u| !(**u > 0.0 && **u < 1.0)) {
            return Err(Error::Input(format!("levels of quantiles lie between 0 and 1, {wrong} does not")));
        }
        let normal = Normal::standard();
        let even = (0..LEVELS).map(|k| (k as f64 + 0.5) / LEVELS as f64);
        let all: Vec<f64> = levels.iter().copied().chain(even).map(|u| normal.inverse_cdf(u)).collect();
        let sign = if self.falls(how)? { -1.0 } else { 1.0 };
        let (found, unsolved) = self.at_normal(&all.iter().map(|z| sign * z).collect::<Vec<_>>(), how)?;
        let (mut quantiles, mut evenly) = (Vec::new(), Vec::new());
        for row in found.chunks_exact(all.len()) {
            quantiles.extend_from_slice(&row[..levels.len()]);
            let own = &row[levels.len()..];
            evenly.extend_from_slice(own);
            // neighbours that are equal to the accuracy of a solve may have changed places
            let from = evenly.len() - LEVELS;
            evenly[from..].sort_unstable_by(f64::total_cmp);
        }
        Ok(Prediction { levels: levels.to_vec(), quantiles, evenly, unsolved })
    }

    /// Computes the distribution function of the only column at samples, all of one context or sample i of context i: the
    /// probability of less than each.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a flow of more columns than one, and the errors of [`encode`](Self::encode).
    pub fn distribution<'s>(&self, samples: impl Into<Samples<'s>>, key: Key) -> Result<Vec<f64>, Error> {
        self.check_single()?;
        let encoded = self.flow().normal_scores(self.encode(samples, key)?)?;
        let sign = if self.falls(&Inversion::for_backend::<B>())? { -1.0 } else { 1.0 };
        let below = |z: &f64| 0.5 * libm::erfc(-sign * z / std::f64::consts::SQRT_2);
        Ok(encoded.latents.values().iter().map(below).collect())
    }

    /// Whether x falls where z rises, which is so at every context or at none.
    fn falls(&self, how: &Inversion) -> Result<bool, Error> {
        let (found, _) = self.at_normal(&[-1.0, 1.0], how)?;
        Ok(found.len() > 1 && found[1] < found[0])
    }

    fn check_single(&self) -> Result<(), Error> {
        match self.flow().dimension() {
            1 => Ok(()),
            d => Err(Error::Input(format!("the model is of {d} columns together, a distribution function is of one"))),
        }
    }

    /// x where the latent, made standard normal, is each of some numbers at each context, `[m, numbers]`, and how many of them did
    /// not come to the accuracy.
    fn at_normal(&self, scores: &[f64], how: &Inversion) -> Result<(Vec<f64>, usize), Error> {
        let z = self.flow().invert_normal_scores(&Table::new(None, 1, scores.to_vec())?)?;
        let decoded = self.decode_each(&z, how)?;
        let unsolved = decoded.reports.iter().filter(|r| r.status == Status::NotConverged).count();
        Ok((decoded.samples.into_values(), unsolved))
    }
}
