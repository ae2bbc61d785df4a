//! The choice of a column's map by held-out rows.
//!
//! Candidates for m are the identity, the inverse hyperbolic sine, a monotone spline that takes quantiles to those of a
//! normal, and the spline after the sine. The rows are divided in four; on each quarter a candidate that was fitted to
//! the others is judged by the log density of a normal behind it. A candidate is taken if its mean advantage over the
//! affine map, row by row, is above twice its standard error. Equal rows are in one quarter, which is a function of the
//! row: doubling it is giving it weight 2.

use statrs::distribution::{ContinuousCDF as _, Normal};

use super::marginal::Asinh;
use super::point::Point;
use super::sorted::{Sorted, quantiles};
use super::spline::Spline;

/// The parts of the rows; each is held out once.
const FOLDS: u8 = 4;
/// Rows that are looked at, with all that are further out than [`FAR`].
const MOST_ROWS: f64 = 40_000.0;
/// Beyond so many robust scales a row is always looked at.
const FAR: f64 = 6.0;
/// Distinct values that a choice needs.
const LEAST_VALUES: usize = 60;
/// A smaller advantage is not worth a map, nats a row.
const LEAST_ADVANTAGE: f64 = 0.005;
/// One map over another that is simpler.
const LEAST_FURTHER: f64 = 0.002;
/// A row's log density counts as no less than this, nats, so that one row does not decide by how impossible it is.
const LEAST_DENSITY: f64 = -1e4;
/// Half-widths of the sine's linear middle, in robust scales.
const WIDTHS: [f64; 5] = [0.1, 0.3, 1.0, 3.0, 10.0];

/// What is chosen for a column.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) centre: f64,
    pub(super) scale: f64,
    pub(super) asinh: Option<Asinh>,
    pub(super) spline: Option<Spline>,
}

impl Shape {
    pub(super) fn affine(centre: f64, scale: f64) -> Self {
        Self { centre, scale, asinh: None, spline: None }
    }
}

/// A row in robust units, with its weight and the part that it is in.
#[derive(Debug, Clone, Copy)]
struct Entry {
    t: f64,
    weight: f64,
    fold: u8,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Candidate {
    Asinh,
    Spline,
    Both,
}

/// A candidate that was fitted.
#[derive(Debug, Clone)]
enum Fitted {
    Affine { mean: f64, deviation: f64 },
    Map { asinh: Option<Asinh>, spline: Option<Spline> },
}

impl Fitted {
    /// The log density of a standard normal behind the map, up to a constant.
    fn log_density(&self, t: f64) -> f64 {
        let point = match self {
            Self::Affine { mean, deviation } => {
                Point { value: (t - mean) / deviation, log_slope: -deviation.ln(), bend: 0.0 }
            }
            Self::Map { asinh, spline } => {
                let mut point = Point::start(t);
                if let Some(asinh) = asinh {
                    point = point.then(|t| asinh.evaluate(t));
                }
                if let Some(spline) = spline {
                    point = point.then(|t| spline.evaluate(t));
                }
                point
            }
        };
        point.log_slope - 0.5 * point.value * point.value
    }
}

/// Chooses the map of linked values, of which mean and standard deviation are known; `numbers` are those of the rows.
pub(super) fn choose(y: &[f64], weights: Option<&[f64]>, numbers: &[u64], mean: f64, deviation: f64) -> Shape {
    let sorted = Sorted::of(y, weights);
    let (centre, scale) = (sorted.quantiles(&[0.5])[0], sorted.robust_scale());
    if !(scale.is_normal() && scale > 0.0) {
        return Shape::affine(mean, deviation);
    }
    let ruled = sorted.is_ruled_by_few(mean, deviation);
    let otherwise = if ruled { Shape::affine(centre, scale) } else { Shape::affine(mean, deviation) };
    drop(sorted);
    let entries = entries(y, weights, numbers, centre, scale);
    if entries.len() < LEAST_VALUES {
        return otherwise;
    }
    let width = best_width(&entries);
    let mut best: Option<(Candidate, f64)> = None;
    for candidate in [Candidate::Asinh, Candidate::Spline, Candidate::Both] {
        let Some((advantage, error)) = advantage(&entries, candidate, width) else { continue };
        // where a few rows rule the standard deviation they rule the error of the advantage too
        let enough = if ruled { 0.0 } else { LEAST_ADVANTAGE.max(2.0 * error) };
        if advantage > enough && best.is_none_or(|(_, most)| advantage > most + LEAST_FURTHER) {
            best = Some((candidate, advantage));
        }
    }
    match best.and_then(|(candidate, _)| fit(&entries, None, candidate, width)) {
        Some(Fitted::Map { asinh, spline }) => Shape { centre, scale, asinh, spline },
        _ => otherwise,
    }
}

/// Numbers that are spread over all 64 bits (the end of SplitMix64).
fn mix(number: u64) -> u64 {
    let a = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}

/// The rows to look at, in order, equal ones of a part together.
fn entries(y: &[f64], weights: Option<&[f64]>, numbers: &[u64], centre: f64, scale: f64) -> Vec<Entry> {
    let heaviest = weights.map_or(1.0, |weights| weights.iter().copied().fold(0.0, f64::max));
    let kept = (MOST_ROWS / y.len() as f64).min(1.0);
    let mut entries = Vec::new();
    for (i, (&y, &number)) in y.iter().zip(numbers).enumerate() {
        let t = (y - centre) / scale;
        let weight = weights.map_or(1.0, |weights| weights[i] / heaviest);
        let bits = mix(number);
        let fold = (bits % u64::from(FOLDS)) as u8;
        let chance = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        if !t.is_finite() {
            continue;
        }
        if t.abs() > FAR {
            entries.push(Entry { t, weight, fold });
        } else if chance < kept {
            entries.push(Entry { t, weight: weight / kept, fold });
        }
    }
    entries.sort_unstable_by(|a, b| a.t.total_cmp(&b.t).then(a.fold.cmp(&b.fold)).then(a.weight.total_cmp(&b.weight)));
    entries.dedup_by(|next, own| {
        let same = next.t == own.t && next.fold == own.fold;
        if same {
            own.weight += next.weight;
        }
        same
    });
    entries
}

/// The mean and standard deviation of a function of the rows outside of a part.
fn moments_of(entries: &[Entry], skip: Option<u8>, f: impl Fn(f64) -> f64) -> (f64, f64) {
    let there = || entries.iter().filter(|e| Some(e.fold) != skip);
    let total: f64 = there().map(|e| e.weight).sum();
    let mean = there().map(|e| e.weight * f(e.t)).sum::<f64>() / total;
    let variance = there().map(|e| e.weight * (f(e.t) - mean).powi(2)).sum::<f64>() / total;
    (mean, variance.sqrt())
}

/// The half-width of the sine behind which a normal makes all rows likeliest.
fn best_width(entries: &[Entry]) -> f64 {
    let score = |width: f64| {
        let (_, deviation) = moments_of(entries, None, |t| width * (t / width).asinh());
        let (slope, _) = moments_of(entries, None, |t| -(t / width).hypot(1.0).ln());
        slope - deviation.ln()
    };
    let mut best = (1.0, f64::NEG_INFINITY);
    for width in WIDTHS {
        let score = score(width);
        if score > best.1 {
            best = (width, score);
        }
    }
    best.0
}

/// Fits a candidate to the rows outside of a part.
fn fit(entries: &[Entry], skip: Option<u8>, candidate: Candidate, width: f64) -> Option<Fitted> {
    let asinh = match candidate {
        Candidate::Spline => None,
        Candidate::Asinh | Candidate::Both => {
            let (mean, deviation) = moments_of(entries, skip, |t| width * (t / width).asinh());
            Some(Asinh::new(width, mean, deviation).ok()?)
        }
    };
    if candidate == Candidate::Asinh {
        return Some(Fitted::Map { asinh, spline: None });
    }
    let there = || entries.iter().filter(|e| Some(e.fold) != skip);
    let total: f64 = there().map(|e| e.weight).sum();
    // the number of rows of equal weight that they are worth
    let worth = total * total / there().map(|e| e.weight * e.weight).sum::<f64>();
    let (z, probabilities) = levels(worth)?;
    let found = quantiles(there().map(|e| (e.t, e.weight)), total, &probabilities);
    let before = |t: f64| asinh.map_or(t, |asinh| asinh.evaluate(t).value);
    let spline = Spline::through(found.into_iter().map(before).zip(z))?;
    Some(Fitted::Map { asinh, spline: Some(spline) })
}

/// Evenly spaced z, and the normal's probabilities below them: as many as so many rows are enough for, and so far out that
/// some rows are beyond the last.
fn levels(rows: f64) -> Option<(Vec<f64>, Vec<f64>)> {
    let normal = Normal::new(0.0, 1.0).ok()?;
    let count = (2.0 * rows.cbrt()).round().clamp(8.0, 64.0) as usize;
    let end = normal.inverse_cdf(1.0 - (10.0 / rows).clamp(5e-4, 0.2));
    let z: Vec<f64> = (0..count).map(|k| end * (2.0 * k as f64 / (count - 1) as f64 - 1.0)).collect();
    let probabilities = z.iter().map(|&z| normal.cdf(z)).collect();
    Some((z, probabilities))
}

/// The mean advantage of a candidate over the affine map in log density of the rows held out, nats, and its standard
/// error.
fn advantage(entries: &[Entry], candidate: Candidate, width: f64) -> Option<(f64, f64)> {
    let mut found = Vec::with_capacity(entries.len());
    for fold in 0..FOLDS {
        let (mean, deviation) = moments_of(entries, Some(fold), |t| t);
        let affine = Fitted::Affine { mean, deviation };
        let map = fit(entries, Some(fold), candidate, width)?;
        for e in entries.iter().filter(|e| e.fold == fold) {
            let density = |of: &Fitted| of.log_density(e.t).max(LEAST_DENSITY);
            let difference = density(&map) - density(&affine);
            found.push((e.weight, difference));
        }
    }
    let total: f64 = found.iter().map(|(w, _)| w).sum();
    let mean = found.iter().map(|(w, d)| w * d).sum::<f64>() / total;
    let squares: f64 = found.iter().map(|(w, d)| (w * (d - mean)).powi(2)).sum();
    Some((mean, squares.sqrt() / total))
}
