//! The types of stored numbers, and their reading in the precision that they were made in.

use safetensors::Dtype;

use crate::checkpoint::Values;

/// A type of numbers that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Scalar {
    pub(super) fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::I64 => Self::I64,
            Dtype::I32 => Self::I32,
            Dtype::I16 => Self::I16,
            Dtype::I8 => Self::I8,
            Dtype::U8 => Self::U8,
            Dtype::BOOL => Self::Bool,
            _ => return None,
        })
    }

    /// Finds the type by the name of torch's storage class.
    pub(super) fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Returns `true` unless the numbers are counts or flags.
    pub(super) fn is_floating(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The numbers at these places, counted in numbers; they must be inside. Half precision becomes single, integers
    /// become double.
    ///
    /// # Errors
    /// Returns the problem in words, a [`String`], if an integer is not exact in double precision.
    pub(super) fn read(self, bytes: &[u8], places: impl Iterator<Item = usize>) -> Result<Values, String> {
        let f32s = |f: &dyn Fn(usize) -> f32, places: &mut dyn Iterator<Item = usize>| {
            Ok(Values::F32(places.map(f).collect()))
        };
        let f64s = |f: &dyn Fn(usize) -> f64, places: &mut dyn Iterator<Item = usize>| {
            Ok(Values::F64(places.map(f).collect()))
        };
        let mut places = places;
        let places = &mut places;
        match self {
            Self::F64 => f64s(&|i| f64::from_le_bytes(word(bytes, i)), places),
            Self::F32 => f32s(&|i| f32::from_le_bytes(word(bytes, i)), places),
            Self::F16 => f32s(&|i| widen_half(u16::from_le_bytes(word(bytes, i))), places),
            Self::BF16 => f32s(&|i| f32::from_bits(u32::from(u16::from_le_bytes(word(bytes, i))) << 16), places),
            Self::I64 => {
                places.map(|i| exact(i64::from_le_bytes(word(bytes, i)))).collect::<Result<_, _>>().map(Values::F64)
            }
            Self::I32 => f64s(&|i| f64::from(i32::from_le_bytes(word(bytes, i))), places),
            Self::I16 => f64s(&|i| f64::from(i16::from_le_bytes(word(bytes, i))), places),
            Self::I8 => f64s(&|i| f64::from(bytes[i] as i8), places),
            Self::U8 => f64s(&|i| f64::from(bytes[i]), places),
            Self::Bool => f64s(&|i| f64::from(u8::from(bytes[i] != 0)), places),
        }
    }
}

/// Number i of so many bytes.
fn word<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[i * N..(i + 1) * N]);
    word
}

fn exact(i: i64) -> Result<f64, String> {
    if i.unsigned_abs() < 1 << 53 { Ok(i as f64) } else { Err(format!("holds {i}, which double precision rounds")) }
}

/// Half precision (1 sign, 5 exponent and 10 fraction bits) is a part of single precision.
fn widen_half(half: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(half >> 15), u32::from(half >> 10 & 31), u32::from(half & 1023));
    let magnitude = match exponent {
        // subnormal: fraction · 2⁻²⁴
        0 => fraction as f32 * f32::from_bits(103 << 23),
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign << 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: (−1)ˢ · 2^(e − 15) · (1 + f/1024), or 2⁻¹⁴ · f/1024 for e = 0.
    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (e, f) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
            let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
            let expected = match e {
                31 if f == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                0 => 2.0_f64.powi(-14) * f,
                _ => 2.0_f64.powi(e - 15) * (1.0 + f),
            };
            let found = f64::from(widen_half(bits));
            assert!(found == sign * expected || found.is_nan() && expected.is_nan(), "{bits:04x}: {found}");
            assert_eq!(found.is_sign_negative(), bits >> 15 == 1);
        }
    }

    #[test]
    fn integers_are_exact_or_refused() {
        let largest = (1_i64 << 53) - 1;
        let read = |i: i64| Scalar::I64.read(&i.to_le_bytes(), 0..1);
        assert_eq!(read(largest), Ok(Values::F64(vec![largest as f64])));
        assert_eq!(read(-largest), Ok(Values::F64(vec![-largest as f64])));
        assert!(read(largest + 1).is_err() && read(i64::MIN).is_err());
        assert_eq!(Scalar::Bool.read(&[0, 1, 7], 0..3), Ok(Values::F64(vec![0.0, 1.0, 1.0])));
        assert_eq!(Scalar::I8.read(&[255, 128], 0..2), Ok(Values::F64(vec![-1.0, -128.0])));
        assert_eq!(Scalar::BF16.read(&[0xc0, 0x3f], 0..1), Ok(Values::F32(vec![1.5])));
    }
}
