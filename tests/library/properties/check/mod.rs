//! The checks that are made for transforms and layers of one's own: every part of the library passes them, and each of many
//! mistakes is found and named.

mod layer_faults;
mod transform_mistakes;

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::{Activation, Backend, Key, Noise};
use resflow::bijection::Bijection;
use resflow::check::{Failed, Passed, Property, check_bijection, check_bijection_at, check_layer, check_layer_at};
use resflow::config::{Family, FlowConfig, ImageConfig, ModelConfig, Nonlinearity};
use resflow::flow::Flow;
use resflow::layer::{
    ActivationLayer, ConcatenatedActivation, Layer, LipschitzConv, LipschitzLinear, Sequence, activation_layer,
};
use resflow::lipschitz::Coefficient;
use resflow::registry::Registry;
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
    for (seed, model) in
        [Family::Residual, Family::RealNvp, Family::Glow, Family::Nsf, Family::Dense].into_iter().enumerate()
    {
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
    for (seed, model) in [Family::Residual, Family::RealNvp, Family::Glow, Family::Dense].into_iter().enumerate() {
        let config = ImageConfig {
            model,
            height: 4,
            width: 2,
            channels: 2,
            logit_alpha: 0.05,
            squeeze_first: false,
            blocks: vec![1, 1],
            filters: 3,
            fully_connected: usize::from(!model.couples()),
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
        for which in Nonlinearity::ALL {
            pass(&*activation_layer(&b, which), shape);
        }
        pass(&LipschitzLinear::initialise(&b, 3, 4, kappa(), key), shape);
        pass(&LipschitzLinear::initialise(&b, 3, 2, None, key), shape);
        let net: Vec<Box<dyn Layer<Cpu>>> = vec![
            Box::new(ConcatenatedActivation::lipswish(&b)),
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
