//! Certified norms from above: matrices with their exact largest singular values (rank one, equal ones, 10^±30, zeros, a gap of 1e−9, …), and
//! kernels with the exact norms of the zero-padded convolution on some sizes and the supremum over all frequencies.

use resflow::backend::Padding;
use resflow::lipschitz::{convolution_norm_bound, spectral_norm_bound};

use crate::golden::fixture::Fixture;

/// Compares every number of the file.
#[test]
fn certified_norms_are_above_the_exact_ones() {
    let file = Fixture::open("lipschitz_upper");
    let one = |key: &str| file.values(key)[0];
    // references are rounded to double precision
    let holds = |bound: f64, exact: f64, most: f64, what: &str| {
        assert!(bound >= exact * (1.0 - 1e-15) && bound <= most * exact, "{what}: {bound:e} for {exact:e}");
    };
    let matrices: Vec<String> = file.note("matrices");
    for (i, what) in matrices.iter().enumerate() {
        let key = format!("matrix.{i}");
        let shape = file.shape(&key);
        holds(spectral_norm_bound(shape[0], shape[1], file.values(&key)), one(&format!("sigma.{i}")), 1.0 + 1e-9, what);
    }
    let kernels: Vec<String> = file.note("kernels");
    for (i, what) in kernels.iter().enumerate() {
        let key = |name: &str| format!("kernel.{i}{name}");
        let shape = file.shape(&key(""));
        let [outputs, inputs, kh, kw] = [shape[0], shape[1], shape[2], shape[3]];
        // channels last
        let kernel: Vec<f64> = (0..outputs * kh * kw * inputs)
            .map(|at| {
                let (o, tap, c) = (at / inputs / (kh * kw), at / inputs % (kh * kw), at % inputs);
                file.values(&key(""))[(o * inputs + c) * kh * kw + tap]
            })
            .collect();
        let extents = [outputs, kh, kw, inputs];
        let any = convolution_norm_bound(&kernel, extents, None);
        let supremum = one(&key(".sup"));
        holds(any, supremum, 1.0025, what);
        assert!(any >= one(&key(".grid_max")) && any >= one(&key(".grid32_max")), "{what}");
        for j in (0..).take_while(|j| file.has(&key(&format!(".sigma.{j}")))) {
            let (exact, size) = (one(&key(&format!(".sigma.{j}"))), file.values(&key(&format!(".spatial.{j}"))));
            let image = [size[0] as usize, size[1] as usize];
            let sized = convolution_norm_bound(&kernel, extents, Some((image, Padding::same([kh, kw]))));
            // on images of so few numbers it is the norm of the convolution's own matrix
            holds(sized, exact, 1.0 + 1e-9, &format!("{what} on {image:?}"));
            assert!(sized <= any * 1.0002, "{what} on {image:?}: {sized}, {any} on any");
            assert!(any >= exact, "{what}: {any} for any size, {exact} on {image:?}");
        }
    }
    file.assert_all_read();
}
