//! The distances at which a result may lie from the reference: all tolerances, in one table.
//!
//! The unit is [`Element::EPSILON`]. What is measured depends on how errors arise:
//!
//! | operation | units | of what |
//! |---|---|---|
//! | transfer, layout, select, `Neg` `Abs` `Floor` `IsFinite` `Max` `Min` `Less` `LessEqual`, `Reduce::Max`, `all_finite` | 0 | exact |
//! | Rademacher and uniform noise | 0 | exact |
//! | `Add` `Sub` `Mul` `Square` | 1 | the result |
//! | `Div` `Reciprocal` `Sqrt` | 4 | the result |
//! | `Exp` `ExpM1` `Ln` `Ln1p` `Tanh` | 4 | the result, and as much of the argument |
//! | `Sin` `Cos` | 4 | the same, and 8 absolutely |
//! | `affine` `axpy` | [`AFFINE`] | Σ\|terms\| |
//! | sums, inner products, matmul, convolutions, series | [`SUM`]·√terms | Σ\|terms\| |
//! | normal noise | [`NORMAL`] | 1 + \|x\| |
//! | activations | [`ACTIVATION`] | see [`activation`](crate::activation) |
//! | `lu` | [`LU`]·d·κ | ‖A⁻¹‖, and 1 for ln\|det\| |
//! | splines | [`SPLINE`] | see [`spline`](mod@crate::spline) |
//! | bounded scales and shifts | [`ACTIVATION`]·(1 + A) | see [`bounded_affine`](mod@crate::bounded_affine) |
//! | `adam_step` | [`ADAM`] | Σ\|terms\| |
//!
//! "As much of the argument" allows f(x(1 + ε)) for f(x), the honest bound for a processor that scales its argument
//! first, and still asks for relative accuracy near a zero of f. An override may differ from its composition by twice
//! the units, since each may be off in its own direction.
//!
//! Everywhere numbers below [`Element::TINY`] may be taken as zero: many processors flush subnormals.

use resflow_backend::{Binary, Element, Unary};

use crate::reference::{Array, slope};

/// Units of Σ|terms| for α x + β, whose coefficients are rounded too.
pub const AFFINE: f64 = 2.0;
/// Units of Σ|terms|·√terms for sums in any order: rounding errors add like a random walk.
pub const SUM: f64 = 2.0;
/// Units of 1 + |x| for normal noise: Box and Muller's transform loses relative accuracy where the cosine vanishes.
pub const NORMAL: f64 = 8.0;
/// Units for the derivatives of activations.
pub const ACTIVATION: f64 = 16.0;
/// Units for LU, times the size and the condition number.
pub const LU: f64 = 4.0;
/// Units for splines, whose knots are sums of some ten shares.
pub const SPLINE: f64 = 32.0;
/// Units for Adam's update.
pub const ADAM: f64 = 8.0;

/// The absolute tolerance of an elementwise function at x.
pub fn unary<E: Element>(op: Unary, x: f64) -> f64 {
    let [argument, result, absolute] = match op {
        Unary::Neg | Unary::Abs | Unary::Floor | Unary::IsFinite => [0.0; 3],
        Unary::Square => [0.0, 1.0, 0.0],
        Unary::Reciprocal | Unary::Sqrt => [0.0, 4.0, 0.0],
        Unary::Exp | Unary::ExpM1 | Unary::Ln | Unary::Ln1p | Unary::Tanh => [4.0, 4.0, 0.0],
        Unary::Sin | Unary::Cos => [4.0, 4.0, 8.0],
    };
    // zero slope at an infinite argument: nothing moves
    let moved = if x.is_finite() { argument * (x * slope(op, x)).abs() } else { 0.0 };
    E::EPSILON * (moved + result * op.apply(x).abs() + absolute)
}

/// The absolute tolerance of an elementwise function of two.
pub fn binary<E: Element>(op: Binary, a: f64, b: f64) -> f64 {
    let units = match op {
        Binary::Max | Binary::Min | Binary::Less | Binary::LessEqual => return 0.0,
        Binary::Add | Binary::Sub | Binary::Mul => 1.0,
        Binary::Div => 4.0,
    };
    E::EPSILON * units * op.apply(a, b).abs()
}

/// The units for a sum of so many terms.
pub fn sum(terms: usize) -> f64 {
    SUM * (terms.max(1) as f64).sqrt()
}

/// Returns `true` if a result is the wanted number up to a tolerance; NaN and infinities must be met exactly.
pub fn within<E: Element>(got: f64, want: f64, tolerance: f64) -> bool {
    let want = E::from_f64(want).to_f64();
    if want.is_nan() {
        got.is_nan()
    } else if want.is_infinite() {
        got == want
    } else {
        (got - want).abs() <= tolerance + E::TINY
    }
}

/// Asserts shape and elements, each with its own absolute tolerance.
#[track_caller]
pub fn assert_within<E: Element>(what: &str, got: &Array, want: &Array, tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.shape, want.shape, "{what}: the shape");
    for (i, (&got, &want)) in got.data.iter().zip(&want.data).enumerate() {
        let allowed = tolerance(i);
        assert!(
            within::<E>(got, want, allowed),
            "{what}: element {i} is {got:e}, not {want:e} (off by {:e}, allowed {allowed:e})",
            got - want
        );
    }
}

/// Asserts shape and elements to `units` of the magnitude of each element's terms.
#[track_caller]
pub fn assert_close<E: Element>(what: &str, got: &Array, want: &Array, magnitude: &Array, units: f64) {
    assert_eq!(want.shape, magnitude.shape, "{what}: one magnitude for each element");
    assert_within::<E>(what, got, want, |i| units * E::EPSILON * magnitude.data[i]);
}

/// Asserts that two arrays hold the same numbers; NaN equals NaN and −0 equals 0.
#[track_caller]
pub fn assert_equal(what: &str, got: &Array, want: &Array) {
    assert_eq!(got.shape, want.shape, "{what}: the shape");
    for (i, (&got, &want)) in got.data.iter().zip(&want.data).enumerate() {
        assert!(got == want || got.is_nan() && want.is_nan(), "{what}: element {i} is {got:e}, not {want:e}");
    }
}

/// Asserts that two arrays hold the same bits.
#[track_caller]
pub fn assert_same_bits(what: &str, got: &Array, want: &Array) {
    assert_eq!(got.shape, want.shape, "{what}: the shape");
    for (i, (got, want)) in got.data.iter().zip(&want.data).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: element {i} is {got:e}, not {want:e} bit for bit");
    }
}
