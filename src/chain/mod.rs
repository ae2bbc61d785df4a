//! The chain F = F_L ∘ … ∘ F₁: samples forward through transforms, and back.
//!
//! After a transform some channels may be factored out: they leave the chain, the rest goes on. z, `[n, d]`, is what
//! was factored out, in that order, and then the rest, each part flattened in (C, H, W) order:
//!
//! log|det ∂F/∂x| = Σ_l log|det ∂F_l/∂x_l|,  z = [left₁, …, left_k, rest].
//!
//! A chain is a transform itself, from samples `[n, …]` to vectors z `[n, d]`. Every walk through the transforms is
//! here; whoever wants to see what passes (a classifier's heads, an initialisation, a check) is an [`Observer`].

mod certificate;
mod parts;
mod prepared;
mod solve_errors;
mod transposed;

use certificate::Certificate;
use parts::{Parts, part_with};
pub use prepared::PreparedChain;
pub(crate) use prepared::add_up;
use prepared::{ChainTape, Step};
use resflow_backend::{Backend, BackendError, Key, Shape};
pub(crate) use transposed::{Carried, ask_for_tape};

use crate::batch::{Batch, SampleWeights};
use crate::bijection::{Ask, Bijection, Cotangents, Draw, Memory, PreparedBijection, Tape};
use crate::error::{ConfigError, Error};
use crate::estimator::Estimator;
use crate::layer::Derivatives;
use crate::lipschitz::{FlowBounds, PowerIteration, TransformBounds};
use crate::module::{Module, Part, PartMut, ShowPart, ShowPartMut, assign, trained_shapes};

/// Looks at the output of a transform: its number, y `[n, …]`, and the number of its last channels that
/// are factored out.
pub type Observer<'a, B> = &'a mut dyn FnMut(usize, &<B as Backend>::Tensor, usize);

/// An observer of an initialisation: for transform `l`, the output of each shard, `[n, …]`, and the number of its last
/// channels that are factored out.
pub(crate) type ShardObserver<'a, B> =
    &'a (dyn Fn(usize, &<B as Backend>::Tensor, usize) -> Option<<B as Backend>::Tensor> + Sync);

/// The samples that a user's own transforms are tried on.
const TRIED: usize = 3;

/// Transforms, the first applied first.
#[derive(Debug, Clone)]
pub struct Chain<B: Backend> {
    transforms: Vec<Box<dyn Bijection<B>>>,
    input: Vec<usize>,
    parts: Parts,
}

impl<B: Backend> Chain<B> {
    /// Builds the chain for samples of a shape, `[d]` or `[h, w, c]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if such samples cannot pass.
    pub fn new(transforms: Vec<Box<dyn Bijection<B>>>, input: &[usize]) -> Result<Self, ConfigError> {
        let parts = Parts::of(&transforms, input)?;
        Ok(Self { transforms, input: input.to_vec(), parts })
    }

    /// The transforms.
    pub fn transforms(&self) -> &[Box<dyn Bijection<B>>] {
        &self.transforms
    }

    /// The shape of the samples that enter, `[d]` or `[h, w, c]`.
    pub fn input_shape(&self) -> &[usize] {
        &self.input
    }

    /// d, the numbers of z.
    pub fn dimension(&self) -> usize {
        self.parts.dimension()
    }

    /// Tries the transforms that are, or hold, the user's own parts on three samples of zeros, forward and back, so
    /// that what they get wrong in shapes is told at once, by their number, and not by a panic far away.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] for the first that is wrong, and the error of one that failed.
    pub(crate) fn try_own(&self, backend: &B, estimator: &Estimator) -> Result<(), Error> {
        let mut shape = self.input.clone();
        for (number, transform) in self.transforms.iter().enumerate() {
            let input = shape.clone();
            shape = transform.output_shape(&shape)?;
            if transform.stage().is_none_or(|stage| stage.is_custom()) {
                let with_three = |shape: &[usize]| Shape::new(&[&[TRIED], shape].concat());
                let problem = |problem: String| Error::Transform { number, problem };
                let batch = Batch::new(backend.full(0.0, with_three(&input)));
                if let Some(net) = transform.residual() {
                    let saved = net.prepare(backend).forward(backend, &batch, Derivatives::Second).1;
                    if let Some(found) = saved.without_samples(backend, TRIED) {
                        return Err(problem(format!(
                            "keeps a tensor of shape {found} of {TRIED} samples: what is kept has samples first, since it is \
                             sorted and cut with them"
                        )));
                    }
                }
                let one = Self::new(vec![transform.clone()], &input)?.prepare_chain(backend);
                let named = |e: Error| match e {
                    Error::Transform { problem, .. } => Error::Transform { number, problem },
                    other => other,
                };
                let draw = Draw { estimator, key: Key::new(0) };
                let ask = Ask::gradient::<B>(draw, Memory::Store);
                let mapped = one.walk(backend, &batch, &ask, 0..1, &mut |_, _, _| ()).map_err(named)?;
                let mut whole = mapped.batch.shape(backend)[1..].to_vec();
                if let Some(channels) = whole.last_mut() {
                    *channels += transform.factored_out();
                }
                if whole != shape {
                    return Err(problem(format!("says that it maps {input:?} to {shape:?}, and maps it to {whole:?}")));
                }
                let mut grads = vec![None; one.grads()];
                let tape = Tape::new(ChainTape { tapes: mapped.tapes });
                let zeros = |shape: &[usize]| backend.full(0.0, Shape::new(shape));
                let cotangents = Cotangents {
                    x: zeros(&[TRIED, one.parts.dimension()]),
                    log_det: zeros(&[TRIED, 1]),
                    context: None,
                };
                let back = one.backward(backend, tape, cotangents, &mut grads)?;
                let found = backend.shape(&back.x);
                if found != with_three(&input) {
                    return Err(problem(format!(
                        "gave a gradient in x of shape {found} for {TRIED} samples {input:?}"
                    )));
                }
                one.gather(backend, &[grads]).map_err(named)?;
            }
            if let Some(channels) = shape.last_mut() {
                *channels -= transform.factored_out();
            }
        }
        Ok(())
    }

    /// Prepares all transforms at once.
    pub fn prepare_chain(&self, backend: &B) -> PreparedChain<B> {
        let prepared = backend.run(self.transforms.len(), |i| self.transforms[i].prepare(backend));
        self.with_prepared(backend, prepared)
    }

    /// Prepares all transforms, with what certifies their inverses.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub(crate) fn prepare_certified(&self, backend: &B) -> Result<PreparedChain<B>, Error> {
        let mut chain = self.prepare_chain(backend);
        let certificates = backend.run(self.transforms.len(), |l| -> Result<_, Error> {
            let constants = self.transforms[l].certified_bounds(backend, "")?.constants;
            let map = chain.steps[l].transform.reference(backend)?;
            Ok(map.zip(constants).map(|(map, constants)| Certificate { map, constants, accuracy: 0.0 }))
        });
        let mut certificates = certificates.into_iter().collect::<Result<Vec<_>, _>>()?;
        Certificate::set_accuracies::<B>(&mut certificates);
        chain.certificates = Some(certificates);
        Ok(chain)
    }

    /// The bounds of each transform, whose paths begin with `path`.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub fn all_certified_bounds(&self, backend: &B, path: &str) -> Result<FlowBounds, BackendError> {
        let bounds = backend
            .run(self.transforms.len(), |l| self.transforms[l].certified_bounds(backend, &format!("{path}.{l}")));
        Ok(FlowBounds { transforms: bounds.into_iter().collect::<Result<_, _>>()? })
    }

    fn with_prepared(&self, backend: &B, transforms: Vec<Box<dyn PreparedBijection<B>>>) -> PreparedChain<B> {
        let steps = self.transforms.iter().zip(transforms).scan(0, |at, (transform, prepared)| {
            let shapes = trained_shapes(backend, &**transform);
            let grads = *at..*at + shapes.len();
            *at = grads.end;
            let (factored_out, saturates) = (transform.factored_out(), transform.saturates());
            Some(Step { transform: prepared, factored_out, saturates, grads, shapes })
        });
        PreparedChain { steps: steps.collect(), parts: self.parts.clone(), certificates: None }
    }

    /// Continues the power iterations of all transforms at once.
    pub(crate) fn update_all_spectral_norms(&mut self, backend: &B, how: PowerIteration) {
        let transforms = &self.transforms;
        self.transforms = backend.run(transforms.len(), |i| {
            let mut transform = transforms[i].clone();
            transform.update_spectral_norms(backend, how);
            transform
        });
    }

    /// Builds the chain with other trained tensors, taken from flat ones `[P]` in the order of a visit, its power
    /// iterations continued, and prepares it: all transforms at once.
    pub(crate) fn updated(&self, backend: &B, flat: &B::Tensor, how: PowerIteration) -> (Self, PreparedChain<B>) {
        let mut starts = Vec::with_capacity(self.transforms.len());
        let mut at = 0;
        for transform in &self.transforms {
            starts.push(at);
            at += transform.parameters(backend) as usize;
        }
        let updated = backend.run(self.transforms.len(), |i| {
            let mut transform = self.transforms[i].clone();
            assign(backend, &mut *transform, flat, starts[i]);
            transform.update_spectral_norms(backend, how);
            let prepared = transform.prepare(backend);
            (transform, prepared)
        });
        let (transforms, prepared) = updated.into_iter().unzip();
        let chain = Self { transforms, input: self.input.clone(), parts: self.parts.clone() };
        let prepared = chain.with_prepared(backend, prepared);
        (chain, prepared)
    }

    /// Walks the shards of a first batch through the transforms, initialising each; returns what the observer took of
    /// each shard behind each transform where it took something.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if a batch cannot initialise a transform, [`Error::Backend`] if the device failed.
    pub(crate) fn initialise_with(
        &mut self,
        backend: &B,
        shards: &[Batch<B>],
        weights: Option<&SampleWeights<'_, B>>,
        observe: ShardObserver<'_, B>,
    ) -> Result<Vec<Vec<B::Tensor>>, Error> {
        let mut shards = shards.to_vec();
        let mut seen = Vec::new();
        for (l, transform) in self.transforms.iter_mut().enumerate() {
            transform.initialise(backend, &shards, weights)?;
            let (prepared, factored_out) = (transform.prepare(backend), transform.factored_out());
            let passed = backend.run(shards.len(), |i| -> Result<_, Error> {
                let y = prepared.forward(backend, &shards[i], &Ask::value::<B>())?.y;
                let taken = observe(l, &y, factored_out);
                Ok((shards[i].with_x(part_with(backend, y, factored_out).0), taken))
            });
            let (next, taken): (Vec<_>, Vec<_>) =
                passed.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
            shards = next;
            seen.extend(taken.into_iter().collect::<Option<Vec<_>>>());
        }
        Ok(seen)
    }
}

impl<B: Backend> Module<B> for Chain<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        for (l, transform) in self.transforms.iter().enumerate() {
            show(&l.to_string(), Part::Module(&**transform));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        for (l, transform) in self.transforms.iter_mut().enumerate() {
            show(&l.to_string(), PartMut::Module(&mut **transform));
        }
    }

    fn describe(&self) -> String {
        self.transforms.iter().map(|t| t.describe()).collect::<Vec<_>>().join("\n")
    }
}

impl<B: Backend> Bijection<B> for Chain<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        Box::new(self.prepare_chain(backend))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(vec![Parts::of(&self.transforms, shape)?.dimension()])
    }

    fn initialise(
        &mut self,
        backend: &B,
        shards: &[Batch<B>],
        weights: Option<&SampleWeights<'_, B>>,
    ) -> Result<(), Error> {
        self.initialise_with(backend, shards, weights, &|_, _, _| None).map(drop)
    }

    fn certified_bounds(&self, backend: &B, path: &str) -> Result<TransformBounds, BackendError> {
        let bounds = self.all_certified_bounds(backend, path)?;
        let constants = bounds.constants();
        let weights = bounds.transforms.into_iter().flat_map(|t| t.weights).collect();
        Ok(TransformBounds { weights, constants, ..TransformBounds::default() })
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let mut next = shape.to_vec();
        for transform in &mut self.transforms {
            next = transform.resize(backend, &next)?;
            if let Some(channels) = next.last_mut() {
                *channels = channels.saturating_sub(transform.factored_out());
            }
        }
        self.parts = Parts::of(&self.transforms, shape)?;
        self.input = shape.to_vec();
        Ok(vec![self.parts.dimension()])
    }
}
