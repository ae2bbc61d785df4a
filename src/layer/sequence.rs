//! Layers one after the other: f = f_L ∘ … ∘ f₁, derivatives by the chain rule, Lip(f) ≤ Π Lip(f_l).
//!
//! The norms that constrained layers are bounded between meet at their boundaries, so a chain owns the raw parameters
//! of learned ones: one parameter is the codomain of a layer and the domain of the next.
//!
//! A conditional chain owns U, too ([`Conditioner`]). Biases by the context are no layers once it is prepared: they are added on
//! the way forward, and their gradients are taken on the way back; every product with J is that of the chain without them.

use std::borrow::Cow;
use std::ops::Range;

use resflow_backend::{
    Backend, BackendError, Binary, MAX_RANK, Net as BackendNet, NetForward, NetLayer, Over, Reduce, Shape,
};

use super::activation::{kept, slope};
use super::context::{Conditioner, PreparedConditioner, Told};
use super::known::{each_its_own, slopes, whole};
use super::linear::matrix;
use super::traces::KnownTraces;
use super::{Derivatives, Layer, LayerGrads, LayerNorms, OrderGradients, PreparedLayer, Saved, WeightedTraces};
use crate::batch::Batch;
use crate::error::ConfigError;
use crate::estimator::{Bottleneck, Control};
use crate::lipschitz::{Order, WeightBounds, check_chain, two_norm_factor};
use crate::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate, trained_tensors};
use crate::reference::ReferenceNet;
use crate::stage::{LayerStage, Net};

/// A chain of layers.
#[derive(Debug, Clone)]
pub struct Sequence<B: Backend> {
    layers: Vec<Box<dyn Layer<B>>>,
    /// The (domain, codomain) of each constrained layer, where they are not all the 2-norm.
    norms: Vec<(Order, Order)>,
    /// The raw parameters of learned orders, `[1]` each.
    orders: Vec<B::Tensor>,
    conditioner: Option<Conditioner<B>>,
}

impl<B: Backend> Sequence<B> {
    /// Chains these layers, the first applied first.
    pub fn new(layers: Vec<Box<dyn Layer<B>>>) -> Self {
        Self { layers, norms: Vec::new(), orders: Vec::new(), conditioner: None }
    }

    /// Tells the layers of a context, by a weight `[u, k]` for the u numbers that they are told and embeddings of k numbers.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the layers are told another number, or their runs of it do not fit.
    pub fn with_conditioner(self, backend: &B, conditioner: Conditioner<B>) -> Result<Self, ConfigError> {
        let found = backend.shape(&conditioner.weight)[0];
        match self.layers.iter().map(|layer| layer.told()).find(|told| *told != 0 && *told != found) {
            None => Ok(Self { conditioner: Some(conditioner), ..self }),
            Some(told) => Err(ConfigError::Inconsistent(format!(
                "a net with a layer that is told {told} numbers of a context, and a weight that makes {found}"
            ))),
        }
    }

    /// Chains these layers, whose constrained ones are bounded between these norms. Learned orders begin at 2.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the norms do not meet, or are not as many as the constrained layers.
    pub fn with_norms(
        backend: &B,
        layers: Vec<Box<dyn Layer<B>>>,
        norms: Vec<(Order, Order)>,
    ) -> Result<Self, ConfigError> {
        check_chain(&norms)?;
        let learned = norms.iter().flat_map(|&(p, q)| [p, q]).filter_map(|order| match order {
            Order::Learned(raw) => Some(raw + 1),
            _ => None,
        });
        let orders = (0..learned.max().unwrap_or(0)).map(|_| backend.full(0.0, [1].into())).collect();
        let mut chain = Self { layers, norms, orders, conditioner: None };
        let constrained = chain.distribute();
        if constrained != chain.norms.len() {
            return Err(ConfigError::Inconsistent(format!(
                "{} norms for {constrained} constrained layers",
                chain.norms.len()
            )));
        }
        Ok(chain)
    }

    /// Gives the layers their norms with the present orders; returns how many are constrained.
    fn distribute(&mut self) -> usize {
        if self.norms.is_empty() {
            return 0;
        }
        let orders = &self.orders;
        let raw = |order: Order| match order {
            Order::Learned(raw) => (order, orders.get(raw).cloned()),
            other => (other, None),
        };
        let mut given = 0;
        for layer in &mut self.layers {
            let (domain, codomain) = self.norms[given.min(self.norms.len() - 1)];
            if layer.set_norms(&LayerNorms { domain: raw(domain), codomain: raw(codomain) }) {
                given += 1;
            }
        }
        given
    }

    /// The layers.
    pub fn layers(&self) -> &[Box<dyn Layer<B>>] {
        &self.layers
    }
}

impl<B: Backend> Module<B> for Sequence<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        for (i, order) in self.orders.iter().enumerate() {
            show(&format!("orders.{i}"), Part::Tensor(order, Role::Parameter));
        }
        if let Some(conditioner) = &self.conditioner {
            show("context", Part::Module(conditioner));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            show(&i.to_string(), Part::Module(&**layer));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        for (i, order) in self.orders.iter_mut().enumerate() {
            show(&format!("orders.{i}"), PartMut::Tensor(order, Role::Parameter));
        }
        if let Some(conditioner) = &mut self.conditioner {
            show("context", PartMut::Module(conditioner));
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            show(&i.to_string(), PartMut::Module(&mut **layer));
        }
    }

    fn tensors_changed(&mut self) {
        self.distribute();
    }

    fn describe(&self) -> String {
        self.layers.iter().map(|l| l.describe()).collect::<Vec<_>>().join("; ")
    }
}

impl<B: Backend> Layer<B> for Sequence<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        let (mut layers, mut counts, mut biases) = (Vec::with_capacity(self.layers.len()), Vec::new(), Vec::new());
        for layer in &self.layers {
            let prepared = layer.prepare(backend);
            if let Some(told) = prepared.context_bias() {
                biases.push((layers.len(), told));
            } else {
                counts.push(trained_tensors(&**layer));
                layers.push(prepared);
            }
        }
        let known: Vec<_> = layers.iter().map(|layer| layer.net_layer()).collect();
        Box::new(PreparedSequence {
            biases,
            conditioner: self.conditioner.as_ref().map(|conditioner| conditioner.prepare(backend)),
            traces: KnownTraces::of(backend, &known),
            net: whole(&known, &counts),
            known,
            layers,
            counts,
            norms: self.norms.clone(),
            orders: self.orders.len(),
        })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.layers.iter().try_fold(input.to_vec(), |shape, layer| layer.output_shape(&shape))
    }

    fn resize(&mut self, backend: &B, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.layers.iter_mut().try_fold(input.to_vec(), |shape, layer| layer.resize(backend, &shape))
    }

    fn activations(&self, input: &[usize]) -> usize {
        let mut shape = input.to_vec();
        let mut total = 0;
        for layer in &self.layers {
            total += layer.activations(&shape);
            shape = layer.output_shape(&shape).unwrap_or(shape);
        }
        total
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        let mut shape = input.to_vec();
        let mut total = 0;
        for layer in &self.layers {
            total += layer.multiply_adds(&shape);
            shape = layer.output_shape(&shape).unwrap_or(shape);
        }
        total
    }

    fn bottleneck(&self, input: &[usize]) -> Option<Bottleneck> {
        let mut shape = input.to_vec();
        let mut narrowest: Option<Bottleneck> = None;
        let mut least = shape.iter().product::<usize>();
        // biases by the context are no layers of what is prepared
        let kept = || self.layers.iter().filter(|l| !matches!(l.stage(), Some(LayerStage::ContextBias { .. })));
        for (i, layer) in kept().enumerate().take(kept().count().saturating_sub(1)) {
            shape = layer.output_shape(&shape).ok().filter(|shape| shape.len() < MAX_RANK)?;
            let width = shape.iter().product();
            if width < least {
                least = width;
                narrowest = Some(Bottleneck { layers: i + 1, shape: Shape::new(&shape) });
            }
        }
        narrowest
    }

    fn lipschitz_bound(&self) -> f64 {
        self.layers.iter().map(|l| l.lipschitz_bound()).product()
    }

    fn reached_lipschitz(&self, backend: &B) -> Result<f64, BackendError> {
        self.layers.iter().try_fold(1.0, |bound, layer| Ok(bound * layer.reached_lipschitz(backend)?))
    }

    fn certified_bound(
        &self,
        backend: &B,
        path: &str,
        report: &mut dyn FnMut(WeightBounds),
    ) -> Result<Option<f64>, BackendError> {
        let mut product = Some(1.0_f64);
        for (i, layer) in self.layers.iter().enumerate() {
            let own = layer.certified_bound(backend, &format!("{path}.{i}"), report)?;
            product = product.zip(own).map(|(product, own)| (product * own).next_up());
        }
        Ok(product)
    }

    fn two_norm_factor(&self, input: &[usize]) -> f64 {
        let dimension = input.iter().product();
        match self.norms.first() {
            None => 1.0,
            // a learned order may be anywhere between 1 and 5, and 1 is the worst
            Some((Order::Learned(_), _)) => two_norm_factor(1.0, dimension),
            Some((order, _)) => two_norm_factor(order.exponent().unwrap_or(1.0), dimension),
        }
    }

    fn told(&self) -> usize {
        // whoever tells a chain that does not do it itself is told so
        if self.conditioner.is_some() { 0 } else { self.layers.iter().map(|layer| layer.told()).max().unwrap_or(0) }
    }

    fn net(&self) -> Option<Net> {
        let layers = self.layers.iter().map(|layer| layer.stage()).collect::<Option<_>>()?;
        let context = self.conditioner.as_ref().map_or(0, Conditioner::embedding);
        Some(Net { layers, norms: self.norms.clone(), context })
    }
}

#[derive(Debug)]
struct PreparedSequence<B: Backend> {
    layers: Vec<Box<dyn PreparedLayer<B>>>,
    norms: Vec<(Order, Order)>,
    /// The number of trained tensors of each layer.
    counts: Vec<usize>,
    /// The number of learned orders, whose gradients come first; then comes that of the conditioner.
    orders: usize,
    /// What is added to what a layer gets, by the number of that layer.
    biases: Vec<(usize, Told)>,
    conditioner: Option<PreparedConditioner<B>>,
    /// The layers that a backend knows,
    known: Vec<Option<NetLayer<B::Tensor>>>,
    /// and all of them, if it knows all.
    net: Option<BackendNet<B::Tensor>>,
    /// What is known of the traces.
    traces: Option<KnownTraces<B>>,
}

impl<B: Backend> PreparedSequence<B> {
    /// The traces of a net with so many leading activations, 0 or 1, on rows or images.
    fn known_traces(&self, backend: &B, saved: &Saved<B>, leading: usize) -> Option<&KnownTraces<B>> {
        let traces = self.traces.as_ref().filter(|traces| traces.first == leading)?;
        matches!(backend.shape(slope(&saved.parts[leading + 1])).rank(), 2 | 4).then_some(traces)
    }

    /// The product with the transposed Jacobian of some of the layers.
    fn vjp_of(&self, backend: &B, saved: &Saved<B>, layers: Range<usize>, gy: B::Tensor) -> B::Tensor {
        let saved = &saved.parts[layers.clone()];
        if let Some(net) = &self.net {
            let net = BackendNet { layers: net.layers[layers].to_vec() };
            return backend.net_vjp(&net, &slopes(&net, saved), gy);
        }
        self.layers[layers].iter().zip(saved).rev().fold(gy, |g, (layer, saved)| layer.vjp(backend, saved, g))
    }

    /// The reverse pass, with what is added to ∂/∂d of some activations, by their layers.
    fn reverse(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        slopes: &[(usize, B::Tensor)],
        mut gy: B::Tensor,
        mut gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let mut end = grads.trained.len();
        let mut heard = Vec::new();
        let hears = |place: usize, gy: &B::Tensor, heard: &mut Vec<(Told, B::Tensor)>| {
            let here = self.biases.iter().filter(|(at, _)| *at == place);
            heard.extend(here.map(|(_, told)| (*told, gy.clone())));
        };
        hears(self.layers.len(), &gy, &mut heard);
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let start = end - self.counts[i];
            let mut kept: Vec<_> = tangents.iter().map(|t| &t.parts[i]).collect();
            let own = LayerGrads { trained: &mut grads.trained[start..end], context: grads.context };
            // a function of the slopes is a tangent pair more: (∂/∂d, 1)
            let pair = slopes.iter().find(|(layer, _)| *layer == i).map(|(_, slope)| {
                gdy.push(backend.full(1.0, backend.shape(slope)));
                Saved::tensors(vec![slope.clone()])
            });
            kept.extend(&pair);
            (gy, gdy) = layer.tangent_vjp(backend, &saved.parts[i], &kept, gy, gdy, own);
            gdy.truncate(tangents.len());
            end = start;
            hears(i, &gy, &mut heard);
        }
        Told::add_all(backend, heard, grads.context);
        (gy, gdy)
    }

    /// The place of the first layer's gradients: behind those that are the chain's own.
    fn own(&self) -> usize {
        self.orders + usize::from(self.conditioner.is_some())
    }

    /// Adds what layer number `at` is told, if it is, to what it gets.
    fn biased(&self, backend: &B, at: usize, batch: &Batch<B>, mut x: B::Tensor) -> B::Tensor {
        for (_, told) in self.biases.iter().filter(|(place, _)| *place == at) {
            let own = told.of(backend, batch.context.as_ref(), backend.shape(&x));
            x = backend.binary(Binary::Add, x, &own);
        }
        x
    }

    /// Whether layer number `at` is told something.
    fn is_biased(&self, at: usize) -> bool {
        self.biases.iter().any(|(place, _)| *place == at)
    }
}

impl<B: Backend> PreparedLayer<B> for PreparedSequence<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        if let Some(net) = self.net_at(backend, batch.context.as_ref()) {
            let NetForward { y, kept } = backend.net_forward(&net, &batch.x, keep as usize);
            return (y, Saved { tensors: Vec::new(), parts: kept.into_iter().map(Saved::tensors).collect() });
        }
        let mut value = batch.x.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        let mut layers = self.layers.iter().zip(&self.known).enumerate().peekable();
        while let Some((i, (layer, known))) = layers.next() {
            value = self.biased(backend, i, batch, value);
            let follows = layers.peek().filter(|(i, _)| !self.is_biased(*i));
            let follows = follows.and_then(|(_, (next, _))| next.activation());
            let rows = backend.shape(&value).rank() == 2;
            if let (Some(NetLayer::Linear { transposed, bias, .. }), Some((f, parameter)), true) =
                (known, follows, rows)
            {
                layers.next();
                let (y, orders) = backend.linear_activation(&value, transposed, bias, f, parameter, keep as usize);
                parts.push(Saved::tensors(if keep == Derivatives::Second { vec![value] } else { Vec::new() }));
                value = orders[0].clone();
                parts.push(kept(y.as_ref().unwrap_or(&value), orders, keep));
            } else {
                let (next, saved) = layer.forward(backend, &batch.with_x(value), keep);
                value = next;
                parts.push(saved);
            }
        }
        (self.biased(backend, self.layers.len(), batch, value), Saved { tensors: Vec::new(), parts })
    }

    fn tell(&self, backend: &B, batch: &Batch<B>) -> Batch<B> {
        let Some(conditioner) = &self.conditioner else { return batch.clone() };
        let context = batch.context.as_ref().expect("a conditional net was given samples without a context");
        batch.clone().with_context(Some(conditioner.tell(backend, context)))
    }

    fn pull_back_told(&self, backend: &B, embedding: Option<&B::Tensor>, gradient: Grad<B>, grads: LayerGrads<'_, B>) {
        let (Some(conditioner), Some(gradient)) = (&self.conditioner, gradient) else { return };
        let embedding = embedding.expect("the one that the net was told by");
        conditioner.pull_back(backend, embedding, gradient, &mut grads.trained[self.orders], grads.context);
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        if let Some((net, slopes)) = self.net(saved) {
            let (dy, tangents) = backend.net_jvp(net, &slopes, dx);
            return (dy, each_its_own(tangents));
        }
        let mut tangent = dx.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        for (layer, saved) in self.layers.iter().zip(&saved.parts) {
            let (next, kept) = layer.jvp(backend, saved, &tangent);
            tangent = next;
            parts.push(kept);
        }
        (tangent, Saved { tensors: Vec::new(), parts })
    }

    fn keep_tangent(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> Saved<B> {
        if let Some((net, slopes)) = self.net(saved) {
            return each_its_own(backend.net_tangents(net, &slopes, dx));
        }
        let mut tangent = dx.clone();
        let mut parts = Vec::with_capacity(self.layers.len());
        let pairs = self.layers.iter().zip(&saved.parts);
        let (last, others) = (pairs.clone().next_back(), pairs.take(self.layers.len().saturating_sub(1)));
        for (layer, saved) in others {
            let (next, kept) = layer.jvp(backend, saved, &tangent);
            tangent = next;
            parts.push(kept);
        }
        parts.extend(last.map(|(layer, saved)| layer.keep_tangent(backend, saved, &tangent)));
        Saved { tensors: Vec::new(), parts }
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        if let Some((net, slopes)) = self.net(saved) {
            return backend.net_vjp(net, &slopes, gy);
        }
        self.vjp_of(backend, saved, 0..self.layers.len(), gy)
    }

    fn cyclic_vjp(&self, backend: &B, saved: &Saved<B>, bottleneck: &Bottleneck, u: B::Tensor) -> B::Tensor {
        let through = self.vjp_of(backend, saved, 0..bottleneck.layers, u);
        self.vjp_of(backend, saved, bottleneck.layers..self.layers.len(), through)
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        if let Some(net) = self.net.as_ref().filter(|_| self.biases.is_empty()) {
            let kept: Vec<_> = saved.parts.iter().map(|part| &part.tensors[..]).collect();
            let tangents: Vec<Vec<_>> =
                tangents.iter().map(|t| t.parts.iter().map(|p| &p.tensors[0]).collect()).collect();
            return backend.net_pullback(net, &kept, &tangents, gy, gdy, &mut grads.trained[self.own()..]);
        }
        self.reverse(backend, saved, tangents, &[], gy, gdy, grads)
    }

    fn net_at(&self, backend: &B, told: Option<&B::Tensor>) -> Option<Cow<'_, BackendNet<B::Tensor>>> {
        let net = self.net.as_ref()?;
        if self.biases.is_empty() {
            return Some(Cow::Borrowed(net));
        }
        // what all samples are told is a change of the layers' own biases
        let told = told.filter(|told| backend.shape(told).rows() == 1)?;
        let mut net = net.clone();
        for (at, own) in &self.biases {
            let (NetLayer::Linear { bias, .. } | NetLayer::Convolution { bias, .. }) =
                net.layers.get_mut(at.checked_sub(1)?)?
            else {
                return None;
            };
            let shape = backend.shape(bias);
            let own = backend.reshape(&own.of(backend, Some(told), [1, own.features].into()), shape);
            *bias = backend.binary(Binary::Add, bias.clone(), &own);
        }
        Some(Cow::Owned(net))
    }

    fn net<'a>(&'a self, saved: &'a Saved<B>) -> Option<(&'a BackendNet<B::Tensor>, Vec<&'a B::Tensor>)> {
        let net = self.net.as_ref()?;
        Some((net, slopes(net, &saved.parts)))
    }

    fn traces(&self, backend: &B, saved: &Saved<B>) -> Vec<B::Tensor> {
        self.known_traces(backend, saved, 0).map_or_else(Vec::new, |traces| traces.values(backend, saved))
    }

    fn tangent_trace_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        traces: WeightedTraces<'_, B>,
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        if traces.powers == 0 {
            return self.tangent_vjp(backend, saved, tangents, gy, gdy, grads);
        }
        let known = self.known_traces(backend, saved, 0).filter(|known| traces.powers <= known.powers(backend, saved));
        let known = known.unwrap_or_else(|| panic!("{} traces of a net that does not give as many", traces.powers));
        let (slopes, weights) = known.gradient(backend, saved, &traces);
        for (layer, gradient) in &weights {
            // an affine layer's weight is the first of its trained tensors
            let number = self.own() + self.counts[..*layer].iter().sum::<usize>();
            let effective = match &self.known[*layer] {
                Some(NetLayer::Linear { weight, .. }) => weight,
                Some(NetLayer::Convolution { kernel, .. }) => kernel,
                _ => unreachable!("a weight has its gradient"),
            };
            accumulate(backend, &mut grads.trained[number], &backend.reshape(gradient, backend.shape(effective)));
        }
        self.reverse(backend, saved, tangents, &slopes, gy, gdy, grads)
    }

    fn reference(&self, backend: &B) -> Result<Option<ReferenceNet>, BackendError> {
        if !self.biases.is_empty() {
            return Ok(None);
        }
        let nets = self.layers.iter().map(|layer| layer.reference(backend)).collect::<Result<Option<Vec<_>>, _>>()?;
        Ok(nets.map(ReferenceNet::chain))
    }

    fn dear_trace(&self, backend: &B, saved: &Saved<B>, most: u64) -> Option<B::Tensor> {
        self.known_traces(backend, saved, 1)?.behind_activation(backend, saved, most)
    }

    fn control(&self, backend: &B, saved: &Saved<B>) -> Option<Control<B>> {
        self.known_traces(backend, saved, 1)?.control(backend, saved)
    }

    fn controlled_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        slopes: &B::Tensor,
        v: B::Tensor,
    ) -> (B::Tensor, B::Tensor) {
        let [leading, first, others @ ..] = &self.layers[..] else { panic!("a net without a control variate") };
        let (saved, rest) = saved.parts.split_at(2);
        let hidden = others.iter().zip(rest).rev().fold(v.clone(), |g, (layer, saved)| layer.vjp(backend, saved, g));
        let samples = backend.shape(&v).rows();
        let there = backend.shape(&v).rank() > 2;
        // C = A diag(means): of images on the way through hidden pixels, of rows on the way in, where it costs less
        let way = there.then(|| first.jvp(backend, &saved[1], &v).0);
        let dots = way.map(|way| backend.dot_rows(&matrix(backend, &way), &matrix(backend, &hidden)));
        let inner = first.vjp(backend, &saved[1], hidden);
        let dots = dots.unwrap_or_else(|| backend.dot_rows(&v, &inner));
        let pixels = backend.shape(slopes).elements() / samples.max(1);
        let dots = backend.binary(
            Binary::Mul,
            backend.reshape(&dots, [samples, pixels].into()),
            &backend.reshape(slopes, [samples, pixels].into()),
        );
        let control = if pixels == 1 { dots } else { backend.reduce(Reduce::Sum, Over::Row, &dots) };
        (leading.vjp(backend, &saved[0], inner), control)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        let (own, mut rest) = grads.split_at_mut(self.own());
        let (orders, conditioner) = own.split_at_mut(self.orders);
        if let (Some(weight), Some(own)) = (conditioner.first_mut(), &self.conditioner) {
            weight.get_or_insert_with(|| own.zeros(backend));
        }
        let mut norms = self.norms.iter();
        for (layer, &count) in self.layers.iter().zip(&self.counts) {
            let (own, others) = rest.split_at_mut(count);
            let gradients = layer.finish_gradients(backend, own);
            rest = others;
            if !layer.is_constrained() {
                continue;
            }
            let Some(&(domain, codomain)) = norms.next() else { continue };
            for (order, gradient) in [domain, codomain].into_iter().zip(gradients) {
                if let (Order::Learned(raw), Some(gradient)) = (order, gradient) {
                    accumulate(backend, &mut orders[raw], &gradient);
                }
            }
        }
        for order in orders {
            order.get_or_insert_with(|| backend.full(0.0, [1].into()));
        }
        [None, None]
    }
}
