//! The results: a table as Markdown and as JSON, and plots.

use std::fmt::Write as _;

use anyhow::Result;
use image::RgbImage;
use serde::Serialize;

use super::cell::Cell;
use super::laboratory::Laboratory;
use crate::output::{print, write_file};
use crate::picture::png::write_png;

/// A Markdown table.
#[derive(Debug)]
pub(super) struct Table {
    text: String,
}

impl Table {
    pub(super) fn new(columns: &[&str]) -> Self {
        let mut table = Self { text: String::new() };
        table.row(columns.iter().map(ToString::to_string));
        let _ = writeln!(table.text, "{}|", "|---".repeat(columns.len()));
        table
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        for cell in cells {
            // a bar ends a cell
            let _ = write!(self.text, "| {} ", cell.replace('|', "\\|"));
        }
        self.text.push_str("|\n");
    }
}

/// Everything that is said of an experiment.
#[derive(Debug)]
pub(super) struct Report<'a, R> {
    pub(super) cells: &'a [Cell<R>],
    /// What the table shows.
    pub(super) about: String,
    pub(super) tables: Vec<(String, Table)>,
    /// What is counted over the table.
    pub(super) findings: Vec<String>,
    /// Pictures by the names of their files.
    pub(super) pictures: Vec<(String, RgbImage)>,
}

impl<R: Serialize> Report<'_, R> {
    /// Writes table.md, table.json and the pictures, and prints the table.
    pub(super) fn write(&self, laboratory: &Laboratory) -> Result<()> {
        let file = &laboratory.file;
        let seconds: f64 = self.cells.iter().map(|cell| cell.seconds).sum();
        let mut text = format!("# {}\n\n{}\n\n", file.title, self.about);
        let _ = writeln!(
            text,
            "Seed {}, {}; {} cells, {seconds:.1} s altogether.\n",
            file.seed,
            file.precision.name(),
            self.cells.len()
        );
        for (heading, table) in &self.tables {
            if !heading.is_empty() {
                let _ = writeln!(text, "## {heading}\n");
            }
            let _ = writeln!(text, "{}", table.text);
        }
        for finding in &self.findings {
            let _ = writeln!(text, "* {finding}");
        }
        if !self.findings.is_empty() {
            text.push('\n');
        }
        for (name, picture) in &self.pictures {
            write_png(picture, &laboratory.path(name))?;
            let _ = writeln!(text, "![{}]({name})", file.title);
        }
        write_file(&laboratory.path("table.md"), text.as_bytes())?;
        let json = serde_json::json!({
            "title": file.title,
            "seed": file.seed,
            "precision": file.precision.name(),
            "cells": self.cells,
        });
        write_file(&laboratory.path("table.json"), &serde_json::to_vec_pretty(&json)?)?;
        print(&text)
    }
}
