//! What all ranks of a group do together. Every rank calls the same function at the same time.

use std::ops::Range;

use resflow_backend::Element;

use super::Group;
use crate::error::GroupError;

/// The numbers of a piece of a sum: pieces follow each other through the ranks, so that all add at the same time.
pub(crate) const PIECE: usize = 1 << 16;

/// What a rank adds to a sum whose numbers become known section by section, in the same order on all ranks.
pub(crate) trait Summands<E> {
    type Failure: From<GroupError>;

    /// Waits for the numbers of section `k` of each of this rank's lanes.
    fn section(&mut self, k: usize) -> Result<Vec<Vec<E>>, Self::Failure>;

    /// What goes along, when all sections are known.
    fn notes(&mut self) -> Result<Vec<f64>, Self::Failure>;

    /// Adds the notes of a rank to those of the ranks before it.
    fn merge(&self, before: &mut [f64], own: &[f64]);
}

/// A sum over the lanes of all ranks.
pub(crate) struct Sum<E> {
    /// The sections one after the other.
    pub(crate) numbers: Vec<E>,
    pub(crate) notes: Vec<f64>,
    /// The bytes that this rank has sent for it.
    pub(crate) bytes: u64,
}

/// Adds up what all ranks have, in the order of the ranks and, within a rank, of its lanes, rounded like the sum that one process
/// makes; a rank may have no lanes. A section goes on its way when it is known and those before it have come, in pieces. Each rank sends
/// and receives each number at most twice.
pub(crate) fn sum_sections<E: Element, S: Summands<E>>(
    group: &dyn Group,
    own: &mut S,
    lengths: &[usize],
) -> Result<Sum<E>, S::Failure> {
    let (rank, last) = (group.rank(), group.size() - 1);
    let starts = |(k, &length): (usize, &usize)| {
        (0..length).step_by(PIECE).map(move |start| (k, start..length.min(start + PIECE)))
    };
    let pieces: Vec<(usize, Range<usize>)> = lengths.iter().enumerate().flat_map(starts).collect();
    let mut sum = Sum { numbers: Vec::with_capacity(lengths.iter().sum()), notes: Vec::new(), bytes: 0 };
    let mut send = |to: usize, message: Vec<u8>| {
        sum.bytes += message.len() as u64;
        group.send(to, message)
    };
    // −0 + x is x, −0 included
    let zero = E::from_f64(-0.0);
    let (mut lanes, mut known) = (Vec::<Vec<E>>::new(), None);
    // what comes back left this rank so many pieces ago: a rank never waits for what waits for itself; the notes are the last piece
    let (lag, count) = (last - rank, pieces.len() + 1);
    for i in 0..count + lag {
        let mut message = None;
        if let Some((k, range)) = pieces.get(i) {
            if known != Some(*k) {
                (lanes, known) = (own.section(*k)?, Some(*k));
            }
            let mut added = match (rank > 0, lanes.first()) {
                (true, _) => decode::<E>(&group.receive(rank - 1)?, range.len())?,
                (false, Some(first)) => first[range.clone()].to_vec(),
                (false, None) => vec![zero; range.len()],
            };
            for lane in lanes.iter().skip(usize::from(rank == 0)) {
                added.iter_mut().zip(&lane[range.clone()]).for_each(|(sum, x)| *sum += *x);
            }
            message = Some(encode(&added));
        } else if i + 1 == count {
            let own_notes = own.notes()?;
            let merged = if rank > 0 {
                let mut before = decode::<f64>(&group.receive(rank - 1)?, own_notes.len())?;
                own.merge(&mut before, &own_notes);
                before
            } else {
                own_notes
            };
            message = Some(encode(&merged));
        }
        // the last rank's sum goes back
        let whole = if rank < last {
            if let Some(message) = message {
                send(rank + 1, message)?;
            }
            if i < lag { None } else { Some(group.receive(rank + 1)?) }
        } else {
            message
        };
        let Some(whole) = whole else { continue };
        match pieces.get(i - lag) {
            Some((_, range)) => sum.numbers.extend(decode::<E>(&whole, range.len())?),
            None => sum.notes = decode(&whole, whole.len() / size_of::<f64>())?,
        }
        if rank > 0 {
            send(rank - 1, whole)?;
        }
    }
    Ok(sum)
}

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
    let mut own = Whole { lanes, notes, merge };
    let sum = sum_sections(group, &mut own, &[length])?;
    *notes = sum.notes;
    Ok(sum.numbers)
}

/// Vectors that are known from the beginning.
struct Whole<'a, E, M> {
    lanes: &'a [Vec<E>],
    notes: &'a [f64],
    merge: M,
}

impl<E: Element, M: Fn(&mut [f64], &[f64])> Summands<E> for Whole<'_, E, M> {
    type Failure = GroupError;

    fn section(&mut self, _: usize) -> Result<Vec<Vec<E>>, GroupError> {
        Ok(self.lanes.to_vec())
    }

    fn notes(&mut self) -> Result<Vec<f64>, GroupError> {
        Ok(self.notes.to_vec())
    }

    fn merge(&self, before: &mut [f64], own: &[f64]) {
        (self.merge)(before, own);
    }
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
