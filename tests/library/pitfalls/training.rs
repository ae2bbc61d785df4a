//! Those of `rows.rs` that need training and checkpoints. Keys are fixed, so no test fails by chance.

use crate::common::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key};
use resflow::checkpoint::Archive;
use resflow::config::FlowConfig;
use resflow::data::ToyDensity;
use resflow::error::{CheckpointError, Error};
use resflow::flow::Flow;
use resflow::lipschitz::PowerIteration;
use resflow::module::Role;
use resflow::train::{Budget, Source, TrainConfig, Trainer};

fn settings() -> TrainConfig {
    TrainConfig {
        batch: 64,
        validation_rows: 200,
        validate_every: 5,
        warmup: 3,
        learning_rate: 1e-2,
        ..TrainConfig::default()
    }
}

fn config() -> FlowConfig {
    exact_config(2, 2, &[8])
}

fn flow() -> Flow<Cpu> {
    Flow::new(cpu(), config(), Key::new(1)).expect("valid")
}

fn trainer(settings: &TrainConfig, steps: u64) -> Trainer<Cpu> {
    let source = Source::Density(ToyDensity::Moons);
    Trainer::new(flow(), source, settings, Budget::Steps(steps), Key::new(2)).expect("valid")
}

fn tensors(flow: &Flow<Cpu>, wanted: impl Fn(&str, Role) -> bool) -> Vec<(String, Vec<f64>)> {
    let mut out = Vec::new();
    flow.visit(&mut |name, t, role| {
        if wanted(name, role) {
            out.push((name.to_owned(), down(flow.backend(), t)));
        }
    });
    out
}

fn bytes(trainer: &Trainer<Cpu>) -> Vec<u8> {
    let mut archive = trainer.to_archive().expect("no device fault");
    // the only entry that depends on the clock
    archive.document["run"]["elapsed"] = serde_json::json!(0.0);
    archive.to_bytes().expect("writable")
}

/// The norm of every normalised weight, by SVD.
fn norms(flow: &Flow<Cpu>) -> Vec<f64> {
    let all = tensors(flow, |name, _| name.contains(".net."));
    let kappa = flow.config().rows().expect("a flow over rows").coefficient;
    let mut out = Vec::new();
    for (i, (name, w)) in all.iter().enumerate() {
        if name.ends_with(".weight") {
            let (u, v) = (&all[i + 2].1, &all[i + 3].1);
            let sigma: f64 = u.iter().zip(w.chunks_exact(v.len())).map(|(u, row)| u * dot(row, v)).sum();
            out.push(spectral_norm(u.len(), v.len(), w) * kappa / kappa.max(sigma));
        }
    }
    out
}

/// RF: after the averaged weights are swapped in or out again, u and v are those of the other weights.
#[test]
fn pitfall_03_averaged_weights_have_their_own_singular_vectors() {
    let mut trainer = trainer(&TrainConfig { average: 0.99, learning_rate: 0.05, ..settings() }, 40);
    trainer.run(|_, _| ()).expect("finite");
    let before = bytes(&trainer);
    let (average, last) = (trainer.averaged(), trainer.flow());
    for flow in [&average, &trainer.model()] {
        assert!(norms(flow).iter().all(|&n| n <= 0.9 * (1.0 + 1e-6)), "{:?}", norms(flow));
    }
    assert!(norms(last).iter().all(|&n| n <= 0.9 * (1.0 + 1e-2)), "{:?}", norms(last));
    let vectors = |flow: &Flow<Cpu>| tensors(flow, |_, role| role == Role::Buffer);
    assert_ne!(vectors(&average), vectors(last));
    assert!(bytes(&trainer) == before, "looking at the average changed the run");
}

/// IR, nflows, FE, glow-pytorch: ActNorm is initialised again by the first batch after loading.
#[test]
fn pitfall_18_actnorm_is_initialised_once() {
    let b = cpu();
    let mut fresh = trainer(&settings(), 1);
    let wanted = |n: &str, _| n.ends_with("log_scale") || n.ends_with("bias") && !n.contains(".net.");
    let untouched = tensors(fresh.flow(), wanted);
    assert!(untouched.iter().all(|(_, v)| v.iter().all(|v| *v == 0.0)));
    fresh.step().expect("finite");
    let flags = |flow: &Flow<Cpu>| tensors(flow, |n, _| n.ends_with("initialised"));
    assert!(flags(fresh.flow()).len() == 3 && flags(fresh.flow()).iter().all(|(_, v)| v == &[1.0]));
    let trained = tensors(fresh.flow(), wanted);
    assert!(trained.iter().flat_map(|(_, v)| v).all(|v| v.abs() > 1e-6));

    // a loaded model goes on from its own numbers: one step of a vanishing rate leaves them where they are
    let archive = Archive::from_bytes(&fresh.flow().to_archive().expect("stored").to_bytes().expect("stored"));
    let loaded = Flow::from_archive(b, &archive.expect("ours")).expect("ours");
    assert_eq!(flags(&loaded), flags(fresh.flow()));
    assert_eq!(tensors(&loaded, |_, _| true), tensors(fresh.flow(), |_, _| true));
    let still = TrainConfig { learning_rate: 1e-300, ..settings() };
    let source = Source::Density(ToyDensity::Rings);
    let mut again = Trainer::new(loaded, source, &still, Budget::Steps(1), Key::new(3)).expect("valid");
    again.step().expect("finite");
    assert_eq!(tensors(again.flow(), wanted), trained);
    // and a resumed run is the uninterrupted one
    let (mut whole, mut first) = (trainer(&settings(), 6), trainer(&settings(), 6));
    whole.run(|_, _| ()).expect("finite");
    for _ in 0..3 {
        first.step().expect("finite");
    }
    let stored = Archive::from_bytes(&first.to_archive().expect("stored").to_bytes().expect("stored")).expect("ours");
    let mut resumed = Trainer::resume(cpu(), &stored, Source::Density(ToyDensity::Moons)).expect("ours");
    resumed.run(|_, _| ()).expect("finite");
    assert!(bytes(&resumed) == bytes(&whole));
}

/// Weights that decayed to nothing, that overflow in a product, or that are zero while the orders of their norms move: the state of
/// the run can be resumed, since its singular vectors are unit vectors still.
#[test]
fn a_run_whose_weights_vanished_can_be_resumed() {
    fn check<B: Backend>(b: B, norms: &str, size: f64) {
        let config = FlowConfig { norms: norms.parse().expect("norms"), ..exact_config(2, 2, &[6]) };
        let mut flow = Flow::new(b.clone(), config, Key::new(1)).expect("valid");
        flow.visit_mut(&mut |name, tensor, _| {
            if name.ends_with(".weight") {
                *tensor = b.affine(tensor.clone(), size, 0.0);
            } else if name.contains("orders.") {
                *tensor = b.affine(tensor.clone(), 1.0, 0.7);
            }
        });
        flow.update_spectral_norms(PowerIteration::Iterations(5));
        flow.update_spectral_norms(PowerIteration::converge::<B>());
        let archive = flow.to_archive().expect("stored");
        if let Err(e) = Flow::from_archive(b, &archive) {
            panic!("{norms}, {size:e}, {}: {e}", B::Elem::NAME);
        }
    }
    for norms in ["2", "learned", "1f1", "f1f"] {
        for size in [0.0, 1e-20, 1e-30, 1e-160, 1e-300, 1e25] {
            check(cpu(), norms, size);
            check(NdArray::<f32>::new(), norms, size);
        }
        check(cpu(), norms, 1e200);
    }
}

/// RF: weight decay without effect, a schedule that is overwritten, a best checkpoint chosen on the test set, and
/// validation rows that are trained on.
#[test]
fn pitfall_19_decay_schedule_and_validation_do_what_they_say() {
    // one step from the same state: decay shrinks weights by rate · λ, and nothing else
    let rate = settings().rate(1, 0.0);
    let after = |weight_decay| {
        let mut t = trainer(&TrainConfig { weight_decay, ..settings() }, 10);
        let report = t.step().expect("finite");
        assert_eq!(report.learning_rate, rate);
        t
    };
    let (with, without) = (after(0.5), after(0.0));
    let start = tensors(&flow(), |_, role| role.is_trained());
    let (with, without) =
        (tensors(with.flow(), |_, role| role.is_trained()), tensors(without.flow(), |_, role| role.is_trained()));
    for ((name, start), ((_, with), (_, without))) in start.iter().zip(with.iter().zip(&without)) {
        for ((start, with), without) in start.iter().zip(with).zip(without) {
            let decay = if name.ends_with(".weight") { 0.5 * rate * start } else { 0.0 };
            assert!((without - with - decay).abs() < 1e-15, "{name}: {}, decay {decay}", without - with);
        }
    }
    // the reported rate is that of the schedule at every step
    let mut scheduled = trainer(&settings(), 12);
    let mut seen = Vec::new();
    scheduled.run(|report, _| seen.push(report.learning_rate)).expect("finite");
    for (i, seen) in seen.iter().enumerate() {
        let (warm, progress) = ((i as f64 + 1.0) / 3.0, i as f64 / 12.0);
        let cosine = 0.01 + 0.99 * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        assert!((seen - 1e-2 * warm.min(1.0) * cosine).abs() < 1e-15, "step {i}: {seen}");
    }
    // the model is the one with the best validation, and its score is reproduced by evaluating it on those rows
    let rows = table(2, rows(100, 2, Key::new(4)).into_values());
    let source = Source::from(rows.clone());
    let mut t = Trainer::new(flow(), source, &settings(), Budget::Steps(60), Key::new(5)).expect("valid");
    let mut scores = Vec::new();
    t.run(|_, validation| scores.extend(validation.map(|v| v.nll))).expect("finite");
    let best = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let model = t.model();
    let again = -model.log_prob(t.validation_samples(), Key::new(9)).expect("rows").mean();
    assert!(scores.len() == 12 && t.best_nll() == Some(best) && (again - best).abs() < 1e-12, "{scores:?} {again}");
    assert_eq!(model.provenance().validation_nll, Some(best));
    // the standardisation, and so training, knows the other rows only
    let held = t.validation_samples().table().expect("rows");
    let is_held = |i: &usize| (0..held.rows()).any(|h| held.row(h) == rows.row(*i));
    let others: Vec<usize> = (0..rows.rows()).filter(|i| !is_held(i)).collect();
    assert_eq!((held.rows(), others.len()), (10, 90));
    let fitted = resflow::data::Standardiser::fit(&rows.select(&others)).expect("spread");
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-13);
    assert!(close(fitted.mean(), t.flow().standardiser().mean()));
    assert!(close(fitted.deviation(), t.flow().standardiser().deviation()));
}

type Change = fn(&mut Archive);

/// RF, NF: pickled classes, unreadable after a rename, that run code on loading. Here: numbers and JSON, all checked.
#[test]
fn pitfall_22_model_files_are_data_and_are_checked() {
    let b = cpu();
    let good = random_flow(&b, config(), Key::new(22), 0.2);
    let archive = good.to_archive().expect("stored");
    let bytes = archive.to_bytes().expect("stored");
    let x = rows(5, 2, Key::new(23));
    let score = |flow: &Flow<Cpu>| flow.log_prob(&x, Key::new(0)).expect("rows").values;
    let loaded = Flow::from_archive(b.clone(), &Archive::from_bytes(&bytes).expect("ours")).expect("ours");
    assert_eq!(score(&loaded), score(&good));
    let single = Flow::from_archive(resflow::NdArray::<f32>::new(), &archive).expect("any precision");
    let difference = single.log_prob(&x, Key::new(0)).expect("rows").mean() - score(&good).iter().sum::<f64>() / 5.0;
    assert!(difference.abs() < 1e-4, "{difference}");

    for cut in [0, 1, 8, 100, bytes.len() - 1] {
        assert!(Archive::from_bytes(&bytes[..cut]).is_err(), "{cut} bytes");
    }
    assert!(Archive::from_bytes(b"\x80\x04\x95pickle").is_err());
    let spoil: [(&str, Change); 7] = [
        ("missing", |a| drop(a.tensors.remove("links.1.net.1.weight"))),
        ("superfluous", |a| drop(a.tensors.insert("links.9.extra".into(), a.tensors["links.1.net.1.bias"].clone()))),
        ("misshapen", |a| a.tensors.get_mut("links.1.net.1.bias").expect("there").0 = vec![4, 2]),
        ("NaN", |a| {
            let bias = &mut a.tensors.get_mut("links.1.net.1.bias").expect("there").1;
            *bias = resflow::checkpoint::Values::F64(vec![f64::NAN; 8]);
        }),
        ("singular vectors that are none", |a| {
            let u = &mut a.tensors.get_mut("links.1.net.1.u").expect("there").1;
            *u = resflow::checkpoint::Values::F64(vec![0.0; 8]);
        }),
        ("another format", |a| a.document["model"]["format"] = serde_json::json!(99)),
        ("a hostile size", |a| a.document["model"]["config"]["dimension"] = serde_json::json!(60_000)),
    ];
    for (what, change) in spoil {
        let mut bad = archive.clone();
        change(&mut bad);
        let error = Flow::from_archive(b.clone(), &bad).expect_err(what);
        assert!(matches!(error, Error::Checkpoint(_)), "{what}: {error}");
    }
    let not_ours = Archive { document: serde_json::json!({}), ..archive };
    assert!(matches!(Flow::from_archive(b, &not_ours), Err(Error::Checkpoint(CheckpointError::Format(_)))));
}

/// NF skips a NaN loss by an `if`, RF trains on: here a step that diverges stops the run, says where, and changes nothing.
#[test]
fn pitfall_23_divergence_stops_and_keeps_the_last_good_state() {
    let mut t = trainer(&TrainConfig { learning_rate: 1e4, warmup: 0, clip: 0.0, ..settings() }, 50);
    let mut good = bytes(&t);
    let error = loop {
        match t.step() {
            Ok(report) => assert!(report.train_nll.is_finite() && report.step < 50),
            Err(error) => break error,
        }
        good = bytes(&t);
    };
    let Error::Diverged { step, layer, .. } = &error else { panic!("{error}") };
    assert_eq!(*step, t.steps_done() + 1);
    assert!(layer.as_ref().is_some_and(|l| l.starts_with("links.")), "{error}");
    assert!(error.to_string().contains(&format!("step {step}")), "{error}");
    assert!(bytes(&t) == good, "the failed step changed the state");
    // the state kept is one that loads
    let stored = Archive::from_bytes(&t.to_archive().expect("stored").to_bytes().expect("stored")).expect("ours");
    assert!(Trainer::resume(cpu(), &stored, Source::Density(ToyDensity::Moons)).is_ok());
    assert!(matches!(t.step(), Err(Error::Diverged { .. })), "and it stays diverged");
}
