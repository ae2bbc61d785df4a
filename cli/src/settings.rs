//! The configuration file: TOML with the sections `[flow]` and `[train]`, errors with file, line and column.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Error, Result};
use resflow::config::FlowConfig;
use resflow::error::ConfigError;
use resflow::train::TrainConfig;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::failure::usage;

/// All settings of a run that are not on the command line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) flow: FlowConfig,
    pub(crate) train: TrainConfig,
}

impl Settings {
    /// The defaults for data of `columns` columns.
    pub(crate) fn new(columns: usize) -> Self {
        Self { flow: FlowConfig::new(columns), train: TrainConfig::default() }
    }

    /// Reads and checks a file. The flow's dimension is that of the data; a file that says otherwise is wrong.
    pub(crate) fn read(path: &Path, columns: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| usage(format_args!("{}: {e}", path.display())))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            usage(format_args!("{}: not UTF-8 after byte {}", path.display(), e.utf8_error().valid_up_to()))
        })?;
        Self::parse(&text, &path.display().to_string(), columns)
    }

    fn parse(text: &str, file: &str, columns: usize) -> Result<Self> {
        let wrong = |span: Option<Range<usize>>, problem: &str| match span {
            Some(span) => {
                let (line, column) = place(text, span.start);
                usage(format_args!("{file}, line {line}, column {column}: {problem}"))
            }
            None => usage(format_args!("{file}: {problem}")),
        };
        let syntax = |e: toml::de::Error| wrong(e.span(), e.message());
        let document = DeTable::parse(text).map_err(syntax)?;
        let mut settings: Self = toml::from_str(text).map_err(syntax)?;
        let section = |name: &str| document.get_ref().get(name).and_then(|v| v.get_ref().as_table());
        if let Some((key, _)) = section("flow").and_then(|t| t.get_key_value("dimension"))
            && settings.flow.dimension != columns
        {
            let problem = format!("`dimension` is {}, the data has {columns} columns", settings.flow.dimension);
            return Err(wrong(Some(key.span()), &problem));
        }
        settings.flow.dimension = columns;
        let located = |error: ConfigError, name: &str| -> Error {
            let span = match &error {
                ConfigError::OutOfRange { name: setting, value, .. } => {
                    section(name).and_then(|table| find(table, setting, *value))
                }
                _ => None,
            };
            wrong(span, &error.to_string())
        };
        settings.flow.check().map_err(|e| located(e, "flow"))?;
        settings.train.check().map_err(|e| located(e, "train"))?;
        Ok(settings)
    }

    /// The text of a file that reads back as these settings.
    pub(crate) fn to_toml(&self, comment: &str) -> Result<String> {
        let text = toml::to_string(self).context("the configuration")?;
        Ok(format!("# {comment}\n\n{text}"))
    }

    /// The first setting in which two runs differ, as text; the number of steps may.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let value = |s: &Self| {
            let mut s = s.clone();
            s.train.steps = 1;
            toml::Table::try_from(&s).ok()
        };
        first_difference("", &value(self)?, &value(other)?)
    }
}

/// The path of the first entry that differs, and its two values.
fn first_difference(path: &str, a: &toml::Table, b: &toml::Table) -> Option<String> {
    let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
    keys.into_iter().find_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (a.get(key), b.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => first_difference(&path, a, b),
            (a, b) if a == b => None,
            (a, b) => {
                let show = |v: Option<&toml::Value>| v.map_or("nothing".to_owned(), ToString::to_string);
                Some(format!("{path} is {}, was {}", show(b), show(a)))
            }
        }
    })
}

/// Line and column of a byte, counted from one, the column in characters.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Where a setting of this name and value stands, however deep.
fn find(table: &DeTable<'_>, name: &str, value: f64) -> Option<Range<usize>> {
    let key_name = if name == "hidden layers" { "hidden" } else { name };
    table.iter().find_map(|(key, entry)| {
        let named = key.get_ref() == key_name && (name == "hidden layers" || holds(entry.get_ref(), value));
        if named { Some(entry.span()) } else { find(entry.get_ref().as_table()?, name, value) }
    })
}

fn holds(entry: &DeValue<'_>, value: f64) -> bool {
    match entry {
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix()).is_ok_and(|i| i as f64 == value),
        DeValue::Float(f) => f.as_str().parse().is_ok_and(|f: f64| f == value || (f.is_nan() && value.is_nan())),
        DeValue::Array(entries) => entries.iter().any(|e| holds(e.get_ref(), value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back() {
        let mut settings = Settings::new(3);
        for estimator in ["exact", "auto", "truncated:terms=3", "roulette:law=poisson"] {
            settings.flow.training = estimator.parse().expect(estimator);
            let text = settings.to_toml("a comment").expect("serialises");
            assert_eq!(Settings::parse(&text, "f", 3).expect(&text), settings);
        }
        let text = "[flow]\ntraining = \"exact\"\nevaluation = { truncated = { terms = 3 } }\n";
        let settings = Settings::parse(text, "f", 3).expect("both forms of an estimator");
        assert_eq!(settings.flow.training, "exact".parse().expect("exact"));
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, expected) in [
            ("[flow]\nblocks = -1\n", "f, line 2, column 10: invalid value: integer `-1`"),
            ("[flow]\nblocks = 0\n", "f, line 2, column 10: `blocks` is 0"),
            ("[flow]\nblock = 3\n", "f, line 2, column 1: unknown field `block`"),
            ("[flow]\nhidden = [8, 0]\n", "f, line 2, column 10: `hidden` is 0"),
            ("[flow]\nhidden = []\n", "f, line 2, column 10: `hidden layers` is 0"),
            ("[flow]\ndimension = 3\n", "f, line 2, column 1: `dimension` is 3, the data has 2 columns"),
            ("[train]\nbatch = 500\nlearning_rate = -1e-3\n", "f, line 3, column 17: `learning_rate` is -0.001"),
            ("[train]\nbetas = [0.9, 1.5]\n", "f, line 2, column 9: `betas` is 1.5"),
            ("[flows]\n", "f, line 1, column 2: unknown field `flows`"),
            ("[flow]\ntraining = \"exakt\"\n", "f, line 2, column 12: not a valid configuration: there is no"),
            ("[flow]\nblocks = = 3\n", "f, line 2, column"),
            ("[flow.training.truncated]\nterms = 3\nprobes = 0\n", "f, line 3, column 10: `probes` is 0"),
        ] {
            let error = Settings::parse(text, "f", 2).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
