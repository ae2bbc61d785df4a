//! Layer normalisation over features or channels (Ba, Kiros and Hinton 2016, arXiv 1607.06450, eq. 4): y = g ∘ (x − m)/√(v + ε) + b with
//! the mean m and the variance v of a sample's features, at each pixel by itself.

use resflow_backend::Backend;

use super::formula::{Formula, Prepared};
use super::graph::{Function, Graph, Term};
use super::{Layer, PreparedLayer};
use crate::error::ConfigError;
use crate::module::Module;
use crate::stage::LayerStage;

/// ε.
const EPSILON: f64 = 1e-5;

/// A layer normalisation with its scales g and shifts b, `[1, c]` each. Its slope has no bound of use.
#[derive(Debug, Clone)]
pub struct LayerNorm<B: Backend> {
    scale: B::Tensor,
    shift: B::Tensor,
    features: usize,
}

impl<B: Backend> LayerNorm<B> {
    /// Builds the normalisation of so many features, g = 1 and b = 0.
    pub fn new(backend: &B, features: usize) -> Self {
        let full = |value: f64| backend.full(value, [1, features].into());
        Self { scale: full(1.0), shift: full(0.0), features }
    }
}

impl<B: Backend> Module<B> for LayerNorm<B> {
    crate::parts!(B; scale: Parameter, shift: Parameter);

    fn describe(&self) -> String {
        format!("layer norm of {} features", self.features)
    }
}

impl<B: Backend> Layer<B> for LayerNorm<B> {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedLayer<B>> {
        let parameters = vec![self.scale.clone(), self.shift.clone()];
        Box::new(Prepared { formula: Normalise { features: self.features }, parameters })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if input.last() == Some(&self.features) && self.features > 0 {
            return Ok(input.to_vec());
        }
        Err(ConfigError::Inconsistent(format!(
            "a layer norm of {} features cannot take samples of shape {input:?}",
            self.features
        )))
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        f64::INFINITY
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::LayerNorm { features: self.features })
    }
}

#[derive(Debug)]
struct Normalise {
    features: usize,
}

impl<B: Backend> Formula<B> for Normalise {
    const OF_SAMPLES: bool = false;

    fn write(&self, graph: &mut Graph<'_, B>, x: &Term, parameters: &[Term]) -> Term {
        let (c, rows) = (self.features, graph.backend.shape(graph.value(x))[0]);
        // sums over features, and a number of each row beside all of its features
        let (down, across) = (graph.ones(c, 1), graph.ones(1, c));
        let all_rows = graph.ones(rows, 1);
        let mean = graph.product((x, false), (&down, false));
        let mean = graph.affine(&mean, -1.0 / c as f64, 0.0);
        let mean = graph.product((&mean, false), (&across, false));
        let centred = graph.sum(x, &mean);
        let square = graph.times(&centred, &centred);
        let variance = graph.product((&square, false), (&down, false));
        let variance = graph.affine(&variance, 1.0 / c as f64, EPSILON);
        let narrow = graph.function(Function::InverseRoot, &variance);
        let narrow = graph.product((&narrow, false), (&across, false));
        let unit = graph.times(&centred, &narrow);
        let [scale, shift] = [0, 1].map(|i| graph.product((&all_rows, false), (&parameters[i], false)));
        let scaled = graph.times(&unit, &scale);
        graph.sum(&scaled, &shift)
    }
}
