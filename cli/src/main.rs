//! `resflow`: residual flows from the command line.
//!
//! Every subcommand is a file; what they share is a file each too: arguments, loading, failures, pictures. Exit codes:
//! 0 done, 1 the work failed, 2 the command or its configuration was wrong, 130 interrupted with a checkpoint written.
#![forbid(unsafe_code)]

mod arguments;
mod arithmetic;
mod canvas;
mod classification;
mod code;
mod curve;
mod devices;
mod evaluate;
mod experiment;
mod failure;
mod fit;
mod illustration;
mod image_grid;
mod import;
mod inspect;
mod keeper;
mod labels;
mod metrics;
mod model;
mod outliers;
mod output;
mod pace;
mod picture;
mod presets;
mod progress;
mod reconstruct;
mod rows;
mod run;
mod run_directory;
mod sample;
mod score;
mod settings;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Fit(arguments) => fit::run(&arguments),
        Command::Score(arguments) => score::run(&arguments),
        Command::Sample(arguments) => sample::run(&arguments),
        Command::Encode(arguments) => code::encode(&arguments),
        Command::Decode(arguments) => code::decode(&arguments),
        Command::Reconstruct(arguments) => reconstruct::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Experiment(arguments) => experiment::run(&arguments),
        Command::Devices(arguments) => devices::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
