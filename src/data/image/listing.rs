//! The files and folders of a folder, without those that systems and programs leave there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// As much as an NPY header takes at most.
const BEGINNING: u64 = 16 << 10;

/// What systems leave in folders, in lower case.
const LITTER: [&str; 6] =
    ["thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"];

/// An error with the path it is about, unless it has one.
pub(super) fn within(path: &Path, error: DataError) -> DataError {
    match error {
        DataError::File { .. } => error,
        error => DataError::File { path: path.to_owned(), source: Box::new(error) },
    }
}

/// Reads a file's beginning.
pub(super) fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BEGINNING).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file or a folder, by its name.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Entry {
    pub(super) fn of(path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, path }
    }

    /// Reads the file; errors name it.
    pub(super) fn load<T>(&self, reader: impl FnOnce(&[u8]) -> Result<T, DataError>) -> Result<T, DataError> {
        fs::read(&self.path)
            .map_err(DataError::from)
            .and_then(|bytes| reader(&bytes))
            .map_err(|e| within(&self.path, e))
    }

    /// The ending of the name in lower case.
    pub(super) fn extension(&self) -> String {
        self.path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
    }

    fn is_litter(&self) -> bool {
        // macOS' ._a.png beside a.png among them
        self.name.starts_with('.') || LITTER.contains(&&*self.name.to_lowercase())
    }
}

/// The contents of a folder, in the order of the names.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) files: Vec<Entry>,
    pub(super) folders: Vec<Entry>,
}

impl Listing {
    pub(super) fn of(folder: &Path) -> Result<Self, DataError> {
        let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
        let mut paths = read().map_err(|e| within(folder, e.into()))?;
        paths.sort();
        let entries = paths.into_iter().map(Entry::of).filter(|entry| !entry.is_litter());
        let (folders, files) = entries.partition(|entry| entry.path.is_dir());
        Ok(Self { files, folders })
    }

    pub(super) fn file(&self, name: &str) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.name == name)
    }

    /// The first folder here that has one of these names, in any case.
    pub(super) fn folder(&self, names: &[&str]) -> Option<&Entry> {
        names.iter().find_map(|name| self.folders.iter().find(|entry| entry.name.eq_ignore_ascii_case(name)))
    }

    /// The listing of a folder in this one.
    pub(super) fn below(&self, name: &str) -> Result<Option<Self>, DataError> {
        let entry = self.folders.iter().find(|entry| entry.name == name);
        entry.map(|entry| Self::of(&entry.path)).transpose()
    }

    /// Whether it is the directory of a run, whose pictures are no data.
    pub(super) fn is_run(&self) -> bool {
        ["metrics.jsonl", "checkpoint.safetensors"].iter().any(|name| self.file(name).is_some())
    }

    /// What is here, in words: how many files end in what.
    pub(super) fn summary(&self) -> String {
        let mut endings = BTreeMap::<String, usize>::new();
        for entry in &self.files {
            *endings.entry(entry.extension()).or_default() += 1;
        }
        let mut endings: Vec<_> = endings.into_iter().collect();
        endings.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let more = endings.len() > 4;
        let files = endings.into_iter().take(4).map(|(ending, count)| match (ending.as_str(), count) {
            ("", 1) => "1 file without an ending".to_owned(),
            ("", n) => format!("{n} files without an ending"),
            (ending, 1) => format!("1 .{ending} file"),
            (ending, n) => format!("{n} .{ending} files"),
        });
        let folders = match self.folders.len() {
            0 => None,
            1 => Some("1 folder".to_owned()),
            n => Some(format!("{n} folders")),
        };
        let parts: Vec<_> = files.chain(more.then(|| "others".to_owned())).chain(folders).collect();
        if parts.is_empty() { "it is empty".to_owned() } else { format!("it has {}", parts.join(", ")) }
    }
}
