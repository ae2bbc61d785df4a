//! torch's format before 1.6: five pickles in a row (a magic number, the protocol, facts about the machine, the object,
//! the keys of the storages), then the storages in the order of the keys, each as its length (i64) and its numbers, all
//! with the little end first.

use std::collections::BTreeMap;

use super::pickle::{self, Pickle, Value};
use super::scalar::Scalar;
use super::tensor::storage_extent;
use crate::error::ImportError;

/// 0x1950a86a20f9469cfc6c, as pickles hold it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The only version of the format.
const PROTOCOL: i64 = 1001;

/// The pickle and the storages of a file.
pub(super) fn open(bytes: &[u8]) -> Result<(Pickle<'_>, BTreeMap<&str, &[u8]>), ImportError> {
    let format = |problem: &str| ImportError::Format(format!("not a checkpoint of torch: {problem}"));
    let (magic, end) = pickle::read(bytes, 0)?;
    if !matches!(magic.get(magic.root()), Value::Long(digits) if **digits == MAGIC) {
        return Err(format("the pickle does not begin with torch's magic number"));
    }
    let (protocol, end) = pickle::read(bytes, end)?;
    if protocol.int(protocol.root()) != Some(PROTOCOL) {
        return Err(format("a protocol other than 1001"));
    }
    let (machine, end) = pickle::read(bytes, end)?;
    let little = machine.entry(machine.root(), "little_endian");
    if !matches!(little.map(|id| machine.get(id)), Some(Value::Bool(true))) {
        return Err(format("its numbers have the big end first (big-endian), which is not supported"));
    }
    let (object, end) = pickle::read(bytes, end)?;
    let (keys, mut end) = pickle::read(bytes, end)?;

    let sizes = sizes(&object)?;
    let mut storages = BTreeMap::new();
    let list = keys.items(keys.root()).ok_or_else(|| format("no list of storages"))?;
    for &key in list {
        let key = keys.text(key).ok_or_else(|| format("a storage's key is no text"))?;
        let size = *sizes.get(key).ok_or_else(|| format("a storage that no tensor is in"))?;
        let rest = bytes.get(end..).unwrap_or_default();
        let cut = || format("cut off within a storage");
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|n| n.checked_mul(size));
        let contents = length.and_then(|n| rest.get(..n)).ok_or_else(cut)?;
        if storages.insert(key, contents).is_some() {
            return Err(format("a storage is listed twice"));
        }
        end += 8 + contents.len();
    }
    if end != bytes.len() {
        return Err(format("bytes after the last storage"));
    }
    Ok((object, storages))
}

/// The bytes of a number of each storage; the file itself does not say how long a storage is.
fn sizes<'a>(object: &Pickle<'a>) -> Result<BTreeMap<&'a str, usize>, ImportError> {
    let mut sizes = BTreeMap::new();
    for extent in object.ids().filter_map(|id| storage_extent(object, id)) {
        let (class, key, _) = extent.map_err(ImportError::Format)?;
        let size = match (Scalar::of_storage(class), class) {
            (Some(scalar), _) => scalar.size(),
            // no tensor of these is read, but they may lie between those that are
            (None, "UntypedStorage" | "QInt8Storage" | "QUInt8Storage") => 1,
            (None, "QInt32Storage") => 4,
            (None, "ComplexFloatStorage") => 8,
            (None, "ComplexDoubleStorage") => 16,
            _ => return Err(ImportError::Format(format!("a storage of the unknown class {class}"))),
        };
        if sizes.insert(key, size).is_some_and(|other| other != size) {
            return Err(ImportError::Format("a storage of two types".into()));
        }
    }
    Ok(sizes)
}
