//! Where and how to compute: the arguments, and the backend that they open.

use std::num::NonZeroUsize;

use anyhow::Result;
use clap::{Args, ValueEnum};
use resflow::NdArray;

use crate::failure::usage;

/// The precision of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Precision {
    /// Single: fast.
    F32,
    /// Double: slower by two or more, accurate to 1e-12.
    F64,
}

impl Precision {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum BackendName {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU, through Vulkan, Metal or DX12.
    Wgpu,
}

/// How a GPU multiplies matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Products {
    /// In single precision.
    #[default]
    F32,
    /// On matrix hardware by three half-precision products: accurate like f32.
    F16x3,
    /// On matrix hardware in half precision: a relative error of 1e-3.
    F16,
}

/// How to compute.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct Arithmetic {
    /// The precision of the arithmetic [default: f32 for fit, else the model's; always f32 on a GPU]
    #[arg(long, value_enum, display_order = 100)]
    pub(crate) precision: Option<Precision>,
    /// The number of threads; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, display_order = 100)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What computes
    #[arg(long, value_enum, default_value_t, display_order = 100)]
    pub(crate) backend: BackendName,
    /// The GPU to use, by index or a part of its name, see `resflow devices` [default: RESFLOW_ADAPTER, else the best]
    #[arg(long, value_name = "ADAPTER", display_order = 100)]
    pub(crate) adapter: Option<String>,
    /// How a GPU multiplies matrices
    #[arg(long, value_enum, default_value_t, display_order = 100)]
    pub(crate) products: Products,
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let wrong = || "expected a whole number from 1 to 1024".to_owned();
    text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= 1024).ok_or_else(wrong)
}

impl Arithmetic {
    /// The precision to compute in, where numbers are stored in another.
    pub(crate) fn precision_of(&self, stored: Precision) -> Precision {
        match self.backend {
            BackendName::Cpu => self.precision.unwrap_or(stored),
            BackendName::Wgpu => Precision::F32,
        }
    }
}

/// A backend of one of the kinds that are built in.
pub(crate) enum Device {
    Single(NdArray<f32>),
    Double(NdArray<f64>),
    #[cfg(feature = "gpu")]
    Gpu(resflow::Wgpu),
}

impl Device {
    /// Opens what the arguments ask for.
    pub(crate) fn open(precision: Precision, arithmetic: &Arithmetic) -> Result<Self> {
        let gpu = arithmetic.backend == BackendName::Wgpu;
        if !gpu && (arithmetic.adapter.is_some() || arithmetic.products != Products::F32) {
            return Err(usage("--adapter and --products are for --backend wgpu"));
        }
        if gpu && (precision == Precision::F64 || arithmetic.precision == Some(Precision::F64)) {
            return Err(usage("--backend wgpu computes in f32; use --backend cpu for f64"));
        }
        if gpu && arithmetic.threads.is_some() {
            return Err(usage("--threads is for --backend cpu"));
        }
        Ok(match (precision, arithmetic.threads) {
            _ if gpu => return open_gpu(arithmetic),
            (Precision::F32, Some(threads)) => Self::Single(NdArray::with_threads(threads)?),
            (Precision::F32, None) => Self::Single(NdArray::new()),
            (Precision::F64, Some(threads)) => Self::Double(NdArray::with_threads(threads)?),
            (Precision::F64, None) => Self::Double(NdArray::new()),
        })
    }
}

#[cfg(feature = "gpu")]
fn open_gpu(arithmetic: &Arithmetic) -> Result<Device> {
    use resflow::gpu::{AdapterChoice, AdapterKind, Precision, WgpuOptions};
    let adapter = arithmetic.adapter.as_deref().map_or_else(AdapterChoice::from_env, AdapterChoice::parse);
    let precision = match arithmetic.products {
        Products::F32 => Precision::F32,
        Products::F16x3 => Precision::F16x3,
        Products::F16 => Precision::F16,
    };
    let gpu = resflow::Wgpu::open(&WgpuOptions { adapter, precision, memory_limit: None })?;
    crate::failure::say(format_args!("on {}", gpu.adapter()));
    if gpu.adapter().kind == AdapterKind::Software {
        crate::failure::warn("this adapter is a program on the processor, slower than --backend cpu");
    }
    Ok(Device::Gpu(gpu))
}

#[cfg(not(feature = "gpu"))]
fn open_gpu(_: &Arithmetic) -> Result<Device> {
    Err(usage("this program was built without GPU support; build it with `cargo install --path cli --features gpu`"))
}

/// Runs an expression with the backend of some precision that the arguments ask for.
macro_rules! with_backend {
    ($precision:expr, $arithmetic:expr, |$backend:ident| $body:expr) => {
        match $crate::device::Device::open($precision, $arithmetic)? {
            $crate::device::Device::Single($backend) => $body,
            $crate::device::Device::Double($backend) => $body,
            #[cfg(feature = "gpu")]
            $crate::device::Device::Gpu($backend) => $body,
        }
    };
}
pub(crate) use with_backend;
