//! The processes that were started together, as a group.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::topology::Communicator as _;
use resflow::error::GroupError;
use resflow::group::Group;

use crate::request::{Arrival, Request, finalise, look, return_errors};

/// The end of a message, a part of one that goes on, and the words of a process that ends.
const MESSAGE: c_int = 1;
const PART: c_int = 2;
const END: c_int = 3;
/// The bytes of a part: MPI counts with 31 bits.
const PART_BYTES: usize = 1 << 30;
/// The bytes that may be on their way before sending waits.
const MOST_BYTES: usize = 256 << 20;
/// The time that a process which ends takes to tell the others.
const FAREWELL: Duration = Duration::from_secs(2);
/// The bytes of its words.
const WORDS: usize = 2000;

/// Whether this process was started with others by `mpirun`, `srun` or another launcher that MPI knows.
pub fn is_started_together() -> bool {
    let names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK", "MPI_LOCALNRANKS"];
    names.iter().any(|name| std::env::var_os(name).is_some())
}

/// All processes that were started together.
pub struct Processes {
    rank: usize,
    size: usize,
    local_rank: usize,
    limit: Duration,
    traffic: Mutex<Traffic>,
}

#[derive(Default)]
struct Traffic {
    sending: VecDeque<Request>,
    /// The process that ended, and why.
    ended: Option<(usize, String)>,
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, size, local_rank, limit, .. } = self;
        f.debug_struct("Processes")
            .field("rank", rank)
            .field("size", size)
            .field("local_rank", local_rank)
            .field("limit", limit)
            .finish_non_exhaustive()
    }
}

impl Processes {
    /// Initialises MPI. A process waits for another no longer than `limit`.
    ///
    /// # Errors
    /// Returns [`GroupError::Transport`] if MPI cannot be initialised, was before, or may not be called by several threads in turn.
    pub fn start(limit: Duration) -> Result<Self, GroupError> {
        let problem = |problem: &str| GroupError::Transport(problem.into());
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = started.ok_or_else(|| problem("MPI is initialised already"))?;
        if threading < Threading::Serialized {
            return Err(problem("this MPI may be called by one thread only"));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        // `finish` ends MPI, and only after work that was done: a process that failed must not wait for the others
        std::mem::forget(universe);
        return_errors()?;
        let local_rank = world.split_shared(world.rank()).rank() as usize;
        Ok(Self { rank, size, local_rank, limit, traffic: Mutex::default() })
    }

    /// The number of this process among those on its machine, from 0: the one by which it chooses its own of several GPUs.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Ends MPI, when all processes have done their work: waits for what was sent to arrive, and for the others.
    ///
    /// # Errors
    /// Returns [`GroupError`] if a process ended otherwise, or what was sent does not arrive within the time limit.
    pub fn finish(&self) -> Result<(), GroupError> {
        self.wait((self.rank + 1) % self.size, |traffic| Ok(if traffic.sending.is_empty() { Some(()) } else { None }))?;
        finalise();
        Ok(())
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again, at first all the time and then less, until there is something or the time is over. Between two looks other
    /// threads may send, or say that this process ends.
    fn wait<T>(
        &self,
        other: usize,
        mut ask: impl FnMut(&mut Traffic) -> Result<Option<T>, GroupError>,
    ) -> Result<T, GroupError> {
        let start = Instant::now();
        let mut looks = 0_u32;
        loop {
            let mut traffic = self.traffic();
            traffic.advance()?;
            if let Some(found) = ask(&mut traffic)? {
                return Ok(found);
            }
            traffic.hear()?;
            drop(traffic);
            let waited = start.elapsed();
            if waited >= self.limit {
                return Err(GroupError::TimedOut { from: other, limit: self.limit });
            }
            looks = looks.saturating_add(1);
            if looks < 100 {
                std::hint::spin_loop();
            } else if waited < Duration::from_millis(2) {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(if waited < Duration::from_secs(1) { 50 } else { 1000 }));
            }
        }
    }

    /// Takes what has arrived from a process, which may be sending it still.
    fn take(&self, arrival: &Arrival) -> Result<Vec<u8>, GroupError> {
        let traffic = self.traffic();
        let mut request = Request::receive(arrival.from, arrival.tag, arrival.count)?;
        drop(traffic);
        self.wait(arrival.from, |_| Ok(if request.is_done()? { Some(()) } else { None }))?;
        Ok(request.into_bytes())
    }
}

impl Traffic {
    /// Lets MPI work, and forgets what has arrived.
    fn advance(&mut self) -> Result<(), GroupError> {
        while let Some(first) = self.sending.front_mut() {
            if !first.is_done()? {
                break;
            }
            self.sending.pop_front();
        }
        Ok(())
    }

    /// Hears whether a process has ended.
    fn hear(&mut self) -> Result<(), GroupError> {
        if self.ended.is_none()
            && let Some(arrival) = look(None, Some(END))?
        {
            let mut request = Request::receive(arrival.from, END, arrival.count)?;
            let start = Instant::now();
            while !request.is_done()? && start.elapsed() < FAREWELL {
                std::thread::yield_now();
            }
            let words = if request.is_done()? { request.into_bytes() } else { b"it said nothing".to_vec() };
            self.ended = Some((arrival.from, String::from_utf8_lossy(&words).into_owned()));
        }
        match &self.ended {
            Some((rank, cause)) => Err(GroupError::Failed { rank: *rank, cause: cause.clone() }),
            None => Ok(()),
        }
    }
}

impl Group for Processes {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<(), GroupError> {
        let mut traffic = self.traffic();
        let parts = message.len().div_ceil(PART_BYTES).max(1);
        if parts == 1 {
            traffic.sending.push_back(Request::send(to, MESSAGE, message)?);
        } else {
            for (i, part) in message.chunks(PART_BYTES).enumerate() {
                let tag = if i + 1 < parts { PART } else { MESSAGE };
                traffic.sending.push_back(Request::send(to, tag, part.to_vec())?);
            }
        }
        drop(traffic);
        self.wait(to, |traffic| {
            let bytes: usize = traffic.sending.iter().map(Request::len).sum();
            Ok(if bytes <= MOST_BYTES || traffic.sending.len() < 2 { Some(()) } else { None })
        })
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>, GroupError> {
        let mut message = Vec::new();
        loop {
            let arrival = self.wait(from, |_| {
                let arrival = look(Some(from), None)?;
                // what another process says at its end is heard apart
                Ok(arrival.filter(|arrival| arrival.tag != END))
            })?;
            let bytes = self.take(&arrival)?;
            if arrival.tag == MESSAGE && message.is_empty() {
                return Ok(bytes);
            }
            message.extend(bytes);
            if arrival.tag == MESSAGE {
                return Ok(message);
            }
        }
    }

    fn abort(&self, cause: &str) {
        let mut traffic = self.traffic();
        // who was told by another process tells nobody again
        if traffic.ended.is_some() {
            return;
        }
        let mut end = cause.len().min(WORDS);
        while !cause.is_char_boundary(end) {
            end -= 1;
        }
        traffic.ended = Some((self.rank, cause.to_owned()));
        let others = (0..self.size).filter(|&rank| rank != self.rank);
        let mut farewells: Vec<_> =
            others.filter_map(|rank| Request::send(rank, END, cause.as_bytes()[..end].to_vec()).ok()).collect();
        let start = Instant::now();
        while start.elapsed() < FAREWELL {
            farewells.retain_mut(|farewell| !farewell.is_done().unwrap_or(true));
            if farewells.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
