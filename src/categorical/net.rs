//! A softmax of a net with one hidden layer, whose inputs are one-hot codes.

/// The width of the hidden layer.
pub(super) const HIDDEN: usize = 32;

/// log softmax(b₂ + tanh(b₁ + Σ W₁[a]) W₂) over the places `a` of the ones.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SoftmaxNet {
    pub(super) inputs: usize,
    pub(super) levels: usize,
    /// W₁ `[D, H]`, b₁ `[H]`, W₂ `[H, L]`, b₂ `[L]`, one after the other.
    pub(super) weights: Vec<f64>,
}

/// What a forward pass leaves for the way back.
pub(super) struct Pass {
    hidden: [f64; HIDDEN],
    pub(super) log_p: Vec<f64>,
}

impl SoftmaxNet {
    pub(super) fn sizes(inputs: usize, levels: usize) -> [usize; 4] {
        [inputs * HIDDEN, HIDDEN, HIDDEN * levels, levels]
    }

    pub(super) fn parameters(&self) -> usize {
        self.weights.len()
    }

    /// The parts of the weights.
    pub(super) fn parts(&self) -> [&[f64]; 4] {
        let [a, b, c, _] = Self::sizes(self.inputs, self.levels);
        let (w1, rest) = self.weights.split_at(a);
        let (b1, rest) = rest.split_at(b);
        let (w2, b2) = rest.split_at(c);
        [w1, b1, w2, b2]
    }

    pub(super) fn log_probabilities(&self, active: &[usize]) -> Vec<f64> {
        self.forward(active).log_p
    }

    pub(super) fn forward(&self, active: &[usize]) -> Pass {
        let [w1, b1, w2, b2] = self.parts();
        let mut hidden = [0.0; HIDDEN];
        hidden.copy_from_slice(b1);
        for &place in active {
            hidden.iter_mut().zip(&w1[place * HIDDEN..]).for_each(|(h, w)| *h += w);
        }
        for h in &mut hidden {
            *h = h.tanh();
        }
        let mut log_p = b2.to_vec();
        for (h, row) in hidden.iter().zip(w2.chunks_exact(self.levels)) {
            log_p.iter_mut().zip(row).for_each(|(l, w)| *l += h * w);
        }
        let most = log_p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = most + log_p.iter().map(|l| (l - most).exp()).sum::<f64>().ln();
        for l in &mut log_p {
            *l -= total;
        }
        Pass { hidden, log_p }
    }

    /// Adds the gradient of −`weight` log p of a level at a pass.
    pub(super) fn pull_back(&self, active: &[usize], pass: &Pass, level: usize, weight: f64, gradient: &mut [f64]) {
        let [a, b, c, _] = Self::sizes(self.inputs, self.levels);
        let [_, _, w2, _] = self.parts();
        // of the logits: p − 1{level}
        let mut logits: Vec<f64> = pass.log_p.iter().map(|l| weight * l.exp()).collect();
        logits[level] -= weight;
        for (k, &h) in pass.hidden.iter().enumerate() {
            let row = k * self.levels;
            let mut of_hidden = 0.0;
            for (l, g) in logits.iter().enumerate() {
                gradient[a + b + row + l] += h * g;
                of_hidden += w2[row + l] * g;
            }
            let inner = of_hidden * (1.0 - h * h);
            gradient[a + k] += inner;
            for &place in active {
                gradient[place * HIDDEN + k] += inner;
            }
        }
        gradient[a + b + c..].iter_mut().zip(&logits).for_each(|(sum, g)| *sum += g);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_differences() {
        let count = SoftmaxNet::sizes(5, 3).iter().sum();
        let weights = (0..count).map(|i| (i as f64 * 0.754_877).fract() - 0.5).collect();
        let net = SoftmaxNet { inputs: 5, levels: 3, weights };
        let (active, level) = ([1, 4], 2);
        let mut gradient = vec![0.0; net.parameters()];
        net.pull_back(&active, &net.forward(&active), level, 0.7, &mut gradient);
        for i in 0..net.parameters() {
            let at = |step: f64| {
                let mut moved = net.clone();
                moved.weights[i] += step;
                -0.7 * moved.log_probabilities(&active)[level]
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((difference - gradient[i]).abs() < 1e-9, "weight {i}: {difference}, {}", gradient[i]);
        }
    }
}
