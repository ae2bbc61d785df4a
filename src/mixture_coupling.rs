//! Flow++'s coupling (Ho, Chen, Srinivas, Duan and Abbeel 2019, arXiv 1902.00275): a part a of the numbers stays, each of the rest b is
//! moved by the logit of the CDF of a mixture of K logistics, scaled and shifted, whose 3K + 2 parameters the net gives,
//!
//! y_a = x_a,  y_b = e^α logit F(x_b; π, μ, s) + β,  [α̂ | β | π̂ | μ̂ | ŝ] = net(x_a),  α = tanh α̂,
//!
//! see [`LogisticMixture`]. ln π_k = π̂_k up to a constant and s_k = ŝ_k, as published. μ_k = c_k μ̂_k with c_k = 1 + k/K, k from 0, is
//! ours: a net of zeros makes the identity, since a mixture of equal logistics is one of them, and its components part from each other in
//! the first step, although an optimiser that scales gradients moves all μ̂_k alike.
//!
//! Invariant: the net never sees what it moves, and the map of each number increases, so the Jacobian is triangular and the log det exact,
//! whatever the net. The inverse is a search that ends, with a status for each sample.

use resflow_backend::{Backend, Binary, Element as _, Over, Reduce, Unary};

use crate::batch::{Batch, per_sample};
use crate::bijection::{Ask, Bijection, Cotangents, Mapped, PreparedBijection, Tape};
use crate::coupling::Split;
use crate::coupling_net::{CouplingNet, CouplingTape, mapped};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, SampleReport, Solution, Status};
use crate::layer::{Derivatives, Layer, LayerGrads};
use crate::logistic::{LogisticMixture, MixtureGradient};
use crate::module::{Grad, Module};
pub use crate::stage::Mask;
use crate::stage::{Logistics, Stage};
use crate::tiled::{tile_samples, tiled};

/// A coupling by mixtures of logistics.
#[derive(Debug, Clone)]
pub struct MixtureCoupling<B: Backend> {
    net: Box<dyn Layer<B>>,
    mask: Mask,
    shape: Vec<usize>,
    logistics: Logistics,
}

impl<B: Backend> MixtureCoupling<B> {
    /// Builds the coupling of samples of a shape, `[d]` or `[h, w, c]`, by a net from the input of [`Mask::net_shapes`] to 3K + 2 numbers for
    /// each that moves: α̂ of all, β of all, and then π̂, μ̂ and ŝ of all, component by component.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a number of components that there is not, [`ConfigError::Inconsistent`] if the mask
    /// leaves nothing on one side, or the net does not map these shapes.
    pub fn new(net: Box<dyn Layer<B>>, mask: Mask, shape: &[usize], logistics: Logistics) -> Result<Self, ConfigError> {
        let [input, output] = logistics.net_shapes(mask, shape)?;
        let found = net.output_shape(&input)?;
        if found != output {
            return Err(ConfigError::Inconsistent(format!(
                "the net of a mixture coupling of samples {shape:?} maps {input:?} to {found:?}; it needs {output:?}, {} numbers for each \
                 that moves",
                logistics.parameters()
            )));
        }
        Ok(Self { net, mask, shape: shape.to_vec(), logistics })
    }
}

impl<B: Backend> Module<B> for MixtureCoupling<B> {
    crate::parts!(B; net: Module);

    fn describe(&self) -> String {
        let Logistics { components } = self.logistics;
        format!("mixture coupling, {components} logistics, {} [{}]", self.mask.describe(), self.net.describe())
    }
}

impl<B: Backend> Bijection<B> for MixtureCoupling<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let split = Split::new(backend, self.mask, &self.shape);
        let coupling = PreparedCoupling {
            net: CouplingNet::new(self.net.prepare(backend)),
            split,
            components: self.logistics.components,
        };
        let [input, _] = self.mask.net_shapes(&self.shape).expect("checked when it was made");
        tiled(Box::new(coupling), tile_samples(backend, &*self.net, &input, &self.shape))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == self.shape {
            return Ok(shape.to_vec());
        }
        let problem = format!("a mixture coupling of samples {:?} cannot take samples {shape:?}", self.shape);
        Err(ConfigError::Inconsistent(problem))
    }

    fn stage(&self) -> Option<Stage> {
        let (shape, mask, logistics) = (self.shape.clone(), self.mask, self.logistics);
        Some(Stage::MixtureCoupling { shape, mask, logistics, net: self.net.net()? })
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [input, output] = self.logistics.net_shapes(self.mask, shape)?;
        let found = self.net.resize(backend, &input)?;
        if shape.len() != self.shape.len() || found != output {
            return Err(ConfigError::Inconsistent(format!(
                "a mixture coupling cannot take samples of shape {shape:?}"
            )));
        }
        self.shape = shape.to_vec();
        Ok(shape.to_vec())
    }
}

/// c_k of K components.
fn spread(k: usize, components: usize) -> f64 {
    1.0 + k as f64 / components as f64
}

/// A coupling ready for computing.
#[derive(Debug)]
struct PreparedCoupling<B: Backend> {
    net: CouplingNet<B>,
    split: Split<B>,
    components: usize,
}

impl<B: Backend> PreparedCoupling<B> {
    /// The parameters that the net gives, and tanh' at α̂.
    fn mixture(&self, backend: &B, raw: &B::Tensor) -> (LogisticMixture<B>, B::Tensor) {
        let (shape, k) = (backend.shape(raw), self.components);
        let (axis, width) = (shape.rank() - 1, shape.channels() / (3 * k + 2));
        let part = |i: usize| backend.narrow(raw, axis, i * width, width);
        let log_scale = backend.unary(Unary::Tanh, part(0));
        let slope = backend.affine(backend.unary(Unary::Square, log_scale.clone()), -1.0, 1.0);
        let mixture = LogisticMixture {
            log_weights: (0..k).map(|i| part(2 + i)).collect(),
            means: (0..k).map(|i| backend.affine(part(2 + k + i), spread(i, k), 0.0)).collect(),
            log_scales: (0..k).map(|i| part(2 + 2 * k + i)).collect(),
            log_scale,
            shift: part(1),
        };
        (mixture, slope)
    }

    /// The gradient in the net's output, from that in the parameters.
    fn of_raw(&self, backend: &B, gradient: &LogisticMixture<B>, slope: &B::Tensor) -> B::Tensor {
        let k = self.components;
        let log_scale = backend.binary(Binary::Mul, gradient.log_scale.clone(), slope);
        let means: Vec<_> =
            gradient.means.iter().enumerate().map(|(i, g)| backend.affine(g.clone(), spread(i, k), 0.0)).collect();
        let parts: Vec<_> = [&log_scale, &gradient.shift]
            .into_iter()
            .chain(&gradient.log_weights)
            .chain(&means)
            .chain(&gradient.log_scales)
            .collect();
        let axis = backend.shape(&log_scale).rank() - 1;
        backend.concat(&parts, axis)
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedCoupling<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let (a, b) = self.split.apart(backend, &batch.x);
        let (raw, tape) = self.net.say_for(backend, batch, &a, ask);
        let [moved, logs] = self.mixture(backend, &raw).0.map(backend, &b);
        let log_det = backend.reduce(Reduce::Sum, Over::Row, &self.split.moving(backend, logs));
        Ok(mapped(ask, self.split.together(backend, &a, &moved), log_det, tape))
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, _how: &Inversion) -> Result<Solution<B>, Error> {
        let (a, b) = self.split.apart(backend, &batch.x);
        let (raw, _) = self.net.say(backend, batch, &a, Derivatives::None);
        let (mixture, _) = self.mixture(backend, &raw);
        let solved = mixture.invert(backend, &b)?;
        let [again, _] = mixture.map(backend, &solved.x);
        let x = self.split.together(backend, &a, &solved.x);
        let length = |t: &B::Tensor| {
            let rows = backend.reshape(t, [batch.len(backend), backend.shape(t).row_elements()].into());
            backend.dot_rows(&rows, &rows)
        };
        let residual = self.split.moving(backend, backend.axpy(-1.0, &b, again));
        let change = self.split.moving(backend, solved.change);
        let missing = self.split.moving(backend, backend.affine(solved.found, -1.0, 1.0));
        let finite = backend.reshape(&x, [batch.len(backend), backend.shape(&x).row_elements()].into());
        let infinite = backend.affine(backend.unary(Unary::IsFinite, finite), -1.0, 1.0);
        let most = |t: &B::Tensor| backend.reduce(Reduce::Max, Over::Row, t);
        let columns = [length(&residual), length(&batch.x), length(&change), most(&missing), most(&infinite)];
        let found = backend.download(&backend.concat(&columns.iter().collect::<Vec<_>>(), 1))?;
        let report = |row: &[B::Elem]| {
            let [residual, size, change] = [0, 1, 2].map(|i| row[i].to_f64().sqrt());
            let status = if row[4] != B::Elem::ZERO {
                Status::NonFinite
            } else if row[3] != B::Elem::ZERO {
                Status::NotConverged
            } else {
                Status::Converged
            };
            let [residual, error_bound] =
                if status == Status::Converged { [residual / size.max(1.0), change] } else { [f64::INFINITY; 2] };
            SampleReport { residual, error_bound, iterations: solved.iterations, status }
        };
        let reports = found.chunks_exact(columns.len()).map(report).collect();
        // the net's slope is not known, so an error in y may grow into any
        Ok(Solution { value: x, reports, stretch: f64::INFINITY, certified: false })
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        _how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        // Jᵀ = [[I, Nᵀ], [0, D]] with N = ∂y_b/∂x_a: a_b = g_b/D, a_a = g_a − Nᵀ a_b
        let (a, b) = self.split.apart(backend, &batch.x);
        let (raw, saved) = self.net.say(backend, batch, &a, Derivatives::First);
        let (mixture, slope) = self.mixture(backend, &raw);
        let (ga, gb) = self.split.apart(backend, gradient);
        let [_, logs] = mixture.map(backend, &b);
        let inverse = backend.unary(Unary::Exp, backend.affine(logs, -1.0, 0.0));
        let solved = self.split.moving(backend, backend.binary(Binary::Mul, gb, &inverse));
        let nothing = backend.full(0.0, backend.shape(&b));
        let MixtureGradient { parameters, .. } = mixture.pull_back(backend, &b, &solved, &nothing);
        let through = self.net.vjp(backend, &saved, self.of_raw(backend, &parameters, &slope));
        let out = self.split.together(backend, &backend.axpy(-1.0, &through, ga), &solved);
        Ok(Solution::by_formula(backend, out, f64::INFINITY)?)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        mut cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        let mut tape = tape.into_value::<CouplingTape<B>>();
        let (a, b) = self.split.apart(backend, &tape.batch.x);
        let (raw, saved) = self.net.recall(backend, &mut tape, &a);
        let (mixture, slope) = self.mixture(backend, &raw);
        let (ga, gb) = self.split.apart(backend, &cotangents.x);
        let gb = self.split.moving(backend, gb);
        let shape = backend.shape(&b);
        let weight = per_sample(backend, &cotangents.log_det, shape);
        let weight = self.split.moving(backend, backend.binary(Binary::Add, backend.full(0.0, shape), &weight));
        let MixtureGradient { x: gx_b, parameters } = mixture.pull_back(backend, &b, &gb, &weight);
        let graw = self.of_raw(backend, &parameters, &slope);
        let own = LayerGrads { trained: grads, context: &mut cotangents.context };
        let ga_net = self.net.pull_back(backend, &tape.batch, &saved, graw, own);
        let gx = self.split.together(backend, &backend.axpy(1.0, &ga_net, ga), &gx_b);
        Ok(cotangents.with_x(gx))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        self.net.finish_gradients(backend, grads);
    }
}
