//! The maps of columns, by docs/model-file.md alone.

use serde_json::Value;

use crate::files::document_reader::Document;
use crate::files::document_stages::number;

impl Document {
    /// s(x) of column i and ln s'(x).
    pub(crate) fn column(&self, i: usize, x: f64) -> [f64; 2] {
        let (mean, deviation) = (self.get("standardise.mean")[i], self.get("standardise.deviation")[i]);
        let map = self.columns.as_ref().map_or(&Value::Null, |columns| &columns[i]);
        let real = |value: &Value| value.as_f64().expect("a number");
        let half = if map["grid"].is_object() { 0.5 * real(&map["grid"]["step"]) } else { 0.0 };
        let support = &map["support"];
        let [y, slope] = if let Some(a) = support.get("above") {
            let below = x - (real(a) - half);
            [below.ln(), 1.0 / below]
        } else if let Some(b) = support.get("below") {
            let above = real(b) + half - x;
            [-above.ln(), 1.0 / above]
        } else if let Some(ends) = support.get("between") {
            let (a, b) = (real(&ends[0]) - half, real(&ends[1]) + half);
            [((x - a) / (b - x)).ln(), (b - a) / (x - a) / (b - x)]
        } else {
            assert!(support.is_null() || support == "real", "{support}");
            [x, 1.0]
        };
        let (mut t, mut log_slope) = ((y - mean) / deviation, slope.ln() - deviation.ln());
        if map["asinh"].is_object() {
            let [w, m, q] = ["width", "centre", "scale"].map(|key| real(&map["asinh"][key]));
            log_slope -= q.ln() + 0.5 * (1.0 + (t / w).powi(2)).ln();
            t = (w * (t / w).asinh() - m) / q;
        }
        let n = if map.is_null() { 0 } else { number(&map["knots"]) };
        if n > 0 {
            let knots = self.get(&format!("columns.{i}.knots"));
            let (at, value, d) = (&knots[..n], &knots[n..2 * n], &knots[2 * n..]);
            if t < at[0] || t >= at[n - 1] {
                let end = if t < at[0] { 0 } else { n - 1 };
                return [value[end] + d[end] * (t - at[end]), log_slope + d[end].ln()];
            }
            let k = (0..n - 1).find(|&k| t < at[k + 1]).expect("a piece");
            let (w, h) = (at[k + 1] - at[k], value[k + 1] - value[k]);
            let (s, v) = (h / w, (t - at[k]) / w);
            let bottom = s + (d[k] + d[k + 1] - 2.0 * s) * v * (1.0 - v);
            let top = d[k + 1] * v * v + 2.0 * s * v * (1.0 - v) + d[k] * (1.0 - v) * (1.0 - v);
            log_slope += (s * s * top / bottom / bottom).ln();
            t = value[k] + h * (s * v * v + d[k] * v * (1.0 - v)) / bottom;
        }
        [t, log_slope]
    }
}
