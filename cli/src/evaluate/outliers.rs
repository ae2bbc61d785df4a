//! Out-of-distribution (OOD) detection: data that a model was not fitted to, and how well log p tells the two apart.

use anyhow::{Context as _, Result};
use resflow::anomaly::{Auroc, auroc};
use resflow::backend::{Backend, Key};
use resflow::config::ModelConfig;
use resflow::flow::LogProb;
use resflow::flow::PreparedFlow;

use crate::data::part::{Chosen, Part};
use crate::data::{Dataset, check_size, model_size};
use crate::evaluate;
use crate::failure::{say, usage, warn};

/// What log p says of outliers.
#[derive(Debug)]
pub(crate) struct Outliers {
    pub(crate) scores: LogProb,
    /// The chance that one of the model's data is likelier than one of them, where there are two of each to compare.
    pub(crate) auroc: Option<Auroc>,
}

impl Outliers {
    /// Those of a data set, at most as many as there are of `inside`, the scores of the model's data.
    pub(crate) fn of<B: Backend>(
        flow: &PreparedFlow<B>,
        model: &ModelConfig,
        inside: &LogProb,
        (name, dataset): (&str, Dataset),
        seed: u64,
    ) -> Result<Self> {
        let data = chosen(dataset, name, model, inside.values.len(), seed)?;
        let context = || format!("outliers {name}");
        // the key of `score`: what is said of them is what `score` says of them alone
        let scores = evaluate::log_prob(flow, model, data.samples(), evaluate::key(seed)).with_context(context)?;
        let [own, others] = [inside, &scores].map(|s| ranked(&s.values));
        let auroc = if own.len() < 2 || others.len() < 2 {
            let (own, others) = (own.len(), others.len());
            warn(format_args!(
                "outliers {name}: no AUROC, which compares at least two of each kind, not {own} and {others}"
            ));
            None
        } else {
            Some(auroc(&own, &others).with_context(context)?)
        };
        let lost = [inside, &scores].map(|s| s.values.iter().filter(|v| v.is_nan()).count());
        if lost != [0, 0] {
            let [own, others] = lost;
            warn(format_args!(
                "outliers {name}: log p of {own} rows of the data and of {others} outliers is not a number; the AUROC \
                 leaves them out"
            ));
        }
        Ok(Self { scores, auroc })
    }
}

/// What can be ranked; ±∞ can.
fn ranked(values: &[f64]) -> Vec<f64> {
    values.iter().copied().filter(|v| !v.is_nan()).collect()
}

/// Whether a model can score a data set, its images once they are of the model's size.
pub(crate) fn check(dataset: &Dataset, name: &str, model: &ModelConfig) -> Result<()> {
    let width = match dataset {
        Dataset::Images(_) if model.images().is_some() => return Ok(()),
        Dataset::Images(data) => return check_size(data.training.size(), name, model),
        Dataset::Stack(stack) => return check_size(stack.size(), name, model),
        Dataset::Table(table) => table.width(),
        Dataset::Density(_) => 2,
    };
    match model.dimension() {
        d if d == width => Ok(()),
        d => Err(usage(format_args!("{name}: rows of {width} numbers, the model is for {d}"))),
    }
}

/// The first of a data set, at most `most`; fresh points of a density.
fn chosen(dataset: Dataset, name: &str, model: &ModelConfig, most: usize, seed: u64) -> Result<Chosen> {
    check(&dataset, name, model)?;
    let part = Part { split: None };
    match (dataset, model.images()) {
        // points of their own even where the data are those of the same density
        (Dataset::Density(density), _) => Ok(Chosen::Rows(density.sample(Key::new(seed).named("outliers"), most))),
        (Dataset::Images(data), Some(config)) => {
            let set = part.images(data, name, Some(most))?;
            let (found, wanted) = (set.size(), model_size(config));
            if found == wanted {
                return Ok(Chosen::Images(set));
            }
            say(format_args!("{name}: images of {found}, cut or padded to {wanted}"));
            Ok(Chosen::Images(set.adapted(wanted)?))
        }
        (dataset, _) => match part.of(dataset, name, model, Some(most))? {
            Chosen::Rows(table) if table.rows() > most => {
                Ok(Chosen::Rows(table.select(&(0..most).collect::<Vec<_>>())))
            }
            chosen => Ok(chosen),
        },
    }
}
