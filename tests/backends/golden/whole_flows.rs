//! Whole flows of implicit blocks and of monotone blocks on rows, of state dicts with the names that their authors' programs give: z, log
//! det and log p of the flow, the log det of every block at its own input, and x of z.

use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::Draw;
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::import::StateDict;
use resflow::invert::Inversion;
use resflow::stage::Stage;

use crate::common::asking::with_log_det;
use crate::golden::fixture::{Comparison, Fixture, host};
use crate::golden::image;

/// Implicit blocks on rows, saved from a wrapper.
pub(crate) fn implicit_rows<B: Backend>(backend: &B) {
    let file = Fixture::open("flow_implicit_rows");
    let [dimension, ref hidden @ .., _] = file.note::<Vec<usize>>("dims")[..] else { panic!("two layers at least") };
    let config = FlowConfig {
        model: Family::Implicit,
        dimension,
        hidden: hidden.to_vec(),
        activation: Nonlinearity::Sin,
        leading_activation: false,
        ..common(&file)
    };
    let blocks = (0..config.blocks).flat_map(|i| ["x", "z"].map(|net| format!("module.chain.{i}.nnet_{net}")));
    rows(backend, "flow_implicit_rows", &file, config.clone(), &blocks.collect::<Vec<_>>());
    // the copies of the nets hold other numbers, and no configuration asks for them
    assert!(file.has("param.module.chain.0.nnet_x_copy.0.weight"));
}

/// Monotone blocks on rows, whose growths the state dict shows.
pub(crate) fn monotone_rows<B: Backend>(backend: &B) {
    let file = Fixture::open("flow_monotone_rows");
    let config = FlowConfig {
        model: Family::Monotone,
        dimension: file.note("dimension"),
        activation: Nonlinearity::ConcatenatedPila,
        ..common(&file)
    };
    let blocks: Vec<_> = (0..config.blocks).map(|i| format!("chain.{}", 2 * i + 1)).collect();
    let found = rows(backend, "flow_monotone_rows", &file, config, &blocks);
    let growths = vec![file.note::<usize>("growth"); file.note("depth")];
    assert_eq!((found.hidden, found.dense_bound), (growths, file.note("lip_coeff")));
}

fn common(file: &Fixture) -> FlowConfig {
    FlowConfig {
        blocks: file.note("n_blocks"),
        coefficient: file.note("coeff"),
        actnorm: file.note("actnorm"),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::default()
    }
}

fn rows<B: Backend>(backend: &B, name: &str, file: &Fixture, config: FlowConfig, blocks: &[String]) -> FlowConfig {
    let mut comparison = Comparison::new::<B>(name);
    let state = StateDict::from_safetensors(&file.bytes()).expect("a state dict");
    let flow = Flow::from_state_dict(backend.clone(), &ModelConfig::from(config), state).expect("imports");
    file.mark_read(|key| key.starts_with("param.") || key.starts_with("buffer."));
    let prepared = flow.prepare();
    image::way_there(&mut comparison, &prepared, file);
    let z = Table::new(None, flow.dimension(), file.values("z").to_vec()).expect("a table");
    let accurate = Inversion::for_backend::<B>().with_accuracy(32.0 * B::Elem::EPSILON).expect("above 0");
    let decoded = prepared.decode(&z, &accurate).expect("decodes");
    comparison.close("x of z", decoded.samples.values(), file.values("x"));
    let mut x = Batch::new(file.tensor(backend, "x"));
    let mut blocks = blocks.iter();
    let mut sum = vec![0.0; x.len(backend)];
    for (stage, link) in flow.config().stages().iter().zip(flow.transforms()) {
        let draw = Draw { estimator: &Estimator::Exact(Exact), key: Key::new(0) };
        let (y, log_det) = with_log_det(backend, &*link.prepare(backend), &x, draw, 1);
        if !matches!(stage, Stage::ActNorm { .. }) {
            let key = format!("block_logdet.{}", blocks.next().expect("a block"));
            let found = host(backend, &log_det.value);
            comparison.close(&key, &found, file.values(&key));
            sum.iter_mut().zip(&found).for_each(|(sum, log_det)| *sum += log_det);
        }
        x = Batch::new(y);
    }
    comparison.close("blocks_logdet", &sum, file.values("blocks_logdet"));
    comparison.finish();
    file.assert_all_read();
    flow.config().rows().expect("rows").clone()
}

/// Implicit blocks on images: two scales and a fully connected end.
pub(crate) fn implicit_images<B: Backend>(backend: &B) {
    let file = Fixture::open("flow_implicit_images");
    let mut comparison = Comparison::new::<B>("flow_implicit_images");
    let config = ImageConfig { model: Family::Implicit, ..image::config(&file) };
    let state = StateDict::from_safetensors(&file.bytes()).expect("a state dict");
    let flow = Flow::from_state_dict(backend.clone(), &ModelConfig::Images(config.clone()), state).expect("imports");
    file.mark_read(|key| key.starts_with("param.") || key.starts_with("buffer."));
    image::values(&mut comparison, &flow, &file);
    image::blocks(&mut comparison, &flow, &file, &image::places(&config));
    comparison.finish();
    file.assert_all_read();
}
