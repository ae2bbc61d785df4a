//! The scores of a table that stays in its file: piece by piece, in memory for one.

use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::data::StoredRows;

use super::totals::Tally;
use super::{Found, is_large, report, scored, set_estimator, within};
use crate::arguments::Score;
use crate::cluster;
use crate::columnar;
use crate::command::pieces::{in_pieces, joined, parts};
use crate::evaluate;
use crate::evaluate::percentile::{Counted, Percentiles};
use crate::failure::usage;
use crate::model::Stored;
use crate::output::{Format, Output};
use crate::progress::Progress;

/// Scores all rows, writes them in their order as they are found, and reports.
pub(super) fn score<B: Backend>(arguments: &Score, stored: &Stored, rows: &dyn StoredRows, backend: B) -> Result<()> {
    if arguments.part.split.is_some() {
        return Err(usage(format_args!("--split: {} is no data set of images", arguments.data)));
    }
    if let Some(path) = arguments.out.as_deref().filter(|path| Format::of(path, None) != Some(Format::Csv)) {
        return Err(usage(format_args!(
            "--out {}: scores of rows that stay in their file are written as they are found, which a .csv file takes",
            path.display()
        )));
    }
    let mut flow = stored.flow(backend)?;
    set_estimator(arguments, &mut flow)?;
    let model = flow.config();
    let prepared = within(arguments, model, cluster::prepare_alone(&flow)?)?;
    let start = Instant::now();
    let key = evaluate::key(arguments.seed);
    let reference = flow.provenance().scores.as_ref();
    let mut out = arguments.out.as_deref().map(Output::create).transpose()?;
    // rank 0, which counts, makes the first piece itself
    let (mut tally, counted) = (Tally::default(), RefCell::new(None::<Counted>));
    let mut progress = Progress::quiet();
    let evaluated = in_pieces(
        rows,
        |range, table| {
            let scores = prepared.log_prob_from(table, range.start as u64, key)?;
            let percentiles = Percentiles::of(&scores, |_| true, reference, arguments.contamination)?;
            let own = Tally::of(&scores, range.start, |error| is_large(arguments, model, error));
            let found = percentiles.as_ref().map(Counted::of);
            let text = if arguments.out.is_some() {
                let text = columnar::csv(&scored(model, &scores, false, percentiles.as_ref(), (None, None), &[]));
                // names are those of the first row
                if range.start == 0 {
                    text
                } else {
                    text.split_once('\n').map_or(String::new(), |(_, rows)| rows.into())
                }
            } else {
                String::new()
            };
            let bytes = found.as_ref().map_or(Vec::new(), Counted::to_bytes);
            if range.start == 0 {
                *counted.borrow_mut() = found.map(Counted::emptied);
            }
            Ok(joined([&own.to_bytes(), &bytes, text.as_bytes()]))
        },
        |piece| {
            let [own, percentiles, text] = parts(piece).context("scores of another process")?;
            tally.add(Tally::from_bytes(own).context("scores of another process")?);
            if let Some(counted) = &mut *counted.borrow_mut() {
                counted.add(percentiles);
            }
            if let Some(out) = &mut out {
                out.add(text)?;
            }
            progress.count(tally.rows(), rows.rows(), &format!("log p {:.4}", tally.mean()));
            Ok(())
        },
    );
    progress.end();
    evaluated.with_context(|| arguments.data.clone())?;
    if cluster::following().is_some() {
        // rank 0 has what this one made
        return Ok(());
    }
    if let Some(out) = out {
        out.finish()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let percentiles = counted.into_inner().map(Counted::summary);
    let found = Found {
        totals: tally.totals(),
        is_bound: false,
        lacking: None,
        percentiles,
        quality: None,
        outliers: None,
        seconds,
        dropped: 0,
    };
    report(arguments, stored.precision, model, &found)
}
