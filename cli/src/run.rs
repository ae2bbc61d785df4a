//! One process's part of a run: the loop around the trainer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::train::{Budget, StepReport, Trainer, Validation};

use crate::arguments::Fit;
use crate::canvas::Axes;
use crate::failure::{interrupted, warn};
use crate::keeper::Keeper;
use crate::metrics::{Entry, Metrics};
use crate::output::print;
use crate::pace::Pace;
use crate::picture;
use crate::progress::{Position, Progress, clock};
use crate::run_directory::{PICTURES, RunDirectory};

/// A step is logged if its number is a multiple of this, or if it was validated.
const LOG_EVERY: u64 = 10;
/// Validations of a run that is given a time.
const VALIDATIONS: f64 = 40.0;
/// Validations between measurements of what the end of the run will take.
const MEASURE_EVERY: u64 = 5;

/// Whether the user wants the run to stop.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

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
    pictured: Option<Vec<[f64; 2]>>,
    /// The number of the last validation point of a run that is given a time.
    milestone: u64,
    validations: u64,
    validation_cost: Option<Duration>,
    best_error: Option<f64>,
    /// The steps that were done when this process began.
    first: u64,
    began: Instant,
}

impl<'a, B: Backend> Run<'a, B> {
    pub(crate) fn new(
        trainer: Trainer<B>,
        arguments: &'a Fit,
        directory: &'a RunDirectory,
        metrics: Metrics,
        pace: Pace,
        pictured: Option<Vec<[f64; 2]>>,
    ) -> Self {
        let first = trainer.steps_done();
        Self {
            milestone: (trainer.progress() * VALIDATIONS) as u64,
            first,
            trainer,
            arguments,
            directory,
            metrics,
            keeper: Keeper::new(directory, first),
            pace,
            progress: Progress::new(),
            pictured,
            validations: 0,
            validation_cost: None,
            best_error: None,
            began: Instant::now(),
        }
    }

    /// Finds the standard error of the best validation so far among the logged ones.
    pub(crate) fn remember(&mut self, entries: &[Entry]) {
        let best = self.trainer.best_nll();
        self.best_error = entries.iter().find(|e| e.val_nll.is_some() && e.val_nll == best).and_then(|e| e.val_se);
    }

    /// Trains to the end and writes everything.
    pub(crate) fn finish(mut self) -> Result<()> {
        for warning in self.trainer.flow().variance_warnings() {
            warn(warning);
        }
        if self.first == 0 {
            self.keeper.save(&self.trainer, &self.metrics)?;
        }
        if let Err(error) = self.train() {
            self.progress.end();
            return Err(error);
        }
        self.progress.stage("writing the model");
        self.keeper.improved = true;
        self.keeper.save(&self.trainer, &self.metrics)?;
        if let Some(data) = &self.pictured {
            self.progress.stage("drawing the pictures");
            let flow = self.trainer.model().prepare();
            let key = Key::new(self.trainer.flow().provenance().seed);
            picture::draw(&flow, data, key, self.pace.deadline(), self.directory)?;
        }
        self.progress.end();
        print(&self.summary())
    }

    fn train(&mut self) -> Result<()> {
        if self.trainer.finished() || (self.pace.over() && self.first > 0) {
            return Ok(());
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
            if INTERRUPTED.load(Ordering::SeqCst) {
                self.keeper.save(&self.trainer, &self.metrics)?;
                self.progress.end();
                let again =
                    format!("resflow fit {} --out {} --resume", self.arguments.data, self.directory.root().display());
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

    fn validation_due(&mut self) -> bool {
        if matches!(self.trainer.budget(), Budget::Steps(_)) || self.trainer.config().validate_every > 0 {
            return self.trainer.validation_due();
        }
        let milestone = (self.trainer.progress() * VALIDATIONS) as u64;
        milestone > std::mem::replace(&mut self.milestone, milestone)
    }

    fn validate(&mut self) -> Result<Validation> {
        let start = Instant::now();
        let validation = self.trainer.validate()?;
        self.validation_cost = Some(start.elapsed());
        self.validations += 1;
        if validation.improved {
            self.keeper.improved = true;
            self.best_error = Some(validation.standard_error);
        }
        if self.validations.is_multiple_of(MEASURE_EVERY) {
            self.measure()?;
        }
        Ok(validation)
    }

    /// Measures what the end of the run will take, if its time is limited.
    fn measure(&mut self) -> Result<()> {
        if self.pace.limit().is_none() {
            return Ok(());
        }
        let mut pictures = Duration::ZERO;
        let mut validation = self.validation_cost.unwrap_or_default();
        if let Some(data) = &self.pictured {
            let (cost, row) = picture::estimate(&self.trainer.flow().prepare(), &Axes::around(data))?;
            pictures = cost;
            let rows = self.trainer.validation_rows().rows() as f64;
            validation = self.validation_cost.unwrap_or(row.mul_f64(rows));
        }
        self.pace.reserve(validation, pictures, self.keeper.cost());
        Ok(())
    }

    fn log(&mut self, report: &StepReport, validation: Option<&Validation>) -> Result<()> {
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        self.metrics.log(&Entry {
            step: report.step,
            seconds: self.pace.elapsed().as_secs_f64(),
            train_nll: report.train_nll,
            val_nll: validation.and_then(|v| finite(v.nll)),
            val_se: validation.and_then(|v| finite(v.standard_error)),
            lr: report.learning_rate,
            grad_norm: report.gradient_norm,
            terms: report.terms,
            lipschitz: self.trainer.flow().lipschitz_estimate()?,
        })
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
        self.progress.show(&Position {
            step: report.step,
            steps,
            fraction: self.trainer.progress(),
            nll: report.train_nll,
            validation: self.trainer.last_validation().map(|v| v.nll),
            rate,
            learning_rate: report.learning_rate,
            left,
        });
    }

    /// What came of it, and what to do next.
    fn summary(&self) -> String {
        let root = self.directory.root().display();
        let best = match (self.trainer.best_nll(), self.best_error) {
            (Some(nll), Some(error)) => format!("{nll:.4} ± {error:.4}"),
            (Some(nll), None) => format!("{nll:.4}"),
            _ => "not finite in any validation".to_owned(),
        };
        let pictures = if self.pictured.is_some() { PICTURES.join(", ") } else { String::new() };
        let comma = if pictures.is_empty() { "" } else { ", " };
        let data = &self.arguments.data;
        let elapsed = self.pace.elapsed();
        let time = if elapsed.as_secs() < 100 { format!("{:.1} s", elapsed.as_secs_f64()) } else { clock(elapsed) };
        format!(
            "validation nll {best} nats, {} steps, {time}\n\
             wrote {root}: model.safetensors, checkpoint.safetensors, metrics.jsonl, config.toml{comma}{pictures}\n\
             next:\n  \
             resflow score {root} {data}\n  \
             resflow sample {root} -n 1000 --out samples.csv\n  \
             resflow inspect {root}\n",
            self.trainer.steps_done()
        )
    }
}
