//! What computes: the processor, a GPU where the program is built with support for one, and what is refused.

use crate::binary::{Folder, text};
use serde_json::Value;

#[test]
fn devices_lists_the_processor() {
    let folder = Folder::new();
    assert!(folder.succeed("devices").contains("--backend cpu"));
    let devices: Value = serde_json::from_str(&folder.succeed("devices --json")).expect("one object");
    assert!(devices["cpu"]["threads"].as_u64() > Some(0), "{devices}");
    // whether it was built for GPUs depends on what else of the workspace is built with it
    assert!(devices["wgpu"].is_array() || (devices["wgpu"].is_null() && cfg!(not(feature = "gpu"))), "{devices}");
}

#[test]
fn options_that_contradict_each_other() {
    let folder = Folder::new();
    for (line, says) in [
        ("--adapter 0", "--backend wgpu"),
        ("--products f16", "--backend wgpu"),
        ("--products f16x3 --backend best", "--backend wgpu"),
        ("--products bf16x3 --backend wgpu", "--backend cpu"),
        ("--products bf16x3 --precision f64", "f64"),
        ("--backend best --adapter 0", "--backend wgpu"),
        ("--backend wgpu --precision f64", "f32"),
        ("--backend wgpu --threads 2", "--backend cpu"),
    ] {
        let error = folder.fail(&format!("fit checkerboard --out run --config tiny.toml {line}"), 2);
        assert!(error.contains(says), "{line}: {error}");
        assert!(!folder.path("run").exists(), "{line}: nothing is written");
    }
    folder.fail("fit checkerboard --out run --backend cuda", 2);
}

/// Products of bf16, where the processor has them; else that they are refused and nothing is written.
#[test]
fn products_of_bf16() {
    let folder = Folder::new();
    let devices: Value = serde_json::from_str(&folder.succeed("devices --json")).expect("one object");
    let products = devices["cpu"]["products"].as_array().expect("a list");
    assert_eq!(products[0], "f32");
    let fit = "fit checkerboard --out run --config tiny.toml --steps 10";
    if !products.contains(&"bf16x3".into()) {
        let error = folder.fail(&format!("{fit} --products bf16x3"), 1);
        assert!(error.contains("AVX512_BF16") && !folder.path("run").exists(), "{error}");
        return;
    }
    folder.succeed(&format!("{fit} --products bf16x3"));
    assert!(folder.read("run/config.toml").contains("products = \"bf16x3\""));
    let error = folder.fail("fit checkerboard --out run --resume --steps 20 --products bf16x6", 2);
    assert!(error.contains("--products bf16x6") && error.contains("is in bf16x3"), "{error}");
    folder.succeed("fit checkerboard --out run --resume --steps 20");
    // the file says it as well, and a model is a model
    assert!(folder.read("run/config.toml").contains("products = \"bf16x3\""));
    folder.succeed("score run checkerboard --rows 50 --out scores.csv");
    let error = folder.fail("score run checkerboard --rows 50 --out more.csv --products bf16x3", 2);
    assert!(error.contains("resflow fit"), "{error}");
}

#[test]
fn the_best_there_is() {
    let folder = Folder::new();
    let output = folder.run("fit checkerboard --out run --config tiny.toml --steps 10 --backend best");
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("on "), "the device is named: {said}");
    // no GPU has double precision
    folder.succeed("score run checkerboard --rows 50 --precision f64 --backend best --out best.csv");
    folder.succeed("score run checkerboard --rows 50 --precision f64 --out cpu.csv");
    assert_eq!(folder.read("best.csv"), folder.read("cpu.csv"));
}

#[test]
fn without_support_for_gpus() {
    let folder = Folder::new();
    let devices: Value = serde_json::from_str(&folder.succeed("devices --json")).expect("one object");
    if !devices["wgpu"].is_null() {
        return;
    }
    let error = folder.fail("fit checkerboard --out run --config tiny.toml --backend wgpu", 2);
    assert!(error.contains("--features gpu"), "{error}");
}

mod gpu {
    use resflow::data::image::{ImageSet, idx};

    use super::*;

    const IMAGES: &str = "\
[images]
height = 8
width = 8
blocks = [1, 1]
filters = 8
fully_connected = 1
fully_connected_width = 8
[train]
batch = 16
steps = 3
validation_fraction = 0.2
";

    /// Whether there is an adapter; without one the test says so, or fails where one is required. A program without
    /// support for GPUs has none to test.
    fn adapter(folder: &Folder) -> bool {
        let devices: Value = serde_json::from_str(&folder.succeed("devices --json")).expect("one object");
        if devices["wgpu"].is_null() {
            return false;
        }
        let found = devices["wgpu"].as_array().is_some_and(|list| !list.is_empty());
        let required = std::env::var("RESFLOW_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(found || !required, "RESFLOW_REQUIRE_GPU=1, but there is no adapter");
        if !found {
            eprintln!("SKIPPED, NOT TESTED: no adapter");
        }
        found
    }

    #[test]
    fn a_run_moves_between_backends() {
        let folder = Folder::new();
        if !adapter(&folder) {
            let line = "fit checkerboard --out run --config tiny.toml --backend wgpu";
            let error = text(&folder.run(line).stderr);
            assert!(error.contains("driver") || error.contains("--features gpu"), "{error}");
            return;
        }
        let output = folder.run("fit checkerboard --out run --config tiny.toml --seed 3 --steps 20 --backend wgpu");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("on "), "the adapter is named: {}", text(&output.stderr));
        // on with the CPU, and back
        folder.succeed("fit checkerboard --out run --resume --steps 30");
        folder.succeed("fit checkerboard --out run --resume --steps 40 --backend wgpu");
        // in the same pieces, since the mixture that a run begins with is sought for as long as its steps take
        folder.succeed("fit checkerboard --out cpu --config tiny.toml --seed 3 --steps 20");
        folder.succeed("fit checkerboard --out cpu --resume --steps 30");
        folder.succeed("fit checkerboard --out cpu --resume --steps 40");
        let nll = |run: &str| {
            let score = folder.succeed(&format!("score {run} checkerboard --rows 500 --json"));
            let score: Value = serde_json::from_str(&score).expect("one object");
            score["mean_log_prob"].as_f64().expect("a number")
        };
        // the same seeds: only rounding differs, over forty steps
        assert!((nll("run") - nll("cpu")).abs() < 0.02, "{} and {}", nll("run"), nll("cpu"));
        let on_gpu = folder.succeed("score run checkerboard --rows 500 --json --backend wgpu --adapter 0");
        let on_gpu: Value = serde_json::from_str(&on_gpu).expect("one object");
        assert!((on_gpu["mean_log_prob"].as_f64().expect("a number") - nll("run")).abs() < 1e-3);
        folder.succeed("sample run -n 20 --out s.csv --backend wgpu");
        folder.succeed("sample run -n 20 --out t.csv");
        for (a, b) in folder.table("s.csv").1.iter().flatten().zip(folder.table("t.csv").1.iter().flatten()) {
            assert!((a - b).abs() < 1e-3, "{a} and {b}");
        }
        let error = folder.fail("score run checkerboard --backend wgpu --adapter nowhere", 1);
        assert!(error.contains("nowhere"), "{error}");
    }

    #[test]
    fn images_take_steps() {
        let folder = Folder::new();
        if !adapter(&folder) {
            return;
        }
        let byte = |e: usize| (3 * (e / 64) + 11 * (e % 8) + 13 * (e / 8 % 8)) as u8;
        let set = ImageSet::new(8, 8, 1, (0..40 * 64).map(byte).collect(), None).expect("images");
        let mut bytes = Vec::new();
        idx::write_images(&set, &mut bytes).expect("a file in memory");
        folder.write("train-images-idx3-ubyte", bytes);
        folder.write("images.toml", IMAGES);
        folder.succeed("fit train-images-idx3-ubyte --out digits --config images.toml --backend wgpu");
        folder.succeed("sample digits -n 4 --out grid.png --backend wgpu");
    }
}
