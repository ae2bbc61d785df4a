//! What bias and variance are measured over: estimators × c × widths, on models trained for the purpose.
//!
//! c bounds the Lipschitz constant of a block of n layers, so each layer gets κ = c^(1/n).

use anyhow::{Context as _, Result};
use resflow::config::{FlowConfig, ModelConfig};
use resflow::estimator::Estimator;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::cell::Cell;
use super::laboratory::{Laboratory, slug};
use super::section::{Grid, Row};
use super::training::{Spent, Training};
use crate::data::Data;
use crate::failure::usage;
use crate::model::Stored;
use crate::settings::Settings;

/// One cell of the grid.
#[derive(Debug)]
pub(super) struct Case<'a> {
    /// The estimator as the file writes it.
    pub(super) text: &'a str,
    pub(super) estimator: Estimator,
    pub(super) bound: f64,
    /// Of all hidden layers; none where the file names no widths.
    pub(super) width: Option<usize>,
    pub(super) training: Training<'a>,
}

impl Case<'_> {
    pub(super) fn name(&self) -> String {
        format!("{}-{}", panel(self.bound, self.width), slug(self.text))
    }

    /// E + E\[N\], or the fixed number of terms.
    pub(super) fn terms(&self) -> f64 {
        match &self.estimator {
            Estimator::RussianRoulette(roulette) => roulette.expected_terms(),
            Estimator::Truncated(truncated) => truncated.terms as f64,
            Estimator::Exact(_) | Estimator::Auto(_) => 0.0,
        }
    }
}

/// The part of the grid that a panel shows, as a file's name.
fn panel(bound: f64, width: Option<usize>) -> String {
    width.map_or(format!("c{bound}"), |width| format!("w{width}-c{bound}"))
}

/// The same in words.
pub(super) fn title(bound: f64, width: Option<usize>) -> String {
    width.map_or(format!("c = {bound}"), |width| format!("c = {bound}, width {width}"))
}

impl Grid {
    /// The widths, or none where they are those of the file's flow.
    pub(super) fn widths(&self) -> Vec<Option<usize>> {
        if self.widths.is_empty() { vec![None] } else { self.widths.iter().copied().map(Some).collect() }
    }

    /// All cells: widths, in each of them bounds, in each of them estimators.
    pub(super) fn cases<'a>(&'a self, laboratory: &'a Laboratory) -> Result<Vec<Case<'a>>> {
        let [data] = &laboratory.file.data[..] else {
            return Err(usage("`data` has more than one entry; a grid of estimators is for one"));
        };
        if self.estimators.is_empty() || self.bounds.is_empty() {
            return Err(usage("`estimators` and `bounds` need at least one entry each"));
        }
        if self.repeats < 2 || self.points < 2 {
            return Err(usage("`points` and `repeats` must be at least 2: an error is a spread"));
        }
        let parse = |text: &str| match text.parse::<Estimator>().with_context(|| text.to_owned()).map_err(usage_of)? {
            Estimator::Auto(_) => Err(usage("auto: say which estimator; auto is exact where that is cheap")),
            estimator => Ok(estimator),
        };
        let opened = Data::open(data)?;
        let beneath = laboratory.file.settings(&opened, &Row::default())?;
        let mut cases: Vec<Case<'a>> = Vec::new();
        for width in self.widths() {
            for &bound in &self.bounds {
                for text in &self.estimators {
                    let estimator = parse(text)?;
                    let (trained, with) = match self.trained_with.as_str() {
                        "own" => (estimator.clone(), slug(text)),
                        other => (parse(other)?, slug(other)),
                    };
                    let name = format!("{}-by-{with}", panel(bound, width));
                    let settings = settings(&beneath, bound, width, trained)?;
                    let seed = laboratory.file.seed;
                    let training = Training { name, data, settings, seed, time: None, illustrated: false };
                    cases.push(Case { text, estimator, bound, width, training });
                }
            }
        }
        let mut names: Vec<String> = cases.iter().map(Case::name).collect();
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(usage(format_args!("two cells are named {}; remove one", pair[0]))),
            None => Ok(cases),
        }
    }

    /// What a measurement of some kind finds of each case, on the model that is trained for it.
    pub(super) fn cells<R: Serialize + DeserializeOwned>(
        &self,
        laboratory: &Laboratory,
        kind: &str,
        cases: &[Case<'_>],
        measure: impl Fn(&Case<'_>, &Stored, &Spent) -> Result<R>,
    ) -> Result<Vec<Cell<R>>> {
        let cell = |case: &Case<'_>| {
            let specification = json!({
                "kind": kind,
                "estimator": case.text,
                "points": self.points,
                "repeats": self.repeats,
                "trained": case.training.specification(laboratory),
            });
            laboratory.cell(&case.name(), specification, || {
                let (stored, spent) = case.training.run(laboratory)?;
                measure(case, &stored, &spent)
            })
        };
        cases.iter().map(cell).collect()
    }
}

/// An error of the file.
fn usage_of(error: anyhow::Error) -> anyhow::Error {
    usage(format_args!("{error:#}"))
}

/// Settings with κ of a block's bound, with a width and an estimator of the gradient.
fn settings(beneath: &Settings, bound: f64, width: Option<usize>, training: Estimator) -> Result<Settings> {
    let ModelConfig::Rows(flow) = &beneath.model else {
        return Err(usage("exact log dets of images are out of reach; take a density or a table"));
    };
    if !flow.model.contracts() {
        return Err(usage(format_args!("{} has no series to estimate; take residual", flow.model)));
    }
    if !(bound > 0.0 && bound < 1.0) {
        return Err(usage(format_args!("`bounds` has {bound}; c is above 0 and below 1")));
    }
    let hidden = width.map_or(flow.hidden.clone(), |width| vec![width; flow.hidden.len()]);
    let layers = hidden.len() + 1;
    let flow = FlowConfig { coefficient: bound.powf(1.0 / layers as f64), hidden, training, ..flow.clone() };
    flow.check().map_err(usage)?;
    Ok(Settings { model: flow.into(), train: beneath.train.clone() })
}
