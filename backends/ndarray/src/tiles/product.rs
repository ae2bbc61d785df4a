//! Products of row-major operands on tiles: 32 rows at a time go through all columns while they are packed.

use std::cell::RefCell;

use resflow_backend::Products;

use super::kernel::{self, Place};
use super::pack::{BLOCK, Line, SIDE, Source, block_lines, depths, pack};
use super::unit::Multiplier;
use super::{Link, parts};
use crate::matmul::{Operands, Start};

/// Extents from which on the matrix unit is faster than AVX-512; by pairs they say what is large enough.
const LEAST: [usize; 3] = [16, 9, 9];
/// Multiply-adds from which on they are.
const LEAST_WORK: usize = 16 << 10;

/// A right operand, packed.
#[derive(Debug)]
pub(crate) struct Packed {
    lines: Vec<Line>,
    parts: usize,
    inner: usize,
    columns: usize,
    transposed: bool,
    /// Whether all its numbers are ordinary.
    ordinary: bool,
}

impl Packed {
    pub(crate) fn new(parts: usize) -> Self {
        Self { lines: Vec::new(), parts, inner: 0, columns: 0, transposed: false, ordinary: true }
    }

    /// Packs b of `[k, n]`, or `[n, k]` if it is transposed.
    pub(crate) fn fill(&mut self, b: &[f32], transposed: bool, k: usize, n: usize) {
        let lines = block_lines(k, self.parts);
        self.lines.resize((n.div_ceil(BLOCK) * lines).max(self.lines.len()), Line::ZERO);
        (self.inner, self.columns, self.transposed) = (k, n, transposed);
        let source = Source {
            data: b,
            stride: if transposed { k } else { n },
            outer: n,
            inner: k,
            by_terms: transposed,
            factors: None,
        };
        self.ordinary = true;
        for (block, to) in self.lines.chunks_exact_mut(lines).take(n.div_ceil(BLOCK)).enumerate() {
            self.ordinary &= pack_in(self.parts, &source, false, columns(n, block), to);
        }
    }

    /// Packs b afresh.
    fn of(parts: usize, b: &[f32], transposed: bool, k: usize, n: usize) -> Self {
        let mut packed = Self::new(parts);
        packed.fill(b, transposed, k, n);
        packed
    }

    /// Whether the numbers were packed as this operand.
    fn is(&self, parts: usize, transposed: bool, k: usize, n: usize) -> bool {
        (self.parts, self.transposed, self.inner, self.columns) == (parts, transposed, k, n)
    }
}

/// Where the two tiles of columns of a block begin: of n ≥ 16 the last one ends with them, and has some of them twice.
fn columns(n: usize, block: usize) -> [usize; 2] {
    [0, 1].map(|half| (block * BLOCK + half * SIDE).min(n.saturating_sub(SIDE)))
}

fn pack_in(parts: usize, source: &Source<'_>, left: bool, starts: [usize; 2], to: &mut [Line]) -> bool {
    match parts {
        1 => pack::<1>(source, left, starts, to),
        2 => pack::<2>(source, left, starts, to),
        _ => pack::<3>(source, left, starts, to),
    }
}

/// Memory of one thread.
struct Scratch {
    left: Vec<Line>,
    right: Packed,
    sums: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { left: Vec::new(), right: Packed::new(0), sums: Vec::new() });
}

/// Lines as numbers.
#[allow(unsafe_code)]
fn numbers(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen words, each of which is a number of f32 whatever its bits are.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * SIDE) }
}

/// Whether a product of these extents is worth packing.
fn suits(extents: [usize; 3]) -> bool {
    let large = extents.iter().zip(LEAST).all(|(&extent, least)| extent >= least);
    large && extents.iter().product::<usize>() >= LEAST_WORK
}

/// Does a product on tiles; false if it is left to f32: where it is small, and where an operand has a number that is not
/// ordinary.
pub(crate) fn multiply(products: Products, o: &Operands<'_, f32>, start: Start<'_, f32>, out: &mut [f32]) -> bool {
    let parts = parts(products);
    let &Operands { m, k, n, .. } = o;
    if parts == 0 || !suits([m, k, n]) {
        return false;
    }
    assert!(o.a.len() == m * k && o.b.len() == k * n && out.len() == m * n, "tiles: operands of other shapes");
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { left, right, sums } = scratch;
        let kept = o.packed.map(|cell| cell.get_or_init(|| Packed::of(parts, o.b, o.transpose_b, k, n)));
        let b = match kept {
            Some(kept) if kept.is(parts, o.transpose_b, k, n) => kept,
            _ => {
                right.parts = parts;
                right.fill(o.b, o.transpose_b, k, n);
                right
            }
        };
        let a = Source {
            data: o.a,
            stride: if o.transpose_a { m } else { k },
            outer: m,
            inner: k,
            by_terms: !o.transpose_a,
            factors: None,
        };
        let lines = block_lines(k, parts);
        // whole tiles go where they belong: fresh ones of the last rows and columns over others that are the same
        let accumulate = matches!(start, Start::Output);
        let whole = m >= BLOCK && n >= SIDE && (!accumulate || (m.is_multiple_of(BLOCK) && n.is_multiple_of(SIDE)));
        let blocks = m.div_ceil(BLOCK);
        let first = |block: usize| if whole { (block * BLOCK).min(m - BLOCK) } else { block * BLOCK };
        left.resize((if accumulate { blocks } else { 1 } * lines).max(left.len()), Line::ZERO);
        // all rows first, where what was added could not be taken back
        let mut ordinary = b.ordinary;
        for (block, to) in left.chunks_exact_mut(lines).take(if accumulate { blocks } else { 0 }).enumerate() {
            ordinary = ordinary && pack_in(parts, &a, true, [first(block), first(block) + SIDE], to);
        }
        let stride = n.next_multiple_of(SIDE);
        sums.resize((BLOCK * stride / SIDE).max(sums.len()), Line::ZERO);
        let by = Multiplier::enter();
        for block in 0..blocks {
            let row = first(block);
            let left = if accumulate {
                &left[block * lines..(block + 1) * lines]
            } else {
                ordinary = ordinary && pack_in(parts, &a, true, [row, row + SIDE], left);
                &left[..lines]
            };
            if !ordinary {
                return false;
            }
            let out = &mut out[row * n..(row + BLOCK).min(m) * n];
            if whole {
                block_product(&by, parts, left, b, out, n, accumulate);
                if let Start::Bias(bias) = start {
                    out.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(o, b)| *o += b));
                }
                continue;
            }
            let sums = numbers(sums);
            block_product(&by, parts, left, b, sums, stride, false);
            for (row, sums) in out.chunks_exact_mut(n).zip(sums.chunks_exact(stride)) {
                match start {
                    Start::Zero => row.copy_from_slice(&sums[..n]),
                    Start::Output => row.iter_mut().zip(sums).for_each(|(o, s)| *o += s),
                    Start::Bias(bias) => {
                        row.iter_mut().zip(sums).zip(bias).for_each(|((o, s), b)| *o = s + b);
                    }
                }
            }
        }
        true
    })
}

fn afresh(parts: usize, link: &Link<'_, f32>) -> Packed {
    Packed::of(parts, link.b, false, link.k, link.n)
}

/// What is kept of a link's b, or is from now on; `None` if that is of another arithmetic, or its transpose.
fn kept<'a>(parts: usize, link: &Link<'a, f32>) -> Option<&'a Packed> {
    let kept = link.packed.map(|cell| cell.get_or_init(|| afresh(parts, link)));
    kept.filter(|kept| kept.is(parts, false, link.k, link.n))
}

/// Sends rows x `[rows, d]` through a chain that begins and ends with d numbers on tiles, 32 rows at a time, and replaces them by
/// what comes out, times `factors` `[rows, d]`. Returns the number of rows that were done: a block of rows with a number that is not
/// ordinary on its way, and all after it, are left to f32.
pub(crate) fn chain(
    products: Products,
    links: &[Link<'_, f32>],
    rows: usize,
    x: &mut [f32],
    factors: Option<&[f32]>,
) -> usize {
    let parts = parts(products);
    let (Some(first), Some(last)) = (links.first(), links.last()) else { return 0 };
    if parts == 0 || !links.iter().any(|link| suits([rows, link.k, link.n])) {
        return 0;
    }
    assert!(first.k == last.n && x.len() == rows * first.k, "tiles: rows of another width than the chain's");
    let owned: Vec<_> = links.iter().map(|link| kept(parts, link).is_none().then(|| afresh(parts, link))).collect();
    let packed = links.iter().zip(&owned).map(|(link, own)| own.as_ref().or_else(|| kept(parts, link)));
    let packed: Vec<&Packed> = packed.map(|b| b.expect("kept or packed afresh")).collect();
    if packed.iter().any(|b| !b.ordinary) {
        return 0;
    }
    let widest = links.iter().map(|link| link.n.next_multiple_of(SIDE)).max().unwrap_or(0);
    let lines = links.iter().map(|link| block_lines(link.k, parts)).max().unwrap_or(0);
    SCRATCH.with_borrow_mut(|Scratch { left, sums, .. }| {
        left.resize(lines.max(left.len()), Line::ZERO);
        sums.resize((BLOCK * widest / SIDE).max(sums.len()), Line::ZERO);
        let by = Multiplier::enter();
        let d = first.k;
        for start in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - start);
            let sums = numbers(sums);
            let mut width = d;
            for (index, (link, b)) in links.iter().zip(&packed).enumerate() {
                let data = if index == 0 { &x[start * d..] } else { &sums[..] };
                let factors = link.factors.map(|f| (&f[start * link.k..], link.k));
                let source = Source { data, stride: width, outer: count, inner: link.k, by_terms: true, factors };
                if !pack_in(parts, &source, true, [0, SIDE], left) {
                    return start;
                }
                width = link.n.next_multiple_of(SIDE);
                block_product(&by, parts, left, b, sums, width, false);
            }
            let rows = x[start * d..(start + count) * d].chunks_exact_mut(d).zip(sums.chunks_exact(width));
            match factors {
                None => rows.for_each(|(x, y)| x.copy_from_slice(&y[..d])),
                Some(f) => {
                    for ((x, y), f) in rows.zip(f[start * d..].chunks_exact(d)) {
                        x.iter_mut().zip(y).zip(f).for_each(|((x, y), f)| *x = y * f);
                    }
                }
            }
        }
        rows
    })
}

/// Writes the product of a packed block of rows and all columns to `out`, `[32, stride]`, or adds it.
fn block_product(
    by: &Multiplier,
    parts: usize,
    left: &[Line],
    b: &Packed,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let depths = depths(b.inner);
    let lines = block_lines(b.inner, parts);
    for (block, right) in b.lines.chunks_exact(lines).take(b.columns.div_ceil(BLOCK)).enumerate() {
        let tiles = (b.columns - block * BLOCK).div_ceil(SIDE).min(2);
        let place = Place { stride, columns: columns(b.columns, block), tiles, accumulate };
        match parts {
            1 => kernel::product::<1>(by, left, right, depths, out, place),
            2 => kernel::product::<2>(by, left, right, depths, out, place),
            _ => kernel::product::<3>(by, left, right, depths, out, place),
        }
    }
}
