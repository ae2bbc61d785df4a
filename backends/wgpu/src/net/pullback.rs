//! The pullback of a value and at most one tangent: cotangents through all layers in one launch, then the gradients of all
//! layers ([`gradient`](super::gradient)).

use std::fmt::Write as _;

use resflow_backend::{Activation, Net};

use super::gradient::Inputs;
use super::tile::Tile;
use super::{Chain, KEPT, MATRICES, Placed, SLOPES, Step, TANGENTS, matrices, parameters, rows};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, tree};
use crate::tensor::Tensor;

/// Cotangents at the results of all products and at the input, and shares of the gradients of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Pullback {
    pub(super) chain: Chain,
    pub(super) tile: Tile,
    /// Whether there is a tangent.
    pub(super) tangent: bool,
}

impl Pullback {
    /// The numbers of a row before the cotangent at the result of product `number`, which has that of the tangent behind it;
    /// with the number of all, before that at the input.
    pub(super) fn before(&self, number: usize) -> usize {
        let placed = self.chain.placed();
        let products = placed.iter().filter(|p| matches!(p.step, Step::Product(_)));
        self.copies() * products.take(number).map(|p| p.outputs).sum::<usize>()
    }

    /// A cotangent, or two.
    fn copies(&self) -> usize {
        1 + usize::from(self.tangent)
    }

    /// The numbers of a row before the shares of parameters.
    pub(super) fn cotangents(&self) -> usize {
        self.before(self.chain.products()) + self.copies() * usize::from(self.chain.width)
    }

    /// The cotangents before an activation, and this workgroup's share of its parameter's gradient.
    fn activation(&self, f: Activation, placed: &Placed, gathered: &[usize]) -> String {
        let (number, width, tile) = (placed.number, placed.inputs, self.tile);
        let mut text = String::new();
        let kept = |k: usize| format!("kept[p.kept + p.k{number} + {}u * p.stride + row * {width}u + c]", k * width);
        let (mut crossed, mut others) = (String::from("0.0"), String::new());
        if self.tangent {
            crossed = format!("tangent[p.tangent + p.t{number} + row * {width}u + c] * other[at]");
            others = "      other[at] = other[at] * d1;\n".into();
        }
        let mut share = String::new();
        if f.has_parameter() {
            share = format!(
                "      if (inside) {{
        let x = {};
        share = share + g * (x * d1 - {}) + crossed * x * d2;
      }}
",
                kept(0),
                kept(1)
            );
            text += "  share = 0.0;\n";
        }
        text += &tile.each(
            width,
            &format!(
                "      let d1 = {};
      let d2 = {};
      let g = own[at];
      let crossed = {crossed};
      own[at] = fma(g, d1, crossed * d2);
{others}{share}",
                kept(2),
                kept(3)
            ),
        );
        if let Some(place) = gathered.iter().position(|&a| a == number) {
            let _ = writeln!(
                text,
                "  share = combined(thread, share) / slope[p.slope + p.s{number}];
  if (thread == 0u) {{ out[p.n * {}u + {place}u * p.tiles + item] = share; }}",
                self.cotangents()
            );
        }
        text
    }
}

impl Kernel for Pullback {
    fn source(&self) -> Source {
        let (chain, tile) = (&self.chain, self.tile);
        let tiles = if self.tangent { &["own", "other"][..] } else { &["own"][..] };
        let gathered = chain.parameters();
        let outputs = chain.outputs();
        let load = |tile: &str, name: &str| format!("      {tile}[at] = {name}[p.{name} + row * {outputs}u + c];\n");
        let mut loads = load("own", "gy");
        if self.tangent {
            loads += &load("other", "gdy");
        }
        let mut main = tile.each(outputs, &loads);
        let store = |before: usize, width: usize| {
            let mut text = String::new();
            for (copy, tile) in tiles.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "      if (inside) {{ out[p.n * {}u + row * {width}u + c] = {tile}[at]; }}",
                    before + copy * width
                );
            }
            tile.each(width, &text)
        };
        for placed in chain.placed().into_iter().rev() {
            let width = placed.inputs;
            match placed.step {
                Step::Product(_) => {
                    main += &store(self.before(placed.number), placed.outputs);
                    main += &tile.product(
                        tiles,
                        [placed.outputs, width],
                        &format!("p.matrix + p.m{}", placed.number),
                        &str::to_owned,
                    );
                }
                Step::Activation(f) => main += &self.activation(f, &placed, &gathered),
            }
        }
        main += &store(self.before(chain.products()), chain.width.into());
        let mut reads = vec!["matrix", "gy"];
        let mut params = vec!["n: u32", "tiles: u32"];
        params.extend(&MATRICES[..chain.products()]);
        if self.tangent {
            reads.push("gdy");
        }
        if chain.activations() > 0 {
            reads.push("kept");
            params.push("stride: u32");
            params.extend(&KEPT[..chain.activations()]);
            if self.tangent {
                reads.push("tangent");
                params.extend(&TANGENTS[..chain.activations()]);
            }
        }
        let (mut functions, mut shared) = (tile.declare(tiles), tiles.len() as u32 * tile.bytes());
        if !gathered.is_empty() {
            reads.push("slope");
            params.extend(&SLOPES[..chain.activations()]);
            functions += &tree("combined", "parts", "f32", WORKGROUP, "a + b");
            shared += 4 * WORKGROUP;
            main = "  var share = 0.0;\n".to_owned() + &main;
        }
        Source { reads, writes: vec!["out"], params, body: functions + &tile.main(&main), shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |chain: Chain| {
            [false, true].into_iter().flat_map(move |tangent| {
                let tiles = Tile::all(chain.widest(), 1 + usize::from(tangent)).into_iter();
                tiles.map(move |tile| Self { chain, tile, tangent })
            })
        };
        Chain::some().into_iter().flat_map(of).collect()
    }
}

/// What activations kept: windows of one buffer in which x, φ, φ′ and φ″ of an activation lie at equal distances, `stride` rows.
struct Kept {
    base: Tensor,
    places: Vec<u32>,
    stride: u32,
}

impl Kept {
    /// None or one of them: of nets without activations none; `None` where they do not lie so.
    fn of(chain: &Chain, kept: &[&[Tensor]], n: usize) -> Option<Vec<Self>> {
        let mut found: Option<Self> = None;
        for (placed, own) in chain.placed().iter().zip(kept) {
            if let Step::Product(_) = placed.step {
                if own.len() != 1 || own[0].elements() != n * placed.inputs {
                    return None;
                }
                continue;
            }
            let [x, others @ ..] = own else { return None };
            let width = placed.inputs;
            let apart = own.get(1)?.offset().checked_sub(x.offset())?;
            let even =
                others.iter().enumerate().all(|(k, t)| t.offset().checked_sub(x.offset()) == Some((k + 1) * apart));
            let first = found.as_ref().map_or(x, |found| &found.base);
            let together = own.iter().all(|t| t.elements() == n * width && t.storage().id() == first.storage().id());
            if own.len() != 4 || !even || !together || apart % width != 0 {
                return None;
            }
            let stride = (apart / width) as u32;
            let place = (x.offset() as u32).wrapping_sub(first.offset() as u32);
            match &mut found {
                Some(found) if found.stride == stride => found.places.push(place),
                Some(_) => return None,
                None => found = Some(Self { base: x.clone(), places: vec![place], stride }),
            }
        }
        Some(found.into_iter().collect())
    }
}

/// Windows of one buffer, and their places relative to the first.
fn together(tensors: &[&Tensor]) -> Option<(Tensor, Vec<u32>)> {
    let first = tensors.first()?;
    let alike = tensors.iter().all(|t| t.storage().id() == first.storage().id());
    let place = |t: &&Tensor| (t.offset() as u32).wrapping_sub(first.offset() as u32);
    alike.then(|| ((*first).clone(), tensors.iter().map(place).collect()))
}

impl Gpu {
    /// (gx, gdx); `None` for a net that is no chain, for several tangents, and where what was kept is not as forward passes
    /// and tangents leave it.
    pub(crate) fn net_pullback(
        &self,
        net: &Net<Tensor>,
        kept: &[&[Tensor]],
        tangents: &[Vec<&Tensor>],
        gy: &Tensor,
        gdy: &[Tensor],
        grads: &mut [Option<Tensor>],
    ) -> Option<(Tensor, Vec<Tensor>)> {
        let [n, outputs] = rows(gy.shape());
        let [_, width] = rows(kept.first()?.first()?.shape());
        let chain = Chain::of(net, width).filter(|c| n > 0 && c.outputs() == outputs && tangents.len() <= 1)?;
        let placed = chain.placed();
        let entering = match tangents {
            [] => &[][..],
            [tangent, ..] => &tangent[..],
        };
        let sound = entering.iter().zip(&placed).all(|(t, p)| t.elements() == n * p.inputs);
        if !sound || gdy.iter().any(|g| g.shape() != gy.shape()) {
            return None;
        }
        // kernels are given one tensor of each buffer
        let all: Vec<&Tensor> = kept.iter().copied().flatten().chain(entering.iter().copied()).collect();
        if all.iter().any(|x| x.fault().is_some()) {
            return None;
        }
        self.settle(&all);
        let of_activations = Kept::of(&chain, kept, n)?;
        let is_activation = |l: &usize| matches!(placed[*l].step, Step::Activation(_));
        let at_activations: Vec<&Tensor> = (0..entering.len()).filter(is_activation).map(|l| entering[l]).collect();
        let at_activations = if at_activations.is_empty() { None } else { Some(together(&at_activations)?) };

        let tangent = !tangents.is_empty();
        let tile = Tile::of(chain.widest(), 1 + usize::from(tangent), n);
        let kernel = Pullback { chain, tile, tangent };
        let gathered = chain.parameters();
        let tiles = n.div_ceil(tile.rows);
        let numbers = n.checked_mul(kernel.cotangents())?.checked_add(gathered.len() * tiles)?;
        if !self.fits(numbers) {
            return None;
        }
        let inputs = Inputs::of(&chain, kept, entering)?;

        let matrices = self.packed(&matrices(net, true));
        let own = parameters(net);
        let given: Vec<&Tensor> = own.iter().copied().flatten().collect();
        let slopes = (!given.is_empty()).then(|| self.packed(&given));
        let mut operands = vec![&matrices.base, gy];
        let mut params = vec![n as u32, tiles as u32];
        params.extend(&matrices.places);
        operands.extend(gdy);
        if let Some(kept) = of_activations.first() {
            operands.push(&kept.base);
            params.push(kept.stride);
            params.extend(&kept.places);
        }
        if let Some((base, places)) = &at_activations {
            operands.push(base);
            params.extend(places);
        }
        if let Some(slopes) = &slopes {
            operands.push(&slopes.base);
            let mut places = slopes.places.iter();
            params.extend(own.iter().map(|b| if b.is_some() { *places.next().expect("as many") } else { 0 }));
        }
        let out = self.output(&operands, [numbers].into());
        self.launch(&kernel, &operands, &[&out], &params, tile.groups(n));
        self.net_gradients(&kernel, &out, n, &inputs, grads);

        let shape = gy.shape().with_channels(width);
        let before = kernel.before(chain.products());
        let window = |copy: usize| out.window(n * (before + copy * width), shape);
        Some((window(0), gdy.iter().map(|_| window(1)).collect()))
    }
}
