//! What kind of values a column has.

use serde::Serialize;

use super::grid::Grid;
use super::sorted::Sorted;

/// The kind of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ColumnKind {
    /// One value in every row.
    Constant,
    /// Few values of a grid, offset + k·step, which come again and again.
    Grid {
        /// The distance of neighbours.
        step: f64,
        /// A value of the grid, the least in size that is not below 0.
        offset: f64,
    },
    /// Few whole numbers: a grid of step 1 through 0.
    Integer,
    /// Anything else: values that hardly come twice, however many decimals they are written with.
    Continuous,
}

impl ColumnKind {
    /// The grid of the values, if they have one.
    pub fn grid(&self) -> Option<Grid> {
        match *self {
            Self::Grid { step, offset } => Grid::new(step, offset).ok(),
            Self::Integer => Grid::new(1.0, 0.0).ok(),
            Self::Constant | Self::Continuous => None,
        }
    }

    /// Of so many rows with these distinct values.
    pub(super) fn of(sorted: &Sorted, rows: usize) -> Self {
        if sorted.values.len() < 2 {
            return Self::Constant;
        }
        match lattice(sorted, rows) {
            None => Self::Continuous,
            Some((step, offset)) if step == 1.0 && offset == 0.0 => Self::Integer,
            Some((step, offset)) => Self::Grid { step, offset },
        }
    }
}

/// A value comes so often in the mean, or the column is continuous.
const REPEATS: usize = 5;
/// So few values are a grid however far apart they are.
const FEW: usize = 50;
/// Else so many of the grid's values between the quartiles occur.
const FILLED: f64 = 0.25;
/// The significant decimals that are tried.
const DIGITS: i32 = 13;

/// The step and offset of the coarsest grid that has all values.
fn lattice(sorted: &Sorted, rows: usize) -> Option<(f64, f64)> {
    let distinct = sorted.values.len();
    if distinct * REPEATS > rows {
        return None;
    }
    let largest = sorted.low().abs().max(sorted.high().abs());
    // what rounding to the precision that the values came in leaves of a decimal
    let single = sorted.values.iter().all(|&v| f64::from(v as f32) == v);
    let whole_precision = |v: f64| (v - v.round()).abs() <= 4.0 * f64::EPSILON * v.abs();
    let single_precision =
        |v: f64| (v - v.round()).abs() <= f64::from(f32::EPSILON) * v.abs() && f64::from(f32::EPSILON) * v.abs() < 0.01;
    let exponent = largest.log10().floor() as i32;
    let scaled = |v: f64, p: i32| if p >= 0 { v * 10_f64.powi(p) } else { v / 10_f64.powi(-p) };
    let (p, units) = (-exponent..-exponent + DIGITS).find_map(|p| {
        // 10^p alone may overflow
        if p.abs() > 300 {
            return None;
        }
        let fits = |&v: &f64| {
            let v = scaled(v, p);
            whole_precision(v) || (single && single_precision(v))
        };
        let all = sorted.values.iter().all(fits);
        all.then(|| (p, sorted.values.iter().map(|&v| scaled(v, p).round() as i64).collect::<Vec<_>>()))
    })?;
    let step = units.windows(2).map(|w| w[0].abs_diff(w[1])).fold(0, gcd);
    if step == 0 {
        // two values that are one to the rounding of their file
        return None;
    }
    if distinct > FEW {
        let quartiles = sorted.quantiles(&[0.25, 0.75]);
        let inside = sorted.values.iter().filter(|v| (quartiles[0]..=quartiles[1]).contains(*v)).count();
        let cells = (scaled(quartiles[1], p) - scaled(quartiles[0], p)) / step as f64 + 1.0;
        if (inside as f64) < FILLED * cells {
            return None;
        }
    }
    let offset = units[0].rem_euclid(step as i64);
    let value = |units: f64| if p >= 0 { units / 10_f64.powi(p) } else { units * 10_f64.powi(-p) };
    Some((value(step as f64), value(offset as f64)))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
