//! The stored tensors of a part: that they are shown alike, and ways to move them.

use std::collections::BTreeSet;

use resflow_backend::{Backend, Key, Shape};

use super::differences::normal;
use super::{Property, Report};
use crate::module::{Module, Role};

/// The distance by which trained tensors are moved from where they begin: far enough that nothing is at
/// a special value.
const SPREAD: f64 = 0.1;

/// A tensor as a part shows it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) role: Role,
}

/// All tensors in the order in which they are shown.
pub(super) fn stored<B: Backend, M: Module<B> + ?Sized>(backend: &B, module: &M) -> Vec<Stored> {
    let mut all = Vec::new();
    module.visit("", &mut |name, tensor, role| {
        all.push(Stored { name: name.to_owned(), shape: backend.shape(tensor), role });
    });
    all
}

/// The trained ones, in the order of the gradients.
pub(super) fn trained<B: Backend, M: Module<B> + ?Sized>(backend: &B, module: &M) -> Vec<Stored> {
    stored(backend, module).into_iter().filter(|s| s.role.is_trained()).collect()
}

/// Holds what `parts_mut` shows of a copy to what `parts` shows.
pub(super) fn check<B: Backend, M: Module<B> + ?Sized>(report: &mut Report, backend: &B, module: &M, copy: &mut M) {
    let shown = stored(backend, module);
    let mut changed = Vec::new();
    copy.visit_mut("", &mut |name, tensor, role| {
        changed.push(Stored { name: name.to_owned(), shape: backend.shape(tensor), role });
    });
    if shown != changed {
        let list = |all: &[Stored]| {
            let one = |s: &Stored| format!("`{}` {} {:?}", s.name, s.shape, s.role);
            if all.is_empty() { "nothing".into() } else { all.iter().map(one).collect::<Vec<_>>().join(", ") }
        };
        report.find(
            Property::Parts,
            format!(
                "`parts` shows {}, and `parts_mut` of a copy {}: both must show the same in the same order, which is that of the gradients; `resflow::parts!` writes both",
                list(&shown),
                list(&changed)
            ),
        );
    }
    let mut names = BTreeSet::new();
    for Stored { name, .. } in &shown {
        if !names.insert(name) {
            report.find(
                Property::Parts,
                format!(
                    "two stored tensors are named `{name}`, so a file would hold one of them: name each differently"
                ),
            );
        }
    }
}

/// Moves every trained tensor by noise.
pub(super) fn shake<B: Backend, M: Module<B> + ?Sized>(backend: &B, module: &mut M, key: Key) {
    let mut number = 0;
    module.visit_mut("", &mut |_, tensor, role| {
        if role.is_trained() {
            let noise = normal(backend, key.named("shake").split(number), backend.shape(tensor));
            *tensor = backend.axpy(SPREAD, &noise, tensor.clone());
            number += 1;
        }
    });
}

/// Moves one tensor along a direction.
pub(super) fn shift<B: Backend, M: Module<B> + ?Sized>(
    backend: &B,
    module: &mut M,
    name: &str,
    direction: &B::Tensor,
    by: f64,
) {
    module.visit_mut("", &mut |shown, tensor, _| {
        if shown == name {
            *tensor = backend.axpy(by, direction, tensor.clone());
        }
    });
}
