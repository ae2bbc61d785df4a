//! `score` of a table's model: where rows stand among those of the training, and which are outliers.

use serde_json::Value;

use crate::binary::{Folder, csv};

fn fitted() -> Folder {
    let folder = Folder::new();
    folder.write("data.csv", csv(300));
    folder.succeed("fit data.csv --out run --config tiny.toml");
    folder
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("one object")
}

#[test]
fn rows_are_placed_among_the_training_rows() {
    let folder = fitted();
    let score = json(&folder.succeed("score run data.csv --out s.csv --json --contamination 0.05"));
    let (header, rows) = folder.table("s.csv");
    assert_eq!(header, "log_prob,se,percentile,outlier");
    // the others of the 300 rows are held out
    assert!(score["training_rows"].as_u64().is_some_and(|n| (150..300).contains(&n)), "{score}");
    let mut by_score = rows.clone();
    by_score.sort_by(|a, b| a[0].total_cmp(&b[0]));
    assert!(by_score.windows(2).all(|pair| pair[0][2] <= pair[1][2]), "the likelier row has the higher percentile");
    assert_eq!((by_score[299][2] >= 99.0, by_score[0][2]), (true, 0.0));
    let mean = rows.iter().map(|r| r[2]).sum::<f64>() / 300.0;
    assert!((mean - 50.0).abs() < 5.0, "most rows are the training rows themselves: {mean}");

    let threshold = score["threshold"].as_f64().expect("a threshold");
    let flagged = rows.iter().filter(|r| r[3] == 1.0).count();
    assert!((10..=25).contains(&flagged), "a twentieth of the rows, about: {flagged}");
    assert_eq!(score["outlier_count"], flagged);
    for row in &rows {
        assert_eq!(row[3] == 1.0, row[2] < 5.0);
        assert!((row[3] == 1.0) == (row[0] < threshold) || (row[0] - threshold).abs() < 0.5, "{row:?}");
    }
    assert!(score["outlier_fraction_held_out"].as_f64().is_some_and(|f| (0.0..0.5).contains(&f)), "{score}");
    let words = folder.succeed("score run data.csv --contamination 0.05");
    assert!(words.contains("percentile  median") && words.contains("of those held out"), "{words}");

    // a row that is like none
    folder.write("far.csv", "length,width,height\n1e4,50,9\n");
    folder.succeed("score run far.csv --out far_scores.csv --contamination 0.001");
    assert_eq!(folder.table("far_scores.csv").1[0][2..], [0.0, 1.0]);
    folder.succeed("score run far.csv --out plain.csv");
    assert_eq!(folder.table("plain.csv").0, "log_prob,se,percentile");
}

#[test]
fn inspect_shows_a_few_percentiles() {
    let folder = fitted();
    let inspected = json(&folder.succeed("inspect run --json"));
    let score = json(&folder.succeed("score run data.csv --json --contamination 0.05"));
    let scores = &inspected["provenance"]["scores"];
    for rows in ["training", "validation"] {
        let shown = &scores[rows];
        assert!(shown["values"].is_null() && shown["rows"].as_u64().is_some_and(|n| n > 0), "{shown}");
        let percentiles: Vec<f64> = ["0", "1", "5", "25", "50", "75", "95", "99", "100"]
            .iter()
            .map(|percent| shown["percentiles"][percent].as_f64().expect("a score"))
            .collect();
        assert!(percentiles.is_sorted() && percentiles[0] < percentiles[8], "{shown}");
    }
    assert_eq!(scores["training"]["rows"], score["training_rows"]);
    assert_eq!(scores["training"]["percentiles"]["5"], score["threshold"]);
}

#[test]
fn what_cannot_be_flagged_is_refused() {
    let folder = fitted();
    for wrong in ["0", "1", "-0.1", "5%", "nan"] {
        assert!(folder.fail(&format!("score run data.csv --contamination {wrong}"), 2).contains("fraction"), "{wrong}");
    }
    // a run's state has the weights alone
    let error = folder.fail("score run/checkpoint.safetensors data.csv --contamination 0.1", 2);
    assert!(error.contains("does not know the scores") && error.contains("--resume"), "{error}");
    folder.succeed("score run/checkpoint.safetensors data.csv --out s.csv");
    assert_eq!(folder.table("s.csv").0, "log_prob,se");
}

#[test]
fn scores_do_not_depend_on_threads() {
    let folder = fitted();
    let model = |run: &str| std::fs::read(folder.path(run).join("model.safetensors")).expect("a model");
    folder.succeed("fit data.csv --out one --config tiny.toml --threads 1");
    assert!(model("run") == model("one"));
}

#[test]
fn samples_have_the_names_of_the_data() {
    let folder = Folder::new();
    let data = csv(100).replacen("length,width,height", "\"a, b\",\"say \"\"hi\"\"\",ü €", 1);
    folder.write("data.csv", data);
    folder.succeed("fit data.csv --out run --config tiny.toml");
    folder.succeed("sample run -n 20 --out s.csv");
    assert!(folder.read("s.csv").starts_with("\"a, b\",\"say \"\"hi\"\"\",ü €\n"));
    folder.succeed("score run s.csv");
}
