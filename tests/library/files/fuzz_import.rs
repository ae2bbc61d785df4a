//! State dicts and pickles: mutations of the fuzz targets' seeds without a fuzzer, the memory that hostile files take, and
//! where the seeds come from.

use std::path::{Path, PathBuf};

use resflow::backend::Generator;
use resflow::import::{StateDict, Weights};

use crate::files::checks_import as checks;
use crate::memory::peak;
use crate::mutation::{self, below, fuzz, mutate};
use crate::pickling::{Entry, call, checkpoint, dict, global, int, object, pickle, tensor, text, tuple, zip};

/// Bytes of memory for a byte of a file: a pickle's values, and the room that vectors keep when they grow.
const MULTIPLE: usize = 120;

fn frugal(check: fn(&[u8]) -> bool, bytes: &[u8]) -> bool {
    let (accepted, held) = peak(|| check(bytes));
    assert!(held <= MULTIPLE * bytes.len() + 50_000, "{held} bytes of memory for {} of file", bytes.len());
    accepted
}

const TOKENS: [&[u8]; 36] = [
    b"(",
    b")",
    b"]",
    b"}",
    b"l",
    b"d",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x8f",
    b"\x90",
    b"a",
    b"e",
    b"s",
    b"u",
    b"0",
    b"1",
    b"2",
    b"q\x00h\x00",
    b"r\xff\xff\xff\xff",
    b"\x94",
    b"R",
    b"\x81",
    b"\x92",
    b"b",
    b"cos\nsystem\n",
    b"\x93",
    b"Q",
    b".",
    b"N",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x95\x00\x00\x00\x00\x00\x00\x00\x00",
    b"K\x01",
];

#[test]
fn state_dict_survives_mutations() {
    let good: Vec<_> = mutation::seeds("state_dict").into_iter().filter(|seed| checks::state_dict(seed)).collect();
    assert_eq!(good.len(), 7);
    fuzz(
        "state_dict",
        20_000,
        |bytes| frugal(checks::state_dict, bytes),
        |input, seeds, g| {
            if below(g, 4) > 0 {
                good[below(g, good.len())].clone_into(input);
            }
            mutate(input, seeds, &TOKENS, g);
        },
    );
}

#[test]
fn pickle_survives_mutations() {
    fuzz("pickle", 100_000, |bytes| frugal(checks::pickle, bytes), mutate_pickle);
}

/// The pieces are many short ones: most bytes of a pickle are opcodes or small numbers.
fn mutate_pickle(input: &mut Vec<u8>, seeds: &[Vec<u8>], g: &mut Generator) {
    if below(g, 2) == 0 {
        let at = below(g, input.len() + 1);
        let token = TOKENS[below(g, TOKENS.len())];
        input.splice(at..at, token.iter().copied());
    } else {
        mutate(input, seeds, &TOKENS, g);
    }
}

/// Depth, cycles, counts and sizes that are only declared: an error or an inert value, in little memory.
#[test]
fn hostile_pickles_take_little_memory() {
    let many = |piece: &[u8], times: usize| piece.repeat(times);
    let million = 1_000_000;
    let weights = || dict(&[("w", tensor(16, 0, &[1], &[1]))]);
    let cases: [(&str, Vec<u8>, bool); 18] = [
        ("tuples in tuples", [many(b")", 1), many(b"\x85", million)].concat(), true),
        ("lists in lists", [many(b"]", million), many(b"a", million - 1)].concat(), true),
        ("marks", many(b"(", million), false),
        ("marks and tuples", [many(b"(", million), many(b"t", million)].concat(), true),
        ("empty lists", [b"(".to_vec(), many(b"]", million), b"l".to_vec()].concat(), true),
        ("lists made and dropped", [many(b"]0", million), b"N".to_vec()].concat(), true),
        (
            "lists on the foot of a tall stack",
            [many(b"N", million), b"1N".to_vec(), many(b"0(Nl", 10_000)].concat(),
            true,
        ),
        ("memo", [b"N".to_vec(), many(b"\x94", million)].concat(), true),
        ("memo of far indices", b"Nr\xff\xff\xff\xff".to_vec(), true),
        ("objects", [b"(".to_vec(), many(b"))R", million), b"t".to_vec()].concat(), true),
        ("a list in itself", b"]q\x00h\x00a".to_vec(), true),
        ("a dict in itself", b"}q\x00Nh\x00s".to_vec(), true),
        ("an object whose state is itself", [global("a", "B"), b")\x81q\x00h\x00b".to_vec()].concat(), true),
        ("a name that is a list", b"]q\x00h\x00\x93".to_vec(), true),
        ("a text of 4 GiB", b"X\xff\xff\xff\xff".to_vec(), false),
        ("a text of 16 EiB", b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), false),
        ("an integer of 2 GiB", b"\x8b\xff\xff\xff\x7f".to_vec(), false),
        ("an unknown opcode", b"\xff".to_vec(), false),
    ];
    for (name, inside, inert) in cases {
        // beside a state dict it does not matter, unless the pickle as a whole is broken
        let beside = [b"}(", &text("junk")[..], &inside, &text("state_dict"), &weights(), b"u"].concat();
        let beside = if name.contains("foot") {
            // POP_MARK needs the mark, and the stack's foot is only the foot without a dict below
            [b"(", &inside[..], &dict(&[("state_dict", weights())])].concat()
        } else {
            beside
        };
        for file in [checkpoint(&beside, &[0; 64]), checks::legacy(&pickle(&beside), &[("0", 16, &[0; 64])])] {
            let accepted = frugal(checks::state_dict, &file);
            assert_eq!(accepted, inert, "{name}: {:?}", StateDict::from_pth(&file, Weights::Current).err());
        }
        // in its place it is an error
        let instead = [b"}(", &text("state_dict")[..], &inside, b"u"].concat();
        assert!(!frugal(checks::state_dict, &checkpoint(&instead, &[0; 64])), "{name}");
    }
}

/// There is a limit beyond which more memory is not to be had for more bytes.
#[test]
fn the_number_of_values_is_limited() {
    let file = checkpoint(&[b"(".to_vec(), b"]".repeat(5_000_000), b"t".to_vec()].concat(), &[0; 64]);
    let error = StateDict::from_pth(&file, Weights::Current).expect_err("too many").to_string();
    assert!(error.starts_with("pickle, byte 41943") && error.ends_with("more than 4194304 values"), "{error}");
}

/// A self-referential dict, list or tuple where tensors are sought is an error, not a search without an end.
#[test]
fn cycles_where_tensors_are_sought() {
    for value in [
        b"}q\x00X\x0a\x00\x00\x00state_dicth\x00s".to_vec(),
        [b"}q\x00".to_vec(), text("ema"), b"h\x00s".to_vec(), text("shadow_params"), b"h\x00s".to_vec()].concat(),
        // a parameter of itself
        dict(&[(
            "state_dict",
            dict(&[(
                "w",
                [global("torch._utils", "_rebuild_parameter"), b"]q\x00Rq\x01h\x00h\x01a0".to_vec()].concat(),
            )]),
        )]),
    ] {
        assert!(!frugal(checks::state_dict, &checkpoint(&value, &[0; 64])));
    }
}

/// Names of a file come back in errors as a few printable lines.
#[test]
fn errors_quote_files_in_printable_characters() {
    let ugly = "\u{1b}]0;title\u{7}\n".repeat(300);
    for value in [
        dict(&[("state_dict", dict(&[(&ugly, int(1))]))]),
        dict(&[(&ugly, int(1))]),
        dict(&[("state_dict", call((&ugly.replace('\n', ""), "\r"), &[]))]),
        dict(&[("state_dict", dict(&[(&ugly, tensor(16, 0, &[99], &[1]))]))]),
        format!("I{}\n", "\0".repeat(600)).into_bytes(),
        format!("I{}\n", ugly.replace('\n', "\t")).into_bytes(),
    ] {
        // the check looks at the messages
        assert!(!checks::state_dict(&checkpoint(&value, &[0; 64])));
    }
    let unused = dict(&[("state_dict", dict(&[(&ugly, tensor(16, 0, &[1], &[1]))]))]);
    assert!(checks::state_dict(&checkpoint(&unused, &[0; 64])));
}

/// Where seeds are written: `RESFLOW_WRITE_SEEDS=fuzz/seeds` renews the committed ones; without it the writing is tried on a
/// temporary folder.
fn seeds_folder(temporary: &tempfile::TempDir, kind: &str) -> PathBuf {
    let folder =
        std::env::var_os("RESFLOW_WRITE_SEEDS").map_or_else(|| temporary.path().to_owned(), PathBuf::from).join(kind);
    std::fs::create_dir_all(&folder).expect("writable");
    folder
}

#[test]
fn write_pickle_seeds() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = seeds_folder(&temporary, "pickle");
    let write = |name: &str, value: &[u8]| std::fs::write(folder.join(name), pickle(value)).expect("writable");
    let one = |offset: i64, shape: &[i64], strides: &[i64]| tensor(16, offset, shape, strides);
    let weights = || dict(&[("module.a.weight", one(0, &[2, 3], &[1, 2])), ("module.a.u", one(4, &[2], &[1]))]);
    let shadow = dict(&[("module.a.weight", one(2, &[2, 3], &[3, 1]))]);
    let ema = object(("lib.utils", "ExponentialMovingAverage"), &[("decay", int(0)), ("shadow_params", shadow)]);
    let args = object(("argparse", "Namespace"), &[("coeff", b"G\x3f\xef\x5c\x28\xf5\xc2\x8f\x5c".to_vec())]);
    write("checkpoint", &dict(&[("state_dict", weights()), ("args", args), ("ema", ema)]));
    let list = [b"](", &one(2, &[2, 3], &[3, 1])[..], b"e"].concat();
    let listed = object(("lib.utils", "ExponentialMovingAverage"), &[("shadow_params", list)]);
    write("listed", &dict(&[("state_dict", weights()), ("ema", listed)]));
    write("alone", &dict(&[("param.w", one(0, &[16], &[1])), ("x", int(3)), ("buffer.u", one(15, &[], &[]))]));
    let parameter = call(("torch._utils", "_rebuild_parameter"), &[one(0, &[2], &[8]), b"\x88".to_vec()]);
    let pairs = [b"](", &tuple(&[text("w"), parameter])[..], b"e"].concat();
    write("ordered", &dict(&[("state_dict", call(("collections", "OrderedDict"), &[pairs]))]));
    write("system", &dict(&[("state_dict", call(("os", "system"), &[text("true")]))]));
    write("beyond", &dict(&[("w", one(8, &[3, 3], &[3, 1]))]));
    write("cycle", b"}q\x00X\x0a\x00\x00\x00state_dicth\x00s");
    write("old", b"(dp0\nS'state_dict'\np1\n(lp2\nI01\naL5L\naF0.5\naVx\nas");
    write("opcode", b"}\xff");
    write("digits", &[&b"I"[..], &[0; 400], b"\n"].concat());
    write("cut", b"}(X\x0a\x00\x00\x00state");
    let flow = || dict(&[("model._orig_mod.chain.0.weight", one(0, &[2], &[1]))]);
    let list = |item: Vec<u8>| [b"](", &item[..], b"e"].concat();
    write("nested", &dict(&[("step", int(3)), ("nets", list(dict(&[("model", flow())])))]));
    write("several", &dict(&[("model", flow()), ("ema", flow())]));
}

#[test]
fn write_state_dict_seeds() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = seeds_folder(&temporary, "state_dict");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pth");
    let fixture = |name: &str| std::fs::read(fixtures.join(name)).expect("the fixture is in the repository");
    let write = |name: &str, bytes: &[u8]| {
        assert!(bytes.len() < 16_000, "{name} has {} bytes", bytes.len());
        std::fs::write(folder.join(name), bytes).expect("writable");
    };
    for name in ["alone.pth", "listed_legacy.pth", "expected.safetensors"] {
        write(name, &fixture(name));
    }
    let weights = dict(&[("state_dict", dict(&[("w", tensor(16, 0, &[2], &[1]))]))]);
    let numbers: Vec<u8> = (0..16_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let small = checkpoint(&weights, &numbers);
    write("small.pth", &small);
    write("cut.pth", &small[..small.len() - 30]);
    write("short.pth", &checkpoint(&weights, &numbers[1..]));
    write("system.pth", &checkpoint(&dict(&[("state_dict", call(("os", "system"), &[text("true")]))]), &numbers));
    write("other.pth", &checkpoint(&dict(&[("model", int(1))]), &numbers));
    write("unlisted.pth", &checks::legacy(&pickle(&weights), &[]));
    write("text.csv", b"1,2\n");
    let flow = |prefix: &str| dict(&[(&*format!("{prefix}chain.0.weight"), tensor(16, 0, &[2], &[1]))]);
    write("nested.pth", &checkpoint(&dict(&[("step", int(3)), ("net", dict(&[("model", flow(""))]))]), &numbers));
    write("lightning.ckpt", &checkpoint(&dict(&[("state_dict", flow("model."))]), &numbers));
    let entries = [Entry::deflated("m/data.pkl", &pickle(&weights)), Entry::deflated("m/data/0", &numbers)];
    write("deflated.pth", &zip(&entries));
    write("several.pth", &checkpoint(&dict(&[("a", flow("")), ("b", flow(""))]), &numbers));
}
