//! Images that stay in their files: each is the image that is read into memory, in every format, with the same labels and the same
//! words; runs on them have the same bits wherever they are and whoever reads them; and what is damaged or changes is found out.
//! No statistics: seeds are fixed.

use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use crate::common::*;
use crate::properties::families::archive_bytes;
use crate::properties::together::{on_ranks, take_part};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use resflow::backend::Key;
use resflow::checkpoint::Archive;
use resflow::config::{Family, ImageConfig, ModelConfig};
use resflow::data::image::{self, ImageData, ImageFiles, ImageSet, ImageSize, OpenedImages, idx, npy, png};
use resflow::data::{DataError, ImageRows, LargeTable, StoredRows, Values};
use resflow::error::{Error, ImageError};
use resflow::flow::Flow;
use resflow::train::{Budget, Source, TrainConfig, Trainer, is_on_large_table};

const LIMIT: Duration = Duration::from_secs(60);

/// Images of random bytes with labels of three classes.
fn images(count: usize, [height, width, channels]: [usize; 3], seed: u64) -> ImageSet {
    let byte = |i: usize| ((i as u64 + 31 * seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as u8;
    let bytes = (0..count * height * width * channels).map(byte).collect();
    let labels = (0..count).map(|i| (i as u64 * 7 + seed) as u8 % 3).collect();
    ImageSet::new(height, width, channels, bytes, Some(labels)).expect("images")
}

/// The formats that images are written in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Idx,
    Gzip,
    /// CIFAR-10 in five batches, or CIFAR-100.
    Cifar10,
    Cifar100,
    /// Channels last or first.
    Npy,
    Planes,
    /// A folder for each class, some pictures in gray, others in colours.
    Pictures,
}

const FORMATS: [Format; 7] =
    [Format::Idx, Format::Gzip, Format::Cifar10, Format::Cifar100, Format::Npy, Format::Planes, Format::Pictures];

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a writable directory");
    std::fs::write(path, bytes).expect("a writable directory");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).expect("in memory");
    out.finish().expect("in memory")
}

/// Each image's channels as planes.
fn planes(set: &ImageSet, image: usize) -> impl Iterator<Item = u8> {
    let image = set.image(image).expect("there");
    (0..set.channels()).flat_map(move |c| image.iter().skip(c).step_by(set.channels()).copied())
}

/// Writes training and test images below a folder; returns the path to open.
fn write_as(format: Format, folder: &Path, count: usize, seed: u64) -> std::path::PathBuf {
    let (training, test) = (count, count / 3 + 1);
    let sized = |count, size| images(count, size, seed);
    match format {
        Format::Idx | Format::Gzip => {
            for (name, count) in [("train", training), ("t10k", test)] {
                let set = sized(count, [3, 4, 1]);
                let (mut pixels, mut labels) = (Vec::new(), Vec::new());
                idx::write_images(&set, &mut pixels).expect("in memory");
                idx::write_labels(set.labels().expect("labels"), &mut labels).expect("in memory");
                let packed = format == Format::Gzip;
                let ending = if packed { ".gz" } else { "" };
                let pixels = if packed { gzip(&pixels) } else { pixels };
                write(&folder.join(format!("{name}-images-idx3-ubyte{ending}")), &pixels);
                write(&folder.join(format!("{name}-labels-idx1-ubyte")), &labels);
            }
            folder.to_owned()
        }
        Format::Cifar10 | Format::Cifar100 => {
            let set = sized(training.max(5) + test, [32, 32, 3]);
            let record = |i: usize| {
                let label = set.labels().expect("labels")[i];
                let coarse = (format == Format::Cifar100).then_some(label + 7);
                coarse.into_iter().chain([label]).chain(planes(&set, i)).collect::<Vec<u8>>()
            };
            let of = |images: Range<usize>| images.flat_map(record).collect::<Vec<u8>>();
            let training = training.max(5);
            if format == Format::Cifar10 {
                let end = |batch: usize| batch * training / 5;
                for batch in 0..5 {
                    let name = format!("data_batch_{}.bin", batch + 1);
                    write(&folder.join(name), &of(end(batch)..end(batch + 1)));
                }
                write(&folder.join("test_batch.bin"), &of(training..training + test));
            } else {
                write(&folder.join("train.bin"), &of(0..training));
                write(&folder.join("test.bin"), &of(training..training + test));
            }
            folder.to_owned()
        }
        Format::Npy | Format::Planes => {
            let set = sized(training, [5, 4, 3]);
            let mut bytes = Vec::new();
            if format == Format::Npy {
                npy::write_bytes(&set, &mut bytes).expect("in memory");
            } else {
                let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({training}, 3, 5, 4), }}");
                bytes.extend(b"\x93NUMPY\x01\x00");
                bytes.extend(u16::try_from(header.len()).expect("a short header").to_le_bytes());
                bytes.extend(header.as_bytes());
                (0..training).for_each(|i| bytes.extend(planes(&set, i)));
            }
            let path = folder.join("images.npy");
            write(&path, &bytes);
            path
        }
        Format::Pictures => {
            for (part, count) in [("train", training.max(3)), ("test", test)] {
                for i in 0..count {
                    let channels = if i % 2 == seed as usize % 2 { 1 } else { 3 };
                    let set = sized(i + 1, [5, 4, channels]);
                    let bytes = png::encode(5, 4, channels, set.image(i).expect("there")).expect("in memory");
                    write(&folder.join(part).join(["ant", "bee", "cat"][i % 3]).join(format!("{i:04}.png")), &bytes);
                }
            }
            folder.to_owned()
        }
    }
}

fn find(path: &Path, size: Option<[usize; 2]>) -> Result<OpenedImages, Error> {
    ImageFiles::find(path, size)?.expect("images that can be read by numbers").open(None)
}

/// The images of a file as those in memory.
fn resident(files: &ImageFiles, images: Range<usize>) -> ImageSet {
    let rows: &dyn StoredRows = files;
    match rows.read_samples(images).expect("there").into_values() {
        Values::Images(set) => set,
        Values::Tabular(_) => panic!("a table"),
    }
}

proptest! {
    #![proptest_config(cases(64))]

    /// Labels, names of classes and what is said included; cut and padded, and any range of them.
    #[test]
    fn images_in_files_are_images_in_memory(
        kind in 0..FORMATS.len(), count in 2_usize..14, seed in 0_u64..1000,
        size in proptest::option::of([2_usize..7, 2_usize..7]), ranks in 1_usize..4,
    ) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = write_as(FORMATS[kind], folder.path(), count, seed);
        let ImageData { training, test, notes } = image::open_sized(&path, size).expect("a data set");
        let found = ImageFiles::find(&path, size).expect("a data set").expect("readable by numbers");
        let (most, most_test) = found.most_bytes().expect("headers");
        prop_assert!(most >= training.bytes().len() && most_test.is_some() == test.is_some());
        let opened = on_ranks(ranks, LIMIT, |group| {
            let found = ImageFiles::find(&path, size).expect("a data set").expect("readable by numbers");
            found.open((ranks > 1).then_some(&*group)).expect("a data set")
        });
        for opened in opened {
            prop_assert_eq!(&opened.notes, &notes);
            prop_assert_eq!(opened.test.is_some(), test.is_some());
            for (files, set) in [(Some(&opened.training), Some(&training)), (opened.test.as_ref(), test.as_ref())] {
                let Some((files, set)) = files.zip(set) else { continue };
                prop_assert_eq!(&resident(files, 0..set.len()), set);
                prop_assert_eq!(files.images().expect("images").classes(), set.classes());
                let middle = set.len() / 3..set.len() - set.len() / 4;
                let all: Vec<usize> = middle.clone().collect();
                prop_assert_eq!(resident(files, middle), set.take(&all).expect("there"));
            }
        }
    }

    /// Files that are cut off are refused as the readers refuse them, with the same words.
    #[test]
    fn files_that_are_cut_off_are_refused(kind in 0..6_usize, seed in 0_u64..1000, part in 0.0..1.0_f64) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = write_as(FORMATS[kind], folder.path(), 6, seed);
        let name = ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "data_batch_3.bin", "train.bin"];
        let damaged = name.get(kind).map_or(path.clone(), |name| path.join(name));
        let bytes = std::fs::read(&damaged).expect("there");
        let keep = (part * bytes.len() as f64) as usize;
        write(&damaged, &bytes[..keep]);
        let told = |error: &dyn std::fmt::Display| error.to_string();
        match image::open(&path) {
            // such as batches that end with a record
            Ok(ImageData { training, .. }) => {
                let opened = find(&path, None).expect("images");
                prop_assert_eq!(resident(&opened.training, 0..training.len()), training);
            }
            Err(error) => {
                let found = match ImageFiles::find(&path, None) {
                    // an array whose header is gone may be anything
                    Ok(None) => return Ok(()),
                    Ok(Some(found)) => told(&found.open(None).expect_err("cut off")),
                    Err(found) => told(&found),
                };
                // what is at the end of compressed data is not looked for by two readers in the same way
                if kind == 1 {
                    prop_assert!(found.contains(".gz"), "{}", found);
                } else {
                    prop_assert_eq!(found, told(&error));
                }
            }
        }
    }
}

fn config(classes: usize) -> ModelConfig {
    ImageConfig { classes, filters: 3, ..exact_images([5, 4, 3], &[1]).of(Family::Glow) }.into()
}

fn settings() -> TrainConfig {
    TrainConfig { batch: 8, warmup: 2, validation_rows: 10, flips: true, ..TrainConfig::default() }
}

fn begin(source: impl Into<Source>, classes: usize) -> Result<Trainer<Cpu>, Error> {
    let flow = Flow::new(cpu(), config(classes), Key::new(3))?;
    Trainer::new(flow, source, &settings(), Budget::Steps(12), Key::new(4))
}

/// From memory, from an array and from pictures, on one to three ranks, through a state, of densities and of hybrid models.
#[test]
fn runs_have_the_same_bits_wherever_the_images_are() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let pictures = write_as(Format::Pictures, &folder.path().join("pictures"), 60, 5);
    let set = image::open(&pictures).expect("a data set").training;
    let array = folder.path().join("images.npy");
    let mut bytes = Vec::new();
    npy::write_bytes(&set, &mut bytes).expect("in memory");
    write(&array, &bytes);
    let run = |trainer: &mut Trainer<Cpu>| trainer.run(|_, _| ());
    for (path, classes) in [(&pictures, 3), (&pictures, 0), (&array, 0)] {
        let own = if classes == 0 {
            ImageSet::new(5, 4, 3, set.bytes().to_vec(), None).expect("images")
        } else {
            set.clone()
        };
        let resident = LargeTable::new(own.clone()).expect("bytes");
        let mut alone = begin(resident.clone(), classes).expect("data that fit");
        run(&mut alone).expect("finite");
        assert_eq!((alone.validation_samples().len(), alone.epoch_samples()), (6, Some(54)));
        let expected = archive_bytes(&alone);
        let open = || LargeTable::new(find(path, None).expect("a data set").training).expect("bytes");
        let fingerprint = |table: &LargeTable| Source::from(table.clone()).fingerprint(classes);
        assert_eq!(fingerprint(&open()), fingerprint(&resident));
        let mut streamed = begin(open(), classes).expect("data that fit");
        for _ in 0..7 {
            streamed.step().expect("finite");
        }
        let state = Archive::from_bytes(&streamed.to_archive().expect("stored").to_bytes().expect("stored"));
        let state = state.expect("a state");
        assert!(is_on_large_table(&state));
        let mut resumed = Trainer::resume(cpu(), &state, open()).expect("the same images");
        run(&mut resumed).expect("finite");
        assert!(archive_bytes(&resumed) == expected, "{path:?}");
        let mut other = own.bytes().to_vec();
        other[77] ^= 1;
        let other = ImageSet::new(5, 4, 3, other, own.labels().map(<[u8]>::to_vec)).expect("images");
        for other in [Source::from(own), LargeTable::new(other).expect("bytes").into()] {
            let refused = Trainer::resume(cpu(), &state, other).expect_err("another division, or a bit").to_string();
            assert!(refused.contains("other data"), "{refused}");
        }
        for ranks in [2, 3] {
            let states = on_ranks(ranks, LIMIT, |group| {
                let found = ImageFiles::find(path, None).expect("a data set").expect("readable by numbers");
                let files = found.open(Some(&*group)).expect("a data set").training;
                let large = LargeTable::new_together(files, &*group).expect("bytes");
                take_part(group, || begin(large.clone(), classes), large.clone().into(), run).expect("no fault")
            });
            assert!(states.iter().all(|state| *state == expected), "{path:?}, {classes} classes, {ranks} ranks");
        }
    }
    // labels count for a model that has classes
    let refused = begin(LargeTable::new(find(&array, None).expect("an array").training).expect("bytes"), 3);
    assert!(refused.expect_err("no labels").to_string().contains("no labels"));
}

/// Rows that are not what they say.
#[derive(Debug)]
struct Wrong {
    values: Vec<f64>,
    size: ImageSize,
    labels: Vec<u8>,
}

impl StoredRows for Wrong {
    fn rows(&self) -> usize {
        self.values.len() / self.width()
    }

    fn width(&self) -> usize {
        4
    }

    fn columns(&self) -> Option<&[String]> {
        None
    }

    fn images(&self) -> Option<ImageRows<'_>> {
        Some(ImageRows { size: self.size, labels: Some(&self.labels), class_names: None })
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        out.extend(&self.values[rows.start * 4..rows.end * 4]);
        Ok(())
    }
}

#[test]
fn rows_that_are_no_images_are_refused() {
    let size = ImageSize { height: 2, width: 2, channels: 1 };
    let wrong = |values: Vec<f64>, size, labels: &[u8]| {
        let found = LargeTable::new(Wrong { values, size, labels: labels.to_vec() });
        let Err(DataError::Image(error)) = found else { panic!("{found:?}") };
        error
    };
    let good = vec![255.0; 8];
    for value in [0.5, -1.0, 256.0, f64::NAN] {
        let mut values = good.clone();
        values[5] = value;
        let found = wrong(values, size, &[0, 1]);
        assert!(matches!(found, ImageError::Byte { value: found } if found.to_bits() == value.to_bits()), "{found}");
    }
    assert!(matches!(wrong(good.clone(), ImageSize { channels: 3, ..size }, &[0, 1]), ImageError::Length { .. }));
    assert!(matches!(wrong(good.clone(), size, &[0]), ImageError::Labels { labels: 1, images: 2 }));
    assert!(matches!(wrong(good[..4].to_vec(), size, &[0]), ImageError::TooFew));
}

#[test]
fn pictures_that_differ_or_change_are_found_out() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = write_as(Format::Pictures, folder.path(), 40, 1);
    let picture = |name: &str| path.join("train").join(name);
    let other = |height| png::encode(height, 4, 1, &vec![9; 4 * height]).expect("in memory");
    let before = std::fs::read(picture("bee/0007.png")).expect("there");
    let mut trainer = begin(LargeTable::new(find(&path, None).expect("a data set").training).expect("bytes"), 0);
    let trainer = trainer.as_mut().expect("data that fit");
    trainer.step().expect("finite");
    let state = archive_bytes(trainer);
    // another picture in its place, and none
    let until_told = |trainer: &mut Trainer<Cpu>| {
        let error = (0..6).find_map(|_| trainer.step().err()).expect("all pictures come in five steps").to_string();
        assert!(error.contains("changed while it was in use") && error.contains("0007.png"), "{error}");
    };
    write(&picture("bee/0007.png"), &other(9));
    until_told(trainer);
    std::fs::remove_file(picture("bee/0007.png")).expect("there");
    until_told(trainer);
    write(&picture("bee/0007.png"), &before);
    let state = Archive::from_bytes(&state).expect("a state");
    let again = LargeTable::new(find(&path, None).expect("a data set").training).expect("bytes");
    Trainer::resume(cpu(), &state, again).expect("the same pictures").step().expect("finite");
    // a size of its own, which all ranks tell, and one that is damaged
    write(&picture("bee/0007.png"), &other(9));
    let told = |ranks: usize| {
        on_ranks(ranks, LIMIT, |group| {
            let found = ImageFiles::find(&path, None).expect("a data set").expect("pictures");
            found.open(Some(&*group)).expect_err("refused").to_string()
        })
    };
    let expected = image::open(&path).expect_err("two sizes").to_string();
    assert!(expected.contains("`0007.png` has 9x4 pixels"), "{expected}");
    assert!(told(3).iter().all(|error| *error == expected || expected.ends_with(error)), "{:?}", told(3));
    write(&picture("bee/0007.png"), &before[..before.len() / 2]);
    assert!(told(3).iter().all(|error| error.contains("0007.png") && error.contains("PNG")), "{:?}", told(3));
}
