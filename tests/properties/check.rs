//! The checks that are made for transforms and layers of one's own: every part of the library passes them, and each of many
//! mistakes is found and named.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Activation, Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, LogDet, Mapped, Memory, PreparedBijection, Tape, Wanted};
use resflow::check::{Failed, Passed, Property, check_bijection, check_bijection_at, check_layer, check_layer_at};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig};
use resflow::error::{ConfigError, Error};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Solution};
use resflow::layer::{
    ActivationLayer, ConcatenatedLipSwish, Derivatives, Layer, LayerGrads, LipschitzConv, LipschitzLinear,
    OrderGradients, PreparedLayer, Saved, Sequence,
};
use resflow::lipschitz::Coefficient;
use resflow::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use resflow::registry::Registry;
use resflow::stage::{Custom, LayerStage, Stage};
use resflow::transform::{Flatten, Logit, Squeeze};

type Cpu = NdArray<f64>;
type Tensor = <Cpu as Backend>::Tensor;

fn cpu() -> Cpu {
    NdArray::with_threads(NonZeroUsize::MIN).expect("one thread")
}

fn down(b: &Cpu, x: &Tensor) -> Vec<f64> {
    b.download(x).expect("no device fault")
}

/// The properties that findings are about, each once.
fn properties(outcome: &Result<Passed, Failed>) -> Vec<Property> {
    let mut all: Vec<_> = outcome.as_ref().err().into_iter().flat_map(|f| &f.findings).map(|f| f.property).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn told(outcome: &Result<Passed, Failed>) -> String {
    outcome.as_ref().err().map(ToString::to_string).unwrap_or_default()
}

// ---- the library's own ----------------------------------------------------------------------------------------------

/// Every transform of a flow passes, at samples of the shape that comes to it.
fn check_transforms(config: impl Into<ModelConfig>, seed: u64) {
    let b = cpu();
    let flow = Flow::new(b.clone(), config, Key::new(seed)).expect("a configuration");
    let mut shape = flow.config().sample_shape().clone();
    for (number, transform) in flow.transforms().iter().enumerate() {
        let key = Key::new(seed).split(number as u64);
        let passed = check_bijection(&b, &**transform, &shape, key, &Registry::new());
        let passed = passed.unwrap_or_else(|failed| panic!("transform {number}: {failed}"));
        let unchecked: Vec<_> = passed.notes.iter().filter(|n| n.property != Property::Value).collect();
        assert!(unchecked.is_empty(), "{unchecked:?}");
        shape = transform.output_shape(&shape).expect("it passes");
        if let Some(channels) = shape.last_mut() {
            *channels -= transform.factored_out();
        }
    }
}

#[test]
fn transforms_of_rows_pass() {
    for (seed, model) in [Family::Residual, Family::RealNvp, Family::Glow].into_iter().enumerate() {
        let config = FlowConfig { model, blocks: 2, hidden: vec![7], coefficient: 0.9, ..FlowConfig::new(3) };
        check_transforms(&config, seed as u64);
    }
    let mixed = FlowConfig { blocks: 1, hidden: vec![5], coefficient: 0.9, ..FlowConfig::new(3) };
    for norms in ["212", "learned"] {
        let norms = norms.parse().expect("norms");
        check_transforms(FlowConfig { norms, ..mixed.clone() }, 7);
    }
}

#[test]
fn transforms_of_images_pass() {
    for (seed, model) in [Family::Residual, Family::RealNvp, Family::Glow].into_iter().enumerate() {
        let config = ImageConfig {
            model,
            height: 4,
            width: 2,
            channels: 2,
            logit_alpha: 0.05,
            squeeze_first: false,
            blocks: vec![1, 1],
            filters: 3,
            fully_connected: usize::from(model == Family::Residual),
            fully_connected_width: 4,
            coefficient: 0.9,
            factor_out: true,
            ..ImageConfig::default()
        };
        check_transforms(&config, seed as u64);
    }
}

/// Those without weights, alone; a sample that is large is not compared with its Jacobian, which is noted.
#[test]
fn transforms_without_weights_pass() {
    let (b, key) = (cpu(), Key::new(3));
    let pass = |transform: &dyn Bijection<Cpu>, shape: &[usize]| {
        check_bijection(&b, transform, shape, key, &Registry::new()).expect("it keeps its promises")
    };
    assert!(pass(&Squeeze::new(), &[4, 2, 3]).notes.is_empty());
    assert!(pass(&Squeeze::with_factor_out(1), &[4, 4, 1]).notes.is_empty());
    assert!(pass(&Flatten::new([2, 3, 2]), &[2, 3, 2]).notes.is_empty());
    let notes = pass(&Logit::new(1e-6).expect("a margin"), &[2, 3, 1]).notes;
    assert!(notes.len() == 1 && notes[0].sentence.contains("between 0 and 1"), "{notes:?}");
    let notes = pass(&Squeeze::new(), &[8, 8, 2]).notes;
    assert!(notes.len() == 1 && notes[0].sentence.contains("128 numbers"), "{notes:?}");
    let x = b.affine(b.noise(key, Noise::Uniform, 0, [3, 2, 2, 1].into()), 0.9, 0.05);
    check_bijection_at(&b, &Logit::new(0.01).expect("a margin"), &x, key, &Registry::new()).expect("it takes these");
    let refused = check_bijection(&b, &Squeeze::new(), &[3, 2, 1], key, &Registry::new());
    assert_eq!(properties(&refused), [Property::OutputShape]);
}

#[test]
fn layers_pass() {
    let (b, key) = (cpu(), Key::new(4));
    let kappa = || Coefficient::new(0.8).expect("a coefficient");
    let pass = |layer: &dyn Layer<Cpu>, shape: &[usize]| {
        let notes = check_layer(&b, layer, shape, key, &Registry::new()).expect("it keeps its promises").notes;
        assert!(notes.iter().all(|n| n.sentence.contains("a net is saved")), "{notes:?}");
    };
    let mut nets: Vec<(Box<dyn Layer<Cpu>>, &[usize])> = Vec::new();
    for shape in [&[3][..], &[2, 3, 3]] {
        let smooth = [Activation::LipSwish, Activation::Softplus, Activation::Tanh, Activation::Sin];
        for f in smooth.into_iter().chain([Activation::Elu, Activation::Relu, Activation::LipschitzCube]) {
            pass(&ActivationLayer::new(&b, f), shape);
        }
        pass(&ConcatenatedLipSwish::new(&b), shape);
        pass(&LipschitzLinear::initialise(&b, 3, 4, kappa(), key), shape);
        pass(&LipschitzLinear::initialise(&b, 3, 2, None, key), shape);
        let net: Vec<Box<dyn Layer<Cpu>>> = vec![
            Box::new(ConcatenatedLipSwish::new(&b)),
            Box::new(LipschitzLinear::initialise(&b, 6, 5, kappa(), key.split(1))),
            Box::new(ActivationLayer::new(&b, Activation::LipSwish)),
            Box::new(LipschitzLinear::initialise(&b, 5, 3, kappa(), key.split(2))),
        ];
        nets.push((Box::new(Sequence::new(net)), shape));
    }
    pass(&LipschitzConv::initialise(&b, [4, 3], [3, 1], 2, 3, kappa(), key), &[4, 3, 2]);
    pass(&LipschitzConv::initialise(&b, [4, 3], [3, 3], 2, 3, None, key), &[4, 3, 2]);
    for (net, shape) in nets {
        pass(&*net, shape);
    }
    let x = b.noise(key, Noise::Normal, 0, [2, 3].into());
    check_layer_at(&b, &ActivationLayer::new(&b, Activation::Tanh), &x, key, &Registry::new()).expect("any samples");
}

// ---- mistakes in transforms -----------------------------------------------------------------------------------------

/// What is wrong with [`Wave`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mistake {
    None,
    OutputShape,
    ValueForGradient,
    LogDetSign,
    LogDetMissing,
    LogDetUnasked,
    LogDetFlat,
    LogDetBiased,
    LogDetEstimated,
    NoiseOfPlace,
    GradientMissing,
    GradientSign,
    GradientShape,
    GradientOfLogDet,
    GradientInX,
    CotangentChanged,
    Overwritten,
    FirstWeight,
    NoTape,
    Recomputed,
    InverseOff,
    MixedSamples,
    PartsOrder,
    SameNames,
    NoStage,
    SettingForgotten,
    TensorForgotten,
    Unregistered,
    Refuses,
    Infinite,
}

/// y = eˢ sinh(x) + b, elementwise, on the host: log|det ∂y/∂x| = Σ s + ln cosh x.
#[derive(Debug, Clone)]
struct Wave {
    s: Tensor,
    b: Tensor,
    /// A setting: y is shifted by it.
    offset: f64,
    mistake: Mistake,
}

impl Wave {
    fn new(b: &Cpu, d: usize, mistake: Mistake) -> Self {
        let zeros = || b.full(0.0, [d].into());
        Self { s: zeros(), b: zeros(), offset: 0.5, mistake }
    }
}

impl Module<Cpu> for Wave {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, Cpu>) {
        show("s", Part::Tensor(&self.s, Role::Parameter));
        if self.mistake != Mistake::TensorForgotten {
            show(if self.mistake == Mistake::SameNames { "s" } else { "b" }, Part::Tensor(&self.b, Role::Parameter));
        }
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, Cpu>) {
        match self.mistake {
            Mistake::PartsOrder => {
                show("b", PartMut::Tensor(&mut self.b, Role::Parameter));
                show("s", PartMut::Tensor(&mut self.s, Role::Parameter));
            }
            Mistake::TensorForgotten => show("s", PartMut::Tensor(&mut self.s, Role::Parameter)),
            mistake => {
                show("s", PartMut::Tensor(&mut self.s, Role::Parameter));
                let name = if mistake == Mistake::SameNames { "s" } else { "b" };
                show(name, PartMut::Tensor(&mut self.b, Role::Parameter));
            }
        }
    }

    fn describe(&self) -> String {
        "wave".into()
    }
}

impl Bijection<Cpu> for Wave {
    fn prepare(&self, b: &Cpu) -> Box<dyn PreparedBijection<Cpu>> {
        let [s, shift] = [&self.s, &self.b].map(|t| down(b, t));
        let shift = shift.into_iter().map(|b| b + self.offset).collect();
        Box::new(PreparedWave { s, shift, mistake: self.mistake })
    }

    fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let more = usize::from(self.mistake == Mistake::OutputShape);
        Ok(shape.iter().map(|d| d + more).collect())
    }

    fn stage(&self) -> Option<Stage> {
        let forgotten = if self.mistake == Mistake::SettingForgotten { 0.0 } else { self.offset };
        let name = if self.mistake == Mistake::Unregistered { "tide" } else { "wave" };
        let settings = (self.mistake as usize, forgotten);
        (self.mistake != Mistake::NoStage).then(|| Stage::Custom(Custom::new(name, settings).expect("numbers")))
    }
}

#[derive(Debug)]
struct PreparedWave {
    s: Vec<f64>,
    shift: Vec<f64>,
    mistake: Mistake,
}

impl PreparedBijection<Cpu> for PreparedWave {
    fn forward(&self, b: &Cpu, batch: &Batch<Cpu>, ask: &Ask<'_>) -> Result<Mapped<Cpu>, Error> {
        if self.mistake == Mistake::Refuses {
            return Err(Error::Input("the tide is out".into()));
        }
        let (x, d, shape) = (down(b, &batch.x), self.s.len(), batch.shape(b));
        let n = shape.rows();
        let (gradient, drawn) = match ask.wanted {
            Wanted::Gradient { memory, draw } => (Some(memory), Some(draw.key)),
            Wanted::LogDet { draw, .. } => (None, Some(draw.key)),
            Wanted::Value => (None, None),
        };
        let shift = match self.mistake {
            Mistake::ValueForGradient if gradient.is_some() => 1e-4,
            Mistake::Infinite => f64::INFINITY,
            _ => 0.0,
        };
        let mixed = if self.mistake == Mistake::MixedSamples { 1e-5 * n as f64 } else { 0.0 };
        let y = x.iter().enumerate().map(|(e, x)| self.s[e % d].exp() * x.sinh() + self.shift[e % d] + shift + mixed);
        let y = b.upload(&y.collect::<Vec<_>>(), shape);
        let sign = if self.mistake == Mistake::LogDetSign { -1.0 } else { 1.0 };
        let one = |x: &[f64]| x.iter().zip(&self.s).map(|(x, s)| sign * (s + x.cosh().ln())).sum::<f64>();
        let values: Vec<f64> = x.chunks(d).map(one).collect();
        let estimated =
            matches!(self.mistake, Mistake::LogDetBiased | Mistake::LogDetEstimated | Mistake::NoiseOfPlace);
        let mut log_dets = Vec::new();
        if let (Some(columns), Some(key), true) = (ask.replicates(), drawn, estimated) {
            let first = if self.mistake == Mistake::NoiseOfPlace { 0 } else { batch.first };
            let mut noise = vec![0.0; n * columns];
            Noise::Normal.fill(key, first * columns as u64, &mut noise);
            let bias = if self.mistake == Mistake::LogDetBiased { 0.1 } else { 0.0 };
            let estimates = noise.iter().enumerate().map(|(e, z)| values[e / columns] + 0.1 * z + bias);
            let value = b.upload(&estimates.collect::<Vec<_>>(), [n, columns].into());
            log_dets.push(LogDet { value, exact: false });
        } else if self.mistake == Mistake::LogDetUnasked || ask.replicates().is_some() {
            let flat = self.mistake == Mistake::LogDetFlat;
            log_dets.push(LogDet::exact(b.upload(&values, if flat { [n].into() } else { [n, 1].into() })));
        }
        if self.mistake == Mistake::LogDetMissing {
            log_dets.clear();
        }
        let tape =
            gradient.filter(|_| self.mistake != Mistake::NoTape).map(|memory| Tape::new((batch.x.clone(), memory)));
        Ok(Mapped { log_dets, tape, ..Mapped::value(y) })
    }

    fn inverse(&self, b: &Cpu, batch: &Batch<Cpu>, _how: &Inversion) -> Result<Solution<Cpu>, Error> {
        let (y, d) = (down(b, &batch.x), self.s.len());
        let off = if self.mistake == Mistake::InverseOff { 1e-7 } else { 0.0 };
        let mixed = if self.mistake == Mistake::MixedSamples { 1e-5 * batch.len(b) as f64 } else { 0.0 };
        let x =
            y.iter().enumerate().map(|(e, y)| ((y - self.shift[e % d] - mixed) * (-self.s[e % d]).exp()).asinh() + off);
        Ok(Solution::by_formula(b, b.upload(&x.collect::<Vec<_>>(), batch.shape(b)), f64::INFINITY)?)
    }

    fn backward(
        &self,
        b: &Cpu,
        tape: Tape,
        cotangents: Cotangents<Cpu>,
        grads: &mut [Grad<Cpu>],
    ) -> Result<Cotangents<Cpu>, Error> {
        let (x, memory) = tape.into_value::<(Tensor, Memory)>();
        let (shape, x, d) = (b.shape(&x), down(b, &x), self.s.len());
        let (gy, mut w) = (down(b, &cotangents.x), down(b, &cotangents.log_det));
        match self.mistake {
            Mistake::FirstWeight => w = vec![w[0]; w.len()],
            Mistake::GradientOfLogDet => w.fill(0.0),
            _ => {}
        }
        let (mut gx, mut gs, mut gb) = (vec![0.0; x.len()], vec![0.0; d], vec![0.0; d]);
        for e in 0..x.len() {
            let (j, w) = (e % d, w[e / d]);
            let scale = self.s[j].exp();
            gx[e] = gy[e] * scale * x[e].cosh() + w * x[e].tanh();
            gs[j] += gy[e] * scale * x[e].sinh() + w;
            gb[j] += gy[e];
        }
        match self.mistake {
            Mistake::GradientSign => gs.iter_mut().for_each(|g| *g = -*g),
            Mistake::GradientInX => gx.iter_mut().for_each(|g| *g *= 1.001),
            Mistake::Recomputed if memory == Memory::Recompute => gs[0] += 0.1,
            _ => {}
        }
        let gradient = |g: &[f64]| b.upload(g, [d].into());
        if self.mistake == Mistake::Overwritten {
            grads[0] = Some(gradient(&gs));
        } else if self.mistake == Mistake::GradientShape {
            accumulate(b, &mut grads[0], &b.upload(&gs, [1, d].into()));
        } else {
            accumulate(b, &mut grads[0], &gradient(&gs));
        }
        if !matches!(self.mistake, Mistake::GradientMissing | Mistake::TensorForgotten) {
            accumulate(b, &mut grads[1], &gradient(&gb));
        }
        let mut back = cotangents.with_x(b.upload(&gx, shape));
        if self.mistake == Mistake::CotangentChanged {
            back.log_det = b.affine(back.log_det, 2.0, 0.0);
        }
        Ok(back)
    }
}

const MISTAKES: [Mistake; 30] = [
    Mistake::None,
    Mistake::OutputShape,
    Mistake::ValueForGradient,
    Mistake::LogDetSign,
    Mistake::LogDetMissing,
    Mistake::LogDetUnasked,
    Mistake::LogDetFlat,
    Mistake::LogDetBiased,
    Mistake::LogDetEstimated,
    Mistake::NoiseOfPlace,
    Mistake::GradientMissing,
    Mistake::GradientSign,
    Mistake::GradientShape,
    Mistake::GradientOfLogDet,
    Mistake::GradientInX,
    Mistake::CotangentChanged,
    Mistake::Overwritten,
    Mistake::FirstWeight,
    Mistake::NoTape,
    Mistake::Recomputed,
    Mistake::InverseOff,
    Mistake::MixedSamples,
    Mistake::PartsOrder,
    Mistake::SameNames,
    Mistake::NoStage,
    Mistake::SettingForgotten,
    Mistake::TensorForgotten,
    Mistake::Unregistered,
    Mistake::Refuses,
    Mistake::Infinite,
];

/// What is found of a mistake, and a part of what is said.
fn expected(mistake: Mistake) -> (&'static [Property], &'static str) {
    use Property as P;
    match mistake {
        Mistake::None | Mistake::LogDetEstimated | Mistake::NoStage => (&[], ""),
        Mistake::OutputShape => (&[P::OutputShape], "`output_shape` says [4, 4]"),
        Mistake::ValueForGradient => (&[P::Value], "asked for a gradient"),
        Mistake::LogDetSign => (&[P::LogDet, P::Gradient], "of the wrong sign (4 of 4"),
        Mistake::LogDetMissing => (&[P::LogDet], "no log det comes when the log det is asked for"),
        Mistake::LogDetUnasked => (&[P::LogDet], "1 terms come when y alone is asked for"),
        Mistake::LogDetFlat => (&[P::LogDet], "is [4], expected [4, 1]"),
        Mistake::LogDetBiased => (&[P::LogDet], "the mean of 512 estimates"),
        Mistake::NoiseOfPlace => (&[P::BatchCut], "`Batch::first`"),
        Mistake::GradientMissing => (&[P::Gradient], "`b` gets none"),
        Mistake::GradientSign => (&[P::Gradient], "`s`, trained tensor 0, is"),
        Mistake::GradientShape => (&[P::Gradient], "that of `s` is [1, 3], expected [3]"),
        Mistake::GradientOfLogDet | Mistake::GradientInX => (&[P::Gradient], "in x is"),
        Mistake::CotangentChanged => (&[P::Gradient], "changes the cotangent of the log det"),
        Mistake::Overwritten => (&[P::Accumulation], "after two backward passes"),
        Mistake::FirstWeight => (&[P::Gradient, P::SampleWeights], "each sample's own weight"),
        Mistake::NoTape => (&[P::Gradient], "no tape comes"),
        Mistake::Recomputed => (&[P::Memory], "Memory::Recompute"),
        Mistake::InverseOff => (&[P::Inverse], "after the way forth and back"),
        Mistake::MixedSamples => (&[P::BatchCut], "must not depend on the others"),
        Mistake::PartsOrder => (&[P::Parts], "`parts` shows `s` [3] Parameter, `b` [3] Parameter"),
        Mistake::SameNames => (&[P::Gradient, P::Parts, P::SaveAndLoad], "two stored tensors are named `s`"),
        Mistake::SettingForgotten => (&[P::SaveAndLoad], "the stage must say every setting"),
        Mistake::TensorForgotten => (&[P::SaveAndLoad], "show every tensor"),
        Mistake::Unregistered => (&[P::SaveAndLoad], "`tide`"),
        Mistake::Refuses => (&[P::Succeeds], "the tide is out"),
        Mistake::Infinite => (&[P::Value], "not finite"),
    }
}

/// A registry that makes waves, of the mistake and the offset that their settings say.
fn registry() -> Registry<Cpu> {
    let mut registry = Registry::new();
    registry.add_transform("wave", |b, settings| {
        let number = settings[0].as_u64().unwrap_or_default() as usize;
        Ok(Box::new(Wave { offset: settings[1].as_f64().unwrap_or_default(), ..Wave::new(b, 3, MISTAKES[number]) }))
    });
    registry.add_layer("bend", |b, settings| {
        let number = settings[0].as_u64().unwrap_or_default() as usize;
        Ok(Box::new(Bend { slope: settings[1].as_f64().unwrap_or_default(), ..Bend::new(b, 3, FAULTS[number]) }))
    });
    registry
}

#[test]
fn every_mistake_in_a_transform_is_found() {
    let (b, mut wrong) = (cpu(), Vec::new());
    for mistake in MISTAKES {
        let mut wave = Wave::new(&b, 3, mistake);
        if mistake == Mistake::TensorForgotten {
            // with zeros there would be nothing to forget
            wave.b = b.full(0.3, [3].into());
        }
        let outcome = check_bijection(&b, &wave, &[3], Key::new(1), &registry());
        wrong.extend(unlike(&format!("{mistake:?}"), &outcome, expected(mistake)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What is not as expected: exactly these properties, and a part of what is said.
fn unlike(what: &str, outcome: &Result<Passed, Failed>, (found, said): (&[Property], &str)) -> Option<String> {
    let as_expected = properties(outcome) == sorted(found) && told(outcome).contains(said);
    (!as_expected).then(|| format!("{what}: expected {found:?} and {said:?}, got {}", told(outcome)))
}

fn sorted(properties: &[Property]) -> Vec<Property> {
    let mut properties = properties.to_vec();
    properties.sort_unstable();
    properties
}

#[test]
fn a_transform_that_cannot_be_saved_is_noted() {
    let b = cpu();
    let passed = check_bijection(&b, &Wave::new(&b, 3, Mistake::NoStage), &[3], Key::new(1), &Registry::new());
    let notes = passed.expect("it can be used").notes;
    assert!(notes.len() == 1 && notes[0].property == Property::SaveAndLoad, "{notes:?}");
    assert!(notes[0].sentence.contains("not saved"), "{notes:?}");
}

/// In single precision the library's transforms pass, and a wrong sign does not.
#[test]
fn single_precision() {
    let b = NdArray::<f32>::with_threads(NonZeroUsize::MIN).expect("one thread");
    let config = FlowConfig { blocks: 1, hidden: vec![7], coefficient: 0.9, ..FlowConfig::new(3) };
    let flow = Flow::new(b.clone(), &config, Key::new(5)).expect("a configuration");
    for transform in flow.transforms() {
        check_bijection(&b, &**transform, &[3], Key::new(6), &Registry::new()).expect("it keeps its promises");
    }
    check_layer(&b, &ActivationLayer::new(&b, Activation::LipSwish), &[3], Key::new(6), &Registry::new())
        .expect("it keeps its promises");
}

// ---- mistakes in layers ---------------------------------------------------------------------------------------------

/// What is wrong with [`Bend`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    OutputShape,
    ValueForSecond,
    MixedSamples,
    ScalarSaved,
    TangentSaved,
    Jvp,
    JvpOfSecond,
    JvpShape,
    Vjp,
    VjpShape,
    SecondDerivative,
    TangentSign,
    GradientMissing,
    GradientSign,
    GradientShape,
    Overwritten,
    KeepTangent,
    OnlyWithTangents,
    Bound,
    NoBound,
    PartsOrder,
    SettingForgotten,
    Unregistered,
    NoStage,
}

const FAULTS: [Fault; 25] = [
    Fault::None,
    Fault::OutputShape,
    Fault::ValueForSecond,
    Fault::MixedSamples,
    Fault::ScalarSaved,
    Fault::TangentSaved,
    Fault::Jvp,
    Fault::JvpOfSecond,
    Fault::JvpShape,
    Fault::Vjp,
    Fault::VjpShape,
    Fault::SecondDerivative,
    Fault::TangentSign,
    Fault::GradientMissing,
    Fault::GradientSign,
    Fault::GradientShape,
    Fault::Overwritten,
    Fault::KeepTangent,
    Fault::OnlyWithTangents,
    Fault::Bound,
    Fault::NoBound,
    Fault::PartsOrder,
    Fault::SettingForgotten,
    Fault::Unregistered,
    Fault::NoStage,
];

/// y = c tanh(x + a) + b, elementwise, on the host: Lip = c.
#[derive(Debug, Clone)]
struct Bend {
    a: Tensor,
    b: Tensor,
    /// c.
    slope: f64,
    fault: Fault,
}

impl Bend {
    fn new(b: &Cpu, d: usize, fault: Fault) -> Self {
        let zeros = || b.full(0.0, [d].into());
        Self { a: zeros(), b: zeros(), slope: 0.7, fault }
    }
}

impl Module<Cpu> for Bend {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, Cpu>) {
        show("a", Part::Tensor(&self.a, Role::Parameter));
        show("b", Part::Tensor(&self.b, Role::Parameter));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, Cpu>) {
        let a = ("a", PartMut::Tensor(&mut self.a, Role::Parameter));
        let b = ("b", PartMut::Tensor(&mut self.b, Role::Parameter));
        for (name, part) in if self.fault == Fault::PartsOrder { [b, a] } else { [a, b] } {
            show(name, part);
        }
    }

    fn describe(&self) -> String {
        "bend".into()
    }
}

impl Layer<Cpu> for Bend {
    fn prepare(&self, b: &Cpu) -> Box<dyn PreparedLayer<Cpu>> {
        let [a, bias] = [&self.a, &self.b].map(|t| down(b, t));
        Box::new(PreparedBend { a, bias, slope: self.slope, fault: self.fault })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(input.iter().map(|d| d + usize::from(self.fault == Fault::OutputShape)).collect())
    }

    fn stage(&self) -> Option<LayerStage> {
        let slope = if self.fault == Fault::SettingForgotten { 1.0 } else { self.slope };
        let name = if self.fault == Fault::Unregistered { "knee" } else { "bend" };
        let settings = (self.fault as usize, slope);
        (self.fault != Fault::NoStage).then(|| LayerStage::Custom(Custom::new(name, settings).expect("numbers")))
    }

    fn multiply_adds(&self, _input: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        match self.fault {
            Fault::Bound => 0.8 * self.slope,
            Fault::NoBound => f64::NAN,
            _ => self.slope,
        }
    }
}

#[derive(Debug)]
struct PreparedBend {
    a: Vec<f64>,
    bias: Vec<f64>,
    slope: f64,
    fault: Fault,
}

impl PreparedBend {
    /// f(x) without b, f' and f'' at an entry of x.
    fn derivatives(&self, e: usize, x: f64) -> [f64; 3] {
        let t = (x + self.a[e % self.a.len()]).tanh();
        let first = self.slope * (1.0 - t * t);
        [self.slope * t, first, -2.0 * t * first]
    }

    /// A function of each entry of tensors of one shape and of their place.
    fn each(b: &Cpu, x: &[&Tensor], f: impl Fn(usize, &[f64]) -> f64) -> Tensor {
        let values: Vec<_> = x.iter().map(|x| down(b, x)).collect();
        let entries = (0..values[0].len()).map(|e| f(e, &values.iter().map(|v| v[e]).collect::<Vec<_>>()));
        b.upload(&entries.collect::<Vec<_>>(), b.shape(x[0]))
    }
}

impl PreparedLayer<Cpu> for PreparedBend {
    fn forward(&self, b: &Cpu, batch: &Batch<Cpu>, keep: Derivatives) -> (Tensor, Saved<Cpu>) {
        let shift = match self.fault {
            Fault::ValueForSecond if keep == Derivatives::Second => 1e-4,
            Fault::MixedSamples => 1e-5 * batch.len(b) as f64,
            _ => 0.0,
        };
        let y = Self::each(b, &[&batch.x], |e, x| self.derivatives(e, x[0])[0] + self.bias[e % self.a.len()] + shift);
        let mut tensors = if keep == Derivatives::None { Vec::new() } else { vec![batch.x.clone()] };
        if self.fault == Fault::ScalarSaved {
            tensors.push(b.full(self.slope, [1].into()));
        }
        // what tells the second derivative from the first
        if self.fault == Fault::JvpOfSecond && keep == Derivatives::Second {
            tensors.push(batch.x.clone());
        }
        (y, Saved::tensors(tensors))
    }

    fn jvp(&self, b: &Cpu, saved: &Saved<Cpu>, dx: &Tensor) -> (Tensor, Saved<Cpu>) {
        let factor = match self.fault {
            Fault::Jvp => 2.0,
            Fault::JvpOfSecond if saved.tensors.len() > 1 => 1.01,
            _ => 1.0,
        };
        let dy = Self::each(b, &[&saved.tensors[0], dx], |e, x| factor * self.derivatives(e, x[0])[1] * x[1]);
        let kept = if self.fault == Fault::TangentSaved { b.full(1.0, [1, self.a.len()].into()) } else { dx.clone() };
        let dy = if self.fault == Fault::JvpShape { b.reshape(&dy, [b.shape(&dy).elements()].into()) } else { dy };
        (dy, Saved::tensors(vec![kept]))
    }

    fn keep_tangent(&self, b: &Cpu, saved: &Saved<Cpu>, dx: &Tensor) -> Saved<Cpu> {
        let twice = if self.fault == Fault::KeepTangent { 2.0 } else { 1.0 };
        let kept = self.jvp(b, saved, dx).1;
        Saved::tensors(vec![b.affine(kept.tensors[0].clone(), twice, 0.0)])
    }

    fn vjp(&self, b: &Cpu, saved: &Saved<Cpu>, gy: Tensor) -> Tensor {
        let factor = if self.fault == Fault::Vjp { -1.0 } else { 1.0 };
        let gx = Self::each(b, &[&saved.tensors[0], &gy], |e, x| factor * self.derivatives(e, x[0])[1] * x[1]);
        if self.fault == Fault::VjpShape { b.reshape(&gx, [b.shape(&gx).elements(), 1].into()) } else { gx }
    }

    fn tangent_vjp(
        &self,
        b: &Cpu,
        saved: &Saved<Cpu>,
        tangents: &[&Saved<Cpu>],
        gy: Tensor,
        gdy: Vec<Tensor>,
        grads: LayerGrads<'_, Cpu>,
    ) -> (Tensor, Vec<Tensor>) {
        let (x, d) = (&saved.tensors[0], self.a.len());
        let mut gx = Self::each(b, &[x, &gy], |e, x| self.derivatives(e, x[0])[1] * x[1]);
        let bend = if self.fault == Fault::SecondDerivative { 0.5 } else { 1.0 };
        for (tangent, gdy) in tangents.iter().zip(&gdy) {
            let through = |e: usize, x: &[f64]| bend * self.derivatives(e, x[0])[2] * x[1] * x[2];
            gx = b.axpy(1.0, &Self::each(b, &[x, &tangent.tensors[0], gdy], through), gx);
        }
        let sum = |g: &Tensor| {
            let values = down(b, g);
            (0..d).map(|j| values.iter().skip(j).step_by(d).sum::<f64>()).collect::<Vec<_>>()
        };
        let (ga, gb) = (sum(&gx), sum(&gy));
        let sign = if self.fault == Fault::GradientSign { -1.0 } else { 1.0 };
        let shape = if self.fault == Fault::GradientShape { [d, 1].into() } else { [d].into() };
        let ga = b.affine(b.upload(&ga, shape), sign, 0.0);
        match self.fault {
            Fault::Overwritten => grads.trained[0] = Some(ga),
            Fault::OnlyWithTangents if tangents.is_empty() => {}
            _ => accumulate(b, &mut grads.trained[0], &ga),
        }
        if self.fault != Fault::GradientMissing {
            accumulate(b, &mut grads.trained[1], &b.upload(&gb, [d].into()));
        }
        let sign = if self.fault == Fault::TangentSign { -1.0 } else { 1.0 };
        let gdx = gdy.iter().map(|g| Self::each(b, &[x, g], |e, x| sign * self.derivatives(e, x[0])[1] * x[1]));
        (gx, gdx.collect())
    }

    fn finish_gradients(&self, _b: &Cpu, _grads: &mut [Grad<Cpu>]) -> OrderGradients<Cpu> {
        [None, None]
    }
}

/// What is found of a fault, and a part of what is said.
fn expected_of_layer(fault: Fault) -> (&'static [Property], &'static str) {
    use Property as P;
    match fault {
        Fault::None | Fault::NoStage => (&[], ""),
        Fault::OutputShape => (&[P::OutputShape], "`output_shape` says [4, 4]"),
        Fault::ValueForSecond => (&[P::Value], "with Derivatives::Second"),
        Fault::MixedSamples => (&[P::BatchCut], "must not depend on the others"),
        Fault::ScalarSaved => (&[P::Saved], "keeps of 4 samples is [1]"),
        Fault::TangentSaved => (&[P::Saved], "that jvp keeps of 4 samples is [1, 3]"),
        Fault::Jvp => (&[P::Gradient, P::Jvp, P::Lipschitz, P::Vjp], "2 times that"),
        Fault::JvpOfSecond => (&[P::Jvp], "Derivatives::Second"),
        Fault::JvpShape => (&[P::Jvp], "J dx is [12], expected [4, 3]"),
        Fault::Vjp => (&[P::Vjp], "of the wrong sign"),
        Fault::VjpShape => (&[P::Vjp], "Jᵀ gy is [12, 1], expected [4, 3]"),
        Fault::SecondDerivative => (&[P::Gradient], "in x is"),
        Fault::TangentSign => (&[P::Gradient], "in the tangents is"),
        Fault::GradientMissing => (&[P::Gradient], "`b` gets none"),
        Fault::GradientSign => (&[P::Gradient], "`a`, trained tensor 0, is"),
        Fault::GradientShape => (&[P::Gradient], "that of `a` is [3, 1], expected [3]"),
        Fault::Overwritten => (&[P::Accumulation], "after two pullbacks"),
        Fault::KeepTangent => (&[P::Jvp], "`keep_tangent`"),
        Fault::OnlyWithTangents => (&[P::Gradient], "without tangents"),
        Fault::Bound => (&[P::Lipschitz], "`lipschitz_bound` says 0.5"),
        Fault::NoBound => (&[P::Lipschitz], "say infinity"),
        Fault::PartsOrder => (&[P::Parts], "`parts` shows `a` [3] Parameter, `b` [3] Parameter"),
        Fault::SettingForgotten => (&[P::SaveAndLoad], "the stage must say every setting"),
        Fault::Unregistered => (&[P::SaveAndLoad], "`knee`"),
    }
}

#[test]
fn every_mistake_in_a_layer_is_found() {
    let (b, mut wrong) = (cpu(), Vec::new());
    // near 0, where the slope is largest
    let x = b.affine(b.noise(Key::new(9), Noise::Normal, 0, [4, 3].into()), 0.5, 0.0);
    for fault in FAULTS {
        let outcome = check_layer_at(&b, &Bend::new(&b, 3, fault), &x, Key::new(1), &registry());
        wrong.extend(unlike(&format!("{fault:?}"), &outcome, expected_of_layer(fault)));
        if fault == Fault::NoStage {
            let notes = outcome.expect("it can be used").notes;
            assert!(notes.len() == 1 && notes[0].sentence.contains("not saved"), "{notes:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
