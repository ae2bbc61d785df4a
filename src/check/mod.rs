//! Checks of transforms and layers of your own: everything that the library relies on, found out by calling them.
//!
//! [`check_bijection`] and [`check_layer`] draw samples, move every trained tensor a little away from where it begins
//! (a fresh transform is often the identity, of which wrong derivatives are right), and hold what the part says to what
//! differences of its forward pass say. All findings come at once, each a sentence with the numbers that were found. A
//! test of a transform is one line:
//!
//! ```
//! use resflow::NdArray;
//! use resflow::backend::Key;
//! use resflow::check::{Failed, check_bijection};
//! use resflow::registry::Registry;
//! use resflow::transform::ActNorm;
//!
//! # fn main() -> Result<(), Failed> {
//! let backend = NdArray::<f64>::new();
//! check_bijection(&backend, &ActNorm::new(&backend, 3), &[3], Key::new(0), &Registry::new())?;
//! # Ok(())
//! # }
//! ```
//!
//! | property | of | holds if |
//! |---|---|---|
//! | [`OutputShape`](Property::OutputShape) | both | y is `[n, …]` of the shape that `output_shape` says |
//! | [`Value`](Property::Value) | both | y is finite, and the same whatever is asked for besides |
//! | [`LogDet`](Property::LogDet) | transforms | the log det comes when it is asked for, `[n, 1]` or `[n, replicates]`, and is ln\|det ∂y/∂x\| |
//! | [`Inverse`](Property::Inverse) | transforms | F⁻¹(F(x)) = x and F(F⁻¹(y)) = y |
//! | [`TransposedSolve`](Property::TransposedSolve) | transforms | Jᵀa = g for the a that `solve_transposed` gives, where there is one |
//! | [`Gradient`](Property::Gradient) | both | the gradients in x, in tangents and in trained tensors are those by differences |
//! | [`SampleWeights`](Property::SampleWeights) | transforms | each sample's cotangents go to its own part of the gradients |
//! | [`Accumulation`](Property::Accumulation) | both | gradients are added to what is there |
//! | [`Memory`](Property::Memory) | transforms | gradients do not depend on what was kept |
//! | [`BatchCut`](Property::BatchCut) | both | nothing depends on how a batch is cut, but for rounding |
//! | [`Parts`](Property::Parts) | both | `parts` and `parts_mut` show the same tensors in the same order |
//! | [`SaveAndLoad`](Property::SaveAndLoad) | both | what is built from the stage and the tensors computes the same |
//! | [`Saved`](Property::Saved) | layers | everything that is kept has samples first |
//! | [`Jvp`](Property::Jvp), [`Vjp`](Property::Vjp) | layers | J dx is that by differences, and ⟨u, J v⟩ = ⟨Jᵀ u, v⟩ |
//! | [`Lipschitz`](Property::Lipschitz) | layers | no pair of samples is stretched more than `lipschitz_bound` says |
//!
//! Mistakes in shapes that reach an operation of the backend panic there, with both shapes. The checks are meant for
//! double precision; what is allowed follows the precision by one table, [`tolerance`], in which single precision finds
//! wrong signs and factors, but no small errors.

mod bijection;
mod differences;
mod gradients;
mod layer;
mod parts;
mod pullback;
mod samples;
mod saved;
pub mod tolerance;
mod transposed;

use std::fmt;

pub use bijection::{check_bijection, check_bijection_at};
pub use layer::{check_layer, check_layer_at};

use crate::error::Error;

/// A promise of a transform or a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Property {
    /// y is `[n, …]` of the shape that `output_shape` says.
    OutputShape,
    /// y is finite, and the same whatever is asked for besides.
    Value,
    /// The log det comes when it is asked for, has its shape, and is that of the Jacobian.
    LogDet,
    /// The inverse is one.
    Inverse,
    /// `solve_transposed` gives the a with Jᵀa = g.
    TransposedSolve,
    /// Gradients are those by differences; for what a backward pass needs is kept.
    Gradient,
    /// Each sample's cotangents, its weight among them, are its own.
    SampleWeights,
    /// Gradients are added to what is there: a batch may come in several shards.
    Accumulation,
    /// Gradients do not depend on what was kept of the forward pass.
    Memory,
    /// Nothing depends on how a batch is cut, but for rounding.
    BatchCut,
    /// `parts` and `parts_mut` show the same tensors in the same order, under names of their own.
    Parts,
    /// The part that is built from the stage and the stored tensors computes the same.
    SaveAndLoad,
    /// Everything that a layer keeps has samples first.
    Saved,
    /// `jvp` is the derivative of `forward`.
    Jvp,
    /// `vjp` is the adjoint of `jvp`.
    Vjp,
    /// No pair of samples is stretched more than `lipschitz_bound` says.
    Lipschitz,
    /// No error is returned for samples that can pass.
    Succeeds,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutputShape => "output shape",
            Self::Value => "value",
            Self::LogDet => "log det",
            Self::Inverse => "inverse",
            Self::TransposedSolve => "transposed solve",
            Self::Gradient => "gradient",
            Self::SampleWeights => "sample weights",
            Self::Accumulation => "accumulation",
            Self::Memory => "memory",
            Self::BatchCut => "batch cut",
            Self::Parts => "parts",
            Self::SaveAndLoad => "save and load",
            Self::Saved => "saved",
            Self::Jvp => "jvp",
            Self::Vjp => "vjp",
            Self::Lipschitz => "Lipschitz bound",
            Self::Succeeds => "success",
        })
    }
}

/// Something that was found out about a property.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The property.
    pub property: Property,
    /// The finding and a remedy in words, with the numbers.
    pub sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.sentence)
    }
}

/// A part that does what it promises.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Passed {
    /// Remarks that are no mistakes but good to know: that a part cannot be saved, or what could not be checked.
    pub notes: Vec<Finding>,
}

/// A part that does not do what it promises.
#[derive(Clone, PartialEq)]
pub struct Failed {
    /// The part, in its own words.
    pub part: String,
    /// Everything that is wrong with it, at least one thing.
    pub findings: Vec<Finding>,
    /// Remarks that are no mistakes but good to know.
    pub notes: Vec<Finding>,
}

impl Failed {
    /// Returns `true` if something is wrong with a property.
    pub fn has(&self, property: Property) -> bool {
        self.findings.iter().any(|f| f.property == property)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not do what it promises:", self.part)?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n* {finding}"))?;
        self.notes.iter().try_for_each(|note| write!(f, "\n(note) {note}"))
    }
}

/// Shows its display: what a test that returns it, or unwraps it, prints is to be read.
impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failed {}

/// Findings and notes as they are gathered.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    notes: Vec<Finding>,
}

impl Report {
    /// Something is wrong, which is said once.
    fn find(&mut self, property: Property, sentence: String) {
        let finding = Finding { property, sentence };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn note(&mut self, property: Property, sentence: String) {
        self.notes.push(Finding { property, sentence });
    }

    /// The outcome of checks that ended early if they ended with an error.
    fn conclude(mut self, part: String, ended: Result<(), Error>) -> Result<Passed, Failed> {
        if let Err(e) = ended {
            self.find(Property::Succeeds, format!("an error was returned, and the other checks were given up: {e}"));
        }
        let Self { findings, notes } = self;
        if findings.is_empty() { Ok(Passed { notes }) } else { Err(Failed { part, findings, notes }) }
    }
}
