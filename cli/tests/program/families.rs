//! Every family of flows from the command line, over rows and over images: fit, inspect, score, sample, resume.
#![cfg(unix)]

use crate::binary::{self, Folder, assert_same, metrics, start, text, wait_for};
use resflow::data::image::{ImageSet, idx};
use serde_json::Value;

const MODELS: [&str; 10] =
    ["residual", "iresnet", "realnvp", "glow", "nsf", "dense", "implicit", "monotone", "ffjord", "flowpp"];

/// No setting that only some families have.
const IMAGES: &str = "\
[images]
height = 8
width = 8
blocks = [2, 1]
filters = 6
fully_connected = 0
replicates = 4
[train]
batch = 16
steps = 6
validate_every = 3
validation_fraction = 0.2
";

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("images.toml", IMAGES);
    let bytes = (0..60 * 64).map(|e| (e * 5 % 64 * 3 + e / 64) as u8).collect();
    let mut file = Vec::new();
    idx::write_images(&ImageSet::new(8, 8, 1, bytes, None).expect("images"), &mut file).expect("a file in memory");
    folder.write("set.idx", file);
    folder
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("one object")
}

#[test]
fn rows_and_images_of_every_family() {
    let folder = folder();
    for (data, config, kind) in [("moons", "tiny.toml", "rows"), ("set.idx", "images.toml", "images")] {
        for model in MODELS {
            if kind == "images" && model == "nsf" {
                let error = folder.fail(&format!("fit {data} --model {model} --config {config} --out refused"), 2);
                assert!(error.contains(&format!("{model} is for rows")), "{error}");
                continue;
            }
            // whose weights are free, and whose log dets are exact
            let (run, couples) =
                (format!("{kind}-{model}"), matches!(model, "realnvp" | "glow" | "nsf" | "ffjord" | "flowpp"));
            folder.succeed(&format!("fit {data} --model {model} --config {config} --out {run} --seed 3"));
            let settings = folder.read(&format!("{run}/config.toml"));
            assert!(settings.contains(&format!("model = \"{model}\"")), "{settings}");
            let last = metrics(&folder.path(&run)).pop().expect("a logged step");
            assert_eq!((last["lipschitz"].is_f64(), last["lipschitz"].is_null()), (!couples, couples), "{last}");
            assert!(last["val_nll"].is_f64() && last["train_nll"].is_f64(), "{last}");
            // how many evaluations the solves took, and that none failed, of those that solve
            let solves = matches!(model, "implicit" | "monotone" | "ffjord");
            assert_eq!(last["solve_evaluations"].as_u64().is_some_and(|count| count > 0), solves, "{last}");
            assert_eq!(last["unsolved"].as_u64(), solves.then_some(0), "{last}");

            let inspected = folder.succeed(&format!("inspect {run}"));
            assert!(inspected.contains(&format!("family          {model}\n")), "{inspected}");
            assert_eq!(inspected.contains("Lipschitz bound"), !couples, "{inspected}");
            assert_eq!(inspected.contains("affine coupling"), matches!(model, "realnvp" | "glow"), "{inspected}");
            let steps = if kind == "rows" { 16 } else { 4 };
            let ode = format!("ODE flow, rk4:steps={steps} in");
            assert_eq!(inspected.contains(&ode), model == "ffjord", "{inspected}");
            assert_eq!(inspected.contains("spline coupling"), model == "nsf", "{inspected}");
            assert_eq!(inspected.contains("mixture coupling, 8 logistics"), model == "flowpp", "{inspected}");
            assert_eq!(inspected.contains("LU linear map"), model == "nsf", "{inspected}");
            assert_eq!(inspected.contains("invertible linear map"), matches!(model, "glow" | "flowpp"), "{inspected}");
            assert_eq!(inspected.contains("truncated after 10 terms"), model == "iresnet", "{inspected}");
            // of the flow and of every block, where the blocks are of contractions
            assert_eq!(inspected.contains("\nconstants "), !couples, "{inspected}");
            assert_eq!(inspected.contains("nothing bounds how distances grow"), couples, "{inspected}");
            let of_blocks =
                inspected.lines().zip(inspected.lines().skip(1)).filter(|(line, _)| line.contains("Lip(g) about"));
            assert!(of_blocks.clone().all(|(_, next)| next.contains(" times back, certified")), "{inspected}");
            assert_eq!(of_blocks.count() > 0, !couples, "{inspected}");
            let inspected = json(&folder.succeed(&format!("inspect {run} --json")));
            assert_eq!((&inspected["family"], inspected["lipschitz"].is_null()), (&Value::from(model), couples));

            let rows = if kind == "rows" { "--rows 200" } else { "--rows 8" };
            let score = json(&folder.succeed(&format!("score {run} {data} --json {rows} --out scores.csv")));
            assert!(score["mean_log_prob"].is_f64(), "{score}");
            if couples {
                assert_eq!(score["estimator"], "exact");
                // of images behind their bits, of rows before their percentile
                let error = if kind == "rows" { 1 } else { 3 };
                assert!(folder.table("scores.csv").1.iter().all(|row| row[error] == 0.0), "no error");
            }
            let output = folder.run(&format!("sample {run} -n 20 --out samples.npy"));
            assert!(output.status.success(), "{run}: {}", text(&output.stderr));
            // the same rows with their certificate, of flows of contractions
            let certified = format!("sample {run} -n 20 --out certified.npy --certified");
            if couples {
                let error = folder.fail(&certified, 2);
                assert!(error.contains("nothing bounds how errors grow"), "{error}");
            } else {
                let told = folder.succeed(&certified);
                let bound = told.split_once("each row is within ").and_then(|(_, rest)| rest.split_once(' '));
                let bound: f64 = bound.expect("a bound").0.parse().expect("a number");
                assert!(bound > 0.0 && bound < 1e-3, "{told}");
                let [of_plain, of_certified] =
                    ["samples.npy", "certified.npy"].map(|name| std::fs::read(folder.path(name)).expect("written"));
                assert!(of_plain == of_certified, "{run}: other rows");
            }

            // what the run is of is known to it; another family is another run
            let resume = format!("fit {data} --out {run} --resume");
            let longer = folder.succeed(&format!("{resume} --config {config} --model {model} --steps 50"));
            assert!(longer.contains(" 50 steps"), "{longer}");
            let other = MODELS[(MODELS.iter().position(|m| *m == model).unwrap_or(0) + 1) % MODELS.len()];
            let error = folder.fail(&format!("{resume} --model {other}"), 2);
            assert!(error.contains(&format!("is of {model}")), "{error}");
        }
    }
}

/// Other base densities and the start as the identity come from the file, as texts or as tables, and are known to the run.
#[test]
fn other_bases() {
    let folder = folder();
    let rows = &binary::TINY["[flow]\n".len()..];
    for (name, lines, shown) in [
        ("text", "base = \"mixture:components=3,covariance=diagonal\"\n", "mixture of 3 Gaussians with diagonal"),
        (
            "table",
            "base = { mixture = { components = 2 } }\nstart = \"identity\"\n",
            "mixture of 2 Gaussians with full",
        ),
        ("tails", "base = \"student-t\"\n", "Student t in 2 dimensions"),
    ] {
        folder.write(&format!("{name}.toml"), format!("[flow]\n{lines}{rows}"));
        folder.succeed(&format!("fit moons --config {name}.toml --out {name} --seed 3"));
        let inspected = folder.succeed(&format!("inspect {name}"));
        assert!(inspected.contains(&format!("\nbase density    {shown}")), "{inspected}");
        let base = json(&folder.succeed(&format!("inspect {name} --json")))["base"].clone();
        assert!(base.as_str().is_some_and(|base| base.starts_with(shown)), "{base}");
        let score = json(&folder.succeed(&format!("score {name} moons --json --rows 200")));
        assert!(score["mean_log_prob"].is_f64(), "{score}");
        folder.succeed(&format!("sample {name} -n 20 --out samples.csv"));
        let longer = folder.succeed(&format!("fit moons --config {name}.toml --out {name} --resume --steps 50"));
        assert!(longer.contains(" 50 steps"), "{longer}");
    }
    folder.write("wrong.toml", "[flow]\nbase = \"cauchy\"\n");
    let error = folder.fail("fit moons --config wrong.toml --out other", 2);
    assert!(error.contains("no base `cauchy`") && error.contains("student-t"), "{error}");
}

/// The file may name the family; both must not differ, and there is no other.
#[test]
fn families_in_files() {
    let folder = folder();
    folder.write("glow.toml", format!("[flow]\nmodel = \"glow\"\n{}", &binary::TINY["[flow]\n".len()..]));
    folder.succeed("fit moons --config glow.toml --out run");
    assert!(folder.read("run/config.toml").contains("initial_scale = 0.0"), "Glow's own settings are beneath the file");
    folder.succeed("fit moons --model glow --config tiny.toml --out again");
    let model = |run: &str| std::fs::read(folder.path(run).join("model.safetensors")).expect("a model");
    assert!(model("run") == model("again"));
    let error = folder.fail("fit moons --model realnvp --config glow.toml --out other", 2);
    assert!(error.contains("glow.toml says model = \"glow\""), "{error}");
    let error = folder.fail("fit moons --model glaw --out other", 2);
    assert!(error.contains("residual, iresnet, realnvp, glow, nsf"), "{error}");
    folder.write("wrong.toml", "[flow]\nmodel = \"glaw\"\n");
    assert!(folder.fail("fit moons --config wrong.toml --out other", 2).contains("line 2, column 9"));
    folder.write("exact.toml", "[flow]\nmodel = \"iresnet\"\ntraining = \"exact\"\n");
    assert!(folder.fail("fit moons --config exact.toml --out other", 2).contains("truncated series"));
    folder.write("one.csv", "a\n1\n2\n3\n4\n5\n");
    assert!(folder.fail("fit one.csv --model realnvp --out other", 2).contains("two columns"));
    assert!(!folder.path("other").exists());
}

/// Killed in the middle, a run of couplings ends as if nothing had happened.
#[test]
fn a_kill_changes_nothing() {
    let folder = folder();
    let config = IMAGES.replace("steps = 6", "steps = 600").replace("validate_every = 3", "validate_every = 20");
    folder.write("long.toml", config);
    folder.succeed("fit set.idx --model glow --config long.toml --out whole");
    let mut child = start(&folder, "fit set.idx --model glow --config long.toml --out run");
    wait_for("a checkpoint of some steps", || {
        let archive = resflow::checkpoint::Archive::read(&folder.path("run/checkpoint.safetensors"));
        archive.is_ok_and(|a| a.document["run"]["step"].as_u64() > Some(0))
    });
    child.kill().expect("a child");
    child.wait().expect("a child");
    folder.succeed("fit set.idx --config long.toml --out run --resume");
    assert_same(&folder.path("whole"), &folder.path("run"));
}

/// A continuous flow by flow matching: steps without −log p, then some of it, validated by log p; runs go on to the bit, and other
/// families are told what to set.
#[test]
fn flow_matching() {
    let folder = folder();
    let config = |model: &str| {
        format!(
            "[flow]\nmodel = \"{model}\"\nblocks = 1\nhidden = [16]\n[train]\nobjective = \
             \"flow-matching:pairing=optimal,fine-tune=0.25\"\nbatch = 64\nsteps = 40\nvalidation_rows = 200\nvalidate_every = 20\n"
        )
    };
    folder.write("matching.toml", config("ffjord"));
    folder.succeed("fit moons --config matching.toml --out whole --seed 3");
    let lines = metrics(&folder.path("whole"));
    let at = |step: u64| lines.iter().find(|line| line["step"] == step).expect("a logged step");
    assert!(at(20)["train_nll"].is_null() && at(20)["matching"].is_f64() && at(20)["val_nll"].is_f64(), "{}", at(20));
    assert!(at(40)["train_nll"].is_f64() && at(40).get("matching").is_none(), "{}", at(40));
    let score = json(&folder.succeed("score whole moons --json --rows 200"));
    assert_eq!(score["estimator"], "exact");

    folder.succeed("fit moons --config matching.toml --out run --seed 3 --steps 20");
    folder.succeed("fit moons --config matching.toml --out run --resume --steps 40");
    let resumed = metrics(&folder.path("run")).pop().expect("a logged step");
    assert!(resumed["val_nll"].is_f64(), "{resumed}");

    folder.write("wrong.toml", config("realnvp"));
    let error = folder.fail("fit moons --config wrong.toml --out other", 2);
    assert!(error.contains("model = \"ffjord\""), "{error}");
    folder.write("typo.toml", config("ffjord").replace("optimal", "best"));
    let error = folder.fail("fit moons --config typo.toml --out other", 2);
    assert!(error.contains("`best` is no value for `pairing`"), "{error}");
}
