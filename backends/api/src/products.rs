//! The arithmetic of matrix products.

use std::fmt;
use std::str::FromStr;

/// The arithmetic by which matrices are multiplied. Every backend has its own precision; matrix hardware has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Products {
    /// The precision of the backend's numbers.
    #[default]
    F32,
    /// Six products of bf16 on a processor that has them (AMX-BF16, AVX512_BF16): accurate like single precision.
    Bf16x6,
    /// Three such products of bf16: an error of some 2e−6 of |row| |column|.
    Bf16x3,
    /// One such product of bf16: an error of some 1e−3 of |row| |column|.
    Bf16,
    /// Three half-precision products on a GPU's matrix hardware: accurate like single precision.
    F16x3,
    /// One half-precision product on a GPU's matrix hardware: a relative error of 1e−3.
    F16,
}

impl Products {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::F32, Self::Bf16x6, Self::Bf16x3, Self::Bf16, Self::F16x3, Self::F16];

    /// The name in files and arguments, `"bf16x3"` for example.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16x6 => "bf16x6",
            Self::Bf16x3 => "bf16x3",
            Self::Bf16 => "bf16",
            Self::F16x3 => "f16x3",
            Self::F16 => "f16",
        }
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Products {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| format!("products are one of {}", known()))
    }
}
