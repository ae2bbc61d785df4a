//! Power iterations on many matrices at once, a workgroup each.

use std::fmt::Write as _;

use super::program::{FETCH, reads};
use super::{Job, Kind, Read, told};
use crate::device::Gpu;
use crate::kernel::{Groups, Kernel, Source};
use crate::tensor::Tensor;

/// The kernel that goes through a table of power iterations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Powers;

impl Kernel for Powers {
    fn source(&self) -> Source {
        let one = crate::power::source();
        // what one launch is told by its numbers, many are told by the table
        let body = one
            .body
            .replace("p.rows", "job.rows")
            .replace("p.columns", "job.columns")
            .replace("p.count", "job.count")
            .replace("w[p.w + ", "matrix[job.w + ")
            .replace("= u[p.u + r]", "= fetch(job.which >> 12u, job.u + r)")
            .replace("= v[p.v + c]", "= fetch(job.which >> 16u, job.v + c)")
            .replace("u_after[r]", "arena[job.u_after + r]")
            .replace("v_after[c]", "arena[job.v_after + c]")
            .replace("sigma[0]", "arena[job.sigma]");
        let body = matrix_by_fetch(&body).replace(
            "  if (item >= p.n) { return; }\n",
            "  if (item >= table[p.table]) { return; }
  let at = p.table + 1u + 9u * item;
  job = Job(table[at], table[at + 1u], table[at + 2u], table[at + 3u], table[at + 4u], table[at + 5u], table[at + 6u],
    table[at + 7u] & 65535u, table[at + 7u] >> 16u, table[at + 8u]);
",
        );
        let job = "struct Job {
  which: u32, w: u32, u: u32, v: u32, u_after: u32, v_after: u32, sigma: u32, rows: u32, columns: u32, count: u32,
}
var<private> job: Job;
";
        Source {
            reads: reads(),
            writes: vec!["arena"],
            body: FETCH.to_owned() + job + &body,
            shared: one.shared,
            ..Source::default()
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self]
    }
}

/// Turns `matrix[…]` into calls.
fn matrix_by_fetch(text: &str) -> String {
    let mut parts = text.split("matrix[");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(']').unwrap_or(part.len());
        let _ = write!(all, "fetch(job.which >> 8u, {}){}", &part[..end], &part[end + 1..]);
    }
    all
}

/// The kernel, the table and the workgroups of such jobs.
pub(super) fn table(lists: &[Vec<&Job>], outside: &[u64]) -> (&'static dyn Kernel, Vec<u32>, Groups) {
    let jobs: Vec<&Job> = lists.iter().flatten().copied().collect();
    let mut words = vec![jobs.len() as u32];
    for job in &jobs {
        words.extend(told(job, outside));
    }
    (&Powers, words, crate::kernel::groups(jobs.len(), 1))
}

impl Gpu {
    /// u, v and σ, or `None` where it is not deferred.
    pub(crate) fn defer_power(&self, [w, u, v]: [&Tensor; 3], count: usize) -> Option<[Tensor; 3]> {
        let shape = w.shape();
        let (rows, columns) = (shape[0], shape[1]);
        let operands = [w, u, v];
        let outs = [rows, columns, 1].map(|len| self.region(&operands, [len].into()));
        let [Some(u_after), Some(v_after), Some(sigma)] = outs else { return None };
        let mut words = vec![0];
        words.extend([w, u, v, &u_after, &v_after, &sigma].map(|x| x.offset() as u32));
        words.extend([(rows | columns << 16) as u32, count as u32]);
        let reads = operands.map(|x| Read { tensor: x.clone(), same: false });
        let outs = vec![u_after.clone(), v_after.clone(), sigma.clone()];
        self.defer(Job { kind: Kind::Power, n: 1, reads: reads.into(), outs, words });
        Some([u_after, v_after, sigma])
    }
}
