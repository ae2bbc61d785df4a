//! The tolerances of the checks, in one table. ε is [`Element::EPSILON`](resflow_backend::Element::EPSILON) of the
//! backend's numbers.
//!
//! | what is compared | allowed difference | f64 | f32 |
//! |---|---|---|---|
//! | the same numbers computed in another way | [`rounding`], of 1 + the largest of them | 9e−13 | 5e−4 |
//! | derivatives and log dets by differences | [`derivative`], of Σ\|terms\|, and the rounding of the function over the step | 1e−6 | 2e−2 |
//! | an inverse, forward and back | [`inverse`], of max(1, \|y\|) (1 + ‖∂x/∂y‖) | 1e−9 | 1e−3 |
//! | the mean of estimated log dets | [`STANDARD_ERRORS`] standard errors of the mean of [`REPLICATES`] | | |
//! | how much a pair is stretched | [`LIPSCHITZ`], of the bound: σ by power iteration is one from below | | |
//!
//! Differences are Richardson's extrapolation of central ones, at steps ε^⅕ and smaller by [`SHRINK`] and its square: a
//! derivative that agrees at one of them is right, since a larger step may reach over a kink. Where one is near, differences of
//! one side alone count too.

use resflow_backend::{Backend, Element as _};

/// By how much a step of differences is made smaller where they do not agree with a derivative.
pub const SHRINK: f64 = 1.0 / 16.0;
/// Standard errors by which a mean may be off; of normal estimates 2 in 10⁹ are further away.
pub const STANDARD_ERRORS: f64 = 6.0;
/// Independent estimates of each log det.
pub const REPLICATES: usize = 512;
/// The excess over the bound by which a pair may be stretched, relative to it.
pub const LIPSCHITZ: f64 = 1e-3;
/// Units of rounding of a function that differences may have.
const NOISE: f64 = 64.0;

/// For the same numbers computed in another way, relative to 1 + the largest of them.
pub fn rounding<B: Backend>() -> f64 {
    4096.0 * B::Elem::EPSILON
}

/// For derivatives by differences, relative to the sum of their terms' absolute values.
pub fn derivative<B: Backend>() -> f64 {
    64.0 * B::Elem::EPSILON.sqrt()
}

/// For inverses, relative to max(1, |y|) (1 + ‖∂x/∂y‖), with the accuracy of
/// [`Inversion::for_backend`](crate::invert::Inversion::for_backend).
pub fn inverse<B: Backend>() -> f64 {
    1e3 * crate::invert::Inversion::for_backend::<B>().accuracy()
}

/// The steps of differences, the largest first.
pub fn steps<B: Backend>() -> [f64; 3] {
    let first = B::Elem::EPSILON.powf(0.2);
    [first, first * SHRINK, first * SHRINK * SHRINK]
}

/// The error of differences at a step that rounding of a function of this size makes.
pub fn noise<B: Backend>(size: f64, step: f64) -> f64 {
    NOISE * B::Elem::EPSILON * (1.0 + size) / step
}
