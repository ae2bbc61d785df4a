//! `resflow report`: the report of a run, again or on other rows.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::data::Dataset;
use resflow::train::{Source, Trainer};
use resflow::{Error, with_device};

use crate::arguments::Report;
use crate::data::large::scan;
use crate::data::{Data, file_of};
use crate::failure::usage;
use crate::model::{Stored, column_names, precision_of, read_archive};
use crate::output::{report as report_out, spare_inputs, write_file};
use crate::report::{self, Evidence, Excerpt, Facts, RowScores, quoted};
use crate::run::directory::{REPORT, RunDirectory};
use crate::run::epilogue::{command, facts};
use crate::run::metrics::Metrics;

pub(crate) fn run(arguments: &Report) -> Result<()> {
    let stored = Stored::open(&arguments.model)?;
    spare_inputs(&[("--out", Some(&*out(arguments)))], &[file_of(&arguments.data), stored.path()])?;
    let mut options = arguments.reading.options();
    options.model = stored.columns(arguments.matching, arguments.weight.as_deref());
    // as the run took it, if it is that of a run
    let checkpoint = RunDirectory::new(&arguments.model.path).checkpoint();
    let state = || read_archive(&checkpoint).ok();
    let largeness = arguments.largeness.as_begun(state, None)?;
    let alone = arguments.weight.is_none() && stored.given().is_none();
    let large = if alone { largeness.open(file_of(&arguments.data), &options, None)? } else { None };
    let data = if let Some(rows) = large {
        scan(rows, None)?
    } else {
        let data = Data::open_with(&arguments.data, &options)?;
        let weighted = data.weighted_by(arguments.weight.as_deref(), &arguments.data)?;
        largeness.data(stored.split(weighted, &arguments.data)?, None)?
    };
    let excerpt =
        Excerpt::of(&data).ok_or_else(|| usage(format_args!("{}: images; a report is of a table", arguments.data)))?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        tell(arguments, &stored, data, excerpt, backend)
    })
}

/// Where the page goes.
fn out(arguments: &Report) -> PathBuf {
    let path = &arguments.model.path;
    let beside = || if path.is_dir() { path.join(REPORT) } else { path.with_file_name(REPORT) };
    arguments.out.clone().unwrap_or_else(beside)
}

/// The rows that were held out of a run.
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
enum HeldOut {
    /// These, of such numbers in the data.
    These(Dataset, Vec<usize>),
    /// The data are others than those of the run.
    Other,
    /// There is no checkpoint to tell.
    Unknown,
}

/// Asks a run's checkpoint which rows were held out.
fn held_out(arguments: &Report, source: Source) -> Result<HeldOut> {
    let path = RunDirectory::new(&arguments.model.path).checkpoint();
    if !path.is_file() {
        return Ok(HeldOut::Unknown);
    }
    let archive = read_archive(&path)?;
    let precision = precision_of(&archive).with_context(|| path.display().to_string())?;
    with_device!(arguments.model.arithmetic.open(precision)?, |backend| {
        match Trainer::resume(backend, &archive, source) {
            Ok(trainer) => {
                let samples = trainer.validation_samples();
                let held_out = samples.select(&(0..samples.len()).collect::<Vec<_>>())?;
                Ok(HeldOut::These(held_out, trainer.validation_numbers().to_vec()))
            }
            Err(Error::Input(_)) => Ok(HeldOut::Other),
            Err(other) => Err(other).with_context(|| path.display().to_string()),
        }
    })
}

fn tell<B: Backend>(arguments: &Report, stored: &Stored, data: Data, mut excerpt: Excerpt, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let source = match data {
        Data::Density(density) => Source::Density(density),
        Data::Stored(opened) => Source::Data(opened.data),
        Data::Large(table) => Source::Large(table),
    };
    let weight = arguments.weight.as_ref().map_or(String::new(), |column| format!(" --weight {}", quoted(column)));
    let flags = weight + &arguments.reading.flags() + &arguments.largeness.flag();
    let (all, prepared) = (excerpt.all, flow.prepare().without_solve_errors());
    let held_out = held_out(arguments, source)?;
    let (scores, known) = match &held_out {
        HeldOut::These(held_out, numbers) => {
            excerpt.mark(numbers);
            (RowScores::of(&prepared, &excerpt, held_out.samples(), [None; 2]), Some(held_out.len()))
        }
        HeldOut::Other | HeldOut::Unknown => {
            excerpt.mark_all();
            (RowScores::of(&prepared, &excerpt, excerpt.data().samples(), [None; 2]), None)
        }
    };
    let directory = RunDirectory::new(&arguments.model.path);
    let facts = Facts {
        data: arguments.data.clone(),
        flags,
        training_rows: known.and_then(|known| Some(all?.saturating_sub(known))),
        held_out_rows: known.unwrap_or(excerpt.rows()),
        note: match held_out {
            HeldOut::These(..) => None,
            HeldOut::Other => {
                Some("These are other rows than the model was trained on: all of them count as held out.")
            }
            HeldOut::Unknown => Some(
                "Which of these rows the model was trained on is not known (a run’s directory would tell): all of them \
                 count as held out.",
            ),
        },
        ..facts(&flow, &arguments.model.path, &Metrics::read(&directory.metrics()), &command(&directory))
    };
    let scores = scores.with_context(|| arguments.data.clone())?;
    let evidence = Evidence::gather(&prepared, column_names(&flow), excerpt, scores, report::allowance(None))?;
    let out = out(arguments);
    write_file(&out, report::draw(&facts, &evidence).as_bytes())?;
    report_out(Some(&out), &format!("{}\n", out.display()))
}
