//! Model files and run states of flows over other bases than the standard normal, and of ones that began as the identity: what
//! is stored and loaded, moved and resumed, what is refused, and what hostile numbers of components cost.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::base::{Base, Covariance, GaussianMixture, MixtureConfig, Normal, PreparedBase};
use resflow::checkpoint::Archive;
use resflow::config::{BaseConfig, Family, FlowConfig, ImageConfig, ModelConfig, Start};
use resflow::data::{Table, ToyDensity};
use resflow::flow::Flow;
use resflow::module::Module;
use resflow::train::{Budget, TrainConfig, Trainer};
use serde_json::json;

use crate::memory::peak;

type Cpu = NdArray<f64>;

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

const BASES: [&str; 3] = ["mixture:components=3", "mixture:components=2,covariance=diagonal", "student-t"];

fn rows(base: BaseConfig, start: Start) -> FlowConfig {
    FlowConfig { blocks: 2, hidden: vec![4], base, start, ..FlowConfig::new(2) }
}

fn images(base: BaseConfig) -> ImageConfig {
    ImageConfig {
        height: 4,
        width: 4,
        channels: 1,
        blocks: vec![1, 1],
        filters: 2,
        fully_connected: 0,
        base,
        evaluation: "truncated:terms=3".parse().expect("a text"),
        ..ImageConfig::default()
    }
}

fn models() -> Vec<ModelConfig> {
    let mut all = Vec::new();
    for text in BASES {
        let base = text.parse().expect("a base");
        all.extend([rows(base, Start::Random).into(), rows(base, Start::Identity).into(), images(base).into()]);
    }
    all.push(rows(BaseConfig::Normal, Start::Identity).into());
    all.push(FlowConfig { model: Family::RealNvp, ..rows(BaseConfig::Normal, Start::Identity) }.into());
    all
}

fn samples(d: usize) -> Table {
    Table::new(None, d, (0..4 * d).map(|e| 0.1 + 0.8 * ((e * 7 % 11) as f64) / 11.0).collect()).expect("finite")
}

#[test]
fn every_base_is_stored_and_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    for config in models() {
        let mut flow = Flow::new(cpu(), &config, Key::new(1)).expect("valid");
        flow.save(&path).expect("written");
        let archive = Archive::read(&path).expect("ours");
        assert_eq!(archive.document["model"]["format"], 4);
        let again = Flow::load(cpu(), &path).expect("a model");
        assert_eq!(again.config(), &config);
        assert_eq!(
            again.to_archive().expect("stored").to_bytes().expect("stored"),
            std::fs::read(&path).expect("there")
        );
        let (x, key) = (samples(config.dimension()), Key::new(2));
        let exact = flow.log_prob(&x, key).expect("rows that fit").values;
        assert_eq!(again.log_prob(&x, key).expect("rows that fit").values, exact);
        // on another device its samples are the same but for rounding
        let single = flow.to_backend(NdArray::<f32>::new()).expect("all built in");
        let found = single.log_prob(&x, key).expect("rows that fit").values;
        assert!(exact.iter().zip(&found).all(|(e, f)| (e - f).abs() < 1e-3 * (1.0 + e.abs())), "{exact:?} {found:?}");
        let [a, b] = [flow.base().prepare(&cpu()).sample(&cpu(), key, 0, 5, None), {
            let device = NdArray::<f32>::new();
            let drawn = single.base().prepare(&device).sample(&device, key, 0, 5, None);
            let drawn: Vec<f64> = device.download(&drawn).expect("no fault").into_iter().map(f64::from).collect();
            cpu().upload(&drawn, [5, config.dimension()].into())
        }]
        .map(|t| cpu().download(&t).expect("no fault"));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs())), "{a:?} {b:?}");
        // the number of the format says what the configuration holds, and nothing is left out
        for format in [2, 3, 5] {
            let mut wrong = archive.clone();
            wrong.document["model"]["format"] = json!(format);
            let refused = Flow::from_archive(cpu(), &wrong).expect_err("another format").to_string();
            assert!(refused.contains(&format!("format {format}")), "{refused}");
        }
        for name in archive.tensors.keys().filter(|name| name.starts_with("base.")) {
            let mut lacking = archive.clone();
            lacking.tensors.remove(name);
            assert!(Flow::from_archive(cpu(), &lacking).is_err(), "without {name}");
        }
    }
}

/// The key is new: a model without it is over N(0, I), and one that is does not write it, so that older readers take it.
#[test]
fn the_standard_normal_is_not_named() {
    let flow = Flow::new(cpu(), rows(BaseConfig::Normal, Start::Random), Key::new(1)).expect("valid");
    let archive = flow.to_archive().expect("stored");
    assert_eq!(archive.document["model"]["format"], 2);
    let config = &archive.document["model"]["config"]["rows"];
    assert!(config.get("base").is_none() && config.get("start").is_none(), "{config}");
    assert!(!archive.tensors.keys().any(|name| name.starts_with("base.")));
    assert_eq!(Flow::from_archive(cpu(), &archive).expect("a model").base().config(), Some(BaseConfig::Normal));
}

/// A base of one's own, which no configuration describes: N(0, 4 I).
#[derive(Debug, Clone)]
struct Wide(Normal);

impl Module<Cpu> for Wide {}

impl Base<Cpu> for Wide {
    fn dimension(&self) -> usize {
        Base::<Cpu>::dimension(&self.0)
    }

    fn prepare(&self, backend: &Cpu) -> Box<dyn PreparedBase<Cpu>> {
        self.0.prepare(backend)
    }
}

#[test]
fn a_base_that_no_configuration_describes_is_not_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    for base in [BaseConfig::Normal, "mixture".parse().expect("a base")] {
        let mut flow = Flow::new(cpu(), rows(base, Start::Random), Key::new(1)).expect("valid");
        flow.set_base(Wide(Normal::new(2))).expect("two dimensions");
        for refused in [
            flow.save(folder.path().join("model")).expect_err("not described"),
            flow.to_backend(NdArray::<f32>::new()).expect_err("not described"),
        ] {
            assert!(refused.to_string().contains("Wide"), "{refused}");
        }
        let trainer = Trainer::new(flow, ToyDensity::Moons, &TrainConfig::default(), Budget::Steps(1), Key::new(2));
        assert!(trainer.expect("trains").to_archive().is_err());
    }
    // and one that it does describe is named by the flow
    let mut flow = Flow::new(cpu(), rows(BaseConfig::StudentT, Start::Random), Key::new(1)).expect("valid");
    flow.set_base(Normal::new(2)).expect("two dimensions");
    assert_eq!(flow.to_archive().expect("stored").document["model"]["format"], 2);
}

/// What a file says that it holds must be there before memory is taken for it.
#[test]
fn a_hostile_mixture_costs_nothing() {
    let base = "mixture:components=2".parse().expect("a base");
    for config in [ModelConfig::from(rows(base, Start::Random)), images(base).into()] {
        let flow = Flow::new(cpu(), &config, Key::new(1)).expect("valid");
        let honest = flow.to_archive().expect("stored");
        let kind = if config.rows().is_some() { "rows" } else { "images" };
        for (key, value) in [
            ("base", json!({ "mixture": { "components": 1000, "covariance": "full" } })),
            ("base", json!("mixture:components=1000,covariance=diagonal")),
            ("base", json!({ "mixture": { "components": 0 } })),
            ("base", json!({ "mixture": { "components": 1_000_000 } })),
            ("base", json!({ "mixture": { "components": u64::MAX } })),
            ("base", json!({ "mixture": { "components": 2, "covariance": "tied" } })),
            ("base", json!("student-t")),
            ("base", json!("cauchy")),
            ("base", json!(null)),
            ("dimension", json!(60_000)),
            ("height", json!(16_384)),
            ("start", json!("zero")),
        ] {
            let mut hostile = honest.clone();
            hostile.document["model"]["config"][kind][key] = value.clone();
            let bytes = hostile.to_bytes().expect("stored");
            let (loaded, held) =
                peak(|| Flow::from_archive(cpu(), &Archive::from_bytes(&bytes).expect("ours")).map(drop));
            assert!(loaded.is_err(), "{key} = {value}");
            assert!(held < 40 * bytes.len() + 200_000, "{key} = {value}: {held} bytes of {}", bytes.len());
        }
    }
    let (wide, covariance) = (1 << 16, Covariance::Full);
    let base = BaseConfig::Mixture(MixtureConfig { components: 8, covariance });
    let refused = FlowConfig { base, ..FlowConfig::new(wide) }.check().expect_err("too many").to_string();
    assert!(refused.contains("parameters"), "{refused}");
}

/// What a mixture learned of pixels is of no other image size; N(0, I) is of all.
#[test]
fn images_of_another_size_have_another_base() {
    let flow = |base| Flow::new(cpu(), images(base), Key::new(1)).expect("valid");
    assert_eq!(flow(BaseConfig::Normal).resized(8, 8).expect("a size").dimension(), 64);
    for text in BASES {
        let flow = flow(text.parse().expect("a base"));
        assert!(flow.resized(4, 4).is_ok(), "its own size");
        let refused = flow.resized(8, 8).expect_err("another size").to_string();
        assert!(refused.contains("tied to its size"), "{refused}");
        assert!(flow.resized(8, 2).is_err(), "as many pixels at other places");
    }
}

/// A run over a mixture goes on with the same bits, and so does one whose base was put in by hand.
#[test]
fn a_run_over_a_mixture_goes_on() {
    let run = || {
        let mut flow = Flow::new(cpu(), rows(BaseConfig::Normal, Start::Identity), Key::new(1)).expect("valid");
        let size = MixtureConfig { components: 3, covariance: Covariance::Full };
        flow.set_base(GaussianMixture::initialise(&cpu(), size, 2, Key::new(2))).expect("two dimensions");
        let settings = TrainConfig { batch: 32, warmup: 1, validation_rows: 50, ..TrainConfig::default() };
        Trainer::new(flow, ToyDensity::Moons, &settings, Budget::Steps(6), Key::new(3)).expect("data that fit")
    };
    let bytes = |trainer: &Trainer<Cpu>| {
        let mut archive = trainer.to_archive().expect("stored");
        archive.document["run"]["elapsed"] = 0.into();
        archive.to_bytes().expect("stored")
    };
    let mut whole = run();
    whole.run(|_, _| ()).expect("finite");
    let mut first = run();
    for _ in 0..3 {
        first.step().expect("finite");
    }
    first.validate().expect("finite");
    let archive = Archive::from_bytes(&bytes(&first)).expect("a state");
    let mut second = Trainer::resume(cpu(), &archive, ToyDensity::Moons).expect("the same data");
    second.run(|_, _| ()).expect("finite");
    let model = |trainer: &Trainer<Cpu>| trainer.flow().to_archive().expect("stored").to_bytes().expect("stored");
    assert!(model(&whole) == model(&second), "the same steps");
}
