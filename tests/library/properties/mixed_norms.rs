//! Flows whose weights are bounded between other norms than the 2-norm: g contracts in the norm of its chain, the inverse
//! finds x, and learned orders get the gradient of the likelihood.

use crate::common::*;
use resflow::backend::{Backend as _, Key};
use resflow::batch::Batch;
use resflow::checkpoint::Archive;
use resflow::config::{FlowConfig, ModelConfig, Nonlinearity};
use resflow::estimator::{Estimator, Exact, jacobian};
use resflow::flow::Flow;
use resflow::invert::Inversion;
use resflow::layer::Derivatives;
use resflow::lipschitz::PowerIteration;

/// Weights that are well above their bounds, and orders away from 2.
fn flow(config: impl Into<ModelConfig>, key: Key) -> Flow<Cpu> {
    let b = cpu();
    let mut flow = Flow::new(b.clone(), config, key).expect("valid");
    let mut number = 0_u64;
    flow.visit_mut(&mut |name, t, role| {
        number += 1;
        if name.contains(".orders.") {
            *t = b.affine(normal(&b, key.split(number), [1]), 0.5, 0.0);
        } else if role.is_trained() && name.ends_with(".weight") {
            *t = b.affine(t.clone(), 3.0, 0.0);
        }
    });
    flow.update_spectral_norms(converged());
    flow
}

fn converged() -> PowerIteration {
    PowerIteration::Converge { tolerance: 1e-14, limit: 20_000 }
}

fn dense(norms: &str) -> FlowConfig {
    FlowConfig {
        blocks: 2,
        hidden: vec![4],
        activation: Nonlinearity::Tanh,
        norms: norms.parse().expect("a chain"),
        coefficient: 0.8,
        training: Estimator::Exact(Exact),
        evaluation: Estimator::Exact(Exact),
        ..FlowConfig::new(3)
    }
}

/// The largest column sum (p = 1) or row sum (p = ∞) of |J|.
fn induced(j: &[f64], d: usize, columns: bool) -> f64 {
    let sum = |i: usize| (0..d).map(|k| if columns { j[k * d + i] } else { j[i * d + k] }.abs()).sum::<f64>();
    largest((0..d).map(sum))
}

#[test]
fn blocks_contract_in_the_norm_of_their_chain() {
    let b = cpu();
    for (norms, columns) in [("121", true), ("1f1", true), ("f2f", false), ("f1f", false)] {
        let images = resflow::config::ImageConfig {
            kernels: vec![3, 1],
            filters: 3,
            activation: Nonlinearity::Tanh,
            norms: norms.parse().expect("a chain"),
            coefficient: 0.8,
            fully_connected: 0,
            ..exact_images([3, 2, 2], &[2])
        };
        for (config, row) in [(ModelConfig::from(dense(norms)), vec![3]), (images.into(), vec![3, 2, 2])] {
            let flow = flow(config, Key::new(7));
            let d: usize = row.iter().product();
            let x = normal(&b, Key::new(8), [4, d]);
            let x = b.reshape(&x, [&[4], &row[..]].concat()[..].into());
            for link in flow.transforms() {
                let Some(net) = link.residual() else { continue };
                let net = net.prepare(&b);
                let (_, saved) = net.forward(&b, &Batch::new(x.clone()), Derivatives::First);
                for j in down(&b, &jacobian(&b, &*net, &saved, 4, &row)).chunks_exact(d * d) {
                    let norm = induced(j, d, columns);
                    // σ is approached from below
                    assert!(norm <= 0.64 * (1.0 + 1e-3) && norm > 0.05, "{norms} on {row:?}: {norm}");
                }
            }
        }
    }
}

#[test]
fn inverses_and_files() {
    for norms in ["1f1", "f2f", "learned"] {
        let flow = flow(dense(norms), Key::new(3));
        let x = table(3, down(&cpu(), &normal(&cpu(), Key::new(4), [5, 3])));
        let prepared = flow.prepare();
        let z = prepared.encode(&x, Key::new(0)).expect("encodes");
        let back = prepared.decode(&z.latents, &Inversion::for_backend::<Cpu>()).expect("decodes");
        for ((a, b), report) in back.samples.values().chunks(3).zip(x.values().chunks(3)).zip(&back.reports) {
            let error = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            assert!(error < 1e-9 && error <= report.error_bound + 1e-12, "{norms}: {error} {report:?}");
        }
        let bytes = flow.to_archive().expect("stored").to_bytes().expect("stored");
        let again = Flow::from_archive(cpu(), &Archive::from_bytes(&bytes).expect("reads")).expect("loads");
        assert_eq!(again.prepare().encode(&x, Key::new(0)).expect("encodes").latents, z.latents);
        assert_eq!(flow.parameters(), flow.config().parameters());
    }
}

/// At converged vectors the gradient is that of the likelihood, through σ and the orders too.
#[test]
fn learned_orders_get_their_gradient() {
    let (b, h) = (cpu(), 1e-4);
    let flow = flow(dense("learned"), Key::new(5));
    let x = normal(&b, Key::new(6), [6, 3]);
    let rows = table(3, down(&b, &x));
    let flat = down(&b, &flow.gradient(&x, None, Key::new(0)).expect("a gradient").flat);
    let objective = |which: usize, h: f64| {
        let (mut flow, mut at) = (flow.clone(), 0);
        flow.visit_mut(&mut |_, t, role| {
            if role.is_trained() {
                let n = b.shape(t).elements();
                if (at..at + n).contains(&which) {
                    let one: Vec<f64> = (at..at + n).map(|i| f64::from(u8::from(i == which))).collect();
                    *t = b.axpy(h, &b.upload(&one, b.shape(t)), t.clone());
                }
                at += n;
            }
        });
        flow.update_spectral_norms(converged());
        -flow.log_prob(&rows, Key::new(0)).expect("rows").mean()
    };
    let (mut at, mut orders) = (0, 0);
    flow.visit(&mut |name, t, role| {
        if !role.is_trained() {
            return;
        }
        let n = b.shape(t).elements();
        // every order, and one entry of every other tensor
        let which = at;
        at += n;
        let slope = (objective(which, h) - objective(which, -h)) / (2.0 * h);
        assert!((slope - flat[which]).abs() < 1e-5 * (1.0 + slope.abs()), "{name}: {slope}, not {}", flat[which]);
        if name.contains(".orders.") {
            orders += 1;
            assert!(flat[which] != 0.0, "{name} has no gradient");
        }
    });
    assert_eq!(orders, 4);
}
