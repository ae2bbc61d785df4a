//! Hybrid models: a flow whose intermediate images a classifier looks at, p(x, y) = p(x) p(y | x) (Nalisnick et al. 2019,
//! arXiv 1902.02767; Chen et al. 2019, arXiv 1906.02735, section 5.4).
//!
//! ```text
//! head s:  mean over pixels of ReLU(ActNorm(3×3 convolution of scale s's output))
//! logits = W (head 1, …, head S) + b,   p(y | x) = softmax(logits)
//! loss   = λ (−log p(x)) + (−log p(y | x))                            nats; λ is `density_weight` of the training
//! ```
//!
//! The classifier adds nothing to the way to z: log p(x), inversion and sampling are those of the flow. One forward pass
//! serves both terms of the loss; a head's gradient joins that of its scale's output on the way back.
//!
//! ```
//! use resflow::backend::Key;
//! use resflow::config::ImageConfig;
//! use resflow::data::image::ImageSet;
//! use resflow::train::{Budget, Source, TrainConfig, Trainer};
//! use resflow::{Flow, NdArray};
//!
//! // forty images of 4 × 4 pixels, dark ones and bright ones
//! let bytes = (0..40 * 16).map(|e| if e / 16 % 2 == 0 { 20 } else { 200 } + (e % 7) as u8).collect();
//! let set = ImageSet::new(4, 4, 1, bytes, Some([0, 1].repeat(20)))?;
//! let images = ImageConfig { height: 4, width: 4, blocks: vec![1], filters: 4, fully_connected: 0, ..ImageConfig::default() };
//! let config = ImageConfig { classes: 2, head_width: 8, ..images };
//! let flow = Flow::new(NdArray::<f32>::new(), config, Key::new(0))?;
//! let settings = TrainConfig { batch: 10, density_weight: 1.0 / 16.0, ..TrainConfig::default() };
//! let source = Source::Images(set.clone());
//! let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(20), Key::new(1))?;
//! trainer.run(|step, _validation| assert!(step.classification.is_some()))?;
//! let said = trainer.model().classify(&set, Key::new(2))?;
//! println!("accuracy {}", said.score(set.labels().unwrap_or_default())?.accuracy);
//! # Ok::<(), resflow::Error>(())
//! ```

mod prediction;
mod prepared;

pub(crate) use prediction::check_labels;
pub use prediction::{Calibration, CalibrationBin, Classification, ClassificationScore};
pub use prepared::PreparedClassifier;
use resflow_backend::{Backend, Key};

use crate::bijection::Bijection as _;
use crate::config::ImageConfig;
use crate::error::Error;
use crate::layer::{Keep, Layer as _, LipschitzConv, LipschitzLinear, Role, Visitor, VisitorMut};
use crate::transform::ActNorm;

/// The heads of a hybrid model and the linear layer that joins them.
#[derive(Debug, Clone)]
pub struct Classifier<B: Backend> {
    heads: Vec<Head<B>>,
    linear: LipschitzLinear<B>,
    classes: usize,
    /// The channels of each head.
    width: usize,
}

#[derive(Debug, Clone)]
struct Head<B: Backend> {
    /// The link whose output it looks at.
    link: usize,
    /// The shape of the images that it looks at.
    image: [usize; 3],
    conv: LipschitzConv<B>,
    norm: ActNorm<B>,
}

/// The size of the heads' kernels.
const KERNEL: usize = 3;

impl<B: Backend> Classifier<B> {
    /// That of a configuration, if it has classes: with random weights, or zeros to be filled without a key.
    pub(crate) fn of(backend: &B, config: &ImageConfig, key: Option<Key>) -> Option<Self> {
        if config.classes == 0 {
            return None;
        }
        let places = config.heads();
        let key = key.map(|key| key.named("classifier"));
        let width = config.head_width;
        let inputs = width * places.len();
        let linear = match key {
            Some(key) => LipschitzLinear::initialise(backend, inputs, config.classes, None, key.named("linear")),
            None => LipschitzLinear::zeros(backend, inputs, config.classes, None),
        };
        let head = |(s, place): (usize, &crate::config::HeadPlace)| {
            let [h, w, c] = place.image;
            let conv = match key {
                Some(key) => LipschitzConv::initialise(backend, [h, w], KERNEL, c, width, None, key.split(s as u64)),
                None => LipschitzConv::zeros(backend, [h, w], KERNEL, c, width, None),
            };
            Head { link: place.stage, image: place.image, conv, norm: ActNorm::new(backend, width) }
        };
        let heads: Vec<_> = places.iter().enumerate().map(head).collect();
        Some(Self { heads, linear, classes: config.classes, width })
    }

    /// The same for a configuration with images of another size: heads are free convolutions and means over pixels.
    pub(crate) fn resized(&self, config: &ImageConfig) -> Self {
        let mut resized = self.clone();
        for (head, place) in resized.heads.iter_mut().zip(config.heads()) {
            head.image = place.image;
        }
        resized
    }

    /// K, the number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Shows every stored tensor, in the order of the gradient slots. Names are `classifier.…`.
    pub fn visit(&self, visitor: Visitor<'_, B>) {
        for (s, head) in self.heads.iter().enumerate() {
            head.conv.visit(&format!("classifier.heads.{s}.convolution"), visitor);
            head.norm.visit(&format!("classifier.heads.{s}.actnorm"), visitor);
        }
        self.linear.visit("classifier.linear", visitor);
    }

    /// Lets every stored tensor be changed, in the same order.
    pub fn visit_mut(&mut self, visitor: VisitorMut<'_, B>) {
        for (s, head) in self.heads.iter_mut().enumerate() {
            head.conv.visit_mut(&format!("classifier.heads.{s}.convolution"), visitor);
            head.norm.visit_mut(&format!("classifier.heads.{s}.actnorm"), visitor);
        }
        self.linear.visit_mut("classifier.linear", visitor);
    }

    /// The classifier ready for computing.
    pub fn prepare(&self, backend: &B) -> PreparedClassifier<B> {
        PreparedClassifier::new(backend, self)
    }

    /// Initialises the heads' norms from what they look at in the first batch: for each head, shards.
    pub(crate) fn initialise(&mut self, backend: &B, seen: &[Vec<B::Tensor>]) -> Result<(), Error> {
        for (head, shards) in self.heads.iter_mut().zip(seen) {
            let conv = head.conv.prepare(backend);
            let mapped: Vec<_> = shards.iter().map(|x| conv.forward(backend, x, Keep::Value).0).collect();
            head.norm.initialise(backend, &mapped)?;
        }
        Ok(())
    }

    /// The number of trained numbers.
    pub fn parameters(&self, backend: &B) -> u64 {
        let mut total = 0;
        self.visit(&mut |_, tensor, role: Role| {
            if role.is_trained() {
                total += backend.shape(tensor).elements() as u64;
            }
        });
        total
    }

    /// One line on what the classifier is.
    pub fn describe(&self, backend: &B) -> String {
        let heads: Vec<_> = self.heads.iter().map(|h| h.conv.describe(backend)).collect();
        format!("{} classes; heads: {}; {}", self.classes, heads.join(", "), self.linear.describe(backend))
    }
}
