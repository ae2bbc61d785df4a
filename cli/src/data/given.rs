//! --given: columns of a table that are no part of the samples, but what a conditional density is given.

use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::data::image::ImageSet;
use resflow::data::{Category, DataError, Dataset, Opened, Table};

use super::labels;
use super::reading::{self, Matching, TableOptions};
use super::{Data, check_there};
use crate::failure::usage;
use crate::model::Stored;

/// What contexts of images are called.
pub(crate) const CLASS: &str = "class";

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
            Self::Large(_) => {
                return Err(usage(format_args!(
                    "{context} is larger than memory: contexts are not read as they are needed"
                )));
            }
            Self::Stored(opened) => opened,
        };
        let Some(table) = opened.data.table().filter(|_| opened.image_size.is_none()) else {
            if columns != [CLASS] {
                return Err(usage(format_args!(
                    "{context} holds images, what they are given is their class: --given class"
                )));
            }
            let Some(set) = opened.data.images() else {
                return Err(usage(format_args!("{context} holds images as numbers, which have no labels")));
            };
            let classes = labels::classes(set.into(), name, "--given class")?;
            let data = opened.data.given_labels(classes).context(context)?;
            return Ok(Self::Stored(Opened { data, ..opened }));
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

/// The contexts that a command was given for a model, of which it must be conditional, or not: a file, or names of classes; all
/// classes if none is named.
pub(crate) fn contexts_of(
    (path, classes): (Option<&Path>, Option<&str>),
    reading: &TableOptions,
    matching: Matching,
    stored: &Stored,
) -> Result<Option<Dataset>> {
    if let Some(known) = stored.classes() {
        if path.is_some() {
            return Err(usage("--given FILE: the model is a density of images given their class: --class names it"));
        }
        return one_hot(classes, &known).map(|table| Some(table.into()));
    }
    if let Some(class) = classes {
        return Err(usage(format_args!("--class {class}: the model is not one of images given their class")));
    }
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

/// The contexts of classes by their names, or by their numbers from 0 where they have none; of all if none is named.
fn one_hot(asked: Option<&str>, known: &[String]) -> Result<Table> {
    let classes: Vec<&str> = match asked {
        None => known.iter().map(String::as_str).collect(),
        // a name may have a comma in it
        Some(one) if known.iter().any(|own| own == one) => vec![one],
        Some(several) => several.split(',').collect(),
    };
    let mut values = vec![0.0; classes.len() * known.len()];
    for (row, class) in values.chunks_exact_mut(known.len()).zip(&classes) {
        let Some(k) = known.iter().position(|own| own == class) else {
            return Err(usage(format_args!("--class {class}: the model knows {}", known.join(", "))));
        };
        row[k] = 1.0;
    }
    Ok(Table::new(None, known.len(), values)?)
}

/// Gives images their classes as contexts, if that is what a model is given.
pub(crate) fn classes_given(data: Dataset, stored: &Stored, name: &str) -> Result<Dataset> {
    let Some(known) = stored.classes() else { return Ok(data) };
    let named = data.images().and_then(ImageSet::class_names).is_some();
    let data = labels::by_name(data, named.then_some(&known[..]), name)?;
    let Some(labels) = data.labels() else {
        return Err(usage(format_args!(
            "{name}: the model is a density of images given their class, which these do not have: labels are the file \
             t10k-labels-idx1-ubyte beside MNIST's images, or the folders that pictures are in"
        )));
    };
    if let Some(&class) = labels.iter().find(|&&label| usize::from(label) >= known.len()) {
        return Err(usage(format_args!("{name}: an image of class {class}, the model knows {}", known.join(", "))));
    }
    Ok(data.given_labels(known.len())?)
}
