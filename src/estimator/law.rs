//! Laws of the number N of terms beyond the exact ones, and their survival functions P(N ≥ m).

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The smallest probability of stopping.
pub(super) const LEAST_STOP: f64 = 0.001;

/// No quantile of a lawful Poisson is larger, and P(N ≥ m) is 0 in double precision.
const MOST: u64 = 10_000;

/// The distribution of N.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Law {
    /// Support {1, 2, …}: P(N ≥ m) = (1−p)^{m−1}.
    ShiftedGeometric {
        /// The probability of stopping, from 0.001 to below 1.
        p: f64,
    },
    /// Support {0, 1, …}: P(N ≥ 0) = 1 and P(N ≥ m) = q(1−p)^{m−1}.
    Geometric {
        /// The probability q of any term, from 0.001 to 1.
        reach: f64,
        /// The probability of stopping behind one, from 0.001 to below 1.
        p: f64,
    },
    /// Support {0, 1, …}: P(N ≥ m) = 1 − e^{−λ} Σ_{i<m} λⁱ/i!.
    Poisson {
        /// The mean λ > 0.
        rate: f64,
    },
}

impl Law {
    /// Checks the parameter.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a parameter out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        match *self {
            Self::Geometric { reach, .. } if !(LEAST_STOP..=1.0).contains(&reach) => {
                Err(ConfigError::OutOfRange { name: "reach", value: reach, expected: "a probability from 0.001 to 1" })
            }
            // below, one draw of N could ask for more terms than the memory holds weights
            Self::ShiftedGeometric { p } | Self::Geometric { p, .. } if !(LEAST_STOP..1.0).contains(&p) => {
                Err(ConfigError::OutOfRange { name: "p", value: p, expected: "a probability from 0.001 to below 1" })
            }
            // far beyond 100 the tail needs more terms than any series is worth
            Self::Poisson { rate } if !(rate > 0.0 && rate <= 100.0) => {
                Err(ConfigError::OutOfRange { name: "rate", value: rate, expected: "a number above 0 and at most 100" })
            }
            _ => Ok(()),
        }
    }

    /// Returns P(N ≥ m).
    pub fn survival(&self, m: u64) -> f64 {
        match *self {
            Self::ShiftedGeometric { p } => (1.0 - p).powf(m.saturating_sub(1) as f64),
            Self::Geometric { .. } if m == 0 => 1.0,
            Self::Geometric { reach, p } => reach * (1.0 - p).powf((m - 1) as f64),
            Self::Poisson { rate } => poisson_survival(rate, m),
        }
    }

    /// Returns E\[N\].
    pub fn mean(&self) -> f64 {
        match *self {
            Self::ShiftedGeometric { p } => 1.0 / p,
            Self::Geometric { reach, p } => reach / p,
            Self::Poisson { rate } => rate,
        }
    }

    /// Returns the quantile of N at a uniform number in [0, 1): the largest m with P(N ≥ m) > u, so that P(N ≥ m) is
    /// the survival function for a uniform u.
    pub fn quantile(&self, u: f64) -> u64 {
        let mut m = match *self {
            // a start from the closed form, mended below where rounding moved it
            Self::ShiftedGeometric { p } if u > 0.0 => ((u.ln() / (1.0 - p).ln()) as u64).saturating_sub(1).max(1),
            Self::Geometric { reach, p } if u > 0.0 && u < reach => {
                (((u / reach).ln() / (1.0 - p).ln()) as u64).saturating_sub(1)
            }
            _ => 0,
        };
        // a uniform number is a multiple of 2⁻⁵³ or 0: the tail beyond is never reached
        while m < MOST && self.survival(m + 1) > u.max(f64::EPSILON / 4.0) {
            m += 1;
        }
        m
    }
}

impl std::fmt::Display for Law {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ShiftedGeometric { p } => write!(f, "geometric p = {p}"),
            Self::Geometric { reach, p } => write!(f, "geometric p = {p}, reached with probability {reach}"),
            Self::Poisson { rate } => write!(f, "Poisson λ = {rate}"),
        }
    }
}

/// P(N ≥ m) = Σ_{i≥m} e^{−λ} λⁱ/i!, summed from its largest term in log space: 1 − Σ_{i<m} would cancel.
fn poisson_survival(rate: f64, m: u64) -> f64 {
    if m == 0 {
        return 1.0;
    }
    if m > MOST {
        return 0.0;
    }
    if (m as f64) <= rate {
        // the lower sum is the smaller one
        let (mut term, mut sum) = ((-rate).exp(), 0.0);
        for i in 0..m {
            sum += term;
            term *= rate / (i + 1) as f64;
        }
        return 1.0 - sum;
    }
    let log_factorial: f64 = (1..=m).map(|i| (i as f64).ln()).sum();
    let first = (m as f64 * rate.ln() - rate - log_factorial).exp();
    let (mut term, mut sum, mut i) = (1.0_f64, 0.0_f64, m);
    while term > sum * 1e-17 {
        sum += term;
        i += 1;
        term *= rate / i as f64;
    }
    first * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_inverts_survival() {
        for law in [
            Law::ShiftedGeometric { p: 0.5 },
            Law::ShiftedGeometric { p: 0.07 },
            Law::Geometric { reach: 1.0, p: 0.07 },
            Law::Geometric { reach: 0.3, p: 0.5 },
            Law::Geometric { reach: 0.001, p: 0.9 },
            Law::Poisson { rate: 2.0 },
            Law::Poisson { rate: 31.0 },
        ] {
            for i in 0..2000 {
                let u = i as f64 / 2000.0;
                let n = law.quantile(u);
                assert!(law.survival(n) > u, "{law} at {u}: {n}");
                assert!(u == 0.0 || law.survival(n + 1) <= u, "{law} at {u}: {n}");
            }
        }
    }

    #[test]
    fn survival_sums_to_the_mean() {
        let geometric = Law::Geometric { reach: 0.4, p: 0.3 };
        for law in
            [Law::ShiftedGeometric { p: 0.3 }, geometric, Law::Poisson { rate: 2.0 }, Law::Poisson { rate: 20.0 }]
        {
            let mean: f64 = (1..2000).map(|m| law.survival(m)).sum();
            assert!((mean - law.mean()).abs() < 1e-9, "{law}: {mean}");
        }
    }
}
