//! --given: columns of a table that are no part of the samples, but what a conditional density is given.

use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::data::{Category, DataError, Dataset, Opened};

use super::reading::{self, Matching, TableOptions};
use super::{Data, check_there};
use crate::failure::usage;
use crate::model::Stored;

impl Data {
    /// Takes columns, if any were named, out of a table as the contexts of its rows.
    pub(crate) fn given(self, columns: &[String], name: &str) -> Result<Self> {
        if columns.is_empty() {
            return Ok(self);
        }
        let context = format!("--given {}: {name}", columns.join(","));
        let opened = match self {
            Self::Density(_) => {
                return Err(usage(format_args!("{context} is a built-in density, contexts are columns of a file")));
            }
            Self::Stored(opened) => opened,
        };
        let Some(table) = opened.data.table().filter(|_| opened.image_size.is_none()) else {
            return Err(usage(format_args!("{context} holds images, contexts are columns of a table")));
        };
        let of_categories = opened.data.categories().map_or(0, |categories| categories.columns().len());
        if table.width() + of_categories <= columns.len() {
            return Err(usage(format_args!("{context} has no other column")));
        }
        match opened.data.given(columns) {
            Ok(data) => {
                if let Some(rest) = data.categories() {
                    let names: Vec<&str> = rest.columns().iter().map(Category::name).collect();
                    return Err(usage(format_args!(
                        "{context} has categories besides ({}), whose probability given others is not there: give them too, or leave \
                         them out (--drop)",
                        names.join(", ").escape_debug()
                    )));
                }
                Ok(Self::Stored(Opened { data, ..opened }))
            }
            Err(e @ (DataError::NoColumn { .. } | DataError::Options(_))) => Err(usage(format_args!("{context}: {e}"))),
            Err(e) => Err(e).context(context),
        }
    }
}

/// Reads the contexts of a conditional model from a table, others of whose columns are ignored.
pub(crate) fn contexts(path: &Path, reading: &TableOptions, matching: Matching, stored: &Stored) -> Result<Dataset> {
    check_there(path)?;
    let mut options = reading.options();
    options.model = stored.context_columns(matching);
    reading::rows(path, &options)
}

/// The contexts that a command was given for a model, of which it must be conditional, or not.
pub(crate) fn contexts_of(
    path: Option<&Path>,
    reading: &TableOptions,
    matching: Matching,
    stored: &Stored,
) -> Result<Option<Dataset>> {
    match (path, stored.given()) {
        (Some(path), Some(_)) => contexts(path, reading, matching, stored).map(Some),
        (None, Some(given)) => {
            let given = given.join(", ");
            Err(usage(format_args!("the model is a density given {given}: --given FILE names a table of these")))
        }
        (Some(path), None) => {
            Err(usage(format_args!("--given {}: the model is no conditional density", path.display())))
        }
        (None, None) => Ok(None),
    }
}
