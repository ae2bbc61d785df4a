//! The forward pass, with what derivatives will ask for: a launch a segment.

use resflow_backend::{Net, NetForward, Shape};

use super::super::forward::{name, named_derivatives};
use super::super::tile::Tile;
use super::super::{BIASES, MATRICES, SLOPES};
use super::text::PARAMS;
use super::{Cut, Known, Part, Segment, Step};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source};
use crate::tensor::Tensor;

/// What leaves a segment, and the derivatives of its functions up to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentForward {
    segment: Segment,
    tile: Tile,
    order: usize,
}

/// The numbers of a pixel that each function keeps.
fn kept(order: usize) -> usize {
    [0, 1, 4][order]
}

impl SegmentForward {
    /// The numbers of a pixel of everything that is written before function `number`, what leaves first.
    fn before(&self, number: usize) -> usize {
        let placed = self.segment.placed();
        let functions = placed.iter().filter(|p| matches!(p.step, Step::Function(_)));
        self.segment.outputs() + kept(self.order) * functions.take(number).map(|p| p.outputs).sum::<usize>()
    }

    fn numbers(&self) -> usize {
        self.before(self.segment.functions())
    }
}

impl Kernel for SegmentForward {
    fn source(&self) -> Source {
        let (segment, tile) = (&self.segment, self.tile);
        let mut main = segment.load(tile, &["tile"], &["x[p.x"]);
        for placed in segment.placed() {
            let (number, width) = (placed.number, placed.outputs);
            main += &match placed.step {
                Step::Product { .. } => {
                    let bias = |value: &str| format!("{value} + bias[p.bias + p.b{number} + c]");
                    segment.multiply(tile, &["tile"], &["x[p.x"], number, &bias)
                }
                Step::Function(f) => {
                    let b = if f.has_parameter() { format!("slope[p.slope + p.s{number}]") } else { "1.0".to_owned() };
                    let values: &[&str] = match self.order {
                        0 => &[],
                        1 => &["d.y"],
                        _ => &["v", "d.x", "d.y", "d.z"],
                    };
                    let store = |(k, value): (usize, &&str)| {
                        let before = self.before(number) + k * width;
                        format!("        out[p.n * {before}u + row * {width}u + c] = {value};\n")
                    };
                    let stores: String = values.iter().enumerate().map(store).collect();
                    let statements = format!(
                        "      let v = tile[at];
      let d = {}(v, {b});
      tile[at] = d.x;
      if (inside) {{
{stores}      }}",
                        name(f)
                    );
                    segment.each(tile, width, &statements)
                }
                Step::Slopes => String::new(),
            };
        }
        let outputs = segment.outputs();
        let store = format!("      if (inside) {{ out[row * {outputs}u + c] = tile[at]; }}");
        main += &segment.each(tile, outputs, &store);
        let (mut reads, mut params) = (vec!["x"], PARAMS.to_vec());
        if segment.products() > 0 {
            reads.extend(["matrix", "bias"]);
            params.extend(&MATRICES[..segment.products()]);
            params.extend(&BIASES[..segment.products()]);
        }
        if !segment.parameters().is_empty() {
            reads.push("slope");
            params.extend(&SLOPES[..segment.functions()]);
        }
        let functions = segment.placed().into_iter().filter_map(|p| match p.step {
            Step::Function(f) => Some(f),
            _ => None,
        });
        let (declared, shared) = segment.declare(tile, &["tile"]);
        let body = declared + &named_derivatives(functions) + &segment.main(tile, &main);
        Source { reads, writes: vec!["out"], params, body, shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |segment: Segment| {
            let tiles = segment.tiles(1).into_iter();
            tiles.flat_map(move |tile| (0..=2).map(move |order| Self { segment, tile, order }))
        };
        Segment::some(false).into_iter().filter(|s| !s.back).flat_map(of).collect()
    }
}

impl Gpu {
    /// The forward pass in segments; `None` for a net that is left to others.
    pub(crate) fn segments_forward(&self, net: &Net<Tensor>, x: &Tensor, order: usize) -> Option<NetForward<Tensor>> {
        let cut = Cut::of(net, x.shape()).filter(|_| order <= 2)?;
        let parts = cut.parts(cut.layers.len(), false, false);
        let kernel = |part: &Part| {
            let segment = part.segment;
            SegmentForward { segment, tile: segment.tile(1, cut.pixels), order }
        };
        let kernels: Vec<SegmentForward> = parts.iter().map(kernel).collect();
        if !kernels.iter().all(|k| cut.pixels.checked_mul(k.numbers()).is_some_and(|all| self.fits(all))) {
            return None;
        }
        let (mut value, mut kept) = (x.clone(), Vec::with_capacity(cut.layers.len()));
        for (part, kernel) in parts.iter().zip(&kernels) {
            let out = self.segment_forward(net, &cut, (part, kernel), &value);
            let window =
                |before: usize, width: usize| out.window(cut.pixels * before, Shape::with_channels(&x.shape(), width));
            let mut entering = value;
            for (placed, &layer) in part.segment.placed().iter().zip(&part.layers) {
                let own: Vec<Tensor> = match cut.layers[layer] {
                    Known::Product { .. } => [entering.clone()].into_iter().filter(|_| order == 2).collect(),
                    Known::Function(_) => {
                        let before = kernel.before(placed.number);
                        let parts = 0..self::kept(order);
                        parts.map(|k| window(before + k * placed.outputs, placed.outputs)).collect()
                    }
                };
                if let Some(left) = own.get(1) {
                    entering = left.clone();
                }
                kept.push(own);
            }
            value = window(0, part.segment.outputs());
        }
        Some(NetForward { y: value, kept })
    }

    fn segment_forward(
        &self,
        net: &Net<Tensor>,
        cut: &Cut,
        (part, kernel): (&Part, &SegmentForward),
        x: &Tensor,
    ) -> Tensor {
        let own = Cut::parameters(net, part);
        let slopes = self.packed_parameters(&own);
        let (mut operands, mut params) = (vec![x.clone()], cut.params());
        if part.segment.products() > 0 {
            for biases in [false, true] {
                let packed = self.packed(&Cut::weights(net, part, biases));
                operands.push(packed.base);
                params.extend(packed.places);
            }
        }
        if let Some((base, places)) = slopes {
            operands.push(base);
            params.extend(places);
        }
        let operands: Vec<&Tensor> = operands.iter().collect();
        let out = self.output(&operands, [cut.pixels * kernel.numbers()].into());
        self.launch(kernel, &operands, &[&out], &params, part.segment.groups(kernel.tile, cut.pixels));
        out
    }
}
