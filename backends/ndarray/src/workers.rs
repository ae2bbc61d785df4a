//! The threads that share the tasks of a [`run`](resflow_backend::Backend::run): the caller's own, and helpers that stay awake for a
//! moment.
//!
//! A training step hands over some ten times, each time for less than a millisecond. What that costs is not the work but the waking of
//! threads: so the caller takes tasks like any other instead of sleeping, and helpers look for the next tasks for [`LINGER`] before they
//! sleep. Who takes which task is open; results come back in their order, and no task knows who runs it.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use resflow_backend::BackendError;

/// How long a helper looks for tasks before it sleeps: longer than what a step does between two of them.
const LINGER: Duration = Duration::from_micros(300);
/// Looks between two that let other threads of the machine pass.
const LOOKS: usize = 64;

/// Threads for tasks.
pub(crate) struct Workers {
    pool: rayon::ThreadPool,
    helpers: usize,
    /// The helpers that look for tasks, or are about to.
    lingering: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts the threads beside the caller's, so many in all.
    pub(crate) fn new(threads: NonZeroUsize) -> Result<Self, BackendError> {
        let helpers = threads.get() - 1;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(helpers)
            .thread_name(|i| format!("resflow-{}", i + 1))
            .build()
            .map_err(|e| BackendError::Setup(format!("{threads} threads: {e}")))?;
        Ok(Self { pool, helpers, lingering: Arc::default() })
    }

    /// Runs tasks 0, 1, …, and returns what each gives, in their order.
    pub(crate) fn run<T: Send>(&self, tasks: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::with_capacity(tasks));
        let work = || {
            let mut own = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= tasks {
                    break;
                }
                own.push((number, task(number)));
            }
            found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut own);
        };
        self.pool.in_place_scope(|scope| {
            for _ in 0..self.helpers.min(tasks.saturating_sub(1)) {
                scope.spawn(|_| work());
            }
            work();
        });
        // inside of a task the helpers are awake
        if self.pool.current_thread_index().is_none() {
            self.keep_awake();
        }
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_unstable_by_key(|(number, _)| *number);
        found.into_iter().map(|(_, result)| result).collect()
    }

    /// Lets helpers look for tasks before they sleep.
    fn keep_awake(&self) {
        while self.lingering.load(Ordering::Relaxed) < self.helpers {
            self.lingering.fetch_add(1, Ordering::Relaxed);
            let lingering = Arc::clone(&self.lingering);
            self.pool.spawn(move || {
                linger();
                lingering.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// Does what there is to do until there was nothing for a while.
fn linger() {
    let mut until = Instant::now() + LINGER;
    loop {
        for _ in 0..LOOKS {
            if rayon::yield_now() == Some(rayon::Yield::Executed) {
                until = Instant::now() + LINGER;
            }
            std::hint::spin_loop();
        }
        if Instant::now() > until {
            return;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(threads: usize) -> Workers {
        Workers::new(NonZeroUsize::new(threads).expect("some")).expect("threads")
    }

    #[test]
    fn results_come_in_the_order_of_the_tasks() {
        let workers = workers(3);
        for tasks in [0, 1, 2, 3, 100] {
            assert_eq!(workers.run(tasks, |i| 3 * i), (0..tasks).map(|i| 3 * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tasks_have_tasks_of_their_own() {
        let workers = workers(2);
        let sums = workers.run(8, |i| workers.run(8, |j| i * j).into_iter().sum::<usize>());
        assert_eq!(sums, (0..8).map(|i| 28 * i).collect::<Vec<_>>());
    }

    #[test]
    fn several_callers_share_the_helpers() {
        let workers = workers(3);
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..6)
                .map(|c| {
                    let workers = &workers;
                    scope.spawn(move || (0..200).all(|round| workers.run(7, |i| i + c + round)[6] == 6 + c + round))
                })
                .collect();
            assert!(callers.into_iter().all(|caller| caller.join().expect("no panic")));
        });
    }

    #[test]
    fn a_panic_comes_to_the_caller_and_the_helpers_go_on() {
        let workers = workers(2);
        for at in [0, 3] {
            let run = std::panic::AssertUnwindSafe(|| workers.run(4, |i| assert_ne!(i, at, "task {at}")));
            assert!(std::panic::catch_unwind(run).is_err());
            assert_eq!(workers.run(3, |i| i), [0, 1, 2]);
        }
    }

    #[test]
    fn helpers_sleep_in_the_end() {
        let workers = workers(4);
        workers.run(4, |i| i);
        let until = Instant::now() + Duration::from_secs(20);
        while workers.lingering.load(Ordering::Relaxed) > 0 {
            assert!(
                Instant::now() < until,
                "{} helpers look for tasks still",
                workers.lingering.load(Ordering::Relaxed)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
