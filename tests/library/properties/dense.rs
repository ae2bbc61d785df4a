//! Dense layers: adjoint and Taylor's theorem in x, tangents and every parameter, the raw K included; η₁² + η₂² = ℓ²; no pair
//! of samples is stretched beyond √(η₁² + η₂²L²); a net without dense layers is its last one; and what is not learned, or
//! held in the first steps, is left alone by the optimiser. Random cases, no statistics.

use crate::common::derivatives::*;
use crate::common::*;
use proptest::prelude::*;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::checkpoint::Archive;
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::ToyDensity;
use resflow::flow::Flow;
use resflow::layer::{DenseLayer, Derivatives, Layer, LipschitzConv};
use resflow::lipschitz::Coefficient;
use resflow::module::Role;
use resflow::stage::{Concatenation, LayerStage, Stage};
use resflow::train::{Budget, Source, TrainConfig, Trainer};

const ROWS: usize = 5;

/// Shares within reach, of which both or one are nearly zero too.
fn raw() -> impl Strategy<Value = [f64; 2]> {
    let one = || prop_oneof![4 => -3.0..3.0_f64, 1 => -60.0..60.0_f64];
    (one(), one()).prop_map(|(a, b)| [a, b])
}

fn dense(
    b: &Cpu,
    inputs: usize,
    affine: Box<dyn Layer<Cpu>>,
    which: Nonlinearity,
    bound: f64,
    raw: [f64; 2],
    key: Key,
) -> DenseLayer<Cpu> {
    let concatenation = Concatenation { bound, learned: true };
    let layer = DenseLayer::new(b, inputs, affine, activation(b, which, key.named("phi")), concatenation);
    layer.expect("a bound").with_raw(raw.map(|k| b.full(k, [1].into())))
}

fn distances(b: &Cpu, x: &Tensor, y: &Tensor) -> Vec<f64> {
    let difference = b.axpy(-1.0, y, x.clone());
    let width = b.shape(x).row_elements();
    down(b, &difference).chunks_exact(width).map(norm).collect()
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn derivatives_over_rows(
        seed: u64, c in 1_usize..6, o in 1_usize..5, which in proptest::sample::select(&SMOOTH[..]), kappa in 0.3..0.99,
        stretch in stretch(), raw in raw(), tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let raw = raw.map(|k| k.clamp(-3.0, 3.0));
        let affine = Box::new(linear(&b, c, o, kappa, stretch, None, key));
        let layer = dense(&b, c, affine, which, 0.9, raw, key);
        prop_assert_eq!(layer.output_shape(&[c]).expect("its width"), vec![c + o * which.widening()]);
        prop_assert!(layer.output_shape(&[c + 1]).is_err() && layer.output_shape(&[]).is_err());
        let x = normal(&b, key.named("x"), [ROWS, c]);
        adjoint(&b, &layer, &x, key)?;
        derivatives(&b, &layer, &x, tangents, key)?;
    }

    #[test]
    fn derivatives_over_images(
        seed: u64, h in 1_usize..4, w in 1_usize..4, c in 1_usize..3, which in proptest::sample::select(&SMOOTH[..]),
        raw in raw(), tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let raw = raw.map(|k| k.clamp(-3.0, 3.0));
        let affine = Box::new(conv(&b, [h, w], [3, 3], [c, 2], 0.8, 1.6, None, key));
        let layer = dense(&b, c, affine, which, 1.0, raw, key);
        let x = normal(&b, key.named("x"), [3, h, w, c]);
        adjoint(&b, &layer, &x, key)?;
        derivatives(&b, &layer, &x, tangents, key)?;
    }

    /// For any K; and pairs near and far, of weights that are at κ or below.
    #[test]
    fn shares_and_stretch(
        seed: u64, c in 1_usize..6, o in 1_usize..5, which in proptest::sample::select(&Nonlinearity::ALL[..]),
        kappa in 0.3..0.99, stretch in stretch(), raw in raw(), bound in 0.1..=1.0_f64, apart in -6.0..2.0_f64,
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let affine = Box::new(linear(&b, c, o, kappa, stretch, None, key));
        let layer = dense(&b, c, affine, which, bound, raw, key);
        let shares = layer.shares(&b).expect("no device fault");
        prop_assert!((shares[0].hypot(shares[1]) - bound).abs() < 1e-12 && shares.iter().all(|&s| s > 0.0));
        let reached = layer.reached_lipschitz(&b).expect("no device fault");
        let sigma = kappa * stretch.min(1.0);
        prop_assert!((reached - shares[0].hypot(shares[1] * sigma)).abs() < 1e-6, "{reached}");
        prop_assert!(reached <= layer.lipschitz_bound() && layer.lipschitz_bound() == bound);
        let x = normal(&b, key.named("x"), [64, c]);
        let y = b.axpy(10.0_f64.powf(apart), &normal(&b, key.named("y"), [64, c]), x.clone());
        let prepared = layer.prepare(&b);
        let at = |x: &Tensor| prepared.forward(&b, &Batch::new(x.clone()), Derivatives::None).0;
        for (far, near) in distances(&b, &at(&x), &at(&y)).into_iter().zip(distances(&b, &x, &y)) {
            prop_assert!(far <= reached * near * (1.0 + 1e-6) + 1e-12, "{far} of {near}, bound {reached}");
        }
    }
}

/// Lip(g) of a dense block is κ where nothing before its last layer expands, and no more than is reached.
#[test]
fn blocks_have_the_coefficient_of_their_last_layer() {
    let b = cpu();
    let config = FlowConfig { blocks: 1, hidden: vec![4, 6], coefficient: 0.97, ..FlowConfig::of(Family::Dense, 3) };
    let flow = random_flow(&b, &config, Key::new(1), 0.3);
    let net = flow.transforms()[1].residual().expect("a block");
    assert_eq!(net.lipschitz_bound(), 0.97);
    assert!(net.reached_lipschitz(&b).expect("no device fault") <= 0.97);
    let paper = FlowConfig { dense_bound: 0.98, ..config };
    let flow = Flow::new(b.clone(), &paper, Key::new(1)).expect("a configuration");
    let bound = flow.transforms()[1].lipschitz_bound().expect("of a block");
    assert!((bound - 0.98 * 0.98 * 0.97).abs() < 1e-12, "{bound}");
}

#[test]
fn no_dense_layer_is_the_last_layer() {
    let config = ImageConfig { kernels: vec![3], ..exact_images([4, 4, 1], &[1]).of(Family::Dense) };
    let config = ImageConfig { kernels: vec![3], ..config };
    let stages = ModelConfig::from(config).stages();
    let Some(Stage::ResidualBlock { net, .. }) = stages.iter().find(|s| matches!(s, Stage::ResidualBlock { .. }))
    else {
        panic!("a block")
    };
    let [LayerStage::Convolution { kernel: [3, 3], inputs: 1, outputs: 1, coefficient: Some(_) }] = net.layers[..]
    else {
        panic!("{net:?}")
    };
}

/// The sizes that are published: three layers of growth 172, and the parameters that the paper gives, 24.9 million.
#[test]
fn published_sizes() {
    let cifar = resflow::config::Preset::Cifar10.flow().of(Family::Dense);
    assert_eq!((cifar.filters, &cifar.kernels[..], &cifar.blocks[..]), (172, &[3, 3, 3, 1][..], &[16, 16, 16][..]));
    assert_eq!((cifar.fully_connected_width, cifar.fully_connected_growth), (64, 32));
    let parameters = ModelConfig::from(cifar).parameters() as f64;
    assert!((parameters / 24.9e6 - 1.0).abs() < 0.05, "{parameters}");
    let small = resflow::config::Preset::MnistSmall.flow();
    let [dense, residual] = [Family::Dense, Family::Residual].map(|family| ModelConfig::from(small.clone().of(family)));
    let ratio = dense.parameters() as f64 / residual.parameters() as f64;
    assert!((0.5..1.5).contains(&ratio), "{ratio}");
}

fn shares<B: Backend>(flow: &Flow<B>) -> Vec<B::Elem> {
    let mut all = Vec::new();
    flow.visit(&mut |name, t, role| {
        if role == Role::Concatenation || name.rsplit('.').next() == Some("skip") {
            all.extend(flow.backend().download(t).expect("no device fault"));
        }
    });
    all
}

fn small(learned_concatenation: bool) -> FlowConfig {
    FlowConfig { blocks: 2, hidden: vec![4, 4], learned_concatenation, ..FlowConfig::of(Family::Dense, 2) }
}

fn trainer(config: FlowConfig, settings: &TrainConfig) -> Trainer<Cpu> {
    let flow = Flow::new(cpu(), config, Key::new(3)).expect("a configuration");
    let source = Source::Density(ToyDensity::Moons);
    Trainer::new(flow, source, settings, Budget::Steps(20), Key::new(4)).expect("data that fit")
}

/// What is not learned has no place among the parameters; what is held stays as it is, also with momentum from before.
#[test]
fn frozen_shares_do_not_move() {
    let settings =
        TrainConfig { batch: 32, warmup: 0, validation_rows: 50, weight_decay: 0.1, ..TrainConfig::default() };
    let mut fixed = trainer(small(false), &settings);
    let before = shares(fixed.flow());
    assert!(before.len() >= 4 && before.iter().all(|&k| k == 1.0));
    for _ in 0..4 {
        fixed.step().expect("finite");
    }
    assert_eq!(shares(fixed.flow()), before);

    let held = TrainConfig { concatenation_after: 3, ..settings.clone() };
    let mut run = trainer(small(true), &held);
    let before = shares(run.flow());
    for step in 1..=5 {
        run.step().expect("finite");
        assert_eq!(shares(run.flow()) == before, step <= 3, "step {step}");
    }

    // three steps without, then held: Adam has momentum by then
    let mut run = trainer(small(true), &settings);
    for _ in 0..3 {
        run.step().expect("finite");
    }
    let moved = shares(run.flow());
    let mut archive =
        Archive::from_bytes(&run.to_archive().expect("stored").to_bytes().expect("stored")).expect("a state");
    archive.document["run"]["config"]["concatenation_after"] = 5.into();
    let mut run = Trainer::resume(cpu(), &archive, Source::Density(ToyDensity::Moons)).expect("the same data");
    for step in 4..=7 {
        run.step().expect("finite");
        assert_eq!(shares(run.flow()) == moved, step <= 5, "step {step}");
    }
}

/// ℓ out of its range is refused.
#[test]
fn bounds_are_checked() {
    let b = cpu();
    let kappa = Coefficient::new(0.9).expect("in range");
    for bound in [0.0, -0.1, 1.01, f64::NAN, f64::INFINITY] {
        let affine = Box::new(LipschitzConv::initialise(&b, [2, 2], 3, 1, 1, kappa, Key::new(1)));
        let concatenation = Concatenation { bound, learned: true };
        let activation = activation(&b, Nonlinearity::Elu, Key::new(2));
        assert!(DenseLayer::new(&b, 1, affine, activation, concatenation).is_err(), "{bound}");
    }
}
