//! What a file looks like that is not what its name promises: failed downloads, and formats that are often taken for ours.
//!
//! Only for messages: a reader that refuses a file says what else it seems to be. Nothing is read by this.

/// The end of descriptions of files that stop in the middle.
#[cfg_attr(not(feature = "import"), allow(dead_code))]
pub(crate) const CUT: &str = "that is cut short";

/// Describes what a whole file seems to be, with an article; `None` where nothing is known of it.
pub(crate) fn describe(bytes: &[u8]) -> Option<&'static str> {
    let text = text_beginning(bytes);
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let has = |magic: &[u8], at: usize| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    Some(match () {
        () if bytes.is_empty() => "an empty file",
        () if bytes.iter().take(4096).all(|&b| b == 0) => "nothing but zeros, as an interrupted download leaves them",
        () if text.starts_with("<!doctype html") || text.starts_with("<html") || text.starts_with("<head") => {
            "an HTML page: the download failed, or the address was that of a page about the file"
        }
        () if text.starts_with("<?xml") || text.starts_with("<error") => {
            "an XML page, as servers send with an error: the download failed"
        }
        () if text.starts_with("version https://git-lfs.github.com/spec/") => {
            "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
        }
        () if text.starts_with("/annex/objects/") || text.starts_with("../.git/annex/") => {
            "a git-annex pointer, not the file itself: fetch that with `git annex get`"
        }
        () if starts(b"\x1f\x8b") && gzip_is_cut(bytes) => "a file compressed by gzip that is cut short",
        () if starts(b"\x1f\x8b") => "a file compressed by gzip",
        () if starts(b"PK\x03\x04") && !zip_has_end(bytes) => "a zip file that is cut short",
        () if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") => "a zip file",
        () if starts(b"\x93NUMPY") => "an NPY array",
        () if starts(b"\x89PNG\r\n\x1a\n") => "a PNG picture",
        () if starts(b"\xff\xd8\xff") => "a JPEG picture",
        () if starts(b"GIF87a") || starts(b"GIF89a") => "a GIF picture",
        () if starts(b"RIFF") && has(b"WEBP", 8) => "a WebP picture",
        () if starts(b"II*\0") || starts(b"MM\0*") => "a TIFF picture",
        () if has(b"ftypavif", 4) => "an AVIF picture",
        () if has(b"ftyphei", 4) => "a HEIC picture",
        () if starts(b"%PDF-") => "a PDF document",
        () if starts(b"\x89HDF\r\n\x1a\n") => "an HDF5 file",
        () if starts(b"PAR1") => "a Parquet file",
        () if starts(b"ARROW1") || starts(b"FEA1") => "an Arrow file",
        () if starts(b"SQLite format 3\0") => "an SQLite database",
        () if starts(b"7z\xbc\xaf\x27\x1c") => "a 7z archive: unpack it first",
        () if starts(b"Rar!\x1a\x07") => "a RAR archive: unpack it first",
        () if starts(b"\xfd7zXZ\0") => "a file compressed by xz: unpack it first",
        () if starts(b"BZh") => "a file compressed by bzip2: unpack it first",
        () if starts(b"\x28\xb5\x2f\xfd") => "a file compressed by zstd: unpack it first",
        () if has(b"ustar", 257) => "a tar archive: unpack it first",
        () if starts(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") => "an old Office document",
        () if starts(b"\0\x05\x16\x07") => "what macOS keeps beside a file, not the file itself",
        () if starts(b"MATLAB 5.0 MAT-file") => "a MATLAB file",
        () => return safetensors(bytes),
    })
}

/// Eight bytes with the length of a JSON header that begins behind them.
fn safetensors(bytes: &[u8]) -> Option<&'static str> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    // no header is that long
    if !rest.starts_with(b"{\"") || length > 1 << 32 {
        return None;
    }
    Some(if length > rest.len() as u64 { "a safetensors file that is cut short" } else { "a safetensors file" })
}

/// The beginning as text in lower case, without what editors and servers put before it.
fn text_beginning(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).to_ascii_lowercase()
}

/// The directory that ends a zip file.
fn zip_has_end(bytes: &[u8]) -> bool {
    // behind it a comment of at most 65,535 bytes
    let tail = &bytes[bytes.len().saturating_sub((1 << 16) + 22)..];
    tail.windows(4).any(|w| w == b"PK\x05\x06")
}

#[cfg(any(feature = "images", feature = "import"))]
fn gzip_is_cut(bytes: &[u8]) -> bool {
    use std::io::{self, Read as _};
    /// What is decompressed for a message.
    const MOST: u64 = 1 << 28;
    let stream = flate2::bufread::MultiGzDecoder::new(bytes);
    let read = io::copy(&mut stream.take(MOST), &mut io::sink());
    read.is_err_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
}

#[cfg(not(any(feature = "images", feature = "import")))]
fn gzip_is_cut(_: &[u8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_downloads_are_told() {
        let found = |bytes: &[u8]| describe(bytes).unwrap_or("");
        assert_eq!(found(b""), "an empty file");
        assert!(found(&[0; 100]).contains("zeros"));
        for page in ["<!DOCTYPE html>\n<html>", "\u{feff}\n <HTML lang=en>", "<head>"] {
            assert!(found(page.as_bytes()).starts_with("an HTML page"), "{page}");
        }
        assert!(found(b"<?xml version=\"1.0\"?><Error>").starts_with("an XML page"));
        assert!(found(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n").contains("Git LFS"));
        assert!(found(b"/annex/objects/SHA256E-s1--2").contains("git-annex"));
        assert_eq!(found(b"\x7f\0\0\0\0\0\0\0{\"a\":{"), "a safetensors file that is cut short");
        assert_eq!(found(b"\x02\0\0\0\0\0\0\0{}"), "");
        assert_eq!(found(b"PK\x03\x04 and no end"), "a zip file that is cut short");
        for innocent in [&b"a,b\n1,2\n"[..], b"1 2 3\n", b"\0\0\x08\x03\0\0\0\x01", b"\x80\x02}."] {
            assert_eq!(describe(innocent), None);
        }
        let mut tar = vec![b'x'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(found(&tar).starts_with("a tar archive"));
    }

    #[cfg(any(feature = "images", feature = "import"))]
    #[test]
    fn half_a_gzip_file_is_told() {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&[7; 5000]).expect("memory");
        let whole = encoder.finish().expect("memory");
        assert_eq!(describe(&whole), Some("a file compressed by gzip"));
        let half = describe(&whole[..whole.len() / 2]).expect("a word");
        assert!(half.ends_with(CUT), "{half}");
    }
}
