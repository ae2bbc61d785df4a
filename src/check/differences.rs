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

/// The derivative of a function at 0, by Richardson's extrapolation of central differences, and how large
/// the function is.
fn slope(step: f64, f: &mut dyn FnMut(f64) -> Result<Vec<f64>, Error>) -> Result<(Vec<f64>, f64), Error> {
    let (p1, m1, p2, m2) = (f(step)?, f(-step)?, f(2.0 * step)?, f(-2.0 * step)?);
    let near = p1.iter().zip(&m1).map(|(p, m)| (p - m) / (2.0 * step));
    let far = p2.iter().zip(&m2).map(|(p, m)| (p - m) / (4.0 * step));
    let slope = near.zip(far).map(|(near, far)| (4.0 * near - far) / 3.0).collect();
    Ok((slope, largest(&p1).max(largest(&m1))))
}

/// Where a derivative, whose terms are of a size, and differences of its function do not agree at any step.
pub(super) fn disagree<B: Backend>(
    found: &[f64],
    size: f64,
    mut f: impl FnMut(f64) -> Result<Vec<f64>, Error>,
) -> Result<Option<Apart>, Error> {
    let mut first = None;
    for step in tolerance::steps::<B>() {
        let (expected, values) = slope(step, &mut f)?;
        let allowed = tolerance::derivative::<B>() * (size + largest(&expected)) + tolerance::noise::<B>(values, step);
        match apart(found, &expected, allowed) {
            None => return Ok(None),
            worst => first = first.or(worst),
        }
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
        let (column, _) = slope(step, &mut |h| down(backend, &f(&backend.axpy(h, &unit, x.clone()))?))?;
        for (at, value) in column.into_iter().enumerate() {
            all[at * d + j] = value;
        }
    }
    Ok(up(backend, &all, [n, d, d].into()))
}
