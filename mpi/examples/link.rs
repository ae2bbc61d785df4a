//! The latency α and the bandwidth 1/β between rank 0 and each other rank, by which a run on these processes can be foretold:
//!
//! ```sh
//! cargo build --workspace --features resflow-mpi/system --example link
//! mpirun -n 2 target/debug/examples/link
//! ```
//!
//! A message of n bytes takes α + nβ: half of the time that it is on its way there and back. Of many tries the fastest and the median
//! are printed, of 9 bytes (a command to a rank) and of 262,144 (a piece of a sum in single precision).

use std::time::{Duration, Instant};

use resflow::error::GroupError;
use resflow::group::{Group, collective};
use resflow_mpi::Processes;

const TRIES: usize = 1000;
const SIZES: [usize; 2] = [9, 1 << 18];

fn main() -> Result<(), GroupError> {
    let group = Processes::start(Duration::from_secs(60))?;
    if group.rank() == 0 && group.size() < 2 {
        println!("start at least two processes: mpirun -n 2 …");
    }
    for other in 1..group.size() {
        for bytes in SIZES {
            let found = there_and_back(&group, other, bytes)?;
            if let Some([fastest, median]) = found {
                println!("rank 0 and {other}, {bytes} bytes: {:.1} µs, median {:.1} µs", 1e6 * fastest, 1e6 * median);
            }
        }
    }
    group.finish()
}

/// Seconds of one way: the fastest and the median, on rank 0.
fn there_and_back(group: &Processes, other: usize, bytes: usize) -> Result<Option<[f64; 2]>, GroupError> {
    collective::wait_for_all(group)?;
    let mut seconds = Vec::with_capacity(TRIES);
    for _ in 0..TRIES {
        if group.rank() == 0 {
            let start = Instant::now();
            group.send(other, vec![7; bytes])?;
            group.receive(other)?;
            seconds.push(start.elapsed().as_secs_f64() / 2.0);
        } else if group.rank() == other {
            let message = group.receive(0)?;
            group.send(0, message)?;
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds.first().map(|fastest| [*fastest, seconds[TRIES / 2]]))
}
