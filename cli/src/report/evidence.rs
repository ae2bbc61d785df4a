//! What a report needs of a flow: log p of rows, samples with their log p, and why the strangest rows are strange.
//!
//! Everything is computed in pieces until its share of the time is spent; the first piece always is. Where time is no
//! limit the result is a function of the flow, the data and the key.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::data::{Categories, Dataset, Samples, Table};
use resflow::flow::{Decoded, PreparedFlow, ReferenceScores};
use resflow::invert::Inversion;

use super::excerpt::{Excerpt, some_rows};
use super::strange::{self, Strange};

/// Rows of a piece of work.
const PIECE: usize = 1024;
/// Samples of a report.
const SAMPLES: usize = 5000;
/// The most held-out rows that are scored.
const HELD_OUT: usize = 20_000;
/// The time that a report may take where nothing limits it.
const ALLOWANCE: Duration = Duration::from_secs(8);
/// The part of a limited time that scores and report may take.
const SHARE: f64 = 0.08;
/// Rows that an estimate of the cost is measured with.
const PROBE: usize = 64;

/// log p of the rows of a fit.
#[derive(Debug, Clone)]
pub(crate) struct RowScores {
    /// Of the first rows of the excerpt.
    pub(crate) excerpt: Vec<f64>,
    /// Of held-out rows.
    pub(crate) held_out: Vec<f64>,
}

impl RowScores {
    /// Scores an excerpt and the rows that were held out, until two points in time, if there are any.
    pub(crate) fn of<B: Backend>(
        flow: &PreparedFlow<B>,
        excerpt: &Excerpt,
        held_out: Samples<'_>,
        until: [Option<Instant>; 2],
    ) -> Result<Self> {
        let key = Key::new(0).named("report");
        let held_out = match held_out.table() {
            Some(_) => log_prob(flow, some_rows(held_out, HELD_OUT)?.samples(), key.split(1), until[0])?,
            None => Vec::new(),
        };
        Ok(Self { excerpt: log_prob(flow, excerpt.data().samples(), key.split(0), until[1])?, held_out })
    }

    /// What later scores are held against; none if no row was trained on.
    pub(crate) fn reference(&self, excerpt: &Excerpt) -> Option<ReferenceScores> {
        let trained = self.excerpt.iter().zip(&excerpt.held_out).filter(|(_, held_out)| !**held_out);
        let training: Vec<f64> = trained.map(|(s, _)| *s).collect();
        ReferenceScores::of(&training, &self.held_out)
    }
}

/// What sections are drawn from.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) names: Vec<String>,
    pub(crate) excerpt: Excerpt,
    pub(crate) scores: RowScores,
    /// The excerpt's columns.
    pub(crate) data: Vec<Vec<f64>>,
    /// The samples' columns.
    pub(crate) samples: Vec<Vec<f64>>,
    /// The samples' categories, of a model that has some.
    pub(crate) sample_categories: Option<Categories>,
    /// log p of the samples.
    pub(crate) sample_scores: Vec<f64>,
    /// Samples that came out infinite or NaN.
    pub(crate) lost_samples: usize,
    /// The least likely rows, the strangest first.
    pub(crate) strange: Vec<Strange>,
}

impl Evidence {
    /// Draws samples and explains the strangest rows, within an allowance of time.
    pub(crate) fn gather<B: Backend>(
        flow: &PreparedFlow<B>,
        names: Vec<String>,
        excerpt: Excerpt,
        scores: RowScores,
        allowance: Duration,
    ) -> Result<Self> {
        let start = Instant::now();
        let until = |share: f64| Some(start + allowance.mul_f64(share));
        let key = Key::new(flow.dimension() as u64).named("report");
        let d = flow.dimension();
        let contexts = excerpt.data().context_rows();
        let (mut values, mut drawn, mut at, mut codes) = (Vec::new(), 0, Vec::new(), Vec::new());
        in_pieces(SAMPLES, until(0.5), |range| {
            let (first, count) = (range.start, range.len());
            let piece = draw(flow, contexts.as_ref(), range, key.split(first as u64))?;
            drawn += count;
            let rows = piece.samples.values().chunks_exact(d).enumerate();
            for (i, row) in rows.filter(|(_, row)| row.iter().all(|v| v.is_finite())) {
                values.extend_from_slice(row);
                at.push(first + i);
                codes.extend(piece.categories.iter().flat_map(|own| own.row(i)));
            }
            Ok(())
        })?;
        let samples = Table::new(None, d, values)?;
        let own = flow.categories().filter(|own| own.density().is_some());
        let sample_categories = own.map(|own| Categories::new(own.columns().to_vec(), codes)).transpose()?;
        let rows = Dataset::from(samples.clone());
        let scored = match (&contexts, &sample_categories) {
            (Some(contexts), _) => rows.given_rows(of_samples(contexts, at)?)?,
            (None, Some(categories)) => rows.with_categories(categories.clone())?,
            (None, None) => rows,
        };
        let sample_scores = log_prob(flow, scored.samples(), key.named("samples"), until(0.7))?;
        let data = columns(&excerpt.table);
        let lost_samples = drawn - samples.rows();
        let strange = strange::find(flow, &excerpt, &scores, &data, until(1.0))?;
        let samples = columns(&samples);
        Ok(Self { names, excerpt, scores, data, samples, sample_categories, sample_scores, lost_samples, strange })
    }

    /// The number of columns.
    pub(crate) fn dimension(&self) -> usize {
        self.names.len()
    }

    /// The number of samples.
    pub(crate) fn sample_count(&self) -> usize {
        self.samples.first().map_or(0, Vec::len)
    }
}

/// The time that scores and report may take of a run's.
pub(crate) fn allowance(limit: Option<Duration>) -> Duration {
    limit.map_or(ALLOWANCE, |limit| limit.mul_f64(SHARE).min(ALLOWANCE))
}

/// The time that scores and report of an excerpt will take, from a small part of it; at most what is allowed.
pub(crate) fn estimate<B: Backend>(flow: &PreparedFlow<B>, excerpt: &Excerpt, limit: Duration) -> Result<Duration> {
    let some = excerpt.data().select(&(0..excerpt.rows().min(PROBE)).collect::<Vec<_>>())?;
    let start = Instant::now();
    flow.log_prob(&some, Key::new(0))?;
    let row = start.elapsed().div_f64(some.len().max(1) as f64);
    let start = Instant::now();
    draw(flow, excerpt.data().context_rows().as_ref(), 0..PROBE, Key::new(0))?;
    let sample = start.elapsed().div_f64(PROBE as f64);
    let rows = excerpt.rows() + SAMPLES + strange::ROWS * strange::evaluations(flow.dimension());
    let drawing = Duration::from_millis(200);
    Ok((row.mul_f64(rows as f64) + sample.mul_f64(SAMPLES as f64) + drawing).min(limit))
}

/// Draws samples of some numbers: of a conditional model, at the rows' contexts in turn.
fn draw<B: Backend>(
    flow: &PreparedFlow<B>,
    contexts: Option<&Dataset>,
    numbers: Range<usize>,
    key: Key,
) -> Result<Decoded> {
    let how = Inversion::for_backend::<B>();
    Ok(match contexts {
        Some(contexts) => flow.condition(&of_samples(contexts, numbers)?)?.sample_by(1, key, &how)?,
        None => flow.sample(numbers.len(), key, &how)?,
    })
}

/// The contexts of samples of some numbers.
fn of_samples(contexts: &Dataset, numbers: impl IntoIterator<Item = usize>) -> Result<Dataset> {
    Ok(contexts.select(&numbers.into_iter().map(|i| i % contexts.len().max(1)).collect::<Vec<_>>())?)
}

/// log p of the first samples, all of them if there is time.
pub(super) fn log_prob<B: Backend>(
    flow: &PreparedFlow<B>,
    samples: Samples<'_>,
    key: Key,
    until: Option<Instant>,
) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(samples.len());
    in_pieces(samples.len(), until, |range| {
        let piece = samples.select(&range.clone().collect::<Vec<_>>())?;
        all.extend(flow.log_prob_from(&piece, range.start as u64, key)?.values);
        Ok(())
    })?;
    Ok(all)
}

/// Works through numbers in pieces until a point in time, if there is one; the first piece is always done.
fn in_pieces(count: usize, until: Option<Instant>, mut work: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
    // where time is short, the first piece must be
    let first = if until.is_some() { PIECE / 8 } else { PIECE };
    let mut from = 0;
    while from < count && (from == 0 || until.is_none_or(|until| Instant::now() < until)) {
        let to = count.min(from + if from == 0 { first } else { PIECE });
        work(from..to)?;
        from = to;
    }
    Ok(())
}

fn columns(table: &Table) -> Vec<Vec<f64>> {
    let d = table.width();
    (0..d).map(|j| table.values().iter().skip(j).step_by(d).copied().collect()).collect()
}
