//! Fits of tables by their defaults: the first model is the best mixture of Gaussians, no later one is worse, and what
//! makes a table's density meaningless is found. Keys are fixed, so no test fails by chance.

use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise};
use resflow::config::{BaseConfig, Family, FlowConfig};
use resflow::data::{self, ColumnFit, Concern, Severity, Table};
use resflow::flow::Flow;
use resflow::train::{Budget, TrainConfig, Trainer};

use crate::common::*;

/// A small table of columns that depend on each other, of one of four shapes.
fn table(rows: usize, columns: usize, number: u64) -> Table {
    let mut noise = vec![0.0; rows * columns];
    Noise::Normal.fill(Key::new(number).named("table"), 0, &mut noise);
    let value = |i: usize, j: usize| {
        let (own, first) = (noise[i * columns + j], noise[i * columns]);
        match (number + j as u64) % 4 {
            0 => 0.6 * first + own,
            1 => 3.0 * (first > 0.0) as u8 as f64 + 0.4 * own,
            2 => (0.5 * own + 0.3 * first).exp(),
            _ => (first * 2.0).sin() + 0.3 * own,
        }
    };
    let values = (0..rows * columns).map(|e| 100.0 + 7.0 * value(e / columns, e % columns)).collect();
    Table::new(None, columns, values).expect("a table")
}

fn run<B: Backend>(backend: B, table: &Table, family: Family, steps: u64, train: &TrainConfig) -> Trainer<B> {
    let config = FlowConfig::for_table(family, table.rows(), table.width());
    let flow = Flow::new(backend, config, Key::new(1)).expect("a configuration");
    Trainer::new(flow, table.clone(), train, Budget::Steps(steps), Key::new(2)).expect("data that fit")
}

/// The untrained flow against the mixture's own score, in the precision of the backend.
fn begins_at_the_mixture<B: Backend>(backend: &B, tolerance: f64) {
    for (number, family) in [Family::Residual, Family::RealNvp, Family::Glow, Family::Nsf].into_iter().enumerate() {
        let table = table(300, 3, number as u64);
        // affine maps, whose log det is the same for every row
        let train = TrainConfig { columns: ColumnFit::Standardise, ..TrainConfig::for_table(family, 300) };
        let mut trainer = run(backend.clone(), &table, family, 20, &train);
        let first = trainer.validate().expect("finite");
        let ladder = trainer.flow().provenance().ladder.clone().expect("a fitted base");
        let chosen = ladder.chosen().expect("the best of them");
        let apart = (first.nll + chosen.log_prob).abs() / chosen.log_prob.abs().max(1.0);
        assert!(apart < tolerance, "{family}: {} and {}", -first.nll, chosen.log_prob);
        assert!(matches!(trainer.flow().config().base(), BaseConfig::Mixture(_)));
        assert!(ladder.rungs.iter().all(|rung| rung.log_prob <= chosen.log_prob));
    }
}

#[test]
fn an_untrained_flow_is_the_mixture() {
    begins_at_the_mixture(&cpu(), 1e-9);
    begins_at_the_mixture(&NdArray::<f32>::new(), 1e-5);
}

#[test]
fn no_fit_is_worse_than_its_mixture() {
    for number in 0..20 {
        let (rows, columns) = (60 + 10 * number as usize, 1 + number as usize % 4);
        let table = table(rows, columns, number);
        let family = if number % 2 == 0 || columns == 1 { Family::Residual } else { Family::Nsf };
        let train = TrainConfig::for_table(family, rows);
        let mut trainer = run(cpu(), &table, family, 60, &train);
        let first = trainer.validate().expect("finite").nll;
        trainer.run(|_, _| ()).expect("finite");
        let best = trainer.best_nll().expect("validated");
        assert!(best <= first, "table {number}: {best} after {first}");
        let key = Key::new(2).named("validation");
        let again = trainer.model().log_prob(trainer.validation_samples(), key).expect("rows that fit");
        assert!((again.mean() + best).abs() < 1e-9 * best.abs().max(1.0), "the model is the best one");
        // and it goes on from its file
        let archive = trainer.to_archive().expect("stored");
        let resumed = Trainer::resume(cpu(), &archive, table).expect("its own state");
        assert_eq!(resumed.best_nll(), Some(best));
    }
}

/// Maps that make each column look like a normal are given up where they break what columns have in common, and kept where
/// they do not; a run that goes on has the same ones.
#[test]
fn maps_do_not_break_clusters() {
    let mut noise = vec![0.0; 4 * 800];
    Noise::Normal.fill(Key::new(9), 0, &mut noise);
    let clusters = |u: &[f64]| {
        let side = |x: f64| if x > 0.0 { 4.0 } else { -4.0 };
        [side(u[2]) + u[0], side(u[3]) + 0.3 * side(u[2]) + 0.6 * u[0] + 0.5 * u[1]]
    };
    let skewed = |u: &[f64]| [u[0].exp(), (0.7 * u[0] + 0.7 * u[1]).exp()];
    for (shaped, row) in [(false, &clusters as &dyn Fn(&[f64]) -> [f64; 2]), (true, &skewed)] {
        let rows: Vec<Vec<f64>> = noise.chunks(4).map(|u| row(u).to_vec()).collect();
        let table = Table::from_rows(&rows).expect("a table");
        let alone = data::ColumnMaps::fit(
            &table,
            None,
            &data::ColumnSettings { fit: ColumnFit::Auto, ..data::ColumnSettings::default() },
        );
        assert!(alone.expect("maps").maps().iter().all(|map| map.spline().is_some() || map.asinh().is_some()));
        let train = TrainConfig::for_table(Family::Residual, 800);
        let trainer = run(cpu(), &table, Family::Residual, 5, &train);
        let has = |trainer: &Trainer<_>| -> Vec<bool> {
            let maps = trainer.flow().columns().maps();
            maps.iter().map(|map| map.spline().is_some() || map.asinh().is_some()).collect()
        };
        assert_eq!(has(&trainer), [shaped; 2]);
        let archive = trainer.to_archive().expect("stored");
        let mut resumed = Trainer::resume(cpu(), &archive, table).expect("its own state");
        assert_eq!(resumed.flow().columns(), trainer.flow().columns());
        let mut trainer = trainer;
        trainer.run(|_, _| ()).expect("finite");
        resumed.run(|_, _| ()).expect("finite");
        assert_eq!(trainer.to_archive().expect("stored").tensors, resumed.to_archive().expect("stored").tensors);
    }
}

/// A run beside another takes over what was fitted and is the same run to the bit; going on, nothing is lost.
#[test]
fn a_run_beside_another_is_the_same_run() {
    let table = table(300, 3, 2);
    let train = TrainConfig::for_table(Family::Nsf, 300);
    let flow = || Flow::new(cpu(), FlowConfig::for_table(Family::Nsf, 300, 3), Key::new(1)).expect("a configuration");
    let mut other = run(cpu(), &table, Family::Residual, 10, &TrainConfig::for_table(Family::Residual, 300));
    other.run(|_, _| ()).expect("finite");
    let budget = Budget::Steps(15);
    let alone = Trainer::new(flow(), table.clone(), &train, budget, Key::new(2)).expect("data that fit");
    let beside = Trainer::new_beside(&other, flow(), table.clone(), &train, budget).expect("data that fit");
    // other rows for validation: nothing to take over
    let apart = TrainConfig { validation_fraction: 0.25, ..train.clone() };
    let new = Trainer::new(flow(), table.clone(), &apart, budget, Key::new(2)).expect("data that fit");
    let not_beside = Trainer::new_beside(&other, flow(), table.clone(), &apart, budget).expect("data that fit");
    let same = |mut one: Trainer<_>, mut two: Trainer<_>| {
        one.run(|_, _| ()).expect("finite");
        two.run(|_, _| ()).expect("finite");
        let files = [&one, &two].map(|trainer| trainer.to_archive().expect("stored"));
        assert_eq!(files[0].tensors, files[1].tensors);
        assert_eq!(one.flow().provenance(), two.flow().provenance());
        let (best, steps) = (two.best_nll().expect("validated"), two.steps_done());
        two.go_on(Budget::Steps(60)).expect("a budget");
        assert!(!two.finished());
        two.run(|_, _| ()).expect("finite");
        assert!(two.best_nll().expect("validated") <= best && two.steps_done() > steps);
    };
    same(alone, beside);
    same(new, not_beside);
}

/// log p(x) = log N(u; 0, I) + log det whatever the base is, and the scores lead back.
#[test]
fn latents_of_every_base_are_made_normal() {
    for base in ["mixture:components=3", "mixture:components=2,covariance=diagonal", "student-t", "normal"] {
        let config = FlowConfig { base: base.parse().expect("a base"), ..exact_config(3, 2, &[8]) };
        let flow = Flow::new(cpu(), config, Key::new(4)).expect("a configuration");
        let table = table(40, 3, 5);
        let mut flow = flow;
        flow.set_columns(data::Standardiser::fit(&table).expect("it varies").into()).expect("of the width");
        let prepared = flow.prepare();
        let log_p = prepared.log_prob(&table, Key::new(1)).expect("rows that fit");
        let encoded = prepared.encode(&table, Key::new(1)).expect("rows that fit");
        let scores = prepared.normal_scores(encoded.clone()).expect("no device fault");
        let tau = std::f64::consts::TAU.ln();
        for i in 0..40 {
            let u = scores.latents.row(i);
            let normal = -0.5 * u.iter().map(|u| u * u + tau).sum::<f64>();
            let (found, expected) = (normal + scores.log_det[i], log_p.values[i]);
            assert!((found - expected).abs() < 1e-9 * expected.abs().max(1.0), "{base}: {found} and {expected}");
        }
        let back = prepared.invert_normal_scores(&scores.latents).expect("no device fault");
        for (z, again) in encoded.latents.values().iter().zip(back.values()) {
            assert!((z - again).abs() < 1e-9 * z.abs().max(1.0), "{base}: {z} and {again}");
        }
    }
}

#[test]
fn a_look_finds_what_makes_a_density_meaningless() {
    let plain = table(400, 3, 4);
    let concerns = |table: &Table| {
        let look = data::look(table, None).expect("rows");
        look.findings.iter().map(|finding| (finding.concern, finding.severity)).collect::<Vec<_>>()
    };
    let with = |extra: &dyn Fn(usize, &[f64]) -> f64| {
        let rows: Vec<Vec<f64>> =
            (0..400).map(|i| plain.row(i).iter().copied().chain([extra(i, plain.row(i))]).collect()).collect();
        Table::from_rows(&rows).expect("a table")
    };
    assert!(concerns(&plain).iter().all(|(_, severity)| *severity == Severity::Note), "{:?}", concerns(&plain));
    for (extra, expected) in [
        (&(|_, _: &[f64]| 5.0) as &dyn Fn(usize, &[f64]) -> f64, (Concern::Constant, Severity::Grave)),
        (&|_, row: &[f64]| 2.0 * row[0] - row[1], (Concern::Dependent, Severity::Grave)),
        (&|_, row: &[f64]| row[0] + 1e-5 * row[1] * row[1], (Concern::Dependent, Severity::Warning)),
        (&|_, row: &[f64]| 1e15 + 0.25 * (row[0] > 100.0) as u8 as f64, (Concern::Rounding, Severity::Grave)),
        (&|i, _: &[f64]| i as f64, (Concern::Counter, Severity::Warning)),
        (&|i, row: &[f64]| if i == 7 { 1e9 } else { row[2] + row[0] * row[1] }, (Concern::Outliers, Severity::Warning)),
        (&|i, _: &[f64]| (i * i % 5) as f64, (Concern::Discrete, Severity::Warning)),
        (&|i, row: &[f64]| if i % 9 == 0 { 0.0 } else { row[2] * row[0] }, (Concern::Spike, Severity::Warning)),
    ] {
        let found = concerns(&with(extra));
        assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
    }
    let doubled = plain.select(&(0..400).chain(0..100).collect::<Vec<_>>());
    assert!(concerns(&doubled).contains(&(Concern::Copies, Severity::Warning)));
    assert!(concerns(&plain.select(&[0, 1, 2, 3])).contains(&(Concern::FewRows, Severity::Warning)));
}

/// A column that has one value in all rows but one fits, on whichever side of the split that row is.
#[test]
fn a_rare_value_is_no_constant() {
    let plain = table(120, 2, 4);
    let rows: Vec<Vec<f64>> =
        (0..120).map(|i| plain.row(i).iter().copied().chain([f64::from(u8::from(i == 5))]).collect()).collect();
    let table = Table::from_rows(&rows).expect("a table");
    for seed in 0..12 {
        let config = FlowConfig::for_table(Family::Residual, 120, 3);
        let flow = Flow::new(cpu(), config, Key::new(1)).expect("a configuration");
        let train = TrainConfig::for_table(Family::Residual, 120);
        let trainer = Trainer::new(flow, table.clone(), &train, Budget::Steps(2), Key::new(seed));
        assert!(trainer.is_ok(), "seed {seed}: {:?}", trainer.err());
    }
}
