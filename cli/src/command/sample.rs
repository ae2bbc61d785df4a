//! `resflow sample`: rows or images drawn from a model.

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::data::image::{ImageSet, npy as image_npy};
use resflow::data::{Dataset, Table};
use resflow::invert::Inversion;
use resflow::with_device;

use crate::arguments::Sample;
use crate::cluster;
use crate::columnar::columns_with;
use crate::command::categorical;
use crate::command::decoded::{npy_bytes, report_inversion};
use crate::data::given::contexts_of;
use crate::data::model_size;
use crate::failure::usage;
use crate::model::{Stored, column_names};
use crate::output::{Format, report as report_out, spare_inputs, write_file};
use crate::picture::canvas::Axes;
use crate::picture::image_grid;
use crate::picture::plane;
use crate::picture::png::write_png;

/// Values that fit into memory on any machine this runs on.
const MOST: u64 = 1 << 32;

pub(crate) fn run(arguments: &Sample) -> Result<()> {
    let Some(format) = Format::of(&arguments.out, arguments.format) else {
        let out = arguments.out.display();
        let endings = ".csv, .npy, .parquet, .arrow or .png";
        return Err(usage(format_args!("--out {out}: the file's name must end in {endings}")));
    };
    format.check(&arguments.out)?;
    if let Some(archive) = categorical::open(&arguments.model)? {
        return categorical::sample(arguments, &archive);
    }
    let stored = Stored::open(&arguments.model)?;
    spare_inputs(&[("--out", Some(&arguments.out))], &[stored.path()])?;
    let asked = (arguments.given.as_deref(), arguments.class.as_deref());
    let contexts = contexts_of(asked, &arguments.reading, arguments.matching, &stored)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        draw(arguments, format, &stored, contexts, backend)
    })
}

fn draw<B: Backend>(
    arguments: &Sample,
    format: Format,
    stored: &Stored,
    contexts: Option<Dataset>,
    backend: B,
) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (d, model, out) = (flow.dimension(), flow.config(), &arguments.out);
    let each = arguments.n as usize;
    let n = each.saturating_mul(contexts.as_ref().map_or(1, Dataset::len));
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
    let modelled = flow.categories().is_some_and(|categories| categories.density().is_some());
    if modelled && format == Format::Npy {
        let out = out.display();
        return Err(usage(format_args!(
            "--out {out}: an array has no place for categories; .csv, .parquet or .arrow has"
        )));
    }
    if (n as u64).saturating_mul(d as u64) > MOST {
        return Err(usage(format_args!("-n {}: more than 2^32 values at once; use several seeds", arguments.n)));
    }
    let how = Inversion::for_backend::<B>();
    let (prepared, key) = (cluster::prepare(&flow)?, Key::new(arguments.seed));
    let drawn = match &contexts {
        Some(contexts) => prepared.condition(contexts)?.sample_by(each, key, &how)?,
        None => prepared.sample(n, key, &how)?,
    };
    let values = drawn.samples.into_values();
    let report = || report_inversion(&drawn.reports, &how);
    let residual = match (format, model.images()) {
        (Format::Csv | Format::Parquet | Format::Arrow, _) => {
            let mut columns = columns_with(&column_names(&flow), &values, drawn.categories.as_ref());
            if let (Some(contexts), Some(given)) = (&contexts, stored.given()) {
                // each row says what it was given
                let whole = contexts.select(&(0..n).map(|i| i / each.max(1)).collect::<Vec<_>>())?;
                let numbers = whole.table().filter(|table| table.width() > 0);
                let names = &given[..numbers.map_or(0, Table::width)];
                let of_numbers = numbers.map_or(&[][..], Table::values);
                columns.extend(columns_with(names, of_numbers, whole.categories()));
            }
            write_file(out, &format.columns(&columns)?)?;
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
            write_png(&grid, out)?;
            report()?
        }
        (Format::Png, None) => {
            let points: Vec<[f64; 2]> = values.chunks_exact(2).map(|row| [row[0], row[1]]).collect();
            write_png(&plane::scatter("samples", &points, &Axes::around(&points)), out)?;
            report()?
        }
    };
    let what = if model.images().is_some() { "images" } else { "rows" };
    report_out(Some(out), &format!("{}: {n} {what}, round-trip error {residual:.1e}\n", out.display()))
}
