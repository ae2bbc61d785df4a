//! Peak memory of a training step's gradient, against depth and against the number of terms of the series, for what the
//! forward pass may keep: `recompute` (one activation a block boundary, g computed again), `keep` (all of g), and
//! `differentiate` (the series itself is differentiated, as automatic differentiation would).
//!
//! `cargo run --release --example memory`

#[path = "../tests/common/gradient_memory.rs"]
mod gradient_memory;
#[path = "../tests/common/memory.rs"]
mod memory;

use gradient_memory::peak;
use resflow::Error;
use resflow::bijection::Memory;

const HOW: [(&str, Memory); 3] =
    [("recompute", Memory::Recompute), ("keep", Memory::Store), ("differentiate", Memory::Unroll)];

fn main() -> Result<(), Error> {
    let table = |title: &str, cases: &[(usize, usize)], shown: fn((usize, usize)) -> usize| -> Result<(), Error> {
        println!("| {title} | {} |", HOW.map(|(name, _)| name).join(" | "));
        println!("|---|---|---|---|");
        for &(blocks, terms) in cases {
            let mut row = Vec::new();
            for (_, memory) in HOW {
                row.push(format!("{:.1}", peak(blocks, terms, memory)? as f64 / f64::from(1 << 20)));
            }
            println!("| {} | {} |", shown((blocks, terms)), row.join(" | "));
        }
        println!();
        Ok(())
    };
    println!(
        "MiB beyond the weights; one 28 × 28 image, blocks of 1-64-64-1 channels (3 × 3, 1 × 1, 3 × 3), one thread\n"
    );
    table("blocks (6 terms)", &[1, 2, 4, 8, 16, 32].map(|b| (b, 6)), |(b, _)| b)?;
    table("terms (4 blocks)", &[2, 4, 8, 16, 32].map(|t| (4, t)), |(_, t)| t)
}
