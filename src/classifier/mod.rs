//! Hybrid models: a flow whose intermediate images a classifier looks at, p(x, y) = p(x) p(y | x) (Nalisnick et al.
//! 2019, arXiv 1902.02767; Chen et al. 2019, arXiv 1906.02735, section 5.4).
//!
//! ```text
//! head s:  mean over pixels of ReLU(ActNorm(3×3 convolution of scale s's output))
//! logits = W (head 1, …, head S) + b,   p(y | x) = softmax(logits)
//! loss   = λ (−log p(x)) + (−log p(y | x))                            nats; λ is `density_weight` of the training
//! ```
//!
//! The classifier has no part in z: log p(x), inversion and sampling are those of the flow. One forward pass serves
//! both terms of the loss; a head's gradient joins that of its scale's output on the way back.
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
//! let source = Source::from(set.clone());
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

use crate::batch::{Batch, SampleWeights};
use crate::bijection::Bijection as _;
use crate::error::Error;
use crate::layer::{Derivatives, Layer as _, LipschitzConv, LipschitzLinear};
use crate::module::{Module, Part, PartMut, ShowPart, ShowPartMut};
use crate::transform::ActNorm;

/// A head's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadPlace {
    /// The number of the transform whose output it looks at.
    pub stage: usize,
    /// The shape of the images that it looks at, `[h, w, c]`.
    pub image: [usize; 3],
}

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
    /// The number of the transform whose output it looks at.
    transform: usize,
    /// The shape of the images that it looks at, `[h, w, c]`.
    image: [usize; 3],
    conv: LipschitzConv<B>,
    norm: ActNorm<B>,
}

/// The size of the heads' kernels.
const KERNEL: usize = 3;

impl<B: Backend> Classifier<B> {
    /// Builds the classifier with a head of `width` channels at each of these places. With a key weights are random,
    /// without one zero, to be filled from a file.
    pub(crate) fn new(backend: &B, places: &[HeadPlace], width: usize, classes: usize, key: Option<Key>) -> Self {
        let key = key.map(|key| key.named("classifier"));
        let inputs = width * places.len();
        let linear = match key {
            Some(key) => LipschitzLinear::initialise(backend, inputs, classes, None, key.named("linear")),
            None => LipschitzLinear::zeros(backend, inputs, classes, None),
        };
        let head = |(s, place): (usize, &HeadPlace)| {
            let [h, w, c] = place.image;
            let conv = match key {
                Some(key) => LipschitzConv::initialise(backend, [h, w], KERNEL, c, width, None, key.split(s as u64)),
                None => LipschitzConv::zeros(backend, [h, w], KERNEL, c, width, None),
            };
            Head { transform: place.stage, image: place.image, conv, norm: ActNorm::new(backend, width) }
        };
        Self { heads: places.iter().enumerate().map(head).collect(), linear, classes, width }
    }

    /// Adapts the heads to images of another size: they are free convolutions and means over pixels.
    pub(crate) fn resized(&self, places: Vec<HeadPlace>) -> Self {
        let mut resized = self.clone();
        for (head, place) in resized.heads.iter_mut().zip(places) {
            head.image = place.image;
        }
        resized
    }

    /// K, the number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Prepares the classifier for computing.
    pub fn prepare(&self, backend: &B) -> PreparedClassifier<B> {
        PreparedClassifier::new(backend, self)
    }

    /// Initialises the heads' norms from what they look at in the first batch: for each head, shards, with the weights
    /// of their samples, if they have any.
    pub(crate) fn initialise(
        &mut self,
        backend: &B,
        seen: &[Vec<B::Tensor>],
        weights: Option<&SampleWeights<'_, B>>,
    ) -> Result<(), Error> {
        for (head, shards) in self.heads.iter_mut().zip(seen) {
            let conv = head.conv.prepare(backend);
            let map = |x: &B::Tensor| conv.forward(backend, &Batch::new(x.clone()), Derivatives::None).0;
            let mapped: Vec<_> = shards.iter().map(|x| Batch::new(map(x))).collect();
            head.norm.initialise(backend, &mapped, weights)?;
        }
        Ok(())
    }
}

impl<B: Backend> Module<B> for Classifier<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        for (s, head) in self.heads.iter().enumerate() {
            show(&format!("heads.{s}.convolution"), Part::Module(&head.conv));
            show(&format!("heads.{s}.actnorm"), Part::Module(&head.norm));
        }
        show("linear", Part::Module(&self.linear));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        for (s, head) in self.heads.iter_mut().enumerate() {
            show(&format!("heads.{s}.convolution"), PartMut::Module(&mut head.conv));
            show(&format!("heads.{s}.actnorm"), PartMut::Module(&mut head.norm));
        }
        show("linear", PartMut::Module(&mut self.linear));
    }

    fn describe(&self) -> String {
        let heads: Vec<_> = self.heads.iter().map(|h| h.conv.describe()).collect();
        format!("{} classes; heads: {}; {}", self.classes, heads.join(", "), self.linear.describe())
    }
}
