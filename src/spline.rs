//! Spline coupling (Durkan et al. 2019, arXiv 1906.04032, §4.1) of rows: a part a of the numbers stays, each of the rest b
//! is moved by a monotone rational-quadratic spline whose parameters the net gives,
//!
//! y_b = RQ(x_b; net(x_a)),  y_a = x_a or RQ(x_a; φ),  log|det ∂y/∂x| = Σ ln RQ'.
//!
//! With unconditional splines φ, what stays is mapped too, after the net has read it. What a spline and its 3K − 1 raw
//! parameters are is written at [`Spline`]; raw widths and heights of the net are divided by the root of its hidden width.
//!
//! Invariant: the net never sees what it moves, and every spline is increasing, so the Jacobian is triangular, the log det
//! exact and the inverse a formula, whatever the net. Raw parameters of zero are the identity.

use resflow_backend::{Backend, Binary, Over, Reduce, Spline, SplineReverse, Unary};

use crate::batch::Batch;
use crate::bijection::{Ask, Bijection, Cotangents, Mapped, PreparedBijection, Tape};
use crate::coupling_net::{CouplingNet, CouplingTape, mapped};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Derivatives, Layer, LayerGrads};
use crate::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate, trained_tensors};
pub use crate::stage::Splines;
use crate::stage::Stage;

/// A coupling of rows by splines.
#[derive(Debug, Clone)]
pub struct SplineCoupling<B: Backend> {
    net: Box<dyn Layer<B>>,
    /// φ, `[1, a (3K − 1)]`.
    unconditional: Option<B::Tensor>,
    features: usize,
    swapped: bool,
    splines: Splines,
}

impl<B: Backend> SplineCoupling<B> {
    /// Builds the coupling of rows of `features` numbers, of which the first ⌈d/2⌉ stay, or swapped the last ⌊d/2⌋. The net
    /// gives the 3K − 1 raw parameters of each number that moves, one number after the other. Unconditional splines begin
    /// as the identity.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for splines that there are not, [`ConfigError::Inconsistent`] if there are no two
    /// features or the net does not map those that stay to so many parameters.
    pub fn new(
        backend: &B,
        net: Box<dyn Layer<B>>,
        features: usize,
        swapped: bool,
        splines: Splines,
    ) -> Result<Self, ConfigError> {
        splines.check()?;
        if features < 2 {
            return Err(ConfigError::Inconsistent(format!("rows of {features} features have no two to couple")));
        }
        let [(_, stays), (_, moves)] = Splines::sides(features, swapped);
        let wanted = moves.checked_mul(splines.parameters());
        let found = net.output_shape(&[stays])?;
        if wanted.is_none_or(|wanted| found != [wanted]) {
            return Err(ConfigError::Inconsistent(format!(
                "the net of a spline coupling of rows of {features} features maps {stays} numbers to {found:?}; it needs \
                 {moves} times {}, the parameters of {} bins",
                splines.parameters(),
                splines.bins
            )));
        }
        let parameters = stays.saturating_mul(splines.parameters());
        let unconditional = splines.unconditional.then(|| backend.full(0.0, [1, parameters].into()));
        Ok(Self { net, unconditional, features, swapped, splines })
    }
}

impl<B: Backend> Module<B> for SplineCoupling<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        show("net", Part::Module(&*self.net));
        if let Some(unconditional) = &self.unconditional {
            show("unconditional", Part::Tensor(unconditional, Role::Parameter));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        show("net", PartMut::Module(&mut *self.net));
        if let Some(unconditional) = &mut self.unconditional {
            show("unconditional", PartMut::Tensor(unconditional, Role::Parameter));
        }
    }

    fn describe(&self) -> String {
        let Splines { bins, bound, .. } = self.splines;
        let half = if self.swapped { "second" } else { "first" };
        let fate = if self.unconditional.is_some() { "has splines of its own" } else { "stays" };
        format!("spline coupling, {bins} bins in ±{bound}, the {half} half {fate} [{}]", self.net.describe())
    }
}

impl<B: Backend> Bijection<B> for SplineCoupling<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let Splines { bins, bound, hidden, .. } = self.splines;
        let [stays, moves] = Splines::sides(self.features, self.swapped);
        Box::new(PreparedCoupling {
            net: CouplingNet::new(self.net.prepare(backend)),
            trained: trained_tensors(&*self.net),
            unconditional: self.unconditional.clone(),
            stays,
            moves,
            by_net: Spline { bins, bound, sharpness: 1.0 / (hidden as f64).sqrt() },
            by_itself: Spline { bins, bound, sharpness: 1.0 },
        })
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == [self.features] {
            Ok(shape.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!(
                "a spline coupling of rows of {} features cannot take samples {shape:?}",
                self.features
            )))
        }
    }

    fn stage(&self) -> Option<Stage> {
        let Self { features, swapped, splines, .. } = *self;
        Some(Stage::SplineCoupling { features, swapped, splines, net: self.net.net()? })
    }
}

/// A coupling ready for computing.
#[derive(Debug)]
struct PreparedCoupling<B: Backend> {
    net: CouplingNet<B>,
    /// The trained tensors of the net.
    trained: usize,
    unconditional: Option<B::Tensor>,
    /// (start, length) of what stays and of what moves.
    stays: (usize, usize),
    moves: (usize, usize),
    by_net: Spline,
    by_itself: Spline,
}

impl<B: Backend> PreparedCoupling<B> {
    /// Splits x, `[n, d]`, into x_a and x_b.
    fn apart(&self, backend: &B, x: &B::Tensor) -> [B::Tensor; 2] {
        [self.stays, self.moves].map(|(start, length)| backend.narrow(x, 1, start, length))
    }

    fn together(&self, backend: &B, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        backend.concat(&if self.stays.0 < self.moves.0 { [a, b] } else { [b, a] }, 1)
    }

    /// φ for each of n rows, `[n, a (3K − 1)]`.
    fn own(&self, backend: &B, rows: usize) -> Option<B::Tensor> {
        let unconditional = self.unconditional.as_ref()?;
        let zeros = backend.full(0.0, [rows, backend.shape(unconditional)[1]].into());
        Some(backend.binary(Binary::Add, zeros, unconditional))
    }

    /// Computes y, `[n, d]`, and the log det of each row, `[n, 1]`, from x and the net's output.
    fn map(&self, backend: &B, a: &B::Tensor, b: &B::Tensor, raw: &B::Tensor) -> [B::Tensor; 2] {
        let [moved, logs] = backend.spline(&self.by_net, b, raw);
        let log_det = backend.reduce(Reduce::Sum, Over::Row, &logs);
        let Some(own) = self.own(backend, backend.shape(a).rows()) else {
            return [self.together(backend, a, &moved), log_det];
        };
        let [stayed, logs] = backend.spline(&self.by_itself, a, &own);
        let log_det = backend.axpy(1.0, &backend.reduce(Reduce::Sum, Over::Row, &logs), log_det);
        [self.together(backend, &stayed, &moved), log_det]
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedCoupling<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let [a, b] = self.apart(backend, &batch.x);
        let (raw, tape) = self.net.say_for(backend, batch, &a, ask);
        let [y, log_det] = self.map(backend, &a, &b, &raw);
        Ok(mapped(ask, y, log_det, tape))
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, _how: &Inversion) -> Result<Solution<B>, Error> {
        let [mut a, b] = self.apart(backend, &batch.x);
        if let Some(own) = self.own(backend, batch.len(backend)) {
            a = backend.spline_inverse(&self.by_itself, &a, &own);
        }
        let (raw, _) = self.net.say(backend, batch, &a, Derivatives::None);
        let b = backend.spline_inverse(&self.by_net, &b, &raw);
        // the net's slope is not known, so an error in y may grow into any
        Ok(Solution::by_formula(backend, self.together(backend, &a, &b), f64::INFINITY)?)
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        _how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        // Jᵀ = [[D_a, Nᵀ], [0, D_b]] with N = ∂y_b/∂x_a through the net: a_b = g_b/D_b, a_a = (g_a − Nᵀ a_b)/D_a
        let [a, b] = self.apart(backend, &batch.x);
        let (raw, saved) = self.net.say(backend, batch, &a, Derivatives::First);
        let divide = |g: B::Tensor, logs: &B::Tensor| {
            let inverse = backend.unary(Unary::Exp, backend.affine(logs.clone(), -1.0, 0.0));
            backend.binary(Binary::Mul, g, &inverse)
        };
        let [ga, gb] = self.apart(backend, gradient);
        let [_, logs] = backend.spline(&self.by_net, &b, &raw);
        let solved = divide(gb, &logs);
        let nothing = backend.full(0.0, [batch.len(backend), 1].into());
        let graw = backend.spline_reverse(&self.by_net, &b, &raw, &solved, &nothing).graw;
        let mut ga = backend.axpy(-1.0, &self.net.vjp(backend, &saved, graw), ga);
        if let Some(own) = self.own(backend, batch.len(backend)) {
            let [_, logs] = backend.spline(&self.by_itself, &a, &own);
            ga = divide(ga, &logs);
        }
        Ok(Solution::by_formula(backend, self.together(backend, &ga, &solved), f64::INFINITY)?)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        mut cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        let mut tape = tape.into_value::<CouplingTape<B>>();
        let [a, b] = self.apart(backend, &tape.batch.x);
        let (raw, saved) = self.net.recall(backend, &mut tape, &a);
        let [mut ga, gb] = self.apart(backend, &cotangents.x);
        let weights = &cotangents.log_det;
        let SplineReverse { gx: gx_b, graw } = backend.spline_reverse(&self.by_net, &b, &raw, &gb, weights);
        let (trained, unconditional) = grads.split_at_mut(self.trained);
        if let Some(own) = self.own(backend, tape.batch.len(backend)) {
            let SplineReverse { gx, graw } = backend.spline_reverse(&self.by_itself, &a, &own, &ga, weights);
            let sum = backend.reduce(Reduce::Sum, Over::Channel, &graw);
            let sum = backend.reshape(&sum, [1, backend.shape(&own)[1]].into());
            accumulate(backend, &mut unconditional[0], &sum);
            ga = gx;
        }
        let own = LayerGrads { trained, context: &mut cotangents.context };
        let ga_net = self.net.pull_back(backend, &tape.batch, &saved, graw, own);
        let gx = self.together(backend, &backend.axpy(1.0, &ga_net, ga), &gx_b);
        Ok(cotangents.with_x(gx))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        let (trained, unconditional) = grads.split_at_mut(self.trained);
        self.net.finish_gradients(backend, trained);
        if let (Some(grad), Some(own)) = (unconditional.first_mut(), &self.unconditional) {
            grad.get_or_insert_with(|| backend.full(0.0, backend.shape(own)));
        }
    }
}
