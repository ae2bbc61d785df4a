//! Matrix products.
//!
//! `multiply` is the one door: small f32 products on AVX-512 with little packing (`direct`), thin products (an extent of at
//! most four, as data of low dimension makes them) by plain loops or `dots`, all others by the crate `gemm` (the feature `gemm`,
//! AVX-512 where present) or by `matrixmultiply` through ndarray. Operands are turned first where that makes rows of the
//! result that fill vectors. Measurements are in docs/performance.md.

use std::sync::OnceLock;

use ndarray::ArrayViewMut2;
use resflow_backend::Shape;

use crate::reduce::{LANES, dot};
use crate::simd::kernel;
use crate::tiles::Packed;
use crate::{CpuElement, NdArray, Tensor};

/// An extent up to which a product counts as thin.
const THIN: usize = 4;
/// Terms from which on a thin product's transpose pays for being turned.
const FLIPPED: usize = 32;
/// Rows from which on a transposed b of few columns is worth turning.
const TURNED: usize = 48;

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a, E> {
    /// Nothing.
    Zero,
    /// What the output holds.
    Output,
    /// A bias for each column.
    Bias(&'a [E]),
}

/// Row-major operands of `m × k` times `k × n`, each optionally stored transposed.
pub(crate) struct Operands<'a, E> {
    pub(crate) a: &'a [E],
    pub(crate) transpose_a: bool,
    pub(crate) b: &'a [E],
    pub(crate) transpose_b: bool,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    /// b as tiles want it, or the place for it, where b is read by many products.
    pub(crate) packed: Option<&'a OnceLock<Packed>>,
}

kernel! {
    /// out += a·b by rows of b (b not transposed): out[i, :] += a[i, p]·b[p, :].
    fn by_rows<E>(o: &Operands<'_, E>, out: &mut [E]) {
        for i in 0..o.m {
            let row = &mut out[i * o.n..(i + 1) * o.n];
            for p in 0..o.k {
                let a = if o.transpose_a { o.a[p * o.m + i] } else { o.a[i * o.k + p] };
                for (r, &b) in row.iter_mut().zip(&o.b[p * o.n..(p + 1) * o.n]) {
                    *r += a * b;
                }
            }
        }
    }
}

kernel! {
    /// out = a·b for a small k, b not transposed, without reading out.
    fn by_rows_fresh<E>(o: &Operands<'_, E>, out: &mut [E]) {
        for i in 0..o.m {
            let row = &mut out[i * o.n..(i + 1) * o.n];
            let a = |p: usize| if o.transpose_a { o.a[p * o.m + i] } else { o.a[i * o.k + p] };
            let b = |p: usize| &o.b[p * o.n..(p + 1) * o.n];
            match o.k {
                1 => {
                    let a0 = a(0);
                    row.iter_mut().zip(b(0)).for_each(|(r, &b)| *r = a0 * b);
                }
                2 => {
                    let (a0, a1) = (a(0), a(1));
                    row.iter_mut().zip(b(0)).zip(b(1)).for_each(|((r, &x), &y)| *r = a0 * x + a1 * y);
                }
                _ => {
                    let (a0, a1, a2) = (a(0), a(1), a(2));
                    row.iter_mut().zip(b(0)).zip(b(1)).zip(b(2)).for_each(|(((r, &x), &y), &z)| *r = a0 * x + a1 * y + a2 * z);
                    for p in 3..o.k {
                        let ap = a(p);
                        row.iter_mut().zip(b(p)).for_each(|(r, &b)| *r += ap * b);
                    }
                }
            }
        }
    }
}

kernel! {
    /// out += a·b for a small n, a not transposed; `columns` holds b's columns one after the other.
    fn by_dots<E>(o: &Operands<'_, E>, columns: &[E], out: &mut [E]) {
        for i in 0..o.m {
            let row = &o.a[i * o.k..(i + 1) * o.k];
            for j in 0..o.n {
                out[i * o.n + j] += dot(row, &columns[j * o.k..(j + 1) * o.k]);
            }
        }
    }
}

kernel! {
    /// outᵀ += (a·b)ᵀ for a small n, a transposed and b not: outᵀ[j, :] += b[p, j]·a[p, :].
    fn by_columns<E>(o: &Operands<'_, E>, transposed: &mut [E]) {
        for p in 0..o.k {
            let a = &o.a[p * o.m..(p + 1) * o.m];
            for j in 0..o.n {
                let b = o.b[p * o.n + j];
                for (t, &a) in transposed[j * o.m..(j + 1) * o.m].iter_mut().zip(a) {
                    *t += b * a;
                }
            }
        }
    }
}

impl<E: CpuElement> NdArray<E> {
    fn product_shape(a: &Tensor<E>, ta: bool, b: &Tensor<E>, tb: bool, what: &str) -> Shape {
        let (sa, sb) = (a.shape(), b.shape());
        assert!(sa.rank() == 2 && sb.rank() == 2, "{what}: needs two axes each, got {sa} and {sb}");
        let (m, k) = if ta { (sa[1], sa[0]) } else { (sa[0], sa[1]) };
        let (k2, n) = if tb { (sb[1], sb[0]) } else { (sb[0], sb[1]) };
        assert_eq!(k, k2, "{what}: the inner extents of {sa} (transposed: {ta}) and {sb} (transposed: {tb}) differ");
        [m, n].into()
    }

    /// out = start + a·b.
    fn product(&self, a: &Tensor<E>, ta: bool, b: &Tensor<E>, tb: bool, start: Start<'_, E>, out: &mut [E]) {
        let (sa, sb) = (a.shape(), b.shape());
        let (m, k) = if ta { (sa[1], sa[0]) } else { (sa[0], sa[1]) };
        let n = if tb { sb[0] } else { sb[1] };
        // of aᵀb both operands are those of this product alone
        let packed = if ta { None } else { b.packed() };
        let o = Operands { a: a.as_slice(), transpose_a: ta, b: b.as_slice(), transpose_b: tb, m, k, n, packed };
        self.multiply(&o, start, out);
    }

    /// out = start + a·b.
    pub(crate) fn multiply(&self, o: &Operands<'_, E>, start: Start<'_, E>, out: &mut [E]) {
        let &Operands { m, k, n, .. } = o;
        if m == 0 || n == 0 {
            return;
        }
        if E::on_tiles(self.products, o, start, out) {
            return;
        }
        if k > 0 && self.flipped(o, start, out) {
            return;
        }
        if n > THIN && E::direct(self.level(), o, start, out) {
            return;
        }
        if self.turned(o, start, out) {
            return;
        }
        if let Start::Bias(bias) = start {
            out.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
        }
        let accumulate = !matches!(start, Start::Zero);
        if k == 0 {
            if !accumulate {
                out.fill(E::ZERO);
            }
        } else if !self.thin(o, accumulate, out) {
            let (a, b) = (strided(o.a, o.transpose_a, m, k), strided(o.b, o.transpose_b, k, n));
            dense((m, n, k), &a, &b, accumulate, out);
        }
    }

    /// Does aᵀ·b, b thin, as the transpose of bᵀ·a, whose rows fill vectors: the gradient of the weights of few inputs.
    fn flipped(&self, o: &Operands<'_, E>, start: Start<'_, E>, out: &mut [E]) -> bool {
        let &Operands { m, k, n, .. } = o;
        let lanes = |extent: usize| extent.next_multiple_of(LANES);
        let thin = o.transpose_a && !o.transpose_b && k >= FLIPPED && 8 * m * lanes(n) > 9 * lanes(m) * n;
        if !thin || matches!(start, Start::Bias(_)) {
            return false;
        }
        let mut turned = self.take(m * n);
        let turned = turned.as_mut_slice();
        let o = Operands { a: o.b, transpose_a: true, b: o.a, transpose_b: false, m: n, k, n: m, packed: None };
        self.multiply(&o, Start::Zero, turned);
        if matches!(start, Start::Output) {
            transpose_with(turned, n, m, out, |o, x| *o += x);
        } else {
            transpose(turned, n, m, out);
        }
        true
    }

    /// Turns a transposed b where the product without packing then is the faster one.
    fn turned(&self, o: &Operands<'_, E>, start: Start<'_, E>, out: &mut [E]) -> bool {
        let &Operands { k, n, .. } = o;
        if !o.transpose_b || o.m < TURNED || n <= THIN || n > LANES {
            return false;
        }
        if !E::suits_direct(self.level(), &Operands { transpose_b: false, packed: None, ..*o }) {
            return false;
        }
        let mut turned = self.take(k * n);
        transpose(o.b, n, k, turned.as_mut_slice());
        E::direct(self.level(), &Operands { b: turned.as_slice(), transpose_b: false, packed: None, ..*o }, start, out)
    }

    /// Does the product if it is a thin one.
    fn thin(&self, o: &Operands<'_, E>, accumulate: bool, out: &mut [E]) -> bool {
        let level = self.level();
        if !o.transpose_b && o.k <= THIN && !accumulate {
            by_rows_fresh(level, o, out);
            return true;
        }
        if !o.transpose_b && (o.m <= THIN || o.k <= THIN) {
            if !accumulate {
                out.fill(E::ZERO);
            }
            by_rows(level, o, out);
            return true;
        }
        if o.n <= THIN && !o.transpose_a {
            if !accumulate {
                out.fill(E::ZERO);
            }
            let mut turned = None;
            let columns = if o.transpose_b {
                o.b
            } else {
                let columns = turned.insert(self.take(o.b.len()));
                transpose(o.b, o.k, o.n, columns.as_mut_slice());
                columns.as_slice()
            };
            if !E::dots(level, o, columns, out) {
                by_dots(level, o, columns, out);
            }
            return true;
        }
        if o.n <= THIN && o.transpose_a && !o.transpose_b {
            let mut turned = self.take(out.len());
            if accumulate {
                transpose(out, o.m, o.n, turned.as_mut_slice());
            } else {
                turned.as_mut_slice().fill(E::ZERO);
            }
            by_columns(level, o, turned.as_mut_slice());
            transpose(turned.as_slice(), o.n, o.m, out);
            return true;
        }
        false
    }

    pub(crate) fn matmul_op(&self, a: &Tensor<E>, ta: bool, b: &Tensor<E>, tb: bool) -> Tensor<E> {
        let shape = Self::product_shape(a, ta, b, tb, "matmul");
        self.filled(shape, |out| self.product(a, ta, b, tb, Start::Zero, out))
    }

    pub(crate) fn matmul_add_op(&self, sum: Tensor<E>, a: &Tensor<E>, ta: bool, b: &Tensor<E>, tb: bool) -> Tensor<E> {
        let shape = Self::product_shape(a, ta, b, tb, "matmul_add");
        assert_eq!(sum.shape(), shape, "matmul_add: the sum is {}, the product {shape}", sum.shape());
        let mut sum = self.owned(sum);
        self.product(a, ta, b, tb, Start::Output, sum.as_mut_slice());
        sum
    }

    pub(crate) fn linear_op(&self, x: &Tensor<E>, wt: &Tensor<E>, bias: &Tensor<E>) -> Tensor<E> {
        let shape = Self::product_shape(x, false, wt, false, "linear");
        let bias = bias.as_slice();
        assert_eq!(bias.len(), shape[1], "linear: {} biases for {shape}", bias.len());
        self.filled(shape, |out| self.product(x, false, wt, false, Start::Bias(bias), out))
    }
}

/// A matrix in memory: its elements and the strides of its rows and columns.
pub(crate) struct Strided<'a, E> {
    pub(crate) data: &'a [E],
    pub(crate) row: isize,
    pub(crate) column: isize,
}

pub(crate) fn strided<E>(data: &[E], transposed: bool, rows: usize, columns: usize) -> Strided<'_, E> {
    debug_assert_eq!(data.len(), rows * columns);
    if transposed {
        Strided { data, row: 1, column: rows as isize }
    } else {
        Strided { data, row: columns as isize, column: 1 }
    }
}

/// `to` becomes the transpose of `from`, a matrix of `rows × columns`.
pub(crate) fn transpose<E: Copy>(from: &[E], rows: usize, columns: usize, to: &mut [E]) {
    transpose_with(from, rows, columns, to, |to, x| *to = x);
}

/// Rows and columns of a block that is transposed at once: one cache line of f32.
const BLOCK: usize = 16;

/// `f` of every element of `to` and of the transpose of `from`, a matrix of `rows × columns`.
#[inline(always)]
fn transpose_with<E: Copy>(from: &[E], rows: usize, columns: usize, to: &mut [E], f: impl Fn(&mut E, E)) {
    for i0 in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - i0);
        for j in 0..columns {
            let to = &mut to[j * rows + i0..][..height];
            let from = &from[i0 * columns + j..];
            if height == BLOCK {
                let from = &from[..=(BLOCK - 1) * columns];
                for i in 0..BLOCK {
                    f(&mut to[i], from[i * columns]);
                }
            } else {
                for (i, to) in to.iter_mut().enumerate() {
                    f(to, from[i * columns]);
                }
            }
        }
    }
}

#[cfg(feature = "gemm")]
pub(crate) use with_gemm as dense;
#[cfg(not(feature = "gemm"))]
pub(crate) use with_matrixmultiply as dense;

/// out = a·b or out += a·b through `matrixmultiply`, as ndarray calls it.
pub(crate) fn with_matrixmultiply<E: CpuElement>(
    (m, n, k): (usize, usize, usize),
    a: &Strided<'_, E>,
    b: &Strided<'_, E>,
    accumulate: bool,
    out: &mut [E],
) {
    use ndarray::{ArrayView2, ShapeBuilder as _};
    let a = ArrayView2::from_shape((m, k).strides((a.row.unsigned_abs(), a.column.unsigned_abs())), a.data)
        .expect("strides lie within the operand");
    let b = ArrayView2::from_shape((k, n).strides((b.row.unsigned_abs(), b.column.unsigned_abs())), b.data)
        .expect("strides lie within the operand");
    let mut c = ArrayViewMut2::from_shape((m, n), out).expect("the output has m·n elements");
    ndarray::linalg::general_mat_mul(E::ONE, &a, &b, if accumulate { E::ONE } else { E::ZERO }, &mut c);
}

/// out = a·b or out += a·b through `gemm`.
#[cfg(feature = "gemm")]
#[allow(unsafe_code)]
pub(crate) fn with_gemm<E: CpuElement>(
    (m, n, k): (usize, usize, usize),
    a: &Strided<'_, E>,
    b: &Strided<'_, E>,
    accumulate: bool,
    out: &mut [E],
) {
    assert!(a.data.len() >= m * k && b.data.len() >= k * n && out.len() >= m * n, "gemm: an operand is too short");
    // SAFETY: the strides describe dense m×k, k×n and m×n matrices, which the lengths above cover; `out` is exclusive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.data.as_ptr(),
            a.column,
            a.row,
            b.data.as_ptr(),
            b.column,
            b.row,
            E::ONE,
            E::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use resflow_backend::{Backend as _, Key, Noise};

    /// The kernel without packing over all remainders of its tile, with every start.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn direct_products() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        let cpu = NdArray::<f32>::inline();
        let small = (1..14).flat_map(|m| [1, 5, 16, 17, 43, 64, 67, 130].map(|n| (m, n, m * n % 7)));
        // more terms than are summed at once, with panels read in place and copied
        let large = [(25, 9, 650), (7, 20, 330), (5, 70, 130), (43, 203, 167)];
        for (m, n, k) in small.chain(large) {
            let a = cpu.noise(Key::new(1), Noise::Normal, 0, [m, k].into());
            let b = cpu.noise(Key::new(2), Noise::Normal, 0, [k, n].into());
            let bias = cpu.noise(Key::new(3), Noise::Normal, 0, [n].into());
            let mut turned = a.as_slice().to_vec();
            transpose(a.as_slice(), m, k, &mut turned);
            for (start, offset) in [(Start::Zero, 0.0), (Start::Output, 1.0), (Start::Bias(bias.as_slice()), 0.0)] {
                for transpose_a in [false, true] {
                    let a_data = if transpose_a { &turned[..] } else { a.as_slice() };
                    let o =
                        Operands { a: a_data, transpose_a, b: b.as_slice(), transpose_b: false, m, k, n, packed: None };
                    let mut out = vec![1.0_f32; m * n];
                    crate::direct::product(&o, start, &mut out);
                    for i in 0..m {
                        for j in 0..n {
                            let dot: f32 = (0..k).map(|p| a.as_slice()[i * k + p] * b.as_slice()[p * n + j]).sum();
                            let bias = if let Start::Bias(bias) = start { bias[j] } else { offset };
                            let found = out[i * n + j];
                            assert!(
                                (found - dot - bias).abs() < 1e-5 * (1.0 + k as f32),
                                "{m} {n} {k} {transpose_a}: {found} {}",
                                dot + bias
                            );
                        }
                    }
                }
            }
        }
    }

    type Product = fn((usize, usize, usize), &Strided<'_, f64>, &Strided<'_, f64>, bool, &mut [f64]);

    /// Every implementation, with and without transposes and accumulation, against three loops.
    #[test]
    fn implementations_agree() {
        #[allow(unused_mut)]
        let mut implementations: Vec<(&str, Product)> = vec![("matrixmultiply", with_matrixmultiply)];
        #[cfg(feature = "gemm")]
        implementations.push(("gemm", with_gemm));
        let cpu = NdArray::<f64>::inline();
        for (m, n, k) in [(1, 1, 1), (5, 3, 7), (33, 17, 65), (64, 64, 64)] {
            let a = cpu.noise(Key::new(1), Noise::Normal, 0, [m, k].into());
            let b = cpu.noise(Key::new(2), Noise::Normal, 0, [k, n].into());
            let (a, b) = (a.as_slice(), b.as_slice());
            let mut exact = vec![0.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    exact[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
                }
            }
            for &(name, product) in &implementations {
                for (ta, tb, accumulate) in (0..8).map(|c| (c & 1 == 1, c & 2 == 2, c & 4 == 4)) {
                    let turn = |x: &[f64], rows: usize, columns: usize, yes: bool| {
                        let mut out = x.to_vec();
                        if yes {
                            transpose(x, rows, columns, &mut out);
                        }
                        out
                    };
                    let (sa, sb) = (turn(a, m, k, ta), turn(b, k, n, tb));
                    let start = if accumulate { 1.0 } else { f64::NAN };
                    let mut out = vec![start; m * n];
                    product((m, n, k), &strided(&sa, ta, m, k), &strided(&sb, tb, k, n), accumulate, &mut out);
                    let shift = if accumulate { 1.0 } else { 0.0 };
                    for (o, e) in out.iter().zip(&exact) {
                        // NaN, which was there before, is not below it
                        let off = (o - e - shift).abs();
                        assert!(off < 1e-12, "{name} {m} {n} {k} {ta} {tb} {accumulate}: {off}");
                    }
                }
            }
        }
    }
}
