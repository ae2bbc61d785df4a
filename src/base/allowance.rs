//! What a fit on the host may still do.

use crate::error::Error;

/// The multiply-adds that are left, and whether anybody still waits for the result.
pub(crate) struct Allowance<'a> {
    work: u64,
    is_stopped: &'a dyn Fn() -> bool,
}

impl<'a> Allowance<'a> {
    /// So many multiply-adds, until somebody stops it.
    pub(crate) fn new(work: u64, is_stopped: &'a dyn Fn() -> bool) -> Self {
        Self { work, is_stopped }
    }

    /// The multiply-adds that are left.
    pub(crate) fn work(&self) -> u64 {
        self.work
    }

    /// Takes multiply-adds off, what there is of them.
    ///
    /// # Errors
    /// Returns [`Error::Interrupted`] if nobody waits for the result any more.
    pub(crate) fn spend(&mut self, work: u64) -> Result<(), Error> {
        self.work = self.work.saturating_sub(work);
        if (self.is_stopped)() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
