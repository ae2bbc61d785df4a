//! Data from streams: every format of images by its contents alone, as from a file, tables as ever, and what a stream cannot hold.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use resflow::data::image::{ImageStack, npy};
use resflow::data::npy::Float;
use resflow::data::{self, Note, Opened, ReadOptions, Table, open_from, read_from};

use super::data_images::{counting, folder, gray, gzip, idx_file, label_file, put, record, refused};
use crate::pickling::{Entry, zip};

/// A stream that gives seven bytes at a time: nothing may depend on how much comes at once.
struct Drops<'a>(&'a [u8]);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(7);
        self.0.read(&mut buffer[..n])
    }
}

fn opened(bytes: &[u8], options: &ReadOptions) -> Opened {
    open_from(Drops(bytes), options).expect("images or a table")
}

fn jpeg() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg/gray.jpg")).expect("a fixture")
}

#[test]
fn images_in_streams_are_those_of_files() {
    let (folder, set) = (folder(), counting(5, 0));
    let (mut array, mut other, mut stack) = (Vec::new(), Vec::new(), Vec::new());
    npy::write_bytes(&set, &mut array).expect("memory");
    npy::write_bytes(&counting(3, 9), &mut other).expect("memory");
    let values = ImageStack::new(2, 4, 1, (1..9).map(|i| 0.11 * f64::from(i)).collect()).expect("a stack");
    npy::write_stack(&values, Float::F4, &mut stack).expect("memory");
    let several = zip(&[Entry::stored("x.npy", &array), Entry::stored("z.npy", &other)]);
    let plain = ReadOptions::default();
    for (name, file) in [
        ("train-images-idx3-ubyte", idx_file(&set)),
        ("images.gz", gzip(&idx_file(&set))),
        ("bytes.npy", array.clone()),
        ("bytes.npy.gz", gzip(&array)),
        ("floats.npy", stack),
        ("one.npz", zip(&[Entry::deflated("arr_0.npy", &array)])),
        ("several.npz", several.clone()),
        ("picture.png", gray(2, 3, 7)),
        ("picture.png.gz", gzip(&gray(2, 3, 7))),
        ("picture.jpg", jpeg()),
    ] {
        put(folder.path(), name, &file);
        let found = opened(&file, &plain);
        assert!(found.image_size.is_some(), "{name}");
        assert_eq!(found, data::open(folder.path().join(name)).expect(name), "{name}");
    }
    assert_eq!(opened(&idx_file(&set), &plain).data.images(), Some(&set));
    let found = opened(&gzip(&array), &plain);
    assert_eq!((found.data.images(), &found.notes[..]), (Some(&set), &[Note::Gzip][..]));
    let found = opened(&several, &plain);
    assert_eq!((found.data.images(), &found.notes[..]), (Some(&set), &[Note::Member("x.npy".to_owned())][..]));
    let found = opened(&several, &ReadOptions { array: Some("z".to_owned()), ..ReadOptions::default() });
    assert_eq!(found.data.images(), Some(&counting(3, 9)));
    let found = opened(&array, &ReadOptions { image_size: Some([1, 3]), ..ReadOptions::default() });
    assert_eq!(found.data.images().map(|set| (set.len(), set.height(), set.width())), Some((5, 1, 3)));
}

#[test]
fn tables_in_streams_stay_tables() {
    let mut array = Vec::new();
    let table = Table::new(None, 2, vec![1.5, 2.5, 3.5, 4.5]).expect("a table");
    data::npy::write(&table, data::npy::Float::F8, &mut array).expect("memory");
    let text = b"a,b\n1,2\n3,4\n";
    for file in [
        text.to_vec(),
        gzip(text),
        array.clone(),
        gzip(&array),
        zip(&[Entry::stored("arr_0.npy", &array)]),
        zip(&[Entry::stored("data.csv", text)]),
    ] {
        let reading = read_from(&file[..], &ReadOptions::default()).expect("a table");
        assert_eq!(opened(&file, &ReadOptions::default()), Opened::from(reading));
    }
}

#[test]
fn what_no_stream_holds_is_named() {
    let refuses = |bytes: &[u8], words: &[&str]| refused(open_from(Drops(bytes), &ReadOptions::default()), words);
    refuses(&label_file(&[1, 2]), &["the file holds labels"]);
    refuses(&[gray(2, 2, 1), gray(2, 2, 2)].concat(), &["several pictures", "folder"]);
    refuses(&[jpeg(), jpeg()].concat(), &["several pictures"]);
    for labels in [&[5][..], &[5, 55]] {
        refuses(&record(labels), &["CIFAR", ".bin"]);
        refuses(&[record(labels), record(labels)].concat(), &["CIFAR", ".bin"]);
    }
    let mut tar = vec![b'x'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    refuses(&tar, &["a tar archive", "unpack it"]);
    let mut array = Vec::new();
    npy::write_bytes(&counting(5, 0), &mut array).expect("memory");
    let compressed = gzip(&array);
    refuses(&compressed[..compressed.len() - 4], &["gzip data are damaged", "too early"]);
    refuses(b"", &["empty"]);
}
