//! Training steps, log p and inversion of the workloads, on every backend that is built in.
//!
//! Ids are `<operation>/<backend>/<workload>`; every measurement ends with the results on the host.

mod common;

use common::{Data, OTHERS, WORKLOADS, Workload};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use resflow::backend::{Backend, Key, Noise};
use resflow::config::ContextConfig;
use resflow::data::{Dataset, Table};
use resflow::invert::Inversion;
use resflow::train::{Budget, Trainer};
use resflow::{Flow, NdArray};

/// Where nothing is measured, that the benches run at all is shown on a GPU, which may be software, by the smallest alone.
fn is_run_on(workload: &Workload, backend: &str) -> bool {
    Workload::is_measured() || backend.starts_with("ndarray") || workload.name == "toy"
}

fn workloads<B: Backend>(c: &mut Criterion, backend: &B) {
    let name = backend.name();
    for workload in WORKLOADS.into_iter().chain(OTHERS).filter(|w| is_run_on(w, &name)).map(Workload::or_few_rows) {
        let mut trainer = workload.trainer(backend.clone(), workload.training()).expect("the workload is valid");
        trainer.step().expect("the first step initialises");

        let mut group = c.benchmark_group(format!("train_step/{name}"));
        group.throughput(Throughput::Elements(workload.batch as u64));
        group.bench_function(workload.name, |b| b.iter(|| trainer.step().expect("a finite step")));
        group.finish();

        let prepared = trainer.flow().prepare();
        let data = workload.data(workload.batch).expect("finite rows");
        let mut group = c.benchmark_group(format!("log_prob/{name}"));
        group.throughput(Throughput::Elements(workload.batch as u64));
        group.bench_function(workload.name, |b| {
            b.iter(|| prepared.log_prob(data.samples(), Key::new(7)).expect("rows that fit"));
        });
        group.finish();

        let z = prepared.encode(data.samples(), Key::new(7)).expect("rows that fit").latents;
        let how = Inversion::for_backend::<B>();
        let mut group = c.benchmark_group(format!("inverse/{name}"));
        group.throughput(Throughput::Elements(workload.batch as u64));
        group.bench_function(workload.name, |b| b.iter(|| prepared.decode(&z, &how).expect("rows that fit")));
        group.finish();
    }
}

/// The rows' workloads given contexts of eight numbers, `<workload>-given`: beside the same without, they say what a context costs.
fn given<B: Backend>(c: &mut Criterion, backend: &B) {
    const CONTEXT: usize = 8;
    let name = backend.name();
    for workload in WORKLOADS.into_iter().filter(|w| is_run_on(w, &name)).map(Workload::or_few_rows) {
        let Data::Rows(rows) = workload.data(2 * workload.batch).expect("finite rows") else { continue };
        let mut contexts = vec![0.0; rows.rows() * CONTEXT];
        Noise::Normal.fill(Key::new(9), 0, &mut contexts);
        let contexts = Table::new(None, CONTEXT, contexts).expect("finite rows");
        let one = contexts.select(&[0]);
        let data = Dataset::from(rows).with_context(contexts).expect("as many");
        let config = workload.config().expect("valid").with_context(Some(ContextConfig::new(CONTEXT)));
        let flow = Flow::new(backend.clone(), config, Key::new(0)).expect("valid");
        let settings = workload.settings(workload.training());
        let mut trainer = Trainer::new(flow, data, &settings, Budget::Steps(1_000_000), Key::new(1)).expect("valid");
        trainer.step().expect("the first step initialises");
        let mut group = c.benchmark_group(format!("train_step/{}", backend.name()));
        group.throughput(Throughput::Elements(workload.batch as u64));
        let name = format!("{}-given", workload.name);
        group.bench_function(&name, |b| b.iter(|| trainer.step().expect("a finite step")));
        group.finish();

        let prepared = trainer.flow().prepare();
        let at = prepared.condition(&one).expect("a context");
        let mut group = c.benchmark_group(format!("sample/{}", backend.name()));
        group.throughput(Throughput::Elements(workload.batch as u64));
        group.bench_function(&name, |b| b.iter(|| at.sample(workload.batch, Key::new(8)).expect("samples")));
        group.finish();
    }
}

fn ndarray(c: &mut Criterion) {
    workloads(c, &NdArray::<f32>::new());
    given(c, &NdArray::<f32>::new());
}

/// On the adapter that `RESFLOW_ADAPTER` names, or the best one.
#[cfg(feature = "gpu")]
fn wgpu(c: &mut Criterion) {
    match resflow::Wgpu::new() {
        Ok(gpu) => {
            eprintln!("wgpu on {}", gpu.adapter());
            workloads(c, &gpu);
            given(c, &gpu);
        }
        Err(error) => eprintln!("SKIPPED, NOT MEASURED: {error}"),
    }
}

/// The same without a GPU: nothing.
#[cfg(not(feature = "gpu"))]
fn wgpu(_: &mut Criterion) {}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = ndarray, wgpu
}
criterion_main!(benches);
