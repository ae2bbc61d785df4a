//! Simulation-based inference: the posterior p(θ | data) of a simulator's parameters, learned from simulations alone.
//!
//! A swing is let go and seen at eight moments, with noise. Its damping and its frequency have uniform priors. Pairs (θ, data) are
//! simulated, a conditional flow p(θ | data) is fitted, and then any observation is answered for in one pass: here five, each
//! beside the posterior by quadrature, which this simulator happens to allow. The priors' bounds are supports of the columns, so
//! that no sample lies outside.
//!
//! ```sh
//! cargo run --release --example posterior            # a minute
//! cargo run --release --example posterior -- 5000    # that many steps
//! ```

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView1, Axis};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use resflow::config::Family;
use resflow::data::Support;
use resflow::train::TrainConfig;

/// Where damping and frequency may be.
const PRIOR: [[f64; 2]; 2] = [[0.0, 2.0], [0.5, 4.0]];
const NOISE: f64 = 0.2;
const SIMULATIONS: usize = 10_000;

/// The deflection at moment i of eight.
fn deflection([damping, frequency]: [f64; 2], i: usize) -> f64 {
    let t = 0.4 * i as f64;
    (-damping * t).exp() * (frequency * t).cos()
}

/// A standard normal number.
fn normal(random: &mut SmallRng) -> f64 {
    let [u, v] = [random.random::<f64>(), random.random::<f64>()];
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Parameters from the prior, and what is seen of each.
fn simulate(count: usize, random: &mut SmallRng) -> (Array2<f64>, Array2<f64>) {
    let theta =
        Array2::from_shape_fn((count, 2), |(_, j)| PRIOR[j][0] + (PRIOR[j][1] - PRIOR[j][0]) * random.random::<f64>());
    let seen = Array2::from_shape_fn((count, 8), |(n, i)| {
        deflection([theta[[n, 0]], theta[[n, 1]]], i) + NOISE * normal(random)
    });
    (theta, seen)
}

/// The mean and the standard deviation of each parameter given what was seen, by sums over a grid.
fn quadrature(seen: ArrayView1<'_, f64>) -> [[f64; 2]; 2] {
    const CELLS: usize = 300;
    let at = |j: usize, cell: usize| PRIOR[j][0] + (PRIOR[j][1] - PRIOR[j][0]) * (cell as f64 + 0.5) / CELLS as f64;
    let mut sums = [[0.0; 3]; 2];
    for cell in 0..CELLS * CELLS {
        let theta = [at(0, cell / CELLS), at(1, cell % CELLS)];
        let square: f64 = seen.iter().enumerate().map(|(i, y)| (y - deflection(theta, i)).powi(2)).sum();
        let weight = (-0.5 * square / NOISE.powi(2)).exp();
        for (sums, theta) in sums.iter_mut().zip(theta) {
            (0..3).for_each(|power| sums[power as usize] += weight * theta.powi(power));
        }
    }
    sums.map(|[total, first, second]| {
        let mean = first / total;
        [mean, (second / total - mean * mean).sqrt()]
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let steps = std::env::args().nth(1).map_or(Ok(3000), |text| text.parse())?;
    let mut random = SmallRng::seed_from_u64(1);
    let (theta, seen) = simulate(SIMULATIONS, &mut random);

    let [damping, frequency] = PRIOR.map(|[low, high]| Support::Between(low, high));
    let supports = BTreeMap::from([("1".to_owned(), damping), ("2".to_owned(), frequency)]);
    let settings = TrainConfig::for_table(Family::Residual, SIMULATIONS);
    let settings = TrainConfig { supports, fit_base: false, ..settings };
    let posterior = resflow::Fit::new().given(&seen)?.train(settings).steps(steps).seed(0).run(&theta)?;

    let (truth, observed) = simulate(5, &mut random);
    println!(
        "            damping: true    flow            quadrature      frequency: true    flow            quadrature"
    );
    for (truth, observed) in truth.outer_iter().zip(observed.axis_chunks_iter(Axis(0), 1)) {
        let (samples, log_p) = posterior.condition(observed)?.sample_and_log_prob(20_000)?;
        let inside = |(j, x): (usize, &f64)| PRIOR[j][0] < *x && *x < PRIOR[j][1];
        assert!(samples.outer_iter().all(|row| row.iter().enumerate().all(inside)), "nothing leaks out of the prior");
        let exact = quadrature(observed.row(0));
        let columns = (0..2).map(|j| {
            let column = samples.column(j);
            let (mean, spread) = (column.sum() / column.len() as f64, column.std(0.0));
            let [exact, exact_spread] = exact[j];
            format!("{:12.2}    {mean:.2} ± {spread:.2}     {exact:.2} ± {exact_spread:.2}", truth[j])
        });
        println!("          {}", columns.collect::<Vec<_>>().join("      "));
        assert!(log_p.iter().all(|p| p.is_finite()));
    }
    Ok(())
}
