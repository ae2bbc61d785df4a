//! The memory that hostile configurations and checkpoints take, and what errors quote of them.

use std::path::Path;

use resflow::NdArray;
use resflow::backend::Key;
use resflow::checkpoint::{Archive, Values};
use resflow::config::{FlowConfig, ImageConfig};
use resflow::data::ToyDensity;
use resflow::flow::Flow;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use serde_json::{Value, json};

use crate::files::checks;
use crate::files::fuzz_models::checkpoint;
use crate::files::model_seeds::{tiny, tiny_images};

/// The archive of a good seed.
pub(crate) fn seed(name: &str) -> Archive {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/checkpoint").join(name);
    Archive::read(&path).expect("a good seed")
}

/// A good run in which one setting was changed, of both models where it is the model's.
pub(crate) fn hostile(name: &str, settings: &[(&str, Value, bool)]) {
    for (path, value, accepted) in settings {
        let mut archive = seed(name);
        // no validation improves on this
        archive.document["run"]["best_nll"] = json!(-1e300);
        *archive.document.pointer_mut(path).expect(path) = value.clone();
        if let Some(setting) = path.strip_prefix("/model/") {
            *archive.document.pointer_mut(&format!("/run/best/{setting}")).expect(path) = value.clone();
        }
        assert_eq!(checkpoint(&archive.to_bytes().expect("stored")), *accepted, "{path} = {value}");
    }
}

/// A file that wants more memory than it holds numbers is refused, or gets no more than is its due.
#[test]
fn hostile_configurations_take_little_memory() {
    let settings = [
        ("/model/config/rows/blocks", json!(10_000), false),
        ("/model/config/rows/hidden", json!([65_536]), false),
        ("/model/config/rows/hidden", json!(vec![65_536; 64]), false),
        ("/model/config/rows/hidden", json!(vec![1; 64]), false),
        ("/model/config/rows/dimension", json!(65_536), false),
        ("/model/config/rows/replicates", json!(1000), true),
        ("/model/config/rows/evaluation", json!("truncated:terms=1000,probes=1000"), true),
        ("/model/config/rows/training", json!("roulette:p=0.001,draws=1000,probes=1000,exact=1000"), true),
        ("/run/config/batch", json!(1 << 24), true),
        ("/run/config/accumulate", json!(1 << 16), true),
        ("/run/config/accumulate", json!(1 << 20), false),
        ("/run/config/validation_rows", json!(1 << 24), true),
        ("/run/config/power_iterations", json!(10_000), true),
        ("/run/config/steps", json!(1_u64 << 39), true),
        ("/run/config/steps", json!(u64::MAX), false),
        ("/run/config/warmup", json!(u64::MAX), false),
        ("/run/step", json!(u64::MAX), false),
        ("/run/step", json!(1_u64 << 39), true),
        ("/run/elapsed", json!(1e19), false),
        ("/run/budget", json!({ "time": { "secs": u64::MAX, "nanos": 0 } }), false),
        ("/run/without_improvement", json!(u32::MAX), true),
        ("/run/best/config/rows/blocks", json!(10_000), false),
        ("/run/best/config/rows/coefficient", json!(0.5), false),
    ];
    hostile("run.safetensors", &settings);
    // many small tensors are the dearest that a file can hold
    let narrow = FlowConfig { dimension: 1, hidden: vec![1; 60], blocks: 50, ..tiny() };
    let flow = Flow::new(NdArray::<f64>::new(), &narrow, Key::new(0)).expect("valid");
    assert!(checkpoint(&flow.to_archive().expect("stored").to_bytes().expect("stored")));
    // one long tensor under a name that belongs to nothing does not pay for many small ones
    let mut archive = seed("model.safetensors");
    archive.tensors.insert("x".into(), (vec![1 << 18], Values::F32(vec![0.0; 1 << 18])));
    archive.document["model"]["config"]["rows"]["hidden"] = json!(vec![1; 60]);
    archive.document["model"]["config"]["rows"]["blocks"] = json!(500);
    assert!(!checkpoint(&archive.to_bytes().expect("stored")));
    // nor for those of many couplings
    let settings = [
        ("/model/config/rows/blocks", json!(10_000), false),
        ("/model/config/rows/hidden", json!([65_536]), false),
        ("/model/config/rows/hidden", json!(vec![1; 64]), false),
        ("/model/config/rows/dimension", json!(1024), false),
        ("/model/config/rows/dimension", json!(1), false),
        ("/model/config/rows/model", json!("residual"), false),
        ("/model/config/rows/model", json!("realnvp"), false),
        ("/model/config/rows/evaluation", json!("truncated:terms=1000,probes=1000"), true),
        ("/model/config/rows/coefficient", json!(0.5), true),
        ("/model/config/rows/norms", json!("2112"), false),
    ];
    hostile("glow_run.safetensors", &settings);
    let mut archive = seed("glow.safetensors");
    archive.tensors.insert("x".into(), (vec![1 << 18], Values::F32(vec![0.0; 1 << 18])));
    archive.document["model"]["config"]["rows"]["blocks"] = json!(5000);
    assert!(!checkpoint(&archive.to_bytes().expect("stored")));
    // factors that are none, one number after the other
    for (name, values) in [
        ("sign", [1.0, 0.5, 1.0]),
        ("permutation", [0.0, 1.0, 1.0]),
        ("permutation", [0.0, 3.0, 1.0]),
        ("permutation", [-1.0, 2.0, 1.0]),
    ] {
        let mut archive = seed("glow.safetensors");
        archive.tensors.insert(format!("links.1.{name}"), (vec![3], Values::F64(values.to_vec())));
        assert!(!checkpoint(&archive.to_bytes().expect("stored")), "{name} {values:?}");
    }
    for diagonal in [-800.0, 800.0] {
        let mut archive = seed("glow.safetensors");
        archive.tensors.insert("links.1.lu".into(), (vec![3, 3], Values::F64(vec![diagonal; 9])));
        assert!(!checkpoint(&archive.to_bytes().expect("stored")), "{diagonal}");
    }
    // resuming on a table draws nothing either, and the number of the step does not overflow that of the row
    let source = Source::from(ToyDensity::Moons.sample(Key::new(0), 100));
    let flow = Flow::new(NdArray::<f64>::new(), tiny(), Key::new(0)).expect("valid");
    let settings = TrainConfig { batch: 64, ..TrainConfig::default() };
    let trainer = Trainer::new(flow, source.clone(), &settings, Budget::Steps(1 << 39), Key::new(0)).expect("valid");
    let mut archive = trainer.to_archive().expect("stored");
    archive.document["run"]["step"] = json!((1_u64 << 39) - 1);
    let mut resumed = Trainer::resume(NdArray::<f64>::new(), &archive, source).expect("the last step is missing");
    resumed.step().expect("finite");
    assert!(resumed.finished());
}

/// The same for images: every count of a configuration, and long lists and texts in it.
#[test]
fn hostile_image_configurations_take_little_memory() {
    let settings = [
        ("/model/config/images/blocks", json!([10_000]), false),
        ("/model/config/images/blocks", json!([10_000, 10_000]), false),
        ("/model/config/images/blocks", json!([1, 10_000]), false),
        ("/model/config/images/blocks", json!(vec![10_000; 12]), false),
        ("/model/config/images/blocks", json!(vec![1; 1000]), false),
        ("/model/config/images/blocks", json!([]), false),
        ("/model/config/images/filters", json!(65_536), false),
        ("/model/config/images/height", json!(16_384), false),
        ("/model/config/images/width", json!(16_384), false),
        ("/model/config/images/height", json!(0), false),
        ("/model/config/images/height", json!(u64::MAX), false),
        ("/model/config/images/channels", json!(1024), false),
        ("/model/config/images/bits", json!(9), false),
        ("/model/config/images/bits", json!(5), true),
        ("/model/config/images/logit_alpha", json!(0), false),
        ("/model/config/images/logit_alpha", json!(1e-300), true),
        ("/model/config/images/fully_connected", json!(10_000), false),
        ("/model/config/images/fully_connected_width", json!(65_536), false),
        ("/model/config/images/kernels", json!(vec![3; 64]), false),
        ("/model/config/images/kernels", json!(vec![1; 64]), false),
        ("/model/config/images/kernels", json!([31, 31]), false),
        ("/model/config/images/kernels", json!([2, 2]), false),
        ("/model/config/images/factor_out", json!(true), true),
        ("/model/config/images/squeeze_first", json!(true), false),
        ("/model/config/images/norms", json!("2".repeat(1 << 20)), false),
        ("/model/config/images/norms", json!("f".repeat(1 << 20)), false),
        ("/model/config/images/replicates", json!(1000), true),
        ("/model/config/images/evaluation", json!("truncated:terms=1000,probes=1000"), true),
        ("/run/config/accumulate", json!(1 << 16), true),
        ("/run/config/batch", json!(1 << 23), true),
        ("/run/config/batch", json!(1 << 24), false),
        ("/run/config/validation_rows", json!(1 << 24), true),
        ("/run/config/flips", json!(true), true),
        ("/run/best/config/images/blocks", json!([10_000, 1]), false),
    ];
    hostile("image_run.safetensors", &settings);
    let settings = [
        ("/model/config/images/classes", json!(0), false),
        ("/model/config/images/classes", json!(1), false),
        ("/model/config/images/classes", json!(256), false),
        ("/model/config/images/classes", json!(u64::MAX), false),
        ("/model/config/images/head_width", json!(65_536), false),
        ("/model/config/images/head_width", json!(u64::MAX), false),
        ("/model/config/images/blocks", json!(vec![1; 12]), false),
        ("/model/config/images/logit", json!(false), false),
        ("/run/config/density_weight", json!(1e300), true),
        ("/run/config/density_weight", json!(-1), false),
        ("/run/best_classification", Value::Null, false),
        ("/run/best_classification/accuracy", json!(1.5), false),
        ("/run/best_classification/cross_entropy", json!(-1e-300), false),
        ("/run/best_classification/count", json!(u64::MAX), true),
    ];
    hostile("hybrid_run.safetensors", &settings);
    // convolutions whose singular vectors are many times their kernels
    let wide = ImageConfig { height: 64, width: 64, blocks: vec![1], fully_connected: 0, ..tiny_images() };
    let flow = Flow::new(NdArray::<f32>::new(), &wide, Key::new(0)).expect("valid");
    let mut archive = flow.to_archive().expect("stored");
    assert!(checkpoint(&archive.to_bytes().expect("stored")));
    archive.document["model"]["config"]["images"]["height"] = json!(16_384);
    assert!(!checkpoint(&archive.to_bytes().expect("stored")));
    // a long list in a file whose numbers would pay for it
    let narrow =
        ImageConfig { kernels: vec![1; 60], filters: 1, blocks: vec![40], fully_connected: 0, ..tiny_images() };
    let flow = Flow::new(NdArray::<f64>::new(), &narrow, Key::new(0)).expect("valid");
    assert!(checkpoint(&flow.to_archive().expect("stored").to_bytes().expect("stored")));
}

/// Names, settings and numbers of a file come back in errors as a few printable lines.
#[test]
fn errors_quote_files_in_printable_characters() {
    for (path, text) in [("/run/data", "\u{1b}[31mno such data"), ("/model/format", "\u{7}"), ("/run/key", "\n")] {
        let mut archive = seed("run.safetensors");
        *archive.document.pointer_mut(path).expect(path) = json!(text.repeat(300));
        // `load` checks the messages
        assert!(checks::load(&archive.to_bytes().expect("stored")).is_none(), "{path}");
    }
    let mut archive = seed("model.safetensors");
    let tensor = archive.tensors["links.1.net.1.bias"].clone();
    archive.tensors.insert("links.\u{1b}]0;title\u{7}".repeat(300), tensor);
    assert!(checks::load(&archive.to_bytes().expect("stored")).is_none());
}
