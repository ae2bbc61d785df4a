//! The gradients of the weights and biases of a net in segments, and the launch that goes through a table of them.
//!
//! W̄\[o, tap, i\] = Σ_pixels g\[pixel, o\] a\[pixel + tap, i\], summed over the value and its tangents; a column of ones behind
//! makes the bias of it. Pixels are cut into slices, so that there is work for many; slices are added in order. Since the layers'
//! numbers are in the table, one kernel serves every net.

use std::fmt::Write as _;

use resflow_backend::{Over, Reduce, Shape};

use super::Cut;
use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP};
use crate::tensor::Tensor;

/// Rows and columns of a tile of the result, and pixels at a time.
const SIDE: usize = 32;
const DEPTH: usize = 16;
/// Of layers with so few outputs, a thread has a column of all of them, and a tile is as wide as a workgroup.
const FEW: usize = 4;
/// Pixels of a slice at least and at most, and slices as long as those do not matter.
const SLICE: usize = 128;
const LONGEST_SLICE: usize = 8192;
const SLICES: usize = 32;
/// Tensors that a launch reads.
const OPERANDS: [&str; 6] = ["e0", "e1", "e2", "e3", "e4", "e5"];
/// The words of a layer: outputs, inputs, columns, taps along a row, padding, where its gradient begins, pairs; and of a pair.
const WORDS: usize = 8;

/// A cotangent at the result of a layer, and what entered the layer.
pub(super) struct Factors {
    pub(super) gradient: Tensor,
    pub(super) input: Tensor,
}

/// A layer whose gradient is wanted.
pub(super) struct Job {
    pub(super) layer: usize,
    pub(super) kernel: [usize; 2],
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// That of the value first, which is that of the bias.
    pub(super) pairs: Vec<Factors>,
}

impl Job {
    /// The columns of the weight.
    fn columns(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.inputs
    }

    fn numbers(&self) -> usize {
        self.outputs * (self.columns() + 1)
    }

    fn tile(&self) -> [usize; 2] {
        if self.outputs <= FEW { [FEW, WORKGROUP as usize] } else { [SIDE, SIDE] }
    }
}

/// The kernel that goes through a table of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentGradients;

impl Kernel for SegmentGradients {
    #[expect(clippy::too_many_lines, reason = "one text")]
    fn source(&self) -> Source {
        let mut cases = String::new();
        for (k, e) in OPERANDS.iter().enumerate() {
            let _ = writeln!(cases, "    case {k}u: {{ return {e}[p.{e} + at]; }}");
        }
        let body = format!(
            "var<workgroup> left: array<f32, {tile}>;
var<workgroup> right: array<f32, {tile}>;
fn fetch(which: u32, at: u32) -> f32 {{
  switch (which) {{
{cases}    default: {{ return 0.0; }}
  }}
}}
// what lies under a tap for a pixel, 0 outside of the image
fn under(which: u32, place: u32, inputs: u32, row: u32, dy: u32, dx: u32, i: u32) -> f32 {{
  let y = (row / p.w) % p.h + dy;
  let x = row % p.w + dx;
  if (y >= p.h || x >= p.w) {{ return 0.0; }}
  return fetch(which, place + (row + dy * p.w + dx) * inputs + i);
}}
fn store(at: u32, outputs: u32, columns: u32, o: u32, c: u32, value: f32) {{
  if (o >= outputs || c > columns) {{ return; }}
  // the bias behind the weight
  if (c == columns) {{ out[at + outputs * columns + o] = value; }} else {{ out[at + o * columns + c] = value; }}
}}
@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = p.table + 3u * group.x;
  let job = p.table + table[item];
  let o0 = table[item + 1u];
  let c0 = table[item + 2u];
  let outputs = table[job];
  let inputs = table[job + 1u];
  let columns = table[job + 2u];
  let across = table[job + 3u];
  let pad_h = table[job + 4u];
  let pad_w = table[job + 5u];
  let at = group.y * p.numbers + table[job + 6u];
  let pairs = table[job + 7u];
  let begin = group.y * p.slice;
  let end = min(begin + p.slice, p.n);
  if (outputs <= {FEW}u) {{
    let c = c0 + thread;
    let tap = c / inputs;
    let i = c % inputs;
    let dy = tap / across - pad_h;
    let dx = tap % across - pad_w;
    var few = vec4<f32>(0.0);
    for (var pair = 0u; pair < pairs; pair = pair + 1u) {{
      let words = job + {WORDS}u + 4u * pair;
      for (var row = begin; row < end; row = row + 1u) {{
        var a = 0.0;
        if (c < columns) {{ a = under(table[words + 2u], table[words + 3u], inputs, row, dy, dx, i); }}
        if (c == columns && pair == 0u) {{ a = 1.0; }}
        let g = table[words + 1u] + row * outputs;
        let which = table[words];
        var v = vec4<f32>(fetch(which, g), 0.0, 0.0, 0.0);
        if (outputs > 1u) {{ v.y = fetch(which, g + 1u); }}
        if (outputs > 2u) {{ v.z = fetch(which, g + 2u); }}
        if (outputs > 3u) {{ v.w = fetch(which, g + 3u); }}
        few = fma(v, vec4<f32>(a), few);
      }}
    }}
    store(at, outputs, columns, 0u, c, few.x);
    store(at, outputs, columns, 1u, c, few.y);
    store(at, outputs, columns, 2u, c, few.z);
    store(at, outputs, columns, 3u, c, few.w);
    return;
  }}
  // two numbers of each side by every thread, of one column
  let column = thread % {SIDE}u;
  let tap = (c0 + column) / inputs;
  let i = (c0 + column) % inputs;
  let dy = tap / across - pad_h;
  let dx = tap % across - pad_w;
  let r = thread / 16u;
  let c = thread % 16u;
  var sum = vec4<f32>(0.0);
  for (var pair = 0u; pair < pairs; pair = pair + 1u) {{
    let words = job + {WORDS}u + 4u * pair;
    for (var first = begin; first < end; first = first + {DEPTH}u) {{
      for (var half = 0u; half < 2u; half = half + 1u) {{
        let e = thread + half * {WORKGROUP}u;
        let row = first + e / {SIDE}u;
        var g = 0.0;
        var a = 0.0;
        if (row < end) {{
          if (o0 + column < outputs) {{ g = fetch(table[words], table[words + 1u] + row * outputs + o0 + column); }}
          if (c0 + column < columns) {{ a = under(table[words + 2u], table[words + 3u], inputs, row, dy, dx, i); }}
          if (c0 + column == columns && pair == 0u) {{ a = 1.0; }}
        }}
        left[e] = g;
        right[e] = a;
      }}
      workgroupBarrier();
      for (var k = 0u; k < {DEPTH}u; k = k + 1u) {{
        let g0 = left[k * {SIDE}u + r];
        let g1 = left[k * {SIDE}u + r + 16u];
        let a0 = right[k * {SIDE}u + c];
        let a1 = right[k * {SIDE}u + c + 16u];
        sum = fma(vec4<f32>(g0, g0, g1, g1), vec4<f32>(a0, a1, a0, a1), sum);
      }}
      workgroupBarrier();
    }}
  }}
  store(at, outputs, columns, o0 + r, c0 + c, sum.x);
  store(at, outputs, columns, o0 + r, c0 + c + 16u, sum.y);
  store(at, outputs, columns, o0 + r + 16u, c0 + c, sum.z);
  store(at, outputs, columns, o0 + r + 16u, c0 + c + 16u, sum.w);
}}
",
            tile = SIDE * DEPTH
        );
        let reads = ["table:u32"].iter().chain(&OPERANDS).copied().collect();
        let params = vec!["n: u32", "h: u32", "w: u32", "slice: u32", "numbers: u32"];
        Source { reads, writes: vec!["out"], params, body, shared: 8 * (SIDE * DEPTH) as u32, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self]
    }
}

/// The table of a launch: the tiles of all layers, then the layers.
fn table(jobs: &[&Job], operands: &[&Tensor]) -> (Vec<u32>, usize) {
    let tiles = |job: &Job| {
        let [down, across] = job.tile();
        job.outputs.div_ceil(down) * (job.columns() + 1).div_ceil(across)
    };
    let count: usize = jobs.iter().map(|job| tiles(job)).sum();
    let (mut words, mut layers, mut at) = (Vec::new(), Vec::new(), 0);
    for job in jobs {
        let place = 3 * count + layers.len();
        let [down, across] = job.tile();
        for o in (0..job.outputs).step_by(down) {
            for c in (0..=job.columns()).step_by(across) {
                words.extend([place, o, c].map(|v| v as u32));
            }
        }
        let ([kh, kw], pairs) = (job.kernel, job.pairs.len());
        let own = [job.outputs, job.inputs, job.columns(), kw, kh / 2, kw / 2, at, pairs];
        layers.extend(own.map(|v| v as u32));
        for x in job.pairs.iter().flat_map(|pair| [&pair.gradient, &pair.input]) {
            // relative to the tensor that is bound
            let which = operands.iter().position(|e| e.storage().id() == x.storage().id()).expect("it is bound");
            layers.extend([which as u32, (x.offset() as u32).wrapping_sub(operands[which].offset() as u32)]);
        }
        at += job.numbers();
    }
    words.extend(layers);
    (words, count)
}

impl Gpu {
    /// The gradients of weight and bias of each layer.
    pub(super) fn segment_gradients(&self, cut: &Cut, jobs: &[Job]) -> Vec<(usize, [Tensor; 2])> {
        let mut found = Vec::with_capacity(jobs.len());
        let mut left = jobs;
        while !left.is_empty() {
            // as many layers as bind no more than a launch can
            let mut operands: Vec<&Tensor> = Vec::new();
            let mut count = 0;
            for job in left {
                let mut joined = operands.clone();
                for x in job.pairs.iter().flat_map(|pair| [&pair.gradient, &pair.input]) {
                    if !joined.iter().any(|e| e.storage().id() == x.storage().id()) {
                        joined.push(x);
                    }
                }
                if joined.len() > OPERANDS.len() {
                    break;
                }
                operands = joined;
                count += 1;
            }
            let (now, later) = left.split_at(count);
            left = later;
            found.extend(self.gradients_of(cut, &now.iter().collect::<Vec<_>>(), &operands));
        }
        found
    }

    fn gradients_of(&self, cut: &Cut, jobs: &[&Job], operands: &[&Tensor]) -> Vec<(usize, [Tensor; 2])> {
        // a launch looks at what it is given, which is one of each buffer only
        let all = jobs.iter().flat_map(|job| &job.pairs).flat_map(|pair| [&pair.gradient, &pair.input]);
        self.settle(&all.collect::<Vec<_>>());
        let (words, tiles) = table(jobs, operands);
        let table = self.kept_table(words);
        let nothing = self.empty([0].into(), None);
        let mut reads = vec![&table];
        reads.extend(operands);
        reads.resize(1 + OPERANDS.len(), &nothing);
        let wanted = cut.pixels.div_ceil(SLICES).clamp(SLICE, LONGEST_SLICE);
        let slice = wanted.next_multiple_of(DEPTH);
        let slices = cut.pixels.div_ceil(slice);
        let numbers: usize = jobs.iter().map(|job| job.numbers()).sum();
        let parts = self.output(&reads, [slices, numbers].into());
        let mut params = cut.params();
        params.extend([slice as u32, numbers as u32]);
        self.launch(&SegmentGradients, &reads, &[&parts], &params, [tiles as u32, slices as u32, 1]);
        let sums = if slices == 1 { parts } else { self.reduce(Reduce::Sum, Over::Channel, &parts) };
        let mut at = 0;
        let windows = jobs.iter().map(|job| {
            let (place, columns) = (at, job.columns());
            at += job.numbers();
            let shape: Shape = if cut.is_matrix(job.layer) {
                [job.outputs, job.inputs].into()
            } else {
                [job.outputs, job.kernel[0], job.kernel[1], job.inputs].into()
            };
            let bias = sums.window(place + job.outputs * columns, [job.outputs].into());
            (job.layer, [sums.window(place, shape), bias])
        });
        windows.collect()
    }
}
