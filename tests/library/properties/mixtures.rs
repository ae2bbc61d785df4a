//! Mixtures of Gaussians fitted by expectation and maximisation: the likelihood rises, a weight is so many rows, components
//! are found, die and are not missed; the ladder and its choice; and a flow that begins as what was chosen.

use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise};
use resflow::base::{Covariance, LEAST_SCALE, Ladder, Mixture, MixtureChoice, MixtureFit, Rows};
use resflow::config::{BaseConfig, Family, FlowConfig, Start};
use resflow::data::{Standardiser, Table};
use resflow::flow::Flow;
use resflow::train::start_from_mixture;

use crate::common::*;

fn normals(n: usize, key: Key) -> Vec<f64> {
    let mut out = vec![0.0; n];
    Noise::Normal.fill(key, 0, &mut out);
    out
}

/// Rows around some centres, at different scales.
fn clustered(n: usize, d: usize, clusters: usize, key: Key) -> Vec<f64> {
    let centres = normals(clusters * d, key.named("centres"));
    let mut x = normals(n * d, key.named("rows"));
    for (i, x) in x.chunks_mut(d).enumerate() {
        let k = i % clusters;
        let scale = 0.2 + 0.3 * k as f64;
        x.iter_mut().zip(&centres[k * d..]).for_each(|(x, c)| *x = 4.0 * c + scale * *x);
        for j in 1..d {
            x[j] += 0.8 * x[0];
        }
    }
    x
}

fn fit(components: usize, covariance: Covariance) -> MixtureFit {
    MixtureFit::new(components, covariance)
}

const BOTH: [Covariance; 2] = [Covariance::Full, Covariance::Diagonal];

proptest! {
    #![proptest_config(cases(32))]

    /// What is maximised never falls, whatever the scale of the rows and their weights; the mixture is lawful; the same key
    /// gives the same numbers.
    #[test]
    fn the_likelihood_rises(
        n in 1_usize..60, d in 1_usize..=4, components in 1_usize..=6, full in any::<bool>(), weighted in any::<bool>(),
        scale in prop_oneof![Just(1.0), Just(1e-6), Just(1e9)], seed in any::<u64>(),
    ) {
        let key = Key::new(seed);
        let mut x = clustered(n, d, 3, key);
        for x in &mut x {
            *x *= scale;
        }
        let weights: Vec<f64> = normals(n, key.named("w")).iter().map(|w| w * w + 0.01).collect();
        let rows = Rows::new(d, &x, weighted.then_some(&weights[..])).expect("rows");
        let settings = MixtureFit {
            tolerance: 0.0,
            most_iterations: 40,
            least_scale: 1e-3 * scale,
            ..fit(components, BOTH[usize::from(full)])
        };
        let fitted = settings.fit(rows, key).expect("rows that can be fitted");
        for pair in fitted.objective.windows(2) {
            prop_assert!(pair[1] >= pair[0] - 1e-9 * (1.0 + pair[0].abs()), "{:?}", fitted.objective);
        }
        let mixture = &fitted.mixture;
        prop_assert!((mixture.weights().iter().sum::<f64>() - 1.0).abs() < 1e-12);
        prop_assert!(mixture.config().components <= components);
        let (weights, means, factors) = (mixture.weights().to_vec(), mixture.means().to_vec(), mixture.factors().to_vec());
        Mixture::new(d, mixture.config().covariance, weights, means, factors).expect("a lawful mixture");
        prop_assert!(mixture.log_densities(&x).iter().all(|l| l.is_finite()));
        prop_assert_eq!(settings.fit(rows, key).expect("again"), fitted);
    }

    /// Weight 2 is the row twice; weight 0 is no row.
    #[test]
    fn a_weight_is_so_many_rows(d in 1_usize..=3, full in any::<bool>(), seed in any::<u64>()) {
        let key = Key::new(seed);
        let x = clustered(40, d, 2, key);
        let weights: Vec<f64> = (0..40).map(|i| f64::from((i * 7 % 4) as u8)).collect();
        let mut repeated = Vec::new();
        for (x, w) in x.chunks(d).zip(&weights) {
            (0..*w as usize).for_each(|_| repeated.extend_from_slice(x));
        }
        let settings = MixtureFit { most_iterations: 30, ..fit(2, BOTH[usize::from(full)]) };
        let weighted = settings.fit(Rows::new(d, &x, Some(&weights)).expect("rows"), key).expect("fits");
        let repeated = settings.fit(Rows::new(d, &repeated, None).expect("rows"), key).expect("fits");
        prop_assert_eq!(weighted.mixture.config(), repeated.mixture.config());
        let (a, b) = (weighted.mixture.log_densities(&x), repeated.mixture.log_densities(&x));
        for (a, b) in a.iter().zip(&b) {
            prop_assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{a} and {b}");
        }
    }
}

/// One Gaussian is the mean and the covariance, with λ of the variances on its diagonal.
#[test]
fn one_component_is_the_moments() {
    let (n, d) = (50, 3);
    let x = clustered(n, d, 2, Key::new(1));
    let rows = Rows::new(d, &x, None).expect("rows");
    let fitted = fit(1, Covariance::Full).fit(rows, Key::new(2)).expect("fits");
    assert!(fitted.converged);
    let matrix = nalgebra::DMatrix::from_row_slice(n, d, &x);
    let mean = matrix.row_mean();
    let centred = nalgebra::DMatrix::from_fn(n, d, |i, j| matrix[(i, j)] - mean[j]);
    let mut covariance = centred.transpose() * &centred / n as f64;
    (0..d).for_each(|j| covariance[(j, j)] *= 1.0 + 1e-6);
    let a = nalgebra::DMatrix::from_row_slice(d, d, fitted.mixture.factors());
    let apart = (&a * covariance * a.transpose() - nalgebra::DMatrix::identity(d, d)).abs().max();
    assert!(apart < 1e-9, "{apart:e}");
    assert!(fitted.mixture.means().iter().zip(mean.iter()).all(|(a, b)| (a - b).abs() < 1e-12));
}

/// Outliers get no component of their own, in which they would be the likeliest of all rows; asked for, they do.
#[test]
fn outliers_are_no_component() {
    let (n, d) = (300, 2);
    let mut x = normals(n * d, Key::new(5));
    x[..4].copy_from_slice(&[40.0, -35.0, -50.0, 45.0]);
    let rows = Rows::new(d, &x, None).expect("rows");
    for covariance in BOTH {
        let settings = fit(4, covariance);
        let mixture = settings.fit(rows, Key::new(6)).expect("fits").mixture;
        let fewest = mixture.weights().iter().copied().fold(1.0, f64::min) * n as f64;
        assert!(fewest >= settings.least_rows, "{covariance}: a component of {fewest} rows");
        let densities = mixture.log_densities(&x);
        let below = densities[2..].iter().filter(|l| **l < densities[0].max(densities[1])).count();
        assert!(below < n / 20, "{covariance}: {below} rows are stranger than an outlier");
        let greedy = MixtureFit { least_rows: 0.0, ..settings }.fit(rows, Key::new(6)).expect("fits").mixture;
        assert!(greedy.weights().iter().any(|w| w * (n as f64) < 3.0), "{covariance}: {:?}", greedy.weights());
    }
}

#[test]
fn components_are_found() {
    for covariance in BOTH {
        // three well apart, of 50, 30 and 20 rows
        let d = 2;
        let mut x = normals(100 * d, Key::new(3));
        for (i, x) in x.chunks_mut(d).enumerate() {
            let k = if i < 50 {
                0.0
            } else if i < 80 {
                1.0
            } else {
                2.0
            };
            (x[0], x[1]) = (x[0] + 20.0 * k, x[1] - 15.0 * k * k);
        }
        let fitted = fit(3, covariance).fit(Rows::new(d, &x, None).expect("rows"), Key::new(4)).expect("fits");
        let mut weights = fitted.mixture.weights().to_vec();
        weights.sort_by(f64::total_cmp);
        let apart = apart(&weights, &[0.2, 0.3, 0.5]);
        assert!(apart < 1e-6 && fitted.converged, "{weights:?}");
    }
}

/// More components than distinct rows, and rows that lie in a plane: what is left is lawful.
#[test]
fn components_that_die_are_left_out() {
    let x: Vec<f64> = (0..30).flat_map(|i| [f64::from(i % 3), f64::from(i % 3)]).collect();
    let rows = Rows::new(2, &x, None).expect("rows");
    for covariance in BOTH {
        let fitted = fit(8, covariance).fit(rows, Key::new(5)).expect("fits");
        assert!(fitted.mixture.config().components <= 3, "{:?}", fitted.mixture.config());
        assert!(fitted.mixture.log_densities(&x).iter().all(|l| l.is_finite()));
    }
    let constant = [1.0, 0.0, 1.0, 2.0, 1.0, 5.0];
    let rows = Rows::new(2, &constant, None).expect("rows");
    let refused = fit(1, Covariance::Full).fit(rows, Key::new(6)).expect_err("no bound").to_string();
    assert!(refused.contains("column 0") && refused.contains("constant"), "{refused}");
    let floored = MixtureFit { least_scale: 0.1, ..fit(1, Covariance::Full) };
    assert!(floored.fit(rows, Key::new(6)).is_ok());
}

#[test]
fn what_a_fit_refuses() {
    let x = [0.0, 1.0, 2.0, 3.5];
    let rows = Rows::new(1, &x, None).expect("rows");
    let refused = |change: fn(&mut MixtureFit)| {
        let mut settings = fit(1, Covariance::Full);
        change(&mut settings);
        settings.fit(rows, Key::new(0)).expect_err("out of range").to_string()
    };
    assert!(refused(|s| s.components = 0).contains("components"));
    assert!(refused(|s| s.components = 1001).contains("components"));
    assert!(refused(|s| s.regularisation = 0.0).contains("regularisation"));
    assert!(refused(|s| s.regularisation = f64::NAN).contains("regularisation"));
    assert!(refused(|s| s.least_scale = -1.0).contains("least_scale"));
    assert!(refused(|s| s.tolerance = f64::NAN).contains("tolerance"));
    assert!(refused(|s| s.restarts = 0).contains("restarts"));
    assert!(refused(|s| s.most_iterations = 0).contains("most_iterations"));
    assert!(refused(|s| s.most_rows = 0).contains("most_rows"));
    for (d, values, weights) in [
        (0, &[1.0][..], None),
        (2, &[], None),
        (2, &[1.0], None),
        (1, &[f64::NAN], None),
        (1, &[1.0, 2.0], Some(&[1.0][..])),
        (1, &[1.0, 2.0], Some(&[1.0, -1.0])),
        (1, &[1.0, 2.0], Some(&[0.0, 0.0])),
        (1, &[1.0, 2.0], Some(&[f64::INFINITY, 0.0])),
        (1, &[1.0, 2.0], Some(&[1e308, 1e308])),
    ] {
        assert!(Rows::new(d, values, weights).is_err(), "{d} {values:?} {weights:?}");
    }
    let huge = [1e200, -1e200];
    let refused = fit(1, Covariance::Full).fit(Rows::new(1, &huge, None).expect("rows"), Key::new(0));
    assert!(refused.expect_err("squares overflow").to_string().contains("standardise"));
    let choice = MixtureChoice { candidates: vec![], ..MixtureChoice::default() };
    assert!(choice.choose(rows, rows, Key::new(0)).is_err());
    let wide = Rows::new(2, &x, None).expect("rows");
    assert!(MixtureChoice::default().choose(rows, wide, Key::new(0)).is_err());
}

/// A part of many rows: a function of the key, and near enough to all of them.
#[test]
fn many_rows_are_sampled() {
    let x = clustered(5000, 2, 2, Key::new(7));
    let rows = Rows::new(2, &x, None).expect("rows");
    let settings = MixtureFit { most_rows: 1000, ..fit(2, Covariance::Full) };
    let part = settings.fit(rows, Key::new(8)).expect("fits");
    assert_eq!(part, settings.fit(rows, Key::new(8)).expect("fits"));
    assert_ne!(part.mixture, settings.fit(rows, Key::new(9)).expect("fits").mixture);
    let whole = fit(2, Covariance::Full).fit(rows, Key::new(8)).expect("fits");
    let score = |mixture: &Mixture| mixture.log_densities(&x).iter().sum::<f64>() / 5000.0;
    assert!((score(&whole.mixture) - score(&part.mixture)).abs() < 0.02);
}

fn ladder(x: &[f64], d: usize, held_out: usize, choice: &MixtureChoice) -> (Ladder, Mixture) {
    let (train, validation) = x.split_at(x.len() - held_out * d);
    let rows = |x| Rows::new(d, x, None).expect("rows");
    choice.choose(rows(train), rows(validation), Key::new(10)).expect("rows that can be fitted")
}

#[test]
fn the_ladder_stops_at_what_the_rows_show() {
    // two components, full covariances: correlated columns
    let x = clustered(600, 2, 2, Key::new(11));
    let (found, mixture) = ladder(&x, 2, 200, &MixtureChoice::default());
    let chosen = found.chosen().expect("a rung");
    assert!((2..=4).contains(&chosen.components) && chosen.covariance == Covariance::Full, "{found}");
    assert_eq!(mixture.config().components, chosen.components);
    // a few more than there are may win by chance, but by little
    let two = found.rungs.iter().find(|r| r.components == 2 && r.covariance == Covariance::Full).expect("tried");
    assert!(chosen.log_prob - two.log_prob < 0.02, "{found}");
    assert!(found.gaussian().is_some_and(|g| g.log_prob < chosen.log_prob - 0.1), "{found}");
    for covariance in BOTH {
        assert!(found.rungs.iter().any(|r| r.components == 1 && r.covariance == covariance), "{found}");
    }
    // it ended early, and what it says is what the mixture gives
    assert!(found.rungs.iter().all(|r| r.components < 24), "{found}");
    let held_out = mixture.log_densities(&x[800..]);
    let mean = held_out.iter().sum::<f64>() / 200.0;
    assert!((mean - chosen.log_prob).abs() < 1e-12);
    let spread = held_out.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 200.0 / 199.0;
    assert!((chosen.standard_error.expect("many rows") - spread.sqrt()).abs() < 1e-12);
    // shown and stored
    let shown = found.to_string();
    assert!(shown.contains("mixture of 2, full ") && shown.contains("Gaussian, diagonal") && shown.contains("chosen"));
    let json = serde_json::to_string(&found).expect("serialises");
    assert_eq!(serde_json::from_str::<Ladder>(&json).expect("a ladder"), found);
    // rows of one Gaussian need one
    let x = normals(900, Key::new(12));
    let (found, _) = ladder(&x, 3, 100, &MixtureChoice::default());
    let [chosen, gaussian] = [found.chosen(), found.gaussian()].map(|r| r.expect("a rung").log_prob);
    assert!((0.0..0.03).contains(&(chosen - gaussian)), "{found}");
    // without work or time for more there is still a rung
    let settings = MixtureChoice::default();
    let none = Some(std::time::Duration::ZERO);
    for choice in [MixtureChoice { work: 0, ..settings.clone() }, MixtureChoice { time: none, ..settings }] {
        let (found, _) = ladder(&x, 3, 100, &choice);
        assert_eq!(found.rungs.len(), 1);
    }
    // three rows, of which one is held out
    let (found, _) = ladder(&[0.0, 1.0, 0.4], 1, 1, &MixtureChoice::default());
    assert_eq!(found.rungs[0].standard_error, None);
}

/// Training and validation rows of a table, standardised by the training rows.
fn standardised(x: Vec<f64>, d: usize, held_out: usize) -> (Table, Table) {
    let count = x.len() / d;
    let all = table(d, x);
    let train = all.select(&(0..count - held_out).collect::<Vec<_>>());
    let standardiser = Standardiser::fit(&train).expect("columns that vary");
    let rest = all.select(&(count - held_out..count).collect::<Vec<_>>());
    (standardiser.apply(&train).expect("of this width"), standardiser.apply(&rest).expect("of this width"))
}

/// Step 0 is the mixture: log p of the untrained flow is the score that the choice was made by.
#[test]
fn a_flow_starts_as_the_mixture() {
    fn check<B: Backend>(backend: &B, tolerance: f64) {
        for (family, seed) in Family::ALL.into_iter().zip(13..) {
            let (train, validation) = standardised(clustered(300, 3, 3, Key::new(seed)), 3, 60);
            let config = FlowConfig { blocks: 3, hidden: vec![8], start: Start::Identity, ..FlowConfig::of(family, 3) };
            let mut flow = Flow::new(backend.clone(), config, Key::new(0)).expect("valid");
            let [training, held_out] = [&train, &validation].map(|t| Rows::of_table(t, None).expect("rows"));
            let ladder = start_from_mixture(&mut flow, training, held_out, Key::new(1)).expect("rows that fit");
            let chosen = ladder.chosen().expect("a rung");
            let BaseConfig::Mixture(base) = flow.config().base() else { panic!("no mixture") };
            assert_eq!((base.components, base.covariance), (chosen.components, chosen.covariance));
            let found = flow.log_prob(&validation, Key::new(2)).expect("rows that fit");
            assert!((found.mean() - chosen.log_prob).abs() < tolerance, "{family}: {} and {chosen}", found.mean());
            let error = found.mean_standard_error() - chosen.standard_error.expect("many rows");
            assert!(error.abs() < tolerance, "{family}");
        }
    }
    check(&cpu(), 1e-9);
    check(&NdArray::<f32>::new(), 1e-5);
}

#[test]
fn what_a_start_refuses() {
    let x = clustered(50, 2, 1, Key::new(17));
    let rows = Rows::new(2, &x, None).expect("rows");
    let mut random = Flow::new(cpu(), FlowConfig::new(2), Key::new(0)).expect("valid");
    let refused = start_from_mixture(&mut random, rows, rows, Key::new(1)).expect_err("no identity").to_string();
    assert!(refused.contains("identity"), "{refused}");
    let config = FlowConfig { start: Start::Identity, ..FlowConfig::new(3) };
    let mut wide = Flow::new(cpu(), config, Key::new(0)).expect("valid");
    let refused = start_from_mixture(&mut wide, rows, rows, Key::new(1)).expect_err("another width").to_string();
    assert!(refused.contains("2 columns"), "{refused}");
    // columns that depend on each other end at the least scale and not at an error
    let x: Vec<f64> = normals(100, Key::new(18)).into_iter().flat_map(|x| [x, 2.0 * x]).collect();
    let rows = Rows::new(2, &x, None).expect("rows");
    let config = FlowConfig { start: Start::Identity, ..FlowConfig::new(2) };
    let mut flow = Flow::new(cpu(), config, Key::new(0)).expect("valid");
    start_from_mixture(&mut flow, rows, rows, Key::new(1)).expect("a start");
    let found = flow.log_prob(&table(2, x), Key::new(2)).expect("rows that fit").mean();
    // two columns' worth of the least scale at most
    assert!(found.is_finite() && found < -2.0 * LEAST_SCALE.ln(), "{found}");
}
