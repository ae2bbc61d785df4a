//! An experiment's file, and where and how it is carried out.

use std::path::{Path, PathBuf};

use anyhow::Result;
use resflow::device::Precision;

use super::file::File;
use crate::arguments::Experiment;
use crate::device::{Arithmetic, BackendName, PrecisionName};
use crate::failure::usage;

/// An experiment and where its results go.
#[derive(Debug)]
pub(crate) struct Laboratory {
    pub(super) file: File,
    pub(super) out: PathBuf,
    pub(super) arithmetic: Arithmetic,
}

impl Laboratory {
    /// Reads the file; the arguments must not contradict it.
    pub(crate) fn open(arguments: &Experiment) -> Result<Self> {
        let file = File::read(&arguments.file)?;
        if arguments.arithmetic.precision.is_some() {
            return Err(usage("--precision: an experiment's file says it, as precision = \"f32\" or \"f64\""));
        }
        if let Some(products) = arguments.arithmetic.asked_products() {
            return Err(usage(format_args!(
                "--products: the settings of a training in an experiment's file say it, as products = \"{products}\""
            )));
        }
        if arguments.arithmetic.backend == BackendName::Wgpu && file.precision == Precision::F64 {
            let name = arguments.file.display();
            return Err(usage(format_args!("{name}: precision is f64, --backend wgpu computes in f32")));
        }
        let precision = match file.precision {
            Precision::F32 => PrecisionName::F32,
            Precision::F64 => PrecisionName::F64,
        };
        let arithmetic = Arithmetic { precision: Some(precision), ..arguments.arithmetic.clone() };
        Ok(Self { file, out: arguments.out.clone(), arithmetic })
    }

    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.out.join(name)
    }
}

/// A name as part of a file's name: small letters, digits, dots and dashes.
pub(super) fn slug(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let all: String = name.chars().map(letter).collect();
    all.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
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
