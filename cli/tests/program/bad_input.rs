//! Whatever is wrong with the input: exit code 1 or 2, a message that says what and where, and no panic.

use crate::binary::{self, Folder, TINY};

#[test]
fn data() {
    let folder = Folder::new();
    for (contents, part) in [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n1\n", "line 3 has 1 cell"),
        ("a,b\n1,2\n3,NaN\n", "line 3, column 2 (`b`)"),
        ("a,b\n1,2\n-inf,4\n", "line 3, column 1 (`a`)"),
        ("a,b\n1,2\n3,four\n", "`four` is not a number"),
        ("a,b\n1,2\n3,\n", "the cell is empty"),
        ("a,b\n1,2\n2,2\n3,2\n4,2\n", "column 2 (`b`) is 2 in every row"),
        ("a,b\n1,2\n", "at least 2 are needed"),
        ("a,b\n1,2\n3,4\n", "at least 2 are needed"),
        ("\u{0}\u{1}\u{2}", "no rows"),
    ] {
        folder.write("data.csv", contents);
        let error = folder.fail("fit data.csv --out run --config tiny.toml", 1);
        assert!(error.contains(part), "{contents:?}: {error}");
        assert!(error.contains("data.csv"), "{contents:?}: {error}");
        assert!(!folder.path("run").exists(), "{contents:?}: nothing is written for data that cannot be used");
    }
    folder.write("data.npy", b"\x93NUMPY\x01\x00v\x00not a header");
    assert!(folder.fail("fit data.npy --out run", 1).contains("data.npy"));
    folder.write("data.html", "<!DOCTYPE html>\n<html>not found</html>\n");
    assert!(folder.fail("fit data.html --out run", 1).contains("data.html: the file is a web page"));
}

#[test]
fn names_and_numbers_on_the_command_line() {
    let folder = Folder::new();
    let error = folder.fail("fit checkerbord --out run", 2);
    assert!(error.contains("file not found") && error.contains("checkerboard, 2spirals, moons"), "{error}");
    for (line, part) in [
        ("fit moons", "--out"),
        ("fit missing.csv --out run", "file not found"),
        ("fit moons --out run --config missing.toml", "missing.toml"),
        ("fit moons --out run --steps 0", "--steps"),
        ("fit moons --out run --steps -3", "--steps"),
        ("fit moons --out run --time-limit 0", "--time-limit"),
        ("fit moons --out run --time-limit nan", "--time-limit"),
        ("fit moons --out run --threads 0", "--threads"),
        ("fit moons --out run --precision f16", "--precision"),
        ("fit moons --out run --seed one", "--seed"),
        ("fit moons --out run --fast", "--fast"),
        ("score missing moons", "file not found"),
        ("sample missing -n 3 --out x.csv", "file not found"),
        ("sample missing -n 3 --out x.xls", ".csv, .npy, .parquet, .arrow or .png"),
        ("sample missing -n 0 --out x.csv", "0 is not in"),
        ("encode missing x.csv --out z.txt", ".csv"),
        ("inspect missing", "file not found"),
        ("score missing moons --estimator exakt", "no estimator `exakt`"),
        ("score missing moons --estimator truncated:terms=-1", "`terms`"),
        ("score missing moons --estimator roulette:p=2", "`p` is 2"),
        ("score missing moons --replicates 1", "1 is not in"),
        ("score missing moons --out x.txt", ".csv"),
        ("forget", "forget"),
    ] {
        let error = folder.fail(line, 2);
        assert!(error.contains(part), "{line}: {error}");
    }
    assert!(!folder.path("run").exists());
}

#[test]
fn configurations() {
    let folder = Folder::new();
    for (text, place) in [
        ("[flow]\nblock = 3\n", "line 2, column 1: unknown field `block`"),
        ("[flow]\nblocks = -3\n", "line 2, column 10"),
        ("[flow]\nblocks = 0\n", "line 2, column 10: `blocks` is 0"),
        ("[flow]\ncoefficient = -0.5\n", "line 2, column 15: `coefficient` is -0.5"),
        ("[flow]\ndimension = 5\n", "line 2, column 1: `dimension` is 5, the data has 2 columns"),
        ("[train]\nlearning_rate = -1\n", "line 2, column 17"),
        ("[train]\nlearning_rate = nan\n", "line 2, column 17"),
        ("[train]\nbatch = \"many\"\n", "line 2, column 9"),
        ("[network]\n", "line 1, column 2: unknown field `network`"),
        ("[flow\n", "line 1"),
        ("\u{0}", "line 1, column"),
    ] {
        folder.write("bad.toml", text);
        let error = folder.fail("fit moons --out run --config bad.toml", 2);
        assert!(error.contains("bad.toml") && error.contains(place), "{text:?}: {error}");
    }
    folder.write("bad.toml", b"\xff\xfe");
    assert!(folder.fail("fit moons --out run --config bad.toml", 2).contains("UTF-8"));
    assert!(!folder.path("run").exists());
}

#[test]
fn model_files() {
    let folder = Folder::new();
    folder.succeed("fit moons --out run --config tiny.toml --steps 10");
    let good = std::fs::read(folder.path("run/model.safetensors")).expect("a model");
    let noise: Vec<u8> = (0..4000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut huge = vec![0xff; 8];
    huge.extend(b"{}");
    let mut renamed = good.clone();
    let at = renamed.windows(6).position(|w| w == b"weight").expect("a weight");
    renamed[at] = b'W';
    for bytes in [noise, huge, Vec::new(), good[..good.len() / 2].to_vec(), renamed] {
        folder.write("bad.safetensors", bytes);
        for line in [
            "score bad.safetensors moons",
            "sample bad.safetensors -n 3 --out x.csv",
            "inspect bad.safetensors",
            "encode bad.safetensors tiny.csv --out z.csv",
        ] {
            folder.write("tiny.csv", "1,2\n");
            assert!(folder.fail(line, 1).contains("bad.safetensors"), "{line}");
        }
        std::fs::copy(folder.path("bad.safetensors"), folder.path("run/checkpoint.safetensors")).expect("a copy");
        assert!(folder.fail("fit moons --out run --resume", 1).contains("checkpoint.safetensors"));
    }
    assert!(folder.fail("score run/config.toml moons", 1).contains("config.toml"));
    // a model is no checkpoint
    std::fs::write(folder.path("run/checkpoint.safetensors"), good).expect("a file");
    assert!(folder.fail("fit moons --out run --resume", 1).contains("no section `run`"));
}

#[test]
fn widths_and_values() {
    let folder = Folder::new();
    folder.succeed("fit moons --out run --config tiny.toml --steps 10");
    folder.write("three.csv", "a,b,c\n1,2,3\n4,5,6\n7,8,8\n3,2,1\n");
    folder.write("one.csv", "1\n2\n");
    for data in ["three.csv", "one.csv"] {
        for line in ["score run DATA", "encode run DATA --out z.csv", "decode run DATA --out x.csv"] {
            let output = folder.run(&line.replace("DATA", data));
            let error = binary::text(&output.stderr);
            assert!(matches!(output.status.code(), Some(1 | 2)), "{line} {data}: {error}");
            assert!(error.contains("column") && error.contains(data), "{line} {data}: {error}");
        }
    }
    folder.write("three.toml", TINY);
    folder.succeed("fit three.csv --out wide --config three.toml --steps 2");
    assert!(folder.fail("sample wide -n 3 --out x.png", 2).contains("two columns"));
    assert!(folder.fail("score run three.csv --rows 3", 2).contains("--rows"));

    // rows far out have no finite log p in single precision: reported, not fatal
    folder.write("far.csv", "0,0\n1e200,-1e300\n1,1\n");
    let score = folder.succeed("score run far.csv --json --out far_scores.csv");
    assert!(score.contains("\"non_finite_rows\":1") && score.contains("\"mean_log_prob\":null"), "{score}");
    assert_eq!(folder.read("far_scores.csv").lines().count(), 4);
    assert!(folder.read("far_scores.csv").contains("\n-inf,0.0,0.0\n"), "{}", folder.read("far_scores.csv"));
    let score = folder.succeed("score run far.csv");
    assert!(score.contains("non-finite  1 of 3 rows have log p = −∞"), "{score}");
    assert!(!folder.succeed("score run moons").contains("non-finite"));
    assert!(folder.succeed("score run moons --outliers far.csv").contains("against 3 rows of far.csv"));
    folder.succeed("encode run far.csv --out far_z.csv");
    assert!(folder.fail("decode run far_z.csv --out x.csv", 1).contains("far_z.csv"));
}

#[test]
fn directories_that_cannot_be_written() {
    let folder = Folder::new();
    folder.write("file", "");
    for out in ["file", "file/run"] {
        let error = folder.fail(&format!("fit moons --out {out} --config tiny.toml"), 1);
        assert!(error.contains(out), "{error}");
    }
    folder.succeed("fit moons --out run --config tiny.toml --steps 10");
    for line in ["sample run -n 3 --out file/x.csv", "score run moons --out file/s.csv"] {
        assert!(folder.fail(line, 1).contains("file/"), "{line}");
    }
    #[cfg(target_os = "linux")]
    {
        assert!(folder.fail("fit moons --out /proc/resflow --config tiny.toml", 1).contains("/proc/resflow"));
        assert!(folder.fail("score run moons --out /dev/full", 1).contains("/dev/full"));
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = folder.command("inspect run").stdout(full).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(1), "{}", binary::text(&output.stderr));
        assert!(binary::text(&output.stderr).contains("standard output"));
    }
}

#[test]
fn divergence() {
    let folder = Folder::new();
    folder.write("hot.toml", TINY.to_owned() + "learning_rate = 1e38\nwarmup = 0\nclip = 0\n");
    let error = folder.fail("fit moons --out run --config hot.toml", 1);
    assert!(error.contains("training diverged at step") && error.contains("links."), "{error}");
    assert!(error.contains("run/checkpoint.safetensors is the state after step 0"), "{error}");
    folder.succeed("inspect run/checkpoint.safetensors");
}
