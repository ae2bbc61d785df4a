//! What goes wrong, and the exit code that says whose turn it is.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Error;

/// The command or its configuration is wrong: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The user stopped the run: exit code 130, the shell's word for it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Interrupted(String);

/// An error of the one who typed the command.
pub(crate) fn usage(problem: impl Display) -> Error {
    Usage(problem.to_string()).into()
}

/// The end of a run that was stopped from outside.
pub(crate) fn interrupted(message: impl Display) -> Error {
    Interrupted(message.to_string()).into()
}

/// The number of this process among others that were started with it.
static RANK: OnceLock<usize> = OnceLock::new();

/// Makes this process one of several, of which only rank 0 talks.
#[cfg(feature = "mpi")]
pub(crate) fn be_rank(rank: usize) {
    let _ = RANK.set(rank);
}

/// Whether another process talks for this one.
pub(crate) fn is_silent() -> bool {
    RANK.get().is_some_and(|rank| *rank > 0)
}

/// Whether a run was stopped from outside.
pub(crate) fn is_interruption(error: &Error) -> bool {
    error.is::<Interrupted>()
}

/// A line on standard error. That it cannot be written is no reason to fail.
pub(crate) fn say(line: impl Display) {
    if !is_silent() {
        write_line(line);
    }
}

/// One write: `write!` to standard error writes part by part, and lines of processes that share
/// it would mix.
fn write_line(line: impl Display) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// A warning on standard error.
pub(crate) fn warn(warning: impl Display) {
    say(format_args!("warning: {warning}"));
}

/// Says what failed and chooses the exit code.
pub(crate) fn report(error: &Error) -> ExitCode {
    // a reader that has seen enough, such as `head`, is no failure
    let closed = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return ExitCode::SUCCESS;
    }
    if is_interruption(error) {
        say(error);
        return ExitCode::from(130);
    }
    // many errors of the library say their cause themselves
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    let rank = RANK.get().map_or(String::new(), |rank| format!("rank {rank}: "));
    write_line(format_args!("{rank}error: {message}"));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}
