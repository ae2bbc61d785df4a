//! Samples in the form in which the transforms take them: standardised, or dequantised with noise of the key.

use std::ops::Range;

use resflow_backend::{Backend, Element as _, Key, Shape};

use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::data::{Samples, Table, Values};
use crate::error::Error;
use crate::transform::dequantise;

/// Samples on their way to the device.
pub(crate) struct Upload<'a> {
    samples: Samples<'a>,
    /// The table in standardised units.
    standard: Option<Table>,
    /// The number of the first sample.
    first: u64,
    key: Key,
    /// The bits of a channel that the flow models; 8 of anything else.
    bits: u32,
}

impl<'a> Upload<'a> {
    /// Checks that samples fit a flow and standardises them.
    pub(crate) fn new<B: Backend>(flow: &PreparedFlow<B>, samples: Samples<'a>, key: Key) -> Result<Self, Error> {
        Self::starting_at(flow, samples, 0, key)
    }

    /// Takes samples of which the first is number `first`.
    pub(crate) fn starting_at<B: Backend>(
        flow: &PreparedFlow<B>,
        samples: Samples<'a>,
        first: u64,
        key: Key,
    ) -> Result<Self, Error> {
        flow.check_samples(samples)?;
        let standard = samples.table().map(|table| flow.standardiser().apply_computed(table));
        Ok(Self { samples, standard, first, key: key.named("dequantise"), bits: flow.bits().unwrap_or(8) })
    }

    /// The number of samples.
    pub(crate) fn count(&self) -> usize {
        self.samples.len()
    }

    /// Puts consecutive samples on the device, `[n, d]` or `[n, h, w, c]`, with what belongs to them.
    pub(crate) fn all<B: Backend>(&self, flow: &PreparedFlow<B>, range: Range<usize>) -> Batch<B> {
        let first = self.first.wrapping_add(range.start as u64);
        let x = match (self.samples.values(), &self.standard) {
            (Values::Tabular(table), standard) => flow.upload(standard.as_ref().unwrap_or(table), range.clone()),
            (Values::Images(set), _) => {
                let shape = Shape::from([range.len(), set.height(), set.width(), set.channels()]);
                let stride = shape.row_elements();
                let bytes = &set.bytes()[range.start * stride..range.end * stride];
                dequantise(flow.backend(), bytes, shape, self.bits, self.key, first)
            }
        };
        Batch { x, context: self.context(flow.backend(), range), first }
    }

    /// Puts some samples on the device, each with the noise of its own number; the first of them gives the batch its own.
    pub(crate) fn some<B: Backend>(&self, flow: &PreparedFlow<B>, which: &[usize]) -> Batch<B> {
        let backend = flow.backend();
        let x = match (self.samples.values(), &self.standard) {
            (Values::Tabular(table), standard) => {
                flow.upload(&standard.as_ref().unwrap_or(table).select(which), 0..which.len())
            }
            (Values::Images(_), _) => {
                let images: Vec<_> = which.iter().map(|&i| self.all(flow, i..i + 1).x).collect();
                backend.concat(&images.iter().collect::<Vec<_>>(), 0)
            }
        };
        let context = self.context(backend, which.iter().copied());
        let first = which.first().map_or(self.first, |&i| self.first.wrapping_add(i as u64));
        Batch { x, context, first }
    }

    /// What a conditional model is told of some samples, `[n, k]`.
    fn context<B: Backend>(&self, backend: &B, which: impl Iterator<Item = usize>) -> Option<B::Tensor> {
        let context = self.samples.context()?;
        let values: Vec<_> = which.flat_map(|i| context.row(i)).map(|&v| B::Elem::from_f64(v)).collect();
        Some(backend.upload(&values, [values.len() / context.width(), context.width()].into()))
    }
}
