//! The JPEG reader.
#![no_main]

#[path = "../checks_images.rs"]
#[expect(dead_code, reason = "the other targets' checks")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::jpeg(bytes);
});
