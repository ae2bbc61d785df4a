//! What the numbers of scores, latents and samples are a function of, by which unfinished work is known again.

use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::data::StoredRows;
use resflow::group::collective::digest_of_bytes;

use crate::cluster::instructions;
use crate::model::Stored;
use crate::unfinished::Nature;

/// That of work with a model, on the rows of a file where there is one; `settings` are the command's own.
pub(crate) fn nature<B: Backend>(
    stored: &Stored,
    backend: &B,
    data: Option<(&Path, &dyn StoredRows)>,
    settings: &[(&str, String)],
) -> Result<Nature> {
    let path = stored.path();
    let model = std::fs::read(path).with_context(|| path.display().to_string())?;
    let mut common = vec![
        ("model", format!("{:016x}, {} bytes", digest_of_bytes(&model), model.len())),
        ("program", env!("CARGO_PKG_VERSION").to_owned()),
        ("processor", instructions()),
        ("device", format!("{}, {}", backend.name(), stored.precision.name())),
    ];
    if let Some((data, rows)) = data {
        let files = files(data).with_context(|| data.display().to_string())?;
        common.push(("data", format!("{} rows of {} numbers, {files}", rows.rows(), rows.width())));
    }
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Ok(common.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(settings).collect())
}

/// The lengths of a file, or of a folder's files, and when they were changed.
fn files(path: &Path) -> std::io::Result<String> {
    let state = |path: &Path| {
        let found = std::fs::metadata(path)?;
        let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok::<_, std::io::Error>((found.len(), modified.map_or(0, |time| time.as_nanos())))
    };
    let (length, modified) = state(path)?;
    if !path.is_dir() {
        return Ok(format!("{length} bytes, changed at {modified}"));
    }
    let names = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut all = names
        .iter()
        .filter(|name| !is_part(name))
        .map(|name| Ok((name, state(name)?)))
        .collect::<std::io::Result<Vec<_>>>()?;
    all.sort_unstable();
    Ok(format!("{} files, {:016x}", all.len(), digest_of_bytes(format!("{all:?}").as_bytes())))
}

/// Whether a file in a folder of data is one that unfinished work leaves.
fn is_part(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.ends_with(".part") || name.ends_with(".part.json")
}
