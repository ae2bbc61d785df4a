//! State dicts of the reference implementation: what torch wrote comes back to the bit, from both of its formats; what is no
//! state dict is refused. `fixtures/pth/make.py` made the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use resflow::checkpoint::Values;
use resflow::import::{Argument, ImportError, StateDict, Weights};
use safetensors::{Dtype, SafeTensors};

use crate::files::checks_import::{self as checks, legacy};
use crate::pickling::{Entry, call, checkpoint, dict, global, int, object, pickle, storage, tensor, text, tuple, zip};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).expect("the fixture is in the repository")
}

/// The tensors of the safetensors file whose names begin so, read without the library.
fn expected(prefix: &str) -> BTreeMap<String, (Vec<usize>, Values)> {
    let bytes = bytes("pth/expected.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut found = BTreeMap::new();
    for (name, view) in file.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?, view))) {
        let (fours, eights) = (view.data().as_chunks::<4>().0, view.data().as_chunks::<8>().0);
        let values = match view.dtype() {
            Dtype::F32 => Values::F32(fours.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F64 => Values::F64(eights.iter().map(|b| f64::from_le_bytes(*b)).collect()),
            Dtype::I64 => Values::F64(eights.iter().map(|b| i64::from_le_bytes(*b) as f64).collect()),
            Dtype::BOOL => Values::F64(view.data().iter().map(|&b| f64::from(b)).collect()),
            other => panic!("{name} is of type {other}"),
        };
        found.insert(name.to_owned(), (view.shape().to_vec(), values));
    }
    assert_eq!(found.len(), 13, "{prefix}");
    found
}

#[test]
fn checkpoints_of_both_formats_come_back_to_the_bit() {
    for (name, precision) in [("single", "f32"), ("double", "f64"), ("listed", "f32")] {
        for (weights, part) in [(Weights::Current, "current"), (Weights::Ema, "ema")] {
            for format in ["", "_legacy"] {
                let file = format!("{name}{format}.pth");
                let state = StateDict::read(&fixture(&format!("pth/{file}")), weights);
                let state = state.unwrap_or_else(|e| panic!("{file}, {weights:?}: {e}"));
                assert_eq!(state.tensors, expected(&format!("{name}.{part}.")), "{file}, {weights:?}");
                // geom_p is in double precision in both
                assert_eq!(state.precision(), precision, "{file}");
            }
        }
    }
}

#[test]
fn averages_differ_from_the_weights_and_buffers_do_not() {
    let [mut current, mut average] =
        [Weights::Current, Weights::Ema].map(|w| StateDict::read(&fixture("pth/single.pth"), w).expect("readable"));
    for (name, shape) in [("weight", vec![3, 4]), ("bias", vec![3]), ("beta", vec![1]), ("again", vec![1])] {
        let now: Vec<f32> = current.take(name, &shape).expect("there");
        // what make.py made of it
        let twice: Vec<f32> = now.iter().map(|x| x * 2.0 + 1.0).collect();
        assert_eq!(average.take::<f32>(name, &shape).expect("there"), twice, "{name}");
    }
    for (name, shape) in [("u", vec![3]), ("v", vec![4]), ("scale", vec![]), ("spatial_dims", vec![3])] {
        let [now, then] = [&mut current, &mut average].map(|s| s.take::<f64>(name, &shape).expect("there"));
        assert_eq!(now, then, "{name}");
    }
}

#[test]
fn a_state_dict_alone_and_the_saved_arguments() {
    let alone = StateDict::read(&fixture("pth/alone.pth"), Weights::Current).expect("readable");
    assert_eq!(alone.tensors, expected("single.current."));
    assert!(alone.arguments.is_empty());
    let error = StateDict::read(&fixture("pth/alone.pth"), Weights::Ema).expect_err("no average").to_string();
    assert!(error.contains("no `ema`"), "{error}");
    for file in ["single.pth", "single_legacy.pth"] {
        let state = StateDict::read(&fixture("pth").join(file), Weights::Current).expect("readable");
        let arguments = BTreeMap::from([
            ("coeff".to_owned(), Argument::Float(0.98)),
            ("act".to_owned(), Argument::Text("swish".into())),
            ("nblocks".to_owned(), Argument::Text("2-2".into())),
            ("fc".to_owned(), Argument::Bool(false)),
            ("idim".to_owned(), Argument::Int(512)),
        ]);
        assert_eq!(state.arguments, arguments);
    }
}

#[test]
fn golden_files_are_read_without_the_numbers_beside_them() {
    let mut state = StateDict::read(&fixture("dense_2d.safetensors"), Weights::Current).expect("readable");
    assert_eq!(state.precision(), "f64");
    assert!(state.tensors.keys().all(|name| name.starts_with("chain.")), "{:?}", state.tensors.keys());
    assert_eq!(state.take::<f64>("chain.0.nnet.1.weight", &[16, 2]).expect("there").len(), 32);
    let error = StateDict::read(&fixture("dense_2d.safetensors"), Weights::Ema).expect_err("no average").to_string();
    assert!(error.contains("no average"), "{error}");
}

#[test]
fn tensors_are_taken_once_and_checked() {
    let file = bytes("pth/single.pth");
    let mut state = StateDict::from_pth(&file, Weights::Current).expect("readable");
    let message = |e: ImportError| e.to_string();
    let missing = state.take::<f32>("weights", &[3, 4]).map_err(message);
    assert_eq!(missing, Err("tensor `weights`: is missing".into()));
    let shape = state.take::<f32>("weight", &[4, 3]).map_err(message);
    assert_eq!(shape, Err("tensor `weight`: has shape [3, 4], expected [4, 3]".into()));
    state.take::<f32>("weight", &[3, 4]).expect("there");
    assert!(state.take::<f32>("weight", &[3, 4]).is_err(), "taken twice");
    let unused = state.clone().finish().expect_err("most are left").to_string();
    // 13 without weight, geom_p, lamb and last_n_samples
    assert!(unused.starts_with("9 tensors that nothing uses: again, beta, bias, initialized, scale, …"), "{unused}");
    state.remove_ignored();
    assert_eq!(state.tensors.len(), 9);
    let names: Vec<_> = state.tensors.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
    for (name, shape) in names {
        state.take::<f64>(&name, &shape).expect("finite");
    }
    state.finish().expect("nothing is left");

    for bad in [f32::NAN, f32::INFINITY] {
        let file = checkpoint(&dict(&[("state_dict", dict(&[("w", tensor(1, 0, &[1], &[1]))]))]), &bad.to_le_bytes());
        let error = StateDict::from_pth(&file, Weights::Current).expect("readable").take::<f32>("w", &[1]);
        assert!(error.expect_err("not finite").to_string().contains("tensor `w`: holds numbers that are not finite"));
    }
}

/// The error of a checkpoint with this pickle, in both formats, and sixteen numbers 0, 1, …
fn refused(value: &[u8], weights: Weights) -> String {
    let numbers: Vec<u8> = (0..16_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let new = StateDict::from_pth(&checkpoint(value, &numbers), weights).expect_err("refused").to_string();
    let old = StateDict::from_pth(&legacy(&pickle(value), &[("0", 16, &numbers)]), weights);
    old.expect_err("refused in the older format");
    new
}

/// A file with this tensor, and nothing else, in its state dict.
fn holding(tensor: Vec<u8>) -> Vec<u8> {
    dict(&[("state_dict", dict(&[("w", tensor)]))])
}

#[test]
fn windows_of_storages() {
    let numbers: Vec<u8> = (0..16_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let read = |value: &[u8]| {
        let [new, old] = [checkpoint(value, &numbers), legacy(&pickle(value), &[("0", 16, &numbers)])]
            .map(|file| StateDict::from_pth(&file, Weights::Current).expect("readable").tensors);
        assert_eq!(new, old);
        let (shape, values) = new["w"].clone();
        (shape, values.to::<f32>())
    };
    assert_eq!(read(&holding(tensor(16, 3, &[], &[]))), (vec![], vec![3.0]));
    assert_eq!(read(&holding(tensor(16, 1, &[2, 3], &[1, 5]))), (vec![2, 3], vec![1.0, 6.0, 11.0, 2.0, 7.0, 12.0]));
    assert_eq!(read(&holding(tensor(16, 0, &[2, 2, 2], &[8, 0, 1]))).1, [0.0, 1.0, 0.0, 1.0, 8.0, 9.0, 8.0, 9.0]);
    assert_eq!(read(&holding(tensor(16, 15, &[1, 1], &[1 << 40, 99]))).1, [15.0]);
    assert_eq!(read(&holding(tensor(16, 0, &[1 << 40, 0, 1 << 40], &[1, 1, 1]))), (vec![1 << 40, 0, 1 << 40], vec![]));
    // as Python 2 pickles an ordered dict
    let pairs = [b"](", &tuple(&[text("w"), tensor(16, 2, &[1], &[1])])[..], b"e"].concat();
    let ordered = call(("collections", "OrderedDict"), &[pairs]);
    assert_eq!(read(&dict(&[("state_dict", ordered)])), (vec![1], vec![2.0]));

    for (case, problem) in [
        (tensor(16, 16, &[1], &[1]), "reaches beyond"),
        (tensor(16, 0, &[2, 2], &[15, 1]), "reaches beyond"),
        (tensor(16, 0, &[17], &[0]), "does not fit"),
        (tensor(16, 0, &[1 << 40, 1 << 40], &[0, 0]), "does not fit"),
        (tensor(16, 0, &[2], &[i64::MAX]), "reaches beyond"),
        (tensor(16, i64::MAX, &[3], &[i64::MAX]), "reaches beyond"),
        (tensor(16, -1, &[1], &[1]), "no size"),
        (tensor(16, 0, &[-1], &[1]), "not a tuple of sizes"),
        (tensor(16, 0, &[1], &[-1]), "not a tuple of sizes"),
        (tensor(16, 0, &[1, 1], &[1]), "2 axes and 1 strides"),
        (tensor(16, 0, &[1; 17], &[1; 17]), "17 axes"),
    ] {
        let error = refused(&holding(case), Weights::Current);
        assert!(error.starts_with("tensor `w`: ") && error.contains(problem), "{error}");
    }
    for length in [15, 17, -1, i32::MAX] {
        refused(&holding(tensor(length, 0, &[1], &[1])), Weights::Current);
    }
    for class in ["QInt8Storage", "FooStorage"] {
        let part = storage(class, "0", int(64));
        let arguments = [part, int(0), tuple(&[int(1)]), tuple(&[int(1)])];
        refused(&holding(call(("torch._utils", "_rebuild_tensor"), &arguments)), Weights::Current);
    }
}

/// A tensor that is in a file many times takes more memory than the file: there is a limit to it.
#[test]
fn sharing_is_bounded() {
    let numbers = vec![0; 4 << 10];
    let memoised = [tensor(1 << 10, 0, &[1 << 10], &[1]), b"q\x00".to_vec()].concat();
    let state = |names: usize| {
        let mut entries = vec![("w0".to_owned(), memoised.clone())];
        entries.extend((1..names).map(|i| (format!("w{i}"), b"h\x00".to_vec())));
        let entries: Vec<_> = entries.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        StateDict::from_pth(&checkpoint(&dict(&[("state_dict", dict(&entries))]), &numbers), Weights::Current)
    };
    assert_eq!(state(3).expect("shared by three").tensors.len(), 3);
    let error = state(100).expect_err("too much").to_string();
    assert!(error.contains("shares its numbers too often"), "{error}");
}

#[test]
fn objects_of_unknown_classes_are_inert() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("ran");
    let attack = || call(("os", "system"), &[text(&format!("touch {}", trace.display()))]);
    let weights = || dict(&[("w", tensor(16, 0, &[1], &[1]))]);
    let around = dict(&[("args", attack()), ("hooks", attack()), ("state_dict", weights())]);
    let file = checkpoint(&around, &[0; 64]);
    assert_eq!(StateDict::from_pth(&file, Weights::Current).expect("nothing ran").tensors.len(), 1);
    assert!(!trace.exists());

    let error = refused(&dict(&[("state_dict", attack())]), Weights::Current);
    assert_eq!(error, "`state_dict` is an object of os.system, not a dict");
    assert_eq!(refused(&attack(), Weights::Current), "the file holds an object of os.system, not a dict");
    assert_eq!(refused(&holding(attack()), Weights::Current), "tensor `w`: is an object of os.system");
    let named = holding(global("builtins", "eval"));
    assert_eq!(refused(&named, Weights::Current), "tensor `w`: is the name builtins.eval");
    // neither may the parts of a tensor be anything but data
    let arguments = [attack(), int(0), tuple(&[int(1)]), tuple(&[int(1)])];
    let parts = call(("torch._utils", "_rebuild_tensor_v2"), &arguments);
    assert_eq!(refused(&holding(parts), Weights::Current), "tensor `w`: has an object of os.system for a storage");
}

#[test]
fn averages_that_do_not_fit_are_refused() {
    let one = |shape: i64| tensor(16, 0, &[shape], &[1]);
    let ema = |shadow| object(("lib.utils", "ExponentialMovingAverage"), &[("shadow_params", shadow)]);
    let file = |shadow| dict(&[("state_dict", dict(&[("a.w", one(2)), ("a.u", one(3))])), ("ema", ema(shadow))]);
    let fits = file(dict(&[("module.a.w", tensor(16, 4, &[2], &[1]))]));
    let numbers: Vec<u8> = (0..16_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let mut state = StateDict::from_pth(&checkpoint(&fits, &numbers), Weights::Ema).expect("fits");
    assert_eq!(state.take::<f32>("a.w", &[2]).expect("there"), [4.0, 5.0]);
    assert_eq!(state.take::<f32>("a.u", &[3]).expect("there"), [0.0, 1.0, 2.0]);

    let list = |items: &[Vec<u8>]| [b"](", &items.concat()[..], b"e"].concat();
    for (shadow, problem) in [
        (dict(&[]), "nothing was averaged yet"),
        (dict(&[("a.w", one(3))]), "has shape [2], its average [3]"),
        (dict(&[("a.w", one(2)), ("b.w", one(2))]), "not in `state_dict`"),
        (dict(&[("a.u", one(3))]), "not in `shadow_params`"),
        (list(&[one(2), one(3)]), "a list of 2 tensors"),
        (list(&[one(3)]), "a list of 1 tensors"),
        (list(&[int(0)]), "tensor `shadow_params[0]`: is an int"),
        (int(3), "`shadow_params` is an int, not a dict"),
    ] {
        let error = refused(&file(shadow), Weights::Ema);
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn contents_that_are_no_state_dict_are_named() {
    let other = dict(&[("model", int(1)), ("epoch", int(2))]);
    assert_eq!(refused(&other, Weights::Current), "no `state_dict` in the file, only: model, epoch");
    let key = [b"}", &int(1)[..], &tensor(16, 0, &[1], &[1]), b"s"].concat();
    assert_eq!(refused(&dict(&[("state_dict", key)]), Weights::Current), "a key of `state_dict` is an int");
    let twice = dict(&[("w", tensor(16, 0, &[1], &[1])), ("module.w", tensor(16, 0, &[1], &[1]))]);
    let error = refused(&dict(&[("state_dict", twice)]), Weights::Current);
    assert_eq!(error, "tensor `w`: occurs twice, once the prefixes are stripped");
    for (bytes, problem) in [
        (&b""[..], "neither a safetensors file"),
        (b"\x93NUMPY", "neither a safetensors file"),
        (b"\x80\x02}.", "magic number"),
        (b"\x80\x06}.", "byte 0: protocol 6"),
        (b"PK\x03\x04", "not a readable zip file"),
        (b"\x02\0\0\0\0\0\0\0{}", "Header"),
    ] {
        let result = StateDict::from_bytes(bytes, Weights::Current).map(|dict| dict.tensors.len());
        // an empty safetensors file is one
        match result {
            Ok(tensors) => assert_eq!((tensors, bytes.len()), (0, 10)),
            Err(error) => assert!(error.to_string().contains(problem), "{error}"),
        }
    }
    let error = StateDict::read(Path::new("no/such.pth"), Weights::Current).expect_err("no such file");
    assert!(matches!(error, ImportError::Io { .. }));
}

#[test]
fn a_damaged_zip_file_is_refused() {
    let value = pickle(&holding(tensor(16, 0, &[16], &[1])));
    let entries = || vec![Entry::stored("m/data.pkl", &value), Entry::stored("m/data/0", &[0; 64])];
    let read = |entries: &[Entry]| {
        StateDict::from_pth(&zip(entries), Weights::Current).map(|s| s.tensors.len()).map_err(|e| e.to_string())
    };
    assert_eq!(read(&entries()), Ok(1));
    let change = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut changed = entries();
        change(&mut changed);
        read(&changed).expect_err("damaged")
    };
    for size in [65, 1 << 20, u32::MAX - 1] {
        change(&|e| e[1].size = size);
    }
    assert!(change(&|e| e[1].method = 8).contains("compress"));
    assert!(change(&|e| e.push(Entry::stored("m/byteorder", b"big"))).contains("big end"));
    assert!(change(&|e| e.push(Entry::stored("n/data.pkl", b"."))).contains("exactly one data.pkl"));
    assert!(change(&|e| e.truncate(1)).contains("no entry data/0"));
    assert!(change(&|e| e.remove(0).size = 0).contains("exactly one data.pkl"));
    // numbers are protected by a checksum
    let mut flipped = zip(&entries());
    let at = flipped.windows(64).position(|w| w == [0; 64]).expect("the storage") + 7;
    flipped[at] ^= 1;
    let error = StateDict::from_pth(&flipped, Weights::Current).expect_err("a wrong checksum").to_string();
    assert!(error.to_lowercase().contains("checksum"), "{error}");
}

/// Many names for the same numbers in a zip file do not multiply the work.
#[test]
fn overlapping_entries_are_refused() {
    let keys: Vec<String> = (0..50).map(|i| i.to_string()).collect();
    let part = |key: &str| {
        let arguments = [storage("FloatStorage", key, int(4096)), int(0), tuple(&[int(1)]), tuple(&[int(1)])];
        call(("torch._utils", "_rebuild_tensor"), &arguments)
    };
    let weights: Vec<_> = keys.iter().map(|key| (key.as_str(), part(key))).collect();
    let mut entries = vec![Entry::stored("m/data.pkl", &pickle(&dict(&[("state_dict", dict(&weights))])))];
    for (i, key) in keys.iter().enumerate() {
        let alias = (i > 0).then_some(1);
        entries.push(Entry { alias, ..Entry::stored(&format!("m/data/{key}"), &[0; 4 * 4096]) });
    }
    let error = StateDict::from_pth(&zip(&entries), Weights::Current).expect_err("overlaps").to_string();
    assert!(error.contains("overlap"), "{error}");
}

#[test]
fn files_that_are_cut_off_are_refused() {
    for file in ["pth/listed.pth", "pth/single_legacy.pth", "pth/expected.safetensors"] {
        let whole = bytes(file);
        for end in 0..whole.len() {
            assert!(StateDict::from_bytes(&whole[..end], Weights::Current).is_err(), "{file} cut after {end} bytes");
        }
    }
}

/// Damage in one place is an error, or is seen in nothing but values.
#[test]
fn files_with_a_flipped_bit_do_not_panic() {
    for file in ["pth/alone.pth", "pth/listed_legacy.pth"] {
        let mut bytes = bytes(file);
        for at in 0..bytes.len() {
            bytes[at] ^= 1 << (at % 8);
            checks::state_dict(&bytes);
            bytes[at] ^= 1 << (at % 8);
        }
    }
}
