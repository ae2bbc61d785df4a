//! Adam's step against its formula, its composition, and the gate that keeps a bad step out.

use proptest::prelude::*;
use resflow_backend::{AdamStep, Backend, Element, composed};

use crate::draw::{Draw, check, download, seed, upload};
use crate::reference::Array;
use crate::tolerance::{ADAM, assert_close, assert_same_bits};

/// The operands on the host.
struct Case {
    rule: AdamStep,
    scale: f64,
    decayed: Array,
    parameters: Array,
    moments: [Array; 2],
    gradient: Array,
}

impl Case {
    fn new<E: Element>(draw: &mut Draw, n: usize, step: u64, weight_decay: f64) -> Self {
        let mut second = draw.uniform::<E>([n], 0.0, 2.0);
        // parameters that never had a gradient
        second.data.iter_mut().step_by(5).for_each(|v| *v = 0.0);
        let zero = |x: Array| Array::from_fn([n], |i| if i[0] % 5 == 0 { 0.0 } else { x.at(i) });
        Self {
            rule: AdamStep { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay, step },
            scale: draw.uniform::<E>([1], 0.0, 2.0).data[0],
            decayed: draw.uniform::<E>([n], 0.0, 2.0).map(f64::floor),
            parameters: draw.array::<E>([n]),
            moments: [zero(draw.array::<E>([n])), second],
            gradient: zero(draw.wide::<E>([n])),
        }
    }

    /// Parameters and moments after the step, each with the magnitude of its terms.
    fn reference(&self) -> [[Array; 2]; 3] {
        let rule = &self.rule;
        let (c1, c2) = rule.bias_corrections();
        let mut out = [0; 3].map(|_| [self.parameters.clone(), self.parameters.clone()]);
        for i in 0..self.parameters.data.len() {
            let (p, g) = (self.parameters.data[i], self.gradient.data[i] * self.scale);
            let [m, v] = [&self.moments[0], &self.moments[1]].map(|x| x.data[i]);
            let (kept, new) = (rule.beta1 * m, (1.0 - rule.beta1) * g);
            let v = rule.beta2 * v + (1.0 - rule.beta2) * g * g;
            let root = (v / c2).sqrt() + rule.epsilon;
            let decay = rule.learning_rate * rule.weight_decay * self.decayed.data[i] * p;
            let update = |m: f64| rule.learning_rate * m / c1 / root;
            let size = kept.abs() + new.abs();
            let results =
                [[p - decay - update(kept + new), p.abs() + decay.abs() + update(size)], [kept + new, size], [v, v]];
            for (out, result) in out.iter_mut().zip(results) {
                out[0].data[i] = result[0];
                out[1].data[i] = result[1];
            }
        }
        out
    }

    /// The step by either implementation, downloaded.
    fn run<B: Backend>(&self, backend: &B, draw: &mut Draw, gate: f64, fused: bool) -> [Array; 3] {
        let [scale, gate] = [self.scale, gate].map(|x| upload(backend, &Array::new([1], vec![x])));
        let [decayed, p, m, v, g] =
            [&self.decayed, &self.parameters, &self.moments[0], &self.moments[1], &self.gradient]
                .map(|x| draw.tensor(backend, x));
        let (p, [m, v]) = if fused {
            backend.adam_step(&self.rule, &scale, &gate, &decayed, p, [m, v], &g)
        } else {
            composed::adam_step(backend, &self.rule, &scale, &gate, &decayed, p, [m, v], &g)
        };
        [p, m, v].map(|x| download(backend, &x))
    }
}

/// `adam_step` at early and late steps, with and without weight decay.
pub fn adam_step<B: Backend>(backend: &B) {
    let step = prop_oneof![Just(1), 1u64..20, Just(100_000)];
    let size = prop_oneof![0usize..40, 100usize..2000];
    check("adam_step", (size, step, prop_oneof![Just(0.0), Just(0.3)], seed()), |(n, step, decay, seed)| {
        let mut draw = Draw::new(seed);
        let case = Case::new::<B::Elem>(&mut draw, n, step, decay);
        let got = case.run(backend, &mut draw, 1.0, true);
        let composed = case.run(backend, &mut draw, 1.0, false);
        for (k, [want, size]) in case.reference().iter().enumerate() {
            let what = format!("adam_step, {}", ["parameters", "first moment", "second moment"][k]);
            assert_close::<B::Elem>(&what, &got[k], want, size, ADAM);
            assert_close::<B::Elem>(&what, &got[k], &composed[k], size, 2.0 * ADAM);
        }
    });
}

/// A closed gate leaves every bit alone, whatever the gradient is.
pub fn adam_step_gate<B: Backend>(backend: &B) {
    check("adam_step gate", (0usize..100, seed()), |(n, seed)| {
        let mut draw = Draw::new(seed);
        let mut case = Case::new::<B::Elem>(&mut draw, n, 3, 0.3);
        for bad in [1.0, f64::NAN, f64::INFINITY] {
            case.gradient.data.iter_mut().step_by(2).for_each(|g| *g = bad);
            let [p, m, v] = case.run(backend, &mut draw, 0.0, true);
            assert_same_bits("adam_step, parameters", &p, &case.parameters);
            assert_same_bits("adam_step, first moment", &m, &case.moments[0]);
            assert_same_bits("adam_step, second moment", &v, &case.moments[1]);
        }
        // the scale of a bad gradient is bad as well
        case.scale = f64::NAN;
        let [p, ..] = case.run(backend, &mut draw, 0.0, true);
        assert_same_bits("adam_step, parameters", &p, &case.parameters);
    });
}
