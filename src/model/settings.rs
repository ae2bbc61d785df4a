//! The settings of a fit: those that were asked for, and for the others the defaults of the data, which are the program's.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config::{ContextConfig, Family, FlowConfig, ModelConfig};
use crate::data::Dataset;
use crate::error::ConfigError;
use crate::train::TrainConfig;

/// Settings by name, as in the sections of a configuration file.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    pub(super) model: Map<String, Value>,
    pub(super) train: Map<String, Value>,
}

impl Named {
    /// Lays them over an architecture and over the settings of its training, which is told what was made of the first.
    fn over(
        self,
        model: ModelConfig,
        train: impl FnOnce(&ModelConfig) -> TrainConfig,
    ) -> Result<(ModelConfig, TrainConfig), ConfigError> {
        let shape = model.sample_shape();
        let model: ModelConfig = match model {
            ModelConfig::Rows(own) => laid_over(own, self.model)?.into(),
            ModelConfig::Images(own) => laid_over(own, self.model)?.into(),
        };
        model.check()?;
        if model.sample_shape() != shape {
            let found = model.sample_shape();
            let problem = format!("the settings say samples of shape {found:?}, those of the data are {shape:?}");
            return Err(ConfigError::Inconsistent(problem));
        }
        let train = laid_over(train(&model), self.train)?;
        train.check()?;
        let train = if model.rows().is_some() { train.with_fitting_base(&model) } else { train };
        Ok((model, train))
    }
}

/// Settings with those that are named in their place.
fn laid_over<T: Serialize + DeserializeOwned>(settings: T, named: Map<String, Value>) -> Result<T, ConfigError> {
    let syntax = |e: serde_json::Error| ConfigError::Syntax(e.to_string());
    let mut all = serde_json::to_value(settings).map_err(syntax)?;
    if let Value::Object(all) = &mut all {
        all.extend(named);
    }
    serde_json::from_value(all).map_err(syntax)
}

/// Returns the architecture and the settings of training for some data, `None` being what was not asked for.
pub(super) fn settings(
    family: Option<Family>,
    model: Option<ModelConfig>,
    train: Option<TrainConfig>,
    named: Option<Named>,
    data: &Dataset,
) -> Result<(ModelConfig, TrainConfig), ConfigError> {
    let model = match (model, family) {
        (Some(model), Some(family)) if model.family() != family => {
            let own = model.family();
            return Err(ConfigError::Inconsistent(format!("the family is to be {family}, the model is of {own}")));
        }
        (Some(model), _) => model,
        (None, family) => default_model(family, data)?,
    };
    let train = |model: &ModelConfig| match (train, data.table()) {
        (Some(train), _) => train,
        // a model that was asked for need not begin at its base
        (None, Some(table)) => TrainConfig::for_table(model.family(), table.rows()).with_fitting_base(model),
        (None, None) => TrainConfig::for_model(model),
    };
    if let Some(named) = named {
        return named.over(model, train);
    }
    let train = train(&model);
    Ok((model, train))
}

/// The default architecture of a family for some data.
fn default_model(family: Option<Family>, data: &Dataset) -> Result<ModelConfig, ConfigError> {
    let model: ModelConfig = match data.table() {
        Some(table) => FlowConfig::for_table(family.unwrap_or_default(), table.rows(), table.width()).into(),
        None => match (ModelConfig::for_shape(&data.sample_shape())?, family) {
            (ModelConfig::Images(images), Some(family)) => images.of(family).into(),
            (model, _) => model,
        },
    };
    // samples that have contexts are fitted given these
    let model = model.with_context(data.samples().context_width().map(ContextConfig::new));
    model.check()?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{BaseConfig, Start};
    use crate::data::Table;
    use crate::data::image::ImageSet;

    /// So many rows of three columns.
    fn table(rows: usize) -> Dataset {
        Table::new(None, 3, (0..3 * rows).map(|i| (i as f64).sin()).collect()).expect("a table").into()
    }

    #[test]
    fn tables_have_the_settings_of_the_program() {
        for rows in [5, 200, 3000] {
            for family in Family::ALL {
                let found = settings(Some(family), None, None, None, &table(rows)).expect("defaults");
                let model = ModelConfig::from(FlowConfig::for_table(family, rows, 3));
                assert_eq!(found, (model, TrainConfig::for_table(family, rows)), "{family}, {rows} rows");
                assert_eq!(found.1.fit_base, rows >= 10);
            }
            let (model, _) = settings(None, None, None, None, &table(rows)).expect("defaults");
            assert_eq!((model.family(), model.start()), (Family::Residual, Start::Identity));
        }
    }

    #[test]
    fn training_fits_the_model_that_is_asked_for() {
        let data = table(200);
        let train = TrainConfig::for_table(Family::Nsf, 200);
        let random = FlowConfig::of(Family::Nsf, 3);
        let student = FlowConfig { base: BaseConfig::StudentT, ..FlowConfig::for_table(Family::Nsf, 200, 3) };
        let identity = FlowConfig { blocks: 2, ..FlowConfig::for_table(Family::Nsf, 200, 3) };
        for (model, fit_base) in [(random, false), (student, false), (identity, true)] {
            let model = ModelConfig::from(model);
            let found = settings(None, Some(model.clone()), None, None, &data).expect("a model that fits");
            assert_eq!(found, (model, TrainConfig { fit_base, ..train.clone() }));
        }
        // what is asked for stays as it is
        let asked = TrainConfig { fit_base: true, ..TrainConfig::default() };
        let own = ModelConfig::from(FlowConfig::new(3));
        let found = settings(None, Some(own.clone()), Some(asked.clone()), None, &data).expect("both");
        assert_eq!(found, (own.clone(), asked.clone()));
        let found = settings(Some(Family::Glow), None, Some(asked.clone()), None, &data).expect("training");
        assert_eq!(found, (ModelConfig::from(FlowConfig::for_table(Family::Glow, 200, 3)), asked));
        let error = settings(Some(Family::Nsf), Some(own), None, None, &data).expect_err("two families");
        assert!(error.to_string().contains("nsf") && error.to_string().contains("residual"), "{error}");
    }

    #[test]
    fn images_have_theirs() {
        let set = ImageSet::new(16, 16, 1, vec![7; 4 * 256], None).expect("four images");
        let data = Dataset::from(set);
        let model = ModelConfig::for_shape(&[16, 16, 1]).expect("a model");
        let found = settings(None, None, None, None, &data).expect("defaults");
        assert_eq!(found, (model.clone(), TrainConfig::for_model(&model)));
        let (glow, _) = settings(Some(Family::Glow), None, None, None, &data).expect("a family of images");
        assert_eq!(glow.family(), Family::Glow);
        assert!(settings(Some(Family::Nsf), None, None, None, &data).is_err(), "splines are for rows");
    }

    #[test]
    fn named_settings_lie_over_the_defaults() {
        let named = |model: Value, train: Value| {
            let map = |value: Value| value.as_object().cloned().unwrap_or_default();
            Some(Named { model: map(model), train: map(train) })
        };
        let data = table(200);
        let model = FlowConfig { blocks: 3, ..FlowConfig::for_table(Family::Residual, 200, 3) };
        let train = TrainConfig { batch: 50, ..TrainConfig::for_table(Family::Residual, 200) };
        let asked = named(json!({ "blocks": 3 }), json!({ "batch": 50 }));
        assert_eq!(settings(None, None, None, asked, &data).expect("settings"), (model.into(), train));
        // what a fitted base needs is asked of the model that comes of it
        let (_, train) =
            settings(None, None, None, named(json!({ "start": "random" }), json!({})), &data).expect("both");
        assert!(!train.fit_base);
        for (model, train, expected) in [
            (json!({ "block": 3 }), json!({}), "unknown field `block`"),
            (json!({ "blocks": 0 }), json!({}), "`blocks` is 0"),
            (json!({ "dimension": 2 }), json!({}), "the data are [3]"),
            (json!({}), json!({ "batch": "many" }), "invalid type"),
            (json!({}), json!({ "learning_rate": -1.0 }), "`learning_rate` is -1"),
        ] {
            let error = settings(None, None, None, named(model, train), &data).expect_err(expected).to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
