//! Columns of text as categories: what is found in tables as people have them, what is taken as one where somebody says so, and what is
//! refused by name.

use std::fmt::Write as _;

use proptest::prelude::*;
use resflow::data::{
    Categories, Category, ColumnValues, DataError, Fault, Missing, ModelColumns, NamedColumn, Note, ReadOptions,
    Reading, Table, TextColumns, npy, read_columns, read_from,
};

fn options() -> ReadOptions {
    ReadOptions { text: TextColumns::Categories, ..ReadOptions::default() }
}

fn read(text: &str) -> Reading {
    read_with(text, &options())
}

fn read_with(text: &str, options: &ReadOptions) -> Reading {
    read_from(text.as_bytes(), options).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refused(text: &str, options: &ReadOptions) -> String {
    match read_from(text.as_bytes(), options) {
        Ok(reading) => panic!("{text}: {reading:?}"),
        Err(error) => error.to_string(),
    }
}

fn categories(reading: &Reading) -> &Categories {
    reading.categories.as_ref().expect("categories")
}

/// The words of column `j`.
fn words(reading: &Reading, j: usize) -> Vec<&str> {
    (0..categories(reading).rows()).map(|i| categories(reading).level(i, j)).collect()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn columns_of_text_are_found() {
    let text = "length,kind,width,sex\n1,a,2,m\n3,\"b, c\",4,f\n5,a,6,f\n7, a ,8,m\n9,a,10,m\n11,\"b, c\",12,f\n";
    let reading = read(text);
    assert_eq!(reading.table.columns(), Some(&strings(&["length", "width"])[..]));
    assert_eq!(reading.table.row(1), [3.0, 4.0]);
    assert_eq!(words(&reading, 0), ["a", "b, c", "a", "a", "a", "b, c"]);
    assert_eq!(words(&reading, 1), ["m", "f", "f", "m", "m", "f"]);
    let places: Vec<usize> = categories(&reading).columns().iter().map(Category::place).collect();
    assert_eq!(places, [1, 2]);
    let note = Note::Categories(vec![("kind".to_owned(), 2), ("sex".to_owned(), 2)]);
    assert_eq!(reading.notes.last(), Some(&note));
    assert_eq!(note.to_string(), "categories: `kind` (2 levels), `sex` (2 levels)");
    // where nothing is said of text it is refused, as it was
    assert!(refused(text, &ReadOptions::default()).contains("2 columns hold text"));
    // semicolons and decimal commas do not matter
    let reading = read("x;k\n1,5;rot\n2,5;blau\n3,5;rot\n4,5;rot\n5,5;blau\n6,5;rot\n");
    assert_eq!((words(&reading, 0)[1], reading.table.row(1)), ("blau", &[2.5][..]));
}

#[test]
fn numbers_among_words_are_words() {
    let reading = read("x,k\n1,1\n2,1.0\n3,01\n4,b\n5,b\n6,b\n7,b\n8,inf\n9,b\n10,b\n11,b\n12,1\n13,1e0\n14,b\n15,b\n");
    let found = words(&reading, 0);
    assert_eq!(found[..4], ["1", "1", "1", "b"], "numbers before the first word are their values");
    assert_eq!(found[7..13], ["inf", "b", "b", "b", "1", "1"]);
    // a stray word among numbers is one
    assert!(refused("x,y\n1,2\n3,x\n5,6\n7,8\n", &options()).contains("`x` is not a number"));
}

#[test]
fn somebody_may_say_what_is_a_category() {
    let declared = ReadOptions { categories: strings(&["code"]), ..ReadOptions::default() };
    let text = "code,x\n007,1\n7,2\n1.0,3\n1,4\n-0,5\n2.5,6\n";
    assert_eq!(words(&read_with(text, &declared), 0), ["007", "7", "1", "1", "0", "2.5"]);
    // however many they are
    let many = (0..40).fold("code,x\n".to_owned(), |text, i| text + &format!("word {i},{i}\n"));
    assert_eq!(categories(&read_with(&many, &declared)).columns()[0].levels().len(), 40);
    let error = refused(&many, &options());
    assert!(error.contains("40 different words in 40 rows") && error.contains("--category"), "{error}");
    let Err(DataError::Cells(faults)) = read_from(many.as_bytes(), &options()) else { panic!("words") };
    assert_eq!(faults.columns[0].fault, Fault::Levels { levels: 40, beyond: false });
    assert!(refused(text, &ReadOptions { categories: strings(&["other"]), ..options() }).contains("`other`"));
    // of arrays too
    let table = Table::new(None, 2, vec![3.0, 0.5, 4.0, 1.5, 3.0, 2.5]).expect("a table");
    let mut bytes = Vec::new();
    npy::write(&table, npy::Float::F8, &mut bytes).expect("written");
    let declared = ReadOptions { categories: strings(&["1"]), ..ReadOptions::default() };
    let reading = read_from(&bytes[..], &declared).expect("an array");
    assert_eq!((words(&reading, 0), reading.table.values()), (vec!["3", "4", "3"], &[0.5, 1.5, 2.5][..]));
    // columns without names get some, so that they are found again
    let named = (categories(&reading).columns()[0].name(), reading.table.columns());
    assert_eq!(named, ("c1", Some(&strings(&["c2"])[..])));
}

/// No column of categories has ten thousand levels, whoever says so, and no more of them is kept than tells that.
#[test]
fn too_many_levels_are_refused() {
    let text = (0..10_000).fold("k,x\n".to_owned(), |mut text, i| {
        let _ = writeln!(text, "a rather long word {i},{i}");
        text
    });
    for options in [options(), ReadOptions { categories: strings(&["k"]), ..options() }] {
        let error = refused(&text, &options);
        assert!(
            error.contains("more than 4096 different words in 10000 rows") && error.contains("--drop k"),
            "{error}"
        );
        assert!(!error.contains("--category"), "{error}");
    }
}

#[test]
fn missing_categories_are_missing() {
    let text = "x,k\n1,a\n2,\n3,b\n4,NA\n,a\n6,b\n7,a\n8,b\n9,a\n";
    let error = refused(text, &options());
    assert!(error.contains("column 2 (`k`)") && error.contains("3 rows"), "{error}");
    let reading = read_with(text, &ReadOptions { missing: Missing::DropRows, ..options() });
    assert_eq!((reading.dropped.as_slice(), words(&reading, 0)), (&[1, 3, 4][..], vec!["a", "b", "b", "a", "b", "a"]));
    assert_eq!(reading.table.values(), [1.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
    // constants are those of numbers
    let same = "x,k\n1,a\n2,a\n3,a\n";
    assert_eq!(words(&read_with(same, &ReadOptions { refuse_constants: true, ..options() }), 0).len(), 3);
}

#[test]
fn rows_of_words_alone_are_rows() {
    let reading = read("k,l\na,x\nb,y\na,x\na,y\nb,x\nb,y\n");
    assert_eq!((reading.table.width(), reading.table.rows(), categories(&reading).rows()), (0, 6, 6));
}

#[test]
fn a_model_finds_its_columns() {
    let model = |by_position| ModelColumns {
        names: Some(strings(&["x", "k", "y"])),
        width: 3,
        categories: vec![1],
        by_position,
        ..ModelColumns::default()
    };
    let of = |by_position| ReadOptions { model: Some(model(by_position)), ..options() };
    // one level is a level, in any order, beside what is ignored
    let reading = read_with("y,id,k,x\n1,n1,a,2\n3,n2,a,4\n", &of(false));
    assert_eq!((reading.table.values(), words(&reading, 0)), (&[2.0, 1.0, 4.0, 3.0][..], vec!["a", "a"]));
    assert_eq!(categories(&reading).columns()[0].place(), 1);
    // without names, or with others
    for text in ["1.5,a,2\n3,b,4.5\n", "p,q,r\n1.5,a,2\n3,b,4.5\n"] {
        let reading = read_with(text, &of(text.starts_with('p')));
        assert_eq!((categories(&reading).columns()[0].name(), words(&reading, 0)), ("k", vec!["a", "b"]), "{text}");
    }
    // numbers where it has categories are labels, words where it has numbers are none
    assert_eq!(words(&read_with("x,k,y\n1,7,2\n3,7,4\n", &of(false)), 0), ["7", "7"]);
    assert!(refused("x,k,y\n1,a,u\n3,b,v\n", &of(false)).contains("`y`"));
}

#[test]
fn columns_of_other_readers_are_categories() {
    let column = |name: &str, values| NamedColumn { name: name.to_owned(), values };
    let words_of = |codes: &[Option<u32>]| ColumnValues::Words {
        type_name: "category".to_owned(),
        words: strings(&["a", "b", "never"]),
        codes: codes.to_vec(),
    };
    let numbers = || column("x", ColumnValues::Numbers((0..6).map(f64::from).collect()));
    let all = [Some(0), Some(1), Some(0), Some(0), Some(1), Some(1)];
    let reading = read_columns(vec![numbers(), column("k", words_of(&all))], &options()).expect("columns");
    assert_eq!((reading.table.width(), words(&reading, 0)), (1, vec!["a", "b", "a", "a", "b", "b"]));
    let error = read_columns(vec![numbers(), column("k", words_of(&all))], &ReadOptions::default());
    assert!(error.expect_err("text").to_string().contains("values of type category"));
    let holes = [Some(0), None, Some(0), Some(0), Some(1), Some(1)];
    let error = read_columns(vec![numbers(), column("k", words_of(&holes))], &options()).expect_err("a missing one");
    assert!(error.to_string().contains("row 2, column 2"), "{error}");
}

proptest! {
    /// Words of any kind, among numbers, come back from text as they were.
    #[test]
    fn words_survive_text(
        cells in prop::collection::vec((0usize..4, -1e6..1e6f64), 12..40),
        levels in prop::collection::hash_set("[a-zA-Zäöé ,;\"'|-]{0,8}[b-z]", 4),
    ) {
        let levels: Vec<String> = levels.into_iter().map(|level| format!("w{}", level.trim())).collect();
        let mut text = "x,k\n".to_owned();
        for (level, x) in &cells {
            let _ = writeln!(text, "{x:?},\"{}\"", levels[*level].replace('"', "\"\""));
        }
        let reading = read(&text);
        let expected: Vec<&str> = cells.iter().map(|(level, _)| levels[*level].as_str()).collect();
        prop_assert_eq!(words(&reading, 0), expected);
        prop_assert_eq!(reading.table.values(), cells.iter().map(|(_, x)| *x).collect::<Vec<_>>());
    }
}
