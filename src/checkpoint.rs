//! Model files: safetensors with the configuration inside.
//!
//! A file holds every tensor that a flow stores (weights, biases, singular vectors, ActNorm's flag, what the base density
//! learned) under its visiting name, the columns' centres and scales as `standardise.mean` and `standardise.deviation`
//! (f64), those of a context's columns as `context.mean` and `context.deviation`, the knots of their maps and the probabilities of
//! categories (`categories.…`) where there are any, and one metadata entry `resflow` with the configuration as JSON.
//! Nothing in it is executed. Loading checks every name and shape, and every number to be finite, before anything is used;
//! memory stays within a small multiple of the file. Writing is atomic: a temporary file beside the target, flushed to the
//! disk and renamed.

mod archive;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use resflow_backend::{Backend, Element};
use serde::{Deserialize, Serialize};

pub use self::archive::{Archive, AtomicFile, Values, write_atomically};
use crate::architecture;
use crate::categorical::StoredCategories;
use crate::config::{ImageConfig, ModelConfig, Start};
use crate::data::column::StoredColumns;
use crate::data::{ColumnMaps, Standardiser};
use crate::error::{CheckpointError, Error};
use crate::estimator::Phase;
pub use crate::flow::Provenance;
use crate::flow::{Flow, FlowContext};
use crate::lipschitz::UNIT;
use crate::missing::Imputer;
use crate::module::Module as _;
use crate::registry::Registry;
use crate::stage::{Repeated, Size, Stage};

/// The format of a model whose configuration says what its transforms are.
const FORMAT: u32 = 2;
/// The format of one whose document lists its transforms.
const LISTED: u32 = 3;
/// The format of one with a base density, a start, conditional priors or maps of columns that readers of the others do not know, listed or not.
const EXTENDED: u32 = 4;

/// The format of a conditional one, whatever else it has.
const CONDITIONAL: u32 = 5;

/// The format of one with categories, whatever else it has.
const CATEGORICAL: u32 = 6;

/// The format of one whose images get noise by a flow of its own, whatever else it has.
const DEQUANTISED: u32 = 7;

/// The section of the metadata that describes a variational flow, which runs the other way.
pub(crate) const VARIATIONAL: &str = "variational";

/// The section of the metadata that describes a variational run, beside that of its flow.
pub(crate) const VARIATIONAL_RUN: &str = "variational-run";

/// The section of the metadata that describes a probability of categories alone.
pub(crate) const CATEGORICAL_DENSITY: &str = "categorical";

/// What the names of an imputer's tensors begin with.
const IMPUTER: &str = "imputer.";

/// The names of the centres and scales of a context's columns.
const CONTEXT: [&str; 2] = ["context.mean", "context.deviation"];

/// The format of a model.
fn format_of(config: &ModelConfig, listed: bool, mapped: bool, categorical: bool) -> u32 {
    if config.is_variational() {
        DEQUANTISED
    } else if categorical {
        CATEGORICAL
    } else if config.context().is_some() {
        CONDITIONAL
    } else if mapped
        || !config.base().is_normal()
        || config.start() != Start::Random
        || config.images().is_some_and(|images| images.conditional_prior || images.gated.is_some())
    {
        EXTENDED
    } else if listed {
        LISTED
    } else {
        FORMAT
    }
}

/// The document of a model file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelDocument {
    format: u32,
    precision: String,
    config: ModelConfig,
    /// The estimators that `auto` chose, for the reader of the file.
    chosen: BTreeMap<String, String>,
    provenance: Provenance,
    /// The stages of the chain, where they are not those of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<Vec<Stage>>,
    /// The maps of the columns, where they are not their standardisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    columns: Option<StoredColumns>,
    /// The categories that are a part of the samples or of the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    categories: Option<StoredCategories>,
    /// The flow that fills in missing cells, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    imputer: Option<Box<ModelDocument>>,
}

impl ModelDocument {
    /// Describes a flow that is not there yet.
    #[cfg(feature = "import")]
    pub(crate) fn new(config: ModelConfig, precision: &str, provenance: Provenance) -> Self {
        let (precision, chosen) = (precision.to_owned(), BTreeMap::new());
        Self {
            format: format_of(&config, false, false, false),
            precision,
            config,
            chosen,
            provenance,
            chain: None,
            columns: None,
            categories: None,
            imputer: None,
        }
    }

    /// Describes a flow.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] if a part of it does not say what it is, [`Error::Input`] if its base density is
    /// one of the user's own.
    pub(crate) fn of<B: Backend>(flow: &Flow<B>) -> Result<Self, Error> {
        if flow.base().config().as_ref() != Some(flow.config().base()) {
            return Err(Error::Input(format!(
                "a model over a base density that its configuration does not describe cannot be saved: this one is over \
                 a {}, the configuration says {}",
                flow.base().describe(),
                flow.config().base()
            )));
        }
        let stages = flow.stages()?;
        let chain = (stages != flow.config().stages()).then_some(stages);
        let columns = StoredColumns::of(flow.columns());
        let categories = flow.categories().map(StoredCategories::of);
        let chosen = [("training", Phase::Training), ("evaluation", Phase::Evaluation)];
        Ok(Self {
            format: format_of(flow.config(), chain.is_some(), columns.is_some(), categories.is_some()),
            precision: B::Elem::NAME.to_owned(),
            config: flow.config().clone(),
            chosen: chosen.map(|(name, phase)| (name.to_owned(), flow.resolved(phase).to_string())).into(),
            provenance: flow.provenance().clone(),
            chain,
            columns,
            categories,
            imputer: flow.imputer().map(|imputer| Self::of(imputer.flow()).map(Box::new)).transpose()?,
        })
    }

    /// The classes of its configuration.
    pub(crate) fn classes(&self) -> usize {
        self.config.classes()
    }

    /// Checks the document before anything is allocated by it: what it describes must be there, in tensors and numbers.
    fn check(&self, tensors: u64, stored: u64) -> Result<(), CheckpointError> {
        let (listed, mapped) = (self.chain.is_some(), self.columns.is_some());
        if self.format != format_of(&self.config, listed, mapped, self.categories.is_some()) {
            return Err(CheckpointError::Format(format!(
                "format {}, this version reads {FORMAT}, {LISTED} with a list of transforms, {EXTENDED} with another \
                 base density than the standard normal, a start as the identity or maps of columns, {CONDITIONAL} with a \
                 context, {CATEGORICAL} with categories, and {DEQUANTISED} with variational dequantisation",
                self.format
            )));
        }
        self.config.check()?;
        let (maps, knots) = match &self.columns {
            Some(columns) if self.config.rows().is_some() => columns.size(self.config.dimension())?,
            Some(_) => return Err(CheckpointError::Format("maps of columns of images".into())),
            None => (0, 0),
        };
        let size = match &self.chain {
            None => self.config.size(),
            Some(stages) => {
                let rest = self.config.base_size().plus(self.config.context_size());
                let rest = rest.plus(self.config.dequantiser_size());
                Repeated::once(stages.clone()).size().plus(rest)
            }
        };
        let context = self.config.context().map_or(0, |context| context.columns);
        let contexts = 2 * context as u64;
        let (factors, shares) = self.categories.as_ref().map_or(Ok((0, 0)), |categories| categories.size(context))?;
        let Size { parameters, buffers, tensors: least, .. } = size;
        let own = (2 * self.config.dimension() as u64).saturating_add(knots);
        let numbers = parameters.saturating_add(buffers).saturating_add(own).saturating_add(contexts);
        let numbers = numbers.saturating_add(shares);
        if numbers > stored {
            let problem = format!("{numbers} numbers configured, {stored} numbers stored");
            return Err(CheckpointError::Format(problem));
        }
        let least = least.saturating_add(maps).saturating_add(factors);
        if least > tensors {
            let problem = format!("parts of {least} tensors configured, {tensors} tensors stored");
            return Err(CheckpointError::Format(problem));
        }
        Ok(())
    }

    /// How much the transforms store if their singular vectors are those of larger images.
    fn size_at(&self, larger: &ImageConfig) -> Size {
        let (Some(stages), Some(own)) = (&self.chain, self.config.images()) else {
            return ModelConfig::from(larger).size();
        };
        let scaled = |stage: &Stage| {
            let mut stage = stage.clone();
            if let Stage::ResidualBlock { shape, .. }
            | Stage::InvertedBlock { shape, .. }
            | Stage::MonotoneBlock { shape, .. } = &mut stage
                && let [h, w, _] = &mut shape[..]
            {
                let by = |n: usize, to: usize, from: usize| n.saturating_mul(to) / from.max(1);
                (*h, *w) = (by(*h, larger.height, own.height), by(*w, larger.width, own.width));
            }
            stage
        };
        let larger = ModelConfig::from(larger);
        let base = larger.base_size().plus(larger.context_size()).plus(larger.dequantiser_size());
        Repeated::once(stages.iter().map(scaled).collect()).size().plus(base)
    }

    /// Builds the flow that it describes, with zeros to be filled.
    fn zeros<B: Backend>(&self, backend: B, registry: &Registry<B>) -> Result<Flow<B>, Error> {
        let Some(stages) = &self.chain else { return Ok(Flow::zeros(backend, &self.config)?) };
        let transforms = architecture::described(&backend, stages, registry)?;
        Flow::from_transforms(backend, &self.config, transforms)
    }
}

impl<B: Backend> Flow<B> {
    /// Stores all tensors under a prefix, the columns' centres (`mean`) and scales (`deviation`) and knots with them.
    pub(crate) fn store(&self, prefix: &str, archive: &mut Archive) -> Result<(), Error> {
        let mut failed = None;
        self.visit(&mut |name, tensor, _| match self.backend().download(tensor) {
            Ok(values) => {
                let shape = self.backend().shape(tensor).to_vec();
                archive.tensors.insert(format!("{prefix}{name}"), (shape, Values::of(&values)));
            }
            Err(e) => failed = Some(e),
        });
        let s = self.standardiser();
        for (name, values) in [("mean", s.mean()), ("deviation", s.deviation())] {
            let entry = (vec![values.len()], Values::F64(values.to_vec()));
            archive.tensors.insert(format!("{prefix}standardise.{name}"), entry);
        }
        if let Some(s) = self.context().map(FlowContext::standardiser) {
            for (name, values) in CONTEXT.into_iter().zip([s.mean(), s.deviation()]) {
                let entry = (vec![values.len()], Values::F64(values.to_vec()));
                archive.tensors.insert(format!("{prefix}{name}"), entry);
            }
        }
        let of_categories = self.categories().map(StoredCategories::tensors).unwrap_or_default();
        for (name, shape, values) in StoredColumns::tensors(self.columns()).chain(of_categories) {
            archive.tensors.insert(format!("{prefix}{name}"), (shape, Values::F64(values)));
        }
        if let Some(imputer) = self.imputer() {
            imputer.flow().store(&format!("{prefix}{IMPUTER}"), archive)?;
        }
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    /// Builds a flow from the tensors under a prefix; every tensor of the prefix must be used.
    pub(crate) fn restore(
        backend: B,
        document: &ModelDocument,
        prefix: &str,
        archive: &Archive,
        registry: &Registry<B>,
    ) -> Result<Self, Error> {
        let of_imputer = document.imputer.as_ref().map(|_| format!("{prefix}{IMPUTER}"));
        let is_own = |name: &str| {
            name.starts_with(prefix) && of_imputer.as_ref().is_none_or(|others| !name.starts_with(others.as_str()))
        };
        let own = archive.tensors.iter().filter(|(name, _)| is_own(name));
        let stored = own.clone().map(|(_, (_, values))| values.len() as u64).sum();
        document.check(own.clone().count() as u64, stored)?;
        let mut flow = document.zeros(backend.clone(), registry)?;
        let larger = flow.size_of_vectors(prefix, archive);
        if let Some(config) = &larger {
            config.check()?;
            let size = document.size_at(config);
            if size.parameters.saturating_add(size.buffers) > stored {
                let problem = "singular vectors of an image size that the file does not hold".into();
                return Err(CheckpointError::Format(problem).into());
            }
            flow = match &document.chain {
                None => Self::zeros(backend.clone(), &config.into())?,
                Some(_) => flow.resized(config.height, config.width)?,
            };
        }
        let mut failed = None;
        let mut used = 2;
        flow.visit_mut(&mut |name, tensor, _| {
            let shape = backend.shape(tensor);
            used += 1;
            match archive.get::<B::Elem>(&format!("{prefix}{name}"), &shape) {
                Ok(values) => *tensor = backend.upload(&values, shape),
                Err(e) => failed = failed.take().or(Some(e)),
            }
        });
        let report = &mut |name: String, length: f64| {
            let unit = (length - 1.0).abs() <= UNIT;
            if failed.is_none() && !unit {
                let problem = "is no unit vector, so σ = uᵀWv would bound nothing".into();
                failed = Some(CheckpointError::Tensor { name, problem });
            }
        };
        flow.chain().vector_lengths(&backend, "links", report)?;
        if let Some(dequantiser) = flow.dequantiser() {
            dequantiser.vector_lengths(&backend, "dequantiser", report)?;
        }
        if let Some(e) = failed {
            return Err(e.into());
        }
        flow.chain().check_stored(&backend, &format!("{prefix}links"))?;
        if let Some(dequantiser) = flow.dequantiser() {
            dequantiser.check_stored(&backend, &format!("{prefix}dequantiser"))?;
        }
        if let (Some(_), [height, width, _]) = (&larger, &document.config.sample_shape()[..]) {
            flow = flow.resized(*height, *width)?;
        }
        let d = [document.config.dimension()];
        let mean = archive.get::<f64>(&format!("{prefix}standardise.mean"), &d)?;
        let deviation = archive.get::<f64>(&format!("{prefix}standardise.deviation"), &d)?;
        let standardiser = Standardiser::new(mean, deviation)?;
        let mut names: Vec<String> = document.columns.iter().flat_map(StoredColumns::names).collect();
        flow.set_columns(match &document.columns {
            None => ColumnMaps::from(standardiser),
            Some(columns) => {
                columns.restore(&standardiser, |name, shape| archive.get::<f64>(&format!("{prefix}{name}"), shape))?
            }
        })?;
        let mut of_context = &CONTEXT[..0];
        if let Some(context) = flow.context_mut() {
            let [mean, deviation] =
                CONTEXT.map(|name| archive.get::<f64>(&format!("{prefix}{name}"), &[context.columns()]));
            context.set_standardiser(Standardiser::new(mean?, deviation?)?)?;
            of_context = &CONTEXT;
        }
        if let Some(categories) = &document.categories {
            let found = categories.restore(|name, shape| archive.get::<f64>(&format!("{prefix}{name}"), shape))?;
            flow.set_categories(Some(found))?;
            names.extend(categories.layout().into_iter().map(|(name, _)| name));
        }
        if own.clone().count() != used + names.len() + of_context.len() {
            let mut known = BTreeSet::from(["mean", "deviation"].map(|n| format!("{prefix}standardise.{n}")));
            known.extend(of_context.iter().map(|name| format!("{prefix}{name}")));
            known.extend(names.iter().map(|name| format!("{prefix}{name}")));
            flow.visit(&mut |name, _, _| {
                known.insert(format!("{prefix}{name}"));
            });
            let name = own.map(|(name, _)| name.clone()).find(|name| !known.contains(name)).unwrap_or_default();
            let problem = "does not belong to this architecture".into();
            return Err(CheckpointError::Tensor { name, problem }.into());
        }
        flow.set_provenance(document.provenance.clone());
        if let (Some(of_imputer), Some(prefix)) = (&document.imputer, &of_imputer) {
            if of_imputer.imputer.is_some() {
                return Err(CheckpointError::Format("an imputer with an imputer of its own".into()).into());
            }
            let own = Self::restore(backend, of_imputer, prefix, archive, &Registry::new())?;
            flow.set_imputer(Imputer::new(own)?)?;
        }
        Ok(flow)
    }

    /// The configuration at the image size that a file's singular vectors are for, if that is larger than the flow's: a
    /// flow that was resized to smaller images keeps the vectors that bound it.
    fn size_of_vectors(&self, prefix: &str, archive: &Archive) -> Option<ImageConfig> {
        let config = self.config().images()?;
        let mut size = None;
        self.visit(&mut |name, tensor, _| {
            let own = self.backend().shape(tensor);
            if size.is_none() && own.rank() == 4 && name.rsplit_once('.').is_some_and(|(_, last)| last == "u") {
                let found = archive.tensors.get(&format!("{prefix}{name}")).map(|(shape, _)| &shape[..]);
                size = Some(match found {
                    // all convolutions of a flow are resized together
                    Some([1, h, w, c]) if *c == own[3] => [
                        config.height.saturating_mul(*h) / own[1].max(1),
                        config.width.saturating_mul(*w) / own[2].max(1),
                    ],
                    _ => [config.height, config.width],
                });
            }
        });
        let [height, width] = size.filter(|[h, w]| *h >= config.height && *w >= config.width)?;
        let larger = height > config.height || width > config.width;
        larger.then(|| ImageConfig { height, width, ..config.clone() })
    }

    /// Returns the contents of the flow's model file.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Input`] for a base
    /// density of your own, [`Error::Backend`] if the device failed.
    pub fn to_archive(&self) -> Result<Archive, Error> {
        let document = serde_json::json!({ "model": document_value(&ModelDocument::of(self)?)? });
        let mut archive = Archive { tensors: BTreeMap::new(), document };
        self.store("", &mut archive)?;
        Ok(archive)
    }

    /// Builds the flow of a model file's contents.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for anything that does not belong together, [`Error::Config`] for a part that only
    /// a registry knows.
    pub fn from_archive(backend: B, archive: &Archive) -> Result<Self, Error> {
        Self::from_archive_with(backend, archive, &Registry::new())
    }

    /// Builds the flow of a model file's contents, with parts of your own that the registry makes.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for anything that does not belong together, [`Error::Config`] for a part that is
    /// not in the registry.
    pub fn from_archive_with(backend: B, archive: &Archive, registry: &Registry<B>) -> Result<Self, Error> {
        if archive.is_run() {
            let problem = "it is the state of a run: load the model.safetensors beside it, take `Archive::into_model`, or go on \
                           with the run by `Trainer::resume`";
            return Err(CheckpointError::Format(problem.into()).into());
        }
        Self::restore(backend, &model_document(archive)?, "", archive, registry)
    }

    /// Moves the model to another device or precision.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Config`] for one that
    /// only a registry knows, [`Error::Backend`] if a device failed.
    pub fn to_backend<C: Backend>(&self, backend: C) -> Result<Flow<C>, Error> {
        Flow::from_archive(backend, &self.to_archive()?)
    }

    /// Moves a model with parts of your own to another device or precision.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Config`] for one that is
    /// not in the registry, [`Error::Backend`] if a device failed.
    pub fn to_backend_with<C: Backend>(&self, backend: C, registry: &Registry<C>) -> Result<Flow<C>, Error> {
        Flow::from_archive_with(backend, &self.to_archive()?, registry)
    }

    /// [Seals](Self::seal) the flow and writes it atomically: what is scored from here on, by this flow or by one that is loaded from the
    /// file, is what is certified. A flow that a validation has kept is sealed already, and keeps its bits. The contents of
    /// [`to_archive`](Self::to_archive) are those of the flow as it is.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Backend`] if the device
    /// failed, [`Error::Checkpoint`] if the file system refused.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.seal()?;
        Ok(self.to_archive()?.write(path.as_ref())?)
    }

    /// Reads a model.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file cannot be read or is not a model, [`Error::Config`] if it has a part
    /// that only a registry knows.
    pub fn load(backend: B, path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_with(backend, path, &Registry::new())
    }

    /// Reads a model with parts of your own.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file cannot be read or is not a model, [`Error::Config`] if it has a part
    /// that is not in the registry.
    pub fn load_with(backend: B, path: impl AsRef<Path>, registry: &Registry<B>) -> Result<Self, Error> {
        Self::from_archive_with(backend, &Archive::read(path.as_ref())?, registry)
    }
}

pub(crate) fn document_value<T: Serialize>(document: &T) -> Result<serde_json::Value, CheckpointError> {
    serde_json::to_value(document).map_err(|e| CheckpointError::Format(e.to_string()))
}

/// The part of the metadata under a key.
pub(crate) fn section<T: serde::de::DeserializeOwned>(archive: &Archive, key: &str) -> Result<T, CheckpointError> {
    let missing = || {
        CheckpointError::Format(if archive.document.get(VARIATIONAL_RUN).is_some() {
            "it is the state of a variational run: go on with it by `VariationalTrainer::resume`".into()
        } else if key != VARIATIONAL_RUN && archive.document.get(VARIATIONAL).is_some() {
            "it is a variational flow, from latents to samples: load it with `VariationalFlow::load`".into()
        } else if key == "model" && archive.document.get(CATEGORICAL_DENSITY).is_some() {
            "it is a probability of categories alone, without numbers: load it with `CategoricalDensity::load`".into()
        } else {
            format!("the metadata has no section `{key}`: another kind of resflow file?")
        })
    };
    let value = archive.document.get(key).ok_or_else(missing)?;
    T::deserialize(value).map_err(|e| CheckpointError::Format(format!("the metadata's section `{key}`: {e}")))
}

pub(crate) fn model_document(archive: &Archive) -> Result<ModelDocument, CheckpointError> {
    section(archive, "model")
}

/// Returns the configuration inside a model file.
///
/// # Errors
/// Returns [`CheckpointError::Format`] if there is none, [`CheckpointError::Config`] if it is invalid.
pub fn model_config(archive: &Archive) -> Result<ModelConfig, CheckpointError> {
    let config = model_document(archive)?.config;
    config.check()?;
    Ok(config)
}

/// Returns the precision that a model was made in, `"f32"` or `"f64"`.
///
/// # Errors
/// Returns [`CheckpointError::Format`] if there is none.
pub fn model_precision(archive: &Archive) -> Result<String, CheckpointError> {
    Ok(model_document(archive)?.precision)
}
