//! Roulette's law in training, chosen from the terms of earlier gradients.
//!
//! A step's gradient is Σ_j c_j T_j, where T_0 is what it is without a term and T_j what term j adds, and roulette's weights have E\[c_j\] = 1
//! and E\[c_i c_j\] = 1/P_min(i, j) with P_j the probability that term j is there. So its law adds
//!
//! Σ_j m_j (1/P_j − 1),  m_j = ‖T_j‖² + 2⟨T_j, Σ_{i>j} T_i⟩,
//!
//! to the second moment r of the gradient of all terms. Now and then the m_j and r are measured, by the gradients of one batch with the same probes
//! and 0, 1, …, K terms, and averaged with the measurements before. Of the laws with E terms that are always there and the next one with
//! probability q that one is chosen which minimises (r + Σ_j m_j (1/P_j − 1)) · (passes through g); how the probabilities fall from there on
//! is left to the law that was set, for what it does to terms that nobody measured. Where blocks draw an N each the products of their terms are taken
//! for zero.
//!
//! Invariant: the law of a step is a function of the batches and keys of earlier steps, so that the gradient stays without bias whatever was
//! measured, and of the averages alone, so that a resumed run chooses the same.

use resflow_backend::{Backend, BackendError, Element as _};
use serde::{Deserialize, Serialize};

use crate::estimator::{Estimator, Expansion, Law, RussianRoulette, Truncated};

/// K, the number of terms that are measured.
const TERMS: usize = 6;
/// Steps between measurements, each of which costs some eight steps,
const EVERY: u64 = 500;
/// and the first of them.
const EARLY: [u64; 3] = [25, 100, 250];
/// The weight of the measurements before.
const DECAY: f64 = 0.7;
/// What the probability of the first term that may be missing is tried at:
/// no lower, since terms may grow before they are measured again.
const REACHES: [f64; 18] =
    [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1];

/// The law of a training run's roulette.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RouletteLaw {
    /// That of the training estimator.
    #[default]
    AsSet,
    /// The number of terms that are always there, and the probability of the next, as earlier gradients make them cheapest; a geometric tail as set.
    Measured,
}

/// The averages of what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Powers {
    /// m_1, …, m_K.
    terms: Vec<f64>,
    /// r.
    all: f64,
}

impl Powers {
    /// Whether these are numbers that a run can have measured.
    pub(super) fn are_possible(&self) -> bool {
        self.terms.len() == TERMS && self.terms.iter().all(|m| m.is_finite()) && self.all.is_finite() && self.all >= 0.0
    }
}

/// The law of a run that measures.
#[derive(Debug, Clone)]
pub(super) struct MeasuredLaw {
    set: RussianRoulette,
    expansion: Expansion,
    pub(super) powers: Option<Powers>,
    chosen: Estimator,
}

impl MeasuredLaw {
    /// Begins with the roulette that was set.
    pub(super) fn new(set: RussianRoulette, expansion: Expansion, powers: Option<Powers>) -> Self {
        let chosen = powers.as_ref().map_or_else(|| set.clone(), |powers| powers.choose(&set, expansion));
        Self { set, expansion, powers, chosen: Estimator::RussianRoulette(chosen) }
    }

    /// Goes on from measurements that were made.
    pub(super) fn with(self, powers: Powers) -> Self {
        Self::new(self.set, self.expansion, Some(powers))
    }

    /// The estimator of the next step.
    pub(super) fn chosen(&self) -> &Estimator {
        &self.chosen
    }

    /// Whether to measure behind step `step`, from 1.
    pub(super) fn is_due(step: u64) -> bool {
        step.is_multiple_of(EVERY) || EARLY.contains(&step)
    }

    /// The estimators whose gradients are measured: those of 0, 1, …, K terms.
    pub(super) fn estimators(&self) -> impl Iterator<Item = Estimator> + use<> {
        let RussianRoulette { probes, probe, traces, .. } = self.set;
        (0..=TERMS).map(move |terms| Estimator::Truncated(Truncated { terms, probes, probe, traces }))
    }

    /// Takes the gradients, `[P]` each, of these estimators with the same probes, and chooses.
    ///
    /// # Errors
    /// Returns [`BackendError`] if the device failed.
    pub(super) fn learn<B: Backend>(&mut self, b: &B, gradients: &[B::Tensor]) -> Result<(), BackendError> {
        let Some((last, _)) = gradients.split_last() else { return Ok(()) };
        let mut products = vec![b.dot(last, last)];
        for (before, with) in gradients.iter().zip(&gradients[1..]) {
            let term = b.axpy(-1.0, before, with.clone());
            // T + 2·(all − with) = (with − before) + 2·(all − with)
            let rest = b.axpy(2.0, &b.axpy(-1.0, with, last.clone()), term.clone());
            products.push(b.dot(&term, &rest));
        }
        let measured = b.download(&b.concat(&products.iter().collect::<Vec<_>>(), 0))?;
        let measured: Vec<f64> = measured.into_iter().map(B::Elem::to_f64).collect();
        if !measured.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        let fresh = Powers { terms: measured[1..].to_vec(), all: measured[0] };
        let powers = match self.powers.take() {
            None => fresh,
            Some(old) => {
                let mix = |old: f64, fresh: f64| DECAY * old + (1.0 - DECAY) * fresh;
                // terms that grow count at once: too few are dearer than too many
                let terms =
                    old.terms.iter().zip(&fresh.terms).map(|(&old, &fresh)| mix(old, fresh).max(fresh)).collect();
                Powers { terms, all: mix(old.all, fresh.all) }
            }
        };
        *self = self.clone().with(powers);
        Ok(())
    }
}

/// How often the geometric law that goes on behind the terms that are chosen stops.
fn tail(law: Law) -> f64 {
    match law {
        Law::ShiftedGeometric { p } | Law::Geometric { p, .. } => p,
        // that of the same mean
        Law::Poisson { rate } => (1.0 / rate).clamp(0.1, 0.9),
    }
}

/// The passes through g of a gradient: forward, products, tangents, and the reverse pass of value and tangents, twice each.
fn passes(roulette: &RussianRoulette, expansion: Expansion) -> f64 {
    let probes = roulette.probes as f64;
    // an odd term is two products
    let products = if expansion == Expansion::Odd { 2.0 } else { 1.0 };
    3.0 + 3.0 * probes + probes * products * roulette.expected_terms()
}

impl Powers {
    /// The second moment of a gradient with this roulette.
    fn moment(&self, roulette: &RussianRoulette) -> f64 {
        let (exact, draws) = (roulette.exact_terms, roulette.draws as f64);
        let odds = |j: usize| {
            let there = if j <= exact { 1.0 } else { roulette.law.survival((j - exact) as u64) };
            (1.0 / there - 1.0) / draws
        };
        let measured: f64 = self.terms.iter().enumerate().map(|(i, m)| m.max(0.0) * odds(i + 1)).sum();
        // from the last on as they fell before, but not so slowly that the sum has no end
        let (first, last) = (self.terms[0].max(0.0), self.terms[TERMS - 1].max(0.0));
        let slowest = 0.95 * (1.0 - tail(roulette.law));
        let fall = if first > 0.0 { (last / first).powf(1.0 / (TERMS - 1) as f64).min(slowest) } else { 0.0 };
        let mut beyond = 0.0;
        let mut m = last * fall;
        for j in TERMS + 1..TERMS + 500 {
            if m <= 1e-12 * self.all {
                break;
            }
            beyond += m * odds(j);
            m *= fall;
        }
        self.all + measured + beyond
    }

    /// Chooses the cheapest law; the one that was set unless another is better.
    fn choose(&self, set: &RussianRoulette, expansion: Expansion) -> RussianRoulette {
        let p = tail(set.law);
        let cost = |roulette: &RussianRoulette| self.moment(roulette) * passes(roulette, expansion);
        let mut best = (cost(set), set.clone());
        for exact_terms in 0..=TERMS {
            let shifted = std::iter::once(Law::ShiftedGeometric { p });
            for law in shifted.chain(REACHES.map(|reach| Law::Geometric { reach, p })) {
                let other = RussianRoulette { law, exact_terms, ..set.clone() };
                let own = cost(&other);
                if own < best.0 {
                    best = (own, other);
                }
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(exact: usize) -> RussianRoulette {
        RussianRoulette::new(Law::ShiftedGeometric { p: 0.25 }, exact).expect("in range")
    }

    fn falling(fall: f64, first: f64) -> Powers {
        Powers { terms: (0..TERMS).map(|j| first * fall.powi(j as i32)).collect(), all: 1.0 }
    }

    /// Small terms are nearly never there, large ones always; the choice is never worse than what was set, and its tail is the same.
    #[test]
    fn laws_follow_what_was_measured() {
        let whole = Expansion::Whole;
        let small = falling(0.1, 1e-4).choose(&set(2), whole);
        assert!(small.exact_terms == 0 && small.expected_terms() < 0.5, "{small:?}");
        let large = falling(0.8, 10.0).choose(&set(2), whole);
        assert!(large.exact_terms >= 4, "{large:?}");
        let mut terms = f64::INFINITY;
        for first in [100.0, 1.0, 0.1, 0.01, 1e-3, 1e-5] {
            let powers = falling(0.4, first);
            let chosen = powers.choose(&set(2), whole);
            let cost = |r: &RussianRoulette| powers.moment(r) * passes(r, whole);
            assert!(cost(&chosen) <= cost(&set(2)) && tail(chosen.law) == 0.25);
            assert!(chosen.expected_terms() <= terms, "{chosen:?}");
            terms = chosen.expected_terms();
            chosen.check().expect("a law");
        }
        // nothing measured is worth a term more than what must be
        let none = Powers { terms: vec![0.0; TERMS], all: 1.0 }.choose(&set(3), whole);
        assert!(none.expected_terms() < 0.5, "{none:?}");
        let odd = falling(0.4, 0.1);
        assert!(odd.choose(&set(2), Expansion::Odd).expected_terms() <= odd.choose(&set(2), whole).expected_terms());
    }

    /// The second moment is that of the weights, summed over the law of N.
    #[test]
    fn moments_are_those_of_the_weights() {
        let values = [0.7, -0.3, 0.2, -0.05, 0.01, 0.002];
        let m = |j: usize| values[j] * (values[j] + 2.0 * values[j + 1..].iter().sum::<f64>());
        let total: f64 = 1.0 + values.iter().sum::<f64>();
        // products that are negative are taken for zero: here all are positive or small
        let powers = Powers { terms: (0..TERMS).map(m).collect(), all: total * total };
        for (exact, law) in [
            (0, Law::ShiftedGeometric { p: 0.5 }),
            (2, Law::Geometric { reach: 0.4, p: 0.3 }),
            (0, Law::Geometric { reach: 0.1, p: 0.5 }),
        ] {
            let roulette = RussianRoulette::new(law, exact).expect("in range");
            let mut expected = 0.0;
            for n in 0..200_u64 {
                let mass = law.survival(n) - law.survival(n + 1);
                let c = roulette.coefficients(&[n]);
                let sum: f64 = values.iter().enumerate().map(|(i, v)| c.get(i).copied().unwrap_or(0.0) * v).sum();
                expected += mass * (1.0 + sum).powi(2);
            }
            let of = |j: usize| if j <= exact { 0.0 } else { 1.0 / law.survival((j - exact) as u64) - 1.0 };
            let negative: f64 = (0..TERMS).map(|i| m(i).min(0.0) * of(i + 1)).sum();
            let found = powers.moment(&roulette) + negative;
            // T_0 T_j has weight 1; the tail beyond the measured terms is nothing here
            assert!((found - expected).abs() < 0.02 * expected, "{law}: {found} and {expected}");
        }
    }
}
