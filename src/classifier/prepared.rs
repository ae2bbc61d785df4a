//! The classifier's forward and backward pass.
//!
//! The input of a head is narrow, its features before the mean over pixels are wide: so samples go through all heads
//! and back in tiles that fit the device's cache or memory, one after the other.
//!
//! Cross-entropy −log p(y | x) = m + ln Σⱼ e^{lⱼ − m} − l_y with m = max l; its gradient in the logits is
//! softmax(l) − 1_y.

use std::ops::Range;

use resflow_backend::{Activation, Backend, Binary, Key, Over, Reduce, Shape, ShardPlan, Unary};

use super::Classifier;
use crate::batch::Batch;
use crate::bijection::{Ask, Bijection as _, Cotangents, Draw, Memory, PreparedBijection, Tape};
use crate::error::Error;
use crate::estimator::{Estimator, Exact};
use crate::layer::{Derivatives, Layer as _, LayerGrads, PreparedLayer, Saved};
use crate::module::{Grad, accumulate, fill, trained_shapes, trained_tensors};
use crate::transform::{from_vectors, to_vectors};

/// A classifier ready for computing.
#[derive(Debug)]
pub struct PreparedClassifier<B: Backend> {
    heads: Vec<PreparedHead<B>>,
    linear: Box<dyn PreparedLayer<B>>,
    classes: usize,
    /// The channels of each head.
    width: usize,
    /// The shapes of all trained tensors.
    shapes: Vec<Shape>,
}

/// Tensors that a head's reverse pass holds of its features before the mean: two of ActNorm, ReLU's value, its slope,
/// their permutation and a cotangent.
const KEPT: usize = 6;

#[derive(Debug)]
struct PreparedHead<B: Backend> {
    transform: usize,
    image: [usize; 3],
    conv: Box<dyn PreparedLayer<B>>,
    norm: Box<dyn PreparedBijection<B>>,
    /// The trained tensors of the convolution and of the norm.
    counts: [usize; 2],
}

/// The tape of a head's forward pass.
struct HeadTape<B: Backend> {
    conv: Saved<B>,
    norm: Tape,
    /// ReLU' at each number, `[n, h, w, c]`.
    slope: B::Tensor,
}

/// The objective of some labelled samples, with its gradients.
pub(crate) struct Judged<B: Backend> {
    /// Σ wᵢ (−log p(yᵢ | xᵢ)), nats, and Σ wᵢ \[yᵢ is the likeliest class\], `[2]`.
    pub(crate) score: B::Tensor,
    /// For each head the gradient of the first in its input, `[n, h, w, c]`.
    pub(crate) gradients: Vec<B::Tensor>,
}

/// Placeholder: ActNorm's log det is ignored here, so any estimator will do.
const NO_LOG_DET: Estimator = Estimator::Exact(Exact);

impl<B: Backend> PreparedClassifier<B> {
    pub(super) fn new(backend: &B, classifier: &Classifier<B>) -> Self {
        let head = |head: &super::Head<B>| PreparedHead {
            transform: head.transform,
            image: head.image,
            conv: head.conv.prepare(backend),
            norm: head.norm.prepare(backend),
            counts: [trained_tensors(&head.conv), trained_tensors(&head.norm)],
        };
        Self {
            heads: classifier.heads.iter().map(head).collect(),
            linear: classifier.linear.prepare(backend),
            classes: classifier.classes,
            width: classifier.width,
            shapes: trained_shapes(backend, classifier),
        }
    }

    /// The samples that go through the heads at a time.
    fn tiles(&self, backend: &B, seen: &[B::Tensor]) -> Vec<Range<usize>> {
        let pixels = |x: &B::Tensor| backend.shape(x)[1] * backend.shape(x)[2];
        let numbers = KEPT * self.width * seen.iter().map(pixels).sum::<usize>();
        let rows = seen.first().map_or(0, |x| backend.shape(x).rows());
        ShardPlan::new(rows, backend.tile_rows(numbers * size_of::<B::Elem>()), 1).ranges().collect()
    }

    /// K, the number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The last transform that a head looks at.
    pub(crate) fn last_transform(&self) -> usize {
        self.heads.iter().map(|h| h.transform).max().unwrap_or(0)
    }

    /// Returns the input of the head attached to transform `number`, if any: the factored-out channels if the transform
    /// factors out, otherwise its whole output; as images `[n, h, w, c]`.
    pub(crate) fn look(&self, backend: &B, number: usize, y: &B::Tensor, factored_out: usize) -> Option<B::Tensor> {
        let head = self.heads.iter().find(|h| h.transform == number)?;
        let shape = backend.shape(y);
        Some(match shape.rank() {
            2 => from_vectors(backend, y, &head.image),
            rank if factored_out > 0 => backend.narrow(y, rank - 1, shape.channels() - factored_out, factored_out),
            _ => y.clone(),
        })
    }

    /// Adds the gradient of the input of the head attached to transform `number`, if any, to the cotangent of the
    /// transform's output.
    pub(crate) fn join(
        &self,
        backend: &B,
        number: usize,
        gy: B::Tensor,
        factored_out: usize,
        gradients: &[B::Tensor],
    ) -> B::Tensor {
        let Some(head) = self.heads.iter().position(|h| h.transform == number) else { return gy };
        let (own, shape) = (&gradients[head], backend.shape(&gy));
        match shape.rank() {
            2 => backend.axpy(1.0, &to_vectors(backend, own), gy),
            rank if factored_out > 0 => {
                let stay = shape.channels() - factored_out;
                let rest = backend.narrow(&gy, rank - 1, 0, stay);
                let left = backend.narrow(&gy, rank - 1, stay, factored_out);
                backend.concat(&[&rest, &backend.axpy(1.0, own, left)], rank - 1)
            }
            _ => backend.axpy(1.0, own, gy),
        }
    }

    /// Computes ln p(y | x) of each sample, `[n, K]`, nats, from the inputs of the heads.
    pub(crate) fn log_probabilities(&self, backend: &B, seen: &[B::Tensor]) -> Result<B::Tensor, Error> {
        let tile = |tile: Range<usize>| {
            let features = self.heads.iter().zip(seen);
            let features =
                features.map(|(head, x)| head.features(backend, &backend.narrow(x, 0, tile.start, tile.len())));
            let features = features.collect::<Result<Vec<_>, _>>()?;
            let joined = backend.concat(&features.iter().collect::<Vec<_>>(), 1);
            let (logits, _) = self.linear.forward(backend, &Batch::new(joined), Derivatives::None);
            Ok(Softmax::of(backend, &logits).log_probabilities(backend))
        };
        let tiles = self.tiles(backend, seen).into_iter().map(tile).collect::<Result<Vec<_>, Error>>()?;
        Ok(backend.concat(&tiles.iter().collect::<Vec<_>>(), 0))
    }

    /// Computes the cross-entropy, nats, of samples with one-hot targets `[n, K]` and weights `[n, 1]`, and its
    /// gradients: those of the parameters are added.
    pub(crate) fn judge(
        &self,
        backend: &B,
        seen: &[B::Tensor],
        targets: &B::Tensor,
        weights: &B::Tensor,
        grads: &mut [Grad<B>],
    ) -> Result<Judged<B>, Error> {
        let mut score = None;
        let mut gradients = vec![Vec::new(); self.heads.len()];
        for tile in self.tiles(backend, seen) {
            let rows = |x: &B::Tensor| backend.narrow(x, 0, tile.start, tile.len());
            let seen: Vec<_> = seen.iter().map(rows).collect();
            let judged = self.judge_tile(backend, &seen, &rows(targets), &rows(weights), grads)?;
            accumulate(backend, &mut score, &judged.score);
            for (all, own) in gradients.iter_mut().zip(judged.gradients) {
                all.push(own);
            }
        }
        let join = |tiles: Vec<B::Tensor>| backend.concat(&tiles.iter().collect::<Vec<_>>(), 0);
        Ok(Judged {
            score: score.unwrap_or_else(|| backend.full(0.0, [2].into())),
            gradients: gradients.into_iter().map(join).collect(),
        })
    }

    fn judge_tile(
        &self,
        backend: &B,
        seen: &[B::Tensor],
        targets: &B::Tensor,
        weights: &B::Tensor,
        grads: &mut [Grad<B>],
    ) -> Result<Judged<B>, Error> {
        let seen = self.heads.iter().zip(seen).map(|(head, x)| head.train_forward(backend, x));
        let (features, tapes): (Vec<_>, Vec<_>) = seen.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let joined = backend.concat(&features.iter().collect::<Vec<_>>(), 1);
        let (logits, saved) = self.linear.forward(backend, &Batch::new(joined), Derivatives::Second);
        let softmax = Softmax::of(backend, &logits);
        let cross_entropy = softmax.cross_entropy(backend, targets);
        // the true class is right where no logit, all less their largest, exceeds its own
        let right = backend.full(0.0, backend.shape(weights));
        let right = backend.binary(Binary::LessEqual, right, &backend.dot_rows(&softmax.shifted, targets));
        let score = [cross_entropy, right].map(|column| backend.dot(weights, &column));
        let score = backend.concat(&[&score[0], &score[1]], 0);

        let difference = backend.axpy(-1.0, targets, softmax.probabilities(backend));
        let g_logits = backend.binary(Binary::Mul, difference, weights);
        let heads = self.heads.iter().map(PreparedHead::grads).sum();
        let (own, last) = grads.split_at_mut(heads);
        let last = LayerGrads { trained: last, context: &mut None };
        let (g, _) = self.linear.tangent_vjp(backend, &saved, &[], g_logits, Vec::new(), last);
        let mut gradients = Vec::with_capacity(self.heads.len());
        let mut rest = own;
        for (number, (head, tape)) in self.heads.iter().zip(tapes).enumerate() {
            let (own, others) = rest.split_at_mut(head.grads());
            rest = others;
            let g = backend.narrow(&g, 1, number * self.width, self.width);
            gradients.push(head.backward(backend, tape, &g, own)?);
        }
        Ok(Judged { score, gradients })
    }

    /// The number of trained tensors.
    pub(crate) fn grads(&self) -> usize {
        self.shapes.len()
    }

    /// Turns the gradients of what is computed with into those of what is stored; what got none becomes zeros.
    pub(crate) fn finish_gradients(&self, backend: &B, grads: &mut Vec<Grad<B>>) {
        grads.resize(self.shapes.len(), None);
        let mut rest = &mut grads[..];
        for head in &self.heads {
            let [conv, norm] = head.counts;
            let (own, others) = rest.split_at_mut(conv);
            let _ = head.conv.finish_gradients(backend, own);
            let (own, others) = others.split_at_mut(norm);
            head.norm.finish_gradients(backend, own);
            rest = others;
        }
        let _ = self.linear.finish_gradients(backend, rest);
        fill(backend, grads, &self.shapes);
    }
}

impl<B: Backend> PreparedHead<B> {
    fn grads(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Computes the features of each sample, `[n, width]`.
    fn features(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor, Error> {
        let (mapped, _) = self.conv.forward(backend, &Batch::new(x.clone()), Derivatives::None);
        let normal = self.norm.forward(backend, &Batch::new(mapped), &Ask::value::<B>())?.y;
        Ok(means(backend, &backend.activation(Activation::Relu, None, &normal, 0)[0]))
    }

    /// Computes the features, keeping what the backward pass needs.
    fn train_forward(&self, backend: &B, x: &B::Tensor) -> Result<(B::Tensor, HeadTape<B>), Error> {
        let (mapped, conv) = self.conv.forward(backend, &Batch::new(x.clone()), Derivatives::Second);
        let draw = Draw { estimator: &NO_LOG_DET, key: Key::new(0) };
        let ask = Ask::gradient::<B>(draw, Memory::Store);
        let normal = self.norm.forward(backend, &Batch::new(mapped), &ask)?;
        let mut orders = backend.activation(Activation::Relu, None, &normal.y, 1);
        let slope = orders.swap_remove(1);
        let norm = normal.tape.expect("ActNorm keeps its output");
        Ok((means(backend, &orders[0]), HeadTape { conv, norm, slope }))
    }

    /// Goes from the cotangent of the features, `[n, width]`, to that of the images.
    fn backward(
        &self,
        backend: &B,
        tape: HeadTape<B>,
        g: &B::Tensor,
        grads: &mut [Grad<B>],
    ) -> Result<B::Tensor, Error> {
        let shape = backend.shape(&tape.slope);
        let [n, h, w, c] = [0, 1, 2, 3].map(|axis| shape[axis]);
        let g = backend.affine(backend.reshape(g, [n, 1, 1, c].into()), 1.0 / (h * w) as f64, 0.0);
        let g = backend.binary(Binary::Mul, tape.slope, &g);
        let (conv, norm) = grads.split_at_mut(self.counts[0]);
        let cotangents = Cotangents { x: g, log_det: backend.full(0.0, [n, 1].into()), context: None };
        let g = self.norm.backward(backend, tape.norm, cotangents, norm)?.x;
        let conv = LayerGrads { trained: conv, context: &mut None };
        Ok(self.conv.tangent_vjp(backend, &tape.conv, &[], g, Vec::new(), conv).0)
    }
}

/// The mean over the pixels of images, `[n, c]`.
fn means<B: Backend>(backend: &B, images: &B::Tensor) -> B::Tensor {
    let pixels = backend.permute(images, &[0, 3, 1, 2]);
    let [n, c, h, w] = [0, 1, 2, 3].map(|axis| backend.shape(&pixels)[axis]);
    let sums = backend.reduce(Reduce::Sum, Over::Row, &backend.reshape(&pixels, [n * c, h * w].into()));
    backend.affine(backend.reshape(&sums, [n, c].into()), 1.0 / (h * w) as f64, 0.0)
}

/// A softmax of rows of logits.
struct Softmax<B: Backend> {
    /// l − max l.
    shifted: B::Tensor,
    exponentials: B::Tensor,
    /// Σⱼ e^{lⱼ − max l}, `[n, 1]`.
    sums: B::Tensor,
}

impl<B: Backend> Softmax<B> {
    fn of(backend: &B, logits: &B::Tensor) -> Self {
        let largest = backend.reduce(Reduce::Max, Over::Row, logits);
        let shifted = backend.binary(Binary::Sub, logits.clone(), &largest);
        let exponentials = backend.unary(Unary::Exp, shifted.clone());
        let sums = backend.reduce(Reduce::Sum, Over::Row, &exponentials);
        Self { shifted, exponentials, sums }
    }

    fn probabilities(&self, backend: &B) -> B::Tensor {
        backend.binary(Binary::Div, self.exponentials.clone(), &self.sums)
    }

    fn log_probabilities(&self, backend: &B) -> B::Tensor {
        backend.binary(Binary::Sub, self.shifted.clone(), &backend.unary(Unary::Ln, self.sums.clone()))
    }

    /// −log p of the targets, `[n, 1]`.
    fn cross_entropy(&self, backend: &B, targets: &B::Tensor) -> B::Tensor {
        let own = backend.dot_rows(&self.shifted, targets);
        backend.axpy(-1.0, &own, backend.unary(Unary::Ln, self.sums.clone()))
    }
}
