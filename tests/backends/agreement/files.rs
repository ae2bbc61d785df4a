//! Files: what one backend writes the others read, and it says the same there; flows of the same key; and runs that repeat
//! bit for bit.

use proptest::prelude::*;
use proptest::strategy::Union;
use resflow::backend::Backend;
use resflow::checkpoint::Archive;
use resflow::flow::Flow;
use resflow::module::Role;
use resflow::train::{Budget, Source, TrainConfig, Trainer};

use crate::agreement::densities::record_log_prob;
use crate::agreement::gradients::record_gradient;
use crate::agreement::model::{Model, small_dense, small_pictures};
use crate::agreement::record::{Record, Worst, agreement, check, double, single};
use crate::agreement::tolerance::Quantity;
use crate::common::{images, rows};

fn models() -> impl Strategy<Value = Model> {
    Union::new([small_dense().boxed(), small_pictures().boxed()])
}

agreement!(
    /// A key makes the same weights everywhere.
    fresh_flows: 8 of models() => fresh(Model)
);

fn fresh<B: Backend>(b: &B, model: &Model) -> Record {
    let flow = Flow::new(b.clone(), &model.config, model.key).expect("valid");
    let mut record = Record::new(model.dimension());
    flow.visit(&mut |name, t, role| {
        if role != Role::Buffer {
            record.tensor(b, Quantity::Draw, name, t);
        }
    });
    record
}

fn bytes<B: Backend>(flow: &Flow<B>) -> Vec<u8> {
    flow.to_archive().expect("stored").to_bytes().expect("stored")
}

/// A flow through a file on another backend.
fn moved<X: Backend, Y: Backend>(flow: &Flow<X>, to: &Y) -> Flow<Y> {
    Flow::from_archive(to.clone(), &Archive::from_bytes(&bytes(flow)).expect("a file")).expect("a model")
}

/// Flows of either backend, written there and read on the other.
pub(crate) fn checkpoints<B: Backend<Elem = f32>>(backend: &B) {
    check("checkpoints", 8, models(), |model| {
        let (single, double) = (single(), double());
        let score = |found| {
            let mut record = Record::new(model.dimension());
            record_log_prob(&mut record, "", found);
            record
        };
        let x = model.rows(7);
        let here = Flow::new(backend.clone(), &model.config, model.key).expect("valid");
        let there = model.load(&single);
        let (here_on_single, there_on_tested) = (moved(&here, &single), moved(&there, backend));
        // loading and saving moves numbers and computes nothing
        prop_assert!(bytes(&here_on_single) == bytes(&here), "a file changed on its way through the CPU");
        prop_assert!(bytes(&there_on_tested) == bytes(&there), "a file changed on its way through {}", backend.name());
        let log_prob = |on: &str, found| (on.to_owned(), score(found));
        let key = model.key;
        let scores = [
            [
                log_prob("its own", here.log_prob(&x, key).expect("rows")),
                log_prob("moved to the CPU", here_on_single.log_prob(&x, key).expect("rows")),
                log_prob("moved to f64", moved(&here, &double).log_prob(&x, key).expect("rows")),
            ],
            [
                log_prob("moved", there_on_tested.log_prob(&x, key).expect("rows")),
                log_prob("its own", there.log_prob(&x, key).expect("rows")),
                log_prob("moved to f64", moved(&there, &double).log_prob(&x, key).expect("rows")),
            ],
        ];
        let worst = Worst::default();
        for ([tested, cpu, reference], pair) in scores.iter().zip(["a flow of the tested backend", "a flow of the CPU"])
        {
            worst.compare(pair, &tested.1, &reference.1)?;
            worst.compare(pair, &cpu.1, &reference.1)?;
        }
        Ok(())
    });
}

/// The same run twice on one backend.
pub(crate) fn repeats<B: Backend<Elem = f32>>(backend: &B) {
    check("repeats", 8, models(), |model| {
        let (first, second) = (everything(backend, &model), everything(backend, &model));
        for ((name, a), (_, b)) in first.0.bits().into_iter().zip(second.0.bits()) {
            prop_assert!(a == b, "{name} differs when it is computed again");
        }
        prop_assert!(first.1 == second.1, "a run of training differs when it is made again");
        Ok(())
    });
}

/// Gradient, log p, samples, and the state after three steps.
fn everything<B: Backend>(b: &B, model: &Model) -> (Record, Vec<u8>) {
    let n = if model.image().is_some() { 5 } else { 150 };
    let flow = model.load(b);
    let mut record = Record::new(model.dimension());
    let found = flow.gradient(&model.batch(b, n), None, model.key).expect("shapes that fit");
    record_gradient(&mut record, &flow, &found);
    record_log_prob(&mut record, "", flow.log_prob(&model.rows(n), model.key).expect("rows that fit"));
    let samples = flow.sample(n, model.key).expect("no device fault");
    record.push(Quantity::Inverse, "samples", samples.samples.into_values());
    record.push(Quantity::Inverse, "bounds", samples.reports.iter().map(|r| r.error_bound).collect());
    let source = match model.image() {
        Some(image) => Source::from(images(12, image, model.key)),
        None => Source::from(rows(60, model.dimension(), model.key)),
    };
    let config = TrainConfig { batch: n.min(40), ..TrainConfig::default() };
    let mut trainer = Trainer::new(flow, source, &config, Budget::Steps(3), model.key).expect("settings");
    trainer.run(|_, _| ()).expect("finite");
    record.push(Quantity::LogDet, "validation", vec![trainer.best_nll().expect("validated")]);
    let mut state = trainer.to_archive().expect("stored");
    // the only entry that depends on the clock
    state.document["run"]["elapsed"] = serde_json::json!(0.0);
    (record, state.to_bytes().expect("stored"))
}
