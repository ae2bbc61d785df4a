//! The workloads of `benches/peer/normflows_bench.py`, as this library runs them: the same widths, blocks, batch,
//! coefficient and law (geometric ½, two exact terms, one probe, N per batch).

use resflow::backend::{Backend, Key, Noise};
use resflow::config::FlowConfig;
use resflow::data::Table;
use resflow::estimator::{Estimator, Law, RussianRoulette};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Error, Flow};

/// Rows of a batch.
pub(crate) const BATCH: usize = 500;

/// One workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) dimension: usize,
    pub(crate) hidden: &'static [usize],
    pub(crate) blocks: usize,
}

pub(crate) const WORKLOADS: [Workload; 2] = [
    Workload { name: "toy", dimension: 2, hidden: &[64, 64, 64], blocks: 8 },
    Workload { name: "tabular", dimension: 43, hidden: &[128, 128], blocks: 10 },
];

impl Workload {
    /// The configuration of the flow.
    pub(crate) fn config(&self) -> Result<FlowConfig, Error> {
        Ok(FlowConfig {
            blocks: self.blocks,
            hidden: self.hidden.to_vec(),
            coefficient: 0.9,
            training: Estimator::RussianRoulette(RussianRoulette::new(Law::ShiftedGeometric { p: 0.5 }, 2)?),
            ..FlowConfig::new(self.dimension)
        })
    }

    /// Standard normal rows.
    pub(crate) fn rows(&self, rows: usize) -> Result<Table, Error> {
        let mut values = vec![0.0; rows * self.dimension];
        Noise::Normal.fill(Key::new(3), 0, &mut values);
        Ok(Table::new(None, self.dimension, values)?)
    }

    /// A run on those rows, with Adam at 1e−3 and five power iterations a step, as the peer.
    pub(crate) fn trainer<B: Backend>(&self, backend: B) -> Result<Trainer<B>, Error> {
        let flow = Flow::new(backend, &self.config()?, Key::new(0))?;
        let train = TrainConfig {
            batch: BATCH,
            learning_rate: 1e-3,
            warmup: 0,
            betas: [0.9, 0.999],
            power_iterations: 5,
            ..TrainConfig::default()
        };
        Trainer::new(flow, Source::Table(self.rows(2 * BATCH)?), &train, Budget::Steps(1_000_000), Key::new(1))
    }
}
