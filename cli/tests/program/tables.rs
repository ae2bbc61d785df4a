//! Tables as people have them, through the program: read as they come, matched by name, from and into pipes, and never
//! overwritten.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Output, Stdio};

use crate::binary::{Folder, csv, start, text, wait_for};
use serde_json::Value;

/// A folder with the run `base` over the columns of [`csv`].
fn base() -> Folder {
    let folder = Folder::new();
    folder.write("plain.csv", csv(80));
    folder.succeed("fit plain.csv --out base --config tiny.toml --steps 10");
    folder
}

pub(crate) fn mean(output: &str) -> f64 {
    let object: Value = serde_json::from_str(output).expect("one object");
    object["mean_log_prob"].as_f64().expect("a number")
}

pub(crate) fn with_input(folder: &Folder, line: &str, input: &[u8]) -> Output {
    let mut command = folder.command(line);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    child.stdin.take().expect("a pipe").write_all(input).expect("the program reads");
    child.wait_with_output().expect("an end")
}

#[test]
fn variants_of_a_file_score_the_same() {
    let folder = base();
    let plain = folder.read("plain.csv");
    let expected = mean(&folder.succeed("score base plain.csv --json"));
    let rows: Vec<Vec<&str>> = plain.lines().map(|line| line.split(',').collect()).collect();
    let join =
        |rows: &[Vec<&str>], separator: &str| rows.iter().map(|row| row.join(separator) + "\n").collect::<String>();
    let picked = |order: &[usize]| -> Vec<Vec<&str>> {
        rows.iter().map(|row| order.iter().map(|&i| row[i]).collect()).collect()
    };
    let indexed: String = plain
        .lines()
        .enumerate()
        .map(|(i, l)| if i == 0 { format!(",{l}\n") } else { format!("{},{l}\n", i - 1) })
        .collect();
    let identified: String = plain
        .lines()
        .enumerate()
        .map(|(i, l)| if i == 0 { format!("{l},id\n") } else { format!("{l},row {i}\n") })
        .collect();
    for (name, contents, word) in [
        ("semicolons.csv", join(&rows, ";").replace('.', ","), "semicolons"),
        ("tabs.tsv", join(&rows, "\t"), "tabs"),
        ("blanks.txt", join(&rows, "   "), "blanks"),
        ("bars.data", join(&rows, "|"), "bars"),
        ("comments", format!("# made by rig 7\n{plain}"), "1 line with # left out"),
        ("excel.csv", format!("\u{feff}{}\r\n", plain.replace('\n', "\r\n")), ""),
        ("mac.csv", plain.replace('\n', "\r"), ""),
        ("trailing.csv", plain.replace('\n', ",\n"), "ends in a separator"),
        ("swapped.csv", join(&picked(&[2, 0, 1]), ","), ""),
        ("indexed.csv", indexed, ""),
        ("identified.csv", identified, "ignored: `id`"),
        ("bare.csv", join(&rows[1..], ","), "have no names"),
        ("savetxt.csv", format!("# {plain}"), "names are in the last"),
    ] {
        folder.write(name, &contents);
        let output = folder.run(&format!("score base {name} --json"));
        let said = text(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!((mean(&text(&output.stdout)) - expected).abs() < 1e-9, "{name}: {}", text(&output.stdout));
        assert!(said.contains(word), "{name}: {said}");
    }
    folder.succeed("encode base plain.csv --out a.csv");
    folder.succeed("encode base swapped.csv --out b.csv");
    assert_eq!(folder.read("a.csv"), folder.read("b.csv"));
    // foreign names
    folder.write("renamed.csv", plain.replace("length,width", "foo,bar"));
    for line in ["score base renamed.csv", "encode base renamed.csv --out c.csv"] {
        let error = folder.fail(line, 1);
        assert!(error.contains("`length`, `width`") && error.contains("--by-position"), "{error}");
        let output = folder.run(&format!("{line} --by-position"));
        assert!(output.status.success() && text(&output.stderr).contains("warning: renamed.csv"), "{line}");
    }
    assert_eq!(folder.read("a.csv"), folder.read("c.csv"));
}

#[test]
fn missing_values() {
    let folder = base();
    let plain = folder.read("plain.csv");
    for spelling in ["", "NA", "?", "null", "nan", "None", "-"] {
        let broken = |(i, line): (usize, &str)| match i {
            3 | 5 | 9 => format!("{},{spelling}\n", line.rsplit_once(',').expect("cells").0),
            _ => format!("{line}\n"),
        };
        folder.write("missing.csv", plain.lines().enumerate().map(broken).collect::<String>());
        for line in ["fit missing.csv --out m --config tiny.toml --steps 2", "score base missing.csv"] {
            let error = folder.fail(line, 1);
            assert!(
                error.contains("line 4, column 3 (`height`)") && error.contains("2 more like it (line 6, line 10)"),
                "{error}"
            );
            assert!(error.contains("missing") && error.contains("--missing drop-rows"), "{error}");
        }
    }
    let output = folder.run("score base missing.csv --missing drop --out scores.csv --json");
    let said = text(&output.stderr);
    assert!(said.contains("warning: missing.csv: 3 of 80 rows with missing values left out"), "{said}");
    let object: Value = serde_json::from_str(&text(&output.stdout)).expect("one object");
    assert_eq!((&object["rows"], &object["dropped_rows"]), (&77.into(), &3.into()));
    folder.succeed("score base plain.csv --out all.csv");
    let (scores, all) = (folder.table("scores.csv").1, folder.table("all.csv").1);
    assert_eq!((scores.len(), all.len()), (80, 80));
    for (i, (found, whole)) in scores.iter().zip(&all).enumerate() {
        let right = if [2, 4, 8].contains(&i) { found[0].is_nan() } else { (found[0] - whole[0]).abs() < 1e-4 };
        assert!(right, "row {i}");
    }
    folder.succeed("encode base missing.csv --missing drop-rows --out z.csv");
    let z = folder.table("z.csv").1;
    assert!(z.len() == 80 && z[2].iter().all(|v| v.is_nan()) && z[3].iter().all(|v| v.is_finite()));
    folder.succeed("fit missing.csv --missing drop-rows --out m --config tiny.toml --steps 2");
    assert!(folder.read("m/config.toml").starts_with("# resflow fit missing.csv --missing drop-rows --seed 0"));
}

#[test]
fn columns_that_are_chosen() {
    let folder = Folder::new();
    let mut cars = "name,day,sold,height,weight,same\n".to_owned();
    for (i, line) in csv(60).lines().skip(1).enumerate() {
        let (a, b) = line.rsplit_once(',').expect("cells").0.split_once(',').expect("cells");
        let _ = writeln!(cars, "\"car, {i}\",2020-01-{:02},{},{a},{b},3", i % 28 + 1, ["yes", "no"][i % 2]);
    }
    folder.write("cars.csv", &cars);
    let error = folder.fail("fit cars.csv --out c --config tiny.toml --steps 2", 1);
    assert!(
        // two words in sixty rows are categories, and no fault
        ["`name`", "`day`", "(`same`) is 3 in every row", "--drop name,day,same"].iter().all(|p| error.contains(p)),
        "{error}"
    );
    let summary = folder.succeed("fit cars.csv --drop name,day,sold,same --out c --config tiny.toml --steps 2");
    assert!(summary.contains("resflow score c cars.csv") || summary.contains("--drop name,day,sold,same"), "{summary}");
    folder.succeed("fit cars.csv --columns weight,height --out d --config tiny.toml --steps 2");
    for run in ["c", "d"] {
        // the model's columns are found among the others
        folder.succeed(&format!("score {run} cars.csv"));
    }
    folder.succeed("sample d -n 3 --out x.csv");
    assert_eq!(folder.table("x.csv").0, "weight,height");
    folder.succeed("score d x.csv");
    let error = folder.fail("fit cars.csv --columns weight,depth --out e", 2);
    assert!(error.contains("cars.csv: there is no column `depth`; there are `name`"), "{error}");
    assert!(folder.fail("fit moons --drop x --out e", 2).contains("moons"));
    // columns without names go by their numbers
    folder.write("bare.csv", csv(60).split_once('\n').expect("a header").1);
    folder.succeed("fit bare.csv --columns 3,1 --out f --config tiny.toml --steps 2");
    assert!(folder.fail("fit bare.csv --drop 4 --out g", 2).contains("no column `4`"));
}

#[test]
fn pipes() {
    let folder = base();
    let plain = folder.read("plain.csv");
    let expected = folder.succeed("score base plain.csv --json");
    let paths: &[&str] = if cfg!(target_os = "linux") { &["-", "/dev/stdin"] } else { &["-"] };
    for path in paths {
        let output = with_input(&folder, &format!("score base {path} --json"), plain.as_bytes());
        assert!(output.status.success(), "{path}: {}", text(&output.stderr));
        assert_eq!(mean(&text(&output.stdout)), mean(&expected), "{path}");
    }
    folder.succeed("score base plain.csv --out scores.csv");
    let scores = folder.read("scores.csv");
    let output = with_input(&folder, "score base - --out -", plain.as_bytes());
    assert_eq!(text(&output.stdout), scores, "nothing but the scores");
    assert!(text(&output.stderr).contains("mean log p"));
    for (line, header) in [
        ("sample base -n 3 --out -", "length,width,height\n"),
        ("encode base plain.csv --out -", "z1,z2,z3,log_det,se\n"),
    ] {
        let out = folder.succeed(line);
        assert!(out.starts_with(header) && !out.contains("rows"), "{line}: {out}");
    }
    let array = folder.run("sample base -n 3 --out - --format npy").stdout;
    assert!(array.starts_with(b"\x93NUMPY"));
    let z = folder.succeed("encode base plain.csv --out -");
    let output = with_input(&folder, "decode base - --out -", z.as_bytes());
    assert!(text(&output.stdout).starts_with("length,width,height,log_det,se\n"), "{}", text(&output.stderr));
    #[cfg(unix)]
    {
        // into a file by the device's name
        let file = std::fs::File::create(folder.path("scores.txt")).expect("a file");
        let status = folder.command("score base plain.csv --out /dev/stdout").stdout(file).status().expect("runs");
        assert!(status.success());
        assert_eq!(folder.read("scores.txt"), scores);
    }
}

#[test]
fn inputs_are_not_overwritten() {
    let folder = base();
    let plain = folder.read("plain.csv");
    let model = std::fs::read(folder.path("base/model.safetensors")).expect("a model");
    folder.write("m.safetensors", &model);
    folder.succeed("encode base plain.csv --out z.csv");
    let z = folder.read("z.csv");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path("plain.csv"), folder.path("link.csv")).expect("a link");
        std::fs::hard_link(folder.path("plain.csv"), folder.path("hard.csv")).expect("a link");
        for out in ["link.csv", "hard.csv"] {
            assert!(folder.fail(&format!("score base plain.csv --out {out}"), 2).contains("overwrite"), "{out}");
        }
    }
    for line in [
        "score base plain.csv --out plain.csv",
        "score base plain.csv --out ./plain.csv",
        "score base moons --outliers plain.csv --out plain.csv",
        "encode base plain.csv --out plain.csv",
        "encode base plain.csv --out y.csv --log-det plain.csv",
        "encode base plain.csv --out y.csv --log-det y.csv",
        "decode base z.csv --out z.csv",
        "score m.safetensors plain.csv --out m.safetensors",
        "import m.safetensors --config tiny.toml --out m.safetensors",
    ] {
        let error = folder.fail(line, 2);
        assert!(
            error.contains("overwrite") || error.contains("writes there too") || error.contains(".csv"),
            "{line}: {error}"
        );
    }
    std::fs::copy(folder.path("plain.csv"), folder.path("base/metrics.jsonl")).expect("a copy");
    let error = folder.fail("fit base/metrics.jsonl --out base --overwrite", 2);
    assert!(error.contains("overwrite base/metrics.jsonl"), "{error}");
    assert_eq!((folder.read("plain.csv"), folder.read("z.csv")), (plain, z));
    assert!(std::fs::read(folder.path("m.safetensors")).expect("a model") == model);
}

#[test]
fn a_run_that_is_being_written_is_left_alone() {
    let folder = Folder::new();
    folder.write("long.toml", crate::binary::TINY.replace("steps = 40", "steps = 1000000"));
    let mut child = start(&folder, "fit moons --out run --config long.toml");
    wait_for("a run that has begun", || folder.path("run/metrics.jsonl").is_file());
    for rest in ["", " --overwrite", " --resume"] {
        let error = folder.fail(&format!("fit moons --out run --config tiny.toml{rest}"), 2);
        assert!(error.contains(&format!("process {}", child.id())) && error.contains("run: another"), "{error}");
    }
    child.kill().expect("a process");
    child.wait().expect("an end");
    // no lock outlives its process
    folder.succeed("fit moons --out run --config tiny.toml --overwrite");
}
