//! Operations that only move elements.

use ndarray::IxDyn;
use resflow_backend::Shape;

use crate::matmul::transpose;
use crate::tensor::view_mut;
use crate::{CpuElement, NdArray, Tensor};

impl<E: CpuElement> NdArray<E> {
    pub(crate) fn permute_op(&self, x: &Tensor<E>, axes: &[usize]) -> Tensor<E> {
        let shape = x.shape();
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..shape.rank()), "permute: {axes:?} is not an order of the axes of {shape}");
        let extents: Vec<usize> = axes.iter().map(|&a| shape[a]).collect();
        let target = Shape::new(&extents);
        if axes == [1, 0] {
            return self.filled(target, |out| transpose(x.as_slice(), shape[0], shape[1], out));
        }
        self.filled(target, |out| {
            view_mut(out, target).assign(&x.view().permuted_axes(IxDyn(axes)));
        })
    }

    pub(crate) fn concat_op(&self, parts: &[&Tensor<E>], axis: usize) -> Tensor<E> {
        let first = parts.first().expect("concat: at least one tensor").shape();
        assert!(axis < first.rank(), "concat: {first} has no axis {axis}");
        let mut extents = first.to_vec();
        extents[axis] = parts.iter().map(|p| p.shape().get(axis).copied().unwrap_or(0)).sum();
        for part in parts {
            let same = part.shape().rank() == first.rank()
                && (0..first.rank()).all(|a| a == axis || part.shape()[a] == first[a]);
            assert!(same, "concat: {} does not fit {first} along axis {axis}", part.shape());
        }
        let outer: usize = extents[..axis].iter().product();
        let row: usize = extents[axis..].iter().product();
        self.filled(Shape::new(&extents), |out| {
            let mut start = 0;
            for part in parts {
                let width: usize = part.shape()[axis..].iter().product();
                for i in 0..outer {
                    out[i * row + start..i * row + start + width]
                        .copy_from_slice(&part.as_slice()[i * width..(i + 1) * width]);
                }
                start += width;
            }
        })
    }

    pub(crate) fn narrow_op(&self, x: &Tensor<E>, axis: usize, start: usize, length: usize) -> Tensor<E> {
        let shape = x.shape();
        assert!(
            axis < shape.rank() && start.checked_add(length).is_some_and(|end| end <= shape[axis]),
            "narrow: {start}..{start}+{length} of axis {axis} of {shape}"
        );
        let inner: usize = shape[axis + 1..].iter().product();
        let mut extents = shape.to_vec();
        extents[axis] = length;
        let target = Shape::new(&extents);
        if shape[..axis].iter().all(|&e| e == 1) {
            return x.window(start * inner, target);
        }
        let (from, to) = (shape[axis] * inner, length * inner);
        self.filled(target, |out| {
            if to > 0 {
                for (i, out) in out.chunks_exact_mut(to).enumerate() {
                    out.copy_from_slice(&x.as_slice()[i * from + start * inner..i * from + start * inner + to]);
                }
            }
        })
    }

    pub(crate) fn take_rows_op(&self, x: &Tensor<E>, indices: &[u32]) -> Tensor<E> {
        let shape = x.shape();
        assert!(shape.rank() > 0, "take_rows: {shape} has no rows");
        let width = shape.row_elements();
        self.filled(shape.with_rows(indices.len()), |out| {
            for (j, &i) in indices.iter().enumerate() {
                let i = i as usize;
                assert!(i < shape.rows(), "take_rows: there is no row {i} in {shape}");
                out[j * width..(j + 1) * width].copy_from_slice(&x.as_slice()[i * width..(i + 1) * width]);
            }
        })
    }
}
