//! Convolutions as products: where the elements of the patches lie.
//!
//! Images are `[n, h, w, c]`, results `[n, oh, ow, out]`, kernels `[out, kh, kw, c]`; the extents of the kernel are part of
//! the text, so that the compiler turns divisions by them into multiplications.

use resflow_backend::{Padding, Shape};

use super::{Epilogue, Operands};
use crate::device::Gpu;
use crate::tensor::Tensor;

/// Extents of the images and of the results, and the padding.
pub(super) const PARAMS: &[&str] =
    &["c: u32", "h: u32", "w: u32", "out_c: u32", "oh: u32", "ow: u32", "pad_h: u32", "pad_w: u32"];

/// A pixel's sample, row and column from its number.
const PIXEL: &str =
    "fn pixel(i: u32, h: u32, w: u32) -> vec3<u32> { let r = i / w; return vec3<u32>(r / h, r % h, i % w); }\n";

/// A: the pixels of the results, m; their patches, k. B: the kernel.
pub(super) fn forward([kh, kw]: [u16; 2]) -> String {
    let _ = kh;
    format!(
        "{PIXEL}fn row_a(m: u32) -> vec4<u32> {{ return vec4<u32>(pixel(m, p.oh, p.ow), u32(m < p.m)); }}
fn column_b(n: u32) -> vec4<u32> {{ return vec4<u32>(n, 0u, 0u, u32(n < p.n)); }}
fn fetch_a(row: vec4<u32>, k: u32) -> f32 {{
  let tap = k / p.c;
  // outside on the low side wraps around to very large
  let y = row.y + tap / {kw}u - p.pad_h;
  let x = row.z + tap % {kw}u - p.pad_w;
  if (row.w == 0u || k >= p.k || y >= p.h || x >= p.w) {{ return 0.0; }}
  return a[p.a + ((row.x * p.h + y) * p.w + x) * p.c + k - tap * p.c];
}}
fn fetch_b(k: u32, column: vec4<u32>) -> f32 {{
  if (column.w == 0u || k >= p.k) {{ return 0.0; }}
  return b[p.b + column.x * p.k + k];
}}
"
    )
}

/// A: the pixels of the images, m; the results that they enter, k. B: the kernel, with its first and last axes swapped.
pub(super) fn images([kh, kw]: [u16; 2]) -> String {
    let taps = u32::from(kh) * u32::from(kw);
    format!(
        "{PIXEL}fn row_a(m: u32) -> vec4<u32> {{ return vec4<u32>(pixel(m, p.h, p.w), u32(m < p.m)); }}
fn column_b(n: u32) -> vec4<u32> {{ return vec4<u32>(n, 0u, 0u, u32(n < p.n)); }}
fn fetch_a(row: vec4<u32>, k: u32) -> f32 {{
  let tap = k / p.out_c;
  let y = row.y + p.pad_h - tap / {kw}u;
  let x = row.z + p.pad_w - tap % {kw}u;
  if (row.w == 0u || k >= p.k || y >= p.oh || x >= p.ow) {{ return 0.0; }}
  return a[p.a + ((row.x * p.oh + y) * p.ow + x) * p.out_c + k - tap * p.out_c];
}}
fn fetch_b(k: u32, column: vec4<u32>) -> f32 {{
  if (column.w == 0u || k >= p.k) {{ return 0.0; }}
  let tap = k / p.out_c;
  return b[p.b + ((k - tap * p.out_c) * {taps}u + tap) * p.c + column.x];
}}
"
    )
}

/// A: the channels of the results, m; their pixels, k. B: the patches; a column is a position of the kernel and a channel.
pub(super) fn kernel([_, kw]: [u16; 2]) -> String {
    format!(
        "{PIXEL}fn row_a(m: u32) -> vec4<u32> {{ return vec4<u32>(m, 0u, 0u, u32(m < p.m)); }}
fn column_b(n: u32) -> vec4<u32> {{
  let tap = n / p.c;
  return vec4<u32>(n % p.c, tap / {kw}u, tap % {kw}u, u32(n < p.n));
}}
fn fetch_a(row: vec4<u32>, k: u32) -> f32 {{
  if (row.w == 0u || k >= p.k) {{ return 0.0; }}
  return a[p.a + k * p.m + row.x];
}}
fn fetch_b(k: u32, column: vec4<u32>) -> f32 {{
  let at = pixel(k, p.oh, p.ow);
  let y = at.y + column.y - p.pad_h;
  let x = at.z + column.z - p.pad_w;
  if (column.w == 0u || k >= p.k || y >= p.h || x >= p.w) {{ return 0.0; }}
  return b[p.b + ((at.x * p.h + y) * p.w + x) * p.c + column.x];
}}
"
    )
}

/// The four extents of an image or a kernel.
#[track_caller]
fn four(operation: &str, x: &Tensor, other: &Tensor) -> [usize; 4] {
    let extents: Option<[usize; 4]> = x.shape().to_vec().try_into().ok();
    extents.unwrap_or_else(|| panic!("{operation}: four axes each, not {} and {}", x.shape(), other.shape()))
}

/// Everything that a convolution is over.
struct Geometry {
    samples: usize,
    channels: [usize; 2],
    image: [usize; 2],
    output: [usize; 2],
    padding: Padding,
    kernel: [usize; 2],
}

impl Geometry {
    fn params(&self) -> [u32; 8] {
        let ([h, w], [oh, ow], [c, out]) = (self.image, self.output, self.channels);
        [c, h, w, out, oh, ow, self.padding.height, self.padding.width].map(|v| v as u32)
    }

    fn extents(&self) -> [u16; 2] {
        self.kernel.map(|k| u16::try_from(k).expect("a kernel is no larger than 65535"))
    }

    /// Pixels of the images, pixels of the results, positions of the kernel.
    fn sizes(&self) -> [usize; 3] {
        let pixels = |[h, w]: [usize; 2]| self.samples * h * w;
        [pixels(self.image), pixels(self.output), self.kernel[0] * self.kernel[1]]
    }
}

impl Gpu {
    pub(crate) fn conv2d(&self, x: &Tensor, kernel: &Tensor, padding: Padding) -> Tensor {
        let [samples, h, w, c] = four("conv2d", x, kernel);
        let [out, kh, kw, channels] = four("conv2d", kernel, x);
        let output = padding.output([h, w], [kh, kw]).filter(|_| c == channels);
        let output = output.unwrap_or_else(|| panic!("conv2d: {} does not fit {}", kernel.shape(), x.shape()));
        let of = Geometry { samples, channels: [c, out], image: [h, w], output, padding, kernel: [kh, kw] };
        let [_, pixels, taps] = of.sizes();
        let sizes = [pixels, taps * c, out];
        let product = self.product(
            Operands::Convolution(of.extents()),
            sizes,
            [x, kernel],
            (Epilogue::Nothing, &[]),
            &of.params(),
        );
        product[0].window(0, [samples, output[0], output[1], out].into())
    }

    pub(crate) fn conv2d_input(&self, gy: &Tensor, kernel: &Tensor, padding: Padding, image: [usize; 2]) -> Tensor {
        let [samples, h, w, out] = four("conv2d_input", gy, kernel);
        let [o, kh, kw, c] = four("conv2d_input", kernel, gy);
        let fits = out == o && padding.output(image, [kh, kw]) == Some([h, w]);
        assert!(fits, "conv2d_input: {} and {} do not fit an image of {image:?}", gy.shape(), kernel.shape());
        let of = Geometry { samples, channels: [c, out], image, output: [h, w], padding, kernel: [kh, kw] };
        let [pixels, _, taps] = of.sizes();
        let sizes = [pixels, taps * out, c];
        let product =
            self.product(Operands::Images(of.extents()), sizes, [gy, kernel], (Epilogue::Nothing, &[]), &of.params());
        product[0].window(0, [samples, image[0], image[1], c].into())
    }

    /// The adjoint in the kernel, added to `sum` if there is one.
    pub(crate) fn conv2d_kernel(
        &self,
        x: &Tensor,
        gy: &Tensor,
        padding: Padding,
        kernel: [usize; 2],
        sum: Option<&Tensor>,
    ) -> Tensor {
        let [samples, h, w, c] = four("conv2d_kernel", x, gy);
        let [rows, oh, ow, out] = four("conv2d_kernel", gy, x);
        let fits = samples == rows && padding.output([h, w], kernel) == Some([oh, ow]);
        assert!(fits, "conv2d_kernel: {} and {} do not fit a kernel of {kernel:?}", x.shape(), gy.shape());
        let shape: Shape = [out, kernel[0], kernel[1], c].into();
        let fits = sum.is_none_or(|sum| sum.shape() == shape);
        assert!(fits, "conv2d_kernel_add: {:?} is not {shape}", sum.map(Tensor::shape));
        let of = Geometry { samples, channels: [c, out], image: [h, w], output: [oh, ow], padding, kernel };
        let [_, pixels, taps] = of.sizes();
        let epilogue = if sum.is_some() { Epilogue::Sum } else { Epilogue::Nothing };
        let added: Vec<&Tensor> = sum.into_iter().collect();
        let sizes = [out, pixels, taps * c];
        self.product(Operands::Kernel(of.extents()), sizes, [gy, x], (epilogue, &added), &of.params())[0]
            .window(0, shape)
    }
}
