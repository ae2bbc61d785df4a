//! The readers of images over mutations of the fuzz targets' seeds, without a fuzzer.

use crate::files::checks_images as checks;
use crate::mutation::{fuzz, mutate};

#[test]
fn idx_reader_survives_mutations() {
    let tokens: [&[u8]; 10] = [
        &[0, 0, 8, 3],
        &[0, 0, 8, 4],
        &[0, 0, 8, 1],
        &[0, 0, 0, 0],
        &[0, 0, 0, 1],
        &[0, 0, 0, 2],
        &[255, 255, 255, 255],
        &[0x1f, 0x8b, 8, 0],
        &[0x1f, 0x8b, 8, 0x1f],
        &[3, 0],
    ];
    fuzz("idx", 150_000, checks::idx, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

#[test]
fn cifar_reader_survives_mutations() {
    let tokens: [&[u8]; 6] = [&[0], &[9], &[10], &[19, 99], &[255], &[0; 3073]];
    fuzz("cifar", 60_000, checks::cifar, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

#[test]
fn png_reader_survives_mutations() {
    let tokens: [&[u8]; 16] = [
        b"IHDR",
        b"IDAT",
        b"IEND",
        b"PLTE",
        b"tRNS",
        b"acTL",
        b"fcTL",
        b"fdAT",
        b"zTXt",
        b"iCCP",
        &[0, 0, 0, 0],
        &[0, 0, 0, 1],
        &[0, 0, 4, 0],
        &[127, 255, 255, 255],
        &[0, 0, 0, 0, b'I', b'D', b'A', b'T', 0, 0, 0, 0],
        &[0x78, 0x01, 0x01],
    ];
    fuzz("png", 60_000, checks::png, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

#[test]
fn jpeg_reader_survives_mutations() {
    let tokens: [&[u8]; 14] = [
        &[0xff, 0xd8],
        &[0xff, 0xd9],
        &[0xff, 0xc0, 0, 17, 8],
        &[0xff, 0xc2, 0, 17, 8],
        &[0xff, 0xc4],
        &[0xff, 0xda],
        &[0xff, 0xdb, 0, 67],
        &[0xff, 0xdd, 0, 4, 0, 1],
        &[0xff, 0xd0],
        &[0xff, 0xee, 0, 14],
        &[0xff, 0],
        &[0xff, 0xff],
        &[0, 0],
        &[0x22, 0, 0x11, 1, 0x41],
    ];
    fuzz("jpeg", 40_000, checks::jpeg, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

#[test]
fn image_npy_reader_survives_mutations() {
    let tokens: [&[u8]; 12] = [
        b"(",
        b")",
        b",",
        b"'",
        b"0",
        b"1",
        b"18446744073709551615",
        b"'|u1'",
        b"'<f4'",
        b"True",
        b"(2, 1, 2, 3)",
        b"(2, 2, 3)",
    ];
    fuzz("image_npy", 150_000, checks::image_npy, |input, seeds, g| mutate(input, seeds, &tokens, g));
}
