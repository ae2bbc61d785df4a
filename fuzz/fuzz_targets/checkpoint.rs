//! Model files and the states of runs.
#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "the other targets' checks")]
mod checks;
#[path = "../frame.rs"]
mod frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::checkpoint(bytes);
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // three changes in four go to the header or to the numbers of a file whose frame is right
    let changed = frame::open(&data[..size]).filter(|_| !seed.is_multiple_of(4)).and_then(|(header, numbers)| {
        let (part, other) = if seed.is_multiple_of(2) { (numbers, header.len()) } else { (header, numbers.len()) };
        let most = max_size.checked_sub(8 + other)?;
        let mut changed = part.to_vec();
        changed.resize(most.max(part.len()), 0);
        let length = libfuzzer_sys::fuzzer_mutate(&mut changed, part.len(), most);
        changed.truncate(length);
        Some(if seed.is_multiple_of(2) { frame::close(header, &changed) } else { frame::close(&changed, numbers) })
    });
    match changed {
        Some(file) if file.len() <= max_size => {
            data[..file.len()].copy_from_slice(&file);
            file.len()
        }
        _ => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
});
