//! Power iterations on many convolutions at once, a workgroup each, with u and v in the arena.

use resflow_backend::Padding;

use super::program::{FETCH, reads};
use super::{Job, Kind, Read, told};
use crate::device::Gpu;
use crate::kernel::{Groups, Kernel, Source, TURNS, WORKGROUP, tree};
use crate::power::LEAST;
use crate::tensor::Tensor;

/// The words of a job.
const WORDS: usize = 19;

/// The kernel that goes through a table of power iterations on convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConvolutionPowers;

/// The fields that the table has of each job.
const FIELDS: [&str; WORDS] = [
    "which", "w", "u", "v", "left", "right", "sigma", "fresh", "h", "w_", "c", "oh", "ow", "o", "kh", "kw", "ph", "pw",
    "count",
];

/// Sets `fresh` to a product, an element a thread at a time, and `squares` to the sum of its squares by this thread.
fn product(name: &str, [height, width, channels]: [&str; 3], inner: &str) -> String {
    format!(
        "fn {name}(thread: u32) -> f32 {{
  var squares = 0.0;
  for (var e = thread; e < job.{height} * job.{width} * job.{channels}; e = e + {WORKGROUP}u) {{
    let channel = e % job.{channels};
    let x = (e / job.{channels}) % job.{width};
    let y = e / (job.{channels} * job.{width});
    var sum = 0.0;
    for (var i = 0u; i < job.kh; i = i + 1u) {{
      for (var j = 0u; j < job.kw; j = j + 1u) {{
{inner}      }}
    }}
    arena[job.fresh + e] = sum;
    squares = fma(sum, sum, squares);
  }}
  return squares;
}}
"
    )
}

impl Kernel for ConvolutionPowers {
    fn source(&self) -> Source {
        // coordinates outside wrap around to large numbers
        let applied = product(
            "applied",
            ["oh", "ow", "o"],
            "        let row = y + i - job.ph;
        let column = x + j - job.pw;
        if (row < job.h && column < job.w_) {
          let from_at = job.right + (row * job.w_ + column) * job.c;
          let kernel = job.w + ((channel * job.kh + i) * job.kw + j) * job.c;
          for (var k = 0u; k < job.c; k = k + 1u) {
            sum = fma(arena[from_at + k], fetch(job.which >> 8u, kernel + k), sum);
          }
        }
",
        );
        let adjoint = product(
            "adjoint",
            ["h", "w_", "c"],
            "        let row = y + job.ph - i;
        let column = x + job.pw - j;
        if (row < job.oh && column < job.ow) {
          let from_at = job.left + (row * job.ow + column) * job.o;
          let kernel = job.w + (i * job.kw + j) * job.c + channel;
          for (var k = 0u; k < job.o; k = k + 1u) {
            sum = fma(arena[from_at + k], fetch(job.which >> 8u, kernel + k * job.kh * job.kw * job.c), sum);
          }
        }
",
        );
        // a thread owns the same elements of a product and of its vector
        let normalised = |call: &str, to: &str, extents: &str| {
            format!(
                "    norm = sqrt(combined(thread, {call}(thread)));
    if (norm >= {LEAST:e} && is_finite(norm)) {{
      for (var e = thread; e < {extents}; e = e + {WORKGROUP}u) {{ arena[job.{to} + e] = arena[job.fresh + e] / norm; }}
    }}
    storageBarrier();
    workgroupBarrier();
"
            )
        };
        let (inputs, outputs) = ("job.h * job.w_ * job.c", "job.oh * job.ow * job.o");
        let fields: Vec<String> = FIELDS.iter().map(|name| format!("{name}: u32")).collect();
        let filled: Vec<String> = (0..WORDS).map(|k| format!("table[at + {k}u]")).collect();
        let main = format!(
            "struct Job {{ {} }}
var<private> job: Job;
{adjoint}{applied}{}@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.y * groups.x + group.x;
  if (item >= table[p.table]) {{ return; }}
  let at = p.table + 1u + {WORDS}u * item;
  job = Job({});
  for (var e = thread; e < {outputs}; e = e + {WORKGROUP}u) {{ arena[job.left + e] = fetch(job.which >> 12u, job.u + e); }}
  for (var e = thread; e < {inputs}; e = e + {WORKGROUP}u) {{ arena[job.right + e] = fetch(job.which >> 16u, job.v + e); }}
  storageBarrier();
  workgroupBarrier();
  var norm = 0.0;
  for (var step = 0u; step < job.count; step = step + 1u) {{
{}{}  }}
  let squares = applied(thread);
  var share = 0.0;
  for (var e = thread; e < {outputs}; e = e + {WORKGROUP}u) {{
    share = fma(arena[job.left + e], arena[job.fresh + e], share);
  }}
  let total = combined(thread, share);
  if (thread == 0u) {{ arena[job.sigma] = total; }}
}}
",
            fields.join(", "),
            tree("combined", "parts", "f32", WORKGROUP, "a + b"),
            filled.join(", "),
            normalised("adjoint", "right", inputs),
            normalised("applied", "left", outputs),
        );
        Source {
            reads: reads(),
            writes: vec!["arena"],
            body: FETCH.to_owned() + &main,
            shared: 4 * WORKGROUP,
            ..Source::default()
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self]
    }
}

/// The kernel, the table and the workgroups of such jobs.
pub(super) fn table(lists: &[Vec<&Job>], outside: &[u64]) -> (&'static dyn Kernel, Vec<u32>, Groups) {
    let jobs: Vec<&Job> = lists.iter().flatten().copied().collect();
    let mut words = vec![jobs.len() as u32];
    for job in &jobs {
        words.extend(told(job, outside));
    }
    (&ConvolutionPowers, words, crate::kernel::groups(jobs.len(), 1))
}

impl Gpu {
    /// u, v and σ after `count` iterations; `None` where they are too much for one workgroup, or not deferred.
    pub(crate) fn conv2d_power_iteration(
        &self,
        [kernel, u, v]: [&Tensor; 3],
        padding: Padding,
        count: usize,
    ) -> Option<[Tensor; 3]> {
        let [o, kh, kw, c] = kernel.shape()[..] else { return None };
        let ([1, oh, ow, uo], [1, h, w, vc]) = (&u.shape()[..], &v.shape()[..]) else { return None };
        if [*uo, *vc] != [o, c]
            || padding.output([*h, *w], [kh, kw]) != Some([*oh, *ow])
            || u.elements() * v.elements() == 0
        {
            return None;
        }
        let own = |elements: usize| elements.div_ceil(WORKGROUP as usize);
        let (inputs, outputs) = (own(v.elements()), own(u.elements()));
        let turns = inputs * (kh * kw * (o + 1) + 2) + outputs * (kh * kw * (c + 1) + 2);
        let most = (TURNS / turns.max(1)).saturating_sub(1);
        if most == 0 {
            return None;
        }
        let (mut left, mut pair) = (count, [u.clone(), v.clone()]);
        loop {
            let now = left.min(most);
            left -= now;
            let operands = [kernel, &pair[0], &pair[1]];
            let fresh = self.region(&operands, [u.elements().max(v.elements())].into())?;
            let [after_u, after_v] = [self.region(&operands, u.shape())?, self.region(&operands, v.shape())?];
            let sigma = self.region(&operands, [1].into())?;
            let mut words = vec![0];
            let places = [kernel, &pair[0], &pair[1], &after_u, &after_v, &sigma, &fresh].map(|x| x.offset() as u32);
            words.extend(places);
            let extents = [*h, *w, c, *oh, *ow, o, kh, kw, padding.height, padding.width, now];
            words.extend(extents.map(|v| v as u32));
            let reads = operands.map(|x| Read { tensor: x.clone(), same: false });
            let outs = vec![after_u.clone(), after_v.clone(), sigma.clone(), fresh];
            self.defer(Job { kind: Kind::ConvolutionPower, n: 1, reads: reads.into(), outs, words });
            if left == 0 {
                return Some([after_u, after_v, sigma]);
            }
            pair = [after_u, after_v];
        }
    }
}
