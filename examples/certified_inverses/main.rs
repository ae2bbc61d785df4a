//! Certified norms and error bounds against the truth: 100,000 matrices, 1,000 kernels and 1,000,000 inversions in single precision, none of
//! whose bounds may be below what it bounds. Writes the tables of docs/certificates.md as Markdown.
//!
//! `cargo run --release --example certified_inverses [matrices kernels inversions]`

mod experiment;

use experiment::{Tally, flows, inverses, kernels, large_kernels, matrices};
use resflow::Error;
use resflow::backend::Key;

/// Latents of one decoding.
const PIECE: usize = 10_000;

fn line(name: &str, tally: &Tally) {
    let cases = tally.ratios.len() + tally.zeros;
    let [median, most] = [0.5, 1.0].map(|at| tally.quantile(at));
    // what is closer than that is told by its distance to 1
    let shown = |ratio: f64| if ratio < 1.00005 { format!("1 + {:.0e}", ratio - 1.0) } else { format!("{ratio:.4}") };
    println!("| {name} | {cases} | {} | {} | {} |", tally.below.len(), shown(median), shown(most));
    for case in tally.below.iter().take(3) {
        eprintln!("below: {name}: {case}");
    }
}

fn main() -> Result<(), Error> {
    let counts: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let count = |i: usize, otherwise: usize| counts.get(i).copied().unwrap_or(otherwise);
    println!("| bounds on | cases | below the truth | bound/truth, median | largest |\n|---|---|---|---|---|");
    let all = count(0, 100_000);
    line("‖W‖₂, up to 24 × 24", &matrices(all, [1, 24], Key::new(1)));
    line("‖W‖₂, 64 × 64 to 256 × 256", &matrices(all.div_ceil(192), [64, 256], Key::new(5)));
    let found = kernels(count(1, 1000), Key::new(2));
    line("‖K‖₂ on a size", &found.sized);
    line("‖K‖₂ on any size, on one", &found.any);
    line("‖K‖₂ on any size, supremum", &found.supremum);
    let each = count(1, 1000).div_ceil(4);
    line("‖K‖₂ on 10 to 16 pixels, 3 to 8 channels", &large_kernels(each, [10, 16], Key::new(3)));
    line("‖K‖₂ on 24 to 32 pixels, 3 to 8 channels", &large_kernels(each, [24, 32], Key::new(4)));
    println!("\n| errors of | cases | below the truth | bound/truth, median | largest |\n|---|---|---|---|---|");
    let cases = flows(400)?;
    let each = count(2, 1_000_000).div_ceil(cases.len());
    for (number, case) in cases.iter().enumerate() {
        let mut all = Tally::default();
        for piece in 0..each.div_ceil(PIECE) {
            let key = Key::new(4).split(number as u64).split(piece as u64);
            let own = inverses(case, PIECE.min(each - piece * PIECE), key)?;
            all.ratios.extend(own.ratios);
            all.below.extend(own.below);
            all.zeros += own.zeros;
        }
        line(&case.name, &all);
    }
    Ok(())
}
