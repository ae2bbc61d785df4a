//! The families of operations, as enums, so that a conformance test can walk them all.

/// Elementwise functions of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unary {
    /// −x.
    Neg,
    /// |x|.
    Abs,
    /// eˣ.
    Exp,
    /// eˣ − 1, accurate near zero.
    ExpM1,
    /// ln x.
    Ln,
    /// ln(1 + x), accurate near zero.
    Ln1p,
    /// √x.
    Sqrt,
    /// x².
    Square,
    /// 1/x.
    Reciprocal,
    /// The hyperbolic tangent.
    Tanh,
    /// sin x.
    Sin,
    /// cos x.
    Cos,
    /// ⌊x⌋.
    Floor,
    /// 1 where x is neither infinite nor NaN, else 0; decided from the bits.
    IsFinite,
}

impl Unary {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Neg,
        Self::Abs,
        Self::Exp,
        Self::ExpM1,
        Self::Ln,
        Self::Ln1p,
        Self::Sqrt,
        Self::Square,
        Self::Reciprocal,
        Self::Tanh,
        Self::Sin,
        Self::Cos,
        Self::Floor,
        Self::IsFinite,
    ];

    /// The function on one element; the reference for every backend.
    #[inline(always)]
    pub fn apply<E: crate::Element>(self, x: E) -> E {
        match self {
            Self::Neg => -x,
            Self::Abs => x.abs(),
            Self::Exp => x.exp(),
            Self::ExpM1 => x.exp_m1(),
            Self::Ln => x.ln(),
            Self::Ln1p => x.ln_1p(),
            Self::Sqrt => x.sqrt(),
            Self::Square => x * x,
            Self::Reciprocal => E::ONE / x,
            Self::Tanh => x.tanh(),
            Self::Sin => x.sin(),
            Self::Cos => x.cos(),
            Self::Floor => x.floor(),
            Self::IsFinite => truth(x.is_finite()),
        }
    }
}

/// Elementwise functions of two tensors; the second is broadcast to the shape of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b.
    Add,
    /// a − b.
    Sub,
    /// a · b.
    Mul,
    /// a / b.
    Div,
    /// The larger; NaN if either is NaN.
    Max,
    /// The smaller; NaN if either is NaN.
    Min,
    /// 1 where a < b, else 0 (also where either is NaN).
    Less,
    /// 1 where a ≤ b, else 0 (also where either is NaN).
    LessEqual,
}

impl Binary {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Max, Self::Min, Self::Less, Self::LessEqual];

    /// The function on one pair; the reference for every backend.
    #[inline(always)]
    pub fn apply<E: crate::Element>(self, a: E, b: E) -> E {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            // a comparison with NaN is false, so a NaN in a stays
            Self::Max => {
                if b.is_nan() || b > a {
                    b
                } else {
                    a
                }
            }
            Self::Min => {
                if b.is_nan() || b < a {
                    b
                } else {
                    a
                }
            }
            Self::Less => truth(a < b),
            Self::LessEqual => truth(a <= b),
        }
    }
}

#[inline(always)]
fn truth<E: crate::Element>(yes: bool) -> E {
    if yes { E::ONE } else { E::ZERO }
}

/// The operation by which [`Backend::reduce`](crate::Backend::reduce) combines elements. Its order is
/// fixed by the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The sum; 0 of nothing.
    Sum,
    /// The largest; NaN if any is NaN; −∞ of nothing.
    Max,
}

/// The elements that [`Backend::reduce`](crate::Backend::reduce) combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Over {
    /// Everything: the result is `[1]`.
    All,
    /// Each row, that is all axes but the first: the result is `[n, 1]`.
    Row,
    /// All axes but the last: the result is `[c]`.
    Channel,
}

/// Geometry of a stride-1 cross-correlation with zero padding: kernel `[c_out, kh, kw, c_in]`, images `[n, h, w, c]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Rows of zeros above and below, in pixels.
    pub height: usize,
    /// Columns of zeros left and right, in pixels.
    pub width: usize,
}

impl Padding {
    /// Returns the padding that keeps the image size for an odd kernel: k div 2.
    pub fn same(kernel: [usize; 2]) -> Self {
        Self { height: kernel[0] / 2, width: kernel[1] / 2 }
    }

    /// Returns the output's height and width in pixels, `None` where the kernel is larger than the padded image.
    pub fn output(self, image: [usize; 2], kernel: [usize; 2]) -> Option<[usize; 2]> {
        let h = (image[0] + 2 * self.height + 1).checked_sub(kernel[0])?;
        let w = (image[1] + 2 * self.width + 1).checked_sub(kernel[1])?;
        (h > 0 && w > 0).then_some([h, w])
    }
}

/// One step of Adam (Kingma and Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// The step size α, schedule included.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay λ: p loses α λ p where the decay mask is one.
    pub weight_decay: f64,
    /// The number of this step, from 1, for the bias correction.
    pub step: u64,
}

impl AdamStep {
    /// (1 − β₁ᵗ, 1 − β₂ᵗ).
    pub fn bias_corrections(&self) -> (f64, f64) {
        let t = self.step as f64;
        (1.0 - self.beta1.powf(t), 1.0 - self.beta2.powf(t))
    }
}

/// The weight c_k of one term of the series.
#[derive(Debug, Clone, Copy)]
pub enum TermWeight<'a, T> {
    /// One weight for all rows (samples).
    Batch(f64),
    /// A weight for each row, `[n, 1]`.
    PerRow(&'a T),
}

/// The running state of the series Σ (−1)^{k+1} c_k ⟨(Jᵀ)ᵏv, v⟩/k and of the Neumann vector Σ (−1)ᵏ c_k (Jᵀ)ᵏ v.
#[derive(Debug, Clone)]
pub struct SeriesState<T> {
    /// (Jᵀ)ᵏ v, `[n, …]`; exactly zero in rows that have stopped.
    pub power: T,
    /// Σ_{j≤k} (−1)ʲ c_j (Jᵀ)ʲ v, of the same shape, where the gradient is wanted.
    pub neumann: Option<T>,
    /// Σ_{j≤k} (−1)^{j+1} c_j ⟨(Jᵀ)ʲ v, v⟩/j, `[n, 1]`.
    pub value: T,
}

/// The rule by which a row (a sample) of a fixed-point iteration x ← y − g(x) is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FixedPointRule {
    /// Converged once ‖r‖₂ ≤ accuracy · max(1, ‖y‖₂), with r = y − x − g(x).
    pub accuracy: f64,
    /// At the floor of the arithmetic once the residual has not fallen for `patience` steps and is at most this.
    pub floor: f64,
    /// Steps without a smaller residual after which `floor` applies.
    pub patience: f64,
}

/// The way to a fixed point x = y − g(x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FixedPointSearch {
    /// When a row is done.
    pub rule: FixedPointRule,
    /// The differences that Anderson's acceleration looks back at; 0 for the plain iteration.
    pub history: usize,
    /// The most evaluations of g for a row.
    pub limit: u32,
}

/// Where the rows of a fixed-point iteration ended.
#[derive(Debug, Clone)]
pub struct FixedPointFound<T> {
    /// See [`FixedPointState::best`].
    pub best: T,
    /// `[n, 6]`, see [`FixedPointColumn`]; a row that is still active had reached the limit.
    pub rows: T,
}

/// The rows of a fixed-point iteration.
#[derive(Debug, Clone)]
pub struct FixedPointState<T> {
    /// The point, `[n, d]`.
    pub x: T,
    /// y − g(x) of the point x with the smallest residual so far, `[n, d]`: one contraction closer than that point.
    pub best: T,
    /// `[n, 6]`, see [`FixedPointColumn`].
    pub rows: T,
}

/// The columns of [`FixedPointState::rows`], which is all that is known of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixedPointColumn {
    /// The smallest relative residual ‖r‖₂ / max(1, ‖y‖₂); infinite of a y whose square overflows.
    Residual = 0,
    /// ‖r‖₂ there.
    Norm = 1,
    /// The latest relative residual.
    Latest = 2,
    /// Steps since the smallest one.
    Stall = 3,
    /// Steps made.
    Steps = 4,
    /// 1 while the row goes on, else 0.
    Active = 5,
}

impl FixedPointColumn {
    /// The number of columns.
    pub const COUNT: usize = 6;
}
