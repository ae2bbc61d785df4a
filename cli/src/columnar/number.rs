//! Arrow's arrays as doubles, NaN where a value is missing.

use std::iter::repeat_n;

use anyhow::{Result, bail};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array as _, ArrayRef};
use arrow_schema::DataType;

/// The name of a type that is none of numbers. A column of nothing lacks every value.
pub(super) fn other(kind: &DataType) -> Option<&'static str> {
    if kind.is_numeric() || *kind == DataType::Null {
        return None;
    }
    Some(match kind {
        DataType::Boolean => "bool",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "binary",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Timestamp(..) => "timestamp",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Duration(_) => "duration",
        DataType::Interval(_) => "interval",
        DataType::Dictionary(..) => "category",
        DataType::Struct(_) => "struct",
        DataType::Map(..) => "map",
        DataType::Union(..) => "union",
        DataType::RunEndEncoded(..) => "runs",
        _ => "list",
    })
}

/// Adds the numbers of an array; returns how many whole ones were rounded.
pub(super) fn extend(values: &mut Vec<f64>, array: &ArrayRef) -> Result<usize> {
    let mut rounded = 0;
    match array.data_type() {
        DataType::Null => values.extend(repeat_n(f64::NAN, array.len())),
        DataType::Int8 => plain::<Int8Type>(values, array),
        DataType::Int16 => plain::<Int16Type>(values, array),
        DataType::Int32 => plain::<Int32Type>(values, array),
        DataType::Int64 => rounded = whole::<Int64Type>(values, array),
        DataType::UInt8 => plain::<UInt8Type>(values, array),
        DataType::UInt16 => plain::<UInt16Type>(values, array),
        DataType::UInt32 => plain::<UInt32Type>(values, array),
        DataType::UInt64 => rounded = whole::<UInt64Type>(values, array),
        DataType::Float16 => plain::<Float16Type>(values, array),
        DataType::Float32 => plain::<Float32Type>(values, array),
        DataType::Float64 => plain::<Float64Type>(values, array),
        DataType::Decimal32(_, scale) => rounded = decimals::<Decimal32Type>(values, array, *scale),
        DataType::Decimal64(_, scale) => rounded = decimals::<Decimal64Type>(values, array, *scale),
        DataType::Decimal128(_, scale) => rounded = decimals::<Decimal128Type>(values, array, *scale),
        DataType::Decimal256(_, scale) => {
            add::<Decimal256Type>(values, array, |digits| spelled(&digits.to_string(), *scale));
        }
        _ => bail!("a column is of another type than its schema says"),
    }
    Ok(rounded)
}

fn add<T: ArrowPrimitiveType>(values: &mut Vec<f64>, array: &ArrayRef, mut number: impl FnMut(T::Native) -> f64) {
    values.extend(array.as_primitive::<T>().iter().map(|value| value.map_or(f64::NAN, &mut number)));
}

/// Numbers that a double holds exactly.
fn plain<T: ArrowPrimitiveType<Native: Into<f64>>>(values: &mut Vec<f64>, array: &ArrayRef) {
    add::<T>(values, array, Into::into);
}

/// Whole numbers that may have more digits; returns how many lose some.
fn whole<T: ArrowPrimitiveType<Native: Into<i128>>>(values: &mut Vec<f64>, array: &ArrayRef) -> usize {
    let mut rounded = 0;
    add::<T>(values, array, |value| {
        let exact: i128 = value.into();
        let number = exact as f64;
        rounded += usize::from(number as i128 != exact);
        number
    });
    rounded
}

fn decimals<T: ArrowPrimitiveType<Native: Into<i128>>>(values: &mut Vec<f64>, array: &ArrayRef, scale: i8) -> usize {
    if scale == 0 {
        return whole::<T>(values, array);
    }
    add::<T>(values, array, |digits| decimal(digits.into(), scale));
    0
}

/// The double next to digits · 10^−scale, which is what text with these digits is read as.
fn decimal(digits: i128, scale: i8) -> f64 {
    // the quotient of two exact doubles is rounded once
    if digits.unsigned_abs() <= 1 << 53 && (0..=22).contains(&scale) {
        digits as f64 / 10_f64.powi(i32::from(scale))
    } else {
        spelled(&digits.to_string(), scale)
    }
}

fn spelled(digits: &str, scale: i8) -> f64 {
    format!("{digits}e{}", -i32::from(scale)).parse().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_what_their_text_is() {
        for (digits, scale, text) in [
            (110, 2, "1.10"),
            (-5, 22, "-5e-22"),
            (9_007_199_254_740_993, 1, "900719925474099.3"),
            (i128::MIN, 38, "-170141183460469231731687303715884105728e-38"),
            (7, -3, "7000"),
            (0, 9, "0"),
        ] {
            let expected: f64 = text.parse().expect("a number");
            assert_eq!(decimal(digits, scale), expected, "{text}");
            assert_eq!(spelled(&digits.to_string(), scale), expected, "{text}");
        }
    }
}
