//! Blocks whose forward pass is a solve, and what they solve their gradients with.
//!
//! Solves with the transposed Jacobian, against nalgebra: the answer, its bound, its independence of scale and of the rows
//! beside it, and what is said of a row that is stopped early. Of inverted and monotone blocks: everything that every bijection
//! promises, what they are to each other, their range, and that a solve which fails is reported and harms no other row. The
//! statistical test states its rate of false alarms.

use crate::common::asking::{Trained, count_grads, pull_back, train, value, with_log_det};
use crate::common::bijections::{check_bijection, draw};
use crate::common::*;
use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, Draw, Memory};
use resflow::block::{InvertedBlock, MonotoneBlock, ResidualBlock};
use resflow::config::{Family, FlowConfig, Nonlinearity};
use resflow::estimator::{Estimator, Exact, Law, Probe, RussianRoulette, Sharing, Truncated, jacobian};
use resflow::flow::Objective;
use resflow::invert::{Inversion, Status, solve_transposed};
use resflow::layer::{Derivatives, Layer as _, PreparedLayer, Saved};

const ROWS: usize = 7;

/// A net whose norms are those of its weights, where it was evaluated, and ∂g/∂x of each row.
struct Point {
    b: Cpu,
    d: usize,
    net: Box<dyn PreparedLayer<Cpu>>,
    saved: Saved<Cpu>,
    jacobians: Vec<DMatrix<f64>>,
    bound: f64,
}

impl Point {
    fn new(net: &Net) -> Self {
        let (b, d) = (cpu(), net.dimension());
        let net = Net { iterations: None, ..net.clone() };
        let sequence = net.sequence(&b);
        let prepared = sequence.prepare(&b);
        let x = normal(&b, net.key().named("x"), [ROWS, d]);
        let (_, saved) = prepared.forward(&b, &Batch::new(x), Derivatives::First);
        let j = down(&b, &jacobian(&b, &*prepared, &saved, ROWS, &[d]));
        let jacobians = j.chunks_exact(d * d).map(|j| DMatrix::from_row_slice(d, d, j)).collect();
        Self { b, d, net: prepared, saved, jacobians, bound: sequence.lipschitz_bound() }
    }

    fn solve(&self, cotangents: &[f64], how: &Inversion) -> resflow::invert::Solution<Cpu> {
        let right = self.b.upload(cotangents, [ROWS, self.d].into());
        solve_transposed(&self.b, &*self.net, &self.saved, &right, self.bound, how).expect("no device fault")
    }

    /// (I + Jᵀ)⁻¹ of a row's cotangent.
    fn exact(&self, row: usize, cotangent: &[f64]) -> Vec<f64> {
        let matrix = DMatrix::identity(self.d, self.d) + self.jacobians[row].transpose();
        let solution = matrix.lu().solve(&DVector::from_row_slice(cotangent)).expect("I + J is regular");
        solution.iter().copied().collect()
    }
}

proptest! {
    #![proptest_config(cases(200))]

    /// However stopped, the answer is within its bound, relative to the row's largest number; rows of very different sizes
    /// share a batch, and one of them is zero.
    #[test]
    fn transposed_solves_are_within_their_bounds(net in nets(1..=8, &Nonlinearity::ALL, true), limit in 1_u32..40) {
        let point = Point::new(&net);
        let d = point.d;
        let right: Vec<f64> = down(&point.b, &normal(&point.b, net.key().named("right"), [ROWS, d])).into_iter().enumerate()
            .map(|(e, v)| if e / d == 3 { 0.0 } else { v * 10_f64.powi(40 * (e / d) as i32 - 120) }).collect();
        for limit in [limit, 2000] {
            let how = Inversion::for_backend::<Cpu>().with_limit(limit).expect("at least 1");
            let solution = point.solve(&right, &how);
            let found = down(&point.b, &solution.value);
            for (row, report) in solution.reports.iter().enumerate() {
                let own = row * d..(row + 1) * d;
                let scale = largest(right[own.clone()].iter().copied());
                let expected = point.exact(row, &right[own.clone()]);
                let error = norm(&found[own].iter().zip(&expected).map(|(a, b)| (a - b) / scale.max(1e-300)).collect::<Vec<_>>());
                prop_assert!(error <= report.error_bound + 1e-12, "row {row}: {error:e} away, bound {:e}", report.error_bound);
                prop_assert!(report.iterations <= limit);
                if limit == 2000 {
                    prop_assert_eq!(report.status, Status::Converged);
                    prop_assert!(error <= 1e-10, "row {row} is {error:e} away");
                }
                if scale == 0.0 {
                    prop_assert_eq!((report.status, report.iterations), (Status::Converged, 1));
                    prop_assert_eq!(error, 0.0);
                }
            }
        }
    }

    /// One product is not enough for a row that matters, which says so; a row of NaN says so too, and no row changes another.
    #[test]
    fn a_transposed_solve_that_is_stopped_says_so(net in nets(2..=6, &SMOOTH, true)) {
        let point = Point::new(&net);
        let d = point.d;
        let mut right = down(&point.b, &normal(&point.b, net.key().named("right"), [ROWS, d]));
        let how = Inversion::for_backend::<Cpu>();
        let once = point.solve(&right, &how.with_limit(1).expect("one"));
        for (row, report) in once.reports.iter().enumerate() {
            let product = point.jacobians[row].transpose() * DVector::from_row_slice(&right[row * d..(row + 1) * d]);
            let stopped = product.amax() > 1e-9;
            prop_assert!(!stopped || report.status == Status::NotConverged, "{report:?}");
            prop_assert_eq!(report.iterations, 1);
        }
        let clean = point.solve(&right, &how);
        right[2 * d] = f64::NAN;
        let spoilt = point.solve(&right, &how);
        prop_assert_eq!(spoilt.reports[2].status, Status::NonFinite);
        let (clean, spoilt) = (down(&point.b, &clean.value), down(&point.b, &spoilt.value));
        for row in (0..ROWS).filter(|&row| row != 2) {
            let own = row * d..(row + 1) * d;
            let apart = apart(&clean[own.clone()], &spoilt[own]);
            prop_assert!(apart < 1e-12, "row {row} moved by {apart:e}");
        }
    }
}

/// The blocks of one net: residual, inverted, monotone.
fn blocks(b: &Cpu, net: &Net) -> [Box<dyn Bijection<Cpu>>; 3] {
    let net = Net { iterations: None, ..net.clone() };
    let (g, d) = (|| Box::new(net.sequence(b)), [net.dimension()]);
    [
        Box::new(ResidualBlock::new(g(), &d).expect("a contraction")),
        Box::new(InvertedBlock::new(g(), &d).expect("a contraction")),
        Box::new(MonotoneBlock::new(g(), &d).expect("a contraction")),
    ]
}

/// Activations that differences can follow behind a solve. Those of Pila and CPila meet at 0 with a fourth derivative that jumps,
/// which central differences of a log det see; golden numbers hold their gradients.
const FOLLOWED: [Nonlinearity; 6] = [
    Nonlinearity::LipSwish,
    Nonlinearity::ClipSwish,
    Nonlinearity::Softplus,
    Nonlinearity::Tanh,
    Nonlinearity::Sin,
    Nonlinearity::LeakyLipSwish,
];

/// The block of −g, whose last layer has the opposite weight and bias.
fn opposite(b: &Cpu, block: &dyn Bijection<Cpu>) -> Box<dyn Bijection<Cpu>> {
    let mut last = String::new();
    block.visit("", &mut |name, _, role| {
        if role.is_trained() && name.ends_with("weight") {
            name.trim_end_matches("weight").clone_into(&mut last);
        }
    });
    let mut block = block.boxed_clone();
    block.visit_mut("", &mut |name, t, _| {
        if [format!("{last}weight"), format!("{last}bias"), format!("{last}u")].contains(&name.to_owned()) {
            *t = b.affine(t.clone(), -1.0, 0.0);
        }
    });
    block
}

proptest! {
    #![proptest_config(cases(60))]

    /// Shape, inverse, log det and gradients by differences, through the solve.
    #[test]
    fn every_block_that_solves(net in nets(1..=5, &FOLLOWED, true)) {
        let b = cpu();
        let x = normal(&b, net.key().named("x"), [5, net.dimension()]);
        for block in &blocks(&b, &net)[1..] {
            check_bijection(&b, &**block, &x, net.key());
        }
    }

    /// An inverted block behind the residual block of the same net is the identity; so are their log dets and gradients.
    #[test]
    fn inverted_after_residual_is_the_identity(net in nets(1..=6, &SMOOTH, true)) {
        let (b, d) = (cpu(), net.dimension());
        let [residual, inverted, _] = blocks(&b, &net).map(|block| block.prepare(&b));
        let x = normal(&b, net.key().named("x"), [ROWS, d]);
        let [gz, weights] = [("gz", d), ("weights", 1)].map(|(name, width)| normal(&b, net.key().named(name), [ROWS, width]));
        let there = train(&b, &*residual, &Batch::new(x.clone()), draw(Key::new(0)), Memory::Store);
        let back = train(&b, &*inverted, &Batch::new(there.y.clone()), draw(Key::new(0)), Memory::Store);
        prop_assert!(apart(&down(&b, &back.y), &down(&b, &x)) < 1e-10);
        let sum = b.axpy(1.0, &back.log_det, there.log_det.clone());
        prop_assert!(largest(down(&b, &sum)) < 1e-10, "log dets {:?}", down(&b, &sum));
        let count = count_grads(&net.block(&b));
        let mut grads = vec![None; count];
        let gy = pull_back(&b, &*inverted, back.tape, gz.clone(), &weights, &mut grads);
        let gx = pull_back(&b, &*residual, there.tape, gy, &weights, &mut grads);
        prop_assert!(apart(&down(&b, &gx), &down(&b, &gz)) < 1e-8);
        residual.finish_gradients(&b, &mut grads);
        for gradient in grads.into_iter().flatten() {
            prop_assert!(largest(down(&b, &gradient)) < 1e-7, "the gradients cancel");
        }
    }

    /// A monotone block with −g inverts the one with g, with the opposite log det; each is within its range and its slopes.
    #[test]
    fn monotone_blocks_are_inverted_by_their_opposites(net in nets(1..=6, &SMOOTH, true), distance in 1e-3..3.0) {
        let (b, d) = (cpu(), net.dimension());
        let block = &blocks(&b, &net)[2];
        let c = block.lipschitz_bound().expect("a block");
        let (there, back) = (block.prepare(&b), opposite(&b, &**block).prepare(&b));
        let x = normal(&b, net.key().named("x"), [ROWS, d]);
        let (y, log_det) = with_log_det(&b, &*there, &Batch::new(x.clone()), draw(Key::new(0)), 1);
        let (again, other) = with_log_det(&b, &*back, &Batch::new(y.clone()), draw(Key::new(0)), 1);
        prop_assert!(apart(&down(&b, &again), &down(&b, &x)) < 1e-9);
        let (log_det, other) = (down(&b, &log_det.value), down(&b, &other.value));
        let most = d as f64 * ((1.0 + c) / (1.0 - c)).ln();
        for (p, q) in log_det.iter().zip(&other) {
            prop_assert!((p + q).abs() < 1e-8, "{p} and {q}");
            prop_assert!(p.abs() <= most, "{p} of at most {most}");
        }
        // two-sided: (1−c)/(1+c) ≤ |Δy|/|Δx| ≤ (1+c)/(1−c), and ⟨Δx, Δy⟩ ≥ (1−c)/(1+c) |Δx|²
        let moved = b.axpy(distance, &normal(&b, net.key().named("moved"), [ROWS, d]), x.clone());
        let difference = |p: &Tensor, q: &Tensor| down(&b, &b.axpy(-1.0, q, p.clone()));
        let (dx, dy) = (difference(&moved, &x), difference(&value(&b, &*there, &moved), &y));
        let least = (1.0 - c) / (1.0 + c);
        for (dx, dy) in dx.chunks(d).zip(dy.chunks(d)) {
            let ratio = norm(dy) / norm(dx);
            prop_assert!((least - 1e-6..=1.0 / least + 1e-6).contains(&ratio), "{ratio}, at least {least}");
            prop_assert!(dot(dx, dy) >= (least - 1e-6) * dot(dx, dx));
        }
    }

    /// The series of both blocks tend to their exact log dets, and the gradient of the truncated series, summed by Neumann's series or
    /// differentiated term by term, to that of the exact ones: in one dimension, where a probe of ±1 is no noise.
    #[test]
    fn truncated_series_tend_to_the_exact_log_dets(net in nets(1..=1, &SMOOTH, true)) {
        let b = cpu();
        let x = normal(&b, net.key().named("x"), [ROWS, 1]);
        for block in &blocks(&b, &net)[1..] {
            let prepared = block.prepare(&b);
            let exact = down(&b, &with_log_det(&b, &*prepared, &Batch::new(x.clone()), draw(Key::new(0)), 1).1.value);
            // in one dimension ±1 is no noise
            let terms = 400;
            let series = Estimator::Truncated(Truncated::new(terms).expect("terms"));
            let draw = Draw { estimator: &series, key: Key::new(3) };
            let found = with_log_det(&b, &*prepared, &Batch::new(x.clone()), draw, 1).1;
            prop_assert!(apart(&down(&b, &found.value), &exact) < 1e-8);
            let of = |draw: Draw<'_>, memory| {
                let Trained { y, tape, .. } = train(&b, &*prepared, &Batch::new(x.clone()), draw, memory);
                let mut grads = vec![None; count_grads(&**block)];
                let weights = b.full(0.7, [ROWS, 1].into());
                let gx = pull_back(&b, &*prepared, tape, b.full(0.0, b.shape(&y)), &weights, &mut grads);
                prepared.finish_gradients(&b, &mut grads);
                let grads = grads.into_iter().flat_map(|g| down(&b, &g.expect("filled")));
                down(&b, &gx).into_iter().chain(grads).collect::<Vec<_>>()
            };
            let expected = of(crate::common::bijections::draw(Key::new(0)), Memory::Store);
            let scale = 1.0 + largest(expected.iter().copied());
            for memory in [Memory::Store, Memory::Recompute, Memory::Unroll] {
                let gradient = of(draw, memory);
                prop_assert!(apart(&gradient, &expected) < 1e-7 * scale, "{memory:?}");
            }
        }
    }

    /// Stopped after one evaluation, a block says of which rows, and those have no gradient; other rows have theirs.
    #[test]
    fn rows_that_are_not_solved_are_reported_and_harm_nothing(net in nets(2..=5, &SMOOTH, true), limit in 1_u32..4) {
        let (b, d) = (cpu(), net.dimension());
        let x = normal(&b, net.key().named("x"), [ROWS, d]);
        let weights = normal(&b, net.key().named("weights"), [ROWS, 1]);
        let gy = normal(&b, net.key().named("gy"), [ROWS, d]);
        for block in &blocks(&b, &net)[1..] {
            let prepared = block.prepare(&b);
            let ask = Ask::gradient::<Cpu>(draw(Key::new(0)), Memory::Store);
            let count = count_grads(&**block);
            let run = |gy: &Tensor, weights: &Tensor, limited: bool| {
                // the forward pass is solved, the backward pass is not
                let solver = if limited { ask.solver.with_limit(limit).expect("at least 1") } else { ask.solver };
                let mapped = prepared.forward(&b, &Batch::new(x.clone()), &Ask { solver, ..ask }).expect("no device fault");
                let forward = mapped.reports.expect("a solve has reports");
                let (mut grads, mut reports) = (vec![None; count], None);
                let cotangents = Cotangents { x: gy.clone(), log_det: weights.clone(), context: None };
                let back = prepared.backward_reported(&b, mapped.tape.expect("kept"), cotangents, &mut grads, &mut reports);
                prepared.finish_gradients(&b, &mut grads);
                let grads: Vec<f64> = grads.into_iter().flat_map(|g| g.map_or_else(Vec::new, |g| down(&b, &g))).collect();
                (forward, reports.expect("a solve has reports"), back.expect("no device fault"), grads)
            };
            let (forward, reports, back, grads) = run(&gy, &weights, true);
            for report in forward.iter().chain(&reports) {
                prop_assert!(report.iterations <= limit);
                prop_assert!(report.status == Status::Converged || report.status == Status::NotConverged);
            }
            prop_assert!(largest(grads.iter().copied()).is_finite());
            let (gx, passed) = (down(&b, &back.x), down(&b, &back.log_det));
            let failed: Vec<bool> = reports.iter().map(|r| r.status == Status::NotConverged).collect();
            prop_assert!(limit > 1 || failed.contains(&true), "one product is not enough");
            for row in (0..ROWS).filter(|&row| failed[row]) {
                prop_assert!(gx[row * d..(row + 1) * d].iter().all(|g| *g == 0.0) && passed[row] == 0.0);
            }
            // the gradient is that of a loss in which those rows weigh nothing
            let mask: Vec<f64> = failed.iter().map(|&failed| if failed { 0.0 } else { 1.0 }).collect();
            let mask = b.upload(&mask, [ROWS, 1].into());
            let masked = |t: &Tensor| b.binary(resflow::backend::Binary::Mul, t.clone(), &mask);
            let (_, _, _, expected) = run(&masked(&gy), &masked(&weights), true);
            let scale = 1.0 + largest(expected.iter().copied());
            prop_assert!(apart(&grads, &expected) < 1e-9 * scale, "{}", apart(&grads, &expected));
        }
    }
}

/// Roulette over odd terms is unbiased, value and gradient, with N drawn for the batch or for each row: means of 4 000 draws
/// within 5 standard errors. Some 350 numbers are compared, so one false alarm in about 5 000 seeds; the seeds are fixed.
#[test]
fn roulette_over_odd_terms_is_unbiased() {
    let nets = [
        (7, vec![3, 5, 3], Nonlinearity::Tanh, 0.9),
        (8, vec![2, 4, 2], Nonlinearity::ConcatenatedPila, 0.95),
        (9, vec![1, 3, 1], Nonlinearity::Sin, 0.8),
    ];
    for (seed, widths, activation, kappa) in nets {
        let stretch = vec![2.0; 2];
        unbiased_over_odd_terms(&Net { seed, widths, activation, leading: false, kappa, stretch, iterations: None });
    }
}

fn unbiased_over_odd_terms(net: &Net) {
    const DRAWS: u64 = 4_000;
    let b = cpu();
    let block = &blocks(&b, net)[2];
    let prepared = block.prepare(&b);
    let x = normal(&b, Key::new(1), [2, net.dimension()]);
    let gradient = |draw: Draw<'_>| {
        let Trained { y, log_det, tape, .. } = train(&b, &*prepared, &Batch::new(x.clone()), draw, Memory::Store);
        let mut grads = vec![None; count_grads(&**block)];
        let weights = b.upload(&[1.0, -0.5], [2, 1].into());
        let gx = pull_back(&b, &*prepared, tape, b.full(0.0, b.shape(&y)), &weights, &mut grads);
        prepared.finish_gradients(&b, &mut grads);
        let grads = grads.into_iter().flat_map(|g| down(&b, &g.expect("filled")));
        down(&b, &log_det).into_iter().chain(down(&b, &gx)).chain(grads).collect::<Vec<_>>()
    };
    let expected = gradient(draw(Key::new(0)));
    for (law, exact_terms) in [(Law::ShiftedGeometric { p: 0.4 }, 0), (Law::Poisson { rate: 1.5 }, 1)] {
        for sharing in [Sharing::Batch, Sharing::Sample] {
            let roulette = RussianRoulette::new(law, exact_terms).expect("a law").with_sharing(sharing);
            let estimator = Estimator::RussianRoulette(roulette.with_probes(1, Probe::Rademacher).expect("a probe"));
            let (mut sums, mut squares) = (vec![0.0; expected.len()], vec![0.0; expected.len()]);
            for seed in 0..DRAWS {
                let found = gradient(Draw { estimator: &estimator, key: Key::new(seed) });
                for (i, value) in found.into_iter().enumerate() {
                    sums[i] += value - expected[i];
                    squares[i] += (value - expected[i]).powi(2);
                }
            }
            for (i, (sum, square)) in sums.iter().zip(&squares).enumerate() {
                let mean = sum / DRAWS as f64;
                let error = ((square / DRAWS as f64 - mean * mean).max(0.0) / DRAWS as f64).sqrt();
                assert!(mean.abs() <= 5.0 * error + 1e-9, "{law}, {sharing:?}, number {i}: {mean:e} ± {error:e}");
            }
        }
    }
}

/// A sample whose solve fails is left out of a step, which says so, and has no density, whatever stands before the solve; scores of others
/// have next to no error of their solves.
#[test]
fn a_sample_that_is_not_solved_weighs_nothing() {
    for (family, actnorm) in [(Family::Monotone, false), (Family::Monotone, true), (Family::Implicit, true)] {
        weighs_nothing(family, actnorm);
    }
}

fn weighs_nothing(family: Family, actnorm: bool) {
    let (b, d, n) = (cpu(), 3, 6);
    let exact = Estimator::Exact(Exact);
    let config = FlowConfig {
        blocks: 2,
        hidden: vec![6],
        actnorm,
        training: exact.clone(),
        evaluation: exact,
        ..FlowConfig::of(family, d)
    };
    let flow = random_flow(&b, config, Key::new(1), 0.2);
    let prepared = flow.prepare();
    let values = down(&b, &normal(&b, Key::new(2), [n, d]));
    let gradient = |spoilt: Option<f64>, weight: f64| {
        let mut values = values.clone();
        values[2 * d + 1] = spoilt.unwrap_or(values[2 * d + 1]);
        let batch = Batch::new(b.upload(&values, [n, d].into()));
        let weights: Vec<f64> = (0..n).map(|row| if row == 2 { weight } else { 0.1 + row as f64 }).collect();
        let objective = Objective {
            batch: &batch,
            weights: &b.upload(&weights, [n, 1].into()),
            key: Key::new(3),
            memory: Memory::Store,
            input_gradient: true,
            supervision: None,
        };
        let found = prepared.gradient(&objective).expect("no device fault");
        let failed: Vec<_> = spoilt.map(|_| (2, Status::NonFinite)).into_iter().collect();
        assert_eq!(found.failed, failed);
        (found.solves, [found.flat, found.loss, found.input.expect("asked for")].map(|t| down(&b, &t)))
    };
    let (without, expected) = gradient(None, 0.0);
    for spoilt in [f64::NAN, f64::INFINITY] {
        let (solves, found) = gradient(Some(spoilt), 5.0);
        assert_eq!((solves.unsolved, without.unsolved), (1, 0));
        assert!(solves.evaluations > 0 && without.evaluations > 0);
        for (found, expected) in found.iter().zip(&expected) {
            let off = apart(found, expected) / (1.0 + largest(expected.iter().copied()));
            assert!(off < 1e-10, "{family}, {spoilt}: {off:e}");
        }
    }
    let mut values = values.clone();
    values[2 * d] = 1e300;
    let scores = prepared.log_prob(&table(d, values), Key::new(4)).expect("rows that fit");
    for row in 0..n {
        let lost = row == 2;
        assert_eq!(
            (scores.status[row] == Status::NonFinite, scores.values[row].is_finite()),
            (lost, !lost),
            "row {row}"
        );
        assert!(lost || (scores.solve_error[row] > 0.0 && scores.solve_error[row] < 1e-8), "{:?}", scores.solve_error);
        let (low, high) = scores.interval(row, 0.9).expect("a row");
        assert!(lost || (high - low - 2.0 * scores.solve_error[row]).abs() < 1e-12 * (1.0 + high.abs()));
    }
    let rows = table(d, down(&b, &normal(&b, Key::new(2), [n, d])));
    let (scores, gradients) = prepared.log_prob_and_gradient(&rows, Key::new(4)).expect("rows that fit");
    assert!(scores.status.iter().all(|status| *status == Status::Converged));
    let moved = |row: usize, i: usize, step: f64| {
        let mut moved = rows.row(row).to_vec();
        moved[i] += step;
        prepared.log_prob(&table(d, moved), Key::new(4)).expect("a row that fits").values[0]
    };
    for (row, i) in (0..n).flat_map(|row| (0..d).map(move |i| (row, i))) {
        let difference = (moved(row, i, 1e-4) - moved(row, i, -1e-4)) / 2e-4;
        let found = gradients.row(row)[i];
        assert!((found - difference).abs() < 1e-5 * (1.0 + difference.abs()), "{family}: {found}, not {difference}");
    }
}
