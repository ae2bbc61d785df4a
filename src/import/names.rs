//! The names of the reference implementation's tensors.

use std::collections::BTreeSet;

use crate::error::ImportError;

/// Strips the prefixes `module.`, `param.` and `buffer.`. If any name has one of the latter two, entries without are
/// dropped: such files hold numbers beside the state dict.
pub(super) fn select<T>(entries: Vec<(&str, T)>) -> Result<Vec<(String, T)>, ImportError> {
    let listed = entries.iter().any(|(name, _)| strip(name).1);
    let mut seen = BTreeSet::new();
    let mut selected = Vec::new();
    for (full, entry) in entries {
        let (name, marked) = strip(full);
        if listed && !marked {
            continue;
        }
        if !seen.insert(name) {
            return Err(ImportError::tensor(name, "occurs twice, once the prefixes are stripped"));
        }
        selected.push((name.to_owned(), entry));
    }
    Ok(selected)
}

/// A name without its prefixes, and whether `param.` or `buffer.` was one of them.
fn strip(full: &str) -> (&str, bool) {
    let outer = full.strip_prefix("module.").unwrap_or(full);
    match outer.strip_prefix("param.").or_else(|| outer.strip_prefix("buffer.")) {
        Some(inner) => (inner.strip_prefix("module.").unwrap_or(inner), true),
        None => (outer, false),
    }
}

/// The name of a tensor in its layer.
fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// The reference's estimator keeps these in its blocks; they are not part of the function.
pub(super) fn is_ignored(name: &str) -> bool {
    matches!(last(name), "geom_p" | "lamb") || is_statistic(name)
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
        assert_eq!(strip("module.chain.0.weight"), ("chain.0.weight", false));
        assert_eq!(strip("param.chain.0.weight"), ("chain.0.weight", true));
        assert_eq!(strip("module.buffer.u"), ("u", true));
        assert_eq!(strip("buffer.module.u"), ("u", true));
        assert_eq!(strip("chain.11.fc_module.param.weight"), ("chain.11.fc_module.param.weight", false));
    }

    #[test]
    fn listed_names_drop_the_others() {
        let names = |entries: &[&'static str]| {
            let selected = select(entries.iter().map(|&e| (e, ())).collect())?;
            Ok::<_, ImportError>(selected.into_iter().map(|(name, ())| name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["x", "param.a", "buffer.b", "grad.a"]).expect("distinct"), ["a", "b"]);
        assert_eq!(names(&["x", "module.a"]).expect("distinct"), ["x", "a"]);
        assert!(names(&["a", "module.a"]).is_err());
        assert!(names(&["a", "param.a"]).is_ok());
    }

    #[test]
    fn roles() {
        for name in ["chain.0.geom_p", "lamb", "a.last_n_samples", "last_firmom"] {
            assert!(is_ignored(name), "{name}");
        }
        assert!(!is_ignored("geom_p.weight") && !is_ignored("chain.0.weight") && !is_ignored("at_last_"));
        assert!(is_buffer("nnet.1.u") && is_buffer("last_n_samples") && !is_buffer("chain.0.geom_p"));
    }
}
