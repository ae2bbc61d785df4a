//! The files of a run.

use std::cell::OnceCell;
use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::failure::usage;
use crate::output::is_same;

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
    /// Held open while this process writes to the directory.
    lock: OnceCell<File>,
}

impl RunDirectory {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), lock: OnceCell::new() }
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

    /// The file whose lock says that a process writes to the directory. The system takes the lock away with the process,
    /// however that ends; the file stays.
    fn lock_file(&self) -> PathBuf {
        self.root.join(".lock")
    }

    /// Keeps other processes out of the directory from now on; one that another process writes to is refused.
    pub(crate) fn claim(&self) -> Result<()> {
        if self.lock.get().is_some() {
            return Ok(());
        }
        let path = self.lock_file();
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.with_context(|| path.display().to_string())?;
        match file.try_lock() {
            // for people: what counts is the lock
            Ok(()) => {
                let written = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                written.with_context(|| path.display().to_string())?;
            }
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                let known = file.read_to_string(&mut process).is_ok() && process.bytes().all(|b| b.is_ascii_digit());
                let process =
                    if known && !process.is_empty() { format!(", process {process},") } else { String::new() };
                return Err(usage(format_args!(
                    "{}: another resflow fit{process} is writing there: wait until it ends, stop it, or choose another --out",
                    self.root.display()
                )));
            }
            // a file system without locks
            Err(TryLockError::Error(_)) => {}
        }
        let _ = self.lock.set(file);
        Ok(())
    }

    /// [`claim`](Self::claim)s the directory if a run was ever in it.
    pub(crate) fn claim_if_there(&self) -> Result<()> {
        if self.lock_file().exists() { self.claim() } else { Ok(()) }
    }

    /// Refuses data that a new run would overwrite: one of its files, or the directory itself.
    pub(crate) fn spare(&self, data: &Path) -> Result<()> {
        let pictures = PICTURES.iter().chain(&IMAGE_PICTURES).map(|name| self.picture(name));
        let own = [self.model(), self.checkpoint(), self.metrics(), self.config(), self.report()];
        if own.into_iter().chain(pictures).chain([self.root.clone()]).any(|path| is_same(&path, data)) {
            let (data, root) = (data.display(), self.root.display());
            return Err(usage(format_args!(
                "--out {root}: the run would overwrite {data}, which is read; choose another directory"
            )));
        }
        Ok(())
    }

    /// Refuses a directory with an old run in it, which a new one would remove.
    pub(crate) fn spare_old(&self) -> Result<()> {
        match [self.checkpoint(), self.model()].iter().find(|p| p.symlink_metadata().is_ok()) {
            Some(found) => Err(usage(format_args!(
                "{} exists: a run is there already; --resume goes on with it, --overwrite replaces it",
                found.display()
            ))),
            None => Ok(()),
        }
    }

    /// Makes the directory for a new run: an old run in it is refused or removed.
    pub(crate) fn create(&self, overwrite: bool) -> Result<()> {
        let old = [self.checkpoint(), self.model()];
        std::fs::create_dir_all(&self.root).with_context(|| self.root.display().to_string())?;
        self.claim()?;
        if !overwrite {
            // another run may have ended there since it was looked at first
            self.spare_old()?;
        }
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
