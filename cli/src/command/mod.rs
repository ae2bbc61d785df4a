//! A file for each subcommand.

pub(crate) mod devices;
pub(crate) mod encode;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod reconstruct;
pub(crate) mod sample;
pub(crate) mod score;
