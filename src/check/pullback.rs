//! The pullback of a layer: the gradients of ⟨gy, f(x)⟩ + Σ ⟨gdyₘ, J dxₘ⟩ in x, in the tangents and in every trained
//! tensor.

use resflow_backend::{Backend, Shape};

use super::differences::{Apart, differ, disagree_along, dot, moves};
use super::layer::Subject;
use super::parts::{Stored, shift, trained};
use super::{Property, Report};
use crate::error::Error;
use crate::layer::{Derivatives, LayerGrads, PreparedLayer};
use crate::lipschitz::PowerIteration;
use crate::module::Grad;

/// The tangents of a pullback.
const TANGENTS: usize = 2;

/// The inputs of a pullback: gy and gdy, of the shape of y.
struct Cotangents<B: Backend> {
    gy: B::Tensor,
    gdy: Vec<B::Tensor>,
}

/// The outputs of a pullback: the gradients in x, in the tangents one after the other, and in the trained tensors.
struct Pullback {
    x: Vec<f64>,
    tangents: Vec<f64>,
    parameters: Vec<Option<Vec<f64>>>,
}

/// Checks `tangent_vjp` and what finishes its gradients.
pub(super) fn check<B: Backend>(report: &mut Report, subject: &Subject<'_, B>) -> Result<(), Error> {
    subject.compare(report)
}

impl<B: Backend> Subject<'_, B> {
    /// `tangent_vjp` with cotangents, added `times` times; `None` where shapes are wrong.
    fn pull_back(
        &self,
        report: &mut Report,
        dx: &[B::Tensor],
        cotangents: &Cotangents<B>,
        times: usize,
        keep_tangent: bool,
    ) -> Result<Option<Pullback>, Error> {
        let b = self.backend;
        let stored = trained(b, &*self.layer);
        let (_, kept) = self.forward(&self.batch, Derivatives::Second);
        let tangent = |dx| {
            if keep_tangent { self.prepared.keep_tangent(b, &kept, dx) } else { self.prepared.jvp(b, &kept, dx).1 }
        };
        let tangents: Vec<_> = dx.iter().map(tangent).collect();
        let tangents: Vec<_> = tangents.iter().collect();
        let mut grads: Vec<Grad<B>> = vec![None; stored.len()];
        let mut out = None;
        for _ in 0..times {
            let (gy, gdy) = (cotangents.gy.clone(), cotangents.gdy.clone());
            out = Some(self.prepared.tangent_vjp(
                b,
                &kept,
                &tangents,
                gy,
                gdy,
                LayerGrads { trained: &mut grads, context: &mut None },
            ));
        }
        let _ = self.prepared.finish_gradients(b, &mut grads);
        let Some((gx, gdx)) = out else { return Ok(None) };
        let input = self.input();
        let mut sound = gdx.len() == dx.len();
        if !sound {
            report.find(
                Property::Gradient,
                format!("tangent_vjp gives {} gradients of {} tangents", gdx.len(), dx.len()),
            );
        }
        for (what, g) in std::iter::once(("x", &gx)).chain(gdx.iter().map(|g| ("a tangent", g))) {
            if b.shape(g) != input {
                sound = false;
                report.find(
                    Property::Gradient,
                    format!("that in {what} is {}, expected {input}, the shape of x", b.shape(g)),
                );
            }
        }
        let mut parameters = Vec::new();
        for (Stored { name, shape, .. }, grad) in stored.iter().zip(&grads) {
            let found = grad.as_ref().map(|g| b.shape(g));
            if let Some(found) = found.filter(|found| found != shape) {
                sound = false;
                report.find(
                    Property::Gradient,
                    format!("that of `{name}` is {found}, expected {shape}, the shape of the tensor"),
                );
            }
            parameters.push(grad.as_ref().map(|g| self.down(g)).transpose()?);
        }
        let tangents = gdx.iter().map(|g| self.down(g)).collect::<Result<Vec<_>, _>>()?.concat();
        Ok(if sound { Some(Pullback { x: self.down(&gx)?, tangents, parameters }) } else { None })
    }

    /// ⟨gy, f(x)⟩ + Σ ⟨gdyₘ, J dxₘ⟩ of a layer.
    fn objective(
        &self,
        prepared: &dyn PreparedLayer<B>,
        x: B::Tensor,
        dx: &[B::Tensor],
        cotangents: &Cotangents<B>,
    ) -> Result<f64, Error> {
        let b = self.backend;
        let (y, kept) = prepared.forward(b, &self.batch.with_x(x), Derivatives::First);
        let mut sum = dot(&self.down(&y)?, &self.down(&cotangents.gy)?);
        for (dx, gdy) in dx.iter().zip(&cotangents.gdy) {
            sum += dot(&self.down(&prepared.jvp(b, &kept, dx).0)?, &self.down(gdy)?);
        }
        Ok(sum)
    }

    /// The pullback's gradients in x, in the tangents and in every trained tensor are those by differences.
    fn compare(&self, report: &mut Report) -> Result<(), Error> {
        let b = self.backend;
        let each = |purpose: &str, shape: Shape| {
            (0..TANGENTS as u64).map(|m| self.normal(purpose, m, shape)).collect::<Vec<_>>()
        };
        let dx = each("tangent", self.input());
        let cotangents = Cotangents { gy: self.normal("gy", 1, self.output), gdy: each("gdy", self.output) };
        let Some(found) = self.pull_back(report, &dx, &cotangents, 1, false)? else { return Ok(()) };
        self.other_ways(report, &dx, &cotangents, &found)?;
        let x = &self.batch.x;
        let direction = self.normal("direction", 0, self.input());
        let along = self.down(&direction)?;
        let mut find = |what: &str, off: Option<Apart>| {
            if let Some(off) = off {
                report.find(
                    Property::Gradient,
                    format!(
                        "that of ⟨gy, f(x)⟩ + Σ ⟨gdyₘ, J dxₘ⟩ in {what} is {:e} along a random direction, by differences {:e}{}",
                        off.found,
                        off.expected,
                        off.guess()
                    ),
                );
            }
        };
        let in_x = |h: f64| self.objective(&*self.prepared, b.axpy(h, &direction, x.clone()), &dx, &cotangents);
        find("x", disagree_along::<B>(&found.x, &along, in_x)?);
        let directions = each("tangent's direction", self.input());
        let along = directions.iter().map(|d| self.down(d)).collect::<Result<Vec<_>, _>>()?.concat();
        let in_tangents = |h: f64| {
            let dx: Vec<_> = dx.iter().zip(&directions).map(|(dx, d)| b.axpy(h, d, dx.clone())).collect();
            self.objective(&*self.prepared, x.clone(), &dx, &cotangents)
        };
        find("the tangents", disagree_along::<B>(&found.tangents, &along, in_tangents)?);
        let mut missing = Vec::new();
        for (slot, Stored { name, shape, .. }) in trained(b, &*self.layer).into_iter().enumerate() {
            let direction = self.normal("parameter's direction", slot as u64, shape);
            let along = self.down(&direction)?;
            let value = |h: f64, how: Option<PowerIteration>| {
                let mut moved = self.layer.boxed_clone();
                shift(b, &mut *moved, &name, &direction, h);
                if let Some(how) = how {
                    moved.update_spectral_norms(b, how);
                }
                self.objective(&*moved.prepare(b), x.clone(), &dx, &cotangents)
            };
            let Some(g) = &found.parameters[slot] else {
                missing.push((slot, name.clone(), moves::<B>(|h| value(h, None))?));
                continue;
            };
            // learned orders of norms move the singular vectors, which stay where they are otherwise
            let first = disagree_along::<B>(g, &along, |h| value(h, None))?;
            let updated = |h: f64| value(h, Some(PowerIteration::converge::<B>()));
            if first.is_some() && disagree_along::<B>(g, &along, updated)?.is_some() {
                find(&format!("`{name}`, trained tensor {slot},"), first);
            }
        }
        for (slot, name, slope) in missing {
            match slope {
                Some(slope) => report.find(
                    Property::Gradient,
                    format!("`{name}` gets none, while by differences it is {slope:e} along a random direction: add it to `grads[{slot}]`"),
                ),
                None => report.note(Property::Gradient, format!("`{name}` gets none, and nothing depends on it")),
            }
        }
        Ok(())
    }

    /// The gradients come again twice over, with `keep_tangent`, and without tangents.
    fn other_ways(
        &self,
        report: &mut Report,
        dx: &[B::Tensor],
        cotangents: &Cotangents<B>,
        found: &Pullback,
    ) -> Result<(), Error> {
        let zeros = vec![self.backend.full(0.0, self.output); dx.len()];
        let only_y = |gdy| Cotangents::<B> { gy: cotangents.gy.clone(), gdy };
        let Some(kept) = self.pull_back(report, dx, cotangents, 1, true)? else { return Ok(()) };
        let Some(twice) = self.pull_back(report, dx, cotangents, 2, false)? else { return Ok(()) };
        let Some(zero) = self.pull_back(report, dx, &only_y(zeros), 1, false)? else { return Ok(()) };
        let Some(none) = self.pull_back(report, &[], &only_y(Vec::new()), 1, false)? else { return Ok(()) };
        let cases = [
            (Property::Jvp, "with what `keep_tangent` keeps instead of `jvp`", &kept, found, 1.0),
            (
                Property::Accumulation,
                "after two pullbacks (`module::accumulate` adds to what is there)",
                &twice,
                found,
                2.0,
            ),
            (
                Property::Gradient,
                "without tangents instead of with tangents whose cotangents are zero",
                &none,
                &zero,
                1.0,
            ),
        ];
        for (property, how, other, one, times) in cases {
            let mut compare = |what: &str, other: &[f64], one: &[f64], times: f64| {
                let expected: Vec<_> = one.iter().map(|g| g * times).collect();
                if let Some(Apart { at, found, expected }) = differ::<B>(other, &expected) {
                    let sentence =
                        format!("number {at} of the gradient in {what} is {found:e} {how}, expected {expected:e}");
                    report.find(property, sentence);
                }
            };
            compare("x", &other.x, &one.x, 1.0);
            for (slot, Stored { name, shape, .. }) in trained(self.backend, &*self.layer).into_iter().enumerate() {
                let filled = |g: &Pullback| g.parameters[slot].clone().unwrap_or_else(|| vec![0.0; shape.elements()]);
                compare(&format!("`{name}`"), &filled(other), &filled(one), times);
            }
        }
        Ok(())
    }
}
