//! What all ranks of a group do together. Every rank calls the same function at the same time.

use resflow_backend::Element;

use super::Group;
use crate::error::GroupError;

/// The numbers of a piece of a sum: pieces follow each other through the ranks, so that all add at the same time.
const PIECE: usize = 1 << 16;

/// Adds vectors of `length` numbers in the order of the ranks and, within a rank, of its lanes: every rank gets
/// ((v₀ + v₁) + v₂) + …, rounded like the sum that one process makes. A rank may have no lanes. `notes` go along:
/// `merge(notes of the ranks before, own)` in the same order. Each rank sends and receives each number at most twice.
///
/// # Errors
/// Returns [`GroupError`] if another rank ended, did not answer, or has vectors of another length.
pub fn sum_in_order<E: Element>(
    group: &dyn Group,
    notes: &mut Vec<f64>,
    merge: impl Fn(&mut [f64], &[f64]),
    lanes: &[Vec<E>],
    length: usize,
) -> Result<Vec<E>, GroupError> {
    let (rank, last) = (group.rank(), group.size() - 1);
    // −0 + x is x, −0 included
    let mut sum = vec![E::from_f64(-0.0); length];
    let pieces = 1 + length.div_ceil(PIECE);
    let range = |piece: usize| (piece - 1) * PIECE..(piece * PIECE).min(length);
    // what comes back left this rank so many pieces ago: a rank never waits for what waits for itself
    let lag = last - rank;
    for i in 0..pieces + lag {
        if i < pieces {
            let before = if rank > 0 { Some(group.receive(rank - 1)?) } else { None };
            if i == 0 {
                if let Some(before) = before {
                    let mut merged = decode::<f64>(&before, notes.len())?;
                    merge(&mut merged, notes);
                    *notes = merged;
                }
                if rank < last {
                    group.send(rank + 1, encode(notes))?;
                }
            } else {
                let range = range(i);
                let mut own = match (before, lanes.first()) {
                    (Some(before), _) => decode::<E>(&before, range.len())?,
                    (None, Some(first)) => first[range.clone()].to_vec(),
                    (None, None) => vec![E::from_f64(-0.0); range.len()],
                };
                for lane in lanes.iter().skip(usize::from(rank == 0)) {
                    own.iter_mut().zip(&lane[range.clone()]).for_each(|(sum, x)| *sum += *x);
                }
                if rank < last {
                    group.send(rank + 1, encode(&own))?;
                } else {
                    sum[range].copy_from_slice(&own);
                }
            }
        }
        let Some(piece) = i.checked_sub(lag).filter(|_| last > 0) else { continue };
        let message = if rank < last {
            let message = group.receive(rank + 1)?;
            if piece == 0 {
                *notes = decode(&message, notes.len())?;
            } else {
                sum[range(piece)].copy_from_slice(&decode::<E>(&message, range(piece).len())?);
            }
            message
        } else if piece == 0 {
            encode(notes)
        } else {
            encode(&sum[range(piece)])
        };
        if rank > 0 {
            group.send(rank - 1, message)?;
        }
    }
    Ok(sum)
}

/// Hands a message of rank 0 to all ranks, by a binomial tree; what the others give is not looked at.
///
/// # Errors
/// Returns [`GroupError`] if another rank ended or did not answer.
pub fn broadcast(group: &dyn Group, message: Vec<u8>) -> Result<Vec<u8>, GroupError> {
    let (rank, size) = (group.rank(), group.size());
    let mut bit = 1;
    let mut message = message;
    while bit < size {
        if rank & bit != 0 {
            message = group.receive(rank - bit)?;
            break;
        }
        bit <<= 1;
    }
    while bit > 1 {
        bit >>= 1;
        if rank + bit < size {
            group.send(rank + bit, message.clone())?;
        }
    }
    Ok(message)
}

/// Gives every rank the messages of all ranks, in their order.
///
/// # Errors
/// Returns [`GroupError`] if another rank ended or did not answer.
pub fn gather(group: &dyn Group, message: Vec<u8>) -> Result<Vec<Vec<u8>>, GroupError> {
    let size = group.size();
    let mut joined = Vec::new();
    if group.rank() > 0 {
        group.send(0, message)?;
    } else {
        let mut all = vec![message];
        for rank in 1..size {
            all.push(group.receive(rank)?);
        }
        for message in &all {
            joined.extend((message.len() as u64).to_le_bytes());
        }
        for message in &all {
            joined.extend(message);
        }
    }
    let joined = broadcast(group, joined)?;
    let strange = || GroupError::Transport("messages that were gathered do not come apart".into());
    let (lengths, mut rest) = joined.split_at_checked(8 * size).ok_or_else(strange)?;
    lengths
        .chunks_exact(8)
        .map(|length| {
            let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
            let (own, others) = rest.split_at_checked(length as usize).ok_or_else(strange)?;
            rest = others;
            Ok(own.to_vec())
        })
        .collect()
}

/// Waits until all ranks have come here.
///
/// # Errors
/// Returns [`GroupError`] if another rank ended or did not come within the time limit.
pub fn wait_for_all(group: &dyn Group) -> Result<(), GroupError> {
    gather(group, Vec::new()).map(|_| ())
}

/// Checks that all ranks have the same: `what` says what is wrong if not, with the verb ("the programs differ").
///
/// # Errors
/// Returns [`GroupError::Differ`] with the ranks that have something else than rank 0, on all ranks, and the errors of
/// [`gather`].
pub fn check_same(group: &dyn Group, what: &str, own: &[u8]) -> Result<(), GroupError> {
    let all = gather(group, own.to_vec())?;
    let differing: Vec<usize> = (1..all.len()).filter(|&rank| all[rank] != all[0]).collect();
    if differing.is_empty() { Ok(()) } else { Err(GroupError::Differ { what: what.to_owned(), differing }) }
}

/// A digest of numbers (FNV-1a on their bytes), by which ranks compare what they hold.
pub fn digest<E: Element>(values: &[E]) -> u64 {
    digest_of_bytes(&encode(values))
}

/// A digest of bytes (FNV-1a).
pub fn digest_of_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Numbers as bytes, little-endian.
pub(crate) fn encode<E: Element>(values: &[E]) -> Vec<u8> {
    if size_of::<E>() == 4 {
        values.iter().flat_map(|x| (x.to_f64() as f32).to_le_bytes()).collect()
    } else {
        values.iter().flat_map(|x| x.to_f64().to_le_bytes()).collect()
    }
}

/// So many numbers of bytes.
pub(crate) fn decode<E: Element>(bytes: &[u8], count: usize) -> Result<Vec<E>, GroupError> {
    if bytes.len() != count * size_of::<E>() {
        let problem = format!("{} bytes came for {count} numbers in {}", bytes.len(), E::NAME);
        return Err(GroupError::Transport(problem));
    }
    Ok(if size_of::<E>() == 4 {
        let of = |bytes: &[u8]| E::from_f64(f32::from_le_bytes(bytes.try_into().unwrap_or_default()).into());
        bytes.chunks_exact(4).map(of).collect()
    } else {
        let of = |bytes: &[u8]| E::from_f64(f64::from_le_bytes(bytes.try_into().unwrap_or_default()));
        bytes.chunks_exact(8).map(of).collect()
    })
}
