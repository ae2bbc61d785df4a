//! The readers of tables over mutations of the fuzz targets' seeds, without a fuzzer.

use crate::files::{checks, checks_tables};
use crate::mutation::{fuzz, mutate};

#[test]
fn csv_reader_survives_mutations() {
    let tokens: [&[u8]; 16] = [
        b",",
        b"\n",
        b"\r\n",
        b"\r",
        b"\"",
        b"\"\"",
        b"1e999",
        b"nan",
        b"-inf",
        b"-",
        b" ",
        b"\xff",
        b"\xef\xbb\xbf",
        b"0x1",
        b"1_0",
        b"4.9e-324",
    ];
    fuzz("csv", 150_000, checks::csv, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

#[test]
fn npy_reader_survives_mutations() {
    let tokens: [&[u8]; 18] = [
        b"(",
        b")",
        b"[",
        b"{",
        b",",
        b"'",
        b"\"",
        b"'''",
        b"\\",
        b"0",
        b"18446744073709551615",
        b"0x",
        b"'<f4'",
        b"'>i8'",
        b"True",
        b"'shape': (1,), ",
        b"\xff\xff\xff\xff",
        b"(2, 3)",
    ];
    fuzz("npy", 150_000, checks::npy, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

#[test]
fn table_reader_survives_mutations() {
    let tokens: [&[u8]; 28] = [
        b",",
        b";",
        b"\t",
        b"|",
        b" ",
        b"\n",
        b"\r\n",
        b"\r",
        b"\"",
        b"#",
        b"# a,b\n",
        b"sep=;\n",
        b"1,5",
        b"0,1\n",
        b"NA",
        b"?",
        b"nan",
        b"inf",
        b"Unnamed: 0",
        b"a,b\n",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1f\x8b\x08",
        b"PK\x03\x04",
        b"'<f2'",
        b"<html",
        b"\xe9",
        b"\0",
    ];
    fuzz("table", 60_000, checks_tables::table, |input, seeds, g| mutate(input, seeds, &tokens, g));
}
