//! Predictions of one column given others: quantiles are the inverse of the distribution function, at every context, for every
//! family that takes one column, and what is computed of them is what samples say.

use crate::common::*;
use resflow::backend::Key;
use resflow::base::{BaseConfig, Covariance, MixtureConfig};
use resflow::calibration::crps_of_draws;
use resflow::config::{ContextConfig, Family, FlowConfig, ModelConfig};
use resflow::data::Table;
use resflow::flow::Flow;
use resflow::invert::Inversion;

/// Flows of one column that a context and weights of some size change, of every family that there are.
fn flows() -> Vec<(String, Flow<Cpu>)> {
    let mixture = BaseConfig::Mixture(MixtureConfig { components: 3, covariance: Covariance::Diagonal });
    let mut all = Vec::new();
    for family in Family::ALL {
        for base in [BaseConfig::Normal, mixture] {
            let config = FlowConfig {
                blocks: if family == Family::Ffjord { 1 } else { 3 },
                evaluation_solver: "dopri5:rtol=1e-9".parse().expect("a solver"),
                hidden: vec![8, 6],
                context: Some(ContextConfig { embedding: vec![6], ..ContextConfig::new(2) }),
                base,
                ..FlowConfig::of(family, 1)
            };
            let config = ModelConfig::from(config);
            if config.check().is_ok() {
                let what = format!("{family}, {:?}", config.base());
                all.push((what, random_flow(&cpu(), config, Key::new(70), 0.4)));
            }
        }
    }
    all
}

#[test]
fn quantiles_invert_the_distribution_function() {
    let flows = flows();
    assert!(flows.len() >= 8, "{} of the families take one column", flows.len());
    let levels = [0.9, 0.02, 0.5, 0.3, 0.999];
    for (what, flow) in flows {
        let flow = flow.prepare();
        let contexts = rows(6, 2, Key::new(71));
        let at = flow.condition(&contexts).expect("contexts");
        let prediction = at.predict(&levels, &Inversion::for_backend::<Cpu>()).expect("one column");
        assert_eq!((prediction.contexts(), prediction.levels(), prediction.unsolved()), (6, &levels[..], 0), "{what}");
        for (k, level) in levels.iter().enumerate() {
            let quantiles: Vec<f64> = (0..6).map(|i| prediction.quantiles(i)[k]).collect();
            let x = Table::new(None, 1, quantiles).expect("a column");
            for below in at.distribution(&x, Key::new(72)).expect("one column") {
                assert!((below - level).abs() < 1e-7, "{what}: {below} below the quantile at {level}");
            }
        }
        for i in 0..6 {
            let [high, low, middle, left, end] = prediction.quantiles(i).try_into().expect("five levels");
            assert!(low < left && left < middle && middle < high && high < end, "{what}");
            assert!((low..end).contains(&prediction.mean(i)), "{what}");
        }
    }
}

/// Means and CRPS beside those of 4,000 samples; seeded, five standard errors, and half a percent of a deviation for the 64 levels.
#[test]
fn means_and_scores_are_those_of_samples() {
    const N: usize = 4000;
    for (what, flow) in flows() {
        let flow = flow.prepare();
        let contexts = rows(2, 2, Key::new(73));
        let at = flow.condition(&contexts).expect("contexts");
        let prediction = at.predict(&[0.5], &Inversion::for_backend::<Cpu>()).expect("one column");
        let drawn = at.sample(N, Key::new(74)).expect("samples").samples;
        for (i, draws) in drawn.values().chunks_exact(N).enumerate() {
            let mean = draws.iter().sum::<f64>() / N as f64;
            let deviation = (draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / N as f64).sqrt();
            let allowed = (5.0 / (N as f64).sqrt() + 0.005) * deviation;
            assert!((prediction.mean(i) - mean).abs() < allowed, "{what}: {} and {mean}", prediction.mean(i));
            for truth in [mean - deviation, prediction.quantiles(i)[0], mean + 2.0 * deviation] {
                let (own, theirs) =
                    (prediction.crps(i, truth).expect("a score"), crps_of_draws(draws, truth).expect("draws"));
                assert!((own - theirs).abs() < 2.0 * allowed, "{what}: {own} and {theirs}");
            }
        }
    }
}

#[test]
fn what_cannot_be_predicted_is_refused() {
    let how = Inversion::for_backend::<Cpu>();
    let config = FlowConfig { blocks: 1, context: Some(ContextConfig::new(2)), ..FlowConfig::new(2) };
    let two = Flow::new(cpu(), config, Key::new(75)).expect("a configuration").prepare();
    let contexts = rows(3, 2, Key::new(76));
    let at = two.condition(&contexts).expect("contexts");
    let error = at.predict(&[0.5], &how).expect_err("two columns").to_string();
    assert!(error.contains("2 columns"), "{error}");
    assert!(at.distribution(&rows(3, 2, Key::new(77)), Key::new(78)).is_err());
    let (_, flow) = flows().remove(0);
    let flow = flow.prepare();
    let at = flow.condition(&contexts).expect("contexts");
    for level in [0.0, 1.0, -0.1, f64::NAN] {
        assert!(at.predict(&[0.5, level], &how).is_err(), "{level}");
    }
    let none = at.predict(&[], &how).expect("means and scores alone");
    assert!(none.quantiles(2).is_empty() && none.crps(0, f64::NAN).is_err());
}
