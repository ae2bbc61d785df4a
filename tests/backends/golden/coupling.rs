//! Affine couplings: dense ones of both halves before an ActNorm, and on images those of channel and checkerboard masks of
//! both parities. Values, log dets and the way back.

use resflow::backend::{Activation, Backend, Key};
use resflow::batch::Batch;
use resflow::bijection::{Bijection, Draw, PreparedBijection};
use resflow::coupling::{Coupling, Mask};
use resflow::estimator::{Estimator, Exact};
use resflow::invert::{Inversion, Status};
use resflow::layer::{ActivationLayer, Layer, LipschitzConv, LipschitzLinear, Sequence};
use resflow::transform::ActNorm;

use crate::common::asking::with_log_det;
use crate::golden::fixture::{Comparison, Fixture, host};

const EXACT: Estimator = Estimator::Exact(Exact);

fn draw() -> Draw<'static> {
    Draw { estimator: &EXACT, key: Key::new(0) }
}

/// layer, ELU, layer.
fn net<B: Backend>(backend: &B, layers: [Box<dyn Layer<B>>; 2]) -> Box<dyn Layer<B>> {
    let [first, last] = layers;
    Box::new(Sequence::new(vec![first, Box::new(ActivationLayer::new(backend, Activation::Elu)), last]))
}

/// y and the log det of each row; the inverse must bring x back.
fn forth_and_back<B: Backend>(
    comparison: &mut Comparison,
    backend: &B,
    name: &str,
    links: &[Box<dyn PreparedBijection<B>>],
    x: &B::Tensor,
) -> (B::Tensor, Vec<f64>) {
    let mut y = x.clone();
    let mut log_det = vec![0.0; backend.shape(x).rows()];
    for link in links {
        let (next, own) = with_log_det(backend, &**link, &Batch::new(y), draw(), 2);
        assert!(own.exact, "a coupling estimates nothing");
        log_det.iter_mut().zip(host(backend, &own.value)).for_each(|(sum, own)| *sum += own);
        y = next;
    }
    let mut back = y.clone();
    for link in links.iter().rev() {
        let solution =
            link.inverse(backend, &Batch::new(back), &Inversion::for_backend::<B>()).expect("the device works");
        assert!(solution.reports.iter().all(|r| r.status == Status::Converged));
        back = solution.value;
    }
    comparison.close(&format!("{name}, there and back"), &host(backend, &back), &host(backend, x));
    (y, log_det)
}

/// Compares the file of dense couplings.
pub(crate) fn dense<B: Backend>(backend: &B) {
    let file = Fixture::open("coupling_dense");
    let mut comparison = Comparison::new::<B>("coupling_dense");
    let tensor = |name: &str| file.tensor(backend, &format!("param.chain.{name}"));
    let mut links = Vec::new();
    for (i, swapped) in [false, true].into_iter().enumerate() {
        let layers = [0, 2].map(|j| -> Box<dyn Layer<B>> {
            let [weight, bias] = ["weight", "bias"].map(|leaf| tensor(&format!("{i}.nnet.{j}.{leaf}")));
            Box::new(LipschitzLinear::free(backend, weight, bias).expect("shapes that fit"))
        });
        let coupling = Coupling::new(net(backend, layers), Mask::Channels { swapped }, &[4]).expect("shapes that fit");
        links.push(coupling.prepare(backend));
    }
    let actnorm = ActNorm::from_parts(backend, tensor("2.weight"), tensor("2.bias")).expect("shapes that fit");
    links.push(actnorm.prepare(backend));
    let (z, log_det) = forth_and_back(&mut comparison, backend, "x", &links, &file.tensor(backend, "x"));
    comparison.tensor(backend, "z", &z, file.values("z"));
    comparison.close("logdet", &log_det, file.values("logdet"));
    comparison.finish();
    file.assert_all_read();
}

/// Compares the file of couplings of images.
pub(crate) fn images<B: Backend>(backend: &B) {
    let file = Fixture::open("coupling_image");
    let mut comparison = Comparison::new::<B>("coupling_image");
    let last = |x: B::Tensor| backend.permute(&x, &[0, 2, 3, 1]);
    for (name, mask) in [
        ("channel0", Mask::Channels { swapped: false }),
        ("channel1", Mask::Channels { swapped: true }),
        ("checkerboard0", Mask::Checkerboard { swapped: false }),
        ("checkerboard1", Mask::Checkerboard { swapped: true }),
    ] {
        let tensor = |key: &str| file.tensor(backend, &format!("{name}.{key}"));
        let layers = [0, 2].map(|j| -> Box<dyn Layer<B>> {
            let [kernel, bias] = ["weight", "bias"].map(|leaf| tensor(&format!("param.nnet.{j}.{leaf}")));
            Box::new(LipschitzConv::free(backend, last(kernel), bias).expect("shapes that fit"))
        });
        let x = last(tensor("x"));
        let coupling = Coupling::new(net(backend, layers), mask, &backend.shape(&x)[1..]).expect("shapes that fit");
        let (y, log_det) =
            forth_and_back(&mut comparison, backend, &format!("{name}.x"), &[coupling.prepare(backend)], &x);
        comparison.tensor(backend, &format!("{name}.y"), &y, &host(backend, &last(tensor("y"))));
        comparison.close(&format!("{name}.logdet"), &log_det, file.values(&format!("{name}.logdet")));
    }
    comparison.finish();
    file.assert_all_read();
}
