//! `resflow decode`: latent points back to rows or images, with log dets.

mod large;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use resflow::backend::Backend;
use resflow::data::{Categories, Category, Dataset, ModelColumns, ReadOptions, Table, Values};
use resflow::invert::Inversion;
use resflow::with_device;

use crate::arguments::Decode;
use crate::cluster;
use crate::command::coordinates::{ERROR, LOG_DET, Rows, check_output, finite, latent_names, wants_log_dets, write};
use crate::command::decoded::report_inversion;
use crate::data::given::contexts_of;
use crate::data::reading::{Matching, TableOptions};
use crate::data::{check_there, reading};
use crate::evaluate;
use crate::failure::usage;
use crate::model::{Stored, column_names};
use crate::output::spare_inputs;

pub(crate) fn run(arguments: &Decode) -> Result<()> {
    check_output(&arguments.output)?;
    let stored = Stored::open(&arguments.model)?;
    let output = &arguments.output;
    let outputs = [("--out", Some(&*output.out)), ("--log-det", output.log_det.as_deref())];
    spare_inputs(&outputs, &[&arguments.z, stored.path()])?;
    check_there(&arguments.z)?;
    if let (Some(classes), None) = (stored.classes(), &arguments.class) {
        let classes = classes.join(", ");
        return Err(usage(format_args!("the model is a density given the class: --class names it, one of {classes}")));
    }
    let mut options = arguments.reading.options();
    let (modelled, own) = (stored.is_modelled(), stored.categories());
    if modelled && arguments.given.is_none() {
        options.categories.extend(own.iter().map(|column| column.name().to_owned()));
    }
    if !modelled
        && stored.given().is_none()
        && stored.classes().is_none()
        && arguments.given.is_none()
        && arguments.class.is_none()
        && let Some(rows) = arguments.largeness.open(&arguments.z, &options, cluster::group().as_deref())?
    {
        return with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
            large::decode(arguments, &stored, &*rows, backend)
        });
    }
    arguments.resuming.check_in_memory(arguments.z.display())?;
    let rows = reading::rows(&arguments.z, &options)?;
    let contexts = match &arguments.given {
        Some(path) if modelled => Some(categories(path, own)?),
        None if modelled => Some(rows.categories().cloned().map_or_else(|| rows.clone(), Dataset::from)),
        path => {
            let asked = (path.as_deref(), arguments.class.as_deref());
            contexts_of(asked, &TableOptions::default(), Matching::default(), &stored)?
        }
    };
    let Values::Tabular(table) = rows.into_values() else { bail!("{}: no table", arguments.z.display()) };
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        decode(arguments, &stored, table, contexts, backend)
    })
}

/// The categories of a table, whatever else is in it.
fn categories(path: &Path, own: Vec<Category>) -> Result<Dataset> {
    check_there(path)?;
    let names: Vec<String> = own.iter().map(|column| column.name().to_owned()).collect();
    let categories = (0..names.len()).collect();
    let width = names.len();
    let model = ModelColumns { names: Some(names), width, categories, ..ModelColumns::default() };
    reading::rows(path, &ReadOptions { model: Some(model), ..ReadOptions::default() })
}

fn decode<B: Backend>(
    arguments: &Decode,
    stored: &Stored,
    table: Table,
    contexts: Option<Dataset>,
    backend: B,
) -> Result<()> {
    let flow = stored.flow(backend)?;
    let prepared = cluster::together(arguments.certifying.prepare(&flow)?)?;
    let (d, modelled) = (flow.dimension(), stored.is_modelled());
    let z = latent(table, d).with_context(|| arguments.z.display().to_string())?;
    let how = Inversion::for_backend::<B>();
    let z = prepared.invert_normal_scores(&z).with_context(|| arguments.z.display().to_string())?;
    let decoded = match &contexts {
        Some(contexts) => prepared.condition(contexts).and_then(|at| at.decode(&z, &how)),
        None => prepared.decode(&z, &how),
    };
    let decoded = decoded.with_context(|| arguments.z.display().to_string())?;
    // log dets are those of the way forth at x, negated; rows without a finite x have none
    let found: Vec<&[f64]> = decoded.samples.values().chunks_exact(d).collect();
    let good: Vec<usize> = (0..found.len()).filter(|&i| finite(found[i])).collect();
    let mut log_det = vec![f64::NAN; found.len()];
    let mut error = log_det.clone();
    if !good.is_empty() && wants_log_dets(&arguments.output) {
        let x = Table::new(None, d, good.iter().flat_map(|&i| found[i].iter().copied()).collect())?;
        let key = evaluate::key(arguments.output.seed);
        let x = match &contexts {
            Some(contexts) => {
                let of_each = if contexts.len() == 1 {
                    contexts.select(&vec![0; good.len()])?
                } else {
                    contexts.select(&good)?
                };
                match of_each.categories().filter(|_| modelled) {
                    Some(own) => Dataset::from(x).with_categories(own.clone())?,
                    None => Dataset::from(x).given_rows(of_each)?,
                }
            }
            None => x.into(),
        };
        let again = evaluate::encode(&prepared, flow.config(), x.samples(), key)?;
        for (k, &i) in good.iter().enumerate() {
            log_det[i] = -again.log_det[k];
            error[i] = again.standard_error[k];
        }
    }
    let values = decoded.samples.values().to_vec();
    let of_each = contexts
        .filter(|_| modelled)
        .map(|contexts| if contexts.len() == 1 { contexts.select(&vec![0; found.len()]) } else { Ok(contexts) });
    let of_each = of_each.transpose()?;
    let categories = of_each.as_ref().and_then(Dataset::categories);
    // in the places that they have among the model's columns
    let categories = categories.zip(flow.categories()).map(|(found, own)| {
        let codes = found.codes_in(own.columns())?;
        Categories::new(own.columns().to_vec(), codes)
    });
    let categories = categories.transpose()?;
    let rows = Rows { names: column_names(&flow), values, categories: categories.as_ref(), dropped: &[] };
    write(&arguments.output, Some(flow.config()), rows, &log_det, &error)?;
    let outcome = report_inversion(&decoded.reports, &how)?;
    arguments.certifying.report(&arguments.output.out, &outcome)
}

/// The coordinates of a table: its columns z1 … zd if it has them, else all of its columns but log det and error.
fn latent(table: Table, d: usize) -> Result<Table> {
    let Some(names) = table.columns() else { return Ok(table) };
    let wanted = latent_names(d);
    let by_name: Option<Vec<usize>> = wanted.iter().map(|name| names.iter().position(|n| n == name)).collect();
    let others = || (0..names.len()).filter(|&i| names[i] != LOG_DET && names[i] != ERROR).collect();
    let columns = by_name.unwrap_or_else(others);
    if columns.len() != d {
        return Err(usage(format_args!("{} columns of latent coordinates, the model has {d}", columns.len())));
    }
    let values = (0..table.rows()).flat_map(|i| columns.iter().map(move |&c| (i, c)));
    Ok(Table::new(None, d, values.map(|(i, c)| table.row(i)[c]).collect())?)
}
