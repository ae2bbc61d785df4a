//! Lipschitz constraints: singular values by power iteration and the normalisation they drive.

mod power;

pub use power::{Coefficient, Refresh, SingularPair};
