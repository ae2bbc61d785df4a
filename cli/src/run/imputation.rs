//! A fit of rows that lack values, in two stages: the imputer learns to fill them in, then the density learns from rows that it has
//! filled in.
//!
//! The checkpoint is the state of the stage that the run is in. That of the first stage also has what the second one needs to begin
//! (`joint`): settings, budget, seed and the time so far. That of the second stage has the imputer in its model, which fills the same rows
//! in again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::checkpoint::Archive;
use resflow::config::ModelConfig;
use resflow::data::{self, Dataset, Incomplete, Opened, Table};
use resflow::device::Precision;
use resflow::missing::{Imputer, MissingFit, TIME_SHARE};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Flow, with_device};
use serde::{Deserialize, Serialize};

use crate::arguments::Fit;
use crate::data::Data;
use crate::failure::{interrupted, say, usage};
use crate::model::{precision_of, read_archive};
use crate::progress::{Position, Progress};
use crate::run::directory::RunDirectory;
use crate::run::epilogue::Epilogue;
use crate::run::illustration::Illustration;
use crate::run::interruption::is_interrupted;
use crate::run::learn::{
    asked_family, check_asked, check_precision, check_seed, go_on, settings_of, tell, write_settings,
};
use crate::run::metrics::Metrics;
use crate::run::pace::Pace;
use crate::run::race::Choice;
use crate::run::training_loop::Run;
use crate::settings::Settings;

/// The section of a checkpoint that says what the second stage begins with.
const JOINT: &str = "joint";
/// The longest time between two checkpoints.
const LONGEST: Duration = Duration::from_secs(10);

/// What the second stage begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joint {
    model: ModelConfig,
    train: TrainConfig,
    budget: Budget,
    /// As text: JSON numbers of other readers lose the low bits of large ones.
    seed: String,
    /// The seconds that were spent before the state was written.
    elapsed: f64,
}

/// What a run is about.
struct Plan<'a> {
    arguments: &'a Fit,
    rows: &'a Incomplete,
    fit: MissingFit,
    directory: &'a RunDirectory,
    key: Key,
    precision: Precision,
    start: Instant,
    /// Time spent before this process.
    before: Duration,
}

/// Begins or resumes a fit of rows that may lack values; returns what came of it, in words.
pub(crate) fn learn_incomplete(arguments: &Fit, data: Data) -> Result<String> {
    let start = Instant::now();
    let directory = RunDirectory::new(&arguments.out);
    directory.claim_if_there()?;
    if data.table().is_none() {
        return Err(usage(format_args!("--impute is for tables, {} is none", arguments.data)));
    }
    if arguments.model == Some(Choice::Auto) {
        return Err(usage("--model auto: with --impute choose one, such as residual or nsf"));
    }
    let Data::Stored(opened) = data else {
        return Err(usage(format_args!("--impute is for tables, {} is none", arguments.data)));
    };
    let rows = Incomplete::from(opened.data);
    if arguments.resume {
        resume(arguments, &rows, &directory, start)
    } else {
        begin(arguments, &rows, &directory, start)
    }
}

/// A source of as many rows and columns, by which settings are chosen.
fn sizes(rows: &Incomplete) -> Result<Source> {
    let columns = rows.columns().map(<[String]>::to_vec);
    let width = rows.width();
    Ok(Table::new(columns, width, vec![0.0; rows.len() * width])?.into())
}

fn begin(arguments: &Fit, rows: &Incomplete, directory: &RunDirectory, start: Instant) -> Result<String> {
    let family = asked_family(arguments)?.unwrap_or_default();
    let mut settings = settings_of(arguments, &sizes(rows)?, family)?;
    settings.model.check().map_err(usage)?;
    tell(&data::look_incomplete(rows).with_context(|| arguments.data.clone())?, arguments)?;
    settings.train.steps = arguments.steps.unwrap_or(settings.train.steps);
    let budget = match (arguments.steps, arguments.time_limit) {
        (None, Some(limit)) => Budget::Time(limit),
        _ => settings.train.budget(),
    };
    let precision = arguments.arithmetic.precision_of(Precision::F32);
    let key = Key::new(arguments.seed.unwrap_or(0));
    if !arguments.overwrite {
        directory.spare_old()?;
    }
    let fit = MissingFit::new(rows, &settings.train, key).with_context(|| arguments.data.clone())?;
    with_device!(arguments.arithmetic.open_for_fit(precision)?, |backend| {
        directory.create(arguments.overwrite)?;
        write_settings(&settings, arguments, key.seed(), precision, directory)?;
        let Settings { model, train } = settings;
        let joint = Joint { model, train, budget, seed: key.seed().to_string(), elapsed: 0.0 };
        let before = Duration::ZERO;
        let plan = Plan { arguments, rows, fit, directory, key, precision, start, before };
        let first = match budget {
            Budget::Steps(steps) => Budget::Steps(steps),
            Budget::Time(limit) => Budget::Time(limit.mul_f64(TIME_SHARE)),
        };
        let trainer = plan.fit.imputer_trainer(backend.clone(), first, key)?;
        let imputer = plan.learn_to_impute(trainer, &joint)?;
        plan.learn_jointly(backend, imputer, joint)
    })
}

fn resume(arguments: &Fit, rows: &Incomplete, directory: &RunDirectory, start: Instant) -> Result<String> {
    let path = directory.checkpoint();
    if matches!(path.try_exists(), Ok(false)) {
        return Err(usage(format_args!("{} is not there: no run to resume", path.display())));
    }
    directory.claim()?;
    let archive = read_archive(&path)?;
    let shown = || path.display().to_string();
    let precision = precision_of(&archive).with_context(shown)?;
    check_precision(arguments, precision, directory)?;
    let other = |e: resflow::Error| match e {
        resflow::Error::Input(problem) => usage(format_args!("{}: {problem}", path.display())),
        other => anyhow::Error::from(other).context(path.display().to_string()),
    };
    with_device!(arguments.arithmetic.open_for_fit(precision)?, |backend| {
        if let Some(joint) = archive.document.get(JOINT) {
            let mut joint = Joint::deserialize(joint).with_context(shown)?;
            let seed: u64 = joint.seed.parse().with_context(shown)?;
            check_seed(arguments, seed, directory)?;
            let run = Settings { model: joint.model.clone(), train: joint.train.clone() };
            check_asked(arguments, &run, &[rows.width()], directory)?;
            match (arguments.steps, arguments.time_limit, joint.budget) {
                (Some(steps), ..) => (joint.budget, joint.train.steps) = (Budget::Steps(steps), steps),
                (None, Some(limit), Budget::Time(_)) => joint.budget = Budget::Time(limit),
                _ => {}
            }
            let key = Key::new(seed);
            let fit = MissingFit::new(rows, &joint.train, key).with_context(|| arguments.data.clone())?;
            let before = Duration::try_from_secs_f64(joint.elapsed).with_context(shown)?;
            let plan = Plan { arguments, rows, fit, directory, key, precision, start, before };
            let trainer = plan.fit.resume_imputer(backend.clone(), &archive, key).map_err(other)?;
            let imputer = plan.learn_to_impute(trainer, &joint)?;
            return plan.learn_jointly(backend, imputer, joint);
        }
        let train = TrainConfig::deserialize(&archive.document["run"]["config"]).with_context(shown)?;
        let seed = archive.document["model"]["provenance"]["seed"].as_u64().unwrap_or(0);
        let key = Key::new(seed);
        let fit = MissingFit::new(rows, &train, key).with_context(|| arguments.data.clone())?;
        let trainer = fit.resume(backend, &archive, key).map_err(other)?;
        let before = Duration::ZERO;
        let plan = Plan { arguments, rows, fit, directory, key, precision, start, before };
        let after = plan.after(trainer.flow().imputer())?;
        go_on(trainer, arguments, &[rows.width()], precision, after, directory, start)
    })
}

impl Plan<'_> {
    /// Trains the imputer to the end of its budget, or of its share of the time.
    fn learn_to_impute<B: Backend>(&self, mut trainer: Trainer<B>, joint: &Joint) -> Result<Imputer<B>> {
        let share = self.arguments.time_limit.map(|limit| limit.mul_f64(TIME_SHARE));
        let left = || share.map(|share| share.saturating_sub(self.before + self.start.elapsed()));
        let mut progress = Progress::new();
        progress.stage("learning to fill in what is missing");
        let (began, first) = (Instant::now(), trainer.steps_done());
        let mut saved = Instant::now();
        self.save(&trainer, joint)?;
        if trainer.validation_due() {
            trainer.validate()?;
        }
        let over = |trainer: &Trainer<B>| trainer.finished() || left().is_some_and(|left| left.is_zero());
        while !over(&trainer) {
            if let (Some(left), Budget::Time(_)) = (left(), trainer.budget()) {
                trainer.set_budget(Budget::Time(trainer.elapsed() + left.max(Duration::from_nanos(1))))?;
            }
            let report = trainer.step().with_context(|| {
                format!("stopped in the imputer; {} is the state before", self.directory.checkpoint().display())
            })?;
            if over(&trainer) || trainer.validation_due() {
                trainer.validate()?;
            }
            let rate = (report.step - first) as f64 / began.elapsed().as_secs_f64();
            progress.show(&Position {
                step: report.step,
                steps: if let Budget::Steps(steps) = trainer.budget() { Some(steps) } else { None },
                fraction: trainer.progress(),
                epoch: None,
                objective: "imputer nll",
                train: report.train_nll,
                validation: trainer.last_validation().map(|v| v.nll),
                accuracy: None,
                rate,
                unit: "",
                learning_rate: report.learning_rate,
                left: left(),
                solves: None,
            });
            if is_interrupted() {
                self.save(&trainer, joint)?;
                progress.end();
                let Fit { data, .. } = self.arguments;
                let flags = self.arguments.data_flags() + &self.arguments.given_flag();
                return Err(interrupted(format_args!(
                    "interrupted after step {} of the imputer, checkpoint written; go on with\n  resflow fit {data} --out {}{flags} --resume",
                    report.step,
                    self.directory.root().display()
                )));
            }
            if saved.elapsed() >= LONGEST {
                self.save(&trainer, joint)?;
                saved = Instant::now();
            }
        }
        self.save(&trainer, joint)?;
        progress.end();
        let best = trainer.best_nll().map_or("not finite".to_owned(), |nll| format!("{nll:.4}"));
        say(format_args!(
            "imputer: validation nll {best} nats (of masked cells and noise), {} steps, {:.1} s",
            trainer.steps_done(),
            (self.before + self.start.elapsed()).as_secs_f64()
        ));
        Ok(self.fit.imputer(trainer.model())?)
    }

    /// Writes the state of the first stage.
    fn save<B: Backend>(&self, trainer: &Trainer<B>, joint: &Joint) -> Result<()> {
        let elapsed = (self.before + self.start.elapsed()).as_secs_f64();
        let mut archive: Archive = trainer.to_archive()?;
        archive.document[JOINT] = serde_json::to_value(Joint { elapsed, ..joint.clone() })?;
        Ok(archive.write(&self.directory.checkpoint())?)
    }

    /// The pictures and the report of the rows, each filled in once.
    fn after<B: Backend>(&self, imputer: Option<&Imputer<B>>) -> Result<(Illustration, Option<Epilogue>)> {
        let Some(imputer) = imputer else { return Ok((Illustration::Nothing, None)) };
        let filled = imputer.prepare().impute(self.rows, 1, self.key.named("shown"))?;
        let data = Dataset::from(filled.into_table());
        let data = match self.rows.weights() {
            Some(weights) => data.with_weights(weights.to_vec())?,
            None => data,
        };
        let (notes, dropped) = (Vec::new(), Vec::new());
        let shown = Data::Stored(Opened { data, test: None, image_size: None, notes, dropped });
        let epilogue = Epilogue::of(&shown).map(|own| own.with_held_out(self.fit.validation_numbers()));
        Ok((Illustration::of(&shown), epilogue))
    }

    /// Fills the rows in and trains the density on them.
    fn learn_jointly<B: Backend>(&self, backend: B, imputer: Imputer<B>, joint: Joint) -> Result<String> {
        let (arguments, directory, key) = (self.arguments, self.directory, self.key);
        let filled = self.fit.fill(&imputer, key)?;
        let (illustration, epilogue) = self.after(Some(&imputer))?;
        let Joint { model, train, budget, .. } = joint;
        let mut settings = Settings { model, train };
        let flow = Flow::new(backend, &settings.model, key.named("weights"))?;
        let spent = self.before + self.start.elapsed();
        let limit = arguments.time_limit.map(|limit| limit.saturating_sub(spent).max(Duration::from_millis(1)));
        let budget = match (budget, limit) {
            (Budget::Time(_), Some(left)) => Budget::Time(left),
            (budget, _) => budget,
        };
        let trainer = self.fit.trainer_on(filled, flow, imputer, &settings.train, (budget, limit), key);
        let trainer = trainer.with_context(|| arguments.data.clone())?;
        settings.model = trainer.flow().config().clone();
        if let Some(ladder) = &trainer.flow().provenance().ladder {
            say(ladder);
        }
        write_settings(&settings, arguments, key.seed(), self.precision, directory)?;
        let metrics = Metrics::create(&directory.metrics())?;
        let pace = Pace::new(self.start, self.before, arguments.time_limit);
        let mut run = Run::new(trainer, arguments, directory, metrics, pace, illustration, epilogue);
        run.begin(None, None)?;
        run.finish()
    }
}
