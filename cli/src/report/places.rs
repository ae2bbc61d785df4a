//! The page of a calibration: for each test how far the truths' places are from uniform.
//!
//! Drawn is F_n(u) − u, the distribution function of the places less that of the uniform distribution, in the band that it
//! leaves anywhere once in twenty times by chance. Above the line there are too many low places, below it too few.

use super::axis::{Axis, count, number};
use super::page::{escape, figure, grid, page, paragraph, section, table};
use super::svg::{Panel, px};

/// Points of a curve.
const POINTS: usize = 300;
/// Pictures of one page.
const PICTURES: usize = 40;

/// The places of truths among samples, by one test.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub(crate) name: String,
    pub(crate) values: &'a [f64],
    pub(crate) p_value: f64,
    /// Shares of samples, and the shares of truths within them.
    pub(crate) coverage: Vec<(f64, f64)>,
}

/// The page.
pub(crate) fn draw_places(model: &str, data: &str, reading: &str, p_value: f64, all: &[Places<'_>]) -> String {
    let rows = all.iter().map(|one| one.values.len()).max().unwrap_or(0);
    let lead = format!(
        "<h1>Calibration of {}</h1><p class=\"lead\">{} rows of {}: for each, samples of the model given its context, and \
         the place of the truth among them.</p>",
        escape(model),
        count(rows),
        escape(data)
    );
    let p = |value: f64| if value < 0.001 { "below 0.001".to_owned() } else { number(value, 2) };
    let said = format!(
        "<p class=\"reading\">{} (p-value of all tests together {}).</p>",
        escape(&capitalised(reading)),
        p(p_value)
    );
    let header: Vec<String> = all.first().map_or(Vec::new(), |one| {
        one.coverage.iter().map(|(share, _)| format!("within {} %", number(100.0 * share, 3))).collect()
    });
    let header: Vec<&str> = ["by", "p-value"].into_iter().chain(header.iter().map(String::as_str)).collect();
    let lines: Vec<Vec<String>> = all
        .iter()
        .map(|one| {
            let shares = one.coverage.iter().map(|(_, found)| format!("{} %", number(100.0 * found, 3)));
            [escape(&one.name), p(one.p_value)].into_iter().chain(shares).collect()
        })
        .collect();
    let tests = paragraph(
        "Of a right model the places are uniform: as many truths lie within a region that holds 80 % of the samples. Regions \
         are the middle of a column, what is nearest to another row’s truth, and what has the highest log p.",
    ) + &table("What the tests say", &header, &lines);
    let shown = &all[..all.len().min(PICTURES)];
    let mut pictures = paragraph(
        "The share of truths at or below each place, less the place itself. By chance the line leaves the grey band anywhere \
         once in twenty times. A slope up and then down is a model that puts its samples too high, the reverse too low; an S that \
         rises at both ends is a model that is too sure of itself.",
    );
    if shown.len() < all.len() {
        pictures += &paragraph(&format!("The first {} of {}.", count(shown.len()), count(all.len())));
    }
    pictures += &grid("halves", &shown.iter().map(picture).collect::<Vec<_>>());
    let body = lead + &said + &section("tests", "Tests", &tests) + &section("places", "Places", &pictures);
    page(&format!("calibration of {model} — resflow"), &body)
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// F_n(u) − u.
fn picture(one: &Places<'_>) -> String {
    let mut sorted = one.values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len().max(1) as f64;
    let at = |u: f64| sorted.partition_point(|v| *v <= u) as f64 / n - u;
    let points: Vec<[f64; 2]> = (0..=POINTS).map(|i| i as f64 / POINTS as f64).map(|u| [u, at(u)]).collect();
    let band = resflow::calibration::uniform_band(sorted.len(), 0.95).unwrap_or(1.0);
    let most = points.iter().map(|p| p[1].abs()).fold(1.2 * band, f64::max);
    let mut panel = Panel::new([470.0, 240.0], Axis::new(0.0, 1.0), Axis::new(-1.08 * most, 1.08 * most), true)
        .with_margins(16.0, 16.0);
    let (high, low, width) = (panel.down(band), panel.down(-band), panel.inner()[0]);
    panel.path("band", &format!("M0 {}H{}V{}H0z", px(high), px(width), px(low)));
    panel.line("even", [[0.0, 0.0], [1.0, 0.0]]);
    panel.line("model", points);
    panel.axes(true, "place among the samples", "share of truths below, less the place");
    figure(
        &format!("<b class=\"name\">{}</b>", escape(&one.name)),
        &panel.finish(&format!("Distribution function of {} places, less that of uniform ones", sorted.len())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_well_formed_whatever_names_are() {
        let places: Vec<f64> = (0..200).map(|i| (f64::from(i) + 0.5) / 200.0).collect();
        let one = |name: &str| Places {
            name: name.to_owned(),
            values: &places,
            p_value: 0.5,
            coverage: vec![(0.5, 0.49), (0.95, 0.96)],
        };
        let page = draw_places("a<b", "c&d", "nothing here", 1e-5, &[one("<script>"), one("log p")]);
        roxmltree::Document::parse_with_options(
            &page,
            roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() },
        )
        .expect("well-formed");
        assert!(page.contains("below 0.001") && page.contains("Nothing here") && !page.contains("<script>"));
        assert!(draw_places("m", "d", "", 1.0, &[]).contains("Calibration"));
    }
}
