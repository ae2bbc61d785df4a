//! NPY: NumPy's array files, versions 1.0 to 3.0
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
//!
//! One array of `f2`, `f4`, `f8` or integers of at most 64 bits (beyond 2⁵³ they are rounded), of either byte order, in C
//! or Fortran order; shape (rows, columns), or (rows,) for one column or a structured array, whose fields become named
//! columns. The array must fill the file to its end.
//!
//! The header is a Python literal. The crate npyz allocates as much for it as the file announces, parses it in time
//! exponential in its nesting, and multiplies its numbers unchecked. So the header is checked first, and only plain
//! ones get that far: it lies within the file, has at most 10,000 bytes (NumPy's own limit), no escape, no nesting
//! deeper than four, no numbers but decimal integers, and their product fits 64 bits. The shape is compared with the
//! bytes that are there before anything of its size is allocated.

use std::io::Write;

use npyz::{DType, Endianness, NpyFile, NpyHeader, Order, TypeChar, TypeStr, WriteOptions, WriterBuilder};

use super::reading::{Cells, Layout, ReadOptions, Reading, choose, finish};
use super::structured;
use super::table::Table;
use crate::error::{DataError, Place};

/// NumPy's `max_header_size`.
const MAX_HEADER: usize = 10_000;
/// Deeper than any header of an array of numbers (a tuple in a dictionary); the parser's time doubles with each level.
const MAX_DEPTH: usize = 4;
/// The first bytes of a file, with all of any header that is read.
pub(super) const HEAD: u64 = 16 << 10;

/// The floating-point types that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// Single precision, `<f4`.
    F4,
    /// Double precision, `<f8`.
    F8,
}

/// Reads a table, without column names, or of a structured array's fields.
///
/// # Errors
///
/// Returns [`DataError::NpyHeader`] for a damaged header, [`DataError::NpyType`] for another type,
/// [`DataError::NpyShape`] for a shape of no or more than two dimensions or without rows or columns,
/// [`DataError::NpyLength`] or [`DataError::NpyOverflow`] for a file shorter or longer than its header says, and
/// [`DataError::Cells`] for NaN and infinite values, with their rows and columns.
pub fn read(bytes: &[u8]) -> Result<Table, DataError> {
    Ok(read_with(bytes, &ReadOptions::default())?.table)
}

/// Whether a file begins as an array does.
pub(super) fn begins(head: &[u8]) -> bool {
    head.starts_with(b"\x93NUMPY")
}

pub(super) fn read_with(bytes: &[u8], options: &ReadOptions) -> Result<Reading, DataError> {
    if bytes.is_empty() {
        return Err(DataError::Empty);
    }
    let (header, data) = parse(bytes)?;
    match header.dtype() {
        DType::Plain(scalar) => plain(Array { header, scalar, data }, options),
        DType::Record(fields) => structured::read(&fields, header.shape(), data, options),
        dtype @ DType::Array(..) => Err(DataError::NpyType { dtype: dtype.descr() }),
    }
}

fn plain(array: Array, options: &ReadOptions) -> Result<Reading, DataError> {
    let shape = array.shape();
    let (rows, width) = match *shape {
        [rows] if rows > 0 => (rows, 1),
        [rows, width] if rows > 0 && width > 0 => (rows, width),
        _ => return Err(DataError::NpyShape { shape: shape.to_vec() }),
    };
    let order = array.order();
    let values = array.numbers()?;
    // both fit: their product is at most the number of bytes in memory
    let (rows, width) = (rows as usize, width as usize);
    let layout = choose(None, width, options)?;
    let columns = layout.columns();
    let values = match order {
        Order::C if columns.iter().copied().eq(0..width) => values,
        Order::C => values.chunks_exact(width).flat_map(|row| columns.iter().map(|&c| row[c])).collect(),
        Order::Fortran => {
            (0..rows).flat_map(|i| columns.iter().map(move |&c| (i, c))).map(|(i, c)| values[c * rows + i]).collect()
        }
    };
    finish_array(layout, values, options)
}

/// Makes a table of an array's values, in which NaN is a missing one.
pub(super) fn finish_array(layout: Layout, values: Vec<f64>, options: &ReadOptions) -> Result<Reading, DataError> {
    let mut faults = Cells::watching(&layout, options);
    for (row, cells) in values.chunks_exact(layout.len()).enumerate() {
        for (slot, &value) in cells.iter().enumerate() {
            faults.watch_value(slot, value);
            if !value.is_finite() {
                let place = Place::Index { row, column: layout.columns()[slot], name: layout.name(slot) };
                faults.add_value(slot, value, place);
            }
        }
        faults.next_row();
    }
    finish(layout, values, faults, options, Vec::new())
}

/// The header, once it is checked, and the data behind it.
pub(super) fn parse(bytes: &[u8]) -> Result<(NpyHeader, &[u8]), DataError> {
    check_header(bytes)?;
    let mut data = bytes;
    let header = NpyHeader::from_reader(&mut data).map_err(|e| unparsed(&e.to_string()))?;
    Ok((header, data))
}

/// An array behind a checked header, of any shape and scalar type; its data are not looked at until they are asked for.
pub(super) struct Array<'a> {
    header: NpyHeader,
    scalar: TypeStr,
    data: &'a [u8],
}

impl<'a> Array<'a> {
    /// Reads the header alone, so a file's beginning is enough.
    #[cfg(feature = "images")]
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, DataError> {
        let (header, data) = parse(bytes)?;
        match header.dtype() {
            DType::Plain(scalar) => Ok(Self { header, scalar, data }),
            dtype => Err(DataError::NpyType { dtype: dtype.descr() }),
        }
    }

    pub(super) fn shape(&self) -> &[u64] {
        self.header.shape()
    }

    /// The bytes behind the header.
    #[cfg(feature = "images")]
    pub(super) fn rest(&self) -> usize {
        self.data.len()
    }

    pub(super) fn order(&self) -> Order {
        self.header.order()
    }

    /// The kind of the numbers and their size in bytes.
    pub(super) fn scalar(&self) -> (TypeChar, u64) {
        (self.scalar.type_char(), self.scalar.size_field())
    }

    /// The type as the header has it.
    pub(super) fn dtype(&self) -> String {
        self.scalar.to_string()
    }

    /// The data as they stand in the file, which ends where they end.
    pub(super) fn data(&self) -> Result<&'a [u8], DataError> {
        let count = self.shape().iter().try_fold(1_u64, |count, &d| count.checked_mul(d));
        let expected = count.and_then(|count| count.checked_mul(self.scalar.size_field()));
        let expected = expected.ok_or(DataError::NpyOverflow)?;
        let found = self.data.len() as u64;
        if expected == found { Ok(self.data) } else { Err(DataError::NpyLength { expected, found }) }
    }

    /// The numbers in the order of the file.
    pub(super) fn numbers(self) -> Result<Vec<f64>, DataError> {
        let data = self.data();
        if matches!(data, Err(DataError::NpyOverflow)) {
            return Err(DataError::NpyOverflow);
        }
        let (kind, size) = self.scalar();
        let unsupported = DataError::NpyType { dtype: self.dtype() };
        let Some(scalar) = Scalar::of(&self.scalar) else { return Err(unsupported) };
        if (kind, size) == (TypeChar::Float, 2) {
            return Ok(data?.chunks_exact(2).map(|bytes| scalar.decode(bytes)).collect());
        }
        let file = NpyFile::with_header(self.header, data?);
        match (kind, size) {
            (TypeChar::Float, 4) => decode(file, |v: f32| f64::from(v)),
            (TypeChar::Float, _) => decode(file, |v: f64| v),
            (TypeChar::Int, 1) => decode(file, |v: i8| f64::from(v)),
            (TypeChar::Int, 2) => decode(file, |v: i16| f64::from(v)),
            (TypeChar::Int, 4) => decode(file, |v: i32| f64::from(v)),
            (TypeChar::Int, _) => decode(file, |v: i64| v as f64),
            (TypeChar::Uint, 1) => decode(file, |v: u8| f64::from(v)),
            (TypeChar::Uint, 2) => decode(file, |v: u16| f64::from(v)),
            (TypeChar::Uint, 4) => decode(file, |v: u32| f64::from(v)),
            (TypeChar::Uint, _) => decode(file, |v: u64| v as f64),
            _ => Err(unsupported),
        }
    }
}

/// Writes a table's values as a little-endian array in C order; its column names have no place in the format.
///
/// # Errors
///
/// Returns [`DataError::TooLarge`] if a value overflows single precision, before anything is written; [`DataError::Io`]
/// if `out` cannot be written.
pub fn write(table: &Table, float: Float, out: impl Write) -> Result<(), DataError> {
    let shape = [table.rows() as u64, table.width() as u64];
    let values = table.values().iter().copied();
    match float {
        Float::F4 => {
            if let Some(i) = table.values().iter().position(|&v| !(v as f32).is_finite()) {
                let (row, column) = (i / table.width(), i % table.width());
                let name = table.columns().map(|names| names[column].clone());
                return Err(DataError::TooLarge {
                    place: Place::Index { row, column, name },
                    value: table.values()[i],
                });
            }
            let mut writer = WriteOptions::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
            writer.extend(values.map(|v| v as f32))?;
            Ok(writer.finish()?)
        }
        Float::F8 => {
            let mut writer = WriteOptions::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
            writer.extend(values)?;
            Ok(writer.finish()?)
        }
    }
}

/// A type of numbers that are written as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Double precision, little-endian.
    F8,
    /// Bytes.
    U1,
}

/// What an array of a shape begins with, before its numbers in C order.
///
/// # Errors
/// Returns [`DataError::Io`] if the header cannot be made.
pub fn header(shape: &[usize], element: Element) -> Result<Vec<u8>, DataError> {
    fn begin<T: npyz::AutoSerialize>(shape: &[u64], out: &mut Vec<u8>) -> std::io::Result<()> {
        // the header is written before any value
        WriteOptions::<T>::new().default_dtype().shape(shape).writer(out).begin_nd().map(drop)
    }
    let shape: Vec<u64> = shape.iter().map(|&length| length as u64).collect();
    let mut bytes = Vec::new();
    match element {
        Element::F8 => begin::<f64>(&shape, &mut bytes)?,
        Element::U1 => begin::<u8>(&shape, &mut bytes)?,
    }
    Ok(bytes)
}

/// Writes rows of double precision as they come, into an array whose length is known before.
#[derive(Debug)]
pub struct RowWriter<W: Write> {
    /// The values that are still missing.
    rest: usize,
    out: W,
}

impl<W: Write> RowWriter<W> {
    /// Begins an array `[rows, width]`, little-endian in C order.
    ///
    /// # Errors
    /// Returns [`DataError::Io`] if `out` cannot be written.
    pub fn new(rows: usize, width: usize, mut out: W) -> Result<Self, DataError> {
        out.write_all(&header(&[rows, width], Element::F8)?)?;
        Ok(Self { rest: rows * width, out })
    }

    /// Writes the values of the next rows, row by row.
    ///
    /// # Errors
    /// Returns [`DataError::TableShape`] for more values than are left of the array, [`DataError::Io`] if they cannot be written.
    pub fn write(&mut self, values: &[f64]) -> Result<(), DataError> {
        let left = self.rest.checked_sub(values.len());
        self.rest = left.ok_or(DataError::TableShape { values: values.len(), width: self.rest })?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(self.out.write_all(&bytes)?)
    }

    /// Ends the array, and gives back where it was written.
    ///
    /// # Errors
    /// Returns [`DataError::TableShape`] if values are missing.
    pub fn finish(self) -> Result<W, DataError> {
        let Self { rest, out } = self;
        if rest == 0 { Ok(out) } else { Err(DataError::TableShape { values: 0, width: rest }) }
    }
}

/// A type of numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalar {
    kind: TypeChar,
    pub(super) size: usize,
    big: bool,
}

impl Scalar {
    /// Floats of at least half precision and integers of at most 64 bits.
    pub(super) fn of(dtype: &TypeStr) -> Option<Self> {
        let (kind, size) = (dtype.type_char(), dtype.size_field());
        let known =
            matches!((kind, size), (TypeChar::Float, 2 | 4 | 8) | (TypeChar::Int | TypeChar::Uint, 1 | 2 | 4 | 8));
        let ordered = size == 1 || dtype.endianness() != Endianness::Irrelevant;
        let big = dtype.endianness() == Endianness::Big;
        (known && ordered).then_some(Self { kind, size: size as usize, big })
    }

    /// The number in as many bytes as the type has.
    pub(super) fn decode(self, bytes: &[u8]) -> f64 {
        let mut little = [0; 8];
        for (i, &byte) in bytes.iter().take(8).enumerate() {
            little[if self.big { self.size - 1 - i } else { i }] = byte;
        }
        let bits = u64::from_le_bytes(little);
        match (self.kind, self.size) {
            (TypeChar::Float, 2) => half(bits as u16),
            (TypeChar::Float, 4) => f64::from(f32::from_bits(bits as u32)),
            (TypeChar::Float, _) => f64::from_bits(bits),
            (TypeChar::Int, size) => {
                let shift = 64 - 8 * size;
                (((bits << shift) as i64) >> shift) as f64
            }
            _ => bits as f64,
        }
    }
}

/// A number in half precision: sign, five bits of the exponent, ten of the fraction.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2.0_f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2.0_f64.powi(exponent - 15),
    }
}

fn decode<T: npyz::Deserialize>(file: NpyFile<&[u8]>, widen: impl Fn(T) -> f64) -> Result<Vec<f64>, DataError> {
    let reader = file.data::<T>().map_err(|e| unparsed(&e.to_string()))?;
    Ok(reader.map(|value| value.map(&widen)).collect::<Result<_, _>>()?)
}

fn unreadable(problem: &str) -> DataError {
    DataError::NpyHeader { problem: problem.to_owned() }
}

/// The error of npyz in one line: its syntax errors are drawings.
fn unparsed(problem: &str) -> DataError {
    if problem.starts_with("could not parse Python expression") {
        unreadable("its header is not a Python dictionary")
    } else {
        unreadable(&format!("in its header, {}", crate::error::Excerpt(problem)))
    }
}

/// Refuses every header that the parser could not digest; see the module's header.
fn check_header(bytes: &[u8]) -> Result<(), DataError> {
    let text = header_text(bytes)?;
    if text.len() > MAX_HEADER {
        return Err(unreadable(&format!("its header has more than {MAX_HEADER} bytes")));
    }
    let plain = |&b: &u8| matches!(b, b' '..=b'~' | b'\n') && b != b'\\';
    if !text.iter().all(plain) || text.windows(3).any(|w| w == b"'''" || w == b"\"\"\"") {
        return Err(unreadable("its header is not plain text"));
    }
    let mut quote = None;
    let mut depth = 0_usize;
    let mut digits: Option<u64> = None;
    let mut product = 1_u64;
    // the line feed ends a number at the text's end
    for &byte in text.iter().chain(b"\n") {
        if quote.is_some() {
            quote = quote.filter(|&q| q != byte);
            continue;
        }
        if byte.is_ascii_digit() {
            let value = digits.unwrap_or(0).checked_mul(10).and_then(|v| v.checked_add(u64::from(byte - b'0')));
            digits = Some(value.ok_or(DataError::NpyOverflow)?);
            continue;
        }
        if let Some(value) = digits.take() {
            if byte.is_ascii_alphabetic() || byte == b'_' {
                return Err(unreadable("a number in its header is not a decimal integer"));
            }
            product = product.checked_mul(value.max(1)).ok_or(DataError::NpyOverflow)?;
        }
        match byte {
            b'\'' | b'"' => quote = Some(byte),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'+' | b'-' | b'.' => return Err(unreadable("a number in its header is not a decimal integer")),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(unreadable("its header is nested too deeply"));
        }
    }
    Ok(())
}

/// The header's text, between the preamble and the data.
fn header_text(bytes: &[u8]) -> Result<&[u8], DataError> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(|| unreadable("it does not begin with \\x93NUMPY"))?;
    let (length, start) = match *rest {
        [1, 0, a, b, ..] => (u32::from(u16::from_le_bytes([a, b])), 4),
        [2 | 3, 0, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]), 6),
        [1..=3, 0, ..] => return Err(unreadable("it ends within its header")),
        [major, minor, ..] => return Err(unreadable(&format!("its version is {major}.{minor}, not 1.0, 2.0 or 3.0"))),
        _ => return Err(unreadable("it ends within its header")),
    };
    let text = &rest[start..];
    text.get(..length as usize).ok_or_else(|| unreadable("it ends within its header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 1.0 file with this header dictionary and data.
    fn file(dict: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(dict.len()).expect("a short header").to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn array(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let fortran = if fortran { "True" } else { "False" };
        file(&format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"), data)
    }

    fn message(bytes: &[u8]) -> String {
        read(bytes).expect_err("an error").to_string()
    }

    #[test]
    fn orders_and_types() {
        let c: Vec<u8> = [1_i16, 2, 3, 4, 5, 6].iter().flat_map(|v| v.to_le_bytes()).collect();
        let f: Vec<u8> = [1_i16, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_be_bytes()).collect();
        let table = read(&array("<i2", false, "(2, 3)", &c)).expect("a table");
        assert_eq!(table.row(1), [4.0, 5.0, 6.0]);
        assert_eq!(read(&array(">i2", true, "(2, 3)", &f)).expect("a table"), table);
        let column = read(&array("|u1", false, "(3,)", &[0, 128, 255])).expect("a table");
        assert_eq!((column.width(), column.values()), (1, &[0.0, 128.0, 255.0][..]));
        let column = read(&array("<u8", false, "(1,)", &u64::MAX.to_le_bytes())).expect("a table");
        assert_eq!(column.values(), [18_446_744_073_709_551_616.0]);
    }

    #[test]
    fn half_precision_is_exact() {
        let bits = [0x0000_u16, 0x8000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0xc000, 0x3555, 0x7bff];
        let expected = [
            0.0,
            -0.0,
            2.0_f64.powi(-24),
            1023.0 * 2.0_f64.powi(-24),
            2.0_f64.powi(-14),
            1.0,
            -2.0,
            0.333_251_953_125,
            65504.0,
        ];
        for (descr, big) in [("<f2", false), (">f2", true)] {
            let data: Vec<u8> = bits.iter().flat_map(|b| if big { b.to_be_bytes() } else { b.to_le_bytes() }).collect();
            let table = read(&array(descr, false, "(9,)", &data)).expect("a table");
            assert_eq!(table.values(), expected);
        }
        assert!(
            message(&array("<f2", false, "(1,)", &[0, 0x7c]))
                .starts_with("row 1, column 1 (index [0, 0]): the value is inf")
        );
        assert!(message(&array("<f2", false, "(1,)", &[1, 0x7c])).contains("the value is NaN"));
    }

    #[test]
    fn fields_are_columns() {
        let descr = "[('a', '<f8'), ('', '|V3'), ('b', '>i2'), ('c', '|u1'), ('d', '<f2')]";
        let dict = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2,)}}");
        let mut data = Vec::new();
        for (a, b, c) in [(1.5_f64, -2_i16, 3_u8), (-0.5, 300, 255)] {
            data.extend(a.to_le_bytes());
            data.extend([9; 3]);
            data.extend(b.to_be_bytes());
            data.push(c);
            data.extend(0x3c00_u16.to_le_bytes());
        }
        let table = read(&file(&dict, &data)).expect("a table");
        assert_eq!(table.columns(), Some(&["a", "b", "c", "d"].map(str::to_owned)[..]));
        assert_eq!(table.values(), [1.5, -2.0, 3.0, 1.0, -0.5, 300.0, 255.0, 1.0]);
    }

    #[test]
    fn faults_are_named() {
        assert!(matches!(read(b""), Err(DataError::Empty)));
        assert!(message(b"1,2\n").contains("does not begin with"));
        assert!(message(b"\x93NUMPY").contains("ends within its header"));
        assert!(message(b"\x93NUMPY\x04\x00\x00\x00").contains("version is 4.0"));
        assert!(message(b"\x93NUMPY\x03\x00\xff\xff\xff\xff{}").contains("ends within its header"));
        for descr in ["<f16", "|b1", "<c8", "<U3", "|O", "<M8[s]", "|S8", "|f8", "<f3"] {
            let text = message(&array(descr, false, "(1,)", &[0; 12]));
            assert!(text.contains("type") || text.contains("not a readable"), "{descr}: {text}");
        }
        let record = "{'descr': [('a', '<f8'), ('b', '<U1')], 'fortran_order': False, 'shape': (1,)}";
        assert!(message(&file(record, &[0; 12])).starts_with("column 2 (`b`) holds text (`<U1`)"));
        assert!(message(&file(record, &[0; 16])).contains("announces 12 bytes"));
        assert!(message(&array("<f8", false, "()", &[0; 8])).starts_with("the array's shape is ()"));
        assert!(message(&array("<f8", false, "(0, 3)", &[])).starts_with("the array's shape is (0, 3)"));
        assert!(message(&array("<f8", false, "(3, 0)", &[])).starts_with("the array's shape is (3, 0)"));
        assert!(message(&array("<f8", false, "(1, 1, 1)", &[0; 8])).starts_with("the array's shape is (1, 1, 1)"));
        assert!(message(&array("<f8", false, "(2,)", &[0; 15])).contains("16 bytes of data, but 15"));
        assert!(message(&array("<f8", false, "(2,)", &[0; 15])).contains("cut short"));
        assert!(message(&array("<f8", false, "(2,)", &[0; 17])).contains("more than one array"));
        let bad: Vec<u8> = [0.0, 1.0, f64::NAN, f64::INFINITY].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
        assert!(message(&array("<f8", false, "(2, 2)", &bad)).starts_with("row 2, column 1 (index [1, 0]): the value"));
        assert!(message(&array("<f8", true, "(2, 2)", &bad)).starts_with("row 1, column 2 (index [0, 1]): the value"));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let huge = "(4294967296, 4294967296, 4294967296)";
        assert!(matches!(read(&array("<f8", false, huge, &[])), Err(DataError::NpyOverflow)));
        assert!(matches!(read(&array("<f8", true, "(0, 9223372036854775808, 4)", &[])), Err(DataError::NpyOverflow)));
        assert!(matches!(read(&array("<f8", false, "(99999999999999999999,)", &[])), Err(DataError::NpyOverflow)));
        assert!(message(&array("<f8", false, "(1152921504606846976,)", &[0; 8])).contains("9223372036854775808 bytes"));
        assert!(matches!(read(&array("<f8", false, "(4611686018427387904,)", &[])), Err(DataError::NpyOverflow)));
        assert!(message(&array("<f8", false, "(0x10,)", &[])).contains("decimal integer"));
        assert!(message(&array("<f8", false, "(-1,)", &[])).contains("decimal integer"));
        assert!(message(&array("<f8", false, "(1_0,)", &[])).contains("decimal integer"));
        assert!(message(&array("<f8\\x41", false, "(1,)", &[])).contains("plain text"));
        assert!(message(&array("''", false, "(1,)", &[])).contains("plain text"));
        assert!(message(&file(&"(".repeat(9_000), &[])).contains("nested too deeply"));
        assert!(message(&file(&" ".repeat(10_001), &[])).contains("more than 10000 bytes"));
        // counted inside a string, they would be a decoy
        assert!(read(&array("<f8", false, "(1,)", &1_f64.to_le_bytes())).is_ok());
        let decoy = "{'descr': '<f8', '99999999999999999999': '(((((((((', 'fortran_order': False, 'shape': (1,)}";
        assert!(read(&file(decoy, &1_f64.to_le_bytes())).is_ok());
    }

    #[test]
    fn single_precision_does_not_overflow() {
        let table = Table::new(None, 2, vec![0.0, 1e39]).expect("a table");
        let mut out = Vec::new();
        let error = write(&table, Float::F4, &mut out).expect_err("too large").to_string();
        assert!(error.starts_with("row 1, column 2 (index [0, 1]): 1"), "{error}");
        assert!(out.is_empty());
        assert!(write(&table, Float::F8, &mut out).is_ok());
    }
}
