//! A transform of one's own with one mistake, each of thirty-one.

use resflow::backend::{Backend, Key, Noise};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, LogDet, Mapped, Memory, PreparedBijection, Tape, Wanted};
use resflow::check::{Property, check_bijection};
use resflow::error::{ConfigError, Error};
use resflow::invert::{Inversion, Solution};
use resflow::module::{Grad, Module, Part, PartMut, Role, ShowPart, ShowPartMut, accumulate};
use resflow::registry::Registry;
use resflow::stage::{Custom, Stage};

use super::{Cpu, Tensor, cpu, down, unlike};

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
    SolveDoubled,
    MixedSamples,
    PartsOrder,
    SameNames,
    NoStage,
    SettingForgotten,
    TensorForgotten,
    Unregistered,
    /// What the registry makes of it gives a log det of a wrong shape.
    LoadedFlat,
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

    fn solve_transposed(
        &self,
        b: &Cpu,
        batch: &Batch<Cpu>,
        gradient: &Tensor,
        _how: &Inversion,
    ) -> Result<Solution<Cpu>, Error> {
        let (x, g, d) = (down(b, &batch.x), down(b, gradient), self.s.len());
        let factor = if self.mistake == Mistake::SolveDoubled { 2.0 } else { 1.0 };
        let a = (0..x.len()).map(|e| factor * g[e] / (self.s[e % d].exp() * x[e].cosh()));
        Ok(Solution::by_formula(b, b.upload(&a.collect::<Vec<_>>(), batch.shape(b)), f64::INFINITY)?)
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

const MISTAKES: [Mistake; 32] = [
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
    Mistake::SolveDoubled,
    Mistake::MixedSamples,
    Mistake::PartsOrder,
    Mistake::SameNames,
    Mistake::NoStage,
    Mistake::SettingForgotten,
    Mistake::TensorForgotten,
    Mistake::Unregistered,
    Mistake::LoadedFlat,
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
        Mistake::SolveDoubled => (&[P::TransposedSolve], ", 2 times that"),
        Mistake::MixedSamples => (&[P::BatchCut], "must not depend on the others"),
        Mistake::PartsOrder => (&[P::Parts], "`parts` shows `s` [3] Parameter, `b` [3] Parameter"),
        Mistake::SameNames => (&[P::Gradient, P::Parts, P::SaveAndLoad], "two stored tensors are named `s`"),
        Mistake::SettingForgotten => (&[P::SaveAndLoad], "the stage must say every setting"),
        Mistake::TensorForgotten => (&[P::SaveAndLoad], "show every tensor"),
        Mistake::Unregistered => (&[P::SaveAndLoad], "`tide`"),
        Mistake::LoadedFlat => (&[P::SaveAndLoad], "expected [3, 1]"),
        Mistake::Refuses => (&[P::Succeeds], "the tide is out"),
        Mistake::Infinite => (&[P::Value], "not finite"),
    }
}

/// A registry that makes waves, of the mistake and the offset that their settings say.
fn registry() -> Registry<Cpu> {
    let mut registry = Registry::new();
    registry.add_transform("wave", |b, settings| {
        let number = settings[0].as_u64().unwrap_or_default() as usize;
        let mistake = match MISTAKES[number] {
            Mistake::LoadedFlat => Mistake::LogDetFlat,
            mistake => mistake,
        };
        Ok(Box::new(Wave { offset: settings[1].as_f64().unwrap_or_default(), ..Wave::new(b, 3, mistake) }))
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

#[test]
fn a_transform_that_cannot_be_saved_is_noted() {
    let b = cpu();
    let passed = check_bijection(&b, &Wave::new(&b, 3, Mistake::NoStage), &[3], Key::new(1), &Registry::new());
    let notes = passed.expect("it can be used").notes;
    assert!(notes.len() == 1 && notes[0].property == Property::SaveAndLoad, "{notes:?}");
    assert!(notes[0].sentence.contains("not saved"), "{notes:?}");
}
