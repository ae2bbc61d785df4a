//! The chain F = F_L ∘ … ∘ F₁: the way of samples through transforms, and back.
//!
//! After a transform some channels may be factored out: they leave the chain, the rest goes on. z is what was factored out,
//! in that order, and then the rest, each part flattened in (C, H, W) order:
//!
//! log|det ∂F/∂x| = Σ_l log|det ∂F_l/∂x_l|,  z = [left₁, …, left_k, rest].
//!
//! A chain is a transform itself, from samples `[n, …]` to vectors z `[n, d]`. Every walk through the transforms is here;
//! whoever wants to see what passes (a classifier's heads, an initialisation, a check) is an [`Observer`].

use std::ops::Range;
use std::sync::Mutex;

use resflow_backend::Backend;

use crate::batch::{Batch, SampleWeights};
use crate::bijection::{Ask, Bijection, Cotangents, Mapped, PreparedBijection, Tape, Wanted};
use crate::error::{ConfigError, Error};
use crate::invert::{Inversion, SampleReport, Solution, Status};
use crate::lipschitz::PowerIteration;
use crate::module::{Grad, Module, Part, PartMut, ShowPart, ShowPartMut, accumulate, assign, fill, flatten, trained_shapes};
use crate::transform::{from_vectors, to_vectors};

/// The shapes of the parts of z.
#[derive(Debug, Clone, Default, PartialEq)]
struct Parts {
    left: Vec<Vec<usize>>,
    last: Vec<usize>,
}

impl Parts {
    /// The parts that samples of a shape end up in.
    fn of<B: Backend>(transforms: &[Box<dyn Bijection<B>>], input: &[usize]) -> Result<Self, ConfigError> {
        let mut left = Vec::new();
        let mut shape = input.to_vec();
        for transform in transforms {
            shape = transform.output_shape(&shape)?;
            let out = transform.factored_out();
            if out > 0 {
                let channels = shape.last_mut().filter(|c| **c > out);
                let channels = channels.ok_or_else(|| {
                    ConfigError::Inconsistent(format!("{out} channels cannot leave samples of shape {input:?}"))
                })?;
                *channels -= out;
                let mut part = shape.clone();
                if let Some(channels) = part.last_mut() {
                    *channels = out;
                }
                left.push(part);
            }
        }
        Ok(Self { left, last: shape })
    }

    /// d.
    fn dimension(&self) -> usize {
        self.left.iter().chain([&self.last]).map(|part| part.iter().product::<usize>()).sum()
    }

    /// z `[n, d]`, or its cotangent, as parts, the last one the one that goes on.
    fn split<B: Backend>(&self, backend: &B, z: &B::Tensor) -> Vec<B::Tensor> {
        if self.left.is_empty() {
            return vec![from_vectors(backend, z, &self.last)];
        }
        let mut at = 0;
        let mut part = |shape: &Vec<usize>| {
            let width = shape.iter().product();
            let part = backend.narrow(z, 1, at, width);
            at += width;
            from_vectors(backend, &part, shape)
        };
        self.left.iter().chain([&self.last]).map(&mut part).collect()
    }

    /// z `[n, d]` of its parts.
    fn join<B: Backend>(backend: &B, left: &[B::Tensor], last: &B::Tensor) -> B::Tensor {
        let last = to_vectors(backend, last);
        if left.is_empty() {
            return last;
        }
        let mut vectors: Vec<_> = left.iter().map(|x| to_vectors(backend, x)).collect();
        vectors.push(last);
        backend.concat(&vectors.iter().collect::<Vec<_>>(), 1)
    }
}

/// What goes on of the output of a transform, and what is factored out.
fn part_with<B: Backend>(backend: &B, y: B::Tensor, factored_out: usize) -> (B::Tensor, Option<B::Tensor>) {
    if factored_out == 0 {
        return (y, None);
    }
    let shape = backend.shape(&y);
    let (axis, stay) = (shape.rank() - 1, shape.channels() - factored_out);
    let left = backend.narrow(&y, axis, stay, factored_out);
    (backend.narrow(&y, axis, 0, stay), Some(left))
}

/// The output of a transform, of what went on and what was factored out.
fn reunite<B: Backend>(backend: &B, rest: B::Tensor, left: &mut Vec<B::Tensor>, factored_out: usize) -> B::Tensor {
    if factored_out == 0 {
        return rest;
    }
    let part = left.pop().expect("as many parts as transforms that factor out");
    let axis = backend.shape(&part).rank() - 1;
    backend.concat(&[&rest, &part], axis)
}

/// Looks at the output of a transform: its number, y `[n, …]`, and how many of the last channels are factored out.
pub type Observer<'a, B> = &'a mut dyn FnMut(usize, &<B as Backend>::Tensor, usize);

/// What an initialisation may look at besides: for transform `l`, the output of each shard, and how many channels are
/// factored out.
pub(crate) type ShardObserver<'a, B> = &'a (dyn Fn(usize, &<B as Backend>::Tensor, usize) -> Option<<B as Backend>::Tensor> + Sync);

/// Transforms, the first applied first.
#[derive(Debug, Clone)]
pub struct Chain<B: Backend> {
    transforms: Vec<Box<dyn Bijection<B>>>,
    input: Vec<usize>,
    parts: Parts,
}

impl<B: Backend> Chain<B> {
    /// The chain for samples of a shape, `[d]` or `[h, w, c]`.
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

    /// Prepares all transforms at once.
    pub fn prepare_chain(&self, backend: &B) -> PreparedChain<B> {
        let prepared = backend.run(self.transforms.len(), |i| self.transforms[i].prepare(backend));
        self.with_prepared(backend, prepared)
    }

    fn with_prepared(&self, backend: &B, transforms: Vec<Box<dyn PreparedBijection<B>>>) -> PreparedChain<B> {
        let steps = self.transforms.iter().zip(transforms).scan(0, |at, (transform, prepared)| {
            let shapes = trained_shapes(backend, &**transform);
            let grads = *at..*at + shapes.len();
            *at = grads.end;
            let (factored_out, saturates) = (transform.factored_out(), transform.saturates());
            Some(Step { transform: prepared, factored_out, saturates, grads, shapes })
        });
        PreparedChain { steps: steps.collect(), parts: self.parts.clone() }
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

    /// The chain with other trained tensors, taken from flat ones `[P]` in the order of a visit, its power iterations
    /// continued, and ready for computing: all transforms at once.
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

    /// Walks the shards of a first batch through the transforms, initialising each; returns what the observer took of each
    /// shard behind each transform where it took something.
    ///
    /// # Errors
    /// Returns the error of the transform that cannot be initialised.
    pub(crate) fn initialise_with(
        &mut self,
        backend: &B,
        shards: &[Batch<B>],
        weights: Option<SampleWeights<'_, B>>,
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
            let (next, taken): (Vec<_>, Vec<_>) = passed.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
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

    fn initialise(&mut self, backend: &B, shards: &[Batch<B>], weights: Option<SampleWeights<'_, B>>) -> Result<(), Error> {
        self.initialise_with(backend, shards, weights, &|_, _, _| None).map(drop)
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

/// A transform of a prepared chain, with what the chain knows of it.
#[derive(Debug)]
struct Step<B: Backend> {
    transform: Box<dyn PreparedBijection<B>>,
    factored_out: usize,
    saturates: bool,
    /// Where the gradients of its trained tensors are among the chain's.
    grads: Range<usize>,
    /// The shapes of those tensors.
    shapes: Vec<resflow_backend::Shape>,
}

/// A chain ready for computing.
#[derive(Debug)]
pub struct PreparedChain<B: Backend> {
    steps: Vec<Step<B>>,
    parts: Parts,
}

/// What a chain keeps for its backward pass.
struct ChainTape {
    tapes: Vec<Tape>,
}

/// Samples on their way forth.
struct Forth<B: Backend> {
    batch: Batch<B>,
    left: Vec<B::Tensor>,
    tapes: Vec<Tape>,
    found: Mapped<B>,
}

impl<B: Backend> PreparedChain<B> {
    /// The number of transforms.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are no transforms.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Transform number `l`.
    pub fn transform(&self, l: usize) -> &dyn PreparedBijection<B> {
        &*self.steps[l].transform
    }

    /// The number of trained tensors.
    pub fn grads(&self) -> usize {
        self.steps.last().map_or(0, |step| step.grads.end)
    }

    /// Through some of the transforms.
    fn walk(
        &self,
        backend: &B,
        batch: &Batch<B>,
        ask: &Ask<'_>,
        range: Range<usize>,
        observe: Observer<'_, B>,
    ) -> Result<Forth<B>, Error> {
        let mut way = Forth {
            batch: batch.clone(),
            left: Vec::new(),
            tapes: Vec::new(),
            found: Mapped::value(batch.x.clone()),
        };
        for l in range {
            let step = &self.steps[l];
            let mapped = step.transform.forward(backend, &way.batch, &ask.for_transform(l as u64))?;
            let problem = |problem: &str| Err(Error::Transform { number: l, problem: problem.into() });
            if ask.replicates().is_some() && mapped.log_dets.is_empty() {
                return problem("gave no log det, although one was asked for");
            }
            if matches!(ask.wanted, Wanted::Gradient { .. }) {
                match mapped.tape {
                    Some(tape) => way.tapes.push(tape),
                    None => return problem("kept nothing for the backward pass that was announced"),
                }
            }
            observe(l, &mapped.y, step.factored_out);
            way.found.log_dets.extend(mapped.log_dets);
            way.found.terms += mapped.terms;
            if let Some(reports) = mapped.reports {
                merge(&mut way.found.reports, reports);
            }
            let (rest, left) = part_with(backend, mapped.y, step.factored_out);
            way.batch.x = rest;
            way.left.extend(left);
        }
        Ok(way)
    }

    /// [`PreparedBijection::forward`], showing the output of each transform.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform did not give what it was asked for, and the error of one that failed.
    pub fn forward_observed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        ask: &Ask<'_>,
        observe: Observer<'_, B>,
    ) -> Result<Mapped<B>, Error> {
        self.forward_from(backend, 0, batch, ask, observe)
    }

    /// The same from the input of transform number `first` on.
    pub(crate) fn forward_from(
        &self,
        backend: &B,
        first: usize,
        batch: &Batch<B>,
        ask: &Ask<'_>,
        observe: Observer<'_, B>,
    ) -> Result<Mapped<B>, Error> {
        let Forth { batch, left, tapes, found } = self.walk(backend, batch, ask, first..self.steps.len(), observe)?;
        let y = Parts::join(backend, &left, &batch.x);
        let tape = matches!(ask.wanted, Wanted::Gradient { .. }).then(|| Tape::new(ChainTape { tapes }));
        Ok(Mapped { y, tape, ..found })
    }

    /// Through the first `count` transforms only, for what is to be seen on the way.
    pub(crate) fn observe(
        &self,
        backend: &B,
        batch: &Batch<B>,
        count: usize,
        observe: Observer<'_, B>,
    ) -> Result<(), Error> {
        self.walk(backend, batch, &Ask::value::<B>(), 0..count.min(self.steps.len()), observe).map(drop)
    }

    /// [`PreparedBijection::inverse`], showing the output of each transform on the way back.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn inverse_observed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        how: &Inversion,
        observe: Observer<'_, B>,
    ) -> Result<Solution<B>, Error> {
        let mut left = self.parts.split(backend, &batch.x);
        let mut rest = left.pop().expect("z has at least one part");
        let fresh = SampleReport { residual: 0.0, error_bound: 0.0, iterations: 0, status: Status::Converged };
        let mut reports = vec![fresh; batch.len(backend)];
        let (mut stretch, mut certified) = (1.0, true);
        for (l, step) in self.steps.iter().enumerate().rev() {
            let y = reunite(backend, rest, &mut left, step.factored_out);
            observe(l, &y, step.factored_out);
            let solution = step.transform.inverse(backend, &batch.with_x(y), how)?;
            rest = solution.value;
            stretch *= solution.stretch;
            certified &= solution.certified;
            for (total, own) in reports.iter_mut().zip(&solution.reports) {
                // a zero error stays zero even if the stretch is infinite (0·∞ would be NaN)
                let grown = if total.error_bound > 0.0 { total.error_bound * solution.stretch } else { 0.0 };
                total.error_bound = grown + own.error_bound;
                total.iterations += own.iterations;
                total.residual = total.residual.max(own.residual);
                total.status = total.status.max(own.status);
            }
        }
        Ok(Solution { value: rest, reports, stretch, certified })
    }

    /// Where the inverse is best measured from: the input of the first transform, or, if a first one saturates, of the next.
    pub(crate) fn measured_from(&self) -> usize {
        let last = self.steps.iter().enumerate().rev().find(|(l, step)| {
            step.saturates && self.steps[..*l].iter().all(|before| before.factored_out == 0)
        });
        last.map_or(0, |(l, _)| l + 1)
    }

    /// [`PreparedBijection::backward`]; `join` may change the cotangent of each transform's output.
    ///
    /// # Errors
    /// Returns the error of a transform whose backward pass failed.
    pub(crate) fn backward_joined(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
        join: &dyn Fn(usize, B::Tensor, usize) -> B::Tensor,
    ) -> Result<Cotangents<B>, Error> {
        let ChainTape { tapes } = tape.into_value::<ChainTape>();
        let mut left = self.parts.split(backend, &cotangents.x);
        let last = left.pop().expect("z has at least one part");
        let mut passing = cotangents.with_x(last);
        for ((l, step), tape) in self.steps.iter().enumerate().zip(tapes).rev() {
            let Cotangents { x, log_det, context } = passing;
            let gy = join(l, reunite(backend, x, &mut left, step.factored_out), step.factored_out);
            let own = &mut grads[step.grads.clone()];
            passing = step.transform.backward(backend, tape, Cotangents { x: gy, log_det, context }, own)?;
        }
        Ok(passing)
    }

    /// The gradients of all stored tensors, one after the other, of those that lanes gathered: each transform's are added in
    /// the order of the lanes and finished, all transforms at once.
    pub(crate) fn gather(&self, backend: &B, lanes: &[Vec<Grad<B>>]) -> Vec<B::Tensor> {
        let parts = backend.run(self.steps.len(), |l| {
            let step = &self.steps[l];
            let mut sums = add_up(backend, lanes.iter().map(|lane| &lane[step.grads.clone()]));
            step.finish(backend, &mut sums);
            flatten(backend, sums.iter().flatten())
        });
        parts.into_iter().flatten().collect()
    }
}

/// The sums over lanes, in their order.
pub(crate) fn add_up<'a, B: Backend>(backend: &B, lanes: impl Iterator<Item = &'a [Grad<B>]>) -> Vec<Grad<B>> {
    let mut sums: Vec<Grad<B>> = Vec::new();
    for grads in lanes {
        sums.resize(grads.len(), None);
        for (sum, grad) in sums.iter_mut().zip(grads) {
            if let Some(gradient) = grad {
                accumulate(backend, sum, gradient);
            }
        }
    }
    sums
}

/// The worst of the reports of each sample.
fn merge(all: &mut Option<Vec<SampleReport>>, reports: Vec<SampleReport>) {
    let Some(all) = all else {
        *all = Some(reports);
        return;
    };
    for (total, own) in all.iter_mut().zip(reports) {
        total.residual = total.residual.max(own.residual);
        total.error_bound += own.error_bound;
        total.iterations += own.iterations;
        total.status = total.status.max(own.status);
    }
}

impl<B: Backend> Step<B> {
    /// Finishes the gradients of a transform; what got none becomes zeros.
    fn finish(&self, backend: &B, grads: &mut Vec<Grad<B>>) {
        grads.resize(self.shapes.len(), None);
        self.transform.finish_gradients(backend, grads);
        fill(backend, grads, &self.shapes);
    }
}

impl<B: Backend> PreparedBijection<B> for PreparedChain<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        self.forward_observed(backend, batch, ask, &mut |_, _, _| ())
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        self.inverse_observed(backend, batch, how, &mut |_, _, _| ())
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        self.backward_joined(backend, tape, cotangents, grads, &|_, gy, _| gy)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        // each transform takes its own, so that a large sum is nowhere held twice
        let owned: Vec<_> = self.steps.iter().map(|s| Mutex::new(grads[s.grads.clone()].iter_mut().map(Option::take).collect::<Vec<_>>())).collect();
        let finished = backend.run(self.steps.len(), |l| {
            let mut own = owned[l].lock().map(|mut own| std::mem::take(&mut *own)).unwrap_or_default();
            self.steps[l].finish(backend, &mut own);
            own
        });
        for (grad, finished) in grads.iter_mut().zip(finished.into_iter().flatten()) {
            *grad = finished;
        }
    }
}
