//! Activations with their first two derivatives, on one thread and a tensor of the size of a shard.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use resflow_backend::{Activation, Backend as _};
use resflow_ndarray::NdArray;

const SHAPE: [usize; 2] = [63, 128];

fn activations(c: &mut Criterion) {
    let cpu = NdArray::<f32>::with_threads(NonZeroUsize::MIN).expect("one thread needs no pool");
    let elements = SHAPE[0] * SHAPE[1];
    // −4 to 4, the signs mixed as in training
    let x: Vec<f32> = (0..elements).map(|i| ((i * 7919) % 1000) as f32 * 8e-3 - 4.0).collect();
    let (x, b) = (cpu.upload(&x, SHAPE.into()), cpu.upload(&[1.0], [1].into()));
    let mut group = c.benchmark_group("activation");
    group.throughput(Throughput::Elements(elements as u64));
    for f in Activation::ALL {
        let parameter = f.has_parameter().then_some(&b);
        group.bench_function(BenchmarkId::from_parameter(format!("{f:?}")), |bencher| {
            bencher.iter(|| cpu.activation(f, parameter, black_box(&x), 2));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = activations
}
criterion_main!(benches);
