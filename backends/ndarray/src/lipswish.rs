//! LipSwish x σ(bx)/1.1 and its first two derivatives in f32 on AVX-512: sixteen numbers at a time, with fused multiply-adds, and σ by an
//! approximate reciprocal and two steps of Newton, since a division takes as long as ten multiplications. The second step rounds correctly
//! (P. Markstein, IBM J. Res. Dev. 34, 1990; all but one number of each power of two), so that processors whose approximations differ have the
//! same bits.
//! It is the formula of [`Activation::derivatives`](resflow_backend::Activation::derivatives); the polynomial is that of [`crate::simd`].
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_add_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_rcp14_ps,
    _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_ps, _mm512_sub_ps,
};

use resflow_backend::LIPSWISH_SCALE;

/// Numbers of a vector.
const WIDTH: usize = 16;

/// Computes the function and its first N − 1 derivatives at x.
///
/// # Panics
/// Without AVX-512F, and if an output is not as long as x.
pub(crate) fn derivatives<const N: usize>(b: f32, x: &[f32], out: [&mut [f32]; N]) {
    assert!(out.iter().all(|out| out.len() == x.len()), "lipswish: outputs are not as long as x");
    assert!(is_x86_feature_detected!("avx512f"), "lipswish: needs AVX-512F");
    // SAFETY: AVX-512F was found, and all outputs are as long as x.
    unsafe { run(b, x, out.map(<[f32]>::as_mut_ptr)) }
}

/// # Safety
/// Outputs have room for as many numbers as x has.
#[target_feature(enable = "avx512f")]
unsafe fn run<const N: usize>(b: f32, x: &[f32], out: [*mut f32; N]) {
    let b = _mm512_set1_ps(b);
    for base in (0..x.len()).step_by(WIDTH) {
        let mask = u16::MAX >> (WIDTH - (x.len() - base).min(WIDTH));
        // SAFETY: lanes that are not masked lie in x.
        let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(base)) };
        for (value, out) in at::<N>(b, x).into_iter().zip(out) {
            // SAFETY: the same lanes lie in the output, by the caller's promise.
            unsafe { _mm512_mask_storeu_ps(out.add(base), mask, value) };
        }
    }
}

/// y = xs/1.1, y′ = s (1 + tq)/1.1 and y″ = b s q (2 + tq − ts)/1.1 with t = bx, s = σ(t), q = 1 − s.
#[target_feature(enable = "avx512f")]
#[inline]
fn at<const N: usize>(b: __m512, x: __m512) -> [__m512; N] {
    let one = _mm512_set1_ps(1.0);
    let t = _mm512_mul_ps(b, x);
    let s = sigmoid(t);
    let scaled = _mm512_mul_ps(s, _mm512_set1_ps((1.0 / LIPSWISH_SCALE) as f32));
    let q = _mm512_sub_ps(one, s);
    let tq = _mm512_mul_ps(t, q);
    std::array::from_fn(|derivative| match derivative {
        0 => _mm512_mul_ps(x, scaled),
        1 => _mm512_fmadd_ps(scaled, tq, scaled),
        _ => {
            let bracket = _mm512_add_ps(_mm512_fnmadd_ps(t, s, tq), _mm512_set1_ps(2.0));
            _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(b, scaled), q), bracket)
        }
    })
}

/// 1/(1 + e⁻ᵗ), t clamped to [−87, 87] so that it is never subnormal; NaN stays NaN.
#[target_feature(enable = "avx512f")]
#[inline]
fn sigmoid(t: __m512) -> __m512 {
    let constant = |x: f32| _mm512_set1_ps(x);
    let one = constant(1.0);
    // of a NaN either gives its second operand
    let t = _mm512_max_ps(constant(-87.0), _mm512_min_ps(constant(87.0), t));
    // e⁻ᵗ = 2ⁿ eʳ with r = −t − n ln 2, |r| ≤ ln2/2
    let n = _mm512_mul_ps(t, constant(-std::f32::consts::LOG2_E));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
    // ln 2 in two parts, the first short enough for n·ln2 to be exact
    let r = _mm512_fnmadd_ps(n, constant(0.693_359_4), _mm512_sub_ps(constant(0.0), t));
    let r = _mm512_fnmadd_ps(n, constant(-2.121_944_4e-4), r);
    let p = constant(1.987_569_1e-4);
    let p = _mm512_fmadd_ps(p, r, constant(1.398_2e-3));
    let p = _mm512_fmadd_ps(p, r, constant(8.333_452e-3));
    let p = _mm512_fmadd_ps(p, r, constant(4.166_579_6e-2));
    let p = _mm512_fmadd_ps(p, r, constant(1.666_666_5e-1));
    let p = _mm512_fmadd_ps(p, r, constant(0.5));
    let p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    reciprocal(_mm512_add_ps(_mm512_scalef_ps(_mm512_add_ps(p, one), n), one))
}

/// 1/d for d of normal size, as a division rounds it but for d = 2ⁿ(2 − 2⁻²³).
#[target_feature(enable = "avx512f")]
#[inline]
fn reciprocal(d: __m512) -> __m512 {
    let improve = |s: __m512| _mm512_fmadd_ps(s, _mm512_fnmadd_ps(d, s, _mm512_set1_ps(1.0)), s);
    // 14 bits, then 28 but for rounding
    improve(improve(_mm512_rcp14_ps(d)))
}

#[cfg(test)]
mod tests {
    use std::arch::x86_64::{_mm512_loadu_ps, _mm512_storeu_ps};

    use resflow_backend::Activation;

    use super::*;

    fn all(b: f32, x: &[f32]) -> [Vec<f32>; 3] {
        let mut out = [(); 3].map(|()| vec![f32::NAN; x.len()]);
        let [y, d1, d2] = &mut out;
        derivatives(b, x, [y, d1, d2]);
        out
    }

    /// Against double precision at every 499th number up to ±30: y within the roundings that the size of t makes of its own, the others within what t(1 − s) loses, which
    /// is |t| roundings of 1.
    #[test]
    fn as_accurate_as_the_plain_formula() {
        if !is_x86_feature_detected!("avx512f") {
            return eprintln!("SKIPPED, NOT TESTED: no AVX-512");
        }
        let numbers = (0..=30.0_f32.to_bits()).step_by(499).map(f32::from_bits);
        let x: Vec<f32> = numbers.flat_map(|x| [x, -x]).collect();
        for b in [1.0_f32, 0.37, 1.9] {
            let found = all(b, &x);
            for (i, &at) in x.iter().enumerate() {
                let want = Activation::LipSwish.derivatives(f64::from(at), f64::from(b));
                for (order, want) in want.into_iter().enumerate() {
                    let error = (f64::from(found[order][i]) - want).abs();
                    let t = f64::from(at * b).abs();
                    let size =
                        if order == 0 { (2.0 + 0.5 * t) * want.abs() } else { f64::from(b).max(1.0) * (2.0 + t) };
                    let allowed = f64::from(f32::EPSILON) * size + 1e-38;
                    assert!(error <= allowed, "φ of order {order} at {at:e}, b = {b}: {error:e}, {allowed:e}");
                }
            }
        }
    }

    /// Of every number from 1 to 2 and from 2⁴⁰ to 2⁴¹ but the last.
    #[test]
    fn reciprocals_are_those_of_a_division() {
        #[target_feature(enable = "avx512f")]
        fn compare(first: u32) {
            let last = first + (1 << 23) - 1;
            for bits in (first..last).step_by(WIDTH) {
                let d: [f32; WIDTH] = std::array::from_fn(|l| f32::from_bits(bits + l as u32));
                let mut found = [0.0_f32; WIDTH];
                // SAFETY: both are sixteen numbers.
                unsafe { _mm512_storeu_ps(found.as_mut_ptr(), reciprocal(_mm512_loadu_ps(d.as_ptr()))) };
                for (d, found) in d.iter().zip(found).filter(|(d, _)| d.to_bits() < last) {
                    assert_eq!(found.to_bits(), (1.0 / d).to_bits(), "1/{d:e}: {found:e}");
                }
            }
        }
        if !is_x86_feature_detected!("avx512f") {
            return eprintln!("SKIPPED, NOT TESTED: no AVX-512");
        }
        // SAFETY: AVX-512F was found.
        unsafe {
            compare(1.0_f32.to_bits());
            compare(2.0_f32.powi(40).to_bits());
        }
    }

    #[test]
    fn every_length_and_special_numbers() {
        if !is_x86_feature_detected!("avx512f") {
            return eprintln!("SKIPPED, NOT TESTED: no AVX-512");
        }
        let x: Vec<f32> = (0..50).map(|i| (i as f32 - 25.0) * 0.3).collect();
        let whole = all(1.1, &x);
        for length in 0..x.len() {
            for (part, whole) in all(1.1, &x[..length]).iter().zip(&whole) {
                assert_eq!(part[..], whole[..length]);
            }
            let (mut y, mut d1) = (vec![0.0; length], vec![0.0; length]);
            derivatives(1.1, &x[..length], [&mut y]);
            assert_eq!(y, whole[0][..length], "the value is the same without derivatives");
            derivatives(1.1, &x[..length], [&mut y, &mut d1]);
            assert_eq!([&y[..], &d1[..]], [&whole[0][..length], &whole[1][..length]]);
        }
        let special = [0.0, -0.0, 87.0, -87.0, 1e4, -1e4, 1e30, -1e30, 1e-40, f32::MIN_POSITIVE];
        for (found, &x) in all(1.0, &special)[0].iter().zip(&special) {
            let want = Activation::LipSwish.derivatives(f64::from(x), 1.0)[0];
            let clamped = if x < -87.0 { f64::from(x) * (-87.0_f64).exp() / 1.1 } else { want };
            assert!(
                (f64::from(*found) - clamped).abs() <= 1e-6 * clamped.abs() + 1e-38,
                "{x:e}: {found:e}, {clamped:e}"
            );
        }
        for order in all(1.0, &special) {
            assert!(order.iter().all(|x| x.is_finite()), "{order:?}");
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff)] {
            assert!(all(1.0, &[1.0, nan]).iter().all(|order| order[0].is_finite() && order[1].is_nan()));
        }
    }
}
