//! A recorded computation: what a layer computes of its input and parameters, written once, with all the derivatives that layers have.
//!
//! A [`Term`] is a value with its tangents, all of which are entries of one list of operations. So a formula that is written for values
//! computes J dx beside them, and the way back through the list is the pullback of (x, dx) ↦ (f(x), J dx), parameters included: sums,
//! products, and four functions whose derivatives are made of sums and products of themselves,
//!
//! (eᵃ)' = eᵃ,  (a^{−½})' = −½ (a^{−½})³,  (1/a)' = −(1/a)²,  σ' = σ − σ².
//!
//! Invariant: an entry comes behind those that it is made of.

use resflow_backend::{Backend, Binary, Unary};

use crate::module::{Grad, accumulate};

/// The functions of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Exp,
    InverseRoot,
    Reciprocal,
    Sigmoid,
}

/// How an entry is made of others.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Given,
    Sum(usize, usize),
    Times(usize, usize),
    Affine(usize, f64),
    /// op(a) op(b) of matrices, each transposed or not.
    Product(usize, bool, usize, bool),
    Function(Function, usize),
    /// A run along an axis of a matrix.
    Narrow(usize, usize, usize),
}

/// A value, and its derivatives along the tangents of the input; `None` is zero.
#[derive(Debug, Clone)]
pub(super) struct Term {
    value: usize,
    tangents: Vec<Option<usize>>,
}

/// The list of operations on matrices.
#[derive(Debug)]
pub(super) struct Graph<'a, B: Backend> {
    pub(super) backend: &'a B,
    entries: Vec<(B::Tensor, Operation)>,
    tangents: usize,
}

impl<'a, B: Backend> Graph<'a, B> {
    pub(super) fn new(backend: &'a B, tangents: usize) -> Self {
        Self { backend, entries: Vec::new(), tangents }
    }

    fn push(&mut self, value: B::Tensor, operation: Operation) -> usize {
        self.entries.push((value, operation));
        self.entries.len() - 1
    }

    fn at(&self, entry: usize) -> &B::Tensor {
        &self.entries[entry].0
    }

    /// The value of a term.
    pub(super) fn value(&self, term: &Term) -> &B::Tensor {
        self.at(term.value)
    }

    /// The derivative of a term along a tangent, which may be zero.
    pub(super) fn tangent(&self, term: &Term, number: usize) -> Option<&B::Tensor> {
        term.tangents[number].map(|entry| self.at(entry))
    }

    /// Takes something that no tangent moves: a parameter, or a constant.
    pub(super) fn constant(&mut self, value: B::Tensor) -> Term {
        let value = self.push(value, Operation::Given);
        Term { value, tangents: vec![None; self.tangents] }
    }

    /// Takes a matrix of ones.
    pub(super) fn ones(&mut self, rows: usize, columns: usize) -> Term {
        let ones = self.backend.full(1.0, [rows, columns].into());
        self.constant(ones)
    }

    /// Takes the input, and its tangents.
    pub(super) fn input(&mut self, value: B::Tensor, tangents: Vec<B::Tensor>) -> Term {
        let value = self.push(value, Operation::Given);
        Term { value, tangents: tangents.into_iter().map(|t| Some(self.push(t, Operation::Given))).collect() }
    }

    fn sum_of(&mut self, a: usize, b: usize) -> usize {
        let sum = self.backend.axpy(1.0, self.at(a), self.at(b).clone());
        self.push(sum, Operation::Sum(a, b))
    }

    fn times_of(&mut self, a: usize, b: usize) -> usize {
        let product = self.backend.binary(Binary::Mul, self.at(a).clone(), self.at(b));
        self.push(product, Operation::Times(a, b))
    }

    fn affine_of(&mut self, a: usize, scale: f64, shift: f64) -> usize {
        let value = self.backend.affine(self.at(a).clone(), scale, shift);
        self.push(value, Operation::Affine(a, scale))
    }

    fn product_of(&mut self, (a, ta): (usize, bool), (b, tb): (usize, bool)) -> usize {
        let product = self.backend.matmul(self.at(a), ta, self.at(b), tb);
        self.push(product, Operation::Product(a, ta, b, tb))
    }

    fn sum_if(&mut self, a: Option<usize>, b: Option<usize>) -> Option<usize> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.sum_of(a, b)),
            (a, b) => a.or(b),
        }
    }

    /// Makes the tangents of a term, one by one.
    fn with_tangents(&mut self, value: usize, mut of: impl FnMut(&mut Self, usize) -> Option<usize>) -> Term {
        let tangents = (0..self.tangents).map(|m| of(self, m)).collect();
        Term { value, tangents }
    }

    /// a + b.
    pub(super) fn sum(&mut self, a: &Term, b: &Term) -> Term {
        let value = self.sum_of(a.value, b.value);
        self.with_tangents(value, |graph, m| graph.sum_if(a.tangents[m], b.tangents[m]))
    }

    /// a ∘ b.
    pub(super) fn times(&mut self, a: &Term, b: &Term) -> Term {
        let value = self.times_of(a.value, b.value);
        self.with_tangents(value, |graph, m| {
            let left = a.tangents[m].map(|t| graph.times_of(t, b.value));
            let right = b.tangents[m].map(|t| graph.times_of(a.value, t));
            graph.sum_if(left, right)
        })
    }

    /// scale·a + shift.
    pub(super) fn affine(&mut self, a: &Term, scale: f64, shift: f64) -> Term {
        let value = self.affine_of(a.value, scale, shift);
        self.with_tangents(value, |graph, m| a.tangents[m].map(|t| graph.affine_of(t, scale, 0.0)))
    }

    /// op(a) op(b) of matrices, which are transposed where that is said.
    pub(super) fn product(&mut self, (a, ta): (&Term, bool), (b, tb): (&Term, bool)) -> Term {
        let value = self.product_of((a.value, ta), (b.value, tb));
        self.with_tangents(value, |graph, m| {
            let left = a.tangents[m].map(|t| graph.product_of((t, ta), (b.value, tb)));
            let right = b.tangents[m].map(|t| graph.product_of((a.value, ta), (t, tb)));
            graph.sum_if(left, right)
        })
    }

    /// A function of each number.
    pub(super) fn function(&mut self, function: Function, a: &Term) -> Term {
        let backend = self.backend;
        let x = self.at(a.value).clone();
        let y = match function {
            Function::Exp => backend.unary(Unary::Exp, x),
            Function::InverseRoot => backend.unary(Unary::Reciprocal, backend.unary(Unary::Sqrt, x)),
            Function::Reciprocal => backend.unary(Unary::Reciprocal, x),
            Function::Sigmoid => backend.activation(resflow_backend::Activation::Softplus, None, &x, 1).swap_remove(1),
        };
        let value = self.push(y, Operation::Function(function, a.value));
        if a.tangents.iter().all(Option::is_none) {
            return Term { value, tangents: vec![None; self.tangents] };
        }
        let slope = match function {
            Function::Exp => value,
            Function::InverseRoot => {
                let square = self.times_of(value, value);
                let cube = self.times_of(square, value);
                self.affine_of(cube, -0.5, 0.0)
            }
            Function::Reciprocal => {
                let square = self.times_of(value, value);
                self.affine_of(square, -1.0, 0.0)
            }
            Function::Sigmoid => {
                let rest = self.affine_of(value, -1.0, 1.0);
                self.times_of(value, rest)
            }
        };
        self.with_tangents(value, |graph, m| a.tangents[m].map(|t| graph.times_of(slope, t)))
    }

    /// `length` rows (axis 0) or columns (axis 1) of a matrix from `start` on.
    pub(super) fn narrow(&mut self, a: &Term, axis: usize, start: usize, length: usize) -> Term {
        let of = |graph: &mut Self, entry: usize| {
            let part = graph.backend.narrow(graph.at(entry), axis, start, length);
            graph.push(part, Operation::Narrow(entry, axis, start))
        };
        let value = of(self, a.value);
        self.with_tangents(value, |graph, m| a.tangents[m].map(|t| of(graph, t)))
    }

    /// Takes gradients in a term and in its tangents back: those in each of `of` and in the tangents of the first of these.
    pub(super) fn pull_back(
        &self,
        output: &Term,
        gy: Option<B::Tensor>,
        gdy: &[B::Tensor],
        of: &[&Term],
    ) -> (Vec<Grad<B>>, Vec<Grad<B>>) {
        let b = self.backend;
        let mut grads: Vec<Grad<B>> = vec![None; self.entries.len()];
        if let Some(gy) = gy {
            accumulate(b, &mut grads[output.value], &gy);
        }
        for (g, tangent) in gdy.iter().zip(&output.tangents) {
            if let Some(entry) = tangent {
                accumulate(b, &mut grads[*entry], g);
            }
        }
        let mul = |a: &B::Tensor, g: &B::Tensor| b.binary(Binary::Mul, g.clone(), a);
        for entry in (0..self.entries.len()).rev() {
            let (value, operation) = &self.entries[entry];
            if matches!(operation, Operation::Given) {
                continue;
            }
            let Some(g) = grads[entry].take() else { continue };
            match *operation {
                Operation::Given => {}
                Operation::Sum(x, y) => {
                    accumulate(b, &mut grads[x], &g);
                    accumulate(b, &mut grads[y], &g);
                }
                Operation::Times(x, y) => {
                    let (of_x, of_y) = (mul(self.at(y), &g), mul(self.at(x), &g));
                    accumulate(b, &mut grads[x], &of_x);
                    accumulate(b, &mut grads[y], &of_y);
                }
                Operation::Affine(x, scale) => accumulate(b, &mut grads[x], &b.affine(g, scale, 0.0)),
                Operation::Product(x, tx, y, ty) => {
                    let (left, right) = (self.at(x), self.at(y));
                    let of_x = if tx { b.matmul(right, ty, &g, true) } else { b.matmul(&g, false, right, !ty) };
                    let of_y = if ty { b.matmul(&g, true, left, tx) } else { b.matmul(left, !tx, &g, false) };
                    accumulate(b, &mut grads[x], &of_x);
                    accumulate(b, &mut grads[y], &of_y);
                }
                Operation::Function(function, x) => {
                    let slope = match function {
                        Function::Exp => value.clone(),
                        Function::InverseRoot => b.affine(mul(value, &mul(value, value)), -0.5, 0.0),
                        Function::Reciprocal => b.affine(mul(value, value), -1.0, 0.0),
                        Function::Sigmoid => mul(value, &b.affine(value.clone(), -1.0, 1.0)),
                    };
                    accumulate(b, &mut grads[x], &mul(&slope, &g));
                }
                Operation::Narrow(x, axis, start) => {
                    let (whole, part) = (b.shape(self.at(x)), b.shape(&g));
                    let zeros = |length: usize| {
                        let mut shape = whole.to_vec();
                        shape[axis] = length;
                        (length > 0).then(|| b.full(0.0, shape[..].into()))
                    };
                    let (before, behind) = (zeros(start), zeros(whole[axis] - start - part[axis]));
                    let parts: Vec<_> = before.iter().chain([&g]).chain(&behind).collect();
                    accumulate(b, &mut grads[x], &b.concat(&parts, axis));
                }
            }
        }
        let values = of.iter().map(|term| grads[term.value].take()).collect();
        let first = of.first().map_or(&[][..], |term| &term.tangents[..]);
        let tangents = first.iter().map(|entry| entry.and_then(|entry| grads[entry].take())).collect();
        (values, tangents)
    }
}
