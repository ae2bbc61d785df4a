//! A net in double precision, with a bound on its own rounding.
//!
//! Errors grow by each layer: with ‖e‖₂ ≤ E before an affine layer whose weight has ‖W‖_F ≤ F and sums of n products, it is at most
//! F·E + γ_{n+2}(F(‖h‖₂ + E) + ‖b‖₂) behind it, and behind an activation, which is 1-Lipschitz, E + 64 ε (‖h‖₂ + √d): the
//! formulas of activations and the system's elementary functions are off by a few units of |h| or of 1.

use resflow_backend::{Activation, Backend, BackendError, Element, NetLayer, Padding};

/// The units of |h| + 1 by which an activation may be off.
const ACTIVATION: f64 = 64.0;

/// A layer on the host.
#[derive(Debug, Clone)]
enum ReferenceLayer {
    /// A matrix `[o, i]` on the last axis.
    Linear { weight: Vec<f64>, bias: Vec<f64>, inputs: usize },
    /// A kernel `[o, kh, kw, i]` on images.
    Convolution { kernel: Vec<f64>, bias: Vec<f64>, extents: [usize; 4], padding: Padding },
    /// A function of each number, with its parameter b.
    Activation { function: Activation, b: f64 },
}

/// A net on the host, with the numbers that the device multiplies by.
#[derive(Debug, Clone)]
pub struct ReferenceNet {
    layers: Vec<ReferenceLayer>,
}

/// A value and how far it may be from the exact one.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    /// The value of one sample.
    pub(crate) value: Vec<f64>,
    /// A bound on ‖value − g(x)‖₂, from rounding.
    pub(crate) off: f64,
}

/// Downloads a tensor in double precision.
pub(crate) fn numbers<B: Backend>(backend: &B, x: &B::Tensor) -> Result<Vec<f64>, BackendError> {
    Ok(backend.download(x)?.into_iter().map(Element::to_f64).collect())
}

/// ‖x‖₂.
pub(crate) fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

impl ReferenceNet {
    /// Copies layers as a backend knows them; `None` if there is one that is not computed here.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub fn of<B: Backend>(backend: &B, layers: &[NetLayer<B::Tensor>]) -> Result<Option<Self>, BackendError> {
        let mut own = Vec::with_capacity(layers.len());
        for layer in layers {
            own.push(match layer {
                NetLayer::Linear { weight, bias, .. } => ReferenceLayer::Linear {
                    inputs: backend.shape(weight)[1],
                    weight: numbers(backend, weight)?,
                    bias: numbers(backend, bias)?,
                },
                NetLayer::Convolution { kernel, bias, padding } => {
                    let shape = backend.shape(kernel);
                    ReferenceLayer::Convolution {
                        extents: [shape[0], shape[1], shape[2], shape[3]],
                        kernel: numbers(backend, kernel)?,
                        bias: numbers(backend, bias)?,
                        padding: *padding,
                    }
                }
                NetLayer::Activation { function, parameter } => {
                    let b = parameter.as_ref().map(|b| numbers(backend, b)).transpose()?;
                    ReferenceLayer::Activation { function: *function, b: b.map_or(1.0, |b| b[0]) }
                }
                // what backends learn to compute is not certified before it is here
                _ => return Ok(None),
            });
        }
        Ok(Some(Self { layers: own }))
    }

    /// Computes g(x) of a sample of this shape, `[d]` or `[h, w, c]`, which g maps to the same.
    pub(crate) fn value(&self, x: &[f64], shape: &[usize]) -> Reference {
        let mut h = Reference { value: x.to_vec(), off: 0.0 };
        for layer in &self.layers {
            h = layer.apply(&h, shape);
        }
        h
    }
}

impl ReferenceLayer {
    fn apply(&self, h: &Reference, shape: &[usize]) -> Reference {
        let size = length(&h.value) + h.off;
        let (value, frobenius, terms, bias) = match self {
            Self::Activation { function, b } => {
                let value: Vec<f64> = h.value.iter().map(|&x| function.derivatives(x, *b)[0]).collect();
                let ones = (value.len() as f64).sqrt();
                return Reference { off: h.off + ACTIVATION * f64::EPSILON * (size + ones), value };
            }
            Self::Linear { weight, bias, inputs } => {
                let rows = weight.chunks_exact(*inputs);
                let of = |x: &[f64]| -> Vec<f64> {
                    let product = |(row, b): (&[f64], &f64)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b;
                    rows.clone().zip(bias).map(product).collect()
                };
                let value: Vec<f64> = h.value.chunks_exact(*inputs).flat_map(of).collect();
                (value, length(weight), *inputs, bias)
            }
            Self::Convolution { kernel, bias, extents, padding } => {
                let [outputs, kh, kw, inputs] = *extents;
                let value = convolve(&h.value, [shape[0], shape[1]], kernel, bias, *extents, *padding);
                // ‖K‖ ≤ Σ_t ‖K_t‖_F, and with absolute values as well
                let mut taps = vec![0.0_f64; kh * kw];
                for (at, w) in kernel.iter().enumerate() {
                    taps[at / inputs % (kh * kw)] += w * w;
                }
                debug_assert_eq!(kernel.len(), outputs * kh * kw * inputs);
                (value, taps.iter().map(|t| t.sqrt()).sum(), kh * kw * inputs, bias)
            }
        };
        let copies = (value.len() / bias.len().max(1)) as f64;
        let rounding = (terms + 2) as f64 * f64::EPSILON * (frobenius * size + copies.sqrt() * length(bias));
        // the bound's own arithmetic is off by a part in 10¹²
        Reference { value, off: (frobenius * h.off + rounding) * (1.0 + 1e-9) }
    }
}

/// The cross-correlation of an image `[h, w, i]` with a kernel, padded so that the size stays.
fn convolve(
    x: &[f64],
    [h, w]: [usize; 2],
    kernel: &[f64],
    bias: &[f64],
    [outputs, kh, kw, inputs]: [usize; 4],
    padding: Padding,
) -> Vec<f64> {
    let mut y = Vec::with_capacity(h * w * outputs);
    for (row, column) in (0..h).flat_map(|row| (0..w).map(move |column| (row, column))) {
        for o in 0..outputs {
            let mut sum = bias[o];
            for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
                let from = |at: usize, tap: usize, padding: usize, size: usize| {
                    (at + tap).checked_sub(padding).filter(|&at| at < size)
                };
                let (Some(i), Some(j)) = (from(row, a, padding.height, h), from(column, b, padding.width, w)) else {
                    continue;
                };
                let tap = &kernel[((o * kh + a) * kw + b) * inputs..][..inputs];
                sum += tap.iter().zip(&x[(i * w + j) * inputs..]).map(|(k, x)| k * x).sum::<f64>();
            }
            y.push(sum);
        }
    }
    y
}
