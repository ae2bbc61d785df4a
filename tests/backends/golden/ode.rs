//! A continuous flow of rows: f and its trace at a point, classical RK4 with its gradients through the steps, and an adaptive solve
//! there and back.

use std::f64::consts::TAU;

use resflow::backend::Key;
use resflow::backend::{Activation, Backend};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, Draw, Memory, PreparedBijection};
use resflow::estimator::{Estimator, Exact};
use resflow::invert::{Inversion, Status};
use resflow::layer::{ActivationLayer, Conditioner, ContextBias, Derivatives, Layer, LipschitzLinear, Sequence, Told};
use resflow::module::{Grad, Module as _};
use resflow::ode::{OdeFlow, OdeSolver};

use crate::common::asking::count_grads;
use crate::golden::fixture::{Comparison, Fixture, host};

fn net<B: Backend>(backend: &B, file: &Fixture) -> Sequence<B> {
    let widths: Vec<usize> = file.note("dims");
    let all = widths[1] + widths[2];
    let mut layers: Vec<Box<dyn Layer<B>>> = Vec::new();
    let mut offset = 0;
    for l in 0..3 {
        let part = |leaf: &str| file.tensor(backend, &format!("param.linear.{l}.{leaf}"));
        layers.push(Box::new(LipschitzLinear::free(backend, part("weight"), part("bias")).expect("shapes that fit")));
        if l < 2 {
            let features = widths[l + 1];
            layers.push(Box::new(ContextBias::new(Told { offset, features, all })));
            layers.push(Box::new(ActivationLayer::new(backend, Activation::Softplus)));
            offset += features;
        }
    }
    let told = [0, 1].map(|l| file.tensor(backend, &format!("param.inject.{l}.weight")));
    let conditioner = Conditioner::from_weight(backend, backend.concat(&[&told[0], &told[1]], 0));
    Sequence::new(layers).with_conditioner(backend, conditioner).expect("as many numbers as it is told")
}

fn prepared<B: Backend>(backend: &B, file: &Fixture, solver: OdeSolver) -> (OdeFlow<B>, Box<dyn PreparedBijection<B>>) {
    let net = Box::new(net(backend, file));
    let flow = OdeFlow::new(net, &[3], solver, solver).expect("a velocity");
    let prepared = flow.prepare(backend);
    (flow, prepared)
}

/// log N(z; 0, I) + log det of each row.
fn log_p(z: &[f64], log_det: &[f64]) -> Vec<f64> {
    let normal = |z: &[f64]| -0.5 * (z.iter().map(|z| z * z).sum::<f64>() + z.len() as f64 * TAU.ln());
    z.chunks_exact(3).zip(log_det).map(|(z, log_det)| normal(z) + log_det).collect()
}

/// Compares the whole file.
pub(crate) fn rows<B: Backend>(backend: &B) {
    let file = Fixture::open("cnf_rows");
    let mut comparison = Comparison::new::<B>("continuous flow");
    let x = file.tensor(backend, "x");
    let n = backend.shape(&x).rows();
    let exact = Estimator::Exact(Exact);
    let draw = Draw { estimator: &exact, key: Key::new(0) };

    // f and its trace, as the net has them
    let own = net(backend, &file).prepare(backend);
    let t = file.values("field.t")[0];
    let tau: Vec<f64> = [f64::cos, f64::sin]
        .iter()
        .flat_map(|f| (1..4).map(move |k| f(std::f64::consts::PI * f64::from(k) * t)))
        .collect();
    let tau: Vec<_> = tau.into_iter().map(resflow::backend::Element::from_f64).collect();
    let at = Batch::new(x.clone()).with_context(Some(backend.upload(&tau, [1, 6].into())));
    let (f, saved) = own.forward(backend, &own.tell(backend, &at), Derivatives::First);
    comparison.tensor(backend, "field.f", &f, file.values("field.f"));
    comparison.tensor(backend, "field.trace", &own.traces(backend, &saved)[0], file.values("field.trace"));

    // equal steps
    let (flow, ode) = prepared(backend, &file, OdeSolver::Rk4 { steps: file.note("rk4_steps") });
    let batch = Batch::new(x.clone());
    let mapped = ode.forward(backend, &batch, &Ask::gradient::<B>(draw, Memory::Store)).expect("no device fault");
    let (z, log_det) = (host(backend, &mapped.y), host(backend, &mapped.log_dets[0].value));
    comparison.close("rk4.z", &z, file.values("rk4.z"));
    comparison.close("rk4.logdet", &log_det, file.values("rk4.logdet"));
    let log_p_found = log_p(&z, &log_det);
    comparison.close("rk4.logp", &log_p_found, file.values("rk4.logp"));
    let weight = file.values("weight");
    let loss: f64 = weight.iter().zip(&log_p_found).map(|(w, log_p)| w * log_p).sum();
    comparison.close("loss", &[loss], file.values("loss"));
    // ∂log N/∂z = −z
    let weights = backend.reshape(&file.tensor(backend, "weight"), [n, 1].into());
    let of_z = backend.affine(backend.binary(resflow::backend::Binary::Mul, mapped.y.clone(), &weights), -1.0, 0.0);
    let mut grads: Vec<Grad<B>> = vec![None; count_grads(&flow)];
    let cotangents = Cotangents { x: of_z, log_det: weights, context: None };
    let tape = mapped.tape.expect("a backward pass was announced");
    let of_x = ode.backward(backend, tape, cotangents, &mut grads).expect("no device fault").x;
    ode.finish_gradients(backend, &mut grads);
    comparison.tensor(backend, "grad_x", &of_x, file.values("grad_x"));
    let mut grads = grads.into_iter();
    flow.visit("", &mut |name, _, role| {
        if !role.is_trained() {
            return;
        }
        let gradient = grads.next().flatten().expect("a gradient of every parameter");
        if name.contains("context") {
            let mut offset = 0;
            for l in 0..2 {
                let key = format!("grad.inject.{l}.weight");
                let rows = file.shape(&key)[0];
                comparison.tensor(backend, &key, &backend.narrow(&gradient, 0, offset, rows), file.values(&key));
                offset += rows;
            }
            return;
        }
        let mut parts = name.rsplit('.');
        let leaf = parts.next().expect("a name");
        // a linear layer, a bias by the context and an activation each
        let layer = parts.next().and_then(|number| number.parse::<usize>().ok()).expect("a number") / 3;
        let key = format!("grad.linear.{layer}.{leaf}");
        comparison.tensor(backend, &key, &gradient, file.values(&key));
    });

    // steps by an error estimate, as fine as the precision allows
    let (_, ode) = prepared(backend, &file, OdeSolver::for_evaluation());
    let tolerance = comparison.tolerance();
    let mapped = ode.forward(backend, &batch, &Ask::log_det::<B>(draw, 1)).expect("no device fault");
    let reports = mapped.reports.expect("a solve");
    assert!(reports.iter().all(|r| r.status == Status::Converged && r.iterations > 12 && r.residual < 1e-3));
    let (z, log_det) = (host(backend, &mapped.y), host(backend, &mapped.log_dets[0].value));
    comparison.each("adaptive.z", &z, file.values("adaptive.z"), tolerance);
    comparison.each("adaptive.logdet", &log_det, file.values("adaptive.logdet"), tolerance);
    comparison.each("adaptive.logp", &log_p(&z, &log_det), file.values("adaptive.logp"), tolerance);
    let back = ode.inverse(backend, &Batch::new(mapped.y), &Inversion::for_backend::<B>()).expect("no device fault");
    comparison.each("adaptive.x_back", &host(backend, &back.value), file.values("adaptive.x_back"), tolerance);
    comparison.finish();
    file.assert_all_read();
}
