//! The odd part of the series, log det(I − J) − log det(I + J) = −2 Σ_{m≥0} tr J^{2m+1}/(2m+1), for monotone blocks
//! (Ahn et al. 2022, arXiv 2210.08176).
//!
//! With w_k = (Jᵀ)ᵏ v and weights c_0, c_1, … of the odd terms:
//!
//! * value: −2 Σ_m c_m ⟨w_{2m+1}, v⟩/(2m+1),
//! * u = −2 Σ_m c_m w_{2m}, and ∂/∂θ = E\[uᵀ (∂J/∂θ) v\], since ∂ log det = −2 tr((I − J²)⁻¹ ∂J).
//!
//! The number of terms counts odd ones: roulette draws how many of them there are, and value and gradient have the same weights.
//! E odd terms that are always there and N that are drawn cost 2(E + N) − 1 products.

use resflow_backend::{Backend, Binary, Element as _, SeriesState, TermWeight};

use super::Vjp;
use super::known::{Known, without_control};
use super::series::{SeriesValue, Surrogate, Weights, join_rows, rows_of, series_beyond};
use crate::batch::per_sample;
use crate::layer::Saved;

/// The log det that is expanded into traces of powers of J.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expansion {
    /// log det(I + J) = Σ_{k≥1} (−1)^{k+1} tr Jᵏ/k, of a residual block.
    Whole,
    /// log det(I − J) − log det(I + J) = −2 Σ_{m≥0} tr J^{2m+1}/(2m+1), of a monotone block; terms are counted by m.
    Odd,
}

impl Expansion {
    /// The most that the trace of a term is of the one before, for Lip(g) ≤ c: c, and c² between odd powers.
    pub fn ratio(self, c: f64) -> f64 {
        if self == Self::Whole { c } else { c * c }
    }

    /// The factor in front of tr J.
    pub(crate) fn factor(self) -> f64 {
        if self == Self::Whole { 1.0 } else { -2.0 }
    }

    /// The first traces that the series may begin behind: tr J² is none of the odd ones.
    pub(super) fn most_known(self) -> usize {
        if self == Self::Whole { usize::MAX } else { 1 }
    }

    /// Computes the series with what is known of its first term.
    pub(super) fn series<B: Backend>(
        self,
        backend: &B,
        net: &(impl Vjp<B> + ?Sized),
        saved: &Saved<B>,
        known: &Known<B>,
        probe: &B::Tensor,
        weights: &Weights<B>,
        gradient: bool,
    ) -> (SeriesValue<B>, Option<Surrogate<B>>) {
        match self {
            Self::Whole => series_beyond(backend, net, saved, known, probe, weights, gradient),
            Self::Odd => odd_series_beyond(backend, net, saved, known, probe, weights, gradient),
        }
    }

    /// The coefficients of all powers, of those of the terms, for [`differentiated`](super::differentiated()).
    pub(super) fn powers(self, coefficients: Vec<f64>) -> Vec<f64> {
        match self {
            Self::Whole => coefficients,
            Self::Odd => coefficients.into_iter().flat_map(|c| [c, 0.0]).collect(),
        }
    }
}

/// Computes the odd series for one probe v per sample, `[n, …]`, with weights c_0, c_1, … of the odd terms; `saved` is what the
/// forward pass of g kept (at least [`Derivatives::First`](crate::layer::Derivatives::First)), in the order of the weights'
/// samples. The surrogate is computed if `gradient`.
pub fn odd_series<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    probe: &B::Tensor,
    weights: &Weights<B>,
    gradient: bool,
) -> (SeriesValue<B>, Option<Surrogate<B>>) {
    odd_series_beyond(backend, net, saved, &Known::Nothing, probe, weights, gradient)
}

/// Computes the [`odd_series()`] with what is known of tr J, in the order of the weights' samples. The surrogate is that of the
/// terms behind a trace that is known.
fn odd_series_beyond<B: Backend>(
    backend: &B,
    net: &(impl Vjp<B> + ?Sized),
    saved: &Saved<B>,
    known: &Known<B>,
    probe: &B::Tensor,
    weights: &Weights<B>,
    gradient: bool,
) -> (SeriesValue<B>, Option<Surrogate<B>>) {
    let exact_first = known.powers() > 0;
    let terms = weights.terms();
    let mut state = SeriesState {
        power: probe.clone(),
        neumann: gradient.then(|| backend.full(0.0, backend.shape(probe))),
        value: backend.full(0.0, [backend.shape(probe).rows(), 1].into()),
    };
    let mut finished: Vec<SeriesState<B::Tensor>> = Vec::new();
    let mut narrowed: Option<(Saved<B>, B::Tensor)> = None;
    for m in 0..terms {
        if let Some(active) = weights.rows_of_term(backend, m)
            && active < backend.shape(&state.power).rows()
        {
            finished.push(rows_of(backend, &state, active, None));
            state = rows_of(backend, &state, 0, Some(active));
            narrowed = Some((saved.first_rows(backend, active), backend.narrow(probe, 0, 0, active)));
        }
        let (saved, probe) = narrowed.as_ref().map_or((saved, probe), |(s, p)| (s, p));
        let beyond = !(exact_first && m == 0);
        let neumann =
            state.neumann.take().map(|u| if beyond { add(backend, weights.term(m), &state.power, u) } else { u });
        if m + 1 == terms && !beyond {
            state.neumann = neumann;
            break;
        }
        let before = state.value.clone();
        state = match known {
            Known::Control(control) if m == 0 => {
                let slopes = backend.narrow(&control.slopes, 0, 0, backend.shape(probe).rows());
                let (power, control) = net.controlled_vjp(backend, saved, &slopes, state.power);
                let state =
                    backend.series_term(1, weights.term(m), probe, B::Elem::EPSILON, SeriesState { power, ..state });
                without_control(backend, weights.term(m), control, state)
            }
            _ => {
                let power = net.vjp(backend, saved, state.power);
                backend.series_term(2 * m + 1, weights.term(m), probe, B::Elem::EPSILON, SeriesState { power, ..state })
            }
        };
        if !beyond {
            state.value = before;
        }
        state.neumann = neumann;
        if m + 1 == terms || backend.known_zero(&state.power) {
            break;
        }
        state.power = net.vjp(backend, saved, state.power);
    }
    finished.push(state);
    let (value, neumann) = join_rows(backend, &finished);
    let double = |x: B::Tensor| backend.affine(x, -2.0, 0.0);
    (SeriesValue(double(known.add_to(backend, value))), neumann.map(|u| Surrogate { u: double(u) }))
}

/// Adds c_m w, `[n, …]`.
fn add<B: Backend>(backend: &B, weight: TermWeight<'_, B::Tensor>, power: &B::Tensor, u: B::Tensor) -> B::Tensor {
    match weight {
        TermWeight::Batch(c) => backend.axpy(c, power, u),
        TermWeight::PerRow(c) => {
            let c = per_sample(backend, c, backend.shape(power));
            backend.axpy(1.0, &backend.binary(Binary::Mul, power.clone(), &c), u)
        }
    }
}
