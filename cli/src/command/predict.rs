//! `resflow predict`: the distribution of one column given others, row by row.

use std::fmt::Write as _;

use anyhow::{Context as _, Error, Result};
use resflow::backend::Backend;
use resflow::data::{DataError, Dataset, Table};
use resflow::flow::Prediction;
use resflow::invert::Inversion;
use resflow::with_device;

use crate::arguments::Predict;
use crate::columnar::{self, Cells, Column};
use crate::data::Data;
use crate::data::given::contexts;
use crate::evaluate;
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names};
use crate::output::{Format, is_stream, report as report_out, spare_inputs, write_file};

/// What is predicted from, and what came true where the table has it.
struct Rows {
    contexts: Dataset,
    truth: Option<Table>,
    dropped: Vec<usize>,
}

pub(crate) fn run(arguments: &Predict) -> Result<()> {
    if let Some(out) = &arguments.out {
        match Format::of(out, None) {
            Some(format) if format == Format::Csv || format.columnar().is_some() => format.check(out)?,
            _ => {
                let out = out.display();
                return Err(usage(format_args!("--out {out}: the file's name must end in .csv, .parquet or .arrow")));
            }
        }
    }
    let stored = Stored::open(&arguments.model)?;
    spare_inputs(&[("--out", arguments.out.as_deref())], &[&arguments.data, stored.path()])?;
    let Some(given) = stored.given() else {
        let path = arguments.model.path.display();
        return Err(usage(format_args!("{path} is no conditional model: `resflow fit … --given A,B` makes one")));
    };
    let columns = stored.columns(arguments.matching, None).map_or(0, |columns| columns.width - given.len());
    if columns != 1 {
        return Err(usage(format_args!(
            "the model is of {columns} columns given {}; predictions are of one, `resflow sample` draws the columns together",
            given.join(", ")
        )));
    }
    let rows = rows(arguments, &stored)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        predict(arguments, &stored, &rows, backend)
    })
}

/// Reads the table with the column to predict, or else without.
fn rows(arguments: &Predict, stored: &Stored) -> Result<Rows> {
    let name = arguments.data.display().to_string();
    let mut options = arguments.reading.options();
    options.model = stored.columns(arguments.matching, None);
    // a pipe is read but once: what is there is told by its columns' names, of a file by trying
    match Data::open_file(&arguments.data, &options).and_then(|data| stored.split(data, &name)) {
        Ok(data) => {
            let dropped = data.dropped().to_vec();
            let Data::Stored(opened) = data else { return Err(usage(format_args!("{name}: a table is needed"))) };
            let samples = opened.data.samples();
            let (Some(truth), Some(contexts)) = (samples.table(), opened.data.context_rows()) else {
                return Err(usage(format_args!("{name}: a table is needed")));
            };
            Ok(Rows { contexts, truth: Some(truth.clone()), dropped })
        }
        Err(error) if lacks_truth(&error, stored) && !is_stream(&arguments.data) => {
            let contexts = contexts(&arguments.data, &arguments.reading, arguments.matching, stored)?;
            Ok(Rows { contexts, truth: None, dropped: Vec::new() })
        }
        Err(error) => Err(error),
    }
}

/// Whether a table has all columns of a model but the one that it predicts.
fn lacks_truth(error: &Error, stored: &Stored) -> bool {
    let given = stored.given().unwrap_or_default();
    let source = match error.downcast_ref::<DataError>() {
        Some(DataError::File { source, .. }) => Some(&**source),
        other => other,
    };
    match source {
        Some(DataError::ColumnsMissing { missing, .. }) => missing.iter().all(|name| !given.contains(name)),
        // a table without names has only what is given; the error of another width is in words here
        _ => error.to_string().contains(&format!("the data has {} column", given.len())),
    }
}

fn predict<B: Backend>(arguments: &Predict, stored: &Stored, rows: &Rows, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (prepared, name) = (flow.prepare().without_solve_errors(), arguments.data.display().to_string());
    let at = prepared.condition(&rows.contexts).with_context(|| name.clone())?;
    let prediction = at.predict(&arguments.levels, &Inversion::for_backend::<B>()).with_context(|| name.clone())?;
    if prediction.unsolved() > 0 {
        let unsolved = prediction.unsolved();
        warn(format_args!("{unsolved} quantiles are not solved to the accuracy asked for"));
    }
    let n = prediction.contexts();
    let truth = match &rows.truth {
        Some(truth) => {
            let scored = at.log_prob(truth, evaluate::key(arguments.seed))?;
            let pit = at.distribution(truth, evaluate::key(arguments.seed))?;
            let crps = (0..n).map(|i| prediction.crps(i, truth.row(i)[0])).collect::<Result<Vec<_>, _>>()?;
            Some(Truth { values: truth.values().to_vec(), log_prob: scored.values, pit, crps })
        }
        None => None,
    };
    if let Some(out) = &arguments.out {
        let target = column_names(&flow).remove(0);
        let columns = columns(&prediction, truth.as_ref(), &target, &rows.dropped);
        let bytes = match Format::of(out, None).and_then(Format::columnar) {
            Some(kind) => columnar::write(kind, &columns)?,
            None => columnar::csv(&columns).into_bytes(),
        };
        write_file(out, &bytes)?;
    }
    let text = if arguments.json {
        format!("{}\n", summary(&prediction, truth.as_ref()))
    } else {
        words(&prediction, truth.as_ref())
    };
    report_out(arguments.out.as_deref(), &text)
}

/// What came true, and how good the prediction was.
struct Truth {
    values: Vec<f64>,
    /// Nats.
    log_prob: Vec<f64>,
    pit: Vec<f64>,
    crps: Vec<f64>,
}

fn columns(prediction: &Prediction, truth: Option<&Truth>, target: &str, dropped: &[usize]) -> Vec<Column> {
    let n = prediction.contexts();
    let mut columns = Vec::new();
    let mut add = |name: String, values: Vec<f64>| {
        columns.push(Column::new(&name, Cells::Numbers(values).with_rows(dropped)));
    };
    add("mean".to_owned(), (0..n).map(|i| prediction.mean(i)).collect());
    for (k, level) in prediction.levels().iter().enumerate() {
        add(format!("q{level}"), (0..n).map(|i| prediction.quantiles(i)[k]).collect());
    }
    if let Some(Truth { values, log_prob, pit, crps }) = truth {
        add(target.to_owned(), values.clone());
        add("log_prob".to_owned(), log_prob.clone());
        add("pit".to_owned(), pit.clone());
        add("crps".to_owned(), crps.clone());
    }
    columns
}

/// The mean and its standard error.
fn mean(values: &[f64]) -> [f64; 2] {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    [mean, (variance / n).sqrt()]
}

/// The share of rows below each quantile.
fn below(prediction: &Prediction, truth: &Truth) -> Vec<f64> {
    let n = prediction.contexts();
    let share = |k: usize| (0..n).filter(|&i| truth.values[i] <= prediction.quantiles(i)[k]).count() as f64 / n as f64;
    (0..prediction.levels().len()).map(share).collect()
}

fn summary(prediction: &Prediction, truth: Option<&Truth>) -> serde_json::Value {
    let mut object = serde_json::json!({
        "rows": prediction.contexts(),
        "levels": prediction.levels(),
        "unsolved_quantiles": prediction.unsolved(),
    });
    if let Some(truth) = truth {
        let ([crps, crps_error], [log_prob, log_prob_error]) = (mean(&truth.crps), mean(&truth.log_prob));
        object["mean_crps"] = crps.into();
        object["mean_crps_se"] = crps_error.into();
        object["mean_log_prob"] = log_prob.into();
        object["mean_log_prob_se"] = log_prob_error.into();
        object["below"] = below(prediction, truth).into();
    }
    object
}

fn words(prediction: &Prediction, truth: Option<&Truth>) -> String {
    let n = prediction.contexts();
    let Some(truth) = truth else { return format!("{n} rows predicted; the table does not say what came true\n") };
    let ([crps, crps_error], [log_prob, log_prob_error]) = (mean(&truth.crps), mean(&truth.log_prob));
    let mut out = format!(
        "CRPS        {crps:.6} ± {crps_error:.6} in the column's units, {n} rows\n\
         mean log p  {log_prob:.6} ± {log_prob_error:.6} nats\n"
    );
    for (level, share) in prediction.levels().iter().zip(below(prediction, truth)) {
        // the binomial error of the share, were the level right
        let error = 100.0 * (level * (1.0 - level) / n as f64).sqrt();
        // writing to a String cannot fail
        let _ = writeln!(out, "below q{level:<5} {:.2} ± {error:.2} % of rows", 100.0 * share);
    }
    out
}
