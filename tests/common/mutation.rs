//! Mutations of the fuzz targets' seeds: the same inputs on every run.

use std::fs;
use std::path::Path;

use rand::Rng;
use resflow::backend::{Generator, Key};

/// The seeds of a target, in the order of their names.
pub(crate) fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a readable seed")).collect()
}

/// One of 0, …, n − 1.
pub(crate) fn below(g: &mut Generator, n: usize) -> usize {
    ((u64::from(g.next_u32()) * n as u64) >> 32) as usize
}

/// Changes a few bytes, runs of bytes, or known pieces of the format.
pub(crate) fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], tokens: &[&[u8]], g: &mut Generator) {
    for _ in 0..=below(g, 3) {
        let at = below(g, input.len() + 1);
        let run = at..(at + 1 + below(g, 8)).min(input.len());
        match below(g, 7) {
            0 if at < input.len() => input[at] ^= 1 << below(g, 8),
            1 if at < input.len() => input[at] = g.next_u32() as u8,
            2 => drop(input.drain(run)),
            3 => {
                let copy = input[run].to_vec();
                input.splice(at..at, copy);
            }
            4 => input.truncate(at),
            5 => {
                let other = &seeds[below(g, seeds.len())];
                input.splice(at.., other[below(g, other.len() + 1)..].iter().copied());
            }
            _ => {
                let token = tokens[below(g, tokens.len())];
                let end = if below(g, 2) == 0 { at } else { (at + token.len()).min(input.len()) };
                input.splice(at..end, token.iter().copied());
            }
        }
    }
    input.truncate(1 << 14);
}

/// Checks seeds and mutations of them; some must be accepted, and some refused.
pub(crate) fn fuzz(
    target: &str,
    rounds: usize,
    check: fn(&[u8]) -> bool,
    mutate: impl Fn(&mut Vec<u8>, &[Vec<u8>], &mut Generator),
) {
    let seeds = seeds(target);
    let accepted = seeds.iter().filter(|seed| check(seed)).count();
    assert!(0 < accepted && accepted < seeds.len(), "the seeds of {target} should be good and bad ones");
    let mut accepted = 0;
    for round in 0..rounds {
        let mut g = Key::new(round as u64).named(target).generator();
        let mut input = seeds[below(&mut g, seeds.len())].clone();
        mutate(&mut input, &seeds, &mut g);
        let outcome = std::panic::catch_unwind(|| check(&input));
        accepted += usize::from(
            outcome.unwrap_or_else(|_| panic!("{target}, round {round}: panic on b\"{}\"", input.escape_ascii())),
        );
    }
    // mutations that all fail at the first byte would test nothing
    assert!(rounds / 200 < accepted && accepted < rounds - rounds / 200, "{target}: {accepted} of {rounds} accepted");
}
