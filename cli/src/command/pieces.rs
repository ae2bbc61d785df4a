//! Rows that stay in their file, piece by piece. Of several processes each takes every so many-th piece, and rank 0 gets what they
//! make of them in the order of the rows.

use std::ops::Range;

use anyhow::{Result, bail};
use resflow::data::{StoredRows, Table};
use resflow::group::collective;

use crate::cluster;

/// Shows each piece, with the range of its rows, to `make`; `take` gets what that makes, in order, on rank 0 or where there is one
/// process.
pub(crate) fn in_pieces(
    rows: &dyn StoredRows,
    mut make: impl FnMut(Range<usize>, &Table) -> Result<Vec<u8>>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut made = |range: Range<usize>| make(range.clone(), &rows.read_table(range)?);
    let Some(group) = cluster::group() else {
        return rows.pieces().try_for_each(|range| take(&made(range)?));
    };
    let pieces: Vec<Range<usize>> = rows.pieces().collect();
    for round in pieces.chunks(group.size()) {
        let own = round.get(group.rank()).cloned().map_or(Ok(Vec::new()), &mut made)?;
        let all = collective::gather(&*group, own)?;
        if group.rank() == 0 {
            all[..round.len()].iter().try_for_each(|piece| take(piece))?;
        }
    }
    Ok(())
}

/// Parts as one message, each behind its length.
pub(crate) fn joined<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part);
    }
    bytes
}

/// The parts of a message.
pub(crate) fn parts<const N: usize>(message: &[u8]) -> Result<[&[u8]; N]> {
    let mut found = [&[][..]; N];
    let mut rest = message;
    for part in &mut found {
        let Some((length, others)) = rest.split_first_chunk::<8>() else { bail!("a message that is cut off") };
        let Some((own, others)) = others.split_at_checked(u64::from_le_bytes(*length) as usize) else {
            bail!("a message that is cut off")
        };
        (*part, rest) = (own, others);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_apart() {
        let message = joined([&b"ab"[..], b"", b"c"]);
        assert_eq!(parts(&message).expect("three"), [&b"ab"[..], b"", b"c"]);
        assert!(parts::<4>(&message).is_err() && parts::<3>(&message[..20]).is_err());
    }
}
