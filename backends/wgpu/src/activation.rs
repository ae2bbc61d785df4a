//! Activations with their derivatives, and their pullback, in one pass each.

use resflow_backend::{Activation, ActivationReverse, LIPSWISH_SCALE, Over, Reduce};

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, each, groups, tree};
use crate::tensor::Tensor;

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fused {
    /// The derivatives 0 to an order.
    Derivatives(Activation, usize),
    /// A part of the pullback. Derivatives are computed again: memory is slower than arithmetic.
    Reverse(Activation, Tangents),
}

/// The tangents that a part of a pullback is for: all at once would bind more than every device can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tangents {
    /// There are none.
    None,
    /// The first, with what comes of gy.
    First,
    /// A further one, whose part is added to gx.
    More,
}

/// `derivatives(x, b)`: φ, φ' and φ'', as in [`Activation::derivatives`].
pub(crate) fn derivatives(f: Activation) -> String {
    let body = match f {
        Activation::LipSwish => format!(
            "  let t = b * x;
  let s = 1.0 / (1.0 + exponential(-t));
  let q = 1.0 - s;
  let tq = t * q;
  let d = vec3<f32>(x * s, s * (1.0 + tq), b * s * q * (2.0 + tq - t * s));
  return d * {:?};",
            1.0 / LIPSWISH_SCALE
        ),
        Activation::Elu => "  let e = exponential(min(x, 0.0));
  return vec3<f32>(select(exponential_minus_one(min(x, 0.0)), x, x > 0.0), e, select(0.0, e, x < 0.0));"
            .into(),
        Activation::Softplus => "  let e = exponential(-abs(x));
  let s = select(1.0, e, x < 0.0) / (1.0 + e);
  let t = select(e, 1.0, x < 0.0) / (1.0 + e);
  return vec3<f32>(max(x, 0.0) + logarithm_of_one_plus(e), s, s * t);"
            .into(),
        Activation::Tanh => "  let t = hyperbolic_tangent(x);
  let d = 1.0 - t * t;
  return vec3<f32>(t, d, -2.0 * t * d);"
            .into(),
        Activation::Relu => "  return vec3<f32>(max(x, 0.0), truth(x > 0.0), 0.0);".into(),
        Activation::LipschitzCube => "  if (abs(x) < 1.0) { return vec3<f32>(x * x * x / 3.0, x * x, 2.0 * x); }
  return vec3<f32>(x - select(-0.6666667, 0.6666667, x > 0.0), 1.0, 0.0);"
            .into(),
        Activation::Sin => "  let t = 6.2831855 * x;
  let s = circular(t, 0);
  return vec3<f32>(s * 0.15915494, circular(t, 1), -6.2831855 * s);"
            .into(),
        Activation::Pila => "  if (x > 0.0) { return vec3<f32>(x, 1.0, 0.0); }
  let v = larger(x, -34.0);
  let e = exponential(2.5 * v);
  let q = v * v;
  return vec3<f32>(v * (12.5 * q - 5.0 * v + 1.0), (62.5 * v + 12.5) * q - 5.0 * v + 1.0, 62.5 * q * (5.0 * v + 4.0)) * e * e;"
            .into(),
    };
    format!("fn derivatives(x: f32, b: f32) -> vec3<f32> {{\n{body}\n}}\n")
}

impl Kernel for Fused {
    fn source(&self) -> Source {
        match *self {
            Self::Derivatives(f, order) => {
                let writes = ["y", "d1", "d2"][..=order].to_vec();
                let store = |(out, part)| format!("  {out}[i] = d.{part};");
                let stores: Vec<String> = writes.iter().zip(["x", "y", "z"]).map(store).collect();
                let stores = stores.join("\n");
                let (reads, b) =
                    if f.has_parameter() { (vec!["x", "slope"], "slope[p.slope]") } else { (vec!["x"], "1.0") };
                let main = each(&format!("  let d = derivatives(x[p.x + i], {b});\n{stores}"));
                Source { reads, writes, params: vec!["n: u32"], body: derivatives(f) + &main, ..Source::default() }
            }
            Self::Reverse(f, tangents) => reverse(f, tangents),
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let of = |f| {
            let orders = (0..=2).map(move |order| Self::Derivatives(f, order));
            orders.chain([Tangents::None, Tangents::First, Tangents::More].map(|part| Self::Reverse(f, part)))
        };
        Activation::ALL.into_iter().flat_map(of).collect()
    }
}

fn reverse(f: Activation, tangents: Tangents) -> Source {
    let (mut reads, mut writes) = (vec!["x", "gy"], vec!["gx"]);
    let (mut crossed, mut store) = ("0.0", "");
    if tangents != Tangents::None {
        reads.extend(["dx", "gdy"]);
        writes.push("gdx");
        crossed = "dx[p.dx + i] * gdy[p.gdy + i]";
        store = "gdx[i] = gdy[p.gdy + i] * d.y;";
    }
    let (mut b, mut own, mut gathered, mut shared) = ("1.0", "", "", 0);
    let mut text = derivatives(f);
    if f.has_parameter() {
        reads.push("slope");
        writes.push("terms");
        b = "slope[p.slope]";
        own = match tangents {
            Tangents::More => "own = crossed * v * d.z / b;",
            _ => "own = (g * (v * d.y - d.x) + crossed * v * d.z) / b;",
        };
        gathered = "let total = combined(thread, own);
  if (thread == 0u) { terms[group.y * groups.x + group.x] = total; }";
        text += &tree("combined", "parts", "f32", WORKGROUP, "a + b");
        shared = 4 * WORKGROUP;
    }
    // of a further tangent, gy is the gx so far
    let from_gy = if tangents == Tangents::More { "1.0" } else { "d.y" };
    let main = format!(
        "@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let i = (group.y * groups.x + group.x) * {WORKGROUP}u + thread;
  var own = 0.0;
  if (i < p.n) {{
    let b = {b};
    let v = x[p.x + i];
    let d = derivatives(v, b);
    let g = gy[p.gy + i];
    let crossed = {crossed};
    gx[i] = fma(g, {from_gy}, crossed * d.z);
    {store}
    {own}
  }}
  {gathered}
}}
"
    );
    Source { reads, writes, params: vec!["n: u32"], body: text + &main, shared, ..Source::default() }
}

impl Gpu {
    pub(crate) fn activation(
        &self,
        f: Activation,
        parameter: Option<&Tensor>,
        x: &Tensor,
        order: usize,
    ) -> Vec<Tensor> {
        assert!(order <= 2, "activation: derivatives up to order 2 exist, not {order}");
        let operands = operands(f, parameter, vec![x]);
        let shape = x.shape();
        let results: Vec<Tensor> = (0..=order).map(|_| self.output(&operands, shape)).collect();
        let n = shape.elements();
        let kernel = Fused::Derivatives(f, order);
        let writes: Vec<&Tensor> = results.iter().collect();
        self.launch(&kernel, &operands, &writes, &[n as u32], groups(n, WORKGROUP as usize));
        results
    }

    /// The pullback, a launch for each tangent.
    pub(crate) fn activation_reverse(
        &self,
        f: Activation,
        parameter: Option<&Tensor>,
        x: &Tensor,
        gy: &Tensor,
        tangents: &[Tensor],
        gdy: &[Tensor],
    ) -> ActivationReverse<Tensor> {
        let shape = x.shape();
        for t in [gy].into_iter().chain(tangents).chain(gdy) {
            assert_eq!(t.shape(), shape, "activation_reverse: the shapes differ: {} and {shape}", t.shape());
        }
        let pairs: Vec<[&Tensor; 2]> = tangents.iter().zip(gdy).map(Into::into).collect();
        let Some((first, more)) = pairs.split_first() else {
            let (gx, _, parameter) = self.reverse_part(f, parameter, vec![x, gy], Tangents::None);
            return ActivationReverse { gx, gdx: Vec::new(), parameter };
        };
        let (gx, gdx, own) = self.reverse_part(f, parameter, vec![x, gy, first[0], first[1]], Tangents::First);
        let mut result = ActivationReverse { gx, gdx: gdx.into_iter().collect(), parameter: own };
        for [dx, gdy] in more {
            let operands = vec![x, &result.gx, dx, gdy];
            let (gx, gdx, own) = self.reverse_part(f, parameter, operands, Tangents::More);
            result.gx = gx;
            result.gdx.extend(gdx);
            result.parameter = result.parameter.zip(own).map(|(sum, own)| self.axpy(1.0, &own, &sum));
        }
        result
    }

    /// gx, gdx and the parameter's gradient.
    fn reverse_part(
        &self,
        f: Activation,
        parameter: Option<&Tensor>,
        list: Vec<&Tensor>,
        tangents: Tangents,
    ) -> (Tensor, Option<Tensor>, Option<Tensor>) {
        let shape = list[0].shape();
        let operands = operands(f, parameter, list);
        let n = shape.elements();
        let grid = groups(n, WORKGROUP as usize);
        let gx = self.output(&operands, shape);
        let gdx = (tangents != Tangents::None).then(|| self.output(&operands, shape));
        let parts = grid[0] as usize * grid[1] as usize;
        let terms = f.has_parameter().then(|| self.output(&operands, [parts].into()));
        let writes: Vec<&Tensor> = [&gx].into_iter().chain(&gdx).chain(&terms).collect();
        self.launch(&Fused::Reverse(f, tangents), &operands, &writes, &[n as u32], grid);
        let own = terms.map(|terms| self.reduce(Reduce::Sum, Over::All, &terms));
        (gx, gdx, own)
    }
}

/// The operands of a kernel, with the activation's parameter last if it has one.
fn operands<'a>(f: Activation, parameter: Option<&'a Tensor>, mut list: Vec<&'a Tensor>) -> Vec<&'a Tensor> {
    if f.has_parameter() {
        let b = parameter.expect("activation: LipSwish needs its parameter b");
        assert_eq!(b.elements(), 1, "activation: one parameter, not {}", b.shape());
        list.push(b);
    }
    list
}
