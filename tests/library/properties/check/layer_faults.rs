//! A layer of one's own with one fault, each of twenty-four.

use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::check::{Property, check_layer_at};
use resflow::error::ConfigError;
use resflow::layer::{Derivatives, Layer, LayerGrads, OrderGradients, PreparedLayer, Saved};
use resflow::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use resflow::registry::Registry;
use resflow::stage::{Custom, LayerStage};

use super::{Cpu, Tensor, cpu, down, unlike};

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

/// A registry that makes bends, of the fault and the slope that their settings say.
fn registry() -> Registry<Cpu> {
    let mut registry = Registry::new();
    registry.add_layer("bend", |b, settings| {
        let number = settings[0].as_u64().unwrap_or_default() as usize;
        Ok(Box::new(Bend { slope: settings[1].as_f64().unwrap_or_default(), ..Bend::new(b, 3, FAULTS[number]) }))
    });
    registry
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
