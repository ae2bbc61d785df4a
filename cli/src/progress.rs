//! What a run shows on standard error: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::say;

/// Where a run is.
#[derive(Debug)]
pub(crate) struct Position {
    pub(crate) step: u64,
    /// The last step, if it is known.
    pub(crate) steps: Option<u64>,
    /// From 0 to 1.
    pub(crate) fraction: f64,
    /// Epochs done, of images.
    pub(crate) epoch: Option<f64>,
    /// What is minimised.
    pub(crate) objective: &'static str,
    pub(crate) train: f64,
    pub(crate) validation: Option<f64>,
    /// The fraction of validation rows that a classifier was right about.
    pub(crate) accuracy: Option<f64>,
    /// Steps or images a second.
    pub(crate) rate: f64,
    pub(crate) unit: &'static str,
    pub(crate) learning_rate: f64,
    /// The time that is left, as far as one can tell.
    pub(crate) left: Option<Duration>,
    /// Of a model that solves, evaluations of a sample's solves and samples that were left out of the step.
    pub(crate) solves: Option<(u32, usize)>,
}

impl Position {
    fn text(&self) -> String {
        let steps = self.steps.map_or(String::new(), |n| format!("/{n}"));
        let validation = self.validation.map_or("-".to_owned(), |v| format!("{v:.3}"));
        let accuracy = self.accuracy.map_or(String::new(), |a| format!("  acc {:.1} %", 100.0 * a));
        let left = self.left.map_or("-".to_owned(), clock);
        let epoch = self.epoch.map_or(String::new(), |e| format!("  epoch {e:.2}"));
        let solves = self.solves.map_or(String::new(), |(evaluations, unsolved)| match unsolved {
            0 => format!("  solves {evaluations}"),
            n => format!("  solves {evaluations}, {n} failed"),
        });
        let digits = usize::from(self.rate < 100.0);
        format!(
            "{}{steps}{epoch}  {} {:.3}  val {validation}{accuracy}{solves}  lr {:.1e}  {:.digits$}{}/s  eta {left}",
            self.step, self.objective, self.train, self.learning_rate, self.rate, self.unit
        )
    }
}

/// m:ss or h:mm:ss.
pub(crate) fn clock(time: Duration) -> String {
    let s = time.as_secs_f64().round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

/// The units of the bar.
const LENGTH: u64 = 1000;
/// Time between lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(5);

/// The display of a run.
#[derive(Debug)]
pub(crate) enum Progress {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Progress {
    /// A display that says nothing of what is done within seconds.
    pub(crate) fn quiet() -> Self {
        match Self::new() {
            Self::Lines { .. } => Self::Lines { last: Some(Instant::now()) },
            bar @ Self::Bar(_) => bar,
        }
    }

    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { last: None };
        }
        let bar = ProgressBar::new(LENGTH);
        if let Ok(style) = ProgressStyle::with_template("{bar:16.cyan/blue} {wide_msg}") {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    /// Shows where the run is.
    pub(crate) fn show(&mut self, position: &Position) {
        match self {
            Self::Bar(bar) => {
                bar.set_position((position.fraction.clamp(0.0, 1.0) * LENGTH as f64) as u64);
                bar.set_message(position.text());
            }
            Self::Lines { last } => {
                if last.is_none_or(|last| last.elapsed() >= INTERVAL) {
                    *last = Some(Instant::now());
                    say(format_args!("step {}", position.text()));
                }
            }
        }
    }

    /// Shows how many are done, and something about them.
    pub(crate) fn count(&mut self, done: usize, all: usize, what: &str) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(done as u64 * LENGTH / all.max(1) as u64);
                bar.set_message(format!("{done}/{all}  {what}"));
            }
            Self::Lines { last } => {
                if last.is_none_or(|last| last.elapsed() >= INTERVAL) {
                    *last = Some(Instant::now());
                    say(format_args!("{done}/{all}  {what}"));
                }
            }
        }
    }

    /// Says what is being done now.
    pub(crate) fn stage(&self, what: &str) {
        match self {
            Self::Bar(bar) => bar.set_message(what.to_owned()),
            Self::Lines { .. } => say(what),
        }
    }

    /// Leaves the display.
    pub(crate) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
