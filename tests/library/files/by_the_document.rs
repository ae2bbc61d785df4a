//! docs/model-file.md says all that an independent reader needs: log p of the reader that was written by it
//! (`document_reader`) is that of the library with exact log dets.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Backend, Key, Noise};
use resflow::bijection::Bijection;
use resflow::categorical::CategoricalDensity;
use resflow::config::{
    BaseConfig, ContextConfig, Dequantisation, DequantisationConfig, Family, FlowConfig, GatedConfig, ImageConfig,
    ModelConfig, Nonlinearity, Start,
};
use resflow::data::column::{Asinh, Grid, Spline};
use resflow::data::image::ImageSet;
use resflow::data::{Categories, ColumnMap, ColumnMaps, Dataset, Support, Table};
use resflow::estimator::{Estimator, Exact};
use resflow::flow::{Flow, FlowCategories};
use resflow::lipschitz::PowerIteration;
use resflow::module::Role;
use resflow::transform::dequantise;

use crate::files::document_reader::Document;

type Cpu = NdArray<f64>;

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

/// A flow whose trained tensors were moved, so that nothing is zero or one by its start, and that has exact log dets.
fn moved(mut flow: Flow<Cpu>, seed: u64) -> Flow<Cpu> {
    let b = cpu();
    let mut number = 0;
    flow.visit_mut(&mut |_, tensor, role: Role| {
        if role.is_trained() {
            let noise = b.noise(Key::new(seed).split(number), Noise::Normal, 0, b.shape(tensor));
            *tensor = b.axpy(0.2, &noise, tensor.clone());
        }
        number += 1;
    });
    flow.update_spectral_norms(PowerIteration::Iterations(3));
    flow.set_log_prob_estimator(Estimator::Exact(Exact), 2).expect("in range");
    flow
}

fn flow(config: impl Into<ModelConfig>) -> Flow<Cpu> {
    moved(Flow::new(cpu(), config, Key::new(3)).expect("valid"), 4)
}

#[track_caller]
fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-9 * (1.0 + e.abs()), "{what} {i}: {f} by the document, {e} by the library");
    }
}

/// Three samples, by the document and by the library.
fn agrees(what: &str, flow: &Flow<Cpu>) {
    let bytes = flow.to_archive().expect("stored").to_bytes().expect("stored");
    let mut document = Document::read(&bytes);
    let (d, key) = (flow.dimension(), Key::new(8));
    let mut given = Vec::new();
    if let Some(context) = flow.config().context() {
        given = (0..context.columns).map(|j| 0.7 * j as f64 - 1.3).collect();
        document = document.given(&given);
    }
    let mut values = vec![0.0; 3 * d];
    if flow.config().images().is_some() {
        Noise::Uniform.fill(Key::new(7), 0, &mut values);
    } else {
        Noise::Normal.fill(Key::new(7), 0, &mut values);
    }
    let read: Vec<_> = values.chunks(d).map(|sample| document.log_prob(sample)).collect();
    let samples = Table::new(None, d, values).expect("finite");
    let prepared = flow.prepare();
    let (said, encoded) = if given.is_empty() {
        (prepared.log_prob(&samples, key), prepared.encode(&samples, key))
    } else {
        let context = Table::new(None, given.len(), given).expect("finite");
        let at = prepared.condition(&context).expect("a context");
        (at.log_prob(&samples, key), at.encode(&samples, key))
    };
    let (said, encoded) = (said.expect("they fit"), encoded.expect("they fit"));
    assert!(said.standard_error.iter().all(|&e| e == 0.0), "{what}: exact");
    near(what, &read.iter().flat_map(|r| r.z.clone()).collect::<Vec<_>>(), encoded.latents.values());
    near(what, &read.iter().map(|r| r.log_det).collect::<Vec<_>>(), &encoded.log_det);
    near(what, &read.iter().map(|r| r.log_prob).collect::<Vec<_>>(), &said.values);
}

#[test]
fn residual_flows_over_rows() {
    for activation in Nonlinearity::ALL {
        for (leading_activation, actnorm, norms) in [(true, true, "2"), (false, false, "1f1"), (true, false, "learned")]
        {
            if activation.widening() == 2 && norms != "2" {
                continue;
            }
            let norms = norms.parse().expect("norms");
            let config = FlowConfig { blocks: 2, hidden: vec![5], ..FlowConfig::new(3) };
            let config = FlowConfig { activation, leading_activation, actnorm, norms, ..config };
            agrees(&format!("{activation:?}, leading {leading_activation}"), &flow(config));
        }
    }
}

#[test]
fn conditional_flows() {
    for (family, gates) in Family::ALL.into_iter().zip([false, true].into_iter().cycle()) {
        let context = || Some(ContextConfig { embedding: vec![5, 4], gates, ..ContextConfig::new(3) });
        let of = FlowConfig::of(family, 3);
        let hidden = of.hidden.iter().map(|_| 4).collect();
        let mut conditional = flow(FlowConfig { blocks: 2, hidden, bins: 4, bound: 3.0, context: context(), ..of });
        agrees(&format!("conditional {family}"), &conditional);
        // contexts of other units, and a chain of its own
        let mut archive = conditional.to_archive().expect("stored");
        let stages = conditional.stages().expect("known");
        archive.document["model"]["chain"] = serde_json::to_value(&stages[..stages.len() - 1]).expect("JSON");
        let [mean, deviation] = [vec![0.4, -2.0, 1.0], vec![2.0, 0.5, 1.0]].map(resflow::checkpoint::Values::F64);
        archive.tensors.insert("context.mean".into(), (vec![3], mean));
        archive.tensors.insert("context.deviation".into(), (vec![3], deviation));
        let dropped = format!("links.{}.", stages.len() - 1);
        archive.tensors.retain(|name, _| !name.starts_with(&dropped));
        conditional = Flow::from_archive(cpu(), &archive).expect("a shorter chain");
        agrees(&format!("conditional {family}, listed"), &conditional);
        if family.takes_images() {
            // the document's ODE takes many steps with all of a Jacobian's columns
            let [height, width, channels] = if family == Family::Ffjord { [2, 2, 1] } else { [4, 8, 2] };
            let size = ImageConfig { height, width, channels, ..images() };
            let config = ImageConfig { blocks: vec![1, 1], filters: 4, kernels: vec![3, 1, 3], ..size };
            agrees(
                &format!("conditional images of {family}"),
                &flow(ImageConfig { context: context(), ..config.of(family) }),
            );
        }
    }
    let own = ContextConfig { embedding: Vec::new(), scales: false, ..ContextConfig::new(2) };
    agrees("a context as it is", &flow(FlowConfig { blocks: 1, context: Some(own), ..FlowConfig::new(2) }));
}

/// Rows with categories of which one is a table's and one, which follows the other, a net's; and contexts with categories.
#[test]
fn flows_with_categories() {
    let rows: Vec<[&str; 2]> =
        (0..400).map(|i| [["a", "b", "c"][i % 3], ["x", "y"][usize::from(i % 3 == 1)]]).collect();
    let rows = Categories::of_rows(&["first", "second"], &rows).expect("rows");
    let data = Dataset::from(rows.clone());
    let density = CategoricalDensity::fit(data.samples(), data.samples(), Key::new(6)).expect("categories");
    assert!(!density.is_table(1));
    let context = Some(ContextConfig { embedding: vec![4], ..ContextConfig::new(5) });
    let config = FlowConfig { blocks: 1, hidden: vec![4], context, ..FlowConfig::new(2) };
    let mut modelled = flow(config);
    modelled.set_categories(Some(FlowCategories::Modelled(density))).expect("five levels");
    let samples = Table::new(None, 2, vec![0.3, -1.0, 0.5, 2.0, -0.4, 0.1]).expect("finite");
    let kinds = rows.select(&[0, 1, 5]);
    let read = |flow: &Flow<Cpu>| Document::read(&flow.to_archive().expect("stored").to_bytes().expect("stored"));
    let by_document = (0..3).map(|i| {
        let document = read(&modelled);
        let own = document.log_prob_of_categories(kinds.row(i));
        own + document.given_categories(&[], kinds.row(i)).log_prob(samples.row(i)).log_prob
    });
    let by_document: Vec<f64> = by_document.collect();
    let data = Dataset::from(samples.clone()).with_categories(kinds.clone()).expect("as many");
    near("modelled", &by_document, &modelled.log_prob(&data, Key::new(8)).expect("rows").values);
    let mut given = modelled.clone();
    let second = kinds.columns()[1].clone();
    given.set_categories(Some(FlowCategories::Given(vec![second.clone()]))).expect("two of five");
    let numbers = Table::new(None, 3, (0..9).map(|i| 0.2 * f64::from(i) - 1.0).collect()).expect("finite");
    let codes: Vec<u32> = (0..3).map(|i| kinds.row(i)[1]).collect();
    let by_document: Vec<f64> = (0..3)
        .map(|i| read(&given).given_categories(numbers.row(i), &codes[i..=i]).log_prob(samples.row(i)).log_prob)
        .collect();
    let contexts = Categories::new(vec![second], codes).expect("codes");
    let data = Dataset::from(samples).with_context(numbers).and_then(|data| data.with_context_categories(contexts));
    near("given", &by_document, &given.log_prob(&data.expect("as many"), Key::new(8)).expect("rows").values);
}

#[test]
fn dense_flows_over_rows() {
    for activation in Nonlinearity::ALL {
        for (learned_concatenation, dense_bound) in [(true, 1.0), (false, 0.9)] {
            let config = FlowConfig { blocks: 2, hidden: vec![4, 2], activation, ..FlowConfig::of(Family::Dense, 3) };
            let config = FlowConfig { learned_concatenation, dense_bound, ..config };
            agrees(&format!("dense, {activation:?}, ℓ = {dense_bound}"), &flow(config));
        }
    }
}

#[test]
fn flows_that_solve() {
    for family in [Family::Implicit, Family::Monotone] {
        for (dimension, leading_activation) in [(1, false), (3, true)] {
            let config = FlowConfig { blocks: 2, hidden: vec![6], ..FlowConfig::of(family, dimension) };
            let config = FlowConfig { leading_activation, ..config };
            agrees(&format!("{family} in {dimension} dimensions"), &flow(config));
        }
        agrees(&format!("{family} over images"), &flow(images().of(family)));
    }
}

#[test]
fn dense_flows_over_images() {
    let dense = ImageConfig { kernels: vec![3, 1, 3], filters: 4, ..images().of(Family::Dense) };
    agrees("dense scales", &flow(dense.clone()));
    let end = ImageConfig { fully_connected: 1, fully_connected_width: 5, fully_connected_growth: 6, ..dense.clone() };
    agrees("dense, a fully connected end", &flow(ImageConfig { learned_concatenation: false, ..end }));
    let pila = ImageConfig { activation: Nonlinearity::Pila, filters: 3, dense_bound: 0.98, factor_out: true, ..dense };
    agrees("dense, factor-out", &flow(ImageConfig { kernels: vec![3, 1], ..pila.clone() }));
    agrees("no dense layer", &flow(ImageConfig { kernels: vec![3], ..pila.clone() }));
    // singular vectors of a larger size
    agrees("smaller images", &flow(ImageConfig { height: 8, ..pila }).resized(4, 4).expect("a size"));
}

#[test]
fn couplings_over_rows() {
    for family in [Family::RealNvp, Family::Glow, Family::FlowPlusPlus] {
        for dimension in [2, 3, 5] {
            let config = FlowConfig { blocks: 3, hidden: vec![4, 6], ..FlowConfig::of(family, dimension) };
            let components = dimension;
            let config = FlowConfig { activation: Nonlinearity::LipSwish, initial_scale: 1.0, components, ..config };
            agrees(&format!("{family} in {dimension} dimensions"), &flow(config));
        }
    }
    let config = FlowConfig { blocks: 2, hidden: vec![4], ..FlowConfig::of(Family::Glow, 3) };
    let config = FlowConfig { activation: Nonlinearity::ClipSwish, actnorm: false, initial_scale: 1.0, ..config };
    agrees("glow with a concatenated activation", &flow(config));
}

#[test]
fn continuous_flows() {
    for (dimension, hidden, activation) in
        [(1, vec![4], Nonlinearity::Softplus), (3, vec![5, 4], Nonlinearity::ClipSwish)]
    {
        for (actnorm, solver) in [(false, "dopri5"), (true, "dopri5:rtol=1e-12,atol=1e-13")] {
            let config = FlowConfig {
                blocks: 2,
                hidden: hidden.clone(),
                activation,
                ..FlowConfig::of(Family::Ffjord, dimension)
            };
            let evaluation_solver = solver.parse().expect("a solver");
            agrees(
                &format!("ffjord in {dimension} dimensions"),
                &flow(FlowConfig { actnorm, evaluation_solver, ..config }),
            );
        }
    }
}

fn affine(centre: f64, scale: f64) -> ColumnMap {
    ColumnMap::affine(centre, scale).expect("in range")
}

#[test]
fn maps_of_columns() {
    let spline = |at: f64| {
        let values = vec![at, at + 0.5, at + 1.7, at + 2.0];
        Spline::new(values, vec![-1.0, 0.2, 0.9, 1.4], vec![2.0, 0.5, 1.0, 1.5]).expect("it increases")
    };
    let asinh = Asinh::new(0.5, 0.1, 1.3).expect("in range");
    let supported = |support| affine(0.3, 0.8).with_values(support, None).expect("a support");
    let maps = vec![
        affine(0.2, 1.5).with_marginal(Some(asinh), None),
        supported(Support::Above(-9.0)).with_marginal(None, Some(spline(-1.0))),
        supported(Support::Below(9.0)).with_marginal(Some(asinh), Some(spline(-0.7))),
        supported(Support::Between(-9.0, 10.0)),
        affine(-0.5, 0.1),
    ];
    let config = FlowConfig { blocks: 2, hidden: vec![5], ..FlowConfig::new(5) };
    let mut mapped = flow(config);
    mapped.set_columns(ColumnMaps::new(maps.clone()).expect("columns")).expect("of the width");
    agrees("maps of columns", &mapped);
    // with transforms in a list too
    let config = FlowConfig { blocks: 2, hidden: vec![5], ..FlowConfig::new(5) };
    let transforms = Flow::new(cpu(), &config, Key::new(1)).expect("valid").transforms().to_vec();
    let mut listed = Flow::from_transforms(cpu(), FlowConfig::new(5), transforms).expect("samples pass");
    listed.set_columns(ColumnMaps::new(maps).expect("columns")).expect("of the width");
    assert_eq!(listed.to_archive().expect("stored").document["model"]["format"], 4);
    agrees("maps of columns before listed transforms", &moved(listed, 5));
}

/// The mean density over a cell by the document, against that over many draws by the library.
#[test]
fn columns_on_grids() {
    let grid = Grid::new(0.5, 0.25).expect("a grid");
    let map = affine(0.1, 0.9).with_values(Support::Above(0.25), Some(grid)).expect("a support");
    let mut flow = flow(FlowConfig { blocks: 2, hidden: vec![5], ..FlowConfig::new(2) });
    let maps = ColumnMaps::new(vec![map, affine(0.5, 2.0)]).expect("columns").with_draws(400).expect("in range");
    flow.set_columns(maps).expect("of the width");
    let document = Document::read(&flow.to_archive().expect("stored").to_bytes().expect("stored"));
    let rows = vec![0.25, 1.0, 0.75, -1.0, 2.25, 0.3];
    let said = flow.log_prob(&Table::new(None, 2, rows.clone()).expect("finite"), Key::new(2)).expect("rows");
    for (i, row) in rows.chunks(2).enumerate() {
        let at =
            |k: usize| document.log_prob(&[row[0] + ((k as f64 + 0.5) / 200.0 - 0.5) * 0.5, row[1]]).log_prob.exp();
        let expected = ((0..200).map(at).sum::<f64>() / 200.0).ln();
        let (value, error) = (said.values[i], said.standard_error[i]);
        assert!(error > 0.0 && (value - expected).abs() < 5.0 * error + 1e-4, "{value} ± {error}, {expected}");
    }
}

/// Other base densities, and couplings that began as the identity.
#[test]
fn other_bases() {
    for base in ["mixture:components=3", "mixture:components=2,covariance=diagonal", "student-t"] {
        let base: BaseConfig = base.parse().expect("a base");
        for (family, start) in [(Family::Residual, Start::Random), (Family::RealNvp, Start::Identity)] {
            let config = FlowConfig { blocks: 2, hidden: vec![5], base, start, ..FlowConfig::of(family, 3) };
            let config = FlowConfig { activation: Nonlinearity::LipSwish, ..config };
            let flow = flow(config);
            assert_eq!(flow.to_archive().expect("stored").document["model"]["format"], 4);
            agrees(&format!("{base}, {family}"), &flow);
        }
        agrees(&format!("{base}, images"), &flow(ImageConfig { base, factor_out: true, ..images() }));
    }
    let config = ImageConfig { blocks: vec![2, 2], start: Start::Identity, ..images().of(Family::Glow) };
    agrees("centred couplings of images", &flow(config));
    let rows =
        FlowConfig { blocks: 2, hidden: vec![4], base: "mixture".parse().expect("a base"), ..FlowConfig::new(3) };
    let all = Flow::new(cpu(), &rows, Key::new(1)).expect("valid").transforms().to_vec();
    let listed = Flow::from_transforms(cpu(), rows, all.into_iter().rev().collect()).expect("samples pass");
    agrees("listed, over a mixture", &moved(listed, 5));
}

#[test]
fn spline_flows() {
    for (dimension, blocks, actnorm) in [(2, 3, false), (3, 2, true), (5, 1, false)] {
        let config = FlowConfig { blocks, hidden: vec![4, 6], actnorm, ..FlowConfig::of(Family::Nsf, dimension) };
        let config = FlowConfig { activation: Nonlinearity::LipSwish, bins: 5, bound: 1.5, ..config };
        agrees(&format!("{dimension} dimensions"), &flow(config.clone()));
        let config = FlowConfig { activation: Nonlinearity::ClipSwish, initial_scale: 1.0, ..config };
        agrees(&format!("{dimension} dimensions, a concatenated activation"), &flow(config));
    }
}

fn images() -> ImageConfig {
    ImageConfig {
        height: 4,
        width: 8,
        channels: 2,
        filters: 3,
        blocks: vec![2, 1],
        fully_connected: 0,
        initial_scale: 1.0,
        ..ImageConfig::default()
    }
}

#[test]
fn residual_flows_over_images() {
    agrees("scales", &flow(images()));
    agrees("a fully connected end", &flow(ImageConfig { fully_connected: 2, fully_connected_width: 5, ..images() }));
    let factored = ImageConfig { factor_out: true, squeeze_first: true, logit: false, actnorm: false, ..images() };
    agrees("factor-out", &flow(factored.clone()));
    agrees("conditional priors", &flow(ImageConfig { conditional_prior: true, ..factored }));
    let other = ImageConfig { norms: "2112".parse().expect("norms"), first_activation: true, ..images() };
    agrees("norms", &flow(ImageConfig { leading_activation: false, ..other }));
    let wide = ImageConfig { activation: Nonlinearity::ClipSwish, kernels: vec![3, 1], ..images() };
    agrees("a concatenated activation", &flow(wide));
    // singular vectors of a larger size
    agrees("smaller images", &flow(ImageConfig { height: 8, ..images() }).resized(4, 4).expect("a size"));
}

#[test]
fn couplings_over_images() {
    for family in [Family::RealNvp, Family::Glow, Family::FlowPlusPlus] {
        for (channels, factor_out, squeeze_first) in [(1, false, false), (2, true, false), (3, true, true)] {
            let config = ImageConfig { channels, blocks: vec![3, 2], kernels: vec![3, 1, 3], ..images() }.of(family);
            let blocks = vec![3, 2];
            let conditional_prior = squeeze_first;
            let config =
                ImageConfig { blocks, factor_out, conditional_prior, squeeze_first, initial_scale: 1.0, ..config };
            agrees(&format!("{family}, {channels} channels"), &flow(config));
        }
    }
    for (heads, most_pixels, activation) in
        [(3, 8, Nonlinearity::ClipSwish), (1, 64, Nonlinearity::Elu), (0, 64, Nonlinearity::Elu)]
    {
        let gated = Some(GatedConfig { blocks: 2, heads, most_pixels });
        let config = ImageConfig { channels: 1, blocks: vec![1, 2], ..images() }.of(Family::FlowPlusPlus);
        let config = ImageConfig { filters: 4, blocks: vec![1, 2], gated, activation, initial_scale: 1.0, ..config };
        let flow = flow(config);
        assert_eq!(flow.to_archive().expect("stored").document["model"]["format"], 4);
        agrees(&format!("gated nets, {heads} heads"), &flow);
    }
    // a last scale of a single pixel
    let config = ImageConfig { height: 2, width: 2, channels: 1, blocks: vec![2, 3], ..images() };
    agrees("a pixel", &flow(ImageConfig { squeeze_first: false, ..config.of(Family::RealNvp) }));
}

#[test]
fn noise_of_bytes() {
    for (channels, model) in
        [(1, Family::RealNvp), (2, Family::RealNvp), (2, Family::FlowPlusPlus), (1, Family::Residual)]
    {
        let dequantisation =
            DequantisationConfig { kind: Dequantisation::Variational, model, blocks: 3, filters: 3, features: 2 };
        let base = if channels == 2 { BaseConfig::Normal } else { "student-t".parse().expect("a base") };
        let config = ImageConfig { height: 2, width: 4, channels, bits: 5, blocks: vec![1], base, ..images() };
        let flow = flow(ImageConfig { dequantisation, ..config });
        let archive = flow.to_archive().expect("stored");
        assert_eq!(archive.document["model"]["format"], 7);
        let mut document = Document::read(&archive.to_bytes().expect("stored"));
        let d = 8 * channels;
        let bytes: Vec<u8> = (0..2 * d).map(|e| (e * 37 % 256) as u8).collect();
        let set = ImageSet::new(2, 4, channels, bytes.clone(), None).expect("two images");
        let (b, key) = (cpu(), Key::new(6));
        let noise = b.noise(key.named("dequantise"), Noise::Uniform, 0, [2, 2, 4, channels].into());
        let noise = b.download(&noise).expect("no device fault");
        let mut read = Vec::new();
        for (bytes, noise) in bytes.chunks(d).zip(noise.chunks(d)) {
            let levels: Vec<f64> = bytes.iter().map(|byte| f64::from(byte >> 3)).collect();
            let (u, log_q) = document.noise(&levels, noise);
            let x: Vec<f64> = levels.iter().zip(u).map(|(l, u)| (l + u) / 32.0).collect();
            let flat: Vec<f64> = (0..channels).flat_map(|k| x.iter().skip(k).step_by(channels).copied()).collect();
            read.push(document.log_prob(&flat).log_prob - log_q);
        }
        let said = flow.log_prob(&set, key).expect("images that fit");
        assert!(said.standard_error.iter().all(|&e| e == 0.0), "exact");
        near(&format!("noise by {model}, {channels} channels"), &read, &said.values);
    }
}

#[test]
fn continuous_flows_over_images() {
    for (kernels, factor_out) in [(vec![3, 1, 3], true), (vec![3, 3], false)] {
        let config =
            ImageConfig { height: 2, width: 2, channels: 1, blocks: vec![1, 1], ..images() }.of(Family::Ffjord);
        agrees(
            "an ODE of images",
            &flow(ImageConfig { filters: 2, kernels, factor_out, initial_scale: 1.0, ..config }),
        );
    }
}

/// Transforms one by one, in an order of their own.
#[test]
fn listed_transforms() {
    let rows = |family| FlowConfig { blocks: 2, hidden: vec![4], ..FlowConfig::of(family, 3) };
    let of = |config: FlowConfig| Flow::new(cpu(), config, Key::new(1)).expect("valid").transforms().to_vec();
    let (residual, glow) = (of(rows(Family::Residual)), of(rows(Family::Glow)));
    let nsf = of(rows(Family::Nsf));
    let ode = of(rows(Family::Ffjord));
    let all: Vec<Box<dyn Bijection<Cpu>>> =
        [&residual[1], &ode[1], &glow[2], &nsf[0], &glow[1], &residual[3], &nsf[3], &glow[5], &residual[0]]
            .map(Clone::clone)
            .to_vec();
    let listed = Flow::from_transforms(cpu(), FlowConfig::new(3), all).expect("samples pass");
    let archive = listed.to_archive().expect("stored");
    assert_eq!(archive.document["model"]["format"], 3);
    agrees("listed", &moved(listed, 5));
    let images = Flow::new(cpu(), ImageConfig { factor_out: true, ..images() }, Key::new(1)).expect("valid");
    let mut all = images.transforms().to_vec();
    all.swap(2, 4);
    all.push(all[all.len() - 1].clone());
    let listed = Flow::from_transforms(cpu(), images.config().clone(), all).expect("samples pass");
    agrees("listed, of images", &moved(listed, 5));
}

#[test]
fn hybrid_models() {
    for (factor_out, fully_connected, squeeze_first, conditional_prior) in
        [(false, 0, true, false), (true, 0, false, false), (false, 1, false, false), (true, 0, true, true)]
    {
        let config = ImageConfig { classes: 3, head_width: 4, factor_out, fully_connected, squeeze_first, ..images() };
        let config = ImageConfig { conditional_prior, ..config };
        let flow = flow(ImageConfig { fully_connected_width: 4, ..config });
        agrees("hybrid", &flow);
        let document = Document::read(&flow.to_archive().expect("stored").to_bytes().expect("stored"));
        let bytes: Vec<u8> = (0..2 * 64).map(|e| (e * 37 % 256) as u8).collect();
        let set = ImageSet::new(4, 8, 2, bytes.clone(), None).expect("two images");
        let key = Key::new(6);
        let (b, said) = (cpu(), flow.classify(&set, key).expect("images that fit"));
        let x = dequantise(&b, &bytes, [2, 4, 8, 2].into(), 8, key.named("dequantise"), 0);
        let x = b.download(&x).expect("no device fault");
        for (i, image) in x.chunks(64).enumerate() {
            let flat: Vec<f64> = (0..2).flat_map(|k| image.iter().skip(k).step_by(2).copied()).collect();
            let expected: Vec<f64> = (0..3).map(|class| said.probability(i, class)).collect();
            near("p(y | x)", &document.log_prob(&flat).classes.expect("a classifier"), &expected);
        }
    }
}
