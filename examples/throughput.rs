//! Samples per second of training, log p and inversion, one JSON line per workload, beside which
//! `benches/peer/normflows_bench.py` prints the same of PyTorch.
//!
//! `cargo run --release --example throughput -- --threads 1 [--only toy|tabular|conv] [--batch N]`; with `--features gpu` also
//! `--backend wgpu`, on the adapter that `RESFLOW_ADAPTER` names or the best one, and `--products f16x3|f16`. On a processor that
//! multiplies bf16 `--products bf16x3|bf16x6|bf16` trains by that.
//!
//! Presets over images are measured if they are asked for: `--only mnist-small|cifar10-small|mnist|cifar10`. `--figures SECONDS`
//! prints what `benches/gpu` gathers instead, each figure measured for about so long; `--adapter` describes the adapter and ends.

#[path = "../benches/common/mod.rs"]
mod common;
#[path = "../benches/gpu/figures.rs"]
mod figures;

use std::num::NonZeroUsize;
use std::time::Instant;

use common::{Data, PRESETS, WORKLOADS, Workload};
use resflow::backend::{Backend, Key, Products};
use resflow::invert::{Inversion, Method};
use resflow::train::TrainConfig;
use resflow::{Error, NdArray};

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let threads = value("--threads").and_then(|v| v.parse().ok()).unwrap_or(NonZeroUsize::MIN);
    let only = value("--only");
    let batch = value("--batch").and_then(|v| v.parse().ok());
    let seconds =
        value("--figures").map(|v| v.parse().map_err(|_| Error::Input(format!("`{v}` is no time in seconds"))));
    let seconds = seconds.transpose()?;
    if arguments.iter().any(|a| a == "--adapter") {
        return describe();
    }
    let asked = PRESETS.iter().filter(|w| only.is_some_and(|o| o == w.name));
    for workload in WORKLOADS.iter().filter(|w| only.is_none_or(|o| o == w.name)).chain(asked) {
        let workload = &Workload { batch: batch.unwrap_or(workload.batch), ..*workload };
        match value("--backend").map_or("cpu", String::as_str) {
            "cpu" => on_cpu(workload, threads, value("--products"), seconds)?,
            #[cfg(feature = "gpu")]
            "wgpu" => on_gpu(workload, value("--products").map_or("f32", String::as_str), seconds)?,
            other => return Err(Error::Input(format!("no backend `{other}` is built in"))),
        }
    }
    Ok(())
}

fn on_cpu(
    workload: &Workload,
    threads: NonZeroUsize,
    products: Option<&String>,
    seconds: Option<f64>,
) -> Result<(), Error> {
    let backend = NdArray::<f32>::with_threads(threads)?;
    if let Some(seconds) = seconds {
        let said = [("backend".to_owned(), backend.name().into()), ("threads".to_owned(), threads.get().into())];
        return figures::print(workload, backend, seconds, &said.into_iter().collect());
    }
    let products = products.map_or(Ok(Products::F32), |name| name.parse()).map_err(Error::Input)?;
    let training = TrainConfig { products, ..workload.training() };
    let mut line = measure(workload, training, backend, threads.get())?;
    if products != Products::F32 {
        line["products"] = products.name().into();
    }
    println!("{line}");
    Ok(())
}

/// One line of the adapter that `--backend wgpu` takes.
#[cfg(feature = "gpu")]
fn describe() -> Result<(), Error> {
    let gpu = resflow::Wgpu::new()?;
    let adapter = gpu.adapter();
    let line = serde_json::json!({
        "name": adapter.name,
        "kind": adapter.kind.to_string(),
        "api": adapter.api,
        "driver": adapter.driver,
        "largest_tensor": adapter.largest_tensor,
        "cooperative_matrices": adapter.cooperative_matrices,
        "version": env!("CARGO_PKG_VERSION"),
    });
    println!("{line}");
    Ok(())
}

#[cfg(not(feature = "gpu"))]
fn describe() -> Result<(), Error> {
    Err(Error::Input("no GPU backend is built in".to_owned()))
}

/// On a device of its own; without `seconds` with what a training step asks of it.
#[cfg(feature = "gpu")]
fn on_gpu(workload: &Workload, products: &str, seconds: Option<f64>) -> Result<(), Error> {
    use resflow::gpu::{AdapterChoice, Precision, WgpuOptions};
    const STEPS: u64 = 4;
    let mut offered = Precision::ALL.into_iter();
    let precision =
        offered.find(|p| p.to_string() == products).ok_or(Error::Input(format!("no products in `{products}`")))?;
    let gpu =
        resflow::Wgpu::open(&WgpuOptions { adapter: AdapterChoice::from_env(), precision, ..WgpuOptions::default() })?;
    if let Some(seconds) = seconds {
        let said = [("products", products.to_owned()), ("adapter", gpu.adapter().to_string())];
        let said = said.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        return figures::print(workload, gpu, seconds, &said);
    }
    let mut trainer = workload.trainer(gpu.clone(), workload.training())?;
    trainer.step()?;
    let before = gpu.statistics();
    for _ in 0..STEPS {
        trainer.step()?;
    }
    let after = gpu.statistics();
    let mut line = measure(workload, workload.training(), gpu.clone(), 1)?;
    line["products"] = products.into();
    line["adapter"] = gpu.adapter().to_string().into();
    line["launches_per_step"] = ((after.launches - before.launches) / STEPS).into();
    line["submissions_per_step"] = ((after.submissions - before.submissions) / STEPS).into();
    println!("{line}");
    Ok(())
}

/// The median over repetitions, in seconds.
fn median(repetitions: usize, mut work: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut times = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[repetitions / 2])
}

fn measure<B: Backend>(
    workload: &Workload,
    training: TrainConfig,
    backend: B,
    threads: usize,
) -> Result<serde_json::Value, Error> {
    let name = backend.name();
    let mut trainer = workload.trainer(backend, training)?;
    // as the peer: twenty steps, the first two not counted
    let mut terms = 0;
    for _ in 0..2 {
        trainer.step()?;
    }
    let batch = workload.batch;
    let steps = if batch > 100 { 60 } else { 20 };
    let train = median(steps, || {
        terms += trainer.step()?.terms;
        Ok(())
    })?;
    let flow = trainer.flow();
    let prepared = flow.prepare();
    let data = workload.data(batch)?;
    let evaluated = prepared.log_prob(data.samples(), Key::new(7))?;
    let evaluate = median(9, || prepared.log_prob(data.samples(), Key::new(7)).map(drop))?;
    let errors = evaluated.standard_error.iter().map(|e| e * e).sum::<f64>() / batch as f64;
    let z = prepared.encode(data.samples(), Key::new(7))?.latents;
    let scale = flow.standardiser().deviation().iter().copied().fold(0.0, f64::max);
    let mut inverse = Vec::new();
    let usual = Inversion::for_backend::<B>();
    let plain = usual.with_method(Method::FixedPoint)?;
    // the peer stops near 3e−3 and measures nothing: the same work is a looser accuracy without the final check
    let variants = [
        ("anderson_2", usual),
        ("fixed_point", plain),
        ("fixed_point, unchecked, accuracy 4e-5", plain.with_accuracy(4e-5)?.with_check(false)),
        ("fixed_point, unchecked, accuracy 1e-3", plain.with_accuracy(1e-3)?.with_check(false)),
    ];
    for (name, how) in variants {
        let decoded = prepared.decode(&z, &how)?;
        let seconds = median(9, || prepared.decode(&z, &how).map(drop))?;
        let back = match &data {
            Data::Rows(rows) => {
                let pairs = decoded.samples.values().iter().zip(rows.values());
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
            }
            // bytes have noise added: compare in latent space
            Data::Images(_) => decoded.residual,
        };
        let evaluations =
            decoded.reports.iter().map(|r| f64::from(r.iterations)).sum::<f64>() / (batch * workload.blocks) as f64;
        inverse.push(serde_json::json!({
            "method": name,
            "invert_per_s": (batch as f64 / seconds).round(),
            "round_trip_error": back,
            "evaluations_per_block": evaluations,
        }));
    }
    Ok(serde_json::json!({
        "workload": workload.name,
        "batch": batch,
        "backend": name,
        "threads": threads,
        "train_step_s": train,
        "train_samples_per_s": (batch as f64 / train).round(),
        "terms_per_block": terms as f64 / (steps * workload.blocks) as f64,
        "log_prob_per_s": (batch as f64 / evaluate).round(),
        "log_prob_standard_error": errors.sqrt(),
        "estimator": evaluated.estimator,
        "inverse": inverse,
        "parameters": flow.parameters(),
    }))
}
