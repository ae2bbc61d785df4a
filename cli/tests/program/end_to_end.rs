//! The binary from end to end: fit, score, sample, encode, decode, inspect.

use std::time::{Duration, Instant};

use crate::binary::{self, Folder, csv, metrics};
use serde_json::Value;

#[test]
fn a_density_from_fit_to_inspect() {
    let folder = Folder::new();
    let summary = folder.succeed("fit checkerboard --out run --config tiny.toml --seed 3");
    assert!(summary.contains("validation nll") && summary.contains("resflow score run checkerboard"), "{summary}");
    for name in ["model.safetensors", "checkpoint.safetensors", "config.toml"] {
        assert!(folder.path("run").join(name).is_file(), "{name}");
    }
    for name in ["density.png", "samples.png", "data.png", "picture.png"] {
        let bytes = std::fs::read(folder.path("run").join(name)).expect(name);
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 1000, "{name}");
    }

    let lines = metrics(&folder.path("run"));
    assert_eq!(lines.iter().map(|l| l["step"].as_u64()).collect::<Vec<_>>(), [0, 10, 20, 30, 40].map(Some));
    assert!(lines[0]["val_nll"].is_f64() && lines[0].get("train_nll").is_none(), "the base density: {}", lines[0]);
    for line in &lines[1..] {
        let keys: Vec<_> = line.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["grad_norm", "lipschitz", "lr", "step", "terms", "train_nll", "val_nll", "val_se"]);
        assert!(line["val_nll"].is_f64() && line["val_se"].is_f64(), "{line}");
    }

    let score = folder.succeed("score run checkerboard --json --rows 300 --out scores.csv");
    let score: Value = serde_json::from_str(&score).expect("one object");
    assert_eq!(score["rows"], 300);
    assert_eq!(score["estimator"], "exact");
    for key in ["mean_log_prob", "mean_log_prob_se", "seconds"] {
        assert!(score[key].is_f64(), "{key}: {score}");
    }
    let (header, rows) = folder.table("scores.csv");
    assert_eq!((header.as_str(), rows.len()), ("log_prob,se,percentile", 300));
    let mean = rows.iter().map(|r| r[0]).sum::<f64>() / 300.0;
    assert!((mean - score["mean_log_prob"].as_f64().expect("a number")).abs() < 1e-9);
    assert!(folder.succeed("score run checkerboard").contains("10000 rows"));

    folder.succeed("sample run -n 100 --out s.csv --seed 5");
    let (header, rows) = folder.table("s.csv");
    assert_eq!((header.as_str(), rows.len()), ("x,y", 100));
    folder.succeed("sample run -n 50 --out few.csv --seed 5 --threads 1");
    assert_eq!(folder.table("few.csv").1, rows[..50], "row i depends on the seed and i alone");
    folder.succeed("sample run -n 100 --out s.npy --seed 5");
    folder.succeed("sample run -n 100 --out s.png");
    let by_format = |data: &str| folder.succeed(&format!("score run {data} --json")).replace(|c| c != ',', "");
    assert_eq!(by_format("s.csv"), by_format("s.npy"));

    let inspected = folder.succeed("inspect run --json");
    let inspected: Value = serde_json::from_str(&inspected).expect("one object");
    assert_eq!(inspected["links"].as_array().map(Vec::len), Some(5), "2 blocks and 3 ActNorms");
    assert_eq!(inspected["provenance"]["seed"], 3);
    assert_eq!(inspected["precision"], "f32");
    let weight = &inspected["links"][1]["weights"][0];
    assert!(weight["effective_sigma"].as_f64() <= weight["coefficient"].as_f64(), "{weight}");
    assert!(inspected["lipschitz"].as_f64().is_some_and(|l| l > 0.0 && l < 1.0));
    assert!(folder.succeed("inspect run/checkpoint.safetensors").contains("residual block"));
}

#[test]
fn a_file_there_and_back() {
    let folder = Folder::new();
    folder.write("data.csv", csv(300));
    // nothing to begin from, so that the steps have something to learn
    folder.write("plain.toml", folder.read("tiny.toml") + "fit_base = false\n");
    let summary = folder.succeed("fit data.csv --out run --config plain.toml --precision f64");
    assert!(!summary.contains("png"), "three columns have no picture: {summary}");
    folder.succeed("sample run -n 64 --out x.csv");
    assert_eq!(folder.table("x.csv").0, "length,width,height");

    folder.succeed("encode run x.csv --out z.csv");
    let (header, z) = folder.table("z.csv");
    assert_eq!(header, "z1,z2,z3,log_det,se");
    folder.succeed("decode run z.csv --out again.csv");
    let (header, again) = folder.table("again.csv");
    assert_eq!(header, "length,width,height,log_det,se");
    // the same with a certificate, of rows in memory and of rows that stay in their file, over which the bound is the largest too
    let line = "decode run z.csv --certified --out certified.csv";
    let [whole, pieces] = ["", " --large 10"].map(|large| folder.succeed(&format!("{line}{large}")));
    assert!(whole == pieces && whole.contains("64 rows\ncertified: each row is within "), "{whole}{pieces}");
    assert_eq!(folder.read("certified.csv"), folder.read("again.csv"));
    folder.succeed("score run x.csv --out p.csv");
    let (x, p) = (folder.table("x.csv").1, folder.table("p.csv").1);
    for i in 0..64 {
        for j in 0..3 {
            assert!((x[i][j] - again[i][j]).abs() < 1e-9 * x[i][j].abs().max(1.0), "row {i}");
        }
        assert!((z[i][3] + again[i][3]).abs() < 1e-8, "the log dets of the two directions cancel");
        let square: f64 = z[i][..3].iter().map(|z| z * z).sum();
        let base = -0.5 * square - 1.5 * (2.0 * std::f64::consts::PI).ln();
        assert!((base + z[i][3] - p[i][0]).abs() < 1e-9, "log p is base and log det");
    }

    // an estimate agrees with the exact value within six of its own errors, the mean of 300 rows within six of its own
    let exact: Value = serde_json::from_str(&folder.succeed("score run data.csv --json")).expect("an object");
    let roulette = "score run data.csv --json --replicates 16 --out e.csv \
                    --estimator roulette:law=geometric,p=0.2,exact=4,probes=2,probe=gaussian,draws=2,sharing=sample";
    let estimate: Value = serde_json::from_str(&folder.succeed(roulette)).expect("an object");
    assert_eq!(estimate["replicates"], 16);
    let rows = folder.table("e.csv").1;
    let error = rows.iter().map(|r| r[1] * r[1]).sum::<f64>().sqrt() / 300.0;
    let mean = |v: &Value| v["mean_log_prob"].as_f64().expect("a number");
    assert!(error > 0.0 && (mean(&exact) - mean(&estimate)).abs() < 6.0 * error, "{exact} {estimate} {error}");
    assert!(folder.succeed("score run data.csv --estimator truncated:terms=3").contains("truncated after 3"));
    assert!(folder.succeed("score run data.csv --estimator auto --precision f32").contains("exact"));
}

#[test]
fn threads_do_not_change_the_model() {
    let folder = Folder::new();
    for threads in [1, 2, 3] {
        folder.succeed(&format!("fit moons --out run{threads} --config tiny.toml --threads {threads}"));
    }
    let model = |i| std::fs::read(folder.path(&format!("run{i}/model.safetensors"))).expect("a model");
    assert!(model(1) == model(2) && model(1) == model(3));
}

#[test]
fn a_run_is_neither_lost_nor_mixed_up() {
    let folder = Folder::new();
    assert!(folder.fail("fit moons --out run --resume", 2).contains("no run to resume"));
    folder.succeed("fit moons --out run --config tiny.toml --seed 1");
    let before = std::fs::read(folder.path("run/model.safetensors")).expect("a model");
    let error = folder.fail("fit moons --out run --config tiny.toml", 2);
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");

    folder.write("other.toml", binary::TINY.replace("[16]", "[17]"));
    for (flags, part) in [
        ("--seed 2", "has seed 1"),
        ("--precision f64", "is in f32"),
        ("--config other.toml", "flow.hidden is [17], was [16]"),
    ] {
        let error = folder.fail(&format!("fit moons --out run --resume {flags}"), 2);
        assert!(error.contains(part), "{error}");
    }
    assert!(folder.fail("fit circles --out run --resume", 2).contains("other data"));
    assert!(folder.fail("fit moons --out run --resume --overwrite", 2).contains("cannot be used with"));
    assert_eq!(std::fs::read(folder.path("run/model.safetensors")).expect("a model"), before);

    let longer = folder.succeed("fit moons --out run --resume --steps 60 --seed 1 --precision f32 --config tiny.toml");
    assert!(longer.contains(" 60 steps"), "{longer}");
    assert!(folder.read("run/config.toml").contains("steps = 60"));
    assert_eq!(metrics(&folder.path("run")).len(), 7);
    let again = folder.succeed("fit moons --out run --config run/config.toml --overwrite");
    assert!(again.contains(" 60 steps"), "config.toml is a configuration: {again}");
}

#[test]
fn a_time_limit_holds() {
    let folder = Folder::new();
    let start = Instant::now();
    let summary = folder.succeed("fit rings --out run --config tiny.toml --time-limit 4");
    // the other tests share the machine
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(summary.contains("picture.png"), "{summary}");
    let lines = metrics(&folder.path("run"));
    let last = lines.last().expect("metrics");
    assert!(last["val_nll"].is_f64(), "the last step is validated");
    let rate = |l: &Value| l["lr"].as_f64().expect("a number");
    // the first line is the base density's, before any step
    let highest = lines[1..].iter().map(rate).fold(0.0, f64::max);
    assert!(rate(last) < 0.2 * highest, "the schedule is laid over the time: {} of {highest}", rate(last));

    // both limits: the steps come first here, the time in the second run
    assert!(folder.succeed("fit rings --out a --config tiny.toml --steps 20 --time-limit 60").contains(" 20 steps"));
    let start = Instant::now();
    folder.succeed("fit rings --out b --config tiny.toml --steps 100000000 --time-limit 2");
    assert!(start.elapsed() < Duration::from_secs(6));
}

#[test]
fn help_has_examples() {
    let folder = Folder::new();
    for command in ["fit", "score", "sample", "encode", "decode", "reconstruct", "inspect", "predict", "calibrate"] {
        let help = folder.succeed(&format!("{command} --help"));
        assert!(help.contains(&format!("Examples:\n  resflow {command} ")), "{help}");
    }
    assert!(folder.succeed("--help").contains("checkerboard"));
    assert!(folder.succeed("--version").starts_with("resflow "));
}
