//! Tables into Parquet and Arrow files: doubles, and words where there are some.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{Cells, Column, Kind};

/// The bytes of a file of columns of one length.
pub(crate) fn write(kind: Kind, columns: &[Column]) -> Result<Vec<u8>> {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.iter().map(field).unzip();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
    let mut bytes = Vec::new();
    match kind {
        Kind::Parquet => {
            let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties))?;
            writer.write(&batch)?;
            writer.close()?;
        }
        Kind::ArrowFile => {
            let mut writer = FileWriter::try_new(&mut bytes, &schema)?;
            writer.write(&batch)?;
            writer.finish()?;
        }
        Kind::ArrowStream => {
            let mut writer = StreamWriter::try_new(&mut bytes, &schema)?;
            writer.write(&batch)?;
            writer.finish()?;
        }
    }
    Ok(bytes)
}

/// A column with its type: a row without a number has NaN, one without a word nothing.
fn field(column: &Column) -> (Field, ArrayRef) {
    let numbers = |cells: Vec<f64>| Arc::new(Float64Array::from(cells)) as ArrayRef;
    let (kind, array) = match &column.cells {
        Cells::Numbers(cells) => (DataType::Float64, numbers(cells.clone())),
        Cells::Counts(cells) => {
            let doubles = cells.iter().map(|count| count.map_or(f64::NAN, |count| count as f64));
            (DataType::Float64, numbers(doubles.collect()))
        }
        Cells::Words(cells) => {
            let words: StringArray = cells.iter().map(Option::as_deref).collect();
            (DataType::Utf8, Arc::new(words) as ArrayRef)
        }
    };
    let nullable = kind == DataType::Utf8;
    (Field::new(column.name.as_str(), kind, nullable), array)
}
