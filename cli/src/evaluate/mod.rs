//! Evaluating a model on many samples, with a sign of life.
//!
//! Images are evaluated [`PIECE`] at a time, piece p with the key `key.split(p)`: the noise and the probes of an image
//! depend on the seed and on its number alone, so log p, classifier and `encode` look at the same dequantised image. Rows
//! of numbers are one call.

pub(crate) mod classification;
pub(crate) mod lacking;
pub(crate) mod outliers;
pub(crate) mod percentile;

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::classifier::Classification;
use resflow::config::ModelConfig;
use resflow::data::Samples;
use resflow::flow::{LogProb, PreparedFlow};
use resflow::invert::Status;

use crate::progress::Progress;

/// Images of a piece.
pub(crate) const PIECE: usize = 256;

/// The key of evaluations.
pub(crate) fn key(seed: u64) -> Key {
    Key::new(seed).named("score")
}

/// log p of all samples; a bound on it by a variational dequantiser.
pub(crate) fn log_prob<B: Backend>(
    flow: &PreparedFlow<B>,
    model: &ModelConfig,
    samples: Samples<'_>,
    key: Key,
) -> Result<LogProb> {
    scores(model, samples, key, model.is_variational(), |piece, key| Ok(flow.log_prob(piece, key)?))
}

/// The bound on log p of all images by importance weights of so many draws of their noise.
pub(crate) fn importance_bound<B: Backend>(
    flow: &PreparedFlow<B>,
    model: &ModelConfig,
    samples: Samples<'_>,
    draws: usize,
    key: Key,
) -> Result<LogProb> {
    scores(model, samples, key, true, |piece, key| Ok(flow.importance_bound(piece, 0, draws, key)?))
}

/// What a number of bits per dimension is called: a bound is never named like the number itself.
pub(crate) fn bits_per_dim_label(is_bound: bool) -> &'static str {
    if is_bound { "bits/dim ≤" } else { "bits/dim" }
}

/// What stands before a number that may be an upper bound.
pub(crate) fn at_most(is_bound: bool) -> &'static str {
    if is_bound { "≤ " } else { "" }
}

/// The scores of all samples, piece by piece.
fn scores(
    model: &ModelConfig,
    samples: Samples<'_>,
    key: Key,
    is_bound: bool,
    of: impl Fn(Samples<'_>, Key) -> Result<LogProb>,
) -> Result<LogProb> {
    let mut all: Option<LogProb> = None;
    in_pieces(model, samples, key, |piece, key| {
        let own = of(piece, key)?;
        let all = match &mut all {
            Some(all) => {
                all.values.extend(own.values);
                all.standard_error.extend(own.standard_error);
                all.log_det.extend(own.log_det);
                all.status.extend(own.status);
                all.solve_error.extend(own.solve_error);
                all.most_evaluations = all.most_evaluations.max(own.most_evaluations);
                all.weights = all.weights.take().zip(own.weights).map(|(a, b)| [a, b].concat());
                all.replicates = all.replicates.max(own.replicates);
                all
            }
            None => all.insert(own),
        };
        Ok(match model.bits_per_dim(all.mean()) {
            Some(bits) => format!("{} {bits:.4}", bits_per_dim_label(is_bound)),
            None => format!("log p {:.4}", all.mean()),
        })
    })?;
    match all {
        Some(all) => Ok(all),
        // no rows: the library knows what to say of them
        None => of(samples, key),
    }
}

/// The numbers of the samples whose log p is −∞: so far out that the arithmetic overflowed, or outside of a column's
/// support.
pub(crate) fn non_finite(scores: &LogProb) -> impl Iterator<Item = usize> {
    scores
        .status
        .iter()
        .enumerate()
        .filter(|(_, status)| matches!(status, Status::NonFinite | Status::OutOfSupport))
        .map(|(i, _)| i)
}

/// p(y | x) of all samples.
pub(crate) fn classify<B: Backend>(
    flow: &PreparedFlow<B>,
    model: &ModelConfig,
    samples: Samples<'_>,
    key: Key,
) -> Result<Classification> {
    let mut all: Option<Classification> = None;
    in_pieces(model, samples, key, |piece, key| {
        let own = flow.classify(piece, key)?;
        match &mut all {
            Some(all) => all.extend(own),
            None => all = Some(own),
        }
        Ok("classified".to_owned())
    })?;
    match all {
        Some(all) => Ok(all),
        None => Ok(flow.classify(samples, key)?),
    }
}

/// z of some samples, row by row, with the log dets.
#[derive(Debug, Default)]
pub(crate) struct Latent {
    pub(crate) z: Vec<f64>,
    pub(crate) log_det: Vec<f64>,
    pub(crate) standard_error: Vec<f64>,
    /// The rows so far out that their latents do not lead back to them.
    pub(crate) astray: usize,
}

/// A relative error of a latent that has led back.
const LEADS_BACK: f64 = 1e-6;

/// z of all samples.
pub(crate) fn encode<B: Backend>(
    flow: &PreparedFlow<B>,
    model: &ModelConfig,
    samples: Samples<'_>,
    key: Key,
) -> Result<Latent> {
    let mut all = Latent::default();
    in_pieces(model, samples, key, |piece, key| {
        all.add(flow, piece, 0, key)?;
        Ok(String::new())
    })?;
    Ok(all)
}

impl Latent {
    /// Adds z of samples the first of which has a number.
    pub(crate) fn add<B: Backend>(
        &mut self,
        flow: &PreparedFlow<B>,
        samples: Samples<'_>,
        first: u64,
        key: Key,
    ) -> Result<()> {
        let encoded = flow.encode_from(samples, first, key)?;
        let latents = encoded.latents.clone();
        let own = flow.normal_scores(encoded)?;
        if own.latents != latents {
            let back = flow.invert_normal_scores(&own.latents)?;
            let apart = |(a, b): (&f64, &f64)| (a - b).abs() > LEADS_BACK * a.abs().max(1.0);
            let rows =
                latents.values().chunks_exact(flow.dimension()).zip(back.values().chunks_exact(flow.dimension()));
            self.astray += rows.filter(|(z, back)| z.iter().zip(*back).any(apart)).count();
        }
        self.z.extend_from_slice(own.latents.values());
        self.log_det.extend(own.log_det);
        self.standard_error.extend(own.standard_error);
        Ok(())
    }
}

/// Shows samples piece by piece to a function that says how it stands.
fn in_pieces(
    model: &ModelConfig,
    samples: Samples<'_>,
    key: Key,
    mut each: impl FnMut(Samples<'_>, Key) -> Result<String>,
) -> Result<()> {
    let count = samples.len();
    if model.images().is_none() {
        return if count == 0 { Ok(()) } else { each(samples, key).map(|_| ()) };
    }
    let mut progress = Progress::quiet();
    for (number, first) in (0..count).step_by(PIECE).enumerate() {
        let some: Vec<usize> = (first..count.min(first + PIECE)).collect();
        let key = key.split(number as u64);
        match each(samples.select(&some)?.samples(), key) {
            Ok(said) => progress.count(first + some.len(), count, &said),
            Err(e) => {
                progress.end();
                return Err(e);
            }
        }
    }
    progress.end();
    Ok(())
}
