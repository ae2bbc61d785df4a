//! Training steps, log p and inversion of the workloads, on every backend that is built in.
//!
//! Ids are `<operation>/<backend>/<workload>`; every measurement ends with the results on the host.

mod common;

use common::{OTHERS, WORKLOADS};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::invert::Inversion;

fn workloads<B: Backend>(c: &mut Criterion, backend: &B) {
    let name = backend.name();
    for workload in WORKLOADS.into_iter().chain(OTHERS) {
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

fn ndarray(c: &mut Criterion) {
    workloads(c, &NdArray::<f32>::new());
}

/// On the adapter that `RESFLOW_ADAPTER` names, or the best one.
#[cfg(feature = "gpu")]
fn wgpu(c: &mut Criterion) {
    match resflow::Wgpu::new() {
        Ok(gpu) => {
            eprintln!("wgpu on {}", gpu.adapter());
            workloads(c, &gpu);
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
