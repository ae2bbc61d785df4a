//! The gradient of a weighted negative log likelihood, −Σ wᵢ log p(xᵢ), over a batch.
//!
//! The batch is cut into shards; each goes forward through the chain and back before its lane takes the next. Gradients
//! gather in one accumulator a lane, lanes are added in order, and each transform's sum is taken back through its
//! normalisation once. The result is a function of the batch, the configuration and the key: the number of threads does
//! not enter.
//!
//! Invariant: a sample of which a solve failed, forward or back, weighs nothing and is counted. One that fails on the way back has
//! left its gradient in the transforms behind by then, so its lane begins again: carefully, which is to say that each shard is kept
//! apart until it has gone well, and done once more with zeros for what failed. So is one with a sample that is not finite, of which the
//! transforms before a solve keep numbers that zero does not make zero.

use std::ops::Range;
use std::time::Instant;

use resflow_backend::{Backend, Key, ShardPlan};

use super::context::missing;
use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, Draw, Memory};
use crate::chain::add_up;
use crate::classifier::PreparedClassifier;
use crate::dequantiser::PreparedDequantiser;
use crate::error::Error;
use crate::estimator::Estimator;
use crate::group::collective::PIECE;
use crate::group::{LaneSum, Outbox, Team};
use crate::invert::{Inversion, SampleReport, Status, mark_unsolved, without_samples};
use crate::module::{Grad, accumulate, fill, flatten};

/// The most accumulators that a gradient of this many numbers gets: fewer where they would fill the memory.
fn most_lanes(parameters: u64) -> usize {
    match parameters {
        0..=2_000_000 => 8,
        2_000_001..=8_000_000 => 4,
        8_000_001..=16_000_000 => 2,
        _ => 1,
    }
}

/// The objective of a gradient, −Σ wᵢ log p(xᵢ) over a batch in nats, and the way to compute it.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a, B: Backend> {
    /// The batch in standardised units, `[n, d]` or `[n, h, w, c]`; it may be a part of a larger one. A conditional flow's has a
    /// context, in standardised units too.
    pub batch: &'a Batch<B>,
    /// wᵢ, `[n, 1]`; 1/n each makes the mean.
    pub weights: &'a B::Tensor,
    /// The key of this step.
    pub key: Key,
    /// The activations that the forward pass keeps (gradient checkpointing).
    pub memory: Memory,
    /// Asks for the gradient in x too, and in the context where there is one.
    pub input_gradient: bool,
    /// The labels of a hybrid model, whose cross-entropy is minimised too.
    pub supervision: Option<Supervision<'a, B>>,
}

/// Labelled samples for a classifier: the objective becomes Σ wᵢ (λ (−log p(xᵢ)) − log p(yᵢ | xᵢ)).
#[derive(Debug, Clone, Copy)]
pub struct Supervision<'a, B: Backend> {
    /// One-hot classes: 1 at each sample's class, else 0, `[n, K]`.
    pub targets: &'a B::Tensor,
    /// λ. With 0 log p is computed and reported all the same.
    pub density_weight: f64,
}

/// A gradient and the value that it belongs to.
#[derive(Debug, Clone)]
pub struct Gradient<B: Backend> {
    /// The gradients of all trained tensors one after the other in the order of a visit, `[P]`; without supervision
    /// those of a classifier are zeros; those of an embedding come behind, and of a dequantiser last.
    pub flat: B::Tensor,
    /// Σ wᵢ (E(zᵢ) − log det), `[1]`, nats: Σ wᵢ (−log p(xᵢ)) without the base density's constant, and without the λ of
    /// a supervision; of images that a dequantiser draws the noise of, with log q(uᵢ | xᵢ). The log dets in it are values, not surrogates.
    pub loss: B::Tensor,
    /// With supervision Σ wᵢ (−log p(yᵢ | xᵢ)) in nats, and Σ wᵢ over the samples whose likeliest class
    /// is theirs, `[2]`.
    pub classification: Option<B::Tensor>,
    /// The gradient in x, if asked for, of the shape of x.
    pub input: Option<B::Tensor>,
    /// The gradient in the context in standardised units, if asked for, of a conditional flow: of the shape of the context, so
    /// that one which all samples share has the sum.
    pub context: Option<B::Tensor>,
    /// The number of vector-Jacobian products of the series, summed over transforms, of the longest shard.
    pub terms: usize,
    /// The solves of transforms whose forward pass is one.
    pub solves: Solves,
    /// The samples of the batch of which a solve failed, forward or back, by number, and how; none in a group.
    pub failed: Vec<(usize, Status)>,
}

/// The solves of a gradient, forward and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Solves {
    /// Samples of which a solve did not converge, forward or back. They weigh nothing in the loss and the gradient.
    pub unsolved: usize,
    /// Evaluations of g and products with its Jacobian, summed over transforms, of the sample with the most; 0 without solves.
    pub evaluations: u32,
}

impl Solves {
    /// Adds those of other samples.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let evaluations = self.evaluations.max(other.evaluations);
        Self { unsolved: self.unsolved + other.unsolved, evaluations }
    }

    fn of(reports: &[SampleReport]) -> Self {
        Self {
            unsolved: reports.iter().filter(|report| !report.status.is_solved()).count(),
            evaluations: reports.iter().map(|report| report.iterations).max().unwrap_or(0),
        }
    }
}

/// Takes one shard forward and back, adding to a lane; the last argument may be told what is in the chain's gradients when the way back
/// has left a transform.
type RunShard<'a, B> = dyn Fn(Range<usize>, &mut Lane<B>, &Left<'_, B>) -> Result<Outcome, Error> + Sync + 'a;

/// What became of a lane with a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The shard is in it.
    Added,
    /// A part of samples is in it that weigh nothing: it has to begin again, carefully.
    Spoiled,
}

/// Sees the chain's gradients when a backward pass has left transform number `l`.
type Left<'a, B> = dyn Fn(usize, &[Grad<B>]) + 'a;

/// The sums over the shards of a lane.
#[derive(Clone)]
pub(super) struct Lane<B: Backend> {
    pub(super) chain: Vec<Grad<B>>,
    base: Vec<Grad<B>>,
    classifier: Vec<Grad<B>>,
    pub(super) loss: Option<B::Tensor>,
    classification: Option<B::Tensor>,
    inputs: Vec<B::Tensor>,
    pub(super) embedding: Vec<Grad<B>>,
    contexts: Vec<B::Tensor>,
    dequantiser: Vec<Grad<B>>,
    terms: usize,
    solves: Solves,
    failed: Vec<(usize, Status)>,
    /// Whether what was there before a shard is kept until the shard has gone well.
    careful: bool,
}

impl<B: Backend> Lane<B> {
    /// What is added up over the lanes of a group.
    fn into_sum(self) -> LaneSum<B> {
        LaneSum {
            gradients: [self.chain, self.base, self.classifier, self.embedding, self.dequantiser]
                .into_iter()
                .flatten()
                .collect(),
            sums: vec![self.loss, self.classification],
            notes: [self.terms, self.solves.evaluations as usize, self.solves.unsolved],
        }
    }
}

/// Lets nobody wait for lanes that panicked.
struct Closing<'a, B: Backend> {
    team: &'a Team,
    outbox: &'a Outbox<B>,
}

impl<B: Backend> Drop for Closing<'_, B> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.team.abort("it panicked");
            self.outbox.close();
        }
    }
}

/// Puts the reports of samples that have failed before in the place of those of the zeros that stood for them.
fn restore(failed: Option<&[SampleReport]>, reports: &mut Option<Vec<SampleReport>>) {
    for (own, failed) in reports.iter_mut().flatten().zip(failed.into_iter().flatten()) {
        if !failed.status.is_solved() {
            *own = *failed;
        }
    }
}

impl<B: Backend> PreparedFlow<B> {
    /// Computes the gradient of −Σ wᵢ log p(xᵢ), or of the objective with its supervision, by the training estimator.
    ///
    /// # Errors
    /// Returns [`Error::Transform`] if a transform failed, [`Error::Backend`] if the device did.
    pub fn gradient(&self, objective: &Objective<'_, B>) -> Result<Gradient<B>, Error> {
        self.gradient_by(&self.training, objective)
    }

    /// Computes the [`gradient`](Self::gradient) by another estimator than that of training.
    pub(crate) fn gradient_by(
        &self,
        estimator: &Estimator,
        objective: &Objective<'_, B>,
    ) -> Result<Gradient<B>, Error> {
        self.gradient_solved(estimator, &Inversion::for_training::<B>(), objective)
    }

    /// Computes a gradient with solves as accurate as this.
    pub(super) fn gradient_solved(
        &self,
        estimator: &Estimator,
        solver: &Inversion,
        objective: &Objective<'_, B>,
    ) -> Result<Gradient<B>, Error> {
        self.add_shards(objective.batch, objective.input_gradient, &|shard, lane, left| {
            let before = lane.careful.then(|| lane.clone());
            let mut failed = None;
            // ends, since each time more samples have failed
            while let Some(more) = self.run_shard(estimator, solver, objective, shard.clone(), lane, left, failed)? {
                let Some(before) = &before else { return Ok(Outcome::Spoiled) };
                *lane = before.clone();
                failed = Some(more);
            }
            Ok(Outcome::Added)
        })
    }

    /// Adds up what `run` makes of each shard of a batch, lane by lane.
    pub(super) fn add_shards(
        &self,
        batch: &Batch<B>,
        input_gradient: bool,
        run: &RunShard<'_, B>,
    ) -> Result<Gradient<B>, Error> {
        let backend = &self.backend;
        let n = batch.len(backend);
        if self.context.is_some() && batch.context.is_none() {
            return Err(missing());
        }
        if self.team.is_some() && input_gradient {
            return Err(Error::Input("the gradient in x is computed by one process, without a group".into()));
        }
        let plan = self.gradient_plan(n);
        let mut lanes = if let Some(team) = &self.team {
            vec![self.add_together(team, &plan, run)?]
        } else {
            let lanes = backend.run(plan.lanes(), |l| self.fill_lane(&plan, l, run, &|_, _| ()));
            lanes.into_iter().collect::<Result<_, _>>()?
        };
        let sum = |parts: Vec<B::Tensor>| parts.into_iter().reduce(|a, b| backend.axpy(1.0, &b, a));
        let loss = sum(lanes.iter_mut().filter_map(|l| l.loss.take()).collect());
        let classification = sum(lanes.iter_mut().filter_map(|l| l.classification.take()).collect());
        // shard i is entry i div L of lane i mod L
        let in_order = |part: fn(&Lane<B>) -> &Vec<B::Tensor>| -> Vec<&B::Tensor> {
            let count = plan.lanes();
            (0..plan.shards()).map(|i| &part(&lanes[i % count])[i / count]).collect()
        };
        let input = input_gradient.then(|| backend.concat(&in_order(|lane| &lane.inputs), 0));
        let shared = |context: &B::Tensor| backend.shape(context).rows() == 1 && n != 1;
        let own = batch.context.as_ref().filter(|_| input_gradient && self.context.is_some());
        let context = own.map(|own| {
            let parts = in_order(|lane| &lane.contexts);
            if !shared(own) {
                return backend.concat(&parts, 0);
            }
            let (first, others) = parts.split_first().expect("at least one shard");
            others.iter().fold((*first).clone(), |sum, part| backend.axpy(1.0, part, sum))
        });
        let terms = lanes.iter().map(|l| l.terms).max().unwrap_or(0);
        let solves = lanes.iter().map(|l| l.solves).fold(Solves::default(), Solves::and);
        let take = |part: fn(&mut Lane<B>) -> &mut Vec<Grad<B>>, lanes: &mut [Lane<B>]| -> Vec<Vec<Grad<B>>> {
            lanes.iter_mut().map(|lane| std::mem::take(part(lane))).collect()
        };
        let of_chain = take(|lane| &mut lane.chain, &mut lanes);
        let mut parts = self.chain.gather(backend, &of_chain)?;
        drop(of_chain);
        let mut of_base = add_up(backend, take(|lane| &mut lane.base, &mut lanes).iter().map(Vec::as_slice));
        self.base.finish_gradients(backend, &mut of_base);
        fill(backend, &mut of_base, &self.base_shapes);
        parts.extend(of_base.into_iter().flatten());
        if let Some(classifier) = &self.classifier {
            let mut sums = add_up(backend, take(|lane| &mut lane.classifier, &mut lanes).iter().map(Vec::as_slice));
            classifier.finish_gradients(backend, &mut sums);
            parts.extend(sums.into_iter().flatten());
        }
        if let Some(context) = &self.context {
            let mut sums = add_up(backend, take(|lane| &mut lane.embedding, &mut lanes).iter().map(Vec::as_slice));
            context.embedding.finish_gradients(backend, &mut sums);
            parts.extend(sums.into_iter().flatten());
        }
        if let Some(dequantiser) = &self.dequantiser {
            parts.extend(dequantiser.gather(backend, &take(|lane| &mut lane.dequantiser, &mut lanes))?);
        }
        Ok(Gradient {
            flat: flatten(backend, parts.iter()).unwrap_or_else(|| backend.full(0.0, [0].into())),
            classification,
            loss: loss.unwrap_or_else(|| backend.full(0.0, [1].into())),
            input,
            context,
            terms,
            solves,
            failed: lanes.into_iter().flat_map(|lane| lane.failed).collect(),
        })
    }

    /// Adds up the shards of lane `l`; `left` sees the last one on its way back.
    fn fill_lane(
        &self,
        plan: &ShardPlan,
        l: usize,
        run: &RunShard<'_, B>,
        left: &Left<'_, B>,
    ) -> Result<Lane<B>, Error> {
        let mut lane = self.empty_lane();
        let mut shards = plan.lane(l).peekable();
        while let Some(shard) = shards.next() {
            let outcome = match shards.peek() {
                Some(_) => run(shard, &mut lane, &|_, _| ())?,
                None => run(shard, &mut lane, left)?,
            };
            if outcome == Outcome::Spoiled {
                lane = Lane { careful: true, ..self.empty_lane() };
                shards = plan.lane(l).peekable();
            }
        }
        Ok(lane)
    }

    fn empty_lane(&self) -> Lane<B> {
        Lane {
            chain: vec![None; self.chain.grads()],
            base: vec![None; self.base_shapes.len()],
            classifier: vec![None; self.classifier.as_ref().map_or(0, PreparedClassifier::grads)],
            loss: None,
            classification: None,
            inputs: Vec::new(),
            embedding: vec![None; self.context.as_ref().map_or(0, |context| context.embedding.grads())],
            contexts: Vec::new(),
            dequantiser: vec![None; self.dequantiser.as_ref().map_or(0, PreparedDequantiser::grads)],
            terms: 0,
            solves: Solves::default(),
            failed: Vec::new(),
            careful: false,
        }
    }

    /// Runs this rank's lanes, and adds up those of all ranks of a group, in order: one lane with the sum of all. Gradients are sent as
    /// they become final: with the last shard of a lane, transform by transform on the way back.
    fn add_together(&self, team: &Team, plan: &ShardPlan, run: &RunShard<'_, B>) -> Result<Lane<B>, Error> {
        let share = team.share(plan.lanes());
        let outbox = Outbox::new(self.chain.sections(PIECE), share.len());
        let run_lane = |l: usize| -> Result<(), Error> {
            let lane = self.fill_lane(plan, share.start + l, run, &|at, grads| outbox.put(l, at, grads))?;
            outbox.finish(l, lane.into_sum());
            Ok(())
        };
        let sum = std::thread::scope(|scope| {
            let sum = scope.spawn(|| team.add_lanes(&self.backend, &outbox, &[1, 2]));
            let _closing = Closing { team, outbox: &outbox };
            let lanes = self.backend.run(share.len(), run_lane);
            let ended = Instant::now();
            team.unless_failed(lanes.into_iter().collect::<Result<Vec<()>, _>>()).inspect_err(|_| outbox.close())?;
            let sum = sum.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            team.wait_since(ended);
            sum
        });
        let LaneSum { gradients, sums, notes } = sum?;
        let mut lane = self.empty_lane();
        let Lane { chain, base, classifier, embedding, dequantiser, .. } = &mut lane;
        let parts = [chain, base, classifier, embedding, dequantiser];
        parts.into_iter().flatten().zip(gradients).for_each(|(own, sum)| *own = sum);
        let mut sums = sums.into_iter();
        (lane.loss, lane.classification) = (sums.next().flatten(), sums.next().flatten());
        (lane.terms, lane.solves) = (notes[0], Solves { unsolved: notes[2], evaluations: notes[1] as u32 });
        Ok(lane)
    }

    /// The samples of a batch of which this rank of a group computes the gradient; `None` for all of them.
    pub(crate) fn own_samples(&self, samples: usize) -> Option<Vec<bool>> {
        let plan = self.gradient_plan(samples);
        let share = self.team.as_ref()?.share(plan.lanes());
        let mut own = vec![false; samples];
        share.flat_map(|lane| plan.lane(lane)).for_each(|shard| own[shard].fill(true));
        Some(own)
    }

    /// Cuts so many samples of a gradient into shards.
    pub(crate) fn gradient_plan(&self, samples: usize) -> ShardPlan {
        let lanes = match self.lanes {
            0 => self.backend.lanes().min(most_lanes(self.parameters)),
            lanes => lanes,
        };
        ShardPlan::new(samples, self.backend.shard_rows(self.sample_bytes), lanes)
    }

    /// Takes a shard forward through the chain and back, with zeros in the place of samples that have failed before. Where others
    /// fail on the way back, or are not finite, the lane is spoiled, and the reports of all samples are returned.
    fn run_shard(
        &self,
        estimator: &Estimator,
        solver: &Inversion,
        objective: &Objective<'_, B>,
        shard: Range<usize>,
        lane: &mut Lane<B>,
        left: &Left<'_, B>,
        failed: Option<Vec<SampleReport>>,
    ) -> Result<Option<Vec<SampleReport>>, Error> {
        let backend = &self.steps;
        let (start, count) = (shard.start, shard.len());
        let mut weights = backend.narrow(objective.weights, 0, start, count);
        let mut batch = objective.batch.narrow(backend, start, count);
        let gone = failed.as_ref().and_then(|failed| mark_unsolved(backend, failed));
        let keep = |x: B::Tensor| match &gone {
            Some(gone) if backend.shape(&x).rows() == count => without_samples(backend, gone, x),
            _ => x,
        };
        batch = Batch { x: keep(batch.x), context: batch.context.map(keep), ..batch };
        let mut embedded = None;
        if let (Some(own), Some(context)) = (&self.context, &batch.context) {
            let (embedding, kept) = own.embedding.forward(backend, context);
            batch = batch.with_context(Some(embedding));
            embedded = Some((&own.embedding, kept));
        }
        let draw = Draw { estimator, key: objective.key };
        let ask = Ask { solver: *solver, ..Ask::gradient::<B>(draw, objective.memory) };
        let mut noise = None;
        if let (Some(own), Some(images)) = (&self.dequantiser, &batch.quantised) {
            let draw = Draw { key: objective.key.named("dequantiser"), ..draw };
            let drawn = own.draw(backend, images, batch.first, &Ask::gradient::<B>(draw, objective.memory))?;
            batch = batch.with_x(keep(drawn.x.clone()));
            noise = Some((own, drawn));
        }
        let judge = self.classifier.as_ref().zip(objective.supervision.as_ref());
        let mut seen = Vec::new();
        let mapped = self.chain.forward_observed(backend, &batch, &ask, &mut |l, y, factored_out| {
            if let Some((classifier, _)) = judge {
                seen.extend(classifier.look(backend, l, y, factored_out));
            }
        })?;
        let mut reports = mapped.reports;
        restore(failed.as_deref(), &mut reports);
        let forth = reports.as_ref().map(|reports| Solves::of(reports).unsolved);
        let infinite = |failed: &[SampleReport]| failed.iter().filter(|r| r.status == Status::NonFinite).count();
        if reports.as_deref().map_or(0, infinite) > failed.as_deref().map_or(0, infinite) {
            // what the transforms before a solve kept of such a sample is not finite either, and zero times it is not zero
            return Ok(reports);
        }
        let sum = |log_det, term: &crate::bijection::LogDet<B>| backend.axpy(1.0, &term.value, log_det);
        let of_noise = noise.iter().flat_map(|(_, drawn)| &drawn.log_dets);
        let log_det = mapped.log_dets.iter().chain(of_noise).fold(backend.full(0.0, [count, 1].into()), sum);
        let z = batch.with_x(mapped.y);
        let mut nll = backend.axpy(-1.0, &log_det, self.base.energy(backend, &z));
        // a sample that was not solved weighs nothing, whatever its numbers are
        if let Some(failed) = reports.as_ref().and_then(|own| mark_unsolved(backend, own)) {
            weights = without_samples(backend, &failed, weights);
            nll = without_samples(backend, &failed, nll);
        }
        let loss = backend.dot(&weights, &nll);
        accumulate(backend, &mut lane.loss, &loss);
        lane.terms = lane.terms.max(mapped.terms + noise.as_ref().map_or(0, |(_, drawn)| drawn.terms));

        let mut density_weights = weights.clone();
        let mut from_heads = Vec::new();
        if let Some((classifier, supervision)) = judge {
            let targets = backend.narrow(supervision.targets, 0, start, count);
            let judged = classifier.judge(backend, &seen, &targets, &weights, &mut lane.classifier)?;
            accumulate(backend, &mut lane.classification, &judged.score);
            from_heads = judged.gradients;
            density_weights = backend.affine(weights, supervision.density_weight, 0.0);
        }
        let gz = self.base.pull_back(backend, z, &density_weights, &mut lane.base);
        let log_det = backend.affine(density_weights.clone(), -1.0, 0.0);
        let cotangents = Cotangents { x: gz, log_det, context: None };
        let tape = mapped.tape.ok_or(Error::Transform { number: 0, problem: "kept nothing".into() })?;
        let join = |l: usize, gy: B::Tensor, factored_out: usize| match judge {
            Some((classifier, _)) => classifier.join(backend, l, gy, factored_out, &from_heads),
            None => gy,
        };
        let own = &mut lane.chain;
        let back = match forth {
            Some(_) => self.chain.backward_joined(backend, tape, cotangents, own, &mut reports, &join, &|_, _| ())?,
            None => self.chain.backward_joined(backend, tape, cotangents, own, &mut reports, &join, left)?,
        };
        restore(failed.as_deref(), &mut reports);
        let reports = reports.unwrap_or_default();
        if let Some(forth) = forth {
            if Solves::of(&reports).unsolved > forth {
                return Ok(Some(reports));
            }
            // nobody is told of gradients that may have to be thrown away
            (0..self.chain.len()).rev().for_each(|l| left(l, &lane.chain));
        }
        lane.solves = lane.solves.and(Solves::of(&reports));
        let unsolved = reports.iter().enumerate().filter(|(_, report)| !report.status.is_solved());
        lane.failed.extend(unsolved.map(|(i, report)| (start + i, report.status)));
        if let Some((embedding, kept)) = embedded {
            let zeros = || backend.full(0.0, batch.context.as_ref().map_or([0].into(), |own| backend.shape(own)));
            let gradient = back.context.unwrap_or_else(zeros);
            let of_context = embedding.pull_back(backend, kept, gradient, &mut lane.embedding);
            lane.contexts.extend(objective.input_gradient.then_some(of_context));
        }
        if let Some((own, drawn)) = noise {
            let tape = drawn.tape.ok_or(Error::Transform { number: 0, problem: "kept nothing".into() })?;
            own.pull_back(backend, tape, back.x.clone(), &density_weights, &mut lane.dequantiser)?;
        }
        if objective.input_gradient {
            lane.inputs.push(back.x);
        }
        Ok(None)
    }
}
