//! Samples at which a part can be checked.

use resflow_backend::{Backend, Key, Noise};

use super::differences::{down, normal};
use super::{Property, Report};
use crate::error::Error;

/// The number of samples that are drawn.
const COUNT: usize = 4;

/// Where the samples come from.
pub(super) enum Samples<'a, B: Backend> {
    /// Any of a shape, without the axis of samples.
    Shape(&'a [usize]),
    /// These, `[n, …]`.
    Given(&'a B::Tensor),
}

impl<B: Backend> Samples<'_, B> {
    /// The shape of a sample.
    ///
    /// # Panics
    /// With fewer than two samples.
    #[track_caller]
    pub(super) fn shape(&self, backend: &B) -> Vec<usize> {
        match self {
            Self::Shape(shape) => shape.to_vec(),
            Self::Given(x) => {
                let shape = backend.shape(x);
                assert!(shape.rank() > 1 && shape.rows() > 1, "samples [n, …] with n > 1 are needed, not {shape}");
                shape[1..].to_vec()
            }
        }
    }
}

/// Returns `true` if a value has its shape and is finite; `None` where it has another shape.
fn judge<B: Backend>(
    report: &mut Report,
    backend: &B,
    x: &B::Tensor,
    y: &B::Tensor,
    output: &[usize],
) -> Result<Option<bool>, Error> {
    let (n, found) = (backend.shape(x).rows(), backend.shape(y));
    let expected = [&[n], output].concat();
    if found[..] != expected {
        report.find(
            Property::OutputShape,
            format!(
                "y of {} is {found}, while `output_shape` says {expected:?} with the axis of samples",
                backend.shape(x)
            ),
        );
        return Ok(None);
    }
    Ok(Some(down(backend, y)?.iter().all(|y| y.is_finite())))
}

/// The first candidate, 0 with its tensors moved and 1 as it was given, that maps samples to finite numbers of a shape,
/// and the samples.
pub(super) fn draw_samples<B: Backend>(
    report: &mut Report,
    backend: &B,
    samples: Samples<'_, B>,
    output: &[usize],
    key: Key,
    value: &mut dyn FnMut(usize, &B::Tensor) -> Result<B::Tensor, Error>,
) -> Result<Option<(usize, B::Tensor)>, Error> {
    let drawn = match samples {
        Samples::Given(x) => vec![(x.clone(), None)],
        Samples::Shape(shape) => {
            let shape = [&[COUNT], shape].concat();
            let uniform = backend.noise(key.named("x"), Noise::Uniform, 0, shape[..].into());
            let note =
                "checked at samples between 0 and 1: standard normal ones are mapped to numbers that are not finite";
            vec![
                (normal(backend, key.named("x"), shape[..].into()), None),
                (backend.affine(uniform, 0.8, 0.1), Some(note)),
            ]
        }
    };
    for number in 0..2 {
        for (x, note) in &drawn {
            match judge(report, backend, x, &value(number, x)?, output)? {
                None => return Ok(None),
                Some(false) => {}
                Some(true) => {
                    if let Some(note) = note {
                        report.note(Property::Value, (*note).into());
                    }
                    if number == 1 {
                        let note = "checked with its tensors as they are: moved a little, y is not finite";
                        report.note(Property::Value, note.into());
                    }
                    return Ok(Some((number, x.clone())));
                }
            }
        }
    }
    report.find(
        Property::Value,
        "y is not finite: check at samples that it takes, with `check_bijection_at` or `check_layer_at`".into(),
    );
    Ok(None)
}
