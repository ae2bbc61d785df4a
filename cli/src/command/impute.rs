//! `resflow impute`: fills in what rows lack.

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::data::{Incomplete, Missing, Table};
use resflow::invert::Status;
use resflow::with_device;

use crate::arguments::Impute;
use crate::columnar::{self, Cells, Column};
use crate::data::reading;
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names};
use crate::output::{Format, is_stream, report, spare_inputs, write_file};

/// The draws behind means and medians.
const DRAWS: u32 = 100;

pub(crate) fn run(arguments: &Impute) -> Result<()> {
    let out = &arguments.out;
    match Format::of(out, None) {
        Some(format) if format == Format::Csv || format.columnar().is_some() => format.check(out)?,
        _ if is_stream(out) => {}
        _ => {
            let out = out.display();
            return Err(usage(format_args!("--out {out}: the file's name must end in .csv, .parquet or .arrow")));
        }
    }
    let stored = Stored::open(&arguments.model)?;
    spare_inputs(&[("--out", Some(out.as_path()))], &[&arguments.data, stored.path()])?;
    if !stored.imputes() {
        let path = arguments.model.path.display();
        return Err(usage(format_args!(
            "{path} knows no missing values: `resflow fit … --impute` makes a model that does"
        )));
    }
    crate::data::check_there(&arguments.data)?;
    let mut options = arguments.reading.options();
    options.model = stored.columns(arguments.matching, None);
    if arguments.reading.missing.is_none() {
        options.missing = Missing::Keep;
    }
    let rows = Incomplete::from(reading::table(&arguments.data, &options)?.table);
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| impute(
        arguments, &stored, &rows, backend
    ))
}

fn impute<B: Backend>(arguments: &Impute, stored: &Stored, rows: &Incomplete, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let summarised = arguments.mean || arguments.median;
    let draws = arguments.draws.unwrap_or(if summarised { DRAWS } else { 1 }) as usize;
    let name = || arguments.data.display().to_string();
    let key = Key::new(arguments.seed).named("impute");
    let completed = flow.prepare_imputer()?.impute(rows, draws, key).with_context(name)?;
    let lost: Vec<usize> = (0..rows.len() * draws).filter(|&at| completed.status()[at] == Status::NonFinite).collect();
    if let Some(first) = lost.first() {
        let row = first / draws + 1;
        bail!("{}: {} draws overflowed, the first of row {row}: try --precision f64", name(), lost.len());
    }
    let empty = (0..rows.len()).filter(|&i| (0..rows.width()).all(|j| rows.value(i, j).is_none())).count();
    if empty > 0 {
        let rows = rows.len();
        warn(format_args!("{empty} of {rows} rows have no value at all: they are filled in as any row could be"));
    }
    let numbered = !summarised && draws > 1;
    let filled = match (arguments.mean, arguments.median) {
        (true, _) => completed.means(),
        (_, true) => completed.medians(),
        _ => completed.into_table(),
    };
    let bytes = written(&filled, &column_names(&flow), numbered.then_some(draws), &arguments.out)?;
    write_file(&arguments.out, &bytes)?;
    let (cells, lacking) = (rows.missing(), (0..rows.len()).filter(|&i| lacks(rows, i)).count());
    let what = match (arguments.mean, arguments.median) {
        (true, _) => format!("by the mean of {draws} draws"),
        (_, true) => format!("by the median of {draws} draws"),
        _ if draws > 1 => format!("{draws} times each"),
        _ => "once".to_owned(),
    };
    let text = format!("filled in {cells} values of {lacking} of {} rows {what}\n", rows.len());
    report(Some(&arguments.out), &text)
}

fn lacks(rows: &Incomplete, row: usize) -> bool {
    (0..rows.width()).any(|column| rows.value(row, column).is_none())
}

/// The rows as a file, with the number of the draw in front where there are several.
fn written(rows: &Table, names: &[String], draws: Option<usize>, out: &std::path::Path) -> Result<Vec<u8>> {
    let mut columns = Column::of_rows(names, rows.values());
    if let Some(draws) = draws {
        let name = if names.iter().any(|name| name == "draw") { "draw_number" } else { "draw" };
        let numbers = (0..rows.rows()).map(|row| Some(row % draws + 1)).collect();
        columns.insert(0, Column::new(name, Cells::Counts(numbers)));
    }
    Ok(match Format::of(out, None).and_then(Format::columnar) {
        Some(kind) => columnar::write(kind, &columns)?,
        None => columnar::csv(&columns).into_bytes(),
    })
}
