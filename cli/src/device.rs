//! Where and how to compute: the arguments, and the device that they open.

use std::num::NonZeroUsize;

use anyhow::Result;
use clap::{Args, ValueEnum};
use resflow::Error;
use resflow::device::{Device, DeviceKind, DeviceOptions, Precision, Products};

use crate::cluster;
use crate::failure::{say, usage, warn};

/// The precision of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionName {
    /// Single: fast.
    F32,
    /// Double: slower by two or more, accurate to 1e-12.
    F64,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::F64 => Self::F64,
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
    /// A GPU if there is one that can do what is asked for, else the processor.
    Best,
}

/// How matrices are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ProductsName {
    /// In single precision.
    #[default]
    F32,
    /// Gradients of a fit, on a processor that multiplies bf16 (AMX, AVX512_BF16), by three products: an error of 2e-6;
    /// faster than f32 on AMX alone.
    Bf16x3,
    /// The same by six products of bf16: accurate like f32.
    Bf16x6,
    /// The same by one product of bf16: an error of 1e-3; faster than f32 on either.
    Bf16,
    /// Everything, on a GPU's matrix hardware by three half-precision products: accurate like f32.
    F16x3,
    /// The same in half precision: a relative error of 1e-3.
    F16,
}

impl From<ProductsName> for Products {
    fn from(name: ProductsName) -> Self {
        match name {
            ProductsName::F32 => Self::F32,
            ProductsName::Bf16x3 => Self::Bf16x3,
            ProductsName::Bf16x6 => Self::Bf16x6,
            ProductsName::Bf16 => Self::Bf16,
            ProductsName::F16x3 => Self::F16x3,
            ProductsName::F16 => Self::F16,
        }
    }
}

/// How to compute.
#[derive(Debug, Clone, Args, Default)]
pub(crate) struct Arithmetic {
    /// The precision of the arithmetic [default: f32 for fit, else the model's; always f32 on a GPU]
    #[arg(long, value_enum, display_order = 100)]
    pub(crate) precision: Option<PrecisionName>,
    /// The number of threads; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, display_order = 100)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What computes
    #[arg(long, value_enum, default_value_t, display_order = 100)]
    pub(crate) backend: BackendName,
    /// The GPU to use, by index or a part of its name, see `resflow devices` [default: RESFLOW_ADAPTER, else the best]
    #[arg(long, value_name = "ADAPTER", display_order = 100)]
    pub(crate) adapter: Option<String>,
    /// How matrices are multiplied [default: f32]
    #[arg(long, value_enum, display_order = 100)]
    pub(crate) products: Option<ProductsName>,
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let wrong = || "expected a whole number from 1 to 1024".to_owned();
    text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= 1024).ok_or_else(wrong)
}

impl Arithmetic {
    /// The precision that was asked for.
    pub(crate) fn asked_precision(&self) -> Option<Precision> {
        self.precision.map(Precision::from)
    }

    /// The precision to compute in, where numbers are stored in another.
    pub(crate) fn precision_of(&self, stored: Precision) -> Precision {
        match self.backend {
            BackendName::Cpu | BackendName::Best => self.asked_precision().unwrap_or(stored),
            BackendName::Wgpu => Precision::F32,
        }
    }

    /// The products that were asked for the gradients of a fit on the processor.
    pub(crate) fn asked_products(&self) -> Option<Products> {
        self.products.filter(|_| self.backend != BackendName::Wgpu).map(Products::from)
    }

    /// Opens what the arguments ask for where nothing is fitted, and says which it is unless it is the processor as usual.
    pub(crate) fn open(&self, precision: Precision) -> Result<Device> {
        match self.asked_products() {
            None | Some(Products::F32) => self.open_for_fit(precision),
            Some(products) => Err(usage(format_args!(
                "--products {products} is for the gradients of `resflow fit`: on a processor all else is computed in f32"
            ))),
        }
    }

    /// Opens what the arguments ask for, and says which it is unless it is the processor as usual.
    pub(crate) fn open_for_fit(&self, precision: Precision) -> Result<Device> {
        self.check(precision)?;
        let device = Device::open(&self.options(precision)).map_err(|e| match e {
            Error::Config(e) => usage(e),
            other => other.into(),
        })?;
        if self.backend != BackendName::Cpu {
            say(format_args!("on {device}"));
        }
        if !device.is_hardware() {
            warn("this adapter is a program on the processor, slower than --backend cpu");
        }
        Ok(device)
    }

    /// Whether the arguments go together, in their own words.
    fn check(&self, precision: Precision) -> Result<()> {
        let gpu = self.backend == BackendName::Wgpu;
        if !gpu && self.adapter.is_some() {
            return Err(usage("--adapter is for --backend wgpu"));
        }
        let half = matches!(self.products, Some(ProductsName::F16x3 | ProductsName::F16));
        if let Some(products) = self.products.map(Products::from).filter(|p| *p != Products::F32) {
            if half != gpu {
                let (others, own, those) =
                    if gpu { ("cpu", "wgpu", "f16x3 and f16") } else { ("wgpu", "cpu", "bf16x3, bf16x6 and bf16") };
                return Err(usage(format_args!(
                    "--products {products} is for --backend {others}; --backend {own} has f32, {those}"
                )));
            }
            if !gpu && precision == Precision::F64 {
                return Err(usage(format_args!("--products {products} are of f32, not of f64")));
            }
        }
        if gpu && (precision == Precision::F64 || self.precision == Some(PrecisionName::F64)) {
            return Err(usage("--backend wgpu computes in f32; use --backend cpu for f64"));
        }
        if gpu && self.threads.is_some() {
            return Err(usage("--threads is for --backend cpu"));
        }
        if gpu && !resflow::device::BUILT_FOR_GPU {
            return Err(usage(
                "this program was built without GPU support; build it with `cargo install --path cli --features gpu`",
            ));
        }
        Ok(())
    }

    fn options(&self, precision: Precision) -> DeviceOptions {
        DeviceOptions {
            kind: match self.backend {
                BackendName::Cpu => DeviceKind::Cpu,
                BackendName::Wgpu => DeviceKind::Gpu,
                BackendName::Best => DeviceKind::Best,
            },
            precision,
            threads: self.threads,
            adapter: match self.backend {
                BackendName::Cpu => None,
                BackendName::Wgpu | BackendName::Best => cluster::choose_adapter(self.adapter.as_deref()),
            },
            products: match (self.backend, self.products) {
                (BackendName::Wgpu, Some(products)) => products.into(),
                _ => Products::F32,
            },
        }
    }
}
