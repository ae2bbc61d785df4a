//! Elementwise operations: element i of the result is a function of element i of the operands, one of which may be broadcast.

use resflow_backend::{Binary, MAX_RANK, Shape, Unary};

use crate::deferred::LARGEST;
use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, bits, each, groups};
use crate::tensor::Tensor;

/// Where element i of the result finds its element of a broadcast operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Broadcast {
    /// At i.
    Same,
    /// At (i div a) mod b: the kept axes stand together.
    Run,
    /// By a stride for each axis.
    Strided,
}

impl Broadcast {
    #[cfg(test)]
    const ALL: [Self; 3] = [Self::Same, Self::Run, Self::Strided];

    /// How a shape is broadcast to another, and the numbers that the kernel needs for it.
    fn of(from: Shape, to: Shape) -> (Self, Vec<u32>) {
        if from.elements() == to.elements() {
            return (Self::Same, Vec::new());
        }
        let mut extents = [1; MAX_RANK];
        let mut kept = [1; MAX_RANK];
        extents[MAX_RANK - to.rank()..].copy_from_slice(&to);
        kept[MAX_RANK - from.rank()..].copy_from_slice(&from);
        // what lies behind, within and before the run of kept axes
        let is_kept = |axis: usize| kept[axis] > 1;
        let last = (0..MAX_RANK).rev().find(|&axis| is_kept(axis));
        let Some(last) = last else { return (Self::Run, vec![1, 1]) };
        let behind: usize = extents[last + 1..].iter().product();
        let first = (0..=last).rev().take_while(|&a| is_kept(a) || extents[a] == 1).last().unwrap_or(last);
        if (0..first).all(|axis| !is_kept(axis)) {
            let within: usize = extents[first..=last].iter().product();
            return (Self::Run, vec![behind as u32, within as u32]);
        }
        let mut strides = [0; MAX_RANK];
        let mut stride = 1;
        for axis in (0..MAX_RANK).rev() {
            if is_kept(axis) {
                strides[axis] = stride as u32;
            }
            stride *= kept[axis];
        }
        (Self::Strided, extents[1..].iter().map(|&e| e as u32).chain(strides).collect())
    }

    fn params(self) -> &'static [&'static str] {
        match self {
            Self::Same => &[],
            Self::Run => &["behind: u32", "within: u32"],
            Self::Strided => {
                &["e1: u32", "e2: u32", "e3: u32", "e4: u32", "s0: u32", "s1: u32", "s2: u32", "s3: u32", "s4: u32"]
            }
        }
    }

    /// The function `at`.
    fn text(self) -> &'static str {
        match self {
            Self::Same => "fn at(i: u32) -> u32 { return i; }\n",
            Self::Run => "fn at(i: u32) -> u32 { return (i / p.behind) % p.within; }\n",
            Self::Strided => {
                "fn at(i: u32) -> u32 {
  var rest = i;
  var found = (rest % p.e4) * p.s4; rest = rest / p.e4;
  found = found + (rest % p.e3) * p.s3; rest = rest / p.e3;
  found = found + (rest % p.e2) * p.s2; rest = rest / p.e2;
  found = found + (rest % p.e1) * p.s1; rest = rest / p.e1;
  return found + rest * p.s0;
}
"
            }
        }
    }
}

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Elementwise {
    Full,
    Affine,
    Axpy,
    Unary(Unary),
    Binary(Binary, Broadcast),
    Select(Broadcast),
}

/// f(v) as an expression.
pub(crate) fn unary_text(op: Unary) -> &'static str {
    match op {
        Unary::Neg => "-v",
        Unary::Abs => "abs(v)",
        Unary::Exp => "exponential(v)",
        Unary::ExpM1 => "exponential_minus_one(v)",
        Unary::Ln => "logarithm(v)",
        Unary::Ln1p => "logarithm_of_one_plus(v)",
        Unary::Sqrt => "sqrt(v)",
        Unary::Square => "v * v",
        Unary::Reciprocal => "1.0 / v",
        Unary::Tanh => "hyperbolic_tangent(v)",
        Unary::Sin => "circular(v, 0)",
        Unary::Cos => "circular(v, 1)",
        Unary::Floor => "floor(v)",
        Unary::IsFinite => "truth(is_finite(v))",
    }
}

/// f(v, w) as an expression.
pub(crate) fn binary_text(op: Binary) -> &'static str {
    match op {
        Binary::Add => "v + w",
        Binary::Sub => "v - w",
        Binary::Mul => "v * w",
        Binary::Div => "v / w",
        Binary::Max => "larger(v, w)",
        Binary::Min => "smaller(v, w)",
        Binary::Less => "truth(ordered(v, w) && v < w)",
        Binary::LessEqual => "truth(ordered(v, w) && v <= w)",
    }
}

impl Kernel for Elementwise {
    fn source(&self) -> Source {
        let (reads, own, broadcast, value): (&[&str], &[&str], _, String) = match *self {
            Self::Full => (&[], &["value: u32"], None, "bitcast<f32>(p.value)".into()),
            Self::Affine => (&["x"], &["scale: f32", "shift: f32"], None, "fma(p.scale, x[p.x + i], p.shift)".into()),
            Self::Axpy => (&["x", "y"], &["alpha: f32"], None, "fma(p.alpha, x[p.x + i], y[p.y + i])".into()),
            Self::Unary(op) => (&["x"], &[], None, unary_text(op).replace('v', "x[p.x + i]")),
            Self::Binary(op, broadcast) => {
                let value = binary_text(op).replace('w', "y[p.y + at(i)]");
                // no name of a function contains a v
                (&["x", "y"], &[], Some(broadcast), value.replace('v', "x[p.x + i]"))
            }
            Self::Select(broadcast) => {
                let value = "select(on[p.on + i], off[p.off + i], is_zero(mask[p.mask + at(i)]))";
                (&["mask", "on", "off"], &[], Some(broadcast), value.into())
            }
        };
        let params = own.iter().chain(broadcast.map_or(&[][..], Broadcast::params)).copied();
        Source {
            reads: reads.to_vec(),
            writes: vec!["out"],
            params: ["n: u32"].into_iter().chain(params).collect(),
            body: broadcast.map_or("", Broadcast::text).to_owned() + &each(&format!("  out[i] = {value};")),
            ..Source::default()
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        let mut all = vec![Self::Full, Self::Affine, Self::Axpy];
        all.extend(Unary::ALL.map(Self::Unary));
        for broadcast in Broadcast::ALL {
            all.extend(Binary::ALL.map(|op| Self::Binary(op, broadcast)));
            all.push(Self::Select(broadcast));
        }
        all
    }
}

impl Gpu {
    fn elementwise(&self, kernel: Elementwise, operands: &[&Tensor], shape: Shape, params: &[u32]) -> Tensor {
        if let Some(out) = self.defer_elementwise(kernel, operands, shape, params) {
            return out;
        }
        let out = self.output(operands, shape);
        let n = shape.elements();
        let params: Vec<u32> = [n as u32].into_iter().chain(params.iter().copied()).collect();
        let groups = groups(n, WORKGROUP as usize);
        self.launch(&kernel, operands, &[&out], &params, groups);
        out
    }

    pub(crate) fn full(&self, value: f64, shape: Shape) -> Tensor {
        let make = |elements: usize| self.elementwise(Elementwise::Full, &[], [elements].into(), &[bits(value)]);
        let elements = shape.elements();
        let one = |_| self.upload_kept(&(value as f32).to_ne_bytes(), [1].into());
        match elements {
            1 if self.arena().is_none() => self.constant(value as f32, 1, one).window(0, shape),
            1..=LARGEST if self.arena().is_some() => self.constant(value as f32, elements, make).window(0, shape),
            _ => make(elements).window(0, shape),
        }
    }

    pub(crate) fn unary(&self, op: Unary, x: &Tensor) -> Tensor {
        self.elementwise(Elementwise::Unary(op), &[x], x.shape(), &[])
    }

    pub(crate) fn affine(&self, x: &Tensor, scale: f64, shift: f64) -> Tensor {
        self.elementwise(Elementwise::Affine, &[x], x.shape(), &[bits(scale), bits(shift)])
    }

    pub(crate) fn axpy(&self, alpha: f64, x: &Tensor, y: &Tensor) -> Tensor {
        assert_eq!(x.shape(), y.shape(), "axpy: the shapes differ");
        self.elementwise(Elementwise::Axpy, &[x, y], y.shape(), &[bits(alpha)])
    }

    pub(crate) fn binary(&self, op: Binary, a: &Tensor, b: &Tensor) -> Tensor {
        let (to, from) = (a.shape(), b.shape());
        assert!(from.broadcasts_to(&to), "binary: {op:?} cannot broadcast {from} to {to}");
        let (broadcast, params) = Broadcast::of(from, to);
        self.elementwise(Elementwise::Binary(op, broadcast), &[a, b], to, &params)
    }

    pub(crate) fn select(&self, mask: &Tensor, on: &Tensor, off: &Tensor) -> Tensor {
        let (shape, small) = (on.shape(), mask.shape());
        assert_eq!(shape, off.shape(), "select: the shapes differ");
        assert!(small.broadcasts_to(&shape), "select: the mask {small} cannot broadcast to {shape}");
        let (broadcast, params) = Broadcast::of(small, shape);
        self.elementwise(Elementwise::Select(broadcast), &[mask, on, off], shape, &params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_where_the_kept_axes_stand_together() {
        let of = |from: &[usize], to: &[usize]| Broadcast::of(from.into(), to.into());
        assert_eq!(of(&[3, 4], &[3, 4]), (Broadcast::Same, vec![]));
        assert_eq!(of(&[1], &[3, 4]), (Broadcast::Run, vec![1, 1]));
        assert_eq!(of(&[4], &[3, 4]), (Broadcast::Run, vec![1, 4]));
        assert_eq!(of(&[3, 1], &[3, 4]), (Broadcast::Run, vec![4, 3]));
        assert_eq!(of(&[5, 1, 1, 1], &[5, 2, 3, 4]), (Broadcast::Run, vec![24, 5]));
        assert_eq!(of(&[2, 1, 3, 1], &[2, 1, 3, 4]), (Broadcast::Run, vec![4, 6]));
        assert_eq!(of(&[2, 1, 3], &[2, 5, 3]), (Broadcast::Strided, vec![1, 2, 5, 3, 0, 0, 3, 0, 1]));
    }
}
