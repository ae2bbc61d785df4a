//! A transform of one's own, by formulas: the sinh-arcsinh transform (Jones and Pewsey 2009, Biometrika 96, 761–780), with
//! a learned skew ε and tail δ of each feature. It is checked, trained in a flow, saved, loaded, stopped and resumed.
//!
//! ```sh
//! cargo run --release --example custom_transform
//! ```
//!
//! y = sinh s with s = (u + ε)·δ and u = asinh x;  log|det ∂y/∂x| = Σ [ln δ + ln cosh s − ln cosh u], since cosh u = √(1 + x²)

use std::error::Error;
use std::ops::ControlFlow;

use resflow::backend::Binary::{Add, Div, Less, Max, Min, Mul, Sub};
use resflow::backend::{Backend, Key, Noise, Over, Reduce, Unary};
use resflow::batch::{Batch, per_sample};
use resflow::bijection::{Bijection, ClosedForm, Cotangents, PreparedBijection, closed_form};
use resflow::check::check_bijection;
use resflow::checkpoint::Archive;
use resflow::config::FlowConfig;
use resflow::data::Dataset;
use resflow::error::ConfigError;
use resflow::invert::Solution;
use resflow::module::{Grad, Module, accumulate};
use resflow::registry::Registry;
use resflow::stage::{Custom, Stage};
use resflow::train::{Budget, TrainConfig, Trainer};
use resflow::{Flow, NdArray};

/// The transform and its parameters, [features] each; the identity at first.
#[derive(Debug, Clone)]
struct SinhArcsinh<B: Backend> {
    features: usize,
    skew: B::Tensor,
    log_tail: B::Tensor,
}

impl<B: Backend> SinhArcsinh<B> {
    const NAME: &'static str = "sinh-arcsinh";

    fn new(backend: &B, features: usize) -> Self {
        let zeros = backend.full(0.0, [features].into());
        Self { features, skew: zeros.clone(), log_tail: zeros }
    }

    /// u, s and δ of samples x.
    fn angles(&self, b: &B, x: &B::Tensor) -> [B::Tensor; 3] {
        let (u, tail) = (asinh(b, x), b.unary(Unary::Exp, self.log_tail.clone()));
        let s = b.binary(Mul, b.binary(Add, u.clone(), &self.skew), &tail);
        [u, s, tail]
    }
}

impl<B: Backend> Module<B> for SinhArcsinh<B> {
    resflow::parts!(B; skew: Parameter, log_tail: Parameter);
}

impl<B: Backend> Bijection<B> for SinhArcsinh<B> {
    fn prepare(&self, _backend: &B) -> Box<dyn PreparedBijection<B>> {
        closed_form(self.clone())
    }

    fn stage(&self) -> Option<Stage> {
        Custom::new(Self::NAME, self.features).ok().map(Stage::Custom)
    }
}

impl<B: Backend> ClosedForm<B> for SinhArcsinh<B> {
    fn map(&self, b: &B, batch: &Batch<B>) -> (B::Tensor, B::Tensor) {
        let [u, s, _] = self.angles(b, &batch.x);
        let stretch = b.binary(Sub, ln_cosh(b, &s), &ln_cosh(b, &u));
        let stretch = b.binary(Add, stretch, &self.log_tail);
        (sinh(b, &s), b.reduce(Reduce::Sum, Over::Row, &stretch))
    }

    fn unmap(&self, b: &B, batch: &Batch<B>) -> Result<Solution<B>, resflow::Error> {
        let tail = b.unary(Unary::Exp, self.log_tail.clone());
        let u = b.binary(Sub, b.binary(Div, asinh(b, &batch.x), &tail), &self.skew);
        Ok(Solution::by_formula(b, sinh(b, &u), f64::INFINITY)?) // dx/dy has no bound where δ < 1
    }

    /// With w the gradient in the log det, that in s is s̄ = ȳ cosh s + w tanh s; those in ε, ln δ and x are δs̄, s·s̄ + w and
    /// (δs̄ − w tanh u)/cosh u.
    fn pull_back(&self, b: &B, kept: Batch<B>, out: Cotangents<B>, grads: &mut [Grad<B>]) -> Cotangents<B> {
        let [u, s, tail] = self.angles(b, &kept.x);
        let w = per_sample(b, &out.log_det, kept.shape(b));
        let tanh_times_w = |x: &B::Tensor| b.binary(Mul, b.unary(Unary::Tanh, x.clone()), &w);
        let gs = b.binary(Add, b.binary(Mul, cosh(b, &s), &out.x), &tanh_times_w(&s));
        let skew = b.binary(Mul, gs.clone(), &tail);
        let log_tail = b.binary(Add, b.binary(Mul, gs, &s), &w);
        accumulate(b, &mut grads[0], &b.reduce(Reduce::Sum, Over::Channel, &skew));
        accumulate(b, &mut grads[1], &b.reduce(Reduce::Sum, Over::Channel, &log_tail));
        let rest = b.binary(Sub, skew, &tanh_times_w(&u));
        out.with_x(b.binary(Div, rest, &cosh(b, &u)))
    }
}

/// ±ln(1 + a + a²/(1 + c)) with a = |x| and c = √(1 + a²): nothing cancels near 0, and no square overflows.
fn asinh<B: Backend>(b: &B, x: &B::Tensor) -> B::Tensor {
    let (a, one) = (b.unary(Unary::Abs, x.clone()), b.full(1.0, [1].into()));
    let large = b.binary(Max, a.clone(), &one);
    let ratio = b.binary(Div, b.binary(Min, a.clone(), &one), &large);
    let root = b.unary(Unary::Sqrt, b.affine(b.unary(Unary::Square, ratio), 1.0, 1.0));
    let c = b.binary(Mul, root, &large);
    let rest = b.binary(Mul, b.binary(Div, a.clone(), &b.affine(c, 1.0, 1.0)), &a);
    let value = b.unary(Unary::Ln1p, b.binary(Add, rest, &a));
    let negative = b.binary(Less, x.clone(), &b.full(0.0, [1].into()));
    b.select(&negative, &b.unary(Unary::Neg, value.clone()), &value)
}

/// ((eˣ − 1) − (e⁻ˣ − 1))/2: the terms have opposite signs, so nothing cancels.
fn sinh<B: Backend>(b: &B, x: &B::Tensor) -> B::Tensor {
    let [plus, minus] = [x.clone(), b.unary(Unary::Neg, x.clone())].map(|x| b.unary(Unary::ExpM1, x));
    b.affine(b.binary(Sub, plus, &minus), 0.5, 0.0)
}

/// (eˣ + e⁻ˣ)/2.
fn cosh<B: Backend>(b: &B, x: &B::Tensor) -> B::Tensor {
    let [plus, minus] = [x.clone(), b.unary(Unary::Neg, x.clone())].map(|x| b.unary(Unary::Exp, x));
    b.affine(b.binary(Add, plus, &minus), 0.5, 0.0)
}

/// |x| + ln(1 + (e^(−2|x|) − 1)/2): it does not overflow with cosh x.
fn ln_cosh<B: Backend>(b: &B, x: &B::Tensor) -> B::Tensor {
    let a = b.unary(Unary::Abs, x.clone());
    let fading = b.unary(Unary::ExpM1, b.affine(a.clone(), -2.0, 0.0));
    b.binary(Add, b.unary(Unary::Ln1p, b.affine(fading, 0.5, 0.0)), &a)
}

/// Makes the transform when a file has it. The number of features comes from the file, so it is held to a limit.
fn registry<B: Backend>() -> Registry<B> {
    let mut registry = Registry::new();
    registry.add_transform(SinhArcsinh::<B>::NAME, |backend, settings| match settings.as_u64().map(usize::try_from) {
        Some(Ok(features @ 1..=0x10_0000)) => Ok(Box::new(SinhArcsinh::new(backend, features))),
        _ => Err(ConfigError::Inconsistent(format!("sinh-arcsinh of {settings} features"))),
    });
    registry
}

/// Two log-normal columns that depend on each other.
fn skewed(rows: usize) -> Result<Dataset, resflow::Error> {
    let mut noise = vec![0.0_f64; 2 * rows];
    Noise::Normal.fill(Key::new(7), 0, &mut noise);
    let rows: Vec<_> = noise.chunks(2).map(|n| [n[0].exp(), (n[1] + 0.7 * n[0]).exp()]).collect();
    Ok(Dataset::from_rows(&rows)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    // everything that the library relies on, in double precision
    let precise = NdArray::<f64>::new();
    let passed = check_bijection(&precise, &SinhArcsinh::new(&precise, 3), &[3], Key::new(0), &registry())?;
    println!("the transform passes its check {:?}", passed.notes);

    // a flow that begins with it, beside the same flow without it
    let backend = NdArray::<f32>::new();
    let config = FlowConfig { blocks: 2, hidden: vec![16], ..FlowConfig::new(2) };
    let without = Flow::new(backend.clone(), &config, Key::new(1))?;
    let mut transforms = without.transforms().to_vec();
    transforms.insert(0, Box::new(SinhArcsinh::new(&backend, 2)));
    let with = Flow::from_transforms(backend.clone(), &config, transforms)?;

    let data = skewed(3000)?;
    let settings = TrainConfig { batch: 200, ..TrainConfig::default() };
    let start = |flow| Trainer::new(flow, data.clone(), &settings, Budget::Steps(400), Key::new(2));
    let mut trainer = start(with.clone())?;
    trainer.run(|_, _| ())?;
    let mut model = trainer.model();
    let score = model.log_prob(trainer.validation_samples(), Key::new(3))?;
    println!("log p = {:.3} ± {:.3} nats a row", score.mean(), score.mean_standard_error());

    let mut plain = start(without)?;
    plain.run(|_, _| ())?;
    println!("without it: {:.3}", plain.model().log_prob(plain.validation_samples(), Key::new(3))?.mean());

    let drawn = model.sample(1000, Key::new(4))?;
    println!("a sample {:.2?}; F(x) is z up to {:.0e}", drawn.samples.row(0), drawn.residual);

    // saved and loaded
    let file = std::env::temp_dir().join("sinh-arcsinh.safetensors");
    model.save(&file)?;
    let loaded = Flow::load_with(backend.clone(), &file, &registry())?;
    assert_eq!(loaded.log_prob(&data, Key::new(3))?.values, model.log_prob(&data, Key::new(3))?.values);
    println!("loaded: log p is the same");

    // stopped after 150 steps and resumed: the same run, bit for bit
    let mut stopped = start(with)?;
    stopped.run(|report, _| if report.step == 150 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })?;
    let run = std::env::temp_dir().join("sinh-arcsinh-run.safetensors");
    stopped.to_archive()?.write(&run)?;
    let mut resumed = Trainer::resume_with(backend, &Archive::read(&run)?, data.clone(), &registry())?;
    assert_eq!(resumed.steps_done(), 150);
    resumed.run(|_, _| ())?;
    assert_eq!(resumed.model().log_prob(&data, Key::new(3))?.values, model.log_prob(&data, Key::new(3))?.values);
    println!("resumed after step 150: log p is the same");
    Ok(())
}
