//! Whole flows of every family behind the maps of columns, in both precisions: values of 1e±30, borders of supports and what is
//! beyond them, the probabilities of a grid's cells, and rows in other places.

use std::num::NonZeroUsize;

use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::config::{Family, FlowConfig};
use resflow::data::column::{Asinh, Grid};
use resflow::data::{ColumnMap, ColumnMaps, Support, Table};
use resflow::estimator::{Estimator, Exact, Phase};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};

use crate::common::*;
use crate::properties::columns::{Column, columns, nothing_beyond, slope};

/// A small flow of a family, whose log p is exact.
fn small(family: Family, dimension: usize) -> FlowConfig {
    FlowConfig {
        blocks: 2,
        hidden: vec![6],
        coefficient: 0.8,
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::of(family, dimension)
    }
}

fn single() -> NdArray<f32> {
    NdArray::with_threads(NonZeroUsize::MIN).expect("one thread")
}

fn affine(centre: f64, scale: f64) -> ColumnMap {
    ColumnMap::affine(centre, scale).expect("in range")
}

/// Maps of columns whose values are of the sizes of some units.
fn in_units(columns: &[Column], units: [f64; 3]) -> ColumnMaps {
    let maps = columns.iter().zip(units).map(|(column, unit)| column.in_unit(unit).map(None));
    ColumnMaps::new(maps.collect()).expect("three columns")
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn units_shift_log_p_by_their_logarithms(
        family in proptest::sample::select(Family::ALL.to_vec()),
        shapes in proptest::collection::vec(columns(), 3),
        exponents in proptest::array::uniform3(proptest::sample::select(vec![-30, 0, 30])),
        z in proptest::collection::vec([-2.0..2.0, -2.0..2.0, -2.0..2.0], 1..6),
        seed: u64,
    ) {
        let key = Key::new(seed);
        let units = exponents.map(|e| 10_f64.powi(e));
        let (plain, scaled) = (in_units(&shapes, [1.0; 3]), in_units(&shapes, units));
        let comfortable = |z: &[f64; 3]| {
            (0..3).all(|j| shapes[j].in_unit(1.0).is_comfortable(plain.maps()[j].invert(z[j])))
        };
        let z: Vec<[f64; 3]> = z.into_iter().filter(comfortable).collect();
        if z.is_empty() {
            return Ok(());
        }
        let x = plain.inverse(&table(3, z.concat())).expect("finite");
        let far = table(3, x.values().iter().enumerate().map(|(e, x)| x * units[e % 3]).collect());
        // the log det of the maps is that of their differences, one column after the other
        let standard = scaled.forward(&far, key).expect("three columns");
        for i in (0..z.len()).filter(|&i| (0..3).all(|j| shapes[j].is_smooth(z[i][j]))) {
            let by_differences = |j: usize| {
                let at = far.row(i)[j];
                let here = scaled.maps()[j].evaluate(at).expect("inside");
                let moved = |to: f64| {
                    let mut row = far.row(i).to_vec();
                    row[j] = to;
                    scaled.forward(&table(3, row), key).expect("a row").table.values()[j]
                };
                slope(moved, at, 1e-4 * (-here.log_slope).exp()).ln()
            };
            let sum: f64 = (0..3).map(by_differences).sum();
            prop_assert!((sum - standard.log_det[i]).abs() < 1e-5, "{sum} by differences, {}", standard.log_det[i]);
        }
        let shift: f64 = units.iter().map(|unit| unit.ln()).sum();
        let mut flow = random_flow(&cpu(), small(family, 3), key, 0.2);
        flow.set_columns(plain).expect("three columns");
        let narrow = flow.to_backend(single()).expect("moved");
        shifted(flow, &x, &scaled, &far, shift, [1e-7, 1e-6])?;
        shifted(narrow, &x, &scaled, &far, shift, [1e-4, 1e-3])?;
    }

    #[test]
    fn a_row_of_any_family_has_its_score_anywhere(
        family in proptest::sample::select(Family::ALL.to_vec()),
        seed: u64, n in 2_usize..10, which in any::<prop::sample::Index>(),
    ) {
        let (key, big, little) = (Key::new(seed), 1e30_f64, 1e-30);
        let maps = vec![
            affine(0.0, 1.0)
                .with_values(Support::Between(big, 6.0 * big), Some(Grid::new(big, 0.0).expect("a grid")))
                .expect("a support"),
            affine(1.0, 0.8)
                .with_values(Support::Above(0.0), Some(Grid::new(1.0, 0.0).expect("a grid")))
                .expect("a support"),
            affine(little, 2.0 * little).with_marginal(Some(Asinh::new(1.0, 0.0, 0.9).expect("in range")), None),
        ];
        let mut flow = random_flow(&cpu(), small(family, 3), key, 0.2);
        flow.set_columns(ColumnMaps::new(maps).expect("three columns")).expect("three columns");
        let normal = rows(n, 3, key.named("rows"));
        let values = normal.values().chunks(3).flat_map(|row| {
            [(3.5 + row[0]).round().clamp(1.0, 6.0) * big, (2.0 * row[1].exp()).floor().min(40.0), row[2].exp() * little]
        });
        let rows = table(3, values.collect());
        let narrow = flow.to_backend(single()).expect("moved");
        anywhere(&flow, &rows, which.index(n), 1e-9)?;
        anywhere(&narrow, &rows, which.index(n), 1e-4)?;
    }
}

/// log p of a table in other units is less by the sum of their logarithms, and what is encoded comes back: within these
/// tolerances.
fn shifted<B: Backend>(
    mut flow: Flow<B>,
    plain: &Table,
    maps: &ColumnMaps,
    far: &Table,
    shift: f64,
    [of_score, of_value]: [f64; 2],
) -> Result<(), TestCaseError> {
    let key = Key::new(0);
    let near = flow.log_prob(plain, key).expect("rows that fit").values;
    flow.set_columns(maps.clone()).expect("of the width");
    let prepared = flow.prepare();
    let found = prepared.log_prob(far, key).expect("rows that fit");
    for (i, value) in found.values.iter().enumerate() {
        let (expected, scale) = (near[i] - shift, 1.0 + near[i].abs());
        prop_assert!(value.is_finite() && found.status[i] == Status::Converged, "row {i}: {value}");
        prop_assert!((value - expected).abs() < of_score * scale, "row {i}: {value}, {expected} expected");
    }
    let latents = prepared.encode(far, key).expect("rows that fit").latents;
    let back = prepared.decode(&latents, &Inversion::for_backend::<B>()).expect("rows that fit").samples;
    for (e, (x, again)) in far.values().iter().zip(back.values()).enumerate() {
        let map = &maps.maps()[e % maps.width()];
        let stretch = (-map.evaluate(*x).expect("inside").log_slope).exp();
        prop_assert!((again - x).abs() < of_value * (x.abs() + stretch), "{again:e}, {x:e} expected");
    }
    Ok(())
}

/// Row i has its score among all rows, in the opposite order, alone, and between copies of itself and another row.
fn anywhere<B: Backend>(flow: &Flow<B>, rows: &Table, i: usize, tolerance: f64) -> Result<(), TestCaseError> {
    let key = Key::new(1);
    let last = rows.rows() - 1;
    let prepared = flow.prepare();
    let all = prepared.log_prob(rows, key).expect("rows that fit");
    let turned: Vec<usize> = (0..=last).rev().collect();
    for (which, at) in [(turned, last - i), (vec![i], 0), (vec![last, i, i], 1)] {
        let found = prepared.log_prob(&rows.select(&which), key).expect("rows that fit");
        let (value, expected) = (found.values[at], all.values[i]);
        let scale = 1.0 + expected.abs();
        prop_assert!((value - expected).abs() < tolerance * scale, "{value} at {at} of {which:?}, {expected} expected");
        let apart = (found.standard_error[at] - all.standard_error[i]).abs();
        prop_assert!(apart < tolerance * scale, "errors differ by {apart}");
    }
    Ok(())
}

/// Borders of supports in any unit: on them and beyond them a row has no density, next to them, inside, it is a number or −∞.
#[test]
fn no_family_has_density_beyond_a_support() {
    for (number, family) in Family::ALL.into_iter().enumerate() {
        let key = Key::new(number as u64);
        let mut flow = random_flow(&cpu(), small(family, 2), key, 0.2);
        let mut narrow = flow.to_backend(single()).expect("moved");
        for unit in [1e-30_f64, 1.0, 1e30] {
            let (low, high) = (-2.0 * unit, 3.0 * unit);
            let below = [low, low.next_down(), 2.0 * low, -f64::MAX];
            let above = [high, high.next_up(), 2.0 * high, f64::MAX];
            // (the support, the centre, what is beyond, what is next to the border)
            let cases = [
                (Support::Above(low), unit.ln(), below.to_vec(), vec![low.next_up()]),
                (Support::Below(high), -unit.ln(), above.to_vec(), vec![high.next_down()]),
                (Support::Between(low, high), 0.0, [below, above].concat(), vec![low.next_up(), high.next_down()]),
            ];
            for (support, centre, beyond, next) in cases {
                let maps = vec![affine(centre, 0.7).with_values(support, None).expect("a support"), affine(0.0, 2.0)];
                let maps = ColumnMaps::new(maps).expect("two columns");
                flow.set_columns(maps.clone()).expect("two columns");
                narrow.set_columns(maps).expect("two columns");
                // the last row is inside
                let rows = beyond.iter().chain(&[0.0]).flat_map(|x| [*x, 1.0]).collect();
                let rows = table(2, rows);
                let next = table(2, next.iter().flat_map(|x| [*x, 1.0]).collect());
                for (found, beyond) in [
                    (flow.log_prob(&next, key), nothing_beyond(&flow, &rows, key)),
                    (narrow.log_prob(&next, key), nothing_beyond(&narrow, &rows, key)),
                ] {
                    beyond.unwrap_or_else(|e| panic!("{family}, {support}: {e}"));
                    let found = found.expect("rows that fit");
                    assert!(found.values.iter().all(|v| !v.is_nan()), "{family}, {support}: {:?}", found.values);
                    assert!(found.status.iter().all(|s| *s != Status::OutOfSupport), "{family}, {support}");
                }
            }
            // a grid's border belongs to it
            let grid = Grid::new(unit, 0.0).expect("a grid");
            let die = affine(0.0, 1.0).with_values(Support::Between(unit, 6.0 * unit), Some(grid)).expect("a support");
            let maps = ColumnMaps::new(vec![die, affine(0.0, 2.0)]).expect("two columns");
            flow.set_columns(maps.clone()).expect("two columns");
            narrow.set_columns(maps).expect("two columns");
            let values = [unit, 6.0 * unit, 0.0, 7.0 * unit, -f64::MAX];
            let rows = table(2, values.iter().flat_map(|x| [*x, 1.0]).collect());
            for found in [flow.log_prob(&rows, key), narrow.log_prob(&rows, key)] {
                let found = found.expect("rows that fit");
                for (i, value) in found.values.iter().enumerate() {
                    let outside = i > 1;
                    assert_eq!(found.status[i] == Status::OutOfSupport, outside, "{family}, {unit:e}, row {i}");
                    let fits = if outside { *value == f64::NEG_INFINITY } else { value.is_finite() };
                    assert!(fits && !found.standard_error[i].is_nan(), "{family}, {unit:e}, row {i}: {value}");
                }
            }
        }
    }
}

/// Where columns lie on grids log p is the logarithm of a mean of densities, and what is chosen by cost is exact: the exponential of an
/// estimate would be biased. What was asked for stays.
#[test]
fn densities_on_grids_are_not_means_of_estimates() {
    let d = 60;
    let config = FlowConfig { blocks: 1, hidden: vec![64], ..FlowConfig::new(d) };
    let mut flow = Flow::new(cpu(), config, Key::new(1)).expect("a flow");
    let of = |flow: &Flow<Cpu>| flow.resolved(Phase::Evaluation);
    assert!(!matches!(of(&flow), Estimator::Exact(_)), "{}", of(&flow));
    let mut maps = vec![affine(0.0, 1.0); d];
    maps[3] =
        affine(0.0, 1.0).with_values(Support::Real, Some(Grid::new(1.0, 0.0).expect("a grid"))).expect("a support");
    flow.set_columns(ColumnMaps::new(maps).expect("columns")).expect("as many");
    assert!(matches!(of(&flow), Estimator::Exact(_)), "{}", of(&flow));
    let rows = table(d, (0..2 * d).map(|i| if i % d == 3 { 2.0 } else { (i as f64).sin() }).collect());
    let found = flow.prepare().log_prob(&rows, Key::new(2)).expect("rows that fit");
    assert!(found.values.iter().all(|v| v.is_finite()) && found.estimator.starts_with("exact"), "{}", found.estimator);
    let asked: Estimator = "roulette:p=0.5,exact=2".parse().expect("an estimator");
    flow.set_log_prob_estimator(asked.clone(), 4).expect("an estimator");
    assert!(!matches!(of(&flow), Estimator::Exact(_)), "{}", of(&flow));
}

/// Points of a cell, in its steps from its middle, with their weights: the midpoint rule after t³(10 − 15 t + 6 t²), which is fine at
/// the ends, where a logit is steep.
fn points(parts: usize) -> Vec<(f64, f64)> {
    let point = |k: usize| {
        let t = (k as f64 + 0.5) / parts as f64;
        (t.powi(3) * (10.0 - 15.0 * t + 6.0 * t * t) - 0.5, 30.0 * (t * (1.0 - t)).powi(2) / parts as f64)
    };
    (0..parts).map(point).collect()
}

/// The probabilities of the cells of two grids, a die in units of 1e30 and a count in units of 1e−30: by quadrature of the density
/// they are one together, what the flow says of cells are these probabilities within six of its standard errors, and of all
/// together one within five: a false alarm in some 10⁻⁸ of cells and 10⁻⁶ of sums.
#[test]
fn the_probabilities_of_cells_are_one_in_every_family() {
    let [big, little] = [1e30_f64, 1e-30];
    let maps = |spread: bool| {
        let grid = |step: f64| (!spread).then(|| Grid::new(step, 0.0).expect("a grid"));
        let die = if spread { Support::Between(0.5 * big, 6.5 * big) } else { Support::Between(big, 6.0 * big) };
        let die = affine(0.0, 0.8).with_values(die, grid(big)).expect("a support");
        let count = affine(10.0 * little, 2.0 * little).with_values(Support::Real, grid(little)).expect("a support");
        ColumnMaps::new(vec![die, count]).expect("two columns")
    };
    let cells: Vec<[f64; 2]> =
        (1..=6).flat_map(|die| (-14..=34).map(move |count| [f64::from(die), f64::from(count)])).collect();
    let within: Vec<([f64; 2], f64)> =
        points(24).iter().flat_map(|&(a, v)| points(20).into_iter().map(move |(b, w)| ([a, b], v * w))).collect();
    let mut fine = cells.iter().flat_map(|cell| within.iter().map(move |(at, _)| [cell[0] + at[0], cell[1] + at[1]]));
    let rows = |numbers: &mut dyn Iterator<Item = [f64; 2]>| {
        table(2, numbers.flat_map(|[die, count]| [die * big, count * little]).collect())
    };
    let (fine, values) = (rows(&mut fine), rows(&mut cells.iter().copied()));
    // nats, from a density to the probability of a cell of a step by a step
    let of_cell = big.ln() + little.ln();
    for (number, family) in Family::ALL.into_iter().enumerate() {
        let key = Key::new(20 + number as u64);
        // told to a thousandth
        let solver = "dopri5:rtol=1e-5".parse().expect("a solver");
        let config = FlowConfig { evaluation_solver: solver, ..small(family, 2) };
        let mut flow = random_flow(&cpu(), config, key, 0.2);
        flow.set_columns(maps(true)).expect("two columns");
        let density = flow.log_prob(&fine, key).expect("rows that fit").values;
        let masses: Vec<f64> = density
            .chunks(within.len())
            .map(|cell| cell.iter().zip(&within).map(|(l, (_, weight))| (l + of_cell).exp() * weight).sum())
            .collect();
        let total: f64 = masses.iter().sum();
        assert!((total - 1.0).abs() < 1e-3, "{family}: {total}");
        flow.set_columns(maps(false).with_draws(100).expect("in range")).expect("two columns");
        let narrow = flow.to_backend(single()).expect("moved");
        for said in [flow.log_prob(&values, key), narrow.log_prob(&values, key)] {
            let said = said.expect("rows that fit");
            let (mut total, mut variance) = (0.0, 0.0);
            for (i, mass) in masses.iter().enumerate() {
                let (value, error) = (said.values[i] + of_cell, said.standard_error[i]);
                (total, variance) = (total + value.exp(), variance + (value.exp() * error).powi(2));
                // the logarithm of a mean is low by half the squared error
                let allowed = 6.0 * error + 0.5 * error * error + 2e-3;
                assert!(
                    *mass < 1e-2 || (value - mass.ln()).abs() < allowed,
                    "{family}, cell {:?}: {value} ± {error}, {} expected",
                    cells[i],
                    mass.ln()
                );
            }
            assert!((total - 1.0).abs() < 5.0 * variance.sqrt() + 2e-3, "{family}: {total} ± {}", variance.sqrt());
        }
    }
}
