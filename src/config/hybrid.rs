//! The heads of a hybrid model: where they sit in the chain of an image flow, and what they look at.
//!
//! A head looks at each scale's output: at the images after the squeeze that ends the scale (with factor-out, at the channels
//! that leave there), and at the end of the chain.

use super::{ImageConfig, MOST_WIDTH, Stage, count};
use crate::error::ConfigError;

/// A head's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadPlace {
    /// The stage whose output it looks at.
    pub stage: usize,
    /// The shape of the images that it looks at, `[h, w, c]`.
    pub image: [usize; 3],
}

impl ImageConfig {
    /// Where the heads are; empty without classes.
    pub fn heads(&self) -> Vec<HeadPlace> {
        if self.classes == 0 {
            return Vec::new();
        }
        let stages = self.stages();
        let first = usize::from(self.squeeze_first);
        let squeezes = (first..stages.len()).filter(|&i| matches!(stages[i], Stage::Squeeze { .. }));
        let ends = squeezes.chain(stages.len().checked_sub(1));
        // after its squeeze a scale's output has the shape of the next scale, with factor-out as what leaves has
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

    /// The trained numbers of the classifier.
    pub(super) fn head_parameters(&self) -> u64 {
        if self.classes == 0 {
            return 0;
        }
        let (width, scales) = (self.head_width as u64, self.scales());
        let head = |[_, _, c]: &[usize; 3]| (9 * *c as u64 + 1).saturating_mul(width).saturating_add(2 * width);
        let heads = scales.iter().skip(1).chain(scales.last()).map(head).fold(0, u64::saturating_add);
        let linear = (width * scales.len() as u64 + 1).saturating_mul(self.classes as u64);
        heads.saturating_add(linear)
    }

    /// The tensors that the classifier stores: kernel, bias, s, b and the flag of each head, weight and bias.
    pub(super) fn head_tensors(&self) -> u64 {
        if self.classes == 0 { 0 } else { 5 * self.blocks.len() as u64 + 2 }
    }
}
