//! The frame of a safetensors file: eight bytes with the length of the header, the header, the numbers. A change that moves
//! the end of the header mends the length, or nearly every such change would end at the first check.

/// Header and numbers, if the length is right.
pub(crate) fn open(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// The file around them.
pub(crate) fn close(header: &[u8], numbers: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, numbers].concat()
}
