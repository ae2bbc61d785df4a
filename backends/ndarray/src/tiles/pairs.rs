//! The product of two packed blocks by AVX-512's dot products of pairs: a lane adds two products of bf16 in f32.
//!
//! A word of a row of the left operand goes to all lanes and meets a line of the right one, whose lanes are columns: the layout of
//! the matrix unit's tiles as it is. Eight rows by 32 columns of sums stay in registers. The instruction takes subnormal numbers for zero
//! like the unit, and makes twice the multiply-adds of one of f32: one part can be faster than f32, more cannot (docs/performance.md).
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::kernel::Place;
use super::pack::{BLOCK, Line, SIDE};
use super::unit::Pairs;

/// Rows whose sums stay in registers.
const ROWS: usize = 8;

/// Makes the product of a block of rows and a block of columns, packed in PARTS parts.
///
/// # Safety
/// `out` has room for 32 rows of the one or two tiles of columns at their place.
pub(super) unsafe fn product<const PARTS: usize>(_found: Pairs, a: &[Line], b: &[Line], out: &mut [f32], place: Place) {
    // SAFETY: `_found` says that the processor has the instructions; the rest by the caller's promise.
    unsafe {
        match place.tiles {
            1 => block::<PARTS, 1>(a, b, out, place),
            _ => block::<PARTS, 2>(a, b, out, place),
        }
    }
}

/// # Safety
/// The processor has AVX512_BF16, and `out` has room for 32 rows of TILES tiles of columns at their place.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn block<const PARTS: usize, const TILES: usize>(a: &[Line], b: &[Line], out: &mut [f32], place: Place) {
    let Place { stride, columns, accumulate, .. } = place;
    for first in (0..BLOCK).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); TILES]; ROWS];
        // the smallest products first, over all depths: what they are rounded by is as small
        for (order, part) in (0..PARTS).rev().flat_map(|order| (0..=order).map(move |part| (order, part))) {
            for (a, b) in a.chunks_exact(PARTS * BLOCK).zip(b.chunks_exact(PARTS * BLOCK)) {
                let (a, b) = (&a[part * BLOCK + first..][..ROWS], &b[(order - part) * BLOCK..][..TILES * SIDE]);
                for word in 0..SIDE {
                    let right: [__m512i; TILES] = std::array::from_fn(|tile| {
                        // SAFETY: a line is 64 bytes that are aligned to as many.
                        unsafe { _mm512_load_si512((&raw const b[tile * SIDE + word]).cast()) }
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let left = _mm512_set1_epi32(a[row].0[word].cast_signed());
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum = _mm512_dpbf16_ps(*sum, pairs(left), pairs(right));
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (tile, &sum) in sums.iter().enumerate() {
                // SAFETY: these 16 numbers lie in `out` by the caller's promise.
                unsafe {
                    let to = out.as_mut_ptr().add((first + row) * stride + columns[tile]);
                    let sum = if accumulate { _mm512_add_ps(sum, _mm512_loadu_ps(to)) } else { sum };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

/// Words as pairs of bf16.
#[target_feature(enable = "avx512f")]
#[inline]
fn pairs(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and every one of them is a pair of bf16.
    unsafe { std::mem::transmute(words) }
}
