//! Tables with categories, through the program: found, fitted, scored, drawn, encoded, given, reported; and refused by name.

use std::fmt::Write as _;

use resflow::backend::{Key, Noise};
use serde_json::Value;

use crate::binary::{Folder, text};
use crate::tables::mean;

/// Rows `length,kind,width,sex`: the kind says where the numbers are, the sex follows the kind. ln p of the truth is −2.68 nats a row: the
/// entropies of the kind, 0.898, and of the sex, 0.325, and twice that of N(0, 0.5²), 0.726. Columns that knew nothing of each other would have
/// some −5.
fn rows(n: usize, seed: u64) -> String {
    let mut noise = vec![0.0_f64; 2 * n];
    Noise::Normal.fill(Key::new(seed).named("numbers"), 0, &mut noise);
    let mut uniform = vec![0.0_f64; 2 * n];
    Noise::Uniform.fill(Key::new(seed).named("words"), 0, &mut uniform);
    noise.chunks_exact(2).zip(uniform.chunks_exact(2)).fold("length,kind,width,sex\n".to_owned(), |mut text, (z, u)| {
        let k = if u[0] < 0.6 { 0 } else { 1 + usize::from(u[0] >= 0.9) };
        let follows = u[1] < 0.9;
        let sex = if follows == (k == 0) { "f" } else { "m" };
        let centre = [[1.0, 10.0], [4.0, 12.0], [7.0, 9.0]][k];
        let kind = ["small one", "red, large", "other"][k];
        let (length, width) = (centre[0] + 0.5 * z[0], centre[1] + 0.5 * z[1]);
        let _ = writeln!(text, "{length:.5},\"{kind}\",{width:.5},{sex}");
        text
    })
}

const CONFIG: &str = "[flow]\nblocks = 2\nhidden = [16]\n[train]\nbatch = 128\nsteps = 800\n";

fn json(output: &str) -> Value {
    serde_json::from_str(output).expect("one object")
}

/// The header and the cells of a file whose cells have no commas but inside of quotes.
fn cells(folder: &Folder, name: &str) -> (String, Vec<Vec<String>>) {
    let text = folder.read(name).replace("\"red, large\"", "red large").replace('"', "");
    let mut lines = text.lines().map(str::to_owned);
    let header = lines.next().expect("a header");
    (header, lines.map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

#[test]
fn a_table_with_categories_is_learned() {
    let folder = Folder::new();
    folder.write("rows.csv", rows(1500, 1));
    folder.write("new.csv", rows(500, 2));
    folder.write("small.toml", CONFIG);
    let said = folder.succeed("look rows.csv");
    let lines =
        ["1500 rows, 4 columns", "kind", "category", "small one 6", "log p(categories) + log p(numbers | categories)"];
    assert!(lines.iter().all(|line| said.contains(line)), "{said}");
    let look = json(&folder.succeed("look rows.csv --json"));
    assert_eq!(
        (look["categories"][0]["name"].as_str(), look["columns"].as_array().map(Vec::len)),
        (Some("kind"), Some(2))
    );

    // one line says that they were found
    let output = folder.run("fit rows.csv --out run --config small.toml");
    let told = text(&output.stderr);
    assert!(output.status.success() && told.contains("categories: `kind` (3 levels), `sex` (2 levels)"), "{told}");
    let scored = folder.succeed("score run new.csv --json --out scores.csv");
    // a small net of few steps
    assert!((-3.2..-2.4).contains(&mean(&scored)), "{scored}");
    let percentiles = folder.table("scores.csv").1;
    assert!(percentiles.iter().all(|row| (0.0..=100.0).contains(&row[2])));

    // by their names, in another order
    let (_, all) = cells(&folder, "new.csv");
    let shuffled = all.iter().fold("sex,width,id,kind,length\n".to_owned(), |mut text, row| {
        let kind = if row[1] == "red large" { "\"red, large\"" } else { &row[1] };
        let _ = writeln!(text, "{},{},7,{kind},{}", row[3], row[2], row[0]);
        text
    });
    folder.write("shuffled.csv", shuffled);
    assert_eq!(mean(&folder.succeed("score run shuffled.csv --json")), mean(&scored));

    // samples have the columns of the table, and score like it
    folder.succeed("sample run -n 2000 --out samples.csv");
    let (header, drawn) = cells(&folder, "samples.csv");
    assert_eq!((header.as_str(), drawn.len()), ("length,kind,width,sex", 2000));
    let of = |kind: &str| drawn.iter().filter(|row| row[1] == kind).collect::<Vec<_>>();
    let large = of("red large");
    assert!((large.len() as f64 / 2000.0 - 0.3).abs() < 0.06, "{}", large.len());
    let length = large.iter().map(|row| row[0].parse::<f64>().expect("a number")).sum::<f64>() / large.len() as f64;
    assert!((length - 4.0).abs() < 0.3, "{length}");
    let males = large.iter().filter(|row| row[3] == "m").count() as f64 / large.len() as f64;
    assert!((males - 0.9).abs() < 0.1, "{males}");
    assert!((mean(&folder.succeed("score run samples.csv --json")) - mean(&scored)).abs() < 0.5);

    // there and back, with the categories along
    folder.succeed("encode run new.csv --out z.csv");
    assert_eq!(cells(&folder, "z.csv").0, "z1,kind,z2,sex,log_det,se");
    folder.succeed("decode run z.csv --out back.csv");
    let (header, back) = cells(&folder, "back.csv");
    assert_eq!(header, "length,kind,width,sex,log_det,se");
    for (own, back) in all.iter().zip(&back) {
        let number = |cell: &String| cell.parse::<f64>().expect("a number");
        assert!((number(&own[0]) - number(&back[0])).abs() < 1e-3 && own[1] == back[1] && own[3] == back[3]);
    }

    let said = folder.succeed("inspect run");
    let lines = [
        "log p(categories)",
        "kind: red, large ",
        "small one ",
        "sex: ",
        "a table",
        "a net over the categories before",
    ];
    assert!(lines.iter().all(|line| said.contains(line)), "{said}");
    let inspected = json(&folder.succeed("inspect run --json"));
    assert_eq!(inspected["categories"][1]["probability"], "net");
    let page = folder.read("run/report.html");
    assert!(page.contains("Categories") && page.contains("red, large"), "no section of categories");
    folder.succeed("report run new.csv --out again.html");
    assert!(folder.read("again.html").contains("Categories"));

    // a run goes on with the same data alone
    folder.succeed("fit rows.csv --out run --resume --steps 820");
    let error = folder.fail("fit rows.csv --drop sex --out run --resume --steps 840", 2);
    assert!(error.contains("other data"), "{error}");

    // what the model does not know
    folder.write("odd.csv", "length,kind,width,sex\n1,blue,10,f\n2,other,9,x\n3,blue,9,m\n");
    let error = folder.fail("score run odd.csv", 1);
    let parts = ["`blue` in column `kind` (2 rows, the first is row 1)", "`other`", "`x` in column `sex`"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    folder.write("less.csv", "length,width,sex\n1,10,f\n");
    assert!(folder.fail("score run less.csv", 1).contains("`kind`"));
    assert!(folder.fail("sample run -n 3 --out samples.npy", 2).contains("categories"));
}

#[test]
fn categories_are_given() {
    let folder = Folder::new();
    folder.write("rows.csv", rows(1200, 3));
    folder.write("small.toml", CONFIG);
    let error = folder.fail("fit rows.csv --out run --given kind", 2);
    assert!(error.contains("sex") && error.contains("--drop"), "{error}");
    folder.succeed("fit rows.csv --drop sex --out run --config small.toml --given kind,width");
    folder.write("contexts.csv", "width,id,kind\n10,1,other\n12,2,\"red, large\"\n");
    folder.succeed("sample run --given contexts.csv -n 200 --out samples.csv");
    let (header, drawn) = cells(&folder, "samples.csv");
    assert_eq!((header.as_str(), drawn.len()), ("length,width,kind", 400));
    let mean_of = |rows: &[Vec<String>]| {
        rows.iter().map(|row| row[0].parse::<f64>().expect("a number")).sum::<f64>() / rows.len() as f64
    };
    assert!((mean_of(&drawn[..200]) - 7.0).abs() < 0.4 && (mean_of(&drawn[200..]) - 4.0).abs() < 0.4);
    assert!(drawn[..200].iter().all(|row| row[2] == "other") && drawn[300][2] == "red large");
    // −0.726 nats is the truth
    let scored = folder.succeed("score run rows.csv --json");
    assert!((-1.1..-0.6).contains(&mean(&scored)), "{scored}");
    let found = json(&folder.succeed("predict run rows.csv --out predicted.csv --json"));
    assert!((0.2..0.4).contains(&found["mean_crps"].as_f64().expect("a number")), "{found}");
    folder.succeed("predict run contexts.csv --out two.csv");
    assert_eq!(folder.table("two.csv").1.len(), 2);
    folder.succeed("encode run rows.csv --out z.csv");
    folder.succeed("decode run z.csv --given rows.csv --out back.csv");
    assert_eq!(folder.table("back.csv").1.len(), 1200);
    folder.succeed("calibrate run rows.csv --rows 100 --draws 20");
    folder.write("odd.csv", "width,kind\n10,blue\n");
    assert!(folder.fail("sample run --given odd.csv -n 2 --out samples.csv", 1).contains("`blue`"));
    assert!(folder.succeed("inspect run").contains("given"));
}

/// Codes are categories where somebody says so; words of too many levels are none before somebody does.
#[test]
fn what_is_a_category_can_be_said() {
    let folder = Folder::new();
    let mut codes = "x,code\n".to_owned();
    let mut names = "x,name\n".to_owned();
    for i in 0..90 {
        let x = (f64::from(i) * 0.754_877).fract();
        let _ = writeln!(codes, "{:.5},{}", x + 5.0 * f64::from(i % 3), [10, 20, 7][i as usize % 3]);
        let _ = writeln!(names, "{x:.5},name {}", i / 2);
    }
    folder.write("codes.csv", codes);
    folder.write("names.csv", names);
    let said = folder.succeed("look codes.csv");
    assert!(said.contains("integers") && said.contains("--category"), "{said}");
    assert!(folder.succeed("look codes.csv --category code").contains("category"));
    folder.succeed("fit codes.csv --category code --out run --steps 20");
    assert!(folder.read("run/config.toml").contains("--category code"));
    folder.succeed("score run codes.csv");
    folder.succeed("sample run -n 20 --out samples.csv");
    let (header, drawn) = cells(&folder, "samples.csv");
    assert!(header == "x,code" && drawn.iter().all(|row| ["10", "20", "7"].contains(&row[1].as_str())));
    folder.succeed("score run samples.csv");
    let error = folder.fail("fit names.csv --out other --steps 2", 1);
    let parts = ["`name`", "45 different words", "--category", "--drop name"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    folder.succeed("fit names.csv --category name --out other --steps 2");
    // missing ones are rows that lack something
    folder.write("missing.csv", "x,k\n1,a\n2,b\n3,\n4,a\n5.5,b\n6,a\n7,b\n");
    assert!(folder.fail("look missing.csv", 1).contains("the cell is empty"));
    assert!(folder.succeed("look missing.csv --missing drop-rows").contains("6 rows, 2 columns"));
}

/// Rows weigh what they weigh, in the probability of categories too.
#[test]
fn categories_have_weights() {
    let folder = Folder::new();
    let mut rows = "x,w,k\n".to_owned();
    for i in 0..120 {
        let k = usize::from(i % 2 == 0);
        let _ = writeln!(
            rows,
            "{:.5},{},{}",
            (f64::from(i) * 0.754_877).fract() + 3.0 * k as f64,
            [1, 4][k],
            ["a", "b"][k]
        );
    }
    folder.write("rows.csv", rows);
    folder.succeed("fit rows.csv --weight w --out run --steps 20");
    let inspected = json(&folder.succeed("inspect run --json"));
    let share = inspected["categories"][0]["shares"][0].as_f64().expect("a number");
    // b is the first level: four fifths of the weight, of some 102 training rows
    assert!((share - 0.8).abs() < 0.05, "{inspected}");
    folder.succeed("score run rows.csv --weight w");
    folder.succeed("sample run -n 5 --out samples.csv");
    assert_eq!(cells(&folder, "samples.csv").0, "x,k");
}

/// A table of categories alone is p(k) alone: H = ln 2 + 0.325 nats a row where the second follows the first nine times of ten.
#[test]
fn categories_alone_are_a_model() {
    let folder = Folder::new();
    let words = |seed: u64| {
        let mut uniform = vec![0.0_f64; 1600];
        Noise::Uniform.fill(Key::new(seed), 0, &mut uniform);
        uniform.chunks_exact(2).fold("k,l\n".to_owned(), |mut text, u| {
            let k = usize::from(u[0] < 0.5);
            let l = if u[1] < 0.9 { k } else { 1 - k };
            let _ = writeln!(text, "{},{}", ["a", "b"][k], ["x", "y"][l]);
            text
        })
    };
    folder.write("rows.csv", words(1));
    folder.write("new.csv", words(2));
    assert!(folder.succeed("look rows.csv").contains("800 rows, 2 columns"));
    assert!(folder.fail("fit rows.csv --out run --steps 5", 2).contains("no numbers"));
    let said = folder.succeed("fit rows.csv --out run");
    assert!(said.contains("validation nll ") && said.contains("p(k) of 2 columns"), "{said}");
    let scored = folder.succeed("score run new.csv --json --out scores.csv");
    // a standard error is 0.025
    assert!((-1.15..-0.88).contains(&mean(&scored)), "{scored}");
    let (header, scores) = folder.table("scores.csv");
    assert!(header == "log_prob,se,percentile" && scores.len() == 800 && scores.iter().all(|row| row[1] == 0.0));
    folder.succeed("sample run -n 2000 --out samples.csv");
    let (header, drawn) = cells(&folder, "samples.csv");
    let alike = drawn.iter().filter(|row| (row[0] == "a") == (row[1] == "x")).count();
    // five standard errors and what the fit is off
    assert!(header == "k,l" && (alike as f64 / 2000.0 - 0.9).abs() < 0.06, "{alike}");
    assert!(folder.succeed("inspect run").contains("a net over the categories before"));
    assert_eq!(json(&folder.succeed("inspect run --json"))["categories"][0]["probability"], "table");
    folder.write("odd.csv", "k,l\na,z\n");
    assert!(folder.fail("score run odd.csv", 1).contains("`z` in column `l`"));
    assert!(folder.fail("encode run rows.csv --out z.csv", 1).contains("categories alone"));
    assert!(folder.fail("fit rows.csv --out run", 2).contains("run"));
}
