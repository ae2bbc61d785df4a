//! Columns that a reader of another format brings: which of them are taken, and what of types that are no numbers'.

use resflow::data::{
    ColumnValues, DataError, Fault, ModelColumns, NamedColumn, Note, ReadOptions, chosen_columns, read_columns,
};

fn numbers(name: &str, values: &[f64]) -> NamedColumn {
    NamedColumn { name: name.to_owned(), values: ColumnValues::Numbers(values.to_vec()) }
}

fn other(name: &str, kind: &str) -> NamedColumn {
    NamedColumn { name: name.to_owned(), values: ColumnValues::Other(kind.to_owned()) }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn mixed() -> Vec<NamedColumn> {
    vec![
        numbers("a", &[1.0, 2.0]),
        other("day", "date"),
        numbers("b", &[3.0, 4.0]),
        other("sold", "bool"),
        // not read, since nothing takes it
        numbers("unread", &[]),
    ]
}

#[test]
fn columns_are_chosen_by_names_and_types() {
    let dropped = ReadOptions { drop: names(&["day", "sold", "unread"]), ..ReadOptions::default() };
    let asked = ReadOptions { columns: Some(names(&["b", "a"])), ..ReadOptions::default() };
    let model = ModelColumns { names: Some(names(&["b"])), width: 1, ..ModelColumns::default() };
    let of_model = ReadOptions { model: Some(model), ..ReadOptions::default() };
    for (options, places, values) in [
        (&dropped, &[0, 2][..], &[1.0, 3.0, 2.0, 4.0][..]),
        (&asked, &[2, 0], &[3.0, 1.0, 4.0, 2.0]),
        (&of_model, &[2], &[3.0, 4.0]),
    ] {
        assert_eq!(chosen_columns(&mixed(), options).expect("columns"), places);
        assert_eq!(read_columns(mixed(), options).expect("a table").table.values(), values);
    }
    // what is taken has as many values
    let all = ReadOptions { drop: names(&["day", "sold"]), ..ReadOptions::default() };
    assert!(matches!(read_columns(mixed(), &all), Err(DataError::Belongings { found: 0, samples: 2, .. })));
    assert!(matches!(read_columns(vec![numbers("a", &[])], &ReadOptions::default()), Err(DataError::Empty)));
    let nothing = ReadOptions { columns: Some(names(&["c"])), ..ReadOptions::default() };
    assert!(matches!(chosen_columns(&mixed(), &nothing), Err(DataError::NoColumn { .. })));
    assert!(matches!(chosen_columns(&[], &ReadOptions::default()), Err(DataError::TableShape { .. })));
}

#[test]
fn types_that_are_no_numbers_come_at_once() {
    let Err(DataError::Cells(faults)) = chosen_columns(&mixed(), &ReadOptions::default()) else {
        panic!("two columns that are no numbers")
    };
    let found: Vec<&Fault> = faults.columns.iter().map(|column| &column.fault).collect();
    assert_eq!(found, [&Fault::Type { name: "date".to_owned() }, &Fault::Type { name: "bool".to_owned() }]);
    assert_eq!(
        faults.to_string(),
        "2 columns hold no numbers: `day` (date), `sold` (bool): --drop day,sold leaves these columns out"
    );
    let error = chosen_columns(&[numbers("a", &[]), other("day", "date")], &ReadOptions::default());
    assert_eq!(
        error.expect_err("a date").to_string(),
        "column 2 (`day`) holds no numbers but values of type date: --drop day leaves the column out"
    );
}

#[test]
fn words_without_a_name_are_those_of_the_rows() {
    let columns = || vec![other("", "string"), numbers("a", &[1.0, 2.0])];
    assert_eq!(chosen_columns(&columns(), &ReadOptions::default()).expect("a column"), [1]);
    let reading = read_columns(columns(), &ReadOptions::default()).expect("a table");
    assert_eq!(reading.table.values(), [1.0, 2.0]);
    assert!(matches!(&reading.notes[..], [Note::Index { what: "the names of the rows", .. }]), "{:?}", reading.notes);
    assert!(matches!(
        read_columns(vec![other("", "string")], &ReadOptions::default()),
        Err(DataError::TableShape { .. })
    ));
}
