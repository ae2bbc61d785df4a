//! Convolutions between few and many channels, as the blocks of an image flow make them: one image on one thread.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use resflow_backend::{Backend, Key, Noise, Padding};
use resflow_ndarray::NdArray;

/// Height and width, few channels, many channels.
const SIZES: [[usize; 3]; 5] = [[28, 1, 128], [28, 3, 128], [32, 3, 512], [14, 12, 128], [7, 12, 128]];

fn convolutions(c: &mut Criterion) {
    let cpu = NdArray::<f32>::with_threads(NonZeroUsize::MIN).expect("one thread is this one");
    let padding = Padding::same([3, 3]);
    for [size, few, many] in SIZES {
        for [from, to] in [[few, many], [many, few]] {
            let normal = |stream, shape: [usize; 4]| cpu.noise(Key::new(stream), Noise::Normal, 0, shape.into());
            let (x, gy) = (normal(1, [1, size, size, from]), normal(2, [1, size, size, to]));
            let kernel = normal(3, [to, 3, 3, from]);
            let id = format!("{size}x{size}x{from}to{to}");
            // elements are multiply-adds: twice this is the rate in floating-point operations
            let count = Throughput::Elements((9 * size * size * from * to) as u64);
            let mut group = c.benchmark_group("conv2d");
            group.throughput(count.clone());
            group.bench_function(&id, |b| b.iter(|| cpu.conv2d(black_box(&x), &kernel, padding)));
            group.finish();
            let mut group = c.benchmark_group("conv2d_input");
            group.throughput(count.clone());
            group.bench_function(&id, |b| b.iter(|| cpu.conv2d_input(black_box(&gy), &kernel, padding, [size, size])));
            group.finish();
            let mut group = c.benchmark_group("conv2d_kernel_add");
            group.throughput(count);
            group.bench_function(&id, |b| {
                let mut sum = Some(cpu.full(0.0, [to, 3, 3, from].into()));
                b.iter(|| {
                    let before = sum.take().expect("put back by the last call");
                    sum = Some(cpu.conv2d_kernel_add(before, black_box(&x), &gy, padding));
                });
            });
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = convolutions
}
criterion_main!(benches);
