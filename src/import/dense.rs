//! Dense flows in state dicts of their authors' implementation (github.com/yperugachidiaz/invertible_densenets).
//!
//! | there | here |
//! |---|---|
//! | layer `.<j>.network.0`, `.<j>.network.1` | `.<j>.net.0`, `.<j>.net.1` |
//! | `.K1_unnormalized`, `.K2_unnormalized` | `.skip`, `.growth` |
//! | CLipSwish `.swish.beta` | `.beta` |
//!
//! The names and shapes show how many dense layers a block has, their kernels and growths, and the activation. ℓ they do not
//! show: where the configuration says nothing of it, it is their default.

use super::StateDict;
use crate::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};

/// ℓ in their implementation.
const BOUND: f64 = 0.98;

/// A net of dense layers, as the names and shapes show it.
struct Shown {
    /// Kernel and outputs of the affine layer of each dense layer.
    layers: Vec<(usize, usize)>,
    /// Kernel of the layer behind them.
    last: usize,
    activation: Nonlinearity,
}

/// The family of a flow with dense nets: the names do not tell a monotone flow from a dense one.
fn shown_family(configured: Family) -> Family {
    if configured.has_dense_nets() { configured } else { Family::Dense }
}

impl Shown {
    /// Numbers that stand behind a layer's input, of so many outputs.
    fn growth(&self, outputs: usize) -> usize {
        outputs.saturating_mul(self.activation.widening())
    }

    fn bound(configured: f64) -> f64 {
        if configured == FlowConfig::default().dense_bound { BOUND } else { configured }
    }
}

impl StateDict {
    /// Returns the configuration with what shows of dense nets, if the dict has any.
    pub(super) fn dense_architecture(&self, config: &ModelConfig) -> Option<ModelConfig> {
        Some(match config {
            ModelConfig::Rows(rows) => {
                let shown = self.dense_net(false, 0, rows.activation)?;
                let hidden = shown.layers.iter().map(|&(_, outputs)| shown.growth(outputs)).collect();
                let (activation, dense_bound) = (shown.activation, Shown::bound(rows.dense_bound));
                FlowConfig { model: shown_family(rows.model), hidden, activation, dense_bound, ..rows.clone() }.into()
            }
            ModelConfig::Images(images) => {
                let shown = self.dense_net(false, 0, images.activation)?;
                let kernels = shown.layers.iter().map(|&(kernel, _)| kernel).chain([shown.last]).collect();
                let mut found = ImageConfig {
                    model: shown_family(images.model),
                    filters: shown.growth(shown.layers[0].1),
                    kernels,
                    activation: shown.activation,
                    leading_activation: false,
                    first_activation: false,
                    dense_bound: Shown::bound(images.dense_bound),
                    ..images.clone()
                };
                if let Some(end) = self.dense_net(true, 1, images.activation) {
                    found.fully_connected_growth = end.growth(end.layers[0].1);
                    found.fully_connected_width = self.first_width()?;
                }
                found.into()
            }
        })
    }

    /// The outputs of the first layer of a fully connected block.
    fn first_width(&self) -> Option<usize> {
        let (_, (shape, _)) = self.tensors.iter().find(|(name, _)| name.ends_with(".nnet.nnet.0.weight"))?;
        shape.first().copied()
    }

    /// A block's dense layers, from its layer `first` on.
    fn dense_net(&self, connected: bool, first: usize, configured: Nonlinearity) -> Option<Shown> {
        let ending = format!(".nnet.{first}.network.0.weight");
        let block = self.tensors.keys().find_map(|name| {
            let block = name.strip_suffix(&ending)?;
            ((block.rsplit('.').next() == Some("nnet")) == connected).then(|| format!("{block}.nnet"))
        })?;
        let kernel = |shape: &[usize]| shape.get(2).copied().unwrap_or(0);
        let shape = |name: String| self.tensors.get(&name).map(|(shape, _)| &shape[..]);
        let affine = |j: usize| shape(format!("{block}.{j}.network.0.weight"));
        let layers: Vec<_> =
            (first..).map_while(affine).map(|s| (kernel(s), s.first().copied().unwrap_or(0))).collect();
        let last = shape(format!("{block}.{}.weight", first + layers.len())).map_or(1, kernel);
        let has = |leaf: &str| self.tensors.contains_key(&format!("{block}.{first}.network.1.{leaf}"));
        let activation = if has("swish.beta") {
            Nonlinearity::ClipSwish
        } else if has("alpha") {
            Nonlinearity::LeakyLipSwish
        } else if has("beta") {
            Nonlinearity::LipSwish
        } else if configured.parameters().is_empty() {
            configured
        } else {
            Nonlinearity::ConcatenatedPila
        };
        Some(Shown { layers, last, activation })
    }
}
