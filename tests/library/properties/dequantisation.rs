//! Variational dequantisation: it begins as the uniform one; its gradient is that by differences; the bound is below log P of the bytes,
//! which importance weights approach; what it refuses. Keys are fixed; the statistical tests say how likely chance would fail them.

use crate::common::*;
use crate::properties::families;
use proptest::prelude::*;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::{Batch, Quantised};
use resflow::bijection::Memory;
use resflow::config::{Dequantisation, DequantisationConfig, Family, ImageConfig, ModelConfig};
use resflow::data::image::ImageSet;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, Objective};
use resflow::train::{Budget, Source, TrainConfig, Trainer};

/// A variational dequantiser of a family, small.
pub(crate) fn variational(model: Family) -> DequantisationConfig {
    DequantisationConfig { kind: Dequantisation::Variational, model, blocks: 2, filters: 3, features: 3 }
}

/// The families of dequantisers.
pub(crate) const FAMILIES: [Family; 3] = [Family::RealNvp, Family::FlowPlusPlus, Family::Residual];

fn with(config: &ImageConfig, dequantisation: DequantisationConfig) -> ImageConfig {
    ImageConfig { dequantisation, ..config.clone() }
}

/// Every family over small images.
fn of_families() -> impl Iterator<Item = ImageConfig> {
    let takes = Family::ALL.into_iter().filter(|family| family.takes_images());
    takes.map(|family| families::small_images(family).images().cloned().expect("images"))
}

fn log_prob(flow: &Flow<Cpu>, set: &ImageSet, key: Key) -> Vec<f64> {
    let scores = flow.log_prob(set, key).expect("images that fit");
    assert!(scores.replicates == 1, "{}", scores.estimator);
    scores.values
}

/// A net of zeros at the end of each transform of q makes it the uniform density: the bound is what uniform noise gives.
#[test]
fn it_begins_as_the_uniform_one() {
    for config in of_families() {
        for model in FAMILIES {
            let exact = ImageConfig { evaluation: Estimator::Exact(Exact), ..config.clone() };
            let set = images(4, [config.height, config.width, config.channels], Key::new(1));
            let [uniform, fresh] = [DequantisationConfig::default(), variational(model)].map(|dequantisation| {
                let flow = Flow::new(cpu(), with(&exact, dequantisation), Key::new(2)).expect("a configuration");
                log_prob(&flow, &set, Key::new(3))
            });
            for (u, v) in uniform.iter().zip(&fresh) {
                assert!((u - v).abs() < 1e-9 * u.abs(), "{}, noise by {model}: {u} and {v}", config.model);
            }
        }
    }
}

/// A batch of images as a training step has it, with the noise that scores with this key have.
fn batch(b: &Cpu, set: &ImageSet, config: &ImageConfig, key: Key) -> Batch<Cpu> {
    let shape = [set.len(), config.height, config.width, config.channels].into();
    let levels: Vec<f64> = set.bytes().iter().map(|&byte| f64::from(byte >> (8 - config.bits))).collect();
    let noise = b.noise(key.named("dequantise"), Noise::Uniform, 0, shape);
    let images = Quantised { levels: b.upload(&levels, shape), noise };
    let x = images.place(b, &images.noise, config.bits);
    Batch { quantised: Some(images), ..Batch::new(x) }
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn gradients_are_those_by_differences(
        seed: u64, model in proptest::sample::select(&FAMILIES[..]), of in exact_families(), bits in 1_u32..=8, c in 1_usize..=2,
        recompute: bool,
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let config = exact_images([2, 2, c], &[1]).of(of);
        let config = ImageConfig { bits, fully_connected: 0, components: 2, initial_scale: 1.0, ..with(&config, variational(model)) };
        let config = ImageConfig { training: Estimator::Exact(Exact), evaluation: Estimator::Exact(Exact), ..config };
        let config = ImageConfig { activation: resflow::config::Nonlinearity::Softplus, ..config };
        let flow = random_flow(&b, &config, key, 0.2);
        prop_assert_eq!(flow.parameters(), flow.config().parameters());
        let set = images(3, [2, 2, c], key.named("images"));
        let weights = [0.5, -0.25, 1.0];
        let batch = batch(&b, &set, &config, key);
        let objective = Objective {
            batch: &batch,
            weights: &b.upload(&weights, [3, 1].into()),
            key: Key::new(0),
            memory: if recompute { Memory::Recompute } else { Memory::Store },
            input_gradient: false,
            supervision: None,
        };
        let gradient = flow.prepare().gradient(&objective).expect("finite");
        let constant: f64 = weights.iter().sum::<f64>() * 0.5 * config.dimension() as f64 * (2.0 * std::f64::consts::PI).ln();
        let values = log_prob(&flow, &set, key);
        let loss = b.download(&gradient.loss).expect("no device fault")[0];
        prop_assert!((loss + dot(&values, &weights) + constant).abs() < 1e-8 * (1.0 + loss.abs()), "{loss}");
        let flat = b.download(&gradient.flat).expect("no device fault");
        let mut at = 0;
        for (which, (name, count)) in families::trained(&flow).into_iter().enumerate() {
            let mut direction = vec![0.0; count];
            Noise::Normal.fill(key.named("direction").split(which as u64), 0, &mut direction);
            let value = |h: f64| -dot(&log_prob(&families::moved(&b, &flow, which, &direction, h), &set, key), &weights);
            let h = 1e-5;
            let expected = (value(h) - value(-h)) / (2.0 * h);
            let found = dot(&flat[at..at + count], &direction);
            at += count;
            prop_assert!((found - expected).abs() < 2e-5 * (1.0 + expected.abs()), "{name} of {of}, noise by {model}: {found} and {expected}");
        }
        prop_assert_eq!(at, flat.len());
    }
}

/// ln P of an image of few pixels: the integral of p over its cell by the midpoint rule.
fn log_probability(flow: &Flow<Cpu>, config: &ImageConfig, levels: &[u32]) -> f64 {
    let steps: usize = if levels.len() == 1 { 4000 } else { 150 };
    let cells = steps.pow(levels.len() as u32);
    let cell = 1.0 / f64::from(1_u32 << config.bits);
    let mut points = Vec::with_capacity(cells * levels.len());
    for i in 0..cells {
        for (j, &level) in levels.iter().enumerate() {
            let step = i / steps.pow(j as u32) % steps;
            points.push((f64::from(level) + (step as f64 + 0.5) / steps as f64) * cell);
        }
    }
    let values = flow.log_prob(&table(levels.len(), points), Key::new(0)).expect("rows that fit").values;
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mean = values.iter().map(|v| (v - most).exp()).sum::<f64>() / cells as f64;
    most + mean.ln() + levels.len() as f64 * cell.ln()
}

/// The mean of the bound is below ln P by summation, and the mean importance weight is P: to four standard errors each, of ten images
/// and both means a chance of 1.3e-3 to fail, for fixed keys none.
#[test]
fn the_bound_is_below_log_p_of_the_bytes() {
    for (image, levels, model) in [
        ([1, 1, 1], vec![vec![0], vec![1], vec![2], vec![3]], Family::RealNvp),
        ([1, 1, 1], vec![vec![1], vec![3]], Family::Residual),
        ([2, 1, 1], vec![vec![0, 3], vec![2, 1]], Family::RealNvp),
        ([2, 1, 1], vec![vec![1, 1], vec![3, 0]], Family::FlowPlusPlus),
    ] {
        let config = ImageConfig { bits: 2, components: 2, ..with(&exact_images(image, &[2]), variational(model)) };
        // weights of a q that is far off have no variance to speak of
        let flow = random_flow(&cpu(), &config, Key::new(5), if model == Family::FlowPlusPlus { 0.2 } else { 0.5 });
        let units = image.iter().product::<usize>() as f64 * (f64::from(1_u32 << config.bits)).ln();
        for levels in levels {
            let exact = log_probability(&flow, &config, &levels);
            let draws = 4000;
            let bytes: Vec<u8> = (0..draws).flat_map(|_| levels.iter().map(|&level| (level << 6) as u8)).collect();
            let set = ImageSet::new(image[0], image[1], 1, bytes, None).expect("images");
            let bounds: Vec<f64> = log_prob(&flow, &set, Key::new(6)).iter().map(|v| v - units).collect();
            let (mean, error) = mean_and_error(&bounds);
            assert!(
                mean <= exact + 4.0 * error,
                "{image:?}, {levels:?}, noise by {model}: {mean} ± {error}, ln P = {exact}"
            );
            let weights: Vec<f64> = bounds.iter().map(|b| (b - exact).exp()).collect();
            let (mean, error) = mean_and_error(&weights);
            assert!((mean - 1.0).abs() < 4.0 * error, "{image:?}, {levels:?}, noise by {model}: {mean} ± {error} of P");
        }
    }
}

/// More importance weights never make the bound lower in the mean: to four standard errors of the differences, by chance 6e-5.
#[test]
fn more_importance_weights_raise_the_bound() {
    let config = with(&exact_images([2, 2, 1], &[2]).of(Family::RealNvp), variational(Family::RealNvp));
    let config = ImageConfig { bits: 3, initial_scale: 1.0, ..config };
    let flow = random_flow(&cpu(), &config, Key::new(7), 0.5).prepare();
    let set = images(300, [2, 2, 1], Key::new(8));
    let of = |draws: usize| flow.importance_bound(&set, 0, draws, Key::new(9).split(draws as u64)).expect("exact");
    let (one, four, many) = (of(1), of(4), of(16));
    for (more, fewer) in [(&four, &one), (&many, &four)] {
        let (difference, error) = more.compare(fewer);
        assert!(difference > -4.0 * error, "{difference} ± {error}");
    }
    let (whole, error) = many.compare(&one);
    assert!(whole > 4.0 * error, "{whole} ± {error}");
    assert!(many.standard_error.iter().all(|e| e.is_finite()) && many.replicates == 16);
    // one draw is the bound itself, to the bit
    let again = flow.importance_bound(&set, 0, 1, Key::new(10)).expect("exact");
    assert_eq!(again.values, flow.log_prob(&set, Key::new(10)).expect("images that fit").values);
    // uniform noise has weights too
    let uniform =
        Flow::new(cpu(), with(&config, DequantisationConfig::default()), Key::new(7)).expect("valid").prepare();
    assert!(uniform.importance_bound(&set, 0, 3, Key::new(9)).is_ok());
}

#[test]
fn estimates_and_rows_have_no_importance_weights() {
    let set = images(3, [4, 4, 1], Key::new(1));
    for config in of_families() {
        let roulette = || "roulette:law=geometric,p=0.5,exact=2,sharing=sample".parse().expect("a text");
        for noise in [Family::RealNvp, Family::Residual] {
            let config = ImageConfig { evaluation: roulette(), ..with(&config, variational(noise)) };
            let estimated = config.model.contracts() || noise == Family::Residual;
            let flow = Flow::new(cpu(), config.clone(), Key::new(2)).expect("a configuration").prepare();
            let found = flow.importance_bound(&set, 0, 2, Key::new(3));
            assert_eq!(found.is_err(), estimated, "{}, noise by {noise}", config.model);
            if let Err(error) = found {
                assert!(error.to_string().contains("`exact` as the estimator"), "{error}");
            }
            let none = flow.importance_bound(&set, 0, 0, Key::new(3)).expect_err("no draws").to_string();
            assert!(none.contains("at least 1 draw"), "{none}");
            let rows = flow.importance_bound(&uniform_rows(2, 16, Key::new(1)), 0, 2, Key::new(3));
            assert!(rows.expect_err("no bytes").to_string().contains("rows of numbers"));
        }
    }
}

#[test]
fn settings_that_are_refused() {
    let refused = |dequantisation: DequantisationConfig| {
        let config = ImageConfig { dequantisation, ..ImageConfig::default() };
        config.check().expect_err("refused").to_string()
    };
    for model in Family::ALL.into_iter().filter(|model| !FAMILIES.contains(model)) {
        assert!(refused(variational(model)).contains("realnvp, flowpp or residual"), "{model}");
    }
    let of = || variational(Family::RealNvp);
    assert!(refused(DequantisationConfig { blocks: 0, ..of() }).contains("dequantisation blocks"));
    assert!(refused(DequantisationConfig { filters: 1 << 20, ..of() }).contains("dequantisation filters"));
    assert!(refused(DequantisationConfig { features: 0, ..of() }).contains("dequantisation features"));
    let huge = DequantisationConfig { blocks: 10_000, filters: 1 << 16, features: 1 << 16, ..of() };
    assert!(refused(huge).contains("parameters"));
    let text = |text: &str| toml::from_str::<ImageConfig>(text).map_err(|e| e.to_string());
    assert!(text("dequantisation = { kind = \"gaussian\" }").expect_err("refused").contains("uniform"));
    assert!(text("dequantisation = { kind = \"variational\", block = 3 }").expect_err("refused").contains("block"));
    let found = text("dequantisation = { kind = \"variational\", model = \"residual\" }").expect("settings");
    assert!(found.dequantisation.is_variational() && found.dequantisation.model == Family::Residual);
    // what was there before says nothing of it
    assert!(!toml::to_string(&ImageConfig::default()).expect("serialises").contains("dequantisation"));
}

/// A flow whose noise is learned ends below one with uniform noise of images whose levels tell where in a cell they would be.
#[test]
fn a_trained_dequantiser_improves_the_bound() {
    let bytes: Vec<u8> = (0..256_usize * 4).map(|e| ((e * 7919 / 4 % 4) << 6) as u8).collect();
    let set = ImageSet::new(2, 2, 1, bytes, None).expect("images");
    let [uniform, variational] =
        [DequantisationConfig::default(), variational(Family::RealNvp)].map(|dequantisation| {
            let config =
                ImageConfig { bits: 2, ..with(&exact_images([2, 2, 1], &[4]).of(Family::RealNvp), dequantisation) };
            let flow = Flow::new(cpu(), ModelConfig::from(config), Key::new(3)).expect("a configuration");
            let settings = TrainConfig { batch: 64, warmup: 5, ..TrainConfig::default() };
            let mut run = Trainer::new(flow, Source::from(set.clone()), &settings, Budget::Steps(400), Key::new(4))
                .expect("fits");
            run.run(|_, _| ()).expect("finite");
            run.best_nll().expect("validated")
        });
    assert!(variational < uniform - 0.1, "{variational} by learned noise, {uniform} by uniform noise");
}
