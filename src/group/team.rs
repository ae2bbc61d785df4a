//! A group at work on one flow: what its ranks share, and what they add up.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use resflow_backend::{Backend, Shape};

use super::{Group, collective};
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
        Self { group, shapes, unfinished: OnceLock::new(), dismissed: AtomicBool::new(false) }
    }

    pub(crate) fn group(&self) -> &dyn Group {
        &*self.group
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

    /// Adds up the lanes of all ranks in order; `lengths` are those of what is added beside the gradients.
    pub(crate) fn add_lanes<B: Backend>(
        &self,
        backend: &B,
        lanes: &[LaneSum<B>],
        lengths: &[usize],
    ) -> Result<LaneSum<B>, Error> {
        let of_gradients = self.unfinished(backend, lanes)?;
        let shapes: Vec<Shape> = of_gradients.iter().copied().chain(lengths.iter().map(|&n| [n].into())).collect();
        let total = shapes.iter().map(Shape::elements).sum();
        let mut notes = vec![0.0; NOTES + shapes.len()];
        let flat = lanes.iter().map(|lane| Self::flat(backend, lane, &shapes, total, &mut notes));
        let flat = self.unless_failed(flat.collect::<Result<Vec<_>, _>>())?;
        let merge = |before: &mut [f64], own: &[f64]| {
            for (i, (before, own)) in before.iter_mut().zip(own).enumerate() {
                *before = if i < 2 { before.max(*own) } else { *before + own };
            }
        };
        let sum = collective::sum_in_order(&*self.group, &mut notes, merge, &flat, total)?;
        let mut at = 0;
        let mut parts = shapes.iter().enumerate().map(|(i, shape)| {
            let own = at..at + shape.elements();
            at = own.end;
            (notes[NOTES + i] > 0.0).then(|| backend.upload(&sum[own], *shape))
        });
        let gradients = parts.by_ref().take(self.shapes.len()).collect();
        let sums = parts.collect();
        Ok(LaneSum { gradients, sums, notes: [0, 1, 2].map(|i| notes[i] as usize) })
    }

    /// The shapes of gradients before they are finished, which may be others than those of the tensors: rank 0, which has the first
    /// lane, tells them once.
    fn unfinished<B: Backend>(&self, backend: &B, lanes: &[LaneSum<B>]) -> Result<&[Shape], Error> {
        if let Some(shapes) = self.unfinished.get() {
            return Ok(shapes);
        }
        let own = self.shapes.iter().enumerate().map(|(i, shape)| {
            let seen = lanes.first().and_then(|lane| lane.gradients.get(i)?.as_ref());
            seen.map_or(*shape, |seen| backend.shape(seen))
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

    /// The numbers of a lane one after the other, −0 where it has none; counts what it has.
    fn flat<B: Backend>(
        backend: &B,
        lane: &LaneSum<B>,
        shapes: &[Shape],
        total: usize,
        notes: &mut [f64],
    ) -> Result<Vec<B::Elem>, Error> {
        for i in 0..2 {
            notes[i] = notes[i].max(lane.notes[i] as f64);
        }
        notes[2] += lane.notes[2] as f64;
        let parts: Vec<&Grad<B>> = lane.gradients.iter().chain(&lane.sums).collect();
        let fits = |(part, shape): (&&Grad<B>, &Shape)| {
            part.as_ref().is_none_or(|part| backend.shape(part).elements() == shape.elements())
        };
        if parts.len() != shapes.len() || !parts.iter().zip(shapes).all(fits) {
            let problem = "a transform's gradients have other shapes from step to step or lane to lane: it trains in one process only";
            return Err(Error::Input(problem.into()));
        }
        let there = parts.iter().filter_map(|part| part.as_ref());
        let there = crate::module::flatten(backend, there);
        let numbers = there.map_or(Ok(Vec::new()), |there| backend.download(&there))?;
        let mut flat = Vec::with_capacity(total);
        let mut rest = &numbers[..];
        for (i, (part, shape)) in parts.into_iter().zip(shapes).enumerate() {
            if part.is_some() {
                let (own, others) = rest.split_at(shape.elements());
                flat.extend_from_slice(own);
                (rest, notes[NOTES + i]) = (others, notes[NOTES + i] + 1.0);
            } else {
                flat.resize(flat.len() + shape.elements(), resflow_backend::Element::from_f64(-0.0));
            }
        }
        Ok(flat)
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
