//! Products on tiles against double precision and against those in single precision. Where nothing multiplies bf16 nothing is tested.

use resflow_backend::{Backend as _, Key, Noise, Products};

use super::kernel::{Place, product};
use super::pack::{BLOCK, Line, SIDE, Source, block_lines, depths, pack};
use super::unit::{Multiplier, Pairs};
use super::{Link, are_available, chain, multiply};
use crate::matmul::{Operands, Start, transpose};
use crate::{NdArray, Tensor};

/// All products, with the largest error that rounding their parts allows, of Σ|terms|: of a number in N parts
/// at most 2⁻⁸ᴺ⁻¹ is lost, of the products of parts at most 2⁻¹⁶ with two and 2⁻²³ with three; six in f32 have its rounding too.
const ALL: [(Products, f64); 3] = [(Products::Bf16x6, 5e-7), (Products::Bf16x3, 3.1e-5), (Products::Bf16, 8e-3)];

/// Whether there is something to test; says so if not.
fn is_tested() -> bool {
    if !are_available() {
        eprintln!("SKIPPED, NOT TESTED: this processor multiplies no bf16");
    }
    are_available()
}

fn draw(key: u64, shape: [usize; 2]) -> Vec<f32> {
    let x: Tensor<f32> = NdArray::<f32>::inline().noise(Key::new(key), Noise::Normal, 0, shape.into());
    x.as_slice().to_vec()
}

fn turned(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut y = x.to_vec();
    transpose(x, rows, columns, &mut y);
    y
}

/// A product in double precision, and Σ|terms|.
fn exact(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Vec<(f64, f64)> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j]));
            out.push(terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs())));
        }
    }
    out
}

#[test]
fn products_of_odd_sizes() {
    if !is_tested() {
        return;
    }
    let mut done = 0;
    let sizes = (1..=70).filter(|n| n % 16 < 3 || *n == 43);
    for (products, bound) in ALL {
        for (m, n) in sizes.clone().flat_map(|m| sizes.clone().map(move |n| (m, n))) {
            for k in [1, 9, 16, 31, 43, 64, 70] {
                let (a, b, bias) = (draw(1, [m, k]), draw(2, [k, n]), draw(3, [1, n]));
                let want = exact(&a, &b, [m, k, n]);
                let (stored_a, stored_b) = (turned(&a, m, k), turned(&b, k, n));
                let transposes = (m + n + k) % 4;
                let (transpose_a, transpose_b) = (transposes & 1 == 1, transposes & 2 == 2);
                let o = Operands {
                    a: if transpose_a { &stored_a } else { &a },
                    transpose_a,
                    b: if transpose_b { &stored_b } else { &b },
                    transpose_b,
                    m,
                    k,
                    n,
                    packed: None,
                };
                for (start, name) in [(Start::Zero, "zero"), (Start::Output, "output"), (Start::Bias(&bias), "bias")] {
                    let mut out = vec![if name == "output" { 0.5 } else { f32::NAN }; m * n];
                    if !multiply(products, &o, start, &mut out) {
                        assert!(m * n * k < 1 << 17 || m.min(n).min(k) < 16, "{m}×{k}×{n} not on tiles");
                        continue;
                    }
                    done += 1;
                    for (index, (&out, (sum, size))) in out.iter().zip(&want).enumerate() {
                        let added = match name {
                            "zero" => 0.0,
                            "output" => 0.5,
                            _ => f64::from(bias[index % n]),
                        };
                        let (error, allowed) =
                            ((f64::from(out) - sum - added).abs(), bound * size + 1e-6 * added.abs());
                        assert!(
                            error <= allowed,
                            "{products} {m}×{k}×{n} {name} {transposes}, {index}: {error:e}, {allowed:e}"
                        );
                    }
                }
            }
        }
    }
    assert!(done > 1000, "{done} products on tiles");
}

/// What has no bf16 near it is left to single precision, bit for bit; small numbers lose what is flushed.
#[test]
fn numbers_at_the_edges() {
    if !is_tested() {
        return;
    }
    let cpu = NdArray::<f32>::inline();
    let payloads = [0x7f80_0001, 0x7fc0_0000, 0x7fff_8000, 0x7fff_ffff, 0xffff_ffff].map(f32::from_bits);
    let special = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 3.3965e38].into_iter().chain(payloads);
    let small = [1e-38, -1e-38, 1e-40, f32::MIN_POSITIVE, f32::from_bits(1), -0.0, 1e38];
    let shape = [40, 48];
    for (products, bound) in ALL {
        let tiles = cpu.with_products(products).expect("found above");
        for (number, is_special) in special.clone().map(|x| (x, true)).chain(small.map(|x| (x, false))) {
            for (in_a, place) in [(true, 3), (true, 1919), (false, 700), (false, 2303)] {
                let (mut a, mut b) = (draw(1, shape), draw(2, [48, 48]));
                let operand = if in_a { &mut a } else { &mut b };
                operand[place] = number;
                let (a, b) = (cpu.upload(&a, shape.into()), cpu.upload(&b, [48, 48].into()));
                let (got, want) = (tiles.matmul(&a, false, &b, false), cpu.matmul(&a, false, &b, false));
                let sizes = exact(a.as_slice(), b.as_slice(), [40, 48, 48]);
                for ((&got, &want), (_, size)) in got.as_slice().iter().zip(want.as_slice()).zip(sizes) {
                    if is_special {
                        assert_eq!(got.to_bits(), want.to_bits(), "{products} {number:e}");
                    } else {
                        let error = (f64::from(got) - f64::from(want)).abs();
                        assert!(error <= bound * size + 1e-30, "{products} {number:e}: {got:e}, not {want:e}");
                    }
                }
            }
        }
    }
}

/// Pairs against double precision, and against a matrix unit where there is one: the same products, added up in other orders.
#[test]
fn both_kinds() {
    fn compare<const PARTS: usize>(found: Pairs, (products, bound): (Products, f64)) {
        let (rows, columns, terms) = (BLOCK, 48, 70);
        let (a, b) = (draw(1, [rows, terms]), draw(2, [terms, columns]));
        let packed = |data: &[f32], stride, by_terms, left, starts| {
            let outer = if left { rows } else { columns };
            let source = Source { data, stride, outer, inner: terms, by_terms, factors: None };
            let mut lines = vec![Line::ZERO; block_lines(terms, PARTS)];
            assert!(pack::<PARTS>(&source, left, starts, &mut lines));
            lines
        };
        let left = packed(&a, terms, true, true, [0, SIDE]);
        let sizes = exact(&a, &b, [rows, terms, columns]);
        let places = [(2, [0, SIDE], false), (2, [SIDE, 2 * SIDE], true), (1, [SIDE; 2], true), (2, [0, 1], false)];
        for (tiles, starts, accumulate) in places {
            let right = packed(&b, columns, false, false, starts);
            let place = Place { stride: columns, columns: starts, tiles, accumulate };
            let [pairs, used] = [Multiplier::Pairs(found), Multiplier::enter()].map(|by| {
                let mut out = vec![0.25; rows * columns];
                product::<PARTS>(&by, &left, &right, depths(terms), &mut out, place);
                out
            });
            for (index, ((&pairs, used), (sum, size))) in pairs.iter().zip(used).zip(&sizes).enumerate() {
                let at = index % columns;
                let written = starts[..tiles].iter().any(|&start| (start..start + SIDE).contains(&at));
                let before = if accumulate || !written { 0.25 } else { 0.0 };
                let want = if written { sum + before } else { before };
                assert!(f64::from(pairs - used).abs() <= 1e-6 * size, "{products}, {index}: {pairs} and {used}");
                assert!((f64::from(pairs) - want).abs() <= bound * size, "{products}, {index}: {pairs}, not {want}");
            }
        }
    }
    let Some(found) = Pairs::find() else { return eprintln!("SKIPPED, NOT TESTED: no AVX512_BF16") };
    compare::<3>(found, ALL[0]);
    compare::<2>(found, ALL[1]);
    compare::<1>(found, ALL[2]);
}

/// A right operand is packed once while it is the same, and again when it is another.
#[test]
fn packed_operands_follow_their_numbers() {
    if !is_tested() {
        return;
    }
    let cpu = NdArray::<f32>::inline().with_products(Products::Bf16x6).expect("found above");
    let a = cpu.upload(&draw(1, [64, 64]), [64, 64].into());
    let product = |b: &Tensor<f32>| cpu.matmul(&a, false, b, false).as_slice().to_vec();
    let b = cpu.upload(&draw(2, [64, 64]), [64, 64].into());
    let first = product(&b);
    assert_eq!(product(&b), first);
    // the same memory with other numbers
    let doubled = cpu.affine(b, 2.0, 0.0);
    let twice: Vec<f32> = first.iter().map(|x| 2.0 * x).collect();
    assert_eq!(product(&doubled), twice);
    // its transpose, and another arithmetic
    let transposed = cpu.permute(&doubled, &[1, 0]);
    assert_eq!(cpu.matmul(&a, false, &transposed, true).as_slice(), twice);
    let coarse = cpu.with_products(Products::Bf16).expect("found above").matmul(&a, false, &doubled, false);
    assert_ne!(coarse.as_slice(), twice);
}

/// Chains against their products one after the other, and what a row that is not ordinary does to the others.
#[test]
fn chains() {
    if !is_tested() {
        return;
    }
    for (products, bound) in ALL {
        for widths in [[43, 128, 128, 43], [2, 64, 64, 2], [17, 33, 70, 17], [64, 64, 64, 64]] {
            for rows in [16, 31, 32, 63, 64, 97] {
                let weights: Vec<_> = (0..3).map(|l| draw(l as u64, [widths[l], widths[l + 1]])).collect();
                let factors: Vec<_> = (0..4).map(|l| draw(10 + l as u64, [rows, widths[l]])).collect();
                let links: Vec<_> = (0..3)
                    .map(|l| Link {
                        b: &weights[l][..],
                        packed: None,
                        k: widths[l],
                        n: widths[l + 1],
                        factors: (l > 0).then_some(&factors[l][..]),
                    })
                    .collect();
                let x = draw(20, [rows, widths[0]]);
                let run = |x: &[f32]| {
                    let mut x = x.to_vec();
                    (chain(products, &links, rows, &mut x, Some(&factors[3])), x)
                };
                let (done, got) = run(&x);
                assert_eq!(done, rows);
                // the value, and the sum of the sizes of all that was added
                let mut want: Vec<(f64, f64)> = x.iter().map(|&x| (f64::from(x), f64::from(x.abs()))).collect();
                for (l, link) in links.iter().enumerate() {
                    let mut next = Vec::with_capacity(rows * link.n);
                    for (i, j) in (0..rows).flat_map(|i| (0..link.n).map(move |j| (i, j))) {
                        next.push((0..link.k).fold((0.0, 0.0), |(sum, size), p| {
                            let factor = link.factors.map_or(1.0, |f| f64::from(f[i * link.k + p]));
                            let by = factor * f64::from(weights[l][p * link.n + j]);
                            let (x, x_size) = want[i * link.k + p];
                            (sum + x * by, size + x_size * by.abs())
                        }));
                    }
                    want = next;
                }
                for ((got, (value, size)), f) in got.iter().zip(&want).zip(&factors[3]) {
                    let error = (f64::from(*got) - value * f64::from(*f)).abs();
                    let allowed = 4.0 * bound * size * f64::from(f.abs());
                    assert!(error <= allowed, "{products} {widths:?} {rows}: {error:e}, {allowed:e}");
                }
                let mut broken = x.clone();
                broken[(rows - 1) * widths[0]] = f32::from_bits(0x7fff_ffff);
                let (done, rest) = run(&broken);
                let whole = (rows - 1) / 32 * 32;
                assert_eq!(done, whole, "the block with the number, and none before it");
                assert_eq!(rest[..whole * widths[0]], got[..whole * widths[0]]);
                assert_eq!(rest[whole * widths[0]..].len(), broken[whole * widths[0]..].len());
                assert!(
                    rest[whole * widths[0]..]
                        .iter()
                        .zip(&broken[whole * widths[0]..])
                        .all(|(a, b)| a.to_bits() == b.to_bits())
                );
            }
        }
    }
}
