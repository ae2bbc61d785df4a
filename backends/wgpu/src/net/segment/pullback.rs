//! The pullback of a value and at most one tangent: cotangents back in a launch a segment, then the gradients of all layers
//! ([`gradient`](super::gradient)).

use std::fmt::Write as _;

use resflow_backend::{Activation, Net, Over, Reduce};

use super::super::tile::Tile;
use super::super::{KEPT, MATRICES, SLOPES, TANGENTS};
use super::gradient::{Factors, Job};
use super::text::PARAMS;
use super::{Cut, Known, Part, Placed, Segment, Step};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, tree};
use crate::tensor::Tensor;

const APART: [&str; 3] = ["d0: u32", "d1: u32", "d2: u32"];

/// Cotangents at the results of the products of a segment but the first, and what leaves; shares of the gradients of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentPullback {
    segment: Segment,
    tile: Tile,
    /// Whether there is a tangent.
    tangent: bool,
}

impl SegmentPullback {
    /// A cotangent, or two.
    fn copies(&self) -> usize {
        1 + usize::from(self.tangent)
    }

    /// Whether the cotangent that enters a step is written: that which enters the segment is there already.
    fn is_stored(&self, step: usize) -> bool {
        let placed = self.segment.placed();
        step == placed.len() || step > 0 && matches!(placed[step].step, Step::Product { .. })
    }

    /// The numbers of a pixel before the cotangent that enters a step, which has that of the tangent behind it; with the number
    /// of all steps, before what leaves.
    fn before(&self, step: usize) -> usize {
        let placed = self.segment.placed();
        let stored = placed[..step].iter().enumerate().filter(|(at, _)| self.is_stored(*at));
        self.copies() * stored.map(|(_, p)| p.inputs).sum::<usize>()
    }

    /// The numbers of a pixel before the shares of parameters.
    fn cotangents(&self) -> usize {
        self.before(self.segment.placed().len()) + self.copies() * self.segment.outputs()
    }

    /// The cotangents before a function, and this workgroup's share of its parameter's gradient.
    fn function(&self, f: Activation, placed: &Placed, gathered: &[usize]) -> String {
        let (number, width, tile) = (placed.number, placed.inputs, self.tile);
        let kept = |k: usize| format!("kept[p.kept + p.k{number} + {k}u * p.d{number} + row * {width}u + c]");
        let (mut crossed, mut others) = (String::from("0.0"), "");
        if self.tangent {
            crossed = format!("tangent[p.tangent + p.t{number} + row * {width}u + c] * other[at]");
            others = "      other[at] = other[at] * d1;\n";
        }
        let (mut text, mut share) = (String::new(), String::new());
        if f.has_parameter() {
            share = format!(
                "      if (inside) {{
        let v = {};
        share = share + g * (v * d1 - {}) + crossed * v * d2;
      }}
",
                kept(0),
                kept(1)
            );
            text += "  share = 0.0;\n";
        }
        let statements = format!(
            "      let d1 = {};
      let d2 = {};
      let g = own[at];
      let crossed = {crossed};
      own[at] = fma(g, d1, crossed * d2);
{others}{share}",
            kept(2),
            kept(3)
        );
        text += &self.segment.each(tile, width, &statements);
        if let Some(place) = gathered.iter().position(|&own| own == number) {
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

impl Kernel for SegmentPullback {
    fn source(&self) -> Source {
        let (segment, tile) = (&self.segment, self.tile);
        let count = self.copies();
        let (tiles, sources) = (&["own", "other"][..count], &["gy[p.gy", "gdy[p.gdy"][..count]);
        let gathered = segment.parameters();
        let store = |step: usize, width: usize| {
            let mut text = String::new();
            for (copy, tile) in tiles.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "      if (inside) {{ out[p.n * {}u + row * {width}u + c] = {tile}[at]; }}",
                    self.before(step) + copy * width
                );
            }
            segment.each(tile, width, &text)
        };
        let mut main = segment.load(tile, tiles, sources);
        let placed = segment.placed();
        for (at, step) in placed.iter().enumerate() {
            if self.is_stored(at) {
                main += &store(at, step.inputs);
            }
            main += &match step.step {
                Step::Product { .. } => segment.multiply(tile, tiles, sources, step.number, &str::to_owned),
                Step::Function(f) => self.function(f, step, &gathered),
                Step::Slopes => String::new(),
            };
        }
        main += &store(placed.len(), segment.outputs());
        let (mut reads, mut params) = (vec!["gy"], PARAMS.to_vec());
        params.push("tiles: u32");
        if self.tangent {
            reads.push("gdy");
        }
        if segment.products() > 0 {
            reads.push("matrix");
            params.extend(&MATRICES[..segment.products()]);
        }
        if segment.functions() > 0 {
            reads.push("kept");
            params.extend(&KEPT[..segment.functions()]);
            params.extend(&APART[..segment.functions()]);
            if self.tangent {
                reads.push("tangent");
                params.extend(&TANGENTS[..segment.functions()]);
            }
        }
        let (mut body, mut shared) = segment.declare(tile, tiles);
        if !gathered.is_empty() {
            reads.push("slope");
            params.extend(&SLOPES[..segment.functions()]);
            body += &tree("combined", "parts", "f32", WORKGROUP, "a + b");
            shared += 4 * WORKGROUP;
            main = "  var share = 0.0;\n".to_owned() + &main;
        }
        body += &segment.main(tile, &main);
        Source { reads, writes: vec!["out"], params, body, shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |segment: Segment| {
            [false, true].into_iter().flat_map(move |tangent| {
                let tiles = segment.tiles(1 + usize::from(tangent)).into_iter();
                tiles.map(move |tile| Self { segment, tile, tangent })
            })
        };
        Segment::some(false).into_iter().filter(|s| s.back).flat_map(of).collect()
    }
}

/// What the functions of a part kept: windows of one buffer, in which x, φ, φ′ and φ″ of a function lie at equal distances.
#[derive(Default)]
struct Kept {
    base: Option<Tensor>,
    places: Vec<u32>,
    apart: Vec<u32>,
}

impl Kept {
    /// `None` where they do not lie so.
    fn of(cut: &Cut, part: &Part, kept: &[&[Tensor]]) -> Option<Self> {
        let mut found = Self::default();
        for (placed, &layer) in part.segment.placed().iter().zip(&part.layers) {
            if matches!(placed.step, Step::Product { .. }) {
                continue;
            }
            let [x, y, others @ ..] = kept[layer] else { return None };
            let apart = y.offset().checked_sub(x.offset())?;
            let at = |(k, t): (usize, &Tensor)| t.offset().checked_sub(x.offset()) == Some((k + 2) * apart);
            let first = found.base.get_or_insert_with(|| x.clone());
            let own =
                |t: &Tensor| t.elements() == cut.pixels * placed.inputs && t.storage().id() == first.storage().id();
            if others.len() != 2 || !others.iter().enumerate().all(at) || !kept[layer].iter().all(own) {
                return None;
            }
            found.places.push((x.offset() as u32).wrapping_sub(first.offset() as u32));
            found.apart.push(apart as u32);
        }
        Some(found)
    }
}

impl Gpu {
    /// (gx, gdx); `None` for a net that is left to others, for several tangents, and where what was kept is not as forward
    /// passes leave it.
    pub(crate) fn segments_pullback(
        &self,
        net: &Net<Tensor>,
        kept: &[&[Tensor]],
        tangents: &[Vec<&Tensor>],
        gy: &Tensor,
        gdy: &[Tensor],
        grads: &mut [Option<Tensor>],
    ) -> Option<(Tensor, Vec<Tensor>)> {
        let shape = gy.shape();
        let cut = Cut::ending(net, shape).filter(|_| tangents.len() <= 1)?;
        let entering = tangents.first().map_or(&[][..], |tangent| &tangent[..]);
        let widths = cut.widths();
        let sound = |(l, width): (usize, &usize)| {
            let inputs = matches!(cut.layers[l], Known::Product { .. }).then(|| &kept[l][0]);
            let all = inputs.into_iter().chain(entering.get(l).copied());
            all.into_iter().all(|x| x.elements() == cut.pixels * width)
        };
        let all: Vec<&Tensor> = kept.iter().copied().flatten().chain(entering.iter().copied()).collect();
        let faulty = all.iter().any(|x| x.fault().is_some());
        if faulty || !widths.iter().enumerate().all(sound) || gdy.iter().any(|g| g.shape() != shape) {
            return None;
        }
        let parts = cut.parts(cut.layers.len(), true, false);
        let tangent = !tangents.is_empty();
        let kernel = |part: &Part| {
            let tile = part.segment.tile(1 + usize::from(tangent), cut.pixels);
            SegmentPullback { segment: part.segment, tile, tangent }
        };
        let kernels: Vec<SegmentPullback> = parts.iter().map(kernel).collect();
        let of_parts: Vec<Kept> = parts.iter().map(|part| Kept::of(&cut, part, kept)).collect::<Option<_>>()?;
        let numbers = |kernel: &SegmentPullback| {
            let shares = kernel.segment.parameters().len() * Self::shares(kernel, &cut);
            cut.pixels.checked_mul(kernel.cotangents())?.checked_add(shares)
        };
        let numbers: Vec<usize> = kernels.iter().map(numbers).collect::<Option<_>>()?;
        if !numbers.iter().all(|&all| self.fits(all)) {
            return None;
        }
        // kernels are given one tensor of each buffer
        self.settle(&all);
        let mut passing: Vec<Tensor> = [gy].into_iter().chain(gdy).cloned().collect();
        let mut parameters: Vec<Option<Tensor>> = vec![None; cut.layers.len()];
        let mut jobs: Vec<Job> = Vec::new();
        for (((part, kernel), own), numbers) in parts.iter().zip(&kernels).zip(&of_parts).zip(numbers) {
            let out = self.part_pullback(net, &cut, (part, kernel), own, entering, &passing, numbers);
            let placed = part.segment.placed();
            let window = |step: usize, copy: usize, width: usize| {
                out.window(cut.pixels * (kernel.before(step) + copy * width), shape.with_channels(width))
            };
            for (at, (placed, &layer)) in placed.iter().zip(&part.layers).enumerate() {
                let Known::Product { kernel: taps, inputs, outputs, .. } = cut.layers[layer] else { continue };
                let gradient = |copy: usize| {
                    if at == 0 { passing[copy].clone() } else { window(at, copy, placed.inputs) }
                };
                let mut pairs = vec![Factors { gradient: gradient(0), input: kept[layer][0].clone() }];
                pairs.extend(entering.get(layer).map(|dx| Factors { gradient: gradient(1), input: (*dx).clone() }));
                jobs.push(Job { layer, kernel: taps.map(usize::from), inputs, outputs, pairs });
            }
            let functions: Vec<usize> =
                part.layers.iter().copied().filter(|&l| matches!(cut.layers[l], Known::Function(_))).collect();
            let shares = Self::shares(kernel, &cut);
            for (place, number) in part.segment.parameters().into_iter().enumerate() {
                let share = out.window(cut.pixels * kernel.cotangents() + place * shares, [shares].into());
                parameters[functions[number]] = Some(self.reduce(Reduce::Sum, Over::All, &share));
            }
            let last = placed.len();
            passing = (0..passing.len()).map(|copy| window(last, copy, part.segment.outputs())).collect();
        }
        let gradients = self.segment_gradients(&cut, &jobs);
        self.add_gradients(net, gradients, parameters, grads);
        let gx = passing.remove(0);
        Some((gx, passing))
    }

    /// Workgroups, each of which leaves a share.
    fn shares(kernel: &SegmentPullback, cut: &Cut) -> usize {
        cut.pixels.div_ceil(kernel.tile.rows) * kernel.segment.blocks()
    }

    #[expect(clippy::too_many_arguments, reason = "a launch with all that it reads")]
    fn part_pullback(
        &self,
        net: &Net<Tensor>,
        cut: &Cut,
        (part, kernel): (&Part, &SegmentPullback),
        kept: &Kept,
        entering: &[&Tensor],
        passing: &[Tensor],
        numbers: usize,
    ) -> Tensor {
        let (mut operands, mut params) = (passing.to_vec(), cut.params());
        params.push(Self::shares(kernel, cut) as u32);
        if part.segment.products() > 0 {
            let packed = self.packed(&Cut::weights(net, part, false));
            operands.push(packed.base);
            params.extend(packed.places);
        }
        if let Some(base) = &kept.base {
            operands.push(base.clone());
            params.extend(kept.places.iter().chain(&kept.apart));
            let is_function = |l: &&usize| matches!(cut.layers[**l], Known::Function(_));
            let own: Vec<&Tensor> =
                part.layers.iter().filter(is_function).filter_map(|&l| entering.get(l).copied()).collect();
            if !own.is_empty() {
                let packed = self.packed(&own);
                operands.push(packed.base);
                params.extend(packed.places);
            }
        }
        if let Some((base, places)) = self.packed_parameters(&Cut::parameters(net, part)) {
            operands.push(base);
            params.extend(places);
        }
        let operands: Vec<&Tensor> = operands.iter().collect();
        let out = self.output(&operands, [numbers].into());
        self.launch(kernel, &operands, &[&out], &params, part.segment.groups(kernel.tile, cut.pixels));
        out
    }

    /// Adds the gradients of all layers: of weights and biases by layer, and of parameters.
    fn add_gradients(
        &self,
        net: &Net<Tensor>,
        mut gradients: Vec<(usize, [Tensor; 2])>,
        mut parameters: Vec<Option<Tensor>>,
        grads: &mut [Option<Tensor>],
    ) {
        let mut at = 0;
        let mut add = |gradient: Tensor| {
            let sum = grads[at].take();
            grads[at] = Some(sum.map_or(gradient.clone(), |sum| self.axpy(1.0, &gradient, &sum)));
            at += 1;
        };
        for (l, layer) in net.layers.iter().enumerate() {
            if let Some(found) = gradients.iter().position(|(layer, _)| *layer == l) {
                let (_, own) = gradients.swap_remove(found);
                own.into_iter().for_each(&mut add);
            } else if layer.trained() > 0 {
                add(parameters[l].take().expect("a share of each parameter"));
            }
        }
    }
}
