//! Residual flows: invertible generative models y = x + g(x) with Lip(g) < 1 (Behrmann et al. 2019, arXiv 1811.00995;
//! Chen, Behrmann, Duvenaud and Jacobsen 2019, arXiv 1906.02735), generic over a [`Backend`](backend::Backend).
//!
//! The flows that they are compared with, i-ResNets, Real NVP, Glow, Flow++, neural spline flows and continuous flows, are configurations of the
//! same transforms, trainer and files: [`config::Family`].
//!
//! # The model
//! A [`Flow`] maps data x to z through transforms F = F_L ∘ … ∘ F₁ and gives z a standard normal density, or another
//! [`base`]:
//!
//! ```text
//! log p(x) = log N(F(x); 0, I) + Σ_l log|det ∂F_l|                     nats, in the data's own units
//! F_l(x) = x + g_l(x),  Lip(g_l) ≤ c < 1,  J = ∂g_l/∂x                 a residual block
//! log det(I + J) = Σ_{k≥1} (−1)^{k+1} tr(Jᵏ)/k                         its log det, positive determinant
//! ```
//!
//! * The Lipschitz bound comes from normalised weights, W / max(1, σ/κ): [`lipschitz`], [`layer`].
//! * The log det is exact for small d and otherwise an unbiased, randomly truncated series (Russian roulette) with an
//!   error bar: [`estimator`], [`flow`].
//! * Its gradient is the Neumann series uᵀ ∂J v, in memory that does not depend on the number of terms: [`estimator`],
//!   [`train`].
//! * The inverse is a fixed point, with a residual, an error bound and a status for every sample: [`invert`].
//!
//! Values, surrogates and estimates are different types: what is called a log likelihood here is one.
//!
//! # A first model
//! [`fit`] and [`Model`] take arrays and give arrays; [`Fit`] has settings. What is behind them, for a backend that is
//! known at compile time:
//! ```
//! use resflow::backend::Key;
//! use resflow::config::FlowConfig;
//! use resflow::data::ToyDensity;
//! use resflow::train::{Budget, TrainConfig, Trainer};
//! use resflow::{Flow, NdArray};
//!
//! // the device, the architecture, and a key for every random number
//! let config = FlowConfig { blocks: 4, ..FlowConfig::new(2) };
//! let flow = Flow::new(NdArray::<f32>::new(), &config, Key::new(0))?;
//!
//! // fit; validation data are never trained on, the best validated average of the weights is the model
//! let source = ToyDensity::EightGaussians;
//! let mut trainer = Trainer::new(flow, source, &TrainConfig::default(), Budget::Steps(30), Key::new(1))?;
//! trainer.run(|step, _validation| println!("{}: {:.3} nats", step.step, step.train_nll))?;
//! let mut model = trainer.model();
//!
//! // score, with standard errors; sample, with the status of every sample
//! let score = model.log_prob(trainer.validation_samples(), Key::new(2))?;
//! println!("log p = {:.3} ± {:.3}", score.mean(), score.mean_standard_error());
//! let samples = model.sample(1000, Key::new(3))?;
//! assert!(samples.residual < 1e-4);
//!
//! // keep
//! let folder = tempfile::tempdir()?;
//! model.save(folder.path().join("model.safetensors"))?;
//! let again = Flow::load(NdArray::<f64>::new(), folder.path().join("model.safetensors"))?;
//! # assert_eq!(again.parameters(), model.parameters());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where things are
//! | module | holds |
//! |---|---|
//! | [`model`], [`device`] | the front door: fit, arrays in and out, devices chosen at run time |
//! | [`flow`] | the flow, its evaluation, gradient, encoding, decoding and sampling |
//! | [`chain`], [`base`] | the walk through transforms, and the base densities |
//! | [`classifier`], [`anomaly`] | hybrid models, p(x) p(y \| x); out-of-distribution detection |
//! | [`config`], [`stage`], [`checkpoint`], [`registry`] | configurations, what they spell out, files, one's own parts in them |
//! | [`conditional`] | densities p(x \| c) of x given a context c |
//! | [`categorical`] | probabilities p(k) of the categories in a table |
//! | [`train`] | optimiser, schedules, averaging, validation, resumable runs |
//! | [`bijection`], [`block`], [`coupling`], [`spline`], [`mixture_coupling`], [`logistic`], [`ode`], [`transform`] | transforms: the residual block, couplings, continuous flows, ActNorm |
//! | [`layer`], [`lipschitz`] | layers of g with their four derivatives, and their normalisation |
//! | [`module`], [`batch`] | what parts and samples are made of |
//! | [`estimator`] | exact, truncated and roulette log dets, and the choice between them |
//! | [`invert`], [`reference`](mod@reference) | fixed points, plain and accelerated; the measure of their errors in double precision |
//! | [`missing`] | rows with missing cells: learned from, scored and filled in |
//! | [`import`] | files of the reference implementation |
//! | [`variational`] | flows fitted to a density that can be evaluated: reverse KL, importance weights, ln Z |
//! | [`data`] | samples with weights and labels, tables, images, built-in densities, standardisation |
//! | [`backend`] | the interface of devices, for writing one |
//!
//! # Randomness
//! Every random number is a function of a [`Key`](backend::Key) and an address. The same key gives the same
//! numbers on every backend (normal ones up to a few ulp), in every precision and on any number of threads; there
//! is no global state.
#![forbid(unsafe_code)]

pub mod anomaly;
mod architecture;
pub mod base;
pub mod batch;
pub mod bijection;
pub mod block;
pub mod calibration;
pub mod categorical;
pub mod chain;
pub mod check;
pub mod checkpoint;
pub mod classifier;
pub mod conditional;
pub mod config;
pub mod coupling;
mod coupling_net;
pub mod data;
pub mod dequantiser;
#[cfg(any(feature = "cpu", feature = "gpu"))]
pub mod device;
pub mod error;
pub mod estimator;
pub mod flow;
pub mod group;
#[cfg(feature = "import")]
pub mod import;
pub mod invert;
pub mod layer;
pub mod lipschitz;
pub mod logistic;
pub mod missing;
pub mod mixture_coupling;
#[cfg(feature = "ndarray")]
pub mod model;
pub mod module;
pub mod ode;
pub mod reference;
pub mod registry;
pub mod spline;
pub mod stage;
mod tiled;
pub mod train;
pub mod transform;
pub mod variational;

pub use error::Error;
pub use flow::Flow;
#[cfg(feature = "ndarray")]
pub use model::{Fit, Model, fit};
pub use resflow_backend as backend;
#[cfg(feature = "cpu")]
pub use resflow_ndarray::NdArray;
#[cfg(feature = "gpu")]
pub use resflow_wgpu::{self as gpu, Wgpu};

/// A flow and what it is prepared to serve any number of threads.
#[cfg(feature = "cpu")]
const _: fn() = || {
    fn assert<T: Send + Sync>() {}
    assert::<Flow<NdArray<f32>>>();
    assert::<flow::PreparedFlow<NdArray<f32>>>();
};

/// Compiles the README's examples.
#[cfg(all(doctest, feature = "ndarray", feature = "formats"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// Compiles the example of docs/gpu.md.
#[cfg(all(doctest, feature = "cpu", feature = "gpu"))]
#[doc = include_str!("../docs/gpu.md")]
pub struct GpuManual;
