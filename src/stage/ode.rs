//! The solvers of continuous flows, as configurations and files write them: `rk4:steps=16`, `dopri5` or
//! `dopri5:rtol=1e-5,atol=1e-6,limit=10000`; what is left out has its default.

use std::fmt;
use std::str::FromStr;

use resflow_backend::Element;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The forms that a text may have.
const FORMS: &str = "`rk4:steps=…` or `dopri5:rtol=…,atol=…,limit=…`";
/// Fixed steps unless said otherwise.
const STEPS: usize = 16;
/// Evaluations unless said otherwise.
const LIMIT: u32 = 10_000;
/// The absolute tolerance over the relative one, unless said otherwise.
const ABSOLUTE: f64 = 0.1;
/// The most that there may be of either, so that no solve goes on for ever.
const MOST_STEPS: usize = 10_000;
const MOST_EVALUATIONS: u32 = 1_000_000;
/// Evaluations of one step, below which there is none: the first slope, the choice of a step, and a step's own.
const FEWEST_EVALUATIONS: u32 = 8;

/// The smallest relative tolerance of a precision: below, a step's error is rounding, which no smaller step makes smaller.
fn finest<E: Element>() -> f64 {
    if E::EPSILON > 1e-10 { 1e-5 } else { 1e-12 }
}

/// The method by which an ordinary differential equation is solved from t = 0 to 1 or back.
///
/// ```
/// use resflow::stage::OdeSolver;
/// assert_eq!("rk4:steps=8".parse::<OdeSolver>()?, OdeSolver::Rk4 { steps: 8 });
/// assert_eq!("dopri5: rtol=0.00001".parse::<OdeSolver>()?.to_string(), "dopri5:rtol=1e-5");
/// assert!("rk4:steps=0".parse::<OdeSolver>().is_err());
/// # Ok::<(), resflow::error::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum OdeSolver {
    /// The classical Runge–Kutta method of order 4 (weights 1, 2, 2, 1) in steps of equal length, which all samples share.
    Rk4 {
        /// The number of steps, 1 to 10 000, of four evaluations each.
        steps: usize,
    },
    /// Dormand and Prince's pair of orders 5 and 4 (1980), each sample with steps of its own: the root mean square of a step's
    /// estimated errors, each divided by atol + rtol·|x|, is at most 1.
    Dopri5 {
        /// The relative tolerance, above 0 and below 1, at least 1e−5 in f32 and 1e−12 in f64. Without it is the accuracy that the
        /// solve is asked for ([`Inversion`](crate::invert::Inversion)), or these if that is finer.
        rtol: Option<f64>,
        /// The absolute tolerance, above 0 and below 1, in units of the samples; a tenth of the relative one if it is left out.
        atol: Option<f64>,
        /// The evaluations after which a sample is given up, 8 to 1 000 000.
        limit: u32,
    },
}

impl OdeSolver {
    /// Returns the default of training: 16 steps of RK4.
    pub const fn for_training() -> Self {
        Self::Rk4 { steps: STEPS }
    }

    /// Returns the default of evaluation: Dormand and Prince's pair, as accurate as it is asked to be.
    pub const fn for_evaluation() -> Self {
        Self::Dopri5 { rtol: None, atol: None, limit: LIMIT }
    }

    /// Returns Dormand and Prince's pair with a relative tolerance.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for one that is not between 0 and 1.
    pub fn dopri5(rtol: f64) -> Result<Self, ConfigError> {
        let solver = Self::Dopri5 { rtol: Some(rtol), atol: None, limit: LIMIT };
        solver.check()?;
        Ok(solver)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] with the first that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |name, value, expected| Err(ConfigError::OutOfRange { name, value, expected });
        match *self {
            Self::Rk4 { steps } if !(1..=MOST_STEPS).contains(&steps) => wrong("steps", steps as f64, "1 to 10000"),
            Self::Rk4 { .. } => Ok(()),
            Self::Dopri5 { rtol, atol, limit } => {
                for (name, tolerance) in [("rtol", rtol), ("atol", atol)] {
                    if let Some(value) = tolerance.filter(|&value| !(value > 0.0 && value < 1.0)) {
                        return wrong(name, value, "a number above 0 and below 1");
                    }
                }
                if (FEWEST_EVALUATIONS..=MOST_EVALUATIONS).contains(&limit) {
                    Ok(())
                } else {
                    wrong("limit", f64::from(limit), "8 to 1000000 evaluations")
                }
            }
        }
    }

    /// Returns the relative and the absolute tolerance of a solve that is asked for this accuracy.
    pub(crate) fn tolerances<E: Element>(rtol: Option<f64>, atol: Option<f64>, accuracy: f64) -> [f64; 2] {
        let rtol = rtol.unwrap_or_else(|| accuracy.max(finest::<E>()));
        [rtol, atol.unwrap_or(ABSOLUTE * rtol)]
    }

    /// Checks the settings for a precision.
    ///
    /// # Errors
    /// Returns what [`check`](Self::check) does, and [`ConfigError::Inconsistent`] for a tolerance that is below the rounding of
    /// the precision.
    pub fn check_for<E: Element>(&self) -> Result<(), ConfigError> {
        self.check()?;
        match *self {
            Self::Dopri5 { rtol: Some(rtol), .. } if rtol < finest::<E>() => {
                let (bits, least) = (8 * size_of::<E>(), finest::<E>());
                Err(ConfigError::Inconsistent(format!(
                    "`{self}`: in f{bits} rounding is as large as a step's error below rtol={least:e}, and smaller steps do not \
                     help: take a larger rtol, or double precision"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for OdeSolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rk4 { steps } => write!(f, "rk4:steps={steps}"),
            Self::Dopri5 { rtol, atol, limit } => {
                let rtol = rtol.map(|rtol| format!("rtol={rtol:e}"));
                let atol = atol.map(|atol| format!("atol={atol:e}"));
                let limit = (*limit != LIMIT).then(|| format!("limit={limit}"));
                let given: Vec<_> = [rtol, atol, limit].into_iter().flatten().collect();
                write!(f, "dopri5{}{}", if given.is_empty() { "" } else { ":" }, given.join(","))
            }
        }
    }
}

impl From<OdeSolver> for String {
    fn from(solver: OdeSolver) -> Self {
        solver.to_string()
    }
}

impl TryFrom<String> for OdeSolver {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

/// Reads the value of a setting.
fn value<T: FromStr>(key: &str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|_| ConfigError::Syntax(format!("`{text}` is no value for `{key}`; a solver is {FORMS}")))
}

impl FromStr for OdeSolver {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut solver = match kind.trim() {
            "rk4" => Self::for_training(),
            "dopri5" => Self::for_evaluation(),
            other => {
                return Err(ConfigError::Syntax(format!("there is no solver `{other}`; a solver is {FORMS}")));
            }
        };
        let mut seen = Vec::new();
        for pair in rest.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, own) = pair.split_once('=').map_or((pair, ""), |(key, own)| (key.trim(), own.trim()));
            if seen.contains(&key) {
                return Err(ConfigError::Syntax(format!("`{key}` is given twice")));
            }
            seen.push(key);
            match (&mut solver, key) {
                (Self::Rk4 { steps }, "steps") => *steps = value(key, own)?,
                (Self::Dopri5 { rtol, .. }, "rtol") => *rtol = Some(value(key, own)?),
                (Self::Dopri5 { atol, .. }, "atol") => *atol = Some(value(key, own)?),
                (Self::Dopri5 { limit, .. }, "limit") => *limit = value(key, own)?,
                _ => {
                    return Err(ConfigError::Syntax(format!("`{kind}` has no setting `{key}`; a solver is {FORMS}")));
                }
            }
        }
        solver.check()?;
        Ok(solver)
    }
}
