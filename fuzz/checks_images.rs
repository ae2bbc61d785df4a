//! What holds of every file of images, for the targets here and for the mutation loops in tests/files/fuzz_images.rs. Each
//! check says whether the reader accepted the input.

use resflow::Error;
use resflow::data::image::{self, ImageFiles, ImageSet, cifar, idx, jpeg, npy, png};
use resflow::data::npy::Float;
use resflow::data::{DataError, StoredRows};

/// The IDX readers never panic, make no more than deflate can of the bytes, explain themselves in a few lines, and read
/// back what the writers make of their images.
pub(crate) fn idx(bytes: &[u8]) -> bool {
    let images = accepted(idx::read_images(bytes)).is_some_and(|set| {
        whole(&set);
        assert!(set.bytes().len() <= 1_100 * bytes.len() + 4_096);
        let mut file = Vec::new();
        idx::write_images(&set, &mut file).expect("memory takes every set");
        assert_eq!(idx::read_images(&file).expect("the writer's file reads back"), set);
        true
    });
    let labels = accepted(idx::read_labels(bytes)).is_some_and(|labels| {
        let mut file = Vec::new();
        idx::write_labels(&labels, &mut file).expect("memory takes all labels");
        assert_eq!(idx::read_labels(&file).expect("the writer's file reads back"), labels);
        true
    });
    assert!(!images || !labels);
    in_files(bytes, "idx");
    images || labels
}

/// The CIFAR readers never panic, and every byte of a batch comes back at its place.
pub(crate) fn cifar(bytes: &[u8]) -> bool {
    let ten = accepted(cifar::read10(bytes)).is_some_and(|set| recorded(&set, bytes, 1));
    let hundred = accepted(cifar::read100(bytes)).is_some_and(|set| recorded(&set, bytes, 2));
    in_files(bytes, "bin");
    ten || hundred
}

fn recorded(set: &ImageSet, bytes: &[u8], head: usize) -> bool {
    whole(set);
    let labels = set.labels().expect("every record has a label");
    assert_eq!(set.bytes().len() + head * labels.len(), bytes.len());
    for (i, record) in bytes.chunks_exact(head + 3072).enumerate() {
        let (labels_of, planes) = record.split_at(head);
        assert_eq!(labels_of[head - 1], labels[i]);
        let image = set.image(i).expect("an image for every record");
        assert!(image.iter().enumerate().all(|(at, &v)| v == planes[at % 3 * 1024 + at / 3]));
    }
    true
}

/// The PNG reader never panics, makes no more than deflate can of the bytes (and a palette of that), and reads back what
/// the encoder makes of its image. As it checks the chunks' sums, the input counts a second time with these put right.
pub(crate) fn png(bytes: &[u8]) -> bool {
    let raw = one_png(bytes);
    one_png(&with_sums(bytes)) || raw
}

fn one_png(bytes: &[u8]) -> bool {
    let Some(set) = accepted(png::read(bytes)) else { return false };
    whole(&set);
    // a bit of a palette makes three bytes
    assert!(set.len() == 1 && set.bytes().len() <= 24 * 1_100 * bytes.len());
    let file = png::encode(set.height(), set.width(), set.channels(), set.bytes()).expect("one image");
    assert_eq!(png::read(&file).expect("the encoder's file reads back"), set);
    true
}

/// The JPEG reader never panics, makes no more than a file of its size can hold, and makes the same of the same bytes.
pub(crate) fn jpeg(bytes: &[u8]) -> bool {
    let Some(set) = accepted(jpeg::read(bytes)) else { return false };
    whole(&set);
    assert!(set.len() == 1 && set.bytes().len() <= 1_100 * bytes.len() + 4_096);
    assert_eq!(jpeg::read(bytes).expect("the same bytes"), set);
    true
}

/// The file with the right sum behind every chunk.
fn with_sums(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 8;
    while let Some(length) = out.get(at..at + 4) {
        let length = length.iter().fold(0, |n, &b| n << 8 | usize::from(b));
        let end = at + 8 + length;
        let Some(chunk) = out.get(at + 4..end) else { break };
        let sum = crc32(chunk).to_be_bytes();
        let Some(place) = out.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&sum);
        at = end + 4;
    }
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| bit(crc)))
}

/// The NPY readers of images never panic, make no more values than there are bytes, and read back what the writers make of
/// them.
pub(crate) fn image_npy(bytes: &[u8]) -> bool {
    let images = accepted(npy::read(bytes)).is_some_and(|set| {
        whole(&set);
        assert!(set.bytes().len() <= bytes.len());
        let mut file = Vec::new();
        npy::write_bytes(&set, &mut file).expect("memory takes every set");
        assert_eq!(npy::read(&file).expect("the writer's file reads back"), set);
        true
    });
    let stack = accepted(npy::read_stack(bytes)).is_some_and(|stack| {
        assert!(stack.values().iter().all(|v| (0.0..=1.0).contains(v)) && stack.values().len() * 4 <= bytes.len());
        let mut file = Vec::new();
        npy::write_stack(&stack, Float::F8, &mut file).expect("memory takes every stack");
        assert_eq!(npy::read_stack(&file).expect("the writer's file reads back"), stack);
        true
    });
    in_files(bytes, "npy");
    images || stack
}

/// The images of a file where they stand are those that it has in memory; what is refused there is refused.
fn in_files(bytes: &[u8], ending: &str) {
    // a file on a disk costs more than all of the rest
    if !bytes.len().is_multiple_of(16) {
        return;
    }
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(format!("resflow-images-{process}-{thread:?}.{ending}"));
    std::fs::write(&path, bytes).expect("a temporary file");
    let found = ImageFiles::find(&path, None).map_err(Error::from);
    let found = found.and_then(|found| found.map(|found| found.open(None)).transpose());
    let found = found.map(|opened| opened.map(|opened| opened.training));
    let set = image::open(&path).map(|data| data.training);
    match (found, set) {
        (Ok(Some(files)), Ok(set)) => {
            let rows: &dyn StoredRows = &files;
            let data = rows.read_samples(0..rows.rows()).expect("nobody changed it");
            assert_eq!(data.images(), Some(&set));
        }
        (Ok(Some(_)), Err(error)) => panic!("images of a file that is refused: {error}"),
        // such as pictures, which are read into memory
        (Ok(None), _) => {}
        (Err(error), set) => {
            accepted::<()>(Err(match error {
                Error::Data(error) => error,
                error => panic!("{error}"),
            }));
            assert!(set.is_err(), "{set:?} in memory");
        }
    }
    std::fs::remove_file(&path).expect("it is there");
}

fn whole(set: &ImageSet) {
    assert!(set.len() > 0);
    assert_eq!(set.len() * set.height() * set.width() * set.channels(), set.bytes().len());
    assert!(set.labels().is_none_or(|labels| labels.len() == set.len()));
}

/// What was read, or nothing if the error is a few lines of printable text.
fn accepted<T>(result: Result<T, DataError>) -> Option<T> {
    result
        .map_err(|error| {
            let message = error.to_string();
            assert!(!message.is_empty() && message.chars().count() < 1000, "{message}");
            assert!(!message.contains(char::is_control), "{message:?}");
        })
        .ok()
}
