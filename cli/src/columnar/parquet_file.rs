//! Parquet (<https://parquet.apache.org/docs/file-format/>), of which only the chosen columns are read.

use anyhow::{Context as _, Result, bail};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;
use resflow::data::{ReadOptions, Reading};

use super::table::{Table, invalid};

/// Rows that are decoded at a time.
const BATCH: usize = 1 << 13;

/// Reads a file, or its bytes.
pub(super) fn read<R: ChunkReader + 'static>(source: R, options: &ReadOptions) -> Result<Reading> {
    let bytes = source.len();
    let builder = ParquetRecordBatchReaderBuilder::try_new(source)?;
    let rows = builder.metadata().file_metadata().num_rows();
    let rows = usize::try_from(rows).context("it announces less than no rows")?;
    let schema = builder.schema();
    if schema.fields().len() != builder.parquet_schema().root_schema().get_fields().len() {
        bail!("its two schemas differ");
    }
    let mut table = Table::new(schema, options)?;
    table.check(rows, bytes)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), table.places().iter().copied());
    check_compression(builder.metadata(), &mask)?;
    let batches = builder.with_projection(mask).with_batch_size(BATCH).build()?;
    for batch in batches {
        table.add(&batch?, bytes)?;
    }
    if table.rows() != rows {
        bail!("it has {} rows where {rows} were announced", table.rows());
    }
    table.finish()
}

/// Refuses columns in a compression that is not built in, by its name.
fn check_compression(metadata: &ParquetMetaData, mask: &ProjectionMask) -> Result<()> {
    for group in metadata.row_groups() {
        for (leaf, chunk) in group.columns().iter().enumerate() {
            let name = match chunk.compression() {
                Compression::BROTLI(_) => "brotli",
                Compression::LZO => "LZO",
                _ => continue,
            };
            if mask.leaf_included(leaf) {
                let said = "which is not read: write it again, compressed by snappy or zstd";
                return Err(invalid(format!("the file is a Parquet file compressed by {name}, {said}")).into());
            }
        }
    }
    Ok(())
}
