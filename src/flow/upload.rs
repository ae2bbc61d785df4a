//! Samples in the form in which the transforms take them: standardised, or dequantised with noise of the key.

use std::ops::Range;

use resflow_backend::{Backend, Key, Shape};

use super::PreparedFlow;
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

    /// The number of the first sample.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Puts consecutive samples on the device, `[n, d]` or `[n, h, w, c]`.
    pub(crate) fn all<B: Backend>(&self, flow: &PreparedFlow<B>, range: Range<usize>) -> B::Tensor {
        match (self.samples.values(), &self.standard) {
            (Values::Tabular(table), standard) => flow.upload(standard.as_ref().unwrap_or(table), range),
            (Values::Images(set), _) => {
                let shape = Shape::from([range.len(), set.height(), set.width(), set.channels()]);
                let stride = shape.row_elements();
                let bytes = &set.bytes()[range.start * stride..range.end * stride];
                dequantise(
                    flow.backend(),
                    bytes,
                    shape,
                    self.bits,
                    self.key,
                    self.first.wrapping_add(range.start as u64),
                )
            }
        }
    }

    /// Puts some samples on the device, each with the noise of its own number.
    pub(crate) fn some<B: Backend>(&self, flow: &PreparedFlow<B>, which: &[usize]) -> B::Tensor {
        match (self.samples.values(), &self.standard) {
            (Values::Tabular(table), standard) => {
                flow.upload(&standard.as_ref().unwrap_or(table).select(which), 0..which.len())
            }
            (Values::Images(_), _) => {
                let images: Vec<_> = which.iter().map(|&i| self.all(flow, i..i + 1)).collect();
                flow.backend().concat(&images.iter().collect::<Vec<_>>(), 0)
            }
        }
    }
}
