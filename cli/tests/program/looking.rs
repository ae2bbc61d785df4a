//! `resflow look`, the same findings before a fit, and the ladder that a fit of a table begins at.

use std::fmt::Write as _;

use resflow::config::Family;
use resflow::{Fit, Model};
use serde_json::Value;

use crate::binary::{Folder, text};

/// Rows of three columns, the last of which is what a function makes of the others.
fn csv(rows: usize, last: impl Fn(f64, f64) -> f64) -> String {
    let mut out = "height,weight,other\n".to_owned();
    for i in 0..rows {
        let (a, b) = ((i as f64 * 0.754_877).fract(), (i as f64 * 0.569_840).fract());
        writeln!(out, "{:.6},{:.6},{:.6}", a, b, last(a, b)).expect("memory");
    }
    out
}

#[test]
fn a_look_says_what_is_wrong() {
    let folder = Folder::new();
    folder.write("sum.csv", csv(200, |a, b| a + b));
    let said = folder.succeed("look sum.csv");
    assert!(said.contains("200 rows, 3 columns") && said.contains("height") && said.contains("continuous"), "{said}");
    assert!(said.contains("grave: column") && said.contains("linear combination"), "{said}");
    let look: Value = serde_json::from_str(&folder.succeed("look sum.csv --json")).expect("one object");
    assert_eq!((look["rows"].as_u64(), &look["findings"][0]["concern"]), (Some(200), &"dependent".into()));
    let said = folder.succeed("look sum.csv --drop other");
    assert!(said.contains("nothing that stands in the way"), "{said}");
    // a fit says the same, and goes on only if it is told to
    let error = folder.fail("fit sum.csv --out run --steps 2", 2);
    assert!(error.contains("linear combination") && error.contains("--regardless"), "{error}");
    assert!(!folder.path("run").exists());
    let output = folder.run("fit sum.csv --out run --steps 2 --regardless");
    assert!(output.status.success() && text(&output.stderr).contains("linear combination"));
}

#[test]
fn a_fit_begins_at_the_best_mixture() {
    let folder = Folder::new();
    folder.write("rows.csv", csv(300, |a, b| (6.0 * a).sin() + 0.1 * b));
    let output = folder.run("fit rows.csv --out run --steps 20");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Gaussian, full") && said.contains("chosen"), "{said}");
    let metrics = folder.read("run/metrics.jsonl");
    let first: Value = serde_json::from_str(metrics.lines().next().expect("a line")).expect("an object");
    assert_eq!(first["step"], 0);
    let best = first["ladder"]["best"].as_u64().expect("a number") as usize;
    let rung = first["ladder"]["rungs"][best]["log_prob"].as_f64().expect("a number");
    let nll = first["val_nll"].as_f64().expect("a number");
    // the maps of the columns are the same for all rows, or nearly
    assert!((rung + nll).abs() < 1e-3 * nll.abs().max(1.0), "{rung} and {nll}");
    // the defaults are written as numbers, with the base that was chosen; the run goes on
    let config = folder.read("run/config.toml");
    assert!(config.contains("[flow.base.mixture]") || config.contains("base = { mixture"), "{config}");
    assert!(config.contains("patience = 10") && config.contains("start = \"identity\""), "{config}");
    folder.succeed("fit rows.csv --out run --resume --steps 30");
    assert!(folder.read("run/metrics.jsonl").starts_with("{\"step\":0,"));
    assert!(folder.read("run/report.html").contains("mixture of"));
    // one setting in a file changes one setting
    folder.write("one.toml", "[train]\nbatch = 32\n");
    folder.succeed("fit rows.csv --out other --steps 20 --config one.toml");
    let differs: Vec<_> = folder
        .read("other/config.toml")
        .lines()
        .zip(config.lines())
        .skip(1)
        .filter(|(a, b)| a != b)
        .map(|(a, _)| a.to_owned())
        .collect();
    assert_eq!(differs, ["batch = 32"]);
}

#[test]
fn the_library_makes_the_same_model() {
    let folder = Folder::new();
    folder.write("rows.csv", csv(200, |a, b| (6.0 * a).sin() + 0.1 * b));
    folder.write("sum.csv", csv(200, |a, b| a + b));
    let table = |name: &str| resflow::data::read(folder.path(name)).expect("a table");
    for (family, options) in [(Family::Residual, ""), (Family::Nsf, " --model nsf")] {
        let out = family.name();
        folder.succeed(&format!("fit rows.csv --out {out} --steps 30 --seed 3{options}"));
        let program = Model::load(folder.path(out).join("model.safetensors")).expect("a model");
        let rows = table("rows.csv");
        let library = Fit::new().family(family).steps(30).seed(3).run(&rows).expect("a model");
        assert_eq!(program.config(), library.config());
        assert_eq!(program.provenance().ladder, library.provenance().ladder);
        assert_eq!(program.provenance().validation_nll, library.provenance().validation_nll);
        assert_eq!(program.log_prob(&rows).expect("log p"), library.log_prob(&rows).expect("log p"));
        // which of the rows were trained on, too; single precision may exchange neighbours
        let percentiles = |model: &Model| model.percentile(&rows).expect("percentiles");
        let apart = &percentiles(&program) - &percentiles(&library);
        assert!(apart.iter().all(|p| p.abs() < 2.0), "{apart}");
    }
    // and refuses what the program refuses, in the same words
    let refused = Fit::new().run(table("sum.csv")).expect_err("a plane").to_string();
    let said = folder.fail("fit sum.csv --out plane", 2);
    assert!(said.contains(&refused), "{said}: {refused}");
}

#[test]
fn families_race() {
    let folder = Folder::new();
    folder.write("rows.csv", csv(200, |a, b| (6.0 * a).sin() + 0.1 * b));
    folder.write("small.toml", "[flow]\nblocks = 2\nhidden = [8]\n");
    let line = "fit rows.csv --out auto --model auto --config small.toml --steps 120";
    let output = folder.run(line);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("residual ") && said.contains("nsf "), "{said}");
    let winner = if said.contains("; nsf goes on") { "nsf" } else { "residual" };
    assert!(said.contains(&format!("; {winner} goes on")), "{said}");
    assert!(folder.read("auto/config.toml").contains(&format!("model = \"{winner}\"")));
    folder.succeed("fit rows.csv --out auto --model auto --resume --steps 130");
    folder.write("named.toml", "[flow]\nmodel = \"glow\"\n");
    let error = folder.fail("fit rows.csv --out other --model auto --config named.toml", 2);
    assert!(error.contains("--model auto: named.toml says model = \"glow\""), "{error}");
    let error = folder.fail("fit rows.csv --out other --model glaw", 2);
    assert!(error.contains("there is no model `glaw`"), "{error}");
}
