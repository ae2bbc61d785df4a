//! What there is to read at a path, as far as its first bytes say it.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Seek as _};
use std::path::Path;

use super::reading::STANDARD_INPUT;
use crate::columnar::{Input, Kind, MAGIC};

/// What there is to read, from its beginning.
pub(crate) enum Source {
    /// A table that is stored by columns.
    Columns(Kind, Input),
    /// A pipe, or standard input.
    Stream(Box<dyn Read + Send>),
    /// A file or a folder that the library opens by its path.
    Path,
}

impl Source {
    /// Looks at a path. What cannot be opened is left to the library, which says why.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        if path == Path::new(STANDARD_INPUT) {
            return Self::begun(io::stdin());
        }
        let Ok(found) = fs::metadata(path) else { return Ok(Self::Path) };
        if found.is_dir() {
            return Ok(Self::Path);
        }
        let Ok(mut file) = File::open(path) else { return Ok(Self::Path) };
        if !found.is_file() {
            return Self::begun(file);
        }
        let kind = Kind::of(&beginning(&mut file)?);
        file.rewind()?;
        Ok(kind.map_or(Self::Path, |kind| Self::Columns(kind, Input::File(file))))
    }

    /// A stream, which can be read but once.
    fn begun(mut stream: impl Read + Send + 'static) -> io::Result<Self> {
        let head = beginning(&mut stream)?;
        let kind = Kind::of(&head);
        let stream: Box<dyn Read + Send> = Box::new(Cursor::new(head).chain(stream));
        Ok(match kind {
            Some(kind) => Self::Columns(kind, Input::Stream(stream)),
            None => Self::Stream(stream),
        })
    }
}

fn beginning(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    stream.take(MAGIC).read_to_end(&mut head)?;
    Ok(head)
}
