//! The command line: what can be asked for, and the text of `--help`.

mod conditional;
mod experiment;
mod fit;
mod impute;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use resflow::estimator::Estimator;

use crate::command::decoded::Certifying;
use crate::data::large::Largeness;
use crate::data::part::Part;
use crate::data::reading::{Matching, TableOptions};
use crate::data::size::Size;
use crate::device::Arithmetic;
use crate::output::Format;
use crate::unfinished::Resuming;

pub(crate) use self::conditional::{Calibrate, Predict};
pub(crate) use self::experiment::Experiment;
pub(crate) use self::fit::Fit;
pub(crate) use self::impute::Impute;

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

With your own data: a table, one row a point, as text (.csv, .tsv, .txt, .data, with or without a header), .npy or .npz,
as Parquet or Arrow (Feather, not in .gz) if the program was built with the feature `parquet`,
also compressed (.gz), or from a pipe (-); or images: a folder with MNIST's or CIFAR's files or with PNG files, an IDX file,
or a .npy array of bytes [n, h, w, c]; one file of them may come from a pipe too. What is decided about a table is told, and
can be decided otherwise by options.
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
    Reconstruct(Reconstruct),
    Report(Report),
    Inspect(Inspect),
    Import(Import),
    Experiment(Experiment),
    Devices(Devices),
    Look(Look),
    Impute(Impute),
    Predict(Predict),
    Calibrate(Calibrate),
}

impl Command {
    /// Whether processes that were started together divide the work; what is not divided is done by one of them.
    pub(crate) fn is_together(&self) -> bool {
        matches!(self, Self::Fit(_) | Self::Score(_) | Self::Sample(_) | Self::Encode(_) | Self::Decode(_))
    }

    /// The longest that one of several processes waits for another, if it is asked for.
    pub(crate) fn wait_limit(&self) -> Option<Duration> {
        match self {
            #[cfg(feature = "mpi")]
            Self::Fit(fit) => fit.wait,
            _ => None,
        }
    }
}

/// What a table is like, before anything is learned from it
///
/// Prints a line for each column (its kind, range, median, distinct values and tails) and what would make its density
/// meaningless or worse: constant columns and ones that others determine, counters, sentinels and broken cells, grids,
/// values that come again and again, copies of rows. `resflow fit` says the same and refuses what is grave.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow look measurements.csv
  resflow look measurements.csv --json                    one object, for scripts
  resflow look measurements.csv --drop id,name            without these columns")]
pub(crate) struct Look {
    /// A table
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Log density of rows or images under a model, with standard errors
///
/// Prints the mean over the rows and its standard error, in nats and in the data's units; for images also in bits per
/// dimension. The error of a row is that of the log-determinant estimate, 0 where it is exact; the error of the mean is
/// the spread of the rows.
///
/// `resflow fit` keeps how likely the rows were that a table's model was trained on. Of such a model each row also gets its
/// percentile among them: the share of training rows that are less likely, 0 to 100, to within 0.1. --contamination 0.01
/// flags rows below percentile 1. A model knows its training rows, so more than that of fresh rows of the same kind may be
/// flagged; how many of the fit's held-out rows would be is said beside it.
///
/// Images as bytes are dequantised with noise of the seed. A model of `resflow fit --dequantisation variational` draws that noise itself,
/// and what is printed are bounds: bits/dim ≤, log p ≥. --importance K makes them closer. A .npy array of floats [n, c, h, w] or [n, h, w, c] in [0, 1]
/// that are no multiples of 1/255, or a table of rows in the order (c, h, w), is taken as it is. Images are evaluated 256 at a time: the noise
/// and the probes of an image depend on the seed and its number, not on how many there are.
///
/// A model that classifies (`resflow fit --classify`) also says how right it is where images come with labels:
/// accuracy, cross-entropy and the expected calibration error.
///
/// The columns of a table are those of the model by name, in any order, and others are ignored; without names they are taken
/// in their order. With --missing drop-rows the rows with missing values are not scored: in --out they have NaN, so that
/// its rows are those of DATA.
///
/// A model of `resflow fit --impute` scores rows that lack values by what they have: log p of these columns, by importance weights of
/// --draws draws of what is missing, with their standard error. --out then has columns for the number of missing values and for
/// the effective number of draws, and no percentile of such rows: log p of some columns is not to be held against that of all.
/// A row that has nothing has log p = 0.
///
/// With --weight the mean is that of the weighted rows, and n in its error is the effective number of rows,
/// (Σ w)² / Σ w². Rows so far out that the arithmetic overflows have log p = −∞; they are counted, and the mean is −∞ then.
///
/// In the library the same numbers are those of `log_prob(samples, key)` and `classify(samples, key)` with the key
/// `Key::new(seed).named("score")`; of images, of each piece p of 256 with `key.split(p)`. Fresh points of a density are
/// `density.sample(Key::new(seed).named("test data"), n)`; as OTHER of --outliers the name is "outliers".
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow score board checkerboard                        10000 fresh points of the density
  resflow score run new.csv --out scores.csv              log_prob and se of every row
  resflow score run new.csv --json                        one object, for scripts
  resflow score run new.csv --contamination 0.01 --out scores.csv   and a flag: 1 of the unlikely rows
  zcat new.csv.gz | resflow score run - --out -           from a pipe, into a pipe
  resflow score run new.csv --missing drop-rows           without the rows that lack a value
  resflow score run new.csv --weight events               the mean by the weights in a column
  resflow score run new.csv --estimator exact --precision f64
  resflow score run new.csv --estimator roulette:law=geometric,p=0.3,exact=6 --replicates 16
  resflow score digits mnist/                             bits/dim of the test images
  resflow score digits mnist/ --rows 1000 --out bits.csv  bits/dim and its error, of the first 1000 of them
  resflow score digits mnist/ --standard-error 0.005      replicates until every image is known so well
  resflow score digits x.npy --estimator roulette:law=poisson,rate=2,exact=20,probes=4
  resflow score digits mnist/ --outliers fashion/         how well log p tells other images from these
  resflow score hybrid mnist/ --out classes.csv           log p and the class of every image

Estimators:
  exact       every Jacobian in full: no estimation error, cost grows with the number of columns
  auto        exact where that is cheap, else the roulette of the model's configuration
  truncated:terms=20,probes=1,probe=rademacher|gaussian               biased by what is cut off
  roulette:law=geometric,p=0.5,exact=2,draws=1,probes=1,probe=rademacher|gaussian
  roulette:law=poisson,rate=2,exact=2,…                               unbiased")]
pub(crate) struct Score {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table, images, or the name of a built-in density to draw fresh points from
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    #[command(flatten)]
    pub(crate) part: Part,
    #[command(flatten)]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) largeness: Largeness,
    #[command(flatten)]
    pub(crate) resuming: Resuming,
    /// Write log_prob, se and percentile of every row, with --contamination also outlier, to this .csv, .parquet or .arrow
    /// file, or to a pipe (-); of images bits_per_dim and bits_per_dim_se before them, without percentile, and where these are bounds
    /// bits_per_dim_at_most and log_prob_at_least in the place of bits_per_dim and log_prob; of models that
    /// classify also the likeliest class (by its name if it has one) and its probability, as class and confidence
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Flag rows that are less likely than this fraction of the training rows, such as 0.01
    #[arg(long, value_name = "FRACTION", value_parser = fraction, allow_negative_numbers = true)]
    pub(crate) contamination: Option<f64>,
    /// Weigh the rows of a table by this column, which is then no part of them
    #[arg(long, value_name = "COLUMN", conflicts_with = "outliers")]
    pub(crate) weight: Option<String>,
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
    /// Draw replicates of a row until its standard error is at most this: bits/dim of images, nats of rows
    #[arg(long, value_name = "EPS", value_parser = positive, allow_negative_numbers = true)]
    pub(crate) standard_error: Option<f64>,
    /// The most replicates of a row on the way there
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..=1_000_000),
        default_value_t = 1000,
        requires = "standard_error",
        allow_negative_numbers = true,
    )]
    pub(crate) most_replicates: u32,
    /// Bound log p of images of bytes by importance weights of K draws of their noise, which never lowers the bound in the mean; of
    /// models whose log determinants are exact
    #[arg(
        long,
        value_name = "K",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        allow_negative_numbers = true,
        conflicts_with_all = ["replicates", "standard_error", "outliers"],
    )]
    pub(crate) importance: Option<u32>,
    /// Draws of what a row lacks, behind its log p by a model of `resflow fit --impute`
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..=1_000_000),
        default_value_t = 64,
        allow_negative_numbers = true,
    )]
    pub(crate) draws: u32,
    /// Fresh points to draw where DATA is a density [default: 10000]; the first images to take where it is images
    /// [default: all]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000_000),
        allow_negative_numbers = true
    )]
    pub(crate) rows: Option<u32>,
    /// Score this data too, at most as many rows or images as of DATA, and print the AUROC of log p: the chance that a
    /// row of DATA is likelier than one of these. Of a data set its test images, cut or padded about the centre to the model's size, never scaled
    #[arg(long, value_name = "OTHER")]
    pub(crate) outliers: Option<String>,
    /// The seed of estimates and fresh points
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Draw rows or images from a model
///
/// Images are written as a grid (.png), as an array of doubles [n, c, h, w] or bytes [n, h, w, c] (.npy), or as rows in
/// the order (c, h, w) (.csv).
///
/// Inversion is iterative: rows that do not reach the accuracy (1e-6 in f32, 1e-12 in f64) are counted in a warning. That
/// of couplings (realnvp, glow, nsf) is a formula which explodes for some rows if they were trained for a short time: rows
/// that are not finite are an error. That of flowpp is a search, whose rows have a status too.
///
/// Row i is a function of the seed and i: in the library, `sample(n, Key::new(seed), &Inversion::for_backend::<B>())`. More than 524,288
/// numbers are drawn in pieces of so many (`sample_range`), of which .csv and .npy files get one after the other: there may be more
/// than fit into memory, and --resume goes on where the command was cut off.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow sample run -n 1000 --out new.csv
  resflow sample run -n 100000 --out new.npy --seed 7
  resflow sample run --given contexts.csv -n 100 --out new.csv   100 rows for each row of contexts, in their order
  resflow sample board -n 20000 --out board.png           a picture, for two columns
  resflow sample digits -n 100 --out digits.png           a grid of images
  resflow sample classes --class 3,8 -n 10 --out some.png ten of each class, of a model given the class
  resflow sample digits -n 1000 --out digits.npy --bytes  [n, h, w, c]
  resflow sample run -n 100000000 --out new.npy --resume  goes on where it was cut off
  mpirun -n 4 resflow sample run -n 1000000 --out new.csv --out-parts   a file each (feature `mpi`)")]
pub(crate) struct Sample {
    #[command(flatten)]
    pub(crate) model: Model,
    /// Of a conditional model: a table of contexts, whose columns are matched by name. Each row that is drawn says what it was
    /// given; sample j of context i is row i·n + j
    #[arg(long, value_name = "FILE")]
    pub(crate) given: Option<PathBuf>,
    /// Of a model of images given their class: the classes to draw, by name, or by number from 0 [default: all]
    #[arg(long, value_name = "CLASS,CLASS")]
    pub(crate) class: Option<String>,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    /// The number of rows; of a conditional model that of each context
    #[arg(
        short,
        long = "rows",
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000),
        allow_negative_numbers = true,
    )]
    pub(crate) n: u64,
    /// A .csv, .npy, .parquet, .arrow or .png file, or a pipe (-)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The format of what is written [default: by the name of --out; csv into a pipe]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Write images to .npy as bytes
    #[arg(long)]
    pub(crate) bytes: bool,
    #[command(flatten)]
    pub(crate) certifying: Certifying,
    #[command(flatten)]
    pub(crate) resuming: Resuming,
    /// The seed
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Map rows or images to latent space, where the model is a standard normal
///
/// A .csv, .parquet or .arrow file gets the columns z1 … zd, log_det (log|det ∂z/∂x|, nats) and se, its standard error; a
/// .npy file z alone, [n, d]. log p(x) = log N(z; 0, I) + log_det. Columns are matched as by `resflow score`; rows that
/// --missing drop-rows leaves out are NaN. Images are taken as by `resflow score`, with the same noise.
///
/// In the library the same numbers are those of `encode(samples, key)` with the key of `resflow score`,
/// `Key::new(seed).named("score")`; of images, of each piece p of 256 with `key.split(p)`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow encode run measurements.csv --out z.csv
  resflow decode run z.csv --out again.csv                 and back
  resflow encode digits x.npy --out z.npy --log-det log_det.csv")]
pub(crate) struct Encode {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table, or images
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    #[command(flatten)]
    pub(crate) part: Part,
    #[command(flatten)]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) largeness: Largeness,
    #[command(flatten)]
    pub(crate) resuming: Resuming,
    #[command(flatten)]
    pub(crate) output: Coordinates,
    /// The first images to take [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub(crate) rows: Option<u32>,
}

/// Map latent rows back to data
///
/// Z has d columns, or is a file of `resflow encode`, whose columns log_det and se are ignored. A .csv file gets the
/// data's columns, log_det (log|det ∂x/∂z| = −log|det ∂z/∂x|, nats) and se; a .npy file the data alone, [n, d], or
/// [n, c, h, w] of images. A large Z without contexts stays in its file and is decoded piece by piece.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow decode run z.csv --out again.csv
  resflow decode run latent.npy --out x.csv --precision f64
  resflow decode digits z.npy --out x.npy")]
pub(crate) struct Decode {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table of latent rows
    pub(crate) z: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    /// Of a conditional model: a table of contexts, one for all rows of Z or one for each
    #[arg(long, value_name = "FILE")]
    pub(crate) given: Option<PathBuf>,
    /// Of a model of images given their class: the class, by name or number, one for all rows of Z or one for each
    #[arg(long, value_name = "CLASS,CLASS")]
    pub(crate) class: Option<String>,
    #[command(flatten)]
    pub(crate) largeness: Largeness,
    #[command(flatten)]
    pub(crate) certifying: Certifying,
    #[command(flatten)]
    pub(crate) resuming: Resuming,
    #[command(flatten)]
    pub(crate) output: Coordinates,
}

/// Where coordinates and log dets go.
#[derive(Debug, Args)]
pub(crate) struct Coordinates {
    /// The .csv, .npy, .parquet or .arrow file to write, or a pipe (-)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The format of what is written, any but png [default: by the name of --out; csv into a pipe]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Write log_det and se to this .csv file too
    #[arg(long, value_name = "FILE")]
    pub(crate) log_det: Option<PathBuf>,
    /// The seed of estimates
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Show images beside their round trip to latent space and back
///
/// Prints the largest and the mean difference of a pixel, where white is 1. Images as bytes are dequantised first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow reconstruct digits mnist/ --out round_trip.png
  resflow reconstruct digits mnist/ -n 64 --split train --out round_trip.png --precision f64")]
pub(crate) struct Reconstruct {
    #[command(flatten)]
    pub(crate) model: Model,
    /// Images
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) part: Part,
    #[command(flatten)]
    pub(crate) size: Size,
    /// The number of images, the first ones
    #[arg(
        short,
        long = "rows",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=256),
        allow_negative_numbers = true
    )]
    pub(crate) n: u16,
    /// The .png file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

/// Show what a model has learnt, as one page for a browser
///
/// Writes one HTML file that loads nothing: how good the model is, columns and pairs of columns beside samples, whether log
/// p of held-out rows is calibrated, the strangest rows and the cells that make them so. `resflow fit` writes the same of
/// its own data as report.html.
///
/// MODEL is best the directory of a run: it knows which rows of DATA were held out of training. Of other data all rows
/// count as held out.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow report run measurements.csv                      writes run/report.html again
  resflow report run new.csv --out new.html                the same model on other rows")]
pub(crate) struct Report {
    #[command(flatten)]
    pub(crate) model: Model,
    /// A table, or the name of a built-in density
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    #[command(flatten)]
    pub(crate) matching: Matching,
    #[command(flatten)]
    pub(crate) largeness: Largeness,
    /// The .html file to write [default: report.html beside the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Weigh the rows by this column, which is then no part of them
    #[arg(long, value_name = "COLUMN")]
    pub(crate) weight: Option<String>,
}

/// Say what a model is made of
///
/// Layers, parameters, the spectral norm σ of each weight before and after normalisation, the bound on each block's
/// Lipschitz constant, estimators, standardisation and provenance; in JSON also percentiles of log p among the rows of the fit,
/// where they were scored.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow inspect run
  resflow inspect run/checkpoint.safetensors               the best model of a run so far
  resflow inspect run --json | jq .blocks
  resflow inspect run --json | jq .provenance.scores")]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) model: Model,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a model of a state dict of the reference implementation
///
/// STATE is a safetensors file, or a checkpoint of torch (.pth, its zip format or the older one) of
/// github.com/rtqichen/residual-flows. Nothing in it is executed. Tensors keep the precision that they were made in; half
/// precision becomes single. What wrappers and training programs put around a state dict (`module.`, `_orig_mod.`, `model.`;
/// dicts such as `state_dict`, `model`, `ema`) is taken off.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  resflow import state.safetensors --config arch.toml --out model.safetensors
  resflow import checkpt-0100.pth --ema --config arch.toml --out model.safetensors

A state dict does not say its architecture; the section [images] (or [flow], for rows) of the configuration does:
  [images]
  height = 28
  width = 28
  channels = 1
  blocks = [16, 16, 16]
  filters = 512
  activation = \"lip-swish\"
  logit_alpha = 1e-6")]
pub(crate) struct Import {
    /// A .safetensors, .pth, .pt or .ckpt file
    pub(crate) state: PathBuf,
    /// The architecture, TOML
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The .safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Take the averaged parameters (`ema`) of a checkpoint and converge the singular vectors on them
    #[arg(long)]
    pub(crate) ema: bool,
    /// Which state dict of several: its keys in the file joined by dots, or what the names of its tensors begin with
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
}

/// List what can compute: the processor and the GPUs
///
/// A GPU is used with --backend wgpu; --adapter or the environment variable RESFLOW_ADAPTER chooses one, by its index or by
/// a part of its name.
#[derive(Debug, Args)]
pub(crate) struct Devices {
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

fn positive(text: &str) -> Result<f64, String> {
    let wrong = || "expected a number above 0".to_owned();
    text.parse().ok().filter(|&x: &f64| x > 0.0 && x.is_finite()).ok_or_else(wrong)
}

fn fraction(text: &str) -> Result<f64, String> {
    let wrong = || "expected a fraction above 0 and below 1".to_owned();
    text.parse().ok().filter(|x: &f64| *x > 0.0 && *x < 1.0).ok_or_else(wrong)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if value > 0.0 && value <= 1e9 {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err("expected a number of seconds above 0 and at most 1e9".to_owned())
    }
}
