//! Images: each format (PNG and NPY in `data_pictures`) against files made here byte by byte, every refusal with its words, and what makes training,
//! validation and test sets.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use resflow::backend::Key;
use resflow::data::image::{self, ImageSet, ImageSize, ImageStack, cifar, flip, idx, looks_like_images, npy, png};
use resflow::data::{DataError, Table};
use tempfile::TempDir;

use super::data_pictures::array;

pub(super) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

pub(super) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub(super) fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, bytes).expect("a file");
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// n images of 2 × 3 pixels whose bytes count up from `first`.
pub(super) fn counting(n: usize, first: u8) -> ImageSet {
    let bytes = (0..n * 6).map(|i| first.wrapping_add(i as u8)).collect();
    ImageSet::new(2, 3, 1, bytes, None).expect("a set")
}

pub(super) fn idx_file(set: &ImageSet) -> Vec<u8> {
    let mut out = Vec::new();
    idx::write_images(set, &mut out).expect("memory");
    out
}

pub(super) fn label_file(labels: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    idx::write_labels(labels, &mut out).expect("memory");
    out
}

/// A record of CIFAR-10: pixel p has red p mod 251, green 3p mod 241, blue label.
pub(super) fn record(labels: &[u8]) -> Vec<u8> {
    let mut bytes = labels.to_vec();
    bytes.extend((0..1024).map(|p| (p % 251) as u8));
    bytes.extend((0..1024).map(|p| (3 * p % 241) as u8));
    bytes.extend([labels[labels.len() - 1]; 1024]);
    bytes
}

pub(super) fn gray(height: usize, width: usize, value: u8) -> Vec<u8> {
    png::encode(height, width, 1, &vec![value; height * width]).expect("a picture")
}

#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, DataError>, words: &[&str]) {
    let message = result.expect_err("an error").to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[test]
fn sets_check_their_sizes() {
    for (h, w, c, what) in [(0, 1, 1, "height"), (1, 0, 1, "width"), (1, 1, 0, "channels")] {
        refused(ImageSet::new(h, w, c, vec![0], None), &[what, "is 0"]);
        refused(ImageStack::new(h, w, c, vec![0.0]), &[what, "is 0"]);
    }
    refused(ImageSet::new(2, 2, 1, vec![], None), &["number of images is 0"]);
    refused(ImageSet::new(2, 2, 1, vec![0; 6], None), &["6 values", "2x2 pixels with 1 channel"]);
    refused(ImageSet::new(usize::MAX, 2, 3, vec![0; 6], None), &["too large"]);
    refused(ImageSet::new(1, 2, 3, vec![0; 6], Some(vec![1, 2])), &["2 labels for 1 image"]);
    refused(counting(2, 0).with_labels(vec![1]), &["1 label for 2 images"]);
    refused(counting(2, 0).take(&[1, 2]), &["no image 2", "2 images"]);
    refused(counting(2, 0).take(&[]), &["number of images is 0"]);
    let set = counting(3, 0).with_labels(vec![7, 8, 9]).expect("labels that fit");
    let taken = set.take(&[2, 0, 2]).expect("images");
    assert_eq!(taken.labels(), Some(&[9, 7, 9][..]));
    assert_eq!((taken.len(), taken.image(1), taken.image(3)), (3, set.image(0), None));
}

#[test]
fn stacks_hold_values_between_zero_and_one() {
    let stack = ImageStack::new(2, 1, 3, vec![0.0, 1.0, 0.5, 0.25, -0.0, 1e-300]).expect("a stack");
    assert_eq!((stack.len(), stack.dimension(), stack.row(0)), (1, 6, Some(stack.values())));
    let mut values = vec![0.5; 48];
    for bad in [1.0 + f64::EPSILON, -1e-300, f64::NAN, f64::INFINITY] {
        // image 1, channel 2, row 1, column 3 of [2, 3, 2, 4]
        values[24 + 16 + 4 + 3] = bad;
        let place = "[image 1, channel 2, row 1, column 3]";
        refused(ImageStack::new(2, 4, 3, values.clone()), &[place, "between 0 and 1", &bad.to_string()]);
    }
}

#[test]
fn images_in_another_size() {
    let size = |height, width, channels| ImageSize { height, width, channels };
    let adapted = |set: &ImageSet, to| set.adapted(to).expect("a size").bytes().to_vec();
    // cut to the middle rows, padded to the left and right: an odd pixel is cut at the end and padded at the end
    let set = ImageSet::new(3, 2, 1, vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], Some(vec![5, 6])).expect("a set");
    let cut = set.adapted(size(2, 4, 1)).expect("a size");
    assert_eq!(cut.bytes(), [0, 1, 2, 0, 0, 3, 4, 0, 0, 7, 8, 0, 0, 9, 10, 0]);
    assert_eq!((cut.labels(), cut.size()), (Some(&[5, 6][..]), size(2, 4, 1)));
    assert_eq!(adapted(&set, size(1, 1, 1)), [3, 9]);
    assert_eq!(adapted(&set, size(4, 2, 1))[..8], [1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(set.adapted(set.size()).expect("a size"), set);
    // grey of red, green, blue and white by BT.601; colours of grey; channels cut off and zero
    let colours = ImageSet::new(2, 2, 3, vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255], None).expect("a set");
    assert_eq!(adapted(&colours, size(2, 2, 1)), [76, 150, 29, 255]);
    assert_eq!(adapted(&set, size(1, 1, 3)), [3, 3, 3, 9, 9, 9]);
    assert_eq!(adapted(&colours, size(1, 1, 2)), [255, 0]);
    assert_eq!(adapted(&colours, size(1, 1, 4)), [255, 0, 0, 0]);
    refused(set.adapted(size(0, 2, 1)), &["height", "0"]);
    refused(set.adapted(size(usize::MAX, 2, 1)), &["too large"]);
    refused(set.adapted(size(1 << 40, 1 << 20, 1)), &["too large"]);
    assert_eq!((set.classes(), colours.classes()), (Some(7), None));
}

#[test]
fn fingerprints_differ_where_images_do() {
    let set = counting(5, 0);
    let print = set.fingerprint();
    // written into runs, which must resume under later versions; the number is from another implementation
    assert_eq!(print, "5 images of 2x3 pixels with 1 channel, FNV-1a 19c83f8461054268");
    let mut seen = vec![print];
    let mut note = |bytes: Vec<u8>, (h, w): (usize, usize)| {
        let print = ImageSet::new(h, w, 1, bytes, None).expect("a set").fingerprint();
        assert!(!seen.contains(&print), "{print}");
        seen.push(print);
    };
    for i in 0..30 {
        for bit in 0..8 {
            let mut bytes = set.bytes().to_vec();
            bytes[i] ^= 1 << bit;
            note(bytes, (2, 3));
        }
    }
    // swaps within a word, between lanes and along one
    for (i, j) in [(0, 1), (0, 8), (3, 27), (28, 29)] {
        let mut bytes = set.bytes().to_vec();
        bytes.swap(i, j);
        note(bytes, (2, 3));
    }
    note(set.bytes().to_vec(), (3, 2));
    note(set.bytes()[..24].to_vec(), (2, 3));
    assert_eq!(set.clone().with_labels(vec![0; 5]).expect("labels").fingerprint(), set.fingerprint());
}

proptest! {
    #![proptest_config(cases(200))]

    /// The split is Table::split's, image for row.
    #[test]
    fn splits_are_disjoint_and_those_of_tables(n in 2_usize..60, fraction in 0.001..0.999, seed in any::<u64>()) {
        let bytes: Vec<u8> = (0..n).flat_map(|i| [i as u8, 255 - i as u8]).collect();
        let labels: Vec<u8> = (0..n as u8).collect();
        let set = ImageSet::new(1, 2, 1, bytes, Some(labels))?;
        let table = Table::new(None, 1, (0..n).map(|i| i as f64).collect())?;
        let (training, validation) = set.split(fraction, Key::new(seed))?;
        let (rows, others) = table.split(fraction, Key::new(seed))?;
        for (set, table) in [(&training, &rows), (&validation, &others)] {
            let labels: Vec<f64> = set.labels().expect("labels").iter().map(|&l| f64::from(l)).collect();
            prop_assert_eq!(&labels[..], table.values());
            for (i, &label) in set.labels().expect("labels").iter().enumerate() {
                prop_assert_eq!(set.image(i), Some(&[label, 255 - label][..]));
            }
        }
        let mut all = [training.labels().expect("labels"), validation.labels().expect("labels")].concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..n as u8).collect::<Vec<_>>());
    }

    #[test]
    fn files_give_back_what_was_written(
        (h, w, c) in (1_usize..5, 1_usize..5, 1_usize..5),
        n in 1_usize..4,
        seed in any::<u64>(),
    ) {
        use rand::Rng as _;
        let mut bytes = vec![0; n * h * w * c];
        Key::new(seed).generator().fill_bytes(&mut bytes);
        let set = ImageSet::new(h, w, c, bytes, None)?;
        prop_assert_eq!(&idx::read_images(&idx_file(&set))?, &set);
        prop_assert_eq!(&idx::read_images(&gzip(&idx_file(&set)))?, &set);
        let mut file = Vec::new();
        npy::write_bytes(&set, &mut file)?;
        prop_assert_eq!(&npy::read(&file)?, &set);
        let image = set.image(0).expect("one");
        if matches!(c, 1 | 3) {
            let back = png::read(&png::encode(h, w, c, image)?)?;
            prop_assert_eq!((back.size(), back.bytes()), (set.size(), image));
        } else {
            refused(png::encode(h, w, c, image), &["1 or 3 channels"]);
        }
        let mut mirrored = image.to_vec();
        flip(&mut mirrored, w, c);
        for (y, x, k) in (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..c).map(move |k| (y, x, k)))) {
            prop_assert_eq!(mirrored[(y * w + x) * c + k], image[(y * w + w - 1 - x) * c + k]);
        }
    }
}

#[test]
fn idx_bytes_are_read_as_they_stand() {
    let file = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 60];
    let set = idx::read_images(&file).expect("images");
    assert_eq!((set.len(), set.height(), set.width(), set.channels()), (2, 1, 3, 1));
    assert_eq!((set.image(1), set.labels()), (Some(&[40, 50, 60][..]), None));
    let colours = [0, 0, 8, 4, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6];
    assert_eq!(idx::read_images(&colours).expect("images").channels(), 3);
    let labels = [0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4];
    assert_eq!(idx::read_labels(&labels).expect("labels"), [5, 0, 4]);
    assert_eq!(idx::read_labels(&gzip(&labels)).expect("labels"), [5, 0, 4]);
    // members of a gzip file follow one another
    let parts = [gzip(&file[..7]), gzip(&file[7..18]), gzip(&file[18..])].concat();
    assert_eq!(idx::read_images(&parts).expect("images"), set);
}

#[test]
fn idx_faults_are_named() {
    let file = idx_file(&counting(2, 0));
    refused(idx::read_images(&[]), &["begins with nothing instead of 00 00 08 03"]);
    refused(idx::read_images(b"\0\0\x0d\x03"), &["begins with 00 00 0d 03 instead of 00 00 08 03"]);
    refused(idx::read_images(&label_file(&[1, 2])), &["the file holds labels"]);
    refused(idx::read_labels(&file), &["begins with 00 00 08 03 instead of 00 00 08 01"]);
    refused(idx::read_images(&file[..15]), &["ends within its IDX header"]);
    refused(idx::read_images(&file[..file.len() - 1]), &["announces 12 bytes", "11 follow", "cut short"]);
    refused(idx::read_images(&[&file[..], &[0]].concat()), &["announces 12 bytes", "13 follow", "damaged"]);
    for (at, what) in [(4, "number of images"), (8, "height"), (12, "width")] {
        let mut zero = file.clone();
        zero[at..at + 4].fill(0);
        refused(idx::read_images(&zero), &[what, "is 0"]);
    }
    let mut huge = file.clone();
    huge[4..16].fill(255);
    refused(idx::read_images(&huge), &["too large for any file"]);
    refused(idx::read_images(&gzip(&huge)), &["too large for any file"]);
}

#[test]
fn gzip_takes_no_more_memory_than_it_is_worth() {
    let file = idx_file(&counting(40, 0));
    let whole = gzip(&file);
    refused(idx::read_images(&whole[..whole.len() / 2]), &["compressed data are damaged or cut short"]);
    refused(idx::read_images(&whole[..whole.len() - 3]), &["compressed data are damaged or cut short"]);
    let mut sum = whole.clone();
    let end = sum.len() - 8;
    sum[end] ^= 1;
    refused(idx::read_images(&sum), &["compressed data are damaged or cut short"]);
    refused(idx::read_images(&[&whole[..], b"more"].concat()), &["compressed data are damaged or cut short"]);
    refused(idx::read_images(&gzip(&file[..file.len() - 7])), &["announces 240 bytes", "233 follow", "cut short"]);
    refused(idx::read_images(&gzip(&[&file[..], &[0; 9]].concat())), &["more follow it"]);
    // a header that promises gigabytes is refused by the file's size alone
    let promise = |n: u32| [&[0, 0, 8, 3][..], &n.to_be_bytes(), &[0, 0, 4, 0, 0, 0, 4, 0]].concat();
    refused(idx::read_images(&gzip(&promise(4000))), &["announces 4194304000 bytes", "cannot hold"]);
    // a bomb: the data go on for 64 MiB behind the promised 1 MiB, and are not taken
    let bomb = gzip(&[promise(1), vec![0; 64 << 20]].concat());
    assert!(bomb.len() < 70_000);
    refused(idx::read_images(&bomb), &["announces 1048576 bytes", "more follow it"]);
    // but black images compress as well as anything does
    let black = ImageSet::new(1024, 1024, 1, vec![0; 4 << 20], None).expect("images");
    assert_eq!(idx::read_images(&gzip(&idx_file(&black))).expect("images"), black);
}

#[test]
fn mnist_folders_keep_the_test_images_apart() {
    for (prefix, zip) in [("", false), ("mnist-", true), ("train-images-idx3-ubyte-", false)] {
        let (train, test) = (counting(3, 1), counting(2, 101));
        let folder = folder();
        let file = |name: &str, bytes: Vec<u8>| {
            let (name, bytes) = if zip { (format!("{name}.gz"), gzip(&bytes)) } else { (name.to_owned(), bytes) };
            put(folder.path(), &format!("{prefix}{name}"), bytes);
        };
        file("train-images-idx3-ubyte", idx_file(&train));
        put(folder.path(), "README.md", "another file");
        put(folder.path(), "picture.png", gray(5, 5, 0));
        put(folder.path(), &format!("{prefix}train-images-idx3-ubyte.sha256"), "another file");
        let data = image::open(folder.path()).expect("a training set alone");
        assert_eq!((&data.training, &data.test), (&train, &None));

        file("t10k-images-idx3-ubyte", idx_file(&test));
        let data = image::open(folder.path()).expect("both sets");
        assert_eq!((&data.training, &data.test), (&train, &Some(test.clone())));
        // no byte of the test images is in training or validation
        let (training, validation) = data.training.split(0.4, Key::new(0)).expect("a split");
        assert_eq!(training.len() + validation.len(), 3);
        assert!(training.bytes().iter().chain(validation.bytes()).all(|&b| b <= 18));

        file("train-labels-idx1-ubyte", label_file(&[3, 4, 5]));
        file("t10k-labels-idx1-ubyte", label_file(&[6, 7]));
        let data = image::open(folder.path()).expect("labels");
        assert_eq!(data.training.labels(), Some(&[3, 4, 5][..]));
        assert_eq!(data.test.and_then(|test| test.labels().map(<[u8]>::to_vec)), Some(vec![6, 7]));
        assert!(looks_like_images(folder.path()));

        file("t10k-labels-idx1-ubyte", label_file(&[6, 7, 8]));
        refused(image::open(folder.path()), &["t10k-labels-idx1-ubyte", "3 labels for 2 images"]);
    }
}

#[test]
fn mnist_folders_that_are_unclear_are_refused() {
    let folder = folder();
    let file = idx_file(&counting(3, 1));
    put(folder.path(), "t10k-images-idx3-ubyte", &file);
    refused(image::open(folder.path()), &["t10k-images-idx3-ubyte", "no training images"]);
    put(folder.path(), "train-images-idx3-ubyte", &file);
    put(folder.path(), "train-images-idx3-ubyte.gz", gzip(&file));
    let two = ["`train-images-idx3-ubyte`", "`train-images-idx3-ubyte.gz`", "both training images"];
    refused(image::open(folder.path()), &two);
    fs::remove_file(folder.path().join("train-images-idx3-ubyte.gz")).expect("removed");
    put(folder.path(), "fashion-t10k-labels-idx1-ubyte", label_file(&[1; 3]));
    refused(image::open(folder.path()), &["`fashion-t10k-labels-idx1-ubyte`", "different data sets", "prefix"]);
    fs::remove_file(folder.path().join("fashion-t10k-labels-idx1-ubyte")).expect("removed");
    let other = ImageSet::new(3, 2, 1, vec![0; 6], None).expect("a set");
    put(folder.path(), "t10k-images-idx3-ubyte", idx_file(&other));
    let sizes = ["`train-images-idx3-ubyte` has 2x3 pixels", "`t10k-images-idx3-ubyte` has 3x2 pixels"];
    refused(image::open(folder.path()), &sizes);
    put(folder.path(), "cifar-10-batches-bin/test_batch.bin", record(&[1]));
    refused(image::open(folder.path()), &["`train-images-idx3-ubyte`", "`test_batch.bin`", "different data sets"]);
}

#[test]
fn cifar_planes_become_pixels() {
    let set = cifar::read10(&[record(&[3]), record(&[9])].concat()).expect("images");
    assert_eq!((set.len(), set.height(), set.width(), set.channels()), (2, 32, 32, 3));
    assert_eq!(set.labels(), Some(&[3, 9][..]));
    for (i, label) in [(0, 3), (1, 9)] {
        let image = set.image(i).expect("an image");
        for p in 0..1024 {
            assert_eq!(image[3 * p..3 * p + 3], [(p % 251) as u8, (3 * p % 241) as u8, label]);
        }
    }
    let set = cifar::read100(&record(&[19, 99])).expect("images");
    assert_eq!((set.labels(), set.bytes()[2]), (Some(&[99][..]), 99));

    refused(cifar::read10(&[]), &["0 bytes", "3073"]);
    refused(cifar::read10(&record(&[3])[..3072]), &["3072 bytes", "CIFAR-10", "cut short"]);
    refused(cifar::read100(&record(&[3])), &["3073 bytes", "CIFAR-100"]);
    refused(cifar::read10(&[record(&[3]), record(&[10])].concat()), &["record 1", "label 10", "10 classes"]);
    refused(cifar::read100(&record(&[20, 0])), &["record 0", "label 20", "20 classes"]);
    refused(cifar::read100(&record(&[0, 100])), &["label 100", "100 classes"]);
}

#[test]
fn cifar_folders() {
    for below in ["", "cifar-10-batches-bin/"] {
        let folder = folder();
        put(folder.path(), &format!("{below}test_batch.bin"), record(&[9]));
        refused(image::open(folder.path()), &["test_batch.bin", "no training images"]);
        for i in [1, 2, 4, 5] {
            put(folder.path(), &format!("{below}data_batch_{i}.bin"), record(&[i]));
        }
        refused(image::open(folder.path()), &["data_batch_3.bin", "five batches"]);
        put(folder.path(), &format!("{below}data_batch_3.bin"), [record(&[3]), record(&[7])].concat());
        put(folder.path(), &format!("{below}batches.meta.txt"), "airplane\n");
        let data = image::open(folder.path()).expect("images");
        assert_eq!(data.training.labels(), Some(&[1, 2, 3, 7, 4, 5][..]));
        assert_eq!(data.test.expect("test images").labels(), Some(&[9][..]));
        put(folder.path(), &format!("{below}data_batch_2.bin"), b"short");
        refused(image::open(folder.path()), &["data_batch_2.bin: ", "5 bytes"]);
    }
    for below in ["", "cifar-100-binary/"] {
        let folder = folder();
        put(folder.path(), &format!("{below}test.bin"), record(&[1, 42]));
        refused(image::open(folder.path()), &["test.bin", "no training images"]);
        put(folder.path(), &format!("{below}train.bin"), record(&[2, 43]));
        let data = image::open(folder.path()).expect("images");
        assert_eq!(data.training.labels(), Some(&[43][..]));
        assert_eq!(data.test.expect("test images").labels(), Some(&[42][..]));
        put(folder.path(), "cifar-10-batches-bin/data_batch_1.bin", record(&[1]));
        refused(image::open(folder.path()), &["`data_batch_1.bin`", "`train.bin`", "different data sets"]);
    }
}

#[test]
fn single_files_are_training_images() {
    let folder = folder();
    let set = counting(2, 0);
    let mut array = Vec::new();
    npy::write_bytes(&set, &mut array).expect("memory");
    let files = [
        ("any.name", idx_file(&set)),
        ("any.gz", gzip(&idx_file(&set))),
        ("t10k-images-idx3-ubyte", idx_file(&set)),
        ("set.npy", array),
    ];
    for (name, bytes) in files {
        put(folder.path(), name, bytes);
        let path = folder.path().join(name);
        assert!(looks_like_images(&path), "{name}");
        let data = image::open(&path).expect(name);
        assert_eq!((&data.training, &data.test), (&set, &None), "{name}");
    }
    put(folder.path(), "data_batch_2.bin", record(&[5]));
    put(folder.path(), "test.bin", record(&[5, 55]));
    put(folder.path(), "one.png", gray(2, 2, 5));
    for (name, labels) in [("data_batch_2.bin", Some(&[5][..])), ("test.bin", Some(&[55])), ("one.png", None)] {
        assert!(looks_like_images(folder.path().join(name)));
        assert_eq!(image::open(folder.path().join(name)).expect(name).training.labels(), labels);
    }
    // tables are not images, nor is what is not there
    let tables: [(&str, &[u8]); 4] = [
        ("a.csv", b"1,2\n3,4\n"),
        ("a.csv.gz", &gzip(b"1,2\n3,4\n")),
        ("a.npy", &self::array(&[2, 2], npyz::Order::C, &[0_u8; 4])),
        ("damaged.npy", b"1,2\n"),
    ];
    for (name, bytes) in tables {
        put(folder.path(), name, bytes);
        assert!(!looks_like_images(folder.path().join(name)), "{name}");
        refused(image::open(folder.path().join(name)), &[name]);
    }
    assert!(!looks_like_images(folder.path().join("nothing")));
    refused(image::open(folder.path().join("nothing")), &["nothing: "]);
    refused(image::open(folder.path().join("a.csv")), &["neither IDX"]);
    put(folder.path(), "train-labels-idx1-ubyte", label_file(&[1]));
    refused(image::open(folder.path().join("train-labels-idx1-ubyte")), &["the file holds labels"]);
}
