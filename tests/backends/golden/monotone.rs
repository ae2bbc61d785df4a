//! Monotone blocks on dense nets with CPila, on rows and images, and a whole flow of them, imported from the state dict of their
//! authors' implementation. Values, both parts of the log det, the gradient of Σ weight·log det + Σ cotangent·y through the
//! solve, the way back, and the series of odd terms with the reference's probe and coefficients.

use std::f64::consts::SQRT_2;

use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection as _, Cotangents, Draw, Memory};
use resflow::block::MonotoneBlock;
use resflow::config::{Family, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact, Weights, differentiated, exact_log_det, odd_series};
use resflow::flow::Flow;
use resflow::import::StateDict;
use resflow::invert::{Inversion, Status};
use resflow::layer::{Derivatives, LayerGrads, PreparedLayer, Saved};
use resflow::module::{Grad, Module as _};

use crate::common::asking::count_grads;
use crate::golden::dense_block::{Layout, samples, theirs, with_flags};
use crate::golden::fixture::{Comparison, Fixture, norms_of_matrices};
use crate::golden::image;

/// Solves as far as the arithmetic goes: near Lip(g) = 1 the error of a gradient is some fifty times that of its solve.
fn tight<B: Backend>() -> Inversion {
    Inversion::for_backend::<B>().with_accuracy(2.0 * B::Elem::EPSILON).expect("above 0")
}

/// The gradients of a block's parameters by the file's names under `prefix`, kernels in the file's order.
fn parameters<B: Backend>(
    backend: &B,
    comparison: &mut Comparison,
    layout: &Layout<'_>,
    block: &MonotoneBlock<B>,
    grads: &[Grad<B>],
    prefix: &str,
) {
    let mut grads = grads.iter();
    block.visit("", &mut |ours, _, role| {
        if role.is_trained() {
            let name = format!("{prefix}.{}", layout.name(ours));
            let gradient = grads.next().and_then(Option::as_ref).expect("a gradient");
            comparison.close(&name, &theirs(backend, gradient), layout.file.values(&name));
        }
    });
}

/// Compares everything in a file of one block.
pub(crate) fn compare<B: Backend>(backend: &B, name: &str) {
    let file = Fixture::open(name);
    let mut comparison = Comparison::new::<B>(name);
    let layout = Layout { file: &file, prefix: "nnet.", plain: 0, depth: file.note("depth") };
    let [x, gy] = ["x", "cotangent"].map(|key| samples(backend, &file, key));
    let shape = backend.shape(&x);
    let rows = shape.rows();
    let block = MonotoneBlock::new(Box::new(layout.net(backend)), &shape[1..]).expect("a contraction");
    let prepared = block.prepare(backend);
    let weights = backend.reshape(&file.tensor(backend, "weight"), [rows, 1].into());
    let exact = Estimator::Exact(Exact);
    for memory in [Memory::Store, Memory::Recompute, Memory::Unroll] {
        let draw = Draw { estimator: &exact, key: Key::new(0) };
        let ask = Ask { solver: tight::<B>(), ..Ask::gradient::<B>(draw, memory) };
        let mapped = prepared.forward(backend, &Batch::new(x.clone()), &ask).expect("the device works");
        comparison.close("y", &theirs(backend, &mapped.y), file.values("y"));
        let log_det = &mapped.log_dets[0].value;
        comparison.tensor(backend, "logdet", log_det, file.values("logdet"));
        let loss = backend.axpy(1.0, &backend.dot(&weights, log_det), backend.dot(&gy, &mapped.y));
        comparison.tensor(backend, "loss", &loss, file.values("loss"));
        let (mut grads, mut reports) = (vec![None; count_grads(&block)], mapped.reports);
        let cotangents = Cotangents { x: gy.clone(), log_det: weights.clone(), context: None };
        let tape = mapped.tape.expect("a backward pass was announced");
        let back = prepared.backward_reported(backend, tape, cotangents, &mut grads, &mut reports);
        let back = back.expect("the device works");
        assert!(reports.expect("a solve has reports").iter().all(|r| r.status <= Status::FloatFloor));
        comparison.close("grad_x", &theirs(backend, &back.x), file.values("grad_x"));
        prepared.finish_gradients(backend, &mut grads);
        parameters(backend, &mut comparison, &layout, &block, &grads, "grad");
    }
    // the way back, by the same w
    let y = samples(backend, &file, "y");
    let back = prepared.inverse(backend, &Batch::new(y.clone()), &tight::<B>()).expect("the device works").value;
    comparison.close("x_round_trip", &theirs(backend, &back), file.values("x_round_trip"));
    let w = backend.affine(backend.axpy(1.0, &y, back), 1.0 / SQRT_2, 0.0);
    comparison.close("w_of_inverse", &theirs(backend, &w), file.values("w_of_inverse"));

    let net = block.net().prepare(backend);
    let w = samples(backend, &file, "w");
    let (g, saved) = net.forward(backend, &Batch::new(w.clone()), Derivatives::Second);
    comparison.close("G", &theirs(backend, &g), file.values("G"));
    let plus = exact_log_det(backend, &*net, &saved, rows, &shape[1..], false).value.0;
    comparison.tensor(backend, "logdet_plus", &plus, file.values("logdet_plus"));
    let found =
        prepared.forward(backend, &Batch::new(x), &Ask::log_det::<B>(Draw { estimator: &exact, key: Key::new(0) }, 1));
    let minus = backend.axpy(1.0, &plus, found.expect("the device works").log_dets[0].value.clone());
    comparison.tensor(backend, "logdet_minus", &minus, file.values("logdet_minus"));
    series(backend, &mut comparison, &layout, &block, &*net, &saved);

    for layer in 0..layout.depth {
        let eta = layout.dense(backend, layer).shares(backend).expect("the device works");
        comparison.close("eta", &eta, file.values(&format!("eta.nnet.{layer}")));
    }
    norms_of_matrices(backend, &file, &mut comparison);
    // the image's has kernels, whose norms the test of dense blocks compares
    file.mark_read(|key| {
        key.ends_with("spatial_dims") || key.rsplit('.').next() == Some("scale") || key.starts_with("sigma")
    });
    comparison.finish();
    file.assert_all_read();
}

/// The series at w: the value, u, uᵀJv and the gradients of both.
fn series<B: Backend>(
    backend: &B,
    comparison: &mut Comparison,
    layout: &Layout<'_>,
    block: &MonotoneBlock<B>,
    net: &dyn PreparedLayer<B>,
    saved: &Saved<B>,
) {
    let file = layout.file;
    let probe = samples(backend, file, "est.probe");
    let shape = backend.shape(&probe);
    let coefficients = file.values("est.coefficients").to_vec();
    let per_row = Weights::rows(backend, &vec![coefficients.clone(); shape.rows()]).1;
    let mut u = None;
    for weights in [Weights::Batch(coefficients.clone()), per_row] {
        let (value, surrogate) = odd_series(backend, net, saved, &probe, &weights, true);
        comparison.tensor(backend, "est.basic.value", &value.0, file.values("est.basic.value"));
        let found = surrogate.expect("asked for").u;
        comparison.close("est.neumann.u", &theirs(backend, &found), file.values("est.neumann.u"));
        u = Some(found);
    }
    let u = u.expect("two series");
    let flat = |x: &B::Tensor| backend.reshape(x, [shape.rows(), shape.row_elements()].into());
    let product = net.vjp(backend, saved, u.clone());
    let surrogate = backend.dot_rows(&flat(&product), &flat(&probe));
    comparison.tensor(backend, "est.neumann.value", &surrogate, file.values("est.neumann.value"));
    // every power, of which the even ones weigh nothing
    let all: Vec<f64> = coefficients.iter().flat_map(|&c| [c, 0.0]).collect();
    let unrolled = differentiated(backend, net, saved, &probe, &[all]);
    let double = |x: B::Tensor| backend.affine(x, -2.0, 0.0);
    comparison.tensor(backend, "differentiated", &double(unrolled.value), file.values("est.basic.value"));
    let pairs = [
        ("est.neumann", vec![probe.clone()], vec![u]),
        ("est.basic", unrolled.tangents, unrolled.cotangents.into_iter().map(double).collect()),
    ];
    for (name, tangents, cotangents) in pairs {
        let tangents: Vec<_> = tangents.iter().map(|v| net.keep_tangent(backend, saved, v)).collect();
        let mut grads = vec![None; count_grads(block)];
        let (gw, _) = net.tangent_vjp(
            backend,
            saved,
            &tangents.iter().collect::<Vec<_>>(),
            backend.full(0.0, shape),
            cotangents,
            LayerGrads { trained: &mut grads, context: &mut None },
        );
        net.finish_gradients(backend, &mut grads);
        comparison.close(&format!("{name}.grad_w"), &theirs(backend, &gw), file.values(&format!("{name}.grad_w")));
        parameters(backend, comparison, layout, block, &grads, &format!("{name}.grad"));
    }
}

/// A whole flow over images with a fully connected end, of its authors' state dict.
pub(crate) fn flow<B: Backend>(backend: &B) {
    let file = Fixture::open("flow_monotone_images");
    let mut comparison = Comparison::new::<B>("flow_monotone_images");
    let [channels, height, width] = file.note("size");
    let asked = ImageConfig {
        model: Family::Monotone,
        height,
        width,
        channels,
        activation: Nonlinearity::ConcatenatedPila,
        logit_alpha: file.note("logit_alpha"),
        blocks: file.note("n_blocks"),
        factor_out: file.note("factor_out"),
        fully_connected: file.note("fc_nblocks"),
        actnorm: file.note("actnorm"),
        coefficient: file.note("coeff"),
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..ImageConfig::default()
    };
    let state = StateDict::from_safetensors(&with_flags(&file)).expect("a state dict");
    let flow = Flow::from_state_dict(backend.clone(), &ModelConfig::Images(asked), state).expect("imports");
    let found = flow.config().images().expect("images").clone();
    assert_eq!((found.model, found.kernels.len()), (Family::Monotone, file.note::<usize>("depth") + 1));
    assert_eq!((found.filters, found.fully_connected_growth), (file.note("growth"), file.note("fc_growth")));
    file.mark_read(|key| key.starts_with("param.") || key.starts_with("buffer."));
    let places = image::places(&found);
    image::values(&mut comparison, &flow, &file);
    image::blocks(&mut comparison, &flow, &file, &places);
    // each block's w, which is between its input and its output
    let mut x = Batch::new(samples(backend, &file, "x"));
    for (transform, place) in flow.transforms().iter().zip(&places) {
        let ask = Ask { solver: tight::<B>(), ..Ask::value::<B>() };
        let y = transform.prepare(backend).forward(backend, &x, &ask).expect("the device works").y;
        if let Some(place) = place {
            let w = backend.affine(backend.axpy(1.0, &y, x.x.clone()), 1.0 / SQRT_2, 0.0);
            let key = format!("block_w.{place}");
            comparison.close(&key, &theirs(backend, &w), file.values(&key));
        }
        x = x.with_x(y);
    }
    let table = Table::new(None, flow.dimension(), file.values("x").to_vec()).expect("a table");
    let (_, gradient) = flow.prepare().log_prob_and_gradient(&table, Key::new(0)).expect("evaluates");
    comparison.close("grad_x_logp", gradient.values(), file.values("grad_x_logp"));
    comparison.finish();
    file.assert_all_read();
}
