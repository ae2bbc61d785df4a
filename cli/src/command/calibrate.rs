//! `resflow calibrate`: whether a conditional model is as sure as it may be.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::calibration::{Calibration, CalibrationTest, TestQuantity};
use resflow::data::Dataset;
use resflow::with_device;

use crate::arguments::Calibrate;
use crate::data::{Data, first};
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names};
use crate::output::{extension, is_stream, report as report_out, spare_inputs, write_file};
use crate::progress::Progress;
use crate::report::{Places, draw_places};

/// Samples that are drawn at once, between signs of life.
const PIECE: usize = 1 << 15;
/// A p-value below this is not chance.
const CHANCE: f64 = 0.01;
/// The shares of highest density, or of what is nearest, whose coverage is told.
const SHARES: [f64; 3] = [0.5, 0.8, 0.95];

pub(crate) fn run(arguments: &Calibrate) -> Result<()> {
    if let Some(out) = arguments.out.as_deref().filter(|out| !is_stream(out) && extension(out) != "html") {
        return Err(usage(format_args!("--out {}: the file's name must end in .html", out.display())));
    }
    let stored = Stored::open(&arguments.model)?;
    spare_inputs(&[("--out", arguments.out.as_deref())], &[&arguments.data, stored.path()])?;
    if stored.given().is_none() {
        let path = arguments.model.path.display();
        return Err(usage(format_args!("{path} is no conditional model: `resflow fit … --given A,B` makes one")));
    }
    let name = arguments.data.display().to_string();
    let mut options = arguments.reading.options();
    options.model = stored.columns(arguments.matching, None);
    let Data::Stored(opened) = stored.split(Data::open_file(&arguments.data, &options)?, &name)? else {
        return Err(usage(format_args!("{name}: a table is needed")));
    };
    let data = first(opened.data, Some(arguments.rows as usize))?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        calibrate(arguments, &stored, &data, backend)
    })
}

fn calibrate<B: Backend>(arguments: &Calibrate, stored: &Stored, data: &Dataset, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (prepared, name) = (flow.prepare().without_solve_errors(), arguments.data.display().to_string());
    let samples = data.samples();
    let (Some(table), Some(contexts)) = (samples.table(), data.context_rows()) else {
        return Err(usage(format_args!("{name}: a table is needed")));
    };
    if table.rows() == 0 {
        bail!("{name}: no rows");
    }
    let (d, draws) = (table.width(), arguments.draws as usize);
    let key = Key::new(arguments.seed).named("calibrate");
    let own = prepared.log_prob(samples, key.named("score")).with_context(|| name.clone())?.values;
    let mut calibration = Calibration::new(d, key.named("ties"));
    let (mut progress, mut lost) = (Progress::quiet(), 0);
    let at_once = (PIECE / draws).max(1);
    for from in (0..table.rows()).step_by(at_once) {
        let rows: Vec<usize> = (from..table.rows().min(from + at_once)).collect();
        let at = prepared.condition(&contexts.select(&rows)?)?;
        let piece = key.named("draws").split(from as u64);
        let (drawn, log_prob) = at.sample_and_log_prob(draws, piece)?;
        for (k, &row) in rows.iter().enumerate() {
            let own_draws = &drawn.samples.values()[k * draws * d..(k + 1) * draws * d];
            let finite = own_draws.iter().all(|v| v.is_finite());
            if !finite || own[row].is_nan() || calibration.add(table.row(row), own_draws).is_err() {
                lost += 1;
                continue;
            }
            calibration.add_log_probs(own[row], &log_prob.values[k * draws..(k + 1) * draws])?;
        }
        progress.count(from + rows.len(), table.rows(), "rows");
    }
    progress.end();
    if lost > 0 {
        warn(format_args!("{lost} of {} rows are left out: samples of theirs are not finite", table.rows()));
    }
    let tests = calibration.tests().with_context(|| name.clone())?;
    let p_value = calibration.p_value()?;
    let names = column_names(&flow);
    if let Some(out) = &arguments.out {
        write_file(out, page(arguments, &names, &tests, p_value).as_bytes())?;
    }
    let text = if arguments.json {
        format!("{}\n", object(&names, &tests, p_value, calibration.pairs(), draws))
    } else {
        words(&names, &tests, p_value, calibration.pairs(), draws)
    };
    report_out(arguments.out.as_deref(), &text)
}

/// What a test is called.
fn title(names: &[String], quantity: TestQuantity) -> String {
    match quantity {
        TestQuantity::Parameter(j) => names.get(j).cloned().unwrap_or_default(),
        TestQuantity::Reference => "distance from another truth".to_owned(),
        TestQuantity::Density => "log p".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The share of truths within the region that holds a share of the samples: nearest to the reference, of highest density, or
/// in the middle of a column.
fn coverage(test: &CalibrationTest, share: f64) -> f64 {
    let within = |u: &&f64| match test.quantity {
        TestQuantity::Reference => **u <= share,
        TestQuantity::Density => **u >= 1.0 - share,
        _ => (**u - 0.5).abs() <= share / 2.0,
    };
    test.places.iter().filter(within).count() as f64 / test.places.len() as f64
}

fn object(names: &[String], tests: &[CalibrationTest], p_value: f64, pairs: usize, draws: usize) -> serde_json::Value {
    let tests: Vec<_> = tests
        .iter()
        .map(|test| {
            let coverage: Vec<f64> = SHARES.iter().map(|share| coverage(test, *share)).collect();
            serde_json::json!({
                "of": title(names, test.quantity),
                "p_value": test.uniformity.p_value,
                "distance": test.uniformity.distance,
                "shares": SHARES,
                "coverage": coverage,
            })
        })
        .collect();
    serde_json::json!({ "rows": pairs, "draws": draws, "p_value": p_value, "tests": tests })
}

/// What all tests together say.
fn reading(p_value: f64) -> &'static str {
    if p_value < CHANCE {
        "the model is not calibrated: truths do not look like its samples"
    } else {
        "nothing here tells truths from samples of the model"
    }
}

fn words(names: &[String], tests: &[CalibrationTest], p_value: f64, pairs: usize, draws: usize) -> String {
    let wide = tests.iter().map(|test| title(names, test.quantity).chars().count()).max().unwrap_or(0).max(8);
    let mut out = format!("{:<wide$}  p-value   within 50 %  80 %  95 %\n", "");
    for test in tests {
        let [half, most, nearly] = SHARES.map(|share| 100.0 * coverage(test, share));
        let p = test.uniformity.p_value;
        // writing to a String cannot fail
        let _ =
            writeln!(out, "{:<wide$}  {p:<8.2e}  {half:>9.1} {most:>6.1} {nearly:>5.1}", title(names, test.quantity));
    }
    let _ = writeln!(
        out,
        "all         p-value {p_value:.2e} over {pairs} rows, {draws} samples each: {}",
        reading(p_value)
    );
    out
}

fn page(arguments: &Calibrate, names: &[String], tests: &[CalibrationTest], p_value: f64) -> String {
    let places: Vec<Places<'_>> = tests
        .iter()
        .map(|test| Places {
            name: title(names, test.quantity),
            values: &test.places,
            p_value: test.uniformity.p_value,
            coverage: SHARES.map(|share| (share, coverage(test, share))).to_vec(),
        })
        .collect();
    let of = |path: &Path| path.display().to_string();
    draw_places(&of(&arguments.model.path), &of(&arguments.data), reading(p_value), p_value, &places)
}
