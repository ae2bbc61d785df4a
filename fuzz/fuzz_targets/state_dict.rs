//! State dicts of the reference implementation, in every format.
#![no_main]

#[path = "../checks_import.rs"]
#[expect(dead_code, reason = "the other target's check")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::state_dict(bytes);
});
