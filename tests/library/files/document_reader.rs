//! A reader of model files by docs/model-file.md alone: safetensors, JSON and plain loops, nothing of the library.
//!
//! A sample goes through the transforms with its Jacobian, column by column, where a transform wants one: slow and exact.

use std::cell::Cell;
use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use statrs::function::gamma::ln_gamma;

use crate::files::document_context::conditional_stages;
use crate::files::document_sample::{Sample, from_flat, from_image, softmax, softplus};
use crate::files::document_stages::{image_stages, number, row_stages, scales, text, truth};

/// The contents of a file.
pub(crate) struct Document {
    pub(crate) config: Value,
    images: bool,
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    pub(crate) stages: Vec<Value>,
    /// What the document says of the columns besides centres and scales.
    pub(crate) columns: Option<Vec<Value>>,
    /// What the document says of categories.
    pub(crate) categories: Option<Value>,
    /// e(c) of the context that samples are given.
    pub(crate) given: Vec<f64>,
    /// e of the pixels, inside of a dequantiser.
    pub(crate) pixels: Option<Sample>,
    /// t, inside of a continuous flow.
    pub(crate) time: Cell<Option<f64>>,
}

/// What came of a sample.
pub(crate) struct Read {
    pub(crate) log_prob: f64,
    pub(crate) log_det: f64,
    pub(crate) z: Vec<f64>,
    /// p(y | x), of hybrid models.
    pub(crate) classes: Option<Vec<f64>>,
}

impl Document {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(bytes).expect("a safetensors file");
        let text = &metadata.metadata().as_ref().expect("metadata")["resflow"];
        let document: Value = serde_json::from_str(text).expect("JSON");
        let model = &document["model"];
        let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
        let numbers = |data: &[u8], dtype: Dtype| match dtype {
            Dtype::F32 => data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four")))).collect(),
            Dtype::F64 => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight"))).collect(),
            other => panic!("{other:?}"),
        };
        let tensors = file.iter().map(|(name, view)| {
            let values = numbers(view.data(), view.dtype());
            (name.to_owned(), (view.shape().to_vec(), values))
        });
        let tensors = tensors.collect();
        let images = model["config"].get("images").is_some();
        let config = model["config"][if images { "images" } else { "rows" }].clone();
        let columns = model.get("columns").map(|columns| columns["maps"].as_array().expect("a list").clone());
        let extended = columns.is_some()
            || ["base", "start", "conditional_prior", "gated"].iter().any(|&key| config.get(key).is_some());
        let format = model["format"].as_u64();
        // of the number that says most
        let variational = config.get("dequantisation").is_some_and(|settings| settings["kind"] == "variational");
        assert_eq!(format == Some(7), variational);
        let format = match (format, config.get("context")) {
            (Some(7), Some(_)) => Some(5),
            (Some(7), None) => Some(if extended { 4 } else { 2 }),
            (format, _) => format,
        };
        let stages = match (format, model.get("chain"), extended) {
            (Some(3), Some(chain), false) | (Some(4), Some(chain), true) | (Some(5 | 6), Some(chain), _) => {
                chain.as_array().expect("a list").clone()
            }
            (Some(2), None, false) | (Some(4), None, true) | (Some(5 | 6), None, _) if images => image_stages(&config),
            (Some(2), None, false) | (Some(4), None, true) | (Some(5 | 6), None, _) => row_stages(&config),
            other => panic!("{other:?}"),
        };
        assert_eq!(matches!(format, Some(5 | 6)), config.get("context").is_some());
        let categories = model.get("categories").cloned();
        assert_eq!(format == Some(6), categories.is_some());
        let stages = match (config.get("context"), model.get("chain")) {
            (Some(context), None) => {
                let rows = (!images).then(|| number(&config["dimension"]));
                conditional_stages(context, stages, rows)
            }
            _ => stages,
        };
        Self {
            config,
            images,
            tensors,
            stages,
            columns,
            categories,
            given: Vec::new(),
            pixels: None,
            time: Cell::new(None),
        }
    }

    /// The same with a context that samples are given.
    pub(crate) fn given(self, context: &[f64]) -> Self {
        Self { given: self.embedding(context), ..self }
    }

    pub(crate) fn get(&self, name: &str) -> &[f64] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    /// log p of a sample: a row in the data's units, or an image's numbers in (C, H, W) order; where columns are on grids,
    /// the density at a point of the sample's cell.
    pub(crate) fn log_prob(&self, sample: &[f64]) -> Read {
        let columns: Vec<[f64; 2]> = (0..sample.len()).map(|i| self.column(i, sample[i])).collect();
        let standard: Vec<f64> = columns.iter().map(|c| c[0]).collect();
        let shape = if self.images {
            ["height", "width", "channels"].map(|key| number(&self.config[key])).to_vec()
        } else {
            vec![sample.len()]
        };
        let mut at = from_flat(&standard, &shape);
        let (mut log_det, mut z) = (0.0, Vec::new());
        let heads = self.heads();
        let mut features = Vec::new();
        for (l, stage) in self.stages.iter().enumerate() {
            let (name, settings) = stage.as_object().expect("a stage").iter().next().expect("a name");
            let (y, own) = self.transform(&format!("links.{l}"), name, settings, &at);
            log_det += own;
            let out = match name.as_str() {
                "squeeze" => number(&settings["factored_out"]),
                "conditional-prior" => y.features() / 2,
                _ => 0,
            };
            let stay = y.features() - out;
            let left = (out > 0).then(|| y.part(stay, out));
            if let Some(s) = heads.iter().position(|head| head.0 == l) {
                let seen = left.clone().unwrap_or_else(|| from_image(&y, &heads[s].1));
                features.extend(self.head(s, &seen));
            }
            z.extend(left.iter().flat_map(Sample::flat));
            at = y.part(0, stay);
        }
        z.extend(at.flat());
        log_det += columns.iter().map(|c| c[1]).sum::<f64>();
        let classes = (!heads.is_empty()).then(|| {
            let at = Sample { shape: vec![features.len()], x: features };
            softmax(&self.affine("classifier.linear", None, &at, true).x)
        });
        Read { log_prob: log_det + self.base(&z), log_det, z, classes }
    }

    /// log p₀(z).
    fn base(&self, z: &[f64]) -> f64 {
        let (d, tau) = (z.len(), std::f64::consts::TAU);
        let base = self.config.get("base");
        if base.is_none() {
            return -0.5 * (z.iter().map(|z| z * z).sum::<f64>() + d as f64 * tau.ln());
        }
        if base == Some(&json!("student-t")) {
            let one = |(z, raw): (&f64, &f64)| {
                let nu = 1.0 + softplus(*raw);
                ln_gamma(0.5 * (nu + 1.0))
                    - ln_gamma(0.5 * nu)
                    - 0.5 * (std::f64::consts::PI * nu).ln()
                    - 0.5 * (nu + 1.0) * (z * z / nu).ln_1p()
            };
            return z.iter().zip(self.get("base.raw")).map(one).sum();
        }
        let (logits, means, factors) = (self.get("base.logits"), self.get("base.means"), self.get("base.factors"));
        let full = text(&base.expect("a base")["mixture"], "covariance") == "full";
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        let density = |k: usize| {
            let a = |i: usize, j: usize| match (full, i == j) {
                (true, true) => factors[(k * d + i) * d + i].min(1e4_f64.ln()).exp(),
                (true, false) => factors[(k * d + i) * d + j],
                (false, true) => factors[k * d + i].min(1e4_f64.ln()).exp(),
                (false, false) => 0.0,
            };
            let y = |i: usize| (0..=i).map(|j| a(i, j) * (z[j] - means[k * d + j])).sum::<f64>();
            let square: f64 = (0..d).map(|i| y(i).powi(2)).sum();
            let volume: f64 = (0..d).map(|i| a(i, i)).product();
            logits[k].exp() / total * volume * tau.powf(-0.5 * d as f64) * (-0.5 * square).exp()
        };
        (0..logits.len()).map(density).sum::<f64>().ln()
    }

    /// The number of the transform and the shape of the image that each head looks at.
    fn heads(&self) -> Vec<(usize, Vec<usize>)> {
        if self.config.get("classes").is_none_or(|classes| number(classes) == 0) {
            return Vec::new();
        }
        let first = usize::from(truth(&self.config["squeeze_first"]));
        let ends =
            if self.config.get("conditional_prior").is_some_and(truth) { "conditional-prior" } else { "squeeze" };
        let squeezes = (first..self.stages.len()).filter(|&l| self.stages[l].get(ends).is_some());
        let scales = scales(&self.config);
        let shapes = scales.iter().skip(1).chain(scales.last());
        squeezes.chain([self.stages.len() - 1]).zip(shapes.cloned()).collect()
    }

    /// A head's features of an image.
    fn head(&self, s: usize, image: &Sample) -> Vec<f64> {
        let path = format!("classifier.heads.{s}");
        let at = self.affine(&format!("{path}.convolution"), None, image, true);
        let (at, _) = self.transform(&format!("{path}.actnorm"), "act-norm", &Value::Null, &at);
        let pixels = at.pixels() as f64;
        (0..at.features())
            .map(|k| at.x.iter().skip(k).step_by(at.features()).map(|x| x.max(0.0) / pixels).sum())
            .collect()
    }
}
