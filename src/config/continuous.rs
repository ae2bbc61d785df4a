//! What the configuration of a continuous flow spells out.

use super::{Family, FlowConfig, ImageConfig, OdeSolver, net};
use crate::error::ConfigError;
use crate::lipschitz::NormChain;
use crate::ode::TIME_FEATURES;
use crate::stage::Stage;

/// Steps that a solve with steps by an estimate is taken to have, where memory is counted.
const SOME_STEPS: usize = 32;

/// Rejects settings that only constrained weights have, and solvers that there are not.
fn check(norms: &NormChain, family: Family, solvers: [OdeSolver; 2]) -> Result<(), ConfigError> {
    if *norms != NormChain::Two {
        return Err(ConfigError::Inconsistent(format!(
            "`norms` are those of constrained weights, {family} has none: leave it at \"2\""
        )));
    }
    solvers.iter().try_for_each(OdeSolver::check)
}

/// The stages of a step of a continuous flow's training, and its steps; (1, 0) of other families.
fn footprint(family: Family, solver: OdeSolver) -> (usize, usize) {
    match (family, solver) {
        (Family::Ffjord, OdeSolver::Rk4 { steps }) => (4, steps),
        (Family::Ffjord, OdeSolver::Dopri5 { .. }) => (6, SOME_STEPS),
        _ => (1, 0),
    }
}

impl FlowConfig {
    pub(super) fn check_continuous(&self) -> Result<(), ConfigError> {
        check(&self.norms, self.model, [self.solver, self.evaluation_solver])
    }

    pub(crate) fn solver_footprint(&self) -> (usize, usize) {
        footprint(self.model, self.solver)
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

impl ImageConfig {
    pub(super) fn check_continuous(&self) -> Result<(), ConfigError> {
        check(&self.norms, self.model, [self.solver, self.evaluation_solver])?;
        if self.fully_connected > 0 {
            let (name, value) = ("fully_connected", self.fully_connected as f64);
            return Err(ConfigError::OutOfRange { name, value, expected: "0: ffjord has no fully connected end" });
        }
        Ok(())
    }

    pub(crate) fn solver_footprint(&self) -> (usize, usize) {
        footprint(self.model, self.solver)
    }

    /// The ODE flow of a block of a scale, whose f is made of convolutions.
    pub(super) fn continuous(&self, shape: [usize; 3]) -> Stage {
        let layers = self.convolutions(shape[2], false);
        let net = net(&layers, self.activation, false, None, &NormChain::Two).conditional(TIME_FEATURES, false);
        let (training, evaluation) = (self.solver, self.evaluation_solver);
        Stage::OdeFlow { shape: shape.to_vec(), net, training, evaluation }
    }
}
