//! Tables that are larger than memory: what is known of them is what is known of the same rows in memory, runs on them have the same
//! bits wherever the rows are and whoever reads them, every training row comes once an epoch, and a file that is damaged or
//! changes is found out. No statistics: seeds are fixed.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use crate::properties::families::archive_bytes;
use crate::properties::together::{on_ranks, take_part};
use proptest::prelude::*;
use resflow::backend::Key;
use resflow::checkpoint::Archive;
use resflow::config::{Family, FlowConfig, ModelConfig, Start};
use resflow::data::{
    ColumnFit, DataError, LargeTable, NpyRows, ReadOptions, Standardiser, StoredRows, Support, Table, ToyDensity, npy,
};
use resflow::error::Error;
use resflow::flow::Flow;
use resflow::train::{Budget, Source, TrainConfig, Trainer, is_on_large_table};

const LIMIT: Duration = Duration::from_secs(60);

/// A file of its own for each test.
fn file(name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("resflow-large-{}-{name}.npy", std::process::id()));
    std::fs::write(&path, bytes).expect("a temporary file");
    path
}

/// An array in C or Fortran order, of f4 or f8, or a structured one.
fn array(table: &Table, kind: usize) -> Vec<u8> {
    let (n, d) = (table.rows(), table.width());
    let (descr, shape) = match kind {
        0 | 1 => ("'<f8'".to_owned(), format!("({n}, {d})")),
        2 => ("'<f4'".to_owned(), format!("({n}, {d})")),
        _ => {
            let fields: Vec<String> = (0..d).map(|j| format!("('{j}', '<f8'), ('', '|V3')")).collect();
            (format!("[{}]", fields.join(", ")), format!("({n},)"))
        }
    };
    let order = if kind == 1 { "True" } else { "False" };
    let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("a short header").to_le_bytes());
    bytes.extend(header.as_bytes());
    match kind {
        0 => table.values().iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        1 => (0..d).flat_map(|j| table.column(j)).for_each(|v| bytes.extend(v.to_le_bytes())),
        2 => table.values().iter().for_each(|v| bytes.extend((*v as f32).to_le_bytes())),
        _ => table.values().iter().for_each(|v| bytes.extend(v.to_le_bytes().into_iter().chain([7; 3]))),
    }
    bytes
}

fn open(path: &std::path::Path) -> LargeTable {
    LargeTable::new(NpyRows::open(path, &ReadOptions::default()).expect("an array")).expect("finite numbers")
}

/// Several pieces of rows whose numbers are those of single precision.
fn pieces() -> Table {
    let value = |i: usize| f64::from(((i as u64 * 2_654_435_761) % 100_003) as f32 * 1e-3 + (i % 3) as f32);
    Table::new(None, 3, (0..1_400_001).map(value).collect()).expect("a table")
}

proptest! {
    #![proptest_config(cases(48))]

    /// Statistics are those of the rows in memory up to rounding, of extreme numbers too; rows come in any order, and again.
    #[test]
    fn a_large_table_is_its_rows(
        rows in 2_usize..60, width in 1_usize..4, kind in 0_usize..4, exponent in -150_i32..150, key: u64,
    ) {
        let noise = normal(&cpu(), Key::new(key), [rows, width]);
        let scale = if kind == 2 { 1.0 } else { 10.0_f64.powi(exponent) };
        let values = down(&cpu(), &noise).iter().map(|v| f64::from(*v as f32) * scale).collect();
        let table = Table::new(None, width, values).expect("a table");
        let path = file(&format!("rows-{key}"), &array(&table, kind));
        let large = open(&path);
        std::fs::remove_file(&path).expect("there");
        prop_assert_eq!((large.rows(), large.width()), (rows, width));
        let expected = Standardiser::fit(&table).expect("spread");
        for j in 0..width {
            let column = table.column(j);
            prop_assert_eq!(large.minimum()[j], column.iter().copied().fold(f64::INFINITY, f64::min));
            prop_assert_eq!(large.maximum()[j], column.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            prop_assert!((large.mean()[j] - expected.mean()[j]).abs() <= 1e-13 * expected.deviation()[j]);
            prop_assert!((large.deviation()[j] / expected.deviation()[j] - 1.0).abs() < 1e-13);
        }
        let numbers: Vec<usize> = (0..2 * rows).map(|i| (i * 7 + key as usize % rows) % rows).collect();
        let (found, expected) = (large.select(&numbers).expect("there"), table.select(&numbers));
        prop_assert_eq!(found.values(), expected.values());
        let found = large.read(1..rows).expect("there");
        prop_assert_eq!(found.values(), &table.values()[width..]);
        let sample = large.sample(rows / 2, Key::new(key)).expect("there");
        // by their numbers: two rows of one column may well be equal
        let mut chosen = large.choose(rows / 2, Key::new(key));
        chosen.sort_unstable();
        prop_assert!(chosen.len() == rows / 2 && chosen.iter().is_sorted_by(|a, b| a < b));
        let expected = table.select(&chosen);
        prop_assert_eq!(sample.values(), expected.values());
    }
}

/// What several pieces tell together, on any number of ranks, wherever the rows are, is the same to the bit, and that of all rows.
#[test]
fn statistics_are_the_same_everywhere() {
    let table = pieces();
    let alone = LargeTable::new(table.clone()).expect("finite");
    let all = |table: &LargeTable| {
        let numbers = [table.minimum(), table.maximum(), table.mean(), table.deviation()].concat();
        (numbers, Source::from(table.clone()).fingerprint(0))
    };
    let expected = Standardiser::fit(&table).expect("spread");
    for j in 0..3 {
        assert!((alone.mean()[j] - expected.mean()[j]).abs() < 1e-12 * expected.deviation()[j]);
        assert!((alone.deviation()[j] / expected.deviation()[j] - 1.0).abs() < 1e-12);
    }
    for kind in 0..4 {
        let path = file(&format!("pieces-{kind}"), &array(&table, kind));
        assert_eq!(all(&open(&path)), all(&alone), "{kind}");
        for ranks in [2, 3, 5] {
            let found = on_ranks(ranks, LIMIT, |group| {
                let rows = NpyRows::open(&path, &ReadOptions::default()).expect("an array");
                all(&LargeTable::new_together(rows, &*group).expect("finite"))
            });
            assert!(found.iter().all(|found| *found == all(&alone)), "{kind}, {ranks} ranks");
        }
        std::fs::remove_file(path).expect("there");
    }
    // one number of one row
    let mut values = table.into_values();
    values[1_000_000] += 1.0;
    let other = LargeTable::new(Table::new(None, 3, values).expect("a table")).expect("finite");
    assert_ne!(all(&other).1, all(&alone).1);
}

fn config() -> ModelConfig {
    FlowConfig { blocks: 2, hidden: vec![8], start: Start::Identity, ..FlowConfig::of(Family::Residual, 2) }.into()
}

fn settings(columns: ColumnFit, fit_base: bool) -> TrainConfig {
    TrainConfig { batch: 32, warmup: 5, validation_rows: 60, columns, fit_base, ..TrainConfig::default() }
}

fn begin(source: impl Into<Source>, settings: &TrainConfig) -> Result<Trainer<Cpu>, Error> {
    let flow = Flow::new(cpu(), config(), Key::new(3)).expect("a configuration");
    Trainer::new(flow, source, settings, Budget::Steps(20), Key::new(4))
}

/// Skewed, with a column on a grid.
fn rows(n: usize) -> Table {
    let table = ToyDensity::Moons.sample(Key::new(1), n);
    let value = |(i, v): (usize, &f64)| if i % 2 == 0 { f64::from((v.exp() * 3.0) as f32) } else { (8.0 * v).round() };
    Table::new(None, 2, table.values().iter().enumerate().map(value).collect()).expect("a table")
}

#[test]
fn runs_have_the_same_bits_wherever_the_rows_are() {
    let table = rows(700);
    let run = |trainer: &mut Trainer<Cpu>| trainer.run(|_, _| ());
    for (columns, fit_base) in [(ColumnFit::Standardise, false), (ColumnFit::Auto, false), (ColumnFit::Auto, true)] {
        let settings = settings(columns, fit_base);
        let resident = LargeTable::new(table.clone()).expect("finite");
        let mut alone = begin(resident, &settings).expect("data that fit");
        run(&mut alone).expect("finite");
        assert_eq!((alone.validation_samples().len(), alone.epoch_samples()), (60, Some(640)));
        let expected = archive_bytes(&alone);
        for kind in 0..3 {
            let path = file(&format!("run-{columns:?}-{fit_base}-{kind}"), &array(&table, kind));
            let mut streamed = begin(open(&path), &settings).expect("data that fit");
            for _ in 0..7 {
                streamed.step().expect("finite");
            }
            let state = Archive::from_bytes(&streamed.to_archive().expect("stored").to_bytes().expect("stored"));
            let state = state.expect("a state");
            assert!(is_on_large_table(&state));
            let mut resumed = Trainer::resume(cpu(), &state, open(&path)).expect("the same data");
            run(&mut resumed).expect("finite");
            assert!(archive_bytes(&resumed) == expected, "{columns:?}, {fit_base}, {kind}");
            // as rows in memory, which are divided and shuffled otherwise, it is another run
            let refused = Trainer::resume(cpu(), &state, table.clone()).expect_err("another division").to_string();
            assert!(refused.contains("other data"), "{refused}");
            let states = on_ranks(2, LIMIT, |group| {
                let rows = NpyRows::open(&path, &ReadOptions::default()).expect("an array");
                let large = LargeTable::new_together(rows, &*group).expect("finite");
                take_part(group, || begin(large.clone(), &settings), large.clone().into(), run).expect("no fault")
            });
            assert!(states.iter().all(|state| *state == expected), "{columns:?}, {fit_base}, {kind}, two ranks");
            std::fs::remove_file(path).expect("there");
        }
    }
}

/// Rows that say which of them were read.
#[derive(Debug, Clone)]
struct Watched {
    table: Table,
    read: Arc<Mutex<Vec<Range<usize>>>>,
}

impl StoredRows for Watched {
    fn rows(&self) -> usize {
        self.table.rows()
    }

    fn width(&self) -> usize {
        self.table.width()
    }

    fn columns(&self) -> Option<&[String]> {
        self.table.columns()
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        self.read.lock().expect("nobody panicked").push(rows.clone());
        StoredRows::read(&self.table, rows, out)
    }
}

#[test]
fn every_training_row_comes_once_an_epoch() {
    let watched = Watched { table: rows(700), read: Arc::default() };
    let taken = || watched.read.lock().expect("nobody panicked").drain(..).flatten().collect::<Vec<usize>>();
    let large = LargeTable::new(watched.clone()).expect("finite");
    let mut trainer = begin(large, &settings(ColumnFit::Standardise, false)).expect("data that fit");
    // the first batch initialises too
    trainer.validate().expect("finite");
    let held_out = trainer.validation_numbers().to_vec();
    let training: Vec<usize> = (0..700).filter(|i| !held_out.contains(i)).collect();
    assert_eq!((held_out.len(), training.len()), (60, 640));
    taken();
    let mut orders = Vec::new();
    for _ in 0..2 {
        for _ in 0..20 {
            trainer.step().expect("finite");
        }
        let mut order = taken();
        orders.push(order.clone());
        order.sort_unstable();
        assert_eq!(order, training);
    }
    assert_ne!(orders[0], orders[1]);
}

/// The leader reads whole batches, since it reports on them, and each other rank the rows of its lanes; all read a part of the pass.
#[test]
fn ranks_read_their_part() {
    let settings = TrainConfig { lanes: 4, ..settings(ColumnFit::Standardise, false) };
    let read = on_ranks(4, LIMIT, |group| {
        let watched = Watched { table: rows(700), read: Arc::default() };
        let taken = || watched.read.lock().expect("nobody panicked").drain(..).flatten().collect::<Vec<usize>>();
        let rank = group.rank();
        let large = LargeTable::new_together(watched.clone(), &*group).expect("finite");
        let pass = taken();
        let few = |trainer: &mut Trainer<Cpu>| (0..5).try_for_each(|_| trainer.step().map(|_| ()));
        take_part(group, || begin(large.clone(), &settings), large.clone().into(), few).expect("no fault");
        // the rows that are set aside, and the first batch, which initialises, all read
        (rank, pass, taken()[60 + 32..].to_vec())
    });
    let whole = read[0].2.clone();
    assert_eq!(whole.len(), 5 * 32);
    for (rank, _, own) in &read[1..] {
        assert_eq!(own.len(), 5 * 8, "rank {rank}");
        assert!(own.iter().all(|row| whole.contains(row)));
    }
    // one piece, which is one rank's
    let pass: usize = read.iter().map(|(_, pass, _)| pass.len()).sum();
    assert_eq!(pass, 700);
}

#[test]
fn what_is_wrong_is_named() {
    let names = Some(vec!["a".to_owned(), "b".to_owned()]);
    let mut values: Vec<f64> = (0..1_200_000).map(f64::from).collect();
    let good = Table::new(names, 2, values.clone()).expect("a table");
    values[1_100_001] = f64::NAN;
    values[1_100_003] = f64::INFINITY;
    values[1_100_004] = f64::NAN;
    let mut bytes = Vec::new();
    npy::write(&good, npy::Float::F8, &mut bytes).expect("written");
    let start = bytes.len() - 8 * values.len();
    for (i, value) in values.iter().enumerate() {
        bytes[start + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let path = file("faults", &bytes);
    let rows = || NpyRows::open(&path, &ReadOptions::default()).expect("an array");
    let error = LargeTable::new(rows()).expect_err("not finite");
    let DataError::Cells(found) = &error else { panic!("{error}") };
    let of = |i: usize| (found.columns[i].count, found.columns[i].places[0].to_string());
    assert_eq!((found.columns.len(), found.incomplete), (3, 2), "{error}");
    assert!(
        of(0).1.contains("row 550003") && of(1).1.contains("row 550001") && of(2).1.contains("row 550002"),
        "{error}"
    );
    // all ranks end with it
    let found =
        on_ranks(3, LIMIT, |group| LargeTable::new_together(rows(), &*group).expect_err("not finite").to_string());
    assert!(found.iter().all(|error| error.contains("NaN")), "{found:?}");

    // supports that rows beyond the first piece leave, and constant columns
    let mut settings = settings(ColumnFit::Standardise, false);
    settings.supports = [("2".to_owned(), Support::Between(0.0, 1_150_000.5))].into();
    let plain = Table::new(None, 2, (0..1_200_000).map(f64::from).collect()).expect("a table");
    let error = begin(LargeTable::new(plain).expect("finite"), &settings).expect_err("outside").to_string();
    assert!(error.contains("25000 values outside") && error.contains("row 575001"), "{error}");
    let flat = Table::new(None, 2, (0..200).map(|i| f64::from(i * (i % 2))).collect()).expect("a table");
    let error = begin(LargeTable::new(flat).expect("finite"), &self::settings(ColumnFit::Standardise, false));
    assert!(error.expect_err("constant").to_string().contains("column 1 is 0 in every row"));
    assert!(matches!(
        LargeTable::new(Table::new(None, 1, vec![1.0]).expect("a table")),
        Err(DataError::TooFewRows { rows: 1, .. })
    ));
    std::fs::remove_file(path).expect("there");
}

#[test]
fn a_file_that_changes_is_found_out() {
    let table = rows(700);
    let bytes = array(&table, 0);
    let path = file("changes", &bytes);
    let mut trainer = begin(open(&path), &settings(ColumnFit::Auto, false)).expect("data that fit");
    trainer.step().expect("finite");
    // cut off, and written anew with other numbers
    let cut = bytes.len() - 8;
    for changed in [&bytes[..cut], &array(&rows(701), 0)] {
        std::fs::write(&path, changed).expect("written");
        let error = trainer.step().expect_err("changed").to_string();
        assert!(error.contains("changed while it was in use") && error.contains("changes.npy"), "{error}");
    }
    // one that is cut off from the beginning
    std::fs::write(&path, &bytes[..cut]).expect("written");
    let error = NpyRows::open(&path, &ReadOptions::default()).expect_err("cut off").to_string();
    assert!(error.contains("cut short"), "{error}");
    std::fs::remove_file(path).expect("there");
}
