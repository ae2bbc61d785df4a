//! A look at a table before a model is fitted to it: what would make its density meaningless, and what would only hurt.
//!
//! A density over d columns needs rows that fill d dimensions. A constant column, a column that others determine, values
//! that differ by rounding alone: log p has no bound there, and whatever a training prints has no meaning. Such a
//! [`Finding`] is grave. Sentinels and broken cells, copies of rows, counters, few rows: a model comes of it, but not the
//! one that was wanted. All findings come at once, each with what helps.
//!
//! ```
//! use resflow::data::{self, Table};
//! let rows: Vec<[f64; 2]> = (0..100).map(|i| [f64::from(i % 17), 2.54 * f64::from(i % 17)]).collect();
//! let look = data::look(&Table::from_rows(&rows)?, None)?;
//! assert!(look.findings.iter().any(|finding| finding.concern == data::Concern::Dependent));
//! # Ok::<(), resflow::data::DataError>(())
//! ```

mod categories;
mod dependence;
mod findings;

use std::fmt;

use serde::Serialize;

use super::copies;
use super::{Categories, ColumnSummary, Dataset, Incomplete, Table};
use crate::error::DataError;
pub use categories::CategorySummary;

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Concern {
    /// One value in every row.
    Constant,
    /// Values that differ by rounding alone.
    Rounding,
    /// A column that is a linear combination of others.
    Dependent,
    /// A column that numbers the rows.
    Counter,
    /// Values so far from the rest that they rule its mean and standard deviation.
    Outliers,
    /// One value in a large part of the rows of a continuous column.
    Spike,
    /// Few distinct values: a grid or whole numbers.
    Discrete,
    /// Tails that no normal density has.
    Tails,
    /// Rows that come more than once.
    Copies,
    /// Few rows for so many columns.
    FewRows,
    /// Levels of a column of categories that few rows have.
    RareLevel,
    /// Cells that are missing.
    Missing,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The model will be worse than it could be, or another than was meant.
    Warning,
    /// The density has no meaning.
    Grave,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub concern: Concern,
    /// The columns, counted from 0; none of what is about rows.
    pub columns: Vec<usize>,
    /// What was found, with names and numbers.
    pub sentence: String,
    /// What helps.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.sentence)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, ": {}", self.remedy) }
    }
}

/// The findings of a table, the gravest first, and the statistics of its columns.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Look {
    /// The rows.
    pub rows: usize,
    /// The names of the columns, where they have any.
    pub names: Option<Vec<String>>,
    /// The statistics of each column.
    pub columns: Vec<ColumnSummary>,
    /// The statistics of each column of categories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<CategorySummary>,
    /// The missing cells of each column.
    pub missing: Vec<usize>,
    /// Rows that equal an earlier one.
    pub copies: usize,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Look {
    /// The findings that make a density meaningless.
    pub fn grave(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Grave)
    }

    /// Checks that a density of the table has a meaning.
    ///
    /// # Errors
    /// Returns [`DataError::NoDensity`] with all findings that are grave, each with what helps.
    pub fn check(&self) -> Result<(), DataError> {
        let grave: Vec<String> = self.grave().map(ToString::to_string).collect();
        if grave.is_empty() { Ok(()) } else { Err(DataError::NoDensity(grave)) }
    }
}

/// Looks at samples of a table, with their weights and categories.
///
/// # Errors
/// Returns the errors of [`look`], and [`DataError::TableShape`] for images.
pub fn look_at(data: &Dataset) -> Result<Look, DataError> {
    let table = data.table().ok_or(DataError::TableShape { values: 0, width: 0 })?;
    let (categories, findings) = categories::summarise(data.samples());
    let mut look = look_with(table, data.categories(), data.weights())?;
    look.findings.extend(findings);
    look.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(Look { categories, ..look })
}

/// Looks at a table, whose rows may have weights.
///
/// # Errors
/// Returns [`DataError::TooFewRows`] for a table without rows, [`DataError::Belongings`] for weights in another number
/// than the rows.
pub fn look(table: &Table, weights: Option<&[f64]>) -> Result<Look, DataError> {
    look_with(table, None, weights)
}

/// Looks at the numbers of rows that have categories beside them.
fn look_with(table: &Table, kinds: Option<&Categories>, weights: Option<&[f64]>) -> Result<Look, DataError> {
    // a row of weight 0 is not there
    if let Some(all) = weights.filter(|all| all.len() == table.rows() && all.contains(&0.0)) {
        let there: Vec<usize> = (0..table.rows()).filter(|&i| all[i] > 0.0).collect();
        let weights: Vec<f64> = there.iter().map(|&i| all[i]).collect();
        return look_with(&table.select(&there), kinds.map(|kinds| kinds.select(&there)).as_ref(), Some(&weights));
    }
    let columns = ColumnSummary::of_table(table, weights)?;
    // rows of no numbers have nothing that could be a copy
    let copies = if table.width() == 0 { 0 } else { copies::count(table, kinds) };
    let mut findings = findings::of_columns(table, &columns);
    if table.width() > 0 {
        findings.extend(findings::of_rows(table, &columns, copies));
    }
    findings.extend(findings::of_dependence(table, &columns, &dependence::find(table, findings::NEARLY)));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let names = table.columns().map(<[String]>::to_vec);
    let missing = vec![0; table.width()];
    Ok(Look { rows: table.rows(), names, columns, categories: Vec::new(), missing, copies, findings })
}

/// Looks at a table of whose cells some are missing: at each column by the cells that were seen, and for columns that others
/// determine at the rows that lack nothing.
///
/// # Errors
/// Returns the errors of [`look_at`], and [`DataError::NothingSeen`] with the columns of which no cell was seen, if there are any, and such
/// rows.
pub fn look_incomplete(rows: &Incomplete) -> Result<Look, DataError> {
    let Some(table) = rows.data().table().filter(|_| !rows.is_complete()) else { return look_at(rows.data()) };
    let (columns, hollow) = rows.hollow();
    if !columns.is_empty() {
        return Err(DataError::NothingSeen { columns, rows: hollow });
    }
    let missing = rows.missing_by_column();
    let summary = |j: usize| {
        let (values, weights) = rows.seen_of(j);
        ColumnSummary::of(&values, weights.as_deref())
    };
    let columns = (0..rows.width()).map(summary).collect::<Result<Vec<_>, _>>()?;
    let whole: Vec<usize> = (0..rows.len()).filter(|&i| rows.is_seen(i)).collect();
    let complete = table.select(&whole);
    let kinds = rows.data().categories().map(|kinds| kinds.select(&whole));
    let copies = copies::count(&complete, kinds.as_ref());
    let mut findings = findings::of_columns(table, &columns);
    findings.extend(findings::of_rows(table, &columns, copies));
    findings.extend(findings::of_dependence(table, &columns, &dependence::find(&complete, findings::NEARLY)));
    let (categories, of_categories) = categories::summarise(rows.data().samples());
    findings.extend(of_categories);
    findings.push(findings::of_missing(table, &missing, rows.len() - whole.len()));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let names = table.columns().map(<[String]>::to_vec);
    Ok(Look { rows: rows.len(), names, columns, categories, missing, copies, findings })
}
