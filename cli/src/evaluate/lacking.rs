//! Rows that lack values, scored by what they have.

use anyhow::Result;
use resflow::Flow;
use resflow::backend::{Backend, Key};
use resflow::data::Incomplete;
use resflow::flow::LogProb;

use crate::columnar::{Cells, Column};
use crate::failure::{usage, warn};

/// Effective draws below which a standard error is not to be trusted.
const FEW: f64 = 5.0;

/// What is known of the scores of rows that lack values.
#[derive(Debug)]
pub(crate) struct Lacking {
    /// The values that each row lacks.
    pub(crate) missing: Vec<usize>,
    /// The effective draws behind each score, where there were any.
    effective: Vec<Option<f64>>,
    draws: usize,
    /// The mean over the rows that lack nothing, and its standard error.
    whole: Option<(f64, f64)>,
}

impl Lacking {
    /// Scores rows of which some lack values.
    pub(crate) fn score<B: Backend>(
        flow: &Flow<B>,
        rows: &Incomplete,
        draws: u32,
        key: Key,
    ) -> Result<(LogProb, Self)> {
        let marginal = flow.prepare_marginal().map_err(usage)?.with_draws(draws as usize).map_err(usage)?;
        let found = marginal.log_prob(rows, key)?;
        let lacks = |i: usize| (0..rows.width()).filter(|&j| rows.value(i, j).is_none()).count();
        let missing: Vec<usize> = (0..rows.len()).map(lacks).collect();
        let scores = found.scores;
        let pick = |values: &[f64]| -> Vec<f64> {
            values.iter().zip(&missing).filter(|(_, missing)| **missing == 0).map(|(value, _)| *value).collect()
        };
        let whole = LogProb {
            values: pick(&scores.values),
            standard_error: pick(&scores.standard_error),
            weights: scores.weights.as_deref().map(pick),
            ..scores.clone()
        };
        let whole = (!whole.values.is_empty()).then(|| (whole.mean(), whole.mean_standard_error()));
        let own = Self { missing, effective: found.effective, draws: found.draws, whole };
        own.warn();
        Ok((scores, own))
    }

    fn rows(&self) -> usize {
        self.missing.iter().filter(|count| **count > 0).count()
    }

    fn cells(&self) -> usize {
        self.missing.iter().sum()
    }

    /// The least and the median effective number of draws.
    fn effective(&self) -> Option<(f64, f64)> {
        let mut sorted: Vec<f64> = self.effective.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        Some((*sorted.first()?, sorted[sorted.len() / 2]))
    }

    fn warn(&self) {
        let few = self.effective.iter().flatten().filter(|n| **n < FEW).count();
        if few > 0 {
            let draws = self.draws;
            warn(format_args!(
                "log p of {few} of {} rows that lack values rests on fewer than {FEW} effective draws of {draws}, so that its error is not \
                 known well; --draws asks for more",
                self.rows()
            ));
        }
    }

    /// Columns for the rows' file.
    pub(crate) fn columns(&self) -> [Column; 2] {
        let missing = Cells::Counts(self.missing.iter().map(|&count| Some(count)).collect());
        let effective = self.effective.iter().map(|n| n.unwrap_or(f64::NAN)).collect();
        [Column::new("missing", missing), Column::new("effective_draws", Cells::Numbers(effective))]
    }

    /// Adds what is known to an object.
    pub(crate) fn add(&self, object: &mut serde_json::Value) {
        object["incomplete_rows"] = self.rows().into();
        object["missing_cells"] = self.cells().into();
        object["draws"] = self.draws.into();
        object["least_effective_draws"] = self.effective().map(|(least, _)| least).into();
        object["median_effective_draws"] = self.effective().map(|(_, median)| median).into();
        object["mean_log_prob_of_complete_rows"] = self.whole.map(|(mean, _)| mean).into();
        object["mean_log_prob_of_complete_rows_se"] = self.whole.map(|(_, error)| error).into();
    }

    /// The same in words, a line each.
    pub(crate) fn lines(&self) -> String {
        let (rows, cells, draws) = (self.rows(), self.cells(), self.draws);
        let effective = self.effective().map_or(String::new(), |(least, median)| {
            format!(", by {draws} draws each, effectively {median:.1} in the median and {least:.1} at least")
        });
        let whole = self.whole.map_or("none lacks nothing".to_owned(), |(mean, error)| {
            format!("the mean of the others is {mean:.6} ± {error:.6}")
        });
        format!("missing     {rows} rows lack {cells} values: log p of what they have{effective}; {whole}\n")
    }
}
