//! ActNorm's data-dependent initialisation, per feature and per channel: s, b, y and the log det, from the batch whole and in
//! two shards. Images become rows of their channels, one for each pixel; an image's log det is the sum over its pixels.

use resflow::backend::{Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Draw};
use resflow::estimator::{Estimator, Exact};
use resflow::module::Module as _;
use resflow::transform::ActNorm;

use crate::common::asking::with_log_det;
use crate::golden::fixture::{Comparison, Fixture, host};

/// Compares both parts of the file.
pub(crate) fn compare<B: Backend>(backend: &B) {
    let file = Fixture::open("actnorm_init");
    let mut comparison = Comparison::new::<B>("actnorm_init");
    for part in ["1d", "2d"] {
        let rows = |key: &str| {
            let x = file.tensor(backend, &format!("{part}.{key}"));
            let shape = backend.shape(&x);
            if shape.rank() == 2 {
                return x;
            }
            let last = backend.permute(&x, &[0, 2, 3, 1]);
            backend.reshape(&last, [shape[0] * shape[2] * shape[3], shape[1]].into())
        };
        let x = Batch::new(rows("x"));
        let shape = x.shape(backend);
        let cut = shape.rows() / 3;
        let shards = [x.narrow(backend, 0, cut), x.narrow(backend, cut, shape.rows() - cut)];
        for (how, batch) in [("whole", &[x.clone()][..]), ("in shards", &shards)] {
            let mut actnorm = ActNorm::new(backend, shape[1]);
            actnorm.initialise(backend, batch, None).expect("more than one row");
            let mut close = |key: &str, actual: &[f64], reference: &[f64]| {
                comparison.close(&format!("{part}.{key} {how}"), actual, reference);
            };
            actnorm.visit("", &mut |name, tensor, role| match (name, role.is_trained()) {
                ("log_scale", true) => close("s", &host(backend, tensor), file.values(&format!("{part}.s"))),
                ("bias", true) => close("b", &host(backend, tensor), file.values(&format!("{part}.b"))),
                (_, trained) => assert!(!trained, "{name} is not compared"),
            });
            let draw = Draw { estimator: &Estimator::Exact(Exact), key: Key::new(0) };
            let (y, log_det) = with_log_det(backend, &*actnorm.prepare(backend), &x, draw, 2);
            close("y", &host(backend, &y), &host(backend, &rows("y")));
            assert!(log_det.exact, "an ActNorm estimates nothing");
            let reference = file.values(&format!("{part}.logdet"));
            let log_det = host(backend, &log_det.value);
            let sums: Vec<f64> =
                log_det.chunks_exact(log_det.len() / reference.len()).map(|pixels| pixels.iter().sum()).collect();
            close("logdet", &sums, reference);
        }
    }
    comparison.finish();
    file.assert_all_read();
}
