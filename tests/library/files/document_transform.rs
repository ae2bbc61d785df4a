//! The transforms of a chain and the nets in them, by docs/model-file.md alone.

use serde_json::Value;

use crate::common::apart;
use crate::files::document_reader::Document;
use crate::files::document_sample::{Sample, logistic, positions, product, softplus};
use crate::files::document_spline::{lu_linear, spline};
use crate::files::document_stages::{number, truth};

/// The raw parameters of an activation; 0 of one that has none.
struct Raw {
    alpha: f64,
    beta: f64,
}

/// φ(x) and φ'(x).
fn activation(name: &str, raw: &Raw, x: f64) -> [f64; 2] {
    match name {
        "lip-swish" => {
            let b = softplus(raw.beta);
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
        "pila" if x > 0.0 => [x, 1.0],
        "pila" => [
            (12.5 * x.powi(3) - 5.0 * x * x + x) * (5.0 * x).exp(),
            (62.5 * x.powi(3) + 12.5 * x * x - 5.0 * x + 1.0) * (5.0 * x).exp(),
        ],
        "leaky-lip-swish" => {
            let a = logistic(raw.alpha);
            let [s, slope] = activation("lip-swish", raw, x);
            [a * x + (1.0 - a) * s, a + (1.0 - a) * slope]
        }
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

impl Document {
    /// A transform of the sample, and its log det.
    pub(crate) fn transform(&self, path: &str, name: &str, settings: &Value, x: &Sample) -> (Sample, f64) {
        let (c, pixels) = (x.features(), x.pixels() as f64);
        let get = |leaf: &str| self.get(&format!("{path}.{leaf}"));
        match name {
            "act-norm" => {
                let (s, b) = (get("log_scale"), get("bias"));
                let y = x.by_features(c, |x, y| (0..c).for_each(|k| y[k] = (x[k] + b[k]) * s[k].exp()));
                (y, pixels * s.iter().sum::<f64>())
            }
            "conditional-act-norm" => self.conditional_act_norm(path, x),
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
            "inverted-block" => {
                let z = self.solve(path, &settings["net"], x);
                let log_det = self.block(path, &settings["net"], &z).1;
                (z, -log_det)
            }
            "monotone-block" => {
                let net = &settings["net"];
                let scaled =
                    |x: &Sample, by: f64| Sample { shape: x.shape.clone(), x: x.x.iter().map(|x| by * x).collect() };
                let w = self.solve(path, net, &scaled(x, 2_f64.sqrt()));
                let y = scaled(&w, 2_f64.sqrt()).x.iter().zip(&x.x).map(|(w, x)| w - x).collect();
                let (plus, minus) = (self.log_det_of_sum(path, net, &w, 1.0), self.log_det_of_sum(path, net, &w, -1.0));
                (Sample { shape: x.shape.clone(), x: y }, minus - plus)
            }
            "coupling" => self.coupling(path, settings, x, None),
            "mixture-coupling" => {
                let components = number(&settings["logistics"]["components"]);
                self.coupling(path, settings, x, Some(components))
            }
            "conditional-prior" => {
                let half = x.features() / 2;
                let st = self.net(path, &settings["net"], &x.part(0, half), Vec::new()).0;
                let (mut y, mut log_det) = (x.clone(), 0.0);
                for (e, y) in y.x.iter_mut().enumerate().filter(|(e, _)| e % (2 * half) >= half) {
                    let (pixel, k) = (e / (2 * half), e % (2 * half) - half);
                    let a = 3.0 * (st.x[2 * half * pixel + k] / 3.0).tanh();
                    *y = *y * a.exp() + st.x[2 * half * pixel + half + k];
                    log_det += a;
                }
                (y, log_det)
            }
            "lu-linear" => {
                let (y, log_det) = lu_linear(get("lu"), get("bias"), get("permutation"), &x.x);
                (Sample { shape: x.shape.clone(), x: y }, log_det)
            }
            "ode-flow" => self.ode_flow(path, &settings["net"], x),
            "spline-coupling" => self.spline_coupling(path, settings, x),
            other => panic!("the document knows no transform {other}"),
        }
    }

    /// x from t = 1 to 0 along f, and the integral of its trace, in many small steps.
    fn ode_flow(&self, path: &str, net: &Value, x: &Sample) -> (Sample, f64) {
        let (steps, d, shape) = (800, x.x.len(), &x.shape);
        let unit =
            |j: usize| Sample { shape: x.shape.clone(), x: (0..d).map(|i| f64::from(u8::from(i == j))).collect() };
        let f = |t: f64, x: &[f64]| {
            self.time.set(Some(t));
            let at = Sample { shape: shape.clone(), x: x.to_vec() };
            let (f, columns) = self.net(path, net, &at, (0..d).map(unit).collect());
            let trace: f64 = columns.iter().enumerate().map(|(j, column)| column.x[j]).sum();
            (f.x, trace)
        };
        let h = -1.0 / f64::from(steps);
        let (mut at, mut log_det) = (x.x.clone(), 0.0);
        for i in 0..steps {
            let t = 1.0 + f64::from(i) * h;
            let from = |at: &[f64], by: f64, k: &[f64]| at.iter().zip(k).map(|(x, k)| x + by * k).collect::<Vec<_>>();
            let k1 = f(t, &at);
            let k2 = f(t + 0.5 * h, &from(&at, 0.5 * h, &k1.0));
            let k3 = f(t + 0.5 * h, &from(&at, 0.5 * h, &k2.0));
            let k4 = f(t + h, &from(&at, h, &k3.0));
            for (k, weight) in [(k1, 1.0), (k2, 2.0), (k3, 2.0), (k4, 1.0)] {
                at = from(&at, h * weight / 6.0, &k.0);
                log_det += h * weight / 6.0 * k.1;
            }
        }
        self.time.set(None);
        (Sample { shape: x.shape.clone(), x: at }, log_det)
    }

    fn block(&self, path: &str, net: &Value, x: &Sample) -> (Sample, f64) {
        let (g, _) = self.net(path, net, x, Vec::new());
        let y = x.x.iter().zip(&g.x).map(|(x, g)| x + g).collect();
        (Sample { shape: x.shape.clone(), x: y }, self.log_det_of_sum(path, net, x, 1.0))
    }

    /// ln|det(I + sign·J)| of a net at x.
    fn log_det_of_sum(&self, path: &str, net: &Value, x: &Sample, sign: f64) -> f64 {
        let d = x.x.len();
        let unit =
            |j: usize| Sample { shape: x.shape.clone(), x: (0..d).map(|i| f64::from(u8::from(i == j))).collect() };
        let (_, columns) = self.net(path, net, x, (0..d).map(unit).collect());
        let mut jacobian = vec![0.0; d * d];
        for (j, column) in columns.iter().enumerate() {
            (0..d).for_each(|i| jacobian[i * d + j] = sign * column.x[i] + f64::from(u8::from(i == j)));
        }
        log_det(d, jacobian)
    }

    /// z with z + g(z) = y: plain iterations until nothing moves.
    fn solve(&self, path: &str, net: &Value, y: &Sample) -> Sample {
        let mut z = y.clone();
        for _ in 0..5000 {
            let (g, _) = self.net(path, net, &z, Vec::new());
            let next: Vec<f64> = y.x.iter().zip(&g.x).map(|(y, g)| y - g).collect();
            let moved = apart(&next, &z.x);
            z.x = next;
            if moved < 1e-15 {
                break;
            }
        }
        z
    }

    fn coupling(&self, path: &str, settings: &Value, x: &Sample, components: Option<usize>) -> (Sample, f64) {
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
        let parameters = components.map_or(2, |k| 3 * k + 2);
        assert_eq!(st.features(), parameters * moved, "{path}");
        let centred = settings.get("centred").is_some_and(truth);
        let centre = if centred { logistic(2.0) } else { 1.0 };
        let (mut y, mut log_det) = (x.clone(), 0.0);
        for e in (0..x.x.len()).filter(|&e| !stays(e)) {
            let (at, k) = (e / c * parameters * moved, e % c - first);
            if let Some(components) = components {
                let raw: Vec<f64> = (0..parameters).map(|i| st.x[at + i * moved + k]).collect();
                let [value, log_slope] = mixed(&raw, components, x.x[e]);
                (y.x[e], log_det) = (value, log_det + log_slope);
                continue;
            }
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

    /// Some layers at x, without tangents: those of gated nets.
    fn gated(&self, path: &str, name: &str, settings: &Value, x: &Sample) -> Sample {
        let (c, get) = (x.features(), |leaf: &str| self.get(&format!("{path}.{leaf}")));
        match name {
            "skip" => {
                let mut at = x.clone();
                for (j, layer) in settings["layers"].as_array().expect("layers").iter().enumerate() {
                    let path = format!("{path}.net.{j}");
                    let (name, settings) = layer.as_object().expect("a layer").iter().next().expect("a name");
                    at = match name.as_str() {
                        "activation" => {
                            let name = settings.as_str().expect("a name");
                            activated(name, &self.raw(&path, name), &at, None)
                        }
                        "linear" | "convolution" => self.affine(&path, settings["coefficient"].as_f64(), &at, true),
                        other => self.gated(&path, other, settings, &at),
                    };
                }
                let sum = x.x.iter().zip(&at.x).map(|(a, b)| a + b).collect();
                Sample { shape: x.shape.clone(), x: sum }
            }
            "gate" => x.by_features(c / 2, |x, y| (0..c / 2).for_each(|k| y[k] = x[k] * logistic(x[c / 2 + k]))),
            "layer-norm" => {
                let (g, b) = (get("scale"), get("shift"));
                x.by_features(c, |x, y| {
                    let mean = x.iter().sum::<f64>() / c as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
                    (0..c).for_each(|k| y[k] = g[k] * (x[k] - mean) / (variance + 1e-5).sqrt() + b[k]);
                })
            }
            "attention" => {
                let (t, heads) = (x.pixels(), number(&settings["heads"]));
                let dim = c / heads;
                let placed =
                    Sample { shape: x.shape.clone(), x: x.x.iter().zip(get("places")).map(|(x, p)| x + p).collect() };
                let linear = |x: &Sample, weight: &str, bias: &str, outputs: usize| {
                    let mut y = product(&[outputs, c], get(weight), x);
                    y.x.iter_mut().enumerate().for_each(|(e, y)| *y += get(bias)[e % outputs]);
                    y
                };
                let told = linear(&placed, "inner", "inner_bias", 3 * c).x;
                let of = |pixel: usize, part: usize, k: usize| told[pixel * 3 * c + part * c + k];
                let mut found = vec![0.0; t * c];
                for (i, head) in (0..t).flat_map(|i| (0..heads).map(move |head| (i, head))) {
                    let own = head * dim..(head + 1) * dim;
                    let score =
                        |j: usize| own.clone().map(|k| of(i, 0, k) * of(j, 1, k)).sum::<f64>() / (dim as f64).sqrt();
                    let weights = crate::files::document_sample::softmax(&(0..t).map(score).collect::<Vec<_>>());
                    for k in own.clone() {
                        found[i * c + k] = (0..t).map(|j| weights[j] * of(j, 2, k)).sum();
                    }
                }
                linear(&Sample { shape: x.shape.clone(), x: found }, "outer", "outer_bias", 2 * c)
            }
            other => panic!("the document knows no layer {other}"),
        }
    }

    /// A net at x, and its Jacobian times some tangents.
    fn net(&self, path: &str, net: &Value, x: &Sample, mut tangents: Vec<Sample>) -> (Sample, Vec<Sample>) {
        let mut at = x.clone();
        let told = self.told(path, net);
        let mut told = told.iter().copied();
        let mut told_pixels = 0;
        for (j, layer) in net["layers"].as_array().expect("layers").iter().enumerate() {
            let (net, path) = (path, format!("{path}.net.{j}"));
            let (name, settings) = layer.as_object().expect("a layer").iter().next().expect("a name");
            if name == "dense" {
                (at, tangents) = self.dense(&path, settings, &at, tangents, &mut told);
            } else if name == "context-bias" {
                let own: Vec<f64> = told.by_ref().take(number(&settings["features"])).collect();
                at.x.iter_mut().enumerate().for_each(|(e, x)| *x += own[e % own.len()]);
            } else if name == "pixel-bias" {
                let features = number(&settings["features"]);
                let own = self.told_by_pixels(net, told_pixels, features);
                told_pixels += features;
                at.x.iter_mut().zip(own.x).for_each(|(x, own)| *x += own);
            } else if matches!(name.as_str(), "skip" | "gate" | "layer-norm" | "attention") {
                assert!(tangents.is_empty(), "{name} in a block");
                at = self.gated(&path, name, settings, &at);
            } else if name == "context-gate" {
                let own: Vec<f64> = told.by_ref().take(number(&settings["features"])).collect();
                for sample in std::iter::once(&mut at).chain(&mut tangents) {
                    sample.x.iter_mut().enumerate().for_each(|(e, x)| *x *= (own[e % own.len()] + 1.5).tanh());
                }
            } else if name == "activation" {
                let name = settings.as_str().expect("a name");
                let raw = self.raw(&path, name);
                tangents = tangents.iter().map(|t| activated(name, &raw, &at, Some(t))).collect();
                at = activated(name, &raw, &at, None);
            } else {
                let coefficient = settings["coefficient"].as_f64();
                tangents = tangents.iter().map(|t| self.affine(&path, coefficient, t, false)).collect();
                at = self.affine(&path, coefficient, &at, true);
            }
        }
        (at, tangents)
    }

    fn raw(&self, path: &str, name: &str) -> Raw {
        let raw = |leaf: &str, names: &[&str]| {
            if names.contains(&name) { self.get(&format!("{path}.{leaf}"))[0] } else { 0.0 }
        };
        Raw {
            alpha: raw("alpha", &["leaky-lip-swish"]),
            beta: raw("beta", &["lip-swish", "clip-swish", "leaky-lip-swish"]),
        }
    }

    /// A dense layer: what enters, and what is new behind it, each times its share.
    fn dense(
        &self,
        path: &str,
        settings: &Value,
        x: &Sample,
        tangents: Vec<Sample>,
        told: &mut dyn Iterator<Item = f64>,
    ) -> (Sample, Vec<Sample>) {
        let context = settings.get("context").is_some_and(truth);
        let hats = ["skip", "growth"].map(|leaf| softplus(self.get(&format!("{path}.{leaf}"))[0]) + 0.1);
        let bound = settings["concatenation"]["bound"].as_f64().expect("a bound");
        let shares = hats.map(|hat| bound * hat / hats[0].hypot(hats[1]));
        let name = settings["activation"].as_str().expect("a name");
        let place = if context { 2 } else { 1 };
        let (coefficient, raw) = (settings["coefficient"].as_f64(), self.raw(&format!("{path}.net.{place}"), name));
        let inner = format!("{path}.net.0");
        let mut before = self.affine(&inner, coefficient, x, true);
        if context {
            let own: Vec<f64> = told.take(number(&settings["outputs"])).collect();
            before.x.iter_mut().enumerate().for_each(|(e, x)| *x += own[e % own.len()]);
        }
        let join = |old: &Sample, new: &Sample| {
            let (c, more) = (old.features(), new.features());
            let pixels = old.pixels();
            let value = |p: usize, k: usize| {
                if k < c { shares[0] * old.x[p * c + k] } else { shares[1] * new.x[p * more + k - c] }
            };
            let all = (0..pixels).flat_map(|p| (0..c + more).map(move |k| (p, k))).map(|(p, k)| value(p, k)).collect();
            let mut shape = old.shape.clone();
            *shape.last_mut().expect("features") = c + more;
            Sample { shape, x: all }
        };
        let tangents = tangents.iter().map(|t| {
            let new = activated(name, &raw, &before, Some(&self.affine(&inner, coefficient, t, false)));
            join(t, &new)
        });
        (join(x, &activated(name, &raw, &before, None)), tangents.collect())
    }

    /// W_eff x, and the bias if it is wanted.
    pub(crate) fn affine(&self, path: &str, coefficient: Option<f64>, x: &Sample, with_bias: bool) -> Sample {
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
fn activated(name: &str, raw: &Raw, x: &Sample, tangent: Option<&Sample>) -> Sample {
    // of a concatenated one the function of its halves, what is added to ±x, and the divisor
    let (name, shift, divisor) = match name {
        "clip-swish" => ("lip-swish", 0.0, 1.004),
        "cpila" => ("pila", -0.2, 1.06),
        _ => (name, 0.0, 0.0),
    };
    let one = |sign: f64, e: usize| {
        let [value, slope] = activation(name, raw, sign * x.x[e] + shift);
        tangent.map_or(value, |t| sign * slope * t.x[e])
    };
    if divisor == 0.0 {
        return Sample { shape: x.shape.clone(), x: (0..x.x.len()).map(|e| one(1.0, e)).collect() };
    }
    let c = x.features();
    let numbers = Sample { shape: x.shape.clone(), x: (0..x.x.len()).map(|e| e as f64).collect() };
    numbers.by_features(2 * c, |from, to| {
        for k in 0..c {
            to[k] = one(1.0, from[k] as usize) / divisor;
            to[c + k] = one(-1.0, from[k] as usize) / divisor;
        }
    })
}

/// e^α logit F(x) + β and the logarithm of its slope, F the CDF of a mixture of logistics, by the raw parameters of a number.
fn mixed(raw: &[f64], components: usize, x: f64) -> [f64; 2] {
    let (alpha, beta) = (raw[0].tanh(), raw[1]);
    let total: f64 = raw[2..2 + components].iter().map(|w| w.exp()).sum();
    let (mut cdf, mut beyond, mut density) = (0.0, 0.0, 0.0);
    for k in 0..components {
        let weight = raw[2 + k].exp() / total;
        let mean = (1.0 + k as f64 / components as f64) * raw[2 + components + k];
        let scale = raw[2 + 2 * components + k].max(-7.0).exp();
        let z = (x - mean) / scale;
        cdf += weight * logistic(z);
        beyond += weight * logistic(-z);
        density += weight * logistic(z) * logistic(-z) / scale;
    }
    let (logit, slope) = ((cdf / beyond).ln(), density / (cdf * beyond));
    [alpha.exp() * logit + beta, alpha + slope.ln()]
}
