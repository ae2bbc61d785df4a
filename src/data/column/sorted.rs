//! The distinct values of a column in order, with their weights.
//!
//! Equal values are one, so that weight 2 is the row twice. F at a value is the weight below it and half of its own
//! (Hazen 1914); quantiles are linear between values.

/// Distinct values in ascending order, and the total weight of each.
#[derive(Debug, Clone)]
pub(super) struct Sorted {
    pub(super) values: Vec<f64>,
    pub(super) weights: Vec<f64>,
    pub(super) total: f64,
}

impl Sorted {
    /// Takes values with their weights, of which those of weight 0 do not count.
    pub(super) fn of(values: &[f64], weights: Option<&[f64]>) -> Self {
        // as fractions of the largest, so that no sum of them overflows
        let heaviest = weights.map_or(1.0, |weights| weights.iter().copied().fold(0.0, f64::max));
        let mut out = Self { values: Vec::new(), weights: Vec::new(), total: 0.0 };
        let mut add = |value: f64, weight: f64| {
            if out.values.last() == Some(&value) {
                *out.weights.last_mut().expect("one for each value") += weight;
            } else {
                out.values.push(value);
                out.weights.push(weight);
            }
        };
        match weights {
            None => {
                let mut order = values.to_vec();
                order.sort_unstable_by(f64::total_cmp);
                for value in order {
                    add(value, 1.0);
                }
            }
            Some(weights) => {
                let there = values.iter().zip(weights).filter(|(_, w)| **w > 0.0);
                let mut order: Vec<(f64, f64)> = there.map(|(&v, &w)| (v, w / heaviest)).collect();
                order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
                for (value, weight) in order {
                    add(value, weight);
                }
            }
        }
        out.total = out.weights.iter().sum();
        out
    }

    pub(super) fn low(&self) -> f64 {
        self.values.first().copied().unwrap_or(f64::NAN)
    }

    pub(super) fn high(&self) -> f64 {
        self.values.last().copied().unwrap_or(f64::NAN)
    }

    /// The quantiles at ascending probabilities.
    pub(super) fn quantiles(&self, probabilities: &[f64]) -> Vec<f64> {
        let entries = self.values.iter().copied().zip(self.weights.iter().copied());
        quantiles(entries, self.total, probabilities)
    }

    /// The value and the share of the most frequent one; the least of several.
    pub(super) fn most_frequent(&self) -> (f64, f64) {
        let mut most = (f64::NAN, 0.0);
        for (&value, &weight) in self.values.iter().zip(&self.weights) {
            if weight > most.1 {
                most = (value, weight);
            }
        }
        (most.0, most.1 / self.total)
    }

    /// The width of the middle as that of a normal's standard deviation: that between the quartiles, or, where half of
    /// the weight is on one value, between wider quantiles; 0 where even those coincide.
    pub(super) fn robust_scale(&self) -> f64 {
        // p and the normal's distance between its quantiles at p and 1 − p
        let widths = [(0.25, 1.348_979_500_392_163_4), (0.1, 2.563_103_131_089_201), (0.025, 3.919_927_969_080_115)];
        let found = widths.iter().find_map(|&(p, normal)| {
            let q = self.quantiles(&[p, 1.0 - p]);
            // half of each, since the whole may overflow
            let width = (q[1] / normal - q[0] / normal).abs();
            (width.is_normal()).then_some(width)
        });
        found.unwrap_or(0.0)
    }

    /// Whether a thousandth of the weight, or the one value that is furthest out, rules a standard deviation that is
    /// several times the width of the middle.
    pub(super) fn is_ruled_by_few(&self, mean: f64, deviation: f64) -> bool {
        let robust = self.robust_scale();
        if !(robust > 0.0 && deviation > 3.0 * robust) {
            return false;
        }
        let square = |i: usize| ((self.values[i] - mean) / deviation).powi(2) * self.weights[i] / self.total;
        // from both ends inwards, the furthest first
        let (mut first, mut last) = (0, self.values.len() - 1);
        let (mut share, mut weight) = (0.0, 0.0);
        while first < last {
            let next = if mean - self.values[first] > self.values[last] - mean { first } else { last };
            if weight > 0.0 && weight + self.weights[next] > 1e-3 * self.total {
                break;
            }
            weight += self.weights[next];
            share += square(next);
            if next == first { first += 1 } else { last -= 1 }
        }
        share >= 0.5
    }
}

/// The quantiles, at ascending probabilities, of values in ascending order with their weights.
pub(super) fn quantiles(entries: impl Iterator<Item = (f64, f64)>, total: f64, probabilities: &[f64]) -> Vec<f64> {
    let mut out = Vec::with_capacity(probabilities.len());
    let mut wanted = probabilities.iter().map(|p| p * total).peekable();
    let mut entries = entries.peekable();
    let mut below = 0.0;
    let mut last: Option<(f64, f64)> = None;
    while let Some((value, mut weight)) = entries.next() {
        while let Some(&(same, more)) = entries.peek().filter(|(next, _)| *next == value) {
            debug_assert!(same == value);
            weight += more;
            entries.next();
        }
        let middle = below + 0.5 * weight;
        while let Some(place) = wanted.next_if(|place| *place <= middle) {
            out.push(match last {
                None => value,
                Some((start, from)) => {
                    let part = (place - start) / (middle - start);
                    from * (1.0 - part) + value * part
                }
            });
        }
        below += weight;
        last = Some((middle, value));
    }
    let end = last.map_or(f64::NAN, |(_, value)| value);
    out.extend(wanted.map(|_| end));
    out
}
