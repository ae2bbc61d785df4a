//! The settings of a training run.

use std::collections::BTreeMap;

use resflow_backend::{Backend, Products};
use serde::{Deserialize, Serialize};

use super::{Improvement, RouletteLaw, Validations};
use crate::bijection::{Bijection, Memory};
use crate::data::{ColumnFit, ColumnSettings, Support};
use crate::error::ConfigError;
use crate::flow::{Flow, MOST_PAIRED, Pairing, TrainingObjective, not_one, too_many};
use crate::stage::Stage;

/// The settings by which a run is optimised, validated and ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is minimised: `"likelihood"`, −log p, or of a continuous flow `"flow-matching"`, with settings such as
    /// `"flow-matching:pairing=optimal,noise=0.01,fine-tune=0.1"` (arXiv 2210.02747, 2302.00482). Validation is by −log p.
    #[serde(skip_serializing_if = "is_default")]
    pub objective: TrainingObjective,
    /// The samples of a batch.
    pub batch: usize,
    /// Batches whose gradients are added up for one step (gradient accumulation), which is then that of one batch of
    /// all their samples (of as many other points, where a built-in density draws them).
    pub accumulate: usize,
    /// Mirrors half of the images at random, left to right (horizontal flips).
    pub flips: bool,
    /// The number of steps of a run that is given no other [`Budget`](super::Budget); a run's own settings say its
    /// budget's.
    pub steps: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup: u64,
    /// The learning rate at the end, as a fraction of the highest (the minimal ratio of a schedule); the way there is
    /// half a cosine.
    pub final_fraction: f64,
    /// Adam's β₁ and β₂.
    pub betas: [f64; 2],
    /// Adam's ε.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay, of the weights only; 0 is Adam.
    pub weight_decay: f64,
    /// The largest 2-norm of the gradient; longer ones are scaled down. 0 leaves them alone.
    pub clip: f64,
    /// The decay of the exponential moving average (EMA) of the weights, in \[0, 1); 0 keeps the last weights.
    pub average: f64,
    /// The first steps, in which the learned concatenations of a dense flow stay as they are.
    #[serde(skip_serializing_if = "is_default")]
    pub concatenation_after: u64,
    /// Power iterations of each weight after a step.
    pub power_iterations: usize,
    /// λ of a hybrid model: λ (−log p(x)) − log p(y | x) is minimised, both in nats; 1/d weighs nats per
    /// dimension. With 0 log p costs as much and must stay finite, but teaches nothing. A flow without a
    /// classifier leaves it alone.
    pub density_weight: f64,
    /// The activations that the forward pass keeps (gradient checkpointing).
    pub memory: Memory,
    /// The arithmetic of the matrix products that gradients are made of: `"f32"`, or on a processor that multiplies bf16
    /// `"bf16x3"`, `"bf16x6"` or `"bf16"`. On a matrix unit (AMX) `"bf16x3"` is faster, by AVX512_BF16 `"bf16"` alone. Validation,
    /// singular values and what is saved stay as they are.
    #[serde(with = "products", skip_serializing_if = "is_default")]
    pub products: Products,
    /// The partial sums that a gradient is added up in, which are the most processes that can share its work; 0 for as many as the
    /// device likes, which is 8 on a processor, fewer where a sum is large, and 1 on a GPU. Another number rounds otherwise: results
    /// differ in their last digits, and the memory for gradients is that of so many.
    #[serde(skip_serializing_if = "is_default")]
    pub lanes: usize,
    /// The law of roulette, where that is the training estimator: `"as-set"`, or `"measured"`, by what earlier gradients say of its terms.
    #[serde(skip_serializing_if = "is_default")]
    pub roulette: RouletteLaw,
    /// Samples of fresh validation data, for built-in densities; the most of the set-aside images, or rows of a table that
    /// is larger than memory, that a validation takes.
    pub validation_rows: usize,
    /// The fraction of the samples set aside for validation, for files.
    pub validation_fraction: f64,
    /// Steps between validations; 0 lays them over the run's budget, steps or time, as `validations` says.
    pub validate_every: u64,
    /// The steps after which a run validates where `validate_every` is 0.
    pub validations: Validations,
    /// The rule by which weights replace the best ones so far.
    pub improvement: Improvement,
    /// Validations without improvement after which the run ends; 0 never. Where improvement must be significant, those do
    /// not count that are clearly better than the one before, though not than the best.
    pub patience: u32,
    /// Fits a mixture of Gaussians to the rows of a table before the first step and makes it the flow's base density; the
    /// number of its components is chosen on the validation rows. The flow must start as the identity.
    #[serde(skip_serializing_if = "is_default")]
    pub fit_base: bool,
    /// The maps that are fitted to the columns of a table: `"standardise"`, or `"auto"`, by what the values ask for.
    #[serde(skip_serializing_if = "is_default")]
    pub columns: ColumnFit,
    /// The draws of noise that the score of a row with values on grids averages over; 0 for as many as the grids want.
    #[serde(skip_serializing_if = "is_default")]
    pub grid_draws: usize,
    /// Where the values of columns can lie, by name (`"1"` is the first column of a table without names): for example
    /// `{ price = { above = 0 }, share = { between = [0, 1] } }`. A value outside has log p = −∞.
    #[serde(skip_serializing_if = "is_default")]
    pub supports: BTreeMap<String, Support>,
    /// The steps of the grids that columns are on, by name; 0 for a column that is on none, whatever it looks like.
    #[serde(skip_serializing_if = "is_default")]
    pub grids: BTreeMap<String, f64>,
}

/// Products by name.
mod products {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Products;

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde hands over references
    pub(super) fn serialize<S: Serializer>(products: &Products, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(products.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Products, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Settings that are the default leave no trace in files, so that those of older versions stay the same.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            objective: TrainingObjective::Likelihood,
            batch: 256,
            accumulate: 1,
            flips: false,
            steps: 6000,
            learning_rate: 1e-2,
            warmup: 100,
            final_fraction: 0.01,
            betas: [0.9, 0.99],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 10.0,
            average: 0.998,
            concatenation_after: 0,
            power_iterations: 5,
            density_weight: 1.0,
            memory: Memory::Store,
            products: Products::F32,
            lanes: 0,
            roulette: RouletteLaw::AsSet,
            validation_rows: 5000,
            validation_fraction: 0.1,
            validate_every: 0,
            validations: Validations::Even,
            improvement: Improvement::Lower,
            patience: 0,
            fit_base: false,
            columns: ColumnFit::default(),
            grid_draws: 0,
            supports: BTreeMap::new(),
            grids: BTreeMap::new(),
        }
    }
}

/// No honest run makes more steps, and the number of steps times that of a batch's samples fits 64 bits.
const MOST_STEPS: u64 = 1 << 39;

/// Checks that a run may have made or may make so many steps.
pub(super) fn check_steps(name: &'static str, steps: u64, least: u64) -> Result<(), ConfigError> {
    if (least..=MOST_STEPS).contains(&steps) {
        return Ok(());
    }
    let expected = if least == 0 { "0 to 549755813888" } else { "1 to 549755813888" };
    Err(ConfigError::OutOfRange { name, value: steps as f64, expected })
}

impl TrainConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |name, value: f64, expected| Err(ConfigError::OutOfRange { name, value, expected });
        let fraction = |x: f64| (0.0..1.0).contains(&x);
        let non_negative = |x: f64| x.is_finite() && x >= 0.0;
        if !(2..=1 << 24).contains(&self.batch.saturating_mul(self.accumulate)) || self.batch == 0 {
            return wrong("batch", self.batch as f64, "2 to 16777216 rows, accumulated ones together");
        }
        if !(1..=1 << 16).contains(&self.accumulate) {
            return wrong("accumulate", self.accumulate as f64, "1 to 65536 batches");
        }
        if self.lanes > 1 << 12 {
            return wrong("lanes", self.lanes as f64, "0 (as the device likes) to 4096");
        }
        check_steps("steps", self.steps, 1)?;
        check_steps("warmup", self.warmup, 0)?;
        check_steps("validate_every", self.validate_every, 0)?;
        check_steps("concatenation_after", self.concatenation_after, 0)?;
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return wrong("learning_rate", self.learning_rate, "a number above 0");
        }
        if !(0.0..=1.0).contains(&self.final_fraction) {
            return wrong("final_fraction", self.final_fraction, "0 to 1");
        }
        if let Some(&beta) = self.betas.iter().find(|b| !fraction(**b)) {
            return wrong("betas", beta, "numbers from 0 to below 1");
        }
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return wrong("epsilon", self.epsilon, "a number above 0");
        }
        if !non_negative(self.weight_decay) {
            return wrong("weight_decay", self.weight_decay, "0 or above");
        }
        if !non_negative(self.clip) {
            return wrong("clip", self.clip, "0 (off) or above");
        }
        if !fraction(self.average) {
            return wrong("average", self.average, "0 to below 1");
        }
        if !(1..=10_000).contains(&self.power_iterations) {
            return wrong("power_iterations", self.power_iterations as f64, "1 to 10000");
        }
        if !non_negative(self.density_weight) {
            return wrong("density_weight", self.density_weight, "0 or above");
        }
        if !(2..=1 << 24).contains(&self.validation_rows) {
            return wrong("validation_rows", self.validation_rows as f64, "2 to 16777216");
        }
        if !(self.validation_fraction > 0.0 && fraction(self.validation_fraction)) {
            return wrong("validation_fraction", self.validation_fraction, "above 0 and below 1");
        }
        self.objective.check()?;
        self.column_settings().check()
    }

    /// Checks that a flow can be trained by the objective, on samples with weights or without.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] with the remedy.
    pub(super) fn check_objective<B: Backend>(&self, flow: &Flow<B>, weighted: bool) -> Result<(), ConfigError> {
        let Some(matching) = self.objective.matching(0.0) else { return Ok(()) };
        if flow.config().images().is_some() {
            let problem =
                "flow matching is for rows of numbers, this flow is over images: set objective = \"likelihood\"";
            return Err(ConfigError::Inconsistent(problem.into()));
        }
        let is_ode = |t: &dyn Bijection<B>| matches!(t.stage(), Some(Stage::OdeFlow { .. }));
        if flow.transforms().iter().filter(|t| is_ode(&***t)).count() != 1 {
            return Err(not_one());
        }
        if matching.pairing == Pairing::Optimal {
            let given = if flow.context().is_some() { Some("a context") } else { weighted.then_some("weights") };
            if let Some(given) = given {
                return Err(ConfigError::Inconsistent(format!(
                    "the pairs of pairing=optimal know nothing of {given}, and would bias the model: set pairing=independent"
                )));
            }
            if self.batch > MOST_PAIRED {
                return Err(too_many(self.batch));
            }
        }
        Ok(())
    }

    /// How the maps of columns are fitted.
    pub fn column_settings(&self) -> ColumnSettings {
        ColumnSettings {
            fit: self.columns,
            supports: self.supports.clone(),
            grids: self.grids.clone(),
            draws: self.grid_draws,
        }
    }

    /// The learning rate of step `step` (from 1) at a progress from 0 to 1: linear warm-up, then half a cosine.
    pub fn rate(&self, step: u64, progress: f64) -> f64 {
        let warm = if step < self.warmup { step as f64 / self.warmup as f64 } else { 1.0 };
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.clamp(0.0, 1.0)).cos());
        self.learning_rate * warm * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }

    /// The number of steps as a budget.
    pub fn budget(&self) -> super::Budget {
        super::Budget::Steps(self.steps)
    }
}
