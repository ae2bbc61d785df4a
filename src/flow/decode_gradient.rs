//! Gradients of functions of decoded samples, in z and in the parameters: x = F⁻¹(z) as a differentiable map.
//!
//! z̄ = (∂F/∂x)^{−T} x̄ and θ̄ = −(∂F/∂θ)ᵀ z̄ transform by transform, by the implicit function theorem; the iterations of the
//! inverse are not unrolled, and memory does not depend on them.
//!
//! Invariant: a sample of which a solve failed weighs nothing in either, whatever its numbers are, and is reported.

use resflow_backend::Backend;

use super::prepared::PreparedFlow;
use crate::batch::Batch;
use crate::bijection::Memory;
use crate::error::Error;
use crate::invert::{Inversion, SampleReport, Solution, mark_unsolved, without_samples};
use crate::module::{Grad, fill, flatten};

/// The gradient of a function of decoded samples.
#[derive(Debug, Clone)]
pub struct DecodeGradient<B: Backend> {
    /// The gradient in z, `[n, d]`; zeros for a sample of which a solve failed.
    pub latents: B::Tensor,
    /// The gradients of all trained tensors one after the other in the order of a visit, `[P]`; those of the base density and
    /// of a classifier, which have no part in x = F⁻¹(z), are zeros.
    pub flat: B::Tensor,
    /// The report of each sample's solves: the largest residual, relative to the gradient, all products, the worst status.
    pub reports: Vec<SampleReport>,
}

impl<B: Backend> PreparedFlow<B> {
    /// Computes the gradient in z and in the parameters of a function of samples x = F⁻¹(z) whose gradient in x is `gradient`;
    /// both `[n, d]` or `[n, h, w, c]`, in standardised units, x as [`decode`](Self::decode) finds it.
    ///
    /// ```
    /// # use resflow::{Flow, NdArray, backend::{Backend, Key}, config::FlowConfig, invert::Inversion};
    /// let backend = NdArray::<f64>::new();
    /// let flow = Flow::new(backend.clone(), &FlowConfig { blocks: 2, ..FlowConfig::new(2) }, Key::new(0))?.prepare();
    /// let x = backend.upload(&[0.3, -0.8], [1, 2].into());
    /// // of the sum of x's numbers
    /// let found = flow.decode_gradient(&x, &backend.full(1.0, [1, 2].into()), &Inversion::for_backend::<NdArray<f64>>())?;
    /// assert_eq!(backend.shape(&found.latents)[..], [1, 2]);
    /// # Ok::<(), resflow::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the shapes do not fit, for a conditional flow, or if a transform of your own has no transposed solve,
    /// [`Error::Transform`] if one failed, [`Error::Backend`] if the device did. A sample whose solve does not converge is no
    /// error: see the reports.
    pub fn decode_gradient(
        &self,
        x: &B::Tensor,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<DecodeGradient<B>, Error> {
        self.check_unconditional()?;
        let backend = &self.backend;
        let (shape, found) = (backend.shape(x), backend.shape(gradient));
        if shape.rank() == 0 || shape.rows() == 0 || shape[1..] != self.sample_shape || found != shape {
            return Err(Error::Input(format!(
                "samples of shape {shape} and a gradient of shape {found} for a flow of samples {:?}: both are [n, …], n > 0",
                self.sample_shape
            )));
        }
        let memory = if self.bits.is_some() { Memory::Recompute } else { Memory::Store };
        let plan = self.gradient_plan(shape.rows());
        let batch = Batch::new(x.clone());
        let lanes = backend.run(plan.lanes(), |l| -> Result<_, Error> {
            let mut grads = vec![None; self.chain.grads()];
            let mut found = Vec::new();
            for shard in plan.lane(l) {
                let own = batch.narrow(backend, shard.start, shard.len());
                let gradient = backend.narrow(gradient, 0, shard.start, shard.len());
                found.push(self.pull_back_inverse(&own, gradient, how, memory, &mut grads)?);
            }
            Ok((grads, found))
        });
        let (grads, found): (Vec<_>, Vec<_>) = lanes.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let mut parts = self.chain.gather(backend, &grads)?;
        let mut of_base = vec![None; self.base_shapes.len()];
        fill(backend, &mut of_base, &self.base_shapes);
        parts.extend(of_base.into_iter().flatten());
        if let Some(classifier) = &self.classifier {
            let mut of_classifier = vec![None; classifier.grads()];
            classifier.finish_gradients(backend, &mut of_classifier);
            parts.extend(of_classifier.into_iter().flatten());
        }
        // shard i is entry i div L of lane i mod L
        let count = plan.lanes();
        let in_order: Vec<_> = (0..plan.shards()).map(|i| &found[i % count][i / count]).collect();
        Ok(DecodeGradient {
            latents: backend.concat(&in_order.iter().map(|s| &s.value).collect::<Vec<_>>(), 0),
            flat: flatten(backend, parts.iter()).unwrap_or_else(|| backend.full(0.0, [0].into())),
            reports: in_order.iter().flat_map(|s| s.reports.iter().copied()).collect(),
        })
    }

    /// Takes the gradient of a shard back and adds to those of the chain, without the samples of which a solve failed: where
    /// there are any, all is done once more with zeros in their place.
    fn pull_back_inverse(
        &self,
        batch: &Batch<B>,
        gradient: B::Tensor,
        how: &Inversion,
        memory: Memory,
        grads: &mut Vec<Grad<B>>,
    ) -> Result<Solution<B>, Error> {
        let (backend, chain) = (&self.backend, &self.chain);
        let before = grads.clone();
        let found = chain.pull_back_inverse(backend, batch, &gradient, how, memory, Some(grads))?;
        let Some(failed) = mark_unsolved(backend, &found.reports) else { return Ok(found) };
        *grads = before;
        let batch = batch.with_x(without_samples(backend, &failed, batch.x.clone()));
        let gradient = without_samples(backend, &failed, gradient);
        let others = chain.pull_back_inverse(backend, &batch, &gradient, how, memory, Some(grads))?;
        Ok(Solution { value: without_samples(backend, &failed, others.value), ..found })
    }
}
