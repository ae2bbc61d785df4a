//! Dense flows: z, log det, log p and the loss, every gradient, normalised weights and singular values, through the public
//! API with exact log dets; then the estimators on the first block.
//!
//! The gradient is compared as a flow computes it, cut into shards with g computed again, and for a loss that weighs each row
//! differently, whose gradient in x follows from the reference's row by row.

use std::f64::consts::TAU;

use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Memory};
use resflow::block::ResidualBlock;
use resflow::config::FlowConfig;
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, Gradient, Objective};
use resflow::import::StateDict;
use resflow::invert::Inversion;
use resflow::layer::{ActivationLayer, Layer, LipschitzLinear, Sequence};
use resflow::lipschitz::{Coefficient, DenseOperator, PowerIteration, SingularPair};
use resflow::transform::ActNorm;

use crate::common::cut::{Cut, uncut};
use crate::golden::estimators;
use crate::golden::fixture::{Comparison, Fixture, host};

/// Compares everything in a file.
pub(crate) fn compare<B: Backend>(backend: &B, name: &str) {
    let file = Fixture::open(name);
    let mut comparison = Comparison::new::<B>(name);
    let flow = flow(backend, &file);
    values(&mut comparison, &flow, &file);
    gradients(&mut comparison, &flow, &file);
    norms(&mut comparison, &flow, &file);
    let state = StateDict::from_safetensors(&file.bytes()).expect("a state dict");
    let imported = Flow::from_state_dict(backend.clone(), flow.config(), state).expect("imports");
    values(&mut comparison, &imported, &file);
    let first = usize::from(!is_block(&file, 0));
    estimators::compare(&mut comparison, backend, &net(backend, &file, first), &file);
    comparison.finish();
    file.assert_all_read();
}

fn is_block(file: &Fixture, link: usize) -> bool {
    file.has(&format!("param.chain.{link}.nnet.0.beta"))
}

fn layer_path(link: usize, layer: usize) -> String {
    format!("chain.{link}.nnet.{layer}")
}

fn linear<B: Backend>(backend: &B, file: &Fixture, path: &str) -> LipschitzLinear<B> {
    let parameter = |name: &str| file.tensor(backend, &format!("param.{path}.{name}"));
    let vector = |name: &str| file.tensor(backend, &format!("buffer.{path}.{name}"));
    let pair = SingularPair::new(backend, vector("u"), vector("v"));
    let coefficient = Coefficient::new(file.note("coeff")).expect("between 0 and 1");
    LipschitzLinear::from_parts(backend, parameter("weight"), parameter("bias"), pair, coefficient)
        .expect("shapes that fit")
}

/// g of the block at a place in the chain.
fn net<B: Backend>(backend: &B, file: &Fixture, link: usize) -> Sequence<B> {
    let widths: Vec<usize> = file.note("dims");
    let layers = (0..2 * (widths.len() - 1)).map(|layer| -> Box<dyn Layer<B>> {
        let path = layer_path(link, layer);
        if layer % 2 == 0 {
            Box::new(ActivationLayer::lipswish(file.tensor(backend, &format!("param.{path}.beta"))))
        } else {
            Box::new(linear(backend, file, &path))
        }
    });
    Sequence::new(layers.collect())
}

fn flow<B: Backend>(backend: &B, file: &Fixture) -> Flow<B> {
    let widths: Vec<usize> = file.note("dims");
    let [dimension, hidden @ .., _] = &widths[..] else { panic!("widths of at least two layers") };
    let (blocks, actnorm): (usize, bool) = (file.note("n_blocks"), file.note("actnorm"));
    let links = (0..if actnorm { 2 * blocks + 1 } else { blocks }).map(|link| -> Box<dyn Bijection<B>> {
        if is_block(file, link) {
            let net = net(backend, file, link);
            Box::new(ResidualBlock::new(Box::new(net), &[*dimension]).expect("a contraction"))
        } else {
            let part = |name: &str| file.tensor(backend, &format!("param.chain.{link}.{name}"));
            Box::new(ActNorm::from_parts(backend, part("weight"), part("bias")).expect("shapes that fit"))
        }
    });
    let config = FlowConfig {
        dimension: *dimension,
        blocks,
        hidden: hidden.to_vec(),
        coefficient: file.note("coeff"),
        actnorm,
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::default()
    };
    Flow::from_transforms(backend.clone(), config, links.collect()).expect("links that fit")
}

/// z, log det and log p; and x again from z.
fn values<B: Backend>(comparison: &mut Comparison, flow: &Flow<B>, file: &Fixture) {
    let prepared = flow.prepare();
    let table = |key: &str| Table::new(None, flow.dimension(), file.values(key).to_vec()).expect("a table");
    let encoded = prepared.encode(&table("x"), Key::new(0)).expect("encodes");
    comparison.close("z", encoded.latents.values(), file.values("z"));
    comparison.close("logdet", &encoded.log_det, file.values("logdet"));
    assert!(encoded.standard_error.iter().all(|&e| e == 0.0), "an exact log det has no error");
    let log_prob = prepared.log_prob(&table("x"), Key::new(0)).expect("evaluates");
    comparison.close("logp", &log_prob.values, file.values("logp"));
    let decoded = prepared.decode(&table("z"), &Inversion::for_backend::<B>()).expect("decodes");
    comparison.close("x of z", decoded.samples.values(), file.values("x"));
}

fn gradients<B: Backend>(comparison: &mut Comparison, flow: &Flow<B>, file: &Fixture) {
    let backend = flow.backend();
    let x = file.tensor(backend, "x");
    let whole = flow.gradient(&x, None, Key::new(0)).expect("a gradient");
    compare_gradient(comparison, "", flow, file, &whole);

    let rows = backend.shape(&x).rows();
    // shards of few rows, several in a lane
    let device = Cut { device: backend.clone(), rows: 4, lanes: 2 };
    let prepared = self::flow(&device, file).prepare();
    let batch = Batch::new(x);
    let in_shards = |weights: &B::Tensor| {
        let objective = Objective {
            batch: &batch,
            weights,
            key: Key::new(0),
            memory: Memory::Recompute,
            input_gradient: true,
            supervision: None,
        };
        uncut(prepared.gradient(&objective).expect("the device works"))
    };
    let mean = 1.0 / rows as f64;
    compare_gradient(comparison, "recomputed ", flow, file, &in_shards(&backend.full(mean, [rows, 1].into())));

    let ratios: Vec<f64> = (0..rows).map(|r| 0.25 + 0.125 * (r % 7) as f64).collect();
    let weights: Vec<_> = ratios.iter().map(|r| B::Elem::from_f64(r * mean)).collect();
    let weighted = in_shards(&backend.upload(&weights, [rows, 1].into()));
    let log_prob = file.values("logp").iter().zip(&ratios);
    let loss: f64 = log_prob.map(|(p, r)| -(p + constant(flow)) * r * mean).sum();
    comparison.tensor(backend, "weighted loss", &weighted.loss, &[loss]);
    let expected = file.values("grad_x").chunks_exact(flow.dimension()).zip(&ratios);
    let expected: Vec<f64> = expected.flat_map(|(row, ratio)| row.iter().map(move |g| g * ratio)).collect();
    comparison.tensor(backend, "weighted grad_x", &weighted.input.expect("asked for"), &expected);
}

/// What the loss of a gradient leaves out of −log p: ½ d ln 2π.
fn constant<B: Backend>(flow: &Flow<B>) -> f64 {
    0.5 * flow.dimension() as f64 * TAU.ln()
}

fn compare_gradient<B: Backend>(
    comparison: &mut Comparison,
    how: &str,
    flow: &Flow<B>,
    file: &Fixture,
    gradient: &Gradient<B>,
) {
    let backend = flow.backend();
    let loss = host(backend, &gradient.loss)[0] + constant(flow);
    comparison.close(&format!("{how}loss"), &[loss], file.values("loss"));
    let input = gradient.input.as_ref().expect("asked for");
    comparison.tensor(backend, &format!("{how}grad_x"), input, file.values("grad_x"));
    let flat = host(backend, &gradient.flat);
    let mut rest = &flat[..];
    flow.visit(&mut |name, tensor, role| {
        if role.is_trained() {
            let (own, others) = rest.split_at(backend.shape(tensor).elements());
            let name = name.replace("links.", "chain.").replace(".net.", ".nnet.").replace("log_scale", "weight");
            comparison.close(&format!("{how}grad.{name}"), own, file.values(&format!("grad.{name}")));
            rest = others;
        }
    });
    assert!(rest.is_empty(), "the gradient has numbers that belong to no parameter");
}

/// σ of the stored vectors, the weights normalised by it, and the exact σ from the stored and from random vectors.
fn norms<B: Backend>(comparison: &mut Comparison, flow: &Flow<B>, file: &Fixture) {
    let backend = flow.backend();
    let spectra = flow.spectra().expect("the device works");
    let widths: Vec<usize> = file.note("dims");
    for (link, spectra) in spectra.iter().enumerate().filter(|&(link, _)| is_block(file, link)) {
        for (layer, spectrum) in (1..2 * (widths.len() - 1)).step_by(2).zip(spectra) {
            let path = layer_path(link, layer);
            let linear = linear(backend, file, &path);
            let scale = file.values(&format!("buffer.{path}.scale"));
            comparison.close(&format!("σ of {}", spectrum.name), &[spectrum.sigma], scale);
            let weight = linear.normalised_weight(backend);
            let name = format!("weight_normalised.{path}");
            comparison.tensor(backend, &name, &weight, file.values(&name));
            let name = format!("sigma_exact.{path}");
            let (outputs, inputs) = linear.pair().expect("constrained").shapes();
            let operator = DenseOperator::new(backend, linear.weight()).expect("a matrix");
            for pair in [
                linear.pair().expect("constrained").clone(),
                SingularPair::random(backend, outputs, inputs, Key::new(1)),
            ] {
                let converged = pair.updated(backend, &operator, PowerIteration::converge::<B>());
                comparison.tensor(backend, &name, &converged.sigma(backend, &operator), file.values(&name));
            }
        }
    }
}
