//! The context of a conditional flow: how it is standardised and embedded, and which samples have which.

use std::ops::Range;

use resflow_backend::{Backend, Element as _};

use super::categories::{Contexts, FlowCategories};
use super::prepared::PreparedFlow;
use crate::architecture::Initial;
use crate::batch::Batch;
use crate::conditional::{Embedding, PreparedEmbedding};
use crate::config::ContextConfig;
use crate::data::Standardiser;
use crate::error::{ConfigError, Error};

/// The standardisation and the embedding of a conditional flow's contexts.
#[derive(Debug, Clone)]
pub struct FlowContext<B: Backend> {
    standardiser: Standardiser,
    embedding: Embedding<B>,
}

impl<B: Backend> FlowContext<B> {
    /// The context of a configuration; it is not standardised.
    pub(super) fn configured(backend: &B, config: &ContextConfig, initial: Initial) -> Self {
        let key = match initial {
            Initial::Random(key) => Some(key.named("embedding")),
            Initial::Zeros => None,
        };
        Self {
            standardiser: Standardiser::identity(config.columns),
            embedding: Embedding::new(backend, config.columns, &config.embedding, key),
        }
    }

    /// k, the numbers of a context.
    pub fn columns(&self) -> usize {
        self.embedding.context()
    }

    /// The embedding, of contexts in standardised units.
    pub fn embedding(&self) -> &Embedding<B> {
        &self.embedding
    }

    /// The centres and scales of the context's columns. Those of a column that was the same in all training rows are its value
    /// and 1.
    pub fn standardiser(&self) -> &Standardiser {
        &self.standardiser
    }

    pub(crate) fn embedding_mut(&mut self) -> &mut Embedding<B> {
        &mut self.embedding
    }

    /// Sets the standardisation.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if it is of another number of columns.
    pub(crate) fn set_standardiser(&mut self, standardiser: Standardiser) -> Result<(), ConfigError> {
        if standardiser.width() != self.columns() {
            return Err(ConfigError::Inconsistent(format!(
                "a standardisation of {} columns for a context of {}",
                standardiser.width(),
                self.columns()
            )));
        }
        self.standardiser = standardiser;
        Ok(())
    }

    pub(super) fn prepare(&self, backend: &B) -> PreparedContext<B> {
        PreparedContext { standardiser: self.standardiser.clone(), embedding: self.embedding.prepare(backend) }
    }
}

/// The error of a conditional flow that was given no context.
pub(crate) fn missing() -> Error {
    Error::Input(
        "the model is a conditional density p(x | c), and the samples have no context: give each one \
         (`Dataset::with_context`), or take the density of one (`condition`)"
            .into(),
    )
}

/// A context ready for computing.
#[derive(Debug)]
pub(crate) struct PreparedContext<B: Backend> {
    pub(crate) standardiser: Standardiser,
    pub(crate) embedding: PreparedEmbedding<B>,
}

impl<B: Backend> PreparedContext<B> {
    /// Checks the width of contexts.
    pub(super) fn check(&self, contexts: &Contexts<'_>) -> Result<(), Error> {
        let (found, wanted) = (contexts.width(), self.embedding.context());
        if found == wanted {
            return Ok(());
        }
        Err(Error::Input(format!("contexts of {found} columns, the model is given {wanted}")))
    }

    /// Some rows of contexts in standardised units on the device, `[n, k]`.
    pub(super) fn upload(&self, backend: &B, contexts: &Contexts<'_>, which: impl Iterator<Item = usize>) -> B::Tensor {
        let (k, mean, deviation) = (contexts.width(), self.standardiser.mean(), self.standardiser.deviation());
        let mut values = Vec::new();
        for i in which {
            contexts.append(i, mean, deviation, &mut |c| values.push(B::Elem::from_f64(c)));
        }
        backend.upload(&values, [values.len() / k, k].into())
    }
}

/// The contexts that samples are given.
#[derive(Debug)]
pub(crate) enum Given<'a, B: Backend> {
    /// None: the flow looks at no context.
    Nothing,
    /// Each its own, in the data's units; they are embedded with the samples.
    Rows(&'a Contexts<'a>),
    /// Context i for the samples from i·`each` on, or one for all.
    Shared {
        /// Each in standardised units, `[m, k]`,
        contexts: &'a B::Tensor,
        /// and its embedding, `[m, e]`.
        embedding: &'a B::Tensor,
        each: usize,
    },
}

#[expect(clippy::expl_impl_clone_on_copy, reason = "derived, it would ask that a backend is Copy")]
impl<B: Backend> Clone for Given<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Given<'_, B> {}

impl<'a, B: Backend> Given<'a, B> {
    /// What samples bring, if anything.
    pub(crate) fn brought(contexts: Option<&'a Contexts<'a>>) -> Self {
        contexts.map_or(Self::Nothing, Self::Rows)
    }

    /// The embeddings of some samples' contexts, `[n, e]` or one for all, `[1, e]`.
    pub(super) fn embedding(
        &self,
        flow: &PreparedFlow<B>,
        which: &mut dyn Iterator<Item = usize>,
    ) -> Option<B::Tensor> {
        let backend = flow.backend();
        match self {
            Self::Nothing => None,
            Self::Rows(contexts) => {
                let context = flow.prepared_context()?;
                Some(context.embedding.embed(backend, &context.upload(backend, contexts, which)))
            }
            Self::Shared { embedding, each, .. } => Some(pick(backend, embedding, *each, which)),
        }
    }

    /// The contexts of some consecutive samples in standardised units, `[n, k]` or one for all, `[1, k]`.
    pub(super) fn standard(&self, flow: &PreparedFlow<B>, range: Range<usize>) -> Option<B::Tensor> {
        let backend = flow.backend();
        match self {
            Self::Nothing => None,
            Self::Rows(contexts) => Some(flow.prepared_context()?.upload(backend, contexts, range)),
            Self::Shared { contexts, each, .. } => Some(pick(backend, contexts, *each, &mut range.clone())),
        }
    }
}

/// The rows that belong to some samples, each of which belongs to `each` consecutive ones; all of one row.
fn pick<B: Backend>(backend: &B, rows: &B::Tensor, each: usize, which: &mut dyn Iterator<Item = usize>) -> B::Tensor {
    if backend.shape(rows).rows() == 1 {
        return rows.clone();
    }
    backend.take_rows(rows, &which.map(|i| (i / each) as u32).collect::<Vec<_>>())
}

impl<B: Backend> PreparedFlow<B> {
    pub(crate) fn prepared_context(&self) -> Option<&PreparedContext<B>> {
        self.context.as_ref()
    }

    /// Checks that nothing is to be given, where nothing can be.
    pub(super) fn check_unconditional(&self) -> Result<(), Error> {
        match self.categories() {
            Some(FlowCategories::Modelled(_)) => Err(Error::Input(
                "the model has categories, and numbers are decoded given theirs: take it at them (`condition`)".into(),
            )),
            _ if self.context.is_none() => Ok(()),
            _ => Err(missing()),
        }
    }

    /// Embeds the contexts of a batch, which are in standardised units, for the transforms.
    pub(crate) fn embedded(&self, backend: &B, batch: Batch<B>) -> Batch<B> {
        match (&self.context, &batch.context) {
            (Some(own), Some(context)) => {
                let embedding = own.embedding.embed(backend, context);
                batch.with_context(Some(embedding))
            }
            _ => batch,
        }
    }

    /// Counts the contexts that were embedded since the flow was prepared; 0 of an unconditional one.
    pub fn embedded_contexts(&self) -> u64 {
        self.context.as_ref().map_or(0, |context| context.embedding.embedded())
    }
}
