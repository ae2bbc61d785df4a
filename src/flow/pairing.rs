//! The assignment problem: which noise goes to which sample.
//!
//! Minimises Σ_j c(σ(j), j) over permutations σ by shortest augmenting paths (Jonker and Volgenant 1987, Computing 38, pp. 325–340;
//! Crouse 2016), O(n³). Invariant: potentials u, v with c(i, j) − u_i − v_j ≥ 0 everywhere and = 0 on the pairs that were made, which
//! proves that the pairs of each stage are the cheapest.

/// Assigns a row i = σ(j) to each column j of a cost matrix `[n, n]`, row by row, so that the sum of the costs is least. Costs that
/// are not finite count as the largest finite number.
pub(super) fn assign(costs: &[f64], n: usize) -> Vec<usize> {
    assert_eq!(costs.len(), n * n, "a cost for each pair of {n}");
    let cost = |i: usize, j: usize| if costs[i * n + j].is_finite() { costs[i * n + j] } else { f64::MAX / n as f64 };
    let (mut of_row, mut of_column) = (vec![0.0; n], vec![0.0; n]);
    let mut row_at: Vec<Option<usize>> = vec![None; n];
    for free in 0..n {
        // Dijkstra over columns by reduced costs, from the free row to the nearest free column
        let (mut distance, mut before) = (vec![f64::INFINITY; n], vec![None; n]);
        let mut done = vec![false; n];
        let (mut row, mut through, mut reached) = (free, None, 0.0);
        let end = loop {
            let mut nearest: Option<usize> = None;
            for j in 0..n {
                if done[j] {
                    continue;
                }
                let length = reached + cost(row, j) - of_row[row] - of_column[j];
                if length < distance[j] {
                    (distance[j], before[j]) = (length, through);
                }
                if nearest.is_none_or(|k| distance[j] < distance[k]) {
                    nearest = Some(j);
                }
            }
            let Some(column) = nearest else { unreachable!("as many columns as rows") };
            (done[column], reached, through) = (true, distance[column], Some(column));
            match row_at[column] {
                Some(next) => row = next,
                None => break column,
            }
        };
        of_row[free] += reached;
        for j in (0..n).filter(|&j| done[j] && j != end) {
            let slack = reached - distance[j];
            of_column[j] -= slack;
            if let Some(i) = row_at[j] {
                of_row[i] += slack;
            }
        }
        let mut column = end;
        while let Some(previous) = before[column] {
            row_at[column] = row_at[previous];
            column = previous;
        }
        row_at[column] = Some(free);
    }
    row_at.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::assign;

    fn total(costs: &[f64], n: usize, rows: &[usize]) -> f64 {
        rows.iter().enumerate().map(|(j, &i)| costs[i * n + j]).sum()
    }

    /// The least sum over all permutations of the rows that are left.
    fn least(costs: &[f64], n: usize, column: usize, used: &mut Vec<bool>) -> f64 {
        if column == n {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for i in 0..n {
            if !used[i] {
                used[i] = true;
                best = best.min(costs[i * n + column] + least(costs, n, column + 1, used));
                used[i] = false;
            }
        }
        best
    }

    proptest! {
        /// Each row once, and the sum that trying all permutations finds; with whole numbers many pairs are equally good.
        #[test]
        fn no_permutation_is_cheaper(n in 1_usize..7, costs in proptest::collection::vec(-5_i32..6, 36), scale in 0.001..1e6) {
            let costs: Vec<f64> = costs[..n * n].iter().map(|&c| f64::from(c) * scale).collect();
            let rows = assign(&costs, n);
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let expected = least(&costs, n, 0, &mut vec![false; n]);
            prop_assert!((total(&costs, n, &rows) - expected).abs() < 1e-9 * scale, "{} {expected}", total(&costs, n, &rows));
        }
    }

    /// On a line the cheapest pairs by squared distance are those of the sorted numbers.
    #[test]
    fn on_a_line_ranks_meet() {
        let n = 60;
        let number = |i: usize, factor: usize| ((i * factor + 7) % 61) as f64 / 61.0;
        let costs: Vec<f64> = (0..n * n).map(|e| (number(e / n, 17) - 3.0 * number(e % n, 23) + 1.0).powi(2)).collect();
        let rows = assign(&costs, n);
        let rank = |i: usize, factor: usize| (0..n).filter(|&k| number(k, factor) < number(i, factor)).count();
        for (j, &i) in rows.iter().enumerate() {
            assert_eq!(rank(i, 17), rank(j, 23));
        }
    }

    #[test]
    fn costs_that_are_no_numbers_end_too() {
        let rows = assign(&[f64::NAN, 1.0, f64::INFINITY, 2.0], 2);
        assert_eq!(rows.len(), 2);
        assert!(assign(&[], 0).is_empty());
    }
}
