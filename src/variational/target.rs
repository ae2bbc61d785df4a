//! The density that is to be fitted.

use crate::error::Error;

/// The error of a target density, in its own words.
pub type TargetError = Box<dyn std::error::Error + Send + Sync>;

/// A density up to a constant, with its gradient: a posterior, a Boltzmann distribution. It is called from several threads at once.
pub trait Target: Send + Sync {
    /// Returns d, the numbers in a sample.
    fn dimension(&self) -> usize;

    /// Computes ln p̃(x), nats, into `log_density`, `[n]`, and its gradient in x into `gradient`, `[n, d]`, of rows x, `[n, d]`.
    ///
    /// Where the density is zero ln p̃ is −∞. Such a sample, and one whose value or gradient is not finite, has weight zero in a
    /// gradient, and is counted and reported.
    ///
    /// # Errors
    /// Returns an error of its own where the density cannot be computed at all; it ends what was asked for.
    fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError>;

    /// Computes ln p̃(x), nats, of rows x, `[n, d]`, without the gradient; worth writing where that is dear.
    ///
    /// # Errors
    /// Returns an error of its own, as [`evaluate`](Self::evaluate) does.
    fn log_density(&self, rows: &[f64], log_density: &mut [f64]) -> Result<(), TargetError> {
        let mut unused = vec![0.0; rows.len()];
        self.evaluate(rows, log_density, &mut unused)
    }
}

impl<T: Target + ?Sized> Target for &T {
    fn dimension(&self) -> usize {
        (**self).dimension()
    }

    fn evaluate(&self, rows: &[f64], log_density: &mut [f64], gradient: &mut [f64]) -> Result<(), TargetError> {
        (**self).evaluate(rows, log_density, gradient)
    }

    fn log_density(&self, rows: &[f64], log_density: &mut [f64]) -> Result<(), TargetError> {
        (**self).log_density(rows, log_density)
    }
}

/// Checks that a target is for samples of this width.
pub(super) fn check_dimension(target: &(impl Target + ?Sized), dimension: usize) -> Result<(), Error> {
    let found = target.dimension();
    if found == dimension {
        Ok(())
    } else {
        Err(Error::Input(format!("a target in {found} dimensions for a flow in {dimension}")))
    }
}

/// ln p̃ of rows, `[n]`, −∞ where the target says NaN or +∞: such a density has no meaning.
pub(super) fn log_densities(target: &(impl Target + ?Sized), rows: &[f64], count: usize) -> Result<Vec<f64>, Error> {
    let mut values = vec![f64::NAN; count];
    target.log_density(rows, &mut values).map_err(Error::Target)?;
    for value in &mut values {
        if !value.is_finite() {
            *value = f64::NEG_INFINITY;
        }
    }
    Ok(values)
}
