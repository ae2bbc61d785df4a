//! Conditional flows: log p, gradients in parameters, samples and contexts, and inverses, with a context of each sample's own and with
//! one for all.

use proptest::prelude::*;
use resflow::backend::Backend;
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::flow::{Flow, Objective};
use resflow::invert::Inversion;

use crate::agreement::densities::record_log_prob;
use crate::agreement::gradients::record_gradient;
use crate::agreement::model::{CONTEXT, Model, dense, normals, pictures, told, upload};
use crate::agreement::record::{Record, agreement};
use crate::agreement::tolerance::Quantity;
use crate::common::table;

/// A model, rows, and whether they share a context.
type Case = (Model, usize, bool);

agreement!(conditional_rows: 16 of (told(dense()), 1_usize..=30, any::<bool>()) => everything(Case));
agreement!(conditional_images: 8 of (told(pictures()), 1_usize..=4, any::<bool>()) => everything(Case));

fn everything<B: Backend>(b: &B, (model, n, shared): &Case) -> Record {
    let flow: Flow<B> = model.load(b);
    let prepared = flow.prepare();
    let mut record = Record::new(model.dimension());
    let rows = if *shared { 1 } else { *n };
    let contexts = normals(model.key.named("contexts"), rows * CONTEXT);
    let x = model.rows(*n);
    let at = prepared.condition(&table(CONTEXT, contexts.clone())).expect("contexts that fit");
    record_log_prob(&mut record, "", at.log_prob(&x, model.key).expect("rows that fit"));

    let weights: Vec<f64> = normals(model.key.named("weights"), *n).iter().map(|w| w.abs() / *n as f64).collect();
    let weights = upload(b, &weights, [*n, 1]);
    // contexts in their own units: the model's are not standardised
    let batch = Batch::new(model.batch(b, *n)).with_context(Some(upload(b, &contexts, [rows, CONTEXT])));
    let (key, memory, input_gradient) = (model.key, Memory::Recompute, true);
    let objective = Objective { batch: &batch, weights: &weights, key, memory, input_gradient, supervision: None };
    let found = prepared.gradient(&objective).expect("no device fault");
    record_gradient(&mut record, &flow, &found);
    let context = found.context.expect("asked for");
    record.tensor(b, Quantity::Gradient, "gradient of the contexts", &context);

    let z = at.encode(&x, model.key).expect("rows that fit").latents;
    let back = at.decode(&z, &Inversion::for_backend::<B>()).expect("rows that fit");
    let status = back.reports.iter().map(|r| r.status as u8 as f64).collect();
    record.push(Quantity::Exact, "status", status);
    record.push(Quantity::Inverse, "x of z of x", back.samples.into_values());
    record
}
