//! Density estimation from an array: fit, score, sample, how much better than a Gaussian it is, and how strange a point.
//!
//! ```sh
//! cargo run --release --example density            # a few seconds
//! cargo run --release --example density -- 5000    # that many steps
//! ```

use ndarray::{Array2, Axis};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// A ring in three dimensions: a table with 2000 rows whose columns depend on each other.
fn ring() -> Array2<f64> {
    let mut random = SmallRng::seed_from_u64(1);
    let rows: Vec<f64> = (0..2000)
        .flat_map(|_| {
            let angle = random.random::<f64>() * std::f64::consts::TAU;
            let radius = 2.0 + 0.2 * (random.random::<f64>() - 0.5);
            [radius * angle.cos(), radius * angle.sin(), angle.cos() + 0.1 * random.random::<f64>()]
        })
        .collect();
    Array2::from_shape_vec((2000, 3), rows).expect("three numbers a row")
}

/// The mean log density, in nats, of a Gaussian with the data's means and variances.
fn gaussian(x: &Array2<f64>) -> f64 {
    let variances = x.var_axis(Axis(0), 0.0);
    variances.iter().map(|v| -0.5 * (1.0 + (std::f64::consts::TAU * v).ln())).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let steps = std::env::args().nth(1).map_or(Ok(300), |text| text.parse())?;
    let x = ring();

    // `resflow::fit(&x)?` is this with all defaults
    let model = resflow::Fit::new().steps(steps).seed(0).run(&x)?;

    let score = model.score(&x)?;
    println!("log p = {:.3} ± {:.3} nats a row ({})", score.mean(), score.mean_standard_error(), score.estimator);
    println!("independent Gaussians: {:.3}", gaussian(&x));

    let (samples, log_p) = model.sample_with_log_prob(5)?;
    for (sample, log_p) in samples.rows().into_iter().zip(log_p) {
        println!("{:6.2} {:6.2} {:6.2}   log p = {log_p:.2}", sample[0], sample[1], sample[2]);
    }

    // where log p rises fastest, at the centre of the ring, where nothing is
    let centre = [[0.1, 0.0, 0.0]];
    let (log_p, gradient) = model.log_prob_and_gradient(&centre)?;
    println!("at the centre log p = {:.1}, gradient {:.1}", log_p[0], gradient.row(0));
    println!("{:.1} % of the training rows are less likely", model.percentile(&centre)?[0]);
    Ok(())
}
