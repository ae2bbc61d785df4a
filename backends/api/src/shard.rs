//! The division of a batch into shards and lanes.
//!
//! A shard is a run of rows that goes through the whole model, forward and back, before the next one starts, so that
//! its activations stay in the cache. A lane is a sequence of shards whose gradients add up in order. The plan depends
//! on the batch and the configuration alone, never on the number of threads: neither do the results.

use std::ops::Range;

/// The rows (samples) of each shard, and the shards of each lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    bounds: Vec<usize>,
    lanes: usize,
}

impl ShardPlan {
    /// Splits `rows` evenly into about `rows / preferred` shards, a multiple of `lanes` where the rows allow.
    pub fn new(rows: usize, preferred: usize, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        let wanted = rows.div_ceil(preferred.max(1)).max(1);
        let shards = wanted.next_multiple_of(lanes).min((rows / lanes * lanes).max(rows.min(lanes)).max(1));
        let bounds = (0..=shards).map(|i| (i as u128 * rows as u128 / shards as u128) as usize).collect();
        Self { bounds, lanes: lanes.min(shards) }
    }

    /// The number of lanes.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The rows of shard `i`.
    pub fn rows(&self, i: usize) -> Range<usize> {
        self.bounds[i]..self.bounds[i + 1]
    }

    /// The rows of all shards, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.shards()).map(|i| self.rows(i))
    }

    /// The shards of lane `lane`, in order: lane, lane + L, lane + 2L, …
    pub fn lane(&self, lane: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        (lane..self.shards()).step_by(self.lanes).map(|i| self.rows(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_in_order() {
        for rows in [0, 1, 5, 8, 63, 500, 1001] {
            for preferred in [1, 24, 64, 4096] {
                for lanes in [1, 2, 8] {
                    let plan = ShardPlan::new(rows, preferred, lanes);
                    let all: Vec<usize> = (0..plan.shards()).flat_map(|i| plan.rows(i)).collect();
                    assert_eq!(all, (0..rows).collect::<Vec<_>>());
                    let mut by_lane: Vec<usize> =
                        (0..plan.lanes()).flat_map(|l| plan.lane(l).flatten().collect::<Vec<_>>()).collect();
                    by_lane.sort_unstable();
                    assert_eq!(by_lane, all);
                    if rows >= lanes {
                        assert_eq!(plan.shards() % lanes, 0);
                    }
                }
            }
        }
    }
}
