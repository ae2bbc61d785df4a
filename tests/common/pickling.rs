//! Pickles and zip files made by hand, for what torch would not write.
#![allow(dead_code)] // each test binary uses its own part

/// BINUNICODE.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// BININT; negative and large numbers are what it takes as such.
pub(crate) fn int(i: i32) -> Vec<u8> {
    [b"J", &i.to_le_bytes()[..]].concat()
}

/// LONG1.
pub(crate) fn long(i: i64) -> Vec<u8> {
    [b"\x8a\x08", &i.to_le_bytes()[..]].concat()
}

/// GLOBAL.
pub(crate) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub(crate) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub(crate) fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<_> = entries.iter().map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &entries.concat()[..], b"u"].concat()
}

/// A call, with REDUCE.
pub(crate) fn call(class: (&str, &str), arguments: &[Vec<u8>]) -> Vec<u8> {
    [global(class.0, class.1), tuple(arguments), b"R".to_vec()].concat()
}

/// An object with attributes.
pub(crate) fn object(class: (&str, &str), attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    [global(class.0, class.1), b")\x81".to_vec(), dict(attributes), b"b".to_vec()].concat()
}

pub(crate) fn storage(class: &str, key: &str, length: Vec<u8>) -> Vec<u8> {
    [tuple(&[text("storage"), global("torch", class), text(key), text("cpu"), length]), b"Q".to_vec()].concat()
}

/// A tensor of a storage in single precision.
pub(crate) fn tensor(length: i32, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let sizes = |sizes: &[i64]| tuple(&sizes.iter().map(|&n| long(n)).collect::<Vec<_>>());
    let hooks = call(("collections", "OrderedDict"), &[]);
    let storage = storage("FloatStorage", "0", int(length));
    call(
        ("torch._utils", "_rebuild_tensor_v2"),
        &[storage, long(offset), sizes(shape), sizes(strides), b"\x89".to_vec(), hooks],
    )
}

/// A pickle of protocol 2.
pub(crate) fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// CRC-32 of zip files, bit by bit.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// An entry of a zip file: what its headers say, and its contents.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) method: u16,
    /// The size that is declared.
    pub(crate) size: u32,
    pub(crate) contents: Vec<u8>,
    /// The checksum and the size of what comes out, where they are not those of the contents.
    pub(crate) unpacked: Option<(u32, u32)>,
    /// The entry whose local header the directory names instead of this one's.
    pub(crate) alias: Option<usize>,
}

impl Entry {
    pub(crate) fn stored(name: &str, contents: &[u8]) -> Self {
        let size = contents.len() as u32;
        Self { name: name.into(), method: 0, size, contents: contents.to_vec(), unpacked: None, alias: None }
    }

    pub(crate) fn deflated(name: &str, contents: &[u8]) -> Self {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, contents).expect("memory");
        let packed = encoder.finish().expect("memory");
        let unpacked = Some((crc32(contents), contents.len() as u32));
        Self { method: 8, unpacked, ..Self::stored(name, &packed) }
    }
}

pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut starts) = (Vec::new(), Vec::new());
    let header = |entry: &Entry| {
        let (crc, whole) = entry.unpacked.unwrap_or((crc32(&entry.contents), entry.size));
        let (crc, whole) = (crc.to_le_bytes(), whole.to_le_bytes());
        let (size, name) = (entry.size.to_le_bytes(), (entry.name.len() as u16).to_le_bytes());
        // version, flags, method, time and date, checksum, sizes, lengths of the name and of extra fields
        [&[20, 0, 0, 0], &entry.method.to_le_bytes()[..], &[0, 0, 33, 0], &crc, &size, &whole, &name, &[0, 0]].concat()
    };
    for entry in entries {
        starts.push(file.len() as u32);
        if entry.alias.is_none() {
            file.extend([b"PK\x03\x04", &header(entry)[..], entry.name.as_bytes(), &entry.contents].concat());
        }
    }
    let directory = file.len() as u32;
    for (i, entry) in entries.iter().enumerate() {
        let start = starts[entry.alias.unwrap_or(i)].to_le_bytes();
        // version of the writer; then comment, disk and attributes
        let parts: [&[u8]; 6] = [b"PK\x01\x02\x14\0", &header(entry), &[0; 2], &[0; 8], &start, entry.name.as_bytes()];
        file.extend(parts.concat());
    }
    let (count, size) = ((entries.len() as u16).to_le_bytes(), (file.len() as u32 - directory).to_le_bytes());
    file.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &directory.to_le_bytes(), &[0, 0]].concat());
    file
}

/// A checkpoint in the zip format around a pickle, with a storage `0` in single precision.
pub(crate) fn checkpoint(value: &[u8], storage: &[u8]) -> Vec<u8> {
    zip(&[Entry::stored("m/data.pkl", &pickle(value)), Entry::stored("m/data/0", storage)])
}
