//! The fused operations: one pass over memory each.

use resflow_backend::{
    Activation, ActivationReverse, AdamStep, Backend as _, FixedPointColumn, FixedPointRule, FixedPointState, Key,
    Noise, SeriesState, Shape, TermWeight, composed,
};

use crate::reduce::{LANES, dot, fold, lane, rest};
use crate::simd::{Level, kernel};
use crate::{CpuElement, NdArray, Tensor};

kernel! {
    /// φ alone.
    fn activate0<E>(f: Activation, b: E, x: &[E], y: &mut [E]) {
        macro_rules! each { ($($name:ident)*) => { match f { $(Activation::$name => {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = Activation::$name.derivatives_by(E::fast, x, b)[0];
            }
        })* } } }
        each!(LipSwish Elu Softplus Tanh Relu LipschitzCube Sin Pila);
    }
}

kernel! {
    /// φ and φ'.
    fn activate1<E>(f: Activation, b: E, x: &[E], y: &mut [E], d1: &mut [E]) {
        let (y, d1) = (&mut y[..x.len()], &mut d1[..x.len()]);
        macro_rules! each { ($($name:ident)*) => { match f { $(Activation::$name => {
            for i in 0..x.len() {
                [y[i], d1[i], _] = Activation::$name.derivatives_by(E::fast, x[i], b);
            }
        })* } } }
        each!(LipSwish Elu Softplus Tanh Relu LipschitzCube Sin Pila);
    }
}

kernel! {
    /// φ, φ' and φ''.
    fn activate2<E>(f: Activation, b: E, x: &[E], y: &mut [E], d1: &mut [E], d2: &mut [E]) {
        let (y, d1, d2) = (&mut y[..x.len()], &mut d1[..x.len()], &mut d2[..x.len()]);
        macro_rules! each { ($($name:ident)*) => { match f { $(Activation::$name => {
            for i in 0..x.len() {
                [y[i], d1[i], d2[i]] = Activation::$name.derivatives_by(E::fast, x[i], b);
            }
        })* } } }
        each!(LipSwish Elu Softplus Tanh Relu LipschitzCube Sin Pila);
    }
}

/// φ and its first N − 1 derivatives, in the way that is the fastest on this machine.
pub(crate) fn activate<E: CpuElement, const N: usize>(
    level: Level,
    f: Activation,
    b: E,
    x: &[E],
    mut out: [&mut [E]; N],
) {
    if f == Activation::LipSwish && E::lipswish(level, b, x, out.each_mut().map(|out| &mut **out)) {
        return;
    }
    match &mut out[..] {
        [y] => activate0(level, f, b, x, y),
        [y, d1] => activate1(level, f, b, x, y, d1),
        [y, d1, d2] => activate2(level, f, b, x, y, d1, d2),
        _ => unreachable!("one to three results"),
    }
}

/// Slices of the inputs of the reverse pass.
struct Primal<'a, E> {
    x: &'a [E],
    y: &'a [E],
    d1: &'a [E],
    d2: &'a [E],
}

kernel! {
    /// One tangent; gy becomes gx, gdy becomes gdx; returns b times the parameter's gradient.
    fn reverse1<E>(p: &Primal<'_, E>, dx: &[E], gy: &mut [E], gdy: &mut [E]) -> E {
        let mut sums = [E::ZERO; LANES];
        let whole = gy.len() / LANES * LANES;
        // whole lanes as arrays: loads and stores that cannot alias, so one vector each
        for base in (0..whole).step_by(LANES) {
            let (x, y, d1, d2) = (lane(p.x, base), lane(p.y, base), lane(p.d1, base), lane(p.d2, base));
            let (dx, g, gd) = (lane(dx, base), lane(gy, base), lane(gdy, base));
            let (mut gx, mut gdx) = (g, gd);
            for l in 0..LANES {
                let crossed = dx[l] * gd[l] * d2[l];
                sums[l] += g[l] * (x[l] * d1[l] - y[l]) + crossed * x[l];
                gx[l] = g[l] * d1[l] + crossed;
                gdx[l] = gd[l] * d1[l];
            }
            gy[base..base + LANES].copy_from_slice(&gx);
            gdy[base..base + LANES].copy_from_slice(&gdx);
        }
        let mut sum = E::ZERO;
        for i in whole..gy.len() {
            let crossed = dx[i] * gdy[i] * p.d2[i];
            sum += gy[i] * (p.x[i] * p.d1[i] - p.y[i]) + crossed * p.x[i];
            gy[i] = gy[i] * p.d1[i] + crossed;
            gdy[i] *= p.d1[i];
        }
        fold(sums, |a, b| a + b) + sum
    }
}

kernel! {
    /// Σ dx·gdy of one tangent is added to `crossed`; gdy becomes gdx.
    fn cross<E>(d1: &[E], dx: &[E], gdy: &mut [E], crossed: &mut [E]) {
        for (((c, g), &dx), &d1) in crossed.iter_mut().zip(gdy).zip(dx).zip(d1) {
            *c += dx * *g;
            *g *= d1;
        }
    }
}

kernel! {
    /// Any number of tangents whose Σ dx·gdy is `crossed`; gy becomes gx.
    fn reverse_crossed<E>(p: &Primal<'_, E>, crossed: &[E], gy: &mut [E]) -> E {
        let mut sums = [E::ZERO; LANES];
        let whole = gy.len() / LANES * LANES;
        for base in (0..whole).step_by(LANES) {
            let (x, y, d1, d2) = (lane(p.x, base), lane(p.y, base), lane(p.d1, base), lane(p.d2, base));
            let (g, crossed) = (lane(gy, base), lane(crossed, base));
            let mut gx = g;
            for l in 0..LANES {
                let c = crossed[l] * d2[l];
                sums[l] += g[l] * (x[l] * d1[l] - y[l]) + c * x[l];
                gx[l] = g[l] * d1[l] + c;
            }
            gy[base..base + LANES].copy_from_slice(&gx);
        }
        let mut sum = E::ZERO;
        for i in whole..gy.len() {
            let c = crossed[i] * p.d2[i];
            sum += gy[i] * (p.x[i] * p.d1[i] - p.y[i]) + c * p.x[i];
            gy[i] = gy[i] * p.d1[i] + c;
        }
        fold(sums, |a, b| a + b) + sum
    }
}

/// ⟨w, v⟩, ⟨w, w⟩ and ⟨v, v⟩ in one pass.
#[inline(always)]
fn inner_products<E: CpuElement>(w: &[E], v: &[E]) -> [E; 3] {
    if w.len() < LANES {
        let (mut wv, mut ww, mut vv) = (E::ZERO, E::ZERO, E::ZERO);
        for (&w, &v) in w.iter().zip(v) {
            wv += w * v;
            ww += w * w;
            vv += v * v;
        }
        return [wv, ww, vv];
    }
    let (mut wv, mut ww, mut vv) = ([E::ZERO; LANES], [E::ZERO; LANES], [E::ZERO; LANES]);
    for base in (0..w.len()).step_by(LANES) {
        let (a, b) = if base + LANES <= w.len() { (lane(w, base), lane(v, base)) } else { (rest(w), rest(v)) };
        for l in 0..LANES {
            wv[l] += a[l] * b[l];
            ww[l] += a[l] * a[l];
            vv[l] += b[l] * b[l];
        }
    }
    [fold(wv, |a, b| a + b), fold(ww, |a, b| a + b), fold(vv, |a, b| a + b)]
}

kernel! {
    /// The series term of every row; see `Backend::series_term`.
    pub(crate) fn term<E>(
        signed_over_k: E,
        sign: E,
        negligible: E,
        width: usize,
        weights: &[E],
        probe: &[E],
        power: &mut [E],
        neumann: Option<&mut [E]>,
        value: &mut [E],
    ) {
        let mut neumann = neumann;
        for (row, value) in value.iter_mut().enumerate() {
            let c = weights[if weights.len() == 1 { 0 } else { row }];
            let range = row * width..(row + 1) * width;
            let (w, v) = (&mut power[range.clone()], &probe[range.clone()]);
            let [wv, ww, vv] = inner_products(w, v);
            *value += signed_over_k * c * wv;
            if let Some(u) = &mut neumann {
                let weight = sign * c;
                for (u, &w) in u[range].iter_mut().zip(w.iter()) {
                    *u -= weight * w;
                }
            }
            let bound = c * (ww * vv).sqrt() * signed_over_k.abs();
            if bound < negligible {
                w.fill(E::ZERO);
            }
        }
    }
}

/// The numbers of a [`FixedPointRule`].
#[derive(Clone, Copy)]
pub(crate) struct Rule<E> {
    pub(crate) accuracy: E,
    pub(crate) floor: E,
    pub(crate) patience: E,
}

/// Σ r² of r = y − g − x, and Σ y².
#[inline(always)]
fn step_and_scale<E: CpuElement>(y: &[E], g: &[E], x: &[E]) -> [E; 2] {
    if y.len() < LANES {
        let (mut square, mut scale) = (E::ZERO, E::ZERO);
        for ((&y, &g), &x) in y.iter().zip(g).zip(x) {
            let r = y - g - x;
            square += r * r;
            scale += y * y;
        }
        return [square, scale];
    }
    let (mut square, mut scale) = ([E::ZERO; LANES], [E::ZERO; LANES]);
    for base in (0..y.len()).step_by(LANES) {
        let (y, g, x) = if base + LANES <= y.len() {
            (lane(y, base), lane(g, base), lane(x, base))
        } else {
            (rest(y), rest(g), rest(x))
        };
        for l in 0..LANES {
            let r = y[l] - g[l] - x[l];
            square[l] += r * r;
            scale[l] += y[l] * y[l];
        }
    }
    [fold(square, |a, b| a + b), fold(scale, |a, b| a + b)]
}

kernel! {
    /// One step of every active row; see `Backend::fixed_point_step`.
    pub(crate) fn iterate<E>(rule: Rule<E>, width: usize, y: &[E], g: &[E], x: &mut [E], best: &mut [E], rows: &mut [E]) {
        for (i, row) in rows.chunks_exact_mut(FixedPointColumn::COUNT).enumerate() {
            let [residual, norm, latest, stall, steps, active] = row else { continue };
            if *active == E::ZERO {
                continue;
            }
            let range = i * width..(i + 1) * width;
            let (y, g) = (&y[range.clone()], &g[range.clone()]);
            let (x, best) = (&mut x[range.clone()], &mut best[range]);
            let [square, scale] = step_and_scale(y, g, x);
            let (length, scale) = (square.sqrt(), scale.sqrt());
            // a y whose square overflows would make any residual look like none
            let size = match () {
                () if !scale.is_finite() => E::ONE / E::ZERO,
                () if scale > E::ONE => length / scale,
                () => length,
            };
            if size < *residual {
                (*residual, *norm, *stall) = (size, length, E::ZERO);
                for ((best, &y), &g) in best.iter_mut().zip(y).zip(g) {
                    *best = y - g;
                }
            } else {
                *stall += E::ONE;
            }
            *latest = size;
            *steps += E::ONE;
            let floor = rule.patience <= *stall && *residual <= rule.floor;
            if *residual <= rule.accuracy || floor || !size.is_finite() {
                *active = E::ZERO;
                continue;
            }
            for ((x, &y), &g) in x.iter_mut().zip(y).zip(g) {
                *x = y - g;
            }
        }
    }
}

kernel! {
    /// x divided by its norm, written to `out`; nothing if that is at most `least`, infinite or not a number.
    fn normalise<E>(least: E, x: &[E], out: &mut [E]) {
        let norm = dot(x, x).sqrt();
        if norm >= least && norm.is_finite() {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = x / norm;
            }
        }
    }
}

kernel! {
    /// out = wᵀu for w of shape [o, i], row by row.
    fn transposed_product<E>(w: &[E], u: &[E], out: &mut [E]) {
        out.fill(E::ZERO);
        for (row, &u) in w.chunks_exact(out.len()).zip(u) {
            for (o, &w) in out.iter_mut().zip(row) {
                *o += w * u;
            }
        }
    }
}

kernel! {
    /// out = wv for w of shape [o, i].
    fn product<E>(w: &[E], v: &[E], out: &mut [E]) {
        for (o, row) in out.iter_mut().zip(w.chunks_exact(v.len())) {
            *o = dot(row, v);
        }
    }
}

/// The constants of one step of Adam.
#[derive(Clone, Copy)]
struct AdamConstants<E> {
    scale: E,
    beta1: E,
    beta2: E,
    // formed in double precision: 1 − β cancels
    rest1: E,
    rest2: E,
    inverse_c1: E,
    inverse_c2: E,
    epsilon: E,
    rate: E,
    decay: E,
}

kernel! {
    fn adam<E>(k: AdamConstants<E>, decayed: &[E], g: &[E], p: &mut [E], m: &mut [E], v: &mut [E]) {
        let n = p.len();
        let (decayed, g, m, v) = (&decayed[..n], &g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = g[i] * k.scale;
            m[i] = k.beta1 * m[i] + k.rest1 * g;
            v[i] = k.beta2 * v[i] + k.rest2 * (g * g);
            let update = m[i] * k.inverse_c1 / ((v[i] * k.inverse_c2).sqrt() + k.epsilon);
            p[i] = p[i] - k.decay * decayed[i] * p[i] - k.rate * update;
        }
    }
}

kernel! {
    fn draw<E>(noise: Noise, key: Key, first: u64, out: &mut [E]) {
        match noise {
            Noise::Rademacher => Noise::Rademacher.fill(key, first, out),
            Noise::Uniform => Noise::Uniform.fill(key, first, out),
            Noise::Normal => Noise::Normal.fill(key, first, out),
        }
    }
}

impl<E: CpuElement> NdArray<E> {
    /// The tensor as the only handle to its memory, copied if it is not.
    pub(crate) fn owned(&self, mut x: Tensor<E>) -> Tensor<E> {
        if x.unique_slice().is_none() { self.copy(&x) } else { x }
    }

    pub(crate) fn noise_op(&self, key: Key, noise: Noise, first: u64, shape: Shape) -> Tensor<E> {
        self.filled(shape, |out| draw(self.level(), noise, key, first, out))
    }

    pub(crate) fn activation_op(
        &self,
        f: Activation,
        parameter: Option<&Tensor<E>>,
        x: &Tensor<E>,
        order: usize,
    ) -> Vec<Tensor<E>> {
        assert!(order <= 2, "activation: derivatives up to order 2 exist, not {order}");
        let b = parameter_value(f, parameter);
        let mut out: Vec<_> = (0..=order).map(|_| self.take(x.shape().elements())).collect();
        let (x_slice, level) = (x.as_slice(), self.level());
        match &mut out[..] {
            [y] => activate(level, f, b, x_slice, [y.as_mut_slice()]),
            [y, d1] => activate(level, f, b, x_slice, [y.as_mut_slice(), d1.as_mut_slice()]),
            [y, d1, d2] => activate(level, f, b, x_slice, [y.as_mut_slice(), d1.as_mut_slice(), d2.as_mut_slice()]),
            _ => unreachable!("one to three results"),
        }
        out.into_iter().map(|out| out.with_shape(x.shape())).collect()
    }

    pub(crate) fn activation_reverse_op(
        &self,
        f: Activation,
        parameter: Option<&Tensor<E>>,
        x: &Tensor<E>,
        derivatives: &[Tensor<E>],
        tangents: &[Tensor<E>],
        gy: Tensor<E>,
        gdy: Vec<Tensor<E>>,
    ) -> ActivationReverse<Tensor<E>> {
        let [y, d1, d2] = derivatives else { panic!("activation_reverse: needs the derivatives 0, 1 and 2") };
        assert_eq!(tangents.len(), gdy.len(), "activation_reverse: as many tangents as cotangents");
        for t in derivatives.iter().chain(tangents).chain(&gdy).chain([&gy]) {
            assert_eq!(t.shape(), x.shape(), "activation_reverse: the shapes differ: {} and {}", t.shape(), x.shape());
        }
        let level = self.level();
        let primal = Primal { x: x.as_slice(), y: y.as_slice(), d1: d1.as_slice(), d2: d2.as_slice() };
        let mut gx = self.owned(gy);
        let mut gdx: Vec<_> = gdy.into_iter().map(|g| self.owned(g)).collect();
        let out = gx.as_mut_slice();
        let total = if let ([tangent], [gdx]) = (tangents, &mut gdx[..]) {
            reverse1(level, &primal, tangent.as_slice(), out, gdx.as_mut_slice())
        } else {
            let mut crossed = self.take(out.len());
            crossed.as_mut_slice().fill(E::ZERO);
            for (tangent, gdx) in tangents.iter().zip(&mut gdx) {
                cross(level, primal.d1, tangent.as_slice(), gdx.as_mut_slice(), crossed.as_mut_slice());
            }
            reverse_crossed(level, &primal, crossed.as_slice(), out)
        };
        let parameter = parameter
            .filter(|_| f.has_parameter())
            .map(|b| self.filled([1].into(), |out| out[0] = total / b.as_slice()[0]));
        ActivationReverse { gx, gdx, parameter }
    }

    pub(crate) fn series_term_op(
        &self,
        k: usize,
        weight: TermWeight<'_, Tensor<E>>,
        probe: &Tensor<E>,
        negligible: f64,
        state: SeriesState<Tensor<E>>,
    ) -> SeriesState<Tensor<E>> {
        let shape = state.power.shape();
        assert_eq!(shape, probe.shape(), "series_term: the shapes differ: {shape} and {}", probe.shape());
        let sign = if k % 2 == 1 { 1.0 } else { -1.0 };
        let uniform;
        let weights = match weight {
            TermWeight::Batch(c) => {
                uniform = [E::from_f64(c)];
                &uniform[..]
            }
            TermWeight::PerRow(c) => c.as_slice(),
        };
        assert!(
            weights.len() == 1 || weights.len() == shape.rows(),
            "series_term: {} weights for {shape}",
            weights.len()
        );
        let mut power = self.owned(state.power);
        let mut value = self.owned(state.value);
        let mut neumann = state.neumann.map(|u| self.owned(u));
        term(
            self.level(),
            E::from_f64(sign / k as f64),
            E::from_f64(sign),
            E::from_f64(negligible),
            shape.row_elements(),
            weights,
            probe.as_slice(),
            power.as_mut_slice(),
            neumann.as_mut().map(Tensor::as_mut_slice),
            value.as_mut_slice(),
        );
        SeriesState { power, neumann, value }
    }

    pub(crate) fn fixed_point_step_op(
        &self,
        rule: &FixedPointRule,
        y: &Tensor<E>,
        g: &Tensor<E>,
        state: FixedPointState<Tensor<E>>,
    ) -> FixedPointState<Tensor<E>> {
        let shape = y.shape();
        for t in [g, &state.x, &state.best] {
            assert_eq!(t.shape(), shape, "fixed_point_step: the shapes differ: {} and {shape}", t.shape());
        }
        let columns = [shape.rows(), FixedPointColumn::COUNT].into();
        assert_eq!(state.rows.shape(), columns, "fixed_point_step: the rows are {}, not {columns}", state.rows.shape());
        let [accuracy, floor, patience] = [rule.accuracy, rule.floor, rule.patience].map(E::from_f64);
        let (mut x, mut best, mut rows) = (self.owned(state.x), self.owned(state.best), self.owned(state.rows));
        let rule = Rule { accuracy, floor, patience };
        let width = shape.row_elements();
        iterate(
            self.level(),
            rule,
            width,
            y.as_slice(),
            g.as_slice(),
            x.as_mut_slice(),
            best.as_mut_slice(),
            rows.as_mut_slice(),
        );
        FixedPointState { x, best, rows }
    }

    pub(crate) fn power_iteration_op(&self, w: &Tensor<E>, u: Tensor<E>, v: Tensor<E>, count: usize) -> [Tensor<E>; 3] {
        let shape = w.shape();
        let fits = shape.rank() == 2 && u.shape().elements() == shape[0] && v.shape().elements() == shape[1];
        assert!(fits, "power_iteration: {shape} against u {} and v {}", u.shape(), v.shape());
        let (mut u, mut v, w, level) = (self.owned(u), self.owned(v), w.as_slice(), self.level());
        let (us, vs) = (u.as_mut_slice(), v.as_mut_slice());
        let (mut wv, mut wtu) = (self.take(us.len()), self.take(vs.len()));
        let least = E::from_f64(composed::least_length::<E>());
        if !w.is_empty() {
            for _ in 0..count {
                transposed_product(level, w, us, wtu.as_mut_slice());
                normalise(level, least, wtu.as_slice(), vs);
                product(level, w, vs, wv.as_mut_slice());
                normalise(level, least, wv.as_slice(), us);
            }
        }
        let sigma = if w.is_empty() {
            E::ZERO
        } else {
            product(level, w, vs, wv.as_mut_slice());
            level.run(|| dot(us, wv.as_slice()))
        };
        [u, v, self.full(sigma.to_f64(), [1].into())]
    }

    pub(crate) fn adam_op(
        &self,
        rule: &AdamStep,
        scale: &Tensor<E>,
        gate: &Tensor<E>,
        decayed: &Tensor<E>,
        parameters: Tensor<E>,
        [first, second]: [Tensor<E>; 2],
        gradient: &Tensor<E>,
    ) -> (Tensor<E>, [Tensor<E>; 2]) {
        for t in [decayed, &first, &second, gradient] {
            assert_eq!(
                t.shape(),
                parameters.shape(),
                "adam_step: the shapes differ: {} and {}",
                t.shape(),
                parameters.shape()
            );
        }
        if gate.as_slice()[0] == E::ZERO {
            return (parameters, [first, second]);
        }
        let (c1, c2) = rule.bias_corrections();
        let constants = AdamConstants {
            scale: scale.as_slice()[0],
            beta1: E::from_f64(rule.beta1),
            beta2: E::from_f64(rule.beta2),
            rest1: E::from_f64(1.0 - rule.beta1),
            rest2: E::from_f64(1.0 - rule.beta2),
            inverse_c1: E::from_f64(1.0 / c1),
            inverse_c2: E::from_f64(1.0 / c2),
            epsilon: E::from_f64(rule.epsilon),
            rate: E::from_f64(rule.learning_rate),
            decay: E::from_f64(rule.learning_rate * rule.weight_decay),
        };
        let (mut p, mut m, mut v) = (self.owned(parameters), self.owned(first), self.owned(second));
        adam(
            self.level(),
            constants,
            decayed.as_slice(),
            gradient.as_slice(),
            p.as_mut_slice(),
            m.as_mut_slice(),
            v.as_mut_slice(),
        );
        (p, [m, v])
    }
}

pub(crate) fn parameter_value<E: CpuElement>(f: Activation, parameter: Option<&Tensor<E>>) -> E {
    match (f.has_parameter(), parameter) {
        (false, _) => E::ONE,
        (true, Some(b)) => b.as_slice()[0],
        (true, None) => panic!("activation: {f:?} needs its parameter b"),
    }
}
