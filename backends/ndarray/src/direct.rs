//! Small f32 products on AVX-512 with little packing: out = a·b (+ out or + bias), b row-major.
//!
//! The weights of a residual flow and a shard of rows fit the cache, so copying both operands into panels, as a general
//! matrix product does, is a loss here (docs/performance.md has the figures). Only panels of b whose rows are so far apart
//! that they would displace one another from the cache are copied, if there are rows of a enough to pay for it. A tile of
//! 6 rows by 64 columns stays in 24 registers; a is read element by element, so that it may be stored transposed. The last
//! vector of a row is masked.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use crate::matmul::{Operands, Start};

/// Rows of a tile.
const ROWS: usize = 6;
/// Rows of a tile of one vector, whose additions would wait for one another with fewer.
const TALL: usize = 2 * ROWS;
/// Columns of a vector.
const WIDTH: usize = 16;
/// Vectors of a tile.
const VECTORS: usize = 4;
/// Terms summed before the next row of tiles: a panel of b, 64 columns by this, stays in a first-level cache of 48 KiB.
const DEPTH: usize = 160;
/// The same where rows of b are longer than the panel, which then meets only some of the cache's sets.
const STRIDED_DEPTH: usize = 64;
/// Columns beyond which the rows of a panel displace one another from the cache, and rows of the product from which on it
/// pays to copy each panel first.
const WIDE: usize = 192;
const COPIED: usize = 40;
/// The largest b, in elements, that is worth reading in place; `gemm` is faster at 512 × 512.
const LARGEST: usize = 1 << 16;

/// Whether [`product`] is the better way for these extents.
pub(crate) fn suits(o: &Operands<'_, f32>) -> bool {
    !o.transpose_b && (o.k * o.n <= LARGEST || o.m <= ROWS)
}

/// The product; the caller has found AVX-512F.
pub(crate) fn product(o: &Operands<'_, f32>, start: Start<'_, f32>, out: &mut [f32]) {
    assert!(!o.transpose_b, "direct: b must not be transposed");
    assert!(
        o.a.len() == o.m * o.k && o.b.len() == o.k * o.n && out.len() == o.m * o.n,
        "direct: an operand does not fit {} × {} × {}",
        o.m,
        o.k,
        o.n
    );
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), o.n, "direct: the bias does not fit");
    }
    assert!(is_x86_feature_detected!("avx512f"), "direct: needs AVX-512F");
    // SAFETY: AVX-512F was found, and the lengths cover all of the extents.
    unsafe { run(o, start, out) }
}

/// A panel of b with its rows next to one another.
#[repr(align(64))]
struct Panel([MaybeUninit<f32>; DEPTH * VECTORS * WIDTH]);

/// # Safety
/// The operands' lengths are m·k, k·n and m·n, the bias's n.
#[target_feature(enable = "avx512f")]
unsafe fn run(o: &Operands<'_, f32>, start: Start<'_, f32>, out: &mut [f32]) {
    let copied = o.n > WIDE && o.m >= COPIED;
    let depth = match o.n.div_ceil(WIDTH) {
        vectors @ 1..VECTORS => DEPTH * VECTORS / vectors,
        VECTORS => DEPTH,
        _ if copied => DEPTH,
        _ => STRIDED_DEPTH,
    };
    #[allow(clippy::large_stack_arrays)] // 40 KiB, which stay in the cache from one product to the next
    let mut panel = Panel([MaybeUninit::uninit(); DEPTH * VECTORS * WIDTH]);
    let mut column = 0;
    while column < o.n {
        let columns = (o.n - column).min(VECTORS * WIDTH);
        let mut first = 0;
        loop {
            let inner = first..(first + depth).min(o.k);
            let start = if first == 0 { start } else { Start::Output };
            let (mut b, mut b_row) = (o.b[(first * o.n + column).min(o.b.len())..].as_ptr(), o.n);
            if copied {
                // SAFETY: rows of b lie within b, masked lanes are not read, and `inner` has at most DEPTH lines of the
                // panel, whose elements are laid out as f32.
                unsafe {
                    for (p, line) in inner.clone().zip(panel.0.chunks_exact_mut(VECTORS * WIDTH)) {
                        let from = o.b.as_ptr().add(p * o.n + column);
                        for v in 0..columns.div_ceil(WIDTH) {
                            let mask = u16::MAX >> (WIDTH - (columns - v * WIDTH).min(WIDTH));
                            let x = _mm512_maskz_loadu_ps(mask, from.add(v * WIDTH));
                            _mm512_storeu_ps(line.as_mut_ptr().add(v * WIDTH).cast(), x);
                        }
                    }
                }
                (b, b_row) = (panel.0.as_ptr().cast(), VECTORS * WIDTH);
            }
            let mut row = 0;
            while row < o.m {
                let mut part = Part { row, rows: 0, column, columns, inner: inner.clone(), b, b_row };
                // SAFETY: the part lies within the product.
                unsafe {
                    match columns.div_ceil(WIDTH) {
                        1 => by_rows::<1>(o, start, out, &mut part),
                        2 => by_rows::<2>(o, start, out, &mut part),
                        3 => by_rows::<3>(o, start, out, &mut part),
                        _ => by_rows::<4>(o, start, out, &mut part),
                    }
                }
                row += part.rows;
            }
            first = inner.end;
            if first >= o.k {
                break;
            }
        }
        column += columns;
    }
}

/// A part of the product: rows and columns of the output, and the terms of the sum, with the first row of b among them.
struct Part {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    inner: Range<usize>,
    b: *const f32,
    b_row: usize,
}

/// The next rows of a panel, as many as fit the registers; `part.rows` becomes their number.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn by_rows<const V: usize>(o: &Operands<'_, f32>, start: Start<'_, f32>, out: &mut [f32], part: &mut Part) {
    part.rows = (o.m - part.row).min(if V == 1 { TALL } else { ROWS });
    // SAFETY: passed on.
    unsafe {
        match part.rows {
            1 => tile::<1, V>(o, start, out, part),
            2 => tile::<2, V>(o, start, out, part),
            3 => tile::<3, V>(o, start, out, part),
            4 => tile::<4, V>(o, start, out, part),
            5 => tile::<5, V>(o, start, out, part),
            6..TALL => {
                part.rows = ROWS;
                tile::<ROWS, V>(o, start, out, part);
            }
            _ => tile::<TALL, 1>(o, start, out, part),
        }
    }
}

/// One tile of the product; `part.rows` is R.
///
/// # Safety
/// The part lies within the product, its columns number 16·(V − 1) + 1 … 16·V, and the operands' lengths are m·k, k·n and
/// m·n, the bias's n.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn tile<const R: usize, const V: usize>(
    o: &Operands<'_, f32>,
    start: Start<'_, f32>,
    out: &mut [f32],
    part: &Part,
) {
    let &Part { row, column, columns, .. } = part;
    let last: __mmask16 = u16::MAX >> (V * WIDTH - columns);
    let mask = |v: usize| if v + 1 == V { last } else { u16::MAX };
    let (a_row, a_column) = if o.transpose_a { (1, o.m) } else { (o.k, 1) };
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: by the caller's promise all offsets lie within the operands; masked lanes are not touched.
    unsafe {
        if let Start::Bias(bias) = start {
            for v in 0..V {
                let bias = _mm512_maskz_loadu_ps(mask(v), bias.as_ptr().add(column + v * WIDTH));
                for sum in &mut sums {
                    sum[v] = bias;
                }
            }
        }
        let a = o.a.as_ptr().add(row * a_row);
        for p in part.inner.clone() {
            let line = part.b.add((p - part.inner.start) * part.b_row);
            let mut vectors: [__m512; V] = [_mm512_setzero_ps(); V];
            for (v, vector) in vectors.iter_mut().enumerate() {
                *vector = _mm512_maskz_loadu_ps(mask(v), line.add(v * WIDTH));
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(r * a_row + p * a_column));
                for v in 0..V {
                    sum[v] = _mm512_fmadd_ps(a, vectors[v], sum[v]);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            let line = out.as_mut_ptr().add((row + r) * o.n + column);
            for (v, &sum) in sum.iter().enumerate() {
                let to = line.add(v * WIDTH);
                let sum = match start {
                    Start::Output => _mm512_add_ps(_mm512_maskz_loadu_ps(mask(v), to), sum),
                    Start::Zero | Start::Bias(_) => sum,
                };
                _mm512_mask_storeu_ps(to, mask(v), sum);
            }
        }
    }
}
