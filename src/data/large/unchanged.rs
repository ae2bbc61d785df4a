//! A file that is read at places while nobody may change it: its length and the time of its last change are looked at before.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::error::DataError;

/// By which a file that changed is found out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) length: u64,
    modified: Option<SystemTime>,
}

impl State {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { length: found.len(), modified: found.modified().ok() })
    }
}

/// A file that is read at places.
#[derive(Debug)]
pub(crate) struct Unchanged {
    path: PathBuf,
    file: Mutex<File>,
    found: State,
}

impl Unchanged {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::of(path, File::open(path)?)
    }

    /// Takes a file; `path` is what errors say.
    pub(crate) fn of(path: &Path, file: File) -> io::Result<Self> {
        let found = State::of(&file)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), found })
    }

    pub(crate) fn length(&self) -> u64 {
        self.found.length
    }

    /// Reads at most so many bytes from the beginning.
    pub(crate) fn beginning(&self, most: u64) -> io::Result<Vec<u8>> {
        let mut file = self.lock();
        file.rewind()?;
        let mut bytes = Vec::new();
        (&*file).take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The file, if it is what it was.
    pub(crate) fn places(&self) -> Result<Places<'_>, DataError> {
        let file = self.lock();
        if State::of(&file)? == self.found { Ok(Places(file)) } else { Err(DataError::Changed) }
    }

    /// An error with the file's path.
    pub(crate) fn at(&self, error: DataError) -> DataError {
        DataError::File { path: self.path.clone(), source: Box::new(error) }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that was what it had been when it was asked for.
#[derive(Debug)]
pub(crate) struct Places<'a>(MutexGuard<'a, File>);

impl Places<'_> {
    /// Reads so many bytes from a place on.
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; length];
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => DataError::Changed,
            _ => error.into(),
        })?;
        Ok(bytes)
    }
}
