//! Images as PNG files, folders of them, and NPY arrays.

use std::fs;
use std::path::Path;

use npyz::WriterBuilder as _;
use resflow::data::image::{self, ImageSet, ImageStack, npy, png};
use resflow::data::npy::Float;

use super::data_images::{folder, gray, put, refused};

/// A PNG file of any kind, by the crate's encoder.
pub(super) fn picture(
    size: (u32, u32),
    colour: ::png::ColorType,
    depth: ::png::BitDepth,
    data: &[u8],
    more: impl FnOnce(&mut ::png::Encoder<'_, &mut Vec<u8>>),
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut out, size.1, size.0);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    more(&mut encoder);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(data).expect("data that fit");
    writer.finish().expect("an end");
    out
}

#[test]
fn png_kinds() {
    use ::png::{BitDepth, ColorType};
    let none = |_: &mut ::png::Encoder<'_, &mut Vec<u8>>| {};
    let read = |file: &[u8]| png::read(file).map(|set| (set.channels(), set.bytes().to_vec()));

    let rgb = picture((1, 2), ColorType::Rgb, BitDepth::Eight, &[1, 2, 3, 4, 5, 6], none);
    assert_eq!(read(&rgb).expect("a picture"), (3, vec![1, 2, 3, 4, 5, 6]));
    let bits = picture((1, 3), ColorType::Grayscale, BitDepth::Two, &[0b00_01_11_00], none);
    assert_eq!(read(&bits).expect("a picture"), (1, vec![0, 85, 255]));
    let palette =
        picture((1, 2), ColorType::Indexed, BitDepth::Eight, &[1, 0], |e| e.set_palette(vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(read(&palette).expect("a picture"), (3, vec![4, 5, 6, 1, 2, 3]));

    // opaque alpha goes, transparency is refused
    let opaque = picture((1, 2), ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 255, 4, 5, 6, 255], none);
    assert_eq!(read(&opaque).expect("a picture"), (3, vec![1, 2, 3, 4, 5, 6]));
    let opaque = picture((1, 2), ColorType::GrayscaleAlpha, BitDepth::Eight, &[1, 255, 2, 255], none);
    assert_eq!(read(&opaque).expect("a picture"), (1, vec![1, 2]));
    let glass = picture((2, 2), ColorType::GrayscaleAlpha, BitDepth::Eight, &[1, 255, 2, 255, 3, 254, 4, 255], none);
    refused(png::read(&glass), &["row 1, column 0", "transparent"]);
    let glass = picture((1, 2), ColorType::Indexed, BitDepth::Eight, &[0, 1], |e| {
        e.set_palette(vec![1, 2, 3, 4, 5, 6]);
        e.set_trns(vec![255, 0]);
    });
    refused(png::read(&glass), &["row 0, column 1", "transparent"]);

    let deep = picture((1, 1), ColorType::Grayscale, BitDepth::Sixteen, &[1, 2], none);
    refused(png::read(&deep), &["16 bits a channel"]);
    let moving = picture((1, 1), ColorType::Grayscale, BitDepth::Eight, &[1], |e| {
        e.set_animated(1, 0).expect("one frame");
    });
    refused(png::read(&moving), &["animation"]);
}

#[test]
fn png_faults_are_named() {
    let file = gray(7, 5, 9);
    refused(png::read(b"GIF89a"), &["begins with 47 49 46 38 instead of 89 50 4e 47"]);
    for end in [8, 20, 33, 45, file.len() - 12, file.len() - 1] {
        refused(png::read(&file[..end]), &["not a readable PNG file"]);
    }
    for i in 8..file.len() {
        let mut damaged = file.clone();
        damaged[i] ^= 4;
        assert!(png::read(&damaged).is_err(), "byte {i}");
    }
    // the header's sizes, with the right sums: its data starts at 16, its sum at 29
    let sized = |width: u32, height: u32| {
        let mut file = file.clone();
        file[16..20].copy_from_slice(&width.to_be_bytes());
        file[20..24].copy_from_slice(&height.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&file[12..29]);
        file[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        file
    };
    let palette = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/png/palette_cut.png");
    refused(png::read(&std::fs::read(palette).expect("a seed")), &["its palette has 13 bytes"]);
    refused(png::read(&sized(5, 8)), &["not a readable PNG file"]);
    refused(png::read(&sized(0, 7)), &["not a readable PNG file"]);
    refused(png::read(&sized(5000, 4000)), &["announces 20004000 bytes", "cannot hold"]);
    refused(png::read(&sized(10_000, 7_000)), &["7000x10000 pixels", "more than 67 MB"]);
    refused(png::read(&sized(u32::MAX, u32::MAX)), &[]);
    refused(png::encode(2, 2, 1, &[0; 3]), &["3 values"]);
    refused(png::encode(0, 2, 1, &[]), &["height is 0"]);
}

#[test]
fn png_folders() {
    let folder = folder();
    refused(image::open(folder.path()), &["the folder holds no images"]);
    for (name, value) in [("b.png", 2), ("a10.PNG", 1), ("c.png", 3)] {
        put(folder.path(), name, gray(1, 1, value));
    }
    put(folder.path(), "labels.csv", "0\n");
    put(folder.path(), "below/d.png", gray(1, 1, 9));
    let data = image::open(folder.path()).expect("pictures");
    assert_eq!((data.training.bytes(), data.test), (&[1, 2, 3][..], None));

    put(folder.path(), "test/x.png", gray(1, 1, 7));
    let data = image::open(folder.path()).expect("pictures");
    assert_eq!((data.training.bytes(), data.test.expect("a test set").bytes()), (&[1, 2, 3][..], &[7][..]));
    put(folder.path(), "train/y.png", gray(1, 1, 5));
    let data = image::open(folder.path()).expect("pictures");
    assert_eq!((data.training.bytes(), data.test.expect("a test set").bytes()), (&[5][..], &[7][..]));

    put(folder.path(), "train/z.png", gray(2, 1, 5));
    refused(image::open(folder.path()), &["`y.png` has 1x1 pixels", "`z.png` has 2x1 pixels"]);
    put(folder.path(), "train/z.png", png::encode(1, 1, 3, &[7, 8, 9]).expect("a picture"));
    let data = image::open(folder.path()).expect("gray among colours");
    assert_eq!((data.training.channels(), data.training.bytes()), (3, &[5, 5, 5, 7, 8, 9][..]));
    assert_eq!(data.test.expect("a test set").bytes(), [7, 7, 7], "as the training images are");
    let note = "2 pictures of 3 gray among those in colours, taken as colours (`y.png` the first)";
    assert_eq!(data.notes, [note]);
    put(folder.path(), "train/z.png", "no picture");
    refused(image::open(folder.path()), &["z.png: ", "not a PNG file"]);
    fs::remove_file(folder.path().join("train/z.png")).expect("removed");
    put(folder.path(), "test/x.png", gray(1, 2, 7));
    refused(image::open(folder.path()), &["`y.png` has 1x1 pixels", "`x.png` has 1x2 pixels"]);
    fs::remove_file(folder.path().join("train/y.png")).expect("removed");
    refused(image::open(folder.path()), &["test images (test/x.png) but no training images"]);
}

pub(super) fn array<T: npyz::AutoSerialize + Copy>(shape: &[u64], order: npyz::Order, values: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    let options = npyz::WriteOptions::new().default_dtype().shape(shape).order(order);
    let mut writer = options.writer(&mut out).begin_nd().expect("a header");
    writer.extend(values.iter().copied()).expect("memory");
    writer.finish().expect("a whole array");
    out
}

/// The values of a C-ordered array in Fortran order.
fn fortran<T: Copy>(values: &[T], [a, b, c, d]: [usize; 4]) -> Vec<T> {
    let mut out = Vec::new();
    for l in 0..d {
        for k in 0..c {
            for j in 0..b {
                out.extend((0..a).map(|i| values[((i * b + j) * c + k) * d + l]));
            }
        }
    }
    out
}

#[test]
fn npy_orders() {
    use npyz::Order;
    let bytes: Vec<u8> = (0..120).collect();
    let set = ImageSet::new(3, 4, 5, bytes.clone(), None).expect("a set");
    assert_eq!(npy::read(&array(&[2, 3, 4, 5], Order::C, &bytes)).expect("images"), set);
    assert_eq!(npy::read(&array(&[2, 3, 4, 5], Order::Fortran, &fortran(&bytes, [2, 3, 4, 5]))).expect("images"), set);
    let gray = ImageSet::new(6, 4, 1, bytes.clone(), None).expect("a set");
    assert_eq!(npy::read(&array(&[5, 6, 4], Order::C, &bytes)).expect("images"), gray);
    assert_eq!(npy::read(&array(&[5, 6, 4], Order::Fortran, &fortran(&bytes, [5, 6, 4, 1]))).expect("images"), gray);

    let values: Vec<f64> = (0..120).map(|i| f64::from(i) / 128.0).collect();
    let stack = ImageStack::new(4, 5, 3, values.clone()).expect("a stack");
    assert_eq!(npy::read_stack(&array(&[2, 3, 4, 5], Order::C, &values)).expect("images"), stack);
    let turned = array(&[2, 3, 4, 5], Order::Fortran, &fortran(&values, [2, 3, 4, 5]));
    assert_eq!(npy::read_stack(&turned).expect("images"), stack);
    for float in [Float::F4, Float::F8] {
        let mut file = Vec::new();
        npy::write_stack(&stack, float, &mut file).expect("memory");
        assert_eq!(npy::read_stack(&file).expect("images"), stack);
    }
}

#[test]
fn npy_faults_are_named() {
    use npyz::Order::C;
    let good = array(&[1, 2, 2, 1], C, &[0_u8; 4]);
    refused(npy::read(b""), &["not a readable NPY file"]);
    refused(npy::read(&good[..good.len() - 1]), &["4 bytes of data, but 3", "cut short"]);
    refused(npy::read(&array(&[1, 2, 2, 1], C, &[0.0; 4])), &["type is <f8", "images are bytes"]);
    refused(npy::read(&array(&[1, 2, 2, 1], C, &[0_i8; 4])), &["type is |i1"]);
    refused(npy::read(&array(&[2, 2], C, &[0_u8; 4])), &["shape is (2, 2)", "(number, height, width, channels)"]);
    refused(npy::read(&array(&[1, 1, 2, 2, 1], C, &[0_u8; 4])), &["shape is (1, 1, 2, 2, 1)"]);
    refused(npy::read(&array(&[1, 0, 2, 2], C, &[0_u8; 0])), &["shape is (1, 0, 2, 2)"]);
    refused(npy::read_stack(&good), &["type is |u1", "float32 or float64"]);
    refused(npy::read_stack(&array(&[2, 2, 1], C, &[0.0; 4])), &["shape is (2, 2, 1)", "channels, height, width"]);
    refused(npy::read_stack(&array(&[0, 2, 2, 1], C, &[0.0; 0])), &["shape is (0, 2, 2, 1)"]);
    refused(
        npy::read_stack(&array(&[1, 2, 1, 2], C, &[0.0, 0.0, 255.0, 0.0])),
        &["[image 0, channel 1, row 0, column 0]"],
    );
}
