//! Begins or resumes a run: what the arguments ask for, held against the data and against what was begun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::checkpoint::Archive;
use resflow::config::{ContextConfig, Dequantisation, Family, ModelConfig};
use resflow::data::image::ImageSize;
use resflow::data::{self, Concern, Dataset, ImageRows, Look, Severity};
use resflow::device::Precision;
use resflow::group::Group;
use resflow::registry::Registry;
use resflow::train::{Budget, Source, Trainer, await_run};
use resflow::{Error, Flow, with_device};

use crate::arguments::Fit;
use crate::cluster;
use crate::data::Data;
use crate::data::labels;
use crate::failure::{say, usage, warn};
use crate::model::{precision_of, read_archive};
use crate::output::write_file;
use crate::run::directory::RunDirectory;
use crate::run::epilogue::Epilogue;
use crate::run::illustration::Illustration;
use crate::run::metrics::Metrics;
use crate::run::pace::Pace;
use crate::run::race::{Choice, race};
use crate::run::training_loop::Run;
use crate::settings::Settings;
use crate::settings::presets;

/// The numbers of a large table that are looked at.
const LOOK: usize = 1 << 20;

/// Begins or resumes the run that the arguments ask for; returns what came of it, in words.
pub(crate) fn learn(
    arguments: &Fit,
    data: Data,
    illustration: Illustration,
    epilogue: Option<Epilogue>,
) -> Result<String> {
    let start = Instant::now();
    let data = data.quantised(&arguments.data)?;
    let source = match data {
        Data::Density(density) => Source::Density(density),
        // the test images are for `score`
        Data::Stored(opened) => Source::Data(opened.data),
        Data::Large(table) => Source::Large(table),
    };
    if let Some(group) = cluster::following() {
        return follow(arguments, source, group);
    }
    let directory = RunDirectory::new(&arguments.out);
    directory.claim_if_there()?;
    if let (Some(preset), None) = (arguments.preset, images(&source)) {
        return Err(usage(format_args!("--preset {preset} is for images, {} holds rows", arguments.data)));
    }
    if arguments.resume {
        resume(arguments, source, (illustration, epilogue), &directory, start)
    } else {
        begin(arguments, source, (illustration, epilogue), &directory, start)
    }
}

/// Does what rank 0 does, as another rank: it has the state of the run, and this one the same data.
fn follow(arguments: &Fit, source: Source, group: Arc<dyn Group>) -> Result<String> {
    let state = await_run(&*group)?;
    let precision = precision_of(&state)?;
    with_device!(arguments.arithmetic.open_for_fit(precision)?, |backend| {
        Trainer::join(backend, &state, source, group, &Registry::new())?.follow()?;
        Ok(String::new())
    })
}

/// Lets the other processes that this one was started with make the run with it.
fn with_others<B: Backend>(trainer: Trainer<B>) -> Result<Trainer<B>> {
    match cluster::group() {
        Some(group) => Ok(trainer.lead(group)?),
        None => Ok(trainer),
    }
}

/// The images of a source, if it has any.
fn images(source: &Source) -> Option<ImageRows<'_>> {
    match source {
        Source::Large(table) => table.images(),
        _ => source.data()?.images().map(ImageRows::from),
    }
}

/// The family that is asked for, on the command line or in the file; both must not differ.
pub(super) fn asked_family(arguments: &Fit) -> Result<Option<Family>> {
    let file = arguments.config.as_deref();
    let filed = file.map_or(Ok(None), Settings::family)?;
    match (arguments.model, filed, file) {
        (Some(Choice::Auto), Some(filed), Some(file)) => {
            Err(usage(format_args!("--model auto: {} says model = \"{filed}\"", file.display())))
        }
        (None | Some(Choice::Auto), filed, _) => Ok(filed),
        (Some(Choice::Family(asked)), Some(filed), Some(file)) if asked != filed => {
            Err(usage(format_args!("--model {asked}: {} says model = \"{filed}\"", file.display())))
        }
        (Some(Choice::Family(asked)), ..) => Ok(Some(asked)),
    }
}

/// The settings of a new run of a family: defaults or preset, with those of the file in their place.
pub(super) fn settings_of(arguments: &Fit, source: &Source, family: Family) -> Result<Settings> {
    let mut settings = settings_before(arguments, source, family)?;
    settings.train.products = arguments.arithmetic.asked_products().unwrap_or(settings.train.products);
    Ok(settings)
}

/// The settings before the arithmetic of their products is chosen.
fn settings_before(arguments: &Fit, source: &Source, family: Family) -> Result<Settings> {
    let (row, classes) = (source.sample_shape(), asked_classes(arguments, source)?);
    let [height, width, channels] = row[..] else {
        let columns = row.iter().product();
        if let Some(asked) = arguments.dequantisation {
            let data = &arguments.data;
            return Err(usage(format_args!(
                "--dequantisation {asked} is for images of bytes, {data} holds rows of numbers"
            )));
        }
        let mut settings = match source {
            Source::Density(_) => Settings::for_density(family),
            Source::Large(table) => Settings::for_table(family, table.rows(), columns),
            Source::Data(data) | Source::Split { training: data, .. } => {
                Settings::for_table(family, data.len(), columns)
            }
        };
        let contexts = source.data().and_then(|data| data.samples().context_width());
        settings.model = settings.model.with_context(contexts.map(ContextConfig::new));
        let settings = match &arguments.config {
            Some(path) => settings.overlay(path, &row)?.with_fitting_base(),
            None if contexts.is_some() => settings.with_fitting_base(),
            None => settings,
        };
        return match settings.model.context().map(|context| context.columns) {
            Some(columns) if contexts != Some(columns) => {
                let found = contexts.unwrap_or(0);
                let levels = if arguments.given.is_empty() { "the levels of categories are" } else { "--given names" };
                Err(usage(format_args!("the configuration is given {columns} columns, {levels} {found}")))
            }
            _ => Ok(settings),
        };
    };
    let size = ImageSize { height, width, channels };
    let sized = arguments.config.as_deref().map_or(Ok(false), Settings::says_size)?;
    let start = presets::choose(arguments.preset, size, sized);
    let mut settings = start.settings(family)?;
    if let Some(path) = &arguments.config {
        settings = settings.overlay(path, &row)?;
    }
    start.check(&settings, size)?;
    let contexts = source.data().and_then(|data| data.samples().context_width());
    match (settings.model.context().map(|context| context.columns), contexts) {
        (None, Some(found)) => settings.model = settings.model.with_context(Some(ContextConfig::new(found))),
        (Some(columns), found) if found != Some(columns) => {
            let found = found.unwrap_or(0);
            return Err(usage(format_args!(
                "the configuration is given {columns} classes, --given class finds {found}"
            )));
        }
        _ => {}
    }
    if let Some(words) = start.describe(&settings.model) {
        say(format_args!("note: {words}"));
    }
    classify(&mut settings, classes, arguments, source)?;
    dequantise(&mut settings, arguments)?;
    Ok(settings)
}

/// Gives the model the dequantisation that is asked for, which a file must not contradict.
fn dequantise(settings: &mut Settings, arguments: &Fit) -> Result<()> {
    let (ModelConfig::Images(images), Some(asked)) = (&mut settings.model, arguments.dequantisation) else {
        return Ok(());
    };
    if asked == Dequantisation::Uniform
        && images.dequantisation.is_variational()
        && let Some(file) = &arguments.config
    {
        let file = file.display();
        return Err(usage(format_args!("--dequantisation {asked}: {file} says dequantisation is variational")));
    }
    images.dequantisation.kind = asked;
    Ok(())
}

/// Says what there is to say of a table; refuses one whose density has no meaning.
fn findings(data: &Dataset, arguments: &Fit) -> Result<()> {
    if data.table().is_none() {
        return Ok(());
    }
    tell(&data::look_at(data).with_context(|| arguments.data.clone())?, arguments)
}

/// Says what was found in a table, but for what its reading has told already; refuses one whose density has no meaning.
pub(super) fn tell(look: &Look, arguments: &Fit) -> Result<()> {
    for finding in look.findings.iter().filter(|finding| finding.concern != Concern::Missing) {
        match finding.severity {
            Severity::Grave if arguments.regardless => warn(finding),
            Severity::Warning => warn(finding),
            Severity::Note => say(format_args!("note: {finding}")),
            Severity::Grave => {}
        }
    }
    if arguments.regardless {
        return Ok(());
    }
    look.check().map_err(|e| usage(format_args!("{}: {e}", arguments.data)))
}

/// The classes that --classify asks for: those of the labels.
fn asked_classes(arguments: &Fit, source: &Source) -> Result<Option<usize>> {
    match images(source) {
        _ if !arguments.classify => Ok(None),
        Some(set) => labels::classes(set, &arguments.data, "--classify").map(Some),
        None => Err(usage(format_args!("--classify is for images with labels, {} holds rows", arguments.data))),
    }
}

/// Gives the model a classifier of the classes that are asked for; one that the file asks for needs labels too.
fn classify(settings: &mut Settings, asked: Option<usize>, arguments: &Fit, source: &Source) -> Result<()> {
    let (ModelConfig::Images(images), Some(set)) = (&mut settings.model, images(source)) else { return Ok(()) };
    match asked {
        Some(found) if images.classes == 0 => images.classes = found,
        Some(found) if images.classes != found => {
            let (data, own) = (&arguments.data, images.classes);
            let file = arguments.config.as_ref().map_or("the preset".into(), |path| path.display().to_string());
            return Err(usage(format_args!(
                "--classify: the labels of {data} are those of {found} classes, {file} says classes = {own}"
            )));
        }
        None if images.classes > 0 => labels::check(set, &arguments.data, images.classes)?,
        _ => {}
    }
    Ok(())
}

fn begin(
    arguments: &Fit,
    source: Source,
    (illustration, epilogue): (Illustration, Option<Epilogue>),
    directory: &RunDirectory,
    start: Instant,
) -> Result<String> {
    let family = asked_family(arguments)?.unwrap_or_default();
    let mut settings = settings_of(arguments, &source, family)?;
    // the data may be too small for a family's defaults
    settings.model.check().map_err(usage)?;
    match &source {
        Source::Density(_) => {}
        Source::Data(data) | Source::Split { training: data, .. } => findings(data, arguments)?,
        Source::Large(table) if table.images().is_some() => {}
        Source::Large(table) => {
            let rows = table.sample(LOOK / table.width() + 1, Key::new(0).named("look"))?;
            if rows.rows() < table.rows() {
                say(format_args!("note: a look at {} of the rows, chosen by chance, finds what follows", rows.rows()));
            }
            findings(&rows.into(), arguments)?;
        }
    }
    settings.train.steps = arguments.steps.unwrap_or(settings.train.steps);
    let budget = match (arguments.steps, arguments.time_limit) {
        (None, Some(limit)) => Budget::Time(limit),
        _ => settings.train.budget(),
    };
    let precision = arguments.arithmetic.precision_of(Precision::F32);
    let key = Key::new(arguments.seed.unwrap_or(0));
    if arguments.model == Some(Choice::Auto) && settings.model.rows().is_none() {
        return Err(usage(format_args!("--model auto is for tables, {} holds images", arguments.data)));
    }
    if !arguments.overwrite {
        directory.spare_old()?;
    }
    with_device!(arguments.arithmetic.open_for_fit(precision)?, |backend| {
        let (trainer, (beginning, best_error)) = if arguments.model == Some(Choice::Auto) {
            let of = |family| settings_of(arguments, &source, family);
            let won = race(&backend, arguments, &source, (budget, start), key, of)?;
            settings.train = won.trainer.config().clone();
            (won.trainer, (won.beginning, won.best_error))
        } else {
            let flow = Flow::new(backend, &settings.model, key.named("weights"))?;
            let trainer = match arguments.time_limit {
                Some(limit) => Trainer::new_within(flow, source, &settings.train, (budget, limit), key),
                None => Trainer::new(flow, source, &settings.train, budget, key),
            };
            let trainer = trainer.map_err(|e| match e {
                // such as an objective that the family does not have
                Error::Config(problem) => usage(format_args!("{}: {problem}", arguments.data)),
                other => anyhow::Error::from(other).context(arguments.data.clone()),
            });
            (trainer?, (None, None))
        };
        directory.create(arguments.overwrite)?;
        // its base density is the one that was fitted
        settings.model = trainer.flow().config().clone();
        if let Some(ladder) = &trainer.flow().provenance().ladder {
            say(ladder);
        }
        write_settings(&settings, arguments, key.seed(), precision, directory)?;
        let metrics = Metrics::create(&directory.metrics())?;
        // time before this process
        let pace = Pace::new(start, Duration::ZERO, arguments.time_limit);
        let trainer = with_others(trainer)?;
        let mut run = Run::new(trainer, arguments, directory, metrics, pace, illustration, epilogue);
        run.begin(beginning.as_ref(), best_error)?;
        run.finish()
    })
}

fn resume(
    arguments: &Fit,
    source: Source,
    (illustration, epilogue): (Illustration, Option<Epilogue>),
    directory: &RunDirectory,
    start: Instant,
) -> Result<String> {
    let path = directory.checkpoint();
    if matches!(path.try_exists(), Ok(false)) {
        return Err(usage(format_args!("{} is not there: no run to resume", path.display())));
    }
    directory.claim()?;
    let archive = read_archive(&path)?;
    let precision = precision_of(&archive).with_context(|| path.display().to_string())?;
    check_precision(arguments, precision, directory)?;
    let (row, classes) = (source.sample_shape(), asked_classes(arguments, &source)?);
    with_device!(arguments.arithmetic.open_for_fit(precision)?, |backend| {
        let trainer = Trainer::resume(backend, &archive, source).map_err(|e| match e {
            Error::Input(problem) => usage(format_args!("{}: {problem}{}", path.display(), hint(arguments, &archive))),
            other => anyhow::Error::from(other).context(path.display().to_string()),
        })?;
        drop(archive);
        let run = Settings { model: trainer.flow().config().clone(), train: trainer.config().clone() };
        check_classes(arguments, &run, classes, directory)?;
        go_on(trainer, arguments, &row, precision, (illustration, epilogue), directory, start)
    })
}

/// Checks the seed that is asked for against that of a run.
pub(super) fn check_seed(arguments: &Fit, seed: u64, directory: &RunDirectory) -> Result<()> {
    let Some(other) = arguments.seed.filter(|s| *s != seed) else { return Ok(()) };
    Err(usage(format_args!("--seed {other}: the run in {} has seed {seed}", directory.root().display())))
}

/// Checks the precision that is asked for against that of a run.
pub(super) fn check_precision(arguments: &Fit, precision: Precision, directory: &RunDirectory) -> Result<()> {
    let Some(other) = arguments.arithmetic.asked_precision().filter(|p| *p != precision) else { return Ok(()) };
    let (has, wants) = (precision.name(), other.name());
    Err(usage(format_args!("--precision {wants}: the run in {} is in {has}", directory.root().display())))
}

/// Checks what is asked for against a run that was resumed, and goes on with it.
pub(super) fn go_on<B: Backend>(
    mut trainer: Trainer<B>,
    arguments: &Fit,
    row: &[usize],
    precision: Precision,
    (illustration, epilogue): (Illustration, Option<Epilogue>),
    directory: &RunDirectory,
    start: Instant,
) -> Result<String> {
    let seed = trainer.flow().provenance().seed;
    check_seed(arguments, seed, directory)?;
    let mut settings = Settings { model: trainer.flow().config().clone(), train: trainer.config().clone() };
    let products = settings.train.products;
    if let Some(other) = arguments.arithmetic.asked_products().filter(|p| *p != products) {
        let root = directory.root().display();
        return Err(usage(format_args!("--products {other}: the run in {root} is in {products}")));
    }
    check_asked(arguments, &settings, row, directory)?;
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
    // of the lines, since a race takes time that is not the trainer's
    let logged = entries.last().and_then(|entry| Duration::try_from_secs_f64(entry.seconds).ok());
    let before = logged.unwrap_or_default().max(trainer.elapsed());
    let pace = Pace::new(start, before, arguments.time_limit);
    let trainer = with_others(trainer)?;
    let mut run = Run::new(trainer, arguments, directory, metrics, pace, illustration, epilogue);
    run.remember(&entries);
    run.finish()
}

/// What may be missing where the data are not those of the run.
fn hint(arguments: &Fit, archive: &Archive) -> &'static str {
    let has = |what: &str| archive.document["run"]["data"].as_str().is_some_and(|data| data.contains(what));
    if has(", weights ") && arguments.weight.is_none() {
        "; its rows have weights: --weight names their column"
    } else if (has(", contexts ") || has(", categories of contexts ")) && arguments.given.is_empty() {
        "; its rows have contexts: --given names their columns"
    } else if archive.document["model"]["imputer"].is_object() || archive.document["joint"].is_object() {
        "; it is a run of --impute"
    } else {
        ""
    }
}

/// Whether a resumed run classifies as --classify would have it.
fn check_classes(arguments: &Fit, run: &Settings, asked: Option<usize>, directory: &RunDirectory) -> Result<()> {
    let own = run.model.classes();
    let Some(found) = asked.filter(|found| *found != own) else { return Ok(()) };
    let (data, root) = (&arguments.data, directory.root().display());
    let has = if own == 0 { "no classifier; a new run can have one".to_owned() } else { format!("classes = {own}") };
    Err(usage(format_args!(
        "--classify: the labels of {data} are those of {found} classes, the run in {root} has {has}"
    )))
}

/// Whether model, preset and file of a resumed run say what the run does.
pub(super) fn check_asked(arguments: &Fit, run: &Settings, row: &[usize], directory: &RunDirectory) -> Result<()> {
    let family = run.model.family();
    if let Some(other) = asked_family(arguments)?.filter(|f| *f != family) {
        return Err(usage(format_args!("--model {other}: the run in {} is of {family}", directory.root().display())));
    }
    let variational = run.model.is_variational();
    if let Some(other) = arguments.dequantisation.filter(|other| (*other == Dequantisation::Variational) != variational)
    {
        let has = if variational { Dequantisation::Variational } else { Dequantisation::Uniform };
        let root = directory.root().display();
        return Err(usage(format_args!("--dequantisation {other}: that of the run in {root} is {has}")));
    }
    let own = match arguments.preset {
        Some(preset) => {
            let mut own = presets::settings(preset, family);
            if let (ModelConfig::Images(images), Some(of_run)) = (&mut own.model, run.model.images()) {
                images.classes = of_run.classes;
                images.dequantisation.kind = of_run.dequantisation.kind;
            }
            own
        }
        // whatever it began from: what the file does not name is the run's
        None => run.clone(),
    };
    let (asked, what) = match (&arguments.config, arguments.preset) {
        (Some(file), _) => (own.overlay(file, row)?, format!("--config {}", file.display())),
        (None, Some(preset)) => (own, format!("--preset {preset}")),
        (None, None) => return Ok(()),
    };
    match run.difference(&asked) {
        Some(difference) => {
            Err(usage(format_args!("{what}: {difference} in the run in {}", directory.root().display())))
        }
        None => Ok(()),
    }
}

pub(super) fn write_settings(
    settings: &Settings,
    arguments: &Fit,
    seed: u64,
    precision: Precision,
    directory: &RunDirectory,
) -> Result<()> {
    // a name from the file system is one line here, whatever is in it
    let data = arguments.data.clone() + &arguments.data_flags() + &arguments.given_flag();
    let data: String = data.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let comment = format!("resflow fit {data} --seed {seed} --precision {}", precision.name());
    write_file(&directory.config(), settings.to_toml(&comment)?.as_bytes())
}
