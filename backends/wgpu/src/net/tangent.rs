//! Tangents through a net.

use resflow_backend::Net;

use super::tile::Tile;
use super::{Chain, MATRICES, SLOPES, Step, matrices, rows};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source};
use crate::tensor::Tensor;

/// The tangents that enter the layers, and, with `end`, J dx.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tangent {
    chain: Chain,
    tile: Tile,
    end: bool,
}

impl Tangent {
    /// The numbers of a row before what enters layer l.
    fn before(&self, layer: usize) -> usize {
        self.chain.placed()[..layer].iter().map(|p| p.inputs).sum()
    }

    fn numbers(&self) -> usize {
        let placed = self.chain.placed();
        self.before(placed.len()) + if self.end { self.chain.outputs() } else { 0 }
    }
}

impl Kernel for Tangent {
    fn source(&self) -> Source {
        let (chain, tile, placed) = (&self.chain, self.tile, self.chain.placed());
        let width = usize::from(chain.width);
        let mut main = tile.each(width, &format!("      tile[at] = dx[p.dx + row * {width}u + c];"));
        let store = |layer: usize, width: usize| {
            let before = self.before(layer);
            tile.each(width, &format!("      if (inside) {{ out[p.n * {before}u + row * {width}u + c] = tile[at]; }}"))
        };
        for (l, placed) in placed.iter().enumerate() {
            main += &store(l, placed.inputs);
            if l + 1 == chain.placed().len() && !self.end {
                break;
            }
            main += &match placed.step {
                Step::Product(_) => tile.product(
                    &["tile"],
                    [placed.inputs, placed.outputs],
                    &format!("p.matrix + p.m{}", placed.number),
                    &str::to_owned,
                ),
                Step::Activation(_) => {
                    let slope = format!("slope[p.slope + p.s{} + row * {}u + c]", placed.number, placed.inputs);
                    tile.each(placed.inputs, &format!("      tile[at] = tile[at] * {slope};"))
                }
            };
        }
        if self.end {
            main += &store(placed.len(), chain.outputs());
        }
        let mut reads = vec!["matrix", "dx"];
        let mut params = vec!["n: u32"];
        params.extend(&MATRICES[..chain.products()]);
        if chain.activations() > 0 {
            reads.push("slope");
            params.extend(&SLOPES[..chain.activations()]);
        }
        let body = tile.declare(&["tile"]) + &tile.main(&main);
        Source { reads, writes: vec!["out"], params, body, shared: tile.bytes(), ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |chain: Chain| {
            let tiles = Tile::all(chain.widest(), 1).into_iter();
            tiles.flat_map(move |tile| [true, false].map(|end| Self { chain, tile, end }))
        };
        Chain::some().into_iter().flat_map(of).collect()
    }
}

impl Gpu {
    /// The tangents that enter the layers, and J dx if it is the `end` that is wanted; `None` for a net that is no chain.
    pub(crate) fn net_tangents(
        &self,
        net: &Net<Tensor>,
        slopes: &[&Tensor],
        dx: &Tensor,
        end: bool,
    ) -> Option<(Vec<Tensor>, Option<Tensor>)> {
        let [n, width] = rows(dx.shape());
        let chain = Chain::of(net, width).filter(|chain| n > 0 && chain.has_slopes(slopes, n))?;
        let kernel = Tangent { tile: Tile::of(chain.widest(), 1, n), chain, end };
        let numbers = n.checked_mul(kernel.numbers())?;
        if !self.fits(numbers) {
            return None;
        }
        let matrices = self.packed(&matrices(net, false));
        let slopes = (!slopes.is_empty()).then(|| self.packed(slopes));
        let mut operands = vec![&matrices.base, dx];
        let mut params = vec![n as u32];
        params.extend(&matrices.places);
        if let Some(slopes) = &slopes {
            operands.push(&slopes.base);
            params.extend(&slopes.places);
        }
        let out = self.output(&operands, [numbers].into());
        self.launch(&kernel, &operands, &[&out], &params, kernel.tile.groups(n));
        let placed = chain.placed();
        let window = |layer: usize, width: usize| out.window(n * kernel.before(layer), dx.shape().with_channels(width));
        let tangents = placed.iter().enumerate().map(|(l, p)| window(l, p.inputs)).collect();
        Some((tangents, end.then(|| window(placed.len(), chain.outputs()))))
    }
}

impl Chain {
    /// Whether these are slopes of the activations at so many rows.
    pub(super) fn has_slopes(&self, slopes: &[&Tensor], rows: usize) -> bool {
        let placed = self.placed();
        let widths = placed.iter().filter(|p| matches!(p.step, Step::Activation(_))).map(|p| p.outputs);
        slopes.len() == self.activations() && slopes.iter().zip(widths).all(|(s, width)| s.elements() == rows * width)
    }
}
