//! Short forms of what tests ask of transforms and modules.
#![allow(dead_code)] // each test binary uses its own part

use resflow::backend::{Backend, Element as _};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Cotangents, Draw, LogDet, Mapped, Memory, PreparedBijection, Tape};
use resflow::module::{Grad, Module};

/// The number of trained tensors of a module, each of which has a gradient.
pub(crate) fn count_grads<B: Backend, M: Module<B> + ?Sized>(module: &M) -> usize {
    let mut count = 0;
    module.visit("", &mut |_, _, role| count += usize::from(role.is_trained()));
    count
}

/// Solves as far as the arithmetic goes, so that differences do not see where a solve stopped.
pub(crate) fn precise<B: Backend>(ask: Ask<'_>) -> Ask<'_> {
    let solver = ask.solver.with_accuracy(16.0 * B::Elem::EPSILON).expect("above 0");
    Ask { solver, ..ask }
}

/// y of samples x, and nothing else.
pub(crate) fn value<B: Backend>(b: &B, transform: &dyn PreparedBijection<B>, x: &B::Tensor) -> B::Tensor {
    let mapped =
        transform.forward(b, &Batch::new(x.clone()), &precise::<B>(Ask::value::<B>())).expect("no device fault");
    assert!(mapped.log_dets.is_empty() && mapped.tape.is_none(), "only y was asked for");
    mapped.y
}

/// y of samples, and so many estimates of their log dets.
pub(crate) fn with_log_det<B: Backend>(
    b: &B,
    transform: &dyn PreparedBijection<B>,
    batch: &Batch<B>,
    draw: Draw<'_>,
    replicates: usize,
) -> (B::Tensor, LogDet<B>) {
    let mapped =
        transform.forward(b, batch, &precise::<B>(Ask::log_det::<B>(draw, replicates))).expect("no device fault");
    assert!(mapped.tape.is_none(), "no backward pass was announced");
    let Mapped { y, log_dets, .. } = mapped;
    (y, only(log_dets))
}

/// What a transform finds and keeps in training.
pub(crate) struct Trained<B: Backend> {
    pub(crate) y: B::Tensor,
    /// `[n, 1]`.
    pub(crate) log_det: B::Tensor,
    pub(crate) tape: Tape,
    pub(crate) terms: usize,
}

/// The forward pass of a training step.
pub(crate) fn train<B: Backend>(
    b: &B,
    transform: &dyn PreparedBijection<B>,
    batch: &Batch<B>,
    draw: Draw<'_>,
    memory: Memory,
) -> Trained<B> {
    let mapped = transform.forward(b, batch, &precise::<B>(Ask::gradient::<B>(draw, memory))).expect("no device fault");
    let Mapped { y, log_dets, tape, terms, .. } = mapped;
    Trained { y, log_det: only(log_dets).value, tape: tape.expect("a backward pass was announced"), terms }
}

/// The backward pass of a training step: the gradient in x for that in y and the weight `[n, 1]` of each log det.
pub(crate) fn pull_back<B: Backend>(
    b: &B,
    transform: &dyn PreparedBijection<B>,
    tape: Tape,
    gy: B::Tensor,
    weights: &B::Tensor,
    grads: &mut [Grad<B>],
) -> B::Tensor {
    let cotangents = Cotangents { x: gy, log_det: weights.clone(), context: None };
    transform.backward(b, tape, cotangents, grads).expect("no device fault").x
}

/// The one log det of a single transform.
fn only<B: Backend>(mut log_dets: Vec<LogDet<B>>) -> LogDet<B> {
    assert_eq!(log_dets.len(), 1, "a single transform has one log det");
    log_dets.remove(0)
}
