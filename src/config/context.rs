//! The context of a conditional flow, as configurations say it, and what it makes of a chain.
//!
//! ```text
//! rows:   conditional ActNorm, then the chain
//! all:    behind each block and coupling a conditional ActNorm; in their nets biases behind all affine layers but the last,
//!         and, if asked for, gates behind these layers' activations
//! ```

use serde::{Deserialize, Serialize};

use super::{MOST_LAYERS, MOST_WIDTH, count};
use crate::error::ConfigError;
use crate::stage::{LayerStage, Repeated, Size, Stage};

/// The context of a conditional flow p(x | c).
///
/// ```
/// use resflow::config::{ContextConfig, FlowConfig};
/// // three numbers given five
/// let config = FlowConfig { context: Some(ContextConfig::new(5)), ..FlowConfig::new(3) };
/// config.check()?;
/// # Ok::<(), resflow::error::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContextConfig {
    /// k, the numbers of a context.
    pub columns: usize,
    /// The widths of the embedding's layers; none makes the context its own embedding.
    pub embedding: Vec<usize>,
    /// Puts gates by the context behind the activations of hidden layers.
    pub gates: bool,
    /// Scales and shifts by the context between blocks (conditional ActNorm).
    pub scales: bool,
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self { columns: 1, embedding: vec![64, 64], gates: false, scales: true }
    }
}

impl ContextConfig {
    /// Returns the default for contexts of so many numbers.
    pub fn new(columns: usize) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        count("context columns", self.columns, MOST_WIDTH, "1 to 65536")?;
        if self.embedding.len() > MOST_LAYERS {
            let value = self.embedding.len() as f64;
            return Err(ConfigError::OutOfRange { name: "embedding layers", value, expected: "at most 64 widths" });
        }
        self.embedding.iter().try_for_each(|&width| count("embedding", width, MOST_WIDTH, "widths from 1 to 65536"))
    }

    /// The numbers of an embedding.
    pub fn width(&self) -> usize {
        self.embedding.last().copied().unwrap_or(self.columns)
    }

    /// Counts the numbers that the embedding stores.
    pub(crate) fn size(&self) -> Size {
        let inputs = std::iter::once(&self.columns).chain(&self.embedding);
        let layer = |(&inputs, &outputs)| LayerStage::Linear { inputs, outputs, coefficient: None }.size(&[]);
        inputs.zip(&self.embedding).map(layer).sum()
    }

    /// Makes a chain conditional, of rows of so many numbers, or of images.
    pub(super) fn condition(&self, chain: Vec<Repeated>, rows: Option<usize>) -> Vec<Repeated> {
        let context = self.width();
        let scale = |features: usize| self.scales.then_some(Stage::ConditionalActNorm { features, context });
        let first = rows.and_then(scale).map(|scale| Repeated::once(vec![scale]));
        let told = |stage: Stage| {
            let features = stage.is_block().then(|| stage.features()).flatten();
            [Some(stage.conditional(context, self.gates)), features.and_then(scale)].into_iter().flatten()
        };
        let rest = chain
            .into_iter()
            .map(|round| Repeated { stages: round.stages.into_iter().flat_map(told).collect(), times: round.times });
        first.into_iter().chain(rest).collect()
    }
}
