//! Pictures of a flow over two columns: the data, the density exp(log p) on a grid, samples; all on the same axes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use image::RgbImage;
use resflow::backend::{Backend, Key};
use resflow::data::Table;
use resflow::flow::PreparedFlow;
use resflow::invert::Inversion;

use crate::picture::canvas::{Axes, Canvas, SIDE, side_by_side};
use crate::picture::png::write_png;

/// Points of a scatter plot.
pub(crate) const POINTS: usize = 10_000;
/// Cells along a side of the density's grid.
const GRID: usize = 200;
/// Rows of a piece of work, between looks at the clock.
const PIECE: usize = 2000;
/// Rows that an estimate of the cost is measured with.
const PROBE: usize = 1000;

/// The points of a table of two columns, at most [`POINTS`] of them, evenly taken.
pub(crate) fn points(table: &Table) -> Vec<[f64; 2]> {
    let n = table.rows();
    let count = n.min(POINTS);
    (0..count).map(|i| table.row(i * n / count)).map(|row| [row[0], row[1]]).collect()
}

/// The time that one pass of [`draw`] takes for a flow, from a small part of it.
pub(crate) fn estimate<B: Backend>(flow: &PreparedFlow<B>, axes: &Axes) -> Result<Duration> {
    let rows = Table::new(None, 2, cells(axes, 0..PROBE))?;
    let start = Instant::now();
    flow.log_prob(&rows, Key::new(0))?;
    let row = start.elapsed().div_f64(PROBE as f64);
    let start = Instant::now();
    flow.sample(PROBE, Key::new(0), &Inversion::for_backend::<B>())?;
    let sample = start.elapsed().div_f64(PROBE as f64);
    // drawing and encoding four files besides
    let drawing = Duration::from_millis(300);
    Ok(row.mul_f64((GRID * GRID) as f64) + sample.mul_f64(POINTS as f64) + drawing)
}

/// Draws density.png, samples.png, data.png and picture.png into a directory. Samples stop at the deadline.
pub(crate) fn draw<B: Backend>(
    flow: &PreparedFlow<B>,
    data: &[[f64; 2]],
    key: Key,
    deadline: Option<Instant>,
    directory: &Path,
) -> Result<()> {
    let axes = Axes::around(data);
    let density = density(flow, &axes, key)?;
    let mut samples = Vec::new();
    while samples.len() < POINTS && (samples.is_empty() || deadline.is_none_or(|d| Instant::now() < d)) {
        let piece =
            flow.sample(PIECE, key.named("picture").split(samples.len() as u64), &Inversion::for_backend::<B>())?;
        samples.extend(piece.samples.values().chunks_exact(2).map(|row| [row[0], row[1]]));
    }
    let panels = [scatter("data", data, &axes), density, scatter("samples", &samples, &axes)];
    for (name, panel) in ["data.png", "density.png", "samples.png"].iter().zip(&panels) {
        write_png(panel, &directory.join(name))?;
    }
    write_png(&side_by_side(&panels), &directory.join("picture.png"))
}

/// Dots at points.
pub(crate) fn scatter(title: &str, points: &[[f64; 2]], axes: &Axes) -> RgbImage {
    let mut canvas = Canvas::new();
    let ink = colorous::VIRIDIS.eval_continuous(0.15).as_array();
    let opacity = (5000.0 / points.len().max(1) as f64).clamp(0.25, 0.9);
    for &point in points {
        canvas.dot(axes.place(point), ink, opacity);
    }
    canvas.finish(title, axes)
}

/// The middles of some of the grid's cells, row by row from below.
fn cells(axes: &Axes, range: std::ops::Range<usize>) -> Vec<f64> {
    let middle = |i: usize, [low, high]: [f64; 2]| low + (high - low) * (i as f64 + 0.5) / GRID as f64;
    range.flat_map(|cell| [middle(cell % GRID, axes.x), middle(cell / GRID, axes.y)]).collect()
}

/// exp(log p) as colours, from 0 to what all but one in 500 cells stay below.
fn density<B: Backend>(flow: &PreparedFlow<B>, axes: &Axes, key: Key) -> Result<RgbImage> {
    let rows = Table::new(None, 2, cells(axes, 0..GRID * GRID))?;
    let values: Vec<f64> = flow.log_prob(&rows, key)?.values.iter().map(|v| v.exp()).collect();
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let most = sorted.len().checked_sub(1).map_or(1.0, |last| sorted[last - last / 500]).max(f64::MIN_POSITIVE);
    let cell = |i: usize, j: usize| {
        let value = values[j.min(GRID - 1) * GRID + i.min(GRID - 1)];
        if value.is_finite() { value } else { 0.0 }
    };
    let mut canvas = Canvas::new();
    canvas.fill(|x, y| {
        let split = |v: f64| {
            let v = (v / f64::from(SIDE) * GRID as f64 - 0.5).max(0.0);
            (v as usize, v.fract())
        };
        let ((i, u), (j, v)) = (split(x), split(y));
        let below = cell(i, j) * (1.0 - u) + cell(i + 1, j) * u;
        let above = cell(i, j + 1) * (1.0 - u) + cell(i + 1, j + 1) * u;
        let value = (below * (1.0 - v) + above * v) / most;
        colorous::VIRIDIS.eval_continuous(value.clamp(0.0, 1.0)).as_array()
    });
    Ok(canvas.finish("density", axes))
}
