//! Parquet and Arrow tables through the program: whatever they are called and however they come, they are the tables that the
//! same numbers are as text, and what is written in them reads back.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float64Type;
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_ipc::reader::FileReader;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use serde_json::Value;

use crate::binary::{Folder, assert_same, csv, text};
use crate::tables::with_input;

/// A folder with the table `plain.csv`, and the run `base` over its columns.
fn base() -> Folder {
    let folder = Folder::new();
    folder.write("plain.csv", csv(80));
    folder.succeed("fit plain.csv --out base --config tiny.toml --steps 10");
    folder
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

/// The columns of a file of numbers.
fn columns(folder: &Folder, name: &str) -> Vec<(String, Vec<f64>)> {
    let (header, rows) = folder.table(name);
    let column = |(place, name): (usize, &str)| (name.to_owned(), rows.iter().map(|row| row[place]).collect());
    header.split(',').enumerate().map(column).collect()
}

/// The same, as they are stored.
fn stored(columns: &[(String, Vec<f64>)]) -> RecordBatch {
    let array = |values: &[f64]| Arc::new(Float64Array::from(values.to_vec())) as ArrayRef;
    batch(columns.iter().map(|(name, values)| (name.as_str(), array(values))).collect())
}

fn parquet_file(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
    writer.write(batch).expect("memory");
    writer.close().expect("memory");
    bytes
}

fn arrow_file(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = FileWriter::try_new(&mut bytes, &batch.schema()).expect("a writer");
    writer.write(batch).expect("memory");
    writer.finish().expect("memory");
    drop(writer);
    bytes
}

fn arrow_stream(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema()).expect("a writer");
    writer.write(batch).expect("memory");
    writer.finish().expect("memory");
    drop(writer);
    bytes
}

/// The columns of a file that the program wrote.
fn written(folder: &Folder, name: &str) -> Vec<(String, Vec<f64>)> {
    let bytes = std::fs::read(folder.path(name)).expect("a file");
    let batches: Vec<RecordBatch> = if bytes.starts_with(b"PAR1") {
        let reader = ParquetRecordBatchReader::try_new(Bytes::from(bytes), 1024).expect("a Parquet file");
        reader.map(|batch| batch.expect("rows")).collect()
    } else {
        let reader = FileReader::try_new(std::io::Cursor::new(bytes), None).expect("an Arrow file");
        reader.map(|batch| batch.expect("rows")).collect()
    };
    let [batch] = &batches[..] else { panic!("{name}: {} batches", batches.len()) };
    let schema = batch.schema();
    let values = |place: usize| batch.column(place).as_primitive::<Float64Type>().values().to_vec();
    schema.fields().iter().enumerate().map(|(place, field)| (field.name().clone(), values(place))).collect()
}

#[test]
fn tables_by_columns_score_as_text_does() {
    let folder = base();
    folder.succeed("score base plain.csv --out plain_scores.csv");
    let expected = folder.read("plain_scores.csv");
    let table = stored(&columns(&folder, "plain.csv"));
    let swapped = table.project(&[2, 0, 1]).expect("its columns");
    // the content decides, not the name
    for (name, bytes) in [
        ("table.parquet", parquet_file(&table)),
        ("table.csv", parquet_file(&table)),
        ("table.feather", arrow_file(&table)),
        ("table", arrow_stream(&table)),
        ("table.npy", parquet_file(&swapped)),
    ] {
        folder.write(name, &bytes);
        folder.succeed(&format!("score base {name} --out scores.csv"));
        assert_eq!(folder.read("scores.csv"), expected, "{name}");
        let paths: &[&str] = if cfg!(target_os = "linux") { &["-", "/dev/stdin"] } else { &["-"] };
        for path in paths {
            let output = with_input(&folder, &format!("score base {path} --out -"), &bytes);
            assert_eq!(text(&output.stdout), expected, "{name} through {path}: {}", text(&output.stderr));
        }
    }
    // a model of them is that of the text
    folder.succeed("fit table.parquet --out other --config tiny.toml --steps 10");
    folder.succeed("score other plain.csv --out scores.csv");
    assert_eq!(folder.read("scores.csv"), expected);
    let look: Value = serde_json::from_str(&folder.succeed("look table.feather --json")).expect("one object");
    assert_eq!((look["rows"].as_u64(), &look["names"][2]), (Some(80), &"height".into()));
}

#[test]
fn what_is_written_by_columns() {
    let folder = base();
    folder.write("missing.csv", folder.read("plain.csv").replacen('\n', "\n1,,3\n", 1));
    for (line, name) in [
        ("sample base -n 50 --out", "x"),
        ("encode base plain.csv --out", "z"),
        ("encode base missing.csv --missing drop-rows --out", "gap"),
        ("decode base z.csv --out", "again"),
        ("score base plain.csv --out", "scores"),
        ("score base missing.csv --missing drop-rows --out", "gap_scores"),
    ] {
        folder.succeed(&format!("{line} {name}.csv"));
        let expected = columns(&folder, &format!("{name}.csv"));
        let bits = |columns: Vec<(String, Vec<f64>)>| -> Vec<(String, Vec<u64>)> {
            columns.into_iter().map(|(name, values)| (name, values.iter().map(|v| v.to_bits()).collect())).collect()
        };
        for ending in ["parquet", "arrow", "feather"] {
            let file = format!("{name}.{ending}");
            folder.succeed(&format!("{line} {file}"));
            assert_eq!(bits(written(&folder, &file)), bits(expected.clone()), "{line} {file}");
        }
    }
    // what was written is read
    folder.succeed("decode base z.parquet --out of_parquet.csv");
    assert_eq!(folder.read("of_parquet.csv"), folder.read("again.csv"));
    folder.succeed("score base x.arrow --out of_arrow.csv");
    folder.succeed("score base x.csv --out of_csv.csv");
    assert_eq!(folder.read("of_arrow.csv"), folder.read("of_csv.csv"));
    let piped = folder.run("sample base -n 50 --out - --format parquet").stdout;
    assert!(piped == std::fs::read(folder.path("x.parquet")).expect("a file"), "into a pipe");
    // nothing is written where something is read
    let error = folder.fail("score base x.parquet --out x.parquet", 2);
    assert!(error.contains("overwrite x.parquet"), "{error}");
}

#[test]
fn columns_that_are_no_numbers() {
    let folder = base();
    let plain = columns(&folder, "plain.csv");
    let mut all = vec![
        ("name", Arc::new(StringArray::from_iter_values((0..80).map(|i| format!("car {i}")))) as ArrayRef),
        ("sold", Arc::new((0..80).map(|i| Some(i % 2 == 0)).collect::<BooleanArray>()) as ArrayRef),
        ("id", Arc::new(Int64Array::from_iter_values((0..80).map(|i| (1 << 60) + i * 7919 % 1009))) as ArrayRef),
    ];
    all.extend(plain.iter().map(|(name, values)| {
        let values = values.iter().enumerate().map(|(i, &v)| (i != 4).then_some(v));
        (name.as_str(), Arc::new(values.collect::<Float64Array>()) as ArrayRef)
    }));
    folder.write("cars.parquet", parquet_file(&batch(all)));
    let error = folder.fail("fit cars.parquet --out run --config tiny.toml --steps 2", 1);
    // yes and no are categories, a name for each row is none
    for part in ["cars.parquet: column 1 (`name`) holds 80 different words in 80 rows", "--drop name"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = folder.fail("score base cars.parquet", 1);
    assert!(error.contains("row 5, column 4 (index [4, 3]) (`length`)"), "{error}");
    assert!(error.contains("--missing drop-rows"), "{error}");
    let output = folder.run("score base cars.parquet --missing drop-rows --json");
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("ignored: `name`, `sold`, `id`"), "{said}");
    let output = folder.run("look cars.parquet --drop name,sold --missing drop-rows");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("warning: cars.parquet: column 3 (`id`): ") && said.contains("beyond 2^53 rounded"),
        "{said}"
    );
}

#[test]
fn damaged_files_are_errors() {
    let folder = base();
    let table = stored(&columns(&folder, "plain.csv"));
    for (name, bytes) in [("t.parquet", parquet_file(&table)), ("t.arrow", arrow_file(&table))] {
        for part in [1, 7, 13, 19] {
            folder.write(name, &bytes[..bytes.len() * part / 20]);
            let error = folder.fail(&format!("score base {name}"), 1);
            assert!(error.contains(&format!("error: {name}: the file is")) && error.contains("cut short"), "{error}");
        }
        let mut garbled = bytes.clone();
        let middle = bytes.len() / 4..bytes.len() * 3 / 4;
        garbled[middle].fill(0x5a);
        folder.write(name, &garbled);
        // a panic is never right, which `run` sees to
        assert!(folder.run(&format!("score base {name}")).status.code().is_some());
        let output = with_input(&folder, "score base -", &bytes[..bytes.len() / 2]);
        assert!(text(&output.stderr).contains("standard input: the file is"), "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_large_parquet_table_is_the_same_as_its_text() {
    let folder = base();
    let table = stored(&columns(&folder, "plain.csv"));
    folder.write("table.parquet", parquet_file(&table));
    let fit = "--config tiny.toml --model realnvp --large 100";
    let output = folder.run(&format!("fit table.parquet --out unpacked {fit}"));
    let told = text(&output.stderr);
    assert!(output.status.success() && told.contains("80 rows of 3 numbers, unpacked into a temporary file"), "{told}");
    folder.succeed(&format!("fit plain.csv --out resident {fit}"));
    assert_same(&folder.path("unpacked"), &folder.path("resident"));
    folder.write("swapped.parquet", parquet_file(&table.project(&[2, 0, 1]).expect("its columns")));
    let mut files = Vec::new();
    for (out, line) in [
        ("resident.csv", "plain.csv"),
        ("small.csv", "table.parquet"),
        ("large.csv", "table.parquet --large 100"),
        ("swapped.csv", "swapped.parquet --large 100"),
    ] {
        folder.succeed(&format!("score unpacked {line} --out {out}"));
        files.push(folder.read(out));
    }
    assert!(files.iter().all(|file| *file == files[0]), "{files:?}");
    // a value that is missing is named as ever
    let mut lacking = columns(&folder, "plain.csv");
    lacking[1].1[41] = f64::NAN;
    folder.write("lacking.parquet", parquet_file(&stored(&lacking)));
    let told = folder.fail(&format!("fit lacking.parquet --out never {fit}"), 1);
    assert!(told.contains("row 42, column 2") && told.contains("`width`"), "{told}");
    // and rows that are left out are sought in memory
    folder.succeed(&format!("fit lacking.parquet --out dropped {fit} --missing drop-rows"));
}
