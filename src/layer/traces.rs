//! Traces of powers of J that cost about what a product with J costs, or less. They have no noise, where a probe's first
//! terms have the most. Derived here from the cyclic trace; held to the Jacobian by tests/library/properties/traces.rs.
//!
//! For g = A₃ φ₂ A₂ φ₁ A₁, with weights W and the activations' slopes d,
//!
//! tr J = d₂ᵀ (W₂ ∘ (W₁W₃)ᵀ) d₁,
//!
//! where the matrix is made once a step, so that a sample costs one h₁ × h₂ product. With one hidden layer, K = W₁W₂,
//!
//! tr J = dᵀ diag K, tr J² = dᵀ (K ∘ Kᵀ) d.
//!
//! Where A₁ and A₃ are convolutions and A₂ is a matrix the first holds at every hidden pixel, with the paths through it
//! ([`Taps`]) for W₁W₃, and traces are sums over pixels.
//!
//! With an activation φ₀ before A₁ the identities fail: J = A D₀, of which only tr A is known. But C, in which the mean of
//! d₀ over the numbers that a hidden pixel looks at stands for all of them, has a known trace, a sum of mean · trace over
//! hidden pixels, and is near J: a control variate. Where many values are averaged it pays to go through the features of rows
//! one by one, for the exact trace.
//!
//! Gradients: ∂ tr/∂d goes through φ″ like a tangent pair, dx = ∂ tr/∂d with cotangent 1; W gets its gradient through the
//! matrix.

use std::sync::OnceLock;

use resflow_backend::{Backend, Binary, NetLayer, Over, Padding, Reduce};

use super::activation::slope;
use super::linear::matrix;
use super::taps::{Run, Taps};
use super::{Saved, WeightedTraces};
use crate::estimator::Control;
use crate::module::{Grad, accumulate};

/// The parts of a net whose traces are known.
#[derive(Debug)]
pub(super) struct KnownTraces<B: Backend> {
    taps: Taps<B>,
    /// W₂ `[h₂, h₁]`, where there are two hidden layers.
    middle: Option<B::Tensor>,
    /// 1 if φ₀ comes first, else 0: the number of A₁.
    pub(super) first: usize,
    /// The matrices for images of a size, or for rows, where they are small.
    regions: OnceLock<([usize; 2], Vec<Region<B>>)>,
}

/// The numbers of all matrices of a net that are kept; larger ones are made where they are used, beside which they cost little.
const KEPT: usize = 1 << 18;

/// The fewest rows of a product of slopes.
const FEWEST: usize = 8;

/// Hidden pixels with the same paths, and what they have in common.
#[derive(Debug)]
struct Region<B: Backend> {
    rows: Run,
    columns: Run,
    /// W₂ᵀ ∘ P, `[h₁, h₂]`; of one hidden layer diag K, `[h₁, 1]`.
    matrix: B::Tensor,
    /// What only gradients and exact traces behind an activation ask for.
    ways: OnceLock<Ways<B>>,
}

/// The ways through the hidden pixels of a region.
#[derive(Debug)]
struct Ways<B: Backend> {
    /// A₁ and A₃ along the paths, `[taps·c, h₁]` and `[taps·c, h₂]`.
    ends: [B::Tensor; 2],
    /// Pᵀ = A₃ᵀA₁, `[h₂, h₁]`; of one hidden layer Kᵀ.
    product: B::Tensor,
}

/// What the gradient of traces is, besides that of weights: ∂/∂d of each activation, by its layer.
pub(super) type Slopes<B> = Vec<(usize, <B as Backend>::Tensor)>;

/// A weight's gradient, by its layer.
pub(super) type WeightGradients<B> = Vec<(usize, <B as Backend>::Tensor)>;

impl<B: Backend> KnownTraces<B> {
    /// Looks for the traces of a net.
    pub(super) fn of(backend: &B, layers: &[Option<NetLayer<B::Tensor>>]) -> Option<Self> {
        let layer = |i: usize| layers.get(i).and_then(Option::as_ref);
        let is_activation = |i: usize| layer(i).is_some_and(NetLayer::is_activation);
        let first = usize::from(is_activation(0));
        let weight = |i: usize| match layer(i)? {
            NetLayer::Linear { weight: w, .. } | NetLayer::Convolution { kernel: w, .. } => Some(w),
            _ => None,
        };
        let (a1, a2, a3) = (weight(first)?, weight(first + 2)?, weight(first + 4));
        if !is_activation(first + 1) {
            return None;
        }
        let (middle, last) = match (a3, layers.len() - first) {
            (None, 3) => (None, a2),
            (Some(a3), 5) if is_activation(first + 3) => match backend.shape(a2)[..] {
                [_, _] => (Some(a2.clone()), a3),
                // a kernel of one tap is a matrix
                [o, 1, 1, i] => (Some(backend.reshape(a2, [o, i].into())), a3),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { taps: Taps::new(backend, a1, last)?, middle, first, regions: OnceLock::new() })
    }

    fn region(&self, backend: &B, rows: &Run, columns: &Run) -> Region<B> {
        let matrix = if let Some(w2) = &self.middle {
            let matrix = backend.binary(Binary::Mul, self.made_ways(backend, rows, columns).product, w2);
            backend.permute(&matrix, &[1, 0])
        } else {
            let [first, last] = self.taps.paths(backend, &rows.taps, &columns.taps);
            let products = backend.binary(Binary::Mul, first, &last);
            let diagonal = backend.reduce(Reduce::Sum, Over::Channel, &products);
            let hidden = backend.shape(&diagonal).elements();
            backend.reshape(&diagonal, [hidden, 1].into())
        };
        Region { rows: rows.clone(), columns: columns.clone(), matrix, ways: OnceLock::new() }
    }

    fn ways<'a>(&self, backend: &B, region: &'a Region<B>) -> &'a Ways<B> {
        region.ways.get_or_init(|| self.made_ways(backend, &region.rows, &region.columns))
    }

    fn made_ways(&self, backend: &B, rows: &Run, columns: &Run) -> Ways<B> {
        let ends = self.taps.paths(backend, &rows.taps, &columns.taps);
        Ways { product: backend.matmul(&ends[1], true, &ends[0], false), ends }
    }

    /// Calls with the regions of images like x, `[n, h, w, c]`, or of rows.
    fn with_regions<R>(&self, backend: &B, x: &B::Tensor, use_them: impl FnOnce(&[Region<B>]) -> R) -> R {
        let shape = backend.shape(x);
        let size = if shape.rank() == 4 { [shape[1], shape[2]] } else { [1, 1] };
        let make = || {
            let [kh, kw] = self.taps.kernel();
            let (rows, columns) = (Run::all(size[0], kh), Run::all(size[1], kw));
            let pairs = rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c)));
            pairs.map(|(r, c)| self.region(backend, r, c)).collect::<Vec<_>>()
        };
        let [kh, kw] = self.taps.kernel();
        let hidden = self.middle.as_ref().map_or(0, |w2| backend.shape(w2).elements());
        if hidden * size[0].min(kh) * size[1].min(kw) > KEPT {
            return use_them(&make());
        }
        let (known, regions) = self.regions.get_or_init(|| (size, make()));
        if *known == size { use_them(regions) } else { use_them(&make()) }
    }

    /// The slopes of the activation of layer i, `[n, …, h]`.
    fn slopes(saved: &Saved<B>, layer: usize) -> &B::Tensor {
        slope(&saved.parts[layer])
    }

    /// The traces at the hidden pixels of a region, `[n·pixels, 1]`.
    fn at_pixels(&self, backend: &B, saved: &Saved<B>, region: &Region<B>) -> B::Tensor {
        let d1 = region.of(backend, Self::slopes(saved, self.first + 1));
        let pixels = backend.shape(&d1).rows();
        // a corner has a pixel in each image: products of few rows may be rounded in another way, and what an image gets would
        // depend on how many others come with it
        let through = if (1..FEWEST).contains(&pixels) {
            let repeated: Vec<u32> = (0..FEWEST).map(|row| (row % pixels) as u32).collect();
            let through = backend.matmul(&backend.take_rows(&d1, &repeated), false, &region.matrix, false);
            backend.narrow(&through, 0, 0, pixels)
        } else {
            backend.matmul(&d1, false, &region.matrix, false)
        };
        match self.middle {
            Some(_) => backend.dot_rows(&through, &region.of(backend, Self::slopes(saved, self.first + 3))),
            None => through,
        }
    }

    /// tr J; tr J² too where rows go through one hidden layer.
    pub(super) fn values(&self, backend: &B, saved: &Saved<B>) -> Vec<B::Tensor> {
        let d1 = Self::slopes(saved, self.first + 1);
        let samples = backend.shape(d1).rows();
        self.with_regions(backend, d1, |regions| {
            let sum = regions.iter().map(|r| by_samples(backend, &self.at_pixels(backend, saved, r), samples));
            let Some(trace) = sum.reduce(|sum, part| backend.axpy(1.0, &part, sum)) else { return Vec::new() };
            let mut traces = vec![trace];
            if self.powers(backend, saved) > 1 {
                let square = self.ways(backend, &regions[0]).square(backend);
                let through = backend.matmul(d1, false, &square, false);
                traces.push(backend.dot_rows(&through, d1));
            }
            traces
        })
    }

    /// The number of traces that [`values`](Self::values) gives.
    pub(super) fn powers(&self, backend: &B, saved: &Saved<B>) -> usize {
        let rows = backend.shape(Self::slopes(saved, self.first + 1)).rank() == 2;
        if self.middle.is_none() && rows { 2 } else { 1 }
    }

    /// The gradient of weighted traces, in the slopes of activations and in the weights of layers.
    pub(super) fn gradient(
        &self,
        backend: &B,
        saved: &Saved<B>,
        traces: &WeightedTraces<'_, B>,
    ) -> (Slopes<B>, WeightGradients<B>) {
        let (l1, l2) = (self.first + 1, self.first + 3);
        let d1 = Self::slopes(saved, l1);
        let samples = backend.shape(d1).rows();
        let weigh = |d: &B::Tensor| weigh(backend, d, traces.weights, samples);
        self.with_regions(backend, d1, |regions| {
            let (mut of_d1, mut of_d2, mut weights) = (Vec::new(), Vec::new(), Weighed { ends: None, middle: None });
            for region in regions {
                let d1 = region.of(backend, d1);
                let ways = self.ways(backend, region);
                let [first, last] = &ways.ends;
                let weighed = weigh(&d1);
                // that of Pᵀ = A₃ᵀA₁ along the paths
                let mut of_product = None;
                if let Some(w2) = &self.middle {
                    let d2 = weigh(&region.of(backend, Self::slopes(saved, l2)));
                    of_d1.push(backend.matmul(&d2, false, &region.matrix, true));
                    of_d2.push(backend.matmul(&weighed, false, &region.matrix, false));
                    let sum = backend.matmul(&d2, true, &d1, false);
                    weights.add_middle(backend, &backend.binary(Binary::Mul, sum.clone(), &ways.product));
                    of_product = Some(backend.binary(Binary::Mul, sum, w2));
                } else {
                    let ones = backend.full(1.0, backend.shape(&d1));
                    let hidden = backend.shape(&d1).channels();
                    let diagonal = backend.reshape(&region.matrix, [1, hidden].into());
                    let mut slopes = weigh(&backend.binary(Binary::Mul, ones, &diagonal));
                    if traces.powers > 1 {
                        let through = backend.matmul(&weighed, false, &ways.square(backend), false);
                        slopes = backend.axpy(-1.0, &through, slopes);
                        let sum = backend.affine(backend.matmul(&weighed, true, &d1, false), -1.0, 0.0);
                        of_product = Some(backend.binary(Binary::Mul, sum, &backend.permute(&ways.product, &[1, 0])));
                    }
                    of_d1.push(slopes);
                    let diagonal = backend.reduce(Reduce::Sum, Over::Channel, &weighed);
                    let ends = [last, first].map(|end| backend.binary(Binary::Mul, end.clone(), &diagonal));
                    weights.add_ends(backend, self.taps.spread(backend, &region.rows.taps, &region.columns.taps, ends));
                }
                if let Some(of_product) = of_product {
                    let ends = [
                        backend.matmul(last, false, &of_product, false),
                        backend.matmul(first, false, &of_product, true),
                    ];
                    weights.add_ends(backend, self.taps.spread(backend, &region.rows.taps, &region.columns.taps, ends));
                }
            }
            let mut slopes = vec![(l1, assemble(backend, regions, of_d1, d1))];
            if self.middle.is_some() {
                slopes.push((l2, assemble(backend, regions, of_d2, Self::slopes(saved, l2))));
            }
            (slopes, weights.by_layer(self.first))
        })
    }

    /// tr J of rows behind φ₀, feature by feature: Σ_c d₀_c d₂ᵀ (W₂ ∘ (w₁_c w₃_c)ᵀ) d₁, with w₁_c the column of W₁ and w₃_c the row
    /// of W₃; of one hidden layer d₁ᵀ (W₁ ∘ W₂ᵀ) d₀.
    pub(super) fn behind_activation(&self, backend: &B, saved: &Saved<B>, most: u64) -> Option<B::Tensor> {
        let (d0, d1) = (Self::slopes(saved, 0), Self::slopes(saved, 2));
        let (rows, features) = (backend.shape(d0), backend.shape(d0).channels());
        let products = self.middle.as_ref().map_or(1, |w2| backend.shape(w2)[0]) * backend.shape(d1).channels();
        if rows.rank() != 2 || features == 0 || (features * products) as u64 > most {
            return None;
        }
        self.with_regions(backend, d0, |regions| {
            let region = regions.first()?;
            let [first, last] = &self.ways(backend, region).ends;
            let Some(w2) = &self.middle else {
                let both = backend.binary(Binary::Mul, first.clone(), last);
                return Some(backend.dot_rows(&backend.matmul(d1, false, &both, true), d0));
            };
            let d2 = Self::slopes(saved, 4);
            let diagonal = (0..features).map(|c| {
                let row = |w: &B::Tensor| backend.narrow(w, 0, c, 1);
                let into = backend.binary(Binary::Mul, d1.clone(), &row(first));
                let through = backend.matmul(&into, false, w2, true);
                backend.dot_rows(&backend.binary(Binary::Mul, through, &row(last)), d2)
            });
            let diagonal: Vec<_> = diagonal.collect();
            Some(backend.dot_rows(&backend.concat(&diagonal.iter().collect::<Vec<_>>(), 1), d0))
        })
    }

    /// The trace of C, with the means that stand for the slopes of φ₀.
    pub(super) fn control(&self, backend: &B, saved: &Saved<B>) -> Option<Control<B>> {
        let d0 = Self::slopes(saved, 0);
        let shape = backend.shape(d0);
        let means = backend.affine(
            backend.matmul(&matrix(backend, d0), false, &backend.full(1.0, [shape.channels(), 1].into()), false),
            1.0 / shape.channels() as f64,
            0.0,
        );
        let slopes = if shape.rank() == 4 {
            let [kh, kw] = self.taps.kernel();
            let ones = backend.full(1.0, [1, kh, kw, 1].into());
            let window = |x: &B::Tensor| backend.conv2d(x, &ones, Padding::same([kh, kw]));
            let means = backend.reshape(&means, shape.with_channels(1));
            let counts = window(&backend.full(1.0, [1, shape[1], shape[2], 1].into()));
            backend.binary(Binary::Div, window(&means), &counts)
        } else {
            means
        };
        let samples = shape.rows();
        let trace = self.with_regions(backend, d0, |regions| {
            let parts = regions.iter().map(|region| {
                let weights = region.of(backend, &slopes);
                let weighed = backend.binary(Binary::Mul, self.at_pixels(backend, saved, region), &weights);
                by_samples(backend, &weighed, samples)
            });
            parts.reduce(|sum, part| backend.axpy(1.0, &part, sum))
        })?;
        Some(Control { trace, slopes })
    }
}

impl<B: Backend> Region<B> {
    /// The hidden pixels of the region, `[n·pixels, h]`.
    fn of(&self, backend: &B, x: &B::Tensor) -> B::Tensor {
        let shape = backend.shape(x);
        if shape.rank() == 2 {
            return x.clone();
        }
        let cut = |x: &B::Tensor, axis: usize, run: &Run| {
            if run.positions.len() == shape[axis] {
                x.clone()
            } else {
                backend.narrow(x, axis, run.positions.start, run.positions.len())
            }
        };
        matrix(backend, &cut(&cut(x, 1, &self.rows), 2, &self.columns))
    }
}

impl<B: Backend> Ways<B> {
    /// K ∘ Kᵀ of one hidden layer, `[h₁, h₁]`.
    fn square(&self, backend: &B) -> B::Tensor {
        backend.binary(Binary::Mul, backend.permute(&self.product, &[1, 0]), &self.product)
    }
}

/// Sums numbers of pixels, `[n·pixels, 1]`, to numbers of samples, `[n, 1]`.
fn by_samples<B: Backend>(backend: &B, x: &B::Tensor, samples: usize) -> B::Tensor {
    let pixels = backend.shape(x).rows() / samples.max(1);
    if pixels == 1 {
        return x.clone();
    }
    backend.reduce(Reduce::Sum, Over::Row, &backend.reshape(x, [samples, pixels].into()))
}

/// Multiplies the pixels of each sample, `[n·pixels, h]`, by its weight, of `[n, 1]`.
fn weigh<B: Backend>(backend: &B, x: &B::Tensor, weights: &B::Tensor, samples: usize) -> B::Tensor {
    let shape = backend.shape(x);
    let flat = backend.reshape(x, [samples, shape.elements() / samples.max(1)].into());
    backend.reshape(&backend.binary(Binary::Mul, flat, weights), shape)
}

/// Puts the pixels of regions, `[n·pixels, h]`, where they are in a tensor like this one.
fn assemble<B: Backend>(backend: &B, regions: &[Region<B>], parts: Vec<B::Tensor>, like: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(like);
    if shape.rank() == 2 {
        return parts.into_iter().next().expect("rows are one region");
    }
    let mut bands: Vec<Vec<B::Tensor>> = Vec::new();
    for (region, part) in regions.iter().zip(parts) {
        let size = [shape[0], region.rows.positions.len(), region.columns.positions.len(), shape[3]];
        let part = backend.reshape(&part, size[..].into());
        match bands.last_mut() {
            Some(band) if region.columns.positions.start > 0 => band.push(part),
            _ => bands.push(vec![part]),
        }
    }
    let join = |parts: &[B::Tensor], axis| backend.concat(&parts.iter().collect::<Vec<_>>(), axis);
    let bands: Vec<_> = bands.iter().map(|band| join(band, 2)).collect();
    if bands.is_empty() { backend.full(0.0, shape) } else { join(&bands, 1) }
}

/// Gradients of the weights, added up.
#[derive(Debug)]
struct Weighed<B: Backend> {
    ends: Option<[B::Tensor; 2]>,
    middle: Grad<B>,
}

impl<B: Backend> Weighed<B> {
    fn add_middle(&mut self, backend: &B, gradient: &B::Tensor) {
        accumulate(backend, &mut self.middle, gradient);
    }

    fn add_ends(&mut self, backend: &B, [first, last]: [B::Tensor; 2]) {
        self.ends = Some(match self.ends.take() {
            None => [first, last],
            Some([f, l]) => [backend.axpy(1.0, &first, f), backend.axpy(1.0, &last, l)],
        });
    }

    /// By layers, the first of which is A₁.
    fn by_layer(self, first: usize) -> WeightGradients<B> {
        let Some([a1, a3]) = self.ends else { return Vec::new() };
        match self.middle {
            Some(middle) => vec![(first, a1), (first + 2, middle), (first + 4, a3)],
            None => vec![(first, a1), (first + 2, a3)],
        }
    }
}
