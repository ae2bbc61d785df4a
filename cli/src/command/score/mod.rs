//! `resflow score`: log p of rows; of images also bits per dimension, and their classes where a model has them.

mod large;
mod totals;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::config::{FlowConfig, ModelConfig};
use resflow::data::{Dataset, Incomplete, Missing, ToyDensity};
use resflow::device::Precision;
use resflow::estimator::{Auto, Estimator, Phase, Sharing};
use resflow::flow::{Flow, LogProb, PreparedFlow};
use resflow::with_device;

use self::totals::Totals;
use crate::arguments::Score;
use crate::cluster;
use crate::columnar::{self, Cells, Column};
use crate::command::categorical;
use crate::data::given::classes_given;
use crate::data::labels;
use crate::data::{Data, file_of};
use crate::evaluate;
use crate::evaluate::classification::{Classified, Quality};
use crate::evaluate::lacking::Lacking;
use crate::evaluate::outliers::{self, Outliers};
use crate::evaluate::percentile::{Percentiles, Summary};
use crate::failure::{usage, warn};
use crate::model::Stored;
use crate::output::{Format, is_stream, report as report_out, spare_inputs, write_file};
use crate::settings::presets;

/// Fresh points of a density, unless a number is given.
const FRESH: u32 = 10_000;
/// Why a table takes no number of rows.
const WHOLE: &str = "--rows is for built-in densities and images; a file is scored whole";

pub(crate) fn run(arguments: &Score) -> Result<()> {
    if let Some(out) = arguments.out.as_ref().filter(|p| (p.is_file() || !p.exists()) && !is_stream(p)) {
        match Format::of(out, None) {
            Some(format) if format == Format::Csv || format.columnar().is_some() => format.check(out)?,
            _ => {
                let out = out.display();
                return Err(usage(format_args!("--out {out}: the file's name must end in .csv, .parquet or .arrow")));
            }
        }
    }
    if let Some(archive) = categorical::open(&arguments.model)? {
        return categorical::score(arguments, &archive);
    }
    let stored = Stored::open(&arguments.model)?;
    let others = arguments.outliers.as_deref().map_or(Path::new(""), file_of);
    let inputs = [file_of(&arguments.data), others, stored.path()];
    spare_inputs(&[("--out", arguments.out.as_deref())], &inputs)?;
    let mut options = arguments.reading.options();
    options.model = stored.columns(arguments.matching, arguments.weight.as_deref());
    options.image_size = arguments.size.image_size;
    if options.model.is_some() && arguments.rows.is_some() && arguments.data.parse::<ToyDensity>().is_err() {
        return Err(usage(WHOLE));
    }
    if stored.imputes() && arguments.reading.missing.is_none() {
        options.missing = Missing::Keep;
    }
    // of rows the library says why there are no importance weights
    let plain = arguments.weight.is_none() && arguments.outliers.is_none() && arguments.importance.is_none();
    let alone = plain && stored.given().is_none();
    if options.model.is_some()
        && alone
        && let Some(rows) = arguments.largeness.open(file_of(&arguments.data), &options, cluster::group().as_deref())?
    {
        return with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
            large::score(arguments, &stored, &*rows, backend)
        });
    }
    let path = file_of(&arguments.data);
    let part = (arguments.part, arguments.rows);
    // what images are given is their class, which stands in their labels
    if let Some(model) = stored.config().filter(|model| plain && model.images().is_some())
        && let Some(images) = arguments.largeness.open_for(path, &options, part, &model)?
    {
        return with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
            large::score(arguments, &stored, &images, backend)
        });
    }
    arguments.resuming.check_in_memory(&arguments.data)?;
    let data = Data::open_with(&arguments.data, &options)?.weighted_by(arguments.weight.as_deref(), &arguments.data)?;
    let data = stored.split(data, &arguments.data)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        score(arguments, &stored, data, backend)
    })
}

/// The rows or images to score.
fn chosen_data(arguments: &Score, data: Data, model: &ModelConfig) -> Result<Dataset> {
    match (data, arguments.rows) {
        (Data::Density(density), rows) if arguments.part.split.is_none() => {
            let key = Key::new(arguments.seed).named("test data");
            Ok(density.sample(key, rows.unwrap_or(FRESH) as usize).into())
        }
        (data, Some(_)) if data.table().is_some() && model.rows().is_some() => Err(usage(WHOLE)),
        (data, rows) => arguments.part.of(data, &arguments.data, model, rows.map(|n| n as usize)),
    }
}

fn score<B: Backend>(arguments: &Score, stored: &Stored, data: Data, backend: B) -> Result<()> {
    let mut flow = stored.flow(backend)?;
    let other = match &arguments.outliers {
        Some(name) if stored.classes().is_some() => {
            return Err(usage(format_args!("--outliers {name}: they have no class that the model could be given")));
        }
        Some(name) => {
            let mut options = arguments.reading.of_others().options();
            options.model = stored.columns(arguments.matching, None);
            Some((name.as_str(), stored.split(Data::open_with(name, &options)?, name)?))
        }
        None => None,
    };
    if let Some((name, other)) = &other {
        outliers::check(other, name, flow.config())?;
    }
    let dropped = data.dropped().to_vec();
    let names = flow.provenance().classes.clone().filter(|_| flow.config().classes() > 0);
    let data = chosen_data(arguments, data, flow.config())?;
    let data = labels::by_name(data, names.as_deref(), &arguments.data)?;
    let data = classes_given(data, stored, &arguments.data)?;
    set_estimator(arguments, &mut flow)?;
    let model = flow.config();
    let prepared = within(arguments, model, cluster::prepare(&flow)?)?;
    let start = Instant::now();
    let key = evaluate::key(arguments.seed);
    let rows = Incomplete::from(data.clone());
    let is_bound = arguments.importance.is_some() || (model.is_variational() && data.images().is_some());
    let (scores, lacking) = if let Some(draws) = arguments.importance {
        let found = evaluate::importance_bound(&prepared, model, data.samples(), draws as usize, key);
        (found.context(arguments.data.clone())?, None)
    } else if rows.is_complete() {
        (evaluate::log_prob(&prepared, model, data.samples(), key).context(arguments.data.clone())?, None)
    } else {
        let (scores, lacking) = Lacking::score(&flow, &rows, arguments.draws, key).context(arguments.data.clone())?;
        (scores, Some(lacking))
    };
    let classified = Classified::of(&prepared, model, &data, key).context(arguments.data.clone())?;
    let seconds = start.elapsed().as_secs_f64();
    let whole = |row: usize| lacking.as_ref().is_none_or(|lacking| lacking.missing[row] == 0);
    let percentiles = Percentiles::of(&scores, whole, flow.provenance().scores.as_ref(), arguments.contamination)?;
    if let Some(path) = &arguments.out {
        let classes = (classified.as_ref(), names.as_deref());
        let mut columns = scored(model, &scores, is_bound, percentiles.as_ref(), classes, &dropped);
        if let Some(lacking) = &lacking {
            columns.extend(lacking.columns());
        }
        let bytes = match Format::of(path, None).and_then(Format::columnar) {
            Some(kind) => columnar::write(kind, &columns)?,
            None => columnar::csv(&columns).into_bytes(),
        };
        write_file(path, &bytes)?;
    }
    let outliers = match other {
        Some(other) => Some(Outliers::of(&prepared, model, &scores, other, arguments.seed)?),
        None => None,
    };
    let quality = classified.and_then(|c| c.quality);
    let dropped = dropped.len();
    report(
        arguments,
        stored.precision,
        model,
        &Found {
            totals: Totals::of(&scores, |error| is_large(arguments, model, error)),
            is_bound,
            lacking,
            percentiles: percentiles.map(|percentiles| percentiles.summary),
            quality,
            outliers,
            seconds,
            dropped,
        },
    )
}

/// Sets the estimator that scores are made with.
fn set_estimator<B: Backend>(arguments: &Score, flow: &mut Flow<B>) -> Result<()> {
    let estimator = chosen(arguments.estimator.as_ref(), flow.config().evaluation());
    let replicates = arguments.replicates.map_or(flow.config().replicates(), |r| r as usize);
    flow.set_log_prob_estimator(estimator, replicates).map_err(usage)?;
    // training's warnings are for `fit`, and nobody is warned of a law that nobody chose
    if let Estimator::RussianRoulette(roulette) = flow.resolved(Phase::Evaluation)
        && !(arguments.estimator.is_none() && presets::is_own_law(flow.config(), roulette.law))
    {
        let bounds = flow.transforms().iter().filter_map(|t| Some(t.expansion().ratio(t.lipschitz_bound()?)));
        roulette.variance_warning(bounds.fold(0.0, f64::max)).into_iter().for_each(warn);
    }
    Ok(())
}

/// Bounds the standard errors, if that is asked for.
fn within<B: Backend>(arguments: &Score, model: &ModelConfig, prepared: PreparedFlow<B>) -> Result<PreparedFlow<B>> {
    let Some(error) = arguments.standard_error else { return Ok(prepared) };
    // bits per dimension of one nat
    let unit = model.bits_per_dim_error(1.0).unwrap_or(1.0);
    prepared.within(error / unit, arguments.most_replicates as usize).map_err(usage)
}

/// Returns `true` for a standard error above the one that was asked for.
fn is_large(arguments: &Score, model: &ModelConfig, error: f64) -> bool {
    let above = |wanted| error.is_finite() && model.bits_per_dim_error(error).unwrap_or(error) > wanted;
    arguments.standard_error.is_some_and(above)
}

/// What a report is of.
struct Found {
    totals: Totals,
    /// Whether the scores bound log p of bytes, instead of being log p.
    is_bound: bool,
    lacking: Option<Lacking>,
    percentiles: Option<Summary>,
    quality: Option<Quality>,
    outliers: Option<Outliers>,
    seconds: f64,
    /// The rows that lack a value.
    dropped: usize,
}

/// The values of all rows, column by column; rows that were left out have none. Classes may have names.
fn scored(
    model: &ModelConfig,
    scores: &LogProb,
    is_bound: bool,
    percentiles: Option<&Percentiles>,
    (classified, classes): (Option<&Classified>, Option<&[String]>),
    dropped: &[usize],
) -> Vec<Column> {
    let (values, errors) = (&scores.values, &scores.standard_error);
    let mut columns = Vec::new();
    let mut add = |name: &str, cells: Cells| columns.push(Column::new(name, cells.with_rows(dropped)));
    if model.images().is_some() {
        let name = if is_bound { "bits_per_dim_at_most" } else { "bits_per_dim" };
        add(name, Cells::Numbers(values.iter().filter_map(|v| model.bits_per_dim(*v)).collect()));
        add("bits_per_dim_se", Cells::Numbers(errors.iter().filter_map(|e| model.bits_per_dim_error(*e)).collect()));
    }
    add(if is_bound { "log_prob_at_least" } else { "log_prob" }, Cells::Numbers(values.clone()));
    add("se", Cells::Numbers(errors.clone()));
    if let Some(percentiles) = percentiles {
        add("percentile", Cells::Numbers(percentiles.values.clone()));
        if let Some(outliers) = percentiles.outliers() {
            add("outlier", Cells::Counts(outliers.map(|outlier| Some(usize::from(outlier))).collect()));
        }
    }
    if let Some(classified) = classified {
        let (found, confidence): (Vec<usize>, Vec<f64>) = classified.predictions().unzip();
        let name = |names: &[String], class: usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
        let found = found.into_iter();
        add(
            "class",
            match classes {
                Some(names) => Cells::Words(found.map(|class| Some(name(names, class))).collect()),
                None => Cells::Counts(found.map(Some).collect()),
            },
        );
        add("confidence", Cells::Numbers(confidence));
    }
    columns
}

/// The estimator that was asked for; `auto` keeps the model's own alternative.
fn chosen(asked: Option<&Estimator>, own: &Estimator) -> Estimator {
    match (asked, own) {
        (Some(Estimator::Auto(_)), Estimator::RussianRoulette(otherwise)) => {
            Estimator::Auto(Auto { otherwise: otherwise.clone() })
        }
        (Some(Estimator::Auto(_)), Estimator::Auto(_)) | (None, _) => own.clone(),
        (Some(Estimator::Auto(_)), _) => FlowConfig::default().evaluation,
        // in evaluation every row has its own N, whatever training does
        (Some(Estimator::RussianRoulette(roulette)), _) => {
            Estimator::RussianRoulette(roulette.clone().with_sharing(Sharing::Sample))
        }
        (Some(other), _) => other.clone(),
    }
}

/// Says how many rows have a larger standard error than was asked for.
fn warn_of_errors(arguments: &Score, totals: &Totals) {
    let Some(wanted) = arguments.standard_error.filter(|_| totals.above > 0) else { return };
    let (above, rows, most) = (totals.above, totals.rows, arguments.most_replicates);
    warn(format_args!(
        "{above} of {rows} rows have a standard error above {wanted} after {most} replicates; \
         --most-replicates allows more"
    ));
}

/// What the solves came to.
fn line_of_solves(totals: &Totals, row: &str) -> String {
    let failed = match totals.unsolved {
        0 => String::new(),
        n => format!("; {n} of {} {row}s are not solved to the accuracy asked for", totals.rows),
    };
    let error = match totals.solve_error {
        error if error.is_finite() => format!("an error of up to {error:.1e} nats"),
        _ => "an error that is not known".to_owned(),
    };
    format!("solves      leave {error}, by up to {} evaluations{failed}\n", totals.evaluations)
}

fn report(arguments: &Score, precision: Precision, model: &ModelConfig, found: &Found) -> Result<()> {
    let (totals, seconds) = (&found.totals, found.seconds);
    let &Totals { rows, mean, error, each, lost, outside, unsolved, .. } = totals;
    warn_of_lost(totals);
    warn_of_errors(arguments, totals);
    if arguments.json {
        let mut object = serde_json::json!({
            "rows": rows,
            "mean_log_prob": mean,
            "mean_log_prob_se": error,
            "mean_row_se": each,
            "estimator": totals.estimator,
            "replicates": totals.replicates,
            "precision": precision.name(),
            "non_finite_rows": lost,
            "seconds": seconds,
        });
        if found.dropped > 0 {
            object["dropped_rows"] = found.dropped.into();
        }
        if totals.bias > 0.0 {
            // of weights that are not held to a bound nothing is known, which JSON has no number for
            object["bias_bound"] = totals.bias.is_finite().then_some(totals.bias).into();
        }
        if outside > 0 {
            object["out_of_support_rows"] = outside.into();
        }
        if model.family().solves() {
            // where a gradient was not found it is not known, which JSON has no number for
            object["largest_solve_error"] = totals.solve_error.is_finite().then_some(totals.solve_error).into();
            object["most_evaluations"] = totals.evaluations.into();
            object["unsolved_rows"] = unsolved.into();
        }
        if model.images().is_some() {
            object["mean_bits_per_dim"] = model.bits_per_dim(mean).into();
            object["mean_bits_per_dim_se"] = model.bits_per_dim_error(error).into();
            object["mean_image_bits_per_dim_se"] = model.bits_per_dim_error(each).into();
            if found.is_bound {
                object["bound"] = "mean_bits_per_dim is at least, mean_log_prob at most, that of the bytes".into();
            }
        }
        if let (Some(column), Some(effective)) = (&arguments.weight, totals.effective) {
            object["weight"] = column.as_str().into();
            object["effective_rows"] = effective.into();
        }
        add(&mut object, model, found);
        return report_out(arguments.out.as_deref(), &format!("{object}\n"));
    }
    if rows == 0 {
        bail!("{}: no rows", arguments.data);
    }
    let (row, bits) = match (model.bits_per_dim(mean), model.bits_per_dim_error(error)) {
        (Some(bits), Some(error)) => {
            let label = evaluate::bits_per_dim_label(found.is_bound);
            ("image", format!("{label:<12}{bits:.5} ± {error:.5}, {rows} images\n"))
        }
        _ => ("row", String::new()),
    };
    let (least, at_most) = (if found.is_bound { "≥ " } else { "" }, evaluate::at_most(found.is_bound));
    let replicates = match totals.replicates {
        n if arguments.importance.is_some() && n > 1 => {
            format!("mean error of an image {:.2e} bits/dim", model.bits_per_dim_error(each).unwrap_or(each))
        }
        1 => format!("error of {row} 0", row = if row == "row" { "a row" } else { "an image" }),
        n => {
            let least = if arguments.standard_error.is_some() { " at least" } else { "" };
            let of = match model.bits_per_dim_error(each) {
                Some(bits) => format!("of an image {bits:.2e} bits/dim"),
                None => format!("of a row {each:.2e}"),
            };
            format!("{n} replicates{least}, mean error {of}")
        }
    };
    let solved = if model.family().solves() { line_of_solves(totals, row) } else { String::new() };
    let weighted = match (&arguments.weight, totals.effective) {
        (Some(column), Some(effective)) => {
            format!(" weighted by `{column}`, worth {effective:.1} of equal weight")
        }
        _ => String::new(),
    };
    let far = line_of_lost(totals, row);
    report_out(
        arguments.out.as_deref(),
        &format!(
            "{bits}mean log p  {least}{mean:.6} ± {error:.6} nats (nll {at_most}{:.6}), {rows} {row}s{weighted}\n\
         {far}{solved}{}estimator   {}; {replicates}{}\n\
         time        {seconds:.2} s in {}\n",
            -mean,
            beside(arguments, model, found),
            totals.estimator,
            bias_of(totals.bias),
            precision.name()
        ),
    )
}

/// What is known of the bias of a truncated series.
fn bias_of(bound: f64) -> String {
    match bound {
        0.0 => String::new(),
        bound if bound.is_finite() => format!("; cut off, a bias of up to {bound:.1e} nats by the coefficients"),
        _ => "; cut off, with a bias that nothing bounds".into(),
    }
}

/// The line about rows or images whose log p is not finite, if there are any.
fn line_of_lost(totals: &Totals, row: &str) -> String {
    let Totals { rows, lost, outside, .. } = totals;
    match (lost, outside) {
        (0, _) => String::new(),
        (_, 0) => format!("non-finite  {lost} of {rows} {row}s have log p = −∞: the arithmetic overflowed\n"),
        (_, _) => format!(
            "non-finite  {lost} of {rows} {row}s have log p = −∞: {outside} are outside of a column's support, of the others the \
             arithmetic overflowed\n"
        ),
    }
}

/// Adds what is known of percentiles, classes and outliers.
fn add(object: &mut serde_json::Value, model: &ModelConfig, found: &Found) {
    if let Some(lacking) = &found.lacking {
        lacking.add(object);
    }
    if let Some(percentiles) = &found.percentiles {
        percentiles.add(object);
    }
    if let Some(quality) = &found.quality {
        object["accuracy"] = quality.accuracy.into();
        object["accuracy_se"] = quality.accuracy_error.into();
        object["cross_entropy"] = quality.cross_entropy.into();
        object["calibration_error"] = quality.calibration.expected_error.into();
    }
    if let Some(Outliers { scores, auroc }) = &found.outliers {
        object["auroc"] = auroc.map(|a| a.value).into();
        object["auroc_se"] = auroc.map(|a| a.standard_error).into();
        object["outliers_rows"] = scores.values.len().into();
        object["outliers_mean_log_prob"] = scores.mean().into();
        if let Some(bits) = model.bits_per_dim(scores.mean()) {
            object["outliers_mean_bits_per_dim"] = bits.into();
        }
    }
}

/// The same in words, a line each.
fn beside(arguments: &Score, model: &ModelConfig, found: &Found) -> String {
    let mut out = found.lacking.as_ref().map_or(String::new(), Lacking::lines);
    out += &found.percentiles.as_ref().map_or(String::new(), Summary::lines);
    // writing to a String cannot fail
    if let Some(quality) = &found.quality {
        let _ = writeln!(
            out,
            "accuracy    {:.2} ± {:.2} %; cross-entropy {:.4} nats; expected calibration error {:.4}",
            100.0 * quality.accuracy,
            100.0 * quality.accuracy_error,
            quality.cross_entropy.unwrap_or(f64::NAN),
            quality.calibration.expected_error
        );
    }
    if let Some((Outliers { scores, auroc }, name)) = found.outliers.as_ref().zip(arguments.outliers.as_ref()) {
        let mean = match model.bits_per_dim(scores.mean()) {
            Some(bits) => format!("images of {name}, {} {bits:.5}", evaluate::bits_per_dim_label(found.is_bound)),
            None => format!("rows of {name}, mean log p {:.6}", scores.mean()),
        };
        let area = auroc.map_or("none".to_owned(), |a| format!("{:.4} ± {:.4}", a.value, a.standard_error));
        let _ = writeln!(out, "AUROC       {area} by log p, against {} {mean}", scores.values.len());
    }
    out
}

/// Warns of rows without a finite log p.
fn warn_of_lost(totals: &Totals) {
    let Totals { lost, rows, first_lost, finite, .. } = totals;
    if *lost == 0 {
        return;
    }
    let shown: Vec<_> = first_lost.iter().map(|i| (i + 1).to_string()).collect();
    let more = if *lost > shown.len() { ", …" } else { "" };
    let rest = finite.map_or(String::new(), |mean| format!("; the mean of the others is {mean:.6}"));
    warn(format_args!("log p of {lost} of {rows} rows is not finite: row {}{more}{rest}", shown.join(", ")));
}
