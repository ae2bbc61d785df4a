//! Inversion of x + g(x) = y: the fixed point of x ↦ y − g(x), plain or by Anderson's acceleration.
//!
//! Banach: the plain step contracts by c = Lip(g). A posteriori, with r = y − x − g(x), ‖x − x*‖₂ ≤ ‖r‖₂/(1−c); the
//! answer is the step y − g(x) from the x with the smallest residual, which costs nothing more and is within
//! c‖r‖₂/(1−c). What rounding adds is estimated: 2 ε (‖x‖₂ + ‖y‖₂)/(1−c), since r is computed from numbers of that size.
//! The c in use is an estimate (power iteration), so the bound is one too, and is marked so. A sample stops by itself,
//! when ‖r‖₂ ≤ accuracy · max(1, ‖y‖₂), the norm that the bound speaks of, and is frozen then: other samples of its batch do not
//! enter its answer but by rounding, since products of matrices of other sizes may add in another order (about 1e-5 of
//! its scale in f32, and now and then an iteration more or less).
//!
//! The iteration itself, Anderson's acceleration with it, is the backend's: of a net that it is handed whole
//! ([`Backend::net_fixed_point`]), or of any g ([`composed::fixed_point`]).

mod transposed;

use resflow_backend::{
    Backend, BackendError, Element as _, FixedPointColumn, FixedPointFound, FixedPointRule, FixedPointSearch, Net,
    Over, Reduce, Unary, composed,
};

pub use transposed::solve_transposed;

use crate::batch::{Batch, per_sample};
use crate::error::ConfigError;

/// The state that an inversion, or an evaluation, ended in, for one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The residual is below the accuracy asked for.
    Converged,
    /// The residual stopped falling at the rounding of the arithmetic, above the accuracy asked for; the bound holds.
    FloatFloor,
    /// The limit of iterations came first.
    NotConverged,
    /// The sample or g of it is infinite or NaN.
    NonFinite,
    /// A value of the sample lies outside of its column's support, where there is no density.
    OutOfSupport,
}

impl Status {
    /// Returns `true` if a solve ended at the accuracy asked for, or as near to it as the arithmetic gets.
    pub fn is_solved(self) -> bool {
        self <= Self::FloatFloor
    }

    /// The status of a number that `as u8` made of it.
    pub(crate) fn from_number(number: f64) -> Option<Self> {
        const ALL: [Status; 5] =
            [Status::Converged, Status::FloatFloor, Status::NotConverged, Status::NonFinite, Status::OutOfSupport];
        ALL.into_iter().find(|status| f64::from(*status as u8) == number)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Converged => "converged",
            Self::FloatFloor => "at the float floor",
            Self::NotConverged => "not converged",
            Self::NonFinite => "non-finite",
            Self::OutOfSupport => "out of support",
        })
    }
}

/// The step of the iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// x ← y − g(x).
    FixedPoint,
    /// Anderson's acceleration over this many differences, 1 to 5.
    Anderson(usize),
}

/// The settings of an inversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inversion {
    method: Method,
    accuracy: f64,
    limit: u32,
    check: bool,
}

impl Inversion {
    /// Returns the default for a precision: accuracy 1e−6 in f32 and 1e−12 in f64, Anderson(2), at most 2000 iterations
    /// a block.
    pub fn for_backend<B: Backend>() -> Self {
        let accuracy = if B::Elem::EPSILON > 1e-10 { 1e-6 } else { 1e-12 };
        Self { method: Method::Anderson(2), accuracy, limit: 2000, check: true }
    }

    /// Returns the default for the gradient of a loss that other noise is far above: accuracy 1e−4 in f32 and 1e−8 in
    /// f64, otherwise as [`for_backend`](Self::for_backend).
    pub fn for_training<B: Backend>() -> Self {
        let accuracy = if B::Elem::EPSILON > 1e-10 { 1e-4 } else { 1e-8 };
        Self { accuracy, ..Self::for_backend::<B>() }
    }

    /// Sets the accuracy, relative to max(1, ‖y‖₂) of a sample: it has converged once ‖y − x − g(x)‖₂ is below.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] unless it is a positive number below 1.
    pub fn with_accuracy(self, accuracy: f64) -> Result<Self, ConfigError> {
        if accuracy > 0.0 && accuracy < 1.0 {
            Ok(Self { accuracy, ..self })
        } else {
            Err(ConfigError::OutOfRange { name: "accuracy", value: accuracy, expected: "a number above 0 and below 1" })
        }
    }

    /// Sets the method.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a history that is not 1 to 5.
    pub fn with_method(self, method: Method) -> Result<Self, ConfigError> {
        match method {
            Method::Anderson(m) if !(1..=5).contains(&m) => {
                Err(ConfigError::OutOfRange { name: "Anderson's history", value: m as f64, expected: "1 to 5" })
            }
            method => Ok(Self { method, ..self }),
        }
    }

    /// Sets the limit of iterations for each block.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a limit of zero.
    pub fn with_limit(self, limit: u32) -> Result<Self, ConfigError> {
        if limit > 0 {
            Ok(Self { limit, ..self })
        } else {
            Err(ConfigError::OutOfRange { name: "iterations", value: 0.0, expected: "at least 1" })
        }
    }

    /// Chooses a forward pass through the whole flow at the end, which measures the residual of the answer, or none.
    pub fn with_check(self, check: bool) -> Self {
        Self { check, ..self }
    }

    /// Returns `true` if the answer is checked by a forward pass.
    pub fn checks(&self) -> bool {
        self.check
    }

    /// The accuracy asked for.
    pub fn accuracy(&self) -> f64 {
        self.accuracy
    }

    /// The way to the fixed point.
    fn search<B: Backend>(&self) -> FixedPointSearch {
        let rule = FixedPointRule { accuracy: self.accuracy, floor: FLOOR * B::Elem::EPSILON, patience: PATIENCE };
        let history = match self.method {
            Method::FixedPoint => 0,
            Method::Anderson(m) => m,
        };
        FixedPointSearch { rule, history, limit: self.limit }
    }
}

/// The accuracy with which one sample was inverted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleReport {
    /// ‖y − F(x)‖₂ / max(1, ‖y‖₂), relative: of a block, measured one step before the answer; of a whole flow, see
    /// [`Decoded`](crate::flow::Decoded).
    pub residual: f64,
    /// A bound on ‖x − x*‖₂, in units of x, that holds if the Lipschitz bound does; with an allowance for the rounding of a
    /// fixed point, and without the rounding of formulas. Of a continuous flow an estimate, see [`ode`](crate::ode).
    pub error_bound: f64,
    /// Evaluations of g, or of a continuous flow's f.
    pub iterations: u32,
    /// The state that it ended in.
    pub status: Status,
}

/// Marks samples by their reports: 1 or 0 of each, `[n, 1]`; `None` if none is marked.
pub(crate) fn mark_samples<B: Backend>(
    backend: &B,
    reports: &[SampleReport],
    which: impl Fn(&SampleReport) -> bool,
) -> Option<B::Tensor> {
    let marks: Vec<B::Elem> =
        reports.iter().map(|report| if which(report) { B::Elem::ONE } else { B::Elem::ZERO }).collect();
    marks.contains(&B::Elem::ONE).then(|| backend.upload(&marks, [marks.len(), 1].into()))
}

/// Marks the samples whose solve failed, `[n, 1]`; `None` if all succeeded.
pub(crate) fn mark_unsolved<B: Backend>(backend: &B, reports: &[SampleReport]) -> Option<B::Tensor> {
    mark_samples(backend, reports, |report| !report.status.is_solved())
}

/// Replaces the samples that are marked, `[n, 1]`, by zeros, whatever they are.
pub(crate) fn without_samples<B: Backend>(backend: &B, marks: &B::Tensor, x: B::Tensor) -> B::Tensor {
    let shape = backend.shape(&x);
    backend.select(&per_sample(backend, marks, shape), &backend.full(0.0, shape), &x)
}

/// Adds the reports of a further solve of the same samples: the worst residual and status, all errors and evaluations.
pub(crate) fn merge_reports(all: &mut Option<Vec<SampleReport>>, reports: Vec<SampleReport>) {
    let Some(all) = all else {
        *all = Some(reports);
        return;
    };
    for (total, own) in all.iter_mut().zip(reports) {
        total.residual = total.residual.max(own.residual);
        total.error_bound += own.error_bound;
        total.iterations += own.iterations;
        total.status = total.status.max(own.status);
    }
}

/// The samples x with F(x) = y, and the accuracy of each.
#[derive(Debug, Clone)]
pub struct Solution<B: Backend> {
    /// x, `[n, …]`.
    pub value: B::Tensor,
    /// A report for each sample.
    pub reports: Vec<SampleReport>,
    /// The factor by which an error in y may grow into an error in x, both in the 2-norm.
    pub stretch: f64,
    /// Whether the bounds on the errors are certified, rounding included: only of a chain that was prepared for that, and not of a formula,
    /// whose rounding nothing here bounds.
    pub certified: bool,
}

impl<B: Backend> Solution<B> {
    /// The solution of a transform that is inverted by a formula.
    pub fn closed_form(backend: &B, value: B::Tensor, stretch: f64) -> Self {
        let exact = SampleReport { residual: 0.0, error_bound: 0.0, iterations: 0, status: Status::Converged };
        let reports = vec![exact; backend.shape(&value).rows()];
        Self { value, reports, stretch, certified: false }
    }

    /// The solution of a transform whose formula may overflow: samples that did are marked.
    /// `stretch` must hold for all samples; `f64::INFINITY` says that nothing bounds it.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub fn by_formula(backend: &B, value: B::Tensor, stretch: f64) -> Result<Self, BackendError> {
        let infinite = backend.affine(backend.unary(Unary::IsFinite, value.clone()), -1.0, 1.0);
        let infinite = backend.download(&backend.reduce(Reduce::Max, Over::Row, &infinite))?;
        let mut solution = Self::closed_form(backend, value, stretch);
        for (row, infinite) in solution.reports.iter_mut().zip(infinite) {
            if infinite.to_f64() != 0.0 {
                let unknown = f64::INFINITY;
                *row = SampleReport { residual: unknown, error_bound: unknown, status: Status::NonFinite, ..*row };
            }
        }
        Ok(solution)
    }
}

/// A stall of this many iterations without a smaller residual, near the rounding of the arithmetic, is its floor.
const PATIENCE: f64 = 4.0;
/// Residuals up to this many ε may be called the floor.
const FLOOR: f64 = 256.0;
/// The ε of ‖x‖₂ + ‖y‖₂ by which a residual may be wrong: an estimate of the rounding in x + g(x) − y.
pub(crate) const ROUNDING: f64 = 2.0;

/// Solves x + g(x) = y for each sample y `[n, …]` of a batch, with Lip(g) ≤ `bound`; g is given what belongs to the
/// samples that it is evaluated at.
///
/// # Errors
/// Returns [`BackendError`] if the device failed.
pub fn invert_residual<B: Backend>(
    backend: &B,
    g: impl Fn(&Batch<B>) -> B::Tensor,
    batch: &Batch<B>,
    bound: f64,
    how: &Inversion,
) -> Result<Solution<B>, BackendError> {
    iterate(backend, |batch, _| g(batch), batch, bound, how)
}

/// Solves x + sign·g(x) = y for each sample y `[n, …]` of a batch, g a net with Lip(g) ≤ `bound` that the backend is handed whole.
///
/// # Errors
/// Returns [`BackendError`] if the device failed.
pub fn invert_net<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    sign: f64,
    batch: &Batch<B>,
    bound: f64,
    how: &Inversion,
) -> Result<Solution<B>, BackendError> {
    let found = backend.net_fixed_point(net, sign, &how.search::<B>(), &batch.x)?;
    conclude(backend, found, &batch.x, bound, how)
}

/// Solves x + g(x) = y; g is also given the numbers of the samples that are still going, in the order in which it gets them.
fn iterate<B: Backend>(
    backend: &B,
    mut g: impl FnMut(&Batch<B>, &[u32]) -> B::Tensor,
    batch: &Batch<B>,
    bound: f64,
    how: &Inversion,
) -> Result<Solution<B>, BackendError> {
    let shape = batch.shape(backend);
    let n = shape.rows();
    let y = backend.reshape(&batch.x, [n, shape.row_elements()].into());
    let found = composed::fixed_point(backend, &how.search::<B>(), &y, |x, numbers| {
        let own = |t: &B::Tensor| if numbers.len() == n { t.clone() } else { backend.take_rows(t, numbers) };
        // one context that all share stays as it is
        let shared = |t: &B::Tensor| backend.shape(t).rows() == 1;
        let context = batch.context.as_ref().map(|t| if shared(t) { t.clone() } else { own(t) });
        let samples = backend.reshape(x, shape.with_rows(numbers.len()));
        let gx = g(&Batch { x: samples, context, first: batch.first, quantised: None }, numbers);
        backend.reshape(&gx, backend.shape(x))
    })?;
    let best = backend.reshape(&found.best, shape);
    conclude(backend, FixedPointFound { best, ..found }, &batch.x, bound, how)
}

/// Reads what the iteration knew of each sample.
fn conclude<B: Backend>(
    b: &B,
    found: FixedPointFound<B::Tensor>,
    y: &B::Tensor,
    bound: f64,
    how: &Inversion,
) -> Result<Solution<B>, BackendError> {
    let square = |x: &B::Tensor| {
        let shape = b.shape(x);
        let rows = b.reshape(x, [shape.rows(), shape.row_elements()].into());
        b.dot_rows(&rows, &rows)
    };
    let rows = b.download(&b.concat(&[&found.rows, &square(&found.best), &square(y)], 1))?;
    let rows = rows.chunks_exact(FixedPointColumn::COUNT + 2).map(|row| {
        let column = |c: FixedPointColumn| row[c as usize].to_f64();
        let (residual, stall) = (column(FixedPointColumn::Residual), column(FixedPointColumn::Stall));
        let (norm, iterations) = (column(FixedPointColumn::Norm), column(FixedPointColumn::Steps));
        let status = if residual <= how.accuracy {
            Status::Converged
        } else if !residual.is_finite() {
            Status::NonFinite
        } else if stall >= PATIENCE && residual <= FLOOR * B::Elem::EPSILON {
            Status::FloatFloor
        } else {
            Status::NotConverged
        };
        let sizes = row[FixedPointColumn::COUNT..].iter().map(|square| square.to_f64().sqrt()).sum::<f64>();
        let error_bound = (bound * norm + ROUNDING * B::Elem::EPSILON * sizes) / (1.0 - bound);
        SampleReport { residual, error_bound, iterations: iterations as u32, status }
    });
    Ok(Solution { value: found.best, reports: rows.collect(), stretch: 1.0 / (1.0 - bound), certified: false })
}
