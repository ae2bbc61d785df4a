//! The arguments of `resflow predict` and `resflow calibrate`, which are for conditional models.

use std::path::PathBuf;

use clap::Args;

use super::{Model, fraction};
use crate::data::reading::{Matching, TableOptions};

/// Predict one column given others: its distribution for each row
///
/// MODEL is a conditional model of one column (`resflow fit … --given …`). Each row gets the mean, the quantiles at --levels and,
/// if the table has the column itself, what came true: the continuous ranked probability score (CRPS, in the column's units, less
/// is better) and the share of the distribution below it (pit, uniform if the model is right). Quantiles are those of the
/// model, by its inverse, and not of samples.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow predict prices new.csv --out predicted.csv                prices is a run of p(price | …), see below
  resflow predict prices held_out.csv --levels 0.1,0.9              and how good: CRPS, coverage
  resflow predict prices held_out.csv --json
The run: resflow fit houses.csv --given rooms,age,income --out prices")]
pub(crate) struct Predict {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table of what is given, with the column to predict or without
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    /// The levels of the quantiles, between 0 and 1
    #[arg(long, value_name = "U,U", value_delimiter = ',', value_parser = fraction, default_value = "0.05,0.5,0.95")]
    pub(crate) levels: Vec<f64>,
    /// Write the rows to this .csv, .parquet or .arrow file, or a pipe (-)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// The seed of estimates
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Say whether a conditional model is as sure as it may be, on pairs of what was true and what was given
///
/// DATA has rows that the model was not trained on, with all of its columns. For each, samples of the model given the row's
/// context are drawn, and the place of the truth among them is noted: by each column (simulation-based calibration, SBC), by the
/// distance from another row's truth (TARP), and by log p (coverage of highest densities). All are uniform if the model is
/// right; each gets a p-value (Kolmogorov and Smirnov), and all together one (Bonferroni).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow calibrate posterior simulations.csv
  resflow calibrate posterior simulations.csv --rows 5000 --draws 500 --out calibration.html
  resflow calibrate posterior simulations.csv --json | jq .p_value")]
pub(crate) struct Calibrate {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table with the columns of the model and those that it is given
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    /// The samples of each row
    #[arg(long, value_name = "L", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) draws: u32,
    /// The first rows to take
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rows: u32,
    /// Write a page with pictures to this .html file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// The seed of samples
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}
