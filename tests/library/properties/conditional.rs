//! Conditional flows p(x | c) of every family, over rows and over images: what a context must not change (bounds, the untrained
//! flow), derivatives in parameters, samples and contexts by differences, order and sharing of contexts, training, files, runs that go
//! on. Fits and closed forms are in `conditional_fits`. No statistics but where it is said: seeds are fixed.

use crate::common::bijections::slope_by;
use crate::common::*;
use resflow::Error;
use resflow::backend::{Backend as _, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::config::{ContextConfig, Family, FlowConfig, ImageConfig, ModelConfig, Start};
use resflow::data::{Dataset, Table};
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, Objective};
use resflow::invert::Inversion;
use resflow::layer::Derivatives;
use resflow::stage::Stage;
use resflow::train::{Budget, TrainConfig, Trainer};

const K: usize = 3;

fn context(gates: bool) -> ContextConfig {
    ContextConfig { embedding: vec![6, 5], gates, ..ContextConfig::new(K) }
}

fn rows_of(family: Family) -> FlowConfig {
    FlowConfig {
        // a continuous flow evaluates each net 64 times
        blocks: if family == Family::Ffjord { 1 } else { 3 },
        hidden: vec![8, 6],
        evaluation: Estimator::Exact(Exact),
        training: if family == Family::IResNet {
            "truncated:terms=8".parse().expect("an estimator")
        } else {
            Estimator::Exact(Exact)
        },
        ..FlowConfig::of(family, 3)
    }
}

fn images_of(family: Family) -> ImageConfig {
    let residual = ImageConfig {
        blocks: vec![1, 1],
        filters: 4,
        fully_connected: 1,
        fully_connected_width: 4,
        ..exact_images([4, 4, 1], &[1])
    };
    let training = residual.training.clone();
    let images = residual.of(family);
    ImageConfig { training: if family == Family::IResNet { images.training.clone() } else { training }, ..images }
}

/// A configuration of every family over rows and over images, without a context.
fn all() -> Vec<ModelConfig> {
    let families = Family::ALL.into_iter();
    let each = families.flat_map(|family| {
        let images = family.takes_images().then(|| images_of(family).into());
        [rows_of(family).into()].into_iter().chain(images)
    });
    let identity = FlowConfig { start: Start::Identity, ..rows_of(Family::Residual) };
    each.chain([identity.into()]).collect()
}

/// Samples that a configuration takes.
fn samples(config: &ModelConfig, n: usize, key: Key) -> Table {
    match config {
        ModelConfig::Rows(c) => rows(n, c.dimension, key),
        ModelConfig::Images(c) => uniform_rows(n, c.dimension(), key),
    }
}

/// The conditional form of a configuration, and all its tensors moved so that the context matters.
fn told(config: &ModelConfig, gates: bool, key: Key) -> Flow<Cpu> {
    random_flow(&cpu(), config.clone().with_context(Some(context(gates))), key, 0.3)
}

#[test]
fn fresh_flows_are_the_unconditional_ones() {
    for config in all() {
        for gates in [false, true] {
            let what = format!("{}, {:?}, gates {gates}", config.family(), config.sample_shape());
            let plain = Flow::new(cpu(), &config, Key::new(1)).expect("a configuration").prepare();
            let conditional = config.clone().with_context(Some(context(gates)));
            let flow = Flow::new(cpu(), &conditional, Key::new(1)).expect("a configuration");
            assert_eq!(flow.parameters(), conditional.parameters(), "{what}");
            // gates are 0.905 at first
            if gates && config.initial_scale_is_not_zero() {
                continue;
            }
            let flow = flow.prepare();
            let x = samples(&config, 5, Key::new(2));
            let own = Dataset::from(x.clone()).with_context(rows(5, K, Key::new(3))).expect("as many");
            let (a, b) = (plain.log_prob(&x, Key::new(4)), flow.log_prob(&own, Key::new(4)));
            let (a, b) = (a.expect("rows").values, b.expect("rows").values);
            if config.family().solves() {
                // where samples have contexts of their own a solve goes another way, and may end elsewhere
                near(&what, &b, &a, 1e-10);
            } else {
                assert_eq!(a, b, "{what}");
            }
            let c = rows(1, K, Key::new(5));
            let at = flow.condition(&c).expect("a context");
            let (a, b) = (plain.log_prob(&x, Key::new(4)), at.log_prob(&x, Key::new(4)));
            assert_eq!(a.expect("rows").values, b.expect("rows").values, "{what}");
            let how = Inversion::for_backend::<Cpu>();
            let (a, b) = (plain.sample(4, Key::new(6), &how), at.sample(4, Key::new(6)));
            assert_eq!(a.expect("samples").samples, b.expect("samples").samples, "{what}");
        }
    }
}

/// Whether a fresh net's last layer gives something.
trait Fresh {
    fn initial_scale_is_not_zero(&self) -> bool;
}

impl Fresh for ModelConfig {
    fn initial_scale_is_not_zero(&self) -> bool {
        let scale = match self {
            Self::Rows(c) => c.initial_scale,
            Self::Images(c) => c.initial_scale,
        };
        self.start() != Start::Identity && scale != 0.0
    }
}

#[test]
fn contexts_leave_lipschitz_bounds_alone() {
    let b = cpu();
    for config in all() {
        for gates in [false, true] {
            let flow = told(&config, gates, Key::new(11));
            for transform in flow.transforms() {
                let (Some(net), Some(bound)) = (transform.residual(), transform.lipschitz_bound()) else { continue };
                let Some(stage) = transform.stage() else { continue };
                let (Stage::ResidualBlock { shape, .. }
                | Stage::InvertedBlock { shape, .. }
                | Stage::MonotoneBlock { shape, .. }) = stage
                else {
                    continue;
                };
                let g = net.prepare(&b);
                let n = 64;
                let key = Key::new(12);
                let at = |name: &str, spread: f64| {
                    let shape = [&[n], &shape[..]].concat();
                    b.affine(b.noise(key.named(name), Noise::Normal, 0, shape[..].into()), spread, 0.0)
                };
                // contexts far out
                let embedding = b.affine(b.noise(key.named("c"), Noise::Normal, 0, [n, 5].into()), 10.0, 0.0);
                let x = at("x", 2.0);
                let y = b.axpy(0.1, &at("y", 1.0), x.clone());
                let value = |x: &Tensor| {
                    let batch = Batch::new(x.clone()).with_context(Some(embedding.clone()));
                    g.forward(&b, &g.tell(&b, &batch), Derivatives::None).0
                };
                let (gx, gy) = (value(&x), value(&y));
                let flat = |t: &Tensor| b.reshape(t, [n, b.shape(t).row_elements()].into());
                let lengths = |a: &Tensor, c: &Tensor| {
                    let d = flat(&b.axpy(-1.0, c, a.clone()));
                    down(&b, &b.dot_rows(&d, &d)).into_iter().map(f64::sqrt).collect::<Vec<_>>()
                };
                let factor = net.two_norm_factor(&shape);
                for (far, near) in lengths(&gx, &gy).iter().zip(lengths(&x, &y)) {
                    assert!(*far <= bound * factor * near * (1.0 + 1e-9), "{}: {far} of {near}", config.family());
                }
            }
        }
    }
}

/// Σ wᵢ (−log p) without its constant, and its gradients in parameters, samples and contexts.
fn objective(flow: &Flow<Cpu>, batch: &Batch<Cpu>, weights: &Tensor) -> (f64, [Tensor; 3]) {
    let key = Key::new(0);
    let objective = Objective { batch, weights, key, memory: Memory::Store, input_gradient: true, supervision: None };
    let found = flow.prepare().gradient(&objective).expect("no device fault");
    let gradients = [found.flat, found.input.expect("asked for"), found.context.expect("there is one")];
    (down(flow.backend(), &found.loss)[0], gradients)
}

#[test]
fn gradients_are_those_by_differences() {
    let b = cpu();
    for config in all() {
        for (gates, shared) in [(false, false), (true, true)] {
            let flow = told(&config, gates, Key::new(21));
            let what = format!("{}, {:?}, gates {gates}", config.family(), config.sample_shape());
            // a truncated series is another function than its surrogate's
            if config.family() == Family::IResNet {
                continue;
            }
            let n = 4;
            let shape = [&[n], &config.sample_shape()[..]].concat();
            let noise = |name: &str, shape: &[usize]| b.noise(Key::new(22).named(name), Noise::Normal, 0, shape.into());
            let x = if config.images().is_some() {
                let uniform = b.noise(Key::new(23), Noise::Uniform, 0, shape[..].into());
                b.affine(uniform, 0.8, 0.1)
            } else {
                noise("x", &shape)
            };
            let contexts = [if shared { 1 } else { n }, K];
            let context = noise("c", &contexts);
            let batch = Batch::new(x.clone()).with_context(Some(context.clone()));
            let weights = b.upload(&[0.3, 1.2, -0.4, 0.8], [n, 1].into());
            let (_, [flat, of_x, of_c]) = objective(&flow, &batch, &weights);
            // solves end at some accuracy, and nets with kinks have one within reach of a long step now and then
            let (tolerance, steps) =
                if config.family().solves() { (2e-3, [1e-3; 3]) } else { (1e-5, [1e-4, 1e-5, 1e-6]) };
            let check = |part: &str, found: f64, f: &dyn Fn(f64) -> f64| {
                let slopes = steps.map(|step| slope_by(step, f));
                let close = slopes.iter().any(|s| (found - s).abs() < tolerance * found.abs().max(s.abs()).max(1.0));
                assert!(close, "{what}, {part}: {found}, by differences {slopes:?}");
            };
            let along = noise("dx", &shape);
            let along = if config.images().is_some() { b.affine(along, 0.05, 0.0) } else { along };
            check("x", inner(&b, &of_x, &along), &|h| {
                objective(&flow, &batch.with_x(b.axpy(h, &along, x.clone())), &weights).0
            });
            let along = noise("dc", &contexts);
            check("context", inner(&b, &of_c, &along), &|h| {
                let moved = b.axpy(h, &along, context.clone());
                objective(&flow, &batch.clone().with_context(Some(moved)), &weights).0
            });
            let along = noise("dθ", &[b.shape(&flat)[0]]);
            let values = down(&b, &along);
            check("parameters", inner(&b, &flat, &along), &|h| {
                let mut moved = flow.clone();
                let mut at = 0;
                moved.visit_mut(&mut |_, t, role| {
                    if role.is_trained() {
                        let shape = b.shape(t);
                        let own = b.upload(&values[at..at + shape.elements()], shape);
                        *t = b.axpy(h, &own, t.clone());
                        at += shape.elements();
                    }
                });
                objective(&moved, &batch, &weights).0
            });
        }
    }
}

fn near(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let close = x == y || (x - y).abs() <= tolerance * (1.0 + y.abs());
        assert!(close, "{what}, number {i}: {x} and {y}");
    }
}

/// Row i of `which` for each i.
pub(crate) fn select(table: &Table, which: &[usize]) -> Table {
    table.select(which)
}

#[test]
fn contexts_belong_to_their_samples() {
    for config in all() {
        let flow = told(&config, false, Key::new(31)).prepare();
        let what = format!("{}, {:?}", config.family(), config.sample_shape());
        let n = 6;
        let (x, c) = (samples(&config, n, Key::new(32)), rows(n, K, Key::new(33)));
        let own = Dataset::from(x.clone()).with_context(c.clone()).expect("as many");
        let together = flow.log_prob(&own, Key::new(34)).expect("rows").values;
        assert_eq!(flow.condition(&c).expect("contexts").log_prob(&x, Key::new(34)).expect("rows").values, together);
        // another context, another density
        let order = [3, 1, 5, 0, 2, 4];
        let turned = flow.condition(&select(&c, &order)).expect("contexts");
        let other = turned.log_prob(&x, Key::new(34)).expect("rows").values;
        assert!(other.iter().zip(&together).any(|(a, b)| (a - b).abs() > 1e-3), "{what}: the context is not looked at");
        // permuting contexts with their samples permutes what comes of them
        let permuted = turned.log_prob(&select(&x, &order), Key::new(34)).expect("rows").values;
        near(&what, &permuted, &order.map(|i| together[i]), 1e-10);
        // each by itself, and one for all
        for i in 0..n {
            let at = flow.condition(&select(&c, &[i])).expect("a context");
            near(&what, &at.log_prob(&x, Key::new(34)).expect("rows").values[i..=i], &together[i..=i], 1e-9);
        }
        let encoded = turned.encode(&x, Key::new(34)).expect("rows").latents;
        let decoded = turned.decode(&encoded, &Inversion::for_backend::<Cpu>()).expect("latents");
        near(&what, decoded.samples.values(), x.values(), 1e-6);
    }
}

#[test]
fn samples_are_in_the_order_of_their_contexts() {
    for config in all() {
        let flow = told(&config, true, Key::new(41)).prepare();
        let what = format!("{}, {:?}", config.family(), config.sample_shape());
        let c = rows(3, K, Key::new(42));
        let at = flow.condition(&c).expect("contexts");
        let before = flow.embedded_contexts();
        let (samples, log_prob) = at.sample_and_log_prob(4, Key::new(43)).expect("samples");
        assert_eq!(flow.embedded_contexts(), before, "contexts are embedded once");
        assert_eq!(samples.samples.rows(), 12);
        // row 4i + j has context i: its latents come back with that one
        let repeated = select(&c, &(0..12).map(|r| r / 4).collect::<Vec<_>>());
        let by_row = flow.condition(&repeated).expect("contexts");
        let scored = by_row.log_prob(&samples.samples, Key::new(43).named("score")).expect("rows");
        near(&what, &log_prob.values, &scored.values, 1e-9);
        let again = by_row.sample(1, Key::new(43)).expect("samples").samples;
        near(&what, again.values(), samples.samples.values(), 1e-6);
    }
    // many samples of a context go by themselves, and are the same
    let flow = told(&rows_of(Family::Residual).into(), false, Key::new(44)).prepare();
    let c = rows(2, K, Key::new(45));
    let many = flow.condition(&c).expect("contexts").sample(70, Key::new(46)).expect("samples").samples;
    let repeated = select(&c, &(0..140).map(|r| r / 70).collect::<Vec<_>>());
    let again = flow.condition(&repeated).expect("contexts").sample(1, Key::new(46)).expect("samples").samples;
    near("runs", many.values(), again.values(), 1e-8);
}

#[test]
fn a_range_of_samples_is_a_part_of_all() {
    let how = Inversion::for_backend::<Cpu>();
    for config in all() {
        let flow = told(&config, true, Key::new(47)).prepare();
        let d = flow.dimension();
        let c = rows(3, K, Key::new(48));
        let at = flow.condition(&c).expect("contexts");
        // with others, and, of rows, by themselves
        for each in if config.rows().is_some() { vec![4, 70] } else { vec![4] } {
            let whole = at.sample(each, Key::new(49)).expect("samples").samples;
            for (first, end) in [(0, each + 1), (each + 1, 3 * each - 1), (3 * each - 1, 3 * each), (2, 2)] {
                let part = at.sample_range(each, first..end, Key::new(49), &how).expect("samples").samples;
                let what = format!("{}, {each} of each, {first}..{end}", config.family());
                near(&what, part.values(), &whole.values()[first * d..end * d], 1e-6);
            }
            let beyond = at.sample_range(each, 0..3 * each + 1, Key::new(49), &how).expect_err("no fourth context");
            assert!(beyond.to_string().contains("of each context"), "{beyond}");
        }
    }
}

#[test]
fn one_context_is_embedded_once_for_all_samples() {
    let flow = told(&rows_of(Family::Residual).into(), false, Key::new(51)).prepare();
    let c = rows(1, K, Key::new(52));
    let at = flow.condition(&c).expect("a context");
    at.sample(3000, Key::new(53)).expect("samples");
    at.log_prob(&rows(3000, 3, Key::new(54)), Key::new(55)).expect("rows");
    assert_eq!(flow.embedded_contexts(), 1);
}

#[test]
fn the_same_samples_have_the_same_probes() {
    let estimated = FlowConfig {
        evaluation: "roulette:law=poisson,rate=2,exact=2,sharing=sample".parse().expect("an estimator"),
        ..rows_of(Family::Residual)
    };
    let flow = told(&estimated.into(), false, Key::new(61)).prepare();
    let x = rows(4, 3, Key::new(62));
    let c = rows(1, K, Key::new(63));
    let values = c.values().iter().map(|c| c + 1e-9).collect();
    let near_by = table(K, values);
    let score = |c: &Table| flow.condition(c).expect("a context").log_prob(&x, Key::new(64)).expect("rows");
    let (a, b) = (score(&c), score(&near_by));
    assert!(a.standard_error.iter().all(|e| *e > 1e-3), "{:?}", a.standard_error);
    // with noise of its own each would be off by its standard error
    near("common random numbers", &a.values, &b.values, 1e-6);
}

#[test]
fn gradients_at_a_context_are_those_by_differences() {
    for config in [ModelConfig::from(rows_of(Family::Residual)), rows_of(Family::Nsf).into()] {
        let mut flow = told(&config, false, Key::new(71));
        flow.set_standardiser(
            resflow::data::Standardiser::new(vec![0.3, -1.0, 2.0], vec![2.0, 0.5, 3.0]).expect("scales"),
        )
        .expect("three columns");
        let prepared = flow.prepare();
        let x = rows(4, 3, Key::new(72));
        for m in [1, 4] {
            let c = rows(m, K, Key::new(73));
            let at = prepared.condition(&c).expect("contexts");
            let (log_prob, of_x, of_c) = at.log_prob_and_gradient(&x, Key::new(74)).expect("rows");
            let total = |x: &Table, c: &Table| {
                let found = prepared.condition(c).expect("contexts").log_prob(x, Key::new(74)).expect("rows");
                found.values.iter().sum::<f64>()
            };
            assert_eq!(log_prob.values, at.log_prob(&x, Key::new(74)).expect("rows").values);
            let moved = |t: &Table, i: usize, h: f64| {
                let mut values = t.values().to_vec();
                values[i] += h;
                table(t.width(), values)
            };
            for i in 0..x.values().len() {
                near("in x", &[of_x.values()[i]], &[slope_by(1e-4, |h| total(&moved(&x, i, h), &c))], 1e-5);
            }
            for i in 0..c.values().len() {
                near("in c", &[of_c.values()[i]], &[slope_by(1e-4, |h| total(&x, &moved(&c, i, h)))], 1e-5);
            }
        }
    }
}

/// Rows that depend on their contexts, one of which is constant; with weights.
pub(crate) fn data(n: usize, key: Key) -> Dataset {
    let (noise, c) = (rows(n, 2, key.named("x")), rows(n, 2, key.named("c")));
    let x = (0..n).flat_map(|i| {
        let (c, e) = (c.row(i), noise.row(i));
        [c[0] + 0.3 * e[0], c[1] * c[0] + 0.5 * e[1]]
    });
    let contexts = (0..n).flat_map(|i| [10.0 + 5.0 * c.row(i)[0], 7.0, c.row(i)[1]]).collect();
    let weights = (0..n).map(|i| 0.5 + (i % 3) as f64).collect();
    Dataset::from(table(2, x.collect()))
        .with_context(table(K, contexts))
        .and_then(|data| data.with_weights(weights))
        .expect("as many")
}

#[test]
fn training_saving_and_going_on() {
    let families = Family::ALL.into_iter().flat_map(|family| {
        let images = family.takes_images().then(|| ModelConfig::from(images_of(family)));
        let rows = FlowConfig { dimension: 2, ..rows_of(family) };
        [ModelConfig::from(rows)].into_iter().chain(images)
    });
    for config in families {
        let gates = config_has_gates(&config);
        let config = config.with_context(Some(context(gates)));
        let what = format!("{}, {:?}", config.family(), config.sample_shape());
        let source = match &config {
            ModelConfig::Rows(_) => data(200, Key::new(81)),
            ModelConfig::Images(_) => Dataset::from(images(60, [4, 4, 1], Key::new(82)))
                .with_context(rows(60, K, Key::new(83)))
                .expect("as many"),
        };
        let settings = TrainConfig { batch: 32, warmup: 5, validation_rows: 30, ..TrainConfig::default() };
        let settings = settings.for_family(config.family());
        let steps = |steps: u64| Budget::Steps(steps);
        let flow = || Flow::new(cpu(), &config, Key::new(84)).expect("a configuration");
        let new = || {
            Trainer::new(
                flow(),
                source.clone(),
                &settings,
                steps(if config.rows().is_some() { 150 } else { 40 }),
                Key::new(85),
            )
            .expect("data that fit")
        };
        let mut whole = new();
        whole.step().expect("finite");
        let first = whole.validate().expect("finite").nll;
        whole.run(|_, _| ()).expect("finite");
        let last = whole.best_nll().expect("validated");
        if config.rows().is_some() {
            assert!(last < first - 0.05, "{what}: {first} and then {last}");
            let own = whole.flow().context().expect("a conditional flow").standardiser();
            assert_eq!((own.mean()[1], own.deviation()[1]), (7.0, 1.0), "a constant column has scale 1");
            assert!((own.mean()[0] - 10.0).abs() < 2.0 && (own.deviation()[0] - 5.0).abs() < 1.5, "{own:?}");
        }
        // a run goes on where it stopped, bit for bit
        let mut half = new();
        half.step().expect("finite");
        half.validate().expect("finite");
        for _ in 0..19 {
            half.step().expect("finite");
        }
        let stored = half.to_archive().expect("stored");
        let mut resumed = Trainer::resume(cpu(), &stored, source.clone()).expect("the same data");
        resumed.step().expect("finite");
        half.step().expect("finite");
        let bytes = |run: &Trainer<Cpu>| {
            let mut archive = run.to_archive().expect("stored");
            archive.document["run"]["elapsed"] = 0.into();
            archive.to_bytes().expect("stored")
        };
        assert_eq!(bytes(&resumed), bytes(&half), "{what}");
        let others = source.samples().select(&(0..source.len()).rev().collect::<Vec<_>>()).expect("rows");
        let contexts = others.samples().context().expect("contexts").clone();
        let altered = source.clone().with_context(contexts).expect("as many");
        assert!(matches!(Trainer::resume(cpu(), &stored, altered), Err(Error::Input(_))), "other contexts");
        // a file gives the model back
        let model = whole.model();
        let archive = model.to_archive().expect("stored");
        let again = Flow::from_archive(cpu(), &archive).expect("a model");
        assert_eq!(again.config(), model.config());
        let contexts = |flow: &Flow<Cpu>| flow.context().expect("a conditional flow").standardiser().clone();
        assert_eq!(contexts(&again), contexts(&model));
        let some = source.select(&[0, 1, 2]).expect("rows");
        let score = |flow: &Flow<Cpu>| flow.log_prob(&some, Key::new(86)).expect("rows").values;
        assert_eq!(score(&again), score(&model), "{what}");
    }
}

/// Every other family has gates.
fn config_has_gates(config: &ModelConfig) -> bool {
    Family::ALL.iter().position(|f| *f == config.family()).is_some_and(|i| i % 2 == 1)
}

#[test]
fn what_has_no_context_is_told_so() {
    let config = ModelConfig::from(rows_of(Family::Residual));
    let flow = told(&config, false, Key::new(91));
    let prepared = flow.prepare();
    let x = rows(2, 3, Key::new(92));
    let says = |error: Error, what: &str| assert!(error.to_string().contains(what), "{error}");
    says(prepared.log_prob(&x, Key::new(0)).expect_err("no context"), "with_context");
    says(prepared.encode(&x, Key::new(0)).expect_err("no context"), "with_context");
    says(flow.sample(2, Key::new(0)).expect_err("no context"), "condition");
    let how = Inversion::for_backend::<Cpu>();
    says(prepared.decode(&x, &how).expect_err("no context"), "condition");
    let tensor = cpu().full(0.1, [2, 3].into());
    says(flow.gradient(&tensor, None, Key::new(0)).expect_err("no context"), "context");
    says(prepared.decode_gradient(&tensor, &tensor, &how).expect_err("no context"), "context");
    says(prepared.condition(&rows(1, K + 1, Key::new(0))).expect_err("another width"), "4 columns");
    let two = prepared.condition(&rows(2, K, Key::new(0))).expect("contexts");
    says(two.log_prob(&rows(3, 3, Key::new(0)), Key::new(0)).expect_err("neither one nor three"), "3 samples");
    let plain = Flow::new(cpu(), &config, Key::new(0)).expect("a configuration").prepare();
    says(plain.condition(&rows(1, K, Key::new(0))).expect_err("unconditional"), "no conditional");
    // training
    let settings = TrainConfig::default();
    let start = |data: Dataset| Trainer::new(flow.clone(), data, &settings, Budget::Steps(1), Key::new(0));
    says(start(rows(30, 3, Key::new(0)).into()).expect_err("no contexts"), "no contexts");
    let wide = Dataset::from(rows(30, 3, Key::new(0))).with_context(rows(30, 2, Key::new(0))).expect("as many");
    says(start(wide).expect_err("two columns"), "2 columns");
    for bad in [
        ContextConfig { columns: 0, ..context(false) },
        ContextConfig { embedding: vec![0], ..context(false) },
        ContextConfig { embedding: vec![3; 100], ..context(false) },
    ] {
        assert!(config.clone().with_context(Some(bad)).check().is_err());
    }
    let hybrid = ImageConfig { classes: 3, ..images_of(Family::Residual) };
    assert!(ModelConfig::from(hybrid).with_context(Some(context(false))).check().is_err());
}
