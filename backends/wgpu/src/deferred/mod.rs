//! Small operations that wait until somebody asks for their result, and then run together.
//!
//! A launch costs more than the arithmetic of a small tensor. So elementwise operations, reductions, copies and power iterations
//! of small tensors are written down ([`Job`]); a launch or a download that needs one of them runs all that it depends on,
//! level by level, one launch a level and kind. Elementwise operations on the same numbers follow each other within one
//! thread ([`program`]); what looks at other elements begins a level.
//!
//! Results are regions of one buffer ([`Arena`](crate::arena::Arena)). A job holds its operands and its result, so that no memory
//! is used again before it has run. Which operations run together does not change what they compute.

mod conv_power;
mod power;
mod program;
mod reduction;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard};

#[cfg(test)]
pub(crate) use self::{conv_power::ConvolutionPowers, power::Powers, program::Program, reduction::Reductions};
use resflow_backend::Shape;

use crate::device::Gpu;
use crate::kernel::{Groups, Kernel};
use crate::memory::Storage;
use crate::tensor::Tensor;

/// The elements of the largest tensor that an operation on is deferred.
pub(crate) const LARGEST: usize = 1 << 16;
/// Those of the largest tensor that copies are joined to.
pub(crate) const LARGEST_COPY: usize = 1 << 20;
/// Jobs that may wait.
const MOST: usize = 4096;
/// Tensors outside of the arena that a launch of jobs reads.
const OUTSIDE: usize = 5;
/// Tables that are kept.
const TABLES: usize = 512;

/// What waits, and tables of jobs that ran before.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    jobs: Vec<Job>,
    tables: HashMap<Vec<u32>, Tensor>,
}

/// The kinds of jobs, each with its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Program,
    Reduction,
    Power,
    ConvolutionPower,
}

/// An operand: a tensor, and whether element i of the result asks for its element i alone.
#[derive(Debug)]
struct Read {
    tensor: Tensor,
    same: bool,
}

/// An operation that waits.
#[derive(Debug)]
struct Job {
    kind: Kind,
    /// Elements, or items, of the result.
    n: usize,
    reads: Vec<Read>,
    outs: Vec<Tensor>,
    /// What the kernel is told. The places of operands are in it; which tensors they are in is added.
    words: Vec<u32>,
}

/// What a table says of a job: its words, with the numbers of the tensors that it reads in the first.
fn told(job: &Job, outside: &[u64]) -> Vec<u32> {
    let mut words = job.words.clone();
    for (k, read) in job.reads.iter().enumerate() {
        let number = outside.iter().position(|id| *id == read.tensor.storage().id()).map_or(0, |at| at as u32 + 1);
        words[0] |= number << (8 + 4 * k);
    }
    words
}

fn key(x: &Tensor) -> usize {
    std::ptr::from_ref::<Storage>(x.storage()) as usize
}

/// Jobs of one level that a thread runs one after the other.
#[derive(Debug)]
struct Segment {
    level: usize,
    jobs: Vec<usize>,
    outside: Vec<u64>,
}

/// Who makes a tensor.
#[derive(Debug, Clone, Copy)]
struct Maker {
    level: usize,
    /// Its segment, if it is a program's, alone in making the tensor.
    segment: Option<usize>,
    place: usize,
    n: usize,
}

impl Gpu {
    /// Memory for the result of a job, in the arena; `None` where a job cannot be deferred.
    fn region(&self, operands: &[&Tensor], shape: Shape) -> Option<Tensor> {
        let sound = operands.iter().all(|x| x.fault().is_none() && self.is_own(x));
        if !sound || shape.elements() == 0 {
            return None;
        }
        let region = self.arena()?.take(shape.elements())?;
        Some(Tensor::in_arena(Storage::in_arena(self.pool(), region), shape))
    }

    fn defer(&self, job: Job) {
        let mut pending = self.pending();
        // not before: another thread may be running a part of the same result, and says that it is done
        job.outs.iter().for_each(|out| out.storage().set_pending(true));
        pending.jobs.push(job);
        if pending.jobs.len() >= MOST {
            self.run_pending(pending, None);
        }
    }

    /// Runs what these tensors wait for.
    pub(crate) fn settle(&self, tensors: &[&Tensor]) {
        if tensors.iter().any(|x| x.storage().is_pending()) {
            self.run_pending(self.pending(), Some(tensors));
        }
    }

    /// Runs everything that waits.
    pub(crate) fn settle_all(&self) {
        self.run_pending(self.pending(), None);
    }

    /// Runs the jobs that some tensors wait for, or all whose results anybody could ask for.
    fn run_pending(&self, mut pending: MutexGuard<'_, Pending>, wanted: Option<&[&Tensor]>) {
        let jobs = std::mem::take(&mut pending.jobs);
        let mut runs = chosen(&jobs, wanted);
        // power iterations are made of all weights at once, and what comes of them is prepared for all, too
        let is_power = |job: &Job| matches!(job.kind, Kind::Power | Kind::ConvolutionPower);
        let mut all = wanted.is_none();
        if !all && jobs.iter().zip(&runs).any(|(job, run)| *run && is_power(job)) {
            runs = chosen(&jobs, None);
            all = true;
        }
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for (job, run) in jobs.into_iter().zip(runs) {
            if run {
                now.push(job);
            } else if !all {
                later.push(job);
            }
        }
        pending.jobs = later;
        let segments = segments(&now);
        let levels = segments.iter().map(|s| s.level + 1).max().unwrap_or(0);
        for level in 0..levels {
            for kind in [Kind::Program, Kind::Reduction, Kind::Power, Kind::ConvolutionPower] {
                let of_kind = |s: &&Segment| s.level == level && now[s.jobs[0]].kind == kind;
                let mut left: Vec<&Segment> = segments.iter().filter(of_kind).collect();
                while !left.is_empty() {
                    let mut outside: Vec<u64> = Vec::new();
                    let (mut together, mut others) = (Vec::new(), Vec::new());
                    for segment in left {
                        let joined = union(&outside, &segment.outside);
                        if joined.len() <= OUTSIDE {
                            outside = joined;
                            together.push(segment);
                        } else {
                            others.push(segment);
                        }
                    }
                    self.run_together(&mut pending, kind, &now, &together, &outside);
                    left = others;
                }
            }
        }
        for job in &now {
            job.outs.iter().for_each(|out| out.storage().set_pending(false));
        }
    }

    /// A table on the device, kept: the same ones are asked for again.
    pub(crate) fn kept_table(&self, words: Vec<u32>) -> Tensor {
        self.table_in(&mut self.pending(), words)
    }

    fn table_in(&self, pending: &mut Pending, words: Vec<u32>) -> Tensor {
        if let Some(known) = pending.tables.get(&words) {
            return known.clone();
        }
        if pending.tables.len() >= TABLES {
            pending.tables.clear();
        }
        let table = self.upload_kept(bytemuck::cast_slice(&words), [words.len()].into());
        if table.fault().is_none() {
            pending.tables.insert(words, table.clone());
        }
        table
    }

    /// One launch of jobs that do not depend on each other, or within segments only.
    fn run_together(&self, pending: &mut Pending, kind: Kind, jobs: &[Job], segments: &[&Segment], outside: &[u64]) {
        let lists: Vec<Vec<&Job>> = segments.iter().map(|s| s.jobs.iter().map(|&j| &jobs[j]).collect()).collect();
        let (kernel, words, groups): (&dyn Kernel, Vec<u32>, Groups) = match kind {
            Kind::Program => program::table(&lists, outside),
            Kind::Reduction => reduction::table(&lists, outside),
            Kind::Power => power::table(&lists, outside),
            Kind::ConvolutionPower => conv_power::table(&lists, outside),
        };
        let table = self.table_in(pending, words);
        let Some(arena) = self.arena_tensor() else { return };
        let nothing = self.empty([0].into(), None);
        let all = || lists.iter().flatten();
        let find = |id: &u64| all().flat_map(|job| &job.reads).find(|r| r.tensor.storage().id() == *id);
        let mut reads = vec![&table];
        reads.extend(outside.iter().filter_map(find).map(|read| &read.tensor));
        reads.resize(1 + OUTSIDE, &nothing);
        self.record(kernel, &reads, &[&arena], &[], groups);
        if let Some(fault) = arena.fault() {
            all().flat_map(|job| &job.outs).for_each(|out| out.storage().poison(fault));
        }
    }
}

/// Which jobs some tensors wait for; without tensors those whose results anybody could ask for.
fn chosen(jobs: &[Job], wanted: Option<&[&Tensor]>) -> Vec<bool> {
    let mut asked: HashSet<usize> = wanted.unwrap_or_default().iter().map(|x| key(x)).collect();
    let mut runs = vec![false; jobs.len()];
    // makers stand before those who read
    for (run, job) in runs.iter_mut().zip(jobs).rev() {
        let held = |out: &Tensor| wanted.is_none() && Arc::strong_count(out.handle()) > 1;
        *run = job.outs.iter().any(|out| asked.contains(&key(out)) || held(out));
        if *run {
            asked.extend(job.reads.iter().map(|read| key(&read.tensor)));
        }
    }
    runs
}

fn union(a: &[u64], b: &[u64]) -> Vec<u64> {
    let mut all = a.to_vec();
    all.extend(b.iter().filter(|id| !a.contains(id)));
    all
}

/// Jobs with their levels, those that a thread runs one after the other together.
fn segments(jobs: &[Job]) -> Vec<Segment> {
    let mut makers: HashMap<usize, Maker> = HashMap::new();
    let mut segments: Vec<Segment> = Vec::new();
    for (j, job) in jobs.iter().enumerate() {
        let mut outside = Vec::new();
        for read in job.reads.iter().filter(|read| !read.tensor.storage().is_in_arena()) {
            outside = union(&outside, &[read.tensor.storage().id()]);
        }
        // the makers of what is read at the same elements, and the level behind all others
        let mut level = 0;
        let mut near: Vec<Maker> = Vec::new();
        for read in &job.reads {
            let Some(maker) = makers.get(&key(&read.tensor)) else { continue };
            let follows = job.kind == Kind::Program
                && read.same
                && maker.segment.is_some()
                && maker.n == job.n
                && maker.place == read.tensor.offset();
            if follows {
                near.push(*maker);
            } else {
                level = level.max(maker.level + 1);
            }
        }
        level = near.iter().map(|m| m.level).fold(level, usize::max);
        let joined: Vec<usize> = {
            let mut joined: Vec<usize> = near.iter().filter(|m| m.level == level).filter_map(|m| m.segment).collect();
            joined.sort_unstable();
            joined.dedup();
            joined
        };
        let united = joined.iter().fold(outside.clone(), |all, &s| union(&all, &segments[s].outside));
        let segment = match joined.split_first() {
            Some((&first, others)) if united.len() <= OUTSIDE => {
                for &other in others {
                    let moved = std::mem::take(&mut segments[other].jobs);
                    segments[first].jobs.extend(moved);
                    makers.values_mut().filter(|m| m.segment == Some(other)).for_each(|m| m.segment = Some(first));
                }
                segments[first].jobs.push(j);
                segments[first].outside = united;
                first
            }
            found => {
                // too many tensors for one launch: behind the others
                level += usize::from(found.is_some());
                segments.push(Segment { level, jobs: vec![j], outside });
                segments.len() - 1
            }
        };
        for out in &job.outs {
            let alone = job.kind == Kind::Program && !job.is_copy();
            let maker = Maker { level, segment: alone.then_some(segment), place: out.offset(), n: job.n };
            let known = makers.entry(key(out)).or_insert(maker);
            known.level = known.level.max(level);
        }
    }
    segments.retain(|s| !s.jobs.is_empty());
    for segment in &mut segments {
        segment.jobs.sort_unstable();
    }
    segments
}
