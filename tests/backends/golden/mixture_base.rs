//! Base densities: mixtures of Gaussians with full and with diagonal covariances, and Student's t. The reference has the
//! covariance's factor L, Σ = L Lᵀ, the library the precision's, A = L⁻¹: gradients are taken from one to the other.

use nalgebra::DMatrix;
use resflow::backend::{Backend, Element as _};
use resflow::base::{Base, GaussianMixture, PreparedBase, StudentT};
use resflow::batch::Batch;

use crate::golden::fixture::{Comparison, Fixture, host};

fn upload<B: Backend>(backend: &B, values: &[f64], shape: &[usize]) -> B::Tensor {
    let values: Vec<_> = values.iter().map(|&v| B::Elem::from_f64(v)).collect();
    backend.upload(&values, shape.into())
}

/// log p, and the gradients of Σ wᵢ log p(zᵢ): in z, and in every tensor of the base.
struct Found {
    densities: Vec<f64>,
    of_z: Vec<f64>,
    of_tensors: Vec<Vec<f64>>,
}

fn evaluate<B: Backend>(
    backend: &B,
    base: &dyn PreparedBase<B>,
    z: &B::Tensor,
    weights: &[f64],
    tensors: usize,
) -> Found {
    let weights = upload(backend, weights, &[weights.len(), 1]);
    let mut grads = vec![None; tensors];
    let gz = base.pull_back(backend, Batch::new(z.clone()), &weights, &mut grads);
    base.finish_gradients(backend, &mut grads);
    // E is −log p but for a constant
    let negative = |x: &B::Tensor| host(backend, x).into_iter().map(|g| -g).collect::<Vec<_>>();
    Found {
        densities: base.log_prob(backend, &Batch::new(z.clone())).expect("no device fault"),
        of_z: negative(&gz),
        of_tensors: grads.iter().map(|g| negative(g.as_ref().expect("a gradient"))).collect(),
    }
}

/// log p by the energy on the device.
fn by_energy<B: Backend>(backend: &B, base: &dyn PreparedBase<B>, z: &B::Tensor) -> Vec<f64> {
    let energy = host(backend, &base.energy(backend, &Batch::new(z.clone())));
    energy.into_iter().map(|e| -e - base.constant()).collect()
}

/// p(k | zᵢ), which the gradient of the logits is π − r of a single sample's energy.
fn responsibilities<B: Backend>(backend: &B, base: &dyn PreparedBase<B>, z: &B::Tensor, prior: &[f64]) -> Vec<f64> {
    let n = backend.shape(z).rows();
    let of = |i: usize| {
        let alone: Vec<f64> = (0..n).map(|j| f64::from(u8::from(i == j))).collect();
        let found = evaluate(backend, base, z, &alone, 3);
        found.of_tensors[0].iter().zip(prior).map(|(g, p)| g + p).collect::<Vec<_>>()
    };
    (0..n).flat_map(of).collect()
}

/// Compares the mixtures of the file.
pub(crate) fn mixtures<B: Backend>(backend: &B) {
    let file = Fixture::open("mixture_base");
    let mut comparison = Comparison::new::<B>("mixture_base");
    let (z, weights) = (file.tensor(backend, "z"), file.values("weight").to_vec());
    let (k, d) = (file.note::<usize>("components"), file.note::<usize>("d"));
    let logits = file.values("logits");
    let total: f64 = logits.iter().map(|l| l.exp()).sum();
    let prior: Vec<f64> = logits.iter().map(|l| l.exp() / total).collect();
    let tril: Vec<DMatrix<f64>> = file.values("tril").chunks(d * d).map(|l| DMatrix::from_row_slice(d, d, l)).collect();
    let lower: Vec<DMatrix<f64>> = tril
        .iter()
        .map(|l| {
            DMatrix::from_fn(d, d, |i, j| match j.cmp(&i) {
                std::cmp::Ordering::Equal => l[(i, i)].exp(),
                std::cmp::Ordering::Less => l[(i, j)],
                std::cmp::Ordering::Greater => 0.0,
            })
        })
        .collect();
    let precise: Vec<DMatrix<f64>> = lower.iter().map(|l| l.clone().try_inverse().expect("a triangle")).collect();
    let stored: Vec<f64> = (0..k * d * d)
        .map(|e| {
            let (i, j, a) = (e / d % d, e % d, &precise[e / (d * d)]);
            match j.cmp(&i) {
                std::cmp::Ordering::Equal => a[(i, i)].ln(),
                std::cmp::Ordering::Less => a[(i, j)],
                std::cmp::Ordering::Greater => 0.0,
            }
        })
        .collect();
    for (name, factors, shape) in [
        ("full", stored, vec![k, d, d]),
        ("diagonal", file.values("log_scales").iter().map(|s| -s).collect(), vec![k, d]),
    ] {
        let tensors =
            [file.tensor(backend, "logits"), file.tensor(backend, "means"), upload(backend, &factors, &shape)];
        let [logits, means, factors] = tensors;
        let mixture = GaussianMixture::from_parts(backend, logits, means, factors).expect("shapes that fit");
        let base = mixture.prepare(backend);
        let found = evaluate(backend, &*base, &z, &weights, 3);
        let key = |leaf: &str| format!("{name}.{leaf}");
        comparison.close(&key("log_density"), &found.densities, file.values(&key("log_density")));
        comparison.close(&key("energy"), &by_energy(backend, &*base, &z), file.values(&key("log_density")));
        comparison.close(&key("grad_z"), &found.of_z, file.values(&key("grad_z")));
        comparison.close(&key("grad.logits"), &found.of_tensors[0], file.values(&key("grad.logits")));
        comparison.close(&key("grad.means"), &found.of_tensors[1], file.values(&key("grad.means")));
        let shares = responsibilities(backend, &*base, &z, &prior);
        comparison.close(&key("responsibilities"), &shares, file.values(&key("responsibilities")));
        let of_factors = &found.of_tensors[2];
        if name == "diagonal" {
            // log A = −log of the deviation
            let of_scales: Vec<f64> = of_factors.iter().map(|g| -g).collect();
            comparison.close("diagonal.grad.log_scales", &of_scales, file.values("diagonal.grad.log_scales"));
            continue;
        }
        // dA = −A dL A, so L̄ = −Aᵀ Ā Aᵀ; what is stored on both diagonals are logarithms
        let of_tril: Vec<f64> = (0..k)
            .flat_map(|c| {
                let (a, l) = (&precise[c], &lower[c]);
                let stored = |i: usize, j: usize| of_factors[(c * d + i) * d + j];
                let of_a = DMatrix::from_fn(d, d, |i, j| if i == j { stored(i, i) / a[(i, i)] } else { stored(i, j) });
                let of_l = -(a.transpose() * of_a * a.transpose());
                let entry = move |i: usize, j: usize| match j.cmp(&i) {
                    std::cmp::Ordering::Equal => of_l[(i, i)] * l[(i, i)],
                    std::cmp::Ordering::Less => of_l[(i, j)],
                    std::cmp::Ordering::Greater => 0.0,
                };
                (0..d * d).map(move |e| entry(e / d, e % d)).collect::<Vec<_>>()
            })
            .collect();
        comparison.close("full.grad.tril", &of_tril, file.values("full.grad.tril"));
    }
    comparison.finish();
    // the rest is compared below, or belongs to transforms of columns
    file.mark_read(|key| key.starts_with("student.") || key.starts_with("tail."));
    file.assert_all_read();
}

/// Compares Student's t.
pub(crate) fn student<B: Backend>(backend: &B) {
    let file = Fixture::open("mixture_base");
    let mut comparison = Comparison::new::<B>("student");
    let (z, weights) = (file.tensor(backend, "student.z"), file.values("weight").to_vec());
    let raw = file.tensor(backend, "student.raw");
    let nu: Vec<f64> = file.values("student.raw").iter().map(|raw| 1.0 + raw.exp().ln_1p()).collect();
    comparison.close("nu", &nu, file.values("student.nu"));
    let base = StudentT::from_parts(backend, raw.clone()).expect("a shape that fits").prepare(backend);
    let found = evaluate(backend, &*base, &z, &weights, 1);
    comparison.close("log_density", &found.densities, file.values("student.log_density"));
    comparison.close("energy", &by_energy(backend, &*base, &z), file.values("student.log_density"));
    comparison.close("grad_z", &found.of_z, file.values("student.grad_z"));
    comparison.close("grad.raw", &found.of_tensors[0], file.values("student.grad.raw"));
    let d = nu.len();
    let columns: Vec<Vec<f64>> = (0..d)
        .map(|j| {
            let own = backend.narrow(&raw, 0, j, 1);
            let base = StudentT::from_parts(backend, own).expect("a shape that fits").prepare(backend);
            let column = backend.narrow(&z, 1, j, 1);
            base.log_prob(backend, &Batch::new(column)).expect("no device fault")
        })
        .collect();
    let columns: Vec<f64> = (0..columns[0].len() * d).map(|e| columns[e % d][e / d]).collect();
    comparison.close("log_density_columns", &columns, file.values("student.log_density_columns"));
    comparison.finish();
    file.mark_read(|key| !key.starts_with("student."));
    file.assert_all_read();
}
