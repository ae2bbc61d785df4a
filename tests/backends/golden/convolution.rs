//! σ of a zero-padded convolution: power iteration by the convolution and its adjoint, and by the library's power iteration on
//! the full matrix that the convolution of unit images spells out, against the SVD of that matrix.
//!
//! The two largest singular values of the last case differ by one in a thousand, so that σ moves by 1/10 of its error in a
//! hundred iterations: both iterations go on until that change is far below the tolerance.

use resflow::backend::{Backend, Binary, Element as _, Key, Noise, Padding, Unary};
use resflow::lipschitz::{DenseOperator, PowerIteration, SingularPair};

use crate::golden::fixture::{Comparison, Fixture, host};

/// Compares the four convolutions of the file.
pub(crate) fn compare<B: Backend>(backend: &B) {
    let file = Fixture::open("conv_spectral_norm");
    let mut comparison = Comparison::new::<B>("conv_spectral_norm");
    for number in 0..4 {
        let kernel = backend.permute(&file.tensor(backend, &format!("{number}.kernel")), &[0, 2, 3, 1]);
        let [outputs, kh, kw, inputs] = backend.shape(&kernel)[..] else { panic!("a kernel has four axes") };
        let padding = Padding::same([kh, kw]);
        let [h, w] = file.values(&format!("{number}.spatial")) else { panic!("height and width") };
        let image = [*h as usize, *w as usize];
        let pixels = image[0] * image[1];
        let sigma = file.values(&format!("{number}.sigma"));

        let norm = |x: &B::Tensor| backend.unary(Unary::Sqrt, backend.dot(x, x));
        let unit = |x: B::Tensor| {
            let norm = norm(&x);
            backend.binary(Binary::Div, x, &norm)
        };
        let mut v = unit(backend.noise(Key::new(number), Noise::Normal, 0, [1, image[0], image[1], inputs].into()));
        let by_convolution = converge(comparison.tolerance(), |iterations| {
            for _ in 0..iterations {
                let u = unit(backend.conv2d(&v, &kernel, padding));
                v = unit(backend.conv2d_input(&u, &kernel, padding, image));
            }
            host(backend, &norm(&backend.conv2d(&v, &kernel, padding)))[0]
        });
        comparison.close(&format!("{number}.sigma by convolutions"), &[by_convolution], sigma);

        let n = pixels * inputs;
        let ones: Vec<B::Elem> = (0..n * n).map(|e| B::Elem::from_f64(f64::from(u8::from(e % (n + 1) == 0)))).collect();
        let units = backend.upload(&ones, [n, image[0], image[1], inputs].into());
        let columns = backend.reshape(&backend.conv2d(&units, &kernel, padding), [n, pixels * outputs].into());
        let matrix = backend.permute(&columns, &[1, 0]);
        let mut pair = SingularPair::random(backend, [pixels * outputs], [n], Key::new(number));
        let operator = DenseOperator::new(backend, &matrix).expect("a matrix");
        let by_matrix = converge(comparison.tolerance(), |iterations| {
            pair = pair.updated(backend, &operator, PowerIteration::Iterations(iterations));
            host(backend, &pair.sigma(backend, &operator))[0]
        });
        comparison.close(&format!("{number}.sigma by the full matrix"), &[by_matrix], sigma);
    }
    comparison.finish();
    file.assert_all_read();
}

/// Iterates until a hundred iterations change σ by less than a hundredth of the tolerance.
fn converge(tolerance: f64, mut iterate: impl FnMut(usize) -> f64) -> f64 {
    let mut last = iterate(100);
    for _ in 0..1000 {
        let sigma = iterate(100);
        if (sigma - last).abs() <= 0.01 * tolerance * sigma {
            return sigma;
        }
        last = sigma;
    }
    panic!("the power iteration does not converge")
}
