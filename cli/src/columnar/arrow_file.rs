//! Arrow's files and streams
//! (<https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc>).
//!
//! A file is a stream between two marks, with a directory before the second. Both are read as streams: messages go by one after
//! the other, and no more is in memory than a message and the numbers. Memory is taken for what is there and not for what
//! is announced, but for compressed buffers, whose announced sizes are checked first. Dictionaries belong to columns of
//! categories; those of columns that are not chosen pass unread.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{MessageHeader, RecordBatch, root_as_message};
use arrow_schema::{DataType, SchemaRef};
use resflow::data::{ReadOptions, Reading};

use super::table::{Table, expands, most};

/// What is reserved for a message before any of it is read.
const RESERVED: u64 = 64 << 20;
/// More than any directory of a file has.
const DIRECTORY: u64 = 1 << 30;

/// Reads a stream, or a file from its beginning.
pub(super) fn read(stream: impl Read, is_file: bool, options: &ReadOptions) -> Result<Reading> {
    let mut source = Source { stream, taken: 0 };
    if is_file {
        // the mark, and zeros that make it eight bytes
        source.bytes(8)?;
    }
    let mut table: Option<(SchemaRef, Table)> = None;
    let mut dictionaries = HashMap::new();
    while let Some(metadata) = source.metadata(is_file && table.is_none())? {
        let message = root_as_message(&metadata).map_err(|problem| anyhow!("a message is none: {problem}"))?;
        let length = u64::try_from(message.bodyLength()).context("a message has less than no bytes")?;
        let body = source.bytes(length)?;
        match message.header_type() {
            MessageHeader::Schema if table.is_none() => {
                let schema = message.header_as_schema().context("there is no schema")?;
                if !schema.endianness().equals_to_target_endianness() {
                    bail!("its numbers have the byte order of another kind of machine");
                }
                let schema = Arc::new(try_fb_to_schema(schema)?);
                let columns = Table::new(&schema, options)?;
                table = Some((schema, columns));
            }
            MessageHeader::RecordBatch => {
                let (schema, table) = table.as_mut().context("there are rows before the schema")?;
                let batch = message.header_as_record_batch().context("a batch of rows is none")?;
                let rows = usize::try_from(batch.length()).context("a batch has less than no rows")?;
                table.check(rows, source.taken)?;
                check_buffers(&batch, &body, source.taken)?;
                let (body, version) = (Buffer::from_vec(body), message.version());
                let (schema, places) = (Arc::clone(schema), Some(table.places()));
                let batch = read_record_batch(&body, batch, schema, &dictionaries, places, &version)?;
                table.add(&batch, source.taken)?;
            }
            MessageHeader::DictionaryBatch => {
                let (schema, table) = table.as_ref().context("there is a dictionary before the schema")?;
                let chosen = table.places().iter().any(|&place| is_dictionary(schema.field(place).data_type()));
                let batch = message.header_as_dictionary_batch().context("a dictionary is none")?;
                if let Some(data) = batch.data().filter(|_| chosen) {
                    check_buffers(&data, &body, source.taken)?;
                    let (body, version) = (Buffer::from_vec(body), message.version());
                    // that of a column that is not chosen may be of any type
                    let _ = read_dictionary(&body, batch, schema, &mut dictionaries, &version);
                }
            }
            other => bail!("it holds a message that does not belong there ({other:?})"),
        }
    }
    if is_file {
        source.end()?;
    }
    table.context("there is no schema")?.1.finish()
}

fn is_dictionary(kind: &DataType) -> bool {
    matches!(kind, DataType::Dictionary(..))
}

/// Refuses buffers outside of a batch's body, and those that would become too large.
fn check_buffers(batch: &RecordBatch<'_>, body: &[u8], taken: u64) -> Result<()> {
    let is_compressed = batch.compression().is_some();
    let mut unpacked = 0_u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let outside = "a buffer lies outside of its message";
        let start = usize::try_from(buffer.offset()).context(outside)?;
        let length = usize::try_from(buffer.length()).context(outside)?;
        let bytes = start.checked_add(length).and_then(|end| body.get(start..end)).context(outside)?;
        if is_compressed && let Some(size) = bytes.first_chunk() {
            // −1 says that a buffer is not compressed after all
            unpacked = unpacked.saturating_add(u64::try_from(i64::from_le_bytes(*size)).unwrap_or(0));
        }
    }
    if unpacked > most(taken) { Err(expands()) } else { Ok(()) }
}

/// A stream, and how much of it was taken.
struct Source<R> {
    stream: R,
    taken: u64,
}

impl<R: Read> Source<R> {
    /// The next bytes.
    fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length.min(RESERVED) as usize);
        self.stream.by_ref().take(length).read_to_end(&mut bytes)?;
        self.taken += bytes.len() as u64;
        if (bytes.len() as u64) < length {
            bail!("it ends within a message");
        }
        Ok(bytes)
    }

    /// The next four bytes; none at the end of the stream.
    fn word(&mut self) -> Result<Option<u32>> {
        let mut bytes = Vec::new();
        self.stream.by_ref().take(4).read_to_end(&mut bytes)?;
        self.taken += bytes.len() as u64;
        match bytes[..] {
            [] => Ok(None),
            [a, b, c, d] => Ok(Some(u32::from_le_bytes([a, b, c, d]))),
            _ => bail!("it ends within a message"),
        }
    }

    /// The metadata of the next message; none behind the last.
    fn metadata(&mut self, padded: bool) -> Result<Option<Vec<u8>>> {
        let mut length = self.word()?;
        if padded {
            // some writers fill a file's mark up to 64 bytes
            for _ in 0..16 {
                if length == Some(0) {
                    length = self.word()?;
                }
            }
        }
        // the mark of a message, which files from before 2019 lack
        if length == Some(u32::MAX) {
            length = Some(self.word()?.context("it ends within a message")?);
        }
        match length {
            None | Some(0) => Ok(None),
            Some(length) => Ok(Some(self.bytes(length.into())?)),
        }
    }

    /// Whether a file ends as it should.
    fn end(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        self.stream.by_ref().take(DIRECTORY).read_to_end(&mut rest)?;
        if rest.ends_with(b"ARROW1") { Ok(()) } else { bail!("its end is missing") }
    }
}
