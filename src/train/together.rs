//! One run on the processes of a group.
//!
//! Rank 0 leads: its trainer is used as if it were alone, and tells the others what it does (step, validate, another budget). The
//! others follow, so that whatever depends on a clock or on a person is decided once. They begin with the leader's state, whatever it
//! came from, so a run may go on with another number of processes.
//!
//! Invariant: after each step all ranks hold the same numbers, bit for bit those of one process with the same number of lanes
//! ([`TrainConfig::lanes`](super::TrainConfig::lanes)). Each rank computes its lanes of a gradient and its part of a validation; what
//! costs little (drawing a batch, the optimiser's step) all do alike, and every [`CHECK_EVERY`] steps they compare digests of their
//! parameters.

use std::sync::Arc;
use std::time::Duration;

use resflow_backend::Backend;

use super::{Budget, Source, Trainer};
use crate::checkpoint::Archive;
use crate::error::{Error, GroupError};
use crate::group::{Group, Team, collective};
use crate::registry::Registry;

/// Steps between comparisons of the parameters.
const CHECK_EVERY: u64 = 100;

/// What rank 0 does next, and the others with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Command {
    /// A step of a run that has taken so long.
    Step(Duration),
    Validate,
    Budget(Budget),
    /// Nothing more.
    End,
}

impl Command {
    fn to_bytes(self) -> Vec<u8> {
        let (kind, number) = match self {
            Self::End => (0, 0),
            Self::Step(elapsed) => (1, nanoseconds(elapsed)),
            Self::Validate => (2, 0),
            Self::Budget(Budget::Steps(steps)) => (3, steps),
            Self::Budget(Budget::Time(limit)) => (4, nanoseconds(limit)),
        };
        std::iter::once(kind).chain(number.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, GroupError> {
        let strange = || GroupError::Transport(format!("a message of {} bytes is no command", bytes.len()));
        let (kind, number) = bytes.split_first().ok_or_else(strange)?;
        let number = u64::from_le_bytes(number.try_into().map_err(|_| strange())?);
        Ok(match kind {
            0 => Self::End,
            1 => Self::Step(Duration::from_nanos(number)),
            2 => Self::Validate,
            3 => Self::Budget(Budget::Steps(number)),
            4 => Self::Budget(Budget::Time(Duration::from_nanos(number))),
            _ => return Err(strange()),
        })
    }
}

/// Five hundred years at most.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a rank's part in the sums of gradients has cost since it took part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// The bytes that it sent.
    pub bytes: u64,
    /// The time that it waited for sums when its own lanes had ended, with nothing else to do.
    pub waited: Duration,
}

/// Waits for the state of the run that rank 0 leads: what a rank behind it calls before [`Trainer::join`].
///
/// # Errors
/// Returns [`Error::Group`] if rank 0 ended before or did not answer, [`Error::Checkpoint`] for a state that is none.
pub fn await_run(group: &dyn Group) -> Result<Archive, Error> {
    Ok(Archive::from_bytes(&collective::broadcast(group, Vec::new())?)?)
}

impl<B: Backend> Trainer<B> {
    /// Leads a run, new or resumed, as rank 0 of a group whose other ranks [`join`](Self::join) it. From now on this trainer's
    /// steps and validations are made by all ranks together; the run ends for them when it is dropped or
    /// [`dismiss`](Self::dismiss)es them.
    ///
    /// # Errors
    /// Returns [`Error::Group`] if another rank cannot join, ended or did not answer, [`Error::Unregistered`] for a transform that
    /// does not say what it is, so that the others cannot make it, [`Error::Input`] on another rank than 0.
    pub fn lead(mut self, group: Arc<dyn Group>) -> Result<Self, Error> {
        if group.rank() != 0 {
            return Err(Error::Input(format!("rank {} cannot lead: rank 0 does", group.rank())));
        }
        self.set_team(group);
        let state = self.to_archive().and_then(|archive| Ok(archive.to_bytes()?));
        let state = self.unless_failed(state)?;
        if let Some(team) = self.team.clone() {
            collective::broadcast(team.group(), state)?;
        }
        self.begin_together()?;
        Ok(self)
    }

    /// Joins the run that rank 0 leads by its state ([`await_run`]), on the same data; [`follow`](Self::follow) works for it.
    ///
    /// # Errors
    /// Returns the errors of [`resume`](Self::resume), and [`Error::Group`] if another rank ended, did not answer or holds
    /// something else; the other ranks are told.
    pub fn join(
        backend: B,
        state: &Archive,
        source: impl Into<Source>,
        group: Arc<dyn Group>,
        registry: &Registry<B>,
    ) -> Result<Self, Error> {
        let joined = Self::resume_with(backend, state, source, registry);
        let mut trainer = joined.inspect_err(|error| group.abort(&error.to_string()))?;
        trainer.set_team(group);
        trainer.begin_together()?;
        Ok(trainer)
    }

    /// Does what rank 0 does until that has finished: what every other rank calls once.
    ///
    /// # Errors
    /// Returns the errors of [`step`](Self::step) and [`validate`](Self::validate), and [`Error::Group`] if rank 0 ended
    /// otherwise or did not answer within the group's time limit.
    pub fn follow(&mut self) -> Result<(), Error> {
        let Some(team) = self.team.clone() else { return Ok(()) };
        loop {
            let message = self.unless_failed(collective::broadcast(team.group(), Vec::new()).map_err(Error::from))?;
            let done = match Command::from_bytes(&message)? {
                Command::End => return Ok(()),
                Command::Step(elapsed) => {
                    self.elapsed = elapsed;
                    self.make_step().map(|_| ())
                }
                Command::Validate => self.make_validation().map(|_| ()),
                Command::Budget(budget) => {
                    self.take_budget(budget);
                    Ok(())
                }
            };
            self.unless_failed(done)?;
        }
    }

    /// Lets the other ranks of the group end: they are not waited for, and this trainer goes on alone.
    ///
    /// # Errors
    /// Returns [`Error::Group`] if they cannot be told.
    pub fn dismiss(&mut self) -> Result<(), Error> {
        let Some(team) = self.team.take() else { return Ok(()) };
        self.derive();
        if team.dismiss() {
            collective::broadcast(team.group(), Command::End.to_bytes())?;
        }
        Ok(())
    }

    /// What the sums over the ranks have cost this one, if there is a group.
    pub fn exchange(&self) -> Option<Exchange> {
        self.team.as_ref().map(|team| {
            let (bytes, waited) = team.exchanged();
            Exchange { bytes, waited }
        })
    }

    /// Tells the other ranks of the group, if there is one, that this one ends, and why.
    pub fn abandon(&self, cause: &str) {
        if let Some(team) = &self.team {
            team.abort(cause);
        }
    }

    /// Tells the other ranks what this one is about to do.
    pub(super) fn lead_to(&self, command: Command) -> Result<(), Error> {
        let Some(team) = &self.team else { return Ok(()) };
        if team.group().rank() != 0 {
            return Err(team.not_leading());
        }
        let told = collective::broadcast(team.group(), command.to_bytes());
        self.unless_failed(told.map(|_| ()).map_err(Error::from))
    }

    /// Tells the other ranks if this one cannot go on.
    pub(super) fn unless_failed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        match &self.team {
            Some(team) => team.unless_failed(result),
            None => result,
        }
    }

    /// Compares the parameters of all ranks now and then.
    pub(super) fn check_alike(&self) -> Result<(), Error> {
        match &self.team {
            Some(team) if self.step.is_multiple_of(CHECK_EVERY) => {
                let what = format!("after step {} the parameters differ", self.step);
                team.check_same(self.flow.backend(), &what, self.optimiser.parameters())
            }
            _ => Ok(()),
        }
    }

    fn set_team(&mut self, group: Arc<dyn Group>) {
        self.team = Some(Arc::new(Team::new(group, self.flow.trained_shapes())));
        self.derive();
    }

    fn begin_together(&self) -> Result<(), Error> {
        let Some(team) = &self.team else { return Ok(()) };
        let backend = self.flow.backend();
        self.unless_failed(team.check_devices(backend))?;
        self.unless_failed(team.check_same(backend, "the parameters differ", self.optimiser.parameters()))
    }
}

impl<B: Backend> Drop for Trainer<B> {
    fn drop(&mut self) {
        let Some(team) = &self.team else { return };
        if std::thread::panicking() {
            team.abort("it panicked");
        } else if team.dismiss() {
            // whoever does not hear it has ended
            let _ = collective::broadcast(team.group(), Command::End.to_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood() {
        let time = Duration::from_millis(12_345);
        let budgets = [Budget::Steps(77), Budget::Time(time)].map(Command::Budget);
        for command in budgets.into_iter().chain([Command::End, Command::Validate, Command::Step(time)]) {
            assert_eq!(Command::from_bytes(&command.to_bytes()), Ok(command));
        }
        for bytes in [&[][..], &[1], &[9, 0, 0, 0, 0, 0, 0, 0, 0], &[1; 10]] {
            assert!(Command::from_bytes(bytes).is_err());
        }
    }
}
