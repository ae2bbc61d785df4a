//! Gradients of functions of decoded samples, for every family, against differences through the inverse, and what is said of
//! solves that do not end. No statistics: seeds are fixed.

use resflow::NdArray;
use resflow::backend::{Backend as _, Key};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};
use resflow::lipschitz::PowerIteration;
use resflow::transform::from_vectors;

use crate::common::bijections::is_slope;
use crate::common::*;

/// A flow of a family with all trained tensors moved off where they begin.
pub(crate) fn moved(config: &ModelConfig, size: f64) -> Flow<Cpu> {
    let b = cpu();
    let mut flow = Flow::new(b.clone(), config, Key::new(7)).expect("a configuration");
    let towards = direction(&flow, Key::new(8));
    shift(&mut flow, &towards, size);
    flow.update_spectral_norms(PowerIteration::converge::<Cpu>());
    flow
}

/// A random direction in the space of the trained numbers, in the order of a visit.
pub(crate) fn direction(flow: &Flow<Cpu>, key: Key) -> Vec<f64> {
    let count = usize::try_from(flow.parameters()).expect("a small flow");
    down(flow.backend(), &normal(flow.backend(), key, [count]))
}

/// Adds a multiple of a direction to the trained numbers.
pub(crate) fn shift(flow: &mut Flow<Cpu>, direction: &[f64], by: f64) {
    let b = flow.backend().clone();
    let mut at = 0;
    flow.visit_mut(&mut |_, tensor, role| {
        if role.is_trained() {
            let shape = b.shape(tensor);
            let own = b.upload(&direction[at..at + shape.elements()], shape);
            *tensor = b.axpy(by, &own, tensor.clone());
            at += shape.elements();
        }
    });
}

fn configurations() -> impl Iterator<Item = ModelConfig> {
    Family::ALL.into_iter().flat_map(|family| {
        let rows = FlowConfig { blocks: 3, hidden: vec![8, 8], ..FlowConfig::of(family, 3) };
        let images = ImageConfig {
            blocks: vec![1, 1],
            filters: 4,
            fully_connected: 1,
            fully_connected_width: 3,
            evaluation: Estimator::Exact(Exact),
            ..exact_images([4, 4, 1], &[1])
        };
        // a continuous flow's gradient is that of the steps of training, which are to be as good as those of decoding
        let solver = "rk4:steps=16".parse().expect("a solver");
        let images = family.takes_images().then(|| ImageConfig { solver, ..images.of(family) }.into());
        [ModelConfig::from(rows)].into_iter().chain(images)
    })
}

#[test]
fn gradients_through_the_inverse_are_those_by_differences() {
    let b = cpu();
    let how = Inversion::for_backend::<Cpu>();
    for config in configurations() {
        let flow = moved(&config, 0.05);
        let (n, d) = (3, flow.dimension());
        let what = (config.family(), config.sample_shape());
        let z = down(&b, &normal(&b, Key::new(1), [n, d]));
        let weights = down(&b, &normal(&b, Key::new(2), [n, d]));
        // the images of a logit are not known to the last digit where it is steep: what comes before it is compared
        let prepared = flow.prepare();
        let decode = |flow: &Flow<Cpu>, z: &[f64]| {
            let table = Table::new(None, d, z.to_vec()).expect("rows");
            let found = flow.prepare().decode(&table, &how).expect("no device fault");
            assert!(found.reports.iter().all(|r| r.status <= Status::FloatFloor), "{what:?}");
            found.samples.into_values()
        };
        let objective = |flow: &Flow<Cpu>, z: &[f64]| dot(&weights, &decode(flow, z));
        let shape = config.sample_shape();
        let up = |values: &[f64]| from_vectors(&b, &b.upload(values, [n, d].into()), &shape);
        let found = prepared.decode_gradient(&up(&decode(&flow, &z)), &up(&weights), &how).expect("solved");
        assert!(found.reports.len() == n && found.reports.iter().all(|r| r.status <= Status::FloatFloor), "{what:?}");

        let towards = down(&b, &normal(&b, Key::new(3), [n * d]));
        let along = |h: f64| z.iter().zip(&towards).map(|(z, t)| z + h * t).collect::<Vec<_>>();
        let latents = dot(&down(&b, &found.latents), &towards);
        assert!(is_slope(latents, 1e-6, |h| objective(&flow, &along(h))), "{what:?}: {latents} by z");

        let towards = direction(&flow, Key::new(4));
        let by_parameters = dot(&down(&b, &found.flat), &towards);
        let differs = |h| {
            let mut flow = flow.clone();
            shift(&mut flow, &towards, h);
            objective(&flow, &z)
        };
        assert!(is_slope(by_parameters, 1e-5, differs), "{what:?}: {by_parameters} by θ");
    }
}

#[test]
fn a_solve_that_does_not_end_is_said_and_shapes_are_checked() {
    let b = NdArray::<f64>::new();
    let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::new(2) };
    let flow = moved(&config.into(), 0.3).to_backend(b.clone()).expect("a flow").prepare();
    let x = b.upload(&[0.3, -0.2, 1.0, 2.0], [2, 2].into());
    let one = Inversion::for_backend::<Cpu>().with_limit(1).expect("a limit");
    let found = flow.decode_gradient(&x, &b.full(1.0, [2, 2].into()), &one).expect("no device fault");
    assert!(found.reports.iter().all(|r| r.status == Status::NotConverged), "{:?}", found.reports);
    for wrong in [[2, 3], [1, 2], [0, 2]] {
        let gradient = b.full(1.0, wrong.into());
        assert!(flow.decode_gradient(&x, &gradient, &one).is_err(), "{wrong:?}");
    }
}
