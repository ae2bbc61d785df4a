//! What samples are given, as a part of the flow that is trained on them: their categories, and the standardisation of their
//! contexts' numbers; and whether they are the samples that a flow is for.

use resflow_backend::{Backend, Key};

use super::batches::{Batches, Contexts};
use super::source::{ValidationSet, missing_context};
use crate::categorical::CategoricalDensity;
use crate::data::Dataset;
use crate::error::Error;
use crate::flow::{Flow, FlowCategories};

/// The width of the context of data with categories.
pub(super) fn category_width(data: &Dataset) -> Option<usize> {
    data.categories().and_then(|_| data.samples().context_width())
}

/// Makes what samples are given a part of the flow: their categories, and the standardisation of their contexts' numbers.
pub(super) fn take_contexts<B: Backend>(
    flow: &mut Flow<B>,
    batches: &mut Batches,
    validation: &ValidationSet,
    contexts: Contexts,
    key: Key,
) -> Result<(), Error> {
    if flow.context().is_none() {
        return Ok(());
    }
    if contexts == Contexts::Fit {
        flow.set_categories(categories_of(batches, validation, key.named("categories"))?)?;
    }
    if let Some(categories) = flow.categories() {
        batches.set_categories(categories)?;
    }
    let levels = flow.categories().map_or(0, FlowCategories::width);
    if let Some(context) = flow.context_mut() {
        if contexts != Contexts::Given {
            context.set_standardiser(batches.fit_contexts(levels)?.ok_or_else(missing_context)?)?;
        }
        batches.standardise_contexts(context.standardiser())?;
    }
    Ok(())
}

/// The categories of training samples, those that are a part of them with their probability.
fn categories_of(batches: &Batches, validation: &ValidationSet, key: Key) -> Result<Option<FlowCategories>, Error> {
    let Some(training) = batches.training() else { return Ok(None) };
    if training.categories().is_some() {
        let density = CategoricalDensity::fit(training, validation.samples(), key)?;
        return Ok(Some(FlowCategories::Modelled(density)));
    }
    Ok(training.context_categories().map(|categories| FlowCategories::Given(categories.columns().to_vec())))
}

/// Checks that the samples are those that a flow is for.
pub(super) fn check_shape(found: &[usize], expected: &[usize]) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    let words = |shape: &[usize]| match shape {
        [h, w, c] => format!("images of {h} × {w} pixels, {c} channels"),
        shape => format!("rows of {} columns", shape.iter().product::<usize>()),
    };
    let (found, expected) = (words(found), words(expected));
    Err(Error::Input(format!("the data has {found}, the flow is for {expected}")))
}
