//! Inverses: x again from z, by both methods, with what is reported of each row; and samples with the same key.

use resflow::backend::Backend;
use resflow::flow::Decoded;
use resflow::invert::{Inversion, Method};

use crate::agreement::model::{Model, dense, pictures};
use crate::agreement::record::{Record, agreement};
use crate::agreement::tolerance::Quantity;

/// A model, rows, and the history of Anderson's method.
type Case = (Model, usize, usize);

agreement!(dense_inverses: 12 of (dense(), 1_usize..=21, 1_usize..=5) => round_trip(Case));
agreement!(image_inverses: 8 of (pictures(), 1_usize..=4, 1_usize..=5) => round_trip(Case));
agreement!(dense_samples: 12 of (dense(), 1_usize..=33) => samples((Model, usize)));
agreement!(image_samples: 8 of (pictures(), 1_usize..=4) => samples((Model, usize)));

fn record_decoded(record: &mut Record, name: &str, found: Decoded) {
    let status = found.reports.iter().map(|r| r.status as u8 as f64).collect();
    record.push(Quantity::Exact, format!("{name}status"), status);
    record.push(Quantity::Inverse, format!("{name}x"), found.samples.into_values());
    record.push(Quantity::Inverse, format!("{name}residuals"), found.reports.iter().map(|r| r.residual).collect());
}

fn round_trip<B: Backend>(b: &B, (model, n, history): &Case) -> Record {
    let prepared = model.load(b).prepare();
    let x = model.rows(*n);
    let z = prepared.encode(&x, model.key).expect("rows that fit").latents;
    let mut record = Record::new(model.dimension());
    for (name, method) in [("fixed point: ", Method::FixedPoint), ("Anderson: ", Method::Anderson(*history))] {
        let how = Inversion::for_backend::<B>().with_method(method).expect("a method");
        let found = prepared.decode(&z, &how).expect("rows that fit");
        let off = found.samples.values().iter().zip(x.values()).map(|(found, x)| found - x).collect();
        record_decoded(&mut record, name, found);
        record.push(Quantity::Inverse, format!("{name}x of z of x, less x"), off);
    }
    record
}

fn samples<B: Backend>(b: &B, (model, n): &(Model, usize)) -> Record {
    let mut record = Record::new(model.dimension());
    record_decoded(&mut record, "", model.load(b).sample(*n, model.key).expect("no device fault"));
    record
}
