//! How far two backends may lie apart: all tolerances, in one table.
//!
//! The unit is ε of f32, 2⁻²³. A tensor agrees with the reference if
//! max|Δ| ≤ units · ε · max(max|reference|, floor). The floor is the size of the terms that a result is summed from, where they
//! may cancel; parts of a gradient are summed from terms of the size of the whole gradient and have [`SHARE`] of it.
//!
//! Over hundreds of cases of every test the CPU's own f32 needed at most half of a tolerance, mostly a tenth, so that a
//! backend with coarser functions has room, and a formula that is wrong in the fourth digit has none.

/// ε of f32.
pub(crate) const EPSILON: f64 = f32::EPSILON as f64;

/// No tolerance is looser, in units of ε: 1e−4 relative.
pub(crate) const MOST: f64 = 1e-4 / EPSILON;

/// The part of a whole gradient's largest entry that counts as the size of each of its tensors.
pub(crate) const SHARE: f64 = 0.05;

/// The relative error of a gradient that Adam's step may see: it divides by a root that may be no larger than the error.
pub(crate) const ADAM_GRADIENT: f64 = 100.0 * EPSILON;

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    /// Statuses, counts, signs, bits.
    Exact,
    /// Random numbers and what a key alone determines.
    Draw,
    /// g(x) and z.
    Value,
    /// J dx, Jᵀgy and the pullback of a tangent, of one net.
    Derivative,
    /// u of the surrogate.
    Neumann,
    /// Gradients through a whole flow.
    Gradient,
    /// Log dets and log p, in nats.
    LogDet,
    /// Standard errors, in nats.
    StandardError,
    /// x of z, and the residual.
    Inverse,
    /// σ after some iterations.
    Sigma,
    /// σ after iterating to rest, which is a matter of the precision.
    SigmaAtRest,
    /// Parameters after one step.
    Step,
    /// Parameters after ten steps.
    Trained,
}

/// So many units of max(max|reference|, floor); the floor of a [log det](Quantity::LogDet) is that of one number of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) units: f64,
    pub(crate) floor: f64,
}

impl Quantity {
    pub(crate) const ALL: [Self; 13] = [
        Self::Exact,
        Self::Draw,
        Self::Value,
        Self::Derivative,
        Self::Neumann,
        Self::Gradient,
        Self::LogDet,
        Self::StandardError,
        Self::Inverse,
        Self::Sigma,
        Self::SigmaAtRest,
        Self::Step,
        Self::Trained,
    ];

    pub(crate) fn tolerance(self) -> Tolerance {
        let (units, floor) = match self {
            Self::Exact => (0.0, 0.0),
            // uniform and ±1 are exact; normals lose ulps where the cosine vanishes
            Self::Draw => (8.0, 1.0),
            // up to nine layers, inner products of at most 18 terms, each layer contracting what came before
            Self::Value => (20.0, 1.0),
            // as many products and slopes, of tangents of order 1; slopes cross 0, where their own error stays
            Self::Derivative => (40.0, 0.25),
            // powers weighed by up to 1/P(N ≥ k), which grows while they shrink
            Self::Neumann => (50.0, 1.0),
            // forward, series and back through all blocks; both terms of the likelihood, and those of the pullback of a
            // normalisation, cancel
            Self::Gradient => (150.0, 0.25),
            // a term of order 1 for each number of a row, of either sign
            Self::LogDet => (16.0, 1.0),
            // a difference of the blocks' log dets, without the logit's
            Self::StandardError => (30.0, 1.0),
            // both ends stop at a residual below 8.4 ε, which 1/(1−c) of every block magnifies
            Self::Inverse => (400.0, 1.0),
            // products and a root; the error of the vectors enters squared
            Self::Sigma => (20.0, 0.0),
            // the change of σ at which iterating stops, 64 ε, over 1 − (σ₂/σ₁)⁸: f32 stops below a σ that f64 goes on to
            Self::SigmaAtRest => (600.0, 0.0),
            // one rounding, and a learning rate of 0.01 times a gradient's error
            Self::Step => (10.0, 1.0),
            // ten of both, and what the first steps' errors do to later gradients
            Self::Trained => (40.0, 1.0),
        };
        Tolerance { units, floor }
    }
}

#[test]
fn no_tolerance_is_looser_than_the_limit() {
    for quantity in Quantity::ALL {
        assert!(quantity.tolerance().units <= MOST, "{quantity:?}");
    }
}
