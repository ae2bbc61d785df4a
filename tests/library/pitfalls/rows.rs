//! What existing implementations get wrong, one test each, named after the list that the project keeps of them
//! (RF: the authors' residual flows; NF: normflows; IR: i-ResNet; FE: FrEIA; TF: torchflows; NX: NuX; DN: i-DenseNet).
//! Numbers that are missing do not apply to flows over rows of numbers: 4 mixed norms, 7 image sizes, 8 dropout, 20 the
//! logit, 21 dequantisation. Those of training and checkpoints are in `training.rs`. Keys are fixed, so no test
//! fails by chance; one that draws says how far from its bound chance would be.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::common::asking::{count_grads, pull_back, train, value, with_log_det};
use crate::common::*;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Draw, Memory};
use resflow::block::ResidualBlock;
use resflow::config::{FlowConfig, Nonlinearity};
use resflow::error::ConfigError;
use resflow::estimator::{Estimator, Exact, Law, Phase, RussianRoulette, Sharing, Weights, exact_log_det, series};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Method, Status, invert_residual};
use resflow::layer::{Derivatives, Layer, LipschitzLinear, Saved};
use resflow::lipschitz::{Coefficient, DenseOperator, PowerIteration, SingularPair};
use resflow::module::Module as _;

const EXACT: Estimator = Estimator::Exact(Exact);

fn net(seed: u64, d: usize, kappa: f64) -> Net {
    let (widths, activation) = (vec![d, 16, d], Nonlinearity::LipSwish);
    Net { seed, widths, activation, leading: true, kappa, stretch: vec![2.0, 2.0], iterations: None }
}

fn roulette(law: Law, exact_terms: usize) -> RussianRoulette {
    RussianRoulette::new(law, exact_terms).expect("in range")
}

fn estimated(d: usize) -> FlowConfig {
    let estimator =
        Estimator::RussianRoulette(roulette(Law::ShiftedGeometric { p: 0.5 }, 2).with_sharing(Sharing::Sample));
    FlowConfig { training: estimator.clone(), evaluation: estimator, ..exact_config(d, 2, &[12]) }
}

/// RF and all that follow: "Lip < 1" from power iteration is stated as a fact, though σ is only approached from below.
#[test]
fn pitfall_01_power_iteration_is_a_lower_bound_and_marked_as_one() {
    let (b, key) = (cpu(), Key::new(1));
    let w = normal(&b, key, [30, 30]);
    let truth = spectral_norm(30, 30, &down(&b, &w));
    let start = SingularPair::random(&b, [30], [30], key.named("start"));
    let operator = DenseOperator::new(&b, &w).expect("a matrix");
    let sigma = |how| down(&b, &start.updated(&b, &operator, how).sigma(&b, &operator))[0];
    let (few, converged) = (sigma(PowerIteration::Iterations(3)), sigma(PowerIteration::converge::<Cpu>()));
    assert!(few < 0.99 * truth && converged <= truth * (1.0 + 8.0 * f64::EPSILON), "{few} {converged} {truth}");
    let y = Batch::new(normal(&b, key, [3, 4]));
    let block = net(1, 4, 0.9).block(&b).prepare(&b);
    assert!(!block.inverse(&b, &y, &Inversion::for_backend::<Cpu>()).expect("no device fault").certified);
}

/// RF: the iteration stops on ‖Δu‖/√n, which is looser the larger the operator.
#[test]
fn pitfall_02_the_stop_does_not_depend_on_the_dimension() {
    let (b, gap) = (cpu(), 0.95_f64);
    for n in [3, 30, 300] {
        // H diag(1, gap, …) H with the reflection H = I − 2hhᵀ: singular values 1, gap, gap², …
        let h = down(&b, &normal(&b, Key::new(2), [n]));
        let h: Vec<f64> = h.iter().map(|x| x / norm(&h)).collect();
        let reflect = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * h[i] * h[j];
        let entry = |e: usize| (0..n).map(|k| reflect(e / n, k) * gap.powi(k as i32) * reflect(k, e % n)).sum();
        let w: Vec<f64> = (0..n * n).map(entry).collect();
        let w = b.upload(&w, [n, n].into());
        let operator = DenseOperator::new(&b, &w).expect("a matrix");
        let pair =
            SingularPair::random(&b, [n], [n], Key::new(3)).updated(&b, &operator, PowerIteration::converge::<Cpu>());
        let sigma = down(&b, &pair.sigma(&b, &operator))[0];
        assert!((sigma - 1.0).abs() < 1e-12, "n = {n}: σ is {:e} off", sigma - 1.0);
    }
}

/// RF, FE, TF: new weights are normalised by the singular vectors of the old ones.
#[test]
fn pitfall_03_refreshed_vectors_belong_to_the_new_weights() {
    let b = cpu();
    let mut layer = linear(&b, 8, 8, 0.9, 3.0, None, Key::new(4));
    let effective = |l: &LipschitzLinear<Cpu>| spectral_norm(8, 8, &down(&b, &l.normalised_weight(&b)));
    let other = b.affine(normal(&b, Key::new(5), [8, 8]), 2.0, 0.0);
    layer.visit_mut("", &mut |name, t, _| {
        if name == "weight" {
            *t = other.clone();
        }
    });
    assert!(effective(&layer) > 1.0, "the old vectors were good enough: choose another matrix");
    layer.update_spectral_norms(&b, PowerIteration::converge::<Cpu>());
    assert!((effective(&layer) - 0.9).abs() < 1e-9);
}

/// RF's class default accepts a chain of norms that bounds nothing; here what is not a contraction is refused.
#[test]
fn pitfall_04_a_block_that_is_no_contraction_is_refused() {
    let b = cpu();
    let free = activation(&b, Nonlinearity::Tanh, Key::new(0));
    let refused = ResidualBlock::new(free, &[3]).expect_err("Lip(g) may be 1");
    assert!(matches!(refused, ConfigError::OutOfRange { name: "Lip(g)", .. }));
    assert!(Coefficient::new(1.0).is_err());
}

/// RF, NF, DN: the inverse stops at (Δx)² < 1e−5, and after 1000 iterations logs a line and returns a wrong answer.
#[test]
fn pitfall_05_the_inverse_reaches_its_accuracy_or_says_that_it_did_not() {
    let b = cpu();
    let block = net(5, 4, 0.99).block(&b);
    let (c, block) = (block.lipschitz_bound().expect("a block"), block.prepare(&b));
    let x = normal(&b, Key::new(5), [20, 4]);
    let y = value(&b, &*block, &x);
    for method in [Method::FixedPoint, Method::Anderson(2)] {
        let how = Inversion::for_backend::<Cpu>().with_method(method).expect("a method");
        let mut last = vec![f64::INFINITY; 20];
        for limit in [1, 2, 3, 5, 8, 13, 21, 200, 2000] {
            let limited = how.with_limit(limit).expect("positive");
            let solution = block.inverse(&b, &Batch::new(y.clone()), &limited).expect("no device fault");
            let again = down(&b, &value(&b, &*block, &solution.value));
            for (r, (report, last)) in solution.reports.iter().zip(&mut last).enumerate() {
                let row = r * 4..r * 4 + 4;
                let y = &down(&b, &y)[row.clone()];
                let scale = y.iter().fold(1.0_f64, |a, y| a.max(y.abs()));
                let left: Vec<f64> = y.iter().zip(&again[row]).map(|(y, z)| y - z).collect();
                // the answer is one contraction better than what was measured, and the error bound says so
                assert!(norm(&left) <= report.error_bound * (1.0 - c) * (1.0 + 1e-9) + 1e-15 * scale, "{report:?}");
                let largest = largest(left.iter().copied()) / scale;
                assert!(report.status != Status::Converged || largest <= how.accuracy(), "{largest:e}: {report:?}");
                // "more iterations make it worse" (issue 3 of invertible-resnet)
                assert!(report.residual <= *last, "worse after {limit}");
                assert_eq!(report.status == Status::Converged, report.residual <= how.accuracy());
                *last = report.residual;
            }
        }
        assert!(last.iter().all(|r| *r <= 1e-12));
    }
}

/// RF, NF, DN: the whole batch iterates until its slowest row is done.
#[test]
fn pitfall_06_a_slow_row_does_not_hold_up_the_batch() {
    let b = cpu();
    let n = 100;
    // g(x) = 0.99 sin x contracts slowly near 0 and fast near π/2
    let mut y = vec![std::f64::consts::FRAC_PI_2 + 0.99; n];
    y[37] = 0.01;
    let evaluated = Cell::new(0);
    let g = |x: &Batch<Cpu>| {
        evaluated.set(evaluated.get() + x.len(&b));
        b.affine(b.unary(resflow::backend::Unary::Sin, x.x.clone()), 0.99, 0.0)
    };
    let how = Inversion::for_backend::<Cpu>().with_method(Method::FixedPoint).expect("a method");
    let y = Batch::new(b.upload(&y, [n, 1].into()));
    let solution = invert_residual(&b, g, &y, 0.99, &how).expect("no device fault");
    let (slow, needed) =
        (solution.reports[37].iterations, solution.reports.iter().map(|r| r.iterations as usize).sum::<usize>());
    assert!(slow > 500 && solution.reports[0].iterations < 20, "{slow}");
    assert!(evaluated.get() <= needed * 4 / 3 + n, "{} rows evaluated, {needed} needed", evaluated.get());
}

/// RF, NF: the surrogate uᵀJv, whose gradient is right, is printed as the loss.
#[test]
fn pitfall_09_surrogate_is_not_the_loss() {
    let (b, d) = (cpu(), 3);
    let prepared = linear(&b, d, d, 0.9, 2.0, None, Key::new(9)).prepare(&b);
    let x = normal(&b, Key::new(9), [4, d]);
    let (_, saved) = prepared.forward(&b, &Batch::new(x.clone()), Derivatives::First);
    let exact = exact_log_det(&b, &*prepared, &saved, 4, &[d], true);
    let mut surrogate = vec![0.0; 4];
    for (v, s) in exact.probes.iter().zip(&exact.surrogates) {
        let own = down(&b, &b.dot_rows(&s.u, &prepared.jvp(&b, &saved, v).0));
        surrogate.iter_mut().zip(own).for_each(|(sum, s)| *sum += s);
    }
    let value = down(&b, &exact.value.0);
    let apart = apart(&surrogate, &value);
    assert!(apart > 0.05, "they happen to agree: {surrogate:?} {value:?}");
    // the loss of a training step is made of values: its mean over keys is the exact one, 5 standard errors away at most
    let flow = random_flow(&b, estimated(d), Key::new(9), 0.2);
    let mut exact = flow.clone();
    exact.set_log_prob_estimator(EXACT, 2).expect("in range");
    let rows = table(d, down(&b, &x));
    let expected = -exact.log_prob(&rows, Key::new(0)).expect("rows").mean() - 1.5 * std::f64::consts::TAU.ln();
    let loss = |k| down(&b, &flow.gradient(&x, None, Key::new(10).split(k)).expect("shapes").loss)[0];
    let (mean, error) = mean_and_error(&(0..2000).map(loss).collect::<Vec<_>>());
    assert!((mean - expected).abs() < 5.0 * error && error < 0.02, "{mean} ± {error}, exact {expected}");
}

/// RF, NF, DN: in a weighted loss the log det of every row is weighed by the first row's weight.
#[test]
fn pitfall_10_each_row_has_its_own_weight() {
    let (b, d) = (cpu(), 3);
    for training in [EXACT, estimated(d).training, Estimator::RussianRoulette(roulette(Law::Poisson { rate: 2.0 }, 2))]
    {
        let flow = random_flow(&b, &FlowConfig { training, ..estimated(d) }, Key::new(10), 0.2);
        // enough rows for shards of several; row i's gradient in x is wᵢ times what it is at weight 1, nobody else's
        let (n, x) = (40, normal(&b, Key::new(11), [40, d]));
        let gradient = |w: &[f64]| {
            let w = b.upload(w, [n, 1].into());
            let gradient = flow.gradient(&x, Some(&w), Key::new(12)).expect("shapes");
            (down(&b, &gradient.flat), down(&b, &gradient.input.expect("asked for")))
        };
        let weights: Vec<f64> = (0..n).map(|i| [2.0, -0.5, 7.0, 0.0][i % 4] + (i / 8) as f64 * 0.1).collect();
        let (flat, input) = gradient(&weights);
        let (_, unit) = gradient(&vec![1.0; n]);
        for (e, (value, unit)) in input.iter().zip(&unit).enumerate() {
            let expected = weights[e / d] * unit;
            assert!((value - expected).abs() < 1e-11 * (1.0 + expected.abs()), "row {}: {value} {expected}", e / d);
        }
        // and the parameters' gradient is the weighted sum of the rows'
        let mut sum = vec![0.0; flat.len()];
        for i in 0..n {
            let only: Vec<f64> = (0..n).map(|j| f64::from(u8::from(i == j))).collect();
            sum.iter_mut().zip(gradient(&only).0).for_each(|(s, g)| *s += weights[i] * g);
        }
        for (value, expected) in flat.iter().zip(sum) {
            assert!((value - expected).abs() < 1e-10 * (1.0 + expected.abs()), "{value} {expected}");
        }
    }
}

/// NX: off by one between N and P(N ≥ k); DN, TF: no (−1)^{k+1}/k; FC: "poisson" is geometric.
#[test]
fn pitfall_11_weights_match_the_law_and_terms_their_signs() {
    for (law, first, second) in [
        (Law::ShiftedGeometric { p: 0.3 }, 1.0, 0.7),
        (Law::Poisson { rate: 1.5 }, 1.0 - (-1.5_f64).exp(), 1.0 - 2.5 * (-1.5_f64).exp()),
    ] {
        assert!((law.survival(0) - 1.0).abs() < 1e-15, "{law}");
        assert!((law.survival(1) - first).abs() < 1e-14 && (law.survival(2) - second).abs() < 1e-14, "{law}");
        // E + N terms; a term that is reached weighs one over the probability of reaching it
        let c = roulette(law, 2).coefficients(&[2]);
        assert_eq!(c[..2], [1.0, 1.0]);
        assert!(
            c.len() == 4 && (c[2] * first - 1.0).abs() < 1e-14 && (c[3] * second - 1.0).abs() < 1e-14,
            "{law}: {c:?}"
        );
    }
    // g(x) = jx: the series is that of ln(1 + j), the vector that of 1/(1 + j)
    let (b, j) = (cpu(), 0.5);
    let layer = linear(&b, 1, 1, j, 1.0, None, Key::new(0)).prepare(&b);
    let one = b.full(1.0, [1, 1].into());
    let slope = down(&b, &layer.jvp(&b, &Saved::tensors(vec![]), &one).0)[0];
    for terms in 1..30 {
        let saved = layer.forward(&b, &Batch::new(one.clone()), Derivatives::First).1;
        let (value, u) = series(&b, &*layer, &saved, &one, &Weights::Batch(vec![1.0; terms]), true);
        let log: f64 = (1..=terms as i32).map(|k| -(-slope).powi(k) / f64::from(k)).sum();
        let inverse: f64 = (0..=terms as i32).map(|k| (-slope).powi(k)).sum();
        assert!((down(&b, &value.0)[0] - log).abs() < 1e-15 && (slope.abs() - j).abs() < 1e-12);
        assert!((down(&b, &u.expect("asked for").u)[0] - inverse).abs() < 1e-15);
    }
}

/// Everyone: settings whose variance is infinite in the worst case are taken without a word.
#[test]
fn pitfall_12_unbounded_variance_is_named() {
    let toy = || roulette(Law::ShiftedGeometric { p: 0.5 }, 2);
    assert!(toy().variance_warning(0.9_f64.powi(5)).is_none());
    for (r, c) in [(toy(), 0.98_f64.powi(3)), (roulette(Law::Poisson { rate: 2.0 }, 20), 0.1)] {
        let warning = r.variance_warning(c).expect("a warning");
        assert!(warning.to_string().starts_with("unbounded-variance"), "{warning}");
        let better = warning.better.expect("a law for this bound");
        assert!(roulette(better, 2).variance_warning(c).is_none(), "{warning}");
    }
    // where no law has a bounded variance none is called better
    for c in [0.99, 0.999, 0.9994, 0.9995, 0.9996, 0.999_99, 0.5_f64.next_up() * 2.0 - f64::EPSILON] {
        let warning = toy().variance_warning(c).expect("a warning");
        assert_eq!(warning.better.is_some(), c < 0.9995, "{c}: {warning}");
        let names = warning.to_string();
        match warning.better {
            Some(better) => {
                assert!(roulette(better, 2).variance_warning(c).is_none() && better.check().is_ok(), "{names}");
            }
            None => assert!(names.contains("a smaller coefficient is needed"), "{names}"),
        }
    }
    let mut config = estimated(6);
    assert!(
        Flow::new(cpu(), &FlowConfig { coefficient: 0.8, ..config.clone() }, Key::new(0))
            .expect("valid")
            .variance_warnings()
            .is_empty()
    );
    config.training = Estimator::RussianRoulette(roulette(Law::Poisson { rate: 2.0 }, 2));
    let flow = Flow::new(cpu(), &config, Key::new(0)).expect("valid");
    assert!(flow.variance_warnings().iter().any(|w| w.law == Law::Poisson { rate: 2.0 }));
}

/// Everyone: evaluation differs from call to call and has no error bar.
#[test]
fn pitfall_13_evaluation_is_reproducible_and_has_an_error() {
    let b = cpu();
    let mut flow = random_flow(&b, estimated(5), Key::new(13), 0.2);
    let x = rows(50, 5, Key::new(14));
    let get = |flow: &Flow<Cpu>, key| flow.log_prob(&x, Key::new(key)).expect("rows");
    let (first, again, other) = (get(&flow, 1), get(&flow, 1), get(&flow, 2));
    assert_eq!(first.values, again.values);
    assert_eq!(first.standard_error, again.standard_error);
    assert!(first.values != other.values && first.standard_error.iter().all(|e| *e > 0.0));
    flow.set_log_prob_estimator(EXACT, 2).expect("in range");
    let exact = get(&flow, 3);
    assert!(exact.standard_error.iter().all(|e| *e == 0.0) && exact.values == get(&flow, 4).values);
    // the errors are neither far too small nor far too large: the mean square of 50 t-like ratios
    let ratio = |i: usize| ((first.values[i] - exact.values[i]) / first.standard_error[i]).powi(2);
    let square = (0..50).map(ratio).sum::<f64>() / 50.0;
    assert!((0.3..3.5).contains(&square), "{square}");
}

/// FE: the log det is a number without a gradient.
#[test]
fn pitfall_14_the_log_det_has_a_gradient() {
    let (b, d) = (cpu(), 3);
    let link = net(14, d, 0.9).block(&b);
    let x = normal(&b, Key::new(14), [4, d]);
    let block = link.prepare(&b);
    let draw = Draw { estimator: &EXACT, key: Key::new(0) };
    let tape = train(&b, &*block, &Batch::new(x.clone()), draw, Memory::Store).tape;
    let mut grads = vec![None; count_grads(&link)];
    let (zeros, ones) = (b.full(0.0, [4, d].into()), b.full(1.0, [4, 1].into()));
    let gx = pull_back(&b, &*block, tape, zeros, &ones, &mut grads);
    block.finish_gradients(&b, &mut grads);
    let log_det = |x: &Tensor| {
        let (_, log_det) = with_log_det(&b, &*block, &Batch::new(x.clone()), draw, 1);
        down(&b, &log_det.value).iter().sum::<f64>()
    };
    let direction = normal(&b, Key::new(15), [4, d]);
    let at = |h: f64| log_det(&b.axpy(h, &direction, x.clone()));
    let (expected, found) = ((at(1e-5) - at(-1e-5)) / 2e-5, inner(&b, &gx, &direction));
    assert!(found.abs() > 1e-2 && (found - expected).abs() < 1e-8, "{found}, by differences {expected}");
    for (i, slot) in grads.iter().enumerate() {
        let size = norm(&down(&b, slot.as_ref().expect("filled")));
        assert!(size > 1e-4 || i == grads.len() - 1, "slot {i}: only the last bias cannot change the log det");
    }
}

/// Everyone: one global generator and one N per device: other numbers on other batches, cuts and devices.
#[test]
fn pitfall_15_randomness_belongs_to_the_row() {
    let b = cpu();
    let flow = random_flow(&b, estimated(4), Key::new(15), 0.2).prepare();
    let x = rows(300, 4, Key::new(16));
    let all = flow.log_prob(&x, Key::new(17)).expect("rows");
    let few = flow.log_prob(&x.select(&(0..7).collect::<Vec<_>>()), Key::new(17)).expect("rows");
    for i in 0..7 {
        assert!(
            (all.values[i] - few.values[i]).abs() < 1e-12
                && (all.standard_error[i] - few.standard_error[i]).abs() < 1e-12
        );
    }
    let how = Inversion::for_backend::<Cpu>();
    let (many, few) = [200, 5].map(|n| flow.sample(n, Key::new(18), &how).expect("no device fault").samples).into();
    assert!(many.values()[..20].iter().zip(few.values()).all(|(a, b)| (a - b).abs() < 1e-11));
}

/// Everyone: two dimensions by a random series, though a 2 × 2 determinant is cheaper and has no error.
#[test]
fn pitfall_16_small_models_are_exact_by_default() {
    let resolved = |d, phase| Flow::new(cpu(), FlowConfig::new(d), Key::new(0)).expect("valid").resolved(phase);
    let phases = [Phase::Training, Phase::Evaluation];
    assert!(phases.into_iter().all(|phase| resolved(2, phase) == EXACT));
    assert!(phases.into_iter().all(|phase| matches!(resolved(64, phase), Estimator::RussianRoulette(_))));
}

/// RF: once (Jᵀ)ᵏv has decayed, subnormal numbers make evaluation 20 times slower than training.
#[test]
fn pitfall_17_no_subnormal_numbers_in_the_series() {
    let b = cpu();
    // rows decay at very different rates: J of a tanh is tiny where the input is large
    let mut net = Net { activation: Nonlinearity::Tanh, ..net(17, 4, 0.95) };
    net.stretch = vec![2.0, 0.5];
    let prepared = net.sequence(&b).prepare(&b);
    let mut x = down(&b, &normal(&b, Key::new(17), [8, 4]));
    x.iter_mut().enumerate().for_each(|(e, x)| *x *= 1.0 + (e / 4) as f64);
    let x = Batch::new(b.upload(&x, [8, 4].into()));
    let (_, saved) = prepared.forward(&b, &x, Derivatives::First);
    let mut v = vec![0.0; 32];
    Noise::Rademacher.fill(Key::new(18), 0, &mut v);
    let probe = b.upload(&v, [8, 4].into());
    let spy = Spy::new(&*prepared);
    let (value, _) = series(&b, &spy, &saved, &probe, &Weights::Batch(vec![1.0; 1000]), true);
    assert_eq!(spy.subnormal.load(Ordering::Relaxed), 0);
    let calls = spy.calls.load(Ordering::Relaxed);
    assert!(calls < 900, "stopped after {calls} of 1000 terms");
    // without the stop there would be subnormal numbers, and the same value
    let (mut power, mut sum, mut met) = (probe.clone(), [0.0; 8], 0);
    for k in 1..=3000 {
        power = prepared.vjp(&b, &saved, power);
        let w = down(&b, &power);
        met += w.iter().filter(|x| x.is_subnormal()).count();
        for (r, sum) in sum.iter_mut().enumerate() {
            *sum -= (-1.0_f64).powi(k) / f64::from(k) * dot(&w[r * 4..r * 4 + 4], &v[r * 4..r * 4 + 4]);
        }
    }
    assert!(met > 0, "the test does not test anything");
    assert!(down(&b, &value.0).iter().zip(sum).all(|(a, s)| (a - s).abs() < 1e-14));
}
