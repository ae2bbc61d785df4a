//! Power iteration on a matrix by one workgroup, without leaving it: u and v stay in its memory.

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, TURNS, WORKGROUP, each_group, tree};
use crate::tensor::Tensor;

/// The most rows or columns of a matrix.
const LARGEST: usize = 1024;
/// The most numbers of a matrix: one workgroup takes too long over larger ones.
const NUMBERS: usize = 1 << 18;

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

fn source() -> Source {
    // each thread owns every 256th entry of a vector; `norm` also lets all threads see what all have written
    let main = each_group(
        WORKGROUP,
        &format!(
            "  for (var r = thread; r < p.rows; r = r + {WORKGROUP}u) {{ left[r] = u[p.u + r]; }}
  for (var c = thread; c < p.columns; c = c + {WORKGROUP}u) {{ right[c] = v[p.v + c]; }}
  workgroupBarrier();
  for (var step = 0u; step < p.count; step = step + 1u) {{
    var squares = 0.0;
    for (var c = thread; c < p.columns; c = c + {WORKGROUP}u) {{
      let x = transposed(c);
      fresh[c] = x;
      squares = squares + x * x;
    }}
    var norm = sqrt(combined(thread, squares));
    if (norm > 0.0) {{
      for (var c = thread; c < p.columns; c = c + {WORKGROUP}u) {{ right[c] = fresh[c] / norm; }}
    }}
    workgroupBarrier();
    squares = 0.0;
    for (var r = thread; r < p.rows; r = r + {WORKGROUP}u) {{
      let x = product(r);
      fresh[r] = x;
      squares = squares + x * x;
    }}
    norm = sqrt(combined(thread, squares));
    if (norm > 0.0) {{
      for (var r = thread; r < p.rows; r = r + {WORKGROUP}u) {{ left[r] = fresh[r] / norm; }}
    }}
    workgroupBarrier();
  }}
  var share = 0.0;
  for (var r = thread; r < p.rows; r = r + {WORKGROUP}u) {{
    share = share + left[r] * product(r);
    u_after[r] = left[r];
  }}
  for (var c = thread; c < p.columns; c = c + {WORKGROUP}u) {{ v_after[c] = right[c]; }}
  let total = combined(thread, share);
  if (thread == 0u) {{ sigma[0] = total; }}"
        ),
    );
    let functions = format!(
        "var<workgroup> left: array<f32, {LARGEST}>;
var<workgroup> right: array<f32, {LARGEST}>;
var<workgroup> fresh: array<f32, {LARGEST}>;
fn product(r: u32) -> f32 {{
  var sum = 0.0;
  for (var c = 0u; c < p.columns; c = c + 1u) {{ sum = fma(w[p.w + r * p.columns + c], right[c], sum); }}
  return sum;
}}
fn transposed(c: u32) -> f32 {{
  var sum = 0.0;
  for (var r = 0u; r < p.rows; r = r + 1u) {{ sum = fma(w[p.w + r * p.columns + c], left[r], sum); }}
  return sum;
}}
"
    );
    Source {
        reads: vec!["w", "u", "v"],
        writes: vec!["u_after", "v_after", "sigma"],
        params: vec!["n: u32", "rows: u32", "columns: u32", "count: u32"],
        body: functions + &tree("combined", "parts", "f32", WORKGROUP, "a + b") + &main,
        shared: 4 * (3 * LARGEST as u32 + WORKGROUP),
        ..Source::default()
    }
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
        let turns = columns.div_ceil(threads) * (rows + 2) + rows.div_ceil(threads) * (columns + 2) + 32;
        let most = (TURNS / turns).saturating_sub(1).max(1);
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
