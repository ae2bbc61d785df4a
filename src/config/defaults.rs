//! The default architectures of the families.

use super::preset::exact_terms;
use super::{
    Dequantisation, DequantisationConfig, Family, FlowConfig, GatedConfig, ImageConfig, Nonlinearity, OdeSolver, Start,
};
use crate::estimator::{Estimator, Exact, Expansion, Law, Probe, RussianRoulette, Sharing, Traces, Truncated};

/// κ of i-ResNets (Behrmann et al. 2019, appendix).
const IRESNET_COEFFICIENT: f64 = 0.9;
/// The terms of their truncated series.
const IRESNET_TERMS: usize = 10;

/// κ of implicit flows over images (Lu et al. 2021).
const IMPLICIT_COEFFICIENT: f64 = 0.9;

/// The channels of published flows over images.
const PUBLISHED_FILTERS: usize = 512;
/// Those of the ones for two cores.
const SMALL_FILTERS: usize = 64;

/// The steps of training of a continuous flow over images.
const IMAGE_STEPS: usize = 4;

/// i-ResNet's truncated series.
fn truncated() -> Estimator {
    Estimator::Truncated(Truncated {
        terms: IRESNET_TERMS,
        probes: 1,
        probe: Probe::Rademacher,
        traces: Traces::Probed,
    })
}

impl FlowConfig {
    /// Returns the default architecture of a family for samples of `dimension` numbers.
    pub fn of(family: Family, dimension: usize) -> Self {
        let residual = Self::new(dimension);
        let coupling = || Self {
            model: family,
            activation: Nonlinearity::Relu,
            training: Estimator::Exact(Exact),
            evaluation: Estimator::Exact(Exact),
            dimension,
            ..Self::default()
        };
        match family {
            Family::Residual => residual,
            Family::IResNet => Self {
                model: family,
                activation: Nonlinearity::Elu,
                coefficient: IRESNET_COEFFICIENT,
                training: truncated(),
                ..residual
            },
            Family::Dense => Self {
                model: family,
                activation: Nonlinearity::ClipSwish,
                hidden: vec![64; 3],
                leading_activation: false,
                ..residual.with_laws_for(Expansion::Whole)
            },
            // as published, but with ActNorm; a block has two nets
            Family::Implicit => Self {
                model: family,
                activation: Nonlinearity::Sin,
                leading_activation: false,
                blocks: residual.blocks.div_ceil(2),
                ..residual
            },
            // one block has the range of two residual ones
            Family::Monotone => Self {
                model: family,
                activation: Nonlinearity::ConcatenatedPila,
                hidden: vec![64; 3],
                leading_activation: false,
                blocks: residual.blocks.div_ceil(2),
                ..residual.with_laws_for(Expansion::Odd)
            },
            // one ODE is as much as many blocks; its trace is exact where there are at most two hidden layers
            Family::Ffjord => Self {
                blocks: 1,
                activation: Nonlinearity::Softplus,
                leading_activation: false,
                actnorm: false,
                ..coupling()
            },
            // the identity at first, like Glow
            Family::FlowPlusPlus => Self { blocks: 8, initial_scale: 0.0, ..coupling() },
            Family::RealNvp => coupling(),
            // as published, a start at the identity
            Family::Glow => Self { initial_scale: 0.0, ..coupling() },
            // likewise; LU linear maps shift and scale, so there is nothing left for ActNorm
            Family::Nsf => Self { blocks: 8, initial_scale: 0.0, actnorm: false, ..coupling() },
        }
    }
}

impl FlowConfig {
    /// Lets roulettes stop no sooner than the variance stays bounded, for nets whose last layer alone is below Lipschitz constant 1, at κ.
    fn with_laws_for(mut self, expansion: Expansion) -> Self {
        let ratio = expansion.ratio(self.coefficient);
        // the next hundredth below
        let most = (((1.0 - ratio * ratio) * 100.0).ceil() - 1.0) / 100.0;
        for estimator in [&mut self.training, &mut self.evaluation] {
            if let Estimator::Auto(auto) = estimator
                && let Law::ShiftedGeometric { p } = &mut auto.otherwise.law
            {
                *p = p.min(most);
            }
        }
        self
    }

    /// Returns the default architecture of a family for a table of so many rows: smaller where there are few, and the
    /// identity at the beginning, so that training begins at its base density.
    pub fn for_table(family: Family, rows: usize, columns: usize) -> Self {
        let config = Self { start: Start::Identity, ..Self::of(family, columns) };
        let (most_blocks, most_width) = match rows {
            0..1_000 => (4, 32),
            1_000..10_000 => (8, 64),
            _ => (config.blocks, usize::MAX),
        };
        // a coupling moves half of the columns
        let blocks = if family.couples() { 2 * most_blocks } else { most_blocks };
        let hidden = config.hidden.iter().map(|&width| width.min(most_width)).collect();
        Self { blocks: config.blocks.min(blocks), hidden, ..config }
    }

    /// Returns the default architecture of a family for a built-in density: the identity at the beginning, like that of a
    /// table, so that training begins at its base density.
    pub fn for_density(family: Family) -> Self {
        Self { start: Start::Identity, ..Self::of(family, 2) }
    }
}

/// Replaces a roulette's law by one whose number of terms falls slowly, for each sample its own.
fn geometric(estimator: &Estimator, p: f64) -> Estimator {
    match estimator {
        Estimator::RussianRoulette(roulette) => {
            let law = Law::ShiftedGeometric { p };
            Estimator::RussianRoulette(RussianRoulette { law, sharing: Sharing::Sample, ..roulette.clone() })
        }
        other => other.clone(),
    }
}

impl ImageConfig {
    /// Returns the flow of a family for these images, of as many scales and filters. Couplings move one half of the
    /// numbers at a time, so there are twice as many of them as residual blocks; half of the channels are factored out
    /// between scales, and nothing is fully connected. Glow squeezes first, and has a scale less where the image is too
    /// small for it.
    pub fn of(self, family: Family) -> Self {
        let coupling = |residual: Self| Self {
            model: family,
            activation: Nonlinearity::Relu,
            blocks: residual.blocks.iter().map(|&b| 2 * b).collect(),
            fully_connected: 0,
            factor_out: true,
            training: Estimator::Exact(Exact),
            evaluation: Estimator::Exact(Exact),
            ..residual
        };
        match family {
            Family::Residual => self,
            Family::IResNet => Self {
                model: family,
                activation: Nonlinearity::Elu,
                coefficient: IRESNET_COEFFICIENT,
                training: truncated(),
                ..self
            },
            // as published; of smaller flows with roulettes that end later, as what is measured asks for (docs/images.md)
            Family::Dense if self.filters >= PUBLISHED_FILTERS => self.of_dense(),
            Family::Dense => {
                let training = geometric(&self.training, 0.15);
                let evaluation = geometric(&self.evaluation, 0.05);
                Self { training, evaluation, ..self.of_dense() }
            }
            // as published: two blocks of two nets each a scale, ten exact terms
            Family::Implicit => Self {
                model: family,
                coefficient: IMPLICIT_COEFFICIENT,
                training: if self.filters < PUBLISHED_FILTERS {
                    self.training
                } else {
                    exact_terms(&self.training, 10)
                },
                blocks: self.blocks.iter().map(|&b| b.div_ceil(2).min(2)).collect(),
                fully_connected: 0,
                ..self
            },
            // as many blocks as published, with the nets of a dense flow; of smaller flows one block for two residual ones
            Family::Monotone => {
                let smaller = self.filters < PUBLISHED_FILTERS;
                let half = |count: usize| if smaller { count.div_ceil(2) } else { count };
                let blocks = self.blocks.iter().map(|&count| half(count)).collect();
                let fully_connected = half(self.fully_connected);
                let activation = Nonlinearity::ConcatenatedPila;
                Self { model: family, activation, blocks, fully_connected, ..self.of_dense() }
            }
            Family::RealNvp => coupling(self),
            Family::FlowPlusPlus => self.of_flow_plus_plus(coupling),
            // for rows: [`ImageConfig::check`] says so
            Family::Nsf => Self { model: family, ..self },
            // one ODE a scale is as much as many blocks; its trace is exact with the usual kernels
            Family::Ffjord => Self {
                model: family,
                activation: Nonlinearity::Softplus,
                blocks: vec![1; self.blocks.len()],
                filters: self.filters.min(SMALL_FILTERS),
                leading_activation: false,
                first_activation: false,
                fully_connected: 0,
                training: Estimator::Exact(Exact),
                evaluation: Estimator::Exact(Exact),
                solver: OdeSolver::Rk4 { steps: IMAGE_STEPS },
                ..self
            },
            Family::Glow => {
                let mut flow = Self { squeeze_first: true, initial_scale: 0.0, ..coupling(self) };
                let halves = |flow: &Self| {
                    let divisor = 1 << flow.blocks.len().min(32);
                    flow.height.is_multiple_of(divisor) && flow.width.is_multiple_of(divisor)
                };
                while flow.blocks.len() > 1 && !halves(&flow) {
                    flow.blocks.pop();
                }
                flow.squeeze_first = halves(&flow);
                flow
            }
        }
    }

    /// The Flow++ for these images: of the published sizes with the published nets on two scales, of those for two cores with smaller
    /// ones, which attend where there are few pixels; else couplings with plain nets.
    fn of_flow_plus_plus(self, coupling: impl Fn(Self) -> Self) -> Self {
        let filters = self.filters;
        let (published, small) = (filters >= PUBLISHED_FILTERS, filters >= SMALL_FILTERS);
        let scales = self.blocks.len();
        let flow = Self { initial_scale: 0.0, ..coupling(self) };
        if published {
            return Self {
                // as many couplings as published, where the image can be halved once
                blocks: if scales > 1 { vec![4, 5] } else { vec![9] },
                filters: 96,
                components: 32,
                gated: Some(GatedConfig::default()),
                activation: Nonlinearity::ClipSwish,
                factor_out: false,
                dequantisation: DequantisationConfig {
                    kind: Dequantisation::Variational,
                    model: Family::FlowPlusPlus,
                    blocks: 4,
                    filters: 96,
                    features: 32,
                },
                ..flow
            };
        }
        if small {
            let gated = GatedConfig { blocks: 1, heads: 4, most_pixels: 64 };
            let blocks = flow.blocks.iter().map(|&count| count.div_ceil(2)).collect();
            return Self { blocks, filters: 32, gated: Some(gated), activation: Nonlinearity::ClipSwish, ..flow };
        }
        flow
    }
}
