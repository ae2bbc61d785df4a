//! Fits that Python can watch and stop.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use resflow::Fit;
use resflow::config::Family;
use resflow::device::Precision;
use resflow::model::Progress;
use serde_json::{Map, Value};

use crate::device;
use crate::error::{of_settings, raised};
use crate::model::Model;
use crate::samples::Samples;

/// The time between looks at signals: a fit needs the interpreter's lock for them.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What Python has to say while a fit runs.
struct Watch {
    observer: Option<Py<PyAny>>,
    /// Whether Ctrl-C ends the fit with a model.
    keep: bool,
    looked: Instant,
    /// An exception of the observer, or Ctrl-C.
    raised: Option<PyErr>,
}

impl Watch {
    /// Shows Python the progress, and asks whether to go on.
    fn look(&mut self, progress: &Progress<'_>) -> ControlFlow<()> {
        if self.observer.is_none() && self.looked.elapsed() < LOOK_EVERY {
            return ControlFlow::Continue(());
        }
        let answer = Python::attach(|py| {
            py.check_signals()?;
            self.observer.as_ref().map_or(Ok(true), |observer| show(py, observer, progress))
        });
        self.looked = Instant::now();
        match answer {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(error) => {
                self.raised = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// Whether nobody wants the model any more. Before the first step Ctrl-C waits for that, if it is to end with a model.
    fn is_abandoned(&mut self) -> bool {
        if !self.keep && self.raised.is_none() && self.looked.elapsed() >= LOOK_EVERY {
            let looked = Python::attach(|py| -> PyResult<()> { py.check_signals() });
            self.raised = looked.err();
            self.looked = Instant::now();
        }
        self.to_raise().is_some()
    }

    /// What is raised in the end.
    fn to_raise(&self) -> Option<&PyErr> {
        let raised = self.raised.as_ref()?;
        let kept = self.keep && Python::attach(|py| raised.is_instance_of::<PyKeyboardInterrupt>(py));
        (!kept).then_some(raised)
    }
}

/// Calls the observer; `False` ends the fit.
fn show(py: Python<'_>, observer: &Py<PyAny>, progress: &Progress<'_>) -> PyResult<bool> {
    let (step, validation) = (progress.step, progress.validation);
    let answer = observer.call1(
        py,
        (
            step.step,
            progress.fraction,
            step.train_nll,
            step.gradient_norm,
            step.learning_rate,
            validation.map(|v| (v.nll, v.standard_error, v.improved)),
            progress.imputing,
        ),
    )?;
    Ok(answer.extract::<bool>(py).unwrap_or(true))
}

/// Settings by name of a JSON object.
fn named(text: Option<&str>, what: &str) -> PyResult<Map<String, Value>> {
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text).map_err(|e| PyValueError::new_err(format!("{what}: {e}")))
}

/// Fits a model to samples; `model` and `train` are settings by name, in JSON. With `keep`, Ctrl-C ends the fit with the best
/// model so far; else it is raised.
#[pyfunction]
#[pyo3(signature = (samples, *, validation, validation_fraction, family, model, train, steps, seconds, seed, device, precision,
    threads, regardless, missing, observer, keep))]
pub(crate) fn fit(
    py: Python<'_>,
    samples: &Samples,
    validation: Option<&Samples>,
    validation_fraction: Option<f64>,
    family: Option<&str>,
    model: Option<&str>,
    train: Option<&str>,
    steps: Option<u64>,
    seconds: Option<f64>,
    seed: u64,
    device: &str,
    precision: Option<&str>,
    threads: Option<usize>,
    regardless: bool,
    missing: bool,
    observer: Option<Py<PyAny>>,
    keep: bool,
) -> PyResult<Model> {
    let device = device::options(device, precision, threads, Precision::F32)?;
    let family: Option<Family> = family.map(str::parse).transpose().map_err(of_settings)?;
    let (model, train) = (named(model, "model")?, named(train, "train")?);
    let limit = seconds.map(Duration::try_from_secs_f64).transpose();
    let limit = limit.map_err(|e| PyValueError::new_err(format!("time_limit: {e}")))?;
    if steps.is_some() && limit.is_some() {
        return Err(PyValueError::new_err("steps and time_limit exclude each other: a fit ends after one of them"));
    }
    let (samples, validation) = (samples.take()?, validation.map(Samples::take).transpose()?);
    let fit_watched = move |watch: &RefCell<Watch>| {
        let mut fit = Fit::new().seed(seed).device(device).regardless(regardless).missing(missing);
        if !(model.is_empty() && train.is_empty()) {
            fit = fit.settings(model, train);
        }
        if let Some(family) = family {
            fit = fit.family(family);
        }
        if let Some(steps) = steps {
            fit = fit.steps(steps);
        }
        if let Some(limit) = limit {
            fit = fit.time_limit(limit);
        }
        if let Some(fraction) = validation_fraction {
            fit = fit.validation_fraction(fraction);
        }
        if let Some(validation) = validation {
            fit = fit.validation(validation)?;
        }
        let fit = fit.abandon(|| watch.borrow_mut().is_abandoned());
        fit.on_progress(|progress| watch.borrow_mut().look(progress)).run(samples)
    };
    let watch = Watch { observer, keep, looked: Instant::now(), raised: None };
    let (fitted, watch) = py.detach(move || {
        let watch = RefCell::new(watch);
        let fitted = fit_watched(&watch);
        (fitted, watch.into_inner())
    });
    match watch.to_raise() {
        Some(error) => Err(error.clone_ref(py)),
        None => fitted.map(Model::of).map_err(raised),
    }
}
