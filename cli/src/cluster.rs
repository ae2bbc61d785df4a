//! The processes that a command was started in by `mpirun` or `srun`: rank 0 reads, writes and talks as if it were alone, the others
//! follow it in silence. Without the feature `mpi` a process is always alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result};
use resflow::backend::Backend;
use resflow::flow::{Flow, PreparedFlow};
use resflow::group::Group;
use resflow::group::collective::check_same;

#[cfg(feature = "mpi")]
pub(crate) use together::{abort, choose_adapter, enter, finish, group};

/// The longest that a process waits for another, unless it is asked for: longer than what one does while the others wait, such as
/// reading a table, fitting a mixture to it and writing a checkpoint.
#[cfg(feature = "mpi")]
const LONGEST: Duration = Duration::from_secs(600);

/// The rank behind rank 0 that this process is, with its group.
pub(crate) fn following() -> Option<Arc<dyn Group>> {
    group().filter(|group| group.rank() > 0)
}

/// Prepares a flow whose log p, latents and samples all processes compute together, each a part of them; rank 0 writes them. All
/// processes compute on the same kind of device, since results would differ otherwise.
pub(crate) fn prepare<B: Backend>(flow: &Flow<B>) -> Result<PreparedFlow<B>> {
    together(flow.prepare())
}

/// Prepares a flow that each process computes with alone, on the same kind of device.
pub(crate) fn prepare_alone<B: Backend>(flow: &Flow<B>) -> Result<PreparedFlow<B>> {
    alone(flow.prepare())
}

/// Makes of a flow that is prepared what [`prepare`] makes.
pub(crate) fn together<B: Backend>(prepared: PreparedFlow<B>) -> Result<PreparedFlow<B>> {
    let prepared = alone(prepared)?;
    Ok(match group() {
        Some(group) => prepared.with_group(group),
        None => prepared,
    })
}

/// Makes of a flow that is prepared what [`prepare_alone`] makes.
pub(crate) fn alone<B: Backend>(prepared: PreparedFlow<B>) -> Result<PreparedFlow<B>> {
    if let Some(group) = group() {
        check_same(&*group, "the devices differ", prepared.backend().name().as_bytes())?;
    }
    Ok(prepared)
}

/// What kernels are chosen by.
pub(crate) fn instructions() -> String {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("fma", is_x86_feature_detected!("fma")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let found: [(&str, bool); 0] = [];
    let found = found.into_iter().filter(|(_, found)| *found).map(|(name, _)| name);
    std::iter::once(std::env::consts::ARCH).chain(found).collect::<Vec<_>>().join(" ")
}

#[cfg(not(feature = "mpi"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it may fail")]
pub(crate) fn enter(_: Option<Duration>) -> Result<()> {
    Ok(())
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn choose_adapter(asked: Option<&str>) -> Option<String> {
    asked.map(str::to_owned)
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn group() -> Option<Arc<dyn Group>> {
    None
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn finish(result: Result<()>) -> Result<()> {
    result
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn abort(_: &Error) {}

#[cfg(feature = "mpi")]
mod together {
    use std::sync::OnceLock;

    use anyhow::Context as _;
    use resflow::device::{Adapter, adapters};
    use resflow::group::collective::digest_of_bytes;
    use resflow_mpi::{Processes, is_started_together};

    use super::{Arc, Duration, Error, Group, LONGEST, Result, check_same, instructions};
    use crate::failure::{be_rank, is_interruption};

    /// The environment variable that names a GPU.
    const ADAPTER_VARIABLE: &str = "RESFLOW_ADAPTER";

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

    /// The GPU of this process: of those that are meant (whose names contain what was asked for, or else the best kind), the
    /// processes of a machine take one each, and begin again where there are more processes than GPUs.
    pub(crate) fn choose_adapter(asked: Option<&str>) -> Option<String> {
        let asked = asked.map(str::to_owned);
        let Some(processes) = PROCESSES.get() else { return asked };
        let asked = asked.or_else(|| std::env::var(ADAPTER_VARIABLE).ok()).filter(|name| !name.trim().is_empty());
        let all = adapters().unwrap_or_default();
        let is_meant = |adapter: &&Adapter| match &asked {
            // one by its number is meant by all
            Some(name) if name.trim().parse::<usize>().is_ok() => false,
            Some(name) => adapter.name.to_lowercase().contains(&name.trim().to_lowercase()),
            None => all.iter().any(|best| best.best && best.kind == adapter.kind),
        };
        let meant: Vec<_> = all.iter().filter(is_meant).collect();
        match processes.local_rank().checked_rem(meant.len()) {
            Some(own) => Some(meant[own].index.to_string()),
            None => asked,
        }
    }

    /// The group of processes that this one is in.
    pub(crate) fn group() -> Option<Arc<dyn Group>> {
        PROCESSES.get().map(|processes| Arc::clone(processes) as Arc<dyn Group>)
    }

    /// Ends with the others after work that was done together, or was interrupted together.
    pub(crate) fn finish(result: Result<()>) -> Result<()> {
        let Some(processes) = PROCESSES.get() else { return result };
        if result.as_ref().err().is_none_or(is_interruption) {
            processes.finish()?;
        }
        result
    }

    /// Tells the others why this process cannot go on.
    pub(crate) fn abort(error: &Error) {
        if let Some(processes) = PROCESSES.get()
            && !is_interruption(error)
        {
            processes.abort(&format!("{error:#}"));
        }
    }
}
