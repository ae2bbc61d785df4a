//! Flows whose parameters somebody else trains.
//!
//! ```text
//! log p(xᵢ | cᵢ; θ)                       values, and gradients in x and c where they are asked for
//! Σ wᵢ ∂ log p(xᵢ | cᵢ; θ)/∂θ             the gradient in the parameters, [P], by the training estimator
//! ```
//!
//! θ are all trained numbers in the order of a visit. Setting them continues the power iterations of constrained weights, as a step of
//! the library's own training does.

use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray as _, PyArray1, PyArray2, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::bijection::Memory;
use resflow::checkpoint::Archive;
use resflow::data::{Dataset, Table};
use resflow::device::Device;
use resflow::flow::{Objective, PreparedFlow};
use resflow::lipschitz::PowerIteration;
use resflow::model::IntoDataset as _;
use resflow::{Error, Flow, with_device};

use crate::error::{of_data, raised};
use crate::model::{self, Model};
use crate::samples::Samples;

/// The power iterations after new parameters, as many as the library's training makes after a step.
const POWER_ITERATIONS: usize = 5;

/// A flow on one of the devices.
#[derive(Debug)]
struct Held<B: Backend> {
    flow: Flow<B>,
    prepared: PreparedFlow<B>,
}

/// What is asked of it, whatever it runs on.
trait Learner: Debug + Send {
    fn parameters(&self) -> Result<Vec<f64>, Error>;
    fn set_parameters(&mut self, flat: &[f64]) -> Result<(), Error>;
    fn log_prob(&self, data: &Dataset, key: Key) -> Result<Vec<f64>, Error>;
    fn input_gradients(&self, data: &Dataset, key: Key) -> Result<(Vec<f64>, Table, Option<Table>), Error>;
    fn parameter_gradient(&self, data: &Dataset, weights: &[f64], key: Key) -> Result<Vec<f64>, Error>;
    fn archive(&self) -> Result<Archive, Error>;
}

impl<B: Backend> Held<B> {
    fn of(flow: Flow<B>) -> Self {
        let prepared = flow.prepare();
        Self { flow, prepared }
    }

    fn upload(&self, table: &Table) -> B::Tensor {
        self.flow.backend().upload(&table.to_elements::<B::Elem>(), [table.rows(), table.width()].into())
    }
}

/// The samples of a flow over rows.
fn table_of(data: &Dataset) -> Result<&Table, Error> {
    data.table().ok_or_else(|| Error::Input("parameters are trained of flows over rows".into()))
}

impl<B: Backend> Learner for Held<B> {
    fn parameters(&self) -> Result<Vec<f64>, Error> {
        let mut trained = Vec::new();
        self.flow.visit(&mut |_, tensor, role| trained.extend(role.is_trained().then(|| tensor.clone())));
        let backend = self.flow.backend();
        let mut flat = Vec::new();
        for tensor in &trained {
            flat.extend(backend.download(tensor)?.iter().map(|v| v.to_f64()));
        }
        Ok(flat)
    }

    fn set_parameters(&mut self, flat: &[f64]) -> Result<(), Error> {
        let count = self.flow.parameters();
        if flat.len() as u64 != count {
            return Err(Error::Input(format!("{} parameters, the flow has {count}", flat.len())));
        }
        if let Some(place) = flat.iter().position(|v| !v.is_finite()) {
            return Err(Error::Input(format!("parameter {place} is {}: training has diverged", flat[place])));
        }
        let backend = self.flow.backend().clone();
        let mut at = 0;
        self.flow.visit_mut(&mut |_, tensor, role| {
            if role.is_trained() {
                let shape = backend.shape(tensor);
                let own = &flat[at..at + shape.elements()];
                at += shape.elements();
                *tensor = backend.upload(&own.iter().map(|&v| B::Elem::from_f64(v)).collect::<Vec<_>>(), shape);
            }
        });
        self.flow.update_spectral_norms(PowerIteration::Iterations(POWER_ITERATIONS));
        self.prepared = self.flow.prepare();
        Ok(())
    }

    fn log_prob(&self, data: &Dataset, key: Key) -> Result<Vec<f64>, Error> {
        Ok(self.prepared.log_prob(data, key)?.values)
    }

    fn input_gradients(&self, data: &Dataset, key: Key) -> Result<(Vec<f64>, Table, Option<Table>), Error> {
        let samples = table_of(data)?;
        if let Some(contexts) = data.samples().context() {
            let at = self.prepared.condition(contexts)?;
            let (log_prob, of_samples, of_contexts) = at.log_prob_and_gradient(samples, key)?;
            return Ok((log_prob.values, of_samples, Some(of_contexts)));
        }
        let (log_prob, of_samples) = self.prepared.log_prob_and_gradient(samples, key)?;
        Ok((log_prob.values, of_samples, None))
    }

    fn parameter_gradient(&self, data: &Dataset, weights: &[f64], key: Key) -> Result<Vec<f64>, Error> {
        let standard = self.flow.columns().forward(table_of(data)?, key)?.table;
        let backend = self.flow.backend();
        let context = match (self.flow.context(), data.samples().context()) {
            (Some(own), Some(contexts)) => Some(self.upload(&own.standardiser().apply(contexts)?)),
            _ => None,
        };
        let batch = Batch::new(self.upload(&standard)).with_context(context);
        // the objective is −Σ wᵢ log p(xᵢ)
        let weights: Vec<_> = weights.iter().map(|w| B::Elem::from_f64(-w)).collect();
        let weights = backend.upload(&weights, [weights.len(), 1].into());
        let objective = Objective {
            batch: &batch,
            weights: &weights,
            key,
            memory: Memory::Store,
            input_gradient: false,
            supervision: None,
        };
        let flat = self.prepared.gradient(&objective)?.flat;
        Ok(backend.download(&flat)?.iter().map(|v| v.to_f64()).collect())
    }

    fn archive(&self) -> Result<Archive, Error> {
        self.flow.to_archive()
    }
}

/// A flow over rows whose parameters somebody else trains.
#[pyclass(frozen, module = "resflow._core")]
#[derive(Debug)]
pub(crate) struct Trainable(Mutex<Box<dyn Learner>>);

impl Trainable {
    fn held(&self) -> MutexGuard<'_, Box<dyn Learner>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Gradients<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray2<f64>>, Option<Bound<'py, PyArray2<f64>>>);

#[pymethods]
impl Trainable {
    /// Takes the bytes of a model file.
    #[staticmethod]
    fn from_bytes(
        py: Python<'_>,
        bytes: &[u8],
        device: &str,
        precision: Option<&str>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        py.detach(|| {
            let archive = Archive::from_bytes(bytes).map_err(|e| raised(e.into()))?;
            let options = model::device_of(&archive, device, precision, threads)?;
            let device = Device::open(&options).map_err(raised)?;
            let learner = with_device!(device, |backend| {
                let flow = Flow::from_archive(backend, &archive).map_err(raised)?;
                Box::new(Held::of(flow)) as Box<dyn Learner>
            });
            Ok(Self(Mutex::new(learner)))
        })
    }

    /// The bytes of a model file, of the flow as it is.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| Ok::<_, Error>(self.held().archive()?.to_bytes()?));
        Ok(PyBytes::new(py, &bytes.map_err(raised)?))
    }

    /// The model of the flow as it is.
    fn model(&self, py: Python<'_>, device: &str, precision: Option<&str>, threads: Option<usize>) -> PyResult<Model> {
        py.detach(|| model::of_archive(self.held().archive().map_err(raised)?, device, precision, threads))
    }

    /// All trained numbers.
    fn parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(py.detach(|| self.held().parameters()).map_err(raised)?.into_pyarray(py))
    }

    /// Sets all trained numbers.
    fn set_parameters(&self, py: Python<'_>, flat: PyReadonlyArray1<'_, f64>) -> PyResult<()> {
        let flat: Vec<f64> = flat.as_array().iter().copied().collect();
        py.detach(|| self.held().set_parameters(&flat)).map_err(raised)
    }

    /// log p of each sample.
    fn log_prob<'py>(&self, py: Python<'py>, samples: &Samples, seed: u64) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let data = samples.take()?.into_dataset().map_err(of_data)?;
        Ok(py.detach(|| self.held().log_prob(&data, Key::new(seed))).map_err(raised)?.into_pyarray(py))
    }

    /// log p of each sample, and its gradients in the sample and in its context.
    fn input_gradients<'py>(&self, py: Python<'py>, samples: &Samples, seed: u64) -> PyResult<Gradients<'py>> {
        let data = samples.take()?.into_dataset().map_err(of_data)?;
        let found = py.detach(|| self.held().input_gradients(&data, Key::new(seed))).map_err(raised)?;
        let of_contexts = found.2.map(|table| model::rows(py, table)).transpose()?;
        Ok((found.0.into_pyarray(py), model::rows(py, found.1)?, of_contexts))
    }

    /// The gradient of Σ wᵢ log p(xᵢ) in the parameters.
    fn parameter_gradient<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        weights: PyReadonlyArray1<'_, f64>,
        seed: u64,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let data = samples.take()?.into_dataset().map_err(of_data)?;
        let weights: Vec<f64> = weights.as_array().iter().copied().collect();
        if weights.len() != data.len() {
            return Err(PyValueError::new_err(format!("{} weights of {} samples", weights.len(), data.len())));
        }
        let gradient = py.detach(|| self.held().parameter_gradient(&data, &weights, Key::new(seed)));
        Ok(gradient.map_err(raised)?.into_pyarray(py))
    }
}
