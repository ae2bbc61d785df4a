//! The state dict among what a program saved: under `state_dict`, as the file's dict itself, or in dicts and lists below
//! it (`model`, `ema`, `net.state`, …).
//!
//! A dict counts if it holds tensors, and one with a flow's names (see [`names`](super::names)) before any other, so that
//! what an optimiser keeps is no rival. Where several are left the caller must say which.
//!
//! The search visits every value once, and looks at no more entries than a small multiple of the values: one list of
//! pairs may be the content of many dicts.

use super::Weights;
use super::names;
use super::pickle::{Id, Pickle, Value};
use super::tensor::Tensor;
use crate::error::{Excerpt, ImportError};

/// Entries that are looked at for each value of the file.
const LOOKS: usize = 4;
/// Names in a message.
const SHOWN: usize = 8;

/// The place of a state dict.
#[derive(Debug)]
pub(super) struct Place<'k> {
    pub(super) dict: Id,
    /// The place in words.
    pub(super) what: String,
    /// What is to stand before the names.
    pub(super) prefix: Option<&'k str>,
    /// What is worth saying of the choice.
    pub(super) note: Option<String>,
}

fn content(problem: impl Into<String>) -> ImportError {
    ImportError::Content(problem.into())
}

/// Finds the state dict, at a key if one is given.
pub(super) fn find<'k>(pickle: &Pickle, weights: Weights, key: Option<&'k str>) -> Result<Place<'k>, ImportError> {
    let root = pickle.root();
    if pickle.entries(root).is_none() {
        let advice = if is_module(pickle, root) { ": save its `state_dict()` instead" } else { "" };
        return Err(content(format!("the file holds {}, not a dict{advice}", pickle.describe(root))));
    }
    let place = |dict, what: &str| Place { dict, what: what.to_owned(), prefix: None, note: None };
    let mut prefix = None;
    if let Some(key) = key {
        let (at, rest) = walk(pickle, root, key);
        if at != root || rest.is_empty() {
            let inside = contents(pickle, at);
            let dict = match candidates(pickle, inside, weights).as_slice() {
                // its own tensors, or a message that says what is there instead
                [] => inside,
                [only] => only.dict,
                [first, ..] if first.dict == inside => inside,
                several => return Err(ambiguous(several, key)),
            };
            let what = format!("`{}`", Excerpt(key));
            return Ok(Place { dict, what, prefix: Some(rest).filter(|rest| !rest.is_empty()), note: None });
        }
        // nothing is called so: it may be what the names begin with
        prefix = Some(key);
    }
    let (start, what, above) = match pickle.entry(root, "state_dict") {
        Some(dict) => (dict, "`state_dict`", "state_dict"),
        None => (root, "the file's dict", ""),
    };
    match candidates(pickle, start, weights).as_slice() {
        [] if start != root => Ok(Place { prefix, ..place(start, what) }),
        [] => Err(nothing(pickle)),
        [first, ..] if first.dict == start => Ok(Place { prefix, ..place(start, what) }),
        [only] => {
            let path = joined(above, &only.path);
            let note = Some(format!("the tensors are those of `{}`", Excerpt(&path)));
            Ok(Place { dict: only.dict, what: format!("`{}`", Excerpt(&path)), prefix, note })
        }
        several => Err(ambiguous(several, above)),
    }
}

/// Finds the averaged parameters: those of an object that averages, or a state dict beside that of the weights.
pub(super) fn find_average(pickle: &Pickle) -> Result<(Id, String), ImportError> {
    let root = pickle.root();
    if let Some(ema) = pickle.entry(root, "ema") {
        let state = contents(pickle, ema);
        if let Some(shadow) = pickle.entry(state, "shadow_params") {
            return Ok((shadow, "`shadow_params`".to_owned()));
        }
    }
    let found = search(pickle, root);
    let averages: Vec<_> = preferred(found).into_iter().filter(|c| is_average(&c.path)).collect();
    match averages.as_slice() {
        [only] => Ok((only.dict, format!("`{}`", Excerpt(&only.path)))),
        [] if pickle.entry(root, "ema").is_some() => Err(content("`ema` has no `shadow_params`")),
        [] => Err(content("no `ema` in the file")),
        several => Err(ambiguous(several, "")),
    }
}

/// A dict that holds tensors.
struct Candidate {
    dict: Id,
    /// The keys on the way to it, joined by dots; empty for where the search began.
    path: String,
    /// Whether its names are a flow's.
    flow: bool,
}

/// The dicts below a value that may be meant.
fn candidates(pickle: &Pickle, start: Id, weights: Weights) -> Vec<Candidate> {
    let mut found = preferred(search(pickle, start));
    // the average is for those who ask for it, and found apart
    if weights == Weights::Ema && found.iter().any(|c| !is_average(&c.path)) {
        found.retain(|c| !is_average(&c.path));
    }
    found
}

/// Those of flows, or if there are none those that no optimiser keeps.
fn preferred(mut found: Vec<Candidate>) -> Vec<Candidate> {
    if found.iter().any(|c| c.flow) {
        found.retain(|c| c.flow);
    } else {
        found.retain(|c| !words(&c.path).any(|word| word.starts_with("optim") || word.starts_with("sched")));
    }
    found
}

fn words(path: &str) -> impl Iterator<Item = &str> {
    path.split(|c: char| !c.is_alphanumeric())
}

fn is_average(path: &str) -> bool {
    words(path).any(|word| word.eq_ignore_ascii_case("ema"))
}

/// The dicts that hold tensors, the nearest first.
fn search(pickle: &Pickle, start: Id) -> Vec<Candidate> {
    /// A value, the number of the one that it is in, and the key there; items of lists have none.
    type Node = (Id, usize, Option<Id>);
    let mut seen = vec![false; pickle.ids().count()];
    let mut left = seen.len().saturating_mul(LOOKS);
    let mut nodes: Vec<Node> = vec![(start, 0, None)];
    let mut found: Vec<(usize, bool)> = Vec::new();
    let mut next = 0;
    let mut reach = |id: Id| !std::mem::replace(&mut seen[id.index()], true);
    reach(start);
    while next < nodes.len() {
        let (id, ..) = nodes[next];
        if let Some(entries) = pickle.entries(id) {
            if entries.len() > left {
                break;
            }
            left -= entries.len();
            let (mut tensors, mut flow) = (false, false);
            for (key, value) in entries {
                if Tensor::parse(pickle, value).is_some() {
                    tensors = true;
                    flow |= pickle.text(key).is_some_and(names::is_of_flow);
                } else if is_container(pickle, value) && reach(value) {
                    nodes.push((value, next, Some(key)));
                }
            }
            if tensors {
                found.push((next, flow));
            }
        } else if let Some(items) = pickle.items(id) {
            if items.len() > left {
                break;
            }
            left -= items.len();
            for &item in items {
                if is_container(pickle, item) && reach(item) {
                    nodes.push((item, next, None));
                }
            }
        }
        next += 1;
    }
    // a path is as long as the way, and a hostile file may have many
    let path = |mut node: usize| {
        let mut parts = Vec::new();
        while node > 0 && parts.len() < SHOWN {
            let (id, above, key) = nodes[node];
            let position = || pickle.items(nodes[above].0).and_then(|items| items.iter().position(|&item| item == id));
            parts.push(match key {
                Some(key) => pickle.text(key).unwrap_or("?").chars().take(100).collect(),
                None => position().map_or("?".to_owned(), |at| at.to_string()),
            });
            node = above;
        }
        parts.reverse();
        parts.join(".")
    };
    let most = 100;
    let (flows, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|&(_, flow)| flow);
    let kept = flows.into_iter().take(most).chain(others.into_iter().take(most));
    kept.map(|(node, flow)| Candidate { dict: nodes[node].0, path: path(node), flow }).collect()
}

fn is_container(pickle: &Pickle, id: Id) -> bool {
    match pickle.get(id) {
        Value::Dict(_) | Value::List(_) | Value::Tuple(_) => true,
        Value::Record(record) => pickle.global(record.class) == Some(("collections", "OrderedDict")),
        _ => false,
    }
}

/// The attributes of an object, anything else as it is.
fn contents(pickle: &Pickle, id: Id) -> Id {
    if is_container(pickle, id) { id } else { pickle.record(id).and_then(|record| record.state).unwrap_or(id) }
}

/// As far as keys lead, and what is left of them. A key may have dots in it: the longest goes first.
fn walk<'k>(pickle: &Pickle, root: Id, key: &'k str) -> (Id, &'k str) {
    let (mut at, mut rest) = (root, key);
    while !rest.is_empty() {
        let after = |name: &str| match rest.strip_prefix(name)? {
            "" => Some(""),
            more => more.strip_prefix('.'),
        };
        let inside = contents(pickle, at);
        let step = match (pickle.entries(inside), pickle.items(inside)) {
            (Some(entries), _) => {
                let named = entries.into_iter().filter_map(|(key, value)| Some((pickle.text(key)?, value)));
                let fitting = named.filter(|(name, _)| !name.is_empty() && after(name).is_some());
                fitting.max_by_key(|(name, _)| name.len()).and_then(|(name, value)| Some((value, after(name)?)))
            }
            (None, Some(items)) => {
                let number = rest.split('.').next().unwrap_or_default();
                let item = number.parse().ok().and_then(|i: usize| items.get(i));
                item.and_then(|&item| Some((item, after(number)?)))
            }
            (None, None) => None,
        };
        match step {
            // a tensor is no place for one: its name begins so
            Some((value, _)) if Tensor::parse(pickle, value).is_some() => break,
            Some(step) => (at, rest) = step,
            None => break,
        }
    }
    (at, rest)
}

fn joined(above: &str, path: &str) -> String {
    if above.is_empty() || path.is_empty() { format!("{above}{path}") } else { format!("{above}.{path}") }
}

fn ambiguous(several: &[Candidate], above: &str) -> ImportError {
    let paths = several.iter().take(SHOWN).map(|c| format!("`{}`", Excerpt(&joined(above, &c.path))));
    let more = (several.len() > SHOWN).then(|| "…".to_owned());
    let paths: Vec<_> = paths.chain(more).collect();
    content(format!("the file holds several state dicts, {}: say which, with --key in the program", paths.join(", ")))
}

/// Whether an object is one of torch's modules.
fn is_module(pickle: &Pickle, id: Id) -> bool {
    let state = pickle.record(id).and_then(|record| record.state);
    state.is_some_and(|state| pickle.entry(state, "_modules").is_some())
}

fn nothing(pickle: &Pickle) -> ImportError {
    let entries = pickle.entries(pickle.root()).unwrap_or_default();
    let keys: Vec<_> = entries.iter().filter_map(|(key, _)| pickle.text(*key)).take(SHOWN).collect();
    // a state is looked through for each, and may be that of all
    let module = entries.iter().take(SHOWN).find(|(_, value)| is_module(pickle, *value));
    let module = module.and_then(|(key, _)| pickle.text(*key));
    let advice = module.map_or(String::new(), |key| {
        format!(": `{}` is a whole module, save its `state_dict()` instead", Excerpt(key))
    });
    content(format!("no `state_dict` in the file, only: {}{advice}", keys.join(", ")))
}
