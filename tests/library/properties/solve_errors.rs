//! What the errors of forward solves leave in log p: told to first order, and checked against solves that go to the end.

use crate::common::*;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Draw, Memory, PreparedBijection as _};
use resflow::chain::Chain;
use resflow::config::{ContextConfig, Family, FlowConfig, ImageConfig, ModelConfig};
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, PreparedFlow};

use super::dequantisation::variational;

const ROWS: usize = 6;

/// log p of each sample up to a constant, by solves of an accuracy.
fn log_p(b: &Cpu, flow: &PreparedFlow<Cpu>, x: &Batch<Cpu>, accuracy: f64) -> Vec<f64> {
    let ask = asked(accuracy);
    let found = flow.chain().forward(b, x, &ask).expect("no device fault");
    let energy = down(b, &b.dot_rows(&found.y, &found.y)).into_iter().map(|square| -0.5 * square);
    let mut log_p: Vec<f64> = energy.collect();
    for log_det in &found.log_dets {
        log_p.iter_mut().zip(down(b, &log_det.value)).for_each(|(sum, own)| *sum += own);
    }
    log_p
}

fn asked(accuracy: f64) -> Ask<'static> {
    let draw = Draw { estimator: &Estimator::Exact(Exact), key: Key::new(0) };
    let ask = Ask::gradient::<Cpu>(draw, Memory::Store);
    Ask { solver: ask.solver.with_accuracy(accuracy).expect("between 0 and 1"), ..ask }
}

fn exact(config: impl Into<ModelConfig>, seed: u64) -> PreparedFlow<Cpu> {
    random_flow(&cpu(), config, Key::new(seed), 0.3).prepare()
}

/// The true errors of solves that stop early, and what is said of them.
fn errors(flow: &PreparedFlow<Cpu>, x: &Batch<Cpu>, accuracy: f64) -> Vec<(f64, f64)> {
    let b = cpu();
    let reports = flow.chain().forward(&b, x, &asked(accuracy)).expect("no device fault").reports.expect("solves");
    let told = flow
        .chain()
        .bound_solve_errors(&b, x, &reports, &asked(1e-3), |z| b.affine(z.x, -1.0, 0.0))
        .expect("no device fault");
    let (early, late) = (log_p(&b, flow, x, accuracy), log_p(&b, flow, x, 1e-14));
    early.iter().zip(&late).zip(told).map(|((early, late), told)| ((early - late).abs(), told)).collect()
}

/// The bounds of rows and images through two blocks of either kind, stopped at 1e-3 to 1e-7, hold: within a tenth, which is
/// left to the second order and to the accuracy of the slopes. They are not far above the truth either, in the median (29): norms are multiplied
/// where numbers would cancel, and each transform counts with the residual of the worst.
#[test]
fn errors_of_solves_are_bounded_and_not_by_much() {
    let b = cpu();
    let mut ratios = Vec::new();
    let mut check = |flow: &PreparedFlow<Cpu>, x: &Batch<Cpu>, what: &str| {
        for accuracy in [1e-3, 1e-5, 1e-7] {
            for (row, (error, told)) in errors(flow, x, accuracy).into_iter().enumerate() {
                let rounding = 1e-11;
                assert!(error <= 1.1 * told + rounding, "{what}, {accuracy:e}, row {row}: {error:e} above {told:e}");
                assert!(told < 1e4 * accuracy, "{what}, {accuracy:e}, row {row}: {told:e}");
                ratios.extend((error > 100.0 * rounding).then_some(told / error));
            }
        }
    };
    for family in [Family::Implicit, Family::Monotone] {
        for seed in 0..12 {
            let d = 1 + seed as usize % 4;
            let (training, evaluation) = (Estimator::Exact(Exact), Estimator::Exact(Exact));
            let rows = FlowConfig { blocks: 2, hidden: vec![6], training, evaluation, ..FlowConfig::of(family, d) };
            // CPila takes weights of the 2-norm alone
            let norms = if family == Family::Implicit && seed % 3 == 2 { "1f1" } else { "2" };
            let rows = FlowConfig { norms: norms.parse().expect("a chain"), ..rows };
            let x = Batch::new(normal(&b, Key::new(seed).named("x"), [ROWS, d]));
            check(&exact(rows.clone(), seed), &x, &format!("{family} of {d} columns, seed {seed}"));
            // given contexts, which enter both solves; the chain gets them as their embedding has them
            let context = ContextConfig { embedding: vec![5], gates: seed % 2 == 1, ..ContextConfig::new(3) };
            let given = ModelConfig::from(rows).with_context(Some(context));
            let embedded = b.affine(normal(&b, Key::new(seed).named("embedded"), [ROWS, 5]), 0.3, 0.0);
            let x = x.with_context(Some(embedded));
            check(&exact(given, seed), &x, &format!("{family} of {d} columns given a context, seed {seed}"));
        }
        for (image, blocks) in [([4, 4, 1], vec![1, 1]), ([2, 2, 3], vec![2])] {
            let flow = exact(ImageConfig { model: family, ..exact_images(image, &blocks) }, 3);
            let bytes = images(ROWS, image, Key::new(5)).into_bytes();
            let values: Vec<f64> = bytes.into_iter().map(|byte| (f64::from(byte) + 0.5) / 256.0).collect();
            let x = Batch::new(b.upload(&values, [ROWS, image[0], image[1], image[2]].into()));
            check(&flow, &x, &format!("{family}, images of {image:?}"));
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    assert!(ratios.len() > 300 && median < 50.0, "{} ratios, their median {median}", ratios.len());
}

/// Of several solves inside of one transform nothing is known.
#[test]
fn solves_inside_of_a_chain_in_a_chain_are_not_bounded() {
    let (b, d) = (cpu(), 2);
    let rows = FlowConfig { blocks: 2, hidden: vec![6], ..FlowConfig::of(Family::Monotone, d) };
    let flow = random_flow(&b, rows.clone(), Key::new(1), 0.3);
    let x = table(d, down(&b, &normal(&b, Key::new(2), [ROWS, d])));
    let expected = flow.prepare().log_prob(&x, Key::new(3)).expect("rows that fit");
    let chain = Chain::new(flow.transforms().to_vec(), &[d]).expect("a chain");
    let nested = Flow::from_transforms(b, ModelConfig::from(rows), vec![Box::new(chain)]).expect("a flow");
    let found = nested.prepare().log_prob(&x, Key::new(3)).expect("rows that fit");
    assert_eq!(found.solve_error, [f64::INFINITY; ROWS]);
    assert!(apart(&found.values, &expected.values) < 1e-9, "{:?} and {:?}", found.values, expected.values);
}

/// Leaving them out changes nothing else; a latent's way, and flows that solve nothing, have none.
#[test]
fn errors_of_solves_can_be_left_out() {
    let rows = |family| FlowConfig { blocks: 2, hidden: vec![6], ..FlowConfig::of(family, 2) };
    let flow: Flow<Cpu> = random_flow(&cpu(), rows(Family::Monotone), Key::new(1), 0.3);
    let x = table(2, down(&cpu(), &normal(&cpu(), Key::new(2), [ROWS, 2])));
    let with = flow.prepare().log_prob(&x, Key::new(3)).expect("rows that fit");
    let without = flow.prepare().without_solve_errors().log_prob(&x, Key::new(3)).expect("rows that fit");
    assert_eq!(
        (&with.values, &with.status, with.most_evaluations),
        (&without.values, &without.status, without.most_evaluations)
    );
    assert!(with.solve_error.iter().all(|error| *error > 0.0 && *error < 1e-8), "{:?}", with.solve_error);
    assert!(without.solve_error.is_empty());
    let residual = random_flow(&cpu(), rows(Family::Residual), Key::new(1), 0.3).prepare();
    assert!(!residual.chain().has_solves());
    assert_eq!(residual.log_prob(&x, Key::new(3)).expect("rows that fit").solve_error, [0.0; ROWS]);
}

/// A row's error is its own: many rows, which no cache holds at once, have those that they have in few.
#[test]
fn errors_of_many_rows_are_those_of_few() {
    let (b, n, few) = (cpu(), 190, 10);
    for family in [Family::Implicit, Family::Monotone] {
        // what a backward pass keeps of so wide a net is more than what fits a cache, in fewer rows than those of an evaluation
        let rows = FlowConfig { blocks: 8, hidden: vec![128, 128], ..FlowConfig::of(family, 2) };
        let flow = random_flow(&b, rows, Key::new(1), 0.03).prepare();
        let x = down(&b, &normal(&b, Key::new(2), [n, 2]));
        let all = flow.log_prob(&table(2, x.clone()), Key::new(3)).expect("rows that fit").solve_error;
        assert!(all.iter().all(|error| *error > 0.0));
        for first in [0, 63, n - few] {
            let own = table(2, x[2 * first..2 * (first + few)].to_vec());
            let own = flow.log_prob_from(&own, first as u64, Key::new(3)).expect("rows that fit").solve_error;
            for (own, all) in own.iter().zip(&all[first..]) {
                assert!((own - all).abs() < 0.01 * all, "{family}, from {first}: {own:e} of few, {all:e} of all");
            }
        }
    }
}

/// The errors are those at the image with its noise, whichever way that is drawn: a variational dequantiser that has not learned gives
/// uniform noise, and so the same errors. Of others they are still those of the solves.
#[test]
fn errors_are_those_of_the_image_with_its_noise() {
    let b = cpu();
    for family in [Family::Implicit, Family::Monotone] {
        let config = ImageConfig { model: family, ..exact_images([4, 4, 1], &[1, 1]) };
        let set = images(ROWS, [4, 4, 1], Key::new(5));
        let learned = ImageConfig { dequantisation: variational(Family::RealNvp), ..config.clone() };
        let errors = |flow: &Flow<Cpu>| flow.log_prob(&set, Key::new(3)).expect("images that fit").solve_error;
        let uniform = random_flow(&b, config.clone(), Key::new(2), 0.2);
        // the same flow behind q: what is q's own stays as it began
        let mut fresh = Flow::new(b.clone(), learned.clone(), Key::new(2)).expect("a configuration");
        let mut known = Vec::new();
        uniform.visit(&mut |name, t, _| known.push((name.to_owned(), t.clone())));
        let mut taken = 0;
        fresh.visit_mut(&mut |name, t, _| {
            if let Some((_, own)) = known.iter().find(|(known, _)| known == name) {
                *t = own.clone();
                taken += 1;
            }
        });
        assert_eq!(taken, known.len(), "{family}");
        for (uniform, fresh) in errors(&uniform).into_iter().zip(errors(&fresh)) {
            assert!(uniform > 0.0 && (fresh - uniform).abs() < 1e-3 * uniform, "{family}: {uniform:e} and {fresh:e}");
        }
        let other = errors(&random_flow(&b, learned, Key::new(2), 0.2));
        assert!(other.iter().all(|error| *error > 0.0 && *error < 1e-4), "{family}: {other:?}");
    }
}
