//! `--model auto`: families race for a part of the budget, each with a whole schedule of its own, and the one that is best
//! on the validation rows is trained for the rest.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use resflow::Flow;
use resflow::backend::{Backend, Key};
use resflow::config::Family;
use resflow::error::ConfigError;
use resflow::flow::LogProb;
use resflow::train::{Budget, Source, Trainer};

use crate::arguments::Fit;
use crate::failure::{interrupted, say};
use crate::progress::Progress;
use crate::run::interruption::is_interrupted;
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

/// Lets families race, with the settings that a function gives for each; returns the winner.
pub(crate) fn race<B: Backend>(
    backend: &B,
    arguments: &Fit,
    source: &Source,
    budget: Budget,
    key: Key,
    settings_of: impl Fn(Family) -> Result<Settings>,
) -> Result<Family> {
    let columns: usize = source.sample_shape().iter().product();
    // couplings need two columns
    let families = if columns > 1 { &[Family::Residual, Family::Nsf][..] } else { &[Family::Residual] };
    let [first, others @ ..] = families else { return Ok(Family::Residual) };
    if others.is_empty() {
        return Ok(*first);
    }
    let progress = Progress::new();
    let mut best: Option<(Family, LogProb)> = None;
    let mut told = Vec::new();
    for &family in families {
        progress.stage(&format!("racing: {family}"));
        let settings = settings_of(family)?;
        let flow = Flow::new(backend.clone(), &settings.model, key.named("weights"))?;
        let mut trainer = Trainer::new(flow, source.clone(), &settings.train, part(budget), key)
            .with_context(|| arguments.data.clone())?;
        if trainer.validation_due() {
            trainer.validate()?;
        }
        while !trainer.finished() {
            trainer.step()?;
            if trainer.validation_due() {
                trainer.validate()?;
            }
            if is_interrupted() {
                progress.end();
                return Err(interrupted("interrupted before the race was over: nothing is written"));
            }
        }
        let own = trainer.model().log_prob(trainer.validation_samples(), key.named("validation"))?;
        told.push(format!("{family} {:.4} ± {:.4}", own.mean(), own.mean_standard_error()));
        if best.as_ref().is_none_or(|(_, best)| own.compare(best).0 > 0.0) {
            best = Some((family, own));
        }
    }
    progress.end();
    let winner = best.map_or(Family::Residual, |(family, _)| family);
    say(format_args!("race, mean log p of the validation rows: {}; {winner} goes on", told.join(", ")));
    Ok(winner)
}
