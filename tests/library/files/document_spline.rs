//! Splines and LU linear maps by docs/model-file.md alone.

use serde_json::{Value, json};

use crate::files::document_sample::{softmax, softplus};
use crate::files::document_stages::{number, spelled, weights};

/// m of LU linear maps and splines.
const LEAST: f64 = 1e-3;

/// c, by which their raw numbers are shifted.
fn shift() -> f64 {
    (1.0 - LEAST).exp_m1().ln()
}

/// S(x) and S'(x).
pub(crate) fn spline(bins: usize, bound: f64, root: f64, raw: &[f64], x: f64) -> [f64; 2] {
    if x.abs() >= bound {
        return [x, 1.0];
    }
    let knots = |raw: &[f64]| {
        let scaled: Vec<f64> = raw.iter().map(|r| r / root).collect();
        let shares = softmax(&scaled).into_iter().map(|s| LEAST + (1.0 - LEAST * bins as f64) * s);
        let mut sum = 0.0;
        let ends = shares.map(|share| {
            sum += share;
            bound * (2.0 * sum - 1.0)
        });
        [-bound].into_iter().chain(ends).collect::<Vec<_>>()
    };
    let (xs, ys) = (knots(&raw[..bins]), knots(&raw[bins..2 * bins]));
    let k = (1..bins).filter(|&k| xs[k] <= x).count();
    let slope = |k: usize| if k.is_multiple_of(bins) { 1.0 } else { LEAST + softplus(raw[2 * bins + k - 1] + shift()) };
    let (w, v, left, right) = (xs[k + 1] - xs[k], ys[k + 1] - ys[k], slope(k), slope(k + 1));
    let (s, xi) = (v / w, (x - xs[k]) / w);
    let t = xi * (1.0 - xi);
    let d = s + (right + left - 2.0 * s) * t;
    let n = right * xi * xi + 2.0 * s * t + left * (1.0 - xi).powi(2);
    [ys[k] + v * (s * xi * xi + left * t) / d, s * s * n / (d * d)]
}

/// y and the log det of an LU linear map.
pub(crate) fn lu_linear(lu: &[f64], bias: &[f64], permutation: &[f64], x: &[f64]) -> (Vec<f64>, f64) {
    let d = x.len();
    let at = |i: usize, j: usize| lu[i * d + j];
    let pivot = |i: usize| LEAST + softplus(at(i, i) + shift());
    let px: Vec<f64> = permutation.iter().map(|&p| x[p as usize]).collect();
    let above = |i: usize| (i + 1..d).map(|j| at(i, j) * px[j]).sum::<f64>();
    let ux: Vec<f64> = (0..d).map(|i| pivot(i) * px[i] + above(i)).collect();
    let below = |i: usize| (0..i).map(|j| at(i, j) * ux[j]).sum::<f64>();
    ((0..d).map(|i| ux[i] + below(i) + bias[i]).collect(), (0..d).map(|i| pivot(i).ln()).sum())
}

/// Coupling i of a spline flow, and the map before it.
pub(crate) fn spline_stages(config: &Value, d: usize, i: usize, kernels: &[usize], hidden: &[usize]) -> [Value; 2] {
    let swapped = i % 2 == 1;
    let a = if swapped { d / 2 } else { d - d / 2 };
    let (bins, last) = (number(&config["bins"]), hidden[hidden.len() - 1]);
    let widths = [&[a], hidden, &[(d - a) * (3 * bins - 1)]].concat();
    let net = spelled(config, &weights(kernels, &widths), false, true, true);
    let splines = json!({ "bins": bins, "bound": config["bound"], "hidden": last, "unconditional": true });
    let coupling = json!({ "features": d, "swapped": swapped, "splines": splines, "net": net });
    [json!({ "lu-linear": { "features": d } }), json!({ "spline-coupling": coupling })]
}
