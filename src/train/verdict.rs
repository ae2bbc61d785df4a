//! What an observer of a run says: whether to go on.

/// The answer of an observer of a run: nothing, or with [`ControlFlow`](std::ops::ControlFlow) whether to go on.
pub trait Verdict {
    /// Returns `true` if the run goes on.
    fn goes_on(&self) -> bool;
}

impl Verdict for () {
    fn goes_on(&self) -> bool {
        true
    }
}

impl Verdict for std::ops::ControlFlow<()> {
    fn goes_on(&self) -> bool {
        self.is_continue()
    }
}
