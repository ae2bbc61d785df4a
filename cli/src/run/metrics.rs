//! metrics.jsonl: one object a logged step.
//!
//! A resumed run drops the lines beyond its checkpoint and writes them again, so that its file is that of an
//! uninterrupted run but for `seconds`. Lines reach the disk before the checkpoint that follows them.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::base::Ladder;
use resflow::train::{StepReport, Trainer, Validation};
use serde::{Deserialize, Serialize};

use crate::output::write_file;

/// A logged step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) step: u64,
    /// Since the beginning of the run, over all resumptions.
    pub(crate) seconds: f64,
    /// Nats per row on the batch; null in steps of flow matching.
    pub(crate) train_nll: Option<f64>,
    /// The velocity's mean square distance from its targets, in those steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) matching: Option<f64>,
    /// Nats per row of the averaged weights on the validation rows; null where they were not evaluated.
    pub(crate) val_nll: Option<f64>,
    pub(crate) val_se: Option<f64>,
    pub(crate) lr: f64,
    /// Before clipping.
    pub(crate) grad_norm: f64,
    /// Vector-Jacobian products of the log dets, summed over blocks.
    pub(crate) terms: usize,
    /// The largest product of the normalised weights' σ of a block; null of couplings, which have no bound.
    pub(crate) lipschitz: Option<f64>,
    /// Of models whose forward pass solves.
    #[serde(flatten)]
    pub(crate) solves: Option<Solves>,
    /// The same of images, in bits per dimension.
    #[serde(flatten)]
    pub(crate) bits: Option<Bits>,
    /// Of hybrid models.
    #[serde(flatten)]
    pub(crate) classes: Option<Classes>,
}

/// What is known before the first step, in a line of its own, where the model is validated then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// Always 0.
    pub(crate) step: u64,
    pub(crate) seconds: f64,
    /// Nats per row of the untrained model on the validation rows.
    pub(crate) val_nll: Option<f64>,
    pub(crate) val_se: Option<f64>,
    /// What mixtures of Gaussians give the same rows, where the base density was fitted.
    pub(crate) ladder: Option<Ladder>,
}

impl Beginning {
    /// What a trainer that has made no step yet knows.
    pub(crate) fn of<B: Backend>(trainer: &Trainer<B>, validation: &Validation, time: Duration) -> Self {
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        Self {
            step: 0,
            seconds: time.as_secs_f64(),
            val_nll: finite(validation.nll),
            val_se: finite(validation.standard_error),
            ladder: trainer.flow().provenance().ladder.clone(),
        }
    }
}

/// Negative log likelihoods of images, in bits per dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bits {
    /// On the batch: the likelihood itself, not the surrogate whose gradient is taken.
    pub(crate) train_bits_per_dim: f64,
    pub(crate) val_bits_per_dim: Option<f64>,
    pub(crate) val_bits_per_dim_se: Option<f64>,
}

/// The solves of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Solves {
    /// Evaluations and products of the sample with the most, forward and back, summed over blocks.
    pub(crate) solve_evaluations: u32,
    /// Samples of the step that were left out because a solve did not converge.
    pub(crate) unsolved: usize,
}

/// How the classifier of a hybrid model did: −log p(y | x) in nats, and the fraction of rows that it was right about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Classes {
    /// On the batch.
    pub(crate) train_cross_entropy: f64,
    pub(crate) train_accuracy: f64,
    /// Of the averaged weights on the validation rows; null where they were not evaluated.
    pub(crate) val_cross_entropy: Option<f64>,
    pub(crate) val_accuracy: Option<f64>,
}

impl Classes {
    pub(crate) fn of(report: &StepReport, validation: Option<&Validation>) -> Option<Self> {
        let train = report.classification?;
        let validation = validation.and_then(|v| v.classification);
        Some(Self {
            train_cross_entropy: train.cross_entropy,
            train_accuracy: train.accuracy,
            val_cross_entropy: validation.map(|v| v.cross_entropy).filter(|x| x.is_finite()),
            val_accuracy: validation.map(|v| v.accuracy),
        })
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Metrics {
    file: File,
    path: PathBuf,
    /// Whether the line before the first step is there.
    begun: bool,
}

impl Metrics {
    /// A file without lines.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        write_file(path, b"")?;
        Self::open(path, false)
    }

    /// The file of a run that goes on after `step`, and the lines that stay.
    pub(crate) fn resume(path: &Path, step: u64) -> Result<(Self, Vec<Entry>)> {
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let mut kept = String::new();
        let (mut entries, mut begun) = (Vec::new(), false);
        for line in text.lines() {
            // a line that was cut off by the end of its process does not parse
            match serde_json::from_str::<Entry>(line) {
                Ok(entry) if entry.step <= step => {
                    kept.push_str(line);
                    kept.push('\n');
                    entries.push(entry);
                }
                _ if !begun && serde_json::from_str::<Beginning>(line).is_ok_and(|line| line.step == 0) => {
                    kept.push_str(line);
                    kept.push('\n');
                    begun = true;
                }
                _ => {}
            }
        }
        if kept != text || text.is_empty() {
            write_file(path, kept.as_bytes())?;
        }
        Ok((Self::open(path, begun)?, entries))
    }

    /// The lines of a file, as far as they can be read; none if there is no file.
    pub(crate) fn read(path: &Path) -> Vec<Entry> {
        let text = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn open(path: &Path, begun: bool) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).with_context(|| path.display().to_string())?;
        Ok(Self { file, path: path.to_owned(), begun })
    }

    /// Appends a line.
    pub(crate) fn log(&mut self, entry: &Entry) -> Result<()> {
        self.append(entry)
    }

    /// Writes the line before the first step, if it is not there: a run that was killed before its first step is validated again.
    pub(crate) fn begin(&mut self, beginning: &Beginning) -> Result<()> {
        if self.begun {
            return Ok(());
        }
        self.append(beginning)?;
        self.begun = true;
        Ok(())
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(line)?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }

    /// Waits until all lines are on the disk.
    pub(crate) fn synchronise(&self) -> Result<()> {
        self.file.sync_data().with_context(|| self.path.display().to_string())
    }
}
