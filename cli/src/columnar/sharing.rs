//! A temporary file that the processes of a machine write together, each its part, and then read.
//!
//! Each process makes a file and tells the others its path and its identity; a process takes the file of the first rank that it sees under
//! that path with that identity, since the system was started. So nobody needs to know which processes share a disk.

use std::fs::File;
use std::path::Path;

use resflow::data::DataError;
use resflow::error::Error;
use resflow::group::{Group, collective};
use tempfile::NamedTempFile;

/// The file of this process, and the one that it writes its part of.
pub(super) struct SharedFile {
    own: NamedTempFile,
    /// None if it is its own.
    other: Option<(String, File)>,
    /// The place of this process among those that write the file, and the number of these.
    place: (usize, usize),
}

impl SharedFile {
    /// Makes a file for the processes of a group that can see it; all ranks call it.
    pub(super) fn create(group: Option<&dyn Group>) -> Result<Self, Error> {
        let own = NamedTempFile::new().map_err(DataError::from)?;
        let Some(group) = group else { return Ok(Self { own, other: None, place: (0, 1) }) };
        let all = collective::gather(group, description(own.path()).into_bytes())?;
        let is_here = |told: &Vec<u8>| {
            let told = String::from_utf8_lossy(told);
            let path = told.split_once('\n').map_or("", |(path, _)| path);
            !path.is_empty() && description(Path::new(path)) == told
        };
        let rank = group.rank();
        let first = all.iter().position(is_here).unwrap_or(rank);
        let firsts = collective::gather(group, (first as u64).to_le_bytes().to_vec())?;
        let sharing: Vec<usize> =
            (0..group.size()).filter(|&other| *firsts[other] == (first as u64).to_le_bytes()).collect();
        let place = (sharing.iter().position(|&other| other == rank).unwrap_or(0), sharing.len());
        let other = if first == rank {
            None
        } else {
            let told = String::from_utf8_lossy(&all[first]);
            let path = told.split_once('\n').map_or("", |(path, _)| path).to_owned();
            let file = File::options().read(true).write(true).open(&path).map_err(DataError::from)?;
            Some((path, file))
        };
        Ok(Self { own, other, place })
    }

    /// The place of this process among those that write the file, from 0, and the number of these.
    pub(super) fn place(&self) -> (usize, usize) {
        self.place
    }

    pub(super) fn file(&mut self) -> &mut File {
        match &mut self.other {
            Some((_, file)) => file,
            None => self.own.as_file_mut(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match &self.other {
            Some((path, _)) => Path::new(path),
            None => self.own.path(),
        }
    }

    /// The process's own file, which may be the one that all write.
    pub(super) fn into_own(self) -> NamedTempFile {
        self.own
    }
}

/// A path behind which there is a file, with what tells it from a file of the same path elsewhere; nothing where no one can tell.
#[cfg(target_os = "linux")]
fn description(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match (path.to_str(), std::fs::metadata(path)) {
        (Some(path), Ok(file)) if !boot.is_empty() && !path.contains('\n') => {
            format!("{path}\n{}:{} {}", file.dev(), file.ino(), boot.trim())
        }
        _ => String::new(),
    }
}

#[cfg(not(target_os = "linux"))]
fn description(_: &Path) -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use resflow::group::Threads;

    #[test]
    fn those_who_see_a_file_write_it_together() {
        let ranks = Threads::new(3, std::time::Duration::from_secs(20));
        let found: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = ranks
                .iter()
                .map(|rank| {
                    scope.spawn(move || {
                        let shared = SharedFile::create(Some(rank)).expect("a file");
                        let found = (shared.path().to_owned(), shared.place());
                        collective::wait_for_all(rank).expect("all");
                        drop(shared);
                        found
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        });
        let together = cfg!(target_os = "linux");
        for (rank, (path, place)) in found.iter().enumerate() {
            assert_eq!(*path == found[0].0, together || rank == 0);
            assert_eq!(*place, if together { (rank, 3) } else { (0, 1) });
            assert!(!path.exists());
        }
        let alone = SharedFile::create(None).expect("a file");
        assert!(alone.path().exists() && alone.place() == (0, 1));
    }
}
