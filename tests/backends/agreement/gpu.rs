//! Flows on a GPU, or on software Vulkan: how often the host waits, a device that disappears, and every family of flows.
//!
//! That the numbers are those of the CPU is the business of `agreement` and `golden`.

use crate::device;
use resflow::backend::{Backend, BackendError, Key};
use resflow::config::{
    Dequantisation, DequantisationConfig, Family, FlowConfig, GatedConfig, ImageConfig, ModelConfig,
};
use resflow::data::image::ImageSet;
use resflow::data::{Samples, Table, ToyDensity};
use resflow::error::Error;
use resflow::flow::Flow;
use resflow::invert::{Inversion, Method, Status};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{NdArray, Wgpu};

/// Images whose brightness follows a diagonal.
fn images(count: usize) -> ImageSet {
    let byte = |e: usize| (3 * (e / 64) + 11 * (e % 8) + 13 * (e / 8 % 8)) as u8;
    let labels = (0..count).map(|i| (i % 2) as u8).collect();
    ImageSet::new(8, 8, 1, (0..count * 64).map(byte).collect(), Some(labels)).expect("bytes of images")
}

fn small_images(family: Family) -> ModelConfig {
    let residual = ImageConfig { height: 8, width: 8, blocks: vec![2, 1], filters: 8, ..ImageConfig::default() };
    ImageConfig { fully_connected_width: 8, ..residual }.of(family).into()
}

fn gated_images() -> ModelConfig {
    let images = small_images(Family::FlowPlusPlus).images().cloned().expect("images");
    let kind = Dequantisation::Variational;
    let dequantisation = DequantisationConfig { blocks: 2, filters: 4, features: 4, ..DequantisationConfig::new(kind) };
    let gated = Some(GatedConfig { blocks: 1, heads: 2, most_pixels: 64 });
    ImageConfig { gated, dequantisation, blocks: vec![2], ..images }.into()
}

fn table(rows: usize, width: usize) -> Table {
    let values = (0..rows * width).map(|e| ((e * 37 % 101) as f64 / 50.0 - 1.0) * (1.0 + (e % width) as f64));
    Table::new(None, width, values.collect()).expect("finite rows")
}

fn hybrid() -> ModelConfig {
    let images = small_images(Family::Residual).images().cloned().expect("images");
    ImageConfig { classes: 2, head_width: 8, ..images }.into()
}

/// Rows in two dimensions, where log dets are exact, in 24, where they are estimated, and images, also with a classifier.
fn runs<B: Backend>(backend: &B) -> Vec<Trainer<B>> {
    let rows = |d| -> ModelConfig { FlowConfig { blocks: 3, hidden: vec![16, 16], ..FlowConfig::new(d) }.into() };
    let cases = [
        (rows(2), Source::Density(ToyDensity::Moons)),
        (rows(24), Source::from(table(200, 24))),
        (small_images(Family::Residual), Source::from(images(80))),
        (hybrid(), Source::from(images(80))),
    ];
    let settings = TrainConfig { batch: 24, validation_rows: 50, ..TrainConfig::default() };
    let run = |(config, source)| {
        let flow = Flow::new(backend.clone(), config, Key::new(1)).expect("a configuration");
        Trainer::new(flow, source, &settings, Budget::Steps(100), Key::new(2)).expect("data that fit")
    };
    cases.into_iter().map(run).collect()
}

/// A step reads back flag, loss and norm, and of a classifier cross-entropy and accuracy, once.
#[test]
fn a_training_step_waits_once() {
    let Some(gpu) = device::open() else { return };
    for mut trainer in runs(&gpu) {
        trainer.step().expect("the first step initialises");
        for _ in 0..3 {
            let before = gpu.statistics();
            trainer.step().expect("a finite step");
            let after = gpu.statistics();
            assert_eq!(after.read_backs - before.read_backs, 1, "{:?}", trainer.flow().config());
            let most = if trainer.flow().classifier().is_some() { 20 } else { 12 };
            assert!(after.bytes_read_back - before.bytes_read_back <= most);
        }
    }
}

/// An inversion asks which rows go on every eight iterations, then reads the report of each block, and the answer.
#[test]
fn an_inversion_waits_every_eight_iterations() {
    let Some(gpu) = device::open() else { return };
    let trainers = runs(&gpu);
    for trainer in &trainers {
        let prepared = trainer.flow().prepare();
        for method in [Method::FixedPoint, Method::Anderson(2)] {
            let how = Inversion::for_backend::<Wgpu>().with_method(method).expect("a history").with_check(false);
            let before = gpu.statistics().read_backs;
            let decoded = prepared.sample(20, Key::new(5), &how).expect("the device is sound");
            let waits = gpu.statistics().read_backs - before;
            let blocks = trainer.flow().transforms().iter().filter(|l| l.residual().is_some()).count() as u64;
            // the sum over blocks of the slowest row, at most
            let iterations: u64 =
                decoded.reports.iter().map(|r| u64::from(r.iterations)).max().unwrap_or(0) + 8 * blocks;
            assert!(waits <= iterations.div_ceil(8) + 2 * blocks + 1, "{waits} waits for {iterations} iterations");
            assert!(decoded.reports.iter().all(|r| r.status <= Status::FloatFloor));
        }
    }
}

fn losses<B: Backend>(trainer: &mut Trainer<B>, steps: usize) -> Vec<u64> {
    (0..steps).map(|_| trainer.step().expect("a finite step").train_nll.to_bits()).collect()
}

/// A device that disappears in the middle of a run is an error of that run; the CPU beside it does not notice, and the
/// state that was saved goes on elsewhere.
#[test]
fn a_lost_device_ends_its_run_alone() {
    let Some(gpu) = device::open() else { return };
    let undisturbed = losses(&mut runs(&NdArray::<f32>::new())[0], 6);
    let mut trainer = runs(&gpu).swap_remove(0);
    losses(&mut trainer, 3);
    let saved = trainer.to_archive().expect("the device is sound");
    let mut on_cpu = runs(&NdArray::<f32>::new()).swap_remove(0);
    let first = losses(&mut on_cpu, 3);
    gpu.destroy();
    for _ in 0..2 {
        let error = trainer.step().expect_err("the device is gone");
        assert!(matches!(error, Error::Backend(BackendError::DeviceLost(_))), "{error}");
    }
    assert!(trainer.model().log_prob(&table(3, 2), Key::new(1)).is_err());
    assert_eq!([first, losses(&mut on_cpu, 3)].concat(), undisturbed);
    let source = Source::Density(ToyDensity::Moons);
    let mut resumed = Trainer::resume(NdArray::<f32>::new(), &saved, source).expect("a run on another backend");
    assert_eq!(resumed.step().expect("a finite step").step, 4);
}

/// Normalising changes no bit of a sealed weight: what certifies the device's own product with its factor is what certifies what is stored.
fn sealed_weights_are_multiplied_by_as_they_are(flow: &Flow<Wgpu>, family: Family) {
    let mut sealed = flow.clone();
    sealed.seal().expect("the device is sound");
    let stored = sealed.to_backend(NdArray::<f64>::new()).expect("the device is sound");
    let on_device = sealed.certified_bounds().expect("the device is sound");
    let on_host = stored.certified_bounds().expect("no device fault");
    let certified = on_device.weights().zip(on_host.weights());
    for (device, host) in certified.filter(|(device, _)| device.coefficient < 1.0) {
        let upper = device.upper.expect("norms between the 2-norm");
        assert!(upper <= device.coefficient, "{family}: {} of {upper}, κ = {}", device.name, device.coefficient);
        assert_eq!(device.upper.map(f64::to_bits), host.upper.map(f64::to_bits), "{family}: {}", device.name);
    }
}

/// Every family of flows trains, is evaluated and inverted as on the CPU.
#[test]
fn every_family_agrees_with_the_cpu() {
    let Some(gpu) = device::shared() else { return };
    let (rows, set) = (table(40, 5), images(6));
    for family in Family::ALL {
        let config = FlowConfig { blocks: 4, hidden: vec![12, 12], ..FlowConfig::of(family, 5) };
        let pictures = family.takes_images().then(|| (small_images(family), Source::from(set.clone())));
        // gated nets with attention, and noise by a flow of its own
        let gated = (family == Family::FlowPlusPlus).then(|| (gated_images(), Source::from(set.clone())));
        let rows_first = [(config.into(), Source::from(rows.clone()))];
        for (config, source) in rows_first.into_iter().chain(pictures).chain(gated) {
            let batch = if config.images().is_some() { 3 } else { 16 };
            let settings = TrainConfig { batch, warmup: 0, epsilon: 1e-3, ..TrainConfig::default() };
            let flow = Flow::new(NdArray::<f64>::new(), &config, Key::new(3)).expect("a configuration");
            let flow = flow.to_backend(gpu.clone()).expect("the device is sound");
            let mut trainer =
                Trainer::new(flow, source, &settings, Budget::Steps(9), Key::new(4)).expect("data that fit");
            for _ in 0..3 {
                trainer.step().expect("a finite step");
            }
            let flow = trainer.flow();
            let reference = flow.to_backend(NdArray::<f64>::new()).expect("the device is sound");
            let samples = || if config.images().is_some() { Samples::from(&set) } else { Samples::from(&rows) };
            let [got, want] = [
                flow.log_prob(samples(), Key::new(5)).expect("rows that fit"),
                reference.log_prob(samples(), Key::new(5)).expect("rows that fit"),
            ];
            for (got, want) in got.values.iter().zip(&want.values) {
                assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{family:?}: log p {got}, not {want}");
            }
            sealed_weights_are_multiplied_by_as_they_are(flow, family);
            let z = flow.prepare().encode(samples(), Key::new(5)).expect("rows that fit").latents;
            let back = flow.prepare().decode(&z, &Inversion::for_backend::<Wgpu>()).expect("rows that fit");
            assert!(back.residual < 1e-4, "{family:?}: the round trip is off by {}", back.residual);
        }
    }
}
