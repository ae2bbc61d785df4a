//! What columns may hold, and which of them are read.

use std::sync::Arc;

use arrow_array::types::{ArrowPrimitiveType, Float16Type, Int32Type};
use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, Decimal32Array, Decimal64Array, Decimal128Array, Decimal256Array,
    DictionaryArray, DurationSecondArray, Float16Array, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array,
    Int64Array, LargeStringArray, ListArray, NullArray, RecordBatch, StringArray, StringViewArray,
    TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow_buffer::i256;
use parquet::basic::Compression;
use resflow::data::{Missing, ModelColumns, Note, ReadOptions, TextColumns};

use super::{array, batch, files, message, names, parquet, parquet_file, read};

type Half = <Float16Type as ArrowPrimitiveType>::Native;

/// A column of every type of numbers, with what is in it.
fn numbers() -> Vec<(&'static str, ArrayRef, [f64; 3])> {
    let halves = [1.5, -2.0, 0.25].map(Half::from_f32).to_vec();
    let decimals = [150, -1, 7_000_000];
    let of_decimals = [1.5, -0.01, 70_000.0];
    let wide = decimals.map(i256::from_i128).to_vec();
    vec![
        ("i8", array(Int8Array::from(vec![-128, 0, 127])), [-128.0, 0.0, 127.0]),
        ("i16", array(Int16Array::from(vec![-300, 2, 3])), [-300.0, 2.0, 3.0]),
        ("i32", array(Int32Array::from(vec![-70_000, 5, 6])), [-70_000.0, 5.0, 6.0]),
        ("i64", array(Int64Array::from(vec![1 << 40, -1, 8])), [1_099_511_627_776.0, -1.0, 8.0]),
        ("u8", array(UInt8Array::from(vec![255, 1, 2])), [255.0, 1.0, 2.0]),
        ("u16", array(UInt16Array::from(vec![65_535, 1, 3])), [65_535.0, 1.0, 3.0]),
        ("u32", array(UInt32Array::from(vec![u32::MAX, 1, 4])), [4_294_967_295.0, 1.0, 4.0]),
        ("u64", array(UInt64Array::from(vec![1 << 63, 1, 5])), [9_223_372_036_854_775_808.0, 1.0, 5.0]),
        ("f16", array(Float16Array::from(halves)), [1.5, -2.0, 0.25]),
        ("f32", array(Float32Array::from(vec![0.1, 2.0, 3.0])), [f64::from(0.1_f32), 2.0, 3.0]),
        ("f64", array(Float64Array::from(vec![0.1, -0.0, 1e300])), [0.1, -0.0, 1e300]),
        (
            "d32",
            decimal(Decimal32Array::from(decimals.map(|d| d as i32).to_vec()).with_precision_and_scale(9, 2)),
            of_decimals,
        ),
        (
            "d64",
            decimal(Decimal64Array::from(decimals.map(|d| d as i64).to_vec()).with_precision_and_scale(12, 2)),
            of_decimals,
        ),
        ("d128", decimal(Decimal128Array::from(decimals.to_vec()).with_precision_and_scale(30, 2)), of_decimals),
        ("d256", decimal(Decimal256Array::from(wide).with_precision_and_scale(50, 2)), of_decimals),
    ]
}

fn decimal<A: arrow_array::Array + 'static, E: std::fmt::Debug>(made: Result<A, E>) -> ArrayRef {
    array(made.expect("digits within the precision"))
}

#[test]
fn every_type_of_numbers_is_read() {
    let columns = numbers();
    let table = batch(columns.iter().map(|(name, array, _)| (*name, Arc::clone(array))).collect());
    let expected: Vec<f64> = (0..3).flat_map(|row| columns.iter().map(move |(_, _, values)| values[row])).collect();
    for (what, bytes) in files(&table) {
        let reading = read(&bytes, &ReadOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(reading.notes.is_empty(), "{what}: {:?}", reading.notes);
        let found: Vec<&str> = columns.iter().map(|(name, ..)| *name).collect();
        assert_eq!(reading.table.columns(), Some(&names(&found)[..]), "{what}");
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(reading.table.values()), bits(&expected), "{what}");
    }
}

/// Strings of every kind and dictionaries of them, in two groups of rows whose dictionaries differ.
#[test]
fn words_are_categories() {
    let words = ["red", "blue", "red", "red", "blue", "green", "green", "red", "blue"];
    let dictionary = |words: [&str; 9]| array(words.into_iter().collect::<DictionaryArray<Int32Type>>());
    let table = batch(vec![
        ("text", array(StringArray::from(words.to_vec()))),
        ("x", array(Float64Array::from((0..9).map(f64::from).collect::<Vec<_>>()))),
        ("large", array(LargeStringArray::from(words.to_vec()))),
        ("view", array(StringViewArray::from(words.to_vec()))),
        ("kind", dictionary(words)),
    ]);
    let options = ReadOptions { text: TextColumns::Categories, ..ReadOptions::default() };
    for (what, bytes) in files(&table) {
        let reading = read(&bytes, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(reading.table.columns(), Some(&names(&["x"])[..]), "{what}");
        let found = reading.categories.expect("categories");
        let columns: Vec<(&str, usize)> = found.columns().iter().map(|c| (c.name(), c.place())).collect();
        assert_eq!(columns, [("text", 0), ("large", 1), ("view", 1), ("kind", 1)], "{what}");
        for j in 0..4 {
            assert!((0..9).all(|i| found.level(i, j) == words[i]), "{what}, {j}");
        }
    }
    // a missing one lacks a value; many are too many; a model says what it wants
    let holes = batch(vec![
        ("x", array(Float64Array::from(vec![1.0, 2.0, 3.0]))),
        ("text", array(StringArray::from(vec![Some("a"), None, Some("a")]))),
    ]);
    let many: Vec<String> = (0..6000).map(|i| format!("word {i}")).collect();
    let many = batch(vec![
        ("x", array(Float64Array::from((0..6000).map(f64::from).collect::<Vec<_>>()))),
        ("text", array(StringArray::from(many))),
    ]);
    for ((what, holes), (_, many)) in files(&holes).into_iter().zip(files(&many)) {
        assert!(message(&holes, &options).contains("row 2, column 2"), "{what}");
        let declared = ReadOptions { categories: names(&["text"]), ..options.clone() };
        let error = message(&many, &declared);
        assert!(error.contains("more than 4096 different words in 6000 rows"), "{what}: {error}");
        let model = ModelColumns { names: Some(names(&["x"])), width: 1, ..ModelColumns::default() };
        let reading = read(&many, &ReadOptions { model: Some(model), ..options.clone() }).expect("numbers alone");
        assert!(reading.categories.is_none() && reading.table.rows() == 6000, "{what}");
    }
}

/// Numbers among columns of every other type.
fn mixed() -> RecordBatch {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>((0..3).map(|i| Some(vec![Some(i)])));
    batch(vec![
        ("a", array(Float64Array::from(vec![1.0, 2.0, 3.5]))),
        ("sold", array(BooleanArray::from(vec![true, false, true]))),
        ("name", array(StringArray::from(vec!["x", "y", "z"]))),
        ("day", array(Date32Array::from(vec![1, 2, 3]))),
        ("time", array(TimestampNanosecondArray::from(vec![1, 2, 3]))),
        ("lap", array(DurationSecondArray::from(vec![1, 2, 3]))),
        ("kind", array(["u", "v", "u"].into_iter().collect::<DictionaryArray<Int32Type>>())),
        ("list", array(list)),
        ("b", array(Int32Array::from(vec![4, 5, 7]))),
    ])
}

#[test]
fn other_types_are_refused_all_at_once() {
    let (table, others) = (mixed(), names(&["sold", "name", "day", "time", "lap", "kind", "list"]));
    for (what, bytes) in files(&table) {
        let error = message(&bytes, &ReadOptions::default());
        for part in [
            "7 columns hold no numbers",
            "`sold` (bool)",
            "`name` (string)",
            "`day` (date)",
            "`time` (timestamp)",
            "`lap` (duration)",
            "`kind` (category)",
            "`list` (list)",
            "--drop sold,name,day,time,lap,kind,list leaves these columns out",
        ] {
            assert!(error.contains(part), "{what}: {part}: {error}");
        }
        let dropped = ReadOptions { drop: others.clone(), ..ReadOptions::default() };
        assert_eq!(read(&bytes, &dropped).expect("a table").table.values(), [1.0, 4.0, 2.0, 5.0, 3.5, 7.0], "{what}");
        let chosen = ReadOptions { columns: Some(names(&["b", "a"])), ..ReadOptions::default() };
        assert_eq!(read(&bytes, &chosen).expect("a table").table.values(), [4.0, 1.0, 5.0, 2.0, 7.0, 3.5], "{what}");
        let one = ReadOptions { columns: Some(names(&["b", "day"])), ..ReadOptions::default() };
        assert!(message(&bytes, &one).contains("column 4 (`day`) holds no numbers but values of type date"), "{what}");
        let unknown = ReadOptions { columns: Some(names(&["c"])), ..ReadOptions::default() };
        assert!(message(&bytes, &unknown).contains("no column `c`"), "{what}");
        let model = ModelColumns { names: Some(names(&["b", "a"])), width: 2, ..ModelColumns::default() };
        let of_model = ReadOptions { model: Some(model), ..ReadOptions::default() };
        let reading = read(&bytes, &of_model).expect("a table");
        assert_eq!(reading.table.row(2), [7.0, 3.5], "{what}");
        assert_eq!(reading.notes, [Note::Ignored(others.clone()), Note::Reordered], "{what}");
    }
}

#[test]
fn columns_that_are_not_chosen_are_not_decoded() {
    let table =
        batch(vec![("a", array(Float64Array::from(vec![1.0, 2.0]))), ("b", array(Float64Array::from(vec![3.0, 4.0])))]);
    let (mut bytes, metadata) = parquet_file(&table, Compression::SNAPPY);
    for group in metadata.row_groups() {
        let (start, length) = group.column(1).byte_range();
        bytes[start as usize..][..length as usize].fill(0xaa);
    }
    assert!(message(&bytes, &ReadOptions::default()).contains("damaged or cut short"));
    let options = ReadOptions { columns: Some(names(&["a"])), ..ReadOptions::default() };
    assert_eq!(read(&bytes, &options).expect("a table").table.values(), [1.0, 2.0]);
}

#[test]
fn nulls_and_nan_are_missing() {
    let table = batch(vec![
        ("a", array(Int64Array::from(vec![Some(1), None, Some(3), Some(4)]))),
        ("b", array(Float64Array::from(vec![0.5, 1.5, f64::NAN, 3.5]))),
    ]);
    let nothing = batch(vec![("a", array(Int8Array::from(vec![1, 2]))), ("none", array(NullArray::new(2)))]);
    for ((what, bytes), (_, hollow)) in files(&table).into_iter().zip(files(&nothing)) {
        let error = message(&bytes, &ReadOptions::default());
        assert!(error.contains("row 2, column 1 (index [1, 0]) (`a`)"), "{what}: {error}");
        assert!(error.contains("row 3, column 2") && error.contains("leave the 2 rows out"), "{what}: {error}");
        let options = ReadOptions { missing: Missing::DropRows, ..ReadOptions::default() };
        let reading = read(&bytes, &options).expect("a table");
        assert_eq!((reading.table.values(), reading.dropped), (&[1.0, 0.5, 4.0, 3.5][..], vec![1, 2]), "{what}");
        let error = message(&hollow, &options);
        assert!(error.contains("(`none`)") && error.contains("--drop none"), "{what}: {error}");
    }
}

#[test]
fn digits_that_are_lost_are_told() {
    let table = batch(vec![
        ("id", array(Int64Array::from(vec![(1 << 53) + 1, 1 << 60, 3]))),
        ("big", array(UInt64Array::from(vec![u64::MAX, u64::MAX - 1, 0]))),
        ("whole", decimal(Decimal128Array::from(vec![1, -(1 << 53) - 1, 5]).with_precision_and_scale(38, 0))),
    ]);
    for (what, bytes) in files(&table) {
        let reading = read(&bytes, &ReadOptions::default()).expect("a table");
        let rounded = |column: &str, cells| Note::Rounded { column: column.to_owned(), cells };
        let expected =
            [rounded("column 1 (`id`)", 1), rounded("column 2 (`big`)", 2), rounded("column 3 (`whole`)", 1)];
        assert_eq!(reading.notes, expected, "{what}");
        assert_eq!(reading.table.row(0), [9_007_199_254_740_992.0, 18_446_744_073_709_551_616.0, 1.0], "{what}");
        assert!(expected.iter().all(Note::is_warning));
    }
}

/// A table with what pandas says of it.
fn with_pandas(table: &RecordBatch, said: &str) -> RecordBatch {
    let schema = table.schema().as_ref().clone().with_metadata([("pandas", said)]);
    RecordBatch::try_new(Arc::new(schema), table.columns().to_vec()).expect("the same columns")
}

#[test]
fn pandas_index_is_left_out() {
    let table = batch(vec![
        ("a", array(Float64Array::from(vec![1.0, 2.0, 3.0]))),
        ("day", array(StringArray::from(vec!["mon", "tue", "wed"]))),
        ("__index_level_1__", array(Int64Array::from(vec![7, 7, 9]))),
    ]);
    let named = with_pandas(&table, r#"{"index_columns": ["day", "__index_level_1__"], "columns": []}"#);
    let counted = r#"{"index_columns": [{"kind": "range", "name": null, "start": 0, "stop": 3, "step": 1}]}"#;
    for (what, bytes) in files(&named) {
        let reading = read(&bytes, &ReadOptions::default()).expect("a table");
        assert_eq!(reading.table.columns(), Some(&names(&["a"])[..]), "{what}");
        let said: Vec<String> = reading.notes.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{what}: {said:?}");
        assert!(said[0].contains("column 2 (`day`) holds the index of a pandas table: left out"), "{what}: {said:?}");
        // what is asked for by its name is no index
        let asked = ReadOptions { columns: Some(names(&["__index_level_1__", "a"])), ..ReadOptions::default() };
        let reading = read(&bytes, &asked).expect("a table");
        assert_eq!((reading.table.row(2), reading.notes.len()), (&[9.0, 3.0][..], 0), "{what}");
        let model = ModelColumns { names: Some(names(&["a"])), width: 1, ..ModelColumns::default() };
        let weighted = ModelColumns { beside: Some("__index_level_1__".to_owned()), ..model };
        let reading = read(&bytes, &ReadOptions { model: Some(weighted), ..ReadOptions::default() }).expect("a table");
        assert_eq!(reading.table.row(1), [2.0, 7.0], "{what}");
    }
    let ranged = table.project(&[0]).expect("the first column");
    let reading = read(&parquet(&with_pandas(&ranged, counted)), &ReadOptions::default()).expect("a table");
    assert!(reading.notes.is_empty());
    // without a word of pandas the name and the numbers tell, as in text
    let level =
        batch(vec![("a", Arc::clone(table.column(0))), ("__index_level_0__", array(Int64Array::from(vec![0, 1, 2])))]);
    let reading = read(&parquet(&level), &ReadOptions::default()).expect("a table");
    assert!(matches!(&reading.notes[..], [Note::Index { .. }]) && reading.table.width() == 1);
}
