//! Models: densities, samples and latents.

use std::path::PathBuf;

use numpy::{IntoPyArray as _, PyArray1, PyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use resflow::Error;
use resflow::backend::Key;
use resflow::checkpoint::{Archive, model_precision};
use resflow::data::{Category, Dataset};
use resflow::device::{DeviceOptions, Precision};
use resflow::flow::{Decoded, FlowCategories, LogProb};
use resflow::invert::SampleReport;

use crate::device;
use crate::error::raised;
use crate::frame::Columns;
use crate::samples::{self, Samples, table};

/// A trained model.
#[pyclass(frozen, module = "resflow._core")]
#[derive(Debug)]
pub(crate) struct Model {
    model: resflow::Model,
}

impl Model {
    pub(crate) fn of(model: resflow::Model) -> Self {
        Self { model }
    }

    /// The model with the numbers of a seed, or its own.
    fn seeded(&self, seed: Option<u64>) -> resflow::Model {
        seed.map_or_else(|| self.model.clone(), |seed| self.model.with_key(Key::new(seed)))
    }
}

/// A model at some contexts.
#[pyclass(frozen, module = "resflow._core")]
#[derive(Debug)]
pub(crate) struct Conditioned {
    model: resflow::Model,
    contexts: Dataset,
}

/// The device for a model, in the model's precision unless another is asked for.
pub(crate) fn device_of(
    archive: &Archive,
    device: &str,
    precision: Option<&str>,
    threads: Option<usize>,
) -> PyResult<DeviceOptions> {
    let native = model_precision(archive).map_err(|e| raised(e.into()))?;
    let native = if native == "f64" { Precision::F64 } else { Precision::F32 };
    device::options(device, precision, threads, native)
}

/// A model of the contents of a file, which may be a run's state.
pub(crate) fn of_archive(
    archive: Archive,
    device: &str,
    precision: Option<&str>,
    threads: Option<usize>,
) -> PyResult<Model> {
    let archive = archive.into_model();
    let options = device_of(&archive, device, precision, threads)?;
    resflow::Model::from_archive(&archive, &options).map(Model::of).map_err(raised)
}

/// A score as a dict of arrays.
fn score_dict(py: Python<'_>, score: LogProb) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    found.set_item("mean", score.mean())?;
    found.set_item("mean_standard_error", score.mean_standard_error())?;
    found.set_item("bias_bound", score.bias_bound)?;
    found.set_item("most_evaluations", score.most_evaluations)?;
    found.set_item("estimator", &score.estimator)?;
    found.set_item("replicates", score.replicates)?;
    found.set_item("status", score.status.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    found.set_item("log_prob", score.values.into_pyarray(py))?;
    found.set_item("standard_error", score.standard_error.into_pyarray(py))?;
    found.set_item("log_det", score.log_det.into_pyarray(py))?;
    found.set_item("solve_error", score.solve_error.into_pyarray(py))?;
    Ok(found)
}

/// Rows as an array.
pub(crate) fn rows(py: Python<'_>, table: resflow::data::Table) -> PyResult<Bound<'_, PyArray2<f64>>> {
    let shape = (table.rows(), table.width());
    let array = ndarray::Array2::from_shape_vec(shape, table.into_values());
    let array = array.map_err(|e| pyo3::exceptions::PyRuntimeError::new_err(e.to_string()))?;
    Ok(array.into_pyarray(py))
}

type Inverted<'py> =
    (Bound<'py, PyArray2<f64>>, Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>, Vec<String>, f64);

/// Samples with the residual, the error bound and the status of each, and the residual through the whole flow.
fn inverted(py: Python<'_>, decoded: Decoded) -> PyResult<Inverted<'_>> {
    let numbers = |of: fn(&SampleReport) -> f64| decoded.reports.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    let residuals = numbers(|report| report.residual);
    let bounds = numbers(|report| report.error_bound);
    let status = decoded.reports.iter().map(|report| report.status.to_string()).collect();
    Ok((rows(py, decoded.samples)?, residuals, bounds, status, decoded.residual))
}

#[pymethods]
impl Model {
    /// Reads a model file, or the best model of a run's state.
    #[staticmethod]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        device: &str,
        precision: Option<&str>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        py.detach(|| of_archive(Archive::read(&path).map_err(|e| raised(e.into()))?, device, precision, threads))
    }

    /// Takes the bytes of a model file.
    #[staticmethod]
    fn from_bytes(
        py: Python<'_>,
        bytes: &[u8],
        device: &str,
        precision: Option<&str>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        py.detach(|| of_archive(Archive::from_bytes(bytes).map_err(|e| raised(e.into()))?, device, precision, threads))
    }

    /// The bytes of the model file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| Ok::<_, Error>(self.model.to_archive()?.to_bytes()?));
        Ok(PyBytes::new(py, &bytes.map_err(raised)?))
    }

    /// Writes the model file, atomically.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.model.save(path)).map_err(raised)
    }

    /// What the model is made of and where it comes from, in JSON.
    fn describe(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| {
            let bounds = self.model.certified_bounds()?;
            let config = self.model.config();
            let object = serde_json::json!({
                "family": config.family(),
                "dimension": self.model.dimension(),
                "sample_shape": config.sample_shape(),
                "parameters": self.model.parameters(),
                "device": self.model.device(),
                "config": config,
                "provenance": self.model.provenance(),
                "certified": {
                    "lipschitz": bounds.lipschitz(),
                    "constants": bounds.constants(),
                    "transforms": bounds.transforms,
                },
            });
            Ok(object.to_string())
        })
        .map_err(raised)
    }

    /// The shape of a sample: `[d]` or `[h, w, c]`.
    fn sample_shape(&self) -> Vec<usize> {
        self.model.config().sample_shape()
    }

    /// The columns of a table of samples; none of images.
    fn sample_columns(&self) -> Option<Columns> {
        let shape = self.model.config().sample_shape();
        let [d] = shape[..] else { return None };
        let names = self.model.provenance().columns.clone().filter(|names| names.len() == d);
        let own = self.modelled();
        Some((names.map(|names| in_their_places(&names, own)), d + own.len(), places(d, own)))
    }

    /// The columns of a table of contexts, those of categories last; none of a model that is given nothing.
    fn context_columns(&self) -> Option<Columns> {
        let width = self.model.config().context()?.columns;
        let given = match self.model.categories() {
            Some(FlowCategories::Modelled(_)) => return None,
            Some(FlowCategories::Given(given)) => given.as_slice(),
            None => &[],
        };
        let numbers = width - given.iter().map(|column| column.levels().len()).sum::<usize>();
        let names = self.model.provenance().given.clone().unwrap_or_default();
        let names = [names, given.iter().map(|column| column.name().to_owned()).collect()].concat();
        let count = numbers + given.len();
        Some(((names.len() == count).then_some(names), count, (numbers..count).collect()))
    }

    /// The categories of the model, or that it is given: names and levels, and whether they are a part of the samples.
    fn categories(&self) -> Option<(Vec<(String, Vec<String>)>, bool)> {
        let categories = self.model.categories()?;
        let columns = categories.columns().iter().map(|column| (column.name().to_owned(), column.levels().to_vec()));
        Some((columns.collect(), categories.density().is_some()))
    }

    /// Draws rows of the model, column by column, in the order of the fit's table: numbers, or words of categories.
    fn sample_table<'py>(
        &self,
        py: Python<'py>,
        count: usize,
        seed: Option<u64>,
    ) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
        let model = self.seeded(seed);
        let rows = py.detach(|| model.sample_rows(count)).map_err(raised)?;
        let Some(table) = rows.table() else { return Ok(Vec::new()) };
        let d = table.width();
        let (names, width, words) = self.sample_columns().unwrap_or((None, d, Vec::new()));
        let names = names.unwrap_or_else(|| (1..=width).map(|i| format!("column {i}")).collect());
        let (mut number, mut word) = (0, 0);
        let column = |(place, name): (usize, String)| {
            let values = if words.contains(&place) {
                let categories = rows.categories();
                let levels = categories.map_or_else(Vec::new, |all| (0..count).map(|i| all.level(i, word)).collect());
                word += 1;
                levels.into_pyobject(py)?.into_any()
            } else {
                number += 1;
                table.column(number - 1).into_pyarray(py).into_any()
            };
            Ok((name, values))
        };
        names.into_iter().enumerate().map(column).collect()
    }

    /// The device in words.
    fn device(&self) -> String {
        self.model.device()
    }

    /// log p of each sample, nats.
    fn log_prob<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        seed: Option<u64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let (data, model) = (samples.take()?, self.seeded(seed));
        let score = py.detach(|| model.score(data)).map_err(raised)?;
        Ok(score.values.into_pyarray(py))
    }

    /// log p of each sample with all that is known of it.
    fn score<'py>(&self, py: Python<'py>, samples: &Samples, seed: Option<u64>) -> PyResult<Bound<'py, PyDict>> {
        let (data, model) = (samples.take()?, self.seeded(seed));
        score_dict(py, py.detach(|| model.score(data)).map_err(raised)?)
    }

    /// The percentile of each sample among the rows of the training, 0 to 100.
    fn percentile<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        seed: Option<u64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let (data, model) = (samples.take()?, self.seeded(seed));
        Ok(py.detach(|| model.percentile(data)).map_err(raised)?.into_pyarray(py))
    }

    /// log p of each sample and its gradient in the sample.
    fn log_prob_and_gradient<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        seed: Option<u64>,
    ) -> PyResult<(Bound<'py, PyArray1<f64>>, Bound<'py, PyArray2<f64>>)> {
        let (data, model) = (samples.take()?, self.seeded(seed));
        let (log_prob, gradient) = py.detach(|| model.log_prob_and_gradient(data)).map_err(raised)?;
        Ok((log_prob.into_pyarray(py), gradient.into_pyarray(py)))
    }

    /// Fills missing cells in, `draws` times each row: the draws, or their `"mean"` or `"median"` for each row.
    fn impute<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        draws: usize,
        statistic: Option<&str>,
        seed: Option<u64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let (data, model) = (samples.take()?, self.seeded(seed));
        let completed = py.detach(|| model.impute_with_reports(data, draws)).map_err(raised)?;
        let table = match statistic {
            None => completed.into_table(),
            Some("mean") => completed.means(),
            Some("median") => completed.medians(),
            Some(other) => {
                let problem = format!("statistic is {other:?}, expected 'mean', 'median' or None");
                return Err(pyo3::exceptions::PyValueError::new_err(problem));
            }
        };
        rows(py, table)
    }

    /// z of each sample.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        seed: Option<u64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let (data, model) = (samples.take()?, self.seeded(seed));
        Ok(py.detach(|| model.encode(data)).map_err(raised)?.into_pyarray(py))
    }

    /// x of each row of z.
    fn decode<'py>(&self, py: Python<'py>, z: &Bound<'py, PyAny>) -> PyResult<Inverted<'py>> {
        let z = table(z, None)?;
        inverted(py, py.detach(|| self.model.decode_with_reports(z)).map_err(raised)?)
    }

    /// Draws samples.
    fn sample<'py>(&self, py: Python<'py>, count: usize, seed: Option<u64>) -> PyResult<Inverted<'py>> {
        let model = self.seeded(seed);
        inverted(py, py.detach(|| model.sample_with_reports(count)).map_err(raised)?)
    }

    /// Draws samples with log p of each.
    fn sample_and_log_prob<'py>(
        &self,
        py: Python<'py>,
        count: usize,
        seed: Option<u64>,
    ) -> PyResult<(Bound<'py, PyArray2<f64>>, Bound<'py, PyArray1<f64>>)> {
        let model = self.seeded(seed);
        let (samples, log_prob) = py.detach(|| model.sample_with_log_prob(count)).map_err(raised)?;
        Ok((samples.into_pyarray(py), log_prob.into_pyarray(py)))
    }

    /// The model at some contexts, `[m, k]`.
    fn condition(&self, py: Python<'_>, contexts: &Bound<'_, PyAny>) -> PyResult<Conditioned> {
        let contexts = samples::rows(contexts, None)?;
        py.detach(|| self.model.condition(&contexts)).map_err(raised)?;
        Ok(Conditioned { model: self.model.clone(), contexts })
    }
}

impl Model {
    /// The categories that are a part of the samples.
    fn modelled(&self) -> &[Category] {
        match self.model.categories() {
            Some(FlowCategories::Modelled(density)) => density.columns(),
            _ => &[],
        }
    }
}

/// The places of categories among all columns, of which so many are numbers: each behind as many numbers as it says.
fn places(numbers: usize, categories: &[Category]) -> Vec<usize> {
    categories.iter().enumerate().map(|(before, column)| column.place().min(numbers) + before).collect()
}

/// The names of all columns, those of categories in their places.
fn in_their_places(numbers: &[String], categories: &[Category]) -> Vec<String> {
    let mut names = numbers.to_vec();
    for (place, column) in places(numbers.len(), categories).into_iter().zip(categories) {
        names.insert(place, column.name().to_owned());
    }
    names
}

impl Conditioned {
    /// The model at the contexts, with the numbers of a seed or its own.
    fn seeded(&self, seed: Option<u64>) -> Result<resflow::model::ConditionedModel, Error> {
        match seed {
            Some(seed) => self.model.with_key(Key::new(seed)).condition(&self.contexts),
            None => self.model.condition(&self.contexts),
        }
    }
}

#[pymethods]
impl Conditioned {
    /// The number of contexts.
    fn contexts(&self) -> usize {
        self.contexts.len()
    }

    /// log p(x | c) of each sample with all that is known of it.
    fn score<'py>(&self, py: Python<'py>, samples: &Samples, seed: Option<u64>) -> PyResult<Bound<'py, PyDict>> {
        let data = samples.take()?;
        score_dict(py, py.detach(|| self.seeded(seed)?.score(data)).map_err(raised)?)
    }

    /// log p(x | c) of each sample, its gradient in the sample, and that of the sum in the contexts.
    fn log_prob_and_gradient<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        seed: Option<u64>,
    ) -> PyResult<(Bound<'py, PyArray1<f64>>, Bound<'py, PyArray2<f64>>, Bound<'py, PyArray2<f64>>)> {
        let data = samples.take()?;
        let found = py.detach(|| self.seeded(seed)?.log_prob_and_gradient(data)).map_err(raised)?;
        Ok((found.0.into_pyarray(py), found.1.into_pyarray(py), found.2.into_pyarray(py)))
    }

    /// Draws `each` samples of every context.
    fn sample<'py>(&self, py: Python<'py>, each: usize, seed: Option<u64>) -> PyResult<Inverted<'py>> {
        inverted(py, py.detach(|| self.seeded(seed)?.sample_with_reports(each)).map_err(raised)?)
    }

    /// Draws `each` samples of every context, with log p(x | c) of each.
    fn sample_and_log_prob<'py>(
        &self,
        py: Python<'py>,
        each: usize,
        seed: Option<u64>,
    ) -> PyResult<(Bound<'py, PyArray2<f64>>, Bound<'py, PyArray1<f64>>)> {
        let (samples, log_prob) = py.detach(|| self.seeded(seed)?.sample_and_log_prob(each)).map_err(raised)?;
        Ok((samples.into_pyarray(py), log_prob.into_pyarray(py)))
    }

    /// z of each sample at its context.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        samples: &Samples,
        seed: Option<u64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let data = samples.take()?;
        Ok(py.detach(|| self.seeded(seed)?.encode(data)).map_err(raised)?.into_pyarray(py))
    }

    /// x of each row of z at its context.
    fn decode<'py>(&self, py: Python<'py>, z: &Bound<'py, PyAny>) -> PyResult<Inverted<'py>> {
        let z = table(z, None)?;
        inverted(py, py.detach(|| self.seeded(None)?.decode_with_reports(z)).map_err(raised)?)
    }
}
