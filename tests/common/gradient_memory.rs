//! The peak memory of one gradient of a small image flow.

use std::num::NonZeroUsize;

use resflow::backend::{Backend as _, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::config::ImageConfig;
use resflow::estimator::{Estimator, Truncated};
use resflow::flow::Objective;
use resflow::{Error, Flow, NdArray};

use crate::memory;

/// The most that a gradient holds beyond weights, batch and result, in bytes: a flow of so many blocks on one image, the log
/// dets by so many terms.
pub(crate) fn peak(blocks: usize, terms: usize, memory: Memory) -> Result<usize, Error> {
    let config = ImageConfig { blocks: vec![blocks], filters: 64, fully_connected: 0, ..ImageConfig::default() };
    peak_of(&config, terms, memory)
}

/// The same of a flow over images of MNIST's size.
pub(crate) fn peak_of(config: &ImageConfig, terms: usize, memory: Memory) -> Result<usize, Error> {
    let backend = NdArray::<f32>::with_threads(NonZeroUsize::MIN)?;
    let mut flow = Flow::new(backend.clone(), config, Key::new(0))?;
    flow.set_training_estimator(Estimator::Truncated(Truncated::new(terms)?))?;
    let prepared = flow.prepare();
    let x = backend.noise(Key::new(1), Noise::Uniform, 0, [1, 28, 28, 1].into());
    let weights = backend.full(1.0, [1, 1].into());
    let objective = Objective {
        batch: &Batch::new(x),
        weights: &weights,
        key: Key::new(2),
        memory,
        input_gradient: false,
        supervision: None,
    };
    let (result, bytes) = memory::peak(|| prepared.gradient(&objective));
    backend.download(&result?.loss)?;
    Ok(bytes)
}
