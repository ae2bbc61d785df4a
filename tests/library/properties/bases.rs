//! Base densities: what they say of a density against its definition, gradients against differences, samples of any cut,
//! the least scale; and flows that begin as the identity, whose density is their base's.

use nalgebra::{DMatrix, DVector};
use proptest::prelude::*;
use resflow::NdArray;
use resflow::backend::{Backend, Element as _, Key, Noise};
use resflow::base::{Base, Covariance, GaussianMixture, LEAST_SCALE, Mixture, MixtureConfig, Normal, StudentT};
use resflow::batch::Batch;
use resflow::config::{BaseConfig, Family, FlowConfig, ImageConfig, ModelConfig, Start};
use resflow::flow::Flow;
use resflow::module::Role;
use resflow::train::{Budget, TrainConfig, Trainer};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::common::*;

/// A random mixture: components, dimension, covariance.
fn mixture(components: usize, d: usize, covariance: Covariance, key: Key) -> Mixture {
    let normals = |name: &str, n: usize| {
        let mut out = vec![0.0; n];
        Noise::Normal.fill(key.named(name), 0, &mut out);
        out
    };
    let weights = normals("weights", components).iter().map(|w| w.exp()).collect();
    let means = normals("means", components * d).iter().map(|m| 1.5 * m).collect();
    let config = MixtureConfig { components, covariance };
    let size = config.factor_numbers(d);
    let mut factors = normals("factors", components * size);
    for (e, a) in factors.iter_mut().enumerate() {
        let (i, j) = if covariance == Covariance::Full { (e % size / d, e % d) } else { (0, 0) };
        *a = match i.cmp(&j) {
            std::cmp::Ordering::Equal => (0.4 * *a).exp(),
            std::cmp::Ordering::Greater => 0.7 * *a,
            std::cmp::Ordering::Less => 0.0,
        };
    }
    Mixture::new(d, covariance, weights, means, factors).expect("parts that belong together")
}

/// The covariance of a component.
fn covariance_of(mixture: &Mixture, k: usize) -> DMatrix<f64> {
    let d = mixture.dimension();
    let a = match mixture.config().covariance {
        Covariance::Full => DMatrix::from_row_slice(d, d, &mixture.factors()[k * d * d..(k + 1) * d * d]),
        Covariance::Diagonal => {
            DMatrix::from_diagonal(&DVector::from_row_slice(&mixture.factors()[k * d..(k + 1) * d]))
        }
    };
    (a.transpose() * a).try_inverse().expect("not singular")
}

/// log p by the definition.
fn by_definition(mixture: &Mixture, z: &[f64]) -> f64 {
    let d = mixture.dimension();
    let p: f64 = (0..mixture.weights().len())
        .map(|k| {
            let sigma = covariance_of(mixture, k);
            let centred = DVector::from_fn(d, |i, _| z[i] - mixture.means()[k * d + i]);
            let square = centred.dot(&(sigma.clone().try_inverse().expect("not singular") * &centred));
            let volume = (std::f64::consts::TAU.powi(d as i32) * sigma.determinant()).sqrt();
            mixture.weights()[k] * (-0.5 * square).exp() / volume
        })
        .sum();
    p.ln()
}

fn covariances() -> impl Strategy<Value = Covariance> {
    prop_oneof![Just(Covariance::Full), Just(Covariance::Diagonal)]
}

/// Any base with learned numbers, moved away from where it begins.
fn base(b: &Cpu, which: usize, components: usize, d: usize, key: Key) -> Box<dyn Base<Cpu>> {
    match which {
        0 => Box::new(StudentT::from_parts(b, normal(b, key, [d])).expect("a shape that fits")),
        1 => Box::new(GaussianMixture::new(b, &mixture(components, d, Covariance::Full, key)).expect("in bounds")),
        _ => Box::new(GaussianMixture::new(b, &mixture(components, d, Covariance::Diagonal, key)).expect("in bounds")),
    }
}

/// Σ wᵢ E(zᵢ).
fn energy(b: &Cpu, base: &dyn Base<Cpu>, z: &[f64], weights: &[f64]) -> f64 {
    let x = b.upload(z, [weights.len(), base.dimension()].into());
    dot(&down(b, &base.prepare(b).energy(b, &Batch::new(x))), weights)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_mixture_is_its_definition(
        components in 1_usize..=4, d in 1_usize..=4, covariance in covariances(), n in 1_usize..=19, seed in any::<u64>(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let mixture = mixture(components, d, covariance, key);
        let z = rows(n, d, key.named("z"));
        let expected: Vec<f64> = (0..n).map(|i| by_definition(&mixture, z.row(i))).collect();
        let close = |found: &[f64], what: &str| {
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{what}: {found}, {expected}");
            }
            Ok(())
        };
        close(&mixture.log_densities(z.values()), "the host")?;
        let on_device = GaussianMixture::new(&b, &mixture).expect("in bounds");
        let (prepared, batch) = (on_device.prepare(&b), Batch::new(b.upload(z.values(), [n, d].into())));
        close(&prepared.log_prob(&b, &batch).expect("no fault"), "log_prob")?;
        let energies = down(&b, &prepared.energy(&b, &batch));
        close(&energies.iter().map(|e| -e - prepared.constant()).collect::<Vec<_>>(), "the energy")?;
        // and in single precision
        let single = NdArray::<f32>::new();
        let values: Vec<f32> = z.values().iter().map(|&v| v as f32).collect();
        let batch = Batch::new(single.upload(&values, [n, d].into()));
        let prepared = GaussianMixture::new(&single, &mixture).expect("in bounds").prepare(&single);
        let energies = single.download(&prepared.energy(&single, &batch)).expect("no fault");
        for (e, expected) in energies.into_iter().zip(&expected) {
            let found = -e.to_f64() - prepared.constant();
            prop_assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "f32: {found}, {expected}");
        }
    }

    /// Central differences of the energy in z and in every stored number; weights of both signs.
    #[test]
    fn gradients_are_those_of_the_energy(
        which in 0_usize..3, components in 1_usize..=3, d in 1_usize..=3, n in 1_usize..=5, seed in any::<u64>(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let base = base(&b, which, components, d, key);
        let z = rows(n, d, key.named("z")).into_values();
        let weights = rows(n, 1, key.named("w")).into_values();
        let mut tensors = Vec::new();
        base.visit("", &mut |_, t, _| tensors.push(t.clone()));
        let mut grads = vec![None; tensors.len()];
        let prepared = base.prepare(&b);
        let x = Batch::new(b.upload(&z, [n, d].into()));
        let gz = prepared.pull_back(&b, x, &b.upload(&weights, [n, 1].into()), &mut grads);
        prepared.finish_gradients(&b, &mut grads);
        let h = 1e-5;
        let check = |found: f64, plus: f64, minus: f64, what: &str| {
            let expected = (plus - minus) / (2.0 * h);
            prop_assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{what}: {found}, {expected}");
            Ok(())
        };
        for (e, found) in down(&b, &gz).into_iter().enumerate() {
            let moved = |by: f64| {
                let mut z = z.clone();
                z[e] += by;
                energy(&b, &*base, &z, &weights)
            };
            check(found, moved(h), moved(-h), "z")?;
        }
        for (t, grad) in grads.iter().enumerate() {
            for (e, found) in down(&b, grad.as_ref().expect("a gradient")).into_iter().enumerate() {
                let moved = |by: f64| {
                    let mut base = base.clone();
                    let mut at = 0;
                    base.visit_mut("", &mut |_, tensor, _| {
                        if at == t {
                            let mut values = down(&b, tensor);
                            values[e] += by;
                            *tensor = b.upload(&values, b.shape(tensor));
                        }
                        at += 1;
                    });
                    energy(&b, &*base, &z, &weights)
                };
                check(found, moved(h), moved(-h), &format!("number {e} of tensor {t}"))?;
            }
        }
    }

    /// Each sample is a function of the key and its number alone.
    #[test]
    fn samples_do_not_depend_on_the_cut(
        which in 0_usize..3, d in 1_usize..=4, first in 0_u64..100, cut in 1_usize..20, seed in any::<u64>(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let base = base(&b, which, 3, d, key).prepare(&b);
        let whole = down(&b, &base.sample(&b, key, first, 20, None));
        let head = down(&b, &base.sample(&b, key, first, cut, None));
        let tail = down(&b, &base.sample(&b, key, first + cut as u64, 20 - cut, None));
        prop_assert_eq!([head, tail].concat(), whole);
    }
}

/// First and second moments of a mixture by its components, and shares of Student's t below some points. At 4.5 standard errors
/// and some thirty numbers there is a false alarm in 2·10⁻⁴ of keys.
#[test]
fn samples_are_of_the_density() {
    const N: usize = 20_000;
    let b = cpu();
    for covariance in [Covariance::Full, Covariance::Diagonal] {
        let mixture = mixture(3, 2, covariance, Key::new(5));
        let base = GaussianMixture::new(&b, &mixture).expect("in bounds").prepare(&b);
        let z = down(&b, &base.sample(&b, Key::new(6), 0, N, None));
        let (d, weights) = (2, mixture.weights());
        for i in 0..d {
            for j in 0..=i {
                // E z_i z_j and E z_i by the components
                let second: f64 = (0..3)
                    .map(|k| {
                        let (m, s) = (&mixture.means()[k * d..], covariance_of(&mixture, k));
                        weights[k] * (s[(i, j)] + m[i] * m[j])
                    })
                    .sum();
                let found: Vec<f64> = z.chunks(d).map(|z| z[i] * z[j]).collect();
                let (mean, error) = mean_and_error(&found);
                assert!((mean - second).abs() < 4.5 * error, "{covariance}, E z{i} z{j}: {mean} ± {error}, {second}");
            }
            let first: f64 = (0..3).map(|k| weights[k] * mixture.means()[k * d + i]).sum();
            let (mean, error) = mean_and_error(&z.chunks(d).map(|z| z[i]).collect::<Vec<_>>());
            assert!((mean - first).abs() < 4.5 * error, "{covariance}, E z{i}: {mean} ± {error}, {first}");
        }
    }
    // Student's t: the share below some quantiles, of two degrees of freedom at once
    let raw = [-1.0_f64, 2.0];
    let base = StudentT::from_parts(&b, b.upload(&raw, [2].into())).expect("a shape that fits").prepare(&b);
    let z = down(&b, &base.sample(&b, Key::new(7), 0, N, None));
    for (column, raw) in raw.iter().enumerate() {
        let law = StudentsT::new(0.0, 1.0, 1.0 + raw.exp().ln_1p()).expect("a law");
        for at in [-30.0, -3.0, -0.7, 0.0, 1.1, 5.0, 100.0] {
            let (expected, n) = (law.cdf(at), N as f64);
            let found = z.iter().skip(column).step_by(2).filter(|z| **z < at).count() as f64 / n;
            let error = (expected * (1.0 - expected) / n).sqrt() + 1.0 / n;
            assert!((found - expected).abs() < 4.5 * error, "column {column} below {at}: {found}, {expected}");
        }
    }
}

/// A component cannot shrink to one datum: beyond the least scale the density stands still, the gradient that would push on is
/// zero, and the one that leads back is not.
#[test]
fn scales_are_bounded_below() {
    let b = cpu();
    for shape in [&[1, 2, 2][..], &[1, 2]] {
        let at = |log: f64| {
            let mut factors = vec![0.0; shape.iter().product()];
            factors[0] = log;
            let parts = [b.full(0.0, [1].into()), b.full(0.0, [1, 2].into()), b.upload(&factors, shape.into())];
            let [logits, means, factors] = parts;
            GaussianMixture::from_parts(&b, logits, means, factors).expect("shapes that fit").prepare(&b)
        };
        let most = -LEAST_SCALE.ln();
        let log_p = |log: f64| {
            let z = Batch::new(b.full(0.0, [1, 2].into()));
            at(log).log_prob(&b, &z).expect("no fault")[0]
        };
        assert!(log_p(most - 0.1) < log_p(most) && log_p(most) == log_p(most + 5.0), "{shape:?}");
        // a datum at the mean wants a smaller scale, one further off a larger one
        let gradient = |z: f64| {
            let mut grads = vec![None; 3];
            let prepared = at(most + 0.5);
            let x = Batch::new(b.full(z, [1, 2].into()));
            prepared.pull_back(&b, x, &b.full(1.0, [1, 1].into()), &mut grads);
            prepared.finish_gradients(&b, &mut grads);
            down(&b, grads[2].as_ref().expect("a gradient"))[0]
        };
        assert!(gradient(0.0) == 0.0 && gradient(1.0) > 1.0, "{shape:?}");
    }
    let narrow = Mixture::new(1, Covariance::Full, vec![1.0], vec![0.0], vec![2.0 / LEAST_SCALE]).expect("a mixture");
    let refused = GaussianMixture::new(&b, &narrow).expect_err("too narrow").to_string();
    assert!(refused.contains("standardise"), "{refused}");
}

/// From the bulk to where squares overflow.
#[test]
fn far_samples_are_finite_or_nothing() {
    let b = cpu();
    for which in 0..3 {
        let base = base(&b, which, 3, 2, Key::new(8)).prepare(&b);
        for z in [1e3, 1e30, 1e100] {
            let batch = Batch::new(b.full(z, [1, 2].into()));
            let found = base.log_prob(&b, &batch).expect("no fault")[0];
            let energy = down(&b, &base.energy(&b, &batch))[0];
            let same = (found + energy + base.constant()).abs() <= 1e-9 * found.abs();
            assert!(found < -5.0 && found.is_finite() && same, "base {which} at {z}: {found}, {energy}");
        }
    }
}

#[test]
fn a_base_is_of_the_flows_dimension() {
    let b = cpu();
    let mut flow = Flow::new(b.clone(), FlowConfig::new(2), Key::new(0)).expect("valid");
    assert!(flow.set_base(Normal::new(3)).expect_err("another dimension").to_string().contains("3 dimensions"));
    let three = mixture(3, 2, Covariance::Diagonal, Key::new(1));
    flow.set_base(GaussianMixture::new(&b, &three).expect("in bounds")).expect("two dimensions");
    assert_eq!(flow.config().base(), &BaseConfig::Mixture(three.config()));
    assert_eq!(flow.parameters(), flow.config().parameters());
    for (weights, means, factors) in [
        (vec![], vec![], vec![]),
        (vec![1.0], vec![0.0; 3], vec![1.0; 2]),
        (vec![0.0], vec![0.0; 2], vec![1.0; 2]),
        (vec![1.0], vec![f64::NAN; 2], vec![1.0; 2]),
        (vec![1.0], vec![0.0; 2], vec![1.0, 0.0]),
    ] {
        assert!(Mixture::new(2, Covariance::Diagonal, weights, means, factors).is_err());
    }
    assert!(Mixture::new(2, Covariance::Full, vec![1.0], vec![0.0; 2], vec![1.0; 4]).is_err(), "not triangular");
    let zeros = |shape: &[usize]| b.full(0.0, shape.into());
    for (logits, means, factors) in [
        (&[2][..], &[2, 3][..], &[2, 2][..]),
        (&[2], &[3, 3], &[2, 3]),
        (&[2, 1], &[2, 3], &[2, 3]),
        (&[0], &[0, 3], &[0, 3]),
        (&[2], &[2, 3], &[2, 3, 2]),
    ] {
        let found = GaussianMixture::from_parts(&b, zeros(logits), zeros(means), zeros(factors));
        assert!(found.is_err(), "{logits:?} {means:?} {factors:?}");
    }
    assert!(StudentT::from_parts(&b, zeros(&[2, 2])).is_err());
}

// ---- the start as the identity ------------------------------------------------------------------------------------

fn bases() -> [BaseConfig; 4] {
    ["normal", "mixture:components=3,covariance=full", "mixture:components=2,covariance=diagonal", "student-t"]
        .map(|text| text.parse().expect("a base"))
}

/// Flows over rows and over images without the logit, which begin as the identity.
fn identities(base: BaseConfig) -> Vec<ModelConfig> {
    let start = Start::Identity;
    let mut all: Vec<ModelConfig> = Vec::new();
    for family in Family::ALL {
        for dimension in [2, 3] {
            let config = FlowConfig { blocks: 3, hidden: vec![6, 4], base, start, ..FlowConfig::of(family, dimension) };
            all.push(config.clone().into());
            all.push(
                FlowConfig { actnorm: false, replicates: 3, evaluation: "roulette".parse().expect("a text"), ..config }
                    .into(),
            );
        }
        if !family.takes_images() {
            continue;
        }
        for (factor_out, squeeze_first) in [(false, false), (true, true)] {
            let images = exact_images([4, 4, 2], &[2, 2]).of(family);
            let images = ImageConfig { blocks: vec![2, 2], logit: false, factor_out, squeeze_first, ..images };
            all.push(ImageConfig { base, start, ..images }.into());
        }
    }
    for norms in ["1f21", "learned"] {
        let norms = norms.parse().expect("norms");
        all.push(FlowConfig { blocks: 2, hidden: vec![5, 4], norms, base, start, ..FlowConfig::new(2) }.into());
    }
    let connected = ImageConfig { fully_connected: 1, logit: false, ..exact_images([2, 2, 1], &[1]) };
    all.push(ImageConfig { base, start, ..connected }.into());
    all
}

#[test]
fn a_flow_that_begins_as_the_identity_is_its_base() {
    let b = cpu();
    for base in bases() {
        for config in identities(base) {
            let what = format!("{}, {:?}, {base}", config.family(), config.sample_shape());
            let flow = Flow::new(b.clone(), &config, Key::new(1)).expect("valid");
            let d = config.dimension();
            let x = uniform_rows(7, d, Key::new(2));
            let prepared = flow.prepare();
            let encoded = prepared.encode(&x, Key::new(3)).expect("rows that fit");
            assert!(encoded.log_det.iter().all(|l| l.abs() < 1e-12), "{what}: {:?}", encoded.log_det);
            // squeezes and factoring out permute the numbers
            for (x, z) in x.values().chunks(d).zip(encoded.latents.values().chunks(d)) {
                let sorted = |v: &[f64]| {
                    let mut v = v.to_vec();
                    v.sort_by(f64::total_cmp);
                    v
                };
                let apart = apart(&sorted(x), &sorted(z));
                assert!(apart < 1e-12, "{what}: {apart:e}");
                // a monotone block multiplies by √2 twice, which rounds
                let rounds = config.family().couples() || config.family() == Family::Monotone;
                assert!(config.rows().is_none() || rounds || x == z, "{what}: exactly");
            }
            let z = Batch::new(b.upload(encoded.latents.values(), [7, d].into()));
            let expected = flow.base().prepare(&b).log_prob(&b, &z).expect("no fault");
            let found = prepared.log_prob(&x, Key::new(3)).expect("rows that fit");
            for (found, expected) in found.values.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12 * (1.0 + expected.abs()), "{what}: {found} and {expected}");
            }
            // the file of it gives it back
            let again = Flow::from_archive(b.clone(), &flow.to_archive().expect("stored")).expect("a model");
            assert_eq!(again.log_prob(&x, Key::new(3)).expect("rows that fit").values, found.values, "{what}");
        }
    }
}

/// Weights of zero have σ = 0, and the gradient passes: training leaves the identity, no batch sets an ActNorm, and every
/// last weight moves.
#[test]
fn training_leaves_the_identity() {
    for family in Family::ALL {
        let base = "mixture:components=2".parse().expect("a base");
        // the last layer is the third, or one behind it
        let hidden = vec![8; if family.has_dense_nets() { 2 } else { 1 }];
        let config = FlowConfig { blocks: 2, hidden, base, start: Start::Identity, ..FlowConfig::of(family, 2) };
        let flow = Flow::new(cpu(), &config, Key::new(4)).expect("valid");
        let settings =
            TrainConfig { batch: 64, warmup: 1, validation_rows: 500, ..TrainConfig::default() }.for_family(family);
        let source = resflow::data::ToyDensity::Moons;
        let mut trainer =
            Trainer::new(flow, source, &settings, Budget::Steps(150), Key::new(5)).expect("data that fit");
        let start = trainer.validate().expect("finite").nll;
        trainer.step().expect("finite");
        trainer.flow().visit(&mut |name, tensor, _| {
            if name.ends_with("log_scale") || name.ends_with("lu") {
                // a step of Adam from the identity, no standardisation
                let largest = largest(down(&cpu(), tensor));
                assert!(largest < 0.02, "{family}, {name}: {largest}");
            }
        });
        trainer.run(|_, _| ()).expect("finite");
        let mut last = Vec::new();
        trainer.flow().visit(&mut |name, tensor, role| {
            if role == Role::Weight && !name.contains("net.0.") && !name.contains("net.1.") {
                last.push((name.to_owned(), norm(&down(&cpu(), tensor))));
            }
        });
        assert!(last.iter().all(|(_, norm)| *norm > 1e-3) && !last.is_empty(), "{family}: {last:?}");
        let end = trainer.best_nll().expect("validated");
        assert!(end < start - 0.05, "{family}: {start} and then {end}");
    }
}
