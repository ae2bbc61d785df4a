//! The paths of a pixel through a convolution, a hidden pixel and a convolution back to itself.
//!
//! A convolution A₁ `[h₁, kh, kw, c]` looks from hidden pixel q at pixels q + δ, and A₃ `[c, kh, kw, h₂]` back from q at the
//! same pixels through its taps in reversed order. The paths through q make Pᵀ(q) = Σ_δ A₃(−δ)ᵀ A₁(δ)ᵀ, `[h₂, h₁]`, over
//! those δ for which q + δ is a pixel: alike in the whole image but near its border. A matrix is a kernel of one tap.

use std::ops::Range;
use std::sync::OnceLock;

use resflow_backend::{Backend, Shape};

/// Successive positions along an axis at which the same taps of a kernel are inside the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The positions.
    pub(super) positions: Range<usize>,
    /// The taps.
    pub(super) taps: Range<usize>,
}

impl Run {
    /// The runs of an axis for a kernel of an odd length.
    pub(super) fn all(extent: usize, kernel: usize) -> Vec<Self> {
        let half = kernel / 2;
        let taps = |q: usize| half.saturating_sub(q)..kernel.min((extent + half).saturating_sub(q));
        let mut runs: Vec<Self> = Vec::new();
        for q in 0..extent {
            match runs.last_mut() {
                Some(run) if run.taps == taps(q) => run.positions.end = q + 1,
                _ => runs.push(Self { positions: q..q + 1, taps: taps(q) }),
            }
        }
        runs
    }
}

/// Both kernels by taps.
#[derive(Debug)]
pub(super) struct Taps<B: Backend> {
    /// The weights of A₁ and A₃.
    weights: [B::Tensor; 2],
    shapes: [Shape; 2],
    /// A₁ `[kh·kw, c·h₁]` and A₃ `[kh·kw, c·h₂]`, each with its taps in their own order; made when they are wanted.
    arranged: OnceLock<[B::Tensor; 2]>,
    /// c, h₁ and h₂.
    channels: [usize; 3],
    /// kh and kw.
    kernel: [usize; 2],
}

/// A kernel's shape; a matrix has one tap.
fn extents(shape: Shape) -> [usize; 4] {
    match shape[..] {
        [o, i] => [o, 1, 1, i],
        [o, kh, kw, i] => [o, kh, kw, i],
        _ => unreachable!("a weight is a matrix or a kernel"),
    }
}

impl<B: Backend> Taps<B> {
    /// Takes the weights of A₁ and A₃; `None` where there is no way back.
    pub(super) fn new(backend: &B, first: &B::Tensor, last: &B::Tensor) -> Option<Self> {
        let shapes = [first, last].map(|w| backend.shape(w));
        let ([h1, kh, kw, c], [out, kh3, kw3, h2]) = (extents(shapes[0]), extents(shapes[1]));
        if (out, kh3, kw3) != (c, kh, kw) {
            return None;
        }
        let weights = [first.clone(), last.clone()];
        Some(Self { weights, shapes, arranged: OnceLock::new(), channels: [c, h1, h2], kernel: [kh, kw] })
    }

    fn arranged(&self, backend: &B) -> &[B::Tensor; 2] {
        self.arranged.get_or_init(|| {
            let ([c, h1, h2], [kh, kw]) = (self.channels, self.kernel);
            let turn = |w: &B::Tensor, shape: [usize; 4], axes: [usize; 4], width: usize| {
                let turned = backend.permute(&backend.reshape(w, shape[..].into()), &axes);
                backend.reshape(&turned, [kh * kw, width].into())
            };
            let [first, last] = &self.weights;
            [turn(first, [h1, kh, kw, c], [1, 2, 3, 0], c * h1), turn(last, [c, kh, kw, h2], [1, 2, 0, 3], c * h2)]
        })
    }

    /// kh and kw.
    pub(super) fn kernel(&self) -> [usize; 2] {
        self.kernel
    }

    /// The taps of A₁ in these ranges, and those of A₃ that lead back.
    fn numbers(&self, rows: &Range<usize>, columns: &Range<usize>) -> [Vec<u32>; 2] {
        let [kh, kw] = self.kernel;
        let there = rows.clone().flat_map(|y| columns.clone().map(move |x| (y * kw + x) as u32));
        let back = there.clone().map(|tap| (kh * kw) as u32 - 1 - tap);
        [there.collect(), back.collect()]
    }

    /// Some taps of A₁, `[taps·c, h₁]`, and those of A₃ that lead back, `[taps·c, h₂]`.
    pub(super) fn paths(&self, backend: &B, rows: &Range<usize>, columns: &Range<usize>) -> [B::Tensor; 2] {
        let [c, h1, h2] = self.channels;
        let [there, back] = self.numbers(rows, columns);
        let take = |w: &B::Tensor, taps: &[u32], width: usize| {
            backend.reshape(&backend.take_rows(w, taps), [taps.len() * c, width].into())
        };
        let [first, last] = self.arranged(backend);
        [take(first, &there, h1), take(last, &back, h2)]
    }

    /// Spreads gradients of [`paths`](Self::paths) over whole weights: of the shapes of A₁ and A₃.
    pub(super) fn spread(
        &self,
        backend: &B,
        rows: &Range<usize>,
        columns: &Range<usize>,
        gradients: [B::Tensor; 2],
    ) -> [B::Tensor; 2] {
        let [c, h1, h2] = self.channels;
        let [kh, kw] = self.kernel;
        let [there, back] = self.numbers(rows, columns);
        let whole = |gradient: B::Tensor, taps: &[u32], width: usize| {
            let gradient = backend.reshape(&gradient, [taps.len(), c * width].into());
            // what no path takes has the gradient behind the last one, zero
            let mut from = vec![taps.len() as u32; kh * kw];
            taps.iter().enumerate().for_each(|(i, &tap)| from[tap as usize] = i as u32);
            let padded = backend.concat(&[&gradient, &backend.full(0.0, [1, c * width].into())], 0);
            backend.take_rows(&padded, &from)
        };
        let [first, last] = gradients;
        let first = backend.reshape(&whole(first, &there, h1), [kh, kw, c, h1].into());
        let last = backend.reshape(&whole(last, &back, h2), [kh, kw, c, h2].into());
        [
            backend.reshape(&backend.permute(&first, &[3, 0, 1, 2]), self.shapes[0]),
            backend.reshape(&backend.permute(&last, &[2, 0, 1, 3]), self.shapes[1]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_the_taps_inside_the_image() {
        for extent in 0..9 {
            for kernel in [1, 3, 5, 7] {
                let runs = Run::all(extent, kernel);
                let mut next = 0;
                for run in &runs {
                    assert_eq!(run.positions.start, next);
                    next = run.positions.end;
                    for q in run.positions.clone() {
                        for tap in 0..kernel {
                            let inside = q + tap >= kernel / 2 && q + tap < extent + kernel / 2;
                            assert_eq!(run.taps.contains(&tap), inside, "{extent} {kernel} {q} {tap}");
                        }
                    }
                }
                assert_eq!(next, extent);
            }
        }
    }
}
