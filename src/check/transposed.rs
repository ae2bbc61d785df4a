//! The transposed solve of a transform, held to its backward pass: Jᵀa = g.

use resflow_backend::Backend;

use super::bijection::Subject;
use super::differences::{Apart, apart, down, largest};
use super::{Property, Report, tolerance};
use crate::bijection::{Ask, Cotangents, Memory};
use crate::error::Error;
use crate::invert::{Inversion, Status};

/// Solves for a random gradient and pulls the answer back, unless the gradients themselves are wrong.
pub(super) fn check<B: Backend>(report: &mut Report, subject: &Subject<'_, B>) -> Result<(), Error> {
    if report.findings.iter().any(|f| f.property == Property::Gradient) {
        return Ok(());
    }
    let Subject { prepared, batch, .. } = subject;
    let backend = subject.backend;
    let gradient = subject.normal("gradient in x", batch.shape(backend));
    let how = Inversion::for_backend::<B>();
    let solution = match prepared.solve_transposed(backend, batch, &gradient, &how) {
        Ok(solution) => solution,
        Err(Error::Input(reason)) => {
            report.note(Property::TransposedSolve, reason);
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let (shape, samples) = (backend.shape(&solution.value), subject.samples());
    if shape != subject.output || solution.reports.len() != samples {
        let sentence = format!(
            "a is {shape} with {} reports, expected the shape of y, {}, and one report a sample",
            solution.reports.len(),
            subject.output
        );
        report.find(Property::TransposedSolve, sentence);
        return Ok(());
    }
    let settled = [Status::Converged, Status::FloatFloor];
    if let Some((at, bad)) = solution.reports.iter().enumerate().find(|(_, r)| !settled.contains(&r.status)) {
        let sentence = format!("that of sample {at} is {} after {} iterations", bad.status, bad.iterations);
        report.find(Property::TransposedSolve, sentence);
    }
    let mapped = prepared.forward(backend, batch, &Ask::gradient::<B>(subject.exact(0), Memory::Store))?;
    // that nothing was kept is found elsewhere
    let Some(tape) = mapped.tape else { return Ok(()) };
    let mut unused = Vec::new();
    subject.transform.visit("", &mut |_, _, role| unused.extend(role.is_trained().then_some(None)));
    let log_det = backend.full(0.0, [samples, 1].into());
    let cotangents = Cotangents { x: solution.value.clone(), log_det, context: None };
    let back = prepared.backward(backend, tape, cotangents, &mut unused)?.x;
    let (found, expected, a) = (down(backend, &back)?, down(backend, &gradient)?, down(backend, &solution.value)?);
    let allowed = tolerance::derivative::<B>() * (1.0 + largest(&expected) + largest(&a));
    if let Some(off @ Apart { at, found, expected }) = apart(&found, &expected, allowed) {
        let sentence = format!(
            "number {at} of Jᵀa is {found:e}, of g it is {expected:e}{}: a solves Jᵀa = g with J = ∂y/∂x at x, and not J",
            off.guess()
        );
        report.find(Property::TransposedSolve, sentence);
    }
    Ok(())
}
