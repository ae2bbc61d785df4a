//! Blocks made of a contraction g, Lip(g) < 1.
//!
//! | block | maps | log det |
//! |---|---|---|
//! | [`ResidualBlock`] | y = x + g(x) | log det(I + J) at x |
//! | [`InvertedBlock`] | z with z + g(z) = y | −log det(I + J) at z |
//! | [`MonotoneBlock`] | y = √2·w − x, where w + g(w) = √2·x | log det(I − J) − log det(I + J) at w |
//!
//! The forward pass of the last two is a solve. It is differentiated by the implicit function theorem, so that neither
//! memory nor the gradient depends on its iterations. A residual block with an inverted one behind it is an implicit
//! block (Lu et al. 2021).

mod contraction;
mod contractive;
mod inverted;
mod monotone;
mod residual;

pub use contractive::ContractiveBlock;
pub use inverted::{Inverted, InvertedBlock};
pub use monotone::{Monotone, MonotoneBlock};
pub use residual::{Residual, ResidualBlock};
