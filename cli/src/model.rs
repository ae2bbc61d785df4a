//! Loading models.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use resflow::Flow;
use resflow::backend::Backend;
use resflow::categorical::CategoricalDensity;
use resflow::checkpoint::{Archive, model_precision};
use resflow::config::ModelConfig;
use resflow::data::{Category, ModelColumns};
use resflow::device::Precision;
use resflow::error::CheckpointError;
use serde::de::DeserializeOwned;

use crate::arguments::Model;
use crate::data::Data;
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
        let path = model_path(model)?;
        let archive = read_archive(&path)?.into_model();
        let native = precision_of(&archive).with_context(|| path.display().to_string())?;
        let precision = model.arithmetic.precision_of(native);
        Ok(Self { archive, path, native, precision })
    }

    /// The flow on a device.
    pub(crate) fn flow<B: Backend>(&self, backend: B) -> Result<Flow<B>> {
        Flow::from_archive(backend, &self.archive).with_context(|| self.path.display().to_string())
    }

    /// The columns that it was fitted to, to which those of a table are matched; none if it is for images. Those that it is
    /// given come last.
    pub(crate) fn columns(&self, matching: Matching, beside: Option<&str>) -> Option<ModelColumns> {
        let width = self.rows()?.dimension();
        let given = self.given().unwrap_or_default();
        let names: Option<Vec<String>> = self.provenance("columns").filter(|names: &Vec<String>| names.len() == width);
        let (modelled, own) = (self.is_modelled(), self.categories());
        let (names, mut categories) = match names {
            Some(names) if modelled => in_their_places(&names, &own),
            Some(names) => (Some(names), Vec::new()),
            None => (None, Vec::new()),
        };
        let width = width + if modelled { own.len() } else { 0 };
        if !modelled {
            categories.extend((0..own.len()).map(|j| width + given.len() - own.len() + j));
        }
        Some(ModelColumns {
            names: names.map(|names| [names, given.clone()].concat()),
            width: width + given.len(),
            by_position: matching.by_position,
            beside: beside.map(str::to_owned),
            categories,
            // contexts may stand anywhere among the others
            in_any_order: !given.is_empty(),
        })
    }

    /// The columns of categories, those of the samples or of the context.
    pub(crate) fn categories(&self) -> Vec<Category> {
        serde_json::from_value(self.archive.document["model"]["categories"]["columns"].clone()).unwrap_or_default()
    }

    /// Whether the categories are a part of the samples.
    pub(crate) fn is_modelled(&self) -> bool {
        self.archive.document["model"]["categories"].get("nets").is_some()
    }

    /// The columns of the contexts that it is given, by name, or by number where it was fitted to a table without names, those of
    /// categories last; none of a model that is not conditional.
    pub(crate) fn given(&self) -> Option<Vec<String>> {
        let width = self.rows()?.context()?.columns;
        if self.is_modelled() {
            return None;
        }
        let categories = self.categories();
        let levels: usize = categories.iter().map(|column| column.levels().len()).sum();
        let width = width.saturating_sub(levels);
        let names = self.provenance("given").filter(|names: &Vec<String>| names.len() == width);
        let mut names = names.unwrap_or_else(|| (1..=width).map(|i| format!("c{i}")).collect());
        names.extend(categories.iter().map(|column| column.name().to_owned()));
        Some(names)
    }

    /// The same as columns of a table of contexts alone, among others if it has names.
    pub(crate) fn context_columns(&self, matching: Matching) -> Option<ModelColumns> {
        let given = self.given()?;
        let named = self.provenance::<Vec<String>>("columns").is_some();
        let numbers = given.len() - self.categories().len();
        Some(ModelColumns {
            width: given.len(),
            categories: (numbers..given.len()).collect(),
            names: named.then_some(given),
            by_position: matching.by_position,
            beside: None,
            in_any_order: false,
        })
    }

    /// Takes the contexts out of a table with the model's columns.
    pub(crate) fn split(&self, data: Data, name: &str) -> Result<Data> {
        let (Some(given), Some(table)) = (self.given(), data.table()) else { return Ok(data) };
        let own = table.columns();
        let of_categories = given[given.len() - self.categories().len()..].to_vec();
        let given = given[..given.len() - of_categories.len()].to_vec();
        if given.is_empty() {
            return data.given(&of_categories, name);
        }
        let first = table.width().saturating_sub(given.len());
        let names: Vec<String> =
            (0..table.width()).map(|j| own.map_or_else(|| (j + 1).to_string(), |names| names[j].clone())).collect();
        let number = |name: &String| {
            let number: usize = name.strip_prefix("column ")?.parse().ok()?;
            names.get(number.checked_sub(1)?).cloned()
        };
        let nameless = self.provenance::<Vec<String>>("columns").is_none();
        let numbered: Option<Vec<String>> = given.iter().map(number).collect();
        // a model of a table without names knows their numbers there; else they come last where they are not known by name
        let columns = match numbered {
            Some(numbered) if nameless => numbered,
            _ if own.is_some_and(|own| given.iter().all(|name| own.contains(name))) => given,
            _ => names[first..].to_vec(),
        };
        data.given(&[columns, of_categories].concat(), name)
    }

    /// Whether it knows missing values: it has an imputer.
    pub(crate) fn imputes(&self) -> bool {
        self.archive.document["model"]["imputer"].is_object()
    }

    /// The names of the classes that a model of images is given, or their numbers; none if it is given nothing, or is for rows.
    pub(crate) fn classes(&self) -> Option<Vec<String>> {
        let width = self.config().filter(|config| config.images().is_some())?.context()?.columns;
        let names = self.provenance("given").filter(|names: &Vec<String>| names.len() == width);
        let number = |name: String| match name.strip_prefix("class ") {
            Some(number) if number.parse::<f64>().is_ok() => number.to_owned(),
            _ => name,
        };
        Some(match names {
            Some(names) => names.into_iter().map(number).collect(),
            None => (0..width).map(|k| k.to_string()).collect(),
        })
    }

    /// Its configuration, if it is for rows.
    fn rows(&self) -> Option<ModelConfig> {
        self.config().filter(|config| config.rows().is_some())
    }

    /// Its configuration. A damaged file is told when the flow is made of it.
    pub(crate) fn config(&self) -> Option<ModelConfig> {
        serde_json::from_value(self.archive.document["model"]["config"].clone()).ok()
    }

    /// What is known of where it comes from.
    fn provenance<T: DeserializeOwned>(&self, what: &str) -> Option<T> {
        serde_json::from_value(self.archive.document["model"]["provenance"][what].clone()).ok()
    }

    /// The file.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// The names of columns of numbers with those of categories in their places, and where these are.
pub(crate) fn in_their_places(numbers: &[String], categories: &[Category]) -> (Option<Vec<String>>, Vec<usize>) {
    let (mut names, mut places) = (Vec::new(), Vec::new());
    for before in 0..=numbers.len() {
        for column in categories.iter().filter(|column| column.place().min(numbers.len()) == before) {
            places.push(names.len());
            names.push(column.name().to_owned());
        }
        names.extend(numbers.get(before).cloned());
    }
    (Some(names), places)
}

/// The file of a model, or that in a run's directory.
pub(crate) fn model_path(model: &Model) -> Result<PathBuf> {
    let path = if model.path.is_dir() { model.path.join("model.safetensors") } else { model.path.clone() };
    if matches!(path.try_exists(), Ok(false)) {
        return Err(usage(format_args!("{}: file not found", path.display())));
    }
    Ok(path)
}

/// The columns of a probability of categories alone.
pub(crate) fn model_columns(density: &CategoricalDensity, matching: Matching, beside: Option<&str>) -> ModelColumns {
    let names: Vec<String> = density.columns().iter().map(|column| column.name().to_owned()).collect();
    ModelColumns {
        width: names.len(),
        categories: (0..names.len()).collect(),
        names: Some(names),
        by_position: matching.by_position,
        beside: beside.map(str::to_owned),
        in_any_order: false,
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
