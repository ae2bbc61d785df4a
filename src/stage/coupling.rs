//! What the stages of couplings are described by: which numbers of a sample stay (Dinh et al. 2017, arXiv 1605.08803, §3.4), and
//! the splines by which the others move (Durkan et al. 2019, arXiv 1906.04032).

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The numbers of a sample that stay in a coupling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// The first ⌈c/2⌉ features or channels stay; swapped, the last ⌊c/2⌋ do.
    Channels {
        /// Swaps the part that stays and the part that moves.
        swapped: bool,
    },
    /// The pixels of an image whose row and column have an even sum stay; swapped, the others do.
    Checkerboard {
        /// Swaps the part that stays and the part that moves.
        swapped: bool,
    },
}

impl Mask {
    /// Returns the shapes of a coupling's net's input and output, for samples of a shape: `[…, a]` and `[…, 2b]`
    /// channels; under a checkerboard the whole image, zero where it is moved, and 2c channels.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if nothing would stay, or nothing be moved.
    pub fn net_shapes(self, shape: &[usize]) -> Result<[Vec<usize>; 2], ConfigError> {
        let nothing = |what: &str| Err(ConfigError::Inconsistent(format!("samples of shape {shape:?} have {what}")));
        let (input, output) = match (self, shape) {
            (Self::Channels { .. }, &[.., c]) if c < 2 => return nothing("no two features to couple"),
            (Self::Channels { swapped }, &[.., c]) => {
                let stays = if swapped { c / 2 } else { c - c / 2 };
                (stays, (c - stays).saturating_mul(2))
            }
            (Self::Checkerboard { .. }, &[h, w, _]) if h.saturating_mul(w) < 2 => {
                return nothing("no two pixels to couple");
            }
            (Self::Checkerboard { .. }, &[_, _, c]) => (c, c.saturating_mul(2)),
            (Self::Checkerboard { .. }, _) => return nothing("no pixels: a checkerboard is for images"),
            (Self::Channels { .. }, []) => return nothing("no features"),
        };
        let with = |channels: usize| [&shape[..shape.len() - 1], &[channels]].concat();
        Ok([with(input), with(output)])
    }

    /// The numbers of the stated parity, in words.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Channels { swapped: false } => "the first half stays",
            Self::Channels { swapped: true } => "the second half stays",
            Self::Checkerboard { swapped: false } => "even pixels stay",
            Self::Checkerboard { swapped: true } => "odd pixels stay",
        }
    }
}

/// The mixtures of logistics of a coupling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logistics {
    /// K, the number of components of each.
    pub components: usize,
}

impl Logistics {
    /// No honest mixture has more components.
    const MOST_COMPONENTS: usize = 64;

    /// Checks K.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] if it is not 1 to 64.
    pub fn check(&self) -> Result<(), ConfigError> {
        if (1..=Self::MOST_COMPONENTS).contains(&self.components) {
            return Ok(());
        }
        Err(ConfigError::OutOfRange { name: "components", value: self.components as f64, expected: "1 to 64" })
    }

    /// Returns the parameters of a number, 3K + 2.
    pub fn parameters(&self) -> usize {
        self.components.saturating_mul(3).saturating_add(2)
    }

    /// Returns the shapes of the input and the output of a coupling's net, as [`Mask::net_shapes`] does, with as many numbers for each
    /// that moves.
    ///
    /// # Errors
    /// Returns the errors of [`check`](Self::check) and of [`Mask::net_shapes`].
    pub fn net_shapes(&self, mask: Mask, shape: &[usize]) -> Result<[Vec<usize>; 2], ConfigError> {
        self.check()?;
        let [input, mut output] = mask.net_shapes(shape)?;
        if let Some(channels) = output.last_mut() {
            *channels = (*channels / 2).saturating_mul(self.parameters());
        }
        Ok([input, output])
    }
}

/// The splines of a coupling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Splines {
    /// K, the number of bins of each.
    pub bins: usize,
    /// B: the box is [−B, B], outside of which they are the identity.
    pub bound: f64,
    /// The net's last hidden width; raw widths and heights that it gives are divided by its root.
    pub hidden: usize,
    /// Maps what stays too, each number by a spline of its own that depends on nothing.
    pub unconditional: bool,
}

impl Splines {
    /// No honest spline has more bins; 999 have room for nothing but their floors.
    const MOST_BINS: usize = 256;

    /// Checks every setting.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |name, value, expected| Err(ConfigError::OutOfRange { name, value, expected });
        if !(2..=Self::MOST_BINS).contains(&self.bins) {
            return wrong("bins", self.bins as f64, "2 to 256");
        }
        if !(1e-3..=1e6).contains(&self.bound) {
            return wrong("bound", self.bound, "a number from 0.001 to 1000000");
        }
        if self.hidden == 0 {
            return wrong("hidden", 0.0, "a width of at least 1");
        }
        Ok(())
    }

    /// Returns the parameters of a number, 3K − 1.
    pub fn parameters(&self) -> usize {
        self.bins.saturating_mul(3).saturating_sub(1)
    }

    /// Returns the numbers of a row of `features` that stay and those that move, as (start, length).
    pub(crate) fn sides(features: usize, swapped: bool) -> [(usize, usize); 2] {
        let (first, last) = ((0, features - features / 2), (features - features / 2, features / 2));
        if swapped { [last, first] } else { [first, last] }
    }
}
