//! Variational inference: a flow fitted to a density that can be evaluated but not sampled, by reverse Kullback–Leibler
//! divergence.
//!
//! The target is a density p̃ up to a constant, p = p̃/Z ([`Target`]). A [`VariationalFlow`] runs from latents to samples, x = m + s ∘ T(z)
//! with z from the base density, so that neither training nor sampling solves for anything, unless T itself is a solve (implicit and monotone
//! blocks, continuous flows):
//!
//! log q(x) = log p₀(z) − log|det ∂T/∂z| − Σ ln s,  KL(q ‖ p) = E_q[log q(x) − log p̃(x)] + ln Z.
//!
//! −E_q[log q − log p̃] is the evidence lower bound (ELBO), at most ln Z. The gradient is the pathwise one (reparametrisation), whole or
//! without the score's part, which has mean zero ([`GradientEstimator`], Roeder et al. 2017).
//!
//! Whatever needs e^{log q} — importance weights, ln Z, effective sample sizes — is biased if log q is a noisy estimate. It is
//! therefore computed from [`ExactSamples`] alone, which only [`PreparedVariational::sample_exact`] makes.
//!
//! ```
//! use resflow::NdArray;
//! use resflow::backend::Key;
//! use resflow::config::FlowConfig;
//! use resflow::train::Budget;
//! use resflow::variational::{Importance, Target, TargetError, VariationalConfig, VariationalFlow, VariationalTrainer};
//!
//! /// exp(−½(x − 3)²), whose integral is √(2π).
//! struct Bell;
//!
//! impl Target for Bell {
//!     fn dimension(&self) -> usize {
//!         1
//!     }
//!
//!     fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
//!         for ((x, l), g) in rows.iter().zip(log_density).zip(gradient) {
//!             (*l, *g) = (-0.5 * (x - 3.0).powi(2), 3.0 - x);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let config = FlowConfig { blocks: 2, hidden: vec![16], ..FlowConfig::new(1) };
//! let flow = VariationalFlow::new(NdArray::<f64>::new(), config, Key::new(0))?;
//! let settings = VariationalConfig { batch: 128, ..VariationalConfig::default() };
//! let mut trainer = VariationalTrainer::new(flow, Bell, &settings, Budget::Steps(200), Key::new(1))?;
//! trainer.run(|_| ())?;
//! let samples = trainer.model().prepare().sample_exact(2000, Key::new(2))?;
//! let found = Importance::new(&samples, &Bell)?;
//! assert!((found.log_evidence - 0.5 * (2.0 * std::f64::consts::PI).ln()).abs() < 0.1);
//! # Ok::<(), resflow::Error>(())
//! ```

mod config;
mod drawn;
mod file;
mod flow;
mod gradient;
mod importance;
mod prepared;
mod state;
mod target;
mod trainer;

pub use config::{GradientEstimator, VariationalConfig};
pub use drawn::{Drawn, ExactSamples, Located};
pub use flow::VariationalFlow;
pub use gradient::{VariationalGradient, VariationalObjective};
pub use importance::Importance;
pub use prepared::PreparedVariational;
pub use target::{Target, TargetError};
pub use trainer::{VariationalStep, VariationalTrainer};
