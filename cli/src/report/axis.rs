//! Axes: a range, where a value lies in it, and ticks at 1, 2 or 5 times a power of ten that do not overlap; numbers as
//! people write them.

/// Beyond this, differences overflow.
const LARGEST: f64 = 1e307;
/// The width of a character of a label, about, and the gap between two labels.
const CHARACTER: f64 = 6.2;
const GAP: f64 = 14.0;

/// The range of an axis: finite, and not empty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Axis {
    /// The axis between two values; what is not finite is cut off, and a range that is empty is widened.
    pub(super) fn new(low: f64, high: f64) -> Self {
        let bounded = |v: f64| if v.is_nan() { 0.0 } else { v.clamp(-LARGEST, LARGEST) };
        let (a, b) = (bounded(low), bounded(high));
        let (low, high) = (a.min(b), a.max(b));
        let least = 1e-9 * low.abs().max(high.abs());
        if high - low > least {
            return Self { low, high };
        }
        let half = if low.abs() > 0.0 { 0.05 * low.abs().max(high.abs()) } else { 1.0 };
        Self { low: low - half, high: high + half }
    }

    /// The same with some room at both ends, a fraction of its length.
    pub(super) fn padded(self, fraction: f64) -> Self {
        let room = fraction * (self.high - self.low);
        Self::new(self.low - room, self.high + room)
    }

    /// Where a value lies: 0 at the low end, 1 at the high one.
    pub(super) fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Whether a value lies in the range.
    pub(super) fn contains(&self, value: f64) -> bool {
        value >= self.low && value <= self.high
    }

    /// Ticks with labels for an axis of so many pixels; `across` says that labels stand beside one another.
    pub(super) fn ticks(&self, pixels: f64, across: bool) -> Vec<(f64, String)> {
        let mut most = if across { (pixels / 40.0).max(2.0) } else { (pixels / 26.0).max(2.0) };
        loop {
            let ticks = self.ticks_of(most);
            let widest = ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0) as f64;
            let apart = match &ticks[..] {
                [(a, _), (b, _), ..] => (self.place(*b) - self.place(*a)) * pixels,
                _ => f64::INFINITY,
            };
            if !across || apart >= widest * CHARACTER + GAP || most < 1.5 {
                return ticks;
            }
            most *= 0.7;
        }
    }

    fn ticks_of(&self, most: f64) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / most;
        let power = rough.log10().floor();
        let unit = 10_f64.powf(power);
        let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * unit >= rough * 0.999).unwrap_or(10.0);
        let step = factor * unit;
        let (first, last) = ((self.low / step - 1e-6).ceil(), (self.high / step + 1e-6).floor());
        if !(step > 0.0 && first.is_finite() && last - first < 1000.0) {
            return Vec::new();
        }
        let largest = self.low.abs().max(self.high.abs());
        // the power of the step itself, since 10 times the unit is the next one
        let decimals = (-(step * 1.001).log10().floor()).max(0.0) as usize;
        let count = (last - first) as usize;
        (0..=count)
            .map(|i| (first + i as f64) * step)
            .map(|value| {
                (value, if value.abs() < step / 2.0 { "0".to_owned() } else { label(value, step, decimals, largest) })
            })
            .collect()
    }
}

fn label(value: f64, step: f64, decimals: usize, largest: f64) -> String {
    let plain = largest < 99_999.5 && step >= 0.000_999;
    if plain {
        return minus(&format!("{value:.decimals$}"));
    }
    let power = largest.log10().floor();
    let digits = (power - (step * 1.001).log10().floor()).clamp(0.0, 12.0) as usize;
    minus(&format!("{:.digits$}e{power}", value / 10_f64.powf(power)))
}

/// A number with some significant digits, as people write it.
pub(super) fn number(value: f64, significant: usize) -> String {
    if value.is_nan() {
        return "none".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "−∞" }.to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let power = value.abs().log10().floor();
    let text = if (-4.0..9.0).contains(&power) {
        let decimals = (significant as f64 - 1.0 - power).max(0.0) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    } else {
        let text = format!("{value:.*e}", significant.saturating_sub(1));
        match text.split_once('e') {
            Some((digits, power)) if digits.contains('.') => {
                format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => text,
        }
    };
    minus(&text)
}

/// A count with its thousands apart.
pub(super) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        // a space that does not break, thin
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// With a proper minus sign.
pub(super) fn minus(text: &str) -> String {
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, pixels: f64) -> String {
        let ticks = Axis::new(low, high).ticks(pixels, true);
        ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round_and_apart() {
        assert_eq!(labels(0.0, 1.0, 250.0), "0.0 0.2 0.4 0.6 0.8 1.0".replace("0.0", "0"));
        assert_eq!(labels(-3.0, 7.0, 250.0), "−2 0 2 4 6");
        assert_eq!(labels(0.0, 0.012, 250.0), "0 0.005 0.010");
        assert_eq!(labels(0.0, 3e7, 300.0), "0 0.5e7 1.0e7 1.5e7 2.0e7 2.5e7 3.0e7");
        assert_eq!(labels(11.0, 15.0, 250.0), "11 12 13 14 15");
        for (low, high) in [(0.0, 1e-300), (1e9, 1e9 + 1.0), (-1e308, 1e308), (f64::NAN, 1.0), (5.0, 5.0), (0.0, 0.0)] {
            for pixels in [30.0, 200.0, 1000.0] {
                let axis = Axis::new(low, high);
                let ticks = axis.ticks(pixels, true);
                assert!(ticks.len() < 60, "{low} to {high}");
                for pair in ticks.windows(2) {
                    let apart = (axis.place(pair[1].0) - axis.place(pair[0].0)) * pixels;
                    let room = CHARACTER * pair[0].1.chars().count() as f64;
                    assert!(apart > 0.0 && (apart > room || ticks.len() < 4), "{low} to {high} on {pixels}: {ticks:?}");
                    assert_ne!(pair[0].1, pair[1].1, "{low} to {high}");
                }
            }
        }
    }

    #[test]
    fn numbers_as_people_write_them() {
        for (value, text) in [
            (0.0, "0"),
            (12.5, "12.5"),
            (-0.001_234_56, "−0.001235"),
            (1_234_567.8, "1234568"),
            (3e-9, "3e−9"),
            (-1.25e12, "−1.25e12"),
            (f64::NEG_INFINITY, "−∞"),
        ] {
            assert_eq!(number(value, 4), text);
        }
        assert_eq!((count(1234), count(1_234_567)), ("1234".to_owned(), "1\u{202f}234\u{202f}567".to_owned()));
    }
}
