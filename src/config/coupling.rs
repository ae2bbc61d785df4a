//! What configurations of couplings spell out.
//!
//! ```text
//! rows:   [ActNorm,] ([invertible linear map,] coupling [, ActNorm]) × blocks
//! scale:  ([invertible 1 × 1 convolution,] coupling, ActNorm) × n
//! ```
//!
//! with the maps in Glow only; read from an ActNorm on, its step is ActNorm, map, coupling. Masks take turns: of a coupling
//! the one half stays, of the next the other. In a scale of Real NVP the first half of the couplings have checkerboard
//! masks and the rest channel masks; Glow's have channel masks. One channel has a checkerboard, one pixel has channels.
//! Invariant: every scale of at least two numbers has a mask for each coupling, both of whose sides hold something.

use super::{Family, FlowConfig, ImageConfig, Stage};
use crate::coupling::Mask;
use crate::error::ConfigError;
use crate::lipschitz::NormChain;

/// A coupling of a configured flow.
#[derive(Debug, Clone, PartialEq)]
pub struct CouplingBlock {
    /// The shape of its rows: `[d]`, or `[h, w, c]`.
    pub row: Vec<usize>,
    /// What stays.
    pub mask: Mask,
    /// Kernel size, inputs and outputs of the layers of its net; a linear one has kernel size 0. Between them are
    /// activations.
    pub layers: Vec<(usize, usize, usize)>,
}

/// The largest matrix of Glow: its random start takes c³ multiply-adds.
const MOST_FEATURES: usize = 1024;

/// How many of a scale's couplings have checkerboard masks.
fn checkerboards(family: Family, row: &[usize], blocks: usize) -> usize {
    match *row {
        [_, _, c] if c < 2 => blocks,
        [h, w, _] if h * w > 1 && family == Family::RealNvp => blocks.div_ceil(2),
        _ => 0,
    }
}

/// The mask of coupling i of a scale.
fn mask(family: Family, row: &[usize], blocks: usize, i: usize) -> Mask {
    let boards = checkerboards(family, row, blocks);
    if i < boards {
        Mask::Checkerboard { swapped: i % 2 == 1 }
    } else {
        Mask::Channels { swapped: (i - boards) % 2 == 1 }
    }
}

/// The masks of a scale and how many couplings have each.
fn masks(family: Family, row: &[usize], blocks: usize) -> [(Mask, u64); 4] {
    let boards = checkerboards(family, row, blocks);
    let turn = |count: usize, swapped: bool| (if swapped { count / 2 } else { count.div_ceil(2) }) as u64;
    let both = |swapped| {
        [
            (Mask::Checkerboard { swapped }, turn(boards, swapped)),
            (Mask::Channels { swapped }, turn(blocks - boards, swapped)),
        ]
    };
    let [[a, b], [c, d]] = [both(false), both(true)];
    [a, b, c, d]
}

/// Whether a scale has invertible linear maps: of one channel it would be an ActNorm.
fn maps(family: Family, row: &[usize]) -> bool {
    family == Family::Glow && row.last().is_some_and(|&c| c > 1)
}

/// (kernel, inputs, outputs) of a coupling's layers through hidden widths, `kernels` one longer than they are.
fn layers(
    mask: Mask,
    row: &[usize],
    hidden: impl Iterator<Item = usize>,
    kernels: impl Iterator<Item = usize>,
    widening: usize,
) -> Vec<(usize, usize, usize)> {
    let ends = mask.net_shapes(row).map(|shapes| shapes.map(|s| s.last().copied().unwrap_or(0)));
    let [first, last] = ends.unwrap_or([0, 0]);
    let widths: Vec<_> = std::iter::once(first).chain(hidden).chain([last]).collect();
    let widen = |i: usize| if i > 0 { widening } else { 1 };
    kernels.zip(widths.windows(2)).enumerate().map(|(i, (k, w))| (k, w[0] * widen(i), w[1])).collect()
}

/// The trained numbers of a net of these layers.
fn numbers(layers: &[(usize, usize, usize)], parameter: bool) -> u64 {
    let own = |&(k, i, o): &(usize, usize, usize)| {
        let taps = ((k * k).max(1) as u64).saturating_mul(i as u64);
        taps.saturating_add(1).saturating_mul(o as u64)
    };
    let activations = if parameter { layers.len() as u64 - 1 } else { 0 };
    layers.iter().map(own).fold(activations, u64::saturating_add)
}

/// The couplings, maps and norms of one scale.
fn scale(
    family: Family,
    row: &[usize],
    blocks: usize,
    actnorm: bool,
    layers: impl Fn(Mask) -> Vec<(usize, usize, usize)>,
) -> Vec<Stage> {
    let c = row.last().copied().unwrap_or(0);
    let mut stages = Vec::new();
    for i in 0..blocks {
        if maps(family, row) {
            stages.push(Stage::InvertibleLinear(c));
        }
        let mask = mask(family, row, blocks, i);
        stages.push(Stage::Coupling(CouplingBlock { row: row.to_vec(), mask, layers: layers(mask) }));
        if actnorm {
            stages.push(Stage::ActNorm(c));
        }
    }
    stages
}

/// The trained numbers of one scale.
fn scale_numbers(family: Family, row: &[usize], blocks: usize, actnorm: bool, net: impl Fn(Mask) -> u64) -> u64 {
    let c = row.last().copied().unwrap_or(0) as u64;
    let square = if maps(family, row) { c.saturating_mul(c) } else { 0 };
    let others = square.saturating_add(if actnorm { 2 * c } else { 0 }).saturating_mul(blocks as u64);
    let nets = masks(family, row, blocks).into_iter().filter(|&(_, count)| count > 0);
    nets.map(|(mask, count)| net(mask).saturating_mul(count)).fold(others, u64::saturating_add)
}

/// What couplings cannot have.
fn check(norms: &NormChain, row: &[usize], widest: usize, family: Family) -> Result<(), ConfigError> {
    let wrong = |problem: String| Err(ConfigError::Inconsistent(problem));
    if row.iter().product::<usize>() < 2 {
        return wrong(format!(
            "{family} couples numbers of a row with each other: it needs at least two columns or pixels"
        ));
    }
    if *norms != NormChain::Two {
        return wrong(format!("`norms` are those of constrained weights, {family} has none: leave it at \"2\""));
    }
    if family == Family::Glow && widest > MOST_FEATURES {
        return wrong(format!("glow mixes at most {MOST_FEATURES} features or channels, here there are {widest}"));
    }
    Ok(())
}

impl FlowConfig {
    pub(super) fn check_couplings(&self) -> Result<(), ConfigError> {
        check(&self.norms, &[self.dimension], self.dimension, self.model)
    }

    fn coupling_layers(&self, mask: Mask) -> Vec<(usize, usize, usize)> {
        let kernels = std::iter::repeat_n(0, self.hidden.len() + 1);
        layers(mask, &[self.dimension], self.hidden.iter().copied(), kernels, self.activation.widening())
    }

    /// The links after a leading ActNorm.
    pub(super) fn coupling_stages(&self) -> Vec<Stage> {
        scale(self.model, &[self.dimension], self.blocks, self.actnorm, |mask| self.coupling_layers(mask))
    }

    /// The trained numbers of those.
    pub(super) fn coupling_parameters(&self) -> u64 {
        let net = |mask| numbers(&self.coupling_layers(mask), self.activation.has_parameter());
        scale_numbers(self.model, &[self.dimension], self.blocks, self.actnorm, net)
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
                expected: "0: realnvp and glow have no fully connected end",
            });
        }
        Ok(())
    }

    fn coupling_layers(&self, row: &[usize], mask: Mask) -> Vec<(usize, usize, usize)> {
        let hidden = std::iter::repeat_n(self.filters, self.kernels.len() - 1);
        layers(mask, row, hidden, self.kernels.iter().copied(), self.activation.widening())
    }

    /// The links of a scale after its squeeze.
    pub(super) fn coupling_stages(&self, row: [usize; 3], blocks: usize) -> Vec<Stage> {
        scale(self.model, &row, blocks, self.actnorm, |mask| self.coupling_layers(&row, mask))
    }

    /// The trained numbers of all scales.
    pub(super) fn coupling_parameters(&self) -> u64 {
        let one = |(row, &blocks): (&[usize; 3], &usize)| {
            let net = |mask| numbers(&self.coupling_layers(row, mask), self.activation.has_parameter());
            scale_numbers(self.model, row, blocks, self.actnorm, net)
        };
        self.scales().iter().zip(&self.blocks).map(one).fold(0, u64::saturating_add)
    }
}
