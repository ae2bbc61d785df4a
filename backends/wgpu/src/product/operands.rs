//! Operands of products by how they are fetched: matrices, and the patches of convolutions and of their adjoints.
//!
//! Images are `[n, h, w, c]`, results `[n, oh, ow, out]`, kernels `[out, kh, kw, c]`; the extents of the kernel are part of
//! the text, so that the compiler turns divisions by them into multiplications.

/// What the operands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operands {
    /// Matrices, each transposed or not.
    Matrices(bool, bool),
    /// Patches of images and a kernel of this height and width.
    Convolution([u16; 2]),
    /// The adjoint in the images.
    Images([u16; 2]),
    /// The adjoint in the kernel.
    Kernel([u16; 2]),
}

impl Operands {
    /// Further fields of `P`.
    pub(super) fn params(self) -> &'static [&'static str] {
        match self {
            Self::Matrices(..) => &[],
            _ => PARAMS,
        }
    }

    /// The functions `row_a`, `column_b`, `fetch_a` and `fetch_b`.
    pub(super) fn text(self) -> String {
        match self {
            Self::Matrices(transpose_a, transpose_b) => {
                let a = if transpose_a { "k * p.m + row.x" } else { "row.x * p.k + k" };
                let b = if transpose_b { "column.x * p.k + k" } else { "k * p.n + column.x" };
                format!(
                    "fn row_a(m: u32) -> vec4<u32> {{ return vec4<u32>(m, 0u, 0u, u32(m < p.m)); }}
fn column_b(n: u32) -> vec4<u32> {{ return vec4<u32>(n, 0u, 0u, u32(n < p.n)); }}
fn fetch_a(row: vec4<u32>, k: u32) -> f32 {{
  if (row.w == 1u && k < p.k) {{ return a[p.a + {a}]; }}
  return 0.0;
}}
fn fetch_b(k: u32, column: vec4<u32>) -> f32 {{
  if (column.w == 1u && k < p.k) {{ return b[p.b + {b}]; }}
  return 0.0;
}}
"
                )
            }
            Self::Convolution(kernel) => forward(kernel),
            Self::Images(kernel) => images(kernel),
            Self::Kernel(kernel) => gradient(kernel),
        }
    }

    /// Whether consecutive k lie next to each other in memory, for A and for B; else consecutive rows or columns do.
    pub(super) fn consecutive_k(self) -> [bool; 2] {
        match self {
            Self::Matrices(transpose_a, transpose_b) => [!transpose_a, transpose_b],
            Self::Convolution(_) => [true, true],
            Self::Images(_) => [true, false],
            Self::Kernel(_) => [false, false],
        }
    }
}

/// Extents of the images and of the results, and the padding.
const PARAMS: &[&str] = &["c: u32", "h: u32", "w: u32", "out_c: u32", "oh: u32", "ow: u32", "pad_h: u32", "pad_w: u32"];

/// A pixel's sample, row and column from its number.
const PIXEL: &str =
    "fn pixel(i: u32, h: u32, w: u32) -> vec3<u32> { let r = i / w; return vec3<u32>(r / h, r % h, i % w); }\n";

/// A: the pixels of the results, m; their patches, k. B: the kernel.
fn forward([kh, kw]: [u16; 2]) -> String {
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
fn images([kh, kw]: [u16; 2]) -> String {
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
fn gradient([_, kw]: [u16; 2]) -> String {
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
