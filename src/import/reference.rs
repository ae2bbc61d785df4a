//! The reference implementation's state dicts (github.com/rtqichen/residual-flows) as our model files.
//!
//! | there | here |
//! |---|---|
//! | `transforms.<scale>.chain.<i>` or `chain.<i>` | `links.<l>` |
//! | block `.nnet.<j>` (fully connected: `.nnet.nnet.<j>`) | `.net.<j>` |
//! | implicit block `.nnet_x.<j>`, `.nnet_z.<j>` (thu-ml/implicit-normalizing-flows) | `links.<l>.net.<j>`, `links.<l + 1>.net.<j>`; copies of both left out |
//! | kernel `[o, i, kh, kw]`; u, v flat in (C, H, W) order | `[o, kh, kw, i]`; `[1, h, w, c]` |
//! | 1 × 1 kernel `[o, i, 1, 1]` | `[o, i]` |
//! | ActNorm `.weight`, `.bias`, `.initialized` (flat: under `.fc_module`) | `.log_scale`, `.bias`, `.initialised` |
//!
//! σ = uᵀWv comes from the stored vectors; what the file says of it (`scale`), of image sizes and of flags is read and
//! checked against the configuration where it means something.

use std::collections::BTreeMap;

use resflow_backend::Backend;

use super::{ImportError, StateDict};
use crate::checkpoint::{Archive, ModelDocument, Provenance, Values, document_value};
use crate::config::{Family, ImageConfig, ModelConfig, Nonlinearity};
use crate::error::{ConfigError, Error};
use crate::flow::Flow;
use crate::lipschitz::NormChain;
use crate::stage::{LayerStage, Net, Stage};

impl<B: Backend> Flow<B> {
    /// Builds the flow of a state dict of the reference implementation, whose architecture a file does not say. Where
    /// it shows whether the very first block begins with an activation, that goes before the configuration (see
    /// [`StateDict::architecture`]).
    ///
    /// # Errors
    /// Returns [`Error::Import`] for a tensor that is missing, superfluous, misshapen or not finite, [`Error::Config`]
    /// for an invalid configuration or one of another family or norm, [`Error::Checkpoint`] for numbers that bound
    /// nothing.
    pub fn from_state_dict(backend: B, config: &ModelConfig, state: StateDict) -> Result<Self, Error> {
        config.check()?;
        Self::from_archive(backend, &archive(&state.architecture(config), state)?)
    }
}

impl StateDict {
    /// Returns a configuration with what the names of the tensors show of the architecture: the family, depth, growth,
    /// kernels and activation of a dense flow, of which ℓ is 0.98 unless the configuration says otherwise; else whether the
    /// very first block of a flow over images begins with an activation. In the reference a flow of one scale has that one whatever its
    /// `first_resblock` says.
    pub fn architecture(&self, config: &ModelConfig) -> ModelConfig {
        if let Some(dense) = self.dense_architecture(config) {
            return dense;
        }
        let ModelConfig::Images(images) = config else { return config.clone() };
        let first = self.first_block(images);
        let net = if images.model == Family::Implicit { "nnet_x" } else { "nnet" };
        let convolution = |j: usize| self.tensors.contains_key(&format!("{first}.{net}.{j}.weight"));
        match (convolution(0), convolution(1)) {
            // an activation is a layer of its own, with a parameter or without
            (false, true) => ImageConfig { first_activation: true, ..images.clone() }.into(),
            (true, _) => ImageConfig { first_activation: false, ..images.clone() }.into(),
            (false, false) => config.clone(),
        }
    }

    /// The place of the first block: behind the logit and an ActNorm, which is not there where the reference's
    /// `first_resblock` is false.
    fn first_block(&self, images: &ImageConfig) -> Place {
        let index = usize::from(images.logit);
        let place = Place { scale: Some(0), index };
        let norm = images.actnorm && !self.lacks_first_norm(&place);
        Place { index: index + usize::from(norm), ..place }
    }

    /// Whether a block stands where the first ActNorm should.
    fn lacks_first_norm(&self, place: &Place) -> bool {
        [".nnet.", ".nnet_x."].iter().any(|net| {
            let block = format!("{place}{net}");
            self.tensors.range(block.clone()..).next().is_some_and(|(name, _)| name.starts_with(&block))
        })
    }
}

/// The contents of our model file.
fn archive(config: &ModelConfig, mut state: StateDict) -> Result<Archive, Error> {
    let norms = match config {
        ModelConfig::Rows(c) => &c.norms,
        ModelConfig::Images(c) => &c.norms,
    };
    if !config.family().contracts() {
        let problem =
            "state dicts are read for residual flows, i-ResNets, dense, implicit and monotone flows only".into();
        return Err(ConfigError::Inconsistent(problem).into());
    }
    if config.context().is_some() {
        let problem = "state dicts are read for flows without a context".into();
        return Err(ConfigError::Inconsistent(problem).into());
    }
    if *norms != NormChain::Two {
        let problem = "state dicts are read for flows in the 2-norm only, `norms = \"2\"`".into();
        return Err(ConfigError::Inconsistent(problem).into());
    }
    state.remove_ignored();
    let precision = state.precision();
    let mut translation = Translation { state, tensors: BTreeMap::new() };
    let stages = config.stages();
    let mut place = Place { scale: matches!(config, ModelConfig::Images(_)).then_some(0), index: 0 };
    let (mut flat, mut first) = (false, matches!(config, ModelConfig::Images(_)));
    for (link, stage) in stages.iter().enumerate() {
        match stage {
            // before the logit there is no chain yet
            Stage::Squeeze { .. } if link == 0 => {}
            Stage::Squeeze { .. } => {
                place = Place { scale: place.scale.map(|s| s + 1), index: 0 };
            }
            Stage::Logit { .. } => place.index += 1,
            Stage::Flatten { .. } => flat = true,
            // the reference leaves out the first one with the first block's special form: it does nothing then
            Stage::ActNorm { features } if first && !flat && translation.state.lacks_first_norm(&place) => {
                translation.identity(link, *features);
                first = false;
            }
            Stage::ActNorm { features } => {
                first = false;
                let module = if flat { ".fc_module" } else { "" };
                translation.actnorm(&format!("{place}{module}"), link, *features)?;
                place.index += 1;
            }
            // an implicit block is one module with two nets
            Stage::ResidualBlock { shape, net } if config.family() == Family::Implicit => {
                translation.block(&format!("{place}.nnet_x{}", if flat { ".nnet" } else { "" }), link, shape, net)?;
            }
            Stage::InvertedBlock { shape, net } => {
                translation.block(&format!("{place}.nnet_z{}", if flat { ".nnet" } else { "" }), link, shape, net)?;
                place.index += 1;
            }
            Stage::ResidualBlock { shape, net } | Stage::MonotoneBlock { shape, net } => {
                let module = if flat { ".nnet.nnet" } else { ".nnet" };
                translation.block(&format!("{place}{module}"), link, shape, net)?;
                place.index += 1;
            }
            // no configuration of a residual flow spells them out
            Stage::ConditionalActNorm { .. }
            | Stage::InvertibleLinear { .. }
            | Stage::LuLinear { .. }
            | Stage::Coupling { .. }
            | Stage::ConditionalPrior { .. }
            | Stage::SplineCoupling { .. }
            | Stage::MixtureCoupling { .. }
            | Stage::OdeFlow { .. }
            | Stage::Custom(_) => {}
        }
    }
    let Translation { state, mut tensors } = translation;
    state.finish()?;
    let d = config.dimension();
    for (name, value) in [("mean", 0.0), ("deviation", 1.0)] {
        tensors.insert(format!("standardise.{name}"), (vec![d], Values::F64(vec![value; d])));
    }
    let provenance = Provenance { data: "imported from the reference implementation".into(), ..Provenance::default() };
    let document = ModelDocument::new(config.clone(), precision, provenance);
    Ok(Archive { tensors, document: serde_json::json!({ "model": document_value(&document)? }) })
}

/// A module's place in the reference's chains.
struct Place {
    scale: Option<usize>,
    index: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(scale) = self.scale {
            write!(f, "transforms.{scale}.")?;
        }
        write!(f, "chain.{}", self.index)
    }
}

struct Translation {
    state: StateDict,
    tensors: BTreeMap<String, (Vec<usize>, Values)>,
}

impl Translation {
    /// Moves a tensor, whose axes are permuted on the way: axis i of ours is axis `axes[i]` of theirs.
    fn tensor(
        &mut self,
        from: &str,
        shape: &[usize],
        axes: &[usize],
        to: String,
        ours: Vec<usize>,
    ) -> Result<(), ImportError> {
        let values = self.take(from, shape)?;
        let values = match values {
            Values::F32(x) => Values::F32(permuted(&x, shape, axes)),
            Values::F64(x) => Values::F64(permuted(&x, shape, axes)),
        };
        self.tensors.insert(to, (ours, values));
        Ok(())
    }

    /// Gives a unit vector its length back, which half precision rounds away; one that is none is left alone.
    fn restore_length(&mut self, name: &str) {
        let Some((_, values)) = self.tensors.get_mut(name) else { return };
        let length = values.to::<f64>().iter().map(|x| x * x).sum::<f64>().sqrt();
        if !(1e-4..0.02).contains(&(length - 1.0).abs()) {
            return;
        }
        match values {
            Values::F32(x) => x.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32),
            Values::F64(x) => x.iter_mut().for_each(|x| *x /= length),
        }
    }

    /// A tensor as it is.
    fn same(&mut self, from: &str, shape: &[usize], to: String) -> Result<(), ImportError> {
        let axes: Vec<usize> = (0..shape.len()).collect();
        self.tensor(from, shape, &axes, to, shape.to_vec())
    }

    /// Removes a tensor of a shape; its numbers keep their precision.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Values, ImportError> {
        let single = matches!(self.state.tensors.get(name), Some((_, Values::F32(_))));
        // the shapes of a flat vector may be given as those of an image
        let elements = [shape.iter().product()];
        let stored = self.state.tensors.get(name).map(|(s, _)| s.len());
        let wanted = if stored == Some(1) { &elements[..] } else { shape };
        Ok(if single {
            Values::F32(self.state.take(name, wanted)?)
        } else {
            Values::F64(self.state.take(name, wanted)?)
        })
    }

    /// Reads a buffer that our files do not have, if it is there.
    fn drop(&mut self, name: &str) {
        self.state.tensors.remove(name);
    }

    fn actnorm(&mut self, from: &str, link: usize, features: usize) -> Result<(), ImportError> {
        self.same(&format!("{from}.weight"), &[features], format!("links.{link}.log_scale"))?;
        self.same(&format!("{from}.bias"), &[features], format!("links.{link}.bias"))?;
        let name = format!("{from}.initialized");
        let flag: Vec<f64> = self.state.take(&name, &[])?;
        let flag = if flag[0] == 0.0 { 0.0 } else { 1.0 };
        self.tensors.insert(format!("links.{link}.initialised"), (vec![1], Values::F64(vec![flag])));
        Ok(())
    }

    /// An ActNorm that leaves everything as it is.
    fn identity(&mut self, link: usize, features: usize) {
        for name in ["log_scale", "bias"] {
            self.tensors.insert(format!("links.{link}.{name}"), (vec![features], Values::F64(vec![0.0; features])));
        }
        self.tensors.insert(format!("links.{link}.initialised"), (vec![1], Values::F64(vec![1.0])));
    }

    fn block(&mut self, from: &str, link: usize, shape: &[usize], net: &Net) -> Result<(), ImportError> {
        for (j, layer) in net.layers.iter().enumerate() {
            let (from, to) = (format!("{from}.{j}"), format!("links.{link}.net.{j}"));
            match layer {
                LayerStage::Activation(f) => self.activation(&from, &to, *f)?,
                LayerStage::ContextBias { .. }
                | LayerStage::ContextGate { .. }
                | LayerStage::PixelBias { .. }
                | LayerStage::Skip { .. }
                | LayerStage::Gate { .. }
                | LayerStage::LayerNorm { .. }
                | LayerStage::Attention { .. }
                | LayerStage::Custom(_) => {}
                LayerStage::Dense { kernel, inputs, outputs, activation, .. } => {
                    for (theirs, ours) in [("K1_unnormalized", "skip"), ("K2_unnormalized", "growth")] {
                        self.same(&format!("{from}.{theirs}"), &[1], format!("{to}.{ours}"))?;
                    }
                    let size = kernel.map_or(usize::from(shape.len() == 3), |kernel| kernel[0]);
                    let sizes = (size, *inputs, *outputs);
                    self.constrained(&format!("{from}.network.0"), &format!("{to}.net.0"), shape, sizes)?;
                    self.activation(&format!("{from}.network.1"), &format!("{to}.net.1"), *activation)?;
                }
                LayerStage::Linear { inputs, outputs, .. } => {
                    let size = usize::from(shape.len() == 3);
                    self.constrained(&from, &to, shape, (size, *inputs, *outputs))?;
                }
                LayerStage::Convolution { kernel, inputs, outputs, .. } => {
                    self.constrained(&from, &to, shape, (kernel[0], *inputs, *outputs))?;
                }
            }
        }
        Ok(())
    }

    fn activation(&mut self, from: &str, to: &str, f: Nonlinearity) -> Result<(), ImportError> {
        for name in f.parameters() {
            let inner = format!("{from}.swish.{name}");
            let own = format!("{from}.{name}");
            let there = if self.state.tensors.contains_key(&inner) { inner } else { own };
            self.same(&there, &[1], format!("{to}.{name}"))?;
        }
        Ok(())
    }

    /// Moves an affine layer of a kernel size (0 for a linear layer), inputs and outputs.
    fn constrained(
        &mut self,
        from: &str,
        to: &str,
        shape: &[usize],
        (size, inputs, outputs): (usize, usize, usize),
    ) -> Result<(), ImportError> {
        let name = |leaf: &str| (format!("{from}.{leaf}"), format!("{to}.{leaf}"));
        let (weight, our_weight) = name("weight");
        match size {
            0 => self.same(&weight, &[outputs, inputs], our_weight)?,
            1 => self.tensor(&weight, &[outputs, inputs, 1, 1], &[0, 1, 2, 3], our_weight, vec![outputs, inputs])?,
            k => {
                let ours = vec![outputs, k, k, inputs];
                self.tensor(&weight, &[outputs, inputs, k, k], &[0, 2, 3, 1], our_weight, ours)?;
            }
        }
        let (bias, our_bias) = name("bias");
        self.same(&bias, &[outputs], our_bias)?;
        for (leaf, channels) in [("u", outputs), ("v", inputs)] {
            let (vector, ours) = name(leaf);
            match (size, shape) {
                (2.., &[h, w, _]) => {
                    self.tensor(&vector, &[channels, h, w], &[1, 2, 0], ours.clone(), vec![1, h, w, channels])?;
                }
                _ => self.same(&vector, &[channels], ours.clone())?,
            }
            self.restore_length(&ours);
        }
        let dims = format!("{from}.spatial_dims");
        if let (Some((_, found)), &[h, w, _]) = (self.state.tensors.get(&dims), shape) {
            let found = found.to::<f64>();
            if size > 1 && found != [h as f64, w as f64] {
                let problem = format!("is {found:?}, the configuration has images of {h} × {w} there");
                return Err(ImportError::tensor(&dims, problem));
            }
        }
        for leaf in ["scale", "sigma", "initialized", "spatial_dims"] {
            self.drop(&format!("{from}.{leaf}"));
        }
        Ok(())
    }
}

/// The numbers of a tensor whose axis i was axis `axes[i]`.
fn permuted<T: Copy>(x: &[T], shape: &[usize], axes: &[usize]) -> Vec<T> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let mut out = Vec::with_capacity(x.len());
    let mut index = vec![0; axes.len()];
    for _ in 0..x.len() {
        out.push(x[index.iter().zip(axes).map(|(&i, &axis)| i * strides[axis]).sum::<usize>()]);
        // count up, the last axis first
        for (i, &axis) in index.iter_mut().zip(axes).rev() {
            *i += 1;
            if *i < shape[axis] {
                break;
            }
            *i = 0;
        }
    }
    out
}
