//! `resflow experiment`: a grid of cells from one file, resumable, with a table and plots in the end.
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
mod report;
mod training;
mod variance;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::arguments;
use crate::device::{Arithmetic, BackendName, Precision};
use crate::failure::usage;
use crate::run::interruption::listen_for_interruption;
use file::{File, Kind};

/// An experiment and where its results go.
#[derive(Debug)]
struct Laboratory {
    file: File,
    out: PathBuf,
    arithmetic: Arithmetic,
}

pub(crate) fn run(arguments: &arguments::Experiment) -> Result<()> {
    let file = File::read(&arguments.file)?;
    if arguments.arithmetic.precision.is_some() {
        return Err(usage("--precision: an experiment's file says it, as precision = \"f32\" or \"f64\""));
    }
    if arguments.arithmetic.backend == BackendName::Wgpu && file.precision == Precision::F64 {
        let name = arguments.file.display();
        return Err(usage(format_args!("{name}: precision is f64, --backend wgpu computes in f32")));
    }
    let arithmetic = Arithmetic { precision: Some(file.precision), ..arguments.arithmetic.clone() };
    let laboratory = Laboratory { file, out: arguments.out.clone(), arithmetic };
    listen_for_interruption()?;
    let name = || arguments.file.display().to_string();
    match laboratory.file.kind().with_context(name)? {
        Kind::Comparison(comparison) => comparison::run(&laboratory, comparison),
        Kind::Bias(grid) => bias::run(&laboratory, grid),
        Kind::Variance(grid) => variance::run(&laboratory, grid),
    }
    .with_context(name)
}

/// A name as part of a file's name: small letters, digits, dots and dashes.
fn slug(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let all: String = name.chars().map(letter).collect();
    all.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

impl Laboratory {
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.out.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_files() {
        assert_eq!(slug("i-ResNet + ELU"), "i-resnet-elu");
        assert_eq!(slug("roulette:p=0.5, exact=2"), "roulette-p-0.5-exact-2");
        assert_eq!(slug("../x"), "..-x");
    }
}
