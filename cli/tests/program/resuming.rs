//! Scores and latents of large tables, and samples, that are killed, interrupted or out of disk: going on ends with the same bytes and the same
//! report; what was left of other work is refused.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::binary::{Folder, TINY, start, text, wait_for};
use crate::large::{csv, write};

/// Six pieces and a bit.
const ROWS: usize = 65_000;
const WIDTH: usize = 50;

/// A folder with a model, `run`, and a table, `rows.npy`.
fn folder() -> Folder {
    let folder = Folder::new();
    write(&folder.path("rows.npy"), ROWS, WIDTH);
    folder.write("small.csv", csv(1000, WIDTH));
    folder.write("plain.toml", format!("{TINY}fit_base = false\n"));
    folder.succeed("fit small.csv --out run --config plain.toml --steps 10");
    folder
}

/// The rows that a record counts, if there is one.
fn recorded(folder: &Folder, out: &str) -> Option<u64> {
    let text = std::fs::read(folder.path(&format!("{out}.part.json"))).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&text).expect("a record is whole");
    record["rows"].as_u64()
}

fn assert_equal(folder: &Folder, one: &str, other: &str) {
    let bytes = |name: &str| std::fs::read(folder.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(bytes(one) == bytes(other), "{one} and {other} differ");
}

fn assert_nothing_left(folder: &Folder) {
    let names = std::fs::read_dir(folder.path("")).expect("a folder").flatten().map(|e| e.file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.contains(".part") || name.contains(".tmp")), "{names:?}");
}

/// What is reported, but the time.
fn told(json: &str) -> serde_json::Value {
    let mut told: serde_json::Value = serde_json::from_str(json).expect("an object");
    told["seconds"] = 0.into();
    told
}

/// Kills a command at random moments until three records were gone on with; returns what it prints when it ends.
fn kill(folder: &Folder, line: &str, out: &str, whole: Duration) -> String {
    let line = format!("{line} --out {out} --resume");
    let (mut resumed, mut state) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..40 {
        let before = recorded(folder, out);
        let mut child = start(folder, &line);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(whole.mul_f64(0.2 + 0.3 * (state >> 33) as f64 / (1_u64 << 31) as f64));
        if child.try_wait().expect("a child").is_some() {
            let output = child.wait_with_output().expect("a child");
            assert!(output.status.success(), "{}", text(&output.stderr));
            continue;
        }
        child.kill().expect("a child to kill");
        child.wait().expect("a child");
        resumed += u32::from(before.is_some_and(|rows| rows > 0));
        if resumed == 3 {
            break;
        }
    }
    assert!(resumed > 0, "no kill came after a record");
    folder.succeed(&line)
}

#[test]
fn kills_change_no_scores() {
    let folder = folder();
    let line = "score run rows.npy --large 10 --threads 1 --json --contamination 0.05";
    let begin = Instant::now();
    let whole = told(&folder.succeed(&format!("{line} --out whole.csv")));
    let resumed = told(&kill(&folder, line, "out.csv", begin.elapsed()));
    assert_eq!(whole, resumed);
    assert_equal(&folder, "whole.csv", "out.csv");
    assert_nothing_left(&folder);
}

#[test]
fn kills_change_no_latents() {
    let folder = folder();
    let line = "encode run rows.npy --large 10 --threads 1 --log-det beside.csv";
    let begin = Instant::now();
    folder.succeed(&format!("{} --out whole.npy", line.replace("beside", "whole")));
    kill(&folder, line, "out.npy", begin.elapsed());
    assert_equal(&folder, "whole.npy", "out.npy");
    assert_equal(&folder, "whole.csv", "beside.csv");
    assert_nothing_left(&folder);
}

/// Samples, and latents that are decoded, to arrays and lines.
#[test]
fn kills_change_no_samples() {
    let folder = folder();
    // couplings, which are inverted by a formula: the kills are many
    folder.succeed("fit small.csv --out run --overwrite --config plain.toml --model realnvp --steps 10");
    let line = format!("sample run -n {ROWS} --seed 4 --threads 1");
    let begin = Instant::now();
    let told = folder.succeed(&format!("{line} --out whole.npy"));
    let again = kill(&folder, &line, "out.npy", begin.elapsed());
    assert_eq!(told, again.replace("out.npy", "whole.npy"));
    assert_equal(&folder, "whole.npy", "out.npy");
    // the same rows as lines
    folder.succeed(&format!("{line} --out whole.csv"));
    let array = resflow::data::npy::read(&std::fs::read(folder.path("whole.npy")).expect("written")).expect("rows");
    let lines: Vec<f64> = folder.table("whole.csv").1.concat();
    assert_eq!(array.values(), lines);
    // what fits into one piece is drawn at once
    folder.succeed("sample run -n 500 --seed 4 --threads 1 --out few.csv");
    let (few, many) = (folder.table("few.csv").1.concat(), &lines[..500 * WIDTH]);
    assert!(few.iter().zip(many).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs())));
    let line = "decode run z.npy --large 10 --threads 1 --log-det beside.csv";
    folder.succeed("encode run rows.npy --large 10 --out z.npy");
    let begin = Instant::now();
    folder.succeed(&format!("{} --out whole.csv", line.replace("beside", "whole-beside")));
    kill(&folder, line, "out.csv", begin.elapsed());
    assert_equal(&folder, "whole.csv", "out.csv");
    assert_equal(&folder, "whole-beside.csv", "beside.csv");
    assert_nothing_left(&folder);
}

#[test]
fn an_interruption_is_gone_on_with() {
    let folder = folder();
    let line = "score run rows.npy --large 10 --threads 1 --json --out";
    let whole = told(&folder.succeed(&format!("{line} whole.csv")));
    let child = start(&folder, &format!("{line} out.csv"));
    wait_for("a record", || recorded(&folder, "out.csv").is_some_and(|rows| rows > 0));
    // a second process keeps away from the same part
    let refused = folder.fail(&format!("{line} out.csv"), 2);
    assert!(refused.contains("another process"), "{refused}");
    let signalled = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", child.id())).status().expect("a shell");
    assert!(signalled.success());
    let output = child.wait_with_output().expect("a child");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("the same command with --resume") && !folder.path("out.csv").exists(), "{stderr}");
    // what stands behind the record is cut off
    let mut bytes = std::fs::read(folder.path("out.csv.part")).expect("a part");
    bytes.extend(b"a line that was cut");
    folder.write("out.csv.part", bytes);
    assert_eq!(told(&folder.succeed(&format!("{line} out.csv --resume"))), whole);
    assert_equal(&folder, "whole.csv", "out.csv");
    assert_nothing_left(&folder);
}

/// A limit on the size of files stands for a full disk.
#[test]
fn a_full_disk_is_gone_on_with_and_other_work_is_not() {
    let folder = folder();
    let line = "encode run rows.npy --large 10 --out out.npy --threads 1";
    let full = || {
        let command = folder.command(line);
        let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
        let mut shell = Command::new("sh");
        // two pieces of 4 MB and a half, in blocks of 512 bytes
        let script = "ulimit -f 20480; trap '' XFSZ; exec \"$@\"";
        shell.arg("-c").arg(script).arg("sh").args(words).current_dir(folder.path(""));
        let output = shell.output().expect("a shell");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("out.npy.part") && stderr.contains("--resume goes on"), "{stderr}");
    };
    full();
    assert!(recorded(&folder, "out.npy").is_some_and(|rows| rows > 0) && !folder.path("out.npy").exists());
    // other work, of which all that differs is named
    folder.succeed("fit small.csv --out other --config plain.toml --steps 5 --seed 1");
    write(&folder.path("fewer.npy"), ROWS - 1, WIDTH);
    let refused = folder.fail("encode other fewer.npy --large 10 --out out.npy --threads 2 --seed 3 --resume", 2);
    for what in ["model: ", "data: ", "--seed: 0 then, 3 now", "without --resume"] {
        assert!(refused.contains(what), "{what}: {refused}");
    }
    assert!(!refused.contains("device: "), "{refused}");
    // a part that has lost something
    let bytes = std::fs::read(folder.path("out.npy.part")).expect("a part");
    folder.write("out.npy.part", &bytes[..100]);
    assert!(folder.fail(&format!("{line} --resume"), 2).contains("shorter than its record"));
    folder.write("out.npy.part", bytes);
    folder.succeed(&format!("{line} --resume"));
    folder.succeed(&line.replace("out.npy", "whole.npy"));
    assert_equal(&folder, "whole.npy", "out.npy");
    // begun anew over what was left
    full();
    folder.succeed(line);
    assert_equal(&folder, "whole.npy", "out.npy");
    assert_nothing_left(&folder);
}

#[test]
fn what_cannot_be_gone_on_with_is_said() {
    let folder = Folder::new();
    write(&folder.path("rows.npy"), 2000, 3);
    folder.succeed("fit rows.npy --out run --config tiny.toml --model realnvp");
    for (words, why) in
        [("--out out.csv", "--large 0"), ("--large 10 --out -", "is no file"), ("--large 10", "without --out")]
    {
        for option in ["--resume", "--out-parts"] {
            let refused = folder.fail(&format!("score run rows.npy {words} {option}"), 2);
            assert!(refused.contains(why) && refused.contains(option), "{refused}");
        }
    }
    for (words, why) in [("--out out.png", "written at once"), ("--out -", "is no file")] {
        for option in ["--resume", "--out-parts"] {
            let refused = folder.fail(&format!("sample run -n 10 {words} {option}"), 2);
            assert!(refused.contains(why) && refused.contains(option), "{refused}");
        }
    }
    folder.succeed("sample run -n 10 --out drawn.npy");
    folder.succeed("sample run -n 10 --out drawn.npy --out-parts");
    assert_equal(&folder, "drawn.npy", "drawn.00000-of-00001.npy");
    let line = "score run rows.npy --large 10 --out out.csv";
    let run = folder.run(&format!("{line} --resume"));
    assert!(run.status.success() && text(&run.stderr).contains("nothing to go on with"), "{}", text(&run.stderr));
    assert_nothing_left(&folder);
    // alone a process has the only part
    folder.succeed(&format!("{line} --out-parts"));
    assert_equal(&folder, "out.csv", "out.00000-of-00001.csv");
    // somebody else's files of these names are left alone
    folder.write("out.csv.part", "mine");
    let refused = folder.fail(line, 2);
    assert!(refused.contains("no record beside it") && folder.read("out.csv.part") == "mine", "{refused}");
    std::fs::rename(folder.path("out.csv.part"), folder.path("out.csv.part.json")).expect("renamed");
    let refused = folder.fail(&format!("{line} --resume"), 2);
    assert!(refused.contains("no record of unfinished") && folder.read("out.csv.part.json") == "mine", "{refused}");
    std::fs::rename(folder.path("rows.npy"), folder.path("out.csv.part")).expect("renamed");
    let refused = folder.fail("score run out.csv.part --large 10 --out out.csv", 2);
    assert!(refused.contains("which is read"), "{refused}");
}
