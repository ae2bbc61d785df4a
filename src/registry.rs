//! The registry of transforms and layers of your own, for loading models.
//!
//! A model file stores a description of each transform ([`Stage`](crate::stage::Stage)). One of your own says a name
//! and its settings ([`Custom`]), and a registry knows who makes a part of that name. Nothing is global: whoever loads,
//! moves or resumes a model with such parts hands the registry over.
//!
//! ```
//! use resflow::backend::Backend;
//! use resflow::registry::Registry;
//! use resflow::transform::Squeeze;
//! use resflow::NdArray;
//!
//! // `examples/custom_transform.rs` is a whole transform, from its formulas to its registry
//! let mut registry = Registry::<NdArray<f32>>::new();
//! registry.add_transform("my squeeze", |_backend, _settings| Ok(Box::new(Squeeze::new())));
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use resflow_backend::Backend;
use serde_json::Value;

use crate::bijection::Bijection;
use crate::error::{ConfigError, Excerpt};
use crate::layer::Layer;
use crate::stage::Custom;

type Maker<B, T> = Arc<dyn Fn(&B, &Value) -> Result<Box<T>, ConfigError> + Send + Sync>;

/// Makers of transforms and layers, by name.
#[derive(Clone)]
pub struct Registry<B: Backend> {
    transforms: BTreeMap<String, Maker<B, dyn Bijection<B>>>,
    layers: BTreeMap<String, Maker<B, dyn Layer<B>>>,
}

impl<B: Backend> Default for Registry<B> {
    fn default() -> Self {
        Self { transforms: BTreeMap::new(), layers: BTreeMap::new() }
    }
}

impl<B: Backend> fmt::Debug for Registry<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transforms, layers) = (self.transforms.keys(), self.layers.keys());
        f.debug_struct("Registry")
            .field("transforms", &transforms.collect::<Vec<_>>())
            .field("layers", &layers.collect::<Vec<_>>())
            .finish()
    }
}

impl<B: Backend> Registry<B> {
    /// Builds a registry that knows the library's own parts only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers the maker of transforms of a name, from their settings and with tensors of the right shapes, to be
    /// filled from the file. Settings come from the file: check them before memory is taken by them.
    pub fn add_transform(
        &mut self,
        name: &str,
        make: impl Fn(&B, &Value) -> Result<Box<dyn Bijection<B>>, ConfigError> + Send + Sync + 'static,
    ) {
        self.transforms.insert(name.to_owned(), Arc::new(make));
    }

    /// Registers the maker of layers of a name, likewise.
    pub fn add_layer(
        &mut self,
        name: &str,
        make: impl Fn(&B, &Value) -> Result<Box<dyn Layer<B>>, ConfigError> + Send + Sync + 'static,
    ) {
        self.layers.insert(name.to_owned(), Arc::new(make));
    }

    pub(crate) fn transform(&self, backend: &B, custom: &Custom) -> Result<Box<dyn Bijection<B>>, ConfigError> {
        make(&self.transforms, "transform", backend, custom)
    }

    pub(crate) fn layer(&self, backend: &B, custom: &Custom) -> Result<Box<dyn Layer<B>>, ConfigError> {
        make(&self.layers, "layer", backend, custom)
    }
}

fn make<B: Backend, T: ?Sized>(
    makers: &BTreeMap<String, Maker<B, T>>,
    kind: &str,
    backend: &B,
    custom: &Custom,
) -> Result<Box<T>, ConfigError> {
    let Some(maker) = makers.get(&custom.name) else {
        let known: Vec<_> = makers.keys().map(|name| format!("`{name}`")).collect();
        let known =
            if known.is_empty() { "none is registered".into() } else { format!("there are {}", known.join(", ")) };
        return Err(ConfigError::Inconsistent(format!(
            "the model has a {kind} of its maker's own, `{}`, which is not in the registry that it is loaded with: {known}",
            Excerpt(&custom.name)
        )));
    };
    maker(backend, &custom.settings)
}
