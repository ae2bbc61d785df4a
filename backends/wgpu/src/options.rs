//! How a device is opened.

use std::fmt;

use crate::adapter::AdapterChoice;
use crate::cooperative::Split;

/// How matrix products and convolutions are computed. Everything else is in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// In `f32`.
    #[default]
    F32,
    /// By three half-precision products on matrix hardware, operands split into two halves each: accurate like `f32`.
    F16x3,
    /// By one half-precision product on matrix hardware, summed in `f32`: a relative error of about 10⁻³.
    F16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16x3, Self::F16];

    /// How operands are rounded for matrix hardware; `None` if it is not used.
    pub(crate) fn split(self) -> Option<Split> {
        match self {
            Self::F32 => None,
            Self::F16x3 => Some(Split::F16x3),
            Self::F16 => Some(Split::F16),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16x3 => "f16x3",
            Self::F16 => "f16",
        })
    }
}

/// How to open a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WgpuOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// The precision of products. Others than `f32` need an adapter with half-precision cooperative matrices.
    pub precision: Precision,
    /// The most bytes of device memory to use; what the device has if `None`.
    pub memory_limit: Option<u64>,
}
