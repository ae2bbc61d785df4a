//! Categories in a model's file: columns and the kinds of their factors as JSON, their numbers as tensors.
//!
//! Of column j `categories.<j>.table` has log p of the levels, `[L]`; of a net there are `categories.<j>.hidden.weight` `[D, H]`,
//! `.hidden.bias` `[H]`, `.output.weight` `[H, L]` and `.output.bias` `[L]`, all in double precision.

use serde::{Deserialize, Serialize};

use super::net::{HIDDEN, SoftmaxNet};
use super::{CategoricalDensity, Factor};
use crate::data::Category;
use crate::error::CheckpointError;
use crate::flow::FlowCategories;

/// What is known of a flow's categories besides numbers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredCategories {
    /// The columns, with their levels.
    columns: Vec<Category>,
    /// Of each column whether its probability is a net; none of columns that the flow is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nets: Option<Vec<bool>>,
}

/// A tensor's name, shape and numbers.
type Tensor = (String, Vec<usize>, Vec<f64>);

/// The largest weight, up to which no logarithm of a probability is infinite.
const LARGEST: f64 = 1e9;

const PARTS: [&str; 4] = ["hidden.weight", "hidden.bias", "output.weight", "output.bias"];

fn shapes(inputs: usize, levels: usize) -> [Vec<usize>; 4] {
    [vec![inputs, HIDDEN], vec![HIDDEN], vec![HIDDEN, levels], vec![levels]]
}

impl StoredCategories {
    pub(crate) fn of(categories: &FlowCategories) -> Self {
        match categories {
            FlowCategories::Modelled(density) => Self::of_density(density),
            FlowCategories::Given(columns) => Self { columns: columns.clone(), nets: None },
        }
    }

    pub(super) fn of_density(density: &CategoricalDensity) -> Self {
        let nets = density.factors.iter().map(|factor| factor.net.is_some()).collect();
        Self { columns: density.columns.clone(), nets: Some(nets) }
    }

    /// All levels together.
    pub(super) fn width(&self) -> usize {
        self.columns.iter().map(|column| column.levels().len()).sum()
    }

    pub(crate) fn tensors(categories: &FlowCategories) -> Vec<Tensor> {
        categories.density().map(Self::tensors_of).unwrap_or_default()
    }

    pub(super) fn tensors_of(density: &CategoricalDensity) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        for (j, Factor { table, net }) in density.factors.iter().enumerate() {
            tensors.push((format!("categories.{j}.table"), vec![table.len()], table.clone()));
            if let Some(net) = net {
                for ((part, shape), values) in PARTS.into_iter().zip(shapes(net.inputs, net.levels)).zip(net.parts()) {
                    tensors.push((format!("categories.{j}.{part}"), shape, values.to_vec()));
                }
            }
        }
        tensors
    }

    /// The names and shapes of the tensors that belong to it.
    pub(crate) fn layout(&self) -> Vec<(String, Vec<usize>)> {
        let Some(nets) = &self.nets else { return Vec::new() };
        let (mut layout, mut inputs) = (Vec::new(), 0);
        for (j, (column, net)) in self.columns.iter().zip(nets).enumerate() {
            let levels = column.levels().len();
            layout.push((format!("categories.{j}.table"), vec![levels]));
            if *net {
                let named = PARTS.into_iter().zip(shapes(inputs, levels));
                layout.extend(named.map(|(part, shape)| (format!("categories.{j}.{part}"), shape)));
            }
            inputs += levels;
        }
        layout
    }

    /// The tensors and the numbers in them, by which a file is checked before anything is made of it.
    ///
    /// # Errors
    /// Returns [`CheckpointError::Format`] for columns that do not go together, or that are no context of so many columns.
    pub(crate) fn size(&self, context: usize) -> Result<(u64, u64), CheckpointError> {
        let format = |problem: String| Err(CheckpointError::Format(format!("the categories: {problem}")));
        let columns = &self.columns;
        if columns.is_empty() {
            return format("no columns".into());
        }
        let same = |i: &usize| columns[..*i].iter().any(|other| other.name() == columns[*i].name());
        if let Some(i) = (1..columns.len()).find(same) {
            return format(format!("two columns `{}`", columns[i].name()));
        }
        let width = self.width();
        let fits = if self.nets.is_some() { width == context } else { width <= context };
        if !fits {
            return format(format!("{width} levels for a context of {context} columns"));
        }
        if self.nets.as_ref().is_some_and(|nets| nets.len() != columns.len() || nets.first() == Some(&true)) {
            return format("the first probability is a table, and there is one for each column".into());
        }
        let layout = self.layout();
        let numbers = layout.iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum();
        Ok((layout.len() as u64, numbers))
    }

    /// Builds the categories from the tensors that `get` finds.
    ///
    /// # Errors
    /// Returns the errors of `get`, and [`CheckpointError::Tensor`] for a table whose probabilities are not 1 together.
    pub(crate) fn restore(
        &self,
        get: impl Fn(&str, &[usize]) -> Result<Vec<f64>, CheckpointError>,
    ) -> Result<FlowCategories, CheckpointError> {
        let Some(nets) = &self.nets else { return Ok(FlowCategories::Given(self.columns.clone())) };
        let (mut factors, mut inputs) = (Vec::new(), 0);
        for (j, (column, net)) in self.columns.iter().zip(nets).enumerate() {
            let levels = column.levels().len();
            let name = format!("categories.{j}.table");
            let table = get(&name, &[levels])?;
            let total: f64 = table.iter().map(|log| log.exp()).sum();
            if (total - 1.0).abs() > 1e-9 {
                return Err(CheckpointError::Tensor {
                    name,
                    problem: format!("its probabilities are {total} together"),
                });
            }
            let net = if *net {
                let mut weights = Vec::new();
                for (part, shape) in PARTS.into_iter().zip(shapes(inputs, levels)) {
                    weights.extend(get(&format!("categories.{j}.{part}"), &shape)?);
                }
                if let Some(weight) = weights.iter().find(|w: &&f64| w.abs() > LARGEST) {
                    let name = format!("categories.{j}");
                    return Err(CheckpointError::Tensor { name, problem: format!("has a weight of {weight:e}") });
                }
                Some(SoftmaxNet { inputs, levels, weights })
            } else {
                None
            };
            factors.push(Factor { table, net });
            inputs += levels;
        }
        Ok(FlowCategories::Modelled(CategoricalDensity { columns: self.columns.clone(), factors }))
    }
}
