//! What a program without the feature `parquet` says of tables that are stored by columns.

use std::io;

use anyhow::{Result, bail};
use resflow::data::{DataError, ReadOptions, Reading};

use super::{Column, Input, Kind};

/// Refuses a file of this name, with two ways out.
pub(crate) fn read(kind: Kind, _input: Input, name: &str, _options: &ReadOptions) -> Result<Reading, DataError> {
    // what a shell and Python take as it is
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-./ ".contains(c));
    let name = if plain && name != "-" { name } else { "FILE" };
    let convert = match kind {
        Kind::Parquet => format!("import pandas; pandas.read_parquet('{name}')"),
        Kind::ArrowFile => format!("import pandas; pandas.read_feather('{name}')"),
        Kind::ArrowStream => format!("import pyarrow; pyarrow.ipc.open_stream('{name}').read_pandas()"),
    };
    let said = format!(
        "the file is {}, and this program was built without the feature `parquet`, which reads it: build it with `cargo \
         install resflow-cli --features parquet`, or convert the file: python -c \"{convert}.to_csv('table.csv', \
         index=False)\"",
        kind.name()
    );
    Err(DataError::Io(io::Error::new(io::ErrorKind::Unsupported, said)))
}

/// The command line asks for no such file: it is refused before.
pub(crate) fn write(kind: Kind, _columns: &[Column]) -> Result<Vec<u8>> {
    bail!("{} needs the feature `parquet`", kind.name())
}
