//! Norms between orders: dual vectors against their definition; ‖W‖_{p→q} against the SVD (2→2), the largest column (1→q) and
//! the largest row (p→∞); σ is a lower bound that never falls; a convolution is its matrix; gradients in learned orders by
//! differences; chains of norms that bound nothing are refused. Random cases: the searches for 1→q and p→∞ begin at 128
//! random columns or rows of at most six, and miss the largest one once in 10⁹ cases.

use crate::common::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use resflow::backend::{Backend, Key, Padding};
use resflow::lipschitz::{
    Coefficient, ConvOperator, DenseOperator, DualPair, LinearOperator, Norm, NormChain, Norms, Order, PowerIteration,
    chain_from_digits, check_chain, learned_chain, learned_exponent, two_norm_factor,
};

const STARTS: usize = 128;

/// ‖x‖_p by its definition.
fn p_norm(p: f64, x: &[f64]) -> f64 {
    let largest = largest(x.iter().copied());
    if p == f64::INFINITY || largest == 0.0 {
        return largest;
    }
    largest * x.iter().map(|x| (x.abs() / largest).powf(p)).sum::<f64>().powf(1.0 / p)
}

fn dual_order(p: f64) -> f64 {
    if p == 1.0 { f64::INFINITY } else { 1.0 / (1.0 - 1.0 / p) }
}

fn orders() -> impl Strategy<Value = f64> {
    prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY), 1.05..8.0]
}

fn norm_of(b: &Cpu, p: f64) -> Norm<Cpu> {
    Norm::new(b, Order::fixed(p).expect("an order"), None).expect("fixed")
}

fn learned(b: &Cpu, a: f64) -> Norm<Cpu> {
    Norm::new(b, Order::Learned(0), Some(&b.full(a, [1].into()))).expect("with its parameter")
}

fn norms(b: &Cpu, p: f64, q: f64) -> Norms<Cpu> {
    Norms { domain: norm_of(b, p), codomain: norm_of(b, q) }
}

fn search(b: &Cpu, w: &Tensor, norms: &Norms<Cpu>, key: Key) -> f64 {
    let operator = DenseOperator::new(b, w).expect("a matrix");
    let pair = DualPair::search(b, &operator, norms, PowerIteration::Iterations(20), STARTS, key);
    down(b, &pair.sigma(b, &operator))[0]
}

fn column(o: usize, i: usize, w: &[f64], j: usize) -> Vec<f64> {
    (0..o).map(|r| w[r * i + j]).collect()
}

fn close(a: f64, b: f64, tolerance: f64) -> Result<(), TestCaseError> {
    prop_assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} and {b}");
    Ok(())
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn dual_vectors(seed: u64, n in 1_usize..12, p in orders(), raw in -6.0..6.0, exponent in -200.0..200.0, zeros in 0_usize..4) {
        let b = cpu();
        let mut x: Vec<f64> = down(&b, &normal(&b, Key::new(seed), [n])).iter().map(|x| x * 2_f64.powf(exponent)).collect();
        x.iter_mut().skip(1).take(zeros).for_each(|x| *x = 0.0);
        let x_tensor = b.upload(&x, [n].into());
        let old = b.full(7.0, [n].into());
        let learned_p = learned_exponent(raw);
        for (norm, p) in [(norm_of(&b, p), p), (learned(&b, raw), learned_p)] {
            let (u, size) = (down(&b, &norm.dual_vector(&b, &x_tensor, &old)), p_norm(p, &x));
            close(down(&b, &norm.norm(&b, &x_tensor))[0] / size, 1.0, 1e-12)?;
            close(p_norm(dual_order(p), &u), 1.0, 1e-11)?;
            close(dot(&u, &x) / size, 1.0, 1e-11)?;
            close(down(&b, &norm.order(&b))[0].min(1e9), p.min(1e9), 1e-14)?;
            close(down(&b, &norm.dual(&b).order(&b))[0].min(1e9), dual_order(p).min(1e9), 1e-11)?;
            for unusable in [0.0, f64::NAN, f64::INFINITY] {
                let vector = norm.dual_vector(&b, &b.full(unusable, [n].into()), &old);
                prop_assert_eq!(down(&b, &vector), vec![7.0; n]);
            }
        }
    }

    #[test]
    fn known_norms(seed: u64, o in 1_usize..=6, i in 1_usize..=6, p in orders()) {
        let (b, key) = (cpu(), Key::new(seed));
        let w = normal(&b, key, [o, i]);
        let values = down(&b, &w);
        let columns = largest((0..i).map(|j| p_norm(p, &column(o, i, &values, j))));
        close(search(&b, &w, &norms(&b, 1.0, p), key), columns, 1e-12)?;
        let rows = largest(values.chunks_exact(i).map(|row| p_norm(dual_order(p), row)));
        close(search(&b, &w, &norms(&b, p, f64::INFINITY), key), rows, 1e-12)?;
        let operator = DenseOperator::new(&b, &w).expect("a matrix");
        let pair = DualPair::random(&b, &operator, &Norms::euclidean(), key)
            .updated(&b, &operator, &Norms::euclidean(), PowerIteration::converge::<Cpu>());
        let (sigma, exact) = (down(&b, &pair.sigma(&b, &operator))[0], spectral_norm(o, i, &values));
        prop_assert!(sigma <= exact * (1.0 + 1e-14) && sigma >= exact * (1.0 - 1e-3), "{sigma} of {exact}");
    }

    /// σ = ‖Wv‖_q with ‖v‖_p = 1, so it is below the norm; an iteration does not make it smaller.
    #[test]
    fn sigma_is_attained_and_never_falls(seed: u64, o in 1_usize..8, i in 1_usize..8, p in orders(), q in orders()) {
        let (b, key) = (cpu(), Key::new(seed));
        let w = normal(&b, key, [o, i]);
        let (operator, norms) = (DenseOperator::new(&b, &w).expect("a matrix"), norms(&b, p, q));
        let mut pair = DualPair::random(&b, &operator, &norms, key);
        let mut last = 0.0;
        for _ in 0..12 {
            pair = pair.updated(&b, &operator, &norms, PowerIteration::Iterations(1));
            let sigma = down(&b, &pair.sigma(&b, &operator))[0];
            close(p_norm(p, &down(&b, &pair.v)), 1.0, 1e-11)?;
            close(p_norm(dual_order(q), &down(&b, &pair.u)), 1.0, 1e-11)?;
            close(sigma, p_norm(q, &down(&b, &operator.apply(&b, &pair.v))), 1e-11)?;
            prop_assert!(sigma >= last * (1.0 - 1e-12), "{sigma} after {last}");
            last = sigma;
        }
        // non-negative weights between falling orders have one maximum, which every non-negative start finds
        let (p, q) = if p >= q { (p, q) } else { (q, p) };
        let w = b.unary(resflow::backend::Unary::Abs, w);
        let (operator, norms) = (DenseOperator::new(&b, &w).expect("a matrix"), self::norms(&b, p, q));
        let from = |x: Tensor| {
            let start = DualPair::new(b.unary(resflow::backend::Unary::Abs, x), b.full(1.0, [i].into()));
            let pair = start.updated(&b, &operator, &norms, PowerIteration::Converge { tolerance: 1e-14, limit: 4000 });
            down(&b, &pair.sigma(&b, &operator))[0]
        };
        let (one, other) = (from(normal(&b, key.named("one"), [o])), from(normal(&b, key.named("other"), [o])));
        prop_assert!((one - other).abs() <= 2e-3 * one, "{one} and {other}, {p} → {q}");
    }

    #[test]
    fn a_convolution_is_its_matrix(
        seed: u64, h in 1_usize..5, w in 1_usize..5, c_in in 1_usize..4, c_out in 1_usize..4,
        kh in proptest::sample::select(&[1_usize, 3, 5][..]), kw in proptest::sample::select(&[1_usize, 3, 5][..]),
        p in orders(), q in orders(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let kernel = normal(&b, key, [c_out, kh, kw, c_in]);
        let operator = ConvOperator::new(&b, &kernel, Padding::same([kh, kw]), [h, w]).expect("a kernel");
        let (input, output) = (LinearOperator::<Cpu>::input_shape(&operator), LinearOperator::<Cpu>::output_shape(&operator));
        let (i, o) = (input.elements(), output.elements());
        let (_, _, values) = matrix_of(&b, &operator);
        let matrix = b.upload(&values, [o, i].into());
        let dense = DenseOperator::new(&b, &matrix).expect("a matrix");
        let (u, v) = (normal(&b, key.named("u"), output), normal(&b, key.named("v"), input));
        let flat = |x: &Tensor| b.reshape(x, [b.shape(x).elements()].into());
        let near = |x: &Tensor, y: &Tensor| {
            let apart = norm(&down(&b, &b.axpy(-1.0, &flat(x), flat(y))));
            prop_assert!(apart <= 1e-12 * (1.0 + norm(&down(&b, x))), "{apart:e}");
            Ok(())
        };
        near(&operator.apply(&b, &v), &dense.apply(&b, &flat(&v)))?;
        near(&operator.adjoint(&b, &u), &dense.adjoint(&b, &flat(&u)))?;
        // uᵀWv is linear in the kernel: its derivative pairs to it
        let gradient = operator.pair_gradient(&b, &u, &v);
        close(inner(&b, &gradient, &kernel), inner(&b, &u, &operator.apply(&b, &v)), 1e-12)?;
        prop_assert_eq!(&b.shape(&gradient)[..], &[c_out, kh, kw, c_in][..]);

        let norms = norms(&b, p, q);
        let of = |v: &Tensor, u: &Tensor, operator: &dyn LinearOperator<Cpu>| {
            let pair = DualPair::new(u.clone(), v.clone()).updated(&b, operator, &norms, PowerIteration::Iterations(5));
            (down(&b, &pair.sigma(&b, operator))[0], flat(&pair.v))
        };
        let (by_image, by_matrix) = (of(&v, &u, &operator), of(&flat(&v), &flat(&u), &dense));
        close(by_image.0, by_matrix.0, 1e-10)?;
        prop_assert!(by_image.0 <= by_matrix.0.max(i as f64 * o as f64 * norm(&values)));
    }

    /// With v held fixed, and, as the envelope theorem says, with v found anew.
    #[test]
    fn gradients_in_learned_orders(seed: u64, o in 1_usize..6, i in 1_usize..6, raw in (-2.0..2.0, -2.0..2.0), which in 0_usize..3) {
        let (b, key) = (cpu(), Key::new(seed));
        let w = normal(&b, key, [o, i]);
        let operator = DenseOperator::new(&b, &w).expect("a matrix");
        let at = |a: [f64; 2]| Norms {
            domain: if which == 1 { Norm::Two } else { learned(&b, a[0]) },
            codomain: if which == 2 { Norm::Two } else { learned(&b, a[1]) },
        };
        let (a, norms) = ([raw.0, raw.1], at([raw.0, raw.1]));
        let how = PowerIteration::Iterations(4000);
        let pair = DualPair::search(&b, &operator, &norms, PowerIteration::Iterations(30), 4, key).updated(&b, &operator, &norms, how);
        let sigma_gradient = 1.7;
        let found = pair.order_gradient(&b, &operator, &norms, &b.full(sigma_gradient, [1].into()));
        prop_assert!(found[0].is_some() == (which != 1) && found[1].is_some() == (which != 2));
        let product = operator.apply(&b, &pair.v);
        let fixed = |a: [f64; 2]| {
            let norms = at(a);
            down(&b, &norms.codomain.norm(&b, &product))[0] / down(&b, &norms.domain.norm(&b, &pair.v))[0]
        };
        let anew = |a: [f64; 2]| {
            let norms = at(a);
            down(&b, &pair.updated(&b, &operator, &norms, PowerIteration::Iterations(200)).sigma(&b, &operator))[0]
        };
        for (side, found) in found.iter().enumerate() {
            let Some(found) = found else { continue };
            let moved = |h: f64| { let mut a = a; a[side] += h; a };
            let slope = |f: &dyn Fn([f64; 2]) -> f64, h: f64| sigma_gradient * (f(moved(h)) - f(moved(-h))) / (2.0 * h);
            let found = down(&b, found)[0];
            close(found, slope(&fixed, 1e-5), 1e-8)?;
            close(found, slope(&anew, 1e-4), 1e-3)?;
        }
    }

    #[test]
    fn learned_orders(a in -30.0..30.0, step in 0.0..1.0) {
        let b = cpu();
        let (p, next) = (learned_exponent(a), learned_exponent(a + step));
        prop_assert!((1.00009..=4.99991).contains(&p) && next >= p - 1e-15);
        let norm = learned(&b, a);
        close(down(&b, &norm.order(&b))[0], p, 1e-14)?;
        let slope = down(&b, norm.slope().expect("learned"))[0];
        prop_assert!(slope > 0.0, "an order that was driven to its end can come back");
        let by_differences = (learned_exponent(a + 1e-5) - learned_exponent(a - 1e-5)) / 2e-5;
        // but where the order is clamped
        if (1.0002..4.9998).contains(&p) && a.abs() > 1e-3 {
            close(slope, by_differences, 1e-8)?;
        }
    }

    /// d^{|1/p − 1/2|} is what a contraction in the p-norm may cost in the 2-norm, and no less.
    #[test]
    fn two_norm_factors(seed: u64, d in 1_usize..20, p in orders()) {
        let b = cpu();
        let [x, y] = [1, 2].map(|k| down(&b, &normal(&b, Key::new(seed).split(k), [d])));
        let factor = two_norm_factor(p, d);
        let ratio = |x: &[f64], y: &[f64]| (norm(y) / norm(x)) / (p_norm(p, y) / p_norm(p, x));
        prop_assert!(ratio(&x, &y) <= factor * (1.0 + 1e-12));
        let (unit, ones): (Vec<f64>, Vec<f64>) = (0..d).map(|e| (f64::from(u8::from(e == 0)), 1.0)).unzip();
        close(ratio(&unit, &ones).max(ratio(&ones, &unit)), factor, 1e-12)?;
    }

    /// A chain is accepted exactly if every layer begins where the one before ended and the last ends where the first began.
    #[test]
    fn chains(digits in proptest::collection::vec(proptest::sample::select(&['1', '2', 'f'][..]), 2..8)) {
        let text: String = digits.iter().collect();
        let closes = digits.first() == digits.last();
        prop_assert_eq!(chain_from_digits(&text).is_ok(), closes);
        let parsed = text.parse::<NormChain>();
        prop_assert_eq!(parsed.is_ok(), closes);
        if let Ok(chain) = parsed {
            let layers = digits.len() - 1;
            prop_assert!(chain.check(layers, true).is_ok());
            let only_two = digits.iter().all(|&d| d == '2');
            prop_assert_eq!(chain == NormChain::Two, only_two);
            // the 2-norm fits any number of layers and any activation
            prop_assert_eq!(chain.check(layers + 1, true).is_ok(), only_two);
            prop_assert_eq!(chain.check(layers, false).is_ok(), only_two);
            prop_assert_eq!(chain.orders(layers).is_none(), only_two);
            let written = if only_two { "2" } else { &text };
            prop_assert_eq!(chain.to_string(), written);
            let json = serde_json::to_string(&chain).expect("serialises");
            prop_assert_eq!(serde_json::from_str::<NormChain>(&json).expect("reads back"), chain);
        }
        let mut pairs = learned_chain(layers_of(&digits));
        prop_assert!(check_chain(&pairs).is_ok());
        if pairs.len() > 1 {
            pairs[0].1 = Order::Two;
            prop_assert!(check_chain(&pairs).is_err());
        }
    }
}

fn layers_of(digits: &[char]) -> usize {
    digits.len() - 1
}

#[test]
fn other_texts_are_refused() {
    for text in ["", "1", "f", "3", "2 2", "22x", "Learned", "∞∞", &"2".repeat(66)] {
        let refused = text.parse::<NormChain>().expect_err(text).to_string();
        assert!(refused.chars().count() < 300, "{refused}");
    }
    assert_eq!("learned".parse::<NormChain>().expect("a chain"), NormChain::Learned);
    assert_eq!("2".repeat(65).parse::<NormChain>().expect("a chain"), NormChain::Two);
    for p in [0.0, 0.5, 1.00005, 20_000.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
        assert!(Order::fixed(p).is_err(), "{p}");
    }
    let b = cpu();
    let raw = b.full(0.0, [1].into());
    assert!(Norm::new(&b, Order::Learned(0), None).is_err() && Norm::new(&b, Order::Two, Some(&raw)).is_err());
    assert!(Norm::new(&b, Order::Learned(0), Some(&b.full(0.0, [2].into()))).is_err());
}

/// Each layer of "122f" keeps its bound, and the block is neither a contraction nor invertible.
#[test]
fn a_chain_that_does_not_close_bounds_nothing() {
    let b = cpu();
    let kappa = Coefficient::new(0.9).expect("in range");
    let layers = [
        (vec![1.0, 1.0], [1, 2], 1.0, 2.0),
        (vec![1.0], [1, 1], 2.0, 2.0),
        (vec![-1.0, -1.0], [2, 1], 2.0, f64::INFINITY),
    ];
    let effective: Vec<Vec<f64>> = layers
        .iter()
        .map(|(w, shape, p, q)| {
            let w = b.upload(w, (*shape).into());
            let sigma = search(&b, &w, &norms(&b, *p, *q), Key::new(0));
            assert!((sigma - 1.0).abs() < 1e-14, "{p} → {q}: {sigma}");
            let factor = kappa.factor(&b, &b.full(sigma, [1].into()));
            down(&b, &b.binary(resflow::backend::Binary::Mul, w, &factor))
        })
        .collect();
    // J = W₃W₂W₁
    let j: Vec<f64> = (0..4).map(|e| effective[2][e / 2] * effective[1][0] * effective[0][e % 2]).collect();
    assert!((spectral_norm(2, 2, &j) - 2.0 * 0.9_f64.powi(3)).abs() < 1e-12);
    let determinant = (1.0 + j[0]) * (1.0 + j[3]) - j[1] * j[2];
    assert!(determinant < -0.4, "{determinant}");
    let refused = chain_from_digits("122f").expect_err("it does not close").to_string();
    assert!(refused.contains("1-norm") && refused.contains("max norm"), "{refused}");
}
