//! Whole flows: the gradient of the exact, weighted negative log likelihood by differences in every parameter and in x;
//! round trips in both precisions; results that do not depend on the number of threads, bit for bit; and intervals that
//! cover what they say. The intervals are counted over 1,000 fixed keys, where the issue asks for 93 to 97 % of 95 %: for
//! an interval that covers exactly 95 %, one count in 270 would fall outside for other keys.

use std::num::NonZeroUsize;

use crate::common::*;
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key, Noise};
use resflow::config::{FlowConfig, Nonlinearity};
use resflow::data::Standardiser;
use resflow::estimator::{Estimator, Exact, Law, Probe, RussianRoulette, Sharing};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Method, Status};
use resflow::lipschitz::PowerIteration;
use resflow::module::Role;

fn configs(activations: &'static [Nonlinearity]) -> impl Strategy<Value = FlowConfig> {
    let activation = (proptest::sample::select(activations), exact_families());
    (1_usize..=3, 1_usize..=2, proptest::collection::vec(1_usize..5, 1..3), activation, any::<bool>(), any::<bool>())
        .prop_map(|(d, blocks, hidden, (activation, model), actnorm, leading_activation)| FlowConfig {
            model,
            activation,
            actnorm,
            leading_activation,
            // a coupling needs two sides
            ..exact_config(if model.couples() { d.max(2) } else { d }, blocks, &hidden)
        })
}

/// −Σ wᵢ log p(xᵢ), exactly.
fn objective(flow: &Flow<Cpu>, x: &[f64], weights: &[f64]) -> f64 {
    let log_p = flow.log_prob(&table(flow.dimension(), x.to_vec()), Key::new(0)).expect("rows that fit");
    assert!(log_p.replicates == 1 && log_p.standard_error.iter().all(|&e| e == 0.0));
    -dot(&log_p.values, weights)
}

/// A derivative at 0 by Richardson's extrapolation of central differences.
fn slope(f: impl Fn(f64) -> f64) -> f64 {
    let central = |h: f64| (f(h) - f(-h)) / (2.0 * h);
    (4.0 * central(1e-4) - central(2e-4)) / 3.0
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn the_gradient_is_that_of_the_weighted_likelihood(config in configs(&SMOOTH), seed: u64, n in 1_usize..24) {
        let (b, key) = (cpu(), Key::new(seed));
        let flow = random_flow(&b, &config, key, 0.3);
        // differences must not straddle the kink of the normalisation
        let spectra = flow.spectra().expect("no device fault");
        prop_assume!(spectra.iter().flatten().all(|s| (s.sigma / s.coefficient - 1.0).abs() > 5e-3));
        let d = config.dimension;
        let x = rows(n, d, key.named("x")).into_values();
        // weights of both signs, and one row without any
        let mut weights = vec![0.0; n];
        Noise::Normal.fill(key.named("weights"), 0, &mut weights);
        weights[n / 2] = 0.0;
        let w = b.upload(&weights, [n, 1].into());
        let gradient = flow.gradient(&b.upload(&x, [n, d].into()), Some(&w), key).expect("shapes that fit");
        let constant = 0.5 * d as f64 * std::f64::consts::TAU.ln() * weights.iter().sum::<f64>();
        let (loss, expected) = (down(&b, &gradient.loss)[0] + constant, objective(&flow, &x, &weights));
        prop_assert!((loss - expected).abs() < 1e-11 * (1.0 + expected.abs()), "loss {loss}, exact {expected}");

        let scale = 1.0 + norm(&down(&b, &gradient.flat));
        let input = down(&b, gradient.input.as_ref().expect("asked for"));
        for (e, value) in input.iter().enumerate() {
            let moved = |h: f64| {
                let mut x = x.clone();
                x[e] += h;
                objective(&flow, &x, &weights)
            };
            let expected = slope(moved);
            prop_assert!((value - expected).abs() < 1e-7 * scale, "x[{e}]: {value}, by differences {expected}");
            prop_assert!(weights[e / d] != 0.0 || *value == 0.0);
        }
        let flat = down(&b, &gradient.flat);
        prop_assert_eq!(flat.len() as u64, flow.parameters());
        prop_assert_eq!(flat.len() as u64, config.parameters());
        for (p, value) in flat.iter().enumerate() {
            let moved = |h: f64| {
                let (mut flow, mut at) = (flow.clone(), 0);
                flow.visit_mut(&mut |_, t, role| {
                    let n = b.shape(t).elements();
                    if role.is_trained() {
                        if (at..at + n).contains(&p) {
                            let mut values = down(&b, t);
                            values[p - at] += h;
                            *t = b.upload(&values, b.shape(t));
                        }
                        at += n;
                    }
                });
                objective(&flow, &x, &weights)
            };
            let expected = slope(moved);
            prop_assert!((value - expected).abs() < 1e-7 * scale, "parameter {p}: {value}, by differences {expected}");
        }
    }

    #[test]
    fn round_trips(
        config in configs(&Nonlinearity::ALL), blocks in 1_usize..6, seed: u64, history in 0_usize..=5, spread in 0.1..10.0,
    ) {
        let method = if history == 0 { Method::FixedPoint } else { Method::Anderson(history) };
        let config = FlowConfig { blocks, ..config };
        // where nothing bounds how much the way back stretches, not too far out
        let spread = if config.model.couples() { f64::min(spread, 2.0) } else { spread };
        round_trip(&cpu(), &config, seed, method, spread, 1e-10)?;
        round_trip(&NdArray::<f32>::with_threads(NonZeroUsize::MIN).expect("one thread"), &config, seed, method, spread, 2e-4)?;
    }
}

fn round_trip<B: Backend>(
    b: &B,
    config: &FlowConfig,
    seed: u64,
    method: Method,
    spread: f64,
    tolerance: f64,
) -> Result<(), TestCaseError> {
    let key = Key::new(seed);
    let mut flow = random_flow(b, config, key, 0.2);
    let d = config.dimension;
    let standardiser = Standardiser::new(vec![3.0; d], vec![2.5; d]).expect("positive");
    flow.set_standardiser(standardiser).expect("of the width");
    let x: Vec<f64> = rows(12, d, key.named("x")).values().iter().map(|x| x * spread).collect();
    let x = table(d, x);
    let prepared = flow.prepare();
    let encoded = prepared.encode(&x, key).expect("rows that fit");
    let how = Inversion::for_backend::<B>().with_method(method).expect("a method");
    let decoded = prepared.decode(&encoded.latents, &how).expect("rows that fit");
    for ((x, found), report) in x.values().chunks(d).zip(decoded.samples.values().chunks(d)).zip(&decoded.reports) {
        prop_assert!(report.status <= Status::FloatFloor, "{report:?}");
        let scale = x.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
        let limit = 100.0 * how.accuracy().max(8.0 * B::Elem::EPSILON);
        prop_assert!(report.residual <= limit, "{report:?}");
        // nothing bounds what a coupling makes of an error on the way back
        if config.model.couples() {
            continue;
        }
        let error = largest(x.iter().zip(found).map(|(x, f)| x - f));
        prop_assert!(error <= tolerance * scale, "off by {error:e}");
    }
    // log p is the base density at z and the log det
    let log_p = prepared.log_prob(&x, key).expect("rows that fit");
    for (i, z) in encoded.latents.values().chunks(d).enumerate() {
        let base: f64 = z.iter().map(|z| -0.5 * (z * z + std::f64::consts::TAU.ln())).sum();
        let expected = base + encoded.log_det[i];
        prop_assert!((log_p.values[i] - expected).abs() <= 1e-12 * (1.0 + expected.abs()));
    }
    Ok(())
}

fn roulette(probes: usize) -> RussianRoulette {
    let law = Law::ShiftedGeometric { p: 0.5 };
    let it = RussianRoulette::new(law, 2).and_then(|r| r.with_probes(probes, Probe::Rademacher)).expect("in range");
    it.with_sharing(Sharing::Sample)
}

fn estimated(d: usize, hidden: &[usize], replicates: usize) -> FlowConfig {
    FlowConfig {
        coefficient: 0.8,
        training: Estimator::RussianRoulette(roulette(1)),
        evaluation: Estimator::RussianRoulette(roulette(1)),
        replicates,
        ..exact_config(d, 3, hidden)
    }
}

/// Gradient, log p, samples and both directions on 1, 2 and 3 threads: the same bits, in both precisions.
#[test]
fn threads_do_not_change_a_bit() {
    fn bits<E: resflow_ndarray_element::Float>(threads: usize, sharing: Sharing) -> Vec<Vec<u64>>
    where
        NdArray<E>: Backend<Elem = E>,
    {
        let b = E::backend(NonZeroUsize::new(threads).expect("positive"));
        let mut config = estimated(5, &[17, 23], 3);
        config.training = Estimator::RussianRoulette(roulette(2).with_sharing(sharing));
        let flow = random_flow(&b, &config, Key::new(5), 0.1);
        let x = rows(403, 5, Key::new(6));
        let tensor = b.upload(&x.to_elements::<E>(), [403, 5].into());
        let gradient = flow.gradient(&tensor, None, Key::new(7)).expect("shapes that fit");
        let log_p = flow.log_prob(&x, Key::new(8)).expect("rows that fit");
        let sample = flow.sample(301, Key::new(9)).expect("no device fault");
        let get = |t: &<NdArray<E> as Backend>::Tensor| {
            b.download(t).expect("no device fault").iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>()
        };
        let host = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        vec![
            get(&gradient.flat),
            get(&gradient.loss),
            get(&gradient.input.expect("asked for")),
            host(&log_p.values),
            host(&log_p.standard_error),
            host(sample.samples.values()),
            host(&sample.reports.iter().map(|r| r.error_bound).collect::<Vec<_>>()),
        ]
    }
    for sharing in [Sharing::Batch, Sharing::Sample] {
        let (single, double) = (bits::<f32>(1, sharing), bits::<f64>(1, sharing));
        for threads in [2, 3] {
            assert!(bits::<f32>(threads, sharing) == single, "f32 on {threads} threads");
            assert!(bits::<f64>(threads, sharing) == double, "f64 on {threads} threads");
        }
    }
}

/// The CPU backend of either precision.
mod resflow_ndarray_element {
    use super::{NdArray, NonZeroUsize};
    use resflow::backend::Element;

    pub(crate) trait Float: Element {
        fn backend(threads: NonZeroUsize) -> NdArray<Self>;
    }
    impl Float for f32 {
        fn backend(threads: NonZeroUsize) -> NdArray<f32> {
            NdArray::with_threads(threads).expect("threads")
        }
    }
    impl Float for f64 {
        fn backend(threads: NonZeroUsize) -> NdArray<f64> {
            NdArray::with_threads(threads).expect("threads")
        }
    }
}

const KEYS: u64 = 1000;

fn exact_values(flow: &Flow<Cpu>, x: &resflow::data::Table) -> Vec<f64> {
    let mut exact = flow.clone();
    exact.set_log_prob_estimator(Estimator::Exact(Exact), 2).expect("in range");
    exact.log_prob(x, Key::new(0)).expect("rows that fit").values
}

/// J ≈ 0.64 everywhere and no exact terms: most of the error comes from N, not from the probes.
fn strong(b: &Cpu, replicates: usize) -> Flow<Cpu> {
    let law = Law::ShiftedGeometric { p: 0.3 };
    let evaluation = Estimator::RussianRoulette(RussianRoulette::new(law, 0).expect("in range"));
    let activation = Nonlinearity::Elu;
    let config = FlowConfig { evaluation, activation, leading_activation: false, ..estimated(4, &[4], replicates) };
    let mut flow = random_flow(b, &config, Key::new(44), 0.05);
    let identity: Vec<f64> = (0..16).map(|e| if e % 5 == 0 { 2.0 } else { 0.0 }).collect();
    flow.visit_mut(&mut |name, t, role| {
        if role == Role::Weight {
            *t = b.axpy(0.2, t, b.upload(&identity, [4, 4].into()));
        } else if name.ends_with("net.0.bias") {
            *t = b.full(4.0, [4].into());
        }
    });
    flow.update_spectral_norms(PowerIteration::converge::<Cpu>());
    flow
}

/// A row's 95 % interval over replicates covers its exact log p for 93 to 97 % of the keys.
#[test]
fn intervals_of_rows_cover() {
    let b = cpu();
    for (d, replicates) in [(6, 8), (3, 16), (4, 8)] {
        let flow = if d == 4 {
            strong(&b, replicates)
        } else {
            random_flow(&b, estimated(d, &[16, 16], replicates), Key::new(40 + d as u64), 0.2)
        };
        let x = rows(4, d, Key::new(41));
        let exact = exact_values(&flow, &x);
        let prepared = flow.prepare();
        let mut covered = [0; 4];
        for key in 0..KEYS {
            let log_p = prepared.log_prob(&x, Key::new(42).split(key)).expect("rows that fit");
            assert_eq!(log_p.replicates, replicates);
            for i in 0..4 {
                let (low, high) = log_p.interval(i, 0.95).expect("a confidence");
                covered[i] += u64::from(low <= exact[i] && exact[i] <= high);
            }
        }
        assert!(covered.iter().all(|c| (930..=970).contains(c)), "d = {d}: {covered:?} of {KEYS}");
    }
}

/// mean ± 1.96 standard errors covers E[log p] for 93 to 97 % of the keys, each with fresh rows.
#[test]
fn intervals_of_means_cover() {
    const ROWS: usize = 100;
    let (b, d) = (cpu(), 4);
    let flow = random_flow(&b, estimated(d, &[12], 8), Key::new(50), 0.2);
    let many = exact_values(&flow, &rows(400_000, d, Key::new(51)));
    let (truth, error) = mean_and_error(&many);
    let prepared = flow.prepare();
    let (mut covered, mut typical) = (0, 0.0);
    for key in 0..KEYS {
        let key = Key::new(52).split(key);
        let log_p = prepared.log_prob(&rows(ROWS, d, key.named("rows")), key).expect("rows that fit");
        let half = 1.96 * log_p.mean_standard_error();
        covered += u64::from((log_p.mean() - truth).abs() <= half);
        typical += half / KEYS as f64;
    }
    assert!(error < 0.02 * typical, "the truth is known to {error:e} only, half width {typical:e}");
    assert!((930..=970).contains(&covered), "{covered} of {KEYS}");
}
