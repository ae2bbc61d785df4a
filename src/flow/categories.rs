//! The categories of a flow over a table: those that it models and those that it is given.
//!
//! ```text
//! modelled:  log p(k, x) = log p(k) + log p(x | k)          k drawn with x
//! given:     log p(x | k)                                  k a part of the context
//! ```
//!
//! Either way the flow over the numbers is a conditional one, whose context ends in the one-hot codes of the categories, 0 and 1
//! as they are: standardised, a rare level would be as far out as it is rare.

use resflow_backend::Backend;

use super::Flow;
use super::log_prob::LogProb;
use super::prepared::PreparedFlow;
use crate::categorical::CategoricalDensity;
use crate::data::{Categories, Category, Samples, Table};
use crate::error::{ConfigError, Error};

/// The categories of a flow.
#[derive(Debug, Clone, PartialEq)]
pub enum FlowCategories {
    /// A part of the samples, with their probability; the context is theirs alone.
    Modelled(CategoricalDensity),
    /// A part of the context, behind its numbers.
    Given(Vec<Category>),
}

impl FlowCategories {
    /// The columns, with the levels that the flow knows.
    pub fn columns(&self) -> &[Category] {
        match self {
            Self::Modelled(density) => density.columns(),
            Self::Given(columns) => columns,
        }
    }

    /// The numbers of their one-hot codes: all levels together.
    pub fn width(&self) -> usize {
        self.columns().iter().map(|column| column.levels().len()).sum()
    }

    /// The probability of those that are a part of the samples.
    pub fn density(&self) -> Option<&CategoricalDensity> {
        match self {
            Self::Modelled(density) => Some(density),
            Self::Given(_) => None,
        }
    }
}

impl<B: Backend> Flow<B> {
    /// The categories that it models or is given, where it has any.
    pub fn categories(&self) -> Option<&FlowCategories> {
        self.categories.as_deref()
    }

    /// Makes categories a part of the model.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the flow's context is not that of their one-hot codes, or of categories that are given at
    /// least as wide.
    pub fn set_categories(&mut self, categories: Option<FlowCategories>) -> Result<(), ConfigError> {
        if let Some(categories) = &categories {
            let (found, own) = (categories.width(), self.config().context().map_or(0, |context| context.columns));
            let fits = if categories.density().is_some() { found == own } else { found <= own };
            if !fits {
                return Err(ConfigError::Inconsistent(format!(
                    "categories of {found} levels together for a context of {own} columns"
                )));
            }
        }
        self.categories = categories.map(std::sync::Arc::new);
        Ok(())
    }
}

/// The contexts of some samples in the data's units: numbers, and behind them categories by their codes.
#[derive(Debug)]
pub(crate) struct Contexts<'a> {
    numbers: Option<&'a Table>,
    /// The flow's codes, row by row.
    codes: Vec<u32>,
    /// The levels of each column of categories.
    levels: Vec<usize>,
    rows: usize,
}

impl<'a> Contexts<'a> {
    /// The contexts of so many rows, of which a flow has some categories.
    pub(crate) fn new(
        rows: usize,
        numbers: Option<&'a Table>,
        categories: Option<&Categories>,
        own: Option<&FlowCategories>,
    ) -> Result<Self, Error> {
        let numbers = numbers.filter(|table| table.width() > 0);
        let Some(own) = own else { return Ok(Self { numbers, codes: Vec::new(), levels: Vec::new(), rows }) };
        let Some(categories) = categories else { return Err(missing_categories(own)) };
        let codes = categories.codes_in(own.columns())?;
        Ok(Self { codes, ..Self::of_codes(numbers, own, rows) })
    }

    fn of_codes(numbers: Option<&'a Table>, own: &FlowCategories, rows: usize) -> Self {
        let levels = own.columns().iter().map(|column| column.levels().len()).collect();
        Self { numbers, codes: Vec::new(), levels, rows }
    }

    /// Those of samples that were drawn.
    pub(crate) fn drawn(own: &FlowCategories, drawn: &Categories) -> Self {
        Self { codes: drawn.codes().to_vec(), ..Self::of_codes(None, own, drawn.rows()) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.numbers.map_or(0, Table::width) + self.levels.iter().sum::<usize>()
    }

    pub(crate) fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Appends the numbers of a context: its own, less a mean and over a deviation each, and 0 or 1 for each level.
    pub(crate) fn append(&self, i: usize, mean: &[f64], deviation: &[f64], out: &mut impl FnMut(f64)) {
        let numbers = self.numbers.map_or(&[][..], |table| table.row(i));
        for (j, c) in numbers.iter().enumerate() {
            out((c - mean[j]) / deviation[j]);
        }
        let codes = &self.codes[i * self.levels.len()..(i + 1) * self.levels.len()];
        let mut at = numbers.len();
        for (&code, &levels) in codes.iter().zip(&self.levels) {
            for level in 0..levels {
                out((f64::from(u8::from(level == code as usize)) - mean[at]) / deviation[at]);
                at += 1;
            }
        }
    }
}

/// The error of samples without the categories that a flow models or is given.
fn missing_categories(own: &FlowCategories) -> Error {
    let names: Vec<&str> = own.columns().iter().map(Category::name).collect();
    let (names, how) = (names.join(", "), if own.density().is_some() { "models" } else { "is given" });
    Error::Input(format!(
        "the model {how} categories ({names}), and the samples have none: give each row its own (`Dataset::with_categories`, of \
         contexts `Dataset::with_context_categories`)"
    ))
}

impl<B: Backend> PreparedFlow<B> {
    /// The categories that it models or is given, where it has any.
    pub fn categories(&self) -> Option<&FlowCategories> {
        self.categories.as_deref()
    }

    /// The contexts that samples bring, if the flow looks at any.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if it does and they bring none, or ones of another width, [`Error::Data`] for categories that it does
    /// not know.
    pub(crate) fn contexts_of<'a>(&self, samples: &Samples<'a>) -> Result<Option<Contexts<'a>>, Error> {
        let Some(context) = &self.context else { return Ok(None) };
        let rows = samples.len();
        let contexts = match self.categories() {
            None => Contexts::new(rows, Some(samples.context().ok_or_else(super::context::missing)?), None, None)?,
            own @ Some(FlowCategories::Modelled(_)) => Contexts::new(rows, None, samples.categories(), own)?,
            own @ Some(FlowCategories::Given(_)) => {
                Contexts::new(rows, samples.context(), samples.context_categories(), own)?
            }
        };
        context.check(&contexts)?;
        Ok(Some(contexts))
    }

    /// Adds log p(k) of samples whose categories are a part of them.
    pub(super) fn add_categories(&self, log_prob: &mut LogProb, contexts: Option<&Contexts<'_>>) {
        if let (Some(density), Some(contexts)) = (self.categories().and_then(FlowCategories::density), contexts) {
            let own = density.log_prob_of(contexts.codes());
            log_prob.values.iter_mut().zip(own).for_each(|(value, own)| *value += own);
        }
    }
}
