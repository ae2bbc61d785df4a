//! The comparison of a part that was saved and loaded again with itself.

use resflow_backend::{Backend, Key};

use super::differences::{differ, down};
use super::{Property, Report};
use crate::batch::Batch;
use crate::bijection::{Ask, Bijection, Draw};
use crate::config::{FlowConfig, ImageConfig, ModelConfig};
use crate::coupling::{Coupling, Mask};
use crate::error::Error;
use crate::estimator::{Estimator, Exact};
use crate::flow::Flow;
use crate::layer::{Layer, LipschitzLinear, Sequence};
use crate::registry::Registry;

const EXACT: Estimator = Estimator::Exact(Exact);

/// The configuration of a flow over samples of a shape.
fn config(shape: &[usize]) -> Option<ModelConfig> {
    match *shape {
        [d] => Some(FlowConfig::new(d).into()),
        [height, width, channels] => {
            let small =
                ImageConfig { blocks: vec![1], filters: 1, kernels: vec![1], fully_connected: 0, ..Default::default() };
            Some(ImageConfig { height, width, channels, ..small }.into())
        }
        _ => None,
    }
}

/// Holds a transform that is loaded from what a file stores of it to itself, at samples of a batch.
pub(super) fn check<B: Backend>(
    report: &mut Report,
    backend: &B,
    transform: &dyn Bijection<B>,
    batch: &Batch<B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<(), Error> {
    if transform.stage().is_none() {
        report.note(
            Property::SaveAndLoad,
            "it does not say what it is, so it can be trained and used but not saved: give it a `stage`, and a maker in the registry"
                .into(),
        );
        return Ok(());
    }
    compare(report, backend, transform, batch, key, registry)
}

fn compare<B: Backend>(
    report: &mut Report,
    backend: &B,
    transform: &dyn Bijection<B>,
    batch: &Batch<B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<(), Error> {
    let shape = batch.shape(backend);
    let Some(config) = config(&shape[1..]) else {
        let sentence = format!("not checked: models are of samples [d] or [h, w, c], not {:?}", &shape[1..]);
        report.note(Property::SaveAndLoad, sentence);
        return Ok(());
    };
    let again = match Flow::from_transforms(backend.clone(), config, vec![transform.boxed_clone()]) {
        // it gives something of a wrong shape, which is found where that is looked at
        Err(Error::Transform { .. }) => return Ok(()),
        flow => flow
            .and_then(|flow| flow.to_archive())
            .and_then(|archive| Flow::from_archive_with(backend.clone(), &archive, registry)),
    };
    let again = match again {
        Ok(flow) => flow,
        Err(e) => {
            let stage = transform.stage();
            report.find(Property::SaveAndLoad, format!("saved as {stage:?} it cannot be loaded again: {e}"));
            return Ok(());
        }
    };
    let ask = Ask::log_det::<B>(Draw { estimator: &EXACT, key }, 1);
    let outcome = |transform: &dyn Bijection<B>| -> Result<(Vec<f64>, Vec<f64>), Error> {
        let mapped = transform.prepare(backend).forward(backend, batch, &ask)?;
        let terms = mapped.log_dets.iter().map(|term| down(backend, &term.value)).collect::<Result<Vec<_>, _>>()?;
        Ok((down(backend, &mapped.y)?, terms.concat()))
    };
    let (before, after) = (outcome(transform)?, outcome(&*again.transforms()[0])?);
    for (what, before, after) in [("y", &before.0, &after.0), ("the log det", &before.1, &after.1)] {
        if before.len() != after.len() {
            let sentence = format!("{what} has {} numbers before saving and {} after", before.len(), after.len());
            report.find(Property::SaveAndLoad, sentence);
        } else if let Some(apart) = differ::<B>(after, before) {
            report.find(
                Property::SaveAndLoad,
                format!(
                    "number {} of {what} is {:e} before saving and {:e} after loading: the stage must say every setting, and `parts` show every tensor, also those that are not trained",
                    apart.at, apart.expected, apart.found
                ),
            );
        }
    }
    Ok(())
}

/// Checks a layer, inside a coupling whose net it is followed by a free linear layer, at samples x of the layer.
pub(super) fn check_layer<B: Backend>(
    report: &mut Report,
    backend: &B,
    layer: &dyn Layer<B>,
    batch: &Batch<B>,
    key: Key,
    registry: &Registry<B>,
) -> Result<(), Error> {
    let shape = batch.shape(backend);
    let (input, output) = (&shape[1..], layer.output_shape(&shape[1..])?);
    let mut skip = |why: &str| report.note(Property::SaveAndLoad, why.into());
    if layer.stage().is_none() && layer.net().is_some() {
        skip("not checked: a net is saved with the transform that it is in; check that");
        return Ok(());
    }
    if layer.stage().is_none() {
        skip(
            "it does not say what it is, so a model with it can be trained and used but not saved: give it a `stage`, and a maker in the registry",
        );
        return Ok(());
    }
    let (Some((&from, pixels)), Some((&to, others))) = (input.split_last(), output.split_last()) else { return Ok(()) };
    if pixels != others || !matches!(input.len(), 1 | 3) {
        skip(
            "not checked: only layers that change the last axis of samples [d] or [h, w, c] alone are saved by the check",
        );
        return Ok(());
    }
    // x stays, as much again is moved by a linear map of what the layer makes of it
    let free = LipschitzLinear::initialise(backend, to, 2 * from, None, key.named("free"));
    let net = Sequence::new(vec![layer.boxed_clone(), Box::new(free)]);
    let whole = [pixels, &[2 * from]].concat();
    let coupling = Coupling::new(Box::new(net), Mask::Channels { swapped: false }, &whole)?;
    let axis = shape.rank() - 1;
    let batch = batch.with_x(backend.concat(&[&batch.x, &batch.x], axis));
    compare(report, backend, &coupling, &batch, key, registry)
}
