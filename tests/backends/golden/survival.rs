//! Survival functions of both laws and the coefficients 1/P(N ≥ k−E) that follow from them. No tensors are involved, so there
//! is one precision; the reference's Poisson tails cancel and are good to an absolute 1e−15 only.

use resflow::estimator::{Law, RussianRoulette};

use crate::golden::fixture::Fixture;

#[test]
fn survival() {
    let file = Fixture::open("survival");
    let laws = [
        (Law::ShiftedGeometric { p: 0.5 }, "geometric.0.5"),
        (Law::ShiftedGeometric { p: 0.2 }, "geometric.0.2"),
        (Law::Poisson { rate: 2.0 }, "poisson.2.0"),
        (Law::Poisson { rate: 5.0 }, "poisson.5.0"),
    ];
    for (law, name) in laws {
        for exact in [0, 2, 8] {
            let reference = file.values(&format!("{name}.exact{exact}.survival"));
            let roulette = RussianRoulette::new(law, exact).expect("a law");
            let coefficients = roulette.coefficients(&[(reference.len() - exact) as u64]);
            for ((k, &reference), c) in (1..).zip(reference).zip(coefficients) {
                let survival = law.survival((k as u64).saturating_sub(exact as u64));
                let poisson = matches!(law, Law::Poisson { .. });
                let tolerance = if poisson { 2e-15 } else { 1e-14 * reference };
                assert!((survival - reference).abs() <= tolerance, "{name}, E = {exact}, k = {k}: {survival:e}");
                assert!((1.0 / c - reference).abs() <= tolerance, "{name}, E = {exact}, c_{k} = {c:e}");
            }
        }
    }
    file.assert_all_read();
}
