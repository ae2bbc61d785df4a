//! Continuous flows over images: the trace is that of the numeric Jacobian, where the net says it and where it is computed by products; one
//! probe a sample estimates it without bias and is the same for a whole solve; gradients are those by differences with either solver; decoding
//! undoes encoding. Keys are fixed.

use crate::common::bijections::log_det_by_steps;
use crate::common::*;
use crate::properties::families::{moved, trained};
use proptest::prelude::*;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::config::{Family, ImageConfig};
use resflow::data::Table;
use resflow::flow::{Flow, Objective};
use resflow::invert::{Inversion, Status};
use resflow::train::{Budget, Source, TrainConfig, Trainer};

/// A flow of one or two scales, whose net says its trace if the kernels are 3, 1, 3 or 3, 3.
fn config(image: [usize; 3], scales: usize, kernels: &[usize], solver: &str) -> ImageConfig {
    let solver: resflow::stage::OdeSolver = solver.parse().expect("a solver");
    let flow = exact_images(image, &vec![1; scales]).of(Family::Ffjord);
    ImageConfig { filters: 2, kernels: kernels.to_vec(), solver, evaluation_solver: solver, initial_scale: 1.0, ..flow }
}

fn kernels() -> impl Strategy<Value = Vec<usize>> {
    proptest::sample::select(vec![vec![3, 1, 3], vec![3, 3], vec![3, 3, 3], vec![3, 1, 1, 3], vec![1, 3]])
}

fn values(flow: &Flow<Cpu>, rows: &Table) -> Vec<f64> {
    let scores = flow.log_prob(rows, Key::new(0)).expect("rows that fit");
    assert_eq!(scores.replicates, 1, "{}", scores.estimator);
    scores.values
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn log_det_and_inverse(seed: u64, kernels in kernels(), scales in 1_usize..=2, c in 1_usize..=2, factor_out: bool) {
        let (b, key, image) = (cpu(), Key::new(seed), [2, 2, c]);
        let config = ImageConfig { factor_out, ..config(image, scales, &kernels, "dopri5:rtol=1e-11,atol=1e-12") };
        let flow = random_flow(&b, &config, key, 0.3);
        prop_assert_eq!(flow.parameters(), flow.config().parameters());
        let (d, prepared) = (config.dimension(), flow.prepare());
        let rows = uniform_rows(2, d, key.named("x"));
        let encoded = prepared.encode(&rows, key).expect("rows that fit");
        prop_assert!(encoded.standard_error.iter().all(|&e| e == 0.0));
        let z = |x: &Tensor| {
            let z = prepared.encode(&table(d, down(&b, x)), key).expect("rows that fit").latents;
            b.upload(z.values(), b.shape(x))
        };
        let by_steps = log_det_by_steps(&b, &b.upload(rows.values(), [2, d].into()), 1e-4, z);
        for (value, expected) in encoded.log_det.iter().zip(by_steps) {
            prop_assert!((value - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{value} and {expected}, {kernels:?}");
        }
        let back = prepared.decode(&encoded.latents, &Inversion::for_backend::<Cpu>()).expect("rows that fit");
        let apart = apart(back.samples.values(), rows.values());
        prop_assert!(apart < 1e-8, "{apart:e}");
        prop_assert!(back.reports.iter().all(|report| report.status == Status::Converged));
    }

    /// With the same steps in both, the loss that a gradient belongs to is log p, and its differences are the gradient.
    #[test]
    fn gradients_are_those_by_differences(seed: u64, kernels in kernels(), c in 1_usize..=2, adaptive: bool) {
        let (b, key, image) = (cpu(), Key::new(seed), [2, 2, c]);
        let solver = if adaptive { "dopri5:rtol=1e-9,atol=1e-10" } else { "rk4:steps=3" };
        let flow = random_flow(&b, config(image, 2, &kernels, solver), key, 0.2);
        let rows = uniform_rows(2, 4 * c, key.named("x"));
        let weights = [0.75, -0.5];
        let batch = Batch::new(b.upload(&as_images(rows.values(), image), [2, 2, 2, c].into()));
        let objective = Objective {
            batch: &batch,
            weights: &b.upload(&weights, [2, 1].into()),
            key,
            memory: Memory::Store,
            input_gradient: false,
            supervision: None,
        };
        let flat = down(&b, &flow.prepare().gradient(&objective).expect("finite").flat);
        let mut at = 0;
        for (which, (name, count)) in trained(&flow).into_iter().enumerate() {
            let mut direction = vec![0.0; count];
            Noise::Normal.fill(key.named("direction").split(which as u64), 0, &mut direction);
            let value = |h: f64| -dot(&values(&moved(&b, &flow, which, &direction, h), &rows), &weights);
            let expected = (value(1e-4) - value(-1e-4)) / 2e-4;
            let found = dot(&flat[at..at + count], &direction);
            at += count;
            prop_assert!((found - expected).abs() < 2e-5 * (1.0 + expected.abs()), "{name}, {kernels:?}: {found} and {expected}");
        }
        prop_assert_eq!(at, flat.len());
    }
}

/// One probe a sample: the mean over many is the exact value to four standard errors (of two samples a chance of 1.3e-4 to fail), and with a key
/// a solve is the same function of its sample, however the batch is cut.
#[test]
fn a_probe_estimates_the_trace() {
    let (b, key) = (cpu(), Key::new(3));
    let exact = random_flow(&b, config([2, 2, 1], 1, &[3, 3, 3], "dopri5:rtol=1e-9"), key, 0.3);
    let rows = uniform_rows(2, 4, Key::new(4));
    let expected = values(&exact, &rows);
    let mut probed = exact.clone();
    probed.set_log_prob_estimator("truncated:terms=1".parse().expect("a text"), 400).expect("in range");
    let found = probed.log_prob(&rows, Key::new(5)).expect("rows that fit");
    assert!(found.replicates == 400);
    for ((value, error), expected) in found.values.iter().zip(&found.standard_error).zip(&expected) {
        assert!(*error > 0.0 && (value - expected).abs() < 4.0 * error, "{value} ± {error}, exact {expected}");
    }
    let alone = probed.prepare().log_prob_from(&table(4, rows.values()[4..].to_vec()), 1, Key::new(5)).expect("a row");
    assert!((alone.values[0] - found.values[1]).abs() < 1e-6, "{} and {}", alone.values[0], found.values[1]);
    // a net that says its trace has no use for probes
    let mut known = random_flow(&b, config([2, 2, 1], 1, &[3, 1, 3], "dopri5:rtol=1e-9"), key, 0.3);
    let before = values(&known, &rows);
    known.set_log_prob_estimator("truncated:terms=1".parse().expect("a text"), 2).expect("in range");
    assert_eq!(values(&known, &rows), before);
}

/// Convolutions are free of the image size.
#[test]
fn other_sizes() {
    let flow = random_flow(&cpu(), config([2, 2, 1], 2, &[3, 1, 3], "rk4:steps=4"), Key::new(6), 0.2);
    let larger = flow.resized(4, 6).expect("an even size");
    assert_eq!(values(&larger, &uniform_rows(2, 24, Key::new(7))).len(), 2);
    assert!(flow.resized(3, 4).is_err());
}

#[test]
fn what_is_refused() {
    let refused = |config: ImageConfig| config.check().expect_err("refused").to_string();
    let of = || config([2, 2, 1], 1, &[3, 1, 3], "rk4:steps=4");
    assert!(refused(ImageConfig { fully_connected: 2, ..of() }).contains("fully_connected"));
    let settings = TrainConfig { objective: "flow-matching".parse().expect("an objective"), ..TrainConfig::default() };
    let (flow, set) = (Flow::new(cpu(), of(), Key::new(0)).expect("valid"), images(8, [2, 2, 1], Key::new(1)));
    let run = Trainer::new(flow, Source::from(set), &settings, Budget::Steps(1), Key::new(2));
    assert!(run.expect_err("rows only").to_string().contains("is for rows of numbers"));
    assert!(refused(ImageConfig { norms: "2112".parse().expect("norms"), ..of() }).contains("norms"));
    let solver = resflow::stage::OdeSolver::Rk4 { steps: 0 };
    assert!(
        ImageConfig { solver, ..of() }.check().is_err()
            && ImageConfig { evaluation_solver: solver, ..of() }.check().is_err()
    );
}
