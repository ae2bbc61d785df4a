//! Loading models.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use resflow::Flow;
use resflow::backend::Backend;
use resflow::checkpoint::{Archive, model_precision};
use resflow::config::ModelConfig;
use resflow::data::ModelColumns;
use resflow::device::Precision;
use resflow::error::CheckpointError;

use crate::arguments::Model;
use crate::data::reading::Matching;
use crate::failure::usage;

/// The contents of a model's file.
#[derive(Debug)]
pub(crate) struct Stored {
    archive: Archive,
    path: PathBuf,
    /// The precision that the model was made in.
    pub(crate) native: Precision,
    /// The precision to compute in.
    pub(crate) precision: Precision,
}

impl Stored {
    /// Reads a model, the best model of a checkpoint, or that of a run's directory.
    pub(crate) fn open(model: &Model) -> Result<Self> {
        let path = if model.path.is_dir() { model.path.join("model.safetensors") } else { model.path.clone() };
        if matches!(path.try_exists(), Ok(false)) {
            return Err(usage(format_args!("{}: file not found", path.display())));
        }
        let archive = read_archive(&path)?.into_model();
        let native = precision_of(&archive).with_context(|| path.display().to_string())?;
        let precision = model.arithmetic.precision_of(native);
        Ok(Self { archive, path, native, precision })
    }

    /// The flow on a device.
    pub(crate) fn flow<B: Backend>(&self, backend: B) -> Result<Flow<B>> {
        Flow::from_archive(backend, &self.archive).with_context(|| self.path.display().to_string())
    }

    /// The columns that it was fitted to, to which those of a table are matched; none if it is for images.
    pub(crate) fn columns(&self, matching: Matching, beside: Option<&str>) -> Option<ModelColumns> {
        // a damaged file is told when the flow is made of it
        let model = &self.archive.document["model"];
        let config: ModelConfig = serde_json::from_value(model["config"].clone()).ok()?;
        config.rows()?;
        let width = config.dimension();
        let names: Option<Vec<String>> = serde_json::from_value(model["provenance"]["columns"].clone()).ok()?;
        Some(ModelColumns {
            names: names.filter(|names| names.len() == width),
            width,
            by_position: matching.by_position,
            beside: beside.map(str::to_owned),
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Reads a file of ours; every error names it.
pub(crate) fn read_archive(path: &std::path::Path) -> Result<Archive> {
    match Archive::read(path) {
        Err(e @ CheckpointError::Io { .. }) => Err(e.into()),
        other => other.with_context(|| path.display().to_string()),
    }
}

/// The precision of the numbers in a file.
pub(crate) fn precision_of(archive: &Archive) -> Result<Precision> {
    match model_precision(archive)?.as_str() {
        "f32" => Ok(Precision::F32),
        "f64" => Ok(Precision::F64),
        other => anyhow::bail!("made in an unknown precision, `{other}`"),
    }
}

/// The names of a model's columns.
pub(crate) fn column_names<B: Backend>(flow: &Flow<B>) -> Vec<String> {
    flow.provenance().columns.clone().filter(|names| names.len() == flow.dimension()).unwrap_or_else(|| {
        if flow.dimension() == 2 {
            vec!["x".to_owned(), "y".to_owned()]
        } else {
            (1..=flow.dimension()).map(|i| format!("x{i}")).collect()
        }
    })
}
