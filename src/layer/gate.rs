//! The gated linear unit, [a | b] ↦ a ∘ σ(b) (Dauphin, Fan, Auli and Grangier 2017, arXiv 1612.08083, eq. 1): half as many features.

use resflow_backend::Backend;

use super::formula::{Formula, Prepared};
use super::graph::{Function, Graph, Term};
use super::{Layer, PreparedLayer};
use crate::error::ConfigError;
use crate::module::Module;
use crate::stage::LayerStage;

/// A gated linear unit. Its slope has no bound.
#[derive(Debug, Clone, Copy)]
pub struct GatedUnit {
    features: usize,
}

impl GatedUnit {
    /// Builds the unit of so many features, of twice as many.
    pub fn new(features: usize) -> Self {
        Self { features }
    }
}

impl<B: Backend> Module<B> for GatedUnit {
    fn describe(&self) -> String {
        format!("gated unit of {} features", self.features)
    }
}

impl<B: Backend> Layer<B> for GatedUnit {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(Prepared { formula: Gate { features: self.features }, parameters: Vec::new() })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        match input.split_last() {
            Some((last, others)) if Some(*last) == self.features.checked_mul(2) && self.features > 0 => {
                Ok([others, &[self.features]].concat())
            }
            _ => Err(ConfigError::Inconsistent(format!(
                "a gated unit of {} features cannot take samples of shape {input:?}",
                self.features
            ))),
        }
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        f64::INFINITY
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::Gate { features: self.features })
    }
}

#[derive(Debug)]
struct Gate {
    features: usize,
}

impl<B: Backend> Formula<B> for Gate {
    const OF_SAMPLES: bool = false;

    fn write(&self, graph: &mut Graph<'_, B>, x: &Term, _parameters: &[Term]) -> Term {
        let a = graph.narrow(x, 1, 0, self.features);
        let b = graph.narrow(x, 1, self.features, self.features);
        let open = graph.function(Function::Sigmoid, &b);
        graph.times(&a, &open)
    }
}
