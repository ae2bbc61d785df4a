//! Noise whose every element has an address.
//!
//! Element e of a draw is a function of (key, e) alone: word e mod 4 of Philox block ⌊e/4⌋. A shard therefore draws
//! its own rows of the batch's noise, whatever the shard's size, by naming its first element.

use crate::Element;
use crate::key::{Domain, Key};

/// The distribution of [`Backend::noise`](crate::Backend::noise). All have mean 0 and variance 1 but `Uniform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Noise {
    /// ±1 with equal probability: bit for bit the same on every backend.
    Rademacher,
    /// Uniform on [0, 1), multiples of 2⁻²⁴: bit for bit the same on every backend.
    Uniform,
    /// Standard normal by Box and Muller's transform of two words; a few ulp between backends.
    Normal,
}

impl Noise {
    /// All distributions, for tests that walk them.
    pub const ALL: [Self; 3] = [Self::Rademacher, Self::Uniform, Self::Normal];

    /// The four elements that one Philox block makes.
    #[inline(always)]
    fn four<E: Element>(self, w: [u32; 4]) -> [E; 4] {
        match self {
            Self::Rademacher => w.map(|w| if w >> 31 == 0 { E::ONE } else { -E::ONE }),
            Self::Uniform => w.map(|w| E::from_f64(unit(w))),
            Self::Normal => {
                let (a, b) = normal_pair(w[0], w[1]);
                let (c, d) = normal_pair(w[2], w[3]);
                [a, b, c, d].map(E::from_f64)
            }
        }
    }

    /// Writes elements `first..first + out.len()` of the stream. The reference for every backend, in double precision
    /// before the last rounding.
    #[inline(always)]
    pub fn fill<E: Element>(self, key: Key, first: u64, out: &mut [E]) {
        const LANES: usize = 16;
        let mut done = 0;
        // to the next block boundary
        let skip = (first % 4) as usize;
        if skip > 0 {
            let four = self.four::<E>(key.block(Domain::Noise, first / 4));
            done = (4 - skip).min(out.len());
            out[..done].copy_from_slice(&four[skip..skip + done]);
        }
        let mut block = (first + done as u64) / 4;
        let mut wide = out[done..].chunks_exact_mut(4 * LANES);
        for chunk in &mut wide {
            let words = key.blocks::<LANES>(Domain::Noise, block);
            for (lane, out) in chunk.chunks_exact_mut(4).enumerate() {
                out.copy_from_slice(&self.four::<E>([words[0][lane], words[1][lane], words[2][lane], words[3][lane]]));
            }
            block += LANES as u64;
        }
        for chunk in wide.into_remainder().chunks_mut(4) {
            let four = self.four::<E>(key.block(Domain::Noise, block));
            chunk.copy_from_slice(&four[..chunk.len()]);
            block += 1;
        }
    }
}

#[inline(always)]
fn unit(w: u32) -> f64 {
    f64::from(w >> 8) * (1.0 / 16_777_216.0)
}

#[inline(always)]
fn normal_pair(w0: u32, w1: u32) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - unit(w0)).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * unit(w1)).sin_cos();
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_of_a_stream_is_the_stream() {
        for noise in Noise::ALL {
            let mut whole = [0f64; 300];
            noise.fill(Key::new(5), 0, &mut whole);
            for (first, len) in [(0, 3), (1, 2), (3, 200), (5, 1), (64, 64), (130, 170)] {
                let mut part = vec![0f64; len];
                noise.fill(Key::new(5), first as u64, &mut part);
                assert_eq!(part, whole[first..first + len], "{noise:?} {first} {len}");
            }
        }
    }

    /// Mean, variance and fourth moment of 2¹⁷ draws, within five standard errors: a false alarm in 2·10⁻⁶ of keys.
    #[test]
    fn moments() {
        const N: usize = 1 << 17;
        let mut x = vec![0f64; N];
        for (noise, mean, variance, fourth) in [
            (Noise::Rademacher, 0.0, 1.0, 1.0),
            (Noise::Uniform, 0.5, 1.0 / 12.0, 1.0 / 80.0),
            (Noise::Normal, 0.0, 1.0, 3.0),
        ] {
            noise.fill(Key::new(11), 0, &mut x);
            let m = x.iter().sum::<f64>() / N as f64;
            let v = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / N as f64;
            assert!((m - mean).abs() < 5.0 * (variance / N as f64).sqrt(), "{noise:?} mean {m}");
            assert!(
                (v - variance).abs() <= 5.0 * ((fourth - variance * variance) / N as f64).sqrt(),
                "{noise:?} variance {v}"
            );
        }
    }
}
