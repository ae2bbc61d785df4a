//! Variational dequantisation by docs/model-file.md alone.

use serde_json::{Value, json};

use crate::files::document_reader::Document;
use crate::files::document_sample::{Sample, from_flat, logistic, softplus};
use crate::files::document_stages::{number, spelled, text, weights};

/// ln σ'(t).
fn log_slope(t: f64) -> f64 {
    -softplus(t) - softplus(-t)
}

/// The transforms of the noise.
fn stages(config: &Value) -> Vec<Value> {
    let settings = &config["dequantisation"];
    let [h, w, c] = ["height", "width", "channels"].map(|key| number(&config[key]));
    let [blocks, filters, k] = ["blocks", "filters", "features"].map(|key| number(&settings[key]));
    let shape = json!([h, w, c]);
    let residual = text(settings, "model") == "residual";
    let net = |inputs: usize, outputs: usize| {
        let config =
            json!({ "activation": if residual { "lip-swish" } else { "elu" }, "coefficient": config["coefficient"] });
        let layers = weights(&[3, 1, 3], &[inputs, filters, filters, outputs]);
        let mut net = spelled(&config, &layers, false, !residual, true);
        let layers = net["layers"].as_array_mut().expect("layers");
        for at in [3, 1] {
            layers.insert(at, json!({ "pixel-bias": { "features": filters } }));
        }
        net["context"] = json!(k);
        net
    };
    let mut masks = Vec::new();
    for (name, there) in [("checkerboard", h * w > 1), ("channels", c > 1)] {
        for swapped in [false, true].into_iter().filter(|_| there) {
            masks.push((name, swapped));
        }
    }
    let mut out = Vec::new();
    for i in 0..blocks {
        out.push(json!({ "conditional-act-norm": { "features": c, "context": k } }));
        if residual {
            out.push(json!({ "residual-block": { "shape": shape, "net": net(c, c) } }));
        } else if !masks.is_empty() {
            let (name, swapped) = masks[i % masks.len()];
            let (stays, moves) = match (name, swapped) {
                ("checkerboard", _) => (c, c),
                (_, false) => (c - c / 2, c / 2),
                (_, true) => (c / 2, c - c / 2),
            };
            let mask = json!({ name: { "swapped": swapped } });
            out.push(if text(settings, "model") == "flowpp" {
                let components = config.get("components").map_or(8, number);
                let net = net(stays, (3 * components + 2) * moves);
                json!({ "mixture-coupling": { "shape": shape, "mask": mask, "logistics": { "components": components }, "net": net } })
            } else {
                json!({ "coupling": { "shape": shape, "mask": mask, "net": net(stays, 2 * moves), "centred": true } })
            });
        }
    }
    out
}

impl Document {
    /// u and log q(u | x) of an image of levels, in the order of bytes, with uniform noise.
    pub(crate) fn noise(&mut self, levels: &[f64], noise: &[f64]) -> (Vec<f64>, f64) {
        let shape = ["height", "width", "channels"].map(|key| number(&self.config[key])).to_vec();
        let scale = 2.0 / f64::from(1_u32 << number(&self.config["bits"]));
        let pixels = levels.iter().map(|l| scale * (l + 0.5) - 1.0).collect();
        let mut at = Sample { shape: shape.clone(), x: pixels };
        for layer in ["dequantiser.encoder.0", "dequantiser.encoder.2"] {
            at = self.affine(layer, None, &at, true);
            at.x.iter_mut().for_each(|x| *x = if *x > 0.0 { *x } else { x.exp_m1() });
        }
        self.pixels = Some(at);
        let logits: Vec<f64> = noise.iter().map(|n| (n / (1.0 - n)).ln()).collect();
        let mut log_q: f64 = logits.iter().map(|t| log_slope(*t)).sum();
        let mut at = Sample { shape: shape.clone(), x: logits };
        for (l, stage) in stages(&self.config).iter().enumerate() {
            let (name, settings) = stage.as_object().expect("a stage").iter().next().expect("a name");
            let (y, log_det) = self.transform(&format!("dequantiser.links.{l}"), name, settings, &at);
            log_q -= log_det;
            at = y;
        }
        self.pixels = None;
        log_q -= at.x.iter().map(|v| log_slope(*v)).sum::<f64>();
        // what is flat is in another order, and comes back as it was
        let u = from_flat(&at.flat(), &shape).x.iter().map(|v| logistic(*v)).collect();
        (u, log_q)
    }

    /// What the pixels are told, from number `offset` on, of a net.
    pub(crate) fn told_by_pixels(&self, path: &str, offset: usize, features: usize) -> Sample {
        let e = self.pixels.as_ref().expect("an image");
        let k = e.features();
        let rows = &self.get(&format!("{path}.net.context.weight"))[offset * k..];
        e.by_features(features, |e, told| {
            for (told, row) in told.iter_mut().zip(rows.chunks(k)) {
                *told = row.iter().zip(e).map(|(u, e)| u * e).sum();
            }
        })
    }

    /// e^a ∘ x + m with an a and an m of each pixel, and its log det.
    pub(crate) fn act_norm_by_pixels(&self, path: &str, e: &Sample, x: &Sample) -> (Sample, f64) {
        let (c, k) = (x.features(), e.features());
        let (weight, bias) = (self.get(&format!("{path}.weight")), self.get(&format!("{path}.bias")));
        let told = e.by_features(2 * c, |e, told| {
            for (r, told) in told.iter_mut().enumerate() {
                *told = bias[r] + (0..k).map(|j| weight[r * k + j] * e[j]).sum::<f64>();
            }
        });
        let a = |i: usize| 3.0 * (told.x[2 * (i / c) * c + i % c] / 3.0).tanh();
        let m = |i: usize| told.x[(2 * (i / c) + 1) * c + i % c];
        let y = x.x.iter().enumerate().map(|(i, x)| x * a(i).exp() + m(i)).collect();
        (Sample { shape: x.shape.clone(), x: y }, (0..x.x.len()).map(a).sum())
    }
}
