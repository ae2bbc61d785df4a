//! `resflow fit`: learns a density, with everything around it.

use anyhow::Result;

use crate::arguments::Fit;
use crate::data::Data;
use crate::output::print;
use crate::run::epilogue::Epilogue;
use crate::run::illustration::Illustration;
use crate::run::interruption::listen_for_interruption;
use crate::run::learn::learn;

pub(crate) fn run(arguments: &Fit) -> Result<()> {
    listen_for_interruption()?;
    let data = Data::open(&arguments.data)?.weighted_by(arguments.weight.as_deref(), &arguments.data)?;
    let (illustration, epilogue) = (Illustration::of(&data), Epilogue::of(&data));
    print(&learn(arguments, data, illustration, epilogue)?)
}
