//! Which preset a run on images begins from, and the list of them.

use std::fmt::Write as _;

use anyhow::Result;
use resflow::config::{Family, FlowConfig, ModelConfig, Preset};
use resflow::data::image::ImageSize;
use resflow::estimator::{Estimator, Law};
use resflow::train::TrainConfig;

use crate::data::model_size;
use crate::failure::usage;
use crate::settings::Settings;

/// What a run on images begins from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Preset(Preset),
    /// The library's model for images of a size that no small preset has.
    Size(ImageSize),
}

/// The preset that was asked for, the small one for images of this size, or the model for their size. Where a
/// configuration says the size itself, the small preset for their channels, as such files have always had it.
pub(crate) fn choose(asked: Option<Preset>, found: ImageSize, sized_by_file: bool) -> Start {
    if let Some(preset) = asked {
        return Start::Preset(preset);
    }
    let small = [Preset::MnistSmall, Preset::Cifar10Small];
    match small.into_iter().find(|p| model_size(&p.flow()) == found) {
        Some(preset) => Start::Preset(preset),
        None if sized_by_file && found.channels == 1 => Start::Preset(Preset::MnistSmall),
        None if sized_by_file => Start::Preset(Preset::Cifar10Small),
        None => Start::Size(found),
    }
}

impl Start {
    /// The settings of a family.
    pub(crate) fn settings(self, family: Family) -> Result<Settings> {
        match self {
            Self::Preset(preset) => Ok(settings(preset, family)),
            Self::Size(ImageSize { height, width, channels }) => {
                let model = ModelConfig::for_shape(&[height, width, channels]).map_err(usage)?;
                let model = match model {
                    ModelConfig::Images(images) => ModelConfig::Images(images.of(family)),
                    rows @ ModelConfig::Rows(_) => rows,
                };
                let train = TrainConfig::for_model(&model);
                Ok(Settings { model, train })
            }
        }
    }

    /// Whether settings that began from it are for images of this size.
    pub(crate) fn check(self, settings: &Settings, found: ImageSize) -> Result<()> {
        let Some(wanted) = settings.model.images().map(model_size).filter(|wanted| *wanted != found) else {
            return Ok(());
        };
        let start = match self {
            Self::Preset(preset) => format!("preset {preset}"),
            Self::Size(_) => "the configuration".to_owned(),
        };
        Err(usage(format_args!(
            "{start} is for images of {wanted}, the data are images of {found}; height, width and channels in the section \
             [images] of a --config FILE make it one for them, and without --preset every size has a model"
        )))
    }

    /// What is begun from where no preset was found, in words.
    pub(crate) fn describe(self, model: &ModelConfig) -> Option<String> {
        let (Self::Size(size), Some(images)) = (self, model.images()) else { return None };
        let kind = if images.model.couples() { "couplings" } else { "blocks" };
        let blocks: Vec<_> = images.blocks.iter().map(ToString::to_string).collect();
        let scales = if blocks.len() == 1 { "one scale".to_owned() } else { format!("{} scales", blocks.len()) };
        Some(format!(
            "no preset is for images of {size}: {} {kind} of {} filters on {scales}, {:.1}M parameters; config.toml has all \
             settings, and --config FILE changes them",
            blocks.join("-"),
            images.filters,
            images.parameters() as f64 / 1e6
        ))
    }
}

/// Whether a roulette's law is that of what is begun from without a word about it: what the library chose it does not
/// warn of.
pub(crate) fn is_own_law(model: &ModelConfig, law: Law) -> bool {
    let of = |estimator: &Estimator| match estimator {
        Estimator::RussianRoulette(roulette) => Some(roulette.law),
        Estimator::Auto(auto) => Some(auto.otherwise.law),
        _ => None,
    };
    let own: Vec<ModelConfig> = match model {
        ModelConfig::Rows(rows) => vec![FlowConfig::of(rows.model, rows.dimension).into()],
        ModelConfig::Images(images) => Preset::ALL.iter().map(|p| p.flow().of(images.model).into()).collect(),
    };
    own.iter().flat_map(|own| [of(own.training()), of(own.evaluation())]).any(|own| own == Some(law))
}

/// What a run of a family begins from.
pub(crate) fn settings(preset: Preset, family: Family) -> Settings {
    Settings {
        model: ModelConfig::Images(preset.flow().of(family)),
        train: TrainConfig::of_preset(preset).for_family(family),
    }
}

/// A line for each preset.
pub(crate) fn listing() -> String {
    let mut out = String::new();
    for preset in Preset::ALL {
        let flow = preset.flow();
        let train = TrainConfig::of_preset(preset);
        let bits = if flow.bits == 8 { String::new() } else { format!(" in {} bits", flow.bits) };
        // writing to a String cannot fail
        let _ = writeln!(
            out,
            "  {:<15}{}x{}x{}{bits}, {}x{} blocks of {} filters, {:.1}M parameters, {} steps of {}",
            preset.name(),
            flow.height,
            flow.width,
            flow.channels,
            flow.blocks.len(),
            flow.blocks[0],
            flow.filters,
            flow.parameters() as f64 / 1e6,
            train.steps,
            train.batch * train.accumulate
        );
    }
    out
}

/// The end of the help of `fit`.
pub(crate) fn help(examples: &str) -> String {
    format!(
        "{examples}\n\nPresets, for images; those named -small are for two cores, the others as published (--model makes a \
         flow of another\nfamily of each: of couplings there are twice as many, nothing is fully connected, and ffjord\nhas one equation a \
         scale, of a size of this program's own):\n{}",
        listing()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(height: usize, width: usize, channels: usize) -> ImageSize {
        ImageSize { height, width, channels }
    }

    #[test]
    fn every_size_has_a_start() {
        assert_eq!(choose(None, size(28, 28, 1), false), Start::Preset(Preset::MnistSmall));
        assert_eq!(choose(None, size(32, 32, 3), false), Start::Preset(Preset::Cifar10Small));
        assert_eq!(choose(Some(Preset::Mnist), size(9, 9, 1), false), Start::Preset(Preset::Mnist));
        // files that say the size themselves mean what they always meant
        assert_eq!(choose(None, size(8, 8, 1), true), Start::Preset(Preset::MnistSmall));
        assert_eq!(choose(None, size(8, 8, 4), true), Start::Preset(Preset::Cifar10Small));
        for (height, width, channels, scales) in [
            (27, 31, 1, 1),
            (16, 20, 1, 3),
            (16, 16, 3, 3),
            (1, 8, 1, 1),
            (1, 1, 1, 1),
            (30, 30, 4, 2),
            (128, 128, 3, 5),
            (250, 200, 3, 2),
            (301, 301, 3, 1),
            (512, 512, 1, 6),
        ] {
            let found = size(height, width, channels);
            let start = choose(None, found, false);
            assert_eq!(start, Start::Size(found));
            for family in Family::ALL.into_iter().filter(|family| family.takes_images()) {
                let settings = start.settings(family).expect("settings");
                start.check(&settings, found).expect("its own size");
                let Some(images) = settings.model.images() else { panic!("images") };
                assert!(family != Family::Residual || images.blocks.len() == scales, "{found}: {:?}", images.blocks);
                // one number has no two halves
                let couples = family.couples() && found == size(1, 1, 1);
                assert!(couples || settings.model.check().is_ok(), "{found}, {family}: {:?}", settings.model.check());
                assert!(images.parameters() < 40_000_000, "{found}, {family}: {}", images.parameters());
                let said = start.describe(&settings.model).expect("a line");
                assert!(!said.contains('\n') && said.contains(&found.to_string()), "{said}");
            }
        }
    }

    #[test]
    fn nobody_is_warned_of_what_was_not_chosen() {
        let poisson = Law::Poisson { rate: 2.0 };
        for preset in Preset::ALL {
            let model = settings(preset, Family::Residual).model;
            assert!(is_own_law(&model, poisson), "{preset}");
            assert!(!is_own_law(&model, Law::Poisson { rate: 3.0 }), "{preset}");
        }
        let rows = ModelConfig::from(FlowConfig::of(Family::Residual, 3));
        assert!(!is_own_law(&rows, poisson));
    }
}
