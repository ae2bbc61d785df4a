//! Densities of some columns given others, through the program.

use std::fmt::Write as _;

use resflow::backend::{Key, Noise};
use serde_json::Value;

use crate::binary::{Folder, text};
use crate::hybrid;
use crate::tables::mean;

const ROWS: usize = 1200;

/// Columns a, y, b with y = 2a − b + 0.3 e for standard normal a, b and e.
fn linear(rows: usize, seed: u64) -> String {
    let mut numbers = vec![0.0_f64; 3 * rows];
    Noise::Normal.fill(Key::new(seed), 0, &mut numbers);
    numbers.chunks_exact(3).fold("a,y,b\n".to_owned(), |mut text, n| {
        let _ = writeln!(text, "{:?},{:?},{:?}", n[0], 2.0 * n[0] - n[1] + 0.3 * n[2], n[1]);
        text
    })
}

/// A folder with the run `run` of p(y | a, b), 1,000 steps of a small net.
fn fitted() -> Folder {
    let folder = Folder::new();
    folder.write("rows.csv", linear(ROWS, 1));
    folder.write("new.csv", linear(400, 2));
    folder.write("small.toml", "[flow]\nblocks = 2\nhidden = [16]\n[train]\nbatch = 128\nsteps = 1000\n");
    let said = folder.succeed("fit rows.csv --out run --config small.toml --given a,b");
    assert!(said.contains("resflow predict run") && said.contains("resflow score run rows.csv\n"), "{said}");
    folder
}

fn json(output: &str) -> Value {
    serde_json::from_str(output).expect("one object")
}

/// Everything on one run: fits take seconds. Bounds are many errors wide: ln p of the truth is −0.215 nats a row, its CRPS
/// 0.3·0.5642 = 0.169 (Gneiting & Raftery 2007, for a normal), and the marginal of y has 2.25 nats and 1.27.
#[test]
fn one_column_given_two() {
    let folder = fitted();
    let scored = folder.succeed("score run new.csv --json");
    assert!((-0.45..-0.1).contains(&mean(&scored)), "{scored}");
    // in another order, among others
    let shuffled: String = folder.read("new.csv").lines().enumerate().fold(String::new(), |mut text, (i, line)| {
        let cells: Vec<&str> = line.split(',').collect();
        let id = if i == 0 { "id".to_owned() } else { i.to_string() };
        let _ = writeln!(text, "{},{id},{},{}", cells[2], cells[0], cells[1]);
        text
    });
    folder.write("shuffled.csv", shuffled);
    assert_eq!(mean(&folder.succeed("score run shuffled.csv --json")), mean(&scored));

    // predictions beside the truth, and where there is none
    let found = json(&folder.succeed("predict run new.csv --levels 0.1,0.5,0.9 --out predicted.csv --json"));
    let crps = found["mean_crps"].as_f64().expect("a number");
    assert!((0.14..0.25).contains(&crps), "{found}");
    let (header, rows) = folder.table("predicted.csv");
    assert_eq!(header, "mean,q0.1,q0.5,q0.9,y,log_prob,pit,crps");
    assert_eq!(rows.len(), 400);
    for row in &rows {
        assert!(row[1] < row[2] && row[2] < row[3] && (0.0..=1.0).contains(&row[6]), "{row:?}");
        // the share of the distribution below the truth is on the side of the median that the truth is on
        assert_eq!(row[6] > 0.5, row[4] > row[2], "{row:?}");
    }
    assert!((rows.iter().map(|row| row[5]).sum::<f64>() / 400.0 - mean(&scored)).abs() < 1e-6);
    let without: String = folder.read("new.csv").lines().fold(String::new(), |mut text, line| {
        let cells: Vec<&str> = line.split(',').collect();
        let _ = writeln!(text, "{},{}", cells[0], cells[2]);
        text
    });
    folder.write("given.csv", without);
    let said = folder.succeed("predict run given.csv --levels 0.1,0.5,0.9 --out again.csv");
    assert!(said.contains("does not say what came true"), "{said}");
    for (own, beside) in folder.table("again.csv").1.iter().zip(&rows) {
        assert_eq!(own[..], beside[..4]);
    }

    // samples say what they were given
    folder.write("two.csv", "b,a\n0,0\n1,2\n");
    folder.succeed("sample run --given two.csv -n 300 --out samples.csv");
    let (header, rows) = folder.table("samples.csv");
    assert_eq!((header.as_str(), rows.len()), ("y,a,b", 600));
    assert!(
        rows[..300].iter().all(|row| row[1..] == [0.0, 0.0]) && rows[300..].iter().all(|row| row[1..] == [2.0, 1.0])
    );
    for (part, centre) in [(&rows[..300], 0.0), (&rows[300..], 3.0)] {
        let mean = part.iter().map(|row| row[0]).sum::<f64>() / 300.0;
        assert!((mean - centre).abs() < 0.3, "{mean}");
    }

    // there and back
    folder.succeed("encode run new.csv --out z.csv");
    folder.succeed("decode run z.csv --given new.csv --out back.csv");
    let (own, back) = (folder.table("new.csv").1, folder.table("back.csv").1);
    assert!(own.iter().zip(&back).all(|(own, back)| (own[1] - back[0]).abs() < 1e-3));

    // as sure as it may be, or not, where y is told in another unit
    let found = json(&folder.succeed("calibrate run new.csv --draws 50 --out calibration.html --json"));
    assert!(found["p_value"].as_f64().expect("a number") > 1e-4, "{found}");
    assert!(folder.read("calibration.html").contains("Calibration of run"));
    let wrong: String = folder.read("new.csv").lines().enumerate().fold(String::new(), |mut text, (i, line)| {
        let cells: Vec<&str> = line.split(',').collect();
        let y = if i == 0 { "y".to_owned() } else { (cells[1].parse::<f64>().expect("a number") * 1.5).to_string() };
        let _ = writeln!(text, "{},{y},{}", cells[0], cells[2]);
        text
    });
    folder.write("wrong.csv", wrong);
    let said = folder.succeed("calibrate run wrong.csv --draws 50");
    assert!(said.contains("not calibrated"), "{said}");

    assert!(folder.succeed("inspect run").contains("a, b"));
    folder.succeed("report run new.csv --out new.html");
    // goes on only on the same rows with the same contexts
    let error = folder.fail("fit rows.csv --out run --resume --steps 1010", 2);
    assert!(error.contains("--given") || error.contains("columns"), "{error}");
    folder.succeed("fit rows.csv --out run --given a,b --resume --steps 1010");
}

/// Columns without names go by their numbers.
#[test]
fn tables_without_names() {
    let folder = Folder::new();
    let bare = |text: String| text.lines().skip(1).fold(String::new(), |all, line| all + line + "\n");
    folder.write("rows.csv", bare(linear(200, 3)));
    folder.succeed("fit rows.csv --out run --config tiny.toml --given 1,3 --steps 10");
    let scored = folder.succeed("score run rows.csv --json");
    assert!(mean(&scored).is_finite());
    folder.succeed("predict run rows.csv --out p.csv");
    // the column that is predicted is the second
    let (header, rows) = folder.table("p.csv");
    let place = header.split(',').position(|name| name == "log_prob").expect("the log density") - 1;
    let text = folder.read("rows.csv");
    let cells = text.lines().map(|line| line.split(',').nth(1).expect("three cells"));
    let second: Vec<f64> = cells.map(|cell| cell.parse().expect("a number")).collect();
    assert!(rows.iter().zip(&second).all(|(row, y)| row[place] == *y));
}

#[test]
fn what_does_not_fit_is_told() {
    let folder = Folder::new();
    folder.write("rows.csv", linear(100, 4));
    folder.write("other.csv", "c\n1\n");
    let fit = "fit rows.csv --config tiny.toml --steps 5";
    for (line, word) in [
        (format!("{fit} --out x --given c"), "`c`"),
        (format!("{fit} --out x --given a,a"), "twice"),
        (format!("{fit} --out x --given a,y,b"), "no other column"),
        ("fit moons --config tiny.toml --out x --given a".to_owned(), "built-in density"),
    ] {
        let error = folder.fail(&line, 2);
        assert!(error.contains(word), "{line}: {error}");
    }
    folder.succeed(&format!("{fit} --out pair --given b"));
    folder.succeed(&format!("{fit} --out plain"));
    for (line, word) in [
        ("sample pair -n 3 --out s.csv", "--given FILE"),
        ("sample plain -n 3 --given rows.csv --out s.csv", "no conditional density"),
        ("predict plain rows.csv", "no conditional model"),
        ("predict pair rows.csv", "2 columns given b"),
        ("calibrate plain rows.csv", "no conditional model"),
        ("calibrate pair rows.csv --out c.txt", ".html"),
    ] {
        let error = folder.fail(line, 2);
        assert!(error.contains(word), "{line}: {error}");
    }
    let output = folder.run("sample pair -n 3 --given other.csv --out s.csv");
    assert!(!output.status.success() && text(&output.stderr).contains('b'), "{}", text(&output.stderr));
    // two columns at once
    folder.succeed("sample pair -n 3 --given rows.csv --out s.csv");
    assert_eq!(folder.table("s.csv").1.len(), 300);
    folder.succeed("calibrate pair rows.csv --draws 20");
}

/// Images given their class: bands at the top, in the middle or at the bottom, drawn to order.
#[test]
fn images_given_their_class() {
    let folder = hybrid::folder();
    folder.write("long.toml", hybrid::config().replace("steps = 60", "steps = 300"));
    let said = folder.succeed("fit set --given class --config long.toml --out run --seed 3");
    assert!(said.contains("resflow sample run -n 10"), "{said}");
    assert!(folder.path("run/samples.png").is_file(), "a grid, a row of each class");
    assert!(folder.succeed("inspect run").contains("class 0, class 1, class 2"));
    // the band of an image is where its class has it
    let bands = |images: &[Vec<f64>]| -> Vec<usize> {
        let mean = |image: &[f64], band: usize| {
            let pixels = &image[24 * band..(24 * band + 24).min(64)];
            pixels.iter().sum::<f64>() / pixels.len() as f64
        };
        let brightest = |image: &Vec<f64>| (0..3).max_by(|&a, &b| mean(image, a).total_cmp(&mean(image, b)));
        images.iter().map(|image| brightest(image).expect("three bands")).collect()
    };
    folder.succeed("sample run --class 2,0 -n 20 --out drawn.csv");
    let bands = bands(&folder.table("drawn.csv").1);
    assert_eq!(bands.len(), 40, "twenty of each");
    let right = |range: &[usize], class: usize| range.iter().filter(|&&band| band == class).count();
    assert!(right(&bands[..20], 2) >= 18 && right(&bands[20..], 0) >= 18, "{bands:?}");
    folder.succeed("sample run -n 2 --out all.png");

    // log p of an image given its own class, and given another one
    let own = folder.succeed("score run set --json");
    let (bytes, labels) = hybrid::bands(40);
    let wrong: Vec<u8> = labels.iter().map(|label| (label + 1) % 3).collect();
    for part in ["train", "t10k"] {
        hybrid::write_set(&folder, "wrong", part, &bytes, Some(&wrong));
    }
    let wrong = folder.succeed("score run wrong --json");
    let gain = mean(&own) - mean(&wrong);
    assert!(gain > 10.0, "{gain} nats: {own} {wrong}");

    // there and back
    folder.succeed("reconstruct run set -n 4 --out trip.png");
    folder.succeed("encode run set --rows 3 --out z.npy");
    folder.succeed("decode run z.npy --class 1 --out x.npy");
    folder.succeed("fit set --given class --out run --resume --steps 310");
    for (line, word) in [
        ("sample run --class 3 -n 1 --out s.png", "the model knows 0, 1, 2"),
        ("sample run --given z.npy -n 1 --out s.png", "--class"),
        ("decode run z.npy --out x.npy", "--class"),
        ("score run bare", "given their class"),
        ("score run set --outliers noise.npy", "no class"),
        ("fit bare --given class --config tiny.toml --out no", "has no labels"),
        ("fit set --given width --config tiny.toml --out no", "--given class"),
        ("fit set --given class --classify --config tiny.toml --out no", "context"),
        ("fit set --out run --resume --steps 320", "--given"),
    ] {
        let error = folder.fail(line, 2);
        assert!(error.contains(word), "{line}: {error}");
    }
}
