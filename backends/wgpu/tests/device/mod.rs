//! The device that tests run on.

use std::sync::LazyLock;

use resflow_wgpu::Wgpu;

static SHARED: LazyLock<Option<Wgpu>> = LazyLock::new(open);

/// A device of its own for a test that spoils it; `None`, said aloud, where there is no adapter. Under
/// `RESFLOW_REQUIRE_GPU=1` that is a failure.
pub(crate) fn open() -> Option<Wgpu> {
    match Wgpu::new() {
        Ok(gpu) => {
            eprintln!("GPU tests run on {}", gpu.adapter());
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
