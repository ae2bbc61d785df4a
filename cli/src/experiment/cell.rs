//! One cell of a grid: computed once, kept as one JSON file.
//!
//! The file holds the cell's specification, all that its result depends on; a cell is skipped if its file is there, and
//! refused if the specification in it is another. It is written atomically, so that it is there whole or not at all.

use std::time::Instant;

use anyhow::{Context as _, Result};
use resflow::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::laboratory::Laboratory;
use super::training::Training;
use crate::failure::{interrupted, say, usage};
use crate::output::write_file;
use crate::run::interruption::is_interrupted;

/// A cell that is finished.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cell<R> {
    pub(super) name: String,
    /// What the result is a function of.
    specification: Value,
    /// The time that it took, without what a stopped process had spent on it.
    pub(super) seconds: f64,
    pub(super) outcome: Outcome<R>,
}

/// What came of a cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome<R> {
    Result(R),
    /// Training became non-finite, which is a result too.
    Diverged(String),
}

impl<R> Cell<R> {
    pub(super) fn result(&self) -> Option<&R> {
        match &self.outcome {
            Outcome::Result(result) => Some(result),
            Outcome::Diverged(_) => None,
        }
    }
}

impl Laboratory {
    /// The cell of a name: as it was found before, or computed now.
    pub(super) fn cell<R: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        specification: Value,
        compute: impl FnOnce() -> Result<R>,
    ) -> Result<Cell<R>> {
        let path = self.path("cells").join(format!("{name}.json"));
        if path.exists() {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let cell: Cell<R> = serde_json::from_slice(&bytes).map_err(|e| {
                usage(format_args!("{}: not a cell of this experiment ({e}); remove it", path.display()))
            })?;
            if Training::completed(cell.specification.clone()) != specification {
                return Err(usage(format_args!(
                    "{}: computed with other settings; remove it or choose another --out",
                    path.display()
                )));
            }
            say(format_args!("{name}: there already"));
            return Ok(cell);
        }
        if is_interrupted() {
            return Err(stopped());
        }
        say(format_args!("{name}"));
        let start = Instant::now();
        let outcome = match compute() {
            Ok(result) => Outcome::Result(result),
            // how a run is resumed is another matter within an experiment
            Err(_) if is_interrupted() => return Err(stopped()),
            Err(e) if matches!(e.downcast_ref(), Some(Error::Diverged { .. })) => Outcome::Diverged(format!("{e:#}")),
            Err(e) => return Err(e.context(name.to_owned())),
        };
        let seconds = start.elapsed().as_secs_f64();
        let cell = Cell { name: name.to_owned(), specification, seconds, outcome };
        std::fs::create_dir_all(self.path("cells")).with_context(|| self.out.display().to_string())?;
        write_file(&path, &serde_json::to_vec_pretty(&cell)?)?;
        Ok(cell)
    }
}

fn stopped() -> anyhow::Error {
    interrupted("interrupted; the same command goes on from here")
}
