//! DATA: a file of rows, or the name of a built-in density.

use std::path::Path;

use anyhow::Result;
use resflow::data::{self, Table, ToyDensity};

use crate::failure::usage;

/// Where rows come from.
#[derive(Debug)]
pub(crate) enum Rows {
    Density(ToyDensity),
    File(Table),
}

impl Rows {
    /// A density's name goes before a file of the same name: `./moons` is the file.
    pub(crate) fn open(text: &str) -> Result<Self> {
        let unknown = match text.parse::<ToyDensity>() {
            Ok(density) => return Ok(Self::Density(density)),
            Err(e) => e,
        };
        let path = Path::new(text);
        match path.try_exists() {
            Ok(false) => Err(usage(format_args!("{text}: file not found, and {unknown}"))),
            _ => Ok(Self::File(read(path)?)),
        }
    }
}

/// Reads a file of rows.
pub(crate) fn read(path: &Path) -> Result<Table> {
    match path.try_exists() {
        Ok(false) => Err(usage(format_args!("{}: file not found", path.display()))),
        _ => Ok(data::read(path)?),
    }
}
