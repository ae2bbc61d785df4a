//! `resflow fit`: a run of training with everything around it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result};
use resflow::backend::Key;
use resflow::data::Table;
use resflow::train::{Budget, Source, Trainer};
use resflow::{Error, Flow};

use crate::arguments::{Fit, Precision};
use crate::failure::usage;
use crate::metrics::Metrics;
use crate::model::{precision_of, read_archive, with_backend};
use crate::output::write_file;
use crate::pace::Pace;
use crate::picture;
use crate::rows::Rows;
use crate::run::{INTERRUPTED, Run};
use crate::run_directory::RunDirectory;
use crate::settings::Settings;

pub(crate) fn run(arguments: &Fit) -> Result<()> {
    let start = Instant::now();
    let directory = RunDirectory::new(&arguments.out);
    let rows = Rows::open(&arguments.data)?;
    let pictured = pictured(&rows);
    let source = match rows {
        Rows::Density(density) => Source::Density(density),
        Rows::File(table) => Source::Table(table),
    };
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    if arguments.resume {
        resume(arguments, source, pictured, &directory, start)
    } else {
        begin(arguments, source, pictured, &directory, start)
    }
}

/// The points of the data's picture, where there are two columns.
fn pictured(rows: &Rows) -> Option<Vec<[f64; 2]>> {
    let points = |table: &Table| (table.width() == 2).then(|| picture::points(table));
    match rows {
        Rows::Density(density) => points(&density.sample(Key::new(0).named("picture"), picture::POINTS)),
        Rows::File(table) => points(table),
    }
}

fn begin(
    arguments: &Fit,
    source: Source,
    pictured: Option<Vec<[f64; 2]>>,
    directory: &RunDirectory,
    start: Instant,
) -> Result<()> {
    let columns = source.width();
    let mut settings = match &arguments.config {
        Some(path) => Settings::read(path, columns)?,
        None => Settings::new(columns),
    };
    settings.train.steps = arguments.steps.unwrap_or(settings.train.steps);
    let budget = match (arguments.steps, arguments.time_limit) {
        (None, Some(limit)) => Budget::Time(limit),
        _ => Budget::Steps(settings.train.steps),
    };
    let precision = arguments.arithmetic.precision.unwrap_or(Precision::F32);
    let key = Key::new(arguments.seed.unwrap_or(0));
    with_backend!(precision, arguments.arithmetic.threads, |backend| {
        let flow = Flow::new(backend, &settings.flow, key.named("weights"))?;
        let trainer =
            Trainer::new(flow, source, &settings.train, budget, key).with_context(|| arguments.data.clone())?;
        directory.create(arguments.overwrite)?;
        write_settings(&settings, arguments, key.seed(), precision, directory)?;
        let metrics = Metrics::create(&directory.metrics())?;
        let pace = Pace::new(start, trainer.elapsed(), arguments.time_limit);
        Run::new(trainer, arguments, directory, metrics, pace, pictured).finish()
    })
}

fn resume(
    arguments: &Fit,
    source: Source,
    pictured: Option<Vec<[f64; 2]>>,
    directory: &RunDirectory,
    start: Instant,
) -> Result<()> {
    let path = directory.checkpoint();
    if matches!(path.try_exists(), Ok(false)) {
        return Err(usage(format_args!("{} is not there: no run to resume", path.display())));
    }
    let archive = read_archive(&path)?;
    let precision = precision_of(&archive).with_context(|| path.display().to_string())?;
    if let Some(other) = arguments.arithmetic.precision.filter(|p| *p != precision) {
        let (has, wants) = (precision.name(), other.name());
        return Err(usage(format_args!("--precision {wants}: the run in {} is in {has}", directory.root().display())));
    }
    with_backend!(precision, arguments.arithmetic.threads, |backend| {
        let width = source.width();
        let mut trainer = Trainer::resume(backend, &archive, source).map_err(|e| match e {
            Error::Input(problem) => usage(format_args!("{}: {problem}", path.display())),
            other => anyhow::Error::from(other).context(path.display().to_string()),
        })?;
        drop(archive);
        let seed = trainer.flow().provenance().seed;
        if let Some(other) = arguments.seed.filter(|s| *s != seed) {
            return Err(usage(format_args!(
                "--seed {other}: the run in {} has seed {seed}",
                directory.root().display()
            )));
        }
        let mut settings = Settings { flow: trainer.flow().config().clone(), train: trainer.config().clone() };
        if let Some(file) = &arguments.config
            && let Some(difference) = settings.difference(&Settings::read(file, width)?)
        {
            return Err(usage(format_args!(
                "--config {}: {difference} in the run in {}",
                file.display(),
                directory.root().display()
            )));
        }
        match (arguments.steps, arguments.time_limit, trainer.budget()) {
            (Some(steps), ..) => trainer.set_budget(Budget::Steps(steps))?,
            (None, Some(limit), Budget::Time(_)) => trainer.set_budget(Budget::Time(limit))?,
            _ => {}
        }
        if let Budget::Steps(steps) = trainer.budget() {
            settings.train.steps = steps;
            write_settings(&settings, arguments, seed, precision, directory)?;
        }
        let (metrics, entries) = Metrics::resume(&directory.metrics(), trainer.steps_done())?;
        let pace = Pace::new(start, trainer.elapsed(), arguments.time_limit);
        let mut run = Run::new(trainer, arguments, directory, metrics, pace, pictured);
        run.remember(&entries);
        run.finish()
    })
}

fn write_settings(
    settings: &Settings,
    arguments: &Fit,
    seed: u64,
    precision: Precision,
    directory: &RunDirectory,
) -> Result<()> {
    // a name from the file system is one line here, whatever is in it
    let data: String = arguments.data.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let comment = format!("resflow fit {data} --seed {seed} --precision {}", precision.name());
    write_file(&directory.config(), settings.to_toml(&comment)?.as_bytes())
}
