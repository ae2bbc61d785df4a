//! Rows with missing cells: what was seen is scored as the joint's marginal density, which is known of Gaussians and summed up
//! of others; what was not seen has no say; files, threads and places change nothing.

use std::num::NonZeroUsize;

use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;
use resflow::backend::{Backend, Key, Noise};
use resflow::base::{Covariance, GaussianMixture, Mixture};
use resflow::config::{ContextConfig, Family, FlowConfig, Start};
use resflow::data::{ColumnFit, ColumnMaps, ColumnSettings, Incomplete, Standardiser, Support, Table};
use resflow::error::{DataError, Error};
use resflow::estimator::Estimator;
use resflow::flow::Flow;
use resflow::invert::Status;
use resflow::missing::{Imputer, MissingFit};
use resflow::train::{Budget, TrainConfig};
use resflow::{Fit, NdArray};

use crate::common::*;

const HOLE: f64 = f64::NAN;

/// An imputer with random weights, as good as any for what must hold of all.
fn imputer<B: Backend>(b: &B, maps: &ColumnMaps, key: Key) -> Imputer<B> {
    let d = maps.width();
    let context = ContextConfig { embedding: vec![8], ..ContextConfig::new(3 * d) };
    let config =
        FlowConfig { blocks: 2, hidden: vec![8], bins: 4, context: Some(context), ..FlowConfig::of(Family::Nsf, d) };
    let mut flow = random_flow(b, FlowConfig { start: Start::Identity, ..config }, key, 0.05);
    flow.set_columns(maps.clone()).expect("as many columns");
    Imputer::new(flow).expect("an imputer")
}

/// A joint flow with random weights behind maps, and its imputer.
fn joint<B: Backend>(b: &B, family: Family, maps: &ColumnMaps, seed: u64) -> Flow<B> {
    let config = FlowConfig { model: family, ..exact_config(maps.width(), 2, &[8]) };
    let mut flow = random_flow(b, config, Key::new(seed), 0.1);
    flow.set_columns(maps.clone()).expect("as many columns");
    flow.set_imputer(imputer(b, maps, Key::new(seed).named("imputer"))).expect("as many columns");
    flow
}

/// A Gaussian as a flow: its base density behind the identity.
struct Gaussian {
    mean: Vec<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    fn new() -> Self {
        let factor = DMatrix::from_row_slice(3, 3, &[1.2, 0.0, 0.0, -0.8, 1.1, 0.0, 0.5, -0.9, 1.4]);
        let precision = factor.transpose() * &factor;
        Self { mean: vec![0.3, -0.2, 0.1], covariance: precision.try_inverse().expect("regular") }
    }

    fn flow<B: Backend>(&self, b: &B, maps: &ColumnMaps) -> Flow<B> {
        // Σ⁻¹ = AᵀA with A lower triangular: the inverse of Σ's Cholesky factor
        let factor = self.covariance.clone().cholesky().expect("positive").l().try_inverse().expect("regular");
        let factors = (0..9).map(|e| if e % 3 > e / 3 { 0.0 } else { factor[(e / 3, e % 3)] }).collect();
        let mixture = Mixture::new(3, Covariance::Full, vec![1.0], self.mean.clone(), factors).expect("a Gaussian");
        let config = FlowConfig { start: Start::Identity, ..exact_config(3, 1, &[4]) };
        let mut flow = Flow::new(b.clone(), config, Key::new(0)).expect("a configuration");
        flow.set_base(GaussianMixture::new(b, &mixture).expect("three dimensions")).expect("three dimensions");
        flow.set_columns(maps.clone()).expect("three columns");
        // wider than the Gaussian, so that no weight is large
        let wide = Standardiser::new(vec![0.0; 3], vec![2.5; 3]).expect("three columns");
        flow.set_imputer(imputer(b, &wide.into(), Key::new(1))).expect("three columns");
        flow
    }

    fn sample(&self, n: usize, key: Key) -> Vec<Vec<f64>> {
        let lower = self.covariance.clone().cholesky().expect("positive").l();
        let mut noise = vec![0.0; 3 * n];
        Noise::Normal.fill(key, 0, &mut noise);
        let row = |e: &[f64]| {
            let x = &lower * DVector::from_row_slice(e);
            (0..3).map(|j| self.mean[j] + x[j]).collect()
        };
        noise.chunks_exact(3).map(row).collect()
    }

    /// Mean and covariance of some columns given others of a row.
    fn given(&self, row: &[f64], seen: &[usize], missing: &[usize]) -> (DVector<f64>, DMatrix<f64>) {
        let part = |a: &[usize], b: &[usize]| DMatrix::from_fn(a.len(), b.len(), |i, j| self.covariance[(a[i], b[j])]);
        let off = DVector::from_fn(seen.len(), |i, _| row[seen[i]] - self.mean[seen[i]]);
        let gain = part(missing, seen) * part(seen, seen).try_inverse().expect("regular");
        let mean = DVector::from_fn(missing.len(), |i, _| self.mean[missing[i]]) + &gain * off;
        (mean, part(missing, missing) - gain * part(seen, missing))
    }

    /// log N of the seen columns of a row.
    fn log_prob(&self, row: &[f64], seen: &[usize]) -> f64 {
        let (mean, covariance) = self.given(row, &[], seen);
        let off = DVector::from_fn(seen.len(), |i, _| row[seen[i]] - mean[i]);
        let inverse = covariance.clone().try_inverse().expect("regular");
        -0.5 * ((off.transpose() * inverse * &off)[0]
            + covariance.determinant().ln()
            + seen.len() as f64 * std::f64::consts::TAU.ln())
    }
}

/// Rows with holes in all patterns that leave something.
fn patterns(rows: &[Vec<f64>]) -> (Incomplete, Vec<Vec<usize>>) {
    let seen: Vec<Vec<usize>> =
        (0..rows.len()).map(|i| (0..3).filter(|j| (1 + i % 6) >> j & 1 == 1).collect()).collect();
    let cell = |i: usize, j: usize| if seen[i].contains(&j) { rows[i][j] } else { HOLE };
    let values = (0..rows.len()).flat_map(|i| (0..3).map(move |j| (i, j))).map(|(i, j)| cell(i, j)).collect();
    (Incomplete::new(None, 3, values).expect("rows"), seen)
}

/// Standard scores of 300 estimates of marginals of a Gaussian: the chance that one of them is beyond 5 or their mean beyond 4
/// standard errors is below 3e−4, with some more for weights that are not quite normal. The key is fixed.
fn marginals_of_a_gaussian<B: Backend>(b: &B) {
    let gaussian = Gaussian::new();
    let maps = ColumnMaps::from(Standardiser::identity(3));
    let rows = gaussian.sample(300, Key::new(4));
    let (incomplete, seen) = patterns(&rows);
    let marginal = gaussian.flow(b, &maps).prepare_marginal().expect("exact").with_draws(4096).expect("in range");
    let found = marginal.log_prob(&incomplete, Key::new(5)).expect("rows that fit");
    let mut scores = Vec::new();
    for (i, seen) in seen.iter().enumerate() {
        let (value, error) = (found.scores.values[i], found.scores.standard_error[i]);
        let effective = found.effective[i].expect("an estimate");
        assert!((1.0..=4096.0).contains(&effective) && error > 0.0 && error < 0.3, "{effective} draws, ± {error}");
        scores.push((value - gaussian.log_prob(&rows[i], seen)) / error);
    }
    let (mean, error) = mean_and_error(&scores);
    let largest = largest(scores.iter().copied());
    assert!(
        largest < 5.0 && mean.abs() < 4.0 * error && (0.8..1.25).contains(&(error * 300_f64.sqrt())),
        "{mean} ± {error}, {largest}"
    );
}

#[test]
fn what_was_seen_of_a_gaussian_is_scored_as_its_marginal() {
    marginals_of_a_gaussian(&cpu());
    marginals_of_a_gaussian(&NdArray::<f32>::new());
}

/// Columns of three kinds: positive, on the real line, and whole numbers that depend on both.
fn mixed(n: usize) -> (Table, ColumnMaps) {
    let mut noise = vec![0.0; 3 * n];
    Noise::Normal.fill(Key::new(11), 0, &mut noise);
    let row = |e: &[f64]| [(0.5 * e[0]).exp(), 100.0 + 7.0 * (e[1] + 0.5 * e[0]), (3.0 + e[0] + 0.7 * e[2]).round()];
    let table = table(3, noise.chunks_exact(3).flat_map(row).collect());
    let mut settings = ColumnSettings { fit: ColumnFit::Auto, draws: 256, ..ColumnSettings::default() };
    settings.supports.insert("1".into(), Support::Above(0.0));
    let maps = ColumnMaps::fit(&table, None, &settings).expect("columns");
    assert!(maps.maps()[2].grid().is_some() && maps.maps()[0].support() == Support::Above(0.0));
    (table, maps)
}

/// ln Σ e^v·width over what a missing cell of a row could be.
fn summed<B: Backend>(flow: &Flow<B>, row: &[f64], column: usize) -> f64 {
    let count = 800;
    let values: Vec<(f64, f64)> = match column {
        0 => (0..count)
            .map(|k| (8.0 * (f64::from(k) + 0.5) / f64::from(count) - 4.0).exp())
            .map(|x| (x, x * 8.0 / f64::from(count)))
            .collect(),
        1 => (0..count)
            .map(|k| (30.0 + 140.0 * (f64::from(k) + 0.5) / f64::from(count), 140.0 / f64::from(count)))
            .collect(),
        _ => (-20..30).map(|k| (f64::from(k), 1.0)).collect(),
    };
    let rows = values.iter().flat_map(|&(x, _)| (0..3).map(move |j| if j == column { x } else { row[j] }));
    let scores = flow.log_prob(&table(3, rows.collect()), Key::new(7)).expect("rows that fit").values;
    scores.iter().zip(&values).map(|(l, (_, width))| l.exp() * width).sum::<f64>().ln()
}

proptest! {
    #![proptest_config(cases(10))]

    /// Any joint behind any maps, with an imputer behind others: the sum of the density over what is missing. Each of at most 60
    /// estimates has a chance of 6e−7 to be beyond 5 standard errors, were it normal.
    #[test]
    fn a_missing_cell_is_summed_over(family in exact_families(), seed in 0_u64..1000, other_maps: bool) {
        let (rows, maps) = mixed(400);
        let mut flow = joint(&cpu(), family, &maps, seed);
        if other_maps {
            // simpler maps of the same columns on the imputer's side
            let simple = maps.maps().iter().map(|map| map.clone().with_marginal(None, None)).collect();
            flow.set_imputer(imputer(&cpu(), &ColumnMaps::new(simple).expect("maps"), Key::new(seed))).expect("three columns");
        }
        let marginal = flow.prepare_marginal().expect("exact").with_draws(4000).expect("in range");
        let count = 6;
        let cell = |e: usize| if e % 3 == e / 3 % 3 { HOLE } else { rows.values()[e] };
        let holes = Incomplete::new(None, 3, (0..3 * count).map(cell).collect()).expect("rows");
        let found = marginal.log_prob(&holes, Key::new(9)).expect("rows that fit");
        for i in 0..count {
            let expected = summed(&flow, rows.row(i), i % 3);
            let (value, error) = (found.scores.values[i], found.scores.standard_error[i]);
            // the sum has noise of grids too, of 256 draws
            let allowed = 5.0 * error + 0.04;
            prop_assert!((value - expected).abs() < allowed, "row {i}: {value} ± {error}, {expected}");
        }
    }

    /// Rows without holes are scored as ever, to the bit; holes hide whatever is in them; rows may stand anywhere.
    #[test]
    fn nothing_but_what_was_seen_counts(
        family in exact_families(),
        seed in 0_u64..1000,
        seen in proptest::collection::vec(any::<bool>(), 36),
        others in proptest::collection::vec(-1e300..1e300, 36),
    ) {
        let (rows, maps) = mixed(400);
        let rows = rows.select(&(0..12).collect::<Vec<_>>());
        let flow = joint(&cpu(), family, &maps, seed);
        let (marginal, imputer) = (flow.prepare_marginal().expect("exact"), flow.prepare_imputer().expect("one"));
        let key = Key::new(seed);
        let plain = flow.log_prob(&rows, key).expect("rows that fit");
        let whole = marginal.log_prob(&rows.clone().into(), key).expect("rows that fit");
        prop_assert_eq!(&whole.scores.values, &plain.values);
        prop_assert_eq!(&whole.scores.standard_error, &plain.standard_error);
        prop_assert!(whole.effective.iter().all(Option::is_none));

        let holes = Incomplete::masked(&rows, seen.clone()).expect("a mark for each cell");
        let other = (0..36).map(|e| if seen[e] { rows.values()[e] } else { HOLE }).collect();
        let again = Incomplete::new(None, 3, other).expect("rows");
        prop_assert_eq!(&again, &holes);
        let hidden: Vec<Vec<f64>> =
            (0..12).map(|i| (0..3).map(|j| if seen[3 * i + j] { rows.row(i)[j] } else { others[3 * i + j] }).collect()).collect();
        let hidden = Incomplete::masked(&table(3, hidden.concat()), seen.clone()).expect("a mark for each cell");
        prop_assert_eq!(&hidden, &holes);
        let scores = marginal.log_prob(&holes, key).expect("rows that fit");
        let filled = imputer.impute(&holes, 3, key).expect("rows that fit");
        prop_assert!(scores.scores.values.iter().all(|v| v.is_finite()));
        for i in 0..12 {
            let count = (0..3).filter(|j| seen[3 * i + j]).count();
            if count == 0 {
                prop_assert_eq!((scores.scores.values[i], scores.scores.standard_error[i]), (0.0, 0.0));
            }
            prop_assert_eq!(scores.effective[i].is_some(), count == 1 || count == 2);
            for draw in 0..3 {
                let row = filled.table().row(3 * i + draw);
                for j in 0..3 {
                    prop_assert!(!seen[3 * i + j] || row[j] == rows.row(i)[j], "what was seen stays");
                    prop_assert!(maps.maps()[j].contains(row[j]), "column {j} holds {}", row[j]);
                }
                prop_assert!(row[2].fract() == 0.0);
            }
        }
        // the other way round
        let order: Vec<usize> = (0..12).rev().collect();
        let turned = holes.select(&order).expect("rows");
        let found = marginal.log_prob(&turned, key).expect("rows that fit");
        for i in 0..12 {
            let (a, b) = (found.scores.values[11 - i], scores.scores.values[i]);
            prop_assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "row {i}: {a}, {b}");
        }
        let means = (filled.means(), filled.medians());
        prop_assert_eq!((means.0.rows(), means.1.rows()), (12, 12));
        for e in (0..36).filter(|e| seen[*e]) {
            prop_assert_eq!([means.0.values()[e], means.1.values()[e]], [rows.values()[e]; 2]);
        }
    }
}

#[test]
fn equal_rows_are_filled_in_with_other_draws() {
    let (_, maps) = mixed(400);
    let flow = joint(&cpu(), Family::Nsf, &maps, 3);
    let rows = Incomplete::from_rows(&[[1.0, HOLE, 3.0]; 5]).expect("rows");
    let filled = flow.prepare_imputer().expect("one").impute(&rows, 2, Key::new(1)).expect("rows that fit");
    let mut drawn = filled.table().column(1);
    drawn.sort_by(f64::total_cmp);
    drawn.dedup();
    assert_eq!(drawn.len(), 10);
    // each is the same estimate
    let scores = flow.prepare_marginal().expect("exact").log_prob(&rows, Key::new(1)).expect("rows that fit").scores;
    assert!(scores.values.iter().all(|v| (v - scores.values[0]).abs() < 1e-9));
}

#[test]
fn impossible_rows_are_told() {
    let (_, maps) = mixed(400);
    let flow = joint(&cpu(), Family::Nsf, &maps, 3);
    let rows = Incomplete::from_rows(&[[-1.0, HOLE, 3.0], [1.0, 100.0, HOLE], [HOLE; 3]]).expect("rows");
    let found = flow.prepare_marginal().expect("exact").log_prob(&rows, Key::new(1)).expect("rows that fit").scores;
    assert_eq!((found.values[0], found.status[0]), (f64::NEG_INFINITY, Status::OutOfSupport));
    assert!(found.values[1].is_finite() && found.values[2] == 0.0);
    let error = flow.prepare_imputer().expect("one").impute(&rows, 1, Key::new(1)).expect_err("an impossible row");
    assert!(error.to_string().contains("1 of 3 rows") && error.to_string().contains("the first row 1"), "{error}");
    let narrow = Incomplete::from_rows(&[[1.0, HOLE]]).expect("a row");
    assert!(matches!(flow.prepare_imputer().expect("one").impute(&narrow, 1, Key::new(1)), Err(Error::Input(_))));
}

#[test]
fn estimates_are_not_exponentiated() {
    let (_, maps) = mixed(400);
    let mut flow = joint(&cpu(), Family::Residual, &maps, 3);
    flow.set_log_prob_estimator("roulette:law=poisson,rate=2,exact=2".parse::<Estimator>().expect("an estimator"), 2)
        .expect("in range");
    let error = flow.prepare_marginal().expect_err("an estimate");
    assert!(error.to_string().contains("--estimator exact"), "{error}");
    let plain = random_flow(&cpu(), exact_config(2, 1, &[4]), Key::new(1), 0.1);
    let error = plain.prepare_marginal().expect_err("no imputer");
    assert!(error.to_string().contains("Fit::missing"), "{error}");
}

#[test]
fn files_and_threads_change_no_bit() {
    let (rows, maps) = mixed(100);
    let seen = (0..300).map(|e| e % 7 != 0 && e % 5 != 1).collect();
    let holes = Incomplete::masked(&rows, seen).expect("a mark for each cell");
    let bits = |flow: &Flow<NdArray<f32>>| {
        let scores = flow.prepare_marginal().expect("exact").log_prob(&holes, Key::new(1)).expect("rows that fit");
        let filled = flow.prepare_imputer().expect("one").impute(&holes, 4, Key::new(1)).expect("rows that fit");
        (scores.scores.values, scores.scores.standard_error, scores.effective, filled.into_table().into_values())
    };
    let with = |threads: usize| {
        let b = NdArray::<f32>::with_threads(NonZeroUsize::new(threads).expect("positive")).expect("threads");
        joint(&b, Family::Monotone, &maps, 5)
    };
    let flow = with(1);
    let own = bits(&flow);
    for threads in [2, 3] {
        assert!(bits(&with(threads)) == own, "{threads} threads");
    }
    let archive = flow.to_archive().expect("stored");
    let again = Flow::from_archive(NdArray::<f32>::new(), &archive).expect("its own file");
    assert!(bits(&again) == own);
    assert_eq!(again.to_archive().expect("stored").to_bytes().expect("bytes"), archive.to_bytes().expect("bytes"));
    // the joint alone is a model like any other
    let mut alone = archive.clone();
    alone.tensors.retain(|name, _| !name.starts_with("imputer."));
    assert!(Flow::from_archive(NdArray::<f32>::new(), &alone).is_err(), "an imputer without its tensors");
    alone.document["model"].as_object_mut().expect("an object").remove("imputer");
    let joint = Flow::from_archive(NdArray::<f32>::new(), &alone).expect("a model");
    assert!(joint.imputer().is_none());
    let mut left_over = archive.clone();
    left_over.document["model"].as_object_mut().expect("an object").remove("imputer");
    assert!(Flow::from_archive(NdArray::<f32>::new(), &left_over).is_err(), "tensors that nothing uses");
}

#[test]
fn rows_and_columns_of_which_nothing_was_seen_are_refused_together() {
    let rows = Incomplete::from_rows(&[[1.0, HOLE, 2.0], [HOLE, HOLE, HOLE], [3.0, HOLE, 1.0]]).expect("rows");
    let error =
        MissingFit::new(&rows, &TrainConfig::for_table(Family::Nsf, 3), Key::new(0)).expect_err("nothing there");
    let Error::Data(DataError::NothingSeen { columns, rows }) = &error else { panic!("{error}") };
    assert_eq!((columns.len(), &rows[..]), (1, &[1][..]));
    assert!(error.to_string().contains("column 2") && error.to_string().contains("the first row 2"), "{error}");
    let complete = Incomplete::from_rows(&[[1.0, HOLE], [2.0, 3.0]]).expect("rows").complete().expect_err("a hole");
    let words = complete.to_string();
    assert!(
        words.contains("1 cell of column 2 is missing, in 1 of 2 rows") && words.contains("Fit::missing"),
        "{words}"
    );
    assert!(Incomplete::from_rows(&[[1.0, f64::INFINITY]]).is_err());
}

/// Both stages on a Gaussian of which a quarter is missing, by the default settings: what is filled in has the conditional means and
/// variances, and what was seen the marginal density. The key is fixed.
#[test]
fn a_fit_of_rows_with_holes_finds_the_gaussian() {
    let gaussian = Gaussian::new();
    let rows = gaussian.sample(2000, Key::new(21));
    let mut chance = vec![0.0; 6000];
    Noise::Uniform.fill(Key::new(22), 0, &mut chance);
    let seen = (0..6000).map(|e| chance[e] > 0.25 || e % 3 == e / 3 % 3).collect();
    let scaled = rows.iter().flat_map(|row| row.iter().map(|x| 50.0 + 10.0 * x)).collect();
    let holes = Incomplete::masked(&table(3, scaled), seen).expect("a mark for each cell");
    let train = TrainConfig::for_table(Family::Nsf, 2000);
    let (b, key) = (NdArray::<f32>::new(), Key::new(3));
    let fit = MissingFit::new(&holes, &train, key).expect("rows that can be learned");
    let mut first = fit.imputer_trainer(b.clone(), Budget::Steps(600), key).expect("defaults");
    first.run(|_, _| ()).expect("finite");
    let flow = Flow::new(b.clone(), FlowConfig::for_table(Family::Nsf, 2000, 3), key).expect("defaults");
    let imputer = fit.imputer(first.model()).expect("an imputer");
    let mut second = fit.trainer(flow, imputer, &train, Budget::Steps(20), key).expect("defaults");
    second.run(|_, _| ()).expect("finite");
    assert!(second.flow().provenance().data.contains("cells missing"));

    // interrupted in either stage, it goes on with the same rows
    let archive = second.to_archive().expect("stored");
    let resumed = fit.resume(b.clone(), &archive, key).expect("its own state");
    assert_eq!(resumed.best_nll(), second.best_nll());
    let archive = first.to_archive().expect("stored");
    assert_eq!(fit.resume_imputer(b.clone(), &archive, key).expect("its own state").steps_done(), first.steps_done());
    assert!(fit.resume(b, &archive, key).is_err(), "the other stage");

    let model = second.model();
    let fresh = gaussian.sample(60, Key::new(23));
    let (incomplete, seen) =
        patterns(&fresh.iter().map(|row| row.iter().map(|x| 50.0 + 10.0 * x).collect()).collect::<Vec<_>>());
    let draws = 400;
    let filled = model.prepare_imputer().expect("one").impute(&incomplete, draws, Key::new(24)).expect("rows that fit");
    let (means, mut apart, mut ratios) = (filled.means(), Vec::new(), Vec::new());
    for (i, seen) in seen.iter().enumerate() {
        let missing: Vec<usize> = (0..3).filter(|j| !seen.contains(j)).collect();
        let (mean, covariance) = gaussian.given(&fresh[i], seen, &missing);
        for (a, &j) in missing.iter().enumerate() {
            let deviation = 10.0 * covariance[(a, a)].sqrt();
            apart.push((means.row(i)[j] - 50.0 - 10.0 * mean[a]) / deviation);
            let spread = (0..draws).map(|k| (filled.table().row(i * draws + k)[j] - means.row(i)[j]).powi(2));
            ratios.push((spread.sum::<f64>() / (draws - 1) as f64).sqrt() / deviation);
        }
    }
    let largest = largest(apart.iter().copied());
    let typical = (apart.iter().map(|a| a * a).sum::<f64>() / apart.len() as f64).sqrt();
    let (mean_ratio, _) = mean_and_error(&ratios);
    println!(
        "conditional means {typical:.3} deviations apart, at most {largest:.3}; deviations {mean_ratio:.3} of the true ones"
    );
    assert!(typical < 0.15 && (0.9..1.1).contains(&mean_ratio), "{typical}, {largest}, {mean_ratio}");

    let marginal = model.prepare_marginal().expect("exact");
    let found = marginal.log_prob(&incomplete, Key::new(25)).expect("rows that fit");
    let off: Vec<f64> = seen
        .iter()
        .enumerate()
        .map(|(i, seen)| found.scores.values[i] + seen.len() as f64 * 10_f64.ln() - gaussian.log_prob(&fresh[i], seen))
        .collect();
    let (mean, error) = mean_and_error(&off);
    let effective: Vec<f64> = found.effective.iter().flatten().copied().collect();
    println!("log p {mean:.4} ± {error:.4} from the truth, {:.1} effective draws of 64", mean_and_error(&effective).0);
    assert!(mean.abs() < 0.1 && off.iter().all(|o| o.abs() < 1.0), "{mean} ± {error}");
    assert!(mean_and_error(&effective).0 > 32.0);
}

/// The front door: arrays with NaN in, and the same bits for the same seed; and what is refused.
#[test]
fn arrays_with_nan_are_fitted_where_that_is_asked_for() {
    let gaussian = Gaussian::new();
    let rows = gaussian.sample(200, Key::new(31));
    let x: Vec<Vec<f64>> =
        (0..200).map(|i| (0..3).map(|j| if (i + 2 * j) % 5 == 0 { HOLE } else { rows[i][j] }).collect()).collect();
    let error = resflow::fit(&x).expect_err("missing cells");
    assert!(matches!(&error, Error::Data(DataError::Missing { cells: 120, rows: 120, of: 200, .. })), "{error}");
    let mut stages = Vec::new();
    let fit = |x: &Vec<Vec<f64>>| Fit::new().missing(true).steps(20).run(x).expect("a fit");
    let model = Fit::new().missing(true).steps(20).on_progress(|progress| {
        stages.push(progress.imputing);
        std::ops::ControlFlow::Continue(())
    });
    let model = model.run(&x).expect("a fit");
    assert_eq!((stages.iter().filter(|imputing| **imputing).count(), stages.len()), (20, 40));
    let scores = model.score_seen(&x).expect("rows that fit");
    assert_eq!(model.log_prob(&x).expect("rows that fit").to_vec(), scores.scores.values);
    assert_eq!(scores.effective.iter().filter(|effective| effective.is_some()).count(), 120);
    let filled = model.impute(&x, 2).expect("rows that fit");
    assert_eq!(filled.dim(), (400, 3));
    assert!(x.iter().enumerate().all(|(i, row)| (0..3).all(|j| row[j].is_nan() || row[j] == filled[[2 * i + 1, j]])));
    let again = fit(&x);
    assert_eq!(again.impute(&x, 2).expect("rows that fit"), filled);
    assert_eq!(again.log_prob(&x).expect("rows that fit").to_vec(), scores.scores.values);
    assert!(model.provenance().scores.is_some() && model.provenance().data.contains("120 cells missing"));

    // its file has both flows
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    model.save(&path).expect("written");
    let loaded = resflow::Model::load(&path).expect("its own file");
    assert_eq!(loaded.impute(&x, 2).expect("rows that fit"), filled);

    // log p of some columns is none of all
    assert!(matches!(model.percentile(&x), Err(Error::Data(DataError::Missing { .. }))));
    assert!(model.percentile(&rows).expect("rows that fit").iter().all(|p| (0.0..=100.0).contains(p)));
    let given = Fit::new().missing(true).given(&rows).expect("contexts").run(&x).expect_err("both");
    assert!(given.to_string().contains("`missing`"), "{given}");
    let plain = Fit::new().steps(2).run(&rows).expect("a fit");
    assert!(matches!(plain.log_prob(&x), Err(Error::Data(DataError::Missing { .. }))));
    assert!(matches!(plain.impute(&x, 1), Err(Error::Input(_))));
    // stopped in the first stage, it is the mixture of rows that were filled in
    let stopped = Fit::new().missing(true).steps(20).on_progress(|_| std::ops::ControlFlow::Break(())).run(&x);
    assert_eq!(stopped.expect("a fit").provenance().steps, 0);
    // rows that lack nothing are fitted as ever, and the model fills others in
    let whole = fit(&rows);
    assert_eq!(whole.impute(&x, 1).expect("rows that fit").dim(), (200, 3));
}
