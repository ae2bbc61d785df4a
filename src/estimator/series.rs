//! The power series of log det(I + J), and the Neumann series of its gradient, from the same vectors.
//!
//! With w_k = (Jᵀ)ᵏ v and weights c_k (c_0 = 1):
//!
//! * value: Σ_{k≥1} (−1)^{k+1} c_k ⟨w_k, v⟩/k (Chen et al. 2019, eq. 6),
//! * u = Σ_{k≥0} (−1)ᵏ c_k w_k, and ∂ log det/∂θ = E\[uᵀ (∂J/∂θ) v\] (eq. 8), with u and v constants.
//!
//! Where the first m traces are known ([`Known::Traces`]), the value begins with Σ_{k≤m} (−1)^{k+1} tr(Jᵏ)/k and goes on with
//! the terms k > m, and u with k ≥ m: the gradient of what is known is exact too
//! ([`PreparedLayer::tangent_trace_vjp`](crate::layer::PreparedLayer::tangent_trace_vjp)), and ∂ tr(Jᵏ)/k is the mean of
//! vᵀJᵏ⁻¹ ∂J v. With a control variate the first term is c₁ (vᵀJv − vᵀCv) + tr C.
//!
//! A sample stops once c_k ‖w_k‖ ‖v‖/k is below the working precision: it is set to exact zero, since iterating on
//! drives it into subnormal numbers, on which convolutions are some hundred times slower. Samples whose weights are
//! zero from some k on stop there by the same rule.

use resflow_backend::{Backend, Element as _, SeriesState, TermWeight, TermWeights};

use super::Vjp;
use super::known::{Known, without_control, without_term};
use crate::layer::Saved;

/// The value of a log det estimate for each sample, `[n, 1]`, in nats.
#[derive(Debug, Clone)]
pub struct SeriesValue<B: Backend>(pub B::Tensor);

/// The cotangent u of the surrogate uᵀJv: its gradient is that of the log det, its value is not the log det.
#[derive(Debug, Clone)]
pub struct Surrogate<B: Backend> {
    /// u, `[n, …]` of the probe's shape.
    pub u: B::Tensor,
}

/// The weights c_1, c_2, … of the terms.
#[derive(Debug, Clone)]
pub enum Weights<B: Backend> {
    /// One list for all samples.
    Batch(Vec<f64>),
    /// A list for each sample: entry k−1 holds c_k of the first samples, `[r_k, 1]` with r_1 ≥ r_2 ≥ …; later ones have
    /// stopped. Samples are sorted so that those with more terms come first.
    Rows(Vec<B::Tensor>),
}

impl<B: Backend> Weights<B> {
    /// Sorts samples by their number of terms, the longest first: the order to take samples in, and the
    /// weights in that order.
    pub fn rows(backend: &B, coefficients: &[Vec<f64>]) -> (Vec<u32>, Self) {
        let mut order: Vec<u32> = (0..coefficients.len() as u32).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(coefficients[i as usize].len()));
        let terms = order.first().map_or(0, |&i| coefficients[i as usize].len());
        let weights = (0..terms).map(|k| {
            let column: Vec<B::Elem> =
                order.iter().map_while(|&i| coefficients[i as usize].get(k)).map(|&c| B::Elem::from_f64(c)).collect();
            backend.upload(&column, [column.len(), 1].into())
        });
        let weights = weights.collect();
        (order, Self::Rows(weights))
    }

    /// The terms from term k on that the same samples have: how many, and their weights.
    fn run(&self, backend: &B, k: usize) -> (usize, TermWeights<'_, B::Tensor>) {
        match self {
            Self::Batch(c) => (c.len() + 1 - k, TermWeights::Batch(&c[k - 1..])),
            Self::Rows(c) => {
                let rows = |c: &B::Tensor| backend.shape(c).rows();
                let count = c[k - 1..].iter().take_while(|next| rows(next) == rows(&c[k - 1])).count();
                (count, TermWeights::PerRow(&c[k - 1..k - 1 + count]))
            }
        }
    }

    /// The weight of the term at index m.
    pub(super) fn term(&self, m: usize) -> TermWeight<'_, B::Tensor> {
        match self {
            Self::Batch(c) => TermWeight::Batch(c[m]),
            Self::Rows(c) => TermWeight::PerRow(&c[m]),
        }
    }

    /// The number of first samples that have the term at index m, where that differs between samples.
    pub(super) fn rows_of_term(&self, backend: &B, m: usize) -> Option<usize> {
        match self {
            Self::Batch(_) => None,
            Self::Rows(c) => Some(backend.shape(&c[m]).rows()),
        }
    }

    /// Returns the number of terms of the longest series.
    pub fn terms(&self) -> usize {
        match self {
            Self::Batch(c) => c.len(),
            Self::Rows(c) => c.len(),
        }
    }
}

/// Computes the series for one probe v per sample, `[n, …]`. `saved` is what the forward pass of g kept (at least
/// [`Derivatives::First`](crate::layer::Derivatives::First)), in the order of the weights' samples. The surrogate is
/// computed if `gradient`.
pub fn series<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    probe: &B::Tensor,
    weights: &Weights<B>,
    gradient: bool,
) -> (SeriesValue<B>, Option<Surrogate<B>>) {
    series_beyond(backend, net, saved, &Known::Nothing, probe, weights, gradient)
}

/// Computes the [`series()`] with what is known of its first terms, in the order of the weights' samples. The surrogate is
/// that of the terms behind those that are known.
pub fn series_beyond<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    known: &Known<B>,
    probe: &B::Tensor,
    weights: &Weights<B>,
    gradient: bool,
) -> (SeriesValue<B>, Option<Surrogate<B>>) {
    let rows = backend.shape(probe).rows();
    let powers = known.powers();
    let first = if powers == 0 { probe.clone() } else { backend.full(0.0, backend.shape(probe)) };
    let mut state = SeriesState {
        power: probe.clone(),
        neumann: gradient.then_some(first),
        value: backend.full(0.0, [rows, 1].into()),
    };
    let needed = gradient || weights.terms() > powers;
    let mut finished: Vec<SeriesState<B::Tensor>> = Vec::new();
    let mut narrowed: Option<(Saved<B>, B::Tensor)> = None;
    let terms = if needed { weights.terms() } else { 0 };
    let mut k = 1;
    while k <= terms {
        let (mut count, mut own) = weights.run(backend, k);
        if let Weights::Rows(c) = weights {
            let active = backend.shape(&c[k - 1]).rows();
            if active < backend.shape(&state.power).rows() {
                finished.push(rows_of(backend, &state, active, None));
                state = rows_of(backend, &state, 0, Some(active));
                narrowed = Some((saved.first_rows(backend, active), backend.narrow(probe, 0, 0, active)));
            }
        }
        let (saved, probe) = narrowed.as_ref().map_or((saved, probe), |(s, p)| (s, p));
        match known {
            Known::Control(control) if k == 1 => {
                let slopes = backend.narrow(&control.slopes, 0, 0, backend.shape(probe).rows());
                let (power, control) = net.controlled_vjp(backend, saved, &slopes, state.power);
                state.power = power;
                state = backend.series_term(1, own.term(0), probe, B::Elem::EPSILON, state);
                state = without_control(backend, own.term(0), control, state);
                count = 1;
            }
            _ if k <= powers => {
                let before = state.value.clone();
                (count, own) = (1, own.first());
                state = net.series_terms(backend, saved, k, own, probe, state);
                state = without_term(backend, before, k < powers, state);
            }
            _ => state = net.series_terms(backend, saved, k, own, probe, state),
        }
        if backend.known_zero(&state.power) {
            break;
        }
        k += count;
    }
    finished.push(state);
    let (value, neumann) = join_rows(backend, &finished);
    let value = known.add_to(backend, value);
    (SeriesValue(value), neumann.map(|u| Surrogate { u }))
}

/// The values and the Neumann vectors of all samples: those that finished later stand before those that finished earlier.
pub(super) fn join_rows<B: Backend>(
    backend: &B,
    finished: &[SeriesState<B::Tensor>],
) -> (B::Tensor, Option<B::Tensor>) {
    let join = |part: fn(&SeriesState<B::Tensor>) -> Option<&B::Tensor>| {
        let parts: Option<Vec<_>> = finished.iter().rev().map(part).collect();
        parts.map(|parts| if let [only] = parts[..] { only.clone() } else { backend.concat(&parts, 0) })
    };
    (join(|s| Some(&s.value)).expect("every state has a value"), join(|s| s.neumann.as_ref()))
}

/// Samples `start..` of a state, or `start..start + length`.
pub(super) fn rows_of<B: Backend>(
    backend: &B,
    state: &SeriesState<B::Tensor>,
    start: usize,
    length: Option<usize>,
) -> SeriesState<B::Tensor> {
    let length = length.unwrap_or(backend.shape(&state.power).rows() - start);
    let cut = |x: &B::Tensor| backend.narrow(x, 0, start, length);
    SeriesState { power: cut(&state.power), neumann: state.neumann.as_ref().map(cut), value: cut(&state.value) }
}
