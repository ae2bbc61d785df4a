//! A model of the reference implementation from the command line: imported from a state dict and from torch's file, and
//! checked number by number.

use std::path::Path;

use crate::binary::{Folder, text};
use resflow::data::image::{ImageStack, npy};
use resflow::data::npy::Float;
use safetensors::SafeTensors;

/// The architecture of the fixture `image_factor_out`.
const ARCHITECTURE: &str = "\
[images]
height = 8
width = 8
channels = 3
logit_alpha = 0.05
blocks = [2, 1]
filters = 10
activation = \"elu\"
factor_out = true
fully_connected = 0
coefficient = 0.9
evaluation = \"exact\"
";

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A folder with `arch.toml`, `state.safetensors`, `state.pth` and the images `x.npy`.
fn folder() -> (Folder, Vec<u8>) {
    let folder = Folder::new();
    folder.write("arch.toml", ARCHITECTURE);
    let bytes = std::fs::read(fixture("image_factor_out.safetensors")).expect("in the repository");
    folder.write("state.safetensors", &bytes);
    folder.write("state.pth", std::fs::read(fixture("pth/factor_out.pth")).expect("in the repository"));
    let stack = ImageStack::new(8, 8, 3, numbers(&bytes, "x")).expect("images in [0, 1]");
    let mut file = Vec::new();
    npy::write_stack(&stack, Float::F8, &mut file).expect("memory");
    folder.write("x.npy", file);
    (folder, bytes)
}

fn numbers(bytes: &[u8], name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let data = file.tensor(name).expect(name).data().to_vec();
    data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn close(found: impl Iterator<Item = f64>, expected: &[f64], tolerance: f64) {
    let scale = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let found: Vec<f64> = found.collect();
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance * scale, "{a} for {b}");
    }
}

#[test]
fn an_imported_model_has_the_references_numbers() {
    let (folder, bytes) = folder();
    for state in ["state.safetensors", "state.pth"] {
        let said = folder.succeed(&format!("import {state} --config arch.toml --out model.safetensors"));
        assert!(said.contains("f64") && said.contains("3 blocks"), "{said}");
        folder.succeed("encode model.safetensors x.npy --out z.csv");
        let (header, rows) = folder.table("z.csv");
        assert!(header.starts_with("z1,z2") && header.ends_with("log_det,se"), "{header}");
        close(rows.iter().flat_map(|row| row[..192].to_vec()), &numbers(&bytes, "z"), 1e-9);
        close(rows.iter().map(|row| row[192]), &numbers(&bytes, "logdet"), 1e-9);
        folder.succeed("score model.safetensors x.npy --out scores.csv");
        let (header, rows) = folder.table("scores.csv");
        assert_eq!(header, "bits_per_dim,bits_per_dim_se,log_prob,se");
        close(rows.iter().map(|row| row[0]), &numbers(&bytes, "bits_per_dim"), 1e-9);
        close(rows.iter().map(|row| row[2]), &numbers(&bytes, "logp"), 1e-9);
    }
    // the average of this file is the weights themselves; its singular vectors are converged anew
    folder.succeed("import state.pth --ema --config arch.toml --out averaged.safetensors");
    folder.succeed("score averaged.safetensors x.npy --out scores.csv");
    let (_, rows) = folder.table("scores.csv");
    close(rows.iter().map(|row| row[0]), &numbers(&bytes, "bits_per_dim"), 1e-2);
}

#[test]
fn what_does_not_belong_is_named() {
    let (folder, bytes) = folder();
    let import = |state: &str, config: &str| format!("import {state} --config {config} --out m.safetensors");
    let changed = |from: &str, to: &str| folder.write("other.toml", ARCHITECTURE.replace(from, to));
    for (from, to, code, expected) in [
        ("filters = 10", "filters = 12", 1, "has shape [10, 3, 3, 3], expected [12, 3, 3, 3]"),
        ("blocks = [2, 1]", "blocks = [1, 1]", 1, "tensors that nothing uses"),
        ("blocks = [2, 1]", "blocks = [2, 2]", 1, "is missing"),
        ("height = 8", "height = 16", 1, "shape"),
        ("\"elu\"", "\"lip-swish\"", 1, "beta`: is missing"),
        ("[images]", "[train]", 2, "unknown field"),
        ("filters = 10", "norms = \"122f\"", 2, "norm"),
        ("filters = 10", "kernels = [2, 1, 3]", 2, "`kernels` is 2"),
    ] {
        changed(from, to);
        let error = folder.fail(&import("state.safetensors", "other.toml"), code);
        assert!(error.contains(expected), "{to}: {error}");
    }
    folder.write("cut.safetensors", &bytes[..bytes.len() / 2]);
    folder.write("noise.pth", b"PK\x03\x04 and nothing more");
    for state in ["cut.safetensors", "noise.pth"] {
        assert!(folder.fail(&import(state, "arch.toml"), 1).contains(state));
    }
    assert!(folder.fail(&import("gone.pth", "arch.toml"), 2).contains("not found"));
    let ema = folder.run("import state.safetensors --ema --config arch.toml --out m.safetensors");
    assert!(!ema.status.success() && text(&ema.stderr).contains("average"), "{}", text(&ema.stderr));
    assert!(!folder.path("m.safetensors").exists());
}

#[test]
fn state_dicts_of_training_programs() {
    let (folder, bytes) = folder();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    // the tensors of the flow below these names
    let write = |name: &str, prefixes: &[&str]| {
        let mut views = Vec::new();
        for (full, view) in file.tensors() {
            let Some(inner) = full.strip_prefix("param.").or_else(|| full.strip_prefix("buffer.")) else { continue };
            views.extend(prefixes.iter().map(|prefix| (format!("{prefix}{inner}"), view.clone())));
        }
        folder.write(name, safetensors::serialize(views, None).expect("memory"));
    };
    write("compiled.safetensors", &["_orig_mod.module."]);
    write("lightning.safetensors", &["model."]);
    write("two.safetensors", &["model.", "model_ema.module."]);
    for (line, note) in [
        ("compiled.safetensors", None),
        ("lightning.safetensors", Some("`model.` is taken off")),
        ("two.safetensors --key model", Some("`model.` is taken off")),
        ("two.safetensors --key model_ema", Some("`model_ema.` is taken off")),
    ] {
        let output = folder.run(&format!("import {line} --config arch.toml --out model.safetensors"));
        let said = text(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
        assert!(note.map_or(!said.contains("note"), |note| said.contains(note)), "{line}: {said}");
        folder.succeed("score model.safetensors x.npy --out scores.csv");
        let (_, rows) = folder.table("scores.csv");
        close(rows.iter().map(|row| row[2]), &numbers(&bytes, "logp"), 1e-9);
    }
    let error = folder.fail("import two.safetensors --config arch.toml --out m.safetensors", 1);
    assert!(error.contains("below `model`, `model_ema`") && error.contains("--key"), "{error}");
    // what the file shows of the first block goes before the configuration
    folder.write("first.toml", ARCHITECTURE.replace("[images]", "[images]\nfirst_activation = true"));
    let output = folder.run("import state.safetensors --config first.toml --out model.safetensors");
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("first block does not begin with an activation"), "{said}");
    folder.succeed("score model.safetensors x.npy --out scores.csv");
    let (_, rows) = folder.table("scores.csv");
    close(rows.iter().map(|row| row[2]), &numbers(&bytes, "logp"), 1e-9);
}
