//! The processes that a command was started in by `mpirun` or `srun`: rank 0 reads, writes and talks as if it were alone, the others
//! follow it in silence. Without the feature `mpi` a process is always alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use resflow::backend::Backend;
use resflow::flow::{Flow, PreparedFlow};
use resflow::group::Group;

#[cfg(feature = "mpi")]
pub(crate) use together::{enter, group, leave};

/// The longest that a process waits for another, unless it is asked for: longer than what one does while the others wait, such as
/// reading a table, fitting a mixture to it and writing a checkpoint.
#[cfg(feature = "mpi")]
const LONGEST: Duration = Duration::from_secs(600);

/// The rank behind rank 0 that this process is, with its group.
pub(crate) fn following() -> Option<Arc<dyn Group>> {
    group().filter(|group| group.rank() > 0)
}

/// Prepares a flow whose log p and latents all processes compute together, each of a part of the samples; rank 0 writes them.
pub(crate) fn prepare<B: Backend>(flow: &Flow<B>) -> PreparedFlow<B> {
    match group() {
        Some(group) => flow.prepare().with_group(group),
        None => flow.prepare(),
    }
}

#[cfg(not(feature = "mpi"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it may fail")]
pub(crate) fn enter(_: Option<Duration>) -> Result<()> {
    Ok(())
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn group() -> Option<Arc<dyn Group>> {
    None
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn leave(result: Result<()>) -> Result<()> {
    result
}

#[cfg(feature = "mpi")]
mod together {
    use std::sync::OnceLock;

    use anyhow::Context as _;
    use resflow::group::collective::{check_same, digest_of_bytes};
    use resflow_mpi::{Processes, is_started_together};

    use super::{Arc, Duration, Group, LONGEST, Result};
    use crate::failure::{be_rank, is_interruption};

    static PROCESSES: OnceLock<Arc<Processes>> = OnceLock::new();

    /// Joins the processes that were started together with this one, if there are any. All must be the same program, on processors
    /// with the same instructions, since results would differ otherwise.
    pub(crate) fn enter(limit: Option<Duration>) -> Result<()> {
        if !is_started_together() {
            return Ok(());
        }
        let processes = Arc::new(Processes::start(limit.unwrap_or(LONGEST))?);
        if processes.size() == 1 {
            // nobody to wait for: MPI ends with the process
            return Ok(processes.finish()?);
        }
        be_rank(processes.rank());
        let processes = PROCESSES.get_or_init(|| processes);
        let program = std::env::current_exe().and_then(std::fs::read).context("the program's own file")?;
        let program = format!("{} {:016x}", env!("CARGO_PKG_VERSION"), digest_of_bytes(&program));
        check_same(&**processes, "the programs differ", program.as_bytes())?;
        check_same(&**processes, "the processors' instructions differ", instructions().as_bytes())?;
        let command = std::env::args().collect::<Vec<_>>().join("\n");
        check_same(&**processes, "the commands differ", command.as_bytes())?;
        Ok(())
    }

    /// What kernels are chosen by.
    fn instructions() -> String {
        #[cfg(target_arch = "x86_64")]
        let found = [
            ("fma", is_x86_feature_detected!("fma")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let found: [(&str, bool); 0] = [];
        let found = found.into_iter().filter(|(_, found)| *found).map(|(name, _)| name);
        std::iter::once(std::env::consts::ARCH).chain(found).collect::<Vec<_>>().join(" ")
    }

    /// The group of processes that this one is in.
    pub(crate) fn group() -> Option<Arc<dyn Group>> {
        PROCESSES.get().map(|processes| Arc::clone(processes) as Arc<dyn Group>)
    }

    /// Ends with the others: after work that was done together, or after telling them why this process cannot go on.
    pub(crate) fn leave(result: Result<()>) -> Result<()> {
        let Some(processes) = PROCESSES.get() else { return result };
        match result {
            Ok(()) => Ok(processes.finish()?),
            Err(error) if is_interruption(&error) => {
                processes.finish()?;
                Err(error)
            }
            Err(error) => {
                processes.abort(&format!("{error:#}"));
                Err(error)
            }
        }
    }
}
