//! The configuration file: TOML with the sections `[flow]` (rows of numbers) or `[images]`, and `[train]`; errors with
//! file, line and column. What the file does not say stays as it was: the default, or the preset's.

pub(crate) mod presets;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Error, Result};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Start};
use resflow::data::ColumnFit;
use resflow::error::ConfigError;
use resflow::train::TrainConfig;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::failure::usage;

/// All settings of a run that are not on the command line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) model: ModelConfig,
    pub(crate) train: TrainConfig,
}

/// The sections of a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<FlowConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<ImageConfig>,
    train: Option<TrainConfig>,
}

impl Settings {
    /// The defaults of a family for data of `columns` columns.
    pub(crate) fn new(family: Family, columns: usize) -> Self {
        Self { model: FlowConfig::of(family, columns).into(), train: TrainConfig::default().for_family(family) }
    }

    /// The defaults of a family for a table.
    pub(crate) fn for_table(family: Family, rows: usize, columns: usize) -> Self {
        let model = FlowConfig::for_table(family, rows, columns).into();
        Self { model, train: TrainConfig::for_table(family, rows) }
    }

    /// The defaults of a family for a built-in density.
    pub(crate) fn for_density(family: Family) -> Self {
        Self { model: FlowConfig::for_density(family).into(), train: TrainConfig::for_density(family) }
    }

    /// These settings, whose base density is fitted only if the flow begins at it and the file does not choose another.
    pub(crate) fn with_fitting_base(self) -> Self {
        Self { train: self.train.with_fitting_base(&self.model), ..self }
    }

    /// The family that a file asks for, if it does; what is wrong with the file is for [`overlay`](Self::overlay) to say.
    pub(crate) fn family(path: &Path) -> Result<Option<Family>> {
        let (text, _) = read_text(path)?;
        let Ok(file) = toml::from_str::<toml::Table>(&text) else { return Ok(None) };
        let named = ["flow", "images"].iter().find_map(|section| file.get(*section)?.get("model")?.as_str());
        Ok(named.and_then(|name| name.parse().ok()))
    }

    /// Whether a file says how large images are; what is wrong with it is for [`overlay`](Self::overlay) to say.
    pub(crate) fn says_size(path: &Path) -> Result<bool> {
        let (text, _) = read_text(path)?;
        let file = toml::from_str::<toml::Table>(&text).unwrap_or_default();
        let images = file.get("images").and_then(toml::Value::as_table);
        Ok(images.is_some_and(|images| ["height", "width", "channels"].iter().any(|key| images.contains_key(*key))))
    }

    /// The model that a file configures by itself.
    pub(crate) fn architecture(path: &Path) -> Result<ModelConfig> {
        let (text, file) = read_text(path)?;
        // every setting by itself, and which section there is
        let sections: Sections = toml::from_str(&text).map_err(|e| usage(format_args!("{file}: {}", e.message())))?;
        let model: ModelConfig = match (sections.flow, sections.images) {
            (Some(flow), None) => flow.into(),
            (None, Some(images)) => images.into(),
            _ => return Err(usage(format_args!("{file}: needs one of the sections [images] and [flow]"))),
        };
        let row = model.sample_shape();
        Ok(Self { model, train: TrainConfig::default() }.parse(&text, &file, &row)?.model)
    }

    /// Lays a file over these settings, key by key, and checks the outcome. The data's row has this shape; a file that
    /// says otherwise is wrong.
    pub(crate) fn overlay(&self, path: &Path, row: &[usize]) -> Result<Self> {
        let (text, file) = read_text(path)?;
        self.parse(&text, &file, row)
    }

    fn parse(&self, text: &str, file: &str, row: &[usize]) -> Result<Self> {
        let wrong = |span: Option<Range<usize>>, problem: &str| match span {
            Some(span) => {
                let (line, column) = place(text, span.start);
                usage(format_args!("{file}, line {line}, column {column}: {problem}"))
            }
            None => usage(format_args!("{file}: {problem}")),
        };
        let syntax = |e: toml::de::Error| wrong(e.span(), e.message());
        let document = DeTable::parse(text).map_err(syntax)?;
        // every setting by itself, for the places of mistakes
        let _: Sections = toml::from_str(text).map_err(syntax)?;
        let (own, other, problem) = match self.model {
            ModelConfig::Rows(_) => ("flow", "images", "`images` is for images, the data are rows: theirs is `flow`"),
            ModelConfig::Images(_) => ("images", "flow", "`flow` is for rows, the data are images: theirs is `images`"),
        };
        if let Some((key, _)) = document.get_ref().get_key_value(other) {
            return Err(wrong(Some(key.span()), problem));
        }
        let merged = self.with(toml::from_str(text).map_err(syntax)?).map_err(|e| wrong(None, &e.to_string()))?;
        let section = |name: &str| document.get_ref().get(name).and_then(|v| v.get_ref().as_table());
        let names: &[&str] = if own == "flow" { &["dimension"] } else { &["height", "width", "channels"] };
        for ((name, value), data) in names.iter().zip(merged.model.sample_shape()).zip(row) {
            if let Some((key, _)) = section(own).and_then(|t| t.get_key_value(*name))
                && value != *data
            {
                let problem = match own {
                    "flow" => format!("`{name}` is {value}, the data has {data} columns"),
                    _ => format!("`{name}` is {value}, that of the data is {data}"),
                };
                return Err(wrong(Some(key.span()), &problem));
            }
        }
        let located = |error: ConfigError, name: &str| -> Error {
            let span = match &error {
                ConfigError::OutOfRange { name: setting, value, .. } => {
                    section(name).and_then(|table| find(table, setting, *value))
                }
                _ => None,
            };
            wrong(span, &error.to_string())
        };
        merged.model.check().map_err(|e| located(e, own))?;
        merged.train.check().map_err(|e| located(e, "train"))?;
        Ok(merged)
    }

    /// Lays sections over these settings, key by key, and checks the outcome.
    pub(crate) fn laid_over(&self, sections: toml::Table) -> Result<Self> {
        let merged = self.with(sections).map_err(|e| usage(e.to_string().trim_end()))?;
        merged.model.check().map_err(usage)?;
        merged.train.check().map_err(usage)?;
        Ok(merged)
    }

    /// These settings with those of a file in their place.
    fn with(&self, file: toml::Table) -> Result<Self> {
        let mut all = toml::Table::try_from(self.sections())?;
        for (name, section) in file {
            if let (Some(toml::Value::Table(all)), toml::Value::Table(section)) = (all.get_mut(&name), section) {
                all.extend(section);
            }
        }
        let all: Sections = all.try_into()?;
        let model = match (all.flow, all.images) {
            (Some(flow), _) => flow.into(),
            (None, Some(images)) => images.into(),
            (None, None) => self.model.clone(),
        };
        Ok(Self { model, train: all.train.unwrap_or_default() })
    }

    fn sections(&self) -> Sections {
        Sections {
            flow: self.model.rows().cloned(),
            images: self.model.images().cloned(),
            train: Some(self.train.clone()),
        }
    }

    /// The text of a file that reads back as these settings.
    pub(crate) fn to_toml(&self, comment: &str) -> Result<String> {
        let mut text = toml::to_string(&self.sections()).context("the configuration")?;
        // what files leave out where it is as it was before there was another, though tables and densities begin otherwise
        let mut spell_out = |sections: &[&str], line: &str, wanted: bool| {
            for header in sections.iter().filter(|_| wanted) {
                text = text.replacen(&format!("[{header}]\n"), &format!("[{header}]\n{line}\n"), 1);
            }
        };
        spell_out(&["flow", "images"], "start = \"random\"", self.model.start() == Start::Random);
        spell_out(&["train"], "fit_base = false", !self.train.fit_base);
        spell_out(&["train"], "columns = \"standardise\"", self.train.columns == ColumnFit::default());
        Ok(format!("# {comment}\n\n{text}"))
    }

    /// Whether a text that settings were written as is that of these: what it leaves out is the default.
    pub(crate) fn are_those_of(&self, text: &str) -> bool {
        toml::from_str::<Sections>(text).is_ok_and(|written| written == self.sections())
    }

    /// The first setting in which two runs differ, as text; the number of steps may.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let value = |s: &Self| {
            let mut s = s.clone();
            s.train.steps = 1;
            toml::Table::try_from(s.sections()).ok()
        };
        first_difference("", &value(self)?, &value(other)?)
    }
}

/// The text of a file, and its name.
pub(crate) fn read_text(path: &Path) -> Result<(String, String)> {
    let bytes = std::fs::read(path).map_err(|e| usage(format_args!("{}: {e}", path.display())))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        usage(format_args!("{}: not UTF-8 after byte {}", path.display(), e.utf8_error().valid_up_to()))
    })?;
    Ok((text, path.display().to_string()))
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
pub(crate) fn place(text: &str, byte: usize) -> (usize, usize) {
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
    use resflow::config::Preset;

    use super::*;
    use crate::settings::presets;

    fn rows(columns: usize, text: &str) -> Result<Settings> {
        Settings::new(Family::Residual, columns).parse(text, "f", &[columns])
    }

    fn images(text: &str, row: [usize; 3]) -> Result<Settings> {
        presets::settings(Preset::MnistSmall, Family::Residual).parse(text, "f", &row)
    }

    #[test]
    fn settings_read_back() {
        let mut settings = Settings::new(Family::Residual, 3);
        for estimator in ["exact", "auto", "truncated:terms=3", "roulette:law=poisson"] {
            settings.model = FlowConfig { training: estimator.parse().expect(estimator), ..FlowConfig::new(3) }.into();
            let text = settings.to_toml("a comment").expect("serialises");
            assert_eq!(rows(3, &text).expect(&text), settings);
        }
        let text = "[flow]\ntraining = \"exact\"\nevaluation = { truncated = { terms = 3 } }\n";
        let settings = rows(3, text).expect("both forms of an estimator");
        assert_eq!(settings.model.training(), &"exact".parse().expect("exact"));
        for preset in Preset::ALL {
            for family in Family::ALL.into_iter().filter(|f| f.takes_images()) {
                let settings = presets::settings(preset, family);
                settings.model.check().unwrap_or_else(|e| panic!("{preset}, {family}: {e}"));
                let text = settings.to_toml("a comment").expect("serialises");
                let row = settings.model.sample_shape();
                let beneath = presets::settings(Preset::Cifar10, Family::Residual);
                let other = beneath.parse(&text, "f", &row).expect(&text);
                assert_eq!(other, settings, "{preset}, {family}: whatever is beneath");
            }
        }
        for family in Family::ALL {
            let all = [
                (Settings::new(family, 2), Settings::for_table(family, 500, 2)),
                (Settings::new(family, 2), Settings::for_density(family)),
                (Settings::for_density(family), Settings::for_table(family, 500, 2)),
                (Settings::for_table(family, 500, 2), Settings::new(family, 2)),
            ];
            for (settings, beneath) in all {
                let text = settings.to_toml("a comment").expect("serialises");
                let other = beneath.parse(&text, "f", &[2]).expect(&text);
                assert_eq!(other, settings, "{family}: whatever is beneath");
            }
        }
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let text = "[images]\nfilters = 8\nevaluation = \"exact\"\n[train]\nbatch = 7\n";
        let settings = images(text, [28, 28, 1]).expect("settings");
        let preset = presets::settings(Preset::MnistSmall, Family::Residual);
        let flow = ImageConfig { filters: 8, evaluation: "exact".parse().expect("exact"), ..Preset::MnistSmall.flow() };
        assert_eq!(settings, Settings { model: flow.into(), train: TrainConfig { batch: 7, ..preset.train } });
    }

    #[test]
    fn mistakes_in_images_have_a_place() {
        for (text, expected) in [
            ("[images]\nheight = 8\n", "f, line 2, column 1: `height` is 8, that of the data is 28"),
            ("[images]\nfilters = 0\n", "f, line 2, column 11: `filters` is 0"),
            ("[images]\nkernels = [3, 2]\n", "f, line 2, column 11: `kernels` is 2"),
            ("[images]\nhidden = [2]\n", "f, line 2, column 1: unknown field `hidden`"),
            ("[flow]\nblocks = 2\n", "f, line 1, column 2: `flow` is for rows"),
            ("[images]\nblocks = [1, 1, 1, 1]\n", "f: images of 28 × 28 cannot be squeezed 3 times"),
        ] {
            let error = images(text, [28, 28, 1]).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        assert!(rows(2, "[images]\n").expect_err("images").to_string().contains("the data are rows"));
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
            ("[flow]\nmodel = \"glaw\"\n", "f, line 2, column 9: unknown variant `glaw`"),
            ("[flow]\nmodel = \"iresnet\"\n", "f: an i-ResNet is trained with a truncated series"),
            ("[flow]\ntraining = \"exakt\"\n", "f, line 2, column 12: not a valid configuration: there is no"),
            ("[flow]\nblocks = = 3\n", "f, line 2, column"),
            ("[flow.training.truncated]\nterms = 3\nprobes = 0\n", "f, line 3, column 10: `probes` is 0"),
        ] {
            let error = rows(2, text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
