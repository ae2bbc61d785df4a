use resflow::backend::Key;
use resflow::config::*;
use resflow::data::ToyDensity;
use resflow::train::*;
use resflow::{Flow, NdArray};
use std::num::NonZeroUsize;
// density blocks hidden kappa lr batch steps average actnorm initial_scale activation
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let density: ToyDensity = a[1].parse().unwrap();
    let hidden: Vec<usize> = a[3].split('-').map(|h| h.parse().unwrap()).collect();
    let mut config =
        FlowConfig { blocks: a[2].parse().unwrap(), hidden, coefficient: a[4].parse().unwrap(), ..FlowConfig::new(2) };
    config.actnorm = a[9] == "1";
    config.initial_scale = a[10].parse().unwrap();
    config.activation = serde_json::from_str(&format!("\"{}\"", a[11])).unwrap();
    let b = NdArray::<f32>::with_threads(NonZeroUsize::new(1).unwrap()).unwrap();
    let flow = Flow::new(b, &config, Key::new(0)).unwrap();
    let tc = TrainConfig {
        batch: a[6].parse().unwrap(),
        learning_rate: a[5].parse().unwrap(),
        average: a[8].parse().unwrap(),
        steps: a[7].parse().unwrap(),
        ..TrainConfig::default()
    };
    let steps = tc.steps;
    let mut t = Trainer::new(flow, Source::Density(density), &tc, Budget::Steps(steps), Key::new(1)).unwrap();
    let mut curve = String::new();
    let mut norms = vec![];
    t.run(|r, v| {
        norms.push(r.gradient_norm);
        if let Some(v) = v {
            if r.step % (steps / 8) == 0 || r.step == steps {
                curve += &format!(" {:.3}", v.nll);
            }
        }
    })
    .unwrap();
    norms.sort_by(f64::total_cmp);
    let test = density.sample(Key::new(999), 10000);
    let lp = t.model().log_prob(&test, Key::new(5)).unwrap();
    println!(
        "{}: test nll {:.4} ± {:.4}; {:.1}s; lip {:.3}; grad norm median {:.2} 99% {:.2}; {}",
        a[1..].join(" "),
        -lp.mean(),
        lp.mean_standard_error(),
        t.elapsed().as_secs_f64(),
        t.flow().lipschitz_estimate().unwrap(),
        norms[norms.len() / 2],
        norms[norms.len() * 99 / 100],
        curve
    );
}
