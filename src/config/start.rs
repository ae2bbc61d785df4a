//! How the weights of a flow begin.

use serde::{Deserialize, Serialize};

/// The start of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Random weights; each ActNorm is set by the first batch.
    #[default]
    Random,
    /// The identity: F(x) = x and log det 0, so that the untrained flow *is* its base density (between images and z the
    /// logit and the order of the numbers remain). The last weight and bias of each block's and coupling's net are zero
    /// whatever the initial scale says, ActNorms and invertible linear maps are the identity and no batch sets them, and
    /// couplings are centred ([`Stage::Coupling`](crate::stage::Stage::Coupling)), since the ordinary one shrinks what
    /// it moves.
    Identity,
}

impl Start {
    /// Returns `true` for the start that files of before there was another have.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
    pub(crate) fn is_random(&self) -> bool {
        *self == Self::Random
    }
}
