//! Formats that are no tables of this library, told by their first bytes.

/// What helps with tables that are stored by columns. The program reads them itself, but not from within gzip or zip.
const BY_COLUMNS: &str = "the program `resflow` reads it if it was built with the feature `parquet` and the file is not \
                          compressed as a whole; or write the table as .npy or CSV, with pandas df.to_csv(…, index=False)";

/// What a file is, and what helps, if it is none of ours.
pub(super) fn foreign(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let magic: [(&[u8], &str, &str); 20] = [
        (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "`git lfs pull` fetches it"),
        (b"%PDF", "a PDF document", "export the table as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", "save the sheet as CSV"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write the table as .npy or CSV, with pandas df.to_csv(…, index=False)"),
        (b"PAR1", "a Parquet file", BY_COLUMNS),
        (b"ARROW1", "an Arrow (Feather) file", BY_COLUMNS),
        (b"\xff\xff\xff\xff", "an Arrow stream", BY_COLUMNS),
        (b"FEA1", "a Feather file of version 1", "write it again with pandas df.to_feather, or as CSV"),
        (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it: zstd -d"),
        (b"BZh", "compressed by bzip2", "decompress it: bunzip2"),
        (b"\xfd7zXZ\0", "compressed by xz", "decompress it: unxz"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
        (b"MATLAB 5.0", "a MATLAB file", "save the matrix with writematrix, as CSV"),
        (b"\x89PNG", "a picture (PNG)", "a folder of pictures is read as images"),
        (b"\xff\xd8\xff", "a picture (JPEG)", "a folder of pictures is read as images"),
        (b"GIF8", "a picture (GIF)", "convert it to PNG"),
        (b"\x80\x02", "a pickle of Python", "write the table as .npy or CSV; a pickle would have to be executed"),
        (b"\x80\x04", "a pickle of Python", "write the table as .npy or CSV; a pickle would have to be executed"),
        (b"\x80\x05", "a pickle of Python", "write the table as .npy or CSV; a pickle would have to be executed"),
    ];
    if let Some((_, what, help)) = magic.into_iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Some((what, help));
    }
    if head.get(257..).is_some_and(|rest| rest.starts_with(b"ustar")) {
        return Some(("a tar archive", "unpack it, and give a file or the folder in it"));
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    if begins(b"<!doctype") || begins(b"<html") {
        let help = "a server sent this in place of the data, perhaps a login or an error: download the file itself";
        Some(("a web page (HTML)", help))
    } else if begins(b"<?xml") {
        Some(("XML", "export the table as CSV"))
    } else if begins(b"@relation") {
        Some(("an ARFF file", "remove the lines that begin with @"))
    } else if is_json(text) {
        Some(("JSON", "write the table as CSV, one row a line"))
    } else {
        None
    }
}

/// Whether text begins as an object or a list of lists or objects does.
fn is_json(text: &[u8]) -> bool {
    let then = |mark: &[u8]| text.strip_prefix(mark).map(|rest| rest.trim_ascii_start().first().copied());
    matches!(then(b"{"), Some(Some(b'"'))) || matches!(then(b"["), Some(Some(b'{' | b'[')))
}
