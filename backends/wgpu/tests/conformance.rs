//! Every property of backends, on the adapter at hand.

mod device;

resflow_conformance::conformance_tests!(
    wgpu,
    match device::shared() {
        Some(gpu) => gpu,
        None => return,
    }
);
