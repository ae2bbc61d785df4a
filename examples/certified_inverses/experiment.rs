//! The experiments behind docs/certificates.md: certified norms against singular values, and the certified error bounds of inverses in single
//! precision against the exact inverse. Every case is a function of a key.

use nalgebra::DMatrix;
use resflow::backend::{Backend, Key, Noise, Padding};
use resflow::config::{Family, FlowConfig};
use resflow::data::{Table, ToyDensity};
use resflow::invert::Inversion;
use resflow::lipschitz::{convolution_norm_bound, spectral_norm_bound};
use resflow::train::{Budget, Source, TrainConfig, Trainer};
use resflow::{Error, Flow, NdArray};

/// Singular values are computed with rounding too: so much may they be above the exact ones.
const OFF: f64 = 1e-13;

/// What some cases gave: bounds divided by what they bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// bound/truth of each case in which the truth is not 0.
    pub(crate) ratios: Vec<f64>,
    /// Cases in which the bound was below the truth, or not 0 where all is 0.
    pub(crate) below: Vec<String>,
    /// Cases in which the truth is exactly 0.
    pub(crate) zeros: usize,
}

impl Tally {
    fn add(&mut self, bound: f64, truth: f64, slack: f64, name: impl Fn() -> String) {
        // a bound that is not a number is not above anything
        if bound.is_nan() || bound < truth * (1.0 - slack) {
            self.below.push(format!("{}: {bound:e} for {truth:e}", name()));
        }
        if truth > 0.0 {
            self.ratios.push(bound / truth);
        } else {
            self.zeros += 1;
        }
    }

    /// The quantile of the ratios, from 0 to 1.
    pub(crate) fn quantile(&self, at: f64) -> f64 {
        let mut sorted = self.ratios.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((at * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

fn normal(key: Key, count: usize) -> Vec<f64> {
    let mut values = vec![0.0; count];
    Noise::Normal.fill(key, 0, &mut values);
    values
}

/// A whole number from `least` to `most`, a function of the key.
fn draw(key: Key, least: usize, most: usize) -> usize {
    let mut u = [0.0_f64];
    Noise::Uniform.fill(key, 0, &mut u);
    least + ((u[0] * (most - least + 1) as f64) as usize).min(most - least)
}

fn largest(m: &DMatrix<f64>) -> f64 {
    m.singular_values().iter().copied().fold(0.0, f64::max)
}

/// The names of the kinds of matrices.
pub(crate) const KINDS: [&str; 13] = [
    "Gaussian",
    "rank one",
    "equal singular values",
    "two close singular values",
    "scaled by 1e30",
    "scaled by 1e-30",
    "one row",
    "one column",
    "entries over sixteen orders of magnitude",
    "single precision",
    "ones below the diagonal",
    "sparse signs",
    "zeros but one entry",
];

fn matrix(kind: usize, [least, most]: [usize; 2], key: Key) -> DMatrix<f64> {
    let (rows, columns) = (draw(key.split(0), least, most), draw(key.split(1), least, most));
    let gaussian =
        |rows: usize, columns: usize| DMatrix::from_row_slice(rows, columns, &normal(key.split(2), rows * columns));
    match kind {
        1 => {
            let (u, v) = (normal(key.split(3), rows), normal(key.split(4), columns));
            DMatrix::from_fn(rows, columns, |i, j| u[i] * v[j])
        }
        2 => gaussian(rows, rows).qr().q() * 3.7,
        3 => {
            let mut svd = gaussian(rows, columns).svd(true, true);
            let gap = 10_f64.powi(-(draw(key.split(5), 1, 12) as i32));
            for (k, s) in svd.singular_values.iter_mut().enumerate() {
                *s = [1.0, 1.0 - gap].get(k).copied().unwrap_or(0.3);
            }
            svd.recompose().expect("both factors")
        }
        4 => gaussian(rows, columns) * 1e30,
        5 => gaussian(rows, columns) * 1e-30,
        6 => gaussian(1, columns),
        7 => gaussian(rows, 1),
        8 => {
            let sizes = normal(key.split(6), rows * columns);
            let g = gaussian(rows, columns);
            DMatrix::from_fn(rows, columns, |i, j| {
                g[(i, j)] * 10_f64.powf((2.7 * sizes[i * columns + j]).clamp(-8.0, 8.0))
            })
        }
        9 => gaussian(rows, columns).map(|x| f64::from(x as f32)),
        10 => DMatrix::from_fn(rows, columns, |i, j| f64::from(u8::from(i >= j))),
        11 => gaussian(rows, columns).map(|x| if x.abs() > 1.2 { x.signum() } else { 0.0 }),
        12 => {
            let at = (draw(key.split(7), 0, rows - 1), draw(key.split(8), 0, columns - 1));
            DMatrix::from_fn(rows, columns, |i, j| {
                if (i, j) == at { -5e-324 * 2_f64.powi(draw(key.split(9), 60, 1070) as i32) } else { 0.0 }
            })
        }
        _ => gaussian(rows, columns),
    }
}

/// Bounds of matrices of all kinds, of sizes from the least to the most, against their singular values.
pub(crate) fn matrices(count: usize, sizes: [usize; 2], key: Key) -> Tally {
    let mut tally = Tally::default();
    for case in 0..count {
        let kind = case % KINDS.len();
        let m = matrix(kind, sizes, key.split(case as u64));
        let rows: Vec<f64> = m.transpose().as_slice().to_vec();
        let bound = spectral_norm_bound(m.nrows(), m.ncols(), &rows);
        // of one entry the norm is known to the last digit, and its square is not in the range of numbers
        let truth = if kind == 12 { m.amax() } else { largest(&m) };
        tally.add(bound, truth, OFF, || format!("{}, {}×{}", KINDS[kind], m.nrows(), m.ncols()));
    }
    tally
}

/// A convolution as a matrix: `[c_out, kh, kw, c_in]` on images of a size.
fn operator(
    kernel: &[f64],
    [outputs, kh, kw, inputs]: [usize; 4],
    [h, w]: [usize; 2],
    padding: Padding,
) -> DMatrix<f64> {
    let [oh, ow] = padding.output([h, w], [kh, kw]).expect("a kernel that fits");
    let mut m = DMatrix::zeros(oh * ow * outputs, h * w * inputs);
    for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
        for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
            let (Some(i), Some(j)) = ((y + a).checked_sub(padding.height), (x + b).checked_sub(padding.width)) else {
                continue;
            };
            if i >= h || j >= w {
                continue;
            }
            for (o, c) in (0..outputs).flat_map(|o| (0..inputs).map(move |c| (o, c))) {
                m[((y * ow + x) * outputs + o, (i * w + j) * inputs + c)] =
                    kernel[((o * kh + a) * kw + b) * inputs + c];
            }
        }
    }
    m
}

/// The largest singular value of f(ω) over a grid of frequencies.
fn supremum(kernel: &[f64], [outputs, kh, kw, inputs]: [usize; 4], points: usize) -> f64 {
    let mut most = 0.0_f64;
    for (y, x) in (0..points).flat_map(|y| (0..=points / 2).map(move |x| (y, x))) {
        let mut f = DMatrix::<f64>::zeros(2 * outputs, 2 * inputs);
        for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
            let (sine, cosine) = (std::f64::consts::TAU * ((y * a + x * b) % points) as f64 / points as f64).sin_cos();
            for (o, c) in (0..outputs).flat_map(|o| (0..inputs).map(move |c| (o, c))) {
                let k = kernel[((o * kh + a) * kw + b) * inputs + c];
                f[(o, c)] += k * cosine;
                f[(outputs + o, inputs + c)] += k * cosine;
                f[(outputs + o, c)] += k * sine;
                f[(o, inputs + c)] -= k * sine;
            }
        }
        most = most.max(largest(&f));
    }
    most
}

/// Bounds of kernels: on images of a size against the singular values of the convolution's matrix, and for any size against the same and, as
/// a ratio, against the largest norm over 48 × 48 frequencies.
pub(crate) struct Kernels {
    /// On images of a size.
    pub(crate) sized: Tally,
    /// For any size, against the convolution on one.
    pub(crate) any: Tally,
    /// For any size, against the frequencies.
    pub(crate) supremum: Tally,
}

/// Kernels of 1 to 5 taps in each direction, also even ones, 1 to 2 channels, random and adversarial, on every size from 1×1 to 12×12
/// in turn.
pub(crate) fn kernels(count: usize, key: Key) -> Kernels {
    let mut out = Kernels { sized: Tally::default(), any: Tally::default(), supremum: Tally::default() };
    for case in 0..count {
        let key = key.split(case as u64);
        let extents =
            [draw(key.split(0), 1, 2), draw(key.split(1), 1, 5), draw(key.split(2), 1, 5), draw(key.split(3), 1, 2)];
        let [outputs, kh, kw, inputs] = extents;
        let size = case % 144;
        let mut image = [1 + size / 12, 1 + size % 12];
        let padding = if draw(key.split(7), 0, 2) == 0 {
            Padding { height: draw(key.split(4), 0, kh), width: draw(key.split(5), 0, kw) }
        } else {
            Padding { height: kh / 2, width: kw / 2 }
        };
        while padding.output(image, [kh, kw]).is_none_or(|output| output.contains(&0)) {
            image = image.map(|n| n + 1);
        }
        let elements = outputs * kh * kw * inputs;
        let random = |which: u64, count: usize| normal(key.split(which), count);
        let kernel: Vec<f64> = match case % 7 {
            0 => vec![1.0; elements],
            1 => (0..elements).map(|at| if (at / inputs) % 2 == 0 { 1.0 } else { -1.0 }).collect(),
            2 => random(6, elements).iter().map(|x| x * 1e30).collect(),
            3 => random(6, elements).iter().map(|x| x * 1e-30).collect(),
            // of rank one: a filter of pixels times a weight for each pair of channels that is itself a product
            4 => {
                let (of_outputs, of_inputs, of_taps) = (random(6, outputs), random(8, inputs), random(9, kh * kw));
                let tap = |at: usize| of_taps[at / inputs % (kh * kw)] * of_inputs[at % inputs];
                (0..elements).map(|at| of_outputs[at / (kh * kw * inputs)] * tap(at)).collect()
            }
            // equal singular values, but at the edges: a turn of the channels at one tap
            5 => {
                let (at_tap, angle) = (draw(key.split(10), 1, kh * kw) - 1, 6.0 * random(6, 1)[0]);
                let turn = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()];
                let of = |at: usize| turn[2 * (at / (kh * kw * inputs)) + at % inputs];
                (0..elements).map(|at| if at / inputs % (kh * kw) == at_tap { of(at) } else { 0.0 }).collect()
            }
            _ => random(6, elements),
        };
        let name = || format!("{extents:?} on {image:?} padded by {padding:?}");
        let truth = largest(&operator(&kernel, extents, image, padding));
        let any = convolution_norm_bound(&kernel, extents, None);
        out.sized.add(convolution_norm_bound(&kernel, extents, Some((image, padding))), truth, OFF, name);
        out.any.add(any, truth, OFF, name);
        out.supremum.add(any, supremum(&kernel, extents, 48), OFF, name);
    }
    out
}

/// Bounds of kernels as flows of images have them, on images of more numbers than whose matrix is decomposed: 3 to 8 channels on each
/// side, 3 × 3 or 1 to 5 taps, Gaussian or of signs, on `pixels` in each direction. The truth is the convolution's norm as power iteration finds it
/// from below.
pub(crate) fn large_kernels(count: usize, pixels: [usize; 2], key: Key) -> Tally {
    let mut tally = Tally::default();
    for case in 0..count {
        let key = key.split(case as u64);
        let taps = |which: u64| if case % 2 == 0 { 3 } else { draw(key.split(which), 1, 5) };
        let extents = [draw(key.split(0), 3, 8), taps(1), taps(2), draw(key.split(3), 3, 8)];
        let [outputs, kh, kw, inputs] = extents;
        let image = [draw(key.split(4), pixels[0], pixels[1]), draw(key.split(5), pixels[0], pixels[1])];
        let padding = Padding { height: kh / 2, width: kw / 2 };
        let mut kernel = normal(key.split(6), outputs * kh * kw * inputs);
        if case % 3 == 0 {
            kernel = kernel.into_iter().map(f64::signum).collect();
        }
        let truth = norm_from_below(&kernel, extents, image, padding, key.split(7));
        let name = || format!("{extents:?} on {image:?}");
        tally.add(convolution_norm_bound(&kernel, extents, Some((image, padding))), truth, OFF, name);
    }
    tally
}

/// ‖M v‖ of a convolution's matrix M and the unit vector v that 400 steps of power iteration end at.
fn norm_from_below(kernel: &[f64], extents: [usize; 4], [h, w]: [usize; 2], padding: Padding, key: Key) -> f64 {
    let [outputs, kh, kw, inputs] = extents;
    let [oh, ow] = padding.output([h, w], [kh, kw]).expect("a kernel that fits");
    // the pixels that taps join, and where their matrices begin
    let mut joined = Vec::new();
    for (at, (a, b)) in (0..oh * ow).flat_map(|at| (0..kh).flat_map(move |a| (0..kw).map(move |b| (at, (a, b))))) {
        let (i, j) = ((at / ow + a).checked_sub(padding.height), (at % ow + b).checked_sub(padding.width));
        if let (Some(i), Some(j)) = (i.filter(|i| *i < h), j.filter(|j| *j < w)) {
            joined.push((at * outputs, (i * w + j) * inputs, (a * kw + b) * inputs));
        }
    }
    let stride = kh * kw * inputs;
    let (mut v, mut most) = (normal(key, h * w * inputs), 0.0);
    for _ in 0..400 {
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v = v.into_iter().map(|v| v / norm).collect();
        let mut u = vec![0.0; oh * ow * outputs];
        for &(to, from, tap) in &joined {
            for (o, u) in u[to..to + outputs].iter_mut().enumerate() {
                let row = &kernel[o * stride + tap..][..inputs];
                *u += row.iter().zip(&v[from..from + inputs]).map(|(k, v)| k * v).sum::<f64>();
            }
        }
        most = u.iter().map(|u| u * u).sum::<f64>().sqrt();
        v.fill(0.0);
        for &(to, from, tap) in &joined {
            for (o, u) in u[to..to + outputs].iter().enumerate() {
                let row = &kernel[o * stride + tap..][..inputs];
                v[from..from + inputs].iter_mut().zip(row).for_each(|(v, k)| *v += k * u);
            }
        }
    }
    most
}

/// A flow of single precision for the experiments, and its latents.
pub(crate) struct Case {
    /// What it is.
    pub(crate) name: String,
    /// The flow, sealed.
    pub(crate) flow: Flow<NdArray<f32>>,
    /// The size of its latents.
    pub(crate) spread: f64,
}

/// Flows that were trained, and adversarial ones: weights far above their bound, so that every layer is at it, bounds near 1, latents
/// small and large.
///
/// # Errors
/// Returns the error of a training.
pub(crate) fn flows(steps: u64) -> Result<Vec<Case>, Error> {
    let b = NdArray::<f32>::new();
    let mut cases = Vec::new();
    for (density, coefficient) in [(ToyDensity::Checkerboard, 0.9), (ToyDensity::Rings, 0.97)] {
        let config = FlowConfig { blocks: 4, hidden: vec![16, 16], coefficient, ..FlowConfig::new(2) };
        let flow = Flow::new(b.clone(), config, Key::new(1))?;
        let settings =
            TrainConfig { validation_rows: 200, validate_every: steps, batch: 256, ..TrainConfig::default() };
        let mut trainer = Trainer::new(flow, Source::Density(density), &settings, Budget::Steps(steps), Key::new(2))?;
        trainer.run(|_, _| ())?;
        let name = format!("4 blocks trained, κ = {coefficient}");
        cases.push(Case { name, flow: trainer.model(), spread: 1.0 });
    }
    for family in [Family::Dense, Family::Implicit, Family::Monotone] {
        let config = FlowConfig { blocks: 2, hidden: vec![16, 16], coefficient: 0.9, ..FlowConfig::of(family, 2) };
        let flow = Flow::new(b.clone(), config, Key::new(1))?;
        let settings =
            TrainConfig { validation_rows: 200, validate_every: steps, batch: 256, ..TrainConfig::default() };
        let source = Source::Density(ToyDensity::Checkerboard);
        let mut trainer = Trainer::new(flow, source, &settings, Budget::Steps(steps), Key::new(2))?;
        trainer.run(|_, _| ())?;
        let name = format!("2 {} blocks trained, κ = 0.9", family.name());
        cases.push(Case { name, flow: trainer.model(), spread: 1.0 });
    }
    for (blocks, coefficient, stretch, spread) in [
        (1, 0.9, 1.0, 1.0),
        (1, 0.9, 30.0, 1.0),
        (1, 0.99, 30.0, 1.0),
        (1, 0.999, 30.0, 1.0),
        (1, 0.9, 30.0, 1e4),
        (1, 0.9, 30.0, 1e-4),
        (4, 0.9, 30.0, 1.0),
    ] {
        let config = FlowConfig { blocks, hidden: vec![16, 16], coefficient, actnorm: false, ..FlowConfig::new(8) };
        let mut flow = Flow::new(b.clone(), config, Key::new(3))?;
        flow.visit_mut(&mut |name, tensor, _| {
            if name.ends_with(".weight") {
                *tensor = b.affine(tensor.clone(), stretch, 0.0);
            }
        });
        flow.update_spectral_norms(resflow::lipschitz::PowerIteration::converge::<NdArray<f32>>());
        flow.seal()?;
        let plural = if blocks == 1 { "block" } else { "blocks" };
        let name = format!("{blocks} {plural}, weights × {stretch}, κ = {coefficient}, latents × {spread:e}");
        cases.push(Case { name, flow, spread });
    }
    Ok(cases)
}

/// The error bounds of inverses in single precision against the error, from an inverse in double precision of the map with the same numbers.
///
/// # Errors
/// Returns [`Error::Backend`] if the device failed.
pub(crate) fn inverses(case: &Case, count: usize, key: Key) -> Result<Tally, Error> {
    let (flow, b) = (&case.flow, case.flow.backend());
    let d = flow.dimension();
    let z: Vec<f64> = normal(key, count * d).iter().map(|z| f64::from((case.spread * z) as f32)).collect();
    let decoded = flow
        .prepare_certified()?
        .decode(&Table::new(None, d, z.clone())?, &Inversion::for_backend::<NdArray<f32>>())?;
    assert!(decoded.certified, "{}: a transform without a certificate", case.name);
    let maps = flow.transforms().iter().map(|t| t.prepare(b).reference(b)).collect::<Result<Option<Vec<_>>, _>>()?;
    let maps = maps.expect("certified transforms have one");
    // what each transform gave on the device is not kept: the exact inverse starts from its own y
    let mut tally = Tally::default();
    for ((z, x), report) in z.chunks_exact(d).zip(decoded.samples.values().chunks_exact(d)).zip(&decoded.reports) {
        let exact = maps.iter().rev().try_fold(z.to_vec(), |y, map| map.inverse(&y, &y, 0.0)).expect("a contraction");
        let error = x.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let size = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
        // the exact inverse is one in double precision: below 1e-12 of its size nothing is known
        tally.add(report.error_bound + 1e-12 * size, error, 0.0, || case.name.clone());
    }
    Ok(tally)
}
