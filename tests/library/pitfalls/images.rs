//! Those of `rows.rs` that are about images, named after the same list. Keys are fixed, so no test fails by chance.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;

use crate::common::asking::{train, value, with_log_det};
use crate::common::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key, Noise, Padding};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Draw, Memory};
use resflow::block::ResidualBlock;
use resflow::checkpoint::{Archive, Values};
use resflow::config::{ImageConfig, Nonlinearity};
use resflow::error::Error;
use resflow::estimator::{Estimator, Exact, Weights, series};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Method, Status, invert_residual};
use resflow::layer::{Derivatives, Layer, PreparedLayer};
use resflow::lipschitz::{ConvOperator, NormChain};
use resflow::module::Module as _;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::transform::{bits_per_dim, dequantise};

const EXACT: Estimator = Estimator::Exact(Exact);

/// The norm of every convolution that a flow computes with on images of these sizes, by SVD, from the stored tensors.
fn norms_in_use(flow: &Flow<Cpu>, image: impl Fn(&str) -> [usize; 2]) -> Vec<(String, f64)> {
    let b = flow.backend();
    let mut tensors = Vec::new();
    flow.visit(&mut |name, t, _| tensors.push((name.to_owned(), t.clone())));
    let spectra: Vec<_> = flow.spectra().expect("no device fault").into_iter().flatten().collect();
    let mut out = Vec::new();
    for (name, kernel) in tensors.iter().filter(|(name, t)| last_part(name) == "weight" && b.shape(t).rank() == 4) {
        let spectrum = spectra.iter().find(|s| s.name == *name).expect("every weight has one");
        let factor = spectrum.coefficient / spectrum.coefficient.max(spectrum.sigma);
        out.push((name.clone(), conv_norm(b, kernel, image(name)) * factor));
    }
    assert!(!out.is_empty());
    out
}

/// RF: u and v are not refreshed after the averaged weights are swapped in or out.
#[test]
fn pitfall_03_averaged_kernels_have_their_own_singular_vectors() {
    let b = cpu();
    let config = exact_images([4, 5, 1], &[2]);
    let settings = TrainConfig {
        batch: 16,
        average: 0.99,
        learning_rate: 0.05,
        warmup: 0,
        validation_rows: 10,
        memory: Memory::Recompute,
        ..TrainConfig::default()
    };
    let source = Source::from(images(60, [4, 5, 1], Key::new(1)));
    let flow = Flow::new(b.clone(), &config, Key::new(2)).expect("valid");
    let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(25), Key::new(3)).expect("valid");
    trainer.run(|_, _| ()).expect("finite");
    for flow in [&trainer.averaged(), &trainer.model()] {
        for (name, norm) in norms_in_use(flow, |_| [4, 5]) {
            assert!(norm <= 0.9 * (1.0 + 1e-4), "{name}: {norm}");
        }
    }
    // with the vectors of the last weights the averaged ones would not be within their bound
    let mut stale = trainer.averaged();
    let mut vectors = Vec::new();
    trainer.flow().visit(&mut |name, t, _| vectors.push((name.to_owned(), t.clone())));
    stale.visit_mut(&mut |name, t, _| {
        if matches!(last_part(name), "u" | "v") {
            *t = vectors.iter().find(|(other, _)| other == name).expect("the same names").1.clone();
        }
    });
    assert!(
        norms_in_use(&stale, |_| [4, 5]).iter().any(|(_, norm)| *norm > 0.9 * (1.0 + 1e-4)),
        "the test tests nothing"
    );
}

/// TF and the spectral norm of deep-learning frameworks: σ of the reshaped kernel; FE: of the convolution without padding.
#[test]
fn pitfall_03_sigma_is_that_of_the_zero_padded_convolution() {
    let (b, image, kappa) = (cpu(), [6, 7], 0.9);
    for seed in 0..5 {
        let layer = conv(&b, image, [3, 3], [2, 3], kappa, 2.0, None, Key::new(seed));
        let kernel = layer.kernel();
        let truth = conv_norm(&b, kernel, image);
        let mut sigma = 0.0;
        layer.spectra(&b, "", &mut |s| sigma = s.sigma).expect("no device fault");
        assert!((sigma - truth).abs() < 1e-3 * truth, "{sigma}, {truth}");
        // the reshaped kernel [c_out, 9·c_in], and the convolution without padding
        let reshaped = spectral_norm(3, 18, &down(&b, kernel));
        let valid = ConvOperator::new(&b, kernel, Padding { height: 0, width: 0 }, image).expect("fits");
        let (o, i, w) = matrix_of(&b, &valid);
        let unpadded = spectral_norm(o, i, &w);
        assert!(
            reshaped < 0.97 * truth && unpadded < truth * (1.0 - 1e-3),
            "they happen to agree: {reshaped} {unpadded} {truth}"
        );
    }
}

/// RF's class default: norms "122f", with which every layer is within its bound and the product bounds nothing.
#[test]
fn pitfall_04_norms_that_do_not_close_are_refused() {
    let of = |norms: &str| -> Result<(), String> {
        let norms: NormChain = norms.parse().map_err(|e: resflow::error::ConfigError| e.to_string())?;
        ImageConfig { norms, ..exact_images([4, 4, 1], &[1]) }.check().map_err(|e| e.to_string())
    };
    for refused in ["122f", "1222", "222f", "f221", "12", "22", "2222222", "2f2", "1", "", "x"] {
        assert!(of(refused).is_err() || refused == "22" || refused == "2222222", "{refused}");
    }
    let message = of("122f").expect_err("it does not close");
    assert!(message.contains("1-norm") && message.contains("max norm"), "{message}");
    for accepted in ["2", "2222", "2ff2", "1221", "f12f"] {
        assert_eq!(of(accepted), Ok(()), "{accepted}");
    }
    let read = |norms: &str| toml::from_str::<ImageConfig>(&format!("norms = \"{norms}\"\n"));
    assert!(read("122f").is_err() && read("2ff2").is_ok());
    // nor norms in which the activation is no contraction
    let config = ImageConfig { activation: Nonlinearity::ClipSwish, ..exact_images([4, 4, 1], &[1]) };
    assert!(ImageConfig { norms: "2ff2".parse().expect("closes"), ..config.clone() }.check().is_err());
    assert!(config.check().is_ok());
}

/// RF, NF, DN: the whole batch iterates until its slowest image is done.
#[test]
fn pitfall_06_a_slow_image_does_not_hold_up_the_batch() {
    let (b, n, image) = (cpu(), 24, [4, 5, 2]);
    let [h, w, c] = image;
    // ELU contracts slowly where its input is positive and fast where it is very negative
    let mut net: Vec<Box<dyn Layer<Cpu>>> = vec![activation(&b, Nonlinearity::Elu, Key::new(0))];
    net.push(Box::new(conv(&b, [h, w], [3, 3], [c, c], 0.95, 3.0, None, Key::new(2))));
    let net = resflow::layer::Sequence::new(net);
    let prepared = net.prepare(&b);
    let d = h * w * c;
    let mut y = vec![-15.0; n * d];
    y[7 * d..8 * d].iter_mut().enumerate().for_each(|(e, y)| *y = 30.0 + e as f64);
    let shape = |n: usize| -> resflow::backend::Shape { [n, h, w, c].into() };
    let evaluated = Cell::new(0);
    let g = |x: &Batch<Cpu>| {
        evaluated.set(evaluated.get() + x.len(&b));
        prepared.forward(&b, x, Derivatives::None).0
    };
    let how = Inversion::for_backend::<Cpu>().with_method(Method::FixedPoint).expect("a method");
    let batch = |y: &[f64], n| Batch::new(b.upload(y, shape(n)));
    let together = invert_residual(&b, g, &batch(&y, n), 0.95, &how).expect("no device fault");
    let (slow, fast) = (together.reports[7].iterations, together.reports[0].iterations);
    assert!(together.reports.iter().all(|r| r.status == Status::Converged) && slow > 3 * fast, "{slow} and {fast}");
    let needed: usize = together.reports.iter().map(|r| r.iterations as usize).sum();
    assert!(evaluated.get() <= needed * 4 / 3 + n, "{} images evaluated, {needed} needed", evaluated.get());
    // nor does it change the others
    let alone = invert_residual(&b, g, &batch(&y[..d], 1), 0.95, &how).expect("no device fault");
    assert_eq!(alone.reports[0].iterations, fast);
    let all = down(&b, &together.value);
    assert!(all[..d].iter().zip(down(&b, &alone.value)).all(|(a, c)| (a - c).abs() < 1e-13));
    let block = ResidualBlock::new(Box::new(net), &image).expect("a contraction").prepare(&b);
    let again = down(&b, &value(&b, &*block, &together.value));
    assert!(again.iter().zip(&y).all(|(a, y)| (a - y).abs() < 1e-11 * (1.0 + y.abs())));
}

/// RF: u and v tie a convolution to one image size, and weights load only after a dummy forward pass.
#[test]
fn pitfall_07_flows_take_other_image_sizes() {
    let b = cpu();
    let config = ImageConfig { squeeze_first: true, factor_out: true, ..exact_images([8, 8, 1], &[1, 1]) };
    let flow = random_flow(&b, &config, Key::new(7), 0.2);
    let spectra = |flow: &Flow<Cpu>| -> Vec<f64> {
        flow.spectra().expect("no device fault").into_iter().flatten().map(|s| s.sigma).collect()
    };
    for (height, width) in [(4, 8), (8, 4), (4, 4), (8, 8), (12, 8), (4, 16), (16, 12)] {
        let other = flow.resized(height, width).expect("multiples of 4");
        assert_eq!(other.config().sample_shape(), [height, width, 1]);
        let smaller = height <= 8 && width <= 8;
        // a σ that bounds the new size stays as it is, another one is found anew
        assert_eq!(spectra(&other) == spectra(&flow), smaller, "{height} × {width}");
        let inside = |name: &str| {
            let first = name.starts_with("links.3.");
            if first { [height / 2, width / 2] } else { [height / 4, width / 4] }
        };
        for (name, norm) in norms_in_use(&other, inside) {
            assert!(norm <= 0.9 * (1.0 + 2e-3), "{name}: {norm} at {height} × {width}");
        }
        // it computes, exactly, and back
        let x = uniform_rows(2, height * width, Key::new(8));
        let prepared = other.prepare();
        let encoded = prepared.encode(&x, Key::new(9)).expect("rows of the new size");
        let decoded = prepared.decode(&encoded.latents, &Inversion::for_backend::<Cpu>()).expect("rows");
        assert!(decoded.samples.values().iter().zip(x.values()).all(|(a, c)| (a - c).abs() < 1e-10));
        assert!(flow.log_prob(&x, Key::new(9)).is_err() || (height * width == 64));
        // and is a model that can be stored
        let bytes = other.to_archive().expect("stored");
        let again = Flow::from_archive(b.clone(), &bytes).expect("loads without being run first");
        assert_eq!(again.prepare().encode(&x, Key::new(9)).expect("rows").latents, encoded.latents);
        assert_eq!(spectra(&again), spectra(&other));
    }
    // sizes that cannot be squeezed, and flows that are tied to their size
    assert!(flow.resized(6, 8).is_err() && flow.resized(8, 0).is_err() && flow.resized(1 << 15, 8).is_err());
    let tied = random_flow(&b, &ImageConfig { fully_connected: 1, ..config }, Key::new(7), 0.2);
    let refused = tied.resized(4, 8).expect_err("fully connected").to_string();
    assert!(refused.contains("tied to its image size"), "{refused}");
    assert!(random_flow(&b, exact_config(3, 1, &[4]), Key::new(7), 0.2).resized(4, 4).is_err());
}

/// Some i-ResNets have dropout in g: another g on the way back. Here g is a function.
#[test]
fn pitfall_08_g_is_a_function() {
    let b = cpu();
    for activation in Nonlinearity::ALL {
        let config = ImageConfig { activation, fully_connected: 1, ..exact_images([4, 4, 2], &[1, 1]) };
        let flow = random_flow(&b, &config, Key::new(8), 0.2);
        let x = b.affine(b.noise(Key::new(9), Noise::Uniform, 0, [3, 4, 4, 2].into()), 0.9, 0.05);
        for link in flow.transforms().iter().take(4) {
            let forward = |key| {
                let draw = Draw { estimator: &EXACT, key: Key::new(key) };
                let prepared = link.prepare(&b);
                let batch = Batch::new(x.clone()).starting_at(5 * key);
                let trained = train(&b, &*prepared, &batch, draw, Memory::Recompute);
                [value(&b, &*prepared, &x), with_log_det(&b, &*prepared, &batch, draw, 2).0, trained.y]
                    .map(|y| down(&b, &y))
            };
            let (one, other) = (forward(1), forward(2));
            assert!(one == other && one[0] == one[1] && one[1] == one[2], "{}", link.describe());
        }
    }
}

/// RF: evaluation of an untrained MNIST model is 20 times slower than training, on subnormal numbers.
#[test]
fn pitfall_17_no_subnormal_numbers_in_the_series_of_convolutions() {
    let b = cpu();
    let image = [4, 3, 2];
    let net = image_net(&b, image, 3, Nonlinearity::Tanh, true, Key::new(17));
    let prepared = net.prepare(&b);
    // J of a tanh is tiny where the input is large: rows decay at very different rates
    let mut x = down(&b, &normal(&b, Key::new(18), [8, 4, 3, 2]));
    x.iter_mut().enumerate().for_each(|(e, x)| *x *= 1.0 + (e / 24) as f64);
    let x = Batch::new(b.upload(&x, [8, 4, 3, 2].into()));
    let (_, saved) = prepared.forward(&b, &x, Derivatives::First);
    let probe = b.noise(Key::new(19), Noise::Rademacher, 0, [8, 4, 3, 2].into());
    let spy = Spy::new(&*prepared);
    let (value, _) = series(&b, &spy, &saved, &probe, &Weights::Batch(vec![1.0; 1000]), true);
    assert_eq!(spy.subnormal.load(Ordering::Relaxed), 0);
    let calls = spy.calls.load(Ordering::Relaxed);
    assert!(calls < 300, "stopped after {calls} of 1000 terms");
    // without the stop there would be subnormal numbers, and the same value
    let (mut power, mut sum, mut met) = (probe.clone(), [0.0; 8], 0);
    let v = down(&b, &probe);
    for k in 1..=3000 {
        power = PreparedLayer::vjp(&*prepared, &b, &saved, power);
        let w = down(&b, &power);
        met += w.iter().filter(|x| x.is_subnormal()).count();
        for (r, sum) in sum.iter_mut().enumerate() {
            *sum -= (-1.0_f64).powi(k) / f64::from(k) * dot(&w[r * 24..r * 24 + 24], &v[r * 24..r * 24 + 24]);
        }
    }
    assert!(met > 0, "the test does not test anything");
    assert!(down(&b, &value.0).iter().zip(sum).all(|(a, s)| (a - s).abs() < 1e-13 * 24.0));
}

/// NF: the logit of a pixel that is exactly 0 or 1 is infinite, and a later `if` skips the NaN.
#[test]
fn pitfall_20_black_and_white_pixels_are_finite() {
    fn check<B: Backend>(b: &B) {
        let config = ImageConfig {
            logit_alpha: 1e-6,
            training: "truncated:terms=3".parse().expect("a text"),
            evaluation: "truncated:terms=3".parse().expect("a text"),
            ..exact_images([4, 4, 1], &[1, 1])
        };
        let flow = random_flow(b, &config, Key::new(20), 0.1);
        let extreme: Vec<f64> =
            (0..48).map(|e| f64::from(u8::from(e / 16 == 0 || (e / 16 == 1 && e % 2 == 0)))).collect();
        let log_p = flow.log_prob(&table(16, extreme.clone()), Key::new(0)).expect("rows");
        assert!(log_p.values.iter().all(|v| v.is_finite()), "{:?}", log_p.values);
        let x: Vec<B::Elem> = extreme.iter().map(|&x| B::Elem::from_f64(x)).collect();
        let gradient = flow.gradient(&b.upload(&x, [3, 4, 4, 1].into()), None, Key::new(1)).expect("shapes");
        for part in [gradient.flat, gradient.loss, gradient.input.expect("asked for")] {
            assert!(b.download(&part).expect("no device fault").iter().all(|v| v.is_finite()));
        }
        // and black comes back black
        let back = flow.prepare().decode(
            &flow.prepare().encode(&table(16, extreme.clone()), Key::new(0)).expect("rows").latents,
            &Inversion::for_backend::<B>(),
        );
        let back = back.expect("rows").samples;
        assert!(back.values().iter().zip(&extreme).all(|(a, x)| (a - x).abs() < 1e-5));
    }
    check(&cpu());
    check(&NdArray::<f32>::with_threads(NonZeroUsize::MIN).expect("one thread"));
}

/// RF: bytes of 5 bits are spaced by 31/32 of a level.
#[test]
fn pitfall_21_five_bits_are_thirty_two_levels() {
    let b = cpu();
    let bytes: Vec<u8> = (0..=255).flat_map(|byte| [byte; 100]).collect();
    let x = down(&b, &dequantise(&b, &bytes, [256, 10, 10, 1].into(), 5, Key::new(21), 0));
    for (level, x) in x.chunks(800).enumerate() {
        let (low, high) = (level as f64 / 32.0, (level + 1) as f64 / 32.0);
        assert!(x.iter().all(|x| (low..high).contains(x)), "level {level}");
        // 800 draws fill the level: the nearest to an end is within a hundredth of it, but for e^{−8} of the keys
        let ends = x.iter().fold((1.0_f64, 0.0_f64), |(a, z), &x| (a.min(x), z.max(x)));
        assert!(ends.0 < low + 0.02 / 32.0 && ends.1 > high - 0.02 / 32.0, "level {level}: {ends:?}");
    }
    // the uniform density on the cube costs 5 bits a number
    assert_eq!(bits_per_dim(0.0, 3072, 5), 5.0);
    // and a flow's bits are those of its configuration
    let config = ImageConfig { bits: 5, ..exact_images([2, 2, 1], &[1]) };
    let flow = random_flow(&b, &config, Key::new(22), 0.1);
    let set = images(3, [2, 2, 1], Key::new(23));
    let mut same = set.bytes().to_vec();
    for byte in &mut same {
        *byte |= 7;
    }
    let same = resflow::data::image::ImageSet::new(2, 2, 1, same, None).expect("three images");
    let log_p = |set| flow.log_prob(set, Key::new(24)).expect("images").values;
    assert_eq!(log_p(&set), log_p(&same));
    let eight = random_flow(&b, &ImageConfig { bits: 8, ..config }, Key::new(22), 0.1);
    assert_ne!(eight.log_prob(&set, Key::new(24)).expect("images").values, log_p(&set));
}

/// A file that lacks a convolution's vectors, or has those of another size, is refused, not guessed.
#[test]
fn pitfall_07_vectors_belong_to_the_model() {
    let b = cpu();
    let flow = random_flow(&b, exact_images([4, 4, 1], &[1, 1]), Key::new(25), 0.1);
    let refused = |change: &dyn Fn(&mut Archive)| {
        let mut archive = flow.to_archive().expect("stored");
        change(&mut archive);
        let loaded = Flow::from_archive(b.clone(), &archive);
        assert!(matches!(loaded, Err(Error::Checkpoint(_) | Error::Config(_))), "{loaded:?}");
    };
    refused(&|a| drop(a.tensors.remove("links.2.net.0.u").expect("a name")));
    refused(&|a| drop(a.tensors.remove("links.5.net.5.v").expect("a name")));
    let zeros = |shape: [usize; 4]| {
        let n: usize = shape.iter().product();
        (shape.to_vec(), Values::F64(vec![(n as f64).powf(-0.5); n]))
    };
    // of a smaller size, of a larger one, and of one that no file could hold
    for size in [[2, 4], [4, 2], [8, 8], [5, 4], [1 << 14, 1 << 14], [usize::MAX, 4], [0, 0]] {
        refused(&|a| {
            drop(a.tensors.insert("links.2.net.0.u".into(), (vec![1, size[0], size[1], 3], Values::F64(vec![]))));
        });
    }
    refused(&|a| drop(a.tensors.insert("links.2.net.0.u".into(), zeros([1, 8, 8, 3]))));
    refused(&|a| drop(a.tensors.insert("links.5.net.1.u".into(), zeros([1, 4, 4, 3]))));
}
