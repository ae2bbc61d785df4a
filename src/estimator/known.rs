//! What is known of the traces of J without a probe.
//!
//! log det(I + J) = Σ_k (−1)^{k+1} tr(Jᵏ)/k, and the probes' noise is mostly that of the first terms. Some maps have
//! the traces of these for about a product with J ([`Known::Traces`]): the series then begins behind them. Others are
//! near a map C of known trace whose vᵀCv comes with the first product ([`Known::Control`]): a control variate, vᵀJv −
//! vᵀCv + tr C. Either has the mean of the term that it replaces, whatever the probe, so that nothing becomes biased.

use resflow_backend::{Backend, Binary, SeriesState, TermWeight};
use serde::{Deserialize, Serialize};

/// The way in which the first terms of a series are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traces {
    /// By probes, like the other terms (Chen et al.): what models of the time before the choice were made with, and what
    /// training does by default.
    #[default]
    Probed,
    /// Exactly, or with a control variate, where the net has that for about a product: what log p is evaluated with by
    /// default.
    Exact,
}

impl Traces {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
    pub(super) fn is_probed(&self) -> bool {
        *self == Self::Probed
    }
}

/// The traces that are known at some samples.
#[derive(Debug, Clone)]
pub enum Known<B: Backend> {
    /// None.
    Nothing,
    /// tr J, tr J², …, `[n, 1]` each.
    Traces(Vec<B::Tensor>),
    /// That of a map near J.
    Control(Control<B>),
}

/// A map C near J whose trace is known.
#[derive(Debug, Clone)]
pub struct Control<B: Backend> {
    /// tr C, `[n, 1]`.
    pub trace: B::Tensor,
    /// What tells C from J: the slopes that C has instead of those of J's leading activation, `[n, …, 1]`.
    pub slopes: B::Tensor,
}

impl<B: Backend> Known<B> {
    /// Selects some of the samples, in the order given.
    pub fn take_rows(&self, backend: &B, rows: &[u32]) -> Self {
        let take = |x: &B::Tensor| backend.take_rows(x, rows);
        match self {
            Self::Nothing => Self::Nothing,
            Self::Traces(traces) => Self::Traces(traces.iter().map(take).collect()),
            Self::Control(c) => Self::Control(Control { trace: take(&c.trace), slopes: take(&c.slopes) }),
        }
    }

    /// The number of traces that are exact: the series begins behind them.
    pub fn powers(&self) -> usize {
        if let Self::Traces(traces) = self { traces.len() } else { 0 }
    }

    /// Adds what no probe is needed for, Σ_{k≤m} (−1)^{k+1} tr(Jᵏ)/k or tr C, to a value `[n, 1]`.
    pub(super) fn add_to(&self, backend: &B, value: B::Tensor) -> B::Tensor {
        match self {
            Self::Nothing => value,
            Self::Traces(traces) => traces.iter().enumerate().fold(value, |value, (i, trace)| {
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                backend.axpy(sign / (i + 1) as f64, trace, value)
            }),
            Self::Control(c) => backend.axpy(1.0, &c.trace, value),
        }
    }
}

/// Takes the value of a term whose trace is known out of a state again, and from u all terms so far, `forgets`.
pub(super) fn without_term<B: Backend>(
    backend: &B,
    before: B::Tensor,
    forgets: bool,
    state: SeriesState<B::Tensor>,
) -> SeriesState<B::Tensor> {
    let neumann = state.neumann.map(|u| if forgets { backend.full(0.0, backend.shape(&u)) } else { u });
    SeriesState { power: state.power, neumann, value: before }
}

/// Subtracts c₁ vᵀCv, `[n, 1]`, from the value.
pub(super) fn without_control<B: Backend>(
    backend: &B,
    weight: TermWeight<'_, B::Tensor>,
    control: B::Tensor,
    state: SeriesState<B::Tensor>,
) -> SeriesState<B::Tensor> {
    let value = match weight {
        TermWeight::Batch(c) => backend.axpy(-c, &control, state.value),
        TermWeight::PerRow(c) => backend.axpy(-1.0, &backend.binary(Binary::Mul, control, c), state.value),
    };
    SeriesState { value, ..state }
}
