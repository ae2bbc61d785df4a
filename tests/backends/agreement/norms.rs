//! σ of every weight, after a few iterations from vectors of other weights, after many, and after iterating to rest.

use resflow::backend::Backend;
use resflow::flow::Flow;
use resflow::lipschitz::PowerIteration;
use resflow::module::Role;

use crate::agreement::model::{Model, dense, normals, pictures, upload};
use crate::agreement::record::{Record, agreement};
use crate::agreement::tolerance::Quantity;

/// A model and the few iterations.
type Case = (Model, usize);

agreement!(dense_norms: 12 of (dense(), 0_usize..=5) => norms(Case));
agreement!(image_norms: 8 of (pictures(), 0_usize..=5) => norms(Case));

fn record_sigma<B: Backend>(record: &mut Record, quantity: Quantity, name: &str, flow: &Flow<B>) {
    for spectrum in flow.spectra().expect("no device fault").into_iter().flatten() {
        record.push(quantity, format!("{} {name}", spectrum.name), vec![spectrum.sigma]);
    }
}

fn norms<B: Backend>(b: &B, (model, few): &Case) -> Record {
    let mut flow = model.load(b);
    let mut record = Record::new(model.dimension());
    record_sigma(&mut record, Quantity::Sigma, "as stored", &flow);
    let mut number = 0;
    flow.visit_mut(&mut |_, t, role| {
        number += 1;
        if role == Role::Weight {
            let shape = b.shape(t);
            let noise = upload(b, &normals(model.key.named("move").split(number), shape.elements()), shape);
            *t = b.axpy(0.3, &noise, t.clone());
        }
    });
    for (name, iterations) in [("after a few", *few), ("after many", 60)] {
        flow.update_spectral_norms(PowerIteration::Iterations(iterations));
        record_sigma(&mut record, Quantity::Sigma, name, &flow);
    }
    flow.update_spectral_norms(PowerIteration::converge::<B>());
    record_sigma(&mut record, Quantity::SigmaAtRest, "at rest", &flow);
    record
}
