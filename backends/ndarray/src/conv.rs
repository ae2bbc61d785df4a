//! Convolutions as matrix products over image patches, one image at a time.
//!
//! With P(x) the matrix of patches, `[h'·w', kh·kw·c_in]`, and the kernel as a matrix K, `[c_out, kh·kw·c_in]`:
//! y = P(x)Kᵀ, x̄ = Pᵀ(ȳK) and K̄ = Σ ȳᵀP(x). A 1×1 kernel without padding is a plain product.

use resflow_backend::{Padding, Shape};

use crate::matmul::{Strided, dense};
use crate::{CpuElement, NdArray, Tensor};

/// The extents of one convolution.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    image: [usize; 2],
    output: [usize; 2],
    kernel: [usize; 2],
    padding: Padding,
    c_in: usize,
    c_out: usize,
}

impl Geometry {
    #[track_caller]
    fn new(what: &str, x: Shape, kernel: Shape, padding: Padding) -> Self {
        assert!(
            x.rank() == 4 && kernel.rank() == 4,
            "{what}: needs [n, h, w, c] and [c_out, kh, kw, c_in], got {x} and {kernel}"
        );
        assert_eq!(x[3], kernel[3], "{what}: the image {x} and the kernel {kernel} differ in input channels");
        let (image, size) = ([x[1], x[2]], [kernel[1], kernel[2]]);
        let output = padding.output(image, size);
        let output =
            output.unwrap_or_else(|| panic!("{what}: the kernel {kernel} is larger than the padded image {x}"));
        Self { image, output, kernel: size, padding, c_in: x[3], c_out: kernel[0] }
    }

    fn patch(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.c_in
    }

    fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.padding == Padding { height: 0, width: 0 }
    }

    /// Calls `f(start in the patch matrix, start in the image or None for padding)` for every run of channels.
    #[inline(always)]
    fn walk(&self, mut f: impl FnMut(usize, Option<usize>)) {
        let mut at = 0;
        for oy in 0..self.output[0] {
            for ox in 0..self.output[1] {
                for ky in 0..self.kernel[0] {
                    let y = (oy + ky).checked_sub(self.padding.height).filter(|&y| y < self.image[0]);
                    for kx in 0..self.kernel[1] {
                        let x = (ox + kx).checked_sub(self.padding.width).filter(|&x| x < self.image[1]);
                        f(at, y.zip(x).map(|(y, x)| (y * self.image[1] + x) * self.c_in));
                        at += self.c_in;
                    }
                }
            }
        }
    }

    /// P(x).
    fn gather<E: CpuElement>(&self, x: &[E], patches: &mut [E]) {
        let c = self.c_in;
        self.walk(|at, from| match from {
            Some(from) => patches[at..at + c].copy_from_slice(&x[from..from + c]),
            None => patches[at..at + c].fill(E::ZERO),
        });
    }

    /// x += Pᵀ(patches).
    fn scatter<E: CpuElement>(&self, patches: &[E], x: &mut [E]) {
        let c = self.c_in;
        self.walk(|at, to| {
            if let Some(to) = to {
                for (x, &p) in x[to..to + c].iter_mut().zip(&patches[at..at + c]) {
                    *x += p;
                }
            }
        });
    }
}

fn rows<E>(data: &[E], columns: usize) -> Strided<'_, E> {
    Strided { data, row: columns as isize, column: 1 }
}

fn turned<E>(data: &[E], columns: usize) -> Strided<'_, E> {
    Strided { data, row: 1, column: columns as isize }
}

impl<E: CpuElement> NdArray<E> {
    pub(crate) fn conv2d_op(&self, x: &Tensor<E>, kernel: &Tensor<E>, padding: Padding) -> Tensor<E> {
        let g = Geometry::new("conv2d", x.shape(), kernel.shape(), padding);
        let n = x.shape().rows();
        let (patch, pixels) = (g.patch(), g.pixels());
        let k = turned(kernel.as_slice(), patch);
        self.filled([n, g.output[0], g.output[1], g.c_out].into(), |out| {
            if out.is_empty() || x.as_slice().is_empty() || patch == 0 {
                return out.fill(E::ZERO);
            }
            if g.pointwise() {
                return dense((n * pixels, g.c_out, patch), &rows(x.as_slice(), patch), &k, false, out);
            }
            let mut patches = self.take(pixels * patch);
            for (x, out) in
                x.as_slice().chunks_exact(x.shape().row_elements()).zip(out.chunks_exact_mut(pixels * g.c_out))
            {
                g.gather(x, patches.as_mut_slice());
                dense((pixels, g.c_out, patch), &rows(patches.as_slice(), patch), &k, false, out);
            }
        })
    }

    pub(crate) fn conv2d_input_op(
        &self,
        gy: &Tensor<E>,
        kernel: &Tensor<E>,
        padding: Padding,
        image: [usize; 2],
    ) -> Tensor<E> {
        let (sy, sk) = (gy.shape(), kernel.shape());
        assert!(
            sy.rank() == 4 && sk.rank() == 4,
            "conv2d_input: needs [n, h, w, c] and [c_out, kh, kw, c_in], got {sy} and {sk}"
        );
        let shape: Shape = [sy[0], image[0], image[1], sk[3]].into();
        let g = Geometry::new("conv2d_input", shape, sk, padding);
        assert_eq!(
            [sy[1], sy[2], sy[3]],
            [g.output[0], g.output[1], g.c_out],
            "conv2d_input: {sy} is not the output of a kernel {sk} on {image:?}"
        );
        let (patch, pixels) = (g.patch(), g.pixels());
        let k = rows(kernel.as_slice(), patch);
        self.filled(shape, |out| {
            out.fill(E::ZERO);
            if out.is_empty() || gy.as_slice().is_empty() {
                return;
            }
            if g.pointwise() {
                return dense((sy[0] * pixels, patch, g.c_out), &rows(gy.as_slice(), g.c_out), &k, false, out);
            }
            let mut patches = self.take(pixels * patch);
            for (gy, out) in
                gy.as_slice().chunks_exact(pixels * g.c_out).zip(out.chunks_exact_mut(shape.row_elements()))
            {
                dense((pixels, patch, g.c_out), &rows(gy, g.c_out), &k, false, patches.as_mut_slice());
                g.scatter(patches.as_slice(), out);
            }
        })
    }

    pub(crate) fn conv2d_kernel_op(
        &self,
        x: &Tensor<E>,
        gy: &Tensor<E>,
        padding: Padding,
        kernel: [usize; 2],
    ) -> Tensor<E> {
        let (sx, sy) = (x.shape(), gy.shape());
        assert!(sx.rank() == 4 && sy.rank() == 4, "conv2d_kernel: needs [n, h, w, c] twice, got {sx} and {sy}");
        let zero = self.filled([sy[3], kernel[0], kernel[1], sx[3]].into(), |out| out.fill(E::ZERO));
        self.conv2d_kernel_add_op(zero, x, gy, padding)
    }

    pub(crate) fn conv2d_kernel_add_op(
        &self,
        sum: Tensor<E>,
        x: &Tensor<E>,
        gy: &Tensor<E>,
        padding: Padding,
    ) -> Tensor<E> {
        let (sx, sy) = (x.shape(), gy.shape());
        let g = Geometry::new("conv2d_kernel", sx, sum.shape(), padding);
        assert_eq!(
            &sy[..],
            [sx[0], g.output[0], g.output[1], g.c_out],
            "conv2d_kernel: {sy} is not the output of a kernel {} on {sx}",
            sum.shape()
        );
        let (patch, pixels) = (g.patch(), g.pixels());
        let mut sum = self.owned(sum);
        let out = sum.as_mut_slice();
        if out.is_empty() || x.as_slice().is_empty() || gy.as_slice().is_empty() {
            return sum;
        }
        if g.pointwise() {
            let gy = turned(gy.as_slice(), g.c_out);
            dense((g.c_out, patch, sx[0] * pixels), &gy, &rows(x.as_slice(), patch), true, out);
            return sum;
        }
        let mut patches = self.take(pixels * patch);
        for (x, gy) in x.as_slice().chunks_exact(sx.row_elements()).zip(gy.as_slice().chunks_exact(pixels * g.c_out)) {
            g.gather(x, patches.as_mut_slice());
            dense((g.c_out, patch, pixels), &turned(gy, g.c_out), &rows(patches.as_slice(), patch), true, out);
        }
        sum
    }
}
