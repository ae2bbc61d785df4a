//! Where the seeds of configurations and checkpoints come from.

use std::path::PathBuf;

use resflow::NdArray;
use resflow::backend::Key;
use resflow::categorical::CategoricalDensity;
use resflow::checkpoint::{Archive, Values};
use resflow::config::{BaseConfig, ContextConfig, Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity, Start};
use resflow::data::{Categories, Dataset, Standardiser, ToyDensity};
use resflow::flow::{Flow, FlowCategories};
use resflow::missing::Imputer;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use serde_json::{Value, json};

use crate::files::checks;

pub(crate) fn tiny() -> FlowConfig {
    FlowConfig { blocks: 1, hidden: vec![3], ..FlowConfig::new(2) }
}

pub(crate) fn tiny_images() -> ImageConfig {
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

fn tiny_dense() -> FlowConfig {
    FlowConfig { blocks: 1, hidden: vec![2, 2], ..FlowConfig::of(Family::Dense, 2) }
}

fn tiny_dense_images() -> ImageConfig {
    let dense = ImageConfig { fully_connected_growth: 2, ..tiny_images().of(Family::Dense) };
    ImageConfig { blocks: vec![1], learned_concatenation: false, kernels: vec![3, 1], ..dense }
}

/// A fresh flow in single precision.
fn single(config: ImageConfig) -> Archive {
    let flow = Flow::new(NdArray::<f32>::new(), config, Key::new(0)).expect("valid");
    flow.to_archive().expect("stored")
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
    config("context.toml", "[flow]\ncontext = { columns = 3, embedding = [4], gates = true }\n");
    config("context_none.toml", "[flow.context]\ncolumns = 0\nembedding = []\n");
    config(
        "context_huge.toml",
        "[flow]\nhidden = [65536]\ncontext = { columns = 65536, embedding = [65536, 65536] }\n",
    );
    config("context_image.toml", "context = { columns = 10, scales = false }\nclasses = 10\n");
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
    for family in [Family::Implicit, Family::Monotone] {
        config(&format!("{family}.toml"), &format!("[flow]\nmodel = \"{family}\"\ndimension = 3\n"));
        let images = toml::to_string(&tiny_images().of(family)).expect("serialises");
        config(&format!("image_{family}.toml"), &images);
    }
    config(
        "ffjord.toml",
        "[flow]\nmodel = \"ffjord\"\nsolver = \"rk4:steps=8\"\nevaluation_solver = \"dopri5:rtol=1e-4\"\n",
    );
    config(
        "matching.toml",
        "[flow]\nmodel = \"ffjord\"\n[train]\nobjective = \"flow-matching:pairing=optimal,noise=0.01,fine-tune=0.1\"\n",
    );
    config("matching_nan.toml", "[train]\nobjective = \"flow-matching:noise=nan,fine-tune=1e300\"\n");
    config("ffjord_steps.toml", "[flow]\nmodel = \"ffjord\"\nsolver = \"rk4:steps=18446744073709551615\"\n");
    config("ffjord_nan.toml", "[flow]\nmodel = \"ffjord\"\nevaluation_solver = \"dopri5:rtol=nan,limit=0\"\n");
    config("flowpp.toml", "[flow]\nmodel = \"flowpp\"\ncomponents = 4\n");
    config("flowpp_huge.toml", "model = \"flowpp\"\ncomponents = 18446744073709551615\n");
    config("nsf_bins.toml", "[flow]\nmodel = \"nsf\"\nbins = 18446744073709551615\nbound = -0.0\n");
    let settings = checks::Settings { flow: FlowConfig::of(Family::Dense, 4), ..checks::Settings::default() };
    config("dense.toml", &toml::to_string(&settings).expect("serialises"));
    config("dense_odd.toml", "[flow]\nmodel = \"dense\"\nactivation = \"cpila\"\nhidden = [7]\ndense_bound = 1e300\n");
    config("dense_image.toml", &toml::to_string(&tiny_images().of(Family::Dense)).expect("serialises"));
    config("dense_huge.toml", "model = \"dense\"\nfilters = 65536\nfully_connected_growth = 18446744073709551614\n");
    config("iresnet.toml", "[flow]\nmodel = \"iresnet\"\ntraining = \"truncated:terms=5\"\n");
    config("iresnet_exact.toml", "[flow]\nmodel = \"iresnet\"\ntraining = \"exact\"\n");
    config("glow_connected.toml", "model = \"glow\"\n");
    config("image_norms.toml", "kernels = [3, 1, 3]\nnorms = \"122f\"\n");
    config("image_prior.toml", "blocks = [1, 1]\nfactor_out = true\nconditional_prior = true\n");
    config("image_priorless.toml", "conditional_prior = true\n");
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
#[allow(clippy::too_many_lines)] // one list of seeds
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
    let mixture = FlowConfig { blocks: 2, hidden: vec![2], components: 2, ..FlowConfig::of(Family::FlowPlusPlus, 3) };
    let mixture = Flow::new(NdArray::<f64>::new(), &mixture, Key::new(0)).expect("valid").to_archive().expect("stored");
    store("flowpp.safetensors", &mixture);
    let mixture = ImageConfig { filters: 2, components: 2, ..tiny_images().of(Family::FlowPlusPlus) };
    store("flowpp_image.safetensors", &single(mixture));
    let ffjord = FlowConfig { hidden: vec![2], ..FlowConfig::of(Family::Ffjord, 3) };
    let ffjord = Flow::new(NdArray::<f64>::new(), &ffjord, Key::new(0)).expect("valid").to_archive().expect("stored");
    store("ffjord.safetensors", &ffjord);
    let solver = "rk4:steps=2".parse().expect("a solver");
    let config = FlowConfig {
        hidden: vec![2],
        solver,
        context: Some(ContextConfig { embedding: vec![2], ..ContextConfig::new(1) }),
        ..FlowConfig::of(Family::Ffjord, 2)
    };
    let conditional =
        Flow::new(NdArray::<f32>::new(), config, Key::new(0)).expect("valid").to_archive().expect("stored");
    store("ffjord_conditional.safetensors", &conditional);
    let config = FlowConfig { hidden: vec![2], solver, ..FlowConfig::of(Family::Ffjord, 2) };
    store("ffjord_run.safetensors", &run_of(config.into(), 2));
    let told = || Some(ContextConfig { embedding: vec![2], gates: true, ..ContextConfig::new(2) });
    let conditional = FlowConfig { context: told(), ..tiny() };
    let conditional = Flow::new(NdArray::<f64>::new(), conditional, Key::new(0)).expect("valid");
    let conditional = conditional.to_archive().expect("stored");
    store("conditional.safetensors", &conditional);
    let rows: Vec<[&str; 2]> = (0..200).map(|i| [["a", "b"][i % 2], ["x", "y"][i % 2]]).collect();
    let rows = Dataset::from(Categories::of_rows(&["k", "l"], &rows).expect("rows"));
    let density = CategoricalDensity::fit(rows.samples(), rows.samples(), Key::new(0)).expect("categories");
    let of_four = Some(ContextConfig { embedding: vec![2], ..ContextConfig::new(4) });
    let categorical = FlowConfig { context: of_four, ..tiny() };
    let mut categorical = Flow::new(NdArray::<f64>::new(), categorical, Key::new(0)).expect("valid");
    let columns = density.columns()[..1].to_vec();
    categorical.set_categories(Some(FlowCategories::Given(columns))).expect("two of four");
    store("categories_given.safetensors", &categorical.to_archive().expect("stored"));
    categorical.set_categories(Some(FlowCategories::Modelled(density))).expect("four levels");
    let categorical = categorical.to_archive().expect("stored");
    store("categories.safetensors", &categorical);
    let one_scale = ImageConfig { blocks: vec![1], fully_connected: 0, context: told(), ..tiny_images() };
    store("image_conditional.safetensors", &single(one_scale));
    let fills = Some(ContextConfig { embedding: vec![2], ..ContextConfig::new(6) });
    let fills = FlowConfig { blocks: 1, hidden: vec![2], bins: 2, context: fills, ..FlowConfig::of(Family::Nsf, 2) };
    let fills = Flow::new(NdArray::<f64>::new(), fills, Key::new(0)).expect("valid");
    let mut joint = Flow::new(NdArray::<f64>::new(), tiny(), Key::new(0)).expect("valid");
    joint.set_imputer(Imputer::new(fills).expect("an imputer")).expect("two columns");
    let imputing = joint.to_archive().expect("stored");
    store("imputer.safetensors", &imputing);
    store("dense_run.safetensors", &run_of(tiny_dense().into(), 2));
    store("dense_image.safetensors", &single(tiny_dense_images()));
    for family in [Family::Implicit, Family::Monotone] {
        let tiny = FlowConfig { blocks: 1, hidden: vec![2], ..FlowConfig::of(family, 2) };
        store(&format!("{family}_run.safetensors"), &run_of(tiny.into(), 2));
    }
    store("image_implicit.safetensors", &single(tiny_images().of(Family::Implicit)));
    store("image_monotone.safetensors", &single(ImageConfig { model: Family::Monotone, ..tiny_dense_images() }));
    let couplings = ImageConfig { filters: 2, ..tiny_images().of(Family::RealNvp) };
    store("realnvp_image.safetensors", &single(couplings));
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
    spoil("context_missing.safetensors", &conditional, &|a| drop(a.tensors.remove("context.mean")));
    spoil("context_huge.safetensors", &conditional, &|a| {
        a.document["model"]["config"]["rows"]["context"]["columns"] = json!(65_536);
    });
    spoil("categories_missing.safetensors", &categorical, &|a| drop(a.tensors.remove("categories.1.output.bias")));
    spoil("categories_twice.safetensors", &categorical, &|a| {
        a.document["model"]["categories"]["columns"][0]["levels"] = json!(["a", "a"]);
    });
    spoil("categories_wide.safetensors", &categorical, &|a| {
        a.document["model"]["categories"]["columns"][0]["levels"] = json!(["a", "b", "c"]);
    });
    spoil("categories_first.safetensors", &categorical, &|a| {
        a.document["model"]["categories"]["nets"] = json!([true, true]);
    });
    spoil("categories_unlikely.safetensors", &categorical, &|a| {
        a.tensors.insert("categories.0.table".into(), (vec![2], Values::F64(vec![0.0, 0.0])));
    });
    spoil("imputer_missing.safetensors", &imputing, &|a| a.tensors.retain(|name, _| !name.starts_with("imputer.")));
    spoil("imputer_unknown.safetensors", &imputing, &|a| a.document["model"]["imputer"] = Value::Null);
    spoil("imputer_nested.safetensors", &imputing, &|a| {
        a.document["model"]["imputer"]["imputer"] = a.document["model"]["imputer"].clone();
    });
    spoil("imputer_other.safetensors", &imputing, &|a| {
        a.document["model"]["imputer"] = a.document["model"].clone();
        a.document["model"]["imputer"].as_object_mut().expect("a model").remove("imputer");
    });
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
