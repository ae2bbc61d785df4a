//! The device that tests run on.

use std::sync::LazyLock;

use resflow_wgpu::{AdapterChoice, Precision, Wgpu, WgpuOptions};

static SHARED: LazyLock<Option<Wgpu>> = LazyLock::new(open);

/// A device of its own for a test that spoils it; `None`, said aloud, where there is no adapter. Under
/// `RESFLOW_REQUIRE_GPU=1` that is a failure. Its products are in the precision that `RESFLOW_PRODUCTS` names, f32 by default.
pub(crate) fn open() -> Option<Wgpu> {
    let products = std::env::var("RESFLOW_PRODUCTS").unwrap_or_else(|_| Precision::F32.to_string());
    let named = Precision::ALL.into_iter().find(|precision| precision.to_string() == products);
    let precision = named.unwrap_or_else(|| panic!("RESFLOW_PRODUCTS={products}: no such precision of products"));
    let options = WgpuOptions { adapter: AdapterChoice::from_env(), precision, ..WgpuOptions::default() };
    match Wgpu::open(&options) {
        Ok(gpu) => {
            eprintln!("GPU tests run on {}, products in {precision}", gpu.adapter());
            Some(gpu)
        }
        Err(error) => {
            let required = std::env::var("RESFLOW_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!required, "RESFLOW_REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED, NOT TESTED: {error}");
            None
        }
    }
}

/// The device that tests share.
#[allow(dead_code)]
pub(crate) fn shared() -> Option<Wgpu> {
    SHARED.clone()
}
