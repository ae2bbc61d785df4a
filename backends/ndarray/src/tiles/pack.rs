//! Operands of products on tiles: numbers as sums of bf16, two of them in a word.
//!
//! x = x₀ + x₁ + x₂ with x₀ = bf16(x), x₁ = bf16(x − x₀), x₂ = bf16(x − x₀ − x₁), each rounded to the nearest; the differences
//! are exact. A tile is 16 lines of 16 words; along k a word has the terms p and p + 16, in both operands, so that words
//! are made of whole vectors by shifts. Of a left operand a line is a row, of a right one it is a pair of terms.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_load_si512,
    _mm512_maskz_loadu_ps, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_max_epu32, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_store_si512, _mm512_sub_ps,
    _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

/// Words of a line, lines of a tile.
pub(crate) const SIDE: usize = 16;
/// Terms of the sum that a tile holds.
pub(crate) const DEPTH: usize = 2 * SIDE;
/// Rows or columns of a block: of two tiles.
pub(crate) const BLOCK: usize = 2 * SIDE;
/// From this size on, as bits without the sign, a number has no bf16 near it, or is none.
const SPECIAL: u32 = 0x7f7f_8000;

/// A line of a tile.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; SIDE]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; SIDE]);
}

/// An operand in memory: `outer` rows of the left or columns of the right one, with `inner` terms each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) data: &'a [f32],
    /// Numbers from one line of memory to the next.
    pub(crate) stride: usize,
    pub(crate) outer: usize,
    pub(crate) inner: usize,
    /// Whether the terms of a row or column lie side by side.
    pub(crate) by_terms: bool,
    /// What each number is multiplied by, laid out with the stride that is with it.
    pub(crate) factors: Option<(&'a [f32], usize)>,
}

impl Source<'_> {
    /// That all that is read lies in memory.
    fn check(&self) {
        let (lines, line) = if self.by_terms { (self.outer, self.inner) } else { (self.inner, self.outer) };
        let holds = |data: &[f32], stride: usize| {
            lines == 0 || line == 0 || (line <= stride && (lines - 1) * stride + line <= data.len())
        };
        let factors = self.factors.is_none_or(|(data, stride)| holds(data, stride));
        assert!(holds(self.data, self.stride) && factors, "tiles: an operand is too short");
    }
}

/// The blocks along k.
pub(crate) fn depths(inner: usize) -> usize {
    inner.div_ceil(DEPTH)
}

/// Lines of one block of rows or columns.
pub(crate) fn block_lines(inner: usize, parts: usize) -> usize {
    depths(inner) * parts * BLOCK
}

/// Packs a block of two tiles of rows or columns, which begin at these: `[depths][parts][2 tiles]`. `left` says which operand it
/// is. Returns whether all numbers are ordinary: of one that is not nothing true is written.
pub(crate) fn pack<const PARTS: usize>(source: &Source<'_>, left: bool, starts: [usize; 2], to: &mut [Line]) -> bool {
    source.check();
    let depths = depths(source.inner);
    assert!(to.len() >= depths * PARTS * BLOCK, "tiles: no room for {} terms", source.inner);
    assert!(is_x86_feature_detected!("avx512f"), "tiles are packed by AVX-512");
    let to = &mut to[..depths * PARTS * BLOCK];
    // SAFETY: AVX-512 was found, `check` has held the source to its memory, and `to` has room for all tiles.
    unsafe {
        match (source.by_terms, left) {
            (true, true) => block::<PARTS, true, false>(source, starts, to),
            (true, false) => block::<PARTS, true, true>(source, starts, to),
            (false, true) => block::<PARTS, false, true>(source, starts, to),
            (false, false) => block::<PARTS, false, false>(source, starts, to),
        }
    }
}

/// Packs a block; see [`pack`].
///
/// # Safety
/// The source's memory holds what it says, and `to` has room for all tiles.
#[target_feature(enable = "avx512f")]
unsafe fn block<const PARTS: usize, const BY_TERMS: bool, const TURNED: bool>(
    source: &Source<'_>,
    starts: [usize; 2],
    to: &mut [Line],
) -> bool {
    let mut worst = _mm512_setzero_si512();
    for (depth, to) in to.chunks_exact_mut(PARTS * BLOCK).enumerate() {
        for (half, &first) in starts.iter().enumerate() {
            // SAFETY: by the caller's promise; the other half has lines enough behind these.
            let found = unsafe {
                tile::<PARTS, BY_TERMS, TURNED>(source, first, depth * DEPTH, to.as_mut_ptr().wrapping_add(half * SIDE))
            };
            worst = _mm512_max_epu32(worst, found);
        }
    }
    _mm512_reduce_max_epu32(worst) < SPECIAL
}

/// Packs a tile in all parts, which are [`BLOCK`] lines apart; returns bits of the largest numbers, without their signs.
///
/// # Safety
/// The source's memory holds what it says, and `to` is followed by the lines of all parts.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn tile<const PARTS: usize, const BY_TERMS: bool, const TURNED: bool>(
    source: &Source<'_>,
    outer: usize,
    inner: usize,
    to: *mut Line,
) -> __m512i {
    let rows = source.outer.saturating_sub(outer).min(SIDE);
    let terms = source.inner - inner;
    let mask = |count: usize| u16::MAX.checked_shr((SIDE - count.min(SIDE)) as u32).unwrap_or(0);
    let (lines, low_mask, high_mask) = if BY_TERMS {
        (rows, mask(terms), mask(terms.saturating_sub(SIDE)))
    } else {
        (terms.min(SIDE), mask(rows), mask(rows))
    };
    let (magnitude, upper) = (_mm512_set1_epi32(0x7fff_ffff), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    let mut worst = _mm512_setzero_si512();
    // the places of a line's first terms, and of the second ones: beside them, or sixteen lines of memory below
    let place = |stride: usize| {
        if BY_TERMS { (outer * stride + inner, SIDE) } else { (inner * stride + outer, SIDE * stride) }
    };
    let (begin, apart) = place(source.stride);
    let factors = source.factors.map(|(data, stride)| (data.as_ptr(), stride, place(stride)));
    for l in 0..lines {
        let high_mask = if BY_TERMS || l + SIDE < terms { high_mask } else { 0 };
        let load = |data: *const f32, low: usize, apart: usize| {
            // SAFETY: masked lanes are not read, and the others lie in the source by the caller's promise.
            unsafe {
                (
                    _mm512_maskz_loadu_ps(low_mask, data.wrapping_add(low)),
                    _mm512_maskz_loadu_ps(high_mask, data.wrapping_add(low).wrapping_add(apart)),
                )
            }
        };
        let (mut low, mut high) = load(source.data.as_ptr(), begin + l * source.stride, apart);
        if let Some((data, stride, (begin, apart))) = factors {
            let (a, b) = load(data, begin + l * stride, apart);
            (low, high) = (_mm512_mul_ps(low, a), _mm512_mul_ps(high, b));
        }
        for x in [low, high] {
            worst = _mm512_max_epu32(worst, _mm512_and_si512(_mm512_castps_si512(x), magnitude));
        }
        for part in 0..PARTS {
            let (a, b) = (rounded(low), rounded(high));
            // the upper half of the first below that of the second: (a | b) with b's lower half cut off
            let words = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(a), b, upper);
            // SAFETY: a line is 64 bytes that are aligned to as many, and all parts have their lines.
            unsafe { _mm512_store_si512(to.add(part * BLOCK + l).cast(), words) };
            low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
            high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
        }
    }
    for part in 0..PARTS {
        // SAFETY: all parts have their lines.
        let tile = unsafe { to.add(part * BLOCK) };
        for l in lines..SIDE {
            // SAFETY: as above.
            unsafe { _mm512_store_si512(tile.add(l).cast(), _mm512_setzero_si512()) };
        }
        if TURNED {
            // SAFETY: as above.
            unsafe { turn(tile) };
        }
    }
    worst
}

/// A word whose upper half is the nearest bf16, of ties the larger.
#[target_feature(enable = "avx512f")]
#[inline]
fn rounded(x: __m512) -> __m512i {
    _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))
}

/// Transposes the 16 words of 16 lines.
///
/// # Safety
/// `tile` is followed by as many lines.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn turn(tile: *mut Line) {
    let mut lines = [_mm512_setzero_si512(); SIDE];
    for (l, line) in lines.iter_mut().enumerate() {
        // SAFETY: a tile has these lines, by the caller's promise.
        *line = unsafe { _mm512_load_si512(tile.add(l).cast()) };
    }
    // words by pairs of lines, then by fours, then quarters of lines twice
    let mut a = lines;
    for i in (0..SIDE).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
    }
    let mut b = a;
    for i in (0..SIDE).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4g + c] has, in its quarter q, the words of column 4q + c of the lines 4g to 4g + 3
    for c in 0..4 {
        let first = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let second = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        let third = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let fourth = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        lines[c] = _mm512_shuffle_i32x4::<0x88>(first, second);
        lines[8 + c] = _mm512_shuffle_i32x4::<0xdd>(first, second);
        lines[4 + c] = _mm512_shuffle_i32x4::<0x88>(third, fourth);
        lines[12 + c] = _mm512_shuffle_i32x4::<0xdd>(third, fourth);
    }
    for (l, line) in lines.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_store_si512(tile.add(l).cast(), line) };
    }
}
