//! One step of Adam in one pass: moments, bias corrections, decoupled decay, all of it only where the gate is open.

use resflow_backend::AdamStep;

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, bits, each, groups};
use crate::tensor::Tensor;

/// The kernel of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Adam;

impl Kernel for Adam {
    fn source(&self) -> Source {
        source()
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        vec![Self]
    }
}

fn source() -> Source {
    Source {
        reads: vec!["scale", "gate", "decayed", "parameter", "first", "second", "gradient"],
        // the three results one after the other: one buffer less to bind
        writes: vec!["out"],
        params: vec![
            "n: u32",
            "keep1: f32",
            "take1: f32",
            "keep2: f32",
            "take2: f32",
            "unbias1: f32",
            "unbias2: f32",
            "epsilon: f32",
            "rate: f32",
            "decay: f32",
        ],
        body: each(
            "  let p0 = parameter[p.parameter + i];
  let m0 = first[p.first + i];
  let v0 = second[p.second + i];
  if (is_zero(gate[p.gate])) {
    out[i] = p0; out[p.n + i] = m0; out[2u * p.n + i] = v0;
  } else {
    let g = gradient[p.gradient + i] * scale[p.scale];
    let m = fma(p.take1, g, p.keep1 * m0);
    let v = fma(p.take2, g * g, p.keep2 * v0);
    let step = (m * p.unbias1) / (sqrt(v * p.unbias2) + p.epsilon);
    out[i] = fma(-p.rate, step, fma(-p.decay, p0 * decayed[p.decayed + i], p0));
    out[p.n + i] = m;
    out[2u * p.n + i] = v;
  }",
        ),
        ..Source::default()
    }
}

impl Gpu {
    /// Parameters and moments after the step; `None` where they do not fit one buffer.
    pub(crate) fn adam_step(
        &self,
        rule: &AdamStep,
        [scale, gate, decayed, parameters, first, second, gradient]: [&Tensor; 7],
    ) -> Option<[Tensor; 3]> {
        let shape = parameters.shape();
        let n = shape.elements();
        if 12 * n as u64 > self.largest() {
            return None;
        }
        let operands = [scale, gate, decayed, parameters, first, second, gradient];
        let out = self.output(&operands, [3, n].into());
        let (c1, c2) = rule.bias_corrections();
        let params = [
            n as u32,
            bits(rule.beta1),
            bits(1.0 - rule.beta1),
            bits(rule.beta2),
            bits(1.0 - rule.beta2),
            bits(1.0 / c1),
            bits(1.0 / c2),
            bits(rule.epsilon),
            bits(rule.learning_rate),
            bits(rule.learning_rate * rule.weight_decay),
        ];
        self.launch(&Adam, &operands, &[&out], &params, groups(n, WORKGROUP as usize));
        Some([0, 1, 2].map(|k| out.window(k * n, shape)))
    }
}
