//! Latent rows that stay in their file, back to rows or images: piece by piece, in memory for one.

use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::data::{Dataset, StoredRows, Table, Values};
use resflow::flow::{Flow, PreparedFlow};
use resflow::invert::Inversion;

use super::latent;
use crate::arguments::Decode;
use crate::cluster;
use crate::columnar::{self, Column, columns_with};
use crate::command::coordinates::{ERROR, LOG_DET, finite, wants_log_dets};
use crate::command::decoded::{Outcome, array_header};
use crate::command::nature::nature;
use crate::command::pieces::{Division, Piece, gather_totals, in_pieces, joined, numbers, parts, rows_done, to_bytes};
use crate::evaluate::{self, Latent};
use crate::failure::{interrupted, usage};
use crate::model::{Stored, column_names};
use crate::output::{Format, report};
use crate::progress::Progress;
use crate::unfinished::Unfinished;

/// Decodes all rows, and writes them in their order as they are found.
pub(super) fn decode<B: Backend>(arguments: &Decode, stored: &Stored, rows: &dyn StoredRows, backend: B) -> Result<()> {
    let (output, name) = (&arguments.output, arguments.z.display().to_string());
    let format = Format::of(&output.out, output.format).filter(|format| matches!(format, Format::Csv | Format::Npy));
    let Some(format) = format else {
        return Err(usage(format_args!(
            "--out {}: rows of latents that stay in their file are written as they are found, which a .csv or .npy file takes",
            output.out.display()
        )));
    };
    let flow = stored.flow(backend)?;
    let prepared = cluster::alone(arguments.certifying.prepare(&flow)?)?;
    let d = flow.dimension();
    latent(table_of(rows.read_samples(0..rows.rows().min(1))?)?, d).with_context(|| name.clone())?;
    let (key, how, names) = (evaluate::key(output.seed), Inversion::for_backend::<B>(), column_names(&flow));
    // the log dets of images are drawn by the pieces that images are evaluated in
    let by_piece = flow.config().images().is_some();
    let ranges: Vec<Range<usize>> = if by_piece {
        let first = (0..rows.rows()).step_by(evaluate::PIECE);
        first.map(|first| first..rows.rows().min(first + evaluate::PIECE)).collect()
    } else {
        rows.pieces().collect()
    };
    let division = Division::new(ranges, arguments.resuming.out_parts)?;
    let own = [Some(&*output.out), output.log_det.as_deref()].map(|path| path.map(|path| division.name(path)));
    let outputs = [("--out", own[0].as_deref()), ("--log-det", own[1].as_deref())];
    let outputs: Vec<_> = outputs.into_iter().filter_map(|(flag, path)| Some((flag, path?))).collect();
    let settings = settings(arguments, &division, format);
    let of = || nature(stored, flow.backend(), Some((&arguments.z, rows)), &settings);
    let (mut out, before) = Unfinished::open(&outputs, arguments.resuming, &[&arguments.z, stored.path()], of)?;
    let done = rows_done(&division, &out, &before)?;
    let mut outcome = before.state.as_deref().map_or(Ok(Outcome::default()), Outcome::from_bytes)?;
    let (mut progress, all) = (Progress::quiet(), division.rows().len());
    let decoded = in_pieces(
        rows,
        &division,
        (done, key),
        |Piece { data, range, key, first }| {
            let (key, first) =
                if by_piece { (key.split((range.start / evaluate::PIECE) as u64), 0) } else { (key, first) };
            let z = latent(table_of(data)?, d)?;
            let decoded = prepared.decode(&prepared.invert_normal_scores(&z)?, &how)?;
            let mut outcome = Outcome::of(&decoded.reports);
            let mut values = decoded.samples.into_values();
            let beside =
                if wants_log_dets(output) { log_dets(&flow, &prepared, &values, first, key)? } else { Vec::new() };
            if by_piece && format == Format::Npy {
                outcome.clamp(&mut values);
            }
            Ok(joined([&to_bytes(&values), &to_bytes(&beside), &outcome.to_bytes()]))
        },
        |piece| {
            let [values, beside, own] = parts(piece)?;
            let is_first = outcome.rows() == 0;
            outcome.add(Outcome::from_bytes(own)?);
            let beside = Column::of_rows(&[LOG_DET.to_owned(), ERROR.to_owned()], &numbers(beside));
            let csv = if is_first { columnar::csv } else { columnar::csv_rows };
            if output.log_det.is_some() {
                out.add(1, csv(&beside).as_bytes())?;
            }
            if format == Format::Csv {
                let mut columns = columns_with(&names, &numbers(values), None);
                columns.extend(beside);
                out.add(0, csv(&columns).as_bytes())?;
            } else {
                if !numbers(values).iter().all(|v| v.is_finite()) {
                    bail!("there are values that are not finite; a .csv file can hold them");
                }
                if is_first {
                    out.add(0, &array_header(flow.config(), all, false)?)?;
                }
                out.add(0, values)?;
            }
            out.count(outcome.rows(), || outcome.to_bytes())?;
            progress.count(outcome.rows(), all, &format!("round-trip error {:.1e}", outcome.residual()));
            Ok(())
        },
    );
    progress.end();
    let is_whole = decoded.with_context(|| name.clone())?;
    if cluster::following().is_some() && !division.is_apart() {
        // rank 0 has what this one made
        return if is_whole { Ok(()) } else { Err(interrupted("interrupted")) };
    }
    if !is_whole {
        return Err(out.interrupt());
    }
    out.finish()?;
    gather_totals(&division, outcome.to_bytes(), |others| {
        outcome.add(Outcome::from_bytes(others)?);
        Ok(())
    })?;
    if cluster::following().is_some() {
        return Ok(());
    }
    report(Some(&output.out), &format!("{}: {} rows\n", division.names(&output.out), rows.rows()))?;
    outcome.tell(&how);
    outcome.tell_moved();
    outcome.check()?;
    arguments.certifying.report(&output.out, &outcome)
}

/// What the rows that are written are a function of, beside the model and the latents.
fn settings(arguments: &Decode, division: &Division, format: Format) -> Vec<(&'static str, String)> {
    let output = &arguments.output;
    let mut settings = vec![
        ("rows", division.described()),
        ("work", format!("rows of latents as {format:?}")),
        ("columns", format!("{:?}", arguments.reading)),
        ("--log-det", output.log_det.as_ref().map_or("none".to_owned(), |path| path.display().to_string())),
        ("--seed", output.seed.to_string()),
    ];
    settings.extend(arguments.certifying.setting());
    settings
}

/// log|det ∂x/∂z| of each row and its standard error: those of the way forth at x, negated; rows without a finite x have none.
fn log_dets<B: Backend>(
    flow: &Flow<B>,
    prepared: &PreparedFlow<B>,
    values: &[f64],
    first: u64,
    key: Key,
) -> Result<Vec<f64>> {
    let d = flow.dimension();
    let rows: Vec<&[f64]> = values.chunks_exact(d).collect();
    let good: Vec<usize> = (0..rows.len()).filter(|&i| finite(rows[i])).collect();
    let mut found = vec![f64::NAN; 2 * rows.len()];
    if good.is_empty() {
        return Ok(found);
    }
    let x = Table::new(None, d, good.iter().flat_map(|&i| rows[i].iter().copied()).collect())?;
    let mut again = Latent::default();
    again.add(prepared, (&x).into(), first, key)?;
    for (k, &i) in good.iter().enumerate() {
        (found[2 * i], found[2 * i + 1]) = (-again.log_det[k], again.standard_error[k]);
    }
    Ok(found)
}

fn table_of(data: Dataset) -> Result<Table> {
    match data.into_values() {
        Values::Tabular(table) => Ok(table),
        Values::Images(_) => bail!("latents are rows of numbers, not images"),
    }
}
