//! Many rows, or images, piece by piece: those that stay in their files, and those that are drawn. Of several processes each takes every so
//! many-th piece, and rank 0 gets what they make of them in the order of the rows; or all make each piece together; or each takes pieces that
//! follow one another, and keeps what it makes of them in files of its own.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use resflow::backend::Key;
use resflow::data::{Dataset, StoredRows};
use resflow::group::{Group, collective};

use crate::cluster;
use crate::evaluate;
use crate::failure::usage;
use crate::output::is_stream;
use crate::run::interruption::{is_interrupted, listen_for_interruption};
use crate::unfinished::{Done, Unfinished};

/// A piece of rows or images, which are scored and encoded as if they were in memory.
pub(crate) struct Piece {
    /// Their numbers.
    pub(crate) range: Range<usize>,
    pub(crate) data: Dataset,
    /// The number of the first of them by which noise is drawn, and the key of that.
    pub(crate) first: u64,
    pub(crate) key: Key,
}

impl Piece {
    fn read(rows: &dyn StoredRows, range: Range<usize>, key: Key) -> Result<Self> {
        let data = rows.read_samples(range.clone())?;
        Ok(match rows.images() {
            Some(_) => Self { key: key.split((range.start / evaluate::PIECE) as u64), first: 0, range, data },
            None => Self { first: range.start as u64, key, range, data },
        })
    }
}

/// The ranges of the pieces: of images those that images in memory are evaluated in.
fn ranges(rows: &dyn StoredRows) -> Vec<Range<usize>> {
    let count = rows.rows();
    match rows.images() {
        Some(_) => (0..count).step_by(evaluate::PIECE).map(|i| i..count.min(i + evaluate::PIECE)).collect(),
        None => rows.pieces().collect(),
    }
}

/// How pieces are divided among the processes.
pub(crate) struct Division {
    /// Whether each process writes files of its own.
    is_apart: bool,
    /// The number of this process and that of all.
    rank: usize,
    size: usize,
    /// All pieces that go into this process's files.
    pieces: Vec<Range<usize>>,
    /// The most pieces of a process, where each writes its own.
    most: usize,
}

impl Division {
    /// Divides the rows of a file; `is_apart` gives each process those that follow one another.
    pub(crate) fn of(rows: &dyn StoredRows, is_apart: bool) -> Result<Self> {
        Self::new(ranges(rows), is_apart)
    }

    /// Divides pieces of rows that follow one another.
    pub(crate) fn new(mut pieces: Vec<Range<usize>>, is_apart: bool) -> Result<Self> {
        let (rank, size) = cluster::group().map_or((0, 1), |group| (group.rank(), group.size()));
        let rows = pieces.last().map_or(0, |range| range.end);
        let most = pieces.len().div_ceil(size);
        if is_apart {
            let count = pieces.len();
            if count < size {
                return Err(usage(format_args!(
                    "--out-parts: {rows} rows are taken in {count} pieces, of which some of {size} processes would have none; \
                     start at most {count}"
                )));
            }
            pieces = pieces[rank * count / size..(rank + 1) * count / size].to_vec();
        }
        Ok(Self { is_apart, rank, size, pieces, most })
    }

    pub(crate) fn is_apart(&self) -> bool {
        self.is_apart
    }

    /// The pieces behind the first rows of this process's files.
    fn left(&self, done: usize) -> &[Range<usize>] {
        let first = self.rows().start + done;
        &self.pieces[self.pieces.partition_point(|range| range.start < first)..]
    }

    /// The rows that go into this process's files.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.pieces.first().map_or(0, |range| range.start)..self.pieces.last().map_or(0, |range| range.end)
    }

    /// The name of this process's part of an output: `scores.csv` is in `scores.00000-of-00003.csv` and what follows in order of names.
    pub(crate) fn name(&self, path: &Path) -> PathBuf {
        self.name_of(self.rank, path)
    }

    /// The names of all parts, from the first to the last.
    pub(crate) fn names(&self, path: &Path) -> String {
        let [first, last] = [0, self.size - 1].map(|rank| self.name_of(rank, path).display().to_string());
        if first == last { first } else { format!("{first} … {last}") }
    }

    fn name_of(&self, rank: usize, path: &Path) -> PathBuf {
        // a pipe has no parts, which is refused
        if !self.is_apart || is_stream(path) || path.file_name().is_none() {
            return path.to_owned();
        }
        let own = format!("{rank:05}-of-{:05}", self.size);
        let (Some(stem), Some(extension)) = (path.file_stem(), path.extension()) else {
            return path.with_extension(own);
        };
        let mut name = stem.to_owned();
        name.push(format!(".{own}."));
        name.push(extension);
        path.with_file_name(name)
    }

    /// What differs between the parts, for the record of unfinished work.
    pub(crate) fn described(&self) -> String {
        if self.is_apart { format!("part {} of {}", self.rank + 1, self.size) } else { "whole".to_owned() }
    }
}

/// The rows of this process's files that are done already; of files that all write together rank 0 alone knows. Where all files are recorded,
/// an interruption is taken hold of from now on.
pub(crate) fn rows_done(division: &Division, files: &Unfinished, done: &Done) -> Result<usize> {
    let (mut is_recorded, mut rows) = (files.is_recorded(), done.rows);
    if let Some(group) = cluster::group().filter(|_| !division.is_apart) {
        let own = joined([&[u8::from(is_recorded)], &(rows as u64).to_le_bytes()]);
        let told = collective::broadcast(&*group, own)?;
        let [recorded, told] = parts(&told)?;
        is_recorded = recorded == [1];
        rows = u64::from_le_bytes(told.try_into().context("a message of rank 0")?) as usize;
    }
    if is_recorded {
        listen_for_interruption()?;
    }
    Ok(rows)
}

/// Shows each piece that is not among the first rows, which are `done`, to `make`; `take` gets what that makes, in order, on the process
/// that writes it. Returns `false` if all were interrupted.
pub(crate) fn in_pieces(
    rows: &dyn StoredRows,
    division: &Division,
    (done, key): (usize, Key),
    mut make: impl FnMut(Piece) -> Result<Vec<u8>>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    let mut made = |range: Range<usize>| make(Piece::read(rows, range, key)?);
    let Some(group) = cluster::group().filter(|_| !division.is_apart) else {
        return alone(division, done, made, |piece| take(&piece));
    };
    for round in division.left(done).chunks(group.size()) {
        let own = round.get(group.rank()).cloned().map_or(Ok(Vec::new()), &mut made)?;
        let all = collective::gather(&*group, joined([&own, &[u8::from(is_interrupted())]]))?;
        let all = all.iter().map(|message| parts(message)).collect::<Result<Vec<[&[u8]; 2]>>>()?;
        if group.rank() == 0 {
            all[..round.len()].iter().try_for_each(|[piece, _]| take(piece))?;
        }
        // one that was told to stop stops all, unless this was the last round
        let is_last = round.last().is_some_and(|range| range.end == rows.rows());
        if !is_last && all.iter().any(|[_, stopped]| *stopped == [1]) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The same of pieces that all processes make together, unless each writes its own: those behind the first rows, which are `done`.
pub(crate) fn together<T>(
    division: &Division,
    done: usize,
    mut make: impl FnMut(Range<usize>) -> Result<T>,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<bool> {
    let Some(group) = cluster::group().filter(|_| !division.is_apart) else {
        return alone(division, done, make, take);
    };
    let mut pieces = division.left(done).iter();
    while let Some(range) = pieces.next() {
        let made = make(range.clone())?;
        if group.rank() == 0 {
            take(made)?;
        }
        if stopped_by_any(&*group, pieces.len() > 0)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The same of pieces that go into this process's own files.
fn alone<T>(
    division: &Division,
    done: usize,
    mut make: impl FnMut(Range<usize>) -> Result<T>,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<bool> {
    let mut pieces = division.left(done).iter();
    let Some(group) = cluster::group() else {
        for range in pieces {
            if is_interrupted() {
                return Ok(false);
            }
            take(make(range.clone())?)?;
        }
        return Ok(true);
    };
    // as many rounds for all, whatever is done of each: in every one they hear of each other
    for _ in 0..division.most {
        if let Some(range) = pieces.next() {
            take(make(range.clone())?)?;
        }
        if stopped_by_any(&*group, pieces.len() > 0)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a process that has pieces left was told to stop.
fn stopped_by_any(group: &dyn Group, has_more: bool) -> Result<bool> {
    let stopped = u8::from(is_interrupted() && has_more);
    Ok(collective::gather(group, vec![stopped])?.iter().any(|stopped| *stopped == [1]))
}

/// Shows rank 0 what the others tell of their parts in the end, in order; nothing of files that all wrote together.
pub(crate) fn gather_totals(division: &Division, own: Vec<u8>, mut add: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let Some(group) = cluster::group().filter(|_| division.is_apart) else { return Ok(()) };
    let all = collective::gather(&*group, own)?;
    if group.rank() == 0 { all[1..].iter().try_for_each(|state| add(state)) } else { Ok(()) }
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

/// Numbers in a message.
pub(crate) fn to_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The numbers of a message.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_names_in_order() {
        let division = |is_apart| Division { is_apart, rank: 2, size: 12, pieces: Vec::new(), most: 0 };
        for (path, expected) in [("a/scores.csv", "a/scores.00002-of-00012.csv"), ("z", "z.00002-of-00012")] {
            assert_eq!(division(true).name(Path::new(path)), Path::new(expected));
            assert_eq!(division(false).name(Path::new(path)), Path::new(path));
        }
    }

    #[test]
    fn messages_come_apart() {
        let message = joined([&b"ab"[..], b"", b"c"]);
        assert_eq!(parts(&message).expect("three"), [&b"ab"[..], b"", b"c"]);
        assert!(parts::<4>(&message).is_err() && parts::<3>(&message[..20]).is_err());
    }
}
