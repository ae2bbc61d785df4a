//! One step of a run: its batches, their gradient, and what the gradient changes.

use resflow_backend::{Backend, Element as _};

use super::Trainer;
use crate::batch::SampleWeights;
use crate::classifier::ClassificationScore;
use crate::error::Error;
use crate::estimator::Estimator;
use crate::flow::{FlowMatching, Gradient, Objective, Pairing, Provenance, Solves, Supervision};
use crate::lipschitz::PowerIteration;
use crate::module::{Module as _, assign};
use crate::train::measured::MeasuredLaw;
use crate::train::optimiser::find_infinite;
use crate::train::source::Drawn;
use crate::train::together::Command;

/// The report of one step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The number of the step, from 1.
    pub step: u64,
    /// The mean of −log p over the batch, nats in the data's units; the value of the log det, not the surrogate. NaN in a step that
    /// matches a velocity, which computes none.
    pub train_nll: f64,
    /// The mean square per number of the velocity's distance from its targets, in a step of flow matching.
    pub matching: Option<f64>,
    /// The 2-norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The number of vector-Jacobian products of the log dets, summed over blocks.
    pub terms: usize,
    /// The solves of the step: samples that were left out, evaluations.
    pub solves: Solves,
    /// The score of a hybrid model's classifier on the batch.
    pub classification: Option<ClassificationScore>,
}

impl<B: Backend> Trainer<B> {
    /// Makes one step.
    ///
    /// # Errors
    /// Returns [`Error::Diverged`] if the loss or the gradient is not finite: the state is that before the step.
    /// Returns [`Error::Input`] if the first batch cannot initialise a transform, [`Error::Transform`] if a transform
    /// of your own fails, [`Error::Backend`] if the device does, [`Error::Group`] if another process of the run does, [`Error::Data`] for rows that
    /// are read as they are needed and cannot be.
    pub fn step(&mut self) -> Result<StepReport, Error> {
        self.lead_to(Command::Step(self.elapsed))?;
        let made = self.make_step();
        self.unless_failed(made)
    }

    /// Makes one step as one of the processes that all make it.
    pub(in crate::train) fn make_step(&mut self) -> Result<StepReport, Error> {
        let start = std::time::Instant::now();
        let report = self.advance()?;
        self.check_alike()?;
        self.elapsed += start.elapsed();
        Ok(report)
    }

    fn advance(&mut self) -> Result<StepReport, Error> {
        let backend = self.flow.backend().clone();
        self.initialise_once()?;
        let step = self.step + 1;
        let rate = self.config.rate(step, self.progress());
        let matching = self.config.objective.matching(self.progress()).copied();
        let gradient = self.gradient(&backend, matching.as_ref())?;
        let Applied { loss, norm, classification } = self.apply(&gradient, step, rate)?;

        // Σ wᵢ E(zᵢ) of a batch whose weights are not 1 together
        let loss = if (self.weight - 1.0).abs() < 1e-9 { loss } else { loss / self.weight };
        self.step = step;
        self.flow.set_provenance(Provenance { steps: step, ..self.flow.provenance().clone() });
        if self.law.is_some() && matching.is_none() && MeasuredLaw::is_due(step) {
            self.measure(&backend)?;
        }
        let log_det = self.log_det.map_or_else(|| self.flow.standardiser().log_det(), |sum| sum / self.weight);
        let constant = self.prepared.base().constant() - log_det;
        Ok(StepReport {
            step,
            train_nll: if matching.is_some() { f64::NAN } else { loss + constant },
            matching: matching.map(|_| loss),
            gradient_norm: norm,
            learning_rate: rate,
            terms: gradient.terms,
            solves: gradient.solves,
            classification,
        })
    }

    /// The estimator of the next step's gradient: that of the flow, or roulette with the law that was measured.
    pub fn estimator(&self) -> &Estimator {
        self.law.as_ref().map_or_else(|| self.flow.config().training(), MeasuredLaw::chosen)
    }

    /// Measures the terms of the gradient on the first batch of the step that was made, by which later steps choose their law.
    fn measure(&mut self, backend: &B) -> Result<(), Error> {
        let Some(law) = &self.law else { return Ok(()) };
        let (count, number) = (self.config.batch, (self.step - 1) * self.config.accumulate as u64);
        let Drawn { batch, targets, weights: own, .. } = self.batches.batch(backend, number, count, None)?;
        let share = 1.0 / count as f64;
        let weights = match own {
            Some(own) => column(backend, own.into_iter().map(|w| w * share)),
            None => backend.full(share, [count, 1].into()),
        };
        let density_weight = self.config.density_weight;
        let objective = Objective {
            batch: &batch,
            weights: &weights,
            key: self.key.named("roulette").split(self.step),
            memory: self.config.memory,
            input_gradient: false,
            supervision: targets.as_ref().map(|targets| Supervision { targets, density_weight }),
        };
        let gradients = law.estimators().map(|e| Ok(self.prepared.gradient_by(&e, &objective)?.flat));
        let gradients = gradients.collect::<Result<Vec<_>, Error>>()?;
        if let Some(law) = &mut self.law {
            law.learn(backend, &gradients)?;
        }
        Ok(())
    }

    /// Draws batch `part` of those that the present step adds up.
    fn batch(&mut self, backend: &B, part: usize) -> Result<Drawn<B>, Error> {
        let number = self.step * self.config.accumulate as u64 + part as u64;
        Ok(self.batches.batch(backend, number, self.config.batch, None)?)
    }

    /// Draws the same for a gradient: a rank behind the leader, which reports on the whole batch, may do with samples of its own lanes.
    fn own_batch(&mut self, backend: &B, part: usize, matching: Option<&FlowMatching>) -> Result<Drawn<B>, Error> {
        let paired = matching.is_some_and(|matching| matching.pairing == Pairing::Optimal);
        let follows = self.team.as_ref().is_some_and(|team| !team.leads()) && !paired;
        let own = if follows { self.prepared.own_samples(self.config.batch) } else { None };
        let number = self.step * self.config.accumulate as u64 + part as u64;
        Ok(self.batches.batch(backend, number, self.config.batch, own.as_deref())?)
    }

    /// Computes the gradient of the present step: the sum over its batches, of the mean over all their samples.
    fn gradient(&mut self, backend: &B, matching: Option<&FlowMatching>) -> Result<Gradient<B>, Error> {
        let count = self.config.batch;
        let share = 1.0 / self.step_samples() as f64;
        let alike = backend.full(share, [count, 1].into());
        let mut sum: Option<Gradient<B>> = None;
        (self.weight, self.log_det) = (0.0, None);
        for part in 0..self.config.accumulate {
            let Drawn { batch, targets, weights: own, log_det } = self.own_batch(backend, part, matching)?;
            if let Some(log_det) = log_det {
                let weigh = |(i, l): (usize, &f64)| own.as_ref().map_or(1.0, |own| own[i]) * share * l;
                *self.log_det.get_or_insert(0.0) += log_det.iter().enumerate().map(weigh).sum::<f64>();
            }
            let batch = batch.starting_at((part * count) as u64);
            self.weight += own.as_ref().map_or(count as f64, |own| own.iter().sum()) * share;
            let weights = own.map_or_else(|| alike.clone(), |own| column(backend, own.into_iter().map(|w| w * share)));
            let density_weight = self.config.density_weight;
            let key = self.key.named("training").split(self.step);
            let objective = Objective {
                batch: &batch,
                weights: &weights,
                key,
                memory: self.config.memory,
                input_gradient: false,
                supervision: targets.as_ref().map(|targets| Supervision { targets, density_weight }),
            };
            let own = match matching {
                Some(matching) => self.prepared.matching_gradient(matching, &batch, &weights, key)?,
                None => self.prepared.gradient_by(self.estimator(), &objective)?,
            };
            sum = Some(match sum {
                None => own,
                Some(sum) => Gradient {
                    flat: backend.axpy(1.0, &own.flat, sum.flat),
                    loss: backend.axpy(1.0, &own.loss, sum.loss),
                    classification: sum
                        .classification
                        .zip(own.classification)
                        .map(|(sum, own)| backend.axpy(1.0, &own, sum)),
                    input: None,
                    context: None,
                    terms: sum.terms.max(own.terms),
                    solves: sum.solves.and(own.solves),
                    // nobody asks a step for them
                    failed: Vec::new(),
                },
            });
        }
        Ok(sum.expect("a step has at least one batch"))
    }

    /// Clips, steps, averages, updates; returns what came of it.
    fn apply(&mut self, gradient: &Gradient<B>, step: u64, rate: f64) -> Result<Applied, Error> {
        let b = self.flow.backend().clone();
        let values: Vec<_> = std::iter::once(&gradient.loss).chain(&gradient.classification).collect();
        let applied = self.optimiser.step(&b, &self.config, step, rate, &gradient.flat, &values)?;
        let loss = applied.values[0];
        let classification = applied.values.get(1..3).map(|score| ClassificationScore {
            cross_entropy: score[0],
            accuracy: score[1],
            count: self.step_samples(),
        });
        if !applied.finite {
            let losses = loss.is_finite() && classification.is_none_or(|c| c.cross_entropy.is_finite());
            let what = if losses { "the gradient" } else { "the loss" };
            return Err(Error::Diverged { step, what, layer: find_infinite(&self.flow, &gradient.flat) });
        }
        self.update();
        Ok(Applied { loss, norm: applied.norm, classification })
    }

    /// Puts the parameters into the flow, continues the power iterations and prepares the transforms, all at once.
    fn update(&mut self) {
        let b = self.flow.backend().clone();
        let how = PowerIteration::Iterations(self.config.power_iterations);
        let (chain, prepared) = self.flow.chain().updated(&b, self.optimiser.parameters(), how);
        *self.flow.chain_mut() = chain;
        self.assign_rest(&self.optimiser.parameters().clone(), how);
        self.take(self.flow.prepare_with(prepared));
    }

    /// Sets the base, the classifier, the embedding and the dequantiser from the flat parameters, in which they come after the chain.
    fn assign_rest(&mut self, flat: &B::Tensor, how: PowerIteration) {
        let b = self.flow.backend().clone();
        let mut at = self.flow.chain().parameters(&b) as usize;
        assign(&b, self.flow.base_mut(), flat, at);
        at += self.flow.base().parameters(&b) as usize;
        if let Some(classifier) = self.flow.classifier_mut() {
            assign(&b, classifier, flat, at);
            at += classifier.parameters(&b) as usize;
        }
        if let Some(context) = self.flow.context_mut() {
            assign(&b, context.embedding_mut(), flat, at);
            at += context.embedding().parameters(&b) as usize;
        }
        if let Some(dequantiser) = self.flow.dequantiser_mut() {
            assign(&b, dequantiser, flat, at);
            dequantiser.update_spectral_norms(&b, how);
        }
    }

    /// Walks all of the first step's batches through the chain, initialising each transform, unless that was done.
    pub(in crate::train) fn initialise_once(&mut self) -> Result<(), Error> {
        if self.initialised {
            return Ok(());
        }
        let b = self.flow.backend().clone();
        let (mut shards, mut weights) = (Vec::new(), Vec::new());
        for part in 0..self.config.accumulate {
            let Drawn { batch, weights: own, .. } = self.batch(&b, part)?;
            let batch = self.prepared.embedded(&b, batch);
            let (n, bytes) = (batch.len(&b), self.flow.sample_bytes());
            let plan = resflow_backend::ShardPlan::new(n, b.shard_rows(bytes), b.lanes());
            shards.extend(plan.ranges().map(|r| batch.narrow(&b, r.start, r.len())));
            let own = own.map(|own| column(&b, own.into_iter()));
            weights.extend(own.iter().flat_map(|own| plan.ranges().map(|r| b.narrow(own, 0, r.start, r.len()))));
        }
        let unit = self.batches.unit();
        let weights = (!weights.is_empty()).then(|| SampleWeights { shards: &weights, unit });
        let classifier = self.prepared.classifier();
        let look =
            |l: usize, y: &B::Tensor, factored_out: usize| classifier.and_then(|c| c.look(&b, l, y, factored_out));
        let seen = self.flow.chain_mut().initialise_with(&b, &shards, weights.as_ref(), &look)?;
        if let Some(classifier) = self.flow.classifier_mut() {
            classifier.initialise(&b, &seen, weights.as_ref())?;
        }
        self.initialised = true;
        self.derive();
        self.optimiser.begin_average();
        Ok(())
    }
}

/// The numbers of a step's report that come from the device.
struct Applied {
    loss: f64,
    norm: f64,
    classification: Option<ClassificationScore>,
}

/// A number for each sample, `[n, 1]`.
fn column<B: Backend>(backend: &B, values: impl Iterator<Item = f64>) -> B::Tensor {
    let values: Vec<_> = values.map(B::Elem::from_f64).collect();
    backend.upload(&values, [values.len(), 1].into())
}
