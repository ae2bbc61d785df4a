//! Conditional densities p(x | c): what a context is to a flow.
//!
//! A context c, `[k]`, is standardised and embedded once for all transforms, e = e(c) ([`Embedding`]). The hidden layers of each
//! block's g have biases U_l e, behind their activations may be gates tanh(A_l e + 1.5)
//! ([`layer::ContextBias`](crate::layer::ContextBias), [`layer::ContextGate`](crate::layer::ContextGate)), and between blocks
//! stand scales e^{a(c)} and shifts m(c) ([`transform::ConditionalActNorm`](crate::transform::ConditionalActNorm)):
//!
//! ```text
//! h ↦ φ(W h + b + U e(c)),  ‖W‖₂ ≤ κ;   x ↦ e^{a(c)} ∘ x + m(c)
//! log p(x | c) = log p₀(F(x; c)) + log|det ∂F(x; c)/∂x|
//! ```
//!
//! Invariant: for every c the Lipschitz bound in x, the series, the certificates and the inverse are those of the flow without a
//! context, since c is constant in all of them; U, A and e are free. Fresh U, a and m are zero, so that an untrained conditional
//! flow is the unconditional one.

mod embedding;

pub use embedding::{Embedding, PreparedEmbedding};
