//! `resflow`: residual flows from the command line.
//!
//! Floors, each importing only from those below: `command`, a file for each subcommand; `experiment`; `run`, a training
//! run and its directory, and `evaluate`; `report` and `picture`; `model`, which loads; `arguments`; `settings`; `data` and `device`;
//! `progress`, `unfinished` and `output`; `columnar`, `cluster` and `failure`. Exit codes: 0 done, 1 the work failed, 2 the command or its configuration was wrong,
//! 130 interrupted with a checkpoint written.
#![forbid(unsafe_code)]

mod arguments;
mod cluster;
mod columnar;
mod command;
mod data;
mod device;
mod evaluate;
mod experiment;
mod failure;
mod model;
mod output;
mod picture;
mod progress;
mod report;
mod run;
mod settings;
mod unfinished;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let result = cluster::enter(command.wait_limit()).and_then(|()| {
        // what one process does, rank 0 does
        if cluster::following().is_some() && !command.is_together() { Ok(()) } else { run(command) }
    });
    match cluster::finish(result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // first said, then told to the others: `mpirun` ends who is left when the first of them is gone
            let code = failure::report(&error);
            cluster::abort(&error);
            code
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fit(arguments) => command::fit::run(&arguments),
        Command::Score(arguments) => command::score::run(&arguments),
        Command::Sample(arguments) => command::sample::run(&arguments),
        Command::Encode(arguments) => command::encode::run(&arguments),
        Command::Decode(arguments) => command::decode::run(&arguments),
        Command::Reconstruct(arguments) => command::reconstruct::run(&arguments),
        Command::Report(arguments) => command::report::run(&arguments),
        Command::Inspect(arguments) => command::inspect::run(&arguments),
        Command::Import(arguments) => command::import::run(&arguments),
        Command::Experiment(arguments) => command::experiment::run(&arguments),
        Command::Devices(arguments) => command::devices::run(&arguments),
        Command::Look(arguments) => command::look::run(&arguments),
        Command::Impute(arguments) => command::impute::run(&arguments),
        Command::Predict(arguments) => command::predict::run(&arguments),
        Command::Calibrate(arguments) => command::calibrate::run(&arguments),
    }
}
