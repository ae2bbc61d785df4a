//! The gradients of all layers of a net in one launch, and one that adds slices of rows.
//!
//! W̄ = Σ_rows gyᵀ a + gdyᵀ da with the inputs a of an affine layer and da of its tangent; a column of ones behind a makes the
//! bias of it. The shares of parameters that workgroups of the pullback left are added here, too. Rows are cut into slices, so
//! that there is work for many; slices are added in order.

use std::fmt::Write as _;

use resflow_backend::{Over, Reduce};

use super::pullback::Pullback;
use super::{Chain, ENTERING, INPUTS, Step};
use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, tree};
use crate::tensor::Tensor;

/// Rows and columns of a tile of the result, and rows of samples at a time.
const SIDE: usize = 32;
const DEPTH: usize = 16;
/// Rows of a slice at least, and slices at most.
const SLICE: usize = 128;
const SLICES: usize = 32;

/// The gradients of all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Gradient(Pullback);

/// A layer's part of the result.
struct Job {
    /// The number of the product.
    number: usize,
    inputs: usize,
    outputs: usize,
    /// Where its gradient begins.
    at: usize,
}

impl Gradient {
    fn jobs(&self) -> Vec<Job> {
        let mut at = 0;
        let job = |p: super::Placed| match p.step {
            Step::Product(_) => {
                let job = Job { number: p.number, inputs: p.inputs, outputs: p.outputs, at };
                at += p.outputs * (p.inputs + 1);
                Some(job)
            }
            Step::Activation(_) => None,
        };
        self.0.chain.placed().into_iter().filter_map(job).collect()
    }

    /// The numbers of all gradients: of each layer's weight and bias, then of parameters.
    fn numbers(&self) -> usize {
        let jobs = self.jobs();
        jobs.last().map_or(0, |job| job.at + job.outputs * (job.inputs + 1)) + self.0.chain.parameters().len()
    }

    /// Tiles of a slice.
    fn tiles(&self) -> usize {
        let of = |job: &Job| job.outputs.div_ceil(SIDE) * (job.inputs + 1).div_ceil(SIDE);
        self.jobs().iter().map(of).sum::<usize>() + self.0.chain.parameters().len()
    }

    /// Whether the first product takes what enters the net.
    fn leads(&self) -> bool {
        Inputs::leads(&self.0.chain)
    }

    /// Whether products take what activations left.
    fn follows(&self) -> bool {
        !self.leads() || self.0.chain.products() > 1
    }

    /// What workgroup `item` does: a tile of a layer's gradient, or a parameter's.
    fn body(&self) -> String {
        let (pullback, parameters) = (&self.0, self.0.chain.parameters());
        let mut body = String::new();
        let mut first = 0;
        for job in &self.jobs() {
            let (inputs, outputs, number) = (job.inputs, job.outputs, job.number);
            let across = (inputs + 1).div_ceil(SIDE);
            let last = first + outputs.div_ceil(SIDE) * across;
            let before = pullback.before(number);
            let leads = self.leads() && number == 0;
            let call = |tangent: bool| {
                let (name, place) = match (leads, tangent) {
                    (true, false) => ("of_x", "0u".to_owned()),
                    (true, true) => ("of_dx", "0u".to_owned()),
                    (false, false) => ("of_input", format!("p.i{number}")),
                    (false, true) => ("of_entering", format!("p.e{number}")),
                };
                let before = before + if tangent { outputs } else { 0 };
                format!(
                    "    sum = {name}(thread, p.n * {before}u, {place}, {outputs}u, {inputs}u, o, i, begin, end, sum);\n"
                )
            };
            let tangent = if pullback.tangent { call(true) } else { String::new() };
            let _ = writeln!(
                body,
                "  if (item >= {first}u && item < {last}u) {{
    let o = (item - {first}u) / {across}u * {SIDE}u;
    let i = (item - {first}u) % {across}u * {SIDE}u;
    var sum = vec4<f32>(0.0);
{}{tangent}    let at = group.y * {}u + {}u;
    let r = thread / 16u;
    let c = thread % 16u;
    store(at, {outputs}u, {inputs}u, o + r, i + c, sum.x);
    store(at, {outputs}u, {inputs}u, o + r, i + c + 16u, sum.y);
    store(at, {outputs}u, {inputs}u, o + r + 16u, i + c, sum.z);
    store(at, {outputs}u, {inputs}u, o + r + 16u, i + c + 16u, sum.w);
  }}",
                call(false),
                self.numbers(),
                job.at
            );
            first = last;
        }
        if !parameters.is_empty() {
            let _ = writeln!(
                body,
                "  if (item >= {first}u) {{
    // a slice's share of the tiles of the pullback
    let share = (p.tiles + groups.y - 1u) / groups.y;
    let stop = min((group.y + 1u) * share, p.tiles);
    var sum = 0.0;
    for (var t = group.y * share + thread; t < stop; t = t + {WORKGROUP}u) {{
      sum = sum + cotangent[p.cotangent + p.n * {}u + (item - {first}u) * p.tiles + t];
    }}
    sum = combined(thread, sum);
    if (thread == 0u) {{ out[group.y * {}u + {}u + item - {first}u] = sum; }}
  }}",
                pullback.cotangents(),
                self.numbers(),
                self.numbers() - parameters.len()
            );
        }
        body
    }
}

/// Σ_rows of products of a column of cotangents and a column of inputs, a tile of them at a time.
fn added(name: &str, inputs: &str, ones: &str) -> String {
    format!(
        "fn {name}(thread: u32, g_at: u32, a_at: u32, outputs: u32, inputs: u32, o: u32, i: u32, begin: u32, end: u32,
         start: vec4<f32>) -> vec4<f32> {{
  var sum = start;
  let r = thread / 16u;
  let c = thread % 16u;
  for (var first = begin; first < end; first = first + {DEPTH}u) {{
    // two numbers of each side by every thread
    for (var half = 0u; half < 2u; half = half + 1u) {{
      let e = thread + half * {WORKGROUP}u;
      let row = first + e / {SIDE}u;
      let column = e % {SIDE}u;
      var g = 0.0;
      var a = 0.0;
      if (row < end) {{
        if (o + column < outputs) {{ g = cotangent[p.cotangent + g_at + row * outputs + o + column]; }}
        if (i + column < inputs) {{ a = {inputs}[p.{inputs} + a_at + row * inputs + i + column]; }}
        if (i + column == inputs) {{ a = {ones}; }}
      }}
      left[e] = g;
      right[e] = a;
    }}
    workgroupBarrier();
    for (var k = 0u; k < {DEPTH}u; k = k + 1u) {{
      let g0 = left[k * {SIDE}u + r];
      let g1 = left[k * {SIDE}u + r + 16u];
      let a0 = right[k * {SIDE}u + c];
      let a1 = right[k * {SIDE}u + c + 16u];
      sum = fma(vec4<f32>(g0, g0, g1, g1), vec4<f32>(a0, a1, a0, a1), sum);
    }}
    workgroupBarrier();
  }}
  return sum;
}}
"
    )
}

impl Kernel for Gradient {
    fn source(&self) -> Source {
        let (pullback, chain) = (&self.0, &self.0.chain);
        let mut reads = vec!["cotangent"];
        let mut params = vec!["n: u32", "slice: u32", "tiles: u32"];
        let mut functions =
            format!("var<workgroup> left: array<f32, {0}>;\nvar<workgroup> right: array<f32, {0}>;\n", SIDE * DEPTH);
        let mut shared = 8 * (SIDE * DEPTH) as u32;
        if self.leads() {
            reads.push("x");
            functions += &added("of_x", "x", "1.0");
            if pullback.tangent {
                reads.push("dx");
                functions += &added("of_dx", "dx", "0.0");
            }
        }
        if self.follows() {
            reads.push("input");
            functions += &added("of_input", "input", "1.0");
            params.extend(&INPUTS[..chain.products()]);
            if pullback.tangent {
                reads.push("entering");
                functions += &added("of_entering", "entering", "0.0");
                params.extend(&ENTERING[..chain.products()]);
            }
        }
        functions += "fn store(at: u32, outputs: u32, inputs: u32, o: u32, i: u32, value: f32) {
  if (o >= outputs || i > inputs) { return; }
  // the bias behind the weight
  if (i == inputs) { out[at + outputs * inputs + o] = value; } else { out[at + o * inputs + i] = value; }
}
";
        if !chain.parameters().is_empty() {
            functions += &tree("combined", "parts", "f32", WORKGROUP, "a + b");
            shared += 4 * WORKGROUP;
        }
        let body = self.body();
        let main = format!(
            "@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.x;
  let begin = group.y * p.slice;
  let end = min(begin + p.slice, p.n);
{body}}}
"
        );
        Source { reads, writes: vec!["out"], params, body: functions + &main, shared, ..Source::default() }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let mut all: Vec<Self> = Pullback::variants().into_iter().map(Self::of).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|kernel| seen.insert(*kernel));
        all
    }
}

/// The inputs of affine layers and of their tangents, where kernels find them.
pub(super) struct Inputs {
    /// What enters the net, and its tangent, if the first layer is affine.
    own: Vec<Tensor>,
    /// What activations left, in one buffer, with the place of each product's; then the same of the tangent.
    others: Vec<(Tensor, Vec<u32>)>,
}

impl Inputs {
    /// Whether the first layer is affine: it takes what enters the net.
    fn leads(chain: &Chain) -> bool {
        matches!(chain.placed().first().map(|p| p.step), Some(Step::Product(_)))
    }

    /// `None` where they are not in one buffer.
    pub(super) fn of(chain: &Chain, kept: &[&[Tensor]], entering: &[&Tensor]) -> Option<Self> {
        let placed = chain.placed();
        let is_product = |l: &usize| matches!(placed[*l].step, Step::Product(_));
        let inputs: Vec<&Tensor> = (0..placed.len()).filter(is_product).map(|l| &kept[l][0]).collect();
        let tangents: Vec<&Tensor> = (0..entering.len()).filter(is_product).map(|l| entering[l]).collect();
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for list in [inputs, tangents] {
            let skipped = usize::from(Self::leads(chain) && !list.is_empty());
            own.extend(list[..skipped].iter().map(|x| (*x).clone()));
            let Some(first) = list.get(skipped) else { continue };
            if list[skipped..].iter().any(|x| x.storage().id() != first.storage().id()) {
                return None;
            }
            let place = |x: &&Tensor| (x.offset() as u32).wrapping_sub(first.offset() as u32);
            let places = std::iter::repeat_n(0, skipped).chain(list[skipped..].iter().map(place)).collect();
            others.push(((*first).clone(), places));
        }
        Some(Self { own, others })
    }
}

impl Gradient {
    /// Tiles of the pullback do not matter here.
    fn of(pullback: Pullback) -> Self {
        let tile = super::tile::Tile::of(pullback.chain.widest(), 1, 1);
        Self(Pullback { tile, ..pullback })
    }
}

impl Gpu {
    /// Adds the gradients of all layers, from what a pullback of n rows has written.
    pub(super) fn net_gradients(
        &self,
        pullback: &Pullback,
        cotangents: &Tensor,
        n: usize,
        inputs: &Inputs,
        grads: &mut [Option<Tensor>],
    ) {
        let kernel = Gradient::of(*pullback);
        let slice = SLICE.max(n.div_ceil(SLICES)).next_multiple_of(DEPTH);
        let slices = n.div_ceil(slice);
        let numbers = kernel.numbers();
        let mut operands = vec![cotangents];
        operands.extend(&inputs.own);
        let mut params = vec![n as u32, slice as u32, n.div_ceil(pullback.tile.rows) as u32];
        for (base, places) in &inputs.others {
            operands.push(base);
            params.extend(places);
        }
        let parts = self.output(&operands, [slices, numbers].into());
        self.launch(&kernel, &operands, &[&parts], &params, [kernel.tiles() as u32, slices as u32, 1]);
        let all = if slices == 1 { parts } else { self.reduce(Reduce::Sum, Over::Channel, &parts) };

        // in the order of the layers: weight and bias, or parameter
        let (mut jobs, mut at) = (kernel.jobs().into_iter(), 0);
        let mut shares = numbers - pullback.chain.parameters().len();
        let mut add = |gradient: Tensor| {
            let sum = grads[at].take();
            grads[at] = Some(sum.map_or(gradient.clone(), |sum| self.axpy(1.0, &gradient, &sum)));
            at += 1;
        };
        for placed in pullback.chain.placed() {
            match placed.step {
                Step::Product(_) => {
                    let job = jobs.next().expect("a job for each product");
                    add(all.window(job.at, [job.outputs, job.inputs].into()));
                    add(all.window(job.at + job.outputs * job.inputs, [job.outputs].into()));
                }
                Step::Activation(f) if f.has_parameter() => {
                    add(all.window(shares, [1].into()));
                    shares += 1;
                }
                Step::Activation(_) => {}
            }
        }
    }
}
