//! Normal scores: the triangular map of a mixture of Gaussians to the standard normal density (Rosenblatt 1952).
//!
//! Let p(x) = Σₖ πₖ N(x; mₖ, Σₖ) with Σₖ⁻¹ = AₖᵀAₖ, Aₖ lower triangular, and εₖ = Aₖ(x − mₖ). Within component k,
//! xᵢ given x₁ … xᵢ₋₁ is normal with score εₖᵢ and standard deviation 1/Aₖᵢᵢ, so that
//!
//! F(xᵢ | x₁ … xᵢ₋₁) = Σₖ wₖᵢ Φ(εₖᵢ),  wₖᵢ ∝ πₖ Πⱼ₍ⱼ₎﹤ᵢ Aₖⱼⱼ φ(εₖⱼ),  uᵢ = Φ⁻¹(F(xᵢ | x₁ … xᵢ₋₁)).
//!
//! u is standard normal where x is distributed by p, and log|det ∂u/∂x| = log p(x) − log N(u; 0, I). Tails are computed
//! from the smaller of log F and log(1 − F), so that a score of 30 is as good as one of 3. Going back, xᵢ lies between
//! the smallest and the largest of its components' quantiles at uᵢ; Newton's method is kept inside that bracket. Hundreds of
//! deviations out, where a component that is far away holds all of a tail, F is flat to double precision: such a score does
//! not lead back.

use libm::erfc;
use resflow_backend::Backend;
use statrs::distribution::{ContinuousCDF as _, StudentsT};

use super::{Covariance, Mixture};

/// ln √(2π).
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_7;
/// What is so much smaller than a sum adds less than rounding to it, be there a thousand such.
const NEGLIGIBLE: f64 = 1e-20;
/// Sums above have all their digits; of smaller ones logarithms are summed.
const FAR_OUT: f64 = 1e-200;
/// Steps of a solve, of which most make a handful; bisection alone halves the bracket below rounding in these.
const STEPS: usize = 200;

/// Computes ln Φ(z), for every z to rounding of its own size.
pub(super) fn log_cdf(z: f64) -> f64 {
    if z > -8.0 {
        let upper = 0.5 * erfc(z / std::f64::consts::SQRT_2);
        // near 1 the complement has the digits
        return if z > 1.0 { (-upper).ln_1p() } else { (0.5 * erfc(-z / std::f64::consts::SQRT_2)).ln() };
    }
    // Mills' ratio as a continued fraction, from the inside out
    let t = -z;
    let ratio = (1..=24).rev().fold(t, |tail, k| t + f64::from(k) / tail);
    -0.5 * z * z - HALF_LN_TAU - ratio.ln()
}

/// Returns the z with ln Φ(z) = `log_p`, for `log_p` ≤ ln ½.
pub(super) fn quantile_of_log(log_p: f64) -> f64 {
    if log_p == f64::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    // ln Φ is concave: Newton's method comes from the left without leaving it
    let mut z = -(-2.0 * log_p).max(0.0).sqrt() - 1.0;
    for _ in 0..STEPS {
        let value = log_cdf(z);
        let slope = (-0.5 * z * z - HALF_LN_TAU - value).exp();
        let step = (log_p - value) / slope;
        z += step;
        if step.abs() <= 4.0 * f64::EPSILON * z.abs().max(1.0) {
            break;
        }
    }
    z
}

/// ln Σ eᵃ; −∞ of nothing.
fn log_sum(terms: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = terms.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY { largest } else { largest + terms.map(|t| (t - largest).exp()).sum::<f64>().ln() }
}

/// xᵢ within a component, given the coordinates before it: εₖᵢ = shift + scale·xᵢ, and wₖᵢ.
#[derive(Clone, Copy)]
struct Conditional {
    log_weight: f64,
    weight: f64,
    shift: f64,
    scale: f64,
}

impl Conditional {
    /// wₖᵢΦ(ε), wₖᵢΦ(−ε) and the component's part of the density.
    fn terms(&self, x: f64) -> [f64; 3] {
        let e = self.shift + self.scale * x;
        let smaller = 0.5 * erfc(e.abs() / std::f64::consts::SQRT_2);
        let (lower, upper) = if e < 0.0 { (smaller, 1.0 - smaller) } else { (1.0 - smaller, smaller) };
        [lower, upper, self.scale * (-0.5 * e * e - HALF_LN_TAU).exp()].map(|term| self.weight * term)
    }

    /// Their logarithms, where they themselves may be too small.
    fn log_terms(&self, x: f64) -> [f64; 3] {
        let e = self.shift + self.scale * x;
        let density = self.scale.ln() - 0.5 * e * e - HALF_LN_TAU;
        [log_cdf(e), log_cdf(-e), density].map(|term| self.log_weight + term)
    }
}

/// The distribution of xᵢ given the coordinates before it.
struct Conditionals(Vec<Conditional>);

impl Conditionals {
    /// ln F and ln(1 − F) at xᵢ, and the logarithm of the conditional density.
    fn evaluate(&self, x: f64) -> [f64; 3] {
        let heaviest = self.0.iter().max_by(|a, b| a.log_weight.total_cmp(&b.log_weight));
        let least = heaviest.map_or(0.0, |c| c.terms(x).into_iter().fold(f64::INFINITY, f64::min));
        // what is below rounding of each of the three sums is not looked at
        let counts = |c: &&Conditional| c.weight * c.scale.max(1.0) > NEGLIGIBLE * least;
        let sums = self.0.iter().filter(counts).fold([0.0; 3], |sums, c| {
            let terms = c.terms(x);
            std::array::from_fn(|i| sums[i] + terms[i])
        });
        if sums.iter().all(|sum| *sum > FAR_OUT) {
            return sums.map(f64::ln);
        }
        let terms: Vec<[f64; 3]> = self.0.iter().map(|c| c.log_terms(x)).collect();
        std::array::from_fn(|i| log_sum(terms.iter().map(|terms| terms[i])))
    }
}

/// The rows that are mapped at once.
const ROWS: usize = 64;

/// Maps rows, `[n, d]`, some at a time, on the backend's threads.
pub(super) fn map_rows<B: Backend>(
    backend: &B,
    dimension: usize,
    rows: &[f64],
    map: impl Fn(&[f64]) -> Vec<f64> + Sync,
) -> Vec<f64> {
    let parts: Vec<&[f64]> = rows.chunks(ROWS * dimension).collect();
    backend.run(parts.len(), |i| map(parts[i])).concat()
}

/// The walk along the coordinates of one sample.
struct Walk<'a> {
    mixture: &'a Mixture,
    /// ln wₖᵢ up to a constant, `[K]`.
    log_weights: Vec<f64>,
    /// xⱼ − mₖⱼ of the coordinates so far, `[K, d]`.
    offsets: Vec<f64>,
    at: usize,
}

impl Walk<'_> {
    fn conditionals(&self) -> Conditionals {
        let (d, i) = (self.mixture.dimension(), self.at);
        let total = log_sum(self.log_weights.iter().copied());
        let one = |k: usize| {
            let factor = self.mixture.factor(k);
            let (row, scale) = match self.mixture.config().covariance {
                Covariance::Full => (&factor[i * d..i * d + i], factor[i * d + i]),
                Covariance::Diagonal => (&factor[..0], factor[i]),
            };
            let before: f64 = row.iter().zip(&self.offsets[k * d..]).map(|(a, x)| a * x).sum();
            let (shift, log_weight) = (before - scale * self.mixture.mean(k)[i], self.log_weights[k] - total);
            Conditional { log_weight, weight: log_weight.exp(), shift, scale }
        };
        Conditionals((0..self.log_weights.len()).map(one).collect())
    }

    fn go_on(&mut self, conditionals: &Conditionals, x: f64) {
        let d = self.mixture.dimension();
        for (k, Conditional { shift, scale, .. }) in conditionals.0.iter().enumerate() {
            let e = shift + scale * x;
            self.log_weights[k] += scale.ln() - 0.5 * e * e;
            self.offsets[k * d + self.at] = x - self.mixture.mean(k)[self.at];
        }
        // far out all weights are tiny: what counts is their ratio
        let largest = self.log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest.is_finite() {
            self.log_weights.iter_mut().for_each(|w| *w -= largest);
        }
        self.at += 1;
    }
}

/// The score of a value whose ln F and ln(1 − F) these are.
fn score(lower: f64, upper: f64) -> f64 {
    if lower <= upper {
        quantile_of_log(lower.min(-std::f64::consts::LN_2))
    } else {
        -quantile_of_log(upper.min(-std::f64::consts::LN_2))
    }
}

impl Mixture {
    fn walk(&self) -> Walk<'_> {
        let log_weights = self.weights().iter().map(|w| w.ln()).collect();
        Walk { mixture: self, log_weights, offsets: vec![0.0; self.means().len()], at: 0 }
    }

    /// Computes the normal scores u of rows x, both `[n, d]`: they are standard normal where x is distributed by the
    /// mixture, and log|det ∂u/∂x| = log p(x) − log N(u; 0, I).
    pub fn to_normal(&self, rows: &[f64]) -> Vec<f64> {
        rows.chunks_exact(self.dimension()).flat_map(|x| self.row_to_normal(x)).collect()
    }

    /// Computes the rows x of normal scores u, both `[n, d]`.
    pub fn invert_normal(&self, scores: &[f64]) -> Vec<f64> {
        scores.chunks_exact(self.dimension()).flat_map(|u| self.invert_row(u)).collect()
    }

    fn row_to_normal(&self, x: &[f64]) -> Vec<f64> {
        let mut walk = self.walk();
        x.iter()
            .map(|&x| {
                let conditionals = walk.conditionals();
                let [lower, upper, _] = conditionals.evaluate(x);
                walk.go_on(&conditionals, x);
                score(lower, upper)
            })
            .collect()
    }

    fn invert_row(&self, u: &[f64]) -> Vec<f64> {
        let mut walk = self.walk();
        u.iter()
            .map(|&u| {
                let conditionals = walk.conditionals();
                let x = conditionals.solve(u);
                walk.go_on(&conditionals, x);
                x
            })
            .collect()
    }
}

impl Conditionals {
    /// Finds the xᵢ whose score is u.
    fn solve(&self, u: f64) -> f64 {
        if !u.is_finite() {
            return u;
        }
        // components that have no weight here say nothing of where x is
        let heaviest = self.0.iter().map(|c| c.log_weight).fold(f64::NEG_INFINITY, f64::max);
        let there = self.0.iter().filter(|c| c.log_weight > heaviest - 1400.0 - 0.5 * u * u);
        let quantiles = there.map(|c| (u - c.shift) / c.scale);
        let (mut low, mut high) =
            quantiles.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let mut x = f64::midpoint(low, high);
        let mut step = high - low;
        for _ in 0..STEPS {
            let [lower, upper, density] = self.evaluate(x);
            let found = score(lower, upper);
            if found < u {
                low = x;
            } else {
                high = x;
            }
            let exact = (found - u).abs() <= 4.0 * f64::EPSILON * u.abs().max(1.0);
            if exact || high - low <= 2.0 * f64::EPSILON * low.abs().max(high.abs()) {
                break;
            }
            // du/dx = p(x)/φ(u)
            let slope = (density + 0.5 * found * found + HALF_LN_TAU).exp();
            let newton = x + (u - found) / slope;
            if slope.is_finite() && (newton - x).abs() <= 2.0 * f64::EPSILON * x.abs() {
                break;
            }
            // between components the slope is next to nothing: what leaves the bracket, or is not half of the step before, halves it
            let is_good = slope.is_finite() && newton > low && newton < high && (newton - x).abs() <= 0.5 * step;
            let next = if is_good { newton } else { f64::midpoint(low, high) };
            step = (next - x).abs();
            x = next;
        }
        x
    }
}

/// The normal score of a number that has Student's t density with ν degrees of freedom.
pub(super) fn student_to_normal(z: f64, freedom: f64) -> f64 {
    let Ok(t) = StudentsT::new(0.0, 1.0, freedom) else { return f64::NAN };
    // the smaller tail has the digits
    let score = quantile_of_log(t.cdf(-z.abs()).ln().min(-std::f64::consts::LN_2));
    if z < 0.0 { score } else { -score }
}

/// The number of a normal score.
pub(super) fn invert_student(u: f64, freedom: f64) -> f64 {
    let (target, mut low, mut high) = (u.abs(), 0.0, u.abs() + 1.0);
    while student_to_normal(high, freedom) < target && high < f64::MAX / 2.0 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            break;
        }
        if student_to_normal(middle, freedom) < target { low = middle } else { high = middle }
    }
    f64::midpoint(low, high).copysign(u)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_the_normal_distribution() {
        // mpmath, 50 digits: ln Φ(z)
        for (z, expected) in [
            (0.0, -std::f64::consts::LN_2),
            (1.0, -0.172_753_779_023_449_9),
            (-1.0, -1.841_021_645_009_263_6),
            (-7.9, -34.206_228_170_981_71),
            (-8.1, -35.830_502_890_801_47),
            (-40.0, -804.608_442_013_753_8),
            (9.0, -1.128_588_405_953_840_6e-19),
        ] {
            let found = log_cdf(z);
            assert!((found - expected).abs() <= 1e-13 * expected.abs(), "{z}: {found:e} and {expected:e}");
        }
        for z in [-1e-9, -0.5, -3.0, -8.0, -37.0, -1000.0] {
            let found = quantile_of_log(log_cdf(z));
            assert!((found - z).abs() <= 1e-13 * z.abs().max(1.0), "{z}: {found}");
        }
    }

    fn mixtures() -> [Mixture; 2] {
        let (weights, means) = (vec![0.3, 0.7], vec![-2.0, 0.5, 1.5, -1.0]);
        let full = vec![2.0, 0.0, -0.7, 0.5, 0.4, 0.0, 1.2, 3.0];
        let mixture = |covariance, factors| Mixture::new(2, covariance, weights.clone(), means.clone(), factors);
        [(Covariance::Full, full), (Covariance::Diagonal, vec![2.0, 0.5, 0.4, 3.0])]
            .map(|(covariance, factors)| mixture(covariance, factors).expect("a mixture"))
    }

    #[test]
    fn scores_go_back_and_have_the_log_det() {
        let rows = [[0.0, 0.0], [-2.1, 1.0], [3.0, -4.0], [-30.0, 20.0], [60.0, -55.0], [1e4, 3.0]];
        for (mixture, x) in mixtures().iter().flat_map(|m| rows.map(|x| (m, x))) {
            let u = mixture.to_normal(&x);
            let again = mixture.invert_normal(&u);
            for (x, again) in x.iter().zip(&again) {
                assert!((x - again).abs() <= 1e-11 * x.abs().max(1.0), "{x} and {again}");
            }
            // the map is triangular: its determinant is that of its diagonal
            let h = 1e-5;
            let slope = |i: usize| {
                let moved = |h: f64| {
                    let mut x = x;
                    x[i] += h;
                    mixture.to_normal(&x)[i]
                };
                (moved(h) - moved(-h)) / (2.0 * h)
            };
            let log_det = mixture.log_densities(&x)[0] + 0.5 * (u[0] * u[0] + u[1] * u[1]) + 2.0 * HALF_LN_TAU;
            let found = slope(0).ln() + slope(1).ln();
            assert!((found - log_det).abs() < 1e-6, "{x:?}: {found} and {log_det}");
        }
    }

    #[test]
    fn sums_are_those_of_all_logarithms() {
        let one = |k: i32| {
            let log_weight = -3.0 * f64::from(k);
            let scale = 10_f64.powf(f64::from(k * 7 % 13) / 2.0 - 3.0);
            Conditional { log_weight, weight: log_weight.exp(), shift: 5.0 * (0.7 * f64::from(k)).sin(), scale }
        };
        let conditionals = Conditionals((0..48).map(one).collect());
        for x in [-1e5, -40.0, -3.0, -0.2, 0.0, 0.1, 2.0, 30.0, 1e5] {
            let terms: Vec<_> = conditionals.0.iter().map(|c| c.log_terms(x)).collect();
            for (i, found) in conditionals.evaluate(x).into_iter().enumerate() {
                let expected = log_sum(terms.iter().map(|terms| terms[i]));
                assert!((found - expected).abs() <= 1e-13 * expected.abs().max(1.0), "{x}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn scores_of_students_t() {
        for freedom in [1.0, 2.5, 30.0] {
            for z in [-1e6, -3.0, -0.1, 0.0, 0.7, 40.0] {
                let again = invert_student(student_to_normal(z, freedom), freedom);
                assert!((z - again).abs() <= 1e-6 * z.abs().max(1.0), "{freedom}: {z} and {again}");
            }
        }
        // the upper quartile of a Cauchy is 1
        assert!((student_to_normal(1.0, 1.0) - 0.674_489_750_196_081_7).abs() < 1e-10);
    }
}
