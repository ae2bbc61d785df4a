//! Modules: holders of stored tensors, under names, made of other modules.
//!
//! A module says once what its parts are ([`Module::parts`], [`Module::parts_mut`], usually through
//! [`parts!`](crate::parts)); showing every tensor, updating spectral norms, reporting them and checking what was read
//! from a file follow. Invariant: both methods show the same parts under the same names in the same order, which is
//! also the order of the gradients.

use std::fmt::Debug;

use resflow_backend::{Backend, BackendError, Shape};

use crate::error::Error;
use crate::lipschitz::PowerIteration;

/// The role of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A trained tensor that weight decay applies to.
    Weight,
    /// A trained tensor that weight decay leaves alone: a bias, a scale, an activation's parameter.
    Parameter,
    /// A trained tensor of a learned concatenation, which weight decay leaves alone and which a training may leave as it is
    /// in its first steps.
    Concatenation,
    /// State that is saved but not trained: singular vectors, flags.
    Buffer,
}

impl Role {
    /// Returns `true` if the optimiser changes it.
    pub fn is_trained(self) -> bool {
        self != Self::Buffer
    }
}

/// Reads every stored tensor: path, tensor, role.
pub type Visitor<'a, B> = &'a mut dyn FnMut(&str, &<B as Backend>::Tensor, Role);
/// Changes every stored tensor: path, tensor, role.
pub type VisitorMut<'a, B> = &'a mut dyn FnMut(&str, &mut <B as Backend>::Tensor, Role);

/// The gradient of one trained tensor, of its shape; `None` while nothing was added.
pub type Grad<B> = Option<<B as Backend>::Tensor>;

/// Adds a gradient of the tensor's shape to what was added before.
pub fn accumulate<B: Backend>(backend: &B, grad: &mut Grad<B>, gradient: &B::Tensor) {
    *grad = Some(match grad.take() {
        None => gradient.clone(),
        Some(sum) => backend.axpy(1.0, gradient, sum),
    });
}

/// A part of a module.
#[derive(Debug)]
pub enum Part<'a, B: Backend> {
    /// A stored tensor.
    Tensor(&'a B::Tensor, Role),
    /// A module inside.
    Module(&'a dyn Module<B>),
}

/// A part of a module, to be changed.
#[derive(Debug)]
pub enum PartMut<'a, B: Backend> {
    /// A stored tensor.
    Tensor(&'a mut B::Tensor, Role),
    /// A module inside.
    Module(&'a mut dyn Module<B>),
}

/// Takes the names of parts and the parts.
pub type ShowPart<'s, 'a, B> = &'s mut dyn FnMut(&str, Part<'a, B>);
/// Takes the names of parts and the parts, to change them.
pub type ShowPartMut<'s, 'a, B> = &'s mut dyn FnMut(&str, PartMut<'a, B>);

/// The leading singular value of one constrained weight.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Spectrum {
    /// The weight's path.
    pub name: String,
    /// σ of the raw weight, by power iteration: a lower bound that converges from below.
    pub sigma: f64,
    /// The bound κ on σ of the normalised weight.
    pub coefficient: f64,
}

impl Spectrum {
    /// Returns σ of the normalised weight: min(σ, κ).
    pub fn effective(&self) -> f64 {
        self.sigma.min(self.coefficient)
    }
}

/// Joins the parts of a path, one inside the other.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Something with stored tensors: a layer, a transform, a base density.
pub trait Module<B: Backend>: Debug + Send + Sync {
    /// Shows the stored tensors and the modules inside; a module without any leaves it out.
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        let _ = show;
    }

    /// Shows the same tensors and modules, to be changed.
    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        let _ = show;
    }

    /// Says in one line what the module is; the name of its type, unless it says more.
    fn describe(&self) -> String {
        let name = std::any::type_name::<Self>();
        let name = name.split('<').next().unwrap_or(name);
        name.rsplit("::").next().unwrap_or(name).to_owned()
    }

    /// Called after stored tensors were changed from outside, for a module that keeps copies of them.
    fn tensors_changed(&mut self) {}

    /// Shows every stored tensor in the order of the gradients; `path` is the prefix of its name.
    fn visit(&self, path: &str, visitor: Visitor<'_, B>) {
        self.parts(&mut |name, part| match part {
            Part::Tensor(tensor, role) => visitor(&join(path, name), tensor, role),
            Part::Module(module) => module.visit(&join(path, name), visitor),
        });
    }

    /// Lets every stored tensor be changed, in the same order.
    fn visit_mut(&mut self, path: &str, visitor: VisitorMut<'_, B>) {
        self.parts_mut(&mut |name, part| match part {
            PartMut::Tensor(tensor, role) => visitor(&join(path, name), tensor, role),
            PartMut::Module(module) => module.visit_mut(&join(path, name), visitor),
        });
        self.tensors_changed();
    }

    /// Counts the trained numbers.
    fn parameters(&self, backend: &B) -> u64 {
        let mut count = 0;
        self.visit("", &mut |_, tensor, role| {
            count += if role.is_trained() { backend.shape(tensor).elements() as u64 } else { 0 };
        });
        count
    }

    /// Continues the power iteration of every constrained weight.
    fn update_spectral_norms(&mut self, backend: &B, how: PowerIteration) {
        self.parts_mut(&mut |_, part| {
            if let PartMut::Module(module) = part {
                module.update_spectral_norms(backend, how);
            }
        });
    }

    /// Replaces every constrained weight by the normalised one, scaled so that its certified norm is at most κ: it is then multiplied
    /// by as it is stored, on every device. Weights that are certified as they are keep their bits; those between other norms than
    /// the 2-norm, which have no certificate, are left alone.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn seal(&mut self, backend: &B) -> Result<(), BackendError> {
        let mut result = Ok(());
        self.parts_mut(&mut |_, part| {
            if let (PartMut::Module(module), Ok(())) = (part, &result) {
                result = module.seal(backend);
            }
        });
        result
    }

    /// Reports σ of every constrained weight.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn spectra(&self, backend: &B, path: &str, report: &mut dyn FnMut(Spectrum)) -> Result<(), BackendError> {
        each_module(self, &mut |name, module| module.spectra(backend, &join(path, name), report))
    }

    /// Reports the path of each singular vector and its length in the norm in which it should be a unit vector.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    fn vector_lengths(&self, backend: &B, path: &str, report: &mut dyn FnMut(String, f64)) -> Result<(), BackendError> {
        each_module(self, &mut |name, module| module.vector_lengths(backend, &join(path, name), report))
    }

    /// Checks what was read from a file, beyond shapes and finiteness.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Tensor`](crate::error::CheckpointError::Tensor) for a tensor, by its name under this
    /// path, that the module cannot compute with, and [`Error::Backend`] if the device failed.
    fn check_stored(&self, backend: &B, path: &str) -> Result<(), Error> {
        each_module(self, &mut |name, module| module.check_stored(backend, &join(path, name)))
    }
}

/// Shows the modules inside a module until one fails.
fn each_module<B: Backend, M: Module<B> + ?Sized, E>(
    module: &M,
    each: &mut dyn FnMut(&str, &dyn Module<B>) -> Result<(), E>,
) -> Result<(), E> {
    let mut result = Ok(());
    module.parts(&mut |name, part| {
        if let (Part::Module(module), Ok(())) = (part, &result) {
            result = each(name, module);
        }
    });
    result
}

/// The shapes of the trained tensors in a module.
pub(crate) fn trained_shapes<B: Backend, M: Module<B> + ?Sized>(backend: &B, module: &M) -> Vec<Shape> {
    let mut shapes = Vec::new();
    module.visit("", &mut |_, tensor, role| shapes.extend(role.is_trained().then(|| backend.shape(tensor))));
    shapes
}

/// Makes zeros of gradients that nothing was added to.
pub(crate) fn fill<B: Backend>(backend: &B, grads: &mut [Grad<B>], shapes: &[Shape]) {
    for (grad, shape) in grads.iter_mut().zip(shapes) {
        grad.get_or_insert_with(|| backend.full(0.0, *shape));
    }
}

/// The number of trained tensors in a module.
pub(crate) fn trained_tensors<B: Backend, M: Module<B> + ?Sized>(module: &M) -> usize {
    let mut count = 0;
    module.visit("", &mut |_, _, role| count += usize::from(role.is_trained()));
    count
}

/// Sets the trained tensors of a module from flat ones, `[P]`, from entry `at` on.
pub(crate) fn assign<B: Backend, M: Module<B> + ?Sized>(backend: &B, module: &mut M, flat: &B::Tensor, mut at: usize) {
    module.visit_mut("", &mut |_, tensor, role| {
        if role.is_trained() {
            let shape = backend.shape(tensor);
            *tensor = backend.reshape(&backend.narrow(flat, 0, at, shape.elements()), shape);
            at += shape.elements();
        }
    });
}

/// Joins tensors one after the other, `[total]`; `None` of nothing.
pub(crate) fn flatten<'a, B: Backend>(backend: &B, tensors: impl Iterator<Item = &'a B::Tensor>) -> Option<B::Tensor> {
    let flat: Vec<_> = tensors.map(|t| backend.reshape(t, [backend.shape(t).elements()].into())).collect();
    (!flat.is_empty()).then(|| backend.concat(&flat.iter().collect::<Vec<_>>(), 0))
}

/// Writes [`Module::parts`] and [`Module::parts_mut`] for fields that are tensors, each with its [`Role`], or boxed
/// modules.
///
/// ```
/// use resflow::backend::Backend;
/// use resflow::module::Module;
///
/// #[derive(Debug, Clone)]
/// struct Shift<B: Backend> {
///     bias: B::Tensor,
///     initialised: B::Tensor,
/// }
///
/// impl<B: Backend> Module<B> for Shift<B> {
///     resflow::parts!(B; bias: Parameter, initialised: Buffer);
///
///     fn describe(&self) -> String {
///         "shift".into()
///     }
/// }
/// ```
#[macro_export]
macro_rules! parts {
    ($backend:ident; $($name:ident: $kind:ident),* $(,)?) => {
        fn parts<'a>(&'a self, show: $crate::module::ShowPart<'_, 'a, $backend>) {
            $(show(stringify!($name), $crate::parts!(@part self.$name, $kind));)*
        }

        fn parts_mut<'a>(&'a mut self, show: $crate::module::ShowPartMut<'_, 'a, $backend>) {
            $(show(stringify!($name), $crate::parts!(@part_mut self.$name, $kind));)*
        }
    };
    (@part $field:expr, Module) => { $crate::module::Part::Module(&*$field) };
    (@part $field:expr, $role:ident) => { $crate::module::Part::Tensor(&$field, $crate::module::Role::$role) };
    (@part_mut $field:expr, Module) => { $crate::module::PartMut::Module(&mut *$field) };
    (@part_mut $field:expr, $role:ident) => {
        $crate::module::PartMut::Tensor(&mut $field, $crate::module::Role::$role)
    };
}
