//! Devices chosen at run time.
//!
//! The library is generic over a backend, which is chosen when a program is compiled. A [`Device`] is one of the
//! built-in backends, chosen when it runs; [`with_device!`](crate::with_device) runs generic code on it.
//!
//! ```
//! use resflow::backend::Key;
//! use resflow::config::FlowConfig;
//! use resflow::device::{Device, DeviceOptions};
//! use resflow::Flow;
//!
//! let device = Device::open(&DeviceOptions::default())?;
//! let parameters = resflow::with_device!(device, |backend| Flow::new(backend, FlowConfig::new(3), Key::new(0))?.parameters());
//! assert!(parameters > 0);
//! # Ok::<(), resflow::Error>(())
//! ```

use std::fmt;
use std::num::NonZeroUsize;

#[cfg(feature = "cpu")]
use resflow_backend::Backend as _;
pub use resflow_backend::Products;

use crate::error::{ConfigError, Error};

/// The precision of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single: fast.
    #[default]
    F32,
    /// Double: slower by two or more, accurate to 1e-12; on the CPU only.
    F64,
}

impl Precision {
    /// `"f32"` or `"f64"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU, through Vulkan, Metal or DX12.
    Gpu,
    /// A GPU if the program was built for one and finds one that is no program on the processor, else the processor.
    Best,
}

/// The requirements on a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    /// The kind of the device.
    pub kind: DeviceKind,
    /// The precision; a GPU has single only.
    pub precision: Precision,
    /// The number of threads of the processor; all cores if none is given. Results do not depend on it.
    pub threads: Option<NonZeroUsize>,
    /// The GPU, by index or a part of its name; else the environment variable `RESFLOW_ADAPTER`, else the best.
    pub adapter: Option<String>,
    /// The arithmetic of a GPU's products, `F32`, `F16x3` or `F16`; that of a processor is a setting of a training
    /// ([`TrainConfig::products`](crate::train::TrainConfig::products)).
    pub products: Products,
}

impl DeviceOptions {
    /// The best device there is.
    pub fn best() -> Self {
        Self { kind: DeviceKind::Best, ..Self::default() }
    }

    /// The processor in a precision.
    pub fn cpu(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

/// A GPU that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adapter {
    /// The number by which it is chosen.
    pub index: usize,
    /// The name.
    pub name: String,
    /// What it is: a discrete or integrated GPU, or a program on the processor.
    pub kind: String,
    /// The interface: Vulkan, Metal or DX12.
    pub api: String,
    /// The driver.
    pub driver: String,
    /// The largest tensor, bytes.
    pub largest_tensor: u64,
    /// Whether products can be computed on matrix hardware.
    pub cooperative_matrices: bool,
    /// The adapter in words.
    pub description: String,
    /// Marks the one that is used where none is named.
    pub best: bool,
}

/// Whether the program was built with support for GPUs, the feature `gpu`.
pub const BUILT_FOR_GPU: bool = cfg!(feature = "gpu");

/// Lists the GPUs that are there; `None` of a program that was built without support for them.
pub fn adapters() -> Option<Vec<Adapter>> {
    #[cfg(feature = "gpu")]
    {
        let found = crate::gpu::adapters();
        let best = found.iter().min_by_key(|a| (a.kind, a.index)).map(|a| a.index);
        let adapter = |a: crate::gpu::AdapterInfo| Adapter {
            description: a.to_string(),
            kind: a.kind.to_string(),
            best: Some(a.index) == best,
            index: a.index,
            name: a.name,
            api: a.api,
            driver: a.driver,
            largest_tensor: a.largest_tensor,
            cooperative_matrices: a.cooperative_matrices,
        };
        Some(found.into_iter().map(adapter).collect())
    }
    #[cfg(not(feature = "gpu"))]
    None
}

/// Lists the products that the gradients of a training can be made of on this processor, in single precision
/// ([`TrainConfig::products`](crate::train::TrainConfig::products)).
pub fn processor_products() -> Vec<Products> {
    #[cfg(feature = "cpu")]
    {
        let cpu = crate::NdArray::<f32>::with_threads(NonZeroUsize::MIN);
        cpu.map_or_else(
            |_| Vec::new(),
            |cpu| Products::ALL.into_iter().filter(|&products| cpu.with_products(products).is_ok()).collect(),
        )
    }
    #[cfg(not(feature = "cpu"))]
    Vec::new()
}

/// One of the built-in backends.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Device {
    /// The processor in single precision.
    #[cfg(feature = "cpu")]
    Single(crate::NdArray<f32>),
    /// The processor in double precision.
    #[cfg(feature = "cpu")]
    Double(crate::NdArray<f64>),
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu(crate::Wgpu),
}

/// The error of options that cannot be asked for together.
fn conflict(problem: &str) -> Error {
    ConfigError::Inconsistent(problem.into()).into()
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// Returns [`Error::Config`] for options that do not go together or that the program was not built for,
    /// [`Error::Backend`] if there is no such device.
    pub fn open(options: &DeviceOptions) -> Result<Self, Error> {
        match options.kind {
            DeviceKind::Cpu if options.adapter.is_some() || options.products != Products::F32 => Err(conflict(
                "an adapter is for GPUs, and so are products of a device: those of a processor are a setting of a training",
            )),
            DeviceKind::Cpu => open_cpu(options),
            DeviceKind::Gpu if options.precision == Precision::F64 => {
                Err(conflict("a GPU computes in f32; double precision is for the processor"))
            }
            DeviceKind::Gpu if options.threads.is_some() => Err(conflict("threads are for the processor")),
            DeviceKind::Gpu => open_gpu(options),
            DeviceKind::Best => match open_gpu(options) {
                Ok(gpu) if options.precision == Precision::F32 && options.threads.is_none() && gpu.is_hardware() => {
                    Ok(gpu)
                }
                _ => open_cpu(options),
            },
        }
    }

    /// The device in words.
    pub fn name(&self) -> String {
        match self {
            #[cfg(feature = "cpu")]
            Self::Single(backend) => backend.name(),
            #[cfg(feature = "cpu")]
            Self::Double(backend) => backend.name(),
            #[cfg(feature = "gpu")]
            Self::Gpu(backend) => backend.adapter().to_string(),
        }
    }

    /// Returns `false` for a program on the processor that stands for a GPU.
    pub fn is_hardware(&self) -> bool {
        match self {
            #[cfg(feature = "gpu")]
            Self::Gpu(backend) => backend.adapter().kind != crate::gpu::AdapterKind::Software,
            #[allow(unreachable_patterns)]
            _ => true,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(feature = "cpu")]
fn open_cpu(options: &DeviceOptions) -> Result<Device, Error> {
    use crate::NdArray;
    Ok(match (options.precision, options.threads) {
        (Precision::F32, Some(threads)) => Device::Single(NdArray::with_threads(threads)?),
        (Precision::F32, None) => Device::Single(NdArray::new()),
        (Precision::F64, Some(threads)) => Device::Double(NdArray::with_threads(threads)?),
        (Precision::F64, None) => Device::Double(NdArray::new()),
    })
}

#[cfg(not(feature = "cpu"))]
fn open_cpu(_: &DeviceOptions) -> Result<Device, Error> {
    Err(conflict("this program was built without the CPU backend, the feature `cpu`"))
}

#[cfg(feature = "gpu")]
fn open_gpu(options: &DeviceOptions) -> Result<Device, Error> {
    use crate::gpu::{AdapterChoice, Precision, WgpuOptions};
    let adapter = options.adapter.as_deref().map_or_else(AdapterChoice::from_env, AdapterChoice::parse);
    let precision = match options.products {
        Products::F32 => Precision::F32,
        Products::F16x3 => Precision::F16x3,
        Products::F16 => Precision::F16,
        other => return Err(conflict(&format!("products in {other} are for the processor, a GPU has f16x3 and f16"))),
    };
    Ok(Device::Gpu(crate::Wgpu::open(&WgpuOptions { adapter, precision, memory_limit: None })?))
}

#[cfg(not(feature = "gpu"))]
fn open_gpu(_: &DeviceOptions) -> Result<Device, Error> {
    Err(conflict("this program was built without GPU support, the feature `gpu`"))
}

/// Runs an expression with the backend of a [`Device`]: it is compiled for each of them.
#[cfg(all(feature = "cpu", feature = "gpu"))]
#[macro_export]
macro_rules! with_device {
    ($device:expr, |$backend:ident| $body:expr) => {
        match $device {
            $crate::device::Device::Single($backend) => $body,
            $crate::device::Device::Double($backend) => $body,
            $crate::device::Device::Gpu($backend) => $body,
            #[allow(unreachable_patterns)]
            _ => unreachable!("a device is one of these"),
        }
    };
}

/// Runs an expression with the backend of a [`Device`]: it is compiled for each of them.
#[cfg(all(feature = "cpu", not(feature = "gpu")))]
#[macro_export]
macro_rules! with_device {
    ($device:expr, |$backend:ident| $body:expr) => {
        match $device {
            $crate::device::Device::Single($backend) => $body,
            $crate::device::Device::Double($backend) => $body,
            #[allow(unreachable_patterns)]
            _ => unreachable!("a device is one of these"),
        }
    };
}

/// Runs an expression with the backend of a [`Device`].
#[cfg(all(not(feature = "cpu"), feature = "gpu"))]
#[macro_export]
macro_rules! with_device {
    ($device:expr, |$backend:ident| $body:expr) => {
        match $device {
            $crate::device::Device::Gpu($backend) => $body,
            #[allow(unreachable_patterns)]
            _ => unreachable!("a device is one of these"),
        }
    };
}
