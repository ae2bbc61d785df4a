//! Training: gradients, optimiser, schedules, averaging, validation and resumable state.
//!
//! [`gradient`] is the mathematics, [`Trainer`] one run: it draws batches, steps, validates, keeps the best averaged
//! weights and can be stopped and resumed at any step, bit for bit on the CPU.

mod gradient;

pub use gradient::{Gradient, Objective, gradient};
