//! What came out of latent space: how exactly it was found, piece by piece, and as an array.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use resflow::Flow;
use resflow::backend::Backend;
use resflow::config::ModelConfig;
use resflow::data::Table;
use resflow::data::image::{ImageStack, npy as image_npy};
use resflow::data::npy::{self, Element};
use resflow::flow::PreparedFlow;
use resflow::invert::{Inversion, SampleReport, Status};

use crate::failure::{usage, warn};
use crate::output::report;

/// A value outside \[0, 1\] by more than this is worth a word.
const CLAMPED: f64 = 1e-5;

/// What is worth a warning: rows that ended so, and the largest error bound of one.
const INEXACT: [Status; 2] = [Status::FloatFloor, Status::NotConverged];

/// Whether the way back is certified.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Certifying {
    /// Certify each row: find it once more on the host in double precision, and say how far from the exact inverse a row may be,
    /// rounding included. For models whose blocks are all certified (`resflow inspect`); takes some tens of evaluations of each block
    #[arg(long)]
    pub(crate) certified: bool,
}

impl Certifying {
    /// Prepares a flow, with what certifies its inverses if that is asked for.
    pub(crate) fn prepare<B: Backend>(self, flow: &Flow<B>) -> Result<PreparedFlow<B>> {
        if !self.certified {
            return Ok(flow.prepare());
        }
        let prepared = flow.prepare_certified()?;
        if prepared.is_certified() {
            return Ok(prepared);
        }
        Err(usage(
            "--certified: nothing bounds how errors grow through some transform of this model (`resflow inspect` says which): \
             through couplings and continuous flows, through what depends on a context, and through blocks with norms other than the 2-norm",
        ))
    }

    /// What a record of unfinished work says of it: nothing where it is off, as records of before it.
    pub(crate) fn setting(self) -> Option<(&'static str, String)> {
        self.certified.then(|| ("--certified", "true".to_owned()))
    }

    /// Says what the bounds of all rows come to, if they are certified.
    pub(crate) fn report(self, out: &Path, outcome: &Outcome) -> Result<()> {
        if self.certified { report(Some(out), &outcome.certificate()) } else { Ok(()) }
    }
}

/// How exactly rows were found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Outcome {
    rows: usize,
    inexact: [(usize, f64); INEXACT.len()],
    /// Rows that are not finite, and the number of the first from 0.
    lost: usize,
    first_lost: usize,
    /// The largest round-trip error.
    residual: f64,
    /// The largest error bound.
    bound: f64,
    /// Values that were outside \[0, 1\], and the most that one was.
    outside: usize,
    most: f64,
}

impl Outcome {
    pub(crate) fn of(reports: &[SampleReport]) -> Self {
        let of = |status| reports.iter().filter(move |r| r.status == status);
        let inexact = |status| (of(status).count(), of(status).map(|r| r.error_bound).fold(0.0, f64::max));
        Self {
            rows: reports.len(),
            inexact: INEXACT.map(inexact),
            lost: of(Status::NonFinite).count(),
            first_lost: reports.iter().position(|r| r.status == Status::NonFinite).unwrap_or(0),
            residual: reports.iter().map(|r| r.residual).filter(|r| r.is_finite()).fold(0.0, f64::max),
            bound: reports.iter().map(|r| r.error_bound).fold(0.0, f64::max),
            ..Self::default()
        }
    }

    /// Moves the values of images into \[0, 1\]: samples may leave it by the logit's margin, an array of images may not.
    pub(crate) fn clamp(&mut self, values: &mut [f64]) {
        for value in values {
            let inside = value.clamp(0.0, 1.0);
            let by = (*value - inside).abs();
            self.outside += usize::from(by > 0.0);
            self.most = self.most.max(by);
            *value = inside;
        }
    }

    /// Adds what is said of the rows that follow.
    pub(crate) fn add(&mut self, next: Self) {
        if self.lost == 0 {
            self.first_lost = self.rows + next.first_lost;
        }
        self.rows += next.rows;
        self.lost += next.lost;
        for ((count, worst), (others, bound)) in self.inexact.iter_mut().zip(next.inexact) {
            (*count, *worst) = (*count + others, worst.max(bound));
        }
        self.residual = self.residual.max(next.residual);
        self.bound = self.bound.max(next.bound);
        self.outside += next.outside;
        self.most = self.most.max(next.most);
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// ‖F(x) − z‖₂ / max(1, ‖z‖₂), the largest over rows.
    pub(crate) fn residual(&self) -> f64 {
        self.residual
    }

    /// What the error bounds say where they are certified.
    fn certificate(&self) -> String {
        if self.bound.is_finite() {
            let bound = self.bound;
            return format!(
                "certified: each row is within {bound:.1e} of the exact inverse, in standardised units (2-norm)\n"
            );
        }
        "certified: no bound for some rows, through whose transforms errors may grow without end\n".to_owned()
    }

    /// Rows without a value are an error.
    pub(crate) fn check(&self) -> Result<()> {
        if self.lost > 0 {
            bail!("{} of {} rows are not finite, the first is row {}", self.lost, self.rows, self.first_lost + 1);
        }
        Ok(())
    }

    /// Warns of rows that did not reach the accuracy.
    pub(crate) fn tell(&self, how: &Inversion) {
        for (status, (rows, worst)) in INEXACT.into_iter().zip(self.inexact).filter(|(_, (rows, _))| *rows > 0) {
            warn(format_args!(
                "{rows} of {} rows ended {status}, not within {:.0e}: error bound up to {worst:.1e} in standardised units, \
                 round-trip error {:.1e}",
                self.rows,
                how.accuracy(),
                self.residual
            ));
        }
    }

    /// Warns of values that were moved by more than rounding.
    pub(crate) fn tell_moved(&self) {
        if self.most > CLAMPED {
            let (outside, most) = (self.outside, self.most);
            warn(format_args!("{outside} values were up to {most:.1e} outside 0 to 1 and are written as 0 or 1"));
        }
    }

    /// What another process, or a record, is told.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let [(floor, at_floor), (open, at_open)] = self.inexact;
        let numbers = [self.rows, floor, open, self.lost, self.first_lost, self.outside].map(|n| n as u64);
        let bits = [at_floor, at_open, self.residual, self.most, self.bound].map(f64::to_bits);
        numbers.into_iter().chain(bits).flat_map(u64::to_le_bytes).collect()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let words: Vec<u64> =
            bytes.chunks(8).map(|word| word.try_into().map(u64::from_le_bytes)).collect::<Result<_, _>>()?;
        // records of before say nothing of bounds
        let words = if words.len() == 10 { [&words[..], &[0]].concat() } else { words };
        let words: [u64; 11] = words.try_into().ok().context("what is said of rows is cut off")?;
        let [rows, floor, open, lost, first_lost, outside] = [0, 1, 2, 3, 4, 5].map(|i| words[i] as usize);
        let [at_floor, at_open, residual, most, bound] = [6, 7, 8, 9, 10].map(|i| f64::from_bits(words[i]));
        let inexact = [(floor, at_floor), (open, at_open)];
        Ok(Self { rows, inexact, lost, first_lost, residual, bound, outside, most })
    }
}

/// Finite values as an array of doubles: `[n, c, h, w]` where they are images of a model, else `[n, d]`.
pub(crate) fn npy_bytes(model: Option<&ModelConfig>, d: usize, mut values: Vec<f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(images) = model.and_then(ModelConfig::images) else {
        npy::write(&Table::new(None, d, values)?, npy::Float::F8, &mut bytes)?;
        return Ok(bytes);
    };
    let mut outcome = Outcome::default();
    outcome.clamp(&mut values);
    outcome.tell_moved();
    let stack = ImageStack::new(images.height, images.width, images.channels, values)?;
    image_npy::write_stack(&stack, npy::Float::F8, &mut bytes)?;
    Ok(bytes)
}

/// What an array of rows or images begins with: doubles `[n, d]` or `[n, c, h, w]`, or bytes of images, `[n, h, w, c]`.
pub(crate) fn array_header(model: &ModelConfig, rows: usize, as_bytes: bool) -> Result<Vec<u8>> {
    let (shape, element) = match model.images() {
        Some(c) if as_bytes => (vec![rows, c.height, c.width, c.channels], Element::U1),
        Some(c) => (vec![rows, c.channels, c.height, c.width], Element::F8),
        None => (vec![rows, model.dimension()], Element::F8),
    };
    Ok(npy::header(&shape, element)?)
}

/// Warns of rows that did not reach the accuracy; rows without a value are an error.
pub(crate) fn report_inversion(reports: &[SampleReport], how: &Inversion) -> Result<Outcome> {
    let outcome = Outcome::of(reports);
    outcome.tell(how);
    outcome.check()?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_told_as_the_whole() {
        let statuses = [Status::Converged, Status::FloatFloor, Status::NotConverged, Status::NonFinite];
        let reports: Vec<SampleReport> = (0..13_u32)
            .map(|i| SampleReport {
                residual: if i == 7 { f64::NAN } else { f64::from(i) / 3.0 },
                error_bound: f64::from(i % 5),
                iterations: i,
                status: statuses[i as usize / 2 % 4],
            })
            .collect();
        for cut in 0..=reports.len() {
            let (before, after) = reports.split_at(cut);
            let mut joined = Outcome::default();
            for part in [before, &[], after] {
                joined.add(Outcome::from_bytes(&Outcome::of(part).to_bytes()).expect("whole"));
            }
            let whole = Outcome::of(&reports);
            assert_eq!(Outcome { first_lost: 0, ..joined }, Outcome { first_lost: 0, ..whole });
            assert!(joined.lost == 0 || joined.first_lost == whole.first_lost, "cut at {cut}");
        }
        for (bytes, reads) in [(72, false), (79, false), (80, true), (88, true), (96, false)] {
            assert_eq!(Outcome::from_bytes(&vec![0; bytes]).is_ok(), reads, "{bytes}");
        }
    }
}
