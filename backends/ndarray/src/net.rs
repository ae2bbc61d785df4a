//! Nets of linear layers and activations as one operation: a tile of rows goes through all layers, and through all terms of
//! the series, while what it becomes on its way is in a core's own caches.

use resflow_backend::{Net, NetLayer, Products, SeriesState, TermWeights, composed};

use crate::fused::term;
use crate::matmul::{Operands, Start};
use crate::simd::kernel;
use crate::tiles::Link;
use crate::{CpuElement, NdArray, Tensor};

/// Rows that go through products of bf16 at once.
const PACKED_ROWS: usize = 64;
/// What the widest layer makes of a tile, in bytes. Fewer rows would fit a first-level cache, but products of 24 rows by 128
/// columns are slower by more than that wins (docs/performance.md).
const TILE_BYTES: usize = 48 << 10;
/// Rows of a tile are a multiple of those of the products' tiles.
const STEP: usize = 12;

kernel! {
    /// x ← x·slopes.
    fn multiply_by<E>(x: &mut [E], slopes: &[E]) {
        x.iter_mut().zip(slopes).for_each(|(x, &s)| *x *= s);
    }
}

/// A step of Jᵀ.
#[derive(Clone, Copy)]
enum Step<'a, E> {
    /// x·w of w `[o, i]`.
    Product { weight: &'a Tensor<E>, outputs: usize, inputs: usize },
    /// The slopes of all rows, `[n, h]`.
    Slopes(&'a [E], usize),
}

impl<E: CpuElement> NdArray<E> {
    /// The steps of Jᵀ, from the last layer to the first, if this is a net on rows that is computed here.
    fn steps<'a>(
        net: &'a Net<Tensor<E>>,
        slopes: &[&'a Tensor<E>],
        rows: usize,
        row: usize,
    ) -> Option<Vec<Step<'a, E>>> {
        assert_eq!(slopes.len(), net.activations(), "net_series: slopes of other activations");
        let (mut slopes, mut width) = (slopes.iter().rev(), row);
        let mut steps = Vec::with_capacity(net.layers.len());
        for layer in net.layers.iter().rev() {
            steps.push(match layer {
                NetLayer::Linear { weight, .. } => {
                    let [outputs, inputs] = weight.shape()[..] else { return None };
                    assert_eq!(outputs, width, "net_series: a weight {} for rows of {width}", weight.shape());
                    width = inputs;
                    Step::Product { weight, outputs, inputs }
                }
                NetLayer::Activation { .. } => {
                    let slope = slopes.next().expect("counted");
                    assert_eq!(slope.shape(), [rows, width].into(), "net_series: slopes of other rows");
                    Step::Slopes(slope.as_slice(), width)
                }
                _ => return None,
            });
        }
        let products = steps.iter().filter(|step| matches!(step, Step::Product { .. })).count();
        // what has no product is no chain
        (products > 0 && width == row).then_some(steps)
    }

    /// Sends a tile of rows through all steps by products of bf16; returns the number of rows that it took.
    fn on_tiles(&self, steps: &[Step<'_, E>], start: usize, rows: usize, tile: &mut [E]) -> usize {
        let mut links = Vec::with_capacity(steps.len());
        let mut factors = None;
        for step in steps {
            match *step {
                Step::Product { weight, outputs: k, inputs: n } => {
                    links.push(Link { b: weight.as_slice(), packed: weight.packed(), k, n, factors: factors.take() });
                }
                // two activations in a row are no chain of products
                Step::Slopes(..) if factors.is_some() => return 0,
                Step::Slopes(slopes, width) => factors = Some(&slopes[start * width..(start + rows) * width]),
            }
        }
        E::chain_on_tiles(self.products, &links, rows, tile, factors)
    }

    /// Replaces a tile of rows, `[rows, d]`, the first of which is number `start`, by Jᵀ times it.
    fn transpose_tile(&self, steps: &[Step<'_, E>], start: usize, rows: usize, tile: &mut [E], scratch: [&mut [E]; 2]) {
        let products = steps.iter().filter(|step| matches!(step, Step::Product { .. })).count();
        let [mut from, mut to] = scratch;
        let mut done = 0;
        for step in steps {
            match *step {
                Step::Product { weight, outputs, inputs } => {
                    done += 1;
                    let product = |a: &[E], out: &mut [E]| {
                        let (m, k, n) = (rows, outputs, inputs);
                        let b = weight.as_slice();
                        let o =
                            Operands { a, transpose_a: false, b, transpose_b: false, m, k, n, packed: weight.packed() };
                        self.multiply(&o, Start::Zero, out);
                    };
                    match (done, done == products) {
                        (1, false) => product(tile, &mut to[..rows * inputs]),
                        (_, true) if done > 1 => product(&from[..rows * outputs], tile),
                        (1, true) => {
                            product(tile, &mut to[..rows * inputs]);
                            tile.copy_from_slice(&to[..rows * inputs]);
                        }
                        _ => product(&from[..rows * outputs], &mut to[..rows * inputs]),
                    }
                    std::mem::swap(&mut from, &mut to);
                }
                Step::Slopes(slopes, width) => {
                    let x = if done == 0 || done == products { &mut *tile } else { &mut from[..rows * width] };
                    multiply_by(self.level(), x, &slopes[start * width..(start + rows) * width]);
                }
            }
        }
    }

    pub(crate) fn net_series_op(
        &self,
        net: &Net<Tensor<E>>,
        slopes: &[&Tensor<E>],
        first: usize,
        weights: TermWeights<'_, Tensor<E>>,
        probe: &Tensor<E>,
        negligible: f64,
        state: SeriesState<Tensor<E>>,
    ) -> SeriesState<Tensor<E>> {
        let shape = state.power.shape();
        assert_eq!(shape, probe.shape(), "net_series: the shapes differ: {shape} and {}", probe.shape());
        let steps = if shape.rank() == 2 { Self::steps(net, slopes, shape[0], shape[1]) } else { None };
        let Some(steps) = steps else {
            return composed::net_series(self, net, slopes, first, weights, probe, negligible, state);
        };
        let [n, d] = [shape[0], shape[1]];
        let uniform: Vec<E>;
        let lists: Vec<&[E]> = match weights {
            TermWeights::Batch(c) => {
                uniform = c.iter().map(|&c| E::from_f64(c)).collect();
                uniform.chunks_exact(1).collect()
            }
            TermWeights::PerRow(c) => c.iter().map(Tensor::as_slice).collect(),
        };
        for list in &lists {
            assert!(list.len() == 1 || list.len() == n, "net_series: {} weights for {shape}", list.len());
        }
        let width = steps.iter().map(|step| if let Step::Product { inputs, .. } = step { *inputs } else { 0 }).max();
        let width = width.unwrap_or(0).max(d).max(1);
        let rows = match self.products {
            Products::F32 => (TILE_BYTES / (width * size_of::<E>()) / STEP * STEP).clamp(STEP, 8 * STEP),
            _ => PACKED_ROWS,
        };
        let (mut one, mut other) = (self.take(rows * width), self.take(rows * width));
        let (mut power, mut value) = (self.owned(state.power), self.owned(state.value));
        let mut neumann = state.neumann.map(|u| self.owned(u));
        for start in (0..n).step_by(rows) {
            let rows = rows.min(n - start);
            let range = start * d..(start + rows) * d;
            for (index, list) in lists.iter().enumerate() {
                let tile = &mut power.as_mut_slice()[range.clone()];
                let done = self.on_tiles(&steps, start, rows, tile);
                if done < rows {
                    let scratch = [one.as_mut_slice(), other.as_mut_slice()];
                    self.transpose_tile(&steps, start + done, rows - done, &mut tile[done * d..], scratch);
                }
                let k = first + index;
                let sign = if k % 2 == 1 { 1.0 } else { -1.0 };
                term(
                    self.level(),
                    E::from_f64(sign / k as f64),
                    E::from_f64(sign),
                    E::from_f64(negligible),
                    d,
                    if list.len() == 1 { list } else { &list[start..start + rows] },
                    &probe.as_slice()[range.clone()],
                    tile,
                    neumann.as_mut().map(|u| &mut u.as_mut_slice()[range.clone()]),
                    &mut value.as_mut_slice()[start..start + rows],
                );
                if tile.iter().all(|&x| x == E::ZERO) {
                    break;
                }
            }
        }
        SeriesState { power, neumann, value }
    }
}
