//! The choice between the exact log det and roulette, by counted cost.
//!
//! Costs are multiply-adds of the layer shapes, never time, backend, precision or threads, so the choice is the same
//! everywhere; it is written into the model. The exact log det has no variance, so it may cost up to twice as much in
//! training; in evaluation it is compared with the 20 terms that the reference uses there.

use serde::{Deserialize, Serialize};

use super::{Bottleneck, Estimator, Exact, Law, Phase, Probe, RussianRoulette, Sharing, Traces};

/// Terms of the series that an exact evaluation may cost.
const EVALUATION_TERMS: f64 = 20.0;
/// The factor by which an exact log det may cost more than roulette in training.
const TRAINING_FACTOR: f64 = 2.0;

/// Exact where the counted cost allows, else roulette.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auto {
    /// The estimator where exact is too expensive.
    pub otherwise: RussianRoulette,
}

impl Default for Auto {
    /// Geometric ½ with two exact terms, the toy setting of Chen et al.
    fn default() -> Self {
        Self {
            otherwise: RussianRoulette {
                law: Law::ShiftedGeometric { p: 0.5 },
                exact_terms: 2,
                draws: 1,
                probes: 1,
                probe: Probe::Rademacher,
                sharing: Sharing::Batch,
                traces: Traces::Probed,
            },
        }
    }
}

/// The cost of a log det, in passes through g of one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// d, the numbers in a sample.
    pub dimension: usize,
    /// Multiply-adds of one pass through g.
    pub multiply_adds: u64,
    /// The narrowest place inside g, if there the numbers are fewer than d: the exact value is that of a matrix as large.
    pub bottleneck: Option<Bottleneck>,
}

impl CostModel {
    /// The bottleneck, if it is one: where there are fewer numbers than d.
    pub(super) fn narrower(&self) -> Option<&Bottleneck> {
        self.bottleneck.as_ref().filter(|b| b.width() < self.dimension)
    }

    /// The LU of a matrix of `size` rows, and the inverse where the gradient wants it, in passes.
    fn lu(&self, size: f64, training: bool) -> f64 {
        size.powi(3) * if training { 1.0 } else { 1.0 / 3.0 } / (self.multiply_adds.max(1) as f64)
    }

    /// The exact value without its gradient, in passes.
    fn exact_value(&self) -> f64 {
        let size = self.narrower().map_or(self.dimension, Bottleneck::width) as f64;
        size + self.lu(size, false)
    }

    /// Training: forward, m + terms·m products, m tangents, and the reverse pass of value and m tangents, twice each.
    fn training(probes: f64, products: f64) -> f64 {
        1.0 + products + probes + 2.0 * (1.0 + probes)
    }
}

impl Auto {
    /// Chooses the estimator by a cost model.
    pub fn choose(&self, cost: &CostModel, phase: Phase) -> Estimator {
        let d = cost.dimension as f64;
        let exact = if phase == Phase::Training {
            let probes = self.otherwise.probes as f64;
            let roulette = CostModel::training(probes, probes * self.otherwise.expected_terms());
            CostModel::training(d, d) + cost.lu(d, true) <= TRAINING_FACTOR * roulette
        } else {
            cost.exact_value() <= EVALUATION_TERMS
        };
        if exact { Estimator::Exact(Exact) } else { Estimator::RussianRoulette(self.otherwise.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pitfall 16: small models are evaluated exactly, large ones are not.
    #[test]
    fn small_models_are_exact() {
        let choose = |dimension, training: bool| {
            let phase = if training { Phase::Training } else { Phase::Evaluation };
            let multiply_adds = 2 * 64 * dimension as u64 + 2 * 64 * 64;
            let cost = CostModel { dimension, multiply_adds, bottleneck: None };
            matches!(Auto::default().choose(&cost, phase), Estimator::Exact(_))
        };
        assert!(choose(2, true) && choose(2, false) && choose(15, false));
        assert!(!choose(43, true) && !choose(43, false) && !choose(20, true));
    }

    /// A bottleneck is used for values, and only where it is one.
    #[test]
    fn narrow_nets_are_exact() {
        let choose = |width: usize, phase| {
            let bottleneck = Some(Bottleneck { layers: 1, shape: [width].into() });
            let cost = CostModel { dimension: 43, multiply_adds: 2 * 64 * 43 + 2 * 64 * width as u64, bottleneck };
            matches!(Auto::default().choose(&cost, phase), Estimator::Exact(_))
        };
        assert!(choose(1, Phase::Evaluation) && choose(15, Phase::Evaluation));
        assert!(!choose(20, Phase::Evaluation) && !choose(43, Phase::Evaluation) && !choose(44, Phase::Evaluation));
        assert!(!choose(1, Phase::Training));
    }
}
