//! `resflow sample`: rows drawn from a model.

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::data::{csv, npy};
use resflow::invert::{Inversion, RowReport, Status};

use crate::arguments::Sample;
use crate::canvas::Axes;
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names, with_backend};
use crate::output::{extension, print, write_file};
use crate::picture;

/// Values that fit into memory on any machine this runs on.
const MOST: u64 = 1 << 32;

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
    with_backend!(stored.precision, arguments.model.arithmetic.threads, |backend| {
        draw(arguments, format, &stored, backend)
    })
}

fn draw<B: Backend>(arguments: &Sample, format: Format, stored: &Stored, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let d = flow.dimension();
    if matches!(format, Format::Png) && d != 2 {
        return Err(usage(format_args!("--out {}: a picture needs two columns, not {d}", arguments.out.display())));
    }
    if arguments.n.saturating_mul(d as u64) > MOST {
        return Err(usage(format_args!("-n {}: more than 2^32 values at once; use several seeds", arguments.n)));
    }
    let how = Inversion::for_backend::<B>();
    let drawn = flow.prepare().sample(arguments.n as usize, Key::new(arguments.seed), &how)?;
    let out = &arguments.out;
    let mut bytes = Vec::new();
    match format {
        Format::Csv => {
            csv::write_values(Some(&column_names(&flow)), d, drawn.rows.values(), &mut bytes)?;
            write_file(out, &bytes)?;
        }
        Format::Npy => {
            npy::write(&drawn.rows, npy::Float::F8, &mut bytes).with_context(|| out.display().to_string())?;
            write_file(out, &bytes)?;
        }
        Format::Png => {
            let points: Vec<[f64; 2]> = drawn.rows.values().chunks_exact(2).map(|row| [row[0], row[1]]).collect();
            picture::write_png(&picture::scatter("samples", &points, &Axes::around(&points)), out)?;
        }
    }
    report_inversion(&drawn.reports, drawn.residual, &how)?;
    print(&format!("{}: {} rows, round-trip error {:.1e}\n", out.display(), arguments.n, drawn.residual))
}

/// Warns of rows that did not reach the accuracy; rows without a value are an error.
pub(crate) fn report_inversion(reports: &[RowReport], residual: f64, how: &Inversion) -> Result<()> {
    let count = |status| reports.iter().filter(|r| r.status == status).count();
    let worst = |status| reports.iter().filter(|r| r.status == status).map(|r| r.error_bound).fold(0.0, f64::max);
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
    Ok(())
}
