//! Matrix products of the sizes that residual flows make, by every implementation built in, on one thread.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use resflow_ndarray::variants;

/// Rows of a shard, inputs, outputs.
const SIZES: [[usize; 3]; 6] =
    [[63, 64, 64], [63, 128, 128], [63, 128, 43], [63, 43, 128], [512, 512, 512], [63, 2, 64]];

fn products(c: &mut Criterion) {
    for size @ [m, k, n] in SIZES {
        let mut group = c.benchmark_group(format!("product/{m}x{k}x{n}"));
        // elements are multiply-adds: twice this is the rate in floating-point operations
        group.throughput(Throughput::Elements((m * k * n) as u64));
        let fill = |len: usize| (0..len).map(|i| ((i * 7919) % 1000) as f32 * 1e-3).collect::<Vec<_>>();
        let (a, b, mut out) = (fill(m * k), fill(k * n), vec![0.0; m * n]);
        for (name, product) in variants::all() {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| product(size, black_box(&a), black_box(&b), black_box(&mut out)));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = products
}
criterion_main!(benches);
