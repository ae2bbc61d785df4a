//! The latents of a table that stays in its file: piece by piece, in memory for one.

use anyhow::{Context as _, Result, bail};
use resflow::backend::Backend;
use resflow::data::npy::RowWriter;
use resflow::data::{StoredRows, csv};

use super::tell;
use crate::arguments::Encode;
use crate::cluster;
use crate::command::coordinates::{ERROR, LOG_DET, finite, latent_names};
use crate::command::pieces::{in_pieces, joined, parts};
use crate::evaluate::{self, Latent};
use crate::failure::usage;
use crate::model::Stored;
use crate::output::{Format, Output, report};

/// Encodes all rows, and writes them in their order as they are found.
pub(super) fn encode<B: Backend>(arguments: &Encode, stored: &Stored, rows: &dyn StoredRows, backend: B) -> Result<()> {
    let name = arguments.data.display().to_string();
    if arguments.part.split.is_some() {
        return Err(usage(format_args!("--split: {name} is no data set of images")));
    }
    if arguments.rows.is_some() {
        return Err(usage("--rows is for images; a file is encoded whole"));
    }
    let output = &arguments.output;
    let is_npy = match Format::of(&output.out, output.format) {
        Some(Format::Npy) => true,
        Some(Format::Csv) => false,
        _ => {
            return Err(usage(format_args!(
                "--out {}: latents of rows that stay in their file are written as they are found, which a .csv or .npy file takes",
                output.out.display()
            )));
        }
    };
    let flow = stored.flow(backend)?;
    let (prepared, d) = (cluster::prepare_alone(&flow)?, flow.dimension());
    let key = evaluate::key(output.seed);
    let mut names = latent_names(d);
    let beside = [LOG_DET.to_owned(), ERROR.to_owned()];
    names.extend(beside.clone());
    let out = Output::create(&output.out)?;
    let mut out = if is_npy { Out::Array(RowWriter::new(rows.rows(), d, out)?) } else { Out::Lines(out) };
    let mut log_dets = output.log_det.as_deref().map(Output::create).transpose()?;
    let (mut done, mut lost, mut astray) = (0, 0, 0);
    in_pieces(
        rows,
        |range, table| {
            let mut latent = Latent::default();
            latent.add(&prepared, table.into(), range.start as u64, key)?;
            let numbers = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            Ok(joined([
                &numbers(&latent.z),
                &numbers(&latent.log_det),
                &numbers(&latent.standard_error),
                &(latent.astray as u64).to_le_bytes(),
            ]))
        },
        |piece| {
            let [z, log_det, error, own] = parts(piece)?;
            astray += u64::from_le_bytes(own.try_into().context("latents of another process")?) as usize;
            let (z, log_det, error) = (numbers(z), numbers(log_det), numbers(error));
            lost += z.chunks_exact(d).filter(|row| !finite(row)).count();
            let first = done == 0;
            done += log_det.len();
            let joined = |z: &[f64]| {
                let beside = log_det.iter().zip(&error).map(|(&l, &e)| [l, e]);
                z.chunks(d).chain(std::iter::repeat(&[][..])).zip(beside).flat_map(|(z, b)| [z, &b].concat()).collect()
            };
            if let Some(log_dets) = &mut log_dets {
                log_dets.add(&lines(&beside, first, joined(&[]))?)?;
            }
            match &mut out {
                Out::Array(_) if lost > 0 => bail!("there are values that are not finite; a .csv file can hold them"),
                Out::Array(array) => Ok(array.write(&z)?),
                Out::Lines(out) => out.add(&lines(&names, first, joined(&z))?),
            }
        },
    )
    .with_context(|| name.clone())?;
    if cluster::following().is_some() {
        // rank 0 has what this one made
        return Ok(());
    }
    tell(lost, astray, rows.rows());
    match out {
        Out::Array(array) => array.finish()?,
        Out::Lines(out) => out,
    }
    .finish()?;
    log_dets.map_or(Ok(()), Output::finish)?;
    report(Some(&output.out), &format!("{}: {} rows\n", output.out.display(), rows.rows()))
}

/// Where latents go.
enum Out {
    Array(RowWriter<Output>),
    Lines(Output),
}

/// Values as lines of CSV, the first ones under their names.
fn lines(names: &[String], first: bool, values: Vec<f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    csv::write_values(first.then_some(names), names.len(), &values, &mut bytes)?;
    Ok(bytes)
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect()
}
