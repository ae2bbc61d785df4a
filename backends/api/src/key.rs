//! Keys: explicit, counter-based randomness.
//!
//! A [`Key`] and an address determine every random number: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011,
//! "Parallel random numbers: as easy as 1, 2, 3"), a bijection of 128-bit counters under a 64-bit key. There is no
//! state to share, so the numbers do not depend on the order in which they are drawn, on the number of threads, on
//! the backend or on the precision. Keys are passed and [split](Key::split), never ambient.

use rand_core::{Infallible, TryRng};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The use of a Philox counter; its third word, so that streams of one key never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Domain {
    Generator = 0,
    Split = 1,
    Noise = 2,
}

/// Philox4x32-10: ten rounds over one counter.
#[inline(always)]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
    }
    counter
}

/// The source of all random numbers of one purpose.
///
/// ```
/// use resflow_backend::Key;
/// let key = Key::new(7);
/// assert_eq!(key.split(1), Key::new(7).split(1));
/// assert_ne!(key.split(1), key.split(2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The key of a seed.
    pub fn new(seed: u64) -> Self {
        Self([seed as u32, (seed >> 32) as u32])
    }

    /// The key as one number; `Key::new(key.seed()) == key`.
    pub fn seed(self) -> u64 {
        u64::from(self.0[0]) | u64::from(self.0[1]) << 32
    }

    /// Derives an independent key for purpose number `tag` (a step, a block, a sample).
    pub fn split(self, tag: u64) -> Self {
        let [a, b, _, _] = self.block(Domain::Split, tag);
        Self([a, b])
    }

    /// Derives an independent key for a named purpose.
    pub fn named(self, purpose: &str) -> Self {
        // FNV-1a: names are few and known, only distinctness matters
        let hash =
            purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        self.split(hash)
    }

    /// A generator with the traits of `rand`, for host-side draws (`rand_distr` and the like).
    pub fn generator(self) -> Generator {
        Generator { key: self, block: 0, words: [0; 4], used: 4 }
    }

    #[inline(always)]
    pub(crate) fn block(self, domain: Domain, index: u64) -> [u32; 4] {
        philox4x32_10([index as u32, (index >> 32) as u32, domain as u32, 0], self.0)
    }

    /// `L` consecutive blocks, word by word, in a form that compilers turn into vector instructions.
    #[inline(always)]
    pub(crate) fn blocks<const L: usize>(self, domain: Domain, first: u64) -> [[u32; L]; 4] {
        let mut c = [[0u32; L]; 4];
        for lane in 0..L {
            let index = first.wrapping_add(lane as u64);
            c[0][lane] = index as u32;
            c[1][lane] = (index >> 32) as u32;
            c[2][lane] = domain as u32;
        }
        let mut key = self.0;
        for round in 0..10 {
            if round > 0 {
                key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
            }
            for lane in 0..L {
                let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0][lane]);
                let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2][lane]);
                let next0 = (p1 >> 32) as u32 ^ c[1][lane] ^ key[0];
                let next2 = (p0 >> 32) as u32 ^ c[3][lane] ^ key[1];
                c[0][lane] = next0;
                c[1][lane] = p1 as u32;
                c[2][lane] = next2;
                c[3][lane] = p0 as u32;
            }
        }
        c
    }
}

/// A stream of words under one [`Key`], with the traits of `rand`.
#[derive(Debug, Clone)]
pub struct Generator {
    key: Key,
    block: u64,
    words: [u32; 4],
    used: usize,
}

impl Generator {
    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.key.block(Domain::Generator, self.block);
            self.block = self.block.wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }
}

impl TryRng for Generator {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let low = u64::from(self.word());
        Ok(low | u64::from(self.word()) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(4) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    /// Random123's `kat_vectors`, philox4x32 with ten rounds.
    #[test]
    fn published_vectors() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_agree_with_single_blocks() {
        let key = Key::new(0x1234_5678_9abc_def0);
        let first = u64::from(u32::MAX) - 3;
        let lanes = key.blocks::<8>(Domain::Noise, first);
        for lane in 0..8 {
            let single = key.block(Domain::Noise, first + lane as u64);
            assert_eq!([lanes[0][lane], lanes[1][lane], lanes[2][lane], lanes[3][lane]], single);
        }
    }

    #[test]
    fn generator_repeats_and_serves_rand() {
        let draw = |key: Key| -> Vec<f64> {
            let mut g = key.generator();
            (0..8).map(|_| g.random::<f64>()).collect()
        };
        assert_eq!(draw(Key::new(1)), draw(Key::new(1)));
        assert_ne!(draw(Key::new(1)), draw(Key::new(2)));
        let normal: f64 = Key::new(3).generator().sample(rand_distr::StandardNormal);
        assert!(normal.is_finite());
    }

    #[test]
    fn purposes_are_distinct() {
        let key = Key::new(0);
        assert_ne!(key.named("probe"), key.named("law"));
        assert_eq!(Key::new(key.split(9).seed()), key.split(9));
    }
}
