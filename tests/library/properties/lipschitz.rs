//! Power iteration against nalgebra's singular values, in both precisions: never above, and at most a thousandth below
//! once converged where the two largest lie 5 % apart. Random cases, no statistics.

use crate::common::{self, cases, spectral_norm};
use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key, Noise};
use resflow::layer::LipschitzLinear;
use resflow::lipschitz::{Coefficient, DenseOperator, PowerIteration, SingularPair};
use resflow::module::Module as _;

/// A matrix with σ₁ = `size` and the others spread from `gap` · σ₁ downwards.
fn matrix(o: usize, i: usize, size: f64, gap: f64, seed: u64) -> Vec<f64> {
    let mut noise = vec![0.0; o * i];
    Noise::Normal.fill(Key::new(seed), 0, &mut noise);
    let mut svd = DMatrix::from_row_slice(o, i, &noise).svd(true, true);
    for (k, s) in svd.singular_values.iter_mut().enumerate() {
        *s = size * if k == 0 { 1.0 } else { gap / k as f64 };
    }
    svd.recompose().expect("both factors").transpose().as_slice().to_vec()
}

/// ⟨a, b⟩ as if in twice the precision (Ogita, Rump, Oishi 2005, Dot2).
fn dot2(a: &[f64], b: &[f64]) -> f64 {
    let (mut sum, mut rest) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let product = a * b;
        let total: f64 = sum + product;
        let z = total - sum;
        rest += a.mul_add(*b, -product) + ((sum - (total - z)) + (product - z));
        sum = total;
    }
    sum + rest
}

/// The largest singular value to the last digit: ‖Wv‖/‖v‖, whose error is quadratic in that of nalgebra's v.
fn exact_norm(o: usize, i: usize, w: &[f64]) -> f64 {
    let svd = DMatrix::from_row_slice(o, i, w).svd(false, true);
    let v: Vec<f64> = svd.v_t.expect("asked for").row(svd.singular_values.imax()).iter().copied().collect();
    let image: Vec<f64> = w.chunks_exact(i).map(|row| dot2(row, &v)).collect();
    (dot2(&image, &image) / dot2(&v, &v)).sqrt()
}

fn check<B: Backend>(b: &B, o: usize, i: usize, values: &[f64], seed: u64) -> Result<(), TestCaseError> {
    let rounded: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
    let exact = exact_norm(o, i, &rounded.iter().map(|v| v.to_f64()).collect::<Vec<_>>());
    let w = b.upload(&rounded, [o, i].into());
    let start = SingularPair::random(b, [o], [i], Key::new(seed));
    let operator = DenseOperator::new(b, &w).expect("a matrix");
    for how in [0, 1, 2, 3, 5, 50].map(PowerIteration::Iterations).into_iter().chain([PowerIteration::converge::<B>()])
    {
        let pair = start.updated(b, &operator, how);
        let sigma = b.download(&pair.sigma(b, &operator)).expect("no device fault")[0].to_f64();
        prop_assert!(sigma <= exact * (1.0 + 8.0 * B::Elem::EPSILON), "{sigma} above {exact} after {how:?}");
        if how == PowerIteration::converge::<B>() {
            prop_assert!(sigma >= 0.999 * exact, "{sigma} of {exact}");
            let kappa = 0.9;
            let coefficient = Coefficient::new(kappa).expect("in range");
            let layer = LipschitzLinear::from_parts(b, w.clone(), b.full(0.0, [o].into()), pair, coefficient);
            let layer = layer.expect("shapes that fit");
            let effective = b.download(&layer.normalised_weight(b)).expect("no device fault");
            let effective: Vec<f64> = effective.iter().map(|v| v.to_f64()).collect();
            let after = spectral_norm(o, i, &effective);
            prop_assert!((after - exact.min(kappa)).abs() <= 1e-3 * after, "{after} for {exact}");
            let mut reported = None;
            layer.spectra(b, "l", &mut |s| reported = Some((s.sigma, s.effective()))).expect("no device fault");
            prop_assert_eq!(reported, Some((sigma, sigma.min(kappa))));
        }
    }
    Ok(())
}

/// A start on a lower singular pair, exactly, where nothing in W leads away from it.
#[test]
fn a_lower_pair_is_not_the_end() {
    let b = common::cpu();
    let w = b.upload(&[0.5, 0.0, 0.0, 2.0], [2, 2].into());
    let start = |x: [f64; 2]| SingularPair::new(&b, b.upload(&x, [2].into()), b.upload(&x, [2].into()));
    let operator = DenseOperator::new(&b, &w).expect("a matrix");
    let sigma = |how| common::down(&b, &start([1.0, 0.0]).updated(&b, &operator, how).sigma(&b, &operator))[0];
    assert_eq!(sigma(PowerIteration::Iterations(100)), 0.5);
    assert!((sigma(PowerIteration::converge::<common::Cpu>()) - 2.0).abs() < 1e-12);
}

/// Two singular values a few thousandths apart, and a start that is nearly the second: σ creeps, and a stop by its change alone
/// comes too early. Fixed matrices, no statistics.
#[test]
fn close_singular_values_are_told_apart() {
    fn check<B: Backend>(b: &B) {
        for (gap, seed) in [(1e-2, 1), (4e-3, 2), (2e-3, 3), (1e-2, 4), (4e-3, 5)] {
            let (o, i) = (24, 30);
            let mut noise = vec![0.0; o * i];
            Noise::Normal.fill(Key::new(seed), 0, &mut noise);
            let mut svd = DMatrix::from_row_slice(o, i, &noise).svd(true, true);
            for (k, s) in svd.singular_values.iter_mut().enumerate() {
                *s = [1.0, 1.0 - gap].get(k).copied().unwrap_or(0.1);
            }
            let start = DVector::from_fn(o.min(i), |k, _| [0.01, 1.0].get(k).copied().unwrap_or(0.0)).normalize();
            let u = svd.u.as_ref().expect("asked for") * &start;
            let v = svd.v_t.as_ref().expect("asked for").tr_mul(&start);
            let upload = |x: &[f64], shape: &[usize]| {
                b.upload(&x.iter().map(|&v| B::Elem::from_f64(v)).collect::<Vec<_>>(), shape.into())
            };
            let [u, v] = [upload(u.as_slice(), &[o]), upload(v.as_slice(), &[i])];
            let w: Vec<f64> = svd.recompose().expect("both factors").transpose().as_slice().to_vec();
            let w = upload(&w, &[o, i]);
            let operator = DenseOperator::new(b, &w).expect("a matrix");
            let pair = SingularPair::new(b, u, v).updated(b, &operator, PowerIteration::converge::<B>());
            let sigma = b.download(&pair.sigma(b, &operator)).expect("no device fault")[0].to_f64();
            assert!((sigma - 1.0).abs() < 2e-5, "{}: {sigma} of 1, the next one is {gap} below", B::Elem::NAME);
        }
    }
    check(&NdArray::<f64>::new());
    check(&NdArray::<f32>::new());
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn sigma_is_a_lower_bound_that_converges(
        o in 1_usize..40, i in 1_usize..40, exponent in -3.0..3.0, gap in 0.0..0.95, seed: u64,
    ) {
        let values = matrix(o, i, 10_f64.powf(exponent), gap, seed);
        let one = std::num::NonZeroUsize::MIN;
        check(&NdArray::<f64>::with_threads(one).expect("one thread"), o, i, &values, seed)?;
        check(&NdArray::<f32>::with_threads(one).expect("one thread"), o, i, &values, seed)?;
    }
}
