//! Convolutions as matrix products over patches of the narrower side.
//!
//! With P(x) the patches of x (`patches`), `[h'·w', kh·kw·c_in]`, and the kernel as a matrix K, `[c_out, kh·kw·c_in]`:
//! y = P(x)Kᵀ, x̄ = Pᵀ(ȳK) and K̄ = Σ ȳᵀP(x). Patches are kh·kw times the size of what they are taken from, so where x is
//! the wide side the same three are written with patches of y, the taps in reverse order:
//! y = Pᵀ(xFᵀ), x̄ = P(ȳ)F and F̄ = Σ P(ȳ)ᵀx for F, `[kh·kw·c_out, c_in]`, F[(−tap, o), i] = K[o, tap, i].

use resflow_backend::{Padding, Shape};

use crate::matmul::{Operands, Start};
use crate::patches::Windows;
use crate::{CpuElement, NdArray, Tensor};

/// Rows up to which patches of several images share a product.
const ROWS: usize = 256;
/// What moving an element of a patch costs, in multiply-adds.
const MOVE: usize = 16;

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

/// Where the patches are taken from.
#[derive(Debug, Clone, Copy)]
enum Side {
    Input(Windows),
    Output(Windows),
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

    /// The side on which patches cost less.
    fn side(&self) -> Side {
        let Self { image, output, kernel, padding, c_in, c_out } = *self;
        let pad = [padding.height as isize, padding.width as isize];
        let (x, y) = (image[0] * image[1], output[0] * output[1]);
        if y * c_in * (c_out + MOVE) <= x * c_out * (c_in + MOVE) {
            Side::Input(Windows { image, count: output, kernel, padding: pad, channels: c_in })
        } else {
            let pad = [kernel[0] as isize - 1 - pad[0], kernel[1] as isize - 1 - pad[1]];
            Side::Output(Windows { image: output, count: image, kernel, padding: pad, channels: c_out })
        }
    }

    /// Calls `f(row of F, start of the row in K)` for all rows of F.
    fn reversed(&self, mut f: impl FnMut(usize, usize)) {
        let taps = self.kernel[0] * self.kernel[1];
        for tap in 0..taps {
            for o in 0..self.c_out {
                f((taps - 1 - tap) * self.c_out + o, (o * taps + tap) * self.c_in);
            }
        }
    }
}

impl<E: CpuElement> NdArray<E> {
    /// F of a kernel.
    fn reversed_kernel(&self, g: &Geometry, kernel: &[E]) -> Tensor<E> {
        let mut reversed = self.take(kernel.len());
        let (out, c) = (reversed.as_mut_slice(), g.c_in);
        g.reversed(|row, from| out[row * c..(row + 1) * c].copy_from_slice(&kernel[from..from + c]));
        reversed
    }

    /// Calls `product(patches, their number, rows)` for the patches of a few images at a time.
    fn each_patches<R>(
        &self,
        w: &Windows,
        images: &[E],
        rows: impl Iterator<Item = R>,
        mut product: impl FnMut(&[E], usize, R),
    ) {
        let (group, size) = (images_at_once(w), w.patches() * w.patch());
        let mut patches = self.take(group.min(images.len() / w.elements()) * size);
        let mut scratch = self.take(w.scratch());
        for (images, rows) in images.chunks(group * w.elements()).zip(rows) {
            let number = images.len() / w.elements();
            let patches = &mut patches.as_mut_slice()[..number * size];
            for (image, patches) in images.chunks_exact(w.elements()).zip(patches.chunks_exact_mut(size)) {
                w.gather(self.level(), image, scratch.as_mut_slice(), patches);
            }
            product(patches, number * w.patches(), rows);
        }
    }

    /// out = P(images)·b.
    fn product_of_patches(&self, w: &Windows, images: &[E], b: &[E], transpose_b: bool, out: &mut [E]) {
        let (k, n) = (w.patch(), b.len() / w.patch());
        let rows = out.chunks_mut(images_at_once(w) * w.patches() * n);
        self.each_patches(w, images, rows, |a, m, out| {
            self.multiply(&Operands { a, transpose_a: false, b, transpose_b, m, k, n, packed: None }, Start::Zero, out);
        });
    }

    /// out = Pᵀ(rows·b).
    fn patches_of_product(&self, w: &Windows, rows: &[E], b: &[E], transpose_b: bool, out: &mut [E]) {
        let (n, k) = (w.patch(), b.len() / w.patch());
        let (group, size) = (images_at_once(w), w.patches() * n);
        let mut patches = self.take(group.min(out.len() / w.elements()) * size);
        for (rows, images) in rows.chunks(group * w.patches() * k).zip(out.chunks_mut(group * w.elements())) {
            let m = rows.len() / k;
            let patches = &mut patches.as_mut_slice()[..m * n];
            let o = Operands { a: rows, transpose_a: false, b, transpose_b, m, k, n, packed: None };
            self.multiply(&o, Start::Zero, patches);
            for (patches, image) in patches.chunks_exact(size).zip(images.chunks_exact_mut(w.elements())) {
                w.scatter(self.level(), patches, image);
            }
        }
    }

    pub(crate) fn conv2d_op(&self, x: &Tensor<E>, kernel: &Tensor<E>, padding: Padding) -> Tensor<E> {
        let g = Geometry::new("conv2d", x.shape(), kernel.shape(), padding);
        let (x_data, k) = (x.as_slice(), kernel.as_slice());
        self.filled([x.shape().rows(), g.output[0], g.output[1], g.c_out].into(), |out| {
            if out.is_empty() || x_data.is_empty() || k.is_empty() {
                return out.fill(E::ZERO);
            }
            match g.side() {
                Side::Input(w) => self.product_of_patches(&w, x_data, k, true, out),
                Side::Output(w) => {
                    self.patches_of_product(&w, x_data, self.reversed_kernel(&g, k).as_slice(), true, out);
                }
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
        let (gy, k) = (gy.as_slice(), kernel.as_slice());
        self.filled(shape, |out| {
            if out.is_empty() || gy.is_empty() || k.is_empty() {
                return out.fill(E::ZERO);
            }
            match g.side() {
                Side::Input(w) => self.patches_of_product(&w, gy, k, false, out),
                Side::Output(w) => {
                    self.product_of_patches(&w, gy, self.reversed_kernel(&g, k).as_slice(), false, out);
                }
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
        let (x, gy) = (x.as_slice(), gy.as_slice());
        let mut sum = self.owned(sum);
        let out = sum.as_mut_slice();
        if out.is_empty() || x.is_empty() || gy.is_empty() {
            return sum;
        }
        match g.side() {
            Side::Input(w) => {
                let (m, n) = (g.c_out, w.patch());
                let rows = gy.chunks(images_at_once(&w) * w.patches() * m);
                self.each_patches(&w, x, rows, |patches, k, gy| {
                    let o =
                        Operands { a: gy, transpose_a: true, b: patches, transpose_b: false, m, k, n, packed: None };
                    self.multiply(&o, Start::Output, out);
                });
            }
            Side::Output(w) => {
                let (m, n) = (w.patch(), g.c_in);
                let mut reversed = self.take(m * n);
                let f = reversed.as_mut_slice();
                let mut start = Start::Zero;
                let rows = x.chunks(images_at_once(&w) * w.patches() * n);
                self.each_patches(&w, gy, rows, |patches, k, x| {
                    let o = Operands { a: patches, transpose_a: true, b: x, transpose_b: false, m, k, n, packed: None };
                    self.multiply(&o, start, f);
                    start = Start::Output;
                });
                let level = self.level();
                g.reversed(|row, to| {
                    let (out, f) = (&mut out[to..to + n], &f[row * n..(row + 1) * n]);
                    level.run(|| out.iter_mut().zip(f).for_each(|(o, &f)| *o += f));
                });
            }
        }
        sum
    }
}

/// How many images' patches make one product: as many as make rows enough for whole tiles.
fn images_at_once(w: &Windows) -> usize {
    (ROWS / w.patches()).max(1)
}
