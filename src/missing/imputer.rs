//! The imputer: a flow over all columns given some of them, and what it draws in the place of missing cells.

use std::collections::HashMap;

use resflow_backend::{Backend, Key, Noise};

use super::completed::Completed;
use super::masking::{Mask, middle};
use crate::data::{ColumnMaps, Incomplete, Samples, Table};
use crate::error::{ConfigError, Error};
use crate::estimator::{Estimator, Phase};
use crate::flow::{ExactLogProb, Flow, PreparedFlow};
use crate::invert::Status;

/// Draws that are decoded at once.
const AT_ONCE: usize = 16_384;

/// A flow q(x_t, u | x_m, m, t) that fills missing cells in; see the [module](super). It belongs to a joint [`Flow`]
/// ([`Flow::set_imputer`]), in whose file it is.
#[derive(Debug, Clone)]
pub struct Imputer<B: Backend> {
    flow: Flow<B>,
}

impl<B: Backend> Imputer<B> {
    /// Takes a flow over d columns with contexts of 3d, behind the maps of its columns.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] for another one, for one over another base density than the standard normal, and for one
    /// whose log dets are estimated.
    pub fn new(flow: Flow<B>) -> Result<Self, ConfigError> {
        let d = flow.dimension();
        let context = flow.config().context().map(|context| context.columns);
        let exact = matches!(flow.resolved(Phase::Evaluation), Estimator::Exact(_));
        if flow.config().rows().is_none() || context != Some(3 * d) || !flow.config().base().is_normal() || !exact {
            return Err(ConfigError::Inconsistent(format!(
                "an imputer of {d} columns is a flow over rows given {} numbers, over a standard normal density and with exact log dets",
                3 * d
            )));
        }
        if flow.imputer().is_some() {
            return Err(ConfigError::Inconsistent("an imputer has no imputer of its own".into()));
        }
        Ok(Self { flow })
    }

    /// The flow, over \[z_t, u\] of columns behind their maps.
    pub fn flow(&self) -> &Flow<B> {
        &self.flow
    }

    /// The maps of the columns, fitted to the cells that were seen.
    pub fn columns(&self) -> &ColumnMaps {
        self.flow.columns()
    }

    /// Prepares the imputer for any number of calls.
    pub fn prepare(&self) -> PreparedImputer<B> {
        let columns = self.columns().clone();
        PreparedImputer { flow: self.flow.prepare().behind_maps(), columns }
    }
}

/// An imputer ready for computing; it serves any number of threads.
#[derive(Debug)]
pub struct PreparedImputer<B: Backend> {
    /// Behind the maps of the columns.
    flow: PreparedFlow<B>,
    columns: ColumnMaps,
}

/// A row of which cells are to be drawn.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) row: usize,
    /// The key of its draws.
    pub(super) key: Key,
    /// Its seen cells behind the maps.
    middle: Vec<f64>,
}

/// Draws for some rows, behind the maps of the columns.
#[derive(Debug)]
pub(super) struct Drawn {
    /// `[rows·draws, d]`: the wanted cells, and noise in the place of those that were seen.
    pub(super) z: Table,
    /// log q of each in these units, nats, where asked for.
    pub(super) log_prob: Option<ExactLogProb>,
    pub(super) status: Vec<Status>,
}

impl<B: Backend> PreparedImputer<B> {
    /// d, the number of columns.
    pub fn dimension(&self) -> usize {
        self.columns.width()
    }

    pub(super) fn columns(&self) -> &ColumnMaps {
        &self.columns
    }

    /// Checks that rows have as many columns.
    pub(super) fn check(&self, rows: &Incomplete) -> Result<(), Error> {
        let (found, wanted) = (rows.width(), self.dimension());
        if found == wanted && rows.data().table().is_some() {
            return Ok(());
        }
        Err(Error::Input(format!("the data has {found} columns, the model is for {wanted}")))
    }

    /// A row whose missing cells are wanted, or `None` if a cell that was seen is outside of its support.
    pub(super) fn wanted(&self, rows: &Incomplete, row: usize, key: Key) -> Option<Wanted> {
        middle(rows, row, &self.columns).map(|middle| Wanted { row, key, middle })
    }

    /// Draws what is missing of some rows, so many times each: draw j of row i is number i·draws + j.
    pub(super) fn draw(
        &self,
        rows: &Incomplete,
        wanted: &[Wanted],
        draws: usize,
        scored: bool,
    ) -> Result<Drawn, Error> {
        let d = self.dimension();
        let mut contexts = Vec::with_capacity(3 * d * wanted.len());
        let mut latents = vec![0.0; wanted.len() * draws * d];
        for (own, latents) in wanted.iter().zip(latents.chunks_exact_mut(draws * d)) {
            Mask::of_row(rows, own.row).add_context(&own.middle, &mut contexts);
            Noise::Normal.fill(own.key, 0, latents);
        }
        let at = self.flow.condition(&Table::of_computed(3 * d, contexts))?;
        let decoded = at.decode_own(&Table::of_computed(d, latents), draws)?;
        let z = decoded.samples;
        let log_prob = scored.then(|| at.log_prob_own(Samples::from(&z), draws)).transpose()?;
        Ok(Drawn { z, log_prob, status: decoded.reports.iter().map(|report| report.status).collect() })
    }

    /// Fills the missing cells of rows in, `draws` times each, `[n·draws, d]`: draw j of row i is row i·draws + j. What was seen stays
    /// as it is, and what is drawn lies inside its column's support and on its grid. A row is filled in as the key, its
    /// seen cells and the number of rows before it in which the same was seen say.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for rows of another width, and for ones of which a cell that was seen is outside of its column's
    /// support, [`Error::Backend`] if the device failed. A draw that overflowed is no error: see [`Completed::status`].
    pub fn impute(&self, rows: &Incomplete, draws: usize, key: Key) -> Result<Completed, Error> {
        self.check(rows)?;
        let (n, d) = (rows.len(), self.dimension());
        let mut before: HashMap<u64, u64> = HashMap::new();
        let (mut wanted, mut outside) = (Vec::new(), Vec::new());
        for i in (0..n).filter(|&i| !rows.is_seen(i)) {
            let number = rows.number(i);
            let occurrence = before.entry(number).or_default();
            match self.wanted(rows, i, key.named("impute").split(number).split(*occurrence)) {
                Some(own) => wanted.push(own),
                None => outside.push(i),
            }
            *occurrence += 1;
        }
        if let Some(first) = outside.first() {
            return Err(Error::Input(format!(
                "{} of {n} rows have a value outside of its column's support, the first row {}: they are impossible, and nothing can be \
                 said of what they lack; leave them out",
                outside.len(),
                first + 1
            )));
        }
        let mut values = Vec::with_capacity(n * draws * d);
        (0..n).for_each(|i| (0..draws).for_each(|_| values.extend_from_slice(rows.row(i))));
        let mut status = vec![Status::Converged; n * draws];
        for wanted in wanted.chunks((AT_ONCE / draws.max(1)).max(1)).filter(|_| draws > 0) {
            let drawn = self.draw(rows, wanted, draws, false)?;
            for (k, z) in drawn.z.values().chunks_exact(d).enumerate() {
                let row = wanted[k / draws].row;
                let at = row * draws + k % draws;
                status[at] = drawn.status[k];
                for j in (0..d).filter(|&j| !rows.sees(row, j)) {
                    let x = self.columns.maps()[j].invert(z[j]);
                    values[at * d + j] = x;
                    if !x.is_finite() {
                        status[at] = Status::NonFinite;
                    }
                }
            }
        }
        Ok(Completed::new(rows, values, draws, status))
    }
}

impl<B: Backend> Flow<B> {
    /// Takes the flow as the joint density of an imputer's columns: [`marginal`](super::PreparedMarginal) log p of rows with
    /// missing cells, and filling these in, need both.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the imputer is for another number of columns, and for a flow that is conditional or over
    /// images.
    pub fn set_imputer(&mut self, imputer: Imputer<B>) -> Result<(), ConfigError> {
        let (own, others) = (self.dimension(), imputer.flow.dimension());
        if self.config().context().is_some() || self.config().rows().is_none() {
            let problem = "missing cells are those of rows of a table, whose density is given nothing";
            return Err(ConfigError::Inconsistent(problem.into()));
        }
        if own != others {
            return Err(ConfigError::Inconsistent(format!("an imputer of {others} columns for a flow of {own}")));
        }
        self.keep_imputer(imputer);
        Ok(())
    }

    /// Prepares the flow's imputer.
    ///
    /// # Errors
    /// Returns [`Error::Input`] for a flow that has none.
    pub fn prepare_imputer(&self) -> Result<PreparedImputer<B>, Error> {
        let problem = "the model knows no missing cells: fit one that does (`Fit::missing`, --missing impute)";
        Ok(self.imputer().ok_or_else(|| Error::Input(problem.into()))?.prepare())
    }
}
