//! A link that takes its rows in runs, one after the other.
//!
//! Between links an image is narrow, inside a link's net it is much wider: so a run of images goes through the net and
//! back while it is in the cache. Rows do not depend on each other and random numbers belong to rows, so that the runs
//! change no number but for the order in which gradients of parameters are added.

use resflow_backend::{Backend, ShardPlan};

use crate::bijection::{Draw, LogDet, Memory, PreparedBijection, Tape, TrainForward};
use crate::error::Error;
use crate::invert::{Inversion, Solution};
use crate::layer::{Layer, Slot};

/// Tensors that the reverse pass holds of each activation: x, φ, φ', φ'', a tangent and a cotangent.
const KEPT: usize = 6;

/// How many rows go through the net of a link at a time: of images what the device likes, of vectors all.
pub(crate) fn tile_rows<B: Backend>(backend: &B, net: &dyn Layer<B>, input: &[usize], row: &[usize]) -> usize {
    match row.len() {
        3 => backend.tile_rows(KEPT * net.activations(input) * size_of::<B::Elem>()),
        _ => usize::MAX,
    }
}

/// The link, taking at most `tile` rows at a time.
pub(crate) fn tiled<B: Backend>(link: Box<dyn PreparedBijection<B>>, tile: usize) -> Box<dyn PreparedBijection<B>> {
    if tile == usize::MAX { link } else { Box::new(Tiled { link, tile }) }
}

#[derive(Debug)]
struct Tiled<B: Backend> {
    link: Box<dyn PreparedBijection<B>>,
    tile: usize,
}

impl<B: Backend> Tiled<B> {
    /// Runs of rows that go through the link one after the other, if there is more than one.
    fn plan(&self, backend: &B, x: &B::Tensor) -> Option<ShardPlan> {
        let rows = backend.shape(x).rows();
        (rows > self.tile).then(|| ShardPlan::new(rows, self.tile, 1))
    }
}

/// Runs of rows as one.
fn join<'a, B: Backend>(backend: &B, parts: impl Iterator<Item = &'a B::Tensor>) -> B::Tensor {
    backend.concat(&parts.collect::<Vec<_>>(), 0)
}

impl<B: Backend> PreparedBijection<B> for Tiled<B> {
    fn forward(&self, backend: &B, x: &B::Tensor, draw: Option<(Draw<'_>, usize)>) -> (B::Tensor, Option<LogDet<B>>) {
        let Some(plan) = self.plan(backend, x) else { return self.link.forward(backend, x, draw) };
        let parts: Vec<_> = plan
            .ranges()
            .map(|r| {
                let draw = draw.map(|(draw, replicates)| (draw.starting_at(r.start), replicates));
                self.link.forward(backend, &backend.narrow(x, 0, r.start, r.len()), draw)
            })
            .collect();
        let y = join(backend, parts.iter().map(|(y, _)| y));
        let log_det = parts[0].1.as_ref().map(|first| LogDet {
            exact: first.exact,
            value: join(backend, parts.iter().filter_map(|(_, l)| l.as_ref().map(|l| &l.value))),
        });
        (y, log_det)
    }

    fn inverse(&self, backend: &B, y: &B::Tensor, how: &Inversion) -> Result<Solution<B>, Error> {
        let Some(plan) = self.plan(backend, y) else { return self.link.inverse(backend, y, how) };
        let parts = plan.ranges().map(|r| self.link.inverse(backend, &backend.narrow(y, 0, r.start, r.len()), how));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        Ok(Solution {
            value: join(backend, parts.iter().map(|p| &p.value)),
            stretch: parts[0].stretch,
            certified: parts.iter().all(|p| p.certified),
            rows: parts.into_iter().flat_map(|p| p.rows).collect(),
        })
    }

    fn train_forward(&self, backend: &B, x: &B::Tensor, draw: Draw<'_>, memory: Memory) -> TrainForward<B> {
        let Some(plan) = self.plan(backend, x) else { return self.link.train_forward(backend, x, draw, memory) };
        let parts: Vec<_> = plan
            .ranges()
            .map(|r| {
                let x = backend.narrow(x, 0, r.start, r.len());
                self.link.train_forward(backend, &x, draw.starting_at(r.start), memory)
            })
            .collect();
        let y = join(backend, parts.iter().map(|p| &p.y));
        let log_det = join(backend, parts.iter().map(|p| &p.log_det));
        let terms = parts.iter().map(|p| p.terms).max().unwrap_or(0);
        let tape = Tape { tiles: parts.into_iter().map(|p| p.tape).collect(), ..Tape::rows(x.clone()) };
        TrainForward { y, log_det, tape, terms }
    }

    fn train_backward(
        &self,
        backend: &B,
        mut tape: Tape<B>,
        gy: B::Tensor,
        g_log_det: &B::Tensor,
        slots: &mut [Slot<B>],
    ) -> B::Tensor {
        if tape.tiles.is_empty() {
            return self.link.train_backward(backend, tape, gy, g_log_det, slots);
        }
        let mut first = 0;
        let parts: Vec<_> = std::mem::take(&mut tape.tiles)
            .into_iter()
            .map(|tile| {
                let rows = backend.shape(&tile.rows).rows();
                let cut = |g: &B::Tensor| backend.narrow(g, 0, first, rows);
                let g = self.link.train_backward(backend, tile, cut(&gy), &cut(g_log_det), slots);
                first += rows;
                g
            })
            .collect();
        join(backend, parts.iter())
    }

    fn crowds(&self) -> bool {
        self.link.crowds()
    }

    fn leaving(&self) -> usize {
        self.link.leaving()
    }

    fn slots(&self) -> usize {
        self.link.slots()
    }

    fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        self.link.pull_back(backend, slots);
    }
}
