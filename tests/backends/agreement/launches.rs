//! How much a training step asks of a GPU: the number of launches, which of rows is the same on every adapter.

#[path = "../../../benches/common/mod.rs"]
#[expect(dead_code, reason = "shared with programs that use all of it")]
mod common;

use std::collections::BTreeMap;

use common::{WORKLOADS, Workload};
use resflow::Wgpu;
use resflow::backend::Key;
use resflow::config::Preset;
use resflow::data::image::ImageSet;
use resflow::flow::Flow;
use resflow::train::{Budget, Source, TrainConfig, Trainer};

use crate::device;

/// The most launches of so many steps, whose series have different lengths, and a table of the kernels of the last.
fn count(gpu: &Wgpu, trainer: &mut Trainer<Wgpu>, steps: usize) -> (u64, String) {
    // transforms are set by the first batch, and what is made once is made
    trainer.step().expect("a finite step");
    let (mut most, mut kernels) = (0, Vec::new());
    for _ in 0..steps {
        let before: BTreeMap<String, u64> = gpu.launches();
        let launches = gpu.statistics().launches;
        trainer.step().expect("a finite step");
        most = most.max(gpu.statistics().launches - launches);
        let after = gpu.launches();
        kernels = after.into_iter().map(|(name, n)| (n - before.get(&name).unwrap_or(&0), name)).collect();
    }
    kernels.retain(|(n, _)| *n > 0);
    kernels.sort_by(|a, b| b.cmp(a));
    let lines: Vec<String> = kernels.iter().map(|(n, name)| format!("{n:6} {name}")).collect();
    (most, lines.join("\n"))
}

fn workload(name: &str, limit: u64) {
    let Some(gpu) = device::open() else { return };
    let workload = WORKLOADS.into_iter().find(|w| w.name == name).expect("a workload");
    // software Vulkan takes minutes for the 500 rows of both, whose steps are 95 and 113 launches; these are 95 and 114
    let workload = Workload { batch: 64, ..workload };
    let mut trainer = workload.trainer(gpu.clone(), workload.training()).expect("a workload that fits");
    let (launches, kernels) = count(&gpu, &mut trainer, 3);
    println!("{name}: {launches} launches\n{kernels}");
    assert!(launches <= limit, "{name}: {launches} launches, more than {limit}\n{kernels}");
}

#[test]
fn a_toy_step() {
    workload("toy", 150);
}

#[test]
fn a_tabular_step() {
    workload("tabular", 150);
}

/// The preset as it is trained, on fewer images. 596 launches on software Vulkan, of four images 587. How some products are cut, and so how many
/// launches they are, depends on the adapter and the batch.
#[test]
fn a_step_of_mnist_small() {
    let Some(gpu) = device::open() else { return };
    let images = 4;
    let bytes = (0..images * 784).map(|e| ((e * 37) % 251) as u8).collect();
    let set = ImageSet::new(28, 28, 1, bytes, None).expect("bytes of images");
    let preset = Preset::MnistSmall;
    let flow = Flow::new(gpu.clone(), preset.flow(), Key::new(1)).expect("a preset");
    let settings = TrainConfig { batch: 2, validation_rows: 2, ..TrainConfig::of_preset(preset) };
    let mut trainer =
        Trainer::new(flow, Source::from(set), &settings, Budget::Steps(100), Key::new(2)).expect("images that fit");
    let (launches, kernels) = count(&gpu, &mut trainer, 2);
    println!("mnist-small: {launches} launches\n{kernels}");
    assert!(launches <= 600, "mnist-small: {launches} launches\n{kernels}");
}
