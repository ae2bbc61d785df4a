//! Batches in standardised units, drawn from what a source's validation samples leave over.

use std::borrow::Cow;

use resflow_backend::{Backend, Element, Key, Shape};

use super::columns::Columns;
use super::large::LargeRows;
use super::source::{Drawing, Drawn, Source, ValidationSet, missing_context};
use crate::batch::{Batch, Quantised};
use crate::data::image::{ImageSet, flip};
use crate::data::{ColumnMaps, Dataset, Samples, Shuffle, Standardiser, Table, ToyDensity, Values, permutation};
use crate::error::{DataError, Error};
use crate::flow::FlowCategories;
use crate::transform::quantised;

/// The standardisation of the contexts and the probability of categories: to be fitted, or those of a run that goes on; or the
/// standardisation alone is to be fitted, beside another run on the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contexts {
    Fit,
    Beside,
    Given,
}

/// Batches in standardised units.
#[derive(Debug)]
pub(crate) struct Batches {
    training: Training,
    drawing: Drawing,
    /// The maps that every step does anew, since they differ from row to row or have noise; else `training` is behind
    /// them.
    columns: Option<ColumnMaps>,
    /// ln |det| of the columns' maps, where they only standardise, nats.
    log_det: f64,
    /// The categories of the training rows, which follow the numbers of their contexts.
    categories: Option<Coded>,
    /// The weight of one whole sample: 1 over the mean of the weights that were given.
    unit: f64,
    /// The number of the epoch and its order.
    epoch: Option<(u64, Order)>,
}

/// The order of an epoch.
#[derive(Debug)]
enum Order {
    Listed(Vec<usize>),
    Computed(Shuffle),
}

impl Order {
    fn at(&self, position: usize) -> usize {
        match self {
            Self::Listed(order) => order[position],
            Self::Computed(shuffle) => shuffle.at(position),
        }
    }
}

/// Rows and their weights.
type Excerpt<'a> = (Cow<'a, Table>, Option<Cow<'a, [f64]>>);

/// The categories of training rows.
#[derive(Debug)]
struct Coded {
    /// A model's codes, row by row.
    codes: Vec<u32>,
    /// The levels of each column.
    levels: Vec<usize>,
    /// log p(k) of each row, nats, of categories that are a part of the samples.
    log_prob: Option<Vec<f64>>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a run has one of them")]
enum Training {
    Density(ToyDensity),
    Data(Dataset),
    Large(LargeRows),
}

impl Batches {
    /// Divides a source into batches, validation samples (in the data's units) and the maps of the training samples'
    /// columns.
    pub(crate) fn new(
        source: Source,
        drawing: Drawing,
        columns: Columns<'_>,
    ) -> Result<(Self, ValidationSet, ColumnMaps), DataError> {
        let Drawing { validation_samples, validation_fraction, key, .. } = drawing;
        let found = columns.grids_of(&source)?;
        let columns = found.as_ref().map_or(columns, Columns::Fit);
        let (training, validation, numbers) = match source {
            Source::Density(density) => {
                let validation = move || density.sample(key.named("validation data"), validation_samples).into();
                let validation = ValidationSet::later(validation);
                let training = Training::Density(density);
                let batches =
                    Self { training, drawing, columns: None, log_det: 0.0, categories: None, unit: 1.0, epoch: None };
                let maps = match columns {
                    Columns::Given(maps) | Columns::Fitted(maps) => maps,
                    Columns::Fit(_) => ColumnMaps::identity(2),
                };
                return Ok((batches, validation, maps));
            }
            Source::Data(data) => {
                let (training, mut numbers) = data.split_numbers(validation_fraction, key.named("split"))?;
                if data.images().is_some() {
                    // which are expensive: no more than was asked for
                    numbers.truncate(validation_samples);
                }
                (data.select(&training)?, data.select(&numbers)?, numbers)
            }
            Source::Split { training, validation } => (training, validation, Vec::new()),
            Source::Large(table) => {
                let (rows, validation, maps) = LargeRows::divide(table, &drawing, columns)?;
                return Ok((Self::behind(Training::Large(rows), drawing, 1.0, maps.clone())?, validation, maps));
            }
        };
        let maps = columns.maps(&training)?;
        for table in [training.table(), validation.table()].into_iter().flatten() {
            maps.check(table)?;
        }
        let unit = training.weights().map_or(1.0, |weights| {
            let heaviest = weights.iter().copied().fold(0.0, f64::max);
            weights.len() as f64 / weights.iter().map(|w| w / heaviest).sum::<f64>() / heaviest
        });
        let batches = Self::behind(Training::Data(training), drawing, unit, maps.clone())?;
        Ok((batches, ValidationSet::of(validation, numbers), maps))
    }

    /// Batches of rows behind the maps of their columns.
    fn behind(training: Training, drawing: Drawing, unit: f64, maps: ColumnMaps) -> Result<Self, DataError> {
        let mut batches = Self { training, drawing, columns: None, log_det: 0.0, categories: None, unit, epoch: None };
        batches.set_columns(maps)?;
        Ok(batches)
    }

    /// Takes the maps of the columns, while the training rows are in the data's units: those that only standardise are
    /// applied at once, others to each batch.
    pub(crate) fn set_columns(&mut self, maps: ColumnMaps) -> Result<(), DataError> {
        match &mut self.training {
            Training::Density(_) => return Ok(()),
            Training::Data(data) => {
                if let Some(table) = data.table().filter(|_| maps.is_standardisation()) {
                    let table = maps.standardiser().apply(table)?;
                    data.set_table(table);
                }
            }
            Training::Large(rows) => rows.set_columns(&maps),
        }
        self.log_det = maps.standardiser().log_det();
        self.columns = (!maps.is_standardisation()).then_some(maps);
        Ok(())
    }

    /// The training samples, unless they are drawn or read as they are needed.
    pub(crate) fn training(&self) -> Option<Samples<'_>> {
        match &self.training {
            Training::Density(_) | Training::Large(_) => None,
            Training::Data(data) => Some(data.samples()),
        }
    }

    /// Takes the categories of the training samples by a model's codes.
    pub(crate) fn set_categories(&mut self, categories: &FlowCategories) -> Result<(), Error> {
        let Some(samples) = self.training() else { return Ok(()) };
        let own = samples.categories().or(samples.context_categories()).ok_or_else(missing_context)?;
        let codes = own.codes_in(categories.columns())?;
        let log_prob = categories.density().map(|density| density.log_prob_of(&codes));
        let levels = categories.columns().iter().map(|column| column.levels().len()).collect();
        self.categories = Some(Coded { codes, levels, log_prob });
        Ok(())
    }

    /// Fits a standardisation to the numbers of the training samples' contexts, where they have any; one-hot codes, of so many levels
    /// together, stay as they are.
    pub(crate) fn fit_contexts(&self, levels: usize) -> Result<Option<Standardiser>, DataError> {
        let Some(samples) = self.training() else { return Ok(None) };
        let numbers =
            samples.context().map(|contexts| Standardiser::fit_contexts(contexts, samples.weights())).transpose()?;
        let (mut mean, mut deviation) =
            numbers.map_or_else(Default::default, |s| (s.mean().to_vec(), s.deviation().to_vec()));
        mean.resize(mean.len() + levels, 0.0);
        deviation.resize(deviation.len() + levels, 1.0);
        if mean.is_empty() { Ok(None) } else { Standardiser::new(mean, deviation).map(Some) }
    }

    /// Takes the contexts of the training samples to standardised units.
    pub(crate) fn standardise_contexts(&mut self, standardiser: &Standardiser) -> Result<(), DataError> {
        let Training::Data(data) = &mut self.training else { return Ok(()) };
        if let Some(contexts) = data.samples().context() {
            let numbers = |of: &[f64]| of[..contexts.width()].to_vec();
            let standardiser = Standardiser::new(numbers(standardiser.mean()), numbers(standardiser.deviation()))?;
            let contexts = standardiser.apply(contexts)?;
            data.set_context(contexts);
        }
        Ok(())
    }

    /// The contexts of some samples in standardised units on the device, `[n, k]`, where they have any.
    fn contexts<B: Backend>(&self, backend: &B, data: &Dataset, order: &[usize]) -> Option<B::Tensor> {
        let numbers = data.samples().context();
        let coded = self.categories.as_ref();
        let width = numbers.map_or(0, Table::width) + coded.map_or(0, |coded| coded.levels.iter().sum::<usize>());
        let mut values = Vec::with_capacity(order.len() * width);
        for &i in order {
            values.extend(numbers.iter().flat_map(|numbers| numbers.row(i)).map(|&v| B::Elem::from_f64(v)));
            if let Some(Coded { codes, levels, .. }) = coded {
                for (&code, &levels) in codes[i * levels.len()..].iter().zip(levels) {
                    let one = |level| B::Elem::from_f64(f64::from(u8::from(level == code as usize)));
                    values.extend((0..levels).map(one));
                }
            }
        }
        (width > 0).then(|| backend.upload(&values, [order.len(), width].into()))
    }

    /// Whether every step draws new points.
    pub(crate) fn draws(&self) -> bool {
        matches!(self.training, Training::Density(_))
    }

    /// At most so many of the training rows, in the data's units unless their maps only standardise, with their weights,
    /// where the samples are rows of a table; so many points of a density.
    pub(crate) fn excerpt(&self, most: usize, key: Key) -> Result<Option<Excerpt<'_>>, DataError> {
        let data = match &self.training {
            Training::Density(density) => return Ok(Some((Cow::Owned(density.sample(key, most)), None))),
            Training::Large(rows) => return Ok(rows.excerpt(most, key)?.map(|table| (Cow::Owned(table), None))),
            Training::Data(data) => data,
        };
        let Some(table) = data.table() else { return Ok(None) };
        if table.rows() <= most {
            return Ok(Some((Cow::Borrowed(table), data.weights().map(Cow::Borrowed))));
        }
        let there: Vec<usize> =
            (0..table.rows()).filter(|&i| data.weights().is_none_or(|weights| weights[i] > 0.0)).collect();
        let mut chosen: Vec<usize> = permutation(there.len(), key).into_iter().take(most).map(|i| there[i]).collect();
        chosen.sort_unstable();
        let weights = data.weights().map(|weights| chosen.iter().map(|&i| weights[i]).collect());
        Ok(Some((Cow::Owned(table.select(&chosen)), weights.map(Cow::Owned))))
    }

    /// Samples in an epoch, if there are epochs.
    pub(crate) fn epoch_samples(&self) -> Option<usize> {
        match &self.training {
            Training::Density(_) => None,
            Training::Data(data) => Some(data.len()),
            Training::Large(rows) => Some(rows.len()),
        }
    }

    /// The weight of one whole sample.
    pub(crate) fn unit(&self) -> f64 {
        self.unit
    }

    /// Draws batch number `batch` of so many samples, on the device. Where rows are read as they are needed, others may stand in the
    /// places of those that are not `wanted`.
    ///
    /// # Errors
    /// Returns the error of reading rows as they are needed.
    pub(crate) fn batch<B: Backend>(
        &mut self,
        backend: &B,
        batch: u64,
        count: usize,
        wanted: Option<&[bool]>,
    ) -> Result<Drawn<B>, DataError> {
        let key = self.drawing.key;
        let mut order = self.order(batch * count as u64, count);
        let read: Dataset;
        let data = match &self.training {
            Training::Density(density) => {
                let table = density.sample(key.named("batch").split(batch), count);
                let x = backend.upload(&table.to_elements(), [count, 2].into());
                return Ok(Drawn { batch: Batch::new(x), targets: None, weights: None, log_det: None });
            }
            Training::Data(data) => data,
            Training::Large(rows) => {
                if let Some(wanted) = wanted {
                    let one = order[wanted.iter().position(|wanted| *wanted).unwrap_or(0)];
                    order
                        .iter_mut()
                        .zip(wanted)
                        .for_each(|(number, wanted)| *number = if *wanted { *number } else { one });
                }
                read = rows.read(&order)?;
                order = (0..count).collect();
                &read
            }
        };
        let (mut log_det, mut quantised) = (None, None);
        let x = match data.samples().values() {
            Values::Tabular(table) if self.columns.is_some() => {
                let (values, own) = self.mapped(table, &order, batch * count as u64);
                log_det = Some(own);
                backend.upload(&values, [count, table.width()].into())
            }
            Values::Tabular(table) => {
                let values = order.iter().flat_map(|&i| table.row(i)).map(|&v| B::Elem::from_f64(v));
                backend.upload(&values.collect::<Vec<_>>(), [count, table.width()].into())
            }
            Values::Images(set) => {
                let images = self.images(backend, set, &order, batch * count as u64);
                let x = images.place(backend, &images.noise, self.drawing.bits);
                quantised = self.drawing.quantised.then_some(images);
                x
            }
        };
        if let Some(log_prob) = self.categories.as_ref().and_then(|coded| coded.log_prob.as_ref()) {
            let log_det = log_det.get_or_insert_with(|| vec![self.log_det; count]);
            log_det.iter_mut().zip(&order).for_each(|(sum, &i)| *sum += log_prob[i]);
        }
        let weights = data.weights().map(|weights| order.iter().map(|&i| weights[i] * self.unit).collect());
        let context = self.contexts(backend, data, &order);
        let targets = self.targets(backend, data, &order);
        Ok(Drawn { batch: Batch { context, quantised, ..Batch::new(x) }, targets, weights, log_det })
    }

    /// Rows behind the maps of their columns, and ln |det| of each. Grids get fresh noise, that of number `first` and so
    /// on.
    fn mapped<E: Element>(&self, table: &Table, order: &[usize], first: u64) -> (Vec<E>, Vec<f64>) {
        let Some(maps) = &self.columns else { return (Vec::new(), Vec::new()) };
        let key = self.drawing.key.named("dequantise");
        let mut noise = maps.noise();
        let (mut row, mut values) =
            (Vec::with_capacity(table.width()), Vec::with_capacity(order.len() * table.width()));
        let log_dets = order.iter().enumerate().map(|(i, &number)| {
            noise.draw(|| key.split(first.wrapping_add(i as u64)));
            row.clear();
            // every row was inside the supports when the run began
            let log_det = maps.map_row(table.row(number), &noise, &mut row).unwrap_or(f64::NEG_INFINITY);
            values.extend(row.iter().map(|&z| E::from_f64(z)));
            log_det
        });
        let log_dets = log_dets.collect();
        (values, log_dets)
    }

    /// Uploads images, `[n, h, w, c]`, with fresh noise, that of number `first` and so on.
    fn images<B: Backend>(&self, backend: &B, set: &ImageSet, order: &[usize], first: u64) -> Quantised<B> {
        let key = self.drawing.key;
        let mut bytes = Vec::with_capacity(order.len() * set.bytes().len() / set.len());
        for (i, &image) in order.iter().enumerate() {
            let start = bytes.len();
            bytes.extend_from_slice(set.image(image).unwrap_or_default());
            if self.drawing.flips && coin(key.named("flip").split(first + i as u64)) {
                flip(&mut bytes[start..], set.width(), set.channels());
            }
        }
        let shape = Shape::from([order.len(), set.height(), set.width(), set.channels()]);
        quantised(backend, &bytes, shape, self.drawing.bits, key.named("dequantise"), first)
    }

    /// The one-hot classes of some samples, `[n, K]`, where labels are wanted.
    fn targets<B: Backend>(&self, backend: &B, data: &Dataset, order: &[usize]) -> Option<B::Tensor> {
        let classes = self.drawing.classes;
        let labels = data.labels().filter(|_| classes > 0)?;
        let mut targets = vec![B::Elem::from_f64(0.0); order.len() * classes];
        for (sample, &number) in order.iter().enumerate() {
            targets[sample * classes + usize::from(labels[number])] = B::Elem::from_f64(1.0);
        }
        Some(backend.upload(&targets, [order.len(), classes].into()))
    }

    /// The samples at some positions of the epochs one after the other.
    fn order(&mut self, first: u64, count: usize) -> Vec<usize> {
        let Some(n) = self.epoch_samples() else { return Vec::new() };
        let mut out = Vec::with_capacity(count);
        for position in first..first + count as u64 {
            let number = position / n as u64;
            if self.epoch.as_ref().is_none_or(|(e, _)| *e != number) {
                let key = self.drawing.key.named("epoch").split(number);
                let order = match self.training {
                    Training::Large(_) => Order::Computed(Shuffle::new(n, key)),
                    _ => Order::Listed(permutation(n, key)),
                };
                self.epoch = Some((number, order));
            }
            if let Some((_, order)) = &self.epoch {
                out.push(order.at((position % n as u64) as usize));
            }
        }
        out
    }
}

/// A fair coin from the key.
fn coin(key: Key) -> bool {
    use rand::Rng as _;
    key.generator().next_u64() >> 63 == 1
}
