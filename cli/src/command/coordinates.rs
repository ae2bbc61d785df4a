//! The files of `resflow encode` and `resflow decode`: coordinates with log dets and their errors.

use anyhow::{Context as _, Result, bail};
use resflow::config::ModelConfig;
use resflow::data::{Categories, csv};

use crate::arguments::Coordinates;
use crate::columnar::{Cells, Column, columns_with};
use crate::command::decoded::npy_bytes;
use crate::failure::usage;
use crate::output::{Format, extension, is_stream, report, write_file};

/// The columns beside the coordinates.
pub(crate) const LOG_DET: &str = "log_det";
pub(crate) const ERROR: &str = "se";

pub(crate) fn finite(row: &[f64]) -> bool {
    row.iter().all(|v| v.is_finite())
}

pub(crate) fn latent_names(d: usize) -> Vec<String> {
    (1..=d).map(|i| format!("z{i}")).collect()
}

fn is_npy(output: &Coordinates) -> bool {
    Format::of(&output.out, output.format) == Some(Format::Npy)
}

/// Puts rows of NaN where rows of the file were left out, so that its rows are those of what is written.
pub(crate) fn with_rows(values: &mut Vec<f64>, width: usize, dropped: &[usize]) {
    if dropped.is_empty() {
        return;
    }
    let mut all = Vec::with_capacity(values.len() + dropped.len() * width);
    let mut gone = dropped.iter().copied().peekable();
    let mut rows = values.chunks_exact(width);
    for row in 0..values.len() / width + dropped.len() {
        if gone.next_if_eq(&row).is_some() {
            all.extend(std::iter::repeat_n(f64::NAN, width));
        } else if let Some(values) = rows.next() {
            all.extend_from_slice(values);
        }
    }
    *values = all;
}

/// Whether log dets go anywhere: a .npy file has no place for them.
pub(crate) fn wants_log_dets(output: &Coordinates) -> bool {
    output.log_det.is_some() || !is_npy(output)
}

pub(crate) fn check_output(output: &Coordinates) -> Result<()> {
    match Format::of(&output.out, output.format) {
        Some(Format::Png) | None => {
            let out = output.out.display();
            return Err(usage(format_args!("--out {out}: the file's name must end in .csv, .npy, .parquet or .arrow")));
        }
        Some(format) => format.check(&output.out)?,
    }
    match &output.log_det {
        Some(path) if !is_stream(path) && extension(path) != "csv" => {
            Err(usage(format_args!("--log-det {}: the file's name must end in .csv", path.display())))
        }
        _ => Ok(()),
    }
}

/// Coordinates that are written: their names, row by row, and the categories of the rows that were not left out.
pub(crate) struct Rows<'a> {
    pub(crate) names: Vec<String>,
    pub(crate) values: Vec<f64>,
    pub(crate) categories: Option<&'a Categories>,
    pub(crate) dropped: &'a [usize],
}

/// Writes coordinates, log dets and errors; `model` is that of data, or `None` for latent coordinates.
pub(crate) fn write(
    output: &Coordinates,
    model: Option<&ModelConfig>,
    rows: Rows<'_>,
    log_det: &[f64],
    error: &[f64],
) -> Result<()> {
    let Rows { names: coordinates, values, categories, dropped } = rows;
    let d = coordinates.len();
    let names = [LOG_DET.to_owned(), ERROR.to_owned()];
    let beside = || log_det.iter().zip(error).map(|(&l, &e)| [l, e]);
    if let Some(path) = &output.log_det {
        let mut bytes = Vec::new();
        csv::write_values(Some(&names), 2, &beside().flatten().collect::<Vec<_>>(), &mut bytes)?;
        write_file(path, &bytes)?;
    }
    let out = &output.out;
    let bytes = if is_npy(output) {
        if values.iter().any(|v| !v.is_finite()) {
            bail!("{}: there are values that are not finite; a .csv file can hold them", out.display());
        }
        npy_bytes(model, d, values).with_context(|| out.display().to_string())?
    } else {
        let mut columns = columns_with(&coordinates, &values, categories);
        for column in columns.iter_mut().filter(|column| matches!(column.cells, Cells::Words(_))) {
            column.cells = column.cells.clone().with_rows(dropped);
        }
        columns.extend(Column::of_rows(&names, &beside().flatten().collect::<Vec<_>>()));
        Format::of(out, output.format).unwrap_or(Format::Csv).columns(&columns)?
    };
    write_file(out, &bytes)?;
    report(Some(out), &format!("{}: {} rows\n", out.display(), log_det.len()))
}
