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
//! Anderson(m) (Anderson 1965; type II of Fang and Saad 2009): x + r − Σ γ_j (ΔX_j + ΔR_j) with γ the least-squares
//! solution of r ≈ Σ γ_j ΔR_j over the last m differences; the plain step wherever the residual grew.

mod transposed;

use resflow_backend::{
    Backend, BackendError, Binary, Element as _, FixedPointColumn, FixedPointRule, FixedPointState, Over, Reduce, Unary,
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
}

/// The accuracy with which one sample was inverted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleReport {
    /// ‖y − F(x)‖₂ / max(1, ‖y‖₂), relative: of a block, measured one step before the answer; of a whole flow, see
    /// [`Decoded`](crate::flow::Decoded).
    pub residual: f64,
    /// A bound on ‖x − x*‖₂, in units of x, that holds if the Lipschitz bound does; with an allowance for the rounding of a
    /// fixed point, and without the rounding of formulas.
    pub error_bound: f64,
    /// Evaluations of g.
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
    /// Marks a certified Lipschitz bound; power iteration only estimates it.
    pub certified: bool,
}

impl<B: Backend> Solution<B> {
    /// The solution of a transform that is inverted by a formula.
    pub fn closed_form(backend: &B, value: B::Tensor, stretch: f64) -> Self {
        let exact = SampleReport { residual: 0.0, error_bound: 0.0, iterations: 0, status: Status::Converged };
        let reports = vec![exact; backend.shape(&value).rows()];
        Self { value, reports, stretch, certified: true }
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
const ROUNDING: f64 = 2.0;

/// Everything that the iteration knows of the samples still going, `[n, …]`.
struct State<B: Backend> {
    /// y, `[n, d]`, and what belongs to its samples.
    target: Batch<B>,
    point: FixedPointState<B::Tensor>,
    // Anderson: the point and residual before, and the differences
    previous: Option<(B::Tensor, B::Tensor)>,
    history: Vec<(B::Tensor, B::Tensor)>,
}

impl<B: Backend> State<B> {
    /// Starts at x = y, nothing known.
    fn new(backend: &B, target: Batch<B>) -> Self {
        let mut fresh = [B::Elem::ZERO; FixedPointColumn::COUNT];
        for column in [FixedPointColumn::Residual, FixedPointColumn::Norm, FixedPointColumn::Latest] {
            fresh[column as usize] = B::Elem::from_f64(f64::INFINITY);
        }
        fresh[FixedPointColumn::Active as usize] = B::Elem::ONE;
        let one = backend.upload(&fresh, [1, fresh.len()].into());
        let y = &target.x;
        let rows = backend.take_rows(&one, &vec![0; target.len(backend)]);
        let point = FixedPointState { x: y.clone(), best: y.clone(), rows };
        Self { target, point, previous: None, history: Vec::new() }
    }

    fn take(&self, b: &B, rows: &[u32]) -> Self {
        let t = |x: &B::Tensor| b.take_rows(x, rows);
        let point = &self.point;
        Self {
            target: self.target.take(b, rows),
            point: FixedPointState { x: t(&point.x), best: t(&point.best), rows: t(&point.rows) },
            previous: self.previous.as_ref().map(|(x, r)| (t(x), t(r))),
            history: self.history.iter().map(|(x, r)| (t(x), t(r))).collect(),
        }
    }
}

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
    let mut state = State::new(backend, batch.with_x(backend.reshape(&batch.x, [n, shape.row_elements()].into())));
    // samples that are done, and the number each had at the beginning
    let mut finished: Vec<(Vec<u32>, State<B>)> = Vec::new();
    let mut numbers: Vec<u32> = (0..n as u32).collect();
    let mut iteration = 0;
    while !numbers.is_empty() && iteration < how.limit {
        for _ in 0..(backend.poll_interval() as u32).min(how.limit - iteration) {
            let x = backend.reshape(&state.point.x, shape.with_rows(numbers.len()));
            let gx = g(&state.target.with_x(x), &numbers);
            let gx = backend.reshape(&gx, backend.shape(&state.point.x));
            state = advance(backend, &gx, state, how);
            iteration += 1;
        }
        let active = backend.download(&backend.narrow(&state.point.rows, 1, FixedPointColumn::Active as usize, 1))?;
        let (going, done): (Vec<u32>, Vec<u32>) =
            (0..numbers.len() as u32).partition(|&i| active[i as usize] != B::Elem::ZERO);
        if going.is_empty() {
            break;
        }
        // leaving finished samples out costs a copy: do it once a quarter is done
        if done.len() * 4 >= numbers.len() {
            finished.push((done.iter().map(|&i| numbers[i as usize]).collect(), state.take(backend, &done)));
            state = state.take(backend, &going);
            numbers = going.iter().map(|&i| numbers[i as usize]).collect();
        }
    }
    finished.push((numbers, state));
    collect(backend, &finished, shape, bound, how)
}

/// Makes the bookkeeping of every sample and the step from x, with g(x), `[n, d]`.
fn advance<B: Backend>(b: &B, gx: &B::Tensor, s: State<B>, how: &Inversion) -> State<B> {
    let rule = FixedPointRule { accuracy: how.accuracy, floor: FLOOR * B::Elem::EPSILON, patience: PATIENCE };
    let Method::Anderson(m) = how.method else {
        let point = b.fixed_point_step(&rule, &s.target.x, gx, s.point);
        return State { point, ..s };
    };
    let column = |rows: &B::Tensor, c: FixedPointColumn| b.narrow(rows, 1, c as usize, 1);
    let x = s.point.x.clone();
    let before = column(&s.point.rows, FixedPointColumn::Latest);
    let r = b.binary(Binary::Sub, b.binary(Binary::Sub, s.target.x.clone(), &x), gx);
    let mut point = b.fixed_point_step(&rule, &s.target.x, gx, s.point);
    let mut history = s.history;
    if let Some((x0, r0)) = &s.previous {
        history.push((b.binary(Binary::Sub, x.clone(), x0), b.binary(Binary::Sub, r.clone(), r0)));
        if history.len() > m {
            history.remove(0);
        }
    }
    let mixed = anderson(b, &point.x, &r, &history);
    // the plain step where the sample is done, the residual grew or the least squares broke down
    let grew = b.binary(Binary::Less, before, &column(&point.rows, FixedPointColumn::Latest));
    let finite = b.unary(Unary::IsFinite, b.reduce(Reduce::Sum, Over::Row, &mixed));
    let usable = b.binary(Binary::Mul, finite, &column(&point.rows, FixedPointColumn::Active));
    let usable = b.binary(Binary::Less, grew, &usable);
    point.x = b.select(&usable, &mixed, &point.x);
    State { target: s.target, point, previous: Some((x, r)), history }
}

/// Computes plain − Σ γ_j (ΔX_j + ΔR_j), per sample, `[n, d]`.
fn anderson<B: Backend>(b: &B, plain: &B::Tensor, r: &B::Tensor, history: &[(B::Tensor, B::Tensor)]) -> B::Tensor {
    let m = history.len();
    if m == 0 {
        return plain.clone();
    }
    let rows = b.shape(r).rows();
    let mut gram = vec![Vec::with_capacity(m); m];
    for i in 0..m {
        for j in 0..m {
            let entry = if j < i { B::Tensor::clone(&gram[j][i]) } else { b.dot_rows(&history[i].1, &history[j].1) };
            gram[i].push(entry);
        }
    }
    // a ridge relative to each diagonal keeps the solve finite where differences are parallel
    for (i, row) in gram.iter_mut().enumerate() {
        row[i] = b.affine(row[i].clone(), 1.0 + 100.0 * B::Elem::EPSILON, B::Elem::TINY);
    }
    let entries: Vec<_> = gram.iter().flatten().collect();
    let matrix = b.reshape(&b.concat(&entries, 1), [rows, m, m].into());
    let inverse = b.reshape(&b.lu(&matrix).1, [rows, m * m].into());
    let target: Vec<_> = history.iter().map(|(_, dr)| b.dot_rows(dr, r)).collect();
    let mut x = plain.clone();
    for (i, (dx, dr)) in history.iter().enumerate() {
        let products = (0..m).map(|j| b.binary(Binary::Mul, b.narrow(&inverse, 1, i * m + j, 1), &target[j]));
        let gamma = products.reduce(|a, c| b.axpy(1.0, &c, a)).expect("m > 0");
        let direction = b.axpy(1.0, dx, dr.clone());
        x = b.axpy(-1.0, &b.binary(Binary::Mul, direction, &gamma), x);
    }
    x
}

/// Puts the samples back in order and reads what the iteration knew of each.
fn collect<B: Backend>(
    b: &B,
    finished: &[(Vec<u32>, State<B>)],
    shape: resflow_backend::Shape,
    bound: f64,
    how: &Inversion,
) -> Result<Solution<B>, BackendError> {
    let order: Vec<u32> = finished.iter().flat_map(|(numbers, _)| numbers.iter().copied()).collect();
    let mut back = vec![0; order.len()];
    for (at, &number) in order.iter().enumerate() {
        back[number as usize] = at as u32;
    }
    let join = |part: &dyn Fn(&State<B>) -> B::Tensor| {
        let parts: Vec<_> = finished.iter().map(|(_, state)| part(state)).collect();
        if let [only] = &parts[..] {
            return only.clone();
        }
        b.take_rows(&b.concat(&parts.iter().collect::<Vec<_>>(), 0), &back)
    };
    let value = b.reshape(&join(&|s| s.point.best.clone()), shape);
    let sizes = |s: &State<B>| {
        let square = |x: &B::Tensor| b.dot_rows(x, x);
        b.concat(&[&s.point.rows, &square(&s.point.best), &square(&s.target.x)], 1)
    };
    let rows = b.download(&join(&sizes))?;
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
    Ok(Solution { value, reports: rows.collect(), stretch: 1.0 / (1.0 - bound), certified: false })
}
