//! The forward pass, with what derivatives will ask for.

use resflow_backend::{Activation, Net, NetForward};

use super::tile::Tile;
use super::{BIASES, Chain, MATRICES, SLOPES, Step, biases, matrices, parameters, rows};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source};
use crate::tensor::Tensor;

/// g(x), and the derivatives of its activations up to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Forward {
    chain: Chain,
    tile: Tile,
    order: usize,
}

/// The functions `derivatives_0`, … of activations, each with the name of its own.
pub(super) fn named_derivatives(functions: impl Iterator<Item = Activation>) -> String {
    let mut known: Vec<Activation> = Vec::new();
    let mut text = String::new();
    for f in functions {
        if !known.contains(&f) {
            known.push(f);
            text += &crate::activation::derivatives(f).replace("fn derivatives(", &format!("fn {}(", name(f)));
        }
    }
    text
}

pub(super) fn name(f: Activation) -> String {
    format!("derivatives_{}", Activation::ALL.iter().position(|&other| other == f).unwrap_or_default())
}

impl Forward {
    /// The numbers of a row that each activation keeps.
    fn kept(order: usize) -> usize {
        [0, 1, 4][order]
    }

    /// The numbers of a row of everything that is written before activation `number`, y first.
    fn before(&self, number: usize) -> usize {
        let placed = self.chain.placed();
        let activations = placed.iter().filter(|p| matches!(p.step, Step::Activation(_)));
        let widths = activations.take(number).map(|p| p.outputs).sum::<usize>();
        self.chain.outputs() + Self::kept(self.order) * widths
    }
}

impl Kernel for Forward {
    fn source(&self) -> Source {
        let (chain, tile) = (&self.chain, self.tile);
        let with_parameters = !chain.parameters().is_empty();
        let mut main = tile.each(chain.width.into(), &format!("      tile[at] = x[p.x + row * {}u + c];", chain.width));
        for placed in chain.placed() {
            let width = placed.outputs;
            main += &match placed.step {
                Step::Product(_) => {
                    let number = placed.number;
                    let bias = |value: &str| format!("{value} + bias[p.bias + p.b{number} + c]");
                    let begin = format!("p.matrix + p.m{number}");
                    tile.product(&["tile"], [placed.inputs, width], &begin, &bias)
                }
                Step::Activation(f) => {
                    let b = if f.has_parameter() {
                        format!("slope[p.slope + p.s{}]", placed.number)
                    } else {
                        "1.0".to_owned()
                    };
                    let values: &[&str] = match self.order {
                        0 => &[],
                        1 => &["d.y"],
                        _ => &["v", "d.x", "d.y", "d.z"],
                    };
                    let store = |(k, value): (usize, &&str)| {
                        let before = self.before(placed.number) + k * width;
                        format!("        out[p.n * {before}u + row * {width}u + c] = {value};\n")
                    };
                    let stores: String = values.iter().enumerate().map(store).collect();
                    let statements = format!(
                        "      let v = tile[at];
      let d = {}(v, {b});
      tile[at] = d.x;
      if (inside) {{
{stores}      }}",
                        name(f)
                    );
                    tile.each(width, &statements)
                }
            };
        }
        let outputs = chain.outputs();
        main += &tile.each(outputs, &format!("      if (inside) {{ out[row * {outputs}u + c] = tile[at]; }}"));
        let mut reads = vec!["matrix", "bias", "x"];
        let mut params = vec!["n: u32"];
        params.extend(&MATRICES[..chain.products()]);
        params.extend(&BIASES[..chain.products()]);
        if with_parameters {
            reads.push("slope");
            params.extend(&SLOPES[..chain.activations()]);
        }
        let functions = chain.steps.iter().flatten().filter_map(|step| match step {
            Step::Activation(f) => Some(*f),
            Step::Product(_) => None,
        });
        Source {
            reads,
            writes: vec!["out"],
            params,
            body: tile.declare(&["tile"]) + &named_derivatives(functions) + &tile.main(&main),
            shared: tile.bytes(),
            ..Source::default()
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |chain: Chain| {
            let tiles = Tile::all(chain.widest(), 1).into_iter();
            tiles.flat_map(move |tile| (0..=2).map(move |order| Self { chain, tile, order }))
        };
        Chain::some().into_iter().flat_map(of).collect()
    }
}

impl Gpu {
    /// `None` for a net that is no chain.
    pub(crate) fn net_forward(&self, net: &Net<Tensor>, x: &Tensor, order: usize) -> Option<NetForward<Tensor>> {
        let [n, width] = rows(x.shape());
        let chain = Chain::of(net, width).filter(|_| n > 0 && order <= 2)?;
        let kernel = Forward { tile: Tile::of(chain.widest(), 1, n), chain, order };
        let numbers = n.checked_mul(kernel.before(chain.activations()))?;
        if !self.fits(numbers) {
            return None;
        }
        let [matrices, biases] = [self.packed(&matrices(net, false)), self.packed(&biases(net))];
        let own = parameters(net);
        let given: Vec<&Tensor> = own.iter().copied().flatten().collect();
        let slopes = (!given.is_empty()).then(|| self.packed(&given));
        let mut operands = vec![&matrices.base, &biases.base, x];
        let mut params = vec![n as u32];
        params.extend(matrices.places.iter().chain(&biases.places));
        if let Some(slopes) = &slopes {
            operands.push(&slopes.base);
            let mut places = slopes.places.iter();
            params.extend(own.iter().map(|b| if b.is_some() { *places.next().expect("as many") } else { 0 }));
        }
        let out = self.output(&operands, [numbers].into());
        self.launch(&kernel, &operands, &[&out], &params, kernel.tile.groups(n));

        let window = |before: usize, width: usize| out.window(n * before, x.shape().with_channels(width));
        let mut entering = x.clone();
        let kept = chain.placed().into_iter().map(|placed| match placed.step {
            Step::Product(_) => {
                if order == 2 {
                    vec![entering.clone()]
                } else {
                    Vec::new()
                }
            }
            Step::Activation(_) => {
                let before = kernel.before(placed.number);
                let parts = (0..Forward::kept(order)).map(|k| window(before + k * placed.outputs, placed.outputs));
                let parts: Vec<Tensor> = parts.collect();
                if let Some(value) = parts.get(1) {
                    entering = value.clone();
                }
                parts
            }
        });
        let kept = kept.collect();
        Some(NetForward { y: window(0, chain.outputs()), kept })
    }
}
