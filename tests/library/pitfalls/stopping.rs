//! Validation that comes before overfitting does, weights that are replaced by better ones only, and rows that stand on
//! both sides of a split. Keys are fixed, so no test fails by chance.

use resflow::backend::{Key, Noise};
use resflow::data::{Dataset, Table};
use resflow::flow::Flow;
use resflow::train::{Budget, Improvement, Source, TrainConfig, Trainer, Validations};

use crate::common::*;

/// Forty rows of three columns: too few for the flow that learns them.
fn few() -> Table {
    let mut values = vec![0.0; 120];
    Noise::Normal.fill(Key::new(5), 0, &mut values);
    Table::new(None, 3, values).expect("a table")
}

fn trainer(settings: &TrainConfig, budget: Budget) -> Trainer<Cpu> {
    trainer_on(few(), settings, budget)
}

fn trainer_on(table: Table, settings: &TrainConfig, budget: Budget) -> Trainer<Cpu> {
    let flow = Flow::new(cpu(), exact_config(3, 2, &[16]), Key::new(1)).expect("valid");
    Trainer::new(flow, Source::from(table), settings, budget, Key::new(2)).expect("valid")
}

/// Rows from which there is something to learn.
fn skewed() -> Table {
    let mut values = vec![0.0_f64; 1800];
    Noise::Normal.fill(Key::new(6), 0, &mut values);
    Table::new(None, 3, values.iter().map(|x| x.exp()).collect()).expect("a table")
}

fn settings(improvement: Improvement) -> TrainConfig {
    TrainConfig {
        batch: 16,
        warmup: 3,
        validation_fraction: 0.3,
        validations: Validations::Early,
        improvement,
        ..TrainConfig::default()
    }
}

/// The steps that were validated, −log p at each, and whether it was the best.
fn validations(trainer: &mut Trainer<Cpu>) -> Vec<(u64, f64, bool)> {
    let mut seen = Vec::new();
    if trainer.validation_due() {
        let first = trainer.validate().expect("no device fault");
        seen.push((first.step, first.nll, first.improved));
    }
    trainer.run(|_, validation| seen.extend(validation.map(|v| (v.step, v.nll, v.improved)))).expect("a finite loss");
    seen
}

#[test]
fn early_validations_double_and_then_are_even() {
    let mut trainer = trainer(&settings(Improvement::Lower), Budget::Steps(2000));
    let steps: Vec<u64> = validations(&mut trainer).into_iter().map(|v| v.0).take(8).collect();
    assert_eq!(steps, [0, 10, 20, 40, 50, 100, 150, 200]);
    // as they were
    let even = TrainConfig { validations: Validations::Even, ..settings(Improvement::Lower) };
    let steps: Vec<u64> =
        validations(&mut self::trainer(&even, Budget::Steps(400))).into_iter().map(|v| v.0).take(3).collect();
    assert_eq!(steps, [10, 20, 30]);
}

#[test]
fn the_best_weights_are_those_before_overfitting() {
    let mut trainer = trainer(&settings(Improvement::Lower), Budget::Steps(600));
    let seen = validations(&mut trainer);
    let last = seen.last().expect("validations").1;
    let best = trainer.best_nll().expect("validations");
    assert!(last > best + 1.0, "the flow learns forty rows by heart: {seen:?}");
    assert_eq!(best, seen.iter().map(|v| v.1).fold(f64::INFINITY, f64::min));
    let again = trainer.model().log_prob(trainer.validation_samples(), Key::new(2).named("validation"));
    assert_eq!(-again.expect("rows that fit").mean(), best);
}

#[test]
fn weights_that_are_no_better_replace_nothing() {
    let (mut lower, mut significant) = (0, 0);
    for improvement in [Improvement::Lower, Improvement::Significant] {
        let mut trainer = trainer_on(skewed(), &settings(improvement), Budget::Steps(200));
        let key = Key::new(2).named("validation");
        trainer.validate().expect("no device fault");
        let mut best = trainer.model().log_prob(trainer.validation_samples(), key).expect("rows that fit");
        while !trainer.finished() {
            trainer.step().expect("a finite loss");
            if !trainer.validation_due() {
                continue;
            }
            let own = trainer.averaged().log_prob(trainer.validation_samples(), key).expect("rows that fit");
            let improved = trainer.validate().expect("no device fault").improved;
            let (difference, error) = own.compare(&best);
            // by hand
            let pairs: Vec<f64> = own.values.iter().zip(&best.values).map(|(a, b)| a - b).collect();
            let n = pairs.len() as f64;
            let mean = pairs.iter().sum::<f64>() / n;
            let spread = pairs.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
            assert!((difference - mean).abs() < 1e-12 && (error - (spread / n).sqrt()).abs() < 1e-12);
            let expected = if improvement == Improvement::Lower { mean > 0.0 } else { mean > (spread / n).sqrt() };
            assert_eq!(improved, expected, "{improvement:?}: {mean} ± {}", (spread / n).sqrt());
            if improved {
                best = own;
                *(if improvement == Improvement::Lower { &mut lower } else { &mut significant }) += 1;
            }
        }
    }
    assert!(significant > 0 && significant < lower, "{significant} and {lower}");
}

#[test]
fn a_resumed_run_compares_with_the_same_best() {
    let settings = settings(Improvement::Significant);
    let mut whole = trainer(&settings, Budget::Steps(60));
    whole.validate().expect("no device fault");
    let mut half = trainer(&settings, Budget::Steps(60));
    half.validate().expect("no device fault");
    while half.steps_done() < 25 {
        half.step().expect("a finite loss");
        if half.validation_due() {
            half.validate().expect("no device fault");
        }
    }
    let archive = half.to_archive().expect("no device fault");
    let mut resumed = Trainer::resume(cpu(), &archive, few()).expect("its own state");
    for trainer in [&mut whole, &mut resumed] {
        trainer.run(|_, _| ()).expect("a finite loss");
    }
    assert_eq!(whole.best_nll(), resumed.best_nll());
    assert_eq!(whole.last_validation(), resumed.last_validation());
}

#[test]
fn copies_of_a_row_stay_on_one_side() {
    let rows = few();
    let twice: Vec<usize> = (0..40).chain(0..40).chain([3, 3, 3]).collect();
    let data = Dataset::from(rows.select(&twice));
    for seed in 0..20 {
        let (training, validation) = data.split(0.2, Key::new(seed)).expect("a split");
        let table = |data: &Dataset| data.table().expect("rows").clone();
        let (training, validation) = (table(&training), table(&validation));
        assert_eq!(training.rows() + validation.rows(), 83);
        assert!((10..=17).contains(&validation.rows()), "{}", validation.rows());
        for i in 0..validation.rows() {
            assert!((0..training.rows()).all(|j| training.row(j) != validation.row(i)), "seed {seed}");
        }
    }
    // rows without copies are divided as ever
    let data = Dataset::from(rows.clone());
    let (_, validation) = data.split(0.2, Key::new(1)).expect("a split");
    assert_eq!(validation.table(), Some(&rows.split(0.2, Key::new(1)).expect("a split").1));
}
