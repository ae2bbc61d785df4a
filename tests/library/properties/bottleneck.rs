//! The determinant through a bottleneck: it is the one of the whole Jacobian to rounding, of residual and of monotone blocks, of
//! rows and of images; the place is the narrowest one inside, and there is none where nothing inside is narrower than the samples.
//! Random cases, no statistics.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use proptest::prelude::*;
use resflow::backend::Key;
use resflow::batch::Batch;
use resflow::config::Nonlinearity;
use resflow::estimator::{
    Auto, Bottleneck, CostModel, Draw, Estimate, Estimator, Exact, Expansion, Phase, Samples, Vjp, jacobian,
};
use resflow::layer::{Derivatives, Layer, PreparedLayer, Saved, Sequence};

const ROWS: usize = 3;

/// Counts products with the whole Jacobian and those in a circle.
struct Counted<'a> {
    net: &'a dyn PreparedLayer<Cpu>,
    whole: AtomicUsize,
    circles: AtomicUsize,
}

impl Vjp<Cpu> for Counted<'_> {
    fn vjp(&self, backend: &Cpu, saved: &Saved<Cpu>, u: Tensor) -> Tensor {
        self.whole.fetch_add(1, Ordering::Relaxed);
        PreparedLayer::vjp(self.net, backend, saved, u)
    }

    fn cyclic_vjp(&self, backend: &Cpu, saved: &Saved<Cpu>, bottleneck: &Bottleneck, u: Tensor) -> Tensor {
        self.circles.fetch_add(1, Ordering::Relaxed);
        PreparedLayer::cyclic_vjp(self.net, backend, saved, bottleneck, u)
    }
}

/// Holds the values of a net to the Jacobian's; `widths` are the numbers of a sample between its layers.
fn holds(net: &Sequence<Cpu>, row: &[usize], widths: &[usize], key: Key) -> Result<(), TestCaseError> {
    let (b, d) = (cpu(), row.iter().product::<usize>());
    let narrowest = widths.iter().copied().min().filter(|&h| h < d);
    let bottleneck = net.bottleneck(row);
    prop_assert_eq!(bottleneck.map(|b| b.width()), narrowest);
    if let Some(bottleneck) = bottleneck {
        prop_assert_eq!(widths[bottleneck.layers - 1], bottleneck.width());
    }
    let prepared = net.prepare(&b);
    let x = normal(&b, key.named("x"), &[&[ROWS], row].concat()[..]);
    let (_, saved) = prepared.forward(&b, &Batch::new(x), Derivatives::First);
    let j = down(&b, &jacobian(&b, &*prepared, &saved, ROWS, row));
    let cost = CostModel { dimension: d, multiply_adds: net.multiply_adds(row), bottleneck };
    for expansion in [Expansion::Whole, Expansion::Odd] {
        let counted = Counted { net: &*prepared, whole: AtomicUsize::new(0), circles: AtomicUsize::new(0) };
        let samples = Samples { count: ROWS, shape: row, first: 0 };
        let estimate = Estimate { backend: &b, net: &counted, saved: &saved, samples, cost };
        let draw = Draw { estimator: &Estimator::Exact(Exact), key };
        let found = estimate.replicates_by(expansion, &draw, 4);
        prop_assert!(found.exact);
        let (whole, circles) = (counted.whole.into_inner(), counted.circles.into_inner());
        prop_assert_eq!((whole, circles), narrowest.map_or((d, 0), |h| (0, h)));
        for (found, j) in down(&b, &found.value).into_iter().zip(j.chunks_exact(d * d)) {
            let of = |sign: f64| {
                let moved = |(e, j): (usize, &f64)| sign * j + f64::from(u8::from(e % (d + 1) == 0));
                log_det(d, &j.iter().enumerate().map(moved).collect::<Vec<_>>())
            };
            let expected = if expansion == Expansion::Whole { of(1.0) } else { of(-1.0) - of(1.0) };
            prop_assert!((found - expected).abs() < 1e-12 * d as f64, "{found} and {expected}");
        }
        // what a gradient comes with is the whole Jacobian
        let counted = Counted { net: &*prepared, whole: AtomicUsize::new(0), circles: AtomicUsize::new(0) };
        let estimate = Estimate { backend: &b, net: &counted, saved: &saved, samples, cost };
        prop_assert_eq!(estimate.surrogates_by(expansion, &draw).probes.len(), d);
        prop_assert_eq!((counted.whole.into_inner(), counted.circles.into_inner()), (d, 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn of_rows(net in nets(1..=9, &Nonlinearity::ALL, true)) {
        let (wide, net) = (net.activation.widening(), Net { iterations: None, ..net });
        let mut widths = Vec::new();
        for (i, w) in net.widths[..net.widths.len() - 1].iter().enumerate() {
            if i > 0 {
                widths.push(*w);
            }
            if i > 0 || net.leading {
                widths.push(w * wide);
            }
        }
        holds(&net.sequence(&cpu()), &[net.dimension()], &widths, net.key())?;
    }

    #[test]
    fn of_images(
        seed: u64, (h, w, c) in (1_usize..4, 1_usize..4, 1_usize..4), width in 1_usize..5,
        which in proptest::sample::select(&Nonlinearity::ALL[..]), leading: bool,
    ) {
        let (wide, key) = (which.widening(), Key::new(seed));
        let net = image_net(&cpu(), [h, w, c], width, which, leading, key);
        let channels: Vec<usize> = [width, width * wide, width, width * wide].into();
        let first = leading.then_some(c * wide);
        let widths: Vec<usize> = first.into_iter().chain(channels).map(|c| h * w * c).collect();
        holds(&net, &[h, w, c], &widths, key)?;
    }
}

/// `Auto` evaluates a narrow net exactly that it would otherwise estimate, and trains it as before.
#[test]
fn auto_takes_it() {
    let b = cpu();
    let widths = |hidden: usize| Net {
        seed: 3,
        widths: vec![40, hidden, 40],
        activation: Nonlinearity::LipSwish,
        leading: false,
        kappa: 0.9,
        stretch: vec![1.5; 2],
        iterations: Some(1),
    };
    let cost = |hidden: usize| {
        let net = widths(hidden).sequence(&b);
        CostModel { dimension: 40, multiply_adds: net.multiply_adds(&[40]), bottleneck: net.bottleneck(&[40]) }
    };
    let is_exact = |hidden: usize, phase| matches!(Auto::default().choose(&cost(hidden), phase), Estimator::Exact(_));
    assert!(is_exact(4, Phase::Evaluation) && !is_exact(30, Phase::Evaluation) && !is_exact(40, Phase::Evaluation));
    assert!(!is_exact(4, Phase::Training));
}
