//! Images that stay in their files, through the program: the same models wherever the images are, in bounded memory; and what is
//! damaged or changes is found out.

use std::fmt::Write as _;

use crate::binary::{Folder, assert_same, start, text, wait_for};
use crate::hybrid::{bands, config, write_set};
use resflow::data::image::{ImageSet, idx, npy, png};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("in memory");
    out.finish().expect("in memory")
}

/// The same images, once with labels and once without, as MNIST's files, these under gzip, an array of bytes, one of wider numbers
/// (which is read into memory) and pictures.
fn write_all(folder: &Folder, count: usize) {
    let (pixels, labels) = bands(count);
    let set = ImageSet::new(8, 8, 1, pixels, Some(labels.clone())).expect("images");
    let (mut images, mut classes, mut array) = (Vec::new(), Vec::new(), Vec::new());
    idx::write_images(&set, &mut images).expect("in memory");
    idx::write_labels(&labels, &mut classes).expect("in memory");
    npy::write_bytes(&set, &mut array).expect("in memory");
    for name in ["plain", "packed", "bare", "pictures"] {
        std::fs::create_dir(folder.path(name)).expect("a folder");
    }
    folder.write("plain/train-images-idx3-ubyte", &images);
    folder.write("plain/train-labels-idx1-ubyte", &classes);
    folder.write("packed/train-images-idx3-ubyte.gz", gzip(&images));
    folder.write("packed/train-labels-idx1-ubyte.gz", gzip(&classes));
    folder.write("bare/train-images-idx3-ubyte", &images);
    folder.write("bytes.npy", array);
    let header = format!("{{'descr': '<i2', 'fortran_order': False, 'shape': ({count}, 8, 8), }}");
    let mut wide = b"\x93NUMPY\x01\x00".to_vec();
    wide.extend(u16::try_from(header.len()).expect("a short header").to_le_bytes());
    wide.extend(header.as_bytes());
    wide.extend(set.bytes().iter().flat_map(|&byte| i16::from(byte).to_le_bytes()));
    folder.write("wide.npy", wide);
    for i in 0..count {
        let bytes = png::encode(8, 8, 1, set.image(i).expect("there")).expect("in memory");
        folder.write(&format!("pictures/{i:04}.png"), bytes);
    }
    folder.write("images.toml", config());
}

#[test]
fn images_in_files_are_images_in_memory() {
    let folder = Folder::new();
    write_all(&folder, 120);
    let fit = |data: &str, out: &str, more: &str| {
        let line = format!("fit {data} --out {out} --seed 3 --steps 12 --config images.toml {more}");
        let told = folder.run(&line);
        assert!(told.status.success(), "{line}: {}", text(&told.stderr));
        text(&told.stderr)
    };
    // 7680 bytes are not more than eight times a thousand
    assert!(!fit("bare", "resident", "--large 1000").contains("stay in their files"));
    let others = ["bytes.npy", "wide.npy", "pictures"];
    for data in ["bare"].iter().chain(&others) {
        let told = fit(data, &format!("of-{data}"), "--large 100");
        let said = told.contains("120 images of 8x8 pixels with 1 channel, which stay in their files");
        assert_eq!(said, *data != "wide.npy", "{told}");
    }
    let same =
        || others.iter().for_each(|data| assert_same(&folder.path("of-bare"), &folder.path(&format!("of-{data}"))));
    same();
    // and resumed, whatever is called large then
    for data in ["bare"].iter().chain(&others) {
        folder.succeed(&format!("fit {data} --out of-{data} --resume --steps 20"));
    }
    same();
    // scores and latents, of several pieces and of a part of a data set
    for (name, count) in [("train", 300), ("t10k", 40)] {
        write_set(&folder, "set", name, &bands(count).0, None);
    }
    for (number, part) in ["", "--split all", "--split train --rows 270", "--rows 30"].iter().enumerate() {
        let of = |large: usize| {
            let (score, latents) = (format!("s{number}-{large}.csv"), format!("z{number}-{large}.npy"));
            let told = folder.run(&format!("score of-bare set --out {score} --large {large} {part}"));
            assert!(told.status.success(), "{}", text(&told.stderr));
            assert_eq!(text(&told.stderr).contains("stay in their files"), large == 10, "{}", text(&told.stderr));
            folder.succeed(&format!("encode of-bare set --out {latents} --large {large} {part}"));
            let latents = std::fs::read(folder.path(&latents)).expect("written");
            (folder.read(&score), resflow::data::npy::read(&latents).expect("an array"))
        };
        let (streamed, resident) = (of(10), of(100_000));
        assert_eq!(streamed.0, resident.0);
        assert!(streamed.1.values() == resident.1.values(), "latents of {part}");
        assert_eq!(streamed.0.lines().count() - 1, [40, 340, 270, 30][number]);
    }
    // and back, of two pieces, with the log dets of the way forth: images are inverted in other batches then
    let decoded = |large: usize| {
        folder.succeed(&format!("decode of-bare z2-10.npy --out x.npy --large {large}"));
        folder.succeed(&format!("decode of-bare z2-10.npy --out x.csv --large {large}"));
        let bytes = std::fs::read(folder.path("x.npy")).expect("written");
        let header = bytes[..bytes.len() - 8 * 270 * 64].to_vec();
        (header, bytes, folder.table("x.csv"))
    };
    let (streamed, resident) = (decoded(10), decoded(100_000));
    assert_eq!((&streamed.0, &streamed.2.0), (&resident.0, &resident.2.0));
    let array = |bytes: &[u8]| npy::read_stack(bytes).expect("images").values().to_vec();
    let near = |a: &[f64], b: &[f64]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()))
    };
    assert!(near(&array(&streamed.1), &array(&resident.1)));
    assert!(near(&streamed.2.1.concat(), &resident.2.1.concat()) && streamed.2.1.len() == 270);
    let told = folder.fail("score of-bare bare --split test --large 10", 2);
    assert!(told.contains("no test images"), "{told}");
    folder.write("wide-set.npy", {
        let mut bytes = Vec::new();
        let set = ImageSet::new(8, 9, 1, vec![5; 720], None).expect("images");
        npy::write_bytes(&set, &mut bytes).expect("in memory");
        bytes
    });
    let told = folder.fail("score of-bare wide-set.npy --large 10", 2);
    assert!(told.contains("images of 8x9 pixels") && told.contains("the model is for 8x8"), "{told}");
    // hybrid models, whose labels are in memory
    for data in ["plain", "packed"] {
        fit(data, &format!("classes-{data}"), "--classify --large 100");
    }
    assert_same(&folder.path("classes-plain"), &folder.path("classes-packed"));
    assert!(folder.read("classes-plain/config.toml").contains("fit plain --large 100"));
    folder.succeed("fit plain --out classes-plain --resume --steps 16");
    let told = folder.fail("fit bare --out none --config images.toml --classify --large 100", 2);
    assert!(told.contains("--classify: bare has no labels"), "{told}");
    // one that was not large stays so
    folder.succeed("fit bare --out resident --resume --large 10 --steps 14");
    // given their class they are read into memory
    fit("plain", "given", "--given class --large 100");
}

/// Models that classify, and those that are given the class, of two pieces of images and of classes that they do not know.
#[test]
fn images_in_files_have_their_classes() {
    let folder = Folder::new();
    write_all(&folder, 120);
    let fit = "--seed 3 --steps 12 --config images.toml --large 100";
    folder.succeed(&format!("fit plain --out classes --classify {fit}"));
    folder.succeed(&format!("fit plain --out given --given class {fit}"));
    let (pixels, labels) = bands(300);
    write_set(&folder, "labelled", "t10k", &pixels, Some(&labels));
    write_set(&folder, "labelled", "train", &pixels[..64 * 20], Some(&labels[..20]));
    let strange: Vec<u8> = labels.iter().map(|label| label + 1).collect();
    write_set(&folder, "strange", "train", &pixels, Some(&strange));
    for (model, data) in [("classes", "labelled"), ("classes", "strange"), ("given", "labelled")] {
        let of = |large: usize| {
            let told = folder.run(&format!("score {model} {data} --out s.csv --json --large {large}"));
            let (told, said) = (text(&told.stdout), text(&told.stderr));
            assert_eq!(said.contains("stay in their files"), large == 10, "{said}");
            assert_eq!(said.contains("no accuracy"), data == "strange", "{said}");
            folder.succeed(&format!("encode {model} {data} --out z.npy --large {large}"));
            let latents = std::fs::read(folder.path("z.npy")).expect("written");
            (serde_json::from_str::<serde_json::Value>(&told).expect("an object"), folder.read("s.csv"), latents)
        };
        let (streamed, resident) = (of(10), of(100_000));
        assert_eq!(streamed.1, resident.1, "{model} on {data}");
        assert!(streamed.2 == resident.2, "latents of {model} on {data}");
        assert_eq!(streamed.1.contains("confidence"), model == "classes");
        for key in ["rows", "accuracy", "accuracy_se"] {
            assert_eq!(streamed.0[key], resident.0[key], "{key} of {model} on {data}");
        }
        for key in ["cross_entropy", "calibration_error", "mean_log_prob"] {
            match (streamed.0[key].as_f64(), resident.0[key].as_f64()) {
                (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-9 * (1.0 + b.abs()), "{key}: {a} and {b}"),
                (a, b) => assert_eq!(a, b, "{key} of {model} on {data}"),
            }
        }
        let has_quality = model == "classes" && data == "labelled";
        assert_eq!(streamed.0["accuracy"].is_number(), has_quality);
    }
    let told = folder.fail("score given bare --large 10", 2);
    assert!(told.contains("a density of images given their class, which these do not have"), "{told}");
}

#[test]
fn what_is_wrong_with_images_is_named() {
    let folder = Folder::new();
    write_all(&folder, 60);
    let path = folder.path("bare/train-images-idx3-ubyte");
    let good = std::fs::read(&path).expect("there");
    let fit = "fit DATA --out run --config images.toml --large 10";
    std::fs::write(&path, &good[..good.len() - 1]).expect("written");
    let told = folder.fail(&fit.replace("DATA", "bare"), 1);
    assert!(told.contains("cut short") && told.contains("train-images-idx3-ubyte"), "{told}");
    let packed = std::fs::read(folder.path("packed/train-images-idx3-ubyte.gz")).expect("there");
    folder.write("packed/train-images-idx3-ubyte.gz", &packed[..packed.len() - 9]);
    let told = folder.fail(&fit.replace("DATA", "packed"), 1);
    assert!(told.contains("train-images-idx3-ubyte.gz") && told.contains("cut short"), "{told}");
    folder.write("pictures/0059.png", png::encode(9, 8, 1, &[7; 72]).expect("in memory"));
    let told = folder.fail(&fit.replace("DATA", "pictures"), 1);
    assert!(told.contains("`0059.png` has 9x8 pixels") && told.contains("--image-size 8x8"), "{told}");
    let told = folder.run(&fit.replace("DATA", "pictures --image-size 8x8 --steps 4"));
    assert!(told.status.success() && text(&told.stderr).contains("`0059.png`"), "{}", text(&told.stderr));
    let told = folder.fail(&fit.replace("DATA", "bytes.npy --columns a"), 2);
    assert!(told.contains("are for tables"), "{told}");

    // images that are written anew while a run reads them; what was done stays
    let mut long = config();
    let _ = writeln!(long, "patience = 0");
    folder.write("long.toml", long.replace("validate_every = 30", "validate_every = 5"));
    let child = start(&folder, "fit bytes.npy --out changing --config long.toml --large 10 --steps 1000000");
    let metrics = folder.path("changing/metrics.jsonl");
    wait_for("some steps", || std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() > 3);
    let before = std::fs::read(folder.path("bytes.npy")).expect("there");
    let mut changed = before.clone();
    *changed.last_mut().expect("bytes") ^= 1;
    changed.push(0);
    folder.write("bytes.npy", changed);
    let ended = child.wait_with_output().expect("an end");
    let told = text(&ended.stderr);
    assert!(ended.status.code() == Some(1) && told.contains("changed while it was in use"), "{told}");
    folder.write("bytes.npy", before);
    let steps = resflow::checkpoint::Archive::read(&folder.path("changing/checkpoint.safetensors"))
        .expect("whole")
        .document["run"]["steps_done"]
        .as_u64();
    folder.succeed(&format!("fit bytes.npy --out changing --resume --steps {}", steps.unwrap_or(0) + 5));
}

/// A set of 300 MB.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded() {
    use std::io::Write as _;
    let folder = Folder::new();
    let (count, side) = (75_000_u32, 64_u32);
    let file = std::fs::File::create(folder.path("train-images-idx3-ubyte")).expect("a writable directory");
    let mut out = std::io::BufWriter::new(file);
    let header = [2051, count, side, side].map(u32::to_be_bytes).concat();
    out.write_all(&header).expect("written");
    let mut state = 1_u32;
    for _ in 0..count {
        let image: Vec<u8> = (0..side * side)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        out.write_all(&image).expect("written");
    }
    out.flush().expect("written");
    folder.write(
        "small.toml",
        "[images]\nblocks = [1]\nfilters = 4\n[train]\nbatch = 8\nsteps = 4\nvalidation_rows = 16\n",
    );
    let fit = "fit train-images-idx3-ubyte --out run --config small.toml --model glow --threads 1";
    let peak = crate::large::peak(&folder, fit);
    assert!(peak < 150_000_000, "{} MB", peak / 1_000_000);
}
