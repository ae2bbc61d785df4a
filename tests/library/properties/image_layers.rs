//! Layers on images: the adjoint identity and Taylor's theorem for convolutions, linear layers, activations and chains of
//! them, as for rows in `layers.rs`; σ against the SVD of the zero-padded convolution, at the size of the stored
//! vectors, at smaller ones and after resizing. Random cases, no statistics.

use crate::common::derivatives::*;
use crate::common::*;
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::config::Nonlinearity;
use resflow::layer::{Derivatives, Layer, LayerGrads, LipschitzConv, LipschitzLinear};
use resflow::lipschitz::{Coefficient, PowerIteration, SingularPair};
use resflow::module::{Module as _, Role};

const ROWS: usize = 3;

fn kernels() -> impl Strategy<Value = [usize; 2]> {
    let size = || proptest::sample::select(&[1_usize, 3, 5][..]);
    (size(), size()).prop_map(|(h, w)| [h, w])
}

/// The kernel as it is used, and σ as it is reported.
fn effective<B: Backend>(b: &B, layer: &LipschitzConv<B>) -> (Vec<f64>, f64) {
    let mut found = None;
    layer.spectra(b, "l", &mut |s| found = Some(s)).expect("no device fault");
    let spectrum = found.expect("one weight");
    let factor = spectrum.coefficient / spectrum.coefficient.max(spectrum.sigma);
    let raw = b.download(layer.kernel()).expect("no device fault");
    (raw.iter().map(|k| k.to_f64() * factor).collect(), spectrum.sigma)
}

/// What the layer does to unit images, without its bias: the matrix of the convolution that it computes with.
fn norm_in_use(b: &Cpu, layer: &dyn Layer<Cpu>, image: [usize; 3]) -> f64 {
    let i: usize = image.iter().product();
    let prepared = layer.prepare(b);
    let mut units = vec![0.0; i * i];
    units.iter_mut().step_by(i + 1).for_each(|u| *u = 1.0);
    let units = b.upload(&units, [i, image[0], image[1], image[2]].into());
    let (y, saved) = prepared.forward(b, &Batch::new(units.clone()), Derivatives::First);
    let o = b.shape(&y).row_elements();
    // the transpose has the same norm
    spectral_norm(i, o, &down(b, &prepared.jvp(b, &saved, &units).0))
}

proptest! {
    // the same cases in every run: the bounds on convergence hold but for close singular values, about once in a hundred runs
    #![proptest_config(ProptestConfig { rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..cases(60) })]

    #[test]
    fn convolutions(
        seed: u64, h in 1_usize..5, w in 1_usize..5, i in 1_usize..4, o in 1_usize..4, kernel in kernels(), kappa in 0.3..0.99,
        stretch in stretch(), iterations in proptest::option::of(0_usize..4), tangents in tangents(), smaller in (0_usize..4, 0_usize..4),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let layer = conv(&b, [h, w], kernel, [i, o], kappa, stretch, iterations, key);
        // on images of the size that σ was found on, or smaller ones
        let (h, w) = (h.saturating_sub(smaller.0).max(1), w.saturating_sub(smaller.1).max(1));
        let x = normal(&b, key.named("x"), [ROWS, h, w, i]);
        prop_assert_eq!(layer.output_shape(&[h, w, i]).expect("a size that it takes"), vec![h, w, o]);
        prop_assert_eq!(layer.multiply_adds(&[h, w, i]), (h * w * i * o * kernel[0] * kernel[1]) as u64);
        if iterations.is_none() {
            adjoint(&b, &layer, &x, key)?;
        }
        derivatives(&b, &layer, &x, tangents, key)?;
    }

    /// A linear layer on images is a 1 × 1 convolution.
    #[test]
    fn linear_layers(
        seed: u64, h in 1_usize..4, w in 1_usize..4, i in 1_usize..5, o in 1_usize..5, stretch in stretch(), tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let layer = linear(&b, i, o, 0.9, stretch, None, key);
        let x = normal(&b, key.named("x"), [ROWS, h, w, i]);
        prop_assert_eq!(layer.output_shape(&[h, w, i]).expect("any image"), vec![h, w, o]);
        prop_assert_eq!(layer.multiply_adds(&[h, w, i]), (h * w * i * o) as u64);
        adjoint(&b, &layer, &x, key)?;
        derivatives(&b, &layer, &x, tangents, key)?;
        // the same vectors in one pixel of an image
        let first = |x: &Tensor, c: usize| {
            let values = down(&b, x).into_iter().chain(std::iter::repeat_n(0.0, (h * w - 1) * c)).collect::<Vec<_>>();
            b.upload(&values, [1, h, w, c].into())
        };
        let mut bias = b.full(0.0, [o].into());
        layer.visit("", &mut |_, t, role| if role == Role::Parameter { bias = t.clone() });
        let own = layer.pair().expect("constrained");
        let pair = SingularPair::new(&b, first(&own.u, o), first(&own.v, i));
        let kernel = b.reshape(layer.weight(), [o, 1, 1, i].into());
        let conv = LipschitzConv::from_parts(&b, kernel, bias, pair, layer.coefficient().expect("constrained")).expect("shapes that fit");
        let outcome = |layer: &dyn Layer<Cpu>| {
            let prepared = layer.prepare(&b);
            let (y, saved) = prepared.forward(&b, &Batch::new(x.clone()), Derivatives::Second);
            let (dx, gy) = (normal(&b, key.named("dx"), b.shape(&x)), normal(&b, key.named("gy"), b.shape(&y)));
            let (dy, kept) = prepared.jvp(&b, &saved, &dx);
            let mut grads = vec![None; 2];
            let (gx, gdx) = prepared.tangent_vjp(&b, &saved, &[&kept], gy.clone(), vec![gy.clone()], LayerGrads { trained: &mut grads, context: &mut None });
            prepared.finish_gradients(&b, &mut grads);
            let parts = [y, dy, prepared.vjp(&b, &saved, gy), gx, gdx[0].clone(), grads[0].clone().expect("filled"), grads[1].clone().expect("filled")];
            parts.iter().flat_map(|t| down(&b, t)).collect::<Vec<_>>()
        };
        let (a, c) = (outcome(&layer), outcome(&conv));
        let apart = norm(&a.iter().zip(&c).map(|(a, c)| a - c).collect::<Vec<_>>());
        prop_assert!(apart <= 1e-12 * (1.0 + norm(&a)), "{apart:e}");
    }

    #[test]
    fn activations(
        seed: u64, h in 1_usize..4, w in 1_usize..4, c in 1_usize..4, which in proptest::sample::select(&Nonlinearity::ALL[..]),
        tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let layer = activation(&b, which, key);
        let x = away_from_kinks(&b, &normal(&b, key.named("x"), [ROWS, h, w, c]));
        prop_assert_eq!(layer.output_shape(&[h, w, c]).expect("any image"), vec![h, w, c * which.widening()]);
        adjoint(&b, &*layer, &x, key)?;
        derivatives(&b, &*layer, &x, tangents, key)?;
    }

    #[test]
    fn chains(
        seed: u64, h in 1_usize..4, w in 1_usize..4, c in 1_usize..4, width in 1_usize..4,
        which in proptest::sample::select(&SMOOTH[..]), leading: bool, tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let net = image_net(&b, [h, w, c], width, which, leading, key);
        let x = normal(&b, key.named("x"), [ROWS, h, w, c]);
        adjoint(&b, &net, &x, key)?;
        derivatives(&b, &net, &x, tangents, key)?;
        let inside = width * which.widening();
        let parts = [usize::from(leading) * c * which.widening(), width, inside, width, inside, c];
        prop_assert_eq!(net.activations(&[h, w, c]), h * w * parts.iter().sum::<usize>());
    }

    /// Converged, σ is the norm of the padded map, and what the layer computes with is within κ; so are smaller images.
    #[test]
    fn sigma_is_that_of_the_padded_map(
        seed: u64, h in 1_usize..6, w in 1_usize..6, i in 1_usize..4, o in 1_usize..4, kernel in kernels(), stretch in stretch(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let mut layer = conv(&b, [h, w], kernel, [i, o], 0.9, stretch, None, key);
        let exact = conv_norm(&b, layer.kernel(), [h, w]);
        let (_, sigma) = effective(&b, &layer);
        prop_assert!(sigma <= exact * (1.0 + 1e-13) && sigma >= exact * (1.0 - 2e-3), "{sigma} of {exact}");
        let target = exact.min(0.9);
        prop_assert!((norm_in_use(&b, &layer, [h, w, i]) - target).abs() <= 2e-3 * target);
        for (h, w) in [(h.div_ceil(2), w), (h, 1), (1, 1)] {
            prop_assert!(conv_norm(&b, layer.kernel(), [h, w]) <= exact * (1.0 + 1e-12));
            prop_assert!(norm_in_use(&b, &layer, [h, w, i]) <= target * (1.0 + 2e-3));
            let before = effective(&b, &layer);
            prop_assert_eq!(layer.resize(&b, &[h, w, i]).expect("smaller"), vec![h, w, o]);
            prop_assert_eq!(effective(&b, &layer), before);
        }
        // larger along either axis: refused until it is resized
        for image in [[h + 1, w], [h, w + 2], [h + 2, w + 1]] {
            prop_assert!(layer.output_shape(&[image[0], image[1], i]).is_err());
            let mut larger = layer.clone();
            prop_assert_eq!(larger.resize(&b, &[image[0], image[1], i]).expect("any size"), vec![image[0], image[1], o]);
            let exact = conv_norm(&b, layer.kernel(), image);
            let (_, sigma) = effective(&b, &larger);
            prop_assert!(sigma <= exact * (1.0 + 1e-13) && sigma >= exact * (1.0 - 2e-3), "{sigma} of {exact}");
            prop_assert!(norm_in_use(&b, &larger, [image[0], image[1], i]) <= 0.9 * (1.0 + 2e-3));
        }
        for wrong in [&[h, w, i + 1][..], &[h * w * i], &[h, w], &[], &[0, w, i], &[1, h, w, i]] {
            prop_assert!(layer.output_shape(wrong).is_err() && layer.resize(&b, wrong).is_err());
        }
    }

    /// A fresh layer is near its norm, in both precisions, and converges to it; in single precision the stop at a relative change
    /// of 2·10⁻⁶ is a percent away where many singular values lie close together.
    #[test]
    fn initial_layers(seed: u64, h in 1_usize..7, w in 1_usize..7, i in 1_usize..4, o in 1_usize..4) {
        fn check<B: Backend>(b: &B, [h, w, i, o]: [usize; 4], seed: u64, [above, below]: [f64; 2]) -> Result<(), TestCaseError> {
            let kappa = Coefficient::new(0.9).expect("in range");
            let mut layer = LipschitzConv::initialise(b, [h, w], 3, i, o, kappa, Key::new(seed));
            let raw: Vec<f64> = b.download(layer.kernel()).expect("no device fault").iter().map(|k| k.to_f64()).collect();
            let bound = 1.0 / ((9 * i) as f64).sqrt();
            prop_assert!(raw.iter().all(|k| k.abs() <= bound * (1.0 + 1e-6)));
            let host = cpu();
            let exact = conv_norm(&host, &host.upload(&raw, [o, 3, 3, i].into()), [h, w]);
            let sigma = effective(b, &layer).1;
            prop_assert!(sigma <= exact * (1.0 + above) && sigma >= 0.9 * exact, "{sigma} of {exact}");
            layer.update_spectral_norms(b, PowerIteration::converge::<B>());
            let sigma = effective(b, &layer).1;
            prop_assert!(sigma <= exact * (1.0 + above) && sigma >= (1.0 - below) * exact, "{sigma} of {exact}");
            Ok(())
        }
        check(&cpu(), [h, w, i, o], seed, [1e-13, 2e-3])?;
        check(&NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread"), [h, w, i, o], seed, [1e-5, 2e-2])?;
    }
}

/// Tensors that do not belong together are refused, and a linear layer of another width.
#[test]
fn parts_that_do_not_fit() {
    let b = cpu();
    let kappa = Coefficient::new(0.9).expect("in range");
    let full = |shape: &[usize]| b.full(0.5, shape.into());
    let make = |kernel: &[usize], bias: &[usize], u: &[usize], v: &[usize]| {
        // unit vectors of any shape
        let unit = |shape: &[usize]| b.full((shape.iter().product::<usize>() as f64).powf(-0.5), shape.into());
        LipschitzConv::from_parts(&b, full(kernel), full(bias), SingularPair::new(&b, unit(u), unit(v)), kappa).is_ok()
    };
    let long = SingularPair::new(&b, full(&[1, 6, 7, 2]), full(&[1, 6, 7, 4]));
    assert!(LipschitzConv::from_parts(&b, full(&[2, 3, 5, 4]), full(&[2]), long, kappa).is_err(), "no unit vectors");
    assert!(make(&[2, 3, 5, 4], &[2], &[1, 6, 7, 2], &[1, 6, 7, 4]));
    assert!(!make(&[2, 4, 5, 4], &[2], &[1, 6, 7, 2], &[1, 6, 7, 4]));
    assert!(!make(&[2, 3, 2, 4], &[2], &[1, 6, 7, 2], &[1, 6, 7, 4]));
    assert!(!make(&[2, 3, 5, 4], &[4], &[1, 6, 7, 2], &[1, 6, 7, 4]));
    assert!(!make(&[2, 3, 5, 4], &[2], &[1, 6, 7, 4], &[1, 6, 7, 4]));
    assert!(!make(&[2, 3, 5, 4], &[2], &[1, 6, 7, 2], &[1, 6, 7, 2]));
    assert!(!make(&[2, 3, 5, 4], &[2], &[1, 7, 6, 2], &[1, 6, 7, 4]));
    assert!(!make(&[2, 3, 5, 4], &[2], &[2, 6, 7, 2], &[2, 6, 7, 4]));
    assert!(!make(&[2, 60], &[2], &[1, 6, 7, 2], &[1, 6, 7, 4]));
    let linear = LipschitzLinear::<Cpu>::zeros(&b, 3, 2, kappa);
    assert!(
        linear.output_shape(&[4, 4, 2]).is_err()
            && linear.output_shape(&[]).is_err()
            && linear.output_shape(&[5, 3]).is_ok()
    );
}
