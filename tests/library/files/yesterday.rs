//! Models and run states of the version before chains and stages (commit 52b23b5), with the numbers that its program
//! computed: tests/fixtures/models, made by make.py there.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::checkpoint::{Archive, model_config};
use resflow::data::image::{self, ImageSet};
use resflow::data::{Samples, Table, ToyDensity, csv};
use resflow::flow::Flow;
use resflow::invert::Inversion;
use resflow::train::{Source, Trainer};
use serde_json::Value;

/// Elementary functions differ between machines in the last digits, in single precision in the sixth over a whole flow.
const DOUBLE: f64 = 1e-9;
const SINGLE: f64 = 2e-5;
/// Samples were written in single precision, rounded from whatever they were computed in.
const STORED: f64 = 1e-7;

const RUNS: [&str; 11] = [
    "toy",
    "table",
    "truncated",
    "clipped",
    "learned",
    "norms",
    "glow",
    "image",
    "factored",
    "realnvp_image",
    "hybrid_glow",
];
/// The runs in double precision.
const DOUBLES: [&str; 6] = ["table", "clipped", "norms", "glow", "image", "realnvp_image"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

fn model_of(name: &str) -> PathBuf {
    path(&format!("{name}.safetensors"))
}

fn run_of(name: &str) -> Archive {
    Archive::read(&path(&format!("{name}_run.safetensors"))).expect("a run's state")
}

/// What the old program computed.
fn expected(name: &str) -> Value {
    let text = std::fs::read_to_string(path(&format!("{name}.json"))).expect("beside the model");
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(value: &Value, pointer: &str) -> Vec<f64> {
    let array = value.pointer(pointer).and_then(Value::as_array).expect(pointer);
    array.iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn table() -> Table {
    csv::read(&std::fs::read(path("table.csv")).expect("the table")).expect("a table")
}

fn images() -> ImageSet {
    image::npy::read(&std::fs::read(path("images.npy")).expect("the images")).expect("images")
}

/// The samples whose numbers were kept, and all that the run learned from.
fn data(name: &str, expected: &Value) -> (Kept, Source) {
    let images = images();
    let first: Vec<usize> = (0..2).collect();
    match name {
        "toy" => (Kept::Rows(rows(2, numbers(expected, "/samples"))), ToyDensity::Checkerboard.into()),
        "hybrid_glow" => {
            let labelled = images.clone().with_labels((0..40).map(|i| i % 10).collect()).expect("ten classes");
            (Kept::Images(images.take(&first).expect("two images")), labelled.into())
        }
        "image" | "factored" | "realnvp_image" => {
            (Kept::Images(images.take(&first).expect("two images")), images.into())
        }
        _ => (Kept::Rows(table().select(&(0..5).collect::<Vec<_>>())), table().into()),
    }
}

enum Kept {
    Rows(Table),
    Images(ImageSet),
}

impl Kept {
    fn samples(&self) -> Samples<'_> {
        match self {
            Self::Rows(rows) => rows.into(),
            Self::Images(images) => images.into(),
        }
    }
}

fn rows(width: usize, values: Vec<f64>) -> Table {
    Table::new(None, width, values).expect("finite")
}

#[track_caller]
fn near(name: &str, what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: {what}");
    let scale = expected.iter().fold(1.0, |a: f64, x| a.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * scale, "{name}, {what} {i}: {f}, it was {e}");
    }
}

const ONE: NonZeroUsize = NonZeroUsize::MIN;

macro_rules! each_run {
    ($check:ident) => {
        for name in RUNS {
            if DOUBLES.contains(&name) {
                $check(&NdArray::<f64>::with_threads(ONE).expect("one thread"), name, DOUBLE);
            } else {
                $check(&NdArray::<f32>::with_threads(ONE).expect("one thread"), name, SINGLE);
            }
        }
    };
}

#[test]
fn a_model_computes_what_it_did() {
    each_run!(computes);
}

fn computes<B: Backend>(backend: &B, name: &str, tolerance: f64) {
    let flow = Flow::load(backend.clone(), model_of(name)).expect(name);
    let expected = expected(name);
    agrees(name, &flow, &expected, tolerance);
    // and so does what is written of it today, under the same names, in the same format
    let (was, is) = (Archive::read(&model_of(name)).expect("a model"), flow.to_archive().expect("stored"));
    assert_eq!(is.document["model"]["format"], 2, "{name}");
    assert_eq!(is.document, was.document, "{name}");
    assert_eq!(is.tensors, was.tensors, "{name}");
    let bytes = is.to_bytes().expect("stored");
    let again = Flow::from_archive(backend.clone(), &Archive::from_bytes(&bytes).expect("ours")).expect(name);
    agrees(name, &again, &expected, tolerance);
}

fn agrees<B: Backend>(name: &str, flow: &Flow<B>, expected: &Value, tolerance: f64) {
    let (kept, _) = data(name, expected);
    // the program takes images piece by piece, each with a key of its own
    let key = Key::new(1).named("score");
    let (prepared, key) = (flow.prepare(), if flow.config().images().is_some() { key.split(0) } else { key });
    let how = Inversion::for_backend::<B>();
    let said = prepared.log_prob(kept.samples(), key).expect("samples that fit");
    near(name, "log p", &said.values, &numbers(expected, "/scores/log_prob"), tolerance);
    near(name, "standard error", &said.standard_error, &numbers(expected, "/scores/se"), tolerance);
    let encoded = prepared.encode(kept.samples(), key).expect("samples that fit");
    let latents = numbers(expected, "/latents");
    near(name, "z", encoded.latents.values(), &latents, tolerance);
    near(name, "log det", &encoded.log_det, &numbers(expected, "/log_dets/log_det"), tolerance);
    let decoded = prepared.decode(&rows(flow.dimension(), latents), &how).expect("latents that fit");
    near(name, "decoded", decoded.samples.values(), &numbers(expected, "/decoded"), tolerance);
    let samples = numbers(expected, "/samples");
    let drawn = prepared.sample(samples.len() / flow.dimension(), Key::new(1), &how).expect("samples");
    near(name, "sample", drawn.samples.values(), &samples, tolerance.max(STORED));
    if let (Kept::Images(images), true) = (&kept, prepared.classifies()) {
        let classes = prepared.classify(images, key).expect("images that fit");
        let predicted: Vec<f64> = classes.predicted().into_iter().map(|class| class as f64).collect();
        assert_eq!(predicted, numbers(expected, "/scores/class"), "{name}");
        let confidence: Vec<f64> = (0..2).map(|i| classes.probability(i, predicted[i] as usize)).collect();
        near(name, "confidence", &confidence, &numbers(expected, "/scores/confidence"), tolerance);
    }
}

#[test]
fn the_state_of_a_run_has_the_model() {
    each_run!(has_the_model);
}

fn has_the_model<B: Backend>(backend: &B, name: &str, tolerance: f64) {
    let run = run_of(name);
    assert!(run.is_run());
    let refused = Flow::from_archive(backend.clone(), &run).expect_err("no model").to_string();
    for way in ["model.safetensors", "Archive::into_model", "Trainer::resume"] {
        assert!(refused.contains(way), "{refused}");
    }
    let refused =
        Flow::load(backend.clone(), path(&format!("{name}_run.safetensors"))).expect_err("no model").to_string();
    assert!(refused.contains("Archive::into_model"), "{refused}");
    let model = run.into_model();
    assert!(!model.is_run());
    // the same but for what the file of the model says of its training's end
    assert_eq!(model.tensors, Archive::read(&model_of(name)).expect("a model").tensors, "{name}");
    model_config(&model).expect("a configuration");
    agrees(name, &Flow::from_archive(backend.clone(), &model).expect(name), &expected(name), tolerance);
}

#[test]
fn a_run_goes_on() {
    each_run!(goes_on);
}

fn goes_on<B: Backend>(backend: &B, name: &str, _: f64) {
    let (run, expected) = (run_of(name), expected(name));
    let (_, source) = data(name, &expected);
    let mut trainer = Trainer::resume(backend.clone(), &run, source).expect(name);
    assert_eq!(trainer.steps_done(), 30, "{name}");
    // what was not stepped yet is stored as it was
    let same = trainer.to_archive().expect("stored");
    assert_eq!(same.tensors, run.tensors, "{name}");
    for step in 31..34 {
        let report = trainer.step().expect(name);
        assert!(report.step == step && report.train_nll.is_finite() && report.gradient_norm.is_finite(), "{name}");
    }
    assert!(trainer.validate().expect(name).nll.is_finite(), "{name}");
    let state = trainer.to_archive().expect("stored");
    assert!(state.tensors.keys().eq(run.tensors.keys()), "{name}");
    let (_, source) = data(name, &expected);
    assert_eq!(Trainer::resume(backend.clone(), &state, source).expect(name).steps_done(), 33, "{name}");
}
