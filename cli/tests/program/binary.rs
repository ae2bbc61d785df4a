//! Running the binary in a directory of its own.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use resflow::checkpoint::Archive;

/// A flow and a run small enough for a test.
pub(crate) const TINY: &str = "\
[flow]
blocks = 2
hidden = [16]
[train]
batch = 64
steps = 40
validation_rows = 200
";

/// A temporary directory, removed in the end.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty directory with `tiny.toml` in it.
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary directory"));
        folder.write("tiny.toml", TINY);
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).expect("a writable directory");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The command in this directory.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_resflow"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command
    }

    /// Runs to the end; a panic is never right.
    pub(crate) fn run(&self, line: &str) -> Output {
        let output = self.command(line).output().expect("the binary runs");
        assert!(!text(&output.stderr).contains("panicked"), "{line}: {}", text(&output.stderr));
        output
    }

    /// Runs what must succeed, and returns standard output.
    pub(crate) fn succeed(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {:?}\n{}", output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs what must fail with a code, and returns standard error.
    pub(crate) fn fail(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        assert!(stderr.contains("error: "), "{line}: {stderr}");
        stderr
    }

    /// The numbers of a CSV file and its header.
    pub(crate) fn table(&self, name: &str) -> (String, Vec<Vec<f64>>) {
        let text = self.read(name);
        let mut lines = text.lines();
        let header = lines.next().expect("a header").to_owned();
        let rows = lines.map(|l| l.split(',').map(|c| c.parse().expect("a number")).collect()).collect();
        (header, rows)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The metrics of a run without their times.
pub(crate) fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let parse = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).expect("an object a line");
        let seconds = value.as_object_mut().and_then(|o| o.remove("seconds"));
        assert!(seconds.is_some_and(|s| s.as_f64().is_some_and(|s| s > 0.0)), "{line}");
        value
    };
    text.lines().map(parse).collect()
}

/// A table of three columns that depend on each other, without randomness from outside.
pub(crate) fn csv(rows: usize) -> String {
    let mut out = "length,width,height\n".to_owned();
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    };
    for _ in 0..rows {
        let (a, b, c) = (uniform(), uniform(), uniform());
        let _ = writeln!(out, "{},{},{}", 100.0 * a + 7.0, a * a + 0.1 * b, 1e-3 * (c + a));
    }
    out
}

/// Both runs ended in the same state: model, checkpoint and metrics, but for the time that they took.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let model = |run: &Path| std::fs::read(run.join("model.safetensors")).expect("a model");
    assert!(model(a) == model(b), "the models differ");
    let state = |run: &Path| {
        let mut archive = Archive::read(&run.join("checkpoint.safetensors")).expect("a checkpoint");
        archive.document["run"]["elapsed"] = 0.into();
        archive
    };
    let (a_state, b_state) = (state(a), state(b));
    assert_eq!(a_state.document, b_state.document);
    assert!(a_state.tensors == b_state.tensors, "the checkpoints differ");
    assert_eq!(metrics(a), metrics(b));
}

/// The program at work.
pub(crate) fn start(folder: &Folder, line: &str) -> Child {
    folder.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}
