//! Killed, interrupted or out of disk: the last checkpoint is good, and going on from it changes nothing.
#![cfg(unix)]

use std::process::Command;
use std::time::Instant;

use crate::binary::{self, Folder, assert_same, csv, start, text, wait_for};
use resflow::checkpoint::Archive;

#[test]
fn ten_kills_change_nothing() {
    let folder = Folder::new();
    // from random weights: kills are to come between steps, not while a mixture is fitted
    let config = "[flow]\nstart = \"random\"\nblocks = 2\nhidden = [16]\n[train]\nbatch = 64\nsteps = 3000\nvalidation_rows = 200\n\
                  validate_every = 20\n";
    folder.write("kill.toml", config);
    let begin = Instant::now();
    folder.succeed("fit 8gaussians --out whole --config kill.toml");
    let whole = begin.elapsed();

    let (mut kills, mut runs, mut resumed, mut state) = (0, 0, 0, 0x9e37_79b9_7f4a_7c15_u64);
    while kills < 10 {
        let run = format!("run{runs}");
        let resume = if folder.path(&run).join("checkpoint.safetensors").exists() { "--resume" } else { "" };
        let mut child = start(&folder, &format!("fit 8gaussians --out {run} --config kill.toml {resume}"));
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let fraction = (state >> 33) as f64 / (1_u64 << 31) as f64;
        std::thread::sleep(whole.mul_f64(0.01 + 0.14 * fraction));
        if child.try_wait().expect("a child").is_some() {
            // faster than the first run: compare and begin another
            let output = child.wait_with_output().expect("a child");
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_same(&folder.path("whole"), &folder.path(&run));
            runs += 1;
            continue;
        }
        child.kill().expect("a child to kill");
        child.wait().expect("a child");
        kills += 1;
        let checkpoint = folder.path(&run).join("checkpoint.safetensors");
        resumed += usize::from(Archive::read(&checkpoint).is_ok_and(|a| a.document["run"]["step"] != 0));
    }
    assert!(resumed > 0, "no kill came after the first steps");
    let run = format!("run{runs}");
    let resume = if folder.path(&run).join("checkpoint.safetensors").exists() { "--resume" } else { "" };
    folder.succeed(&format!("fit 8gaussians --out {run} --config kill.toml {resume}"));
    assert_same(&folder.path("whole"), &folder.path(&run));
    let left: Vec<_> = std::fs::read_dir(folder.path(&run)).expect("a run").flatten().map(|e| e.file_name()).collect();
    assert!(left.len() >= 8, "{left:?}");
}

#[test]
fn ctrl_c_leaves_a_checkpoint() {
    let folder = Folder::new();
    folder.write("data.csv", csv(500));
    folder.write("long.toml", binary::TINY.replace("steps = 40", "steps = 3000"));
    folder.succeed("fit data.csv --out whole --config long.toml --precision f64");

    let child = start(&folder, "fit data.csv --out run --config long.toml --precision f64");
    // behind the line before the first step
    let metrics = folder.path("run/metrics.jsonl");
    let logged = || std::fs::read_to_string(&metrics).is_ok_and(|text| text.contains("\"step\":10,"));
    wait_for("a logged step", logged);
    let signalled = Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status().expect("a shell");
    assert!(signalled.success());
    let output = child.wait_with_output().expect("a child");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("resflow fit data.csv --out run --resume"), "{stderr}");

    let archive = Archive::read(&folder.path("run/checkpoint.safetensors")).expect("a readable checkpoint");
    let step = archive.document["run"]["step"].as_u64().expect("a step");
    assert!(step >= 10, "the checkpoint is of the moment, not of the beginning: {step}");
    folder.succeed("inspect run/checkpoint.safetensors");
    folder.succeed("fit data.csv --out run --resume");
    assert_same(&folder.path("whole"), &folder.path("run"));
}

/// A limit on the size of files stands for a full disk: the write fails, the program is told.
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let folder = Folder::new();
    folder.write("wide.toml", binary::TINY.replace("[16]", "[96]"));
    folder.succeed("fit moons --out run --config wide.toml --steps 40");
    let checkpoint = folder.path("run/checkpoint.safetensors");
    let before = std::fs::read(&checkpoint).expect("a checkpoint");
    assert!(before.len() > 20_000, "larger than the limit below, which the other files stay under");

    let command = folder.command("fit moons --out run --resume --steps 60");
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let script = "ulimit -f 16; trap '' XFSZ; exec \"$@\"";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg("sh").args(words).current_dir(folder.path(""));
    let output = shell.output().expect("a shell");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot save the run") && stderr.contains("too large"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(std::fs::read(&checkpoint).expect("a checkpoint") == before, "the last checkpoint is untouched");
    let stray = std::fs::read_dir(folder.path("run")).expect("a run").flatten();
    assert_eq!(stray.filter(|e| e.file_name().to_string_lossy().ends_with(".tmp")).count(), 0);

    folder.succeed("inspect run/checkpoint.safetensors");
    let summary = folder.succeed("fit moons --out run --resume --steps 60");
    assert!(summary.contains(" 60 steps"), "{summary}");
}
