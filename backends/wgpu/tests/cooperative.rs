//! Products on matrix hardware, where the adapter has it: a GPU, or Mesa 26.1 by `tests/cooperative.sh`.

mod device;

use std::sync::LazyLock;

use resflow_backend::{Backend, Key, Noise};
use resflow_wgpu::{AdapterChoice, Precision, Wgpu, WgpuOptions};

fn open(precision: Precision) -> Option<Wgpu> {
    let plain = device::shared()?;
    if !plain.adapter().cooperative_matrices {
        eprintln!("SKIPPED, NOT TESTED: {} has no cooperative matrices", plain.adapter());
        return None;
    }
    let adapter = AdapterChoice::Index(plain.adapter().index);
    Some(Wgpu::open(&WgpuOptions { adapter, precision, memory_limit: None }).expect("the adapter offers it"))
}

static SPLIT: LazyLock<Option<Wgpu>> = LazyLock::new(|| open(Precision::F16x3));

// three half-precision products are held to the tolerances of single precision
resflow_conformance::conformance_tests!(
    f16x3,
    match SPLIT.clone() {
        Some(gpu) => gpu,
        None => return,
    }
);

/// One half-precision product: an error of 10⁻³ of Σ|terms| at most, operands of any size, the result finite.
#[test]
fn half_precision() {
    let (Some(half), Some(full)) = (open(Precision::F16), device::shared()) else { return };
    for (m, k, n, scale) in [(64, 64, 64, 1.0), (100, 300, 70, 1e-6), (257, 33, 129, 1e6), (40, 2000, 48, 1.0)] {
        let operands = |gpu: &Wgpu| {
            let a = gpu.affine(gpu.noise(Key::new(1), Noise::Normal, 0, [m, k].into()), scale, 0.0);
            [a, gpu.noise(Key::new(2), Noise::Normal, 0, [n, k].into())]
        };
        let product = |gpu: &Wgpu| {
            let [a, b] = operands(gpu);
            gpu.download(&gpu.matmul(&a, false, &b, true)).expect("the device is sound")
        };
        // Σ|terms| of normal operands is about 2/π k
        let size = scale * k as f64 * 2.0 / std::f64::consts::PI;
        for (x, want) in product(&half).into_iter().zip(product(&full)) {
            assert!(f64::from((x - want).abs()) <= 1e-3 * size, "{m}×{k}×{n}: {x}, not {want}");
        }
    }
}
