//! The nets of Flow++'s couplings over images (Ho et al. 2019, arXiv 1902.00275, §3.3, and the authors' code): gated residual
//! convolutions and attention, each behind a skip and before a layer norm.
//!
//! ```text
//! 3 × 3 convolution to w channels,
//! (x + gate(1 × 1 φ 3 × 3 φ x), layer norm [, x + gate(attention x), layer norm]) × blocks,
//! 3 × 3 convolution
//! ```

use serde::{Deserialize, Serialize};

use super::{ImageConfig, MOST_LAYERS, count};
use crate::error::ConfigError;
use crate::stage::{LayerStage, Net};

/// The gated nets of Flow++'s couplings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatedConfig {
    /// The number of gated residual blocks of a net.
    pub blocks: usize,
    /// The most heads of attention: the largest number up to it that divides the channels; 0 is no attention.
    pub heads: usize,
    /// The most pixels of a scale that has attention.
    pub most_pixels: usize,
}

impl Default for GatedConfig {
    /// As published.
    fn default() -> Self {
        Self { blocks: 10, heads: 4, most_pixels: 1024 }
    }
}

/// The kernel of convolutions.
const KERNEL: [usize; 2] = [3; 2];
/// No honest attention is over more pixels.
const MOST_PIXELS: usize = 1 << 14;

impl GatedConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        count("gated blocks", self.blocks, MOST_LAYERS, "1 to 64 residual blocks in a net")?;
        count("gated most_pixels", self.most_pixels, MOST_PIXELS, "1 to 16384 pixels with attention")
    }

    /// The heads over so many channels.
    fn heads_of(&self, channels: usize) -> usize {
        (1..=self.heads.min(channels)).rev().find(|&heads| channels.is_multiple_of(heads)).unwrap_or(0)
    }
}

impl ImageConfig {
    /// The gated net of a coupling over images of a shape, from so many channels to so many.
    pub(super) fn gated_net(&self, gated: &GatedConfig, image: &[usize], inputs: usize, outputs: usize) -> Net {
        let (w, wide, act) = (self.filters, self.filters * self.activation.widening(), self.activation);
        let convolution =
            |inputs, outputs| LayerStage::Convolution { kernel: KERNEL, inputs, outputs, coefficient: None };
        let (gate, norm) = (LayerStage::Gate { features: w }, LayerStage::LayerNorm { features: w });
        let residual = LayerStage::Skip {
            layers: vec![
                LayerStage::Activation(act),
                convolution(wide, w),
                LayerStage::Activation(act),
                LayerStage::Linear { inputs: wide, outputs: w.saturating_mul(2), coefficient: None },
                gate.clone(),
            ],
        };
        let attention = match *image {
            [h, width, _] if gated.heads > 0 && h * width <= gated.most_pixels => {
                let attention = LayerStage::Attention { image: [h, width, w], heads: gated.heads_of(w) };
                Some([LayerStage::Skip { layers: vec![attention, gate] }, norm.clone()])
            }
            _ => None,
        };
        let block: Vec<_> = [residual, norm].into_iter().chain(attention.into_iter().flatten()).collect();
        let blocks = std::iter::repeat_n(block, gated.blocks).flatten();
        let layers = std::iter::once(convolution(inputs, w)).chain(blocks).chain([convolution(w, outputs)]).collect();
        Net { layers, ..Net::default() }
    }
}
