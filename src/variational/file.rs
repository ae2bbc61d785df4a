//! Files of variational flows: those of a model under another name in the metadata, so that neither is taken for the other.

use std::collections::BTreeMap;
use std::path::Path;

use resflow_backend::Backend;

use super::VariationalFlow;
use crate::checkpoint::{Archive, ModelDocument, VARIATIONAL, VARIATIONAL_RUN, document_value, section};
use crate::error::{CheckpointError, Error};
use crate::flow::Flow;
use crate::registry::Registry;

impl<B: Backend> VariationalFlow<B> {
    /// Returns the contents of the flow's file.
    ///
    /// # Errors
    /// Returns [`Error::Unregistered`] for a transform that does not say what it is, [`Error::Input`] for a base density of your own,
    /// [`Error::Backend`] if the device failed.
    pub fn to_archive(&self) -> Result<Archive, Error> {
        let document = serde_json::json!({ VARIATIONAL: document_value(&ModelDocument::of(&self.flow)?)? });
        let mut archive = Archive { tensors: BTreeMap::new(), document };
        self.flow.store("", &mut archive)?;
        Ok(archive)
    }

    /// Builds the flow of a file's contents, with parts of your own that the registry makes.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] for anything that does not belong together, and for a model that is no variational flow;
    /// [`Error::Config`] for a part that is not in the registry.
    pub fn from_archive(backend: B, archive: &Archive, registry: &Registry<B>) -> Result<Self, Error> {
        if archive.document.get(VARIATIONAL_RUN).is_some() {
            let problem = "it is the state of a variational run: go on with it by `VariationalTrainer::resume`";
            return Err(CheckpointError::Format(problem.into()).into());
        }
        let document: ModelDocument = section(archive, VARIATIONAL)?;
        Self::from_flow(Flow::restore(backend, &document, "", archive, registry)?)
    }

    /// [Seals](Flow::seal) the flow and writes it atomically.
    ///
    /// # Errors
    /// Returns the errors of [`to_archive`](Self::to_archive), and [`Error::Checkpoint`] if the file system refused.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.flow.seal()?;
        Ok(self.to_archive()?.write(path.as_ref())?)
    }

    /// Reads a flow.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if the file cannot be read or is no variational flow, [`Error::Config`] if it has a part that
    /// only a registry knows.
    pub fn load(backend: B, path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::from_archive(backend, &Archive::read(path.as_ref())?, &Registry::new())
    }
}
