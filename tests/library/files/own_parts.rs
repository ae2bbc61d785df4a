//! Models with transforms and layers of one's own in files: refused where they do not say what they are, kept to the bit
//! where they do.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Activation, Backend, Binary, Key, Over, Reduce};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use resflow::block::ResidualBlock;
use resflow::checkpoint::Archive;
use resflow::config::{FlowConfig, Nonlinearity};
use resflow::data::{Table, ToyDensity};
use resflow::error::{ConfigError, Error};
use resflow::flow::Flow;
use resflow::invert::Solution;
use resflow::layer::{
    ActivationLayer, Derivatives, Layer, LayerGrads, LipschitzLinear, PreparedLayer, Saved, Sequence,
};
use resflow::lipschitz::Coefficient;
use resflow::module::{Grad, Module, accumulate};
use resflow::registry::Registry;
use resflow::stage::{Custom, LayerStage, Stage};
use resflow::train::{Budget, TrainConfig, Trainer};
use serde_json::json;

/// y = x + b.
#[derive(Debug, Clone)]
struct Shift<B: Backend> {
    bias: B::Tensor,
    features: usize,
    /// Whether it says what it is.
    says: bool,
}

impl<B: Backend> Shift<B> {
    fn new(backend: &B, features: usize, says: bool) -> Self {
        Self { bias: backend.full(0.25, [features].into()), features, says }
    }
}

impl<B: Backend> Module<B> for Shift<B> {
    resflow::parts!(B; bias: Parameter);

    fn describe(&self) -> String {
        "my shift".into()
    }
}

impl<B: Backend> Bijection<B> for Shift<B> {
    fn prepare(&self, _: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(self.clone())
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let features = self.features;
        match shape {
            [d] if *d == features => Ok(shape.to_vec()),
            _ => Err(ConfigError::Inconsistent(format!("a shift of {features} features, samples {shape:?}"))),
        }
    }

    fn stage(&self) -> Option<Stage> {
        self.says.then(|| Stage::Custom(Custom::new("my shift", json!({ "features": 2 })).expect("JSON")))
    }
}

impl<B: Backend> ClosedForm<B> for Shift<B> {
    fn map(&self, b: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let zeros = b.full(0.0, [batch.len(b), 1].into());
        (b.binary(Binary::Add, batch.x.clone(), &self.bias), zeros)
    }

    fn unmap(&self, b: &B, batch: &Batch<B>) -> Result<Solution<B>, Error> {
        Ok(Solution::by_formula(b, b.binary(Binary::Sub, batch.x.clone(), &self.bias), 1.0)?)
    }

    fn pull_back(&self, b: &B, _: Batch<B>, cotangents: Cotangents<B>, grads: &mut [Grad<B>]) -> Cotangents<B> {
        accumulate(b, &mut grads[0], &b.reduce(Reduce::Sum, Over::Channel, &cotangents.x));
        cotangents
    }
}

/// y = ½ tanh x: no tensors, like the tanh that a configuration may ask for.
#[derive(Debug, Clone)]
struct HalfTanh<B: Backend> {
    tanh: ActivationLayer<B>,
    says: bool,
}

impl<B: Backend> HalfTanh<B> {
    fn new(backend: &B, says: bool) -> Self {
        Self { tanh: ActivationLayer::new(backend, Activation::Tanh), says }
    }
}

impl<B: Backend> Module<B> for HalfTanh<B> {
    fn describe(&self) -> String {
        "half a tanh".into()
    }
}

impl<B: Backend> Layer<B> for HalfTanh<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(Half(self.tanh.prepare(backend)))
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(input.to_vec())
    }

    fn multiply_adds(&self, _: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        0.5
    }

    fn stage(&self) -> Option<LayerStage> {
        self.says.then(|| LayerStage::Custom(Custom::new("half tanh", ()).expect("JSON")))
    }
}

#[derive(Debug)]
struct Half<B: Backend>(Box<dyn PreparedLayer<B>>);

fn half<B: Backend>(b: &B, x: B::Tensor) -> B::Tensor {
    b.affine(x, 0.5, 0.0)
}

impl<B: Backend> PreparedLayer<B> for Half<B> {
    fn forward(&self, b: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let (y, saved) = self.0.forward(b, batch, keep);
        (half(b, y), saved)
    }

    fn jvp(&self, b: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let (dy, kept) = self.0.jvp(b, saved, dx);
        (half(b, dy), kept)
    }

    fn vjp(&self, b: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        self.0.vjp(b, saved, half(b, gy))
    }

    fn tangent_vjp(
        &self,
        b: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let gdy = gdy.into_iter().map(|g| half(b, g)).collect();
        self.0.tangent_vjp(b, saved, tangents, half(b, gy), gdy, grads)
    }
}

type Cpu = NdArray<f64>;

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

fn config() -> FlowConfig {
    FlowConfig {
        blocks: 1,
        hidden: vec![6],
        activation: Nonlinearity::Tanh,
        leading_activation: false,
        actnorm: false,
        ..FlowConfig::new(2)
    }
}

/// A registry that knows both parts.
fn registry<B: Backend>() -> Registry<B> {
    let mut registry = Registry::new();
    registry.add_transform("my shift", |backend, settings| {
        let features = settings["features"].as_u64().filter(|&f| f <= 64);
        let features = features.ok_or_else(|| ConfigError::Syntax("a shift without features".into()))?;
        Ok(Box::new(Shift::new(backend, features as usize, true)))
    });
    registry.add_layer("half tanh", |backend, _| Ok(Box::new(HalfTanh::new(backend, true))));
    registry
}

/// x + g(x) with an activation of one's own, as shapes go what the configuration spells out.
fn own_layer(says: bool) -> Box<dyn Bijection<Cpu>> {
    let (b, kappa) = (cpu(), Coefficient::new(0.9).expect("in range"));
    let layers: Vec<Box<dyn Layer<Cpu>>> = vec![
        Box::new(LipschitzLinear::initialise(&b, 2, 6, kappa, Key::new(1))),
        Box::new(HalfTanh::new(&b, says)),
        Box::new(LipschitzLinear::initialise(&b, 6, 2, kappa, Key::new(2))),
    ];
    Box::new(ResidualBlock::new(Box::new(Sequence::new(layers)), &[2]).expect("a contraction"))
}

fn own_transform(says: bool) -> Box<dyn Bijection<Cpu>> {
    Box::new(Shift::new(&cpu(), 2, says))
}

fn flow(transforms: Vec<Box<dyn Bijection<Cpu>>>) -> Flow<Cpu> {
    Flow::from_transforms(cpu(), config(), transforms).expect("samples pass")
}

fn trained(flow: Flow<Cpu>) -> Trainer<Cpu> {
    let settings = TrainConfig { batch: 8, validate_every: 2, validation_rows: 16, ..TrainConfig::default() };
    let mut trainer = Trainer::new(flow, ToyDensity::Moons, &settings, Budget::Steps(6), Key::new(3)).expect("a run");
    for _ in 0..3 {
        trainer.step().expect("finite");
    }
    trainer.validate().expect("finite");
    trainer
}

fn log_prob(flow: &Flow<Cpu>) -> Vec<f64> {
    let x = Table::new(None, 2, vec![0.3, -0.2, 1.5, 0.7, -2.0, 0.1]).expect("finite");
    flow.log_prob(&x, Key::new(5)).expect("samples that fit").values
}

#[track_caller]
fn unregistered<T>(result: Result<T, Error>, number: usize, description: &str) {
    match result.map(drop) {
        Err(Error::Unregistered { number: n, description: d }) => {
            assert!(n == number && d.contains(description), "transform {n} ({d})");
        }
        other => panic!("expected transform {number} ({description}) to be unregistered, got {other:?}"),
    }
}

#[test]
fn a_part_that_does_not_say_what_it_is_is_refused_everywhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    // the second was not refused before: saved as the configured tanh, with another log p after loading
    for (transforms, number, description) in
        [(vec![own_layer(true), own_transform(false)], 1, "my shift"), (vec![own_layer(false)], 0, "half a tanh")]
    {
        let trainer = trained(flow(transforms));
        let flow = trainer.flow();
        unregistered(flow.clone().save(&path), number, description);
        assert!(!path.exists(), "nothing is written");
        unregistered(flow.to_archive(), number, description);
        unregistered(flow.stages(), number, description);
        unregistered(flow.to_backend(NdArray::<f32>::new()), number, description);
        unregistered(flow.to_backend_with(cpu(), &registry()), number, description);
        unregistered(trainer.to_archive(), number, description);
        unregistered(trainer.model().to_archive(), number, description);
        let message = flow.to_archive().expect_err("unregistered").to_string();
        assert!(message.contains(&format!("transform {number}")) && message.contains(description), "{message}");
    }
}

#[test]
fn registered_parts_are_kept_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    for transforms in [vec![own_layer(true)], vec![own_transform(true), own_layer(true), own_transform(true)]] {
        let mut trainer = trained(flow(transforms));
        let mut flow = trainer.flow().clone();
        flow.seal().expect("no fault");
        let expected = log_prob(&flow);
        flow.save(&path).expect("written");
        let archive = Archive::read(&path).expect("ours");
        assert_eq!(archive.document["model"]["format"], 3);
        let again = Flow::load_with(cpu(), &path, &registry()).expect("registered");
        assert_eq!(log_prob(&again), expected);
        assert_eq!(again.stages().expect("they say"), flow.stages().expect("they say"));
        assert_eq!(again.to_archive().expect("stored").tensors, archive.tensors);
        assert_eq!(log_prob(&flow.to_backend_with(cpu(), &registry()).expect("registered")), expected);
        let single = flow.to_backend_with(NdArray::<f32>::new(), &registry()).expect("registered");
        assert_eq!(single.parameters(), flow.parameters());

        let state = trainer.to_archive().expect("they say");
        let model = state.clone().into_model();
        let best = Flow::from_archive_with(cpu(), &model, &registry()).expect("registered");
        assert_eq!(log_prob(&best), log_prob(&trainer.model()));
        let mut resumed = Trainer::resume_with(cpu(), &state, ToyDensity::Moons, &registry()).expect("registered");
        assert_eq!(log_prob(resumed.flow()), log_prob(trainer.flow()));
        for _ in 0..3 {
            let (a, b) = (trainer.step().expect("finite"), resumed.step().expect("finite"));
            assert_eq!(a, b);
        }
        assert_eq!(log_prob(resumed.flow()), log_prob(trainer.flow()));
    }
}

#[test]
fn a_registry_that_lacks_a_part_names_it_and_what_there_is() {
    let trainer = trained(flow(vec![own_transform(true), own_layer(true)]));
    let (flow, state) = (trainer.flow(), trainer.to_archive().expect("they say"));
    let archive = flow.to_archive().expect("they say");
    let mut without = Registry::<Cpu>::new();
    without.add_transform("another", |backend, _| Ok(Box::new(Shift::new(backend, 2, true))));
    without.add_transform("one more", |backend, _| Ok(Box::new(Shift::new(backend, 2, true))));
    let mut layerless = Registry::<Cpu>::new();
    layerless.add_transform("my shift", |backend, _| Ok(Box::new(Shift::new(backend, 2, true))));
    for (registry, name, there_is) in [
        (Registry::new(), "`my shift`", "none is registered"),
        (without, "`my shift`", "`another`, `one more`"),
        (layerless, "`half tanh`", "none is registered"),
    ] {
        let refusals = [
            Flow::from_archive_with(cpu(), &archive, &registry).map(drop),
            flow.to_backend_with(cpu(), &registry).map(drop),
            Trainer::resume_with(cpu(), &state, ToyDensity::Moons, &registry).map(drop),
        ];
        for refused in refusals {
            let error = refused.expect_err("not registered");
            assert!(matches!(error, Error::Config(_)), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(name) && message.contains(there_is), "{message}");
        }
    }
    let refusals = [
        Flow::from_archive(cpu(), &archive).map(drop),
        flow.to_backend(cpu()).map(drop),
        Trainer::resume(cpu(), &state, ToyDensity::Moons).map(drop),
    ];
    for refused in refusals {
        let message = refused.expect_err("not registered").to_string();
        assert!(message.contains("`my shift`") && message.contains("none is registered"), "{message}");
    }
}

/// A name and settings come from the file: they are shown in a few printable words and go no further than the maker.
#[test]
fn names_and_settings_are_read_with_suspicion() {
    let mut archive = flow(vec![own_transform(true), own_layer(true)]).to_archive().expect("they say");
    archive.document["model"]["chain"][0]["custom"]["name"] = json!(format!("a\n\u{1b}[2J{}", "x".repeat(5000)));
    let message = Flow::from_archive_with(cpu(), &archive, &registry()).expect_err("not registered").to_string();
    assert!(message.chars().count() < 1000 && !message.contains(char::is_control), "{message:?}");
    for settings in [json!(null), json!({ "features": u64::MAX }), json!({ "features": 3 }), json!([[[]]])] {
        archive.document["model"]["chain"][0]["custom"] = json!({ "name": "my shift", "settings": settings });
        assert!(Flow::from_archive_with(cpu(), &archive, &registry()).is_err(), "{settings}");
    }
}
