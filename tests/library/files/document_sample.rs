//! Samples as a reader by the document has them: numbers with a shape, and what is done with them in plain loops.

/// A sample, a tangent or a cotangent: `[d]`, or `[h, w, c]`.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) shape: Vec<usize>,
    pub(crate) x: Vec<f64>,
}

impl Sample {
    pub(crate) fn features(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Pixels, 1 of a vector.
    pub(crate) fn pixels(&self) -> usize {
        self.x.len() / self.features()
    }

    /// Changes the features at each pixel.
    pub(crate) fn by_features(&self, outputs: usize, f: impl Fn(&[f64], &mut [f64])) -> Self {
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("features") = outputs;
        let mut x = vec![0.0; self.pixels() * outputs];
        self.x.chunks(self.features()).zip(x.chunks_mut(outputs)).for_each(|(from, to)| f(from, to));
        Self { shape, x }
    }

    /// The features from `start` on.
    pub(crate) fn part(&self, start: usize, length: usize) -> Self {
        self.by_features(length, |from, to| to.copy_from_slice(&from[start..start + length]))
    }

    /// In (C, H, W) order.
    pub(crate) fn flat(&self) -> Vec<f64> {
        let c = self.features();
        (0..c).flat_map(|k| self.x.iter().skip(k).step_by(c).copied()).collect()
    }
}

/// An image, or a vector as it is, of numbers in (C, H, W) order.
pub(crate) fn from_flat(flat: &[f64], shape: &[usize]) -> Sample {
    let c = shape[shape.len() - 1];
    let pixels = flat.len() / c;
    let x = (0..flat.len()).map(|e| flat[if shape.len() == 3 { (e % c) * pixels + e / c } else { e }]).collect();
    Sample { shape: shape.to_vec(), x }
}

pub(crate) fn logistic(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

pub(crate) fn softplus(v: f64) -> f64 {
    v.max(0.0) + (-v.abs()).exp().ln_1p()
}

pub(crate) fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
    powers.iter().map(|p| p / powers.iter().sum::<f64>()).collect()
}

pub(crate) fn positions(h: usize, w: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..h).flat_map(move |i| (0..w).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

/// W x of a matrix `[o, i]`, at each pixel, or of a kernel `[o, kh, kw, i]`.
pub(crate) fn product(shape: &[usize], w: &[f64], x: &Sample) -> Sample {
    if let &[o, inputs] = shape {
        return x
            .by_features(o, |x, y| (0..o).for_each(|r| y[r] = (0..inputs).map(|i| w[r * inputs + i] * x[i]).sum()));
    }
    let (&[o, kh, kw, inputs], &[height, width, _]) = (shape, &x.shape[..]) else { panic!("{shape:?}, {:?}", x.shape) };
    let mut y = Sample { shape: vec![height, width, o], x: vec![0.0; height * width * o] };
    for (p, q, r) in positions(height, width, o) {
        let mut sum = 0.0;
        for (a, b, i) in positions(kh, kw, inputs) {
            let (row, column) = (p + a, q + b);
            if row >= kh / 2 && row - kh / 2 < height && column >= kw / 2 && column - kw / 2 < width {
                let at = ((row - kh / 2) * width + column - kw / 2) * inputs + i;
                sum += w[((r * kh + a) * kw + b) * inputs + i] * x.x[at];
            }
        }
        y.x[(p * width + q) * o + r] = sum;
    }
    y
}

/// The end of a chain as an image, where it was flattened.
pub(crate) fn from_image(y: &Sample, shape: &[usize]) -> Sample {
    if y.shape.len() == 3 { y.clone() } else { from_flat(&y.x, shape) }
}
