//! The pickles in torch's checkpoints.
#![no_main]

#[path = "../checks_import.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::pickle(bytes);
});
