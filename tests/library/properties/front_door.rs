//! The front door: fitting from whatever holds numbers, and what a model answers, in the data's own units.

use std::ops::ControlFlow;

use ndarray::{Array2, Axis};
use resflow::backend::Key;
use resflow::config::{FlowConfig, ModelConfig};
use resflow::data::{Dataset, Table, number_of};
use resflow::device::{Device, DeviceKind, DeviceOptions, Precision, Products};
use resflow::invert::Status;
use resflow::train::{Budget, TrainConfig};
use resflow::{Error, Fit, Flow, Model, NdArray};

use crate::common::largest;

/// A table of two columns of very different scales.
fn rows() -> Vec<[f64; 2]> {
    (0..60).map(|i| [(f64::from(i) * 0.7).sin() * 1e3 + 5e3, (f64::from(i) * 0.3).cos() * 1e-2]).collect()
}

/// A small model, whose training is that of toys: it begins at random, and no mixture is fitted.
fn quick<'a>() -> Fit<'a> {
    let model = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    Fit::new().model(model).train(TrainConfig::default()).steps(12).device(DeviceOptions::cpu(Precision::F64))
}

#[test]
fn all_forms_of_the_same_numbers_give_the_same_model() {
    let rows = rows();
    let array = Array2::from_shape_vec((60, 2), rows.concat()).expect("two numbers a row");
    let nested: Vec<Vec<f64>> = rows.iter().map(|r| r.to_vec()).collect();
    let table = Table::from_rows(&rows).expect("a table");
    let expected = quick().run(&rows).expect("a model").log_prob(&rows).expect("log p");
    let models = [
        quick().run(&array),
        quick().run(array.view()),
        // an array that is not stored row by row
        quick().run(array.t().as_standard_layout().t().view()),
        quick().run(&nested),
        quick().run(&table),
        quick().run(Dataset::from(table.clone())),
    ];
    for model in models {
        assert_eq!(model.expect("a model").log_prob(&array).expect("log p"), expected);
    }
}

#[test]
fn answers_belong_together() {
    let rows = rows();
    let model = quick().run(&rows).expect("a model");
    let (samples, log_p) = model.sample_with_log_prob(20).expect("samples");
    assert_eq!(samples, model.sample(20).expect("the same samples"));
    let again = model.log_prob(&samples).expect("log p");
    assert!(again.iter().zip(&log_p).all(|(a, b)| (a - b).abs() < 1e-9));
    let z = model.encode(&samples).expect("latents");
    let back = model.decode(&z).expect("samples");
    let scale = samples.std_axis(Axis(0), 0.0);
    for (a, b) in samples.rows().into_iter().zip(back.rows()) {
        assert!((0..2).all(|j| (a[j] - b[j]).abs() < 1e-9 * scale[j]), "{a} {b}");
    }
    // other keys give other samples
    assert_ne!(samples, model.with_key(Key::new(9)).sample(20).expect("samples"));
}

#[test]
fn the_gradient_is_that_of_log_p_in_the_data_units() {
    let rows = rows();
    let model = quick().run(&rows).expect("a model");
    let (_, gradient) = model.log_prob_and_gradient(&rows).expect("a gradient");
    for (j, step) in [1e-1, 1e-6].into_iter().enumerate() {
        let moved = |sign: f64| {
            let mut moved = rows.clone();
            for row in &mut moved {
                row[j] += sign * step;
            }
            model.log_prob(&moved).expect("log p")
        };
        let (up, down) = (moved(1.0), moved(-1.0));
        let largest = largest(gradient.column(j).iter().copied());
        for i in 0..rows.len() {
            let difference = (up[i] - down[i]) / (2.0 * step);
            assert!(
                (gradient[[i, j]] - difference).abs() < 1e-5 * largest,
                "{i} {j}: {} {difference}",
                gradient[[i, j]]
            );
        }
    }
}

#[test]
fn saved_and_loaded_it_is_the_same() {
    let rows = rows();
    let model = quick().run(&rows).expect("a model");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    model.save(&path).expect("a file");
    let again = Model::load(&path).expect("a model");
    assert_eq!(again.log_prob(&rows).expect("log p"), model.log_prob(&rows).expect("log p"));
    assert_eq!(again.sample(5).expect("samples"), model.sample(5).expect("samples"));
    let single = Model::load_on(&path, &DeviceOptions::cpu(Precision::F32)).expect("a model");
    let difference = &single.log_prob(&rows).expect("log p") - &model.log_prob(&rows).expect("log p");
    assert!(difference.iter().all(|d| d.abs() < 1e-3), "{difference}");
    assert!(matches!(model.save(""), Err(Error::Checkpoint(_))));
}

#[test]
fn a_callback_may_stop_the_run() {
    let rows = rows();
    let mut seen = 0;
    let stop = |progress: &resflow::model::Progress<'_>| {
        seen = progress.step.step;
        assert!(progress.fraction <= 1.0);
        if seen == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let model = quick().on_progress(stop).run(&rows).expect("a model");
    assert_eq!((seen, model.provenance().steps), (7, 7));
}

#[test]
fn own_validation_samples_are_used() {
    let rows = rows();
    let (training, validation) = rows.split_at(50);
    let fit = quick().validation(validation).expect("rows");
    let model = fit.run(training).expect("a model");
    let nll = model.provenance().validation_nll.expect("a validation");
    let own = -model.score(validation).expect("a score").mean();
    assert!((nll - own).abs() < 1e-9, "{nll} {own}");
}

#[test]
fn what_cannot_be_fitted_is_said() {
    let ragged = vec![vec![1.0, 2.0], vec![3.0]];
    let error = resflow::fit(&ragged).expect_err("ragged").to_string();
    assert!(error.contains("row 2 has 1 numbers, the first row has 2"), "{error}");
    let error = resflow::fit(&vec![[1.0, f64::NAN]; 3]).expect_err("NaN").to_string();
    assert!(error.contains("must be finite"), "{error}");
    let error = resflow::fit(&Vec::<[f64; 2]>::new()).expect_err("nothing").to_string();
    assert!(!error.is_empty(), "{error}");
    let gpu = DeviceOptions { kind: DeviceKind::Gpu, precision: Precision::F64, ..DeviceOptions::default() };
    assert!(Device::open(&gpu).expect_err("no double precision").to_string().contains("f32"));
    let products = DeviceOptions { products: Products::F16, ..DeviceOptions::default() };
    assert!(Device::open(&products).is_err());
    assert!(Device::open(&DeviceOptions::best()).is_ok());
}

#[test]
fn one_model_serves_many_threads() {
    let rows = rows();
    let model = quick().run(&rows).expect("a model");
    let expected = model.log_prob(&rows).expect("log p");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(model.clone().log_prob(&rows).expect("log p"), expected));
        }
    });
}

#[test]
fn a_sample_scored_by_its_number_has_one_score() {
    // d = 20: log dets are estimated
    let config = FlowConfig { blocks: 2, hidden: vec![32], ..FlowConfig::new(20) };
    let flow = Flow::new(NdArray::<f64>::new(), &config, Key::new(0)).expect("a flow").prepare();
    let table = Table::new(None, 20, (0..200).map(|i| (f64::from(i) * 0.37).sin()).collect()).expect("a table");
    let batch = flow.log_prob(&table, Key::new(1)).expect("log p");
    assert!(batch.standard_error.iter().all(|e| *e > 0.0), "an estimator that estimates nothing tests nothing");
    for i in 0..10 {
        let row = table.select(&[i]);
        let alone = flow.log_prob_from(&row, i as u64, Key::new(1)).expect("log p");
        assert!((alone.values[0] - batch.values[i]).abs() < 1e-10);
        let elsewhere = flow.log_prob_from(&row, 77, Key::new(1)).expect("log p");
        assert_ne!(alone.values[0], elsewhere.values[0]);
        let by_content = flow.log_prob_from(&row, number_of(row.row(0)), Key::new(1)).expect("log p");
        assert_eq!(
            by_content.values,
            flow.log_prob_from(&row, number_of(table.row(i)), Key::new(1)).expect("log p").values
        );
    }
}

#[test]
fn far_out_is_minus_infinity_with_a_status() {
    let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    let flow = Flow::new(NdArray::<f32>::new(), &config, Key::new(0)).expect("a flow").prepare();
    let table = Table::from_rows(&[[0.0, 0.5], [1e39, -1e39], [1.0, 1.0], [1e38, -1e38]]).expect("a table");
    let score = flow.log_prob(&table, Key::new(0)).expect("log p");
    assert_eq!((score.values[1], score.standard_error[1]), (f64::NEG_INFINITY, 0.0));
    assert_eq!(score.status, [Status::Converged, Status::NonFinite, Status::Converged, score.status[3]]);
    assert!(score.values[3] < -1e30 && !score.values[3].is_nan(), "{}", score.values[3]);
    let alone = flow.log_prob(&table.select(&[0, 2]), Key::new(0)).expect("log p");
    assert!((score.values[0] - alone.values[0]).abs() < 1e-5 && (score.values[2] - alone.values[1]).abs() < 1e-5);
    let none = flow.log_prob(&table.select(&[]), Key::new(0)).expect("no samples");
    assert!(none.mean().is_nan() && none.mean_standard_error().is_nan());
}

#[test]
fn the_budget_is_the_only_number_of_steps() {
    let validations = |budget, every| {
        let config = FlowConfig { blocks: 1, hidden: vec![4], ..FlowConfig::new(2) };
        let flow = Flow::new(NdArray::<f32>::new(), &config, Key::new(0)).expect("a flow");
        let train = TrainConfig { validate_every: every, validation_rows: 50, batch: 8, ..TrainConfig::default() };
        let source = resflow::data::ToyDensity::Moons;
        let mut trainer = resflow::train::Trainer::new(flow, source, &train, budget, Key::new(1)).expect("a trainer");
        let mut count = 0;
        trainer.run(|_, validation| count += usize::from(validation.is_some())).expect("steps");
        (count, trainer.config().steps)
    };
    assert_eq!(validations(Budget::Steps(2000), 0), (40, 2000));
    assert_eq!(validations(Budget::Steps(100), 0), (10, 100));
    assert_eq!(validations(Budget::Steps(100), 30), (4, 100));
    // forty are laid over a time too; on a machine that is busy a step may skip one
    let (count, _) = validations(Budget::Time(std::time::Duration::from_secs(2)), 0);
    assert!((2..=41).contains(&count), "{count}");
}

#[test]
fn every_shape_has_a_default_model() {
    for shape in [&[1][..], &[7], &[28, 28, 1], &[32, 32, 3], &[9, 12, 1], &[5, 7, 3], &[64, 48, 3]] {
        let model = ModelConfig::for_shape(shape).expect("a model");
        assert_eq!(model.sample_shape(), shape);
        assert!(Flow::new(NdArray::<f32>::new(), model, Key::new(0)).is_ok() || shape[0] > 32);
    }
    assert!(ModelConfig::for_shape(&[]).is_err() && ModelConfig::for_shape(&[2, 2]).is_err());
}
