//! `resflow encode` and `resflow decode`: rows or images to latent space and back, with log dets.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use resflow::backend::Backend;
use resflow::config::ModelConfig;
use resflow::data::{Samples, Table, csv};
use resflow::invert::Inversion;

use crate::arguments::{Coordinates, Decode, Encode};
use crate::command::sample::{npy_bytes, report_inversion};
use crate::data::{Dataset, read};
use crate::device::with_backend;
use crate::evaluate::{self, Latent};
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names};
use crate::output::{extension, print, write_file};

/// The columns beside the coordinates.
const LOG_DET: &str = "log_det";
const ERROR: &str = "se";

pub(crate) fn encode(arguments: &Encode) -> Result<()> {
    check_output(&arguments.output)?;
    let stored = Stored::open(&arguments.model)?;
    let dataset = Dataset::open_file(&arguments.data)?;
    with_backend!(stored.precision, &arguments.model.arithmetic, |backend| {
        encode_with(arguments, &stored, dataset, backend)
    })
}

fn encode_with<B: Backend>(arguments: &Encode, stored: &Stored, dataset: Dataset, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (model, d) = (flow.config(), flow.dimension());
    let name = arguments.data.display().to_string();
    if matches!(dataset, Dataset::Table(_)) && model.rows().is_some() && arguments.rows.is_some() {
        return Err(usage("--rows is for images; a file is encoded whole"));
    }
    let data = arguments.part.of(dataset, &name, model, arguments.rows.map(|n| n as usize))?;
    let key = evaluate::key(arguments.output.seed);
    let latent = evaluate::encode(&flow.prepare(), model, data.samples(), key).context(name)?;
    let lost = latent.z.chunks_exact(d).filter(|r| !finite(r)).count();
    if lost > 0 {
        warn(format_args!("{lost} of {} rows have no finite latent point", latent.log_det.len()));
    }
    let Latent { z, log_det, standard_error } = latent;
    write(&arguments.output, None, latent_names(d), z, &log_det, &standard_error)
}

pub(crate) fn decode(arguments: &Decode) -> Result<()> {
    check_output(&arguments.output)?;
    let stored = Stored::open(&arguments.model)?;
    let table = read(&arguments.z)?;
    with_backend!(stored.precision, &arguments.model.arithmetic, |backend| {
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
    if !good.is_empty() && wants_log_dets(&arguments.output) {
        let x = Table::new(None, d, good.iter().flat_map(|&i| found[i].iter().copied()).collect())?;
        let again =
            evaluate::encode(&prepared, flow.config(), Samples::Rows(&x), evaluate::key(arguments.output.seed))?;
        for (k, &i) in good.iter().enumerate() {
            log_det[i] = -again.log_det[k];
            error[i] = again.standard_error[k];
        }
    }
    let x = decoded.rows.values().to_vec();
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

fn finite(row: &[f64]) -> bool {
    row.iter().all(|v| v.is_finite())
}

fn latent_names(d: usize) -> Vec<String> {
    (1..=d).map(|i| format!("z{i}")).collect()
}

fn is_npy(path: &Path) -> bool {
    extension(path) == "npy"
}

/// Whether log dets go anywhere: a .npy file has no place for them.
fn wants_log_dets(output: &Coordinates) -> bool {
    output.log_det.is_some() || !is_npy(&output.out)
}

fn check_output(output: &Coordinates) -> Result<()> {
    let special = |path: &Path| path.exists() && !path.is_file();
    let ends = |path: &Path, endings: &[&str]| special(path) || endings.contains(&extension(path).as_str());
    if !ends(&output.out, &["csv", "npy"]) {
        let out = output.out.display();
        return Err(usage(format_args!("--out {out}: the file's name must end in .csv or .npy")));
    }
    match &output.log_det {
        Some(path) if !ends(path, &["csv"]) => {
            Err(usage(format_args!("--log-det {}: the file's name must end in .csv", path.display())))
        }
        _ => Ok(()),
    }
}

/// Writes coordinates, log dets and errors; `model` is that of data, or `None` for latent coordinates.
fn write(
    output: &Coordinates,
    model: Option<&ModelConfig>,
    mut columns: Vec<String>,
    values: Vec<f64>,
    log_det: &[f64],
    error: &[f64],
) -> Result<()> {
    let d = columns.len();
    let names = [LOG_DET.to_owned(), ERROR.to_owned()];
    let beside = || log_det.iter().zip(error).map(|(&l, &e)| [l, e]);
    if let Some(path) = &output.log_det {
        let mut bytes = Vec::new();
        csv::write_values(Some(&names), 2, &beside().flatten().collect::<Vec<_>>(), &mut bytes)?;
        write_file(path, &bytes)?;
    }
    let out = &output.out;
    let bytes = if is_npy(out) {
        if values.iter().any(|v| !v.is_finite()) {
            bail!("{}: there are values that are not finite; a .csv file can hold them", out.display());
        }
        npy_bytes(model, d, values).with_context(|| out.display().to_string())?
    } else {
        columns.extend(names);
        let all: Vec<f64> =
            values.chunks_exact(d).zip(beside()).flat_map(|(row, more)| row.iter().copied().chain(more)).collect();
        let mut bytes = Vec::new();
        csv::write_values(Some(&columns), d + 2, &all, &mut bytes)?;
        bytes
    };
    write_file(out, &bytes)?;
    print(&format!("{}: {} rows\n", out.display(), log_det.len()))
}
