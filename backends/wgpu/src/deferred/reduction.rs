//! Reductions of small tensors: an item is the elements that are combined, by one thread where they are few, else by a
//! workgroup in a fixed tree.

use resflow_backend::{Over, Reduce, Shape};

use super::program::{FETCH, reads};
use super::{Job, Kind, LARGEST, Read, told};
use crate::device::Gpu;
use crate::kernel::{Groups, Kernel, Source, WORKGROUP, tree};
use crate::reduce::Term;
use crate::tensor::Tensor;

/// The elements of an item that one thread combines, and the most of any.
const FEW: usize = 32;
const MOST: usize = 1 << 14;
/// What is said of the operation besides.
const PRODUCT: u32 = 1;
const NOT_FINITE: u32 = 2;
const LARGEST_OF: u32 = 4;
const BY_GROUP: u32 = 8;

/// The kernel that goes through a table of reductions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reductions;

impl Kernel for Reductions {
    fn source(&self) -> Source {
        // words: what, place of the result, places of the operands, items, elements of an item, and the steps from an item and
        // from an element to the next
        let body = format!(
            "{FETCH}fn combine(most: bool, a: f32, b: f32) -> f32 {{
  if (most) {{ return larger(a, b); }}
  return a + b;
}}
{}fn term(at: u32, e: u32) -> f32 {{
  let word = table[at];
  let x = fetch(word >> 8u, table[at + 2u] + e);
  if ((word & {PRODUCT}u) != 0u) {{ return x * fetch(word >> 12u, table[at + 3u] + e); }}
  if ((word & {NOT_FINITE}u) != 0u) {{ return 1.0 - truth(is_finite(x)); }}
  return x;
}}
@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.y * groups.x + group.x;
  if (item >= table[p.table]) {{ return; }}
  let at = p.table + table[p.table + 1u + 2u * item];
  let first = table[p.table + 2u + 2u * item];
  let most = (table[at] & {LARGEST_OF}u) != 0u;
  let together = (table[at] & {BY_GROUP}u) != 0u;
  var which = first + thread;
  var start = 0u;
  var step = 1u;
  if (together) {{ which = first; start = thread; step = {WORKGROUP}u; }}
  var value = 0.0;
  if (most) {{ value = -infinity(); }}
  if (which < table[at + 4u]) {{
    for (var e = start; e < table[at + 5u]; e = e + step) {{
      value = combine(most, value, term(at, which * table[at + 6u] + e * table[at + 7u]));
    }}
  }}
  kind = most;
  let total = combined(thread, value);
  if (together) {{
    if (thread == 0u) {{ arena[table[at + 1u] + which] = total; }}
  }} else if (which < table[at + 4u]) {{
    arena[table[at + 1u] + which] = value;
  }}
}}
",
            "var<private> kind: bool;\n".to_owned()
                + &tree("combined", "parts", "f32", WORKGROUP, "combine(kind, a, b)")
        );
        Source { reads: reads(), writes: vec!["arena"], body, shared: 4 * WORKGROUP, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self]
    }
}

/// The words of a reduction.
const WORDS: usize = 8;

/// The kernel, the table and the workgroups of such jobs.
pub(super) fn table(lists: &[Vec<&Job>], outside: &[u64]) -> (&'static dyn Kernel, Vec<u32>, Groups) {
    let items = |job: &Job| if job.words[0] & BY_GROUP == 0 { job.n.div_ceil(WORKGROUP as usize) } else { job.n };
    let jobs: Vec<&Job> = lists.iter().flatten().copied().collect();
    let count: usize = jobs.iter().map(|job| items(job)).sum();
    let mut words = vec![count as u32];
    let mut at = 1 + 2 * count;
    for job in &jobs {
        let step = if job.words[0] & BY_GROUP == 0 { WORKGROUP as usize } else { 1 };
        for group in 0..items(job) {
            words.extend([at as u32, (group * step) as u32]);
        }
        at += WORDS;
    }
    for job in &jobs {
        words.extend(told(job, outside));
    }
    (&Reductions, words, crate::kernel::groups(count, 1))
}

impl Gpu {
    /// A reduction, or `None` where it is not deferred.
    pub(crate) fn defer_reduction(
        &self,
        term: Term,
        op: Reduce,
        over: Over,
        operands: &[&Tensor],
        result: Shape,
    ) -> Option<Tensor> {
        let shape = operands[0].shape();
        let (elements, items) = (shape.elements(), result.elements());
        let count = elements / items.max(1);
        // where few are combined, an item is one thread's
        let most = if count <= FEW { LARGEST * FEW } else { LARGEST };
        if elements == 0 || elements > most || items > LARGEST || count > MOST {
            return None;
        }
        let steps = match over {
            Over::All | Over::Row => [count, 1],
            Over::Channel => [1, items],
        };
        let mut code = match term {
            Term::Value => 0,
            Term::Product => PRODUCT,
            Term::NotFinite => NOT_FINITE,
        };
        if op == Reduce::Max {
            code |= LARGEST_OF;
        }
        if count > FEW {
            code |= BY_GROUP;
        }
        let out = self.region(operands, result)?;
        let place = |k: usize| operands.get(k).map_or(0, |x| x.offset() as u32);
        let mut words = vec![code, out.offset() as u32, place(0), place(1)];
        words.extend([items, count, steps[0], steps[1]].map(|v| v as u32));
        let reads = operands.iter().map(|x| Read { tensor: (*x).clone(), same: false }).collect();
        self.defer(Job { kind: Kind::Reduction, n: items, reads, outs: vec![out.clone()], words });
        Some(out)
    }
}
