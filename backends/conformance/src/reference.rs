//! Plain double precision loops on the host: the reference of every operation of a backend.
//!
//! Nothing here is fast and nothing is shared with a backend; each function is its definition written down. Values are
//! doubles that the backend's element can hold ([`Array::rounded`]), so the reference sees exactly the backend's
//! inputs. Bilinear operations take their own magnitude from themselves: Σ|a||b| is the operation on absolute values.

use resflow_backend::{Element, MAX_RANK, Over, Padding, Reduce, Shape, Unary};

/// A row-major array of doubles.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The extents.
    pub shape: Shape,
    /// The elements, row-major.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of these elements.
    pub fn new(shape: impl Into<Shape>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        assert_eq!(data.len(), shape.elements(), "the elements fill the shape {shape}");
        Self { shape, data }
    }

    /// An array of one value.
    pub fn full(shape: impl Into<Shape>, value: f64) -> Self {
        let shape = shape.into();
        Self { shape, data: vec![value; shape.elements()] }
    }

    /// The array whose element at an index is a function of the index.
    pub fn from_fn(shape: impl Into<Shape>, f: impl Fn(&[usize]) -> f64) -> Self {
        let shape = shape.into();
        let data = (0..shape.elements())
            .map(|flat| {
                let mut index = [0; MAX_RANK];
                let mut rest = flat;
                for axis in (0..shape.rank()).rev() {
                    index[axis] = rest % shape[axis];
                    rest /= shape[axis];
                }
                f(&index[..shape.rank()])
            })
            .collect();
        Self { shape, data }
    }

    /// The element at an index; axes are aligned at the last one and an extent of 1 serves all positions
    /// (broadcasting).
    pub fn at(&self, index: &[usize]) -> f64 {
        let index = &index[index.len() - self.shape.rank()..];
        let place = |flat, (&i, &extent): (&usize, &usize)| flat * extent + if extent == 1 { 0 } else { i };
        self.data[index.iter().zip(self.shape.iter()).fold(0, place)]
    }

    /// The elements as a backend with elements `E` holds them.
    pub fn rounded<E: Element>(&self) -> Self {
        self.map(|x| E::from_f64(x).to_f64())
    }

    /// f of every element.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { shape: self.shape, data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// Absolute values, from which operations compute the magnitude of their terms.
    pub fn abs(&self) -> Self {
        self.map(f64::abs)
    }

    /// f of every element and of `other` broadcast to this shape.
    pub fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self::from_fn(self.shape, |i| f(self.at(i), other.at(i)))
    }

    // ---- layout ---------------------------------------------------------------------------------------------------

    /// Gives the elements another shape, in row-major order.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        Self::new(shape, self.data.clone())
    }

    /// Axis i of the result is axis `axes[i]`.
    pub fn permute(&self, axes: &[usize]) -> Self {
        let extents: Vec<usize> = axes.iter().map(|&axis| self.shape[axis]).collect();
        Self::from_fn(extents.as_slice(), |i| {
            let mut source = [0; MAX_RANK];
            for (&axis, &at) in axes.iter().zip(i) {
                source[axis] = at;
            }
            self.at(&source[..axes.len()])
        })
    }

    /// The slice `start..start + length` of an axis.
    pub fn narrow(&self, axis: usize, start: usize, length: usize) -> Self {
        let mut extents = self.shape.to_vec();
        extents[axis] = length;
        Self::from_fn(extents.as_slice(), |i| {
            let mut source = i.to_vec();
            source[axis] += start;
            self.pick(&source)
        })
    }

    /// Joined along an axis.
    pub fn concat(parts: &[&Self], axis: usize) -> Self {
        let mut extents = parts[0].shape.to_vec();
        extents[axis] = parts.iter().map(|part| part.shape[axis]).sum();
        Self::from_fn(extents.as_slice(), |i| {
            let mut source = i.to_vec();
            for part in parts {
                if source[axis] < part.shape[axis] {
                    return part.pick(&source);
                }
                source[axis] -= part.shape[axis];
            }
            unreachable!("the parts fill the axis")
        })
    }

    /// Rows `indices`, in that order.
    pub fn take_rows(&self, indices: &[u32]) -> Self {
        Self::from_fn(self.shape.with_rows(indices.len()), |i| {
            let mut source = i.to_vec();
            source[0] = indices[i[0]] as usize;
            self.pick(&source)
        })
    }

    /// The element at an index of this very shape.
    fn pick(&self, index: &[usize]) -> f64 {
        self.data[index.iter().zip(self.shape.iter()).fold(0, |flat, (&i, &extent)| flat * extent + i)]
    }

    // ---- reductions and products ------------------------------------------------------------------------------------

    /// The reduction, in order.
    pub fn reduce(&self, op: Reduce, over: Over) -> Self {
        let combine = |elements: &mut dyn Iterator<Item = f64>| match op {
            Reduce::Sum => elements.sum(),
            Reduce::Max => elements.fold(f64::NEG_INFINITY, |a, b| if b.is_nan() || b > a { b } else { a }),
        };
        match over {
            Over::All => Self::new([1], vec![combine(&mut self.data.iter().copied())]),
            Over::Row => {
                let width = self.shape.row_elements();
                let row = |r: usize| combine(&mut self.data[r * width..(r + 1) * width].iter().copied());
                Self::new([self.shape.rows(), 1], (0..self.shape.rows()).map(row).collect())
            }
            Over::Channel => {
                let channels = self.shape.channels();
                let channel = |c: usize| combine(&mut self.data.iter().copied().skip(c).step_by(channels));
                Self::new([channels], (0..channels).map(channel).collect())
            }
        }
    }

    /// The matrix product of `self`, transposed if asked, and `b`, likewise.
    pub fn matmul(&self, transpose_a: bool, b: &Self, transpose_b: bool) -> Self {
        let a = if transpose_a { self.permute(&[1, 0]) } else { self.clone() };
        let b = if transpose_b { b.permute(&[1, 0]) } else { b.clone() };
        let (inner, n) = (a.shape[1], b.shape[1]);
        Self::from_fn([a.shape[0], n], |i| {
            (0..inner).map(|k| a.data[i[0] * inner + k] * b.data[k * n + i[1]]).sum::<f64>()
        })
    }

    /// The pixel at a position that may lie in the padding, where it is zero.
    fn pixel(&self, sample: usize, [row, column]: [isize; 2], channel: usize) -> f64 {
        let inside = (0..self.shape[1] as isize).contains(&row) && (0..self.shape[2] as isize).contains(&column);
        if inside { self.pick(&[sample, row as usize, column as usize, channel]) } else { 0.0 }
    }

    /// y[n, i, j, o] = Σ x[n, i + a − p, j + b − q, c] k[o, a, b, c].
    pub fn conv2d(&self, kernel: &Self, padding: Padding) -> Self {
        let [out, kh, kw, channels] = extents(kernel);
        let image = padding.output([self.shape[1], self.shape[2]], [kh, kw]).expect("the kernel fits the padded image");
        Self::from_fn([self.shape[0], image[0], image[1], out], |i| {
            let mut sum = 0.0;
            for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
                let at = [(i[1] + a) as isize - padding.height as isize, (i[2] + b) as isize - padding.width as isize];
                for c in 0..channels {
                    sum += self.pixel(i[0], at, c) * kernel.pick(&[i[3], a, b, c]);
                }
            }
            sum
        })
    }

    /// gx[n, i, j, c] = Σ gy[n, i + p − a, j + q − b, o] k[o, a, b, c], with `self` as gy.
    pub fn conv2d_input(&self, kernel: &Self, padding: Padding, image: [usize; 2]) -> Self {
        let [out, kh, kw, channels] = extents(kernel);
        Self::from_fn([self.shape[0], image[0], image[1], channels], |i| {
            let mut sum = 0.0;
            for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
                let at = [(i[1] + padding.height) as isize - a as isize, (i[2] + padding.width) as isize - b as isize];
                for o in 0..out {
                    sum += self.pixel(i[0], at, o) * kernel.pick(&[o, a, b, i[3]]);
                }
            }
            sum
        })
    }

    /// gk[o, a, b, c] = Σ x[n, i + a − p, j + b − q, c] gy[n, i, j, o], with `self` as x.
    pub fn conv2d_kernel(&self, gy: &Self, padding: Padding, kernel: [usize; 2]) -> Self {
        let [samples, height, width, out] = extents(gy);
        Self::from_fn([out, kernel[0], kernel[1], self.shape[3]], |k| {
            let mut sum = 0.0;
            for n in 0..samples {
                for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
                    let at =
                        [(i + k[1]) as isize - padding.height as isize, (j + k[2]) as isize - padding.width as isize];
                    sum += self.pixel(n, at, k[3]) * gy.pick(&[n, i, j, k[0]]);
                }
            }
            sum
        })
    }
}

fn extents(image: &Array) -> [usize; 4] {
    [image.shape[0], image.shape[1], image.shape[2], image.shape[3]]
}

/// ln|det| and the inverse of one d×d matrix, by elimination with partial pivoting; −∞ and NaNs if a pivot is zero.
pub fn lu(matrix: &[f64], d: usize) -> (f64, Vec<f64>) {
    // [A | I] is brought to [I | A⁻¹]
    let mut rows: Vec<Vec<f64>> = (0..d)
        .map(|i| (0..2 * d).map(|j| if j < d { matrix[i * d + j] } else { f64::from(u8::from(j - d == i)) }).collect())
        .collect();
    let mut log_det = 0.0;
    for column in 0..d {
        let best = (column..d)
            .max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))
            .expect("at least the diagonal's row is left");
        rows.swap(column, best);
        let pivot = rows[column][column];
        if pivot == 0.0 {
            return (f64::NEG_INFINITY, vec![f64::NAN; d * d]);
        }
        log_det += pivot.abs().ln();
        rows[column].iter_mut().for_each(|x| *x /= pivot);
        let unit = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column];
            row.iter_mut().zip(&unit).for_each(|(x, u)| *x -= factor * u);
        }
    }
    (log_det, rows.into_iter().flat_map(|row| row.into_iter().skip(d)).collect())
}

/// The derivative of an elementwise function: how a relative error of the argument shows in the result. 0 for the
/// functions that are exact or correctly rounded.
pub fn slope(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Exp | Unary::ExpM1 => x.exp(),
        Unary::Ln => 1.0 / x,
        Unary::Ln1p => 1.0 / (1.0 + x),
        Unary::Tanh => 1.0 - x.tanh() * x.tanh(),
        Unary::Sin => x.cos(),
        Unary::Cos => x.sin(),
        _ => 0.0,
    }
}
