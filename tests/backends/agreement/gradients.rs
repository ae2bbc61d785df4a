//! Gradients of the likelihood through whole flows, in every parameter and in x, by every estimator and with every way to
//! keep the forward pass; and the vectors they are made of.

use proptest::prelude::*;
use resflow::backend::Backend;
use resflow::batch::Batch;
use resflow::bijection::{Draw, Memory};
use resflow::estimator::{Estimate, Samples};
use resflow::flow::{Flow, Gradient, Objective, Supervision};
use resflow::layer::Derivatives;

use crate::agreement::model::{Model, dense, hybrids, normals, pictures, upload};
use crate::agreement::record::{Record, agreement, host};
use crate::agreement::tolerance::Quantity;
use crate::common::asking::{Trained, train};
use crate::common::cut::{Cut, uncut};

/// A model, rows, and what is kept, or `None` for the flow's own choice.
type Case = (Model, usize, Option<Memory>);

fn memory() -> impl Strategy<Value = Option<Memory>> {
    let all = [Memory::Store, Memory::Recompute, Memory::Unroll].map(Some);
    prop_oneof![Just(None), proptest::sample::select(all.to_vec())]
}

agreement!(dense_gradients: 16 of (dense(), 1_usize..=50, memory()) => whole(Case));
agreement!(image_gradients: 12 of (pictures(), 1_usize..=5, memory()) => whole(Case));
agreement!(dense_surrogates: 16 of (dense(), 1_usize..=17) => surrogates((Model, usize)));
agreement!(image_surrogates: 12 of (pictures(), 1_usize..=3) => surrogates((Model, usize)));
agreement!(hybrid_gradients: 16 of (hybrids(), 1_usize..=5, 0.0..1.0) => supervised((Model, usize, f64)));

/// Loss and gradients of a flow, tensor by tensor.
pub(crate) fn record_gradient<B: Backend>(record: &mut Record, flow: &Flow<B>, found: &Gradient<B>) {
    let b = flow.backend();
    record.tensor(b, Quantity::LogDet, "loss", &found.loss);
    if let Some(input) = &found.input {
        record.tensor(b, Quantity::Gradient, "gradient of x", input);
    }
    let (mut at, mut parts) = (0, Vec::new());
    flow.visit(&mut |name, t, role| {
        if role.is_trained() {
            let start = at;
            at += b.shape(t).elements();
            parts.push((name.to_owned(), start..at));
        }
    });
    record.parts(Quantity::Gradient, "gradient of ", host(b, &found.flat), parts);
}

/// As if few rows filled the cache: several shards in a lane.
fn cut<B: Backend>(b: &B) -> Cut<B> {
    Cut { device: b.clone(), rows: 4, lanes: 2 }
}

fn whole<B: Backend>(b: &B, (model, n, memory): &Case) -> Record {
    let flow = model.load(b);
    let x = model.batch(b, *n);
    // a weight for each row, all of one sign so that the loss does not cancel
    let weights: Vec<f64> = normals(model.key.named("weights"), *n).iter().map(|w| w.abs() / *n as f64).collect();
    let weights = upload(b, &weights, [*n, 1]);
    let found = match memory {
        None => flow.gradient(&x, Some(&weights), model.key).expect("shapes that fit"),
        Some(memory) => {
            let objective = Objective {
                batch: &Batch::new(x),
                weights: &weights,
                key: model.key,
                memory: *memory,
                input_gradient: true,
                supervision: None,
            };
            uncut(model.load(&cut(b)).prepare().gradient(&objective).expect("no device fault"))
        }
    };
    let mut record = Record::new(model.dimension());
    record_gradient(&mut record, &flow, &found);
    record
}

/// What a classifier says, and the gradient of a hybrid model's loss.
fn supervised<B: Backend>(b: &B, (model, n, density_weight): &(Model, usize, f64)) -> Record {
    let flow = model.load(b);
    let mut record = Record::new(model.dimension());
    let said = flow.classify(&model.images(*n).expect("images"), model.key).expect("images that fit");
    record.push(Quantity::Value, "log probabilities", said.log_probabilities);

    let classes = flow.classifier().expect("a hybrid model").classes();
    let one = |e: usize| f64::from(u8::from(e % classes == e / classes * 2 % classes));
    let targets = upload(b, &(0..n * classes).map(one).collect::<Vec<_>>(), [*n, classes]);
    let objective = Objective {
        batch: &Batch::new(model.batch(b, *n)),
        weights: &b.full(1.0 / *n as f64, [*n, 1].into()),
        key: model.key,
        memory: Memory::Recompute,
        input_gradient: true,
        supervision: Some(Supervision { targets: &targets, density_weight: *density_weight }),
    };
    let found = model.load(&cut(b)).prepare().gradient(&objective).expect("no device fault");
    let found = uncut(found);
    record_gradient(&mut record, &flow, &found);
    let score = host(b, found.classification.as_ref().expect("judged"));
    record.push(Quantity::Value, "cross-entropy", vec![score[0]]);
    record
}

/// Each link in training: y, the log det with the numbers N and probes of the key; of a block also v and u.
fn surrogates<B: Backend>(b: &B, (model, n): &(Model, usize)) -> Record {
    let mut record = Record::new(model.dimension());
    let mut x = Batch::new(model.batch(b, *n)).starting_at(5);
    for (l, link) in model.load(b).transforms().iter().enumerate() {
        let draw = Draw { estimator: model.config.training(), key: model.key.named("draw").split(l as u64) };
        let Trained { y, log_det, terms, .. } = train(b, &*link.prepare(b), &x, draw, Memory::Store);
        record.tensor(b, Quantity::Value, format!("links.{l} y"), &y);
        record.tensor(b, Quantity::LogDet, format!("links.{l} log det"), &log_det);
        record.push(Quantity::Exact, format!("links.{l} terms"), vec![terms as f64]);
        if let (Some(net), Some(cost)) = (link.residual(), link.cost()) {
            // what the block kept: the vectors of the same key at the same samples
            let net = net.prepare(b);
            let (_, saved) = net.forward(b, &x, Derivatives::First);
            let shape = x.shape(b);
            let samples = Samples { count: *n, shape: &shape[1..], first: x.first };
            let found = Estimate { backend: b, net: &*net, saved: &saved, samples, cost }.surrogates(&draw);
            assert_eq!(found.terms, terms, "links.{l}");
            record.tensor(b, Quantity::LogDet, format!("links.{l} log det of u and v"), &found.log_det.value);
            for (index, (v, u)) in found.probes.iter().zip(&found.cotangents).enumerate() {
                record.tensor(b, Quantity::Draw, format!("links.{l} v {index}"), v);
                record.tensor(b, Quantity::Neumann, format!("links.{l} u {index}"), u);
            }
        }
        let shape = b.shape(&y);
        x = x.with_x(b.narrow(&y, shape.rank() - 1, 0, shape.channels() - link.factored_out()));
    }
    record
}
