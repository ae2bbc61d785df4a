//! Flows fitted to densities that can be evaluated, by reverse Kullback–Leibler divergence: how far they get, and how noisy the
//! two gradients are.
//!
//! ```text
//! cargo run --release --example variational -- [steps] [seeds] [target …]
//! ```
//!
//! For each target and estimator of the gradient, after so many steps (1800) of the reparametrised gradient, or three eighths as many
//! of the path gradient, which take about as long, and for each seed (1): the divergence ln Z − ELBO where Z is known, ln Z by importance
//! weights with its error and how many errors it is off, the effective sample size of 20,000 samples, and E‖g − E g‖² of a step's
//! gradient, by both estimators at the same weights.

use std::f64::consts::PI;

use resflow::NdArray;
use resflow::backend::{Backend as _, Key};
use resflow::config::FlowConfig;
use resflow::train::Budget;
use resflow::variational::{
    GradientEstimator, Importance, PreparedVariational, Target, TargetError, VariationalConfig, VariationalFlow,
    VariationalObjective, VariationalTrainer,
};

type Cpu = NdArray<f32>;

/// An energy of two numbers: −ln p̃ and its gradient.
type Energy = fn(f64, f64) -> (f64, [f64; 2]);

/// A target by its name.
struct Named {
    name: &'static str,
    density: Density,
    log_evidence: f64,
    /// Where samples lie before training.
    location: [f64; 2],
    scale: [f64; 2],
    /// β at the beginning: half of the run goes by before it is 1.
    initial_beta: f64,
}

enum Density {
    /// exp of minus an energy.
    Energy(Energy),
    /// Equal Gaussians of one deviation.
    Modes { means: Vec<[f64; 2]>, deviation: f64 },
}

impl Target for Named {
    fn dimension(&self) -> usize {
        2
    }

    fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
        for ((x, l), g) in rows.chunks_exact(2).zip(log_density).zip(gradient.chunks_exact_mut(2)) {
            let found = match &self.density {
                Density::Energy(energy) => {
                    let (value, slope) = energy(x[0], x[1]);
                    (-value, [-slope[0], -slope[1]])
                }
                Density::Modes { means, deviation } => log_mixture(means, *deviation, x),
            };
            *l = found.0;
            g.copy_from_slice(&found.1);
        }
        Ok(())
    }
}

/// ln of the mean of Gaussians, and its gradient.
fn log_mixture(means: &[[f64; 2]], deviation: f64, x: &[f64]) -> (f64, [f64; 2]) {
    let variance = deviation * deviation;
    let exponents: Vec<f64> =
        means.iter().map(|m| -0.5 * ((x[0] - m[0]).powi(2) + (x[1] - m[1]).powi(2)) / variance).collect();
    let most = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut gradient) = (0.0, [0.0; 2]);
    for (e, m) in exponents.iter().zip(means) {
        let w = (e - most).exp();
        sum += w;
        for i in 0..2 {
            gradient[i] += w * (m[i] - x[i]) / variance;
        }
    }
    let constant = -(2.0 * PI * variance).ln() - (means.len() as f64).ln();
    (most + sum.ln() + constant, gradient.map(|g| g / sum))
}

/// A correlated Gaussian.
fn gaussian(x: f64, y: f64) -> (f64, [f64; 2]) {
    let (a, b) = (x - 1.0, y + 0.5);
    let slope = [2.0 * a + 1.8 * b, 1.8 * a + 2.0 * b];
    (0.5 * (a * slope[0] + b * slope[1]), slope)
}

/// Two halves of a ring: the first energy of Rezende and Mohamed (2015).
fn ring(x: f64, y: f64) -> (f64, [f64; 2]) {
    let r = x.hypot(y).max(1e-12);
    let [near, far] = [x - 2.0, x + 2.0].map(|off| -0.5 * (off / 0.6).powi(2));
    let most = near.max(far);
    let [p, q] = [near, far].map(|e| (e - most).exp());
    let along = (r - 2.0) / 0.16;
    let pull = ((x - 2.0) * p + (x + 2.0) * q) / (p + q) / 0.36;
    (0.5 * (r - 2.0) * along - most - (p + q).ln(), [along * x / r + pull, along * y / r])
}

/// A sine's ridge (their second energy), held together by a Gaussian of deviation 2 along it.
fn ridge(x: f64, y: f64) -> (f64, [f64; 2]) {
    let (sine, slope) = ((0.5 * PI * x).sin(), 0.5 * PI * (0.5 * PI * x).cos());
    let off = (y - sine) / 0.16;
    (0.5 * (y - sine) * off + x * x / 8.0, [x / 4.0 - off * slope, off])
}

/// A funnel: y's deviation is e^{x/2}.
fn funnel(x: f64, y: f64) -> (f64, [f64; 2]) {
    let precision = (-x).exp();
    (0.5 * x * x + 0.5 * precision * y * y + 0.5 * x, [x - 0.5 * precision * y * y + 0.5, precision * y])
}

/// Where the 40 Gaussians of the paper on FAB lie (Midgley et al. 2023, arXiv 2208.01893): uniform in [−40, 40]², as PyTorch
/// draws them in single precision from the seed 0.
const FORTY_PLACES: [[f64; 2]; 40] = [
    [-0.2995, 21.4577],
    [-32.9218, -29.4376],
    [-15.4062, 10.7263],
    [-0.7925, 31.7156],
    [-3.5498, 10.5845],
    [-12.0885, -7.8626],
    [-38.2139, -26.4913],
    [-16.4889, 1.4817],
    [15.8134, 24.0009],
    [-27.1176, -17.4185],
    [14.5287, 33.2155],
    [-8.2320, 29.9325],
    [-6.4473, 4.2326],
    [36.2190, -37.1068],
    [-25.1815, -10.1266],
    [-15.5920, 34.5600],
    [-25.9272, -18.4133],
    [-27.9456, -37.4624],
    [-23.3496, 34.3839],
    [17.8487, 19.3869],
    [2.1037, -20.5073],
    [6.7674, -37.3478],
    [-28.9026, -20.6212],
    [25.2375, 23.4528],
    [-17.7398, -1.4433],
    [25.5824, 39.7653],
    [15.8753, 5.4037],
    [26.8195, -23.5521],
    [7.4538, -31.0122],
    [-27.7234, -20.6633],
    [18.0989, 16.0864],
    [-23.6941, 12.0843],
    [21.9589, -5.0487],
    [1.5273, 9.2682],
    [24.8151, 38.4078],
    [-30.8249, -14.6588],
    [15.7204, 33.1420],
    [34.8083, 35.2943],
    [7.9606, -34.7833],
    [3.6797, -25.0242],
];

/// ln Z by the trapezoidal rule, whose error is rounding for densities that are smooth and vanish at the edges.
fn quadrature(energy: Energy, [left, right, bottom, top]: [f64; 4]) -> f64 {
    let n = 3000;
    let (dx, dy) = ((right - left) / n as f64, (top - bottom) / n as f64);
    let row = |i: usize| (0..n).map(|j| (-energy(left + dx * i as f64, bottom + dy * j as f64).0).exp()).sum::<f64>();
    ((0..n).map(row).sum::<f64>() * dx * dy).ln()
}

fn targets() -> Vec<Named> {
    let plain = |name, energy: Energy, initial_beta, region: [f64; 4]| Named {
        name,
        log_evidence: quadrature(energy, region),
        density: Density::Energy(energy),
        location: [0.0; 2],
        scale: [1.0; 2],
        initial_beta,
    };
    let modes = Named {
        name: "forty modes",
        density: Density::Modes {
            means: FORTY_PLACES.to_vec(),
            // softplus(1)
            deviation: 1.0_f64.exp().ln_1p(),
        },
        log_evidence: 0.0,
        location: [0.0; 2],
        scale: [25.0; 2],
        initial_beta: 0.01,
    };
    vec![
        plain("gaussian", gaussian, 1.0, [-15.0, 17.0, -16.0, 15.0]),
        plain("ring", ring, 0.05, [-8.0, 8.0, -8.0, 8.0]),
        plain("ridge", ridge, 0.05, [-25.0, 25.0, -5.0, 5.0]),
        plain("funnel", funnel, 1.0, [-9.0, 9.0, -600.0, 600.0]),
        modes,
    ]
}

/// E‖g − E g‖² of a gradient over the batch, and E‖g‖².
fn variance(model: &PreparedVariational<Cpu>, target: &Named, estimator: GradientEstimator) -> f64 {
    let (draws, weights) = (50, vec![1.0 / 512.0; 512]);
    let backend = Cpu::new();
    let gradients: Vec<Vec<f64>> = (0..draws)
        .map(|draw| {
            let key = Key::new(77).split(draw);
            let objective = VariationalObjective { estimator, ..VariationalObjective::new::<Cpu>(&weights, key) };
            let flat = model.gradient(target, &objective).expect("finite").flat;
            backend.download(&flat).expect("no device fault").into_iter().map(f64::from).collect()
        })
        .collect();
    let n = draws as f64;
    let numbers = gradients[0].len();
    let spread = |e: usize| {
        let mean = gradients.iter().map(|g| g[e]).sum::<f64>() / n;
        gradients.iter().map(|g| (g[e] - mean).powi(2)).sum::<f64>() / (n - 1.0)
    };
    (0..numbers).map(spread).sum()
}

/// The modes that at least one in 400 of the samples is nearest to.
fn modes_found(target: &Named, rows: &[f64]) -> Option<String> {
    let Density::Modes { means, .. } = &target.density else { return None };
    let mut counts = vec![0; means.len()];
    for x in rows.chunks_exact(2) {
        let distance = |m: &[f64; 2]| (x[0] - m[0]).powi(2) + (x[1] - m[1]).powi(2);
        let nearest = (0..means.len()).min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b])));
        counts[nearest.unwrap_or(0)] += 1;
    }
    let found = counts.iter().filter(|&&c| 400 * c >= rows.len() / 2).count();
    Some(format!(" {found} of {} modes", means.len()))
}

fn main() -> Result<(), resflow::Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| words.get(at).and_then(|w| w.parse().ok()).unwrap_or(default);
    let (steps, seeds) = (number(0, 1800), number(1, 1));
    println!(
        "target        gradient        steps   ELBO - ln Z          ln Z (true)                 off/s.e.   ESS/n   variance path, whole"
    );
    for target in targets().iter().filter(|t| words.len() < 3 || words[2..].iter().any(|w| w == t.name)) {
        for (estimator, steps) in [(GradientEstimator::Reparametrised, steps), (GradientEstimator::Path, steps * 3 / 8)]
        {
            for seed in 0..seeds {
                let config = FlowConfig { blocks: 12, hidden: vec![64, 64], ..FlowConfig::new(2) };
                let flow = VariationalFlow::new(Cpu::new(), config, Key::new(seed))?
                    .with_location(target.location.to_vec(), target.scale.to_vec())?;
                let settings = VariationalConfig {
                    batch: 512,
                    gradient: estimator,
                    learning_rate: 2e-3,
                    initial_beta: target.initial_beta,
                    anneal: if target.initial_beta < 1.0 { 0.5 } else { 0.0 },
                    ..VariationalConfig::default()
                };
                let budget = Budget::Steps(steps);
                let mut trainer = VariationalTrainer::new(flow, target, &settings, budget, Key::new(100 + seed))?;
                trainer.run(|_| ())?;
                let model = trainer.model().prepare();
                let samples = model.sample_exact(20_000, Key::new(200 + seed))?;
                let found = Importance::new(&samples, target)?;
                let off = (found.log_evidence - target.log_evidence).abs() / found.log_evidence_error;
                let [path, whole] = [GradientEstimator::Path, GradientEstimator::Reparametrised]
                    .map(|estimator| variance(&model, target, estimator));
                println!(
                    "{:12}  {:14}  {:6}  {:8.4} +- {:6.4}   {:7.4} +- {:6.4} ({:7.4})  {:6.1}   {:6.4}   {path:.1e}, {whole:.1e}{}",
                    target.name,
                    format!("{estimator:?}"),
                    trainer.steps_done(),
                    found.evidence_lower_bound - target.log_evidence,
                    found.evidence_lower_bound_error,
                    found.log_evidence,
                    found.log_evidence_error,
                    target.log_evidence,
                    off,
                    found.effective_sample_size / 20_000.0,
                    modes_found(target, samples.samples().values()).unwrap_or_default(),
                );
            }
        }
    }
    Ok(())
}
