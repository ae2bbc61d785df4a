//! Reductions in an order that depends on the shape alone: fixed trees within a workgroup, then over its results.

use resflow_backend::{Over, Reduce, Shape};

use crate::device::Gpu;
use crate::kernel::{Division, Kernel, Source, WORKGROUP, each, groups};
use crate::tensor::Tensor;

/// Elements of one workgroup's part of a reduction over everything.
const CHUNK: usize = 4096;
/// Rows of one thread's part of a reduction over rows.
const RUN: usize = 64;
/// What is reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Term {
    /// xᵢ.
    Value,
    /// xᵢ yᵢ.
    Product,
    /// 1 where xᵢ is infinite or NaN.
    NotFinite,
}

/// Which elements go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Runs of elements.
    Rows(Division),
    /// Each channel of each run of rows, by one thread.
    Channel,
}

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reduction {
    term: Term,
    op: Reduce,
    part: Part,
}

impl Kernel for Reduction {
    fn source(&self) -> Source {
        let (start, combine) = match self.op {
            Reduce::Sum => ("0.0", "a + b"),
            Reduce::Max => ("-infinity()", "larger(a, b)"),
        };
        let term = match self.term {
            Term::Value => "x[p.x + at]",
            Term::Product => "x[p.x + at] * y[p.y + at]",
            Term::NotFinite => "1.0 - truth(is_finite(x[p.x + at]))",
        };
        let functions = format!(
            "fn term(at: u32) -> f32 {{ return {term}; }}\nfn combine(a: f32, b: f32) -> f32 {{ return {combine}; }}\n"
        );
        let (main, shared) = match self.part {
            Part::Rows(division) => division.rows([
                "f32",
                start,
                "value = combine(value, term(at));",
                "combine(a, b)",
                "  if (leads) { out[item] = total; }",
            ]),
            Part::Channel => {
                let main = each(&format!(
                    "  let channel = i % p.width;
  let begin = (i / p.width) * {RUN}u;
  let end = min(begin + {RUN}u, p.total);
  var value = {start};
  for (var row = begin; row < end; row = row + 1u) {{ value = combine(value, term(row * p.width + channel)); }}
  out[i] = value;"
                ));
                (main, 0)
            }
        };
        Source {
            reads: if self.term == Term::Product { vec!["x", "y"] } else { vec!["x"] },
            writes: vec!["out"],
            params: vec!["n: u32", "width: u32", "total: u32"],
            body: functions + &main,
            shared,
            ..Source::default()
        }
    }
    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let parts = Division::ALL.map(Part::Rows).into_iter().chain([Part::Channel]);
        let kinds = [
            (Term::Value, Reduce::Sum),
            (Term::Value, Reduce::Max),
            (Term::Product, Reduce::Sum),
            (Term::NotFinite, Reduce::Max),
        ];
        parts.flat_map(|part| kinds.map(|(term, op)| Self { term, op, part })).collect()
    }
}

impl Gpu {
    fn reduction(&self, kernel: Reduction, operands: &[&Tensor], items: usize, width: usize, total: usize) -> Tensor {
        let out = self.output(operands, [items].into());
        let groups = match kernel.part {
            Part::Rows(division) => division.groups(items),
            Part::Channel => groups(items, WORKGROUP as usize),
        };
        self.launch(&kernel, operands, &[&out], &[items as u32, width as u32, total as u32], groups);
        out
    }

    /// Over everything: chunks, then their results, until one is left.
    fn reduce_all(&self, term: Term, op: Reduce, operands: &[&Tensor]) -> Tensor {
        let total = operands[0].elements();
        let items = total.div_ceil(CHUNK);
        let part = Part::Rows(Division::of(total.min(CHUNK)));
        let out = self.reduction(Reduction { term, op, part }, operands, items, CHUNK, total);
        if items == 1 { out } else { self.reduce_all(Term::Value, op, &[&out]) }
    }

    fn reduce_rows(&self, term: Term, op: Reduce, operands: &[&Tensor]) -> Tensor {
        let shape = operands[0].shape();
        let (rows, width) = (shape.rows(), shape.row_elements());
        if !Division::suits(width) {
            let row = |i: usize| {
                let windows: Vec<Tensor> = operands.iter().map(|x| x.window(i * width, [width].into())).collect();
                self.reduce_all(term, op, &windows.iter().collect::<Vec<_>>()).window(0, [1, 1].into())
            };
            return self.concat(&(0..rows).map(row).collect::<Vec<_>>().iter().collect::<Vec<_>>(), 0);
        }
        let part = Part::Rows(Division::of(width));
        let out = self.reduction(Reduction { term, op, part }, operands, rows, width, rows * width);
        out.window(0, [rows, 1].into())
    }

    fn reduce_channels(&self, term: Term, op: Reduce, operands: &[&Tensor], channels: usize) -> Tensor {
        let rows = operands[0].elements() / channels;
        let runs = rows.div_ceil(RUN);
        let kernel = Reduction { term, op, part: Part::Channel };
        let out = self.reduction(kernel, operands, runs * channels, channels, rows);
        if runs == 1 { out } else { self.reduce_channels(Term::Value, op, &[&out], channels) }
    }

    pub(crate) fn reduce_terms(&self, term: Term, op: Reduce, over: Over, operands: &[&Tensor]) -> Tensor {
        let shape = operands[0].shape();
        let result: Shape = match over {
            Over::All => [1].into(),
            Over::Row => [shape.rows(), 1].into(),
            Over::Channel => [shape.channels()].into(),
        };
        if shape.elements() == 0 {
            return self.full(if op == Reduce::Sum { 0.0 } else { f64::NEG_INFINITY }, result);
        }
        if let Some(out) = self.defer_reduction(term, op, over, operands, result) {
            return out;
        }
        match over {
            Over::All => self.reduce_all(term, op, operands),
            Over::Row => self.reduce_rows(term, op, operands),
            Over::Channel => self.reduce_channels(term, op, operands, shape.channels()),
        }
    }

    pub(crate) fn reduce(&self, op: Reduce, over: Over, x: &Tensor) -> Tensor {
        self.reduce_terms(Term::Value, op, over, &[x])
    }

    /// ⟨a, b⟩ over everything or over each row.
    pub(crate) fn dot(&self, over: Over, a: &Tensor, b: &Tensor) -> Tensor {
        let name = if over == Over::Row { "dot_rows" } else { "dot" };
        assert_eq!(a.shape(), b.shape(), "{name}: the shapes differ");
        self.reduce_terms(Term::Product, Reduce::Sum, over, &[a, b])
    }

    /// 1 if every element is finite, else 0.
    pub(crate) fn all_finite(&self, x: &Tensor) -> Tensor {
        let bad = self.reduce_terms(Term::NotFinite, Reduce::Max, Over::All, &[x]);
        // of nothing: −∞
        let bad = if x.elements() == 0 { self.full(0.0, [1].into()) } else { bad };
        self.affine(&bad, -1.0, 1.0)
    }
}
