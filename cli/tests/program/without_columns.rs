//! A program that was built without the feature `parquet` says so, and what to do.

use crate::binary::{Folder, csv, text};
use crate::tables::with_input;

#[test]
fn tables_by_columns_are_refused_with_what_to_do() {
    let folder = Folder::new();
    folder.write("plain.csv", csv(80));
    folder.succeed("fit plain.csv --out base --config tiny.toml --steps 2");
    for (name, contents, reader) in [
        ("cars.parquet", &b"PAR1\x15\x04\x15"[..], "pandas.read_parquet('cars.parquet')"),
        ("cars.csv", &b"ARROW1\0\0\xff\xff\xff\xff"[..], "pandas.read_feather('cars.csv')"),
        ("it's", &b"\xff\xff\xff\xff\x70\0\0\0"[..], "pyarrow.ipc.open_stream('FILE').read_pandas()"),
    ] {
        folder.write(name, contents);
        let output = folder.command("score base").arg(name).output().expect("the binary runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("error: {name}: the file is")), "{error}");
        for part in ["built without the feature `parquet`", "--features parquet", reader] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = text(&with_input(&folder, "look -", contents).stderr);
        assert!(error.contains("standard input: the file is") && error.contains("('FILE')"), "{error}");
    }
    for line in [
        "sample base -n 3 --out x.parquet",
        "sample base -n 3 --out x.csv --format arrow",
        "encode base plain.csv --out z.feather",
        "score base plain.csv --out scores.pq",
    ] {
        let error = folder.fail(line, 2);
        assert!(error.contains("--features parquet") && error.contains(".csv"), "{error}");
    }
    assert!(!folder.path("x.parquet").exists());
}
