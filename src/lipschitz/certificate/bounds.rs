//! What is known of a flow's Lipschitz constants, from below and from above.

use serde::Serialize;

use super::rounding::{add, mul};

/// The norm of one constrained weight as it is multiplied by, after its normalisation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightBounds {
    /// The weight's path.
    pub name: String,
    /// From below, by power iteration: σ of the normalised weight.
    pub lower: f64,
    /// From above, certified, in the 2-norm; `None` for norms between other orders, which are estimated alone.
    pub upper: Option<f64>,
    /// κ, which the normalisation aims at.
    pub coefficient: f64,
}

/// The constants of a map F between which ‖F(x) − F(x')‖₂/‖x − x'‖₂ lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BiLipschitz {
    /// Lip(F), from above.
    pub forward: f64,
    /// Lip(F⁻¹), from above: by so much may an error in y grow on the way back.
    pub inverse: f64,
}

impl BiLipschitz {
    /// Those of a map that keeps lengths.
    pub const ISOMETRY: Self = Self { forward: 1.0, inverse: 1.0 };

    /// Those of x + g(x) with Lip(g) ≤ c: 1 + c and 1/(1 − c); `None` unless c < 1.
    pub fn of_residual(c: f64) -> Option<Self> {
        (0.0..1.0).contains(&c).then(|| Self { forward: add(1.0, c), inverse: (1.0 / (1.0 - c).next_down()).next_up() })
    }

    /// Those of the inverse map.
    pub fn inverted(self) -> Self {
        Self { forward: self.inverse, inverse: self.forward }
    }

    /// Those of a monotone block whose g has Lip(g) ≤ c: (1 + c)/(1 − c) both ways; `None` unless c < 1.
    pub fn of_monotone(c: f64) -> Option<Self> {
        let Self { forward, inverse } = Self::of_residual(c)?;
        let both = mul(forward, inverse);
        Some(Self { forward: both, inverse: both })
    }

    /// Those of one map after another.
    pub fn then(self, next: Self) -> Self {
        Self { forward: mul(self.forward, next.forward), inverse: mul(self.inverse, next.inverse) }
    }
}

/// The bounds of one transform.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TransformBounds {
    /// Its constrained weights.
    pub weights: Vec<WeightBounds>,
    /// Whether it is a block that is made of a contraction g.
    pub is_residual: bool,
    /// c ≥ Lip(g) of such a block, certified; `None` of other transforms, and where nothing certifies a layer.
    pub lipschitz: Option<f64>,
    /// Its constants, certified; `None` where nothing bounds them.
    pub constants: Option<BiLipschitz>,
}

impl TransformBounds {
    /// Those of a transform without constrained weights, by its constants.
    pub fn of_map(forward: f64, inverse: f64) -> Self {
        Self { constants: Some(BiLipschitz { forward, inverse }), ..Self::default() }
    }
}

/// The bounds of a flow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowBounds {
    /// Those of each transform, first applied first.
    pub transforms: Vec<TransformBounds>,
}

impl FlowBounds {
    /// The weights of all transforms.
    pub fn weights(&self) -> impl Iterator<Item = &WeightBounds> {
        self.transforms.iter().flat_map(|t| &t.weights)
    }

    /// The largest c of a block; `None` without blocks, and if one of them has no certificate.
    pub fn lipschitz(&self) -> Option<f64> {
        let mut blocks = self.transforms.iter().filter(|t| t.is_residual).map(|t| t.lipschitz);
        let first = blocks.next()??;
        blocks.try_fold(first, |c, own| Some(c.max(own?)))
    }

    /// The constants of the whole flow, from the columns' maps on: the products; `None` if a transform has none.
    pub fn constants(&self) -> Option<BiLipschitz> {
        self.transforms.iter().try_fold(BiLipschitz::ISOMETRY, |all, own| Some(all.then(own.constants?)))
    }
}
