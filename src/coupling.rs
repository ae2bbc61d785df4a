//! Affine coupling (Dinh et al. 2017, arXiv 1605.08803, eqs. 7 and 8): a part a of the numbers stays, the rest b is moved,
//!
//! y_a = x_a,  y_b = x_b ∘ σ(s + 2) + t  with [s | t] = net(x_a),  log|det ∂y/∂x| = Σ ln σ(s + 2).
//!
//! Invariant: the net never sees what it moves, so the Jacobian is triangular, the log det exact and the inverse a
//! formula, whatever the net. With v = −(s + 2): ln σ = −softplus(v) and 1/σ = e^{softplus(v)}, so neither loses precision
//! where σ is small.

use resflow_backend::{Activation, Backend, Binary, Element as _, Over, Reduce, Unary};

use crate::bijection::{Bijection, Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, Solution};
use crate::layer::{Keep, Layer, PreparedLayer, Saved, Slot, Visitor, VisitorMut};
use crate::lipschitz::Refresh;
use crate::tiled::{tile_rows, tiled};

/// What is added to s: a fresh coupling is close to the identity.
const SHIFT: f64 = 2.0;

/// Which numbers of a row stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// The first ⌈c/2⌉ features or channels stay; swapped, the last ⌊c/2⌋ do.
    Channels {
        /// Whether it is the other part that stays.
        swapped: bool,
    },
    /// The pixels of an image whose row and column have an even sum stay; swapped, the others do.
    Checkerboard {
        /// Whether it is the other part that stays.
        swapped: bool,
    },
}

impl Mask {
    /// The shapes of what a coupling's net takes and gives, for rows of a shape: `[…, a]` and `[…, 2b]` channels; under a
    /// checkerboard the whole image, zero where it is moved, and 2c channels.
    ///
    /// # Errors
    /// If nothing would stay, or nothing be moved.
    pub fn net_shapes(self, row: &[usize]) -> Result<[Vec<usize>; 2], ConfigError> {
        let nothing = |what: &str| Err(ConfigError::Inconsistent(format!("rows of shape {row:?} have {what}")));
        let (input, output) = match (self, row) {
            (Self::Channels { .. }, &[.., c]) if c < 2 => return nothing("no two features to couple"),
            (Self::Channels { swapped }, &[.., c]) => {
                let stays = if swapped { c / 2 } else { c - c / 2 };
                (stays, 2 * (c - stays))
            }
            (Self::Checkerboard { .. }, &[h, w, _]) if h * w < 2 => return nothing("no two pixels to couple"),
            (Self::Checkerboard { .. }, &[_, _, c]) => (c, 2 * c),
            (Self::Checkerboard { .. }, _) => return nothing("no pixels: a checkerboard is for images"),
            (Self::Channels { .. }, []) => return nothing("no features"),
        };
        let with = |channels: usize| [&row[..row.len() - 1], &[channels]].concat();
        Ok([with(input), with(output)])
    }

    /// The numbers of the stated parity, in words.
    fn describe(self) -> &'static str {
        match self {
            Self::Channels { swapped: false } => "the first half stays",
            Self::Channels { swapped: true } => "the second half stays",
            Self::Checkerboard { swapped: false } => "even pixels stay",
            Self::Checkerboard { swapped: true } => "odd pixels stay",
        }
    }
}

/// An affine coupling.
#[derive(Debug)]
pub struct Coupling<B: Backend> {
    net: Box<dyn Layer<B>>,
    mask: Mask,
    row: Vec<usize>,
}

impl<B: Backend> Coupling<B> {
    /// The coupling of rows of shape `row`, `[d]` or `[h, w, c]`, by a net whose output is s and t side by side.
    ///
    /// # Errors
    /// If the mask leaves nothing on one side, or the net does not map the shapes of [`Mask::net_shapes`].
    pub fn new(net: Box<dyn Layer<B>>, mask: Mask, row: &[usize]) -> Result<Self, ConfigError> {
        let [input, output] = mask.net_shapes(row)?;
        let found = net.output(&input)?;
        if found != output {
            return Err(ConfigError::Inconsistent(format!(
                "the net of a coupling of rows {row:?} maps {input:?} to {found:?}; it needs {output:?}, s and t"
            )));
        }
        Ok(Self { net, mask, row: row.to_vec() })
    }
}

impl<B: Backend> Bijection<B> for Coupling<B> {
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        self.net.visit(&format!("{path}.net"), visitor);
    }

    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        self.net.visit_mut(&format!("{path}.net"), visitor);
    }

    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let split = Split::new(backend, self.mask, &self.row);
        let coupling = PreparedCoupling { net: self.net.prepare(backend), split };
        let [input, _] = self.mask.net_shapes(&self.row).expect("checked when it was made");
        tiled(Box::new(coupling), tile_rows(backend, &*self.net, &input, &self.row))
    }

    fn refresh(&mut self, backend: &B, how: Refresh) {
        self.net.refresh(backend, how);
    }

    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if row == self.row {
            Ok(row.to_vec())
        } else {
            Err(ConfigError::Inconsistent(format!("a coupling of rows {:?} cannot take rows {row:?}", self.row)))
        }
    }

    fn resize(&mut self, backend: &B, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [input, output] = self.mask.net_shapes(row)?;
        let found = self.net.resize(backend, &input)?;
        if row.len() != self.row.len() || found != output {
            return Err(ConfigError::Inconsistent(format!("a coupling cannot take rows of shape {row:?}")));
        }
        self.row = row.to_vec();
        Ok(row.to_vec())
    }

    fn describe(&self, backend: &B) -> String {
        format!("affine coupling, {} [{}]", self.mask.describe(), self.net.describe(backend))
    }

    fn boxed_clone(&self) -> Box<dyn Bijection<B>> {
        Box::new(Self { net: self.net.boxed_clone(), mask: self.mask, row: self.row.clone() })
    }
}

/// How rows come apart and together again.
#[derive(Debug)]
enum Split<B: Backend> {
    /// (start, length) of what stays and of what moves, on the last axis.
    Channels { stays: (usize, usize), moves: (usize, usize) },
    /// Ones at the pixels that stay and at those that move, `[1, h, w, 1]`.
    Checkerboard { stays: B::Tensor, moves: B::Tensor },
}

impl<B: Backend> Split<B> {
    fn new(backend: &B, mask: Mask, row: &[usize]) -> Self {
        match (mask, row) {
            (Mask::Checkerboard { swapped }, &[h, w, _]) => {
                let pixels = |odd: bool| {
                    let one = |p: usize| f64::from(u8::from(((p / w + p % w) % 2 == 1) == odd));
                    let values: Vec<_> = (0..h * w).map(|p| B::Elem::from_f64(one(p))).collect();
                    backend.upload(&values, [1, h, w, 1].into())
                };
                Self::Checkerboard { stays: pixels(swapped), moves: pixels(!swapped) }
            }
            (mask, row) => {
                let c = row.last().copied().unwrap_or(0);
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

    /// x_a, as the net takes it, and x_b; under a checkerboard x_b comes with the pixels of x_a.
    fn apart(&self, backend: &B, x: &B::Tensor) -> (B::Tensor, B::Tensor) {
        match self {
            Self::Channels { stays, moves } => {
                let axis = backend.shape(x).rank() - 1;
                let part = |&(start, length): &(usize, usize)| backend.narrow(x, axis, start, length);
                (part(stays), part(moves))
            }
            Self::Checkerboard { stays, .. } => (backend.binary(Binary::Mul, x.clone(), stays), x.clone()),
        }
    }

    /// The row of a and b.
    fn together(&self, backend: &B, a: &B::Tensor, b: &B::Tensor) -> B::Tensor {
        match self {
            Self::Channels { stays, moves } => {
                let axis = backend.shape(a).rank() - 1;
                if stays.0 < moves.0 { backend.concat(&[a, b], axis) } else { backend.concat(&[b, a], axis) }
            }
            Self::Checkerboard { moves, .. } => backend.select(moves, b, a),
        }
    }

    /// The same with zeros where nothing moves.
    fn moving(&self, backend: &B, b: B::Tensor) -> B::Tensor {
        match self {
            Self::Channels { .. } => b,
            Self::Checkerboard { moves, .. } => backend.binary(Binary::Mul, b, moves),
        }
    }
}

/// A coupling ready for computing.
#[derive(Debug)]
struct PreparedCoupling<B: Backend> {
    net: Box<dyn PreparedLayer<B>>,
    split: Split<B>,
}

/// What the net says of x_b.
struct Affine<B: Backend> {
    /// softplus(v) = −ln σ(s + 2).
    decay: B::Tensor,
    /// σ(v) = 1 − σ(s + 2) = ∂ ln σ(s + 2)/∂s.
    slope: B::Tensor,
    t: B::Tensor,
}

impl<B: Backend> Affine<B> {
    fn of(backend: &B, st: &B::Tensor) -> Self {
        let shape = backend.shape(st);
        let (axis, width) = (shape.rank() - 1, shape.channels() / 2);
        let v = backend.affine(backend.narrow(st, axis, 0, width), -1.0, -SHIFT);
        let mut orders = backend.activation(Activation::Softplus, None, &v, 1);
        let slope = orders.swap_remove(1);
        Self { decay: orders.swap_remove(0), slope, t: backend.narrow(st, axis, width, width) }
    }

    /// σ(s + 2).
    fn scale(&self, backend: &B) -> B::Tensor {
        backend.unary(Unary::Exp, backend.affine(self.decay.clone(), -1.0, 0.0))
    }
}

impl<B: Backend> PreparedCoupling<B> {
    /// y and the log det of each row, from x and what the net says.
    fn map(&self, backend: &B, a: &B::Tensor, b: &B::Tensor, st: &B::Tensor) -> (B::Tensor, B::Tensor) {
        let affine = Affine::of(backend, st);
        let moved = backend.axpy(1.0, &affine.t, backend.binary(Binary::Mul, affine.scale(backend), b));
        let decay = backend.reduce(Reduce::Sum, Over::Row, &self.split.moving(backend, affine.decay));
        (self.split.together(backend, a, &moved), backend.affine(decay, -1.0, 0.0))
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedCoupling<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        let (a, b) = self.split.apart(backend, x);
        let (st, _) = self.net.forward(backend, &a, Keep::Value);
        let (y, value) = self.map(backend, &a, &b, &st);
        (y, draw.map(|_| LogDet { value, exact: true }))
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, _how: &Inversion) -> Result<Solution<B>, Error> {
        let (a, b) = self.split.apart(backend, y);
        let (st, _) = self.net.forward(backend, &a, Keep::Value);
        let Affine { decay, t, .. } = Affine::of(backend, &st);
        let moved = backend.binary(Binary::Mul, backend.unary(Unary::Exp, decay), &backend.axpy(-1.0, &t, b));
        let x = self.split.together(backend, &a, &moved);
        // the net's slope is not known, so an error in y may grow into any
        Ok(Solution::by_formula(backend, x, f64::INFINITY)?)
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, _draw: Draw<'_>, memory: Memory) -> TrainForward<B> {
        let (a, b) = self.split.apart(backend, x);
        let recompute = memory == Memory::Recompute;
        let (st, saved) = self.net.forward(backend, &a, if recompute { Keep::Value } else { Keep::Second });
        let (y, log_det) = self.map(backend, &a, &b, &st);
        let saved = (!recompute).then(|| Saved { tensors: vec![st], parts: vec![saved] });
        TrainForward { y, log_det, tape: Tape { saved, ..Tape::rows(x.clone()) }, terms: 0 }
    }

    fn train_backward(
        &self,
        backend: &B,
        tape: Tape<B>,
        gy: B::Tensor,
        g_log_det: &B::Tensor,
        slots: &mut [Slot<B>],
    ) -> B::Tensor {
        let (a, b) = self.split.apart(backend, &tape.rows);
        let Saved { tensors, parts } = tape.saved.unwrap_or_else(|| {
            let (st, saved) = self.net.forward(backend, &a, Keep::Second);
            Saved { tensors: vec![st], parts: vec![saved] }
        });
        let affine = Affine::of(backend, &tensors[0]);
        let (ga, gb) = self.split.apart(backend, &gy);
        let gb = self.split.moving(backend, gb);
        let gx_b = backend.binary(Binary::Mul, gb.clone(), &affine.scale(backend));
        // ∂y_b/∂s = x_b σ (1 − σ), and each number that moves adds ∂ ln σ/∂s = 1 − σ to its row's log det
        let shape = backend.shape(&b);
        let mut weight = vec![1; shape.rank()];
        weight[0] = shape.rows();
        let weight = backend.reshape(g_log_det, weight[..].into());
        let weight = self.split.moving(backend, backend.binary(Binary::Add, backend.full(0.0, shape), &weight));
        let through = backend.axpy(1.0, &backend.binary(Binary::Mul, gx_b.clone(), &b), weight);
        let gs = backend.binary(Binary::Mul, through, &affine.slope);
        let gst = backend.concat(&[&gs, &gb], shape.rank() - 1);
        let (ga_net, _) = self.net.tangent_vjp(backend, &parts[0], &[], gst, Vec::new(), slots);
        self.split.together(backend, &backend.axpy(1.0, &ga_net, ga), &gx_b)
    }

    fn slots(&self) -> usize {
        self.net.slots()
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        // a chain owns its orders: nothing is left over
        let _ = self.net.pull_back(backend, slots);
    }
}
