//! Samples in the form in which the transforms take them: behind the maps of their columns, or dequantised with noise of
//! the key.

use std::ops::Range;

use resflow_backend::{Backend, Key, Shape};

use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::data::column::StandardRows;
use crate::data::{Samples, Values};
use crate::error::Error;
use crate::invert::Status;
use crate::transform;

/// Samples on their way to the device.
pub(crate) struct Upload<'a> {
    samples: Samples<'a>,
    /// The table behind the maps of its columns.
    standard: Option<StandardRows>,
    /// The number of the first sample.
    first: u64,
    key: Key,
    /// The bits of a channel that the flow models; 8 of anything else.
    bits: u32,
}

impl<'a> Upload<'a> {
    /// Checks that samples fit a flow and maps their columns.
    pub(crate) fn new<B: Backend>(flow: &PreparedFlow<B>, samples: Samples<'a>, key: Key) -> Result<Self, Error> {
        Self::starting_at(flow, samples, 0, key, 0)
    }

    /// Takes samples of which the first is number `first`, with the grids' noise of number `draw`.
    pub(crate) fn starting_at<B: Backend>(
        flow: &PreparedFlow<B>,
        samples: Samples<'a>,
        first: u64,
        key: Key,
        draw: usize,
    ) -> Result<Self, Error> {
        flow.check_samples(samples)?;
        let key = key.named("dequantise");
        let standard = samples.table().map(|table| flow.columns().forward_computed(table, key, draw));
        Ok(Self { samples, standard, first, key, bits: flow.bits().unwrap_or(8) })
    }

    /// ln |det| of the columns' maps at a sample, nats.
    pub(crate) fn log_det(&self, sample: usize) -> f64 {
        self.standard.as_ref().map_or(-0.0, |standard| standard.log_det[sample])
    }

    /// Returns `true` if a value of a sample is outside of its column's support.
    pub(crate) fn is_outside(&self, sample: usize) -> bool {
        self.standard.as_ref().is_some_and(|standard| standard.status[sample] == Status::OutOfSupport)
    }

    /// Takes gradients of log densities of some samples through the columns' maps, to the data's units.
    pub(crate) fn pull_back<B: Backend>(&self, flow: &PreparedFlow<B>, range: Range<usize>, of_z: &[f64]) -> Vec<f64> {
        flow.columns().pull_back(self.samples.table(), range, self.key, of_z)
    }

    /// The number of samples.
    pub(crate) fn count(&self) -> usize {
        self.samples.len()
    }

    /// Puts consecutive samples on the device, `[n, d]` or `[n, h, w, c]`, without contexts.
    pub(crate) fn all<B: Backend>(&self, flow: &PreparedFlow<B>, range: Range<usize>) -> Batch<B> {
        let first = self.first.wrapping_add(range.start as u64);
        let mut quantised = None;
        let x = match (self.samples.values(), &self.standard) {
            (Values::Tabular(table), standard) => {
                flow.upload(standard.as_ref().map_or(table, |standard| &standard.table), range.clone())
            }
            (Values::Images(set), _) => {
                let shape = Shape::from([range.len(), set.height(), set.width(), set.channels()]);
                let stride = shape.row_elements();
                let bytes = &set.bytes()[range.start * stride..range.end * stride];
                let images = transform::quantised(flow.backend(), bytes, shape, self.bits, self.key, first);
                let x = images.place(flow.backend(), &images.noise, self.bits);
                quantised = flow.dequantiser().map(|_| images);
                x
            }
        };
        Batch { x, context: None, first, quantised }
    }

    /// Puts some samples on the device, each with the noise of its own number; the first of them gives the batch its own.
    pub(crate) fn some<B: Backend>(&self, flow: &PreparedFlow<B>, which: &[usize]) -> Batch<B> {
        let backend = flow.backend();
        let first = which.first().map_or(self.first, |&i| self.first.wrapping_add(i as u64));
        let x = match (self.samples.values(), &self.standard) {
            (Values::Tabular(table), standard) => {
                let table = standard.as_ref().map_or(table, |standard| &standard.table);
                flow.upload(&table.select(which), 0..which.len())
            }
            (Values::Images(_), _) => {
                let images: Vec<_> = which.iter().map(|&i| self.all(flow, i..i + 1)).collect();
                return Batch::join(backend, &images).starting_at(first);
            }
        };
        Batch::new(x).starting_at(first)
    }
}
