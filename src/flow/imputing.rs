//! The imputer that belongs to a flow, and what it needs of one.

use std::sync::Arc;

use resflow_backend::{Backend, Key};

use super::conditioned::Conditioned;
use super::exact::ExactLogProb;
use super::inverse::Decoded;
use super::log_prob::evaluate;
use super::prepared::PreparedFlow;
use super::{Flow, Samples};
use crate::data::{ColumnMaps, Table};
use crate::error::Error;
use crate::invert::Inversion;
use crate::missing::Imputer;

impl<B: Backend> Flow<B> {
    /// What fills in missing cells, of a flow that was fitted to rows with such.
    pub fn imputer(&self) -> Option<&Imputer<B>> {
        self.imputer.as_deref()
    }

    pub(crate) fn keep_imputer(&mut self, imputer: Imputer<B>) {
        self.imputer = Some(Arc::new(imputer));
    }
}

impl<B: Backend> PreparedFlow<B> {
    /// The same flow over samples that are behind the maps of its columns.
    pub(crate) fn behind_maps(self) -> Self {
        Self { columns: ColumnMaps::identity(self.columns.width()), ..self }
    }
}

impl<B: Backend> Conditioned<'_, B> {
    /// Decodes the standard normal rows of z, of which `each` consecutive ones belong to a context.
    pub(crate) fn decode_own(&self, z: &Table, each: usize) -> Result<Decoded, Error> {
        self.flow().decode_given(z, self.shared(each), &Inversion::for_backend::<B>())
    }

    /// Computes log p of samples, nats, of which `each` consecutive ones belong to a context, where nothing is estimated.
    pub(crate) fn log_prob_own(&self, samples: Samples<'_>, each: usize) -> Result<ExactLogProb, Error> {
        evaluate(self.flow(), samples, self.shared(each), 0, Key::new(0), false)?.1.try_into()
    }
}
