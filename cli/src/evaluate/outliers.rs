//! Out-of-distribution (OOD) detection: data that a model was not fitted to, and how well log p tells the two apart.

use anyhow::{Context as _, Result};
use resflow::anomaly::{Auroc, auroc};
use resflow::backend::{Backend, Key};
use resflow::config::ModelConfig;
use resflow::data::{Dataset, Table};
use resflow::flow::LogProb;
use resflow::flow::PreparedFlow;

use crate::data::part::Part;
use crate::data::{Data, check_size, first, model_size};
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
        (name, data): (&str, Data),
        seed: u64,
    ) -> Result<Self> {
        let data = chosen(data, name, model, inside.values.len(), seed)?;
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
pub(crate) fn check(data: &Data, name: &str, model: &ModelConfig) -> Result<()> {
    if data.images().is_some() && model.images().is_some() {
        return Ok(());
    }
    if let Some(size) = data.image_size() {
        return check_size(size, name, model);
    }
    let width = data.table().map_or(2, Table::width);
    match model.dimension() {
        d if d == width => Ok(()),
        d => Err(usage(format_args!("{name}: rows of {width} numbers, the model is for {d}"))),
    }
}

/// The first of a data set, at most `most`; fresh points of a density.
fn chosen(data: Data, name: &str, model: &ModelConfig, most: usize, seed: u64) -> Result<Dataset> {
    check(&data, name, model)?;
    let part = Part { split: None };
    match (data, model.images()) {
        // points of their own even where the data are those of the same density
        (Data::Density(density), _) => Ok(density.sample(Key::new(seed).named("outliers"), most).into()),
        (Data::Stored(opened), Some(config)) if opened.data.images().is_some() => {
            let data = part.images(opened, name, Some(most))?;
            let wanted = model_size(config);
            match data.images().filter(|set| set.size() != wanted) {
                None => Ok(data),
                Some(set) => {
                    say(format_args!("{name}: images of {}, cut or padded to {wanted}", set.size()));
                    Ok(set.adapted(wanted)?.into())
                }
            }
        }
        (data, _) => first(part.of(data, name, model, Some(most))?, Some(most)),
    }
}
