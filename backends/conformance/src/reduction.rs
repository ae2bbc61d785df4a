//! Reductions and inner products: values, the results for nothing, NaN, and bits that repeat.

use resflow_backend::{Backend, Binary, Element, Over, Reduce, Shape};

use crate::draw::{Draw, check, download, seed, shape, upload};
use crate::reference::Array;
use crate::tolerance::{assert_close, assert_equal, assert_same_bits, sum};

const OPERATIONS: [Reduce; 2] = [Reduce::Sum, Reduce::Max];
const RANGES: [Over; 3] = [Over::All, Over::Row, Over::Channel];

/// Shapes beyond the lengths at which backends change their loops.
fn large() -> [Shape; 8] {
    [
        [1025].into(),
        [4097].into(),
        [70_001].into(),
        [300, 33].into(),
        [7, 5000].into(),
        [1300, 3].into(),
        [9, 1].into(),
        [3, 17, 19, 13].into(),
    ]
}

fn terms(shape: Shape, over: Over) -> usize {
    match over {
        Over::All => shape.elements(),
        Over::Row => shape.row_elements(),
        Over::Channel => shape.elements() / shape.channels().max(1),
    }
}

fn reduce_case<B: Backend>(backend: &B, op: Reduce, over: Over, shape: Shape, seed: u64) {
    let mut draw = Draw::new(seed);
    let x = draw.array::<B::Elem>(shape);
    let got = download(backend, &backend.reduce(op, over, &draw.tensor(backend, &x)));
    let want = x.reduce(op, over);
    match op {
        Reduce::Max => assert_equal("reduce", &got, &want),
        Reduce::Sum => {
            let magnitude = x.abs().reduce(op, over);
            assert_close::<B::Elem>("reduce", &got, &want, &magnitude, sum(terms(shape, over)));
        }
    }
}

/// `reduce` over all shapes, with 0 as the sum of nothing and −∞ as its maximum.
pub fn reduce<B: Backend>(backend: &B) {
    for (op, over) in OPERATIONS.into_iter().flat_map(|op| RANGES.map(|over| (op, over))) {
        check(&format!("reduce {op:?} {over:?}"), (shape(), seed()), |(shape, seed)| {
            reduce_case(backend, op, over, shape, seed);
        });
        for (seed, shape) in large().into_iter().enumerate() {
            reduce_case(backend, op, over, shape, seed as u64);
        }
    }
}

/// One NaN makes the maximum of its elements NaN and leaves the others alone; infinities are numbers like others.
pub fn reduce_max_special_values<B: Backend>(backend: &B) {
    for over in RANGES {
        check(&format!("reduce Max {over:?}"), (shape(), seed()), |(shape, seed)| {
            let mut draw = Draw::new(seed);
            let mut x = draw.array::<B::Elem>(shape);
            for value in [f64::NEG_INFINITY, f64::NEG_INFINITY, f64::INFINITY, f64::NAN] {
                if !x.data.is_empty() {
                    let at = draw.below(x.data.len());
                    x.data[at] = value;
                    let got = backend.reduce(Reduce::Max, over, &draw.tensor(backend, &x));
                    assert_equal("reduce", &download(backend, &got), &x.reduce(Reduce::Max, over));
                }
            }
            let x = Array::full(shape, f64::NEG_INFINITY);
            let got = backend.reduce(Reduce::Max, over, &draw.tensor(backend, &x));
            assert_equal("reduce", &download(backend, &got), &x.reduce(Reduce::Max, over));
        });
    }
}

/// The order of a reduction depends on the shape alone: its bits are those of any other call, also on a slice with the
/// same elements, also from a task.
pub fn reductions_repeat<B: Backend>(backend: &B) {
    for shape in large() {
        let mut draw = Draw::new(shape.elements() as u64);
        let x = draw.wide::<B::Elem>(shape);
        let fresh = upload(backend, &x);
        let others: Vec<B::Tensor> = (0..6).map(|_| draw.tensor(backend, &x)).collect();
        for over in RANGES {
            let first = download(backend, &backend.reduce(Reduce::Sum, over, &fresh));
            for x in &others {
                let again = download(backend, &backend.reduce(Reduce::Sum, over, x));
                assert_same_bits("reduce", &again, &first);
            }
            let tasks = backend.run(8, |_| backend.reduce(Reduce::Sum, over, &fresh));
            for again in tasks {
                assert_same_bits("reduce", &download(backend, &again), &first);
            }
        }
        let [dot, rows] = [backend.dot(&fresh, &fresh), backend.dot_rows(&fresh, &fresh)];
        assert_same_bits("dot", &download(backend, &backend.dot(&fresh, &fresh)), &download(backend, &dot));
        assert_same_bits("dot_rows", &download(backend, &backend.dot_rows(&fresh, &fresh)), &download(backend, &rows));
    }
}

fn dot_case<B: Backend>(backend: &B, shape: Shape, seed: u64) {
    let mut draw = Draw::new(seed);
    let (a, b) = (draw.array::<B::Elem>(shape), draw.array::<B::Elem>(shape));
    let [x, y] = [&a, &b].map(|x| draw.tensor(backend, x));
    let products = a.zip(&b, |a, b| a * b);
    for (what, over, got) in
        [("dot", Over::All, backend.dot(&x, &y)), ("dot_rows", Over::Row, backend.dot_rows(&x, &y))]
    {
        let magnitude = products.abs().reduce(Reduce::Sum, over);
        let units = sum(terms(shape, over));
        let got = download(backend, &got);
        assert_close::<B::Elem>(what, &got, &products.reduce(Reduce::Sum, over), &magnitude, units);
        let composed = backend.reduce(Reduce::Sum, over, &backend.binary(Binary::Mul, x.clone(), &y));
        assert_close::<B::Elem>(what, &got, &download(backend, &composed), &magnitude, 2.0 * units);
    }
}

/// `dot` and `dot_rows` are sums of products, and agree with their compositions.
pub fn dot<B: Backend>(backend: &B) {
    check("dot", (shape(), seed()), |(shape, seed)| dot_case(backend, shape, seed));
    for (seed, shape) in large().into_iter().enumerate() {
        dot_case(backend, shape, seed as u64);
    }
}

/// `all_finite` finds one NaN or infinity anywhere, and none in nothing.
pub fn all_finite<B: Backend>(backend: &B) {
    let flag = |x: &B::Tensor| {
        let flag = download(backend, &backend.all_finite(x));
        assert_eq!(*flag.shape, [1], "all_finite: the shape");
        flag.data[0]
    };
    check("all_finite", (shape(), seed()), |(shape, seed)| {
        let mut draw = Draw::new(seed);
        let mut x = draw.wide::<B::Elem>(shape);
        // the largest finite numbers overflow if they are added up
        let large = 0.9 * if B::Elem::NAME == "f32" { f64::from(f32::MAX) } else { f64::MAX };
        x.data.iter_mut().step_by(2).for_each(|x| *x = large);
        assert_eq!(flag(&draw.tensor(backend, &x)), 1.0, "all_finite of finite numbers");
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            if !x.data.is_empty() {
                let mut x = x.clone();
                let at = draw.below(x.data.len());
                x.data[at] = bad;
                assert_eq!(flag(&draw.tensor(backend, &x)), 0.0, "all_finite with {bad} at {at}");
            }
        }
    });
    for (n, at) in [(4097, 4096), (70_001, 12_345)] {
        let mut x = Array::full([n], 1.0);
        assert_eq!(flag(&upload(backend, &x)), 1.0, "all_finite of {n} ones");
        x.data[at] = f64::NAN;
        assert_eq!(flag(&upload(backend, &x)), 0.0, "all_finite with NaN at {at} of {n}");
    }
}
