//! Weighted samples: weight 2 is the sample twice, weight 0 none, and all weights 1 are no weights, end to end.

use proptest::prelude::*;
use resflow::Flow;
use resflow::backend::{Backend as _, Key};
use resflow::batch::{Batch, SampleWeights};
use resflow::bijection::{Bijection as _, Memory};
use resflow::config::FlowConfig;
use resflow::data::{DataError, Dataset, Standardiser, Table, ToyDensity};
use resflow::flow::Objective;
use resflow::module::Module as _;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::transform::ActNorm;

use crate::common::{cases, cpu, down};

/// Rows with a weight of 1, 2 or 3 each, and the rows written so often.
fn doubled(seed: u64, n: usize) -> (Table, Vec<f64>, Table) {
    let rows = ToyDensity::Moons.sample(Key::new(seed), n);
    let weights: Vec<f64> = (0..n).map(|i| (1 + i % 3) as f64).collect();
    let numbers: Vec<usize> = (0..n).flat_map(|i| std::iter::repeat_n(i, 1 + i % 3)).collect();
    let often = rows.select(&numbers);
    (rows, weights, often)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-10 * (1.0 + a.abs().max(b.abs()))
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn the_standardisation_counts_weights(seed in 0_u64..1000, n in 3_usize..20, scale in -200_i32..200) {
        let (rows, weights, often) = doubled(seed, n);
        // only their ratios count, however large or small they are
        let scaled: Vec<_> = weights.iter().map(|w| w * 10_f64.powi(scale)).collect();
        let expected = Standardiser::fit(&often).expect("a fit");
        for weights in [&weights, &scaled] {
            let found = Standardiser::fit_weighted(&rows, Some(weights)).expect("a fit");
            for j in 0..2 {
                prop_assert!(close(found.mean()[j], expected.mean()[j]) && close(found.deviation()[j], expected.deviation()[j]));
            }
        }
    }

    #[test]
    fn actnorm_counts_weights(seed in 0_u64..1000, n in 3_usize..20) {
        let b = cpu();
        let (rows, weights, often) = doubled(seed, n);
        let batch = |t: &Table| Batch::new(b.upload(t.values(), [t.rows(), 2].into()));
        let parameters = |norm: &ActNorm<_>| {
            let mut all = Vec::new();
            norm.visit("", &mut |_, t, _| all.extend(down(&b, t)));
            all
        };
        let mut expected = ActNorm::new(&b, 2);
        expected.initialise(&b, &[batch(&often)], None).expect("a batch");
        // as a trainer gives them, with mean 1; in two shards
        let unit = n as f64 / weights.iter().sum::<f64>();
        let cut = n / 2;
        let shards = [batch(&rows).narrow(&b, 0, cut), batch(&rows).narrow(&b, cut, n - cut)];
        let column = |w: &[f64]| b.upload(&w.iter().map(|w| w * unit).collect::<Vec<_>>(), [w.len(), 1].into());
        let columns = [column(&weights[..cut]), column(&weights[cut..])];
        let mut found = ActNorm::new(&b, 2);
        found.initialise(&b, &shards, Some(&SampleWeights { shards: &columns, unit })).expect("a batch");
        for (a, b) in parameters(&found).into_iter().zip(parameters(&expected)) {
            prop_assert!(close(a, b), "{a} {b}");
        }
    }

    #[test]
    fn the_gradient_counts_weights(seed in 0_u64..1000, n in 3_usize..12) {
        let b = cpu();
        let (rows, weights, often) = doubled(seed, n);
        let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
        let flow = Flow::new(b.clone(), &config, Key::new(seed)).expect("a flow").prepare();
        let total: f64 = weights.iter().sum();
        let gradient = |t: &Table, weights: &[f64]| {
            let batch = Batch::new(b.upload(t.values(), [t.rows(), 2].into()));
            let weights: Vec<f64> = weights.iter().map(|w| w / total).collect();
            let weights = b.upload(&weights, [weights.len(), 1].into());
            let objective = Objective {
                batch: &batch, weights: &weights, key: Key::new(1), memory: Memory::Store, input_gradient: false, supervision: None,
            };
            let found = flow.gradient(&objective).expect("a gradient");
            [down(&b, &found.loss), down(&b, &found.flat)].concat()
        };
        let (found, expected) = (gradient(&rows, &weights), gradient(&often, &vec![1.0; often.rows()]));
        prop_assert!(found.into_iter().zip(expected).all(|(a, b)| close(a, b)));
    }

    #[test]
    fn the_mean_score_counts_weights(seed in 0_u64..1000, n in 3_usize..20) {
        let (rows, weights, often) = doubled(seed, n);
        let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
        let flow = Flow::new(cpu(), &config, Key::new(seed)).expect("a flow").prepare();
        let weighted = Dataset::from(rows.clone()).with_weights(weights.clone()).expect("weights");
        let found = flow.log_prob(&weighted, Key::new(0)).expect("a score");
        let expected = flow.log_prob(&often, Key::new(0)).expect("a score");
        prop_assert!(close(found.mean(), expected.mean()));
        // the error of n_eff = (Σw)²/Σw² samples with the weighted variance
        let (total, squares) = (weights.iter().sum::<f64>(), weights.iter().map(|w| w * w).sum::<f64>());
        let variance: f64 = weights.iter().zip(&found.values).map(|(w, v)| w * (v - found.mean()).powi(2)).sum::<f64>() / total;
        prop_assert!(close(found.mean_standard_error(), (variance / (total * total / squares - 1.0)).sqrt()));
        // all alike are as without
        let alike = Dataset::from(rows.clone()).with_weights(vec![3.0; n]).expect("weights");
        let alike = flow.log_prob(&alike, Key::new(0)).expect("a score");
        let plain = flow.log_prob(&rows, Key::new(0)).expect("a score");
        prop_assert!(close(alike.mean(), plain.mean()) && close(alike.mean_standard_error(), plain.mean_standard_error()));
    }
}

/// Every step sees all samples, so a run with weights and one with the samples written so often are the same run.
fn trained(training: Dataset, validation: Dataset, batch: usize) -> (Vec<f64>, f64, f64) {
    let b = cpu();
    let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    let flow = Flow::new(b.clone(), &config, Key::new(0)).expect("a flow");
    let train = TrainConfig { batch, warmup: 0, ..TrainConfig::default() };
    let source = Source::Split { training, validation };
    let mut trainer = Trainer::new(flow, source, &train, Budget::Steps(5), Key::new(1)).expect("a trainer");
    let mut nll = f64::NAN;
    trainer.run(|step, _| nll = step.train_nll).expect("steps");
    let mut values = trainer.flow().standardiser().mean().to_vec();
    trainer.flow().visit(&mut |_, t, role| {
        if role.is_trained() {
            values.extend(down(&b, t));
        }
    });
    (values, nll, trainer.last_validation().expect("a validation").nll)
}

#[test]
fn a_run_counts_weights() {
    let (rows, weights, often) = doubled(3, 12);
    let weighted = Dataset::from(rows.clone()).with_weights(weights).expect("weights");
    let (found, nll, validated) = trained(weighted.clone(), weighted, rows.rows());
    let (expected, expected_nll, expected_validated) =
        trained(often.clone().into(), often.clone().into(), often.rows());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-7), "{found:?} {expected:?}");
    assert!((nll - expected_nll).abs() < 1e-7 && (validated - expected_validated).abs() < 1e-7, "{nll} {expected_nll}");
    // and not those without weights
    let (plain, ..) = trained(rows.clone().into(), rows.clone().into(), rows.rows());
    assert!(found.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3));
}

#[test]
fn a_sample_of_weight_zero_is_not_there() {
    let (rows, ..) = doubled(5, 12);
    let mut spoilt = rows.values().to_vec();
    spoilt.extend([1e9, -1e9]);
    let spoilt = Table::new(None, 2, spoilt).expect("a table");
    let weights: Vec<f64> = (0..13).map(|i| f64::from(u8::from(i < 12))).collect();
    let data = Dataset::from(spoilt.clone()).with_weights(weights.clone()).expect("weights");
    let found = Standardiser::fit_weighted(&spoilt, Some(&weights)).expect("a fit");
    assert_eq!(found, Standardiser::fit(&rows).expect("a fit"));
    let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    let flow = Flow::new(cpu(), &config, Key::new(0)).expect("a flow").prepare();
    let (with, without) = (flow.log_prob(&data, Key::new(0)), flow.log_prob(&rows, Key::new(0)));
    assert!(close(with.expect("a score").mean(), without.expect("a score").mean()));
}

#[test]
fn impossible_weights_are_refused() {
    let data = || Dataset::from(doubled(1, 3).0);
    assert!(matches!(
        data().with_weights(vec![1.0; 2]),
        Err(DataError::Belongings { what: "weights", found: 2, samples: 3 })
    ));
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let error = data().with_weights(vec![1.0, bad, 1.0]).expect_err("a weight that cannot be");
        assert!(matches!(error, DataError::Weight { sample: 1, .. }), "{error}");
    }
    assert!(matches!(data().with_weights(vec![0.0; 3]), Err(DataError::NoWeight)));
    // where all weight would fall on one side of a split
    let few = Dataset::from(doubled(1, 3).0).with_weights(vec![1.0, 0.0, 0.0]).expect("weights");
    assert!(matches!(few.split(0.4, Key::new(0)), Err(DataError::NoWeight)));
}

#[test]
fn everything_goes_along_with_its_sample() {
    let (rows, weights, _) = doubled(2, 6);
    let context = Table::new(None, 1, (0..6).map(f64::from).collect()).expect("a table");
    let labels: Vec<u8> = (0..6).collect();
    let data = Dataset::from(rows.clone()).with_weights(weights.clone()).expect("weights");
    let data = data.with_labels(labels).expect("labels").with_context(context).expect("contexts");
    let (training, validation) = data.split(0.5, Key::new(4)).expect("a split");
    for side in [&training, &validation] {
        let samples = side.samples();
        for i in 0..side.len() {
            let number = usize::from(samples.labels().expect("labels")[i]);
            assert_eq!(samples.weights().expect("weights")[i], weights[number]);
            assert_eq!(samples.context().expect("contexts").row(i), [number as f64]);
            assert_eq!(samples.table().expect("a table").row(i), rows.row(number));
        }
    }
    assert_eq!(training.len() + validation.len(), 6);
}
