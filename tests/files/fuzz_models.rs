//! Configurations and checkpoints: mutations of the fuzz targets' seeds without a fuzzer, the memory that hostile files
//! take, and where the seeds come from.

use std::path::{Path, PathBuf};

use resflow::NdArray;
use resflow::backend::{Generator, Key};
use resflow::checkpoint::{Archive, Values};
use resflow::config::{BaseConfig, Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity, Start};
use resflow::data::{Standardiser, ToyDensity};
use resflow::flow::Flow;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use serde_json::{Value, json};

use crate::checks;
use crate::frame;
use crate::memory::peak;
use crate::mutation::{self, below, fuzz, mutate};

/// Bytes of memory for a byte of a file: names and handles of tensors of one number, and the optimiser's copies.
const MULTIPLE: usize = 20;

/// Reading takes memory of the order of the file; what was accepted computes.
pub(crate) fn checkpoint(bytes: &[u8]) -> bool {
    let (loaded, held) = peak(|| checks::load(bytes));
    assert!(held <= MULTIPLE * bytes.len() + 50_000, "{held} bytes of memory for {} of file", bytes.len());
    let accepted = loaded.is_some();
    loaded.into_iter().for_each(checks::Loaded::examine);
    accepted
}

#[test]
fn configuration_survives_mutations() {
    let tokens: [&[u8]; 37] = [
        b"[flow]\n",
        b"[train]\n",
        b"= ",
        b"\n",
        b"\"",
        b"'''",
        b"{ ",
        b" }",
        b"[",
        b"]",
        b",",
        b":",
        b".",
        b"-1",
        b"0",
        b"1e999",
        b"nan",
        b"-inf",
        b"0.5",
        b"9223372036854775807",
        b"18446744073709551615",
        b"training = \"exact\"\n",
        b"evaluation = { truncated = { terms = 3 } }\n",
        b"hidden = [16, 16]\n",
        b"blocks = [2, 1]\n",
        b"kernels = [3, 1, 3]\n",
        b"norms = \"2f2\"\n",
        b"squeeze_first = true\n",
        b"model = \"glow\"\n",
        b"model = \"realnvp\"\n",
        b"model = \"nsf\"\n",
        b"classes = 10\n",
        b"head_width = 4\n",
        b"roulette:law=poisson,rate=2",
        b"p=0.001",
        b"\\u0000",
        b"\xff",
    ];
    fuzz("config", 100_000, checks::config, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

/// Changes bytes anywhere, the header or a few bits of the numbers inside the frame, or what the metadata says.
fn mutate_checkpoint(input: &mut Vec<u8>, seeds: &[Vec<u8>], g: &mut Generator) {
    const TOKENS: [&[u8]; 14] = [
        b"0",
        b"-1",
        b"9999",
        b"1e999",
        b"null",
        b"\\\"",
        b"[[[[",
        b"{",
        b"\"F32\"",
        b"\"BF16\"",
        b"18446744073709551615",
        b"\x00\x00\x00\x00\x00\x00\xf0\x7f",
        b"\x00\x00\x00\x00\x00\x00\xf0\xff",
        b"\xff\xff\xff\xff\xff\xff\xef\x7f",
    ];
    let opened = frame::open(input).map(|(header, numbers)| (header.to_vec(), numbers.to_vec()));
    match (below(g, 8), opened) {
        (0, Some((mut header, numbers))) => {
            mutate(&mut header, seeds, &TOKENS, g);
            *input = frame::close(&header, &numbers);
        }
        (1 | 2, Some((header, mut numbers))) => {
            for _ in 0..=below(g, 3) {
                let at = below(g, numbers.len().max(1));
                if let Some(byte) = numbers.get_mut(at) {
                    *byte ^= 1 << below(g, 8);
                }
            }
            *input = frame::close(&header, &numbers);
        }
        (3..=6, Some(_)) => {
            if let Ok(mut archive) = Archive::from_bytes(input) {
                for _ in 0..=below(g, 1) {
                    change_archive(&mut archive, g);
                }
                *input = archive.to_bytes().unwrap_or_default();
            }
        }
        _ => mutate(input, seeds, &TOKENS, g),
    }
}

/// Numbers that settings of all kinds can be set to.
fn hostile_number(g: &mut Generator) -> Value {
    let numbers = [
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(1000),
        json!(10_000),
        json!(65_536),
        json!(1 << 24),
        json!(1_u64 << 39),
        json!(u64::MAX),
        json!(0.5),
        json!(1e-3),
        json!(1e300),
        json!(-1e-300),
        Value::Null,
    ];
    numbers[below(g, numbers.len())].clone()
}

/// The values inside a document that hold no other ones.
fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(entries) => entries.values_mut().for_each(|v| leaves(v, found)),
        Value::Array(entries) => entries.iter_mut().for_each(|v| leaves(v, found)),
        leaf => found.push(leaf),
    }
}

/// Changes one thing that a well-formed file says.
fn change_archive(archive: &mut Archive, g: &mut Generator) {
    if below(g, 4) > 0 {
        let mut found = Vec::new();
        leaves(&mut archive.document, &mut found);
        if found.is_empty() {
            return;
        }
        let at = below(g, found.len());
        *found[at] = match below(g, 4) {
            0 => json!(
                ["exact", "auto", "truncated:terms=3,probes=2", "roulette:p=0.5", "relu", "clip-swish"][below(g, 6)]
            ),
            1 => json!([hostile_number(g), hostile_number(g)]),
            2 => json!(below(g, 2) == 0),
            _ => hostile_number(g),
        };
        return;
    }
    let names: Vec<String> = archive.tensors.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = names[below(g, names.len())].clone();
    let (shape, values) = archive.tensors.remove(&name).expect("a name of it");
    match below(g, 4) {
        0 => {}
        1 => drop(archive.tensors.insert(format!("{name}x"), (shape, values))),
        2 => drop(archive.tensors.insert(names[below(g, names.len())].clone(), (shape, values))),
        _ => {
            let mut numbers = values.to::<f64>();
            let edges = [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE, 0.0, -1.0, 1e-310, 3.0];
            for _ in 0..=below(g, 4) {
                let at = below(g, numbers.len().max(1));
                if let Some(number) = numbers.get_mut(at) {
                    *number = edges[below(g, edges.len())];
                }
            }
            archive.tensors.insert(name, (shape, Values::F64(numbers)));
        }
    }
}

#[test]
fn checkpoint_survives_mutations() {
    let good: Vec<_> = mutation::seeds("checkpoint").into_iter().filter(|seed| checkpoint(seed)).collect();
    let names = "begun, estimated, glow, glow_run, hybrid_run, image, image_run, mapped, model, nsf, nsf_run, realnvp_image and run";
    assert_eq!(good.len(), 13, "{names} are good, each other one is wrong in its own way");
    fuzz("checkpoint", 20_000, checkpoint, |input, seeds, g| {
        if below(g, 4) > 0 {
            good[below(g, good.len())].clone_into(input);
        }
        mutate_checkpoint(input, seeds, g);
    });
}

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

fn tiny() -> FlowConfig {
    FlowConfig { blocks: 1, hidden: vec![3], ..FlowConfig::new(2) }
}

fn tiny_images() -> ImageConfig {
    ImageConfig {
        height: 4,
        width: 4,
        channels: 1,
        blocks: vec![1, 1],
        filters: 2,
        kernels: vec![3, 1],
        fully_connected: 1,
        fully_connected_width: 2,
        evaluation: "truncated:terms=3".parse().expect("a text"),
        ..ImageConfig::default()
    }
}

/// Where seeds are written: `RESFLOW_WRITE_SEEDS=fuzz/seeds` renews the committed ones when the format changes; without it
/// the writing is tried on a temporary folder.
fn seeds_folder(temporary: &tempfile::TempDir, kind: &str) -> PathBuf {
    let folder =
        std::env::var_os("RESFLOW_WRITE_SEEDS").map_or_else(|| temporary.path().to_owned(), PathBuf::from).join(kind);
    std::fs::create_dir_all(&folder).expect("writable");
    folder
}

#[test]
fn write_config_seeds() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = seeds_folder(&temporary, "config");
    let config = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("writable");
    let text = toml::to_string(&checks::Settings::default()).expect("serialises");
    config("default.toml", &text);
    config("unknown_key.toml", &text.replace("blocks", "block"));
    config("negative.toml", &text.replace("batch = ", "batch = -"));
    config("small.toml", "[flow]\nblocks = 2\nhidden = [8]\nactivation = \"clip-swish\"\n\n[train]\nbatch = 64\n");
    config(
        "estimators.toml",
        concat!(
            "[flow]\nreplicates = 4\ntraining = \"roulette:law=poisson,rate=2,exact=4,sharing=sample\"\n\n",
            "[flow.evaluation.russian-roulette]\nexact_terms = 3\ndraws = 2\nlaw = { shifted-geometric = { p = 0.25 } }\n",
        ),
    );
    config("truncated.toml", "flow.training = { truncated = { terms = 7, probe = \"gaussian\" } }\n");
    config("empty.toml", "");
    config("huge.toml", "[flow]\ndimension = 65536\nhidden = [65536, 65536]\nblocks = 10000\n");
    config("nan.toml", "[flow]\ncoefficient = nan\n");
    config("duplicate.toml", "[train]\nsteps = 5\nsteps = 6\n");
    config("types.toml", "[flow]\nhidden = 64\n[train]\nbetas = [0.9]\n");
    config("image.toml", &toml::to_string(&tiny_images()).expect("serialises"));
    config("image_published.toml", &toml::to_string(&ImageConfig::default()).expect("serialises"));
    config("image_odd.toml", "height = 28\nwidth = 27\nblocks = [1, 1]\n");
    config("glow.toml", &toml::to_string(&tiny_images().of(Family::Glow)).expect("serialises"));
    let settings = checks::Settings { flow: FlowConfig::of(Family::RealNvp, 5), ..checks::Settings::default() };
    config("realnvp.toml", &toml::to_string(&settings).expect("serialises"));
    let settings = checks::Settings { flow: FlowConfig::of(Family::Nsf, 4), ..checks::Settings::default() };
    config("nsf.toml", &toml::to_string(&settings).expect("serialises"));
    config("nsf_bins.toml", "[flow]\nmodel = \"nsf\"\nbins = 18446744073709551615\nbound = -0.0\n");
    config("iresnet.toml", "[flow]\nmodel = \"iresnet\"\ntraining = \"truncated:terms=5\"\n");
    config("iresnet_exact.toml", "[flow]\nmodel = \"iresnet\"\ntraining = \"exact\"\n");
    config("glow_connected.toml", "model = \"glow\"\n");
    config("image_norms.toml", "kernels = [3, 1, 3]\nnorms = \"122f\"\n");
    config("image_huge.toml", "height = 16384\nwidth = 16384\nchannels = 1024\nblocks = [10000]\n");
    config("hybrid.toml", "classes = 10\nhead_width = 64\nlogit = false\nfactor_out = true\n");
    config(
        "mixture.toml",
        "[flow]\nbase = { mixture = { components = 3, covariance = \"diagonal\" } }\nstart = \"identity\"\n",
    );
    config("student.toml", "[flow]\nbase = \"student-t\"\n");
    config("mixture_huge.toml", "[flow]\ndimension = 65536\nbase = \"mixture:components=1000\"\n");
    config("image_mixture.toml", "base = \"mixture:components=4,covariance=full\"\nlogit = false\n");
    config("nested.toml", &format!("flow = {}", "[".repeat(200)));
    for (name, text) in [
        ("exact", "exact"),
        ("auto", "auto"),
        ("truncated", "truncated:terms=20,probes=2,probe=gaussian"),
        ("roulette", "roulette:law=geometric,p=0.5,exact=2,draws=3,probes=2,probe=rademacher,sharing=batch"),
        ("poisson", " roulette: law = poisson, rate = 2.5, exact = 0, sharing = sample"),
        ("twice", "roulette:exact=1,exact=2"),
        ("range", "roulette:p=1e-9"),
        ("unknown", "exakt:terms=3"),
    ] {
        config(&format!("spec_{name}.txt"), text);
    }
}

/// The state of a run after so many steps and a validation.
fn run_of(config: ModelConfig, steps: usize) -> Archive {
    let accumulate = if config.images().is_some() { 2 } else { 1 };
    let settings = TrainConfig { batch: 16, accumulate, validation_rows: 20, warmup: 2, ..TrainConfig::default() };
    let source = match &config {
        ModelConfig::Rows(_) => Source::Density(ToyDensity::Moons),
        ModelConfig::Images(_) => Source::from(checks::images()),
    };
    let flow = Flow::new(NdArray::<f64>::new(), config, Key::new(1)).expect("valid");
    let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(9), Key::new(2)).expect("valid");
    for _ in 0..steps {
        trainer.step().expect("finite");
    }
    if steps > 0 {
        trainer.validate().expect("finite");
    }
    let mut archive = trainer.to_archive().expect("stored");
    archive.document["run"]["elapsed"] = json!(1.5);
    archive
}

#[test]
fn write_checkpoint_seeds() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = seeds_folder(&temporary, "checkpoint");
    let write = |name: &str, bytes: &[u8]| {
        assert!(bytes.len() < 16_000, "{name} has {} bytes", bytes.len());
        std::fs::write(folder.join(name), bytes).expect("writable");
    };
    let store = |name: &str, archive: &Archive| write(name, &archive.to_bytes().expect("stored"));
    let model = Flow::new(NdArray::<f64>::new(), tiny(), Key::new(0)).expect("valid").to_archive().expect("stored");
    store("model.safetensors", &model);
    let mixture = FlowConfig { base: "mixture:components=2".parse().expect("a base"), ..tiny() };
    let mixture = Flow::new(NdArray::<f64>::new(), mixture, Key::new(0)).expect("valid").to_archive().expect("stored");
    store("mixture.safetensors", &mixture);
    let student = FlowConfig { base: BaseConfig::StudentT, start: Start::Identity, ..tiny() };
    store("student_run.safetensors", &run_of(student.into(), 2));
    let estimated = FlowConfig {
        dimension: 3,
        blocks: 2,
        hidden: vec![2, 2],
        activation: Nonlinearity::ClipSwish,
        leading_activation: false,
        actnorm: false,
        training: "truncated:terms=3".parse().expect("a text"),
        evaluation: "roulette:law=poisson,rate=1,exact=1,sharing=sample".parse().expect("a text"),
        replicates: 2,
        ..tiny()
    };
    let mut flow = Flow::new(NdArray::<f32>::new(), &estimated, Key::new(0)).expect("valid");
    let standardiser = Standardiser::new(vec![1.0, -2.0, 0.0], vec![0.5, 3.0, 1.0]).expect("positive");
    flow.set_standardiser(standardiser).expect("three columns");
    store("estimated.safetensors", &flow.to_archive().expect("stored"));
    let images = Flow::new(NdArray::<f32>::new(), tiny_images(), Key::new(0)).expect("valid");
    store("image.safetensors", &images.to_archive().expect("stored"));
    let glow = FlowConfig { blocks: 2, hidden: vec![2], ..FlowConfig::of(Family::Glow, 3) };
    let glow = Flow::new(NdArray::<f64>::new(), &glow, Key::new(0)).expect("valid").to_archive().expect("stored");
    store("glow.safetensors", &glow);
    let nsf = FlowConfig { blocks: 1, hidden: vec![2], bins: 3, ..FlowConfig::of(Family::Nsf, 3) };
    let nsf = Flow::new(NdArray::<f64>::new(), &nsf, Key::new(0)).expect("valid").to_archive().expect("stored");
    store("nsf.safetensors", &nsf);
    let couplings = ImageConfig { filters: 2, ..tiny_images().of(Family::RealNvp) };
    let couplings = Flow::new(NdArray::<f32>::new(), &couplings, Key::new(0)).expect("valid");
    store("realnvp_image.safetensors", &couplings.to_archive().expect("stored"));
    store("begun.safetensors", &run_of(FlowConfig { activation: Nonlinearity::Tanh, ..tiny() }.into(), 0));
    let one_scale = ImageConfig { blocks: vec![1], filters: 1, fully_connected_width: 1, ..tiny_images() };
    store("image_run.safetensors", &run_of(one_scale.into(), 2));
    store(
        "glow_run.safetensors",
        &run_of(FlowConfig { blocks: 1, hidden: vec![3], ..FlowConfig::of(Family::Glow, 2) }.into(), 2),
    );
    let config = FlowConfig { blocks: 1, hidden: vec![2], bins: 2, ..FlowConfig::of(Family::Nsf, 2) };
    store("nsf_run.safetensors", &run_of(config.into(), 2));
    let hybrid = ImageConfig {
        classes: 2,
        head_width: 1,
        blocks: vec![1],
        filters: 1,
        kernels: vec![1],
        fully_connected: 0,
        ..tiny_images()
    };
    store("hybrid_run.safetensors", &run_of(hybrid.into(), 2));
    let good = run_of(tiny().into(), 3);
    store("run.safetensors", &good);

    let bytes = model.to_bytes().expect("stored");
    write("empty.safetensors", b"");
    write("cut.safetensors", &bytes[..bytes.len() - 9]);
    write("long_header.safetensors", &[&u64::MAX.to_le_bytes(), &bytes[8..]].concat());
    write("pickle.safetensors", b"\x80\x04\x95pickle");
    let spoil = |name: &str, from: &Archive, change: &dyn Fn(&mut Archive)| {
        let mut archive = from.clone();
        change(&mut archive);
        store(name, &archive);
    };
    spoil("foreign.safetensors", &model, &|a| a.document = json!({}));
    spoil("format.safetensors", &model, &|a| a.document["model"]["format"] = json!(99));
    spoil("unknown_key.safetensors", &model, &|a| a.document["model"]["code"] = json!("import os"));
    spoil("huge.safetensors", &model, &|a| a.document["model"]["config"]["rows"]["blocks"] = json!(10_000));
    let images = images.to_archive().expect("stored");
    spoil("no_permutation.safetensors", &glow, &|a| {
        a.tensors.insert("links.1.permutation".into(), (vec![3], Values::F64(vec![0.0, 0.0, 1e300])));
    });
    spoil("image_huge.safetensors", &images, &|a| a.document["model"]["config"]["images"]["height"] = json!(16_384));
    spoil("image_as_rows.safetensors", &images, &|a| a.document["model"]["config"] = json!({ "rows": {} }));
    spoil("missing.safetensors", &model, &|a| drop(a.tensors.remove("links.1.net.1.weight")));
    spoil("extra.safetensors", &model, &|a| {
        let tensor = a.tensors["links.1.net.1.bias"].clone();
        a.tensors.insert("links.7.net.1.bias".into(), tensor);
    });
    spoil("nan.safetensors", &model, &|a| {
        a.tensors.insert("links.1.net.1.bias".into(), (vec![3], Values::F64(vec![f64::NAN; 3])));
    });
    spoil("not_unit.safetensors", &model, &|a| {
        a.tensors.insert("links.1.net.1.u".into(), (vec![3], Values::F64(vec![0.0; 3])));
    });
    spoil("no_spread.safetensors", &model, &|a| {
        a.tensors.insert("standardise.deviation".into(), (vec![2], Values::F64(vec![1.0, 0.0])));
    });
    spoil("other_data.safetensors", &good, &|a| a.document["run"]["data"] = json!("12 rows of 2 columns"));
    spoil("no_score.safetensors", &good, &|a| a.document["run"]["best_nll"] = Value::Null);
    spoil("far_step.safetensors", &good, &|a| a.document["run"]["step"] = json!(u64::MAX));
}
