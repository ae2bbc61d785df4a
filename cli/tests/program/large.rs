//! Tables that stay in their file, through the program: the same models, scores and latents wherever the rows are, in order, in bounded
//! memory; and what is damaged or changes is found out.

use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use crate::binary::{Folder, TINY, assert_same, start, text, wait_for};
use resflow::data::npy::RowWriter;

/// A file of `width` columns, the values of which are those of single precision.
pub(crate) fn write(path: &Path, rows: usize, width: usize) {
    let out = BufWriter::new(std::fs::File::create(path).expect("a writable directory"));
    let mut writer = RowWriter::new(rows, width, out).expect("written");
    let mut row = vec![0.0; width];
    for i in 0..rows {
        values(i, &mut row);
        writer.write(&row).expect("written");
    }
    writer.finish().expect("all rows").flush().expect("written");
}

fn values(i: usize, row: &mut [f64]) {
    let mut state = i as u64;
    let mut sum = 0.0_f32;
    for value in row {
        state = (state ^ state >> 30).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let uniform = (state >> 40) as f32 / (1 << 24) as f32;
        sum = 0.5 * sum + uniform * uniform;
        *value = f64::from(sum);
    }
}

/// The same rows as text, without names.
pub(crate) fn csv(rows: usize, width: usize) -> String {
    let mut out = String::new();
    let mut row = vec![0.0; width];
    for i in 0..rows {
        values(i, &mut row);
        let cells: Vec<String> = row.iter().map(|v| format!("{v:?}")).collect();
        let _ = writeln!(out, "{}", cells.join(","));
    }
    out
}

/// The lines of a file as numbers, behind its header.
fn close(a: &Folder, one: &str, other: &str) {
    let (one, other) = (a.table(one), a.table(other));
    assert!(one.0 == other.0 && one.1.len() == other.1.len());
    for (row, (a, b)) in one.1.iter().zip(&other.1).enumerate() {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * (1.0 + a.abs());
        assert!(a.iter().zip(b).all(near), "row {row}: {a:?} and {b:?}");
    }
}

#[test]
fn rows_in_a_file_are_rows_in_memory() {
    let folder = Folder::new();
    // several pieces, so that their order tells
    let (rows, width) = (12_000, 50);
    write(&folder.path("rows.npy"), rows, width);
    write(&folder.path("small.npy"), 20, 3);
    folder.write("rows.csv", csv(rows, width));
    folder.write("plain.toml", format!("{TINY}fit_base = false\n"));
    let fit = "--config plain.toml --model realnvp --large 500000";
    let told = folder.run(&format!("fit rows.npy --out streamed --seed 3 {fit}"));
    assert!(told.status.success(), "{}", text(&told.stderr));
    assert!(text(&told.stderr).contains("12000 rows of 50 numbers, which stay in the file"), "{}", text(&told.stderr));
    folder.succeed(&format!("fit rows.csv --out resident --seed 3 {fit}"));
    assert_same(&folder.path("streamed"), &folder.path("resident"));
    assert!(folder.read("streamed/config.toml").contains("fit rows.npy --large 500000"));
    // and resumed, whatever is called large then
    folder.succeed("fit rows.npy --out streamed --resume --steps 60");
    folder.succeed("fit rows.csv --out resident --resume --steps 60");
    assert_same(&folder.path("streamed"), &folder.path("resident"));
    folder.succeed("report streamed rows.npy --out again.html");
    assert!(!folder.read("again.html").contains("other rows than the model was trained on"));
    // one that was not large stays so
    folder.succeed("fit rows.npy --out small --config tiny.toml --model realnvp --steps 5");
    folder.succeed("fit rows.npy --out small --resume --large 10 --steps 8");

    for large in [10, 100_000_000] {
        let told =
            folder.succeed(&format!("score streamed rows.npy --out s{large}.csv --contamination 0.02 --large {large}"));
        assert!(told.contains("12000 rows") && told.contains("outliers    "), "{told}");
        folder.succeed(&format!("encode streamed rows.npy --out z{large}.csv --log-det l{large}.csv --large {large}"));
        folder.succeed(&format!("encode streamed rows.npy --out z{large}.npy --large {large}"));
    }
    close(&folder, "s10.csv", "s100000000.csv");
    close(&folder, "z10.csv", "z100000000.csv");
    close(&folder, "l10.csv", "l100000000.csv");
    let array = |name: &str| resflow::data::npy::read(&std::fs::read(folder.path(name)).expect("written")).expect("z");
    let (streamed, resident) = (array("z10.npy"), array("z100000000.npy"));
    assert!(streamed.values().iter().zip(resident.values()).all(|(a, b)| (a - b).abs() < 1e-4));
    // and back
    for large in [10, 100_000_000] {
        let decode = format!("decode streamed z10.npy --large {large}");
        folder.succeed(&format!("{decode} --out x{large}.csv --log-det m{large}.csv"));
        folder.succeed(&format!("{decode} --out x{large}.npy"));
    }
    close(&folder, "x10.csv", "x100000000.csv");
    close(&folder, "m10.csv", "m100000000.csv");
    let (streamed, resident) = (array("x10.npy"), array("x100000000.npy"));
    assert!(streamed.values().len() == rows * width);
    assert!(streamed.values().iter().zip(resident.values()).all(|(a, b)| (a - b).abs() < 1e-4));
    for large in [10, 100_000_000] {
        let fewer = folder.fail(&format!("decode streamed small.npy --large {large} --out no.csv"), 1);
        assert!(fewer.contains("the data has 3 columns, the model is for 50"), "{fewer}");
    }
    let json = |large: usize| -> serde_json::Value {
        let line = format!("score streamed rows.npy --json --contamination 0.02 --large {large}");
        serde_json::from_str(&folder.succeed(&line)).expect("an object")
    };
    let (streamed, resident) = (json(10), json(100_000_000));
    for (key, value) in resident.as_object().expect("an object") {
        let other = &streamed[key];
        match (value.as_f64(), other.as_f64()) {
            _ if key == "seconds" => {}
            (Some(a), Some(b)) => assert!(
                (a - b).abs() <= 1e-4 * (1.0 + a.abs()) + 0.01 * f64::from(key.starts_with("median")),
                "{key}: {a} and {b}"
            ),
            _ => assert_eq!(value, other, "{key}"),
        }
    }
}

/// The most memory that a command took, in bytes.
#[cfg(target_os = "linux")]
pub(crate) fn peak(folder: &Folder, line: &str) -> u64 {
    let mut child = start(folder, line);
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        let found = std::fs::read_to_string(&status).unwrap_or_default();
        let own = found.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(own.unwrap_or(0));
        if let Some(ended) = child.try_wait().expect("a child") {
            break ended;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    assert!(ended.success(), "{line}: {}", text(&child.wait_with_output().expect("ended").stderr));
    most << 10
}

/// A table of 300 MB.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded() {
    let folder = Folder::new();
    let (rows, width) = (600_000, 64);
    write(&folder.path("rows.npy"), rows, width);
    assert!(std::fs::metadata(folder.path("rows.npy")).expect("there").len() > 300_000_000);
    let mega = |bytes: u64| bytes / 1_000_000;
    folder.write("plain.toml", format!("{TINY}fit_base = false\n"));
    let fit = peak(&folder, "fit rows.npy --out run --config plain.toml --model realnvp --threads 1");
    let score = peak(&folder, "score run rows.npy --out scores.csv --threads 1");
    let encode = peak(&folder, "encode run rows.npy --out z.npy --threads 1");
    for (what, peak) in [("fit", fit), ("score", score), ("encode", encode)] {
        assert!(peak < 100_000_000, "{what}: {} MB", mega(peak));
    }
    assert_eq!(folder.read("scores.csv").lines().count(), rows + 1);
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let folder = Folder::new();
    let path = folder.path("rows.npy");
    write(&path, 2000, 3);
    let good = std::fs::read(&path).expect("there");
    let start_of = good.len() - 2000 * 3 * 8;
    let fit = "fit rows.npy --out run --config tiny.toml --model realnvp --large 100";
    let changed = |at: usize, value: f64| {
        let mut bytes = good.clone();
        bytes[start_of + 8 * at..][..8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    // row 1001, column 3, in a fit and where it is scored
    std::fs::write(&path, changed(3002, f64::NAN)).expect("written");
    let told = folder.fail(fit, 1);
    assert!(told.contains("row 1001, column 3") && told.contains("rows.npy"), "{told}");
    folder.write("good.npy", &good);
    folder.succeed(&fit.replace("rows.npy", "good.npy"));
    for command in ["score run rows.npy --large 100", "encode run rows.npy --out z.csv --large 100"] {
        let told = folder.fail(command, 1);
        assert!(told.contains("row 1001, column 3") && told.contains("rows.npy"), "{told}");
    }
    assert!(!folder.path("z.csv").exists());
    std::fs::write(&path, &good[..good.len() - 1]).expect("written");
    assert!(folder.fail(&fit.replace("--out run", "--out cut"), 1).contains("cut short"));
    // rows that are left out, and what is beside rows, are sought in memory
    std::fs::write(&path, changed(3002, f64::NAN)).expect("written");
    let told = folder.run(&fit.replace("--out run", "--out dropped --missing drop-rows"));
    assert!(told.status.success() && text(&told.stderr).contains("read into memory"), "{}", text(&told.stderr));
    // other formats than those that are written as they come
    let told = folder.fail("score run good.npy --large 100 --out scores.parquet", 2);
    assert!(told.contains(".csv"), "{told}");

    // a file that is written anew while a run reads it
    folder.write("long.toml", format!("{TINY}validate_every = 10\npatience = 0\n"));
    let long = "fit good.npy --out changing --config long.toml --model realnvp --large 100 --steps 1000000";
    let child = start(&folder, long);
    let metrics = folder.path("changing/metrics.jsonl");
    let steps = || std::fs::read_to_string(&metrics).unwrap_or_default().lines().count();
    wait_for("some steps", || steps() > 3);
    std::fs::write(folder.path("good.npy"), changed(10, 0.5)).expect("written");
    let ended = child.wait_with_output().expect("an end");
    let told = text(&ended.stderr);
    assert!(ended.status.code() == Some(1) && told.contains("changed while it was in use"), "{told}");
}
