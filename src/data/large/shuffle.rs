//! Permutations of any length in no memory.
//!
//! A Feistel network (Luby and Rackoff 1988) on the bits of a number, its two halves of ⌊b/2⌋ and ⌈b/2⌉ bits in turn, is a
//! permutation of 0, …, 2ᵇ − 1; followed until it is below n again (cycle walking: Black and Rogaway 2002) it is one of 0, …, n − 1.
//! With 2ᵇ⁻¹ < n it takes less than two walks on average. Eight rounds, more than the four that a random function in each round asks for,
//! since the mixing here is no cipher.

use rand::Rng as _;
use resflow_backend::Key;

const ROUNDS: usize = 8;

/// A permutation of 0, …, n − 1 that is a function of the key.
#[derive(Debug, Clone)]
pub(crate) struct Shuffle {
    n: u64,
    /// The bits of the lower and of the upper part.
    bits: [u32; 2],
    keys: [u64; ROUNDS],
}

impl Shuffle {
    pub(crate) fn new(n: usize, key: Key) -> Self {
        let mut generator = key.generator();
        let bits = (n as u64).saturating_sub(1).checked_ilog2().map_or(2, |log| (log + 1).max(2));
        Self { n: n as u64, bits: [bits / 2, bits - bits / 2], keys: std::array::from_fn(|_| generator.next_u64()) }
    }

    /// The number at position `i` < n.
    pub(crate) fn at(&self, i: usize) -> usize {
        debug_assert!((i as u64) < self.n);
        let mut x = i as u64;
        loop {
            x = self.permute(x);
            if x < self.n {
                return x as usize;
            }
        }
    }

    fn permute(&self, x: u64) -> u64 {
        let masks = self.bits.map(|bits| (1 << bits) - 1);
        let mut parts = [x & masks[0], x >> self.bits[0]];
        for (round, key) in self.keys.iter().enumerate() {
            let (to, from) = (round % 2, 1 - round % 2);
            parts[to] ^= mix(parts[from] ^ key) & masks[to];
        }
        parts[1] << self.bits[0] | parts[0]
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The numbers 0, …, n − 1 without a few.
#[derive(Debug, Clone)]
pub(crate) struct Remaining {
    n: usize,
    /// The numbers that are left out, ascending.
    gone: Vec<usize>,
}

impl Remaining {
    /// Leaves distinct numbers out.
    pub(crate) fn new(n: usize, mut gone: Vec<usize>) -> Self {
        gone.sort_unstable();
        Self { n, gone }
    }

    pub(crate) fn len(&self) -> usize {
        self.n - self.gone.len()
    }

    /// The numbers that are left out.
    pub(crate) fn gone(&self) -> &[usize] {
        &self.gone
    }

    /// Number `i` of those that remain.
    pub(crate) fn at(&self, i: usize) -> usize {
        // gone[j] − j remain below gone[j]
        let (mut low, mut high) = (0, self.gone.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.gone[middle] - middle <= i {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        i + low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once() {
        for n in (1..130).chain([1000, 4095, 4096, 4097]) {
            for seed in 0..3 {
                let shuffle = Shuffle::new(n, Key::new(seed));
                let mut seen = vec![false; n];
                (0..n).for_each(|i| assert!(!std::mem::replace(&mut seen[shuffle.at(i)], true)));
            }
        }
        let shuffle = Shuffle::new(usize::MAX, Key::new(1));
        assert_ne!(shuffle.at(usize::MAX - 1), shuffle.at(0));
    }

    /// χ² of where an element goes over keys, and of the difference between neighbours within one: each is beyond 4.5 standard
    /// deviations of its mean with a probability of some 1e-5.
    #[test]
    fn nothing_is_preferred() {
        let chi_squared = |counts: &[u32]| {
            let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
            let sum: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
            let freedom = counts.len() as f64 - 1.0;
            (sum - freedom) / (2.0 * freedom).sqrt()
        };
        for n in [7, 64, 100] {
            let mut places = vec![0; n];
            (0..40_000).for_each(|seed| places[Shuffle::new(n, Key::new(seed)).at(0)] += 1);
            let found = chi_squared(&places);
            assert!(found.abs() < 4.5, "{n}: {found}");
        }
        let n = 100_000;
        let shuffle = Shuffle::new(n, Key::new(5));
        let mut differences = vec![0; 100];
        (1..n).for_each(|i| differences[(shuffle.at(i) + n - shuffle.at(i - 1)) % n / (n / 100)] += 1);
        let found = chi_squared(&differences);
        assert!(found.abs() < 4.5, "{found}");
    }

    #[test]
    fn what_remains_is_in_order() {
        for gone in [vec![], vec![0], vec![9], vec![4, 3, 0, 9], (1..10).collect()] {
            let remaining = Remaining::new(10, gone.clone());
            let expected: Vec<usize> = (0..10).filter(|i| !gone.contains(i)).collect();
            assert_eq!((0..remaining.len()).map(|i| remaining.at(i)).collect::<Vec<_>>(), expected);
        }
    }
}
