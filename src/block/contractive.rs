//! A block of any kind, before its weights are normalised: the contraction g, and a kind that says what is made of it.

use std::fmt::Debug;
use std::marker::PhantomData;

use resflow_backend::{Backend, BackendError};

use super::contraction::PreparedContraction;
use crate::bijection::{Bijection, PreparedBijection};
use crate::error::ConfigError;
use crate::estimator::{CostModel, Expansion};
use crate::layer::Layer;
use crate::lipschitz::{BiLipschitz, TransformBounds};
use crate::module::Module;
use crate::stage::{Net, Stage};
use crate::tiled::{tile_samples, tiled};

/// What is made of a contraction.
pub trait Kind: Debug + Clone + Send + Sync + 'static {
    /// What such a block is called.
    const NAME: &'static str;
    /// The log det that it has of g, but for the sign.
    const EXPANSION: Expansion;

    /// Describes a block of a net over samples of a shape.
    fn stage(shape: Vec<usize>, net: Net) -> Stage;

    /// Bounds the constants of a block whose g has Lip(g) ≤ c; `None` unless c < 1.
    fn constants(c: f64) -> Option<BiLipschitz>;

    /// Makes a block of a contraction that is ready for computing.
    fn prepare<B: Backend>(g: PreparedContraction<B>) -> Box<dyn PreparedBijection<B>>;
}

/// A block made of a map g of samples of one shape to themselves, whose Lipschitz bound is below 1.
#[derive(Debug, Clone)]
pub struct ContractiveBlock<B: Backend, K: Kind> {
    net: Box<dyn Layer<B>>,
    shape: Vec<usize>,
    kind: PhantomData<K>,
}

impl<B: Backend, K: Kind> ContractiveBlock<B, K> {
    /// Builds the block of a contraction g of samples of a shape, `[d]` or `[h, w, c]`.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if g does not map the shape to itself, [`ConfigError::OutOfRange`] if its
    /// Lipschitz bound is not below 1.
    pub fn new(net: Box<dyn Layer<B>>, shape: &[usize]) -> Result<Self, ConfigError> {
        same(shape, &net.output_shape(shape)?)?;
        let bound = net.lipschitz_bound();
        // a bound that is not a number bounds nothing
        if !(0.0..1.0).contains(&bound) {
            return Err(ConfigError::OutOfRange {
                name: "Lip(g)",
                value: bound,
                expected: "a bound below 1; constrain its weights",
            });
        }
        Ok(Self { net, shape: shape.to_vec(), kind: PhantomData })
    }

    /// g.
    pub fn net(&self) -> &dyn Layer<B> {
        &*self.net
    }
}

/// Checks that g maps samples of a shape to the same.
fn same(shape: &[usize], output: &[usize]) -> Result<(), ConfigError> {
    if output == shape {
        return Ok(());
    }
    Err(ConfigError::Inconsistent(format!("g maps samples of shape {shape:?} to {output:?}; a block needs the same")))
}

impl<B: Backend, K: Kind> Module<B> for ContractiveBlock<B, K> {
    crate::parts!(B; net: Module);

    fn describe(&self) -> String {
        format!("{} block [{}]", K::NAME, self.net.describe())
    }
}

impl<B: Backend, K: Kind> Bijection<B> for ContractiveBlock<B, K> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedBijection<B>> {
        let g = PreparedContraction {
            net: self.net.prepare(backend),
            shape: self.shape.clone(),
            bound: self.net.lipschitz_bound(),
            two_norm_factor: self.net.two_norm_factor(&self.shape),
            cost: self.cost_of_g(),
        };
        tiled(K::prepare(g), tile_samples(backend, &*self.net, &self.shape, &self.shape))
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if shape == self.shape {
            return Ok(shape.to_vec());
        }
        let (name, own) = (K::NAME, &self.shape);
        Err(ConfigError::Inconsistent(format!("the {name} block of samples {own:?} cannot take samples {shape:?}")))
    }

    fn stage(&self) -> Option<Stage> {
        Some(K::stage(self.shape.clone(), self.net.net()?))
    }

    fn resize(&mut self, backend: &B, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let output = self.net.resize(backend, shape)?;
        same(shape, &output)?;
        self.shape = output;
        Ok(shape.to_vec())
    }

    fn cost(&self) -> Option<CostModel> {
        Some(self.cost_of_g())
    }

    fn expansion(&self) -> Expansion {
        K::EXPANSION
    }

    fn residual(&self) -> Option<&dyn Layer<B>> {
        Some(self.net())
    }

    fn lipschitz_bound(&self) -> Option<f64> {
        Some(self.net.lipschitz_bound())
    }

    fn certified_bounds(&self, backend: &B, path: &str) -> Result<TransformBounds, BackendError> {
        let mut weights = Vec::new();
        let lipschitz =
            self.net.certified_bound(backend, &format!("{path}.net"), &mut |weight| weights.push(weight))?;
        Ok(TransformBounds { weights, is_residual: true, lipschitz, constants: lipschitz.and_then(K::constants) })
    }
}

impl<B: Backend, K: Kind> ContractiveBlock<B, K> {
    fn cost_of_g(&self) -> CostModel {
        CostModel {
            dimension: self.shape.iter().product(),
            multiply_adds: self.net.multiply_adds(&self.shape),
            bottleneck: self.net.bottleneck(&self.shape),
        }
    }
}
