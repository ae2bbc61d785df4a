//! Which preset a run on images begins from, and the list of them.

use std::fmt::Write as _;

use anyhow::Result;
use resflow::config::{Family, ModelConfig, Preset};
use resflow::data::image::ImageSize;
use resflow::train::TrainConfig;

use crate::data::model_size;
use crate::failure::usage;
use crate::settings::Settings;

/// The preset that was asked for, or the small one for images of this size. Where a configuration file has the last word
/// about the size, the small one for their channels.
pub(crate) fn choose(asked: Option<Preset>, found: ImageSize, configured: bool) -> Result<Preset> {
    if let Some(preset) = asked {
        return Ok(preset);
    }
    let small = [Preset::MnistSmall, Preset::Cifar10Small];
    if let Some(preset) = small.into_iter().find(|p| model_size(&p.flow()) == found) {
        return Ok(preset);
    }
    if configured {
        return Ok(if found.channels == 1 { Preset::MnistSmall } else { Preset::Cifar10Small });
    }
    Err(usage(format_args!(
        "no preset for images of {found} unless one is named with --preset:\n{}height, width and channels in the section \
         [images] of a --config FILE set any size",
        listing()
    )))
}

/// What a run of a family begins from.
pub(crate) fn settings(preset: Preset, family: Family) -> Settings {
    Settings {
        model: ModelConfig::Images(preset.flow().of(family)),
        train: TrainConfig::of_preset(preset).for_family(family),
    }
}

/// Whether settings are for images of this size; `preset` is where they come from.
pub(crate) fn check(settings: &Settings, preset: Preset, found: ImageSize) -> Result<()> {
    match settings.model.images().map(model_size) {
        Some(wanted) if wanted != found => Err(usage(format_args!(
            "preset {preset} is for images of {wanted}, the data are images of {found}; height, width and channels in the \
             section [images] of a --config FILE make it one for them"
        ))),
        _ => Ok(()),
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
         flow of another\nfamily of each: of couplings there are twice as many, and nothing is fully connected):\n{}",
        listing()
    )
}
