//! A reader of model files by docs/model-file.md alone: safetensors, JSON and plain loops, nothing of the library.
//!
//! A sample goes through the transforms with its Jacobian, column by column, where a transform wants one: slow and exact.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use statrs::function::gamma::ln_gamma;

use crate::document_spline::{lu_linear, spline, spline_stages};

/// The contents of a file.
pub(crate) struct Document {
    pub(crate) config: Value,
    images: bool,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    pub(crate) stages: Vec<Value>,
    /// What the document says of the columns besides centres and scales.
    pub(crate) columns: Option<Vec<Value>>,
}

/// What came of a sample.
pub(crate) struct Read {
    pub(crate) log_prob: f64,
    pub(crate) log_det: f64,
    pub(crate) z: Vec<f64>,
    /// p(y | x), of hybrid models.
    pub(crate) classes: Option<Vec<f64>>,
}

/// A sample, a tangent or a cotangent: `[d]`, or `[h, w, c]`.
#[derive(Clone)]
struct Sample {
    shape: Vec<usize>,
    x: Vec<f64>,
}

impl Sample {
    fn features(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Pixels, 1 of a vector.
    fn pixels(&self) -> usize {
        self.x.len() / self.features()
    }

    /// Changes the features at each pixel.
    fn by_features(&self, outputs: usize, f: impl Fn(&[f64], &mut [f64])) -> Self {
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("features") = outputs;
        let mut x = vec![0.0; self.pixels() * outputs];
        self.x.chunks(self.features()).zip(x.chunks_mut(outputs)).for_each(|(from, to)| f(from, to));
        Self { shape, x }
    }

    /// The features from `start` on.
    fn part(&self, start: usize, length: usize) -> Self {
        self.by_features(length, |from, to| to.copy_from_slice(&from[start..start + length]))
    }

    /// In (C, H, W) order.
    fn flat(&self) -> Vec<f64> {
        let c = self.features();
        (0..c).flat_map(|k| self.x.iter().skip(k).step_by(c).copied()).collect()
    }
}

/// An image, or a vector as it is, of numbers in (C, H, W) order.
fn from_flat(flat: &[f64], shape: &[usize]) -> Sample {
    let c = shape[shape.len() - 1];
    let pixels = flat.len() / c;
    let x = (0..flat.len()).map(|e| flat[if shape.len() == 3 { (e % c) * pixels + e / c } else { e }]).collect();
    Sample { shape: shape.to_vec(), x }
}

fn logistic(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

pub(crate) fn softplus(v: f64) -> f64 {
    v.max(0.0) + (-v.abs()).exp().ln_1p()
}

/// φ(x) and φ'(x).
fn activation(name: &str, beta: f64, x: f64) -> [f64; 2] {
    match name {
        "lip-swish" => {
            let b = softplus(beta);
            let s = logistic(b * x);
            [x * s / 1.1, (s + b * x * s * (1.0 - s)) / 1.1]
        }
        "elu" => [if x > 0.0 { x } else { x.exp_m1() }, if x > 0.0 { 1.0 } else { x.exp() }],
        "softplus" => [softplus(x), logistic(x)],
        "tanh" => [x.tanh(), 1.0 - x.tanh().powi(2)],
        "relu" => [x.max(0.0), f64::from(u8::from(x > 0.0))],
        "lipschitz-cube" if x.abs() < 1.0 => [x.powi(3) / 3.0, x * x],
        "lipschitz-cube" => [x - x.signum() * 2.0 / 3.0, 1.0],
        "sin" => [(std::f64::consts::TAU * x).sin() / std::f64::consts::TAU, (std::f64::consts::TAU * x).cos()],
        other => panic!("the document knows no activation {other}"),
    }
}

/// ln|det| of a square matrix by elimination.
fn log_det(n: usize, mut a: Vec<f64>) -> f64 {
    let mut sum = 0.0;
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs())).expect("a row");
        (0..n).for_each(|j| a.swap(k * n + j, pivot * n + j));
        sum += a[k * n + k].abs().ln();
        for i in k + 1..n {
            let factor = a[i * n + k] / a[k * n + k];
            (k..n).for_each(|j| a[i * n + j] -= factor * a[k * n + j]);
        }
    }
    sum
}

pub(crate) fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a whole number")).expect("small")
}

fn list(value: &Value) -> Vec<usize> {
    value.as_array().expect("a list").iter().map(number).collect()
}

fn truth(value: &Value) -> bool {
    value.as_bool().expect("true or false")
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
        let extended = columns.is_some() || config.get("base").is_some() || config.get("start").is_some();
        let stages = match (model["format"].as_u64(), model.get("chain"), extended) {
            (Some(3), Some(chain), false) | (Some(4), Some(chain), true) => chain.as_array().expect("a list").clone(),
            (Some(2), None, false) | (Some(4), None, true) if images => image_stages(&config),
            (Some(2), None, false) | (Some(4), None, true) => row_stages(&config),
            other => panic!("{other:?}"),
        };
        Self { config, images, tensors, stages, columns }
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
            let out = if name == "squeeze" { number(&settings["factored_out"]) } else { 0 };
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
        let squeezes = (first..self.stages.len()).filter(|&l| self.stages[l].get("squeeze").is_some());
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

    fn transform(&self, path: &str, name: &str, settings: &Value, x: &Sample) -> (Sample, f64) {
        let (c, pixels) = (x.features(), x.pixels() as f64);
        let get = |leaf: &str| self.get(&format!("{path}.{leaf}"));
        match name {
            "act-norm" => {
                let (s, b) = (get("log_scale"), get("bias"));
                let y = x.by_features(c, |x, y| (0..c).for_each(|k| y[k] = (x[k] + b[k]) * s[k].exp()));
                (y, pixels * s.iter().sum::<f64>())
            }
            "invertible-linear" => {
                let (lu, permutation, sign) = (get("lu"), get("permutation"), get("sign"));
                let upper = |i: usize, j: usize| match i.cmp(&j) {
                    std::cmp::Ordering::Less => lu[i * c + j],
                    std::cmp::Ordering::Equal => sign[i] * lu[i * c + i].exp(),
                    std::cmp::Ordering::Greater => 0.0,
                };
                let lower = |i: usize, j: usize| match i.cmp(&j) {
                    std::cmp::Ordering::Less => 0.0,
                    std::cmp::Ordering::Equal => 1.0,
                    std::cmp::Ordering::Greater => lu[i * c + j],
                };
                let y = x.by_features(c, |x, y| {
                    let ux: Vec<f64> = (0..c).map(|i| (0..c).map(|j| upper(i, j) * x[j]).sum()).collect();
                    let lux: Vec<f64> = (0..c).map(|i| (0..c).map(|j| lower(i, j) * ux[j]).sum()).collect();
                    (0..c).for_each(|i| y[i] = lux[permutation[i] as usize]);
                });
                (y, pixels * (0..c).map(|i| lu[i * c + i]).sum::<f64>())
            }
            "squeeze" => {
                let (h, w) = (x.shape[0] / 2, x.shape[1] / 2);
                let mut y = Sample { shape: vec![h, w, 4 * c], x: vec![0.0; x.x.len()] };
                for (i, j, k) in positions(2 * h, 2 * w, c) {
                    let to = ((i / 2 * w + j / 2) * c + k) * 4 + 2 * (i % 2) + j % 2;
                    y.x[to] = x.x[(i * 2 * w + j) * c + k];
                }
                (y, 0.0)
            }
            "logit" => {
                let alpha = settings["alpha"].as_f64().expect("α");
                // 1 − s without losing digits near x = 1
                let sides = |x: f64| [alpha + (1.0 - 2.0 * alpha) * x, alpha + (1.0 - 2.0 * alpha) * (1.0 - x)];
                let y = x.by_features(c, |x, y| {
                    (0..c).for_each(|k| y[k] = sides(x[k])[0].ln() - sides(x[k])[1].ln());
                });
                let terms = x.x.iter().map(|&x| (1.0 - 2.0 * alpha).ln() - sides(x)[0].ln() - sides(x)[1].ln());
                (y, terms.sum())
            }
            "flatten" => (Sample { shape: vec![x.x.len()], x: x.flat() }, 0.0),
            "residual-block" => self.block(path, &settings["net"], x),
            "coupling" => self.coupling(path, settings, x),
            "lu-linear" => {
                let (y, log_det) = lu_linear(get("lu"), get("bias"), get("permutation"), &x.x);
                (Sample { shape: x.shape.clone(), x: y }, log_det)
            }
            "spline-coupling" => self.spline_coupling(path, settings, x),
            other => panic!("the document knows no transform {other}"),
        }
    }

    fn block(&self, path: &str, net: &Value, x: &Sample) -> (Sample, f64) {
        let d = x.x.len();
        let unit =
            |j: usize| Sample { shape: x.shape.clone(), x: (0..d).map(|i| f64::from(u8::from(i == j))).collect() };
        let (g, columns) = self.net(path, net, x, (0..d).map(unit).collect());
        let mut jacobian = vec![0.0; d * d];
        for (j, column) in columns.iter().enumerate() {
            (0..d).for_each(|i| jacobian[i * d + j] = column.x[i] + f64::from(u8::from(i == j)));
        }
        let y = x.x.iter().zip(&g.x).map(|(x, g)| x + g).collect();
        (Sample { shape: x.shape.clone(), x: y }, log_det(d, jacobian))
    }

    fn coupling(&self, path: &str, settings: &Value, x: &Sample) -> (Sample, f64) {
        let (mask, c) = (&settings["mask"], x.features());
        let board = mask.get("checkerboard");
        let swapped = truth(&board.or(mask.get("channels")).expect("a mask")["swapped"]);
        // whether a number stays, and the number of its s among the features of s
        let stays = |e: usize| {
            let (pixel, k) = (e / c, e % c);
            match board {
                Some(_) => ((pixel / x.shape[1] + pixel % x.shape[1]) % 2 == 1) == swapped,
                None => (k < c - c / 2) != swapped,
            }
        };
        // swapped, the first ⌈c/2⌉ are moved and the last ⌊c/2⌋ stay
        let (a, moved, first) = match (board, swapped) {
            (Some(_), _) => {
                let masked = (0..x.x.len()).map(|e| if stays(e) { x.x[e] } else { 0.0 }).collect();
                (Sample { shape: x.shape.clone(), x: masked }, c, 0)
            }
            (None, false) => (x.part(0, c - c / 2), c / 2, c - c / 2),
            (None, true) => (x.part(c - c / 2, c / 2), c - c / 2, 0),
        };
        let st = self.net(path, &settings["net"], &a, Vec::new()).0;
        assert_eq!(st.features(), 2 * moved, "{path}");
        let centred = settings.get("centred").is_some_and(truth);
        let centre = if centred { logistic(2.0) } else { 1.0 };
        let (mut y, mut log_det) = (x.clone(), 0.0);
        for e in (0..x.x.len()).filter(|&e| !stays(e)) {
            let (at, k) = (e / c * 2 * moved, e % c - first);
            let scale = logistic(st.x[at + k] + 2.0) / centre;
            y.x[e] = x.x[e] * scale + st.x[at + moved + k];
            log_det += scale.ln();
        }
        (y, log_det)
    }

    fn spline_coupling(&self, path: &str, settings: &Value, x: &Sample) -> (Sample, f64) {
        let (c, splines) = (x.features(), &settings["splines"]);
        let (bins, bound) = (number(&splines["bins"]), splines["bound"].as_f64().expect("B"));
        let (first, last) = ((0, c - c / 2), (c - c / 2, c / 2));
        let ((a, stays), (b, _)) = if truth(&settings["swapped"]) { (last, first) } else { (first, last) };
        let raw = self.net(path, &settings["net"], &x.part(a, stays), Vec::new()).0.x;
        let root = (number(&splines["hidden"]) as f64).sqrt();
        let (mut y, mut log_det) = (x.clone(), 0.0);
        let mut bend = |at: usize, raw: &[f64], root: f64| {
            let [value, slope] = spline(bins, bound, root, raw, x.x[at]);
            (y.x[at], log_det) = (value, log_det + slope.ln());
        };
        raw.chunks(3 * bins - 1).enumerate().for_each(|(i, raw)| bend(b + i, raw, root));
        if truth(&splines["unconditional"]) {
            let own = self.get(&format!("{path}.unconditional"));
            own.chunks(3 * bins - 1).enumerate().for_each(|(i, raw)| bend(a + i, raw, 1.0));
        }
        (y, log_det)
    }

    /// A net at x, and its Jacobian times some tangents.
    fn net(&self, path: &str, net: &Value, x: &Sample, mut tangents: Vec<Sample>) -> (Sample, Vec<Sample>) {
        let mut at = x.clone();
        for (j, layer) in net["layers"].as_array().expect("layers").iter().enumerate() {
            let path = format!("{path}.net.{j}");
            let (name, settings) = layer.as_object().expect("a layer").iter().next().expect("a name");
            if name == "activation" {
                let name = settings.as_str().expect("a name");
                let learns = matches!(name, "lip-swish" | "clip-swish");
                let beta = if learns { self.get(&format!("{path}.beta"))[0] } else { 0.0 };
                tangents = tangents.iter().map(|t| activated(name, beta, &at, Some(t))).collect();
                at = activated(name, beta, &at, None);
            } else {
                let coefficient = settings["coefficient"].as_f64();
                tangents = tangents.iter().map(|t| self.affine(&path, coefficient, t, false)).collect();
                at = self.affine(&path, coefficient, &at, true);
            }
        }
        (at, tangents)
    }

    /// W_eff x, and the bias if it is wanted.
    fn affine(&self, path: &str, coefficient: Option<f64>, x: &Sample, with_bias: bool) -> Sample {
        let (shape, w) = &self.tensors[&format!("{path}.weight")];
        let bias = self.get(&format!("{path}.bias"));
        let factor = coefficient.map_or(1.0, |kappa| {
            let (u, (v_shape, v)) = (self.get(&format!("{path}.u")), &self.tensors[&format!("{path}.v")]);
            let v_shape = if v_shape.len() == 4 { v_shape[1..].to_vec() } else { v_shape.clone() };
            let wv = product(shape, w, &Sample { shape: v_shape, x: v.clone() });
            let sigma: f64 = wv.x.iter().zip(u).map(|(a, b)| a * b).sum();
            1.0 / (sigma / kappa).max(1.0)
        });
        let mut y = product(shape, w, x);
        let o = y.features();
        for (e, y) in y.x.iter_mut().enumerate() {
            *y = *y * factor + if with_bias { bias[e % o] } else { 0.0 };
        }
        y
    }
}

/// φ at x, or φ'(x) times a tangent.
fn activated(name: &str, beta: f64, x: &Sample, tangent: Option<&Sample>) -> Sample {
    let one = |name: &str, sign: f64, e: usize| {
        let [value, slope] = activation(name, beta, sign * x.x[e]);
        tangent.map_or(value, |t| sign * slope * t.x[e])
    };
    if name != "clip-swish" {
        return Sample { shape: x.shape.clone(), x: (0..x.x.len()).map(|e| one(name, 1.0, e)).collect() };
    }
    let c = x.features();
    let numbers = Sample { shape: x.shape.clone(), x: (0..x.x.len()).map(|e| e as f64).collect() };
    numbers.by_features(2 * c, |from, to| {
        for k in 0..c {
            to[k] = one("lip-swish", 1.0, from[k] as usize) / 1.004;
            to[c + k] = one("lip-swish", -1.0, from[k] as usize) / 1.004;
        }
    })
}

fn positions(h: usize, w: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..h).flat_map(move |i| (0..w).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

/// W x of a matrix `[o, i]`, at each pixel, or of a kernel `[o, kh, kw, i]`.
fn product(shape: &[usize], w: &[f64], x: &Sample) -> Sample {
    if let &[o, inputs] = shape {
        return x
            .by_features(o, |x, y| (0..o).for_each(|r| y[r] = (0..inputs).map(|i| w[r * inputs + i] * x[i]).sum()));
    }
    let (&[o, kh, kw, inputs], &[height, width, _]) = (shape, &x.shape[..]) else { panic!("{shape:?}, {:?}", x.shape) };
    let mut y = Sample { shape: vec![height, width, o], x: vec![0.0; height * width * o] };
    for (p, q, r) in positions(height, width, o) {
        let mut sum = 0.0;
        for (a, b, i) in positions(kh, kw, inputs) {
            let (row, column) = (p + a, q + b);
            if row >= kh / 2 && row - kh / 2 < height && column >= kw / 2 && column - kw / 2 < width {
                let at = ((row - kh / 2) * width + column - kw / 2) * inputs + i;
                sum += w[((r * kh + a) * kw + b) * inputs + i] * x.x[at];
            }
        }
        y.x[(p * width + q) * o + r] = sum;
    }
    y
}

/// The end of a chain as an image, where it was flattened.
fn from_image(y: &Sample, shape: &[usize]) -> Sample {
    if y.shape.len() == 3 { y.clone() } else { from_flat(&y.x, shape) }
}

pub(crate) fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
    powers.iter().map(|p| p / powers.iter().sum::<f64>()).collect()
}

// What configurations spell out, in the form of stages.

fn text<'a>(config: &'a Value, key: &str) -> &'a str {
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
        let inputs = if follows && activation == "clip-swish" { 2 * inputs } else { inputs };
        layers.push(if k == 0 || (k == 1 && two_norms) {
            json!({ "linear": { "inputs": inputs, "outputs": outputs, "coefficient": coefficient } })
        } else {
            json!({ "convolution": { "kernel": [k, k], "inputs": inputs, "outputs": outputs, "coefficient": coefficient } })
        });
    }
    json!({ "layers": layers })
}

/// (kernel, inputs, outputs) through some widths.
pub(crate) fn weights(kernels: &[usize], widths: &[usize]) -> Vec<(usize, usize, usize)> {
    kernels.iter().zip(widths.windows(2)).map(|(&k, w)| (k, w[0], w[1])).collect()
}

fn family(config: &Value) -> &str {
    config.get("model").map_or("residual", |model| model.as_str().expect("a family"))
}

/// Coupling i of n over samples of a shape, and before it the map of Glow.
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
        (3, _, "realnvp") if shape[0] * shape[1] > 1 => n.div_ceil(2),
        _ => 0,
    };
    let (mask, a, b) = if i < boards {
        (json!({ "checkerboard": { "swapped": i % 2 == 1 } }), c, c)
    } else {
        let swapped = (i - boards) % 2 == 1;
        let a = if swapped { c / 2 } else { c - c / 2 };
        (json!({ "channels": { "swapped": swapped } }), a, c - a)
    };
    let widths = [&[a], hidden, &[2 * b]].concat();
    let net = spelled(config, &weights(kernels, &widths), false, true, true);
    let centred = config.get("start") == Some(&json!("identity"));
    let coupling = json!({ "coupling": { "shape": shape, "mask": mask, "net": net, "centred": centred } });
    let map = (family(config) == "glow" && c > 1).then(|| json!({ "invertible-linear": { "features": c } }));
    map.into_iter().chain([coupling]).collect()
}

fn couples(config: &Value) -> bool {
    matches!(family(config), "realnvp" | "glow")
}

fn row_stages(config: &Value) -> Vec<Value> {
    let (d, n, hidden) = (number(&config["dimension"]), number(&config["blocks"]), list(&config["hidden"]));
    let norm = truth(&config["actnorm"]).then(|| json!({ "act-norm": { "features": d } }));
    let mut stages: Vec<Value> = norm.clone().into_iter().collect();
    let kernels = vec![0; hidden.len() + 1];
    for i in 0..n {
        if family(config) == "nsf" {
            stages.extend(spline_stages(config, d, i, &kernels, &hidden));
        } else if couples(config) {
            stages.extend(coupling_stages(config, &[d], n, i, &kernels, &hidden));
        } else {
            let widths = [&[d], &hidden[..], &[d]].concat();
            let net = spelled(config, &weights(&kernels, &widths), truth(&config["leading_activation"]), false, true);
            stages.push(json!({ "residual-block": { "shape": [d], "net": net } }));
        }
        stages.extend(norm.clone());
    }
    if family(config) == "nsf" {
        stages.push(json!({ "lu-linear": { "features": d } }));
    }
    stages
}

/// `[h, w, c]` of each scale.
fn scales(config: &Value) -> Vec<Vec<usize>> {
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

fn image_stages(config: &Value) -> Vec<Value> {
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
            let factored_out = if truth(&config["factor_out"]) { 2 * scales[s - 1][2] } else { 0 };
            stages.push(json!({ "squeeze": { "factored_out": factored_out } }));
        }
        let (shape, c) = (&scales[s], scales[s][2]);
        let hidden = vec![filters; kernels.len() - 1];
        for i in 0..n {
            if couples(config) {
                stages.extend(coupling_stages(config, shape, n, i, &kernels, &hidden));
            } else {
                let leads = if s == 0 && i == 0 { "first_activation" } else { "leading_activation" };
                let widths = [&[c], &hidden[..], &[c]].concat();
                let net = spelled(config, &weights(&kernels, &widths), truth(&config[leads]), false, two_norms);
                stages.push(json!({ "residual-block": { "shape": shape, "net": net } }));
            }
            stages.extend(norm(c));
        }
    }
    if number(&config["fully_connected"]) > 0 {
        let (image, f) = (&scales[scales.len() - 1], number(&config["fully_connected_width"]));
        let d: usize = image.iter().product();
        stages.push(json!({ "flatten": { "image": image } }));
        for _ in 0..number(&config["fully_connected"]) {
            let net = spelled(config, &weights(&[0; 3], &[d, f, f, d]), true, false, true);
            stages.push(json!({ "residual-block": { "shape": [d], "net": net } }));
            stages.extend(norm(d));
        }
    }
    stages
}
