//! The right-hand side of a continuous flow: f(t, x) and tr ∂f/∂x, and the pullback of both.
//!
//! Time is a context of the net: it is told U [τ(t), e], with τ(t) = [cos πt, cos 2πt, cos 3πt, sin πt, sin 2πt, sin 3πt] and e
//! the embedding of the samples' own context, if they have one. So with one t for all samples f is a plain net with other biases.
//!
//! The trace is one of
//!
//! ```text
//! d₂ᵀ (W₂ ∘ (W₁W₃)ᵀ) d₁        known, of nets with one or two hidden layers (crate::layer's traces)
//! Σ_i e_iᵀ J e_i                by products with the unit vectors
//! vᵀ J v                        Hutchinson's estimate by a probe that stays the same for the whole solve
//! ```

use resflow_backend::{Backend, Binary, Element as _, Over, Reduce};

use crate::batch::{Batch, per_sample};
use crate::layer::{Derivatives, LayerGrads, PreparedLayer, Saved, WeightedTraces};
use crate::module::{Grad, accumulate};

/// The numbers that a net is told of the time.
pub const TIME_FEATURES: usize = 6;

/// τ(t).
fn time_features(t: f64) -> [f64; TIME_FEATURES] {
    // one pair of functions, each sample's time being another: the rest are their multiple angles
    let (s, c) = (std::f64::consts::PI * t).sin_cos();
    [c, 2.0 * c * c - 1.0, (4.0 * c * c - 3.0) * c, s, 2.0 * s * c, (4.0 * c * c - 1.0) * s]
}

/// The way to tr ∂f/∂x.
#[derive(Debug, Clone)]
pub(super) enum Divergence<B: Backend> {
    /// It is not wanted.
    None,
    /// The net's own.
    Known,
    /// The sum of `scale`·vᵀJv over vectors v, `[n, …]`, which come column by column.
    Products {
        /// v.
        vectors: Vec<B::Tensor>,
        /// The number of independent estimates.
        columns: usize,
        /// The factor on each product.
        scale: f64,
    },
}

impl<B: Backend> Divergence<B> {
    /// Selects samples, in this order.
    pub(super) fn take(&self, backend: &B, rows: &[u32]) -> Self {
        match self {
            Self::Products { vectors, columns, scale } => Self::Products {
                vectors: vectors.iter().map(|v| backend.take_rows(v, rows)).collect(),
                columns: *columns,
                scale: *scale,
            },
            other => other.clone(),
        }
    }

    /// Returns the number of columns that it goes into; 0 if it is not wanted.
    pub(super) fn columns(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Known => 1,
            Self::Products { columns, .. } => *columns,
        }
    }
}

/// f at some samples of a solve.
#[derive(Debug)]
pub(super) struct Field<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) net: &'a dyn PreparedLayer<B>,
    /// e, `[n, k]` or one for all, `[1, k]`.
    pub(super) embedding: Option<B::Tensor>,
    pub(super) divergence: Divergence<B>,
}

/// f and its trace at a time, and what the pullback needs.
#[derive(Debug)]
pub(super) struct Slope<B: Backend> {
    /// f, `[n, …]`.
    pub(super) f: B::Tensor,
    /// tr ∂f/∂x, `[n, columns]`, if it is wanted.
    pub(super) divergence: Option<B::Tensor>,
    kept: Option<Kept<B>>,
}

/// What the pullback of an evaluation needs.
#[derive(Debug)]
struct Kept<B: Backend> {
    saved: Saved<B>,
    /// What `jvp` kept of each vector.
    tangents: Vec<Saved<B>>,
    /// [τ, e], `[n, 6 + k]` or `[1, 6 + k]`.
    embedding: B::Tensor,
}

impl<B: Backend> Slope<B> {
    /// The values with other ones, of the same shapes.
    pub(super) fn map(&self, f: impl Fn(&B::Tensor) -> B::Tensor) -> Self {
        Self { f: f(&self.f), divergence: self.divergence.as_ref().map(&f), kept: None }
    }

    /// Takes these values where the mask, `[n, 1]`, is not 0, and others elsewhere.
    pub(super) fn select(&self, backend: &B, mask: &B::Tensor, others: &Self) -> Self {
        let choose =
            |on: &B::Tensor, off: &B::Tensor| backend.select(&per_sample(backend, mask, backend.shape(on)), on, off);
        let divergence = self.divergence.as_ref().zip(others.divergence.as_ref()).map(|(on, off)| choose(on, off));
        Self { f: choose(&self.f, &others.f), divergence, kept: None }
    }
}

impl<B: Backend> Field<'_, B> {
    /// The same f at some of the samples, in this order.
    pub(super) fn take(&self, rows: &[u32]) -> Self {
        let own = |e: &B::Tensor| {
            // one context that all share stays as it is; of a batch of one sample it is that sample's
            if self.backend.shape(e).rows() == 1 { e.clone() } else { self.backend.take_rows(e, rows) }
        };
        Field {
            backend: self.backend,
            net: self.net,
            embedding: self.embedding.as_ref().map(own),
            divergence: self.divergence.take(self.backend, rows),
        }
    }

    /// [τ, e] of one time for all samples, or of one for each.
    fn embed(&self, times: &[f64]) -> B::Tensor {
        let backend = self.backend;
        let values: Vec<_> = times.iter().flat_map(|&t| time_features(t)).map(B::Elem::from_f64).collect();
        let time = backend.upload(&values, [times.len(), TIME_FEATURES].into());
        let Some(own) = &self.embedding else { return time };
        let rows = backend.shape(own).rows().max(times.len());
        let spread = |x: &B::Tensor| {
            let shape = backend.shape(x);
            if shape.rows() == rows {
                x.clone()
            } else {
                backend.binary(Binary::Add, backend.full(0.0, shape.with_rows(rows)), x)
            }
        };
        backend.concat(&[&spread(&time), &spread(own)], 1)
    }

    /// Computes f and its trace at samples x, `[n, …]`, at one time for all or at one for each; for a pullback it keeps what that
    /// needs.
    pub(super) fn at(&self, times: &[f64], x: &B::Tensor, for_pull_back: bool) -> Slope<B> {
        let backend = self.backend;
        let embedding = self.embed(times);
        let batch = Batch::new(x.clone()).with_context(Some(embedding.clone()));
        let keep = match (&self.divergence, for_pull_back) {
            (_, true) => Derivatives::Second,
            (Divergence::None, false) => Derivatives::None,
            _ => Derivatives::First,
        };
        let (f, saved) = self.net.forward(backend, &self.net.tell(backend, &batch), keep);
        let mut tangents = Vec::new();
        let divergence = match &self.divergence {
            Divergence::None => None,
            Divergence::Known => self.net.traces(backend, &saved).into_iter().next(),
            Divergence::Products { vectors, columns, scale } => {
                let dots: Vec<_> = vectors
                    .iter()
                    .map(|v| {
                        let (along, kept) = self.net.jvp(backend, &saved, v);
                        if for_pull_back {
                            tangents.push(kept);
                        }
                        backend.dot_rows(&flat(backend, &along), &flat(backend, v))
                    })
                    .collect();
                let column = |dots: &[B::Tensor]| {
                    let (first, rest) = dots.split_first()?;
                    let sum = rest.iter().fold(first.clone(), |sum, dot| backend.axpy(1.0, dot, sum));
                    Some(backend.affine(sum, *scale, 0.0))
                };
                let each: Vec<_> = dots.chunks((vectors.len() / columns).max(1)).filter_map(column).collect();
                Some(backend.concat(&each.iter().collect::<Vec<_>>(), 1))
            }
        };
        let kept = for_pull_back.then_some(Kept { saved, tangents, embedding });
        Slope { f, divergence, kept }
    }

    /// Takes the gradients in f, `[n, …]`, and in the trace, `[n, 1]`, to that in x, adding to those of the trained tensors and of
    /// the samples' embedding.
    ///
    /// # Panics
    /// If the evaluation was not for a pullback.
    pub(super) fn pull_back(
        &self,
        at: &Slope<B>,
        of_f: B::Tensor,
        of_divergence: &B::Tensor,
        grads: &mut [Grad<B>],
        context: &mut Grad<B>,
    ) -> B::Tensor {
        let backend = self.backend;
        let at = at.kept.as_ref().expect("an evaluation for a pullback");
        let mut told = None;
        let own = LayerGrads { trained: &mut *grads, context: &mut told };
        let (of_x, _) = match &self.divergence {
            Divergence::None => self.net.tangent_vjp(backend, &at.saved, &[], of_f, Vec::new(), own),
            Divergence::Known => {
                let traces = WeightedTraces { powers: 1, weights: of_divergence };
                self.net.tangent_trace_vjp(backend, &at.saved, &[], traces, of_f, Vec::new(), own)
            }
            Divergence::Products { vectors, scale, .. } => {
                let weights = backend.affine(of_divergence.clone(), *scale, 0.0);
                let weigh = |v: &B::Tensor| {
                    let weights = per_sample(backend, &weights, backend.shape(v));
                    backend.binary(Binary::Mul, v.clone(), &weights)
                };
                let cotangents = vectors.iter().map(weigh).collect();
                let tangents: Vec<_> = at.tangents.iter().collect();
                self.net.tangent_vjp(backend, &at.saved, &tangents, of_f, cotangents, own)
            }
        };
        let mut of_embedding = None;
        let own = LayerGrads { trained: grads, context: &mut of_embedding };
        self.net.pull_back_told(backend, Some(&at.embedding), told, own);
        if let (Some(all), Some(e)) = (of_embedding, &self.embedding) {
            let shape = backend.shape(e);
            let mut of_e = backend.narrow(&all, 1, TIME_FEATURES, shape[1]);
            if backend.shape(&of_e).rows() != shape.rows() {
                of_e = backend.reshape(&backend.reduce(Reduce::Sum, Over::Channel, &of_e), shape);
            }
            accumulate(backend, context, &of_e);
        }
        of_x
    }
}

/// Samples as rows, `[n, d]`.
pub(super) fn flat<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    if shape.rank() == 2 { x.clone() } else { backend.reshape(x, [shape.rows(), shape.row_elements()].into()) }
}
