//! Two-dimensional densities to learn, as `toy_data.inf_train_gen` of FFJORD and of Residual Flows defines them.
//!
//! Those draw batches, with angles on a grid and a fixed share of the points for each part; here every point is
//! drawn by itself, with a uniform angle and a random part, which is the distribution that such a batch stands for.
//! N is a standard normal pair, U a uniform number in [0, 1).
//!
//! | name | a point |
//! |---|---|
//! | `8gaussians` | (4 (cos kπ/4, sin kπ/4) + N/2) / 1.414, k of 0 to 7 |
//! | `checkerboard` | 2 (x₁, U − 2B + (⌊x₁⌋ mod 2)), x₁ = 4U − 2, B a fair coin |
//! | `2spirals` | ± (−t cos t + U/2, t sin t + U/2) / 3 + N/10, t = 3π√U |
//! | `moons` | 2 (cos t, sin t) or 2 (1 − cos t, ½ − sin t), plus (−1, −0.2) + N/5, t = πU |
//! | `circles` | 3 r (cos t, sin t) + 0.24 N, t = 2πU, r of 1 and ½ |
//! | `rings` | 3 r (cos t, sin t) + 0.08 N, t = 2πU, r of 1, ¾, ½ and ¼ |
//! | `pinwheel` | 2 (f₁ cos a + f₂ sin a, −f₁ sin a + f₂ cos a), f = (0.3, 0.1) N + (1, 0), a = 2πk/5 + exp(f₁)/4, k of 0 to 4 |
//! | `swissroll` | ((t cos t, t sin t) + N) / 5, t = 1.5π (1 + 2U) |

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt as _};
use rand_distr::StandardNormal;
use resflow_backend::Key;

use super::table::Table;
use crate::error::DataError;

/// A built-in density in two dimensions.
///
/// ```
/// use resflow::{backend::Key, data::ToyDensity};
/// let density: ToyDensity = "checkerboard".parse()?;
/// let points = density.sample(Key::new(1), 100);
/// assert_eq!((points.rows(), points.width()), (100, 2));
/// assert_eq!(points.row(99), density.sample(Key::new(1), 200).row(99));
/// # Ok::<(), resflow::data::DataError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToyDensity {
    /// Eight normal densities on a circle.
    EightGaussians,
    /// Eight squares of side two, uniform.
    Checkerboard,
    /// Two spirals, point-symmetric.
    TwoSpirals,
    /// Two half circles, interlocked.
    Moons,
    /// Two concentric circles.
    Circles,
    /// Four concentric circles.
    Rings,
    /// Five bent arms.
    Pinwheel,
    /// One spiral.
    SwissRoll,
}

impl ToyDensity {
    /// Every density.
    pub const ALL: [Self; 8] = [
        Self::EightGaussians,
        Self::Checkerboard,
        Self::TwoSpirals,
        Self::Moons,
        Self::Circles,
        Self::Rings,
        Self::Pinwheel,
        Self::SwissRoll,
    ];

    /// The name, as the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::EightGaussians => "8gaussians",
            Self::Checkerboard => "checkerboard",
            Self::TwoSpirals => "2spirals",
            Self::Moons => "moons",
            Self::Circles => "circles",
            Self::Rings => "rings",
            Self::Pinwheel => "pinwheel",
            Self::SwissRoll => "swissroll",
        }
    }

    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Returns the differential entropy in nats, which no model's negative log-likelihood can undercut on average.
    ///
    /// `checkerboard` has ln 32, exactly; the others are integrated numerically, with an error below 0.0005.
    pub fn entropy(self) -> f64 {
        match self {
            Self::EightGaussians => 2.8319,
            Self::Checkerboard => 5.0 * std::f64::consts::LN_2,
            Self::TwoSpirals => 2.6452,
            Self::Moons => 2.3939,
            Self::Circles => 3.2681,
            Self::Rings => 2.6232,
            Self::Pinwheel => 2.3178,
            Self::SwissRoll => 2.6696,
        }
    }

    /// Draws the first `n` points of the key's stream, `[n, 2]`, columns `x` and `y`. They are a function of the key
    /// alone: more points begin with the same ones.
    pub fn sample(self, key: Key, n: usize) -> Table {
        let mut generator = key.generator();
        let values = (0..n).flat_map(|_| self.point(&mut generator)).collect();
        Table::of_finite(vec!["x".to_owned(), "y".to_owned()], values)
    }

    /// The next point.
    pub fn point(self, generator: &mut impl Rng) -> [f64; 2] {
        let g = generator;
        match self {
            Self::EightGaussians => {
                let angle = choice(g, 8) * PI / 4.0;
                near([4.0 * angle.cos(), 4.0 * angle.sin()], 0.5, g).map(|x| x / 1.414)
            }
            Self::Checkerboard => {
                let x = 4.0 * uniform(g) - 2.0;
                let y = uniform(g) - 2.0 * choice(g, 2) + x.floor().rem_euclid(2.0);
                [2.0 * x, 2.0 * y]
            }
            Self::TwoSpirals => {
                let t = 3.0 * PI * uniform(g).sqrt();
                let sign = 1.0 - 2.0 * choice(g, 2);
                let [x, y] = [-t * t.cos() + 0.5 * uniform(g), t * t.sin() + 0.5 * uniform(g)];
                near([sign * x / 3.0, sign * y / 3.0], 0.1, g)
            }
            Self::Moons => {
                let t = PI * uniform(g);
                let [x, y] = if choice(g, 2) == 0.0 { [t.cos(), t.sin()] } else { [1.0 - t.cos(), 0.5 - t.sin()] };
                near([2.0 * x - 1.0, 2.0 * y - 0.2], 0.2, g)
            }
            Self::Circles => {
                let radius = 3.0 * (1.0 - 0.5 * choice(g, 2));
                near(on_circle(radius, g), 0.24, g)
            }
            Self::Rings => {
                let radius = 3.0 * (1.0 - 0.25 * choice(g, 4));
                near(on_circle(radius, g), 0.08, g)
            }
            Self::Pinwheel => {
                let [along, across] = [1.0 + 0.3 * normal(g), 0.1 * normal(g)];
                let (sin, cos) = (2.0 * PI * choice(g, 5) / 5.0 + 0.25 * along.exp()).sin_cos();
                [2.0 * (along * cos + across * sin), 2.0 * (across * cos - along * sin)]
            }
            Self::SwissRoll => {
                let t = 1.5 * PI * (1.0 + 2.0 * uniform(g));
                near([t * t.cos(), t * t.sin()], 1.0, g).map(|x| x / 5.0)
            }
        }
    }
}

impl fmt::Display for ToyDensity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ToyDensity {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let found = Self::ALL.into_iter().find(|density| density.name() == name);
        found.ok_or_else(|| DataError::UnknownDensity { name: name.to_owned(), known: Self::names() })
    }
}

/// A uniform number in [0, 1).
fn uniform(g: &mut impl Rng) -> f64 {
    g.random()
}

fn normal(g: &mut impl Rng) -> f64 {
    g.sample(StandardNormal)
}

/// One of 0, …, n − 1, uniform.
fn choice(g: &mut impl Rng, n: u64) -> f64 {
    ((u64::from(g.next_u32()) * n) >> 32) as f64
}

fn on_circle(radius: f64, g: &mut impl Rng) -> [f64; 2] {
    let (sin, cos) = (2.0 * PI * uniform(g)).sin_cos();
    [radius * cos, radius * sin]
}

/// A point with normal noise.
fn near([x, y]: [f64; 2], deviation: f64, g: &mut impl Rng) -> [f64; 2] {
    [x + deviation * normal(g), y + deviation * normal(g)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for density in ToyDensity::ALL {
            assert_eq!(density.name().parse::<ToyDensity>().expect("its own name"), density);
        }
        assert_eq!(
            "moon".parse::<ToyDensity>().expect_err("no such name").to_string(),
            "there is no built-in density `moon`: the names are 8gaussians, checkerboard, 2spirals, moons, circles, \
             rings, pinwheel, swissroll"
        );
    }

    #[test]
    fn points_are_a_function_of_the_key() {
        for density in ToyDensity::ALL {
            let few = density.sample(Key::new(3), 10);
            assert_eq!(few.values(), &density.sample(Key::new(3), 25).values()[..20], "{density}");
            assert_ne!(few, density.sample(Key::new(4), 10), "{density}");
        }
    }

    /// Every point of the checkerboard lies on one of its eight squares, every square gets an eighth.
    #[test]
    fn checkerboard_is_a_board() {
        let mut counts = [[0_u32; 4]; 4];
        let n = 8_000;
        for row in ToyDensity::Checkerboard.sample(Key::new(5), n).values().chunks_exact(2) {
            let [i, j] = [row[0], row[1]].map(|x| (x / 2.0 + 2.0).floor() as usize);
            counts[i][j] += 1;
        }
        for (i, column) in counts.iter().enumerate() {
            for (j, &count) in column.iter().enumerate() {
                if (i + j) % 2 == 0 {
                    // six standard deviations: a false alarm in 10⁸ keys
                    let sigma = (n as f64 * (1.0 / 8.0) * (7.0 / 8.0)).sqrt();
                    assert!((f64::from(count) - n as f64 / 8.0).abs() < 6.0 * sigma, "{counts:?}");
                } else {
                    assert_eq!(count, 0, "{counts:?}");
                }
            }
        }
    }
}
