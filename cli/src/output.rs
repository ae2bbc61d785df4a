//! What is written for the user: standard output, and files that appear whole or not at all.

use std::fs::{File, Metadata};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use resflow::checkpoint::{AtomicFile, write_atomically};

use crate::columnar::{self, Column, Kind};
use crate::failure::{is_silent, say, usage};

/// Text on standard output; that it cannot be written is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// The formats of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Csv,
    Npy,
    Png,
    Parquet,
    // also called Feather
    Arrow,
}

impl Format {
    /// The format that is asked for, or that of a file's name; a stream without a name has CSV.
    pub(crate) fn of(path: &Path, asked: Option<Self>) -> Option<Self> {
        match extension(path).as_str() {
            _ if asked.is_some() => asked,
            "csv" => Some(Self::Csv),
            "npy" => Some(Self::Npy),
            "png" => Some(Self::Png),
            "parquet" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" => Some(Self::Arrow),
            _ => is_stream(path).then_some(Self::Csv),
        }
    }

    /// The format as one that is stored by columns, if it is.
    pub(crate) fn columnar(self) -> Option<Kind> {
        match self {
            Self::Parquet => Some(Kind::Parquet),
            Self::Arrow => Some(Kind::ArrowFile),
            Self::Csv | Self::Npy | Self::Png => None,
        }
    }

    /// The bytes of columns, as columns or else as CSV.
    pub(crate) fn columns(self, columns: &[Column]) -> Result<Vec<u8>> {
        match self.columnar() {
            Some(kind) => columnar::write(kind, columns),
            None => Ok(columnar::csv(columns).into_bytes()),
        }
    }

    /// Refuses what the program was built without.
    pub(crate) fn check(self, out: &Path) -> Result<()> {
        if let Some(kind) = self.columnar().filter(|_| !columnar::BUILT_IN) {
            let (out, kind) = (out.display(), kind.name());
            return Err(usage(format_args!(
                "--out {out}: to write {kind}, build the program with the feature `parquet` (`cargo install resflow-cli \
                 --features parquet`); a name that ends in .csv needs nothing"
            )));
        }
        Ok(())
    }
}

/// Whether a path stands for standard output.
fn is_standard_output(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

/// Whether a path is standard output, a pipe or a device, into which is written as it is.
pub(crate) fn is_stream(path: &Path) -> bool {
    is_standard_output(path) || std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// What there is to say beside what goes to `out`: on standard output, unless that is where it goes.
pub(crate) fn report(out: Option<&Path>, text: &str) -> Result<()> {
    if out.is_some_and(is_standard_output) {
        say(text.trim_end());
        return Ok(());
    }
    print(text)
}

/// Writes a file, unless another process does: atomically, unless the path is a pipe or a device, which a rename would replace.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    if is_standard_output(path) {
        let mut out = std::io::stdout().lock();
        return out.write_all(bytes).and_then(|()| out.flush()).context("standard output");
    }
    if is_stream(path) {
        let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes));
        return written.with_context(|| path.display().to_string());
    }
    Ok(write_atomically(path, bytes)?)
}

/// What is written as it comes, and is there whole or not at all, unless it goes into a pipe or a device. Of several processes one
/// writes.
pub(crate) struct Output {
    path: PathBuf,
    to: To,
}

enum To {
    Nothing,
    Standard,
    Stream(File),
    Whole(AtomicFile),
}

impl Output {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let to = if is_silent() {
            To::Nothing
        } else if is_standard_output(path) {
            To::Standard
        } else if is_stream(path) {
            To::Stream(File::options().write(true).open(path).with_context(|| path.display().to_string())?)
        } else {
            To::Whole(AtomicFile::create(path)?)
        };
        Ok(Self { path: path.to_owned(), to })
    }

    pub(crate) fn finish(self) -> Result<()> {
        match self.to {
            To::Whole(file) => Ok(file.finish()?),
            To::Standard => std::io::stdout().lock().flush().context("standard output"),
            To::Nothing | To::Stream(_) => Ok(()),
        }
    }

    /// Adds bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).with_context(|| self.path.display().to_string())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.to {
            To::Nothing => Ok(bytes.len()),
            To::Standard => std::io::stdout().lock().write(bytes),
            To::Stream(file) => file.write(bytes),
            To::Whole(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.to {
            To::Nothing => Ok(()),
            To::Standard => std::io::stdout().lock().flush(),
            To::Stream(file) => file.flush(),
            To::Whole(file) => file.flush(),
        }
    }
}

/// The ending of a file's name, in lower case.
pub(crate) fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Refuses to write where something is read from: the same file under any name, or a file in a folder of data. `outputs`
/// are options with their paths.
pub(crate) fn spare_inputs(outputs: &[(&str, Option<&Path>)], inputs: &[&Path]) -> Result<()> {
    let given: Vec<(&str, &Path)> = outputs.iter().filter_map(|&(flag, path)| Some((flag, path?))).collect();
    for (i, &(flag, out)) in given.iter().enumerate() {
        if is_stream(out) {
            continue;
        }
        for input in inputs {
            if is_same(out, input) {
                let (out, input) = (out.display(), input.display());
                return Err(usage(format_args!(
                    "{flag} {out}: this would overwrite {input}, which is read; choose another name"
                )));
            }
            if input.is_dir() && out.exists() && is_within(out, input) {
                let (out, input) = (out.display(), input.display());
                return Err(usage(format_args!(
                    "{flag} {out}: this would overwrite a file of {input}, which is read; choose another name"
                )));
            }
        }
        if let Some((other, _)) = given[..i].iter().find(|(_, earlier)| is_same(out, earlier) || *earlier == out) {
            return Err(usage(format_args!("{flag} {}: {other} writes there too", out.display())));
        }
    }
    Ok(())
}

/// Whether two paths lead to the same file.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a_file), Ok(b_file)) => identity(&a_file, a) == identity(&b_file, b),
        _ => false,
    }
}

fn is_within(file: &Path, folder: &Path) -> bool {
    let pair = file.canonicalize().and_then(|file| Ok((file, folder.canonicalize()?)));
    pair.is_ok_and(|(file, folder)| file.starts_with(folder))
}

/// What two names of one file have in common: links included, where the system says it.
#[cfg(unix)]
fn identity(file: &Metadata, _path: &Path) -> (u64, u64, Option<PathBuf>) {
    use std::os::unix::fs::MetadataExt as _;
    (file.dev(), file.ino(), None)
}

#[cfg(not(unix))]
fn identity(_file: &Metadata, path: &Path) -> (u64, u64, Option<PathBuf>) {
    (0, 0, path.canonicalize().ok())
}
