//! The classifier's forward and backward pass.
//!
//! Cross-entropy −log p(y | x) = m + ln Σⱼ e^{lⱼ − m} − l_y with m = max l; its gradient in the logits is softmax(l) − 1_y.

use resflow_backend::{Activation, Backend, Binary, Key, Over, Reduce, Unary};

use super::Classifier;
use crate::bijection::{Bijection as _, Draw, Memory, PreparedBijection, Tape};
use crate::estimator::{Estimator, Exact};
use crate::layer::{Keep, Layer as _, PreparedLayer, Saved, Slot};
use crate::transform::{from_vectors, to_vectors};

/// A classifier ready for computing.
#[derive(Debug)]
pub struct PreparedClassifier<B: Backend> {
    heads: Vec<PreparedHead<B>>,
    linear: Box<dyn PreparedLayer<B>>,
    classes: usize,
}

#[derive(Debug)]
struct PreparedHead<B: Backend> {
    link: usize,
    image: [usize; 3],
    conv: Box<dyn PreparedLayer<B>>,
    norm: Box<dyn PreparedBijection<B>>,
}

/// What a head's forward pass keeps.
struct HeadTape<B: Backend> {
    conv: Saved<B>,
    norm: Tape<B>,
    /// ReLU' at each number, `[n, h, w, c]`.
    slope: B::Tensor,
}

/// What some labelled rows say of the classifier.
pub(crate) struct Judged<B: Backend> {
    /// Σ wᵢ (−log p(yᵢ | xᵢ)) and Σ wᵢ \[yᵢ is the likeliest class\], `[2]`.
    pub(crate) score: B::Tensor,
    /// For each head the gradient of the first in what it looked at.
    pub(crate) gradients: Vec<B::Tensor>,
}

/// ActNorm's log det is no part of the objective here, so whatever estimates it.
const NO_LOG_DET: Estimator = Estimator::Exact(Exact);

impl<B: Backend> PreparedClassifier<B> {
    pub(super) fn new(backend: &B, classifier: &Classifier<B>) -> Self {
        let head = |head: &super::Head<B>| PreparedHead {
            link: head.link,
            image: head.image,
            conv: head.conv.prepare(backend),
            norm: head.norm.prepare(backend),
        };
        Self {
            heads: classifier.heads.iter().map(head).collect(),
            linear: classifier.linear.prepare(backend),
            classes: classifier.classes,
        }
    }

    /// K, the number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The last link that a head looks at.
    pub(crate) fn last_link(&self) -> usize {
        self.heads.iter().map(|h| h.link).max().unwrap_or(0)
    }

    /// What the head behind link `link`, if there is one, looks at, given the link's output, of which so many of the last
    /// channels leave: what leaves, or where nothing does, everything; as images `[n, h, w, c]`.
    pub(crate) fn look(&self, backend: &B, link: usize, y: &B::Tensor, leaving: usize) -> Option<B::Tensor> {
        let head = self.heads.iter().find(|h| h.link == link)?;
        let shape = backend.shape(y);
        Some(match shape.rank() {
            2 => from_vectors(backend, y, &head.image),
            rank if leaving > 0 => backend.narrow(y, rank - 1, shape.channels() - leaving, leaving),
            _ => y.clone(),
        })
    }

    /// Adds the gradient of what the head behind link `link` looked at, if there is one, to the cotangent of the link's
    /// output.
    pub(crate) fn join(
        &self,
        backend: &B,
        link: usize,
        gy: B::Tensor,
        leaving: usize,
        gradients: &[B::Tensor],
    ) -> B::Tensor {
        let Some(head) = self.heads.iter().position(|h| h.link == link) else { return gy };
        let (own, shape) = (&gradients[head], backend.shape(&gy));
        match shape.rank() {
            2 => backend.axpy(1.0, &to_vectors(backend, own), gy),
            rank if leaving > 0 => {
                let stay = shape.channels() - leaving;
                let rest = backend.narrow(&gy, rank - 1, 0, stay);
                let left = backend.narrow(&gy, rank - 1, stay, leaving);
                backend.concat(&[&rest, &backend.axpy(1.0, own, left)], rank - 1)
            }
            _ => backend.axpy(1.0, own, gy),
        }
    }

    /// ln p(y | x) of each row, `[n, K]`, from what each head looks at.
    pub(crate) fn log_probabilities(&self, backend: &B, seen: &[B::Tensor]) -> B::Tensor {
        let features: Vec<_> =
            self.heads.iter().zip(seen).map(|(head, x)| head.forward(backend, x, Keep::Value).0).collect();
        let joined = backend.concat(&features.iter().collect::<Vec<_>>(), 1);
        let (logits, _) = self.linear.forward(backend, &joined, Keep::Value);
        Softmax::of(backend, &logits).log_probabilities(backend)
    }

    /// The cross-entropy of rows with one-hot targets `[n, K]` and weights `[n, 1]`, and its gradients: those of the
    /// parameters are added to the slots.
    pub(crate) fn judge(
        &self,
        backend: &B,
        seen: &[B::Tensor],
        targets: &B::Tensor,
        weights: &B::Tensor,
        slots: &mut [Slot<B>],
    ) -> Judged<B> {
        let (features, tapes): (Vec<_>, Vec<_>) =
            self.heads.iter().zip(seen).map(|(head, x)| head.forward(backend, x, Keep::Second)).unzip();
        let joined = backend.concat(&features.iter().collect::<Vec<_>>(), 1);
        let (logits, saved) = self.linear.forward(backend, &joined, Keep::Second);
        let softmax = Softmax::of(backend, &logits);
        let cross_entropy = softmax.cross_entropy(backend, targets);
        // the true class is right where no logit, all less their largest, exceeds its own
        let right = backend.full(0.0, backend.shape(weights));
        let right = backend.binary(Binary::LessEqual, right, &backend.dot_rows(&softmax.shifted, targets));
        let score = [cross_entropy, right].map(|column| backend.dot(weights, &column));
        let score = backend.concat(&[&score[0], &score[1]], 0);

        let difference = backend.axpy(-1.0, targets, softmax.probabilities(backend));
        let g_logits = backend.binary(Binary::Mul, difference, weights);
        let (own, last) = slots.split_at_mut(slots.len() - self.linear.slots());
        let (g, _) = self.linear.tangent_vjp(backend, &saved, &[], g_logits, Vec::new(), last);
        let mut gradients = Vec::with_capacity(self.heads.len());
        let (mut at, mut rest) = (0, own);
        for (head, tape) in self.heads.iter().zip(tapes) {
            let (own, others) = rest.split_at_mut(head.slots());
            rest = others;
            let width = backend.shape(&features[gradients.len()]).channels();
            gradients.push(head.backward(backend, tape, &backend.narrow(&g, 1, at, width), own));
            at += width;
        }
        Judged { score, gradients }
    }

    /// The number of trained tensors.
    pub fn slots(&self) -> usize {
        self.heads.iter().map(PreparedHead::slots).sum::<usize>() + self.linear.slots()
    }

    /// Turns the gradients of what is computed with into those of what is stored; an empty slot becomes zeros.
    pub(crate) fn pull_back(&self, backend: &B, slots: &mut [Slot<B>]) {
        let mut rest = slots;
        for head in &self.heads {
            let (conv, others) = rest.split_at_mut(head.conv.slots());
            let (norm, others) = others.split_at_mut(head.norm.slots());
            rest = others;
            let _ = head.conv.pull_back(backend, conv);
            head.norm.pull_back(backend, norm);
        }
        let _ = self.linear.pull_back(backend, rest);
    }
}

impl<B: Backend> PreparedHead<B> {
    fn slots(&self) -> usize {
        self.conv.slots() + self.norm.slots()
    }

    /// The features of each row, `[n, width]`.
    fn forward(&self, backend: &B, x: &B::Tensor, keep: Keep) -> (B::Tensor, HeadTape<B>) {
        let (mapped, conv) = self.conv.forward(backend, x, keep);
        let draw = Draw { estimator: &NO_LOG_DET, key: Key::new(0), first_row: 0 };
        let normal = self.norm.train_forward(backend, &mapped, draw, Memory::Keep);
        let mut orders = backend.activation(Activation::Relu, None, &normal.y, usize::from(keep > Keep::Value));
        let slope = if orders.len() > 1 { orders.swap_remove(1) } else { orders[0].clone() };
        let pixels = backend.permute(&orders[0], &[0, 3, 1, 2]);
        let [n, c, h, w] = [0, 1, 2, 3].map(|axis| backend.shape(&pixels)[axis]);
        let sums = backend.reduce(Reduce::Sum, Over::Row, &backend.reshape(&pixels, [n * c, h * w].into()));
        let means = backend.affine(backend.reshape(&sums, [n, c].into()), 1.0 / (h * w) as f64, 0.0);
        (means, HeadTape { conv, norm: normal.tape, slope })
    }

    /// From the cotangent of the features to that of the images.
    fn backward(&self, backend: &B, tape: HeadTape<B>, g: &B::Tensor, slots: &mut [Slot<B>]) -> B::Tensor {
        let shape = backend.shape(&tape.slope);
        let [n, h, w, c] = [0, 1, 2, 3].map(|axis| shape[axis]);
        let g = backend.affine(backend.reshape(g, [n, 1, 1, c].into()), 1.0 / (h * w) as f64, 0.0);
        let g = backend.binary(Binary::Mul, tape.slope, &g);
        let (conv, norm) = slots.split_at_mut(self.conv.slots());
        let no_log_det = backend.full(0.0, [n, 1].into());
        let g = self.norm.train_backward(backend, tape.norm, g, &no_log_det, norm);
        self.conv.tangent_vjp(backend, &tape.conv, &[], g, Vec::new(), conv).0
    }
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
