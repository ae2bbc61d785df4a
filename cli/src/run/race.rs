//! `--model auto`: families race for a part of the budget, each with a whole schedule of its own, and the one that is best
//! on the validation rows goes on from where it is, with a schedule over what is left. Its best weights of the race stay the
//! ones to beat, so that nothing is lost but the part of the others.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::config::Family;
use resflow::error::ConfigError;
use resflow::flow::LogProb;
use resflow::train::{Budget, Source, Trainer};
use resflow::{Error, Flow};

use crate::arguments::Fit;
use crate::failure::{interrupted, say};
use crate::progress::Progress;
use crate::run::interruption::is_interrupted;
use crate::run::metrics::Beginning;
use crate::settings::Settings;

/// The part of the budget that each family gets.
const SHARE: f64 = 0.15;
/// The fewest steps that tell families apart.
const FEWEST_STEPS: u64 = 100;

/// The model that is asked for: a family, or whichever is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Whichever wins a race.
    Auto,
    /// This one.
    Family(Family),
}

impl FromStr for Choice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Family) }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Family(family) => write!(f, "{family}"),
        }
    }
}

/// The budget of one family's part in the race.
fn part(budget: Budget) -> Budget {
    match budget {
        Budget::Steps(steps) => Budget::Steps(((steps as f64 * SHARE) as u64).max(FEWEST_STEPS.min(steps))),
        Budget::Time(limit) => Budget::Time(limit.mul_f64(SHARE).max(Duration::from_millis(1))),
    }
}

/// The winner of a race.
#[derive(Debug)]
pub(crate) struct Winner<B: Backend> {
    /// Where it is, with the budget that is left.
    pub(crate) trainer: Trainer<B>,
    /// What was known before its first step.
    pub(crate) beginning: Option<Beginning>,
    /// The standard error of its best validation, nats.
    pub(crate) best_error: Option<f64>,
}

impl<B: Backend> Winner<B> {
    /// Trains a family for its part, and no longer than until the end.
    fn of(mut trainer: Trainer<B>, clock: Instant, end: Option<Instant>) -> Result<Self> {
        let (mut beginning, mut best_error) = (None, None);
        if trainer.validation_due() {
            let validation = trainer.validate()?;
            beginning = Some(Beginning::of(&trainer, &validation, clock.elapsed()));
            best_error = Some(validation.standard_error);
        }
        let mut over = false;
        while !(trainer.finished() || over) {
            trainer.step()?;
            over = end.is_some_and(|end| Instant::now() >= end);
            if over || trainer.validation_due() {
                let validation = trainer.validate()?;
                if validation.improved {
                    best_error = Some(validation.standard_error);
                }
            }
            if is_interrupted() {
                return Err(interrupted("interrupted before the race was over: nothing is written"));
            }
        }
        Ok(Self { trainer, beginning, best_error })
    }
}

/// Lets families race, with the settings that a function gives for each; returns the winner. `clock` is the beginning of the
/// time that a budget in time is counted from.
pub(crate) fn race<B: Backend>(
    backend: &B,
    arguments: &Fit,
    source: &Source,
    (budget, clock): (Budget, Instant),
    key: Key,
    settings_of: impl Fn(Family) -> Result<Settings>,
) -> Result<Winner<B>> {
    let columns: usize = source.sample_shape().iter().product();
    // couplings need two columns
    let families = if columns > 1 { &[Family::Residual, Family::Nsf][..] } else { &[Family::Residual] };
    let share = if families.len() > 1 { part(budget) } else { budget };
    let progress = Progress::new();
    // what cannot be made is told before any is trained
    let mut entrants = Vec::new();
    for &family in families {
        let settings = settings_of(family)?;
        entrants.push((family, Flow::new(backend.clone(), &settings.model, key.named("weights"))?, settings));
    }
    let mut best: Option<(Winner<B>, LogProb)> = None;
    let mut told = Vec::new();
    for (family, flow, settings) in entrants {
        let source = source.clone();
        let trainer = match &best {
            None => match arguments.time_limit {
                Some(limit) => Trainer::new_within(flow, source, &settings.train, (share, limit), key),
                None => Trainer::new(flow, source, &settings.train, share, key),
            },
            Some((other, _)) => Trainer::new_beside(&other.trainer, flow, source, &settings.train, share),
        };
        let trainer = trainer.with_context(|| arguments.data.clone())?;
        if families.len() == 1 {
            return Ok(Winner { trainer, beginning: None, best_error: None });
        }
        progress.stage(&format!("racing: {family}"));
        let end = arguments.time_limit.map(|limit| Instant::now() + limit.mul_f64(SHARE));
        let own = match Winner::of(trainer, clock, end) {
            Ok(own) => own,
            // the others may still do
            Err(error) if matches!(error.downcast_ref(), Some(Error::Diverged { .. })) => {
                told.push(format!("{family} is out ({error:#})"));
                continue;
            }
            Err(error) => {
                progress.end();
                return Err(error);
            }
        };
        let scores = own.trainer.model().log_prob(own.trainer.validation_samples(), key.named("validation"))?;
        told.push(format!("{family} {:.4} ± {:.4}", scores.mean(), scores.mean_standard_error()));
        if best.as_ref().is_none_or(|(_, best)| scores.compare(best).0 > 0.0) {
            best = Some((own, scores));
        }
    }
    progress.end();
    let (mut winner, _) = best.with_context(|| told.join(", "))?;
    let trainer = &mut winner.trainer;
    let family = trainer.flow().config().family();
    say(format_args!("race, mean log p of the validation rows: {}; {family} goes on", told.join(", ")));
    trainer.go_on(match budget {
        Budget::Steps(steps) => Budget::Steps(steps),
        Budget::Time(limit) => {
            let left = limit.saturating_sub(clock.elapsed()).max(Duration::from_millis(1));
            Budget::Time(trainer.elapsed() + left)
        }
    })?;
    Ok(winner)
}
