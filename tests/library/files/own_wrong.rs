//! Transforms and layers of one's own that get a shape wrong: refused when the flow is made, by their number.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Activation, Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, LogDet, Mapped, PreparedBijection, Tape, Wanted};
use resflow::block::ResidualBlock;
use resflow::config::{FlowConfig, ImageConfig, ModelConfig};
use resflow::error::{ConfigError, Error};
use resflow::flow::Flow;
use resflow::invert::{Inversion, Solution};
use resflow::layer::{
    ActivationLayer, Derivatives, Layer, LayerGrads, LipschitzLinear, PreparedLayer, Saved, Sequence,
};
use resflow::lipschitz::Coefficient;
use resflow::module::{Grad, Module, accumulate};
use resflow::transform::ActNorm;

type Cpu = NdArray<f64>;
type Tensor = <Cpu as Backend>::Tensor;

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

/// What a transform gets wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    NoLogDet,
    LogDetOfSamples,
    LogDetOfAll,
    WiderY,
    FewerSamples,
    FlatY,
    NoTape,
    GradientInX,
    GradientOfParameter,
}

/// The identity, with one trained number for each feature and a fault.
#[derive(Debug, Clone)]
struct Faulty {
    weight: Tensor,
    fault: Fault,
}

impl Module<Cpu> for Faulty {
    fn parts<'a>(&'a self, show: resflow::module::ShowPart<'_, 'a, Cpu>) {
        show("weight", resflow::module::Part::Tensor(&self.weight, resflow::module::Role::Parameter));
    }

    fn parts_mut<'a>(&'a mut self, show: resflow::module::ShowPartMut<'_, 'a, Cpu>) {
        show("weight", resflow::module::PartMut::Tensor(&mut self.weight, resflow::module::Role::Parameter));
    }

    fn describe(&self) -> String {
        format!("{:?}", self.fault)
    }
}

impl Bijection<Cpu> for Faulty {
    fn prepare(&self, _: &Cpu) -> Box<dyn PreparedBijection<Cpu>> {
        Box::new(self.clone())
    }
}

impl PreparedBijection<Cpu> for Faulty {
    fn forward(&self, b: &Cpu, batch: &Batch<Cpu>, ask: &Ask<'_>) -> Result<Mapped<Cpu>, Error> {
        let (n, shape) = (batch.len(b), batch.shape(b));
        let y = match self.fault {
            Fault::WiderY => b.concat(&[&batch.x, &batch.x], shape.rank() - 1),
            Fault::FewerSamples => b.narrow(&batch.x, 0, 0, n - 1),
            Fault::FlatY => b.reshape(&batch.x, [shape.elements()].into()),
            _ => batch.x.clone(),
        };
        let zeros = match self.fault {
            Fault::LogDetOfSamples => b.full(0.0, [n].into()),
            Fault::LogDetOfAll => b.full(0.0, [1, 1].into()),
            _ => b.full(0.0, [n, 1].into()),
        };
        let wanted = ask.replicates().is_some() && self.fault != Fault::NoLogDet;
        let log_dets = wanted.then(|| LogDet::exact(zeros)).into_iter().collect();
        let taped = matches!(ask.wanted, Wanted::Gradient { .. }) && self.fault != Fault::NoTape;
        Ok(Mapped { log_dets, tape: taped.then(|| Tape::new(())), ..Mapped::value(y) })
    }

    fn inverse(&self, b: &Cpu, batch: &Batch<Cpu>, _: &Inversion) -> Result<Solution<Cpu>, Error> {
        Ok(Solution::closed_form(b, batch.x.clone(), 1.0))
    }

    fn backward(
        &self,
        b: &Cpu,
        tape: Tape,
        cotangents: Cotangents<Cpu>,
        grads: &mut [Grad<Cpu>],
    ) -> Result<Cotangents<Cpu>, Error> {
        tape.into_value::<()>();
        let shape = b.shape(&self.weight);
        let gradient = if self.fault == Fault::GradientOfParameter { [1, shape[0]].into() } else { shape };
        accumulate(b, &mut grads[0], &b.full(1.0, gradient));
        let x = match self.fault {
            Fault::GradientInX => b.narrow(&cotangents.x, 0, 0, 1),
            _ => cotangents.x.clone(),
        };
        Ok(cotangents.with_x(x))
    }
}

/// Flows over rows and over images whose transform 1 has a fault.
fn flow(fault: Fault, images: bool) -> Result<Flow<Cpu>, Error> {
    let b = cpu();
    let (config, features): (ModelConfig, usize) = if images {
        let small =
            ImageConfig { height: 4, width: 4, channels: 3, blocks: vec![1], filters: 2, ..ImageConfig::default() };
        (ImageConfig { fully_connected: 0, ..small }.into(), 3)
    } else {
        (FlowConfig::new(3).into(), 3)
    };
    let faulty = Faulty { weight: b.full(1.0, [features].into()), fault };
    let norm = || Box::new(ActNorm::new(&cpu(), features));
    Flow::from_transforms(b, config, vec![norm(), Box::new(faulty), norm()])
}

#[test]
fn a_transform_that_gives_a_wrong_shape_is_refused_by_its_number() {
    for images in [false, true] {
        assert!(flow(Fault::Nothing, images).is_ok());
        for (fault, said) in [
            (Fault::NoLogDet, "no log det"),
            (Fault::LogDetOfSamples, "expected [3, 1]"),
            (Fault::LogDetOfAll, "expected [3, 1]"),
            (Fault::WiderY, "maps it to"),
            (Fault::FewerSamples, "for 3 samples"),
            (Fault::FlatY, "for 3 samples"),
            (Fault::NoTape, "kept nothing"),
            (Fault::GradientInX, "gradient in x"),
            (Fault::GradientOfParameter, "trained tensor 0"),
        ] {
            match flow(fault, images) {
                Err(Error::Transform { number: 1, problem }) => {
                    assert!(problem.contains(said), "{fault:?}: {problem}");
                }
                other => panic!("{fault:?}, images {images}: expected an error of transform 1, got {other:?}"),
            }
        }
    }
}

/// tanh that keeps a tensor without an axis of samples, or says a bound.
#[derive(Debug, Clone)]
struct Odd {
    tanh: ActivationLayer<Cpu>,
    keeps: Option<usize>,
    bound: f64,
}

fn odd(keeps: Option<usize>, bound: f64) -> Box<dyn Layer<Cpu>> {
    Box::new(Odd { tanh: ActivationLayer::new(&cpu(), Activation::Tanh), keeps, bound })
}

impl Module<Cpu> for Odd {
    fn describe(&self) -> String {
        "odd".into()
    }
}

impl Layer<Cpu> for Odd {
    fn prepare(&self, b: &Cpu) -> Box<dyn PreparedLayer<Cpu>> {
        Box::new(PreparedOdd { tanh: self.tanh.prepare(b), keeps: self.keeps })
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        Ok(input.to_vec())
    }

    fn multiply_adds(&self, _: &[usize]) -> u64 {
        0
    }

    fn lipschitz_bound(&self) -> f64 {
        self.bound
    }
}

#[derive(Debug)]
struct PreparedOdd {
    tanh: Box<dyn PreparedLayer<Cpu>>,
    keeps: Option<usize>,
}

impl PreparedLayer<Cpu> for PreparedOdd {
    fn forward(&self, b: &Cpu, batch: &Batch<Cpu>, keep: Derivatives) -> (Tensor, Saved<Cpu>) {
        let (y, mut saved) = self.tanh.forward(b, batch, keep);
        if let (Some(length), true) = (self.keeps, keep > Derivatives::None) {
            saved.tensors.push(b.full(1.0, [length].into()));
        }
        (y, saved)
    }

    fn jvp(&self, b: &Cpu, saved: &Saved<Cpu>, dx: &Tensor) -> (Tensor, Saved<Cpu>) {
        self.tanh.jvp(b, saved, dx)
    }

    fn vjp(&self, b: &Cpu, saved: &Saved<Cpu>, gy: Tensor) -> Tensor {
        self.tanh.vjp(b, saved, gy)
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
        self.tanh.tangent_vjp(b, saved, tangents, gy, gdy, grads)
    }
}

fn block(layer: Box<dyn Layer<Cpu>>) -> Result<ResidualBlock<Cpu>, ConfigError> {
    let kappa = Coefficient::new(0.9).expect("in range");
    let linear = Box::new(LipschitzLinear::initialise(&cpu(), 3, 3, kappa, Key::new(1)));
    ResidualBlock::new(Box::new(Sequence::new(vec![linear, layer])), &[3])
}

#[test]
fn what_a_layer_keeps_has_samples_first() {
    for keeps in [1, 7] {
        let block = Box::new(block(odd(Some(keeps), 1.0)).expect("a contraction"));
        let norm = Box::new(ActNorm::new(&cpu(), 3));
        match Flow::from_transforms(cpu(), FlowConfig::new(3), vec![norm, block]) {
            Err(Error::Transform { number: 1, problem }) => {
                assert!(problem.contains("samples first") && problem.contains(&format!("[{keeps}]")), "{problem}");
            }
            other => panic!("expected an error of transform 1, got {other:?}"),
        }
    }
    let block = Box::new(block(odd(None, 1.0)).expect("a contraction"));
    assert!(Flow::from_transforms(cpu(), FlowConfig::new(3), vec![block]).is_ok());
}

#[test]
fn a_bound_that_is_no_number_below_one_bounds_nothing() {
    for bound in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5, 2.0] {
        match block(odd(None, bound)) {
            Err(ConfigError::OutOfRange { name: "Lip(g)", .. }) => {}
            other => panic!("a layer of bound {bound}: {other:?}"),
        }
    }
    assert!(block(odd(None, 0.0)).is_ok());
}
