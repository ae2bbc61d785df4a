//! The elementwise map of Flow++: values, log slopes, gradients and the inverse, both tails at ±200 included.

use resflow::backend::{Backend, Element as _};
use resflow::logistic::{LogisticMixture, MixtureGradient};

use crate::golden::fixture::{Comparison, Fixture, host};

pub(crate) fn rows<B: Backend>(backend: &B) {
    let file = Fixture::open("logistic_mixture_coupling");
    let mut comparison = Comparison::new::<B>("logistic_mixture_coupling");
    let n = file.shape("x")[0];
    let column = |values: Vec<f64>| {
        let values: Vec<_> = values.into_iter().map(B::Elem::from_f64).collect();
        backend.upload(&values, [n, 1].into())
    };
    let one = |key: &str| column(file.values(key).to_vec());
    let components: usize = file.note("components");
    let each = |key: &str| -> Vec<B::Tensor> {
        (0..components)
            .map(|k| column(file.values(key).iter().skip(k).step_by(components).copied().collect()))
            .collect()
    };
    let mixture = LogisticMixture::<B> {
        log_weights: each("log_weights"),
        means: each("means"),
        log_scales: each("log_scales"),
        log_scale: one("a"),
        shift: one("b"),
    };
    let tolerance = comparison.tolerance();
    let x = one("x");
    let [y, log_slope] = mixture.map(backend, &x);
    comparison.each("y", &host(backend, &y), file.values("y"), tolerance);
    comparison.each("logdet", &host(backend, &log_slope), file.values("logdet"), tolerance);
    // what they are made of, at 50 digits: y = e^a (ln F − ln(1 − F)) + b and the slope ln F' − ln F − ln(1 − F) + a
    let (own_y, own_slope) = (host(backend, &y), host(backend, &log_slope));
    let [cdf, survival, pdf, a, b] = ["log_cdf", "log_survival", "log_pdf", "a", "b"].map(|key| file.values(key));
    let of_parts = |i: usize| [a[i].exp() * (cdf[i] - survival[i]) + b[i], pdf[i] - cdf[i] - survival[i] + a[i]];
    let [by_y, by_slope] = [0, 1].map(|k| (0..n).map(|i| of_parts(i)[k]).collect::<Vec<_>>());
    comparison.each("y of its parts", &own_y, &by_y, tolerance);
    comparison.each("slope of its parts", &own_slope, &by_slope, tolerance);
    let sum = |by: &str, of: &[f64]| file.values(by).iter().zip(of).map(|(w, of)| w * of).sum::<f64>();
    comparison.close("loss", &[sum("weight", &own_slope) + sum("cotangent", &own_y)], file.values("loss"));

    let solved = mixture.invert(backend, &one("y_in")).expect("no device fault");
    assert!(host(backend, &solved.found).iter().all(|found| *found == 1.0), "all are found");
    assert!(solved.iterations < 60, "{} evaluations", solved.iterations);
    comparison.each("x_out", &host(backend, &solved.x), file.values("x_out"), tolerance);
    let back = mixture.invert(backend, &y).expect("no device fault");
    let [again, _] = mixture.map(backend, &back.x);
    comparison.each("y there and back", &host(backend, &again), file.values("y"), tolerance);

    let MixtureGradient { x: gx, parameters } = mixture.pull_back(backend, &x, &one("cotangent"), &one("weight"));
    comparison.each("grad.x", &host(backend, &gx), file.values("grad.x"), tolerance);
    comparison.each("grad.a", &host(backend, &parameters.log_scale), file.values("grad.a"), tolerance);
    comparison.each("grad.b", &host(backend, &parameters.shift), file.values("grad.b"), tolerance);
    for (key, tensors) in [
        ("grad.log_weights", &parameters.log_weights),
        ("grad.means", &parameters.means),
        ("grad.log_scales", &parameters.log_scales),
    ] {
        let columns: Vec<Vec<f64>> = tensors.iter().map(|t| host(backend, t)).collect();
        let own: Vec<f64> = (0..n).flat_map(|i| columns.iter().map(move |c| c[i])).collect();
        comparison.each(key, &own, file.values(key), tolerance);
    }
    comparison.finish();
    file.assert_all_read();
}
