//! What is written for the user: standard output, and files that appear whole or not at all.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::checkpoint::write_atomically;

/// Text on standard output; that it cannot be written is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// Writes a file: atomically, unless the path is a pipe or a device, which a rename would replace.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
    if special {
        let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes));
        return written.with_context(|| path.display().to_string());
    }
    Ok(write_atomically(path, bytes)?)
}

/// The ending of a file's name, in lower case.
pub(crate) fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}
