//! What the pages of a Parquet file announce to become, before anything is reserved for them.
//!
//! The crate `parquet` reserves as much for a page as its header says, up to 2 GiB, and as much for a dictionary as it has
//! entries. So headers are walked first: they are structs in Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>), of which three numbers count here, and
//! the rest is skipped. A chunk in which something is no header is refused, since the crate might see one in it. Of a page
//! under gzip the crate takes whatever comes out, a thousand times what is there: so it is unpacked once to be measured.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;

/// More than a header of a page has, whose statistics may hold values.
const LONGEST: u64 = 1 << 20;
/// Deeper than its structs are nested.
const DEEPEST: u8 = 8;

/// What the pages of a chunk announce.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Announced {
    /// The bytes that they become, headers included.
    pub(super) bytes: u64,
    /// The entries of its dictionaries.
    pub(super) entries: u64,
}

impl Announced {
    /// `None` if something in the chunk is no header of a page, or a page becomes more than it announces.
    pub(super) fn of(source: &impl ChunkReader, chunk: &ColumnChunkMetaData) -> Option<Self> {
        let (mut at, length) = chunk.byte_range();
        let end = at.saturating_add(length);
        let mut all = Self::default();
        while at < end {
            let page = source.get_read(at).ok().and_then(Page::read)?;
            let body = at.saturating_add(page.header);
            if matches!(chunk.compression(), Compression::GZIP(_)) && !page.keeps_its_word(source, body) {
                return None;
            }
            all.bytes = all.bytes.saturating_add(page.header).saturating_add(page.unpacked);
            all.entries = all.entries.saturating_add(page.entries);
            at = at.saturating_add(page.header).saturating_add(page.packed);
        }
        Some(all)
    }

    /// The most memory that they take, in bytes: no entry has more than a decimal of 256 bits.
    pub(super) fn memory(self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(32))
    }
}

/// What a page's header says.
#[derive(Default)]
struct Page {
    header: u64,
    unpacked: u64,
    packed: u64,
    /// The entries of a dictionary.
    entries: u64,
    /// The bytes in front that are never packed: levels of the second version of pages.
    levels: u64,
}

impl Page {
    fn read(stream: impl Read) -> Option<Self> {
        let mut header = Header { stream, taken: 0 };
        let mut page = Self::default();
        header.fields(|header, field, kind| {
            match (field, kind) {
                (2, 5) => page.unpacked = header.size()?,
                (3, 5) => page.packed = header.size()?,
                (8, 12) => header.fields(|header, field, kind| {
                    match (field, kind) {
                        (5 | 6, 5) => page.levels = page.levels.saturating_add(header.size()?),
                        _ => header.skip(kind, 0)?,
                    }
                    Some(())
                })?,
                (7, 12) => header.fields(|header, field, kind| {
                    match (field, kind) {
                        (1, 5) => page.entries = header.size()?,
                        _ => header.skip(kind, 0)?,
                    }
                    Some(())
                })?,
                _ => header.skip(kind, 0)?,
            }
            Some(())
        })?;
        page.header = header.taken;
        Some(page)
    }

    /// Whether what is under gzip, from `body` on, becomes no more than was said. What is no gzip becomes nothing, and is an
    /// error when it is read.
    fn keeps_its_word(&self, source: &impl ChunkReader, body: u64) -> bool {
        let (levels, packed) = (self.levels.min(self.packed), self.packed);
        let Ok(stream) = source.get_read(body.saturating_add(levels)) else { return true };
        let most = self.unpacked.saturating_sub(levels);
        let mut out = MultiGzDecoder::new(stream.take(packed - levels)).take(most.saturating_add(1));
        // an error comes after all that was unpacked before it
        let mut sink = Counted(0);
        let _ = io::copy(&mut out, &mut sink);
        sink.0 <= most
    }
}

/// How many bytes were written.
struct Counted(u64);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A header that is read byte by byte.
struct Header<R> {
    stream: R,
    taken: u64,
}

impl<R: Read> Header<R> {
    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).ok()?;
        self.taken += 1;
        (self.taken <= LONGEST).then_some(byte[0])
    }

    /// A number in groups of seven bits, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// A number whose last bit is its sign.
    fn signed(&mut self) -> Option<i64> {
        self.number().map(|number| (number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn size(&mut self) -> Option<u64> {
        u64::try_from(self.signed()?).ok()
    }

    /// Goes through the fields of a struct by their numbers and types; what is called reads each or skips it.
    fn fields(&mut self, mut each: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut field = 0_i64;
        loop {
            let byte = self.byte()?;
            let (step, kind) = (byte >> 4, byte & 15);
            if kind == 0 {
                return Some(());
            }
            field = if step == 0 { self.signed()? } else { field.wrapping_add(i64::from(step)) };
            each(self, field, kind)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: u8) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            // truth is in the type
            1 | 2 => {}
            3 => {
                self.byte()?;
            }
            4..=6 => {
                self.number()?;
            }
            7 => self.pass(8)?,
            8 => {
                let length = self.number()?;
                self.pass(length)?;
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                for _ in 0..count {
                    self.element(head & 15, depth)?;
                }
            }
            11 => {
                let count = self.number()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                for _ in 0..count {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 15, depth)?;
                }
            }
            12 => self.fields(|header, _, kind| header.skip(kind, depth + 1))?,
            _ => return None,
        }
        Some(())
    }

    /// An element of a list, which takes a byte even if it is true or false.
    fn element(&mut self, kind: u8, depth: u8) -> Option<()> {
        if matches!(kind, 1 | 2) { self.byte().map(|_| ()) } else { self.skip(kind, depth + 1) }
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        for _ in 0..bytes {
            self.byte()?;
        }
        Some(())
    }
}
