//! `resflow inspect`: what a model is made of.

use std::fmt::Write as _;

use anyhow::Result;
use resflow::Flow;
use resflow::backend::Backend;
use resflow::categorical::CategoricalDensity;
use resflow::data::column::Spline;
use resflow::data::{Category, ColumnMap, ColumnMaps};
use resflow::estimator::Phase;
use resflow::flow::Provenance;
use resflow::lipschitz::{BiLipschitz, FlowBounds};
use resflow::missing::Imputer;
use resflow::module::Module;
use resflow::with_device;
use serde::Serialize;

use crate::arguments::Inspect;
use crate::command::categorical;
use crate::data::model_size;
use crate::evaluate;
use crate::model::{Stored, column_names};
use crate::output::print;

/// The percentiles of scores that are shown.
const PERCENTILES: [u8; 9] = [0, 1, 5, 25, 50, 75, 95, 99, 100];

/// Levels of a category that are shown.
const LEVELS: usize = 12;

/// One link of the chain.
#[derive(Debug, Serialize)]
struct Link {
    index: usize,
    description: String,
    /// The product of the normalised weights' σ, by power iteration.
    lipschitz: Option<f64>,
    /// The certified bound on the same: not below it.
    certified_lipschitz: Option<f64>,
    /// Lip(F) and Lip(F⁻¹) of the transform, certified.
    constants: Option<BiLipschitz>,
    weights: Vec<Weight>,
}

#[derive(Debug, Serialize)]
struct Weight {
    name: String,
    /// σ as stored.
    sigma: f64,
    /// σ after normalisation.
    effective_sigma: f64,
    /// The certified bound on the norm after normalisation.
    certified_sigma: Option<f64>,
    /// κ.
    coefficient: f64,
}

#[derive(Debug, Serialize)]
struct Estimators {
    training: Choice,
    evaluation: Choice,
    replicates: usize,
}

#[derive(Debug, Serialize)]
struct Choice {
    configured: String,
    /// What `auto` comes to.
    used: String,
}

pub(crate) fn run(arguments: &Inspect) -> Result<()> {
    if let Some(archive) = categorical::open(&arguments.model)? {
        return categorical::inspect(&arguments.model, arguments.json, &archive);
    }
    let stored = Stored::open(&arguments.model)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        let flow = stored.flow(backend)?;
        let bounds = flow.certified_bounds()?;
        let links = links(&flow, &bounds)?;
        print(&if arguments.json {
            json(&stored, &flow, &links, &bounds)?
        } else {
            text(&stored, &flow, &links, &bounds)
        })
    })
}

fn links<B: Backend>(flow: &Flow<B>, bounds: &FlowBounds) -> Result<Vec<Link>> {
    let spectra = flow.spectra()?;
    let triples = flow.transforms().iter().zip(spectra).zip(&bounds.transforms).enumerate();
    triples
        .map(|(index, ((link, spectra), bounds))| {
            let reached = link.residual().map(|net| net.reached_lipschitz(flow.backend())).transpose()?;
            Ok(Link {
                index,
                certified_lipschitz: bounds.lipschitz,
                constants: bounds.constants,
                description: link.describe(),
                lipschitz: reached.filter(|_| !spectra.is_empty()),
                weights: spectra
                    .into_iter()
                    .map(|s| Weight {
                        effective_sigma: s.effective(),
                        certified_sigma: bounds.weights.iter().find(|w| w.name == s.name).and_then(|w| w.upper),
                        name: s.name,
                        sigma: s.sigma,
                        coefficient: s.coefficient,
                    })
                    .collect(),
            })
        })
        .collect()
}

fn estimators<B: Backend>(flow: &Flow<B>) -> Estimators {
    let choice = |configured: &resflow::estimator::Estimator, phase| Choice {
        configured: configured.to_string(),
        used: flow.resolved(phase).to_string(),
    };
    Estimators {
        training: choice(flow.config().training(), Phase::Training),
        evaluation: choice(flow.config().evaluation(), Phase::Evaluation),
        replicates: flow.config().replicates(),
    }
}

/// The largest Lipschitz bound of a block, if anything is bounded.
fn largest(links: &[Link]) -> Option<f64> {
    links.iter().filter_map(|l| l.lipschitz).reduce(f64::max)
}

fn json<B: Backend>(stored: &Stored, flow: &Flow<B>, links: &[Link], bounds: &FlowBounds) -> Result<String> {
    let columns = flow.config().rows().map(|_| column_names(flow));
    let validation = flow.provenance().validation_nll.and_then(|nll| flow.config().bits_per_dim(-nll));
    let mut object = serde_json::json!({
        "model": stored.path().display().to_string(),
        "precision": stored.native.name(),
        "family": flow.config().family(),
        "dimension": flow.dimension(),
        "base": flow.base().describe(),
        "columns": columns,
        "parameters": flow.parameters(),
        "blocks": flow.config().blocks(),
        "links": links,
        "lipschitz": largest(links),
        "certified": { "lipschitz": bounds.lipschitz(), "constants": bounds.constants() },
        "estimators": estimators(flow),
        "classifier": flow.classifier().map(|c| serde_json::json!({
            "classes": c.classes(),
            "description": c.describe(),
            "parameters": c.parameters(flow.backend()),
        })),
        "provenance": provenance_json(flow.provenance())?,
        "config": flow.config(),
    });
    if let Some(categories) = flow.categories() {
        object["categories"] = categories_json(categories.columns(), categories.density());
    }
    if let Some(imputer) = flow.imputer() {
        object["imputer"] = serde_json::json!({
            "family": imputer.flow().config().family(),
            "parameters": imputer.flow().parameters(),
            "steps": imputer.flow().provenance().steps,
            "validation_nll": imputer.flow().provenance().validation_nll,
        });
    }
    if let Some(images) = flow.config().images() {
        object["images"] = serde_json::json!({
            "height": images.height,
            "width": images.width,
            "channels": images.channels,
            "bits": images.bits,
        });
        object["validation_bits_per_dim"] = validation.into();
        if images.dequantisation.is_variational() {
            object["bound"] = "validation_bits_per_dim is at least that of the bytes".into();
            object["dequantiser"] = flow.dequantiser().map(Module::describe).into();
        }
    } else {
        let (mean, deviation) = (flow.standardiser().mean(), flow.standardiser().deviation());
        object["standardisation"] = serde_json::json!({ "mean": mean, "deviation": deviation });
        if !flow.columns().is_standardisation() {
            object["maps"] = flow.columns().maps().iter().map(map_json).collect();
            object["grid_draws"] = flow.columns().draws().into();
        }
    }
    Ok(format!("{}\n", serde_json::to_string_pretty(&object)?))
}

/// The provenance, with a few percentiles of the rows' scores in the place of the many that are stored.
pub(super) fn provenance_json(provenance: &Provenance) -> Result<serde_json::Value> {
    let mut object = serde_json::to_value(provenance)?;
    let Some(scores) = &provenance.scores else { return Ok(object) };
    for (rows, scores) in [("training", Some(&scores.training)), ("validation", scores.validation.as_ref())] {
        let Some(scores) = scores else { continue };
        let percentile = |percent: &u8| (percent.to_string(), scores.quantile(f64::from(*percent) / 100.0).into());
        let percentiles: serde_json::Map<String, serde_json::Value> = PERCENTILES.iter().map(percentile).collect();
        if let Some(shown) = object["scores"][rows].as_object_mut() {
            shown.remove("values");
            shown.insert("percentiles".to_owned(), percentiles.into());
        }
    }
    Ok(object)
}

/// The columns of categories: their levels, with the shares among the training rows where they are a part of the samples.
pub(super) fn categories_json(columns: &[Category], density: Option<&CategoricalDensity>) -> serde_json::Value {
    let columns = columns.iter().enumerate().map(|(j, column)| {
        let mut object = serde_json::json!({ "name": column.name(), "levels": column.levels() });
        if let Some(density) = density {
            object["shares"] = density.shares(j).into();
            object["probability"] = if density.is_table(j) { "table" } else { "net" }.into();
        }
        object
    });
    columns.collect()
}

/// A column of categories in a line.
pub(super) fn category_line(columns: &[Category], density: Option<&CategoricalDensity>, j: usize) -> String {
    let column = &columns[j];
    let shown = column.levels().iter().enumerate().take(LEVELS).map(|(l, level)| match density {
        Some(density) => format!("{} {:.1} %", level.escape_debug(), 100.0 * density.shares(j)[l]),
        None => level.escape_debug().to_string(),
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = column.levels().len().saturating_sub(LEVELS);
    let more = if more > 0 { format!(", {more} more") } else { String::new() };
    let how = match density {
        None => "given",
        Some(density) if density.is_table(j) => "a table",
        Some(_) => "a net over the categories before",
    };
    format!("{}: {shown}{more}; {how}", column.name().escape_debug())
}

/// The map of a column.
fn map_json(map: &ColumnMap) -> serde_json::Value {
    serde_json::json!({
        "support": map.support(),
        "grid": map.grid().map(|grid| serde_json::json!({ "step": grid.step(), "offset": grid.offset() })),
        "centre": map.centre(),
        "scale": map.scale(),
        "asinh": map.asinh().map(|asinh| {
            let [width, centre, scale] = asinh.parts();
            serde_json::json!({ "width": width, "centre": centre, "scale": scale })
        }),
        "knots": map.spline().map_or(0, Spline::knots),
    })
}

/// The maps of the columns, a line each.
fn map_table(names: &[String], columns: &ColumnMaps) -> String {
    let header = ["column", "values", "support", "centre", "scale", "map"].map(str::to_owned);
    let rows = names.iter().zip(columns.maps()).map(|(name, map)| {
        let values = map.grid().map_or("continuous".to_owned(), |grid| match (grid.step(), grid.offset()) {
            (1.0, 0.0) => "integers".to_owned(),
            (step, 0.0) => format!("steps of {step}"),
            (step, offset) => format!("{offset} and steps of {step}"),
        });
        let marginal = match (map.asinh(), map.spline()) {
            (None, None) => "affine".to_owned(),
            (Some(_), None) => "asinh".to_owned(),
            (None, Some(spline)) => format!("spline, {} knots", spline.knots()),
            (Some(_), Some(spline)) => format!("asinh, spline, {} knots", spline.knots()),
        };
        let number =
            |v: f64| if v == 0.0 || (1e-3..1e6).contains(&v.abs()) { format!("{v:.6}") } else { format!("{v:.5e}") };
        [name.clone(), values, map.support().to_string(), number(map.centre()), number(map.scale()), marginal]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let widths: [usize; 6] = std::array::from_fn(|j| rows.iter().map(|row| row[j].chars().count()).max().unwrap_or(0));
    let mut out = String::from("\n");
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}

fn text<B: Backend>(stored: &Stored, flow: &Flow<B>, links: &[Link], bounds: &FlowBounds) -> String {
    let mut out = String::new();
    let provenance = flow.provenance();
    let estimators = estimators(flow);
    let validation = provenance.validation_nll.map_or("not validated".to_owned(), |v| {
        let at_most = evaluate::at_most(flow.config().is_variational());
        let bits = flow.config().bits_per_dim(-v).map_or(String::new(), |b| format!(", {at_most}{b:.4} bits/dim"));
        format!("{at_most}{v:.4} nats{bits}")
    });
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // writing to a String cannot fail
        let _ = writeln!(out, "{name:<16}{value}");
    };
    line("model", &stored.path().display());
    line("family", &flow.config().family());
    line("base density", &flow.base().describe());
    line("fitted to", &provenance.data);
    if let Some(given) = &provenance.given {
        line("given", &given.join(", "));
    }
    if let Some(categories) = flow.categories() {
        if categories.density().is_some() {
            line(
                "log p",
                &"log p(categories) + log p(numbers | categories), nats: a probability (mass) times a density",
            );
        }
        for j in 0..categories.columns().len() {
            line("category", &category_line(categories.columns(), categories.density(), j));
        }
    }
    line("training", &format_args!("{} steps, seed {}", provenance.steps, provenance.seed));
    line("validation nll", &validation);
    if let Some(c) = flow.config().images() {
        let blocks: Vec<_> = c.blocks.iter().map(ToString::to_string).collect();
        let kernels: Vec<_> = c.kernels.iter().map(ToString::to_string).collect();
        line("images", &format_args!("{} in {} bits", model_size(c), c.bits));
        let connected = match c.fully_connected {
            0 => String::new(),
            n => format!("; {n} fully connected of width {}", c.fully_connected_width),
        };
        let (blocks, kernels) = (blocks.join("-"), kernels.join("-"));
        let width =
            if c.model.has_dense_nets() { format!("growth {}", c.filters) } else { format!("{} filters", c.filters) };
        line("blocks", &format_args!("{blocks} of {width}, kernels {kernels}{connected}"));
    }
    if let Some(imputer) = flow.imputer().map(Imputer::flow) {
        let (family, parameters, steps) = (imputer.config().family(), imputer.parameters(), imputer.provenance().steps);
        line("missing values", &format_args!("known: an imputer ({family}), {parameters} parameters, {steps} steps"));
    }
    if let Some(classifier) = flow.classifier() {
        let parameters = classifier.parameters(flow.backend());
        line("classifier", &format_args!("{}; {parameters} parameters", classifier.describe()));
        if let Some(names) = &provenance.classes {
            line("classes", &names.join(", ").escape_debug());
        }
    }
    line("precision", &stored.native.name());
    line("parameters", &flow.parameters());
    for (name, choice) in [("estimator, fit", &estimators.training), ("estimator, eval", &estimators.evaluation)] {
        if choice.configured == choice.used {
            line(name, &choice.used);
        } else {
            line(name, &format_args!("{}, by {}", choice.used, choice.configured));
        }
    }
    line("replicates", &format_args!("{}, where the estimator is random", estimators.replicates));
    if let Some(bound) = largest(links) {
        let certified = bounds.lipschitz();
        let certified = certified.map_or("nothing certified".to_owned(), |c| format!("certified to be at most {c:.5}"));
        line(
            "Lipschitz bound",
            &format_args!("{bound:.4} of the worst block, estimated by power iteration; {certified}"),
        );
    }
    if let Some(BiLipschitz { forward, inverse }) = bounds.constants() {
        let text =
            format_args!("distances grow at most {forward:.4e} times to z and {inverse:.4e} times back, certified");
        line("constants", &text);
    }
    // 784 columns that are what they were are no news
    let names = if flow.config().images().is_some() { Vec::new() } else { column_names(flow) };
    if flow.columns().is_standardisation() {
        let columns = names.into_iter().zip(flow.standardiser().mean()).zip(flow.standardiser().deviation());
        for ((name, mean), deviation) in columns {
            line("column", &format_args!("{name}: mean {mean:.6}, deviation {deviation:.6}"));
        }
    } else {
        if flow.columns().has_grids() {
            line("grids", &format_args!("log p averages over {} draws of noise", flow.columns().draws()));
        }
        out += &map_table(&names, flow.columns());
    }
    out + &link_lines(links)
}

/// What is known of how much a transform changes distances; nothing is said of one that keeps them.
fn constants_line(constants: Option<BiLipschitz>) -> String {
    match constants {
        Some(BiLipschitz::ISOMETRY) => String::new(),
        Some(BiLipschitz { forward, inverse }) => {
            format!("     distances grow at most {forward:.5} times, and {inverse:.5} times back, certified\n")
        }
        None => "     nothing bounds how distances grow\n".to_owned(),
    }
}

/// The transforms, each with its bounds, its constants and its weights.
fn link_lines(links: &[Link]) -> String {
    let mut out = String::new();
    for link in links {
        let bound = link.lipschitz.map_or(String::new(), |l| {
            let certified =
                link.certified_lipschitz.map_or("not certified".to_owned(), |c| format!("certified ≤ {c:.5}"));
            format!("  Lip(g) about {l:.4}, {certified}")
        });
        let _ = writeln!(out, "\n{:>3}  {}{bound}", link.index, link.description);
        out += &constants_line(link.constants);
        for weight in &link.weights {
            let _ = writeln!(
                out,
                "     {:<32} σ {:<10.4} normalised {:.5} to {} (κ {})",
                weight.name,
                weight.sigma,
                weight.effective_sigma,
                weight.certified_sigma.map_or("?".to_owned(), |upper| format!("{upper:.5}")),
                weight.coefficient
            );
        }
    }
    out
}
