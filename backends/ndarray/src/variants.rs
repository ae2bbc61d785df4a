//! The matrix products that this backend chooses from, one by one, for comparing them (`benches/product.rs`).

use crate::matmul::{self, strided};

/// out = a·b of row-major f32 matrices `[m, k]` and `[k, n]`.
pub type Product = fn([usize; 3], &[f32], &[f32], &mut [f32]);

/// Name and function of each that this build and this machine have; extents are `[m, k, n]`.
pub fn all() -> Vec<(&'static str, Product)> {
    #[allow(unused_mut)]
    let mut found: Vec<(&'static str, Product)> = vec![("matrixmultiply", |[m, k, n], a, b, out| {
        matmul::with_matrixmultiply((m, n, k), &strided(a, false, m, k), &strided(b, false, k, n), false, out);
    })];
    #[cfg(feature = "gemm")]
    found.push(("gemm", |[m, k, n], a, b, out| {
        matmul::with_gemm((m, n, k), &strided(a, false, m, k), &strided(b, false, k, n), false, out);
    }));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        found.push(("direct", |[m, k, n], a, b, out| {
            let operands = matmul::Operands { a, transpose_a: false, b, transpose_b: false, m, k, n, packed: None };
            crate::direct::product(&operands, matmul::Start::Zero, out);
        }));
    }
    found
}
