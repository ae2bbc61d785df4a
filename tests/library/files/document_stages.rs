//! What configurations spell out, in the form of stages, by docs/model-file.md alone.

use serde_json::{Value, json};

use crate::files::document_context::tell;
use crate::files::document_spline::spline_stages;

pub(crate) fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a whole number")).expect("small")
}

fn list(value: &Value) -> Vec<usize> {
    value.as_array().expect("a list").iter().map(number).collect()
}

pub(crate) fn truth(value: &Value) -> bool {
    value.as_bool().expect("true or false")
}

pub(crate) fn text<'a>(config: &'a Value, key: &str) -> &'a str {
    config[key].as_str().expect(key)
}

/// A net of (kernel, inputs, outputs); 0 is linear.
pub(crate) fn spelled(
    config: &Value,
    weights: &[(usize, usize, usize)],
    leads: bool,
    free: bool,
    two_norms: bool,
) -> Value {
    let activation = text(config, "activation");
    let coefficient = if free { Value::Null } else { config["coefficient"].clone() };
    let mut layers = Vec::new();
    for (n, &(k, inputs, outputs)) in weights.iter().enumerate() {
        let follows = n > 0 || leads;
        if follows {
            layers.push(json!({ "activation": activation }));
        }
        let inputs = if follows && matches!(activation, "clip-swish" | "cpila") { 2 * inputs } else { inputs };
        layers.push(if k == 0 || (k == 1 && two_norms) {
            json!({ "linear": { "inputs": inputs, "outputs": outputs, "coefficient": coefficient } })
        } else {
            json!({ "convolution": { "kernel": [k, k], "inputs": inputs, "outputs": outputs, "coefficient": coefficient } })
        });
    }
    json!({ "layers": layers })
}

/// A net of dense layers of (kernel, growth), and a last layer of a kernel; before it all, if there is one, linear to a width.
fn dense_net(config: &Value, d: usize, first: Option<usize>, layers: &[(usize, usize)], last: usize) -> Value {
    let activation = text(config, "activation");
    let coefficient = &config["coefficient"];
    let halves = if matches!(activation, "clip-swish" | "cpila") { 2 } else { 1 };
    let set = |key: &str, default: Value| config.get(key).cloned().unwrap_or(default);
    let concatenation =
        json!({ "bound": set("dense_bound", json!(1.0)), "learned": set("learned_concatenation", json!(true)) });
    let mut all = Vec::new();
    let mut width = d;
    if let Some(outputs) = first {
        all.push(json!({ "linear": { "inputs": d, "outputs": outputs, "coefficient": coefficient } }));
        width = outputs;
    }
    for &(k, growth) in layers {
        let mut dense = json!({ "inputs": width, "outputs": growth / halves, "coefficient": coefficient,
            "activation": activation, "concatenation": concatenation });
        if k > 1 {
            dense["kernel"] = json!([k, k]);
        }
        all.push(json!({ "dense": dense }));
        width += growth;
    }
    all.push(if last > 1 {
        json!({ "convolution": { "kernel": [last, last], "inputs": width, "outputs": d, "coefficient": coefficient } })
    } else {
        json!({ "linear": { "inputs": width, "outputs": d, "coefficient": coefficient } })
    });
    json!({ "layers": all })
}

/// (kernel, inputs, outputs) through some widths.
pub(crate) fn weights(kernels: &[usize], widths: &[usize]) -> Vec<(usize, usize, usize)> {
    kernels.iter().zip(widths.windows(2)).map(|(&k, w)| (k, w[0], w[1])).collect()
}

fn family(config: &Value) -> &str {
    config.get("model").map_or("residual", |model| model.as_str().expect("a family"))
}

/// Coupling i of n over samples of a shape, and before it the map of Glow and Flow++.
fn coupling_stages(
    config: &Value,
    shape: &[usize],
    n: usize,
    i: usize,
    kernels: &[usize],
    hidden: &[usize],
) -> Vec<Value> {
    let c = shape[shape.len() - 1];
    let boards = match (shape.len(), c, family(config)) {
        (3, 1, _) => n,
        (3, _, "realnvp" | "flowpp") if shape[0] * shape[1] > 1 => n.div_ceil(2),
        _ => 0,
    };
    let (mask, a, b) = if i < boards {
        (json!({ "checkerboard": { "swapped": i % 2 == 1 } }), c, c)
    } else {
        let swapped = (i - boards) % 2 == 1;
        let a = if swapped { c / 2 } else { c - c / 2 };
        (json!({ "channels": { "swapped": swapped } }), a, c - a)
    };
    let mixes = family(config) == "flowpp";
    let components = config.get("components").map_or(8, number);
    let outputs = if mixes { 3 * components + 2 } else { 2 };
    let widths = [&[a], hidden, &[outputs * b]].concat();
    let net = match config.get("gated") {
        Some(gated) if shape.len() == 3 => gated_net(config, gated, shape, a, outputs * b),
        _ => spelled(config, &weights(kernels, &widths), false, true, true),
    };
    let centred = config.get("start") == Some(&json!("identity"));
    let coupling = if mixes {
        let logistics = json!({ "components": components });
        json!({ "mixture-coupling": { "shape": shape, "mask": mask, "logistics": logistics, "net": net } })
    } else {
        json!({ "coupling": { "shape": shape, "mask": mask, "net": net, "centred": centred } })
    };
    let map = (matches!(family(config), "glow" | "flowpp") && c > 1)
        .then(|| json!({ "invertible-linear": { "features": c } }));
    map.into_iter().chain([coupling]).collect()
}

/// The gated net of a coupling over images of a shape.
fn gated_net(config: &Value, gated: &Value, shape: &[usize], inputs: usize, outputs: usize) -> Value {
    let (w, activation) = (number(&config["filters"]), text(config, "activation"));
    let wide = if matches!(activation, "clip-swish" | "cpila") { 2 * w } else { w };
    let convolution = |i: usize, o: usize| json!({ "convolution": { "kernel": [3, 3], "inputs": i, "outputs": o, "coefficient": null } });
    let act = json!({ "activation": activation });
    let (gate, norm) = (json!({ "gate": { "features": w } }), json!({ "layer-norm": { "features": w } }));
    let linear = json!({ "linear": { "inputs": wide, "outputs": 2 * w, "coefficient": null } });
    let heads = (1..=number(&gated["heads"])).rev().find(|heads| w % heads == 0).unwrap_or(0);
    let attends = heads > 0 && shape[0] * shape[1] <= number(&gated["most_pixels"]);
    let mut layers = vec![convolution(inputs, w)];
    for _ in 0..number(&gated["blocks"]) {
        layers.push(json!({ "skip": { "layers": [act, convolution(wide, w), act, linear, gate] } }));
        layers.push(norm.clone());
        if attends {
            let attention = json!({ "attention": { "image": [shape[0], shape[1], w], "heads": heads } });
            layers.push(json!({ "skip": { "layers": [attention, gate] } }));
            layers.push(norm.clone());
        }
    }
    layers.push(convolution(w, outputs));
    json!({ "layers": layers })
}

/// The transforms of a block, each with such a net.
fn block(config: &Value, shape: &[usize], net: &Value) -> Vec<Value> {
    let names: &[&str] = match family(config) {
        "implicit" => &["residual-block", "inverted-block"],
        "monotone" => &["monotone-block"],
        _ => &["residual-block"],
    };
    let one = |name: &&str| {
        let entry = json!({ "shape": shape, "net": net });
        Value::Object([((*name).to_owned(), entry)].into_iter().collect())
    };
    names.iter().map(one).collect()
}

fn has_dense_nets(config: &Value) -> bool {
    matches!(family(config), "dense" | "monotone")
}

fn couples(config: &Value) -> bool {
    matches!(family(config), "realnvp" | "glow" | "flowpp")
}

pub(crate) fn row_stages(config: &Value) -> Vec<Value> {
    let (d, n, hidden) = (number(&config["dimension"]), number(&config["blocks"]), list(&config["hidden"]));
    let norm = truth(&config["actnorm"]).then(|| json!({ "act-norm": { "features": d } }));
    let mut stages: Vec<Value> = norm.clone().into_iter().collect();
    let kernels = vec![0; hidden.len() + 1];
    for i in 0..n {
        if family(config) == "nsf" {
            stages.extend(spline_stages(config, d, i, &kernels, &hidden));
        } else if couples(config) {
            stages.extend(coupling_stages(config, &[d], n, i, &kernels, &hidden));
        } else if family(config) == "ffjord" {
            let widths = [&[d], &hidden[..], &[d]].concat();
            let mut net = spelled(config, &weights(&kernels, &widths), false, true, true);
            tell(&mut net, 6, false);
            let set = |key: &str, default: &str| config.get(key).cloned().unwrap_or(json!(default));
            let (training, evaluation) = (set("solver", "rk4:steps=16"), set("evaluation_solver", "dopri5"));
            let flow = json!({ "shape": [d], "net": net, "training": training, "evaluation": evaluation });
            stages.push(json!({ "ode-flow": flow }));
        } else if has_dense_nets(config) {
            let layers: Vec<_> = hidden.iter().map(|&growth| (0, growth)).collect();
            let net = dense_net(config, d, None, &layers, 0);
            stages.extend(block(config, &[d], &net));
        } else {
            let widths = [&[d], &hidden[..], &[d]].concat();
            let net = spelled(config, &weights(&kernels, &widths), truth(&config["leading_activation"]), false, true);
            stages.extend(block(config, &[d], &net));
        }
        stages.extend(norm.clone());
    }
    if family(config) == "nsf" {
        stages.push(json!({ "lu-linear": { "features": d } }));
    }
    stages
}

/// `[h, w, c]` of each scale.
pub(crate) fn scales(config: &Value) -> Vec<Vec<usize>> {
    let [mut h, mut w, mut c] = ["height", "width", "channels"].map(|key| number(&config[key]));
    if truth(&config["squeeze_first"]) {
        (h, w, c) = (h / 2, w / 2, 4 * c);
    }
    let factor = if truth(&config["factor_out"]) { 2 } else { 4 };
    let mut scales = Vec::new();
    for _ in list(&config["blocks"]) {
        scales.push(vec![h, w, c]);
        (h, w, c) = (h / 2, w / 2, factor * c);
    }
    scales
}

pub(crate) fn image_stages(config: &Value) -> Vec<Value> {
    let (kernels, filters) = (list(&config["kernels"]), number(&config["filters"]));
    let two_norms = text(config, "norms") == "2";
    let norm = |c: usize| truth(&config["actnorm"]).then(|| json!({ "act-norm": { "features": c } }));
    let scales = scales(config);
    let mut stages = Vec::new();
    if truth(&config["squeeze_first"]) {
        stages.push(json!({ "squeeze": { "factored_out": 0 } }));
    }
    if truth(&config["logit"]) {
        stages.push(json!({ "logit": { "alpha": config["logit_alpha"] } }));
    }
    stages.extend(norm(scales[0][2]));
    for (s, &n) in list(&config["blocks"]).iter().enumerate() {
        if s > 0 {
            let prior = config.get("conditional_prior").is_some_and(truth);
            let factored_out = if truth(&config["factor_out"]) && !prior { 2 * scales[s - 1][2] } else { 0 };
            stages.push(json!({ "squeeze": { "factored_out": factored_out } }));
            if prior {
                let (shape, half) = (&scales[s], scales[s][2]);
                let net = spelled(config, &[(3, half, 2 * half)], false, true, true);
                let shape = [shape[0], shape[1], 2 * half];
                stages.push(json!({ "conditional-prior": { "shape": shape, "net": net } }));
            }
        }
        let (shape, c) = (&scales[s], scales[s][2]);
        let hidden = vec![filters; kernels.len() - 1];
        for i in 0..n {
            if couples(config) {
                stages.extend(coupling_stages(config, shape, n, i, &kernels, &hidden));
            } else if family(config) == "ffjord" {
                let widths = [&[c], &hidden[..], &[c]].concat();
                let mut net = spelled(config, &weights(&kernels, &widths), false, true, true);
                tell(&mut net, 6, false);
                let set = |key: &str, default: &str| config.get(key).cloned().unwrap_or(json!(default));
                let (training, evaluation) = (set("solver", "rk4:steps=16"), set("evaluation_solver", "dopri5"));
                stages.push(json!({ "ode-flow": { "shape": shape, "net": net, "training": training, "evaluation": evaluation } }));
            } else if has_dense_nets(config) {
                let (last, inner) = kernels.split_last().expect("kernels");
                let layers: Vec<_> = inner.iter().map(|&k| (k, filters)).collect();
                let net = dense_net(config, c, None, &layers, *last);
                stages.extend(block(config, shape, &net));
            } else {
                let leads = if s == 0 && i == 0 { "first_activation" } else { "leading_activation" };
                let widths = [&[c], &hidden[..], &[c]].concat();
                let net = spelled(config, &weights(&kernels, &widths), truth(&config[leads]), false, two_norms);
                stages.extend(block(config, shape, &net));
            }
            stages.extend(norm(c));
        }
    }
    if number(&config["fully_connected"]) > 0 {
        let (image, f) = (&scales[scales.len() - 1], number(&config["fully_connected_width"]));
        let d: usize = image.iter().product();
        stages.push(json!({ "flatten": { "image": image } }));
        for _ in 0..number(&config["fully_connected"]) {
            let net = if has_dense_nets(config) {
                let growth = config.get("fully_connected_growth").map_or(32, number);
                dense_net(config, d, Some(f), &vec![(0, growth); kernels.len() - 1], 0)
            } else {
                spelled(config, &weights(&[0; 3], &[d, f, f, d]), true, false, true)
            };
            stages.extend(block(config, &[d], &net));
            stages.extend(norm(d));
        }
    }
    stages
}
