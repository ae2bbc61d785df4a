//! A run of training: what goes into it, the loop, and what it leaves in its directory.

pub(crate) mod directory;
pub(crate) mod epilogue;
pub(crate) mod illustration;
pub(crate) mod imputation;
pub(crate) mod interruption;
pub(crate) mod keeper;
pub(crate) mod learn;
pub(crate) mod metrics;
pub(crate) mod pace;
pub(crate) mod race;
pub(crate) mod training_loop;
