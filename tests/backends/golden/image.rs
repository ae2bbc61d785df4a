//! Image flows, imported from the reference's state dicts: z, log det, log p and bits per dimension, every block's own log
//! det, singular values, the gradient of log N(z), the round trip; then the estimators on the first block, and their
//! estimates of the blocks' log dets.
//!
//! Single precision is compared by the blocks' own part of the log det: the logit's hundreds of nats would hide an error.

use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::{Draw, Memory};
use resflow::config::{Family, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact, Law, RussianRoulette, Sharing, Truncated};
use resflow::flow::{Flow, LogProb, PreparedFlow};
use resflow::import::StateDict;
use resflow::invert::Inversion;
use resflow::module::Grad;
use resflow::stage::Stage;

use crate::common::apart;
use crate::common::asking::{count_grads, pull_back, train, with_log_det};
use crate::golden::estimators;
use crate::golden::fixture::{Comparison, Fixture, host};

/// Compares everything in a file.
pub(crate) fn compare<B: Backend>(backend: &B, name: &str) {
    let file = Fixture::open(name);
    let mut comparison = Comparison::new::<B>(name);
    let config = config(&file);
    let state = StateDict::from_safetensors(&file.bytes()).expect("a state dict");
    assert_eq!(state.precision(), "f64");
    let flow = Flow::from_state_dict(backend.clone(), &ModelConfig::Images(config.clone()), state).expect("imports");
    file.mark_read(|key| key.starts_with("param.") || key.starts_with("buffer."));
    let places = places(&config);
    values(&mut comparison, &flow, &file);
    blocks(&mut comparison, &flow, &file, &places);
    base_gradient(&mut comparison, &flow, &file);
    norms(&mut comparison, &flow, &file, &places);
    let first = places.iter().position(|p| p.as_deref() == Some(file.text("est_block"))).expect("the block is there");
    let net = flow.transforms()[first].residual().expect("a residual block");
    estimators::compare_images(&mut comparison, backend, net, &file);
    comparison.finish();
    file.assert_all_read();
}

/// The configuration that a file's notes say.
pub(crate) fn config(file: &Fixture) -> ImageConfig {
    let [channels, height, width] = file.note("size");
    let fully_connected = if file.note("fc_end") { file.note("fc_nblocks") } else { 0 };
    ImageConfig {
        height,
        width,
        channels,
        logit_alpha: file.note("logit_alpha"),
        squeeze_first: file.note("squeeze_first"),
        blocks: file.note("n_blocks"),
        filters: file.note("idim"),
        kernels: file.text("kernels").split('-').map(|k| k.parse().expect("a size")).collect(),
        activation: match file.text("activation") {
            "swish" => Nonlinearity::LipSwish,
            "elu" => Nonlinearity::Elu,
            other => panic!("{other}"),
        },
        leading_activation: file.note("preact"),
        first_activation: !file.note::<bool>("first_resblock"),
        factor_out: file.note("factor_out"),
        fully_connected,
        fully_connected_width: file.note("fc_idim"),
        actnorm: file.note("actnorm"),
        coefficient: file.note("coeff"),
        norms: if file.text("vnorms") == "2222" { "2".parse().expect("norms") } else { panic!("other norms") },
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..ImageConfig::default()
    }
}

/// The reference's name of each link that is a block.
pub(crate) fn places(config: &ImageConfig) -> Vec<Option<String>> {
    let (mut scale, mut index) = (0, 0);
    let stages = ModelConfig::from(config).stages();
    let names = stages.iter().enumerate().map(|(i, stage)| {
        let name = format!("transforms.{scale}.chain.{index}");
        // an implicit block is one module with two nets
        let implicit = config.model == Family::Implicit;
        match stage {
            Stage::ResidualBlock { .. } if implicit => return Some(format!("{name}.nnet_x")),
            Stage::InvertedBlock { .. } => {
                index += 1;
                return Some(format!("{name}.nnet_z"));
            }
            Stage::Squeeze { .. } if i > 0 => (scale, index) = (scale + 1, 0),
            Stage::Logit { .. } | Stage::ActNorm { .. } | Stage::ResidualBlock { .. } | Stage::MonotoneBlock { .. } => {
                index += 1;
            }
            _ => {}
        }
        matches!(stage, Stage::ResidualBlock { .. } | Stage::MonotoneBlock { .. }).then_some(name)
    });
    names.collect()
}

pub(crate) fn values<B: Backend>(comparison: &mut Comparison, flow: &Flow<B>, file: &Fixture) {
    let prepared = flow.prepare();
    let table = |key: &str| Table::new(None, flow.dimension(), file.values(key).to_vec()).expect("a table");
    let log_prob = way_there(comparison, &prepared, file);
    let bits: Vec<f64> = log_prob.values.iter().map(|&p| flow.config().bits_per_dim(p).expect("of images")).collect();
    comparison.close("bits_per_dim", &bits, file.values("bits_per_dim"));

    let decoded = prepared.decode(&table("z"), &Inversion::for_backend::<B>()).expect("decodes");
    let round_trip = apart(decoded.samples.values(), file.values("x"));
    let limit = if B::Elem::EPSILON < 1e-10 { 1e-10 } else { 1e-4 };
    assert!(round_trip < limit, "x of z is {round_trip:e} off");
    if !file.has("x_reconstructed_by_reference") {
        return;
    }
    let theirs = apart(file.values("x_reconstructed_by_reference"), file.values("x"));
    assert!(round_trip < theirs, "{round_trip:e} off, the reference {theirs:e}");
}

/// z, log det and log p of the file's x, by exact log dets.
pub(crate) fn way_there<B: Backend>(comparison: &mut Comparison, flow: &PreparedFlow<B>, file: &Fixture) -> LogProb {
    let x = Table::new(None, flow.dimension(), file.values("x").to_vec()).expect("a table");
    let encoded = flow.encode(&x, Key::new(0)).expect("encodes");
    comparison.close("z", encoded.latents.values(), file.values("z"));
    comparison.close("logdet", &encoded.log_det, file.values("logdet"));
    let log_prob = flow.log_prob(&x, Key::new(0)).expect("evaluates");
    assert!(log_prob.standard_error.iter().all(|&e| e == 0.0), "an exact log det has no error");
    comparison.close("logp", &log_prob.values, file.values("logp"));
    log_prob
}

/// Every block's log det at its own input, exact and estimated.
pub(crate) fn blocks<B: Backend>(
    comparison: &mut Comparison,
    flow: &Flow<B>,
    file: &Fixture,
    places: &[Option<String>],
) {
    let backend = flow.backend();
    let mut x = Batch::new(images(backend, file, "x"));
    let rows = x.len(backend);
    let mut sum = vec![0.0; rows];
    let replicates = 64;
    let law = Law::Poisson { rate: 2.0 };
    let roulette = RussianRoulette::new(law, 2).expect("a law").with_sharing(Sharing::Sample);
    let roulette = Estimator::RussianRoulette(roulette);
    let (mut deviations, mut estimates) = (0.0, 0.0);
    for (link, place) in flow.transforms().iter().zip(places) {
        let prepared = link.prepare(backend);
        let draw = |estimator, key| Draw { estimator, key: Key::new(key) };
        let exact = draw(&Estimator::Exact(Exact), 0);
        let (y, log_det) = with_log_det(backend, &*prepared, &x, exact, 2);
        if let Some(place) = place {
            let exact = host(backend, &log_det.value);
            let reference = file.values(&format!("block_logdet.{place}"));
            for ((sum, exact), reference) in sum.iter_mut().zip(&exact).zip(reference) {
                *sum += exact;
                let off = (exact - reference).abs();
                let limit = comparison.tolerance() * reference.abs().max(1.0);
                assert!(off <= limit, "block_logdet.{place} is {off:e} off {reference}");
            }
            let (_, estimate) = with_log_det(backend, &*prepared, &x, draw(&roulette, 3), replicates);
            let estimate = host(backend, &estimate.value);
            for (row, reference) in estimate.chunks_exact(replicates).zip(reference) {
                let n = replicates as f64;
                let mean = row.iter().sum::<f64>() / n;
                let error = (row.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
                // 63 degrees of freedom: beyond five errors once in 200,000 estimates
                assert!((mean - reference).abs() < 5.0 * error, "{place}: {mean} ± {error}, exact {reference}");
                deviations += (mean - reference) / error;
                estimates += 1.0_f64;
            }
        }
        let leaving = link.factored_out();
        let shape = backend.shape(&y);
        let rest = if leaving == 0 { y } else { backend.narrow(&y, shape.rank() - 1, 0, shape.channels() - leaving) };
        x = Batch::new(rest);
    }
    comparison.close("blocks_logdet", &sum, file.values("blocks_logdet"));
    // the mean over all of them: standard normal but for the tails of t
    let z = deviations / estimates.sqrt();
    assert!(z.abs() < 5.0, "the estimates lean by {z} standard errors");
}

/// Images `[n, c, h, w]` of the file as the flow has them.
fn images<B: Backend>(backend: &B, file: &Fixture, key: &str) -> B::Tensor {
    backend.permute(&file.tensor(backend, key), &[0, 2, 3, 1])
}

/// ∂/∂x Σ log N(z): the backward pass with no weight on the log dets.
pub(crate) fn base_gradient<B: Backend>(comparison: &mut Comparison, flow: &Flow<B>, file: &Fixture) {
    let backend = flow.backend();
    let estimator = Estimator::Truncated(Truncated::new(1).expect("one term"));
    let links: Vec<_> = flow.transforms().iter().map(|link| (link, link.prepare(backend))).collect();
    let mut x = images(backend, file, "x");
    let rows = backend.shape(&x).rows();
    let (mut tapes, mut left) = (Vec::new(), Vec::new());
    for (link, prepared) in &links {
        let draw = Draw { estimator: &estimator, key: Key::new(0) };
        let forward = train(backend, &**prepared, &Batch::new(x), draw, Memory::Recompute);
        tapes.push(forward.tape);
        let (shape, leaving) = (backend.shape(&forward.y), link.factored_out());
        let (axis, stay) = (shape.rank() - 1, shape.channels() - leaving);
        x = backend.narrow(&forward.y, axis, 0, stay);
        left.push((leaving > 0).then(|| backend.narrow(&forward.y, axis, stay, leaving)));
    }
    let negative = |z: &B::Tensor| backend.affine(z.clone(), -1.0, 0.0);
    let none = backend.full(0.0, [rows, 1].into());
    let mut g = negative(&x);
    for (((link, prepared), tape), left) in links.iter().zip(tapes).zip(left).rev() {
        if let Some(left) = left {
            let axis = backend.shape(&g).rank() - 1;
            g = backend.concat(&[&g, &negative(&left)], axis);
        }
        let mut grads: Vec<Grad<B>> = vec![None; count_grads(&***link)];
        g = pull_back(backend, &**prepared, tape, g, &none, &mut grads);
    }
    let gradient = backend.permute(&g, &[0, 3, 1, 2]);
    comparison.tensor(backend, "grad_x_logpz", &gradient, file.values("grad_x_logpz"));
}

/// σ of the stored vectors.
fn norms<B: Backend>(comparison: &mut Comparison, flow: &Flow<B>, file: &Fixture, places: &[Option<String>]) {
    let spectra = flow.spectra().expect("the device works");
    for (spectra, place) in spectra.iter().zip(places) {
        for spectrum in spectra {
            let place = place.as_ref().expect("only blocks have weights");
            let layer = spectrum.name.split('.').nth(3).expect("links.l.net.j.weight");
            let key = format!("sigma.{place}.nnet.{layer}");
            // of the fully connected ones the file says nothing but `scale`
            let flat = format!("buffer.{place}.nnet.nnet.{layer}.scale");
            let scale = format!("buffer.{place}.nnet.{layer}.scale");
            for key in [key, flat, scale].iter().filter(|key| file.has(key)) {
                comparison.close(key, &[spectrum.sigma], file.values(key));
            }
        }
    }
}
