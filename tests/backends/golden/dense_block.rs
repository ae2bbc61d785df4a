//! Dense blocks (i-DenseNets) with learned and fixed concatenations, on rows and images, and whole flows of them, imported from
//! the state dicts of their authors' implementation.
//!
//! Of a block: η, g, y, the log det, its series with exact traces, and the gradient of Σ weight·log det + Σ cotangent·y. One
//! weight of the rows is below the coefficient and used as it is; the fully connected net begins with a linear layer.

use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection as _, Draw, Memory};
use resflow::block::ResidualBlock;
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::estimator::{Estimator, Exact, jacobian};
use resflow::flow::Flow;
use resflow::import::StateDict;
use resflow::layer::{DenseLayer, Derivatives, Layer, LipschitzConv, LipschitzLinear, Sequence, activation_layer};
use resflow::lipschitz::{Coefficient, PowerIteration, SingularPair};
use resflow::module::{Grad, Module as _, Role};
use resflow::stage::Concatenation;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::common::asking::{count_grads, pull_back, train};
use crate::golden::fixture::{Comparison, Fixture, host};
use crate::golden::image;

/// Where a block's layers are: their names in the file, and the number of layers before the dense ones.
pub(crate) struct Layout<'a> {
    pub(crate) file: &'a Fixture,
    pub(crate) prefix: &'a str,
    pub(crate) plain: usize,
    pub(crate) depth: usize,
}

/// A tensor of images `[n, c, h, w]` as ours, of rows as it is.
pub(crate) fn samples<B: Backend>(backend: &B, file: &Fixture, key: &str) -> B::Tensor {
    let x = file.tensor(backend, key);
    match file.shape(key) {
        &[n, d, 1, 1] => backend.reshape(&x, [n, d].into()),
        [_, _, _, _] => backend.permute(&x, &[0, 2, 3, 1]),
        _ => x,
    }
}

/// Ours on the host, in the file's order.
pub(crate) fn theirs<B: Backend>(backend: &B, x: &B::Tensor) -> Vec<f64> {
    if backend.shape(x).rank() == 4 { host(backend, &backend.permute(x, &[0, 3, 1, 2])) } else { host(backend, x) }
}

impl Layout<'_> {
    /// The affine layer of a name; a kernel of one pixel is a matrix.
    fn affine<B: Backend>(&self, backend: &B, name: &str) -> Box<dyn Layer<B>> {
        let key = |kind: &str, leaf: &str| format!("{kind}.{}{name}.{leaf}", self.prefix);
        let tensor = |kind: &str, leaf: &str| self.file.tensor(backend, &key(kind, leaf));
        let coefficient = Coefficient::new(self.file.note("coeff")).expect("between 0 and 1");
        let (weight, bias) = (tensor("param", "weight"), tensor("param", "bias"));
        let shape = self.file.shape(&key("param", "weight")).to_vec();
        let (u, v) = (tensor("buffer", "u"), tensor("buffer", "v"));
        if let &[outputs, inputs, kh, _] = &shape[..]
            && kh > 1
        {
            let (h, w) = (self.file.note("height"), self.file.note("width"));
            let image =
                |x: &B::Tensor, c: usize| backend.permute(&backend.reshape(x, [1, c, h, w].into()), &[0, 2, 3, 1]);
            let pair = SingularPair::new(backend, image(&u, outputs), image(&v, inputs));
            let kernel = backend.permute(&weight, &[0, 2, 3, 1]);
            return Box::new(LipschitzConv::from_parts(backend, kernel, bias, pair, coefficient).expect("it fits"));
        }
        let weight = backend.reshape(&weight, [shape[0], shape[1]].into());
        let pair = SingularPair::new(backend, u, v);
        Box::new(LipschitzLinear::from_parts(backend, weight, bias, pair, coefficient).expect("it fits"))
    }

    pub(crate) fn dense<B: Backend>(&self, backend: &B, layer: usize) -> DenseLayer<B> {
        let learned = self.file.note("learnable_concat");
        let concatenation = Concatenation { bound: self.file.note("lip_coeff"), learned };
        let affine = self.affine(backend, &format!("{layer}.network.0"));
        let beta = format!("param.{}{layer}.network.1.swish.beta", self.prefix);
        let concatenated = if self.file.has(&beta) { Nonlinearity::ClipSwish } else { Nonlinearity::ConcatenatedPila };
        let mut activation = activation_layer(backend, concatenated);
        activation.visit_mut("", &mut |_, t, _| *t = self.file.tensor(backend, &beta));
        let inputs = self.file.shape(&format!("param.{}{layer}.network.0.weight", self.prefix))[1];
        let dense = DenseLayer::new(backend, inputs, affine, activation, concatenation).expect("a bound");
        let kind = if learned { "param" } else { "buffer" };
        dense.with_raw(
            ["K1", "K2"].map(|k| self.file.tensor(backend, &format!("{kind}.{}{layer}.{k}_unnormalized", self.prefix))),
        )
    }

    pub(crate) fn net<B: Backend>(&self, backend: &B) -> Sequence<B> {
        let end = self.plain + self.depth;
        let layer = |i: usize| -> Box<dyn Layer<B>> {
            if (self.plain..end).contains(&i) {
                Box::new(self.dense(backend, i))
            } else {
                self.affine(backend, &i.to_string())
            }
        };
        Sequence::new((0..=end).map(layer).collect())
    }

    /// Their name of one of the block's tensors.
    pub(crate) fn name(&self, ours: &str) -> String {
        let ours = ours.strip_prefix("net.").expect("of the block's net");
        let inner = ours.replace(".net.", ".network.").replace(".beta", ".swish.beta");
        let inner = inner.replace(".skip", ".K1_unnormalized").replace(".growth", ".K2_unnormalized");
        format!("{}{inner}", self.prefix)
    }
}

/// Compares everything in a file of one block.
pub(crate) fn compare<B: Backend>(backend: &B, name: &str) {
    let file = Fixture::open(name);
    let mut comparison = Comparison::new::<B>(name);
    let connected = name == "dense_block_fc";
    let (prefix, plain) = if connected { ("nnet.nnet.", 1) } else { ("nnet.", 0) };
    let layout = Layout { file: &file, prefix, plain, depth: file.note("depth") };
    let x = samples(backend, &file, "x");
    let shape = backend.shape(&x);
    let mut block = ResidualBlock::new(Box::new(layout.net(backend)), &shape[1..]).expect("a contraction");
    let prepared = block.net().prepare(backend);
    let (g, saved) = prepared.forward(backend, &Batch::new(x.clone()), Derivatives::First);
    comparison.close("g", &theirs(backend, &g), file.values("g"));

    // J of each sample, and the traces of its powers
    let (rows, d) = (shape.rows(), shape.row_elements());
    let columns = host(backend, &jacobian(backend, &*prepared, &saved, rows, &shape[1..]));
    let reference = file.values("partial_sums");
    let terms = reference.len() / rows;
    let sums = columns.chunks_exact(d * d).flat_map(|j| {
        let mut power = j.to_vec();
        let mut sum = 0.0;
        (1..=terms)
            .map(move |k| {
                let trace: f64 = (0..d).map(|i| power[i * d + i]).sum();
                sum += if k % 2 == 1 { trace } else { -trace } / k as f64;
                power = (0..d * d).map(|e| (0..d).map(|i| power[e / d * d + i] * j[i * d + e % d]).sum()).collect();
                sum
            })
            .collect::<Vec<_>>()
    });
    comparison.close("partial_sums", &sums.collect::<Vec<_>>(), reference);

    let whole = block.prepare(backend);
    let draw = Draw { estimator: &Estimator::Exact(Exact), key: Key::new(0) };
    for memory in [Memory::Store, Memory::Recompute] {
        let forward = train(backend, &*whole, &Batch::new(x.clone()), draw, memory);
        comparison.close("y", &theirs(backend, &forward.y), file.values("y"));
        comparison.close("logdet", &host(backend, &forward.log_det), file.values("logdet"));
        let loss = |values: &[f64], weights: &str| -> f64 {
            values.iter().zip(file.values(weights)).map(|(a, b)| a * b).sum()
        };
        let total = loss(&host(backend, &forward.log_det), "weight") + loss(&theirs(backend, &forward.y), "cotangent");
        comparison.close("loss", &[total], file.values("loss"));
        let mut grads: Vec<Grad<B>> = vec![None; count_grads(&block)];
        let weights = backend.reshape(&file.tensor(backend, "weight"), [rows, 1].into());
        let gy = samples(backend, &file, "cotangent");
        let gx = pull_back(backend, &*whole, forward.tape, gy, &weights, &mut grads);
        whole.finish_gradients(backend, &mut grads);
        comparison.close("grad_x", &theirs(backend, &gx), file.values("grad_x"));
        let mut grads = grads.iter();
        block.visit("", &mut |ours, _, role| {
            if !role.is_trained() {
                return;
            }
            let name = format!("grad.{}", layout.name(ours));
            let gradient = grads.next().and_then(Option::as_ref).expect("a gradient");
            // kernels [o, i, kh, kw] there
            let gradient = if backend.shape(gradient).rank() == 4 {
                host(backend, &backend.permute(gradient, &[0, 3, 1, 2]))
            } else {
                host(backend, gradient)
            };
            comparison.close(&name, &gradient, file.values(&name));
        });
        assert!(grads.next().is_none(), "a gradient of no tensor");
    }

    for layer in plain..plain + layout.depth {
        let eta = layout.dense(backend, layer).shares(backend).expect("the device works");
        comparison.close("eta", &eta, file.values(&format!("eta.{prefix}{layer}")));
    }
    norms(&mut comparison, backend, &layout, &mut block);
    file.mark_read(|key| key.ends_with("spatial_dims"));
    comparison.finish();
    file.assert_all_read();
}

/// σ of the stored vectors, and the exact one.
fn norms<B: Backend>(comparison: &mut Comparison, backend: &B, layout: &Layout<'_>, block: &mut ResidualBlock<B>) {
    let file = layout.file;
    let spectra = |block: &ResidualBlock<B>| {
        let mut all = Vec::new();
        block.spectra(backend, "", &mut |spectrum| all.push(spectrum)).expect("the device works");
        all
    };
    for spectrum in spectra(block) {
        let name = layout.name(spectrum.name.strip_suffix(".weight").expect("of a weight"));
        comparison.close(&name, &[spectrum.sigma], file.values(&format!("buffer.{name}.scale")));
        let key = format!("sigma.{name}");
        if file.has(&key) {
            comparison.close(&key, &[spectrum.sigma], file.values(&key));
        }
    }
    block.update_spectral_norms(backend, PowerIteration::converge::<B>());
    for spectrum in spectra(block) {
        let name = layout.name(spectrum.name.strip_suffix(".weight").expect("of a weight"));
        let key = format!("sigma_exact.{name}");
        if file.has(&key) {
            comparison.close(&key, &[spectrum.sigma], file.values(&key));
        }
    }
}

/// The state dict, with the flags of its ActNorms, which the file leaves out.
pub(crate) fn with_flags(file: &Fixture) -> Vec<u8> {
    let bytes = file.bytes();
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let one = 1_f64.to_le_bytes();
    let mut all: Vec<_> = tensors.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    for (name, view) in tensors.iter().filter(|(_, view)| view.shape().len() == 1) {
        if let Some(norm) = name.strip_prefix("param.").and_then(|name| name.strip_suffix(".weight")) {
            let flag = TensorView::new(view.dtype(), Vec::new(), &one).expect("a number");
            all.push((format!("buffer.{norm}.initialized"), flag));
        }
    }
    safetensors::serialize(all, None).expect("a state dict")
}

/// Compares everything in a file of a whole flow, whose depth, growths, kernels and activation its state dict shows.
pub(crate) fn compare_flow<B: Backend>(backend: &B, name: &str) {
    let file = Fixture::open(name);
    let mut comparison = Comparison::new::<B>(name);
    let [channels, height, width] = file.note("size");
    let asked = ImageConfig {
        height,
        width,
        channels,
        logit_alpha: file.note("logit_alpha"),
        blocks: file.note("n_blocks"),
        factor_out: file.note("factor_out"),
        fully_connected: if file.note("fc_end") { file.note("fc_nblocks") } else { 0 },
        actnorm: file.note("actnorm"),
        coefficient: file.note("coeff"),
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..ImageConfig::default()
    };
    let state = StateDict::from_safetensors(&with_flags(&file)).expect("a state dict");
    let flow = Flow::from_state_dict(backend.clone(), &ModelConfig::Images(asked.clone()), state).expect("imports");
    file.mark_read(|key| key.starts_with("param.") || key.starts_with("buffer."));
    let found = flow.config().images().expect("images").clone();
    assert_eq!(found.kernels.len(), file.note::<usize>("depth") + 1);
    assert_eq!(found.filters, file.note::<usize>("growth"));
    assert_eq!((found.dense_bound, found.activation), (file.note("lip_coeff"), Nonlinearity::ClipSwish));
    if found.fully_connected > 0 {
        assert_eq!(found.fully_connected_growth, file.note::<usize>("fc_growth"));
        assert_eq!(found.fully_connected_width, file.note::<usize>("first_width"));
    }
    let learned = |flow: &Flow<B>| {
        let mut count = 0;
        flow.visit(&mut |_, _, role| count += usize::from(role == Role::Concatenation));
        count
    };
    assert!(learned(&flow) > 0, "the shares of concatenations are learned");
    let places = image::places(&found);
    image::values(&mut comparison, &flow, &file);
    image::blocks(&mut comparison, &flow, &file, &places);
    image::base_gradient(&mut comparison, &flow, &file);
    // what is saved is what was imported
    let stored = flow.to_archive().expect("stored");
    let again = Flow::from_archive(backend.clone(), &stored).expect("a model");
    assert_eq!(again.config(), flow.config());
    image::values(&mut comparison, &again, &file);
    comparison.finish();
    file.assert_all_read();
}

/// The block of rows as a flow of one, whose three growths its state dict shows.
pub(crate) fn compare_rows_flow<B: Backend>(backend: &B) {
    let file = Fixture::open("dense_block_rows");
    let mut comparison = Comparison::new::<B>("dense_block_rows as a flow");
    let bytes = file.bytes();
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let renamed = tensors.iter().filter_map(|(name, view)| {
        let (kind, inner) = name.split_once(".nnet.")?;
        matches!(kind, "param" | "buffer").then(|| (format!("{kind}.chain.0.nnet.{inner}"), view))
    });
    let dict = safetensors::serialize(renamed, None).expect("a state dict");
    let config = FlowConfig {
        dimension: file.note("d"),
        blocks: 1,
        actnorm: false,
        coefficient: file.note("coeff"),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::default()
    };
    let state = StateDict::from_safetensors(&dict).expect("a state dict");
    let flow = Flow::from_state_dict(backend.clone(), &config.into(), state).expect("imports");
    let found = flow.config().rows().expect("rows");
    assert_eq!((found.model, &found.hidden[..], found.dense_bound), (Family::Dense, &[8, 8, 8][..], 0.98));
    let x = Table::new(None, flow.dimension(), file.values("x").to_vec()).expect("a table");
    let encoded = flow.prepare().encode(&x, Key::new(0)).expect("encodes");
    comparison.close("y", encoded.latents.values(), file.values("y"));
    comparison.close("logdet", &encoded.log_det, file.values("logdet"));
    comparison.finish();
}
