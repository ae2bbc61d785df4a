//! Variational dequantisation from the command line: a run, its bound in every place where bits/dim are printed, going on, and what is refused.

use crate::binary::Folder;
use crate::images;
use serde_json::Value;

const NOISE: &str = "\
[images]
height = 8
width = 8
blocks = [2, 2]
filters = 4
dequantisation = { kind = \"variational\", blocks = 2, filters = 4, features = 4 }
[train]
batch = 16
steps = 6
validate_every = 3
validation_fraction = 0.2
";

fn object(folder: &Folder, arguments: &str) -> Value {
    serde_json::from_str(&folder.succeed(arguments)).expect("an object")
}

#[test]
fn a_bound_is_never_named_like_the_number() {
    let folder = images::folder();
    folder.write("noise.toml", NOISE);
    let said = folder.run("fit set --model realnvp --config noise.toml --out run --seed 3");
    let [summary, progress] = [&said.stdout, &said.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(said.status.success(), "{progress}");
    assert!(summary.contains("≤ ") && summary.contains("(nll ≤ "), "{summary}");
    assert!(progress.contains("bits/dim ≤ "), "{progress}");
    assert!(folder.read("run/config.toml").contains("kind = \"variational\""));
    // the switch and the table are the same run
    folder.write("plain.toml", NOISE.replace("kind = \"variational\", ", ""));
    folder.succeed("fit set --model realnvp --config plain.toml --dequantisation variational --out again --seed 3");
    let model = |run: &str| std::fs::read(folder.path(run).join("model.safetensors")).expect("a model");
    assert!(model("run") == model("again"));
    let longer = folder.succeed("fit set --model realnvp --dequantisation variational --out again --resume --steps 8");
    assert!(longer.contains(" 8 steps"), "{longer}");
    let error = folder.fail("fit set --dequantisation uniform --out run --resume", 2);
    assert!(error.contains("that of the run in") && error.contains("is variational"), "{error}");

    let text = folder.succeed("score run set");
    assert!(text.starts_with("bits/dim ≤  ") && text.contains("mean log p  ≥ ") && text.contains("(nll ≤ "), "{text}");
    folder.succeed("score run set --out scores.csv");
    assert!(folder.read("scores.csv").starts_with("bits_per_dim_at_most,bits_per_dim_se,log_prob_at_least,se"));
    let one = object(&folder, "score run set --json");
    assert!(one["bound"].is_string(), "{one}");
    let many = object(&folder, "score run set --json --importance 8");
    let bits = |object: &Value| object["mean_bits_per_dim"].as_f64().expect("a number");
    // of other draws of the noise, which says nothing of the mean; that is for the library's tests
    assert!(bits(&many) != bits(&one) && (bits(&one) - bits(&many)).abs() < 0.05, "{} and {}", bits(&one), bits(&many));
    let same = object(&folder, "score run set --json --importance 1");
    assert_eq!(bits(&same), bits(&one));
    let text = folder.succeed("score run set --importance 4");
    assert!(text.starts_with("bits/dim ≤  ") && text.contains("importance weights of 4 draws"), "{text}");

    let inspected = folder.succeed("inspect run");
    assert!(inspected.contains("nats, ≤ ") && inspected.contains(" bits/dim"), "{inspected}");
    let inspected = object(&folder, "inspect run --json");
    assert!(inspected["bound"].is_string() && inspected["dequantiser"].is_string());
    folder.succeed("sample run -n 4 --out grid.png");
    folder.succeed("encode run set --out z.npy");
}

#[test]
fn what_is_refused() {
    let folder = images::fitted();
    // a residual flow estimates log p
    let error = folder.fail("score run set --importance 4", 1);
    assert!(error.contains("`exact` as the estimator"), "{error}");
    let text = folder.succeed("score run set --importance 3 --estimator exact --rows 4");
    assert!(text.starts_with("bits/dim ≤  "), "uniform noise has importance weights too: {text}");
    assert!(folder.succeed("score run set --estimator exact --rows 4").starts_with("bits/dim    "));
    folder.fail("score run set --importance 0", 2);
    folder.fail("score run set --importance 2 --replicates 4", 2);
    folder.write("noise.toml", NOISE);
    let error = folder.fail("fit set --model realnvp --config noise.toml --dequantisation uniform --out other", 2);
    assert!(error.contains("says dequantisation is variational"), "{error}");
    let error = folder.fail("fit moons --dequantisation variational --out other", 2);
    assert!(error.contains("is for images of bytes"), "{error}");
    folder.fail("fit set --dequantisation gaussian --out other", 2);
}
