//! The statistics that a report is made of: quantiles, ranks, dependence, the distance between two distributions.

use resflow::calibration::kolmogorov_p_value;

/// The finite values in rising order.
pub(super) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The quantile of values in rising order, interpolated; NaN of none.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, t) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(last);
    // not low + (high - low) t, which may overflow
    sorted[low] * (1.0 - t) + sorted[high] * t
}

/// The share of values in rising order that are below a value, ties counted half.
pub(super) fn share_below(sorted: &[f64], value: f64) -> f64 {
    let less = sorted.partition_point(|v| *v < value);
    let not_more = sorted.partition_point(|v| *v <= value);
    f64::midpoint(less as f64, not_more as f64) / sorted.len().max(1) as f64
}

/// Ranks from 0, ties at their mean rank.
pub(super) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    while first < order.len() {
        let value = values[order[first]];
        let ties = order[first..].iter().take_while(|&&i| values[i] == value).count().max(1);
        for &i in &order[first..first + ties] {
            ranks[i] = first as f64 + (ties - 1) as f64 / 2.0;
        }
        first += ties;
    }
    ranks
}

/// The correlation of two columns; 0 if one of them is constant. Of ranks it is Spearman's.
pub(super) fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().min(b.len()) as f64;
    let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
    let (ma, mb) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - ma, y - mb);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    if aa > 0.0 && bb > 0.0 { (ab / (aa * bb).sqrt()).clamp(-1.0, 1.0) } else { 0.0 }
}

/// The mutual information of two columns in nats, from their ranks: that of a table of equally filled rows and columns,
/// less its bias (Miller 1955). It sees dependence that is not monotone.
pub(super) fn mutual_information(ranks_a: &[f64], ranks_b: &[f64]) -> f64 {
    let n = ranks_a.len().min(ranks_b.len());
    let side = match n {
        0..100 => 3,
        100..500 => 5,
        _ => 8,
    };
    let cell = |rank: f64| ((rank * side as f64 / n as f64) as usize).min(side - 1);
    let (mut joint, mut a, mut b) = (vec![0.0; side * side], vec![0.0; side], vec![0.0; side]);
    for (&x, &y) in ranks_a.iter().zip(ranks_b) {
        let (i, j) = (cell(x), cell(y));
        joint[i * side + j] += 1.0;
        a[i] += 1.0;
        b[j] += 1.0;
    }
    let total = n as f64;
    let mut information = 0.0;
    for i in 0..side {
        for j in 0..side {
            let count = joint[i * side + j];
            if count > 0.0 {
                information += count / total * (count * total / (a[i] * b[j])).ln();
            }
        }
    }
    let bias = ((side - 1) * (side - 1)) as f64 / (2.0 * total);
    (information - bias).max(0.0)
}

/// The largest difference of the distribution functions of two samples in rising order (Kolmogorov and Smirnov).
pub(super) fn distance(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return f64::NAN;
    }
    let (mut i, mut j, mut most) = (0, 0, 0.0_f64);
    while i < a.len() && j < b.len() {
        let value = a[i].min(b[j]);
        while i < a.len() && a[i] <= value {
            i += 1;
        }
        while j < b.len() && b[j] <= value {
            j += 1;
        }
        most = most.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    most
}

/// The chance of a distance as large between samples of one distribution, of so many values each.
pub(super) fn chance(distance: f64, n: usize, m: usize) -> f64 {
    let (n, m) = (n as f64, m as f64);
    kolmogorov_p_value(distance, n * m / (n + m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_ranks() {
        let values = sorted(&[3.0, f64::NAN, 1.0, 2.0, f64::INFINITY]);
        assert_eq!([0.0, 0.25, 1.0, 7.0].map(|q| quantile(&values, q)), [1.0, 1.5, 3.0, 3.0]);
        assert!(quantile(&[], 0.5).is_nan());
        assert!(quantile(&[-f64::MAX, f64::MAX], 0.5).is_finite());
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 0.0]), [2.5, 1.0, 2.5, 0.0]);
        assert_eq!(ranks(&[f64::NAN, f64::NAN]).len(), 2);
        assert_eq!(share_below(&[1.0, 2.0, 2.0, 3.0], 2.0), 0.5);
    }

    #[test]
    fn dependence() {
        let x: Vec<f64> = (0..1000).map(f64::from).collect();
        let rising: Vec<f64> = x.iter().map(|v| v.exp().min(1e300)).collect();
        let bent: Vec<f64> = x.iter().map(|v| (v - 500.0).powi(2)).collect();
        let other: Vec<f64> = (0..1000).map(|i| f64::from(i * 7919 % 1000)).collect();
        let rank = |v: &[f64]| ranks(v);
        assert!(correlation(&rank(&x), &rank(&rising)) > 0.8, "ties beyond 1e300");
        assert!(correlation(&rank(&x), &rank(&bent)).abs() < 0.01);
        assert!(mutual_information(&rank(&x), &rank(&bent)) > 1.0);
        assert!(mutual_information(&rank(&x), &rank(&other)) < 0.05);
        assert_eq!(correlation(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn distances() {
        let x: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(distance(&x, &x), 0.0);
        assert_eq!(distance(&x, &[200.0]), 1.0);
        assert!((distance(&[0.0, 1.0], &[1.0, 2.0]) - 0.5).abs() < 1e-12);
        assert_eq!(chance(0.0, 100, 100), 1.0);
        // 1.358 √(2/n) is the border at 5 %
        assert!((chance(1.358 * (2.0_f64 / 10_000.0).sqrt(), 10_000, 10_000) - 0.05).abs() < 0.003);
    }
}
