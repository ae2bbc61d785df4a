//! The command line of experiments.

use std::path::PathBuf;

use clap::Args;

use crate::device::Arithmetic;

/// Run a named grid of trainings or measurements, and write its table and plots
///
/// FILE is TOML: `title`, `seed` (of every random number), `precision` (f32 or f64), `data` (a list: built-in densities, files,
/// folders of images), settings that all cells share in [flow] or [images] and [train], and one of these sections:
/// [comparison] (training settings on each of the data, scored on held-out data: log p, the AUROC of log p against each
/// of `outliers`, accuracy and calibration of models that classify), [bias] (of log-det estimators, against exact log
/// dets), [variance] (of the gradient, by estimator).
///
/// Writes into DIR: table.md, table.json and .png plots; cells/ with one JSON file for each finished cell, which a later run
/// takes as it is; runs/ with the training runs, which a later run resumes. A cell that was computed with other settings is
/// refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow experiment docs/experiments/bias.toml --out bias
  resflow experiment docs/experiments/settings.toml --out settings --threads 1
  resflow experiment docs/experiments/bias.toml --out bias          again: go on where it was stopped

A comparison; each row changes what it names, the model's family included:
  title = \"activations\"
  seed = 1
  data = [\"checkerboard\"]
  [flow]
  blocks = 8
  [train]
  steps = 2000
  [comparison]
  runs = 3                      # seeds 1, 2, 3
  seconds = 60                  # for each training, in place of its steps
  outliers = [\"moons\"]         # other data to tell from these by log p
  [[comparison.rows]]
  name = \"ELU\"
  flow = { activation = \"elu\" }
  [[comparison.rows]]
  name = \"LipSwish\"
  flow = { activation = \"lip-swish\" }

Bias and variance:
  [bias]                        # or [variance]
  estimators = [\"truncated:terms=3\", \"roulette:p=0.5,exact=1\"]
  bounds = [0.7, 0.9]           # c, the bound on a block's Lipschitz constant
  widths = [16, 64]
  trained_with = \"own\"         # or one estimator for all, such as \"exact\"")]
pub(crate) struct Experiment {
    /// The experiment, TOML
    pub(crate) file: PathBuf,
    /// The directory of its results
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) arithmetic: Arithmetic,
}
