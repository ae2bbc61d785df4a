//! A file for each subcommand; `coordinates` and `decoded` are what some of them share.

pub(crate) mod calibrate;
pub(crate) mod categorical;
pub(crate) mod coordinates;
pub(crate) mod decode;
pub(crate) mod decoded;
pub(crate) mod devices;
pub(crate) mod encode;
pub(crate) mod experiment;
pub(crate) mod fit;
pub(crate) mod import;
pub(crate) mod impute;
pub(crate) mod inspect;
pub(crate) mod look;
pub(crate) mod nature;
pub(crate) mod pieces;
pub(crate) mod predict;
pub(crate) mod reconstruct;
pub(crate) mod report;
pub(crate) mod sample;
pub(crate) mod score;
