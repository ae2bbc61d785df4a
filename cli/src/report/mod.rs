//! `report.html`: what was learnt, in one file that opens anywhere.
//!
//! `excerpt` draws rows of the data, `evidence` computes what is needed of a flow, and a file for each section makes text
//! and SVG of it: `summary`, `categories`, `marginals`, `pairs`, `correlations`, `calibration`, `strange`. `page` is what they stand on,
//! `svg` and `axis` are what they draw with, `statistic` what they count with. All that is drawn is bounded: by columns,
//! by pairs, by points; so the page stays well below a megabyte whatever the data are.

mod axis;
mod calibration;
mod categories;
mod correlations;
mod evidence;
mod excerpt;
mod marginals;
mod page;
mod pairs;
mod places;
mod statistic;
mod strange;
mod summary;
mod svg;

pub(crate) use evidence::{Evidence, RowScores, allowance, estimate};
pub(crate) use excerpt::Excerpt;
pub(crate) use places::{Places, draw_places};
pub(crate) use summary::{Facts, Ladder, Point, Rung, quoted};

/// The page.
pub(crate) fn draw(facts: &Facts, evidence: &Evidence) -> String {
    let sections = [
        summary::lead(facts, evidence),
        summary::draw(facts),
        calibration::draw(evidence),
        strange::draw(evidence),
        categories::draw(evidence),
        marginals::draw(evidence),
        pairs::draw(evidence),
        correlations::draw(evidence),
        summary::further(facts),
    ];
    page::page(&format!("{} — resflow", facts.data), &sections.concat())
}
