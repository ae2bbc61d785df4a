//! Uniform dequantisation, of which [`Dequantiser`](crate::dequantiser::Dequantiser) has the variational kind (Uria et al. 2013): bytes become x = (⌊byte / 2^{8−b}⌋ + u)/2ᵇ with u uniform on [0, 1).
//!
//! log p(x) of the continuous x bounds the log probability of the discrete image from below in expectation; in bits per
//! dimension (Theis et al. 2016)
//!
//! bits/dim = −(log p(x) − d ln 2ᵇ)/(d ln 2).

use resflow_backend::{Backend, Element as _, Key, Noise, Shape};

use crate::batch::Quantised;

/// Turns bytes of images into numbers in \[0, 1\], `[n, h, w, c]`, of which `bits` bits are kept. Image i of them has
/// the noise of number `first + i` of the key.
///
/// # Panics
/// If the bytes are not those of the shape, or the bits are not 1 to 8.
pub fn dequantise<B: Backend>(backend: &B, bytes: &[u8], shape: Shape, bits: u32, key: Key, first: u64) -> B::Tensor {
    let images = quantised(backend, bytes, shape, bits, key, first);
    images.place(backend, &images.noise, bits)
}

/// Uploads the levels of images, `[n, h, w, c]`, of which `bits` bits are kept, with the noise that [`dequantise`] adds to them.
///
/// # Panics
/// If the bytes are not those of the shape, or the bits are not 1 to 8.
pub(crate) fn quantised<B: Backend>(
    backend: &B,
    bytes: &[u8],
    shape: Shape,
    bits: u32,
    key: Key,
    first: u64,
) -> Quantised<B> {
    assert!((1..=8).contains(&bits), "dequantise: {bits} bits");
    let levels: Vec<B::Elem> = bytes.iter().map(|&b| B::Elem::from_f64(f64::from(b >> (8 - bits)))).collect();
    // addresses wrap around beyond any honest run
    let first = first.wrapping_mul(shape.row_elements() as u64);
    let noise = backend.noise(key, Noise::Uniform, first, shape);
    Quantised { levels: backend.upload(&levels, shape), noise }
}

/// Returns the byte that shows a number in \[0, 1\]: its level of so many bits, spread over 0 to 255. Numbers outside
/// count as 0 or 1.
///
/// # Panics
/// If the bits are not 1 to 8.
pub fn quantise(x: f64, bits: u32) -> u8 {
    assert!((1..=8).contains(&bits), "quantise: {bits} bits");
    let levels = f64::from(1_u32 << bits);
    let level = (x * levels).floor().clamp(0.0, levels - 1.0);
    // the brightest level is white
    (level * 255.0 / (levels - 1.0)).round() as u8
}

/// Converts a log density (nats) over d numbers in \[0, 1\] that were dequantised from `bits` bits to bits per
/// dimension.
pub fn bits_per_dim(log_prob: f64, dimension: usize, bits: u32) -> f64 {
    f64::from(bits) - log_prob / (dimension as f64 * std::f64::consts::LN_2)
}
