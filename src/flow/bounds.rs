//! What is known of a flow's Lipschitz constants: estimated by power iterations, or bounded with certainty.

use resflow_backend::Backend;

use super::Flow;
use crate::error::Error;
use crate::lipschitz::FlowBounds;
use crate::module::{Module as _, Spectrum};

impl<B: Backend> Flow<B> {
    /// Estimates σ of every constrained weight, transform by transform.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn spectra(&self) -> Result<Vec<Vec<Spectrum>>, Error> {
        let transforms = self.transforms().iter().enumerate();
        let spectra = transforms.map(|(l, transform)| {
            let mut spectra = Vec::new();
            transform.spectra(&self.backend, &format!("links.{l}"), &mut |s| spectra.push(s))?;
            Ok(spectra)
        });
        spectra.collect()
    }

    /// Estimates the largest Lipschitz bound of a block: the product of its normalised weights' σ. It is 0 without
    /// blocks.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn lipschitz_estimate(&self) -> Result<f64, Error> {
        let blocks = self.spectra()?.into_iter().filter(|s| !s.is_empty());
        Ok(blocks.map(|s| s.iter().map(Spectrum::effective).product()).fold(0.0, f64::max))
    }

    /// Bounds the norm of every constrained weight from below and from above, the Lipschitz constant of every block, and those of the flow and
    /// its inverse. From above they are certain: they are computed on the host in double precision, of the numbers that are
    /// multiplied by, with what rounding may add. This costs up to seconds for large nets.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn certified_bounds(&self) -> Result<FlowBounds, Error> {
        Ok(self.chain.all_certified_bounds(&self.backend, "links")?)
    }

    /// Replaces every constrained weight by the one that is multiplied by, scaled so that its certified norm is at most its coefficient. From
    /// then on normalising changes nothing, on any device of this precision: what is scored is what is certified, and each block has Lip(g) ≤ the product of the
    /// coefficients. The model changes by as much as its norms were too large, usually less than a thousandth, and
    /// more where a convolution on larger images is certified on a torus somewhat larger. A sealed flow keeps its bits. Weights
    /// between other norms than the 2-norm have no certificate and stay.
    ///
    /// Every [validation](crate::train::Trainer::validate) seals the weights that it scores and keeps, and [`save`](Self::save) seals what it
    /// writes.
    ///
    /// # Errors
    /// Returns [`Error::Backend`] if the device failed.
    pub fn seal(&mut self) -> Result<(), Error> {
        if !self.sealed {
            self.chain.seal(&self.backend)?;
            if let Some(dequantiser) = &mut self.dequantiser {
                dequantiser.seal(&self.backend)?;
            }
            self.sealed = true;
        }
        Ok(())
    }
}
