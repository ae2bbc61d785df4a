//! Images as people have them, from the command line: sizes without a preset, folders of classes, JPEG, pictures that are
//! not alike, floats; and what is said of each.

use std::path::Path;

use crate::binary::{Folder, text};
use resflow::data::image::{ImageSet, ImageStack, npy, png};
use resflow::data::npy::Float;
use serde_json::Value;

const SMALL: &str = "\
[images]
blocks = [1, 1]
filters = 4
fully_connected = 0
head_width = 4
replicates = 2
[train]
batch = 8
steps = 3
";

/// Images of a size, each gray level a function of the place.
fn images(count: usize, [height, width, channels]: [usize; 3]) -> ImageSet {
    let bytes = (0..count * height * width * channels).map(|i| (i * 7 % 251) as u8).collect();
    ImageSet::new(height, width, channels, bytes, None).expect("images")
}

fn write_array(folder: &Folder, name: &str, set: &ImageSet) {
    let mut bytes = Vec::new();
    npy::write_bytes(set, &mut bytes).expect("memory");
    folder.write(name, bytes);
}

fn write_picture(folder: &Folder, name: &str, height: usize, width: usize, value: u8) {
    let path = folder.path(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let bytes: Vec<u8> = (0..height * width).map(|i| value.wrapping_add((i * 3) as u8)).collect();
    std::fs::write(path, png::encode(height, width, 1, &bytes).expect("a picture")).expect("a file");
}

/// Standard error of a line that succeeds.
#[track_caller]
fn said(folder: &Folder, line: &str) -> String {
    let output = folder.run(line);
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stderr)
}

#[test]
fn every_size_has_a_model() {
    let folder = Folder::new();
    for (name, size) in [("odd", [7, 9, 1]), ("even", [8, 12, 1]), ("colour", [6, 6, 3]), ("line", [1, 8, 1])] {
        write_array(&folder, &format!("{name}.npy"), &images(12, size));
        let out = said(&folder, &format!("fit {name}.npy --steps 1 --out {name}"));
        let [h, w, _] = size;
        assert_eq!(out.matches(&format!("no preset is for images of {h}x{w} pixels")).count(), 1, "{out}");
        let config = folder.read(&format!("{name}/config.toml"));
        assert!(config.contains(&format!("height = {h}\nwidth = {w}\n")), "{config}");
        // what is written is what was begun from
        said(&folder, &format!("fit {name}.npy --config {name}/config.toml --steps 1 --out again_{name}"));
        let model = |run: &str| std::fs::read(folder.path(run).join("model.safetensors")).expect("a model");
        assert!(model(name) == model(&format!("again_{name}")), "{name}");
    }
    // a file that names one setting changes one
    folder.write("one.toml", "[train]\nsteps = 1\n");
    said(&folder, "fit odd.npy --config one.toml --out one");
    let settings =
        |run: &str| folder.read(&format!("{run}/config.toml")).lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(settings("one"), settings("odd"));
    let error = folder.fail("fit odd.npy --preset mnist-small --out no", 2);
    assert!(error.contains("without --preset every size has a model"), "{error}");
}

#[test]
fn nobody_is_warned_of_a_law_that_nobody_chose() {
    let folder = Folder::new();
    write_array(&folder, "x.npy", &images(12, [8, 8, 1]));
    folder.write("small.toml", SMALL);
    folder.write("sized.toml", SMALL.replace("[images]", "[images]\nheight = 8\nwidth = 8"));
    folder.write("law.toml", SMALL.replace("[images]", "[images]\ntraining = \"roulette:law=poisson,rate=3,exact=2\""));
    let warned = |out: &str| out.contains("unbounded-variance");
    assert!(!warned(&said(&folder, "fit x.npy --config small.toml --out own")));
    assert!(!warned(&said(&folder, "fit x.npy --preset mnist-small --config sized.toml --out preset")));
    assert!(warned(&said(&folder, "fit x.npy --config law.toml --out chosen")));
    assert!(!warned(&said(&folder, "score own x.npy")));
    assert!(warned(&said(&folder, "score own x.npy --estimator roulette:law=poisson,rate=2,exact=4")));
}

#[test]
fn folders_are_classes_with_names() {
    let folder = Folder::new();
    for i in 0..6 {
        for (class, value) in [("ant, big", 0), ("bee", 90), ("cow", 180)] {
            write_picture(&folder, &format!("set/train/{class}/{i}.png"), 4, 4, value + 2 * i);
        }
        write_picture(&folder, &format!("some/bee/{i}.png"), 4, 4, 30 * i);
        write_picture(&folder, &format!("some/cow/{i}.png"), 4, 4, 30 * i);
        write_picture(&folder, &format!("others/cow/{i}.png"), 4, 4, 9);
        write_picture(&folder, &format!("others/eel/{i}.png"), 4, 4, 9);
    }
    write_picture(&folder, "set/test/cow/1.png", 4, 4, 77);
    folder.write("small.toml", SMALL.replace("steps = 3", "steps = 20"));
    let out = said(&folder, "fit set --config small.toml --classify --out run");
    let note = "note: set: 3 classes by folders, numbered from 0: `ant, big` (6), `bee` (6), `cow` (6)";
    assert_eq!(out.matches(note).count(), 1, "{out}");
    let inspected = folder.succeed("inspect run");
    assert!(inspected.contains("ant, big, bee, cow"), "{inspected}");
    let object: Value = serde_json::from_str(&folder.succeed("inspect run --json")).expect("an object");
    assert_eq!(object["provenance"]["classes"], serde_json::json!(["ant, big", "bee", "cow"]));
    let out = said(&folder, "score run set --rows 1");
    assert!(out.contains("taking the 1 test images of set") || out.contains("taking the first 1"), "{out}");

    // accuracy goes by the names: 0 and 1 of this folder are 1 and 2 of the model
    let score = folder.succeed("score run some --json --out scores.csv");
    let score: Value = serde_json::from_str(&score).expect("an object");
    let names = ["bee", "cow"].iter().flat_map(|name| [name; 6]);
    let scores = folder.read("scores.csv");
    let rows: Vec<&str> = scores.lines().skip(1).collect();
    assert_eq!(rows.len(), 12);
    let right = rows.iter().zip(names).filter(|(row, name)| row.contains(&format!(",{name},"))).count();
    assert_eq!(score["accuracy"].as_f64(), Some(right as f64 / 12.0), "{scores}");
    let known = |row: &&str| [",\"ant, big\",", ",bee,", ",cow,"].iter().any(|name| row.contains(name));
    assert!(rows.iter().all(known), "{scores}");
    let output = folder.run("score run others --json");
    assert!(text(&output.stderr).contains("the model knows no class `eel`"), "{}", text(&output.stderr));
    let score: Value = serde_json::from_slice(&output.stdout).expect("an object");
    assert!(score["accuracy"].is_null());
    assert!(folder.fail("fit some/bee --classify --out no", 2).contains("the folders that they are in"));
}

#[test]
fn pictures_that_are_not_alike() {
    let folder = Folder::new();
    for i in 0..12 {
        let height = if i == 7 { 6 } else { 5 };
        write_picture(&folder, &format!("set/{i:02}.png"), height, 4, 20 * i);
    }
    folder.write("small.toml", SMALL.replace("blocks = [1, 1]", "blocks = [1]"));
    let error = folder.fail("fit set --config small.toml --out run", 1);
    let parts = ["`00.png` has 5x4 pixels (11 pictures)", "`07.png` has 6x4 pixels (1 picture)", "--image-size 5x4"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    let out = said(&folder, "fit set --image-size 5x4 --config small.toml --out run");
    assert!(out.contains("note: set: 1 picture of 12 cut or padded about the centre"), "{out}");
    assert!(said(&folder, "score run set --image-size 5x4 --json").contains("cut or padded"));
    assert!(folder.fail("score run set", 1).contains("--image-size"));
    assert!(folder.fail("score run set --image-size 5x5", 2).contains("the model is for 5x4 pixels"));

    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/jpeg");
    std::fs::create_dir(folder.path("jpeg")).expect("a folder");
    for (i, name) in ["gray", "colour", "progressive", "subsampled", "colour"].iter().enumerate() {
        std::fs::copy(fixtures.join(format!("{name}.jpg")), folder.path(&format!("jpeg/{i}.jpg"))).expect("a copy");
    }
    let out = said(&folder, "fit jpeg --config small.toml --out colours");
    assert!(out.contains("1 picture of 5 gray among those in colours"), "{out}");
    assert!(folder.succeed("inspect colours").contains("12x17 pixels with 3 channels"));
}

#[test]
fn floats_are_learned_too() {
    let folder = Folder::new();
    folder.write("small.toml", SMALL);
    let set = images(16, [4, 6, 1]);
    write_array(&folder, "bytes.npy", &set);
    let write = |name: &str, value: &dyn Fn(u8) -> f64| {
        let stack = ImageStack::new(4, 6, 1, set.bytes().iter().map(|&b| value(b)).collect()).expect("a stack");
        let mut bytes = Vec::new();
        npy::write_stack(&stack, Float::F4, &mut bytes).expect("memory");
        folder.write(name, bytes);
    };
    write("scaled.npy", &|b| f64::from(b) / 255.0);
    write("noisy.npy", &|b| (f64::from(b) + 0.25) / 256.0);
    for name in ["bytes", "scaled", "noisy"] {
        let out = said(&folder, &format!("fit {name}.npy --config small.toml --out {name}"));
        let noted = ["multiples of 1/255", "learned as bytes"].map(|part| out.contains(part));
        assert_eq!(noted, [name == "scaled", name == "noisy"], "{out}");
        let model = |run: &str| std::fs::read(folder.path(run).join("model.safetensors")).expect("a model");
        assert!(model("bytes") == model(name), "{name}");
    }
    // what is a multiple of 1/255 was a byte, and gets its noise, in `score` as in `fit`
    let mean = |name: &str| folder.succeed(&format!("score bytes {name}.npy --json --seed 3"));
    let number = |json: &str| serde_json::from_str::<Value>(json).expect("an object")["mean_log_prob"].as_f64();
    assert_eq!(number(&mean("scaled")), number(&mean("bytes")));
    assert_ne!(number(&mean("noisy")), number(&mean("bytes")));
}

#[test]
fn failed_downloads_are_told() {
    let folder = Folder::new();
    folder.write("arch.toml", "[flow]\nblocks = 2\n");
    std::fs::create_dir(folder.path("set")).expect("a folder");
    for (bytes, part) in [
        (&b"<!DOCTYPE html>\n<html></html>"[..], "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "LFS"),
        (b"", "empty"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01", "cut short"),
    ] {
        folder.write("set/train-images-idx3-ubyte.gz", bytes);
        folder.write("c.pth", bytes);
        folder.write("m.safetensors", bytes);
        for line in [
            "fit set --out r",
            "fit set/train-images-idx3-ubyte.gz --out r",
            "import c.pth --config arch.toml --out o.safetensors",
            "score m.safetensors moons",
        ] {
            let error = folder.fail(line, 1);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
