//! Samples of which a solve failed: they weigh nothing in any gradient, on the way there or back, are counted, and change nothing of the
//! others. The limit of a solver is lowered until some samples fail and others do not, so that no test passes because none failed.
//! No statistics: seeds are fixed.

use resflow::backend::{Backend as _, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, LogDet, Mapped, Memory, PreparedBijection, Tape, Wanted};
use resflow::config::{Family, FlowConfig, ModelConfig};
use resflow::error::Error;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, Gradient, Objective, PreparedFlow};
use resflow::invert::{Inversion, SampleReport, Solution, Status};
use resflow::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use resflow::variational::{GradientEstimator, Importance, Target, VariationalFlow, VariationalObjective};

use super::decode_gradient::moved;
use super::together::{LIMIT, on_ranks};
use super::variational::Ripple;
use crate::common::*;

/// y = x + b, whose way back is a solve that fails for samples with a first number above a limit.
#[derive(Debug, Clone)]
struct Stubborn {
    b: Tensor,
    limit: f64,
    /// What it says of its way forward.
    residual: f64,
}

impl Module<Cpu> for Stubborn {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, Cpu>) {
        show("b", Part::Tensor(&self.b, Role::Parameter));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, Cpu>) {
        show("b", PartMut::Tensor(&mut self.b, Role::Parameter));
    }

    fn describe(&self) -> String {
        "stubborn".into()
    }
}

impl Bijection<Cpu> for Stubborn {
    fn prepare(&self, _: &Cpu) -> Box<dyn PreparedBijection<Cpu>> {
        Box::new(self.clone())
    }
}

fn report(status: Status) -> SampleReport {
    SampleReport { residual: 0.0, error_bound: 0.0, iterations: 1, status }
}

/// The factor of the residual that it says bounds its error.
const FACTOR: f64 = 3.0;

impl PreparedBijection<Cpu> for Stubborn {
    fn forward(&self, b: &Cpu, batch: &Batch<Cpu>, ask: &Ask<'_>) -> Result<Mapped<Cpu>, Error> {
        let n = batch.len(b);
        let y = b.binary(resflow::backend::Binary::Add, batch.x.clone(), &self.b);
        let log_dets = ask.replicates().map(|_| LogDet::exact(b.full(0.0, [n, 1].into()))).into_iter().collect();
        let tape = matches!(ask.wanted, Wanted::Gradient { .. }).then(|| Tape::new(batch.x.clone()));
        Ok(Mapped {
            log_dets,
            tape,
            reports: Some(vec![SampleReport { residual: self.residual, ..report(Status::Converged) }; n]),
            ..Mapped::value(y)
        })
    }

    fn solves_forward(&self) -> Option<f64> {
        Some(FACTOR)
    }

    fn inverse(&self, b: &Cpu, batch: &Batch<Cpu>, _: &Inversion) -> Result<Solution<Cpu>, Error> {
        let x = b.binary(resflow::backend::Binary::Sub, batch.x.clone(), &self.b);
        Ok(Solution::closed_form(b, x, 1.0))
    }

    fn solve_transposed(
        &self,
        b: &Cpu,
        _: &Batch<Cpu>,
        gradient: &Tensor,
        _: &Inversion,
    ) -> Result<Solution<Cpu>, Error> {
        Ok(Solution::closed_form(b, gradient.clone(), 1.0))
    }

    fn backward(
        &self,
        b: &Cpu,
        tape: Tape,
        out: Cotangents<Cpu>,
        grads: &mut [Grad<Cpu>],
    ) -> Result<Cotangents<Cpu>, Error> {
        self.backward_reported(b, tape, out, grads, &mut None)
    }

    fn backward_reported(
        &self,
        b: &Cpu,
        tape: Tape,
        out: Cotangents<Cpu>,
        grads: &mut [Grad<Cpu>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<Cpu>, Error> {
        let (x, mut back) = (down(b, &tape.into_value::<Tensor>()), down(b, &out.x));
        let d = back.len() / b.shape(&out.x).rows();
        let all = reports.get_or_insert_with(|| vec![report(Status::Converged); x.len() / d]);
        for ((x, back), report) in x.chunks_exact(d).zip(back.chunks_exact_mut(d)).zip(all) {
            // nothing is to be solved for where the cotangent is zero
            if x[0] > self.limit && back.iter().any(|g| *g != 0.0) {
                report.status = report.status.max(Status::NotConverged);
                back.fill(0.0);
            }
        }
        let back = b.upload(&back, b.shape(&out.x));
        let of_shift = b.reduce(resflow::backend::Reduce::Sum, resflow::backend::Over::Channel, &back);
        accumulate(b, &mut grads[0], &of_shift);
        Ok(out.with_x(back))
    }
}

/// A flow of three numbers whose second transform is stubborn.
fn stubborn(limit: f64) -> Flow<Cpu> {
    let (b, d) = (cpu(), 3);
    let exact = Estimator::Exact(Exact);
    let config = FlowConfig {
        blocks: 2,
        hidden: vec![64, 64],
        training: exact.clone(),
        evaluation: exact,
        ..FlowConfig::new(d)
    };
    let config = ModelConfig::from(config);
    let mut transforms = moved(&config, 0.05).transforms().to_vec();
    transforms.insert(1, Box::new(Stubborn { b: b.full(0.1, [d].into()), limit, residual: 0.0 }));
    Flow::from_transforms(b, &config, transforms).expect("a flow")
}

/// In shards of which some have such samples and others none: the gradient without them.
#[test]
fn what_fails_on_the_way_back_has_no_part_in_the_transforms_behind() {
    let (b, d, n) = (cpu(), 3, 700);
    let flow = stubborn(2.0).prepare();
    let x = normal(&b, Key::new(2), [n, d]);
    let gradient = |weights: &[f64]| -> Gradient<Cpu> {
        let objective = Objective {
            batch: &Batch::new(x.clone()),
            weights: &b.upload(weights, [n, 1].into()),
            key: Key::new(3),
            memory: Memory::Store,
            input_gradient: true,
            supervision: None,
        };
        flow.gradient(&objective).expect("no device fault")
    };
    let weights: Vec<f64> = (0..n).map(|i| 0.5 + (i % 7) as f64).collect();
    let found = gradient(&weights);
    // samples weigh nothing whose own gradient in x is zero
    let input = down(&b, found.input.as_ref().expect("asked for"));
    let failed: Vec<bool> = input.chunks_exact(d).map(|row| row.iter().all(|g| *g == 0.0)).collect();
    let count = failed.iter().filter(|failed| **failed).count();
    assert!(count == found.solves.unsolved && count > 3 && count < n / 10, "{count}, {:?}", found.solves);
    let without: Vec<f64> = weights.iter().zip(&failed).map(|(w, failed)| if *failed { 0.0 } else { *w }).collect();
    let expected = gradient(&without);
    assert_eq!(expected.solves.unsolved, 0);
    for (found, expected) in [(&found.flat, &expected.flat), (&found.loss, &expected.loss)] {
        assert!(down(&b, found) == down(&b, expected), "it is made by the same operations");
    }
}

/// The same on the processes of a group, which tell each other gradients lane by lane: the bits of one process.
#[test]
fn what_fails_on_the_way_back_has_no_part_in_the_sum_of_a_group() {
    let (b, d, n) = (cpu(), 3, 700);
    let flow = stubborn(2.0);
    let gradient = |prepared: &PreparedFlow<Cpu>| {
        let objective = Objective {
            batch: &Batch::new(normal(&b, Key::new(2), [n, d])),
            weights: &b.full(1.0, [n, 1].into()),
            key: Key::new(3),
            memory: Memory::Store,
            input_gradient: false,
            supervision: None,
        };
        let found = prepared.gradient(&objective).expect("no fault");
        (down(&b, &found.flat), down(&b, &found.loss), found.solves)
    };
    let alone = gradient(&flow.prepare());
    assert!(alone.2.unsolved > 3, "{:?}", alone.2);
    for ranks in [2, 3] {
        for found in on_ranks(ranks, LIMIT, |group| gradient(&flow.prepare().with_group(group))) {
            assert!(found == alone, "{ranks} ranks: {:?} and {:?}", found.2, alone.2);
        }
    }
}

/// Through a shift alone log p is −½‖x + b‖² and a constant, whose gradient is x + b on either side: what its solve leaves is known.
#[test]
fn what_solves_leave_is_distances_times_slopes() {
    let (b, d, n) = (cpu(), 3, 50);
    let exact = Estimator::Exact(Exact);
    let config = FlowConfig { training: exact.clone(), evaluation: exact, ..FlowConfig::new(d) };
    for residual in [0.0, 1e-6] {
        let shift = Stubborn { b: b.full(0.1, [d].into()), limit: f64::INFINITY, residual };
        let flow = Flow::from_transforms(b.clone(), ModelConfig::from(config.clone()), vec![Box::new(shift)]);
        let x = table(d, down(&b, &normal(&b, Key::new(2), [n, d])));
        let scores = flow.expect("a flow").prepare().log_prob(&x, Key::new(3)).expect("rows that fit");
        for (i, found) in scores.solve_error.iter().enumerate() {
            let (x, y) = (norm(x.row(i)), norm(&x.row(i).iter().map(|x| x + 0.1).collect::<Vec<_>>()));
            let expected = (FACTOR * residual * x.max(1.0) + 2.0 * f64::EPSILON * (x + y)) * 2.0 * y;
            assert!((found / expected - 1.0).abs() < 1e-9, "row {i}: {found:e}, not {expected:e}");
        }
    }
}

/// log p of samples that fail on the way back alone is as good as any, but nothing tells what its solves leave in it: that is ∞, and
/// with a gradient their statuses say that they have none.
#[test]
fn what_fails_on_the_way_back_is_said_beside_log_p() {
    let (b, d, n) = (cpu(), 3, 200);
    let flow = stubborn(1.0).prepare();
    let x = table(d, down(&b, &normal(&b, Key::new(2), [n, d])));
    let alone = flow.log_prob(&x, Key::new(3)).expect("rows that fit");
    assert!(alone.status.iter().all(|status| *status == Status::Converged));
    let (scores, gradient) = flow.log_prob_and_gradient(&x, Key::new(3)).expect("rows that fit");
    let failed: Vec<bool> = (0..n).map(|i| gradient.row(i).iter().all(|g| *g == 0.0)).collect();
    let count = failed.iter().filter(|failed| **failed).count();
    assert!(count > 3 && count < n / 2 && scores.values == alone.values, "{count}");
    for (i, failed) in failed.into_iter().enumerate() {
        assert_eq!(scores.status[i], if failed { Status::NotConverged } else { Status::Converged });
        for error in [scores.solve_error[i], alone.solve_error[i]] {
            assert!(if failed { error == f64::INFINITY } else { error > 0.0 && error < 1e-10 }, "row {i}: {error:e}");
        }
    }
}

/// The least limit of iterations at which some of the samples fail and some do not.
fn partial(n: usize, unsolved: impl Fn(Inversion) -> usize) -> Inversion {
    let limits = (1..60).map(|limit| Inversion::for_backend::<Cpu>().with_limit(limit).expect("at least 1"));
    limits.into_iter().find(|how| (1..n).contains(&unsolved(*how))).expect("a limit that some samples keep")
}

/// The gradient of a variational flow is the sum of each sample's own: the others, of weight zero, have nothing to solve on the way back.
fn check_sum(n: usize, what: &str, run: &dyn Fn(&[f64]) -> resflow::variational::VariationalGradient<Cpu>) {
    let b = cpu();
    let weights: Vec<f64> = (0..n).map(|i| 0.1 + i as f64).collect();
    let found = run(&weights);
    let mut sum = vec![0.0; down(&b, &found.flat).len()];
    let mut failed = 0;
    for i in 0..n {
        let alone: Vec<f64> = (0..n).map(|k| if k == i { weights[k] } else { 0.0 }).collect();
        let own = down(&b, &run(&alone).flat);
        failed += usize::from(own.iter().all(|g| *g == 0.0));
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    assert!(failed == found.unsolved && failed > 0 && failed < n, "{what}: {failed}, {}", found.unsolved);
    let off = apart(&sum, &down(&b, &found.flat));
    assert!(off < 1e-10 * (1.0 + largest(sum.iter().copied())), "{what}: {off:e}");
}

/// Samples of a variational flow that fail on the way back alone: they have come to a sample, and a weight.
#[test]
fn variational_flows_leave_out_what_fails_on_the_way_back() {
    let flow = VariationalFlow::from_flow(stubborn(1.0)).expect("rows").prepare();
    for estimator in [GradientEstimator::Reparametrised, GradientEstimator::Path] {
        let run = |weights: &[f64]| {
            let asked = VariationalObjective { estimator, ..VariationalObjective::new::<Cpu>(weights, Key::new(5)) };
            let found = flow.gradient(&Ripple, &asked).expect("finite");
            assert!(found.impossible == 0 && found.log_weights.iter().all(|l| l.is_finite()), "{estimator:?}");
            found
        };
        check_sum(12, &format!("{estimator:?}"), &run);
    }
}

/// Gradients of variational flows whose way there is a solve: all samples failing, and some.
#[test]
fn variational_flows_leave_out_what_was_not_solved_for() {
    let (b, n) = (cpu(), 8);
    for family in [Family::Implicit, Family::Monotone] {
        let exact = Estimator::Exact(Exact);
        let config = FlowConfig {
            blocks: 2,
            hidden: vec![8, 8],
            training: exact.clone(),
            evaluation: exact,
            ..FlowConfig::of(family, 3)
        };
        let flow = VariationalFlow::from_flow(moved(&config.into(), 0.3)).expect("rows").prepare();
        for estimator in [GradientEstimator::Reparametrised, GradientEstimator::Path] {
            let run = |weights: &[f64], solver: Inversion| {
                let asked = VariationalObjective {
                    estimator,
                    solver,
                    ..VariationalObjective::new::<Cpu>(weights, Key::new(5))
                };
                flow.gradient(&Ripple, &asked).expect("finite")
            };
            let what = format!("{family}, {estimator:?}");
            let weights: Vec<f64> = (0..n).map(|i| 0.1 + i as f64).collect();
            let none = run(&weights, Inversion::for_backend::<Cpu>().with_limit(1).expect("a limit"));
            assert_eq!((none.unsolved, none.impossible), (n, 0), "{what}");
            assert!(none.log_weights.iter().all(|l| *l == f64::NEG_INFINITY), "{what}: {:?}", none.log_weights);
            assert!(down(&b, &none.flat).iter().all(|g| *g == 0.0), "{what}");

            let how = partial(n, |how| run(&weights, how).unsolved);
            assert!(run(&weights, Inversion::for_backend::<Cpu>()).unsolved == 0, "{what}");
            check_sum(n, &what, &|weights| run(weights, how));
        }
    }
}

/// Gradients through the inverse: those of the samples that were solved for, and finite whatever the others are.
#[test]
fn gradients_through_the_inverse_leave_out_what_was_not_solved_for() {
    let (b, n, d) = (cpu(), 6, 3);
    for family in [Family::Residual, Family::Implicit, Family::Monotone] {
        let config = FlowConfig { blocks: 2, hidden: vec![8, 8], ..FlowConfig::of(family, d) };
        let flow = moved(&config.into(), 0.3).prepare();
        let x = down(&b, &normal(&b, Key::new(1), [n, d]));
        let weights = down(&b, &normal(&b, Key::new(2), [n, d]));
        let run = |x: &[f64], only: Option<usize>, how: Inversion| {
            let own = |k: usize| if only.is_none_or(|only| only == k / d) { weights[k] } else { 0.0 };
            let gradient: Vec<f64> = (0..n * d).map(own).collect();
            let up = |values: &[f64]| b.upload(values, [n, d].into());
            let found = flow.decode_gradient(&up(x), &up(&gradient), &how).expect("no device fault");
            let failed: Vec<bool> = found.reports.iter().map(|report| !report.status.is_solved()).collect();
            (failed, down(&b, &found.latents), down(&b, &found.flat))
        };
        let count = |failed: &[bool]| failed.iter().filter(|failed| **failed).count();
        let how = partial(n, |how| count(&run(&x, None, how).0));
        let (failed, latents, flat) = run(&x, None, how);
        for (i, row) in latents.chunks_exact(d).enumerate() {
            assert!(failed[i] == row.iter().all(|g| *g == 0.0), "{family}: {failed:?}, {latents:?}");
        }
        let mut sum = vec![0.0; flat.len()];
        for i in (0..n).filter(|i| !failed[*i]) {
            sum.iter_mut().zip(run(&x, Some(i), how).2).for_each(|(sum, own)| *sum += own);
        }
        let off = apart(&sum, &flat);
        assert!(off < 1e-10 * (1.0 + largest(sum.iter().copied())), "{family}: {off:e}");

        // a sample that is no number is one of them
        let mut spoilt = x.clone();
        spoilt[d] = f64::NAN;
        let (failed, latents, flat) = run(&spoilt, None, Inversion::for_backend::<Cpu>());
        assert!(failed[1] && count(&failed) == 1, "{family}: {failed:?}");
        assert!(latents[d..2 * d].iter().all(|g| *g == 0.0) && flat.iter().all(|g| g.is_finite()), "{family}");
        assert!(largest(flat.iter().copied()) > 0.0);
    }
}

/// Samples of a flow whose way there is a solve have its reports; weights are of those that were solved for.
#[test]
fn samples_say_how_they_were_solved_for() {
    for family in [Family::Residual, Family::Implicit, Family::Monotone] {
        let config = FlowConfig { blocks: 2, hidden: vec![8], ..FlowConfig::of(family, 3) };
        let flow = VariationalFlow::from_flow(moved(&config.into(), 0.1)).expect("rows").prepare();
        let drawn = flow.sample_exact(50, Key::new(1)).expect("no device fault");
        assert_eq!(drawn.reports().len(), if family.solves() { 50 } else { 0 });
        assert_eq!(flow.sample(50, Key::new(1)).expect("no device fault").reports, drawn.reports());
        assert!(drawn.reports().iter().all(|report| report.status.is_solved() && report.iterations > 0));
        let found = Importance::new(&drawn, &Ripple).expect("weights");
        assert!(found.unsolved == 0 && found.log_evidence.is_finite() && Ripple.dimension() == 3);
    }
}
