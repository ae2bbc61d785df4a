//! What holds of every input, for the targets here and for the mutation loop in tests/fuzz_data.rs. Each check says
//! whether the reader accepted the input.

use resflow::data::{DataError, Table, csv, npy};

/// The CSV reader never panics, makes no more values than there are bytes, explains itself in a few lines, and reads
/// back what the writer makes of its table.
pub(crate) fn csv(bytes: &[u8]) -> bool {
    let Some(table) = accepted(csv::read(bytes), bytes) else { return false };
    let mut text = Vec::new();
    csv::write(&table, &mut text).expect("memory takes every table");
    assert_eq!(csv::read(&text).expect("the writer's text reads back"), table);
    true
}

/// The NPY reader, likewise.
pub(crate) fn npy(bytes: &[u8]) -> bool {
    let Some(table) = accepted(npy::read(bytes), bytes) else { return false };
    let mut file = Vec::new();
    npy::write(&table, npy::Float::F8, &mut file).expect("memory takes every table");
    assert_eq!(npy::read(&file).expect("the writer's file reads back"), table);
    true
}

fn accepted(result: Result<Table, DataError>, bytes: &[u8]) -> Option<Table> {
    match result {
        Ok(table) => {
            assert!(table.rows() > 0 && table.values().len() <= bytes.len());
            assert!(table.values().iter().all(|v| v.is_finite()));
            Some(table)
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 1000 && !message.contains(char::is_control), "{message}");
            None
        }
    }
}
