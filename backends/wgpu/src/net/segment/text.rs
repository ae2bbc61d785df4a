//! The text of what happens to a tile of pixels: loads, products over the taps of a kernel, and functions.
//!
//! A thread owns the same elements of a tile in every step, as in [`tile`](super::super::tile). A product at the begin of a
//! segment brings what it multiplies into the tile piece by piece, so that patches are as long as they like. Weights are
//! `[outputs, taps, inputs]` of the layer; where neighbouring threads would read them far apart, they go through workgroup
//! memory. Results of few columns are made by all threads of a row, which share the terms and add up in a fixed tree.

use std::fmt::Write as _;

use super::super::tile::{LANES, PARTS, Tile};
use super::{Segment, Step, WIDEST};
use crate::kernel::WORKGROUP;

/// The most columns of a result whose terms the threads of a row share.
const NARROW: usize = 16;
/// Weights that go through workgroup memory at a time.
const STAGED: usize = 1024;

/// What kernels are told first.
pub(super) const PARAMS: [&str; 3] = ["n: u32", "h: u32", "w: u32"];

/// A product in a segment.
struct Product {
    kernel: [usize; 2],
    inputs: usize,
    outputs: usize,
    back: bool,
}

impl Product {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Terms of an element of the result.
    fn terms(&self) -> usize {
        self.taps() * self.inputs
    }

    fn is_narrow(&self) -> bool {
        self.outputs <= NARROW
    }

    /// Terms whose weights are in workgroup memory at a time; 0 where threads read them as they lie.
    fn staged(&self) -> usize {
        if self.back || self.is_narrow() {
            return 0;
        }
        (STAGED / self.outputs.min(WIDEST).next_power_of_two()).clamp(4, 16)
    }

    /// Numbers of workgroup memory besides the tile.
    fn scratch(&self, tile: Tile) -> usize {
        match self.staged() {
            0 if self.is_narrow() => WORKGROUP as usize * tile.share(),
            terms => terms * (self.outputs.min(WIDEST) + 1),
        }
    }

    /// Where the weight of a term and a column lies.
    fn place(&self, term: &str, column: &str) -> String {
        let (taps, inputs, outputs) = (self.taps(), self.inputs, self.outputs);
        match self.back {
            false => format!("{column} * {}u + {term}", self.terms()),
            true if taps == 1 => format!("({term}) * {outputs}u + {column}"),
            true => {
                format!("((({term}) % {inputs}u) * {taps}u + ({term}) / {inputs}u) * {outputs}u + {column}")
            }
        }
    }
}

impl Segment {
    fn product(&self, number: usize) -> Product {
        let products = self.placed().into_iter().filter_map(|p| match p.step {
            Step::Product { kernel, .. } => {
                Some(Product { kernel: kernel.map(usize::from), inputs: p.inputs, outputs: p.outputs, back: self.back })
            }
            _ => None,
        });
        products.collect::<Vec<_>>().swap_remove(number)
    }

    /// Numbers of workgroup memory besides tiles.
    fn scratch(&self, tile: Tile) -> usize {
        (0..self.products()).map(|number| self.product(number).scratch(tile)).max().unwrap_or(0)
    }

    /// Declarations of tiles, and their bytes with all that belongs to products.
    pub(super) fn declare(&self, tile: Tile, names: &[&str]) -> (String, u32) {
        let (mut text, mut bytes) = (tile.declare(names), names.len() as u32 * tile.bytes());
        let scratch = self.scratch(tile);
        if scratch > 0 {
            let _ = writeln!(text, "var<workgroup> scratch: array<f32, {scratch}>;");
            bytes += 4 * scratch as u32;
        }
        (text, bytes)
    }

    /// The entry point: `base` is the first pixel of the tile, `before` the number of columns before those of the workgroup.
    pub(super) fn main(&self, tile: Tile, statements: &str) -> String {
        let blocks = self.blocks();
        format!(
            "@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.y * groups.x + group.x;
  let base = item / {blocks}u * {}u;
  let before = item % {blocks}u * {WIDEST}u;
  if (base >= p.n) {{ return; }}
  let lane = thread % {LANES}u;
  let part = thread / {LANES}u;
{statements}}}
",
            tile.rows
        )
    }

    /// Runs `statements` for each element of a pixel of `width` numbers that the thread owns: at `at` of a tile, in column `c` of
    /// pixel `row`, which is `inside` or, so that it may be read all the same, the last.
    pub(super) fn each(&self, tile: Tile, width: usize, statements: &str) -> String {
        let (open, close) =
            if self.blocks() > 1 { (format!("if (c < {width}u) {{\n"), "\n      }") } else { (String::new(), "") };
        format!(
            "  for (var j = 0u; j < {share}u; j = j + 1u) {{
    let r = part * {share}u + j;
    let inside = base + r < p.n;
    let row = min(base + r, p.n - 1u);
    for (var local = lane; local < {span}u; local = local + {LANES}u) {{
      let c = before + local;
      let at = r * {tile}u + local;
      {open}{statements}{close}
    }}
  }}
",
            share = tile.share(),
            span = width.min(WIDEST),
            tile = tile.width
        )
    }

    /// What enters, unless a product takes it itself; `sources` are the tensors with a place for each tile.
    pub(super) fn load(&self, tile: Tile, tiles: &[&str], sources: &[&str]) -> String {
        if self.begins_with_product() {
            return String::new();
        }
        let width = self.width;
        let load = |(tile, source): (&&str, &&str)| format!("      {tile}[at] = {source} + row * {width}u + c];\n");
        self.each(tile, width.into(), &tiles.iter().zip(sources).map(load).collect::<String>())
    }

    /// Product `number` of the tiles, in place: the first of a segment takes what enters, `sources`. The tile of a name gets
    /// `finish(value)`, in which `c` is the column. Sources are like `x[p.x`, to be closed by a place.
    pub(super) fn multiply(
        &self,
        tile: Tile,
        tiles: &[&str],
        sources: &[&str],
        number: usize,
        finish: &dyn Fn(&str) -> String,
    ) -> String {
        let product = self.product(number);
        let leads = number == 0 && self.begins_with_product();
        let (columns, share) = (product.outputs.min(WIDEST).div_ceil(LANES), tile.share());
        let columns = if product.is_narrow() { 1 } else { columns };
        let mut text = format!("  workgroupBarrier();\n  {{\n    let begin = p.matrix + p.m{number};\n");
        if product.is_narrow() {
            let lanes = product.outputs.next_power_of_two();
            let _ = writeln!(
                text,
                "    let share = lane / {lanes}u;\n    let c0 = min(lane % {lanes}u, {}u);",
                product.outputs - 1
            );
        } else {
            for i in 0..columns {
                let _ = writeln!(text, "    let c{i} = min(before + lane + {}u, {}u);", i * LANES, product.outputs - 1);
            }
        }
        for t in 0..tiles.len() {
            for j in 0..share {
                for i in 0..columns {
                    let _ = writeln!(text, "    var v{t}_{j}_{i} = 0.0;");
                }
            }
        }
        let terms = self.terms(tile, tiles, &product, columns);
        if leads {
            let _ = write!(
                text,
                "    for (var first = 0u; first < {all}u; first = first + {width}u) {{
    let count = min({width}u, {all}u - first);
    workgroupBarrier();
{}    workgroupBarrier();
{terms}    }}
",
                patches(tile, tiles, sources, &product),
                all = product.terms(),
                width = tile.width,
            );
        } else {
            let _ = write!(text, "    let first = 0u;\n    let count = {}u;\n{terms}", product.inputs);
        }
        text.push_str("    workgroupBarrier();\n");
        text += &if product.is_narrow() {
            narrow_results(tile, tiles, &product, finish)
        } else {
            Self::results(tile, tiles, &product, columns, finish)
        };
        text + "  }\n"
    }

    /// The terms `first..first + count`, of which tiles have the left factors.
    fn terms(&self, tile: Tile, tiles: &[&str], product: &Product, columns: usize) -> String {
        let (share, width) = (tile.share(), tile.width);
        let staged = product.staged();
        let count = |terms: usize| {
            let mut text = String::new();
            for i in 0..columns {
                for q in 0..terms {
                    let weight = if staged > 0 {
                        let stride = product.outputs.min(WIDEST) + 1;
                        format!("scratch[(k - low + {q}u) * {stride}u + c{i} - before]")
                    } else {
                        format!("matrix[begin + {}]", product.place(&format!("first + k + {q}u"), &format!("c{i}")))
                    };
                    let _ = writeln!(text, "      let m{i}_{q} = {weight};");
                }
            }
            for (t, tile) in tiles.iter().enumerate() {
                for j in 0..share {
                    let _ = writeln!(text, "      let x{t}_{j} = (part * {share}u + {j}u) * {width}u + k;");
                    for q in 0..terms {
                        let _ = writeln!(text, "      let x{t}_{j}_{q} = {tile}[x{t}_{j} + {q}u];");
                        for i in 0..columns {
                            let _ = writeln!(text, "      v{t}_{j}_{i} = fma(x{t}_{j}_{q}, m{i}_{q}, v{t}_{j}_{i});");
                        }
                    }
                }
            }
            text
        };
        if product.is_narrow() {
            let step = LANES / product.outputs.next_power_of_two();
            return format!("    for (var k = share; k < count; k = k + {step}u) {{\n{}    }}\n", count(1));
        }
        // four terms at a time: a thread waits for memory at each
        let inner = format!(
            "    let whole = low + (high - low) / 4u * 4u;
    for (var k = low; k < whole; k = k + 4u) {{\n{}    }}
    for (var k = whole; k < high; k = k + 1u) {{\n{}    }}\n",
            count(4),
            count(1)
        );
        if staged == 0 {
            return format!("    let low = 0u;\n    let high = count;\n{inner}");
        }
        let span = product.outputs.min(WIDEST);
        let guard = if self.blocks() > 1 { format!(" && before + o < {}u", product.outputs) } else { String::new() };
        format!(
            "    for (var low = 0u; low < count; low = low + {staged}u) {{
    let high = min(low + {staged}u, count);
    workgroupBarrier();
    for (var s = thread; s < {all}u; s = s + {WORKGROUP}u) {{
      let q = s % {staged}u;
      let o = s / {staged}u;
      var m = 0.0;
      if (low + q < count{guard}) {{ m = matrix[begin + {}]; }}
      scratch[q * {stride}u + o] = m;
    }}
    workgroupBarrier();
{inner}    }}
",
            product.place("first + low + q", "(before + o)"),
            all = staged * span,
            stride = span + 1,
        )
    }

    /// The tiles get the results.
    fn results(
        tile: Tile,
        tiles: &[&str],
        product: &Product,
        columns: usize,
        finish: &dyn Fn(&str) -> String,
    ) -> String {
        let (share, width) = (tile.share(), tile.width);
        let mut text = String::new();
        for i in 0..columns {
            let column = i * LANES;
            let _ = writeln!(text, "    if (before + lane + {column}u < {}u) {{\n      let c = c{i};", product.outputs);
            for (t, tile) in tiles.iter().enumerate() {
                for j in 0..share {
                    let value = finish(&format!("v{t}_{j}_{i}"));
                    let _ = writeln!(
                        text,
                        "      {tile}[(part * {share}u + {j}u) * {width}u + lane + {column}u] = {value};"
                    );
                }
            }
            text.push_str("    }\n");
        }
        text
    }
}

/// Brings the factors of terms `first..first + count` of each pixel into the tiles: what lies under the taps of the kernel, 0
/// outside of the image.
fn patches(tile: Tile, tiles: &[&str], sources: &[&str], product: &Product) -> String {
    let ([kh, kw], inputs) = (product.kernel, product.inputs);
    let [ph, pw] = [kh / 2, kw / 2];
    let each = |name: &str| {
        let load =
            |(tile, source): (&&str, &&str)| format!("        {tile}[at] = {};\n", name.replace("SOURCE", source));
        tiles.iter().zip(sources).map(load).collect::<String>()
    };
    // outside on the low side wraps around to very large
    let statements = if product.taps() == 1 {
        each(&format!("SOURCE + row * {inputs}u + first + c]"))
    } else {
        let (y, x, from) = if product.back {
            let y = format!("py + {ph}u - tap / {kw}u");
            let x = format!("px + {pw}u - tap % {kw}u");
            (y, x, format!("row + {ph}u * p.w + {pw}u - tap / {kw}u * p.w - tap % {kw}u"))
        } else {
            let y = format!("py + tap / {kw}u - {ph}u");
            let x = format!("px + tap % {kw}u - {pw}u");
            (y, x, format!("row + tap / {kw}u * p.w + tap % {kw}u - {ph}u * p.w - {pw}u"))
        };
        let zeros = tiles.iter().map(|tile| ["          ", *tile, "[at] = 0.0;\n"].concat()).collect::<String>();
        format!(
            "        let tap = (first + c) / {inputs}u;
        let e = first + c - tap * {inputs}u;
        if ({y} < p.h && {x} < p.w) {{
          let place = ({from}) * {inputs}u + e;
{}        }} else {{
{zeros}        }}
",
            each("SOURCE + place]")
        )
    };
    format!(
        "    for (var j = 0u; j < {share}u; j = j + 1u) {{
      let r = part * {share}u + j;
      let row = min(base + r, p.n - 1u);
      let py = (row / p.w) % p.h;
      let px = row % p.w;
      for (var c = lane; c < count; c = c + {LANES}u) {{
        let at = r * {width}u + c;
{statements}      }}
    }}
",
        share = tile.share(),
        width = tile.width
    )
}

/// Adds the threads' shares of narrow results, in a fixed tree, for one tile after the other.
fn narrow_results(tile: Tile, tiles: &[&str], product: &Product, finish: &dyn Fn(&str) -> String) -> String {
    let (share, width, lanes) = (tile.share(), tile.width, product.outputs.next_power_of_two());
    let mut text = String::new();
    for (t, tile) in tiles.iter().enumerate() {
        for j in 0..share {
            let _ = writeln!(text, "    scratch[{}u + thread] = v{t}_{j}_0;", j * WORKGROUP as usize);
        }
        text.push_str("    workgroupBarrier();\n");
        let mut stride = LANES / 2;
        while stride >= lanes {
            let _ = writeln!(text, "    if (lane < {stride}u) {{");
            for j in 0..share {
                let at = format!("{}u + thread", j * WORKGROUP as usize);
                let _ = writeln!(text, "      scratch[{at}] = scratch[{at}] + scratch[{at} + {stride}u];");
            }
            text.push_str("    }\n    workgroupBarrier();\n");
            stride /= 2;
        }
        let _ = writeln!(text, "    if (lane < {}u) {{\n      let c = lane;", product.outputs);
        for j in 0..share {
            let value = finish(&format!("scratch[{}u + thread]", j * WORKGROUP as usize));
            let _ = writeln!(text, "      {tile}[(part * {share}u + {j}u) * {width}u + c] = {value};");
        }
        text.push_str("    }\n    workgroupBarrier();\n");
    }
    debug_assert!(PARTS * LANES == WORKGROUP as usize);
    text
}
