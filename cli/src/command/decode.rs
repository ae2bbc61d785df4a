//! `resflow decode`: latent points back to rows or images, with log dets.

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::data::{Dataset, Table};
use resflow::invert::Inversion;
use resflow::with_device;

use crate::arguments::Decode;
use crate::command::coordinates::{ERROR, LOG_DET, check_output, finite, latent_names, wants_log_dets, write};
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
    let table = reading::table(&arguments.z, &arguments.reading.options())?.table;
    let contexts = contexts_of(arguments.given.as_deref(), &TableOptions::default(), Matching::default(), &stored)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        decode(arguments, &stored, table, contexts, backend)
    })
}

fn decode<B: Backend>(
    arguments: &Decode,
    stored: &Stored,
    table: Table,
    contexts: Option<Table>,
    backend: B,
) -> Result<()> {
    let flow = stored.flow(backend)?;
    let prepared = flow.prepare();
    let d = flow.dimension();
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
            Some(one) if one.rows() == 1 => Dataset::from(x).with_context(one.select(&vec![0; good.len()]))?,
            Some(each) => Dataset::from(x).with_context(each.select(&good))?,
            None => x.into(),
        };
        let again = evaluate::encode(&prepared, flow.config(), x.samples(), key)?;
        for (k, &i) in good.iter().enumerate() {
            log_det[i] = -again.log_det[k];
            error[i] = again.standard_error[k];
        }
    }
    let x = decoded.samples.values().to_vec();
    write(&arguments.output, Some(flow.config()), column_names(&flow), x, &log_det, &error)?;
    report_inversion(&decoded.reports, &how)?;
    Ok(())
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
