//! Layout: copies through strides, and rows by index. Slices of rows and reshaped views copy nothing.

use resflow_backend::{MAX_RANK, Shape};

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, each, groups};
use crate::tensor::Tensor;

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// out\[to + Σ iₐ tₐ\] = x\[from + Σ iₐ sₐ\] over a box of indices i.
    Strided,
    /// Rows by index.
    TakeRows,
}

impl Kernel for Layout {
    fn source(&self) -> Source {
        match self {
            Self::Strided => Source {
                reads: vec!["x"],
                writes: vec!["out"],
                params: vec![
                    "n: u32",
                    "from_at: u32",
                    "to_at: u32",
                    "e1: u32",
                    "e2: u32",
                    "e3: u32",
                    "e4: u32",
                    "s0: u32",
                    "s1: u32",
                    "s2: u32",
                    "s3: u32",
                    "s4: u32",
                    "t0: u32",
                    "t1: u32",
                    "t2: u32",
                    "t3: u32",
                    "t4: u32",
                ],
                body: each(
                    "  let i4 = i % p.e4; let r4 = i / p.e4;
  let i3 = r4 % p.e3; let r3 = r4 / p.e3;
  let i2 = r3 % p.e2; let r2 = r3 / p.e2;
  let i1 = r2 % p.e1; let i0 = r2 / p.e1;
  let source = p.x + p.from_at + i0 * p.s0 + i1 * p.s1 + i2 * p.s2 + i3 * p.s3 + i4 * p.s4;
  out[p.to_at + i0 * p.t0 + i1 * p.t1 + i2 * p.t2 + i3 * p.t3 + i4 * p.t4] = x[source];",
                ),
                ..Source::default()
            },
            Self::TakeRows => Source {
                reads: vec!["x", "rows:u32"],
                writes: vec!["out"],
                params: vec!["n: u32", "width: u32"],
                body: each("  out[i] = x[p.x + rows[p.rows + i / p.width] * p.width + i % p.width];"),
                ..Source::default()
            },
        }
    }
    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self::Strided, Self::TakeRows]
    }
}

/// Row-major strides of a shape, aligned at the last of [`MAX_RANK`] axes.
fn strides(shape: &Shape) -> [usize; MAX_RANK] {
    let mut out = [0; MAX_RANK];
    let mut stride = 1;
    for (axis, extent) in shape.iter().enumerate().rev() {
        out[MAX_RANK - shape.rank() + axis] = stride;
        stride *= extent;
    }
    out
}

/// The extents of a shape, likewise, with ones in front.
fn extents(shape: &Shape) -> [usize; MAX_RANK] {
    let mut out = [1; MAX_RANK];
    out[MAX_RANK - shape.rank()..].copy_from_slice(shape);
    out
}

impl Gpu {
    /// Copies a box of `count` indices from elements `from` on by strides into `out` from `to` on by other strides.
    fn strided(
        &self,
        x: &Tensor,
        out: &Tensor,
        count: [usize; MAX_RANK],
        (from, sources): (usize, [usize; MAX_RANK]),
        (to, targets): (usize, [usize; MAX_RANK]),
    ) {
        // what is in the arena was made for copies that wait
        if out.storage().is_in_arena() {
            return self.defer_copy(x, out, count, (from, sources), (to, targets));
        }
        let n: usize = count.iter().product();
        let params: Vec<u32> =
            [n, from, to].iter().chain(&count[1..]).chain(&sources).chain(&targets).map(|&v| v as u32).collect();
        self.launch(&Layout::Strided, &[x], &[out], &params, groups(n, WORKGROUP as usize));
    }

    /// Memory for what is copied by [`strided`](Self::strided).
    fn copied(&self, operands: &[&Tensor], shape: Shape) -> Tensor {
        self.copy_target(operands, shape).unwrap_or_else(|| self.output(operands, shape))
    }

    pub(crate) fn reshape(x: &Tensor, shape: Shape) -> Tensor {
        assert_eq!(x.elements(), shape.elements(), "reshape: {} to {shape}", x.shape());
        x.window(0, shape)
    }

    pub(crate) fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let shape = x.shape();
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..shape.rank()), "permute: {axes:?} are not the axes of {shape}");
        let to = Shape::new(&axes.iter().map(|&axis| shape[axis]).collect::<Vec<_>>());
        // axes of one element may stand anywhere
        let order = |axis: &&usize| shape[**axis] != 1;
        if axes.iter().filter(order).is_sorted() {
            return x.window(0, to);
        }
        let out = self.copied(&[x], to);
        let pad = MAX_RANK - shape.rank();
        let old = strides(&shape);
        let mut sources = [0; MAX_RANK];
        axes.iter().enumerate().for_each(|(at, &axis)| sources[pad + at] = old[pad + axis]);
        self.strided(x, &out, extents(&to), (0, sources), (0, strides(&to)));
        out
    }

    pub(crate) fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let first = parts.first().expect("concat: at least one tensor").shape();
        assert!(axis < first.rank(), "concat: no axis {axis} in {first}");
        let mut total = first.to_vec();
        total[axis] = 0;
        for part in parts {
            let shape = part.shape();
            let fits = shape.rank() == first.rank() && (0..first.rank()).all(|i| i == axis || shape[i] == first[i]);
            assert!(fits, "concat: {first} and {shape} differ outside axis {axis}");
            total[axis] += shape[axis];
        }
        let to = Shape::new(&total);
        let filled: Vec<&&Tensor> = parts.iter().filter(|part| part.elements() > 0).collect();
        if let [only] = filled[..] {
            return only.window(0, to);
        }
        let out = self.copied(parts, to);
        let targets = strides(&to);
        let mut at = 0;
        for part in filled {
            let shape = part.shape();
            let start = at * targets[MAX_RANK - to.rank() + axis];
            self.strided(part, &out, extents(&shape), (0, strides(&shape)), (start, targets));
            at += shape[axis];
        }
        out
    }

    pub(crate) fn narrow(&self, x: &Tensor, axis: usize, start: usize, length: usize) -> Tensor {
        let shape = x.shape();
        let fits = axis < shape.rank() && start.checked_add(length).is_some_and(|end| end <= shape[axis]);
        assert!(fits, "narrow: {length} from {start} on of axis {axis} of {shape}");
        let mut kept = shape.to_vec();
        kept[axis] = length;
        let to = Shape::new(&kept);
        let stride: usize = shape[axis + 1..].iter().product();
        // the axes before have one element: the slice is contiguous
        if shape[..axis].iter().all(|&extent| extent == 1) {
            return x.window(start * stride, to);
        }
        let out = self.copied(&[x], to);
        self.strided(x, &out, extents(&to), (start * stride, strides(&shape)), (0, strides(&to)));
        out
    }

    pub(crate) fn take_rows(&self, x: &Tensor, indices: &[u32]) -> Tensor {
        let shape = x.shape();
        let rows = shape.rows();
        assert!(indices.iter().all(|&i| (i as usize) < rows), "take_rows: {indices:?} of {shape}");
        let to = shape.with_rows(indices.len());
        let width = shape.row_elements();
        if indices.iter().enumerate().all(|(i, &index)| index as usize == indices[0] as usize + i) {
            return x.window(indices.first().map_or(0, |&i| i as usize) * width, to);
        }
        let list = self.upload(bytemuck::cast_slice(indices), [indices.len()].into());
        let out = self.output(&[x, &list], to);
        let n = to.elements();
        let params = [n as u32, width as u32];
        self.launch(&Layout::TakeRows, &[x, &list], &[&out], &params, groups(n, WORKGROUP as usize));
        out
    }
}
