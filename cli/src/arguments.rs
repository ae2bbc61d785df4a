//! The command line: what can be asked for, and the text of `--help`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use resflow::estimator::Estimator;

/// Fit, score and sample residual flows: invertible networks with exact likelihoods.
#[derive(Debug, Parser)]
#[command(
    name = "resflow",
    version,
    max_term_width = 100,
    after_help = "\
Begin with:
  resflow fit checkerboard --out board       learn a built-in density, about a minute on two cores
  resflow score board checkerboard           log p of fresh points, with its standard error
  resflow sample board -n 1000 --out new.csv draw from the model

With your own data: a .csv file (with or without a header) or a .npy array, one row a point.
Exit codes: 0 done; 1 the work failed; 2 wrong command or configuration; 130 interrupted, checkpoint written."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Fit(Fit),
    Score(Score),
    Sample(Sample),
    Encode(Encode),
    Decode(Decode),
    Inspect(Inspect),
}

/// The precision of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// Single: fast.
    F32,
    /// Double: slower by two or more, accurate to 1e-12.
    F64,
}

impl Precision {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

/// How to compute.
#[derive(Debug, Args)]
pub(crate) struct Arithmetic {
    /// The precision of the arithmetic [default: f32 for fit, else the model's]
    #[arg(long, value_enum, display_order = 100)]
    pub(crate) precision: Option<Precision>,
    /// The number of threads; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, display_order = 100)]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// Learn a density from rows of numbers
///
/// DATA is a file (.csv or .npy, one row a point; columns are standardised, the model stays in the data's units) or a
/// built-in density: 8gaussians, checkerboard, 2spirals, moons, circles, rings, pinwheel, swissroll.
///
/// Writes into DIR: model.safetensors (the best validated weights), checkpoint.safetensors (to resume from),
/// metrics.jsonl (one object a logged step), config.toml (all settings), and for two columns density.png, samples.png,
/// data.png and picture.png (the three side by side).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow fit checkerboard --out board
  resflow fit measurements.csv --out run --time-limit 600
  resflow fit measurements.csv --out run --config run.toml --steps 20000 --seed 3
  resflow fit measurements.csv --out run --resume                  go on after Ctrl-C or a crash
  resflow fit measurements.csv --out run --resume --steps 40000    train longer

A configuration has the sections [flow] and [train]; `config.toml` of any run shows all settings:
  [flow]
  blocks = 10
  hidden = [128, 128]
  training = \"roulette:law=poisson,rate=2,exact=2\"
  [train]
  batch = 1000
  learning_rate = 1e-3

A run given in steps is a function of data, configuration, seed and precision: interrupted and resumed, it ends with
the same bits. Ctrl-C writes a checkpoint first; a second one stops at once.")]
pub(crate) struct Fit {
    /// A .csv or .npy file, or the name of a built-in density
    pub(crate) data: String,
    /// The directory of the run
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Settings of flow and training, TOML
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The seed of weights, batches and estimates [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// The number of steps [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), allow_negative_numbers = true)]
    pub(crate) steps: Option<u64>,
    /// Finish within this time, pictures included, over all resumptions; without --steps the learning-rate schedule is
    /// laid over it
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) time_limit: Option<Duration>,
    #[command(flatten)]
    pub(crate) arithmetic: Arithmetic,
    /// Go on with the run in DIR
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Replace the run in DIR
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Log density of rows under a model, with standard errors
///
/// Prints the mean over the rows and its standard error, in nats and in the data's units. The error of a row is that of
/// the log-determinant estimate, 0 where it is exact; the error of the mean is the spread of the rows.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow score board checkerboard                        10000 fresh points of the density
  resflow score run new.csv --out scores.csv              log_prob and se of every row
  resflow score run new.csv --json                        one object, for scripts
  resflow score run new.csv --estimator exact --precision f64
  resflow score run new.csv --estimator roulette:law=geometric,p=0.3,exact=6 --replicates 16

Estimators:
  exact       every Jacobian in full: no estimation error, cost grows with the number of columns
  auto        exact where that is cheap, else the roulette of the model's configuration
  truncated:terms=20,probes=1,probe=rademacher|gaussian               biased by what is cut off
  roulette:law=geometric,p=0.5,exact=2,draws=1,probes=1,probe=rademacher|gaussian
  roulette:law=poisson,rate=2,exact=2,…                               unbiased")]
pub(crate) struct Score {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A .csv or .npy file, or the name of a built-in density to draw fresh points from
    pub(crate) data: String,
    /// Write log_prob and se of every row to this .csv file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// The estimator of the log determinants [default: the model's]
    #[arg(long, value_name = "SPEC")]
    pub(crate) estimator: Option<Estimator>,
    /// Independent estimates of each row, 2 to 1000 [default: the model's]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..=1000),
        allow_negative_numbers = true,
    )]
    pub(crate) replicates: Option<u32>,
    /// Fresh points to draw where DATA is a density [default: 10000]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000_000),
        allow_negative_numbers = true
    )]
    pub(crate) rows: Option<u32>,
    /// The seed of estimates and fresh points
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Draw rows from a model
///
/// Inversion is iterative: rows that do not reach the accuracy (1e-6 in f32, 1e-12 in f64) are counted in a warning.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow sample run -n 1000 --out new.csv
  resflow sample run -n 100000 --out new.npy --seed 7
  resflow sample board -n 20000 --out board.png           a picture, for two columns")]
pub(crate) struct Sample {
    #[command(flatten)]
    pub(crate) model: Model,
    /// The number of rows
    #[arg(
        short,
        long = "rows",
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000),
        allow_negative_numbers = true,
    )]
    pub(crate) n: u64,
    /// A .csv, .npy or .png file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The seed
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Map rows to latent space, where the model is a standard normal
///
/// Writes the columns z1 … zd, log_det (log|det ∂z/∂x|, nats) and se, its standard error.
/// log p(x) = log N(z; 0, I) + log_det.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow encode run measurements.csv --out z.csv
  resflow decode run z.csv --out again.csv                 and back")]
pub(crate) struct Encode {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A .csv or .npy file
    pub(crate) data: PathBuf,
    /// The .csv file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The seed of estimates
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Map latent rows back to data
///
/// Z has d columns, or is a file of `resflow encode`, whose columns log_det and se are ignored. Writes the data's
/// columns, log_det (log|det ∂x/∂z| = −log|det ∂z/∂x|, nats) and se.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow decode run z.csv --out again.csv
  resflow decode run latent.npy --out x.csv --precision f64")]
pub(crate) struct Decode {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A .csv or .npy file of latent rows
    pub(crate) z: PathBuf,
    /// The .csv file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The seed of estimates
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Say what a model is made of
///
/// Layers, parameters, the spectral norm σ of each weight before and after normalisation, the bound on each block's
/// Lipschitz constant, estimators, standardisation and provenance.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow inspect run
  resflow inspect run/checkpoint.safetensors               the best model of a run so far
  resflow inspect run --json | jq .blocks")]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) model: Model,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// A model and the arithmetic that it runs in.
#[derive(Debug, Args)]
pub(crate) struct Model {
    /// A model.safetensors, a checkpoint.safetensors, or the directory of a run
    #[arg(value_name = "MODEL")]
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) arithmetic: Arithmetic,
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let wrong = || "expected a whole number from 1 to 1024".to_owned();
    text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= 1024).ok_or_else(wrong)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if value > 0.0 && value <= 1e9 {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err("expected a number of seconds above 0 and at most 1e9".to_owned())
    }
}
