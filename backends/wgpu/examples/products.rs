//! What a device does of the work that flows are made of, one JSON line each: matrix products in every precision that it
//! offers (teraflop/s), the products of a residual block's widths, an elementwise pass and a reduction (gigabytes/s), and a
//! launch of almost nothing (microseconds).
//!
//! `cargo run --release -p resflow-wgpu --example products`, on the adapter that `RESFLOW_ADAPTER` names or the best one;
//! with `--quick` only what software Vulkan does in seconds.
//! A figure is the best of five runs, each of enough launches for about a tenth of a second and ended by waiting for the device.

use std::time::Instant;

use resflow_backend::{Backend, BackendError, Key, Noise, Over, Reduce, Unary};
use resflow_wgpu::{AdapterChoice, Precision, Wgpu, WgpuOptions};

/// Rows, inner dimension and columns: squares, and a batch through the layers of the workloads of `examples/throughput.rs`.
const SHAPES: [(usize, usize, usize); 9] = [
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (500, 43, 128),
    (500, 128, 128),
    (65_536, 128, 128),
    (65_536, 512, 512),
];

/// The multiply-adds that are quick anywhere; an element of a pass counts as 64.
const QUICK: usize = 1 << 27;

fn main() -> Result<(), BackendError> {
    let quick = std::env::args().skip(1).any(|argument| argument == "--quick");
    let most = if quick { QUICK } else { usize::MAX };
    let plain = Wgpu::new()?;
    println!("{{\"adapter\": \"{}\", \"cooperative\": {}}}", plain.adapter(), plain.adapter().cooperative_matrices);
    for precision in Precision::ALL {
        if precision != Precision::F32 && !plain.adapter().cooperative_matrices {
            continue;
        }
        let adapter = AdapterChoice::Index(plain.adapter().index);
        let gpu = Wgpu::open(&WgpuOptions { adapter, precision, ..WgpuOptions::default() })?;
        for (m, k, n) in SHAPES.into_iter().filter(|(m, k, n)| m * k * n <= most) {
            let a = gpu.noise(Key::new(1), Noise::Normal, 0, [m, k].into());
            let b = gpu.noise(Key::new(2), Noise::Normal, 0, [n, k].into());
            let seconds = time(&gpu, || gpu.matmul(&a, false, &b, true))?;
            let rate = 2.0 * (m * k * n) as f64 / seconds / 1e12;
            println!(
                "{{\"product\": \"{m}x{k}x{n}\", \"precision\": \"{precision}\", \"microseconds\": {:.1}, \
                 \"teraflop_per_s\": {rate:.2}}}",
                seconds * 1e6
            );
        }
    }
    for n in [1, 64_000, 1 << 20, 1 << 26].into_iter().filter(|n| n << 6 <= most) {
        let x = plain.noise(Key::new(1), Noise::Normal, 0, [n].into());
        // read and written, 4 bytes an element
        report("affine", n, 8 * n, time(&plain, || plain.affine(x.clone(), 0.5, 1.0))?);
        report("tanh", n, 8 * n, time(&plain, || plain.unary(Unary::Tanh, x.clone()))?);
        report("sum", n, 4 * n, time(&plain, || plain.reduce(Reduce::Sum, Over::All, &x))?);
    }
    Ok(())
}

fn report(operation: &str, elements: usize, bytes: usize, seconds: f64) {
    println!(
        "{{\"operation\": \"{operation}\", \"elements\": {elements}, \"microseconds\": {:.2}, \"gigabyte_per_s\": {:.1}}}",
        seconds * 1e6,
        bytes as f64 / seconds / 1e9
    );
}

/// Seconds of one `work`.
fn time<T>(gpu: &Wgpu, work: impl Fn() -> T) -> Result<f64, BackendError> {
    let run = |launches: usize| {
        let start = Instant::now();
        for _ in 0..launches {
            work();
        }
        gpu.synchronize()?;
        Ok::<_, BackendError>(start.elapsed().as_secs_f64())
    };
    // compiles the kernel and fills the pool
    run(3)?;
    let mut launches = 4;
    while run(launches)? < 0.05 && launches < 1 << 16 {
        launches *= 2;
    }
    (0..5).try_fold(f64::INFINITY, |best, _| Ok(best.min(run(launches)? / launches as f64)))
}
