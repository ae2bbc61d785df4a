//! Files that list their transforms (format 3): built-in ones in an order that no configuration spells out, and hostile lists.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Key, Noise};
use resflow::bijection::Bijection;
use resflow::checkpoint::{Archive, Values};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig};
use resflow::data::Table;
use resflow::data::image::ImageSet;
use resflow::flow::Flow;
use resflow::transform::{ActNorm, Squeeze};
use serde_json::{Value, json};

use crate::memory::peak;
use crate::mutation::below;

type Cpu = NdArray<f64>;

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

/// Bytes of memory for a byte of a file, see `fuzz_models`.
const MULTIPLE: usize = 20;
/// The same for a byte of the document: an object of one short entry is a node of a tree.
const OF_DOCUMENT: usize = 200;

fn transforms(config: impl Into<ModelConfig>, key: u64) -> Vec<Box<dyn Bijection<Cpu>>> {
    Flow::new(cpu(), config, Key::new(key)).expect("valid").transforms().to_vec()
}

fn rows(family: Family) -> FlowConfig {
    FlowConfig { blocks: 2, hidden: vec![4], ..FlowConfig::of(family, 3) }
}

/// Residual blocks in three norms, couplings and maps, in turns.
fn mixed_rows() -> Flow<Cpu> {
    let [residual, glow] = [Family::Residual, Family::Glow].map(|family| transforms(rows(family), 1));
    let learned = transforms(FlowConfig { norms: "learned".parse().expect("norms"), ..rows(Family::Residual) }, 2);
    let fixed = transforms(FlowConfig { norms: "2f2".parse().expect("norms"), ..rows(Family::Residual) }, 3);
    let nsf = transforms(rows(Family::Nsf), 4);
    let dense = transforms(rows(Family::Dense), 5);
    let ode = transforms(rows(Family::Ffjord), 6);
    let mixture = transforms(FlowConfig { components: 2, ..rows(Family::FlowPlusPlus) }, 7);
    let all = [
        &residual[1],
        &glow[1],
        &glow[2],
        &learned[1],
        &glow[4],
        &glow[5],
        &fixed[1],
        &residual[0],
        &residual[3],
        &nsf[0],
        &nsf[1],
        &dense[1],
        &ode[0],
        &mixture[2],
    ];
    let config = FlowConfig::new(3);
    Flow::from_transforms(cpu(), config, all.map(Clone::clone).to_vec()).expect("samples pass")
}

fn images(family: Family) -> ImageConfig {
    let small =
        ImageConfig { height: 8, width: 8, channels: 1, filters: 2, blocks: vec![2, 2], ..ImageConfig::default() };
    ImageConfig { factor_out: true, fully_connected: 0, ..small }.of(family)
}

/// A logit, an ActNorm of one channel before the first squeeze, and after it blocks and couplings of one scale.
fn mixed_images() -> Flow<Cpu> {
    let squeezed = |family| ImageConfig { squeeze_first: true, blocks: vec![2], factor_out: false, ..images(family) };
    let [residual, coupling] = [Family::Residual, Family::RealNvp].map(|family| transforms(squeezed(family), 1));
    let mut all: Vec<Box<dyn Bijection<Cpu>>> = vec![residual[1].clone(), Box::new(ActNorm::new(&cpu(), 1))];
    all.push(residual[0].clone());
    all.extend([&residual[3], &coupling[3], &residual[2], &coupling[5]].map(Clone::clone));
    all.push(Box::new(Squeeze::with_factor_out(4)));
    Flow::from_transforms(cpu(), squeezed(Family::Residual), all).expect("samples pass")
}

/// log p of three samples.
fn log_prob(flow: &Flow<Cpu>) -> Vec<f64> {
    let (d, key) = (flow.dimension(), Key::new(7));
    if let [h, w, c] = flow.config().sample_shape()[..] {
        let set = ImageSet::new(h, w, c, (0..3 * d).map(|e| (e * 37 % 256) as u8).collect(), None).expect("images");
        return flow.log_prob(&set, key).expect("images that fit").values;
    }
    let mut values = vec![0.0; 3 * d];
    Noise::Normal.fill(Key::new(1), 0, &mut values);
    flow.log_prob(&Table::new(None, d, values).expect("finite"), key).expect("rows that fit").values
}

#[test]
fn an_order_that_no_configuration_spells_out_is_listed_and_loads() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    for mut flow in [mixed_rows(), mixed_images()] {
        flow.save(&path).expect("written");
        let archive = Archive::read(&path).expect("ours");
        assert_eq!(archive.document["model"]["format"], 3);
        let stages = flow.stages().expect("built in");
        assert_eq!(archive.document["model"]["chain"].as_array().expect("a list").len(), stages.len());
        let again = Flow::load(cpu(), &path).expect("all built in");
        assert_eq!(again.stages().expect("built in"), stages);
        assert_eq!(log_prob(&again), log_prob(&flow));
        assert_eq!(
            again.to_archive().expect("stored").to_bytes().expect("stored"),
            std::fs::read(&path).expect("there")
        );
        let moved = flow.to_backend(NdArray::<f32>::new()).expect("all built in");
        assert_eq!(moved.stages().expect("built in"), stages);
    }
}

/// What a configuration spells out is not listed, however the flow was made.
#[test]
fn an_order_that_the_configuration_spells_out_is_not_listed() {
    for config in [ModelConfig::from(rows(Family::Glow)), images(Family::Residual).into()] {
        let flow = Flow::from_transforms(cpu(), config.clone(), transforms(config, 1)).expect("samples pass");
        let archive = flow.to_archive().expect("stored");
        assert_eq!(archive.document["model"]["format"], 2);
        assert!(archive.document["model"].get("chain").is_none());
        assert_eq!(log_prob(&Flow::from_archive(cpu(), &archive).expect("loads")), log_prob(&flow));
    }
}

/// A flow of given transforms has no classifier: its file could not be read if the configuration had classes.
#[test]
fn given_transforms_have_no_classes() {
    let hybrid = ImageConfig { classes: 3, head_width: 2, ..images(Family::Residual) };
    let error = Flow::from_transforms(cpu(), &hybrid, transforms(&hybrid, 1)).expect_err("a classifier is missing");
    assert!(error.to_string().contains("`classes`"), "{error}");
    let archive = Flow::new(cpu(), &hybrid, Key::new(1)).expect("valid").to_archive().expect("stored");
    assert_eq!(archive.document["model"]["format"], 2);
    let mut listed = mixed_images().to_archive().expect("stored");
    listed.document["model"]["config"]["images"]["classes"] = json!(3);
    assert!(read(&listed).is_err());
}

/// The memory that reading a file takes, and the error if it is refused.
fn read(archive: &Archive) -> Result<Flow<Cpu>, String> {
    let bytes = archive.to_bytes().expect("stored");
    let document = archive.document.to_string().len();
    let (loaded, held) = peak(|| {
        let archive = Archive::from_bytes(&bytes).map_err(|e| e.to_string())?;
        Flow::from_archive(cpu(), &archive).map_err(|e| e.to_string())
    });
    let most = MULTIPLE * bytes.len() + OF_DOCUMENT * document + 50_000;
    assert!(held <= most, "{held} bytes of memory for {} of file, {document} of document", bytes.len());
    if let Err(message) = &loaded {
        let short = message.chars().count() < 1000 && !message.contains(char::is_control);
        assert!(short, "{} characters: {:.300}…", message.chars().count(), message);
    }
    loaded
}

/// A good file in which what a path leads to was replaced: refused, without a panic or much memory.
#[track_caller]
fn refused(flow: &Flow<Cpu>, path: &str, value: Value) {
    let mut archive = flow.to_archive().expect("stored");
    let shown: String = format!("{path} = {value}").chars().take(200).collect();
    *archive.document.pointer_mut(&format!("/model/chain/{path}")).expect(&shown) = value;
    assert!(read(&archive).is_err(), "{shown} was accepted");
}

const HUGE: [u64; 4] = [1 << 20, 1 << 40, u64::MAX / 2, u64::MAX];

#[test]
fn hostile_lists_of_rows_are_refused() {
    let flow = mixed_rows();
    assert!(read(&flow.to_archive().expect("stored")).is_ok());
    for huge in HUGE {
        refused(&flow, "0/residual-block/net/layers/1/linear/inputs", json!(huge));
        refused(&flow, "0/residual-block/net/layers/1/linear/outputs", json!(huge));
        refused(&flow, "0/residual-block/shape", json!([huge]));
        refused(&flow, "0/residual-block/shape", json!([huge, huge, huge]));
        refused(&flow, "1/invertible-linear/features", json!(huge));
        refused(&flow, "2/coupling/shape", json!([huge]));
        refused(&flow, "7/act-norm/features", json!(huge));
        refused(&flow, "9/lu-linear/features", json!(huge));
        refused(&flow, "10/spline-coupling/features", json!(huge));
        refused(&flow, "10/spline-coupling/splines/bins", json!(huge));
        refused(&flow, "11/residual-block/net/layers/0/dense/inputs", json!(huge));
        refused(&flow, "11/residual-block/net/layers/0/dense/outputs", json!(huge));
        for kernel in [json!([huge, huge]), json!([3, 3]), json!([2, 2]), json!([3])] {
            let dense = json!({ "dense": { "kernel": kernel, "inputs": 3, "outputs": 2, "coefficient": 0.9,
                "activation": "clip-swish", "concatenation": { "bound": 1.0, "learned": true } } });
            refused(&flow, "11/residual-block/net/layers/0", dense);
        }
        refused(&flow, "7", json!({ "squeeze": { "factored_out": huge } }));
        refused(&flow, "7", json!({ "flatten": { "image": [huge, huge, huge] } }));
        let board = json!({ "coupling": { "shape": [huge, huge, 2], "mask": { "checkerboard": { "swapped": false } },
            "net": { "layers": [{ "activation": "tanh" }] } } });
        refused(&flow, "7", board);
        let doubled =
            json!({ "residual-block": { "shape": [huge], "net": { "layers": [{ "activation": "clip-swish" }] } } });
        refused(&flow, "7", doubled);
        let kernel =
            json!({ "convolution": { "kernel": [huge, huge], "inputs": huge, "outputs": huge, "coefficient": 0.9 } });
        refused(&flow, "0/residual-block/net/layers/1", kernel);
    }
    for bound in [json!(0.0), json!(-0.5), json!(1.5), json!(f64::MAX), json!("1"), json!(null)] {
        refused(&flow, "11/residual-block/net/layers/0/dense/concatenation/bound", bound);
    }
    for inputs in [0, 2, 4] {
        refused(&flow, "11/residual-block/net/layers/0/dense/inputs", json!(inputs));
    }
    refused(&flow, "11/residual-block/net/layers/0/dense/activation", json!("tanh"));
    // shapes that do not fit
    for shape in
        [json!([]), json!([2]), json!([4]), json!([1, 3]), json!([1, 1, 3]), json!([0]), json!(vec![1; 10_000])]
    {
        refused(&flow, "0/residual-block/shape", shape.clone());
        refused(&flow, "2/coupling/shape", shape);
    }
    for features in [0, 1, 2, 4] {
        refused(&flow, "1/invertible-linear/features", json!(features));
        refused(&flow, "7/act-norm/features", json!(features));
        refused(&flow, "9/lu-linear/features", json!(features));
        refused(&flow, "10/spline-coupling/features", json!(features));
        refused(&flow, "0/residual-block/net/layers/1/linear/outputs", json!(features + 5));
    }
    // convolutions, squeezes and flattening on vectors
    for kernel in [json!([1, 1]), json!([2, 2]), json!([3, 3]), json!([0, 0])] {
        let convolution = json!({ "convolution": { "kernel": kernel, "inputs": 3, "outputs": 4, "coefficient": 0.9 } });
        refused(&flow, "0/residual-block/net/layers/1", convolution);
    }
    refused(&flow, "7", json!({ "squeeze": { "factored_out": 0 } }));
    refused(&flow, "7", json!({ "flatten": { "image": [1, 1, 3] } }));
    // coefficients and logits out of range
    for coefficient in [json!(0), json!(1), json!(-0.5), json!(1e300)] {
        refused(&flow, "0/residual-block/net/layers/1/linear/coefficient", coefficient);
    }
    refused(&flow, "0/residual-block/net/layers/1/linear/coefficient", Value::Null);
    for alpha in [0.0, 0.5, -1.0, 1e300] {
        refused(&flow, "7", json!({ "logit": { "alpha": alpha } }));
    }
    // other names, other fields, no fields
    for other in
        [json!("squeeze"), json!({}), json!({ "pickle": {} }), json!(null), json!([]), json!({ "act-norm": {} })]
    {
        refused(&flow, "7", other);
    }
    for bins in [0, 1, 7, 9] {
        refused(&flow, "10/spline-coupling/splines/bins", json!(bins));
    }
    for bound in [0.0, -3.0, 1e300] {
        refused(&flow, "10/spline-coupling/splines/bound", json!(bound));
    }
    refused(&flow, "10/spline-coupling/splines/hidden", json!(0));
    refused(&flow, "10/spline-coupling/splines/unconditional", json!(false));
    refused(&flow, "10/spline-coupling/swapped", json!(true));
    refused(&flow, "7/act-norm", json!({ "features": 3, "more": 1 }));
    refused(&flow, "2/coupling/mask", json!({ "checkerboard": { "swapped": false } }));
}

#[test]
fn hostile_norms_are_refused() {
    let flow = mixed_rows();
    let net = "3/residual-block/net/norms";
    for number in ["2", "64", "65", "1000000", "18446744073709551615", "-1", "x"] {
        let learned = format!("learned:{number}");
        refused(&flow, net, json!([[learned, learned], [learned, learned]]));
    }
    for norms in [
        json!([["2", "2"]]),
        json!([["2", "1"], ["2", "2"]]),
        json!([["1", "2"], ["2", "2"]]),
        json!([["2", "2"], ["2", "2"], ["2", "2"]]),
        json!(vec![["2", "2"]; 10_000]),
        json!([["1.00001", "1.00001"], ["1.00001", "1.00001"]]),
        json!([["nan", "nan"], ["nan", "nan"]]),
        json!([["0.5", "0.5"], ["0.5", "0.5"]]),
        json!([["x".repeat(100_000), "2"], ["2", "2"]]),
        json!([[2, 2], [2, 2]]),
        json!([[]]),
    ] {
        refused(&flow, net, norms);
    }
    // of a coupling, whose layers are free
    let mut archive = flow.to_archive().expect("stored");
    archive.document["model"]["chain"][2]["coupling"]["net"]["norms"] = json!([["2", "2"], ["2", "2"]]);
    assert!(read(&archive).is_err());
}

#[test]
fn hostile_lists_of_images_are_refused() {
    let flow = mixed_images();
    assert!(read(&flow.to_archive().expect("stored")).is_ok());
    let prior = |shape: [u64; 3], inputs: u64, outputs: u64| {
        let layer =
            json!({ "convolution": { "kernel": [3, 3], "inputs": inputs, "outputs": outputs, "coefficient": null } });
        json!({ "conditional-prior": { "shape": shape, "net": { "layers": [layer] } } })
    };
    for (shape, inputs, outputs) in
        [([4, 4, 3], 1, 2), ([4, 4, 4], 2, 3), ([4, 4, 4], 4, 4), ([1 << 40, 4, 4], 2, 4), ([4, 4, 0], 0, 0)]
    {
        refused(&flow, "7", prior(shape, inputs, outputs));
    }
    for factored_out in [1_u64, 2, 3, 4, 6, 7, 9, 15, 16, 32, 1 << 40] {
        refused(&flow, "2/squeeze/factored_out", json!(factored_out));
    }
    for factored_out in [1, 7, 9, 16, 17] {
        refused(&flow, "7/squeeze/factored_out", json!(factored_out));
    }
    let convolution = "3/residual-block/net/layers/0/convolution";
    for kernel in [[2_u64, 2], [2, 3], [3, 2], [0, 0], [0, 1], [5, 5], [1, 1], [1 << 40, 1], [1 << 62, 3]] {
        refused(&flow, &format!("{convolution}/kernel"), json!(kernel));
    }
    for huge in HUGE {
        refused(&flow, &format!("{convolution}/inputs"), json!(huge));
        let nothing = json!({ "kernel": [huge - 1, huge - 1], "inputs": 0, "outputs": 0, "coefficient": null });
        refused(&flow, convolution, nothing);
        refused(&flow, &format!("{convolution}/outputs"), json!(huge));
        refused(&flow, "3/residual-block/shape", json!([huge, huge, 4]));
        refused(&flow, "3/residual-block/shape", json!([4, 4, huge]));
        refused(&flow, "4/coupling/shape", json!([huge, huge, 4]));
        refused(&flow, "0", json!({ "flatten": { "image": [huge, huge, huge] } }));
    }
    for shape in [json!([4]), json!([64]), json!([4, 4]), json!([8, 8, 4]), json!([2, 2, 4]), json!([4, 4, 3])] {
        refused(&flow, "3/residual-block/shape", shape.clone());
        refused(&flow, "4/coupling/shape", shape);
    }
    // images of an odd height
    let mut archive = flow.to_archive().expect("stored");
    archive.document["model"]["config"]["images"]["height"] = json!(7);
    assert!(read(&archive).is_err());
}

/// Long lists of what stores nothing, in a file of its length.
#[test]
fn long_lists_take_memory_of_their_length() {
    let flow = mixed_rows();
    for (path, entry, count) in [
        ("0/residual-block/net/layers", json!({ "activation": "tanh" }), 5_000),
        ("0/residual-block/net/layers", json!({ "activation": "lip-swish" }), 5_000),
        ("0/residual-block/net/layers", json!({ "linear": { "inputs": 1, "outputs": 1, "coefficient": 0.9 } }), 5_000),
        ("0/residual-block/net/layers", json!({ "custom": { "name": "x" } }), 5_000),
        ("0/residual-block/net/layers", json!({ "linear": { "inputs": 0, "outputs": 0, "coefficient": null } }), 5_000),
    ] {
        refused(&flow, path, json!(vec![entry; count]));
    }
    let mut archive = flow.to_archive().expect("stored");
    let logit = json!({ "logit": { "alpha": 0.1 } });
    let chain = archive.document["model"]["chain"].as_array_mut().expect("a list");
    chain.extend(vec![logit; 5_000]);
    // as many as the file pays for may be read
    let read_all = read(&archive);
    assert!(read_all.is_ok_and(|read| read.transforms().len() == flow.transforms().len() + 5_000));
    archive.document["model"]["chain"] = json!([]);
    assert!(read(&archive).is_err(), "the tensors belong to nothing");
    archive.tensors.retain(|name, _| name.starts_with("standardise"));
    assert!(read(&archive).is_ok(), "the identity is a flow");
    archive.document["model"]["chain"] = json!([{ "invertible-linear": { "features": 3 } }]);
    archive.tensors.insert("x".into(), (vec![100], Values::F64(vec![0.0; 100])));
    assert!(read(&archive).is_err());
}

#[test]
fn format_and_list_belong_together() {
    let listed = mixed_rows().to_archive().expect("stored");
    for format in [0, 1, 2, 4, u32::MAX] {
        let mut archive = listed.clone();
        archive.document["model"]["format"] = json!(format);
        assert!(read(&archive).is_err_and(|e| e.contains("format")), "{format}");
    }
    let mut archive = Flow::new(cpu(), rows(Family::Glow), Key::new(1)).expect("valid").to_archive().expect("stored");
    archive.document["model"]["format"] = json!(3);
    assert!(read(&archive).is_err_and(|e| e.contains("format")));
}

/// The values inside a list that hold no other ones.
fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Object(entries) => entries.values_mut().for_each(|v| leaves(v, found)),
        Value::Array(entries) => entries.iter_mut().for_each(|v| leaves(v, found)),
        leaf => found.push(leaf),
    }
}

/// Stages change places, come twice, go, or change a number: what is accepted computes and is written as it was read.
#[test]
fn lists_survive_mutations() {
    let numbers = [0, 1, 2, 3, 4, 5, 8, 9, 16, 255, 1 << 16, 1 << 32, 1 << 62, u64::MAX];
    let names = [
        "tanh",
        "relu",
        "sin",
        "lip-swish",
        "clip-swish",
        "cpila",
        "leaky-lip-swish",
        "2",
        "1",
        "inf",
        "learned:0",
        "learned:3",
        "x",
    ];
    for (kind, flow) in [mixed_rows(), mixed_images()].into_iter().enumerate() {
        let good = flow.to_archive().expect("stored");
        let mut g = Key::new(9).split(kind as u64).generator();
        let (mut accepted, rounds) = (0, 4_000);
        for _ in 0..rounds {
            let mut archive = good.clone();
            let chain = &mut archive.document["model"]["chain"];
            for _ in 0..=below(&mut g, 2) {
                let stages = chain.as_array_mut().expect("a list");
                let (at, to) = (below(&mut g, stages.len()), below(&mut g, stages.len()));
                match below(&mut g, 6) {
                    0 => stages.swap(at, to),
                    1 => stages.insert(to, stages[at].clone()),
                    2 if stages.len() > 1 => drop(stages.remove(at)),
                    _ => {
                        let mut found = Vec::new();
                        leaves(chain, &mut found);
                        let at = below(&mut g, found.len());
                        let leaf = found.swap_remove(at);
                        *leaf = match &*leaf {
                            Value::String(_) => json!(names[below(&mut g, names.len())]),
                            Value::Bool(was) => json!(!was),
                            Value::Number(_) if below(&mut g, 4) == 0 => {
                                json!([0.5, -1.0, 1e300, 1e-300][below(&mut g, 4)])
                            }
                            _ => json!(numbers[below(&mut g, numbers.len())]),
                        };
                    }
                }
            }
            if let Ok(flow) = read(&archive) {
                accepted += 1;
                assert!(log_prob(&flow).len() == 3);
                let again = flow.to_archive().expect("built in");
                assert_eq!(
                    flow.stages().expect("built in"),
                    Flow::from_archive(cpu(), &again).expect("ours").stages().expect("built in")
                );
            }
        }
        assert!(0 < accepted && accepted < rounds, "{accepted} of {rounds}");
    }
}
