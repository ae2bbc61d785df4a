//! Mixtures of logistics and the couplings of Flow++: increasing maps, gradients by differences, the way back wherever y is, both tails in
//! single precision, searches that end, and components that part from each other. Seeds are fixed.

use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key};
use resflow::batch::Batch;
use resflow::config::{Family, FlowConfig, Start};
use resflow::data::ToyDensity;
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};
use resflow::logistic::{LogisticMixture, MOST_ITERATIONS, MixtureGradient};
use resflow::mixture_coupling::MixtureCoupling;
use resflow::stage::{Logistics, Mask};
use resflow::train::{Budget, Source, TrainConfig, Trainer};

use crate::common::bijections::slope;
use crate::common::*;

/// The tensors of a mixture in the order of its fields.
fn tensors(mixture: &LogisticMixture<Cpu>) -> Vec<Tensor> {
    let LogisticMixture { log_weights, means, log_scales, log_scale, shift } = mixture;
    log_weights.iter().chain(means).chain(log_scales).chain([log_scale, shift]).cloned().collect()
}

fn mixture(b: &Cpu, n: usize, components: usize, width: f64, key: Key) -> LogisticMixture<Cpu> {
    let one = |name: &str, k: usize, scale: f64, shift: f64| {
        b.affine(normal(b, key.named(name).split(k as u64), [n, 1]), scale, shift)
    };
    let all = |name: &str, scale: f64, shift: f64| (0..components).map(|k| one(name, k, scale, shift)).collect();
    LogisticMixture {
        log_weights: all("weights", 1.5, 0.0),
        means: all("means", 2.0, 0.0),
        log_scales: all("scales", 0.7, width),
        log_scale: one("a", 0, 0.4, 0.0),
        shift: one("b", 0, 1.0, 0.0),
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// Gradients in x and in all parameters are those by differences.
    #[test]
    fn gradients_are_those_by_differences(seed: u64, components in 1_usize..6, width in -2.0..1.0) {
        let (b, key, n) = (cpu(), Key::new(seed), 5);
        let at = mixture(&b, n, components, width, key);
        let x = b.affine(normal(&b, key.named("x"), [n, 1]), 2.0, 0.0);
        let [gy, weights] = ["gy", "weights"].map(|name| normal(&b, key.named(name), [n, 1]));
        let along = mixture(&b, n, components, 0.0, key.named("along"));
        let dx = normal(&b, key.named("dx"), [n, 1]);
        let MixtureGradient { x: gx, parameters } = at.pull_back(&b, &x, &gy, &weights);
        let found: f64 = tensors(&parameters).iter().zip(&tensors(&along)).map(|(g, d)| inner(&b, g, d)).sum();
        let found = found + inner(&b, &gx, &dx);
        let expected = slope(|h| {
            let step = |t: &Tensor, d: &Tensor| b.axpy(h, d, t.clone());
            let steps = |t: &[Tensor], d: &[Tensor]| t.iter().zip(d).map(|(t, d)| step(t, d)).collect();
            let moved = LogisticMixture {
                log_weights: steps(&at.log_weights, &along.log_weights),
                means: steps(&at.means, &along.means),
                log_scales: steps(&at.log_scales, &along.log_scales),
                log_scale: step(&at.log_scale, &along.log_scale),
                shift: step(&at.shift, &along.shift),
            };
            let [y, log_slope] = moved.map(&b, &step(&x, &dx));
            inner(&b, &gy, &y) + inner(&b, &weights, &log_slope)
        });
        prop_assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{found}, by differences {expected}");
    }

    /// y increases with x by its slope, and x is found again from y however far out, by narrow and by wide components.
    #[test]
    fn the_way_back(seed: u64, components in 1_usize..6, width in -9.0..3.0, reach in 0.0..6.0) {
        let (b, key, n) = (cpu(), Key::new(seed), 20);
        let at = mixture(&b, n, components, width, key);
        let y = b.affine(normal(&b, key.named("y"), [n, 1]), 10.0_f64.powf(reach), 0.0);
        let solved = at.invert(&b, &y).expect("no device fault");
        prop_assert!(down(&b, &solved.found).iter().all(|found| *found == 1.0), "{:?}", solved);
        prop_assert!(solved.iterations < MOST_ITERATIONS, "{} evaluations", solved.iterations);
        let [again, log_slope] = at.map(&b, &solved.x);
        let (x, slopes) = (down(&b, &solved.x), down(&b, &log_slope));
        for (i, (again, y)) in down(&b, &again).into_iter().zip(down(&b, &y)).enumerate() {
            // as near as the rounding of x allows
            let allowed = 1e-12 * (1.0 + y.abs()) + 64.0 * f64::EPSILON * (x[i].abs() + 1e-3) * slopes[i].exp();
            prop_assert!((again - y).abs() < allowed, "{again} {y}, {} beyond {allowed}", (again - y).abs());
        }
    }
}

/// Far out y goes on like a line of the widest component, in single precision too.
#[test]
fn tails_are_lines() {
    fn check<B: Backend>(b: &B) {
        let column = |values: &[f64]| {
            let values: Vec<B::Elem> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
            b.upload(&values, [values.len(), 1].into())
        };
        let all = [-200.0, -199.0, 199.0, 200.0];
        let alike = |v: f64| column(&[v; 4]);
        let at = LogisticMixture::<B> {
            log_weights: vec![alike(0.0), alike(0.0)],
            means: vec![alike(-1.0), alike(1.0)],
            log_scales: vec![alike(0.5_f64.ln()), alike(-2.0)],
            log_scale: alike(0.0),
            shift: alike(0.0),
        };
        let [y, log_slope] = at.map(b, &column(&all));
        let [y, log_slope] = [y, log_slope].map(|t| -> Vec<f64> {
            b.download(&t).expect("no fault").into_iter().map(resflow::backend::Element::to_f64).collect()
        });
        let slack = 1e3 * B::Elem::EPSILON;
        assert!((y[1] - y[0] - 2.0).abs() < slack && (y[3] - y[2] - 2.0).abs() < slack, "{y:?}");
        assert!(log_slope.iter().all(|l| (l - 2.0_f64.ln()).abs() < slack), "{log_slope:?}");
        let back = at.invert(b, &column(&y)).expect("no fault");
        for (found, x) in b.download(&back.x).expect("no fault").into_iter().zip(all) {
            assert!((found.to_f64() - x).abs() < slack, "{found} {x}");
        }
    }
    check(&NdArray::<f32>::new());
    check(&NdArray::<f64>::new());
}

/// What has no inverse ends with a status, beside samples that have one.
#[test]
fn searches_end() {
    let b = cpu();
    let at = mixture(&b, 3, 4, 0.0, Key::new(1));
    let solved = at.invert(&b, &b.upload(&[f64::NAN, 0.3, f64::INFINITY], [3, 1].into())).expect("no device fault");
    assert_eq!((solved.iterations, &down(&b, &solved.found)[..2]), (MOST_ITERATIONS, &[0.0, 1.0][..]));

    let config = FlowConfig { blocks: 1, hidden: vec![6], actnorm: false, ..FlowConfig::of(Family::FlowPlusPlus, 2) };
    let flow = random_flow(&b, config, Key::new(2), 0.4);
    let coupling = flow.transforms().last().expect("a coupling").prepare(&b);
    let z = b.upload(&[0.2, f64::NAN, 0.1, 0.5, -0.4, 40.0], [3, 2].into());
    let solution = coupling.inverse(&b, &Batch::new(z), &Inversion::for_backend::<Cpu>()).expect("no device fault");
    let statuses: Vec<_> = solution.reports.iter().map(|report| report.status).collect();
    assert_eq!(statuses, [Status::NonFinite, Status::Converged, Status::Converged]);
    assert!(!solution.certified && solution.reports[1].residual < 1e-12, "{:?}", solution.reports);
}

/// A net of zeros is the identity, and its components are others after one step.
#[test]
fn components_part() {
    let b = cpu();
    let config =
        FlowConfig { blocks: 2, hidden: vec![6], start: Start::Identity, ..FlowConfig::of(Family::FlowPlusPlus, 2) };
    let flow = Flow::new(b.clone(), config, Key::new(1)).expect("valid");
    let x = rows(9, 2, Key::new(3));
    for (i, found) in flow.log_prob(&x, Key::new(0)).expect("scores").values.into_iter().enumerate() {
        let expected = -0.5 * dot(x.row(i), x.row(i)) - (2.0 * std::f64::consts::PI).ln();
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    let train = TrainConfig { batch: 32, validation_rows: 20, warmup: 0, ..TrainConfig::default() };
    let mut trainer =
        Trainer::new(flow, Source::Density(ToyDensity::Moons), &train, Budget::Steps(5), Key::new(2)).expect("valid");
    trainer.step().expect("finite");
    let mut biases = Vec::new();
    trainer.flow().visit(&mut |name, t, _| {
        if name.starts_with("links.2.net.2") && name.ends_with("bias") {
            biases = down(&b, t);
        }
    });
    // α̂, β and then π̂, μ̂ and ŝ of 8 components of one number: μ̂ move alike, and means by c_k μ̂_k
    assert_eq!(biases.len(), 26, "the last bias");
    let means: Vec<f64> = biases[10..18].iter().enumerate().map(|(k, m)| m * (1.0 + k as f64 / 8.0)).collect();
    assert!(means.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-6), "{means:?}");
}

/// Nets of other sizes are refused with the numbers that are wanted.
#[test]
fn nets_of_other_sizes_are_refused() {
    let b = cpu();
    let net = |outputs: usize| {
        let layer = resflow::layer::LipschitzLinear::free(
            &b,
            normal(&b, Key::new(1), [outputs, 2]),
            b.full(0.0, [outputs].into()),
        );
        Box::new(resflow::layer::Sequence::new(vec![Box::new(layer.expect("shapes that fit"))]))
    };
    let mask = Mask::Channels { swapped: false };
    let make =
        |outputs: usize, components: usize| MixtureCoupling::new(net(outputs), mask, &[3], Logistics { components });
    assert!(make(11, 3).is_ok());
    assert!(make(12, 3).expect_err("one too many").to_string().contains("11"));
    assert!(make(2, 0).expect_err("none").to_string().contains("components"));
    assert!(make(11, usize::MAX).expect_err("too many").to_string().contains("components"));
}
