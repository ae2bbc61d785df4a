//! `--weight COLUMN`: what the weights of rows change, what they do not, and which ones are refused.

use std::fmt::Write as _;

use resflow::data::image::{ImageSet, npy};
use serde_json::Value;

use crate::binary::{Folder, csv};

/// The table of [`csv`] with a column of weights before its last one.
fn weighted(rows: usize, weight: impl Fn(usize) -> f64) -> String {
    let mut out = String::new();
    for (i, line) in csv(rows).lines().enumerate() {
        let (before, last) = line.rsplit_once(',').expect("three columns");
        let own = if i == 0 { "events".to_owned() } else { weight(i - 1).to_string() };
        let _ = writeln!(out, "{before},{own},{last}");
    }
    out
}

fn object(text: &str) -> Value {
    serde_json::from_str(text).expect("one object")
}

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key}: {object}"))
}

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs().max(b.abs()), "{a} {b}");
}

#[test]
fn score_counts_rows_by_their_weights() {
    let folder = Folder::new();
    folder.write("data.csv", csv(60));
    folder.succeed("fit data.csv --out run --config tiny.toml");
    let score = |rest: &str| object(&folder.succeed(&format!("score run {rest} --json --precision f64")));

    // weight 2 is the row twice, weight 0 none
    let weight = |i: usize| (i % 4) as f64;
    folder.write("weighted.csv", weighted(60, weight));
    let mut repeated = String::new();
    for (i, line) in csv(60).lines().enumerate() {
        let times = if i == 0 { 1 } else { (i - 1) % 4 };
        repeated += &std::iter::repeat_n(line, times).flat_map(|line| [line, "\n"]).collect::<String>();
    }
    folder.write("repeated.csv", repeated);
    let found = score("weighted.csv --weight events --out scores.csv");
    let expected = score("repeated.csv");
    assert_close(number(&found, "mean_log_prob"), number(&expected, "mean_log_prob"));
    assert_eq!((&found["rows"], &expected["rows"], &found["weight"]), (&60.into(), &90.into(), &"events".into()));
    assert!(expected["weight"].is_null(), "{expected}");

    // what a row has does not depend on weights
    score("data.csv --out plain.csv");
    assert_eq!(folder.read("scores.csv"), folder.read("plain.csv"));
    let values: Vec<f64> = folder.table("scores.csv").1.iter().map(|row| row[0]).collect();
    let sum = |f: &dyn Fn(usize) -> f64| (0..60).map(f).sum::<f64>();
    let total = sum(&weight);
    let mean = sum(&|i| weight(i) * values[i]) / total;
    let effective = total * total / sum(&|i| weight(i) * weight(i));
    let variance = sum(&|i| weight(i) * (values[i] - mean).powi(2)) / total;
    assert_close(number(&found, "mean_log_prob"), mean);
    assert_close(number(&found, "effective_rows"), effective);
    assert_close(number(&found, "mean_log_prob_se"), (variance / (effective - 1.0)).sqrt());
    let said = folder.succeed("score run weighted.csv --weight events");
    assert!(said.contains("60 rows weighted by `events`, worth 38.6 of equal weight"), "{said}");
    assert!(!folder.succeed("score run data.csv").contains("weight"));

    // equal weights are none
    folder.write("equal.csv", weighted(60, |_| 2.0));
    let (equal, plain) = (score("equal.csv --weight events"), score("data.csv"));
    for key in ["mean_log_prob", "mean_log_prob_se", "mean_row_se"] {
        assert_close(number(&equal, key), number(&plain, key));
    }
    assert_close(number(&equal, "effective_rows"), 60.0);
}

#[test]
fn rows_of_no_weight_do_not_count() {
    let folder = Folder::new();
    // far away, and of no weight
    let far = "1e9,1e9,0,1e9\n".repeat(20);
    folder.write("data.csv", weighted(200, |i| 1.0 + (i % 3) as f64) + &far);
    let summary = folder.succeed("fit data.csv --out run --config tiny.toml --weight events");
    assert!(summary.contains("resflow score run data.csv --weight events"), "{summary}");
    let model = object(&folder.succeed("inspect run --json"));
    assert_eq!(model["columns"], serde_json::json!(["length", "width", "height"]));
    let mean: Vec<f64> = serde_json::from_value(model["standardisation"]["mean"].clone()).expect("numbers");
    assert!(mean.iter().all(|m| m.abs() < 100.0), "{mean:?}");
    folder.succeed("sample run -n 10 --out x.csv");
    assert_eq!(folder.table("x.csv").0, "length,width,height");

    folder.write("far.csv", "length,width,events,height\n7,0.1,1,0\n1e200,-1e300,0,1\n8,0.1,2,0\n");
    let score = object(&folder.succeed("score run far.csv --weight events --json"));
    assert_eq!(score["non_finite_rows"], 1);
    assert!(number(&score, "mean_log_prob").is_finite());
}

#[test]
fn a_run_with_weights_goes_on_with_them() {
    let folder = Folder::new();
    folder.write("data.csv", weighted(100, |i| (i % 5) as f64));
    folder.succeed("fit data.csv --out run --config tiny.toml --weight events --steps 20");
    assert!(folder.read("run/config.toml").starts_with("# resflow fit data.csv --weight events --seed 0"));
    let error = folder.fail("fit data.csv --out run --resume --steps 40", 2);
    assert!(error.contains("other data") && error.contains("--weight names their column"), "{error}");
    folder.write("other.csv", weighted(100, |i| (i % 3) as f64));
    assert!(folder.fail("fit other.csv --out run --resume --steps 40 --weight events", 2).contains("other data"));
    let summary = folder.succeed("fit data.csv --out run --resume --steps 40 --weight events");
    assert!(summary.contains(" 40 steps"), "{summary}");
}

#[test]
fn weights_that_are_refused() {
    let folder = Folder::new();
    folder.succeed("fit moons --out model --config tiny.toml --steps 2");
    folder.write("good.csv", "x,w,y\n1,1,2\n3,2,5\n4,1,4\n2,1,2\n");
    folder.write("negative.csv", "x,w,y\n1,1,2\n3,-1,5\n4,1,4\n");
    folder.write("nan.csv", "x,w,y\n1,1,2\n3,nan,5\n4,1,4\n");
    folder.write("zero.csv", "x,w,y\n1,0,2\n3,0,5\n4,-0,4\n");
    folder.write("bare.csv", "1,1,2\n3,2,5\n4,1,4\n");
    folder.write("lonely.csv", "w\n1\n2\n");
    let mut bytes = Vec::new();
    let set = ImageSet::new(2, 2, 1, vec![7; 12], None).expect("images");
    npy::write_bytes(&set, &mut bytes).expect("bytes");
    folder.write("images.npy", bytes);
    for (data, code, part) in [
        ("moons --weight w", 2, "--weight w: moons is a built-in density"),
        ("good.csv --weight v", 2, "--weight v: good.csv: there is no column `v`; there are `x`, `w`, `y`"),
        ("bare.csv --weight w", 2, "there is no column `w`: the columns have no names"),
        ("images.npy --weight w", 2, "--weight w: images.npy holds images"),
        ("lonely.csv --weight w", 2, "--weight w: lonely.csv has no other column"),
        ("negative.csv --weight w", 1, "--weight w: negative.csv: the weight of sample 2 is -1"),
        ("nan.csv --weight w", 1, "nan.csv: line 3, column 2 (`w`): the value is NaN"),
        ("zero.csv --weight w", 1, "--weight w: zero.csv: all weights are 0"),
    ] {
        for line in [format!("fit {data} --out run --config tiny.toml"), format!("score model {data}")] {
            let error = folder.fail(&line, code);
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(!folder.path("run").exists(), "{data}: nothing is written");
    }
    let error = folder.fail("score model good.csv --weight w --outliers circles", 2);
    assert!(error.contains("cannot be used with"), "{error}");
    folder.succeed("score model good.csv --weight w");
}

#[test]
fn a_column_of_weights_that_was_forgotten() {
    let folder = Folder::new();
    folder.write("data.csv", weighted(50, |_| 1.0));
    folder.succeed("fit data.csv --out run --config tiny.toml --steps 2 --weight events");
    // it is not the model's, and told to be ignored
    let output = folder.run("score run data.csv --out ignored.csv");
    let error = crate::binary::text(&output.stderr);
    assert!(
        output.status.success()
            && error.contains("note: data.csv: the model does not have")
            && error.contains("`events`"),
        "{error}"
    );
    folder.succeed("score run data.csv --weight events --out weighed.csv");
    assert_eq!(folder.read("ignored.csv"), folder.read("weighed.csv"));
    let renamed = folder.read("data.csv").replace("length,width", "a,b");
    folder.write("renamed.csv", renamed);
    let error = folder.fail("score run renamed.csv", 1);
    assert!(
        error.contains("the model's columns `length`, `width` are not there, but there are `a`, `b`, `events`"),
        "{error}"
    );
    folder.write("bare.csv", "1,2,3,4\n");
    let error = folder.fail("score run bare.csv", 1);
    assert!(error.contains("4 columns, the model is for 3") && !error.contains("--weight"), "{error}");
}
