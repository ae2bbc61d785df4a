//! The latents of a table, or of images, that stay in their files: piece by piece, in memory for one.

use anyhow::{Context as _, Result, bail};
use resflow::backend::Backend;
use resflow::data::npy::{self, Element};
use resflow::data::{StoredRows, csv};

use super::tell;
use crate::arguments::Encode;
use crate::cluster;
use crate::command::coordinates::{ERROR, LOG_DET, finite, latent_names};
use crate::command::nature::nature;
use crate::command::pieces::{Division, Piece, gather_totals, in_pieces, joined, numbers, parts, rows_done, to_bytes};
use crate::data::given::classes_given;
use crate::evaluate::{self, Latent};
use crate::failure::{interrupted, usage};
use crate::model::Stored;
use crate::output::{Format, report};
use crate::unfinished::Unfinished;

/// Encodes all rows, and writes them in their order as they are found.
pub(super) fn encode<B: Backend>(arguments: &Encode, stored: &Stored, rows: &dyn StoredRows, backend: B) -> Result<()> {
    let name = arguments.data.display().to_string();
    let (output, is_npy) = (&arguments.output, is_array(arguments, rows)?);
    let flow = stored.flow(backend)?;
    let (prepared, d) = (cluster::prepare_alone(&flow)?, flow.dimension());
    let key = evaluate::key(output.seed);
    let mut names = latent_names(d);
    let beside = [LOG_DET.to_owned(), ERROR.to_owned()];
    names.extend(beside.clone());
    let division = Division::of(rows, arguments.resuming.out_parts)?;
    let own = [Some(&*output.out), output.log_det.as_deref()].map(|path| path.map(|path| division.name(path)));
    let outputs = [("--out", own[0].as_deref()), ("--log-det", own[1].as_deref())];
    let outputs: Vec<_> = outputs.into_iter().filter_map(|(flag, path)| Some((flag, path?))).collect();
    let settings = [
        ("rows", division.described()),
        ("work", format!("latents as {}", if is_npy { "npy" } else { "csv" })),
        ("columns", format!("{:?} {:?}", arguments.reading, arguments.matching)),
        ("images", format!("{:?} {:?}", arguments.part, arguments.size)),
        ("--log-det", output.log_det.as_ref().map_or("none".to_owned(), |path| path.display().to_string())),
        ("--seed", output.seed.to_string()),
    ];
    let of = || nature(stored, flow.backend(), Some((&arguments.data, rows)), &settings);
    let (mut out, before) = Unfinished::open(&outputs, arguments.resuming, &[&arguments.data, stored.path()], of)?;
    let mut done = rows_done(&division, &out, &before)?;
    let [mut lost, mut astray] = match &before.state {
        Some(state) => parts(state)?.map(count),
        None => [0, 0],
    };
    let state = |lost: usize, astray: usize| {
        joined([lost, astray].map(|n| (n as u64).to_le_bytes()).each_ref().map(|n| &n[..]))
    };
    let is_whole = in_pieces(
        rows,
        &division,
        (done, key),
        |Piece { data, first, key, .. }| {
            let data = classes_given(data, stored, &name)?;
            let mut latent = Latent::default();
            latent.add(&prepared, data.samples(), first, key)?;
            Ok(joined([
                &to_bytes(&latent.z),
                &to_bytes(&latent.log_det),
                &to_bytes(&latent.standard_error),
                &(latent.astray as u64).to_le_bytes(),
            ]))
        },
        |piece| {
            let [z, log_det, error, own] = parts(piece)?;
            astray += count(own);
            let (z, log_det, error) = (numbers(z), numbers(log_det), numbers(error));
            lost += z.chunks_exact(d).filter(|row| !finite(row)).count();
            let first = done == 0;
            done += log_det.len();
            let joined = |z: &[f64]| {
                let beside = log_det.iter().zip(&error).map(|(&l, &e)| [l, e]);
                z.chunks(d).chain(std::iter::repeat(&[][..])).zip(beside).flat_map(|(z, b)| [z, &b].concat()).collect()
            };
            if output.log_det.is_some() {
                out.add(1, &lines(&beside, first, joined(&[]))?)?;
            }
            if !is_npy {
                out.add(0, &lines(&names, first, joined(&z))?)?;
            } else if lost > 0 {
                bail!("there are values that are not finite; a .csv file can hold them");
            } else {
                if first {
                    out.add(0, &npy::header(&[division.rows().len(), d], Element::F8)?)?;
                }
                out.add(0, &to_bytes(&z))?;
            }
            out.count(done, || state(lost, astray))
        },
    )
    .with_context(|| name.clone())?;
    if cluster::following().is_some() && !division.is_apart() {
        // rank 0 has what this one made
        return if is_whole { Ok(()) } else { Err(interrupted("interrupted")) };
    }
    if !is_whole {
        return Err(out.interrupt());
    }
    out.finish()?;
    gather_totals(&division, state(lost, astray), |others| {
        let [others_lost, others_astray] = parts(others)?.map(count);
        (lost, astray) = (lost + others_lost, astray + others_astray);
        Ok(())
    })?;
    if cluster::following().is_some() {
        return Ok(());
    }
    tell(lost, astray, rows.rows());
    report(Some(&output.out), &format!("{}: {} rows\n", division.names(&output.out), rows.rows()))
}

/// Whether latents become an array, or lines; refuses what is not of such rows.
fn is_array(arguments: &Encode, rows: &dyn StoredRows) -> Result<bool> {
    let is_table = rows.images().is_none();
    if arguments.part.split.is_some() && is_table {
        let name = arguments.data.display();
        return Err(usage(format_args!("--split: {name} is no data set of images")));
    }
    if arguments.rows.is_some() && is_table {
        return Err(usage("--rows is for images; a file is encoded whole"));
    }
    let output = &arguments.output;
    match Format::of(&output.out, output.format) {
        Some(Format::Npy) => Ok(true),
        Some(Format::Csv) => Ok(false),
        _ => Err(usage(format_args!(
            "--out {}: latents of rows that stay in their file are written as they are found, which a .csv or .npy file takes",
            output.out.display()
        ))),
    }
}

/// A number that another process or a record has told; none of bytes that are none.
fn count(bytes: &[u8]) -> usize {
    bytes.try_into().map_or(0, u64::from_le_bytes) as usize
}

/// Values as lines of CSV, the first ones under their names.
fn lines(names: &[String], first: bool, values: Vec<f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    csv::write_values(first.then_some(names), names.len(), &values, &mut bytes)?;
    Ok(bytes)
}
