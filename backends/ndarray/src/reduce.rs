//! Reductions in an order that the shape fixes: sixteen interleaved partial results, then those in a tree.

use resflow_backend::{Over, Reduce};

use crate::{CpuElement, NdArray, Tensor};

/// Partial results of a reduction: one vector of the widest instruction set.
pub(crate) const LANES: usize = 16;

/// Sixteen elements from `base` on.
#[inline(always)]
pub(crate) fn lane<E: CpuElement>(x: &[E], base: usize) -> [E; LANES] {
    let mut out = [E::ZERO; LANES];
    out.copy_from_slice(&x[base..base + LANES]);
    out
}

/// What is left of at least sixteen elements behind whole lanes, in the last lanes, with zeros before: one vector, where a loop
/// over the rest would take an element at a time.
#[inline(always)]
pub(crate) fn rest<E: CpuElement>(x: &[E]) -> [E; LANES] {
    let first = (LANES - x.len() % LANES) as u32;
    let mut out = lane(x, x.len() - LANES);
    for (l, o) in out.iter_mut().enumerate() {
        *o = if l as u32 >= first { *o } else { E::ZERO };
    }
    out
}

/// The tree over sixteen lanes.
#[inline(always)]
pub(crate) fn fold<E: CpuElement>(lanes: [E; LANES], join: impl Fn(E, E) -> E) -> E {
    #[inline(always)]
    fn halve<E: CpuElement, const N: usize, const M: usize>(x: [E; M], join: impl Fn(E, E) -> E) -> [E; N] {
        std::array::from_fn(|i| join(x[i], x[i + N]))
    }
    // What the compiler cannot see through stays whole vectors. Else it takes apart by pairs, for the sake of this tree, the
    // loop that made the lanes: dot products were half as fast.
    let lanes = std::hint::black_box(lanes);
    let eight: [E; 8] = halve(lanes, &join);
    let four: [E; 4] = halve(eight, &join);
    let [a, b] = halve(four, &join);
    join(a, b)
}

#[inline(always)]
pub(crate) fn sum<E: CpuElement>(x: &[E]) -> E {
    if x.len() < LANES {
        let mut sum = E::ZERO;
        for &x in x {
            sum += x;
        }
        return sum;
    }
    let mut sums = [E::ZERO; LANES];
    for base in (0..x.len() / LANES * LANES).step_by(LANES) {
        let x = lane(x, base);
        for l in 0..LANES {
            sums[l] += x[l];
        }
    }
    if !x.len().is_multiple_of(LANES) {
        let x = rest(x);
        for l in 0..LANES {
            sums[l] += x[l];
        }
    }
    fold(sums, |a, b| a + b)
}

#[inline(always)]
pub(crate) fn dot<E: CpuElement>(x: &[E], y: &[E]) -> E {
    let y = &y[..x.len()];
    if x.len() < LANES {
        // rows of low dimension: the tree would be all overhead
        let mut sum = E::ZERO;
        for (&x, &y) in x.iter().zip(y) {
            sum += x * y;
        }
        return sum;
    }
    let mut sums = [E::ZERO; LANES];
    for base in (0..x.len() / LANES * LANES).step_by(LANES) {
        let (x, y) = (lane(x, base), lane(y, base));
        for l in 0..LANES {
            sums[l] += x[l] * y[l];
        }
    }
    if !x.len().is_multiple_of(LANES) {
        let (x, y) = (rest(x), rest(y));
        for l in 0..LANES {
            sums[l] += x[l] * y[l];
        }
    }
    fold(sums, |a, b| a + b)
}

#[inline(always)]
fn max<E: CpuElement>(x: &[E]) -> E {
    let least = E::from_f64(f64::NEG_INFINITY);
    let mut most = [least; LANES];
    let (whole, rest) = x.split_at(x.len() / LANES * LANES);
    for base in (0..whole.len()).step_by(LANES) {
        let x = lane(whole, base);
        for l in 0..LANES {
            most[l] = larger(most[l], x[l]);
        }
    }
    larger(fold(most, larger), rest.iter().fold(least, |a, &b| larger(a, b)))
}

#[inline(always)]
fn larger<E: CpuElement>(a: E, b: E) -> E {
    if b.is_nan() || b > a { b } else { a }
}

/// Long sums are made of pieces that add up in double precision, so that their rounding error does not grow.
const PIECE: usize = 4096;

impl<E: CpuElement> NdArray<E> {
    pub(crate) fn reduce_op(&self, op: Reduce, over: Over, x: &Tensor<E>) -> Tensor<E> {
        let (shape, data, level) = (x.shape(), x.as_slice(), self.level());
        match over {
            Over::All => {
                let value = match op {
                    Reduce::Sum => E::from_f64(data.chunks(PIECE).map(|x| level.run(|| sum(x)).to_f64()).sum()),
                    Reduce::Max => level.run(|| max(data)),
                };
                self.filled([1].into(), |out| out[0] = value)
            }
            Over::Row => {
                let width = shape.row_elements();
                self.filled([shape.rows(), 1].into(), |out| {
                    level.run(|| {
                        for (i, o) in out.iter_mut().enumerate() {
                            let row = &data[i * width..(i + 1) * width];
                            *o = if op == Reduce::Sum { sum(row) } else { max(row) };
                        }
                    });
                })
            }
            Over::Channel => {
                let channels = shape.channels();
                self.filled([channels].into(), |out| {
                    out.fill(if op == Reduce::Sum { E::ZERO } else { E::from_f64(f64::NEG_INFINITY) });
                    if channels == 0 {
                        return;
                    }
                    level.run(|| {
                        for row in data.chunks_exact(channels) {
                            for (o, &x) in out.iter_mut().zip(row) {
                                *o = if op == Reduce::Sum { *o + x } else { larger(*o, x) };
                            }
                        }
                    });
                })
            }
        }
    }

    pub(crate) fn dot_op(&self, a: &Tensor<E>, b: &Tensor<E>) -> Tensor<E> {
        assert_eq!(a.shape(), b.shape(), "dot: the shapes differ: {} and {}", a.shape(), b.shape());
        let (x, y, level) = (a.as_slice(), b.as_slice(), self.level());
        let pieces = x.chunks(PIECE).zip(y.chunks(PIECE));
        let value: f64 = pieces.map(|(x, y)| level.run(|| dot(x, y)).to_f64()).sum();
        self.filled([1].into(), |out| out[0] = E::from_f64(value))
    }

    pub(crate) fn dot_rows_op(&self, a: &Tensor<E>, b: &Tensor<E>) -> Tensor<E> {
        assert_eq!(a.shape(), b.shape(), "dot_rows: the shapes differ: {} and {}", a.shape(), b.shape());
        let (x, y, width) = (a.as_slice(), b.as_slice(), a.shape().row_elements());
        self.filled([a.shape().rows(), 1].into(), |out| {
            self.level().run(|| {
                for (i, o) in out.iter_mut().enumerate() {
                    let row = i * width..(i + 1) * width;
                    *o = dot(&x[row.clone()], &y[row]);
                }
            });
        })
    }
}
