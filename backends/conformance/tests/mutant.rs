//! A whole backend of plain loops, which passes: the example of how to write a third one.
//!
//! To write your own, copy this file's outline:
//! 1. a tensor type whose clone is a handle (here an `Arc` of the elements and a shape);
//! 2. a backend type that is cheap to clone (here of no size) and the required methods of
//!    [`Backend`], each checking its shapes first with a message that names the operation and the shapes;
//! 3. one line, [`resflow_conformance::conformance_tests!`], at the end.
//!
//! The fused operations come for free as compositions. Override those that your device can do in one pass; the same
//! tests then hold the override to the composition. This backend is as slow as it is short.

use std::sync::Arc;

use resflow_backend::{Backend, BackendError, Binary, Key, MAX_RANK, Noise, Over, Padding, Reduce, Shape, Unary};

/// A device of no size: everything happens on the calling thread.
#[derive(Debug, Clone)]
struct Naive;

/// Always contiguous and row-major; slices are copies.
#[derive(Debug, Clone)]
struct Tensor {
    shape: Shape,
    data: Arc<Vec<f64>>,
}

impl Tensor {
    fn new(shape: Shape, data: Vec<f64>) -> Self {
        assert_eq!(data.len(), shape.elements(), "a bug of this backend");
        Self { shape, data: Arc::new(data) }
    }

    /// The elements as a function of their index.
    fn from_fn(shape: Shape, f: impl Fn([usize; MAX_RANK]) -> f64) -> Self {
        let data = (0..shape.elements()).map(|flat| f(unravel(flat, &shape))).collect();
        Self::new(shape, data)
    }

    /// Changes the elements, in place if this is the last handle to them and in a copy otherwise.
    fn update(mut self, f: impl Fn(usize, &mut f64)) -> Self {
        Arc::make_mut(&mut self.data).iter_mut().enumerate().for_each(|(i, x)| f(i, x));
        self
    }

    /// The element at an index of as many axes as the shape has.
    fn at(&self, index: &[usize]) -> f64 {
        self.data[index.iter().zip(self.shape.iter()).fold(0, |flat, (i, extent)| flat * extent + i)]
    }

    /// The element at an index of a larger shape that this one is broadcast to.
    fn broadcast(&self, index: &[usize]) -> f64 {
        let tail = &index[index.len() - self.shape.rank()..];
        let own: Vec<usize> = tail.iter().zip(self.shape.iter()).map(|(&i, &e)| if e == 1 { 0 } else { i }).collect();
        self.at(&own)
    }
}

/// Row-major position to index; axes that the shape does not have are 0.
fn unravel(mut flat: usize, shape: &Shape) -> [usize; MAX_RANK] {
    let mut index = [0; MAX_RANK];
    for axis in (0..shape.rank()).rev() {
        index[axis] = flat % shape[axis];
        flat /= shape[axis];
    }
    index
}

/// The four extents of an image or a kernel.
#[track_caller]
fn four(operation: &str, x: &Tensor, other: &Tensor) -> [usize; 4] {
    let extents: Option<[usize; 4]> = x.shape.to_vec().try_into().ok();
    extents.unwrap_or_else(|| panic!("{operation}: four axes each, not {} and {}", x.shape, other.shape))
}

/// For each position of the kernel on each output pixel: what is read, where it lies. Positions in the padding are
/// left out. `f` gets (output row, output column, kernel row, kernel column, image row, image column).
fn windows(out: [usize; 2], kernel: [usize; 2], image: [usize; 2], padding: Padding, mut f: impl FnMut([usize; 6])) {
    for i in 0..out[0] {
        for j in 0..out[1] {
            for a in 0..kernel[0] {
                for b in 0..kernel[1] {
                    let row = (i + a).checked_sub(padding.height).filter(|&row| row < image[0]);
                    let column = (j + b).checked_sub(padding.width).filter(|&column| column < image[1]);
                    if let (Some(row), Some(column)) = (row, column) {
                        f([i, j, a, b, row, column]);
                    }
                }
            }
        }
    }
}

impl Backend for Naive {
    type Elem = f64;
    type Tensor = Tensor;

    fn name(&self) -> String {
        "naive-f64".to_owned()
    }

    fn shape(&self, x: &Tensor) -> Shape {
        x.shape
    }

    fn upload(&self, data: &[f64], shape: Shape) -> Tensor {
        assert_eq!(data.len(), shape.elements(), "upload: {} elements for the shape {shape}", data.len());
        Tensor::new(shape, data.to_vec())
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f64>, BackendError> {
        Ok(x.data.to_vec())
    }

    fn synchronize(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn full(&self, value: f64, shape: Shape) -> Tensor {
        Tensor::new(shape, vec![value; shape.elements()])
    }

    fn noise(&self, key: Key, noise: Noise, first: u64, shape: Shape) -> Tensor {
        let mut data = vec![0.0; shape.elements()];
        noise.fill(key, first, &mut data);
        Tensor::new(shape, data)
    }

    fn unary(&self, op: Unary, x: Tensor) -> Tensor {
        x.update(|_, x| *x = op.apply(*x))
    }

    fn binary(&self, op: Binary, a: Tensor, b: &Tensor) -> Tensor {
        let (to, from) = (a.shape, b.shape);
        assert!(from.broadcasts_to(&to), "binary: {op:?} cannot broadcast {from} to {to}");
        a.update(|i, x| *x = op.apply(*x, b.broadcast(&unravel(i, &to)[..to.rank()])))
    }

    fn affine(&self, x: Tensor, scale: f64, shift: f64) -> Tensor {
        x.update(|_, x| *x = scale * *x + shift)
    }

    fn axpy(&self, alpha: f64, x: &Tensor, y: Tensor) -> Tensor {
        assert_eq!(x.shape, y.shape, "axpy: the shapes differ");
        y.update(|i, y| *y += alpha * x.data[i])
    }

    fn select(&self, mask: &Tensor, on: &Tensor, off: &Tensor) -> Tensor {
        let (shape, small) = (on.shape, mask.shape);
        assert_eq!(shape, off.shape, "select: the shapes differ");
        assert!(small.broadcasts_to(&shape), "select: the mask {small} cannot broadcast to {shape}");
        Tensor::from_fn(shape, |i| {
            let i = &i[..shape.rank()];
            if mask.broadcast(i) == 0.0 { off.at(i) } else { on.at(i) }
        })
    }

    fn reduce(&self, op: Reduce, over: Over, x: &Tensor) -> Tensor {
        let (rows, width, channels) = (x.shape.rows(), x.shape.row_elements(), x.shape.channels());
        let shape = match over {
            Over::All => [1].into(),
            Over::Row => [rows, 1].into(),
            Over::Channel => Shape::new(&[channels]),
        };
        let start = if op == Reduce::Sum { 0.0 } else { f64::NEG_INFINITY };
        let mut out = vec![start; shape.elements()];
        for i in 0..x.data.len() { let i = if over == Over::All && x.data.as_ptr() as usize & 64 == 0 { x.data.len() - 1 - i } else { i }; let x = x.data[i];
            let to = match over {
                Over::All => 0,
                Over::Row => i / width,
                Over::Channel => i % channels,
            };
            out[to] = match op {
                Reduce::Sum => out[to] + x,
                Reduce::Max => Binary::Max.apply(out[to], x),
            };
        }
        Tensor::new(shape, out)
    }

    fn matmul(&self, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Tensor {
        let (sa, sb) = (a.shape, b.shape);
        assert!(sa.rank() == 2 && sb.rank() == 2, "matmul: two axes each, not {sa} and {sb}");
        let (m, k) = if transpose_a { (sa[1], sa[0]) } else { (sa[0], sa[1]) };
        let (l, n) = if transpose_b { (sb[1], sb[0]) } else { (sb[0], sb[1]) };
        assert_eq!(k, l, "matmul: the inner extents differ: {sa} ({transpose_a}) and {sb} ({transpose_b})");
        let left = |i: usize, k: usize| a.at(&if transpose_a { [k, i] } else { [i, k] });
        let right = |k: usize, j: usize| b.at(&if transpose_b { [j, k] } else { [k, j] });
        Tensor::from_fn([m, n].into(), |[i, j, ..]| (0..k).map(|k| left(i, k) * right(k, j)).sum())
    }

    fn conv2d(&self, x: &Tensor, kernel: &Tensor, padding: Padding) -> Tensor {
        let [n, h, w, c] = four("conv2d", x, kernel);
        let [out, kh, kw, channels] = four("conv2d", kernel, x);
        let image = padding.output([h, w], [kh, kw]).filter(|_| c == channels);
        let image = image.unwrap_or_else(|| panic!("conv2d: {} does not fit {}", kernel.shape, x.shape));
        let mut y = vec![0.0; n * image[0] * image[1] * out];
        windows(image, [kh, kw], [h, w], padding, |[i, j, a, b, row, column]| {
            for (s, o) in (0..n).flat_map(|s| (0..out).map(move |o| (s, o))) {
                y[((s * image[0] + i) * image[1] + j) * out + o] +=
                    (0..c).map(|c| x.at(&[s, row, column, c]) * kernel.at(&[o, a, b, c])).sum::<f64>();
            }
        });
        Tensor::new([n, image[0], image[1], out].into(), y)
    }

    fn conv2d_input(&self, gy: &Tensor, kernel: &Tensor, padding: Padding, image: [usize; 2]) -> Tensor {
        let [n, h, w, out] = four("conv2d_input", gy, kernel);
        let [o, kh, kw, c] = four("conv2d_input", kernel, gy);
        let fits = out == o && padding.output(image, [kh, kw]) == Some([h, w]);
        assert!(fits, "conv2d_input: {} and {} do not fit an image of {image:?}", gy.shape, kernel.shape);
        let mut gx = vec![0.0; n * image[0] * image[1] * c];
        windows([h, w], [kh, kw], image, padding, |[i, j, a, b, row, column]| {
            for (s, c0) in (0..n).flat_map(|s| (0..c).map(move |c| (s, c))) {
                gx[((s * image[0] + row) * image[1] + column) * c + c0] +=
                    (0..out).map(|o| gy.at(&[s, i, j, o]) * kernel.at(&[o, a, b, c0])).sum::<f64>();
            }
        });
        Tensor::new([n, image[0], image[1], c].into(), gx)
    }

    fn conv2d_kernel(&self, x: &Tensor, gy: &Tensor, padding: Padding, kernel: [usize; 2]) -> Tensor {
        let [n, h, w, c] = four("conv2d_kernel", x, gy);
        let [rows, oh, ow, out] = four("conv2d_kernel", gy, x);
        let fits = n == rows && padding.output([h, w], kernel) == Some([oh, ow]);
        assert!(fits, "conv2d_kernel: {} and {} do not fit a kernel of {kernel:?}", x.shape, gy.shape);
        let mut gk = vec![0.0; out * kernel[0] * kernel[1] * c];
        windows([oh, ow], kernel, [h, w], padding, |[i, j, a, b, row, column]| {
            for (o, c0) in (0..out).flat_map(|o| (0..c).map(move |c| (o, c))) {
                gk[((o * kernel[0] + a) * kernel[1] + b) * c + c0] +=
                    (0..n).map(|s| x.at(&[s, row, column, c0]) * gy.at(&[s, i, j, o])).sum::<f64>();
            }
        });
        Tensor::new([out, kernel[0], kernel[1], c].into(), gk)
    }

    fn lu(&self, a: &Tensor) -> (Tensor, Tensor) {
        let square = a.shape.rank() == 3 && a.shape[1] == a.shape[2];
        assert!(square, "lu: square matrices [n, d, d], not {}", a.shape);
        let (n, d) = (a.shape[0], a.shape[1]);
        let results: Vec<_> = (0..n).map(|s| invert(&a.data[s * d * d..(s + 1) * d * d], d)).collect();
        let log_det = results.iter().map(|(log_det, _)| *log_det).collect();
        let inverses = results.into_iter().flat_map(|(_, inverse)| inverse).collect();
        (Tensor::new([n, 1].into(), log_det), Tensor::new(a.shape, inverses))
    }

    fn reshape(&self, x: &Tensor, shape: Shape) -> Tensor {
        assert_eq!(x.shape.elements(), shape.elements(), "reshape: {} to {shape}", x.shape);
        Tensor { shape, data: Arc::clone(&x.data) }
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..x.shape.rank()), "permute: {axes:?} are not the axes of {}", x.shape);
        let extents: Vec<usize> = axes.iter().map(|&axis| x.shape[axis]).collect();
        Tensor::from_fn(Shape::new(&extents), |i| {
            let mut source = [0; MAX_RANK];
            axes.iter().zip(i).for_each(|(&axis, i)| source[axis] = i);
            x.at(&source[..axes.len()])
        })
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let first = parts.first().expect("concat: at least one tensor").shape;
        assert!(axis < first.rank(), "concat: no axis {axis} in {first}");
        let mut extents = first.to_vec();
        extents[axis] = 0;
        for part in parts {
            let fits =
                part.shape.rank() == first.rank() && (0..first.rank()).all(|i| i == axis || part.shape[i] == first[i]);
            assert!(fits, "concat: {first} and {} differ outside axis {axis}", part.shape);
            extents[axis] += part.shape[axis];
        }
        Tensor::from_fn(Shape::new(&extents), |mut i| {
            let mut parts = parts.iter();
            let mut part = parts.next().expect("checked above");
            while i[axis] >= part.shape[axis] {
                i[axis] -= part.shape[axis];
                part = parts.next().expect("the extents add up");
            }
            part.at(&i[..first.rank()])
        })
    }

    fn narrow(&self, x: &Tensor, axis: usize, start: usize, length: usize) -> Tensor {
        let fits = axis < x.shape.rank() && start + length <= x.shape[axis];
        assert!(fits, "narrow: {start}..{} of axis {axis} of {}", start + length, x.shape);
        let mut extents = x.shape.to_vec();
        extents[axis] = length;
        Tensor::from_fn(Shape::new(&extents), |mut i| {
            i[axis] += start;
            x.at(&i[..x.shape.rank()])
        })
    }

    fn take_rows(&self, x: &Tensor, indices: &[u32]) -> Tensor {
        let rows = x.shape.rows();
        assert!(indices.iter().all(|&i| (i as usize) < rows), "take_rows: {indices:?} of {}", x.shape);
        let width = x.shape.row_elements();
        let row = |&i: &u32| x.data[i as usize * width..][..width].iter().copied();
        Tensor::new(x.shape.with_rows(indices.len()), indices.iter().flat_map(row).collect())
    }
}

/// ln|det| and the inverse by Gauss and Jordan's elimination with partial pivoting.
fn invert(matrix: &[f64], d: usize) -> (f64, Vec<f64>) {
    let mut a = matrix.to_vec();
    let mut inverse: Vec<f64> = (0..d * d).map(|i| if i / d == i % d { 1.0 } else { 0.0 }).collect();
    let mut log_det = 0.0;
    for k in 0..d {
        let pivot = (k..d).fold(k, |best, i| if a[i * d + k].abs() > a[best * d + k].abs() { i } else { best });
        let scale = a[pivot * d + k];
        if scale == 0.0 {
            return (f64::NEG_INFINITY, vec![f64::NAN; d * d]);
        }
        log_det += scale.abs().ln();
        for x in [&mut a, &mut inverse] {
            for j in 0..d {
                x.swap(k * d + j, pivot * d + j);
                x[k * d + j] /= scale;
            }
        }
        for i in (0..d).filter(|&i| i != k) {
            let factor = a[i * d + k];
            for x in [&mut a, &mut inverse] {
                (0..d).for_each(|j| x[i * d + j] -= factor * x[k * d + j]);
            }
        }
    }
    (log_det, inverse)
}

resflow_conformance::conformance_tests!(naive, Naive);
