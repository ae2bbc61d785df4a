//! Self-attention over the pixels of an image (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), as Flow++ has it (Ho et al. 2019, arXiv
//! 1902.00275, §3.3, and the authors' code): with x `[t, c]` the pixels, P a learned embedding of their places, and W the heads,
//!
//! [q_h | k_h | v_h] = (x + P) W_h + w_h,  a_h = softmax(q_h k_hᵀ/√(c/H)) v_h,  y = [a_1 | … | a_H] V + v,  2c channels.
//!
//! Behind it stands a gated unit ([`GatedUnit`](super::GatedUnit)), around both a [`Skip`](super::Skip). A layer is tied to the size of
//! its images, and costs t² numbers a head.

use resflow_backend::{Backend, Key, Noise, Over, Reduce};

use super::formula::{Formula, Prepared};
use super::graph::{Function, Graph, Term};
use super::{Layer, PreparedLayer};
use crate::error::ConfigError;
use crate::module::Module;
use crate::stage::LayerStage;

/// The deviation of fresh embeddings of places.
const PLACES: f64 = 0.01;
/// What fresh output weights are multiplied by: an untrained net is nearly what it skips.
const SMALL: f64 = 0.1;

/// Attention of images `[h, w, c]`, in H heads.
#[derive(Debug, Clone)]
pub struct Attention<B: Backend> {
    /// P, `[h·w, c]`.
    places: B::Tensor,
    /// W and w, `[3c, c]` and `[1, 3c]`: q of all heads, then k, then v.
    inner: B::Tensor,
    inner_bias: B::Tensor,
    /// V and v, `[2c, c]` and `[1, 2c]`.
    outer: B::Tensor,
    outer_bias: B::Tensor,
    image: [usize; 3],
    heads: usize,
}

impl<B: Backend> Attention<B> {
    /// Builds the attention of images `[h, w, c]` in so many heads; with a key of random weights, without one of zeros to be filled.
    ///
    /// # Errors
    /// Returns [`ConfigError::Inconsistent`] if the channels do not divide into heads, or there are no pixels.
    pub fn new(backend: &B, image: [usize; 3], heads: usize, key: Option<Key>) -> Result<Self, ConfigError> {
        let [h, w, c] = image;
        if heads == 0 || c == 0 || !c.is_multiple_of(heads) || h == 0 || w == 0 {
            return Err(ConfigError::Inconsistent(format!(
                "attention of images {image:?} in {heads} heads: the channels must divide into them"
            )));
        }
        let draw = |number: u64, noise: Noise, shape: [usize; 2], scale: f64, shift: f64| match key {
            Some(key) => backend.affine(backend.noise(key.split(number), noise, 0, shape.into()), scale, shift),
            None => backend.full(0.0, shape.into()),
        };
        let bound = 1.0 / (c as f64).sqrt();
        let weights = |number, outputs, scale: f64| {
            draw(number, Noise::Uniform, [outputs, c], 2.0 * scale * bound, -scale * bound)
        };
        Ok(Self {
            places: draw(0, Noise::Normal, [h * w, c], PLACES, 0.0),
            inner: weights(1, 3 * c, 1.0),
            inner_bias: backend.full(0.0, [1, 3 * c].into()),
            outer: weights(2, 2 * c, SMALL),
            outer_bias: backend.full(0.0, [1, 2 * c].into()),
            image,
            heads,
        })
    }
}

impl<B: Backend> Module<B> for Attention<B> {
    crate::parts!(B; places: Parameter, inner: Weight, inner_bias: Parameter, outer: Weight, outer_bias: Parameter);

    fn describe(&self) -> String {
        format!("attention of {} channels in {} heads", self.image[2], self.heads)
    }
}

impl<B: Backend> Layer<B> for Attention<B> {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedLayer<B>> {
        let [h, w, channels] = self.image;
        let formula = Attend { pixels: h * w, channels, heads: self.heads };
        let parameters = [&self.places, &self.inner, &self.inner_bias, &self.outer, &self.outer_bias];
        Box::new(Prepared { formula, parameters: parameters.map(Clone::clone).to_vec() })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let [h, w, c] = self.image;
        if input == self.image {
            return Ok(vec![h, w, 2 * c]);
        }
        Err(ConfigError::Inconsistent(format!(
            "attention over the places of images {:?} cannot take samples of shape {input:?}",
            self.image
        )))
    }

    fn activations(&self, _input: &[usize]) -> usize {
        let [h, w, c] = self.image;
        let pixels = h * w;
        // q, k and v, the weights of each head thrice, the output
        6 * pixels * c + 3 * self.heads * pixels * pixels
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        let [h, w, c] = self.image.map(|extent| extent as u64);
        let pixels = h * w;
        pixels * 5 * c * c + 2 * pixels * pixels * c
    }

    fn lipschitz_bound(&self) -> f64 {
        f64::INFINITY
    }

    fn stage(&self) -> Option<LayerStage> {
        Some(LayerStage::Attention { image: self.image, heads: self.heads })
    }
}

#[derive(Debug)]
struct Attend {
    pixels: usize,
    channels: usize,
    heads: usize,
}

impl Attend {
    /// softmax over the rows of scores.
    fn softmax<B: Backend>(&self, graph: &mut Graph<'_, B>, scores: &Term) -> Term {
        let t = self.pixels;
        // what all of a row share cancels, so that the largest is a constant of which nothing depends
        let largest = graph.backend.reduce(Reduce::Max, Over::Row, graph.value(scores));
        let minus = graph.backend.full(-1.0, [1, t].into());
        let shift = graph.backend.matmul(&largest, false, &minus, false);
        let shift = graph.constant(shift);
        let shifted = graph.sum(scores, &shift);
        let powers = graph.function(Function::Exp, &shifted);
        let (down, across) = (graph.ones(t, 1), graph.ones(1, t));
        let total = graph.product((&powers, false), (&down, false));
        let share = graph.function(Function::Reciprocal, &total);
        let share = graph.product((&share, false), (&across, false));
        graph.times(&powers, &share)
    }
}

impl<B: Backend> Formula<B> for Attend {
    const OF_SAMPLES: bool = true;

    fn write(&self, graph: &mut Graph<'_, B>, x: &Term, parameters: &[Term]) -> Term {
        let [places, inner, inner_bias, outer, outer_bias] = parameters else { unreachable!("five parameters") };
        let (c, dim) = (self.channels, self.channels / self.heads);
        let all = graph.ones(self.pixels, 1);
        let placed = graph.sum(x, places);
        let told = graph.product((&placed, false), (inner, true));
        let bias = graph.product((&all, false), (inner_bias, false));
        let told = graph.sum(&told, &bias);
        let mut y = graph.product((&all, false), (outer_bias, false));
        for head in 0..self.heads {
            let [q, k, v] = [0, 1, 2].map(|part| graph.narrow(&told, 1, part * c + head * dim, dim));
            let scores = graph.product((&q, false), (&k, true));
            let scores = graph.affine(&scores, 1.0 / (dim as f64).sqrt(), 0.0);
            let weights = self.softmax(graph, &scores);
            let found = graph.product((&weights, false), (&v, false));
            let own = graph.narrow(outer, 1, head * dim, dim);
            let part = graph.product((&found, false), (&own, true));
            y = graph.sum(&y, &part);
        }
        y
    }
}
