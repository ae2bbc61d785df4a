//! The workloads of `benches/peer/normflows_bench.py`, as this library runs them: the same widths, blocks, batch,
//! coefficient and law (two exact terms, one probe, N per batch); and presets over images, as `benches/gpu` measures them.

use resflow::backend::{Backend, Key, Noise};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Preset};
use resflow::data::image::ImageSet;
use resflow::data::{Samples, Table};
use resflow::estimator::{Estimator, Law, RussianRoulette};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Error, Flow};

/// One workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Rows of a batch.
    pub(crate) batch: usize,
    pub(crate) blocks: usize,
    pub(crate) model: Model,
}

/// What is fitted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Model {
    Rows {
        dimension: usize,
        hidden: &'static [usize],
    },
    /// A flow of another family over rows, by hidden widths or growths of a block's layers.
    Of {
        family: Family,
        dimension: usize,
        hidden: &'static [usize],
    },
    Images {
        family: Family,
        size: usize,
        filters: usize,
    },
    Preset(Preset),
}

pub(crate) const WORKLOADS: [Workload; 3] = [
    Workload { name: "toy", batch: 500, blocks: 8, model: Model::Rows { dimension: 2, hidden: &[64, 64, 64] } },
    Workload { name: "tabular", batch: 500, blocks: 10, model: Model::Rows { dimension: 43, hidden: &[128, 128] } },
    Workload { name: "conv", batch: 32, blocks: 4, model: convolutions(Family::Residual, 128) },
];

/// Tables and images by families that the peer does not have: dense flows, by the tabular proposal, and flows whose forward pass is a solve.
#[allow(dead_code, reason = "comparisons with the peer leave them out")]
pub(crate) const OTHERS: [Workload; 6] = [
    Workload { name: "dense", batch: 500, blocks: 10, model: of(Family::Dense, &[64, 64, 64]) },
    Workload { name: "implicit", batch: 500, blocks: 5, model: of(Family::Implicit, &[128, 128]) },
    Workload { name: "monotone", batch: 500, blocks: 5, model: of(Family::Monotone, &[64, 64, 64]) },
    Workload { name: "dense-conv", batch: 32, blocks: 4, model: convolutions(Family::Dense, 128) },
    Workload { name: "implicit-conv", batch: 32, blocks: 4, model: convolutions(Family::Implicit, 128) },
    Workload { name: "monotone-conv", batch: 32, blocks: 4, model: convolutions(Family::Monotone, 128) },
];

const fn convolutions(family: Family, filters: usize) -> Model {
    Model::Images { family, size: 28, filters }
}

#[allow(dead_code, reason = "comparisons with the peer leave them out")]
const fn of(family: Family, hidden: &'static [usize]) -> Model {
    Model::Of { family, dimension: 43, hidden }
}

/// Presets over images with the batches that they are trained with, small ones first.
#[allow(dead_code, reason = "criterion's benches leave them out")]
pub(crate) const PRESETS: [Workload; 4] = [
    Workload { name: "mnist-small", batch: 64, blocks: 16, model: Model::Preset(Preset::MnistSmall) },
    Workload { name: "cifar10-small", batch: 64, blocks: 16, model: Model::Preset(Preset::Cifar10Small) },
    Workload { name: "mnist", batch: 64, blocks: 52, model: Model::Preset(Preset::Mnist) },
    Workload { name: "cifar10", batch: 64, blocks: 52, model: Model::Preset(Preset::Cifar10) },
];

/// What a workload is run on.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Rows(Table),
    Images(ImageSet),
}

impl Data {
    pub(crate) fn samples(&self) -> Samples<'_> {
        match self {
            Self::Rows(table) => table.into(),
            Self::Images(set) => set.into(),
        }
    }
}

impl Workload {
    /// Whether `cargo bench` runs this.
    #[allow(dead_code, reason = "comparisons with the peer are always measured")]
    pub(crate) fn is_measured() -> bool {
        std::env::args().any(|argument| argument == "--bench")
    }

    /// The same with few rows unless `cargo bench` measures it: that it runs at all is shown as well, and on software Vulkan in seconds
    /// instead of minutes.
    #[allow(dead_code, reason = "comparisons with the peer are always measured")]
    pub(crate) fn or_few_rows(self) -> Self {
        let few = if matches!(self.model, Model::Images { .. } | Model::Preset(_)) { 2 } else { 8 };
        Self { batch: if Self::is_measured() { self.batch } else { self.batch.min(few) }, ..self }
    }

    /// The configuration of the flow.
    pub(crate) fn config(&self) -> Result<ModelConfig, Error> {
        let roulette = |law| RussianRoulette::new(law, 2).map(Estimator::RussianRoulette);
        Ok(match self.model {
            Model::Rows { dimension, hidden } => ModelConfig::Rows(FlowConfig {
                blocks: self.blocks,
                hidden: hidden.to_vec(),
                leading_activation: true,
                coefficient: 0.9,
                training: roulette(Law::ShiftedGeometric { p: 0.5 })?,
                ..FlowConfig::new(dimension)
            }),
            Model::Of { family, dimension, hidden } => ModelConfig::Rows(FlowConfig {
                blocks: self.blocks,
                hidden: hidden.to_vec(),
                coefficient: 0.9,
                training: roulette(Law::ShiftedGeometric { p: 0.5 })?,
                ..FlowConfig::of(family, dimension)
            }),
            Model::Images { family, size, filters } => {
                let residual = ImageConfig {
                    height: size,
                    width: size,
                    blocks: vec![self.blocks],
                    filters,
                    first_activation: true,
                    leading_activation: true,
                    fully_connected: 0,
                    training: roulette(Law::Poisson { rate: 2.0 })?,
                    ..ImageConfig::default()
                };
                ModelConfig::Images(residual.of(family))
            }
            Model::Preset(preset) => ModelConfig::Images(preset.flow()),
        })
    }

    /// Standard normal rows, or images of noise.
    pub(crate) fn data(&self, count: usize) -> Result<Data, Error> {
        Ok(match self.model {
            Model::Rows { dimension, .. } | Model::Of { dimension, .. } => {
                let mut values = vec![0.0; count * dimension];
                Noise::Normal.fill(Key::new(3), 0, &mut values);
                Data::Rows(Table::new(None, dimension, values)?)
            }
            Model::Images { size, .. } => Data::Images(images(count, [size, size, 1])?),
            Model::Preset(preset) => {
                let ImageConfig { height, width, channels, .. } = preset.flow();
                Data::Images(images(count, [height, width, channels])?)
            }
        })
    }

    /// A run on such data, with Adam at 1e−3 and five power iterations a step, as the peer.
    pub(crate) fn trainer<B: Backend>(&self, backend: B, config: TrainConfig) -> Result<Trainer<B>, Error> {
        let flow = Flow::new(backend, self.config()?, Key::new(0))?;
        let source = match self.data(2 * self.batch)? {
            Data::Rows(table) => Source::from(table),
            Data::Images(set) => Source::from(set),
        };
        Trainer::new(flow, source, &self.settings(config), Budget::Steps(1_000_000), Key::new(1))
    }

    /// Settings with the workload's batch and the peer's optimiser.
    pub(crate) fn settings(&self, config: TrainConfig) -> TrainConfig {
        TrainConfig {
            batch: self.batch,
            learning_rate: 1e-3,
            warmup: 0,
            betas: [0.9, 0.999],
            power_iterations: 5,
            ..config
        }
    }

    /// The settings of training that suit the workload.
    pub(crate) fn training(&self) -> TrainConfig {
        let memory = match self.model {
            Model::Rows { .. } | Model::Of { .. } => resflow::bijection::Memory::Store,
            Model::Images { .. } | Model::Preset(_) => resflow::bijection::Memory::Recompute,
        };
        TrainConfig { memory, ..TrainConfig::default() }
    }
}

/// Images of noise.
fn images(count: usize, [height, width, channels]: [usize; 3]) -> Result<ImageSet, Error> {
    let mut values = vec![0.0; count * height * width * channels];
    Noise::Uniform.fill::<f64>(Key::new(3), 0, &mut values);
    let bytes = values.iter().map(|v| (v * 256.0) as u8).collect();
    Ok(ImageSet::new(height, width, channels, bytes, None)?)
}
