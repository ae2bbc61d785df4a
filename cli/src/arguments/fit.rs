//! The arguments of `resflow fit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use resflow::config::{Dequantisation, Preset};

use super::seconds;
use crate::data::large::Largeness;
use crate::data::reading::{TableOptions, quoted};
use crate::data::size::Size;
use crate::device::Arithmetic;
use crate::run::race::Choice;
use crate::settings::presets;

const FIT: &str = "\
Examples:
  resflow fit checkerboard --out board
  resflow fit measurements.csv --out run --time-limit 600
  resflow fit measurements.csv --out run --config run.toml --steps 20000 --seed 3
  resflow fit measurements.csv --out run --weight events           weigh the rows by a column
  resflow fit houses.csv --out run --given rooms,age               p(other columns | rooms, age)
  resflow fit survey.csv --out run --impute                        learn from rows that lack values too
  resflow fit measurements.csv --out run --resume                  go on after Ctrl-C or a crash
  resflow fit measurements.csv --out run --resume --steps 40000    train longer
  resflow fit mnist/ --preset mnist-small --out digits             images: a folder with MNIST's files
  resflow fit mnist/ --preset mnist-small --model glow --out glow  the same size as a Glow
  resflow fit mnist/ --preset mnist-small --classify --out hybrid  p(x, y) = p(x) p(y | x), by its labels
  resflow fit mnist/ --preset mnist-small --given class --out each p(x | y): digits of a class to order

A configuration has the sections [flow] (rows) or [images], and [train]; `config.toml` of any run
shows all settings:
  [flow]
  blocks = 10
  hidden = [128, 128]
  training = \"roulette:law=poisson,rate=2,exact=2\"
  [train]
  batch = 1000
  learning_rate = 1e-3
For images it changes single settings of the preset, such as their size:
  [images]
  height = 16
  width = 16
  filters = 32
--classify is classes = 10 in [images] for labels of 0 to 9; with classes, density_weight (λ) in [train] says what is
minimised, λ (-log p(x)) - log p(y | x) in nats; head_width in [images] is the width of the classifier's heads.

A run given in steps is a function of data, configuration, seed and precision: interrupted and
resumed, it ends with the same bits. Ctrl-C writes a checkpoint first; a second one stops at once.";

/// Learn a density from rows of numbers or from images
///
/// DATA is a file (.csv or .npy, one row a point; columns are standardised, the model stays in the data's units), images
/// (a folder with MNIST's files, CIFAR's binary files or PNG and JPEG files, which may be in a folder for each class; an
/// IDX, CIFAR .bin, PNG or JPEG file; a .npy array [n, h, w, c], [n, c, h, w] or [n, h, w] of bytes or of numbers between
/// 0 and 1) or a built-in density: 8gaussians, checkerboard, 2spirals, moons, circles,
/// rings, pinwheel, swissroll. Test images that come with a data set are never looked at.
///
/// Writes into DIR: model.safetensors (the best validated weights), checkpoint.safetensors (to resume from),
/// metrics.jsonl (one object a logged step), config.toml (all settings); for two columns density.png, samples.png,
/// data.png and picture.png (the three side by side); for tables report.html (see `resflow report`); for images samples.png (a grid, renewed while training) and
/// curve.png (bits/dim over the steps).
#[derive(Debug, Args)]
#[command(after_help = presets::help(FIT))]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Fit {
    /// A table, images, or the name of a built-in density
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) reading: TableOptions,
    /// Architecture and training, for images; see below [default: mnist-small for 28x28x1, cifar10-small for 32x32x3, a
    /// model of that kind for other sizes]
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<Preset>,
    /// What the flow is made of: residual (blocks with unbiased log dets), iresnet (the same with truncated ones), dense
    /// (blocks of layers that keep what they get), implicit (a block and the inverse of another one: z with x + g(x) = z + h(z)),
    /// monotone (Cayley operators of monotone operators), realnvp (couplings), glow (couplings and invertible linear maps), flowpp
    /// (couplings by mixtures of logistics and invertible linear maps), ffjord (ordinary differential equations) or, of rows, nsf (spline
    /// couplings and LU linear maps), or of rows auto: residual and nsf race for 15 % of the budget each, and the better one goes on with the
    /// rest [default: residual]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<Choice>,
    /// Learn a classifier too, by the labels that come with MNIST's and CIFAR's files or by the folders that pictures are
    /// in: a hybrid model, whose heads look at the flow's images on every scale
    #[arg(long)]
    pub(crate) classify: bool,
    /// The noise that images of bytes get: uniform, or variational, by a conditional flow that sees the image and is trained with the
    /// model; what is minimised, and every number of bits/dim, is then an upper bound (≤) on that of the bytes. Its settings are those
    /// of `dequantisation` in [images]: model (realnvp, flowpp, residual), blocks, filters, features [default: uniform]
    #[arg(long, value_name = "KIND")]
    pub(crate) dequantisation: Option<Dequantisation>,
    /// Weigh the rows of a table by this column, which is then no part of them: weight 2 is the row twice, weight 0 none
    #[arg(long, value_name = "COLUMN")]
    pub(crate) weight: Option<String>,
    /// Learn the density of the other columns given these, p(x | c): by their names, or by their numbers from 1 if they have
    /// none. `score`, `encode` and `predict` take them from their tables, `sample` and `decode` are given them. Of images
    /// with labels: class, p(x | class), whose classes `sample` and `decode` are given by --class
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) given: Vec<String>,
    /// Learn from rows that lack values too: a second flow, the imputer, first learns from what is there to fill in what is missing,
    /// then the density learns from rows that it has filled in, which presumes that values are missing at random. It takes 40 %
    /// of a time limit, or as many steps. `score` and `impute` take rows that lack values then
    #[arg(long, conflicts_with_all = ["missing", "given", "classify", "preset"])]
    pub(crate) impute: bool,
    #[command(flatten)]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) largeness: Largeness,
    /// The directory of the run
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Settings of flow and training, TOML; what it leaves out is the default or the preset's
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
    /// Learn a density although a look at the table says that it has no meaning
    #[arg(long)]
    pub(crate) regardless: bool,
    /// Go on with the run in DIR
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Replace the run in DIR
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Of several processes (mpirun, srun): end if one does not answer for so long [default: 600]
    #[cfg(feature = "mpi")]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) wait: Option<Duration>,
}

impl Fit {
    /// The options that say how DATA is read, as they are typed after it, with a space before each.
    pub(crate) fn data_flags(&self) -> String {
        let weight = self.weight.as_ref().map_or(String::new(), |column| format!(" --weight {}", quoted(column)));
        weight + &self.reading.flags() + &self.largeness.flag()
    }

    /// The options that say what is learned of DATA, as they are typed, with a space before; a model knows them later.
    pub(crate) fn given_flag(&self) -> String {
        match &self.given[..] {
            [] if self.impute => " --impute".to_owned(),
            [] => String::new(),
            columns => format!(" --given {}", quoted(&columns.join(","))),
        }
    }
}
