//! The CSV and NPY readers over mutations of the fuzz targets' seeds, without a fuzzer.

use crate::checks;
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
