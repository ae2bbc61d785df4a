//! The scores of a table, or of images, that stay in their files: piece by piece, in memory for one.

use std::time::Instant;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::config::ModelConfig;
use resflow::data::StoredRows;

use super::totals::Tally;
use super::{Found, is_large, report, scored, set_estimator, within};
use crate::arguments::Score;
use crate::cluster;
use crate::columnar;
use crate::command::nature::nature;
use crate::command::pieces::{Division, Piece, gather_totals, in_pieces, joined, parts, rows_done};
use crate::data::file_of;
use crate::data::given::classes_given;
use crate::data::labels::{self, Numbers};
use crate::evaluate;
use crate::evaluate::classification::{Classified, Judged};
use crate::evaluate::percentile::{Counted, Percentiles};
use crate::failure::{interrupted, usage, warn};
use crate::model::Stored;
use crate::output::Format;
use crate::progress::Progress;
use crate::unfinished::Unfinished;

/// Scores all rows, writes them in their order as they are found, and reports.
pub(super) fn score<B: Backend>(arguments: &Score, stored: &Stored, rows: &dyn StoredRows, backend: B) -> Result<()> {
    if arguments.part.split.is_some() && rows.images().is_none() {
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
    let is_bound = model.is_variational() && rows.images().is_some();
    let prepared = within(arguments, model, cluster::prepare_alone(&flow)?)?;
    let start = Instant::now();
    let key = evaluate::key(arguments.seed);
    let reference = flow.provenance().scores.as_ref();
    let data = file_of(&arguments.data);
    let division = Division::of(rows, arguments.resuming.out_parts)?;
    let own = arguments.out.as_deref().map(|path| division.name(path));
    let outputs: Vec<_> = own.iter().map(|path| ("--out", &**path)).collect();
    let settings = settings(arguments, &division);
    let of = || nature(stored, flow.backend(), Some((data, rows)), &settings);
    let (mut out, done) = Unfinished::open(&outputs, arguments.resuming, &[data, stored.path()], of)?;
    let before = rows_done(&division, &out, &done)?;
    let to_write = division.rows();
    let mut tally = Tally::default();
    let mut judged = Judged::default();
    let classes = flow.provenance().classes.clone().filter(|_| model.classes() > 0);
    let numbers = numbers_of(rows, classes.as_deref(), model, &arguments.data);
    let mut counted = Counted::of_none(reference, arguments.contamination)?;
    if let Some(state) = &done.state {
        add_state(state, &mut tally, counted.as_mut(), &mut judged).context("the record of unfinished scores")?;
    }
    let mut progress = Progress::quiet();
    let evaluated = in_pieces(
        rows,
        &division,
        (before, key),
        |Piece { range, data, first, key }| {
            let data = classes_given(data, stored, &arguments.data)?;
            let scores = prepared.log_prob_from(&data, first, key)?;
            let classified = Classified::of_piece(&prepared, &data, key)?;
            let right = judged_by(classified.as_ref(), data.labels(), numbers.as_ref())?;
            let percentiles = Percentiles::of(&scores, |_| true, reference, arguments.contamination)?;
            let own = Tally::of(&scores, range.start, |error| is_large(arguments, model, error));
            let found = percentiles.as_ref().map(Counted::of);
            let text = if arguments.out.is_some() {
                let classes = (classified.as_ref(), classes.as_deref());
                let columns = scored(model, &scores, is_bound, percentiles.as_ref(), classes, &[]);
                // names are those of the first row
                if range.start == to_write.start { columnar::csv(&columns) } else { columnar::csv_rows(&columns) }
            } else {
                String::new()
            };
            let bytes = found.as_ref().map_or(Vec::new(), Counted::to_bytes);
            Ok(joined([&own.to_bytes(), &bytes, &right.to_bytes(), text.as_bytes()]))
        },
        |piece| {
            let [own, percentiles, right, text] = parts(piece).context("scores of another process")?;
            judged.add(Judged::from_bytes(right).context("scores of another process")?);
            tally.add(Tally::from_bytes(own).context("scores of another process")?);
            if let Some(counted) = &mut counted {
                counted.add(percentiles);
            }
            if arguments.out.is_some() {
                out.add(0, text)?;
            }
            out.count(tally.rows(), || state(&tally, counted.as_ref(), &judged))?;
            progress.count(tally.rows(), to_write.len(), &format!("log p {:.4}", tally.mean()));
            Ok(())
        },
    );
    progress.end();
    let is_whole = evaluated.with_context(|| arguments.data.clone())?;
    if cluster::following().is_some() && !division.is_apart() {
        // rank 0 has what this one made
        return if is_whole { Ok(()) } else { Err(interrupted("interrupted")) };
    }
    if !is_whole {
        return Err(out.interrupt());
    }
    out.finish()?;
    gather_totals(&division, state(&tally, counted.as_ref(), &judged), |state| {
        add_state(state, &mut tally, counted.as_mut(), &mut judged).context("the totals of another process")
    })?;
    if cluster::following().is_some() {
        return Ok(());
    }
    let found = Found {
        totals: tally.totals(),
        is_bound,
        lacking: None,
        percentiles: counted.map(Counted::summary),
        quality: judged.quality(),
        outliers: None,
        seconds: start.elapsed().as_secs_f64(),
        dropped: 0,
    };
    report(arguments, stored.precision, model, &found)
}

/// What is told of all scores, so far.
fn state(tally: &Tally, counted: Option<&Counted>, judged: &Judged) -> Vec<u8> {
    joined([&tally.to_bytes(), &counted.map_or(Vec::new(), Counted::to_bytes), &judged.to_bytes()])
}

/// Adds what is told of other scores.
fn add_state(state: &[u8], tally: &mut Tally, counted: Option<&mut Counted>, judged: &mut Judged) -> Result<()> {
    let [own, percentiles, right] = parts(state)?;
    tally.add(Tally::from_bytes(own).context("scores that are no scores")?);
    judged.add(Judged::from_bytes(right).context("classes that are no classes")?);
    if let Some(counted) = counted {
        counted.add(percentiles);
    }
    Ok(())
}

/// How right a classifier is about a piece, where its numbers of the labels are known.
fn judged_by(classified: Option<&Classified>, labels: Option<&[u8]>, numbers: Option<&Numbers>) -> Result<Judged> {
    let labels = labels.and_then(|labels| numbers?.of(labels));
    classified.zip(labels).map_or(Ok(Judged::default()), |(classified, labels)| classified.judge(&labels))
}

/// A classifier's numbers of the labels of images, if it knows all of them; if not, with a word.
fn numbers_of(rows: &dyn StoredRows, names: Option<&[String]>, model: &ModelConfig, data: &str) -> Option<Numbers> {
    let images = rows.images().filter(|_| model.classes() > 0)?;
    let numbers = labels::numbers(images, names, data);
    let all = numbers.of(images.labels?)?;
    match all.iter().find(|&&label| usize::from(label) >= model.classes()) {
        Some(other) => {
            let most = model.classes() - 1;
            warn(format_args!("one of the labels is {other}, the model's classes go from 0 to {most}: no accuracy"));
            None
        }
        None => Some(numbers),
    }
}

/// The options that scores depend on.
fn settings(arguments: &Score, division: &Division) -> [(&'static str, String); 9] {
    [
        ("work", "scores".to_owned()),
        ("rows", division.described()),
        ("columns", format!("{:?} {:?}", arguments.reading, arguments.matching)),
        ("images", format!("{:?} {:?}", arguments.part, arguments.size)),
        ("--estimator", format!("{:?}", arguments.estimator)),
        ("--replicates", format!("{:?}", arguments.replicates)),
        (
            "--standard-error",
            format!("{:?}, --most-replicates {}", arguments.standard_error, arguments.most_replicates),
        ),
        ("--contamination", format!("{:?}", arguments.contamination)),
        ("--seed", arguments.seed.to_string()),
    ]
}
