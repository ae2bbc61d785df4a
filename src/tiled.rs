//! A transform that takes its samples in runs, one after the other.
//!
//! Between transforms an image is narrow, inside a transform's net it is much wider: so a run of images goes through
//! the net and back while it is in the cache. Samples do not depend on each other and random numbers belong to samples,
//! so runs change results only by rounding: gradients of parameters are added in another order, and so may products of
//! matrices of other sizes be.

use resflow_backend::{Backend, ShardPlan};

use crate::batch::Batch;
use crate::bijection::{Ask, Cotangents, LogDet, Mapped, PreparedBijection, Tape};
use crate::error::Error;
use crate::invert::{Inversion, SampleReport, Solution, merge_reports};
use crate::layer::Layer;
use crate::module::{Grad, accumulate};
use crate::reference::ReferenceMap;

/// Tensors that the reverse pass holds of each activation: x, φ, φ', φ'', a tangent and a cotangent.
const KEPT: usize = 6;

/// Returns the number of samples that go through the net of a transform at a time: of images what the device likes, of
/// vectors all. `input` is the shape that the net takes, `shape` that of a sample of the transform, `[h, w, c]` or
/// `[d]`, both without the axis of samples. For [`tiled`].
pub fn tile_samples<B: Backend>(backend: &B, net: &dyn Layer<B>, input: &[usize], shape: &[usize]) -> usize {
    match shape.len() {
        3 => backend.tile_rows(KEPT * net.activations(input) * size_of::<B::Elem>()),
        _ => usize::MAX,
    }
}

/// The transform, taking at most `tile` of a batch's samples `[n, …]` at a time: the same numbers, in memory for `tile`
/// of them. `usize::MAX` leaves it as it is.
pub fn tiled<B: Backend>(transform: Box<dyn PreparedBijection<B>>, tile: usize) -> Box<dyn PreparedBijection<B>> {
    if tile == usize::MAX { transform } else { Box::new(Tiled { transform, tile }) }
}

#[derive(Debug)]
struct Tiled<B: Backend> {
    transform: Box<dyn PreparedBijection<B>>,
    tile: usize,
}

/// What a forward pass of several runs keeps.
struct Runs {
    /// The tapes of the runs, with the number of samples of each.
    tapes: Vec<(usize, Tape)>,
    /// Whether all samples share one context.
    shared: bool,
}

/// A way back through the transform.
type Back<'a, B> =
    dyn Fn(Tape, Cotangents<B>, &mut [Grad<B>], &mut Option<Vec<SampleReport>>) -> Result<Cotangents<B>, Error> + 'a;

impl<B: Backend> Tiled<B> {
    /// Cuts the batch into runs of samples that go through the transform one after the other, if there
    /// is more than one.
    fn runs(&self, backend: &B, batch: &Batch<B>) -> Option<Vec<Batch<B>>> {
        let samples = batch.len(backend);
        let cut = || ShardPlan::new(samples, self.tile, 1);
        (samples > self.tile).then(|| cut().ranges().map(|r| batch.narrow(backend, r.start, r.len())).collect())
    }
}

/// Joins runs of samples.
fn join<'a, B: Backend>(backend: &B, parts: impl Iterator<Item = &'a B::Tensor>) -> B::Tensor {
    backend.concat(&parts.collect::<Vec<_>>(), 0)
}

/// Joins the solutions of runs of samples.
fn together<B: Backend>(backend: &B, parts: Vec<Solution<B>>) -> Solution<B> {
    Solution {
        value: join(backend, parts.iter().map(|p| &p.value)),
        stretch: parts[0].stretch,
        certified: parts.iter().all(|p| p.certified),
        reports: parts.into_iter().flat_map(|p| p.reports).collect(),
    }
}

/// Takes each run back, whichever way that is done.
fn go_back<B: Backend>(
    backend: &B,
    tape: Tape,
    cotangents: Cotangents<B>,
    grads: &mut [Grad<B>],
    reports: &mut Option<Vec<SampleReport>>,
    back: &Back<'_, B>,
) -> Result<Cotangents<B>, Error> {
    let (runs, shared) = match tape.try_into_value::<Runs>() {
        Ok(Runs { tapes, shared }) => (tapes, shared),
        Err(tape) => return back(tape, cotangents, grads, reports),
    };
    let mut of_runs: Option<Vec<SampleReport>> = None;
    let mut first = 0;
    let mut parts = Vec::with_capacity(runs.len());
    for (samples, tape) in runs {
        let cut = |g: &B::Tensor| backend.narrow(g, 0, first, samples);
        let own = Cotangents { x: cut(&cotangents.x), log_det: cut(&cotangents.log_det), context: None };
        let mut of_run = None;
        parts.push(back(tape, own, grads, &mut of_run)?);
        of_runs.get_or_insert_default().extend(of_run.into_iter().flatten());
        first += samples;
    }
    // a run of each, or none
    if let Some(of_runs) = of_runs.filter(|of_runs| of_runs.len() == first) {
        merge_reports(reports, of_runs);
    }
    let mut context = cotangents.context;
    if shared {
        // all samples have one context, and add their parts of its gradient
        parts.iter().filter_map(|p| p.context.as_ref()).for_each(|own| accumulate(backend, &mut context, own));
    } else if let Some(own) = parts.iter().map(|p| p.context.as_ref()).collect::<Option<Vec<_>>>() {
        accumulate(backend, &mut context, &backend.concat(&own, 0));
    }
    Ok(Cotangents {
        x: join(backend, parts.iter().map(|p| &p.x)),
        log_det: join(backend, parts.iter().map(|p| &p.log_det)),
        context,
    })
}

impl<B: Backend> PreparedBijection<B> for Tiled<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, ask: &Ask<'_>) -> Result<Mapped<B>, Error> {
        let Some(runs) = self.runs(backend, batch) else { return self.transform.forward(backend, batch, ask) };
        let parts = runs.iter().map(|run| self.transform.forward(backend, run, ask));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let term = |i: usize| LogDet {
            exact: parts[0].log_dets[i].exact,
            value: join(backend, parts.iter().map(|p| &p.log_dets[i].value)),
        };
        let log_dets = (0..parts[0].log_dets.len()).map(term).collect();
        let y = join(backend, parts.iter().map(|p| &p.y));
        let mut out = Mapped { log_dets, ..Mapped::value(y) };
        let mut tapes = Vec::with_capacity(parts.len());
        for (run, part) in runs.iter().zip(parts) {
            out.terms = out.terms.max(part.terms);
            if let Some(reports) = part.reports {
                out.reports.get_or_insert_default().extend(reports);
            }
            tapes.extend(part.tape.map(|tape| (run.len(backend), tape)));
        }
        let shared = batch.context.as_ref().is_some_and(|context| backend.shape(context).rows() == 1);
        out.tape = (!tapes.is_empty()).then(|| Tape::new(Runs { tapes, shared }));
        Ok(out)
    }

    fn solves_forward(&self) -> Option<f64> {
        self.transform.solves_forward()
    }

    fn inverse(&self, backend: &B, batch: &Batch<B>, how: &Inversion) -> Result<Solution<B>, Error> {
        let Some(runs) = self.runs(backend, batch) else { return self.transform.inverse(backend, batch, how) };
        let parts = runs.iter().map(|run| self.transform.inverse(backend, run, how));
        Ok(together(backend, parts.collect::<Result<Vec<_>, _>>()?))
    }

    fn solve_transposed(
        &self,
        backend: &B,
        batch: &Batch<B>,
        gradient: &B::Tensor,
        how: &Inversion,
    ) -> Result<Solution<B>, Error> {
        let Some(runs) = self.runs(backend, batch) else {
            return self.transform.solve_transposed(backend, batch, gradient, how);
        };
        let mut first = 0;
        let parts = runs.iter().map(|run| {
            let samples = run.len(backend);
            let own = backend.narrow(gradient, 0, first, samples);
            first += samples;
            self.transform.solve_transposed(backend, run, &own, how)
        });
        Ok(together(backend, parts.collect::<Result<Vec<_>, _>>()?))
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceMap>, Error> {
        self.transform.reference(backend)
    }

    fn backward(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
    ) -> Result<Cotangents<B>, Error> {
        self.backward_reported(backend, tape, cotangents, grads, &mut None)
    }

    fn backward_reported(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        grads: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        go_back(backend, tape, cotangents, grads, reports, &|tape, cotangents, grads, reports| {
            self.transform.backward_reported(backend, tape, cotangents, grads, reports)
        })
    }

    fn backward_samples(
        &self,
        backend: &B,
        tape: Tape,
        cotangents: Cotangents<B>,
        scratch: &mut [Grad<B>],
        reports: &mut Option<Vec<SampleReport>>,
    ) -> Result<Cotangents<B>, Error> {
        go_back(backend, tape, cotangents, scratch, reports, &|tape, cotangents, scratch, reports| {
            self.transform.backward_samples(backend, tape, cotangents, scratch, reports)
        })
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) {
        self.transform.finish_gradients(backend, grads);
    }
}
