//! The optimiser of a run: AdamW on all trained numbers as one flat tensor, `[P]`, and the moving average of the weights.
//!
//! m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², θ ← θ − ρ(m̂/(√v̂ + ε) + λθ) with bias-corrected m̂, v̂ (Kingma and Ba 2015,
//! Loshchilov and Hutter 2019), g scaled down to the largest norm that is allowed. Invariant: a step whose gradient or whose
//! reported values are not all finite changes nothing. Gate and clipping are computed on the device: a step waits once.

use resflow_backend::{AdamStep, Backend, BackendError, Binary, Element as _, Unary};

use super::TrainConfig;
use crate::checkpoint::{Archive, Values};
use crate::error::{CheckpointError, Error};
use crate::flow::Flow;
use crate::lipschitz::PowerIteration;
use crate::module::{Role, flatten};

/// The names of the moments and of the average in the state of a run.
const STORED: [&str; 3] = ["moment.first", "moment.second", "average"];

/// The state of the optimiser.
#[derive(Debug)]
pub(crate) struct Optimiser<B: Backend> {
    /// Adam's first and second moment, `[P]`.
    moments: [B::Tensor; 2],
    /// The exponential moving average of the parameters, `[P]`.
    average: B::Tensor,
    parameters: B::Tensor,
    /// 1 where weight decay applies, else 0, `[P]`.
    decayed: B::Tensor,
    /// 1 where the shares of learned concatenations are, which may be held in the first steps, if there are any, `[P]`.
    shares: Option<B::Tensor>,
}

/// The numbers of a step that come from the device.
pub(crate) struct Applied {
    /// Whether the gradient and all values are finite; if not, nothing was changed.
    pub(crate) finite: bool,
    /// The 2-norm of the gradient before clipping.
    pub(crate) norm: f64,
    /// The values that were to be read with the step.
    pub(crate) values: Vec<f64>,
}

impl<B: Backend> Optimiser<B> {
    /// Begins at the parameters of a flow.
    pub(crate) fn new(flow: &Flow<B>) -> Self {
        let backend = flow.backend();
        let parameters = flat_parameters(flow);
        let zeros = || backend.full(0.0, backend.shape(&parameters));
        let mut learned = false;
        flow.visit(&mut |_, _, role| learned |= role == Role::Concatenation);
        Self {
            moments: [zeros(), zeros()],
            average: parameters.clone(),
            decayed: mask(flow, Role::Weight),
            shares: learned.then(|| mask(flow, Role::Concatenation)),
            parameters,
        }
    }

    /// All trained numbers, `[P]`.
    pub(crate) fn parameters(&self) -> &B::Tensor {
        &self.parameters
    }

    /// Takes over the parameters of a flow whose tensors were replaced.
    pub(crate) fn follow(&mut self, flow: &Flow<B>) {
        self.parameters = flat_parameters(flow);
    }

    /// Lets the average begin anew at the present parameters.
    pub(crate) fn begin_average(&mut self) {
        self.average = self.parameters.clone();
    }

    /// Stores the moments and the average.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub(crate) fn store(&self, backend: &B, archive: &mut Archive) -> Result<(), BackendError> {
        for (name, tensor) in STORED.into_iter().zip([&self.moments[0], &self.moments[1], &self.average]) {
            let values = backend.download(tensor)?;
            archive.tensors.insert(name.to_owned(), (vec![values.len()], Values::of(&values)));
        }
        Ok(())
    }

    /// Takes over stored moments and the stored average.
    ///
    /// # Errors
    /// Returns [`Error::Checkpoint`] if one is missing, of another length or not finite, or a second moment is negative.
    pub(crate) fn restore(&mut self, backend: &B, archive: &Archive) -> Result<(), Error> {
        let shape = backend.shape(&self.average);
        let load = |name: &str| -> Result<B::Tensor, Error> {
            Ok(backend.upload(&archive.get::<B::Elem>(name, &shape)?, shape))
        };
        let [first, second, average] = STORED;
        if archive.get::<f64>(second, &shape)?.iter().any(|&m| m < 0.0) {
            return Err(CheckpointError::Format("a second moment is negative".into()).into());
        }
        (self.moments, self.average) = ([load(first)?, load(second)?], load(average)?);
        Ok(())
    }

    /// Makes step `step`, from 1, along a gradient, `[P]`, at a learning rate, and reads `values`, `[k]`, with it.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub(crate) fn step(
        &mut self,
        b: &B,
        config: &TrainConfig,
        step: u64,
        rate: f64,
        gradient: &B::Tensor,
        values: &[&B::Tensor],
    ) -> Result<Applied, BackendError> {
        let one = b.full(1.0, [1].into());
        // what is held has no gradient, and keeps value and moments: a zero gradient alone would let momentum move it
        let held = self.shares.as_ref().filter(|_| step <= config.concatenation_after);
        let rest = held.map(|held| b.select(held, &b.full(0.0, b.shape(held)), gradient));
        let gradient = rest.as_ref().unwrap_or(gradient);
        let norm = b.unary(Unary::Sqrt, b.dot(gradient, gradient));
        let sums = b.concat(&[&[&norm], values].concat(), 0);
        let gate = b.all_finite(&sums);
        let scale = if config.clip > 0.0 {
            let limit = b.full(config.clip, [1].into());
            b.binary(Binary::Min, b.binary(Binary::Div, limit, &norm), &one)
        } else {
            one.clone()
        };
        // zero gradient: clip/0 is not finite, use scale 1
        let scale = b.select(&b.unary(Unary::IsFinite, scale.clone()), &scale, &one);
        let rule = AdamStep {
            learning_rate: rate,
            beta1: config.betas[0],
            beta2: config.betas[1],
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            step,
        };
        let moments = self.moments.clone();
        let (mut parameters, mut moments) =
            b.adam_step(&rule, &scale, &gate, &self.decayed, self.parameters.clone(), moments, gradient);
        if let Some(held) = held {
            parameters = b.select(held, &self.parameters, &parameters);
            let [first, second] = &moments;
            moments = [b.select(held, &self.moments[0], first), b.select(held, &self.moments[1], second)];
        }
        // the one read of the step
        let report: Vec<f64> = b.download(&b.concat(&[&gate, &sums], 0))?.into_iter().map(B::Elem::to_f64).collect();
        let applied = Applied { finite: report[0] != 0.0, norm: report[1], values: report[2..].to_vec() };
        if applied.finite {
            self.parameters = parameters;
            self.moments = moments;
            // the average starts short, so that a short run does not remember its beginning
            let decay = config.average.min(step as f64 / (step as f64 + 10.0));
            self.average = b.axpy(1.0 - decay, &self.parameters, b.affine(self.average.clone(), decay, 0.0));
        }
        Ok(applied)
    }

    /// Builds the flow with the averaged weights, its power iterations converged on them; without an average, the flow as it is.
    pub(crate) fn averaged(&self, flow: &Flow<B>, config: &TrainConfig) -> Flow<B> {
        let mut flow = flow.clone();
        if config.average > 0.0 {
            let b = flow.backend().clone();
            let mut at = 0;
            flow.visit_mut(&mut |_, tensor, role| {
                if role.is_trained() {
                    let shape = b.shape(tensor);
                    *tensor = b.reshape(&b.narrow(&self.average, 0, at, shape.elements()), shape);
                    at += shape.elements();
                }
            });
            flow.update_spectral_norms(PowerIteration::converge::<B>());
        }
        flow
    }
}

/// Returns the name of the first trained tensor of a flow whose part of a gradient, `[P]`, is not finite.
pub(crate) fn find_infinite<B: Backend>(flow: &Flow<B>, gradient: &B::Tensor) -> Option<String> {
    let values = flow.backend().download(gradient).ok()?;
    let (mut at, mut found) = (0, None);
    flow.visit(&mut |name, tensor, role| {
        if role.is_trained() {
            let n = flow.backend().shape(tensor).elements();
            if found.is_none() && values[at..at + n].iter().any(|g| !g.is_finite()) {
                found = Some(name.to_owned());
            }
            at += n;
        }
    });
    found
}

/// All trained tensors one after the other, `[P]`.
fn flat_parameters<B: Backend>(flow: &Flow<B>) -> B::Tensor {
    let mut tensors = Vec::new();
    flow.visit(&mut |_, tensor, role| {
        if role.is_trained() {
            tensors.push(tensor.clone());
        }
    });
    flatten(flow.backend(), tensors.iter()).unwrap_or_else(|| flow.backend().full(0.0, [0].into()))
}

/// Ones where the trained tensors of a role are, else zeros, `[P]`.
fn mask<B: Backend>(flow: &Flow<B>, which: Role) -> B::Tensor {
    let mut mask = Vec::new();
    flow.visit(&mut |_, tensor, role| {
        if role.is_trained() {
            let value = B::Elem::from_f64(f64::from(u8::from(role == which)));
            mask.extend(std::iter::repeat_n(value, flow.backend().shape(tensor).elements()));
        }
    });
    flow.backend().upload(&mask, [mask.len()].into())
}
