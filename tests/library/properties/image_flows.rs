//! Whole flows over images: the log det is that of the numeric Jacobian, decoding undoes encoding, z is in the documented
//! order, gradients are those by differences, and nothing depends on threads, on how the batch is cut, on saving or on what
//! the forward pass keeps. Random architectures; the tests with many keys say how far from their bound chance would be.

use std::num::NonZeroUsize;

use crate::common::bijections::{log_det_by_steps, slope};
use crate::common::*;
use crate::properties::families::{moved, trained};
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::checkpoint::Archive;
use resflow::config::{ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, Gradient, Objective};
use resflow::invert::{Inversion, Status};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::transform::dequantise;

/// Multi-scale flows over at most `most` numbers.
fn configs(activations: &'static [Nonlinearity], most: usize) -> impl Strategy<Value = ImageConfig> {
    let shape = (1_usize..=3, 1_usize..=3, 1_usize..=3, proptest::collection::vec(1_usize..=2, 1..=2));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let activation = (proptest::sample::select(activations), exact_families());
    let rest = (activation, 0_usize..=2, 1_u32..=8, 1_usize..4);
    let kernels = proptest::sample::select(vec![vec![3_usize], vec![1, 3], vec![3, 1, 3], vec![5, 1]]);
    (shape, flags, rest, kernels)
        .prop_map(|((h, w, c, blocks), (squeeze_first, factor_out, leading, first, actnorm), rest, kernels)| {
            let ((activation, model), fully_connected, bits, filters) = rest;
            let times = 1 << (blocks.len() - 1 + usize::from(squeeze_first));
            ImageConfig {
                model,
                bits,
                squeeze_first,
                factor_out,
                conditional_prior: factor_out && first,
                filters,
                kernels,
                activation,
                leading_activation: leading,
                first_activation: first,
                actnorm,
                fully_connected: if model.couples() { 0 } else { fully_connected },
                ..exact_images([h * times, w * times, c], &blocks)
            }
        })
        .prop_filter("small, with two sides", move |c| {
            c.dimension() <= most && (!c.model.couples() || c.dimension() > 1)
        })
}

fn image(config: &ImageConfig) -> [usize; 3] {
    [config.height, config.width, config.channels]
}

fn upload(b: &Cpu, rows: &Table, image: [usize; 3]) -> Tensor {
    let [h, w, c] = image;
    b.upload(&as_images(rows.values(), image), [rows.rows(), h, w, c].into())
}

fn cheap() -> Estimator {
    "truncated:terms=1".parse().expect("a text")
}

fn roulette() -> Estimator {
    "roulette:law=geometric,p=0.5,exact=2,sharing=sample".parse().expect("a text")
}

/// −Σ wᵢ log p(xᵢ) of rows in (C, H, W) order, exactly.
fn objective(flow: &Flow<Cpu>, x: &[f64], weights: &[f64]) -> f64 {
    let log_p = flow.log_prob(&table(flow.dimension(), x.to_vec()), Key::new(0)).expect("rows that fit");
    assert!(log_p.replicates == 1 && log_p.standard_error.iter().all(|&e| e == 0.0));
    -dot(&log_p.values, weights)
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn log_det_and_inverse(config in configs(&Nonlinearity::ALL, 36), seed: u64) {
        let (b, key) = (cpu(), Key::new(seed));
        let flow = random_flow(&b, &config, key, 0.2);
        prop_assert_eq!(flow.parameters(), flow.config().parameters());
        prop_assert_eq!(flow.config().blocks(), config.blocks.iter().sum::<usize>() + config.fully_connected);
        let mut constrained = 0;
        flow.visit(&mut |name, _, _| constrained += u64::from(last_part(name) == "u"));
        prop_assert_eq!(constrained, flow.config().constrained_layers());
        let d = config.dimension();
        let rows = uniform_rows(2, d, key.named("x"));
        let prepared = flow.prepare();
        let encoded = prepared.encode(&rows, key).expect("rows that fit");
        prop_assert!(encoded.standard_error.iter().all(|&e| e == 0.0));
        let mut other = flow.clone();
        other.set_log_prob_estimator(cheap(), 2).expect("in range");
        let other = other.prepare();
        let z = |x: &Tensor| {
            let z = other.encode(&table(d, down(&b, x)), key).expect("rows that fit").latents;
            b.upload(z.values(), b.shape(x))
        };
        if !matches!(config.activation, Nonlinearity::Relu) {
            let by_steps = |h: f64| log_det_by_steps(&b, &b.upload(rows.values(), [2, d].into()), h, z);
            let differences: Vec<_> = by_steps(1e-5).into_iter().zip(by_steps(3e-5)).collect();
            // Glow's random matrices may be nearly singular, which neither differences nor inverses bear: two steps tell
            let agree = |(narrow, wide): &(f64, f64)| (narrow - wide).abs() < 3e-7 * (1.0 + narrow.abs());
            prop_assume!(config.model != resflow::config::Family::Glow || differences.iter().all(agree));
            for (value, (expected, _)) in encoded.log_det.iter().zip(differences) {
                let scale = 1.0 + expected.abs();
                prop_assert!((value - expected).abs() < 1e-6 * scale, "log det {value}, by differences {expected}");
            }
        }
        let how = Inversion::for_backend::<Cpu>();
        let decoded = prepared.decode(&encoded.latents, &how).expect("rows that fit");
        for (a, b) in decoded.samples.values().iter().zip(rows.values()) {
            prop_assert!((a - b).abs() < 1e-10, "{a} and {b}");
        }
        prop_assert!(decoded.residual < 1e-11 && decoded.reports.iter().all(|r| r.status <= Status::FloatFloor));
        // images as bytes are their dequantised rows; twenty of them are more than one task's
        let set = images(20, image(&config), key);
        let log_p = other.log_prob(&set, key).expect("images that fit");
        let noisy = dequantise(&b, set.bytes(), [20, config.height, config.width, config.channels].into(), config.bits, key.named("dequantise"), 0);
        let values = down(&b, &noisy);
        let mut rows = vec![0.0; values.len()];
        for (e, value) in values.iter().enumerate() {
            let (w, c) = (config.width, config.channels);
            rows[e / d * d + channels_first(image(&config), [e % d / (w * c), e % (w * c) / c, e % c])] = *value;
        }
        let again = other.log_prob(&table(d, rows), key).expect("rows that fit");
        prop_assert_eq!(log_p.values, again.values);
    }

    /// Every trained tensor in a random direction, and every number of x.
    #[test]
    fn the_gradient_is_that_of_the_weighted_likelihood(config in configs(&SMOOTH, 16), seed: u64) {
        let (b, key) = (cpu(), Key::new(seed));
        let flow = random_flow(&b, &config, key, 0.2);
        let spectra = flow.spectra().expect("no device fault");
        prop_assume!(spectra.iter().flatten().all(|s| (s.sigma / s.coefficient - 1.0).abs() > 2e-2));
        let (n, d) = (2, config.dimension());
        let x = uniform_rows(n, d, key.named("x"));
        let weights = [0.7, -0.4];
        let found = flow.gradient(&upload(&b, &x, image(&config)), Some(&b.upload(&weights, [n, 1].into())), key).expect("shapes that fit");
        let constant = 0.5 * d as f64 * std::f64::consts::TAU.ln() * weights.iter().sum::<f64>();
        let (loss, expected) = (down(&b, &found.loss)[0] + constant, objective(&flow, x.values(), &weights));
        prop_assert!((loss - expected).abs() < 1e-11 * (1.0 + expected.abs()), "loss {loss}, exact {expected}");
        let input = down(&b, found.input.as_ref().expect("asked for"));
        for e in 0..n * d {
            let by_differences = slope(|h| {
                let mut x = x.values().to_vec();
                x[e] += 0.1 * h;
                objective(&flow, &x, &weights)
            }) * 10.0;
            let [_, w, c] = image(&config);
            let own = (0..d).find(|&i| channels_first(image(&config), [i / (w * c), i % (w * c) / c, i % c]) == e % d);
            let value = input[e / d * d + own.expect("a permutation")];
            prop_assert!((value - by_differences).abs() < 1e-6 * (1.0 + by_differences.abs()), "x[{e}]: {value}, by differences {by_differences}");
        }
        let (flat, mut at) = (down(&b, &found.flat), 0);
        for (which, (name, size)) in trained(&flow).into_iter().enumerate() {
            let direction = down(&b, &normal(&b, key.named("move").split(which as u64), [size]));
            let value = dot(&flat[at..at + size], &direction);
            let by_differences = slope(|h| objective(&moved(&b, &flow, which, &direction, h), x.values(), &weights));
            prop_assert!((value - by_differences).abs() < 1e-6 * (1.0 + by_differences.abs()), "{name}: {value}, by differences {by_differences}");
            // a weight of which one number counts is ±κ after its normalisation
            prop_assert!(norm(&flat[at..at + size]) > 0.0 || name.ends_with("weight"), "{name} has no gradient");
            at += size;
        }
        prop_assert_eq!(at, flat.len());
    }

    /// What the forward pass keeps changes nothing; a batch in parts is the batch.
    #[test]
    fn memory_and_cuts(config in configs(&Nonlinearity::ALL, 24), seed: u64) {
        let (b, key) = (cpu(), Key::new(seed));
        let config = ImageConfig { training: roulette(), evaluation: roulette(), ..config };
        let flow = random_flow(&b, &config, key, 0.2);
        let n = 7;
        let rows = uniform_rows(n, config.dimension(), key);
        let x = upload(&b, &rows, image(&config));
        let ready = flow.prepare();
        let gradient = |memory, from: usize, to: usize| {
            let weights = b.full(1.0 / n as f64, [to - from, 1].into());
            let batch = Batch::new(b.narrow(&x, 0, from, to - from)).starting_at(from as u64);
            let objective =
                Objective { batch: &batch, weights: &weights, key, memory, input_gradient: true, supervision: None };
            ready.gradient(&objective).expect("no device fault")
        };
        let near = |a: &[f64], c: &[f64]| {
            let apart = norm(&a.iter().zip(c).map(|(a, c)| a - c).collect::<Vec<_>>());
            prop_assert!(a.len() == c.len() && apart <= 1e-12 * (1.0 + norm(a)), "{apart:e} of {:e}", norm(a));
            Ok(())
        };
        let all = |g: &Gradient<Cpu>| [down(&b, &g.flat), down(&b, &g.loss), down(&b, g.input.as_ref().expect("asked for"))].concat();
        let whole = gradient(Memory::Store, 0, n);
        near(&all(&whole), &all(&gradient(Memory::Recompute, 0, n)))?;
        prop_assert_eq!(down(&b, &whole.loss), down(&b, &flow.gradient(&x, None, key).expect("shapes that fit").loss));
        let parts = [gradient(Memory::Recompute, 0, 3), gradient(Memory::Store, 3, n)];
        let [first, second] = &parts;
        near(&down(&b, &whole.flat), &down(&b, &b.axpy(1.0, &first.flat, second.flat.clone())))?;
        near(&down(&b, &whole.loss), &down(&b, &b.axpy(1.0, &first.loss, second.loss.clone())))?;
        let inputs = parts.iter().flat_map(|p| down(&b, p.input.as_ref().expect("asked for"))).collect::<Vec<_>>();
        near(&down(&b, whole.input.as_ref().expect("asked for")), &inputs)?;
        // evaluation of the first images of a set
        let set = images(n, image(&config), key);
        let prepared = flow.prepare();
        let together = prepared.log_prob(&set, key).expect("images that fit");
        let few = prepared.log_prob(&set.take(&[0, 1]).expect("two"), key).expect("images that fit");
        near(&few.values, &together.values[..2])?;
        near(&few.standard_error, &together.standard_error[..2])?;
    }

    /// A file gives back the flow, bit for bit, without anything being computed first.
    #[test]
    fn files(config in configs(&Nonlinearity::ALL, 40), seed: u64) {
        let b = cpu();
        let flow = random_flow(&b, &config, Key::new(seed), 0.2);
        let bytes = flow.to_archive().expect("stored").to_bytes().expect("stored");
        let again = Flow::from_archive(b.clone(), &Archive::from_bytes(&bytes).expect("a file")).expect("a model");
        prop_assert_eq!(again.config(), &ModelConfig::from(&config));
        prop_assert_eq!(again.to_archive().expect("stored").to_bytes().expect("stored"), bytes);
        let set = images(2, image(&config), Key::new(1));
        let values = |flow: &Flow<Cpu>| flow.log_prob(&set, Key::new(2)).expect("images that fit").values;
        prop_assert_eq!(values(&again), values(&flow));
    }
}

/// Without weights and biases a flow is the logit and a permutation, which is spelled out here with the host's arithmetic.
#[test]
fn order_of_z() {
    let b = cpu();
    for (squeeze_first, factor_out, fully_connected) in
        [(false, false, 0), (false, true, 0), (true, true, 0), (true, false, 1), (false, true, 1)]
    {
        let config = ImageConfig {
            squeeze_first,
            factor_out,
            fully_connected,
            actnorm: false,
            evaluation: cheap(),
            ..exact_images([8, 16, 3], &[1, 1, 1])
        };
        let mut flow = Flow::new(b.clone(), &config, Key::new(0)).expect("valid");
        flow.visit_mut(&mut |_, t, role| {
            if role.is_trained() {
                *t = b.full(0.0, b.shape(t));
            }
        });
        let d = config.dimension();
        let rows = uniform_rows(1, d, Key::new(1));
        let logit = |x: f64| {
            let s = 0.05 + 0.9 * x;
            (s / (1.0 - s)).ln()
        };
        // planes[c][y][x]
        let mut planes: Vec<Vec<Vec<f64>>> = rows
            .values()
            .chunks(8 * 16)
            .map(|plane| plane.chunks(16).map(|row| row.iter().map(|&x| logit(x)).collect()).collect())
            .collect();
        let squeeze = |planes: Vec<Vec<Vec<f64>>>| -> Vec<Vec<Vec<f64>>> {
            let every = |plane: &[Vec<f64>], dy: usize, dx: usize| -> Vec<Vec<f64>> {
                plane.iter().skip(dy).step_by(2).map(|row| row.iter().skip(dx).step_by(2).copied().collect()).collect()
            };
            planes
                .iter()
                .flat_map(|plane| [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(dy, dx)| every(plane, dy, dx)))
                .collect()
        };
        let flatten = |planes: &[Vec<Vec<f64>>]| planes.iter().flatten().flatten().copied().collect::<Vec<f64>>();
        if squeeze_first {
            planes = squeeze(planes);
        }
        let mut z = Vec::new();
        for _ in 0..2 {
            planes = squeeze(planes);
            if factor_out {
                let left = planes.split_off(planes.len() / 2);
                z.extend(flatten(&left));
            }
        }
        z.extend(flatten(&planes));
        let encoded = flow.prepare().encode(&rows, Key::new(2)).expect("rows that fit");
        assert_eq!(z.len(), d);
        for (e, (found, expected)) in encoded.latents.values().iter().zip(&z).enumerate() {
            assert!((found - expected).abs() < 1e-12, "z[{e}] = {found}, {expected} expected of {config:?}");
        }
    }
}

/// Log p, z, samples and gradients on 1 and 2 threads, in both precisions: the same bits.
#[test]
fn threads_do_not_change_a_bit() {
    fn bits<B: Backend>(b: &B) -> Vec<Vec<u64>> {
        let config = ImageConfig {
            fully_connected: 1,
            factor_out: true,
            conditional_prior: true,
            filters: 9,
            bits: 5,
            training: "roulette:law=poisson,rate=2,exact=2,sharing=batch".parse().expect("a text"),
            evaluation: roulette(),
            ..exact_images([12, 8, 2], &[2, 1])
        };
        let flow = random_flow(b, &config, Key::new(5), 0.1);
        let set = images(60, [12, 8, 2], Key::new(6));
        let x = dequantise(b, set.bytes(), [60, 12, 8, 2].into(), 5, Key::new(7), 0);
        let gradient = flow.gradient(&x, None, Key::new(8)).expect("shapes that fit");
        let get = |t: &B::Tensor| {
            b.download(t).expect("no device fault").iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>()
        };
        let host = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let log_p = flow.log_prob(&set, Key::new(9)).expect("images that fit");
        let encoded = flow.prepare().encode(&set, Key::new(9)).expect("images that fit");
        let sample = flow.sample(33, Key::new(10)).expect("no device fault");
        vec![
            get(&gradient.flat),
            get(&gradient.loss),
            get(&gradient.input.expect("asked for")),
            host(&log_p.values),
            host(&log_p.standard_error),
            host(encoded.latents.values()),
            host(sample.samples.values()),
        ]
    }
    let [one, two] = [1, 2].map(|n| NonZeroUsize::new(n).expect("positive"));
    assert!(
        bits(&NdArray::<f64>::with_threads(one).expect("threads"))
            == bits(&NdArray::<f64>::with_threads(two).expect("threads"))
    );
    assert!(
        bits(&NdArray::<f32>::with_threads(one).expect("threads"))
            == bits(&NdArray::<f32>::with_threads(two).expect("threads"))
    );
}

/// A flow for the comparisons of gradients: two scales, factor-out and a fully connected block.
fn small(training: &str) -> Flow<Cpu> {
    let config = ImageConfig {
        fully_connected: 1,
        factor_out: true,
        conditional_prior: true,
        training: training.parse().expect("a text"),
        ..exact_images([4, 2, 1], &[1, 1])
    };
    random_flow(&cpu(), &config, Key::new(20), 0.2)
}

fn with_memory(flow: &Flow<Cpu>, x: &Tensor, memory: Memory, estimator: &Estimator, key: Key) -> Gradient<Cpu> {
    let b = flow.backend();
    let rows = b.shape(x).rows();
    let weights: Vec<f64> = (0..rows).map(|i| 0.5 - 0.3 * i as f64).collect();
    let objective = Objective {
        batch: &Batch::new(x.clone()),
        weights: &b.upload(&weights, [rows, 1].into()),
        key,
        memory,
        input_gradient: true,
        supervision: None,
    };
    let mut flow = flow.clone();
    flow.set_training_estimator(estimator.clone()).expect("an estimator");
    flow.prepare().gradient(&objective).expect("no device fault")
}

/// The differentiated series is the derivative of its own value: probe and coefficients are those of the key.
#[test]
fn the_differentiated_series_is_a_derivative() {
    let b = cpu();
    for text in [
        "roulette:law=geometric,p=0.5,exact=2,probes=2,sharing=sample",
        "roulette:law=poisson,rate=2,exact=1,probe=gaussian,sharing=batch",
        "truncated:terms=4,probes=2",
        "exact",
    ] {
        let flow = small(text);
        let estimator = flow.config().training().clone();
        let rows = uniform_rows(3, 8, Key::new(21));
        let x = upload(&b, &rows, [4, 2, 1]);
        let of = |flow: &Flow<Cpu>, x: &Tensor| with_memory(flow, x, Memory::Unroll, &estimator, Key::new(22));
        let found = of(&flow, &x);
        let (flat, mut at) = (down(&b, &found.flat), 0);
        let near = |value: f64, f: &dyn Fn(f64) -> f64, name: &str| {
            let expected = slope(f);
            assert!((value - expected).abs() < 1e-7 * (1.0 + expected.abs()), "{text}, {name}: {value}, {expected}");
        };
        for (which, (name, size)) in trained(&flow).into_iter().enumerate() {
            let direction = down(&b, &normal(&b, Key::new(23).split(which as u64), [size]));
            let f = |h: f64| down(&b, &of(&moved(&b, &flow, which, &direction, h), &x).loss)[0];
            near(dot(&flat[at..at + size], &direction), &f, &name);
            at += size;
        }
        let direction = b.affine(normal(&b, Key::new(24), b.shape(&x)), 0.1, 0.0);
        let f = |h: f64| down(&b, &of(&flow, &b.axpy(h, &direction, x.clone())).loss)[0];
        near(inner(&b, &found.input.expect("asked for"), &direction), &f, "x");
    }
}

/// Neumann's series and the differentiated one are both unbiased: their means over 3,000 keys are the exact gradient, in 8
/// random directions each. Wrong for another key once in a million times.
#[test]
fn both_gradients_are_unbiased() {
    const KEYS: u64 = 3000;
    let b = cpu();
    let flow = small("roulette:law=geometric,p=0.5,exact=1,sharing=sample");
    let x = upload(&b, &uniform_rows(2, 8, Key::new(25)), [4, 2, 1]);
    let everything = |g: &Gradient<Cpu>| {
        [down(&b, &g.flat), down(&b, g.input.as_ref().expect("asked for")), down(&b, &g.loss)].concat()
    };
    let exact = everything(&with_memory(&flow, &x, Memory::Store, &Estimator::Exact(Exact), Key::new(0)));
    let scale = norm(&exact);
    let directions: Vec<_> = (0..8).map(|k| down(&b, &normal(&b, Key::new(26).split(k), [exact.len()]))).collect();
    let limit = bonferroni(1e-6, 2 * directions.len());
    for memory in [Memory::Recompute, Memory::Unroll] {
        let estimator = flow.config().training();
        let samples: Vec<Vec<f64>> =
            (0..KEYS).map(|k| everything(&with_memory(&flow, &x, memory, estimator, Key::new(27).split(k)))).collect();
        for direction in &directions {
            let projected: Vec<f64> = samples.iter().map(|s| dot(s, direction)).collect();
            let (mean, error) = mean_and_error(&projected);
            let expected = dot(&exact, direction);
            assert!((mean - expected).abs() < limit * error, "{memory:?}: {mean} ± {error}, exact {expected}");
            assert!(
                error < 0.05 * scale * norm(direction) / (direction.len() as f64).sqrt(),
                "{memory:?}: ± {error} tells nothing"
            );
        }
    }
}

/// k batches of b rows make the step of one batch of k·b rows, and initialise ActNorm as it does.
#[test]
fn accumulated_batches_are_one() {
    let b = cpu();
    for (training, classes) in [
        ("roulette:law=poisson,rate=2,exact=2,sharing=batch", 0),
        ("roulette:law=poisson,rate=2,exact=2,sharing=sample", 3),
    ] {
        let run = |batch: usize, accumulate: usize| {
            let config = ImageConfig {
                fully_connected: 1,
                classes,
                head_width: 4,
                bits: 5,
                training: training.parse().expect("a text"),
                evaluation: cheap(),
                ..exact_images([4, 4, 2], &[1, 1])
            };
            let settings = TrainConfig {
                batch,
                accumulate,
                flips: true,
                warmup: 0,
                validation_rows: 5,
                memory: Memory::Recompute,
                // Adam's first step would divide gradients that are zero but for rounding by themselves
                epsilon: 1e-2,
                ..TrainConfig::default()
            };
            let flow = Flow::new(b.clone(), &config, Key::new(30)).expect("valid");
            let set = images(40, [4, 4, 2], Key::new(31)).with_labels((0..40).map(|i| i % 3).collect());
            let source = Source::from(set.expect("as many labels"));
            let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(9), Key::new(32)).expect("valid");
            assert_eq!(trainer.step_samples(), 12);
            let mut reports = Vec::new();
            for _ in 0..4 {
                let report = trainer.step().expect("finite");
                reports.push(report.train_nll);
                reports.extend(report.classification.iter().flat_map(|c| [c.cross_entropy, c.accuracy]));
            }
            assert_eq!(reports.len(), if classes > 0 { 12 } else { 4 });
            let mut tensors = vec![("loss".to_owned(), reports)];
            trainer.flow().visit(&mut |name, t, _| tensors.push((name.to_owned(), down(&b, t))));
            tensors
        };
        let whole = run(12, 1);
        let initialised =
            whole.iter().filter(|(name, _)| name.ends_with("initialised")).map(|(_, t)| t[0]).collect::<Vec<_>>();
        assert!(!initialised.is_empty() && initialised.iter().all(|&i| i == 1.0));
        for (batch, accumulate) in [(4, 3), (6, 2), (1, 12)] {
            for ((name, a), (_, c)) in whole.iter().zip(run(batch, accumulate)) {
                let apart = norm(&a.iter().zip(&c).map(|(a, c)| a - c).collect::<Vec<_>>());
                assert!(apart <= 1e-9 * (1.0 + norm(a)), "{accumulate} × {batch}, {name}: {apart:e}");
            }
        }
    }
}

/// `within` draws until the error is small enough, or as many replicates as it may; values stay those of the same images.
#[test]
fn errors_on_demand() {
    let b = cpu();
    // one bit: the noise is half the range, so that other noise makes another image
    let config = ImageConfig { bits: 1, evaluation: roulette(), replicates: 2, ..exact_images([4, 4, 1], &[2, 1]) };
    let flow = random_flow(&b, &config, Key::new(40), 0.15);
    let (set, key) = (images(9, [4, 4, 1], Key::new(41)), Key::new(42));
    let mut exact = flow.clone();
    exact.set_log_prob_estimator(Estimator::Exact(Exact), 2).expect("in range");
    let exact = exact.log_prob(&set, key).expect("images that fit");
    let plain = flow.log_prob(&set, key).expect("images that fit");
    let largest = |errors: &[f64]| largest(errors.iter().copied());
    let target = 0.1 * largest(&plain.standard_error);
    let within =
        |error, most| flow.prepare().within(error, most).expect("an error").log_prob(&set, key).expect("images");
    let found = within(target, 1_000_000);
    assert!(largest(&found.standard_error) <= target && largest(&plain.standard_error) > target);
    for (i, (value, exact)) in found.values.iter().zip(&exact.values).enumerate() {
        // the images are dequantised by the same noise in every round; stopped early, an error may be too small by half
        assert!((value - exact).abs() < 12.0 * target, "image {i}: {value}, exact {exact}");
    }
    assert_eq!(found.values, within(target, 1_000_000).values);
    // a limit: two replicates are what there is at first, a hundred make the error seven times smaller
    assert_eq!(within(1e-9, 3).values, plain.values);
    let hundred = within(1e-9, 100);
    let ratio = |i: usize| (plain.standard_error[i] / hundred.standard_error[i]).powi(2);
    let ratio = (0..9).map(ratio).sum::<f64>() / 9.0;
    assert!((5.0..500.0).contains(&ratio), "{ratio}");
    // rows that are good enough after eight replicates keep their first estimate, and what another row draws does not
    // depend on how many go on
    let mut eight = flow.clone();
    eight.set_log_prob_estimator(roulette(), 8).expect("in range");
    let eight = eight.prepare();
    let plain = eight.log_prob(&set, key).expect("images");
    let worst = (0..9).max_by(|&i, &j| plain.standard_error[i].total_cmp(&plain.standard_error[j])).expect("nine");
    let one = eight.within(largest(&plain.standard_error) * 0.999, 16).expect("an error");
    let one_more = one.log_prob(&set, key).expect("images");
    assert!((0..9).all(|i| (one_more.values[i] == plain.values[i]) == (i != worst)));
    let all_more = one.within(1e-9, 16).expect("an error").log_prob(&set, key).expect("images");
    assert!((0..9).all(|i| all_more.values[i] != plain.values[i]));
    assert_eq!(one_more.values[worst], all_more.values[worst]);
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(flow.prepare().within(wrong, 10).is_err());
    }
    // exact values need no second look
    let mut exact_flow = flow.clone();
    exact_flow.set_log_prob_estimator(Estimator::Exact(Exact), 2).expect("in range");
    assert_eq!(
        exact_flow.prepare().within(1e-30, 10).expect("an error").log_prob(&set, key).expect("images").values,
        exact.values
    );
}

/// Data of another size are refused with both sizes in the message.
#[test]
fn other_images_are_refused() {
    let b = cpu();
    let flow = random_flow(&b, exact_images([4, 6, 1], &[1]), Key::new(50), 0.1);
    for image in [[6, 4, 1], [4, 6, 3], [5, 6, 1]] {
        let refused = flow.log_prob(&images(1, image, Key::new(0)), Key::new(0)).expect_err("another size").to_string();
        assert!(refused.contains("4x6"), "{refused}");
    }
    assert!(flow.log_prob(&rows(2, 23, Key::new(0)), Key::new(0)).is_err());
    let x = |shape: [usize; 4]| b.full(0.5, shape.into());
    assert!(flow.gradient(&x([2, 4, 6, 1]), None, Key::new(0)).is_ok());
    for wrong in [[2, 6, 4, 1], [2, 4, 6, 2], [0, 4, 6, 1]] {
        assert!(flow.gradient(&x(wrong), None, Key::new(0)).is_err(), "{wrong:?}");
    }
    assert!(flow.gradient(&b.full(0.5, [2, 24].into()), None, Key::new(0)).is_err());
    let rows_flow = random_flow(&b, exact_config(24, 1, &[4]), Key::new(51), 0.1);
    assert!(rows_flow.log_prob(&images(1, [4, 6, 1], Key::new(0)), Key::new(0)).is_err());
    let source = Source::from(images(10, [6, 4, 1], Key::new(0)));
    let refused =
        Trainer::new(flow, source, &TrainConfig::default(), Budget::Steps(1), Key::new(0)).expect_err("sizes");
    assert!(refused.to_string().contains("6 × 4") && refused.to_string().contains("4 × 6"), "{refused}");
}
