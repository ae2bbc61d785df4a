//! The files of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::failure::usage;

/// Pictures of a run over two columns.
pub(crate) const PICTURES: [&str; 4] = ["density.png", "samples.png", "data.png", "picture.png"];
/// Pictures of a run over images.
pub(crate) const IMAGE_PICTURES: [&str; 2] = ["samples.png", "curve.png"];

/// The report of a run over a table.
pub(crate) const REPORT: &str = "report.html";

/// A directory with the files of one run.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    root: PathBuf,
}

impl RunDirectory {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The best validated, averaged weights.
    pub(crate) fn model(&self) -> PathBuf {
        self.root.join("model.safetensors")
    }

    /// The resumable state.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint.safetensors")
    }

    /// One object a logged step.
    pub(crate) fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// All settings.
    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// What was learnt, for people.
    pub(crate) fn report(&self) -> PathBuf {
        self.root.join(REPORT)
    }

    pub(crate) fn picture(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the directory for a new run: an old run in it is refused or removed.
    pub(crate) fn create(&self, overwrite: bool) -> Result<()> {
        let old = [self.checkpoint(), self.model()];
        if !overwrite && let Some(found) = old.iter().find(|p| p.symlink_metadata().is_ok()) {
            return Err(usage(format_args!(
                "{} exists: a run is there already; --resume goes on with it, --overwrite replaces it",
                found.display()
            )));
        }
        std::fs::create_dir_all(&self.root).with_context(|| self.root.display().to_string())?;
        let pictures: Vec<_> = PICTURES.iter().chain(&IMAGE_PICTURES).map(|name| self.picture(name)).collect();
        for path in old.iter().chain(&[self.metrics(), self.config(), self.report()]).chain(&pictures) {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| path.display().to_string());
                }
                _ => {}
            }
        }
        Ok(())
    }
}
