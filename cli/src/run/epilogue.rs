//! What follows a run over a table: the scores of its rows, which go into the model's file, and its report.
//!
//! Both take their share of a limited time, which [`estimate`](Epilogue::estimate) has set aside. A run given in steps
//! scores a fixed number of rows, so that its model's file is a function of data, settings and seed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use resflow::backend::Backend;
use resflow::flow::{PreparedFlow, Provenance};
use resflow::train::Trainer;
use resflow::{Flow, config::Family};

use crate::data::Data;
use crate::failure::warn;
use crate::model::column_names;
use crate::output::write_file;
use crate::report::{self, Evidence, Excerpt, Facts, Ladder, Point, RowScores, Rung};
use crate::run::directory::RunDirectory;
use crate::run::metrics::{Entry, Metrics};
use crate::run::pace::Pace;

/// The rows that the end of a run looks at.
#[derive(Debug)]
pub(crate) struct Epilogue {
    excerpt: Excerpt,
    /// The numbers of the rows that were held out, where the trainer does not know them.
    held_out: Option<Vec<usize>>,
}

impl Epilogue {
    /// That of a run on some data; none on images.
    pub(crate) fn of(data: &Data) -> Option<Self> {
        Some(Self { excerpt: Excerpt::of(data)?, held_out: None })
    }

    /// Says which rows of the data were held out.
    pub(crate) fn with_held_out(self, numbers: &[usize]) -> Self {
        Self { held_out: Some(numbers.to_vec()), ..self }
    }

    /// The time that it takes, from a small part of it; at most its share of a limited time.
    pub(crate) fn estimate<B: Backend>(&self, flow: &PreparedFlow<B>, limit: Option<Duration>) -> Result<Duration> {
        report::estimate(flow, &self.excerpt, report::allowance(limit))
    }

    /// Scores the rows, writes the model once more with their scores, then the report.
    pub(crate) fn write<B: Backend>(
        mut self,
        trainer: &Trainer<B>,
        data: &str,
        flags: &str,
        pace: &Pace,
        directory: &RunDirectory,
    ) -> Result<()> {
        let start = Instant::now();
        let allowance = report::allowance(pace.limit());
        let until = |share: f64| pace.limit().map(|_| start + allowance.mul_f64(share));
        let held_out = trainer.validation_samples();
        self.excerpt.mark(self.held_out.as_deref().unwrap_or(trainer.validation_numbers()));
        let mut model = trainer.model();
        let prepared = model.prepare().without_solve_errors();
        let scores = RowScores::of(&prepared, &self.excerpt, held_out, [until(0.15), until(0.5)])?;
        model.set_provenance(Provenance { scores: scores.reference(&self.excerpt), ..model.provenance().clone() });
        model.save(directory.model())?;
        let left = if pace.limit().is_some() { allowance.saturating_sub(start.elapsed()) } else { allowance };
        let facts = Facts {
            data: data.to_owned(),
            flags: flags.to_owned(),
            training_rows: self.excerpt.all.map(|all| all.saturating_sub(held_out.len())),
            held_out_rows: held_out.len(),
            seconds: Some(pace.elapsed().as_secs_f64()),
            ..facts(&model, directory.root(), &Metrics::read(&directory.metrics()), &command(directory))
        };
        let evidence = Evidence::gather(&prepared, column_names(&model), self.excerpt, scores, left);
        // the model is worth more than its report
        let written = evidence.and_then(|e| write_file(&directory.report(), report::draw(&facts, &e).as_bytes()));
        if let Err(error) = written {
            warn(format_args!("no report: {error:#}"));
        }
        Ok(())
    }
}

/// What is known of a model and of its training.
pub(crate) fn facts<B: Backend>(flow: &Flow<B>, model: &Path, entries: &[Entry], command: &str) -> Facts {
    let provenance = flow.provenance();
    let history: Vec<Point> = entries
        .iter()
        .map(|e| Point {
            step: e.step,
            training: e.train_nll.unwrap_or(f64::NAN),
            validation: e.val_nll.map(|v| [v, e.val_se.unwrap_or(0.0)]),
        })
        .collect();
    let kind = match flow.config().family() {
        Family::Residual => "residual flow".to_owned(),
        Family::IResNet => "invertible residual network (i-ResNet)".to_owned(),
        Family::Dense => "dense flow (i-DenseNet)".to_owned(),
        Family::Implicit => "implicit flow".to_owned(),
        Family::Monotone => "monotone flow".to_owned(),
        Family::RealNvp => "Real NVP".to_owned(),
        Family::Glow => "Glow".to_owned(),
        Family::FlowPlusPlus => "Flow++".to_owned(),
        Family::Nsf => "neural spline flow".to_owned(),
        Family::Ffjord => "continuous flow (FFJORD)".to_owned(),
        other => format!("flow ({other})"),
    };
    let error = entries.iter().find(|e| e.val_nll.is_some() && e.val_nll == provenance.validation_nll);
    let rung = provenance.validation_nll.map(|nll| Rung {
        name: kind.clone(),
        log_p: -nll,
        standard_error: error.and_then(|e| e.val_se),
    });
    // the Gaussian, and the mixture that training began at
    let fitted = provenance.ladder.as_ref();
    let mut before: Vec<Rung> = Vec::new();
    for rung in fitted.and_then(|ladder| ladder.gaussian()).into_iter().chain(fitted.and_then(|ladder| ladder.chosen()))
    {
        let name = match rung.components {
            1 => format!("Gaussian, {} covariance", rung.covariance),
            k => format!("mixture of {k} Gaussians, {} covariances", rung.covariance),
        };
        if before.iter().all(|own| own.name != name) {
            before.push(Rung { name, log_p: rung.log_prob, standard_error: rung.standard_error });
        }
    }
    Facts {
        model: model.display().to_string(),
        kind,
        parameters: flow.parameters(),
        steps: provenance.steps,
        seconds: entries.last().map(|e| e.seconds),
        seed: provenance.seed,
        precision: if size_of::<B::Elem>() == 4 { "single precision" } else { "double precision" },
        command: command.to_owned(),
        history,
        ladder: rung.map(|rung| Ladder { rungs: before.into_iter().chain([rung]).collect() }),
        ..Facts::default()
    }
}

/// The command that began a run, as its configuration remembers it; empty if it does not.
pub(crate) fn command(directory: &RunDirectory) -> String {
    let text = std::fs::read_to_string(directory.config()).unwrap_or_default();
    let comment = text.lines().next().and_then(|line| line.strip_prefix("# "));
    comment.filter(|c| c.starts_with("resflow fit ")).unwrap_or_default().to_owned()
}
