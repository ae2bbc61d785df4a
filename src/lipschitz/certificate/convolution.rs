//! ‖K‖₂ of a zero-padded convolution of stride 1 from above, on images of one size or of any.
//!
//! The convolution on images is a part (restricting in- and output) of that on the plane, and of one on any torus that is large enough
//! for no tap to reach around it from a pixel of the image to another. On both it is diagonal in frequencies: with f(ω) =
//! Σ_t K_t e^{i⟨ω, t⟩}, a matrix `[c_out, c_in]`, ‖K‖₂ ≤ sup σ₁(f(ω)), over the frequencies 2πj/N of the torus, or over all.
//! Of the latter a grid of N suffices: u*f(ω)v is a trigonometric polynomial of degree p = ⌊k/2⌋ in each direction, whose real
//! part falls by no more than cos(ps) within s of its maximum (M. Riesz 1914), and a grid point lies within π/N:
//!
//! sup σ₁(f) ≤ max over the grid of σ₁(f) / cos(πp/N), for each direction.
//!
//! σ₁(f)² is the norm of f*f = Σ_d R_d e^{i⟨ω, d⟩} with R_d = Σ_s K_sᵀ K_{s+d}, on the side with fewer channels: lags are computed once,
//! and each frequency sums them and [squares](super::gram) as long as it may have the largest norm. A Hermitian matrix
//! A + iB is the real symmetric [[A, −B], [B, A]], of the same norm.
//!
//! A torus has a larger norm than the image, by up to a quarter where there are few pixels. So on small images the norm is that of the
//! convolution's own matrix, and as sharp as that of any matrix.

use std::f64::consts::{PI, TAU};

use resflow_backend::Padding;

use super::gram::{eigenvalue_bound, spectral_norm_bound, symmetric_norm_bound};
use super::rounding::{Pulled, add, dot, gamma, mul, pull, root, scaled, square_sum};

/// Grid points for each degree of the polynomial: 1/cos(π/64) is 1.0012.
const POINTS: usize = 64;
/// The most numbers on the shorter side of the convolution's own matrix whose norm is taken directly: 12 × 12 pixels of two channels. It
/// costs the cube of that, some tens of milliseconds.
const SMALL: usize = 288;
/// The error of a sine or a cosine of a fraction of a turn, argument included.
const TRIGONOMETRY: f64 = 4e-15;

/// One direction of the image.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// The taps from the first to the last that can meet a pixel, and the number of all.
    taps: [usize; 2],
    extent: usize,
    /// Pixels before and after, and the padding; `None` of any size.
    pixels: Option<[usize; 3]>,
    /// Grid points, and the factor from their maximum to the supremum.
    points: usize,
    factor: f64,
}

impl Axis {
    /// `None` if no tap meets a pixel.
    fn new(extent: usize, size: Option<(usize, usize)>) -> Option<Self> {
        let free = |taps: [usize; 2]| {
            // ⌊k/2⌋ of k taps
            let degree = (taps[1] - taps[0]).div_ceil(2);
            let points = if degree == 0 { 1 } else { POINTS * degree };
            let cosine = (PI * degree as f64 / points as f64).cos();
            Self { taps, extent, pixels: None, points, factor: (1.0 + TRIGONOMETRY) / cosine }
        };
        let Some((pixels, padding)) = size else { return extent.checked_sub(1).map(|last| free([0, last])) };
        let output = (pixels + 2 * padding + 1).checked_sub(extent).filter(|&n| n > 0 && pixels > 0 && extent > 0)?;
        let (first, last) = ((padding + 1).saturating_sub(output), (extent - 1).min(pixels - 1 + padding));
        if first > last {
            return None;
        }
        // tap t joins pixel i + t − padding to output i: these many points keep every such pair apart from the others
        let points = (last + output).saturating_sub(padding).max(pixels + padding - first).max(pixels).max(output);
        let (free, known) = (free([first, last]), Some([pixels, output, padding]));
        Some(if points < free.points {
            Self { pixels: known, points, factor: 1.0, ..free }
        } else {
            Self { pixels: known, ..free }
        })
    }

    fn count(self) -> usize {
        self.taps[1] - self.taps[0] + 1
    }
}

/// Bounds the norm of a zero-padded convolution with a kernel `[c_out, kh, kw, c_in]` from above, on images `[h, w]` of one size and
/// smaller ones with this padding, or of any size with any padding: never below it, rounding included. On a given size it is the norm on a torus
/// somewhat larger, of small operators the norm itself; for any size within 0.3 % of the supremum over all frequencies. 0 of zeros, infinite
/// of numbers that are not finite.
///
/// # Panics
/// If there are not as many numbers.
#[track_caller]
pub fn convolution_norm_bound(kernel: &[f64], extents: [usize; 4], size: Option<([usize; 2], Padding)>) -> f64 {
    let [outputs, kh, kw, inputs] = extents;
    assert_eq!(kernel.len(), outputs * kh * kw * inputs, "{} numbers of a kernel {extents:?}", kernel.len());
    if kernel.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let axis = |k: usize, which: usize| {
        Axis::new(k, size.map(|(image, padding)| (image[which], [padding.height, padding.width][which])))
    };
    let (Some(y), Some(x)) = (axis(kh, 0), axis(kw, 1)) else { return 0.0 };
    // of the taps that meet a pixel: beside the others they may be nothing
    let Some((taps, e)) = Taps::new(kernel, [outputs, inputs], [y, x]).pulled() else { return 0.0 };
    let bound = match [y.pixels, x.pixels] {
        _ if y.count() * x.count() == 1 => spectral_norm_bound(outputs, inputs, &taps.matrices[0]),
        [Some(h), Some(w)] if (h[0] * w[0] * inputs).min(h[1] * w[1] * outputs) <= SMALL => taps.own([y, x], [h, w]),
        _ => taps.grid([y, x]),
    };
    scaled(bound, e).next_up()
}

/// The taps that can meet a pixel, each a matrix `[c_out, c_in]`.
struct Taps {
    matrices: Vec<Vec<f64>>,
    channels: [usize; 2],
    counts: [usize; 2],
}

impl Taps {
    fn new(kernel: &[f64], channels: [usize; 2], [y, x]: [Axis; 2]) -> Self {
        let [outputs, inputs] = channels;
        let at = |o: usize, row: usize, column: usize| ((o * y.extent + row) * x.extent + column) * inputs;
        let mut matrices = Vec::with_capacity(y.count() * x.count());
        for row in y.taps[0]..=y.taps[1] {
            for column in x.taps[0]..=x.taps[1] {
                let tap = |o| &kernel[at(o, row, column)..][..inputs];
                matrices.push((0..outputs).flat_map(tap).copied().collect());
            }
        }
        Self { matrices, channels, counts: [y.count(), x.count()] }
    }

    /// The taps without a power of two, and that; `None` of zeros.
    fn pulled(self) -> Option<(Self, i32)> {
        let Pulled::Numbers(numbers, e) = pull(&self.matrices.concat()) else { return None };
        let each = (self.channels[0] * self.channels[1]).max(1);
        Some((Self { matrices: numbers.chunks(each).map(<[f64]>::to_vec).collect(), ..self }, e))
    }

    /// The norm of the convolution's own matrix M, `[c_out·h'·w', c_in·h·w]`, by MᵀM, or MMᵀ where that is smaller: a pixel of the
    /// longer side joins those of the shorter one that its taps lead to, so these blocks are sums of K_tᵀK_s, or of K_tK_sᵀ.
    fn own(&self, axes: [Axis; 2], [h, w]: [[usize; 3]; 2]) -> f64 {
        let [outputs, inputs] = self.channels;
        let by_inputs = inputs * h[0] * w[0] <= outputs * h[1] * w[1];
        let (c, [height, width], [far_height, far_width]) =
            if by_inputs { (inputs, [h[0], w[0]], [h[1], w[1]]) } else { (outputs, [h[1], w[1]], [h[0], w[0]]) };
        // the pixel that tap number t of an axis joins to pixel i of the longer side
        let joined = |axis: Axis, [pixels, output, padding]: [usize; 3], t: usize, i: usize| {
            let tap = axis.taps[0] + t;
            if by_inputs {
                (i + tap).checked_sub(padding).filter(|&j| j < pixels)
            } else {
                (i + padding).checked_sub(tap).filter(|&j| j < output)
            }
        };
        let sides = self.sides(by_inputs);
        let count = sides.len();
        let products: Vec<Vec<f64>> =
            (0..count * count).map(|at| cross(c, &sides[at / count], &sides[at % count])).collect();
        let n = c * height * width;
        let mut gram = vec![0.0; n * n];
        for far in 0..far_height * far_width {
            let places: Vec<_> = (0..count)
                .filter_map(|t| {
                    let y = joined(axes[0], h, t / self.counts[1], far / far_width)?;
                    Some((t, (y * width + joined(axes[1], w, t % self.counts[1], far % far_width)?) * c))
                })
                .collect();
            for (&(t, row), &(s, column)) in places.iter().flat_map(|t| places.iter().map(move |s| (t, s))) {
                for (i, product) in products[t * count + s].chunks_exact(c).enumerate() {
                    let start = (row + i) * n + column;
                    gram[start..start + c].iter_mut().zip(product).for_each(|(sum, product)| *sum += product);
                }
            }
        }
        // ‖M‖_F²: each tap as often as it joins two pixels, at most as often as there are pixels
        let each = self.matrices.iter().fold(0.0, |sum, tap| add(sum, square_sum(tap)));
        let size = mul(each, (far_height * far_width) as f64);
        let slack = add(mul(gamma((outputs.max(inputs) + 1) * count), size), f64::MIN_POSITIVE);
        root(add(eigenvalue_bound(n, &gram), slack))
    }

    /// The taps as matrices whose rows are of length of the inputs or, `by_inputs`, of the outputs: those of the other side.
    fn sides(&self, by_inputs: bool) -> Vec<Vec<f64>> {
        let [outputs, inputs] = self.channels;
        let turned = |m: &Vec<f64>| (0..inputs * outputs).map(|at| m[at % outputs * inputs + at / outputs]).collect();
        if by_inputs { self.matrices.iter().map(turned).collect() } else { self.matrices.clone() }
    }

    /// The largest norm of f over the grid, and from there to all frequencies.
    fn grid(&self, [y, x]: [Axis; 2]) -> f64 {
        let lags = self.lags();
        let n = self.channels[0].min(self.channels[1]);
        let mut largest = 0.0;
        for (jy, jx) in (0..y.points).flat_map(|jy| (0..x.points).map(move |jx| (jy, jx))) {
            // f(−ω) is the conjugate of f(ω)
            if (jy, jx) > ((y.points - jy) % y.points, (x.points - jx) % x.points) {
                continue;
            }
            let mut matrix = vec![0.0; 4 * n * n];
            for lag in &lags {
                let turn = |j: usize, d: isize, points: usize| {
                    (j as i128 * d as i128).rem_euclid(points as i128) as f64 / points as f64
                };
                let angle = TAU * (turn(jy, lag.by[0], y.points) + turn(jx, lag.by[1], x.points));
                let (sine, cosine) = angle.sin_cos();
                for i in 0..n {
                    for j in 0..n {
                        let (real, imaginary) = (lag.even[i * n + j] * cosine, lag.odd[i * n + j] * sine);
                        matrix[i * 2 * n + j] += real;
                        matrix[(n + i) * 2 * n + n + j] += real;
                        matrix[(n + i) * 2 * n + j] += imaginary;
                        matrix[i * 2 * n + n + j] -= imaginary;
                    }
                }
            }
            largest = symmetric_norm_bound(2 * n, &matrix, largest).max(largest);
        }
        mul(mul(root(add(largest, self.slack(lags.len()))), y.factor), x.factor)
    }

    /// What f*f may be off by, in the Frobenius norm: its lags are sums of as many products as taps and channels, whose absolute values are
    /// together at most (Σ ‖K_t‖_F)², and it is a sum of the lags times sines and cosines.
    fn slack(&self, lags: usize) -> f64 {
        let size = self.matrices.iter().fold(0.0, |sum, tap| add(sum, root(square_sum(tap))));
        let terms = self.matrices.len() * self.channels[0].max(self.channels[1]);
        let part = gamma(terms + 4 * lags + 16) + 2.0 * TRIGONOMETRY;
        add(mul(mul(part, 1.001), mul(size, size)), f64::MIN_POSITIVE)
    }

    /// R_d ± R_dᵀ for half of the lags d, of which the others are the transposes.
    fn lags(&self) -> Vec<Lag> {
        let [outputs, inputs] = self.channels;
        let [rows, columns] = self.counts.map(|n| n as isize);
        let sides = self.sides(inputs <= outputs);
        let n = inputs.min(outputs);
        let mut lags = Vec::new();
        for by in (0..rows).flat_map(|dy| (1 - columns..columns).map(move |dx| [dy, dx])) {
            if by < [0, 0] {
                continue;
            }
            let mut product = vec![0.0; n * n];
            for (s, first) in sides.iter().enumerate() {
                let (row, column) = (s as isize / columns + by[0], s as isize % columns + by[1]);
                if !(0..rows).contains(&row) || !(0..columns).contains(&column) {
                    continue;
                }
                let second = &sides[(row * columns + column) as usize];
                product.iter_mut().zip(cross(n, first, second)).for_each(|(sum, product)| *sum += product);
            }
            // the lag 0 is there once
            let share = if by == [0, 0] { 0.5 } else { 1.0 };
            let mirrored = |i: usize| product[i % n * n + i / n];
            let even = product.iter().enumerate().map(|(i, v)| share * (v + mirrored(i))).collect();
            let odd = product.iter().enumerate().map(|(i, v)| share * (v - mirrored(i))).collect();
            lags.push(Lag { by, even, odd });
        }
        lags
    }
}

/// A Bᵀ of matrices of n rows, `[n, n]`.
fn cross(n: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    let length = a.len() / n.max(1);
    (0..n * n).map(|at| dot(&a[at / n * length..][..length], &b[at % n * length..][..length])).collect()
}

/// R_d + R_dᵀ and R_d − R_dᵀ, halved for d = 0.
struct Lag {
    by: [isize; 2],
    even: Vec<f64>,
    odd: Vec<f64>,
}
