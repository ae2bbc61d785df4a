//! Derivatives by differences, and comparisons of numbers on the host.

use resflow_backend::{Backend, Element, Key, Noise, Shape};

use super::tolerance;
use crate::error::Error;

/// The numbers of a tensor.
pub(super) fn down<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Vec<f64>, Error> {
    Ok(backend.download(x)?.into_iter().map(Element::to_f64).collect())
}

/// A tensor of numbers.
pub(super) fn up<B: Backend>(backend: &B, values: &[f64], shape: Shape) -> B::Tensor {
    let values: Vec<_> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
    backend.upload(&values, shape)
}

/// Standard normal numbers.
pub(super) fn normal<B: Backend>(backend: &B, key: Key, shape: Shape) -> B::Tensor {
    backend.noise(key, Noise::Normal, 0, shape)
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Σ|aᵢ bᵢ|.
pub(super) fn size(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

pub(super) fn largest(a: &[f64]) -> f64 {
    a.iter().fold(0.0, |m: f64, x| m.max(x.abs()))
}

/// The numbers that are furthest apart, if that is further than a tolerance, with their place. What is not
/// a number is far.
pub(super) fn apart(found: &[f64], expected: &[f64], tolerance: f64) -> Option<Apart> {
    let distance = |a: &Apart| if a.found == a.expected { 0.0 } else { (a.found - a.expected).abs() };
    let far = |d: f64| if d.is_nan() { f64::INFINITY } else { d };
    let pairs = found.iter().zip(expected).enumerate();
    let all = pairs.map(|(at, (&found, &expected))| Apart { at, found, expected });
    all.max_by(|a, b| far(distance(a)).total_cmp(&far(distance(b)))).filter(|worst| far(distance(worst)) > tolerance)
}

/// Compares numbers that were computed in two ways, up to rounding.
pub(super) fn differ<B: Backend>(found: &[f64], expected: &[f64]) -> Option<Apart> {
    apart(found, expected, tolerance::rounding::<B>() * (1.0 + largest(expected)))
}

/// Two numbers that should be one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Apart {
    pub(super) at: usize,
    pub(super) found: f64,
    pub(super) expected: f64,
}

impl Apart {
    /// Guesses the mistake that makes one of the other.
    pub(super) fn guess(&self) -> String {
        let ratio = self.found / self.expected;
        let near = |r: f64| (r - r.round()).abs() < 1e-3 && r.round().abs() > 1.0;
        if (ratio + 1.0).abs() < 1e-3 {
            ", of the wrong sign".into()
        } else if near(ratio) {
            format!(", {} times that", ratio.round())
        } else if near(1.0 / ratio) {
            format!(", 1/{} of that", (1.0 / ratio).round())
        } else {
            String::new()
        }
    }
}

/// The derivatives of a function at 0.
struct Slopes {
    /// By Richardson's extrapolation of central differences.
    central: Vec<f64>,
    /// From what is above 0 and from what is below alone: where a kink is near, one of them does not see it.
    sides: [Vec<f64>; 2],
    /// How large the function is.
    size: f64,
}

impl Slopes {
    fn of(step: f64, f: &mut dyn FnMut(f64) -> Result<Vec<f64>, Error>) -> Result<Self, Error> {
        let f0 = f(0.0)?;
        let (p1, m1, p2, m2) = (f(step)?, f(-step)?, f(2.0 * step)?, f(-2.0 * step)?);
        let each = |at: &dyn Fn(usize) -> f64| (0..f0.len()).map(at).collect::<Vec<_>>();
        Ok(Self {
            central: each(&|i| (8.0 * (p1[i] - m1[i]) - (p2[i] - m2[i])) / (12.0 * step)),
            sides: [
                each(&|i| (4.0 * p1[i] - p2[i] - 3.0 * f0[i]) / (2.0 * step)),
                each(&|i| (3.0 * f0[i] - 4.0 * m1[i] + m2[i]) / (2.0 * step)),
            ],
            size: largest(&p1).max(largest(&m1)),
        })
    }

    /// Of each number the one that is nearest to what was found.
    fn nearest(&self, found: &[f64]) -> Vec<f64> {
        let near = |i: usize| {
            let all = [self.central[i], self.sides[0][i], self.sides[1][i]];
            all.into_iter().min_by(|a, b| (a - found[i]).abs().total_cmp(&(b - found[i]).abs())).unwrap_or(f64::NAN)
        };
        (0..found.len()).map(near).collect()
    }
}

/// Where a derivative, whose terms are of a size, and differences of its function do not agree at any step.
pub(super) fn disagree<B: Backend>(
    found: &[f64],
    size: f64,
    mut f: impl FnMut(f64) -> Result<Vec<f64>, Error>,
) -> Result<Option<Apart>, Error> {
    let mut first = None;
    for step in tolerance::steps::<B>() {
        let slopes = Slopes::of(step, &mut f)?;
        let scale = size + largest(&slopes.central);
        let allowed = tolerance::derivative::<B>() * scale + tolerance::noise::<B>(slopes.size, step);
        if apart(found, &slopes.nearest(found), allowed).is_none() {
            return Ok(None);
        }
        first = first.or(apart(found, &slopes.central, allowed));
    }
    Ok(first)
}

/// The same of a gradient along a direction.
pub(super) fn disagree_along<B: Backend>(
    gradient: &[f64],
    direction: &[f64],
    mut f: impl FnMut(f64) -> Result<f64, Error>,
) -> Result<Option<Apart>, Error> {
    disagree::<B>(&[dot(gradient, direction)], size(gradient, direction), |h| Ok(vec![f(h)?]))
}

/// What differences say of a function that does not agree with a derivative of zero.
pub(super) fn moves<B: Backend>(f: impl FnMut(f64) -> Result<f64, Error>) -> Result<Option<f64>, Error> {
    Ok(disagree_along::<B>(&[0.0], &[0.0], f)?.map(|apart| apart.expected))
}

/// The Jacobian of each sample, `[n, d, d]`, of a map of samples by differences at a step.
pub(super) fn jacobian<B: Backend>(
    backend: &B,
    x: &B::Tensor,
    step: f64,
    mut f: impl FnMut(&B::Tensor) -> Result<B::Tensor, Error>,
) -> Result<B::Tensor, Error> {
    let shape = backend.shape(x);
    let (n, d) = (shape.rows(), shape.row_elements());
    let mut all = vec![0.0; n * d * d];
    for j in 0..d {
        let unit: Vec<f64> = (0..n * d).map(|e| f64::from(u8::from(e % d == j))).collect();
        let unit = up(backend, &unit, shape);
        let column = Slopes::of(step, &mut |h| down(backend, &f(&backend.axpy(h, &unit, x.clone()))?))?;
        for (at, value) in column.central.into_iter().enumerate() {
            all[at * d + j] = value;
        }
    }
    Ok(up(backend, &all, [n, d, d].into()))
}
