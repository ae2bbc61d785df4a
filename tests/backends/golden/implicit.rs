//! Blocks whose forward pass is a solve: an implicit block, and the inverse of a residual block alone. Values, the parts of
//! log dets, and all gradients through the solves, with a weight of its own for each row.

use resflow::backend::{Activation, Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, Draw, Mapped, Memory, PreparedBijection as _};
use resflow::block::{InvertedBlock, ResidualBlock};
use resflow::chain::Chain;
use resflow::config::{Family, FlowConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::import::StateDict;
use resflow::invert::{Inversion, SampleReport, Status, solve_transposed};
use resflow::layer::{ActivationLayer, Derivatives, Layer, LipschitzLinear, Sequence};
use resflow::lipschitz::{Coefficient, SingularPair};
use resflow::module::Grad;
use safetensors::SafeTensors;

use crate::common::asking::count_grads;
use crate::golden::fixture::{Comparison, Fixture, host, norms_of_matrices};

/// The layers of a net under a path, a weight at every number of `linear`, activations between them (and before, if 0 is none).
fn net<B: Backend>(backend: &B, file: &Fixture, path: &str, function: Activation) -> Sequence<B> {
    let layers = (0..).map_while(|j| -> Option<Box<dyn Layer<B>>> {
        let key = |name: &str| format!("param.{path}.{j}.{name}");
        if file.has(&key("weight")) {
            let buffer = |name: &str| file.tensor(backend, &format!("buffer.{path}.{j}.{name}"));
            let pair = SingularPair::new(backend, buffer("u"), buffer("v"));
            let coefficient = Coefficient::new(file.note("coeff")).expect("between 0 and 1");
            let [weight, bias] = ["weight", "bias"].map(|name| file.tensor(backend, &key(name)));
            let layer = LipschitzLinear::from_parts(backend, weight, bias, pair, coefficient);
            return Some(Box::new(layer.expect("shapes that fit")));
        }
        if file.has(&key("beta")) {
            return Some(Box::new(ActivationLayer::lipswish(file.tensor(backend, &key("beta")))));
        }
        let between = file.has(&format!("param.{path}.{}.weight", j + 1));
        between.then(|| Box::new(ActivationLayer::new(backend, function)) as Box<dyn Layer<B>>)
    });
    Sequence::new(layers.collect())
}

/// Solves as far as the arithmetic goes: to about 1e−14 and 1e−6.
fn tight<B: Backend>() -> Inversion {
    Inversion::for_backend::<B>().with_accuracy(32.0 * B::Elem::EPSILON).expect("above 0")
}

/// The gradients of Σ cotangent·y + Σ weightᵢ·(log det)ᵢ of some transforms, with that in x first.
struct Gradients<B: Backend> {
    mapped: Mapped<B>,
    x: B::Tensor,
    parameters: Vec<(String, Vec<f64>)>,
}

fn gradients<B: Backend>(
    backend: &B,
    transforms: Vec<Box<dyn Bijection<B>>>,
    x: &B::Tensor,
    cotangent: &B::Tensor,
    weights: &B::Tensor,
    memory: Memory,
) -> Gradients<B> {
    let shape = backend.shape(x);
    let exact = Estimator::Exact(Exact);
    let count: usize = transforms.iter().map(|t| count_grads(&**t)).sum();
    let mut names = Vec::new();
    for (number, transform) in transforms.iter().enumerate() {
        transform.visit(&number.to_string(), &mut |name, _, role| {
            names.extend(role.is_trained().then(|| name.to_owned()));
        });
    }
    let chain = Chain::new(transforms, &shape[1..]).expect("samples pass").prepare_chain(backend);
    let ask = Ask { solver: tight::<B>(), ..Ask::gradient::<B>(Draw { estimator: &exact, key: Key::new(0) }, memory) };
    let mut mapped = chain.forward_observed(backend, &Batch::new(x.clone()), &ask, &mut |_, _, _| ()).expect("forward");
    let solved = |reports: &[SampleReport]| {
        assert!(reports.iter().all(|r| matches!(r.status, Status::Converged | Status::FloatFloor)), "{reports:?}");
    };
    solved(mapped.reports.as_ref().expect("a solve has reports"));
    let mut grads: Vec<Grad<B>> = vec![None; count];
    let cotangents = Cotangents { x: cotangent.clone(), log_det: weights.clone(), context: None };
    let tape = mapped.tape.take().expect("a backward pass was announced");
    let mut reports = None;
    let back = chain.backward_reported(backend, tape, cotangents, &mut grads, &mut reports).expect("backward");
    solved(&reports.expect("a solve has reports"));
    chain.finish_gradients(backend, &mut grads);
    let values = grads.iter().map(|g| host(backend, g.as_ref().expect("filled")));
    Gradients { mapped, x: back.x, parameters: names.into_iter().zip(values).collect() }
}

fn column<B: Backend>(backend: &B, file: &Fixture, key: &str) -> B::Tensor {
    let values = file.tensor(backend, key);
    backend.reshape(&values, [backend.shape(&values).elements(), 1].into())
}

/// An implicit block on rows.
pub(crate) fn rows<B: Backend>(backend: &B) {
    let file = Fixture::open("implicit_block_rows");
    let mut comparison = Comparison::new::<B>("implicit block");
    let [x, cotangent] = ["x", "cotangent"].map(|key| file.tensor(backend, key));
    let weights = column(backend, &file, "weight");
    let transforms = || -> Vec<Box<dyn Bijection<B>>> {
        let net = |name: &str| Box::new(net(backend, &file, name, Activation::Sin));
        let first = ResidualBlock::new(net("nnet_x"), &[4]).expect("a contraction");
        let second = InvertedBlock::new(net("nnet_z"), &[4]).expect("a contraction");
        vec![Box::new(first), Box::new(second)]
    };
    let middle = transforms()[0].prepare(backend).forward(backend, &Batch::new(x.clone()), &Ask::value::<B>());
    comparison.tensor(backend, "middle", &middle.expect("forward").y, file.values("middle"));
    for memory in [Memory::Store, Memory::Recompute, Memory::Unroll] {
        let found = gradients(backend, transforms(), &x, &cotangent, &weights, memory);
        let name = |name: &str| format!("{name} {memory:?}");
        comparison.tensor(backend, &name("z"), &found.mapped.y, file.values("z"));
        let [of_x, of_z] = &found.mapped.log_dets[..] else { panic!("two log dets") };
        comparison.tensor(backend, &name("logdet_x"), &of_x.value, file.values("logdet_x"));
        let negative = backend.affine(of_z.value.clone(), -1.0, 0.0);
        comparison.tensor(backend, &name("logdet_z"), &negative, file.values("logdet_z"));
        let sum = backend.axpy(1.0, &of_z.value, of_x.value.clone());
        comparison.tensor(backend, &name("logdet"), &sum, file.values("logdet"));
        let loss = host(backend, &backend.dot(&cotangent, &found.mapped.y))[0]
            + host(backend, &backend.dot(&weights, &sum))[0];
        comparison.close(&name("loss"), &[loss], file.values("loss"));
        comparison.tensor(backend, &name("grad_x"), &found.x, file.values("grad_x"));
        for (parameter, gradient) in &found.parameters {
            let (block, rest) = parameter.split_once(".net.").expect("a block's net");
            let key = format!("grad.nnet_{}.{rest}", if block == "0" { "x" } else { "z" });
            comparison.close(&name(&key), gradient, file.values(&key));
        }
    }
    imported(backend, &mut comparison, &file);
    norms_of_matrices(backend, &file, &mut comparison);
    comparison.finish();
    file.assert_all_read();
}

/// The block as a flow of one, of the state dict of such a flow.
fn imported<B: Backend>(backend: &B, comparison: &mut Comparison, file: &Fixture) {
    let bytes = file.bytes();
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let of_net = tensors.iter().filter_map(|(key, view)| {
        let name = key.strip_prefix("param.").or(key.strip_prefix("buffer."))?;
        Some((format!("chain.0.{name}"), view))
    });
    let state = safetensors::serialize(of_net.collect::<Vec<_>>(), None).expect("memory");
    let config = FlowConfig {
        model: Family::Implicit,
        dimension: 4,
        blocks: 1,
        hidden: vec![16, 16],
        activation: Nonlinearity::Sin,
        leading_activation: false,
        coefficient: file.note("coeff"),
        actnorm: false,
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::default()
    };
    let state = StateDict::from_safetensors(&state).expect("a state dict");
    let flow = Flow::from_state_dict(backend.clone(), &ModelConfig::from(config), state).expect("a flow");
    let x = Table::new(None, 4, file.values("x").to_vec()).expect("a table");
    let encoded = flow.prepare().encode(&x, Key::new(0)).expect("encodes");
    comparison.close("imported z", encoded.latents.values(), file.values("z"));
    comparison.close("imported logdet", &encoded.log_det, file.values("logdet"));
    let decoded = flow.prepare().decode(&encoded.latents, &tight::<B>()).expect("decodes");
    comparison.close("x of imported z", decoded.samples.values(), file.values("x"));
}

/// The inverse of a residual block: the transposed solve alone, then the block with and without weights on its log det.
pub(crate) fn gradient<B: Backend>(backend: &B) {
    let file = Fixture::open("implicit_gradient");
    let mut comparison = Comparison::new::<B>("implicit gradient");
    let [x, y, cotangent] = ["x", "y", "cotangent_x"].map(|key| file.tensor(backend, key));
    let g = net(backend, &file, "nnet", Activation::LipSwish);
    let prepared = g.prepare(backend);
    let (value, saved) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::First);
    comparison.tensor(backend, "g", &value, file.values("g"));
    let solution = solve_transposed(backend, &*prepared, &saved, &cotangent, g.lipschitz_bound(), &tight::<B>());
    comparison.tensor(backend, "solution", &solution.expect("the device works").value, file.values("plain.grad_y"));

    let weights = column(backend, &file, "weight");
    let rows = backend.shape(&y).rows();
    for (part, weights) in [("plain", backend.full(0.0, [rows, 1].into())), ("link", weights)] {
        let block = InvertedBlock::new(Box::new(g.clone()), &[4]).expect("a contraction");
        let found = gradients(backend, vec![Box::new(block)], &y, &cotangent, &weights, Memory::Store);
        comparison.tensor(backend, "x", &found.mapped.y, file.values("x"));
        let log_det = &found.mapped.log_dets[0].value;
        let forward = backend.affine(log_det.clone(), -1.0, 0.0);
        comparison.tensor(backend, "logdet_forward", &forward, file.values("logdet_forward"));
        let loss = host(backend, &backend.dot(&cotangent, &found.mapped.y))[0]
            + host(backend, &backend.dot(&weights, log_det))[0];
        comparison.close(&format!("loss {part}"), &[loss], file.values(&format!("loss_{part}")));
        comparison.tensor(backend, &format!("{part}.grad_y"), &found.x, file.values(&format!("{part}.grad_y")));
        for (parameter, gradient) in &found.parameters {
            let (_, rest) = parameter.split_once(".net.").expect("a block's net");
            let key = format!("{part}.grad.nnet.{rest}");
            comparison.close(&key, gradient, file.values(&key));
        }
    }
    norms_of_matrices(backend, &file, &mut comparison);
    // how far the authors' solve got
    file.mark_read(|key| key == "residual");
    comparison.finish();
    file.assert_all_read();
}
