//! Products: matrices, convolutions and their adjoints, all by one engine.
//!
//! A product is Σ_k A(m, k) B(k, n) with the operands defined by how they are fetched: a convolution is the product of its
//! patches, which are never stored ("implicit GEMM"), with k ordered (kernel row, kernel column, channel). The engine
//! ([`tile`]) computes tiles of the result in workgroup memory and registers. Where there are few tiles, k is cut into slices
//! whose partial results are added in order afterwards: the order of summation depends on the shape and the adapter alone.

mod conv;
pub(crate) mod cooperative;
mod tile;

use std::fmt::Write as _;

use cooperative::CooperativeTile;
use resflow_backend::Shape;
use tile::Tile;

use crate::device::Gpu;
use crate::kernel::{Groups, Kernel, Source, TURNS, WORKGROUP, each, groups};
use crate::tensor::Tensor;

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

/// What is added to the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    Nothing,
    /// A number for each column.
    Bias,
    /// A tensor of the result's shape.
    Sum,
}

impl Epilogue {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Bias => Some("bias"),
            Self::Sum => Some("sum"),
        }
    }

    /// What is added to element `at` in column `n`.
    fn text(self) -> &'static str {
        match self {
            Self::Nothing => "0.0",
            Self::Bias => "bias[p.bias + n]",
            Self::Sum => "sum[p.sum + at]",
        }
    }
}

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// Tiles of the result, or, with `sliced`, of partial results.
    Tiles { operands: Operands, tile: Tile, epilogue: Epilogue, sliced: bool },
    /// The sum of partial results.
    Slices(Epilogue),
}

impl Product {
    pub(crate) fn source(self) -> Source {
        match self {
            Self::Tiles { operands, tile, epilogue, sliced } => tiles(operands, tile, epilogue, sliced),
            Self::Slices(epilogue) => Source {
                reads: ["parts"].into_iter().chain(epilogue.name()).collect(),
                writes: vec!["out"],
                // `columns` is for the bias
                params: vec!["n: u32", "slices: u32", "columns: u32"],
                body: each(&format!(
                    "  var value = 0.0;
  for (var s = 0u; s < p.slices; s = s + 1u) {{ value = value + parts[p.parts + s * p.n + i]; }}
  let at = i;
  let n = i % p.columns;
  out[i] = value + {};",
                    epilogue.text()
                )),
                ..Source::default()
            },
        }
    }

    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let epilogues = [Epilogue::Nothing, Epilogue::Bias, Epilogue::Sum];
        let flags = [false, true];
        let mut operands: Vec<Operands> =
            flags.into_iter().flat_map(|a| flags.map(|b| Operands::Matrices(a, b))).collect();
        for kernel in [[1, 1], [3, 3], [5, 3]] {
            operands.extend([Operands::Convolution(kernel), Operands::Images(kernel), Operands::Kernel(kernel)]);
        }
        let mut all: Vec<Self> = epilogues.map(Self::Slices).to_vec();
        for operands in operands {
            for tile in Tile::all(operands) {
                all.extend(epilogues.map(|epilogue| Self::Tiles { operands, tile, epilogue, sliced: false }));
                all.push(Self::Tiles { operands, tile, epilogue: Epilogue::Nothing, sliced: true });
            }
        }
        all
    }
}

/// The text of a tiled product: how operands are fetched, how results are stored, and the engine.
///
/// An engine sees `row_a(m)` and `column_b(n)`, what is known of a row of A and a column of B, kept over all k; and
/// `fetch_a(row, k)` and `fetch_b(k, column)`, 0 outside; `store(m, n, slice, value)` adds the epilogue and leaves out what
/// is outside.
fn tiles(operands: Operands, tile: Tile, epilogue: Epilogue, sliced: bool) -> Source {
    let mut reads = vec!["a", "b"];
    reads.extend(epilogue.name());
    let mut params = vec!["m: u32", "n: u32", "k: u32", "k_slice: u32"];
    params.extend(operands.params());
    let mut body = operands.text();
    body.push_str(
        "fn load_a(m: u32, k: u32) -> f32 { return fetch_a(row_a(m), k); }
fn load_b(k: u32, n: u32) -> f32 { return fetch_b(k, column_b(n)); }
",
    );
    let store = if sliced {
        "out[(slice * p.m + m) * p.n + n] = value;".to_owned()
    } else {
        format!("let at = m * p.n + n;\n    out[at] = value + {};", epilogue.text())
    };
    let _ = write!(
        body,
        "fn store(m: u32, n: u32, slice: u32, value: f32) {{
  if (m < p.m && n < p.n) {{
    {store}
  }}
}}
"
    );
    let (engine, enables, shared) = tile.text(operands);
    Source { enables, reads, writes: vec!["out"], params, body: body + &engine, shared }
}

impl Operands {
    fn params(self) -> &'static [&'static str] {
        match self {
            Self::Matrices(..) => &[],
            _ => conv::PARAMS,
        }
    }

    fn text(self) -> String {
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
            Self::Convolution(kernel) => conv::forward(kernel),
            Self::Images(kernel) => conv::images(kernel),
            Self::Kernel(kernel) => conv::kernel(kernel),
        }
    }

    /// Whether consecutive k lie next to each other in memory, for A and for B; else consecutive rows or columns do.
    fn consecutive_k(self) -> [bool; 2] {
        match self {
            Self::Matrices(transpose_a, transpose_b) => [!transpose_a, transpose_b],
            Self::Convolution(_) => [true, true],
            Self::Images(_) => [true, false],
            Self::Kernel(_) => [false, false],
        }
    }
}

impl Gpu {
    /// The product of [m, k, n], plus the epilogue, as `[m, n]`.
    fn product(
        &self,
        operands: Operands,
        [m, k, n]: [usize; 3],
        [a, b]: [&Tensor; 2],
        (epilogue, added): (Epilogue, Option<&Tensor>),
        own: &[u32],
    ) -> Tensor {
        let shape: Shape = [m, n].into();
        if m * n == 0 || k == 0 {
            return match (epilogue, added) {
                (Epilogue::Sum, Some(sum)) => sum.window(0, shape),
                (Epilogue::Bias, Some(bias)) => self.binary(resflow_backend::Binary::Add, &self.full(0.0, shape), bias),
                _ => self.full(0.0, shape),
            };
        }
        let (tile, slices) = self.division(operands, [m, k, n]);
        let k_slice = k.div_ceil(slices).next_multiple_of(16);
        let slices = k.div_ceil(k_slice).max(1);
        let params: Vec<u32> = [m, n, k, k_slice].into_iter().map(|v| v as u32).chain(own.iter().copied()).collect();
        let [x, y, _] = tile.groups(m, n);
        let grid: Groups = [x, y, slices as u32];
        let operands_and_added: Vec<&Tensor> = [a, b].into_iter().chain(added).collect();
        let out = self.output(&operands_and_added, shape);
        if slices == 1 {
            let kernel = Product::Tiles { operands, tile, epilogue, sliced: false };
            self.launch(Kernel::Product(kernel), &operands_and_added, &[&out], &params, grid);
            return out;
        }
        let parts = self.output(&[a, b], [slices, m, n].into());
        let kernel = Product::Tiles { operands, tile, epilogue: Epilogue::Nothing, sliced: true };
        self.launch(Kernel::Product(kernel), &[a, b], &[&parts], &params, grid);
        let reads: Vec<&Tensor> = [&parts].into_iter().chain(added).collect();
        let params = [(m * n) as u32, slices as u32, n as u32];
        let kernel = Kernel::Product(Product::Slices(epilogue));
        self.launch(kernel, &reads, &[&out], &params, groups(m * n, WORKGROUP as usize));
        out
    }

    /// The tile, and the number of slices of k that gives the device enough to do: a function of the sizes and the adapter.
    fn division(&self, operands: Operands, [m, k, n]: [usize; 3]) -> (Tile, usize) {
        // a software adapter has few cores, and takes long to compile a kernel; others want hundreds of workgroups
        let wanted = if self.is_software() { 8 } else { 256 };
        let narrow = m.min(n);
        let tile = match &self.cooperative {
            // one axis of the grid counts tiles of rows
            Some((tiles, split)) if narrow >= 32 && k >= 16 && m <= 1 << 20 => {
                let [a, b] = operands.consecutive_k();
                // enough tiles for the device, and none that is mostly outside
                let enough = |tile: &&CooperativeTile| {
                    let wide = tile.rows.max(tile.columns) as usize;
                    wide <= narrow.next_power_of_two() && Tile::Cooperative(**tile, *split).count(m, n) >= wanted / 2
                };
                let tile = tiles.iter().find(enough).unwrap_or(&tiles[tiles.len() - 1]);
                Tile::Cooperative(CooperativeTile { transposed: [!a, b], ..*tile }, *split)
            }
            _ if narrow <= 4 => Tile::Thread,
            _ if narrow >= 96 && Tile::LARGE.count(m, n) >= wanted / 2 => Tile::LARGE,
            _ if narrow >= 40 => Tile::MEDIUM,
            _ => Tile::SMALL,
        };
        let tiles = tile.count(m, n).max(1);
        let slices = (wanted / tiles).min(k / 256).max(1);
        // partial results must fit one buffer
        let most = (self.largest() / (4 * (m * n).max(1) as u64)).max(1);
        // one thread goes over all k of its slice
        let least = if tile == Tile::Thread { k.div_ceil(TURNS / 2) } else { 1 };
        (tile, slices.min(most as usize).max(least))
    }

    /// a·b, each optionally transposed first.
    pub(crate) fn matmul(&self, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Tensor {
        self.matmul_with(a, transpose_a, b, transpose_b, Epilogue::Nothing, None)
    }

    /// sum + a·b.
    pub(crate) fn matmul_add(
        &self,
        sum: &Tensor,
        a: &Tensor,
        transpose_a: bool,
        b: &Tensor,
        transpose_b: bool,
    ) -> Tensor {
        self.matmul_with(a, transpose_a, b, transpose_b, Epilogue::Sum, Some(sum))
    }

    /// x·wt + bias.
    pub(crate) fn linear(&self, x: &Tensor, wt: &Tensor, bias: &Tensor) -> Tensor {
        self.matmul_with(x, false, wt, false, Epilogue::Bias, Some(bias))
    }

    fn matmul_with(
        &self,
        a: &Tensor,
        transpose_a: bool,
        b: &Tensor,
        transpose_b: bool,
        epilogue: Epilogue,
        added: Option<&Tensor>,
    ) -> Tensor {
        let (sa, sb) = (a.shape(), b.shape());
        assert!(sa.rank() == 2 && sb.rank() == 2, "matmul: two axes each, not {sa} and {sb}");
        let (m, k) = if transpose_a { (sa[1], sa[0]) } else { (sa[0], sa[1]) };
        let (inner, n) = if transpose_b { (sb[1], sb[0]) } else { (sb[0], sb[1]) };
        assert_eq!(k, inner, "matmul: the inner extents differ: {sa} ({transpose_a}) and {sb} ({transpose_b})");
        let fits = added.is_none_or(|x| x.elements() == if epilogue == Epilogue::Bias { n } else { m * n });
        let (name, shape) = match epilogue {
            Epilogue::Bias => ("linear", added.map(Tensor::shape)),
            _ => ("matmul_add", added.map(Tensor::shape)),
        };
        let fits = fits && (epilogue != Epilogue::Sum || shape == Some([m, n].into()));
        assert!(fits, "{name}: {shape:?} does not fit a result of [{m}, {n}]");
        self.product(Operands::Matrices(transpose_a, transpose_b), [m, k, n], [a, b], (epilogue, added), &[])
    }
}
