//! Hybrid models: the classifier against plain loops, the gradient of the whole loss by differences, the likelihood that a
//! classifier leaves alone, training, files, and what is refused. No statistics: seeds are fixed.

use crate::common::bijections::slope;
use crate::common::cut::Cut;
use crate::common::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::checkpoint::{Archive, Values};
use resflow::config::{Family, ImageConfig, ModelConfig};
use resflow::data::image::ImageSet;
use resflow::flow::{Flow, Gradient, Objective, Supervision};
use resflow::train::{Budget, Source, TrainConfig, Trainer};

const CLASSES: usize = 3;

/// Every place that a head can look at: after a squeeze, at what leaves there, at the end as images and as vectors.
fn configurations() -> Vec<ImageConfig> {
    let base = ImageConfig { classes: CLASSES, head_width: 4, filters: 3, ..exact_images([4, 4, 2], &[1, 1]) };
    vec![
        base.clone(),
        ImageConfig { factor_out: true, ..base.clone() },
        ImageConfig { squeeze_first: true, blocks: vec![1], logit: false, ..base.clone() },
        ImageConfig { fully_connected: 1, ..base.clone() },
        ImageConfig { factor_out: true, ..base.clone().of(Family::Glow) },
        ImageConfig { height: 8, width: 8, channels: 1, blocks: vec![1, 1, 1], ..base },
    ]
}

/// A model with random parameters everywhere.
fn model(config: &ImageConfig, key: Key) -> Flow<Cpu> {
    random_flow(&cpu(), config, key, 0.3)
}

fn labelled(n: usize, config: &ImageConfig, key: Key) -> ImageSet {
    let set = images(n, [config.height, config.width, config.channels], key);
    set.with_labels((0..n).map(|i| (i * 7 % CLASSES) as u8).collect()).expect("as many labels")
}

fn targets(n: usize) -> Tensor {
    let one = |e: usize| f64::from(u8::from(e % CLASSES == e / CLASSES * 7 % CLASSES));
    cpu().upload(&(0..n * CLASSES).map(one).collect::<Vec<_>>(), [n, CLASSES].into())
}

/// The loss and its gradient, with a weight for each row.
fn judged(flow: &Flow<Cpu>, x: &Tensor, weights: &Tensor, density_weight: f64, memory: Memory) -> Gradient<Cpu> {
    let targets = targets(flow.backend().shape(x).rows());
    supervised(flow, x, weights, &targets, density_weight, memory)
}

/// The same for any targets.
fn supervised<B: Backend<Tensor = Tensor>>(
    flow: &Flow<B>,
    x: &Tensor,
    weights: &Tensor,
    targets: &Tensor,
    density_weight: f64,
    memory: Memory,
) -> Gradient<B> {
    let objective = Objective {
        batch: &Batch::new(x.clone()),
        weights,
        key: Key::new(0),
        memory,
        input_gradient: true,
        supervision: Some(Supervision { targets, density_weight }),
    };
    flow.prepare().gradient(&objective).expect("no device fault")
}

fn batch(config: &ImageConfig, n: usize, key: Key) -> Tensor {
    let values = uniform_rows(n, config.dimension(), key);
    let image = [config.height, config.width, config.channels];
    let [h, w, c] = image;
    cpu().upload(&as_images(values.values(), image), [n, h, w, c].into())
}

#[test]
fn the_gradient_is_that_of_the_whole_loss() {
    let b = cpu();
    for (number, config) in configurations().into_iter().enumerate() {
        let key = Key::new(number as u64);
        let (flow, n, lambda) = (model(&config, key), 3, 0.37);
        let x = batch(&config, n, key.named("x"));
        let weights = b.upload(&[0.5, 0.2, 0.9], [n, 1].into());
        let found = judged(&flow, &x, &weights, lambda, Memory::Recompute);
        let kept = judged(&flow, &x, &weights, lambda, Memory::Store);
        assert_eq!(down(&b, &found.flat), down(&b, &kept.flat));
        let value = |flow: &Flow<Cpu>, x: &Tensor| {
            let found = judged(flow, x, &weights, lambda, Memory::Store);
            lambda * down(&b, &found.loss)[0] + down(&b, &found.classification.expect("judged"))[0]
        };
        let check = |gradient: f64, f: &dyn Fn(f64) -> f64, what: &str| {
            let expected = slope(f);
            assert!(
                (gradient - expected).abs() < 2e-7 * (1.0 + expected.abs()),
                "{number} {what}: {gradient} {expected}"
            );
        };
        let direction = normal(&b, key.named("direction"), b.shape(&x));
        let direction = b.affine(direction, 0.02, 0.0);
        let along = dot(&down(&b, found.input.as_ref().expect("asked for")), &down(&b, &direction));
        check(along, &|h| value(&flow, &b.axpy(h, &direction, x.clone())), "x");

        // each parameter by itself, those of the heads among them
        let flat = down(&b, &found.flat);
        assert_eq!(flat.len() as u64, flow.parameters());
        assert_eq!(flow.parameters(), ModelConfig::from(&config).parameters());
        let (mut at, mut tensors) = (0, Vec::new());
        flow.visit(&mut |name, t, role| {
            if role.is_trained() {
                tensors.push((name.to_owned(), at..at + b.shape(t).elements()));
                at += b.shape(t).elements();
            }
        });
        assert_eq!(
            tensors.iter().filter(|(name, _)| name.starts_with("classifier.")).count(),
            4 * config.blocks.len() + 2
        );
        for (name, range) in tensors {
            assert!(norm(&flat[range.clone()]) > 0.0, "{number}: {name} gets no gradient");
            let mut direction = vec![0.0; range.len()];
            Noise::Normal.fill(key.named(&name), 0, &mut direction);
            let moved = |h: f64| {
                let mut flow = flow.clone();
                flow.visit_mut(&mut |own, t, _| {
                    if own == name {
                        *t = b.axpy(h, &b.upload(&direction, b.shape(t)), t.clone());
                    }
                });
                value(&flow, &x)
            };
            check(dot(&flat[range], &direction), &moved, &name);
        }
    }
}

/// However rows are cut, into shards one after the other in a lane and into tiles of the heads, the sums are those of
/// single rows.
#[test]
fn gradients_of_rows_add_up() {
    let b = cpu();
    // wide heads, of which few rows fit a tile
    let wide = ImageConfig { head_width: 700, ..configurations().swap_remove(0) };
    for config in [wide, configurations().swap_remove(1)] {
        let (flow, n, key) = (model(&config, Key::new(20)), 60, Key::new(21));
        let (x, all) = (batch(&config, n, key), targets(n));
        let weights: Vec<f64> = (0..n).map(|i| 0.1 + (i % 7) as f64).collect();
        let everything =
            |found: [Option<&Tensor>; 3]| found.iter().flat_map(|t| down(&b, t.expect("judged"))).collect::<Vec<_>>();
        let (mut sum, mut inputs) = (Vec::new(), Vec::new());
        for (i, &w) in weights.iter().enumerate() {
            let [x, own] = [&x, &all].map(|t| b.narrow(t, 0, i, 1));
            let found = supervised(&flow, &x, &b.upload(&[w], [1, 1].into()), &own, 0.3, Memory::Recompute);
            let own = everything([Some(&found.flat), Some(&found.loss), found.classification.as_ref()]);
            sum = if sum.is_empty() { own } else { sum.iter().zip(&own).map(|(a, b)| a + b).collect() };
            inputs.extend(down(&b, found.input.as_ref().expect("asked for")));
        }
        let weights = b.upload(&weights, [n, 1].into());
        // one lane of three shards, and eight lanes
        for lanes in [1, 8] {
            let flow = flow.to_backend(Cut { device: b.clone(), rows: 24, lanes }).expect("no device fault");
            let found = supervised(&flow, &x, &weights, &all, 0.3, Memory::Recompute);
            let whole = everything([Some(&found.flat), Some(&found.loss), found.classification.as_ref()]);
            let difference: Vec<_> = whole.iter().zip(&sum).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) < 1e-11 * norm(&sum), "{:e}", norm(&difference) / norm(&sum));
            let input = down(&b, found.input.as_ref().expect("asked for"));
            let difference: Vec<_> = input.iter().zip(&inputs).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) < 1e-11 * norm(&inputs), "{:e}", norm(&difference));
        }
    }
}

/// What a classifier says, in plain loops over what its heads look at.
#[test]
fn probabilities_by_plain_loops() {
    let b = cpu();
    for (number, config) in configurations().into_iter().enumerate() {
        let key = Key::new(50 + number as u64);
        let (flow, n) = (model(&config, key), 4);
        let set = labelled(n, &config, key.named("images"));
        let said = flow.classify(&set, key).expect("images that fit");
        // the same dequantised images, through the links
        let mut x = resflow::transform::dequantise(
            &b,
            set.bytes(),
            [n, config.height, config.width, config.channels].into(),
            8,
            key.named("dequantise"),
            0,
        );
        let mut tensors = std::collections::HashMap::new();
        flow.visit(&mut |name, t, _| drop(tensors.insert(name.to_owned(), down(&b, t))));
        let places = config.heads();
        let mut features = vec![Vec::new(); n];
        let mut head = 0;
        for (l, link) in flow.transforms().iter().enumerate() {
            let y = crate::common::asking::value(&b, &*link.prepare(&b), &x);
            let (shape, leaving) = (b.shape(&y), link.factored_out());
            if places.get(head).is_some_and(|place| place.stage == l) {
                let seen = match (shape.rank(), leaving) {
                    (2, _) => as_images(&down(&b, &y), places[head].image),
                    (_, 0) => down(&b, &y),
                    (_, leaving) => down(&b, &b.narrow(&y, 3, shape[3] - leaving, leaving)),
                };
                for (row, image) in seen.chunks_exact(seen.len() / n).enumerate() {
                    features[row].extend(head_by_loops(&tensors, head, image, places[head].image));
                }
                head += 1;
            }
            x = b.narrow(&y, shape.rank() - 1, 0, shape.channels() - leaving);
        }
        assert_eq!(head, config.blocks.len());
        let (weight, bias) = (&tensors["classifier.linear.weight"], &tensors["classifier.linear.bias"]);
        for (row, features) in features.iter().enumerate() {
            let logit = |k: usize| dot(&weight[k * features.len()..(k + 1) * features.len()], features) + bias[k];
            let exponentials: Vec<f64> = (0..CLASSES).map(|k| logit(k).exp()).collect();
            for (k, e) in exponentials.iter().enumerate() {
                let expected = e / exponentials.iter().sum::<f64>();
                let found = said.probability(row, k);
                assert!((found - expected).abs() < 1e-12, "{number}: {found} {expected}");
            }
        }
        // and the loss of a step is the cross-entropy of the same probabilities
        let shape = [n, config.height, config.width, config.channels].into();
        let x = resflow::transform::dequantise(&b, set.bytes(), shape, 8, key.named("dequantise"), 0);
        let mean = b.full(1.0 / n as f64, [n, 1].into());
        let found = judged(&flow, &x, &mean, 1.0, Memory::Store).classification.expect("judged");
        let score = said.score(set.labels().expect("labelled")).expect("labels");
        let [cross_entropy, accuracy] = [0, 1].map(|i| down(&b, &found)[i]);
        assert!((cross_entropy - score.cross_entropy).abs() < 1e-12 && (accuracy - score.accuracy).abs() < 1e-12);
    }
}

/// The features of one image `[h, w, c]`.
fn head_by_loops(
    tensors: &std::collections::HashMap<String, Vec<f64>>,
    head: usize,
    image: &[f64],
    [h, w, c]: [usize; 3],
) -> Vec<f64> {
    let own = |name: &str| &tensors[&format!("classifier.heads.{head}.{name}")];
    let (kernel, bias) = (own("convolution.weight"), own("convolution.bias"));
    let (log_scale, shift) = (own("actnorm.log_scale"), own("actnorm.bias"));
    let feature = |o: usize| {
        let mut sum = 0.0;
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let mut value = bias[o];
            for (dy, dx) in (0..3).flat_map(|dy| (0..3).map(move |dx| (dy, dx))) {
                let (Some(y), Some(x)) = ((y + dy).checked_sub(1), (x + dx).checked_sub(1)) else { continue };
                for i in (0..c).filter(|_| y < h && x < w) {
                    value += kernel[((o * 3 + dy) * 3 + dx) * c + i] * image[(y * w + x) * c + i];
                }
            }
            sum += ((value + shift[o]) * log_scale[o].exp()).max(0.0);
        }
        sum / (h * w) as f64
    };
    (0..bias.len()).map(feature).collect()
}

/// A classifier that is sure, and wrong, costs a finite number of nats in single precision too.
#[test]
fn a_sure_mistake_is_finite() {
    let config = configurations().swap_remove(0);
    let mut flow = Flow::new(NdArray::<f32>::new(), config.clone(), Key::new(1)).expect("a flow");
    let backend = flow.backend().clone();
    flow.visit_mut(&mut |name, t, _| {
        if name == "classifier.linear.bias" {
            *t = backend.upload(&[-500.0, 0.0, 500.0], [3].into());
        }
    });
    let set = labelled(2, &config, Key::new(2));
    let score = flow.classify(&set, Key::new(3)).expect("images").score(&[0, 0]).expect("labels");
    assert!((score.cross_entropy - 1000.0).abs() < 10.0 && score.accuracy == 0.0, "{score:?}");
}

#[test]
fn a_classifier_leaves_the_likelihood_alone() {
    for config in configurations() {
        let hybrid = model(&config, Key::new(7));
        let mut plain = Flow::new(cpu(), ImageConfig { classes: 0, ..config.clone() }, Key::new(1)).expect("a flow");
        let mut tensors = std::collections::HashMap::new();
        hybrid.visit(&mut |name, t, _| drop(tensors.insert(name.to_owned(), t.clone())));
        plain.visit_mut(&mut |name, t, _| *t = tensors[name].clone());
        let set = labelled(3, &config, Key::new(8));
        let log_prob = |flow: &Flow<Cpu>| flow.log_prob(&set, Key::new(9)).expect("images that fit").values;
        assert_eq!(log_prob(&hybrid), log_prob(&plain));
        let error = plain.classify(&set, Key::new(9)).expect_err("no classifier");
        assert!(error.to_string().contains("no classifier"), "{error}");
        // without labels the gradient is that of log p, and none of the classifier's
        let x = batch(&config, 3, Key::new(10));
        let [of_hybrid, of_plain] = [&hybrid, &plain].map(|flow| flow.gradient(&x, None, Key::new(11)).expect("rows"));
        let (whole, part) = (down(&cpu(), &of_hybrid.flat), down(&cpu(), &of_plain.flat));
        assert_eq!(whole[..part.len()], part);
        assert!(whole.len() as u64 == hybrid.parameters() && whole[part.len()..].iter().all(|&g| g == 0.0));
    }
}

/// Images whose class is where they are bright.
fn corners(n: usize) -> ImageSet {
    let byte = |e: usize| {
        let (image, y, x) = (e / 16, e / 4 % 4, e % 4);
        let bright = match image % CLASSES {
            0 => y < 2,
            1 => x < 2,
            _ => y >= 2 && x >= 2,
        };
        (e * 37 % 61 + if bright { 150 } else { 20 }) as u8
    };
    let labels = (0..n).map(|i| (i % CLASSES) as u8).collect();
    ImageSet::new(4, 4, 1, (0..n * 16).map(byte).collect(), Some(labels)).expect("images")
}

fn small(family: Family) -> ImageConfig {
    ImageConfig { classes: CLASSES, head_width: 8, filters: 6, ..exact_images([4, 4, 1], &[1, 1]) }.of(family)
}

fn settings() -> TrainConfig {
    TrainConfig {
        batch: 30,
        warmup: 5,
        learning_rate: 2e-2,
        density_weight: 0.1,
        average: 0.9,
        ..TrainConfig::default()
    }
}

fn trainer(family: Family, steps: u64) -> Trainer<Cpu> {
    let flow = Flow::new(cpu(), small(family), Key::new(1)).expect("a configuration");
    let source = Source::from(corners(120));
    Trainer::new(flow, source, &settings(), Budget::Steps(steps), Key::new(2)).expect("labelled images")
}

#[test]
fn both_terms_are_learned() {
    for family in [Family::Residual, Family::Glow] {
        let mut run = trainer(family, 120);
        let first = run.step().expect("finite").classification.expect("a hybrid model");
        assert_eq!(first.count, 30);
        let begin = run.validate().expect("finite");
        run.run(|report, _| assert!(report.classification.is_some())).expect("finite");
        let score = run.best_classification().expect("validated");
        assert!(score.accuracy > 0.95 && score.cross_entropy < 0.2, "{family}: {score:?} after {first:?}");
        assert!(run.best_nll().expect("validated") < begin.nll - 2.0, "{family}");
        let model = run.model();
        let unseen = corners(300);
        let said = model.classify(&unseen, Key::new(3)).expect("images that fit");
        assert!(said.score(unseen.labels().expect("labelled")).expect("labels").accuracy > 0.95, "{family}");
        assert!(model.sample(5, Key::new(4)).expect("no device fault").residual < 1e-9);
    }
}

#[test]
fn the_best_model_is_that_of_the_whole_loss() {
    for weight in [0.1, 0.0] {
        let flow = Flow::new(cpu(), small(Family::Residual), Key::new(1)).expect("a configuration");
        let settings = TrainConfig { density_weight: weight, validate_every: 5, ..settings() };
        let source = Source::from(corners(120));
        let mut run = Trainer::new(flow, source, &settings, Budget::Steps(60), Key::new(2)).expect("labelled images");
        let (mut least, mut least_nll, mut apart) = (f64::INFINITY, f64::INFINITY, 0);
        run.run(|_, validation| {
            let Some(v) = validation else { return };
            let loss = weight * v.nll + v.classification.expect("a hybrid model").cross_entropy;
            assert_eq!(v.improved, loss < least);
            apart += u32::from(v.improved != (v.nll < least_nll));
            (least, least_nll) = (least.min(loss), least_nll.min(v.nll));
        })
        .expect("finite");
        let kept = weight * run.best_nll().expect("kept") + run.best_classification().expect("kept").cross_entropy;
        assert_eq!(kept, least);
        // without a weight on it the density goes its own way
        assert!(weight > 0.0 || apart > 0, "the likelihood alone would have chosen the same models");
    }
}

#[test]
fn a_run_goes_on_and_a_model_is_kept() {
    let bytes = |run: &Trainer<Cpu>| {
        let mut archive = run.to_archive().expect("stored");
        archive.document["run"]["elapsed"] = 0.into();
        archive.to_bytes().expect("stored")
    };
    let mut whole = trainer(Family::Residual, 12);
    whole.run(|_, _| ()).expect("finite");
    let mut first = trainer(Family::Residual, 12);
    for _ in 0..10 {
        first.step().expect("finite");
    }
    first.validate().expect("finite");
    let archive = Archive::from_bytes(&bytes(&first)).expect("a state");
    let mut second = Trainer::resume(cpu(), &archive, Source::from(corners(120))).expect("the same data");
    assert_eq!(second.best_classification(), first.best_classification());
    second.run(|_, _| ()).expect("finite");
    assert!(bytes(&whole) == bytes(&second));

    let model = whole.model();
    let archive =
        Archive::from_bytes(&model.to_archive().expect("stored").to_bytes().expect("stored")).expect("a file");
    let again = Flow::from_archive(NdArray::<f32>::new(), &archive).expect("a model");
    let set = corners(9);
    let [wanted, found] =
        [model.classify(&set, Key::new(5)).expect("images"), again.classify(&set, Key::new(5)).expect("images")];
    let error = apart(&wanted.log_probabilities, &found.log_probabilities);
    assert!(error < 1e-4, "{error}");
    // a file whose heads are not those of its configuration, or hold no numbers
    let mut broken = archive.clone();
    let (shape, _) = broken.tensors.get_mut("classifier.heads.1.convolution.weight").expect("a kernel");
    shape.swap(0, 3);
    let error = Flow::from_archive(cpu(), &broken).expect_err("another shape").to_string();
    assert!(error.contains("classifier.heads.1.convolution.weight"), "{error}");
    let mut broken = archive;
    let (_, values) = broken.tensors.get_mut("classifier.linear.bias").expect("a bias");
    *values = Values::F64(vec![0.0, f64::NAN, 0.0]);
    let error = Flow::from_archive(cpu(), &broken).expect_err("NaN").to_string();
    assert!(error.contains("classifier.linear.bias"), "{error}");
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let begin = |config: ImageConfig, source: Source| {
        let flow = Flow::new(cpu(), config, Key::new(1)).expect("a configuration");
        Trainer::new(flow, source, &settings(), Budget::Steps(1), Key::new(2)).map(|_| ()).map_err(|e| e.to_string())
    };
    let unlabelled = images(20, [4, 4, 1], Key::new(3));
    let error = begin(small(Family::Residual), Source::from(unlabelled)).expect_err("no labels");
    assert!(error.contains("3 classes, the data have no labels"), "{error}");
    let config = ImageConfig { classes: 2, ..small(Family::Residual) };
    let error = begin(config, Source::from(corners(20))).expect_err("a label 2");
    assert!(error.contains("a label is 2, the model has the classes 0 to 1"), "{error}");
    for classes in [1, 257, usize::MAX] {
        let config = ImageConfig { classes, ..small(Family::Residual) };
        let error = config.check().expect_err("no classifier").to_string();
        assert!(error.contains("`classes`"), "{error}");
    }
    assert!(ImageConfig { head_width: 0, ..small(Family::Residual) }.check().is_err());
    assert!(TrainConfig { density_weight: -1.0, ..settings() }.check().is_err());
    assert!(TrainConfig { density_weight: f64::NAN, ..settings() }.check().is_err());
    // the same images with other labels
    let run = trainer(Family::Residual, 3).to_archive().expect("stored");
    let corners = corners(120);
    let other = corners.labels().expect("labelled").iter().map(|l| (l + 1) % 3).collect();
    let other = Source::from(corners.with_labels(other).expect("as many labels"));
    let error = Trainer::resume(cpu(), &run, other).expect_err("other labels").to_string();
    assert!(error.contains("the run was on other data") && error.contains("labels"), "{error}");
    // images of another size than the flow was made for: heads go with them
    let flow = Flow::new(cpu(), small(Family::Residual), Key::new(1)).expect("a configuration");
    let wide = flow.resized(4, 8).expect("no fully connected end");
    let set = images(2, [4, 8, 1], Key::new(4));
    assert_eq!(wide.classify(&set, Key::new(5)).expect("images that fit").len(), 2);
    let error = flow.classify(&set, Key::new(5)).expect_err("another size").to_string();
    assert!(error.contains("4x8"), "{error}");
}
