//! Hybrid models from the command line: fit, score, inspect, resume and compare a flow that classifies, and outliers.

use crate::binary::{self, Folder, assert_same, metrics, start, text, wait_for};
use resflow::checkpoint::Archive;
use resflow::data::image::{ImageSet, idx, npy};
use serde_json::Value;

const IMAGES: &str = "\
[images]
height = 8
width = 8
blocks = [1, 1]
filters = 4
fully_connected = 0
head_width = 4
replicates = 2
evaluation = \"truncated:terms=2\"
";

const TRAIN: &str = "\
[train]
batch = 16
steps = 60
learning_rate = 0.01
warmup = 5
validate_every = 30
validation_fraction = 0.2
";

/// A small flow over such images, and its training.
pub(crate) fn config() -> String {
    IMAGES.to_owned() + TRAIN
}

/// Images of three classes: a bright band at the top, in the middle or at the bottom, each image a little different.
pub(crate) fn bands(count: usize) -> (Vec<u8>, Vec<u8>) {
    let labels: Vec<u8> = (0..count).map(|i| (i * 7 % 3) as u8).collect();
    let pixel = |i: usize, p: usize| {
        let inside = p / 8 / 3 == usize::from(labels[i]);
        (if inside { 160 } else { 30 }) + ((i * 31 + p * 17 + i * p) % 40) as u8
    };
    let bytes = (0..count * 64).map(|e| pixel(e / 64, e % 64)).collect();
    (bytes, labels)
}

fn write_images(folder: &Folder, path: &str, set: &ImageSet) {
    let mut bytes = Vec::new();
    idx::write_images(set, &mut bytes).expect("a file in memory");
    folder.write(path, bytes);
}

/// Writes a part of a set like MNIST's, with labels or without.
pub(crate) fn write_set(folder: &Folder, set: &str, part: &str, bytes: &[u8], labels: Option<&[u8]>) {
    std::fs::create_dir_all(folder.path(set)).expect("a folder");
    let images = ImageSet::new(8, 8, 1, bytes.to_vec(), None).expect("images");
    write_images(folder, &format!("{set}/{part}-images-idx3-ubyte"), &images);
    if let Some(labels) = labels {
        let mut file = Vec::new();
        idx::write_labels(labels, &mut file).expect("a file in memory");
        folder.write(&format!("{set}/{part}-labels-idx1-ubyte"), file);
    }
}

/// A folder with `set/`, 120 training and 40 test images with labels, the same without in `bare/`, and `tiny.toml`.
pub(crate) fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("tiny.toml", config());
    for (name, count) in [("train", 120), ("t10k", 40)] {
        let (bytes, labels) = bands(count);
        write_set(&folder, "set", name, &bytes, Some(&labels));
        write_set(&folder, "bare", name, &bytes, None);
    }
    // colours of another size, as the outliers
    let bytes = (0..30 * 10 * 6 * 3).map(|e| (e * 97 % 251) as u8).collect();
    let mut file = Vec::new();
    npy::write_bytes(&ImageSet::new(10, 6, 3, bytes, None).expect("images"), &mut file).expect("a file in memory");
    folder.write("noise.npy", file);
    folder
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("one object")
}

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key}: {object}"))
}

#[test]
fn a_model_that_classifies() {
    let folder = folder();
    let output = folder.run("fit set --classify --config tiny.toml --out run --seed 3");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary = text(&output.stdout);
    assert!(summary.contains("accuracy ") && summary.contains("cross-entropy "), "{summary}");
    assert!(folder.read("run/config.toml").contains("classes = 3"), "the number of classes is that of the labels");

    let lines = metrics(&folder.path("run"));
    for line in &lines {
        assert!((0.0..=1.0).contains(&number(line, "train_accuracy")) && number(line, "train_cross_entropy") > 0.0);
        let validated = line["val_nll"].is_f64();
        assert_eq!(line["val_accuracy"].is_f64() && line["val_cross_entropy"].is_f64(), validated, "{line}");
        assert_eq!(line["val_accuracy"].is_null() && line["val_cross_entropy"].is_null(), !validated, "{line}");
    }
    assert_eq!(lines.iter().filter(|l| l["val_nll"].is_f64()).count(), 2);

    let score = json(&folder.succeed("score run set --json --out scores.csv"));
    let (accuracy, error) = (number(&score, "accuracy"), number(&score, "accuracy_se"));
    assert!(accuracy > 0.8, "bands are easily told apart: {score}");
    assert!((error - (accuracy * (1.0 - accuracy) / 40.0).sqrt()).abs() < 1e-12, "{score}");
    assert!(number(&score, "cross_entropy") > 0.0 && number(&score, "calibration_error") >= 0.0, "{score}");
    let (header, rows) = folder.table("scores.csv");
    assert_eq!(header, "bits_per_dim,bits_per_dim_se,log_prob,se,class,confidence");
    let labels = bands(40).1;
    let right = rows.iter().zip(&labels).filter(|(row, label)| row[4] == f64::from(**label)).count();
    assert!((right as f64 / 40.0 - accuracy).abs() < 1e-12, "the classes in the file are those of the accuracy");
    assert!(rows.iter().all(|row| row[5] > 1.0 / 3.0 && row[5] <= 1.0), "confidence is that of the likeliest of three");
    let text = folder.read("scores.csv");
    let class = |line: &str| line.split(',').nth(4).and_then(|class| class.parse::<usize>().ok());
    assert!(text.lines().skip(1).all(|line| class(line).is_some_and(|class| class < 3)), "classes are integers");

    // without labels the classes are there and no accuracy is; both parts together keep their labels
    let score = json(&folder.succeed("score run bare --json --out bare.csv"));
    assert!(score.get("accuracy").is_none(), "{score}");
    assert_eq!(folder.table("bare.csv").1, rows);
    assert!(folder.succeed("score run set --split all").contains("\naccuracy "));

    let inspected = folder.succeed("inspect run");
    assert!(inspected.contains("\nclassifier      3 classes"), "{inspected}");
    let inspected = json(&folder.succeed("inspect run --json"));
    let classifier = &inspected["classifier"];
    assert_eq!(classifier["classes"], 3);
    assert!(classifier["description"].is_string() && classifier["parameters"].as_u64() > Some(0), "{classifier}");
    folder.succeed("sample run -n 2 --out s.png");
}

#[test]
fn a_run_goes_on() {
    let folder = folder();
    folder.succeed("fit set --classify --config tiny.toml --out run --steps 20");
    folder.succeed("fit set --classify --config tiny.toml --out run --resume --steps 40");
    assert!(folder.read("run/config.toml").contains("classes = 3"));
    let lines = metrics(&folder.path("run"));
    assert!(lines.len() == 4 && lines.iter().all(|line| line["train_accuracy"].is_f64()), "old lines stay whole");
    let again = folder.run("fit set --out run --resume --steps 42");
    assert!(text(&again.stdout).contains("accuracy "), "the run knows that it classifies: {}", text(&again.stdout));
    assert!(text(&again.stderr).contains(" %  lr "), "accuracy of the last validation: {}", text(&again.stderr));

    let error = folder.fail("fit bare --out run --resume --steps 50", 2);
    assert!(error.contains("labels"), "{error}");
    folder.succeed("fit set --config tiny.toml --out plain --steps 2");
    let error = folder.fail("fit set --classify --out plain --resume --steps 4", 2);
    assert!(error.contains("--classify") && error.contains("the run in plain has no classifier"), "{error}");
    assert!(metrics(&folder.path("plain")).iter().all(|line| line.get("train_accuracy").is_none()));
    assert!(folder.read("plain/config.toml").contains("classes = 0"));
    assert_eq!(json(&folder.succeed("inspect plain --json"))["classifier"], Value::Null);
}

#[test]
fn labels_that_are_not_there() {
    let folder = folder();
    folder.write("ten.toml", config().replace("head_width", "classes = 10\nhead_width"));
    folder.write("two.toml", config().replace("head_width", "classes = 2\nhead_width"));
    folder.write("rows.csv", "a,b\n1,2\n3,5\n4,4\n");
    for (line, part) in [
        ("fit bare --classify --config tiny.toml", "bare has no labels; those of MNIST are the file train-labels-idx1"),
        ("fit set/train-images-idx3-ubyte --classify --config tiny.toml", "has no labels"),
        ("fit bare --config ten.toml", "classes = 10: bare has no labels"),
        ("fit set --config two.toml", "classes = 2: the labels of set go from 0 to 2"),
        ("fit set --classify --config ten.toml", "3 classes, ten.toml says classes = 10"),
        ("fit moons --classify", "--classify is for images with labels, moons holds rows"),
        ("fit rows.csv --classify", "--classify is for images"),
    ] {
        let error = folder.fail(&format!("{line} --out new"), 2);
        assert!(error.contains(part), "{line}: {error}");
        assert!(!folder.path("new").exists(), "{line}: nothing is written");
    }
    // more classes than labels do no harm, and a configuration is enough
    folder.succeed("fit set --config ten.toml --out ten --steps 3");
    assert!(folder.succeed("inspect ten").contains("10 classes"));
}

#[test]
fn outliers() {
    let folder = folder();
    folder.succeed("fit set --config tiny.toml --out run --seed 3");
    let output = folder.run("score run set --outliers noise.npy --json --rows 20");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("the first 20 of the 30 images of noise.npy"), "as many as of the data: {said}");
    assert!(said.contains("noise.npy: images of 10x6 pixels with 3 channels, cut or padded to 8x8 pixels"), "{said}");
    let score = json(&text(&output.stdout));
    assert!(number(&score, "auroc") > 0.95, "noise is unlike bands: {score}");
    assert!(number(&score, "auroc_se") >= 0.0 && score.get("accuracy").is_none(), "{score}");
    let bits = 8.0 - number(&score, "outliers_mean_log_prob") / (64.0 * std::f64::consts::LN_2);
    assert!((number(&score, "outliers_mean_bits_per_dim") - bits).abs() < 1e-9, "{score}");

    // the same images are not to be told from themselves, and what is said of them is what `score` says
    let score = json(&folder.succeed("score run set --outliers bare --json"));
    assert!((number(&score, "auroc") - 0.5).abs() < 1e-12, "{score}");
    assert_eq!(score["outliers_mean_log_prob"], score["mean_log_prob"]);
    let said = folder.succeed("score run set --outliers bare");
    assert!(said.contains("AUROC       0.5000 ± ") && said.contains("against 40 images of bare, bits/dim"), "{said}");
}

#[test]
fn outliers_among_rows() {
    let folder = folder();
    folder.write("rows.toml", binary::TINY);
    folder.write("far.csv", "x,y\n90,90\n80,-70\n-60,50\n");
    folder.write("wide.csv", "a,b,c\n1,2,3\n3,5,4\n4,4,8\n");
    folder.succeed("fit moons --config rows.toml --out board");
    let score = json(&folder.succeed("score board moons --outliers far.csv --json --rows 300"));
    assert_eq!((number(&score, "auroc"), score["outliers_rows"].as_u64()), (1.0, Some(3)));
    assert!(score.get("outliers_mean_bits_per_dim").is_none(), "{score}");
    let score = json(&folder.succeed("score board moons --outliers far.csv --json --rows 2"));
    assert_eq!(score["outliers_rows"], 2);
    // points of the same density are others: an AUROC of ½ up to six of its errors
    let score = json(&folder.succeed("score board moons --outliers moons --json --rows 400"));
    let off = (number(&score, "auroc") - 0.5).abs();
    assert!(off > 0.0 && off < 6.0 * number(&score, "auroc_se"), "{score}");
    for (other, part) in [("set", "the model is for rows of 2 numbers"), ("missing.csv", "missing.csv: file not found")]
    {
        let error = folder.fail(&format!("score board moons --outliers {other}"), 2);
        assert!(error.contains(part), "{other}: {error}");
    }
    for data in ["moons --outliers wide.csv", "wide.csv"] {
        let error = folder.fail(&format!("score board {data}"), 1);
        assert!(error.contains("wide.csv: the data has 3 columns, the model is for 2"), "{data}: {error}");
    }
}

const COMPARISON: &str = "\
[train]
batch = 16
steps = 30
validation_fraction = 0.2
[comparison]
outliers = [\"noise.npy\"]
[[comparison.rows]]
name = \"density\"
[[comparison.rows]]
name = \"hybrid\"
images = { classes = 3 }
";

#[test]
fn a_comparison() {
    let folder = folder();
    let experiment = format!("title = \"hybrid\"\nseed = 3\ndata = [\"set\"]\n{IMAGES}{COMPARISON}");
    folder.write("e.toml", &experiment);
    let printed = folder.succeed("experiment e.toml --out out --threads 1");
    for part in [
        "| accuracy, % | cross-entropy, nats | expected calibration error | AUROC log p: noise.npy |",
        "1/2 where log p",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let is_png = |name: &str| std::fs::read(folder.path(name)).is_ok_and(|b| b.starts_with(b"\x89PNG"));
    assert!(is_png("out/calibration-set.png") && is_png("out/set.png"));
    let cell = |name: &str| json(&folder.read(&format!("out/cells/set-{name}.json")));
    let (density, hybrid) = (cell("density"), cell("hybrid"));
    assert!(density["outcome"]["result"].get("classification").is_none(), "{density}");
    assert_eq!(hybrid["specification"]["outliers"][0], "noise.npy");

    // a cell is what `score` says of its run
    let found = &hybrid["outcome"]["result"];
    let score = json(&folder.succeed("score out/runs/set-hybrid set --outliers noise.npy --seed 3 --json"));
    assert_eq!(found["classification"]["accuracy"], score["accuracy"]);
    assert_eq!(found["classification"]["calibration"]["expected_error"], score["calibration_error"]);
    assert_eq!(found["outliers"][0]["auroc"], score["auroc"]);
    assert_eq!(found["outliers"][0]["mean_log_prob"], score["outliers_mean_log_prob"]);

    assert_eq!(folder.succeed("experiment e.toml --out out"), printed, "cells are read back");
    for (from, to, part) in [
        ("[\"noise.npy\"]", "[\"moons\"]", "outliers: moons: rows of 2 numbers, the model is for 64"),
        ("[\"noise.npy\"]", "[\"missing\"]", "missing: file not found"),
        ("data = [\"set\"]", "data = [\"bare\"]", "row `hybrid` on bare: classes = 3: the data has no labels"),
        ("classes = 3", "classes = 2", "the labels of the data go from 0 to 2"),
    ] {
        folder.write("e.toml", experiment.replace(from, to));
        let error = folder.fail("experiment e.toml --out other", 2);
        assert!(error.contains(part), "{part}: {error}");
        assert!(!folder.path("other").exists(), "nothing is written");
    }
}

/// A cell from before there were classifiers and outliers: neither its settings nor its result name them.
#[test]
fn cells_of_before() {
    let folder = Folder::new();
    folder.write("rows.csv", "a,b\n1,2\n3,5\n4,4\n6,1\n");
    let text = "title = \"t\"\nseed = 1\ndata = [\"moons\"]\n[flow]\nblocks = 1\nhidden = [4]\n[train]\nsteps = 3\n\
                validation_rows = 50\n[comparison]\ntest_rows = 50\n[[comparison.rows]]\nname = \"a\"\n";
    folder.write("e.toml", text);
    let printed = folder.succeed("experiment e.toml --out out");
    let path = "out/cells/moons-a.json";
    let mut cell = json(&folder.read(path));
    assert!(cell["specification"].get("outliers").is_none() && !printed.contains("AUROC"), "{cell}");
    let result = cell["outcome"]["result"].as_object().expect("a result");
    assert!(!result.contains_key("classification") && !result.contains_key("outliers"), "{cell}");
    let train = cell["specification"]["trained"]["train"].as_object_mut().expect("settings");
    assert!(train.remove("density_weight").is_some());
    let model = cell["specification"]["trained"]["model"]["rows"].as_object_mut().expect("settings");
    assert!(model.remove("replicates").is_some(), "any setting may be younger than a cell");
    folder.write(path, cell.to_string());
    let settings = folder.read("out/runs/moons-a.toml");
    let before = settings.replace("density_weight = 1.0\n", "");
    assert_ne!(before, settings);
    folder.write("out/runs/moons-a.toml", &before);
    assert_eq!(folder.succeed("experiment e.toml --out out"), printed);
    // a run without its cell goes on too
    std::fs::remove_file(folder.path(path)).expect("a cell");
    folder.succeed("experiment e.toml --out out");

    folder.write("e.toml", text.replace("test_rows = 50\n", "test_rows = 50\noutliers = [\"rings\"]\n"));
    let error = folder.fail("experiment e.toml --out out", 2);
    assert!(error.contains("computed with other settings"), "{error}");
    let printed = folder.succeed("experiment e.toml --out rings");
    assert!(printed.contains("| AUROC log p: rings |") && !printed.contains("accuracy, %"), "{printed}");
    folder.write(
        "e.toml",
        text.replace("moons", "rows.csv").replace("[comparison]\n", "[comparison]\noutliers = [\"rings\"]\n"),
    );
    assert!(folder.fail("experiment e.toml --out table", 2).contains("no held-out points"));
}

/// Killed in the middle, a hybrid run ends as if nothing had happened.
#[cfg(unix)]
#[test]
fn a_kill_changes_nothing() {
    let folder = folder();
    let config = config().replace("steps = 60", "steps = 400").replace("validate_every = 30", "validate_every = 20");
    folder.write("long.toml", config);
    folder.succeed("fit set --classify --config long.toml --out whole");
    let mut child = start(&folder, "fit set --classify --config long.toml --out run");
    wait_for("a checkpoint of some steps", || {
        let archive = Archive::read(&folder.path("run/checkpoint.safetensors"));
        archive.is_ok_and(|a| a.document["run"]["step"].as_u64() > Some(0))
    });
    child.kill().expect("a child");
    child.wait().expect("a child");
    folder.succeed("fit set --out run --resume");
    assert_same(&folder.path("whole"), &folder.path("run"));
}
