//! Samples and what belongs to each of them: the one type that holds data, and its borrowed view.
//!
//! A [`Dataset`] has samples, tabular or images, and for each of them, where there is one, its categories (the columns of a
//! table that are no numbers), a context (the condition of a conditional model), a label (its class) and a weight. Selecting and
//! splitting take everything along. A [`Samples`]
//! is the view of one: what is evaluated.

use resflow_backend::Key;

use super::category::{Categories, Category};
use super::copies;
use super::image::ImageSet;
use super::permutation::permutation;
use super::table::Table;
use crate::classifier::check_labels;
use crate::error::{DataError, Error};

/// Numbers, or bytes of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values<T, I> {
    /// Vectors, `[n, d]`, one row of a table a sample, in the data's units (of images: \[0, 1\], in (C, H, W) order).
    Tabular(T),
    /// Images as bytes, `[n, h, w, c]`, to which uniform noise is added.
    Images(I),
}

/// Samples with what belongs to each.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    values: Values<Table, ImageSet>,
    categories: Option<Categories>,
    context: Option<Table>,
    context_categories: Option<Categories>,
    labels: Option<Vec<u8>>,
    weights: Option<Vec<f64>>,
}

impl From<Table> for Dataset {
    fn from(table: Table) -> Self {
        Self::of(Values::Tabular(table))
    }
}

impl From<Categories> for Dataset {
    /// Rows of categories and of no numbers: contexts of a conditional model.
    fn from(categories: Categories) -> Self {
        let rows = Table::of_no_columns(categories.rows());
        Self { categories: Some(categories), ..Self::of(Values::Tabular(rows)) }
    }
}

impl From<ImageSet> for Dataset {
    fn from(set: ImageSet) -> Self {
        Self::of(Values::Images(set))
    }
}

impl Dataset {
    fn of(values: Values<Table, ImageSet>) -> Self {
        Self { values, categories: None, context: None, context_categories: None, labels: None, weights: None }
    }

    /// The rows of a file: as many of numbers as of categories.
    #[cfg(feature = "images")]
    pub(super) fn of_read(table: Table, categories: Option<Categories>) -> Self {
        Self { categories, ..table.into() }
    }

    /// Builds a table of samples, one slice of numbers each.
    ///
    /// # Errors
    /// Returns [`DataError::UnequalRows`] if their lengths differ, and the errors of [`Table::new`].
    pub fn from_rows<R: AsRef<[f64]>>(rows: &[R]) -> Result<Self, DataError> {
        Table::from_rows(rows).map(Self::from)
    }

    /// Adds a context for each sample, `[n, k]`.
    ///
    /// # Errors
    /// Returns [`DataError::Belongings`] if there is another number of contexts than of samples.
    pub fn with_context(self, context: Table) -> Result<Self, DataError> {
        self.check("contexts", context.rows())?;
        Ok(Self { context: Some(context), ..self })
    }

    /// Adds the categories of each row of a table, which are a part of the sample: a density of it is p(k) p(x | k).
    ///
    /// # Errors
    /// Returns [`DataError::Belongings`] if there is another number of rows of them than of samples.
    pub fn with_categories(self, categories: Categories) -> Result<Self, DataError> {
        self.check("rows of categories", categories.rows())?;
        Ok(Self { categories: Some(categories), ..self })
    }

    /// Adds the categories of each sample that are a part of its context.
    ///
    /// # Errors
    /// Returns [`DataError::Belongings`] if there is another number of rows of them than of samples.
    pub fn with_context_categories(self, categories: Categories) -> Result<Self, DataError> {
        self.check("contexts", categories.rows())?;
        Ok(Self { context_categories: Some(categories), ..self })
    }

    /// Adds the rows of another data set, numbers and categories, as the contexts of the samples.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if they are images, and the errors of [`with_context`](Self::with_context).
    pub fn given_rows(self, contexts: Self) -> Result<Self, Error> {
        let Self { values: Values::Tabular(table), categories, .. } = contexts else {
            return Err(Error::Input("contexts are rows of numbers or categories, not images".into()));
        };
        self.check("contexts", table.rows())?;
        let context = (table.width() > 0).then_some(table);
        Ok(Self { context, context_categories: categories, ..self })
    }

    /// The contexts of the samples as rows of their own, numbers and categories, where there are any.
    pub fn context_rows(&self) -> Option<Self> {
        match (&self.context, &self.context_categories) {
            (None, None) => None,
            (Some(numbers), categories) => Some(Self { categories: categories.clone(), ..Self::from(numbers.clone()) }),
            (None, Some(categories)) => Some(categories.clone().into()),
        }
    }

    /// Replaces the numbers of the samples by those of a table, and keeps what belongs to each.
    ///
    /// # Errors
    /// Returns [`DataError::Belongings`] if the table has another number of rows.
    pub fn with_numbers(self, table: Table) -> Result<Self, DataError> {
        self.check("rows of numbers", table.rows())?;
        Ok(Self { values: Values::Tabular(table), ..self })
    }

    /// Takes columns of the table as the context of each row, which they then are no longer part of: p(other columns | these).
    /// Columns without names go by their numbers, from 1.
    ///
    /// # Errors
    /// Returns [`DataError::NoColumn`] if there is no such column, [`DataError::Options`] if one is named twice,
    /// [`DataError::Width`] if none would be left, and the errors of [`with_context`](Self::with_context).
    pub fn given<S: AsRef<str>>(self, columns: &[S]) -> Result<Self, DataError> {
        let no_column =
            |name: &str, known: &[String]| DataError::NoColumn { name: name.to_owned(), known: known.to_vec() };
        let Values::Tabular(table) = &self.values else {
            return Err(no_column(columns.first().map_or("", |name| name.as_ref()), &[]));
        };
        if (1..columns.len()).any(|i| columns[..i].iter().any(|other| other.as_ref() == columns[i].as_ref())) {
            return Err(DataError::Options("a column of the context is named twice"));
        }
        let is_given = |category: &Category| columns.iter().any(|name| name.as_ref() == category.name());
        let [context_categories, categories] =
            self.categories.as_ref().map_or([None, None], |categories| categories.divide(is_given));
        let of_numbers: Vec<&S> = match &context_categories {
            Some(taken) => {
                let is_number = |name: &&S| taken.columns().iter().all(|column| column.name() != name.as_ref());
                columns.iter().filter(is_number).collect()
            }
            None => columns.iter().collect(),
        };
        let place = |name: &&S| match (name.as_ref(), table.columns()) {
            (name, Some(known)) => known.iter().position(|own| own == name).ok_or_else(|| no_column(name, known)),
            (name, None) => {
                let number = name.parse::<usize>().ok().filter(|n| (1..=table.width()).contains(n));
                let known = || (1..=table.width()).map(|n| n.to_string()).collect::<Vec<_>>();
                number.map(|n| n - 1).ok_or_else(|| no_column(name, &known()))
            }
        };
        let context = of_numbers.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        if context.is_empty() {
            return Ok(Self { categories, context_categories, ..self });
        }
        if (1..context.len()).any(|i| context[..i].contains(&context[i])) {
            return Err(DataError::Options("a column of the context is named twice"));
        }
        let mut categories = categories;
        let mut sorted = context.clone();
        sorted.sort_unstable();
        if let Some(categories) = &mut categories {
            sorted.iter().rev().for_each(|&place| categories.without_number(place));
        }
        let rest: Vec<_> = (0..table.width()).filter(|j| !context.contains(j)).collect();
        if rest.is_empty() {
            return Err(DataError::Options("no column of numbers is left besides what is given"));
        }
        let part = |which: &[usize], names: Option<Vec<String>>| {
            let values = (0..table.rows()).flat_map(|i| which.iter().map(move |&j| table.row(i)[j])).collect();
            Table::new(names, which.len(), values)
        };
        // of a table without names they remember their numbers, by which other tables' columns are found
        let name = |j: usize| table.columns().map_or_else(|| table.label(j), |names| names[j].clone());
        let given = context.iter().map(|&j| name(j)).collect();
        let names = table.columns().map(|names| rest.iter().map(|&j| names[j].clone()).collect());
        let (context, rest) = (part(&context, Some(given))?, part(&rest, names)?);
        Self { values: Values::Tabular(rest), categories, context_categories, ..self }.with_context(context)
    }

    /// Makes the class of each sample its context, one-hot: 1 in the column of its class, else 0, `[n, classes]`. The columns
    /// have the names of the classes, or are `class 0`, `class 1`, … where these are numbers.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if the samples have no labels, [`Error::Input`] for a label that is none of so many classes.
    pub fn given_labels(self, classes: usize) -> Result<Self, Error> {
        let samples = self.len();
        let labels = self.labels().ok_or(DataError::Belongings { what: "labels", found: 0, samples })?;
        check_labels(labels, classes)?;
        let mut values = vec![0.0; samples * classes];
        labels.iter().enumerate().for_each(|(i, &label)| values[i * classes + usize::from(label)] = 1.0);
        let named = self.images().and_then(ImageSet::class_names).filter(|names| names.len() == classes);
        let name = |k: usize| match named.map(|names| &names[k]) {
            Some(name) if name.parse::<f64>().is_err() => name.clone(),
            Some(number) => format!("class {number}"),
            None => format!("class {k}"),
        };
        let names = (0..classes).map(name).collect();
        Ok(self.with_context(Table::new(Some(names), classes, values)?)?)
    }

    /// Adds the class of each sample, from 0.
    ///
    /// # Errors
    /// Returns [`DataError::Belongings`] if there is another number of labels than of samples.
    pub fn with_labels(self, labels: Vec<u8>) -> Result<Self, DataError> {
        self.check("labels", labels.len())?;
        Ok(Self { labels: Some(labels), ..self })
    }

    /// Adds the weight of each sample: weight 2 is the sample twice, weight 0 none.
    ///
    /// # Errors
    /// Returns [`DataError::Belongings`] if there is another number of weights than of samples, [`DataError::Weight`]
    /// for one that is negative or not finite, [`DataError::NoWeight`] if all are zero.
    pub fn with_weights(self, weights: Vec<f64>) -> Result<Self, DataError> {
        self.check("weights", weights.len())?;
        if let Some(sample) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(DataError::Weight { sample, weight: weights[sample] });
        }
        if !weights.iter().any(|&w| w > 0.0) {
            return Err(DataError::NoWeight);
        }
        Ok(Self { weights: Some(weights), ..self })
    }

    /// The same samples, all of which count alike.
    #[must_use]
    pub fn without_weights(self) -> Self {
        Self { weights: None, ..self }
    }

    /// Takes a column of the table as weights, which it then is no longer part of.
    ///
    /// # Errors
    /// Returns [`DataError::NoColumn`] if there is no such column, and the errors of
    /// [`with_weights`](Self::with_weights).
    pub fn with_weight_column(self, name: &str) -> Result<Self, DataError> {
        let missing = |known: Vec<String>| DataError::NoColumn { name: name.to_owned(), known };
        let Values::Tabular(table) = &self.values else { return Err(missing(Vec::new())) };
        let place = table.columns().and_then(|names| names.iter().position(|own| own == name));
        let Some((rest, weights)) = table.without_column(name)? else {
            return Err(missing(table.columns().map(<[String]>::to_vec).unwrap_or_default()));
        };
        let mut categories = self.categories;
        if let (Some(categories), Some(place)) = (&mut categories, place) {
            categories.without_number(place);
        }
        Self { values: Values::Tabular(rest), categories, ..self }.with_weights(weights)
    }

    fn check(&self, what: &'static str, found: usize) -> Result<(), DataError> {
        let samples = self.len();
        if found == samples { Ok(()) } else { Err(DataError::Belongings { what, found, samples }) }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.samples().len()
    }

    /// Returns `true` if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of a sample: `[d]` or `[h, w, c]`.
    pub fn sample_shape(&self) -> Vec<usize> {
        match &self.values {
            Values::Tabular(table) => vec![table.width()],
            Values::Images(set) => vec![set.height(), set.width(), set.channels()],
        }
    }

    /// Returns the view of the samples.
    pub fn samples(&self) -> Samples<'_> {
        let values = match &self.values {
            Values::Tabular(table) => Values::Tabular(table),
            Values::Images(set) => Values::Images(set),
        };
        Samples {
            values,
            categories: self.categories.as_ref(),
            context: self.context.as_ref(),
            context_categories: self.context_categories.as_ref(),
            labels: self.labels.as_deref(),
            weights: self.weights.as_deref(),
        }
    }

    /// The table, where the samples are tabular.
    pub fn table(&self) -> Option<&Table> {
        self.samples().table()
    }

    /// The images, where the samples are images.
    pub fn images(&self) -> Option<&ImageSet> {
        self.samples().images()
    }

    /// The categories of the samples, where they have any.
    pub fn categories(&self) -> Option<&Categories> {
        self.categories.as_ref()
    }

    /// The weights of the samples, where they have any.
    pub fn weights(&self) -> Option<&[f64]> {
        self.weights.as_deref()
    }

    /// The classes of the samples, where they have any.
    pub fn labels(&self) -> Option<&[u8]> {
        self.samples().labels()
    }

    /// Its samples without what belongs to them.
    pub fn into_values(self) -> Values<Table, ImageSet> {
        self.values
    }

    /// Selects the samples of these numbers, in this order, with what belongs to them; a number may come
    /// more than once.
    ///
    /// # Errors
    /// Returns [`DataError::Image`] for no samples at all of images.
    ///
    /// # Panics
    /// If there is no sample of a number.
    #[track_caller]
    pub fn select(&self, numbers: &[usize]) -> Result<Self, DataError> {
        self.samples().select(numbers)
    }

    /// Sets samples aside for validation: `(training, validation)`. The key's permutation shuffles the samples; the
    /// first round(`fraction` · n) of them, at least one and at most all but one, are the validation samples. Copies of a
    /// row stay on one side, in a table whose rows are mostly distinct.
    ///
    /// # Errors
    /// Returns [`DataError::Fraction`] if `fraction` is not strictly between 0 and 1, [`DataError::TooFewRows`] or
    /// [`DataError::Image`] if there are fewer than two samples, and [`DataError::NoWeight`] if all weight would be on
    /// one side.
    pub fn split(&self, fraction: f64, key: Key) -> Result<(Self, Self), DataError> {
        let (training, validation) = self.split_numbers(fraction, key)?;
        Ok((self.select(&training)?, self.select(&validation)?))
    }

    /// The numbers of the samples on both sides of a [`split`](Self::split).
    pub(crate) fn split_numbers(&self, fraction: f64, key: Key) -> Result<(Vec<usize>, Vec<usize>), DataError> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(DataError::Fraction(fraction));
        }
        let n = self.len();
        if n < 2 {
            return Err(match self.values {
                Values::Tabular(_) => {
                    DataError::TooFewRows { rows: n, needed: 2, purpose: "to set some aside for validation" }
                }
                Values::Images(_) => crate::error::ImageError::TooFew.into(),
            });
        }
        let count = ((n as f64 * fraction).round() as usize).clamp(1, n - 1);
        let mut order = permutation(n, key);
        let copies = self.table().and_then(|table| copies::first_of_each(table, self.categories.as_ref()));
        let divided = copies.map(|first| copies::divide(&order, count, &first));
        // unless nothing but one row's copies is there
        let (training, validation) =
            match divided.filter(|(training, validation)| !training.is_empty() && !validation.is_empty()) {
                Some(divided) => divided,
                None => (order.split_off(count), order),
            };
        for side in [&training, &validation] {
            if self.weights.as_ref().is_some_and(|weights| !side.iter().any(|&i| weights[i] > 0.0)) {
                return Err(DataError::NoWeight);
            }
        }
        Ok((training, validation))
    }

    /// Replaces the numbers of the samples, of a table that was standardised.
    pub(crate) fn set_table(&mut self, table: Table) {
        self.values = Values::Tabular(table);
    }

    /// Replaces the contexts of the samples, by as many that were standardised.
    pub(crate) fn set_context(&mut self, context: Table) {
        self.context = Some(context);
    }

    /// A short text that tells two data sets apart, to refuse resuming on other data. Labels count if they
    /// are learned from.
    pub(crate) fn fingerprint(&self, with_labels: bool) -> String {
        let values = match &self.values {
            Values::Images(set) if with_labels => set.labelled_fingerprint(),
            Values::Images(set) => set.fingerprint(),
            Values::Tabular(table) => {
                let hash = hash(table.values());
                format!("{} rows of {} columns, FNV-1a {hash:016x}", table.rows(), table.width())
            }
        };
        let values = match &self.weights {
            Some(weights) => format!("{values}, weights {:016x}", hash(weights)),
            None => values,
        };
        let values = match &self.context {
            Some(context) => {
                format!("{values}, contexts of {} columns {:016x}", context.width(), hash(context.values()))
            }
            None => values,
        };
        let parts = [("categories", &self.categories), ("categories of contexts", &self.context_categories)];
        parts.into_iter().fold(values, |values, (what, part)| match part {
            Some(part) => {
                format!("{values}, {what} in {} columns {:016x}", part.columns().len(), hash_categories(part))
            }
            None => values,
        })
    }
}

/// FNV-1a of names, levels and codes.
fn hash_categories(categories: &Categories) -> u64 {
    let words = categories
        .columns()
        .iter()
        .flat_map(|c| std::iter::once(c.name()).chain(c.levels().iter().map(String::as_str)));
    let words = words.flat_map(|word| word.bytes().chain([0]));
    let codes = categories.codes().iter().flat_map(|code| code.to_le_bytes());
    words.chain(codes).fold(super::image::FNV_OFFSET, super::image::fnv)
}

/// FNV-1a of the bits of numbers.
fn hash(values: &[f64]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(super::image::FNV_OFFSET, super::image::fnv)
}

/// Returns a number for a sample, a function of its numbers alone: with it as its number in
/// [`log_prob_from`](crate::flow::PreparedFlow::log_prob_from) a sample has the same noise, and so the same estimate up
/// to rounding, wherever and whenever it is scored.
pub fn number_of(sample: &[f64]) -> u64 {
    hash(sample)
}

/// The view of samples: what a flow is evaluated on.
#[derive(Debug, Clone, Copy)]
pub struct Samples<'a> {
    values: Values<&'a Table, &'a ImageSet>,
    categories: Option<&'a Categories>,
    context: Option<&'a Table>,
    context_categories: Option<&'a Categories>,
    labels: Option<&'a [u8]>,
    weights: Option<&'a [f64]>,
}

impl<'a> Samples<'a> {
    fn of(values: Values<&'a Table, &'a ImageSet>) -> Self {
        Self { values, categories: None, context: None, context_categories: None, labels: None, weights: None }
    }

    /// The samples themselves.
    pub fn values(&self) -> Values<&'a Table, &'a ImageSet> {
        self.values
    }

    /// The table, where the samples are tabular.
    pub fn table(&self) -> Option<&'a Table> {
        if let Values::Tabular(table) = self.values { Some(table) } else { None }
    }

    /// The images, where the samples are images.
    pub fn images(&self) -> Option<&'a ImageSet> {
        if let Values::Images(set) = self.values { Some(set) } else { None }
    }

    /// The categories of each row of a table, `[n, m]`, which are a part of the sample.
    pub fn categories(&self) -> Option<&'a Categories> {
        self.categories
    }

    /// The categories of each sample that are a part of its context.
    pub fn context_categories(&self) -> Option<&'a Categories> {
        self.context_categories
    }

    /// The numbers of the context of each sample, `[n, k]`, that a conditional model is given.
    pub fn context(&self) -> Option<&'a Table> {
        self.context
    }

    /// The numbers of all that a flow over the samples is given: those of the context, and a one-hot code for each column of
    /// categories, of the context or of the samples; `None` where there is nothing of it.
    pub fn context_width(&self) -> Option<usize> {
        let levels = |categories: &Categories| categories.columns().iter().map(|c| c.levels().len()).sum::<usize>();
        let parts = [self.categories.map(levels), self.context.map(Table::width), self.context_categories.map(levels)];
        parts.into_iter().flatten().reduce(|a, b| a + b)
    }

    /// The class of each sample; images may bring their own.
    pub fn labels(&self) -> Option<&'a [u8]> {
        self.labels.or_else(|| self.images().and_then(ImageSet::labels))
    }

    /// The weight of each sample; without any all count alike.
    pub fn weights(&self) -> Option<&'a [f64]> {
        self.weights
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        match self.values {
            Values::Tabular(table) => table.rows(),
            Values::Images(set) => set.len(),
        }
    }

    /// Returns `true` if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Selects the samples of these numbers, in this order, with what belongs to them; a number may come
    /// more than once.
    ///
    /// # Errors
    /// Returns [`DataError::Image`] for no samples at all of images.
    ///
    /// # Panics
    /// If there is no sample of a number.
    #[track_caller]
    pub fn select(&self, numbers: &[usize]) -> Result<Dataset, DataError> {
        fn pick<T: Copy>(all: Option<&[T]>, numbers: &[usize]) -> Option<Vec<T>> {
            all.map(|all| numbers.iter().map(|&i| all[i]).collect())
        }
        let values = match self.values {
            Values::Tabular(table) => Values::Tabular(table.select(numbers)),
            Values::Images(set) => Values::Images(set.take(numbers)?),
        };
        Ok(Dataset {
            values,
            categories: self.categories.map(|categories| categories.select(numbers)),
            context: self.context.map(|context| context.select(numbers)),
            context_categories: self.context_categories.map(|categories| categories.select(numbers)),
            labels: pick(self.labels, numbers),
            weights: pick(self.weights, numbers),
        })
    }
}

impl<'a> From<&'a Table> for Samples<'a> {
    fn from(table: &'a Table) -> Self {
        Self::of(Values::Tabular(table))
    }
}

impl<'a> From<&'a ImageSet> for Samples<'a> {
    fn from(set: &'a ImageSet) -> Self {
        Self::of(Values::Images(set))
    }
}

impl<'a> From<&'a Dataset> for Samples<'a> {
    fn from(dataset: &'a Dataset) -> Self {
        dataset.samples()
    }
}
