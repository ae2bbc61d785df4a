//! Batches: samples, and everything that belongs to them, on their way through layers and transforms.

use resflow_backend::{Backend, Shape};

/// Some samples with what belongs to them. Cutting, sorting and repeating it does so for everything at once.
#[derive(Debug)]
pub struct Batch<B: Backend> {
    /// The samples, `[n, …]`.
    pub x: B::Tensor,
    /// The context of each sample that a conditional model is given, `[n, k]`, or one that all share, `[1, k]`; models without
    /// a condition do not look at it. What a flow is given is in standardised units, what its transforms are given is the
    /// flow's [`Embedding`](crate::conditional::Embedding) of it.
    pub context: Option<B::Tensor>,
    /// The number that the first sample has in the whole batch, of which this may be a run: random numbers are
    /// addressed by it. Sorting and repeating leave it alone, so noise is drawn before.
    pub first: u64,
    /// Of images of bytes what a variational dequantiser makes x of, where the flow has one; x is then what uniform noise makes.
    pub quantised: Option<Quantised<B>>,
}

impl<B: Backend> Clone for Batch<B> {
    fn clone(&self) -> Self {
        let (x, context, quantised) = (self.x.clone(), self.context.clone(), self.quantised.clone());
        Self { x, context, first: self.first, quantised }
    }
}

/// Images of bytes before they are dequantised.
#[derive(Debug)]
pub struct Quantised<B: Backend> {
    /// The levels, `[n, h, w, c]`, whole numbers from 0 to 2ᵇ − 1.
    pub levels: B::Tensor,
    /// Uniform noise in \[0, 1), of the same shape.
    pub noise: B::Tensor,
}

impl<B: Backend> Clone for Quantised<B> {
    fn clone(&self) -> Self {
        Self { levels: self.levels.clone(), noise: self.noise.clone() }
    }
}

impl<B: Backend> Quantised<B> {
    /// Computes (level + u)/2ᵇ for noise u of the shape of the levels.
    pub fn place(&self, backend: &B, u: &B::Tensor, bits: u32) -> B::Tensor {
        backend.affine(backend.axpy(1.0, &self.levels, u.clone()), 1.0 / f64::from(1_u32 << bits), 0.0)
    }

    fn map(&self, f: impl Fn(&B::Tensor) -> B::Tensor) -> Self {
        Self { levels: f(&self.levels), noise: f(&self.noise) }
    }
}

impl<B: Backend> Batch<B> {
    /// Takes samples `[n, …]` without a context, the first of which is number 0.
    pub fn new(x: B::Tensor) -> Self {
        Self { x, context: None, first: 0, quantised: None }
    }

    /// Numbers the samples from `first` on.
    pub fn starting_at(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Replaces the numbers of the samples, `[n, …]`, which stay the same samples; their noise is settled then.
    pub fn with_x(&self, x: B::Tensor) -> Self {
        Self { x, context: self.context.clone(), first: self.first, quantised: None }
    }

    /// Joins batches without contexts, one after the other.
    ///
    /// # Panics
    /// If there are none.
    pub(crate) fn join(backend: &B, batches: &[Self]) -> Self {
        let part =
            |part: &dyn Fn(&Self) -> &B::Tensor| backend.concat(&batches.iter().map(part).collect::<Vec<_>>(), 0);
        let images: Option<Vec<_>> = batches.iter().map(|batch| batch.quantised.as_ref()).collect();
        let quantised = images.map(|images| {
            let [levels, noise] = [|i: &&Quantised<B>| i.levels.clone(), |i: &&Quantised<B>| i.noise.clone()]
                .map(|part| backend.concat(&images.iter().map(part).collect::<Vec<_>>().iter().collect::<Vec<_>>(), 0));
            Quantised { levels, noise }
        });
        Self { quantised, ..Self::new(part(&|batch| &batch.x)) }
    }

    /// Returns n, the number of samples.
    pub fn len(&self, backend: &B) -> usize {
        backend.shape(&self.x).rows()
    }

    /// Returns `true` if there are no samples.
    pub fn is_empty(&self, backend: &B) -> bool {
        self.len(backend) == 0
    }

    /// Returns the shape of x, `[n, …]`.
    pub fn shape(&self, backend: &B) -> Shape {
        backend.shape(&self.x)
    }

    /// Cuts out `length` samples from number `start` of these on.
    pub fn narrow(&self, backend: &B, start: usize, length: usize) -> Self {
        let first = self.first.wrapping_add(start as u64);
        Self { first, ..self.map(backend, |t| backend.narrow(t, 0, start, length)) }
    }

    /// Selects the samples of these numbers, in this order; a number may come more than once.
    pub fn take(&self, backend: &B, samples: &[u32]) -> Self {
        self.map(backend, |t| backend.take_rows(t, samples))
    }

    /// Replaces the context, `[n, k]` or `[1, k]`.
    pub fn with_context(self, context: Option<B::Tensor>) -> Self {
        Self { context, ..self }
    }

    fn map(&self, backend: &B, f: impl Fn(&B::Tensor) -> B::Tensor) -> Self {
        let shared = |context: &B::Tensor| backend.shape(context).rows() == 1 && self.len(backend) != 1;
        let own = |context: &B::Tensor| if shared(context) { context.clone() } else { f(context) };
        let quantised = self.quantised.as_ref().map(|images| images.map(&f));
        Self { x: f(&self.x), context: self.context.as_ref().map(own), first: self.first, quantised }
    }
}

/// The weights of the samples of some shards.
#[derive(Debug)]
pub struct SampleWeights<'a, B: Backend> {
    /// For each shard `[n, 1]`; all of the training samples have mean 1.
    pub shards: &'a [B::Tensor],
    /// The weight of one whole sample.
    pub unit: f64,
}

/// Reshapes a number for each sample, `[n, 1]`, to the rank of the samples, `[n, 1, …]`, so that it multiplies all of a
/// sample's.
pub fn per_sample<B: Backend>(backend: &B, weights: &B::Tensor, samples: Shape) -> B::Tensor {
    let mut shape = vec![1; samples.rank()];
    shape[0] = samples.rows();
    backend.reshape(weights, shape[..].into())
}
