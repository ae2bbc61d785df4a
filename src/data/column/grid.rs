//! A grid: the values offset + k·step with whole k, as counts, dice and rounded measurements have them.
//!
//! A density of values on a grid has no bound. With uniform noise, x̃ = x + (u − ½)·step, it has: the density of x̃,
//! averaged over the cell of x, is the probability of x over the step (Uria et al. 2013, Theis et al. 2016).

use crate::error::ConfigError;

/// The largest whole number up to which doubles are exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The values offset + k·step, k a whole number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    step: f64,
    offset: f64,
    /// 10^p, if step and offset have p decimals: values are rounded to them, so that 0.07 is 0.07 and not 7·0.01.
    decimals: Option<f64>,
}

impl Grid {
    /// Builds the grid offset + k·step.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if the step is not a positive normal number or the offset is not finite.
    pub fn new(step: f64, offset: f64) -> Result<Self, ConfigError> {
        if !(step.is_normal() && step > 0.0) {
            return Err(ConfigError::OutOfRange { name: "step", value: step, expected: "a number above 0" });
        }
        if !offset.is_finite() {
            return Err(ConfigError::OutOfRange { name: "offset", value: offset, expected: "a finite number" });
        }
        let decimals = (0..=22).map(|p| 10_f64.powi(p)).find(|power| {
            let whole = |v: f64| (v - v.round()).abs() <= 1e-9 * v.abs().min(1.0) && v.abs() < EXACT;
            (step * power).round() >= 1.0 && whole(step * power) && whole(offset * power)
        });
        Ok(Self { step, offset, decimals })
    }

    /// The distance of neighbours, in the data's units.
    pub fn step(&self) -> f64 {
        self.step
    }

    /// A value of the grid.
    pub fn offset(&self) -> f64 {
        self.offset
    }

    /// Returns the grid's value next to a number.
    pub fn round(&self, x: f64) -> f64 {
        let value = self.offset + ((x - self.offset) / self.step).round() * self.step;
        match self.decimals {
            // adding 0 makes −0 a plain 0
            Some(power) if (value * power).abs() < EXACT => (value * power).round() / power + 0.0,
            _ => value,
        }
    }

    /// x + (u − ½)·step, for u in (0, 1).
    pub(super) fn spread(&self, x: f64, u: f64) -> f64 {
        x + (u - 0.5) * self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_decimals_that_they_are_written_as() {
        let hundredths = Grid::new(0.01, 0.0).expect("a grid");
        for k in -1000..1000 {
            let text = format!("{}{}.{:02}", if k < 0 { "-" } else { "" }, i32::abs(k) / 100, i32::abs(k) % 100);
            let expected: f64 = text.parse().expect("a number");
            assert_eq!(hundredths.round(expected + 0.004), expected);
            assert_eq!(hundredths.round(expected - 0.004), expected);
        }
        assert_eq!(Grid::new(1.0, 0.5).expect("a grid").round(2.1), 2.5);
        assert_eq!(Grid::new(2e30, 0.0).expect("a grid").round(4.9e30), 4e30);
        assert_eq!(Grid::new(1e-30, 0.0).expect("a grid").round(2.9e-30), 3.0 * 1e-30);
        for (step, offset) in [(0.0, 0.0), (-1.0, 0.0), (f64::NAN, 0.0), (f64::INFINITY, 0.0), (1.0, f64::NAN)] {
            assert!(Grid::new(step, offset).is_err());
        }
    }
}
