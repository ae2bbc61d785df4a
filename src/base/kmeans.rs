//! The start of a mixture: k-means++ (Arthur and Vassilvitskii 2007) and a few of Lloyd's iterations, with distances in
//! units of each column's deviation.
//!
//! Invariant: a weight counts as that many equal rows, and the result is a function of the rows in their order and the key.

use resflow_backend::{Key, Noise};

use super::Rows;

/// Lloyd's iterations: this is a start, no end.
const ITERATIONS: usize = 10;

/// Centres and the rows that are nearest to them.
#[derive(Debug)]
pub(super) struct Clusters {
    /// `[K, d]`, with K at most what was asked for: fewer where fewer rows are distinct.
    pub(super) centres: Vec<f64>,
    /// The number of each row's centre.
    pub(super) nearest: Vec<usize>,
}

/// Σ_j (a_j − b_j)² s_j.
fn distance(a: &[f64], b: &[f64], scales: &[f64]) -> f64 {
    a.iter().zip(b).zip(scales).map(|((a, b), s)| (a - b) * (a - b) * s).sum()
}

/// The number of the part of a sum in which a share of it falls, 0 ≤ share < 1.
fn part(parts: impl Iterator<Item = f64> + Clone, share: f64) -> Option<usize> {
    let target = share * parts.clone().sum::<f64>();
    let mut below = 0.0;
    let mut last = None;
    for (i, part) in parts.enumerate() {
        below += part;
        if part > 0.0 {
            last = Some(i);
            if below > target {
                break;
            }
        }
    }
    last
}

/// Finds up to `count` clusters; `scales` are the reciprocal variances of the columns.
pub(super) fn clusters(rows: &Rows<'_>, scales: &[f64], count: usize, key: Key) -> Clusters {
    let (d, n) = (rows.dimension(), rows.count());
    let mut shares = vec![0.0; count];
    Noise::Uniform.fill(key, 0, &mut shares);
    let mut centres: Vec<f64> = Vec::with_capacity(count * d);
    let mut nearest = vec![0; n];
    let mut distances = vec![f64::INFINITY; n];
    for (k, share) in shares.into_iter().enumerate() {
        let chosen = if k == 0 {
            part((0..n).map(|i| rows.weight(i)), share)
        } else {
            part((0..n).map(|i| rows.weight(i) * distances[i]), share)
        };
        let Some(chosen) = chosen else { break };
        centres.extend_from_slice(rows.row(chosen));
        for i in 0..n {
            let own = distance(rows.row(i), rows.row(chosen), scales);
            if own < distances[i] {
                (distances[i], nearest[i]) = (own, k);
            }
        }
    }
    let found = centres.len() / d;
    for _ in 0..if found > 1 { ITERATIONS } else { 0 } {
        let mut sums = vec![0.0; found * d];
        let mut weights = vec![0.0; found];
        for i in 0..n {
            let (k, w) = (nearest[i], rows.weight(i));
            weights[k] += w;
            sums[k * d..(k + 1) * d].iter_mut().zip(rows.row(i)).for_each(|(sum, x)| *sum += w * x);
        }
        for k in 0..found {
            // a centre that no row is nearest to stays
            if weights[k] > 0.0 {
                let own = k * d..(k + 1) * d;
                centres[own.clone()].iter_mut().zip(&sums[own]).for_each(|(c, sum)| *c = sum / weights[k]);
            }
        }
        let mut changed = false;
        for i in 0..n {
            let mut best = (f64::INFINITY, nearest[i]);
            for (k, centre) in centres.chunks_exact(d).enumerate() {
                let own = distance(rows.row(i), centre, scales);
                if own < best.0 {
                    best = (own, k);
                }
            }
            changed |= best.1 != nearest[i];
            nearest[i] = best.1;
        }
        if !changed {
            break;
        }
    }
    Clusters { centres, nearest }
}
