//! Flows fitted to a density: gradients of the reverse divergence against differences, what is impossible or unsolved, exact weights,
//! and fits whose answer is known. Seeds are fixed; statistical bounds say their false-alarm rate.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::Key;
use resflow::bijection::Memory;
use resflow::checkpoint::{Archive, Values};
use resflow::config::{Family, FlowConfig};
use resflow::data::Table;
use resflow::error::Error;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::invert::Inversion;
use resflow::registry::Registry;
use resflow::train::Budget;
use resflow::variational::{
    GradientEstimator, Importance, Target, TargetError, VariationalConfig, VariationalFlow, VariationalObjective,
    VariationalTrainer,
};

use super::decode_gradient::{direction, moved, shift};
use crate::common::bijections::is_slope;
use crate::common::*;

/// A Gaussian in two dimensions, correlated, times e^3: ln Z = 3.
#[derive(Debug)]
struct Gaussian;

const MEAN: [f64; 2] = [1.0, -0.5];
/// The precision matrix, of determinant 3.
const PRECISION: [[f64; 2]; 2] = [[2.0, 1.0], [1.0, 2.0]];

impl Target for Gaussian {
    fn dimension(&self) -> usize {
        2
    }

    fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
        let constant = 3.0 + 0.5 * 3.0_f64.ln() - (2.0 * std::f64::consts::PI).ln();
        for ((x, l), g) in rows.chunks_exact(2).zip(log_density).zip(gradient.chunks_exact_mut(2)) {
            let off = [x[0] - MEAN[0], x[1] - MEAN[1]];
            for i in 0..2 {
                g[i] = -(PRECISION[i][0] * off[0] + PRECISION[i][1] * off[1]);
            }
            *l = constant + 0.5 * (g[0] * off[0] + g[1] * off[1]);
        }
        Ok(())
    }
}

/// A smooth density of three numbers that is no flow's: a funnel with a ripple.
#[derive(Debug)]
pub(crate) struct Ripple;

impl Target for Ripple {
    fn dimension(&self) -> usize {
        3
    }

    fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
        for ((x, l), g) in rows.chunks_exact(3).zip(log_density).zip(gradient.chunks_exact_mut(3)) {
            let (a, b, c) = (x[0], x[1], x[2]);
            let precision = (-0.3 * a).exp();
            *l = -0.5 * a * a - 0.5 * precision * (b * b + c * c) + (2.0 * b).sin();
            g[0] = -a + 0.15 * precision * (b * b + c * c);
            g[1] = -precision * b + 2.0 * (2.0 * b).cos();
            g[2] = -precision * c;
        }
        Ok(())
    }
}

/// The ripple where the first number is below a limit, nothing beyond.
struct Cut(f64);

impl Target for Cut {
    fn dimension(&self) -> usize {
        3
    }

    fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
        Ripple.evaluate(rows, log_density, gradient)?;
        for ((x, l), g) in rows.chunks_exact(3).zip(log_density).zip(gradient.chunks_exact_mut(3)) {
            if x[0] > self.0 {
                *l = f64::NEG_INFINITY;
                g[0] = f64::NAN;
            }
        }
        Ok(())
    }
}

/// A target that fails.
struct Failing;

impl Target for Failing {
    fn dimension(&self) -> usize {
        3
    }

    fn evaluate(&self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<(), TargetError> {
        Err("the simulator is gone".into())
    }
}

/// Flows of three numbers that are trained by exact log dets, as all families can be but one, with a location and a scale.
fn flows() -> impl Iterator<Item = VariationalFlow<Cpu>> {
    Family::ALL.into_iter().filter(|family| *family != Family::IResNet).map(|family| {
        let config = FlowConfig {
            blocks: 3,
            hidden: vec![8, 8],
            training: Estimator::Exact(Exact),
            evaluation: Estimator::Exact(Exact),
            // of a continuous flow: differences are of what the solver of evaluation gives
            solver: "rk4:steps=64".parse().expect("a solver"),
            ..FlowConfig::of(family, 3)
        };
        let flow = VariationalFlow::from_flow(moved(&config.into(), 0.05)).expect("rows");
        flow.with_location(vec![0.3, -0.2, 0.1], vec![0.8, 1.1, 1.3]).expect("a location")
    })
}

/// Weights of samples, of which one is zero.
const WEIGHTS: [f64; 5] = [0.3, 0.1, 0.0, 0.4, 0.2];

fn moved_by(flow: &VariationalFlow<Cpu>, towards: &[f64], h: f64) -> VariationalFlow<Cpu> {
    let mut inner = flow.flow().clone();
    shift(&mut inner, towards, h);
    VariationalFlow::from_flow(inner).expect("rows")
}

fn log_target(target: &impl Target, rows: &Table) -> Vec<f64> {
    let mut values = vec![0.0; rows.rows()];
    target.log_density(rows.values(), &mut values).expect("a density");
    values
}

/// Σ wᵢ (log q(xᵢ) − β ln p̃(xᵢ)) at the samples of a key.
fn objective(flow: &VariationalFlow<Cpu>, beta: f64, key: Key) -> f64 {
    let drawn = flow.prepare().sample_exact(WEIGHTS.len(), key).expect("no device fault");
    let target = log_target(&Ripple, drawn.samples());
    (0..WEIGHTS.len()).map(|i| WEIGHTS[i] * (drawn.log_prob()[i] - beta * target[i])).sum()
}

#[test]
fn both_gradients_are_those_by_differences() {
    let (b, key, beta) = (cpu(), Key::new(11), 0.7);
    let how = Inversion::for_backend::<Cpu>();
    for flow in flows() {
        let what = flow.flow().config().family();
        let towards = direction(flow.flow(), Key::new(12));
        let at = |h: f64| moved_by(&flow, &towards, h);
        for memory in [Memory::Store, Memory::Recompute] {
            let mut asked = VariationalObjective { beta, memory, ..VariationalObjective::new::<Cpu>(&WEIGHTS, key) };
            let found = flow.prepare().gradient(&Ripple, &asked).expect("finite");
            assert_eq!((found.impossible, found.unsolved, found.log_weights.len()), (0, 0, WEIGHTS.len()));
            let found = dot(&down(&b, &found.flat), &towards);
            assert!(is_slope(found, 1e-6, |h| objective(&at(h), beta, key)), "{what}: {found}");

            // the path gradient moves the samples and leaves log q as it is
            asked.estimator = GradientEstimator::Path;
            let found = flow.prepare().gradient(&Ripple, &asked).expect("finite");
            assert_eq!((found.impossible, found.unsolved), (0, 0), "{what}");
            let prepared = flow.prepare();
            let fixed = |h: f64| {
                let x = at(h).prepare().sample_exact(WEIGHTS.len(), key).expect("no device fault");
                let log_q = prepared.log_prob(x.samples(), key, &how).expect("no device fault").log_prob;
                let target = log_target(&Ripple, x.samples());
                (0..WEIGHTS.len()).map(|i| WEIGHTS[i] * (log_q[i] - beta * target[i])).sum()
            };
            let found = dot(&down(&b, &found.flat), &towards);
            assert!(is_slope(found, 1e-5, fixed), "{what}, path: {found}");
        }
    }
}

#[test]
fn densities_agree_in_both_directions() {
    for flow in flows() {
        let what = flow.flow().config().family();
        let prepared = flow.prepare();
        let drawn = prepared.sample(6, Key::new(3)).expect("no device fault");
        let exact = prepared.sample_exact(6, Key::new(3)).expect("no device fault");
        let how = Inversion::for_backend::<Cpu>();
        let found = prepared.log_prob(&drawn.samples, Key::new(4), &how).expect("no device fault");
        for i in 0..6 {
            let [a, b, c] = [drawn.log_prob[i], exact.log_prob()[i], found.log_prob[i]];
            assert!((a - b).abs() < 1e-12 && (a - c).abs() < 1e-7, "{what}: {a}, {b} exact, {c} by the inverse");
        }
        assert_eq!(drawn.samples.values(), exact.samples().values());
    }
}

#[test]
fn impossible_and_unsolved_samples_have_no_weight() {
    let b = cpu();
    let n = 40;
    let weights = vec![1.0 / n as f64; n];
    let flow = flows().next().expect("a flow").prepare();
    for estimator in [GradientEstimator::Reparametrised, GradientEstimator::Path] {
        let asked = VariationalObjective { estimator, ..VariationalObjective::new::<Cpu>(&weights, Key::new(5)) };
        let found = flow.gradient(&Cut(0.5), &asked).expect("finite");
        assert!(found.impossible > 0 && found.impossible < n, "{} of {n}", found.impossible);
        assert_eq!(found.log_weights.iter().filter(|l| !l.is_finite()).count(), found.impossible);
        assert!(down(&b, &found.flat).iter().all(|g| g.is_finite()));
        // it is the gradient of the possible ones alone
        let own: Vec<f64> =
            found.log_weights.iter().map(|l| if l.is_finite() { 1.0 / n as f64 } else { 0.0 }).collect();
        let asked = VariationalObjective { weights: &own, ..asked };
        let alone = down(&b, &flow.gradient(&Ripple, &asked).expect("finite").flat);
        let off = apart(&down(&b, &found.flat), &alone);
        assert!(off < 1e-12, "{off:e}");
    }
    // one product is not enough for any
    let solver = Inversion::for_backend::<Cpu>().with_limit(1).expect("a limit");
    let estimator = GradientEstimator::Path;
    let asked = VariationalObjective { estimator, solver, ..VariationalObjective::new::<Cpu>(&weights, Key::new(5)) };
    let found = flow.gradient(&Ripple, &asked).expect("finite");
    assert_eq!(found.unsolved, n);
    assert!(down(&b, &found.flat).iter().all(|g| *g == 0.0));
    // and a target's own error comes out as it is
    let error = flow.gradient(&Failing, &asked).expect_err("it fails");
    assert!(matches!(&error, Error::Target(_)) && error.to_string().contains("the simulator is gone"), "{error}");
    assert!(matches!(flow.gradient(&Gaussian, &asked), Err(Error::Input(_))), "another number of dimensions");
}

#[test]
fn threads_do_not_enter() {
    let weights = vec![1.0 / 700.0; 700];
    let outcomes = [1, 3].map(|threads| {
        let backend = NdArray::<f64>::with_threads(NonZeroUsize::new(threads).expect("some")).expect("threads");
        let config = FlowConfig { blocks: 2, hidden: vec![16, 16], ..FlowConfig::new(3) };
        let flow = VariationalFlow::new(backend.clone(), config, Key::new(1)).expect("a flow").prepare();
        let estimator = GradientEstimator::Path;
        let asked = VariationalObjective { estimator, ..VariationalObjective::new::<Cpu>(&weights, Key::new(2)) };
        let found = flow.gradient(&Ripple, &asked).expect("finite");
        (down(&backend, &found.flat), found.log_weights)
    });
    assert!(outcomes[0] == outcomes[1]);
}

#[test]
fn a_gaussian_is_learned_and_the_path_gradient_comes_to_rest() {
    let config = FlowConfig { blocks: 4, hidden: vec![16], ..FlowConfig::new(2) };
    let flow = VariationalFlow::new(NdArray::<f64>::new(), config, Key::new(1)).expect("a flow");
    let settings = VariationalConfig { batch: 256, gradient: GradientEstimator::Path, ..VariationalConfig::default() };
    let mut trainer =
        VariationalTrainer::new(flow, Gaussian, &settings, Budget::Steps(600), Key::new(2)).expect("a run");
    let mut last = None;
    trainer.run(|step| last = Some(step.clone())).expect("finite");
    let last = last.expect("steps");
    assert_eq!((last.step, last.impossible, last.unsolved, trainer.progress()), (600, 0, 0, 1.0));
    let model = trainer.model().prepare();
    let found =
        Importance::new(&model.sample_exact(20_000, Key::new(3)).expect("samples"), &Gaussian).expect("weights");
    // KL(q ‖ p) = ln Z − ELBO, whose error is that of the ELBO; six standard errors: 2 in 10⁹
    let (kl, error) = (3.0 - found.evidence_lower_bound, found.evidence_lower_bound_error);
    assert!(kl < 1e-3 && kl > -6.0 * error, "KL {kl:e} ± {error:e}");
    assert!((found.log_evidence - 3.0).abs() < 6.0 * found.log_evidence_error, "{found:?}", found = found.log_evidence);
    assert!(found.effective_sample_size > 0.99 * 20_000.0, "{}", found.effective_sample_size);

    // E‖g‖² of one step's gradient near the optimum: the score's part is all that is left of the other
    let weights = vec![1.0 / 256.0; 256];
    let [path, whole] = [GradientEstimator::Path, GradientEstimator::Reparametrised].map(|estimator| {
        let squares = (0..20).map(|draw| {
            let key = Key::new(4).split(draw);
            let asked = VariationalObjective { estimator, ..VariationalObjective::new::<Cpu>(&weights, key) };
            let flat = model.gradient(&Gaussian, &asked).expect("finite").flat;
            inner(&cpu(), &flat, &flat)
        });
        squares.sum::<f64>() / 20.0
    });
    assert!(path < 0.2 * whole, "{path:e} by the path, {whole:e} by the whole");
}

#[test]
fn files_keep_the_direction() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("variational.safetensors");
    for mut flow in flows() {
        flow.save(&path).expect("stored");
        let again = VariationalFlow::load(cpu(), &path).expect("loads");
        let [a, b] = [&flow, &again].map(|f| f.prepare().sample_exact(3, Key::new(1)).expect("samples"));
        assert!(a.samples().values() == b.samples().values() && a.log_prob() == b.log_prob());
        // neither kind is taken for the other
        let error = Flow::load(cpu(), &path).expect_err("another direction").to_string();
        assert!(error.contains("VariationalFlow::load"), "{error}");
        flow.flow().clone().save(&path).expect("stored");
        assert!(VariationalFlow::load(cpu(), &path).is_err());
    }
}

/// A run that was stopped and resumed from its file makes the steps of one that was not: the same reports and the same bits.
#[test]
fn resumed_runs_are_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.safetensors");
    for gradient in [GradientEstimator::Reparametrised, GradientEstimator::Path] {
        let settings = VariationalConfig {
            batch: 32,
            gradient,
            initial_beta: 0.1,
            anneal: 0.5,
            warmup: 3,
            weight_decay: 0.1,
            ..VariationalConfig::default()
        };
        let start = || {
            let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
            let flow = VariationalFlow::new(cpu(), config, Key::new(3)).expect("a flow");
            let flow = flow.with_location(vec![0.5, -1.0], vec![2.0, 0.7]).expect("in range");
            VariationalTrainer::new(flow, Gaussian, &settings, Budget::Steps(12), Key::new(u64::MAX - 4))
                .expect("valid")
        };
        let bits = |trainer: &VariationalTrainer<Cpu, Gaussian>| {
            let state = trainer.to_archive().expect("stored");
            // all but the time
            (state.tensors, trainer.model().to_archive().expect("stored").to_bytes().expect("stored"))
        };
        let mut whole = start();
        let mut reports = Vec::new();
        whole.run(|report| reports.push(report.clone())).expect("finite");
        for stop in [0, 1, 5] {
            let mut first = start();
            for report in &reports[..stop] {
                assert_eq!(&first.step().expect("finite"), report);
            }
            first.to_archive().expect("stored").write(&path).expect("written");
            let archive = Archive::read(&path).expect("ours");
            let mut again = VariationalTrainer::resume(cpu(), &archive, Gaussian).expect("a state");
            assert_eq!((again.config(), again.budget()), (&settings, Budget::Steps(12)));
            assert!(again.steps_done() == stop as u64 && again.elapsed() == first.elapsed());
            assert!(bits(&again) == bits(&first), "resuming changes the state");
            let mut rest = reports[stop..].iter();
            again.run(|report| assert_eq!(Some(report), rest.next())).expect("finite");
            assert!(rest.next().is_none() && again.finished());
            assert!(bits(&again) == bits(&whole), "other bits after step {stop}");
            again.set_budget(Budget::Steps(13)).expect("more steps");
            assert!(!again.finished() && again.set_budget(Budget::Steps(0)).is_err());
        }
    }
}

/// States that do not belong together, and files of other kinds, are refused with what they are.
#[test]
fn bad_states_of_runs_are_refused() {
    let config = FlowConfig { blocks: 1, hidden: vec![4], ..FlowConfig::new(2) };
    let flow = VariationalFlow::new(cpu(), config, Key::new(3)).expect("a flow");
    let settings = VariationalConfig { batch: 8, ..VariationalConfig::default() };
    let mut trainer = VariationalTrainer::new(flow, Gaussian, &settings, Budget::Steps(3), Key::new(1)).expect("valid");
    trainer.step().expect("finite");
    let good = trainer.to_archive().expect("stored");
    let refused = |archive: &Archive, part: &str| {
        let error = VariationalTrainer::resume(cpu(), archive, Gaussian).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    for (pointer, value, part) in [
        ("/variational-run/done/key", serde_json::json!("seven"), "key"),
        ("/variational-run/done/elapsed", serde_json::json!(-1.0), "not a duration"),
        ("/variational-run/done/elapsed", serde_json::json!(1e18), "a thousand years"),
        ("/variational-run/done/step", serde_json::json!(u64::MAX), "step"),
        ("/variational-run/config/batch", serde_json::json!(0), "batch"),
        ("/variational-run/config/initial_beta", serde_json::json!(0.0), "initial_beta"),
        ("/variational-run/budget", serde_json::json!({ "steps": 0 }), "steps"),
        ("/variational-run/initialised", serde_json::json!("yes"), "expected a boolean"),
        ("/variational/config/rows/blocks", serde_json::json!(2), "numbers configured"),
    ] {
        let mut bad = good.clone();
        *bad.document.pointer_mut(pointer).expect(pointer) = value;
        refused(&bad, part);
    }
    for name in ["moment.first", "moment.second", "average"] {
        let mut bad = good.clone();
        bad.tensors.remove(name);
        refused(&bad, name);
    }
    let mut bad = good.clone();
    if let Some((_, Values::F64(values))) = bad.tensors.get_mut("moment.second") {
        values[0] = -1.0;
    }
    refused(&bad, "negative");
    refused(&trainer.model().to_archive().expect("stored"), "variational-run");
    assert!(VariationalTrainer::resume(cpu(), &good, Ripple).is_err(), "a target of another dimension");
    // and a state is neither a model nor a variational flow
    for error in [
        Flow::from_archive(cpu(), &good).expect_err("a run").to_string(),
        VariationalFlow::from_archive(cpu(), &good, &Registry::new()).expect_err("a run").to_string(),
    ] {
        assert!(error.contains("VariationalTrainer::resume"), "{error}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let images = Flow::new(cpu(), exact_images([4, 4, 1], &[1]), Key::new(0)).expect("a flow");
    assert!(VariationalFlow::from_flow(images).is_err());
    let flow =
        || VariationalFlow::new(cpu(), FlowConfig { blocks: 1, ..FlowConfig::new(2) }, Key::new(0)).expect("a flow");
    assert!(flow().with_location(vec![0.0], vec![1.0]).is_err());
    assert!(flow().with_location(vec![0.0, 0.0], vec![1.0, 0.0]).is_err());
    assert!(flow().with_location(vec![0.0, f64::NAN], vec![1.0, 1.0]).is_err());
    let settings = VariationalConfig::default();
    for wrong in [
        VariationalConfig { initial_beta: 0.0, ..settings.clone() },
        VariationalConfig { anneal: 1.5, ..settings.clone() },
        VariationalConfig { learning_rate: f64::NAN, ..settings.clone() },
        VariationalConfig { gradient: GradientEstimator::Path, memory: Memory::Unroll, ..settings.clone() },
    ] {
        let run = VariationalTrainer::new(flow(), Gaussian, &wrong, Budget::Steps(1), Key::new(0));
        assert!(matches!(run, Err(Error::Config(_))), "{wrong:?}");
    }
    // all samples impossible: the run ends and says why
    let config = FlowConfig { blocks: 1, ..FlowConfig::new(3) };
    let flow = VariationalFlow::new(cpu(), config, Key::new(0)).expect("a flow");
    let mut run = VariationalTrainer::new(flow, Cut(-1e9), &settings, Budget::Steps(5), Key::new(0)).expect("a run");
    let error = run.step().expect_err("nothing is possible").to_string();
    assert!(error.contains("at step 1") && error.contains("at every sample"), "{error}");
}
