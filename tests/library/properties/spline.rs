//! Of spline couplings and LU linear maps in particular: what every link promises, numbers outside the box, the start at
//! the identity, single precision, numbers that are not finite, factors against their matrix, and what is refused. Couplings
//! are held to differences by the library's own check, which knows of kinks: at knots the logarithm of the slope has one.
//! Seeds are fixed; no statistics.

use crate::common::asking::{value, with_log_det};
use crate::common::bijections::{check_bijection, draw};
use crate::common::*;
use nalgebra::DMatrix;
use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::Bijection;
use resflow::check;
use resflow::config::{Family, FlowConfig};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};
use resflow::layer::{Layer, LipschitzLinear, Sequence};
use resflow::module::Module as _;
use resflow::registry::Registry;
use resflow::spline::{SplineCoupling, Splines};
use resflow::transform::LuLinear;

const ROWS: usize = 4;

/// A random coupling through tanh, with random splines of its own.
fn random_coupling(b: &Cpu, d: usize, swapped: bool, splines: Splines, key: Key) -> SplineCoupling<Cpu> {
    let stays = if swapped { d / 2 } else { d - d / 2 };
    let layer = |inputs: usize, outputs: usize, spread: f64, key: Key| -> Box<dyn Layer<Cpu>> {
        let weight = b.affine(normal(b, key.named("w"), [outputs, inputs]), spread, 0.0);
        let bias = b.affine(normal(b, key.named("b"), [outputs]), spread, 0.0);
        Box::new(LipschitzLinear::free(b, weight, bias).expect("shapes that fit"))
    };
    let net = Sequence::new(vec![
        layer(stays, splines.hidden, 0.7, key.named("first")),
        activation(b, resflow::config::Nonlinearity::Tanh, key),
        layer(splines.hidden, (d - stays) * splines.parameters(), 1.0, key.named("last")),
    ]);
    let mut coupling = SplineCoupling::new(b, Box::new(net), d, swapped, splines).expect("shapes that fit");
    coupling.visit_mut("", &mut |name, t, _| {
        if name == "unconditional" {
            *t = b.affine(normal(b, key.named(name), b.shape(t)), 0.7, 0.0);
        }
    });
    coupling
}

/// An LU linear map with everything moved by noise.
fn random_linear(b: &Cpu, d: usize, spread: f64, key: Key) -> LuLinear<Cpu> {
    let mut draws = vec![0.0; d];
    Noise::Uniform.fill(key.named("order"), 0, &mut draws);
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&i, &j| f64::total_cmp(&draws[i], &draws[j]));
    let mut link = LuLinear::permuting(b, &order).expect("a permutation");
    link.visit_mut("", &mut |name, t, role| {
        if role.is_trained() {
            *t = b.affine(normal(b, key.named(name), b.shape(t)), spread, 0.0);
        }
    });
    link
}

#[test]
fn every_link() {
    let b = cpu();
    for seed in 0..12_u64 {
        let key = Key::new(seed);
        let (d, swapped, unconditional) = (2 + seed as usize % 4, seed % 2 == 1, seed % 3 > 0);
        let splines = Splines { bins: 2 + seed as usize % 7, bound: 2.5, hidden: 4, unconditional };
        let x = normal(&b, key.named("x"), [ROWS, d]);
        let coupling = random_coupling(&b, d, swapped, splines, key);
        let checked = check::check_bijection(&b, &coupling, &[d], key, &Registry::new());
        checked.unwrap_or_else(|failed| panic!("{seed}: {failed}"));
        check_bijection(&b, &random_linear(&b, d, 0.5, key), &x, key);
    }
    check_bijection(&b, &random_linear(&b, 1, 0.5, Key::new(0)), &normal(&b, Key::new(1), [ROWS, 1]), Key::new(2));
}

/// Outside of the box nothing moves, and what is not finite stays so; other rows do not notice.
#[test]
fn outside_is_the_identity() {
    let (b, key) = (cpu(), Key::new(5));
    let splines = Splines { bins: 5, bound: 1.5, hidden: 3, unconditional: true };
    let prepared = random_coupling(&b, 4, false, splines, key).prepare(&b);
    let rows: [[f64; 4]; 4] = [
        [2.0, -1.5, 1.5, -7e9],
        [f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY, 3.0],
        [f64::NAN, 0.1, 0.2, 0.3],
        [0.4, -0.3, 0.2, -0.1],
    ];
    let x = b.upload(&rows.concat(), [4, 4].into());
    let (y, log_det) = with_log_det(&b, &*prepared, &Batch::new(x.clone()), draw(key), 1);
    let (y, log_det) = (down(&b, &y), down(&b, &log_det.value));
    assert_eq!((&y[..4], log_det[0]), (&rows[0][..], 0.0));
    // the net makes NaN of infinities, which the last number, being outside, does not feel
    assert_eq!((&y[4..6], y[6], y[7]), (&rows[1][..2], f64::NEG_INFINITY, 3.0));
    assert!(y[8].is_nan() && log_det[3].is_finite() && y[12..].iter().all(|y| y.is_finite()));
    let alone = value(&b, &*prepared, &b.narrow(&x, 0, 3, 1));
    assert_eq!(down(&b, &alone), y[12..]);
    let back = prepared.inverse(&b, &Batch::new(x), &Inversion::for_backend::<Cpu>()).expect("no device fault");
    let statuses: Vec<_> = back.reports.iter().map(|r| r.status).collect();
    assert_eq!(statuses, [Status::Converged, Status::NonFinite, Status::NonFinite, Status::Converged]);
}

/// A fresh flow maps every number to itself, in its own place; a fresh coupling keeps rows as they are.
#[test]
fn a_fresh_flow_is_the_identity() {
    for (d, blocks, actnorm) in [(2, 10, false), (3, 1, false), (5, 4, false), (8, 3, false), (4, 2, true)] {
        let config = FlowConfig { blocks, hidden: vec![8], actnorm, ..FlowConfig::of(Family::Nsf, d) };
        let x = rows(50, d, Key::new(9));
        let off = |found: &[f64]| apart(found, x.values());
        let flow = Flow::new(cpu(), &config, Key::new(d as u64)).expect("a configuration");
        let encoded = flow.prepare().encode(&x, Key::new(0)).expect("rows that fit");
        assert!(off(encoded.latents.values()) < 1e-12, "{d}: {:e}", off(encoded.latents.values()));
        assert!(encoded.log_det.iter().all(|l| l.abs() < 1e-12), "{d}: {:?}", encoded.log_det);
        let single = NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread");
        let flow = Flow::new(single, &config, Key::new(d as u64)).expect("a configuration");
        let encoded = flow.prepare().encode(&x, Key::new(0)).expect("rows that fit");
        assert!(off(encoded.latents.values()) < 3e-5, "{d}: {:e}", off(encoded.latents.values()));
        assert!(encoded.log_det.iter().all(|l| l.abs() < 2e-4), "{d}: {:?}", encoded.log_det);
        // and yet numbers change places on the way
        let first = value(
            &cpu(),
            &*Flow::new(cpu(), &config, Key::new(1)).expect("valid").transforms()[usize::from(actnorm)].prepare(&cpu()),
            &cpu().upload(x.values(), [50, d].into()),
        );
        assert!(d < 5 || down(&cpu(), &first) != x.values(), "{d}: no permutation");
    }
}

/// Both ways in either precision, tails outside of the box included.
#[test]
fn there_and_back() {
    for seed in 0..12_u64 {
        let d = 2 + seed as usize % 5;
        let config = FlowConfig { blocks: 4, hidden: vec![16], ..FlowConfig::of(Family::Nsf, d) };
        let x = table(d, rows(60, d, Key::new(seed)).values().iter().map(|x| 2.0 * x).collect());
        let double = random_flow(&cpu(), &config, Key::new(seed), 0.2);
        let back = |z: &resflow::data::Table| double.prepare().decode(z, &Inversion::for_backend::<Cpu>());
        let z = double.prepare().encode(&x, Key::new(0)).expect("rows that fit").latents;
        let found = back(&z).expect("rows that fit");
        assert!(found.residual < 1e-11, "{seed}: {:e}", found.residual);
        let single = NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread");
        let single = double.to_backend(single).expect("no device fault");
        let prepared = single.prepare();
        let z = prepared.encode(&x, Key::new(0)).expect("rows that fit").latents;
        let found = prepared.decode(&z, &Inversion::for_backend::<NdArray<f32>>()).expect("rows that fit");
        assert!(found.residual < 1e-4, "{seed}: {:e}", found.residual);
        let scores = |values: Vec<f64>| values.into_iter().map(|v| v.max(-1e6)).collect::<Vec<_>>();
        let [want, got] = [
            scores(double.log_prob(&x, Key::new(0)).expect("rows that fit").values),
            scores(single.log_prob(&x, Key::new(0)).expect("rows that fit").values),
        ];
        for (want, got) in want.iter().zip(got) {
            assert!((want - got).abs() < 2e-3 * (1.0 + want.abs()), "{seed}: {want} and {got}");
        }
    }
}

/// log|det W| by the factors and W⁻¹ by solves, with pivots from their floor to large ones.
#[test]
fn factors_are_those_of_the_matrix() {
    let b = cpu();
    for seed in 0..20_u64 {
        let (key, d) = (Key::new(seed), 1 + seed as usize % 7);
        let spread = if seed % 2 == 0 { 0.3 } else { 1.5 };
        let link = random_linear(&b, d, spread, key);
        let prepared = link.prepare(&b);
        let unit: Vec<f64> = (0..(d + 1) * d).map(|e| f64::from(u8::from(e / d == e % d))).collect();
        let (y, log_det) = with_log_det(&b, &*prepared, &Batch::new(b.upload(&unit, [d + 1, d].into())), draw(key), 1);
        // the last row is that of zeros: the shift
        let y = down(&b, &y);
        let matrix = DMatrix::from_fn(d, d, |i, j| y[j * d + i] - y[d * d + i]);
        let expected = matrix.determinant().abs().ln();
        let found = down(&b, &log_det.value)[0];
        // the determinant of the differences is as good as their condition number lets it be
        let condition = matrix.norm() * matrix.clone().try_inverse().expect("invertible").norm();
        let tolerance = 1e-7 * (1.0 + expected.abs()) + 1e-13 * condition;
        assert!((found - expected).abs() < tolerance, "{seed}: {found} and {expected}, condition {condition:e}");
        let x = normal(&b, key.named("x"), [5, d]);
        let how = Inversion::for_backend::<Cpu>();
        let back = prepared.inverse(&b, &Batch::new(value(&b, &*prepared, &x)), &how).expect("no device fault");
        let norm = matrix.try_inverse().expect("invertible").norm();
        assert!((back.stretch - norm).abs() < 1e-6 * norm, "{seed}: {} and {norm}", back.stretch);
        let error = apart(&down(&b, &back.value), &down(&b, &x));
        assert!(error < 1e-14 * (10.0 + norm) * 1e3, "{seed}: off by {error:e}, norm {norm}");
    }
    let mut link = LuLinear::permuting(&b, &[1, 0]).expect("a permutation");
    link.visit_mut("", &mut |name, t, _| {
        if name == "lu" {
            *t = b.upload(&[-1e4, 0.0, 0.0, 1e4], [2, 2].into());
        }
    });
    let x = b.upload(&[3.0, 5.0], [1, 2].into());
    let (y, log_det) = with_log_det(&b, &*link.prepare(&b), &Batch::new(x), draw(Key::new(0)), 1);
    let near = |a: f64, b: f64| (a - b).abs() < 1e-4 * b.abs();
    let (y, log_det) = (down(&b, &y), down(&b, &log_det.value));
    assert!(near(y[0], 5e-3) && near(y[1], 3e4) && near(log_det[0], 10_f64.ln()), "{y:?}, {log_det:?}");
}

#[test]
fn what_is_refused() {
    let b = cpu();
    for permutation in [&[][..], &[1], &[0, 0], &[0, 2], &[0, 1, 3]] {
        let error = LuLinear::permuting(&b, permutation).expect_err("no permutation");
        assert!(error.to_string().contains("permutation"), "{error}");
    }
    let good = Splines { bins: 4, bound: 3.0, hidden: 8, unconditional: true };
    let coupling = |features: usize, outputs: usize, splines: Splines| {
        let net = Box::new(LipschitzLinear::zeros(&b, features - features / 2, outputs, None));
        SplineCoupling::new(&b, net, features, false, splines).map(|_| ()).map_err(|e| e.to_string())
    };
    assert!(coupling(5, 22, good).is_ok());
    assert!(coupling(1, 11, good).expect_err("one feature").contains("no two"));
    assert!(coupling(5, 24, good).expect_err("too many").contains("2 times 11, the parameters of 4 bins"));
    for (wrong, name) in [
        (Splines { bins: 0, ..good }, "bins"),
        (Splines { bins: usize::MAX, ..good }, "bins"),
        (Splines { bound: f64::NAN, ..good }, "bound"),
        (Splines { bound: -1.0, ..good }, "bound"),
        (Splines { hidden: 0, ..good }, "hidden"),
    ] {
        assert!(coupling(5, 22, wrong).expect_err(name).contains(name));
    }
    let links: [&dyn Bijection<Cpu>; 2] =
        [&random_linear(&b, 3, 0.1, Key::new(0)), &random_coupling(&b, 3, false, good, Key::new(0))];
    for link in links {
        for row in [&[2][..], &[4], &[1, 1, 3], &[]] {
            assert!(link.output_shape(row).is_err(), "{row:?}");
        }
    }
}
