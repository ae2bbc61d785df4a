//! Of couplings and invertible linear maps in particular, besides what every link promises (`block.rs`,
//! `image_links.rs`): what stays and what moves, shapes without two sides, the ends of the scale, tiles; the log det
//! of a matrix by its factors, rotations, singular starts. Random cases, no statistics.

use crate::common::asking::{count_grads, pull_back, train, value, with_log_det};
use crate::common::bijections::draw;
use crate::common::*;
use nalgebra::DMatrix;
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, CloneBijection as _, Memory};
use resflow::config::Nonlinearity;
use resflow::coupling::{Coupling, Mask};
use resflow::invert::{Inversion, Status};
use resflow::layer::{Layer, LipschitzLinear};
use resflow::transform::InvertibleLinear;

proptest! {
    #![proptest_config(cases(60))]

    /// What the mask says stays is untouched, to the bit, and each side has what the other leaves.
    #[test]
    fn one_side_stays(seed: u64, h in 1_usize..5, w in 1_usize..5, c in 1_usize..6, flat: bool) {
        let (b, key) = (cpu(), Key::new(seed));
        let row = if flat { vec![c] } else { vec![h, w, c] };
        let x = normal(&b, key.named("x"), &[&[2], &row[..]].concat()[..]);
        let sides = masks(&row);
        let pixels = if flat { 1 } else { h * w };
        prop_assert_eq!(sides.len(), 2 * usize::from(c > 1) + 2 * usize::from(pixels > 1));
        for mask in sides {
            let link = coupling(&b, &row, mask, 3, Nonlinearity::Tanh, key);
            let y = down(&b, &value(&b, &*link.prepare(&b), &x));
            for (e, (x, y)) in down(&b, &x).into_iter().zip(y).enumerate() {
                let (pixel, channel) = (e % (pixels * c) / c, e % c);
                let stays = match mask {
                    Mask::Channels { swapped } => (channel < c - c / 2) != swapped,
                    Mask::Checkerboard { swapped } => ((pixel / w + pixel % w) % 2 == 0) != swapped,
                };
                prop_assert_eq!(x == y, stays, "{:?} at {}", mask, e);
            }
        }
    }

    /// In single precision the way back is as good as the scale allows.
    #[test]
    fn single_precision(seed: u64, d in 2_usize..8, swapped: bool) {
        let (double, key) = (cpu(), Key::new(seed));
        let b = NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread");
        let c = [d / 2, d - d / 2][usize::from(swapped)];
        let numbers = |name: &str, n: usize| down(&double, &normal(&double, key.named(name), [n]));
        // weights that keep the scale above a hundredth or so: its inverse is what rounding grows by
        let small = |v: Vec<f64>| v.into_iter().map(|v| 0.4 * v).collect::<Vec<_>>();
        let upload = |v: Vec<f64>, shape: &[usize]| {
            b.upload(&v.into_iter().map(|v| v as f32).collect::<Vec<_>>(), shape.into())
        };
        let weight = upload(small(numbers("w", 2 * c * (d - c))), &[2 * c, d - c]);
        let layer = LipschitzLinear::free(&b, weight, upload(small(numbers("b", 2 * c)), &[2 * c])).expect("shapes that fit");
        let link = Coupling::new(Box::new(layer), Mask::Channels { swapped }, &[d]).expect("two sides");
        let x = upload(numbers("x", 5 * d), &[5, d]);
        let prepared = link.prepare(&b);
        let y = value(&b, &*prepared, &x);
        let back = prepared.inverse(&b, &Batch::new(y), &Inversion::for_backend::<NdArray<f32>>()).expect("no device fault");
        let get = |t: &<NdArray<f32> as Backend>::Tensor| b.download(t).expect("no device fault");
        for (x, found) in get(&x).into_iter().zip(get(&back.value)) {
            prop_assert!((x - found).abs() < 1e-3 * (1.0 + x.abs()), "{x} and {found}");
        }
    }

    /// log|det W| by the factors, W from any start; and back.
    #[test]
    fn factors_are_those_of_the_matrix(seed: u64, n in 1_usize..9) {
        let (b, key) = (cpu(), Key::new(seed));
        let matrix = down(&b, &normal(&b, key, [n, n]));
        let determinant = DMatrix::from_row_slice(n, n, &matrix).determinant();
        prop_assume!(determinant.abs() > 1e-3);
        let link = InvertibleLinear::from_matrix(&b, n, &matrix).expect("regular");
        let x = normal(&b, key.named("x"), [3, 2, 2, n]);
        let (y, log_det) = with_log_det(&b, &*link.prepare(&b), &Batch::new(x.clone()), draw(key), 1);
        for value in down(&b, &log_det.value) {
            prop_assert!((value - 4.0 * determinant.abs().ln()).abs() < 1e-10 * (1.0 + value.abs()));
        }
        for (x, y) in down(&b, &x).chunks(n).zip(down(&b, &y).chunks(n)) {
            for (row, y) in matrix.chunks(n).zip(y) {
                prop_assert!((dot(row, x) - y).abs() < 1e-11 * (1.0 + norm(x) * norm(row)));
            }
        }
        // a row that is twice the last one, which elimination finds exactly, or zero
        let mut singular = matrix.clone();
        let twice: Vec<f64> = (0..n).map(|j| if n == 1 { 0.0 } else { 2.0 * matrix[(n - 1) * n + j] }).collect();
        singular[..n].copy_from_slice(&twice);
        let refused = InvertibleLinear::from_matrix(&b, n, &singular).expect_err("singular").to_string();
        prop_assert!(refused.contains("singular matrix"), "{}", refused);
    }

    /// A rotation keeps lengths and volumes, and is a function of its key.
    #[test]
    fn rotations_keep_lengths(seed: u64, n in 1_usize..40) {
        let (b, key) = (cpu(), Key::new(seed));
        let rotation = |key| InvertibleLinear::rotation(&b, n, key).expect("regular").prepare(&b);
        let x = normal(&b, key.named("x"), [4, n]);
        let (y, log_det) = with_log_det(&b, &*rotation(key), &Batch::new(x.clone()), draw(key), 1);
        prop_assert!(down(&b, &log_det.value)[0].abs() < 1e-12 * n as f64);
        let (y, x) = (down(&b, &y), down(&b, &x));
        for (x, y) in x.chunks(n).zip(y.chunks(n)) {
            prop_assert!((norm(x) - norm(y)).abs() < 1e-12 * norm(x));
        }
        let map = |key| down(&b, &value(&b, &*rotation(key), &b.upload(&x, [4, n].into())));
        prop_assert_eq!(map(key), y.clone());
        prop_assert!(n < 3 || map(key.named("other")) != y);
    }
}

#[test]
fn what_cannot_be() {
    let b = cpu();
    for n in [0, 2] {
        assert!(InvertibleLinear::from_matrix(&b, n, &[1.0]).is_err());
    }
    for entry in [f64::NAN, f64::INFINITY, 0.0] {
        assert!(InvertibleLinear::from_matrix(&b, 1, &[entry]).is_err(), "{entry}");
    }
    for (row, swapped) in [(&[1][..], true), (&[3, 3, 1], false), (&[], false), (&[0], true)] {
        assert!(Mask::Channels { swapped }.net_shapes(row).is_err(), "{row:?}");
    }
    for row in [&[1, 1, 4][..], &[4], &[0, 5, 1], &[]] {
        assert!(Mask::Checkerboard { swapped: true }.net_shapes(row).is_err(), "{row:?}");
    }
    // a net of another width, and one whose output is not s and t
    let mask = Mask::Channels { swapped: false };
    for (inputs, outputs) in [(3, 4), (2, 2), (2, 3)] {
        let layer = LipschitzLinear::zeros(&b, inputs, outputs, None);
        assert!(Coupling::new(Box::new(layer), mask, &[4]).is_err(), "{inputs} → {outputs}");
    }
    let free = LipschitzLinear::zeros(&b, 2, 4, None);
    assert!(free.lipschitz_bound() == f64::INFINITY, "nothing is promised of it");
    let link = Coupling::new(Box::new(free), mask, &[4]).expect("shapes that fit");
    let image = coupling(&b, &[2, 3, 1], Mask::Checkerboard { swapped: true }, 2, Nonlinearity::Elu, Key::new(0));
    for wrong in [&[5][..], &[2, 2, 4], &[]] {
        assert!(link.output_shape(wrong).is_err() && link.boxed_clone().resize(&b, wrong).is_err(), "{wrong:?}");
        assert!(image.boxed_clone().resize(&b, wrong).is_err(), "{wrong:?}");
    }
    assert!(image.boxed_clone().resize(&b, &[1, 1, 1]).is_err(), "one pixel has no two sides");
    let mut resized = image.boxed_clone();
    assert_eq!(resized.resize(&b, &[5, 4, 1]).expect("any size"), [5, 4, 1]);
    assert!(resized.output_shape(&[5, 4, 1]).is_ok() && resized.output_shape(&[2, 3, 1]).is_err());
}

/// ln σ and 1/σ keep their precision where σ is 1 and where it is next to nothing; what overflows is a status.
#[test]
fn the_ends_of_the_scale() {
    let b = cpu();
    let link = |s: f64| {
        let bias = b.upload(&[s, 0.25], [2].into());
        let layer = LipschitzLinear::free(&b, b.full(0.0, [2, 1].into()), bias).expect("shapes that fit");
        Coupling::new(Box::new(layer), Mask::Channels { swapped: false }, &[2]).expect("two sides").prepare(&b)
    };
    let x = b.upload(&[0.5, -1.5], [1, 2].into());
    for s in [-700.0, -90.0, -2.0, 0.0, 30.0, 300.0] {
        let (y, log_det) = with_log_det(&b, &*link(s), &Batch::new(x.clone()), draw(Key::new(0)), 1);
        let expected = -(-(s + 2.0_f64)).exp().ln_1p();
        let value = down(&b, &log_det.value)[0];
        let expected = if s < -600.0 { s + 2.0 } else { expected };
        assert!((value - expected).abs() <= 1e-14 * expected.abs(), "s = {s}: {value:e} and {expected:e}");
        assert!((down(&b, &y)[1] - (0.25 - 1.5 * expected.exp())).abs() < 1e-15);
    }
    let back = link(-1000.0).inverse(&b, &Batch::new(x), &Inversion::for_backend::<Cpu>()).expect("no device fault");
    assert_eq!(back.reports[0].status, Status::NonFinite);
}

/// Wide images go through in runs of rows: the same numbers as row by row.
#[test]
fn tiles_do_not_change_a_row() {
    let (b, key, row, n) = (cpu(), Key::new(3), [24, 24, 2], 4);
    let link = coupling(&b, &row, Mask::Checkerboard { swapped: true }, 96, Nonlinearity::Elu, key);
    assert!(b.tile_rows(6 * 24 * 24 * 96 * 8) < n, "the rows go through in one run: take a wider net");
    let shape = |n: usize| [n, row[0], row[1], row[2]];
    let (x, gy) = (normal(&b, key.named("x"), shape(n)), normal(&b, key.named("gy"), shape(n)));
    let weights = normal(&b, key.named("weights"), [n, 1]);
    let prepared = link.prepare(&b);
    let outcome = |from: usize, to: usize| {
        let part = |t: &Tensor| b.narrow(t, 0, from, to - from);
        let batch = Batch::new(part(&x));
        let (y, log_det) = with_log_det(&b, &*prepared, &batch, draw(key), 1);
        let back =
            prepared.inverse(&b, &Batch::new(y.clone()), &Inversion::for_backend::<Cpu>()).expect("no device fault");
        assert_eq!(back.reports.len(), to - from);
        let mut grads = vec![None; count_grads(&link)];
        let forward = train(&b, &*prepared, &batch, draw(key), Memory::Recompute);
        let gx = pull_back(&b, &*prepared, forward.tape, part(&gy), &part(&weights), &mut grads);
        let rows = [&y, &log_det.value, &back.value, &forward.y, &gx].map(|t| down(&b, t));
        (rows, grads.into_iter().flat_map(|g| down(&b, &g.expect("filled"))).collect::<Vec<_>>())
    };
    let (together, sums) = outcome(0, n);
    let parts: Vec<_> = (0..n).map(|i| outcome(i, i + 1)).collect();
    let near = |a: &[f64], b: &[f64]| {
        let apart = norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
        assert!(a.len() == b.len() && apart <= 1e-12 * (1.0 + norm(a)), "{apart:e}");
    };
    for (kind, all) in together.iter().enumerate() {
        near(all, &parts.iter().flat_map(|(rows, _)| rows[kind].clone()).collect::<Vec<_>>());
    }
    let total = (0..sums.len()).map(|e| parts.iter().map(|(_, sums)| sums[e]).sum::<f64>()).collect::<Vec<_>>();
    near(&sums, &total);
}
