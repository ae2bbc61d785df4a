//! A number on its way through monotone maps, with what a density needs of them.

/// The value of a monotone map y(x) at some x, with its derivatives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// y.
    pub value: f64,
    /// ln dy/dx: what the map adds to a log density.
    pub log_slope: f64,
    /// d(ln dy/dx)/dx: what it adds to the gradient of one.
    pub bend: f64,
}

impl Point {
    /// x itself.
    pub(super) fn start(x: f64) -> Self {
        Self { value: x, log_slope: 0.0, bend: 0.0 }
    }

    /// Goes on through a map that takes this value to `next`.
    pub(super) fn then(self, next: impl FnOnce(f64) -> Self) -> Self {
        let next = next(self.value);
        Self {
            value: next.value,
            log_slope: self.log_slope + next.log_slope,
            bend: self.bend + self.log_slope.exp() * next.bend,
        }
    }
}
