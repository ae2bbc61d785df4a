//! What the configuration of a continuous flow spells out.

use super::{Family, FlowConfig, OdeSolver, net};
use crate::error::ConfigError;
use crate::lipschitz::NormChain;
use crate::ode::TIME_FEATURES;
use crate::stage::Stage;

/// Steps that a solve with steps by an estimate is taken to have, where memory is counted.
const SOME_STEPS: usize = 32;

impl FlowConfig {
    /// Rejects settings that only constrained weights have, and solvers that there are not.
    pub(super) fn check_continuous(&self) -> Result<(), ConfigError> {
        if self.norms != NormChain::Two {
            return Err(ConfigError::Inconsistent(format!(
                "`norms` are those of constrained weights, {} has none: leave it at \"2\"",
                self.model
            )));
        }
        self.solver.check()?;
        self.evaluation_solver.check()
    }

    /// The stages of a step of a continuous flow's training, and its steps; (1, 0) of other families.
    pub(crate) fn solver_footprint(&self) -> (usize, usize) {
        match (self.model, self.solver) {
            (Family::Ffjord, OdeSolver::Rk4 { steps }) => (4, steps),
            (Family::Ffjord, OdeSolver::Dopri5 { .. }) => (6, SOME_STEPS),
            _ => (1, 0),
        }
    }

    /// The ODE flow of a block.
    pub(super) fn continuous(&self) -> Stage {
        let widths = std::iter::once(self.dimension).chain(self.hidden.iter().copied()).chain([self.dimension]);
        let widths: Vec<_> = widths.collect();
        let widen = |i: usize| if i > 0 { self.activation.widening() } else { 1 };
        let layers: Vec<_> = widths.windows(2).enumerate().map(|(i, w)| (0, w[0] * widen(i), w[1])).collect();
        let net = net(&layers, self.activation, false, None, &NormChain::Two).conditional(TIME_FEATURES, false);
        Stage::OdeFlow { shape: vec![self.dimension], net, training: self.solver, evaluation: self.evaluation_solver }
    }
}
