//! Rational-quadratic splines, one a row, and a whole flow of LU linear maps and spline couplings: values, log dets, the way
//! back and the gradients of Σ weightᵢ·logdetᵢ + Σ cotangent·y. Raw slopes of the reference have no shift, ours have.

use resflow::backend::{Activation, Backend, Element as _, Key, Spline, SplineReverse};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Draw, Memory, Tape};
use resflow::error::ConfigError;
use resflow::estimator::{Estimator, Exact};
use resflow::invert::Inversion;
use resflow::layer::{
    ActivationLayer, Derivatives, Layer, LayerGrads, LipschitzLinear, OrderGradients, PreparedLayer, Saved, Sequence,
};
use resflow::module::{Grad, Module, Part, PartMut, ShowPart, ShowPartMut};
use resflow::spline::{SplineCoupling, Splines};
use resflow::transform::LuLinear;

use crate::common::asking::{Trained, count_grads, pull_back, train, with_log_det};
use crate::golden::fixture::{Comparison, Fixture, host};

const EXACT: Estimator = Estimator::Exact(Exact);

fn draw() -> Draw<'static> {
    Draw { estimator: &EXACT, key: Key::new(0) }
}

fn upload<B: Backend>(backend: &B, values: &[f64], shape: &[usize]) -> B::Tensor {
    let values: Vec<_> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
    backend.upload(&values, shape.into())
}

/// [widths | heights | derivatives] of some splines, one after the other.
fn parameters([widths, heights, derivatives]: [&[f64]; 3], bins: usize, shift: f64) -> Vec<f64> {
    let splines = widths.chunks(bins).zip(heights.chunks(bins)).zip(derivatives.chunks(bins - 1));
    splines.flat_map(|((w, h), d)| [w.to_vec(), h.to_vec(), d.iter().map(|d| d - shift).collect()].concat()).collect()
}

/// Compares the file of splines.
pub(crate) fn rows<B: Backend>(backend: &B) {
    let file = Fixture::open("spline_coupling_rows");
    let mut comparison = Comparison::new::<B>("spline_coupling_rows");
    let bins: usize = file.note("bins");
    let rule = Spline { bins, bound: file.note("bound"), sharpness: 1.0 };
    let n = file.shape("x")[0];
    let column = |key: &str| upload(backend, file.values(key), &[n, 1]);
    let raw = ["raw_widths", "raw_heights", "raw_derivatives"].map(|key| file.values(key));
    let raw = upload(backend, &parameters(raw, bins, Spline::SHIFT), &[n, rule.parameters()]);
    let x = column("x");
    let tolerance = comparison.tolerance();
    // bins at the floor cost digits of the logarithm
    let coarse = 10.0 * tolerance;
    let [y, log_slope] = backend.spline(&rule, &x, &raw);
    comparison.each("y", &host(backend, &y), file.values("y"), tolerance);
    comparison.each("logdet", &host(backend, &log_slope), file.values("logdet"), coarse);
    // x is as good as the slope allows, down to 5e−7, so y is compared
    let back = backend.spline_inverse(&rule, &column("y"), &raw);
    let [again, log_slope] = backend.spline(&rule, &back, &raw);
    comparison.each("y there and back", &host(backend, &again), file.values("y"), tolerance);
    if tolerance < 1e-8 {
        let inverse: Vec<f64> = host(backend, &log_slope).iter().map(|l| -l).collect();
        comparison.each("inverse_logdet", &inverse, file.values("inverse_logdet"), 1e-6);
        comparison.each("inverse_of_y", &host(backend, &back), file.values("inverse_of_y"), 1e-8);
    }
    let SplineReverse { gx, graw } = backend.spline_reverse(&rule, &x, &raw, &column("cotangent"), &column("weight"));
    // in single precision rounding decides on which side of a knot a number is that is 1e−9 from it: the gradient of the
    // logarithm jumps there
    let (knots, weights) = (file.values("knots_x"), file.values("weight"));
    let beside = |i: usize| knots[i * (bins + 1)..][..=bins].iter().any(|k| (k - file.values("x")[i]).abs() < 1e-6);
    let keep = |i: usize| tolerance < 1e-8 || weights[i] == 0.0 || !beside(i);
    let kept = |values: &[f64], width: usize| -> Vec<f64> {
        values.chunks(width).enumerate().filter(|(i, _)| keep(*i)).flat_map(|(_, row)| row.to_vec()).collect()
    };
    assert!((0..n).filter(|&i| !keep(i)).count() <= 4, "nearly all of the 48 rows are compared");
    comparison.close("grad_x", &kept(&host(backend, &gx), 1), &kept(file.values("grad_x"), 1));
    let graw = host(backend, &graw);
    let gradients = ["grad_raw_widths", "grad_raw_heights", "grad_raw_derivatives"];
    for (name, (start, length)) in gradients.into_iter().zip([(0, bins), (bins, bins), (2 * bins, bins - 1)]) {
        let own: Vec<f64> =
            graw.chunks(rule.parameters()).flat_map(|g| g[start..start + length].iter().copied()).collect();
        comparison.close(name, &kept(&own, length), &kept(file.values(name), length));
    }
    comparison.finish();
    let inner = ["knots_x", "knots_y", "slopes", "kind", "loss", "inverse_of_y", "inverse_logdet"];
    file.mark_read(|key| key.starts_with("zuko.") || inner.contains(&key.trim_start_matches("grad_")));
    file.assert_all_read();
}

/// x + f(x).
#[derive(Debug, Clone)]
struct Skip<B: Backend>(Sequence<B>);

impl<B: Backend> Module<B> for Skip<B> {
    fn parts<'a>(&'a self, show: ShowPart<'_, 'a, B>) {
        show("f", Part::Module(&self.0));
    }

    fn parts_mut<'a>(&'a mut self, show: ShowPartMut<'_, 'a, B>) {
        show("f", PartMut::Module(&mut self.0));
    }
}

impl<B: Backend> Layer<B> for Skip<B> {
    fn prepare(&self, backend: &B) -> Box<dyn PreparedLayer<B>> {
        Box::new(PreparedSkip(self.0.prepare(backend)))
    }

    fn output_shape(&self, input: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.0.output_shape(input)
    }

    fn multiply_adds(&self, input: &[usize]) -> u64 {
        self.0.multiply_adds(input)
    }

    fn lipschitz_bound(&self) -> f64 {
        f64::INFINITY
    }
}

#[derive(Debug)]
struct PreparedSkip<B: Backend>(Box<dyn PreparedLayer<B>>);

impl<B: Backend> PreparedLayer<B> for PreparedSkip<B> {
    fn forward(&self, backend: &B, batch: &Batch<B>, keep: Derivatives) -> (B::Tensor, Saved<B>) {
        let (y, saved) = self.0.forward(backend, batch, keep);
        (backend.axpy(1.0, &batch.x, y), saved)
    }

    fn jvp(&self, backend: &B, saved: &Saved<B>, dx: &B::Tensor) -> (B::Tensor, Saved<B>) {
        let (dy, kept) = self.0.jvp(backend, saved, dx);
        (backend.axpy(1.0, dx, dy), kept)
    }

    fn vjp(&self, backend: &B, saved: &Saved<B>, gy: B::Tensor) -> B::Tensor {
        backend.axpy(1.0, &gy.clone(), self.0.vjp(backend, saved, gy))
    }

    fn tangent_vjp(
        &self,
        backend: &B,
        saved: &Saved<B>,
        tangents: &[&Saved<B>],
        gy: B::Tensor,
        gdy: Vec<B::Tensor>,
        grads: LayerGrads<'_, B>,
    ) -> (B::Tensor, Vec<B::Tensor>) {
        let (gx, gdx) = self.0.tangent_vjp(backend, saved, tangents, gy.clone(), gdy.clone(), grads);
        let gdx = gdx.into_iter().zip(&gdy).map(|(gdx, gdy)| backend.axpy(1.0, gdy, gdx)).collect();
        (backend.axpy(1.0, &gy, gx), gdx)
    }

    fn finish_gradients(&self, backend: &B, grads: &mut [Grad<B>]) -> OrderGradients<B> {
        self.0.finish_gradients(backend, grads)
    }
}

/// A transform of numbers in an order of its own: entry i of what it takes and gives is entry `order[i]` of the rows.
struct Reordered<B: Backend> {
    order: Vec<usize>,
    transform: Box<dyn Bijection<B>>,
}

impl<B: Backend> Reordered<B> {
    /// Rows in the transform's order, or back.
    fn turn(&self, backend: &B, x: &B::Tensor, back: bool) -> B::Tensor {
        let d = self.order.len();
        let ones: Vec<f64> = (0..d * d).map(|e| f64::from(u8::from(self.order[e / d] == e % d))).collect();
        backend.matmul(x, false, &upload(backend, &ones, &[d, d]), !back)
    }
}

struct File<'a, B: Backend> {
    fixture: &'a Fixture,
    backend: &'a B,
    bins: usize,
    features: usize,
}

impl<B: Backend> File<'_, B> {
    fn indices(&self, key: &str) -> Vec<usize> {
        self.fixture.values(key).iter().map(|&i| i as usize).collect()
    }

    /// The LU linear map of a name, after a permutation.
    fn linear(&self, name: &str, permutation: &[usize]) -> Reordered<B> {
        let (backend, d) = (self.backend, self.features);
        let get = |leaf: &str| self.fixture.values(&format!("param.{name}.{leaf}"));
        let (mut lower, mut upper) = (get("lower_entries").iter(), get("upper_entries").iter());
        let diagonal = get("unconstrained_upper_diag");
        let mut lu = vec![0.0; d * d];
        for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))) {
            lu[i * d + j] = match i.cmp(&j) {
                std::cmp::Ordering::Greater => *lower.next().expect("an entry"),
                std::cmp::Ordering::Less => *upper.next().expect("an entry"),
                std::cmp::Ordering::Equal => diagonal[i] - Spline::SHIFT,
            };
        }
        let mut linear = LuLinear::permuting(backend, permutation).expect("a permutation");
        linear.visit_mut("", &mut |leaf, tensor, _| match leaf {
            "lu" => *tensor = upload(backend, &lu, &[d, d]),
            "bias" => *tensor = upload(backend, get("bias"), &[d]),
            _ => {}
        });
        Reordered { order: (0..d).collect(), transform: Box::new(linear) }
    }

    fn layer(&self, name: &str, bias: Option<&[f64]>) -> Box<dyn Layer<B>> {
        let weight = self.fixture.tensor(self.backend, &format!("param.{name}.weight"));
        let own = self.fixture.values(&format!("param.{name}.bias"));
        let bias = upload(self.backend, bias.unwrap_or(own), &[own.len()]);
        Box::new(LipschitzLinear::free(self.backend, weight, bias).expect("shapes that fit"))
    }

    /// The spline coupling of a name: its identity half comes first.
    fn coupling(&self, name: &str) -> Reordered<B> {
        let (backend, file, bins) = (self.backend, self.fixture, self.bins);
        let relu = || -> Box<dyn Layer<B>> { Box::new(ActivationLayer::new(backend, Activation::Relu)) };
        let net = format!("{name}.transform_net");
        let inner = |i: usize| self.layer(&format!("{net}.blocks.0.linear_layers.{i}"), None);
        let skip = Skip(Sequence::new(vec![relu(), inner(0), relu(), inner(1)]));
        // raw slopes, of which each spline has bins − 1 at its end
        let bias = file.values(&format!("param.{net}.final_layer.bias"));
        let shift = |(i, b): (usize, &f64)| if i % (3 * bins - 1) < 2 * bins { *b } else { b - Spline::SHIFT };
        let bias: Vec<f64> = bias.iter().enumerate().map(shift).collect();
        let layers: Vec<Box<dyn Layer<B>>> = vec![
            self.layer(&format!("{net}.initial_layer"), None),
            Box::new(skip),
            self.layer(&format!("{net}.final_layer"), Some(&bias)),
        ];
        let splines = Splines { bins, bound: file.note("bound"), hidden: file.note("hidden"), unconditional: true };
        let mut coupling = SplineCoupling::new(backend, Box::new(Sequence::new(layers)), self.features, false, splines)
            .expect("shapes that fit");
        let own = ["widths", "heights", "derivatives"]
            .map(|leaf| file.values(&format!("param.{name}.unconditional_transform.unnormalized_{leaf}")));
        let own = parameters(own, bins, Spline::SHIFT);
        coupling.visit_mut("", &mut |leaf, tensor, _| {
            if leaf == "unconditional" {
                *tensor = upload(backend, &own, &[1, own.len()]);
            }
        });
        let halves = ["identity_features", "transform_features"];
        let order = halves.map(|half| self.indices(&format!("buffer.{name}.{half}"))).concat();
        Reordered { order, transform: Box::new(coupling) }
    }

    /// Compares the gradients of a link with those of the modules of a name.
    fn gradients(&self, comparison: &mut Comparison, name: &str, link: &Reordered<B>, grads: &[Vec<f64>]) {
        let (d, bins) = (self.features, self.bins);
        let mut close = |leaf: &str, own: &[f64]| {
            let key = format!("grad.{name}.{leaf}");
            comparison.close(&key, own, self.fixture.values(&key));
        };
        if let [lu, bias] = grads {
            let entries = |keep: &dyn Fn(usize, usize) -> bool| -> Vec<f64> {
                lu.iter().enumerate().filter(|(e, _)| keep(e / d, e % d)).map(|(_, g)| *g).collect()
            };
            close("lower_entries", &entries(&|i, j| i > j));
            close("upper_entries", &entries(&|i, j| i < j));
            close("unconstrained_upper_diag", &entries(&|i, j| i == j));
            close("bias", bias);
            return;
        }
        let layers = ["initial_layer", "blocks.0.linear_layers.0", "blocks.0.linear_layers.1", "final_layer"];
        let names =
            layers.iter().flat_map(|layer| ["weight", "bias"].map(|leaf| format!("transform_net.{layer}.{leaf}")));
        let (own, net) = grads.split_last().expect("gradients");
        assert_eq!((net.len(), link.order.len()), (8, d));
        names.zip(net).for_each(|(name, own)| close(&name, own));
        for (leaf, start, length) in [("widths", 0, bins), ("heights", bins, bins), ("derivatives", 2 * bins, bins - 1)]
        {
            let own: Vec<f64> =
                own.chunks(3 * bins - 1).flat_map(|g| g[start..start + length].iter().copied()).collect();
            close(&format!("unconditional_transform.unnormalized_{leaf}"), &own);
        }
    }
}

/// Compares the file of a whole flow.
pub(crate) fn flow<B: Backend>(backend: &B) {
    let file = Fixture::open("spline_coupling_nsf");
    let mut comparison = Comparison::new::<B>("spline_coupling_nsf");
    let (features, bins) = (file.note("features"), file.note("bins"));
    let own = File { fixture: &file, backend, bins, features };
    let mut links = Vec::new();
    for step in 0..file.note::<usize>("steps") {
        let name = format!("_transforms.{}", 2 * step);
        let permutation = own.indices(&format!("buffer.{name}._transforms.0._permutation"));
        links.push((format!("{name}._transforms.1"), own.linear(&format!("{name}._transforms.1"), &permutation)));
        let name = format!("_transforms.{}", 2 * step + 1);
        links.push((name.clone(), own.coupling(&name)));
    }
    let last = format!("_transforms.{}", links.len());
    links.push((last.clone(), own.linear(&last, &(0..features).collect::<Vec<_>>())));

    let x = file.tensor(backend, "x");
    let (mut y, mut log_det) = (x.clone(), vec![0.0; backend.shape(&x).rows()]);
    let mut tapes: Vec<Tape> = Vec::new();
    for (i, (_, link)) in links.iter().enumerate() {
        let prepared = link.transform.prepare(backend);
        let batch = Batch::new(link.turn(backend, &y, false));
        let Trained { y: out, log_det: logs, tape, .. } = train(backend, &*prepared, &batch, draw(), Memory::Store);
        let (same, scored) = with_log_det(backend, &*prepared, &batch, draw(), 2);
        assert!(scored.exact && host(backend, &same) == host(backend, &out));
        y = link.turn(backend, &out, true);
        comparison.tensor(backend, &format!("step.{i}.out"), &y, file.values(&format!("step.{i}.out")));
        let tolerance = comparison.tolerance();
        let logs = host(backend, &logs);
        comparison.each(&format!("step.{i}.logdet"), &logs, file.values(&format!("step.{i}.logdet")), tolerance);
        log_det.iter_mut().zip(logs).for_each(|(sum, own)| *sum += own);
        tapes.push(tape);
    }
    comparison.tensor(backend, "z", &y, file.values("z"));
    let tolerance = comparison.tolerance();
    comparison.each("logdet", &log_det, file.values("logdet"), tolerance);

    let mut back = y;
    for (_, link) in links.iter().rev() {
        let turned = Batch::new(link.turn(backend, &back, false));
        let how = Inversion::for_backend::<B>();
        let solution = link.transform.prepare(backend).inverse(backend, &turned, &how).expect("the device works");
        back = link.turn(backend, &solution.value, true);
    }
    comparison.each("x there and back", &host(backend, &back), &host(backend, &x), 10.0 * tolerance);

    let weights = upload(backend, file.values("weight"), &[backend.shape(&x).rows(), 1]);
    let mut g = file.tensor(backend, "cotangent");
    for ((name, link), tape) in links.iter().zip(tapes).rev() {
        let prepared = link.transform.prepare(backend);
        let mut grads = vec![None; count_grads(&*link.transform)];
        let turned = link.turn(backend, &g, false);
        g = link.turn(backend, &pull_back(backend, &*prepared, tape, turned, &weights, &mut grads), true);
        prepared.finish_gradients(backend, &mut grads);
        let grads: Vec<_> = grads.iter().map(|g| host(backend, g.as_ref().expect("filled"))).collect();
        own.gradients(&mut comparison, name, link, &grads);
    }
    comparison.close("grad_x", &host(backend, &g), file.values("grad_x"));
    comparison.finish();
    // the reference's own way back, and sums of what is compared
    file.mark_read(|key| ["x_of_z", "inverse_logdet", "loss"].contains(&key));
    file.assert_all_read();
}
