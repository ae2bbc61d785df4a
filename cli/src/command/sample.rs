//! `resflow sample`: rows or images drawn from a model.

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::config::ModelConfig;
use resflow::data::image::{ImageSet, ImageStack, npy as image_npy};
use resflow::data::{Table, csv, npy};
use resflow::invert::{Inversion, RowReport, Status};

use crate::arguments::Sample;
use crate::data::model_size;
use crate::device::with_backend;
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names};
use crate::output::{extension, print, write_file};
use crate::picture::canvas::Axes;
use crate::picture::image_grid;
use crate::picture::plane;

/// Values that fit into memory on any machine this runs on.
const MOST: u64 = 1 << 32;

/// A value outside \[0, 1\] by more than this is worth a word.
const CLAMPED: f64 = 1e-5;

#[derive(Debug, Clone, Copy)]
enum Format {
    Csv,
    Npy,
    Png,
}

pub(crate) fn run(arguments: &Sample) -> Result<()> {
    let format = match extension(&arguments.out).as_str() {
        "csv" => Format::Csv,
        "npy" => Format::Npy,
        "png" => Format::Png,
        _ => {
            let out = arguments.out.display();
            return Err(usage(format_args!("--out {out}: the file's name must end in .csv, .npy or .png")));
        }
    };
    let stored = Stored::open(&arguments.model)?;
    with_backend!(stored.precision, &arguments.model.arithmetic, |backend| {
        draw(arguments, format, &stored, backend)
    })
}

fn draw<B: Backend>(arguments: &Sample, format: Format, stored: &Stored, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (d, model, out) = (flow.dimension(), flow.config(), &arguments.out);
    let n = arguments.n as usize;
    match (format, model.images()) {
        (Format::Png, Some(images)) => {
            image_grid::extent(model_size(images), n, image_grid::columns(n))?;
        }
        (Format::Png, None) if d != 2 => {
            return Err(usage(format_args!("--out {}: a picture needs two columns, not {d}", out.display())));
        }
        _ => {}
    }
    if arguments.bytes && (model.images().is_none() || !matches!(format, Format::Npy)) {
        return Err(usage("--bytes is for images in a .npy file"));
    }
    if arguments.n.saturating_mul(d as u64) > MOST {
        return Err(usage(format_args!("-n {}: more than 2^32 values at once; use several seeds", arguments.n)));
    }
    let how = Inversion::for_backend::<B>();
    let drawn = flow.prepare().sample(n, Key::new(arguments.seed), &how)?;
    let values = drawn.rows.into_values();
    let report = || report_inversion(&drawn.reports, &how);
    let residual = match (format, model.images()) {
        (Format::Csv, _) => {
            let mut bytes = Vec::new();
            csv::write_values(Some(&column_names(&flow)), d, &values, &mut bytes)?;
            write_file(out, &bytes)?;
            report()?
        }
        (Format::Npy, images) => {
            let residual = report()?;
            let bytes = match images {
                Some(c) if arguments.bytes => {
                    let bytes = image_grid::bytes(&values, model_size(c), c.bits);
                    let mut file = Vec::new();
                    image_npy::write_bytes(&ImageSet::new(c.height, c.width, c.channels, bytes, None)?, &mut file)?;
                    file
                }
                _ => npy_bytes(Some(model), d, values).with_context(|| out.display().to_string())?,
            };
            write_file(out, &bytes)?;
            residual
        }
        (Format::Png, Some(images)) => {
            let grid = image_grid::draw(&values, model_size(images), images.bits, image_grid::columns(n))?;
            plane::write_png(&grid, out)?;
            report()?
        }
        (Format::Png, None) => {
            let points: Vec<[f64; 2]> = values.chunks_exact(2).map(|row| [row[0], row[1]]).collect();
            plane::write_png(&plane::scatter("samples", &points, &Axes::around(&points)), out)?;
            report()?
        }
    };
    let what = if model.images().is_some() { "images" } else { "rows" };
    print(&format!("{}: {n} {what}, round-trip error {residual:.1e}\n", out.display()))
}

/// Finite values as an array of doubles: `[n, c, h, w]` where they are images of a model, else `[n, d]`. Samples may leave
/// \[0, 1\] by the logit's margin, an array of images may not.
pub(crate) fn npy_bytes(model: Option<&ModelConfig>, d: usize, mut values: Vec<f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(images) = model.and_then(ModelConfig::images) else {
        npy::write(&Table::new(None, d, values)?, npy::Float::F8, &mut bytes)?;
        return Ok(bytes);
    };
    let (mut outside, mut most) = (0_usize, 0.0_f64);
    for value in &mut values {
        let inside = value.clamp(0.0, 1.0);
        let by = (*value - inside).abs();
        outside += usize::from(by > 0.0);
        most = most.max(by);
        *value = inside;
    }
    if most > CLAMPED {
        warn(format_args!("{outside} values were up to {most:.1e} outside 0 to 1 and are written as 0 or 1"));
    }
    let stack = ImageStack::new(images.height, images.width, images.channels, values)?;
    image_npy::write_stack(&stack, npy::Float::F8, &mut bytes)?;
    Ok(bytes)
}

/// Warns of rows that did not reach the accuracy; rows without a value are an error. Returns the largest residual.
pub(crate) fn report_inversion(reports: &[RowReport], how: &Inversion) -> Result<f64> {
    let count = |status| reports.iter().filter(|r| r.status == status).count();
    let worst = |status| reports.iter().filter(|r| r.status == status).map(|r| r.error_bound).fold(0.0, f64::max);
    let residual = reports.iter().map(|r| r.residual).filter(|r| r.is_finite()).fold(0.0, f64::max);
    for status in [Status::FloatFloor, Status::NotConverged] {
        let rows = count(status);
        if rows > 0 {
            warn(format_args!(
                "{rows} of {} rows ended {status}, not within {:.0e}: error bound up to {:.1e} in standardised units, \
                 round-trip error {residual:.1e}",
                reports.len(),
                how.accuracy(),
                worst(status)
            ));
        }
    }
    let lost = count(Status::NonFinite);
    if lost > 0 {
        let first = reports.iter().position(|r| r.status == Status::NonFinite).map_or(0, |i| i + 1);
        bail!("{lost} of {} rows are not finite, the first is row {first}", reports.len());
    }
    Ok(residual)
}
