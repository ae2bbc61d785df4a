//! What came out of latent space: how exactly it was found, and as an array.

use anyhow::{Result, bail};
use resflow::config::ModelConfig;
use resflow::data::image::{ImageStack, npy as image_npy};
use resflow::data::{Table, npy};
use resflow::invert::{Inversion, SampleReport, Status};

use crate::failure::warn;

/// A value outside \[0, 1\] by more than this is worth a word.
const CLAMPED: f64 = 1e-5;

/// Finite values as an array of doubles: `[n, c, h, w]` where they are images of a model, else `[n, d]`. Samples may leave
/// \[0, 1\] by the logit's margin, an array of images may not.
pub(crate) fn npy_bytes(model: Option<&ModelConfig>, d: usize, mut values: Vec<f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(images) = model.and_then(ModelConfig::images) else {
        npy::write(&Table::new(None, d, values)?, npy::Float::F8, &mut bytes)?;
        return Ok(bytes);
    };
    let (mut outside, mut most) = (0_usize, 0.0_f64);
    for value in &mut values {
        let inside = value.clamp(0.0, 1.0);
        let by = (*value - inside).abs();
        outside += usize::from(by > 0.0);
        most = most.max(by);
        *value = inside;
    }
    if most > CLAMPED {
        warn(format_args!("{outside} values were up to {most:.1e} outside 0 to 1 and are written as 0 or 1"));
    }
    let stack = ImageStack::new(images.height, images.width, images.channels, values)?;
    image_npy::write_stack(&stack, npy::Float::F8, &mut bytes)?;
    Ok(bytes)
}

/// Warns of rows that did not reach the accuracy; rows without a value are an error. Returns the largest residual.
pub(crate) fn report_inversion(reports: &[SampleReport], how: &Inversion) -> Result<f64> {
    let count = |status| reports.iter().filter(|r| r.status == status).count();
    let worst = |status| reports.iter().filter(|r| r.status == status).map(|r| r.error_bound).fold(0.0, f64::max);
    let residual = reports.iter().map(|r| r.residual).filter(|r| r.is_finite()).fold(0.0, f64::max);
    for status in [Status::FloatFloor, Status::NotConverged] {
        let rows = count(status);
        if rows > 0 {
            warn(format_args!(
                "{rows} of {} rows ended {status}, not within {:.0e}: error bound up to {:.1e} in standardised units, \
                 round-trip error {residual:.1e}",
                reports.len(),
                how.accuracy(),
                worst(status)
            ));
        }
    }
    let lost = count(Status::NonFinite);
    if lost > 0 {
        let first = reports.iter().position(|r| r.status == Status::NonFinite).map_or(0, |i| i + 1);
        bail!("{lost} of {} rows are not finite, the first is row {first}", reports.len());
    }
    Ok(residual)
}
