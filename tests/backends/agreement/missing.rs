//! Missing cells: log p of what was seen, with its standard error, and rows that are filled in.

use resflow::backend::{Backend, Key, Noise};
use resflow::config::{ContextConfig, Family, FlowConfig};
use resflow::data::Incomplete;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::missing::Imputer;

use crate::agreement::model::{Model, dense};
use crate::agreement::record::{Record, agreement, single};
use crate::agreement::tolerance::Quantity;
use crate::common::random_flow;

/// A model and rows.
type Case = (Model, usize);

agreement!(rows_with_holes: 12 of (dense(), 1_usize..=12) => with_holes(Case));

/// An imputer with the same numbers on every backend.
fn imputer<B: Backend>(b: &B, dimension: usize, key: Key) -> Imputer<B> {
    let context = ContextConfig { embedding: vec![6], ..ContextConfig::new(3 * dimension) };
    let own = FlowConfig {
        blocks: 2,
        hidden: vec![6],
        bins: 4,
        context: Some(context),
        ..FlowConfig::of(Family::Nsf, dimension)
    };
    let archive = random_flow(&single(), own, key, 0.05).to_archive().expect("stored");
    Imputer::new(Flow::from_archive(b.clone(), &archive).expect("a model")).expect("an imputer")
}

fn with_holes<B: Backend>(b: &B, (model, n): &Case) -> Record {
    let d = model.dimension();
    let mut flow: Flow<B> = model.load(b);
    flow.set_log_prob_estimator(Estimator::Exact(Exact), 2).expect("in range");
    flow.set_imputer(imputer(b, d, model.key.named("imputer"))).expect("as many columns");
    let mut chance = vec![0.0; n * d];
    Noise::Uniform.fill(model.key.named("holes"), 0, &mut chance);
    let seen = chance.iter().map(|u: &f64| *u > 0.4).collect();
    let rows = Incomplete::masked(&model.rows(*n), seen).expect("a mark for each cell");
    let marginal = flow.prepare_marginal().expect("exact").with_draws(16).expect("in range");
    let found = marginal.log_prob(&rows, model.key).expect("rows that fit");
    let filled = flow.prepare_imputer().expect("one").impute(&rows, 3, model.key).expect("rows that fit");
    let mut record = Record::new(d);
    record.push(Quantity::LogDet, "log p of what was seen", found.scores.values);
    record.push(Quantity::StandardError, "standard error", found.scores.standard_error);
    let status = found.scores.status.iter().map(|status| *status as u8 as f64).collect();
    record.push(Quantity::Exact, "status", status);
    record.push(Quantity::Inverse, "filled in", filled.into_table().into_values());
    record
}
