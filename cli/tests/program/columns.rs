//! Maps of columns from a configuration to what is printed of them: fit, inspect, score, sample.

use serde_json::Value;

use crate::binary::{Folder, TINY};

/// A skewed column, a count, and one between 0 and 1.
fn table() -> String {
    let row = |i: u32| {
        let u = f64::from(i * 7919 % 601 + 1) / 602.0;
        format!("{},{},{}\n", (4.0 * u * u).exp(), i * 31 % 7, 0.5 + 0.4 * (f64::from(i) * 0.37).sin())
    };
    "price,rooms,share\n".to_owned() + &(0..600).map(row).collect::<String>()
}

#[test]
fn maps_from_a_configuration() {
    let folder = Folder::new();
    folder.write("data.csv", table());
    let supports = "supports = { share = { between = [0, 1] }, rooms = { above = 0 } }";
    folder.write("auto.toml", format!("{TINY}columns = \"auto\"\n{supports}\n"));
    folder.succeed("fit data.csv --out run --config auto.toml --steps 20");
    assert!(folder.read("run/config.toml").contains("columns = \"auto\""));
    let shown = folder.succeed("inspect run");
    for part in ["integers", "between 0 and 1", "above 0", "knots", "draws of noise", "price"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json: Value = serde_json::from_str(&folder.succeed("inspect run --json")).expect("one object");
    assert_eq!(json["maps"][1]["grid"]["step"], 1.0);
    assert_eq!(json["maps"][2]["support"]["between"][1], 1.0);
    assert!(json["maps"][0]["knots"].as_u64().is_some_and(|knots| knots > 2), "{}", json["maps"][0]);
    // a run that is gone on with has the maps that it had
    folder.succeed("fit data.csv --out run --resume --steps 30");

    folder.write("new.csv", "price,rooms,share\n5,2,0.5\n5,2,1.5\n5,-1,0.5\n");
    let scored: Value = serde_json::from_str(&folder.succeed("score run new.csv --json")).expect("one object");
    assert_eq!(scored["non_finite_rows"], 2);
    assert_eq!(scored["out_of_support_rows"], 2);
    assert!(folder.succeed("score run new.csv").contains("outside of a column's support"));
    folder.succeed("sample run -n 50 --out x.csv");
    let (_, rows) = folder.table("x.csv");
    assert!(rows.iter().all(|r| r[1] >= 0.0 && r[1].fract() == 0.0 && r[2] > 0.0 && r[2] < 1.0), "{rows:?}");

    // what is declared and is not so, all at once
    folder.write("wrong.toml", format!("{TINY}supports = {{ price = {{ above = 2 }}, share = {{ below = 0.5 }} }}\n"));
    let error = folder.fail("fit data.csv --out other --config wrong.toml", 1);
    assert!(error.contains("price") && error.contains("share"), "{error}");
    folder.write("empty.toml", format!("{TINY}supports = {{ price = {{ between = [1, 1] }} }}\n"));
    folder.fail("fit data.csv --out another --config empty.toml", 2);
}
