//! Parquet (<https://parquet.apache.org/docs/file-format/>), of which only the chosen columns are read.

use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;
use resflow::data::{Note, ReadOptions, Reading};

use super::page::Announced;
use super::table::{Table, expands, invalid, most};

/// Rows that are decoded at a time.
const BATCH: usize = 1 << 13;

/// Reads a file, or its bytes.
pub(super) fn read<R: ChunkReader + 'static>(source: R, options: &ReadOptions) -> Result<Reading> {
    let mut file = Opened::new(source, options, None)?;
    for batch in file.batches.by_ref() {
        file.table.add(&batch?, file.bytes)?;
    }
    let (rows, found) = (file.rows, file.table.rows());
    if found != rows {
        bail!("it has {found} rows where {rows} were announced");
    }
    file.table.finish()
}

/// A file that was checked, and its batches of rows.
struct Opened {
    table: Table,
    batches: ParquetRecordBatchReader,
    /// The rows that it announces, and those of each row group.
    rows: usize,
    groups: Vec<usize>,
    bytes: u64,
}

impl Opened {
    /// Opens a file, or some row groups of it.
    fn new<R: ChunkReader + 'static>(source: R, options: &ReadOptions, part: Option<Range<usize>>) -> Result<Self> {
        let bytes = source.len();
        let file = ArrowReaderMetadata::load(&source, ArrowReaderOptions::new())?;
        let rows = file.metadata().file_metadata().num_rows();
        let rows = usize::try_from(rows).context("it announces less than no rows")?;
        let roots = file.parquet_schema().root_schema().get_fields().len();
        if file.schema().fields().len() != roots {
            bail!("its two schemas differ");
        }
        let table = Table::new(file.schema(), options)?;
        table.check(rows, bytes)?;
        let mask = ProjectionMask::roots(file.parquet_schema(), table.places().iter().copied());
        check_pages(&source, file.metadata(), &mask)?;
        let groups = file.metadata().row_groups().iter().map(|group| usize::try_from(group.num_rows()));
        let groups: Vec<usize> = groups.collect::<Result<_, _>>().context("a row group announces less than no rows")?;
        if groups.iter().try_fold(0, |sum: usize, rows| sum.checked_add(*rows)) != Some(rows) {
            bail!("its row groups have other rows than it announces");
        }
        let rows = part.as_ref().map_or(rows, |part| groups[part.clone()].iter().sum());
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(source, file);
        if let Some(part) = part {
            builder = builder.with_row_groups(part.collect());
        }
        let batches = builder.with_projection(mask).with_batch_size(BATCH).build()?;
        Ok(Self { table, batches, rows, groups, bytes })
    }
}

/// Rows of numbers, batch by batch.
pub(super) struct Rows(Opened);

impl Rows {
    /// Opens a file, or some row groups of it; `None` if columns that were chosen are no numbers, or may be an index.
    pub(super) fn open<R: ChunkReader + 'static>(
        source: R,
        options: &ReadOptions,
        part: Option<Range<usize>>,
    ) -> Result<Option<Self>> {
        let opened = Opened::new(source, options, part)?;
        Ok(opened.table.is_plain(options).then_some(Self(opened)))
    }

    /// The rows of each row group of the whole file.
    pub(super) fn groups(&self) -> &[usize] {
        &self.0.groups
    }

    pub(super) fn rows(&self) -> usize {
        self.0.rows
    }

    pub(super) fn width(&self) -> usize {
        self.0.table.places().len()
    }

    /// The names of the columns, in the order of the values.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.table.names()
    }

    /// The cells of each column that were rounded so far.
    pub(super) fn rounded(&self) -> &[usize] {
        self.0.table.rounded()
    }

    /// Counts cells that others have rounded.
    pub(super) fn add_rounded(&mut self, cells: impl Iterator<Item = usize>) {
        self.0.table.add_rounded(cells);
    }

    /// What was decided so far.
    pub(super) fn notes(&self) -> Vec<Note> {
        self.0.table.notes()
    }

    /// The next rows, row by row, NaN where a value is missing.
    pub(super) fn next_batch(&mut self) -> Result<Option<Vec<f64>>> {
        let Opened { table, batches, rows, bytes, .. } = &mut self.0;
        match batches.next() {
            Some(batch) => {
                table.add(&batch?, *bytes)?;
                Ok(Some(table.take_values()))
            }
            None if table.rows() == *rows => Ok(None),
            None => bail!("it has {} rows where {rows} were announced", table.rows()),
        }
    }
}

/// Refuses chosen columns in a compression that is not built in, by its name, and ones that would become too large.
fn check_pages(source: &impl ChunkReader, metadata: &ParquetMetaData, mask: &ProjectionMask) -> Result<()> {
    let mut memory = 0_u64;
    for group in metadata.row_groups() {
        let chosen = group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
        for (_, chunk) in chosen {
            let foreign = match chunk.compression() {
                Compression::BROTLI(_) => Some("brotli"),
                Compression::LZO => Some("LZO"),
                _ => None,
            };
            if let Some(name) = foreign {
                let said = "which is not read: write it again, compressed by snappy or zstd";
                return Err(invalid(format!("the file is a Parquet file compressed by {name}, {said}")).into());
            }
            let pages = Announced::of(source, chunk)
                .context("the header of a page cannot be read, or the page becomes more than it says")?;
            memory = memory.saturating_add(pages.memory());
        }
    }
    if memory > most(source.len()) { Err(expands()) } else { Ok(()) }
}
