//! Categories, by docs/model-file.md alone.

use crate::files::document_reader::Document;

impl Document {
    /// The number of levels of each column.
    fn levels(&self) -> Vec<usize> {
        let columns = self.categories.as_ref().expect("categories")["columns"].as_array().expect("a list");
        columns.iter().map(|column| column["levels"].as_array().expect("a list").len()).collect()
    }

    /// The one-hot codes of the first columns.
    fn one_hot(&self, codes: &[u32]) -> Vec<f64> {
        let columns = codes.iter().zip(self.levels());
        columns.flat_map(|(&code, levels)| (0..levels).map(move |l| f64::from(u8::from(l == code as usize)))).collect()
    }

    /// The same with a context of numbers and categories.
    pub(crate) fn given_categories(self, numbers: &[f64], codes: &[u32]) -> Self {
        let context = [numbers, &self.one_hot(codes)].concat();
        self.given(&context)
    }

    /// log p(k).
    pub(crate) fn log_prob_of_categories(&self, codes: &[u32]) -> f64 {
        let nets = self.categories.as_ref().expect("categories")["nets"].as_array().expect("a list");
        let of = |j: usize| {
            let code = codes[j] as usize;
            if !nets[j].as_bool().expect("true or false") {
                return self.get(&format!("categories.{j}.table"))[code];
            }
            let get = |part: &str| self.get(&format!("categories.{j}.{part}"));
            let product = |x: &[f64], weight: &[f64], bias: &[f64]| -> Vec<f64> {
                let n = bias.len();
                (0..n)
                    .map(|c| bias[c] + x.iter().enumerate().map(|(i, x)| x * weight[i * n + c]).sum::<f64>())
                    .collect()
            };
            let mut hidden = product(&self.one_hot(&codes[..j]), get("hidden.weight"), get("hidden.bias"));
            for h in &mut hidden {
                *h = h.tanh();
            }
            let output = product(&hidden, get("output.weight"), get("output.bias"));
            output[code] - output.iter().map(|o| o.exp()).sum::<f64>().ln()
        };
        (0..codes.len()).map(of).sum()
    }
}
