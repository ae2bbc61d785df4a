//! Tables of categories alone: p(k) is fitted at once and is all of the model.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use resflow::backend::Key;
use resflow::categorical::CategoricalDensity;
use resflow::checkpoint::Archive;
use resflow::config::Family;
use resflow::data::{Categories, Dataset};
use resflow::flow::{LogProb, Provenance, ReferenceScores};
use resflow::invert::Status;
use resflow::train::TrainConfig;

use crate::arguments::{Fit, Model, Sample, Score};
use crate::columnar::{self, Cells, Column, columns_with};
use crate::data::Data;
use crate::evaluate::percentile::Percentiles;
use crate::failure::usage;
use crate::model::{model_columns, model_path, read_archive};
use crate::output::{Format, print, report, spare_inputs, write_file};
use crate::run::directory::RunDirectory;

/// Whether DATA has categories and no numbers.
pub(crate) fn is_all(data: &Data) -> bool {
    data.table().is_some_and(|table| table.width() == 0)
}

/// Fits p(k) and writes it into a run's directory.
pub(crate) fn fit(arguments: &Fit, data: Data) -> Result<()> {
    let name = &arguments.data;
    let Data::Stored(opened) = data else { return Err(usage(format_args!("{name} has no categories"))) };
    let unneeded = [
        ("--resume", arguments.resume),
        ("--config", arguments.config.is_some()),
        ("--model", arguments.model.is_some()),
        ("--steps", arguments.steps.is_some()),
    ];
    if let Some((flag, _)) = unneeded.iter().find(|(_, asked)| *asked) {
        return Err(usage(format_args!("{flag}: {name} has categories and no numbers, there is no flow to train")));
    }
    let directory = RunDirectory::new(&arguments.out);
    directory.claim_if_there()?;
    if !arguments.overwrite {
        directory.spare_old()?;
    }
    let key = Key::new(arguments.seed.unwrap_or(0));
    let rows = opened.data.len();
    let fraction = TrainConfig::for_table(Family::default(), rows).validation_fraction;
    let (training, validation) = opened.data.split(fraction, key.named("split")).with_context(|| name.clone())?;
    let density = CategoricalDensity::fit(training.samples(), validation.samples(), key.named("categories"))?;
    let [of_training, held_out] = [&training, &validation].map(|part| scores(&density, part));
    let (of_training, held_out) = (of_training?, held_out?);
    let provenance = Provenance {
        data: format!("{rows} rows of categories"),
        seed: key.seed(),
        validation_nll: Some(-held_out.mean()),
        scores: ReferenceScores::of(&of_training.values, &held_out.values),
        ..Provenance::default()
    };
    directory.create(arguments.overwrite)?;
    density.save(directory.model(), provenance)?;
    let (root, columns) = (directory.root().display(), density.columns().len());
    print(&format!(
        "validation nll {:.6} ± {:.6} nats, p(k) of {columns} columns of categories\nwrote {root}: model.safetensors\nnext:\n  \
         resflow score {root} {name}\n  resflow sample {root} -n 1000 --out samples.csv\n  resflow inspect {root}\n",
        -held_out.mean(),
        held_out.mean_standard_error(),
    ))
}

/// log p(k) of rows, which is exact.
fn scores(density: &CategoricalDensity, rows: &Dataset) -> Result<LogProb> {
    let categories = rows.categories().context("there are no categories")?;
    let values = density.log_prob(categories)?;
    let (n, zeros) = (values.len(), vec![0.0; values.len()]);
    Ok(LogProb {
        values,
        standard_error: zeros.clone(),
        bias_bound: 0.0,
        log_det: zeros.clone(),
        status: vec![Status::Converged; n],
        solve_error: zeros,
        most_evaluations: 0,
        weights: rows.weights().map(<[f64]>::to_vec),
        replicates: 1,
        estimator: "exact".to_owned(),
    })
}

/// The model of a path, if it is a p(k) alone.
pub(crate) fn open(model: &Model) -> Result<Option<Archive>> {
    let path = model_path(model)?;
    let archive = read_archive(&path)?;
    Ok(CategoricalDensity::is_in(&archive).then_some(archive))
}

pub(crate) fn score(arguments: &Score, archive: &Archive) -> Result<()> {
    let (density, provenance) = CategoricalDensity::from_archive(archive)?;
    let data = std::path::Path::new(&arguments.data);
    spare_inputs(&[("--out", arguments.out.as_deref())], &[data, &model_path(&arguments.model)?])?;
    let mut options = arguments.reading.options();
    options.model = Some(model_columns(&density, arguments.matching, arguments.weight.as_deref()));
    let opened = Data::open_file(data, &options)?.weighted_by(arguments.weight.as_deref(), &arguments.data)?;
    let dropped = opened.dropped().to_vec();
    let Data::Stored(opened) = opened else { return Err(usage(format_args!("{}: a table is needed", arguments.data))) };
    let found = scores(&density, &opened.data).with_context(|| arguments.data.clone())?;
    let percentiles = Percentiles::of(&found, |_| true, provenance.scores.as_ref(), arguments.contamination)?;
    if let Some(out) = &arguments.out {
        let mut columns = Vec::new();
        let mut add = |name: &str, cells: Cells| columns.push(Column::new(name, cells.with_rows(&dropped)));
        add("log_prob", Cells::Numbers(found.values.clone()));
        add("se", Cells::Numbers(found.standard_error.clone()));
        if let Some(percentiles) = &percentiles {
            add("percentile", Cells::Numbers(percentiles.values.clone()));
            if let Some(outliers) = percentiles.outliers() {
                add("outlier", Cells::Counts(outliers.map(|outlier| Some(usize::from(outlier))).collect()));
            }
        }
        let bytes = match Format::of(out, None).and_then(Format::columnar) {
            Some(kind) => columnar::write(kind, &columns)?,
            None => columnar::csv(&columns).into_bytes(),
        };
        write_file(out, &bytes)?;
    }
    let (rows, mean, error) = (found.values.len(), found.mean(), found.mean_standard_error());
    let text = if arguments.json {
        let mut object =
            serde_json::json!({ "rows": rows, "mean_log_prob": mean, "mean_log_prob_se": error, "estimator": "exact" });
        if let Some(percentiles) = &percentiles {
            percentiles.summary.add(&mut object);
        }
        format!("{object}\n")
    } else {
        let (nll, words) =
            (-mean, percentiles.as_ref().map(|percentiles| percentiles.summary.lines()).unwrap_or_default());
        format!(
            "mean log p  {mean:.6} ± {error:.6} nats (nll {nll:.6}), {rows} rows\n{words}estimator   exact, p(k) alone\n"
        )
    };
    report(arguments.out.as_deref(), &text)
}

pub(crate) fn sample(arguments: &Sample, archive: &Archive) -> Result<()> {
    let (density, _) = CategoricalDensity::from_archive(archive)?;
    let out = &arguments.out;
    let Some(format) = Format::of(out, arguments.format).filter(|format| !matches!(format, Format::Npy | Format::Png))
    else {
        let out = out.display();
        return Err(usage(format_args!("--out {out}: categories are written to .csv, .parquet or .arrow")));
    };
    format.check(out)?;
    if arguments.certifying.certified {
        return Err(usage("--certified: a model of categories alone is drawn from without an inverse"));
    }
    if let Some(path) = &arguments.given {
        return Err(usage(format_args!("--given {}: the model is no conditional density", path.display())));
    }
    spare_inputs(&[("--out", Some(out))], &[&model_path(&arguments.model)?])?;
    let drawn: Categories = density.sample(0, arguments.n as usize, Key::new(arguments.seed).named("categories"));
    write_file(out, &format.columns(&columns_with(&[], &[], Some(&drawn)))?)?;
    report(Some(out), &format!("{}: {} rows\n", out.display(), drawn.rows()))
}

pub(crate) fn inspect(model: &Model, json: bool, archive: &Archive) -> Result<()> {
    let (density, provenance) = CategoricalDensity::from_archive(archive)?;
    let path = model_path(model)?.display().to_string();
    if json {
        let object = serde_json::json!({
            "model": path,
            "categories": super::inspect::categories_json(density.columns(), Some(&density)),
            "parameters": density.parameters(),
            "provenance": super::inspect::provenance_json(&provenance)?,
        });
        return print(&format!("{}\n", serde_json::to_string_pretty(&object)?));
    }
    let mut out = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // writing to a String cannot fail
        let _ = writeln!(out, "{name:<16}{value}");
    };
    line("model", &path);
    line("log p", &"log p(categories), nats: a probability (mass); there are no numbers");
    for j in 0..density.columns().len() {
        line("category", &super::inspect::category_line(density.columns(), Some(&density), j));
    }
    line("fitted to", &provenance.data);
    if let Some(nll) = provenance.validation_nll {
        line("validation nll", &format_args!("{nll:.4} nats"));
    }
    line("parameters", &density.parameters());
    print(&out)
}
