//! The file of a p(k) that stands alone, of a table that has categories and no numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CategoricalDensity, StoredCategories};
use crate::checkpoint::{Archive, CATEGORICAL_DENSITY, Values, document_value, section};
use crate::error::{CheckpointError, Error};
use crate::flow::{FlowCategories, Provenance};

/// The format of such files.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    categories: StoredCategories,
    provenance: Provenance,
}

impl CategoricalDensity {
    /// Whether a file holds a p(k) alone and no flow.
    pub fn is_in(archive: &Archive) -> bool {
        archive.document.get(CATEGORICAL_DENSITY).is_some()
    }

    /// Returns the contents of a file of it alone, with where it comes from.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the document cannot be written.
    pub fn to_archive(&self, provenance: Provenance) -> Result<Archive, Error> {
        let document = Document { format: FORMAT, categories: StoredCategories::of_density(self), provenance };
        let document = serde_json::json!({ CATEGORICAL_DENSITY: document_value(&document)? });
        let tensors = StoredCategories::tensors_of(self).into_iter();
        let tensors: BTreeMap<_, _> =
            tensors.map(|(name, shape, values)| (name, (shape, Values::F64(values)))).collect();
        Ok(Archive { tensors, document })
    }

    /// Builds it from the contents of a file, with where it comes from.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for anything that does not belong together.
    pub fn from_archive(archive: &Archive) -> Result<(Self, Provenance), Error> {
        let document: Document = section(archive, CATEGORICAL_DENSITY)?;
        let format = |problem: String| Error::from(CheckpointError::Format(problem));
        if document.format != FORMAT {
            return Err(format(format!(
                "format {} of a probability of categories, this version reads {FORMAT}",
                document.format
            )));
        }
        let categories = &document.categories;
        let (tensors, numbers) = categories.size(categories.width())?;
        let stored: u64 = archive.tensors.values().map(|(_, values)| values.len() as u64).sum();
        if tensors != archive.tensors.len() as u64 || numbers != stored {
            return Err(format(format!("{numbers} numbers described, {stored} numbers stored")));
        }
        match categories.restore(|name, shape| archive.get::<f64>(name, shape))? {
            FlowCategories::Modelled(density) => Ok((density, document.provenance)),
            FlowCategories::Given(_) => Err(format("categories without their probability".into())),
        }
    }

    /// Writes it alone, atomically.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file system refused.
    pub fn save(&self, path: impl AsRef<Path>, provenance: Provenance) -> Result<(), Error> {
        Ok(self.to_archive(provenance)?.write(path.as_ref())?)
    }

    /// Reads it from a file of it alone.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file cannot be read or holds something else.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self::from_archive(&Archive::read(path.as_ref())?)?.0)
    }
}
