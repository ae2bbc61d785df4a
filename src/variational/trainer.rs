//! One run of variational training.

use std::time::{Duration, Instant};

use resflow_backend::{Backend, Key};

use super::flow::VariationalFlow;
use super::gradient::VariationalObjective;
use super::prepared::PreparedVariational;
use super::target::{Target, check_dimension};
use super::{VariationalConfig, VariationalGradient};
use crate::batch::Batch;
use crate::bijection::Bijection as _;
use crate::error::Error;
use crate::invert::Inversion;
use crate::lipschitz::PowerIteration;
use crate::train::{Budget, Optimiser, TrainConfig, Verdict, find_infinite};

/// The report of one step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VariationalStep {
    /// The number of the step, from 1.
    pub step: u64,
    /// The mean of ln p̃ − log q over the batch, nats, at most ln Z in the mean; over the samples that the target does not make
    /// impossible.
    pub evidence_lower_bound: f64,
    /// Its standard error over the batch, nats.
    pub standard_error: f64,
    /// β of the step.
    pub beta: f64,
    /// The 2-norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The number of samples whose target density or gradient was not finite: they had weight zero.
    pub impossible: usize,
    /// The number of samples of which a solve did not converge, on the way to the sample or back: they had weight zero.
    pub unsolved: usize,
    /// The number of vector-Jacobian products of the log dets, summed over blocks.
    pub terms: usize,
}

/// A run of variational training.
#[derive(Debug)]
pub struct VariationalTrainer<B: Backend, T> {
    pub(super) flow: VariationalFlow<B>,
    target: T,
    pub(super) config: VariationalConfig,
    optimiser_config: TrainConfig,
    pub(super) optimiser: Optimiser<B>,
    prepared: PreparedVariational<B>,
    pub(super) budget: Budget,
    pub(super) key: Key,
    pub(super) step: u64,
    pub(super) elapsed: Duration,
    pub(super) initialised: bool,
}

impl<B: Backend, T: Target> VariationalTrainer<B, T> {
    /// Starts a run.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for settings out of range, [`Error::Input`] if the target is in another number of dimensions than
    /// the flow.
    pub fn new(
        flow: VariationalFlow<B>,
        target: T,
        config: &VariationalConfig,
        budget: Budget,
        key: Key,
    ) -> Result<Self, Error> {
        config.check()?;
        budget.check()?;
        check_dimension(&target, flow.dimension())?;
        Ok(Self {
            optimiser_config: config.optimiser(),
            optimiser: Optimiser::new(&flow.flow),
            prepared: flow.prepare(),
            config: config.clone(),
            flow,
            target,
            budget,
            key,
            step: 0,
            elapsed: Duration::ZERO,
            initialised: false,
        })
    }

    /// The target.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// The settings.
    pub fn config(&self) -> &VariationalConfig {
        &self.config
    }

    /// The steps or the time that the run may take.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// The number of steps made.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The time spent in steps.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns the fraction of the budget that is spent, from 0 to 1.
    pub fn progress(&self) -> f64 {
        match self.budget {
            Budget::Steps(steps) => (self.step as f64 / steps as f64).min(1.0),
            Budget::Time(limit) => (self.elapsed.as_secs_f64() / limit.as_secs_f64()).min(1.0),
        }
    }

    /// Returns `true` if the budget is spent.
    pub fn finished(&self) -> bool {
        match self.budget {
            Budget::Steps(steps) => self.step >= steps,
            Budget::Time(limit) => self.elapsed >= limit,
        }
    }

    /// Steps until the budget is spent or the observer stops the run with [`ControlFlow::Break`](std::ops::ControlFlow::Break).
    ///
    /// # Errors
    /// Returns the errors of [`step`](Self::step).
    pub fn run<V: Verdict>(&mut self, mut observe: impl FnMut(&VariationalStep) -> V) -> Result<(), Error> {
        while !self.finished() {
            let report = self.step()?;
            if !observe(&report).goes_on() {
                break;
            }
        }
        Ok(())
    }

    /// Makes one step.
    ///
    /// # Errors
    /// Returns [`Error::Diverged`] if the gradient is not finite or no sample is left that the target does not make impossible and
    /// that was solved for, the state being that before the step; [`Error::Target`] if the target fails, [`Error::Input`] if a transform cannot be initialised or has no
    /// transposed solve, [`Error::Transform`] if one of your own fails, [`Error::Backend`] if the device does.
    pub fn step(&mut self) -> Result<VariationalStep, Error> {
        let start = Instant::now();
        self.initialise_once()?;
        let step = self.step + 1;
        let (beta, rate) = (self.config.beta(self.progress()), self.optimiser_config.rate(step, self.progress()));
        let n = self.config.batch;
        let weights = vec![1.0 / n as f64; n];
        let objective = VariationalObjective {
            weights: &weights,
            beta,
            estimator: self.config.gradient,
            key: self.key.named("training").split(self.step),
            memory: self.config.memory,
            solver: Inversion::for_backend::<B>(),
        };
        let gradient = self.prepared.gradient(&self.target, &objective)?;
        let VariationalGradient { flat, log_weights, impossible, unsolved, terms } = gradient;
        if impossible == n {
            return Err(Error::Diverged { step, what: "the target's density at every sample", layer: None });
        }
        if impossible + unsolved == n {
            return Err(Error::Diverged {
                step,
                what: "a solve, or the target's density, at every sample",
                layer: None,
            });
        }
        let backend = self.flow.flow.backend().clone();
        let applied = self.optimiser.step(&backend, &self.optimiser_config, step, rate, &flat, &[])?;
        if !applied.finite {
            let layer = find_infinite(&self.flow.flow, &flat);
            return Err(Error::Diverged { step, what: "the gradient", layer });
        }
        let how = PowerIteration::Iterations(self.config.power_iterations);
        let (chain, prepared) = self.flow.flow.chain().updated(&backend, self.optimiser.parameters(), how);
        *self.flow.flow.chain_mut() = chain;
        self.prepared = PreparedVariational { flow: self.flow.flow.prepare_with(prepared) };
        self.step = step;
        self.elapsed += start.elapsed();
        let (evidence_lower_bound, standard_error) = mean_of_finite(&log_weights);
        Ok(VariationalStep {
            step,
            evidence_lower_bound,
            standard_error,
            beta,
            gradient_norm: applied.norm,
            learning_rate: rate,
            impossible,
            unsolved,
            terms,
        })
    }

    /// Initialises what depends on the first batch, which is of latents.
    fn initialise_once(&mut self) -> Result<(), Error> {
        if self.initialised {
            return Ok(());
        }
        let backend = self.flow.flow.backend().clone();
        let n = self.config.batch;
        let key = self.key.named("initialisation");
        let z = Batch::new(self.prepared.flow.base().sample(&backend, key, 0, n, None));
        let plan = self.prepared.flow.gradient_plan(n);
        let shards: Vec<_> = plan.ranges().map(|r| z.narrow(&backend, r.start, r.len())).collect();
        self.flow.flow.chain_mut().initialise(&backend, &shards, None)?;
        self.optimiser.follow(&self.flow.flow);
        self.optimiser.begin_average();
        self.prepared = self.flow.prepare();
        self.initialised = true;
        Ok(())
    }

    /// The flow with the averaged weights, its power iterations converged on them.
    pub fn model(&self) -> VariationalFlow<B> {
        VariationalFlow { flow: self.optimiser.averaged(&self.flow.flow, &self.optimiser_config) }
    }
}

/// The mean of the finite ones and its standard error.
fn mean_of_finite(values: &[f64]) -> (f64, f64) {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let n = finite.len() as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let spread: f64 = finite.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if n > 1.0 { (spread / (n - 1.0) / n).sqrt() } else { f64::INFINITY })
}
