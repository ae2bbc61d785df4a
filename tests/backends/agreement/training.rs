//! Ten steps of training from the same state: plain gradient steps, Adam with an ε above the rounding of gradients, and
//! Adam with its usual ε, which makes steps of full size of gradients that are rounding errors and is therefore taken one
//! step at a time from states that are the same.

use proptest::prelude::*;
use resflow::backend::{Backend, Element as _};
use resflow::bijection::Memory;
use resflow::checkpoint::Archive;
use resflow::flow::Flow;
use resflow::lipschitz::PowerIteration;
use resflow::train::{Budget, Source, TrainConfig, Trainer};

use crate::agreement::model::{Model, small_dense, small_pictures};
use crate::agreement::record::{Record, agreement, host, single};
use crate::agreement::tolerance::{ADAM_GRADIENT, Quantity};
use crate::common::{images, rows};

const STEPS: u64 = 10;
/// The learning rate of Adam.
const RATE: f64 = 1e-2;

agreement!(dense_descent: 8 of (small_dense(), 2_usize..=24) => descent((Model, usize)));
agreement!(image_descent: 8 of (small_pictures(), 1_usize..=4) => descent((Model, usize)));
agreement!(dense_adam: 8 of runs(small_dense(), 24) => adam(Run));
agreement!(image_adam: 8 of runs(small_pictures(), 4) => adam(Run));
agreement!(dense_adam_steps: 8 of runs(small_dense(), 24).prop_map(States::of) => adam_steps(States));
agreement!(image_adam_steps: 6 of runs(small_pictures(), 4).prop_map(States::of) => adam_steps(States));

/// The trained tensors.
fn record_parameters<B: Backend>(record: &mut Record, quantity: Quantity, name: &str, flow: &Flow<B>) {
    let (mut values, mut parts) = (Vec::new(), Vec::new());
    flow.visit(&mut |path, t, role| {
        if role.is_trained() {
            let start = values.len();
            values.extend(host(flow.backend(), t));
            parts.push((path.to_owned(), start..values.len()));
        }
    });
    record.parts(quantity, name, values, parts);
}

/// p ← p − η ∇, with a rate at which parameters move by tenths and the loss falls.
fn descent<B: Backend>(b: &B, (model, n): &(Model, usize)) -> Record {
    let mut flow = model.load(b);
    let x = model.batch(b, *n);
    // the loss is a sum over the numbers of a row
    let rate = 0.1 / (1.0 + model.dimension() as f64);
    let mut record = Record::new(model.dimension());
    for step in 0..STEPS {
        let found = flow.gradient(&x, None, model.key.split(step)).expect("shapes that fit");
        let mut at = 0;
        flow.visit_mut(&mut |_, t, role| {
            if role.is_trained() {
                let shape = b.shape(t);
                let own = b.reshape(&b.narrow(&found.flat, 0, at, shape.elements()), shape);
                *t = b.axpy(-rate, &own, t.clone());
                at += shape.elements();
            }
        });
        flow.update_spectral_norms(PowerIteration::Iterations(3));
        record.tensor(b, Quantity::LogDet, format!("loss {step}"), &found.loss);
    }
    record_parameters(&mut record, Quantity::Trained, "", &flow);
    record
}

/// A model and the settings of its training.
#[derive(Debug, Clone)]
struct Run {
    model: Model,
    config: TrainConfig,
    /// Whether ActNorm begins with the first batch.
    fresh: bool,
}

fn runs(models: impl Strategy<Value = Model>, most: usize) -> impl Strategy<Value = Run> {
    let memory = proptest::sample::select(vec![Memory::Store, Memory::Recompute]);
    let clip = prop_oneof![Just(0.0), Just(0.5), Just(10.0)];
    let decay = prop_oneof![Just(0.0), Just(0.1)];
    (models, 2..=most, 1_usize..=2, memory, clip, decay, any::<bool>()).prop_map(
        |(model, batch, accumulate, memory, clip, weight_decay, fresh)| {
            let config = TrainConfig {
                batch,
                accumulate,
                learning_rate: RATE,
                warmup: 3,
                epsilon: 1e-3,
                clip,
                weight_decay,
                average: 0.9,
                power_iterations: 3,
                memory,
                ..TrainConfig::default()
            };
            Run { model, config, fresh }
        },
    )
}

impl Run {
    fn source(&self) -> Source {
        let key = self.model.key.named("data");
        match self.model.image() {
            Some(image) => Source::from(images(12, image, key)),
            None => Source::from(rows(60, self.model.dimension(), key)),
        }
    }

    fn trainer<B: Backend>(&self, b: &B) -> Trainer<B> {
        let mut flow = self.model.load(b);
        flow.visit_mut(&mut |name, t, _| {
            if self.fresh && name.ends_with("initialised") {
                *t = b.full(0.0, [1].into());
            }
        });
        Trainer::new(flow, self.source(), &self.config, Budget::Steps(STEPS), self.model.key).expect("settings")
    }
}

fn adam<B: Backend>(b: &B, run: &Run) -> Record {
    let mut trainer = run.trainer(b);
    let mut record = Record::new(run.model.dimension());
    for _ in 0..STEPS {
        let report = trainer.step().expect("finite");
        record.push(Quantity::LogDet, format!("−log p {}", report.step), vec![report.train_nll]);
        record.push(Quantity::Gradient, format!("norm {}", report.step), vec![report.gradient_norm]);
        record.push(Quantity::Exact, format!("rate {}", report.step), vec![report.learning_rate]);
    }
    record_parameters(&mut record, Quantity::Trained, "", trainer.flow());
    record_parameters(&mut record, Quantity::Trained, "average of ", &trainer.averaged());
    record
}

/// A run by the CPU in f32, as it was before every step.
#[derive(Debug, Clone)]
struct States {
    run: Run,
    states: Vec<Hidden>,
}

/// An archive, too long to print.
#[derive(Clone)]
struct Hidden(Archive);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl States {
    fn of(run: Run) -> Self {
        let run = Run { config: TrainConfig { epsilon: 1e-8, ..run.config }, ..run };
        let mut trainer = run.trainer(&single());
        let states = (0..STEPS).map(|_| {
            let state = trainer.to_archive().expect("stored");
            trainer.step().expect("finite");
            Hidden(state)
        });
        Self { states: states.collect(), run }
    }
}

fn adam_steps<B: Backend>(b: &B, case: &States) -> Record {
    let mut record = Record::new(case.run.model.dimension());
    let moment = |archive: &Archive, name: &str| -> Vec<f64> {
        let (shape, _) = &archive.tensors[name];
        archive.get::<B::Elem>(name, shape).expect("finite").iter().map(|v| v.to_f64()).collect()
    };
    for (i, Hidden(state)) in case.states.iter().enumerate() {
        let mut trainer = Trainer::resume(b.clone(), state, case.run.source()).expect("a run");
        let report = trainer.step().expect("finite");
        let after = trainer.to_archive().expect("stored");
        let [m, v] = ["moment.first", "moment.second"].map(|name| moment(&after, name));
        record_parameters(&mut record, Quantity::Step, &format!("step {i}: "), trainer.flow());
        // the update is m̂/√v̂: where the root is small, what the gradient is off by shows magnified, up to the whole step
        let [b1, b2] = case.run.config.betas;
        let before = moment(state, "moment.first");
        let gradient = m.iter().zip(&before).map(|(m, old)| ((m - b1 * old) / (1.0 - b1)).abs());
        let error = ADAM_GRADIENT * gradient.fold(0.0, f64::max);
        let correction = 1.0 - b2.powf(report.step as f64);
        let slack = v.iter().map(|v| report.learning_rate * (error / (v / correction).sqrt()).min(2.0));
        record.slack(slack.collect());
        record.push(Quantity::Gradient, format!("step {i}: first moment"), m);
        // of the order of a gradient
        let roots = v.iter().map(|v| (v / (1.0 - b2)).sqrt()).collect();
        record.push(Quantity::Gradient, format!("step {i}: root of the second moment"), roots);
        record.push(Quantity::Gradient, format!("step {i}: norm"), vec![report.gradient_norm]);
        record.push(Quantity::LogDet, format!("step {i}: −log p"), vec![report.train_nll]);
    }
    record
}
