//! Elementwise operations over slices; what is broadcast goes by runs (`broadcast`).

use resflow_backend::{Binary, Unary};

use crate::broadcast::Broadcast;
use crate::{CpuElement, NdArray, Tensor};

impl<E: CpuElement> NdArray<E> {
    /// f of every element, in place where the handle allows.
    #[inline(always)]
    pub(crate) fn map(&self, mut x: Tensor<E>, f: impl Fn(E) -> E + Copy) -> Tensor<E> {
        if let Some(data) = x.unique_slice() {
            self.level().run(|| data.iter_mut().for_each(|x| *x = f(*x)));
            return x;
        }
        self.filled(x.shape(), |out| {
            self.level().run(|| out.iter_mut().zip(x.as_slice()).for_each(|(o, &x)| *o = f(x)));
        })
    }

    pub(crate) fn unary_op(&self, op: Unary, x: Tensor<E>) -> Tensor<E> {
        macro_rules! each {
            ($($name:ident)*) => { match op { $(Unary::$name => self.map(x, |x| Unary::$name.apply(x)),)* } };
        }
        each!(Neg Abs Exp ExpM1 Ln Ln1p Sqrt Square Reciprocal Tanh Sin Cos Floor IsFinite)
    }

    pub(crate) fn binary_op(&self, op: Binary, a: Tensor<E>, b: &Tensor<E>) -> Tensor<E> {
        assert!(b.shape().broadcasts_to(&a.shape()), "binary: {op:?} cannot broadcast {} to {}", b.shape(), a.shape());
        macro_rules! each {
            ($($name:ident)*) => { match op { $(Binary::$name => self.zip(a, b, |x, y| Binary::$name.apply(x, y)),)* } };
        }
        each!(Add Sub Mul Div Max Min Less LessEqual)
    }

    /// f of the elements of `a` and of `b` broadcast to its shape.
    #[inline(always)]
    pub(crate) fn zip(&self, mut a: Tensor<E>, b: &Tensor<E>, f: impl Fn(E, E) -> E + Copy) -> Tensor<E> {
        if a.unique_slice().is_none() {
            if a.shape().elements() == b.shape().elements() {
                return self.filled(a.shape(), |out| {
                    let pairs = a.as_slice().iter().zip(b.as_slice());
                    self.level().run(|| out.iter_mut().zip(pairs).for_each(|(out, (&x, &y))| *out = f(x, y)));
                });
            }
            a = self.copy(&a);
        }
        let (shape, other, level) = (a.shape(), b.shape(), self.level());
        let out = a.unique_slice().expect("made unique above");
        let b = b.as_slice();
        if shape.elements() == 0 {
        } else if b.len() == 1 {
            let y = b[0];
            level.run(|| out.iter_mut().for_each(|x| *x = f(*x, y)));
        } else if b.len() == out.len() {
            level.run(|| out.iter_mut().zip(b).for_each(|(x, &y)| *x = f(*x, y)));
        } else if shape.ends_with(other.iter().as_slice().trim_ones()) {
            // a bias for each channel: the common case, without the bookkeeping of runs
            level.run(|| {
                for row in out.chunks_exact_mut(b.len()) {
                    row.iter_mut().zip(b).for_each(|(x, &y)| *x = f(*x, y));
                }
            });
        } else {
            let runs = Broadcast::new(&other, &shape);
            let run = runs.run();
            if runs.constant() {
                level.run(|| {
                    runs.each(|at, from| {
                        let y = b[from];
                        out[at..at + run].iter_mut().for_each(|x| *x = f(*x, y));
                    });
                });
            } else {
                level.run(|| {
                    runs.each(|at, from| {
                        out[at..at + run].iter_mut().zip(&b[from..from + run]).for_each(|(x, &y)| *x = f(*x, y));
                    });
                });
            }
        }
        a
    }

    pub(crate) fn axpy_op(&self, alpha: f64, x: &Tensor<E>, mut y: Tensor<E>) -> Tensor<E> {
        assert_eq!(x.shape(), y.shape(), "axpy: the shapes differ: {} and {}", x.shape(), y.shape());
        let alpha = E::from_f64(alpha);
        if let Some(out) = y.unique_slice() {
            let x = x.as_slice();
            self.level().run(|| out.iter_mut().zip(x).for_each(|(y, &x)| *y += alpha * x));
            return y;
        }
        let (a, b) = (x.as_slice(), y.as_slice());
        self.filled(y.shape(), |out| {
            self.level().run(|| {
                for ((o, &x), &y) in out.iter_mut().zip(a).zip(b) {
                    *o = y + alpha * x;
                }
            });
        })
    }

    pub(crate) fn select_op(&self, mask: &Tensor<E>, on: &Tensor<E>, off: &Tensor<E>) -> Tensor<E> {
        assert_eq!(on.shape(), off.shape(), "select: the shapes differ: {} and {}", on.shape(), off.shape());
        let shape = on.shape();
        assert!(mask.shape().broadcasts_to(&shape), "select: the mask {} does not broadcast to {shape}", mask.shape());
        if mask.shape().elements() == 1 {
            return if mask.as_slice()[0] == E::ZERO { off.clone() } else { on.clone() };
        }
        let (on, off, level) = (on.as_slice(), off.as_slice(), self.level());
        self.filled(shape, |out| {
            if out.is_empty() {
                return;
            }
            let runs = Broadcast::new(&mask.shape(), &shape);
            let (run, mask) = (runs.run(), mask.as_slice());
            if runs.constant() {
                level.run(|| {
                    runs.each(|at, from| {
                        let source = if mask[from] == E::ZERO { off } else { on };
                        // a loop, because runs may be too short for a call
                        out[at..at + run].iter_mut().zip(&source[at..at + run]).for_each(|(o, &x)| *o = x);
                    });
                });
            } else {
                level.run(|| {
                    runs.each(|at, from| {
                        let range = at..at + run;
                        let sources = on[range.clone()].iter().zip(&off[range.clone()]);
                        for ((o, &m), (&on, &off)) in out[range].iter_mut().zip(&mask[from..from + run]).zip(sources) {
                            *o = if m == E::ZERO { off } else { on };
                        }
                    });
                });
            }
        })
    }
}

trait TrimOnes {
    fn trim_ones(&self) -> &Self;
}

impl TrimOnes for [usize] {
    /// Without the leading extents of 1, which broadcasting adds anyway.
    fn trim_ones(&self) -> &Self {
        &self[self.iter().take_while(|&&e| e == 1).count()..]
    }
}
