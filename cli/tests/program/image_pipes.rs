//! Images from pipes: told by what they hold, like the tables of `tables`; what a pipe cannot hold is said with what to do.

use resflow::data::image::{ImageSet, idx, npy, png};
use serde_json::Value;

use crate::binary::{Folder, text};
use crate::images::{blobs, fitted};
use crate::tables::{mean, with_input};

fn idx_file(set: &ImageSet) -> Vec<u8> {
    let mut bytes = Vec::new();
    idx::write_images(set, &mut bytes).expect("a file in memory");
    bytes
}

/// The mean log p of a stream by the run `run`.
fn piped(folder: &Folder, path: &str, bytes: &[u8]) -> f64 {
    let output = with_input(folder, &format!("score run {path} --json"), bytes);
    assert!(output.status.success(), "{path}: {}", text(&output.stderr));
    mean(&text(&output.stdout))
}

#[test]
fn images_come_through_pipes() {
    let folder = fitted();
    let set = blobs(12, 8, 1);
    let mut array = Vec::new();
    npy::write_bytes(&set, &mut array).expect("a file in memory");
    let picture = png::encode(8, 8, 1, set.image(0).expect("an image")).expect("a picture");
    let paths: &[&str] = if cfg!(target_os = "linux") { &["-", "/dev/stdin"] } else { &["-"] };
    for (name, bytes) in [("images.idx", idx_file(&set)), ("images.npy", array), ("image.png", picture)] {
        folder.write(name, &bytes);
        let expected = mean(&folder.succeed(&format!("score run {name} --json")));
        for path in paths {
            assert_eq!(piped(&folder, path, &bytes), expected, "{name} through {path}");
        }
    }
    let output = with_input(&folder, "score run - --out -", &idx_file(&set));
    assert!(text(&output.stdout).starts_with("bits_per_dim,"), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 13);
    // a model of a pipe is that of the file
    let bytes = idx_file(&blobs(60, 8, 1));
    folder.write("training.idx", &bytes);
    folder.succeed("fit training.idx --config tiny.toml --out of_file --seed 3");
    let output = with_input(&folder, "fit - --config tiny.toml --out of_pipe --seed 3", &bytes);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bits = |run: &str| {
        let object: Value = serde_json::from_str(&folder.succeed(&format!("inspect {run} --json"))).expect("an object");
        object["validation_bits_per_dim"].as_f64().expect("a number")
    };
    assert_eq!(bits("of_pipe"), bits("of_file"));
}

#[cfg(unix)]
#[test]
fn images_come_through_named_pipes() {
    let folder = fitted();
    folder.write("images.idx", idx_file(&blobs(12, 8, 1)));
    let expected = mean(&folder.succeed("score run images.idx --json"));
    let made = std::process::Command::new("mkfifo").arg(folder.path("pipe")).status().expect("mkfifo runs");
    assert!(made.success());
    let mut writer = std::process::Command::new("sh")
        .args(["-c", "exec cat images.idx > pipe"])
        .current_dir(folder.path("."))
        .spawn()
        .expect("a shell");
    let output = folder.run("score run pipe --json");
    // it waits for a reader, should there have been none
    let _ = writer.kill();
    writer.wait().expect("an end");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(mean(&text(&output.stdout)), expected);
}

#[test]
fn what_no_pipe_holds_is_named() {
    let folder = fitted();
    let refused = |line: &str, bytes: &[u8], code: i32, words: &[&str]| {
        let output = with_input(&folder, line, bytes);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {error}");
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains("panicked"), "{line}: {error}");
    };
    let mut labels = Vec::new();
    idx::write_labels(&[1, 2, 3], &mut labels).expect("a file in memory");
    refused("score run -", &labels, 1, &["standard input", "the file holds labels"]);
    let picture = png::encode(8, 8, 1, &[7; 64]).expect("a picture");
    refused("score run -", &picture.repeat(2), 1, &["several pictures", "give the folder"]);
    let cifar: Vec<u8> = std::iter::once(3).chain((0..3072).map(|i| (i % 251) as u8)).collect();
    refused("score run -", &cifar.repeat(4), 1, &["CIFAR", "whose name ends in .bin"]);
    // labels lie beside images in files
    let images = idx_file(&blobs(60, 8, 1));
    refused(
        "fit - --classify --config tiny.toml --out classes",
        &images,
        2,
        &["has no labels", "folder of the images"],
    );
}
