//! The training run behind a cell: `resflow fit` in a directory of the experiment, resumed if it was stopped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use resflow::backend::Key;
use resflow::config::ModelConfig;
use resflow::data::Dataset;
use resflow::train::TrainConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::laboratory::Laboratory;
use crate::arguments::{Fit, Model};
use crate::data::large::Largeness;
use crate::data::part::Part;
use crate::data::reading::TableOptions;
use crate::data::size::Size;
use crate::data::{Data, first};
use crate::failure::usage;
use crate::model::{Stored, read_archive};
use crate::output::write_file;
use crate::run::directory::RunDirectory;
use crate::run::illustration::Illustration;
use crate::run::learn::learn;
use crate::run::metrics::Entry;
use crate::settings::Settings;

/// A model to train.
#[derive(Debug)]
pub(super) struct Training<'a> {
    pub(super) name: String,
    pub(super) data: &'a str,
    pub(super) settings: Settings,
    pub(super) seed: u64,
    /// The time that it gets, in place of the settings' steps.
    pub(super) time: Option<Duration>,
    /// Whether to draw what `resflow fit` draws.
    pub(super) illustrated: bool,
}

/// What training took.
#[derive(Debug)]
pub(super) struct Spent {
    pub(super) steps: u64,
    /// In steps and validations, over all resumptions.
    pub(super) seconds: f64,
}

impl Training<'_> {
    /// All that the model is a function of.
    pub(super) fn specification(&self, laboratory: &Laboratory) -> Value {
        let mut specification = json!({
            "data": self.data,
            "seed": self.seed,
            "precision": laboratory.file.precision.name(),
            "model": self.settings.model,
            "train": self.settings.train,
        });
        // without a time it is what it was before there could be one
        if let Some(time) = self.time {
            specification["seconds"] = json!(time.as_secs_f64());
        }
        specification
    }

    /// A specification of these settings with all of them, where it was written before there were some.
    pub(super) fn completed(mut specification: Value) -> Value {
        fn complete<S: Serialize + DeserializeOwned>(settings: Option<&mut Value>) {
            let Some(settings) = settings else { return };
            let all = serde_json::from_value::<S>(settings.clone()).ok();
            if let Some(all) = all.and_then(|all| serde_json::to_value(all).ok()) {
                *settings = all;
            }
        }
        complete::<ModelConfig>(specification.pointer_mut("/trained/model"));
        complete::<TrainConfig>(specification.pointer_mut("/trained/train"));
        specification
    }

    pub(super) fn directory(&self, laboratory: &Laboratory) -> RunDirectory {
        RunDirectory::new(&laboratory.path("runs").join(&self.name))
    }

    /// Trains the model, or goes on with it, or finds that it is there.
    pub(super) fn run(&self, laboratory: &Laboratory) -> Result<(Stored, Spent)> {
        let directory = self.directory(laboratory);
        let config = self.write_settings(laboratory)?;
        let resume = directory.checkpoint().exists();
        let fit = Fit {
            #[cfg(feature = "mpi")]
            wait: None,
            data: self.data.to_owned(),
            preset: None,
            model: None,
            // the settings say how many classes there are
            classify: false,
            dequantisation: None,
            weight: None,
            given: Vec::new(),
            impute: false,
            reading: TableOptions::default(),
            regardless: true,
            size: Size::default(),
            largeness: Largeness::default(),
            out: directory.root().to_owned(),
            config: Some(config),
            seed: Some(self.seed),
            steps: self.time.is_none().then_some(self.settings.train.steps),
            time_limit: self.time,
            arithmetic: laboratory.arithmetic.clone(),
            resume,
            overwrite: !resume,
        };
        let data = Data::open(self.data)?;
        let illustration = if self.illustrated { Illustration::of(&data) } else { Illustration::Nothing };
        learn(&fit, data, illustration, None)?;
        let stored = Stored::open(&Model { path: fit.out, arithmetic: laboratory.arithmetic.clone() })?;
        let run = &read_archive(&directory.checkpoint())?.document["run"];
        let (steps, seconds) = (run["step"].as_u64().unwrap_or(0), run["elapsed"].as_f64().unwrap_or(0.0));
        Ok((stored, Spent { steps, seconds }))
    }

    /// Writes all settings beside the run; those of a run that was begun must be the same.
    fn write_settings(&self, laboratory: &Laboratory) -> Result<PathBuf> {
        let path = laboratory.path("runs").join(format!("{}.toml", self.name));
        let text = self.settings.to_toml(&format!("{}, seed {}", self.data.escape_default(), self.seed))?;
        match std::fs::read_to_string(&path) {
            Ok(there) if there == text => {}
            Ok(there) if !(there.lines().next() == text.lines().next() && self.settings.are_those_of(&there)) => {
                return Err(usage(format_args!(
                    "{}: the run was begun with other settings; remove both or choose another --out",
                    path.display()
                )));
            }
            _ => {
                std::fs::create_dir_all(laboratory.path("runs")).with_context(|| path.display().to_string())?;
                write_file(&path, text.as_bytes())?;
            }
        }
        Ok(path)
    }

    /// The logged steps.
    pub(super) fn entries(&self, laboratory: &Laboratory) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.directory(laboratory).metrics()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// Points that training never saw: fresh ones of a density, the test images of a data set. A table has none.
pub(super) fn held_out(stored: &Settings, name: &str, seed: u64, most: Option<usize>) -> Result<Option<Dataset>> {
    match Data::open(name)? {
        Data::Density(density) => {
            let key = Key::new(seed).named("test data");
            Ok(Some(density.sample(key, most.unwrap_or(FRESH)).into()))
        }
        Data::Large(_) => Ok(None),
        data @ Data::Stored(_) if data.table().is_some() => Ok(None),
        data @ Data::Stored(_) => Part { split: None }.of(data, name, &stored.model, most).map(Some),
    }
}

/// Fresh points of a density, unless a number is given.
const FRESH: usize = 10_000;

/// The points at which estimators are compared.
pub(super) fn points(settings: &Settings, name: &str, seed: u64, count: usize) -> Result<Dataset> {
    let data = match held_out(settings, name, seed, Some(count))? {
        Some(data) => data,
        None => Part { split: None }.of(Data::open(name)?, name, &settings.model, None)?,
    };
    if data.images().is_some() {
        return Err(usage(format_args!("{name}: exact log dets of images are out of reach; take rows")));
    }
    first(data, Some(count))
}
