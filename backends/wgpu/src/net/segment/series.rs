//! The series of a net in segments: a launch a term and segment, and one for the terms together.
//!
//! The vectors (Jᵀ)ᵏ v are computed for all terms, then a workgroup takes each sample through them. A row that stops at term k
//! is taken to be zero from then on, which is what Jᵀ would have made of a zero.

use std::fmt::Write as _;

use resflow_backend::{Net, SeriesState, TermWeights};

use super::Cut;
use crate::device::Gpu;
use crate::kernel::{Division, Kernel, Source, TURNS, WORKGROUP, bits};
use crate::tensor::Tensor;

/// Weights of terms that are passed with a launch.
const PASSED: usize = 8;
const WEIGHTS: [&str; PASSED] =
    ["w0: f32", "w1: f32", "w2: f32", "w3: f32", "w4: f32", "w5: f32", "w6: f32", "w7: f32"];

/// The terms of each sample, from the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentTerms {
    /// Whether each sample has its own weights.
    per_row: bool,
    /// Whether the Neumann vector is kept.
    neumann: bool,
    division: Division,
}

impl Kernel for SegmentTerms {
    fn source(&self) -> Source {
        let mut reads = vec!["power", "probe", "sum"];
        let mut writes = vec!["stepped", "after"];
        let mut params = vec!["n: u32", "width: u32", "total: u32", "terms: u32", "order: u32", "negligible: f32"];
        let mut weight = "weight(t)";
        let mut functions = String::new();
        if self.per_row {
            reads.push("weights");
            weight = "weights[p.weights + t * p.n + item]";
        } else {
            params.extend(WEIGHTS);
            functions += "fn weight(t: u32) -> f32 {\n";
            for t in 0..PASSED - 1 {
                let _ = writeln!(functions, "  if (t == {t}u) {{ return p.w{t}; }}");
            }
            let _ = writeln!(functions, "  return p.w{};\n}}", PASSED - 1);
        }
        let (mut begins, mut vector) = ("", "");
        if self.neumann {
            reads.push("vector");
            writes.push("neumann");
            begins = "neumann[at] = vector[p.vector + at];";
            vector = "neumann[at] = fma(-sign * c, w, neumann[at]);";
        }
        let (size, combined, tree) = match self.division {
            Division::Thread => (WORKGROUP, "own", String::new()),
            Division::Group(size) => {
                (size, "combined(thread, own)", crate::kernel::tree("combined", "parts", "vec3<f32>", size, "a + b"))
            }
        };
        let (item, first, step, leads) = match self.division {
            Division::Thread => (format!("number * {size}u + thread"), "0u", "1u".to_owned(), "true"),
            Division::Group(size) => ("number".to_owned(), "thread", format!("{size}u"), "thread == 0u"),
        };
        let main = format!(
            "@compute @workgroup_size({size})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let number = group.y * groups.x + group.x;
  let item = {item};
  if (item >= p.n) {{ return; }}
  let first = item * p.width + {first};
  let end = (item + 1u) * p.width;
  for (var at = first; at < end; at = at + {step}) {{ {begins} }}
  var value = sum[p.sum + item];
  var stopped = false;
  for (var t = 0u; t < p.terms; t = t + 1u) {{
    let k = p.order + t;
    let sign = select(-1.0, 1.0, k % 2u == 1u);
    let over_k = 1.0 / f32(k);
    var own = vec3<f32>(0.0);
    for (var at = first; at < end; at = at + {step}) {{
      let w = select(power[p.power + t * p.total + at], 0.0, stopped);
      let v = probe[p.probe + at];
      own = own + vec3<f32>(w * v, w * w, v * v);
    }}
    let total = {combined};
    let c = {weight};
    value = fma(sign * over_k * c, total.x, value);
    for (var at = first; at < end; at = at + {step}) {{
      let w = select(power[p.power + t * p.total + at], 0.0, stopped);
      {vector}
    }}
    stopped = stopped || c * sqrt(total.y * total.z) * over_k < p.negligible;
  }}
  let last = (p.terms - 1u) * p.total;
  for (var at = first; at < end; at = at + {step}) {{ stepped[at] = select(power[p.power + last + at], 0.0, stopped); }}
  if ({leads}) {{ after[item] = value; }}
}}
"
        );
        let shared = if let Division::Group(size) = self.division { 16 * size } else { 0 };
        Source { reads, writes, params, body: functions + &tree + &main, shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let flags = [(false, false), (false, true), (true, false), (true, true)];
        let of = |division| flags.map(|(per_row, neumann)| Self { per_row, neumann, division });
        Division::ALL.into_iter().flat_map(of).collect()
    }
}

impl Gpu {
    /// The state after so many terms; `None` for a net that is left to others.
    pub(crate) fn segments_series(
        &self,
        net: &Net<Tensor>,
        slopes: &[&Tensor],
        first: usize,
        weights: TermWeights<'_, Tensor>,
        probe: &Tensor,
        negligible: f64,
        state: &SeriesState<Tensor>,
    ) -> Option<SeriesState<Tensor>> {
        let shape = state.power.shape();
        let cut = Cut::of(net, shape).filter(|cut| cut.ends[0] == cut.ends[1] && cut.has_slopes(slopes))?;
        let parts = cut.parts(cut.layers.len(), true, true);
        let (rows, width) = (shape.rows(), shape.row_elements());
        let total = rows * width;
        let fits = probe.shape() == shape
            && state.value.elements() == rows
            && state.neumann.as_ref().is_none_or(|u| u.shape() == shape)
            && Division::suits(width);
        // one launch reads what the one before wrote into the same buffer, but never its own
        if parts.len() < 2 || weights.terms() == 0 || !fits || !self.fits_parts(&cut, &parts) {
            return None;
        }
        let division = Division::of(width);
        let by = match division {
            Division::Thread => 1,
            Division::Group(size) => size as usize,
        };
        let most = PASSED.min(TURNS / (2 * width.div_ceil(by) + 16));
        if most == 0 || !self.fits(most * total) {
            return None;
        }
        let mut own = None;
        if let TermWeights::PerRow(list) = weights {
            if list.iter().any(|c| c.elements() != rows) {
                return None;
            }
            let flat: Vec<Tensor> = list.iter().map(|c| c.window(0, [rows].into())).collect();
            own = Some(self.concat(&flat.iter().collect::<Vec<_>>(), 0));
        }
        let (mut done, mut now) = (0, state.clone());
        while done < weights.terms() {
            let terms = (weights.terms() - done).min(most);
            let powers = self.powers(net, &cut, &parts, slopes, &now.power, terms);
            now = self.terms(&powers, terms, (first + done, done), (weights, own.as_ref()), probe, negligible, &now);
            done += terms;
        }
        Some(now)
    }

    /// (Jᵀ)ᵏ of a vector for so many k from 1 on, one after the other.
    fn powers(
        &self,
        net: &Net<Tensor>,
        cut: &Cut,
        parts: &[super::Part],
        slopes: &[&Tensor],
        power: &Tensor,
        terms: usize,
    ) -> Tensor {
        let shape = power.shape();
        let total = shape.elements();
        let mut operands = vec![power];
        operands.extend(slopes);
        let powers = self.output(&operands, [terms * total].into());
        let mut g = power.clone();
        for t in 0..terms {
            for (at, part) in parts.iter().enumerate() {
                let place = t * total;
                let into = (at + 1 == parts.len()).then_some((&powers, place));
                let (_, out) = self.pass(net, cut, (part, false), slopes, &g, into);
                let begin = if into.is_some() { place } else { 0 };
                g = out.window(begin, shape.with_channels(part.segment.outputs()));
            }
        }
        powers
    }

    #[expect(clippy::too_many_arguments, reason = "a state with all that it is changed by")]
    fn terms(
        &self,
        powers: &Tensor,
        terms: usize,
        (order, done): (usize, usize),
        (weights, own): (TermWeights<'_, Tensor>, Option<&Tensor>),
        probe: &Tensor,
        negligible: f64,
        state: &SeriesState<Tensor>,
    ) -> SeriesState<Tensor> {
        let shape = state.power.shape();
        let (rows, width) = (shape.rows(), shape.row_elements());
        let kernel =
            SegmentTerms { per_row: own.is_some(), neumann: state.neumann.is_some(), division: Division::of(width) };
        let cut = own.map(|all| all.window(done * rows, [terms * rows].into()));
        let mut operands = vec![powers, probe, &state.value];
        operands.extend(&cut);
        operands.extend(&state.neumann);
        let mut params: Vec<u32> = [rows, width, rows * width, terms, order].map(|v| v as u32).to_vec();
        params.push(bits(negligible));
        if let TermWeights::Batch(c) = weights {
            params.extend((0..PASSED).map(|t| bits(c.get(done + t).copied().unwrap_or(0.0))));
        }
        let (power, value) = (self.output(&operands, shape), self.output(&operands, state.value.shape()));
        let neumann = state.neumann.as_ref().map(|_| self.output(&operands, shape));
        let writes: Vec<&Tensor> = [&power, &value].into_iter().chain(&neumann).collect();
        self.launch(&kernel, &operands, &writes, &params, kernel.division.groups(rows));
        SeriesState { power, neumann, value }
    }
}
