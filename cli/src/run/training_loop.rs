//! One process's part of a run: the loop around the trainer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::flow::PreparedFlow;
use resflow::train::{Budget, StepReport, Trainer, Validation};

use crate::arguments::Fit;
use crate::evaluate;
use crate::failure::{interrupted, is_interruption, say, warn};
use crate::progress::{Position, Progress, clock};
use crate::run::directory::{REPORT, RunDirectory};
use crate::run::epilogue::Epilogue;
use crate::run::illustration::Illustration;
use crate::run::interruption::is_interrupted;
use crate::run::keeper::Keeper;
use crate::run::metrics::{Beginning, Bits, Classes, Entry, Metrics, Solves};
use crate::run::pace::Pace;
use crate::settings::presets;

/// A step is logged if its number is a multiple of this, or if it was validated.
const LOG_EVERY: u64 = 10;
/// Validations between measurements of what the end of the run will take.
const MEASURE_EVERY: u64 = 5;
/// The most that validations of a run that is given a time may take of it, the last one apart.
const VALIDATION_SHARE: f64 = 0.15;
/// The most that pictures may take of the time before the end.
const PICTURE_SHARE: f64 = 0.05;
/// Rows that the cost of a validation is measured with.
const PROBE: usize = 32;

/// One process's part of a run.
#[derive(Debug)]
pub(crate) struct Run<'a, B: Backend> {
    trainer: Trainer<B>,
    arguments: &'a Fit,
    directory: &'a RunDirectory,
    metrics: Metrics,
    keeper: Keeper<'a>,
    pace: Pace,
    progress: Progress,
    illustration: Illustration,
    /// The end of a run over a table.
    epilogue: Option<Epilogue>,
    reported: bool,
    /// Time spent on pictures, and what the next one would take.
    drawn: Duration,
    picture_cost: Option<Duration>,
    /// Logged steps, of images.
    entries: Vec<Entry>,
    validations: u64,
    /// What a validation takes: the last one, or an estimate.
    validation_cost: Option<Duration>,
    validated: Duration,
    best_error: Option<f64>,
    /// The steps that were done when this process began to log.
    first: u64,
    /// Whether nothing of the run is written yet.
    fresh: bool,
    began: Instant,
}

impl<'a, B: Backend> Run<'a, B> {
    pub(crate) fn new(
        trainer: Trainer<B>,
        arguments: &'a Fit,
        directory: &'a RunDirectory,
        metrics: Metrics,
        pace: Pace,
        illustration: Illustration,
        epilogue: Option<Epilogue>,
    ) -> Self {
        let first = trainer.steps_done();
        Self {
            first,
            fresh: false,
            trainer,
            arguments,
            directory,
            metrics,
            keeper: Keeper::new(directory, first),
            pace,
            progress: Progress::new(),
            illustration,
            reported: epilogue.is_some(),
            epilogue,
            drawn: Duration::ZERO,
            picture_cost: None,
            entries: Vec::new(),
            validations: 0,
            validation_cost: None,
            validated: Duration::ZERO,
            best_error: None,
            began: Instant::now(),
        }
    }

    /// Takes over what is known of a run that is to be begun, and has perhaps made some steps.
    pub(crate) fn begin(&mut self, beginning: Option<&Beginning>, best_error: Option<f64>) -> Result<()> {
        self.fresh = true;
        self.best_error = best_error;
        self.keeper.improved = self.trainer.best_nll().is_some();
        beginning.map_or(Ok(()), |beginning| self.metrics.begin(beginning))
    }

    /// Takes over what was logged before; finds the standard error of the best validation in it.
    pub(crate) fn remember(&mut self, entries: &[Entry]) {
        self.entries = entries.iter().filter(|e| e.bits.is_some()).cloned().collect();
        let best = self.trainer.best_nll();
        self.best_error = entries.iter().find(|e| e.val_nll.is_some() && e.val_nll == best).and_then(|e| e.val_se);
    }

    /// Trains to the end and writes everything; returns what came of it, in words.
    pub(crate) fn finish(mut self) -> Result<String> {
        let done = self.work();
        if let Some(error) = done.as_ref().err().filter(|error| !is_interruption(error)) {
            self.trainer.abandon(&format!("{error:#}"));
        }
        done
    }

    fn work(&mut self) -> Result<String> {
        let flow = self.trainer.flow();
        let chosen = flow.variance_warnings().into_iter().filter(|w| !presets::is_own_law(flow.config(), w.law));
        chosen.for_each(warn);
        if self.fresh {
            self.keeper.save(&self.trainer, &self.metrics)?;
        }
        if let Err(error) = self.train() {
            self.progress.end();
            return Err(error);
        }
        self.report_exchange();
        self.trainer.dismiss()?;
        self.progress.stage("writing the model");
        self.keeper.improved = true;
        self.keeper.save(&self.trainer, &self.metrics)?;
        if !self.illustration.names().is_empty() {
            self.progress.stage("drawing the pictures");
            self.draw()?;
        }
        if let Some(epilogue) = self.epilogue.take() {
            self.progress.stage("writing the report");
            let flags = self.arguments.data_flags();
            epilogue.write(&self.trainer, &self.arguments.data, &flags, &self.pace, self.directory)?;
        }
        self.progress.end();
        Ok(self.summary())
    }

    fn draw(&mut self) -> Result<()> {
        let start = Instant::now();
        let model = self.trainer.model();
        let key = Key::new(self.trainer.flow().provenance().seed);
        let deadline = self.pace.deadline();
        let (entries, directory) = (&self.entries, self.directory);
        let drawn = self.illustration.draw(
            &model.prepare().without_solve_errors(),
            model.config(),
            entries,
            key,
            deadline,
            directory,
        );
        self.picture_cost = Some(start.elapsed());
        self.drawn += start.elapsed();
        drawn
    }

    /// Draws the pictures of images between steps, if that costs next to nothing.
    fn draw_on_the_way(&mut self) -> Result<()> {
        if !matches!(self.illustration, Illustration::Images { .. }) {
            return Ok(());
        }
        let cost = match self.picture_cost {
            Some(cost) => cost,
            None if self.began.elapsed() < Duration::from_secs(2) => return Ok(()),
            None => {
                let start = Instant::now();
                let cost = self.illustration.estimate(&self.trainer.flow().prepare().without_solve_errors())?;
                self.drawn += start.elapsed();
                *self.picture_cost.insert(cost)
            }
        };
        if (self.drawn + cost).as_secs_f64() <= PICTURE_SHARE * self.began.elapsed().as_secs_f64()
            && let Err(error) = self.draw()
        {
            // training is worth more than a picture
            warn(format_args!("{error:#}"));
        }
        Ok(())
    }

    fn train(&mut self) -> Result<()> {
        if self.trainer.finished() || (self.pace.over() && self.first > 0) {
            return Ok(());
        }
        if self.trainer.validation_due() {
            let validation = self.validate()?;
            self.metrics.begin(&Beginning::of(&self.trainer, &validation, self.pace.elapsed()))?;
        }
        loop {
            // what is on the disk stays: weights that are about to turn non-finite are not worth keeping
            let report = self.trainer.step().with_context(|| {
                let checkpoint = self.directory.checkpoint();
                format!("stopped; {} is the state after step {}", checkpoint.display(), self.keeper.saved)
            })?;
            if self.trainer.steps_done() == self.first + 1 {
                self.measure()?;
            }
            let last = self.trainer.finished() || self.pace.over();
            let validation = if last || self.validation_due() { Some(self.validate()?) } else { None };
            if validation.is_some() || report.step.is_multiple_of(LOG_EVERY) {
                self.log(&report, validation.as_ref())?;
            }
            self.show(&report);
            let sound = validation.as_ref().is_none_or(|v| v.nll.is_finite());
            if sound && self.keeper.due(validation.is_some()) {
                self.keeper.save(&self.trainer, &self.metrics)?;
            }
            if last {
                return Ok(());
            }
            if validation.is_some() {
                self.draw_on_the_way()?;
            }
            if is_interrupted() {
                self.keeper.save(&self.trainer, &self.metrics)?;
                self.progress.end();
                let data = &self.arguments.data;
                let weight = self.arguments.data_flags() + &self.arguments.given_flag();
                let again = format!("resflow fit {data} --out {}{weight} --resume", self.directory.root().display());
                let step = report.step;
                return Err(interrupted(format_args!(
                    "interrupted after step {step}, checkpoint written; go on with\n  {again}"
                )));
            }
            self.adjust()?;
        }
    }

    /// Lays the schedule over the time that is left.
    fn adjust(&mut self) -> Result<()> {
        if matches!(self.trainer.budget(), Budget::Time(_))
            && let Some(budget) = self.pace.budget(self.trainer.elapsed())
        {
            self.trainer.set_budget(budget)?;
        }
        Ok(())
    }

    fn validation_due(&self) -> bool {
        if !self.trainer.validation_due() {
            return false;
        }
        if matches!(self.trainer.budget(), Budget::Steps(_)) || self.trainer.config().validate_every > 0 {
            return true;
        }
        // large models: rather few validations than no time for steps; the last one comes anyway
        let cost = self.validation_cost.unwrap_or_default();
        let share = VALIDATION_SHARE * self.began.elapsed().as_secs_f64();
        (self.validated + cost).as_secs_f64() <= share && self.pace.left().is_none_or(|left| left >= cost)
    }

    fn validate(&mut self) -> Result<Validation> {
        let start = Instant::now();
        let validation = self.trainer.validate()?;
        self.validation_cost = Some(start.elapsed());
        self.validated += start.elapsed();
        self.validations += 1;
        if validation.improved {
            self.keeper.improved = true;
            self.best_error = Some(validation.standard_error);
        }
        // images take long to validate and little to measure with
        if self.validations.is_multiple_of(MEASURE_EVERY) || matches!(self.illustration, Illustration::Images { .. }) {
            self.measure()?;
        }
        Ok(validation)
    }

    /// Measures what the end of the run will take, if its time is limited.
    fn measure(&mut self) -> Result<()> {
        if self.pace.limit().is_none() {
            return Ok(());
        }
        let (validation, pictures) = if let Some(cost) = self.validation_cost {
            (cost, self.estimate(&self.trainer.flow().prepare().without_solve_errors())?)
        } else {
            let start = Instant::now();
            let flow = self.trainer.averaged().prepare().without_solve_errors();
            let averaging = start.elapsed();
            let cost = averaging + self.probe(&flow)?;
            let after = self.estimate(&flow)?;
            (*self.validation_cost.insert(cost), after)
        };
        self.pace.reserve(validation, pictures, self.keeper.cost());
        Ok(())
    }

    /// The time that pictures and report will take.
    fn estimate(&self, flow: &PreparedFlow<B>) -> Result<Duration> {
        let limit = self.pace.limit();
        let report = self.epilogue.as_ref().map_or(Ok(Duration::ZERO), |epilogue| epilogue.estimate(flow, limit))?;
        Ok(self.illustration.estimate(flow)? + report)
    }

    /// The time that log p of the validation rows takes, from some of them.
    fn probe(&self, flow: &PreparedFlow<B>) -> Result<Duration> {
        let samples = self.trainer.validation_samples();
        let some = samples.select(&(0..samples.len().min(PROBE)).collect::<Vec<_>>())?;
        let start = Instant::now();
        flow.log_prob(&some, Key::new(0))?;
        if flow.classifies() {
            flow.classify(&some, Key::new(0))?;
        }
        Ok(start.elapsed().mul_f64(samples.len() as f64 / some.len() as f64))
    }

    fn log(&mut self, report: &StepReport, validation: Option<&Validation>) -> Result<()> {
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        let (nll, error) = (validation.map(|v| v.nll), validation.map(|v| v.standard_error));
        let model = self.trainer.flow().config();
        let bits = |nll: f64| model.bits_per_dim(-nll);
        let entry = Entry {
            step: report.step,
            seconds: self.pace.elapsed().as_secs_f64(),
            train_nll: finite(report.train_nll),
            matching: report.matching,
            val_nll: nll.and_then(finite),
            val_se: error.and_then(finite),
            lr: report.learning_rate,
            grad_norm: report.gradient_norm,
            terms: report.terms,
            lipschitz: if model.family().contracts() { Some(self.trainer.flow().lipschitz_estimate()?) } else { None },
            bits: bits(report.train_nll).map(|train_bits_per_dim| Bits {
                train_bits_per_dim,
                val_bits_per_dim: nll.and_then(bits).and_then(finite),
                val_bits_per_dim_se: error.and_then(|e| model.bits_per_dim_error(e)).and_then(finite),
            }),
            classes: Classes::of(report, validation),
            solves: model
                .family()
                .solves()
                .then_some(Solves { solve_evaluations: report.solves.evaluations, unsolved: report.solves.unsolved }),
        };
        self.metrics.log(&entry)?;
        if entry.bits.is_some() {
            self.entries.push(entry);
        }
        Ok(())
    }

    fn show(&mut self, report: &StepReport) {
        let rate = (report.step - self.first) as f64 / self.began.elapsed().as_secs_f64();
        let (steps, left) = match self.trainer.budget() {
            Budget::Steps(steps) => {
                let left = steps.saturating_sub(report.step) as f64 / rate.max(1e-6);
                (Some(steps), Duration::try_from_secs_f64(left).ok())
            }
            Budget::Time(limit) => (None, Some(limit.saturating_sub(self.trainer.elapsed()))),
        };
        let left = left.map(|left| self.pace.left().map_or(left, |limit| left.min(limit)));
        let model = self.trainer.flow().config();
        let images = model.images().is_some();
        let rows = self.trainer.step_samples() as f64;
        let epoch = |n: usize| report.step as f64 * rows / n as f64;
        let objective = |nll: f64| model.bits_per_dim(-nll).unwrap_or(nll);
        self.progress.show(&Position {
            step: report.step,
            steps,
            fraction: self.trainer.progress(),
            epoch: self.trainer.epoch_samples().filter(|_| images).map(epoch),
            objective: match report.matching {
                Some(_) => "matching",
                None if images => evaluate::bits_per_dim_label(model.is_variational()),
                None => "nll",
            },
            train: report.matching.unwrap_or_else(|| objective(report.train_nll)),
            validation: self.trainer.last_validation().map(|v| objective(v.nll)),
            accuracy: self.trainer.last_validation().and_then(|v| v.classification).map(|c| c.accuracy),
            rate: if images { rate * rows } else { rate },
            unit: if images { " images" } else { "" },
            learning_rate: report.learning_rate,
            left,
            solves: model.family().solves().then_some((report.solves.evaluations, report.solves.unsolved)),
        });
    }

    /// Says what several processes cost.
    fn report_exchange(&self) {
        let steps = self.trainer.steps_done() - self.first;
        let Some(exchange) = self.trainer.exchange().filter(|_| steps > 0) else { return };
        say(format_args!(
            "between processes: {:.3} MB sent by rank 0 a step, {:.1} ms waited for sums beside the backward pass, of {:.1} ms",
            exchange.bytes as f64 * 1e-6 / steps as f64,
            exchange.waited.as_secs_f64() * 1e3 / steps as f64,
            self.began.elapsed().as_secs_f64() * 1e3 / steps as f64,
        ));
    }

    /// What came of it, and what to do next.
    fn summary(&self) -> String {
        let root = self.directory.root().display();
        let best = match (self.trainer.best_nll(), self.best_error) {
            (Some(nll), Some(error)) => format!("{nll:.4} ± {error:.4}"),
            (Some(nll), None) => format!("{nll:.4}"),
            _ => "not finite in any validation".to_owned(),
        };
        let report = self.reported.then_some(REPORT);
        let pictures: Vec<&str> = self.illustration.names().iter().copied().chain(report).collect();
        let pictures = pictures.join(", ");
        let comma = if pictures.is_empty() { "" } else { ", " };
        let (data, weight) = (&self.arguments.data, self.arguments.data_flags());
        let elapsed = self.pace.elapsed();
        let time = if elapsed.as_secs() < 100 { format!("{:.1} s", elapsed.as_secs_f64()) } else { clock(elapsed) };
        let model = self.trainer.flow().config();
        let bits = self.trainer.best_nll().and_then(|nll| model.bits_per_dim(-nll));
        let at_most = evaluate::at_most(model.is_variational());
        let validation = match (bits, self.best_error.and_then(|e| model.bits_per_dim_error(e))) {
            (Some(bits), Some(error)) => format!("{at_most}{bits:.4} ± {error:.4} bits/dim (nll {at_most}{best} nats)"),
            (Some(bits), None) => format!("{at_most}{bits:.4} bits/dim (nll {at_most}{best} nats)"),
            _ => format!("nll {best} nats"),
        };
        let classes = self.trainer.best_classification().map_or(String::new(), |best| {
            format!(
                "accuracy {:.2} ± {:.2} %, cross-entropy {:.4} nats\n",
                100.0 * best.accuracy,
                100.0 * best.accuracy_error(),
                best.cross_entropy
            )
        });
        let sample = if bits.is_some() && !self.arguments.given.is_empty() {
            format!("resflow sample {root} -n 10 --out grid.png")
        } else if bits.is_some() {
            format!(
                "resflow sample {root} -n 100 --out grid.png\n  \
                 resflow reconstruct {root} {data} --out round_trip.png"
            )
        } else if self.arguments.given.is_empty() {
            format!("resflow sample {root} -n 1000 --out samples.csv")
        } else if self.trainer.flow().dimension() == 1 {
            format!("resflow predict {root} new.csv --out predicted.csv")
        } else {
            format!("resflow sample {root} --given contexts.csv -n 100 --out samples.csv")
        };
        let impute = if self.trainer.flow().imputer().is_some() {
            format!("resflow impute {root} {data} --out filled.csv\n  ")
        } else {
            String::new()
        };
        format!(
            "validation {validation}, {} steps, {time}\n{classes}\
             wrote {root}: model.safetensors, checkpoint.safetensors, metrics.jsonl, config.toml{comma}{pictures}\n\
             next:\n  \
             resflow score {root} {data}{weight}\n  \
             {sample}\n  {impute}\
             resflow inspect {root}\n",
            self.trainer.steps_done()
        )
    }
}
