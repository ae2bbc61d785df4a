//! Configurations and checkpoints: mutations of the fuzz targets' seeds without a fuzzer.

use resflow::backend::Generator;
use resflow::checkpoint::{Archive, Values};
use serde_json::{Value, json};

use crate::files::checks;
use crate::files::frame;
use crate::memory::peak;
use crate::mutation::{self, below, fuzz, mutate};

/// Bytes of memory for a byte of a file: names and handles of tensors of one number, and the optimiser's copies.
const MULTIPLE: usize = 20;

/// Reading takes memory of the order of the file; what was accepted computes.
pub(crate) fn checkpoint(bytes: &[u8]) -> bool {
    let (loaded, held) = peak(|| checks::load(bytes));
    assert!(held <= MULTIPLE * bytes.len() + 50_000, "{held} bytes of memory for {} of file", bytes.len());
    let accepted = loaded.is_some();
    loaded.into_iter().for_each(checks::Loaded::examine);
    accepted
}

#[test]
fn configuration_survives_mutations() {
    let tokens: [&[u8]; 37] = [
        b"[flow]\n",
        b"[train]\n",
        b"= ",
        b"\n",
        b"\"",
        b"'''",
        b"{ ",
        b" }",
        b"[",
        b"]",
        b",",
        b":",
        b".",
        b"-1",
        b"0",
        b"1e999",
        b"nan",
        b"-inf",
        b"0.5",
        b"9223372036854775807",
        b"18446744073709551615",
        b"training = \"exact\"\n",
        b"evaluation = { truncated = { terms = 3 } }\n",
        b"hidden = [16, 16]\n",
        b"blocks = [2, 1]\n",
        b"kernels = [3, 1, 3]\n",
        b"norms = \"2f2\"\n",
        b"squeeze_first = true\n",
        b"model = \"glow\"\n",
        b"model = \"realnvp\"\n",
        b"model = \"nsf\"\n",
        b"classes = 10\n",
        b"head_width = 4\n",
        b"roulette:law=poisson,rate=2",
        b"p=0.001",
        b"\\u0000",
        b"\xff",
    ];
    fuzz("config", 100_000, checks::config, |input, seeds, g| mutate(input, seeds, &tokens, g));
}

/// Changes bytes anywhere, the header or a few bits of the numbers inside the frame, or what the metadata says.
fn mutate_checkpoint(input: &mut Vec<u8>, seeds: &[Vec<u8>], g: &mut Generator) {
    const TOKENS: [&[u8]; 14] = [
        b"0",
        b"-1",
        b"9999",
        b"1e999",
        b"null",
        b"\\\"",
        b"[[[[",
        b"{",
        b"\"F32\"",
        b"\"BF16\"",
        b"18446744073709551615",
        b"\x00\x00\x00\x00\x00\x00\xf0\x7f",
        b"\x00\x00\x00\x00\x00\x00\xf0\xff",
        b"\xff\xff\xff\xff\xff\xff\xef\x7f",
    ];
    let opened = frame::open(input).map(|(header, numbers)| (header.to_vec(), numbers.to_vec()));
    match (below(g, 8), opened) {
        (0, Some((mut header, numbers))) => {
            mutate(&mut header, seeds, &TOKENS, g);
            *input = frame::close(&header, &numbers);
        }
        (1 | 2, Some((header, mut numbers))) => {
            for _ in 0..=below(g, 3) {
                let at = below(g, numbers.len().max(1));
                if let Some(byte) = numbers.get_mut(at) {
                    *byte ^= 1 << below(g, 8);
                }
            }
            *input = frame::close(&header, &numbers);
        }
        (3..=6, Some(_)) => {
            if let Ok(mut archive) = Archive::from_bytes(input) {
                for _ in 0..=below(g, 1) {
                    change_archive(&mut archive, g);
                }
                *input = archive.to_bytes().unwrap_or_default();
            }
        }
        _ => mutate(input, seeds, &TOKENS, g),
    }
}

/// Numbers that settings of all kinds can be set to.
fn hostile_number(g: &mut Generator) -> Value {
    let numbers = [
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(1000),
        json!(10_000),
        json!(65_536),
        json!(1 << 24),
        json!(1_u64 << 39),
        json!(u64::MAX),
        json!(0.5),
        json!(1e-3),
        json!(1e300),
        json!(-1e-300),
        Value::Null,
    ];
    numbers[below(g, numbers.len())].clone()
}

/// The values inside a document that hold no other ones.
fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(entries) => entries.values_mut().for_each(|v| leaves(v, found)),
        Value::Array(entries) => entries.iter_mut().for_each(|v| leaves(v, found)),
        leaf => found.push(leaf),
    }
}

/// Changes one thing that a well-formed file says.
fn change_archive(archive: &mut Archive, g: &mut Generator) {
    if below(g, 4) > 0 {
        let mut found = Vec::new();
        leaves(&mut archive.document, &mut found);
        if found.is_empty() {
            return;
        }
        let at = below(g, found.len());
        *found[at] = match below(g, 4) {
            0 => json!(
                ["exact", "auto", "truncated:terms=3,probes=2", "roulette:p=0.5", "relu", "clip-swish", "cpila"]
                    [below(g, 7)]
            ),
            1 => json!([hostile_number(g), hostile_number(g)]),
            2 => json!(below(g, 2) == 0),
            _ => hostile_number(g),
        };
        return;
    }
    let names: Vec<String> = archive.tensors.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = names[below(g, names.len())].clone();
    let (shape, values) = archive.tensors.remove(&name).expect("a name of it");
    match below(g, 4) {
        0 => {}
        1 => drop(archive.tensors.insert(format!("{name}x"), (shape, values))),
        2 => drop(archive.tensors.insert(names[below(g, names.len())].clone(), (shape, values))),
        _ => {
            let mut numbers = values.to::<f64>();
            let edges = [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE, 0.0, -1.0, 1e-310, 3.0];
            for _ in 0..=below(g, 4) {
                let at = below(g, numbers.len().max(1));
                if let Some(number) = numbers.get_mut(at) {
                    *number = edges[below(g, edges.len())];
                }
            }
            archive.tensors.insert(name, (shape, Values::F64(numbers)));
        }
    }
}

#[test]
fn checkpoint_survives_mutations() {
    let good: Vec<_> = mutation::seeds("checkpoint").into_iter().filter(|seed| checkpoint(seed)).collect();
    let names = "begun, categories, categories_given, conditional, dense_image, dense_run, estimated, flowpp, flowpp_image, glow, glow_run, hybrid_run, image, image_conditional, image_implicit, \
                 image_monotone, image_run, implicit_run, imputer, mapped, model, monotone_run, nsf, nsf_run, realnvp_image and run";
    assert_eq!(good.len(), 29, "{names} are good, each other one is wrong in its own way");
    fuzz("checkpoint", 20_000, checkpoint, |input, seeds, g| {
        if below(g, 4) > 0 {
            good[below(g, good.len())].clone_into(input);
        }
        mutate_checkpoint(input, seeds, g);
    });
}
