//! The gradient of a weighted negative log likelihood, −Σ wᵢ log p(xᵢ), over a batch.
//!
//! The batch is cut into shards; each goes forward through all links and back before its lane takes the next. Gradients
//! gather in one accumulator a lane, lanes are added in order, and each link's sum is pulled back through its
//! normalisation once. The result is a function of the batch, the configuration and the key: the number of threads does
//! not enter.

use resflow_backend::{Backend, Binary, Key, ShardPlan};

use crate::bijection::{Draw, Memory, PreparedBijection};
use crate::chain::{Back, Forth};
use crate::classifier::PreparedClassifier;
use crate::estimator::Estimator;
use crate::layer::{Slot, accumulate};

/// The most accumulators that a gradient of this many numbers gets: fewer where they would fill the memory.
fn most_lanes(parameters: u64) -> usize {
    match parameters {
        0..=2_000_000 => 8,
        2_000_001..=8_000_000 => 4,
        8_000_001..=16_000_000 => 2,
        _ => 1,
    }
}

/// What a gradient is taken of, and how.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a, B: Backend> {
    /// The batch in standardised units, `[n, d]` or `[n, h, w, c]`.
    pub x: &'a B::Tensor,
    /// wᵢ, `[n, 1]`; 1/n each makes the mean.
    pub weights: &'a B::Tensor,
    /// The estimator of the log dets.
    pub estimator: &'a Estimator,
    /// The key of this step.
    pub key: Key,
    /// The number that the first row has in the whole batch, of which this may be a part.
    pub first_row: u64,
    /// What the forward pass keeps.
    pub memory: Memory,
    /// Activations that a row keeps alive, in bytes.
    pub row_bytes: usize,
    /// The number of trained numbers.
    pub parameters: u64,
    /// Whether the gradient in x is wanted.
    pub input_gradient: bool,
    /// What else is minimised, of a hybrid model.
    pub supervision: Option<Supervision<'a, B>>,
}

/// Labelled rows for a classifier: the objective becomes Σ wᵢ (λ (−log p(xᵢ)) − log p(yᵢ | xᵢ)).
#[derive(Debug, Clone, Copy)]
pub struct Supervision<'a, B: Backend> {
    /// The classifier of the links.
    pub classifier: &'a PreparedClassifier<B>,
    /// 1 at each row's class, else 0, `[n, K]`.
    pub targets: &'a B::Tensor,
    /// λ. With 0 log p is computed and reported all the same.
    pub density_weight: f64,
}

/// A gradient and the value that it belongs to.
#[derive(Debug, Clone)]
pub struct Gradient<B: Backend> {
    /// The gradients of all trained tensors one after the other in the order of a visit, `[P]`; those of a classifier come
    /// last, and only with supervision.
    pub flat: B::Tensor,
    /// Σ wᵢ (½‖zᵢ‖² − log det): Σ wᵢ (−log p(xᵢ)) without the base density's constant ½ d ln 2π Σ wᵢ, and without the λ of a
    /// supervision. The log dets in it are values, not surrogates.
    pub loss: B::Tensor,
    /// With supervision Σ wᵢ (−log p(yᵢ | xᵢ)), and Σ wᵢ over the rows whose likeliest class is theirs, `[2]`.
    pub classification: Option<B::Tensor>,
    /// The gradient in x, if asked for.
    pub input: Option<B::Tensor>,
    /// Vector-Jacobian products of the series, summed over links, of the longest shard.
    pub terms: usize,
}

struct Lane<B: Backend> {
    slots: Vec<Vec<Slot<B>>>,
    classifier: Vec<Slot<B>>,
    loss: Option<B::Tensor>,
    classification: Option<B::Tensor>,
    inputs: Vec<B::Tensor>,
    terms: usize,
}

/// The gradient of −Σ wᵢ log p(xᵢ), or of what a supervision makes of it.
pub fn gradient<B: Backend>(
    backend: &B,
    links: &[Box<dyn PreparedBijection<B>>],
    objective: &Objective<'_, B>,
) -> Gradient<B> {
    let rows = backend.shape(objective.x).rows();
    let lanes = backend.lanes().min(most_lanes(objective.parameters));
    let plan = ShardPlan::new(rows, backend.shard_rows(objective.row_bytes), lanes);
    let mut lanes = backend.run(plan.lanes(), |l| {
        let mut lane = Lane {
            slots: links.iter().map(|link| vec![None; link.slots()]).collect(),
            classifier: vec![None; objective.supervision.as_ref().map_or(0, |s| s.classifier.slots())],
            loss: None,
            classification: None,
            inputs: Vec::new(),
            terms: 0,
        };
        for shard in plan.lane(l) {
            run_shard(backend, links, objective, shard.start, shard.len(), &mut lane);
        }
        lane
    });
    let sum = |parts: Vec<B::Tensor>| parts.into_iter().reduce(|a, b| backend.axpy(1.0, &b, a));
    let loss = sum(lanes.iter_mut().filter_map(|l| l.loss.take()).collect());
    let classification = sum(lanes.iter_mut().filter_map(|l| l.classification.take()).collect());
    // shard i is entry i div L of lane i mod L
    let input = objective.input_gradient.then(|| {
        let count = plan.lanes();
        let parts: Vec<_> = (0..plan.shards()).map(|i| &lanes[i % count].inputs[i / count]).collect();
        backend.concat(&parts, 0)
    });
    let per_link = backend.run(links.len(), |i| {
        let mut sums = add_up(backend, lanes.iter().map(|lane| &lane.slots[i]));
        links[i].pull_back(backend, &mut sums);
        flatten(backend, sums.iter().flatten())
    });
    let of_classifier = objective.supervision.as_ref().and_then(|supervision| {
        let mut sums = add_up(backend, lanes.iter().map(|lane| &lane.classifier));
        supervision.classifier.pull_back(backend, &mut sums);
        flatten(backend, sums.iter().flatten())
    });
    let parts = per_link.iter().flatten().chain(&of_classifier);
    Gradient {
        flat: flatten(backend, parts).unwrap_or_else(|| backend.full(0.0, [0].into())),
        classification,
        loss: loss.unwrap_or_else(|| backend.full(0.0, [1].into())),
        input,
        terms: lanes.iter().map(|l| l.terms).max().unwrap_or(0),
    }
}

/// The sums over lanes, in their order.
fn add_up<'a, B: Backend>(backend: &B, lanes: impl Iterator<Item = &'a Vec<Slot<B>>>) -> Vec<Slot<B>> {
    let mut sums: Vec<Slot<B>> = Vec::new();
    for slots in lanes {
        sums.resize(slots.len(), None);
        for (sum, slot) in sums.iter_mut().zip(slots) {
            if let Some(gradient) = slot {
                crate::layer::accumulate(backend, sum, gradient);
            }
        }
    }
    sums
}

/// Tensors one after the other, `[total]`; `None` of nothing.
pub(crate) fn flatten<'a, B: Backend>(backend: &B, tensors: impl Iterator<Item = &'a B::Tensor>) -> Option<B::Tensor> {
    let flat: Vec<_> = tensors.map(|t| backend.reshape(t, [backend.shape(t).elements()].into())).collect();
    (!flat.is_empty()).then(|| backend.concat(&flat.iter().collect::<Vec<_>>(), 0))
}

/// A shard forward through all links and back.
fn run_shard<B: Backend>(
    backend: &B,
    links: &[Box<dyn PreparedBijection<B>>],
    objective: &Objective<'_, B>,
    start: usize,
    rows: usize,
    lane: &mut Lane<B>,
) {
    let weights = backend.narrow(objective.weights, 0, start, rows);
    let mut way = Forth::new(backend.narrow(objective.x, 0, start, rows));
    let mut log_det = backend.full(0.0, [rows, 1].into());
    let mut tapes = Vec::with_capacity(links.len());
    let mut terms = 0;
    let mut seen = Vec::new();
    for (l, link) in links.iter().enumerate() {
        let draw = Draw {
            estimator: objective.estimator,
            key: objective.key.split(l as u64),
            first_row: objective.first_row + start as u64,
        };
        let forward = link.train_forward(backend, &way.rows, draw, objective.memory);
        if let Some(supervision) = &objective.supervision {
            seen.extend(supervision.classifier.look(backend, l, &forward.y, link.leaving()));
        }
        way.pass(backend, forward.y, link.leaving());
        log_det = backend.axpy(1.0, &forward.log_det, log_det);
        terms += forward.terms;
        tapes.push(forward.tape);
    }
    let (z, parts) = way.finish(backend);
    let nll = backend.axpy(-1.0, &log_det, backend.affine(backend.dot_rows(&z, &z), 0.5, 0.0));
    let loss = backend.dot(&weights, &nll);
    accumulate(backend, &mut lane.loss, &loss);
    lane.terms = lane.terms.max(terms);

    let mut density_weights = weights.clone();
    let mut from_heads = Vec::new();
    if let Some(supervision) = &objective.supervision {
        let targets = backend.narrow(supervision.targets, 0, start, rows);
        let judged = supervision.classifier.judge(backend, &seen, &targets, &weights, &mut lane.classifier);
        accumulate(backend, &mut lane.classification, &judged.score);
        from_heads = judged.gradients;
        density_weights = backend.affine(weights, supervision.density_weight, 0.0);
    }
    let mut back = Back::new(backend, &backend.binary(Binary::Mul, z, &density_weights), &parts);
    let g_log_det = backend.affine(density_weights, -1.0, 0.0);
    for (l, ((link, tape), slots)) in links.iter().zip(tapes).zip(&mut lane.slots).enumerate().rev() {
        let mut gy = back.output(backend, link.leaving());
        if let Some(supervision) = &objective.supervision {
            gy = supervision.classifier.join(backend, l, gy, link.leaving(), &from_heads);
        }
        back.pass(link.train_backward(backend, tape, gy, &g_log_det, slots));
    }
    if objective.input_gradient {
        lane.inputs.push(back.finish());
    }
}
