//! `resflow sample`: rows or images drawn from a model.

mod pieces;
mod whole;

use std::ops::Range;

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::data::{Dataset, Table};
use resflow::flow::Decoded;
use resflow::invert::Inversion;
use resflow::with_device;

use crate::arguments::Sample;
use crate::cluster;
use crate::columnar::{Column, columns_with};
use crate::command::categorical;
use crate::data::given::contexts_of;
use crate::failure::usage;
use crate::model::{Stored, column_names};
use crate::output::{Format, report as report_out, spare_inputs};

pub(crate) fn run(arguments: &Sample) -> Result<()> {
    let Some(format) = Format::of(&arguments.out, arguments.format) else {
        let out = arguments.out.display();
        let endings = ".csv, .npy, .parquet, .arrow or .png";
        return Err(usage(format_args!("--out {out}: the file's name must end in {endings}")));
    };
    format.check(&arguments.out)?;
    if !matches!(format, Format::Csv | Format::Npy) {
        let out = arguments.out.display();
        let why = format_args!("--out {out} is written at once; .csv and .npy files are written as rows are drawn");
        arguments.resuming.refuse(why)?;
    }
    if let Some(archive) = categorical::open(&arguments.model)? {
        arguments.resuming.refuse("a model of categories alone is drawn from at once")?;
        return categorical::sample(arguments, &archive);
    }
    let stored = Stored::open(&arguments.model)?;
    let given = arguments.given.as_deref().into_iter();
    spare_inputs(&[("--out", Some(&arguments.out))], &given.chain([stored.path()]).collect::<Vec<_>>())?;
    let asked = (arguments.given.as_deref(), arguments.class.as_deref());
    let contexts = contexts_of(asked, &arguments.reading, arguments.matching, &stored)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        draw(arguments, format, &stored, contexts, backend)
    })
}

/// What is drawn: rows in a format, of each context if there are any.
struct Drawing<'a, B: Backend> {
    arguments: &'a Sample,
    format: Format,
    stored: &'a Stored,
    backend: &'a B,
    contexts: Option<Dataset>,
    /// The names of the columns of numbers.
    names: Vec<String>,
    /// The samples of a context, and those of all.
    each: usize,
    n: usize,
    how: Inversion,
}

fn draw<B: Backend>(
    arguments: &Sample,
    format: Format,
    stored: &Stored,
    contexts: Option<Dataset>,
    backend: B,
) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (model, out) = (flow.config(), &arguments.out);
    let each = arguments.n as usize;
    let n = each.saturating_mul(contexts.as_ref().map_or(1, Dataset::len));
    if arguments.bytes && (model.images().is_none() || format != Format::Npy) {
        return Err(usage("--bytes is for images in a .npy file"));
    }
    if stored.is_modelled() && format == Format::Npy {
        let out = out.display();
        return Err(usage(format_args!(
            "--out {out}: an array has no place for categories; .csv, .parquet or .arrow has"
        )));
    }
    // parts are made by each process alone, what one file holds by all together
    let prepared = arguments.certifying.prepare(&flow)?;
    let prepared = if arguments.resuming.out_parts { cluster::alone(prepared)? } else { cluster::together(prepared)? };
    let (names, how) = (column_names(&flow), Inversion::for_backend::<B>());
    let drawing = Drawing { arguments, format, stored, backend: flow.backend(), contexts, names, each, n, how };
    let key = Key::new(arguments.seed);
    let at = drawing.contexts.as_ref().map(|contexts| prepared.condition(contexts)).transpose()?;
    let sample = |numbers: Range<usize>| {
        Ok(match &at {
            Some(at) => at.sample_range(each, numbers, key, &how)?,
            None => prepared.sample_range(numbers, key, &how)?,
        })
    };
    let is_streamed = matches!(format, Format::Csv | Format::Npy);
    let told =
        if is_streamed { pieces::write(&drawing, model, sample)? } else { whole::write(&drawing, model, sample)? };
    let Some((names, outcome)) = told else { return Ok(()) };
    let what = if model.images().is_some() { "images" } else { "rows" };
    let residual = outcome.residual();
    report_out(Some(out), &format!("{names}: {n} {what}, round-trip error {residual:.1e}\n"))?;
    arguments.certifying.report(out, &outcome)
}

impl<B: Backend> Drawing<'_, B> {
    /// The columns of rows of these numbers, in which each says what it was given.
    fn columns(&self, numbers: Range<usize>, drawn: &Decoded) -> Result<Vec<Column>> {
        let mut columns = columns_with(&self.names, drawn.samples.values(), drawn.categories.as_ref());
        if let (Some(contexts), Some(given)) = (&self.contexts, self.stored.given()) {
            let of_each = contexts.select(&numbers.map(|i| i / self.each.max(1)).collect::<Vec<_>>())?;
            let table = of_each.table().filter(|table| table.width() > 0);
            let names = &given[..table.map_or(0, Table::width)];
            let values = table.map_or(&[][..], Table::values);
            columns.extend(columns_with(names, values, of_each.categories()));
        }
        Ok(columns)
    }
}
