//! Bounded scales and shifts ([`resflow_backend::bounded_affine`]) in one pass: all scales first, which
//! vectorise, then the samples.

use resflow_backend::bounded_affine::{check, check_cotangents};
use resflow_backend::{BoundedAffineReverse, Unary};

use crate::simd::kernel;
use crate::{CpuElement, NdArray, Tensor};

/// What samples are told, row by row, the same row for all if there is one.
#[derive(Debug, Clone, Copy)]
struct Told<'a, E> {
    most: E,
    /// `[n, 2d]` or `[1, 2d]`.
    rows: &'a [E],
    d: usize,
}

impl<E: CpuElement> Told<'_, E> {
    /// The row of a sample.
    #[inline(always)]
    fn number(&self, sample: usize) -> usize {
        if self.rows.len() == 2 * self.d { 0 } else { sample }
    }

    /// a/A and e^a of all rows, `[n, d]` or `[1, d]` each: side by side, so that vectors are full.
    #[inline(always)]
    fn scales(&self, share: &mut [E], scale: &mut [E]) {
        for (row, share) in self.rows.chunks_exact(2 * self.d).zip(share.chunks_exact_mut(self.d)) {
            share.copy_from_slice(&row[..self.d]);
        }
        for (share, scale) in share.iter_mut().zip(scale) {
            *share = E::fast(Unary::Tanh, *share / self.most);
            *scale = E::fast(Unary::Exp, self.most * *share);
        }
    }
}

kernel! {
    /// y and ln|det|; `scratch` has room for two rows of each that is told.
    fn map<E>(told: Told<'_, E>, x: &[E], y: &mut [E], log_det: &mut [E], scratch: &mut [E]) {
        let (d, (share, scale)) = (told.d, scratch.split_at_mut(scratch.len() / 2));
        told.scales(share, scale);
        let own = x.len() / log_det.len();
        let pixels = E::from_f64((own / d) as f64);
        let samples = x.chunks_exact(own).zip(y.chunks_exact_mut(own)).zip(log_det);
        for (sample, ((x, y), log_det)) in samples.enumerate() {
            let row = told.number(sample);
            let shift = &told.rows[(2 * row + 1) * d..(2 * row + 2) * d];
            let own = row * d..(row + 1) * d;
            let (share, scale) = (&share[own.clone()], &scale[own]);
            for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
                for (((y, &x), &s), &m) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                    *y = x * s + m;
                }
            }
            let mut sum = E::ZERO;
            for &share in share {
                sum += share;
            }
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
        let (share, scale) = scratch.split_at_mut(scratch.len() / 2);
        told.scales(share, scale);
        let own = x.len() / weights.len();
        let pixels = E::from_f64((own / d) as f64);
        let samples = x.chunks_exact(own).zip(gy.chunks_exact(own)).zip(gx.chunks_exact_mut(own));
        let targets = gtold.chunks_exact_mut(2 * d).zip(weights);
        for (sample, (((x, gy), gx), (gtold, &weight))) in samples.zip(targets).enumerate() {
            let row = told.number(sample);
            let own = row * d..(row + 1) * d;
            let (share, scale) = (&share[own.clone()], &scale[own]);
            let (of_raw, of_shift) = gtold.split_at_mut(d);
            of_raw.fill(weight * pixels);
            of_shift.fill(E::ZERO);
            for ((x, gy), gx) in x.chunks_exact(d).zip(gy.chunks_exact(d)).zip(gx.chunks_exact_mut(d)) {
                let inputs = x.iter().zip(gy).zip(scale);
                let outputs = gx.iter_mut().zip(&mut *of_raw).zip(&mut *of_shift);
                for (((&x, &gy), &scale), ((gx, of_raw), of_shift)) in inputs.zip(outputs) {
                    *gx = gy * scale;
                    *of_raw += *gx * x;
                    *of_shift += gy;
                }
            }
            for (g, &share) in of_raw.iter_mut().zip(share) {
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
        let given = Self::told(most, told, flat[2]);
        let mut scratch = self.take(given.rows.len());
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
        let given = Self::told(most, told, d);
        let mut scratch = self.take(given.rows.len());
        let cotangents = Cotangents { x: x.as_slice(), y: gy.as_slice(), weights: weights.as_slice() };
        let (out, gradients) = (gx.as_mut_slice(), gtold.as_mut_slice());
        pull_back(self.level(), given, cotangents, out, gradients, scratch.as_mut_slice());
        BoundedAffineReverse { gx, gtold }
    }

    fn told(most: f64, told: &Tensor<E>, d: usize) -> Told<'_, E> {
        Told { most: E::from_f64(most), rows: told.as_slice(), d }
    }
}
