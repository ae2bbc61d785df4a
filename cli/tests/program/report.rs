//! report.html: what is in it, that nothing gets out of its place, and that a browser has nothing to complain about.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use roxmltree::{Document, ParsingOptions};

use crate::binary::{Folder, csv, text};

/// The most that a report weighs.
const MOST: usize = 1_000_000;

/// A report as XML, which it is as well.
fn parsed(html: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(html, options).unwrap_or_else(|e| panic!("{e}"))
}

fn headings(page: &Document<'_>) -> Vec<String> {
    let texts = |node: roxmltree::Node<'_, '_>| {
        node.descendants().filter_map(|n| n.text().filter(|_| n.is_text()).map(str::to_owned)).collect()
    };
    page.descendants().filter(|n| n.has_tag_name(("http://www.w3.org/1999/xhtml", "h2"))).map(texts).collect()
}

const SECTIONS: [&str; 7] = [
    "How good it is",
    "Calibration of log p",
    "The strangest rows",
    "Columns",
    "Pairs of columns",
    "Correlations",
    "How to go on",
];

/// What holds of every report.
fn check(html: &str) {
    assert!(html.len() < MOST, "{} bytes", html.len());
    let page = parsed(html);
    for node in page.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "iframe", "object", "embed", "link", "base", "form"].contains(&name), "<{name}>");
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!key.starts_with("on") && !["src", "href", "srcset", "action"].contains(&key), "{key}={value}");
            assert!(!value.contains("url("), "{key}={value}");
            if key == "d" || key == "viewBox" {
                assert!(!value.contains("NaN") && !value.contains("inf"), "{value}");
            }
        }
        // those who cannot see a picture are told what it is
        if name == "svg" && node.attribute("role") == Some("img") {
            let title = node.children().find(|n| n.tag_name().name() == "title");
            assert!(title.and_then(|t| t.text()).is_some_and(|t| !t.is_empty()));
        }
        if name == "table" {
            assert_eq!(node.first_element_child().map(|n| n.tag_name().name()), Some("caption"));
        }
    }
    let mut ids: Vec<_> = page.descendants().filter_map(|n| n.attribute("id")).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id is there once");
}

#[test]
fn a_fit_writes_a_report() {
    let folder = Folder::new();
    folder.write("data.csv", csv(400));
    let summary = folder.succeed("fit data.csv --out run --config tiny.toml --seed 3");
    assert!(summary.contains("report.html"), "{summary}");
    let html = folder.read("run/report.html");
    check(&html);
    let page = parsed(&html);
    assert_eq!(headings(&page), SECTIONS);
    for part in [" rows of training, ", "length", "resflow fit data.csv --seed 3", "training</td>"] {
        assert!(html.contains(part), "{part}");
    }
    let pictures = page.descendants().filter(|n| n.attribute("role") == Some("img")).count();
    // the curve, two of calibration, three columns, three pairs of two, two matrices
    assert_eq!(pictures, 1 + 2 + 3 + 6 + 2);
    // a head, the Gaussian, the mixture and the flow; a head and the strangest rows
    assert_eq!(page.descendants().filter(|n| n.tag_name().name() == "tr").count(), 1 + 3 + 1 + 10);

    // the command writes the same page, of the fit's rows and seed, but for the time
    let wrote = folder.succeed("report run data.csv --out again.html");
    assert_eq!(wrote.trim(), "again.html");
    let without_time = |html: &str| {
        let (before, after) = html.split_once("<dt>time</dt>").expect("a time");
        before.to_owned() + after.split_once("</dd>").expect("an end").1
    };
    assert!(without_time(&html) == without_time(&folder.read("again.html")));

    // other rows are all held out
    folder.write("new.csv", csv(100));
    folder.succeed("report run new.csv --out new.html");
    assert!(folder.read("new.html").contains("other rows than the model was trained on"));
    folder.succeed("report run/model.safetensors new.csv");
    assert!(folder.read("run/report.html").contains("is not known"));
    assert!(folder.fail("report run missing.csv", 2).contains("not found"));
    folder.write("wide.csv", "a,b,c,d\n1,2,3,4\n2,3,4,6\n");
    assert!(!folder.run("report run wide.csv").status.success());
    assert!(folder.fail("report run data.csv --out data.csv", 2).contains("overwrite"));
}

#[test]
fn a_strange_cell_is_named() {
    let folder = Folder::new();
    let mut data = "size,double,other\n".to_owned();
    for i in 0..400 {
        let (x, y) = (f64::from(i * 37 % 400) / 40.0, f64::from(i * 113 % 401) / 50.0);
        // a size as usual, and a double that is none
        let double = if i == 250 { 2.0 } else { 2.0 * x + 0.1 * (y - 4.0) };
        let size = if i == 250 { 8.0 } else { x };
        let _ = writeln!(data, "{size},{double},{y}");
    }
    folder.write("data.csv", data);
    folder.write(
        "some.toml",
        "[flow]\nblocks = 6\nhidden = [32, 32]\n[train]\nbatch = 128\nsteps = 500\nfit_base = false\n",
    );
    folder.succeed("fit data.csv --out run --config some.toml");
    let html = folder.read("run/report.html");
    let page = parsed(&html);
    let row =
        page.descendants().find(|n| n.has_tag_name(("http://www.w3.org/1999/xhtml", "th")) && n.text() == Some("251"));
    let row = row.and_then(|n| n.parent()).expect("row 251 is among the strangest");
    let cells: String = row.descendants().filter(roxmltree::Node::is_text).filter_map(|n| n.text()).collect();
    assert!(cells.contains("double = 2, expected 1") || cells.contains("size = 8, expected"), "{cells}");
}

#[test]
fn hostile_names_stay_text() {
    let folder = Folder::new();
    let names = [
        "<script>alert(1)</script>",
        "</style><img src=x onerror=alert(1)>",
        "\"\" onload=\"\"alert(1)",
        "&amp;]]><!--",
        "\u{202e}gnirts\u{7}",
        &"very long ".repeat(200),
    ];
    let mut data = names.map(|n| format!("\"{n}\"")).join(",") + "\n";
    for i in 0..120_u32 {
        let cells: Vec<String> = (1..=6).map(|j| (i * (2 * j + 7) % 101 + i / 7).to_string()).collect();
        let _ = writeln!(data, "{}", cells.join(","));
    }
    let file = "d<b>&'\".csv";
    folder.write(file, data);
    let mut command = folder.command("fit");
    command.args([file, "--out", "run", "--config", "tiny.toml"]);
    assert!(command.output().expect("the binary runs").status.success());
    let html = folder.read("run/report.html");
    check(&html);
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "names are there, as text");
    assert!(!html.contains('\u{202e}') && !html.contains('\u{7}'));
}

#[test]
fn wide_tables_and_odd_columns_stay_bounded() {
    let folder = Folder::new();
    let columns = 70;
    let mut data = (0..columns).map(|j| format!("column {j}")).collect::<Vec<_>>().join(",") + "\n";
    for i in 0..150_u32 {
        let cells: Vec<String> = (0..columns)
            .map(|j| match j {
                0 => format!("{}", i % 2),
                1 => format!("{}e-30", i % 17),
                2 => format!("{}", if i == 77 { 1e12 } else { f64::from(i % 13) }),
                j => format!("{}", f64::from(i * (3 * j + 5) % 211) * 10_f64.powi(j as i32 % 9 - 4)),
            })
            .collect();
        let _ = writeln!(data, "{}", cells.join(","));
    }
    folder.write("wide.csv", data);
    folder.succeed("fit wide.csv --out run --config tiny.toml --regardless");
    let html = folder.read("run/report.html");
    check(&html);
    assert!(html.contains("24 of 70 columns") && html.contains("6 of 2415 pairs"), "what is left out is said");

    let rows: Vec<String> = (0..200).map(|i| f64::from(i * 31 % 200).sqrt().to_string()).collect();
    folder.write("one.csv", rows.join("\n") + "\n");
    folder.succeed("fit one.csv --out one --config tiny.toml");
    let html = folder.read("one/report.html");
    check(&html);
    assert!(!headings(&parsed(&html)).contains(&"Pairs of columns".to_owned()));
}

#[test]
fn weights_densities_and_limits_have_reports() {
    let folder = Folder::new();
    let weighted: String = csv(200)
        .lines()
        .enumerate()
        .map(|(i, l)| if i == 0 { format!("{l},w\n") } else { format!("{l},{}\n", i % 3) })
        .collect();
    folder.write("data.csv", weighted);
    folder.succeed("fit data.csv --weight w --out weighted --config tiny.toml");
    let html = folder.read("weighted/report.html");
    check(&html);
    assert!(html.contains("drawn by their weights") && html.contains("--weight w"));
    folder.succeed("report weighted data.csv --weight w");

    folder.succeed("fit moons --out moons --config tiny.toml");
    check(&folder.read("moons/report.html"));
    folder.succeed("report moons moons");

    let start = Instant::now();
    let line = "fit data.csv --weight w --out limited --config tiny.toml --steps 1000000 --time-limit 2";
    assert!(folder.succeed(line).contains("report.html"));
    // the other tests share the machine
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    check(&folder.read("limited/report.html"));
}

/// A browser that needs no screen.
fn browser() -> Option<&'static str> {
    let works = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let found = ["chromium", "chromium-browser", "google-chrome", "chrome"].iter().find(works).copied();
    assert!(
        found.is_some() || std::env::var_os("RESFLOW_REQUIRE_BROWSER").is_none(),
        "RESFLOW_REQUIRE_BROWSER is set, and there is no Chromium"
    );
    found
}

/// Opens a page; returns its elements as the browser sees them, and what it wrote to its console.
fn open(browser: &str, profile: &Path, page: &Path) -> (String, Vec<String>) {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser runs");
    let console = text(&output.stderr).lines().filter(|l| l.contains("CONSOLE")).map(str::to_owned).collect();
    (text(&output.stdout), console)
}

#[test]
fn a_browser_finds_no_error() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no Chromium");
        return;
    };
    let folder = Folder::new();
    folder.write("data.csv", csv(400));
    folder.succeed("fit data.csv --out run --config tiny.toml");
    let profile = folder.path("profile");
    // what a console says is seen here
    let broken = folder.write("broken.html", "<!DOCTYPE html><title>x</title><script>nothing.at.all()</script>");
    assert!(!open(browser, &profile, &broken).1.is_empty());
    // the two that are shown in docs, beside the fresh one
    let shown = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/report");
    for page in [folder.path("run/report.html"), shown.join("wine.html"), shown.join("breast_cancer.html")] {
        check(&std::fs::read_to_string(&page).expect("a report"));
        let (seen, console) = open(browser, &profile, &page);
        assert_eq!(console, Vec::<String>::new(), "{}", page.display());
        for heading in SECTIONS {
            assert!(seen.contains(&format!(">{heading}</h2>")), "{heading}");
        }
    }
}
