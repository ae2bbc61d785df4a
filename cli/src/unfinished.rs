//! Files that long work writes piece by piece, and goes on with after it was cut off.
//!
//! `OUT.part` beside each output has its bytes so far; `OUT.part.json` beside the first is the record: what the work is of, how many rows
//! are done, how long each part was then, and the state of what is told in the end. Invariant: what a record counts is on the disk
//! before the record is, and what a part has beyond it is cut off by who goes on. So the files end with the bytes of work that nothing
//! cut off.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};

use crate::failure::{interrupted, is_silent, say, usage};
use crate::output::{Output, is_stream, spare_inputs};

/// Whether work is to go on where it was cut off.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Resuming {
    /// Go on where the same command was cut off, by what it left beside --out (OUT.part, OUT.part.json): the files end with the same bytes.
    /// Without it the work begins anew. Of samples, and of data that stay in their files
    #[arg(long, help_heading = "Long work")]
    pub(crate) resume: bool,

    /// Write a file a process, each of rows that follow one another: of three, out.csv becomes out.00000-of-00003.csv and so on,
    /// which in the order of names have all rows. Nothing goes through one process. Of samples, and of data that stay in their files
    #[arg(long, help_heading = "Long work")]
    pub(crate) out_parts: bool,
}

impl Resuming {
    /// Refuses both for a reason.
    pub(crate) fn refuse(self, why: impl std::fmt::Display) -> Result<()> {
        match self.flag() {
            Some(flag) => Err(usage(format_args!("{flag}: {why}"))),
            None => Ok(()),
        }
    }

    /// Refuses what is only of rows that stay in their file.
    pub(crate) fn check_in_memory(self, data: impl std::fmt::Display) -> Result<()> {
        let so = if self.out_parts { "and one process writes it" } else { "where nothing is left to go on with" };
        self.refuse(format_args!("{data} is read into memory, {so}; --large 0 leaves a .npy table in its file"))
    }

    fn flag(self) -> Option<&'static str> {
        let asked = [("--out-parts", self.out_parts), ("--resume", self.resume)];
        asked.into_iter().find(|(_, asked)| *asked).map(|(flag, _)| flag)
    }
}

/// What the bytes of the work are a function of, by name.
pub(crate) type Nature = BTreeMap<String, String>;

/// How far work has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    of: Nature,
    rows: usize,
    lengths: Vec<u64>,
    /// What is told in the end, so far, in hexadecimal.
    state: String,
}

/// What was done before.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) rows: usize,
    /// None before the first row.
    pub(crate) state: Option<Vec<u8>>,
}

/// The outputs of work, with a record of it where all of them are files.
pub(crate) struct Unfinished {
    outputs: Vec<Written>,
    record: Option<Kept>,
}

enum Written {
    Whole(Output),
    Part(Part),
}

/// The beginning of a file.
struct Part {
    path: PathBuf,
    unfinished: PathBuf,
    file: File,
}

/// The record on the disk.
struct Kept {
    path: PathBuf,
    parts: Vec<PathBuf>,
    of: Nature,
    rows: usize,
    /// Rows, lengths and state that were counted since.
    latest: Option<(usize, Vec<u64>, Vec<u8>)>,
    /// When it was written, and how long that took.
    last: Instant,
    cost: Duration,
}

/// Time between records, in times of what one costs.
const RARELY: u32 = 20;

impl Unfinished {
    /// Begins files, or goes on with them; `of` is what their bytes are a function of, `inputs` what must not be written to.
    pub(crate) fn open(
        outputs: &[(&str, &Path)],
        resuming: Resuming,
        inputs: &[&Path],
        of: impl FnOnce() -> Result<Nature>,
    ) -> Result<(Self, Done)> {
        if outputs.is_empty() && resuming.resume {
            return Err(usage("--resume: without --out nothing was left to go on with"));
        }
        if outputs.is_empty() && resuming.out_parts {
            return Err(usage("--out-parts: without --out there is nothing to write"));
        }
        let stream = outputs.iter().find(|(_, path)| is_stream(path) || path.file_name().is_none());
        if let (Some((flag, path)), true) = (stream, resuming.out_parts) {
            return Err(usage(format_args!(
                "--out-parts: {flag} {} is no file, of which each process has one",
                path.display()
            )));
        }
        if let (Some((flag, path)), true) = (stream, resuming.resume) {
            let path = path.display();
            return Err(usage(format_args!(
                "--resume: {flag} {path} is no file, of which a part would be left to go on with"
            )));
        }
        if stream.is_some() || outputs.is_empty() || (is_silent() && !resuming.out_parts) {
            let outputs = outputs.iter().map(|(_, path)| Ok(Written::Whole(Output::create(path)?)));
            return Ok((Self { outputs: outputs.collect::<Result<_>>()?, record: None }, Done::default()));
        }
        let record = beside(outputs[0].1, ".part.json");
        let parts: Vec<PathBuf> = outputs.iter().map(|(_, path)| beside(path, ".part")).collect();
        let written = parts.iter().chain([&record]).map(|path| ("the part of --out", Some(&**path)));
        let written: Vec<_> = outputs.iter().map(|&(flag, path)| (flag, Some(path))).chain(written).collect();
        spare_inputs(&written, inputs)?;
        let found = read(&record)?;
        if found.is_none() {
            refuse_foreign(&parts)?;
        }
        let (of, name) = (of()?, parts[0].display().to_string());
        let is_whole = parts.iter().all(|part| part.exists());
        let done = found.filter(|_| resuming.resume && is_whole);
        if let Some(done) = &done {
            check(done, &of, &parts)?;
        } else if resuming.resume {
            say(format_args!("note: {name}: there is nothing to go on with; begun anew"));
        }
        let files = parts.clone();
        let mut outputs =
            outputs.iter().zip(parts).map(|((_, path), part)| Part::open(path, part)).collect::<Result<Vec<_>>>()?;
        let kept =
            Kept { path: record, parts: files, of, rows: 0, latest: None, last: Instant::now(), cost: Duration::ZERO };
        let (kept, done) = if let Some(done) = done {
            for (output, &length) in outputs.iter_mut().zip(&done.lengths) {
                output.cut(length)?;
            }
            say(format_args!("note: {name}: {} rows are done", done.rows));
            let state = from_hex(&done.state).filter(|_| done.rows > 0);
            (Kept { rows: done.rows, ..kept }, Done { rows: done.rows, state })
        } else {
            // before the first byte, by which the part is known as this program's
            kept.write(0, vec![0; outputs.len()], &[])?;
            for output in &mut outputs {
                output.cut(0)?;
            }
            (kept, Done::default())
        };
        Ok((Self { outputs: outputs.into_iter().map(Written::Part).collect(), record: Some(kept) }, done))
    }

    /// Whether what is written can be gone on with.
    pub(crate) fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// Adds bytes to an output.
    pub(crate) fn add(&mut self, output: usize, bytes: &[u8]) -> Result<()> {
        match &mut self.outputs[output] {
            Written::Whole(output) => output.add(bytes),
            Written::Part(part) => part.file.write_all(bytes).with_context(|| part.unfinished.display().to_string()),
        }
    }

    /// Says that so many rows are done, which is recorded now and then; `state` is what is told in the end, so far.
    pub(crate) fn count(&mut self, rows: usize, state: impl FnOnce() -> Vec<u8>) -> Result<()> {
        if self.record.is_none() {
            return Ok(());
        }
        let lengths = self.parts().map(Part::length).collect::<Result<Vec<_>>>()?;
        let Some(kept) = &mut self.record else { return Ok(()) };
        kept.latest = Some((rows, lengths, state()));
        if kept.last.elapsed() < RARELY * kept.cost { Ok(()) } else { self.keep() }
    }

    /// Records what was counted last, if that is more than the record says.
    fn keep(&mut self) -> Result<()> {
        let begin = Instant::now();
        let Some((rows, lengths, state)) = self.record.as_mut().and_then(|kept| kept.latest.take()) else {
            return Ok(());
        };
        self.parts()
            .try_for_each(|part| part.file.sync_data().with_context(|| part.unfinished.display().to_string()))?;
        let Some(kept) = &mut self.record else { return Ok(()) };
        kept.write(rows, lengths, &state)?;
        (kept.rows, kept.last, kept.cost) = (rows, Instant::now(), begin.elapsed());
        Ok(())
    }

    fn parts(&mut self) -> impl Iterator<Item = &mut Part> {
        self.outputs.iter_mut().filter_map(|output| match output {
            Written::Part(part) => Some(part),
            Written::Whole(_) => None,
        })
    }

    /// The end of work that was stopped from outside, after a record of what is done.
    pub(crate) fn interrupt(mut self) -> anyhow::Error {
        if let Err(error) = self.keep() {
            return error;
        }
        let rows = self.record.as_ref().map_or(0, |kept| kept.rows);
        if rows > 0 {
            self.record = None;
        }
        interrupted(format_args!("interrupted after {rows} rows; the same command with --resume goes on"))
    }

    /// Puts the files, whole, in the place of older ones.
    pub(crate) fn finish(mut self) -> Result<()> {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Written::Whole(output) => output.finish()?,
                Written::Part(part) => part.finish()?,
            }
        }
        match self.record.take() {
            Some(kept) => std::fs::remove_file(&kept.path).with_context(|| kept.path.display().to_string()),
            None => Ok(()),
        }
    }
}

/// Work that fails is recorded as far as it came; before its first piece it leaves nothing.
impl Drop for Unfinished {
    fn drop(&mut self) {
        // where that fails, the last record stands
        let _ = self.keep();
        let Some(kept) = &self.record else { return };
        if kept.rows > 0 {
            let rows = kept.rows;
            say(format_args!(
                "note: {rows} rows are kept in {}; the same command with --resume goes on",
                kept.path.display()
            ));
            return;
        }
        for path in kept.parts.iter().chain([&kept.path]) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Part {
    /// Opens a part that nobody else writes.
    fn open(path: &Path, part: PathBuf) -> Result<Self> {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&part);
        let file = open.with_context(|| part.display().to_string())?;
        // a file system may have no locks
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(usage(format_args!("{}: another process is writing it", part.display())));
        }
        Ok(Self { path: path.to_owned(), unfinished: part, file })
    }

    fn cut(&mut self, length: u64) -> Result<()> {
        let cut = self.file.set_len(length).and_then(|()| self.file.seek(SeekFrom::Start(length)));
        cut.map(drop).with_context(|| self.unfinished.display().to_string())
    }

    fn length(&mut self) -> Result<u64> {
        self.file.stream_position().with_context(|| self.unfinished.display().to_string())
    }

    fn finish(self) -> Result<()> {
        let named = || {
            self.file.sync_all()?;
            std::fs::rename(&self.unfinished, &self.path)?;
            // the rename itself must reach the disk; not every platform can open a folder
            if let Some(Ok(folder)) = self.path.parent().map(File::open) {
                let _ = folder.sync_all();
            }
            Ok::<(), std::io::Error>(())
        };
        named().with_context(|| self.path.display().to_string())
    }
}

impl Kept {
    fn write(&self, rows: usize, lengths: Vec<u64>, state: &[u8]) -> Result<()> {
        let state = to_hex(state);
        let record = Record { of: self.of.clone(), rows, lengths, state };
        Ok(write_atomically(&self.path, &serde_json::to_vec(&record)?)?)
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn read(path: &Path) -> Result<Option<Record>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let record = serde_json::from_slice::<Record>(&bytes).ok().filter(|record| from_hex(&record.state).is_some());
    let foreign = || usage(format_args!("{}: no record of unfinished work; move it elsewhere", path.display()));
    record.map(Some).ok_or_else(foreign)
}

/// Refuses to write into parts of which nothing says whose they are.
fn refuse_foreign(parts: &[PathBuf]) -> Result<()> {
    let is_foreign = |part: &&PathBuf| std::fs::metadata(part).is_ok_and(|found| found.len() > 0 || !found.is_file());
    let foreign: Vec<_> = parts.iter().filter(is_foreign).map(|part| part.display().to_string()).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    Err(usage(format_args!("{}: there is no record beside it; move it elsewhere", foreign.join(", "))))
}

/// Refuses to go on with parts of other work, or with parts that have lost something; all that differs is named.
fn check(done: &Record, of: &Nature, parts: &[PathBuf]) -> Result<()> {
    let missing = String::from("nothing");
    let names: std::collections::BTreeSet<_> = done.of.keys().chain(of.keys()).collect();
    let mut problems: Vec<String> = names
        .into_iter()
        .map(|name| (name, done.of.get(name).unwrap_or(&missing), of.get(name).unwrap_or(&missing)))
        .filter(|(_, before, now)| before != now)
        .map(|(name, before, now)| format!("{name}: {before} then, {now} now"))
        .collect();
    for (i, part) in parts.iter().enumerate() {
        let length = std::fs::metadata(part).with_context(|| part.display().to_string())?.len();
        if done.lengths.get(i).is_none_or(|&recorded| recorded > length) {
            problems.push(format!("{} is shorter than its record says", part.display()));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let (part, problems) = (parts[0].display(), problems.join("\n  "));
    Err(usage(format_args!("--resume: {part} is of other work; without --resume it is begun anew\n  {problems}")))
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes = text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?));
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_again() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = to_hex(&bytes);
        assert_eq!(from_hex(&text), Some(bytes));
        assert!(from_hex("0").is_none() && from_hex("0g").is_none());
    }
}
