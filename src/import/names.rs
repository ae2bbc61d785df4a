//! The names of the reference implementation's tensors.

use std::collections::BTreeSet;

use crate::error::{Excerpt, ImportError};

/// What torch's wrappers put into names: data parallelism and averages, compilation, sharding, checkpointing. No module
/// of a flow is called so.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// The modules that everything of a flow is below; numbers follow.
const ROOTS: [&str; 2] = ["transforms", "chain"];
/// The second pair of nets of an implicit block.
const COPIES: [&str; 2] = ["nnet_x_copy", "nnet_z_copy"];
/// The count that torch keeps beside an average.
const AVERAGED: &str = "n_averaged";
/// Names in a message.
const SHOWN: usize = 8;

/// Named entries of a state dict.
pub(super) struct Selected<T> {
    pub(super) entries: Vec<(String, T)>,
    /// What is worth saying of them.
    pub(super) note: Option<String>,
}

/// Strips what wrappers put into names, the prefixes `param.` and `buffer.`, and what stands before the flow in all of
/// them (`model.`, `net.`, …). If any name has `param.` or `buffer.`, entries without are dropped: such files hold
/// numbers beside the state dict. Of several flows `wanted` says which.
pub(super) fn select<T>(entries: Vec<(&str, T)>, wanted: Option<&str>) -> Result<Selected<T>, ImportError> {
    let stripped: Vec<_> = entries.into_iter().map(|(full, entry)| (strip(full), entry)).collect();
    let listed = stripped.iter().any(|((_, marked), _)| *marked);
    let stripped: Vec<_> = stripped.into_iter().filter(|((_, marked), _)| *marked || !listed).collect();
    let outer = choose(stripped.iter().filter_map(|((name, _), _)| before_flow(name)).collect(), wanted)?;
    let (mut seen, mut selected, mut others) = (BTreeSet::new(), Vec::new(), false);
    for ((mut name, _), entry) in stripped {
        if name == AVERAGED {
            continue;
        }
        if !outer.is_empty() {
            // with more flows than one, those of another are among the others
            let Some(inner) = name.strip_prefix(&outer).map(str::to_owned) else {
                others = true;
                continue;
            };
            name = inner;
        }
        if !seen.insert(name.clone()) {
            return Err(ImportError::tensor(&name, "occurs twice, once the prefixes are stripped"));
        }
        selected.push((name, entry));
    }
    let note = (!outer.is_empty()).then(|| {
        let beside = if others { "; those without it are left out" } else { "" };
        format!("`{}` is taken off the names of the tensors{beside}", Excerpt(&outer))
    });
    Ok(Selected { entries: selected, note })
}

/// What stands before the flow in the names: the only such prefix, or the one that is wanted.
fn choose(found: BTreeSet<&str>, wanted: Option<&str>) -> Result<String, ImportError> {
    let list = |found: &BTreeSet<&str>| {
        let shown = found.iter().take(SHOWN).map(|prefix| format!("`{}`", Excerpt(prefix.trim_end_matches('.'))));
        shown.chain((found.len() > SHOWN).then(|| "…".to_owned())).collect::<Vec<_>>().join(", ")
    };
    if let Some(wanted) = wanted {
        let (wanted, _) = strip(&format!("{}.", wanted.trim_end_matches('.')));
        let wanted = if wanted == "." { String::new() } else { wanted };
        if !found.contains(wanted.as_str()) {
            let there = if found.is_empty() { String::new() } else { format!(", only below {}", list(&found)) };
            let wanted = wanted.trim_end_matches('.');
            return Err(ImportError::Content(format!("there is no flow below `{}`{there}", Excerpt(wanted))));
        }
        return Ok(wanted);
    }
    match found.len() {
        0 => Ok(String::new()),
        1 => Ok(found.into_iter().collect()),
        _ => Err(ImportError::Content(format!(
            "the file holds the tensors of several flows, below {}: say which, with --key in the program",
            list(&found)
        ))),
    }
}

/// A name without what wrappers put into it and without its marks, and whether `param.` or `buffer.` was one of them.
fn strip(full: &str) -> (String, bool) {
    let parts: Vec<&str> = full.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    match parts.as_slice() {
        ["param" | "buffer", inner @ ..] if !inner.is_empty() => (inner.join("."), true),
        parts => (parts.join("."), false),
    }
}

/// What stands before a flow in the name of one of its tensors; nothing if it is no flow's.
fn before_flow(name: &str) -> Option<&str> {
    let mut start = 0;
    let mut parts = name.split('.').peekable();
    while let Some(part) = parts.next() {
        let number = |next: &&str| !next.is_empty() && next.bytes().all(|b| b.is_ascii_digit());
        if ROOTS.contains(&part) && parts.peek().is_some_and(number) {
            return Some(&name[..start]);
        }
        start += part.len() + 1;
    }
    None
}

/// Returns `true` for names of a flow's tensors, whatever stands before them.
pub(super) fn is_of_flow(name: &str) -> bool {
    before_flow(name).is_some()
}

/// The name of a tensor in its layer.
fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// The reference's estimator keeps these in its blocks, and implicit blocks copies of their nets as they were a step before, to compute
/// gradients with; they are not part of the function.
pub(super) fn is_ignored(name: &str) -> bool {
    matches!(last(name), "geom_p" | "lamb") || is_statistic(name) || name.split('.').any(|part| COPIES.contains(&part))
}

fn is_statistic(name: &str) -> bool {
    last(name).starts_with("last_")
}

/// Returns `true` for state that no optimiser, and so no average, sees.
pub(super) fn is_buffer(name: &str) -> bool {
    const BUFFERS: [&str; 9] =
        ["u", "v", "scale", "sigma", "initialized", "spatial_dims", "running_mean", "running_var", "step"];
    is_statistic(name) || BUFFERS.contains(&last(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (full, name, marked) in [
            ("module.chain.0.weight", "chain.0.weight", false),
            ("param.chain.0.weight", "chain.0.weight", true),
            ("module.buffer.u", "u", true),
            ("buffer.module.u", "u", true),
            ("chain.11.fc_module.param.weight", "chain.11.fc_module.param.weight", false),
            ("_orig_mod.module.chain.0.weight", "chain.0.weight", false),
            ("module._orig_mod.module.chain.0.weight", "chain.0.weight", false),
            ("transforms.0._orig_mod.chain.0.weight", "transforms.0.chain.0.weight", false),
            ("_fsdp_wrapped_module.chain.0._checkpoint_wrapped_module.weight", "chain.0.weight", false),
            ("param", "param", false),
            ("module", "", false),
        ] {
            assert_eq!(strip(full), (name.to_owned(), marked), "{full}");
        }
    }

    #[test]
    fn what_stands_before_a_flow() {
        for (name, before) in [
            ("chain.0.weight", Some("")),
            ("transforms.0.chain.1.weight", Some("")),
            ("model.transforms.0.chain.1.weight", Some("model.")),
            ("a.b.chain.12.nnet.0.beta", Some("a.b.")),
            ("chain.weight", None),
            ("chain.0x.weight", None),
            ("chain", None),
            ("0.chain.", None),
            ("", None),
        ] {
            assert_eq!(before_flow(name), before, "{name}");
        }
    }

    #[test]
    fn one_flow_of_several_is_chosen() {
        let entries = || ["net.chain.0.w", "ema.chain.0.w", "lr"].map(|name| (name, ())).to_vec();
        let problem = |wanted| select(entries(), wanted).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(problem(None).contains("several flows, below `ema`, `net`"), "{}", problem(None));
        assert!(problem(Some("nets")).contains("no flow below `nets`, only below `ema`, `net`"));
        for wanted in ["net", "net.", "module.net"] {
            let selected = select(entries(), Some(wanted)).expect("one of two");
            let names: Vec<_> = selected.entries.iter().map(|(name, ())| name.as_str()).collect();
            assert_eq!(names, ["chain.0.w"]);
            assert!(selected.note.expect("a word").contains("`net.`"));
        }
        let only = select(vec![("model.chain.0.w", ()), ("n_averaged", ()), ("metric", ())], None).expect("one");
        assert_eq!(only.entries, [("chain.0.w".to_owned(), ())]);
        let note = only.note.expect("a word");
        assert_eq!(note, "`model.` is taken off the names of the tensors; those without it are left out");
        // without a flow's names nothing is cut
        let other = select(vec![("a.w", ()), ("a.u", ())], None).expect("distinct");
        assert_eq!((other.entries.len(), other.entries[0].0.as_str(), other.note), (2, "a.w", None));
    }

    #[test]
    fn listed_names_drop_the_others() {
        let names = |entries: &[&'static str]| {
            let selected = select(entries.iter().map(|&e| (e, ())).collect(), None)?.entries;
            Ok::<_, ImportError>(selected.into_iter().map(|(name, ())| name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["x", "param.a", "buffer.b", "grad.a"]).expect("distinct"), ["a", "b"]);
        assert_eq!(names(&["x", "module.a"]).expect("distinct"), ["x", "a"]);
        assert!(names(&["a", "module.a"]).is_err());
        assert!(names(&["a", "param.a"]).is_ok());
    }

    #[test]
    fn roles() {
        for name in ["chain.0.geom_p", "lamb", "a.last_n_samples", "last_firmom", "chain.0.nnet_z_copy.0.u"] {
            assert!(is_ignored(name), "{name}");
        }
        assert!(!is_ignored("geom_p.weight") && !is_ignored("chain.0.weight") && !is_ignored("at_last_"));
        assert!(is_buffer("nnet.1.u") && is_buffer("last_n_samples") && !is_buffer("chain.0.geom_p"));
    }
}
