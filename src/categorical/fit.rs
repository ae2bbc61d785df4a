//! Fitting p(k): tables of counts, and nets by Adam on the distinct rows with their weights.
//!
//! Weights are divided by their mean, so that their unit does not matter; weight 2 is the row twice. All is a function of rows, weights
//! and key.

use std::collections::BTreeMap;

use rand::Rng as _;
use resflow_backend::Key;

use super::net::{HIDDEN, SoftmaxNet};
use super::{CategoricalDensity, Factor};
use crate::data::{Categories, Samples};
use crate::error::{DataError, Error};

/// The rows that each level is given beforehand.
const SMOOTHING: f64 = 0.5;
/// The most distinct rows of a step; of more, that many are drawn by their weights.
const BATCH: usize = 512;
/// The most steps of a net, the steps between validations, and the validations without improvement that end it.
const STEPS: usize = 800;
const INTERVAL: usize = 20;
const PATIENCE: usize = 8;
/// Adam's rate at the beginning; it falls to a twentieth along half a cosine.
const RATE: f64 = 0.02;
/// What each step takes off the weights, times the rate.
const DECAY: f64 = 1e-3;

impl CategoricalDensity {
    /// Fits p(k) to the categories of training rows, with their weights; the rows of validation say where a net is better than a table.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if samples have no categories, [`Error::Data`] if the validation rows have others
    /// ([`Categories::codes_in`]), or for no training rows of a weight above 0.
    pub fn fit(training: Samples<'_>, validation: Samples<'_>, key: Key) -> Result<Self, Error> {
        let missing = || Error::Input("the samples have no categories".into());
        let own = training.categories().ok_or_else(missing)?;
        let columns = own.columns().to_vec();
        let weights = normalised(own.rows(), training.weights())?;
        let held = validation.categories().ok_or_else(missing)?.codes_in(&columns)?;
        let held_weights = normalised(held.len() / columns.len(), validation.weights()).unwrap_or_default();
        let mut density = Self { columns, factors: Vec::new() };
        for j in 0..density.columns.len() {
            let table = smoothed(own, j, &weights);
            density.factors.push(Factor { table, net: None });
            if j > 0 && density.columns[j].levels().len() > 1 {
                let training = density.distinct(own.codes(), &weights, j);
                let validation = density.distinct(&held, &held_weights, j);
                density.factors[j].net = density.train(j, &training, &validation, key.split(j as u64));
            }
        }
        Ok(density)
    }

    /// The distinct beginnings of rows up to column `j`, in order, with their weights and the sums of the weights' squares.
    fn distinct(&self, codes: &[u32], weights: &[f64], j: usize) -> Vec<Weighted> {
        let mut found: BTreeMap<&[u32], [f64; 2]> = BTreeMap::new();
        for (row, &weight) in codes.chunks_exact(self.columns.len()).zip(weights).filter(|(_, w)| **w > 0.0) {
            let sums = found.entry(&row[..=j]).or_default();
            *sums = [sums[0] + weight, sums[1] + weight * weight];
        }
        let of = |(row, [weight, square]): (&[u32], [f64; 2])| Weighted {
            active: self.active(&row[..j]),
            level: row[j] as usize,
            weight,
            square,
        };
        found.into_iter().map(of).collect()
    }

    /// Trains the net of column `j`; `None` if it is no better than the table.
    fn train(&self, j: usize, training: &[Weighted], validation: &[Weighted], key: Key) -> Option<SoftmaxNet> {
        let table = &self.factors[j].table;
        let inputs = self.columns[..j].iter().map(|column| column.levels().len()).sum();
        let mut net = SoftmaxNet { inputs, levels: table.len(), weights: initial(inputs, table, key.named("weights")) };
        let mut adam = Adam::new(net.parameters());
        let (mut best, mut waited) = (None, 0);
        let mut least = mean(validation, |row| -table[row.level]);
        let mut draws = key.named("batches").generator();
        let cumulative: Vec<f64> = training
            .iter()
            .scan(0.0, |sum, row| {
                *sum += row.weight;
                Some(*sum)
            })
            .collect();
        let total = cumulative.last().copied()?;
        for step in 1..=STEPS {
            let mut gradient = vec![0.0; net.parameters()];
            let mut add = |row: &Weighted, weight: f64| {
                let pass = net.forward(&row.active);
                net.pull_back(&row.active, &pass, row.level, weight, &mut gradient);
            };
            if training.len() <= BATCH {
                for row in training {
                    add(row, row.weight / total);
                }
            } else {
                for _ in 0..BATCH {
                    let place = (draws.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
                    let row = cumulative.partition_point(|sum| *sum <= place).min(training.len() - 1);
                    add(&training[row], 1.0 / BATCH as f64);
                }
            }
            let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / STEPS as f64).cos());
            adam.step(&mut net.weights, &gradient, RATE * (0.05 + 0.95 * cosine));
            if step % INTERVAL == 0 {
                let nll = mean(validation, |row| -net.log_probabilities(&row.active)[row.level]);
                if nll < least {
                    (least, best, waited) = (nll, Some(net.clone()), 0);
                } else {
                    waited += 1;
                    if waited >= PATIENCE {
                        break;
                    }
                }
            }
        }
        // better by more than chance
        best.filter(|net| {
            let gain = |row: &Weighted| net.log_probabilities(&row.active)[row.level] - table[row.level];
            let mean_gain = mean(validation, gain);
            let variance = mean(validation, |row| (gain(row) - mean_gain).powi(2));
            let (sum, squares) = validation.iter().fold((0.0, 0.0), |(a, b), row| (a + row.weight, b + row.square));
            let effective = sum * sum / squares;
            effective > 1.0 && mean_gain > (variance / (effective - 1.0)).sqrt()
        })
    }
}

/// A distinct beginning of rows.
struct Weighted {
    /// The places of the ones among the codes of the columns before.
    active: Vec<usize>,
    level: usize,
    weight: f64,
    square: f64,
}

fn mean(rows: &[Weighted], of: impl Fn(&Weighted) -> f64) -> f64 {
    let total: f64 = rows.iter().map(|row| row.weight).sum();
    rows.iter().map(|row| row.weight / total * of(row)).sum()
}

/// The weights of rows over their mean, 1 where there are none.
fn normalised(rows: usize, weights: Option<&[f64]>) -> Result<Vec<f64>, DataError> {
    let weights = weights.map_or_else(|| vec![1.0; rows], <[f64]>::to_vec);
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    if heaviest == 0.0 {
        return Err(if rows == 0 {
            DataError::TooFewRows { rows, needed: 1, purpose: "for the shares of categories" }
        } else {
            DataError::NoWeight
        });
    }
    let there = weights.iter().filter(|w| **w > 0.0).count() as f64;
    let mean = weights.iter().map(|w| w / heaviest).sum::<f64>() / there;
    Ok(weights.iter().map(|w| w / heaviest / mean).collect())
}

/// The logarithms of the smoothed shares.
fn smoothed(categories: &Categories, j: usize, weights: &[f64]) -> Vec<f64> {
    let counts = categories.counts(j, Some(weights));
    let total = counts.iter().sum::<f64>() + SMOOTHING * counts.len() as f64;
    counts.iter().map(|count| ((count + SMOOTHING) / total).ln()).collect()
}

/// Weights at which the net is the table: small random ones of the hidden layer, none behind it.
fn initial(inputs: usize, table: &[f64], key: Key) -> Vec<f64> {
    let [of_inputs, of_hidden, behind, _] = SoftmaxNet::sizes(inputs, table.len());
    let mut draws = key.generator();
    let scale = 1.0 / (HIDDEN as f64).sqrt();
    // two one-hot codes that differ are told apart by differences of the order of one
    let random = (0..of_inputs).map(|_| ((draws.next_u64() >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 12.0 * scale);
    let mut weights: Vec<f64> = random.collect();
    weights.resize(of_inputs + of_hidden + behind, 0.0);
    weights.extend_from_slice(table);
    weights
}

/// Adam (Kingma and Ba 2014) with decoupled decay.
struct Adam {
    first: Vec<f64>,
    second: Vec<f64>,
    steps: i32,
}

impl Adam {
    fn new(count: usize) -> Self {
        Self { first: vec![0.0; count], second: vec![0.0; count], steps: 0 }
    }

    fn step(&mut self, weights: &mut [f64], gradient: &[f64], rate: f64) {
        self.steps += 1;
        let (unbias, unbias_second) = (1.0 - 0.9f64.powi(self.steps), 1.0 - 0.999f64.powi(self.steps));
        for (i, g) in gradient.iter().enumerate() {
            self.first[i] = 0.9 * self.first[i] + 0.1 * g;
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g;
            let direction = self.first[i] / unbias / ((self.second[i] / unbias_second).sqrt() + 1e-8);
            weights[i] -= rate * (direction + DECAY * weights[i]);
        }
    }
}
