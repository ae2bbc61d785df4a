//! One step of the fixed-point iteration with its bookkeeping, in one pass over each row.

use resflow_backend::{FixedPointColumn, FixedPointRule, FixedPointState};

use crate::device::Gpu;
use crate::kernel::{Division, Kernel, Source, bits};
use crate::tensor::Tensor;

/// The kernel of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FixedPoint(Division);

impl Kernel for FixedPoint {
    fn source(&self) -> Source {
        source(self.0)
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        Division::ALL.map(Self).to_vec()
    }
}

fn source(division: Division) -> Source {
    let column = |c: FixedPointColumn| format!("rows[p.rows + item * {}u + {}u]", FixedPointColumn::COUNT, c as usize);
    let [residual, norm, latest, stall, steps, active] = [
        FixedPointColumn::Residual,
        FixedPointColumn::Norm,
        FixedPointColumn::Latest,
        FixedPointColumn::Stall,
        FixedPointColumn::Steps,
        FixedPointColumn::Active,
    ]
    .map(column);
    // total: Σy², Σr²; a row that is done keeps everything. A y whose square overflows would make any residual look like none
    let finish = format!(
        "  let going = !is_zero({active});
  let size = select(bitcast<f32>(p.infinity), sqrt(total.y) / larger(sqrt(total.x), 1.0), is_finite(total.x));
  let better = going && ordered(size, {residual}) && size < {residual};
  let residual = select({residual}, size, better);
  let stall = select({stall} + truth(going), 0.0, better);
  let at_floor = stall >= p.patience && residual <= p.floor;
  let done = residual <= p.accuracy || at_floor || !is_finite(size);
  let moves = going && !done;
  if (leads) {{
    let at = item * {count}u;
    rows_after[at] = residual;
    rows_after[at + 1u] = select({norm}, sqrt(total.y), better);
    rows_after[at + 2u] = select({latest}, size, going);
    rows_after[at + 3u] = stall;
    rows_after[at + 4u] = {steps} + truth(going);
    rows_after[at + 5u] = truth(moves);
  }}
  for (var at = first; at < end; at = at + step) {{
    let next = y[p.y + at] - g[p.g + at];
    best_after[at] = select(best[p.best + at], next, better);
    x_after[at] = select(x[p.x + at], next, moves);
  }}",
        count = FixedPointColumn::COUNT
    );
    let (body, shared) = division.rows([
        "vec2<f32>",
        "vec2<f32>(0.0)",
        "let v = y[p.y + at]; let r = v - g[p.g + at] - x[p.x + at];
    value = vec2<f32>(fma(v, v, value.x), fma(r, r, value.y));",
        "a + b",
        &finish,
    ]);
    Source {
        reads: vec!["y", "g", "x", "best", "rows"],
        writes: vec!["x_after", "best_after", "rows_after"],
        params: vec![
            "n: u32",
            "width: u32",
            "total: u32",
            "accuracy: f32",
            "floor: f32",
            "patience: f32",
            "infinity: u32",
        ],
        body,
        shared,
        ..Source::default()
    }
}

impl Gpu {
    /// `None` for rows of no elements, or of more than one workgroup can go over.
    pub(crate) fn fixed_point_step(
        &self,
        rule: &FixedPointRule,
        y: &Tensor,
        g: &Tensor,
        state: &FixedPointState<Tensor>,
    ) -> Option<FixedPointState<Tensor>> {
        let shape = y.shape();
        for t in [g, &state.x, &state.best] {
            assert_eq!(t.shape(), shape, "fixed_point_step: the shapes differ: {} and {shape}", t.shape());
        }
        let columns = [shape.rows(), FixedPointColumn::COUNT].into();
        assert_eq!(state.rows.shape(), columns, "fixed_point_step: the rows are {}, not {columns}", state.rows.shape());
        let (n, width) = (shape.rows(), shape.row_elements());
        if !Division::suits(width) {
            return None;
        }
        let operands = [y, g, &state.x, &state.best, &state.rows];
        let [x, best] = [shape, shape].map(|shape| self.output(&operands, shape));
        let rows = self.output(&operands, columns);
        let division = Division::of(width);
        let [accuracy, floor, patience, infinity] = [rule.accuracy, rule.floor, rule.patience, f64::INFINITY].map(bits);
        let params = [n as u32, width as u32, (n * width) as u32, accuracy, floor, patience, infinity];
        self.launch(&FixedPoint(division), &operands, &[&x, &best, &rows], &params, division.groups(n));
        Some(FixedPointState { x, best, rows })
    }
}
