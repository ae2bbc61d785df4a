//! Nets on rows in few launches: a workgroup takes a tile of rows through all layers, without leaving its memory.
//!
//! A tile is `[rows, width]` numbers in workgroup memory ([`tile`]), the matrices come from the device's. The text of a kernel
//! depends on the functions and the widths of the layers ([`Chain`]), not on the number of rows. Tensors that kernels bind
//! together are windows of one buffer ([`Gpu::packed`]): every device can bind eight only, so that what a kernel makes is
//! windows of one buffer, too.
//!
//! A net that is no chain (convolutions, long rows) goes through in segments ([`segment`]), or is left to the compositions.

mod forward;
mod gradient;
mod pullback;
mod segment;
mod series;
mod tangent;
mod tile;

#[cfg(test)]
pub(crate) use self::segment::{SegmentForward, SegmentGradients, SegmentPass, SegmentPullback, SegmentTerms};
#[cfg(test)]
pub(crate) use self::{forward::Forward, gradient::Gradient, pullback::Pullback, series::Series, tangent::Tangent};
use resflow_backend::{Activation, Net, NetLayer, Shape};

use crate::device::Gpu;
use crate::tensor::Tensor;

/// The most products, and activations, of a chain.
const PRODUCTS: usize = 5;
const ACTIVATIONS: usize = 6;
/// The most layers.
const LAYERS: usize = PRODUCTS + ACTIVATIONS;
/// The most numbers of a row between layers.
const WIDEST: usize = 256;

/// The places of matrices, biases and what belongs to activations, relative to that of the first.
const MATRICES: [&str; PRODUCTS] = ["m0: u32", "m1: u32", "m2: u32", "m3: u32", "m4: u32"];
const BIASES: [&str; PRODUCTS] = ["b0: u32", "b1: u32", "b2: u32", "b3: u32", "b4: u32"];
const INPUTS: [&str; PRODUCTS] = ["i0: u32", "i1: u32", "i2: u32", "i3: u32", "i4: u32"];
const ENTERING: [&str; PRODUCTS] = ["e0: u32", "e1: u32", "e2: u32", "e3: u32", "e4: u32"];
const SLOPES: [&str; ACTIVATIONS] = ["s0: u32", "s1: u32", "s2: u32", "s3: u32", "s4: u32", "s5: u32"];
const KEPT: [&str; ACTIVATIONS] = ["k0: u32", "k1: u32", "k2: u32", "k3: u32", "k4: u32", "k5: u32"];
const TANGENTS: [&str; ACTIVATIONS] = ["t0: u32", "t1: u32", "t2: u32", "t3: u32", "t4: u32", "t5: u32"];

/// A layer as the text of kernels depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// A product with a matrix of so many outputs.
    Product(u16),
    /// A function of each number.
    Activation(Activation),
}

/// The layers of a net on rows, the first applied first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Chain {
    /// The numbers of a row that enters.
    width: u16,
    steps: [Option<Step>; LAYERS],
}

/// A step with what it is between.
#[derive(Debug, Clone, Copy)]
struct Placed {
    step: Step,
    /// Its number among products or among activations.
    number: usize,
    /// The numbers of a row before and behind it.
    inputs: usize,
    outputs: usize,
}

impl Chain {
    /// The chain of a net whose rows have so many numbers; `None` if it is none.
    fn of(net: &Net<Tensor>, width: usize) -> Option<Self> {
        let mut steps = [None; LAYERS];
        let (mut products, mut activations, mut now) = (0, 0, width);
        if net.layers.len() > LAYERS || has_products_in_a_row(net) {
            return None;
        }
        for (step, layer) in steps.iter_mut().zip(&net.layers) {
            *step = Some(match layer {
                NetLayer::Linear { weight, transposed, bias } => {
                    let (own, turned) = (weight.shape(), transposed.shape());
                    let [outputs, inputs] = own[..] else { return None };
                    let fits = inputs == now && turned[..] == [inputs, outputs] && bias.elements() == outputs;
                    if !fits || !(1..=WIDEST).contains(&outputs) {
                        return None;
                    }
                    products += 1;
                    now = outputs;
                    Step::Product(outputs as u16)
                }
                NetLayer::Activation { function, parameter } => {
                    if function.has_parameter() != parameter.as_ref().is_some_and(|b| b.elements() == 1) {
                        return None;
                    }
                    activations += 1;
                    Step::Activation(*function)
                }
                _ => return None,
            });
        }
        let fits = (1..=PRODUCTS).contains(&products) && activations <= ACTIVATIONS;
        (fits && (1..=WIDEST).contains(&width)).then_some(Self { width: width as u16, steps })
    }

    /// The steps, the first applied first.
    fn placed(&self) -> Vec<Placed> {
        let (mut products, mut activations, mut inputs) = (0, 0, usize::from(self.width));
        let place = |step: Step| {
            let (counter, outputs) = match step {
                Step::Product(outputs) => (&mut products, usize::from(outputs)),
                Step::Activation(_) => (&mut activations, inputs),
            };
            let placed = Placed { step, number: *counter, inputs, outputs };
            *counter += 1;
            inputs = outputs;
            placed
        };
        self.steps.iter().flatten().copied().map(place).collect()
    }

    fn widest(&self) -> usize {
        self.placed().iter().map(|p| p.outputs).fold(usize::from(self.width), usize::max)
    }

    fn outputs(&self) -> usize {
        self.placed().last().map_or(usize::from(self.width), |p| p.outputs)
    }

    fn products(&self) -> usize {
        self.steps.iter().flatten().filter(|s| matches!(s, Step::Product(_))).count()
    }

    fn activations(&self) -> usize {
        self.steps.iter().flatten().count() - self.products()
    }

    /// The activations that have a parameter, by their numbers.
    fn parameters(&self) -> Vec<usize> {
        let activation = |p: &Placed| matches!(p.step, Step::Activation(f) if f.has_parameter());
        self.placed().iter().filter(|p| activation(p)).map(|p| p.number).collect()
    }

    /// Chains like those of flows, and what is at the borders.
    #[cfg(test)]
    fn some() -> Vec<Self> {
        use Activation::{Elu, LipSwish, LipschitzCube, Pila, Relu, Sin, Softplus, Tanh};
        let of = |width, steps: &[Step]| {
            let mut all = [None; LAYERS];
            all.iter_mut().zip(steps).for_each(|(to, step)| *to = Some(*step));
            Self { width, steps: all }
        };
        let (p, a) = (Step::Product, Step::Activation);
        vec![
            of(43, &[a(LipSwish), p(128), a(LipSwish), p(128), a(LipSwish), p(43)]),
            of(2, &[p(64), a(LipSwish), p(64), a(LipSwish), p(64), a(LipSwish), p(2)]),
            of(1, &[p(1)]),
            of(64, &[a(Elu), p(64), a(Softplus)]),
            of(8, &[p(16), a(Pila), p(8)]),
            of(
                256,
                &[a(Tanh), p(256), a(Relu), p(255), a(Sin), p(200), a(LipschitzCube), p(7), a(Elu), p(256), a(Tanh)],
            ),
        ]
    }
}

/// Whether a product follows another: what is between them no kernel keeps, which is known of functions alone.
fn has_products_in_a_row(net: &Net<Tensor>) -> bool {
    net.layers.windows(2).any(|pair| !pair[0].is_activation() && !pair[1].is_activation())
}

/// The matrices of a net, each turned as the rows ask for: wᵀ on the way forward, w on the way back.
fn matrices(net: &Net<Tensor>, back: bool) -> Vec<&Tensor> {
    let mut all = Vec::new();
    for layer in &net.layers {
        if let NetLayer::Linear { weight, transposed, .. } = layer {
            all.push(if back { weight } else { transposed });
        }
    }
    all
}

fn biases(net: &Net<Tensor>) -> Vec<&Tensor> {
    let mut all = Vec::new();
    for layer in &net.layers {
        if let NetLayer::Linear { bias, .. } = layer {
            all.push(bias);
        }
    }
    all
}

/// The parameters of the activations; of one without, none.
fn parameters(net: &Net<Tensor>) -> Vec<Option<&Tensor>> {
    let mut all = Vec::new();
    for layer in &net.layers {
        if let NetLayer::Activation { function, parameter } = layer {
            all.push(parameter.as_ref().filter(|_| function.has_parameter()));
        }
    }
    all
}

/// Samples as rows: their number and the numbers of each.
fn rows(shape: Shape) -> [usize; 2] {
    let width = shape.channels();
    [shape.elements() / width.max(1), width]
}

/// Tensors in one buffer: the first, which is bound, and the places of all relative to it.
struct Packed {
    base: Tensor,
    places: Vec<u32>,
}

impl Gpu {
    /// Tensors as windows of one buffer, copied into one if they are not; at least one.
    fn packed(&self, tensors: &[&Tensor]) -> Packed {
        // a launch looks at what it is given, which is one of them only
        self.settle(tensors);
        let base = tensors.iter().find(|x| x.fault().is_some()).unwrap_or(&tensors[0]);
        if tensors.iter().all(|x| x.storage().id() == base.storage().id()) {
            let places = tensors.iter().map(|x| (x.offset() as u32).wrapping_sub(base.offset() as u32));
            return Packed { base: (*base).clone(), places: places.collect() };
        }
        let flat: Vec<Tensor> = tensors.iter().map(|x| x.window(0, [x.elements()].into())).collect();
        let base = self.concat(&flat.iter().collect::<Vec<_>>(), 0);
        let mut at = 0;
        let places = tensors.iter().map(|x| {
            at += x.elements();
            (at - x.elements()) as u32
        });
        Packed { places: places.collect(), base }
    }

    /// Whether one buffer may have so many numbers, and its places are numbers of 32 bits.
    fn fits(&self, numbers: usize) -> bool {
        u32::try_from(numbers).is_ok() && 4 * numbers as u64 <= self.largest()
    }
}
