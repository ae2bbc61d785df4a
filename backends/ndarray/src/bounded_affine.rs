//! Bounded scales and shifts ([`resflow_backend::bounded_affine`]) in one pass: scales of a row first, which vectorise, then its
//! pixels.

use resflow_backend::bounded_affine::{check, check_cotangents};
use resflow_backend::{BoundedAffineReverse, Unary};

use crate::simd::kernel;
use crate::{CpuElement, NdArray, Tensor};

/// What samples are told, row by row, the same row for all if there is one.
#[derive(Debug, Clone, Copy)]
struct Told<'a, E> {
    most: E,
    rows: &'a [E],
    d: usize,
    shared: bool,
}

impl<'a, E> Told<'a, E> {
    /// â and m of a sample.
    #[inline(always)]
    fn of(&self, sample: usize) -> (&'a [E], &'a [E]) {
        let start = if self.shared { 0 } else { 2 * self.d * sample };
        self.rows[start..start + 2 * self.d].split_at(self.d)
    }
}

/// a/A and e^a of â.
#[inline(always)]
fn scales<E: CpuElement>(most: E, raw: &[E], share: &mut [E], scale: &mut [E]) {
    for ((raw, share), scale) in raw.iter().zip(share).zip(scale) {
        *share = E::fast(Unary::Tanh, *raw / most);
        *scale = E::fast(Unary::Exp, most * *share);
    }
}

kernel! {
    /// y and ln|det|; `scratch` has room for two rows.
    fn map<E>(told: Told<'_, E>, x: &[E], y: &mut [E], log_det: &mut [E], scratch: &mut [E]) {
        let (share, scale) = scratch.split_at_mut(told.d);
        let own = x.len() / log_det.len();
        let pixels = E::from_f64((own / told.d) as f64);
        let samples = x.chunks_exact(own).zip(y.chunks_exact_mut(own)).zip(log_det);
        for (sample, ((x, y), log_det)) in samples.enumerate() {
            let (raw, shift) = told.of(sample);
            if sample == 0 || !told.shared {
                scales(told.most, raw, share, scale);
            }
            for (x, y) in x.chunks_exact(told.d).zip(y.chunks_exact_mut(told.d)) {
                for (((y, &x), &s), &m) in y.iter_mut().zip(x).zip(&*scale).zip(shift) {
                    *y = x * s + m;
                }
            }
            let mut sum = E::ZERO;
            share.iter().for_each(|&share| sum += share);
            *log_det = told.most * pixels * sum;
        }
    }
}

/// What the pullback is of.
#[derive(Debug, Clone, Copy)]
struct Cotangents<'a, E> {
    x: &'a [E],
    y: &'a [E],
    weights: &'a [E],
}

kernel! {
    /// The gradients in x and in what samples are told; see `Backend::bounded_affine_reverse`.
    fn pull_back<E>(told: Told<'_, E>, cotangents: Cotangents<'_, E>, gx: &mut [E], gtold: &mut [E], scratch: &mut [E]) {
        let (d, Cotangents { x, y: gy, weights }) = (told.d, cotangents);
        let (share, scale) = scratch.split_at_mut(d);
        let own = x.len() / weights.len();
        let pixels = E::from_f64((own / d) as f64);
        let samples = x.chunks_exact(own).zip(gy.chunks_exact(own)).zip(gx.chunks_exact_mut(own));
        let targets = gtold.chunks_exact_mut(2 * d).zip(weights);
        for (sample, (((x, gy), gx), (gtold, &weight))) in samples.zip(targets).enumerate() {
            if sample == 0 || !told.shared {
                scales(told.most, told.of(sample).0, share, scale);
            }
            let (of_raw, of_shift) = gtold.split_at_mut(d);
            of_raw.fill(weight * pixels);
            of_shift.fill(E::ZERO);
            for ((x, gy), gx) in x.chunks_exact(d).zip(gy.chunks_exact(d)).zip(gx.chunks_exact_mut(d)) {
                for j in 0..d {
                    gx[j] = gy[j] * scale[j];
                    of_raw[j] += gx[j] * x[j];
                    of_shift[j] += gy[j];
                }
            }
            for (g, &share) in of_raw.iter_mut().zip(&*share) {
                *g *= E::ONE - share * share;
            }
        }
    }
}

impl<E: CpuElement> NdArray<E> {
    #[track_caller]
    pub(crate) fn bounded_affine_op(&self, most: f64, x: &Tensor<E>, told: &Tensor<E>) -> [Tensor<E>; 2] {
        let flat = check("bounded_affine", x.shape(), told.shape());
        let mut y = self.take(x.shape().elements()).with_shape(x.shape());
        let mut log_det = self.take(flat[0]).with_shape([flat[0], 1].into());
        if x.shape().elements() == 0 {
            log_det.as_mut_slice().fill(E::ZERO);
            return [y, log_det];
        }
        let mut scratch = self.take(2 * flat[2]);
        let given = Self::told(most, told, flat[2]);
        let out = (y.as_mut_slice(), log_det.as_mut_slice());
        map(self.level(), given, x.as_slice(), out.0, out.1, scratch.as_mut_slice());
        [y, log_det]
    }

    #[track_caller]
    pub(crate) fn bounded_affine_reverse_op(
        &self,
        most: f64,
        x: &Tensor<E>,
        told: &Tensor<E>,
        gy: &Tensor<E>,
        weights: &Tensor<E>,
    ) -> BoundedAffineReverse<Tensor<E>> {
        let shape = x.shape();
        let flat = check("bounded_affine_reverse", shape, told.shape());
        check_cotangents(shape, gy.shape(), weights.shape());
        let d = flat[2];
        let mut gx = self.take(shape.elements()).with_shape(shape);
        let mut gtold = self.take(flat[0] * 2 * d).with_shape([flat[0], 2 * d].into());
        if shape.elements() == 0 {
            gtold.as_mut_slice().fill(E::ZERO);
            return BoundedAffineReverse { gx, gtold };
        }
        let mut scratch = self.take(2 * d);
        let cotangents = Cotangents { x: x.as_slice(), y: gy.as_slice(), weights: weights.as_slice() };
        let (out, gradients) = (gx.as_mut_slice(), gtold.as_mut_slice());
        pull_back(self.level(), Self::told(most, told, d), cotangents, out, gradients, scratch.as_mut_slice());
        BoundedAffineReverse { gx, gtold }
    }

    fn told(most: f64, told: &Tensor<E>, d: usize) -> Told<'_, E> {
        Told { most: E::from_f64(most), rows: told.as_slice(), d, shared: told.shape()[0] == 1 }
    }
}
