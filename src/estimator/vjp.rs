//! All that an estimator needs of a map.

use resflow_backend::{Backend, Element as _, SeriesState, TermWeights};

use super::{Bottleneck, Control};
use crate::layer::{PreparedLayer, Saved};

/// A map that multiplies with the transpose of its Jacobian.
pub trait Vjp<B: Backend> {
    /// Computes Jᵀ u for cotangents u `[n, …]`, at the samples where `saved` was kept.
    fn vjp(&self, backend: &B, saved: &Saved<B>, u: B::Tensor) -> B::Tensor;

    /// Computes (BA)ᵀ u for cotangents u `[n, …]` of the shape of a bottleneck, of J = AB ([`Bottleneck`]).
    ///
    /// # Panics
    /// If the map has no such bottleneck.
    fn cyclic_vjp(&self, backend: &B, saved: &Saved<B>, bottleneck: &Bottleneck, u: B::Tensor) -> B::Tensor {
        let _ = (backend, saved, bottleneck, u);
        panic!("a map without a bottleneck was asked for a product through one");
    }

    /// Adds successive terms of the series, from term `first` on, until no sample has a next one
    /// ([`Backend::net_series`]).
    fn series_terms(
        &self,
        backend: &B,
        saved: &Saved<B>,
        first: usize,
        weights: TermWeights<'_, B::Tensor>,
        probe: &B::Tensor,
        state: SeriesState<B::Tensor>,
    ) -> SeriesState<B::Tensor> {
        series_by_terms(backend, self, saved, first, weights, probe, state)
    }

    /// Computes tr J, tr J², …, `[n, 1]` each, as far as they cost about what a product with J costs.
    fn traces(&self, backend: &B, saved: &Saved<B>) -> Vec<B::Tensor> {
        let _ = (backend, saved);
        Vec::new()
    }

    /// Computes tr J, `[n, 1]`, where it costs at most so many multiply-adds a sample: for values alone, of which many are
    /// averaged.
    fn dear_trace(&self, backend: &B, saved: &Saved<B>, most: u64) -> Option<B::Tensor> {
        let _ = (backend, saved, most);
        None
    }

    /// Computes the trace of a map C near J, if there is one that costs less than a product with J.
    fn control(&self, backend: &B, saved: &Saved<B>) -> Option<Control<B>> {
        let _ = (backend, saved);
        None
    }

    /// Computes Jᵀv, `[n, …]`, and vᵀCv, `[n, 1]`, of the map C that [`control`](Self::control) gave, of which `slopes` are.
    ///
    /// # Panics
    /// If the map has no such C.
    fn controlled_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        slopes: &B::Tensor,
        v: B::Tensor,
    ) -> (B::Tensor, B::Tensor) {
        let _ = (backend, saved, slopes, v);
        panic!("a map without a control variate was asked for one");
    }
}

/// Adds terms one after the other.
fn series_by_terms<B: Backend>(
    backend: &B,
    map: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    first: usize,
    weights: TermWeights<'_, B::Tensor>,
    probe: &B::Tensor,
    mut state: SeriesState<B::Tensor>,
) -> SeriesState<B::Tensor> {
    for index in 0..weights.terms() {
        state.power = map.vjp(backend, saved, state.power);
        state = backend.series_term(first + index, weights.term(index), probe, B::Elem::EPSILON, state);
        if backend.known_zero(&state.power) {
            break;
        }
    }
    state
}

impl<B: Backend, L: PreparedLayer<B> + ?Sized> Vjp<B> for L {
    fn vjp(&self, backend: &B, saved: &Saved<B>, u: B::Tensor) -> B::Tensor {
        PreparedLayer::vjp(self, backend, saved, u)
    }

    fn cyclic_vjp(&self, backend: &B, saved: &Saved<B>, bottleneck: &Bottleneck, u: B::Tensor) -> B::Tensor {
        PreparedLayer::cyclic_vjp(self, backend, saved, bottleneck, u)
    }

    fn series_terms(
        &self,
        backend: &B,
        saved: &Saved<B>,
        first: usize,
        weights: TermWeights<'_, B::Tensor>,
        probe: &B::Tensor,
        state: SeriesState<B::Tensor>,
    ) -> SeriesState<B::Tensor> {
        match self.net(saved) {
            Some((net, slopes)) => backend.net_series(net, &slopes, first, weights, probe, B::Elem::EPSILON, state),
            None => series_by_terms(backend, self, saved, first, weights, probe, state),
        }
    }

    fn traces(&self, backend: &B, saved: &Saved<B>) -> Vec<B::Tensor> {
        PreparedLayer::traces(self, backend, saved)
    }

    fn dear_trace(&self, backend: &B, saved: &Saved<B>, most: u64) -> Option<B::Tensor> {
        PreparedLayer::dear_trace(self, backend, saved, most)
    }

    fn control(&self, backend: &B, saved: &Saved<B>) -> Option<Control<B>> {
        PreparedLayer::control(self, backend, saved)
    }

    fn controlled_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        slopes: &B::Tensor,
        v: B::Tensor,
    ) -> (B::Tensor, B::Tensor) {
        PreparedLayer::controlled_vjp(self, backend, saved, slopes, v)
    }
}
