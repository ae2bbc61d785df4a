//! Nets that are no chain of short rows: convolutions, and rows that are long at their ends, in a launch or two a pass.
//!
//! A net is cut into [`Segment`]s: a product that looks at other pixels, or is of long rows, and the layers behind it that look
//! at one pixel each. A workgroup takes a run of pixels (rows are images of one pixel) through a segment without leaving its
//! memory; between segments a net's values go through the device's. On the way back the layers are cut anew, so that a net of
//! 3 × 3, 1 × 1 and 3 × 3 is two segments either way: \[3 × 3, φ, 1 × 1, φ\] and \[3 × 3\], and back \[3 × 3, φ, 1 × 1, φ\] and
//! \[3 × 3, φ\].
//!
//! Where a segment ends in rows that are longer than a tile is wide, workgroups share the columns, too.

mod forward;
mod gradient;
mod pass;
mod pullback;
mod series;
mod text;

#[cfg(test)]
pub(crate) use self::{
    forward::SegmentForward, gradient::SegmentGradients, pass::SegmentPass, pullback::SegmentPullback,
    series::SegmentTerms,
};
use resflow_backend::{Activation, Net, NetLayer, Padding, Shape};

use super::has_products_in_a_row;
use super::tile::Tile;
use crate::device::Gpu;
use crate::kernel::{Groups, groups};
use crate::tensor::Tensor;

/// The most products, and functions, of a segment.
const PRODUCTS: usize = 3;
const FUNCTIONS: usize = 3;
const STEPS: usize = PRODUCTS + FUNCTIONS;
/// The most numbers of a pixel that stay in a workgroup's memory, and of a row that enters a net or leaves it.
const WIDEST: usize = 256;
const LONGEST: usize = 8192;
/// Pixels above which a net is left to the engine of products, which reads its operands less often: launches cost little then.
const MOST_PIXELS: usize = 1 << 17;

/// A layer as the text of kernels depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// A product over the taps of a kernel of this height and width, to so many numbers of a pixel.
    Product { kernel: [u8; 2], outputs: u16 },
    /// A function of each number.
    Function(Activation),
    /// A multiplication with slopes.
    Slopes,
}

/// Layers that a workgroup takes pixels through, in the order in which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    /// The numbers of a pixel that enters.
    width: u16,
    /// Whether products are with the transposed weights.
    back: bool,
    steps: [Option<Step>; STEPS],
}

/// A step with what it is between.
#[derive(Debug, Clone, Copy)]
struct Placed {
    step: Step,
    /// Its number among products or among functions.
    number: usize,
    inputs: usize,
    outputs: usize,
}

impl Segment {
    fn placed(&self) -> Vec<Placed> {
        let (mut products, mut functions, mut inputs) = (0, 0, usize::from(self.width));
        let place = |step: Step| {
            let (counter, outputs) = match step {
                Step::Product { outputs, .. } => (&mut products, usize::from(outputs)),
                Step::Function(_) | Step::Slopes => (&mut functions, inputs),
            };
            let placed = Placed { step, number: *counter, inputs, outputs };
            *counter += 1;
            inputs = outputs;
            placed
        };
        self.steps.iter().flatten().copied().map(place).collect()
    }

    fn outputs(&self) -> usize {
        self.placed().last().map_or(usize::from(self.width), |p| p.outputs)
    }

    fn products(&self) -> usize {
        self.steps.iter().flatten().filter(|s| matches!(s, Step::Product { .. })).count()
    }

    fn functions(&self) -> usize {
        self.steps.iter().flatten().count() - self.products()
    }

    /// The functions that have a parameter, by their numbers.
    fn parameters(&self) -> Vec<usize> {
        let has = |p: &Placed| matches!(p.step, Step::Function(f) if f.has_parameter());
        self.placed().iter().filter(|p| has(p)).map(|p| p.number).collect()
    }

    /// Whether the first step is a product, which takes what enters from the device's memory.
    fn begins_with_product(&self) -> bool {
        matches!(self.steps[0], Some(Step::Product { .. }))
    }

    /// Workgroups that share the columns of a pixel.
    fn blocks(&self) -> usize {
        self.outputs().div_ceil(WIDEST)
    }

    /// The tiles for so many pixels, of which a workgroup keeps `tiles`.
    fn tile(&self, tiles: usize, pixels: usize) -> Tile {
        let entering = if self.begins_with_product() { 1 } else { usize::from(self.width) };
        let widest = self.placed().iter().map(|p| p.outputs).fold(entering, usize::max);
        Tile::of(widest.min(WIDEST), tiles, pixels)
    }

    #[cfg(test)]
    fn tiles(&self, tiles: usize) -> Vec<Tile> {
        let mut all = vec![self.tile(tiles, 1), self.tile(tiles, 1 << 16)];
        all.dedup();
        all
    }

    fn groups(&self, tile: Tile, pixels: usize) -> Groups {
        groups(pixels.div_ceil(tile.rows) * self.blocks(), 1)
    }

    /// Whether a step may be added.
    fn takes(&self, step: Step, inputs: usize) -> bool {
        match step {
            Step::Product { kernel, outputs } => {
                let near = kernel == [1, 1] && inputs <= WIDEST && usize::from(outputs) <= WIDEST;
                near && self.products() < PRODUCTS
            }
            _ => self.functions() < FUNCTIONS,
        }
    }

    /// Segments like those of flows, and what is at the borders; of functions or of slopes.
    #[cfg(test)]
    fn some(slopes: bool) -> Vec<Self> {
        use Activation::{Elu, LipSwish, LipschitzCube, Pila, Sin, Softplus, Tanh};
        let of = |width, back, steps: &[Step]| {
            let mut all = [None; STEPS];
            let step = |s: &Step| if slopes && matches!(s, Step::Function(_)) { Step::Slopes } else { *s };
            all.iter_mut().zip(steps).for_each(|(to, s)| *to = Some(step(s)));
            Self { width, back, steps: all }
        };
        let f = Step::Function;
        let p = |size: u8, outputs| Step::Product { kernel: [size; 2], outputs };
        let both = |width, steps: &[Step]| [false, true].map(|back| of(width, back, steps));
        [
            both(4, &[p(3, 64), f(LipSwish), p(1, 64), f(LipSwish)]),
            both(64, &[p(3, 1), f(LipSwish)]),
            both(64, &[p(3, 16)]),
            both(16, &[f(LipSwish)]),
            both(784, &[p(1, 128), f(Elu), p(1, 128), f(Sin)]),
            both(128, &[p(1, 784), f(LipSwish)]),
            both(300, &[f(Softplus)]),
            both(4, &[p(3, 16), f(Pila)]),
            both(3, &[p(1, 256), f(Tanh), p(1, 100), f(LipschitzCube), p(1, 7)]),
            both(5, &[Step::Product { kernel: [3, 5], outputs: 130 }, f(Tanh), p(1, 33)]),
        ]
        .concat()
    }
}

/// A layer of a net with its sizes checked.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// Its weight is a matrix where `matrix`, else a kernel.
    Product {
        kernel: [u8; 2],
        inputs: usize,
        outputs: usize,
        matrix: bool,
    },
    Function(Activation),
}

/// A segment of a net, with the layers that it is of.
#[derive(Debug)]
struct Part {
    segment: Segment,
    layers: Vec<usize>,
}

/// A net on some images, or on rows as images of one pixel.
struct Cut {
    layers: Vec<Known>,
    /// Pixels of all images, and of one along its height and width.
    pixels: usize,
    image: [usize; 2],
    /// The numbers of a pixel that enter and that leave.
    ends: [usize; 2],
}

impl Cut {
    /// `None` for a net that is left to others.
    fn of(net: &Net<Tensor>, shape: Shape) -> Option<Self> {
        if has_products_in_a_row(net) {
            return None;
        }
        let (image, inputs) = match shape[..] {
            [_, h, w, c] => ([h, w], c),
            [_, d] => ([1, 1], d),
            _ => return None,
        };
        let pixels = shape.elements().checked_div(inputs)?;
        let mut now = inputs;
        let mut layers = Vec::with_capacity(net.layers.len());
        for layer in &net.layers {
            let matrix = matches!(layer, NetLayer::Linear { .. });
            let product = |kernel: [usize; 2], sizes: [usize; 2], bias: &Tensor| {
                let fits = sizes[1] == now && bias.elements() == sizes[0] && (1..=LONGEST).contains(&sizes[0]);
                let small = |k: usize| u8::try_from(k).ok().filter(|k| k % 2 == 1);
                let kernel = [small(kernel[0])?, small(kernel[1])?];
                fits.then_some(Known::Product { kernel, inputs: now, outputs: sizes[0], matrix })
            };
            let known = match layer {
                NetLayer::Linear { weight, bias, .. } => match weight.shape()[..] {
                    [o, i] => product([1, 1], [o, i], bias)?,
                    _ => return None,
                },
                NetLayer::Convolution { kernel, bias, padding } => match kernel.shape()[..] {
                    [o, kh, kw, i] if shape.rank() == 4 && *padding == Padding::same([kh, kw]) => {
                        product([kh, kw], [o, i], bias)?
                    }
                    _ => return None,
                },
                NetLayer::Activation { function, parameter } => {
                    let fits = function.has_parameter() == parameter.as_ref().is_some_and(|b| b.elements() == 1);
                    fits.then_some(Known::Function(*function))?
                }
                _ => return None,
            };
            if let Known::Product { outputs, .. } = known {
                now = outputs;
            }
            layers.push(known);
        }
        let products = layers.iter().filter_map(|l| match l {
            Known::Product { outputs, .. } => Some(*outputs),
            Known::Function(_) => None,
        });
        let products: Vec<usize> = products.collect();
        // inside it is what stays in memory, at the ends it may be more
        let inside = products.split_last().is_some_and(|(_, inside)| inside.iter().all(|&o| o <= WIDEST));
        let fits = inside && pixels > 0 && pixels <= MOST_PIXELS && (1..=LONGEST).contains(&inputs);
        fits.then_some(Self { layers, pixels, image, ends: [inputs, now] })
    }

    /// The segments of the first `count` layers; on the way back, of all of them from the last on. `slopes`: whether functions are
    /// multiplications with slopes.
    fn parts(&self, count: usize, back: bool, slopes: bool) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut now = self.ends[usize::from(back)];
        for at in 0..count {
            let l = if back { count - 1 - at } else { at };
            let (step, next) = match self.layers[l] {
                Known::Product { kernel, inputs, outputs, .. } => {
                    let outputs = if back { inputs } else { outputs };
                    (Step::Product { kernel, outputs: outputs as u16 }, outputs)
                }
                Known::Function(_) if slopes => (Step::Slopes, now),
                Known::Function(f) => (Step::Function(f), now),
            };
            if !parts.last().is_some_and(|part| part.segment.takes(step, now)) {
                let segment = Segment { width: now as u16, back, steps: [None; STEPS] };
                parts.push(Part { segment, layers: Vec::new() });
            }
            let part = parts.last_mut().expect("one was pushed");
            part.segment.steps[part.layers.len()] = Some(step);
            part.layers.push(l);
            now = next;
        }
        parts
    }

    /// The numbers that kernels are told first: pixels, and those of an image.
    fn params(&self) -> Vec<u32> {
        vec![self.pixels as u32, self.image[0] as u32, self.image[1] as u32]
    }

    /// The layer's numbers of a pixel: those before a product, those of a function.
    fn widths(&self) -> Vec<usize> {
        let mut now = self.ends[0];
        let width = |layer: &Known| {
            let before = now;
            if let Known::Product { outputs, .. } = layer {
                now = *outputs;
            }
            before
        };
        self.layers.iter().map(width).collect()
    }

    /// Whether a layer's weight is a matrix.
    fn is_matrix(&self, layer: usize) -> bool {
        matches!(self.layers[layer], Known::Product { matrix: true, .. })
    }

    /// Whether these are slopes of the functions.
    fn has_slopes(&self, slopes: &[&Tensor]) -> bool {
        let widths = self.widths();
        let of = self.layers.iter().zip(widths).filter(|(l, _)| matches!(l, Known::Function(_)));
        let sizes: Vec<usize> = of.map(|(_, width)| width * self.pixels).collect();
        slopes.len() == sizes.len() && slopes.iter().zip(sizes).all(|(s, size)| s.elements() == size)
    }

    /// The numbers among functions of those of a part, in its order.
    fn functions(&self, part: &Part) -> Vec<usize> {
        let number = |l: &usize| self.layers[..*l].iter().filter(|k| matches!(k, Known::Function(_))).count();
        part.layers.iter().filter(|l| matches!(self.layers[**l], Known::Function(_))).map(number).collect()
    }

    /// The weights of the products of a part, in its order; or their biases.
    fn weights<'a>(net: &'a Net<Tensor>, part: &Part, biases: bool) -> Vec<&'a Tensor> {
        let own = part.layers.iter().filter_map(|&l| match &net.layers[l] {
            NetLayer::Linear { weight, bias, .. } | NetLayer::Convolution { kernel: weight, bias, .. } => {
                Some(if biases { bias } else { weight })
            }
            _ => None,
        });
        own.collect()
    }

    /// The parameters of the functions of a part, in its order; of one without, none.
    fn parameters<'a>(net: &'a Net<Tensor>, part: &Part) -> Vec<Option<&'a Tensor>> {
        let own = part.layers.iter().filter_map(|&l| match &net.layers[l] {
            NetLayer::Activation { function, parameter } => {
                Some(parameter.as_ref().filter(|_| function.has_parameter()))
            }
            _ => None,
        });
        own.collect()
    }
}

impl Gpu {
    /// Parameters of functions, packed, with a place for each function; nothing if there are none.
    fn packed_parameters(&self, own: &[Option<&Tensor>]) -> Option<(Tensor, Vec<u32>)> {
        let given: Vec<&Tensor> = own.iter().copied().flatten().collect();
        if given.is_empty() {
            return None;
        }
        let packed = self.packed(&given);
        let mut places = packed.places.iter();
        let mut place = |b: Option<&Tensor>| if b.is_some() { *places.next().expect("as many") } else { 0 };
        let places = own.iter().map(|b| place(*b)).collect();
        Some((packed.base, places))
    }
}
