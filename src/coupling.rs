//! Affine coupling (Dinh et al. 2017, arXiv 1605.08803, eqs. 7 and 8): a part a of the numbers stays, the
//! rest b is moved,
//!
//! y_a = x_a,  y_b = x_b ∘ σ(s + 2)/c + t  with [s | t] = net(x_a),  log|det ∂y/∂x| = Σ ln σ(s + 2) − ln c
//!
//! with c = 1, or σ(2) of a centred coupling, which a net of zeros makes the identity. As a conditional prior it moves what
//! is factored out behind it, the last half of the channels,
//!
//! y_b = x_b ∘ e^a + t  with a = 3·tanh(s/3),  log|det ∂y/∂x| = Σ a
//!
//! so that x_b, whose y_b is N(0, I), is N(−t e^{−a}, e^{−2a}) given what goes on (Kingma & Dhariwal 2018, arXiv 1807.03039).
//!
//! Invariant: the net never sees what it moves, so the Jacobian is triangular, the log det exact and the inverse a
//! formula, whatever the net. With v = −(s + 2): ln σ = −softplus(v) and 1/σ = e^{softplus(v)}, so neither loses
//! precision where σ is small.

use resflow_backend::{Activation, Backend, Binary, Element as _, Over, Reduce, Unary};

use crate::batch::{Batch, per_sample};
use crate::bijection::{Ask, Bijection, Cotangents, Mapped, PreparedBijection, Tape};
use crate::coupling_net::{CouplingNet, CouplingTape, mapped};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Derivatives, Layer, LayerGrads};
use crate::module::{Grad, Module};
pub use crate::stage::Mask;
use crate::stage::Stage;
use crate::tiled::{tile_samples, tiled};

/// The shift of s, by which a fresh coupling is close to the identity.
const SHIFT: f64 = 2.0;
/// The most that |a| of a prior tends to.
const MOST: f64 = 3.0;

/// How s scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scaling {
    /// σ(s + 2).
    Sigmoid,
    /// σ(s + 2)/σ(2).
    Centred,
    /// e^{3·tanh(s/3)}.
    Prior,
}

/// An affine coupling.
#[derive(Debug, Clone)]
pub struct Coupling<B: Backend> {
    net: Box<dyn Layer<B>>,
    mask: Mask,
    shape: Vec<usize>,
    scaling: Scaling,
}

impl<B: Backend> Coupling<B> {
    /// Builds the coupling of samples of a shape, `[d]` or `[h, w, c]`, by a net whose output is s and t side by side.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the mask leaves nothing on one side, or the net does not map the shapes
    /// of [`Mask::net_shapes`].
    pub fn new(net: Box<dyn Layer<B>>, mask: Mask, shape: &[usize]) -> Result<Self, ConfigError> {
        let [input, output] = mask.net_shapes(shape)?;
        let found = net.output_shape(&input)?;
        if found != output {
            return Err(ConfigError::Inconsistent(format!(
                "the net of a coupling of samples {shape:?} maps {input:?} to {found:?}; it needs {output:?}, s and t"
            )));
        }
        Ok(Self { net, mask, shape: shape.to_vec(), scaling: Scaling::Sigmoid })
    }

    /// Builds a conditional prior of images `[h, w, c]`: the last c/2 channels leave the chain behind it, moved and scaled by
    /// what the net, c/2 → c channels, says of the others. A net of zeros makes it the identity.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for samples that are no images or have an odd number of channels, and the errors of
    /// [`new`](Self::new).
    pub fn prior(net: Box<dyn Layer<B>>, shape: &[usize]) -> Result<Self, ConfigError> {
        if shape.len() != 3 || !shape[2].is_multiple_of(2) {
            let problem = format!("a conditional prior halves the channels of images, not samples {shape:?}");
            return Err(ConfigError::Inconsistent(problem));
        }
        let coupling = Self::new(net, Mask::Channels { swapped: false }, shape)?;
        Ok(Self { scaling: Scaling::Prior, ..coupling })
    }

    /// Divides the scale by its value at s = 0 or does not.
    pub fn with_centre(self, centred: bool) -> Self {
        Self { scaling: if centred { Scaling::Centred } else { Scaling::Sigmoid }, ..self }
    }
}

impl<B: Backend> Module<B> for Coupling<B> {
    crate::parts!(B; net: Module);

    fn describe(&self) -> String {
        let net = self.net.describe();
        let centred = match self.scaling {
            Scaling::Prior => return format!("conditional prior of the last {} channels [{net}]", self.factored_out()),
            Scaling::Centred => "centred ",
            Scaling::Sigmoid => "",
        };
        format!("{centred}affine coupling, {} [{net}]", self.mask.describe())
    }
}

impl<B: Backend> Bijection<B> for Coupling<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let split = Split::new(backend, self.mask, &self.shape);
        let coupling =
            PreparedCoupling { net: CouplingNet::new(self.net.prepare(backend)), split, scaling: self.scaling };
        let [input, _] = self.mask.net_shapes(&self.shape).expect("checked when it was made");
        tiled(Box::new(coupling), tile_samples(backend, &*self.net, &input, &self.shape))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == self.shape {
            Ok(shape.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!(
                "a coupling of samples {:?} cannot take samples {shape:?}",
                self.shape
            )))
        }
    }

    fn stage(&self) -> Option<Stage> {
        let (shape, mask, net) = (self.shape.clone(), self.mask, self.net.net()?);
        Some(match self.scaling {
            Scaling::Prior => Stage::ConditionalPrior { shape, net },
            scaling => Stage::Coupling { shape, mask, net, centred: scaling == Scaling::Centred },
        })
    }

    fn factored_out(&self) -> usize {
        if self.scaling == Scaling::Prior { self.shape[2] / 2 } else { 0 }
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [input, output] = self.mask.net_shapes(shape)?;
        let found = self.net.resize(backend, &input)?;
        if shape.len() != self.shape.len() || found != output {
            return Err(ConfigError::Inconsistent(format!("a coupling cannot take samples of shape {shape:?}")));
        }
        self.shape = shape.to_vec();
        Ok(shape.to_vec())
    }
}

/// The split of samples into a and b.
#[derive(Debug)]
pub(crate) enum Split<B: Backend> {
    /// (start, length) of what stays and of what moves, on the last axis.
    Channels { stays: (usize, usize), moves: (usize, usize) },
    /// Ones at the pixels that stay and at those that move, `[1, h, w, 1]`.
    Checkerboard { stays: B::Tensor, moves: B::Tensor },
}

impl<B: Backend> Split<B> {
    pub(crate) fn new(backend: &B, mask: Mask, shape: &[usize]) -> Self {
        match (mask, shape) {
            (Mask::Checkerboard { swapped }, &[h, w, _]) => {
                let pixels = |odd: bool| {
                    let one = |p: usize| f64::from(u8::from(((p / w + p % w) % 2 == 1) == odd));
                    let values: Vec<_> = (0..h * w).map(|p| B::Elem::from_f64(one(p))).collect();
                    backend.upload(&values, [1, h, w, 1].into())
                };
                Self::Checkerboard { stays: pixels(swapped), moves: pixels(!swapped) }
            }
            (mask, shape) => {
                let c = shape.last().copied().unwrap_or(0);
                let (first, last) = ((0, c - c / 2), (c - c / 2, c / 2));
                if mask == (Mask::Channels { swapped: true }) {
                    // the second half stays, the first half moves
                    Self::Channels { stays: last, moves: first }
                } else {
                    Self::Channels { stays: first, moves: last }
                }
            }
        }
    }

    /// Splits x, `[n, …]`, into x_a, as the net takes it, and x_b; under a checkerboard x_b comes with
    /// the pixels of x_a.
    pub(crate) fn apart(&self, backend: &B, x: &B::Tensor) -> (B::Tensor, B::Tensor) {
        match self {
            Self::Channels { stays, moves } => {
                let axis = backend.shape(x).rank() - 1;
                let part = |&(start, length): &(usize, usize)| backend.narrow(x, axis, start, length);
                (part(stays), part(moves))
            }
            Self::Checkerboard { stays, .. } => (backend.binary(Binary::Mul, x.clone(), stays), x.clone()),
        }
    }

    /// Joins a and b to samples, `[n, …]`.
    pub(crate) fn together(&self, backend: &B, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        match self {
            Self::Channels { stays, moves } => {
                let axis = backend.shape(a).rank() - 1;
                if stays.0 < moves.0 { backend.concat(&[a, b], axis) } else { backend.concat(&[b, a], axis) }
            }
            Self::Checkerboard { moves, .. } => backend.select(moves, b, a),
        }
    }

    /// Sets zeros where nothing moves.
    pub(crate) fn moving(&self, backend: &B, b: B::Tensor) -> B::Tensor {
        match self {
            Self::Channels { .. } => b,
            Self::Checkerboard { moves, .. } => backend.binary(Binary::Mul, b, moves),
        }
    }
}

/// A coupling ready for computing.
#[derive(Debug)]
struct PreparedCoupling<B: Backend> {
    net: CouplingNet<B>,
    split: Split<B>,
    scaling: Scaling,
}

/// The affine map of x_b that the net gives.
struct Affine<B: Backend> {
    /// softplus(v) = −ln σ(s + 2), plus ln c; of a prior −a.
    decay: B::Tensor,
    /// σ(v) = 1 − σ(s + 2) = ∂ ln σ(s + 2)/∂s; of a prior ∂a/∂s = 1 − tanh²(s/3).
    slope: B::Tensor,
    t: B::Tensor,
}

impl<B: Backend> Affine<B> {
    fn of(backend: &B, st: &B::Tensor, scaling: Scaling) -> Self {
        let shape = backend.shape(st);
        let (axis, width) = (shape.rank() - 1, shape.channels() / 2);
        let (s, t) = (backend.narrow(st, axis, 0, width), backend.narrow(st, axis, width, width));
        if scaling == Scaling::Prior {
            let mut orders = backend.activation(Activation::Tanh, None, &backend.affine(s, 1.0 / MOST, 0.0), 1);
            let slope = orders.swap_remove(1);
            return Self { decay: backend.affine(orders.swap_remove(0), -MOST, 0.0), slope, t };
        }
        let v = backend.affine(s, -1.0, -SHIFT);
        let mut orders = backend.activation(Activation::Softplus, None, &v, 1);
        let slope = orders.swap_remove(1);
        let mut decay = orders.swap_remove(0);
        if scaling == Scaling::Centred {
            decay = backend.affine(decay, 1.0, -(-SHIFT).exp().ln_1p());
        }
        Self { decay, slope, t }
    }

    /// σ(s + 2)/c, or e^a.
    fn scale(&self, backend: &B) -> B::Tensor {
        backend.unary(Unary::Exp, backend.affine(self.decay.clone(), -1.0, 0.0))
    }
}

impl<B: Backend> PreparedCoupling<B> {
    /// Computes y, `[n, …]`, and the log det of each sample, `[n, 1]`, from x and the net's output.
    fn map(&self, backend: &B, a: &B::Tensor, b: &B::Tensor, st: &B::Tensor) -> (B::Tensor, B::Tensor) {
        let affine = Affine::of(backend, st, self.scaling);
        let moved = backend.axpy(1.0, &affine.t, backend.binary(Binary::Mul, affine.scale(backend), b));
        let decay = backend.reduce(Reduce::Sum, Over::Row, &self.split.moving(backend, affine.decay));
        (self.split.together(backend, a, &moved), backend.affine(decay, -1.0, 0.0))
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedCoupling<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let (a, b) = self.split.apart(backend, &batch.x);
        let (st, tape) = self.net.say_for(backend, batch, &a, ask);
        let (y, log_det) = self.map(backend, &a, &b, &st);
        Ok(mapped(ask, y, log_det, tape))
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, _how: &Inversion) -> Result<Solution<B>, Error> {
        let (a, b) = self.split.apart(backend, &batch.x);
        let (st, _) = self.net.say(backend, batch, &a, Derivatives::None);
        let Affine { decay, t, .. } = Affine::of(backend, &st, self.scaling);
        let moved = backend.binary(Binary::Mul, backend.unary(Unary::Exp, decay), &backend.axpy(-1.0, &t, b));
        let x = self.split.together(backend, &a, &moved);
        // the net's slope is not known, so an error in y may grow into any
        Ok(Solution::by_formula(backend, x, f64::INFINITY)?)
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        _how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        // Jᵀ = [[I, Nᵀ], [0, σ]] with N = ∂y_b/∂x_a: a_b = g_b/σ, a_a = g_a − Nᵀ a_b
        let (a, b) = self.split.apart(backend, &batch.x);
        let (st, saved) = self.net.say(backend, batch, &a, Derivatives::First);
        let affine = Affine::of(backend, &st, self.scaling);
        let (ga, gb) = self.split.apart(backend, gradient);
        let gb = self.split.moving(backend, gb);
        let solved = backend.binary(Binary::Mul, gb.clone(), &backend.unary(Unary::Exp, affine.decay.clone()));
        let solved = self.split.moving(backend, solved);
        let gs = backend.binary(Binary::Mul, backend.binary(Binary::Mul, gb, &b), &affine.slope);
        let gst = backend.concat(&[&gs, &solved], backend.shape(&b).rank() - 1);
        let through = self.net.vjp(backend, &saved, gst);
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
        let (st, saved) = self.net.recall(backend, &mut tape, &a);
        let affine = Affine::of(backend, &st, self.scaling);
        let (ga, gb) = self.split.apart(backend, &cotangents.x);
        let gb = self.split.moving(backend, gb);
        let gx_b = backend.binary(Binary::Mul, gb.clone(), &affine.scale(backend));
        // ∂y_b/∂s = x_b σ (1 − σ), and each number that moves adds ∂ ln σ/∂s = 1 − σ to its sample's log det
        let shape = backend.shape(&b);
        let weight = per_sample(backend, &cotangents.log_det, shape);
        let weight = self.split.moving(backend, backend.binary(Binary::Add, backend.full(0.0, shape), &weight));
        let through = backend.axpy(1.0, &backend.binary(Binary::Mul, gx_b.clone(), &b), weight);
        let gs = backend.binary(Binary::Mul, through, &affine.slope);
        let gst = backend.concat(&[&gs, &gb], shape.rank() - 1);
        let own = LayerGrads { trained: grads, context: &mut cotangents.context };
        let ga_net = self.net.pull_back(backend, &tape.batch, &saved, gst, own);
        let gx = self.split.together(backend, &backend.axpy(1.0, &ga_net, ga), &gx_b);
        Ok(cotangents.with_x(gx))
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        self.net.finish_gradients(backend, grads);
    }
}
