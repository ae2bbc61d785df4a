//! Every family of flows, over rows and over images, through the one trainer and the one format: training improves it, a run
//! goes on where it stopped, bit for bit, and a model file gives it back in either precision; and what each family
//! refuses. No statistics: seeds are fixed.

use crate::common::*;
use crate::properties::dequantisation::variational;
use resflow::NdArray;
use resflow::backend::{Backend as _, Key};
use resflow::checkpoint::Archive;
use resflow::config::{Family, FlowConfig, GatedConfig, ImageConfig, ModelConfig, Nonlinearity, Preset, Start};
use resflow::coupling::Mask;
use resflow::data::ToyDensity;
use resflow::estimator::{Estimator, Exact};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Status};
use resflow::stage::Stage;
use resflow::train::{Budget, Source, TrainConfig, Trainer};

pub(crate) fn rows(family: Family) -> ModelConfig {
    // a continuous flow evaluates each net 64 times
    let blocks = if family == Family::Ffjord { 1 } else { 6 };
    FlowConfig { blocks, hidden: vec![16, 16], ..FlowConfig::of(family, 2) }.into()
}

pub(crate) fn small_images(family: Family) -> ModelConfig {
    let residual = ImageConfig {
        blocks: vec![2, 1],
        filters: 6,
        fully_connected: 1,
        fully_connected_width: 4,
        evaluation: Estimator::Exact(Exact),
        ..exact_images([4, 4, 1], &[1])
    };
    residual.of(family).into()
}

pub(crate) fn source(config: &ModelConfig) -> Source {
    match config {
        ModelConfig::Rows(_) => Source::Density(ToyDensity::Moons),
        // smooth images: brightness along a diagonal; the classes are their contrasts
        ModelConfig::Images(_) => {
            let byte = |e: usize| (3 * (e / 16) + 20 * (e % 4) + 13 * (e / 4 % 4) + 7 * (e / 16 % 5) * (e % 3)) as u8;
            let bytes = (0..80 * 16).map(byte).collect();
            let labels = (0..80).map(|i| i % 5).collect();
            Source::from(resflow::data::image::ImageSet::new(4, 4, 1, bytes, Some(labels)).expect("images"))
        }
    }
}

pub(crate) fn settings(family: Family) -> TrainConfig {
    let settings = TrainConfig { batch: 32, warmup: 5, validation_rows: 200, ..TrainConfig::default() };
    settings.for_family(family)
}

pub(crate) fn trainer(config: &ModelConfig, steps: u64) -> Trainer<Cpu> {
    let flow = Flow::new(cpu(), config, Key::new(3)).expect("a configuration");
    let budget = Budget::Steps(steps);
    Trainer::new(flow, source(config), &settings(config.family()), budget, Key::new(4)).expect("data that fit")
}

fn hybrid(family: Family) -> ModelConfig {
    let images = small_images(family).images().cloned().expect("images");
    ImageConfig { classes: 5, head_width: 6, ..images }.into()
}

/// Other base densities, which begin with random weights or as the identity.
fn based() -> impl Iterator<Item = ModelConfig> {
    let base = |text: &str| text.parse().expect("a base");
    let over_rows = |family, text, start| {
        let flow = rows(family).rows().cloned().expect("rows");
        ModelConfig::from(FlowConfig { base: base(text), start, ..flow })
    };
    let over_images = |family, text, start| {
        let images = small_images(family).images().cloned().expect("images");
        ModelConfig::from(ImageConfig { base: base(text), start, ..images })
    };
    [
        over_rows(Family::Residual, "mixture:components=4", Start::Random),
        over_rows(Family::Glow, "mixture:components=3,covariance=diagonal", Start::Identity),
        over_rows(Family::RealNvp, "student-t", Start::Identity),
        over_images(Family::Residual, "mixture:components=2", Start::Identity),
        over_images(Family::Glow, "student-t", Start::Random),
    ]
    .into_iter()
}

pub(crate) fn all() -> impl Iterator<Item = ModelConfig> {
    Family::ALL
        .into_iter()
        .flat_map(|family| {
            let pictures = family.takes_images().then(|| [small_images(family), hybrid(family)]);
            [rows(family)].into_iter().chain(pictures.into_iter().flatten())
        })
        .chain(based())
        .chain(dequantised())
}

/// Images with noise by a flow of its own: every family with one, and every kind of one; and couplings with gated nets.
fn dequantised() -> impl Iterator<Item = ModelConfig> {
    let with = |family: Family, noise: Family| {
        let images = small_images(family).images().cloned().expect("images");
        ModelConfig::from(ImageConfig { dequantisation: variational(noise), ..images })
    };
    let of_couplings = Family::ALL.into_iter().filter(|f| f.takes_images()).map(move |f| with(f, Family::RealNvp));
    let gated = ImageConfig {
        gated: Some(GatedConfig { blocks: 1, heads: 2, most_pixels: 4 }),
        activation: Nonlinearity::ClipSwish,
        ..small_images(Family::FlowPlusPlus).images().cloned().expect("images")
    };
    of_couplings
        .chain([with(Family::Residual, Family::Residual), with(Family::FlowPlusPlus, Family::FlowPlusPlus)])
        .chain([ModelConfig::from(gated)])
}

/// The names and the numbers of the trained tensors.
pub(crate) fn trained(flow: &Flow<Cpu>) -> Vec<(String, usize)> {
    let mut out = Vec::new();
    flow.visit(&mut |name, t, role| {
        if role.is_trained() {
            out.push((name.to_owned(), flow.backend().shape(t).elements()));
        }
    });
    out
}

/// The flow with one trained tensor moved along a direction.
pub(crate) fn moved(b: &Cpu, flow: &Flow<Cpu>, which: usize, direction: &[f64], h: f64) -> Flow<Cpu> {
    let (mut flow, mut number) = (flow.clone(), 0);
    flow.visit_mut(&mut |_, t, role| {
        if role.is_trained() {
            if number == which {
                *t = b.axpy(h, &b.upload(direction, b.shape(t)), t.clone());
            }
            number += 1;
        }
    });
    flow
}

pub(crate) fn archive_bytes(trainer: &Trainer<Cpu>) -> Vec<u8> {
    let mut archive = trainer.to_archive().expect("stored");
    archive.document["run"]["elapsed"] = 0.into();
    archive.to_bytes().expect("stored")
}

#[test]
fn a_range_of_samples_is_a_part_of_all() {
    let how = Inversion::for_backend::<Cpu>();
    for config in all() {
        let flow = Flow::new(cpu(), &config, Key::new(31)).expect("a configuration").prepare();
        let whole = flow.sample(9, Key::new(32), &how).expect("samples");
        let part = flow.sample_range(4..8, Key::new(32), &how).expect("samples");
        let d = flow.dimension();
        let apart = part.samples.values().iter().zip(&whole.samples.values()[4 * d..]).map(|(a, b)| (a - b).abs());
        let apart = largest(apart);
        assert!(part.reports.len() == 4 && apart < 1e-6, "{}, {:?}: {apart}", config.family(), config.sample_shape());
        assert!(flow.sample_range(3..3, Key::new(32), &how).expect("no samples").reports.is_empty());
    }
}

#[test]
fn training_improves_every_family() {
    for config in all() {
        // an image has eight times the numbers of a row to learn from
        let mut run = trainer(&config, if config.images().is_some() { 50 } else { 150 });
        run.step().expect("finite");
        let first = run.validate().expect("finite").nll;
        run.run(|_, _| ()).expect("finite");
        let last = run.best_nll().expect("validated");
        let what = (config.family(), config.sample_shape());
        assert!(last < first - 0.05, "{what:?}: {first} and then {last}");
        // and it samples what it has learned, each row with a status
        let model = run.model();
        let samples = model.sample(20, Key::new(5)).expect("no device fault");
        assert!(samples.reports.iter().all(|r| r.status <= Status::FloatFloor), "{what:?}");
        assert!(samples.residual < 1e-9, "{what:?}: {:e}", samples.residual);
        // Flow++'s couplings invert by Newton's method
        if config.family().couples() && config.family() != Family::FlowPlusPlus {
            assert!(samples.reports.iter().all(|r| r.iterations == 0 && r.error_bound == 0.0), "{what:?}");
        }
    }
}

#[test]
fn a_run_goes_on_where_it_stopped() {
    for config in all() {
        let mut whole = trainer(&config, 6);
        whole.run(|_, _| ()).expect("finite");
        let mut first = trainer(&config, 6);
        for _ in 0..3 {
            first.step().expect("finite");
        }
        let bytes = first.to_archive().expect("stored").to_bytes().expect("stored");
        let archive = Archive::from_bytes(&bytes).expect("a state");
        let mut second = Trainer::resume(cpu(), &archive, source(&config)).expect("the same data");
        assert_eq!(second.steps_done(), 3);
        second.run(|_, _| ()).expect("finite");
        assert!(archive_bytes(&whole) == archive_bytes(&second), "{}, {:?}", config.family(), config.sample_shape());
    }
}

#[test]
fn a_model_loads_in_either_precision() {
    for config in all() {
        let flow = random_flow(&cpu(), &config, Key::new(6), 0.1);
        assert_eq!(flow.parameters(), config.parameters(), "{}", config.family());
        let bytes = flow.to_archive().expect("stored").to_bytes().expect("stored");
        let archive = Archive::from_bytes(&bytes).expect("a file");
        let single = Flow::from_archive(NdArray::<f32>::new(), &archive).expect("a model");
        assert_eq!(single.config(), &config);
        let (x, key) = (uniform_rows(5, config.dimension(), Key::new(7)), Key::new(8));
        let exact = |flow: &Flow<Cpu>| flow.log_prob(&x, key).expect("rows that fit").values;
        let found = single.log_prob(&x, key).expect("rows that fit").values;
        for (found, exact) in found.iter().zip(exact(&flow)) {
            assert!((found - exact).abs() < 1e-3 * (1.0 + exact.abs()), "{}: {found} and {exact}", config.family());
        }
        // every tensor is wanted
        let names: Vec<_> = archive.tensors.keys().cloned().collect();
        for name in names {
            let mut lacking = archive.clone();
            lacking.tensors.remove(&name);
            assert!(Flow::from_archive(cpu(), &lacking).is_err(), "{} without {name}", config.family());
        }
    }
}

/// Where the defaults of a family estimate log dets, the variance of their gradients is bounded for every net they allow.
#[test]
fn laws_suit_the_coefficients() {
    let b = cpu();
    for family in [Family::Residual, Family::Dense, Family::Implicit, Family::Monotone] {
        for d in [2, 40, 400] {
            let defaults = FlowConfig::of(family, d);
            let config = FlowConfig { blocks: 1, hidden: vec![8; defaults.hidden.len()], ..defaults };
            let warnings = Flow::new(b.clone(), config, Key::new(0)).expect("a configuration").variance_warnings();
            assert!(warnings.is_empty(), "{family} of {d}: {}", warnings[0]);
        }
    }
}

#[test]
fn what_a_family_refuses() {
    let refused = |config: FlowConfig| config.check().expect_err("refused").to_string();
    let exact = FlowConfig { training: Estimator::Exact(Exact), ..FlowConfig::of(Family::IResNet, 2) };
    assert!(refused(exact).contains("truncated"));
    for family in [Family::RealNvp, Family::Glow] {
        assert!(refused(FlowConfig::of(family, 1)).contains("two columns"));
        let norms = "2112".parse().expect("norms");
        assert!(refused(FlowConfig { norms, ..FlowConfig::of(family, 2) }).contains("norms"));
        let connected = ImageConfig { fully_connected: 2, ..ImageConfig::default().of(family) };
        assert!(connected.check().expect_err("refused").to_string().contains("fully_connected"));
        let pixel = ImageConfig { squeeze_first: false, ..exact_images([1, 1, 1], &[1]).of(family) };
        assert!(pixel.check().expect_err("refused").to_string().contains("two columns or pixels"));
        let state = resflow::import::StateDict::from_safetensors(
            &Archive { tensors: [].into(), document: ().into() }.to_bytes().expect("stored"),
        );
        let config = ModelConfig::from(FlowConfig::of(family, 2));
        let imported = Flow::from_state_dict(cpu(), &config, state.expect("an empty one"));
        assert!(imported.expect_err("no such state dicts").to_string().contains("residual flows"));
    }
    for family in [Family::Glow, Family::Nsf, Family::FlowPlusPlus] {
        assert!(refused(FlowConfig::of(family, 5000)).contains("at most 1024"));
        assert!(refused(FlowConfig::of(family, 1)).contains("two columns"));
    }
    let nsf = || FlowConfig::of(Family::Nsf, 2);
    for (wrong, name) in [
        (FlowConfig { bins: 1, ..nsf() }, "bins"),
        (FlowConfig { bins: 1000, ..nsf() }, "bins"),
        (FlowConfig { bound: 0.0, ..nsf() }, "bound"),
        (FlowConfig { bound: f64::NAN, ..nsf() }, "bound"),
        (FlowConfig { bound: f64::INFINITY, ..nsf() }, "bound"),
        (FlowConfig { norms: "2112".parse().expect("norms"), ..nsf() }, "norms"),
    ] {
        assert!(refused(wrong).contains(name), "{name}");
    }
    for components in [0, 65, usize::MAX] {
        assert!(refused(FlowConfig { components, ..FlowConfig::of(Family::FlowPlusPlus, 2) }).contains("components"));
    }
    assert!("glaw".parse::<Family>().expect_err("no such model").to_string().contains("realnvp, glow, nsf"));
}

/// The log det of couplings is exact whatever the setting says.
#[test]
fn couplings_estimate_nothing() {
    for config in [rows(Family::Glow), rows(Family::Nsf), rows(Family::FlowPlusPlus), small_images(Family::RealNvp)] {
        let mut flow = random_flow(&cpu(), &config, Key::new(9), 0.1);
        let x = uniform_rows(4, config.dimension(), Key::new(7));
        let before = flow.log_prob(&x, Key::new(0)).expect("rows that fit");
        flow.set_log_prob_estimator("truncated:terms=1".parse().expect("a text"), 3).expect("in range");
        let after = flow.log_prob(&x, Key::new(1)).expect("rows that fit");
        assert_eq!((before.values, "exact"), (after.values, after.estimator.as_str()));
        assert!(after.replicates == 1 && after.standard_error.iter().all(|&e| e == 0.0));
        assert!(flow.variance_warnings().is_empty() && flow.spectra().expect("no fault").iter().all(Vec::is_empty));
    }
}

/// The presets of every family are valid, and what their chains hold adds up.
#[test]
fn presets_of_every_family() {
    for preset in Preset::ALL {
        let of_nsf = preset.flow().of(Family::Nsf).check().expect_err("splines are for rows").to_string();
        assert!(of_nsf.contains("nsf is for rows") && of_nsf.contains("residual, iresnet, realnvp, glow"), "{of_nsf}");
        for family in Family::ALL.into_iter().filter(|f| f.takes_images()) {
            let config = preset.flow().of(family);
            config.check().unwrap_or_else(|e| panic!("{preset}, {family}: {e}"));
            let stages = ModelConfig::from(&config).stages();
            let couplings: Vec<(&[usize], Mask)> = stages
                .iter()
                .filter_map(|s| match s {
                    Stage::Coupling { shape, mask, .. } | Stage::MixtureCoupling { shape, mask, .. } => {
                        Some((&shape[..], *mask))
                    }
                    _ => None,
                })
                .collect();
            assert_eq!(couplings.is_empty(), !family.couples(), "{preset}, {family}");
            for pair in couplings.windows(2) {
                let swapped = |mask: Mask| match mask {
                    Mask::Channels { swapped } | Mask::Checkerboard { swapped } => swapped,
                };
                let alike =
                    pair[0].0 == pair[1].0 && std::mem::discriminant(&pair[0].1) == std::mem::discriminant(&pair[1].1);
                let turned = swapped(pair[0].1) != swapped(pair[1].1);
                assert!(!alike || turned, "{preset}, {family}: what one coupling keeps the next one moves");
            }
            let maps = stages.iter().filter(|s| matches!(s, Stage::InvertibleLinear { .. })).count();
            let boards = couplings.iter().filter(|(_, mask)| matches!(mask, Mask::Checkerboard { .. })).count();
            let scales = config.blocks.len();
            match family {
                Family::Glow => assert!(maps == couplings.len() && boards == 0, "{preset}"),
                // of one channel all masks are checkerboards, elsewhere half of them
                Family::RealNvp | Family::FlowPlusPlus => {
                    let half = |count: usize| count.div_ceil(2);
                    let first = if config.channels == 1 && !config.squeeze_first {
                        config.blocks[0]
                    } else {
                        half(config.blocks[0])
                    };
                    let mixed = |shape: &[usize]| family == Family::FlowPlusPlus && shape.last() != Some(&1);
                    assert_eq!(maps, couplings.iter().filter(|(shape, _)| mixed(shape)).count(), "{preset}");
                    assert!(boards == first + config.blocks[1..].iter().map(|&n| half(n)).sum::<usize>(), "{preset}");
                }
                _ => assert_eq!((maps, boards), (0, 0), "{preset}"),
            }
            assert!(scales >= 2, "{preset}, {family}: multi-scale");
        }
    }
}

/// Convolutions are free of the image size: the same couplings take other images, and score them as a flow of that size.
#[test]
fn couplings_take_images_of_any_size() {
    for family in [Family::RealNvp, Family::Glow] {
        let b = cpu();
        let flow = random_flow(&b, small_images(family), Key::new(11), 0.1);
        let larger = flow.resized(8, 12).expect("an even size");
        assert_eq!(larger.config().sample_shape(), [8, 12, 1]);
        let x = uniform_rows(2, 96, Key::new(12));
        let encoded = larger.prepare().encode(&x, Key::new(0)).expect("images that fit");
        let back = larger.prepare().decode(&encoded.latents, &Inversion::for_backend::<Cpu>()).expect("rows that fit");
        let apart = apart(back.samples.values(), x.values());
        assert!(apart < 1e-10, "{family}: {apart:e}");
        let again = Flow::from_archive(b, &larger.to_archive().expect("stored")).expect("a model of its size");
        assert_eq!(
            again.log_prob(&x, Key::new(0)).expect("fits").values,
            larger.log_prob(&x, Key::new(0)).expect("fits").values
        );
        assert!(flow.resized(5, 4).is_err() && flow.resized(1, 1).is_err(), "{family}");
    }
}
