//! ln|det| and inverses of small matrices, in double precision: LU with partial pivoting by nalgebra, or by LAPACK
//! through ndarray-linalg under the feature `lapack`.

use crate::{CpuElement, NdArray, Tensor};

impl<E: CpuElement> NdArray<E> {
    pub(crate) fn lu_op(&self, a: &Tensor<E>) -> (Tensor<E>, Tensor<E>) {
        let shape = a.shape();
        assert!(shape.rank() == 3 && shape[1] == shape[2], "lu: needs [n, d, d], got {shape}");
        let (n, d) = (shape[0], shape[1]);
        let mut inverses = self.take(n * d * d);
        let determinants = self.filled([n, 1].into(), |out| {
            if d == 0 {
                return out.fill(E::ZERO);
            }
            let mut work = vec![0.0; d * d];
            for ((a, out), inverse) in
                a.as_slice().chunks_exact(d * d).zip(out).zip(inverses.as_mut_slice().chunks_exact_mut(d * d))
            {
                work.iter_mut().zip(a).for_each(|(w, a)| *w = a.to_f64());
                let log_det = factorise(d, &mut work);
                *out = E::from_f64(log_det);
                inverse.iter_mut().zip(&work).for_each(|(i, &w)| *i = E::from_f64(w));
            }
        });
        (determinants, inverses.with_shape(shape))
    }
}

/// Replaces a row-major matrix by its inverse and returns ln|det|; a singular one by NaNs, with −∞.
#[cfg(not(feature = "lapack"))]
fn factorise(d: usize, a: &mut [f64]) -> f64 {
    with_nalgebra(d, a)
}

/// OpenBLAS keeps the bookkeeping of a factorisation on several threads, for d of 200 and more, on the stack of its caller:
/// megabytes of it, and a thread of Rust has two by default.
#[cfg(feature = "lapack")]
const LAPACK_STACK: usize = 64 << 20;
/// Below this size one thread does the work, on little stack.
#[cfg(feature = "lapack")]
const LAPACK_THREADS_FROM: usize = 128;

#[cfg(feature = "lapack")]
fn factorise(d: usize, a: &mut [f64]) -> f64 {
    if d < LAPACK_THREADS_FROM {
        return with_lapack(d, a);
    }
    let log_det = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(LAPACK_STACK);
        let thread = thread.spawn_scoped(scope, || with_lapack(d, a)).ok()?;
        Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // no thread to be had: the other implementation needs none
    log_det.unwrap_or_else(|| with_nalgebra(d, a))
}

#[cfg_attr(all(feature = "lapack", not(test)), allow(dead_code))]
fn with_nalgebra(d: usize, a: &mut [f64]) -> f64 {
    match d {
        1 => {
            let log_det = a[0].abs().ln();
            a[0] = if a[0] == 0.0 { f64::NAN } else { 1.0 / a[0] };
            log_det
        }
        2 => two(a).unwrap_or_else(|| fixed::<2>(a)),
        3 => fixed::<3>(a),
        _ => {
            let lu = nalgebra::DMatrix::from_row_slice(d, d, a).lu();
            let log_det = (0..d).map(|i| lu.u()[(i, i)].abs().ln()).sum();
            match lu.try_inverse() {
                Some(inverse) => {
                    for i in 0..d {
                        for j in 0..d {
                            a[i * d + j] = inverse[(i, j)];
                        }
                    }
                }
                None => a.fill(f64::NAN),
            }
            log_det
        }
    }
}

/// The same by one step of elimination with a pivot, as what is fitted in two dimensions asks for it most; `None` where the
/// determinant is no normal number.
#[cfg_attr(all(feature = "lapack", not(test)), allow(dead_code))]
fn two(m: &mut [f64]) -> Option<f64> {
    let &mut [a, b, c, d] = m else { return None };
    let (p, q, r, s) = if c.abs() > a.abs() { (c, d, a, b) } else { (a, b, c, d) };
    let determinant = p * (s - r / p * q);
    if !determinant.is_normal() {
        return None;
    }
    // rows that were exchanged change its sign, which the inverse has and ln|det| has not
    let scale = if c.abs() > a.abs() { -1.0 } else { 1.0 } / determinant;
    m.copy_from_slice(&[d * scale, -b * scale, -c * scale, a * scale]);
    Some(determinant.abs().ln())
}

/// The same without allocation.
#[cfg_attr(all(feature = "lapack", not(test)), allow(dead_code))]
fn fixed<const D: usize>(a: &mut [f64]) -> f64
where
    nalgebra::Const<D>: nalgebra::DimMin<nalgebra::Const<D>, Output = nalgebra::Const<D>>,
{
    let lu = nalgebra::SMatrix::<f64, D, D>::from_row_slice(a).lu();
    let u = lu.u();
    let log_det = (0..D).map(|i| u[(i, i)].abs().ln()).sum();
    match lu.try_inverse() {
        // column-major storage: the transpose is row-major
        Some(inverse) => a.copy_from_slice(inverse.transpose().as_slice()),
        None => a.fill(f64::NAN),
    }
    log_det
}

#[cfg(feature = "lapack")]
fn with_lapack(d: usize, a: &mut [f64]) -> f64 {
    use ndarray::ArrayView2;
    use ndarray_linalg::{Determinant as _, FactorizeInto as _, Inverse as _};
    let matrix = ArrayView2::from_shape((d, d), &*a).expect("d·d elements").to_owned();
    // LAPACK refuses a matrix with an exactly zero pivot or a NaN
    let Ok(lu) = matrix.factorize_into() else {
        let finite = a.iter().all(|a| a.is_finite());
        a.fill(f64::NAN);
        return if finite { f64::NEG_INFINITY } else { f64::NAN };
    };
    let log_det = lu.sln_det().map_or(f64::NAN, |(_, log_det)| log_det);
    match lu.inv() {
        Ok(inverse) => a.iter_mut().zip(inverse.iter()).for_each(|(a, &i)| *a = i),
        Err(_) => a.fill(f64::NAN),
    }
    log_det
}

#[cfg(test)]
mod tests {
    use super::*;
    use resflow_backend::{Key, Noise};

    /// A·A⁻¹ = 1, ln|det| of a product of triangular factors, and singular input, for every implementation built in.
    #[test]
    fn inverse_and_determinant() {
        #[allow(unused_mut)]
        let mut implementations: Vec<(&str, fn(usize, &mut [f64]) -> f64)> = vec![("nalgebra", with_nalgebra)];
        #[cfg(feature = "lapack")]
        implementations.push(("lapack", with_lapack));
        for (name, factorise) in implementations {
            for d in 1..12 {
                let mut noise = vec![0.0; d * d];
                Noise::Normal.fill(Key::new(d as u64), 0, &mut noise);
                let a: Vec<f64> = (0..d * d).map(|e| noise[e] + if e % (d + 1) == 0 { 4.0 } else { 0.0 }).collect();
                let mut inverse = a.clone();
                let log_det = factorise(d, &mut inverse);
                for i in 0..d {
                    for j in 0..d {
                        let p: f64 = (0..d).map(|k| a[i * d + k] * inverse[k * d + j]).sum();
                        assert!((p - f64::from(u8::from(i == j))).abs() < 1e-12, "{name} d = {d}");
                    }
                }
                let doubled: Vec<f64> = a.iter().map(|a| 2.0 * a).collect();
                let log_det2 = factorise(d, &mut doubled.clone());
                assert!((log_det2 - log_det - d as f64 * 2.0_f64.ln()).abs() < 1e-12, "{name} d = {d}");
                let mut singular = vec![1.0; d * d];
                if d > 1 {
                    assert_eq!(factorise(d, &mut singular), f64::NEG_INFINITY, "{name} d = {d}");
                    assert!(singular.iter().all(|x| x.is_nan()));
                }
            }
        }
    }

    /// Both implementations on the same matrices.
    #[cfg(feature = "lapack")]
    #[test]
    fn lapack_agrees_with_nalgebra() {
        for d in 1..40 {
            let mut a = vec![0.0; d * d];
            Noise::Normal.fill(Key::new(100 + d as u64), 0, &mut a);
            let (mut x, mut y) = (a.clone(), a);
            let (lx, ly) = (with_nalgebra(d, &mut x), with_lapack(d, &mut y));
            assert!((lx - ly).abs() < 1e-11 * (1.0 + lx.abs()), "d = {d}: {lx} {ly}");
            let scale = x.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-10 * scale * scale), "d = {d}");
        }
    }

    /// Matrices that LAPACK factorises on several threads, from threads with a small stack: each must end, and be right.
    #[cfg(feature = "lapack")]
    #[test]
    fn lapack_from_small_stacks() {
        const D: usize = 300;
        let mut a = vec![0.0; D * D];
        Noise::Normal.fill(Key::new(7), 0, &mut a);
        let want = with_nalgebra(D, &mut a.clone());
        let one = || (0..20).map(|_| factorise(D, &mut a.clone())).collect::<Vec<_>>();
        let log_dets: Vec<f64> = std::thread::scope(|scope| {
            let builder = || std::thread::Builder::new().stack_size(256 << 10);
            let threads: Vec<_> = (0..4).map(|_| builder().spawn_scoped(scope, one).expect("a thread")).collect();
            threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
        });
        assert!(log_dets.iter().all(|x| (x - want).abs() < 1e-9), "{log_dets:?}, not {want}");
    }
}
