//! The experiment's file: TOML whose settings are those of `resflow fit`, laid over each other.
//!
//! A row's settings lie over the file's, these over the preset or the defaults of the row's family.

use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::config::Family;
use resflow::data::Table as Rows;
use resflow::data::image::ImageSet;
use resflow::device::Precision;
use serde::Deserialize;
use toml::Table;

use super::section::{Comparison, Grid, Row};
use crate::data::Data;
use crate::data::labels;
use crate::failure::usage;
use crate::settings::presets;
use crate::settings::{Settings, place, read_text};

/// An experiment as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) title: String,
    /// What every random number is a function of.
    pub(super) seed: u64,
    #[serde(default)]
    pub(super) precision: Precision,
    /// Built-in densities, files, folders of images.
    pub(super) data: Vec<String>,
    /// Where settings for images begin.
    #[serde(default)]
    preset: Option<String>,
    #[serde(default)]
    flow: Table,
    #[serde(default)]
    images: Table,
    #[serde(default)]
    train: Table,
    #[serde(default)]
    comparison: Option<Comparison>,
    #[serde(default)]
    bias: Option<Grid>,
    #[serde(default)]
    variance: Option<Grid>,
}

/// What is measured.
#[derive(Debug)]
pub(super) enum Kind<'a> {
    Comparison(&'a Comparison),
    Bias(&'a Grid),
    Variance(&'a Grid),
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let (text, name) = read_text(path)?;
        Self::parse(&text, &name)
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let file: Self = toml::from_str(text).map_err(|e| match e.span() {
            Some(span) => {
                let (line, column) = place(text, span.start);
                usage(format_args!("{name}, line {line}, column {column}: {}", e.message()))
            }
            None => usage(format_args!("{name}: {}", e.message())),
        })?;
        if file.data.is_empty() {
            return Err(usage(format_args!("{name}: `data` is empty; name a density, a file or a folder in it")));
        }
        file.kind().with_context(|| name.to_owned())?;
        Ok(file)
    }

    /// The one section that says what is measured.
    pub(super) fn kind(&self) -> Result<Kind<'_>> {
        let kinds = [
            self.comparison.as_ref().map(Kind::Comparison),
            self.bias.as_ref().map(Kind::Bias),
            self.variance.as_ref().map(Kind::Variance),
        ];
        let mut kinds = kinds.into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(kind),
            _ => Err(usage("needs exactly one of the sections [comparison], [bias] and [variance]")),
        }
    }

    /// The settings for data, with those of a row in their place.
    pub(super) fn settings(&self, data: &Data, row: &Row) -> Result<Settings> {
        let size = data.images().map(ImageSet::size);
        let (section, own, other) = match size {
            Some(_) => ("images", &self.images, &row.images),
            None => ("flow", &self.flow, &row.flow),
        };
        let laid = |below: &Table, above: &Table| {
            let mut all = below.clone();
            all.extend(above.clone());
            all
        };
        let model = laid(own, other);
        let train = laid(&self.train, &row.train);
        let family = match model.get("model") {
            None => Family::default(),
            Some(name) => name.as_str().unwrap_or_default().parse().map_err(usage)?,
        };
        let start = match (size, &self.preset) {
            (Some(size), name) => {
                let asked = name.as_deref().map(str::parse).transpose().map_err(usage)?;
                let sized = ["height", "width", "channels"].iter().any(|key| model.contains_key(*key));
                Some((presets::choose(asked, size, sized), size))
            }
            (None, _) => None,
        };
        let beneath = match start {
            Some((start, _)) => start.settings(family)?,
            None => Settings::new(family, columns(data)?),
        };
        let mut sections = Table::new();
        sections.insert(section.to_owned(), model.into());
        sections.insert("train".to_owned(), train.into());
        let settings = beneath.laid_over(sections)?;
        if let (Some(images), classes @ 1..) = (data.images(), settings.model.classes()) {
            labels::check(images.into(), "the data", classes)?;
        }
        if let Some((start, size)) = start {
            start.check(&settings, size)?;
        } else if settings.model.dimension() != columns(data)? {
            let (asked, found) = (settings.model.dimension(), columns(data)?);
            return Err(usage(format_args!("`dimension` is {asked}, the data has {found} columns; leave it out")));
        }
        Ok(settings)
    }
}

fn columns(data: &Data) -> Result<usize> {
    match data.image_size() {
        None => Ok(data.table().map_or(2, Rows::width)),
        Some(_) => Err(usage("images to learn are bytes, array.astype('u1') of 0 to 255")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "title = \"t\"\nseed = 1\ndata = [\"moons\"]\n";
    const TAIL: &str = "[comparison]\n[[comparison.rows]]\nname = \"a\"\n";

    fn moons(text: &str) -> Result<Settings> {
        let file = File::parse(text, "f")?;
        let Kind::Comparison(comparison) = file.kind()? else { panic!("a comparison") };
        file.settings(&Data::open("moons")?, &comparison.rows[0])
    }

    #[test]
    fn rows_lie_over_the_file_and_the_family() {
        let text = format!(
            "{HEAD}[flow]\nblocks = 3\nhidden = [8]\n[train]\nsteps = 9\n{TAIL}\
             flow = {{ model = \"iresnet\", blocks = 5 }}\ntrain = {{ batch = 7 }}\n"
        );
        let settings = moons(&text).expect(&text);
        let flow = settings.model.rows().expect("rows");
        assert_eq!((flow.blocks, &flow.hidden[..], settings.train.steps, settings.train.batch), (5, &[8][..], 9, 7));
        assert_eq!(flow.model, Family::IResNet);
        assert!(flow.training.to_string().contains("truncated"), "the family's own estimator: {}", flow.training);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            (format!("{HEAD}{TAIL}[bias]\nestimators = []\nbounds = []\n"), "exactly one of the sections"),
            (HEAD.to_owned(), "exactly one of the sections"),
            (format!("{}{TAIL}", HEAD.replace("[\"moons\"]", "[]")), "`data` is empty"),
            (format!("{HEAD}tilte = 3\n{TAIL}"), "f, line 4, column 1: unknown field `tilte`"),
            (format!("{HEAD}precision = \"f16\"\n{TAIL}"), "f, line 4, column 13"),
            (format!("{HEAD}{TAIL}flow = {{ blok = 3 }}\n"), "unknown field `blok`"),
            (format!("{HEAD}{TAIL}flow = {{ blocks = 0 }}\n"), "`blocks` is 0"),
            (format!("{HEAD}{TAIL}flow = {{ model = \"glaw\" }}\n"), "there is no model `glaw`"),
            (format!("{HEAD}{TAIL}flow = {{ dimension = 3 }}\n"), "`dimension` is 3"),
            (format!("{HEAD}{TAIL}train = {{ batch = -1 }}\n"), "-1"),
        ] {
            let error = format!("{:#}", moons(&text).expect_err(&text));
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
