//! Whole flows on every backend: [`agreement`] with the CPU, and [`golden`] numbers of the authors. One program, since both are made of
//! the same generic code, which each would compile again.
#![cfg(feature = "cpu")]

mod agreement;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "gpu")]
#[path = "../../backends/wgpu/tests/device/mod.rs"]
mod device;
mod golden;
