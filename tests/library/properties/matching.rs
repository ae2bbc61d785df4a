//! Flow matching: its gradient by differences, fields of Gaussians that are known in closed form, runs that go on to the bit, and what it is
//! refused for. Seeds are fixed.

use proptest::prelude::*;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::Regression;
use resflow::checkpoint::Archive;
use resflow::config::{ContextConfig, Family, FlowConfig};
use resflow::data::{Dataset, Table, ToyDensity};
use resflow::flow::{Flow, FlowMatching, Pairing, TrainingObjective};
use resflow::train::{Budget, Source, TrainConfig, Trainer};

use super::decode_gradient::{direction, moved, shift};
use crate::common::bijections::slope;
use crate::common::*;

fn continuous(dimension: usize) -> FlowConfig {
    FlowConfig { hidden: vec![6, 5], ..FlowConfig::of(Family::Ffjord, dimension) }
}

fn settings(objective: &str) -> TrainConfig {
    let objective = objective.parse().expect("an objective");
    TrainConfig { objective, batch: 32, validation_rows: 20, validate_every: 1000, ..TrainConfig::default() }
}

proptest! {
    #![proptest_config(cases(20))]

    /// The gradient in f and in the embedding of contexts is that by differences, whatever the pairs, the weights and the noise;
    /// what is no part of f has none.
    #[test]
    fn gradients_are_those_by_differences(seed: u64, d in 1_usize..4, n in 1_usize..6, optimal: bool, noise in 0.0..0.3) {
        let (b, key) = (cpu(), Key::new(seed));
        let context = (!optimal).then(|| ContextConfig { embedding: vec![4], ..ContextConfig::new(2) });
        let given = context.is_some();
        let mut flow = moved(&FlowConfig { context, ..continuous(d) }.into(), 0.3);
        let ode = flow.transforms().iter().position(|t| t.describe().starts_with("ODE flow")).expect("there is one");
        let fitted = |name: &str| name.starts_with(&format!("links.{ode}.")) || name.starts_with("embedding.");
        // what is not fitted would move the ends of the paths with the context
        flow.visit_mut(&mut |name, t, role| {
            if role.is_trained() && !fitted(name) {
                *t = b.affine(t.clone(), 0.0, 0.0);
            }
        });
        let batch = Batch::new(normal(&b, key.named("x"), [n, d])).starting_at(seed % 7);
        let batch = batch.with_context(given.then(|| normal(&b, key.named("c"), [n, 2])));
        let weights = normal(&b, key.named("weights"), [n, 1]);
        let pairing = if optimal { Pairing::Optimal } else { Pairing::Independent };
        let matching = FlowMatching { pairing, noise, ..FlowMatching::default() };
        let at = |flow: &Flow<Cpu>| {
            let found = flow.prepare().matching_gradient(&matching, &batch, &weights, key).expect("no device fault");
            (down(&b, &found.loss)[0], down(&b, &found.flat))
        };
        let mut towards = direction(&flow, key.named("direction"));
        let mut place = 0;
        flow.visit(&mut |name, t, role| {
            let count = if role.is_trained() { b.shape(t).elements() } else { 0 };
            if !fitted(name) {
                towards[place..place + count].fill(0.0);
            }
            place += count;
        });
        let found = dot(&at(&flow).1, &towards);
        let expected = slope(|h| {
            let mut moved = flow.clone();
            shift(&mut moved, &towards, h);
            at(&moved).0
        });
        prop_assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{found}, by differences {expected}");
    }

    /// Objectives are read as they are written.
    #[test]
    fn objectives_are_read_as_written(optimal: bool, noise in prop_oneof![Just(0.0), 0.0..10.0], fine_tune in prop_oneof![Just(0.0), 0.0..0.99]) {
        let pairing = if optimal { Pairing::Optimal } else { Pairing::Independent };
        for objective in [TrainingObjective::Likelihood, TrainingObjective::FlowMatching(FlowMatching { pairing, noise, fine_tune })] {
            prop_assert_eq!(objective.to_string().parse::<TrainingObjective>().expect("its text"), objective);
        }
    }
}

/// Between N(0, I) and N(m, S) the velocity is m + (t S − (1 − t) I) C⁻¹ (x − t m), C = (1 − t)² I + t² S, which training finds, by
/// independent pairs; by optimal pairs of large batches paths are straight and the density is the same.
#[test]
fn gaussians_have_affine_fields() {
    let b = cpu();
    // deviations 1 and correlation ρ, so that standardised rows are as these are
    let rho = 0.8_f64;
    let noise = down(&b, &normal(&b, Key::new(1), [6000, 2]));
    let values = noise.chunks_exact(2).flat_map(|e| [e[0], rho * e[0] + (1.0 - rho * rho).sqrt() * e[1]]);
    let rows = Dataset::from(Table::new(None, 2, values.collect()).expect("rows"));
    for (objective, steps) in [("flow-matching", 1500), ("flow-matching:pairing=optimal", 700)] {
        let config = FlowConfig { hidden: vec![32, 32], ..continuous(2) };
        let flow = Flow::new(b.clone(), config, Key::new(2)).expect("valid");
        let train = TrainConfig { batch: 128, average: 0.99, learning_rate: 5e-3, ..settings(objective) };
        let mut trainer = Trainer::new(flow, rows.clone(), &train, Budget::Steps(steps), Key::new(3)).expect("valid");
        trainer
            .run(|report, _| assert!(report.train_nll.is_nan() && report.matching.is_some_and(f64::is_finite)))
            .expect("steps");
        let model = trainer.averaged();

        let x = normal(&b, Key::new(4), [500, 2]);
        let points = Table::new(None, 2, down(&b, &x)).expect("rows");
        let found = model.prepare().log_prob(&points, Key::new(0)).expect("scores");
        let log_p = |x: &[f64]| {
            let square = (x[0] * x[0] - 2.0 * rho * x[0] * x[1] + x[1] * x[1]) / (1.0 - rho * rho);
            -0.5 * square - (2.0 * std::f64::consts::PI).ln() - 0.5 * (1.0 - rho * rho).ln()
        };
        // where the density has its mass
        let inside: Vec<_> = (0..500).filter(|&i| log_p(points.row(i)) > -5.0).collect();
        let apart =
            inside.iter().map(|&i| (found.values[i] - log_p(points.row(i))).abs()).sum::<f64>() / inside.len() as f64;
        assert!(inside.len() > 200 && apart < 0.1, "{objective}: log p is {apart} nats off in the mean");
        if objective != "flow-matching" {
            continue;
        }

        let prepared = model.prepare();
        let velocity = prepared.chain().transform(0).velocity().expect("an ODE");
        for t in [0.1, 0.5, 0.9] {
            let [diagonal, beside] = [(1.0 - t) * (1.0 - t) + t * t, t * t * rho];
            // both matrices have the eigenvectors (1, ±1)/√2
            let factor = |sign: f64| (t * (1.0 + sign * rho) - (1.0 - t)) / (diagonal + sign * beside);
            let drawn = down(&b, &normal(&b, Key::new(5), [200, 2]));
            let scale = |sign: f64| (diagonal + sign * beside).sqrt();
            let (mut at, mut targets) = (Vec::new(), Vec::new());
            for e in drawn.chunks_exact(2) {
                let (p, m) = (scale(1.0) * e[0], scale(-1.0) * e[1]);
                let back = |p: f64, m: f64| [(p + m) / 2.0_f64.sqrt(), (p - m) / 2.0_f64.sqrt()];
                at.extend(back(p, m));
                targets.extend(back(factor(1.0) * p, factor(-1.0) * m));
            }
            let regression = Regression {
                batch: &Batch::new(b.upload(&at, [200, 2].into())),
                times: &[t; 200],
                targets: &b.upload(&targets, [200, 2].into()),
                weights: &b.full(1.0 / 400.0, [200, 1].into()),
            };
            let mut grads = vec![None; prepared.chain().grads()];
            let square = down(&b, &velocity.regress(&b, &regression, &mut grads, &mut None))[0];
            assert!(square.sqrt() < 0.25, "t = {t}: the field is {} off", square.sqrt());
        }
    }
}

/// A run that is resumed makes the steps of one that was not interrupted, also where fine-tuning begins.
#[test]
fn runs_go_on_to_the_bit() {
    for objective in ["flow-matching:fine-tune=0.3", "flow-matching:pairing=optimal,noise=0.1,fine-tune=0.3"] {
        let flow = Flow::new(cpu(), continuous(2), Key::new(3)).expect("valid");
        let source = || Source::Density(ToyDensity::Moons);
        let train = TrainConfig { accumulate: 2, ..settings(objective) };
        let mut whole = Trainer::new(flow, source(), &train, Budget::Steps(20), Key::new(5)).expect("valid");
        let steps = |trainer: &mut Trainer<Cpu>, count: usize| -> Vec<_> {
            (0..count).map(|_| trainer.step().expect("finite")).collect()
        };
        let first = steps(&mut whole, 8);
        let bytes = whole.to_archive().expect("stored").to_bytes().expect("stored");
        let last = steps(&mut whole, 12);
        assert!(
            first.iter().chain(&last).take(14).all(|r| r.train_nll.is_nan() && r.matching.is_some()),
            "{first:?} {last:?}"
        );
        assert!(last[6..].iter().all(|r| r.train_nll.is_finite() && r.matching.is_none()), "{last:?}");
        let mut resumed =
            Trainer::resume(cpu(), &Archive::from_bytes(&bytes).expect("ours"), source()).expect("a state");
        // numbers that are NaN are equal as texts
        assert_eq!(format!("{:?}", steps(&mut resumed, 12)), format!("{last:?}"));
        let model =
            |trainer: &Trainer<Cpu>| trainer.averaged().to_archive().expect("stored").to_bytes().expect("stored");
        assert!(model(&resumed) == model(&whole));
    }
}

/// Flows without one velocity, pairs that would bias and batches that are too large are refused with the remedy; likelihood leaves no trace
/// in a run's settings.
#[test]
fn what_cannot_be_matched_is_refused() {
    let start = |config: FlowConfig, data: Dataset, train: TrainConfig| {
        let flow = Flow::new(cpu(), config, Key::new(0)).expect("valid");
        Trainer::new(flow, data, &train, Budget::Steps(2), Key::new(0)).map(drop)
    };
    let table = |rows: usize, width: usize| {
        let values = down(&cpu(), &normal(&cpu(), Key::new(9), [rows, width]));
        Table::new(None, width, values).expect("rows")
    };
    let rows = || Dataset::from(table(60, 2));
    let refused = |config: FlowConfig, data: Dataset, train: TrainConfig, remedy: &str| {
        let error = start(config, data, train).expect_err("refused").to_string();
        assert!(error.contains(remedy), "{error}");
    };
    for family in Family::ALL.into_iter().filter(|family| *family != Family::Ffjord) {
        refused(FlowConfig::of(family, 2), rows(), settings("flow-matching"), "model = \"ffjord\"");
    }
    refused(FlowConfig { blocks: 2, ..continuous(2) }, rows(), settings("flow-matching"), "blocks = 1");
    let optimal = || settings("flow-matching:pairing=optimal");
    let weighted = || rows().with_weights((0..60).map(f64::from).collect()).expect("weights");
    refused(continuous(2), weighted(), optimal(), "pairing=independent");
    start(continuous(2), weighted(), settings("flow-matching")).expect("independent pairs know no weights");
    let told = || FlowConfig { context: Some(ContextConfig::new(1)), ..continuous(2) };
    let given = || rows().with_context(table(60, 1)).expect("contexts");
    refused(told(), given(), optimal(), "pairing=independent");
    start(told(), given(), settings("flow-matching")).expect("independent pairs know no contexts");
    refused(continuous(2), rows(), TrainConfig { batch: 4096, ..optimal() }, "smaller batch");
    for wrong in [
        "flow-matching:noise=-1",
        "flow-matching:fine-tune=1",
        "flow-matching:pairing=best",
        "matching",
        "likelihood:noise=1",
    ] {
        assert!(wrong.parse::<TrainingObjective>().is_err(), "{wrong}");
    }
    assert!(!serde_json::to_string(&TrainConfig::default()).expect("serialises").contains("objective"));
}
