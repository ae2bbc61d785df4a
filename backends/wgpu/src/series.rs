//! A term of the series of log det and of the Neumann vector in one pass over each row, with the stop of negligible rows.

use resflow_backend::{SeriesState, TermWeight};

use crate::device::Gpu;
use crate::kernel::{Division, Kernel, Source, bits};
use crate::tensor::Tensor;

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    /// Whether each row has its own weight.
    per_row: bool,
    /// Whether the Neumann vector is kept.
    neumann: bool,
    division: Division,
}

impl Kernel for Term {
    fn source(&self) -> Source {
        let mut reads = vec!["power", "probe", "before"];
        let mut writes = vec!["stepped", "after"];
        let params = vec![
            "n: u32",
            "width: u32",
            "total: u32",
            "sign: f32",
            "over_k: f32",
            "negligible: f32",
            "uniform: f32",
            "stride: u32",
        ];
        let mut weight = "p.uniform";
        let mut vector = "";
        if self.per_row {
            reads.push("weight");
            weight = "weight[p.weight + item * p.stride]";
        }
        if self.neumann {
            reads.push("vector");
            writes.push("vector_after");
            vector = "vector_after[at] = fma(-p.sign * c, w, vector[p.vector + at]);";
        }
        let finish = format!(
            "  let c = {weight};
  if (leads) {{ after[item] = fma(p.sign * p.over_k * c, total.x, before[p.before + item]); }}
  let stops = c * sqrt(total.y * total.z) * p.over_k < p.negligible;
  for (var at = first; at < end; at = at + step) {{
    let w = power[p.power + at];
    stepped[at] = select(w, 0.0, stops);
    {vector}
  }}"
        );
        let (body, shared) = self.division.rows([
            "vec3<f32>",
            "vec3<f32>(0.0)",
            "let w = power[p.power + at]; let v = probe[p.probe + at]; value = value + vec3<f32>(w * v, w * w, v * v);",
            "a + b",
            &finish,
        ]);
        Source { reads, writes, params, body, shared, ..Source::default() }
    }
    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let flags = [(false, false), (false, true), (true, false), (true, true)];
        let of = |division| flags.map(|(per_row, neumann)| Self { per_row, neumann, division });
        Division::ALL.into_iter().flat_map(of).collect()
    }
}

impl Gpu {
    /// `None` for rows of no elements, or of more than one workgroup can go over.
    pub(crate) fn series_term(
        &self,
        k: usize,
        weight: &TermWeight<'_, Tensor>,
        probe: &Tensor,
        negligible: f64,
        state: &SeriesState<Tensor>,
    ) -> Option<SeriesState<Tensor>> {
        let shape = state.power.shape();
        assert_eq!(shape, probe.shape(), "series_term: the shapes differ: {shape} and {}", probe.shape());
        let (rows, width) = (shape.rows(), shape.row_elements());
        if !Division::suits(width) {
            return None;
        }
        let mut operands = vec![&state.power, probe, &state.value];
        let (mut uniform, mut stride) = (0.0, 0);
        match weight {
            TermWeight::Batch(c) => uniform = *c,
            TermWeight::PerRow(c) => {
                let count = c.elements();
                assert!(count == 1 || count == rows, "series_term: {count} weights for {shape}");
                stride = u32::from(count > 1);
                operands.push(c);
            }
        }
        if let Some(vector) = &state.neumann {
            assert_eq!(shape, vector.shape(), "series_term: the shapes differ: {shape} and {}", vector.shape());
            operands.push(vector);
        }
        let kernel = Term {
            per_row: matches!(weight, TermWeight::PerRow(_)),
            neumann: state.neumann.is_some(),
            division: Division::of(width),
        };
        let (power, value) = (self.output(&operands, shape), self.output(&operands, state.value.shape()));
        let neumann = state.neumann.as_ref().map(|_| self.output(&operands, shape));
        let writes: Vec<&Tensor> = [&power, &value].into_iter().chain(&neumann).collect();
        let sign = if k % 2 == 1 { 1.0 } else { -1.0 };
        let params = [
            rows as u32,
            width as u32,
            (rows * width) as u32,
            bits(sign),
            bits(1.0 / k as f64),
            bits(negligible),
            bits(uniform),
            stride,
        ];
        self.launch(&kernel, &operands, &writes, &params, kernel.division.groups(rows));
        Some(SeriesState { power, neumann, value })
    }
}
