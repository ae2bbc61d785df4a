//! Certificates: norms from above against singular values, sealed weights, a flow's constants against differences of its values, and the
//! certified errors of inverses against exact ones. The experiments are those of the example `certified_inverses`, fewer of them. No test
//! may fail by chance: a bound is never below what it bounds.

use proptest::prelude::*;
use resflow::backend::{Backend, Element, Key, Noise, Padding};
use resflow::bijection::Bijection;
use resflow::block::{InvertedBlock, MonotoneBlock, ResidualBlock};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::data::ToyDensity;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};
use resflow::layer::{DenseLayer, Layer, Sequence};
use resflow::lipschitz::{
    BiLipschitz, PowerIteration, convolution_norm_bound, inverse_norm_bound, spectral_norm_bound,
};
use resflow::module::Role;
use resflow::stage::Concatenation;
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::variational::VariationalFlow;
use resflow::{Model, NdArray};

use crate::common::asking::value;
use crate::common::*;

#[path = "../../../examples/certified_inverses/experiment.rs"]
mod experiment;

#[test]
fn norms_of_matrices_are_never_below() {
    for (count, sizes) in [(2600, [1, 24]), (26, [64, 160])] {
        let tally = experiment::matrices(count, sizes, Key::new(1));
        assert!(tally.below.is_empty(), "{:?}", tally.below);
        let [most, median] = [1.0, 0.5].map(|at| tally.quantile(at) - 1.0);
        assert!(most < 1e-4 && median < 1e-9, "{most:e}, {median:e}");
    }
    for (rows, columns) in [(0, 0), (0, 3), (3, 0), (1, 1), (4, 7)] {
        assert_eq!(spectral_norm_bound(rows, columns, &vec![0.0; rows * columns]), 0.0);
    }
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(spectral_norm_bound(1, 2, &[1.0, bad]), f64::INFINITY);
        assert_eq!(inverse_norm_bound(1, &[bad]), f64::INFINITY);
    }
    let most = spectral_norm_bound(2, 2, &[f64::MAX; 4]);
    assert!(most >= f64::MAX, "a norm that no number holds");
    assert!(spectral_norm_bound(1, 1, &[5e-324]) >= 5e-324);
}

#[test]
fn norms_of_kernels_are_never_below() {
    let found = experiment::kernels(180, Key::new(2));
    for (tally, what) in [(&found.sized, "sized"), (&found.any, "any"), (&found.supremum, "supremum")] {
        assert!(tally.below.is_empty(), "{what}: {:?}", tally.below);
    }
    assert!(found.supremum.quantile(1.0) < 1.02, "{}", found.supremum.quantile(1.0));
    // on sizes of up to 12 × 12 it is the norm of the convolution's own matrix
    assert!(found.sized.quantile(1.0) < 1.0001, "{}", found.sized.quantile(1.0));
    // beside taps that meet no pixel those that do may be nothing
    let kernel: Vec<f64> = (0..9).map(|tap| if tap == 4 { 1e-30 } else { 1e300 }).collect();
    let one = Some(([1, 1], Padding::same([3, 3])));
    let bound = convolution_norm_bound(&kernel, [1, 3, 3, 1], one);
    assert!((1e-30..1.001e-30).contains(&bound), "{bound:e}");
    // on larger ones that of a torus: 3 × 3 taps are every other case
    let tally = experiment::large_kernels(16, [10, 16], Key::new(3));
    assert!(tally.below.is_empty(), "{:?}", tally.below);
    assert!(tally.quantile(1.0) < 1.25 && tally.quantile(0.5) < 1.1, "{}", tally.quantile(1.0));
}

#[test]
fn errors_of_inverses_are_never_below() {
    for (number, case) in experiment::flows(60).expect("a training").iter().enumerate() {
        let tally = experiment::inverses(case, 300, Key::new(number as u64)).expect("no device fault");
        assert!(tally.below.is_empty(), "{}: {:?}", case.name, &tally.below[..tally.below.len().min(3)]);
        assert_eq!(tally.ratios.len() + tally.zeros, 300);
        assert!(tally.quantile(0.5) < 10.0, "{}: {}", case.name, tally.quantile(0.5));
    }
}

/// The stored weights of a flow, and those that are multiplied by.
fn weights<B: Backend>(flow: &Flow<B>) -> Vec<(String, Vec<f64>)> {
    let mut out = Vec::new();
    flow.visit(&mut |name, tensor, role| {
        if role == Role::Weight {
            let values = flow.backend().download(tensor).expect("no fault");
            out.push((name.to_owned(), values.into_iter().map(Element::to_f64).collect()));
        }
    });
    out
}

/// A flow with weights far from and near to their bounds.
fn stretched<B: Backend>(b: &B, config: FlowConfig, key: Key, how: PowerIteration) -> Flow<B> {
    let mut flow = Flow::new(b.clone(), config, key).expect("valid");
    let mut factors = [0.3, 1.0, 3.0, 20.0].into_iter().cycle();
    flow.visit_mut(&mut |name, tensor, role| {
        if role == Role::Weight && name.ends_with(".weight") {
            *tensor = b.affine(tensor.clone(), factors.next().unwrap_or(1.0), 0.0);
        }
    });
    flow.update_spectral_norms(how);
    flow
}

fn check_seal<B: Backend>(b: &B, config: FlowConfig, key: Key, how: PowerIteration) {
    let flow = stretched(b, config, key, how);
    let mut sealed = flow.clone();
    sealed.seal().expect("no fault");
    let bounds = sealed.certified_bounds().expect("no fault");
    assert!(bounds.weights().next().is_some(), "nothing is certified");
    for weight in bounds.weights() {
        let upper = weight.upper.expect("in the 2-norm");
        assert!(upper <= weight.coefficient, "{}: {upper} of {}", weight.name, weight.coefficient);
        assert!(weight.lower <= upper * (1.0 + 8.0 * B::Elem::EPSILON), "{}: {} to {upper}", weight.name, weight.lower);
    }
    // normalising changes nothing, also in the other precision, and sealing again neither
    let before = weights(&sealed);
    let mut again = sealed.clone();
    again.seal().expect("no fault");
    assert!(weights(&again) == before, "a second seal changed a weight");
    let double = sealed.to_backend(cpu()).expect("no fault");
    let mut effective = sealed.to_backend(cpu()).expect("no fault");
    effective.seal().expect("no fault");
    assert!(weights(&double) == before && weights(&effective) == before, "a seal that another precision breaks");
    // the model hardly changed: weights are what they were normalised to
    let loosest = flow.certified_bounds().expect("no fault");
    for (was, is) in loosest.weights().zip(bounds.weights()) {
        let (was, is) = (was.upper.expect("in the 2-norm"), is.upper.expect("in the 2-norm"));
        assert!(is <= was * (1.0 + 1e-6) && is >= was.min(is) * 0.99, "{was} became {is}");
    }
}

#[test]
fn sealed_weights_are_multiplied_by_as_they_are() {
    let config = |coefficient, blocks| FlowConfig { coefficient, ..exact_config(3, blocks, &[9, 7]) };
    for (seed, coefficient) in [(1, 0.9), (2, 0.98), (3, 0.5)] {
        for how in [PowerIteration::Iterations(0), PowerIteration::Iterations(5), PowerIteration::converge::<Cpu>()] {
            check_seal(&cpu(), config(coefficient, 2), Key::new(seed), how);
            check_seal(&NdArray::<f32>::new(), config(coefficient, 2), Key::new(seed), how);
        }
    }
}

#[test]
fn images_are_sealed_too() {
    let image = [6, 4, 2];
    let mut flow = random_flow(&cpu(), exact_images(image, &[2, 1]), Key::new(3), 3.0);
    let before = flow.certified_bounds().expect("no fault");
    assert!(before.weights().count() > 0);
    flow.seal().expect("no fault");
    let bounds = flow.certified_bounds().expect("no fault");
    assert!(
        bounds.weights().all(|w| w.upper.is_some_and(|upper| upper <= w.coefficient && upper >= w.lower)),
        "{bounds:?}"
    );
    let c = bounds.lipschitz().expect("every block is certified");
    let kappa: f64 = flow.transforms().iter().filter_map(|t| t.lipschitz_bound()).fold(0.0, f64::max);
    assert!(c <= kappa * (1.0 + 1e-12) && c > 0.0, "{c} of {kappa}");
    // and so are their inverses, through logits, squeezes and ActNorms, if nothing is in the way
    let sample = flow.prepare_certified().expect("no fault").sample(5, Key::new(1), &Inversion::for_backend::<Cpu>());
    let sample = sample.expect("no fault");
    assert_eq!(sample.certified, bounds.constants().is_some());
    assert!(
        sample.certified && sample.reports.iter().all(|r| r.error_bound > 0.0 && r.error_bound < 1e-3),
        "{:?}",
        sample.reports
    );
}

/// A file that `save` wrote is sealed, and so is the flow from then on: what either scores is what is certified.
#[test]
fn saving_seals() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let config = || FlowConfig { coefficient: 0.9, ..exact_config(3, 2, &[9, 7]) };
    let unsealed = || stretched(&cpu(), config(), Key::new(4), PowerIteration::Iterations(2));
    let mut flow = unsealed();
    // the contents are those of the flow as it is
    let as_it_is = Flow::from_archive(cpu(), &flow.to_archive().expect("stored")).expect("a model");
    assert!(weights(&as_it_is) == weights(&flow));
    flow.save(&path).expect("written");
    assert!(weights(&flow) != weights(&as_it_is));
    let check = |flow: &Flow<Cpu>| {
        let bounds = flow.certified_bounds().expect("no fault");
        assert!(bounds.weights().all(|w| w.upper.is_some_and(|upper| upper <= w.coefficient)), "{bounds:?}");
    };
    let loaded = Flow::load(cpu(), &path).expect("a model");
    assert!(weights(&loaded) == weights(&flow));
    check(&loaded);
    // weights that are changed afterwards are sealed again
    flow.visit_mut(&mut |name, tensor, role| {
        if role == Role::Weight && name.ends_with(".weight") {
            *tensor = cpu().affine(tensor.clone(), 1.7, 0.0);
        }
    });
    flow.save(&path).expect("written");
    check(&Flow::load(cpu(), &path).expect("a model"));
    // a model is written sealed, whatever it was made of
    Model::new(unsealed()).save(&path).expect("written");
    check(&Flow::load(cpu(), &path).expect("a model"));
    let mut variational = VariationalFlow::from_flow(unsealed()).expect("over rows");
    variational.save(&path).expect("written");
    check(VariationalFlow::load(cpu(), &path).expect("a flow").flow());
}

/// Norms between other orders are estimates: they are said to be, and their weights are left alone.
#[test]
fn mixed_norms_have_no_certificate() {
    let config = FlowConfig { norms: "learned".parse().expect("norms"), ..exact_config(3, 2, &[5]) };
    let mut flow = stretched(&cpu(), config, Key::new(1), PowerIteration::converge::<Cpu>());
    let before = weights(&flow);
    flow.seal().expect("no fault");
    assert!(weights(&flow) == before);
    let bounds = flow.certified_bounds().expect("no fault");
    assert!(bounds.weights().count() == 4 && bounds.weights().all(|w| w.upper.is_none() && w.lower > 0.0));
    assert_eq!((bounds.lipschitz(), bounds.constants()), (None, None));
    let prepared = flow.prepare_certified().expect("no fault");
    let sample = prepared.sample(3, Key::new(0), &Inversion::for_backend::<Cpu>()).expect("no fault");
    assert!(!sample.certified);
}

/// What has no certificate says so: couplings, whose inverses nothing bounds.
#[test]
fn couplings_have_no_certificate() {
    let config = FlowConfig { blocks: 2, ..FlowConfig::of(Family::RealNvp, 3) };
    let flow = Flow::new(cpu(), config, Key::new(0)).expect("valid");
    let bounds = flow.certified_bounds().expect("no fault");
    assert_eq!((bounds.weights().count(), bounds.lipschitz(), bounds.constants()), (0, None, None));
    let sample = flow.prepare_certified().expect("no fault").sample(3, Key::new(0), &Inversion::for_backend::<Cpu>());
    assert!(!sample.expect("no fault").certified);
    let plain = Flow::new(cpu(), exact_config(2, 1, &[4]), Key::new(0)).expect("valid");
    assert!(!plain.sample(2, Key::new(0)).expect("no fault").certified, "nobody asked for it");
}

/// Every family of contractions has certified inverses, of rows and of images.
#[test]
fn all_contractions_have_certified_inverses() {
    for family in [Family::Residual, Family::IResNet, Family::Dense, Family::Implicit, Family::Monotone] {
        let rows = FlowConfig {
            blocks: 2,
            hidden: vec![6],
            coefficient: 0.9,
            evaluation: Estimator::Exact(Exact),
            ..FlowConfig::of(family, 3)
        };
        let images = ImageConfig { filters: 6, ..exact_images([4, 2, 1], &[1, 1]).of(family) };
        for config in [ModelConfig::from(rows), ModelConfig::from(images)] {
            let mut flow = random_flow(&NdArray::<f32>::new(), config, Key::new(3), 2.0);
            flow.seal().expect("no fault");
            let bounds = flow.certified_bounds().expect("no fault");
            assert!(bounds.constants().is_some(), "{family:?}");
            let how = Inversion::for_backend::<NdArray<f32>>();
            let sample = flow.prepare_certified().expect("no fault").sample(20, Key::new(1), &how).expect("no fault");
            assert!(sample.certified, "{family:?}: no certificate");
            // the errors are those of single precision and the solves, times the constants, and no more
            let errors = sample.reports.iter().map(|r| r.error_bound);
            assert!(errors.clone().all(|e| e > 0.0 && e < 0.05), "{family:?}: {:?}", errors.collect::<Vec<_>>());
        }
    }
}

/// Far latents are certified as well, or said to be non-finite.
#[test]
fn rows_that_cannot_be_inverted_have_no_finite_bound() {
    let b = NdArray::<f32>::new();
    let flow = Flow::new(b, exact_config(2, 2, &[4]), Key::new(0)).expect("valid");
    let z = table(2, vec![1e300, 0.0, 0.1, 0.2, 1e12, -1e12]);
    let decoded = flow.prepare_certified().expect("no fault").decode(&z, &Inversion::for_backend::<NdArray<f32>>());
    let decoded = decoded.expect("a width");
    assert_eq!(decoded.reports[0].status, Status::NonFinite);
    assert!(decoded.certified && !decoded.reports[0].error_bound.is_finite());
    assert!(decoded.reports[1..].iter().all(|r| r.error_bound.is_finite() && r.error_bound > 0.0));
}

proptest! {
    #![proptest_config(cases(60))]

    /// Differences of values lie between the constants, for every transform that has them, and the host's copy computes what the device does.
    #[test]
    fn constants_hold_and_the_host_agrees(
        net in nets(1..=6, &Nonlinearity::ALL, true), seed: u64, spread in -3.0..1.0_f64,
    ) {
        let (b, d) = (cpu(), net.dimension());
        let g = || Box::new(net.sequence(&b));
        let residual = net.block(&b);
        // power iterations that were cut short may leave a weight above its coefficient, and the block no contraction
        prop_assume!(residual.certified_bounds(&b, "links.0").expect("no fault").constants.is_some());
        let inverted = InvertedBlock::new(g(), &[d]).expect("a contraction");
        let monotone = MonotoneBlock::new(g(), &[d]).expect("a contraction");
        for block in [&residual as &dyn Bijection<Cpu>, &inverted, &monotone] {
            between_its_constants(&b, block, d, Key::new(seed), spread)?;
        }
    }

    /// The same of a net of dense layers, whose first one may be wider than the samples.
    #[test]
    fn dense_nets_are_on_the_host_too(
        seed: u64, d in 1_usize..5, growth in 1_usize..5, which in proptest::sample::select(&Nonlinearity::ALL[..]),
        raw in -3.0..3.0_f64, spread in -3.0..1.0_f64,
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let concatenation = Concatenation { bound: 0.97, learned: true };
        let mut layers: Vec<Box<dyn Layer<Cpu>>> = Vec::new();
        let mut width = d;
        for i in 0..2 {
            let affine = Box::new(linear(&b, width, growth, 0.95, 2.0, None, key.split(i)));
            let layer = DenseLayer::new(&b, width, affine, activation(&b, which, key.split(i)), concatenation);
            let raw = [raw, -0.5 * raw].map(|raw| b.full(raw, [1].into()));
            layers.push(Box::new(layer.expect("a bound").with_raw(raw)));
            width += growth * which.widening();
        }
        layers.push(Box::new(linear(&b, width, d, 0.95, 2.0, None, key.named("last"))));
        let block = ResidualBlock::new(Box::new(Sequence::new(layers)), &[d]).expect("a contraction");
        between_its_constants(&b, &block, d, key, spread)?;
    }

    /// ‖W⁻¹‖ from above, against singular values.
    #[test]
    fn norms_of_inverses_are_never_below(n in 1_usize..12, seed: u64, exponent in -20..20_i32) {
        let mut w = vec![0.0; n * n];
        Noise::Normal.fill(Key::new(seed), 0, &mut w);
        for w in &mut w {
            *w *= 10_f64.powi(exponent);
        }
        let least = nalgebra::DMatrix::from_row_slice(n, n, &w).singular_values().min();
        let bound = inverse_norm_bound(n, &w);
        prop_assert!(bound >= (1.0 - 1e-11) / least, "{bound:e} for {:e}", 1.0 / least);
        prop_assert!(bound <= 1.01 / least || least < 1e-10 * 10_f64.powi(exponent), "{bound:e} for {:e}", 1.0 / least);
    }
}

/// Holds differences of a transform's values to its constants, and the host's copy of it to the device.
fn between_its_constants(
    b: &Cpu,
    block: &dyn Bijection<Cpu>,
    d: usize,
    key: Key,
    spread: f64,
) -> Result<(), TestCaseError> {
    let constants = block.certified_bounds(b, "links.0").expect("no fault").constants;
    let BiLipschitz { forward, inverse } = constants.expect("a contraction");
    let prepared = block.prepare(b);
    let x = b.affine(normal(b, key, [8, d]), 2.0, 0.0);
    let step = b.affine(normal(b, key.named("step"), [8, d]), 10_f64.powf(spread), 0.0);
    let near = b.axpy(1.0, &step, x.clone());
    let [y, y_near] = [&x, &near].map(|x| down(b, &value(b, &*prepared, x)));
    // a forward pass that is a solve is off by some 10⁻¹² of its input, times the constant
    for ((y, y_near), (x, near)) in
        y.chunks(d).zip(y_near.chunks(d)).zip(down(b, &x).chunks(d).zip(down(b, &near).chunks(d)))
    {
        let away = |a: &[f64], b: &[f64]| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
        let (before, after) = (away(x, near), away(y, y_near));
        let rounding = 1e-11 * forward * (norm(x) + norm(near) + 1.0);
        prop_assert!(after <= forward * before + rounding, "{after} of {before}, at most {forward}");
        prop_assert!(before <= inverse * (after + rounding), "{before} from {after}, at most {inverse}");
    }
    let map = prepared.reference(b).expect("no fault").expect("a block has a copy");
    for (x, y) in down(b, &x).chunks(d).zip(y.chunks(d)) {
        let error = map.inverse_error(x, y, BiLipschitz { forward, inverse });
        prop_assert!(error > 0.0 && error <= 1e-9 * inverse * (1.0 + norm(x)), "{error:e}");
        let exact = map.inverse(y, y, 0.0).expect("a contraction");
        let away = norm(&x.iter().zip(&exact).map(|(a, b)| a - b).collect::<Vec<_>>());
        prop_assert!(away <= error * (1.0 + 1e-6) + 1e-13, "{away:e} of {error:e}");
    }
    Ok(())
}

/// A model that was validated is sealed: what was scored is what is certified.
#[test]
fn validations_seal_what_they_keep() {
    let settings = TrainConfig {
        batch: 64,
        validation_rows: 100,
        validate_every: 10,
        learning_rate: 1e-2,
        ..TrainConfig::default()
    };
    let flow = Flow::new(NdArray::<f32>::new(), exact_config(2, 2, &[8]), Key::new(1)).expect("valid");
    let source = Source::Density(ToyDensity::Moons);
    let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(20), Key::new(2)).expect("valid");
    trainer.run(|_, _| ()).expect("a finite loss");
    let model = trainer.model();
    let mut again = model.clone();
    again.seal().expect("no fault");
    assert!(weights(&again) == weights(&model));
    let c = model.certified_bounds().expect("no fault").lipschitz().expect("certified");
    assert!(c <= model.transforms().iter().filter_map(|t| t.lipschitz_bound()).fold(0.0, f64::max) * (1.0 + 1e-12));
}
