//! The noise of an estimated log p with and without what is known of the traces of J, on trained flows: flows of 2-hidden-layer
//! nets, with and without an activation before the first layer, are fitted to a chain of d variables, and rows are scored
//! by the same roulette, once by probes alone. Writes the table as Markdown; the last column is what counts.
//!
//! `cargo run --release --example variance -- [--threads 1] [--steps 1500]`

use std::num::NonZeroUsize;
use std::time::Instant;

use resflow::backend::{Key, Noise};
use resflow::config::FlowConfig;
use resflow::data::{Samples, Table};
use resflow::estimator::{Estimator, Law, RussianRoulette, Sharing, Traces};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Error, Flow, NdArray};

const TRAINED: usize = 10_000;
const SCORED: usize = 1000;
const REPLICATES: usize = 8;
/// Deviation of a variable about the sine of the one before it.
const SPREAD: f64 = 0.5;

/// x₁ = z₁ and xᵢ = sin(3/2 xᵢ₋₁) + zᵢ/2, with z standard normal; and the mean of log p, nats.
fn chain(d: usize, rows: usize, key: Key) -> Result<(Table, f64), Error> {
    let mut values = vec![0.0; rows * d];
    Noise::Normal.fill(key, 0, &mut values);
    let mut log_p = 0.0;
    for row in values.chunks_exact_mut(d) {
        log_p -= row.iter().map(|z| 0.5 * (z * z + std::f64::consts::TAU.ln())).sum::<f64>();
        log_p -= (d - 1) as f64 * SPREAD.ln();
        for i in 1..d {
            row[i] = (1.5 * row[i - 1]).sin() + SPREAD * row[i];
        }
    }
    Ok((Table::new(None, d, values)?, log_p / rows as f64))
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(NonZeroUsize::MIN);
    let steps = value("--steps").and_then(|v| v.parse().ok()).unwrap_or(1500);
    println!(
        "{TRAINED} rows, {steps} steps; {SCORED} rows scored by {REPLICATES} replicates of geometric 0.25, E = 6\n"
    );
    println!(
        "| d | first layer | log p of the truth | log p | deviation of one estimate: probes | traces known | time | variance × time |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for d in [4, 8, 16, 43, 64] {
        let ((data, _), (test, truth)) = (chain(d, TRAINED, Key::new(1))?, chain(d, SCORED, Key::new(2))?);
        for leading in [false, true] {
            let config = FlowConfig { blocks: 8, leading_activation: leading, ..FlowConfig::new(d) };
            let flow = Flow::new(NdArray::<f32>::with_threads(threads)?, config, Key::new(0))?;
            let settings = TrainConfig { validate_every: steps, ..TrainConfig::default() };
            let mut trainer =
                Trainer::new(flow, Source::from(data.clone()), &settings, Budget::Steps(steps), Key::new(3))?;
            trainer.run(|_, _| ())?;
            let mut model = trainer.model();
            let mut score = |traces| -> Result<(f64, f64, f64), Error> {
                let roulette = RussianRoulette::new(Law::ShiftedGeometric { p: 0.25 }, 6)?;
                let roulette = roulette.with_sharing(Sharing::Sample).with_traces(traces);
                model.set_log_prob_estimator(Estimator::RussianRoulette(roulette), REPLICATES)?;
                let prepared = model.prepare();
                let (mut best, mut variance, mut mean) = (f64::INFINITY, 0.0, 0.0);
                for key in 0..5 {
                    let start = Instant::now();
                    let found = prepared.log_prob(Samples::from(&test), Key::new(4).split(key))?;
                    best = best.min(start.elapsed().as_secs_f64());
                    // of the mean of the replicates
                    variance += found.standard_error.iter().map(|e| e * e).sum::<f64>() / (5 * SCORED) as f64;
                    mean += found.mean() / 5.0;
                }
                Ok((mean, variance, best))
            };
            let (probed, known) = (score(Traces::Probed)?, score(Traces::Exact)?);
            let deviation = |variance: f64| (variance * REPLICATES as f64).sqrt();
            println!(
                "| {d} | {} | {truth:.2} | {:.2} | {:.3} | {:.3} | × {:.2} | ÷ {:.1} |",
                if leading { "behind an activation" } else { "linear" },
                known.0,
                deviation(probed.1),
                deviation(known.1),
                known.2 / probed.2,
                probed.1 * probed.2 / (known.1 * known.2),
            );
        }
    }
    Ok(())
}
