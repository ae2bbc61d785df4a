//! Flow++'s gated nets: layers keep all that layers promise, attention knows of places and nothing of their order, whole flows have the
//! gradients by differences, and the published size takes a step.

use crate::common::*;
use crate::properties::families::{moved, trained};
use proptest::prelude::*;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::check::check_layer;
use resflow::config::{Dequantisation, Family, GatedConfig, ImageConfig, ModelConfig, Nonlinearity, Preset};
use resflow::data::image::ImageSet;
use resflow::flow::{Flow, Objective};
use resflow::invert::Inversion;
use resflow::layer::{Attention, Derivatives, GatedUnit, Layer, LayerNorm, LipschitzLinear, Sequence, Skip};
use resflow::module::Module as _;
use resflow::registry::Registry;
use resflow::train::{Budget, Source, TrainConfig, Trainer};

fn passes(layer: &dyn Layer<Cpu>, shape: &[usize], seed: u64) {
    let passed = check_layer(&cpu(), layer, shape, Key::new(seed), &Registry::new());
    passed.unwrap_or_else(|failed| panic!("{} at {shape:?}: {failed}", layer.describe()));
}

/// The layer with its trained tensors moved.
fn spread(b: &Cpu, mut layer: impl Layer<Cpu>, key: Key) -> impl Layer<Cpu> {
    let mut number = 0;
    layer.visit_mut("", &mut |_, tensor, role| {
        number += 1;
        if role.is_trained() {
            let noise = b.noise(key.split(number), Noise::Normal, 0, b.shape(tensor));
            *tensor = b.axpy(0.4, &noise, tensor.clone());
        }
    });
    layer
}

proptest! {
    #![proptest_config(cases(12))]

    /// Values, products with J and its transpose, second derivatives, gradients of parameters, cutting batches, saving.
    #[test]
    fn layers_keep_their_promises(seed: u64, h in 1_usize..=3, w in 1_usize..=2, heads in 1_usize..=2, dim in 1_usize..=3) {
        let (b, key) = (cpu(), Key::new(seed));
        let c = heads * dim;
        passes(&GatedUnit::new(c), &[h, w, 2 * c], seed);
        passes(&GatedUnit::new(c), &[2 * c], seed);
        // of one feature it would be constant
        passes(&spread(&b, LayerNorm::new(&b, c + 1), key), &[h, w, c + 1], seed);
        passes(&spread(&b, LayerNorm::new(&b, c + 2), key), &[c + 2], seed);
        let attention = || Attention::new(&b, [h, w, c], heads, Some(key)).expect("heads that divide");
        passes(&spread(&b, attention(), key), &[h, w, c], seed);
        let inner = LipschitzLinear::initialise(&b, c, 2 * c, None, key);
        let skip = Skip::new(Sequence::new(vec![Box::new(inner), Box::new(GatedUnit::new(c))]));
        passes(&spread(&b, skip, key), &[h, w, c], seed);
        let attending = Skip::new(Sequence::new(vec![Box::new(attention()), Box::new(GatedUnit::new(c))]));
        passes(&spread(&b, attending, key), &[h, w, c], seed);
    }

    /// Without embeddings of places, turned pixels give turned outputs.
    #[test]
    fn attention_knows_places_by_their_embeddings_alone(seed: u64, turned in Just(vec![2_u32, 0, 3, 1, 5, 4]).prop_shuffle()) {
        let (b, key) = (cpu(), Key::new(seed));
        let attention = Attention::new(&b, [3, 2, 4], 2, Some(key)).expect("heads that divide");
        let mut blind = attention.clone();
        blind.visit_mut("", &mut |name, t, _| if name == "places" { *t = b.full(0.0, b.shape(t)) });
        let x = normal(&b, key.named("x"), [1, 3, 2, 4]);
        let turn = |x: &Tensor, c: usize| {
            b.reshape(&b.take_rows(&b.reshape(x, [6, c].into()), &turned), [1, 3, 2, c].into())
        };
        let of = |attention: &Attention<Cpu>, x: &Tensor| {
            attention.prepare(&b).forward(&b, &Batch::new(x.clone()), Derivatives::None).0
        };
        let apart = |attention: &Attention<Cpu>| {
            let (a, c) = (of(attention, &turn(&x, 4)), turn(&of(attention, &x), 8));
            norm(&down(&b, &b.axpy(-1.0, &a, c)))
        };
        prop_assert!(apart(&blind) < 1e-12);
        prop_assert!(turned == [0, 1, 2, 3, 4, 5] || apart(&attention) > 1e-9);
    }

    #[test]
    fn flows_have_the_gradients_by_differences(seed: u64, heads in 0_usize..=2, smooth: bool, c in 1_usize..=2) {
        let (b, key) = (cpu(), Key::new(seed));
        let activation = if smooth { Nonlinearity::ClipSwish } else { Nonlinearity::Softplus };
        let gated = Some(GatedConfig { blocks: 1, heads, most_pixels: 8 });
        let config = ImageConfig { filters: 2, gated, components: 2, activation, ..exact_images([4, 2, c], &[1, 2]).of(Family::FlowPlusPlus) };
        let config = ImageConfig { filters: 4, blocks: vec![2, 2], initial_scale: 1.0, ..config };
        let flow = random_flow(&b, &config, key, 0.1);
        prop_assert_eq!(flow.parameters(), flow.config().parameters());
        let d = config.dimension();
        let rows = uniform_rows(2, d, key.named("x"));
        let weights = [0.75, -0.5];
        let log_p = |flow: &Flow<Cpu>, rows: &resflow::data::Table| flow.log_prob(rows, Key::new(0)).expect("rows that fit").values;
        let batch = Batch::new(b.upload(&as_images(rows.values(), [4, 2, c]), [2, 4, 2, c].into()));
        let objective = Objective {
            batch: &batch,
            weights: &b.upload(&weights, [2, 1].into()),
            key,
            memory: Memory::Store,
            input_gradient: false,
            supervision: None,
        };
        let flat = down(&b, &flow.prepare().gradient(&objective).expect("finite").flat);
        let mut at = 0;
        for (which, (name, count)) in trained(&flow).into_iter().enumerate() {
            let mut direction = vec![0.0; count];
            Noise::Normal.fill(key.named("direction").split(which as u64), 0, &mut direction);
            let value = |h: f64| -dot(&log_p(&moved(&b, &flow, which, &direction, h), &rows), &weights);
            let by = |h: f64| (value(h) - value(-h)) / (2.0 * h);
            let (expected, wide) = (by(1e-5), by(3e-5));
            // layer norms of features that are nearly alike are steep: two steps tell
            prop_assume!((expected - wide).abs() < 1e-6 * (1.0 + expected.abs()));
            let found = dot(&flat[at..at + count], &direction);
            at += count;
            prop_assert!((found - expected).abs() < 2e-5 * (1.0 + expected.abs()), "{name}: {found} and {expected}");
        }
        prop_assert_eq!(at, flat.len());
        let prepared = flow.prepare();
        let encoded = prepared.encode(&rows, key).expect("rows that fit");
        let back = prepared.decode(&encoded.latents, &Inversion::for_backend::<Cpu>()).expect("rows that fit");
        let apart = apart(back.samples.values(), rows.values());
        prop_assert!(apart < 1e-9, "{apart:e}");
    }
}

fn colourful(n: usize, side: usize) -> ImageSet {
    let bytes = (0..n * side * side * 3).map(|e| (e * 7919 % 251) as u8).collect();
    ImageSet::new(side, side, 3, bytes, None).expect("images")
}

/// The published Flow++ of CIFAR-10 with its dequantiser in all its sizes, of which only the picture is smaller, 8 × 8: it starts, takes a step,
/// and validates. That of 32 × 32 has the published order of parameters.
#[test]
fn the_published_size_starts_and_steps() {
    let published = Preset::Cifar10.flow().of(Family::FlowPlusPlus);
    published.check().expect("valid");
    assert_eq!((published.filters, published.components, &published.blocks[..]), (96, 32, &[4, 5][..]));
    assert_eq!(published.gated, Some(GatedConfig { blocks: 10, heads: 4, most_pixels: 1024 }));
    assert_eq!(published.dequantisation.kind, Dequantisation::Variational);
    let parameters = published.parameters();
    assert!((15_000_000..50_000_000).contains(&parameters), "{parameters}");
    let config = ImageConfig { height: 8, width: 8, ..published };
    let b = resflow::NdArray::<f32>::new();
    let flow = Flow::new(b, ModelConfig::from(config), Key::new(1)).expect("a configuration");
    let settings = TrainConfig { batch: 2, validation_rows: 2, ..TrainConfig::of_preset(Preset::Cifar10) };
    let settings = settings.for_family(Family::FlowPlusPlus);
    let source = Source::from(colourful(8, 8));
    let mut run = Trainer::new(flow, source, &settings, Budget::Steps(1), Key::new(2)).expect("images that fit");
    let step = run.step().expect("finite");
    assert!(step.train_nll.is_finite() && step.gradient_norm > 0.0, "{step:?}");
    assert!(run.validate().expect("finite").nll.is_finite());
}

#[test]
fn what_is_refused() {
    let of = |gated: GatedConfig| ImageConfig {
        gated: Some(gated),
        ..ImageConfig { filters: 6, ..ImageConfig::default() }.of(Family::FlowPlusPlus)
    };
    let refused = |config: ImageConfig| config.check().expect_err("refused").to_string();
    assert!(of(GatedConfig { blocks: 1, heads: 3, most_pixels: 16 }).check().is_ok());
    assert!(refused(of(GatedConfig { blocks: 0, heads: 3, most_pixels: 1 })).contains("gated blocks"));
    assert!(refused(of(GatedConfig { blocks: 1, heads: 3, most_pixels: 0 })).contains("gated most_pixels"));
    for model in Family::ALL.into_iter().filter(|model| model.takes_images() && *model != Family::FlowPlusPlus) {
        let config =
            ImageConfig { gated: Some(GatedConfig::default()), filters: 4, ..ImageConfig::default().of(model) };
        assert!(refused(ImageConfig { filters: 4, ..config }).contains("`gated` nets are those of flowpp"), "{model}");
    }
    assert!(Attention::new(&cpu(), [2, 2, 4], 3, None).is_err() && Attention::new(&cpu(), [2, 2, 4], 0, None).is_err());
    let attention = Attention::new(&cpu(), [2, 2, 4], 2, None).expect("heads that divide");
    assert!(attention.output_shape(&[2, 4, 4]).is_err() && LayerNorm::new(&cpu(), 3).output_shape(&[2, 2, 4]).is_err());
    assert!(Layer::<Cpu>::output_shape(&GatedUnit::new(3), &[2, 2, 5]).is_err());
    // attention is tied to its places
    let config = of(GatedConfig { blocks: 1, heads: 3, most_pixels: 1024 });
    let flow =
        Flow::new(cpu(), ImageConfig { height: 4, width: 4, blocks: vec![1], ..config }, Key::new(0)).expect("valid");
    assert!(flow.resized(8, 8).expect_err("tied").to_string().contains("places"));
}
