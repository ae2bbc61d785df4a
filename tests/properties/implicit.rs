//! Solves with the transposed Jacobian, against nalgebra: the answer, its bound, its independence of scale and of the rows
//! beside it, and what is said of a row that is stopped early. Random cases, no statistics.

use crate::common::*;
use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;
use resflow::backend::Backend;
use resflow::batch::Batch;
use resflow::config::Nonlinearity;
use resflow::estimator::jacobian;
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
                let scale = right[own.clone()].iter().fold(0.0_f64, |a, v| a.max(v.abs()));
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
            let apart = clean[own.clone()].iter().zip(&spoilt[own]).fold(0.0, |a: f64, (p, q)| a.max((p - q).abs()));
            prop_assert!(apart < 1e-12, "row {row} moved by {apart:e}");
        }
    }
}
