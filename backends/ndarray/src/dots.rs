//! Products of few columns in f32 on AVX-512, by dot products: out\[i, j\] += Σ a\[i, p\] c\[j, p\], n ≤ 4. Rows of a and columns of b are whole
//! vectors but for the last, which is masked; a row is read once for all columns.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_reduce_add_ps, _mm512_setzero_ps,
};

use crate::matmul::Operands;

/// Numbers of a vector.
const WIDTH: usize = 16;

/// Adds the product; `columns` holds b's columns one after the other, a is not transposed.
///
/// # Panics
/// Without AVX-512F, of operands of other shapes, and of more than four columns.
pub(crate) fn product(o: &Operands<'_, f32>, columns: &[f32], out: &mut [f32]) {
    let &Operands { m, k, n, a, .. } = o;
    assert!(!o.transpose_a, "dots: a must not be transposed");
    assert!(
        k > 0 && a.len() == m * k && columns.len() == k * n && out.len() == m * n,
        "dots: an operand does not fit {m} × {k} × {n}"
    );
    assert!(is_x86_feature_detected!("avx512f"), "dots: needs AVX-512F");
    // SAFETY: AVX-512F was found; rows have k numbers, and there are as many columns of k.
    unsafe {
        match n {
            1 => run::<1>(k, a, columns, out),
            2 => run::<2>(k, a, columns, out),
            3 => run::<3>(k, a, columns, out),
            4 => run::<4>(k, a, columns, out),
            _ => panic!("dots: {n} columns"),
        }
    }
}

/// # Safety
/// `columns` holds N columns of k numbers.
#[target_feature(enable = "avx512f")]
unsafe fn run<const N: usize>(k: usize, a: &[f32], columns: &[f32], out: &mut [f32]) {
    let whole = k / WIDTH * WIDTH;
    let mask = (1_u16 << (k - whole)) - 1;
    for (row, out) in a.chunks_exact(k).zip(out.as_chunks_mut::<N>().0) {
        let (row, columns) = (row.as_ptr(), columns.as_ptr());
        let mut sums = [_mm512_setzero_ps(); N];
        // SAFETY: what is read lies in a row and in N columns of k numbers; masked lanes are not read.
        unsafe {
            for p in (0..whole).step_by(WIDTH) {
                let x = _mm512_loadu_ps(row.add(p));
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(x, _mm512_loadu_ps(columns.add(j * k + p)), *sum);
                }
            }
            if mask > 0 {
                let x = _mm512_maskz_loadu_ps(mask, row.add(whole));
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, columns.add(j * k + whole)), *sum);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += _mm512_reduce_add_ps(sum);
        }
    }
}
