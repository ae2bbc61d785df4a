//! Files that are cut short, changed, empty, or announce what they do not hold: always an error or a table, never a panic, and
//! no memory for what is not there.

use arrow_array::types::Int32Type;
use arrow_array::{DictionaryArray, Float64Array, Int32Array, NullArray, RecordBatch, StringArray};
use arrow_ipc::CompressionType;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use resflow::data::{DataError, ReadOptions, TextColumns};

use super::super::page::Announced;
use super::{array, arrow, batch, files, message, parquet, parquet_file, read, stream};

fn small() -> RecordBatch {
    let numbers: Vec<Option<f64>> = (0..40).map(|i| (i % 7 != 3).then(|| f64::from(i) * 0.37)).collect();
    let words: Vec<&str> = (0..40).map(|i| ["x", "yy", "zzz"][i % 3]).collect();
    batch(vec![
        ("a", array(Float64Array::from(numbers))),
        ("b", array(Int32Array::from_iter_values((0..40).map(|i| i * i % 11)))),
        ("word", array(StringArray::from(words))),
    ])
}

fn options() -> ReadOptions {
    let missing = resflow::data::Missing::DropRows;
    ReadOptions { drop: vec!["word".to_owned()], missing, ..ReadOptions::default() }
}

/// The same with words and a dictionary as categories.
fn with_words() -> (RecordBatch, ReadOptions) {
    let words: Vec<&str> = (0..40).map(|i| ["x", "yy", "zzz"][i % 3]).collect();
    let dictionary = words.iter().copied().collect::<DictionaryArray<Int32Type>>();
    let table = batch(vec![
        ("a", array(Float64Array::from((0..40).map(f64::from).collect::<Vec<_>>()))),
        ("word", array(StringArray::from(words))),
        ("kind", array(dictionary)),
    ]);
    (table, ReadOptions { text: TextColumns::Categories, ..ReadOptions::default() })
}

#[test]
fn damaged_words_are_errors() {
    let (table, options) = with_words();
    for (what, bytes) in files(&table) {
        for part in 1..20 {
            match read(&bytes[..bytes.len() * part / 20], &options) {
                Ok(_) | Err(DataError::Empty) => assert_eq!(what, "a stream", "{part}/20"),
                Err(error) => assert!(error.to_string().contains("damaged or cut short"), "{what}, {part}/20: {error}"),
            }
        }
        for place in (6..bytes.len()).step_by(3) {
            let mut changed = bytes.clone();
            changed[place] ^= [0x01, 0x80, 0xff, 0x10][place % 4];
            // either is right, and neither is a panic
            if let Err(error) = read(&changed, &options) {
                let error = error.to_string();
                assert!(!error.is_empty() && error.len() < 1500, "{what}, byte {place}: {error}");
            }
        }
    }
}

#[test]
fn files_that_are_cut_short() {
    let table = small();
    for (what, bytes) in files(&table) {
        assert_eq!(read(&bytes, &options()).expect("a table").table.width(), 2, "{what}");
        for part in 1..20 {
            match read(&bytes[..bytes.len() * part / 20], &options()) {
                // a stream may end behind any of its messages
                Ok(_) | Err(DataError::Empty) => assert_eq!(what, "a stream", "{part}/20"),
                Err(error) => {
                    assert!(error.to_string().contains("damaged or cut short"), "{what}, {part}/20: {error}");
                }
            }
        }
    }
}

#[test]
fn files_of_which_a_byte_is_changed() {
    for (what, bytes) in files(&small()) {
        for place in (6..bytes.len()).step_by(3) {
            let mut changed = bytes.clone();
            changed[place] ^= [0x01, 0x80, 0xff, 0x10][place % 4];
            // either is right, and neither is a panic
            if let Err(error) = read(&changed, &options()) {
                let error = error.to_string();
                assert!(!error.is_empty() && error.len() < 1500, "{what}, byte {place}: {error}");
            }
        }
    }
}

#[test]
fn files_of_nothing() {
    let rows = small().slice(0, 0);
    let columns = RecordBatch::new_empty(std::sync::Arc::new(arrow_schema::Schema::empty()));
    for bytes in [arrow(&rows, None), stream(&rows), parquet(&rows)] {
        assert!(matches!(read(&bytes, &options()), Err(DataError::Empty)));
    }
    for bytes in [arrow(&columns, None), stream(&columns)] {
        assert!(matches!(read(&bytes, &ReadOptions::default()), Err(DataError::TableShape { .. })));
    }
    let words = super::names(&["a", "b", "word"]);
    let none = ReadOptions { drop: words, ..ReadOptions::default() };
    assert!(matches!(read(&parquet(&small()), &none), Err(DataError::TableShape { .. })));
}

/// The places of some bytes.
fn places(bytes: &[u8], wanted: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|&place| bytes[place..].starts_with(wanted)).collect()
}

#[test]
fn rows_that_are_only_announced() {
    // a column of nothing takes no bytes, whatever its length
    let endless = batch(vec![("none", array(NullArray::new(1 << 40)))]);
    for bytes in [arrow(&endless, None), stream(&endless)] {
        assert!(bytes.len() < 10_000);
        let error = message(&bytes, &ReadOptions::default());
        assert!(error.contains("more than 200 times as large"), "{error}");
    }
    // num_rows, 40, before the list of the groups
    let bytes = parquet(&small());
    let &[place] = &places(&bytes, &[0x16, 80, 0x19])[..] else { panic!("one place in the metadata") };
    let mut hostile = bytes[..=place].to_vec();
    hostile.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1]);
    hostile.extend(&bytes[place + 2..]);
    let length = hostile.len() - 8;
    let metadata = u32::from_le_bytes(hostile[length..length + 4].try_into().expect("four bytes")) + 6;
    hostile[length..length + 4].copy_from_slice(&metadata.to_le_bytes());
    let error = message(&hostile, &options());
    assert!(error.contains("more than 200 times as large"), "{error}");
}

#[test]
fn buffers_that_announce_more_than_they_hold() {
    let table = batch(vec![("a", array(Float64Array::from(vec![0.0; 1000])))]);
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let mut bytes = arrow(&table, Some(compression));
        let sizes = places(&bytes, &8000_i64.to_le_bytes());
        assert!(!sizes.is_empty());
        for place in sizes {
            bytes[place..place + 8].copy_from_slice(&(1_i64 << 45).to_le_bytes());
        }
        let error = message(&bytes, &ReadOptions::default());
        assert!(error.contains("more than 200 times as large"), "{error}");
    }
}

/// A page under gzip that becomes more than its header says, in either version of pages: refused before it is kept.
#[test]
fn pages_under_gzip_that_announce_too_little() {
    let table = batch(vec![("a", array(Int32Array::from(vec![7; 400_000])))]);
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let properties = WriterProperties::builder()
            .set_compression(Compression::GZIP(GzipLevel::default()))
            .set_writer_version(version)
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::PLAIN)
            .set_data_page_size_limit(1 << 30)
            .set_data_page_row_count_limit(1 << 30)
            .set_write_batch_size(1 << 20)
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, table.schema(), Some(properties)).expect("a writer");
        writer.write(&table).expect("a table");
        writer.close().expect("a file");
        assert_eq!(read(&bytes, &ReadOptions::default()).expect("as it was written").table.rows(), 400_000);
        // the first header: the type of the page, and what it becomes, in four bytes that now say 200
        let [0x15, _, 0x15, first, _, _, last] = bytes[4..11] else { panic!("{:?}", &bytes[..16]) };
        assert!(first >= 0x80 && (1..0x80).contains(&last), "{:?}", &bytes[..16]);
        bytes[7..11].copy_from_slice(&[0x90, 0x83, 0x80, 0x00]);
        let error = message(&bytes, &ReadOptions::default());
        assert!(error.contains("the page becomes more than it says"), "{version:?}: {error}");
    }
}

#[test]
fn pages_are_what_their_headers_announce() {
    let table = batch(vec![
        ("a", array(Float64Array::from_iter_values((0..5000).map(|i| f64::from(i) * 0.1)))),
        ("b", array(Int32Array::from_iter_values((0..5000).map(|i| i % 9)))),
        ("c", array(StringArray::from_iter_values((0..5000).map(|i| format!("word {}", i % 100))))),
    ]);
    let (gzip, zstd) = (Compression::GZIP(GzipLevel::default()), Compression::ZSTD(ZstdLevel::default()));
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, zstd] {
        let (bytes, metadata) = parquet_file(&table, compression);
        let bytes = Bytes::from(bytes);
        for group in metadata.row_groups() {
            let announced = |column: usize| Announced::of(&bytes, group.column(column)).expect("pages");
            for column in 0..3 {
                let expected = group.column(column).uncompressed_size();
                assert_eq!(announced(column).bytes, expected as u64, "{compression:?}");
            }
            assert_eq!((announced(1).entries, announced(2).entries), (9, 100), "{compression:?}");
        }
    }
}
