//! The estimators. Exactly, by summing over the law of N and over all sign vectors: the mean of every roulette weight is
//! 1, the mean estimate is the log det and the mean of u vᵀ is (I + J)^{−T}; the truncated series is off by no more than
//! its bound. By drawing from fixed keys: the same means through `draw`, blocks and gradients, for every law, sharing
//! and probe. The z-tests of one test function together raise a false alarm for one choice of keys in 10⁴ (Bonferroni).

use crate::common::asking::{count_grads, pull_back, train, with_log_det};
use crate::common::*;
use nalgebra::DMatrix;
use proptest::prelude::*;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Draw, Memory};
use resflow::block::ResidualBlock;
use resflow::config::{FlowConfig, Nonlinearity};
use resflow::estimator::{
    Estimator, Exact, Law, Probe, RussianRoulette, Sharing, Traces, Truncated, Weights, jacobian, series,
};
use resflow::layer::{Derivatives, Layer as _, LipschitzLinear, Saved};
use resflow::lipschitz::{Coefficient, SingularPair};
use statrs::function::gamma::ln_gamma;

const FALSE_ALARMS: f64 = 1e-4;

fn laws(least: f64) -> impl Strategy<Value = Law> {
    prop_oneof![
        (least..0.95).prop_map(|p| Law::ShiftedGeometric { p }),
        (0.01..=1.0, least..0.95).prop_map(|(reach, p)| Law::Geometric { reach, p }),
        (0.1..20.0).prop_map(|rate| Law::Poisson { rate }),
    ]
}

/// P(N = n) from the textbook, not from the library.
fn mass(law: Law, n: u64) -> f64 {
    match law {
        Law::ShiftedGeometric { p } => {
            if n == 0 {
                0.0
            } else {
                p * (1.0 - p).powf(n as f64 - 1.0)
            }
        }
        Law::Geometric { reach, .. } if n == 0 => 1.0 - reach,
        Law::Geometric { reach, p } => reach * p * (1.0 - p).powf(n as f64 - 1.0),
        Law::Poisson { rate } => (n as f64 * rate.ln() - rate - ln_gamma(n as f64 + 1.0)).exp(),
    }
}

fn roulette(law: Law, exact_terms: usize, draws: usize) -> RussianRoulette {
    RussianRoulette::new(law, exact_terms).and_then(|r| r.with_draws(draws)).expect("in range")
}

/// c_k, zero beyond the last.
fn weight(coefficients: &[f64], k: usize) -> f64 {
    coefficients.get(k - 1).copied().unwrap_or(0.0)
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn roulette_weights_have_mean_one(law in laws(0.05), exact in 0_usize..9) {
        let r = roulette(law, exact, 1);
        let last = law.quantile(1e-6).max(1);
        let most = last + 40 + 800 * u64::from(matches!(law, Law::ShiftedGeometric { .. } | Law::Geometric { .. }));
        let masses: Vec<f64> = (0..most).map(|n| mass(law, n)).collect();
        let mut means = vec![0.0; exact + last as usize];
        for (n, mass) in masses.iter().enumerate() {
            let c = r.coefficients(&[n as u64]);
            prop_assert_eq!(c.len(), exact + n);
            means.iter_mut().enumerate().for_each(|(k, m)| *m += mass * weight(&c, k + 1));
        }
        for (k, mean) in means.into_iter().enumerate() {
            prop_assert!((mean - 1.0).abs() < 1e-9, "{law}, E = {exact}: the mean of c_{} is {mean}", k + 1);
        }
        for m in 0..=last {
            let tail: f64 = masses[m as usize..].iter().sum();
            prop_assert!((law.survival(m) / tail - 1.0).abs() < 1e-9, "{law}: P(N ≥ {m})");
        }
    }

    #[test]
    fn several_draws_have_mean_one(law in laws(0.4), exact in 0_usize..5) {
        let r = roulette(law, exact, 2);
        let most = law.quantile(1e-13) + 2;
        let mut means = vec![0.0; exact + law.quantile(1e-3).max(1) as usize];
        for i in 0..most {
            for j in 0..most {
                let c = r.coefficients(&[i, j]);
                let mass = mass(law, i) * mass(law, j);
                means.iter_mut().enumerate().for_each(|(k, m)| *m += mass * weight(&c, k + 1));
            }
        }
        for (k, mean) in means.into_iter().enumerate() {
            prop_assert!((mean - 1.0).abs() < 1e-8, "{law}, E = {exact}: the mean of c_{} is {mean}", k + 1);
        }
    }
}

/// Every law, E and S through `draw`: frequencies of N and means of c_k over 20,000 keys.
#[test]
fn drawn_weights_have_mean_one() {
    const KEYS: u64 = 20_000;
    let laws = [
        Law::ShiftedGeometric { p: 0.5 },
        Law::ShiftedGeometric { p: 0.2 },
        Law::Poisson { rate: 2.0 },
        Law::Poisson { rate: 7.5 },
    ];
    let settings: Vec<_> = laws
        .iter()
        .flat_map(|&law| [0, 1, 2, 5].map(|e| (law, e)))
        .flat_map(|(l, e)| [1, 3].map(|s| (l, e, s)))
        .collect();
    let mut scores = Vec::new();
    for (i, &(law, exact, draws)) in settings.iter().enumerate() {
        let r = roulette(law, exact, draws);
        let key = Key::new(100 + i as u64);
        let all: Vec<_> = (0..KEYS).map(|k| r.draw(key.split(k))).collect();
        assert!(all.iter().all(|d| d.len() == draws));
        let reach = (law.mean() * 2.0) as u64;
        for m in 1..=reach {
            let survival = law.survival(m);
            let hits: Vec<f64> = all.iter().flatten().map(|&n| f64::from(u8::from(n >= m))).collect();
            let (mean, _) = mean_and_error(&hits);
            if survival < 1.0 {
                scores.push((mean - survival) / (survival * (1.0 - survival) / hits.len() as f64).sqrt());
            } else {
                assert_eq!(mean, 1.0);
            }
            let c: Vec<f64> = all.iter().map(|d| weight(&r.coefficients(d), exact + m as usize)).collect();
            let (mean, error) = mean_and_error(&c);
            if error > 0.0 {
                scores.push((mean - 1.0) / error);
            } else {
                assert_eq!(mean, 1.0);
            }
        }
    }
    let limit = bonferroni(FALSE_ALARMS, scores.len());
    assert!(scores.iter().all(|z| z.abs() < limit), "{} scores above {limit}: {scores:?}", scores.len());
}

/// One row of g's Jacobian data, repeated for many probes; J itself; log det and inverse of I + J by nalgebra.
struct Point {
    b: Cpu,
    net: Box<dyn resflow::layer::PreparedLayer<Cpu>>,
    saved: Saved<Cpu>,
    d: usize,
    log_det: f64,
    inverse: DMatrix<f64>,
}

impl Point {
    fn new(net: &Net) -> Self {
        let (b, d) = (cpu(), net.dimension());
        let prepared = net.sequence(&b).prepare(&b);
        let x = normal(&b, net.key().named("x"), [1, d]);
        let (_, saved) = prepared.forward(&b, &Batch::new(x.clone()), Derivatives::First);
        let j = down(&b, &jacobian(&b, &*prepared, &saved, 1, &[d]));
        let m = DMatrix::from_row_slice(d, d, &j) + DMatrix::identity(d, d);
        let (log_det, inverse) = (m.determinant().ln(), m.try_inverse().expect("invertible"));
        Self { b, net: prepared, saved, d, log_det, inverse }
    }

    /// All sign vectors, each with each list of weights: (mass, value, probe, u).
    fn enumerate(&self, weights: &[(f64, Vec<f64>)]) -> Vec<(f64, f64, Vec<f64>, Vec<f64>)> {
        let signs = 1_usize << self.d;
        let rows = signs * weights.len();
        let sign = |r: usize, i: usize| if (r % signs) >> i & 1 == 1 { 1.0 } else { -1.0 };
        let probes: Vec<f64> = (0..rows * self.d).map(|e| sign(e / self.d, e % self.d)).collect();
        let probe = self.b.upload(&probes, [rows, self.d].into());
        let coefficients: Vec<_> = (0..rows).map(|r| weights[r / signs].1.clone()).collect();
        let (order, sorted) = Weights::rows(&self.b, &coefficients);
        let saved = self.saved.take_rows(&self.b, &vec![0; rows]);
        let taken = self.b.take_rows(&probe, &order);
        let (value, surrogate) = series(&self.b, &*self.net, &saved, &taken, &sorted, true);
        let (value, u) = (down(&self.b, &value.0), down(&self.b, &surrogate.expect("asked for").u));
        let one = |(at, &r): (usize, &u32)| {
            let r = r as usize;
            let (v, u) = (&probes[r * self.d..(r + 1) * self.d], &u[at * self.d..(at + 1) * self.d]);
            (weights[r / signs].0 / signs as f64, value[at], v.to_vec(), u.to_vec())
        };
        order.iter().enumerate().map(one).collect()
    }
}

/// Networks with Lip(g) ≤ 0.5, whose powers vanish within the summed range of N.
fn contractions() -> impl Strategy<Value = Net> {
    let strong = nets(1..=5, &Nonlinearity::ALL, true);
    strong.prop_map(|net| Net { iterations: None, kappa: 0.5_f64.powf(1.0 / (net.widths.len() - 1) as f64), ..net })
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn the_mean_over_signs_and_n_is_exact(net in contractions(), law in laws(0.3), exact in 0_usize..4) {
        let point = Point::new(&net);
        let r = roulette(law, exact, 1);
        let mut weights: Vec<_> = (0..59).map(|n| (mass(law, n), r.coefficients(&[n]))).collect();
        // all the mass beyond counts as N = 59: terms up to there keep mean 1, those left out weigh less than 0.5^59
        weights.push((law.survival(59), r.coefficients(&[59])));
        let (mut value, mut outer) = (0.0, DMatrix::zeros(point.d, point.d));
        for (mass, own, v, u) in point.enumerate(&weights) {
            value += mass * own;
            outer += mass * DMatrix::from_column_slice(point.d, 1, &u) * DMatrix::from_row_slice(1, point.d, &v);
        }
        prop_assert!((value - point.log_det).abs() < 1e-10, "{value}, exact {}", point.log_det);
        let difference = (outer - point.inverse.transpose()).amax();
        prop_assert!(difference < 1e-10, "E[u vᵀ] is {difference:e} off");
    }

    #[test]
    fn truncation_is_within_its_bound(net in contractions(), terms in 1_usize..12) {
        let point = Point::new(&net);
        let truncated = Truncated::new(terms).expect("in range");
        let mean: f64 = point.enumerate(&[(1.0, truncated.coefficients())]).iter().map(|(m, value, ..)| m * value).sum();
        let bound = truncated.bias_bound(point.d, 0.5);
        prop_assert!((mean - point.log_det).abs() <= bound + 1e-13, "{mean}, exact {}, bound {bound}", point.log_det);
        prop_assert!(bound < point.d as f64 * 0.5_f64.powi(terms as i32 + 1) / (terms + 1) as f64 * 2.0 + 1e-15);
    }

    /// A row evaluated alone under its number gives what it gives within its batch.
    #[test]
    fn the_cut_of_the_batch_does_not_matter(
        net in nets(1..=6, &Nonlinearity::ALL, true), law in laws(0.3), sharing in sharing(), probe in probe(),
        draws in 1_usize..3, probes in 1_usize..3, n in 2_usize..7, first in 0_u64..1000, traces in traces(),
    ) {
        let (b, d) = (cpu(), net.dimension());
        let net = Net { iterations: None, ..net };
        let (slots, block) = (count_grads(&net.block(&b)), net.block(&b).prepare(&b));
        let r = roulette(law, 1, draws).with_probes(probes, probe).expect("in range").with_sharing(sharing);
        let r = r.with_traces(traces);
        let estimator = Estimator::RussianRoulette(r);
        let x = normal(&b, net.key().named("x"), [n, d]);
        let run = |start: usize, rows: usize| {
            let draw = Draw { estimator: &estimator, key: net.key() };
            let x = Batch::new(b.narrow(&x, 0, start, rows)).starting_at(first + start as u64);
            let trained = train(&b, &*block, &x, draw, Memory::Store);
            let (values, ones) = (down(&b, &trained.log_det), b.full(1.0, [rows, 1].into()));
            let mut grads = vec![None; slots];
            let gx = pull_back(&b, &*block, trained.tape, b.full(0.0, [rows, d].into()), &ones, &mut grads);
            let evaluated = with_log_det(&b, &*block, &x, draw, 3).1.value;
            (values, down(&b, &gx), down(&b, &evaluated))
        };
        let whole = run(0, n);
        for r in 0..n {
            let alone = run(r, 1);
            let near = |p: &[f64], q: &[f64]| p.iter().zip(q).all(|(p, q)| (p - q).abs() <= 1e-11 * (1.0 + q.abs()));
            prop_assert!(near(&alone.0, &whole.0[r..=r]), "training value");
            prop_assert!(near(&alone.1, &whole.1[r * d..(r + 1) * d]), "gradient in x");
            prop_assert!(near(&alone.2, &whole.2[r * 3..(r + 1) * 3]), "replicates");
        }
    }
}

fn sharing() -> impl Strategy<Value = Sharing> {
    prop_oneof![Just(Sharing::Batch), Just(Sharing::Sample)]
}

fn traces() -> impl Strategy<Value = Traces> {
    prop_oneof![Just(Traces::Probed), Just(Traces::Exact)]
}

fn probe() -> impl Strategy<Value = Probe> {
    prop_oneof![Just(Probe::Rademacher), Just(Probe::Gaussian)]
}

/// Value, gradient in the parameters, gradient in x and replicates, each averaged over keys, against the exact ones.
#[test]
fn estimates_and_gradients_have_the_exact_mean() {
    const KEYS: u64 = 250;
    const ROWS: usize = 32;
    let b = cpu();
    let mut scores = Vec::new();
    for i in 0..32_u64 {
        let (d, law) = (
            1 + i as usize % 8,
            match i % 4 {
                0 => Law::ShiftedGeometric { p: 0.5 },
                1 => Law::ShiftedGeometric { p: 0.35 },
                2 => Law::Poisson { rate: 2.0 },
                _ => Law::Poisson { rate: 4.0 },
            },
        );
        let sharing = if i / 4 % 2 == 0 { Sharing::Batch } else { Sharing::Sample };
        let probe = if i / 8 % 2 == 0 { Probe::Rademacher } else { Probe::Gaussian };
        let r = roulette(law, i as usize / 3 % 3, 1 + i as usize / 16).with_probes(1 + 2 * (i as usize / 5 % 2), probe);
        let traces = if i % 5 < 3 { Traces::Exact } else { Traces::Probed };
        let r = r.expect("in range").with_sharing(sharing).with_traces(traces);
        let estimator = Estimator::RussianRoulette(r);
        let activation = Nonlinearity::ALL[i as usize % Nonlinearity::ALL.len()];
        let net = Net {
            seed: 1000 + i,
            widths: if i % 7 < 4 { vec![d, 7, d] } else { vec![d, 7, 6, d] },
            activation,
            leading: i % 3 == 0,
            kappa: if i % 7 < 4 { 0.75 } else { 0.82 },
            stretch: vec![1.5, if i % 5 == 0 { 0.7 } else { 2.0 }, 1.3],
            iterations: None,
        };
        let (slots, block) = (count_grads(&net.block(&b)), net.block(&b).prepare(&b));
        let x = normal(&b, net.key().named("x"), [1, d]);
        let x = Batch::new(b.take_rows(&x, &[0; ROWS]));
        let shape = x.shape(&b);
        let direction = normal(&b, net.key().named("direction"), [1, d]);
        let weights = b.full(1.0 / ROWS as f64, [ROWS, 1].into());
        // one number a key: value, a projection of the parameters' gradient, one of x's, and the replicates' mean
        let run = |estimator: &Estimator, key: Key| {
            let draw = Draw { estimator, key };
            let trained = train(&b, &*block, &x, draw, Memory::Store);
            let value = inner(&b, &trained.log_det, &weights);
            let mut grads = vec![None; slots];
            let gx = pull_back(&b, &*block, trained.tape, b.full(0.0, shape), &weights, &mut grads);
            block.finish_gradients(&b, &mut grads);
            let mut projection = 0.0;
            for (s, slot) in grads.iter().enumerate() {
                let slot = slot.as_ref().expect("filled");
                projection += inner(&b, slot, &normal(&b, net.key().named("slot").split(s as u64), b.shape(slot)));
            }
            let gx = inner(&b, &gx, &b.take_rows(&direction, &[0; ROWS]));
            let replicates = down(&b, &with_log_det(&b, &*block, &x, draw, 2).1.value);
            [value, projection, gx, replicates.iter().sum::<f64>() / replicates.len() as f64]
        };
        let exact = run(&Estimator::Exact(Exact), Key::new(0));
        let samples: Vec<_> = (0..KEYS).map(|k| run(&estimator, Key::new(77 + i).split(k))).collect();
        for q in 0..4 {
            let (mean, error) = mean_and_error(&samples.iter().map(|s| s[q]).collect::<Vec<_>>());
            if error > 1e-12 {
                scores.push((mean - exact[q]) / error);
            } else {
                assert!((mean - exact[q]).abs() < 1e-10, "{i}, {q}: {mean} and {}", exact[q]);
            }
        }
    }
    let limit = bonferroni(FALSE_ALARMS, scores.len());
    assert!(scores.iter().all(|z| z.abs() < limit), "{} scores above {limit}: {scores:?}", scores.len());
    // and the scores are those of a standard normal: were the errors far too large, nothing would ever be found
    let square = scores.iter().map(|z| z * z).sum::<f64>() / scores.len() as f64;
    assert!((0.6..1.6).contains(&square), "the mean square of {} scores is {square}", scores.len());
}

/// A truncated series of a whole flow is off by no more than the bound that its scores carry, which no standard error holds; the
/// interval does.
#[test]
fn scores_of_a_truncated_series_bound_their_bias() {
    let config = FlowConfig { coefficient: 0.9, ..exact_config(3, 3, &[8]) };
    let flow = random_flow(&cpu(), config, Key::new(4), 2.0);
    let data = rows(20, 3, Key::new(5));
    let exact = flow.log_prob(&data, Key::new(6)).expect("rows that fit");
    assert_eq!((exact.bias_bound, largest(exact.standard_error.iter().copied())), (0.0, 0.0));
    let mut last = f64::INFINITY;
    for terms in [1, 2, 4, 8, 16, 32] {
        let truncated = Truncated { probes: 200, ..Truncated::new(terms).expect("in range") };
        let mut flow = flow.clone();
        flow.set_log_prob_estimator(Estimator::Truncated(truncated.clone()), 16).expect("in range");
        let found = flow.log_prob(&data, Key::new(6)).expect("rows that fit");
        let blocks: Vec<f64> = flow.transforms().iter().filter_map(|t| t.lipschitz_bound()).collect();
        let bound: f64 = blocks.iter().map(|c| truncated.bias_bound(3, *c)).sum();
        assert_eq!(found.bias_bound, bound, "{terms} terms");
        assert!(bound > 0.0 && bound < last, "{terms} terms: {bound}");
        last = bound;
        for (i, (value, error)) in found.values.iter().zip(&found.standard_error).enumerate() {
            // six standard errors of 16 replicates: about 2e-5 a value by Student's t, 2e-3 over all of them
            let off = (value - exact.values[i]).abs();
            assert!(
                off <= bound + 6.0 * error + 1e-9,
                "{terms} terms, row {i}: {off} off, at most {bound} and {error}"
            );
            let (low, high) = found.interval(i, 0.95).expect("a row");
            assert!(high - low > 2.0 * bound, "{terms} terms: {low} to {high}");
        }
    }
    // a roulette has no bias to bound
    let mut flow = flow.clone();
    flow.set_log_prob_estimator(Estimator::RussianRoulette(roulette(Law::Poisson { rate: 2.0 }, 2, 1)), 4)
        .expect("in range");
    assert_eq!(flow.log_prob(&data, Key::new(6)).expect("rows that fit").bias_bound, 0.0);
}

/// g = −c·x is the worst that a bound of c allows: there the bias of the truncated series is its bound, whatever the probe,
/// and it falls with every term.
#[test]
fn the_bound_on_the_bias_is_reached() {
    let (b, d) = (cpu(), 3);
    let identity: Vec<f64> = (0..d * d).map(|e| if e % (d + 1) == 0 { -7.0 } else { 0.0 }).collect();
    let pair = SingularPair::new(&b, b.upload(&[-1.0, 0.0, 0.0], [d].into()), b.upload(&[1.0, 0.0, 0.0], [d].into()));
    for c in [0.3, 0.9, 0.98] {
        let kappa = Coefficient::new(c).expect("a coefficient");
        let weight = b.upload(&identity, [d, d].into());
        let layer = LipschitzLinear::from_parts(&b, weight, b.full(0.0, [d].into()), pair.clone(), kappa);
        let block = ResidualBlock::new(Box::new(layer.expect("shapes that fit")), &[d]).expect("a contraction");
        let (prepared, x) = (block.prepare(&b), Batch::new(normal(&b, Key::new(1), [2, d])));
        let value = |estimator: &Estimator| {
            let draw = Draw { estimator, key: Key::new(2) };
            down(&b, &with_log_det(&b, &*prepared, &x, draw, 1).1.value)[0]
        };
        let exact = value(&Estimator::Exact(Exact));
        assert!((exact - d as f64 * (1.0 - c).ln()).abs() < 1e-12, "c = {c}: {exact}");
        let mut last = f64::INFINITY;
        for terms in 1..40 {
            let truncated = Truncated::new(terms).expect("in range");
            let (bias, bound) = (value(&Estimator::Truncated(truncated.clone())) - exact, truncated.bias_bound(d, c));
            assert!((bias - bound).abs() < 1e-12, "c = {c}, {terms} terms: {bias:e}, bound {bound:e}");
            assert!(bias <= last, "c = {c}, {terms} terms: {bias:e} after {last:e}");
            last = bias;
        }
    }
}
