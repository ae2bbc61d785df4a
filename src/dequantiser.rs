//! Variational dequantisation (Ho, Chen, Srinivas, Duan and Abbeel 2019, arXiv 1902.00275, §3.1): the noise u that images of bytes get
//! is drawn by a conditional flow that sees the image x,
//!
//! log P(x) ≥ E_{u ~ q(u | x)} [log p(x + u) − log q(u | x)],  u = σ(T(ε; e(x))) in (0, 1)ᵈ,
//!
//! −log q(u | x) = Σ ln σ'(v) + log|det ∂v/∂ε| − Σ ln σ'(ε),  v = T(ε; e(x)), with ln σ'(v) = −softplus(v) − softplus(−v).
//!
//! ε is logistic, ε = logit of the uniform noise of the key, where the paper's is normal: T begins as the identity, so that q begins as
//! the uniform density, and log q as zero. e is a convolutional net of the pixels. Numbers are scaled as everywhere: p is the density of
//! (level + u)/2ᵇ, in whose units the bound is.
//!
//! Both flows are trained by one gradient: with w on each sample, ∂/∂v of w(−log p + log q) is 2⁻ᵇ ∂(−w log p)/∂x' σ'(v) + w(2u − 1).

use resflow_backend::{Activation, Backend, Binary, Over, Reduce, Shape, Unary};

use crate::architecture::{self, Initial};
use crate::batch::{Batch, Quantised};
use crate::bijection::{Ask, Bijection as _, Cotangents, LogDet, PreparedBijection as _, Tape};
use crate::chain::{Chain, PreparedChain};
use crate::config::ImageConfig;
use crate::error::{ConfigError, Error};
use crate::layer::{Derivatives, Layer as _, LayerGrads, PreparedLayer, Saved, Sequence};
use crate::module::{Grad, Module, Part, PartMut, ShowPart, ShowPartMut, fill, trained_shapes};
use crate::transform::{from_vectors, to_vectors};

/// The least uniform noise, so that its logit is finite; noise that is not zero is larger.
const LEAST_NOISE: f64 = 1.0 / (1_u64 << 26) as f64;

/// The conditional flow of the noise: a net of the pixels, and transforms that begin as the identity.
#[derive(Debug, Clone)]
pub struct Dequantiser<B: Backend> {
    encoder: Sequence<B>,
    chain: Chain<B>,
    bits: u32,
}

impl<B: Backend> Dequantiser<B> {
    /// The dequantiser of a configuration, whose kind is variational.
    pub(crate) fn configured(backend: &B, config: &ImageConfig, initial: Initial) -> Result<Self, ConfigError> {
        let (encoder, transforms) = architecture::dequantiser(backend, config, initial)?;
        let chain = Chain::new(transforms, &[config.height, config.width, config.channels])?;
        Ok(Self { encoder, chain, bits: config.bits })
    }

    /// The transforms from the logistic noise to the logits of u, first applied first.
    pub fn chain(&self) -> &Chain<B> {
        &self.chain
    }

    /// Fits it to images of another height and width, `[h, w, c]`.
    pub(crate) fn resize(&mut self, backend: &B, image: &[usize]) -> Result<(), ConfigError> {
        self.encoder.resize(backend, image)?;
        self.chain.resize(backend, image).map(drop)
    }

    pub(crate) fn prepare(&self, backend: &B) -> PreparedDequantiser<B> {
        PreparedDequantiser {
            encoder: self.encoder.prepare(backend),
            encoder_shapes: trained_shapes(backend, &self.encoder),
            chain: self.chain.prepare_chain(backend),
            image: self.chain.input_shape().to_vec(),
            bits: self.bits,
        }
    }
}

impl<B: Backend> Module<B> for Dequantiser<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        show("encoder", Part::Module(&self.encoder));
        show("links", Part::Module(&self.chain));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        show("encoder", PartMut::Module(&mut self.encoder));
        show("links", PartMut::Module(&mut self.chain));
    }

    fn describe(&self) -> String {
        format!("noise by [{}] and, of the pixels, [{}]", self.chain.describe(), self.encoder.describe())
    }
}

/// A dequantiser ready for computing.
#[derive(Debug)]
pub(crate) struct PreparedDequantiser<B: Backend> {
    encoder: Box<dyn PreparedLayer<B>>,
    encoder_shapes: Vec<Shape>,
    chain: PreparedChain<B>,
    image: Vec<usize>,
    bits: u32,
}

/// Images with noise.
pub(crate) struct Dequantised<B: Backend> {
    /// (level + u)/2ᵇ, `[n, h, w, c]`.
    pub(crate) x: B::Tensor,
    /// The terms of −log q(u | x), nats.
    pub(crate) log_dets: Vec<LogDet<B>>,
    /// The number of vector-Jacobian products.
    pub(crate) terms: usize,
    /// For the way back, where a gradient was asked for.
    pub(crate) tape: Option<DequantiserTape<B>>,
}

/// What the way back needs.
pub(crate) struct DequantiserTape<B: Backend> {
    saved: Saved<B>,
    embedding: Shape,
    tape: Tape,
    /// u, `[n, h, w, c]`.
    u: B::Tensor,
}

/// Σ ln σ'(v) of each sample, `[n, 1]`.
fn log_slope<B: Backend>(backend: &B, v: &B::Tensor) -> B::Tensor {
    let rows = backend.shape(v);
    let negative = backend.affine(v.clone(), -1.0, 0.0);
    let [above, below] = [v, &negative].map(|v| backend.activation(Activation::Softplus, None, v, 0).swap_remove(0));
    let both = backend.reshape(&backend.axpy(1.0, &below, above), [rows.rows(), rows.row_elements()].into());
    backend.affine(backend.reduce(Reduce::Sum, Over::Row, &both), -1.0, 0.0)
}

impl<B: Backend> PreparedDequantiser<B> {
    /// The number of trained tensors.
    pub(crate) fn grads(&self) -> usize {
        self.encoder_shapes.len() + self.chain.grads()
    }

    /// Gives images their noise. What is asked for is a log det or a gradient.
    pub(crate) fn draw(
        &self,
        backend: &B,
        images: &Quantised<B>,
        first: u64,
        ask: &Ask<'_>,
    ) -> Result<Dequantised<B>, Error> {
        let scale = 2.0 / f64::from(1_u32 << self.bits);
        // the middles of the cells, in (−1, 1)
        let pixels = backend.affine(images.levels.clone(), scale, 0.5 * scale - 1.0);
        let (embedding, saved) = self.encoder.forward(backend, &Batch::new(pixels), Derivatives::Second);
        let shape = backend.shape(&embedding);
        let noise = backend.binary(Binary::Max, images.noise.clone(), &backend.full(LEAST_NOISE, [1].into()));
        let rest = backend.affine(noise.clone(), -1.0, 1.0);
        let logit = backend.axpy(-1.0, &backend.unary(Unary::Ln, rest), backend.unary(Unary::Ln, noise));
        let of_noise = log_slope(backend, &logit);
        let batch = Batch::new(logit).with_context(Some(embedding)).starting_at(first);
        let mapped = self.chain.forward(backend, &batch, ask)?;
        let v = from_vectors(backend, &mapped.y, &self.image);
        let u = backend.activation(Activation::Softplus, None, &v, 1).swap_remove(1);
        let slopes = LogDet { value: backend.axpy(-1.0, &of_noise, log_slope(backend, &v)), exact: true };
        Ok(Dequantised {
            x: images.place(backend, &u, self.bits),
            log_dets: mapped.log_dets.into_iter().chain([slopes]).collect(),
            terms: mapped.terms,
            tape: mapped.tape.map(|tape| DequantiserTape { saved, embedding: shape, tape, u }),
        })
    }

    /// Adds the gradients of Σ wᵢ (−log p(xᵢ) + log q(uᵢ | xᵢ)) in the trained tensors, from that of the first part in (level + u)/2ᵇ.
    pub(crate) fn pull_back(
        &self,
        backend: &B,
        tape: DequantiserTape<B>,
        gradient: B::Tensor,
        weights: &B::Tensor,
        grads: &mut [Grad<B>],
    ) -> Result<(), Error> {
        let DequantiserTape { saved, embedding, tape, u } = tape;
        let rest = backend.affine(u.clone(), -1.0, 1.0);
        let slope = backend.binary(Binary::Mul, u.clone(), &rest);
        let spread = crate::batch::per_sample(backend, weights, backend.shape(&u));
        let of_slope = backend.binary(Binary::Mul, backend.affine(u, 2.0, -1.0), &spread);
        let of_x = backend.affine(gradient, 1.0 / f64::from(1_u32 << self.bits), 0.0);
        let gv = backend.axpy(1.0, &backend.binary(Binary::Mul, of_x, &slope), of_slope);
        let cotangents = Cotangents {
            x: to_vectors(backend, &gv),
            log_det: backend.affine(weights.clone(), -1.0, 0.0),
            context: None,
        };
        let (of_encoder, of_chain) = grads.split_at_mut(self.encoder_shapes.len());
        let back = self.chain.backward(backend, tape, cotangents, of_chain)?;
        let of_embedding = back.context.unwrap_or_else(|| backend.full(0.0, embedding));
        let own = LayerGrads { trained: of_encoder, context: &mut None };
        self.encoder.tangent_vjp(backend, &saved, &[], of_embedding, Vec::new(), own);
        Ok(())
    }

    /// The gradients of all trained tensors, one after the other, of those of the lanes.
    pub(crate) fn gather(&self, backend: &B, lanes: &[Vec<Grad<B>>]) -> Result<Vec<B::Tensor>, Error> {
        let count = self.encoder_shapes.len();
        let of_encoder = crate::chain::add_up(backend, lanes.iter().map(|lane| &lane[..count]));
        let mut of_encoder = if of_encoder.is_empty() { vec![None; count] } else { of_encoder };
        let _ = self.encoder.finish_gradients(backend, &mut of_encoder);
        fill(backend, &mut of_encoder, &self.encoder_shapes);
        let of_chain: Vec<_> = lanes.iter().map(|lane| lane[count..].to_vec()).collect();
        let of_chain = self.chain.gather(backend, &of_chain)?;
        Ok(of_encoder.into_iter().flatten().chain(of_chain).collect())
    }
}
