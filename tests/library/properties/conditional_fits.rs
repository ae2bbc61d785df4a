//! Fits of conditional densities: from the front door, and against densities that are known.

use crate::common::*;
use crate::properties::conditional::{data, select};
use resflow::Fit;
use resflow::backend::{Key, Noise};
use resflow::config::{ContextConfig, FlowConfig, Start};
use resflow::data::{Dataset, Table, Values};
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::train::{Budget, TrainConfig, Trainer};

#[test]
fn the_front_door_fits_columns_given_others() {
    let names = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    let data = data(300, Key::new(101));
    let Values::Tabular(x) = data.samples().values() else { panic!("a table") };
    let values = (0..300).flat_map(|i| {
        let c = data.samples().context().expect("contexts").row(i);
        [c[0], x.row(i)[0], x.row(i)[1], c[2]]
    });
    let whole = Table::new(Some(names), 4, values.collect()).expect("a table");
    let given = Dataset::from(whole).given(&["d", "a"]).expect("columns of it");
    assert_eq!(given.table().and_then(Table::columns), Some(&["b", "c"].map(str::to_owned)[..]));
    let context = given.samples().context().expect("contexts");
    assert_eq!(context.columns(), Some(&["d", "a"].map(str::to_owned)[..]));
    let model = Fit::new().steps(300).seed(1).run(&given).expect("a fit");
    let conditional = model.config().context().expect("a conditional model");
    assert_eq!(conditional.columns, 2);
    let at = model.condition(&[[0.5, 20.0]]).expect("a context");
    let (samples, log_prob) = at.sample_and_log_prob(200).expect("samples");
    // b is near (a − 10)/5
    let mean = samples.column(0).sum() / 200.0;
    assert!((mean - 2.0).abs() < 0.3, "{mean}");
    let scored = at.log_prob(samples.view()).expect("samples");
    assert!(scored.iter().zip(&log_prob).all(|(a, b)| (a - b).abs() < 1e-3));
    assert!(model.log_prob(&[[0.0, 0.0]]).is_err() && model.sample(3).is_err());
    // there and back, at one context and at one for each row
    let several = model.condition(&[[0.5, 20.0], [-1.0, 4.0]]).expect("contexts");
    let two = samples.slice(ndarray::s![..2, ..]);
    let (latents, together) = (at.encode(two).expect("samples"), several.encode(two).expect("samples"));
    assert!(latents.row(0).iter().zip(together.row(0)).all(|(a, b)| (a - b).abs() < 1e-4));
    assert!(latents.row(1).iter().zip(together.row(1)).any(|(a, b)| (a - b).abs() > 0.1), "another context");
    let back = several.decode_with_reports(together.view()).expect("latents");
    assert!(back.samples.values().iter().zip(two).all(|(a, b)| (a - b).abs() < 1e-2 * (1.0 + b.abs())));
    assert_eq!(several.decode(together.view()).expect("latents").as_slice(), Some(back.samples.values()));
    assert!(several.encode(samples.slice(ndarray::s![..3, ..])).is_err(), "three rows at two contexts");
    assert!(several.decode(&[[0.0; 3]; 2]).is_err(), "another number of columns");
    // in a file and out of it
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    model.save(&path).expect("saved");
    let again = resflow::Model::load(&path).expect("a model");
    let at = again.condition(&[[0.5, 20.0]]).expect("a context");
    assert_eq!(at.log_prob(samples.view()).expect("samples"), scored);
    // classes of images as contexts
    let set = images(6, [4, 4, 1], Key::new(102));
    let bytes = set.bytes().to_vec();
    let labelled = resflow::data::image::ImageSet::new(4, 4, 1, bytes, Some(vec![0, 2, 1, 0, 2, 1])).expect("images");
    let told = Dataset::from(labelled).given_labels(3).expect("three classes");
    assert_eq!(told.samples().context().expect("one-hot").row(1), [0.0, 0.0, 1.0]);
    assert!(Dataset::from(set).given_labels(3).is_err(), "no labels");
}

/// θ ~ N(0, I), y = Aθ + ε with ε ~ N(0, s²I): the posterior is N(ΣAᵀy/s², Σ) with Σ⁻¹ = I + AᵀA/s².
#[test]
fn the_posterior_of_a_linear_model_is_learned() {
    use nalgebra::{Matrix2, Matrix3x2, Vector2, Vector3};
    let a = Matrix3x2::new(1.0, 0.5, -0.3, 1.2, 0.8, 0.1);
    let s = 0.6;
    let simulate = |n: usize, key: Key| {
        let (theta, noise) = (rows(n, 2, key.named("θ")), rows(n, 3, key.named("ε")));
        let y = (0..n).flat_map(|i| {
            let y = a * Vector2::from_row_slice(theta.row(i)) + s * Vector3::from_row_slice(noise.row(i));
            [y[0], y[1], y[2]]
        });
        let y = y.collect();
        (theta, table(3, y))
    };
    let covariance = (Matrix2::identity() + a.transpose() * a / (s * s)).try_inverse().expect("positive");
    let (theta, y) = simulate(20_000, Key::new(111));
    let data = Dataset::from(theta).with_context(y).expect("as many");
    let config = FlowConfig {
        blocks: 2,
        hidden: vec![16],
        start: Start::Identity,
        context: Some(ContextConfig { embedding: vec![32, 32], ..ContextConfig::new(3) }),
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::new(2)
    };
    let settings = TrainConfig { batch: 256, learning_rate: 5e-3, ..TrainConfig::default() };
    let flow = Flow::new(resflow::NdArray::<f32>::new(), config, Key::new(112)).expect("a configuration");
    let mut trainer = Trainer::new(flow, data, &settings, Budget::Steps(1500), Key::new(113)).expect("data");
    trainer.run(|_, _| ()).expect("finite");
    let model = trainer.model().prepare();
    // 50 contexts, and the mean of log p − log q over 200 draws from each posterior
    let (_, observed) = simulate(50, Key::new(114));
    let root = covariance.cholesky().expect("positive").l();
    let inverse = covariance.try_inverse().expect("positive");
    let normal = rows(50 * 200, 2, Key::new(115));
    let mut exact = Vec::new();
    let points = (0..50 * 200).flat_map(|r| {
        let y = Vector3::from_row_slice(observed.row(r / 200));
        let mean = covariance * a.transpose() * y / (s * s);
        let theta = mean + root * Vector2::from_row_slice(normal.row(r));
        let away = theta - mean;
        let square = (away.transpose() * inverse * away)[0];
        exact.push(-0.5 * square - (2.0 * std::f64::consts::PI).ln() - 0.5 * covariance.determinant().ln());
        [theta[0], theta[1]]
    });
    let points = table(2, points.collect());
    let contexts = select(&observed, &(0..50 * 200).map(|r| r / 200).collect::<Vec<_>>());
    let found = model.condition(&contexts).expect("contexts").log_prob(&points, Key::new(116)).expect("points");
    let differences: Vec<f64> = exact.iter().zip(&found.values).map(|(p, q)| p - q).collect();
    let (kl, error) = mean_and_error(&differences);
    println!("KL {kl:.5} ± {error:.5} nats");
    assert!(kl < 0.01, "KL {kl} ± {error} nats");
}

/// x | c ~ ½N(c, s²) + ½N(−c, s²): one hump at c = 0, two apart from it.
#[test]
fn a_mixture_whose_parts_move_is_learned() {
    let s: f64 = 0.4;
    let draw = |n: usize, key: Key| {
        let noise = rows(n, 2, key.named("x"));
        let mut uniform = vec![0.0; n];
        Noise::Uniform.fill(key.named("c"), 0, &mut uniform);
        let c: Vec<f64> = uniform.iter().map(|u| 4.0 * u - 2.0).collect();
        let x = (0..n).map(|i| noise.row(i)[1].signum() * c[i] + s * noise.row(i)[0]).collect();
        (table(1, x), table(1, c))
    };
    let (x, c) = draw(20_000, Key::new(121));
    let data = Dataset::from(x).with_context(c).expect("as many");
    let config = FlowConfig {
        blocks: 4,
        hidden: vec![24, 24],
        start: Start::Identity,
        context: Some(ContextConfig { embedding: vec![32, 32], ..ContextConfig::new(1) }),
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::new(1)
    };
    let settings = TrainConfig { batch: 256, learning_rate: 5e-3, ..TrainConfig::default() };
    let flow = Flow::new(resflow::NdArray::<f32>::new(), config, Key::new(122)).expect("a configuration");
    let mut trainer = Trainer::new(flow, data, &settings, Budget::Steps(1500), Key::new(123)).expect("data");
    trainer.run(|_, _| ()).expect("finite");
    let (x, c) = draw(5000, Key::new(124));
    let found = trainer.model().prepare();
    let found = found.condition(&c).expect("contexts").log_prob(&x, Key::new(125)).expect("rows").values;
    let normal = |z: f64| (-0.5 * z * z / (s * s)).exp() / (s * (2.0 * std::f64::consts::PI).sqrt());
    let exact = x.values().iter().zip(c.values()).map(|(x, c)| (0.5 * normal(x - c) + 0.5 * normal(x + c)).ln());
    let differences: Vec<f64> = exact.zip(&found).map(|(p, q)| p - q).collect();
    let (kl, error) = mean_and_error(&differences);
    println!("KL {kl:.5} ± {error:.5} nats");
    assert!(kl < 0.05, "KL {kl} ± {error} nats");
}
