//! Tiles of rows in workgroup memory, and the text of what happens to them.
//!
//! A thread owns the same elements of a tile in every step: `part * J + j` are its rows and `lane + 64 i` its columns. So only
//! products, which read whole rows, need barriers.

use std::fmt::Write as _;

use crate::kernel::{Groups, WORKGROUP, groups};

/// Threads side by side along a row, and the parts of a tile's rows.
pub(super) const LANES: usize = 64;
pub(super) const PARTS: usize = WORKGROUP as usize / LANES;
/// Bytes of workgroup memory for tiles: half of what every device has.
const BYTES: usize = 8 << 10;
/// Rows above which tiles are high, since then there is work for all; lower ones end sooner.
const MANY: usize = 4096;

/// The extents of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Tile {
    /// The tiles for `count` rows of at most `widest` numbers, of which a workgroup keeps `tiles`.
    pub(super) fn of(widest: usize, tiles: usize, count: usize) -> Self {
        let width = widest.next_power_of_two().max(LANES);
        let most = (BYTES / (4 * width * tiles)).min(if count < MANY { 8 } else { 16 });
        Self { rows: most.max(PARTS), width }
    }

    #[cfg(test)]
    pub(super) fn all(widest: usize, tiles: usize) -> Vec<Self> {
        let mut all = vec![Self::of(widest, tiles, 1), Self::of(widest, tiles, MANY)];
        all.dedup();
        all
    }

    /// Rows of a part.
    pub(super) fn share(self) -> usize {
        self.rows / PARTS
    }

    pub(super) fn bytes(self) -> u32 {
        4 * (self.rows * self.width) as u32
    }

    pub(super) fn groups(self, rows: usize) -> Groups {
        groups(rows, self.rows)
    }

    /// Declares tiles.
    pub(super) fn declare(self, names: &[&str]) -> String {
        let declare = |name: &&str| format!("var<workgroup> {name}: array<f32, {}>;\n", self.rows * self.width);
        names.iter().map(declare).collect()
    }

    /// The entry point: `base` is the first row of the tile.
    pub(super) fn main(self, statements: &str) -> String {
        format!(
            "@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.y * groups.x + group.x;
  let base = item * {}u;
  if (base >= p.n) {{ return; }}
  let lane = thread % {LANES}u;
  let part = thread / {LANES}u;
{statements}}}
",
            self.rows
        )
    }

    /// Runs `statements` for each element of a row of `width` numbers that the thread owns: at `at` of a tile, in column `c` of
    /// `row`, which is `inside` or, so that it may be read all the same, the last.
    pub(super) fn each(self, width: usize, statements: &str) -> String {
        format!(
            "  for (var j = 0u; j < {share}u; j = j + 1u) {{
    let r = part * {share}u + j;
    let inside = base + r < p.n;
    let row = min(base + r, p.n - 1u);
    for (var c = lane; c < {width}u; c = c + {LANES}u) {{
      let at = r * {tile}u + c;
{statements}
    }}
  }}
",
            share = self.share(),
            tile = self.width
        )
    }

    /// Multiplies tiles of `inputs` columns by a matrix `[inputs, outputs]` that begins at `begin` of the tensor `matrix`, in place:
    /// the tile of the name gets `finish(value)`, in which `c` is the column.
    pub(super) fn product(
        self,
        tiles: &[&str],
        [inputs, outputs]: [usize; 2],
        begin: &str,
        finish: &dyn Fn(&str) -> String,
    ) -> String {
        let columns = outputs.div_ceil(LANES);
        let mut text = format!("  workgroupBarrier();\n  {{\n    let begin = {begin};\n");
        for i in 0..columns {
            let _ = writeln!(text, "    let c{i} = min(lane + {}u, {}u);", i * LANES, outputs - 1);
        }
        for (t, _) in tiles.iter().enumerate() {
            for j in 0..self.share() {
                for i in 0..columns {
                    let _ = writeln!(text, "    var v{t}_{j}_{i} = 0.0;");
                }
            }
        }
        // four terms at a time: a thread waits for memory at each
        let terms = |count: usize| {
            let mut text = String::new();
            for i in 0..columns {
                for q in 0..count {
                    let _ = writeln!(text, "      let m{i}_{q} = matrix[begin + (k + {q}u) * {outputs}u + c{i}];");
                }
            }
            for (t, tile) in tiles.iter().enumerate() {
                for j in 0..self.share() {
                    let _ = writeln!(
                        text,
                        "      let x{t}_{j} = (part * {share}u + {j}u) * {width}u + k;",
                        share = self.share(),
                        width = self.width
                    );
                    for q in 0..count {
                        let _ = writeln!(text, "      let x{t}_{j}_{q} = {tile}[x{t}_{j} + {q}u];");
                        for i in 0..columns {
                            let _ = writeln!(text, "      v{t}_{j}_{i} = fma(x{t}_{j}_{q}, m{i}_{q}, v{t}_{j}_{i});");
                        }
                    }
                }
            }
            text
        };
        let whole = inputs / 4 * 4;
        if whole > 0 {
            let _ = writeln!(text, "    for (var k = 0u; k < {whole}u; k = k + 4u) {{\n{}    }}", terms(4));
        }
        if inputs > whole {
            let _ = writeln!(text, "    {{\n      let k = {whole}u;\n{}    }}", terms(inputs - whole));
        }
        text.push_str("    workgroupBarrier();\n");
        for i in 0..columns {
            let _ = writeln!(text, "    if (lane + {}u < {outputs}u) {{\n      let c = c{i};", i * LANES);
            for (t, tile) in tiles.iter().enumerate() {
                for j in 0..self.share() {
                    let _ = writeln!(
                        text,
                        "      {tile}[(part * {share}u + {j}u) * {width}u + c] = {};",
                        finish(&format!("v{t}_{j}_{i}")),
                        share = self.share(),
                        width = self.width
                    );
                }
            }
            text.push_str("    }\n");
        }
        text.push_str("  }\n");
        text
    }
}
