//! Tables by columns in memory: every type, and files that are damaged or announce what they do not hold.

mod damaged;
mod types;

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;
use resflow::data::{DataError, ReadOptions, Reading};

use super::{Input, Kind};

/// Columns that may lack values.
fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let nullable = columns.into_iter().map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(nullable).expect("columns of one length")
}

/// A Parquet file of two groups of rows, and what its end says of it.
fn parquet_file(batch: &RecordBatch, compression: Compression) -> (Vec<u8>, ParquetMetaData) {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).expect("a writer");
    let first = batch.num_rows() / 2;
    for part in [batch.slice(0, first), batch.slice(first, batch.num_rows() - first)] {
        writer.write(&part).expect("memory");
        writer.flush().expect("memory");
    }
    let metadata = writer.close().expect("memory");
    (bytes, metadata)
}

fn parquet(batch: &RecordBatch) -> Vec<u8> {
    parquet_file(batch, Compression::SNAPPY).0
}

fn arrow(batch: &RecordBatch, compression: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(compression).expect("built in");
    let mut bytes = Vec::new();
    let mut writer = FileWriter::try_new_with_options(&mut bytes, &batch.schema(), options).expect("a writer");
    writer.write(batch).expect("memory");
    writer.finish().expect("memory");
    drop(writer);
    bytes
}

fn stream(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema()).expect("a writer");
    writer.write(batch).expect("memory");
    writer.finish().expect("memory");
    drop(writer);
    bytes
}

/// A table in every format and compression that is read.
fn files(batch: &RecordBatch) -> Vec<(String, Vec<u8>)> {
    let gzip = Compression::GZIP(GzipLevel::default());
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let parquet = [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, Compression::LZ4_RAW, zstd];
    let arrow_file = [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)];
    let parquet = parquet.into_iter().map(|c| (format!("Parquet, {c:?}"), parquet_file(batch, c).0));
    let arrow_file = arrow_file.into_iter().map(|c| (format!("Arrow, {c:?}"), arrow(batch, c)));
    parquet.chain(arrow_file).chain([("a stream".to_owned(), stream(batch))]).collect()
}

fn read(bytes: &[u8], options: &ReadOptions) -> Result<Reading, DataError> {
    let kind = Kind::of(bytes).expect("a format that is known");
    super::read(kind, Input::Stream(Box::new(Cursor::new(bytes.to_vec()))), "test", options)
}

fn message(bytes: &[u8], options: &ReadOptions) -> String {
    read(bytes, options).expect_err("an error").to_string()
}

/// An array as one of any type.
fn array(array: impl arrow_array::Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn formats_are_told_by_their_first_bytes() {
    assert_eq!(Kind::of(b"PAR1\x15\x04"), Some(Kind::Parquet));
    assert_eq!(Kind::of(b"ARROW1\0\0"), Some(Kind::ArrowFile));
    assert_eq!(Kind::of(b"\xff\xff\xff\xff\x70\0"), Some(Kind::ArrowStream));
    for other in [&b""[..], b"PAR", b"a,b\n1,2", b"FEA1", b"\xff\xfea\0"] {
        assert_eq!(Kind::of(other), None, "{other:?}");
    }
}
