//! `resflow encode` and `resflow decode`: rows to latent space and back, with log dets.

use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::data::{Table, csv};
use resflow::invert::Inversion;

use crate::arguments::{Decode, Encode};
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names, with_backend};
use crate::output::{extension, print, write_file};
use crate::rows;
use crate::sample::report_inversion;

/// The columns beside the coordinates.
const LOG_DET: &str = "log_det";
const ERROR: &str = "se";

pub(crate) fn encode(arguments: &Encode) -> Result<()> {
    check_output(&arguments.out)?;
    let stored = Stored::open(&arguments.model)?;
    let table = rows::read(&arguments.data)?;
    with_backend!(stored.precision, arguments.model.arithmetic.threads, |backend| {
        let flow = stored.flow(backend)?;
        let encoded =
            flow.prepare().encode(&table, key(arguments.seed)).with_context(|| arguments.data.display().to_string())?;
        let lost = encoded.rows.values().chunks_exact(flow.dimension()).filter(|r| !finite(r)).count();
        if lost > 0 {
            warn(format_args!("{lost} of {} rows have no finite latent point", table.rows()));
        }
        let errors = &encoded.standard_error;
        write(&arguments.out, latent_names(flow.dimension()), encoded.rows.values(), &encoded.log_det, errors)
    })
}

pub(crate) fn decode(arguments: &Decode) -> Result<()> {
    check_output(&arguments.out)?;
    let stored = Stored::open(&arguments.model)?;
    let table = rows::read(&arguments.z)?;
    with_backend!(stored.precision, arguments.model.arithmetic.threads, |backend| {
        decode_with(arguments, &stored, table, backend)
    })
}

fn decode_with<B: Backend>(arguments: &Decode, stored: &Stored, table: Table, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let prepared = flow.prepare();
    let d = flow.dimension();
    let z = latent(table, d).with_context(|| arguments.z.display().to_string())?;
    let how = Inversion::for_backend::<B>();
    let decoded = prepared.decode(&z, &how).with_context(|| arguments.z.display().to_string())?;
    // log dets are those of the way forth at x, negated; rows without a finite x have none
    let found: Vec<&[f64]> = decoded.rows.values().chunks_exact(d).collect();
    let good: Vec<usize> = (0..found.len()).filter(|&i| finite(found[i])).collect();
    let mut log_det = vec![f64::NAN; found.len()];
    let mut error = log_det.clone();
    if !good.is_empty() {
        let x = Table::new(None, d, good.iter().flat_map(|&i| found[i].iter().copied()).collect())?;
        let again = prepared.encode(&x, key(arguments.seed))?;
        for (k, &i) in good.iter().enumerate() {
            log_det[i] = -again.log_det[k];
            error[i] = again.standard_error[k];
        }
    }
    write(&arguments.out, column_names(&flow), decoded.rows.values(), &log_det, &error)?;
    report_inversion(&decoded.reports, decoded.residual, &how)
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

fn key(seed: u64) -> Key {
    Key::new(seed).named("score")
}

fn finite(row: &[f64]) -> bool {
    row.iter().all(|v| v.is_finite())
}

fn latent_names(d: usize) -> Vec<String> {
    (1..=d).map(|i| format!("z{i}")).collect()
}

fn check_output(path: &Path) -> Result<()> {
    let special = path.exists() && !path.is_file();
    if special || extension(path) == "csv" {
        return Ok(());
    }
    Err(usage(format_args!("--out {}: the file's name must end in .csv", path.display())))
}

/// Writes coordinates with log det and error beside them.
fn write(path: &Path, mut columns: Vec<String>, values: &[f64], log_det: &[f64], error: &[f64]) -> Result<()> {
    let d = columns.len();
    columns.extend([LOG_DET.to_owned(), ERROR.to_owned()]);
    let beside = log_det.iter().zip(error);
    let all: Vec<f64> =
        values.chunks_exact(d).zip(beside).flat_map(|(row, (&l, &e))| row.iter().copied().chain([l, e])).collect();
    let mut bytes = Vec::new();
    csv::write_values(Some(&columns), d + 2, &all, &mut bytes)?;
    write_file(path, &bytes)?;
    print(&format!("{}: {} rows\n", path.display(), log_det.len()))
}
