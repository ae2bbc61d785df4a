//! The engine of products: tiles of the result, kept in registers, from tiles of the operands in workgroup memory.

use std::fmt::Write as _;

use super::operands::Operands;
use crate::cooperative::{self, CooperativeTile, Split};
use crate::kernel::{Groups, WORKGROUP, groups};

/// How the result is divided among workgroups and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tile {
    /// A thread for each element: for few terms.
    Thread,
    /// For results with few rows or columns: the terms of a line, a column or a row, are shared among threads.
    Lanes(Lanes),
    /// Tiles of rows × columns a workgroup, and of rows × columns (both a multiple of 4) a thread; `depth` terms at a time.
    Registers { rows: u16, columns: u16, depth: u16, own: [u16; 2] },
    /// On matrix hardware.
    Cooperative(CooperativeTile, Split),
}

/// Threads of a workgroup of [`Tile::Thread`].
const THREADS: usize = 64;

/// How the terms of each line of a narrow result are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lanes {
    /// Whether a line is a row, and the result has few columns; else a line is a column.
    pub(super) rows: bool,
    /// Whether consecutive terms of a line lie next to each other in memory, so that neighbouring threads take neighbouring
    /// terms of one line; else they take one term of neighbouring lines.
    pub(super) consecutive_k: bool,
}

impl Lanes {
    /// Threads of a workgroup.
    const THREADS: u32 = WORKGROUP;
    /// The most elements of a line.
    pub(super) const NARROW: usize = 4;

    /// What suits a result of m × n, if it is narrow.
    pub(super) fn of(operands: Operands, m: usize, n: usize) -> Option<Self> {
        let (rows, consecutive) = (n <= m, operands.consecutive_k());
        (m.min(n) <= Self::NARROW).then(|| Self { rows, consecutive_k: consecutive[usize::from(!rows)] })
    }

    /// Threads that share a line.
    fn shared_by(self) -> u32 {
        if self.consecutive_k { 32 } else { 8 }
    }

    /// Lines of a workgroup.
    fn lines(self) -> u32 {
        Self::THREADS / self.shared_by()
    }

    fn text(self) -> (String, u32) {
        let (lanes, lines, threads) = (self.shared_by(), self.lines(), Self::THREADS);
        // a thread's line in the workgroup, its place among those that share it, and how far the next of them is
        let [line, lane, next] = if self.consecutive_k {
            [format!("thread / {lanes}u"), format!("thread % {lanes}u"), "1u".to_owned()]
        } else {
            [format!("thread % {lines}u"), format!("thread / {lines}u"), format!("{lines}u")]
        };
        // what is loaded once a term, and the elements of a line
        let [extent, across, known, long, narrow, terms, at] = if self.rows {
            ["m", "n", "row_a", "fetch_a(known, k)", "column_b", "fetch_b(k, NARROW)", "line, lane"]
        } else {
            ["n", "m", "column_b", "fetch_b(k, known)", "row_a", "fetch_a(NARROW, k)", "lane, line"]
        };
        let narrows: Vec<String> = (0..Self::NARROW).map(|i| format!("  let narrow{i} = {narrow}({i}u);\n")).collect();
        let fetched: Vec<String> = (0..Self::NARROW).map(|i| terms.replace("NARROW", &format!("narrow{i}"))).collect();
        let text = format!(
            "var<workgroup> lanes: array<vec4<f32>, {threads}>;
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let first = (group.y * groups.x + group.x) * {lines}u;
  if (first >= p.{extent}) {{ return; }}
  let line = first + {line};
  let lane = {lane};
  let known = {known}(line);
{}  let end = min(p.k, (group.z + 1u) * p.k_slice);
  var value = vec4<f32>(0.0);
  for (var k = group.z * p.k_slice + lane; k < end; k = k + {lanes}u) {{
    value = fma(vec4<f32>({long}), vec4<f32>({}), value);
  }}
  lanes[thread] = value;
  workgroupBarrier();
  for (var half = {}u; half > 0u; half = half / 2u) {{
    if (lane < half) {{ lanes[thread] = lanes[thread] + lanes[thread + half * {next}]; }}
    workgroupBarrier();
  }}
  if (lane < p.{across}) {{
    let total = lanes[thread - lane * {next}];
    store({at}, group.z, total[lane]);
  }}
}}
",
            narrows.concat(),
            fetched.join(", "),
            lanes / 2,
        );
        (text, 16 * threads)
    }
}

impl Tile {
    pub(super) const LARGE: Self = Self::Registers { rows: 128, columns: 128, depth: 8, own: [8, 8] };
    pub(super) const MEDIUM: Self = Self::Registers { rows: 64, columns: 64, depth: 16, own: [4, 4] };
    /// For a device that is not filled by larger tiles, and waits for memory longer than it computes a step.
    pub(super) const DEEP: Self = Self::Registers { rows: 32, columns: 32, depth: 32, own: [4, 4] };
    pub(super) const SMALL: Self = Self::Registers { rows: 32, columns: 32, depth: 16, own: [4, 4] };

    #[cfg(test)]
    pub(super) fn all(operands: Operands) -> Vec<Self> {
        let mut all = vec![Self::Thread, Self::LARGE, Self::MEDIUM, Self::DEEP, Self::SMALL];
        all.extend([(1000, 1), (1, 1000)].map(|(m, n)| Self::Lanes(Lanes::of(operands, m, n).expect("it is narrow"))));
        let [a, b] = operands.consecutive_k();
        for (tile, split) in cooperative::everywhere() {
            all.push(Self::Cooperative(CooperativeTile { transposed: [!a, b], ..tile }, split));
        }
        all
    }

    /// The number of workgroups for a result of m × n.
    pub(super) fn count(self, m: usize, n: usize) -> usize {
        match self {
            Self::Thread => (m * n).div_ceil(THREADS),
            Self::Lanes(lanes) => (if lanes.rows { m } else { n }).div_ceil(lanes.lines() as usize),
            Self::Registers { rows, columns, .. } => m.div_ceil(rows.into()) * n.div_ceil(columns.into()),
            Self::Cooperative(tile, _) => m.div_ceil(tile.rows as usize) * n.div_ceil(tile.columns as usize),
        }
    }

    /// What slices of k must be a multiple of: no step goes beyond its slice.
    pub(super) fn depth(self) -> usize {
        match self {
            Self::Thread | Self::Lanes(_) => 16,
            Self::Registers { depth, .. } => usize::from(depth).max(16),
            Self::Cooperative(tile, _) => (tile.depth as usize).max(16),
        }
    }

    /// The grid of workgroups for a result of m × n.
    pub(super) fn groups(self, m: usize, n: usize) -> Groups {
        match self {
            Self::Cooperative(tile, _) => [(n as u32).div_ceil(tile.columns), (m as u32).div_ceil(tile.rows), 1],
            _ => groups(self.count(m, n), 1),
        }
    }

    /// The entry point, its directives, and the bytes of workgroup memory.
    pub(super) fn text(self, operands: Operands) -> (String, &'static str, u32) {
        match self {
            Self::Thread => (thread(), "", 0),
            Self::Lanes(lanes) => {
                let (text, shared) = lanes.text();
                (text, "", shared)
            }
            Self::Registers { rows, columns, depth, own } => {
                let shape = [rows, columns, depth, own[0], own[1]].map(u32::from);
                let (text, shared) = registers(shape, operands.consecutive_k());
                (text, "", shared)
            }
            Self::Cooperative(tile, split) => {
                (cooperative::main_text(&tile, split), cooperative::ENABLES, tile.shared_bytes(split))
            }
        }
    }
}

fn thread() -> String {
    format!(
        "@compute @workgroup_size({THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let i = (group.y * groups.x + group.x) * {THREADS}u + thread;
  if (i >= p.m * p.n) {{ return; }}
  let row = row_a(i / p.n);
  let column = column_b(i % p.n);
  let begin = group.z * p.k_slice;
  let end = min(p.k, begin + p.k_slice);
  var value = 0.0;
  for (var k = begin; k < end; k = k + 1u) {{ value = fma(fetch_a(row, k), fetch_b(k, column), value); }}
  store(i / p.n, i % p.n, group.z, value);
}}
"
    )
}

/// The loads of one operand's tile of `extent` rows or columns: the declarations before the loop over k, and the statements
/// in it. Vector g of a step of k holds lines 4g to 4g + 3 and is stored by one thread, whole: writes of single components
/// may touch the others. Thread `thread` makes the vectors thread, thread + threads, …; neighbours in memory go to
/// neighbouring threads.
fn loads(name: char, extent: u32, depth: u32, threads: u32, consecutive_k: bool) -> (String, String) {
    let [known, fetch] = match name {
        'a' => ["row_a(m0 + ", "fetch_a(LINE, k0 + q)"],
        _ => ["column_b(n0 + ", "fetch_b(k0 + q, LINE)"],
    };
    let groups = extent / 4;
    // one vector of padding a step of k keeps the stores of a warp off the same bank
    let stride = groups + 1;
    let (mut before, mut inside) = (String::new(), String::new());
    for slot in 0..(groups * depth).div_ceil(threads) {
        let vector = format!("(thread + {}u)", slot * threads);
        let [group, q] = if consecutive_k {
            [format!("{vector} / {depth}u"), format!("{vector} % {depth}u")]
        } else {
            [format!("{vector} % {groups}u"), format!("{vector} / {groups}u")]
        };
        let _ = writeln!(before, "  let {name}_group{slot} = {group};\n  let {name}_q{slot} = {q};");
        for line in 0..4 {
            let _ = writeln!(before, "  let {name}_{slot}_{line} = {known}{name}_group{slot} * 4u + {line}u);");
        }
        let lines = [0, 1, 2, 3].map(|line| fetch.replace("LINE", &format!("{name}_{slot}_{line}"))).join(", ");
        let guard =
            if (groups * depth).is_multiple_of(threads) { String::new() } else { format!("if (q < {depth}u) ") };
        let _ = writeln!(
            inside,
            "    {{ let q = {name}_q{slot}; \
             {guard}{{ tile_{name}[q * {stride}u + {name}_group{slot}] = vec4<f32>({lines}); }} }}"
        );
    }
    (before, inside)
}

fn registers([rows, columns, depth, own_rows, own_columns]: [u32; 5], consecutive_k: [bool; 2]) -> (String, u32) {
    let (across, down) = (columns / own_columns, rows / own_rows);
    let threads = across * down;
    let [stride_a, stride_b] = [rows, columns].map(|extent| extent / 4 + 1);
    let (before_a, inside_a) = loads('a', rows, depth, threads, consecutive_k[0]);
    let (before_b, inside_b) = loads('b', columns, depth, threads, consecutive_k[1]);
    let [size_a, size_b] = [stride_a * depth, stride_b * depth];
    let mut text = format!(
        "var<workgroup> tile_a: array<vec4<f32>, {size_a}>;
var<workgroup> tile_b: array<vec4<f32>, {size_b}>;
fn store4(m: u32, n: u32, slice: u32, value: vec4<f32>) {{
  for (var c = 0u; c < 4u; c = c + 1u) {{ store(m, n + c, slice, value[c]); }}
}}
@compute @workgroup_size({threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let tiles = (p.n + {columns}u - 1u) / {columns}u;
  let tile = group.y * groups.x + group.x;
  let m0 = (tile / tiles) * {rows}u;
  let n0 = (tile % tiles) * {columns}u;
  if (m0 >= p.m) {{ return; }}
  let tx = thread % {across}u;
  let ty = thread / {across}u;
{before_a}{before_b}"
    );
    for i in 0..own_rows {
        for j in 0..own_columns / 4 {
            let _ = write!(text, "  var c{i}_{j} = vec4<f32>(0.0);");
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "  let end = min(p.k, (group.z + 1u) * p.k_slice);
  for (var k0 = group.z * p.k_slice; k0 < end; k0 = k0 + {depth}u) {{
{inside_a}{inside_b}    workgroupBarrier();
"
    );
    // unrolled here: drivers do not unroll what the compiler makes of a loop
    for q in 0..depth {
        text.push_str("    {");
        for i in 0..own_rows / 4 {
            let _ = write!(text, " let a{i} = tile_a[{}u + ty];", q * stride_a + i * down);
        }
        for j in 0..own_columns / 4 {
            let _ = write!(text, " let b{j} = tile_b[{}u + tx];", q * stride_b + j * across);
        }
        for i in 0..own_rows {
            let a = format!("a{}.{}", i / 4, ["x", "y", "z", "w"][(i % 4) as usize]);
            for j in 0..own_columns / 4 {
                let _ = write!(text, " c{i}_{j} = fma(vec4<f32>({a}), b{j}, c{i}_{j});");
            }
        }
        text.push_str(" }\n");
    }
    text.push_str("    workgroupBarrier();\n  }\n");
    for i in 0..own_rows {
        for j in 0..own_columns / 4 {
            let m = format!("m0 + (ty + {}u) * 4u + {}u", i / 4 * down, i % 4);
            let _ = writeln!(text, "  store4({m}, n0 + (tx + {}u) * 4u, group.z, c{i}_{j});", j * across);
        }
    }
    text.push_str("}\n");
    (text, 16 * (size_a + size_b))
}
