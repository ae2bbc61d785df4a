//! The chains that configurations of couplings spell out.
//!
//! ```text
//! rows:   [ActNorm,] ([invertible linear map,] coupling [, ActNorm]) × blocks
//! flowpp: as rows, with maps, mixture coupling
//! nsf:    [ActNorm,] (LU linear map, spline coupling [, ActNorm]) × blocks, LU linear map
//! scale:  ([invertible 1 × 1 convolution,] coupling, ActNorm) × n
//! ```
//!
//! with the maps in Glow and Flow++ only; read from an ActNorm on, its step is ActNorm, map, coupling. Masks take turns: of a
//! coupling the one half stays, of the next the other. In a scale of Real NVP and of Flow++ the first half of the couplings have
//! checkerboard masks and the rest channel masks; Glow's have channel masks. One channel has a checkerboard, one pixel
//! has channels. Invariant: every scale of at least two numbers has a mask for each coupling, both of whose sides hold
//! something.

use super::{Family, FlowConfig, ImageConfig, Start, net};
use crate::error::ConfigError;
use crate::lipschitz::NormChain;
use crate::stage::{Logistics, Mask, Net, Repeated, Splines, Stage};

/// The largest matrix of Glow and of spline flows: its random start, and its inverse, take c³ multiply-adds.
const MOST_FEATURES: usize = 1024;

/// Numbers that the reverse pass of a mixture holds for each of its parameters.
const MIXTURE_NUMBERS: usize = 6;

/// The number of a scale's couplings that have checkerboard masks.
fn checkerboards(family: Family, shape: &[usize], blocks: usize) -> usize {
    match *shape {
        [_, _, c] if c < 2 => blocks,
        [h, w, _] if h * w > 1 && matches!(family, Family::RealNvp | Family::FlowPlusPlus) => blocks.div_ceil(2),
        _ => 0,
    }
}

/// The mask of coupling i of a scale.
fn mask(family: Family, shape: &[usize], blocks: usize, i: usize) -> Mask {
    let boards = checkerboards(family, shape, blocks);
    if i < boards {
        Mask::Checkerboard { swapped: i % 2 == 1 }
    } else {
        Mask::Channels { swapped: (i - boards) % 2 == 1 }
    }
}

/// Returns `true` if a scale has invertible linear maps: of one channel it would be an ActNorm.
fn maps(family: Family, shape: &[usize]) -> bool {
    matches!(family, Family::Glow | Family::FlowPlusPlus) && shape.last().is_some_and(|&c| c > 1)
}

/// (kernel, inputs, outputs) of the layers of a coupling's net between two shapes through hidden widths, `kernels` one longer than they are.
fn layers(
    ends: Result<[Vec<usize>; 2], ConfigError>,
    hidden: impl Iterator<Item = usize>,
    kernels: impl Iterator<Item = usize>,
    widening: usize,
) -> Vec<(usize, usize, usize)> {
    let ends = ends.map(|shapes| shapes.map(|s| s.last().copied().unwrap_or(0)));
    let [first, last] = ends.unwrap_or([0, 0]);
    let widths: Vec<_> = std::iter::once(first).chain(hidden).chain([last]).collect();
    let widen = |i: usize| if i > 0 { widening } else { 1 };
    kernels.zip(widths.windows(2)).enumerate().map(|(i, (k, w))| (k, w[0] * widen(i), w[1])).collect()
}

/// The shapes between which the net of a coupling maps.
fn ends(family: Family, logistics: Logistics, mask: Mask, shape: &[usize]) -> Result<[Vec<usize>; 2], ConfigError> {
    if family == Family::FlowPlusPlus { logistics.net_shapes(mask, shape) } else { mask.net_shapes(shape) }
}

/// A coupling.
fn stage(family: Family, shape: &[usize], mask: Mask, net: Net, start: Start, logistics: Logistics) -> Stage {
    let shape = shape.to_vec();
    if family == Family::FlowPlusPlus {
        return Stage::MixtureCoupling { shape, mask, logistics, net };
    }
    Stage::Coupling { shape, mask, net, centred: start == Start::Identity }
}

/// The couplings, maps and norms of one scale, two rounds of equal masks written once.
fn scale(
    family: Family,
    shape: &[usize],
    blocks: usize,
    actnorm: bool,
    coupling: impl Fn(Mask) -> Stage,
) -> Vec<Repeated> {
    let features = shape.last().copied().unwrap_or(0);
    let round = |i: usize| {
        let mask = mask(family, shape, blocks, i);
        let map = maps(family, shape).then_some(Stage::InvertibleLinear { features });
        let norm = actnorm.then_some(Stage::ActNorm { features });
        map.into_iter().chain([coupling(mask)]).chain(norm)
    };
    let boards = checkerboards(family, shape, blocks);
    let mut chain = Vec::new();
    for (first, count) in [(0, boards), (boards, blocks - boards)] {
        if count > 1 {
            chain.push(Repeated { stages: round(first).chain(round(first + 1)).collect(), times: count / 2 });
        }
        if count % 2 == 1 {
            chain.push(Repeated::once(round(first + count - 1).collect()));
        }
    }
    chain
}

/// Rejects settings that only residual blocks support.
fn check(norms: &NormChain, shape: &[usize], widest: usize, family: Family) -> Result<(), ConfigError> {
    let wrong = |problem: String| Err(ConfigError::Inconsistent(problem));
    if shape.iter().product::<usize>() < 2 {
        return wrong(format!(
            "{family} couples numbers of a row with each other: it needs at least two columns or pixels"
        ));
    }
    if *norms != NormChain::Two {
        return wrong(format!("`norms` are those of constrained weights, {family} has none: leave it at \"2\""));
    }
    if matches!(family, Family::Glow | Family::Nsf | Family::FlowPlusPlus) && widest > MOST_FEATURES {
        return wrong(format!("{family} mixes at most {MOST_FEATURES} features or channels, here there are {widest}"));
    }
    Ok(())
}

impl FlowConfig {
    pub(super) fn check_couplings(&self) -> Result<(), ConfigError> {
        check(&self.norms, &[self.dimension], self.dimension, self.model)?;
        match self.model {
            Family::Nsf => self.splines().check(),
            Family::FlowPlusPlus => self.logistics().check(),
            _ => Ok(()),
        }
    }

    /// The mixtures of the couplings.
    fn logistics(&self) -> Logistics {
        Logistics { components: self.components }
    }

    /// The splines of the couplings.
    fn splines(&self) -> Splines {
        let hidden = self.hidden.last().copied().unwrap_or(0);
        Splines { bins: self.bins, bound: self.bound, hidden, unconditional: true }
    }

    /// Counts the numbers that the maps of a row in one coupling are made of: 3K − 1 raw parameters of a spline for each number, those of
    /// numbers that move by the net, those of the others by themselves; of mixtures what is computed for each component. Other
    /// families have none.
    pub(crate) fn raw_parameters(&self) -> usize {
        match self.model {
            Family::Nsf => self.dimension.saturating_mul(self.splines().parameters()),
            Family::FlowPlusPlus => self.dimension.saturating_mul(MIXTURE_NUMBERS * self.logistics().parameters()),
            _ => 0,
        }
    }

    /// LU linear map, spline coupling [, ActNorm].
    fn spline_round(&self, swapped: bool) -> impl Iterator<Item = Stage> {
        let (features, splines) = (self.dimension, self.splines());
        let [(_, stays), (_, moves)] = Splines::sides(features, swapped);
        let outputs = moves.saturating_mul(splines.parameters());
        let widths: Vec<_> = std::iter::once(stays).chain(self.hidden.iter().copied()).chain([outputs]).collect();
        let widen = |i: usize| if i > 0 { self.activation.widening() } else { 1 };
        let layers: Vec<_> = widths.windows(2).enumerate().map(|(i, w)| (0, w[0] * widen(i), w[1])).collect();
        let net = net(&layers, self.activation, false, None, &NormChain::Two);
        let norm = self.actnorm.then_some(Stage::ActNorm { features });
        [Stage::LuLinear { features }, Stage::SplineCoupling { features, swapped, splines, net }]
            .into_iter()
            .chain(norm)
    }

    /// The chain of a spline flow after a leading ActNorm.
    fn spline_chain(&self) -> Vec<Repeated> {
        let mut chain = Vec::new();
        if self.blocks > 1 {
            let stages = self.spline_round(false).chain(self.spline_round(true)).collect();
            chain.push(Repeated { stages, times: self.blocks / 2 });
        }
        if self.blocks % 2 == 1 {
            chain.push(Repeated::once(self.spline_round(false).collect()));
        }
        chain.push(Repeated::once(vec![Stage::LuLinear { features: self.dimension }]));
        chain
    }

    fn coupling_layers(&self, mask: Mask) -> Vec<(usize, usize, usize)> {
        let kernels = std::iter::repeat_n(0, self.hidden.len() + 1);
        let ends = ends(self.model, self.logistics(), mask, &[self.dimension]);
        layers(ends, self.hidden.iter().copied(), kernels, self.activation.widening())
    }

    /// The chain after a leading ActNorm.
    pub(super) fn coupling_chain(&self) -> Vec<Repeated> {
        if self.model == Family::Nsf {
            return self.spline_chain();
        }
        let shape = [self.dimension];
        scale(self.model, &shape, self.blocks, self.actnorm, |mask| {
            let net = net(&self.coupling_layers(mask), self.activation, false, None, &NormChain::Two);
            stage(self.model, &shape, mask, net, self.start, self.logistics())
        })
    }
}

impl ImageConfig {
    pub(super) fn check_couplings(&self) -> Result<(), ConfigError> {
        let widest = self.scales().iter().map(|[_, _, c]| *c).max().unwrap_or(0);
        check(&self.norms, &[self.height, self.width, self.channels], widest, self.model)?;
        if self.fully_connected > 0 {
            return Err(ConfigError::OutOfRange {
                name: "fully_connected",
                value: self.fully_connected as f64,
                expected: "0: realnvp, glow and flowpp have no fully connected end",
            });
        }
        if self.model == Family::FlowPlusPlus { self.logistics().check() } else { Ok(()) }
    }

    /// The mixtures of the couplings.
    fn logistics(&self) -> Logistics {
        Logistics { components: self.components }
    }

    fn coupling_layers(&self, shape: &[usize], mask: Mask) -> Vec<(usize, usize, usize)> {
        let hidden = std::iter::repeat_n(self.filters, self.kernels.len() - 1);
        let ends = ends(self.model, self.logistics(), mask, shape);
        layers(ends, hidden, self.kernels.iter().copied(), self.activation.widening())
    }

    /// The chain of a scale after its squeeze.
    pub(super) fn coupling_chain(&self, shape: [usize; 3], blocks: usize) -> Vec<Repeated> {
        scale(self.model, &shape, blocks, self.actnorm, |mask| {
            let net = if let Some(gated) = &self.gated {
                let ends = ends(self.model, self.logistics(), mask, &shape);
                let [inputs, outputs] = ends.map_or([0; 2], |ends| ends.map(|end| end.last().copied().unwrap_or(0)));
                self.gated_net(gated, &shape, inputs, outputs)
            } else {
                net(&self.coupling_layers(&shape, mask), self.activation, false, None, &NormChain::Two)
            };
            stage(self.model, &shape, mask, net, self.start, self.logistics())
        })
    }
}
