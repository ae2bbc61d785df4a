//! State dicts as training programs leave them: under other names, in other places, packed anew, and of the reference's
//! flows of one scale.

use std::collections::BTreeMap;

use resflow::checkpoint::Values;
use resflow::config::{ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::Table;
use resflow::import::{StateDict, Weights};
use resflow::stage::Stage;
use resflow::{Flow, NdArray, backend::Key};
use safetensors::{Dtype, tensor::TensorView};

use crate::pickling::{Entry, call, checkpoint, dict, global, int, object, pickle, storage, tensor, text, tuple, zip};

/// Sixteen numbers 0, 1, … in single precision.
fn numbers() -> Vec<u8> {
    (0..16_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect()
}

/// The number at a place of the storage, as a tensor.
fn at(place: i64) -> Vec<u8> {
    tensor(16, place, &[1], &[1])
}

/// A state dict of two tensors of a flow; the number in the first one is `place`.
fn flow(prefix: &str, place: i64) -> Vec<u8> {
    let names = ["chain.0.weight", "chain.1.nnet.1.bias"].map(|name| format!("{prefix}{name}"));
    dict(&[(&names[0], at(place)), (&names[1], at(15))])
}

fn read(value: &[u8], weights: Weights, key: Option<&str>) -> Result<StateDict, String> {
    StateDict::from_bytes_at(&checkpoint(value, &numbers()), weights, key).map_err(|e| e.to_string())
}

/// What was read: the first number, once both names are those of the flow alone.
#[track_caller]
fn first(state: Result<StateDict, String>) -> f32 {
    let mut state = state.expect("a state dict");
    state.take::<f32>("chain.1.nnet.1.bias", &[1]).expect("the bias");
    let [first]: [f32; 1] = state.take("chain.0.weight", &[1]).expect("the weight").try_into().expect("one number");
    state.finish().expect("nothing is left");
    first
}

#[test]
fn what_wrappers_and_programs_put_into_names() {
    for prefix in [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_fsdp_wrapped_module._orig_mod.",
        "model.",
        "net.",
        "flow.module.",
        "_orig_mod.model.",
        "a.b.c.",
    ] {
        let wrapped = dict(&[("epoch", int(3)), ("state_dict", flow(prefix, 7))]);
        let state = read(&wrapped, Weights::Current, None).expect("readable");
        let said = ["model", "net", "flow", "a"].iter().any(|p| prefix.contains(&format!("{p}.")));
        assert_eq!(state.notes.len(), usize::from(said), "{prefix}: {:?}", state.notes);
        assert_eq!(first(Ok(state)), 7.0, "{prefix}");
        // the same as safetensors
        let names = ["chain.0.weight", "chain.1.nnet.1.bias"].map(|name| format!("{prefix}{name}"));
        let data = 7.0_f32.to_le_bytes();
        let views = names.map(|name| (name, TensorView::new(Dtype::F32, vec![1], &data).expect("four bytes")));
        let file = safetensors::serialize(views, None).expect("memory");
        assert_eq!(first(StateDict::from_bytes(&file, Weights::Current).map_err(|e| e.to_string())), 7.0, "{prefix}");
    }
    // an average of torch counts beside it; what another module of a program keeps is not the flow's
    let averaged =
        dict(&[("n_averaged", at(0)), ("module.chain.0.weight", at(3)), ("module.chain.1.nnet.1.bias", at(1))]);
    assert_eq!(first(read(&averaged, Weights::Current, None)), 3.0);
    let beside = dict(&[("metric.sum", at(0)), ("m.chain.0.weight", at(3)), ("m.chain.1.nnet.1.bias", at(1))]);
    let state = read(&dict(&[("state_dict", beside)]), Weights::Current, None);
    assert!(state.as_ref().is_ok_and(|s| s.notes[0].contains("`m.`") && s.notes[0].contains("left out")), "{state:?}");
    assert_eq!(first(state), 3.0);
}

#[test]
fn state_dicts_anywhere_in_a_file() {
    let moments = dict(&[("exp_avg", at(0)), ("exp_avg_sq", at(1))]);
    let optimiser = || dict(&[("state", [b"}", &int(0)[..], &moments, b"s"].concat())]);
    let list = |items: &[Vec<u8>]| [b"](", &items.concat()[..], b"e"].concat();
    for (place, value) in [
        ("model", dict(&[("model", flow("", 5)), ("iter", int(9)), ("optimizer", optimiser())])),
        ("model_state_dict", dict(&[("optim", optimiser()), ("model_state_dict", flow("module.", 5))])),
        ("ema", dict(&[("ema", flow("", 5)), ("loss", b"G\x3f\xf0\0\0\0\0\0\0".to_vec())])),
        ("net.weights", dict(&[("net", dict(&[("weights", flow("", 5))]))])),
        ("state_dict.flow", dict(&[("state_dict", dict(&[("flow", flow("", 5)), ("epoch", int(1))]))])),
        ("models.1", dict(&[("models", list(&[int(4), flow("", 5)]))])),
        ("states.0", dict(&[("states", tuple(&[flow("", 5)]))])),
    ] {
        let state = read(&value, Weights::Current, None).expect(place);
        assert_eq!(state.notes, [format!("the tensors are those of `{place}`")]);
        assert_eq!(first(Ok(state)), 5.0, "{place}");
        assert_eq!(first(read(&value, Weights::Current, Some(place))), 5.0, "{place}");
    }
    // the file's own dict may have other things in it, and names that are no flow's are as good where nothing is better
    let mixed = dict(&[("epoch", int(3)), ("chain.0.weight", at(2)), ("chain.1.nnet.1.bias", at(1))]);
    assert_eq!(first(read(&mixed, Weights::Current, None)), 2.0);
    let step = dict(&[("step", at(0)), ("model", flow("", 6))]);
    assert_eq!(first(read(&step, Weights::Current, None)), 6.0);
    let plain = dict(&[("model", dict(&[("w", at(4))])), ("optimizer", dict(&[("w", at(0))]))]);
    assert_eq!(read(&plain, Weights::Current, None).expect("one").take::<f32>("w", &[1]).expect("there"), [4.0]);
    // a tensor with attributes
    let typed = [global("torch._utils", "_rebuild_tensor_v2"), global("torch", "Tensor")];
    let arguments =
        tuple(&[storage("FloatStorage", "0", int(16)), int(8), tuple(&[int(1)]), tuple(&[int(1)]), b"\x89".to_vec()]);
    let typed = call(("torch._tensor", "_rebuild_from_type_v2"), &[&typed[..], &[arguments, dict(&[])]].concat());
    let state = read(&dict(&[("state_dict", dict(&[("w", typed)]))]), Weights::Current, None);
    assert_eq!(state.expect("a tensor").take::<f32>("w", &[1]).expect("there"), [8.0]);
}

#[test]
fn several_state_dicts_are_named() {
    let both = dict(&[("model", flow("", 5)), ("ema", flow("", 6))]);
    let problem = |value: &[u8], key| read(value, Weights::Current, key).expect_err("unclear");
    let said = problem(&both, None);
    assert_eq!(said, "the file holds several state dicts, `model`, `ema`: say which, with --key in the program");
    assert_eq!(first(read(&both, Weights::Current, Some("model"))), 5.0);
    assert_eq!(first(read(&both, Weights::Current, Some("ema"))), 6.0);
    // whoever asks for the average has said which
    assert_eq!(first(read(&both, Weights::Ema, None)), 6.0);
    let alone = dict(&[("state_dict", flow("", 5)), ("ema_state_dict", flow("module.", 6))]);
    assert_eq!(first(read(&alone, Weights::Current, None)), 5.0);
    assert_eq!(first(read(&alone, Weights::Ema, None)), 6.0);
    assert_eq!(first(read(&alone, Weights::Current, Some("ema_state_dict"))), 6.0);
    assert_eq!(
        problem(&both, Some("modle")),
        "the file holds several state dicts, `model`, `ema`: say which, with --key in the program"
    );

    // two flows in one state dict
    let names = ["net.chain.0.weight", "net.chain.1.nnet.1.bias", "old.chain.0.weight", "old.chain.1.nnet.1.bias"];
    let entries: Vec<_> = names.iter().zip([1, 2, 3, 4]).map(|(&name, place)| (name, at(place))).collect();
    let two = dict(&[("state_dict", dict(&entries))]);
    assert!(problem(&two, None).contains("several flows, below `net`, `old`: say which"));
    assert_eq!(first(read(&two, Weights::Current, Some("net"))), 1.0);
    assert_eq!(first(read(&two, Weights::Current, Some("state_dict.old"))), 3.0);
    assert!(problem(&two, Some("new")).contains("no flow below `new`, only below `net`, `old`"));
    // keys may have dots in them
    let dotted = dict(&[("a.b", flow("", 5)), ("a", dict(&[("b", flow("", 6))]))]);
    assert_eq!(first(read(&dotted, Weights::Current, Some("a.b"))), 5.0);

    let module = object(("lib.resflow", "ResidualFlow"), &[("_modules", dict(&[]))]);
    let said = problem(&dict(&[("model", module.clone()), ("epoch", int(1))]), None);
    assert_eq!(
        said,
        "no `state_dict` in the file, only: model, epoch: `model` is a whole module, save its `state_dict()` instead"
    );
    assert!(problem(&module, None).ends_with("not a dict: save its `state_dict()` instead"));
}

/// The search is over after a multiple of the file's values, whatever names whatever else.
#[test]
fn the_search_ends() {
    // a list of many pairs that is the content of many dicts
    let pair = tuple(&[text("k"), int(1)]);
    let pairs = [b"](".to_vec(), pair.repeat(20_000), b"eq\x00".to_vec()].concat();
    let one = [global("collections", "OrderedDict"), b"q\x010".to_vec()].concat();
    let of = b"h\x01h\x00\x85R".to_vec();
    let many: Vec<u8> = (0..20_000).flat_map(|i: u32| [text(&i.to_string()), of.clone()].concat()).collect();
    let value = [pairs, b"0".to_vec(), one, b"}(".to_vec(), many, b"u".to_vec()].concat();
    let said = read(&value, Weights::Current, None).expect_err("no tensors");
    assert!(said.starts_with("no `state_dict` in the file, only: 0, 1"), "{said}");
    // dicts in themselves and in each other
    for value in [b"}q\x00X\x01\x00\x00\x00ah\x00s".to_vec(), b"]q\x00}q\x01X\x01\x00\x00\x00ah\x00sa0h\x01".to_vec()] {
        assert!(read(&value, Weights::Current, None).expect_err("no tensors").starts_with("no `state_dict`"));
        assert!(read(&value, Weights::Current, Some("a.a.0.a")).is_err());
    }
}

#[test]
fn zips_that_were_packed_anew() {
    let value = pickle(&dict(&[("state_dict", flow("", 9))]));
    let read = |entries: &[Entry]| StateDict::from_bytes(&zip(entries), Weights::Current).map_err(|e| e.to_string());
    let deflated = || vec![Entry::deflated("m/data.pkl", &value), Entry::deflated("m/data/0", &numbers())];
    assert_eq!(first(read(&deflated())), 9.0);
    let one = [Entry::stored("m/data.pkl", &value), Entry::deflated("m/data/0", &numbers())];
    assert_eq!(first(read(&one)), 9.0);
    let with_order = |order: &[u8]| [deflated(), vec![Entry::deflated("m/byteorder", order)]].concat();
    assert_eq!(first(read(&with_order(b"little"))), 9.0);
    assert!(read(&with_order(b"big")).expect_err("big-endian").contains("big-endian"));

    let changed = |change: &dyn Fn(&mut Entry)| {
        let mut entries = deflated();
        change(&mut entries[1]);
        read(&entries).expect_err("damaged")
    };
    assert!(changed(&|e| e.unpacked = e.unpacked.map(|(sum, size)| (sum ^ 1, size))).contains("wrong checksum"));
    assert!(changed(&|e| e.unpacked = e.unpacked.map(|(sum, size)| (sum, size - 1))).contains("64 bytes, 63 are"));
    assert!(changed(&|e| e.unpacked = e.unpacked.map(|(sum, size)| (sum, size + 1))).contains("64 bytes, 65 are"));
    assert!(changed(&|e| e.unpacked = e.unpacked.map(|(sum, _)| (sum, 1 << 30))).contains("far less"));
    assert!(changed(&|e| e.contents[3] ^= 64).contains("data/0"));
    assert!(changed(&|e| e.method = 93).contains("without compression"));
    // zeros shrink to nothing: what they would take is no multiple of the file
    let zeros = vec![0; 4 << 20];
    let state = dict(&[("state_dict", dict(&[("w", tensor(1 << 20, 0, &[1 << 20], &[1]))]))]);
    let bomb = [Entry::stored("m/data.pkl", &pickle(&state)), Entry::deflated("m/data/0", &zeros)];
    assert!(read(&bomb).expect_err("a bomb").contains("far less"));
}

#[test]
fn what_a_file_looks_like_is_said() {
    let whole = checkpoint(&dict(&[("state_dict", flow("", 1))]), &numbers());
    for (bytes, said) in [
        (&b""[..], "an empty file"),
        (b"<!DOCTYPE html>\n<html></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "a Git LFS pointer"),
        (&whole[..whole.len() / 2], "cut short"),
        (b"\xf0\0\0\0\0\0\0\0{\"w\":{", "a safetensors file that is cut short"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01", "compressed by gzip that is cut short"),
    ] {
        let error = StateDict::from_bytes(bytes, Weights::Current).expect_err("no state dict").to_string();
        assert!(error.contains(said), "{error}");
        let error = resflow::checkpoint::Archive::from_bytes(bytes).expect_err("no model").to_string();
        assert!(error.starts_with("not a resflow file: it looks like ") && error.contains(said), "{error}");
    }
}

/// The tensors of a flow under the reference's names, in its order of axes; `norm` is whether the first ActNorm is there.
fn reference_names(flow: &Flow<NdArray<f64>>, norm: bool) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let archive = flow.to_archive().expect("an archive");
    let (mut out, mut index, mut flat) = (BTreeMap::new(), 0, false);
    for (link, stage) in flow.config().stages().iter().enumerate() {
        let module = match stage {
            Stage::ActNorm { .. } if flat => ".fc_module",
            Stage::ResidualBlock { .. } if flat => ".nnet.nnet",
            Stage::ResidualBlock { .. } => ".nnet",
            Stage::Flatten { .. } => {
                flat = true;
                continue;
            }
            Stage::ActNorm { .. } if link == 1 && !norm => continue,
            _ => "",
        };
        let own = format!("links.{link}.");
        for (name, (shape, values)) in archive.tensors.range(own.clone()..) {
            let Some(rest) = name.strip_prefix(&own) else { break };
            let rest = rest.strip_prefix("net.").unwrap_or(rest);
            let values = values.to::<f64>();
            // [a, b, c, d] with d in the place of b, or in front of b and c
            let moved = |shape: &[usize]| {
                let [a, b, c, d] = [shape[0], shape[1], shape[2], shape[3]];
                let order = (0..a * d * b * c).map(|i| {
                    let (k, j) = (i % c, i / c % b);
                    let (l, n) = (i / (c * b) % d, i / (c * b * d));
                    values[((n * b + j) * c + k) * d + l]
                });
                order.collect::<Vec<f64>>()
            };
            let leaf = rest.rsplit('.').next().expect("a leaf");
            let (rest, shape, values) = match (leaf, shape.as_slice()) {
                ("log_scale", s) => (rest.replace("log_scale", "weight"), s.to_vec(), values.clone()),
                ("initialised", _) => (rest.replace("initialised", "initialized"), vec![], values.clone()),
                ("weight", s @ &[o, h, w, i]) => (rest.to_owned(), vec![o, i, h, w], moved(s)),
                ("weight", &[o, i]) if !flat => (rest.to_owned(), vec![o, i, 1, 1], values.clone()),
                ("u" | "v", s @ &[1, h, w, c]) => (rest.to_owned(), vec![h * w * c], moved(s)),
                (_, s) => (rest.to_owned(), s.to_vec(), values.clone()),
            };
            out.insert(format!("transforms.0.chain.{index}{module}.{rest}"), (shape, values));
        }
        index += 1;
    }
    out
}

/// A flow of one scale, whose first block begins with an activation, is the same under a configuration that says it does
/// not; and so is one whose first ActNorm is missing, since it does nothing.
#[test]
fn the_references_flows_of_one_scale() {
    for (activation, logit) in [(Nonlinearity::LipSwish, true), (Nonlinearity::Elu, true), (Nonlinearity::Elu, false)] {
        let config = ImageConfig {
            height: 4,
            width: 2,
            channels: 2,
            blocks: vec![2],
            filters: 3,
            kernels: vec![3, 1, 3],
            activation,
            logit,
            fully_connected: 1,
            fully_connected_width: 5,
            training: "exact".parse().expect("exact"),
            evaluation: "exact".parse().expect("exact"),
            ..ImageConfig::default()
        };
        let x = Table::new(None, 16, (0..48).map(|i| f64::from(i * 7 % 48) / 50.0 + 0.01).collect()).expect("a table");
        for begins in [true, false] {
            let own = ImageConfig { first_activation: begins, ..config.clone() };
            let flow = Flow::new(NdArray::<f64>::new(), &own, Key::new(3)).expect("a flow");
            let expected = flow.log_prob(&x, Key::new(0)).expect("log p");
            for norm in [true, false] {
                let mut state = StateDict::default();
                for (name, (shape, values)) in reference_names(&flow, norm || !logit) {
                    state.tensors.insert(name, (shape, Values::F64(values)));
                }
                for said in [true, false] {
                    let asked = ImageConfig { first_activation: said, ..config.clone() };
                    let model = ModelConfig::from(&asked);
                    assert_eq!(state.architecture(&model), ModelConfig::from(&own));
                    let imported = Flow::from_state_dict(NdArray::<f64>::new(), &model, state.clone());
                    let imported = imported.unwrap_or_else(|e| panic!("{activation:?}, {begins}, {norm}, {said}: {e}"));
                    assert_eq!(imported.config(), &ModelConfig::from(&own));
                    let found = imported.log_prob(&x, Key::new(0)).expect("log p");
                    for (a, b) in found.values.iter().zip(&expected.values) {
                        assert!((a - b).abs() < 1e-9, "{a} for {b}: {activation:?}, {begins}, {norm}, {said}");
                    }
                }
            }
        }
    }
}
