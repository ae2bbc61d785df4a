//! Samples that are written at once: a picture, or a table by columns.

use std::ops::Range;

use anyhow::Result;
use resflow::backend::Backend;
use resflow::config::ModelConfig;
use resflow::flow::Decoded;

use super::Drawing;
use crate::command::decoded::{Outcome, report_inversion};
use crate::data::model_size;
use crate::failure::usage;
use crate::output::{Format, write_file};
use crate::picture::canvas::Axes;
use crate::picture::image_grid;
use crate::picture::plane;
use crate::picture::png::write_png;

/// Values that fit into memory on any machine this runs on.
const MOST: u64 = 1 << 32;

/// Draws all rows and writes them; the file, and how exactly they were found.
pub(super) fn write<B: Backend>(
    drawing: &Drawing<'_, B>,
    model: &ModelConfig,
    sample: impl Fn(Range<usize>) -> Result<Decoded>,
) -> Result<Option<(String, Outcome)>> {
    let (out, n, d) = (&drawing.arguments.out, drawing.n, drawing.names.len());
    match (drawing.format, model.images()) {
        (Format::Png, Some(images)) => {
            image_grid::extent(model_size(images), n, image_grid::columns(n))?;
        }
        (Format::Png, None) if d != 2 => {
            return Err(usage(format_args!("--out {}: a picture needs two columns, not {d}", out.display())));
        }
        _ => {}
    }
    if (n as u64).saturating_mul(d as u64) > MOST {
        let n = drawing.arguments.n;
        return Err(usage(format_args!(
            "-n {n}: more than 2^32 values at once; a .csv or .npy file is written as rows are drawn"
        )));
    }
    let drawn = sample(0..n)?;
    let values = drawn.samples.values();
    match (drawing.format, model.images()) {
        (Format::Png, Some(images)) => {
            let grid = image_grid::draw(values, model_size(images), images.bits, image_grid::columns(n))?;
            write_png(&grid, out)?;
        }
        (Format::Png, None) => {
            let points: Vec<[f64; 2]> = values.chunks_exact(2).map(|row| [row[0], row[1]]).collect();
            write_png(&plane::scatter("samples", &points, &Axes::around(&points)), out)?;
        }
        (format, _) => write_file(out, &format.columns(&drawing.columns(0..n, &drawn)?)?)?,
    }
    let outcome = report_inversion(&drawn.reports, &drawing.how)?;
    Ok(Some((out.display().to_string(), outcome)))
}
