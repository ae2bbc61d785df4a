//! Zip files: NPZ, which is a zip of NPY files, and a zip of one file of any kind that is read.
//!
//! One entry is unpacked, within the bounds of [`source`], and its checksum is verified.

use std::io::{self, Read};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::note::Note;
use super::options::ReadOptions;
use super::{Reading, source};
use crate::error::DataError;

pub(in crate::data) fn begins(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06")
}

/// Reads the array of an NPZ file, or the only file of a zip.
pub(super) fn read(bytes: &[u8], options: &ReadOptions, nested: u8) -> Result<Reading, DataError> {
    let (contents, name) = member(bytes, options)?;
    let mut reading = super::content(Box::new(&contents[..]), options, nested)?;
    reading.notes.splice(0..0, name.map(Note::Member));
    Ok(reading)
}

/// Unpacks the array of an NPZ file, or the only file of a zip; says which, where there are others.
pub(in crate::data) fn member(bytes: &[u8], options: &ReadOptions) -> Result<(Vec<u8>, Option<String>), DataError> {
    let mut archive = ZipArchive::new(io::Cursor::new(bytes)).map_err(damaged)?;
    let names: Vec<String> = archive.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    if names.iter().any(|name| name.starts_with("xl/")) {
        return Err(DataError::Foreign { what: "an Excel workbook (.xlsx)", help: "save the sheet as CSV" });
    }
    if names.iter().any(|name| name.ends_with("/data.pkl")) {
        return Err(DataError::Foreign { what: "a checkpoint of torch", help: "`resflow import` reads state dicts" });
    }
    let plain: Vec<usize> = (0..names.len()).filter(|&i| !names[i].ends_with('/')).collect();
    let array = |i: &usize| names[*i].strip_suffix(".npy");
    let arrays: Vec<usize> = plain.iter().copied().filter(|i| array(i).is_some()).collect();
    let known = || arrays.iter().filter_map(array).map(str::to_owned).collect::<Vec<_>>();
    let chosen = match (&options.array, &arrays[..]) {
        (Some(asked), _) => {
            let found = arrays.iter().find(|i| array(i) == Some(asked));
            *found.ok_or_else(|| DataError::Arrays { asked: Some(asked.clone()), known: known() })?
        }
        (None, &[only]) => only,
        (None, []) if plain.len() == 1 => plain[0],
        (None, _) => {
            let samples: Vec<_> = arrays.iter().filter(|i| matches!(array(i), Some("x" | "X"))).collect();
            match samples[..] {
                [&only] => only,
                _ => return Err(DataError::Arrays { asked: None, known: known() }),
            }
        }
    };
    Ok((unpack(&mut archive, chosen)?, (plain.len() > 1).then(|| names[chosen].clone())))
}

fn unpack(archive: &mut ZipArchive<io::Cursor<&[u8]>>, index: usize) -> Result<Vec<u8>, DataError> {
    let mut entry = archive.by_index_raw(index).map_err(damaged)?;
    if entry.encrypted() {
        return Err(DataError::Zip { problem: "its contents are encrypted".to_owned() });
    }
    let (method, packed, size, crc) = (entry.compression(), entry.compressed_size(), entry.size(), entry.crc32());
    let mut raw = Vec::new();
    entry.by_ref().take(packed).read_to_end(&mut raw).map_err(damaged)?;
    let contents = if method == CompressionMethod::Stored {
        raw
    } else if method == CompressionMethod::DEFLATE {
        let most = source::most(raw.len() as u64);
        if size > most {
            return Err(DataError::Zip { problem: source::EXPANDS.to_owned() });
        }
        let mut contents = Vec::new();
        DeflateDecoder::new(&raw[..]).take(size.saturating_add(1)).read_to_end(&mut contents).map_err(damaged)?;
        contents
    } else {
        return Err(DataError::Zip { problem: format!("its contents are compressed by {method:?}: unpack it") });
    };
    let mut sum = Crc::new();
    sum.update(&contents);
    if contents.len() as u64 != size || sum.sum() != crc {
        return Err(damaged("the contents are not those that it announces; copy or download it again"));
    }
    Ok(contents)
}

fn damaged(problem: impl std::fmt::Display) -> DataError {
    DataError::Zip { problem: problem.to_string() }
}
