//! `resflow experiment`: a grid of trainings and measurements from a file.

use anyhow::{Context as _, Result};

use crate::arguments::Experiment;
use crate::experiment;
use crate::experiment::laboratory::Laboratory;
use crate::run::interruption::listen_for_interruption;

pub(crate) fn run(arguments: &Experiment) -> Result<()> {
    let laboratory = Laboratory::open(arguments)?;
    listen_for_interruption()?;
    experiment::run(&laboratory).with_context(|| arguments.file.display().to_string())
}
