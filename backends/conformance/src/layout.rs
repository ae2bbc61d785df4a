//! Layout operations move elements and never change one: everything here is exact.

use proptest::collection::vec;
use resflow_backend::{Backend, Shape};

use crate::draw::{Draw, check, download, seed, shape};
use crate::reference::Array;
use crate::tolerance::assert_equal;

/// Another shape with as many elements: the elements in one axis, then factors split off.
fn refold(draw: &mut Draw, elements: usize) -> Shape {
    let mut extents = vec![elements];
    for _ in 0..draw.below(4) {
        let last = extents[extents.len() - 1];
        let divisors: Vec<usize> = (1..=last.min(30)).filter(|d| last % d == 0).collect();
        if !divisors.is_empty() {
            let divisor = divisors[draw.below(divisors.len())];
            extents.pop();
            extents.extend([divisor, last / divisor]);
        }
    }
    Shape::new(&extents)
}

/// `reshape` keeps the row-major order.
pub fn reshape<B: Backend>(backend: &B) {
    check("reshape", (shape(), seed()), |(shape, seed)| {
        let mut draw = Draw::new(seed);
        let x = draw.array::<B::Elem>(shape);
        let to = refold(&mut draw, shape.elements());
        let got = backend.reshape(&draw.tensor(backend, &x), to);
        assert_equal("reshape", &download(backend, &got), &x.reshape(to));
    });
}

/// `permute` with orders drawn for all ranks, and all orders of four axes.
pub fn permute<B: Backend>(backend: &B) {
    let case = |draw: &mut Draw, x: &Array, axes: &[usize]| {
        let got = backend.permute(&draw.tensor(backend, x), axes);
        assert_equal("permute", &download(backend, &got), &x.permute(axes));
    };
    check("permute", (shape(), seed()), |(shape, seed)| {
        let mut draw = Draw::new(seed);
        let x = draw.array::<B::Elem>(shape);
        let axes = draw.order(shape.rank());
        case(&mut draw, &x, &axes);
    });
    let mut draw = Draw::new(6);
    // equal extents as well: there no shape tells an order from its inverse
    for x in [draw.array::<B::Elem>([2, 3, 4, 5]), draw.array::<B::Elem>([3, 3, 3, 3])] {
        for code in 0..256 {
            let axes = [code / 64, code / 16 % 4, code / 4 % 4, code % 4];
            if (0..4).all(|axis| axes.contains(&axis)) {
                case(&mut draw, &x, &axes);
            }
        }
    }
}

/// `concat` along any axis, of parts that may be empty.
pub fn concat<B: Backend>(backend: &B) {
    check("concat", (shape(), vec(0usize..5, 1..5), 0usize..5, seed()), |(shape, lengths, axis, seed)| {
        let mut draw = Draw::new(seed);
        let axis = axis % shape.rank();
        let parts: Vec<Array> = lengths
            .iter()
            .map(|&length| {
                let mut extents = shape.to_vec();
                extents[axis] = length;
                draw.array::<B::Elem>(extents.as_slice())
            })
            .collect();
        let tensors: Vec<B::Tensor> = parts.iter().map(|part| draw.tensor(backend, part)).collect();
        let got = backend.concat(&tensors.iter().collect::<Vec<_>>(), axis);
        assert_equal("concat", &download(backend, &got), &Array::concat(&parts.iter().collect::<Vec<_>>(), axis));
    });
}

/// A slice that fits the extent.
fn range(draw: &mut Draw, extent: usize) -> (usize, usize) {
    let start = draw.below(extent + 1);
    (start, draw.below(extent - start + 1))
}

/// `narrow` along any axis, empty slices included.
pub fn narrow<B: Backend>(backend: &B) {
    check("narrow", (shape(), 0usize..5, seed()), |(shape, axis, seed)| {
        let mut draw = Draw::new(seed);
        let x = draw.array::<B::Elem>(shape);
        let axis = axis % shape.rank();
        let (start, length) = range(&mut draw, shape[axis]);
        let got = backend.narrow(&draw.tensor(backend, &x), axis, start, length);
        assert_equal("narrow", &download(backend, &got), &x.narrow(axis, start, length));
    });
}

/// `take_rows` in any order, with repetition, and of none.
pub fn take_rows<B: Backend>(backend: &B) {
    check("take_rows", (shape(), 0usize..9, seed()), |(shape, count, seed)| {
        let mut draw = Draw::new(seed);
        let x = draw.array::<B::Elem>(shape);
        let count = if shape.rows() == 0 { 0 } else { count };
        let indices: Vec<u32> = (0..count).map(|_| draw.below(shape.rows()) as u32).collect();
        let got = backend.take_rows(&draw.tensor(backend, &x), &indices);
        assert_equal("take_rows", &download(backend, &got), &x.take_rows(&indices));
    });
}

/// Layout operations one after the other: slices of slices, permutations of slices, reshapes of permutations.
pub fn layout_chains<B: Backend>(backend: &B) {
    check("layout chains", (shape(), vec(0usize..5, 1..7), seed()), |(shape, steps, seed)| {
        let mut draw = Draw::new(seed);
        let mut want = draw.array::<B::Elem>(shape);
        let mut got = draw.tensor(backend, &want);
        for step in steps {
            let axis = draw.below(want.shape.rank());
            match step {
                0 => {
                    let axes = draw.order(want.shape.rank());
                    (got, want) = (backend.permute(&got, &axes), want.permute(&axes));
                }
                1 => {
                    let to = refold(&mut draw, want.shape.elements());
                    (got, want) = (backend.reshape(&got, to), want.reshape(to));
                }
                2 | 3 => {
                    let (start, length) = range(&mut draw, want.shape[axis]);
                    (got, want) = (backend.narrow(&got, axis, start, length), want.narrow(axis, start, length));
                }
                _ => (got, want) = (backend.concat(&[&got, &got], axis), Array::concat(&[&want, &want], axis)),
            }
            assert_equal("layout chains", &download(backend, &got), &want);
        }
    });
}
