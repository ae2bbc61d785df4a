//! A net in double precision, with a bound on its own rounding.
//!
//! Errors grow by each layer: with ‖e‖₂ ≤ E before an affine layer whose weight has ‖W‖_F ≤ F and sums of n products, it is at most
//! F·E + γ_{n+2}(F(‖h‖₂ + E) + ‖b‖₂) behind it, and behind an activation, which is 1-Lipschitz, E + 64 ε (‖h‖₂ + √d): the
//! formulas of activations and the system's elementary functions are off by a few units of |h| or of 1. A dense layer [η₁h ; η₂f(h)]
//! takes both shares of them, with a unit of rounding each.

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
    /// [φ(x + shift), φ(−x + shift)]·scale along the features.
    Concatenated { function: Activation, b: f64, shift: f64, scale: f64 },
    /// share·x + rest·φ(x) of LipSwish.
    Leaky { share: f64, rest: f64, b: f64 },
    /// [skip·h ; growth·f(h)] along the features.
    Dense { skip: f64, growth: f64, net: ReferenceNet },
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

    /// Chains nets.
    pub(crate) fn chain(nets: impl IntoIterator<Item = Self>) -> Self {
        Self { layers: nets.into_iter().flat_map(|net| net.layers).collect() }
    }

    /// A concatenated activation, whose parameter is 1 where it has none.
    pub(crate) fn concatenated(function: Activation, b: Option<f64>, shift: f64, scale: f64) -> Self {
        Self { layers: vec![ReferenceLayer::Concatenated { function, b: b.unwrap_or(1.0), shift, scale }] }
    }

    /// LeakyLipSwish with its shares of x and of LipSwish, and the parameter of that.
    pub(crate) fn leaky(share: f64, rest: f64, b: f64) -> Self {
        Self { layers: vec![ReferenceLayer::Leaky { share, rest, b }] }
    }

    /// A dense layer with η₁ and η₂.
    pub(crate) fn dense([skip, growth]: [f64; 2], net: Self) -> Self {
        Self { layers: vec![ReferenceLayer::Dense { skip, growth, net }] }
    }

    /// Computes g(x) of a sample of this shape, `[d]` or `[h, w, c]`, which g maps to the same.
    pub(crate) fn value(&self, x: &[f64], shape: &[usize]) -> Reference {
        self.through(Reference { value: x.to_vec(), off: 0.0 }, shape)
    }

    /// Takes a value through the layers, on images of the shape's height and width.
    fn through(&self, h: Reference, shape: &[usize]) -> Reference {
        self.layers.iter().fold(h, |h, layer| layer.apply(&h, shape))
    }
}

impl ReferenceLayer {
    fn apply(&self, h: &Reference, shape: &[usize]) -> Reference {
        let size = length(&h.value) + h.off;
        let channels = h.value.len() / shape[..shape.len() - 1].iter().product::<usize>().max(1);
        // what the formulas of so many numbers may be off by
        let formulas = |count: usize| ACTIVATION * f64::EPSILON * (size + (count as f64).sqrt());
        let (value, frobenius, terms, bias) = match self {
            Self::Activation { function, b } => {
                let value: Vec<f64> = h.value.iter().map(|&x| function.derivatives(x, *b)[0]).collect();
                return Reference { off: h.off + formulas(value.len()), value };
            }
            Self::Concatenated { function, b, shift, scale } => {
                let half = |x: f64| scale * function.derivatives(x + shift, *b)[0];
                let pixel = |h: &[f64]| -> Vec<f64> {
                    let (ahead, back) = (h.iter().map(|&x| half(x)), h.iter().map(|&x| half(-x)));
                    ahead.chain(back).collect()
                };
                let value: Vec<f64> = h.value.chunks_exact(channels).flat_map(pixel).collect();
                return Reference { off: h.off + 2.0 * formulas(value.len()), value };
            }
            Self::Leaky { share, rest, b } => {
                let mix = |&x: &f64| share * x + rest * Activation::LipSwish.derivatives(x, *b)[0];
                let value: Vec<f64> = h.value.iter().map(mix).collect();
                let lipschitz = (share.abs() + rest.abs()) * (1.0 + 1e-9);
                return Reference { off: lipschitz * h.off + 2.0 * formulas(value.len()), value };
            }
            Self::Dense { skip, growth, net } => {
                let new = net.through(h.clone(), shape);
                let width = new.value.len() / (h.value.len() / channels);
                let parts = h.value.chunks_exact(channels).zip(new.value.chunks_exact(width));
                let join = |(h, new): (&[f64], &[f64])| -> Vec<f64> {
                    h.iter().map(|x| skip * x).chain(new.iter().map(|x| growth * x)).collect()
                };
                let off = skip.abs() * (h.off + f64::EPSILON * size)
                    + growth.abs() * (new.off + f64::EPSILON * (length(&new.value) + new.off));
                return Reference { value: parts.flat_map(join).collect(), off: off * (1.0 + 1e-9) };
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
