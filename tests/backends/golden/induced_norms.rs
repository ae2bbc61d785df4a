//! Norms between orders: the learned order of its raw parameter, on the host and on the device, and for four matrices the
//! norm ‖W‖_{p→q} = uᵀWv of the stored dual vectors, which another iteration does not change, and the normalised weight.

use resflow::backend::{Backend, Binary, Element as _};
use resflow::lipschitz::{Coefficient, DenseOperator, DualPair, Norm, Norms, Order, PowerIteration, learned_exponent};

use crate::common::apart;
use crate::golden::fixture::{Comparison, Fixture, host};

const KAPPA: f64 = 0.9;

/// Compares every tensor of the file.
pub(crate) fn compare<B: Backend>(backend: &B) {
    let file = Fixture::open("induced_norms");
    let mut comparison = Comparison::new::<B>("induced_norms");
    let (a, p) = (file.values("a"), file.values("p"));
    comparison.close("p on the host", &a.iter().map(|&a| learned_exponent(a)).collect::<Vec<_>>(), p);
    let order = |&a: &f64| {
        let raw = backend.upload(&[B::Elem::from_f64(a)], [1].into());
        let norm = Norm::new(backend, Order::Learned(0), Some(&raw)).expect("an order with its parameter");
        host(backend, &norm.order(backend))[0]
    };
    comparison.close("p on the device", &a.iter().map(order).collect::<Vec<_>>(), p);

    let coefficient = Coefficient::new(KAPPA).expect("in range");
    for i in 0..4 {
        let key = |name: &str| format!("{i}.{name}");
        let norm = |name: &str| {
            let order = Order::fixed(file.values(&key(name))[0]).expect("an order");
            Norm::new(backend, order, None).expect("fixed")
        };
        let norms = Norms { domain: norm("domain"), codomain: norm("codomain") };
        let weight = file.tensor(backend, &key("weight"));
        let operator = DenseOperator::new(backend, &weight).expect("a matrix");
        let pair = DualPair::new(file.tensor(backend, &key("u")), file.tensor(backend, &key("v")));
        let sigma = pair.sigma(backend, &operator);
        comparison.tensor(backend, &key("norm"), &sigma, file.values(&key("norm")));
        let normalised = backend.binary(Binary::Mul, weight.clone(), &coefficient.factor(backend, &sigma));
        comparison.tensor(backend, &key("weight_normalised"), &normalised, file.values(&key("weight_normalised")));

        let again = pair.updated(backend, &operator, &norms, PowerIteration::Iterations(1));
        comparison.tensor(backend, &key("norm, iterated"), &again.sigma(backend, &operator), file.values(&key("norm")));
        // vectors are found to the root of what the norm is found to
        let close = |a: &B::Tensor, b: &B::Tensor| {
            let apart = apart(&host(backend, a), &host(backend, b));
            assert!(apart <= comparison.tolerance().sqrt(), "{}: {apart:e}", key("dual vectors"));
        };
        close(&pair.u, &again.u);
        close(&pair.v, &again.v);
        // ‖v‖_p = 1 and ‖u‖_{q*} = 1
        comparison.tensor(backend, &key("length of v"), &norms.domain.norm(backend, &pair.v), &[1.0]);
        comparison.tensor(backend, &key("length of u"), &norms.codomain.dual(backend).norm(backend, &pair.u), &[1.0]);
    }
    comparison.finish();
    file.assert_all_read();
}
