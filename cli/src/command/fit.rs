//! `resflow fit`: learns a density, with everything around it.

use anyhow::Result;
use resflow::data::Missing;

use crate::arguments::Fit;
use crate::cluster;
use crate::command::categorical;
use crate::data::large::{Rows, scan};
use crate::data::part::Split;
use crate::data::{Data, file_of};
use crate::failure::usage;
use crate::model::read_archive;
use crate::output::print;
use crate::run::directory::RunDirectory;
use crate::run::epilogue::Epilogue;
use crate::run::illustration::Illustration;
use crate::run::imputation::learn_incomplete;
use crate::run::interruption::listen_for_interruption;
use crate::run::learn::learn;

pub(crate) fn run(arguments: &Fit) -> Result<()> {
    listen_for_interruption()?;
    let directory = RunDirectory::new(&arguments.out);
    if cluster::following().is_none() {
        directory.spare(file_of(&arguments.data))?;
        directory.claim_if_there()?;
    }
    let mut options = arguments.reading.options();
    options.image_size = arguments.size.image_size;
    // weights and contexts may be the same in every row
    options.refuse_constants = arguments.weight.is_none() && arguments.given.is_empty();
    if let Some(columns) = &mut options.columns {
        for beside in arguments.given.iter().chain(&arguments.weight) {
            if !columns.contains(beside) {
                columns.push(beside.clone());
            }
        }
    }
    if arguments.impute {
        options.missing = Missing::Keep;
    }
    let group = cluster::group();
    // what cannot be read is told when the run is resumed
    let state = || if arguments.resume { read_archive(&directory.checkpoint()).ok() } else { None };
    let largeness = arguments.largeness.as_begun(state, group.as_deref())?;
    // rows that belong together with others are read at once
    let alone = arguments.weight.is_none() && arguments.given.is_empty() && !arguments.impute;
    let large = if alone {
        let path = file_of(&arguments.data);
        match largeness.open_images(path, &options, Some(Split::Train), group.as_deref())? {
            Some(images) => Some(Box::new(images) as Rows),
            None => largeness.open(path, &options, group.as_deref())?,
        }
    } else {
        None
    };
    let data = match large {
        Some(rows) => scan(rows, group.as_deref())?,
        None => largeness.data(
            Data::open_with(&arguments.data, &options)?
                .weighted_by(arguments.weight.as_deref(), &arguments.data)?
                .given(&arguments.given, &arguments.data)?,
            group.as_deref(),
        )?,
    };
    drop(directory);
    if cluster::group().is_some() && (arguments.impute || categorical::is_all(&data)) {
        return Err(usage("a fit with --impute, or of categories alone, is one process's: start it without mpirun"));
    }
    if arguments.impute {
        return print(&learn_incomplete(arguments, data)?);
    }
    if categorical::is_all(&data) {
        return categorical::fit(arguments, data);
    }
    let (illustration, epilogue) = (Illustration::of(&data), Epilogue::of(&data));
    print(&learn(arguments, data, illustration, epilogue)?)
}
