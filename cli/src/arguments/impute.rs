//! The arguments of `resflow impute`, which is for models that know missing values.

use std::path::PathBuf;

use clap::Args;

use super::Model;
use crate::data::reading::{Matching, TableOptions};

/// Fill in what rows lack, by a model of `resflow fit --impute`
///
/// Writes the model's columns of DATA, in the model's order, with each missing value drawn from its distribution given the values
/// that the row has; these stay as they are. With -n rows come several times, one after the other, with other draws, and the first
/// column, draw, numbers them from 1: analyse each completed table by itself and combine the results (multiple imputation). --mean and --median
/// write one row each, with the mean or the median of the draws. What is drawn lies inside a column's support and on its grid.
///
/// Values are filled in as if they were missing at random: whether one is missing may depend on what its row has, not on the value itself.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow impute run survey.csv --out filled.csv             one draw of each missing value
  resflow impute run survey.csv --out filled.csv -n 20       twenty completed tables, row by row
  resflow impute run survey.csv --out filled.csv --median    the median of 100 draws
  zcat new.csv.gz | resflow impute run - --out -             from a pipe, into a pipe
The run: resflow fit survey.csv --impute --out run")]
pub(crate) struct Impute {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table whose rows lack values
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    /// The draws of each row, 1 to 10000 [default: 1; with --mean or --median 100]
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        allow_negative_numbers = true,
    )]
    pub(crate) draws: Option<u32>,
    /// Write the mean of the draws; of whole numbers it is none
    #[arg(long, conflicts_with = "median")]
    pub(crate) mean: bool,
    /// Write the median of the draws
    #[arg(long)]
    pub(crate) median: bool,
    /// Write the rows to this .csv, .parquet or .arrow file, or a pipe (-)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}
