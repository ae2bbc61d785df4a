//! Checkpoints of the reference implementation as torch saves them: a dict with `state_dict`, `args` and `ema` among
//! others, or a state dict in some other place (see [`container`]).
//!
//! With the average, parameters come from `ema.shadow_params` (a dict by name, or a list in the order of the
//! parameters), or from a state dict called `ema` or so, and everything else from `state_dict`. All tensors that are
//! read hold together no more numbers than the file has bytes (once decompressed), however many of them share a storage.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::container;
use super::pickle::{self, Id, Pickle, Value};
use super::tensor::Tensor;
use super::torch_legacy;
use super::torch_zip::TorchZip;
use super::{Argument, StateDict, Weights, names};
use crate::error::ImportError;

/// The first bytes of a zip file.
pub(super) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// The first byte of a pickle of protocol 2 or later.
pub(super) const PICKLE_MAGIC: u8 = 0x80;

enum Storages<'a> {
    Zip(TorchZip<'a>),
    Legacy(BTreeMap<&'a str, &'a [u8]>),
}

impl Storages<'_> {
    fn get(&mut self, key: &str) -> Result<&[u8], ImportError> {
        match self {
            Self::Zip(zip) => zip.entry(&format!("data/{key}")),
            Self::Legacy(storages) => {
                let found = storages.get(key).copied();
                found.ok_or_else(|| ImportError::Format(format!("storage {key} is not in the file")))
            }
        }
    }

    /// Bytes of the file and of what was decompressed from it.
    fn weight(&self, file: usize) -> usize {
        match self {
            Self::Zip(zip) => file.saturating_add(zip.decompressed()),
            Self::Legacy(_) => file,
        }
    }
}

/// Reads a file of either format.
pub(super) fn read(bytes: &[u8], weights: Weights, key: Option<&str>) -> Result<StateDict, ImportError> {
    if bytes.starts_with(ZIP_MAGIC) {
        let mut zip = TorchZip::open(bytes)?;
        let pickled: Cow<[u8]> = zip.pickle()?;
        let (pickle, _) = pickle::read(&pickled, 0)?;
        collect(&pickle, Storages::Zip(zip), bytes.len(), weights, key)
    } else if bytes.first() == Some(&PICKLE_MAGIC) {
        let (pickle, storages) = torch_legacy::open(bytes)?;
        collect(&pickle, Storages::Legacy(storages), bytes.len(), weights, key)
    } else {
        Err(ImportError::Format("not a file of torch: neither a zip file nor a pickle".into()))
    }
}

/// The tensors of a pickle, with their numbers.
fn collect(
    pickle: &Pickle,
    mut storages: Storages,
    file: usize,
    weights: Weights,
    key: Option<&str>,
) -> Result<StateDict, ImportError> {
    let place = container::find(pickle, weights, key)?;
    let Named { mut tensors, note } = tensors(pickle, place.dict, &place.what, place.prefix)?;
    if weights == Weights::Ema {
        average(pickle, &mut tensors, place.prefix)?;
    }
    let notes = place.note.into_iter().chain(note).collect();
    let mut dict = StateDict { arguments: arguments(pickle), notes, ..StateDict::default() };
    let mut taken = 0_usize;
    for (name, tensor) in tensors {
        let scalar = tensor.storage.scalar;
        let length = storages.get(tensor.storage.key)?.len();
        if tensor.storage.length.checked_mul(scalar.size()) != Some(length) {
            let problem = format!("is in a storage of {length} bytes, not {} numbers", tensor.storage.length);
            return Err(ImportError::tensor(&name, problem));
        }
        taken = taken.saturating_add(tensor.len());
        if taken > storages.weight(file) {
            return Err(ImportError::tensor(&name, "shares its numbers too often"));
        }
        let values = scalar.read(storages.get(tensor.storage.key)?, tensor.places());
        let values = values.map_err(|problem| ImportError::tensor(&name, problem))?;
        dict.insert(name, tensor.shape, scalar, values);
    }
    Ok(dict)
}

fn content(problem: impl Into<String>) -> ImportError {
    ImportError::Content(problem.into())
}

/// Tensors by name, in their order, their prefixes stripped.
struct Named<'a> {
    tensors: Vec<(String, Tensor<'a>)>,
    note: Option<String>,
}

/// A dict from names to tensors. The file's own dict may have other things beside them.
fn tensors<'a>(pickle: &Pickle<'a>, dict: Id, what: &str, prefix: Option<&str>) -> Result<Named<'a>, ImportError> {
    let entries = pickle.entries(dict);
    let entries = entries.ok_or_else(|| content(format!("{what} is {}, not a dict", pickle.describe(dict))))?;
    let mut named = Vec::new();
    for (key, value) in entries {
        if dict == pickle.root() && Tensor::parse(pickle, value).is_none() {
            continue;
        }
        let name = pickle.text(key);
        named.push((name.ok_or_else(|| content(format!("a key of {what} is {}", pickle.describe(key))))?, value));
    }
    let parse = |(name, value): (String, Id)| {
        let tensor = Tensor::parse(pickle, value).unwrap_or_else(|| Err(format!("is {}", pickle.describe(value))));
        match tensor {
            Ok(tensor) => Ok((name, tensor)),
            Err(problem) => Err(ImportError::Tensor { name, problem }),
        }
    };
    let selected = names::select(named, prefix)?;
    let tensors = selected.entries.into_iter().map(parse).collect::<Result<_, _>>()?;
    Ok(Named { tensors, note: selected.note })
}

/// Puts the averaged parameters in the place of the current ones.
fn average<'a>(
    pickle: &Pickle<'a>,
    tensors: &mut [(String, Tensor<'a>)],
    prefix: Option<&str>,
) -> Result<(), ImportError> {
    let (shadow, what) = container::find_average(pickle)?;
    let shadow: BTreeMap<String, Tensor<'a>> = match pickle.items(shadow) {
        Some(items) => by_order(pickle, items, tensors)?,
        None => self::tensors(pickle, shadow, &what, prefix)?.tensors.into_iter().collect(),
    };
    if shadow.is_empty() {
        return Err(content(format!("{what} is empty: nothing was averaged yet")));
    }
    let current: BTreeMap<&str, &Tensor> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    // torch averages a parameter that is in the model under two names once, under the first of them
    let mut shared: Vec<(&Tensor, &Tensor)> = Vec::new();
    for (name, averaged) in &shadow {
        let Some(&tensor) = current.get(name.as_str()) else {
            return Err(ImportError::tensor(name, "is in `shadow_params`, but not in `state_dict`"));
        };
        if tensor.shape != averaged.shape {
            let (now, then) = (&tensor.shape, &averaged.shape);
            return Err(ImportError::tensor(name, format!("has shape {now:?}, its average {then:?}")));
        }
        shared.push((tensor, averaged));
    }
    shared.sort_by_key(|(tensor, _)| tensor.order());
    let mut averages = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors.iter() {
        let same = || {
            let found = shared.binary_search_by_key(&tensor.order(), |(other, _)| other.order());
            found.ok().map(|at| shared[at].1)
        };
        let averaged = shadow.get(name).or_else(same);
        let optional = names::is_buffer(name) || names::is_ignored(name) || !tensor.storage.scalar.is_floating();
        if averaged.is_none() && !optional {
            return Err(ImportError::tensor(name, "is in `state_dict`, but not in `shadow_params`"));
        }
        averages.push(averaged.cloned());
    }
    for ((_, tensor), averaged) in tensors.iter_mut().zip(averages) {
        if let Some(averaged) = averaged {
            *tensor = averaged;
        }
    }
    Ok(())
}

/// Names for a list of averages: those of the state dict that are parameters, in its order, if the shapes fit.
fn by_order<'a>(
    pickle: &Pickle<'a>,
    items: &[Id],
    tensors: &[(String, Tensor<'a>)],
) -> Result<BTreeMap<String, Tensor<'a>>, ImportError> {
    let parse = |(i, &id): (usize, &Id)| {
        let tensor = Tensor::parse(pickle, id).unwrap_or_else(|| Err(format!("is {}", pickle.describe(id))));
        tensor.map_err(|problem| ImportError::tensor(&format!("shadow_params[{i}]"), problem))
    };
    let averages: Vec<Tensor> = items.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let parameters = |with_ignored: bool| -> Vec<&(String, Tensor)> {
        // a parameter under two names counts once, as in torch
        let mut seen = BTreeSet::new();
        let is_parameter = |(name, tensor): &&(String, Tensor<'a>)| {
            tensor.storage.scalar.is_floating() && !names::is_buffer(name) && (with_ignored || !names::is_ignored(name))
        };
        tensors.iter().filter(is_parameter).filter(|(_, tensor)| seen.insert(tensor.order())).collect()
    };
    for with_ignored in [true, false] {
        let parameters = parameters(with_ignored);
        let fits = parameters.len() == averages.len()
            && parameters.iter().zip(&averages).all(|((_, tensor), average)| tensor.shape == average.shape);
        if fits {
            return Ok(parameters.into_iter().map(|(name, _)| name.clone()).zip(averages).collect());
        }
    }
    Err(content(format!(
        "`shadow_params` is a list of {} tensors, whose shapes are not those of the {} parameters",
        averages.len(),
        parameters(true).len()
    )))
}

/// Longer names and texts are no arguments of a program, and are left out.
const LONGEST_ARGUMENT: usize = 256;

/// The numbers, texts and flags among the saved arguments of the program that trained.
fn arguments(pickle: &Pickle) -> BTreeMap<String, Argument> {
    let state =
        pickle.entry(pickle.root(), "args").map(|args| pickle.record(args).and_then(|r| r.state).unwrap_or(args));
    let entries = state.and_then(|state| pickle.entries(state)).unwrap_or_default();
    let scalar = |(key, value): (Id, Id)| {
        let key = pickle.text(key).filter(|key| key.len() <= LONGEST_ARGUMENT)?;
        let argument = match pickle.get(value) {
            Value::Bool(b) => Argument::Bool(*b),
            Value::Int(i) => Argument::Int(*i),
            Value::Float(x) => Argument::Float(*x),
            // one text may be the value of many keys
            Value::Text(text) if text.len() <= LONGEST_ARGUMENT => Argument::Text((*text).to_owned()),
            _ => return None,
        };
        Some((key.to_owned(), argument))
    };
    entries.into_iter().filter_map(scalar).collect()
}
