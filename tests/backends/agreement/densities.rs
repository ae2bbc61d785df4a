//! Log dets, log p and their standard errors, by every estimator with the same keys; of rows and of images as bytes, whose
//! noise the device draws.

use resflow::backend::Backend;
use resflow::flow::LogProb;

use crate::agreement::model::{Model, dense, pictures, solving};
use crate::agreement::record::{Record, agreement};
use crate::agreement::tolerance::Quantity;

/// A model and rows.
type Case = (Model, usize);

agreement!(dense_densities: 16 of (dense(), 1_usize..=21) => densities(Case));
agreement!(image_densities: 12 of (pictures(), 1_usize..=4) => densities(Case));

agreement!(solved_densities: 16 of (solving(), 1_usize..=9) => solved(Case));

/// log p, its log det and its standard error.
pub(crate) fn record_log_prob(record: &mut Record, name: &str, found: LogProb) {
    record.push(Quantity::LogDet, format!("{name}log p"), found.values);
    record.push(Quantity::LogDet, format!("{name}log det"), found.log_det);
    record.push(Quantity::StandardError, format!("{name}standard error"), found.standard_error);
    record.push(Quantity::Exact, format!("{name}replicates"), vec![found.replicates as f64]);
}

fn densities<B: Backend>(b: &B, (model, n): &Case) -> Record {
    let prepared = model.load(b).prepare();
    let mut record = Record::new(model.dimension());
    let rows = model.rows(*n);
    record_log_prob(&mut record, "", prepared.log_prob(&rows, model.key).expect("rows that fit"));
    let encoded = prepared.encode(&rows, model.key).expect("rows that fit");
    record.push(Quantity::Value, "z", encoded.latents.into_values());
    record.push(Quantity::LogDet, "log det of z", encoded.log_det);
    if let Some(images) = model.images(*n) {
        record_log_prob(&mut record, "bytes: ", prepared.log_prob(&images, model.key).expect("images that fit"));
    }
    record
}

/// Of flows that solve on the way forward: log p, which may be off by what is said of its solves besides, z, and gradients in samples.
fn solved<B: Backend>(b: &B, (model, n): &Case) -> Record {
    let prepared = model.load(b).prepare();
    let mut record = Record::new(model.dimension());
    let rows = model.rows(*n);
    let (found, gradients) = prepared.log_prob_and_gradient(&rows, model.key).expect("rows that fit");
    let solved = found.status.iter().map(|status| f64::from(u8::from(status.is_solved()))).collect();
    record.push(Quantity::Exact, "solved", solved);
    record.push(Quantity::LogDet, "log p", found.values);
    record.error(found.solve_error);
    record.push(Quantity::StandardError, "standard error", found.standard_error);
    record.push(Quantity::Gradient, "gradient of x", gradients.into_values());
    let encoded = prepared.encode(&rows, model.key).expect("rows that fit");
    // as an inverse is: to a residual below 8.4 ε, which 1/(1 − c) of every block magnifies
    record.push(Quantity::Inverse, "z", encoded.latents.into_values());
    record
}
