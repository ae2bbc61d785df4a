//! A group whose ranks are threads of one process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Group;
use crate::error::GroupError;

/// The time between two looks at whether another rank has ended.
const LOOK: Duration = Duration::from_millis(5);

/// One rank of a group of threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    /// To each rank.
    senders: Vec<Sender<Vec<u8>>>,
    /// From each rank.
    receivers: Vec<Mutex<Receiver<Vec<u8>>>>,
    /// The first rank that ended, and why.
    failed: Arc<Mutex<Option<(usize, String)>>>,
    limit: Duration,
}

impl Threads {
    /// Makes a group of `size` ranks, one for each thread; a rank waits for another no longer than `limit`.
    pub fn new(size: usize, limit: Duration) -> Vec<Self> {
        let failed = Arc::default();
        let mut ranks: Vec<_> = (0..size)
            .map(|rank| Self { rank, senders: Vec::new(), receivers: Vec::new(), failed: Arc::clone(&failed), limit })
            .collect();
        for from in 0..size {
            for to in 0..size {
                let (sender, receiver) = channel();
                ranks[from].senders.push(sender);
                ranks[to].receivers.push(Mutex::new(receiver));
            }
        }
        ranks
    }

    /// The error of a rank that waits for others of which one has ended.
    fn check(&self) -> Result<(), GroupError> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((rank, cause)) => Err(GroupError::Failed { rank: *rank, cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn gone(&self, rank: usize) -> GroupError {
        match self.check() {
            Err(failed) => failed,
            Ok(()) => GroupError::Failed { rank, cause: "its thread is gone".into() },
        }
    }
}

impl Group for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.senders.len()
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<(), GroupError> {
        self.senders[to].send(message).map_err(|_| self.gone(to))
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>, GroupError> {
        let receiver = self.receivers[from].lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        loop {
            match receiver.recv_timeout(LOOK.min(self.limit)) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone(from)),
                Err(RecvTimeoutError::Timeout) => self.check()?,
            }
            if start.elapsed() >= self.limit {
                return Err(GroupError::TimedOut { from, limit: self.limit });
            }
        }
    }

    fn abort(&self, cause: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| (self.rank, cause.to_owned()));
    }
}
