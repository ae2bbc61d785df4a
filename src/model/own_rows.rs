//! The rows of a fit, whose scores later ones are held against ([`Provenance::scores`](crate::flow::Provenance)).

use std::collections::HashSet;

use resflow_backend::{Backend, Key};

use crate::data::{Dataset, excerpt, excerpt_rows};
use crate::error::Error;
use crate::flow::{PreparedFlow, ReferenceScores};
use crate::train::Trainer;

/// An excerpt of a fit's table, drawn before the run takes the data.
#[derive(Debug)]
pub(super) struct OwnRows {
    rows: Dataset,
    width: usize,
    /// The number of each in the data.
    numbers: Vec<usize>,
    key: Key,
}

impl OwnRows {
    /// Draws the excerpt by the rows' weights; none of images.
    pub(super) fn of(data: &Dataset, key: Key) -> Option<Self> {
        let table = data.table()?;
        let width = table.width();
        let numbers = excerpt(table.rows(), data.weights(), excerpt_rows(width), key.named("excerpt"));
        Some(Self { rows: data.select(&numbers).ok()?, width, numbers, key })
    }

    /// Scores those that were trained on, and as many validation rows at most, with the noise of a key; `None` if the
    /// excerpt has no row that was trained on.
    pub(super) fn score<B: Backend>(
        &self,
        trainer: &Trainer<B>,
        flow: &PreparedFlow<B>,
        noise: Key,
    ) -> Result<Option<ReferenceScores>, Error> {
        let held_out: HashSet<usize> = trainer.validation_numbers().iter().copied().collect();
        let trained: Vec<usize> = (0..self.numbers.len()).filter(|&i| !held_out.contains(&self.numbers[i])).collect();
        let training = flow.log_prob(&self.rows.select(&trained)?, noise)?.values;
        let validation = trainer.validation_samples();
        let most = excerpt_rows(self.width);
        let some = excerpt(validation.len(), validation.weights(), most, self.key.named("held out"));
        let validation = flow.log_prob(&validation.select(&some)?, noise)?.values;
        Ok(ReferenceScores::of(&training, &validation))
    }
}
