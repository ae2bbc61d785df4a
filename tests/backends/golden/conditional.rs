//! A conditional block and a conditional ActNorm behind it: the embedding, g, y, the log dets, and the gradient of Σ weight·log det +
//! Σ cotangent·y in x, in the context and in all parameters; once more with gates. With one context for all samples the same
//! comes out as where each is given it.

use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, Draw, Memory, PreparedBijection as _};
use resflow::block::ResidualBlock;
use resflow::chain::Chain;
use resflow::conditional::Embedding;
use resflow::estimator::{Estimator, Exact};
use resflow::layer::{
    ActivationLayer, Conditioner, ContextBias, ContextGate, Derivatives, Layer, LipschitzLinear, Sequence, Told,
};
use resflow::lipschitz::{Coefficient, SingularPair};
use resflow::module::{Grad, Module as _};
use resflow::transform::ConditionalActNorm;

use crate::common::asking::count_grads;
use crate::golden::fixture::{Comparison, Fixture, host};

/// The embedding of the file.
fn embedding<B: Backend>(backend: &B, file: &Fixture) -> Embedding<B> {
    let mut embedding = Embedding::new(backend, file.note("context"), &file.note::<Vec<usize>>("embedding"), None);
    embedding.visit_mut("", &mut |name, t, _| *t = file.tensor(backend, &format!("param.embed.{name}")));
    embedding
}

/// The layers that are told of the context, in the order in which they are: (the name in the file, where it is among all).
fn told(hidden: &[usize], gated: bool) -> Vec<(String, Told)> {
    let all = hidden.iter().sum::<usize>() * if gated { 2 } else { 1 };
    let mut offset = 0;
    let mut next = |name: String, features: usize| {
        offset += features;
        (name, Told { offset: offset - features, features, all })
    };
    let mut found = Vec::new();
    for (l, &width) in hidden.iter().enumerate() {
        found.push(next(format!("inject.{l}.weight"), width));
        if gated {
            found.push(next(format!("film.{l}.weight"), width));
        }
    }
    found
}

fn block<B: Backend>(backend: &B, file: &Fixture, gated: bool) -> ResidualBlock<B> {
    let hidden: Vec<usize> = file.note("hidden");
    let told = told(&hidden, gated);
    let mut layers: Vec<Box<dyn Layer<B>>> = Vec::new();
    let mut places = told.iter().map(|(_, place)| *place);
    for l in 0..=hidden.len() {
        let part = |kind: &str, leaf: &str| file.tensor(backend, &format!("{kind}.linear.{l}.{leaf}"));
        let pair = SingularPair::new(backend, part("buffer", "u"), part("buffer", "v"));
        let coefficient = Coefficient::new(file.note("coeff")).expect("between 0 and 1");
        let (weight, bias) = (part("param", "weight"), part("param", "bias"));
        layers.push(Box::new(LipschitzLinear::from_parts(backend, weight, bias, pair, coefficient).expect("it fits")));
        if l < hidden.len() {
            layers.push(Box::new(ContextBias::new(places.next().expect("one a hidden layer"))));
            layers.push(Box::new(ActivationLayer::lipswish(file.tensor(backend, &format!("param.beta.{l}")))));
            if gated {
                layers.push(Box::new(ContextGate::new(places.next().expect("one a hidden layer"))));
            }
        }
    }
    let weights: Vec<_> = told.iter().map(|(name, _)| file.tensor(backend, &format!("param.{name}"))).collect();
    let weight = backend.concat(&weights.iter().collect::<Vec<_>>(), 0);
    let conditioner = Conditioner::from_weight(backend, weight);
    let net = Sequence::new(layers).with_conditioner(backend, conditioner).expect("as many numbers as it is told");
    ResidualBlock::new(Box::new(net), &[file.note("d")]).expect("a contraction")
}

/// Compares the whole file.
pub(crate) fn rows<B: Backend>(backend: &B) {
    let file = Fixture::open("conditional_block_rows");
    let mut comparison = Comparison::new::<B>("conditional block");
    for gated in [false, true] {
        compare(backend, &file, &mut comparison, gated);
    }
    for l in 0..3 {
        // σ = uᵀWv of the stored vectors is what the golden numbers are made with
        file.mark_read(|key| key == format!("buffer.linear.{l}.scale"));
    }
    comparison.finish();
    file.assert_all_read();
}

#[allow(clippy::too_many_lines)] // one file
fn compare<B: Backend>(backend: &B, file: &Fixture, comparison: &mut Comparison, gated: bool) {
    let key = |name: &str| format!("{}{name}", if gated { "gated." } else { "" });
    let [x, cotangent, context] = ["x", "cotangent", "context"].map(|key| file.tensor(backend, key));
    let n = backend.shape(&x).rows();
    let own = embedding(backend, file);
    let prepared = own.prepare(backend);
    let embedded = prepared.embed(backend, &context);
    comparison.tensor(backend, "embedding", &embedded, file.values("embedding"));
    let batch = Batch::new(x.clone()).with_context(Some(embedded.clone()));

    let block = block(backend, file, gated);
    let g = block.net().prepare(backend);
    let (value, _) = g.forward(backend, &g.tell(backend, &batch), Derivatives::None);
    comparison.tensor(backend, &key("g"), &value, file.values(&key("g")));

    let part = |leaf: &str| file.tensor(backend, &format!("param.actnorm.{leaf}"));
    let norm = ConditionalActNorm::from_parts(backend, part("weight"), part("bias")).expect("shapes that fit");
    let names: Vec<String> = {
        let mut names = Vec::new();
        block.visit("", &mut |name, _, role| names.extend(role.is_trained().then(|| name.to_owned())));
        names
    };
    let exact = Estimator::Exact(Exact);
    let draw = Draw { estimator: &exact, key: Key::new(0) };
    // a from what it does to 0 and to 1
    let ends = [0.0, 1.0].map(|value| {
        let at = batch.with_x(backend.full(value, backend.shape(&x)));
        host(backend, &norm.prepare(backend).forward(backend, &at, &Ask::value::<B>()).expect("a formula").y)
    });
    let a: Vec<f64> = ends[0].iter().zip(&ends[1]).map(|(zero, one)| (one - zero).ln()).collect();
    comparison.close(&key("a"), &a, file.values(&key("a")));

    let trained = count_grads(&block) + count_grads(&norm);
    let transforms: Vec<Box<dyn Bijection<B>>> = vec![Box::new(block), Box::new(norm)];
    let chain = Chain::new(transforms, &[file.note("d")]).expect("samples pass").prepare_chain(backend);
    for memory in [Memory::Store, Memory::Recompute] {
        let ask = Ask::gradient::<B>(draw, memory);
        let mut mapped = chain.forward_observed(backend, &batch, &ask, &mut |_, _, _| ()).expect("forward");
        comparison.tensor(backend, &key("y"), &mapped.y, file.values(&key("y")));
        comparison.tensor(backend, &key("block_logdet"), &mapped.log_dets[0].value, file.values(&key("block_logdet")));
        let log_det = backend.axpy(1.0, &mapped.log_dets[0].value, mapped.log_dets[1].value.clone());
        comparison.tensor(backend, &key("logdet"), &log_det, file.values(&key("logdet")));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let loss = dot(&host(backend, &log_det), file.values("weight"))
            + dot(&host(backend, &mapped.y), file.values("cotangent"));
        comparison.close(&key("loss"), &[loss], file.values(&key("loss")));

        let mut grads: Vec<Grad<B>> = vec![None; trained];
        let weights = backend.reshape(&file.tensor(backend, "weight"), [n, 1].into());
        let cotangents = Cotangents { x: cotangent.clone(), log_det: weights, context: None };
        let tape = mapped.tape.take().expect("a backward pass was announced");
        let back = chain.backward(backend, tape, cotangents, &mut grads).expect("backward");
        chain.finish_gradients(backend, &mut grads);
        comparison.tensor(backend, &key("grad_x"), &back.x, file.values(&key("grad_x")));
        let (_, kept) = prepared.forward(backend, &context);
        let mut of_embedding: Vec<Grad<B>> = vec![None; 4];
        let gradient = back.context.expect("the chain looks at the context");
        let of_context = prepared.pull_back(backend, kept, gradient, &mut of_embedding);
        comparison.tensor(backend, &key("grad_context"), &of_context, file.values(&key("grad_context")));
        let theirs = ["embed.0.weight", "embed.0.bias", "embed.1.weight", "embed.1.bias"];
        for (name, gradient) in theirs.iter().zip(&of_embedding) {
            let name = key(&format!("grad.{name}"));
            comparison.tensor(backend, &name, gradient.as_ref().expect("a gradient"), file.values(&name));
        }
        for (ours, gradient) in names.iter().zip(&grads) {
            let gradient = gradient.as_ref().expect("a gradient");
            if ours == "net.context.weight" {
                for (name, place) in told(&file.note::<Vec<usize>>("hidden"), gated) {
                    let name = key(&format!("grad.{name}"));
                    let own = backend.narrow(gradient, 0, place.offset, place.features);
                    comparison.tensor(backend, &name, &own, file.values(&name));
                }
                continue;
            }
            // net.<layer>.<leaf>, of which a hidden layer has three or four
            let mut parts = ours.split('.').skip(1);
            let layer: usize = parts.next().and_then(|n| n.parse().ok()).expect("a number");
            let leaf = parts.next().expect("a name");
            let l = layer / if gated { 4 } else { 3 };
            let name = key(&if leaf == "beta" { format!("grad.beta.{l}") } else { format!("grad.linear.{l}.{leaf}") });
            comparison.tensor(backend, &name, gradient, file.values(&name));
        }
        for (leaf, gradient) in ["weight", "bias"].iter().zip(&grads[names.len()..]) {
            let name = key(&format!("grad.actnorm.{leaf}"));
            comparison.tensor(backend, &name, gradient.as_ref().expect("a gradient"), file.values(&name));
        }
    }
    // the samples with the first one's context, each by itself and all together
    let first = backend.narrow(&embedded, 0, 0, 1);
    let [each, all] = [backend.take_rows(&first, &vec![0; n]), first].map(|context| {
        let batch = Batch::new(x.clone()).with_context(Some(context));
        let mut mapped =
            chain.forward_observed(backend, &batch, &Ask::gradient::<B>(draw, Memory::Store), &mut |_, _, _| ());
        let mapped = mapped.as_mut().expect("forward");
        let mut grads: Vec<Grad<B>> = vec![None; trained];
        let log_det = backend.full(0.7, [n, 1].into());
        let cotangents = Cotangents { x: cotangent.clone(), log_det, context: None };
        let back = chain.backward(backend, mapped.tape.take().expect("a tape"), cotangents, &mut grads).expect("back");
        chain.finish_gradients(backend, &mut grads);
        let mut found = vec![host(backend, &mapped.y), host(backend, &back.x)];
        let context = host(backend, &back.context.expect("of the context"));
        let width = own.width();
        found.push((0..width).map(|j| context.iter().skip(j).step_by(width).sum()).collect());
        found.extend(grads.iter().map(|g| host(backend, g.as_ref().expect("a gradient"))));
        found
    });
    for (i, (each, all)) in each.iter().zip(&all).enumerate() {
        comparison.close(&key(&format!("shared context, {i}")), all, each);
    }
}
