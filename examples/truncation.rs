//! The bias of a truncated log det (Behrmann et al. 2019) against its exact value, as a function of the number of terms and
//! of c, the bound on a block's Lipschitz constant: i-ResNets fitted to a built-in density, each trained and scored with the
//! same number of terms. Writes the table as Markdown.
//!
//! `cargo run --release --example truncation`

use resflow::backend::Key;
use resflow::config::{Family, FlowConfig};
use resflow::data::ToyDensity;
use resflow::estimator::{Estimator, Exact, Probe, Traces, Truncated};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Error, Flow, NdArray};

const BLOCKS: usize = 8;
const STEPS: u64 = 600;
/// Probes of each row's trace, so that what is left is the bias.
const PROBES: usize = 64;
const ROWS: usize = 2000;

fn main() -> Result<(), Error> {
    println!(
        "checkerboard, {BLOCKS} blocks of 2-32-32-2, {STEPS} steps; truncated minus exact log p in nats, mean over {ROWS} \
         points ± its standard error, and the bound on it\n"
    );
    println!("| c | terms | bias | bound | exact log p |\n|---|---|---|---|---|");
    for (number, c) in [0.5, 0.7, 0.9, 0.97_f64].into_iter().enumerate() {
        for terms in [1, 2, 3, 5, 10, 20] {
            let truncated = Truncated { terms, probes: 1, probe: Probe::Rademacher, traces: Traces::Probed };
            let config = FlowConfig {
                blocks: BLOCKS,
                hidden: vec![32, 32],
                coefficient: c.powf(1.0 / 3.0),
                training: Estimator::Truncated(truncated.clone()),
                ..FlowConfig::of(Family::IResNet, 2)
            };
            let flow = Flow::new(NdArray::<f64>::new(), config, Key::new(0))?;
            let settings = TrainConfig { validation_rows: ROWS, validate_every: STEPS, ..TrainConfig::default() };
            let source = Source::Density(ToyDensity::Checkerboard);
            let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(STEPS), Key::new(1))?;
            trainer.run(|_, _| ())?;
            let mut model = trainer.model();
            let mut score = |estimator| {
                model.set_log_prob_estimator(estimator, 2)?;
                // probes of their own in every cell: a deviation that all shared would look like a bias
                let key = Key::new(2).split(number as u64).split(terms as u64);
                model.log_prob(trainer.validation_samples(), key)
            };
            let exact = score(Estimator::Exact(Exact))?;
            let cut = score(Estimator::Truncated(Truncated { probes: PROBES, ..truncated.clone() }))?;
            let bias: Vec<f64> = cut.values.iter().zip(&exact.values).map(|(cut, exact)| cut - exact).collect();
            let mean = bias.iter().sum::<f64>() / ROWS as f64;
            let spread = bias.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / (ROWS as f64 - 1.0);
            let bound = BLOCKS as f64 * truncated.bias_bound(2, c);
            println!(
                "| {c} | {terms} | {mean:+.2e} ± {:.0e} | {bound:.2e} | {:.4} |",
                (spread / ROWS as f64).sqrt(),
                exact.mean()
            );
        }
    }
    Ok(())
}
