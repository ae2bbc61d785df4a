//! Decoders of damaged files, which may panic: they run on a thread of their own.
//!
//! The crates `parquet` and `arrow-*` mean to return errors for what is damaged, and panic for some of it still
//! (<https://github.com/apache/arrow-rs/issues/9742>). Such a panic ends the thread, is not printed, and is an error here.
//! The thread's stack is larger than that of a program, since schemas are walked by recursion.

use std::panic::{self, PanicHookInfo};
use std::sync::Once;
use std::thread;

use anyhow::{Result, anyhow};

/// The thread's name, by which its panics are known.
const NAME: &str = "decoder";
/// The thread's stack in bytes, which are taken as they are used.
const STACK: usize = 128 << 20;

/// Runs a decoder; a panic becomes an error.
pub(super) fn guarded<T: Send>(decode: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |said: &PanicHookInfo<'_>| {
            if thread::current().name() != Some(NAME) {
                usual(said);
            }
        }));
    });
    thread::scope(|scope| {
        let decoder = thread::Builder::new().name(NAME.to_owned()).stack_size(STACK).spawn_scoped(scope, decode)?;
        decoder.join().unwrap_or_else(|_| Err(anyhow!("its parts contradict each other")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(guarded(|| Ok(1)).expect("a number"), 1);
        let found: Result<u8> = guarded(|| panic!("index out of bounds"));
        assert!(found.is_err_and(|error| error.to_string().contains("contradict")));
    }
}
