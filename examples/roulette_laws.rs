//! The law of Russian roulette in training: how much a gradient of a trained flow varies, and what it costs, by the number E of terms that
//! are always there, the probability q of the next and the p of the geometric law from there on. Flows are fitted to a two-dimensional density and
//! to a chain of 43 variables, by the default law and by one that is measured on the way; then the gradient of batches is computed again and again
//! with every other law. Writes tables as Markdown.
//!
//! `cargo run --release --example roulette_laws -- [--threads 1] [--steps 1500] [--seconds 0] [--seeds 1] [--repeats 200]`
//!
//! With `--seconds` both laws train for as long, one after the other, instead of as many steps.

#[path = "chain/mod.rs"]
mod chain;

use std::num::NonZeroUsize;
use std::time::Duration;

use chain::chain;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::config::FlowConfig;
use resflow::data::ToyDensity;
use resflow::estimator::{Estimator, Law, RussianRoulette};
use resflow::flow::{Flow, Objective};
use resflow::train::{Budget, RouletteLaw, Source, TrainConfig, Trainer};
use resflow::{Error, NdArray};

type Cpu = NdArray<f32>;

const BATCH: usize = 256;
/// Steps between validations.
const EVERY: u64 = 250;

/// E and p of the law that tables whose log det is estimated are trained with.
const DEFAULT: (usize, f64) = (2, 0.25);
/// Others: the first two have the tail of the default.
const OTHERS: [(usize, f64, f64); 12] = [
    (0, 0.5, 0.25),
    (0, 0.2, 0.25),
    (0, 1.0, 0.25),
    (0, 1.0, 0.4),
    (0, 1.0, 0.65),
    (0, 1.0, 0.8),
    (1, 1.0, 0.25),
    (1, 1.0, 0.4),
    (1, 1.0, 0.65),
    (2, 1.0, 0.4),
    (2, 1.0, 0.65),
    (4, 1.0, 0.25),
];

fn roulette((exact, reach, p): (usize, f64, f64)) -> Result<RussianRoulette, Error> {
    let law = if reach < 1.0 { Law::Geometric { reach, p } } else { Law::ShiftedGeometric { p } };
    Ok(RussianRoulette::new(law, exact)?)
}

/// The sum of the variances of a gradient's numbers over keys, of one batch or of a batch for each key.
fn variance(flow: &Flow<Cpu>, batches: &[Batch<Cpu>], repeats: u64) -> Result<f64, Error> {
    let b = flow.backend();
    let prepared = flow.prepare();
    let weights = b.full(1.0 / BATCH as f64, [BATCH, 1].into());
    let (mut mean, mut squares) = (Vec::new(), 0.0);
    for i in 0..repeats {
        let batch = &batches[i as usize % batches.len()];
        let (key, weights) = (Key::new(5).split(i), &weights);
        let objective =
            Objective { batch, weights, key, memory: Memory::Store, input_gradient: false, supervision: None };
        let gradient = b.download(&prepared.gradient(&objective)?.flat)?;
        mean.resize(gradient.len(), 0.0_f64);
        for (mean, g) in mean.iter_mut().zip(gradient) {
            *mean += f64::from(g) / repeats as f64;
            squares += f64::from(g * g);
        }
    }
    let n = repeats as f64;
    Ok((squares - n * mean.iter().map(|m| m * m).sum::<f64>()) / (n - 1.0))
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default| value(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(NonZeroUsize::MIN);
    let (steps, seconds, repeats) = (number("--steps", 1500), number("--seconds", 0), number("--repeats", 200));
    let seeds = number("--seeds", 1);
    let budget = if seconds == 0 { Budget::Steps(steps) } else { Budget::Time(Duration::from_secs(seconds)) };
    let b = Cpu::with_threads(threads)?;
    let chain43 = chain(43, 10_000, Key::new(1))?;
    for (name, d, data) in [("checkerboard", 2, None), ("chain of 43", 43, Some(chain43))] {
        let set = roulette((DEFAULT.0, 1.0, DEFAULT.1))?;
        let config = FlowConfig {
            blocks: 8,
            coefficient: 0.95,
            training: Estimator::RussianRoulette(set.clone()),
            ..FlowConfig::new(d)
        };
        println!("\n{name}: batches of {BATCH}\n");
        println!("| law | steps | seconds | validation: −log p |\n|---|---|---|---|");
        let (mut model, mut chosen) = (None, set.clone());
        let laws = [RouletteLaw::AsSet, RouletteLaw::Measured];
        for (seed, law) in (0..seeds).flat_map(|seed| laws.map(|law| (seed, law))) {
            let flow = Flow::new(b.clone(), config.clone(), Key::new(seed))?;
            let settings = TrainConfig { batch: BATCH, roulette: law, validate_every: EVERY, ..TrainConfig::default() };
            let source = data.clone().map_or(Source::Density(ToyDensity::Checkerboard), Source::from);
            let mut trainer = Trainer::new(flow, source, &settings, budget, Key::new(3 + seed))?;
            trainer.run(|_, _| ())?;
            let nll = trainer.best_nll().unwrap_or(f64::NAN);
            let (done, seconds) = (trainer.steps_done(), trainer.elapsed().as_secs_f64());
            println!("| {} | {done} | {seconds:.1} | {nll:.3} |", trainer.estimator());
            if let (RouletteLaw::Measured, Estimator::RussianRoulette(law)) = (law, trainer.estimator()) {
                chosen = law.clone();
            }
            model = Some(trainer.model());
        }
        let mut model = model.expect("two runs");
        let rows = data.unwrap_or_else(|| ToyDensity::Checkerboard.sample(Key::new(7), repeats as usize * BATCH));
        let (mean, deviation) = (model.standardiser().mean(), model.standardiser().deviation());
        let standardised: Vec<f32> =
            rows.values().iter().enumerate().map(|(e, x)| ((x - mean[e % d]) / deviation[e % d]) as f32).collect();
        let batches: Vec<_> =
            standardised.chunks_exact(BATCH * d).map(|rows| Batch::new(b.upload(rows, [BATCH, d].into()))).collect();
        println!("\n{repeats} gradients of the last one\n");
        println!("| law | terms | passes | one batch: variance | × passes | fresh batches: variance | × passes |");
        println!("|---|---|---|---|---|---|---|");
        let mut reference: Option<[f64; 2]> = None;
        let others = OTHERS.into_iter().map(roulette).collect::<Result<Vec<_>, _>>()?;
        for roulette in [set, chosen].into_iter().chain(others) {
            // forward, products, the tangent, and the reverse pass of value and tangent, which is twice each
            let (terms, passes) = (roulette.expected_terms(), 6.0 + roulette.expected_terms());
            let name = format!("E = {}, {}", roulette.exact_terms, roulette.law);
            model.set_training_estimator(Estimator::RussianRoulette(roulette))?;
            let [one, fresh] = [&batches[..1], &batches[..]].map(|batches| variance(&model, batches, repeats));
            let products = [one? * passes, fresh? * passes];
            let default = *reference.get_or_insert(products);
            println!(
                "| {name} | {terms:.2} | {passes:.2} | {:.3e} | {:.3} | {:.3e} | {:.3} |",
                products[0] / passes,
                products[0] / default[0],
                products[1] / passes,
                products[1] / default[1],
            );
        }
    }
    Ok(())
}
