//! Layers that are formulas over matrices, [`Graph`]: what is kept of a forward pass is x alone, and every derivative is that of the
//! recorded formula.

use std::fmt::Debug;

use resflow_backend::Backend;

use super::graph::{Graph, Term};
use super::{Derivatives, LayerGrads, PreparedLayer, Saved};
use crate::batch::Batch;
use crate::module::{Grad, accumulate};

/// What a layer computes of a matrix `[rows, c]` and its parameters.
pub(super) trait Formula<B: Backend>: Debug + Send + Sync {
    /// Whether the rows of a matrix are the pixels of one sample, which the formula puts in relation; else each is by itself.
    const OF_SAMPLES: bool;

    /// Writes the formula of x, `[rows, c]`, and the parameters as they are given to [`Prepared`].
    fn write(&self, graph: &mut Graph<'_, B>, x: &Term, parameters: &[Term]) -> Term;
}

/// A formula ready for computing, with its parameters as matrices.
#[derive(Debug)]
pub(super) struct Prepared<B: Backend, F> {
    pub(super) formula: F,
    pub(super) parameters: Vec<B::Tensor>,
}

/// What was recorded of some rows.
struct Recorded<'a, B: Backend> {
    graph: Graph<'a, B>,
    x: Term,
    parameters: Vec<Term>,
    y: Term,
}

impl<B: Backend, F: Formula<B>> Prepared<B, F> {
    /// Samples `[n, …, c]` as the matrices of the formula.
    fn matrices(backend: &B, x: &B::Tensor) -> Vec<B::Tensor> {
        let shape = backend.shape(x);
        let (n, rows, c) = (shape.rows(), shape.row_elements() / shape.channels().max(1), shape.channels());
        if !F::OF_SAMPLES {
            return vec![backend.reshape(x, [n * rows, c].into())];
        }
        (0..n).map(|i| backend.reshape(&backend.narrow(x, 0, i, 1), [rows, c].into())).collect()
    }

    /// Matrices as samples of this shape, but for the channels.
    fn samples(backend: &B, parts: &[B::Tensor], like: &B::Tensor) -> B::Tensor {
        let joined = backend.concat(&parts.iter().collect::<Vec<_>>(), 0);
        let channels = backend.shape(&joined)[1];
        backend.reshape(&joined, backend.shape(like).with_channels(channels))
    }

    fn record<'a>(&self, backend: &'a B, x: B::Tensor, tangents: Vec<B::Tensor>) -> Recorded<'a, B> {
        let mut graph = Graph::new(backend, tangents.len());
        let x = graph.input(x, tangents);
        let parameters: Vec<_> = self.parameters.iter().map(|own| graph.constant(own.clone())).collect();
        let y = self.formula.write(&mut graph, &x, &parameters);
        Recorded { graph, x, parameters, y }
    }
}

/// Zeros where there is no gradient.
fn or_zeros<B: Backend>(backend: &B, gradient: Grad<B>, like: &B::Tensor) -> B::Tensor {
    gradient.unwrap_or_else(|| backend.full(0.0, backend.shape(like)))
}

impl<B: Backend, F: Formula<B>> PreparedLayer<B> for Prepared<B, F> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let parts: Vec<_> = Self::matrices(backend, &batch.x)
            .into_iter()
            .map(|x| {
                let Recorded { graph, y, .. } = self.record(backend, x, Vec::new());
                graph.value(&y).clone()
            })
            .collect();
        let kept = if keep == Derivatives::None { Vec::new() } else { vec![batch.x.clone()] };
        (Self::samples(backend, &parts, &batch.x), Saved::tensors(kept))
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let x = &saved.tensors[0];
        let pairs = Self::matrices(backend, x).into_iter().zip(Self::matrices(backend, dx));
        let parts: Vec<_> = pairs
            .map(|(x, dx)| {
                let Recorded { graph, y, .. } = self.record(backend, x, vec![dx]);
                or_zeros(backend, graph.tangent(&y, 0).cloned(), graph.value(&y))
            })
            .collect();
        (Self::samples(backend, &parts, x), Saved::tensors(vec![dx.clone()]))
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        let x = &saved.tensors[0];
        let pairs = Self::matrices(backend, x).into_iter().zip(Self::matrices(backend, &gy));
        let parts: Vec<_> = pairs
            .map(|(own, gy)| {
                let Recorded { graph, x, y, .. } = self.record(backend, own.clone(), Vec::new());
                or_zeros(backend, graph.pull_back(&y, Some(gy), &[], &[&x]).0.swap_remove(0), &own)
            })
            .collect();
        Self::samples(backend, &parts, x)
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let x = &saved.tensors[0];
        let of_tangents: Vec<_> = tangents.iter().map(|t| Self::matrices(backend, &t.tensors[0])).collect();
        let of_gdy: Vec<_> = gdy.iter().map(|g| Self::matrices(backend, g)).collect();
        let (mut gx, mut gdx) = (Vec::new(), vec![Vec::new(); tangents.len()]);
        for (i, (own, gy)) in Self::matrices(backend, x).into_iter().zip(Self::matrices(backend, &gy)).enumerate() {
            let dx: Vec<_> = of_tangents.iter().map(|parts| parts[i].clone()).collect();
            let gdy: Vec<_> = of_gdy.iter().map(|parts| parts[i].clone()).collect();
            let Recorded { graph, x, parameters, y } = self.record(backend, own.clone(), dx);
            let all: Vec<&Term> = std::iter::once(&x).chain(&parameters).collect();
            let (mut of_values, of_dx) = graph.pull_back(&y, Some(gy), &gdy, &all);
            for (grad, found) in grads.trained.iter_mut().zip(of_values.drain(1..)) {
                if let Some(found) = found {
                    accumulate(backend, grad, &found);
                }
            }
            gx.push(or_zeros(backend, of_values.swap_remove(0), &own));
            gdx.iter_mut().zip(of_dx).for_each(|(parts, found)| parts.push(or_zeros(backend, found, &own)));
        }
        let gdx = gdx.iter().map(|parts| Self::samples(backend, parts, x)).collect();
        (Self::samples(backend, &gx, x), gdx)
    }
}
