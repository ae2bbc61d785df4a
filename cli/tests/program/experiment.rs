//! Experiments: small ones from end to end, stopped and gone on with, and files that are refused.
#![cfg(unix)]

use crate::binary::{self, Folder, start, wait_for};
use serde_json::Value;

const COMPARISON: &str = "\
title = \"families\"
seed = 3
data = [\"moons\", \"rings\"]
[flow]
blocks = 2
hidden = [8]
[train]
batch = 32
steps = STEPS
validate_every = 20
validation_rows = 100
[comparison]
runs = 2
test_rows = 200
[[comparison.rows]]
name = \"RF + LipSwish\"
[[comparison.rows]]
name = \"i-ResNet + ELU\"
flow = { model = \"iresnet\", activation = \"elu\" }
train = { learning_rate = 1e-3 }
[[comparison.rows]]
name = \"Glow\"
flow = { model = \"glow\" }
";

/// Few steps of a large step size: the truncated log det of these models is far from the exact one.
const BIAS: &str = "\
title = \"bias\"
seed = 3
data = [\"checkerboard\"]
[flow]
blocks = 4
hidden = [16]
[train]
batch = 64
steps = 200
learning_rate = 0.05
warmup = 10
validation_rows = 100
[bias]
bounds = [0.9]
widths = [8, 16]
trained_with = \"own\"
points = 200
repeats = 16
estimators = [\"truncated:terms=1\", \"roulette:p=0.4,exact=1\"]
";

/// The results of all cells but for their times.
fn results(folder: &Folder, out: &str) -> Vec<Value> {
    let table: Value = serde_json::from_str(&folder.read(&format!("{out}/table.json"))).expect("an object");
    let mut cells = table["cells"].as_array().expect("cells").clone();
    for cell in &mut cells {
        assert!(cell["outcome"]["result"].is_object(), "{cell}");
        cell["seconds"] = 0.into();
        cell["outcome"]["result"]["trained_seconds"] = 0.into();
        cell["outcome"]["result"]["seconds"] = 0.into();
    }
    cells
}

fn is_png(folder: &Folder, name: &str) -> bool {
    std::fs::read(folder.path(name)).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG"))
}

#[test]
fn a_comparison() {
    let folder = Folder::new();
    folder.write("e.toml", COMPARISON.replace("STEPS", "40"));
    let printed = folder.succeed("experiment e.toml --out out --threads 1");
    assert_eq!(printed, folder.read("out/table.md"));
    for part in ["# families", "Seed 3, f32; 12 cells", "## moons", "## rings", "| i-ResNet + ELU |", "| Glow |"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(is_png(&folder, "out/moons.png") && is_png(&folder, "out/rings.png"));
    let cells = results(&folder, "out");
    let nll = |i: usize| cells[i]["outcome"]["result"]["nll"].as_f64().expect("nats");
    assert!(cells.len() == 12 && nll(0) != nll(1) && nll(0) != nll(2), "runs and rows differ");
    let settings = folder.read("out/runs/moons-i-resnet-elu-0.toml");
    assert!(settings.contains("model = \"iresnet\"") && settings.contains("learning_rate = 0.001"), "{settings}");
    assert!(settings.contains("hidden = [8]"), "{settings}");

    // a cell is what `score` says of its run
    let scored = folder.succeed("score out/runs/moons-glow-0 moons --rows 200 --seed 3 --json");
    let scored: Value = serde_json::from_str(&scored).expect("an object");
    assert_eq!(cells[4]["name"], "moons-glow-0");
    assert_eq!(scored["mean_log_prob"].as_f64(), Some(-nll(4)));

    // a table is scored on its test rows, where they are named, not on what chose the weights
    folder.succeed("sample out/runs/moons-glow-0 -n 300 --seed 1 --out train.csv");
    folder.succeed("sample out/runs/moons-glow-0 -n 100 --seed 2 --out test.csv");
    let tables = COMPARISON
        .replace("STEPS", "20")
        .replace("\"moons\", \"rings\"", "\"train.csv\"")
        .replace("runs = 2", "runs = 1");
    folder.write(
        "t.toml",
        tables.replace("test_rows = 200", "test_rows = 200\ntests = { \"train.csv\" = \"test.csv\" }"),
    );
    folder.succeed("experiment t.toml --out tables --threads 1");
    let cells = results(&folder, "tables");
    let name = cells[2]["name"].as_str().expect("a name");
    let score = folder.succeed(&format!("score tables/runs/{name} test.csv --seed 3 --json"));
    let score: Value = serde_json::from_str(&score).expect("an object");
    assert_eq!(cells[2]["outcome"]["result"]["points"], 100);
    assert_eq!(score["mean_log_prob"].as_f64(), cells[2]["outcome"]["result"]["nll"].as_f64().map(|nll| -nll));
    for (name, test, said) in [
        ("other.csv", "test.csv", "other.csv is no table of `data`"),
        ("moons", "test.csv", "moons is no table of `data`"),
        ("train.csv", "rings", "rings is no table"),
        ("train.csv", "nowhere.csv", "nowhere.csv"),
    ] {
        folder.write("t.toml", tables.replace("test_rows = 200", &format!("tests = {{ \"{name}\" = \"{test}\" }}")));
        let error = folder.fail("experiment t.toml --out wrong", 2);
        assert!(error.contains(said) && !folder.path("wrong/runs").exists(), "{said}: {error}");
    }

    // finished cells are taken as they are: even a wrong one
    let path = "out/cells/moons-glow-0.json";
    let mut cell: Value = serde_json::from_str(&folder.read(path)).expect("a cell");
    cell["outcome"]["result"]["nll"] = 77.into();
    folder.write(path, cell.to_string());
    assert!(folder.succeed("experiment e.toml --out out").contains("| Glow | "));
    assert_eq!(results(&folder, "out")[4]["outcome"]["result"]["nll"], 77.0);

    // but not those of other settings
    folder.write("e.toml", COMPARISON.replace("STEPS", "50"));
    let error = folder.fail("experiment e.toml --out out", 2);
    assert!(error.contains("computed with other settings; remove it"), "{error}");
    folder.write(path, "{}");
    folder.write("e.toml", COMPARISON.replace("STEPS", "40"));
    assert!(folder.fail("experiment e.toml --out out", 2).contains("moons-glow-0.json: not a cell"));
}

#[test]
fn rows_at_equal_time() {
    let folder = Folder::new();
    // steps of days
    let text =
        COMPARISON.replace("STEPS", "1000000000").replace(", \"rings\"", "").replace("runs = 2", "seconds = 0.3");
    folder.write("e.toml", &text);
    let printed = folder.succeed("experiment e.toml --out out --threads 1");
    assert!(printed.contains("| Glow | "), "{printed}");
    // a cell that is there is of another time
    folder.write("e.toml", text.replace("0.3", "0.4"));
    assert!(folder.fail("experiment e.toml --out out", 2).contains("computed with other settings; remove it"));
}

#[test]
fn a_kill_changes_nothing() {
    let folder = Folder::new();
    let text = COMPARISON.replace("STEPS", "1500").replace(", \"rings\"", "").replace("runs = 2", "runs = 1");
    folder.write("e.toml", text);
    folder.succeed("experiment e.toml --out whole --threads 1");
    let line = "experiment e.toml --out out --threads 1";
    for wanted in ["cells/moons-rf-lipswish.json", "runs/moons-glow/checkpoint.safetensors"] {
        let mut child = start(&folder, line);
        wait_for(wanted, || folder.path("out").join(wanted).exists());
        std::thread::sleep(std::time::Duration::from_millis(60));
        child.kill().expect("a child to kill");
        child.wait().expect("a child");
    }
    let first = std::fs::metadata(folder.path("out/cells/moons-rf-lipswish.json")).and_then(|m| m.modified());
    let output = folder.run(line);
    assert!(output.status.success() && binary::text(&output.stderr).contains("moons-rf-lipswish: there already"));
    let again = std::fs::metadata(folder.path("out/cells/moons-rf-lipswish.json")).and_then(|m| m.modified());
    assert_eq!(first.expect("a cell"), again.expect("a cell"), "a finished cell is not touched");
    assert_eq!(results(&folder, "whole"), results(&folder, "out"));
}

/// Truncation is biased, by far more than its interval; roulette's interval holds 0. The key is fixed; with another one the
/// latter would fail one time in ten (two cells at 95 %).
#[test]
fn bias_of_truncation_and_none_of_roulette() {
    let folder = Folder::new();
    folder.write("bias.toml", BIAS);
    let printed = folder.succeed("experiment bias.toml --out out --threads 1");
    assert!(is_png(&folder, "out/bias.png"));
    assert!(printed.contains("the intervals of 0 of 2 unbiased estimators leave 0 out"), "{printed}");
    assert!(printed.contains("the intervals of 2 of 2 truncated series lie above 0"), "{printed}");
    for cell in results(&folder, "out").iter().step_by(2) {
        let found = &cell["outcome"]["result"];
        let (low, bound) = (found["interval"][0].as_f64(), found["bound"].as_f64());
        assert!(low > Some(0.1) && low < bound, "{cell}");
    }
}

#[test]
fn variance_falls_with_the_terms() {
    let folder = Folder::new();
    let estimators = "estimators = [\"roulette:p=0.7,exact=0\", \"roulette:p=0.2,exact=4\", \"truncated:terms=1\"]\n";
    let head = BIAS.split("estimators").next().expect("a head").replace("[bias]", "[variance]");
    let text = format!("{head}{estimators}").replace("\"own\"", "\"exact\"").replace("[8, 16]", "[16]");
    folder.write("variance.toml", text.replace("repeats = 16", "repeats = 100"));
    folder.succeed("experiment variance.toml --out out --threads 1");
    assert!(is_png(&folder, "out/variance.png"));
    let cells = results(&folder, "out");
    let of = |i: usize, name: &str| cells[i]["outcome"]["result"][name].as_f64().expect("a number");
    let variance = |i: usize| cells[i]["outcome"]["result"]["relative"]["mean"].as_f64().expect("a number");
    assert!(variance(0) > 2.0 * variance(1), "{} and {}", variance(0), variance(1));
    assert!(of(0, "terms") < 2.0 && of(1, "terms") > 8.0);
    // the mean gradient is the exact one, up to noise, unless the series is truncated
    for (i, biased) in [(0, false), (1, false), (2, true)] {
        let ratio = of(i, "deviation") / of(i, "expected_deviation");
        assert_eq!(ratio > 2.5, biased, "{i}: {ratio}");
    }
    // all cells measure the same model
    let runs = std::fs::read_dir(folder.path("out/runs")).expect("runs").flatten();
    assert_eq!(runs.filter(|e| e.path().is_dir()).count(), 1);
}

#[test]
fn bad_files() {
    let folder = Folder::new();
    let comparison = COMPARISON.replace("STEPS", "40");
    for (text, part) in [
        ("title = 3\n".to_owned(), "e.toml, line 1, column 9"),
        (comparison.replace("[comparison]", "[comparision]"), "e.toml, line 12, column 2: unknown field"),
        (comparison.replace("runs = 2", "runs = 0"), "1 to 1000 `runs`"),
        (comparison.replace("runs = 2", "seconds = 0.0"), "`seconds` in [comparison]: expected a number above 0"),
        (comparison.replace("\"Glow\"", "\"rf lipswish\""), "two rows are named `rf lipswish`"),
        (
            comparison.replace("\"glow\"", "\"glaw\""),
            "row `Glow` on moons: not a valid configuration: there is no model `glaw`",
        ),
        (comparison.replace("hidden = [8]", "hiden = [8]"), "unknown field `hiden`"),
        (comparison.replace("\"moons\"", "\"moon\""), "moon: file not found, and"),
        (BIAS.replace("[\"checkerboard\"]", "[\"moons\", \"rings\"]"), "more than one entry"),
        (BIAS.replace("terms=1", "terms=0"), "truncated:terms=0: `terms` is 0"),
        (BIAS.replace("\"own\"", "\"owned\""), "there is no estimator `owned`"),
        (BIAS.replace("[0.9]", "[1.0]"), "c is above 0 and below 1"),
        (BIAS.replace("repeats = 16", "repeats = 1"), "`repeats` must be at least 2"),
        (BIAS.replace("blocks = 4", "blocks = 4\nmodel = \"realnvp\""), "no series to estimate"),
        (BIAS.replace("widths = [8, 16]", "widths = [8, 8]"), "two cells are named"),
    ] {
        folder.write("e.toml", &text);
        let error = folder.fail("experiment e.toml --out out", 2);
        assert!(error.contains(part) && error.contains("e.toml"), "{part}: {error}");
    }
    assert!(!folder.path("out").exists(), "nothing is written for a file that cannot be used");
    assert!(folder.fail("experiment missing.toml --out out", 2).contains("missing.toml"));
    folder.write("e.toml", comparison);
    assert!(folder.fail("experiment e.toml --out out --precision f64", 2).contains("--precision"));
}
