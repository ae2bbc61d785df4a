//! Gradients of the likelihood through whole flows, in every parameter and in x, by every estimator and with every way to
//! keep the forward pass; and the vectors they are made of.

use proptest::prelude::*;
use resflow::backend::Backend;
use resflow::bijection::{Draw, Memory};
use resflow::flow::Flow;
use resflow::train::{Gradient, Objective, Supervision, gradient};

use crate::model::{Model, dense, hybrids, normals, pictures, upload};
use crate::record::{Record, agreement, host};
use crate::tolerance::Quantity;

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

fn whole<B: Backend>(b: &B, (model, n, memory): &Case) -> Record {
    let flow = model.load(b);
    let x = model.batch(b, *n);
    // a weight for each row, all of one sign so that the loss does not cancel
    let weights: Vec<f64> = normals(model.key.named("weights"), *n).iter().map(|w| w.abs() / *n as f64).collect();
    let weights = upload(b, &weights, [*n, 1]);
    let found = match memory {
        None => flow.gradient(&x, Some(&weights), model.key).expect("shapes that fit"),
        Some(memory) => {
            let links: Vec<_> = flow.transforms().iter().map(|link| link.prepare(b)).collect();
            let objective = Objective {
                x: &x,
                weights: &weights,
                estimator: model.config.training(),
                key: model.key,
                first_row: 0,
                memory: *memory,
                // as if a row filled the cache, where there is one: shards as small as they get
                row_bytes: 1 << 30,
                parameters: flow.parameters(),
                input_gradient: true,
                supervision: None,
            };
            gradient(b, &links, &objective)
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

    let classifier = flow.classifier().expect("a hybrid model").prepare(b);
    let classes = classifier.classes();
    let one = |e: usize| f64::from(u8::from(e % classes == e / classes * 2 % classes));
    let targets = upload(b, &(0..n * classes).map(one).collect::<Vec<_>>(), [*n, classes]);
    let links: Vec<_> = flow.transforms().iter().map(|link| link.prepare(b)).collect();
    let found = gradient(
        b,
        &links,
        &Objective {
            x: &model.batch(b, *n),
            weights: &b.full(1.0 / *n as f64, [*n, 1].into()),
            estimator: model.config.training(),
            key: model.key,
            first_row: 0,
            memory: Memory::Recompute,
            row_bytes: 1 << 30,
            parameters: flow.parameters(),
            input_gradient: true,
            supervision: Some(Supervision {
                classifier: &classifier,
                targets: &targets,
                density_weight: *density_weight,
            }),
        },
    );
    record_gradient(&mut record, &flow, &found);
    let score = host(b, found.classification.as_ref().expect("judged"));
    record.push(Quantity::Value, "cross-entropy", vec![score[0]]);
    record
}

/// Each link in training: y, the log det with the numbers N and probes of the key, v and u.
fn surrogates<B: Backend>(b: &B, (model, n): &(Model, usize)) -> Record {
    let mut record = Record::new(model.dimension());
    let mut x = model.batch(b, *n);
    for (l, link) in model.load(b).transforms().iter().enumerate() {
        let draw =
            Draw { estimator: model.config.training(), key: model.key.named("draw").split(l as u64), first_row: 5 };
        let forward = link.prepare(b).train_forward(b, &x, draw, Memory::Store);
        record.tensor(b, Quantity::Value, format!("links.{l} y"), &forward.y);
        record.tensor(b, Quantity::LogDet, format!("links.{l} log det"), &forward.log_det);
        record.push(Quantity::Exact, format!("links.{l} terms"), vec![forward.terms as f64]);
        // a link that takes its rows in tiles has the vectors of each
        let tapes =
            if forward.tape.tiles.is_empty() { vec![&forward.tape] } else { forward.tape.tiles.iter().collect() };
        for index in 0..tapes[0].probes.len() {
            let v = tapes.iter().flat_map(|tape| host(b, &tape.probes[index])).collect();
            let u = tapes.iter().flat_map(|tape| host(b, &tape.cotangents[index])).collect();
            record.push(Quantity::Draw, format!("links.{l} v {index}"), v);
            record.push(Quantity::Neumann, format!("links.{l} u {index}"), u);
        }
        let shape = b.shape(&forward.y);
        x = b.narrow(&forward.y, shape.rank() - 1, 0, shape.channels() - link.factored_out());
    }
    record
}
