//! The heads of a hybrid model: where they sit in the chain of an image flow, and what they look at.
//!
//! A head looks at each scale's output: at the images after the squeeze that ends the scale (with factor-out, at the
//! channels that are factored out there), and at the end of the chain.

use super::{ImageConfig, MOST_WIDTH, count};
pub use crate::classifier::HeadPlace;
use crate::error::ConfigError;
use crate::stage::{LayerStage, Size, Stage};

impl ImageConfig {
    /// Returns the places of the heads; none without classes.
    pub fn heads(&self) -> Vec<HeadPlace> {
        if self.classes == 0 {
            return Vec::new();
        }
        let stages = self.stages();
        let first = usize::from(self.squeeze_first);
        let ends = (first..stages.len()).filter(|&i| match stages[i] {
            Stage::Squeeze { .. } => !self.conditional_prior,
            Stage::ConditionalPrior { .. } => true,
            _ => false,
        });
        let ends = ends.chain(stages.len().checked_sub(1));
        // after its squeeze a scale's output has the shape of the next scale, with factor-out as what is
        // factored out has
        let scales = self.scales();
        let shapes = scales.iter().skip(1).chain(scales.last());
        ends.zip(shapes).map(|(stage, &image)| HeadPlace { stage, image }).collect()
    }

    pub(super) fn check_heads(&self) -> Result<(), ConfigError> {
        if self.classes == 1 || self.classes > 256 {
            let expected = "0 (no classifier), or 2 to 256";
            return Err(ConfigError::OutOfRange { name: "classes", value: self.classes as f64, expected });
        }
        count("head_width", self.head_width, MOST_WIDTH, "1 to 65536")
    }

    /// Counts the numbers that the classifier stores: a convolution and an ActNorm a head, and a linear layer.
    pub(super) fn head_size(&self) -> Size {
        if self.classes == 0 {
            return Size::default();
        }
        let (width, scales) = (self.head_width, self.scales());
        let head = |&[_, _, c]: &[usize; 3]| {
            let convolution = LayerStage::Convolution { kernel: [3, 3], inputs: c, outputs: width, coefficient: None };
            convolution.size(&[]).plus(Stage::ActNorm { features: width }.size())
        };
        let inputs = width.saturating_mul(scales.len());
        let linear = LayerStage::Linear { inputs, outputs: self.classes, coefficient: None }.size(&[]);
        scales.iter().skip(1).chain(scales.last()).map(head).sum::<Size>().plus(linear)
    }
}
