//! Roulette's law in training that is chosen from earlier gradients: the law of a step is a function of what went before, resumed runs have the
//! same, the tail stays as set, and estimators without a law are left alone. Seeds are fixed; nothing is statistical.

use resflow::backend::Key;
use resflow::checkpoint::Archive;
use resflow::config::{Family, FlowConfig};
use resflow::data::ToyDensity;
use resflow::estimator::{Estimator, Exact, Law, Truncated};
use resflow::flow::Flow;
use resflow::train::{Budget, RouletteLaw, Source, StepReport, TrainConfig, Trainer};

use crate::common::*;

fn settings(roulette: RouletteLaw) -> TrainConfig {
    TrainConfig { batch: 32, roulette, validation_rows: 20, validate_every: 1000, ..TrainConfig::default() }
}

fn trainer(family: Family, training: Estimator, roulette: RouletteLaw) -> Trainer<Cpu> {
    let config = FlowConfig { blocks: 2, hidden: vec![8], training, coefficient: 0.8, ..FlowConfig::of(family, 2) };
    let flow = Flow::new(cpu(), config, Key::new(3)).expect("valid");
    let source = Source::Density(ToyDensity::Moons);
    Trainer::new(flow, source, &settings(roulette), Budget::Steps(110), Key::new(5)).expect("valid")
}

fn set() -> Estimator {
    "roulette:p=0.3,exact=3".parse().expect("an estimator")
}

fn steps(trainer: &mut Trainer<Cpu>, count: usize) -> Vec<StepReport> {
    (0..count).map(|_| trainer.step().expect("finite")).collect()
}

fn again(trainer: &Trainer<Cpu>) -> Trainer<Cpu> {
    let bytes = trainer.to_archive().expect("stored").to_bytes().expect("stored");
    let archive = Archive::from_bytes(&bytes).expect("ours");
    Trainer::resume(cpu(), &archive, Source::Density(ToyDensity::Moons)).expect("a state")
}

#[test]
fn laws_are_functions_of_earlier_steps() {
    for family in [Family::Residual, Family::Monotone] {
        let mut measured = trainer(family, set(), RouletteLaw::Measured);
        let mut fixed = trainer(family, set(), RouletteLaw::AsSet);
        // until something was measured the runs are one
        assert_eq!(measured.estimator(), &set());
        assert_eq!(steps(&mut measured, 24), steps(&mut fixed, 24));
        let before = again(&measured);
        let first = steps(&mut measured, 1);
        assert_eq!(first, steps(&mut fixed, 1), "the step that is measured is not changed by it");
        let Estimator::RussianRoulette(chosen) = measured.estimator().clone() else { panic!("no roulette") };
        assert_ne!(measured.estimator(), &set(), "a small flow wants fewer terms");
        let tail = |law: Law| matches!(law, Law::ShiftedGeometric { p: 0.3 } | Law::Geometric { p: 0.3, .. });
        assert!(tail(chosen.law) && chosen.check().is_ok(), "{chosen:?}");
        let after = again(&measured);
        assert_eq!(after.estimator(), measured.estimator());
        let rest = steps(&mut measured, 85);
        for (mut resumed, skipped) in [(before, 1), (after, 0)] {
            assert_eq!(steps(&mut resumed, skipped), first[..skipped]);
            assert_eq!(steps(&mut resumed, 85), rest);
            assert_eq!(resumed.estimator(), measured.estimator());
        }
        // the flow's own setting is what it was
        assert_eq!(measured.model().config().training(), &set());
        assert_eq!(fixed.estimator(), &set());
    }
}

#[test]
fn estimators_without_a_law_are_left_alone() {
    for training in
        [Estimator::Exact(Exact), Estimator::Truncated(Truncated::new(3).expect("in range")), Estimator::default()]
    {
        let mut measured = trainer(Family::Residual, training.clone(), RouletteLaw::Measured);
        let mut fixed = trainer(Family::Residual, training.clone(), RouletteLaw::AsSet);
        assert_eq!(steps(&mut measured, 27), steps(&mut fixed, 27));
        assert_eq!(measured.estimator(), &training);
        assert!(measured.to_archive().expect("stored").document["run"].get("powers").is_none());
    }
}

#[test]
fn impossible_powers_are_refused() {
    let mut run = trainer(Family::Residual, set(), RouletteLaw::Measured);
    steps(&mut run, 25);
    let good = run.to_archive().expect("stored");
    let resume = |archive: &Archive| Trainer::resume(cpu(), archive, Source::Density(ToyDensity::Moons)).map(drop);
    assert!(resume(&good).is_ok() && good.document["run"]["powers"]["all"].is_number());
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut archive = good.clone();
        change(&mut archive.document["run"]);
        resume(&archive).expect_err("impossible").to_string()
    };
    for error in [
        changed(&|run| run["powers"]["all"] = (-1.0).into()),
        changed(&|run| run["powers"]["terms"] = serde_json::json!([0.1, 0.2])),
        changed(&|run| run["config"]["roulette"] = "as-set".into()),
    ] {
        assert!(error.contains("powers"), "{error}");
    }
    // a state of before has none, and begins with the law that was set
    let mut old = good.clone();
    old.document["run"].as_object_mut().expect("a section").remove("powers");
    let old = Trainer::resume(cpu(), &old, Source::Density(ToyDensity::Moons)).expect("a state");
    assert_eq!(old.estimator(), &set());
}
