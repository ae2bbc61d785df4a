//! Elementwise operations and copies, each a few words of a table that a kernel goes through.

use std::fmt::Write as _;

use resflow_backend::{Binary, MAX_RANK, Shape, Unary};

use super::{Job, Kind, LARGEST, LARGEST_COPY, OUTSIDE, Read, told};
use crate::device::Gpu;
use crate::elementwise::{Broadcast, Elementwise, binary_text, unary_text};
use crate::kernel::{Groups, Kernel, Source, WORKGROUP};
use crate::tensor::Tensor;

/// The words of an operation: code, place of the result, places of three operands; then two numbers and how the operands are
/// broadcast, or the extents and strides of a copy.
const WORDS: usize = 20;
const COPY: u32 = 0;
const AFFINE: u32 = 1;
const AXPY: u32 = 2;
const SELECT: u32 = 3;
const FULL: u32 = 4;
const UNARY: u32 = 16;
const BINARY: u32 = 48;

/// The kernel that goes through a table of elementwise operations, made of what these need: software Vulkan evaluates every case of
/// a `switch`, and so all of the kernel for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    copies: bool,
    /// Whether they read tensors outside of the arena.
    outside: bool,
    /// Whether there are exponentials, logarithms or circular functions among them.
    functions: bool,
}

/// All there are, so that each has a place in memory.
static PROGRAMS: [Program; 8] = {
    let mut all = [Program { copies: false, outside: false, functions: false }; 8];
    let mut k = 0;
    while k < all.len() {
        all[k] = Program { copies: k & 1 > 0, outside: k & 2 > 0, functions: k & 4 > 0 };
        k += 1;
    }
    all
};

impl Program {
    fn of(lists: &[Vec<&Job>], outside: &[u64]) -> &'static Self {
        let is_function = |job: &&Job| job.words[0].checked_sub(UNARY).is_some_and(|k| is_function(k as usize));
        let own = Self {
            copies: lists.iter().flatten().any(|job| job.is_copy()),
            outside: !outside.is_empty(),
            functions: lists.iter().flatten().any(is_function),
        };
        PROGRAMS.iter().find(|&program| *program == own).unwrap_or(&PROGRAMS[PROGRAMS.len() - 1])
    }
}

/// Whether an operation on one number, by its place among all, is more than a little arithmetic.
fn is_function(place: usize) -> bool {
    use Unary::{Cos, Exp, ExpM1, Ln, Ln1p, Sin, Tanh};
    Unary::ALL.get(place).is_some_and(|op| matches!(op, Exp | ExpM1 | Ln | Ln1p | Tanh | Sin | Cos))
}

/// The names of the tensors that are read, the table first.
pub(super) fn reads() -> Vec<&'static str> {
    let reads = vec!["table:u32", "e0", "e1", "e2", "e3", "e4"];
    debug_assert_eq!(reads.len(), 1 + OUTSIDE);
    reads
}

/// `fetch`: an element of one of the tensors, by its number.
pub(super) const FETCH: &str = "fn fetch(which: u32, at: u32) -> f32 {
  switch (which & 15u) {
    case 1u: { return e0[at]; }
    case 2u: { return e1[at]; }
    case 3u: { return e2[at]; }
    case 4u: { return e3[at]; }
    case 5u: { return e4[at]; }
    default: { return arena[at]; }
  }
}
";

/// A copy, and the beginning of what is none. It spells out the code of a copy.
const COPYING: &str = "    if (code == 0u) {
      let i4 = i % table[at + 8u]; let r4 = i / table[at + 8u];
      let i3 = r4 % table[at + 7u]; let r3 = r4 / table[at + 7u];
      let i2 = r3 % table[at + 6u]; let r2 = r3 / table[at + 6u];
      let i1 = r2 % table[at + 5u]; let i0 = r2 / table[at + 5u];
      let from_at = table[at + 2u] + i0 * table[at + 9u] + i1 * table[at + 10u] + i2 * table[at + 11u]
        + i3 * table[at + 12u] + i4 * table[at + 13u];
      let to_at = table[at + 1u] + i0 * table[at + 14u] + i1 * table[at + 15u] + i2 * table[at + 16u]
        + i3 * table[at + 17u] + i4 * table[at + 18u];
      arena[to_at] = fetch(word >> 8u, from_at);
    } else {
";

const _: () = assert!(COPY == 0);

impl Kernel for Program {
    fn source(&self) -> Source {
        let mut cases = String::new();
        for (k, op) in Unary::ALL.into_iter().enumerate().filter(|&(k, _)| self.functions || !is_function(k)) {
            let _ = writeln!(cases, "        case {}u: {{ x = {}; }}", UNARY + k as u32, unary_text(op));
        }
        for (k, op) in Binary::ALL.into_iter().enumerate() {
            let _ = writeln!(cases, "        case {}u: {{ x = {}; }}", BINARY + k as u32, binary_text(op));
        }
        let fetch = if self.outside { FETCH } else { "fn fetch(which: u32, at: u32) -> f32 { return arena[at]; }\n" };
        let [begin, end] = if self.copies { [COPYING, "    }\n"] } else { ["", ""] };
        let body = format!(
            "{fetch}fn element(i: u32, at: u32) -> u32 {{
  if (table[at + 1u] == 0u) {{ return i; }}
  return (i / table[at]) % table[at + 1u];
}}
@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.y * groups.x + group.x;
  if (item >= table[p.table]) {{ return; }}
  let segment = p.table + table[p.table + 1u + 2u * item];
  let i = table[p.table + 2u + 2u * item] + thread;
  if (i >= table[segment]) {{ return; }}
  for (var k = 0u; k < table[segment + 1u]; k = k + 1u) {{
    let at = segment + 2u + {WORDS}u * k;
    let word = table[at];
    let code = word & 255u;
{begin}      var v = 0.0;
      var w = 0.0;
      if (code != {FULL}u) {{ v = fetch(word >> 8u, table[at + 2u] + element(i, at + 7u)); }}
      if (code == {AXPY}u || code == {SELECT}u || code >= {BINARY}u) {{
        w = fetch(word >> 12u, table[at + 3u] + element(i, at + 9u));
      }}
      let first = bitcast<f32>(table[at + 5u]);
      var x = v;
      switch (code) {{
        case {AFFINE}u: {{ x = fma(first, v, bitcast<f32>(table[at + 6u])); }}
        case {AXPY}u: {{ x = fma(first, v, w); }}
        case {SELECT}u: {{ x = select(w, fetch(word >> 16u, table[at + 4u] + i), is_zero(v)); }}
        case {FULL}u: {{ x = first; }}
{cases}        default: {{ }}
      }}
      arena[table[at + 1u] + i] = x;
{end}  }}
}}
"
        );
        Source { reads: reads(), writes: vec!["arena"], body, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        PROGRAMS.to_vec()
    }
}

impl Job {
    /// Whether it copies into a part of its result.
    pub(super) fn is_copy(&self) -> bool {
        self.kind == Kind::Program && self.words[0] == COPY
    }
}

/// The kernel, the table and the workgroups of such jobs, each list by the threads of its own.
pub(super) fn table(lists: &[Vec<&Job>], outside: &[u64]) -> (&'static dyn Kernel, Vec<u32>, Groups) {
    let size = WORKGROUP as usize;
    let count: usize = lists.iter().map(|list| list[0].n.div_ceil(size)).sum();
    let mut words = vec![count as u32];
    let mut at = 1 + 2 * count;
    for list in lists {
        for group in 0..list[0].n.div_ceil(size) {
            words.extend([at as u32, (group * size) as u32]);
        }
        at += 2 + WORDS * list.len();
    }
    for list in lists {
        words.extend([list[0].n as u32, list.len() as u32]);
        for job in list {
            words.extend(told(job, outside));
        }
    }
    (Program::of(lists, outside), words, crate::kernel::groups(count, 1))
}

/// An operand of element i.
struct Operand<'a> {
    tensor: &'a Tensor,
    /// (behind, within): its element is (i div behind) mod within, or i where within is 0.
    broadcast: [u32; 2],
}

impl Gpu {
    /// An operation on elements, or `None` where it is not deferred.
    pub(crate) fn defer_elementwise(
        &self,
        kernel: Elementwise,
        operands: &[&Tensor],
        shape: Shape,
        params: &[u32],
    ) -> Option<Tensor> {
        let run = |broadcast: Broadcast| match broadcast {
            Broadcast::Same => Some([0, 0]),
            Broadcast::Run => Some([params[0], params[1]]),
            Broadcast::Strided => None,
        };
        let none = [0, 0];
        let place = |all: &[Unary], op| all.iter().position(|&other| other == op).unwrap_or_default() as u32;
        let (code, numbers, broadcasts) = match kernel {
            Elementwise::Full => (FULL, [params[0], 0], [none; 3]),
            Elementwise::Affine => (AFFINE, [params[0], params[1]], [none; 3]),
            Elementwise::Axpy => (AXPY, [params[0], 0], [none; 3]),
            Elementwise::Unary(op) => (UNARY + place(&Unary::ALL, op), [0, 0], [none; 3]),
            Elementwise::Binary(op, broadcast) => {
                let number = Binary::ALL.iter().position(|&other| other == op).unwrap_or_default() as u32;
                (BINARY + number, [0, 0], [none, run(broadcast)?, none])
            }
            Elementwise::Select(broadcast) => (SELECT, [0, 0], [run(broadcast)?, none, none]),
        };
        let operands: Vec<Operand<'_>> =
            operands.iter().zip(broadcasts).map(|(tensor, broadcast)| Operand { tensor, broadcast }).collect();
        self.defer_each(code, numbers, &operands, shape)
    }

    /// The products of all entries of a column and a row, `[rows, columns]`.
    pub(crate) fn defer_outer(&self, column: &Tensor, row: &Tensor, [m, n]: [usize; 2]) -> Option<Tensor> {
        let number = Binary::ALL.iter().position(|&op| op == Binary::Mul).unwrap_or_default() as u32;
        let operands = [
            Operand { tensor: column, broadcast: [n as u32, m as u32] },
            Operand { tensor: row, broadcast: [1, n as u32] },
        ];
        self.defer_each(BINARY + number, [0, 0], &operands, [m, n].into())
    }

    fn defer_each(&self, code: u32, numbers: [u32; 2], operands: &[Operand<'_>], shape: Shape) -> Option<Tensor> {
        let n = shape.elements();
        if n == 0 || n > LARGEST {
            return None;
        }
        let tensors: Vec<&Tensor> = operands.iter().map(|o| o.tensor).collect();
        let out = self.region(&tensors, shape)?;
        let mut words = vec![0; WORDS];
        words[0] = code;
        words[1] = out.offset() as u32;
        for (k, operand) in operands.iter().enumerate() {
            words[2 + k] = operand.tensor.offset() as u32;
            words[7 + 2 * k..9 + 2 * k].copy_from_slice(&operand.broadcast);
        }
        words[5..7].copy_from_slice(&numbers);
        let reads = operands.iter().map(|o| Read { tensor: o.tensor.clone(), same: o.broadcast[1] == 0 }).collect();
        self.defer(Job { kind: Kind::Program, n, reads, outs: vec![out.clone()], words });
        Some(out)
    }

    /// Memory for a result that copies are joined to, or `None` where they are not deferred.
    pub(crate) fn copy_target(&self, operands: &[&Tensor], shape: Shape) -> Option<Tensor> {
        let small = operands.iter().all(|x| x.elements() <= LARGEST_COPY) && shape.elements() <= LARGEST_COPY;
        if small { self.region(operands, shape) } else { None }
    }

    /// Copies a box as [`strided`](Self::strided) does, into a part of a result of [`copy_target`](Self::copy_target).
    pub(crate) fn defer_copy(
        &self,
        x: &Tensor,
        out: &Tensor,
        count: [usize; MAX_RANK],
        (from, sources): (usize, [usize; MAX_RANK]),
        (to, targets): (usize, [usize; MAX_RANK]),
    ) {
        let mut words = vec![COPY, (out.offset() + to) as u32, (x.offset() + from) as u32, 0, 0];
        words.extend(count[1..].iter().chain(&sources).chain(&targets).map(|&v| v as u32));
        words.resize(WORDS, 0);
        let n = count.iter().product();
        let reads = vec![Read { tensor: x.clone(), same: false }];
        if n > 0 {
            self.defer(Job { kind: Kind::Program, n, reads, outs: vec![out.clone()], words });
        }
    }
}
