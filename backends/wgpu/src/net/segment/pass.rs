//! Products with J and with Jᵀ: tangents forward and cotangents back, a launch a segment.

use resflow_backend::Net;

use super::super::tile::Tile;
use super::super::{MATRICES, SLOPES};
use super::text::PARAMS;
use super::{Cut, Part, Segment, Step};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source};
use crate::tensor::Tensor;

/// A vector through a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentPass {
    segment: Segment,
    tile: Tile,
    /// Whether it is written after every step, and not after the last alone.
    every: bool,
}

impl SegmentPass {
    /// The numbers of a pixel that are written before the result of a step.
    fn before(&self, step: usize) -> usize {
        if self.every { self.segment.placed()[..step].iter().map(|p| p.outputs).sum() } else { 0 }
    }

    fn numbers(&self) -> usize {
        let last = self.segment.placed().len() - 1;
        self.before(last) + self.segment.outputs()
    }
}

impl Kernel for SegmentPass {
    fn source(&self) -> Source {
        let (segment, tile) = (&self.segment, self.tile);
        let mut main = segment.load(tile, &["tile"], &["x[p.x"]);
        let placed = segment.placed();
        for (at, step) in placed.iter().enumerate() {
            let (number, width) = (step.number, step.outputs);
            main += &match step.step {
                Step::Product { .. } => segment.multiply(tile, &["tile"], &["x[p.x"], number, &str::to_owned),
                Step::Function(_) | Step::Slopes => {
                    let slope = format!("slope[p.slope + p.s{number} + row * {width}u + c]");
                    segment.each(tile, width, &format!("      tile[at] = tile[at] * {slope};"))
                }
            };
            if self.every || at + 1 == placed.len() {
                let place = format!("p.place + p.n * {}u + row * {width}u + c", self.before(at));
                main += &segment.each(tile, width, &format!("      if (inside) {{ out[{place}] = tile[at]; }}"));
            }
        }
        let (mut reads, mut params) = (vec!["x"], PARAMS.to_vec());
        params.push("place: u32");
        if segment.products() > 0 {
            reads.push("matrix");
            params.extend(&MATRICES[..segment.products()]);
        }
        if segment.functions() > 0 {
            reads.push("slope");
            params.extend(&SLOPES[..segment.functions()]);
        }
        let (declared, shared) = segment.declare(tile, &["tile"]);
        let body = declared + &segment.main(tile, &main);
        Source { reads, writes: vec!["out"], params, body, shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |segment: Segment| {
            let tiles = segment.tiles(1).into_iter();
            tiles.map(move |tile| Self { segment, tile, every: !segment.back })
        };
        Segment::some(true).into_iter().flat_map(of).collect()
    }
}

impl Gpu {
    fn segment_pass(part: &Part, pixels: usize, every: bool) -> SegmentPass {
        SegmentPass { segment: part.segment, tile: part.segment.tile(1, pixels), every }
    }

    /// Takes a vector through a segment, into `out` from `place` on.
    pub(super) fn pass(
        &self,
        net: &Net<Tensor>,
        cut: &Cut,
        (part, every): (&Part, bool),
        slopes: &[&Tensor],
        x: &Tensor,
        into: Option<(&Tensor, usize)>,
    ) -> (SegmentPass, Tensor) {
        let kernel = Self::segment_pass(part, cut.pixels, every);
        let (mut operands, mut params) = (vec![x.clone()], cut.params());
        params.push(into.map_or(0, |(_, place)| place as u32));
        if part.segment.products() > 0 {
            let packed = self.packed(&Cut::weights(net, part, false));
            operands.push(packed.base);
            params.extend(packed.places);
        }
        if part.segment.functions() > 0 {
            let own: Vec<&Tensor> = cut.functions(part).into_iter().map(|number| slopes[number]).collect();
            let packed = self.packed(&own);
            operands.push(packed.base);
            params.extend(packed.places);
        }
        let operands: Vec<&Tensor> = operands.iter().collect();
        let out = match into {
            Some((out, _)) => out.clone(),
            None => self.output(&operands, [cut.pixels * kernel.numbers()].into()),
        };
        self.launch(&kernel, &operands, &[&out], &params, part.segment.groups(kernel.tile, cut.pixels));
        (kernel, out)
    }

    /// The tangents that enter the layers, and J dx if it is the `end` that is wanted; `None` for a net that is left to others.
    pub(crate) fn segments_tangents(
        &self,
        net: &Net<Tensor>,
        slopes: &[&Tensor],
        dx: &Tensor,
        end: bool,
    ) -> Option<(Vec<Tensor>, Option<Tensor>)> {
        let cut = Cut::of(net, dx.shape()).filter(|cut| cut.has_slopes(slopes))?;
        let layers = cut.layers.len();
        let parts = cut.parts(if end { layers } else { layers - 1 }, false, true);
        let numbers = |part: &Part| Self::segment_pass(part, cut.pixels, true).numbers();
        if !parts.iter().all(|part| cut.pixels.checked_mul(numbers(part)).is_some_and(|all| self.fits(all))) {
            return None;
        }
        let mut tangents = vec![dx.clone()];
        for part in &parts {
            let entering = tangents.last().expect("the first is there").clone();
            let (kernel, out) = self.pass(net, &cut, (part, true), slopes, &entering, None);
            for (at, placed) in part.segment.placed().iter().enumerate() {
                let shape = dx.shape().with_channels(placed.outputs);
                tangents.push(out.window(cut.pixels * kernel.before(at), shape));
            }
        }
        let dy = if end { tangents.pop() } else { None };
        Some((tangents, dy))
    }

    /// Jᵀ gy; `None` for a net that is left to others.
    pub(crate) fn segments_vjp(&self, net: &Net<Tensor>, slopes: &[&Tensor], gy: &Tensor) -> Option<Tensor> {
        let cut = Cut::ending(net, gy.shape()).filter(|cut| cut.has_slopes(slopes))?;
        let parts = cut.parts(cut.layers.len(), true, true);
        if !self.fits_parts(&cut, &parts) {
            return None;
        }
        let mut g = gy.clone();
        for part in &parts {
            let (_, out) = self.pass(net, &cut, (part, false), slopes, &g, None);
            g = out.window(0, gy.shape().with_channels(part.segment.outputs()));
        }
        Some(g)
    }

    /// Whether one buffer has what leaves each segment.
    pub(super) fn fits_parts(&self, cut: &Cut, parts: &[Part]) -> bool {
        let numbers = |part: &Part| cut.pixels.checked_mul(part.segment.outputs());
        parts.iter().all(|part| numbers(part).is_some_and(|all| self.fits(all)))
    }
}

impl Cut {
    /// A net whose results are of this shape.
    pub(super) fn ending(net: &Net<Tensor>, shape: resflow_backend::Shape) -> Option<Self> {
        use resflow_backend::NetLayer;
        let first = net.layers.iter().find_map(|layer| match layer {
            NetLayer::Linear { weight, .. } | NetLayer::Convolution { kernel: weight, .. } => Some(weight),
            _ => None,
        })?;
        let cut = Self::of(net, shape.with_channels(first.shape().channels()))?;
        (cut.ends[1] == shape.channels() && !cut.layers.is_empty()).then_some(cut)
    }
}
