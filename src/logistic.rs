//! The elementwise map of Flow++ (Ho, Chen, Srinivas, Duan and Abbeel 2019, arXiv 1902.00275, eqs. 4 to 6): the CDF of a mixture of
//! logistics, its logit, scaled and shifted,
//!
//! y = e^a logit F(x) + b,  F(x) = Σ_k π_k σ(z_k),  z_k = (x − μ_k) e^{−s_k},  ln ∂y/∂x = ln F'(x) − ln F(x) − ln(1 − F(x)) + a.
//!
//! Everything is by logarithms, which are exact in both tails: ln F = LSE_k(ln π_k − softplus(−z_k)), ln(1 − F) = LSE_k(ln π_k −
//! softplus(z_k)) and ln F' = LSE_k(ln π_k − s_k − softplus(z_k) − softplus(−z_k)). With responsibilities r, t and p of the three sums,
//!
//! ```text
//! ∂ ln F/∂z_k = r_k σ(−z_k)    ∂ ln(1 − F)/∂z_k = −t_k σ(z_k)    ∂ ln F'/∂z_k = p_k (1 − 2σ(z_k)),  ∂ ln F'/∂s_k = −p_k beside that
//! ```
//!
//! The inverse solves logit F(x) = q = (y − b) e^{−a}. logit F(x) lies between the least and the largest z_k, so x does between the least
//! and the largest μ_k + e^{s_k} q: a bracket that holds whatever q is. Newton's method keeps to it, and halves it where a step
//! would leave it or does not shrink.
//!
//! Invariant: y increases with x, and the inverse ends after at most [`MOST_ITERATIONS`] evaluations.

use resflow_backend::{Activation, Backend, BackendError, Binary, Element as _, Over, Reduce, Unary};

/// The least s, as published: narrower components are as wide as this.
pub const LEAST_LOG_SCALE: f64 = -7.0;
/// The most evaluations of an inverse: halving alone would need fewer than a hundred, and Newton's method may fail between two halvings.
pub const MOST_ITERATIONS: u32 = 200;
/// Evaluations between two looks at how far an inverse is.
const POLL: u32 = 4;
/// The ε of |x|, and of a part of the least scale, to which an inverse is found.
const PRECISION: f64 = 4.0;
const SMALLEST: f64 = 1e-3;

/// The parameters of the map of each number: tensors of the shape of x.
#[derive(Debug, Clone)]
pub struct LogisticMixture<B: Backend> {
    /// ln π_k up to a constant, for each of the K components.
    pub log_weights: Vec<B::Tensor>,
    /// μ_k.
    pub means: Vec<B::Tensor>,
    /// s_k.
    pub log_scales: Vec<B::Tensor>,
    /// a.
    pub log_scale: B::Tensor,
    /// b.
    pub shift: B::Tensor,
}

/// The gradients of a function of y and ln ∂y/∂x in x and in the parameters.
#[derive(Debug, Clone)]
pub struct MixtureGradient<B: Backend> {
    /// In x.
    pub x: B::Tensor,
    /// In the parameters.
    pub parameters: LogisticMixture<B>,
}

/// An inverse, and how far it came.
#[derive(Debug, Clone)]
pub struct MixtureSolution<B: Backend> {
    /// x.
    pub x: B::Tensor,
    /// The last change of each number.
    pub change: B::Tensor,
    /// 1 where a number was found to the rounding of the arithmetic, else 0.
    pub found: B::Tensor,
    /// The evaluations.
    pub iterations: u32,
}

/// ln Σ_k e^{t_k} and the shares e^{t_k}/Σ.
fn log_sum<B: Backend>(backend: &B, terms: &[B::Tensor]) -> (B::Tensor, Vec<B::Tensor>) {
    let largest = terms[1..].iter().fold(terms[0].clone(), |max, t| backend.binary(Binary::Max, max, t));
    let from = |t: &B::Tensor| backend.unary(Unary::Exp, backend.axpy(-1.0, &largest, t.clone()));
    let shares: Vec<_> = terms.iter().map(from).collect();
    let sum = shares[1..].iter().fold(shares[0].clone(), |sum, t| backend.axpy(1.0, t, sum));
    let shares = shares.into_iter().map(|t| backend.binary(Binary::Div, t, &sum)).collect();
    (backend.axpy(1.0, &backend.unary(Unary::Ln, sum), largest), shares)
}

/// What is computed at x.
struct Evaluated<B: Backend> {
    z: Vec<B::Tensor>,
    /// σ(z_k).
    sigma: Vec<B::Tensor>,
    /// e^{−s_k}.
    narrow: Vec<B::Tensor>,
    /// r, t and p.
    shares: [Vec<B::Tensor>; 3],
    /// Of the weights.
    weights: Vec<B::Tensor>,
    /// logit F.
    logit: B::Tensor,
    /// ln ∂ logit F/∂x.
    log_slope: B::Tensor,
}

impl<B: Backend> LogisticMixture<B> {
    /// K.
    pub fn components(&self) -> usize {
        self.means.len()
    }

    fn evaluate(&self, backend: &B, x: &B::Tensor) -> Evaluated<B> {
        let floor = backend.full(LEAST_LOG_SCALE, [1].into());
        let (mut z, mut sigma, mut narrow) = (Vec::new(), Vec::new(), Vec::new());
        let mut sums: [Vec<B::Tensor>; 3] = Default::default();
        for k in 0..self.components() {
            let s = backend.binary(Binary::Max, self.log_scales[k].clone(), &floor);
            let inverse = backend.unary(Unary::Exp, backend.affine(s.clone(), -1.0, 0.0));
            let own = backend.binary(Binary::Mul, backend.axpy(-1.0, &self.means[k], x.clone()), &inverse);
            let mut above = backend.activation(Activation::Softplus, None, &own, 1);
            sigma.push(above.swap_remove(1));
            let above = above.swap_remove(0);
            let negative = backend.affine(own.clone(), -1.0, 0.0);
            let below = backend.activation(Activation::Softplus, None, &negative, 0).swap_remove(0);
            let weight = &self.log_weights[k];
            sums[0].push(backend.axpy(-1.0, &below, weight.clone()));
            sums[1].push(backend.axpy(-1.0, &above, weight.clone()));
            let both = backend.axpy(1.0, &below, above);
            sums[2].push(backend.axpy(-1.0, &backend.axpy(1.0, &s, both), weight.clone()));
            z.push(own);
            narrow.push(inverse);
        }
        // constants that all ln π_k share cancel in the logit, and are taken out of the slope
        let (constant, weights) = log_sum(backend, &self.log_weights);
        let [(cdf, r), (survival, t), (pdf, p)] = sums.each_ref().map(|terms| log_sum(backend, terms));
        let logit = backend.axpy(-1.0, &survival, cdf.clone());
        let log_slope = backend.axpy(-1.0, &backend.axpy(1.0, &cdf, survival), backend.axpy(1.0, &constant, pdf));
        Evaluated { z, sigma, narrow, shares: [r, t, p], weights, logit, log_slope }
    }

    /// Computes y and ln ∂y/∂x, of the shape of x.
    pub fn map(&self, backend: &B, x: &B::Tensor) -> [B::Tensor; 2] {
        let Evaluated { logit, log_slope, .. } = self.evaluate(backend, x);
        let scaled = backend.binary(Binary::Mul, logit, &backend.unary(Unary::Exp, self.log_scale.clone()));
        [backend.axpy(1.0, &self.shift, scaled), backend.axpy(1.0, &self.log_scale, log_slope)]
    }

    /// Takes the gradients in y and in ln ∂y/∂x, of the shape of x, back to x and the parameters.
    pub fn pull_back(&self, backend: &B, x: &B::Tensor, gy: &B::Tensor, weights: &B::Tensor) -> MixtureGradient<B> {
        let at = self.evaluate(backend, x);
        let mul = |a: &B::Tensor, b: &B::Tensor| backend.binary(Binary::Mul, a.clone(), b);
        let of_logit = mul(gy, &backend.unary(Unary::Exp, self.log_scale.clone()));
        let of_cdf = backend.axpy(-1.0, weights, of_logit.clone());
        let of_survival = backend.affine(backend.axpy(1.0, weights, of_logit.clone()), -1.0, 0.0);
        let floor = backend.full(LEAST_LOG_SCALE, [1].into());
        let [r, t, p] = &at.shares;
        let mut gx: Option<B::Tensor> = None;
        let (mut log_weights, mut means, mut log_scales) = (Vec::new(), Vec::new(), Vec::new());
        for k in 0..self.components() {
            let [of_r, of_t, of_p] = [mul(&of_cdf, &r[k]), mul(&of_survival, &t[k]), mul(weights, &p[k])];
            let beyond = backend.affine(at.sigma[k].clone(), -1.0, 1.0);
            let of_z = backend.axpy(-1.0, &mul(&of_t, &at.sigma[k]), mul(&of_r, &beyond));
            let of_z = backend.axpy(1.0, &mul(&of_p, &backend.affine(at.sigma[k].clone(), -2.0, 1.0)), of_z);
            let sum = backend.axpy(1.0, &of_r, backend.axpy(1.0, &of_t, of_p.clone()));
            log_weights.push(backend.axpy(1.0, &mul(weights, &at.weights[k]), sum));
            let along = mul(&of_z, &at.narrow[k]);
            means.push(backend.affine(along.clone(), -1.0, 0.0));
            let of_scale = backend.affine(backend.axpy(1.0, &of_p, mul(&of_z, &at.z[k])), -1.0, 0.0);
            // at the floor, and below it, s does nothing
            let free = backend.binary(Binary::LessEqual, self.log_scales[k].clone(), &floor);
            let free = backend.affine(free, -1.0, 1.0);
            log_scales.push(mul(&of_scale, &free));
            gx = Some(gx.map_or_else(|| along.clone(), |sum| backend.axpy(1.0, &along, sum)));
        }
        let log_scale = backend.axpy(1.0, &mul(&of_logit, &at.logit), weights.clone());
        let parameters = Self { log_weights, means, log_scales, log_scale, shift: gy.clone() };
        MixtureGradient { x: gx.expect("at least one component"), parameters }
    }

    /// Finds x with a given y, of its shape.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed. A number that is not found is no error.
    pub fn invert(&self, backend: &B, y: &B::Tensor) -> Result<MixtureSolution<B>, BackendError> {
        let shrink = backend.unary(Unary::Exp, backend.affine(self.log_scale.clone(), -1.0, 0.0));
        let q = backend.binary(Binary::Mul, backend.axpy(-1.0, &self.shift, y.clone()), &shrink);
        let floor = backend.full(LEAST_LOG_SCALE, [1].into());
        let ends = (0..self.components()).map(|k| {
            let s = backend.binary(Binary::Max, self.log_scales[k].clone(), &floor);
            backend.axpy(1.0, &self.means[k], backend.binary(Binary::Mul, backend.unary(Unary::Exp, s), &q))
        });
        let ends: Vec<_> = ends.collect();
        let fold = |op: Binary| ends[1..].iter().fold(ends[0].clone(), |a, b| backend.binary(op, a, b));
        let (mut low, mut high) = (fold(Binary::Min), fold(Binary::Max));
        let half = |low: &B::Tensor, high: &B::Tensor| backend.affine(backend.axpy(-1.0, low, high.clone()), 0.5, 0.0);
        let mut x = backend.axpy(1.0, &half(&low, &high), low.clone());
        let mut before = backend.axpy(-1.0, &low, high.clone());
        let mut change = before.clone();
        let nothing = backend.full(0.0, [1].into());
        let abs = |x: B::Tensor| backend.unary(Unary::Abs, x);
        let epsilon = PRECISION * B::Elem::EPSILON;
        let mut iterations = 0_u32;
        loop {
            let at = self.evaluate(backend, &x);
            iterations += 1;
            let error = backend.axpy(-1.0, &q, at.logit);
            let too_low = backend.binary(Binary::Less, error.clone(), &nothing);
            low = backend.select(&too_low, &x, &low);
            high = backend.select(&too_low, &high, &x);
            let slope = backend.unary(Unary::Exp, backend.affine(at.log_slope, -1.0, 0.0));
            let newton = backend.binary(Binary::Mul, error, &slope);
            let next = backend.axpy(-1.0, &newton, x.clone());
            // comparisons with NaN are false, so that such a step is not taken
            let inside = backend.binary(Binary::LessEqual, low.clone(), &next);
            let inside = backend.binary(Binary::Mul, inside, &backend.binary(Binary::LessEqual, next.clone(), &high));
            let doubled = backend.affine(abs(newton.clone()), 2.0, 0.0);
            let shrinks = backend.binary(Binary::LessEqual, doubled, &abs(before));
            let taken = backend.binary(Binary::Mul, inside, &shrinks);
            let halved = half(&low, &high);
            let middle = backend.axpy(1.0, &halved, low.clone());
            before = change;
            change = backend.select(&taken, &newton, &halved);
            x = backend.select(&taken, &next, &middle);
            let size = backend.affine(abs(x.clone()), epsilon, epsilon * SMALLEST);
            let found = backend.binary(Binary::LessEqual, abs(change.clone()), &size);
            if iterations.is_multiple_of(POLL) || iterations >= MOST_ITERATIONS {
                let missing = backend.affine(found.clone(), -1.0, 1.0);
                let missing = backend.download(&backend.reduce(Reduce::Max, Over::All, &missing))?;
                if iterations >= MOST_ITERATIONS || missing.iter().all(|m| *m == B::Elem::ZERO) {
                    return Ok(MixtureSolution { x, change, found, iterations });
                }
            }
        }
    }
}
