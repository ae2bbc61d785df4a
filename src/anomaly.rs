//! Out-of-distribution (OOD) detection: how well a score tells data like the model's from others.
//!
//! The area under the receiver operating characteristic is the probability that a sample of the one kind scores above
//! one of the other, ties counted half: 1 tells them apart, ½ is chance, and below ½ the model finds the others
//! likelier, as likelihoods of images may (Nalisnick et al. 2019, arXiv 1810.09136).

use crate::error::Error;

/// An area under the curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Auroc {
    /// The area, from 0 to 1.
    pub value: f64,
    /// The standard error of the area over the samples of both kinds (DeLong et al. 1988).
    pub standard_error: f64,
}

/// Computes the chance that a sample of `inside` scores above one of `outside`, from scores such as log p.
///
/// ```
/// let auroc = resflow::anomaly::auroc(&[3.0, 2.0], &[1.0, 2.0])?;
/// assert_eq!(auroc.value, 0.875);
/// # Ok::<(), resflow::Error>(())
/// ```
///
/// # Errors
/// Returns [`Error::Input`] for fewer than two scores of either kind, or scores that are NaN.
pub fn auroc(inside: &[f64], outside: &[f64]) -> Result<Auroc, Error> {
    if inside.len() < 2 || outside.len() < 2 {
        let (m, n) = (inside.len(), outside.len());
        return Err(Error::Input(format!("an AUROC needs at least two scores of each kind, not {m} and {n}")));
    }
    if inside.iter().chain(outside).any(|s| s.is_nan()) {
        return Err(Error::Input("a score is NaN, so it has no rank".into()));
    }
    let above = placements(inside, outside);
    let below = placements(outside, inside);
    let value = mean(&above);
    let spread = |x: &[f64]| {
        let centre = mean(x);
        x.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / (x.len() - 1) as f64 / x.len() as f64
    };
    Ok(Auroc { value, standard_error: (spread(&above) + spread(&below)).sqrt() })
}

/// For each score, the fraction of the others that it is above, ties counted half.
fn placements(scores: &[f64], others: &[f64]) -> Vec<f64> {
    let mut sorted = others.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = |&score: &f64| {
        let less = sorted.partition_point(|&o| o < score);
        let not_more = sorted.partition_point(|&o| o <= score);
        f64::midpoint(less as f64, not_more as f64) / sorted.len() as f64
    };
    scores.iter().map(place).collect()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

#[cfg(test)]
mod tests {
    use resflow_backend::{Key, Noise};

    use super::*;

    #[test]
    fn extremes_and_mistakes() {
        assert_eq!(auroc(&[2.0, 3.0], &[0.0, 1.0]).expect("scores").value, 1.0);
        assert_eq!(auroc(&[0.0, 1.0], &[2.0, f64::INFINITY]).expect("scores").value, 0.0);
        assert_eq!(auroc(&[1.0; 3], &[1.0; 5]).expect("scores"), Auroc { value: 0.5, standard_error: 0.0 });
        assert!(auroc(&[1.0], &[1.0, 2.0]).is_err() && auroc(&[1.0, f64::NAN], &[1.0, 2.0]).is_err());
    }

    /// N(1, 1) against N(0, 1): the area is Φ(1/√2) = 0.76025. Seeded; another seed fails once in 16,000 (4 errors).
    #[test]
    fn normal_scores() {
        let draw = |key: u64, shift: f64| {
            let mut x = vec![0.0; 4000];
            Noise::Normal.fill(Key::new(key), 0, &mut x);
            x.iter().map(|x: &f64| x + shift).collect::<Vec<_>>()
        };
        let found = auroc(&draw(1, 1.0), &draw(2, 0.0)).expect("scores");
        assert!((found.value - 0.760_25).abs() < 4.0 * found.standard_error, "{found:?}");
        assert!((0.004..0.007).contains(&found.standard_error), "{found:?}");
    }
}
