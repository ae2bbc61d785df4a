//! Samples that are written as they are drawn, in memory for one piece: to lines or to an array.

use std::ops::Range;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::config::ModelConfig;
use resflow::flow::Decoded;
use resflow::group::collective::digest_of_bytes;

use super::Drawing;
use crate::cluster;
use crate::columnar;
use crate::command::decoded::{Outcome, array_header};
use crate::command::nature::nature;
use crate::command::pieces::{Division, gather_totals, rows_done, to_bytes, together};
use crate::data::model_size;
use crate::failure::interrupted;
use crate::output::Format;
use crate::picture::image_grid;
use crate::progress::Progress;
use crate::unfinished::{Nature, Unfinished};

/// The numbers of a piece, which the values of rows are a function of in their last digits.
const NUMBERS: usize = 1 << 19;

/// Draws all rows, piece by piece, and writes them in their order; the files, and how exactly they were found, on the process that tells it.
pub(super) fn write<B: Backend>(
    drawing: &Drawing<'_, B>,
    model: &ModelConfig,
    sample: impl Fn(Range<usize>) -> Result<Decoded>,
) -> Result<Option<(String, Outcome)>> {
    let Drawing { arguments, stored, n, .. } = *drawing;
    let resuming = arguments.resuming;
    let rows = (NUMBERS / drawing.names.len().max(1)).max(1);
    let ranges = (0..n).step_by(rows).map(|first| first..n.min(first.saturating_add(rows))).collect();
    let division = Division::new(ranges, resuming.out_parts)?;
    let own = division.name(&arguments.out);
    let inputs: Vec<_> = arguments.given.as_deref().into_iter().chain([stored.path()]).collect();
    let of = || described(drawing, &division);
    let (mut out, before) = Unfinished::open(&[("--out", &own)], resuming, &inputs, of)?;
    let done = rows_done(&division, &out, &before)?;
    let mut outcome = before.state.as_deref().map_or(Ok(Outcome::default()), Outcome::from_bytes)?;
    let (mut progress, all) = (Progress::quiet(), division.rows());
    let drawn = together(
        &division,
        done,
        |numbers| {
            let drawn = sample(numbers.clone())?;
            Ok((numbers, drawn))
        },
        |(numbers, drawn)| {
            let is_first = numbers.start == all.start;
            if is_first && drawing.format == Format::Npy {
                out.add(0, &array_header(model, all.len(), arguments.bytes)?)?;
            }
            let mut own = Outcome::of(&drawn.reports);
            let bytes = bytes(drawing, model, (numbers, is_first), drawn, &mut own)?;
            outcome.add(own);
            if drawing.format == Format::Npy {
                // an array holds no values that are not finite
                outcome.check()?;
            }
            out.add(0, &bytes)?;
            out.count(outcome.rows(), || outcome.to_bytes())?;
            progress.count(outcome.rows(), all.len(), &format!("round-trip error {:.1e}", outcome.residual()));
            Ok(())
        },
    );
    progress.end();
    let is_whole = drawn.with_context(|| arguments.out.display().to_string())?;
    if cluster::following().is_some() && !division.is_apart() {
        // rank 0 has what all made
        return if is_whole { Ok(None) } else { Err(interrupted("interrupted")) };
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
        return Ok(None);
    }
    outcome.tell(&drawing.how);
    outcome.tell_moved();
    outcome.check()?;
    Ok(Some((division.names(&arguments.out), outcome)))
}

/// Rows of these numbers as they are written, the first ones under their names.
fn bytes<B: Backend>(
    drawing: &Drawing<'_, B>,
    model: &ModelConfig,
    (numbers, is_first): (Range<usize>, bool),
    drawn: Decoded,
    outcome: &mut Outcome,
) -> Result<Vec<u8>> {
    if drawing.format != Format::Npy {
        let columns = drawing.columns(numbers, &drawn)?;
        let text = if is_first { columnar::csv(&columns) } else { columnar::csv_rows(&columns) };
        return Ok(text.into_bytes());
    }
    let mut values = drawn.samples.into_values();
    Ok(match model.images() {
        Some(images) if drawing.arguments.bytes => image_grid::bytes(&values, model_size(images), images.bits),
        images => {
            if images.is_some() {
                outcome.clamp(&mut values);
            }
            to_bytes(&values)
        }
    })
}

/// What the bytes are a function of.
fn described<B: Backend>(drawing: &Drawing<'_, B>, division: &Division) -> Result<Nature> {
    let arguments = drawing.arguments;
    // by what they are: they may have come through a pipe
    let given = drawing.contexts.as_ref().map_or("nothing".to_owned(), |contexts| {
        let numbers = contexts.table().map_or(Vec::new(), |table| to_bytes(table.values()));
        let categories = contexts.categories().map(|found| format!("{:?} {:?}", found.columns(), found.codes()));
        let all = [&numbers, categories.unwrap_or_default().as_bytes()].concat();
        format!("{} rows, {:016x}", contexts.len(), digest_of_bytes(&all))
    });
    let mut settings = vec![
        ("work", format!("samples as {:?}", drawing.format)),
        ("rows", division.described()),
        ("-n", arguments.n.to_string()),
        ("--seed", arguments.seed.to_string()),
        ("--bytes", arguments.bytes.to_string()),
        ("--class", format!("{:?}", arguments.class)),
        ("--given", given),
        ("columns", format!("{:?} {:?}", arguments.reading, arguments.matching)),
    ];
    settings.extend(arguments.certifying.setting());
    nature(drawing.stored, drawing.backend, None, &settings)
}
