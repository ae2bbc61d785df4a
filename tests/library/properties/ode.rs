//! Continuous flows: the order of convergence of both solvers, linear fields, the trace against the Jacobian, probes, gradients by
//! differences, densities that are some, the way back, and solves that end. Random cases, no statistics but where it is said.

use crate::common::asking::{count_grads, pull_back, train, value, with_log_det};
use crate::common::bijections::{check_gradients, draw, is_slope, log_det_by_differences, slope};
use crate::common::*;
use nalgebra::DMatrix;
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Draw, Memory, PreparedBijection};
use resflow::config::{Family, FlowConfig, Nonlinearity};
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};
use resflow::layer::{Conditioner, ContextBias, Layer, LipschitzLinear, Sequence, Told};
use resflow::module::Module as _;
use resflow::ode::{OdeFlow, OdeSolver, TIME_FEATURES};

/// f of random weights of a size, told the time and so many numbers of a context.
fn net(b: &Cpu, widths: &[usize], activation: Nonlinearity, context: usize, size: f64, key: Key) -> Sequence<Cpu> {
    let hidden = &widths[1..widths.len() - 1];
    let all: usize = hidden.iter().sum();
    let mut layers: Vec<Box<dyn Layer<Cpu>>> = Vec::new();
    let (mut offset, last) = (0, widths.len() - 2);
    for (i, w) in widths.windows(2).enumerate() {
        let key = key.named("net").split(i as u64);
        let inputs = w[0] * if i > 0 { activation.widening() } else { 1 };
        let weight = b.affine(normal(b, key.named("w"), [w[1], inputs]), size / (inputs as f64).sqrt(), 0.0);
        let bias = b.affine(normal(b, key.named("b"), [w[1]]), 0.3, 0.0);
        layers.push(Box::new(LipschitzLinear::free(b, weight, bias).expect("shapes that fit")));
        if i < last {
            layers.push(Box::new(ContextBias::new(Told { offset, features: w[1], all })));
            layers.push(crate::common::activation(b, activation, key.named("beta")));
            offset += w[1];
        }
    }
    let told = b.affine(normal(b, key.named("told"), [all, TIME_FEATURES + context]), 0.3, 0.0);
    Sequence::new(layers).with_conditioner(b, Conditioner::from_weight(b, told)).expect("as many numbers")
}

fn flow_of(
    b: &Cpu,
    net: Sequence<Cpu>,
    d: usize,
    solver: OdeSolver,
) -> (OdeFlow<Cpu>, Box<dyn PreparedBijection<Cpu>>) {
    let flow = OdeFlow::new(Box::new(net), &[d], solver, solver).expect("a velocity");
    let prepared = flow.prepare(b);
    (flow, prepared)
}

fn dopri5(rtol: f64) -> OdeSolver {
    OdeSolver::dopri5(rtol).expect("a tolerance")
}

/// z and the log dets.
fn solve(b: &Cpu, flow: &dyn PreparedBijection<Cpu>, x: &Tensor) -> (Vec<f64>, Vec<f64>) {
    let (z, log_det) = with_log_det(b, flow, &Batch::new(x.clone()), draw(Key::new(0)), 1);
    assert!(log_det.exact);
    (down(b, &z), down(b, &log_det.value))
}

/// f(x) = A x, as a net of one linear layer.
fn linear_field(b: &Cpu, d: usize, a: &[f64]) -> Sequence<Cpu> {
    let (weight, bias) = (b.upload(a, [d, d].into()), b.full(0.0, [d].into()));
    Sequence::new(vec![Box::new(LipschitzLinear::free(b, weight, bias).expect("shapes that fit"))])
}

/// A net that does not say what it is made of, so that nothing is known of its trace, and nobody asks whether it is told the time.
#[derive(Debug, Clone)]
struct Anonymous(Sequence<Cpu>);

impl resflow::module::Module<Cpu> for Anonymous {
    fn parts<'a>(&'a self, show: resflow::module::ShowPart<'_, 'a, Cpu>) {
        self.0.parts(show);
    }
    fn parts_mut<'a>(&'a mut self, show: resflow::module::ShowPartMut<'_, 'a, Cpu>) {
        self.0.parts_mut(show);
    }
}

impl Layer<Cpu> for Anonymous {
    fn prepare(&self, b: &Cpu) -> Box<dyn resflow::layer::PreparedLayer<Cpu>> {
        self.0.prepare(b)
    }
    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, resflow::error::ConfigError> {
        self.0.output_shape(input)
    }
    fn multiply_adds(&self, input: &[usize]) -> u64 {
        self.0.multiply_adds(input)
    }
    fn lipschitz_bound(&self) -> f64 {
        f64::INFINITY
    }
}

/// Halving steps divides RK4's error by 2⁴, and a tolerance that is 2⁵ times smaller takes about twice as many evaluations of a
/// method of order 5.
#[test]
fn the_solvers_have_their_orders() {
    let b = cpu();
    let x = normal(&b, Key::new(1), [7, 3]);
    let field = || net(&b, &[3, 12, 10, 3], Nonlinearity::Softplus, 0, 1.2, Key::new(2));
    let (_, exact) = flow_of(&b, field(), 3, dopri5(1e-12));
    let (z, log_det) = solve(&b, &*exact, &x);
    let error = |steps: usize| {
        let (_, flow) = flow_of(&b, field(), 3, OdeSolver::Rk4 { steps });
        let found = solve(&b, &*flow, &x);
        [apart(&found.0, &z), apart(&found.1, &log_det)]
    };
    let (coarse, fine) = (error(16), error(32));
    for (coarse, fine) in coarse.into_iter().zip(fine) {
        let order = (coarse / fine).log2();
        assert!((3.6..4.6).contains(&order), "order {order}: {coarse:e} and {fine:e}");
    }
    let cost = |rtol: f64| {
        let (_, flow) = flow_of(&b, field(), 3, dopri5(rtol));
        let ask = Ask::log_det::<Cpu>(draw(Key::new(0)), 1);
        let mapped = flow.forward(&b, &Batch::new(x.clone()), &ask).expect("no device fault");
        let reports = mapped.reports.expect("a solve");
        let evaluations: u32 = reports.iter().map(|r| r.iterations).sum();
        let error = apart(&down(&b, &mapped.y), &z);
        assert!(error < 30.0 * rtol, "{rtol:e}: {error:e}");
        f64::from(evaluations)
    };
    // from 1e-6 to 1e-11, five decades: 10 times as many evaluations of a method of order 5, 18 times of order 4
    let ratio = cost(1e-11) / cost(1e-6);
    assert!((5.0..13.0).contains(&ratio), "{ratio} times as many evaluations");
}

proptest! {
    #![proptest_config(cases(30))]

    /// Of f(x) = A x the flow is e^{−A} x, its log det −tr A.
    #[test]
    fn linear_fields_have_their_exponentials(seed: u64, d in 1_usize..5) {
        let (b, key) = (cpu(), Key::new(seed));
        let a = down(&b, &b.affine(normal(&b, key, [d, d]), 0.5, 0.0));
        let x = normal(&b, key.named("x"), [4, d]);
        let matrix = DMatrix::from_row_slice(d, d, &a);
        let there = (-matrix.clone()).exp();
        let expected: Vec<f64> = down(&b, &x)
            .chunks_exact(d)
            .flat_map(|x| (&there * DMatrix::from_column_slice(d, 1, x)).iter().copied().collect::<Vec<_>>())
            .collect();
        let net = Anonymous(linear_field(&b, d, &a));
        for solver in [OdeSolver::Rk4 { steps: 400 }, dopri5(1e-12)] {
            let flow = OdeFlow::new(Box::new(net.clone()), &[d], solver, solver).expect("a velocity").prepare(&b);
            let (z, log_det) = solve(&b, &*flow, &x);
            prop_assert!(apart(&z, &expected) < 1e-9 * (1.0 + norm(&expected)), "{solver}: {:e}", apart(&z, &expected));
            for found in log_det {
                prop_assert!((found + matrix.trace()).abs() < 1e-10 * (1.0 + matrix.trace().abs()), "{solver}: {found}");
            }
        }
    }

    /// Training computes the numbers that the solver does, and its gradients in x and in all parameters are those by differences, of
    /// nets that know their trace and of others, whatever is to be kept.
    #[test]
    fn gradients_are_those_by_differences(
        seed: u64,
        d in 1_usize..4,
        hidden in proptest::collection::vec(2_usize..6, 1..4),
        activation in proptest::sample::select(&SMOOTH[..]),
        steps in 1_usize..6,
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let widths = [&[d], &hidden[..], &[d]].concat();
        let x = normal(&b, key.named("x"), [3, d]);
        let (flow, prepared) = flow_of(&b, net(&b, &widths, activation, 0, 0.6, key), d, OdeSolver::Rk4 { steps });
        check_gradients(&b, &flow, &x, key, &solve(&b, &*prepared, &x).1);
    }

    /// The log det is that of the Jacobian by differences.
    #[test]
    fn log_dets_are_those_of_the_jacobian(
        seed: u64,
        d in 1_usize..4,
        hidden in proptest::collection::vec(2_usize..6, 1..4),
        activation in proptest::sample::select(vec![Nonlinearity::Tanh, Nonlinearity::Softplus, Nonlinearity::ClipSwish]),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let widths = [&[d], &hidden[..], &[d]].concat();
        let x = normal(&b, key.named("x"), [3, d]);
        let (_, flow) = flow_of(&b, net(&b, &widths, activation, 0, 0.6, key), d, OdeSolver::Rk4 { steps: 256 });
        let found = solve(&b, &*flow, &x).1;
        let expected = log_det_by_differences(&b, &x, |x| value(&b, &*flow, x));
        for (found, expected) in found.into_iter().zip(expected) {
            prop_assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{found}, by differences {expected}");
        }
    }

    /// The trace that a net knows is the sum of d products.
    #[test]
    fn the_known_trace_is_that_of_products(seed: u64, d in 1_usize..5, hidden in proptest::collection::vec(2_usize..7, 1..3)) {
        let (b, key) = (cpu(), Key::new(seed));
        let widths = [&[d], &hidden[..], &[d]].concat();
        let x = normal(&b, key.named("x"), [5, d]);
        let field = net(&b, &widths, Nonlinearity::Tanh, 0, 1.5, key);
        let solver = OdeSolver::Rk4 { steps: 6 };
        let (_, known) = flow_of(&b, field.clone(), d, solver);
        // behind a layer that does not say what it is, nothing is known
        let hiding = Anonymous(field);
        let products = OdeFlow::new(Box::new(hiding), &[d], solver, solver).expect("a velocity").prepare(&b);
        let (found, expected) = (solve(&b, &*known, &x), solve(&b, &*products, &x));
        prop_assert!(apart(&found.0, &expected.0) < 1e-12);
        prop_assert!(apart(&found.1, &expected.1) < 1e-11, "{:?} {:?}", found.1, expected.1);
    }

    /// Gradients of a solve in few steps are those of the numbers that it computed, not of what it approximates.
    #[test]
    fn gradients_of_few_steps_are_exact(seed: u64, steps in 1_usize..4) {
        let (b, key) = (cpu(), Key::new(seed));
        let x = normal(&b, key.named("x"), [3, 2]);
        let field = net(&b, &[2, 6, 5, 2], Nonlinearity::Softplus, 0, 1.5, key);
        let (whole, flow) = flow_of(&b, field, 2, OdeSolver::Rk4 { steps });
        let gy = normal(&b, key.named("gy"), [3, 2]);
        let weights = normal(&b, key.named("weights"), [3, 1]);
        let trained = train(&b, &*flow, &Batch::new(x.clone()), draw(key), Memory::Store);
        let mut grads = vec![None; 7];
        let of_x = down(&b, &pull_back(&b, &*flow, trained.tape, gy.clone(), &weights, &mut grads));
        let direction = normal(&b, key.named("direction"), [3, 2]);
        let objective = |flow: &dyn PreparedBijection<Cpu>, x: &Tensor| {
            let (z, log_det) = solve(&b, flow, x);
            dot(&z, &down(&b, &gy)) + dot(&log_det, &down(&b, &weights))
        };
        let along = |h: f64| objective(&*flow, &b.axpy(h, &direction, x.clone()));
        let found = dot(&of_x, &down(&b, &direction));
        // one long step of steep nets is a polynomial of a high degree, of which long differences are no slope
        prop_assert!(is_slope(found, 1e-8, along), "{found}, by differences {}", slope(along));
        // and of all parameters together
        flow.finish_gradients(&b, &mut grads);
        let grads: Vec<Vec<f64>> = grads.iter().map(|g| down(&b, g.as_ref().expect("a gradient of each"))).collect();
        let towards = |slot: usize| normal(&b, key.named("towards").split(slot as u64), [grads[slot].len()]);
        let along = |h: f64| {
            let (mut moved, mut slot) = (whole.clone(), 0);
            moved.visit_mut("", &mut |_, t, role| {
                if role.is_trained() {
                    let by = b.reshape(&towards(slot), b.shape(t));
                    *t = b.axpy(h, &by, t.clone());
                    slot += 1;
                }
            });
            objective(&*moved.prepare(&b), &x)
        };
        let found: f64 = grads.iter().enumerate().map(|(slot, own)| dot(own, &down(&b, &towards(slot)))).sum();
        prop_assert!(is_slope(found, 1e-8, along), "{found}, by differences {} in θ", slope(along));
    }

    /// Forward and back is within ten times the tolerance, and each sample's way is its own.
    #[test]
    fn the_way_back_leads_back(seed: u64, digits in 4_i32..10, n in 1_usize..9) {
        let (b, key) = (cpu(), Key::new(seed));
        let rtol = 10.0_f64.powi(-digits);
        let (_, flow) = flow_of(&b, net(&b, &[2, 8, 8, 2], Nonlinearity::Tanh, 0, 1.0, key), 2, dopri5(rtol));
        let x = normal(&b, key.named("x"), [n, 2]);
        let (z, log_det) = solve(&b, &*flow, &x);
        let back = flow.inverse(&b, &Batch::new(b.upload(&z, [n, 2].into())), &Inversion::for_backend::<Cpu>());
        let back = back.expect("no device fault");
        prop_assert!(back.reports.iter().all(|r| r.status == Status::Converged && r.iterations >= 8));
        let scale = 1.0 + largest(down(&b, &x));
        let off = apart(&down(&b, &back.value), &down(&b, &x));
        prop_assert!(off < 10.0 * rtol * scale, "{rtol:e}: {off:e}");
        for i in 0..n {
            let (own_z, own) = solve(&b, &*flow, &b.narrow(&x, 0, i, 1));
            prop_assert!(apart(&own_z, &z[2 * i..2 * i + 2]) < 1e-12 && (own[0] - log_det[i]).abs() < 1e-12);
        }
    }

    /// The mean of Hutchinson's estimates over all sign vectors is the trace: for a linear field that of the log det is.
    #[test]
    fn probes_estimate_the_trace(seed: u64) {
        let (b, key) = (cpu(), Key::new(seed));
        let d = 3;
        let hiding = || Anonymous(net(&b, &[d, 5, d], Nonlinearity::Tanh, 0, 1.0, key));
        let solver = OdeSolver::Rk4 { steps: 8 };
        let flow = OdeFlow::new(Box::new(hiding()), &[d], solver, solver).expect("a velocity").prepare(&b);
        let x = normal(&b, key.named("x"), [2, d]);
        let (_, exact) = solve(&b, &*flow, &x);
        let estimator: Estimator = "truncated:terms=1".parse().expect("a text");
        let drawn = Draw { estimator: &estimator, key };
        let (_, estimates) = with_log_det(&b, &*flow, &Batch::new(x), drawn, 100);
        prop_assert!(!estimates.exact && b.shape(&estimates.value)[..] == [2, 100]);
        for (estimates, exact) in down(&b, &estimates.value).chunks_exact(100).zip(exact) {
            let (mean, error) = mean_and_error(estimates);
            // 60 z-scores in all: a false alarm in 10⁶ runs
            prop_assert!((mean - exact).abs() <= bonferroni(1e-6, 60) * error + 1e-9, "{mean} ± {error}, exact {exact}");
        }
    }
}

/// With one probe in training the backward pass is the derivative of the estimate that the forward pass gave.
#[test]
fn gradients_of_probed_traces_are_exact() {
    let (b, key) = (cpu(), Key::new(11));
    let hiding = Anonymous(net(&b, &[3, 6, 5, 3], Nonlinearity::Softplus, 0, 1.2, key));
    let estimator: Estimator = "truncated:terms=1,probes=2".parse().expect("a text");
    for solver in [OdeSolver::Rk4 { steps: 3 }, dopri5(1e-12)] {
        let flow = OdeFlow::new(Box::new(hiding.clone()), &[3], solver, solver).expect("a velocity");
        let prepared = flow.prepare(&b);
        let x = normal(&b, key.named("x"), [4, 3]);
        let drawn = Draw { estimator: &estimator, key };
        let gy = normal(&b, key.named("gy"), [4, 3]);
        let weights = normal(&b, key.named("weights"), [4, 1]);
        let run = |x: &Tensor| train(&b, &*prepared, &Batch::new(x.clone()), drawn, Memory::Store);
        let mut grads = vec![None; count_grads(&flow)];
        let of_x = down(&b, &pull_back(&b, &*prepared, run(&x).tape, gy.clone(), &weights, &mut grads));
        let direction = normal(&b, key.named("direction"), [4, 3]);
        let along = |h: f64| {
            let trained = run(&b.axpy(h, &direction, x.clone()));
            inner(&b, &trained.y, &gy) + inner(&b, &trained.log_det, &weights)
        };
        let (found, expected) = (dot(&of_x, &down(&b, &direction)), slope(along));
        assert!(
            (found - expected).abs() < 1e-6 * (1.0 + expected.abs()),
            "{solver}: {found}, by differences {expected}"
        );
    }
}

/// The gradient in a context, of one that all share and of one for each sample, with either solver, is that by differences.
#[test]
fn gradients_reach_the_context() {
    let (b, key) = (cpu(), Key::new(12));
    for (solver, shared) in [
        (OdeSolver::Rk4 { steps: 3 }, true),
        (OdeSolver::Rk4 { steps: 3 }, false),
        (dopri5(1e-12), true),
        (dopri5(1e-12), false),
    ] {
        let (flow, prepared) = flow_of(&b, net(&b, &[2, 6, 5, 2], Nonlinearity::Tanh, 3, 1.0, key), 2, solver);
        let x = normal(&b, key.named("x"), [4, 2]);
        let context = normal(&b, key.named("context"), [if shared { 1 } else { 4 }, 3]);
        let direction = normal(&b, key.named("direction"), b.shape(&context));
        let (gy, weights) = (normal(&b, key.named("gy"), [4, 2]), normal(&b, key.named("weights"), [4, 1]));
        let run = |context: Tensor| {
            let batch = Batch::new(x.clone()).with_context(Some(context));
            train(&b, &*prepared, &batch, draw(key), Memory::Store)
        };
        let cotangents = resflow::bijection::Cotangents { x: gy.clone(), log_det: weights.clone(), context: None };
        let mut grads = vec![None; count_grads(&flow)];
        let back = prepared.backward(&b, run(context.clone()).tape, cotangents, &mut grads).expect("no device fault");
        let of_context = back.context.expect("it looks at the context");
        assert_eq!(b.shape(&of_context), b.shape(&context));
        let along = |h: f64| {
            let trained = run(b.axpy(h, &direction, context.clone()));
            inner(&b, &trained.y, &gy) + inner(&b, &trained.log_det, &weights)
        };
        let (found, expected) = (inner(&b, &of_context, &direction), slope(along));
        assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{solver}, {shared}: {found} and {expected}");
    }
}

/// The density of a random flow on a grid sums to one.
#[test]
fn densities_integrate_to_one() {
    let config = FlowConfig { hidden: vec![8, 8], ..FlowConfig::of(Family::Ffjord, 2) };
    let config = FlowConfig { evaluation_solver: dopri5(1e-6), ..config };
    let flow = random_flow(&cpu(), &config, Key::new(5), 0.3);
    let (side, step) = (160, 0.1);
    let place = |i: usize| (i as f64 - 0.5 * side as f64 + 0.5) * step;
    let grid: Vec<f64> = (0..side * side).flat_map(|e| [place(e / side), place(e % side)]).collect();
    let log_p = flow.log_prob(&table(2, grid), Key::new(0)).expect("rows that fit");
    assert_eq!(log_p.replicates, 1);
    let sum: f64 = log_p.values.iter().map(|log_p| log_p.exp() * step * step).sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");
}

/// A field that is too stiff for its limit, one that runs away and one that is not finite end with a status, beside others that do
/// not.
#[test]
fn hopeless_solves_end_with_a_status() {
    let b = cpu();
    let limited: OdeSolver = "dopri5:rtol=1e-6,limit=500".parse().expect("a text");
    let stiff = Anonymous(linear_field(&b, 2, &[3e5, 0.0, 0.0, 1.0]));
    let flow = OdeFlow::new(Box::new(stiff), &[2], limited, limited).expect("a velocity").prepare(&b);
    let x = b.upload(&[1.0, 1.0, 0.0, 1.0], [2, 2].into());
    let mapped = flow.forward(&b, &Batch::new(x), &Ask::value::<Cpu>()).expect("no device fault");
    let reports = mapped.reports.expect("a solve");
    assert_eq!(reports[0].status, Status::NotConverged, "{reports:?}");
    assert!(reports.iter().all(|r| r.iterations <= 500), "{reports:?}");
    assert!(down(&b, &mapped.y).iter().all(|z| z.is_finite()));
    // not a number, and one that is
    let mild = Anonymous(linear_field(&b, 2, &[0.5, 0.0, 0.0, -0.5]));
    let flow = OdeFlow::new(Box::new(mild), &[2], limited, limited).expect("a velocity").prepare(&b);
    let x = b.upload(&[f64::NAN, 1.0, 1.0, 1.0, f64::INFINITY, 0.0], [3, 2].into());
    for back in [false, true] {
        let batch = Batch::new(x.clone());
        let (value, reports) = if back {
            let solution = flow.inverse(&b, &batch, &Inversion::for_backend::<Cpu>()).expect("no device fault");
            (solution.value, solution.reports)
        } else {
            let mapped = flow.forward(&b, &batch, &Ask::value::<Cpu>()).expect("no device fault");
            (mapped.y, mapped.reports.expect("a solve"))
        };
        let statuses: Vec<_> = reports.iter().map(|r| r.status).collect();
        assert_eq!(statuses, [Status::NonFinite, Status::Converged, Status::NonFinite]);
        let sign: f64 = if back { 1.0 } else { -1.0 };
        let expected = [(0.5 * sign).exp(), (-0.5 * sign).exp()];
        assert!(apart(&down(&b, &value)[2..4], &expected) < 1e-4);
    }
    // no samples, no solve
    let none =
        flow.forward(&b, &Batch::new(b.full(0.0, [0, 2].into())), &Ask::value::<Cpu>()).expect("no device fault");
    assert!(none.reports.is_some_and(|r| r.is_empty()) && b.shape(&none.y).rows() == 0);
    // equal steps notice it at the end
    let few = OdeSolver::Rk4 { steps: 3 };
    let stiff = Anonymous(linear_field(&b, 1, &[1e200]));
    let flow = OdeFlow::new(Box::new(stiff), &[1], few, few).expect("a velocity").prepare(&b);
    let back = flow.inverse(&b, &Batch::new(b.full(1.0, [1, 1].into())), &Inversion::for_backend::<Cpu>());
    let report = back.expect("no device fault").reports[0];
    assert_eq!((report.status, report.iterations), (Status::NonFinite, 12));
}

/// What settings are refused, and by which words.
#[test]
fn what_continuous_flows_refuse() {
    let single = || NdArray::<f32>::with_threads(std::num::NonZeroUsize::MIN).expect("one thread");
    let config = FlowConfig { hidden: vec![4, 4], ..FlowConfig::of(Family::Ffjord, 2) };
    let fine = FlowConfig { evaluation_solver: dopri5(1e-6), ..config.clone() };
    assert!(Flow::new(cpu(), &fine, Key::new(0)).is_ok());
    let error = Flow::new(single(), &fine, Key::new(0)).map(|_| ()).expect_err("finer than f32").to_string();
    assert!(error.contains("f32") && error.contains("rtol=1e-5") && error.contains("double precision"), "{error}");
    assert!(Flow::new(single(), &config, Key::new(0)).is_ok());
    for (text, says) in [
        ("rk4:steps=0", "steps"),
        ("rk4:steps=10001", "steps"),
        ("rk4:rtol=1e-3", "no setting"),
        ("dopri5:rtol=0", "rtol"),
        ("dopri5:rtol=nan", "rtol"),
        ("dopri5:atol=-1", "atol"),
        ("dopri5:limit=3", "limit"),
        ("dopri5:rtol=1e-3,rtol=1e-4", "twice"),
        ("euler", "no solver"),
        ("rk4:steps", "no value"),
    ] {
        let error = text.parse::<OdeSolver>().expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    for text in ["rk4:steps=7", "dopri5", "dopri5:rtol=1e-4,atol=1e-7,limit=600"] {
        assert_eq!(text.parse::<OdeSolver>().expect("a solver").to_string(), text);
    }
    let norms = FlowConfig { norms: "2112".parse().expect("norms"), ..config.clone() };
    assert!(norms.check().expect_err("free weights").to_string().contains("norms"));
    let steps = FlowConfig { solver: OdeSolver::Rk4 { steps: 0 }, ..config };
    assert!(steps.check().expect_err("no steps").to_string().contains("steps"));
    let b = cpu();
    let narrow = net(&b, &[3, 4, 2], Nonlinearity::Tanh, 0, 1.0, Key::new(1));
    let error = OdeFlow::new(Box::new(narrow), &[3], OdeSolver::for_training(), OdeSolver::for_evaluation());
    assert!(error.map(|_| ()).expect_err("another shape").to_string().contains("velocity"));
    let error = OdeFlow::new(
        Box::new(linear_field(&b, 2, &[0.0; 4])),
        &[2],
        OdeSolver::for_training(),
        OdeSolver::for_evaluation(),
    );
    assert!(error.map(|_| ()).expect_err("no time").to_string().contains("time"));
}

/// The estimator of training matters only where a net does not know its trace.
#[test]
fn two_hidden_layers_estimate_nothing() {
    let two = FlowConfig { hidden: vec![6, 6], ..FlowConfig::of(Family::Ffjord, 3) };
    let three = FlowConfig { hidden: vec![6, 6, 6], ..two.clone() };
    for (config, exact) in [(two, true), (three, false)] {
        let mut flow = random_flow(&cpu(), &config, Key::new(9), 0.2);
        let x = rows(4, 3, Key::new(7));
        let before = flow.log_prob(&x, Key::new(0)).expect("rows that fit");
        assert_eq!(before.estimator, "exact");
        assert_eq!(flow.config().evaluation(), &Estimator::Exact(Exact));
        flow.set_log_prob_estimator("truncated:terms=1".parse().expect("a text"), 30).expect("in range");
        let after = flow.log_prob(&x, Key::new(1)).expect("rows that fit");
        assert_eq!(after.replicates == 1 && before.values == after.values, exact);
        if !exact {
            // 4 t-scores of 30 estimates: a false alarm in 10⁴ runs, of seeds that are fixed
            for ((estimate, error), exact) in after.values.iter().zip(&after.standard_error).zip(&before.values) {
                assert!((estimate - exact).abs() < bonferroni(1e-6, 4) * error + 1e-6, "{estimate} ± {error}, {exact}");
            }
        }
    }
}
