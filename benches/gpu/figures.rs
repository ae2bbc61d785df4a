//! The figures of `benches/gpu`: training, log p and sampling of a workload, one JSON line each, as rates of several
//! repetitions. `benches/gpu/peer.py` prints the same lines of PyTorch.

use std::time::Instant;

use resflow::Error;
use resflow::backend::{Backend, Key};
use resflow::invert::{Inversion, Method, Status};
use serde_json::{Map, Value, json};

use crate::common::Workload;

/// The spread of a figure is that over so many repetitions,
const REPETITIONS: usize = 5;
/// of calls that take longer than a whole figure should,
const SLOW_REPETITIONS: usize = 3;
/// and of those that take more than `VERY_SLOW` times as long.
const FEWEST_REPETITIONS: usize = 2;
const VERY_SLOW: f64 = 5.0;
/// Steps before the first that is timed: they initialise, compile kernels and fill pools.
const FIRST_STEPS: usize = 3;
/// Nobody asks for more steps in a figure's time.
const MOST_CALLS: f64 = 1e5;
/// What the peer's inverse reaches is near this.
const LOOSE: f64 = 1e-3;

/// Samples per second in each repetition of `work`, of `samples` a call; a repetition is as many calls as take its share of
/// `seconds`, or one. `work` has been done once before, for its kernels and buffers, and ends with its results on the host.
fn rates(samples: usize, seconds: f64, mut work: impl FnMut() -> Result<(), Error>) -> Result<Vec<f64>, Error> {
    let mut run = |calls: usize| {
        let start = Instant::now();
        (0..calls).try_for_each(|_| work())?;
        Ok::<_, Error>(start.elapsed().as_secs_f64() / calls as f64)
    };
    let once = run(1)?;
    let (mut times, repetitions) = match once / seconds {
        0.0..=1.0 => (Vec::new(), REPETITIONS),
        1.0..=VERY_SLOW => (vec![once], SLOW_REPETITIONS),
        _ => (vec![once], FEWEST_REPETITIONS),
    };
    let calls = (seconds / repetitions as f64 / once).clamp(1.0, MOST_CALLS) as usize;
    while times.len() < repetitions {
        times.push(run(calls)?);
    }
    Ok(times.into_iter().map(|time| samples as f64 / time).collect())
}

/// Measures a workload, each figure for about so many seconds, and prints a line for each; `said` is a part of every line.
pub(crate) fn print<B: Backend>(
    workload: &Workload,
    backend: B,
    seconds: f64,
    said: &Map<String, Value>,
) -> Result<(), Error> {
    let line = |figure: &str, rates: Vec<f64>, more: Value| {
        let mut line = said.clone();
        line.extend([("figure".into(), figure.into()), ("workload".into(), workload.name.into())]);
        line.extend([("batch".into(), workload.batch.into()), ("rates".into(), rates.into())]);
        line.extend(more.as_object().cloned().unwrap_or_default());
        println!("{}", Value::Object(line));
    };
    let batch = workload.batch;
    let mut trainer = workload.trainer(backend, workload.training())?;
    for _ in 0..FIRST_STEPS {
        trainer.step()?;
    }
    let (mut terms, mut steps) = (0, 0);
    let training = rates(batch, seconds, || {
        terms += trainer.step()?.terms;
        steps += 1;
        Ok(())
    })?;
    let parameters = trainer.flow().parameters();
    let terms = terms as f64 / (steps * workload.blocks) as f64;
    line("training", training, json!({ "terms_per_block": terms, "parameters": parameters }));

    let prepared = trainer.flow().prepare();
    let data = workload.data(batch)?;
    let mut errors = prepared.log_prob(data.samples(), Key::new(7))?.standard_error;
    let log_prob = rates(batch, seconds, || {
        errors = prepared.log_prob(data.samples(), Key::new(7))?.standard_error;
        Ok(())
    })?;
    let error = (errors.iter().map(|e| e * e).sum::<f64>() / batch as f64).sqrt();
    line("log_prob", log_prob, json!({ "standard_error": error, "estimator": prepared.resolved() }));

    let usual = Inversion::for_backend::<B>();
    let plain = usual.with_method(Method::FixedPoint)?;
    let loose = plain.with_accuracy(LOOSE)?;
    // the last as the peer: no forward pass to see what came of it
    for (figure, how, checked) in
        [("sampling", usual, true), ("sampling_plain", plain, true), ("sampling_loose", loose, false)]
    {
        let key = Key::new(5);
        let seen = prepared.sample(batch, key, &how)?;
        let timed = how.with_check(checked);
        let sampling = rates(batch, seconds, || prepared.sample(batch, key, &timed).map(drop))?;
        let evaluations: f64 = seen.reports.iter().map(|r| f64::from(r.iterations)).sum();
        let more = json!({
            "round_trip_error": seen.residual,
            "evaluations_per_block": evaluations / (batch * workload.blocks) as f64,
            "not_converged": seen.reports.iter().filter(|r| r.status > Status::FloatFloor).count(),
        });
        line(figure, sampling, more);
    }
    Ok(())
}
