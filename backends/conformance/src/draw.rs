//! Random cases: shapes by proptest, which shrinks them, values from a seed, and operands in disguise.
//!
//! A tensor may be a slice of a larger one or the result of a permutation, and no operation may notice. So properties
//! upload their operands through [`Draw::tensor`], which hides the same values behind a drawn chain of layout
//! operations, surrounded by NaN that any leak would spread.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use resflow_backend::{Backend, Element, Key, Noise, Shape};

use crate::reference::Array;

/// The number of random cases of each property.
pub const CASES: u32 = 64;

/// Runs a property on [`CASES`] cases, the same ones every time, and panics with the smallest failure found.
#[track_caller]
pub(crate) fn check<S: Strategy>(property: &str, strategy: S, test: impl Fn(S::Value))
where
    S::Value: Debug,
{
    check_some(property, CASES, strategy, test);
}

/// Runs a property on so many cases, see [`check`].
#[track_caller]
pub(crate) fn check_some<S: Strategy>(property: &str, cases: u32, strategy: S, test: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 256, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, rng).run(&strategy, |case| {
        test(case);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{property}: {failure}");
    }
}

/// An extent: mostly small, sometimes 1 or 0.
pub(crate) fn extent(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![12 => 1..=most, 3 => Just(1), 1 => Just(0)]
}

/// A shape of one to five axes.
pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        8 => vec(extent(6), 1..=5).prop_map(|extents| Shape::new(&extents)),
        // long enough for vector loops with a remainder
        2 => (0usize..200).prop_map(|n| [n].into()),
        1 => (1usize..9, 1usize..300).prop_map(|(n, c)| [n, c].into()),
    ]
}

/// A seed for [`Draw`].
pub(crate) fn seed() -> impl Strategy<Value = u64> {
    any::<u64>()
}

/// Values from a seed, one call after the other.
#[derive(Debug)]
pub(crate) struct Draw {
    key: Key,
    calls: u64,
}

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self { key: Key::new(seed), calls: 0 }
    }

    fn fill(&mut self, noise: Noise, len: usize) -> Vec<f64> {
        let mut out = vec![0.0; len];
        self.calls += 1;
        noise.fill(self.key.split(self.calls), 0, &mut out);
        out
    }

    /// A number in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        self.fill(Noise::Uniform, 1)[0]
    }

    /// A number in 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// A permutation of 0..n.
    pub(crate) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }

    /// Standard normals that the element type holds.
    pub(crate) fn array<E: Element>(&mut self, shape: impl Into<Shape>) -> Array {
        let shape = shape.into();
        Array::new(shape, self.fill(Noise::Normal, shape.elements())).rounded::<E>()
    }

    /// Numbers of magnitudes between 10⁻³ and 80, of both signs.
    pub(crate) fn wide<E: Element>(&mut self, shape: impl Into<Shape>) -> Array {
        let normal = self.array::<E>(shape);
        let exponents = Array::new(normal.shape, self.fill(Noise::Uniform, normal.data.len()));
        normal.zip(&exponents, |x, e| (x * 10f64.powf(5.0 * e - 3.0)).clamp(-80.0, 80.0)).rounded::<E>()
    }

    /// Uniform numbers in [low, high).
    pub(crate) fn uniform<E: Element>(&mut self, shape: impl Into<Shape>, low: f64, high: f64) -> Array {
        let shape = shape.into();
        Array::new(shape, self.fill(Noise::Uniform, shape.elements())).map(|x| low + (high - low) * x).rounded::<E>()
    }

    /// The array on the device, in one of the disguises.
    pub(crate) fn tensor<B: Backend>(&mut self, backend: &B, array: &Array) -> B::Tensor {
        match self.below(6) {
            0 | 1 => upload(backend, array),
            2 => self.sliced(backend, array, &[0]),
            3 => self.sliced(backend, array, &[array.shape.rank() - 1]),
            4 => {
                // a slice of a slice, along all axes in a drawn order
                let axes = self.order(array.shape.rank());
                self.sliced(backend, array, &axes)
            }
            _ => {
                let axes = self.order(array.shape.rank());
                let mut back = vec![0; axes.len()];
                for (i, &axis) in axes.iter().enumerate() {
                    back[axis] = i;
                }
                backend.permute(&upload(backend, &array.permute(&axes)), &back)
            }
        }
    }

    /// The array as a slice along each of the axes of a larger one that is NaN elsewhere.
    pub(crate) fn sliced<B: Backend>(&mut self, backend: &B, array: &Array, axes: &[usize]) -> B::Tensor {
        let mut outer = array.clone();
        let mut cuts = Vec::new();
        for &axis in axes {
            let [before, after] = [self.below(3), self.below(3)];
            let border = |n| {
                let mut extents = outer.shape.to_vec();
                extents[axis] = n;
                Array::full(extents.as_slice(), f64::NAN)
            };
            cuts.push((axis, before, outer.shape[axis]));
            outer = Array::concat(&[&border(before), &outer, &border(after)], axis);
        }
        cuts.iter().rev().fold(upload(backend, &outer), |x, &(axis, start, len)| backend.narrow(&x, axis, start, len))
    }
}

/// The array on the device, as it is.
pub(crate) fn upload<B: Backend>(backend: &B, array: &Array) -> B::Tensor {
    let data: Vec<B::Elem> = array.data.iter().map(|&x| B::Elem::from_f64(x)).collect();
    backend.upload(&data, array.shape)
}

/// The tensor on the host.
#[track_caller]
pub(crate) fn download<B: Backend>(backend: &B, x: &B::Tensor) -> Array {
    let data = backend.download(x).expect("the device is sound");
    Array::new(backend.shape(x), data.into_iter().map(Element::to_f64).collect())
}
