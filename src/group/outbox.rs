//! The gradients of a rank's lanes, which become final section by section while the backward pass goes on, and are sent meanwhile.
//!
//! A backward pass goes through the transforms from the last to the first, and with the last shard of a lane each transform's
//! gradient is final when the pass has left it. Lanes put sections in; one other thread takes them out in order, waits for all
//! lanes of each, and adds them up with those of the other ranks.
//!
//! Invariant: a section that was put in does not change, and every lane ends by putting in all that it has, or closes the outbox, so
//! that nobody waits for what does not come.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use resflow_backend::Backend;

use super::team::LaneSum;
use crate::error::GroupError;
use crate::module::Grad;

/// Consecutive transforms whose gradients are sent together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    /// The first of them, which a backward pass leaves last.
    pub(crate) first: usize,
    /// The places of their gradients among the chain's.
    pub(crate) grads: Range<usize>,
}

/// What the lanes of a rank have put in.
pub(crate) struct Outbox<B: Backend> {
    sections: Vec<Section>,
    state: Mutex<State<B>>,
    changed: Condvar,
}

struct State<B: Backend> {
    lanes: Vec<LaneState<B>>,
    closed: bool,
}

struct LaneState<B: Backend> {
    sections: Vec<Option<Vec<Grad<B>>>>,
    whole: Option<LaneSum<B>>,
}

impl<B: Backend> Outbox<B> {
    /// Makes one for so many lanes; `sections` are in the order of a backward pass.
    pub(crate) fn new(sections: Vec<Section>, lanes: usize) -> Self {
        let lane = || LaneState { sections: vec![None; sections.len()], whole: None };
        let state = Mutex::new(State { lanes: (0..lanes).map(|_| lane()).collect(), closed: false });
        Self { sections, state, changed: Condvar::new() }
    }

    pub(crate) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Puts in what is final in a lane now that a backward pass has left transform number `l`; `grads` are the chain's.
    pub(crate) fn put(&self, lane: usize, l: usize, grads: &[Grad<B>]) {
        if let Some(k) = self.sections.iter().position(|section| section.first == l) {
            let own = grads[self.sections[k].grads.clone()].to_vec();
            self.state().lanes[lane].sections[k] = Some(own);
            self.changed.notify_all();
        }
    }

    /// Puts in all that a lane has.
    pub(crate) fn finish(&self, lane: usize, whole: LaneSum<B>) {
        self.state().lanes[lane].whole = Some(whole);
        self.changed.notify_all();
    }

    /// Lets nobody wait any longer: a lane failed.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits until all lanes have a section, and takes it.
    pub(crate) fn take(&self, k: usize) -> Result<Vec<Vec<Grad<B>>>, GroupError> {
        let mut state = self.wait(|lane| lane.sections[k].is_some() || lane.whole.is_some())?;
        let grads = &self.sections[k].grads;
        let take = |lane: &mut LaneState<B>| match (lane.sections[k].take(), &lane.whole) {
            (Some(section), _) => section,
            (None, Some(whole)) => whole.gradients[grads.clone()].to_vec(),
            (None, None) => Vec::new(),
        };
        Ok(state.lanes.iter_mut().map(take).collect())
    }

    /// Waits until all lanes have ended, and looks at what each has.
    pub(crate) fn look<T>(&self, at: impl FnMut(&LaneSum<B>) -> T) -> Result<Vec<T>, GroupError> {
        let state = self.wait(|lane| lane.whole.is_some())?;
        Ok(state.lanes.iter().filter_map(|lane| lane.whole.as_ref()).map(at).collect())
    }

    fn wait(&self, is_there: impl Fn(&LaneState<B>) -> bool) -> Result<MutexGuard<'_, State<B>>, GroupError> {
        let mut state = self.state();
        while !state.closed {
            if state.lanes.iter().all(&is_there) {
                return Ok(state);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Err(GroupError::Transport("a gradient failed on this rank".into()))
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use resflow_backend::Shape;

    use super::*;
    use crate::NdArray;
    use crate::group::{Group, Team, Threads};

    const LIMIT: Duration = Duration::from_secs(20);

    fn lane(backend: &NdArray<f32>, number: f32) -> LaneSum<NdArray<f32>> {
        let tensor = |n: usize, x: f32| Some(backend.upload(&vec![x; n], Shape::from([n])));
        let gradients = vec![tensor(70_000, number), None, tensor(3, 2.0 * number), tensor(2, 3.0 * number)];
        LaneSum { gradients, sums: vec![tensor(1, number)], notes: [1, 2, 3] }
    }

    fn teams(size: usize) -> Vec<Team> {
        let shapes: Vec<Shape> = [70_000, 5, 3, 2].map(|n| Shape::from([n])).to_vec();
        let ranks = Threads::new(size, LIMIT).into_iter();
        ranks.map(|rank| Team::new(Arc::new(rank) as Arc<dyn Group>, shapes.clone())).collect()
    }

    /// The chain's gradients are the first three tensors, in two sections; the last tensor is the base's.
    fn outbox(lanes: usize) -> Outbox<NdArray<f32>> {
        Outbox::new(vec![Section { first: 1, grads: 1..3 }, Section { first: 0, grads: 0..1 }], lanes)
    }

    #[test]
    fn sections_that_are_put_in_early_late_or_never_make_the_same_sum() {
        let backend = NdArray::<f32>::new();
        for early in [0, 1, 2] {
            let found: Vec<_> = std::thread::scope(|scope| {
                let running: Vec<_> = teams(2)
                    .into_iter()
                    .enumerate()
                    .map(|(rank, team)| {
                        let backend = &backend;
                        scope.spawn(move || {
                            // the first sum tells the shapes, and sends nothing early
                            fill(backend, &team, rank, early);
                            fill(backend, &team, rank, early)
                        })
                    })
                    .collect();
                running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
            });
            for (sum, notes) in found {
                // lanes 1, 2, 3 and 4, in each tensor by its factor
                assert_eq!(sum, [Some(10.0), None, Some(20.0), Some(30.0)]);
                assert_eq!(notes, [1, 2, 12]);
            }
        }
    }

    /// Fills the two lanes of a rank while they are added up, the first `early` sections of each before the whole.
    fn fill(backend: &NdArray<f32>, team: &Team, rank: usize, early: usize) -> (Vec<Option<f32>>, [usize; 3]) {
        let outbox = &outbox(2);
        let sum = std::thread::scope(|scope| {
            let sum = scope.spawn(|| team.add_lanes(backend, outbox, &[1]));
            for l in 0..2 {
                let whole = lane(backend, (2 * rank + l + 1) as f32);
                for section in &outbox.sections()[..early] {
                    outbox.put(l, section.first, &whole.gradients[..3]);
                    std::thread::sleep(Duration::from_millis(2));
                }
                outbox.finish(l, whole);
            }
            sum.join().expect("no panic").expect("all are there")
        });
        assert_eq!(sum.sums.len(), 1);
        let first = |grad: &Grad<NdArray<f32>>| {
            grad.as_ref().map(|grad| {
                let numbers = backend.download(grad).expect("a processor does not fail");
                assert!(numbers.iter().all(|x| *x == numbers[0]));
                numbers[0]
            })
        };
        (sum.gradients.iter().map(first).collect(), sum.notes)
    }

    #[test]
    fn a_lane_that_fails_ends_its_rank_and_the_others() {
        let backend = NdArray::<f32>::new();
        let start = Instant::now();
        let found: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = teams(3)
                .into_iter()
                .enumerate()
                .map(|(rank, team)| {
                    let backend = &backend;
                    scope.spawn(move || {
                        let outbox = outbox(1);
                        std::thread::scope(|scope| {
                            let sum = scope.spawn(|| team.add_lanes(backend, &outbox, &[1]));
                            if rank == 1 {
                                outbox.put(0, 1, &lane(backend, 1.0).gradients[..3]);
                                team.abort("no such number");
                                outbox.close();
                            } else {
                                outbox.finish(0, lane(backend, 1.0));
                            }
                            sum.join().expect("no panic").map(|sum| sum.notes).expect_err("one failed").to_string()
                        })
                    })
                })
                .collect();
            running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        });
        assert!([&found[0], &found[2]].into_iter().all(|error| *error == "rank 1 ended: no such number"), "{found:?}");
        assert!(start.elapsed() < LIMIT / 2, "somebody waited");
    }
}
