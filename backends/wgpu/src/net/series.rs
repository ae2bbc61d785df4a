//! Successive terms of the series of log det and of the Neumann vector, with the rule by which rows stop, in one launch.

use std::fmt::Write as _;

use resflow_backend::{Net, SeriesState, TermWeights};

use super::tile::{LANES, Tile};
use super::{Chain, MATRICES, SLOPES, Step, matrices, rows};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source, TURNS, WORKGROUP, bits};
use crate::tensor::Tensor;

/// Weights of terms that are passed with a launch.
const PASSED: usize = 8;
const WEIGHTS: [&str; PASSED] =
    ["w0: f32", "w1: f32", "w2: f32", "w3: f32", "w4: f32", "w5: f32", "w6: f32", "w7: f32"];

/// What the kernel does besides multiplying with Jᵀ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Terms {
    /// Nothing: Jᵀ gy alone.
    None,
    /// The series.
    Series {
        /// Whether each row has its own weights.
        per_row: bool,
        /// Whether the Neumann vector is kept.
        neumann: bool,
    },
}

/// Jᵀ gy, or terms of the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Series {
    chain: Chain,
    tile: Tile,
    terms: Terms,
}

/// Jᵀ times a tile.
fn transposed(chain: &Chain, tile: Tile) -> String {
    let mut text = String::new();
    for placed in chain.placed().into_iter().rev() {
        text += &match placed.step {
            Step::Product(_) => tile.product(
                &["tile"],
                [placed.outputs, placed.inputs],
                &format!("p.matrix + p.m{}", placed.number),
                &str::to_owned,
            ),
            Step::Activation(_) => {
                let slope = format!("slope[p.slope + p.s{} + row * {}u + c]", placed.number, placed.inputs);
                tile.each(placed.inputs, &format!("      tile[at] = tile[at] * {slope};"))
            }
        };
    }
    text
}

impl Series {
    /// A term behind the product, with the sums over a row of 64 threads in a fixed tree.
    fn term(&self, per_row: bool, neumann: bool) -> String {
        let (width, tile) = (usize::from(self.chain.width), self.tile);
        let (weight, vector) = (
            if per_row { "weights[p.weights + t * p.stride + row]" } else { "weight(t)" },
            if neumann {
                format!("        out[p.n * {width}u + place] = fma(-sign * c, w, out[p.n * {width}u + place]);\n")
            } else {
                String::new()
            },
        );
        let value = if neumann { 2 * width } else { width };
        format!(
            "    for (var j = 0u; j < {share}u; j = j + 1u) {{
      let r = part * {share}u + j;
      let inside = base + r < p.n;
      let row = min(base + r, p.n - 1u);
      var own = vec3<f32>(0.0);
      for (var column = lane; column < {width}u; column = column + {LANES}u) {{
        let w = tile[r * {tile}u + column];
        let v = probe[p.probe + row * {width}u + column];
        own = own + vec3<f32>(w * v, w * w, v * v);
      }}
      let total = along_row(thread, lane, own);
      let c = {weight};
      if (lane == 0u && inside) {{
        out[p.n * {value}u + row] = fma(sign * over_k * c, total.x, out[p.n * {value}u + row]);
      }}
      let stops = c * sqrt(total.y * total.z) * over_k < p.negligible;
      for (var column = lane; column < {width}u; column = column + {LANES}u) {{
        let w = tile[r * {tile}u + column];
        let place = row * {width}u + column;
        tile[r * {tile}u + column] = select(w, 0.0, stops);
        if (inside) {{
{vector}        }}
      }}
    }}
",
            share = tile.share(),
            tile = tile.width
        )
    }
}

/// `along_row`: the sum over the threads of a row.
fn along_row() -> String {
    let mut text = format!(
        "var<workgroup> sums: array<vec3<f32>, {WORKGROUP}>;
fn along_row(thread: u32, lane: u32, own: vec3<f32>) -> vec3<f32> {{
  sums[thread] = own;
  workgroupBarrier();
"
    );
    let mut stride = LANES / 2;
    while stride > 0 {
        let _ = writeln!(
            text,
            "  if (lane < {stride}u) {{ sums[thread] = sums[thread] + sums[thread + {stride}u]; }}\n  workgroupBarrier();"
        );
        stride /= 2;
    }
    text + "  let total = sums[thread - lane];\n  workgroupBarrier();\n  return total;\n}\n"
}

impl Kernel for Series {
    fn source(&self) -> Source {
        let (chain, tile, width) = (&self.chain, self.tile, usize::from(self.chain.width));
        let entering = if self.terms == Terms::None { chain.outputs() } else { width };
        let mut main = tile.each(entering, &format!("      tile[at] = power[p.power + row * {entering}u + c];"));
        let mut reads = vec!["matrix", "power"];
        let mut params = vec!["n: u32"];
        params.extend(&MATRICES[..chain.products()]);
        let mut functions = String::new();
        let mut shared = tile.bytes();
        if chain.activations() > 0 {
            reads.push("slope");
        }
        if let Terms::Series { per_row, neumann } = self.terms {
            reads.extend(["probe", "value"]);
            let mut starts = String::new();
            if neumann {
                reads.push("neumann");
                starts += &tile.each(
                    width,
                    &format!(
                        "      if (inside) {{ out[p.n * {width}u + row * {width}u + c] = neumann[p.neumann + row * {width}u + c]; }}"
                    ),
                );
            }
            let at = if neumann { 2 * width } else { width };
            starts += &tile.each(1, &format!("      if (inside) {{ out[p.n * {at}u + row] = value[p.value + row]; }}"));
            main += &starts;
            functions += &along_row();
            shared += 16 * WORKGROUP;
            main += "  for (var t = 0u; t < p.terms; t = t + 1u) {
    let k = p.first + t;
    let sign = select(-1.0, 1.0, k % 2u == 1u);
    let over_k = 1.0 / f32(k);
";
            main += &transposed(chain, tile);
            main += &self.term(per_row, neumann);
            main += "  }\n";
        } else {
            main += &transposed(chain, tile);
        }
        main += &tile.each(width, &format!("      if (inside) {{ out[row * {width}u + c] = tile[at]; }}"));
        if chain.activations() > 0 {
            params.extend(&SLOPES[..chain.activations()]);
        }
        match self.terms {
            Terms::None => {}
            Terms::Series { per_row: true, .. } => {
                reads.push("weights");
                params.extend(["first: u32", "terms: u32", "negligible: f32", "stride: u32"]);
            }
            Terms::Series { per_row: false, .. } => {
                params.extend(["first: u32", "terms: u32", "negligible: f32"]);
                params.extend(WEIGHTS);
                functions += "fn weight(t: u32) -> f32 {\n";
                for t in 0..PASSED - 1 {
                    let _ = writeln!(functions, "  if (t == {t}u) {{ return p.w{t}; }}");
                }
                let _ = writeln!(functions, "  return p.w{};\n}}", PASSED - 1);
            }
        }
        let body = functions + &tile.declare(&["tile"]) + &tile.main(&main);
        Source { reads, writes: vec!["out"], params, body, shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |chain: Chain| {
            let mut terms = vec![Terms::None];
            if usize::from(chain.width) == chain.outputs() {
                for per_row in [false, true] {
                    terms.extend([false, true].map(|neumann| Terms::Series { per_row, neumann }));
                }
            }
            let tiles = Tile::all(chain.widest(), 1).into_iter();
            tiles.flat_map(move |tile| terms.clone().into_iter().map(move |terms| Self { chain, tile, terms }))
        };
        Chain::some().into_iter().flat_map(of).collect()
    }
}

impl Gpu {
    /// Jᵀ gy; `None` for a net that is no chain.
    pub(crate) fn net_vjp(&self, net: &Net<Tensor>, slopes: &[&Tensor], gy: &Tensor) -> Option<Tensor> {
        let [n, outputs] = rows(gy.shape());
        let chain = Chain::of(net, net_inputs(net, outputs)?)?;
        if n == 0 || chain.outputs() != outputs || !chain.has_slopes(slopes, n) {
            return None;
        }
        let kernel = Series { tile: Tile::of(chain.widest(), 1, n), chain, terms: Terms::None };
        let matrices = self.packed(&matrices(net, true));
        let slopes = (!slopes.is_empty()).then(|| self.packed(slopes));
        let mut operands = vec![&matrices.base, gy];
        let mut params = vec![n as u32];
        params.extend(&matrices.places);
        if let Some(slopes) = &slopes {
            operands.push(&slopes.base);
            params.extend(&slopes.places);
        }
        let out = self.output(&operands, gy.shape().with_channels(chain.width.into()));
        self.launch(&kernel, &operands, &[&out], &params, kernel.tile.groups(n));
        Some(out)
    }

    /// The state after so many terms; `None` for a net that is no chain from rows to the same. Images have a row for each
    /// pixel, whose terms are not those of samples: they are left to the composition.
    pub(crate) fn net_series(
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
        let [n, width] = rows(shape);
        let chain = Chain::of(net, width).filter(|c| c.outputs() == width && c.has_slopes(slopes, n))?;
        let fits = probe.shape() == shape
            && state.value.elements() == n
            && state.neumann.as_ref().is_none_or(|u| u.shape() == shape);
        if shape.rank() != 2 || n == 0 || weights.terms() == 0 || !fits {
            return None;
        }
        let (per_row, neumann) = (matches!(weights, TermWeights::PerRow(_)), state.neumann.is_some());
        let kernel = Series { tile: Tile::of(chain.widest(), 1, n), chain, terms: Terms::Series { per_row, neumann } };
        let numbers = n.checked_mul((1 + usize::from(neumann)) * width + 1)?;
        if !self.fits(numbers) {
            return None;
        }
        let matrices = self.packed(&matrices(net, true));
        let packed = (!slopes.is_empty()).then(|| self.packed(slopes));
        // all weights of rows in one tensor, those of a term after the other
        let mut own = None;
        let mut stride = 0;
        if let TermWeights::PerRow(list) = weights {
            let count = list[0].elements();
            if list.iter().any(|c| c.elements() != count) || count != n {
                return None;
            }
            stride = count as u32;
            let flat: Vec<Tensor> = list.iter().map(|c| c.window(0, [count].into())).collect();
            own = Some(self.concat(&flat.iter().collect::<Vec<_>>(), 0));
        }
        let turns = chain.placed().iter().map(|p| p.outputs.max(p.inputs) / 4 + 8).sum::<usize>() + 64;
        let most = if per_row { TURNS / turns } else { PASSED.min(TURNS / turns) }.max(1);
        let (mut done, mut now) = (0, state.clone());
        while done < weights.terms() {
            let terms = (weights.terms() - done).min(most);
            let mut operands = vec![&matrices.base, &now.power];
            operands.extend(packed.as_ref().map(|s| &s.base));
            operands.extend([probe, &now.value]);
            operands.extend(&now.neumann);
            let mut params = vec![n as u32];
            params.extend(&matrices.places);
            params.extend(packed.iter().flat_map(|s| &s.places));
            params.extend([(first + done) as u32, terms as u32, bits(negligible)]);
            let mut cut = None;
            match weights {
                TermWeights::PerRow(_) => {
                    let all = own.as_ref().expect("made above");
                    cut = Some(all.window(done * n, [terms * n].into()));
                    params.push(stride);
                }
                TermWeights::Batch(c) => {
                    params.extend((0..PASSED).map(|t| bits(c.get(done + t).copied().unwrap_or(0.0))));
                }
            }
            operands.extend(&cut);
            let out = self.output(&operands, [numbers].into());
            self.launch(&kernel, &operands, &[&out], &params, kernel.tile.groups(n));
            done += terms;
            let window = |at: usize, width: usize| out.window(n * at, [n, width].into());
            now = SeriesState {
                power: window(0, width),
                neumann: neumann.then(|| window(width, width)),
                value: out.window(n * if neumann { 2 * width } else { width }, state.value.shape()),
            };
        }
        Some(now)
    }
}

/// The numbers of a row that enters a net of rows with so many numbers at its end.
fn net_inputs(net: &Net<Tensor>, outputs: usize) -> Option<usize> {
    let first = matrices(net, true).into_iter().next();
    first.map_or(Some(outputs), |w| (w.shape().rank() == 2).then(|| w.shape()[1]))
}
