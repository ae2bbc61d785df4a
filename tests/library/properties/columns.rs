//! The maps of columns: each against its numerical derivatives and its inverse, at any scale; whole flows behind them in both
//! precisions; the border of a support and beyond it; the probabilities of a grid's cells.

use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::config::FlowConfig;
use resflow::data::column::{Asinh, Grid, Spline};
use resflow::data::{ColumnMap, ColumnMaps, Support, Table};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};

use crate::common::*;

/// A map of values of the size of `unit`.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    kind: usize,
    unit: f64,
    centre: f64,
    scale: f64,
    asinh: Option<[f64; 3]>,
    knots: Option<Vec<[f64; 3]>>,
}

impl Column {
    /// The same of values of another size.
    pub(crate) fn in_unit(&self, unit: f64) -> Self {
        Self { unit, ..self.clone() }
    }

    fn support(&self) -> Support {
        let unit = self.unit;
        [Support::Real, Support::Above(-2.0 * unit), Support::Below(3.0 * unit), Support::Between(-unit, 2.0 * unit)]
            [self.kind]
    }

    /// Whether rounding of a value leaves its map enough digits for differences.
    pub(crate) fn is_comfortable(&self, x: f64) -> bool {
        let (least, most) = (1e-2 * self.unit, 1e3 * self.unit);
        let ends = match self.support() {
            Support::Real => return x.abs() < most,
            Support::Above(a) => [x - a, self.unit],
            Support::Below(b) => [b - x, self.unit],
            Support::Between(a, b) => [x - a, b - x],
        };
        ends.iter().all(|d| (least..most).contains(d))
    }

    /// Whether z is between knots, where all derivatives are continuous.
    pub(crate) fn is_smooth(&self, z: f64) -> bool {
        self.knots.as_ref().is_none_or(|knots| sums(knots, 1).iter().all(|y| (z - y).abs() > 1e-3))
    }

    pub(crate) fn map(&self, grid: Option<Grid>) -> ColumnMap {
        // ln(x − a) is around the logarithm of the unit
        let (centre, scale) = match self.kind {
            0 => (self.centre * self.unit, self.scale * self.unit),
            1 => (self.centre + self.unit.ln(), self.scale),
            2 => (self.centre - self.unit.ln(), self.scale),
            _ => (self.centre, self.scale),
        };
        let asinh = self.asinh.map(|[w, m, q]| Asinh::new(w, m, q).expect("in range"));
        let spline = self.knots.as_ref().map(|knots| {
            let slopes = knots.iter().map(|gap| gap[2]).collect();
            Spline::new(sums(knots, 0), sums(knots, 1), slopes).expect("it increases")
        });
        let map = ColumnMap::affine(centre, scale).expect("in range");
        map.with_values(self.support(), grid).expect("a support").with_marginal(asinh, spline)
    }
}

/// Coordinates of knots, that increase, from the gaps between them.
fn sums(gaps: &[[f64; 3]], j: usize) -> Vec<f64> {
    gaps.iter().scan(-2.0, |at, gap| Some(std::mem::replace(at, *at + gap[j]))).collect()
}

pub(crate) fn columns() -> impl Strategy<Value = Column> {
    let knots = proptest::collection::vec([0.1..1.5, 0.1..1.5, 0.2..4.0], 2..8);
    let asinh = proptest::option::of([0.5..3.0, -0.3..0.3, 0.5..1.2]);
    (0_usize..4, -30_i32..=30, -0.3..0.3, 0.3..1.0, asinh, proptest::option::of(knots)).prop_map(
        |(kind, exponent, centre, scale, asinh, knots)| {
            let unit = 10_f64.powi(exponent);
            Column { kind, unit, centre, scale, asinh, knots }
        },
    )
}

/// A derivative at x by Richardson's extrapolation of central differences over h and 2h.
pub(crate) fn slope(f: impl Fn(f64) -> f64, x: f64, h: f64) -> f64 {
    let central = |h: f64| (f(x + h) - f(x - h)) / ((x + h) - (x - h));
    (4.0 * central(h) - central(2.0 * h)) / 3.0
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_map_has_its_derivatives_and_its_inverse(column in columns(), z in -2.0..2.0) {
        let map = column.map(None);
        let x = map.invert(z);
        if !column.is_comfortable(x) {
            return Ok(());
        }
        let point = map.evaluate(x).expect("inside");
        prop_assert!((point.value - z).abs() < 1e-9 * (1.0 + z.abs()), "{x:e}: {} of {z}", point.value);
        let again = map.invert(point.value);
        prop_assert!((again - x).abs() <= 1e-9 * (x.abs() + (-point.log_slope).exp()), "{x:e}, back {again:e}");
        if !column.is_smooth(z) {
            return Ok(());
        }
        let h = 1e-4 * (-point.log_slope).exp();
        let near = |x: f64| map.evaluate(x).expect("inside");
        let first = slope(|x| near(x).value, x, h);
        prop_assert!((first.ln() - point.log_slope).abs() < 1e-6, "{first:e}, {:e} expected", point.log_slope.exp());
        let second = slope(|x| near(x).log_slope, x, h) * h;
        prop_assert!((second - point.bend * h).abs() < 1e-8, "{second:e}, {:e} expected", point.bend * h);
    }

    #[test]
    fn flows_behind_maps(
        first in columns(), second in columns(), seed: u64,
        z in proptest::collection::vec([-2.0..2.0, -2.0..2.0], 1..6),
    ) {
        let key = Key::new(seed);
        let maps = ColumnMaps::new(vec![first.map(None), second.map(None)]).expect("two columns");
        let comfortable = |z: &[f64; 2]| {
            let row = [0, 1].map(|j| maps.maps()[j].invert(z[j]));
            first.is_comfortable(row[0]) && second.is_comfortable(row[1])
        };
        let z: Vec<[f64; 2]> = z.into_iter().filter(comfortable).collect();
        if z.is_empty() {
            return Ok(());
        }
        let x = maps.inverse(&table(2, z.concat())).expect("finite");
        let config = exact_config(2, 2, &[6]);
        let mut flow = random_flow(&cpu(), &config, key, 0.2);
        // of the same flow without maps, at z
        let inner = flow.log_prob(&table(2, z.concat()), key).expect("rows that fit");
        flow.set_columns(maps.clone()).expect("two columns");
        let standard = maps.forward(&x, key).expect("two columns");
        let (found, gradient) = flow.prepare().log_prob_and_gradient(&x, key).expect("rows that fit");
        for i in 0..z.len() {
            let expected = inner.values[i] + standard.log_det[i];
            prop_assert!((found.values[i] - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{} {expected}", found.values[i]);
            prop_assert!(found.standard_error[i] == 0.0 && found.status[i] == Status::Converged);
            for j in 0..2 {
                let (map, at) = (&maps.maps()[j], x.row(i)[j]);
                let here = map.evaluate(at).expect("inside");
                let h = 1e-4 * (-here.log_slope).exp();
                if ![&first, &second][j].is_smooth(z[i][j]) {
                    continue;
                }
                let moved = |to: f64| {
                    let mut row = x.row(i).to_vec();
                    row[j] = to;
                    flow.log_prob(&table(2, row), key).expect("a row").values[0]
                };
                let by_differences = slope(moved, at, h) * h;
                let own = gradient.row(i)[j] * h;
                prop_assert!((by_differences - own).abs() < 1e-7 * (1.0 + own.abs()), "{by_differences:e} {own:e}");
            }
        }
        // in single precision z is rounded, x and the log det of the maps are not
        let single = flow.to_backend(NdArray::<f32>::new()).expect("moved");
        let rounded = single.log_prob(&x, key).expect("rows that fit");
        for (a, b) in rounded.values.iter().zip(&found.values) {
            prop_assert!((a - b).abs() < 1e-3 * (1.0 + b.abs() * 1e-3), "{a} in single precision, {b} in double");
        }
        for flow in [flow.prepare().encode(&x, key), single.prepare().encode(&x, key)] {
            prop_assert!(flow.expect("rows that fit").status.iter().all(|s| *s == Status::Converged));
        }
        let how = Inversion::for_backend::<Cpu>();
        let prepared = flow.prepare();
        let back = prepared.decode(&prepared.encode(&x, key).expect("rows").latents, &how).expect("rows").samples;
        for (i, row) in back.values().chunks(2).enumerate() {
            for j in 0..2 {
                let there = maps.maps()[j].evaluate(row[j]).expect("inside").value;
                prop_assert!((there - z[i][j]).abs() < 1e-7, "{there} of {}", z[i][j]);
            }
        }
    }

    #[test]
    fn beyond_a_support_there_is_no_density(column in columns(), seed: u64, out in 0.0..5.0) {
        let unit = column.unit;
        let beyond: Vec<f64> = match column.support() {
            Support::Real => return Ok(()),
            Support::Above(a) => vec![a, a - out * unit],
            Support::Below(b) => vec![b, b + out * unit],
            Support::Between(a, b) => vec![a, b, a - out * unit, b + out * unit],
        };
        let key = Key::new(seed);
        let inside = column.map(None).invert(0.0);
        if !column.is_comfortable(inside) {
            return Ok(());
        }
        let mut rows: Vec<f64> = beyond.iter().flat_map(|x| [*x, 1.0]).collect();
        rows.extend([inside, 1.0]);
        let rows = table(2, rows);
        let other = ColumnMap::affine(0.0, 2.0).expect("in range");
        let maps = ColumnMaps::new(vec![column.map(None), other]).expect("two columns");
        let config = exact_config(2, 1, &[4]);
        let mut flow = random_flow(&cpu(), &config, key, 0.2);
        flow.set_columns(maps).expect("two columns");
        let single = flow.to_backend(NdArray::<f32>::new()).expect("moved");
        nothing_beyond(&flow, &rows, key)?;
        nothing_beyond(&single, &rows, key)?;
        // far out in z samples stay inside
        let far = table(2, vec![-80.0, 0.0, 80.0, 0.0]);
        let samples = flow.prepare().decode(&far, &Inversion::for_backend::<Cpu>()).expect("rows").samples;
        for row in samples.values().chunks(2) {
            prop_assert!(!row[0].is_nan() && (row[0].is_infinite() || column.support().contains(row[0], false)), "{row:?}");
        }
    }

    #[test]
    fn a_row_has_its_score_anywhere(seed: u64, n in 2_usize..12, order in any::<prop::sample::Index>()) {
        let key = Key::new(seed);
        let flow = gridded(&cpu(), key);
        let rows = grid_rows(n, key);
        let all = flow.log_prob(&rows, key).expect("rows");
        prop_assert!(all.standard_error.iter().all(|e| *e > 0.0 && e.is_finite()));
        let i = order.index(n);
        let turned: Vec<usize> = (0..n).rev().collect();
        let other = flow.log_prob(&rows.select(&turned), key).expect("rows");
        let alone = flow.log_prob(&rows.select(&[i]), key).expect("a row");
        for found in [(other.values[n - 1 - i], other.standard_error[n - 1 - i]), (alone.values[0], alone.standard_error[0])] {
            prop_assert!((found.0 - all.values[i]).abs() < 1e-9 && (found.1 - all.standard_error[i]).abs() < 1e-9);
        }
        let single = flow.to_backend(NdArray::<f32>::new()).expect("moved");
        let all = single.log_prob(&rows, key).expect("rows");
        let alone = single.log_prob(&rows.select(&[i]), key).expect("a row");
        prop_assert!((alone.values[0] - all.values[i]).abs() < 1e-4 * (1.0 + all.values[i].abs()));
    }
}

/// All rows but the last are outside of a support, which the score says, its gradient, and the latents.
pub(crate) fn nothing_beyond<B: Backend>(flow: &Flow<B>, rows: &Table, key: Key) -> Result<(), TestCaseError> {
    let prepared = flow.prepare();
    let (found, gradient) = prepared.log_prob_and_gradient(rows, key).expect("rows that fit");
    let encoded = prepared.encode(rows, key).expect("rows that fit");
    let last = rows.rows() - 1;
    for i in 0..=last {
        prop_assert!(!found.values[i].is_nan() && !encoded.log_det[i].is_nan());
        let outside = i < last;
        prop_assert_eq!(found.status[i] == Status::OutOfSupport, outside);
        prop_assert_eq!(encoded.status[i] == Status::OutOfSupport, outside);
        prop_assert_eq!(found.values[i] == f64::NEG_INFINITY, outside);
        prop_assert_eq!(found.standard_error[i], 0.0);
        prop_assert!(!outside || gradient.row(i).iter().all(|g| *g == 0.0));
    }
    prop_assert!(found.mean() == f64::NEG_INFINITY);
    Ok(())
}

/// A flow over a die, a count and a number.
fn gridded<B: Backend>(b: &B, key: Key) -> Flow<B> {
    let integers = Grid::new(1.0, 0.0).expect("a grid");
    let map = |centre, scale| ColumnMap::affine(centre, scale).expect("in range");
    let maps = vec![
        map(0.0, 1.0).with_values(Support::Between(1.0, 6.0), Some(integers)).expect("a support"),
        map(1.0, 0.8).with_values(Support::Above(0.0), Some(integers)).expect("a support"),
        map(0.0, 1.0),
    ];
    let config = exact_config(3, 2, &[8]);
    let mut flow = random_flow(b, &config, key, 0.3);
    flow.set_columns(ColumnMaps::new(maps).expect("three columns")).expect("three columns");
    flow
}

fn grid_rows(n: usize, key: Key) -> Table {
    let noise = rows(n, 3, key.named("grid rows"));
    let values = noise
        .values()
        .chunks(3)
        .flat_map(|row| [(3.5 + row[0]).round().clamp(1.0, 6.0), (2.0 * row[1].exp()).floor().min(40.0), row[2]]);
    table(3, values.collect())
}

/// The probabilities of all cells of a grid, by quadrature of the density between their borders, are one together, and each
/// is what the flow says within five of its standard errors: a false alarm in 2·10⁻⁶ of cells, of which there are 26.
#[test]
fn the_probabilities_of_cells_are_one_together() {
    const PARTS: usize = 400;
    let key = Key::new(5);
    let half = Grid::new(0.5, 0.0).expect("a grid");
    let integers = Grid::new(1.0, 0.0).expect("a grid");
    let of = |support, grid, centre, scale| {
        let map = ColumnMap::affine(centre, scale).expect("in range");
        map.with_values(support, grid).expect("a support")
    };
    // (grid, its support, the support of what is spread over cells, centre, scale, cells)
    let cases = [
        (integers, Support::Between(1.0, 6.0), Support::Between(0.5, 6.5), 0.2, 1.4, 6),
        (half, Support::Above(0.0), Support::Above(-0.25), 0.1, 0.5, 400),
        (integers, Support::Real, Support::Real, 10.0, 2.5, 60),
    ];
    for (grid, support, domain, centre, scale, cells) in cases {
        let config = FlowConfig { hidden: vec![8], ..exact_config(1, 2, &[8]) };
        let mut flow = random_flow(&cpu(), &config, key, 0.4);
        let mut continuous = flow.clone();
        continuous.set_columns(ColumnMaps::new(vec![of(domain, None, centre, scale)]).expect("a column")).expect("one");
        let maps = ColumnMaps::new(vec![of(support, Some(grid), centre, scale)]).expect("a column");
        flow.set_columns(maps.with_draws(400).expect("in range")).expect("one");
        let first = match support {
            Support::Between(a, _) | Support::Above(a) => a,
            _ => -20.0,
        };
        let values: Vec<f64> = (0..cells).map(|k| first + f64::from(k) * grid.step()).collect();
        let fine = |k: usize| (k as f64 + 0.5) / PARTS as f64 - 0.5;
        let points = values.iter().flat_map(|x| (0..PARTS).map(move |k| x + fine(k) * grid.step())).collect();
        let density = continuous.log_prob(&table(1, points), key).expect("rows").values;
        let masses: Vec<f64> = density
            .chunks(PARTS)
            .map(|cell| cell.iter().map(|l| l.exp()).sum::<f64>() / PARTS as f64 * grid.step())
            .collect();
        let total: f64 = masses.iter().sum();
        assert!((total - 1.0).abs() < 2e-4, "{support}: {total}");
        let said = flow.log_prob(&table(1, values), key).expect("rows");
        for (i, mass) in masses.iter().enumerate().filter(|(_, mass)| **mass > 1e-3) {
            let (value, error) = (said.values[i] + grid.step().ln(), said.standard_error[i]);
            // the logarithm of a mean is low by half the squared error
            let bias = 0.5 * error * error;
            assert!(
                (value - mass.ln()).abs() < 5.0 * error + bias + 1e-4,
                "{support}, cell {i}: {value} ± {error}, {}",
                mass.ln()
            );
        }
        // samples are on the grid, and off it by no rounding
        let samples = flow.sample(200, key).expect("samples").samples;
        assert!(samples.values().iter().all(|x| grid.round(*x) == *x && support.contains(*x, true)));
    }
}

/// Off the support of a grid, and on its border.
#[test]
fn a_grid_has_its_border() {
    let key = Key::new(1);
    let flow = gridded(&cpu(), key);
    let found =
        flow.log_prob(&table(3, vec![1.0, 0.0, 0.1, 6.0, 3.0, 0.1, 0.0, 3.0, 0.1, 3.0, -1.0, 0.1]), key).expect("rows");
    let outside: Vec<bool> = found.status.iter().map(|s| *s == Status::OutOfSupport).collect();
    assert_eq!(outside, [false, false, true, true]);
    assert!(
        found.values[..2].iter().all(|v| v.is_finite()) && found.values[2..].iter().all(|v| *v == f64::NEG_INFINITY)
    );
    // what is encoded comes back as it was
    let rows = grid_rows(50, key);
    let prepared = flow.prepare();
    let encoded = prepared.encode(&rows, key).expect("rows");
    let back = prepared.decode(&encoded.latents, &Inversion::for_backend::<Cpu>()).expect("rows").samples;
    for (a, b) in back.values().chunks(3).zip(rows.values().chunks(3)) {
        assert!(a[..2] == b[..2] && (a[2] - b[2]).abs() < 1e-9, "{a:?} {b:?}");
    }
}

/// The gradient of the log density at the drawn point.
#[test]
fn the_gradient_on_a_grid_is_that_of_the_drawn_point() {
    let key = Key::new(2);
    let integers = Grid::new(1.0, 0.0).expect("a grid");
    let map = |grid| {
        let support = if grid { Support::Above(0.0) } else { Support::Above(-0.5) };
        let map = ColumnMap::affine(0.5, 0.7).expect("in range");
        ColumnMaps::new(vec![map.with_values(support, grid.then_some(integers)).expect("a support")]).expect("a column")
    };
    let mut flow = random_flow(&cpu(), exact_config(1, 2, &[8]), key, 0.3);
    flow.set_columns(map(true)).expect("one");
    let x = table(1, vec![2.0]);
    let (_, gradient) = flow.prepare().log_prob_and_gradient(&x, key).expect("a row");
    // where the noise has put it
    let z = flow.columns().forward(&x, key.named("dequantise")).expect("a row").table;
    flow.set_columns(map(false)).expect("one");
    let point = flow.columns().inverse(&z).expect("a point");
    assert!((point.values()[0] - 2.0).abs() < 0.5);
    let (_, expected) = flow.prepare().log_prob_and_gradient(&point, key).expect("a row");
    assert!((gradient.values()[0] - expected.values()[0]).abs() < 1e-9);
}
