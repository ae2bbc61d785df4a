//! Bad input of every public entry point gives an error, and none a panic. Operations on tensors whose shapes do not fit
//! are a bug of their caller and panic by the backend's contract; what takes numbers, tables, configurations and files
//! does not.

use crate::common::*;
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::batch::{Batch, SampleWeights};
use resflow::bijection::Bijection as _;
use resflow::block::ResidualBlock;
use resflow::checkpoint::{Archive, Values, write_atomically};
use resflow::config::{BaseConfig, Covariance, Family, FlowConfig, ImageConfig, MixtureConfig, Nonlinearity};
use resflow::data::{Standardiser, Table, ToyDensity};
use resflow::error::{CheckpointError, ConfigError, Error};
use resflow::estimator::{Estimator, Law, Probe, RussianRoulette, Sharing, Traces, Truncated};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Method, Status};
use resflow::layer::{Layer, LipschitzLinear, Sequence};
use resflow::lipschitz::{Coefficient, SingularPair};
use resflow::module::Module as _;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::transform::ActNorm;

const NUMBERS: [f64; 8] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -0.0, 0.0, 1.0, 1e300];

fn flow() -> Flow<Cpu> {
    Flow::new(cpu(), exact_config(2, 2, &[4]), Key::new(0)).expect("valid")
}

#[test]
fn coefficients_and_laws() {
    for bad in NUMBERS {
        assert!(Coefficient::new(bad).is_err(), "{bad}");
        assert!(Law::ShiftedGeometric { p: bad }.check().is_err(), "{bad}");
        assert!(Law::Poisson { rate: bad }.check().is_err() || bad == 1.0, "{bad}");
        assert!(RussianRoulette::new(Law::ShiftedGeometric { p: bad }, 2).is_err());
        assert!(Inversion::for_backend::<Cpu>().with_accuracy(bad).is_err(), "{bad}");
        // unchecked laws must not hang or panic either
        for law in [Law::ShiftedGeometric { p: bad }, Law::Poisson { rate: bad }] {
            let _ = (law.survival(0), law.survival(3), law.survival(u64::MAX), law.quantile(0.5), law.quantile(bad));
        }
    }
    // so small a probability that one draw of N could exhaust the memory
    assert!(Law::ShiftedGeometric { p: 1e-12 }.check().is_err());
    for law in [Law::ShiftedGeometric { p: 0.5 }, Law::Poisson { rate: 2.0 }, Law::Poisson { rate: 100.0 }] {
        assert!(law.survival(u64::MAX) == 0.0 && law.survival(1 << 40) == 0.0, "{law}");
        assert!(NUMBERS.iter().all(|&u| law.quantile(u) < 100_000), "{law}");
    }
}

#[test]
fn estimators() {
    let good = RussianRoulette::new(Law::Poisson { rate: 2.0 }, 2).expect("in range");
    assert!(RussianRoulette::new(Law::Poisson { rate: 2.0 }, usize::MAX).is_err());
    for count in [0, 1001, usize::MAX] {
        assert!(good.clone().with_draws(count).is_err(), "{count}");
        assert!(good.clone().with_probes(count, Probe::Gaussian).is_err(), "{count}");
        assert!(Truncated::new(count).is_err(), "{count}");
        let truncated = Truncated { terms: 3, probes: count, probe: Probe::Rademacher, traces: Traces::Exact };
        let roulette = RussianRoulette { draws: count, ..good.clone() };
        for estimator in [Estimator::Truncated(truncated), Estimator::RussianRoulette(roulette)] {
            assert!(estimator.check().is_err());
            assert!(
                Flow::new(cpu(), &FlowConfig { training: estimator.clone(), ..FlowConfig::new(2) }, Key::new(0))
                    .is_err()
            );
            assert!(flow().set_log_prob_estimator(estimator, 8).is_err());
        }
    }
    assert_eq!(good.coefficients(&[]), [1.0, 1.0]);
    // a Lipschitz bound of 1 or more bounds nothing, and never says that there is no bias
    for c in [1.0, 1.5, f64::NAN, f64::INFINITY] {
        assert_eq!(Truncated::new(3).expect("in range").bias_bound(2, c), f64::INFINITY, "{c}");
        assert!(good.variance_warning(c).is_some());
    }
    let text = serde_json::json!({ "russian-roulette": { "law": { "poisson": { "rate": 2.0 } }, "exact_terms": 2 } });
    assert!(serde_json::from_value::<Estimator>(text).is_ok());
    for bad in [
        serde_json::json!({ "russian-roulette": { "law": { "poison": { "rate": 2.0 } }, "exact_terms": 2 } }),
        serde_json::json!({ "russian-roulette": { "law": { "poisson": { "rate": 2.0 } }, "exact_terms": -2 } }),
        serde_json::json!({ "truncated": { "terms": 2, "prboes": 3 } }),
        serde_json::json!("exactly"),
    ] {
        assert!(serde_json::from_value::<Estimator>(bad).is_err());
    }
}

#[test]
fn inversions() {
    let how = Inversion::for_backend::<Cpu>();
    assert!(how.with_limit(0).is_err());
    assert!([0, 6, usize::MAX].into_iter().all(|m| how.with_method(Method::Anderson(m)).is_err()));
    let b = cpu();
    let block = Net {
        seed: 1,
        widths: vec![2, 5, 2],
        activation: Nonlinearity::LipSwish,
        leading: true,
        kappa: 0.9,
        stretch: vec![2.0; 2],
        iterations: None,
    };
    let block = block.block(&b).prepare(&b);
    // rows that cannot be inverted are an outcome of their own, and spoil no other row
    let y = [f64::NAN, 0.0, 1.0, 2.0, f64::INFINITY, 1.0, 1e308, -1e308, 0.5, -0.5];
    let batch = |y: &[f64]| Batch::new(b.upload(y, [y.len() / 2, 2].into()));
    let solve = |y: &[f64]| block.inverse(&b, &batch(y), &how).expect("no device fault");
    let solution = solve(&y);
    assert_eq!(
        [0, 1, 2, 4].map(|r| solution.reports[r].status),
        [Status::NonFinite, Status::Converged, Status::NonFinite, Status::Converged]
    );
    assert!(!solution.reports[0].error_bound.is_finite() && !solution.reports[2].error_bound.is_finite());
    let found = down(&b, &solution.value);
    assert_eq!(found[2..4], down(&b, &solve(&y[2..4]).value)[..]);
    assert!(solve(&[]).reports.is_empty());
    // a y whose square overflows is not solved, however small its residual is beside it
    let far = solve(&[1e200, 0.0, 0.1, 0.2]);
    assert_eq!([0, 1].map(|r| far.reports[r].status), [Status::NonFinite, Status::Converged]);
    assert!(!far.reports[0].error_bound.is_finite());
}

#[test]
fn configurations() {
    let good = FlowConfig::new(2);
    let f = |change: fn(&mut FlowConfig)| {
        let mut config = good.clone();
        change(&mut config);
        assert!(config.check().is_err(), "{config:?}");
        assert!(Flow::new(cpu(), &config, Key::new(0)).is_err());
        assert!(Flow::from_transforms(cpu(), config, Vec::new()).is_err());
    };
    f(|c| c.dimension = 0);
    f(|c| c.dimension = usize::MAX);
    f(|c| c.blocks = 0);
    f(|c| c.blocks = usize::MAX);
    f(|c| c.hidden = vec![]);
    f(|c| c.hidden = vec![4; 1000]);
    f(|c| c.hidden = vec![4, 0]);
    f(|c| c.hidden = vec![usize::MAX, 4]);
    f(|c| (c.dimension, c.hidden, c.blocks) = (1 << 16, vec![1 << 16; 64], 10_000));
    f(|c| c.coefficient = f64::NAN);
    f(|c| c.coefficient = 1.0);
    f(|c| c.coefficient = 0.0);
    f(|c| c.initial_scale = f64::NAN);
    f(|c| c.initial_scale = -1.0);
    f(|c| c.initial_scale = f64::INFINITY);
    let mixture = |components| BaseConfig::Mixture(MixtureConfig { components, covariance: Covariance::Full });
    for components in [0, 1001, usize::MAX] {
        let config = FlowConfig { base: mixture(components), ..good.clone() };
        assert!(config.check().is_err() && Flow::new(cpu(), &config, Key::new(0)).is_err(), "{components}");
    }
    f(|c| {
        c.dimension = 1 << 16;
        c.base = "mixture".parse().expect("a base");
    });
    // dense flows: a growth of halves, ℓ, norms, growths that add up
    let dense = |change: fn(&mut FlowConfig)| {
        let mut config = FlowConfig::of(Family::Dense, 2);
        change(&mut config);
        assert!(config.check().is_err() && Flow::new(cpu(), &config, Key::new(0)).is_err(), "{config:?}");
    };
    dense(|c| c.hidden = vec![4, 5]);
    dense(|c| c.hidden = vec![1 << 16; 2]);
    dense(|c| c.hidden = vec![usize::MAX - 1, 4]);
    for bound in [0.0, -1.0, 1.001, f64::NAN, f64::INFINITY] {
        let config = FlowConfig { dense_bound: bound, ..FlowConfig::of(Family::Dense, 2) };
        assert!(config.check().is_err(), "{bound}");
        let images = ImageConfig { dense_bound: bound, ..ImageConfig::default().of(Family::Dense) };
        assert!(images.check().is_err(), "{bound}");
    }
    dense(|c| c.norms = "1111".parse().expect("norms"));
    let images = |change: fn(&mut ImageConfig)| {
        let mut config = ImageConfig::default().of(Family::Dense);
        config.check().expect("the published one");
        change(&mut config);
        assert!(config.check().is_err(), "{config:?}");
    };
    images(|c| c.filters = 3);
    images(|c| c.fully_connected_growth = 5);
    images(|c| c.fully_connected_growth = 0);
    images(|c| c.fully_connected_growth = usize::MAX - 1);
    images(|c| c.norms = "11111".parse().expect("norms"));
    f(|c| c.replicates = 1);
    f(|c| c.replicates = usize::MAX);
    f(|c| {
        c.training = Estimator::RussianRoulette(RussianRoulette {
            law: Law::Poisson { rate: -1.0 },
            exact_terms: 2,
            draws: 1,
            probes: 1,
            probe: Probe::Rademacher,
            sharing: Sharing::Batch,
            traces: Traces::Exact,
        });
    });
    assert!(flow().set_log_prob_estimator(Estimator::default(), 0).is_err());
    assert!(serde_json::from_str::<FlowConfig>(r#"{"dimensoin": 2}"#).is_err());
    assert!(serde_json::from_str::<FlowConfig>(r#"{"dimension": -2}"#).is_err());
}

#[test]
fn layers_links_and_blocks() {
    let b = cpu();
    let (zeros, kappa) = (|shape: &[usize]| b.full(0.0, shape.into()), Coefficient::new(0.9).expect("in range"));
    for (w, bias, u, v) in [
        (vec![3, 2], vec![2], 3, 2),
        (vec![3, 2], vec![3], 2, 3),
        (vec![3, 2], vec![3, 1], 3, 2),
        (vec![6], vec![6], 6, 1),
        (vec![3, 2, 1], vec![3], 3, 2),
    ] {
        let pair = SingularPair::new(&b, zeros(&[u]), zeros(&[v]));
        assert!(
            LipschitzLinear::from_parts(&b, zeros(&w), zeros(&bias), pair, kappa).is_err(),
            "{w:?} {bias:?} {u} {v}"
        );
    }
    let layer = |i, o| -> Box<dyn Layer<Cpu>> { Box::new(LipschitzLinear::initialise(&b, i, o, kappa, Key::new(0))) };
    let chain = |layers| -> Box<dyn Layer<Cpu>> { Box::new(Sequence::new(layers)) };
    let double = || activation(&b, Nonlinearity::ClipSwish, Key::new(0));
    assert!(ResidualBlock::new(layer(2, 3), &[2]).is_err(), "another width");
    assert!(ResidualBlock::new(layer(2, 2), &[3]).is_err());
    assert!(ResidualBlock::new(layer(2, 2), &[]).is_err());
    assert!(ResidualBlock::new(chain(vec![]), &[2]).is_err(), "the identity is no contraction");
    assert!(ResidualBlock::new(chain(vec![layer(2, 3), layer(2, 2)]), &[2]).is_err());
    assert!(ResidualBlock::new(chain(vec![double(), layer(2, 2)]), &[2]).is_err(), "twice the features");
    assert!(ResidualBlock::new(double(), &[]).is_err());
    assert!(ActNorm::from_parts(&b, zeros(&[2]), zeros(&[3])).is_err());
    assert!(ActNorm::from_parts(&b, zeros(&[2, 1]), zeros(&[2, 1])).is_err());
    assert!(ActNorm::new(&b, 2).output_shape(&[3]).is_err());
    for shards in [vec![], vec![zeros(&[0, 2])], vec![zeros(&[1, 2])]] {
        let shards: Vec<_> = shards.into_iter().map(Batch::new).collect();
        let error = ActNorm::new(&b, 2).initialise(&b, &shards, None).expect_err("no variance");
        assert!(error.to_string().contains("ActNorm"), "{error}");
    }
    // neither a batch that is not finite nor one whose mean or variance is not; weights make no difference
    let most = f64::MAX;
    for values in [[f64::NAN, 1.0, 2.0], [f64::INFINITY, 1.0, 2.0], [most, most, 1.0], [1e200, -1e200, 3.0]] {
        let column: Vec<f64> = values.iter().flat_map(|&x| [0.5 * x.signum(), x]).collect();
        let shards = [Batch::new(b.upload(&column, [3, 2].into()))];
        let weights = [b.upload(&[1.0, 2.0, 1.0], [3, 1].into())];
        for weights in [None, Some(SampleWeights { shards: &weights, unit: 1.0 })] {
            let mut actnorm = ActNorm::new(&b, 2);
            let error = actnorm.initialise(&b, &shards, weights.as_ref()).expect_err("not finite").to_string();
            assert!(error.contains("ActNorm"), "{values:?}: {error}");
            actnorm.visit("", &mut |name, tensor, _| {
                assert!(down(&b, tensor).iter().all(|v| *v == 0.0), "{name} after {values:?}");
            });
        }
    }
    // vectors that are no unit vectors bound nothing
    let pair = |u: f64, v: f64| SingularPair::new(&b, b.upload(&[u, 0.0], [2].into()), b.upload(&[0.0, v], [2].into()));
    for (u, v) in [(1.0, 1.0), (0.5, 1.0), (1.0, 1.01), (0.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (2.0, 3.0)] {
        let made = LipschitzLinear::from_parts(&b, zeros(&[2, 2]), zeros(&[2]), pair(u, v), kappa);
        let good = u == 1.0 && v == 1.0;
        assert_eq!(made.is_ok(), good, "{u}, {v}");
        if let Err(e) = made {
            let named = [("u", u), ("v", v)]
                .iter()
                .all(|(name, x)| e.to_string().contains(&format!("{name} of")) == (*x != 1.0));
            assert!(named, "all that is wrong: {e}");
        }
    }
    let links = |l: ResidualBlock<Cpu>| Flow::from_transforms(b.clone(), FlowConfig::new(3), vec![Box::new(l)]);
    assert!(links(ResidualBlock::new(layer(2, 2), &[2]).expect("a block")).is_err(), "two columns for three");
    // extents of nothing
    assert_eq!(b.shape(&LipschitzLinear::initialise(&b, 0, 0, kappa, Key::new(0)).normalised_weight(&b))[..], [0, 0]);
}

#[test]
fn flows_and_their_rows() {
    let (b, f) = (cpu(), flow());
    for shape in [vec![], vec![2], vec![3, 3], vec![0, 2], vec![3, 2, 1], vec![1, 1]] {
        assert!(
            matches!(f.gradient(&b.full(0.0, shape[..].into()), None, Key::new(0)), Err(Error::Input(_))),
            "{shape:?}"
        );
    }
    let x = b.full(0.5, [3, 2].into());
    for shape in [vec![], vec![3], vec![2, 1], vec![1, 3], vec![3, 2]] {
        assert!(f.gradient(&x, Some(&b.full(1.0, shape[..].into())), Key::new(0)).is_err(), "{shape:?}");
    }
    for value in [f64::NAN, f64::INFINITY, 1e300] {
        let gradient = f.gradient(&b.full(value, [3, 2].into()), None, Key::new(0)).expect("shapes that fit");
        assert!(!down(&b, &gradient.loss)[0].is_finite(), "it must show: {value}");
    }
    let wide = rows(4, 3, Key::new(0));
    assert!(f.log_prob(&wide, Key::new(0)).is_err());
    assert!(f.prepare().encode(&wide, Key::new(0)).is_err());
    assert!(f.prepare().decode(&wide, &Inversion::for_backend::<Cpu>()).is_err());
    assert!(Table::new(None, 2, vec![0.0, f64::NAN]).is_err());
    // nothing in, nothing out
    let nothing = table(2, vec![]);
    for estimator in [Estimator::default(), Estimator::Truncated(Truncated::new(3).expect("in range"))] {
        let mut f = flow();
        f.set_log_prob_estimator(estimator, 3).expect("in range");
        let log_p = f.log_prob(&nothing, Key::new(0)).expect("no rows");
        assert!(log_p.values.is_empty() && log_p.mean().is_nan() && log_p.interval(0, 0.95).is_err());
        assert_eq!(f.prepare().encode(&nothing, Key::new(0)).expect("no rows").latents.rows(), 0);
    }
    assert_eq!(f.sample(0, Key::new(0)).expect("no rows").samples.rows(), 0);
    let decoded = f.prepare().decode(&nothing, &Inversion::for_backend::<Cpu>()).expect("no rows");
    assert!(decoded.reports.is_empty() && decoded.residual == 0.0);
    // rows beyond the range of the arithmetic: never a number that looks like a likelihood
    let far = table(2, vec![1e300, -1e300, 0.1, 0.2]);
    let single = Flow::new(NdArray::<f32>::new(), exact_config(2, 2, &[4]), Key::new(0)).expect("valid");
    for values in
        [f.log_prob(&far, Key::new(0)), single.log_prob(&far, Key::new(0))].map(|l| l.expect("a width").values)
    {
        assert!(!values[0].is_finite() && values[1].is_finite(), "{values:?}");
    }
    let decoded = single.prepare().decode(&far, &Inversion::for_backend::<NdArray<f32>>()).expect("a width");
    assert_eq!([0, 1].map(|r| decoded.reports[r].status), [Status::NonFinite, Status::Converged]);
    assert!(!decoded.residual.is_finite());
    // also where no link iterates
    let b32 = NdArray::<f32>::new();
    let plain =
        Flow::from_transforms(b32.clone(), FlowConfig::new(2), vec![Box::new(ActNorm::new(&b32, 2))]).expect("valid");
    let report = plain.prepare().decode(&table(2, vec![1e300, 0.1]), &Inversion::for_backend::<NdArray<f32>>());
    assert_eq!(report.expect("a width").reports[0].status, Status::NonFinite);
    let log_p = f.log_prob(&rows(2, 2, Key::new(1)), Key::new(0)).expect("rows");
    assert!(log_p.interval(2, 0.95).is_err() && log_p.interval(usize::MAX, 0.5).is_err());
    assert!([0.0, 1.0, -1.0, f64::NAN, f64::INFINITY].into_iter().all(|c| log_p.interval(0, c).is_err()));
    assert!(flow().set_standardiser(Standardiser::identity(3)).is_err());
}

#[test]
fn training() {
    let good = TrainConfig::default();
    let f = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = good.clone();
        change(&mut config);
        assert!(config.check().is_err(), "{config:?}");
        assert!(
            Trainer::new(flow(), Source::Density(ToyDensity::Moons), &config, Budget::Steps(1), Key::new(0)).is_err()
        );
    };
    for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300_f64.powi(2)] {
        f(&|c| c.learning_rate = bad);
        f(&|c| c.final_fraction = bad);
        f(&|c| c.betas[0] = bad);
        f(&|c| c.betas[1] = bad);
        f(&|c| c.epsilon = bad);
        f(&|c| c.weight_decay = bad);
        f(&|c| c.clip = bad);
        f(&|c| c.average = bad);
        f(&|c| c.validation_fraction = bad);
    }
    for bad in [0, 1, usize::MAX] {
        f(&|c| c.batch = bad);
        f(&|c| c.validation_rows = bad);
    }
    for bad in [0, usize::MAX] {
        f(&|c| c.power_iterations = bad);
    }
    f(&|c| c.learning_rate = 0.0);
    f(&|c| c.average = 1.0);
    f(&|c| c.steps = 0);
    let start = |source, budget| Trainer::new(flow(), source, &good, budget, Key::new(0));
    assert!(start(Source::Density(ToyDensity::Moons), Budget::Steps(0)).is_err());
    assert!(start(Source::Density(ToyDensity::Moons), Budget::Time(std::time::Duration::ZERO)).is_err());
    for rows in [
        rows(50, 3, Key::new(0)),
        rows(0, 2, Key::new(0)),
        rows(1, 2, Key::new(0)),
        rows(2, 2, Key::new(0)),
        table(2, (0..100).map(|i| if i % 2 == 0 { 1.0 } else { f64::from(i) }).collect()),
    ] {
        assert!(start(Source::from(rows), Budget::Steps(5)).is_err());
    }
    let mut t = start(Source::Density(ToyDensity::Moons), Budget::Steps(1)).expect("valid");
    assert!(t.set_budget(Budget::Steps(0)).is_err());
    let archive = t.to_archive().expect("stored");
    assert!(Trainer::resume(cpu(), &archive, Source::Density(ToyDensity::Circles)).is_err(), "other data");
    assert!(Flow::from_archive(cpu(), &archive).is_err(), "a run is not a model");
    assert!(Trainer::resume(cpu(), &flow().to_archive().expect("stored"), Source::Density(ToyDensity::Moons)).is_err());
}

#[test]
fn files() {
    assert!(matches!(Archive::read("no such folder/model".as_ref()), Err(CheckpointError::Io { .. })));
    assert!(write_atomically("no such folder/model".as_ref(), b"x").is_err());
    assert!(flow().save("no such folder/model").is_err());
    assert!(Flow::load(cpu(), "no such folder/model").is_err());
    let good = flow().to_archive().expect("stored");
    let spoil = |name: &str, shape: Vec<usize>, values: Vec<f64>| {
        let mut bad = good.clone();
        bad.tensors.insert(name.into(), (shape, Values::F64(values)));
        let error = Flow::from_archive(cpu(), &bad).expect_err(name);
        assert!(matches!(error, Error::Checkpoint(_) | Error::Data(_)), "{name}: {error}");
    };
    // contents that no file can have, but a caller can make
    spoil("links.1.net.1.bias", vec![4], vec![0.0; 3]);
    spoil("links.1.net.1.bias", vec![usize::MAX, 2], vec![0.0; 4]);
    // numbers that would load and mean nothing
    spoil("standardise.deviation", vec![2], vec![1.0, 0.0]);
    spoil("links.1.net.1.bias", vec![4], vec![0.0, 0.0, f64::INFINITY, 0.0]);
}

proptest! {
    #![proptest_config(cases(300))]

    /// A model file with bytes changed is refused or is a model; nothing panics.
    #[test]
    fn damaged_model_files(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: Option<prop::sample::Index>) {
        let mut bytes = flow().to_archive().expect("stored").to_bytes().expect("stored");
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(archive) = Archive::from_bytes(&bytes) && let Ok(flow) = Flow::from_archive(cpu(), &archive) {
            let _ = flow.log_prob(&rows(3, flow.dimension(), Key::new(0)), Key::new(0));
        }
    }

    /// Any configuration is refused or is within the limits.
    #[test]
    fn any_configuration(dimension: usize, blocks: usize, hidden: Vec<usize>, coefficient: f64, scale: f64, replicates: usize) {
        let config = FlowConfig { dimension, blocks, hidden, coefficient, initial_scale: scale, replicates, ..FlowConfig::default() };
        let known = matches!(config.check(), Ok(()) | Err(ConfigError::OutOfRange { .. } | ConfigError::Inconsistent(_)));
        prop_assert!(known);
    }
}
