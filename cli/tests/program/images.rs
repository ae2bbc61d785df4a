//! Images from the command line, on sixty of 8 × 8 pixels.

use std::fs::{create_dir, read, write};

use crate::binary::{self, Folder, metrics, text};
use resflow::backend::Key;
use resflow::data::Table;
use resflow::data::image::{ImageSet, ImageStack, idx, npy, png};
use resflow::data::npy::Float;
use resflow::{Flow, NdArray};
use serde_json::Value;

const CONFIG: &str = "\
[images]
height = 8
width = 8
blocks = [1, 1]
filters = 8
fully_connected = 1
fully_connected_width = 8
replicates = 4
[train]
batch = 16
steps = 6
validate_every = 3
validation_fraction = 0.2
";

/// Blobs: smooth, and different from each other.
pub(crate) fn blobs(count: usize, side: usize, channels: usize) -> ImageSet {
    let mut bytes = Vec::new();
    for i in 0..count {
        let (cy, cx) = ((i * 7 % side) as f64, (i * 3 % side) as f64);
        for y in 0..side {
            for x in 0..side {
                let r = (y as f64 - cy).hypot(x as f64 - cx);
                bytes.extend((0..channels).map(|c| (240.0 * (-r / (2.0 + c as f64)).exp()) as u8 + (i % 9) as u8));
            }
        }
    }
    ImageSet::new(side, side, channels, bytes, None).expect("images")
}

/// A folder with `set/`, 60 training and 20 test images, and `tiny.toml`.
pub(crate) fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("tiny.toml", CONFIG);
    create_dir(folder.path("set")).expect("a folder");
    for (name, count) in [("train", 60), ("t10k", 20)] {
        let mut bytes = Vec::new();
        idx::write_images(&blobs(count, 8, 1), &mut bytes).expect("a file in memory");
        folder.write(&format!("set/{name}-images-idx3-ubyte"), bytes);
    }
    folder
}

/// A folder with a fitted model `run`.
pub(crate) fn fitted() -> Folder {
    let folder = folder();
    folder.succeed("fit set --config tiny.toml --out run --seed 3");
    folder
}

fn stack(folder: &Folder, name: &str) -> ImageStack {
    npy::read_stack(&read(folder.path(name)).expect(name)).expect(name)
}

fn write_stack(folder: &Folder, name: &str, images: usize, float: Float) -> ImageStack {
    let values = (0..images * 64).map(|i| f64::from((i * 37 % 101) as u32) / 128.0 + 0.1).collect();
    let stack = ImageStack::new(8, 8, 1, values).expect("a stack");
    let mut bytes = Vec::new();
    npy::write_stack(&stack, float, &mut bytes).expect("a file in memory");
    folder.write(name, bytes);
    stack
}

#[test]
fn a_run_and_its_files() {
    let folder = folder();
    let output = folder.run("fit set --preset mnist-small --config tiny.toml --out run --seed 3");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (summary, progress) = (text(&output.stdout), text(&output.stderr));
    assert!(summary.contains("bits/dim") && summary.contains("resflow reconstruct run set"), "{summary}");
    assert!(progress.contains("epoch 0.33  bits/dim ") && progress.contains(" images/s  eta"), "{progress}");
    for name in ["model.safetensors", "checkpoint.safetensors", "config.toml", "samples.png", "curve.png"] {
        assert!(folder.path("run").join(name).is_file(), "{name}");
    }
    let grid = png::read(&read(folder.path("run/samples.png")).expect("a grid")).expect("a grid");
    assert_eq!((grid.height(), grid.width()), (10 * 18 + 2, 10 * 18 + 2));

    let lines = metrics(&folder.path("run"));
    assert_eq!(lines.iter().map(|l| l["step"].as_u64()).collect::<Vec<_>>(), [3, 6].map(Some), "validated at the end");
    let number = |l: &Value, key: &str| l[key].as_f64().unwrap_or_else(|| panic!("{key}: {l}"));
    for line in &lines {
        for (bits, nats) in [("train_bits_per_dim", "train_nll"), ("val_bits_per_dim", "val_nll")] {
            let expected = 8.0 + number(line, nats) / (64.0 * std::f64::consts::LN_2);
            assert!((number(line, bits) - expected).abs() < 1e-9, "{line}");
        }
        let expected = number(line, "val_se") / (64.0 * std::f64::consts::LN_2);
        assert!((number(line, "val_bits_per_dim_se") - expected).abs() < 1e-12, "{line}");
    }
    // config.toml shows all settings and reads back; going on with the finished run changes none of them
    let config = folder.read("run/config.toml");
    assert!(config.contains("[images]") && config.contains("logit_alpha") && config.contains("accumulate"), "{config}");
    folder.succeed("fit set --config run/config.toml --out again --seed 3");
    assert!(read(folder.path("run/model.safetensors")).ok() == read(folder.path("again/model.safetensors")).ok());
    let longer = folder.succeed("fit set --config tiny.toml --out run --resume --steps 8");
    assert!(longer.contains(" 8 steps"), "{longer}");
    folder.write("other.toml", CONFIG.replace("filters = 8", "filters = 9"));
    let error = folder.fail("fit set --config other.toml --out run --resume", 2);
    assert!(error.contains("images.filters is 9, was 8"), "{error}");

    let inspected = folder.succeed("inspect run");
    assert!(inspected.contains("8x8 pixels with 1 channel in 8 bits") && !inspected.contains("column"), "{inspected}");
    let inspected: Value = serde_json::from_str(&folder.succeed("inspect run --json")).expect("an object");
    assert_eq!((inspected["images"]["width"].as_u64(), inspected["dimension"].as_u64()), (Some(8), Some(64)));
    assert!(inspected["validation_bits_per_dim"].is_f64());

    let timed = folder.succeed("fit set --config tiny.toml --out timed --time-limit 3");
    assert!(timed.contains("samples.png"), "{timed}");
    assert!(metrics(&folder.path("timed")).last().is_some_and(|l| l["val_bits_per_dim"].is_f64()));
}

#[cfg(unix)]
#[test]
fn interruptions_change_nothing() {
    let folder = folder();
    folder.write(
        "long.toml",
        CONFIG.replace("steps = 6", "steps = 250").replace("validate_every = 3", "validate_every = 40"),
    );
    folder.succeed("fit set --config long.toml --out whole");
    let lines = || std::fs::read_to_string(folder.path("run/metrics.jsonl")).map_or(0, |t| t.lines().count());

    let mut child = binary::start(&folder, "fit set --config long.toml --out run");
    binary::wait_for("some steps", || lines() > 4);
    child.kill().expect("a child to kill");
    child.wait().expect("a child");
    assert!(lines() < 25, "killed on the way");
    let child = binary::start(&folder, "fit set --out run --resume");
    let before = lines();
    binary::wait_for("more steps", || lines() > before);
    let kill = format!("kill -INT {}", child.id());
    assert!(std::process::Command::new("sh").arg("-c").arg(kill).status().expect("a shell").success());
    let output = child.wait_with_output().expect("a child");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    folder.succeed("fit set --out run --resume");
    binary::assert_same(&folder.path("whole"), &folder.path("run"));
}

#[test]
fn samples() {
    let folder = fitted();
    folder.succeed("sample run -n 7 --out grid.png --seed 1");
    let grid = png::read(&read(folder.path("grid.png")).expect("a grid")).expect("a grid");
    assert_eq!((grid.height(), grid.width()), (3 * 18 + 2, 3 * 18 + 2), "a square of nine holds seven");
    folder.succeed("sample run -n 7 --out s.npy --seed 1");
    let values = stack(&folder, "s.npy");
    assert_eq!((values.len(), values.channels(), values.height(), values.width()), (7, 1, 8, 8));
    folder.succeed("sample run -n 7 --out b.npy --seed 1 --bytes");
    let bytes = npy::read(&read(folder.path("b.npy")).expect("bytes")).expect("bytes");
    for (value, &byte) in values.values().iter().zip(bytes.bytes()) {
        assert_eq!((value * 256.0).floor().min(255.0) as u8, byte);
    }
    // the grid shows them: the middle of the last image's first pixel
    let at = (2 + 2 * 18) * grid.width() + 2;
    assert_eq!(grid.bytes()[at * grid.channels()], bytes.bytes()[6 * 64]);
    folder.succeed("sample run -n 2 --out s.csv --seed 1");
    let (header, rows) = folder.table("s.csv");
    assert!(header.starts_with("x1,x2,") && header.ends_with(",x64") && rows.len() == 2);
    assert!(folder.fail("sample run -n 2 --out s.png --bytes", 2).contains("--bytes"));
    assert!(folder.fail("sample run -n 900000 --out s.png", 2).contains("too large for one picture"));
}

#[test]
fn scores() {
    let folder = fitted();
    let output = folder.run("score run set --json --out scores.csv");
    assert!(text(&output.stderr).contains("taking the 20 test images of set"), "{}", text(&output.stderr));
    let score: Value = serde_json::from_slice(&output.stdout).expect("an object");
    assert_eq!((score["rows"].as_u64(), score["replicates"].as_u64()), (Some(20), Some(4)));
    let (header, rows) = folder.table("scores.csv");
    assert_eq!(header, "bits_per_dim,bits_per_dim_se,log_prob,se");
    let unit = 64.0 * std::f64::consts::LN_2;
    for row in &rows {
        assert!((row[0] - (8.0 - row[2] / unit)).abs() < 1e-9 && (row[1] - row[3] / unit).abs() < 1e-12, "{row:?}");
        assert!(row[1] > 0.0);
    }
    let n = rows.len() as f64;
    let mean = rows.iter().map(|r| r[0]).sum::<f64>() / n;
    let error = (rows.iter().map(|r| (r[0] - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
    assert!((score["mean_bits_per_dim"].as_f64().expect("a number") - mean).abs() < 1e-9);
    assert!((score["mean_bits_per_dim_se"].as_f64().expect("a number") - error).abs() < 1e-9);

    // whichever are taken, an image keeps its noise and its probes
    let output = folder.run("score run set --rows 5 --out five.csv");
    assert!(text(&output.stderr).contains("taking the first 5 of the 20 test images"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("bits/dim "), "{}", text(&output.stdout));
    assert_eq!(folder.table("five.csv").1, rows[..5]);
    assert!(folder.succeed("score run set --split train").contains("60 images"));
    assert!(folder.succeed("score run set --split all --rows 70").contains("70 images"));
    assert!(folder.succeed("score run set/train-images-idx3-ubyte").contains("60 images"), "a file has no test images");

    // until the error is small enough
    let few = "score run set --rows 4 --estimator roulette:law=geometric,p=0.5,exact=1 --replicates 2";
    folder.succeed(&format!("{few} --standard-error 0.02 --most-replicates 100000 --out until.csv"));
    assert!(folder.table("until.csv").1.iter().all(|r| r[1] <= 0.02));
    let output = folder.run(&format!("{few} --standard-error 1e-7 --most-replicates 4"));
    assert!(text(&output.stderr).contains("have a standard error above 0.0000001 after 4 replicates"));
}

#[test]
fn continuous_stacks() {
    let folder = fitted();
    let images = write_stack(&folder, "x.npy", 5, Float::F8);
    let half = write_stack(&folder, "x4.npy", 5, Float::F4);
    assert_eq!(images.len(), half.len());
    let model = Flow::load(NdArray::<f64>::new(), folder.path("run/model.safetensors")).expect("a model");
    let table = Table::new(None, 64, images.values().to_vec()).expect("a table");
    let key = Key::new(9).named("score").split(0);
    let expected = model.log_prob(&table, key).expect("log p");
    folder.succeed("score run x.npy --seed 9 --precision f64 --out p.csv");
    for (i, row) in folder.table("p.csv").1.iter().enumerate() {
        assert_eq!(row[2..], [expected.values[i], expected.standard_error[i]], "no noise was added");
    }
    folder.succeed("score run x4.npy --seed 9 --precision f64 --out p4.csv");
    assert!((folder.table("p4.csv").1[0][2] - expected.values[0]).abs() < 1e-2);

    folder.succeed("encode run x.npy --seed 9 --precision f64 --out z.npy --log-det l.csv");
    folder.succeed("encode run x.npy --seed 9 --precision f64 --out z.csv");
    let z = resflow::data::read(folder.path("z.npy")).expect("z");
    let (header, rows) = folder.table("z.csv");
    assert!(header.starts_with("z1,z2,") && header.ends_with(",z64,log_det,se"));
    let (header, beside) = folder.table("l.csv");
    assert_eq!(header, "log_det,se");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((z.row(i), beside[i][0]), (&row[..64], row[64]));
        let base = -0.5 * z.row(i).iter().map(|z| z * z).sum::<f64>() - 32.0 * (2.0 * std::f64::consts::PI).ln();
        assert!((base + row[64] - expected.values[i]).abs() < 1e-8);
    }
    for name in ["z.npy", "z.csv"] {
        folder.succeed(&format!("decode run {name} --precision f64 --out again.npy"));
        let again = stack(&folder, "again.npy");
        assert_eq!((again.len(), again.size()), (5, images.size()));
        let pairs = images.values().iter().zip(again.values());
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{a} and {b}"));
    }
    folder.succeed("decode run z.npy --precision f64 --out again.csv --seed 9");
    let (header, again) = folder.table("again.csv");
    assert!(header.ends_with(",x64,log_det,se"));
    // the same probes at a point 1e-10 away
    assert!((again[0][64] + beside[0][0]).abs() < 1e-5, "{} {}", again[0][64], beside[0][0]);
}

#[test]
fn reconstructions() {
    let folder = fitted();
    write_stack(&folder, "x.npy", 3, Float::F4);
    for (line, images, [height, width]) in [
        ("set", 16, [6 * 18 + 2, 6 * 18 + 2]),
        ("set --rows 4 --split train", 4, [2 * 18 + 2, 4 * 18 + 2]),
        ("x.npy", 3, [2 * 18 + 2, 4 * 18 + 2]),
    ] {
        let said = folder.succeed(&format!("reconstruct run {line} --out r.png"));
        let error = said.split("largest error ").nth(1).and_then(|t| t.split(',').next()).expect(&said);
        let error: f64 = error.parse().expect(&said);
        assert!(error < 1e-4 && error > 0.0, "{said}");
        assert!(said.contains(&format!("{images} images")), "{said}");
        let grid = png::read(&read(folder.path("r.png")).expect("a grid")).expect("a grid");
        assert_eq!([grid.height(), grid.width()], [height, width], "{line}");
        // left and right look the same
        for p in 0..16 {
            let at = |column: usize| ((2 + p) * grid.width() + 2 + column * 18 + p) * grid.channels();
            assert!(grid.bytes()[at(0)].abs_diff(grid.bytes()[at(1)]) <= 1, "{line}");
        }
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let folder = fitted();
    write(folder.path("rows.csv"), "a,b\n1,2\n3,5\n4,4\n").expect("a file");
    let mut colour = Vec::new();
    npy::write_bytes(&blobs(4, 8, 3), &mut colour).expect("a file in memory");
    folder.write("colour.npy", colour);
    write_stack(&folder, "x.npy", 2, Float::F8);
    // 1.5 in the middle of the second image
    let mut bytes = read(folder.path("x.npy")).expect("a stack");
    let end = bytes.len();
    bytes[end - 8 * 20..end - 8 * 19].copy_from_slice(&1.5_f64.to_le_bytes());
    folder.write("far.npy", bytes);
    folder.write("rows.toml", "[flow]\nblocks = 2\n");
    folder.write("size.toml", CONFIG.replace("width = 8", "width = 16"));
    folder.write("bad.toml", CONFIG.replace("filters = 8", "filters = 0"));
    folder.succeed("fit moons --config rows.toml --steps 2 --out flat");
    folder.succeed("fit colour.npy --config tiny.toml --steps 2 --out colour");
    assert!(folder.succeed("inspect colour").contains("8x8 pixels with 3 channels"));
    for (line, code, part) in [
        ("fit set --preset mnist-tiny --out new", 2, "there is no preset `mnist-tiny`; there are mnist, cifar10"),
        ("fit rows.csv --preset mnist-small --out new", 2, "--preset mnist-small is for images"),
        ("fit moons --preset mnist-small --out new", 2, "--preset mnist-small is for images"),
        (
            "fit set --preset mnist-small --out new",
            2,
            "for images of 28x28 pixels with 1 channel, the data are images of 8x8",
        ),
        ("fit set --config size.toml --out new", 2, "line 3, column 1: `width` is 16, that of the data is 8"),
        ("fit set --config bad.toml --out new", 2, "line 5, column 11: `filters` is 0"),
        ("fit set --config rows.toml --out new", 2, "line 1, column 2: `flow` is for rows"),
        ("fit rows.csv --config tiny.toml --out new", 2, "line 1, column 2: `images` is for images"),
        (
            "fit far.npy --config tiny.toml --out new",
            1,
            "[image 1, channel 0, row 5, column 4] (counted from 0) is 1.5",
        ),
        ("fit rows.csv --image-size 8x8 --out new", 2, "rows.csv holds rows, not images"),
        ("fit set --image-size 8x --out new", 2, "--image-size"),
        (
            "fit colour.npy --preset mnist-small --config tiny.toml --out new",
            2,
            "are images of 8x8 pixels with 3 channels",
        ),
        ("score run colour.npy", 2, "8x8 pixels with 3 channels, the model is for 8x8 pixels with 1 channel"),
        ("score run far.npy", 1, "[image 1, channel 0, row 5, column 4] (counted from 0) is 1.5"),
        ("score run rows.csv", 1, "column"),
        ("score run moons", 1, "column"),
        ("score run x.npy --split test", 2, "--split"),
        ("score run set --split validation", 2, "--split"),
        ("score run set --standard-error 0", 2, "--standard-error"),
        ("score run set --most-replicates 10", 2, "--standard-error"),
        ("score run set/train-images-idx3-ubyte --split test", 2, "no test images"),
        ("score flat set", 2, "the model is for rows of 2 numbers"),
        ("encode flat x.npy --out z.csv", 2, "the model is for rows of 2 numbers"),
        ("encode run set --out z.png", 2, ".csv, .npy, .parquet or .arrow"),
        ("encode run set --out z.npy --log-det l.npy", 2, "--log-det"),
        ("decode run rows.csv --out x.npy", 2, "the model has 64"),
        ("reconstruct flat set --out r.png", 2, "not a model of images"),
        ("reconstruct run set --out r.npy", 2, ".png"),
        ("reconstruct run missing --out r.png", 2, "file not found"),
        ("fit . --out new", 1, "the folder holds no images"),
    ] {
        let error = folder.fail(line, code);
        assert!(error.contains(part), "{line}: {error}");
    }
    assert!(!folder.path("new").exists(), "nothing is written");
    let help = folder.succeed("fit --help");
    for preset in resflow::config::Preset::ALL {
        assert!(help.contains(&format!("\n  {} ", preset.name())), "{preset}");
    }
}
