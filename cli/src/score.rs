//! `resflow score`: log p of rows.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use resflow::backend::{Backend, Key};
use resflow::config::FlowConfig;
use resflow::data::{Table, csv};
use resflow::estimator::{Auto, Estimator, Sharing};
use resflow::log_prob::LogProb;

use crate::arguments::{Precision, Score};
use crate::failure::{usage, warn};
use crate::model::{Stored, with_backend};
use crate::output::{extension, print, write_file};
use crate::rows::Rows;

/// Fresh points of a density, unless a number is given.
const FRESH: u32 = 10_000;

pub(crate) fn run(arguments: &Score) -> Result<()> {
    if let Some(out) = arguments.out.as_ref().filter(|p| p.is_file() || !p.exists())
        && extension(out) != "csv"
    {
        return Err(usage(format_args!("--out {}: the file's name must end in .csv", out.display())));
    }
    let stored = Stored::open(&arguments.model)?;
    let table = match (Rows::open(&arguments.data)?, arguments.rows) {
        (Rows::Density(density), rows) => {
            density.sample(Key::new(arguments.seed).named("test data"), rows.unwrap_or(FRESH) as usize)
        }
        (Rows::File(table), None) => table,
        (Rows::File(_), Some(_)) => return Err(usage("--rows is for built-in densities; a file is scored whole")),
    };
    with_backend!(stored.precision, arguments.model.arithmetic.threads, |backend| {
        score(arguments, &stored, &table, backend)
    })
}

fn score<B: Backend>(arguments: &Score, stored: &Stored, table: &Table, backend: B) -> Result<()> {
    let mut flow = stored.flow(backend)?;
    let estimator = chosen(arguments.estimator.as_ref(), &flow.config().evaluation);
    let replicates = arguments.replicates.map_or(flow.config().replicates, |r| r as usize);
    flow.set_evaluation(estimator, replicates).map_err(usage)?;
    // training's warnings are for `fit`
    if let Estimator::RussianRoulette(roulette) = flow.resolved(false) {
        let bound = flow.links().iter().filter_map(|l| l.lipschitz_bound()).fold(0.0, f64::max);
        roulette.variance_warning(bound).into_iter().for_each(warn);
    }
    let start = Instant::now();
    let scores = flow.log_prob(table, Key::new(arguments.seed).named("score")).context(arguments.data.clone())?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &arguments.out {
        let rows: Vec<f64> = scores.values.iter().zip(&scores.standard_error).flat_map(|(&v, &e)| [v, e]).collect();
        let mut bytes = Vec::new();
        csv::write_values(Some(&["log_prob".to_owned(), "se".to_owned()]), 2, &rows, &mut bytes)?;
        write_file(path, &bytes)?;
    }
    report(arguments, stored.precision, &scores, seconds)
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

fn report(arguments: &Score, precision: Precision, scores: &LogProb, seconds: f64) -> Result<()> {
    let rows = scores.values.len();
    let lost: Vec<usize> = (0..rows).filter(|&i| !scores.values[i].is_finite()).collect();
    if !lost.is_empty() {
        let finite: Vec<f64> = scores.values.iter().copied().filter(|v| v.is_finite()).collect();
        let shown: Vec<_> = lost.iter().take(5).map(|i| (i + 1).to_string()).collect();
        let more = if lost.len() > 5 { ", …" } else { "" };
        let rest = if finite.is_empty() {
            String::new()
        } else {
            format!("; the mean of the others is {:.6}", finite.iter().sum::<f64>() / finite.len() as f64)
        };
        warn(format_args!(
            "log p of {} of {rows} rows is not finite: row {}{more}{rest}",
            lost.len(),
            shown.join(", ")
        ));
    }
    let (mean, error) = (scores.mean(), scores.mean_standard_error());
    if arguments.json {
        let object = serde_json::json!({
            "rows": rows,
            "mean_log_prob": mean,
            "mean_log_prob_se": error,
            "estimator": scores.estimator,
            "replicates": scores.replicates,
            "precision": precision.name(),
            "non_finite_rows": lost.len(),
            "seconds": seconds,
        });
        return print(&format!("{object}\n"));
    }
    if rows == 0 {
        bail!("{}: no rows", arguments.data);
    }
    let each = scores.standard_error.iter().filter(|e| e.is_finite()).sum::<f64>() / rows as f64;
    let replicates = match scores.replicates {
        1 => "error of a row 0".to_owned(),
        n => format!("{n} replicates, mean error of a row {each:.2e}"),
    };
    print(&format!(
        "mean log p  {mean:.6} ± {error:.6} nats (nll {:.6}), {rows} rows\n\
         estimator   {}; {replicates}\n\
         time        {seconds:.2} s in {}\n",
        -mean,
        scores.estimator,
        precision.name()
    ))
}
