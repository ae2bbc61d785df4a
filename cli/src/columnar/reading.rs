//! Tables from Parquet and Arrow files.

use std::io::{self, BufReader, Read};

use anyhow::{Error, Result};
use bytes::Bytes;
use resflow::data::{DataError, ReadOptions, Reading};

use super::guard::guarded;
use super::table::{invalid, shown};
use super::{Input, Kind, arrow_file, parquet_file};

/// The most bytes of a Parquet file that a stream is read for.
const MOST: u64 = 4 << 30;

/// Reads a table by the rules of the library, of which only the chosen columns are decoded.
pub(crate) fn read(kind: Kind, input: Input, _name: &str, options: &ReadOptions) -> Result<Reading, DataError> {
    let is_file = kind == Kind::ArrowFile;
    let found = guarded(|| match (kind, input) {
        (Kind::Parquet, Input::File(file)) => parquet_file::read(file, options),
        (Kind::Parquet, Input::Stream(stream)) => parquet_file::read(whole(stream)?, options),
        (_, Input::File(file)) => arrow_file::read(BufReader::new(file), is_file, options),
        (_, Input::Stream(stream)) => arrow_file::read(BufReader::new(stream), is_file, options),
    });
    found.map_err(|error| told(kind, error))
}

/// All of a stream: what a Parquet file holds is said at its end.
fn whole(stream: impl Read) -> Result<Bytes> {
    let mut bytes = Vec::new();
    // a byte more tells that there are more
    stream.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        let said = format!(
            "more than {} GiB of Parquet in a stream, which is kept in memory: give the file itself",
            MOST >> 30
        );
        return Err(invalid(said).into());
    }
    Ok(bytes.into())
}

/// An error of a decoder: the file is damaged, unless it says otherwise.
pub(super) fn told(kind: Kind, error: Error) -> DataError {
    let damaged = |error: Error| {
        let problem = shown(&format!("{error:#}"), 300);
        let remedy = "damaged or cut short, so copy or download it again";
        invalid(format!("the file is {} that is {remedy}: {problem}", kind.name()))
    };
    error
        .downcast::<DataError>()
        .unwrap_or_else(|error| error.downcast::<io::Error>().map_or_else(damaged, DataError::Io))
}
