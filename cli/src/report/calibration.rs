//! Whether rows that the model has not seen are as likely under it as its own samples are.
//!
//! If x is distributed as the model says, so is log p(x) as log p of the model's own samples. Hence the probability integral
//! transform of log p,
//!
//! ```text
//! u(x) = share of samples less likely than x
//! ```
//!
//! is uniform then. It is a necessary condition, on one number a row, that works in any dimension.

use std::fmt::Write as _;

use super::Evidence;
use super::axis::{Axis, count, number};
use super::page::{escape, figure, grid, paragraph, section};
use super::statistic::{chance, distance, quantile, share_below, sorted};
use super::svg::{Panel, px};

/// Fewer held-out rows than this say nothing.
const FEWEST: usize = 10;
/// A distance that chance makes less often is not chance.
const CHANCE: f64 = 0.01;
/// Points of the quantile plot.
const POINTS: usize = 60;

/// log p of held-out rows beside that of samples, and what it says.
struct Comparison {
    held_out: Vec<f64>,
    samples: Vec<f64>,
    /// u of each held-out row.
    places: Vec<f64>,
    lost: usize,
}

impl Comparison {
    fn of(held_out: &[f64], samples: &[f64]) -> Self {
        let samples = sorted(samples);
        let places = held_out.iter().map(|s| share_below(&samples, *s)).collect();
        let finite = sorted(held_out);
        Self { lost: held_out.len() - finite.len(), held_out: finite, samples, places }
    }

    /// One sentence or two.
    fn reading(&self) -> String {
        let n = self.places.len();
        let distance =
            distance(&sorted(&self.places), &(0..1000).map(|i| (f64::from(i) + 0.5) / 1000.0).collect::<Vec<_>>());
        let by_chance = chance(distance, n, self.samples.len());
        let mean = self.places.iter().sum::<f64>() / n as f64;
        let ends = self.places.iter().filter(|u| **u < 0.05 || **u > 0.95).count() as f64 / n as f64;
        let half = number(100.0 * mean, 3);
        let figures = format!(
            " (mean percentile {half}, largest distance {} %, which chance makes {})",
            number(100.0 * distance, 2),
            if by_chance < 0.001 {
                "less than once in 1000".to_owned()
            } else {
                format!("{} % of the time", number(100.0 * by_chance, 2))
            }
        );
        let says = if n < FEWEST {
            return format!("Only {n} held-out rows: too few to say whether log p is calibrated.");
        } else if by_chance > CHANCE {
            "Held-out rows are as likely as the model’s own samples: nothing here tells them apart"
        } else if mean < 0.45 {
            "Held-out rows are less likely than the model’s own samples: the model is too sure of itself. It has learnt \
             some of its rows by heart, or these rows are of another kind; more rows, a smaller model or fewer steps help"
        } else if mean > 0.55 {
            "Held-out rows are likelier than the model’s own samples: the model spreads its probability too widely. \
             Training longer or a larger model may help"
        } else if ends > 0.1 {
            "Too many held-out rows are at either end: some lie where the model has too little probability, and too many \
             where it has most"
        } else {
            "Held-out rows crowd in the middle: the model’s samples are more varied in log p than the data"
        };
        format!("{says}{figures}.")
    }
}

/// The section; none without scores of both.
pub(super) fn draw(evidence: &Evidence) -> String {
    let comparison = Comparison::of(&evidence.scores.held_out, &evidence.sample_scores);
    if comparison.samples.is_empty() || comparison.held_out.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "log p of {} held-out rows against log p of {} samples of the model. Were the model exact, each held-out row would \
         be equally likely to stand at any percentile among the samples.",
        count(comparison.places.len()),
        count(comparison.samples.len())
    );
    if comparison.lost > 0 {
        let _ = write!(text, " {} held-out rows have no finite log p and stand at 0.", count(comparison.lost));
    }
    let reading = format!("<p class=\"reading\">{}</p>", escape(&comparison.reading()));
    let pictures = [histogram(&comparison), quantiles(&comparison)];
    let body = paragraph(&text) + &reading + &grid("halves", &pictures);
    section("calibration", "Calibration of log p", &body)
}

/// How many held-out rows stand at which percentiles, and how many chance would put there.
fn histogram(Comparison { places, .. }: &Comparison) -> String {
    let n = places.len();
    let bins = (n / 12).clamp(5, 20);
    let mut counts = vec![0_usize; bins];
    for u in places {
        counts[((u * bins as f64) as usize).min(bins - 1)] += 1;
    }
    let share = |k: f64| 100.0 * k / n as f64;
    // the middle 95 % of a binomial count, by its normal approximation
    let p = 1.0 / bins as f64;
    let (mean, half) = (n as f64 * p, 1.96 * (n as f64 * p * (1.0 - p)).sqrt());
    let most = counts.iter().map(|k| share(*k as f64)).fold(share(mean + half), f64::max);
    let mut panel =
        Panel::new([470.0, 280.0], Axis::new(0.0, 100.0), Axis::new(0.0, 1.08 * most), true).with_margins(16.0, 16.0);
    let (high, low) = (panel.down(share(mean + half)), panel.down(share((mean - half).max(0.0))));
    let width = panel.inner()[0];
    panel.path("band", &format!("M0 {}H{}V{}H0z", px(high), px(width), px(low)));
    let mut steps = format!("M0 {}", px(panel.down(0.0)));
    for (i, k) in counts.iter().enumerate() {
        let _ = write!(
            steps,
            "V{}H{}",
            px(panel.down(share(*k as f64))),
            px(panel.across(100.0 * (i + 1) as f64 / bins as f64))
        );
    }
    let _ = write!(steps, "V{}", px(panel.down(0.0)));
    panel.path("fill", &steps);
    panel.line("even", [[0.0, share(mean)], [100.0, share(mean)]]);
    panel.axes(true, "percentile of log p among samples", "held-out rows, %");
    let title = format!("Histogram of {n} held-out rows over their percentiles among samples, in {bins} bins");
    figure(
        "<b class=\"name\">Where held-out rows stand</b> — level if calibrated; the grey band holds 95 % of level bars",
        &panel.finish(&title),
    )
}

/// Quantiles of log p of held-out rows against those of samples.
fn quantiles(Comparison { held_out, samples, .. }: &Comparison) -> String {
    let n = held_out.len().min(samples.len()).clamp(2, POINTS);
    let points: Vec<[f64; 2]> =
        (0..n).map(|i| (i as f64 + 0.5) / n as f64).map(|q| [quantile(samples, q), quantile(held_out, q)]).collect();
    // the far end of the least likely would squeeze everything else
    let high = quantile(samples, 0.999).max(quantile(held_out, 0.999));
    let least = quantile(samples, 0.005);
    let low = least.min(quantile(held_out, 0.02)).max(high - 2.0 * (high - least));
    let axis = Axis::new(low, high).padded(0.04);
    let mut panel = Panel::new([470.0, 280.0], axis, axis, true).with_margins(16.0, 16.0);
    panel.line("even", [[axis.low, axis.low], [axis.high, axis.high]]);
    let beyond = held_out.iter().filter(|s| **s < axis.low).count();
    panel.dots("held dots", points);
    panel.axes(true, "quantiles of log p of samples, nats", "of held-out rows, nats");
    let [a, b] = [held_out, samples].map(|s| number(quantile(s, 0.5), 4));
    let further = match beyond {
        0 => String::new(),
        n => format!("; {} of the rows lie below the picture", count(n)),
    };
    figure(
        &format!(
            "<b class=\"name\">Quantiles of log p</b> — on the dashed line if calibrated; below it the held-out rows are \
             less likely than samples{further}"
        ),
        &panel.finish(&format!("Quantile plot; median log p of held-out rows {a}, of samples {b} nats")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(n: usize, shift: f64, scale: f64) -> Vec<f64> {
        // the quantile function of a logistic distribution, which is near enough
        (0..n).map(|i| (i as f64 + 0.5) / n as f64).map(|u| shift + scale * (u / (1.0 - u)).ln()).collect()
    }

    #[test]
    fn the_reading_names_what_is_wrong() {
        let samples = normal(5000, 0.0, 1.0);
        let says = |held_out: &[f64]| Comparison::of(held_out, &samples).reading();
        assert!(says(&normal(500, 0.0, 1.0)).contains("nothing here tells them apart"));
        assert!(says(&normal(500, -2.0, 1.0)).contains("too sure of itself"));
        assert!(says(&normal(500, 2.0, 1.0)).contains("too widely"));
        assert!(says(&normal(500, 0.0, 4.0)).contains("either end"));
        assert!(says(&normal(500, 0.0, 0.2)).contains("in the middle"));
        assert!(says(&normal(5, 0.0, 1.0)).contains("too few"));
        assert!(says(&[f64::NEG_INFINITY; 50]).contains("too sure of itself"));
    }
}
