//! Pictures as they are drawn: of numbers, not of runs.

pub(crate) mod canvas;
pub(crate) mod curve;
pub(crate) mod image_grid;
pub(crate) mod plane;
pub(crate) mod png;
