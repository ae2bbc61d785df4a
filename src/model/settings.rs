//! The settings of a fit: those that were asked for, and for the others the defaults of the data, which are the program's.

use crate::config::{ContextConfig, Family, FlowConfig, ModelConfig};
use crate::data::Dataset;
use crate::error::ConfigError;
use crate::train::TrainConfig;

/// Returns the architecture and the settings of training for some data, `None` being what was not asked for.
pub(super) fn settings(
    family: Option<Family>,
    model: Option<ModelConfig>,
    train: Option<TrainConfig>,
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
    let train = match (train, data.table()) {
        (Some(train), _) => train,
        // a model that was asked for need not begin at its base
        (None, Some(table)) => TrainConfig::for_table(model.family(), table.rows()).with_fitting_base(&model),
        (None, None) => TrainConfig::for_model(&model),
    };
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
    let model = model.with_context(data.samples().context().map(|contexts| ContextConfig::new(contexts.width())));
    model.check()?;
    Ok(model)
}

#[cfg(test)]
mod tests {
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
                let found = settings(Some(family), None, None, &table(rows)).expect("defaults");
                let model = ModelConfig::from(FlowConfig::for_table(family, rows, 3));
                assert_eq!(found, (model, TrainConfig::for_table(family, rows)), "{family}, {rows} rows");
                assert_eq!(found.1.fit_base, rows >= 10);
            }
            let (model, _) = settings(None, None, None, &table(rows)).expect("defaults");
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
            let found = settings(None, Some(model.clone()), None, &data).expect("a model that fits");
            assert_eq!(found, (model, TrainConfig { fit_base, ..train.clone() }));
        }
        // what is asked for stays as it is
        let asked = TrainConfig { fit_base: true, ..TrainConfig::default() };
        let own = ModelConfig::from(FlowConfig::new(3));
        let found = settings(None, Some(own.clone()), Some(asked.clone()), &data).expect("both");
        assert_eq!(found, (own.clone(), asked.clone()));
        let found = settings(Some(Family::Glow), None, Some(asked.clone()), &data).expect("training");
        assert_eq!(found, (ModelConfig::from(FlowConfig::for_table(Family::Glow, 200, 3)), asked));
        let error = settings(Some(Family::Nsf), Some(own), None, &data).expect_err("two families");
        assert!(error.to_string().contains("nsf") && error.to_string().contains("residual"), "{error}");
    }

    #[test]
    fn images_have_theirs() {
        let set = ImageSet::new(16, 16, 1, vec![7; 4 * 256], None).expect("four images");
        let data = Dataset::from(set);
        let model = ModelConfig::for_shape(&[16, 16, 1]).expect("a model");
        let found = settings(None, None, None, &data).expect("defaults");
        assert_eq!(found, (model.clone(), TrainConfig::for_model(&model)));
        let (glow, _) = settings(Some(Family::Glow), None, None, &data).expect("a family of images");
        assert_eq!(glow.family(), Family::Glow);
        assert!(settings(Some(Family::Nsf), None, None, &data).is_err(), "splines are for rows");
    }
}
