//! The context of conditional flows, by docs/model-file.md alone.

use serde_json::{Value, json};

use crate::files::document_reader::Document;
use crate::files::document_sample::{Sample, logistic};
use crate::files::document_stages::number;

/// The transforms of a configuration with a context, from those without.
pub(crate) fn conditional_stages(context: &Value, stages: Vec<Value>, rows: Option<usize>) -> Vec<Value> {
    let widths: Vec<usize> = context["embedding"].as_array().expect("a list").iter().map(number).collect();
    let k = widths.last().copied().unwrap_or_else(|| number(&context["columns"]));
    let is = |key: &str| context[key].as_bool().expect("true or false");
    let scale = |features: usize| {
        is("scales").then(|| json!({ "conditional-act-norm": { "features": features, "context": k } }))
    };
    let mut out: Vec<Value> = rows.and_then(scale).into_iter().collect();
    for mut stage in stages {
        let continuous = stage.get("ode-flow").is_some();
        let settings = stage.as_object_mut().expect("a stage").values_mut().next().expect("a name");
        let Some(net) = settings.get_mut("net") else {
            out.push(stage);
            continue;
        };
        if continuous {
            // it is told the time before
            net["layers"].as_array_mut().expect("layers").retain(|layer| layer.get("context-bias").is_none());
        }
        tell(net, if continuous { 6 + k } else { k }, is("gates"));
        let features = settings.get("features").or_else(|| settings["shape"].as_array().and_then(|shape| shape.last()));
        let features = number(features.expect("features"));
        out.push(stage);
        out.extend(scale(features));
    }
    out
}

/// Biases behind all weights but the last, gates behind their activations.
pub(crate) fn tell(net: &mut Value, k: usize, gates: bool) {
    let layers = net["layers"].as_array().expect("layers").clone();
    let weighted = |layer: &Value| ["linear", "convolution", "dense"].iter().any(|name| layer.get(*name).is_some());
    let last = layers.iter().rposition(weighted).expect("a weight");
    let (mut out, mut hidden, mut told) = (Vec::new(), None, 0);
    for (i, mut layer) in layers.into_iter().enumerate() {
        if let Some(dense) = layer.get_mut("dense") {
            dense["context"] = json!(true);
            told += number(&dense["outputs"]);
            out.push(layer);
        } else if let Some(affine) = layer.get("linear").or_else(|| layer.get("convolution")) {
            let outputs = number(&affine["outputs"]);
            out.push(layer);
            hidden = None;
            if i < last {
                out.push(json!({ "context-bias": { "features": outputs } }));
                (hidden, told) = (Some(outputs), told + outputs);
            }
        } else {
            let wide = matches!(layer["activation"].as_str(), Some("clip-swish" | "cpila"));
            out.push(layer);
            if let Some(outputs) = hidden.take().filter(|_| gates) {
                let features = if wide { 2 * outputs } else { outputs };
                out.push(json!({ "context-gate": { "features": features } }));
                told += features;
            }
        }
    }
    net["layers"] = Value::Array(out);
    if told > 0 {
        net["context"] = json!(k);
    }
}

/// τ(t).
fn time_features(t: f64) -> Vec<f64> {
    let angles = [1.0, 2.0, 3.0].map(|k| k * std::f64::consts::PI * t);
    angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect()
}

impl Document {
    /// e(c).
    pub(crate) fn embedding(&self, context: &[f64]) -> Vec<f64> {
        let (mean, deviation) = (self.get("context.mean"), self.get("context.deviation"));
        let standard = context.iter().zip(mean.iter().zip(deviation)).map(|(c, (m, s))| (c - m) / s);
        let mut at = Sample { shape: vec![context.len()], x: standard.collect() };
        for i in 0..self.config["context"]["embedding"].as_array().expect("a list").len() {
            at = self.affine(&format!("embedding.{i}"), None, &at, true);
            at.x.iter_mut().for_each(|x| *x *= logistic(*x));
        }
        at.x
    }

    /// What a net is told, U e.
    pub(crate) fn told(&self, path: &str, net: &Value) -> Vec<f64> {
        if net.get("context").is_none() || self.pixels.is_some() {
            return Vec::new();
        }
        let k = number(&net["context"]);
        let context: Vec<f64> =
            self.time.get().map_or(Vec::new(), time_features).into_iter().chain(self.given.iter().copied()).collect();
        assert_eq!(k, context.len(), "{path}");
        let rows = self.get(&format!("{path}.net.context.weight")).chunks(k);
        rows.map(|row| row.iter().zip(&context).map(|(u, e)| u * e).sum()).collect()
    }

    /// e^a ∘ x + m, and its log det.
    pub(crate) fn conditional_act_norm(&self, path: &str, x: &Sample) -> (Sample, f64) {
        if let Some(e) = &self.pixels {
            return self.act_norm_by_pixels(path, e, x);
        }
        let (c, k) = (x.features(), self.given.len());
        let (weight, bias) = (self.get(&format!("{path}.weight")), self.get(&format!("{path}.bias")));
        let row = |r: usize| bias[r] + (0..k).map(|j| weight[r * k + j] * self.given[j]).sum::<f64>();
        let a: Vec<f64> = (0..c).map(|r| 3.0 * (row(r) / 3.0).tanh()).collect();
        let m: Vec<f64> = (0..c).map(|r| row(c + r)).collect();
        let y = x.by_features(c, |x, y| (0..c).for_each(|r| y[r] = x[r] * a[r].exp() + m[r]));
        (y, x.pixels() as f64 * a.iter().sum::<f64>())
    }
}
