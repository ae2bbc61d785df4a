//! Parquet (<https://parquet.apache.org/docs/file-format/>), of which only the chosen columns are read.

use anyhow::{Context as _, Result, bail};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;
use resflow::data::{ReadOptions, Reading};

use super::page::Announced;
use super::table::{Table, expands, invalid, most};

/// Rows that are decoded at a time.
const BATCH: usize = 1 << 13;

/// Reads a file, or its bytes.
pub(super) fn read<R: ChunkReader + 'static>(source: R, options: &ReadOptions) -> Result<Reading> {
    let bytes = source.len();
    let file = ArrowReaderMetadata::load(&source, ArrowReaderOptions::new())?;
    let rows = file.metadata().file_metadata().num_rows();
    let rows = usize::try_from(rows).context("it announces less than no rows")?;
    let roots = file.parquet_schema().root_schema().get_fields().len();
    if file.schema().fields().len() != roots {
        bail!("its two schemas differ");
    }
    let mut table = Table::new(file.schema(), options)?;
    table.check(rows, bytes)?;
    let mask = ProjectionMask::roots(file.parquet_schema(), table.places().iter().copied());
    check_pages(&source, file.metadata(), &mask)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(source, file);
    for batch in builder.with_projection(mask).with_batch_size(BATCH).build()? {
        table.add(&batch?, bytes)?;
    }
    if table.rows() != rows {
        bail!("it has {} rows where {rows} were announced", table.rows());
    }
    table.finish()
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
