//! Images as people have them: under other names, in folders for each class, as JPEG, of other depths and sizes, as arrays
//! of floats; and what is said of each.

use std::fs;
use std::path::{Path, PathBuf};

use npyz::Order::{C, Fortran};
use proptest::prelude::*;
use resflow::data::image::{self, ImageSet, ImageStack, jpeg, png};
use resflow::data::{self, Dataset, ReadOptions};

use super::data_images::{cases, counting, folder, gray, gzip, idx_file, label_file, put, refused};
use super::data_pictures::{array, picture};

fn notes(path: &Path) -> Vec<String> {
    image::open(path).expect("images").notes
}

fn sized(image_size: Option<[usize; 2]>) -> ReadOptions {
    ReadOptions { image_size, ..ReadOptions::default() }
}

#[test]
fn the_names_that_mnist_goes_by() {
    let (train, test) = (counting(3, 1), counting(2, 101));
    let labelled = |set: &ImageSet, labels: &[u8]| set.clone().with_labels(labels.to_vec()).expect("labels");
    for (names, zip) in [
        (
            ["train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"],
            false,
        ),
        (
            ["TRAIN-IMAGES-IDX3-UBYTE", "TRAIN-LABELS-IDX1-UBYTE", "T10K-IMAGES-IDX3-UBYTE", "T10K-LABELS-IDX1-UBYTE"],
            true,
        ),
        (
            [
                "emnist-letters-train-images-idx3-ubyte",
                "emnist-letters-train-labels-idx1-ubyte",
                "emnist-letters-test-images-idx3-ubyte",
                "emnist-letters-test-labels-idx1-ubyte",
            ],
            true,
        ),
        (["train_images", "train_labels", "test_images", "test_labels"], false),
    ] {
        for below in [false, true] {
            let folder = folder();
            let files = [idx_file(&train), label_file(&[3, 4, 5]), idx_file(&test), label_file(&[6, 7])];
            for (name, file) in names.iter().zip(files) {
                let (name, file) = if zip { (format!("{name}.gz"), gzip(&file)) } else { ((*name).to_owned(), file) };
                put(folder.path(), &if below { format!("{name}/{name}") } else { name }, file);
            }
            let data = image::open(folder.path()).unwrap_or_else(|e| panic!("{names:?}, {below}: {e}"));
            assert_eq!(data.training, labelled(&train, &[3, 4, 5]), "{names:?}");
            assert_eq!(data.test, Some(labelled(&test, &[6, 7])), "{names:?}");
            assert!(data.notes.is_empty());
        }
    }
    // Kaggle has each file twice
    let folder = folder();
    put(folder.path(), "train-images.idx3-ubyte", idx_file(&train));
    put(folder.path(), "train-images-idx3-ubyte/train-images-idx3-ubyte", idx_file(&train));
    assert_eq!(image::open(folder.path()).expect("one").training, train);
    assert!(notes(folder.path())[0].contains("there twice"));
    put(folder.path(), "train-images-idx3-ubyte/train-images-idx3-ubyte", idx_file(&test));
    refused(image::open(folder.path()), &["both training images"]);

    // names that say nothing, and one that says it alone
    let folder = self::folder();
    put(folder.path(), "a.idx", idx_file(&train));
    put(folder.path(), "b.idx", label_file(&[3, 4, 5]));
    put(folder.path(), "notes.txt", "1 2 3");
    assert_eq!(image::open(folder.path()).expect("by contents").training, labelled(&train, &[3, 4, 5]));
    let folder = self::folder();
    put(folder.path(), "Train-Images.IDX3-ubyte.gz", "<!DOCTYPE html>");
    refused(image::open(folder.path()), &["IDX3-ubyte.gz: ", "looks like an HTML page"]);
    refused(image::open(folder.path().join("Train-Images.IDX3-ubyte.gz")), &["looks like an HTML page"]);
}

#[test]
fn failed_downloads_are_told() {
    let folder = folder();
    let whole = gzip(&idx_file(&counting(200, 0)));
    for (bytes, said) in [
        (&b"<html><body>403</body></html>"[..], "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer"),
        (b"", "an empty file"),
        (&whole[..whole.len() / 2], "cut short"),
        (b"PK\x03\x04\x14\0", "a zip file that is cut short"),
    ] {
        for name in ["train-images-idx3-ubyte.gz", "a.png", "b.jpg"] {
            put(folder.path(), &format!("{said}/{name}"), bytes);
            let path = folder.path().join(said).join(name);
            refused(image::open(&path), &[name, said]);
        }
        fs::remove_file(folder.path().join(said).join("a.png")).expect("removed");
        refused(image::open(folder.path().join(said)), &["train-images-idx3-ubyte.gz", said]);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).expect("the fixture is in the repository")
}

/// The pixels of another decoder within what rounding and the spreading of colours over pixels leave open.
#[test]
fn jpeg_files_have_the_pixels_of_libjpeg() {
    for (name, channels, tolerance) in [("gray", 1, 1), ("colour", 3, 3), ("progressive", 3, 3), ("subsampled", 3, 14)]
    {
        let set = jpeg::read(&bytes(&format!("{name}.jpg"))).expect(name);
        let expected = png::read(&bytes(&format!("{name}.png"))).expect(name);
        assert_eq!((set.len(), set.size(), set.channels()), (1, expected.size(), channels), "{name}");
        let worst = set.bytes().iter().zip(expected.bytes()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(tolerance), "{name}: {worst:?}");
        let opened = image::open(fixture(&format!("{name}.jpg"))).expect(name);
        assert_eq!(opened.training, set);
    }
}

#[test]
fn jpeg_faults_are_named() {
    let file = bytes("colour.jpg");
    refused(jpeg::read(b"GIF89a"), &["begins with 47 49 46 38 instead of ff d8 ff", "looks like a GIF picture"]);
    for end in [3, 20, 200, file.len() - 20, file.len() - 1] {
        refused(jpeg::read(&file[..end]), &["not a readable JPEG file", "cut short"]);
    }
    refused(jpeg::read(&bytes("cmyk.jpg")), &["CMYK", "convert it to RGB"]);
    refused(jpeg::read(b"\xff\xd8\xff\xe0\0\x10JFIF\0"), &["not a readable JPEG file"]);
    // the frame's header: its height and width stand behind the marker, a length and the precision
    let at = file.windows(2).position(|w| w == [0xff, 0xc0]).expect("a frame") + 5;
    let sized = |height: u16, width: u16| {
        let mut file = file.clone();
        file[at..at + 2].copy_from_slice(&height.to_be_bytes());
        file[at + 2..at + 4].copy_from_slice(&width.to_be_bytes());
        file
    };
    refused(jpeg::read(&sized(9000, 9000)), &["9000x9000 pixels", "67 MB"]);
    refused(jpeg::read(&sized(2000, 2000)), &["announces 12000000 bytes", "cannot hold"]);
    refused(jpeg::read(&sized(0, 17)), &["not a readable JPEG file"]);
    for i in 0..file.len() {
        for bit in [1, 16, 128] {
            let mut damaged = file.clone();
            damaged[i] ^= bit;
            let _ = jpeg::read(&damaged).map_err(|e| assert!(e.to_string().len() < 1000));
        }
    }
}

#[test]
fn folders_are_classes() {
    let folder = folder();
    let put = |name: &str, value| put(folder.path(), name, gray(1, 1, value));
    put("dog/b.png", 3);
    put("dog/a.png", 2);
    put("cat/deep/er/c.PNG", 1);
    put("empty/.keep.png", 9);
    put("__MACOSX/cat/x.png", 9);
    put(".hidden/y.png", 9);
    self::put(folder.path(), "cat/Thumbs.db", "x");
    self::put(folder.path(), "README.txt", "x");
    // the directory of a run has pictures that are no data
    put("run/samples.png", 9);
    self::put(folder.path(), "run/metrics.jsonl", "");
    let names = |set: &ImageSet| set.class_names().map(<[String]>::to_vec);
    let data = image::open(folder.path()).expect("classes");
    assert_eq!((data.training.bytes(), data.training.labels()), (&[1, 2, 3][..], Some(&[0, 1, 1][..])));
    assert_eq!((names(&data.training), data.training.classes()), (Some(vec!["cat".into(), "dog".into()]), Some(2)));
    assert_eq!(data.notes, ["2 classes by folders, numbered from 0: `cat` (1), `dog` (2)"]);
    // the names stay with the images
    let (some, others) = data.training.clone().split(0.5, resflow::backend::Key::new(0)).expect("two parts");
    assert_eq!((names(&some), names(&others)), (names(&data.training), names(&data.training)));
    assert_eq!(names(&data.training.adapted(data.training.size()).expect("a size")), names(&data.training));
    assert!(counting(2, 0).with_class_names(vec!["a".into()]).is_err(), "no labels");
    refused(data.training.clone().with_class_names(vec!["a".into()]), &["1 class name", "one of the labels is 1"]);

    // in test folders too, which may lack a class and must not have another
    put("test/dog/t.png", 7);
    put("test/cat/t.png", 6);
    let data = image::open(folder.path()).expect("classes");
    let test = data.test.expect("a test set");
    assert_eq!((test.bytes(), test.labels(), names(&test)), (&[6, 7][..], Some(&[0, 1][..]), names(&data.training)));
    put("test/eel/t.png", 7);
    refused(image::open(folder.path()), &["`test`", "`eel`", "do not have"]);
    fs::remove_dir_all(folder.path().join("test")).expect("removed");

    for (train, test) in [("train", "test"), ("Training", "TESTING"), ("train", "val")] {
        let folder = self::folder();
        for (name, value) in [("ant/1", 1), ("bee/1", 2), ("cow/1", 3)] {
            self::put(folder.path(), &format!("{train}/{name}.png"), gray(1, 1, value));
        }
        self::put(folder.path(), &format!("{test}/cow/1.png"), gray(1, 1, 7));
        self::put(folder.path(), &format!("{test}/ant/1.png"), gray(1, 1, 8));
        let data = image::open(folder.path()).expect("classes");
        assert_eq!(data.training.labels(), Some(&[0, 1, 2][..]));
        let set = data.test.expect("a test set");
        assert_eq!((set.bytes(), set.labels()), (&[8, 7][..], Some(&[0, 2][..])));
        assert_eq!(data.notes.iter().any(|n| n.contains("`val` are taken as test images")), test == "val");
        // in a folder of an archive
        let around = self::folder();
        fs::rename(folder.path(), around.path().join("archive")).expect("moved");
        let data = image::open(around.path()).expect("classes");
        assert!(data.training.len() == 3 && data.notes[0].contains("`archive`"), "{:?}", data.notes);
        fs::create_dir(folder.path()).expect("what the temporary folder removes");
    }
    // one folder is no class
    let folder = self::folder();
    self::put(folder.path(), "images/1.png", gray(1, 1, 7));
    assert!(notes(folder.path())[0].contains("those of the folder `images`"));
    self::put(folder.path(), "README", "x");
    let data = image::open(folder.path()).expect("pictures");
    assert!(data.training.labels().is_none() && data.notes[0].contains("no classes"), "{:?}", data.notes);
}

#[test]
fn what_is_beside_pictures() {
    let folder = folder();
    let put = |name: &str, bytes: Vec<u8>| put(folder.path(), name, bytes);
    for name in [".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", ".b.png"] {
        put(name, vec![0, 5, 22, 7]);
    }
    refused(image::open(folder.path()), &["the folder holds no images (it is empty)"]);
    put("c.webp", vec![1]);
    put("d.webp", vec![1]);
    put("notes", vec![1]);
    refused(image::open(folder.path()), &["no images (it has 2 .webp files, 1 file without an ending)"]);
    put("a.png", gray(12, 17, 1));
    put("e.jpg", bytes("gray.jpg"));
    // told by what is in it
    put("f.png", bytes("gray.jpg"));
    let data = image::open(folder.path()).expect("pictures");
    assert_eq!((data.training.len(), data.training.channels()), (3, 1));
    assert_eq!(data.notes, ["left out: 2 pictures of other formats than PNG and JPEG (`c.webp` the first)"]);
    put("more/a.png", gray(1, 1, 1));
    assert!(notes(folder.path()).iter().any(|n| n.contains("folders that are beside pictures (`more`")));
    put("g.jpeg", b"<html>".to_vec());
    refused(image::open(folder.path()), &["g.jpeg: ", "not a PNG file or a JPEG file", "looks like an HTML page"]);
    for name in ["data_batch_1", "batches.meta"] {
        put(&format!("cifar/{name}"), b"\x80\x03}.".to_vec());
    }
    refused(image::open(folder.path().join("cifar")), &["for Python", "binary version"]);
}

#[test]
fn sixteen_bits_transparency_and_palettes() {
    use ::png::{BitDepth, ColorType, Encoder};
    let none = |_: &mut Encoder<'_, &mut Vec<u8>>| {};
    let folder = folder();
    let mut all = Vec::new();
    let mut add = |name: &str, file: Vec<u8>, expected: &[u8]| {
        put(folder.path(), &format!("one/{name}.png"), &file);
        put(folder.path(), &format!("all/{name}.png"), &file);
        let data = image::open(folder.path().join("one").join(format!("{name}.png"))).expect(name);
        assert_eq!(data.training.bytes(), expected, "{name}");
        all.push((data.training.channels(), data.notes.clone()));
        data.notes
    };
    let deep: Vec<u8> = [0, 257 * 7, 257 * 7 + 128, 257 * 7 + 129].iter().flat_map(|v: &u16| v.to_be_bytes()).collect();
    let file = picture((1, 4), ColorType::Grayscale, BitDepth::Sixteen, &deep, none);
    assert!(add("a", file, &[0, 7, 7, 8])[0].contains("16 bits"));
    // α v + (1 − α) 255
    let glass = [10, 255, 10, 0, 10, 51, 200, 128];
    let file = picture((1, 4), ColorType::GrayscaleAlpha, BitDepth::Eight, &glass, none);
    assert!(add("b", file, &[10, 255, 206, 227])[0].contains("white"));
    let palette = |colours: Vec<u8>, opacity: Option<Vec<u8>>| {
        picture((1, 4), ColorType::Indexed, BitDepth::Eight, &[1, 0, 2, 1], |e| {
            e.set_palette(colours);
            if let Some(opacity) = opacity {
                e.set_trns(opacity);
            }
        })
    };
    assert!(add("c", palette(vec![9, 9, 9, 7, 7, 7, 0, 0, 0], None), &[7, 9, 0, 7]).is_empty());
    let file = palette(vec![9, 9, 9, 7, 7, 7, 0, 0, 0], Some(vec![255, 255, 0]));
    assert!(add("d", file, &[7, 9, 255, 7])[0].contains("white"));
    assert!(all.iter().all(|(channels, _)| *channels == 1));
    let file = palette(vec![9, 9, 9, 7, 7, 8, 0, 0, 0], None);
    put(folder.path(), "colour.png", &file);
    assert_eq!(image::open(folder.path().join("colour.png")).expect("a picture").training.channels(), 3);
    assert_eq!(
        notes(&folder.path().join("all")),
        [
            "1 picture of 4 had 16 bits a channel, rounded to 8 (`a.png` the first)",
            "2 pictures of 4 transparent in places, put on white (`b.png` the first)",
        ]
    );
    put(folder.path(), "all/e.png", &file);
    let data = image::open(folder.path().join("all")).expect("pictures");
    assert_eq!(data.training.channels(), 3);
    assert!(data.notes[2].starts_with("4 pictures of 5 gray among those in colours"), "{:?}", data.notes);
    assert_eq!(data.training.image(2), Some(&[7, 7, 7, 9, 9, 9, 0, 0, 0, 7, 7, 7][..]));
}

#[test]
fn sizes_are_listed_and_made_one() {
    let folder = folder();
    for (name, height, width) in [("a", 3, 2), ("b", 2, 2), ("c", 3, 2), ("d", 1, 4)] {
        put(folder.path(), &format!("{name}.png"), gray(height, width, 5));
    }
    put(folder.path(), "test/t.png", gray(2, 2, 7));
    let said = [
        "`a.png` has 3x2 pixels (2 pictures)",
        "`b.png` has 2x2 pixels (2 pictures)",
        "`d.png` has 1x4 pixels (1 picture)",
    ];
    refused(image::open(folder.path()), &said);
    refused(image::open(folder.path()), &["--image-size 2x2", "about the centre"]);
    let data = image::open_sized(folder.path(), Some([2, 2])).expect("one size");
    assert_eq!(data.training.bytes(), [[5; 4], [5; 4], [5; 4], [5, 5, 0, 0]].concat());
    assert_eq!((data.test.expect("a test set").bytes(), data.notes.len()), (&[7; 4][..], 1));
    assert!(data.notes[0].starts_with("3 pictures of 5 cut or padded"), "{:?}", data.notes);
    refused(image::open_sized(folder.path(), Some([0, 2])), &["height is 0"]);
    // of other formats too
    let set = counting(3, 0);
    put(folder.path(), "idx/train-images-idx3-ubyte", idx_file(&set));
    let data = image::open_sized(folder.path().join("idx"), Some([1, 3])).expect("one size");
    assert_eq!((data.training.height(), data.training.width(), data.notes.len()), (1, 3, 1));
    assert_eq!(
        data::open_with(folder.path().join("idx"), &sized(Some([2, 3]))).expect("its size").data.images(),
        Some(&set)
    );
    let stack = ImageStack::new(2, 3, 1, vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).expect("a stack");
    assert_eq!(stack.adapted(1, 1).expect("a size").values(), [0.2]);
    assert_eq!(stack.adapted(3, 1).expect("a size").values(), [0.2, 0.5, 0.0]);
}

/// One opened array: its bytes, or its numbers as they are in (C, H, W) order.
fn opened(folder: &Path, file: &[u8]) -> (Dataset, Vec<String>) {
    put(folder, "x.npy", file);
    let opened = data::open(folder.join("x.npy")).expect("images");
    (opened.data, opened.notes.iter().map(ToString::to_string).collect())
}

proptest! {
    #![proptest_config(cases(60))]

    /// Whatever the order of its axes, its type and its scale, an array of bytes is these bytes.
    #[test]
    fn arrays_are_read_in_every_order(
        (n, h, w) in (1_usize..4, 4_usize..7, 4_usize..7),
        c in prop::sample::select(vec![1_usize, 3]),
        seed in any::<u64>(),
        fortran in any::<bool>(),
    ) {
        use rand::Rng as _;
        let mut bytes = vec![0; n * h * w * c];
        resflow::backend::Key::new(seed).generator().fill_bytes(&mut bytes);
        // so that the floats are no flags
        bytes[0] = 7;
        let set = ImageSet::new(h, w, c, bytes, None)?;
        let folder = folder();
        let at = |i: usize, y: usize, x: usize, k: usize| set.bytes()[((i * h + y) * w + x) * c + k];
        let last = [n, h, w, c];
        let first = [n, c, h, w];
        for (shape, channels_first) in [(last, false), (first, true)] {
            let value = |index: [usize; 4]| {
                let [i, a, b, d] = index;
                if channels_first { at(i, b, d, a) } else { at(i, a, b, d) }
            };
            let count: usize = shape.iter().product();
            let values: Vec<u8> = (0..count).map(|place| {
                let mut index = [0; 4];
                let mut rest = place;
                let axes: [usize; 4] = if fortran { [0, 1, 2, 3] } else { [3, 2, 1, 0] };
                for axis in axes {
                    index[axis] = rest % shape[axis];
                    rest /= shape[axis];
                }
                value(index)
            }).collect();
            let order = if fortran { Fortran } else { C };
            let dims = shape.map(|d| d as u64);
            let whole: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
            let scaled: Vec<f32> = values.iter().map(|&v| f32::from(v) / 255.0).collect();
            let long: Vec<i64> = values.iter().map(|&v| i64::from(v)).collect();
            for file in [array(&dims, order, &values), array(&dims, order, &whole), array(&dims, order, &scaled), array(&dims, order, &long)] {
                let (data, _) = opened(folder.path(), &file);
                prop_assert_eq!(data.images(), Some(&set));
            }
            // what was no bytes stays, and is learned as bytes without the noise
            let noisy: Vec<f64> = values.iter().map(|&v| (f64::from(v) + 0.3) / 256.0).collect();
            let (data, _) = opened(folder.path(), &array(&dims, order, &noisy));
            let table = data.table().expect("numbers").clone();
            prop_assert_eq!(table.rows(), n);
            for (i, k, y, x) in [(0, 0, 0, 0), (n - 1, c - 1, h - 1, w - 1), (0, c - 1, 1, 2)] {
                prop_assert_eq!(table.row(i)[(k * h + y) * w + x], (f64::from(at(i, y, x, k)) + 0.3) / 256.0);
            }
            let learned = data::open(folder.path().join("x.npy"))?.quantised()?;
            prop_assert_eq!(learned.data.images(), Some(&set));
        }
    }
}

#[test]
fn arrays_that_say_too_little() {
    let folder = folder();
    let open = |file: &[u8], size| {
        put(folder.path(), "x.npy", file);
        data::open_with(folder.path().join("x.npy"), &sized(size))
    };
    let bytes: Vec<u8> = (0..72).collect();
    let both = array(&[1, 3, 8, 3], C, &bytes);
    refused(open(&both, None), &["1 image of 8x3 pixels with 3 channels", "1 image of 3x8 pixels", "--image-size"]);
    let last = open(&both, Some([3, 8])).expect("told by the size");
    assert_eq!(last.data.images().map(ImageSet::bytes), Some(&bytes[..]));
    let first = open(&both, Some([8, 3])).expect("told by the size");
    assert_eq!(
        first.data.images().and_then(|set| set.image(0)).map(|image| image[..3].to_vec()),
        Some(vec![0, 24, 48])
    );
    let picture: Vec<u8> = (0..192).collect();
    refused(open(&array(&[8, 8, 3], C, &picture), None), &["8 images of 8x3 pixels", "1 image of 8x8 pixels with 3"]);
    let one = open(&array(&[8, 8, 3], C, &picture), Some([8, 8])).expect("one picture");
    assert_eq!(one.data.images().map(|set| (set.len(), set.bytes().to_vec())), Some((1, picture)));

    let gray = |values: &[f64]| array(&[1, 2, 2], C, values);
    let (data, said) = opened(folder.path(), &gray(&[0.0, 1.0, 1.0, 0.0]));
    assert_eq!((data.images().map(ImageSet::bytes), said.len()), (Some(&[0, 255, 255, 0][..]), 1));
    let (data, _) = opened(folder.path(), &gray(&[0.0, 2.0, 1.0, 255.0]));
    assert_eq!(data.images().map(ImageSet::bytes), Some(&[0, 2, 1, 255][..]));
    refused(open(&gray(&[0.0, 0.5, 1.5, 0.0]), None), &["[image 0, channel 0, row 1, column 0]", "is 1.5"]);
    refused(open(&gray(&[0.0, -0.5, 1.0, 0.0]), None), &["-0.5", "between 0 and 1"]);
    refused(open(&gray(&[0.0, f64::NAN, 1.0, 0.0]), None), &["NaN"]);
    refused(open(&array(&[1, 2, 2], C, &[0_i32, 256, 1, 2]), None), &["256", "0 to 255"]);
    refused(open(&array(&[1, 2, 2, 1, 1], C, &[0.0; 4]), None), &["shape is (1, 2, 2, 1, 1)"]);
    // a set of images is bytes
    put(folder.path(), "x.npy", gray(&[0.1, 0.2, 0.3, 0.4]));
    refused(image::open(folder.path().join("x.npy")), &["images are bytes"]);
}
