//! Experiments: a grid of cells from one file, resumable, with a table and plots in the end.
//!
//! Every kind of experiment is a file: it lists its cells, computes one, and reports on all. Models are trained as by
//! `resflow fit`, evaluated as by `resflow score`; nothing here draws a batch or makes a step. Invariant: a cell is a
//! function of the experiment's file, the data and the precision, up to the time it takes, whatever was stopped and resumed.

mod bias;
mod cell;
mod chart;
mod comparison;
mod estimate;
mod file;
mod grid;
mod hybrid;
pub(crate) mod laboratory;
mod report;
mod score;
mod section;
mod training;
mod variance;

use anyhow::Result;

use file::Kind;
use laboratory::Laboratory;

/// Computes the cells that are not there yet, and reports on all.
pub(crate) fn run(laboratory: &Laboratory) -> Result<()> {
    match laboratory.file.kind()? {
        Kind::Comparison(comparison) => comparison::run(laboratory, comparison),
        Kind::Bias(grid) => bias::run(laboratory, grid),
        Kind::Variance(grid) => variance::run(laboratory, grid),
    }
}
