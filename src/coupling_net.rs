//! The net of a coupling: what it says of the numbers that stay, with what its way back needs.
//!
//! Invariant: the net sees the numbers that stay and the batch's context, and nothing that moves.

use resflow_backend::Backend;

use crate::batch::Batch;
use crate::bijection::{Ask, LogDet, Mapped, Memory, Tape, Wanted};
use crate::layer::{Derivatives, LayerGrads, PreparedLayer, Saved};
use crate::module::Grad;

/// What a net said, and its activations.
type Said<B> = (<B as Backend>::Tensor, Saved<B>);

/// A coupling's net, ready for computing.
#[derive(Debug)]
pub(crate) struct CouplingNet<B: Backend> {
    net: Box<dyn PreparedLayer<B>>,
}

/// The tape of a coupling, from a training step's forward pass.
pub(crate) struct CouplingTape<B: Backend> {
    pub(crate) batch: Batch<B>,
    /// What the net said, unless it is to be asked again.
    said: Option<Said<B>>,
}

impl<B: Backend> CouplingNet<B> {
    pub(crate) fn new(net: Box<dyn PreparedLayer<B>>) -> Self {
        Self { net }
    }

    /// What the net says of the numbers of a batch that stay.
    pub(crate) fn say(&self, backend: &B, batch: &Batch<B>, a: &B::Tensor, keep: Derivatives) -> Said<B> {
        self.net.forward(backend, &self.net.tell(backend, &batch.with_x(a.clone())), keep)
    }

    /// What the net says on the way forward, with the tape for the way back if a gradient is wanted.
    pub(crate) fn say_for(
        &self,
        backend: &B,
        batch: &Batch<B>,
        a: &B::Tensor,
        ask: &Ask<'_>,
    ) -> (B::Tensor, Option<Tape>) {
        let store = matches!(ask.wanted, Wanted::Gradient { memory: Memory::Store | Memory::Unroll, .. });
        let keep = if store { Derivatives::Second } else { Derivatives::None };
        let (raw, saved) = self.say(backend, batch, a, keep);
        let tape = matches!(ask.wanted, Wanted::Gradient { .. }).then(|| {
            let said = store.then(|| (raw.clone(), saved));
            Tape::new(CouplingTape { batch: batch.clone(), said })
        });
        (raw, tape)
    }

    /// What the net said on the way forward: `a` are the numbers of the tape's batch that stay.
    pub(crate) fn recall(&self, backend: &B, tape: &mut CouplingTape<B>, a: &B::Tensor) -> Said<B> {
        tape.said.take().unwrap_or_else(|| self.say(backend, &tape.batch, a, Derivatives::Second))
    }

    /// Takes the gradient in what the net said back to the numbers that stay.
    pub(crate) fn vjp(&self, backend: &B, saved: &Saved<B>, gradient: B::Tensor) -> B::Tensor {
        self.net.vjp(backend, saved, gradient)
    }

    /// Does so, and adds the gradients in the trained tensors and in the context.
    pub(crate) fn pull_back(
        &self,
        backend: &B,
        batch: &Batch<B>,
        saved: &Saved<B>,
        gradient: B::Tensor,
        own: LayerGrads<'_, B>,
    ) -> B::Tensor {
        let LayerGrads { trained, context } = own;
        let mut told = None;
        let inner = LayerGrads { trained: &mut *trained, context: &mut told };
        let (of_a, _) = self.net.tangent_vjp(backend, saved, &[], gradient, Vec::new(), inner);
        self.net.pull_back_told(backend, batch.context.as_ref(), told, LayerGrads { trained, context });
        of_a
    }

    pub(crate) fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        // the net is a Sequence, which keeps the gradients of its norm orders itself
        let _ = self.net.finish_gradients(backend, grads);
    }
}

/// The outcome of a way forward whose log det, `[n, 1]`, is exact.
pub(crate) fn mapped<B: Backend>(ask: &Ask<'_>, y: B::Tensor, log_det: B::Tensor, tape: Option<Tape>) -> Mapped<B> {
    let log_dets = ask.replicates().map(|_| LogDet::exact(log_det)).into_iter().collect();
    Mapped { log_dets, tape, ..Mapped::value(y) }
}
