//! Tables of any kind, by their content.
#![no_main]

#[path = "../checks_tables.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::table(bytes);
});
