//! What becomes of a product before it is stored: sums, biases and activations without a pass of their own.

use resflow_backend::Activation;

#[cfg(test)]
use super::operands::Operands;
use crate::activation::derivatives;

/// What becomes of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    Nothing,
    /// A number is added for each column.
    Bias,
    /// A tensor of the result's shape is added.
    Sum,
    /// A number is added for each column, and the derivatives 0 to an order of an activation are computed; of order 2 the
    /// sum is written too.
    Activated(Activation, usize),
}

impl Epilogue {
    pub(super) fn reads(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Sum => &["sum"],
            Self::Activated(f, _) if f.has_parameter() => &["bias", "slope"],
            Self::Bias | Self::Activated(..) => &["bias"],
        }
    }

    pub(super) fn writes(self) -> &'static [&'static str] {
        match self {
            Self::Nothing | Self::Bias | Self::Sum => &["out"],
            Self::Activated(_, 0) => &["d0"],
            Self::Activated(_, 1) => &["d0", "d1"],
            Self::Activated(..) => &["out", "d0", "d1", "d2"],
        }
    }

    /// `finish(at, n, value)`, which stores element `at` of the result, in column `n`.
    pub(super) fn text(self) -> String {
        let (functions, statements) = match self {
            Self::Nothing => (String::new(), "out[at] = value;".to_owned()),
            Self::Bias => (String::new(), "out[at] = value + bias[p.bias + n];".to_owned()),
            Self::Sum => (String::new(), "out[at] = value + sum[p.sum + at];".to_owned()),
            Self::Activated(f, _) => {
                let slope = if f.has_parameter() { "slope[p.slope]" } else { "1.0" };
                let part = |name: &&str| match *name {
                    "out" => "out[at] = v;",
                    "d0" => "d0[at] = d.x;",
                    "d1" => "d1[at] = d.y;",
                    _ => "d2[at] = d.z;",
                };
                let stores: Vec<&str> = self.writes().iter().map(part).collect();
                let own = format!("let v = value + bias[p.bias + n];\n  let d = derivatives(v, {slope});\n  ");
                (derivatives(f), own + &stores.join("\n  "))
            }
        };
        format!("{functions}fn finish(at: u32, n: u32, value: f32) {{\n  {statements}\n}}\n")
    }

    #[cfg(test)]
    pub(super) fn all(operands: Operands) -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::Bias, Self::Sum];
        if operands == Operands::Matrices(false, false) {
            let orders = |f| (0..=2).map(move |order| Self::Activated(f, order));
            all.extend(Activation::ALL.into_iter().flat_map(orders));
        }
        all
    }
}
