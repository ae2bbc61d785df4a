//! The gradient of Σ wᵢ (log q(xᵢ) − β log p̃(xᵢ)) at drawn samples xᵢ = m + s ∘ T(zᵢ).
//!
//! Reparametrised: ū = −β s ∘ ∇ₓ log p̃ and −w on each log det of T go back through the chain together; that is unbiased with any
//! unbiased log det, since the loss is linear in it. Path: the score ∇_u log q is carried through T beside the samples
//! (`chain/transposed.rs`), and ū = ∇_u log q − β s ∘ ∇ₓ log p̃ goes back through u alone, which leaves out a part whose mean is zero.
//!
//! The batch is cut into shards and gathered in lanes as in `flow/gradient.rs`: the number of threads does not enter. A sample of
//! which a solve failed, of T, of its gradient or of the path's, weighs nothing and is counted; where it failed on the way back its
//! shard is done once more without it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use resflow_backend::{Backend, Element as _, Key, ShardPlan};

use super::GradientEstimator;
use super::prepared::PreparedVariational;
use super::target::Target;
use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, Draw, LogDet, Mapped, Memory, PreparedBijection as _};
use crate::chain::{Carried, ask_for_tape};
use crate::error::Error;
use crate::flow::log_prob::sum_estimates;
use crate::invert::{Inversion, SampleReport};
use crate::module::{Grad, fill, flatten};

/// The objective of a variational gradient: Σ wᵢ (log q(xᵢ) − β log p̃(xᵢ)), nats.
#[derive(Debug, Clone, Copy)]
pub struct VariationalObjective<'a> {
    /// wᵢ of each sample, which says how many are drawn; 1/n each makes the mean.
    pub weights: &'a [f64],
    /// β.
    pub beta: f64,
    /// The estimator of the gradient.
    pub estimator: GradientEstimator,
    /// The key of the samples and of the log dets.
    pub key: Key,
    /// The activations that the forward pass keeps.
    pub memory: Memory,
    /// The accuracy of the path gradient's solves.
    pub solver: Inversion,
}

impl<'a> VariationalObjective<'a> {
    /// The mean over as many samples as there are weights, β = 1, the reparametrised gradient.
    pub fn new<B: Backend>(weights: &'a [f64], key: Key) -> Self {
        Self {
            weights,
            beta: 1.0,
            estimator: GradientEstimator::Reparametrised,
            key,
            memory: Memory::Store,
            solver: Inversion::for_backend::<B>(),
        }
    }
}

/// A gradient and what it was computed from.
#[derive(Debug, Clone)]
pub struct VariationalGradient<B: Backend> {
    /// The gradients of all trained tensors one after the other in the order of a visit, `[P]`; those of the base density, which is
    /// not trained, are zeros.
    pub flat: B::Tensor,
    /// ln p̃(xᵢ) − log q(xᵢ) of each sample, nats, whose mean is the evidence lower bound; −∞ of an impossible one. log q is an
    /// estimate, by the training estimator.
    pub log_weights: Vec<f64>,
    /// The number of samples whose target density or gradient is not finite: they have weight zero.
    pub impossible: usize,
    /// The number of samples of which a solve did not converge, on the way to the sample or back: they have weight zero, and log
    /// weights of −∞ where it was on the way there.
    pub unsolved: usize,
    /// The number of vector-Jacobian products of the series, summed over transforms, of the longest shard.
    pub terms: usize,
}

/// What gathers in a lane.
struct Lane<B: Backend> {
    grads: Vec<Grad<B>>,
    log_weights: Vec<Vec<f64>>,
    terms: usize,
}

/// Counts of samples that were left out.
#[derive(Default)]
struct LeftOut {
    impossible: AtomicUsize,
    unsolved: AtomicUsize,
}

/// Samples of a shard.
struct Arrived<B: Backend> {
    z: Batch<B>,
    mapped: Mapped<B>,
    /// ∇_u log q(u), `[n, d]`, of the path gradient.
    score: Option<B::Tensor>,
    /// The reports of all solves so far.
    reports: Vec<SampleReport>,
}

/// The target at some samples: ln p̃, and the gradient in u.
struct Judged {
    log_target: Vec<f64>,
    gradient: Vec<f64>,
}

impl<B: Backend> PreparedVariational<B> {
    /// Draws as many samples as there are weights and computes the gradient.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if there are no samples, the target is in another number of dimensions or, for the path gradient, a
    /// transform of your own has no transposed solve; [`Error::Target`] if the target fails, [`Error::Transform`] if a transform of
    /// your own does, [`Error::Backend`] if the device does.
    pub fn gradient(
        &self,
        target: &(impl Target + ?Sized),
        objective: &VariationalObjective<'_>,
    ) -> Result<VariationalGradient<B>, Error> {
        super::target::check_dimension(target, self.dimension())?;
        let (backend, n) = (self.flow.backend(), objective.weights.len());
        if n == 0 {
            return Err(Error::Input("a gradient of no samples".into()));
        }
        let plan = self.flow.gradient_plan(n);
        let left_out = LeftOut::default();
        let lanes = backend.run(plan.lanes(), |l| -> Result<Lane<B>, Error> {
            let mut lane = Lane { grads: vec![None; self.flow.chain().grads()], log_weights: Vec::new(), terms: 0 };
            for shard in plan.lane(l) {
                if let Some(failed) = self.run_shard(target, objective, shard.clone(), &left_out, &mut lane, None)? {
                    self.run_shard(target, objective, shard, &left_out, &mut lane, Some(&failed))?;
                }
            }
            Ok(lane)
        });
        let mut lanes = lanes.into_iter().collect::<Result<Vec<_>, _>>()?;
        let grads: Vec<_> = lanes.iter_mut().map(|lane| std::mem::take(&mut lane.grads)).collect();
        let mut parts = self.flow.chain().gather(backend, &grads)?;
        let mut of_base = vec![None; self.flow.base_shapes().len()];
        fill(backend, &mut of_base, self.flow.base_shapes());
        parts.extend(of_base.into_iter().flatten());
        Ok(VariationalGradient {
            flat: flatten(backend, parts.iter()).unwrap_or_else(|| backend.full(0.0, [0].into())),
            log_weights: in_order(&plan, &lanes),
            impossible: left_out.impossible.into_inner(),
            unsolved: left_out.unsolved.into_inner(),
            terms: lanes.iter().map(|lane| lane.terms).max().unwrap_or(0),
        })
    }

    /// Takes a shard there and back, without the samples that have failed before. Where others fail on the way back nothing is added
    /// to the lane, and the reports of all samples are returned.
    fn run_shard(
        &self,
        target: &(impl Target + ?Sized),
        objective: &VariationalObjective<'_>,
        shard: Range<usize>,
        left_out: &LeftOut,
        lane: &mut Lane<B>,
        failed: Option<&[SampleReport]>,
    ) -> Result<Option<Vec<SampleReport>>, Error> {
        let (backend, chain) = (self.flow.steps(), self.flow.chain());
        let count = shard.len();
        let Arrived { z, mapped, score, reports } = self.arrive(objective, &shard)?;
        let path = objective.estimator == GradientEstimator::Path;

        let u: Vec<f64> = backend.download(&mapped.y)?.into_iter().map(B::Elem::to_f64).collect();
        let (log_dets, _) = sum_estimates(backend, &mapped.log_dets, count, 1)?;
        let base = self.flow.base().log_prob(backend, &z)?;
        let Judged { log_target, gradient } = self.judge(target, &u, count)?;
        let mut weights = objective.weights[shard].to_vec();
        let mut log_weights = Vec::with_capacity(count);
        let (mut impossible, mut unsolved) = (0, 0);
        for i in 0..count {
            let log_q = base[i] - log_dets[i] - self.log_scale();
            let arrived = mapped.reports.as_deref().is_none_or(|reports| is_solved(reports, i));
            let solved = is_solved(&reports, i) && failed.is_none_or(|reports| is_solved(reports, i));
            let possible = log_target[i] != f64::NEG_INFINITY && log_q.is_finite();
            unsolved += usize::from(!solved);
            impossible += usize::from(solved && !possible);
            if !(solved && possible) {
                weights[i] = 0.0;
            }
            log_weights.push(if arrived && possible { log_target[i] - log_q } else { f64::NEG_INFINITY });
        }

        let score: Option<Vec<f64>> = score
            .map(|score| Ok::<_, Error>(backend.download(&score)?.into_iter().map(B::Elem::to_f64).collect()))
            .transpose()?;
        let d = self.dimension();
        let cotangent = (0..count * d).map(|e| match weights[e / d] {
            // whatever the rest is: 0·∞ is no number
            0.0 => 0.0,
            w => w * (score.as_ref().map_or(0.0, |score| score[e]) - objective.beta * gradient[e]),
        });
        let x: Vec<_> = cotangent.map(B::Elem::from_f64).collect();
        let on_log_det = |w: &f64| B::Elem::from_f64(if path { 0.0 } else { -w });
        let log_det: Vec<_> = weights.iter().map(on_log_det).collect();
        let cotangents = Cotangents {
            x: backend.upload(&x, [count, d].into()),
            log_det: backend.upload(&log_det, [count, 1].into()),
            context: None,
        };
        let tape = mapped.tape.ok_or(Error::Transform { number: 0, problem: "kept nothing".into() })?;
        // only where T itself is a solve is there another on the way back
        let before = mapped.reports.is_some().then(|| lane.grads.clone());
        let mut back = None;
        chain.backward_reported(backend, tape, cotangents, &mut lane.grads, &mut back)?;
        if let (None, Some(before), Some(mut back)) = (failed, before, back) {
            // what weighs nothing has nothing to solve
            if back.iter().any(|report| !report.status.is_solved()) {
                lane.grads = before;
                back.iter_mut().zip(&reports).for_each(|(back, own)| back.status = back.status.max(own.status));
                return Ok(Some(back));
            }
        }
        lane.terms = lane.terms.max(mapped.terms);
        lane.log_weights.push(log_weights);
        left_out.impossible.fetch_add(impossible, Ordering::Relaxed);
        left_out.unsolved.fetch_add(unsolved, Ordering::Relaxed);
        Ok(None)
    }

    /// Draws the latents of a shard and takes them through T, for the path gradient with the score.
    fn arrive(&self, objective: &VariationalObjective<'_>, shard: &Range<usize>) -> Result<Arrived<B>, Error> {
        let backend = self.flow.steps();
        let (chain, base) = (self.flow.chain(), self.flow.base());
        let (first, count, key) = (shard.start as u64, shard.len(), objective.key);
        let z = Batch::new(base.sample(backend, key.named("sample"), first, count, None)).starting_at(first);
        let draw = Draw { estimator: self.flow.training(), key: key.named("log det") };
        let ask = Ask { solver: objective.solver, ..Ask::gradient::<B>(draw, objective.memory) };
        if objective.estimator != GradientEstimator::Path {
            let mapped = chain.forward(backend, &z, &ask)?;
            let reports = mapped.reports.clone().unwrap_or_default();
            return Ok(Arrived { z, mapped, score: None, reports });
        }
        let ones = backend.full(-1.0, [count, 1].into());
        let mut unused = vec![None; self.flow.base_shapes().len()];
        let score = base.pull_back(backend, z.clone(), &ones, &mut unused);
        let Carried { log_det, terms, score } = chain.carry_score(backend, &z, &score, &ask)?;
        let for_tape = Ask { solver: objective.solver, ..ask_for_tape::<B>(objective.memory) };
        let mapped = chain.forward(backend, &z, &for_tape)?;
        let exact = LogDet { value: log_det, exact: true };
        let mapped = Mapped { log_dets: vec![exact], terms, ..mapped };
        Ok(Arrived { z, mapped, score: Some(score.value), reports: score.reports })
    }

    /// Asks the target for u, `[n, d]`: ln p̃, −∞ where that or its gradient is not finite, and s ∘ ∇ₓ ln p̃.
    fn judge(&self, target: &(impl Target + ?Sized), u: &[f64], count: usize) -> Result<Judged, Error> {
        let d = self.dimension();
        let x = self.place(u);
        let (mut log_target, mut gradient) = (vec![f64::NAN; count], vec![f64::NAN; x.len()]);
        target.evaluate(&x, &mut log_target, &mut gradient).map_err(Error::Target)?;
        let scale = self.flow.standardiser().deviation();
        for (l, row) in log_target.iter_mut().zip(gradient.chunks_exact_mut(d)) {
            row.iter_mut().zip(scale).for_each(|(g, s)| *g *= s);
            if !l.is_finite() || row.iter().any(|g| !g.is_finite()) {
                *l = f64::NEG_INFINITY;
            }
        }
        Ok(Judged { log_target, gradient })
    }
}

/// Whether a sample's solves ended well; where nothing was solved there are no reports.
fn is_solved(reports: &[SampleReport], sample: usize) -> bool {
    reports.get(sample).is_none_or(|report| report.status.is_solved())
}

/// The lanes' values in the order of the samples: shard i is entry i div L of lane i mod L.
fn in_order<B: Backend>(plan: &ShardPlan, lanes: &[Lane<B>]) -> Vec<f64> {
    let count = plan.lanes();
    (0..plan.shards()).flat_map(|i| lanes[i % count].log_weights[i / count].iter().copied()).collect()
}
