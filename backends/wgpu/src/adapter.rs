//! Which device: adapters of the system, what they offer, and the choice of one.
//!
//! By default the best real GPU, discrete before integrated before virtual; a software adapter only when it is asked for or
//! when there is nothing else.

use std::fmt;
use std::sync::LazyLock;

use resflow_backend::BackendError;

use crate::cooperative::{self, CooperativeTile, Split};

/// The environment variable that [`AdapterChoice::from_env`] reads: an index or a part of a name.
pub const ADAPTER_VARIABLE: &str = "RESFLOW_ADAPTER";

/// What an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU behind a hypervisor.
    Virtual,
    /// A driver that does not say.
    Other,
    /// The processor itself, for testing.
    Software,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Virtual => "virtual GPU",
            Self::Other => "unknown kind",
            Self::Software => "software",
        })
    }
}

/// An adapter of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its number in [`adapters`].
    pub index: usize,
    /// The name that its driver gives.
    pub name: String,
    /// What it is.
    pub kind: AdapterKind,
    /// Vulkan, Metal or DX12.
    pub api: String,
    /// The driver and its version.
    pub driver: String,
    /// The largest tensor, in bytes.
    pub largest_tensor: u64,
    /// Whether it multiplies half-precision matrices in hardware, see [`Precision`](crate::Precision).
    pub cooperative_matrices: bool,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}, {})", self.name, self.kind, self.api, self.driver)
    }
}

/// Which adapter to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AdapterChoice {
    /// The best GPU; a software adapter if there is no other.
    #[default]
    Best,
    /// By its number in [`adapters`]; where there is no such number, by the name that contains it.
    Index(usize),
    /// The first whose name contains this, in any case of letters.
    Name(String),
}

impl AdapterChoice {
    /// What the environment variable `RESFLOW_ADAPTER` says; the best where it is not set or empty.
    pub fn from_env() -> Self {
        std::env::var(ADAPTER_VARIABLE).map_or(Self::Best, |text| Self::parse(&text))
    }

    /// An index or a part of a name; the best for nothing.
    pub fn parse(text: &str) -> Self {
        match (text.trim(), text.trim().parse()) {
            ("", _) => Self::Best,
            (_, Ok(index)) => Self::Index(index),
            (name, Err(_)) => Self::Name(name.to_owned()),
        }
    }

    /// The number of the chosen adapter.
    fn pick(&self, infos: &[AdapterInfo]) -> Result<usize, BackendError> {
        let named = |name: &str| infos.iter().find(|info| info.name.to_lowercase().contains(name));
        let found = match self {
            Self::Best => infos.iter().min_by_key(|info| (info.kind, info.index)),
            // the number may also be that of a model
            Self::Index(index) => infos.get(*index).or_else(|| named(&index.to_string())),
            Self::Name(name) => named(&name.to_lowercase()),
        };
        found.map(|info| info.index).ok_or_else(|| {
            let known: Vec<String> = infos.iter().map(|info| format!("{}: {info}", info.index)).collect();
            BackendError::NoDevice(match self {
                _ if known.is_empty() => {
                    "no Vulkan, Metal or DX12 driver answers; install one (on Debian: mesa-vulkan-drivers)".to_owned()
                }
                Self::Index(index) => format!("there is no adapter {index}; there are {}", known.join(", ")),
                Self::Name(name) => format!("no adapter's name contains {name:?}; there are {}", known.join(", ")),
                Self::Best => "no adapter".to_owned(),
            })
        })
    }
}

/// All adapters of this system.
pub fn adapters() -> Vec<AdapterInfo> {
    enumerate().iter().enumerate().map(|(index, adapter)| info(index, adapter)).collect()
}

/// No GL: it would answer silently where Vulkan is missing, without what this backend needs.
const BACKENDS: wgpu::Backends = wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);

/// Loaded drivers, once for the process: NVIDIA's on Linux can crash where threads load it at the same time
/// (<https://github.com/gfx-rs/wgpu/issues/5930>).
static INSTANCE: LazyLock<wgpu::Instance> = LazyLock::new(|| {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = BACKENDS;
    wgpu::Instance::new(descriptor)
});

fn enumerate() -> Vec<wgpu::Adapter> {
    pollster::block_on(INSTANCE.enumerate_adapters(BACKENDS))
}

fn info(index: usize, adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    AdapterInfo {
        index,
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
            wgpu::DeviceType::Other => AdapterKind::Other,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
        },
        api: format!("{:?}", info.backend),
        driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
        name: info.name,
        largest_tensor: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        cooperative_matrices: !cooperative_tiles(adapter, Split::F16x3).is_empty(),
    }
}

/// What kernels with cooperative matrices need.
pub(crate) const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16).union(wgpu::Features::SUBGROUP);

/// The tiles of cooperative matrices that an adapter can use, the largest first; none where it lacks [`COOPERATIVE`].
pub(crate) fn cooperative_tiles(adapter: &wgpu::Adapter, split: Split) -> Vec<CooperativeTile> {
    if !adapter.features().contains(COOPERATIVE) {
        return Vec::new();
    }
    let (properties, own) = (adapter.cooperative_matrix_properties(), adapter.get_info());
    let subgroup = [own.subgroup_min_size, own.subgroup_max_size];
    cooperative::tiles(&properties, subgroup, &adapter.limits(), split)
}

/// The chosen adapter.
pub(crate) fn choose(choice: &AdapterChoice) -> Result<(wgpu::Adapter, AdapterInfo), BackendError> {
    let mut all = enumerate();
    let infos: Vec<AdapterInfo> = all.iter().enumerate().map(|(index, adapter)| info(index, adapter)).collect();
    let index = choice.pick(&infos)?;
    Ok((all.swap_remove(index), infos[index].clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(index: usize, name: &str, kind: AdapterKind) -> AdapterInfo {
        let text = String::new();
        AdapterInfo {
            index,
            name: name.into(),
            kind,
            api: text.clone(),
            driver: text,
            largest_tensor: 0,
            cooperative_matrices: false,
        }
    }

    #[test]
    fn real_before_software_and_as_asked() {
        let infos = [
            some(0, "llvmpipe", AdapterKind::Software),
            some(1, "Small GPU", AdapterKind::Integrated),
            some(2, "Large GPU 3090", AdapterKind::Discrete),
        ];
        let pick = |text: &str| AdapterChoice::parse(text).pick(&infos);
        assert_eq!(pick(""), Ok(2));
        assert_eq!(pick("0"), Ok(0));
        assert_eq!(pick("LLVM"), Ok(0));
        assert_eq!(pick("small"), Ok(1));
        assert_eq!(pick("3090"), Ok(2));
        for (text, says) in [("7", "no adapter 7"), ("radeon", "\"radeon\"")] {
            let error = pick(text).expect_err("there is none").to_string();
            assert!(error.contains(says) && error.contains("2: Large GPU 3090"), "{error}");
        }
        assert_eq!(AdapterChoice::Best.pick(&infos[..1]), Ok(0));
        let error = AdapterChoice::Best.pick(&[]).expect_err("there is none").to_string();
        assert!(error.contains("driver"), "{error}");
    }
}
