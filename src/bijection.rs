//! Bijections of rows: the links of a flow.
//!
//! Every link maps x to y with log|det ∂y/∂x| per row (natural logarithm), and back. Like layers, links hold parameters and
//! are prepared once per step.

use std::fmt::Debug;

use resflow_backend::{Backend, BackendError, Key};

use crate::error::{ConfigError, Error};
use crate::estimator::{CostModel, Estimator};
use crate::invert::{Inversion, Solution};
use crate::layer::{Layer, Saved, Slot, Spectrum, Visitor, VisitorMut};
use crate::lipschitz::Refresh;

/// What a log det is computed with, and from which randomness. Random numbers are addressed by (key, row of the batch), so
/// they do not depend on how the batch is cut.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// The estimator; a link resolves `Auto` by its own cost.
    pub estimator: &'a Estimator,
    /// The key of this link.
    pub key: Key,
    /// The number that the first row has in the whole batch.
    pub first_row: u64,
}

impl Draw<'_> {
    /// The draw for the rows from this one on.
    pub(crate) fn starting_at(self, row: usize) -> Self {
        Self { first_row: self.first_row + row as u64, ..self }
    }
}

/// The log det of some rows, each estimated one or more times.
#[derive(Debug, Clone)]
pub struct LogDet<B: Backend> {
    /// `[n, r]`: r independent replicates, or `[n, 1]` if the value is exact.
    pub value: B::Tensor,
    /// Whether there is no estimation error.
    pub exact: bool,
}

impl<B: Backend> LogDet<B> {
    /// That of a map that keeps volumes.
    pub fn zero(backend: &B, rows: usize) -> Self {
        Self { value: backend.full(0.0, [rows, 1].into()), exact: true }
    }
}

/// What a training step's forward pass keeps of a link.
#[derive(Debug)]
pub struct Tape<B: Backend> {
    /// Input or output rows, as the link needs.
    pub rows: B::Tensor,
    /// The tapes of runs of rows, where the link took them one run after the other; then there is nothing else.
    pub tiles: Vec<Tape<B>>,
    /// What g kept, unless it is to be computed again.
    pub saved: Option<Saved<B>>,
    /// The probes v.
    pub probes: Vec<B::Tensor>,
    /// What the tangents of the probes kept.
    pub tangents: Vec<Saved<B>>,
    /// The cotangents u, divided by the number of probes that are averaged.
    pub cotangents: Vec<B::Tensor>,
}

impl<B: Backend> Tape<B> {
    /// Rows alone.
    pub fn rows(rows: B::Tensor) -> Self {
        Self { rows, tiles: Vec::new(), saved: None, probes: Vec::new(), tangents: Vec::new(), cotangents: Vec::new() }
    }
}

/// The forward pass of a training step through one link.
#[derive(Debug)]
pub struct TrainForward<B: Backend> {
    /// y.
    pub y: B::Tensor,
    /// The value of log|det ∂y/∂x|, `[n, 1]`: an estimate of it, never the surrogate.
    pub log_det: B::Tensor,
    /// What the backward pass needs.
    pub tape: Tape<B>,
    /// The number of vector-Jacobian products of the series.
    pub terms: usize,
}

impl<B: Backend> TrainForward<B> {
    /// That of a map that keeps volumes and has no parameters.
    pub fn volume_preserving(backend: &B, y: B::Tensor, x: &B::Tensor) -> Self {
        let log_det = LogDet::zero(backend, backend.shape(x).rows()).value;
        Self { tape: Tape::rows(y.clone()), y, log_det, terms: 0 }
    }
}

/// How much of the forward pass a training step keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Everything that g computed: fastest.
    #[default]
    Keep,
    /// One activation per link and the vectors u, v; g is computed again. Memory does not grow with the width of g.
    Recompute,
    /// Every power of the series, which is differentiated itself instead of summed by Neumann's series: for comparison. Memory
    /// grows with the number of terms.
    Differentiate,
}

/// A link's parameters.
pub trait Bijection<B: Backend>: Debug + Send + Sync {
    /// Shows every stored tensor, in the order of the gradient slots.
    fn visit(&self, path: &str, visitor: Visitor<'_, B>);

    /// Lets every stored tensor be changed, in the same order.
    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>);

    /// The link ready for computing.
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>>;

    /// Renews the power iteration of constrained weights.
    fn refresh(&mut self, backend: &B, how: Refresh) {
        let _ = (backend, how);
    }

    /// Sets what depends on the first batch, given as shards; most links have nothing.
    ///
    /// # Errors
    /// If the batch cannot initialise the link.
    fn initialise(&mut self, backend: &B, shards: &[B::Tensor]) -> Result<(), Error> {
        let _ = (backend, shards);
        Ok(())
    }

    /// The shape that rows of this shape are mapped to.
    ///
    /// # Errors
    /// If they cannot pass.
    fn output(&self, row: &[usize]) -> Result<Vec<usize>, ConfigError>;

    /// How many of the last channels of y are finished: they leave the chain here and become part of z.
    fn leaving(&self) -> usize {
        0
    }

    /// Prepares the link for rows of another shape, from other images of the same channels; returns what it maps them to.
    /// Singular vectors stay where the stored σ bounds the new size, and are found anew where it does not.
    ///
    /// # Errors
    /// If the link is made for one shape.
    fn resize(&mut self, backend: &B, row: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let _ = backend;
        self.output(row)
    }

    /// The cost of the log det, for a link that estimates one.
    fn cost(&self) -> Option<CostModel> {
        None
    }

    /// g, of a residual link.
    fn residual(&self) -> Option<&dyn Layer<B>> {
        None
    }

    /// The bound on Lip(g) that the normalisation aims at, for a residual link.
    fn lipschitz_bound(&self) -> Option<f64> {
        None
    }

    /// Reports the σ of every constrained weight.
    ///
    /// # Errors
    /// Faults of the device.
    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        let _ = (backend, path, report);
        Ok(())
    }

    /// Reports the path of each singular vector and its length in the norm in which it should be a unit vector.
    ///
    /// # Errors
    /// Faults of the device.
    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        let _ = (backend, path, report);
        Ok(())
    }

    /// Checks what was read from a file, beyond shapes and finiteness.
    ///
    /// # Errors
    /// A tensor that holds what the link cannot compute with, by its name under this path; faults of the device.
    fn check_stored(&self, backend: &B, path: &str) -> Result<(), Error> {
        let _ = (backend, path);
        Ok(())
    }

    /// One line on what the link is.
    fn describe(&self, backend: &B) -> String;

    /// A copy of the link, behind a box.
    fn boxed_clone(&self) -> Box<dyn Bijection<B>>;
}

/// A link ready for computing.
pub trait PreparedBijection<B: Backend>: Debug + Send + Sync {
    /// y, and log|det ∂y/∂x| if a draw is given, estimated `replicates` times independently on one forward pass.
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>);

    /// The x with F(x) = y, and how well it is known.
    ///
    /// # Errors
    /// Faults of the device. A row that does not converge is no error but a status.
    fn inverse(&self, backend: &B, y: &B::Tensor, how: &Inversion) -> Result<Solution<B>, Error>;

    /// The forward pass of a training step.
    fn train_forward(&self, backend: &B, x: &B::Tensor, draw: Draw<'_>, memory: Memory) -> TrainForward<B>;

    /// The backward pass: from the cotangents of y and of each row's log det, `[n, 1]`, to that of x, adding to the slots.
    fn train_backward(
        &self,
        backend: &B,
        tape: Tape<B>,
        gy: B::Tensor,
        g_log_det: &B::Tensor,
        slots: &mut [Slot<B>],
    ) -> B::Tensor;

    /// Whether the inverse crowds numbers together, so that a forward pass from its rounded output would measure rounding
    /// rather than the inversion.
    fn crowds(&self) -> bool {
        false
    }

    /// See [`Bijection::leaving`].
    fn leaving(&self) -> usize {
        0
    }

    /// The number of trained tensors.
    fn slots(&self) -> usize;

    /// Turns the gradients of what is computed with into those of what is stored; an empty slot becomes zeros.
    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]);
}
