//! Streams of bytes: gzip within bounds, UTF-16, and a window that moves over text.
//!
//! Deflate makes up to 1032 bytes of one, so that a small file could fill any memory. Text of numbers shrinks by a factor
//! of ten or so: what grows by more than [`EXPANSION`] is refused as soon as it does.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use crate::error::DataError;

/// The most that a compressed byte may become, and what is allowed in any case.
pub(super) const EXPANSION: (u64, u64) = (200, 4 << 20);
/// How much text is read at a time.
const PIECE: usize = 1 << 20;

pub(in crate::data) fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b, 8])
}

/// Decompresses a stream.
pub(in crate::data) fn inflate<'a>(stream: Box<dyn Read + 'a>) -> impl Read + 'a {
    let taken = Rc::new(Cell::new(0));
    let counted = Counted { stream, taken: Rc::clone(&taken) };
    Bounded { stream: MultiGzDecoder::new(BufReader::with_capacity(1 << 16, counted)), taken, made: 0 }
}

/// An error of a compressed stream.
pub(in crate::data) fn gzip_error(error: &io::Error) -> DataError {
    let cut = error.kind() == io::ErrorKind::UnexpectedEof;
    let problem = if cut {
        "they end too early: the file is cut short, so copy or download it again".to_owned()
    } else {
        error.to_string()
    };
    DataError::Gzip { problem }
}

/// Counts the bytes that are taken of a stream.
struct Counted<R> {
    stream: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buffer)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}

/// Ends in an error where more is made than is allowed of what was taken.
struct Bounded<R> {
    stream: R,
    taken: Rc<Cell<u64>>,
    made: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buffer)?;
        self.made += n as u64;
        if self.made > most(self.taken.get()) {
            return Err(io::Error::other(EXPANDS));
        }
        Ok(n)
    }
}

/// The most that so many compressed bytes may become.
pub(super) fn most(compressed: u64) -> u64 {
    compressed.saturating_mul(EXPANSION.0).max(EXPANSION.1)
}

pub(super) const EXPANDS: &str =
    "they become more than 200 times as large, which no table does; decompress the file first";

/// The encoding of text other than UTF-8, by its first bytes: the mark, or zeros beside plain characters.
pub(super) fn utf16(head: &[u8]) -> Option<Utf16> {
    match head {
        [0xff, 0xfe, ..] => return Some(Utf16 { little: true }),
        [0xfe, 0xff, ..] => return Some(Utf16 { little: false }),
        _ => {}
    }
    let (pairs, _) = head[..head.len().min(256)].as_chunks::<2>();
    let plain = |b: u8| matches!(b, b' '..=b'~' | b'\n' | b'\r' | b'\t');
    let all = |zero: usize| pairs.len() >= 2 && pairs.iter().all(|pair| pair[zero] == 0 && plain(pair[1 - zero]));
    [(1, true), (0, false)].into_iter().find(|&(zero, _)| all(zero)).map(|(_, little)| Utf16 { little })
}

/// UTF-16 of either byte order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Utf16 {
    little: bool,
}

impl Utf16 {
    pub(super) fn name(self) -> &'static str {
        if self.little { "UTF-16 (little-endian)" } else { "UTF-16 (big-endian)" }
    }

    /// The text in UTF-8; halves of pairs become U+FFFD.
    pub(super) fn decode(self, bytes: &[u8]) -> Result<Vec<u8>, DataError> {
        let (pairs, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(DataError::Encoding("is UTF-16 of an odd number of bytes: the file is cut short"));
        }
        let units =
            pairs.iter().map(|&pair| if self.little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) });
        let mut text = String::with_capacity(pairs.len());
        text.extend(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
        Ok(text.into_bytes())
    }
}

/// A piece of a stream that moves on.
pub(super) struct Window<'a> {
    stream: Box<dyn Read + 'a>,
    buffer: Vec<u8>,
    /// The text that is not done with.
    start: usize,
    end: usize,
    ended: bool,
}

impl<'a> Window<'a> {
    /// A window over `head` and what follows it.
    pub(super) fn new(head: Vec<u8>, stream: Box<dyn Read + 'a>) -> Self {
        let end = head.len();
        Self { stream, buffer: head, start: 0, end, ended: false }
    }

    /// The text from here on, as far as it was read.
    pub(super) fn text(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether the stream ends with the text.
    pub(super) fn is_last(&self) -> bool {
        self.ended
    }

    /// Is done with so many bytes.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Reads on.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        // what did not fit a piece, such as an endless quote, is read in pieces that double
        let wanted = self.end + self.end.max(PIECE);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        while self.end < wanted {
            match self.stream.read(&mut self.buffer[self.end..wanted]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
