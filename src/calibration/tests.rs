use super::*;

/// Pairs of θ ~ N(0, I), c = θ + N(0, I): the posterior is N(c/2, I/2); draws are of N(c/2 + shift, scale² I/2).
fn linear_gaussian(pairs: usize, scale: f64, shift: f64, seed: u64) -> Calibration {
    let (d, draws) = (2, 99);
    let key = Key::new(seed);
    let normal = |purpose: &str, pair: usize, count: usize| {
        let mut out = vec![0.0; count];
        Noise::Normal.fill(key.named(purpose), (pair * count) as u64, &mut out);
        out
    };
    let mut calibration = Calibration::new(d, key);
    for pair in 0..pairs {
        let truth = normal("truth", pair, d);
        let context: Vec<f64> = truth.iter().zip(normal("noise", pair, d)).map(|(t, e)| t + e).collect();
        let at = |i: usize, e: f64| context[i % d] / 2.0 + shift + scale * e / 2.0_f64.sqrt();
        let drawn: Vec<f64> = normal("draws", pair, d * draws).into_iter().enumerate().map(|(i, e)| at(i, e)).collect();
        let log_density = |theta: &[f64]| -> f64 {
            theta.iter().zip(&context).map(|(t, c)| -((t - c / 2.0 - shift) / scale).powi(2)).sum()
        };
        calibration.add(&truth, &drawn).expect("a pair");
        let densities: Vec<f64> = drawn.chunks(d).map(log_density).collect();
        calibration.add_log_probs(log_density(&truth), &densities).expect("log densities");
    }
    calibration
}

/// A right model's p-values are those of chance: of 200 seeds, at 5 % at most 5 % and four standard errors (6.2 %) are told;
/// seeded. A wrong one, its draws 0.7 times as wide or shifted by half a width, is told with 500 pairs for each of 20 seeds.
#[test]
fn wrong_posteriors_are_told_and_right_ones_are_not() {
    let told = (0..200).filter(|seed| linear_gaussian(100, 1.0, 0.0, *seed).p_value().expect("pairs") < 0.05).count();
    assert!(told as f64 <= 200.0 * (0.05 + 0.062), "{told} of 200 right posteriors were told");
    for seed in 0..20 {
        for (scale, shift) in [(0.7, 0.0), (1.4, 0.0), (1.0, 0.35)] {
            let p = linear_gaussian(500, scale, shift, seed).p_value().expect("pairs");
            assert!(p < 1e-3, "scale {scale}, shift {shift}, seed {seed}: {p}");
        }
    }
}

/// Each of the three orders tells a posterior that is too narrow by itself.
#[test]
fn each_test_tells_a_narrow_posterior() {
    let tests = linear_gaussian(1000, 0.7, 0.0, 3).tests().expect("pairs");
    let orders: Vec<TestQuantity> = tests.iter().map(|test| test.quantity).collect();
    assert_eq!(
        orders,
        [TestQuantity::Parameter(0), TestQuantity::Parameter(1), TestQuantity::Reference, TestQuantity::Density]
    );
    for test in &tests {
        assert!(test.uniformity.p_value < 1e-3, "{:?}: {:?}", test.quantity, test.uniformity);
    }
    assert_eq!(tests[0].places.len(), 1000);
    assert_eq!(tests[2].places.len(), 999, "the first pair has no reference point");
}

/// Numbers of which many are equal, as integers are, leave the places uniform.
#[test]
fn ties_are_broken_by_chance() {
    let mut calibration = Calibration::new(1, Key::new(9));
    let mut coins = vec![0.0; 2000 * 11];
    Noise::Uniform.fill(Key::new(10), 0, &mut coins);
    for row in coins.chunks(11) {
        let row: Vec<f64> = row.iter().map(|u: &f64| (u * 3.0).floor()).collect();
        calibration.add(&row[..1], &row[1..]).expect("a pair");
    }
    assert!(calibration.p_value().expect("pairs") > 0.01);
}

#[test]
fn what_does_not_fit_is_refused_and_not_added() {
    let mut calibration = Calibration::new(2, Key::new(0));
    assert!(calibration.tests().is_err());
    assert!(calibration.add(&[1.0], &[1.0, 2.0]).is_err());
    assert!(calibration.add(&[1.0, 2.0], &[1.0, 2.0, 3.0]).is_err());
    assert!(calibration.add(&[1.0, 2.0], &[]).is_err());
    assert!(calibration.add(&[1.0, 2.0], &[1.0, f64::NAN]).is_err());
    assert!(calibration.add_with_reference(&[1.0, 2.0], &[1.0, 2.0], &[0.0]).is_err());
    assert!(calibration.add_log_probs(f64::NAN, &[0.0]).is_err() && calibration.add_log_probs(0.0, &[]).is_err());
    assert!(Calibration::new(0, Key::new(0)).add(&[], &[]).is_err());
    assert_eq!(calibration.pairs(), 0);
    calibration.add(&[1.0, 2.0], &[1.0, 2.0]).expect("a pair");
    calibration.add_log_probs(f64::NEG_INFINITY, &[0.0]).expect("a density of zero");
    assert_eq!(calibration.pairs(), 1);
}
