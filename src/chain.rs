//! The way of rows through a chain of links, and back.
//!
//! After a link some channels may be finished: they leave the chain, the rest goes on. z is what has left, in that order,
//! and then the rest, each part flattened in (C, H, W) order.

use resflow_backend::Backend;

use crate::bijection::Bijection;
use crate::error::ConfigError;
use crate::transform::{from_vectors, to_vectors};

/// The shapes of the parts of z.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Parts {
    left: Vec<Vec<usize>>,
    last: Vec<usize>,
}

impl Parts {
    /// The parts that rows of a shape end up in.
    pub(crate) fn of<B: Backend>(links: &[Box<dyn Bijection<B>>], input: &[usize]) -> Result<Self, ConfigError> {
        let mut left = Vec::new();
        let mut row = input.to_vec();
        for link in links {
            row = link.output(&row)?;
            let leaving = link.leaving();
            if leaving > 0 {
                let channels = row.last_mut().filter(|c| **c > leaving);
                let channels = channels.ok_or_else(|| {
                    ConfigError::Inconsistent(format!("{leaving} channels cannot leave rows of shape {input:?}"))
                })?;
                *channels -= leaving;
                let mut part = row.clone();
                if let Some(channels) = part.last_mut() {
                    *channels = leaving;
                }
                left.push(part);
            }
        }
        Ok(Self { left, last: row })
    }

    /// z `[n, d]` as parts, the last one the one that goes on.
    fn split<B: Backend>(&self, backend: &B, z: &B::Tensor) -> Vec<B::Tensor> {
        if self.left.is_empty() {
            return vec![from_vectors(backend, z, &self.last)];
        }
        let mut at = 0;
        let mut part = |row: &Vec<usize>| {
            let width = row.iter().product();
            let part = backend.narrow(z, 1, at, width);
            at += width;
            from_vectors(backend, &part, row)
        };
        self.left.iter().chain([&self.last]).map(&mut part).collect()
    }
}

/// Rows on their way forth.
#[derive(Debug)]
pub(crate) struct Forth<B: Backend> {
    /// What is still in the chain.
    pub(crate) rows: B::Tensor,
    left: Vec<B::Tensor>,
}

impl<B: Backend> Forth<B> {
    pub(crate) fn new(rows: B::Tensor) -> Self {
        Self { rows, left: Vec::new() }
    }

    /// After a link: its output, of which so many channels leave.
    pub(crate) fn pass(&mut self, backend: &B, y: B::Tensor, leaving: usize) {
        if leaving == 0 {
            self.rows = y;
            return;
        }
        let shape = backend.shape(&y);
        let (axis, stay) = (shape.rank() - 1, shape.channels() - leaving);
        self.left.push(backend.narrow(&y, axis, stay, leaving));
        self.rows = backend.narrow(&y, axis, 0, stay);
    }

    /// z `[n, d]` and the shapes of its parts.
    pub(crate) fn finish(self, backend: &B) -> (B::Tensor, Parts) {
        let row = |x: &B::Tensor| backend.shape(x)[1..].to_vec();
        let parts = Parts { left: self.left.iter().map(row).collect(), last: row(&self.rows) };
        let last = to_vectors(backend, &self.rows);
        if self.left.is_empty() {
            return (last, parts);
        }
        let mut vectors: Vec<_> = self.left.iter().map(|x| to_vectors(backend, x)).collect();
        vectors.push(last);
        (backend.concat(&vectors.iter().collect::<Vec<_>>(), 1), parts)
    }
}

/// Rows, or cotangents, on their way back.
#[derive(Debug)]
pub(crate) struct Back<B: Backend> {
    rows: B::Tensor,
    left: Vec<B::Tensor>,
}

impl<B: Backend> Back<B> {
    /// From z or its cotangent, `[n, d]`.
    pub(crate) fn new(backend: &B, z: &B::Tensor, parts: &Parts) -> Self {
        let mut left = parts.split(backend, z);
        let rows = left.pop().expect("z has at least one part");
        Self { rows, left }
    }

    /// The output of a link after which so many channels left.
    pub(crate) fn output(&mut self, backend: &B, leaving: usize) -> B::Tensor {
        if leaving == 0 {
            return self.rows.clone();
        }
        let part = self.left.pop().expect("as many parts as links with leaving channels");
        let axis = backend.shape(&part).rank() - 1;
        backend.concat(&[&self.rows, &part], axis)
    }

    /// The input of that link.
    pub(crate) fn pass(&mut self, x: B::Tensor) {
        self.rows = x;
    }

    /// What has come back.
    pub(crate) fn finish(self) -> B::Tensor {
        self.rows
    }
}
