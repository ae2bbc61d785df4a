//! A group at work on one flow: what its ranks share, and what they add up.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use resflow_backend::{Backend, Shape};

use super::collective::Summands;
use super::{Group, Outbox, collective};
use crate::error::{Error, GroupError};
use crate::module::Grad;

/// The notes that go along with a gradient before the counts of lanes that have a gradient of a tensor: products and
/// evaluations at most, samples that were not solved in all.
const NOTES: usize = 3;

/// A group, and the shapes of a flow's trained tensors in the order of a visit.
#[derive(Debug)]
pub(crate) struct Team {
    group: Arc<dyn Group>,
    shapes: Vec<Shape>,
    /// Those of gradients before they are finished.
    unfinished: OnceLock<Vec<Shape>>,
    /// Whether the others know that rank 0 wants nothing more of them.
    dismissed: AtomicBool,
    /// The bytes that were sent for sums, and the nanoseconds that were waited for them after the lanes had ended.
    bytes: AtomicU64,
    waited: AtomicU64,
}

/// A lane's gradients and what is added up with them.
pub(crate) struct LaneSum<B: Backend> {
    pub(crate) gradients: Vec<Grad<B>>,
    /// The loss, `[1]`, and what else a lane sums, of these lengths on all ranks.
    pub(crate) sums: Vec<Grad<B>>,
    /// Products at most, evaluations at most, samples that were not solved.
    pub(crate) notes: [usize; NOTES],
}

impl Team {
    pub(crate) fn new(group: Arc<dyn Group>, shapes: Vec<Shape>) -> Self {
        Self {
            group,
            shapes,
            unfinished: OnceLock::new(),
            dismissed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

    pub(crate) fn group(&self) -> &dyn Group {
        &*self.group
    }

    /// Notes that a sum was waited for, since the lanes of this rank had ended.
    pub(crate) fn wait_since(&self, ended: Instant) {
        let nanoseconds = u64::try_from(ended.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The bytes that were sent for sums, and the time that was waited for them.
    pub(crate) fn exchanged(&self) -> (u64, Duration) {
        (self.bytes.load(Ordering::Relaxed), Duration::from_nanos(self.waited.load(Ordering::Relaxed)))
    }

    /// Whether this rank reports of what all do.
    pub(crate) fn leads(&self) -> bool {
        self.group.rank() == 0
    }

    /// This rank's part of so many things.
    pub(crate) fn share(&self, count: usize) -> Range<usize> {
        let (rank, size) = (self.group.rank(), self.group.size());
        rank * count / size..(rank + 1) * count / size
    }

    /// Tells the others if this rank cannot go on.
    pub(crate) fn unless_failed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| self.abort(&error.to_string()))
    }

    /// Tells the others that this rank ends.
    pub(crate) fn abort(&self, cause: &str) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.group.abort(cause);
    }

    /// Whether the others are to be told that there is nothing more to do; asked once.
    pub(crate) fn dismiss(&self) -> bool {
        self.group.rank() == 0 && !self.dismissed.swap(true, Ordering::Relaxed)
    }

    /// Adds up the lanes of all ranks in order, as they become known; `lengths` are those of what is added beside the gradients.
    pub(crate) fn add_lanes<B: Backend>(
        &self,
        backend: &B,
        outbox: &Outbox<B>,
        lengths: &[usize],
    ) -> Result<LaneSum<B>, Error> {
        let of_gradients = self.unfinished(backend, outbox)?;
        let shapes: Vec<Shape> = of_gradients.iter().copied().chain(lengths.iter().map(|&n| [n].into())).collect();
        let of_chain: Vec<Range<usize>> = outbox.sections().iter().map(|section| section.grads.clone()).collect();
        let rest = of_chain.iter().map(|grads| grads.end).max().unwrap_or(0)..shapes.len();
        let sections: Vec<Range<usize>> = of_chain.into_iter().chain([rest]).collect();
        let sizes = sections.iter().map(|own| shapes[own.clone()].iter().map(Shape::elements).sum());
        let sizes: Vec<usize> = sizes.collect();
        let notes = vec![0.0; NOTES + shapes.len()];
        let mut own = Lanes { backend, outbox, shapes: &shapes, sections: &sections, notes };
        let sum = self.unless_failed(collective::sum_sections(&*self.group, &mut own, &sizes))?;
        self.bytes.fetch_add(sum.bytes, Ordering::Relaxed);
        let notes = sum.notes;
        let mut parts: Vec<Grad<B>> = vec![None; shapes.len()];
        let mut at = 0;
        for i in sections.into_iter().flatten() {
            let own = at..at + shapes[i].elements();
            at = own.end;
            parts[i] = (notes[NOTES + i] > 0.0).then(|| backend.upload(&sum.numbers[own], shapes[i]));
        }
        let sums = parts.split_off(self.shapes.len());
        Ok(LaneSum { gradients: parts, sums, notes: [0, 1, 2].map(|i| notes[i] as usize) })
    }

    /// The shapes of gradients before they are finished, which may be others than those of the tensors: rank 0, which has the first
    /// lane, tells them once.
    fn unfinished<B: Backend>(&self, backend: &B, outbox: &Outbox<B>) -> Result<&[Shape], Error> {
        if let Some(shapes) = self.unfinished.get() {
            return Ok(shapes);
        }
        let seen = |lane: &LaneSum<B>| -> Vec<Option<Shape>> {
            lane.gradients.iter().map(|grad| grad.as_ref().map(|grad| backend.shape(grad))).collect()
        };
        let lanes = if self.group.rank() == 0 { outbox.look(seen)? } else { Vec::new() };
        let own = self.shapes.iter().enumerate().map(|(i, shape)| {
            let seen = lanes.first().and_then(|lane| *lane.get(i)?);
            seen.unwrap_or(*shape)
        });
        let text = own.map(|shape| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        let text = text.collect::<Vec<_>>().join("\n");
        let told = collective::broadcast(&*self.group, text.into_bytes())?;
        let strange = || GroupError::Transport("a message is none of shapes".into());
        let told = String::from_utf8(told).map_err(|_| strange())?;
        let shape = |line: &str| -> Option<Shape> {
            let sizes: Vec<usize> = line.split(' ').map(|size| size.parse().ok()).collect::<Option<_>>()?;
            (1..=resflow_backend::MAX_RANK).contains(&sizes.len()).then(|| sizes[..].into())
        };
        let shapes: Vec<Shape> = told.lines().map(shape).collect::<Option<_>>().ok_or_else(strange)?;
        Ok(self.unfinished.get_or_init(|| shapes))
    }

    /// Gives every rank what all ranks made, in their order, of what this one made.
    pub(crate) fn gather(&self, own: Result<Vec<u8>, Error>) -> Result<Vec<Vec<u8>>, Error> {
        Ok(collective::gather(&*self.group, self.unless_failed(own)?)?)
    }

    /// Gives every rank the parts that all ranks made, in their order, of those that this one made; `to_numbers` writes a part and
    /// `take_from` reads one from where the last one ended.
    pub(crate) fn gather_parts<P>(
        &self,
        own: Result<Vec<P>, Error>,
        to_numbers: impl Fn(&P) -> Vec<f64>,
        take_from: impl Fn(&mut &[f64]) -> Option<P>,
    ) -> Result<Vec<P>, Error> {
        let own = own.map(|own| collective::encode(&own.iter().flat_map(to_numbers).collect::<Vec<f64>>()));
        let mut all = Vec::new();
        for message in self.gather(own)? {
            let numbers: Vec<f64> = collective::decode(&message, message.len() / size_of::<f64>())?;
            let mut rest = &numbers[..];
            while !rest.is_empty() {
                let part = take_from(&mut rest);
                all.push(part.ok_or_else(|| GroupError::Transport("a part that does not end".into()))?);
            }
        }
        Ok(all)
    }

    /// Checks that all ranks compute on the same kind of device.
    pub(crate) fn check_devices<B: Backend>(&self, backend: &B) -> Result<(), Error> {
        Ok(collective::check_same(&*self.group, "the devices differ", backend.name().as_bytes())?)
    }

    /// Checks that all ranks hold the same numbers.
    pub(crate) fn check_same<B: Backend>(&self, backend: &B, what: &str, tensor: &B::Tensor) -> Result<(), Error> {
        let numbers = self.unless_failed(backend.download(tensor).map_err(Error::from))?;
        let digest = collective::digest(&numbers).to_le_bytes();
        Ok(collective::check_same(&*self.group, what, &digest)?)
    }
}

impl Team {
    /// The error of a call that only rank 0 may make.
    pub(crate) fn not_leading(&self) -> Error {
        let problem = format!("rank {} follows rank 0: call `follow`", self.group.rank());
        Error::Group(GroupError::Transport(problem))
    }
}

/// The lanes of this rank, in the numbers in which they are sent.
struct Lanes<'a, B: Backend> {
    backend: &'a B,
    outbox: &'a Outbox<B>,
    /// The shapes of all that is added up.
    shapes: &'a [Shape],
    /// The places of the parts of each section; the last one has what belongs to no section of the outbox.
    sections: &'a [Range<usize>],
    notes: Vec<f64>,
}

impl<B: Backend> Lanes<'_, B> {
    /// The numbers of a lane's section one after the other, −0 where it has none; counts what it has.
    fn flat(&mut self, k: usize, parts: &[Grad<B>]) -> Result<Vec<B::Elem>, Error> {
        let place = self.sections[k].clone();
        let shapes = &self.shapes[place.clone()];
        let fits = |(part, shape): (&Grad<B>, &Shape)| {
            part.as_ref().is_none_or(|part| self.backend.shape(part).elements() == shape.elements())
        };
        if parts.len() != shapes.len() || !parts.iter().zip(shapes).all(fits) {
            let problem = "a transform's gradients have other shapes from step to step or lane to lane: it trains in one process only";
            return Err(Error::Input(problem.into()));
        }
        let there = crate::module::flatten(self.backend, parts.iter().flatten());
        let numbers = there.map_or(Ok(Vec::new()), |there| self.backend.download(&there))?;
        let mut flat = Vec::with_capacity(shapes.iter().map(Shape::elements).sum());
        let mut rest = &numbers[..];
        for ((i, part), shape) in place.zip(parts).zip(shapes) {
            if part.is_some() {
                let (own, others) = rest.split_at(shape.elements());
                flat.extend_from_slice(own);
                rest = others;
                self.notes[NOTES + i] += 1.0;
            } else {
                flat.resize(flat.len() + shape.elements(), resflow_backend::Element::from_f64(-0.0));
            }
        }
        Ok(flat)
    }
}

impl<B: Backend> Summands<B::Elem> for Lanes<'_, B> {
    type Failure = Error;

    fn section(&mut self, k: usize) -> Result<Vec<Vec<B::Elem>>, Error> {
        let parts = if k + 1 < self.sections.len() {
            self.outbox.take(k)?
        } else {
            let from = self.sections[k].start;
            self.outbox.look(|lane| lane.gradients[from..].iter().chain(&lane.sums).cloned().collect())?
        };
        parts.iter().map(|parts| self.flat(k, parts)).collect()
    }

    fn notes(&mut self) -> Result<Vec<f64>, Error> {
        for [terms, evaluations, unsolved] in self.outbox.look(|lane| lane.notes.map(|note| note as f64))? {
            self.notes[0] = self.notes[0].max(terms);
            self.notes[1] = self.notes[1].max(evaluations);
            self.notes[2] += unsolved;
        }
        Ok(std::mem::take(&mut self.notes))
    }

    fn merge(&self, before: &mut [f64], own: &[f64]) {
        for (i, (before, own)) in before.iter_mut().zip(own).enumerate() {
            *before = if i < 2 { before.max(*own) } else { *before + own };
        }
    }
}
