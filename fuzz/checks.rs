//! What holds of every input, for the targets here and for the mutation loops in tests/library/files/fuzz_data.rs and
//! tests/library/files/fuzz_models.rs. Each check says whether the reader accepted the input.

use std::fmt::Display;
use std::num::NonZeroUsize;

use resflow::backend::{Backend as _, Key, Noise};
use resflow::checkpoint::Archive;
use resflow::config::{BaseConfig, Family, FlowConfig, ImageConfig, ModelConfig};
use resflow::data::image::ImageSet;
use resflow::data::{Categories, DataError, Dataset, NpyRows, ReadOptions, StoredRows, Table, ToyDensity, csv, npy};
use resflow::estimator::{CostModel, Estimator, Phase, Truncated};
use resflow::flow::{Encoded, Flow, FlowCategories, PreparedFlow};
use resflow::invert::Inversion;
use resflow::stage::{LayerStage, Net, Stage};
use resflow::train::{Source, TrainConfig, Trainer};
use resflow::{Error, NdArray};
use serde::{Deserialize, Serialize};

/// The CSV reader never panics, makes no more values than there are bytes, explains itself in a few lines, and reads
/// back what the writer makes of its table.
pub(crate) fn csv(bytes: &[u8]) -> bool {
    let Some(table) = accepted(csv::read(bytes), bytes) else { return false };
    let mut text = Vec::new();
    csv::write(&table, &mut text).expect("memory takes every table");
    assert_eq!(csv::read(&text).expect("the writer's text reads back"), table);
    true
}

/// The NPY reader, likewise.
pub(crate) fn npy(bytes: &[u8]) -> bool {
    let table = accepted(npy::read(bytes), bytes);
    // a file on a disk costs more than all of the rest
    if bytes.len().is_multiple_of(8) {
        rows_of(bytes, table.as_ref());
    }
    let Some(table) = table else { return false };
    let mut file = Vec::new();
    npy::write(&table, npy::Float::F8, &mut file).expect("memory takes every table");
    assert_eq!(npy::read(&file).expect("the writer's file reads back"), table);
    true
}

/// The rows of the file where they stand are those that its reader finds; what that refuses is refused.
fn rows_of(bytes: &[u8], table: Option<&Table>) {
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(format!("resflow-rows-{process}-{thread:?}"));
    std::fs::write(&path, bytes).expect("a temporary file");
    let found = NpyRows::open(&path, &ReadOptions::default()).and_then(|rows| {
        let rows: &dyn StoredRows = &rows;
        rows.read_table(0..rows.rows())
    });
    std::fs::remove_file(&path).expect("it is there");
    match (found, table) {
        (Ok(found), Some(table)) => assert_eq!(&found, table),
        (Ok(_), None) => panic!("rows of a file that is refused"),
        (Err(DataError::File { source, .. }), Some(_)) => assert!(matches!(*source, DataError::Options(_)), "{source}"),
        (Err(error), Some(_)) => panic!("{error}"),
        (Err(error), None) => explained(&error),
    }
}

fn accepted(result: Result<Table, DataError>, bytes: &[u8]) -> Option<Table> {
    match result {
        Ok(table) => {
            assert!(table.rows() > 0 && table.values().len() <= bytes.len());
            assert!(table.values().iter().all(|v| v.is_finite()));
            Some(table)
        }
        Err(error) => {
            explained(&error);
            None
        }
    }
}

/// An error is a few lines of printable text, whatever the file holds.
fn explained(error: &impl Display) {
    let message = error.to_string();
    assert!(!message.is_empty() && message.chars().count() < 1000, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

/// A configuration file, as the command line reads it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) flow: FlowConfig,
    pub(crate) train: TrainConfig,
}

/// The parsers of configurations and of estimators never panic, and what they accept and `check` lets pass is bounded and
/// reads back as it was written.
pub(crate) fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let estimator = text.parse::<Estimator>().is_ok_and(|estimator| {
        estimator.check().expect("checked by the parser");
        let json = serde_json::to_string(&estimator).expect("serialises");
        assert_eq!(serde_json::from_str::<Estimator>(&json).expect("reads back"), estimator);
        !estimator.to_string().is_empty()
    });
    if let Ok(base) = text.parse::<BaseConfig>() {
        base.check().expect("checked by the parser");
        assert_eq!(base.to_string().parse::<BaseConfig>().expect("reads back"), base);
    }
    let settings = toml::from_str(text).is_ok_and(|settings| bounded(&settings));
    let images = toml::from_str(text).is_ok_and(|images| bounded_images(&images));
    estimator || settings || images
}

fn bounded(settings: &Settings) -> bool {
    let Settings { flow, train } = settings;
    if let Err(error) = flow.check().and(train.check()) {
        explained(&error);
        return false;
    }
    assert!(flow.parameters() <= 1 << 32);
    let layers = flow.linear_layers();
    assert!(layers.len() == flow.hidden.len() + 1 && layers.len() * flow.blocks <= 1_000_000);
    let multiply_adds = layers.iter().map(|&(i, o)| i as u64 * o as u64).sum();
    let cost = CostModel { dimension: flow.dimension, multiply_adds, bottleneck: None };
    estimators_are_bounded([&flow.training, &flow.evaluation], &cost);
    for (step, progress) in [(1, 0.0), (train.warmup.max(1), 0.5), (train.steps, 1.0), (u64::MAX, f64::NAN)] {
        let rate = train.rate(step, progress);
        assert!(progress.is_nan() || (0.0..=train.learning_rate * (1.0 + 1e-12)).contains(&rate), "{rate}");
    }
    let text = toml::to_string(settings).expect("serialises");
    assert_eq!(&toml::from_str::<Settings>(&text).expect("reads back"), settings, "{text}");
    let json = serde_json::to_string(flow).expect("serialises");
    assert_eq!(&serde_json::from_str::<FlowConfig>(&json).expect("reads back"), flow, "{json}");
    true
}

fn estimators_are_bounded([training, evaluation]: [&Estimator; 2], cost: &CostModel) {
    for (estimator, phase) in [(training, Phase::Training), (evaluation, Phase::Evaluation)] {
        let estimator = estimator.resolve(cost, phase);
        estimator.check().expect("checked with the configuration");
        if let Estimator::RussianRoulette(roulette) = &estimator {
            assert!((0.0..20_000.0).contains(&roulette.expected_terms()));
            // the longest draw that there is, and one by chance
            for draws in [vec![roulette.law.quantile(0.0)], roulette.draw(Key::new(0))] {
                let coefficients = roulette.coefficients(&draws);
                assert!(coefficients.len() <= 11_000 && coefficients.iter().all(|c| c.is_finite() && *c >= 0.0));
            }
        }
    }
}

/// The configuration of an image flow, likewise; what it says of its size is what its chain spells out.
fn bounded_images(flow: &ImageConfig) -> bool {
    if let Err(error) = flow.check() {
        explained(&error);
        return false;
    }
    let config = ModelConfig::from(flow);
    assert!(flow.parameters() <= 1 << 32 && flow.dimension() <= 1 << 26 && config.constrained_layers() <= 10_000_000);
    assert_eq!(config.sample_shape().iter().product::<usize>(), config.dimension());
    estimators_are_bounded(
        [&flow.training, &flow.evaluation],
        &CostModel { dimension: 1, multiply_adds: 1, bottleneck: None },
    );
    // spelling out a long chain takes memory that nobody asked for here
    if config.constrained_layers() <= 10_000 {
        let blocks = || {
            config.stages().into_iter().filter_map(|stage| match stage {
                Stage::ResidualBlock { shape, net }
                | Stage::InvertedBlock { shape, net }
                | Stage::MonotoneBlock { shape, net }
                | Stage::Coupling { shape, net, .. } => Some((shape, constrained_layers(&net))),
                _ => None,
            })
        };
        // an implicit block is two transforms
        let nets = if config.family() == Family::Implicit { 2 } else { 1 };
        assert_eq!(blocks().count(), nets * config.blocks());
        assert_eq!(blocks().map(|(_, layers)| layers).sum::<u64>(), config.constrained_layers());
        assert!(blocks().all(|(shape, _)| shape.iter().product::<usize>() <= flow.dimension()));
    }
    let text = toml::to_string(flow).expect("serialises");
    assert_eq!(&toml::from_str::<ImageConfig>(&text).expect("reads back"), flow, "{text}");
    let json = serde_json::to_string(&config).expect("serialises");
    assert_eq!(serde_json::from_str::<ModelConfig>(&json).expect("reads back"), config, "{json}");
    true
}

/// The layers of a net whose weights are constrained.
fn constrained_layers(net: &Net) -> u64 {
    let constrained = net.layers.iter().filter(|layer| match layer {
        LayerStage::Linear { coefficient, .. }
        | LayerStage::Convolution { coefficient, .. }
        | LayerStage::Dense { coefficient, .. } => coefficient.is_some(),
        _ => false,
    });
    constrained.count() as u64
}

type Cpu = NdArray<f64>;

/// The images that the runs among the seeds were on.
pub(crate) fn images() -> ImageSet {
    let mut noise = vec![0.0; 12 * 16];
    Noise::Uniform.fill(Key::new(7), 0, &mut noise);
    let bytes = noise.iter().map(|u: &f64| (u * 256.0) as u8).collect();
    ImageSet::new(4, 4, 1, bytes, Some([0, 1].repeat(6))).expect("twelve images")
}

/// What a file of ours holds, a model or a run's state; hostile metadata can make it both.
#[derive(Debug)]
pub(crate) struct Loaded {
    model: Option<Flow<Cpu>>,
    run: Option<Trainer<Cpu>>,
}

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

fn explained_or<T>(result: Result<T, Error>) -> Option<T> {
    result.map_err(|error| explained(&error)).ok()
}

/// Reads a file in every way that accepts it. Memory stays within a small multiple of the bytes.
pub(crate) fn load(bytes: &[u8]) -> Option<Loaded> {
    let archive = Archive::from_bytes(bytes).map_err(|error| explained(&error)).ok()?;
    let data = archive.document.pointer("/run/data").and_then(|data| data.as_str()).unwrap_or_default();
    let images = Source::from(images());
    let density = || Source::Density(data.parse().unwrap_or(ToyDensity::Moons));
    let source = if data.starts_with(&images.fingerprint(0)) { images } else { density() };
    let model = explained_or(Flow::from_archive(cpu(), &archive));
    let run = explained_or(Trainer::resume(cpu(), &archive, source));
    (model.is_some() || run.is_some()).then_some(Loaded { model, run })
}

/// Work, in passes of a row through a block, that a check is willing to wait for.
const PATIENCE: f64 = 1e6;

impl Loaded {
    /// What was accepted computes, goes on training, and reads back as it was written, without a panic.
    pub(crate) fn examine(self) {
        for flow in self.model.iter().chain(self.run.as_ref().map(Trainer::flow)) {
            evaluates(flow);
        }
        if let Some(flow) = self.model {
            let bytes = flow.to_archive().and_then(|a| Ok(a.to_bytes()?)).expect("memory takes every model");
            let again = Archive::from_bytes(&bytes).map_err(Error::from).and_then(|a| Flow::from_archive(cpu(), &a));
            assert_eq!(again.expect("reads back").config(), flow.config());
        }
        if let Some(run) = self.run {
            trains(run);
        }
    }
}

/// Passes through a block per row of a log det.
fn cost(flow: &Flow<Cpu>, phase: Phase) -> f64 {
    match flow.resolved(phase) {
        Estimator::Exact(_) | Estimator::Auto(_) => flow.dimension().pow(2) as f64,
        Estimator::Truncated(t) => (t.terms * t.probes) as f64,
        // the expectation is that of one batch: the longest of many rows is longer
        Estimator::RussianRoulette(r) => 10.0 * (1.0 + r.expected_terms()) * r.probes as f64,
    }
}

/// A context of so many columns, of which some are categories.
fn contexts(columns: usize, categories: Option<&FlowCategories>) -> Dataset {
    let numbers = columns - categories.map_or(0, FlowCategories::width);
    let table = (numbers > 0).then(|| Table::new(None, numbers, vec![0.5; numbers]).expect("finite"));
    let own = categories
        .map(|own| Categories::new(own.columns().to_vec(), vec![0; own.columns().len()]).expect("levels have a first"));
    match (table, own) {
        (Some(table), Some(own)) => Dataset::from(table).with_categories(own).expect("one row"),
        (Some(table), None) => table.into(),
        (None, own) => own.expect("a context of something").into(),
    }
}

fn evaluates(flow: &Flow<Cpu>) {
    let mut flow = flow.clone();
    flow.visit(&mut |name, tensor, _| {
        let values = flow.backend().download(tensor).expect("no device fault");
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
    });
    assert_eq!(flow.parameters(), flow.config().parameters());
    assert!(flow.variance_warnings().len() <= 2);
    flow.spectra().expect("no device fault");
    let config = flow.config();
    if cost(&flow, Phase::Evaluation) * (3 * config.blocks() * config.replicates()) as f64 > PATIENCE {
        // as a user would who has the same doubts
        let cheap = Estimator::Truncated(Truncated::new(1).expect("in range"));
        flow.set_log_prob_estimator(cheap, 2).expect("in range");
    }
    let prepared = flow.prepare();
    if let Some(context) = flow.context() {
        let contexts = contexts(context.columns(), flow.categories());
        let at = prepared.condition(&contexts).expect("a context that fits");
        if flow.config().blocks() <= 10 {
            let (drawn, scores) = at.sample_and_log_prob(3, Key::new(3)).expect("no device fault");
            assert!(drawn.samples.rows() == 3 && scores.values.len() == 3);
            if let Some(density) = flow.categories().and_then(FlowCategories::density) {
                let drawn = prepared.sample(3, Key::new(3), &Inversion::for_backend::<Cpu>()).expect("no device fault");
                let log_p = density.log_prob(&drawn.categories.expect("categories")).expect("its own levels");
                assert!(log_p.iter().all(|log| log.is_finite()));
            }
        }
        return;
    }
    // a standardisation may send rows to infinity, which is an error
    let Some(encoded) = encodes(&flow, &prepared) else { return };
    assert!(encoded.latents.rows() == 3 && encoded.log_det.len() == 3 && encoded.standard_error.len() == 3);
    if flow.config().blocks() <= 10 {
        let mut rows = vec![0.0; 3 * flow.dimension()];
        Noise::Normal.fill(Key::new(1), 0, &mut rows);
        let rows = Table::new(None, flow.dimension(), rows).expect("finite");
        let decoded = prepared.decode(&rows, &Inversion::for_backend::<Cpu>()).expect("rows that fit");
        assert!(decoded.samples.rows() == 3 && decoded.reports.len() == 3);
    }
}

/// p(y | x) of three images by a hybrid model: it sums to one, unless it overflows.
fn classifies(prepared: &PreparedFlow<Cpu>, images: &ImageSet) {
    if !prepared.classifies() {
        return;
    }
    let said = prepared.classify(images, Key::new(2)).expect("images that fit");
    assert_eq!((said.len(), said.predicted().len()), (3, 3));
    for row in 0..3 {
        let total: f64 = (0..said.classes).map(|class| said.probability(row, class)).sum();
        assert!(!total.is_finite() || (total - 1.0).abs() < 1e-9, "{total}");
    }
}

/// Three rows or images forth.
fn encodes(flow: &Flow<Cpu>, prepared: &PreparedFlow<Cpu>) -> Option<Encoded> {
    let d = flow.dimension();
    if let [h, w, c] = flow.config().sample_shape()[..] {
        let bytes = (0..3 * d).map(|e| (e * 37 % 256) as u8).collect();
        let images = ImageSet::new(h, w, c, bytes, None).expect("three images");
        classifies(prepared, &images);
        return prepared.encode(&images, Key::new(2)).ok();
    }
    let mut rows = vec![0.0; 3 * d];
    Noise::Normal.fill(Key::new(1), 0, &mut rows);
    prepared.encode(&Table::new(None, d, rows).expect("finite"), Key::new(2)).ok()
}

/// A step of a resumed run and a validation either work or say that they diverged, and the state stays one that loads.
fn trains(mut run: Trainer<Cpu>) {
    let (config, flow) = (run.config(), run.flow());
    let (blocks, power) = (flow.config().blocks() as f64, config.power_iterations as f64);
    let cheap = |rows: usize, passes: f64| (rows as f64 * passes + 10.0 * power) * blocks <= PATIENCE;
    if cheap(run.step_samples(), cost(flow, Phase::Training)) {
        assert!((0.0..=f64::MAX).contains(&run.progress()));
        match run.step() {
            Ok(report) => assert!(report.learning_rate >= 0.0 && report.step == run.steps_done()),
            Err(error) => explained(&error),
        }
    }
    let (config, flow) = (run.config(), run.flow());
    if cheap(config.validation_rows, cost(flow, Phase::Evaluation) * flow.config().replicates() as f64) {
        match run.validate() {
            Ok(validation) => assert!(!validation.improved || run.best_nll() == Some(validation.nll)),
            Err(error) => explained(&error),
        }
    }
    let archive = run.to_archive().expect("no device fault");
    let bytes = archive.to_bytes().expect("memory takes every state");
    assert!(Archive::from_bytes(&bytes).is_ok());
}

/// A model or a run's state, see [`load`] and [`Loaded::examine`].
pub(crate) fn checkpoint(bytes: &[u8]) -> bool {
    let loaded = load(bytes);
    let accepted = loaded.is_some();
    loaded.into_iter().for_each(Loaded::examine);
    accepted
}
