//! Tables as people have them: any dialect reads as the table that was written, and what is decided is told.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use resflow::data::{
    self, DataError, Decimal, Fault, Missing, ModelColumns, Note, ReadOptions, Reading, Separator, Table, csv,
    read_from,
};

use crate::memory::peak;

fn read(text: impl AsRef<[u8]>) -> Result<Reading, DataError> {
    read_from(text.as_ref(), &ReadOptions::default())
}

fn good(text: impl AsRef<[u8]>) -> Reading {
    let text = text.as_ref();
    read(text).unwrap_or_else(|e| panic!("{}: {e}", text.escape_ascii()))
}

fn refused(text: impl AsRef<[u8]>, options: &ReadOptions) -> String {
    let text = text.as_ref();
    match read_from(text, options) {
        Ok(reading) => panic!("{}: {reading:?}", text.escape_ascii()),
        Err(error) => error.to_string(),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a table takes them")]
fn names(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(ToString::to_string).collect())
}

fn table(columns: &[&str], values: &[f64]) -> Table {
    Table::new(names(columns), columns.len(), values.to_vec()).expect("a table")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Quotes {
    None,
    Names,
    All,
}

/// How a table is written.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
struct Style {
    separator: &'static str,
    decimal: char,
    quotes: Quotes,
    end: &'static str,
    header: bool,
    comment: bool,
    trailing: bool,
    encoding: u8,
    gzip: bool,
}

fn styles() -> impl Strategy<Value = Style> {
    let separator = prop::sample::select(vec![",", ";", "\t", "|", " ", "   ", " \t", ", ", " ; "]);
    let quotes = prop::sample::select(vec![Quotes::None, Quotes::Names, Quotes::All]);
    let end = prop::sample::select(vec!["\n", "\r\n", "\r", "\n\n"]);
    (separator, any::<bool>(), quotes, end, any::<(bool, bool, bool)>(), 0..4_u8, any::<bool>()).prop_map(
        |(separator, comma, quotes, end, (header, comment, trailing), encoding, gzip)| Style {
            separator,
            decimal: if comma && separator.trim() != "," { ',' } else { '.' },
            quotes,
            end,
            header,
            comment,
            trailing: trailing && !separator.trim().is_empty(),
            encoding,
            gzip,
        },
    )
}

impl Style {
    fn write(&self, table: &Table) -> Vec<u8> {
        let quote = |cell: String, quoted: bool| if quoted { format!("\"{cell}\"") } else { cell };
        let mut text = String::new();
        if self.comment {
            text += "# made by rig 7";
            text += self.end;
        }
        let mut line = |cells: Vec<String>| {
            text += &cells.join(self.separator);
            text += if self.trailing { self.separator } else { "" };
            text += self.end;
        };
        if let Some(names) = table.columns() {
            line(names.iter().map(|name| quote(name.clone(), self.quotes != Quotes::None)).collect());
        }
        for row in table.values().chunks_exact(table.width()) {
            let cell =
                |v: &f64| quote(format!("{v:?}").replace('.', &self.decimal.to_string()), self.quotes == Quotes::All);
            line(row.iter().map(cell).collect());
        }
        let bytes = match self.encoding {
            0 => text.into_bytes(),
            1 => [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            2 => "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect(),
            _ => "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect(),
        };
        if self.gzip { gzip(&bytes) } else { bytes }
    }
}

fn values() -> BoxedStrategy<f64> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![-10.0..10.0, -1e6..1e6, POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO].boxed()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_dialect_reads_as_the_same_table(
        style in styles(),
        (width, numbers) in (1..6_usize, 2..12_usize).prop_flat_map(|(w, n)| (Just(w), prop::collection::vec(values(), w * n))),
        labels in prop::collection::vec("[a-z]{1,8}", 6),
    ) {
        let columns = style.header.then(|| labels[..width].to_vec());
        let Ok(table) = Table::new(columns, width, numbers) else { return Ok(()) };
        // one column of `1,5` is two of integers
        let decimal = (width == 1 && style.decimal == ',').then_some(Decimal::Comma);
        let reading = read_from(&style.write(&table)[..], &ReadOptions { decimal, ..ReadOptions::default() })?;
        let bits = |table: &Table| table.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&reading.table), bits(&table));
        prop_assert_eq!(reading.table.columns(), table.columns());
        prop_assert!(reading.dropped.is_empty());
        // all that is unusual is told
        let told = |wanted: fn(&Note) -> bool| reading.notes.iter().any(wanted);
        prop_assert_eq!(told(|n| *n == Note::Gzip), style.gzip);
        prop_assert_eq!(told(|n| matches!(n, Note::Encoding(_))), style.encoding > 1);
        prop_assert_eq!(told(|n| matches!(n, Note::Comments { .. })), style.comment);
        prop_assert_eq!(told(|n| matches!(n, Note::TrailingSeparator)), style.trailing);
        if width > 1 {
            prop_assert_eq!(told(|n| matches!(n, Note::Separator(_))), style.separator.trim() != ",");
        }
    }

    /// Missing cells anywhere: all of them are found, and without their rows the rest is the table.
    #[test]
    fn missing_cells_are_found_or_left_out(
        width in 1..4_usize,
        cells in prop::collection::vec(prop::option::weighted(0.7, -100.0..100.0_f64), 12..40),
        spelling in prop::sample::select(vec!["NA", "?", "nan", "null", "N/A", "None", "#N/A", "-"]),
    ) {
        let rows: Vec<_> = cells.chunks_exact(width).collect();
        let whole: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].iter().all(Option::is_some)).collect();
        if whole.is_empty() || whole.len() == rows.len() || whole[0] != 0 {
            return Ok(());
        }
        let mut text = (0..width).map(|i| format!("c{i}")).collect::<Vec<_>>().join(",") + "\n";
        for row in &rows {
            let row = row.iter().map(|c| c.map_or(spelling.to_owned(), |v| format!("{v:?}")));
            let _ = writeln!(text, "{}", row.collect::<Vec<_>>().join(","));
        }
        let DataError::Cells(faults) = read(&text).expect_err("missing") else { panic!("cells") };
        prop_assert_eq!(faults.incomplete, rows.len() - whole.len());
        for column in 0..width {
            let missing = rows.iter().filter(|row| row[column].is_none()).count();
            let found = faults.columns.iter().find(|c| c.handle == format!("c{column}"));
            prop_assert_eq!(found.map_or(0, |c| c.count), missing);
                let right = found.is_none_or(|c| matches!(c.fault, Fault::Missing { .. }));
            prop_assert!(right);
        }
        let options = ReadOptions { missing: Missing::DropRows, ..ReadOptions::default() };
        let reading = read_from(text.as_bytes(), &options)?;
        let expected: Vec<f64> = whole.iter().flat_map(|&i| rows[i].iter().flatten().copied()).collect();
        prop_assert_eq!(reading.table.values(), &expected[..]);
        let dropped: Vec<usize> = (0..rows.len()).filter(|i| !whole.contains(i)).collect();
        prop_assert_eq!(reading.dropped, dropped);
    }
}

#[test]
fn what_is_ambiguous_is_refused_with_both_readings() {
    let none = ReadOptions::default();
    for (text, parts) in [
        ("1,23\n4,56\n", ["--separator ,", "--decimal ,"]),
        ("-1,05\n4,5\n", ["--separator ,", "--decimal ,"]),
        ("h\n1,23\n2,56\n3,1\n", ["--separator ,", "--decimal ,"]),
        ("0,1\n5,7\n", ["--header yes", "--header no"]),
        ("2019,2020\n1.5,2.5\n1.5,3.5\n2.5,3.5\n", ["--header yes", "--header no"]),
        ("land,2019,2020\nDE,1,2\nFR,3,4\n", ["--header yes", "--header no"]),
    ] {
        let error = refused(text, &none);
        assert!(parts.iter().all(|part| error.contains(part)), "{text:?}: {error}");
    }
    let with = |options: ReadOptions, text: &str| read_from(text.as_bytes(), &options).expect(text).table;
    let separator = Some(Separator::Comma);
    assert_eq!(with(ReadOptions { separator, ..none.clone() }, "1,23\n4,56\n").row(1), [4.0, 56.0]);
    let decimal = Some(Decimal::Comma);
    assert_eq!(with(ReadOptions { decimal, ..none.clone() }, "1,23\n4,56\n").values(), [1.23, 4.56]);
    let decimal = Some(Decimal::Point);
    assert_eq!(with(ReadOptions { decimal, ..none.clone() }, "1,23\n4,56\n").row(0), [1.0, 23.0]);
    assert_eq!(
        with(ReadOptions { header: Some(true), ..none.clone() }, "0,1\n5,7\n").columns(),
        names(&["0", "1"]).as_deref()
    );
    assert_eq!(with(ReadOptions { header: Some(false), ..none.clone() }, "0,1\n5,7\n").rows(), 2);
    assert!(
        refused("1\n", &ReadOptions { separator: Some(Separator::Comma), decimal: Some(Decimal::Comma), ..none })
            .contains("comma")
    );
    // two columns of digits that nothing tells from such numbers but their lengths
    assert_eq!(good("1,2\n3,4\n").table.width(), 2);
    assert_eq!(good("7,10\n8,9\n").table.width(), 2);
}

#[test]
fn decimal_commas() {
    let reading = good("height\n1,81\n-1,5\n");
    assert_eq!(reading.table, table(&["height"], &[1.81, -1.5]));
    assert_eq!(reading.notes, [Note::DecimalComma]);
    assert_eq!(good("a;b\n1,5;2\n3;4,25\n").table, table(&["a", "b"], &[1.5, 2.0, 3.0, 4.25]));
    // points and commas: a point, and the comma is told
    let error = refused("a;b\n1.5;2\n3;1,234\n", &ReadOptions::default());
    assert!(
        error.starts_with("line 3, column 2 (`b`): `1,234` is not a number") && error.contains("--decimal ,"),
        "{error}"
    );
}

#[test]
fn headers_of_numbers() {
    for text in ["0,1\n1.5,2\n3,4\n", ",0,1\n1,1.5,2\n2,3,4\n", "\"0\",\"1\"\n1.5,2\n3,4\n"] {
        let reading = good(text);
        assert_eq!(reading.table.columns(), names(&["0", "1"]).as_deref(), "{text}");
        assert_eq!(reading.table.values(), [1.5, 2.0, 3.0, 4.0], "{text}");
        assert!(reading.notes.contains(&Note::NumbersAsNames), "{text}");
        // and back
        let mut out = Vec::new();
        csv::write(&reading.table, &mut out).expect("written");
        assert_eq!(csv::read(&out).expect("read"), reading.table);
    }
    assert_eq!(good("0,1,2,3\n5,6,7,8\n1,1,1,2\n").table.rows(), 2, "four integers in their order are no chance");
    assert_eq!(good("0.0,1.0\n1.5,2.5\n").table.rows(), 2);
}

#[test]
fn index_columns_are_left_out() {
    let expected = table(&["a", "b"], &[1.5, 2.0, 3.0, 4.0]);
    for (text, what) in [
        (",a,b\n1,1.5,2\n2,3,4\n", "1, 2, 3, …"),
        ("\"\",\"a\",\"b\"\n\"1\",1.5,2\n\"2\",3,4\n", "1, 2, 3, …"),
        ("Unnamed: 0,a,b\n0,1.5,2\n1,3,4\n", "0, 1, 2, …"),
        (",a,b\n17,1.5,2\n5,3,4\n", "a whole number for each row, no two alike"),
        ("\"a\" \"b\"\n\"1\" 1.5 2\n\"2\" 3 4\n", "1, 2, 3, …"),
        ("a b\nMazda 1.5 2\nDatsun 3 4\n", "the names of the rows"),
        ("a,,b\n1.5,,2\n3,,4\n", ""),
    ] {
        let reading = good(text);
        assert_eq!(reading.table, expected, "{text}");
        let told = reading.notes.iter().any(|note| match note {
            Note::Index { what: told, .. } => *told == what,
            Note::Hollow { .. } => what.is_empty(),
            _ => false,
        });
        assert!(told, "{text}: {:?}", reading.notes);
        assert!(reading.notes.iter().any(Note::is_warning));
    }
    let options = |index: &str| ReadOptions { index: Some(index.to_owned()), ..ReadOptions::default() };
    let text = "id,a,b\nx,1.5,2\ny,3,4\n";
    assert_eq!(read_from(text.as_bytes(), &options("id")).expect("read").table, expected);
    assert!(refused(text, &options("di")).contains("there is no column `di`; there are `id`, `a`, `b`"));
    // what pandas writes without being told may be meant
    let counted = ",a,b\n0,1.5,2\n1,3,4\n";
    let error = refused(counted, &ReadOptions::default());
    assert!(error.contains("index=False") && error.contains("--index 1 leaves it out"), "{error}");
    for said in ["1", ""] {
        assert_eq!(read_from(counted.as_bytes(), &options(said)).expect("read").table, expected);
    }
    let numbered = read_from(&b",0,1\n0,1.5,2\n1,3,4\n"[..], &options("1")).expect("read").table;
    assert_eq!((numbered.columns(), numbered.values()), (names(&["0", "1"]).as_deref(), expected.values()));
    assert!(refused(counted, &options("2")).contains("there is no column `2`"));
    // what counts nothing is a column
    assert_eq!(good("Unnamed: 0,a\n0.5,1.5\n2,3\n").table.width(), 2);
    assert!(refused(",a\n0.5,1.5\n2,3\n", &ReadOptions::default()).contains("index=False"));
    assert!(refused(",a\n5,1.5\n5,3\n", &ReadOptions::default()).contains("name of column 1"));
}

#[test]
fn comments_and_first_lines() {
    let expected = table(&["a", "b"], &[1.5, 2.0, 3.0, 4.0]);
    for text in [
        "# a,b\n1.5,2\n3,4\n",
        "# made by rig 7\n#a,b\n1.5,2\n# so far\n3,4\n",
        "# a b\n1.5 2\n3 4\n",
        "# made by rig 7\na,b\n1.5,2\n3,4\n",
        "sep=;\r\na;b\r\n1,5;2\r\n3;4\r\n",
        "a,b\n1.5,2,\n3,4,\n",
        "a,b,\n1.5,2,\n3,4,\n",
        "a, b\n1.5, 2\n3, 4\n",
        "a\tb\n1.5\t2\n3\t4\n",
    ] {
        let reading = good(text);
        assert_eq!(reading.table, expected, "{text}");
    }
    assert_eq!(good("# made by rig 7\n1.5,2\n3,4\n").table.columns(), None);
    assert_eq!(
        good("T [\u{b0}C];p\n1,5;2\n".chars().map(|c| c as u8).collect::<Vec<_>>()).table.columns().map(<[_]>::len),
        Some(2)
    );
    assert_eq!(good(b"T [\xb0C];p\n1,5;2\n").table.columns(), names(&["T [°C]", "p"]).as_deref());
    assert!(refused("a,b\n1.5,2,\n3,4,5\n", &ReadOptions::default()).contains("line 2 has 3 cells"));
}

#[test]
fn all_faults_are_told_at_once() {
    let text = "name,day,x,y,z\ncar 0,2020-01-01,1,NA,7\ncar 1,2020-01-02,x,5,7\ncar 2,2020-01-03,3,,7\ncar 3,2020-01-04,inf,6,7\n";
    let options = ReadOptions { refuse_constants: true, ..ReadOptions::default() };
    let error = refused(text, &options);
    for part in [
        "2 columns hold text: `name` (line 2: `car 0`), `day` (line 2: `2020-01-01`)",
        "line 3, column 3 (`x`): `x` is not a number",
        "line 5, column 3 (`x`): the value is inf",
        "line 2, column 4 (`y`): `NA` is a missing value, and 1 more like it (line 4)",
        "column 5 (`z`) is 7 in every row",
        "leave the 2 rows out with --missing drop-rows",
        "--drop name,day,y,z",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let columns = names(&["y", "x"]);
    let error = refused(text, &ReadOptions { columns, ..ReadOptions::default() });
    assert!(!error.contains("name") && error.contains("(`y`)") && error.contains("(`x`)"), "{error}");
    let drop = ["name", "day", "x"].map(str::to_owned).to_vec();
    let options = ReadOptions { drop, missing: Missing::DropRows, ..ReadOptions::default() };
    let reading = read_from(text.as_bytes(), &options).expect("numbers are left");
    assert_eq!((reading.table, reading.dropped), (table(&["y", "z"], &[5.0, 7.0, 6.0, 7.0]), vec![0, 2]));
    assert_eq!(reading.notes, [Note::Dropped { rows: 2, of: 4 }]);
    // constants by their handful
    let error = refused("a,b,c\n1,2,3\n1,2,4\n", &ReadOptions { refuse_constants: true, ..ReadOptions::default() });
    assert!(error.starts_with("2 columns are the same in every row: `a`, `b`"), "{error}");
    // the first rows of data without a header
    let error = refused("842302,M,17.99\n842517,B,20.57\n84300903,M,19.69\n", &ReadOptions::default());
    assert!(error.starts_with("column 2 holds text (line 1: `M`)") && error.contains("--drop 2"), "{error}");
    let options = ReadOptions { drop: vec!["2".to_owned()], ..ReadOptions::default() };
    assert_eq!(
        read_from(&b"842302,M,17.99\n842517,M,20.57\n"[..], &options).expect("read").table.row(1),
        [842_517.0, 20.57]
    );
    let all = ReadOptions { missing: Missing::DropRows, ..ReadOptions::default() };
    assert!(refused("a\nNA\nNA\n", &all).contains("missing"));
}

#[test]
fn columns_of_a_model() {
    let model = |names: Option<Vec<String>>, width: usize, by_position: bool| ReadOptions {
        model: Some(ModelColumns { names, width, by_position, ..ModelColumns::default() }),
        ..ReadOptions::default()
    };
    let own = model(names(&["a", "b"]), 2, false);
    let expected = table(&["a", "b"], &[1.5, 2.0, 3.0, 4.0]);
    for text in ["a,b\n1.5,2\n3,4\n", "b,a\n2,1.5\n4,3\n", "id,b,a,day\nx,2,1.5,?\ny,4,3,?\n", ",b,a\n0,2,1.5\n1,4,3\n"]
    {
        assert_eq!(read_from(text.as_bytes(), &own).expect(text).table, expected, "{text}");
    }
    let reading = read_from(&b"id,b,a\nx,2,1.5\ny,4,3\n"[..], &own).expect("read");
    assert_eq!(reading.notes, [Note::Ignored(vec!["id".to_owned()]), Note::Reordered]);
    let bare = read_from(&b"1.5,2\n3,4\n"[..], &own).expect("by position");
    assert_eq!((bare.table.values(), &bare.notes[..]), (expected.values(), &[Note::ByPosition { named: false }][..]));
    let error = refused("a,c\n1,2\n", &own);
    assert!(
        error.starts_with("the model's column `b` is not there, but there is `c`") && error.contains("--by-position"),
        "{error}"
    );
    let error = refused("a,c,d\n1,2,3\n", &own);
    assert!(error.contains("`b` is not there") && !error.contains("--by-position"), "{error}");
    assert!(refused("1,2,3\n", &own).contains("has 3 columns, but 2 are expected"));
    assert!(refused("a,b,a\n1,2,3\n", &own).contains("several columns `a`"));
    let by_position = model(names(&["a", "b"]), 2, true);
    let reading = read_from(&b"x,y\n1.5,2\n3,4\n"[..], &by_position).expect("by position");
    assert_eq!(reading.table.values(), expected.values());
    assert!(reading.notes.iter().any(Note::is_warning));
    let nameless = model(None, 2, false);
    assert_eq!(read_from(&b",x,y\n0,1.5,2\n1,3,4\n"[..], &nameless).expect("read").table.values(), expected.values());
    assert!(refused("x,y,z\n1,2,3\n", &nameless).contains("3 columns, but 2"));
    // a model may have a column that looks like an index
    let indexed = model(names(&["Unnamed: 0", "a"]), 2, false);
    assert_eq!(read_from(&b"Unnamed: 0,a\n0,1\n1,5\n"[..], &indexed).expect("read").table.width(), 2);
    let beside = ReadOptions {
        model: Some(ModelColumns {
            names: names(&["a"]),
            width: 1,
            beside: Some("w".to_owned()),
            ..ModelColumns::default()
        }),
        ..ReadOptions::default()
    };
    assert_eq!(read_from(&b"w,x,a\n1,2,3\n"[..], &beside).expect("read").table, table(&["a", "w"], &[3.0, 1.0]));
    assert_eq!(expected.select_columns(&["b".to_owned(), "a".to_owned()]).expect("there").row(0), [2.0, 1.5]);
    assert!(expected.select_columns(&["c".to_owned()]).is_err() && expected.select_columns(&[]).is_err());
}

#[test]
fn foreign_files_are_named() {
    for (bytes, what) in [
        (&b"<!DOCTYPE html>\n<html></html>"[..], "a web page (HTML)"),
        (b"\n <html><body>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%PDF-1.4\n", "PDF"),
        (b"PAR1\0", "Parquet"),
        (
            b"ARROW1\0",
            "Arrow (Feather) file: the program `resflow` reads it if it was built with the feature `parquet`",
        ),
        (b"\xff\xff\xff\xff\x70\0\0\0", "an Arrow stream"),
        (b"\x80\x04\x95", "pickle"),
        (b"{\"a\": 1}", "JSON"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"@relation x\n", "ARFF"),
    ] {
        let error = refused(bytes, &ReadOptions::default());
        assert!(error.contains(what), "{}: {error}", bytes.escape_ascii());
    }
    assert!(matches!(read(b""), Err(DataError::Empty)));
    assert!(matches!(read(gzip(b"")), Err(DataError::Empty)));
}

#[test]
fn compressed_files_are_whole_or_told() {
    let text = "a,b\n1.5,2\n3,4\n".to_string();
    let packed = gzip(text.as_bytes());
    assert_eq!(good(&packed).table, table(&["a", "b"], &[1.5, 2.0, 3.0, 4.0]));
    assert!(refused(&packed[..packed.len() - 9], &ReadOptions::default()).contains("cut short"));
    // members one after the other are one text
    let two = [gzip(b"a\n1\n"), gzip(b"2\n")].concat();
    assert_eq!(good(two).table.values(), [1.0, 2.0]);
    assert!(refused(gzip(&gzip(&packed)), &ReadOptions::default()).contains("several times"));
    // six megabytes of one number in six kilobytes
    let bomb = gzip(&b"1\n".repeat(3 << 20));
    let (error, peak) = peak(|| refused(&bomb, &ReadOptions::default()));
    assert!(error.contains("200 times"), "{error}");
    assert!(peak < 100 << 20, "{peak}");
}

/// What is read is a small multiple of what comes out, whatever the text's length: a window moves over it.
#[test]
fn text_is_not_held_whole() {
    let rows = 200_000;
    let text = "12345.678901234567,  -1.5000000000000000000000000000000000000\n".repeat(rows);
    let (reading, peak) = peak(|| good(&text));
    assert_eq!(reading.table.rows(), rows);
    // numbers in a vector that doubles, and the window
    assert!(peak < 2 * 16 * rows + (6 << 20), "{peak} of {}", text.len());
}

#[test]
fn zip_files() {
    fn npz(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = Vec::new();
        let mut directory = Vec::new();
        for (name, data) in entries {
            let mut sum = flate2::Crc::new();
            sum.update(data);
            let sizes = [sum.sum(), data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
            let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            common.extend(&sizes);
            common.extend((name.len() as u16).to_le_bytes());
            common.extend([0, 0]);
            directory.extend(b"PK\x01\x02\x14\0");
            directory.extend(&common);
            directory.extend([0; 10]);
            directory.extend((zip.len() as u32).to_le_bytes());
            directory.extend(name.as_bytes());
            zip.extend(b"PK\x03\x04");
            zip.extend(&common);
            zip.extend(name.as_bytes());
            zip.extend(*data);
        }
        let (start, length, count) = (zip.len() as u32, directory.len() as u32, entries.len() as u16);
        zip.extend(directory);
        zip.extend(b"PK\x05\x06\0\0\0\0");
        zip.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
        zip.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
        zip.extend([0, 0]);
        zip
    }
    let array = |value: f64| {
        let mut out = Vec::new();
        let table = Table::new(None, 2, vec![value; 4]).expect("a table");
        data::npy::write(&table, data::npy::Float::F8, &mut out).expect("memory");
        out
    };
    let (x, y) = (array(1.5), array(2.5));
    assert_eq!(good(npz(&[("arr_0.npy", &x)])).table.values(), [1.5; 4]);
    let reading = good(npz(&[("X.npy", &x), ("y.npy", &y)]));
    assert_eq!((reading.table.values(), &reading.notes[..]), (&[1.5; 4][..], &[Note::Member("X.npy".to_owned())][..]));
    let several = npz(&[("u.npy", &x), ("v.npy", &y)]);
    let error = refused(&several, &ReadOptions::default());
    assert!(error.contains("`u`, `v`") && error.contains("--array") && error.contains(".npz"), "{error}");
    let of = |name: &str| ReadOptions { array: Some(name.to_owned()), ..ReadOptions::default() };
    assert_eq!(read_from(&several[..], &of("v")).expect("there").table.values(), [2.5; 4]);
    assert!(refused(&several, &of("w")).contains("no array `w`"));
    assert_eq!(good(npz(&[("data.csv", b"a\n1\n2\n")])).table, table(&["a"], &[1.0, 2.0]));
    assert!(refused(npz(&[("xl/workbook.xml", b""), ("a", b"")]), &ReadOptions::default()).contains("Excel"));
    let mut damaged = npz(&[("arr_0.npy", &x)]);
    let at = damaged.windows(8).position(|w| w == 1.5_f64.to_le_bytes()).expect("the data");
    damaged[at] ^= 1;
    assert!(refused(damaged, &ReadOptions::default()).contains("zip"));
}
