//! Random flows with the same numbers on every backend: built on the CPU in f32 and loaded from there.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use resflow::backend::{Backend, Element as _, Key, Noise, Shape};
use resflow::checkpoint::Archive;
use resflow::config::{BaseConfig, ContextConfig, Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::data::image::ImageSet;
use resflow::estimator::Estimator;
use resflow::flow::Flow;
use resflow::layer::Layer;

use crate::agreement::record::single;
use crate::common::{as_images, exact_config, exact_images, images, random_flow, rows, table, uniform_rows};

/// A flow's configuration and numbers.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) key: Key,
    pub(crate) archive: Archive,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with key {}", self.config, self.key.seed())
    }
}

impl Model {
    /// `None` where a σ is so close to κ that rounding decides whether the weight is normalised: its gradient jumps there.
    fn new(config: ModelConfig, seed: u64) -> Option<Self> {
        let key = Key::new(seed);
        let flow = random_flow(&single(), &config, key, 0.25);
        let spectra = flow.spectra().expect("no device fault");
        let clear = spectra.iter().flatten().all(|s| (s.sigma / s.coefficient - 1.0).abs() > 1e-3);
        clear.then(|| Self { config, key, archive: flow.to_archive().expect("stored") })
    }

    pub(crate) fn load<B: Backend>(&self, backend: &B) -> Flow<B> {
        Flow::from_archive(backend.clone(), &self.archive).expect("a model")
    }

    pub(crate) fn dimension(&self) -> usize {
        self.config.dimension()
    }

    /// The size of an image.
    pub(crate) fn image(&self) -> Option<[usize; 3]> {
        self.config.images().map(|c| [c.height, c.width, c.channels])
    }

    /// Rows that f32 holds: standard normals, or images well inside of [0, 1].
    pub(crate) fn rows(&self, n: usize) -> Table {
        let d = self.dimension();
        let key = self.key.named("x");
        let rows = if self.image().is_some() { uniform_rows(n, d, key) } else { rows(n, d, key) };
        table(d, rounded(rows.into_values()))
    }

    pub(crate) fn images(&self, n: usize) -> Option<ImageSet> {
        self.image().map(|image| images(n, image, self.key.named("images")))
    }

    /// [`rows`](Self::rows) as the first link takes them.
    pub(crate) fn batch<B: Backend>(&self, backend: &B, n: usize) -> B::Tensor {
        let rows = self.rows(n);
        let shape = with_rows(n, &self.config.sample_shape());
        match self.image() {
            Some(image) => upload(backend, &as_images(rows.values(), image), shape),
            None => upload(backend, rows.values(), shape),
        }
    }
}

/// The numbers that f32 makes of these.
pub(crate) fn rounded(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|v| f64::from(v as f32)).collect()
}

/// Standard normals that f32 holds.
pub(crate) fn normals(key: Key, n: usize) -> Vec<f64> {
    let mut values = vec![0.0; n];
    Noise::Normal.fill(key, 0, &mut values);
    rounded(values)
}

pub(crate) fn upload<B: Backend>(backend: &B, values: &[f64], shape: impl Into<Shape>) -> B::Tensor {
    let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
    backend.upload(&values, shape.into())
}

/// The shape of n rows.
pub(crate) fn with_rows(n: usize, row: &[usize]) -> Shape {
    Shape::new(&[&[n], row].concat())
}

/// Shows the number, the net and the row shape of every block.
pub(crate) fn each_block<B: Backend>(flow: &Flow<B>, mut show: impl FnMut(usize, &dyn Layer<B>, &[usize])) {
    let mut row = flow.config().sample_shape();
    for (l, link) in flow.transforms().iter().enumerate() {
        if let Some(net) = link.residual() {
            show(l, net, &row);
        }
        row = link.output_shape(&row).expect("rows that pass");
        if let Some(channels) = row.last_mut() {
            *channels -= link.factored_out();
        }
    }
}

pub(crate) fn estimator(text: &str) -> Estimator {
    text.parse().expect("an estimator")
}

/// All laws, probes and ways to share N.
pub(crate) const ESTIMATED: [&str; 6] = [
    "truncated:terms=5,probes=2",
    "truncated:terms=3,probe=gaussian",
    "roulette:law=geometric,p=0.5,exact=2,sharing=batch",
    "roulette:law=geometric,p=0.4,exact=1,draws=3,probes=2,sharing=sample",
    "roulette:law=poisson,rate=2,exact=2,sharing=batch",
    "roulette:law=poisson,rate=2,exact=3,probe=gaussian,sharing=sample",
];

/// The exact log det too.
pub(crate) fn estimators() -> impl Strategy<Value = Estimator> {
    prop_oneof![2 => Just("exact"), 6 => select(&ESTIMATED[..])].prop_map(estimator)
}

/// Digits of a closed chain of norms for so many layers, or a learned one, or the 2-norm.
fn norms(layers: usize) -> impl Strategy<Value = String> {
    let fixed = vec(select(vec!['1', '2', 'f']), layers).prop_map(|mut chain| {
        chain.push(chain[0]);
        chain.into_iter().collect()
    });
    prop_oneof![4 => Just("2".to_owned()), 1 => fixed, 1 => Just("learned".to_owned())]
}

/// Half of the flows are over N(0, I), and the others over other bases.
fn base(seed: u64) -> BaseConfig {
    const OTHERS: [&str; 3] = ["mixture:components=3", "mixture:components=2,covariance=diagonal", "student-t"];
    OTHERS.get(seed as usize % 6).map_or(BaseConfig::Normal, |text| text.parse().expect("a base"))
}

/// The numbers of a context.
pub(crate) const CONTEXT: usize = 2;

/// Models of these configurations that are given a context, every third with gates.
pub(crate) fn told(models: impl Strategy<Value = Model>) -> impl Strategy<Value = Model> {
    models.prop_filter_map("σ close to κ", |model| {
        let gates = model.key.seed() % 3 == 0;
        let context = ContextConfig { embedding: vec![5, 3], gates, ..ContextConfig::new(CONTEXT) };
        Model::new(model.config.with_context(Some(context)), model.key.seed())
    })
}

/// Flows over rows of one to seven numbers, through one to three blocks.
pub(crate) fn dense() -> impl Strategy<Value = Model> {
    dense_within(7, 3)
}

/// Smaller ones, for what takes many steps.
pub(crate) fn small_dense() -> impl Strategy<Value = Model> {
    dense_within(4, 2)
}

fn dense_within(dimension: usize, blocks: usize) -> impl Strategy<Value = Model> {
    let shape = (1..=dimension, 1..=blocks, vec(1_usize..=9, 1..=2));
    let rest = (select(&Nonlinearity::ALL[..]), any::<bool>(), any::<bool>(), 0.4..0.95, estimators(), estimators());
    (shape, rest, any::<u64>())
        .prop_flat_map(|(shape, rest, seed)| (norms(shape.2.len() + 1), Just((shape, rest, seed))))
        .prop_filter_map("σ close to κ", |(norms, ((d, blocks, hidden), rest, seed))| {
            let (activation, leading_activation, actnorm, coefficient, training, evaluation) = rest;
            // every fourth is a dense flow
            let dense = seed % 4 == 0;
            let model = if dense { Family::Dense } else { Family::Residual };
            let growth = if dense { activation.widening() } else { 1 };
            let hidden: Vec<_> = hidden.into_iter().map(|width| width * growth).collect();
            let norms = if activation.widening() == 1 && !dense { norms } else { "2".into() };
            let config = FlowConfig {
                model,
                activation,
                leading_activation,
                actnorm,
                coefficient,
                norms: norms.parse().expect("a chain"),
                training,
                evaluation,
                replicates: 3,
                base: base(seed),
                ..exact_config(d, blocks, &hidden)
            };
            Model::new(config.into(), seed)
        })
}

/// Flows whose forward pass solves equations, over rows or small images.
pub(crate) fn solving() -> impl Strategy<Value = Model> {
    let family = select(vec![Family::Implicit, Family::Monotone]);
    let shape =
        (1_usize..=4, 1_usize..=2, vec(1_usize..=5, 1..=2), select(vec![None, Some([2, 2, 1]), Some([2, 2, 3])]));
    let rest = (select(&Nonlinearity::ALL[..]), any::<bool>(), any::<bool>(), 0.4..0.9, estimators(), estimators());
    (family, shape, rest, any::<u64>()).prop_filter_map("σ close to κ", |(model, shape, rest, seed)| {
        let (d, blocks, hidden, image) = shape;
        let (activation, leading_activation, actnorm, coefficient, training, evaluation) = rest;
        let widen = |width: usize| width * activation.widening();
        let hidden: Vec<_> = hidden.into_iter().map(widen).collect();
        let (replicates, base) = (3, base(seed));
        let config: ModelConfig = match image {
            None => FlowConfig {
                model,
                activation,
                leading_activation,
                actnorm,
                coefficient,
                training,
                evaluation,
                replicates,
                base,
                ..exact_config(d, blocks, &hidden)
            }
            .into(),
            Some(image) => ImageConfig {
                model,
                activation,
                leading_activation,
                actnorm,
                coefficient,
                training,
                evaluation,
                replicates,
                base,
                kernels: vec![3, 1],
                filters: widen(3),
                ..exact_images(image, &[blocks])
            }
            .into(),
        };
        Model::new(config, seed)
    })
}

/// Flows over images in one or two scales of one or two blocks.
pub(crate) fn pictures() -> impl Strategy<Value = Model> {
    pictures_within(2, 0)
}

/// Those with a classifier of three classes.
pub(crate) fn hybrids() -> impl Strategy<Value = Model> {
    pictures_within(1, 3)
}

/// Those with one block in a scale.
pub(crate) fn small_pictures() -> impl Strategy<Value = Model> {
    pictures_within(1, 0)
}

/// At most 48 numbers in an image, or 16 where the log det is exact: it takes a product for each.
fn pictures_within(blocks: usize, classes: usize) -> impl Strategy<Value = Model> {
    let shape = (1_usize..=3, 1_usize..=3, 1_usize..=3, vec(1..=blocks, 1..=2), 1_usize..=5);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let rest = (select(&Nonlinearity::ALL[..]), 0_usize..=1, 1_u32..=8, 0.4..0.95, estimators(), estimators());
    let kernels = select(vec![vec![3_usize], vec![1, 3], vec![3, 1, 3], vec![5, 1]]);
    (shape, flags, rest, kernels, any::<u64>())
        .prop_flat_map(|(shape, flags, rest, kernels, seed)| {
            (norms(kernels.len()), Just((shape, flags, rest, kernels, seed)))
        })
        .prop_map(move |(norms, (shape, flags, rest, kernels, seed))| {
            let (h, w, c, blocks, filters) = shape;
            let (squeeze_first, factor_out, leading_activation, first_activation, actnorm) = flags;
            let (activation, fully_connected, bits, coefficient, training, evaluation) = rest;
            let dense = seed % 4 == 0;
            let model = if dense { Family::Dense } else { Family::Residual };
            let filters = if dense { filters * activation.widening() } else { filters };
            let norms = if activation.widening() == 1 && !dense { norms } else { "2".into() };
            let times = 1 << (blocks.len() - 1 + usize::from(squeeze_first));
            let config = ImageConfig {
                model,
                fully_connected_growth: 4,
                bits,
                squeeze_first,
                factor_out,
                // like a coupling it may stretch an error by any factor on the way back, which hybrids are not taken
                conditional_prior: factor_out && classes > 0 && seed % 3 == 0,
                filters,
                kernels,
                activation,
                leading_activation,
                first_activation,
                actnorm,
                classes,
                head_width: 5,
                coefficient,
                norms: norms.parse().expect("a chain"),
                fully_connected,
                training,
                evaluation,
                replicates: 2,
                base: base(seed),
                ..exact_images([h * times, w * times, c], &blocks)
            };
            (config, seed)
        })
        .prop_filter("small", |(config, _)| {
            let exact = [&config.training, &config.evaluation].iter().any(|e| matches!(e, Estimator::Exact(_)));
            config.dimension() <= if exact { 16 } else { 48 }
        })
        .prop_filter_map("σ close to κ", |(config, seed)| Model::new(config.into(), seed))
}
