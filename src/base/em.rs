//! Mixtures of Gaussians fitted by expectation and maximisation (Dempster, Laird and Rubin 1977), on the host in double
//! precision. What is maximised is the penalised mean log likelihood
//!
//! J = Σᵢ wᵢ log p(xᵢ)/W − ½ λ Σ_k tr(Σ_k⁻¹ D),  W = Σ wᵢ,
//!
//! with D the variances of the columns, whose maximisation has a closed form: Σ_k = S_k + λ W/N_k · D, where N_k is the
//! weight of a component and S_k the covariance of its rows. So covariances are bounded below relative to the data's
//! scale, by more where a component has few rows, and J never falls (but by rounding, and where a component of too few rows
//! is removed): a plain ridge would not promise that.
//! Invariant: a weight counts as that many equal rows; the result is a function of the rows, the settings and the key.
//!
//! Written here and not taken from linfa-clustering 0.8, which fits full covariances only, takes no weights, tells no log
//! likelihood of held-out rows and would bring a second array library with it.

use std::borrow::Cow;

use resflow_backend::Key;

use super::allowance::Allowance;
use super::components::LANES;
use super::kmeans::clusters;
use super::{BaseConfig, Covariance, Mixture, MixtureConfig, Rows};
use crate::data::permutation;
use crate::error::{ConfigError, Error};

/// Rows on which starts are compared.
const START_ROWS: usize = 4096;
/// Iterations after which starts are compared.
const START_ITERATIONS: usize = 4;
/// A component with a smaller share of the weight than this is removed, however few rows it may have.
const LEAST_SHARE: f64 = 1e-8;
/// No component is removed for its few rows that has this part of an even share.
const EVEN_SHARE: f64 = 0.5;
/// A row has no say in a component that has less than this share in it.
const NEGLIGIBLE: f64 = 1e-14;

/// The settings of a fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixtureFit {
    /// K, the number of components; fewer are left where components die or fewer rows are distinct.
    pub components: usize,
    /// Their covariances.
    pub covariance: Covariance,
    /// λ: the least variance of a component in any direction, as a share of the columns' variances, were all rows its.
    pub regularisation: f64,
    /// The least deviation of a component in any direction, in the units of the rows; for columns without any variance.
    pub least_scale: f64,
    /// A component with fewer rows is removed, unless that is half of an even share: a component of one or two outliers
    /// would make just these rows the likeliest of all. Weight counts as rows, in units of the mean weight if that is below 1.
    pub least_rows: f64,
    /// Starts that are tried on a part of the rows.
    pub restarts: usize,
    /// Ends once J grows by less in an iteration, nats.
    pub tolerance: f64,
    /// The most iterations.
    pub most_iterations: usize,
    /// Of more rows a random part of so many is used.
    pub most_rows: usize,
}

impl MixtureFit {
    /// The default settings for a number of components.
    pub fn new(components: usize, covariance: Covariance) -> Self {
        Self {
            components,
            covariance,
            regularisation: 1e-6,
            least_scale: 0.0,
            least_rows: 5.0,
            restarts: 4,
            tolerance: 1e-6,
            most_iterations: 300,
            most_rows: 50_000,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        BaseConfig::Mixture(MixtureConfig { components: self.components, covariance: self.covariance }).check()?;
        let wrong = |name, value, expected| Err(ConfigError::OutOfRange { name, value, expected });
        if !(self.regularisation >= 1e-12 && self.regularisation.is_finite()) {
            return wrong("regularisation", self.regularisation, "a finite number, 1e-12 or above");
        }
        if !(self.least_scale >= 0.0 && self.least_scale.is_finite()) {
            return wrong("least_scale", self.least_scale, "a finite number, 0 or above");
        }
        if !(self.least_rows >= 0.0 && self.least_rows.is_finite()) {
            return wrong("least_rows", self.least_rows, "a finite number, 0 or above");
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return wrong("tolerance", self.tolerance, "a finite number of nats, 0 or above");
        }
        for (name, value) in
            [("restarts", self.restarts), ("most_iterations", self.most_iterations), ("most_rows", self.most_rows)]
        {
            if value == 0 {
                return wrong(name, 0.0, "1 or more");
            }
        }
        Ok(())
    }

    /// Fits a mixture to rows.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for settings out of range, [`Error::Input`] if a column is constant and `least_scale` is
    /// 0, or if numbers of the rows are so large that their squares overflow.
    pub fn fit(&self, rows: Rows<'_>, key: Key) -> Result<FittedMixture, Error> {
        self.fit_within(rows, key, &mut Allowance::new(u64::MAX, &|| false))
    }

    /// Fits a mixture in a number of multiply-adds, after which no further iteration is begun.
    pub(super) fn fit_within(
        &self,
        rows: Rows<'_>,
        key: Key,
        allowance: &mut Allowance<'_>,
    ) -> Result<FittedMixture, Error> {
        self.check()?;
        let part = Part::of(rows, self.most_rows, key.named("rows"));
        let rows = part.rows()?;
        let scale = self.scale(&rows)?;
        let job = Job { fit: self, rows, scale: &scale };
        let start = job.start(key.named("start"), allowance)?;
        job.run(start, self.most_iterations, allowance)
    }

    /// D, the variances of the columns or what stands for them.
    fn scale(&self, rows: &Rows<'_>) -> Result<Vec<f64>, Error> {
        let (_, variance) = rows.moments();
        let least = self.least_scale * self.least_scale / self.regularisation;
        let scale: Vec<f64> = variance.into_iter().map(|v| v.max(least)).collect();
        match scale.iter().position(|v| !(v.is_finite() && *v > 0.0)) {
            None => Ok(scale),
            Some(column) if scale[column] == 0.0 => Err(Error::Input(format!(
                "column {column} (counted from 0) is constant: a density has no bound there; leave it out, or set \
                 `least_scale`"
            ))),
            Some(column) => Err(Error::Input(format!(
                "the numbers of column {column} (counted from 0) are so large that their squares overflow: standardise \
                 the rows"
            ))),
        }
    }
}

/// A mixture and how its fit went.
#[derive(Debug, Clone, PartialEq)]
pub struct FittedMixture {
    /// The mixture.
    pub mixture: Mixture,
    /// J before each iteration and at the end, nats, since a component was last removed; it never falls, but by rounding.
    pub objective: Vec<f64>,
    /// `true` if the fit ended because J stood still.
    pub converged: bool,
}

/// Rows that stand for more.
struct Part<'a> {
    dimension: usize,
    values: Cow<'a, [f64]>,
    weights: Option<Cow<'a, [f64]>>,
}

impl<'a> Part<'a> {
    /// Takes all rows, or a random part of those that weigh anything if they are more than `most`.
    fn of(rows: Rows<'a>, most: usize, key: Key) -> Self {
        let dimension = rows.dimension();
        if rows.count() <= most {
            let weights = rows.weights().map(Cow::Borrowed);
            return Self { dimension, values: Cow::Borrowed(rows.values()), weights };
        }
        let weighing: Vec<usize> = (0..rows.count()).filter(|&i| rows.weight(i) > 0.0).collect();
        let mut chosen: Vec<usize> =
            permutation(weighing.len(), key).into_iter().take(most).map(|at| weighing[at]).collect();
        chosen.sort_unstable();
        let values: Vec<f64> = chosen.iter().flat_map(|&i| rows.row(i)).copied().collect();
        let weights = rows.weights().map(|_| chosen.iter().map(|&i| rows.weight(i)).collect::<Vec<f64>>());
        Self { dimension, values: Cow::Owned(values), weights: weights.map(Cow::Owned) }
    }

    fn rows(&self) -> Result<Rows<'_>, Error> {
        Rows::new(self.dimension, &self.values, self.weights.as_deref())
    }
}

/// A fit at work.
struct Job<'a> {
    fit: &'a MixtureFit,
    rows: Rows<'a>,
    /// D.
    scale: &'a [f64],
}

impl Job<'_> {
    /// The size of a component's factor.
    fn factor_numbers(&self) -> usize {
        let MixtureFit { components, covariance, .. } = *self.fit;
        MixtureConfig { components, covariance }.factor_numbers(self.rows.dimension())
    }

    /// The best of some starts after a few iterations on a part of the rows.
    fn start(&self, key: Key, allowance: &mut Allowance<'_>) -> Result<Mixture, Error> {
        let part = Part::of(self.rows, START_ROWS, key.named("rows"));
        let job = Job { fit: self.fit, rows: part.rows()?, scale: self.scale };
        let scales: Vec<f64> = self.scale.iter().map(|v| 1.0 / v).collect();
        let mut best: Option<(f64, Mixture)> = None;
        // of a single component all starts are one
        let restarts = if self.fit.components == 1 { 1 } else { self.fit.restarts };
        for restart in 0..restarts {
            let found = clusters(&job.rows, &scales, self.fit.components, key.split(restart as u64));
            let mixture = job.of_clusters(&found.centres, &found.nearest)?;
            if restarts == 1 {
                return Ok(mixture);
            }
            let fitted = job.run(mixture, START_ITERATIONS, allowance)?;
            let value = fitted.objective.last().copied().unwrap_or(f64::NEG_INFINITY);
            if best.as_ref().is_none_or(|(most, _)| value > *most) {
                best = Some((value, fitted.mixture));
            }
        }
        best.map(|(_, mixture)| mixture).ok_or_else(|| Error::Input("no start of a mixture was tried".into()))
    }

    /// The mixture of rows that each belong to one component.
    fn of_clusters(&self, centres: &[f64], nearest: &[usize]) -> Result<Mixture, Error> {
        let mut sums = Sums::new(centres.to_vec(), self.rows.dimension(), self.factor_numbers());
        for (i, &k) in nearest.iter().enumerate() {
            sums.add(k, self.rows.weight(i), self.rows.row(i));
        }
        self.maximise(&sums)
    }

    /// Iterates from a mixture on.
    fn run(
        &self,
        start: Mixture,
        most_iterations: usize,
        allowance: &mut Allowance<'_>,
    ) -> Result<FittedMixture, Error> {
        let mut mixture = start;
        let mut objective: Vec<f64> = Vec::new();
        let mut iteration = 0;
        loop {
            let (log_likelihood, sums) = self.expect(&mixture);
            let cost = mixture.config().components * (self.factor_numbers() + self.rows.dimension());
            allowance.spend((self.rows.count() * cost) as u64)?;
            let value = log_likelihood - self.penalty(&mixture);
            if !value.is_finite() {
                return Err(Error::Input(
                    "the rows are so far apart that their density is 0 to every precision: standardise them".into(),
                ));
            }
            let converged = objective.last().is_some_and(|last| value - last < self.fit.tolerance);
            objective.push(value);
            if converged || allowance.work() == 0 || iteration >= most_iterations {
                return Ok(FittedMixture { mixture, objective, converged });
            }
            let next = self.maximise(&sums)?;
            if next.config().components < mixture.config().components {
                objective.clear();
            }
            mixture = next;
            iteration += 1;
        }
    }

    /// ½ λ Σ_k tr(Σ_k⁻¹ D) = ½ λ Σ A_k,ij² D_j.
    fn penalty(&self, mixture: &Mixture) -> f64 {
        let d = self.rows.dimension();
        let square = |(j, a): (usize, &f64)| a * a * self.scale[j % d];
        0.5 * self.fit.regularisation * mixture.factors().iter().enumerate().map(square).sum::<f64>()
    }

    /// Computes the mean log likelihood, and the sums that the next mixture is made of.
    fn expect(&self, mixture: &Mixture) -> (f64, Sums) {
        let d = self.rows.dimension();
        let mut sums = Sums::new(mixture.means().to_vec(), d, self.factor_numbers());
        let mut terms = mixture.workspace();
        let mut total = 0.0;
        for (block, some) in self.rows.values().chunks(LANES * d).enumerate() {
            let densities = terms.evaluate(mixture, some);
            for (lane, row) in some.chunks_exact(d).enumerate() {
                let weight = self.rows.weight(block * LANES + lane);
                if weight == 0.0 {
                    continue;
                }
                total += weight * densities[lane];
                for (k, shares) in terms.shares.iter().enumerate() {
                    if shares[lane] >= NEGLIGIBLE {
                        sums.add(k, weight * shares[lane], row);
                    }
                }
            }
        }
        (total / self.rows.total_weight(), sums)
    }

    /// The mixture that maximises J given each component's part in the rows.
    fn maximise(&self, sums: &Sums) -> Result<Mixture, Error> {
        let d = self.rows.dimension();
        let total = self.rows.total_weight();
        let (mut weights, mut means, mut factors) = (Vec::new(), Vec::new(), Vec::new());
        let components = sums.counts.len();
        // weights with a mean below 1 count no rows, but shares of them
        let rows = (0..self.rows.count()).filter(|&i| self.rows.weight(i) > 0.0).count();
        let unit = (total / rows as f64).min(1.0);
        let few = (unit * self.fit.least_rows).min(EVEN_SHARE * total / components as f64);
        let least = few.max(LEAST_SHARE * total);
        for k in (0..components).filter(|&k| sums.counts[k] > least) {
            let count = sums.counts[k];
            let shift: Vec<f64> = sums.shifts(k).iter().map(|s| s / count).collect();
            let ridge = self.fit.regularisation * total / count;
            let products = sums.products(k);
            let factor = match self.fit.covariance {
                Covariance::Diagonal => {
                    let one = |j: usize| (products[j] / count - shift[j] * shift[j]).max(0.0) + ridge * self.scale[j];
                    Some((0..d).map(|j| one(j).sqrt().recip()).collect())
                }
                Covariance::Full => {
                    let mut covariance = products.iter().map(|p| p / count).collect::<Vec<_>>();
                    for i in 0..d {
                        (0..=i).for_each(|j| covariance[i * d + j] -= shift[i] * shift[j]);
                    }
                    precision_factor(d, &covariance, self.scale, ridge)
                }
            };
            let factor: Vec<f64> = factor.filter(|a: &Vec<f64>| a.iter().all(|x| x.is_finite())).ok_or_else(|| {
                Error::Input("a covariance of the rows is not finite or singular: standardise them".into())
            })?;
            weights.push(count);
            means.extend(sums.centre(k).iter().zip(&shift).map(|(c, s)| c + s));
            factors.extend(factor);
        }
        Ok(Mixture::of_parts(d, self.fit.covariance, weights, means, factors))
    }
}

/// Sums over rows, weighted by the parts that components have in them.
struct Sums {
    dimension: usize,
    size: usize,
    /// What the rows of each component are counted from, `[K, d]`: sums of squares about 0 would cancel.
    centres: Vec<f64>,
    counts: Vec<f64>,
    /// Σ (x − c), `[K, d]`.
    shifts: Vec<f64>,
    /// Σ (x − c)(x − c)ᵀ, its lower triangle `[K, d, d]`, or its diagonal `[K, d]`.
    products: Vec<f64>,
    centred: Vec<f64>,
}

impl Sums {
    fn new(centres: Vec<f64>, dimension: usize, size: usize) -> Self {
        let components = centres.len() / dimension;
        Self {
            dimension,
            size,
            counts: vec![0.0; components],
            shifts: vec![0.0; components * dimension],
            products: vec![0.0; components * size],
            centred: vec![0.0; dimension],
            centres,
        }
    }

    fn centre(&self, k: usize) -> &[f64] {
        &self.centres[k * self.dimension..(k + 1) * self.dimension]
    }

    fn shifts(&self, k: usize) -> &[f64] {
        &self.shifts[k * self.dimension..(k + 1) * self.dimension]
    }

    fn products(&self, k: usize) -> &[f64] {
        &self.products[k * self.size..(k + 1) * self.size]
    }

    fn add(&mut self, k: usize, weight: f64, row: &[f64]) {
        let d = self.dimension;
        self.counts[k] += weight;
        let own = k * d..(k + 1) * d;
        for ((c, x), centre) in self.centred.iter_mut().zip(row).zip(&self.centres[own.clone()]) {
            *c = x - centre;
        }
        self.shifts[own].iter_mut().zip(&self.centred).for_each(|(sum, c)| *sum += weight * c);
        let products = &mut self.products[k * self.size..(k + 1) * self.size];
        if self.size == d {
            products.iter_mut().zip(&self.centred).for_each(|(sum, c)| *sum += weight * c * c);
            return;
        }
        for (i, products) in products.chunks_exact_mut(d).enumerate() {
            let scaled = weight * self.centred[i];
            products[..=i].iter_mut().zip(&self.centred).for_each(|(sum, c)| *sum += scaled * c);
        }
    }
}

/// The lower triangular A with AᵀA = (S + ridge·D)⁻¹, from the lower triangle of S; where rounding leaves that singular,
/// with more of D. `None` if it is not finite.
fn precision_factor(d: usize, covariance: &[f64], scale: &[f64], ridge: f64) -> Option<Vec<f64>> {
    let mut ridge = ridge;
    for _ in 0..40 {
        let mut lower = covariance.to_vec();
        (0..d).for_each(|i| lower[i * d + i] += ridge * scale[i]);
        if cholesky(d, &mut lower) {
            return Some(inverse(d, &lower));
        }
        ridge *= 10.0;
    }
    None
}

/// Turns the lower triangle of a matrix into its Cholesky factor; `false` if it is not positive definite.
fn cholesky(d: usize, a: &mut [f64]) -> bool {
    for j in 0..d {
        for i in j..d {
            let known: f64 = (0..j).map(|k| a[i * d + k] * a[j * d + k]).sum();
            let rest = a[i * d + j] - known;
            if i == j {
                // what is left of a variance that the columns before explain is rounding
                let definite = rest > 4.0 * f64::EPSILON * d as f64 * a[j * d + j];
                if !definite {
                    return false;
                }
                a[j * d + j] = rest.sqrt();
            } else {
                a[i * d + j] = rest / a[j * d + j];
            }
        }
    }
    true
}

/// The inverse of a lower triangular matrix, with zeros above the diagonal.
fn inverse(d: usize, lower: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; d * d];
    for i in 0..d {
        let (done, rest) = out.split_at_mut(i * d);
        let row = &mut rest[..d];
        for k in 0..i {
            let factor = lower[i * d + k];
            row[..=k].iter_mut().zip(&done[k * d..=k * d + k]).for_each(|(sum, a)| *sum -= factor * a);
        }
        let pivot = lower[i * d + i];
        row[..i].iter_mut().for_each(|x| *x /= pivot);
        row[i] = pivot.recip();
    }
    out
}
