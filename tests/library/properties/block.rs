//! Every bijection (shape, inverse, Jacobian, gradients), and of the residual block in particular: its log det against
//! nalgebra, its backward pass against Taylor's theorem, its inverse by every method, the bound on the error of the
//! inverse, and the rate of contraction against the product of the singular values of the normalised weights. Random
//! cases, no statistics.

use crate::common::asking::{value, with_log_det};
use crate::common::bijections::{check_bijection, draw};
use crate::common::*;
use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, CloneBijection as _};
use resflow::block::ResidualBlock;
use resflow::config::Nonlinearity;
use resflow::invert::{Inversion, Method, Status, invert_residual};
use resflow::layer::{Derivatives, Layer, LipschitzLinear};
use resflow::lipschitz::Coefficient;
use resflow::module::Module as _;
use resflow::transform::ActNorm;

const ROWS: usize = 5;
fn methods() -> impl Strategy<Value = Method> {
    prop_oneof![Just(Method::FixedPoint), (1_usize..=5).prop_map(Method::Anderson)]
}

fn converged(net: Net) -> Net {
    Net { iterations: None, ..net }
}

/// κ/max(κ, σ) times the singular value of each linear layer of a block, multiplied: computed here from u, v and SVD.
fn product_of_norms(b: &Cpu, net: &Net) -> f64 {
    let mut tensors = Vec::new();
    net.sequence(b).visit("", &mut |name, t, _| tensors.push((name.to_owned(), b.shape(t), down(b, t))));
    let mut product = 1.0;
    for (i, (name, shape, w)) in tensors.iter().enumerate() {
        if name.ends_with(".weight") {
            let (u, v) = (&tensors[i + 2].2, &tensors[i + 3].2);
            let sigma: f64 = u.iter().zip(w.chunks_exact(shape[1])).map(|(u, row)| u * dot(row, v)).sum();
            product *= spectral_norm(shape[0], shape[1], w) * net.kappa / net.kappa.max(sigma);
        }
    }
    product
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn every_bijection(net in nets(1..=6, &SMOOTH, true), shift in -2.0..2.0) {
        let (b, d) = (cpu(), net.dimension());
        let net = converged(net);
        let s = b.affine(normal(&b, net.key().named("s"), [d]), 0.7, 0.0);
        let shift = b.affine(normal(&b, net.key().named("shift"), [d]), 1.0, shift);
        let actnorm = ActNorm::from_parts(&b, s, shift).expect("shapes that fit");
        let couplings = masks(&[d]).into_iter().map(|mask| {
            Box::new(coupling(&b, &[d], mask, net.widths[1], net.activation, net.key())) as Box<dyn Bijection<Cpu>>
        });
        let mut links: Vec<Box<dyn Bijection<Cpu>>> = couplings.collect();
        links.extend([net.block(&b).boxed_clone(), actnorm.boxed_clone(), invertible(&b, d, net.key()).boxed_clone()]);
        for link in &links {
            let link = &**link;
            assert!(link.output_shape(&[d]).is_ok() && link.output_shape(&[d + 1]).is_err() && link.output_shape(&[]).is_err());
            check_bijection(&b, link, &normal(&b, net.key().named("x"), [ROWS, d]), net.key());
        }
    }

    #[test]
    fn log_det_is_positive_and_that_of_the_jacobian(net in nets(1..=8, &Nonlinearity::ALL, true)) {
        let (b, d) = (cpu(), net.dimension());
        let net = converged(net);
        let x = normal(&b, net.key().named("x"), [ROWS, d]);
        let prepared = net.sequence(&b).prepare(&b);
        let (_, saved) = prepared.forward(&b, &Batch::new(x.clone()), Derivatives::First);
        let columns: Vec<_> = (0..d).map(|j| {
            let unit: Vec<f64> = (0..ROWS * d).map(|e| f64::from(u8::from(e % d == j))).collect();
            down(&b, &prepared.jvp(&b, &saved, &b.upload(&unit, [ROWS, d].into())).0)
        }).collect();
        let (_, log_det) = with_log_det(&b, &*net.block(&b).prepare(&b), &Batch::new(x), draw(Key::new(1)), 1);
        for (r, value) in down(&b, &log_det.value).into_iter().enumerate() {
            let jacobian: Vec<f64> =
                (0..d * d).map(|e| columns[e % d][r * d + e / d] + f64::from(u8::from(e % (d + 1) == 0))).collect();
            let expected = crate::common::log_det(d, &jacobian);
            prop_assert!((value - expected).abs() < 1e-11, "{value} and {expected}");
        }
    }

    #[test]
    fn round_trip(net in nets(1..=8, &Nonlinearity::ALL, true), method in methods(), spread in 0.1..30.0) {
        let b = cpu();
        let net = converged(net);
        let x = b.affine(normal(&b, net.key().named("x"), [20, net.dimension()]), spread, 0.0);
        let block = net.block(&b).prepare(&b);
        let y = value(&b, &*block, &x);
        let how = Inversion::for_backend::<Cpu>().with_method(method).expect("a method");
        let back = block.inverse(&b, &Batch::new(y.clone()), &how).expect("no device fault");
        let (x, y, found) = (down(&b, &x), down(&b, &y), down(&b, &back.value));
        let again = down(&b, &value(&b, &*block, &back.value));
        let d = net.dimension();
        for (r, report) in back.reports.iter().enumerate() {
            let row = r * d..(r + 1) * d;
            let away = |a: &[f64], b: &[f64]| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
            let scale = y[row.clone()].iter().fold(1.0_f64, |a, y| a.max(y.abs()));
            prop_assert_eq!(report.status, Status::Converged);
            prop_assert!(report.residual <= how.accuracy());
            let error = away(&found[row.clone()], &x[row.clone()]);
            prop_assert!(error <= 1e-10 * scale, "off by {error:e}");
            prop_assert!(error <= report.error_bound + 1e-13 * scale, "off by {error:e}, bound {:e}", report.error_bound);
            prop_assert!(away(&again[row.clone()], &y[row]) <= 2.0 * how.accuracy() * scale * (d as f64).sqrt());
        }
    }

    /// Stopped anywhere, the answer lies within its bound, and a row not at the accuracy says so.
    #[test]
    fn early_stops_are_within_their_bound(
        net in nets(1..=8, &Nonlinearity::ALL, true), method in methods(), limit in 1_u32..12,
    ) {
        let b = cpu();
        let net = converged(net);
        let x = b.affine(normal(&b, net.key().named("x"), [10, net.dimension()]), 3.0, 0.0);
        let block = net.block(&b).prepare(&b);
        let y = value(&b, &*block, &x);
        let how = Inversion::for_backend::<Cpu>().with_method(method).and_then(|h| h.with_limit(limit)).expect("checked");
        let back = block.inverse(&b, &Batch::new(y.clone()), &how).expect("no device fault");
        let (x, found) = (down(&b, &x), down(&b, &back.value));
        for ((report, x), found) in back.reports.iter().zip(x.chunks(net.dimension())).zip(found.chunks(net.dimension())) {
            let error = norm(&x.iter().zip(found).map(|(a, b)| a - b).collect::<Vec<_>>());
            prop_assert!(error <= report.error_bound + 1e-12, "off by {error:e}, bound {:e}", report.error_bound);
            prop_assert!(report.iterations <= limit);
            let expected = if report.residual <= how.accuracy() { Status::Converged } else { Status::NotConverged };
            prop_assert!(report.status == expected || report.status == Status::FloatFloor, "{:?}", report);
        }
    }

    /// In single precision too: what has converged is within the accuracy in the norm of its bound, and no bound is 0.
    #[test]
    fn single_precision_is_within_its_bound(seed: u64, d in 1_usize..70, spread in -2.0..2.0_f64, method in methods()) {
        let b = NdArray::<f32>::new();
        let (key, c) = (Key::new(seed), Coefficient::new(0.9).expect("in range"));
        let layer = LipschitzLinear::initialise(&b, d, d, c, key);
        let y = b.affine(b.noise(key.named("y"), Noise::Normal, 0, [5, d].into()), 10_f64.powf(spread), 0.0);
        let weight: Vec<f64> = b.download(&layer.normalised_weight(&b)).expect("no fault").iter().map(|w| f64::from(*w)).collect();
        let mut bias = vec![0.0; d];
        layer.visit("", &mut |name, t, _| {
            if name == "bias" {
                bias = b.download(t).expect("no fault").iter().map(|x| f64::from(*x)).collect();
            }
        });
        let how = Inversion::for_backend::<NdArray<f32>>().with_method(method).expect("checked");
        let block = ResidualBlock::new(Box::new(layer), &[d]).expect("a contraction").prepare(&b);
        let solved = block.inverse(&b, &Batch::new(y.clone()), &how).expect("no device fault");
        let [found, y] = [&solved.value, &y].map(|x| {
            b.download(x).expect("no fault").iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
        });
        let matrix = DMatrix::from_row_slice(d, d, &weight) + DMatrix::identity(d, d);
        let lu = matrix.clone().lu();
        for ((report, x), y) in solved.reports.iter().zip(found.chunks(d)).zip(y.chunks(d)) {
            let y = DVector::from_column_slice(y) - DVector::from_column_slice(&bias);
            let exact = lu.solve(&y).expect("invertible");
            let x = DVector::from_column_slice(x);
            let (error, scale) = ((&x - &exact).norm(), (&y + DVector::from_column_slice(&bias)).norm().max(1.0));
            prop_assert!(report.error_bound > 0.0 && error <= report.error_bound, "{error:e} for {report:?}");
            let left = (&matrix * &x - &y).norm();
            let rounding = 4.0 * f64::from(f32::EPSILON) * scale;
            prop_assert!(report.status != Status::Converged || left <= how.accuracy() * scale + rounding, "{left:e}: {report:?}");
        }
    }

    #[test]
    fn the_fixed_point_contracts_as_the_weights_say(net in nets(1..=8, &Nonlinearity::ALL, true)) {
        let b = cpu();
        let net = converged(net);
        let rate = product_of_norms(&b, &net);
        prop_assert!(rate <= net.block(&b).lipschitz_bound().expect("a block") * (1.0 + 1e-3), "{rate}");
        let y = b.affine(normal(&b, net.key().named("y"), [1, net.dimension()]), 2.0, 0.0);
        let prepared = net.sequence(&b).prepare(&b);
        let residual = |x: &Tensor| {
            let step = b.axpy(-1.0, &prepared.forward(&b, &Batch::new(x.clone()), Derivatives::None).0, y.clone());
            (norm(&down(&b, &b.axpy(-1.0, x, step.clone()))), step)
        };
        let (mut last, mut x) = residual(&y);
        let scale = 1e-15 * (1.0 + norm(&down(&b, &y)));
        for _ in 0..40 {
            let (size, next) = residual(&x);
            prop_assert!(size <= rate * last * (1.0 + 1e-12) + 10.0 * scale, "{size:e} after {last:e}, rate {rate}");
            (last, x) = (size, next);
        }
        // the library's iteration is that one
        let how = Inversion::for_backend::<Cpu>().with_method(Method::FixedPoint).and_then(|h| h.with_limit(9));
        let report = net.block(&b).prepare(&b).inverse(&b, &Batch::new(y.clone()), &how.expect("checked")).expect("no device fault").reports[0];
        let first = residual(&y).0;
        prop_assert!(report.error_bound * (1.0 - net.block(&b).lipschitz_bound().expect("a block"))
            <= rate.powi(i32::try_from(report.iterations).expect("few") - 1) * first * (1.0 + 1e-9) + 10.0 * scale);
    }

    /// A row's answer does not depend on the rows beside it: bitwise, for a g that treats rows alike.
    #[test]
    fn rows_do_not_wait_for_or_change_each_other(seed: u64, n in 1_usize..9, method in methods()) {
        let (b, d) = (cpu(), 3);
        let how = Inversion::for_backend::<Cpu>().with_method(method).expect("checked");
        // rows of very different size need very different numbers of iterations
        let y: Vec<f64> = down(&b, &normal(&b, Key::new(seed), [n, d])).iter().enumerate()
            .map(|(e, y)| y * 10_f64.powi((e / d) as i32 % 5 - 3)).collect();
        let slope = 0.9;
        let g = |x: &Batch<Cpu>| b.affine(b.unary(resflow::backend::Unary::Sin, x.x.clone()), slope, 0.0);
        let solve = |y: &[f64]| {
            let y = Batch::new(b.upload(y, [y.len() / d, d].into()));
            let solution = invert_residual(&b, g, &y, slope, &how).expect("no device fault");
            (down(&b, &solution.value), solution.reports)
        };
        let (together, reports) = solve(&y);
        for (r, row) in y.chunks(d).enumerate() {
            let (alone, report) = solve(row);
            prop_assert_eq!(&together[r * d..(r + 1) * d], &alone[..]);
            prop_assert_eq!(reports[r], report[0]);
        }
    }
}
