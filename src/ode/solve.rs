//! The solves of dx/dt = f(t, x) with dℓ/dt = tr ∂f/∂x along, in equal steps or in steps by an error estimate, and their pullback.
//!
//! Steps by an estimate are each sample's own: the error of a step is that of its pair of methods,
//!
//! r = max(√(mean_i (e_i/(atol + rtol·max(|x_i|, |x'_i|)))²), |e_ℓ|/(rtol·max(1, |ℓ|, |ℓ'|))),
//!
//! a step is taken if r ≤ 1, and the next is h·0.9·r^{−7/50}·r₋^{4/50} long, r₋ being the ratio of the step before (Gustafsson's PI
//! control), 0.2 to 10 times as long, no longer than this one after one that was not taken. The first one is Hairer's (Hairer,
//! Nørsett and Wanner, Solving ODEs I, §II.4). So a sample's steps do not depend on what else is in its batch. Samples that arrive,
//! and samples that are given up, leave the solve.
//!
//! Invariant: a solve ends after at most so many evaluations, whatever f is; each sample says how.

use resflow_backend::{Backend, BackendError, Binary, Element as _, Over, Reduce, Unary};

use super::field::{Field, Slope, flat};
use super::step::{Steps, combine, finish, pull_back, stages};
use super::tableau::{DORMAND_PRINCE, RK4, Tableau};
use crate::batch::per_sample;
use crate::invert::{SampleReport, Status};
use crate::module::{Grad, accumulate};
use crate::stage::OdeSolver;

/// A step shorter than this is none: t is between 0 and 1.
const SHORTEST: f64 = 1e-10;
/// The first step where nothing is known of a scale.
const FIRST: f64 = 1e-3;
/// The longest first step.
const LONGEST_FIRST: f64 = 0.1;
const SAFETY: f64 = 0.9;
const LEAST_FACTOR: f64 = 0.2;
const MOST_FACTOR: f64 = 10.0;
/// The exponents of PI control, over the order.
const PROPORTIONAL: f64 = 0.7 / 5.0;
const INTEGRAL: f64 = 0.4 / 5.0;
/// The ratio below which one step says nothing about the next.
const LEAST_RATIO: f64 = 1e-4;

/// Steps that were taken, for the pullback.
#[derive(Debug)]
pub(super) struct Kept<B: Backend> {
    /// The numbers of the samples that took them; all without.
    rows: Option<Vec<u32>>,
    steps: Steps,
    /// x at their beginnings.
    x: B::Tensor,
}

/// The end of a solve.
#[derive(Debug)]
pub(super) struct Solved<B: Backend> {
    /// x at the end; of samples that were given up where they were then.
    pub(super) x: B::Tensor,
    /// ℓ, `[n, columns]`.
    pub(super) log_det: B::Tensor,
    /// What is known of each sample's solve.
    pub(super) reports: Option<Vec<SampleReport>>,
    /// The evaluations of f of a sample, where all have as many.
    pub(super) evaluations: u32,
    /// The steps, if they were to be kept.
    pub(super) kept: Vec<Kept<B>>,
}

/// The tableau of a solver.
fn tableau(solver: &OdeSolver) -> &'static Tableau {
    match solver {
        OdeSolver::Rk4 { .. } => &RK4,
        OdeSolver::Dopri5 { .. } => &DORMAND_PRINCE,
    }
}

/// Solves from samples x, `[n, …]`, at one time to another, with the accuracy that is asked for.
///
/// # Errors
/// Returns [`BackendError`] if an estimate was waited for and the device had failed.
pub(super) fn solve<B: Backend>(
    field: &Field<'_, B>,
    solver: &OdeSolver,
    accuracy: f64,
    [from, to]: [f64; 2],
    x: &B::Tensor,
    keep: bool,
) -> Result<Solved<B>, BackendError> {
    match *solver {
        OdeSolver::Rk4 { steps } => Ok(in_equal_steps(field, steps, [from, to], x, keep)),
        OdeSolver::Dopri5 { rtol, atol, limit } => {
            let tolerances = OdeSolver::tolerances::<B::Elem>(rtol, atol, accuracy);
            Adaptive::new(field, tolerances, limit, [from, to], x)?.run(keep)
        }
    }
}

fn in_equal_steps<B: Backend>(
    field: &Field<'_, B>,
    count: usize,
    [from, to]: [f64; 2],
    x: &B::Tensor,
    keep: bool,
) -> Solved<B> {
    let backend = field.backend;
    let columns = field.divergence.columns().max(1);
    let (mut x, mut log_det) = (x.clone(), backend.full(0.0, [backend.shape(x).rows(), columns].into()));
    let mut kept = Vec::new();
    let size = (to - from) / count as f64;
    for i in 0..count {
        let steps = Steps { times: vec![from + i as f64 * size], sizes: vec![size] };
        let slopes = stages(field, &RK4, &steps, &x, None, RK4.weights.len(), false);
        let [next, next_log_det] = finish(backend, &RK4, &steps, [&x, &log_det], &slopes);
        if keep {
            kept.push(Kept { rows: None, steps, x });
        }
        (x, log_det) = (next, next_log_det);
    }
    Solved { x, log_det, reports: None, evaluations: (count * RK4.weights.len()) as u32, kept }
}

/// The way of one sample.
#[derive(Debug, Clone)]
struct Way {
    /// Its number in the batch.
    number: u32,
    t: f64,
    /// The length of the next step, without its sign.
    h: f64,
    /// r₋.
    before: f64,
    /// Whether the last step was not taken.
    rejected: bool,
    evaluations: u32,
    /// The sum of its steps' estimated errors, as ratios,
    error: f64,
    /// and in the 2-norm.
    length: f64,
    status: Option<Status>,
}

/// A solve with steps of each sample's own.
struct Adaptive<'a, B: Backend> {
    all: &'a Field<'a, B>,
    /// f at the samples that are on their way.
    field: Field<'a, B>,
    rtol: f64,
    atol: f64,
    limit: u32,
    to: f64,
    direction: f64,
    ways: Vec<Way>,
    x: B::Tensor,
    log_det: B::Tensor,
    /// The slope at x.
    first: Slope<B>,
    reports: Vec<Option<SampleReport>>,
    /// Samples that have left: their numbers, x and ℓ.
    left: Vec<(Vec<u32>, B::Tensor, B::Tensor)>,
}

impl<'a, B: Backend> Adaptive<'a, B> {
    fn new(
        all: &'a Field<'a, B>,
        [rtol, atol]: [f64; 2],
        limit: u32,
        [from, to]: [f64; 2],
        x: &B::Tensor,
    ) -> Result<Self, BackendError> {
        let backend = all.backend;
        let n = backend.shape(x).rows();
        let numbers: Vec<u32> = (0..n as u32).collect();
        let log_det = backend.full(0.0, [n, all.divergence.columns().max(1)].into());
        let field = all.take(&numbers);
        let first = field.at(&[from], x, false);
        let way = |number| Way {
            number,
            t: from,
            h: FIRST,
            before: LEAST_RATIO,
            rejected: false,
            evaluations: 2,
            error: 0.0,
            length: 0.0,
            status: None,
        };
        let ways = numbers.into_iter().map(way).collect();
        let direction = (to - from).signum();
        let (reports, left, x) = (vec![None; n], Vec::new(), x.clone());
        let mut solve = Self { all, field, rtol, atol, limit, to, direction, ways, x, log_det, first, reports, left };
        if n > 0 {
            solve.choose_first_steps(from)?;
        }
        Ok(solve)
    }

    /// √(mean (q/(atol + rtol·size))²) squared and times d, `[n, 1]`.
    fn measure(&self, q: &B::Tensor, size: B::Tensor) -> B::Tensor {
        let backend = self.all.backend;
        let scale = backend.affine(size, self.rtol, self.atol);
        let q = flat(backend, &backend.binary(Binary::Div, q.clone(), &scale));
        backend.dot_rows(&q, &q)
    }

    /// Chooses each sample's first step by the size of f and of its derivative along the way.
    fn choose_first_steps(&mut self, from: f64) -> Result<(), BackendError> {
        let backend = self.all.backend;
        let d = backend.shape(&self.x).row_elements().max(1) as f64;
        let root = |square: &B::Elem| (square.to_f64() / d).sqrt();
        let size = backend.unary(Unary::Abs, self.x.clone());
        let both = [self.measure(&self.x, size.clone()), self.measure(&self.first.f, size.clone())];
        let both = backend.download(&backend.concat(&both.iter().collect::<Vec<_>>(), 1))?;
        let lengths: Vec<[f64; 2]> = both.chunks_exact(2).map(|row| [root(&row[0]), root(&row[1])]).collect();
        let explicit = |[x, f]: &[f64; 2]| {
            let h = 0.01 * x / f;
            if *x < 1e-5 || *f < 1e-5 || !h.is_finite() { FIRST } else { h.clamp(SHORTEST, 1.0) }
        };
        let tried: Vec<f64> = lengths.iter().map(explicit).collect();
        let steps = Steps { times: vec![from; tried.len()], sizes: tried.iter().map(|h| self.direction * h).collect() };
        let there = steps.advance(backend, &self.x, &[1.0], std::iter::once(&self.first.f));
        let times: Vec<f64> = steps.times.iter().zip(&steps.sizes).map(|(t, h)| t + h).collect();
        let next = self.field.at(&times, &there, false);
        let bent = backend.download(&self.measure(&backend.axpy(-1.0, &self.first.f, next.f), size))?;
        for (((way, h), [_, slope]), bent) in self.ways.iter_mut().zip(tried).zip(lengths).zip(bent) {
            let steepest = slope.max(root(&bent) / h);
            let smooth = if steepest > 1e-15 { (0.01 / steepest).powf(0.2) } else { LONGEST_FIRST };
            way.h = (100.0 * h).min(smooth).clamp(10.0 * SHORTEST, LONGEST_FIRST);
            if !way.h.is_finite() {
                way.h = FIRST;
            }
        }
        Ok(())
    }

    /// Goes on until every sample has left.
    fn run(mut self, keep: bool) -> Result<Solved<B>, BackendError> {
        let mut kept = Vec::new();
        while !self.ways.is_empty() {
            kept.extend(self.try_step(keep)?);
        }
        let backend = self.all.backend;
        let (x, log_det) = match &self.left[..] {
            [] => (self.x, self.log_det),
            left => {
                let mut back = vec![0; left.iter().map(|(numbers, ..)| numbers.len()).sum()];
                for (place, &number) in left.iter().flat_map(|(numbers, ..)| numbers).enumerate() {
                    back[number as usize] = place as u32;
                }
                let joined = |parts: Vec<&B::Tensor>| backend.take_rows(&backend.concat(&parts, 0), &back);
                (
                    joined(left.iter().map(|(_, x, _)| x).collect()),
                    joined(left.iter().map(|(.., log_det)| log_det).collect()),
                )
            }
        };
        let reports = self.reports.into_iter().flatten().collect();
        Ok(Solved { x, log_det, reports: Some(reports), evaluations: 0, kept })
    }

    /// Tries a step of every sample that is on its way; returns those that were taken.
    fn try_step(&mut self, keep: bool) -> Result<Option<Kept<B>>, BackendError> {
        let backend = self.all.backend;
        let method = &DORMAND_PRINCE;
        let mut last = Vec::with_capacity(self.ways.len());
        let mut steps = Steps { times: Vec::new(), sizes: Vec::new() };
        for way in &self.ways {
            let rest = self.to - way.t;
            // a rest that a little more would cover is covered
            last.push(1.01 * way.h >= rest.abs());
            steps.times.push(way.t);
            steps.sizes.push(if 1.01 * way.h >= rest.abs() { rest } else { self.direction * way.h });
        }
        let first = self.first.map(Clone::clone);
        let slopes = stages(&self.field, method, &steps, &self.x, Some(first), method.nodes.len(), false);
        let [x, log_det] = finish(backend, method, &steps, [&self.x, &self.log_det], &slopes);
        let ratios = self.ratios(&steps, &slopes, &x, &log_det)?;
        let mut taken = Vec::with_capacity(self.ways.len());
        let evaluations = method.nodes.len() as u32 - 1;
        for (((way, ratio), is_last), size) in self.ways.iter_mut().zip(ratios).zip(last).zip(&steps.sizes) {
            let [ratio, length] = ratio;
            let accepted = way.judge(ratio, size.abs(), evaluations);
            if accepted {
                way.length += length;
                way.t = if is_last { self.to } else { way.t + size };
                if is_last {
                    way.status = Some(Status::Converged);
                }
            }
            if way.status.is_none() && way.evaluations + evaluations > self.limit {
                way.status = Some(Status::NotConverged);
            }
            taken.push(accepted);
        }
        let places: Vec<u32> = (0..taken.len() as u32).filter(|&i| taken[i as usize]).collect();
        let kept = (keep && !places.is_empty()).then(|| Kept {
            rows: Some(places.iter().map(|&i| self.ways[i as usize].number).collect()),
            steps: Steps {
                times: places.iter().map(|&i| steps.times[i as usize]).collect(),
                sizes: places.iter().map(|&i| steps.sizes[i as usize]).collect(),
            },
            x: backend.take_rows(&self.x, &places),
        });
        let end = &slopes[method.nodes.len() - 1];
        if places.len() == taken.len() {
            (self.x, self.log_det, self.first) = (x, log_det, end.map(Clone::clone));
        } else {
            let marks: Vec<_> = taken.iter().map(|&t| if t { B::Elem::ONE } else { B::Elem::ZERO }).collect();
            let mask = backend.upload(&marks, [marks.len(), 1].into());
            let of_x = per_sample(backend, &mask, backend.shape(&x));
            self.x = backend.select(&of_x, &x, &self.x);
            self.log_det = backend.select(&mask, &log_det, &self.log_det);
            self.first = end.select(backend, &mask, &self.first);
        }
        self.part();
        Ok(kept)
    }

    /// r of each sample, and ‖e‖₂.
    fn ratios(
        &self,
        steps: &Steps,
        slopes: &[Slope<B>],
        x: &B::Tensor,
        log_det: &B::Tensor,
    ) -> Result<Vec<[f64; 2]>, BackendError> {
        let backend = self.all.backend;
        let d = backend.shape(x).row_elements().max(1) as f64;
        let larger = |a: &B::Tensor, b: &B::Tensor| {
            let [a, b] = [a, b].map(|t| backend.unary(Unary::Abs, t.clone()));
            backend.binary(Binary::Max, a, &b)
        };
        let error = combine(backend, DORMAND_PRINCE.error.iter().zip(slopes.iter().map(|k| &k.f)));
        let error = steps.scale(backend, error.expect("a method with an estimate"));
        let length = flat(backend, &error);
        let length = backend.dot_rows(&length, &length);
        let of_x = self.measure(&error, larger(&self.x, x));
        let traces = slopes.iter().filter_map(|k| k.divergence.as_ref());
        let of_log_det = combine(backend, DORMAND_PRINCE.error.iter().zip(traces)).map(|error| {
            let error = backend.unary(Unary::Abs, steps.scale(backend, error));
            let size = larger(&self.log_det, log_det);
            let size = backend.binary(Binary::Max, size, &backend.full(1.0, [1].into()));
            let ratio = backend.binary(Binary::Div, error, &backend.affine(size, self.rtol, 0.0));
            backend.reduce(Reduce::Max, Over::Row, &ratio)
        });
        let columns: Vec<_> = [&of_x, &length].into_iter().chain(&of_log_det).collect();
        let found = backend.download(&backend.concat(&columns, 1))?;
        let ratio = |row: &[B::Elem]| {
            let of_x = (row[0].to_f64() / d).sqrt();
            let of_log_det = row.get(2).map_or(0.0, |r| r.to_f64());
            // the larger, and NaN if either is
            let ratio = if of_x.is_nan() || of_log_det.is_nan() { f64::NAN } else { of_x.max(of_log_det) };
            [ratio, row[1].to_f64().sqrt()]
        };
        Ok(found.chunks_exact(columns.len()).map(ratio).collect())
    }

    /// Lets the samples go that have a status.
    fn part(&mut self) {
        if self.ways.iter().all(|way| way.status.is_none()) {
            return;
        }
        let backend = self.all.backend;
        let places = |done: bool| -> Vec<u32> {
            (0..self.ways.len() as u32).filter(|&i| self.ways[i as usize].status.is_some() == done).collect()
        };
        let (gone, going) = (places(true), places(false));
        let take = |t: &B::Tensor, places: &[u32]| backend.take_rows(t, places);
        let numbers = gone.iter().map(|&i| self.ways[i as usize].number).collect();
        self.left.push((numbers, take(&self.x, &gone), take(&self.log_det, &gone)));
        for way in &self.ways {
            let Some(status) = way.status else { continue };
            self.reports[way.number as usize] = Some(SampleReport {
                residual: if status.is_solved() { way.error * self.rtol } else { f64::INFINITY },
                error_bound: if status.is_solved() { way.length } else { f64::INFINITY },
                iterations: way.evaluations,
                status,
            });
        }
        self.ways.retain(|way| way.status.is_none());
        (self.x, self.log_det) = (take(&self.x, &going), take(&self.log_det, &going));
        self.first = self.first.map(|t| take(t, &going));
        self.field = self.all.take(&self.ways.iter().map(|way| way.number).collect::<Vec<_>>());
    }
}

impl Way {
    /// Takes a step of this length or does not, by its ratio, and chooses the next one.
    fn judge(&mut self, ratio: f64, size: f64, evaluations: u32) -> bool {
        self.evaluations += evaluations;
        if ratio <= 1.0 {
            let r = ratio.max(LEAST_RATIO);
            let factor = SAFETY * r.powf(-PROPORTIONAL) * self.before.powf(INTEGRAL);
            let most = if self.rejected { 1.0 } else { MOST_FACTOR };
            self.h = size * factor.clamp(LEAST_FACTOR, most);
            (self.before, self.rejected) = (r, false);
            self.error += ratio;
            return true;
        }
        let factor = if ratio.is_finite() { (SAFETY * ratio.powf(-0.2)).max(LEAST_FACTOR) } else { LEAST_FACTOR };
        self.h = size * factor;
        self.rejected = true;
        if self.h < SHORTEST {
            self.status = Some(if ratio.is_nan() { Status::NonFinite } else { Status::NotConverged });
        }
        false
    }
}

/// Places of some rows among all: 0 where there is none, else one more than where it stands.
fn places(rows: &[u32], n: usize) -> Vec<u32> {
    let mut places = vec![0; n];
    for (at, &row) in rows.iter().enumerate() {
        places[row as usize] = at as u32 + 1;
    }
    places
}

/// Takes the gradients in x, `[n, …]`, at the end and in ℓ, `[n, 1]`, back to the beginning of a solve: the gradient in x there.
pub(super) fn pull_back_solve<B: Backend>(
    field: &Field<'_, B>,
    solver: &OdeSolver,
    kept: &[Kept<B>],
    of_x: B::Tensor,
    of_log_det: &B::Tensor,
    grads: &mut [Grad<B>],
    context: &mut Grad<B>,
) -> B::Tensor {
    let backend = field.backend;
    let n = backend.shape(&of_x).rows();
    let method = tableau(solver);
    let mut of_x = of_x;
    for Kept { rows, steps, x } in kept.iter().rev() {
        let Some(rows) = rows else {
            of_x = pull_back(field, method, steps, x, [&of_x, of_log_det], grads, context);
            continue;
        };
        let own = [&of_x, of_log_det].map(|t| backend.take_rows(t, rows));
        let mut of_context = None;
        let own = pull_back(&field.take(rows), method, steps, x, [&own[0], &own[1]], grads, &mut of_context);
        // back among all: samples that took no step keep theirs
        let places = places(rows, n);
        let from: Vec<u32> =
            places.iter().enumerate().map(|(i, &p)| if p == 0 { i as u32 } else { n as u32 + p - 1 }).collect();
        of_x = backend.take_rows(&backend.concat(&[&of_x, &own], 0), &from);
        if let Some(gradient) = of_context {
            let shape = backend.shape(&gradient);
            let shared = field.embedding.as_ref().is_some_and(|e| backend.shape(e).rows() == 1);
            let all = if shared {
                gradient
            } else {
                let none = backend.full(0.0, shape.with_rows(1));
                backend.take_rows(&backend.concat(&[&none, &gradient], 0), &places)
            };
            accumulate(backend, context, &all);
        }
    }
    of_x
}
