//! The arguments of opcodes: numbers, counted bytes and lines.

use super::value::Value;
use crate::error::ImportError;

/// A place in a pickle.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    input: &'a [u8],
    /// The next byte.
    pub(super) at: usize,
    /// The opcode that is being read, for errors.
    pub(super) opcode: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(input: &'a [u8], at: usize) -> Self {
        Self { input, at, opcode: at }
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> ImportError {
        ImportError::Pickle { offset: self.opcode, problem: problem.into() }
    }

    /// So many bytes, if there are.
    pub(super) fn bytes(&mut self, count: u64) -> Result<&'a [u8], ImportError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let bytes = usize::try_from(count).ok().and_then(|count| rest.get(..count)).ok_or_else(|| {
            self.error(format!("the file ends here: {count} more bytes are declared, {} are left", rest.len()))
        })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    /// An unsigned integer of 1, 2, 4 or 8 bytes.
    pub(super) fn unsigned(&mut self, width: u64) -> Result<u64, ImportError> {
        let bytes = self.bytes(width)?;
        Ok(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    /// Bytes after their count, which has so many bytes itself.
    pub(super) fn counted(&mut self, width: u64) -> Result<&'a [u8], ImportError> {
        let count = self.unsigned(width)?;
        self.bytes(count)
    }

    /// Up to the next line feed, which is consumed.
    pub(super) fn line(&mut self) -> Result<&'a [u8], ImportError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&b| b == b'\n').ok_or_else(|| self.error("the file ends within a line"))?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    /// A line that is plain text.
    pub(super) fn text_line(&mut self) -> Result<&'a str, ImportError> {
        let line = self.line()?;
        std::str::from_utf8(line).map_err(|_| self.error("a line is not UTF-8"))
    }

    /// A line that is a number.
    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T, ImportError> {
        let line = self.text_line()?;
        line.trim().parse().map_err(|_| self.error(format!("`{line}` is not a number")))
    }

    /// A line with an integer, which old protocols also use for booleans.
    pub(super) fn integer_line(&mut self) -> Result<Value<'a>, ImportError> {
        let line = self.text_line()?.trim();
        match line.trim_end_matches('L') {
            "00" => Ok(Value::Bool(false)),
            "01" => Ok(Value::Bool(true)),
            digits => {
                // nothing asks for integers of more than 64 bits that are written in decimals
                let number = digits.parse().map(Value::Int);
                let decimal = digits.trim_start_matches('-').bytes().all(|b| b.is_ascii_digit()) && digits.len() > 18;
                number.or_else(|_| {
                    if decimal { Ok(Value::Long(&[])) } else { Err(self.error(format!("`{line}` is not a number"))) }
                })
            }
        }
    }
}

/// Text, or bytes if it is not UTF-8: Python 2's strings can be either.
pub(super) fn text(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::Bytes, Value::Text)
}

/// A quoted line of protocol 0. Escapes stay as they are: no name that matters needs one.
pub(super) fn quoted(line: &[u8]) -> Value<'_> {
    match line {
        [b'\'', inside @ .., b'\''] | [b'"', inside @ .., b'"'] => text(inside),
        _ => text(line),
    }
}

/// An integer in two's complement, little end first.
pub(super) fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let extension = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut word = [extension; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(word))
}
