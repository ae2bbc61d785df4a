//! Products: matrices, convolutions and their adjoints, all by one engine.
//!
//! A product is Σ_k A(m, k) B(k, n) with the operands defined by how they are fetched: a convolution is the product of its
//! patches, which are never stored ("implicit GEMM"), with k ordered (kernel row, kernel column, channel). The engine
//! ([`tile`]) computes tiles of the result in workgroup memory and registers. Where there are few tiles, k is cut into slices
//! whose partial results are added in order afterwards: the order of summation depends on the shape and the adapter alone.

mod conv;
mod epilogue;
mod operands;
mod tile;

use std::fmt::Write as _;

use epilogue::Epilogue;
use operands::Operands;
use resflow_backend::{Activation, Shape};
use tile::{Lanes, Tile};

use crate::cooperative::CooperativeTile;
use crate::device::Gpu;
use crate::kernel::{Groups, Kernel, Source, TURNS, WORKGROUP, each, groups};
use crate::tensor::Tensor;

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// Tiles of the result, or, with `sliced`, of partial results.
    Tiles { operands: Operands, tile: Tile, epilogue: Epilogue, sliced: bool },
    /// The sum of partial results.
    Slices(Epilogue),
}

impl Kernel for Product {
    fn source(&self) -> Source {
        match *self {
            Self::Tiles { operands, tile, epilogue, sliced } => tiles(operands, tile, epilogue, sliced),
            Self::Slices(epilogue) => Source {
                reads: ["parts"].iter().chain(epilogue.reads()).copied().collect(),
                writes: epilogue.writes().to_vec(),
                // `columns` is for the bias
                params: vec!["n: u32", "slices: u32", "columns: u32"],
                body: epilogue.text()
                    + &each(
                        "  var value = 0.0;
  for (var s = 0u; s < p.slices; s = s + 1u) { value = value + parts[p.parts + s * p.n + i]; }
  finish(i, i % p.columns, value);",
                    ),
                ..Source::default()
            },
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let flags = [false, true];
        let mut operands: Vec<Operands> =
            flags.into_iter().flat_map(|a| flags.map(|b| Operands::Matrices(a, b))).collect();
        for kernel in [[1, 1], [3, 3], [5, 3]] {
            operands.extend([Operands::Convolution(kernel), Operands::Images(kernel), Operands::Kernel(kernel)]);
        }
        let mut all: Vec<Self> =
            Epilogue::all(Operands::Matrices(false, false)).into_iter().map(Self::Slices).collect();
        for operands in operands {
            for tile in Tile::all(operands) {
                let whole = |epilogue| Self::Tiles { operands, tile, epilogue, sliced: false };
                all.extend(Epilogue::all(operands).into_iter().map(whole));
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
    reads.extend(epilogue.reads());
    let mut params = vec!["m: u32", "n: u32", "k: u32", "k_slice: u32"];
    params.extend(operands.params());
    let mut body = operands.text();
    body.push_str(
        "fn load_a(m: u32, k: u32) -> f32 { return fetch_a(row_a(m), k); }
fn load_b(k: u32, n: u32) -> f32 { return fetch_b(k, column_b(n)); }
",
    );
    let (finish, store) = if sliced {
        (String::new(), "out[(slice * p.m + m) * p.n + n] = value;")
    } else {
        (epilogue.text(), "finish(m * p.n + n, n, value);")
    };
    let _ = write!(
        body,
        "{finish}fn store(m: u32, n: u32, slice: u32, value: f32) {{
  if (m < p.m && n < p.n) {{ {store} }}
}}
"
    );
    let writes = if sliced { vec!["out"] } else { epilogue.writes().to_vec() };
    let (engine, enables, shared) = tile.text(operands);
    Source { enables, reads, writes, params, body: body + &engine, shared }
}

impl Gpu {
    /// The results of the epilogue of a product of [m, k, n], each `[m, n]`.
    fn product(
        &self,
        operands: Operands,
        sizes: [usize; 3],
        factors: [&Tensor; 2],
        epilogue: (Epilogue, &[&Tensor]),
        own: &[u32],
    ) -> Vec<Tensor> {
        self.divided(operands, sizes, factors, epilogue, own, self.division(operands, sizes))
    }

    /// The same, divided as said.
    fn divided(
        &self,
        operands: Operands,
        [m, k, n]: [usize; 3],
        [a, b]: [&Tensor; 2],
        (epilogue, added): (Epilogue, &[&Tensor]),
        own: &[u32],
        (tile, slices): (Tile, usize),
    ) -> Vec<Tensor> {
        let shape: Shape = [m, n].into();
        let k_slice = k.div_ceil(slices).next_multiple_of(tile.depth());
        let slices = k.div_ceil(k_slice.max(1));
        let all: Vec<&Tensor> = [a, b].iter().chain(added).copied().collect();
        let outs: Vec<Tensor> = epilogue.writes().iter().map(|_| self.output(&all, shape)).collect();
        let writes: Vec<&Tensor> = outs.iter().collect();
        if m * n == 0 {
            return outs;
        }
        let params: Vec<u32> = [m, n, k, k_slice].into_iter().map(|v| v as u32).chain(own.iter().copied()).collect();
        let [x, y, _] = tile.groups(m, n);
        let grid: Groups = [x, y, slices as u32];
        if slices == 1 {
            let kernel = Product::Tiles { operands, tile, epilogue, sliced: false };
            self.launch(&kernel, &all, &writes, &params, grid);
            return outs;
        }
        // no slices at all where k is 0: the sum of nothing
        let parts = self.output(&[a, b], [slices, m, n].into());
        let kernel = Product::Tiles { operands, tile, epilogue: Epilogue::Nothing, sliced: true };
        self.launch(&kernel, &[a, b], &[&parts], &params, grid);
        let reads: Vec<&Tensor> = [&parts].iter().chain(added).copied().collect();
        let params = [(m * n) as u32, slices as u32, n as u32];
        let kernel = Product::Slices(epilogue);
        self.launch(&kernel, &reads, &writes, &params, groups(m * n, WORKGROUP as usize));
        outs
    }

    /// The tile, and the number of slices of k that gives the device enough to do: a function of the sizes and the adapter.
    fn division(&self, operands: Operands, [m, k, n]: [usize; 3]) -> (Tile, usize) {
        // a software adapter has few cores, and takes long to compile a kernel; others want hundreds of workgroups, and
        // wait for memory at each step: slices are worth their sum from a few steps on
        let software = self.is_software();
        let (wanted, least_terms) = if software { (8, 256) } else { (256, 64) };
        let narrow = m.min(n);
        let tile = match &self.cooperative {
            // one axis of the grid counts tiles of rows
            Some((tiles, split)) if narrow >= 32 && k >= 16 && m <= 1 << 20 => {
                let [a, b] = operands.consecutive_k();
                let most = self.limits.max_compute_workgroup_storage_size;
                let oriented = tiles.iter().map(|tile| CooperativeTile { transposed: [!a, b], ..*tile });
                let fitting: Vec<_> = oriented.filter(|tile| tile.shared_bytes(*split) <= most).collect();
                // enough tiles for the device, and none that is mostly outside
                let enough = |tile: &&CooperativeTile| {
                    let wide = tile.rows.max(tile.columns) as usize;
                    wide <= narrow.next_power_of_two() && Tile::Cooperative(**tile, *split).count(m, n) >= wanted / 2
                };
                let tile = fitting.iter().find(enough).or(fitting.last());
                tile.map_or(Tile::MEDIUM, |tile| Tile::Cooperative(*tile, *split))
            }
            _ if k < 16 && narrow <= Lanes::NARROW => Tile::Thread,
            _ if narrow <= Lanes::NARROW => Tile::Lanes(Lanes::of(operands, m, n).expect("it is narrow")),
            _ if narrow >= 96 && Tile::LARGE.count(m, n) >= wanted / 2 => Tile::LARGE,
            _ if !software && k > 16 && Tile::MEDIUM.count(m, n) < wanted / 2 => Tile::DEEP,
            _ if narrow >= 40 => Tile::MEDIUM,
            _ => Tile::SMALL,
        };
        let tiles = tile.count(m, n).max(1);
        // a narrow result is soon found: there may be more of its workgroups
        let wanted = if matches!(tile, Tile::Lanes(_)) { 4 * wanted } else { wanted };
        let slices = if k < 256 { 1 } else { (wanted / tiles).min(k / least_terms).max(1) };
        // partial results must fit one buffer
        let most = (self.largest() / (4 * (m * n).max(1) as u64)).max(1);
        // one thread may go over all k of its slice
        let least = if matches!(tile, Tile::Thread | Tile::Lanes(_)) { k.div_ceil(TURNS / 2) } else { 1 };
        (tile, slices.min(most as usize).max(least))
    }

    /// a·b, each optionally transposed first.
    pub(crate) fn matmul(&self, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Tensor {
        let sizes = sizes(a, transpose_a, b, transpose_b);
        let [m, k, n] = sizes;
        if k == 1
            && let Some(out) = self.defer_outer(a, b, [m, n])
        {
            return out;
        }
        self.product(Operands::Matrices(transpose_a, transpose_b), sizes, [a, b], (Epilogue::Nothing, &[]), &[])
            .remove(0)
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
        let [m, k, n] = sizes(a, transpose_a, b, transpose_b);
        assert_eq!(sum.shape(), [m, n].into(), "matmul_add: {} is not the shape of the product", sum.shape());
        let operands = Operands::Matrices(transpose_a, transpose_b);
        self.product(operands, [m, k, n], [a, b], (Epilogue::Sum, &[sum]), &[]).remove(0)
    }

    /// x·wt + bias.
    pub(crate) fn linear(&self, x: &Tensor, wt: &Tensor, bias: &Tensor) -> Tensor {
        self.linear_with(x, wt, bias, Epilogue::Bias, None).remove(0)
    }

    /// The derivatives 0 to `order` of an activation of x·wt + bias, and for order 2 that itself.
    pub(crate) fn linear_activation(
        &self,
        x: &Tensor,
        wt: &Tensor,
        bias: &Tensor,
        f: Activation,
        parameter: Option<&Tensor>,
        order: usize,
    ) -> (Option<Tensor>, Vec<Tensor>) {
        assert!(order <= 2, "activation: derivatives up to order 2 exist, not {order}");
        let slope = f.has_parameter().then(|| parameter.expect("activation: LipSwish needs its parameter b"));
        let mut outs = self.linear_with(x, wt, bias, Epilogue::Activated(f, order), slope);
        let y = (order == 2).then(|| outs.remove(0));
        (y, outs)
    }

    fn linear_with(
        &self,
        x: &Tensor,
        wt: &Tensor,
        bias: &Tensor,
        epilogue: Epilogue,
        slope: Option<&Tensor>,
    ) -> Vec<Tensor> {
        let [m, k, n] = sizes(x, false, wt, false);
        assert_eq!(bias.elements(), n, "linear: the bias {} for {n} columns", bias.shape());
        let added: Vec<&Tensor> = [bias].into_iter().chain(slope).collect();
        self.product(Operands::Matrices(false, false), [m, k, n], [x, wt], (epilogue, &added), &[])
    }
}

/// Rows, inner extent and columns of a matrix product.
#[track_caller]
fn sizes(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> [usize; 3] {
    let (sa, sb) = (a.shape(), b.shape());
    assert!(sa.rank() == 2 && sb.rank() == 2, "matmul: two axes each, not {sa} and {sb}");
    let (m, k) = if transpose_a { (sa[1], sa[0]) } else { (sa[0], sa[1]) };
    let (inner, n) = if transpose_b { (sb[1], sb[0]) } else { (sb[0], sb[1]) };
    assert_eq!(k, inner, "matmul: the inner extents differ: {sa} ({transpose_a}) and {sb} ({transpose_b})");
    [m, k, n]
}

#[cfg(test)]
mod tests {
    use resflow_backend::{Key, Noise};

    use super::*;
    use crate::adapter::AdapterChoice;
    use crate::options::WgpuOptions;

    /// What is multiplied: operands with their further parameters, m, k and n, and the shapes of A and B.
    fn cases() -> Vec<(Operands, Vec<u32>, [usize; 3], [Shape; 2])> {
        let mut all = Vec::new();
        for (ta, tb, [m, k, n]) in [
            (false, false, [70, 150, 3]),
            (false, true, [2, 333, 70]),
            (true, false, [75, 600, 4]),
            (true, true, [1, 40, 45]),
            (true, false, [1, 90, 45]),
            (false, false, [65, 100, 33]),
            (true, false, [40, 300, 130]),
        ] {
            let a = if ta { [k, m] } else { [m, k] };
            let b = if tb { [n, k] } else { [k, n] };
            all.push((Operands::Matrices(ta, tb), Vec::new(), [m, k, n], [a.into(), b.into()]));
        }
        // images of 5 × 6 and kernels of 3 × 3, padded to the same size
        for [c, out] in [[1, 40], [40, 1], [7, 33]] {
            let own: Vec<u32> = [c, 5, 6, out, 5, 6, 1, 1].into_iter().map(|v| v as u32).collect();
            let [x, gy]: [Shape; 2] = [[2, 5, 6, c].into(), [2, 5, 6, out].into()];
            let kernel: Shape = [out, 3, 3, c].into();
            all.push((Operands::Convolution([3, 3]), own.clone(), [60, 9 * c, out], [x, kernel]));
            all.push((Operands::Images([3, 3]), own.clone(), [60, 9 * out, c], [gy, kernel]));
            all.push((Operands::Kernel([3, 3]), own, [out, 60, 9 * c], [gy, x]));
        }
        all
    }

    /// Which tile a product gets depends on the adapter, and a software adapter, which most tests run on, has its own: here
    /// every tile in single precision, in one slice and in several, against the plainest.
    #[test]
    fn every_tile_and_any_slices_agree() {
        let Ok(gpu) = Gpu::open(&WgpuOptions { adapter: AdapterChoice::from_env(), ..WgpuOptions::default() }) else {
            assert!(std::env::var("RESFLOW_REQUIRE_GPU").is_err(), "no adapter");
            return eprintln!("SKIPPED, NOT TESTED: no adapter");
        };
        for (operands, own, [m, k, n], shapes) in cases() {
            let [a, b] = [(1, shapes[0]), (2, shapes[1])].map(|(key, s)| gpu.noise(Key::new(key), Noise::Normal, 0, s));
            let by = |tile, slices| {
                let nothing: (Epilogue, &[&Tensor]) = (Epilogue::Nothing, &[]);
                let product = gpu.divided(operands, [m, k, n], [&a, &b], nothing, &own, (tile, slices));
                gpu.download(&product[0]).expect("the device is sound")
            };
            let plain = by(Tile::Thread, 1);
            let mut tiles = vec![Tile::LARGE, Tile::MEDIUM, Tile::DEEP, Tile::SMALL];
            tiles.extend(Lanes::of(operands, m, n).map(Tile::Lanes));
            for (tile, slices) in tiles.into_iter().flat_map(|tile| [1, 2, 5].map(|slices| (tile, slices))) {
                for (got, want) in by(tile, slices).into_iter().zip(&plain) {
                    let close = (got - want).abs() <= 2e-6 * k as f32;
                    assert!(close, "{operands:?}, {tile:?} in {slices} slices, {m}×{k}×{n}: {got}, not {want}");
                }
            }
        }
    }
}
