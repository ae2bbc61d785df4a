//! The front door on tables: what `resflow::fit` does where it is not told is what the program does. Keys are fixed, so no
//! test fails by chance.

use std::ops::ControlFlow;

use resflow::backend::{Key, Noise};
use resflow::base::Ladder;
use resflow::config::{BaseConfig, Family, FlowConfig, ModelConfig};
use resflow::data::{self, DataError, Dataset, Table};
use resflow::device::{DeviceOptions, Precision};
use resflow::flow::ScoreQuantiles;
use resflow::train::TrainConfig;
use resflow::{Error, Fit, Flow, Model, NdArray};

/// Two columns, the second of which bends with the first.
fn table(rows: usize, seed: u64) -> Table {
    let mut noise = vec![0.0; 2 * rows];
    Noise::Normal.fill(Key::new(seed).named("table"), 0, &mut noise);
    let values = noise.chunks_exact(2).flat_map(|x| [50.0 + 4.0 * x[0], x[0] * x[0] + 0.5 * x[1]]).collect();
    Table::new(Some(vec!["a".to_owned(), "b".to_owned()]), 2, values).expect("a table")
}

/// A table with columns that are functions of those of another.
fn with(plain: &Table, names: &[&str], more: impl Fn(usize, &[f64]) -> Vec<f64>) -> Table {
    let names: Vec<String> = ["a", "b"].iter().chain(names).map(ToString::to_string).collect();
    let values = (0..plain.rows()).flat_map(|i| [plain.row(i).to_vec(), more(i, plain.row(i))].concat()).collect();
    Table::new(Some(names.clone()), names.len(), values).expect("a table")
}

/// A fit in double precision.
fn double<'a>() -> Fit<'a> {
    Fit::new().device(DeviceOptions::cpu(Precision::F64))
}

#[test]
fn a_table_gets_the_model_of_tables() {
    for family in [Family::Residual, Family::Nsf] {
        let model = Fit::new().family(family).steps(3).run(table(200, 1)).expect("a model");
        let ModelConfig::Rows(found) = model.config() else { panic!("a model of images") };
        // but for the base, which was fitted
        assert_eq!(*found, FlowConfig { base: found.base, ..FlowConfig::for_table(family, 200, 2) });
        assert!(matches!(found.base, BaseConfig::Mixture(_)), "{family}: {}", found.base);
        let ladder = model.provenance().ladder.as_ref().expect("what was tried");
        assert_eq!((ladder.training_rows, ladder.validation_rows), (170, 30));
        assert_eq!(model.provenance().columns.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
    }
}

#[test]
fn a_model_of_ones_own_is_trained_without_a_mixture() {
    let own = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    let model = Fit::new().model(&own).steps(3).run(table(60, 2)).expect("a model");
    assert_eq!(*model.config(), ModelConfig::from(own));
    assert!(model.provenance().ladder.is_none() && model.provenance().scores.is_some());
}

#[test]
fn no_model_is_worse_than_its_mixture() {
    for seed in 0..4 {
        let model = double().seed(seed).steps(60).run(table(150, seed)).expect("a model");
        let provenance = model.provenance();
        let chosen = provenance.ladder.as_ref().and_then(Ladder::chosen).expect("the best mixture").log_prob;
        let found = -provenance.validation_nll.expect("a validation");
        // the first validation is the mixture's own score, computed another way
        assert!(found >= chosen - 1e-8 * chosen.abs().max(1.0), "seed {seed}: {found} after {chosen}");
    }
}

#[test]
fn patience_ends_a_default_fit() {
    // a normal density, which the first mixture already is
    let mut noise = vec![0.0; 600];
    Noise::Normal.fill(Key::new(3).named("table"), 0, &mut noise);
    let table = Table::new(None, 3, noise).expect("a table");
    let mut steps = 0;
    let observe = |progress: &resflow::model::Progress<'_>| {
        steps = progress.step.step;
        ControlFlow::<()>::Continue(())
    };
    let model = Fit::new().on_progress(observe).run(&table).expect("a model");
    let most = TrainConfig::for_table(Family::Residual, 200).steps;
    // ten validations are 900 steps: before the first step, after 10, 20, 40 and 80, and then every 150
    assert!((900..most / 2).contains(&steps), "{steps} steps of {most}");
    assert!(model.provenance().steps < steps, "the last weights are not the best");
}

#[test]
fn a_model_is_a_function_of_data_settings_and_seed() {
    let rows = table(120, 4);
    let fit = |seed| double().seed(seed).steps(30).run(&rows).expect("a model");
    let (model, again, other) = (fit(5), fit(5), fit(6));
    assert_eq!(model.provenance(), again.provenance());
    assert_eq!(model.log_prob(&rows).expect("log p"), again.log_prob(&rows).expect("log p"));
    assert_ne!(model.provenance().scores, other.provenance().scores);
}

#[test]
fn all_that_is_grave_is_said_at_once() {
    let plain = table(120, 4);
    let sum = |row: &[f64]| ((2.0 * row[0] - row[1]) * 1e6).round() / 1e6;
    let bad = with(&plain, &["c", "d", "e"], |i, row| vec![7.0, sum(row), 1e15 + 0.25 * (i % 2) as f64]);
    let error = resflow::fit(&bad).expect_err("no density");
    assert!(matches!(&error, Error::Data(DataError::NoDensity(found)) if found.len() == 3), "{error}");
    let text = error.to_string();
    for part in ["`c` has one value", "linear combination", "`e` differ by rounding", "--drop", "Fit::regardless"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // what a look says is what a fit refuses
    let sums = with(&plain, &["d"], |_, row| vec![sum(row)]);
    assert_eq!(data::look(&sums, None).expect("rows").grave().count(), 1);
    let fit = || Fit::new().steps(2);
    assert!(matches!(fit().run(&sums), Err(Error::Data(DataError::NoDensity(_)))));
    let model = fit().regardless(true).run(&sums).expect("a model all the same");
    assert!(model.score(&sums).expect("log p").mean().is_finite());
    // a fault of weight 0 is not there
    let constant = with(&plain, &["c"], |i, row| vec![if i < 60 { row[0] * row[1] } else { 7.0 }]);
    let weigh = |first: f64, rest: f64| {
        let weights = (0..120).map(|i| if i < 60 { first } else { rest }).collect();
        Dataset::from(constant.clone()).with_weights(weights).expect("weights")
    };
    assert!(matches!(fit().run(weigh(0.0, 1.0)), Err(Error::Data(DataError::NoDensity(_)))));
    assert!(fit().run(weigh(1.0, 0.0)).is_ok());
}

#[test]
fn percentiles_are_places_among_the_training_rows() {
    let (training, fresh) = (table(300, 5), table(300, 6));
    let fit = double().steps(20).validation(&fresh).expect("rows");
    let model = fit.run(&training).expect("a model");
    let scores = model.provenance().scores.as_ref().expect("scores of a table");
    assert_eq!((scores.training.rows(), scores.validation.as_ref().map(ScoreQuantiles::rows)), (300, Some(300)));
    let mut own = model.percentile(&training).expect("percentiles").to_vec();
    own.sort_unstable_by(f64::total_cmp);
    for (k, percentile) in own.iter().enumerate() {
        // k of 300 rows are less likely; rounding may count a row before itself
        assert!((percentile - k as f64 / 3.0).abs() < 0.34, "{k}: {percentile}");
    }
    // 300 uniform percentiles have a mean within 1.7 of 50; the bound is six times that, since the training rows are known
    let mean = model.percentile(&fresh).expect("percentiles").mean().expect("rows");
    assert!((mean - 50.0).abs() < 10.0, "{mean}");
    assert_eq!(model.percentile(&[[1e6, -1e6]]).expect("a percentile").to_vec(), [0.0]);

    // the file keeps them
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    model.save(&path).expect("a file");
    let again = Model::load(&path).expect("a model");
    assert_eq!(again.percentile(&fresh).expect("kept"), model.percentile(&fresh).expect("percentiles"));
    // a flow that was not fitted here has none
    let flow = Flow::new(NdArray::<f64>::new(), FlowConfig::new(2), Key::new(0)).expect("a flow");
    let error = Model::new(flow).percentile(&fresh).expect_err("no scores");
    assert!(matches!(&error, Error::Input(problem) if problem.contains("training rows")), "{error}");
}

/// Of rows that come again and again some are on both sides of the split: only numbers tell which were trained on.
#[test]
fn training_rows_are_told_by_their_numbers() {
    let rows: Vec<[f64; 2]> = (0..400).map(|i| [f64::from(i % 5), f64::from(i / 5 % 4)]).collect();
    let model = Fit::new().steps(2).run(&rows).expect("a model");
    let scores = model.provenance().scores.as_ref().expect("scores of a table");
    assert_eq!((scores.training.rows(), scores.validation.as_ref().map(ScoreQuantiles::rows)), (340, Some(60)));
}

#[test]
fn a_weight_is_so_many_rows() {
    let (rows, validation) = (table(200, 7), table(100, 8));
    let weights: Vec<f64> = (0..200).map(|i| if rows.row(i)[0] > 50.0 { 3.0 } else { 1.0 }).collect();
    let often: Vec<usize> = (0..200).flat_map(|i| std::iter::repeat_n(i, weights[i] as usize)).collect();
    // one step moves little: what is compared is the mixture
    let fit = |data: Dataset| {
        let fit = double().steps(1).validation(&validation).expect("rows");
        fit.run(data).expect("a model").score(&validation).expect("log p").mean()
    };
    let repeated = fit(rows.select(&often).into());
    let plain = fit(rows.clone().into());
    let weighted = fit(Dataset::from(rows).with_weights(weights).expect("weights"));
    assert!((weighted - repeated).abs() < 0.01, "{weighted} and {repeated}");
    assert!((weighted - plain).abs() > 0.05, "weights change something: {weighted} and {plain}");
}
