//! Lipschitz constraints: norms of linear maps by power iteration and the normalisation they drive.

mod certificate;
mod chain;
mod induced;
mod norm;
mod operator;
mod order;
mod power;

pub(crate) use certificate::invert;
pub use certificate::{
    BiLipschitz, FlowBounds, TransformBounds, WeightBounds, convolution_norm_bound, inverse_norm_bound,
    spectral_norm_bound,
};
pub use chain::{NormChain, chain_from_digits, check_chain, learned_chain};
pub use induced::{DualPair, Norms};
pub use norm::Norm;
pub use operator::{ConvOperator, DenseOperator, LinearOperator};
pub use order::{Exponent, Order, learned_exponent, two_norm_factor};
pub(crate) use power::UNIT;
pub use power::{Coefficient, PowerIteration, SingularPair};
