//! What certifies the inverses of a chain: each transform on the host, and its constants.
//!
//! Beside the device's way back goes another in double precision: x̂_l is near F_l⁻¹(ŷ_l), from the device's x_l by a few fixed points where
//! there is no formula, and its error is [measured](crate::reference). Of the exact inverse x* of the chain
//!
//! ‖x̂_l − x*_l‖ ≤ E_l = Lip(F_l⁻¹) E_{l+1} + ‖x̂_l − F_l⁻¹(ŷ_l)‖,  ‖x_l − x*_l‖ ≤ ‖x_l − x̂_l‖ + E_l.
//!
//! Nothing is assumed of how the device found x_l, and the constants multiply errors of double precision alone.

use resflow_backend::{Backend, Element as _};

use super::prepared::Step;
use crate::batch::Batch;
use crate::error::Error;
use crate::invert::{Inversion, Solution};
use crate::lipschitz::BiLipschitz;
use crate::reference::{ReferenceMap, length, numbers};

/// The part of the device's precision that errors of the way in double precision may come to.
const SHARE: f64 = 0.01;
/// More than what the few operations of a bound may lose.
const ROUNDED_UP: f64 = 1.0 + 1e-9;

/// A transform on the host, with its certified constants.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(super) map: ReferenceMap,
    pub(super) constants: BiLipschitz,
    /// The accuracy to which its inverse is found, relative to x.
    pub(super) accuracy: f64,
}

impl Certificate {
    /// Gives each transform its accuracy: what it leaves grows through all that follow on the way back.
    pub(super) fn set_accuracies<B: Backend>(certificates: &mut [Option<Self>]) {
        let mut growth = certificates.len().max(1) as f64;
        for certificate in certificates.iter_mut().flatten() {
            certificate.accuracy = SHARE * B::Elem::EPSILON / growth.max(1.0);
            growth *= certificate.constants.inverse;
        }
    }
}

/// The way back in double precision.
pub(super) struct Twin {
    /// x̂ of each sample, and the bound on its error.
    samples: Vec<(Vec<f64>, f64)>,
}

impl Twin {
    /// Starts at the latents, of which nothing is done yet.
    pub(super) fn new() -> Self {
        Self { samples: Vec::new() }
    }

    /// Goes through one transform, whose y, `[n, …]`, the device mapped to a solution, and replaces the bounds of that by ones that hold. The last
    /// `joined` channels of y were not there before.
    pub(super) fn go<B: Backend>(
        &mut self,
        backend: &B,
        certificate: &Certificate,
        step: &Step<B>,
        y: &B::Tensor,
        how: &Inversion,
        mut solution: Solution<B>,
    ) -> Result<Solution<B>, Error> {
        let shape = backend.shape(y);
        let (width, channels) = (shape.row_elements().max(1), shape.channels().max(1));
        let (x, y) = (numbers(backend, &solution.value)?, numbers(backend, y)?);
        let order = match certificate.map {
            // the numbers of its places tell where each goes
            ReferenceMap::Permutation => {
                let places: Vec<_> = (0..width).map(|i| B::Elem::from_f64(i as f64)).collect();
                let one = Batch::new(backend.upload(&places, shape.with_rows(1)));
                Some(numbers(backend, &step.transform.inverse(backend, &one, how)?.value)?)
            }
            _ => None,
        };
        let inverse = certificate.constants.inverse;
        let mut samples = Vec::with_capacity(solution.reports.len());
        for (i, report) in solution.reports.iter_mut().enumerate() {
            let (x, mut y) = (&x[i * width..][..width], y[i * width..][..width].to_vec());
            let mut before = 0.0;
            if let Some((found, bound)) = self.samples.get(i) {
                let kept = channels - step.factored_out;
                for (y, found) in y.chunks_exact_mut(channels).zip(found.chunks_exact(kept.max(1))) {
                    y[..kept].copy_from_slice(found);
                }
                before = *bound;
            }
            let found = match &order {
                Some(order) => order.iter().map(|&from| y[from as usize]).collect(),
                None => certificate.map.inverse(&y, x, certificate.accuracy).unwrap_or_else(|| x.to_vec()),
            };
            let own = certificate.map.inverse_error(&found, &y, certificate.constants);
            let bound = if before > 0.0 { before * inverse + own } else { own } * ROUNDED_UP;
            let apart = length(&found.iter().zip(x).map(|(a, b)| a - b).collect::<Vec<_>>());
            let all = (apart + bound) * ROUNDED_UP;
            report.error_bound = if all.is_nan() { f64::INFINITY } else { all };
            samples.push((found, bound));
        }
        self.samples = samples;
        solution.stretch = inverse;
        solution.certified = true;
        Ok(solution)
    }
}
