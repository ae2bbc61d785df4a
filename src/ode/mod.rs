//! Continuous flows (Chen, Rubanova, Bettencourt and Duvenaud 2018, arXiv 1806.07366; Grathwohl et al. 2019, arXiv 1810.01367): x at
//! t = 1 goes to z at t = 0 along
//!
//! dx/dt = f(t, x),  log|det ∂z/∂x| = ∫₁⁰ tr ∂f/∂x(t, x(t)) dt,
//!
//! f any net whose hidden layers are told the time. The trace is exact where f has one or two hidden layers, and
//! wherever the estimator is exact; otherwise it is Hutchinson's, by probes that stay the same for the whole solve, so that what
//! is solved stays smooth.
//!
//! The gradient is that of the numbers that the solver computed: its steps are differentiated, the stages of each computed again
//! from the one x that is kept of it; the lengths of steps that were taken are constants.
//!
//! What is reported of a sample's solve are its evaluations, and estimates of its error: the sums of its steps' errors, which f may
//! make larger or smaller on their way. Equal steps estimate none.
//!
//! Training and evaluation have solvers of their own ([`OdeSolver`]); one that is given no tolerance is as accurate as it is asked to
//! be. Invariant: both directions solve the same equation to their solver's tolerance; neither is the other's inverse to the last bit.

mod field;
mod regression;
mod solve;
mod step;
mod tableau;

pub use field::TIME_FEATURES;
use field::{Divergence, Field};
use resflow_backend::{Backend, Element as _, Key, Over, Reduce, Unary};
use solve::{Kept, Solved, pull_back_solve, solve};

use crate::batch::Batch;
use crate::bijection::{Ask, Bijection, Cotangents, LogDet, Mapped, PreparedBijection, Tape, Velocity, Wanted};
use crate::error::{ConfigError, Error};
use crate::estimator::{CostModel, Estimator, Phase, Probe};
use crate::invert::{Inversion, SampleReport, Solution, Status};
use crate::layer::{Layer, PreparedLayer};
use crate::module::{Grad, Module, trained_tensors};
pub use crate::stage::OdeSolver;
use crate::stage::{LayerStage, Net, Stage};

/// The time of samples, and that of noise.
const DATA: f64 = 1.0;
const NOISE: f64 = 0.0;

/// The flow of an ordinary differential equation.
#[derive(Debug, Clone)]
pub struct OdeFlow<B: Backend> {
    net: Box<dyn Layer<B>>,
    shape: Vec<usize>,
    training: OdeSolver,
    evaluation: OdeSolver,
}

impl<B: Backend> OdeFlow<B> {
    /// Builds the flow of samples of a shape, `[d]` or `[h, w, c]`, by f and by the solvers of training and of evaluation. f is told
    /// [`TIME_FEATURES`] numbers of the time, and behind them the embedding of the samples' context, if there is one.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if f does not map samples to as many numbers or is not told the time, or if a tolerance
    /// is below the rounding of the precision; [`ConfigError::OutOfRange`] for a solver that there is not.
    pub fn new(
        net: Box<dyn Layer<B>>,
        shape: &[usize],
        training: OdeSolver,
        evaluation: OdeSolver,
    ) -> Result<Self, ConfigError> {
        training.check_for::<B::Elem>()?;
        evaluation.check_for::<B::Elem>()?;
        let found = net.output_shape(shape)?;
        if found != shape {
            return Err(ConfigError::Inconsistent(format!(
                "the net of a continuous flow of samples {shape:?} maps them to {found:?}: a velocity has the shape of what moves"
            )));
        }
        if net.net().is_some_and(|net| net.context < TIME_FEATURES) {
            return Err(ConfigError::Inconsistent(format!(
                "the net of a continuous flow is told the time by {TIME_FEATURES} numbers of its context"
            )));
        }
        Ok(Self { net, shape: shape.to_vec(), training, evaluation })
    }

    /// f.
    pub fn net(&self) -> &dyn Layer<B> {
        &*self.net
    }
}

/// Whether a net says its trace itself: one or two hidden layers with elementwise activations, the first and the last weight linear or
/// convolutions of one kernel size, and a linear one between them.
fn knows_trace(net: &Net) -> bool {
    let layers: Vec<_> = net.layers.iter().filter(|l| !matches!(l, LayerStage::ContextBias { .. })).collect();
    let kernel = |layer: &LayerStage| match layer {
        LayerStage::Linear { .. } => Some([1, 1]),
        LayerStage::Convolution { kernel, .. } => Some(*kernel),
        _ => None,
    };
    let expected = |(i, layer): (usize, &&LayerStage)| match layer {
        LayerStage::Activation(function) => i % 2 == 1 && function.activation().is_some(),
        layer => i % 2 == 0 && kernel(layer).is_some(),
    };
    let alike = |first: &&LayerStage, last: &&LayerStage| kernel(first) == kernel(last);
    layers.iter().enumerate().all(expected)
        && match &layers[..] {
            [first, _, last] => alike(first, last),
            [first, _, middle, _, last] => alike(first, last) && kernel(middle) == Some([1, 1]),
            _ => false,
        }
}

impl<B: Backend> Module<B> for OdeFlow<B> {
    crate::parts!(B; net: Module);

    fn describe(&self) -> String {
        format!("ODE flow, {} in training and {} else [{}]", self.training, self.evaluation, self.net.describe())
    }
}

impl<B: Backend> Bijection<B> for OdeFlow<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let dimension = self.shape.iter().product();
        Box::new(PreparedOdeFlow {
            net: self.net.prepare(backend),
            trained: trained_tensors(&*self.net),
            knows_trace: self.net.net().is_some_and(|net| knows_trace(&net)),
            cost: CostModel { dimension, multiply_adds: self.net.multiply_adds(&self.shape), bottleneck: None },
            training: self.training,
            evaluation: self.evaluation,
        })
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == self.shape {
            Ok(shape.to_vec())
        } else {
            let problem = format!("a continuous flow of samples {:?} cannot take samples {shape:?}", self.shape);
            Err(ConfigError::Inconsistent(problem))
        }
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let found = self.net.resize(backend, shape)?;
        if shape.len() != self.shape.len() || found != shape {
            let problem = format!("a continuous flow of samples {:?} cannot take samples {shape:?}", self.shape);
            return Err(ConfigError::Inconsistent(problem));
        }
        self.shape = shape.to_vec();
        Ok(found)
    }

    fn stage(&self) -> Option<Stage> {
        let (shape, training, evaluation) = (self.shape.clone(), self.training, self.evaluation);
        Some(Stage::OdeFlow { shape, net: self.net.net()?, training, evaluation })
    }
}

/// The flow, ready for computing.
#[derive(Debug)]
struct PreparedOdeFlow<B: Backend> {
    net: Box<dyn PreparedLayer<B>>,
    /// The trained tensors of the net.
    trained: usize,
    knows_trace: bool,
    cost: CostModel,
    training: OdeSolver,
    evaluation: OdeSolver,
}

/// The tape of a forward pass.
struct OdeTape<B: Backend> {
    embedding: Option<B::Tensor>,
    divergence: Divergence<B>,
    kept: Vec<Kept<B>>,
}

impl<B: Backend> PreparedOdeFlow<B> {
    fn field<'a>(&'a self, backend: &'a B, embedding: Option<B::Tensor>, divergence: Divergence<B>) -> Field<'a, B> {
        Field { backend, net: &*self.net, embedding, divergence }
    }

    /// The way to the trace at these samples, and whether it has no error but the solver's.
    fn divergence(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> (Divergence<B>, bool) {
        // a known trace is looked at by the control of steps whether it is wanted or not, so that they are the same
        if self.knows_trace {
            return (Divergence::Known, true);
        }
        let (draw, replicates, phase) = match ask.wanted {
            Wanted::Value => return (Divergence::None, true),
            Wanted::LogDet { draw, replicates } => (draw, Some(replicates), Phase::Evaluation),
            Wanted::Gradient { draw, .. } => (draw, None, Phase::Training),
        };
        let (shape, d) = (batch.shape(backend), self.cost.dimension);
        let (probe, probes): (Probe, usize) = match draw.estimator.resolve(&self.cost, phase) {
            Estimator::Exact(_) | Estimator::Auto(_) => {
                let unit = |i: usize| {
                    let one = |e: usize| if e % d == i { B::Elem::ONE } else { B::Elem::ZERO };
                    let values: Vec<_> = (0..shape.elements()).map(one).collect();
                    backend.upload(&values, shape)
                };
                return (Divergence::Products { vectors: (0..d).map(unit).collect(), columns: 1, scale: 1.0 }, true);
            }
            Estimator::Truncated(t) => (t.probe, t.probes),
            Estimator::RussianRoulette(r) => (r.probe, r.probes),
        };
        let keys: Vec<Key> = match replicates {
            None => vec![draw.key],
            Some(count) => (0..count as u64).map(|m| draw.key.named("replicate").split(m)).collect(),
        };
        // addresses wrap around beyond any honest number
        let first = batch.first.wrapping_mul(d as u64);
        let vector =
            |key: Key, p: usize| backend.noise(key.named("probe").split(p as u64), probe.noise(), first, shape);
        let vectors = keys.iter().flat_map(|&key| (0..probes).map(move |p| (key, p))).map(|(key, p)| vector(key, p));
        let scale = 1.0 / probes as f64;
        (Divergence::Products { vectors: vectors.collect(), columns: keys.len(), scale }, false)
    }
}

/// The reports of a solve; where the solver has none, what is finite has converged.
fn reports<B: Backend>(backend: &B, solved: &Solved<B>) -> Result<Vec<SampleReport>, Error> {
    if let Some(reports) = &solved.reports {
        return Ok(reports.clone());
    }
    let infinite = backend.affine(backend.unary(Unary::IsFinite, field::flat(backend, &solved.x)), -1.0, 1.0);
    let infinite = backend.download(&backend.reduce(Reduce::Max, Over::Row, &infinite))?;
    let report = |infinite: B::Elem| {
        let (residual, status) =
            if infinite == B::Elem::ZERO { (0.0, Status::Converged) } else { (f64::INFINITY, Status::NonFinite) };
        SampleReport { residual, error_bound: f64::INFINITY, iterations: solved.evaluations, status }
    };
    Ok(infinite.into_iter().map(report).collect())
}

impl<B: Backend> PreparedBijection<B> for PreparedOdeFlow<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let training = matches!(ask.wanted, Wanted::Gradient { .. });
        let solver = if training { &self.training } else { &self.evaluation };
        let (divergence, exact) = self.divergence(backend, batch, ask);
        let field = self.field(backend, batch.context.clone(), divergence);
        let mut solved = solve(&field, solver, ask.solver.accuracy(), [DATA, NOISE], &batch.x, training)?;
        let log_dets = ask.replicates().map(|_| LogDet { value: solved.log_det.clone(), exact }).into_iter().collect();
        let reports = if training && solved.reports.is_none() {
            // equal steps say nothing that would be worth waiting for in each step of a training, which looks at its loss
            let report = SampleReport {
                residual: 0.0,
                error_bound: f64::INFINITY,
                iterations: solved.evaluations,
                status: Status::Converged,
            };
            vec![report; batch.len(backend)]
        } else {
            reports(backend, &solved)?
        };
        let tape = training.then(|| {
            let kept = std::mem::take(&mut solved.kept);
            Tape::new(OdeTape { embedding: field.embedding, divergence: field.divergence, kept })
        });
        Ok(Mapped { y: solved.x, log_dets, reports: Some(reports), tape, terms: 0 })
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        let field = self.field(backend, batch.context.clone(), Divergence::None);
        let solved = solve(&field, &self.evaluation, how.accuracy(), [NOISE, DATA], &batch.x, false)?;
        let reports = reports(backend, &solved)?;
        // f's slope is not known, so an error in z may grow into any
        Ok(Solution { value: solved.x, reports, stretch: f64::INFINITY, certified: false })
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        // the gradient through the steps of the way back
        let field = self.field(backend, batch.context.clone(), Divergence::None);
        let z = solve(&field, &self.evaluation, how.accuracy(), [DATA, NOISE], &batch.x, false)?.x;
        let solved = solve(&field, &self.evaluation, how.accuracy(), [NOISE, DATA], &z, true)?;
        let reports = reports(backend, &solved)?;
        let nothing = backend.full(0.0, [batch.len(backend), 1].into());
        let mut grads = vec![None; self.trained];
        let value =
            pull_back_solve(&field, &self.evaluation, &solved.kept, gradient.clone(), &nothing, &mut grads, &mut None);
        Ok(Solution { value, reports, stretch: f64::INFINITY, certified: false })
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        mut cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        let OdeTape { embedding, divergence, kept } = tape.into_value::<OdeTape<B>>();
        let field = self.field(backend, embedding, divergence);
        let (of_z, of_log_det) = (cotangents.x.clone(), cotangents.log_det.clone());
        let x = pull_back_solve(&field, &self.training, &kept, of_z, &of_log_det, grads, &mut cotangents.context);
        Ok(cotangents.with_x(x))
    }

    fn velocity(&self) -> Option<&dyn Velocity<B>> {
        Some(self)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        // the net is a Sequence, which keeps the gradients of its norm orders itself
        let _ = self.net.finish_gradients(backend, grads);
    }
}
