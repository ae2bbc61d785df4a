//! Tables and images that stay in their files: more numbers than a fit or a score should hold in memory.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::Result;
use resflow::checkpoint::Archive;
use resflow::config::ModelConfig;
use resflow::data::image::{ImageFiles, OpenedImages, looks_like_images};
use resflow::data::{DataError, ImageRows, LargeTable, Note, NpyRows, ReadOptions, StoredRows, Table, Values};
use resflow::error::Error;
use resflow::group::{Group, collective};
use resflow::train::is_on_large_table;

use super::part::{Part, Split};
use super::{Data, check_plain, check_size, reading};
use crate::cluster;
#[cfg(feature = "parquet")]
use crate::columnar::{Kind, unpack};
use crate::failure::{say, usage};

/// 256 MiB in double precision, and several times as much with what is made of them.
const LARGE: usize = 1 << 25;
/// The numbers in double precision that take as much memory as a byte of an image, one over this.
const BYTES: usize = 8;
const HEADING: &str = "Data that are larger than memory";

/// When a table is large.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Largeness {
    /// Leave a table of more numbers (rows times columns) than this in its .npy file, and read rows as they are needed; Parquet is
    /// unpacked into a temporary file for it. Images of more than eight bytes for each of these numbers stay in their files, of
    /// which IDX under gzip is unpacked
    #[arg(long, value_name = "NUMBERS", default_value_t = LARGE, help_heading = HEADING)]
    pub(crate) large: usize,
}

impl Default for Largeness {
    fn default() -> Self {
        Self { large: LARGE }
    }
}

/// Rows of a file that are read as they are needed.
pub(crate) type Rows = Box<dyn StoredRows>;

impl Largeness {
    fn holds(self, rows: usize, width: usize) -> bool {
        rows.saturating_mul(width) > self.large
    }

    fn holds_bytes(self, bytes: usize) -> bool {
        bytes.div_ceil(BYTES) > self.large
    }

    /// The option as it is typed, with a space before, unless it is the default.
    pub(crate) fn flag(self) -> String {
        if self.large == LARGE { String::new() } else { format!(" --large {}", self.large) }
    }

    /// The same for a run that goes on: its table is large if it was. `state` reads what it left, if it left any; of a group rank 0 alone
    /// knows of runs, and tells the others.
    pub(crate) fn as_begun(self, state: impl FnOnce() -> Option<Archive>, group: Option<&dyn Group>) -> Result<Self> {
        let begun = || state().map(|state| is_on_large_table(&state));
        let begun = match group {
            None => begun(),
            Some(group) => {
                let own = if group.rank() == 0 { begun() } else { None };
                let told = collective::broadcast(group, own.map(u8::from).into_iter().collect())?;
                told.first().map(|&large| large == 1)
            }
        };
        Ok(match begun {
            Some(large) => Self { large: if large { 0 } else { usize::MAX } },
            None => self,
        })
    }

    /// The rows of a file that is large and whose rows can be read as they are needed; nothing of any other. The processes of a group, all of
    /// which come here, divide the unpacking of a Parquet file.
    pub(crate) fn open(self, path: &Path, options: &ReadOptions, group: Option<&dyn Group>) -> Result<Option<Rows>> {
        let name = path.display().to_string();
        let failed = |error| reading::refused(error, options.model.as_ref());
        // a pipe can be read but once
        let Some(length) = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|found| found.len())
        else {
            return Ok(None);
        };
        let mut head = [0; 6];
        let begins = File::open(path).and_then(|mut file| file.read_exact(&mut head));
        let is_array = head == *b"\x93NUMPY";
        // of an array each number has a byte at least
        if begins.is_err() || (is_array && length <= self.large as u64) {
            return Ok(None);
        }
        let (rows, notes, where_to) = if is_array {
            match NpyRows::open(path, options) {
                Ok(rows) => {
                    let notes = rows.notes().to_vec();
                    (Box::new(rows) as Rows, notes, "which stay in the file and are read as they are needed")
                }
                Err(DataError::File { path, source }) => match *source {
                    // images are no rows of numbers
                    DataError::NpyShape { .. } => return Ok(None),
                    DataError::Options(why) => {
                        say(format_args!("note: {name} is read into memory: {why}"));
                        return Ok(None);
                    }
                    source => return Err(failed(DataError::File { path, source: source.into() })),
                },
                Err(error) => return Err(failed(error)),
            }
        } else {
            let unpacked = self.unpacked(path, &head, options, group).map_err(|error| match error {
                Error::Data(error) => failed(error),
                error => error.into(),
            });
            match unpacked? {
                Some((rows, notes)) => (rows, notes, "unpacked into a temporary file (TMPDIR is its folder)"),
                None => return Ok(None),
            }
        };
        if !self.holds(rows.rows(), rows.width()) {
            return Ok(None);
        }
        reading::tell(&name, &notes);
        let (n, d) = (rows.rows(), rows.width());
        say(format_args!("note: {name}: {n} rows of {d} numbers, {where_to}"));
        Ok(Some(rows))
    }

    /// The images of a path that are large and can be read by their numbers; nothing of any other. Of a data set they are those of
    /// a part, the test images where there are any and nothing else is asked for; the processes of a group divide the first look at pictures.
    pub(crate) fn open_images(
        self,
        path: &Path,
        options: &ReadOptions,
        part: Option<Split>,
        group: Option<&dyn Group>,
    ) -> Result<Option<ImageFiles>> {
        let there = std::fs::metadata(path).is_ok_and(|found| found.is_file() || found.is_dir());
        if !there || !looks_like_images(path) {
            return Ok(None);
        }
        let name = path.display().to_string();
        check_plain(&name, options)?;
        let failed = |error| reading::refused(error, options.model.as_ref());
        let Some(found) = ImageFiles::find(path, options.image_size).map_err(failed)? else { return Ok(None) };
        let (training, test) = found.most_bytes().map_err(failed)?;
        let part = match part {
            Some(Split::Test) if test.is_none() => {
                return Err(usage(format_args!("--split test: {name} has no test images")));
            }
            Some(part) => part,
            None if test.is_some() => Split::Test,
            None => Split::Train,
        };
        let most = match part {
            Split::Train => training,
            Split::Test => test.unwrap_or(training),
            Split::All => training.saturating_add(test.unwrap_or(0)),
        };
        if !self.holds_bytes(most) {
            return Ok(None);
        }
        let mut opened = found.open(group).map_err(|error| match error {
            Error::Data(error) => failed(error),
            error => error.into(),
        })?;
        let notes: Vec<Note> = std::mem::take(&mut opened.notes).into_iter().map(Note::Images).collect();
        let files = match (part, opened) {
            (Split::Test, OpenedImages { test: Some(test), .. }) => test,
            (Split::All, opened) => opened.all(),
            (_, opened) => opened.training,
        };
        let Some(ImageRows { size, .. }) = files.images() else { return Ok(None) };
        if !self.holds_bytes(files.rows().saturating_mul(files.width())) {
            return Ok(None);
        }
        reading::tell(&name, &notes);
        let count = files.rows();
        say(format_args!(
            "note: {name}: {count} images of {size}, which stay in their files and are read as they are needed"
        ));
        Ok(Some(files))
    }

    /// The same for a model of images, at most so many of them.
    pub(crate) fn open_for(
        self,
        path: &Path,
        options: &ReadOptions,
        (part, most): (Part, Option<u32>),
        model: &ModelConfig,
    ) -> Result<Option<ImageFiles>> {
        let Some(images) = self.open_images(path, options, part.split, cluster::group().as_deref())? else {
            return Ok(None);
        };
        if let Some(ImageRows { size, .. }) = images.images() {
            check_size(size, &path.display().to_string(), model)?;
        }
        Ok(Some(match most {
            Some(most) => images.first(most as usize),
            None => images,
        }))
    }

    /// The rows of a Parquet file.
    #[cfg(feature = "parquet")]
    fn unpacked(
        self,
        path: &Path,
        head: &[u8],
        options: &ReadOptions,
        group: Option<&dyn Group>,
    ) -> Result<Option<(Rows, Vec<Note>)>, Error> {
        if Kind::of(head) != Some(Kind::Parquet) {
            return Ok(None);
        }
        let found = unpack(path, options, |rows, width| self.holds(rows, width), group);
        let found = found.map_err(|error| match error {
            Error::Data(source) => DataError::File { path: path.to_owned(), source: source.into() }.into(),
            error => error,
        })?;
        Ok(found.map(|(rows, notes)| (Box::new(rows) as Rows, notes)))
    }

    #[cfg(not(feature = "parquet"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "with the feature it unpacks, and may fail")]
    fn unpacked(
        self,
        _: &Path,
        _: &[u8],
        _: &ReadOptions,
        _: Option<&dyn Group>,
    ) -> Result<Option<(Rows, Vec<Note>)>, Error> {
        Ok(None)
    }

    /// The data of a fit, in which a large table is divided, shuffled and standardised as one, wherever its rows are; images likewise.
    pub(crate) fn data(self, data: Data, group: Option<&dyn Group>) -> Result<Data> {
        let Data::Stored(opened) = data else { return Ok(data) };
        let samples = opened.data.samples();
        let plain = samples.weights().is_none() && samples.context_width().is_none() && opened.dropped.is_empty();
        let large = match samples.values() {
            Values::Images(set) => self.holds_bytes(set.bytes().len()) && set.len() > 1,
            // numbers between 0 and 1 become images later
            Values::Tabular(table) => {
                opened.image_size.is_none() && self.holds(table.rows(), table.width()) && is_complete(table)
            }
        };
        if !(plain && large) {
            return Ok(Data::Stored(opened));
        }
        match opened.data.into_values() {
            Values::Tabular(table) => scan(Box::new(table), group),
            Values::Images(set) => scan(Box::new(set), group),
        }
    }
}

fn is_complete(table: &Table) -> bool {
    !table.values().iter().any(|v| v.is_nan())
}

/// Reads all rows once; each process of a group reads its part.
pub(crate) fn scan(rows: Rows, group: Option<&dyn Group>) -> Result<Data> {
    Ok(Data::Large(match group {
        Some(group) => LargeTable::new_together(rows, group)?,
        None => LargeTable::new(rows)?,
    }))
}
