//! The parts of z: what was factored out on the way, and the rest.

use resflow_backend::Backend;

use crate::bijection::Bijection;
use crate::error::ConfigError;
use crate::transform::{from_vectors, to_vectors};

/// The shapes of the parts of z.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Parts {
    left: Vec<Vec<usize>>,
    last: Vec<usize>,
}

impl Parts {
    /// Finds the parts that samples of a shape end up in.
    pub(super) fn of<B: Backend>(transforms: &[Box<dyn Bijection<B>>], input: &[usize]) -> Result<Self, ConfigError> {
        let mut left = Vec::new();
        let mut shape = input.to_vec();
        for transform in transforms {
            shape = transform.output_shape(&shape)?;
            let out = transform.factored_out();
            if out > 0 {
                let channels = shape.last_mut().filter(|c| **c > out);
                let channels = channels.ok_or_else(|| {
                    ConfigError::Inconsistent(format!("{out} channels cannot leave samples of shape {input:?}"))
                })?;
                *channels -= out;
                let mut part = shape.clone();
                if let Some(channels) = part.last_mut() {
                    *channels = out;
                }
                left.push(part);
            }
        }
        Ok(Self { left, last: shape })
    }

    /// d.
    pub(super) fn dimension(&self) -> usize {
        self.left.iter().chain([&self.last]).map(|part| part.iter().product::<usize>()).sum()
    }

    /// Splits z `[n, d]`, or its cotangent, into parts, the last one the one that goes on.
    pub(super) fn split<B: Backend>(&self, backend: &B, z: &B::Tensor) -> Vec<B::Tensor> {
        if self.left.is_empty() {
            return vec![from_vectors(backend, z, &self.last)];
        }
        let mut at = 0;
        let mut part = |shape: &Vec<usize>| {
            let width = shape.iter().product();
            let part = backend.narrow(z, 1, at, width);
            at += width;
            from_vectors(backend, &part, shape)
        };
        self.left.iter().chain([&self.last]).map(&mut part).collect()
    }

    /// Joins z `[n, d]` of its parts.
    pub(super) fn join<B: Backend>(backend: &B, left: &[B::Tensor], last: &B::Tensor) -> B::Tensor {
        let last = to_vectors(backend, last);
        if left.is_empty() {
            return last;
        }
        let mut vectors: Vec<_> = left.iter().map(|x| to_vectors(backend, x)).collect();
        vectors.push(last);
        backend.concat(&vectors.iter().collect::<Vec<_>>(), 1)
    }
}

/// Splits the output of a transform, `[n, …]`, into what goes on and what is factored out.
pub(super) fn part_with<B: Backend>(backend: &B, y: B::Tensor, factored_out: usize) -> (B::Tensor, Option<B::Tensor>) {
    if factored_out == 0 {
        return (y, None);
    }
    let shape = backend.shape(&y);
    let (axis, stay) = (shape.rank() - 1, shape.channels() - factored_out);
    let left = backend.narrow(&y, axis, stay, factored_out);
    (backend.narrow(&y, axis, 0, stay), Some(left))
}

/// Joins the output of a transform of what went on and what was factored out.
pub(super) fn reunite<B: Backend>(
    backend: &B,
    rest: B::Tensor,
    left: &mut Vec<B::Tensor>,
    factored_out: usize,
) -> B::Tensor {
    if factored_out == 0 {
        return rest;
    }
    let part = left.pop().expect("as many parts as transforms that factor out");
    let axis = backend.shape(&part).rank() - 1;
    backend.concat(&[&rest, &part], axis)
}
