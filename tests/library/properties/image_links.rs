//! The links of an image flow: inverse, log det against the Jacobian, gradients and refused shapes of ActNorm, logit, squeeze,
//! flattening and residual blocks on images of any size; the logit at and near 0 and 1; what dequantisation and bits per
//! dimension are. Random cases, no statistics, but for the mean of the noise, which is 5 standard errors from its bound.

use crate::common::asking::{count_grads, pull_back, train, value, with_log_det};
use crate::common::bijections::{self, EXACT, check_bijection, check_gradients};
use crate::common::*;
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, CloneBijection as _, Draw, Memory};
use resflow::block::{InvertedBlock, MonotoneBlock, ResidualBlock};
use resflow::config::Nonlinearity;
use resflow::invert::Inversion;
use resflow::module::Role;
use resflow::transform::{ActNorm, Flatten, Logit, Squeeze, bits_per_dim, dequantise, quantise};

const ROWS: usize = 3;

fn pixels(b: &Cpu, n: usize, [h, w, c]: [usize; 3], key: Key) -> Tensor {
    let rows = uniform_rows(n, h * w * c, key);
    b.upload(rows.values(), [n, h, w, c].into())
}

fn block(b: &Cpu, image: [usize; 3], width: usize, which: Nonlinearity, leading: bool, key: Key) -> ResidualBlock<Cpu> {
    let net = image_net(b, image, width, which, leading, key);
    ResidualBlock::new(Box::new(net), &image).expect("a contraction")
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn every_link(
        seed: u64, h in 1_usize..4, w in 1_usize..4, c in 1_usize..4, width in 1_usize..4,
        which in proptest::sample::select(&SMOOTH[..]), leading: bool, alpha in 1e-3..0.4,
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let image = [h, w, c];
        let x = normal(&b, key.named("x"), [ROWS, h, w, c]);
        let [s, shift] = ["s", "shift"].map(|name| b.affine(normal(&b, key.named(name), [c]), 0.7, 0.2));
        let actnorm = ActNorm::from_parts(&b, s, shift).expect("shapes that fit");
        check_bijection(&b, &actnorm, &x, key);
        check_bijection(&b, &Flatten::new(image), &x, key);
        check_bijection(&b, &Logit::new(alpha).expect("in range"), &pixels(&b, ROWS, image, key), key);
        check_bijection(&b, &block(&b, image, width, which, leading, key), &x, key);
        // behind a solve differences cannot follow the Pilas, whose fourth derivative jumps
        if !matches!(which, Nonlinearity::Pila | Nonlinearity::ConcatenatedPila) {
            let net = || Box::new(image_net(&b, image, width, which, leading, key));
            check_bijection(&b, &InvertedBlock::new(net(), &image).expect("a contraction"), &x, key);
            check_bijection(&b, &MonotoneBlock::new(net(), &image).expect("a contraction"), &x, key);
        }
        for mask in masks(&image) {
            check_bijection(&b, &coupling(&b, &image, mask, width, which, key), &x, key);
        }
        check_bijection(&b, &prior(&b, [h, w, 2 * c], which, key), &normal(&b, key.named("prior"), [ROWS, h, w, 2 * c]), key);
        check_bijection(&b, &invertible(&b, c, key), &x, key);
        let even = normal(&b, key.named("even"), [ROWS, 2 * h.min(2), 2 * w.min(2), c.min(2)]);
        check_bijection(&b, &Squeeze::new(), &even, key);
        check_bijection(&b, &Squeeze::with_factor_out(c.min(2)), &even, key);
    }

    #[test]
    fn shapes_that_do_not_pass(seed: u64, h in 1_usize..5, w in 1_usize..5, c in 1_usize..4) {
        let b = cpu();
        let takes = |link: &dyn Bijection<Cpu>, row: &[usize]| link.output_shape(row).ok();
        let actnorm = ActNorm::new(&b, c);
        prop_assert_eq!(takes(&actnorm, &[h, w, c]), Some(vec![h, w, c]));
        for wrong in [&[h, w, c + 1][..], &[h, c], &[], &[h, w, c, c], &[1, h, w, c]] {
            prop_assert!(takes(&actnorm, wrong).is_none(), "{wrong:?}");
        }
        let flatten = Flatten::new([h, w, c]);
        prop_assert_eq!(takes(&flatten, &[h, w, c]), Some(vec![h * w * c]));
        for wrong in [&[h + 1, w, c][..], &[h * w * c], &[h, w], &[]] {
            let refused = Bijection::<Cpu>::output_shape(&flatten, wrong).expect_err("another shape").to_string();
            prop_assert!(refused.contains("fully connected"), "{refused}");
        }
        for squeeze in [Squeeze::new(), Squeeze::with_factor_out(c)] {
            let passes = h % 2 == 0 && w % 2 == 0;
            prop_assert_eq!(takes(&squeeze, &[h, w, c]), passes.then(|| vec![h / 2, w / 2, 4 * c]));
            for wrong in [&[h * w * c][..], &[], &[0, 2, c], &[2, 2, c, 1]] {
                prop_assert!(takes(&squeeze, wrong).is_none(), "{wrong:?}");
            }
        }
        prop_assert!(takes(&Squeeze::with_factor_out(c), &[2, 2, c + 1]).is_none());
        let block = block(&b, [h, w, c], 2, Nonlinearity::Elu, true, Key::new(seed));
        prop_assert_eq!(takes(&block, &[h, w, c]), Some(vec![h, w, c]));
        for wrong in [&[h + 1, w, c][..], &[h, w, c + 1], &[h * w * c], &[]] {
            prop_assert!(takes(&block, wrong).is_none(), "{wrong:?}");
        }
        // resized it takes another size, and no more its own
        let mut resized = block.boxed_clone();
        prop_assert_eq!(resized.resize(&b, &[h + 1, w + 2, c]).expect("any size"), vec![h + 1, w + 2, c]);
        prop_assert!(takes(&*resized, &[h + 1, w + 2, c]).is_some() && takes(&*resized, &[h, w, c]).is_none());
        prop_assert!(resized.resize(&b, &[h, w, c + 1]).is_err());
    }

    /// Data-dependent initialisation per channel: zero mean and unit variance over rows and pixels, however they are cut.
    #[test]
    fn actnorm_is_initialised_by_channel(seed: u64, n in 2_usize..6, h in 1_usize..4, w in 1_usize..4, c in 1_usize..4) {
        let (b, key) = (cpu(), Key::new(seed));
        let x = b.affine(normal(&b, key, [n, h, w, c]), 3.0, 5.0);
        let cut = |at: usize| {
            let mut link = ActNorm::new(&b, c);
            let shards = [b.narrow(&x, 0, 0, at), b.narrow(&x, 0, at, n - at)].map(Batch::new);
            link.initialise(&b, &shards, None).expect("enough rows");
            link
        };
        let y = down(&b, &value(&b, &*cut(1).prepare(&b), &x));
        let other = down(&b, &value(&b, &*cut(n - 1).prepare(&b), &x));
        prop_assert!(y.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-12 * (1.0 + a.abs())));
        for channel in 0..c {
            let own = |y: &[f64]| y.iter().skip(channel).step_by(c).copied().collect::<Vec<_>>();
            let (values, raw) = (own(&y), own(&down(&b, &x)));
            let (mean, error) = mean_and_error(&values);
            let variance = error * error * values.len() as f64;
            let (_, error) = mean_and_error(&raw);
            let raw = error * error * raw.len() as f64;
            prop_assert!(mean.abs() < 1e-12 && (variance - raw / raw.max(0.2)).abs() < 1e-11, "{mean} {variance}");
        }
    }

    /// Finite at and near 0 and 1 in single precision, and within its precision of what double precision says.
    #[test]
    fn logit_near_the_ends(alpha in prop_oneof![Just(1e-6), 1e-7..0.4], steps in 0_u32..200, seed: u64) {
        let single = NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread");
        let double = cpu();
        let near = f32::from_bits(1.0_f32.to_bits() - steps);
        let small = f32::EPSILON * steps as f32;
        let mut x = vec![0.0_f32, 1.0, near, small, 1.0 - small, f32::MIN_POSITIVE, 0.5, 1e-30];
        x.extend(down(&double, &pixels(&double, 1, [2, 2, 1], Key::new(seed))).iter().map(|&x| x as f32));
        let logit = Logit::new(alpha).expect("in range");
        let n = x.len();
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let draw = Draw { estimator: &EXACT, key: Key::new(0) };
        let short = Batch::new(single.upload(&x, [n, 1, 1, 1].into()));
        let (y, log_det) = with_log_det(&single, &*Bijection::<NdArray<f32>>::prepare(&logit, &single), &short, draw, 1);
        let long = Batch::new(double.upload(&wide, [n, 1, 1, 1].into()));
        let (exact, exact_log_det) = with_log_det(&double, &*Bijection::<Cpu>::prepare(&logit, &double), &long, draw, 1);
        let y = single.download(&y).expect("no device fault");
        for (i, exact) in down(&double, &exact).into_iter().enumerate() {
            // against the definition, whose 1 − s is exact enough in double precision
            let s = alpha + (1.0 - 2.0 * alpha) * wide[i];
            let r = alpha + (1.0 - 2.0 * alpha) * (1.0 - wide[i]);
            prop_assert!((exact - (s / r).ln()).abs() <= 1e-13 * (1.0 + exact.abs()), "{exact}");
            prop_assert!((f64::from(y[i]) - exact).abs() <= 4e-6 * (1.0 + exact.abs()), "x = {}: {} and {exact}", x[i], y[i]);
        }
        let value = single.download(&log_det.value).expect("no device fault");
        for (i, exact) in down(&double, &exact_log_det.value).into_iter().enumerate() {
            prop_assert!((f64::from(value[i]) - exact).abs() <= 4e-6 * (1.0 + exact.abs()), "x = {}: {} and {exact}", x[i], value[i]);
        }
        // back, from z of any size
        let back = Bijection::<NdArray<f32>>::prepare(&logit, &single);
        let z = single.upload(&[-200.0, -40.0, 0.0, 40.0, 200.0, 88.0, -88.0], [7, 1, 1, 1].into());
        let x = back.inverse(&single, &Batch::new(z), &Inversion::for_backend::<NdArray<f32>>()).expect("no device fault");
        let x = single.download(&x.value).expect("no device fault");
        let end = (alpha / (1.0 - 2.0 * alpha)) as f32;
        prop_assert!(x.iter().all(|x| (-end * 1.001 - 1e-6..=1.0 + end * 1.001 + 1e-6).contains(x)), "{x:?}");
    }

    #[test]
    fn dequantisation(seed: u64, bits in 1_u32..=8, h in 1_usize..4, w in 1_usize..4, c in 1_usize..4, first in 0_u64..1000, cut in 1_usize..4) {
        let (b, key) = (cpu(), Key::new(seed));
        let (set, levels) = (images(4, [h, w, c], key), f64::from(1_u32 << bits));
        let x = down(&b, &dequantise(&b, set.bytes(), [4, h, w, c].into(), bits, key, first));
        for (x, &byte) in x.iter().zip(set.bytes()) {
            let level = f64::from(byte >> (8 - bits));
            prop_assert!((level..level + 1.0).contains(&(x * levels)) && (0.0..1.0).contains(x));
            // the byte that shows x is that of its level
            prop_assert_eq!(quantise(*x, bits), (level * 255.0 / (levels - 1.0)).round() as u8);
            prop_assert_eq!(quantise(*x, bits) >> (8 - bits), byte >> (8 - bits));
        }
        // image i's noise is number first + i, however the set is cut
        let d = h * w * c;
        let [left, right] = [(0, cut), (cut, 4)].map(|(from, to)| {
            let shape = [to - from, h, w, c].into();
            down(&b, &dequantise(&b, &set.bytes()[from * d..to * d], shape, bits, key, first + from as u64))
        });
        prop_assert_eq!([left, right].concat(), x);
        let single = NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread");
        let x = single.download(&dequantise(&single, set.bytes(), [4, h, w, c].into(), bits, key, first)).expect("no device fault");
        prop_assert!(x.iter().all(|x| (0.0..=1.0).contains(x)));
    }

    /// Dividing the cube into its cells adds `bits` bits a number: the uniform density costs just those.
    #[test]
    fn bits(log_prob in -1e4..1e4_f64, d in 1_usize..5000, bits in 1_u32..=8) {
        let expected = -(log_prob - d as f64 * f64::from(1_u32 << bits).ln()) / (d as f64 * 2.0_f64.ln());
        prop_assert!((bits_per_dim(log_prob, d, bits) - expected).abs() <= 1e-12 * (1.0 + expected.abs()));
        prop_assert_eq!(bits_per_dim(0.0, d, bits), f64::from(bits));
        let config = resflow::config::ModelConfig::from(resflow::config::ImageConfig { bits, ..exact_images([3, 4, 2], &[1]) });
        let expected = f64::from(bits) - log_prob / (24.0 * 2.0_f64.ln());
        prop_assert!((config.bits_per_dim(log_prob).expect("images") - expected).abs() < 1e-9);
        prop_assert!((config.bits_per_dim_error(3.0).expect("images") - 3.0 / (24.0 * 2.0_f64.ln())).abs() < 1e-12);
    }
}

/// Output channel = c·4 + dy·2 + dx, spelled out.
#[test]
fn squeeze_order() {
    let b = cpu();
    // entry (y, x, c) is 100·y + 10·x + c
    let number = |y: usize, x: usize, c: usize| (100 * y + 10 * x + c) as f64;
    let (h, w, c) = (4, 6, 3);
    let x: Vec<f64> = (0..h * w * c).map(|e| number(e / (w * c), e / c % w, e % c)).collect();
    let y = value(&b, &*Bijection::<Cpu>::prepare(&Squeeze::new(), &b), &b.upload(&x, [1, h, w, c].into()));
    assert_eq!(b.shape(&y)[..], [1, 2, 3, 12]);
    for (e, found) in down(&b, &y).into_iter().enumerate() {
        let (i, j, channel) = (e / 36, e / 12 % 3, e % 12);
        let (from, dy, dx) = (channel / 4, channel / 2 % 2, channel % 2);
        assert_eq!(found, number(2 * i + dy, 2 * j + dx, from), "({i}, {j}, {channel})");
    }
    assert_eq!(down(&b, &y)[..6], [0.0, 10.0, 100.0, 110.0, 1.0, 11.0]);
    // vectors are in (C, H, W) order
    let flat = value(&b, &*Bijection::<Cpu>::prepare(&Flatten::new([h, w, c]), &b), &b.upload(&x, [1, h, w, c].into()));
    for (e, found) in down(&b, &flat).into_iter().enumerate() {
        assert_eq!(found, number(e / w % h, e % w, e / (h * w)));
    }
}

/// A block takes wide images in runs of rows: the same numbers as row by row, forth, back and in training.
#[test]
fn tiles_do_not_change_a_row() {
    let (b, key, image) = (cpu(), Key::new(3), [16, 16, 1]);
    let net = {
        let config = resflow::config::ImageConfig {
            filters: 48,
            training: "truncated:terms=3".parse().expect("a text"),
            evaluation: "roulette:law=poisson,rate=1,exact=2,sharing=sample".parse().expect("a text"),
            ..exact_images(image, &[1])
        };
        random_flow(&b, &config, key, 0.05)
    };
    let link = &net.transforms()[2];
    let n = 5;
    let activations = 256 * (48 * 4 + 2);
    assert!(b.tile_rows(6 * activations * 8) < n, "the rows go through in one run: take a wider net");
    let x = normal(&b, key.named("x"), [n, 16, 16, 1]);
    let prepared = link.prepare(&b);
    let (gy, weights) = (normal(&b, key.named("gy"), [n, 16, 16, 1]), normal(&b, key.named("weights"), [n, 1]));
    for (estimator, tolerance) in [(net.config().training(), 1e-12), (net.config().evaluation(), 1e-12)] {
        let outcome = |from: usize, to: usize| {
            let draw = Draw { estimator, key };
            let part = |t: &Tensor| b.narrow(t, 0, from, to - from);
            let batch = Batch::new(part(&x)).starting_at(from as u64);
            let (y, log_det) = with_log_det(&b, &*prepared, &batch, draw, 2);
            let back = prepared
                .inverse(&b, &Batch::new(y.clone()), &Inversion::for_backend::<Cpu>())
                .expect("no device fault");
            let mut rows = vec![down(&b, &y), down(&b, &log_det.value), down(&b, &back.value)];
            assert_eq!(back.reports.len(), to - from);
            let mut all = vec![None; count_grads(&**link)];
            let forward = train(&b, &*prepared, &batch, draw, Memory::Recompute);
            rows.push(down(&b, &forward.y));
            rows.push(down(&b, &forward.log_det));
            rows.push(down(&b, &pull_back(&b, &*prepared, forward.tape, part(&gy), &part(&weights), &mut all)));
            (rows, all.into_iter().map(|g| down(&b, &g.expect("filled"))).collect::<Vec<_>>())
        };
        let (together, sums) = outcome(0, n);
        let parts: Vec<_> = (0..n).map(|i| outcome(i, i + 1)).collect();
        let near = |a: &[f64], b: &[f64]| {
            let apart = norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
            assert!(a.len() == b.len() && apart <= tolerance * (1.0 + norm(a)), "{apart:e}");
        };
        for (kind, all) in together.iter().enumerate() {
            near(all, &parts.iter().flat_map(|(rows, _)| rows[kind].clone()).collect::<Vec<_>>());
        }
        for (slot, sum) in sums.iter().enumerate() {
            let mut total = vec![0.0; sum.len()];
            for (_, own) in &parts {
                total.iter_mut().zip(&own[slot]).for_each(|(t, g)| *t += g);
            }
            near(sum, &total);
        }
    }
    // exact log dets of a wide block, too
    let small = block(&b, [2, 3, 2], 3, Nonlinearity::Elu, false, key);
    let x = normal(&b, key, [2, 2, 3, 2]);
    let value = with_log_det(&b, &*small.prepare(&b), &Batch::new(x.clone()), bijections::draw(key), 1).1.value;
    check_gradients(&b, &small, &x, key, &down(&b, &value));
}

/// The mean of what is modelled is that of the bytes' levels and a half: 60,000 draws, 5 standard errors.
#[test]
fn the_noise_has_mean_one_half() {
    let b = cpu();
    for bits in [8, 5, 1] {
        let (set, levels) = (images(60, [10, 10, 10], Key::new(1)), f64::from(1_u32 << bits));
        let x = down(&b, &dequantise(&b, set.bytes(), [60, 10, 10, 10].into(), bits, Key::new(2), 0));
        let noise: Vec<f64> =
            x.iter().zip(set.bytes()).map(|(x, &byte)| x * levels - f64::from(byte >> (8 - bits))).collect();
        let (mean, error) = mean_and_error(&noise);
        assert!((mean - 0.5).abs() < 5.0 * error && (error * 60_000_f64.sqrt() - 12_f64.powf(-0.5)).abs() < 2e-3);
    }
}

/// Margins outside (0, ½) are refused.
#[test]
fn logit_margins() {
    assert!([0.0, -1.0, 0.5, 1.0, f64::NAN, f64::INFINITY].iter().all(|&a| Logit::new(a).is_err()));
    assert!([1e-300, 1e-6, 0.49].iter().all(|&a| Logit::new(a).is_ok()));
    let mut trained = 0;
    let squeeze: Box<dyn Bijection<Cpu>> = Box::new(Squeeze::new());
    squeeze.visit("", &mut |_, _, role: Role| trained += usize::from(role.is_trained()));
    assert!(trained == 0 && squeeze.lipschitz_bound().is_none() && squeeze.describe() == "squeeze");
}
