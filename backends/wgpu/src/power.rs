//! Power iteration on a matrix by one workgroup, without leaving it: u and v stay in its memory.

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, TURNS, WORKGROUP, each_group, tree};
use crate::tensor::Tensor;

/// The most rows or columns of a matrix.
const LARGEST: usize = 1024;
/// The most numbers of a matrix: one workgroup takes too long over larger ones.
const NUMBERS: usize = 1 << 18;

/// Threads that share a line, and lines at a time.
const LANES: u32 = 8;
const LINES: u32 = WORKGROUP / LANES;

/// What is shorter is not divided by its length: `composed::least_length::<f32>()`.
pub(crate) const LEAST: f32 = 3.140_184_9e-16;

/// The kernel of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Power;

impl Kernel for Power {
    fn source(&self) -> Source {
        source()
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self]
    }
}

pub(crate) fn source() -> Source {
    // each thread owns every 256th entry of a vector; `norm` also lets all threads see what all have written
    let normalised = |name: &str, extent: &str| {
        format!(
            "    squares = 0.0;
    for (var i = thread; i < p.{extent}; i = i + {WORKGROUP}u) {{ squares = fma(fresh[i], fresh[i], squares); }}
    norm = sqrt(combined(thread, squares));
    if (norm >= {LEAST:e} && is_finite(norm)) {{
      for (var i = thread; i < p.{extent}; i = i + {WORKGROUP}u) {{ {name}[i] = fresh[i] / norm; }}
    }}
    workgroupBarrier();
"
        )
    };
    let main = each_group(
        WORKGROUP,
        &format!(
            "  for (var r = thread; r < p.rows; r = r + {WORKGROUP}u) {{ left[r] = u[p.u + r]; }}
  for (var c = thread; c < p.columns; c = c + {WORKGROUP}u) {{ right[c] = v[p.v + c]; }}
  workgroupBarrier();
  var squares = 0.0;
  var norm = 0.0;
  for (var step = 0u; step < p.count; step = step + 1u) {{
    transposed(thread);
{}    product(thread);
{}  }}
  product(thread);
  var share = 0.0;
  for (var r = thread; r < p.rows; r = r + {WORKGROUP}u) {{
    share = fma(left[r], fresh[r], share);
    u_after[r] = left[r];
  }}
  for (var c = thread; c < p.columns; c = c + {WORKGROUP}u) {{ v_after[c] = right[c]; }}
  let total = combined(thread, share);
  if (thread == 0u) {{ sigma[0] = total; }}",
            normalised("right", "columns"),
            normalised("left", "rows"),
        ),
    );
    let functions = format!(
        "var<workgroup> left: array<f32, {LARGEST}>;
var<workgroup> right: array<f32, {LARGEST}>;
var<workgroup> fresh: array<f32, {LARGEST}>;
var<workgroup> shares: array<f32, {WORKGROUP}>;
{}{}",
        // neighbouring threads load neighbours: some of a row, or a row of some columns
        applied(
            "product",
            ["rows", "columns"],
            "right",
            [format!("thread / {LANES}u"), format!("thread % {LANES}u")],
            1
        ),
        applied(
            "transposed",
            ["columns", "rows"],
            "left",
            [format!("thread % {LINES}u"), format!("thread / {LINES}u")],
            LINES
        ),
    );
    Source {
        reads: vec!["w", "u", "v"],
        writes: vec!["u_after", "v_after", "sigma"],
        params: vec!["n: u32", "rows: u32", "columns: u32", "count: u32"],
        body: functions + &tree("combined", "parts", "f32", WORKGROUP, "a + b") + &main,
        shared: 4 * (3 * LARGEST as u32 + 2 * WORKGROUP),
        ..Source::default()
    }
}

/// The function that sets `fresh` to the product of W or of its transpose, of `[lines, terms]`, and `vector`. Threads
/// number `[line, lane]` share a line, and the shares of a line lie `apart`. Four terms at a time: a thread waits for memory
/// at each.
fn applied(name: &str, [lines, terms]: [&str; 2], vector: &str, [line, lane]: [String; 2], apart: u32) -> String {
    let at = |k: &str| {
        let [r, c] = if name == "product" { ["line", k] } else { [k, "line"] };
        format!("w[p.w + {r} * p.columns + {c}]")
    };
    let four = |make: &dyn Fn(String) -> String| [0, 1, 2, 3].map(|i| make(format!("(k + {}u)", i * LANES))).join(", ");
    format!(
        "fn {name}(thread: u32) {{
  let lane = {lane};
  for (var first = 0u; first < p.{lines}; first = first + {LINES}u) {{
    let line = first + {line};
    var sum = 0.0;
    if (line < p.{lines}) {{
      var four = vec4<f32>(0.0);
      var k = lane;
      for (; k + {}u < p.{terms}; k = k + {}u) {{
        four = fma(vec4<f32>({}), vec4<f32>({}), four);
      }}
      for (; k < p.{terms}; k = k + {LANES}u) {{ four.x = fma({}, {vector}[k], four.x); }}
      sum = (four.x + four.y) + (four.z + four.w);
    }}
    shares[thread] = sum;
    workgroupBarrier();
    if (lane == 0u && line < p.{lines}) {{
      for (var i = 1u; i < {LANES}u; i = i + 1u) {{ sum = sum + shares[thread + i * {apart}u]; }}
      fresh[line] = sum;
    }}
    workgroupBarrier();
  }}
}}
",
        3 * LANES,
        4 * LANES,
        four(&|k| at(&k)),
        four(&|k| format!("{vector}[{k}]")),
        at("k"),
    )
}

impl Gpu {
    /// u, v and σ after `count` iterations; `None` for a matrix that is too large for one workgroup.
    pub(crate) fn power_iteration(&self, w: &Tensor, u: &Tensor, v: &Tensor, count: usize) -> Option<[Tensor; 3]> {
        let shape = w.shape();
        assert!(shape.rank() == 2, "power_iteration: a matrix, not {shape}");
        let (rows, columns) = (shape[0], shape[1]);
        let fits = u.elements() == rows && v.elements() == columns;
        assert!(fits, "power_iteration: {} and {} for {shape}", u.shape(), v.shape());
        if rows == 0 || columns == 0 || rows.max(columns) > LARGEST || rows * columns > NUMBERS {
            return None;
        }
        let threads = WORKGROUP as usize;
        let applied = |lines: usize, terms: usize| lines.div_ceil(LINES as usize) * (terms / LANES as usize + 12);
        let own = (rows + columns).div_ceil(threads);
        let turns = applied(rows, columns) + applied(columns, rows) + 2 * own + 40;
        let most = (TURNS / turns).saturating_sub(1).max(1);
        if count <= most
            && let Some(results) = self.defer_power([w, u, v], count)
        {
            return Some(results);
        }
        let mut left = count;
        let mut pair = [u.window(0, [rows].into()), v.window(0, [columns].into())];
        loop {
            let now = left.min(most);
            left -= now;
            let operands = [w, &pair[0], &pair[1]];
            let results: [Tensor; 3] = [rows, columns, 1].map(|len| self.output(&operands, [len].into()));
            let params = [1, rows as u32, columns as u32, now as u32];
            self.launch(&Power, &operands, &results.each_ref(), &params, [1, 1, 1]);
            if left == 0 {
                return Some(results);
            }
            let [u, v, _] = results;
            pair = [u, v];
        }
    }
}
