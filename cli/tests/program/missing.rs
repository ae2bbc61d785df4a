//! Rows that lack values, through the program: learned from, scored and filled in; interrupted in either stage; and what is refused.

use std::fmt::Write as _;

use resflow::backend::{Key, Noise};
use serde_json::Value;

use crate::binary::{Folder, assert_same, start, text, wait_for};

/// Columns a, b and n: b = 10 + 2a + 0.5 e, n = round(3 + a + e') on the whole numbers, of which a fifth is missing in many spellings; no
/// row lacks everything.
fn survey(rows: usize, seed: u64, holes: bool) -> String {
    let (mut numbers, mut chance) = (vec![0.0_f64; 3 * rows], vec![0.0_f64; 3 * rows]);
    Noise::Normal.fill(Key::new(seed), 0, &mut numbers);
    Noise::Uniform.fill(Key::new(seed).named("holes"), 0, &mut chance);
    let spellings = ["", "NA", "NaN", "?", "null", "-"];
    (0..rows).fold("a,b,n\n".to_owned(), |mut text, i| {
        let e = &numbers[3 * i..3 * i + 3];
        let values = [
            format!("{:?}", e[0]),
            format!("{:?}", 10.0 + 2.0 * e[0] + 0.5 * e[1]),
            format!("{:?}", (3.0 + e[0] + e[2]).round()),
        ];
        let cell = |j: usize| {
            let missing = holes && chance[3 * i + j] < 0.25 && j != i % 3;
            if missing { spellings[(i + j) % spellings.len()].to_owned() } else { values[j].clone() }
        };
        let _ = writeln!(text, "{},{},{}", cell(0), cell(1), cell(2));
        text
    })
}

const SMALL: &str = "[flow]\nblocks = 1\nhidden = [16]\n[train]\nsteps = 300\n";

fn json(output: &str) -> Value {
    serde_json::from_str(output).expect("one object")
}

/// The cells of a file as they are written; empty and worded ones are missing.
fn cells(text: &str) -> Vec<Vec<Option<f64>>> {
    let cell = |cell: &str| cell.parse::<f64>().ok().filter(|x| !x.is_nan());
    text.lines().skip(1).map(|line| line.split(',').map(cell).collect()).collect()
}

/// Everything on one run: a fit takes seconds. What b is given a has a deviation of 0.5, by far less than its own of 2.06.
#[test]
fn rows_that_lack_values() {
    let folder = Folder::new();
    folder.write("survey.csv", survey(600, 1, true));
    folder.write("new.csv", survey(200, 2, true));
    folder.write("whole.csv", survey(200, 2, false));
    folder.write("small.toml", SMALL);
    let found = json(&folder.succeed("look survey.csv --json"));
    let missing: Vec<u64> = found["missing"].as_array().expect("counts").iter().filter_map(Value::as_u64).collect();
    assert!(missing.iter().all(|count| (60..160).contains(count)), "{found}");
    let looked = folder.succeed("look survey.csv");
    assert!(looked.contains("missing, in") && looked.contains("--impute"), "{looked}");
    let error = folder.fail("fit survey.csv --out run --config small.toml", 1);
    assert!(error.contains("--missing drop-rows") && error.contains("--impute"), "{error}");

    let output = folder.run("fit survey.csv --out run --config small.toml --impute");
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert!(
        said.contains("resflow impute run survey.csv") && said.contains("resflow score run survey.csv\n"),
        "{said}"
    );
    assert!(told.contains("cells missing, in") && told.contains("imputer: validation nll"), "{told}");
    assert!(folder.read("run/config.toml").starts_with("# resflow fit survey.csv --impute --seed 0"));
    let inspected = folder.succeed("inspect run");
    assert!(inspected.contains("missing values") && inspected.contains("imputer (nsf)"), "{inspected}");
    assert!(
        json(&folder.succeed("inspect run --json"))["provenance"]["data"]
            .as_str()
            .expect("words")
            .contains("cells missing")
    );
    assert!(folder.read("run/report.html").contains("600"));

    // what rows lack is not counted against them
    let scored = json(&folder.succeed("score run new.csv --out scores.csv --json"));
    let lacking = cells(&folder.read("new.csv"));
    let count = lacking.iter().flatten().filter(|cell| cell.is_none()).count();
    assert_eq!(scored["missing_cells"].as_u64(), Some(count as u64));
    assert!(scored["least_effective_draws"].as_f64().expect("a number") >= 1.0, "{scored}");
    let (header, rows) = folder.table("scores.csv");
    assert_eq!(header, "log_prob,se,percentile,missing,effective_draws");
    let whole = folder.succeed("score run whole.csv --out whole_scores.csv --json");
    assert!(json(&whole)["missing_cells"].is_null(), "{whole}");
    let (_, whole) = folder.table("whole_scores.csv");
    for (i, (row, lacking)) in rows.iter().zip(&lacking).enumerate() {
        let lacks = lacking.iter().filter(|cell| cell.is_none()).count();
        assert_eq!(row[3], lacks as f64);
        assert!(row[0].is_finite() && (row[2].is_nan(), row[4].is_nan()) == (lacks > 0, lacks == 0), "{row:?}");
        if lacks == 0 {
            assert!((row[0] - whole[i][0]).abs() < 1e-3 * whole[i][0].abs().max(1.0), "{row:?}, {:?}", whole[i]);
        }
    }
    let said = folder.succeed("score run new.csv");
    assert!(said.contains(&format!("rows lack {count} values")), "{said}");
    let more = json(&folder.succeed("score run new.csv --draws 256 --json"));
    let apart = (more["mean_log_prob"].as_f64().expect("one") - scored["mean_log_prob"].as_f64().expect("one")).abs();
    assert!(more["draws"] == 256 && apart < 0.1, "{more}");

    // only what is missing changes, and it is near the truth where that is known nearly
    folder.succeed("impute run new.csv --out filled.csv");
    folder.succeed("impute run new.csv --out mean.csv --mean");
    folder.succeed("impute run new.csv --out median.csv --median -n 51");
    let said = folder.succeed("impute run new.csv --out five.csv -n 5 --seed 3");
    assert!(said.contains(&format!("filled in {count} values")) && said.contains("5 times each"), "{said}");
    let truth = cells(&folder.read("whole.csv"));
    for (name, each) in [("filled.csv", 1), ("mean.csv", 1), ("median.csv", 1), ("five.csv", 5)] {
        let text = folder.read(name);
        assert!(text.starts_with(if each > 1 { "draw,a,b,n\n" } else { "a,b,n\n" }), "{text}");
        let filled = cells(&text);
        assert_eq!(filled.len(), 200 * each);
        let (mut squares, mut others) = (0.0, 0.0);
        for (k, row) in filled.iter().enumerate() {
            let (i, row) = (k / each, if each > 1 { &row[1..] } else { &row[..] });
            if each > 1 {
                assert_eq!(filled[k][0], Some((k % each + 1) as f64));
            }
            for j in 0..3 {
                let value = row[j].expect("filled in");
                assert!(lacking[i][j].is_none_or(|own| own == value), "row {i}: {row:?}");
                assert!(j < 2 || name == "mean.csv" || value.fract() == 0.0, "row {i}: {row:?}");
            }
            if let (Some(_), None) = (lacking[i][0], lacking[i][1]) {
                squares += (row[1].expect("filled in") - truth[i][1].expect("the truth")).powi(2);
                others += (truth[i][1].expect("the truth") - 10.0).powi(2);
            }
        }
        // a draw is off by the deviation twice, in squares 0.5 of 4.25; the mean once
        assert!(squares < 0.4 * others, "{name}: {squares} of {others}");
    }
    assert_ne!(folder.read("filled.csv"), folder.read("mean.csv"));
    folder.succeed("impute run new.csv --out again.csv");
    assert_eq!(folder.read("filled.csv"), folder.read("again.csv"));

    refuses(&folder);
}

/// What is refused beside a run of rows that lack values, and what is not.
fn refuses(folder: &Folder) {
    // rows without any value are possible and say nothing
    folder.write("empty.csv", "a,b,n\n,,\n0,,\n");
    let output = folder.run("impute run empty.csv --out out.csv");
    assert!(output.status.success() && text(&output.stderr).contains("1 of 2 rows have no value at all"));
    folder.succeed("score run empty.csv --out out.csv");
    assert_eq!(folder.table("out.csv").1[0][..2], [0.0, 0.0]);
    folder.succeed("sample run -n 10 --out samples.csv");

    for (line, code, words) in [
        ("score run new.csv --missing refuse", 1, "--missing drop-rows"),
        ("score run new.csv --estimator roulette:law=poisson,rate=2,exact=2", 2, "--estimator exact"),
        ("encode run new.csv --out z.csv", 1, "--missing drop-rows"),
        ("impute run new.csv --out filled.txt", 2, ".csv"),
        ("impute run new.csv --out new.csv", 2, "new.csv"),
        ("impute run new.csv --out filled.csv --mean --median", 2, "cannot be used with"),
        ("fit survey.csv --impute --out other --given a", 2, "cannot be used with"),
        ("fit survey.csv --impute --out other --missing drop-rows", 2, "cannot be used with"),
        ("fit survey.csv --impute --out other --model auto", 2, "--model auto"),
        ("fit moons --impute --out other", 2, "--impute is for tables"),
        ("fit survey.csv --impute --out run --resume --seed 5", 2, "has seed 0"),
        ("fit survey.csv --impute --out run", 2, "a run is there already"),
    ] {
        let error = folder.fail(line, code);
        assert!(error.contains(words), "{line}: {error}");
    }
    folder.write("hollow.csv", "a,b,n\n1,,2\n,,\n3,,1\n");
    let error = folder.fail("fit hollow.csv --impute --out other", 1);
    assert!(error.contains("column 2 (`b`)") && error.contains("no cell was seen"), "{error}");
    assert!(!folder.path("other").exists());
    folder.succeed("fit whole.csv --out plain --config small.toml --steps 5");
    let error = folder.fail("impute plain new.csv --out filled.csv", 2);
    assert!(error.contains("knows no missing values"), "{error}");
    let error = folder.fail("score plain new.csv", 1);
    assert!(error.contains("--impute"), "{error}");
}

/// Killed in either stage, a run ends with the bits of one that was not.
#[test]
fn kills_in_either_stage_change_nothing() {
    let folder = Folder::new();
    folder.write("survey.csv", survey(200, 1, true));
    folder.write("small.toml", SMALL.replace("steps = 300", "steps = 200\npatience = 0"));
    let line = |run: &str| format!("fit survey.csv --impute --out {run} --config small.toml --precision f64");
    folder.succeed(&line("whole"));
    // in the first stage, as soon as it has begun; in the second, as soon as that has
    let mut child = start(&folder, &line("run"));
    let checkpoint = folder.path("run/checkpoint.safetensors");
    wait_for("a checkpoint", || checkpoint.exists());
    child.kill().expect("a child to kill");
    child.wait().expect("a child");
    assert!(!folder.path("run/metrics.jsonl").exists(), "killed in the first stage");
    folder.succeed("inspect run/checkpoint.safetensors");
    let mut child = start(&folder, &(line("run") + " --resume"));
    // when the untrained model has been validated, before or after the first step's checkpoint
    let begun = || std::fs::metadata(folder.path("run/metrics.jsonl")).is_ok_and(|file| file.len() > 0);
    wait_for("the second stage", begun);
    child.kill().expect("a child to kill");
    child.wait().expect("a child");
    folder.succeed(&(line("run") + " --resume"));
    assert_same(&folder.path("whole"), &folder.path("run"));
    let error = folder.fail("fit survey.csv --out run --missing drop-rows --resume", 2);
    assert!(error.contains("it is a run of --impute"), "{error}");
}

/// The time limit is that of both stages together.
#[test]
fn a_time_limit_is_divided() {
    let folder = Folder::new();
    folder.write("survey.csv", survey(300, 1, true));
    let begin = std::time::Instant::now();
    folder.succeed("fit survey.csv --impute --out run --time-limit 6");
    // an estimate of the end's cost on a busy machine may be off by its own length
    assert!(begin.elapsed().as_secs_f64() < 30.0, "{:?}", begin.elapsed());
    folder.succeed("impute run survey.csv --out filled.csv");
}
